"""Training: the data lives on the device, nothing inside an epoch waits for the host, a killed run goes on where it was.

Order of batches, dropout and masks of an epoch come from generators seeded by (seed, purpose, epoch), so that the state of
a training is its weights, its optimiser and its epoch. On a CPU one thread trains one network: results do not depend on
how many cores there are, and the run store gives each core a network of its own.
"""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import data, fast, losses, measures, models, paths, record
from lib.run import CCA_STARTS, Run, generator
from lib.task import Task, check, data_key, prepare
from lib.task import penalties as attach

CHECKPOINT_SECONDS = 30
EVAL_BATCH = 500
PRECISIONS = ("float32", "bfloat16")
CCA_IMAGES = 1000  # protocol, section 1
Watch = Callable[[Run, nn.Module, int], None]


class OutOfTime(RuntimeError):
    """A training was stopped at its deadline, between two epochs, and can go on from there."""


def fit(
    runs: Sequence[Run],
    folders: Sequence[Path] | None = None,
    *,
    device: str | torch.device | None = None,
    precision: str | None = None,
    on_epoch: Callable[[], None] = lambda: None,
    watch: Watch | None = None,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Train the runs and give their metrics: one tidy frame, a row a run and epoch, with the run's `id`.

    Args:
        runs: what to train.
        folders: one each, to checkpoint into, to resume from and to write the finished run to; None: keep nothing. A checkpoint
            of other labels, those of a teacher (`relabelled_by`) that was trained again since, is not gone on from.
        device: None: `$DEVICE`, else the GPU where there is one, else the CPU.
        precision: of the training steps' products: "float32" or "bfloat16"; weights, penalties, optimiser and all that is
            measured stay float32. None: `$PRECISION`, else float32. A checkpoint goes on in the precision it was begun in.
        on_epoch: called after each epoch of each run.
        watch: called with run, network and epoch before training (epoch 0) and after each epoch, for example to log to
            TensorBoard (`lib.monitor`). It must not change the network.
        deadline: a value of `time.monotonic()`: the epoch that it falls into is the last one, None: train to the end.

    Raises:
        ValueError: if a run does not fit its data, or for an unknown precision; raised before any of them is trained.
        OutOfTime: at the deadline, if epochs are left; with a folder, the run's checkpoint then holds what was trained.
    """
    if folders is not None and len(folders) != len(runs):
        raise ValueError(f"{len(runs)} runs and {len(folders)} folders; each run needs one")
    device = torch.device(device or default_device())
    precision = default_precision(precision)
    _commit()
    tasks: dict[tuple, Task] = {}
    for run in runs:
        key = data_key(run)
        if key not in tasks:
            tasks[key] = prepare(run, device)
        check(run, tasks[key].shape, len(tasks[key].train), len(tasks[key].test))
    frames = []
    for k, run in enumerate(runs):
        with _reproducible(device):
            folder = folders[k] if folders else None
            frames.append(_fit_one(run, tasks[data_key(run)], folder, device, precision, on_epoch, watch, deadline))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def default_device() -> str:
    """`$DEVICE` if set, else "cuda" where there is a GPU, else "cpu"."""
    return os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def default_precision(asked: str | None = None) -> str:
    """The one asked for, else `$PRECISION`, else "float32"; a ValueError for one that is not in PRECISIONS."""
    precision = asked or os.environ.get("PRECISION") or PRECISIONS[0]
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")
    return precision


def device_name(device: str | torch.device | None = None) -> str:
    """The name of a device (None: the default one) in a run's record: the GPU's model, or the processor's kind."""
    device = torch.device(device or default_device())
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _fit_one(
    run: Run,
    task: Task,
    folder: Path | None,
    device: torch.device,
    precision: str,
    on_epoch: Callable[[], None],
    watch: Watch | None,
    deadline: float | None,
) -> pd.DataFrame:
    model = models.build(run, *task.shape).to(device, memory_format=torch.channels_last)
    optimizer = _optimizer(run, model)
    penalties = attach(run, model)
    weights = losses.schedule(run.schedule, run.epochs, run.speed, run.rate) if run.al2 else [0.0] * run.epochs
    rows: list[dict[str, float]] = []
    arrays: dict[str, list[Tensor]] = {}
    starts: dict[str, Tensor] = {}
    seconds, diverged = 0.0, None

    state = record.load_checkpoint(folder, run, task.hashes["labels"]) if folder else None
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rows, arrays, starts, seconds = state["rows"], state["arrays"], state["starts"], state["seconds"]
        precision = state.get("precision", PRECISIONS[0])  # one training, one precision
        for _ in rows:
            on_epoch()
    elif folder:
        record.begin(folder, run)

    started = saved = time.monotonic()
    if not rows:
        _observe(model, task, run, 0, arrays, starts)
        if watch:
            watch(run, model, 0)
    for epoch in range(len(rows) + 1, run.epochs + 1):
        weight = float(weights[epoch - 1])
        row = {"epoch": epoch} | _train_epoch(model, optimizer, penalties, task, run, epoch, weight, precision)
        row |= _evaluate(model, task, run, full=epoch in run.point_epochs())
        if not all(map(math.isfinite, row.values())):
            diverged = epoch
            break
        rows.append(row | _observe(model, task, run, epoch, arrays, starts))
        on_epoch()
        if watch:
            watch(run, model, epoch)
        now = time.monotonic()
        late = deadline is not None and now >= deadline and epoch < run.epochs
        if folder and epoch < run.epochs and (late or now - saved > CHECKPOINT_SECONDS):
            saved = now
            state = {"id": run.id, "measured": json.dumps(run.measured()), "model": model.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "rows": rows, "arrays": arrays, "starts": starts}
            state |= {"seconds": seconds + saved - started, "device": device_name(device), "precision": precision}
            state |= {"labels": task.hashes["labels"]}
            record.save_checkpoint(folder, state)
        if late:
            raise OutOfTime(f"{run.name} was stopped after epoch {epoch} of {run.epochs}; train it again to go on")
    for penalty in penalties:
        penalty.remove()

    metrics = pd.DataFrame(rows, columns=_columns(run, task, model))
    if folder:
        env = _environment(device) | {"precision": precision} | task.hashes | {"num_classes": task.num_classes}
        env |= {"seconds": round(seconds + time.monotonic() - started, 1)}
        kept = {k: v.cpu() for k, v in model.state_dict().items()} if run.keep_weights else None
        stacked = {name: torch.stack(values).numpy() for name, values in arrays.items()}
        stacked |= _kept(model, task, run) if diverged is None else {}
        record.finish(folder, run, metrics, stacked, env, diverged, kept)
    return metrics.assign(id=run.id)


def _optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    options = {"lr": run.learning_rate, "weight_decay": run.weight_decay}
    if run.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), **options)
    return torch.optim.SGD(model.parameters(), momentum=run.momentum, **options)


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    penalties: tuple[losses.ActivationL2, losses.SparsityReg, losses.DecorrReg],
    task: Task,
    run: Run,
    epoch: int,
    weight: float,
    precision: str = PRECISIONS[0],
) -> dict[str, float]:
    """One pass over the training images; means over the epoch's images, in training mode."""
    model.train()
    activation_l2, sparsity, decorrelation = penalties
    images, labels = task.train.images, task.train.labels
    order = torch.randperm(len(labels), generator=generator(run.seed, "order", epoch)).to(images.device)
    coins = generator(run.seed, "dropout", epoch, device=images.device)  # one for all layers, or they would drop alike
    for module in model.modules():
        if isinstance(module, models.Dropout):
            module.generator = coins
    sums: dict[str, Tensor] = {}
    for batch in order.split(run.batch_size):
        x, y = images[batch], labels[batch]  # [B, C, H, W], [B]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(x).float()  # [B, K]; losses, and gradients of weights, are float32 whatever the products are
        cross_entropy, l2 = F.cross_entropy(logits, y), activation_l2.penalty()
        loss = cross_entropy + weight * l2 if weight else cross_entropy
        step = {"cross_entropy": cross_entropy, "activation_l2": l2, "train_accuracy": measures.accuracy(logits, y)}
        if run.sparsity:
            step["sparsity_penalty"] = sparsity.penalty()
            loss = loss + step["sparsity_penalty"]
        if run.decorrelation:
            step["decorrelation_penalty"] = decorrelation.penalty()
            loss = loss + step["decorrelation_penalty"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for name, value in step.items():
            sums[name] = sums.get(name, 0) + value.detach().double() * len(y)
    means = (torch.stack(list(sums.values())) / len(labels)).tolist()  # the epoch's only wait for the device
    values = dict(zip(sums, means, strict=True))
    return values | {"lambda": weight} if run.al2 else values


def _evaluate(model: nn.Module, task: Task, run: Run, *, full: bool) -> dict[str, float]:
    """Accuracy in % and cross-entropy on (the first) test images and, where some are held out, on the validation images.

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


def _observe(
    model: nn.Module, task: Task, run: Run, epoch: int, arrays: dict[str, list[Tensor]], starts: dict[str, Tensor]
) -> dict[str, float]:
    """What the run asks for beside the curves, after `epoch` (0: before training): columns, and arrays that are added to.

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
        maps = measures.entropy_maps(model, task.measure.images if run.entropy else task.measure.images[: run.heat_maps])
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
            # sequences of one length: where a channel is dead, or depends on others, the last coefficients are missing
            missing = len(phi) - len(found.cca.coefficients)
            add(f"cca {start}", F.pad(found.cca.coefficients, (0, missing), value=math.nan))
            add(f"cca dropped {start}", torch.tensor([found.cca.dropped_x, found.cca.dropped_y]))
            columns |= {f"{name} {start}": getattr(found, name) for name in ("mean_cca", "svcca", "pwcca")}
            add(f"cca epochs {start}", torch.tensor(epoch))
    return columns


def _kept(model: nn.Module, task: Task, run: Run) -> dict[str, np.ndarray]:
    """What the run asks for of the trained network itself: arrays."""
    kept = {f"trunk {k}": v.cpu().numpy() for k, v in model.trunk.state_dict().items()} if run.keep_trunk else {}
    if run.predictions:
        kept["predictions"] = predict(model, task.train.images).argmax(1).cpu().numpy().astype(np.int16)
    return kept


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
        curves[spec] = measures.cumulative_ablation(model.head, features[id(images)], labels, mask=mask, generator=coins)
    return curves


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Outputs in eval mode for images [N, C, H, W], in batches that fit a cache."""
    model.eval()
    return torch.cat([model(batch) for batch in images.split(EVAL_BATCH)])


def _columns(run: Run, task: Task, model: nn.Module) -> list[str]:
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
    columns += ["sparsity_penalty"] * bool(run.sparsity) + ["decorrelation_penalty"] * bool(run.decorrelation)
    columns += ["validation_accuracy", "validation_cross_entropy"] if len(task.validation) else []
    if run.entropy:
        columns += [f"entropy {layer}" for layer in measures.hidden_layers(model)]
        columns += [f"correlation {layer}" for layer in _correlated(model)]
    columns += [f"{scalar} {start}" for start in run.cca for scalar in ("mean_cca", "svcca", "pwcca")]
    return columns + [_area_column(spec) for spec in run.ablations]


def _correlated(model: nn.Module) -> list[str]:
    """Hidden layers whose filters' correlations are measured: all of the ConvNets', but not AlexNet's 4,096 units."""
    return [
        name for name in measures.hidden_layers(model) if len(losses.find_layer(model, name).weight) <= measures.MOST_FILTERS
    ]


def _area_column(spec: str) -> str:
    """Table 2's metric has the published name; the other protocols say which they are."""
    return "ablation_auc" if spec == "element/train-true" else f"ablation_auc {spec}"


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """The same sums each time: one thread on a CPU (faster than two on these sizes, too), no TF32 and no choice on a GPU."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
        fast.keep_memory()
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _commit() -> str:
    """The code's version, read once, before the first training; "unknown" without git."""
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=paths.ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return git.stdout.strip() or "unknown"


def _environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and commit, for a run's record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "commit": _commit(),
    }
