"""Training: the data lives on the device, nothing inside an epoch waits for the host, a killed run
goes on where it was.

Order of batches, dropout and masks of an epoch come from generators seeded by (seed, purpose,
epoch), so that the state of a training is its weights, its optimiser and its epoch. On a CPU one
    thread trains one network: results do not depend on
how many cores there are, and the run store gives each core a network of its own. On a GPU networks
are trained side by side in one process, each on a stream of its own (`lib.steps`), and each as it
would be trained alone.
"""

import contextlib
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lib import machine, models, observe, paths, run_dir, schedules
from lib.run import Run
from lib.steps import PRECISIONS, Steps, optimizer_of
from lib.task import Task, check, data_key, prepare
from lib.task import penalties as attach

CHECKPOINT_SECONDS = 30
Watch = Callable[[Run, nn.Module, int], None]
Training = Generator[None, None, pd.DataFrame]  # stops after each step; gives the run's metrics


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
    side_by_side: bool | None = None,
) -> pd.DataFrame:
    """Train the runs and give their metrics: one tidy frame, a row a run and epoch, with the run's
    `id`.

    Args:
        runs: what to train.
        folders: one each, to checkpoint into, to resume from and to write the finished run to;
            None: keep nothing. A checkpoint of other labels, those of a teacher (`relabelled_by`)
                that was trained again since, is not gone on from.
        device: None: `$DEVICE`, else the GPU where there is one, else the CPU.
        precision: of the training steps' products: "float32" or "bfloat16"; weights, optimiser and
            all that is measured beside the training stay float32 (on a GPU its convolutions are
            TF32 then), and so does the arithmetic of losses and penalties, on activations that are
                rounded then. None: `$PRECISION`, else float32. A checkpoint goes on in
            the precision it was begun in.
        on_epoch: called after each epoch of each run.
        watch: called with run, network and epoch before training (epoch 0) and after each epoch,
            for example to log to TensorBoard (`lib.monitor`). It must not change the network.
        deadline: a value of `time.monotonic()`: the epoch that it falls into is the last one, None:
            train to the end.
        side_by_side: whether the runs take their steps in turns, all at once, or one run is trained
            after another; each gives the same results. None: side by side on a GPU.

    Raises:
        ValueError: if a run does not fit its data, for an unknown precision, and for a device that
            is not there; raised before any of them is trained.
        data.DataError, LookupError: as for `lib.task.prepare`, before any of them is trained.
        run_dir.RecordError: if a folder's checkpoint is damaged.
        OutOfTime: at the deadline, if epochs are left; with folders, the runs' checkpoints then
            hold what was trained.
        OSError: if a folder cannot be written.
    """
    if folders is not None and len(folders) != len(runs):
        raise ValueError(f"{len(runs)} runs and {len(folders)} folders; each run needs one")
    device = torch.device(checked_device(device) if device else default_device())
    precision = default_precision(precision)
    commit()
    tasks: dict[tuple, Task] = {}
    for run in runs:
        key = data_key(run)
        if key not in tasks:
            tasks[key] = prepare(run, device)
        check(run, tasks[key].shape, len(tasks[key].train), len(tasks[key].test))
    together = len(runs) if (device.type == "cuda" if side_by_side is None else side_by_side) else 1
    frames: list[pd.DataFrame] = []
    with _reproducible(device, precision):
        trainings = [
            _training(
                run, tasks[data_key(run)], folder, device, precision, on_epoch, watch, deadline
            )
            for run, folder in zip(runs, folders or [None] * len(runs), strict=True)
        ]
        while trainings:
            group, trainings = trainings[:together], trainings[together:]
            frames += _take_turns(
                group, device, _turns_per_epoch(runs[0], tasks[data_key(runs[0])])
            )
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _turns_per_epoch(run: Run, task: Task) -> int:
    return -(-len(task.train) // run.batch_size)


def _take_turns(
    trainings: Sequence[Training], device: torch.device, turns: int
) -> list[pd.DataFrame]:
    """Let each training make a turn after the other, on a GPU each on a stream of its own, until
    all have ended.

    They begin spread over so many turns, an epoch of the first of them, so that not all are
    evaluated, and wait for the host, at once. At a deadline those that have not begun still train
    one epoch, and keep a checkpoint like the others.
    """

    def stream() -> AbstractContextManager:
        if device.type != "cuda":
            return nullcontext()
        own = torch.cuda.Stream(device)
        own.wait_stream(
            torch.cuda.current_stream(device)
        )  # what was put on the device before is there
        return torch.cuda.stream(own)

    places, frames = [stream() for _ in trainings], {}
    going, late, round_ = dict(enumerate(trainings)), None, 0
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


def default_device() -> str:
    """`$DEVICE` if set, else "cuda" where there is a GPU, else "cpu"; a ValueError if `$DEVICE` is
    not there.
    """
    if asked := os.environ.get("DEVICE"):
        return checked_device(asked)
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(asked: str | torch.device) -> str:
    """That device's name. A ValueError if it is none, or a GPU where PyTorch finds none."""
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ValueError(
            f"the device is {asked!r}; allowed are cpu and cuda (DEVICE sets it)"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"the device is {asked}, but PyTorch finds no GPU here; set DEVICE=cpu, or leave it "
            "unset"
        )
    return str(asked)


def default_precision(asked: str | None = None) -> str:
    """The one asked for, else `$PRECISION`, else "float32"; a ValueError for one that is not in
    PRECISIONS.
    """
    precision = asked or os.environ.get("PRECISION") or PRECISIONS[0]
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")
    return precision


def device_name(device: str | torch.device | None = None) -> str:
    """The name of a device (None: the default one) in a run's record: the GPU's model, or the
    processor's kind.
    """
    device = torch.device(device or default_device())
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _training(
    run: Run,
    task: Task,
    folder: Path | None,
    device: torch.device,
    precision: str,
    on_epoch: Callable[[], None],
    watch: Watch | None,
    deadline: float | None,
) -> Training:
    """Train one run; stops after each step, and gives its metrics at the end."""
    model = models.build(run, *task.shape).to(device, memory_format=torch.channels_last)
    optimizer = optimizer_of(run, model)
    penalties = attach(run, model)
    weights = (
        schedules.schedule(run.schedule, run.epochs, run.speed, run.rate)
        if run.al2
        else [0.0] * run.epochs
    )
    rows: list[dict[str, float]] = []
    arrays: dict[str, list[Tensor]] = {}
    starts: dict[str, Tensor] = {}
    seconds, diverged = 0.0, None

    state = run_dir.load_checkpoint(folder, run, task.hashes["labels"]) if folder else None
    if state:
        model.load_state_dict(state["model"])
        for group in state["optimizer"]["param_groups"]:
            # Adam's count of steps has to lie where this device wants it, not where it was begun
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"
        optimizer.load_state_dict(state["optimizer"])
        rows, arrays, starts, seconds = (
            state["rows"],
            state["arrays"],
            state["starts"],
            state["seconds"],
        )
        precision = state.get("precision", PRECISIONS[0])  # one training, one precision
        for _ in rows:
            on_epoch()
    elif folder:
        run_dir.begin(folder, run)
    if precision == "bfloat16":
        machine.warn_where_bfloat16_is_slow(device)
    steps = Steps(model, optimizer, penalties, task, run, precision)

    started = saved = time.monotonic()
    if not rows:
        observe.observe(model, task, run, 0, arrays, starts)
        if watch:
            watch(run, model, 0)
    for epoch in range(len(rows) + 1, run.epochs + 1):
        weight = float(weights[epoch - 1])
        row = {"epoch": epoch} | (yield from steps.epoch(epoch, weight))
        row |= observe.evaluate(model, task, run, full=epoch in run.point_epochs())
        if not all(map(math.isfinite, row.values())):
            diverged = epoch
            break
        rows.append(row | observe.observe(model, task, run, epoch, arrays, starts))
        on_epoch()
        if watch:
            watch(run, model, epoch)
        now = time.monotonic()
        late = deadline is not None and now >= deadline and epoch < run.epochs
        if folder and epoch < run.epochs and (late or now - saved > CHECKPOINT_SECONDS):
            saved = now
            state = {
                "id": run.id,
                "measured": json.dumps(run.measured()),
                "model": model.state_dict(),
            }
            state |= {
                "optimizer": optimizer.state_dict(),
                "rows": rows,
                "arrays": arrays,
                "starts": starts,
            }
            state |= {
                "seconds": seconds + saved - started,
                "device": device_name(device),
                "precision": precision,
            }
            state |= {"labels": task.hashes["labels"]}
            run_dir.save_checkpoint(folder, state)
        if late:
            raise OutOfTime(
                f"{run.name} was stopped after epoch {epoch} of {run.epochs}; train it again to go "
                "on"
            )
    for penalty in penalties:
        penalty.remove()

    metrics = pd.DataFrame(rows, columns=observe.metric_names(run, task, model))
    if folder:
        env = (
            _environment(device)
            | {"precision": precision}
            | task.hashes
            | {"num_classes": task.num_classes}
        )
        env |= {"seconds": round(seconds + time.monotonic() - started, 1)}
        kept = {k: v.cpu() for k, v in model.state_dict().items()} if run.keep_weights else None
        stacked = {name: torch.stack(values).numpy() for name, values in arrays.items()}
        stacked |= observe.kept(model, task, run) if diverged is None else {}
        run_dir.finish(folder, run, metrics, stacked, env, diverged, kept)
    return metrics.assign(id=run.id)


@contextmanager
def _reproducible(device: torch.device, precision: str = PRECISIONS[0]) -> Iterator[None]:
    """The same sums each time: one thread on a CPU (faster than two on these sizes, too), no choice
    of methods on a GPU.

    Where the training's products are bfloat16, a GPU evaluates with TF32 convolutions: three bits
    more, at their speed.
    """
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    if device.type == "cpu":
        torch.set_num_threads(1)
        machine.keep_memory()
    try:
        tf32 = precision == "bfloat16"
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(products)


@lru_cache(maxsize=1)
def commit() -> str:
    """The code's version, read once, before the first training.

    Git's; without git, that in the environment variable `COMMIT` or else in the project's file of
    that name, for machines that the code is only copied to; "unknown" without any of them.
    """
    with contextlib.suppress(OSError):
        command = ["git", "describe", "--always", "--dirty"]
        git = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
        if git.stdout.strip():
            return git.stdout.strip()
    if said := os.environ.get("COMMIT", "").strip():
        return said
    with contextlib.suppress(OSError):
        return (paths.ROOT / "COMMIT").read_text().strip() or "unknown"
    return "unknown"


def _environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, processor and commit, for a run's record. Threads are those of the
    training.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "processor": machine.processor(),
        "instruction_sets": machine.instruction_sets(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }
