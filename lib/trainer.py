"""Training, top to bottom: `fit` trains runs, `_train` one of them, `TrainStep` makes its steps.

The data lives on the device, nothing inside an epoch waits for the host, a killed run goes on where
it was. Order of batches, dropout and masks of an epoch come from generators seeded by (seed,
purpose, epoch), so that the state of a training is its weights, its optimiser and its epoch.

On a CPU one thread trains one network: results do not depend on how many cores there are. On a GPU
networks are trained side by side in one process, each on a stream of its own and as it would be
trained alone. A step is some hundred small operators, which a GPU ends sooner than Python has
launched the next. So the first steps are made as they are written, then one is recorded in a CUDA
graph, and from there on a step is a single launch: the same operators in the same order.
`CUDA_GRAPHS=0` in the environment turns recording off.
"""

import contextlib
import gc
import json
import math
import os
import platform
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import bundle, losses, machine, measures, models, paths, run_dir, schedules
from lib.bundle import CCA_IMAGES, Bundle
from lib.data import Split
from lib.run import CCA_STARTS, Run, generator

PRECISIONS = ("float32", "bfloat16", "tf32")  # the last on a GPU alone
CHECKPOINT_SECONDS = 30
# Graphs whose recording failed. PyTorch's allocator may go on asking them which memory is theirs.
_FAILED_GRAPHS: list[Any] = []
WARM_UP = 3  # steps made before one is recorded: libraries set themselves up, and the optimiser
EVAL_BATCHES = {"cpu": 500, "cuda": 5000}  # what fits a cache; what fills a GPU
SIMILARITIES = ("mean_cca", "svcca", "pwcca")
# what every run has, an epoch each
METRICS = ("epoch", "test_accuracy", "test_cross_entropy", "test_images")
METRICS += ("train_accuracy", "cross_entropy", "activation_l2")

Callback = Callable[[Run, nn.Module, int], None]
Training = Generator[None, None, pd.DataFrame]  # stops after each step; gives the run's metrics


class OutOfTime(RuntimeError):
    """A training was stopped at its deadline, between two epochs, and can go on from there."""


