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
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import data, losses, measures, models, paths, record
from lib.run import Run, generator

CHECKPOINT_SECONDS = 30
EVAL_BATCH = 500


@dataclass(frozen=True)
class Task:
    """A run's data on its device: images float [N, C, H, W], labels int64 [N]."""

    train: data.Split  # labels corrupted
    true_labels: Tensor
    validation: data.Split  # labels corrupted; may be empty
    test: data.Split
    num_classes: int
    hashes: dict[str, str]


def prepare(run: Run, device: str | torch.device = "cpu") -> Task:
    """The data that a run trains on, split and corrupted; every check of the run against the data happens here.

    Raises:
        ValueError: if the run does not fit the data (fewer images than asked for, a batch larger than the data).
        data.DataError: if the data set is not at hand.
    """
    dataset = _load(run.dataset, run.normalize, run.image_size, run.classes, paths.data_dir())
    _, channels, height, width = dataset.train.images.shape
    if height != width:
        raise ValueError(f"{run.dataset} has images of {height}×{width} pixels; the networks take square ones")
    # archives are sorted by class: in this order the first so many test images hold every class in proportion
    test = dataset.test.take(data.stratified_permutation(dataset.test.labels))
    train, validation, _ = data.subset(dataset.train, run.n_train, run.n_validation)
    _check_sizes(run, len(train), len(dataset.test))
    models.build(run, channels, height, dataset.num_classes)

    def corrupted(split: data.Split, purpose: str) -> Tensor:
        source = generator(run.seed, purpose)
        return data.corrupt_labels(split.labels, run.corruption, dataset.num_classes, generator=source, law=run.corruption_law)[
            0
        ]

    labels = corrupted(train, "corruption")
    hashes = {"data": dataset.sha256, "labels": sha256(labels.numpy().tobytes()).hexdigest()}
    return Task(
        train=data.Split(_channels_last(train.images.to(device)), labels.to(device)),
        true_labels=train.labels.to(device),
        validation=data.Split(
            _channels_last(validation.images.to(device)), corrupted(validation, "validation corruption").to(device)
        ),
        test=data.Split(_channels_last(test.images.to(device)), test.labels.to(device)),
        num_classes=dataset.num_classes,
        hashes=hashes,
    )


@lru_cache(maxsize=1)
def _load(name: str, normalize: str, size: int | None, classes: int | None, root: Path) -> data.DataSet:
    options = {key: value for key, value in (("size", size), ("classes", classes)) if value is not None}
    return data.load(name, root=root, normalize=normalize, **options)


