"""What is measured of a network beside its training: accuracy and loss on images, and all that its
run asks for.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import data, losses, measures
from lib.run import CCA_STARTS, Run, generator
from lib.task import Task

EVAL_BATCHES = {"cpu": 500, "cuda": 5000}  # what fits a cache; what fills a GPU
CCA_IMAGES = 1000  # protocol, section 1


def evaluate(model: nn.Module, task: Task, run: Run, *, full: bool) -> dict[str, float]:
    """Accuracy in % and cross-entropy on (the first) test images and, where some are held out, on
    the validation images.

    NaN where a logit is not finite: the largest of such logits means nothing.
    """
    count = len(task.test) if full or run.test_images is None else run.test_images
    values: dict[str, float] = {"test_images": count}
    test = data.Split(task.test.images[:count], task.test.labels[:count])
    for name, split in (("test", test), ("validation", task.validation)):
        if len(split):
            logits = predict(model, split.images)
            accuracy = measures.accuracy(logits, split.labels).item()
            values[f"{name}_accuracy"] = accuracy if torch.isfinite(logits).all() else math.nan
            values[f"{name}_cross_entropy"] = F.cross_entropy(logits, split.labels).item()
    return values


def observe(
    model: nn.Module,
    task: Task,
    run: Run,
    epoch: int,
    arrays: dict[str, list[Tensor]],
    starts: dict[str, Tensor],
) -> dict[str, float]:
    """What the run asks for beside the curves, after `epoch` (0: before training): columns, and
    arrays that are added to.

    `starts` holds φ at the starts that canonical correlations are taken against.
    """
    columns: dict[str, float] = {}

    def add(name: str, value: Tensor) -> None:
        arrays.setdefault(name, []).append(value.cpu())

    if epoch in run.point_epochs():
        for spec, curve in _ablate(model, task, run, epoch).items():
            add(f"ablation {spec}", curve)
            columns[_area_column(spec)] = measures.ablation_area(curve)
        add("ablation epochs", torch.tensor(epoch))
    mapped = epoch in run.heat_map_epochs() and run.heat_maps
    if run.entropy or mapped:
        maps = measures.entropy_maps(
            model, task.measure.images if run.entropy else task.measure.images[: run.heat_maps]
        )
    if mapped:
        for layer, entropy in maps.items():
            add(f"heat maps {layer}", entropy[: run.heat_maps].half())
        add("heat map epochs", torch.tensor(epoch))
    if run.entropy:
        means = {f"entropy {layer}": entropy.mean().item() for layer, entropy in maps.items()}
        if epoch == 0:
            add("entropy before training", torch.tensor(list(means.values())))
        columns |= means
        for layer in _correlated(model):
            rms, histogram = measures.correlation_summary(losses.find_layer(model, layer).weight)
            columns[f"correlation {layer}"] = rms.item()
            add(f"correlations {layer}", histogram.int())
    if run.cca and (epoch <= 1 or epoch in run.cca_epochs()):
        phi = measures.channel_points(predict(model.trunk, task.train.images[:CCA_IMAGES])).cpu()
        if epoch < len(CCA_STARTS):
            starts |= {CCA_STARTS[epoch]: phi} if CCA_STARTS[epoch] in run.cca else {}
        for start in starts if epoch in run.cca_epochs() else ():
            found = measures.similarities(starts[start], phi)
            # sequences of one length: where a channel is dead, or depends on others, the last
            # coefficients are missing
            missing = len(phi) - len(found.cca.coefficients)
            add(f"cca {start}", F.pad(found.cca.coefficients, (0, missing), value=math.nan))
            add(f"cca dropped {start}", torch.tensor([found.cca.dropped_x, found.cca.dropped_y]))
            columns |= {
                f"{name} {start}": getattr(found, name) for name in ("mean_cca", "svcca", "pwcca")
            }
            add(f"cca epochs {start}", torch.tensor(epoch))
    return columns


def kept(model: nn.Module, task: Task, run: Run) -> dict[str, np.ndarray]:
    """What the run asks for of the trained network itself: `trunk <parameter>` and `predictions`
    int16 [N_train].
    """
    found = (
        {f"trunk {k}": v.cpu().numpy() for k, v in model.trunk.state_dict().items()}
        if run.keep_trunk
        else {}
    )
    if run.predictions:
        found["predictions"] = (
            predict(model, task.train.images).argmax(1).cpu().numpy().astype(np.int16)
        )
    return found


def _ablate(model: nn.Module, task: Task, run: Run, epoch: int) -> dict[str, Tensor]:
    """An ablation curve [11] for each "mask/images" that the run asks for."""
    sets = {
        "train-true": (task.train.images, task.true_labels),
        "train-corrupt": (task.train.images, task.train.labels),
        "test": (task.test.images, task.test.labels),
    }
    curves, features = {}, {}
    for spec in run.ablations:
        mask, name = spec.split("/")
        images, labels = sets[name]
        if id(images) not in features:
            features[id(images)] = predict(model.trunk, images)
        coins = generator(run.seed, "ablation", spec, epoch, device=images.device)
        curves[spec] = measures.cumulative_ablation(
            model.head, features[id(images)], labels, mask=mask, generator=coins
        )
    return curves


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Outputs in eval mode for images [N, C, H, W], batch by batch, without gradients: penalties
    attached to the network measure nothing.
    """
    model.eval()
    size = EVAL_BATCHES.get(images.device.type, 500)
    return torch.cat([model(batch) for batch in images.split(size)])


def metric_names(run: Run, task: Task, model: nn.Module) -> list[str]:
    """Columns of the run's metrics, in their order."""
    columns = [
        "epoch",
        "test_accuracy",
        "test_cross_entropy",
        "test_images",
        "train_accuracy",
        "cross_entropy",
        "activation_l2",
    ]
    columns += ["lambda"] if run.al2 else []
    columns += ["sparsity_penalty"] * bool(run.sparsity) + ["decorrelation_penalty"] * bool(
        run.decorrelation
    )
    columns += ["validation_accuracy", "validation_cross_entropy"] if len(task.validation) else []
    if run.entropy:
        columns += [f"entropy {layer}" for layer in measures.hidden_layers(model)]
        columns += [f"correlation {layer}" for layer in _correlated(model)]
    columns += [
        f"{scalar} {start}" for start in run.cca for scalar in ("mean_cca", "svcca", "pwcca")
    ]
    return columns + [_area_column(spec) for spec in run.ablations]


def _correlated(model: nn.Module) -> list[str]:
    """Hidden layers whose filters' correlations are measured: all of the ConvNets', but not
    AlexNet's 4,096 units.
    """
    return [
        name
        for name in measures.hidden_layers(model)
        if len(losses.find_layer(model, name).weight) <= measures.MOST_FILTERS
    ]


def _area_column(spec: str) -> str:
    """Table 2's metric has the published name; the other protocols say which they are."""
    return "ablation_auc" if spec == "element/train-true" else f"ablation_auc {spec}"