@torch.inference_mode(False)  # whatever holds where it is called
def fit(
    runs: Sequence[Run],
    folders: Sequence[Path] | None = None,
    *,
    device: str | torch.device | None = None,
    precision: str | None = None,
    callback: Callback | None = None,
    deadline: float | None = None,
    side_by_side: bool | None = None,
) -> pd.DataFrame:
    """Train the runs and give their metrics: a tidy frame, one row per run and epoch, with `id`.

    Args:
        runs: what to train.
        folders: one each, to checkpoint into, to resume from and to write the finished run to;
            None: keep nothing. A checkpoint of other labels, those of a teacher (`relabelled_by`)
            that was trained again since, is not gone on from.
        device: None: `$DEVICE`, else the GPU where there is one, else the CPU.
        precision: of the training steps' products: "float32", "bfloat16" or, on a GPU, "tf32";
            weights, optimiser and what is measured beside the training stay float32 (on a GPU its
            convolutions are TF32 in the latter two). With "bfloat16" so does the arithmetic of
            losses and penalties, on rounded activations; with "tf32" their products are TF32, too.
            None: `$PRECISION`, else float32. A checkpoint goes on in its own precision.
        callback: called with run, network and epoch before training (epoch 0) and after each epoch,
            for example to log to TensorBoard (`lib.monitor`). It must not change the network.
        deadline: a value of `time.monotonic()`: the epoch that it falls into is the last one.
            None: train to the end.
        side_by_side: whether the runs take their steps in turns, or one run is trained after
            another; each gives the same results. None: side by side on a GPU.

    Raises:
        ValueError: if a run does not fit its data, for a precision that is unknown or that the
            device has not, within torch.autocast, and for a device that is not there; raised before
            any of them is trained, but for the precision of a checkpoint: when its turn comes.
        data.DataError, LookupError: as for `bundle.prepare`, before any of them is trained.
        run_dir.RecordError: if a folder's checkpoint is damaged.
        OutOfTime: at the deadline, if epochs are left; with folders, the runs' checkpoints then
            hold what was trained.
        OSError: if a folder cannot be written.
    """
    if folders is not None and len(folders) != len(runs):
        raise ValueError(f"{len(runs)} runs and {len(folders)} folders; each run needs one")
    device = torch.device(checked_device(device) if device else default_device())
    precision = default_precision(precision)
    check_precision(precision, device)
    if torch.is_autocast_enabled(device.type):
        raise ValueError(
            "torch.autocast is on where a run is to be trained; leave it: PRECISION says in which "
            f"precision runs are trained ({', '.join(PRECISIONS)})"
        )
    bundles: dict[tuple, Bundle] = {}
    loaded: bundle.Loaded = {}
    for run in runs:
        key = bundle.data_key(run)
        if known := bundles.get(key):
            bundle.check(run, known.shape, len(known.train), len(known.test))
        else:
            bundles[key] = bundle.prepare(run, device, loaded)  # checks the run, too
    if side_by_side is None:
        side_by_side = device.type == "cuda"
    together = len(runs) if side_by_side else 1
    frames: list[pd.DataFrame] = []
    with reproducible(device, precision):
        env = _environment(device)  # once: a training may outlive the next commit
        for first in range(0, len(runs), together):
            group = runs[first : first + together]
            data = [bundles[bundle.data_key(run)] for run in group]
            places = folders[first : first + together] if folders else [None] * len(group)
            trainings = [
                _train(run, found, folder, precision, env, callback, deadline)
                for run, found, folder in zip(group, data, places, strict=True)
            ]
            steps = math.ceil(len(data[0].train) / group[0].batch_size)
            frames += take_turns(trainings, device, steps)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _train(
    run: Run,
    data: Bundle,
    folder: Path | None,
    precision: str,
    env: dict[str, Any],
    callback: Callback | None,
    deadline: float | None,
) -> Training:
    """Train one run; stops after each step, and gives its metrics at the end."""
    device = data.true_labels.device
    model = build_network(run, *data.shape).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(run, model)
    state = run_dir.load_checkpoint(folder, run, data.hashes) if folder else None
    begun = state or {"rows": [], "arrays": {}, "starts": {}, "seconds": 0.0}
    rows: list[dict[str, float]] = begun["rows"]  # one per epoch
    arrays: dict[str, list[Tensor]] = begun["arrays"]
    starts: dict[str, Tensor] = begun["starts"]
    if state:
        precision = state.get("precision", PRECISIONS[0])  # one training, one precision
        said = f"the checkpoint of {run.name} goes on as it was begun, or delete it: "
        check_precision(precision, device, said)
    if precision == "bfloat16":
        machine.warn_where_bfloat16_is_slow(device)
    # a penalty may look at the initial weights: it is attached before others are loaded
    step = TrainStep(model, optimizer, data, run, precision)
    if state:
        model.load_state_dict(state["model"])
        for group in state["optimizer"]["param_groups"]:
            # Adam's count of steps has to lie where this device wants it, not where it was begun
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"
        optimizer.load_state_dict(state["optimizer"])
    elif folder:
        run_dir.begin(folder, run)
    names = metric_names(run, data, model, step.metrics)
    weights = [0.0] * run.epochs
    if run.al2:
        weights = schedules.schedule(run.schedule, run.epochs, run.speed, run.rate).tolist()

    saved = time.monotonic()
    started = saved - begun["seconds"]
    diverged = None
    if not rows:
        with convolutions(device, precision):
            measure(model, data, run, 0, arrays, starts)
        if callback:
            callback(run, model, 0)
    for epoch in range(len(rows) + 1, run.epochs + 1):
        row = {"epoch": epoch}
        row |= yield from step.epoch(epoch, weights[epoch - 1])
        with convolutions(device, precision):
            row |= evaluate(model, data, run, full=epoch in run.table_epochs())
            if not all(map(math.isfinite, row.values())):
                diverged = epoch
                break
            row |= measure(model, data, run, epoch, arrays, starts)
        if undeclared := row.keys() - set(names):
            raise KeyError(f"nobody declared {', '.join(sorted(undeclared))}, see metric_names")
        rows.append(row)
        if callback:
            callback(run, model, epoch)
        now = time.monotonic()
        late = deadline is not None and now >= deadline and epoch < run.epochs
        if folder and epoch < run.epochs and (late or now - saved > CHECKPOINT_SECONDS):
            saved = now
            state = {
                "id": run.id,
                "measured": json.dumps(run.measured()),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rows": rows,
                "arrays": arrays,
                "starts": starts,
                "seconds": saved - started,
                "device": device_name(device),
                "precision": precision,
                **data.hashes,
            }
            run_dir.save_checkpoint(folder, state)
        if late:
            stopped = f"{run.name} was stopped after epoch {epoch} of {run.epochs}"
            raise OutOfTime(f"{stopped}; train it again to go on")
    step.close()

    metrics = pd.DataFrame(rows, columns=names)
    if folder:
        env = env | {"precision": precision} | data.hashes | {"num_classes": data.num_classes}
        env |= {"seconds": round(time.monotonic() - started, 1)}
        stacked = {name: torch.stack(values).numpy() for name, values in arrays.items()}
        if diverged is None:
            with convolutions(device, precision):
                stacked |= final_arrays(model, data, run)
        kept = None
        if run.keep_weights:
            kept = {name: value.cpu() for name, value in model.state_dict().items()}
        run_dir.finish(folder, run, metrics, stacked, env, diverged, kept)
    return metrics.assign(id=run.id)