def fit(
    runs: Sequence[Run],
    folders: Sequence[Path] | None = None,
    *,
    device: str | torch.device | None = None,
    on_epoch: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Train the runs and give their metrics: one tidy frame, a row a run and epoch, with the run's `id`.

    Args:
        runs: what to train.
        folders: one each, to checkpoint into, to resume from and to write the finished run to; None: keep nothing.
        device: None: `$DEVICE`, else the GPU where there is one, else the CPU.
        on_epoch: called after each epoch of each run.

    Raises:
        ValueError: if a run does not fit its data; raised before any of them is trained.
    """
    if folders is not None and len(folders) != len(runs):
        raise ValueError(f"{len(runs)} runs and {len(folders)} folders; each run needs one")
    device = torch.device(device or default_device())
    _commit()
    tasks: dict[tuple, Task] = {}
    for run in runs:
        key = _data_key(run)
        if key not in tasks:
            tasks[key] = prepare(run, device)
        _check_sizes(run, len(tasks[key].train), len(tasks[key].test))
    frames = []
    for k, run in enumerate(runs):
        with _reproducible(device):
            frames.append(_fit_one(run, tasks[_data_key(run)], folders[k] if folders else None, device, on_epoch))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def default_device() -> str:
    """`$DEVICE` if set, else "cuda" where there is a GPU, else "cpu"."""
    return os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def _fit_one(run: Run, task: Task, folder: Path | None, device: torch.device, on_epoch: Callable[[], None]) -> pd.DataFrame:
    _, channels, side, _ = task.train.images.shape
    model = models.build(run, channels, side, task.num_classes).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=run.learning_rate, momentum=run.momentum, weight_decay=run.weight_decay)
    penalty = losses.ActivationL2(model, "trunk")
    weights = losses.schedule(run.schedule, run.epochs, run.speed, run.rate) if run.al2 else [0.0] * run.epochs
    points = set(run.point_epochs())
    rows: list[dict[str, float]] = []
    curves: dict[str, list[Tensor]] = {spec: [] for spec in run.ablations}
    curve_epochs: list[int] = []
    seconds, diverged = 0.0, None

    state = record.load_checkpoint(folder, run) if folder else None
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rows, curves, curve_epochs, seconds = state["rows"], state["curves"], state["curve_epochs"], state["seconds"]
        for _ in rows:
            on_epoch()
    elif folder:
        record.begin(folder, run)

    started = saved = time.monotonic()
    for epoch in range(len(rows) + 1, run.epochs + 1):
        row = {"epoch": epoch} | _train_epoch(model, optimizer, penalty, task, run, epoch, float(weights[epoch - 1]))
        row |= _evaluate(model, task, run, full=epoch in points)
        if not all(map(math.isfinite, row.values())):
            diverged = epoch
            break
        if epoch in points:
            curve_epochs.append(epoch)
            for spec, curve in _ablate(model, task, run, epoch).items():
                curves[spec].append(curve)
                row[_area_column(spec)] = measures.ablation_area(curve)
        rows.append(row)
        on_epoch()
        if folder and epoch < run.epochs and time.monotonic() - saved > CHECKPOINT_SECONDS:
            saved = time.monotonic()
            state = {"id": run.id, "measured": json.dumps(run.measured()), "model": model.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "rows": rows, "curves": curves, "curve_epochs": curve_epochs}
            record.save_checkpoint(folder, state | {"seconds": seconds + saved - started})
    penalty.remove()

    metrics = pd.DataFrame(rows, columns=_columns(run, task))
    if folder:
        arrays = {f"ablation {spec}": torch.stack(c).numpy() for spec, c in curves.items() if c}
        arrays["ablation epochs"] = torch.tensor(curve_epochs).numpy()
        env = (
            _environment(device)
            | task.hashes
            | {"num_classes": task.num_classes}
            | {"seconds": round(seconds + time.monotonic() - started, 1)}
        )
        kept = {k: v.cpu() for k, v in model.state_dict().items()} if run.keep_weights else None
        record.finish(folder, run, metrics, arrays, env, diverged, kept)
    return metrics.assign(id=run.id)


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    penalty: losses.ActivationL2,
    task: Task,
    run: Run,
    epoch: int,
    weight: float,
) -> dict[str, float]:
    """One pass over the training images; means over the epoch's images, in training mode."""
    model.train()
    images, labels = task.train.images, task.train.labels
    order = torch.randperm(len(labels), generator=generator(run.seed, "order", epoch)).to(images.device)
    for module in model.modules():
        if isinstance(module, models.Dropout):
            module.generator = generator(run.seed, "dropout", epoch, device=images.device)
    sums = torch.zeros(3, dtype=torch.float64, device=images.device)
    for batch in order.split(run.batch_size):
        x, y = images[batch], labels[batch]  # [B, C, H, W], [B]
        logits = model(x)  # [B, K]
        cross_entropy, l2 = F.cross_entropy(logits, y), penalty.penalty()
        optimizer.zero_grad(set_to_none=True)
        (cross_entropy + weight * l2 if weight else cross_entropy).backward()
        optimizer.step()
        with torch.no_grad():
            right = (logits.argmax(1) == y).sum()
            sums += torch.stack([cross_entropy.detach() * len(y), l2.detach() * len(y), right]).double()
    cross_entropy, l2, right = (sums / len(labels)).tolist()  # the epoch's only wait for the device
    values = {"cross_entropy": cross_entropy, "activation_l2": l2, "train_accuracy": 100 * right}
    return values | {"lambda": weight} if run.al2 else values


def _evaluate(model: nn.Module, task: Task, run: Run, *, full: bool) -> dict[str, float]:
    """Accuracy in % on (the first) test images and, where some are held out, on the validation images and their labels.

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
            if name == "validation":
                values["validation_cross_entropy"] = F.cross_entropy(logits, split.labels).item()
    return values


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
        with torch.no_grad():
            curve = measures.cumulative_ablation(model.head, features[id(images)], labels, mask=mask, generator=coins)
        curves[spec] = curve.cpu()
    return curves


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Outputs in eval mode for images [N, C, H, W], in batches that fit a cache."""
    model.eval()
    return torch.cat([model(batch) for batch in images.split(EVAL_BATCH)])


def _columns(run: Run, task: Task) -> list[str]:
    columns = ["epoch", "test_accuracy", "test_images", "train_accuracy", "cross_entropy", "activation_l2"]
    columns += ["lambda"] if run.al2 else []
    columns += ["validation_accuracy", "validation_cross_entropy"] if len(task.validation) else []
    return columns + [_area_column(spec) for spec in run.ablations]


def _area_column(spec: str) -> str:
    """Table 2's metric has the published name; the other protocols say which they are."""
    return "ablation_auc" if spec == "element/train-true" else f"ablation_auc {spec}"


def _check_sizes(run: Run, n_train: int, n_test: int) -> None:
    if run.batch_size > n_train:
        raise ValueError(f"batch_size is {run.batch_size}, larger than the {n_train} training images")
    if run.test_images is not None and run.test_images > n_test:
        raise ValueError(f"test_images is {run.test_images}, but {run.dataset} has {n_test} test images")


def _data_key(run: Run) -> tuple:
    """Runs with the same key train on the same images and labels."""
    names = "dataset image_size classes normalize n_train n_validation corruption corruption_law seed".split()
    return tuple(getattr(run, name) for name in names)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """The same sums each time: one thread on a CPU (faster than two on these sizes, too), no TF32 and no choice on a GPU."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
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
    """Versions, device, precision and commit, for a run's record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "precision": "float32",
        "commit": _commit(),
    }