def take_turns(trainings: Sequence[Generator], device: torch.device, turns: int) -> list[Any]:
    """Let each training make a turn after the other, until all have ended; gives what they give.

    On a GPU each has a stream of its own. They begin spread over so many turns, an epoch of the
    first of them, so that not all are evaluated, and wait for the host, at once. At a deadline
    those that have not begun still train one epoch, and keep a checkpoint like the others.
    """

    def stream() -> AbstractContextManager:
        if device.type != "cuda":
            return nullcontext()
        own = torch.cuda.Stream(device)
        own.wait_stream(torch.cuda.current_stream(device))  # images and labels are there then
        return torch.cuda.stream(own)

    places = [stream() for _ in trainings]
    frames = {}
    going = dict(enumerate(trainings))
    late = None
    round_ = 0
    while going:
        begun = [k for k in going if k * turns <= round_ * len(trainings)]
        round_ += 1
        for k in begun:
            try:
                with places[k]:
                    next(going[k])
            except StopIteration as end:
                frames[k] = end.value
                del going[k]
            except OutOfTime as problem:  # the others end their epoch, too, and keep a checkpoint
                late = problem
                del going[k]
    if late:
        raise late
    return [frames[k] for k in range(len(trainings))]


# ---- one network's steps


def build_network(run: Run, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """The network that `run` names, with its initial weights; see `models.build`.

    Networks of one seed have the same weights where they share them.
    """
    uniform = run.bn_gamma == "uniform"
    return models.build(
        run.network,
        in_channels,
        image_size,
        num_classes,
        generator=generator(run.seed, "weights"),
        gamma_generator=generator(run.seed, "bn_gamma") if uniform else None,
        **run.network_options(),
    )


def make_optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """The run's optimiser, for a network that lies on its device."""
    options = {"lr": run.learning_rate, "weight_decay": run.weight_decay}
    if run.optimizer == "adam":
        # its count of steps has to lie where a recorded step can find it
        on_gpu = next(model.parameters()).is_cuda
        return torch.optim.Adam(model.parameters(), **options, capturable=on_gpu)
    return torch.optim.SGD(model.parameters(), momentum=run.momentum, **options)


class TrainStep:
    """Trains a network on its data, an epoch at a call of `epoch`, with the penalties of its run.

    Args:
        model: on the data's device; the run's penalties are attached to it until `close`.
        optimizer: of its parameters.
        data: images and labels.
        run: what is trained.
        precision: of the products, one of `PRECISIONS`, see `fit`; weights are float32 in any.
        use_cuda_graph: whether steps are replayed from a CUDA graph; None: on a GPU, unless
            $CUDA_GRAPHS is 0.

    Attributes:
        metrics: names of the run's penalties in the stored metrics.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Bundle,
        run: Run,
        precision: str = PRECISIONS[0],
        use_cuda_graph: bool | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.run = run
        self.precision = precision
        device = data.train.images.device
        if use_cuda_graph is None:
            use_cuda_graph = records_steps(device)
        self.use_cuda_graph = use_cuda_graph
        self.penalties = bundle.attach(run, model)
        # L_r is measured in every run, so that networks with and without AL2 can be compared
        penalised = [penalty for term, penalty in self.penalties if term.name == "activation_l2"]
        features = models.features_layer(run.network)
        self.activation_l2 = penalised[0] if penalised else losses.ActivationL2(model, features)
        self.metrics = [penalty.metric for _, penalty in self.penalties]
        measured = ["cross_entropy", "activation_l2", "train_accuracy", *self.metrics]
        self.names = list(dict.fromkeys(measured))  # L_r may be among the penalties
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        # λ_e: changed in place, since a recorded step reads it from there
        self.weight = torch.zeros((), device=device)
        self._draw_from(torch.Generator(device))
        self.num_steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.static_batch: Tensor | None = None  # numbers of the images of a recorded step [B]

    def epoch(self, epoch: int, weight: float) -> Iterator[None]:
        """A pass over the training images; stops after each step, so that others take theirs.

        Args:
            epoch: 1 for the first; order of images and dropout masks depend on it.
            weight: λ of this epoch.

        Returns:
            (of the generator) means over the epoch's images, in training mode, by name; and
            `lambda` with AL2.
        """
        self.model.train()
        labels = self.data.train.labels
        source = generator(self.run.seed, "order", epoch)
        order = torch.randperm(len(labels), generator=source, device="cpu")
        seed = generator(self.run.seed, "dropout", epoch).initial_seed()
        self.dropout_generator.manual_seed(seed)
        self.weight.fill_(weight)
        self.sums.zero_()
        for batch in order.to(labels.device).split(self.run.batch_size):
            self._advance(batch)
            yield
        means = (self.sums / len(labels)).tolist()  # the epoch's only wait for the device
        values = dict(zip(self.names, means, strict=True))
        return values | {"lambda": weight} if self.run.al2 else values

    def close(self) -> None:
        """Detach the penalties from the network."""
        self.activation_l2.remove()
        for _, penalty in self.penalties:
            penalty.remove()

    def _draw_from(self, source: torch.Generator) -> None:
        """Take dropout's coins from here: one for all layers, or they would drop alike."""
        self.dropout_generator = source
        for module in self.model.modules():
            if isinstance(module, models.Dropout):
                module.generator = source

    def _advance(self, batch: Tensor) -> None:
        whole = len(batch) == self.run.batch_size  # an epoch's short last batch is not recorded
        warm = self.num_steps >= WARM_UP
        if self.use_cuda_graph and warm and whole and self.graph is None:
            self._try_to_record()
        if self.graph is None or not whole:
            self._step(batch)
            self.num_steps += 1
        else:
            self.static_batch.copy_(batch)
            self.graph.replay()

    def _try_to_record(self) -> None:
        """Record a step, or warn that it cannot be: then every step is made as it is written.

        No garbage is collected meanwhile: what that frees on the device would end the recording.
        """
        coins = self.dropout_generator.get_state()
        collects = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            self._record()
        except Exception as error:  # what is not the recording's fault comes again in the step
            self.use_cuda_graph = False
            _FAILED_GRAPHS.append(self.graph)
            self.graph = None
            # The recording may have left passes that nobody read, and a generator that still takes
            # itself for recorded.
            for penalty in (self.activation_l2, *(penalty for _, penalty in self.penalties)):
                with contextlib.suppress(Exception), torch.no_grad():
                    penalty.penalty()
            source = torch.Generator(self.sums.device)
            source.set_state(coins)
            self._draw_from(source)
            warnings.warn(
                f"{self.run.name}: its step cannot be recorded ({error.__context__ or error}); it "
                "is made operator by operator, with the same results, more slowly",
                RuntimeWarning,
                stacklevel=2,
            )
        finally:
            if collects:
                gc.enable()

    def _record(self) -> None:
        """Record a step in a CUDA graph; the step itself is made when the graph is replayed.

        On the current stream: graphs that share one share its work space, too.
        """
        device = self.sums.device
        self.static_batch = torch.zeros(self.run.batch_size, dtype=torch.int64, device=device)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.dropout_generator)
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            self._step(self.static_batch)

    @torch.enable_grad()
    def _step(self, batch: Tensor) -> None:
        """One step on the images with these numbers, int64 [B]; what stays is changed in place."""
        with products(batch.device, self.precision):
            loss, measured = self._forward(batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()
        self.sums += measured.double() * len(batch)

    def _forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch, int64 [B], and what is measured in it by `names` [M], detached."""
        x = self.data.train.images[batch]  # [B, C, H, W]
        y = self.data.train.labels[batch]  # [B]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.model(x)  # [B, K]
        logits = logits.float()  # losses and gradients of weights are float32 in any precision
        cross_entropy = F.cross_entropy(logits, y)
        values = {
            "cross_entropy": cross_entropy,
            "activation_l2": self.activation_l2.penalty(),
            "train_accuracy": measures.accuracy(logits, y),
        }
        loss = cross_entropy
        for term, penalty in self.penalties:
            value = penalty.penalty()
            weight = self.weight if term.weight is None else term.weight  # None: λ_e
            loss = loss + weight * value
            values[penalty.metric] = value
        return loss, torch.stack([values[name].detach() for name in self.names])


def train_epoch(step: TrainStep, epoch: int, weight: float) -> dict[str, float]:
    """All steps of an epoch, one after another: what `TrainStep.epoch` gives at its end."""
    turns = step.epoch(epoch, weight)
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value


# ---- what is measured beside the training


def evaluate(model: nn.Module, data: Bundle, run: Run, *, full: bool) -> dict[str, float]:
    """Accuracy in % and cross-entropy on (the first) test and, if any, validation images.

    The accuracy is NaN where a logit is not finite: the largest of such logits means nothing.
    """
    count = len(data.test) if full or run.test_images is None else run.test_images
    values: dict[str, float] = {"test_images": count}
    test = Split(data.test.images[:count], data.test.labels[:count])
    for name, split in (("test", test), ("validation", data.validation)):
        if len(split):
            logits = predict(model, split.images)
            accuracy = measures.accuracy(logits, split.labels).item()
            values[f"{name}_accuracy"] = accuracy if torch.isfinite(logits).all() else math.nan
            values[f"{name}_cross_entropy"] = F.cross_entropy(logits, split.labels).item()
    return values


def measure(
    model: nn.Module,
    data: Bundle,
    run: Run,
    epoch: int,
    arrays: dict[str, list[Tensor]],
    starts: dict[str, Tensor],
) -> dict[str, float]:
    """What the run asks for beside the curves, after `epoch` (0: before training).

    It gives columns, and adds to `arrays`. `starts` holds φ at the starts that canonical
    correlations are taken against.
    """
    columns: dict[str, float] = {}

    def add(name: str, value: Tensor | int | list) -> None:
        arrays.setdefault(name, []).append(torch.as_tensor(value, device="cpu"))

    if epoch in run.table_epochs():
        for spec, curve in _ablate(model, data, run, epoch).items():
            add(f"ablation {spec}", curve)
            columns[_area_column(spec)] = measures.ablation_area(curve)
        add("ablation epochs", epoch)

    mapped = run.heat_maps > 0 and epoch in run.heat_map_epochs()
    maps: dict[str, Tensor] = {}
    if run.entropy or mapped:
        images = data.measure.images
        maps = measures.entropy_maps(model, images if run.entropy else images[: run.heat_maps])
    if mapped:
        for layer, entropy in maps.items():
            add(f"heat maps {layer}", entropy[: run.heat_maps].half())
        add("heat map epochs", epoch)
    if run.entropy:
        means = {f"entropy {layer}": entropy.mean().item() for layer, entropy in maps.items()}
        if epoch == 0:
            add("entropy before training", list(means.values()))
        columns |= means
        for layer in _correlated(model):
            rms, histogram = measures.correlation_summary(losses.find_layer(model, layer).weight)
            columns[f"correlation {layer}"] = rms.item()
            add(f"correlations {layer}", histogram.int())

    if run.cca and (epoch <= 1 or epoch in run.cca_epochs()):
        images = data.train.images[:CCA_IMAGES]
        phi = measures.channel_points(predict(model.trunk, images)).cpu()
        if epoch < len(CCA_STARTS) and CCA_STARTS[epoch] in run.cca:
            starts[CCA_STARTS[epoch]] = phi
        for start in starts if epoch in run.cca_epochs() else ():
            found = measures.similarities(starts[start], phi)
            # where a channel is dead, or depends on others, the last coefficients are missing
            missing = len(phi) - len(found.cca.coefficients)
            add(f"cca {start}", F.pad(found.cca.coefficients, (0, missing), value=math.nan))
            add(f"cca dropped {start}", [found.cca.dropped_x, found.cca.dropped_y])
            add(f"cca epochs {start}", epoch)
            columns |= {f"{name} {start}": getattr(found, name) for name in SIMILARITIES}
    return columns


def final_arrays(model: nn.Module, data: Bundle, run: Run) -> dict[str, np.ndarray]:
    """Of the trained network, if asked for: `trunk <parameter>`, `predictions` int16 [N_train]."""
    kept = model.trunk.state_dict() if run.keep_trunk else {}
    found = {f"trunk {name}": value.cpu().numpy() for name, value in kept.items()}
    if run.predictions:
        classes = predict(model, data.train.images).argmax(1)
        found["predictions"] = classes.cpu().numpy().astype(np.int16)
    return found


def _ablate(model: nn.Module, data: Bundle, run: Run, epoch: int) -> dict[str, Tensor]:
    """An ablation curve [11] for each "mask/images" that the run asks for."""
    sets = {
        "train-true": (data.train.images, data.true_labels),
        "train-corrupt": (data.train.images, data.train.labels),
        "test": (data.test.images, data.test.labels),
    }
    curves = {}
    features: dict[int, Tensor] = {}  # φ by the images it is of
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
    """Outputs for images [N, C, H, W] in eval mode, in which the network stays, batch by batch.

    Penalties that are attached to it take no notice.
    """
    model.eval()
    batches = images.split(EVAL_BATCHES.get(images.device.type, 500))
    return torch.cat([model(batch) for batch in batches])


def metric_names(
    run: Run, data: Bundle, model: nn.Module, penalty_metrics: Sequence[str]
) -> list[str]:
    """Columns of the run's metrics, in their order; those of penalties by `TrainStep.metrics`."""
    names = [*METRICS, "lambda"] if run.al2 else [*METRICS]
    names += [name for name in penalty_metrics if name not in names]
    if len(data.validation):
        names += ["validation_accuracy", "validation_cross_entropy"]
    if run.entropy:
        names += [f"entropy {layer}" for layer in measures.hidden_layers(model)]
        names += [f"correlation {layer}" for layer in _correlated(model)]
    for start in run.cca:
        names += [f"{name} {start}" for name in SIMILARITIES]
    return names + [_area_column(spec) for spec in run.ablations]


def _correlated(model: nn.Module) -> list[str]:
    """Hidden layers whose filters' correlations are measured: not AlexNet's 4,096 units."""
    return [
        name
        for name in measures.hidden_layers(model)
        if len(losses.find_layer(model, name).weight) <= measures.MOST_FILTERS
    ]


def _area_column(spec: str) -> str:
    """Table 2's metric has the published name; the other protocols say which they are."""
    return "ablation_auc" if spec == "element/train-true" else f"ablation_auc {spec}"


# ---- devices, precision, and what a run's record says of them


def default_device() -> str:
    """`$DEVICE` if set (a ValueError if it is not there), else "cuda" or, without a GPU, "cpu"."""
    if asked := os.environ.get("DEVICE"):
        return checked_device(asked)
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(asked: str | torch.device) -> str:
    """That device's name. A ValueError if it is none, or a GPU where PyTorch finds none."""
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"the device is {asked!r}; allowed are cpu and cuda (DEVICE sets it)")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"the device is {asked}, but PyTorch finds no GPU here; set DEVICE=cpu, or leave it "
            "unset"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"the device is {asked}, but PyTorch finds {torch.cuda.device_count()} GPUs here, "
            "numbered from 0 (DEVICE sets it)"
        )
    return str(asked)


def records_steps(device: torch.device) -> bool:
    """Whether steps are recorded on a device: on a GPU, unless $CUDA_GRAPHS is 0."""
    return device.type == "cuda" and os.environ.get("CUDA_GRAPHS") != "0"


def default_precision(asked: str | None = None) -> str:
    """That one, else `$PRECISION`, else "float32"; a ValueError for one not in PRECISIONS."""
    precision = asked or os.environ.get("PRECISION") or PRECISIONS[0]
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")
    return precision


def check_precision(precision: str, device: torch.device, what: str = "") -> None:
    """Refuse, with a ValueError that begins with `what`, a precision that a device has not."""
    if precision == "tf32" and not machine.has_tf32(device):
        raise ValueError(
            f"{what}precision is 'tf32', which {device_name(device)} does not have: it takes an "
            "NVIDIA GPU of compute capability 8.0 (Ampere) or newer; allowed here: "
            f"{', '.join(name for name in PRECISIONS if name != precision)}"
        )


@contextmanager
def convolutions(device: torch.device, precision: str) -> Iterator[None]:
    """How a GPU's convolutions multiply where a network of that precision is evaluated.

    As TF32 unless it is trained in float32. On a CPU nothing changes.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    if device.type != "cpu":
        cudnn.allow_tf32 = precision != PRECISIONS[0]
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


@contextmanager
def products(device: torch.device, precision: str) -> Iterator[None]:
    """How a GPU multiplies float32 numbers in the steps of one training: as TF32 where asked to.

    Networks of several precisions may be trained in one process. A recorded step keeps what held
    while it was recorded. On a CPU nothing changes.
    """
    if device.type == "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with convolutions(device, precision):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def device_name(device: str | torch.device | None = None) -> str:
    """A device (None: the default one) in a run's record: the GPU's model, the processor's kind."""
    device = torch.device(device or default_device())
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


class _ProcessSettings:
    """PyTorch's settings that hold for the whole process, as long as any training needs them.

    They make the same sums each time: one thread on a CPU (faster than two on these sizes, too), no
    choice of methods on a GPU. The last of several trainings in threads puts back what was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trainings = 0
        self._before: dict[str, Any] = {}

    @contextmanager
    def hold(self, device: torch.device, precision: str = PRECISIONS[0]) -> Iterator[None]:
        """Hold the settings while a training on this device lasts.

        Where the training's products are not float32, a GPU evaluates with TF32 convolutions: three
        bits more than bfloat16, at its speed.
        """
        cudnn = torch.backends.cudnn
        with self._lock:
            if not self._trainings:
                self._before = {
                    "threads": torch.get_num_threads(),
                    "products": torch.get_float32_matmul_precision(),
                    "dtype": torch.get_default_dtype(),
                    "cudnn": (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
                }
            self._trainings += 1
            torch.set_float32_matmul_precision("highest")
            torch.set_default_dtype(torch.float32)
            if device.type == "cpu":
                torch.set_num_threads(1)
                machine.keep_memory()
            else:
                cudnn.benchmark = False
                cudnn.deterministic = True
                cudnn.allow_tf32 = precision != PRECISIONS[0]
        try:
            yield
        finally:
            with self._lock:
                self._trainings -= 1
                if not self._trainings:
                    torch.set_num_threads(self._before["threads"])
                    torch.set_float32_matmul_precision(self._before["products"])
                    torch.set_default_dtype(self._before["dtype"])
                    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = self._before["cudnn"]


reproducible = _ProcessSettings().hold


def commit() -> str:
    """The code's version: git's, else `$COMMIT`, else the project's file COMMIT, else "unknown".

    The latter are for machines that the code is only copied to.
    """
    # a folder of git's that does not hold this file is another project's
    if (paths.ROOT / ".git").exists() and Path(__file__).parents[1].samefile(paths.ROOT):
        with contextlib.suppress(OSError):
            command = ["git", "describe", "--always", "--dirty"]
            git = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
            if git.stdout.strip():
                return git.stdout.strip()
    if said := os.environ.get("COMMIT", "").strip():
        return said
    with contextlib.suppress(OSError):
        return (paths.ROOT / "COMMIT").read_text(encoding="utf-8").strip() or "unknown"
    return "unknown"


def _environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, processor and commit, for a run's record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "processor": machine.processor(),
        "instruction_sets": machine.instruction_sets(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }
