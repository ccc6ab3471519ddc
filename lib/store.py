"""The run store: a run is a folder.

`ensure` trains what is missing, `load` and `collect` read what is there.

    results/<profile>/<dataset>/<network>-<what differs>-<id>/

The profile names a folder and no more: a run is found by its id in whichever profile it was trained
for, in `$RESULTS_DIR` or among the committed runs of the project.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lib import bundle, data, engine, paths, run_dir, trainer
from lib.engine import MayBegin, epochs_left, is_done, is_without_labels
from lib.progress import Progress
from lib.run import Run

# columns of every frame that repeat an entry of a run's env.json
ENVIRONMENT = {"num_classes": "num_classes", "precision": "precision"}
ENVIRONMENT |= {"data_hash": "data", "labels_hash": "labels"}
OPTIONAL = ("validation_accuracy", "ablation_auc")  # columns of every frame, often read


def find(run: Run) -> Path | None:
    """The folder of a run, finished or under way, in any profile, as `run_dir.find` gives it."""
    return run_dir.find(run.dataset, run.id)


def merged(runs: Iterable[Run]) -> dict[str, Run]:
    """The runs by id, each once, measuring what any of those with its id measures."""
    found: dict[str, Run] = {}
    for run in runs:
        found[run.id] = found[run.id].with_measures(run) if run.id in found else run
    return found


def ensure(
    runs: Sequence[Run],
    *,
    profile: str = "own",
    jobs: int = 1,
    executor: Executor | None = None,
    deadline: float | None = None,
    may_begin: MayBegin | None = None,
) -> None:
    """Train the runs that are missing, or that lack a measure now asked for.

    Every run is checked against its data, and every folder is read, before anything trains. A run
    that another process is training is waited for, not trained twice. Runs that are relabelled by
    another one are trained after it, anew if it predicts other labels than they were trained on,
    and left out where its loss became NaN: it predicts nothing.

    Args:
        runs: the runs that have to be there, the most wanted first: they are trained in this order,
            except that several processes without a deadline begin with the longest.
        profile: the folder under `results/` for those that are new; `own`, for runs of yours, is
            left alone by `make clean`.
        jobs: how many runs are trained at a time. On a CPU in processes of one thread each, under a
            parallel make in one; a script that asks for more has to guard its own start by `if
            __name__ == "__main__":`. On a GPU side by side, which its memory has to hold; several
            GPUs have a process each.
        executor: who trains them instead, a run a task, such as Dask's
            `distributed.Client(address).get_executor()`. Workers need this package and the data
            sets; those that do not share the results folder send finished runs back.
        deadline: a value of `time.monotonic()` at which to stop: runs under way end their epoch and
            keep a checkpoint, none is waited for. None: train all to the end.
        may_begin: with a deadline, asked before each run is begun, with run, epochs it lacks and
            seconds left; None: any run is begun while there is time.

    Raises:
        ValueError, data.DataError, RecordError: bad input, before anything trains.
        OSError: if the results cannot be written.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; at least one process is needed")
    if not re.fullmatch(r"\w[\w.-]*", profile):
        raise ValueError(
            f"profile is {profile!r}; it has to be the name of a folder, such as 'quick'"
        )
    asked = merged(runs)
    missing = [run for run in asked.values() if not is_done(run)]
    may_begin = may_begin or _while_there_is_time
    if deadline is not None:
        seconds = deadline - time.monotonic()
        missing = [run for run in missing if may_begin(run, epochs_left(run), seconds)]
    if not missing:
        return
    _check_writable(paths.results_dir() / profile)
    loaded: bundle.Loaded = {}
    for run in {bundle.check_key(run): run for run in missing}.values():
        bundle.prepare(replace(run, relabelled_by=None), loaded=loaded)
    del loaded
    _check_relabelling(missing, asked)
    with Progress(missing) as progress:
        while ready := _ready(missing):
            _train(ready, profile, jobs, executor, progress, deadline, may_begin)
            missing = [run for run in missing if run not in ready]
            # a teacher that was trained again may predict other labels
            teachers = {run.id for run in ready}
            for run in asked.values():
                if run.relabelled_by in teachers and run not in missing and not is_done(run):
                    missing.append(run)
                    progress.add([run])


def _while_there_is_time(run: Run, epochs: int, seconds: float) -> bool:
    return seconds > 0


def _ready(missing: Sequence[Run]) -> list[Run]:
    """Those that wait for no other, nor for a teacher that is trained again for a measure."""
    ids = {run.id for run in missing}
    return [
        run
        for run in missing
        if run.relabelled_by is None
        or (run.relabelled_by not in ids and bundle.teacher_folder(run) is not None)
    ]


def _train(
    missing: list[Run],
    profile: str,
    jobs: int,
    executor: Executor | None,
    progress: Progress,
    deadline: float | None,
    may_begin: MayBegin,
) -> None:
    """Train runs that wait for no other, where they are to be trained."""
    ends = {"deadline": deadline, "may_begin": may_begin}
    on_cpu = trainer.default_device().startswith("cpu")  # or cpu:0
    gpus = engine.gpus()
    jobs = 1 if on_cpu and _under_parallel_make() else min(jobs, len(missing))
    if deadline is None and (jobs > 1 or executor) and on_cpu:
        # the longest first, so that no process is left alone at the end
        missing.sort(key=lambda run: -run.epochs)
    if executor is not None:
        classes = engine.classes_to_send(missing)
        each = [[run] for run in missing]
        engine.by(executor, each, profile, progress, penalties=classes, **ends)
    elif (jobs > 1 and on_cpu) or len(gpus) > 1:
        classes = engine.classes_to_send(missing)
        engine.check_importable(classes)
        # no GPU is left without work while another has much
        together = 1 if on_cpu else min(jobs, -(-len(missing) // len(gpus)))
        groups = [missing[k : k + together] for k in range(0, len(missing), together)]
        with engine.processes(jobs if on_cpu else len(gpus), gpus) as pool:
            engine.by(pool, groups, profile, progress, penalties=classes, **ends)
    else:
        engine.here(missing, profile, progress, together=1 if on_cpu else jobs, **ends)


def load(runs: Sequence[Run]) -> pd.DataFrame:
    """One tidy frame of the runs' metrics: one row per run and epoch, each run once.

    With `profile` and what `Run.described` gives. Epoch 0, before training, is a row where
    something was measured there; what was not is empty, and `OPTIONAL` columns are there although
    no run has them. A run whose loss became NaN has its rows up to the last finite epoch (at least
    one, whose metrics are empty), and in `diverged` (else NaN) the epoch after it. A frame of no
    run has the same columns, but only the metrics of every run.

    Raises:
        LookupError: if a run has not been trained; the message says which and what to do.
        RecordError: if a folder is damaged.
    """
    runs = list(dict.fromkeys(runs))
    done = set(available(runs))
    if absent := [run for run in runs if run not in done]:
        names = ", ".join(run.name for run in absent[:3]) + (" …" if len(absent) > 3 else "")
        what = "train them with store.ensure"
        if any(map(_is_finished, absent)):
            what += "; they were trained on other images than their data set has now"
        if all(map(is_without_labels, absent)):
            what = (
                "the runs that relabel them diverged, so that there are no labels to train them "
                "on; leave them out"
            )
        raise LookupError(
            f"{len(absent)} of {len(runs)} runs are not in the store ({names}): {what}"
        )
    return _together([_tidy(find(run)) for run in runs])


def load_long(runs: Sequence[Run], metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """The frame of `load` with one row per run, epoch, metric and place.

    Args:
        runs: as `load` takes them.
        metrics: their names, such as "test_accuracy", "entropy", "ablation_auc"; None: all.

    Returns:
        the columns of `load` that describe a run, `epoch`, `metric`, `where` (the layer of an
        entropy or correlation, the mask and images of an ablation, the start of a canonical
        correlation, else empty), `value`. What was not measured has no row.

    Raises:
        ValueError: for a metric that none of the runs has; the message lists those there are.
        LookupError, RecordError: as `load`.
    """
    return to_long(load(runs), metrics)


def to_long(frame: pd.DataFrame, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """A frame of `load`, or some of its rows, as `load_long` gives it."""
    if isinstance(metrics, str):
        raise TypeError(f"metrics is {metrics!r}; a list of names is needed: [{metrics!r}]")
    columns = frame.columns[frame.columns.get_loc("epoch") + 1 :]
    names = {column: column.partition(" ")[0] for column in columns}
    if unknown := sorted(set(metrics or ()) - set(names.values())):
        raise ValueError(
            f"no run here has the metric {', '.join(unknown)}; there are "
            f"{', '.join(dict.fromkeys(names.values()))}"
        )
    taken = [column for column, name in names.items() if metrics is None or name in metrics]
    described = [column for column in frame if column not in names]
    long = frame.melt(described, taken, var_name="metric", value_name="value")
    long = long[long.value.notna()]
    places = [column.partition(" ")[2] for column in long.metric]
    long = long.assign(metric=long.metric.map(names), where=places)
    return long[[*described, "metric", "where", "value"]].reset_index(drop=True)


def collect(profile: str) -> pd.DataFrame:
    """The frame of `load` for every finished run of a profile."""
    finished = (paths.results_dir() / profile).glob("*/*/metrics.csv")
    return _together([_tidy(folder) for folder in sorted(file.parent for file in finished)])


def _together(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    if frames:
        frame = pd.concat(frames, ignore_index=True)
        return frame.assign(**{name: np.nan for name in OPTIONAL if name not in frame})
    described = ["profile", *Run("digits").described(), *ENVIRONMENT, "diverged"]
    return pd.DataFrame(columns=[*described, *trainer.METRICS, *OPTIONAL])


def available(runs: Sequence[Run]) -> list[Run]:
    """Those of the runs that are finished, on the images that there are now.

    Also where `ensure` would train them again for a measure, or for other labels; not where an
    image folder of yours has changed since. Where the images are absent nothing is compared.
    """
    images = {name: data.own_hash(name) for name in {run.dataset for run in runs}}
    return [
        run for run in runs if _is_finished(run) and bundle.is_of(find(run), images[run.dataset])
    ]


def _is_finished(run: Run) -> bool:
    folder = find(run)
    return folder is not None and run_dir.is_finished(folder)


def arrays(run: Run) -> dict[str, np.ndarray]:
    """The arrays measured in a finished run, by name.

    They are of E epochs, which end earlier in a run that diverged.

    `ablation <mask>/<images>` [points, 11], `ablation epochs` [points]; with `entropy`,
    `entropy before training` [1, layers] and for each hidden layer `correlations <layer>`
    [1 + E, 200], the first before training; with `heat_maps`, `heat map epochs` [points] and for
    each hidden layer `heat maps <layer>` [points, images, A, B] in float16 (of a linear layer
    [points, images]); with `cca`, for each start `cca epochs <start>` [points], `cca <start>`
    [points, 50] (NaN behind the last coefficient) and `cca dropped <start>` [points, 2]; with
    `keep_trunk`, the weights `trunk <parameter>`; with `predictions`, `predictions` [N_train].

    Raises:
        LookupError: if the run has not been trained.
    """
    if not available([run]):
        raise LookupError(f"the run {run.name} is not in the store: train it with store.ensure")
    return run_dir.read_arrays(find(run))


def _tidy(folder: Path) -> pd.DataFrame:
    run = run_dir.read_run(folder)
    metrics, diverged = run_dir.read_metrics(folder)
    said = run_dir.read_environment(folder)
    fields = {"profile": folder.parent.parent.name, **run.described()}
    fields |= {name: said.get(of_env) for name, of_env in ENVIRONMENT.items()}
    fields["diverged"] = float("nan") if diverged is None else float(diverged)
    if run.entropy:
        before = run_dir.read_arrays(folder).get("entropy before training")  # [1, layers]
        if before is not None:
            layers = [name for name in metrics if name.startswith("entropy ")]
            start = pd.DataFrame({"epoch": [0]} | dict(zip(layers, before.T, strict=True)))
            metrics = pd.concat([start, metrics], ignore_index=True)[list(metrics)]
    described = pd.DataFrame([fields]).iloc[[0] * max(len(metrics), 1)].reset_index(drop=True)
    return pd.concat([described, metrics], axis=1)


def _check_relabelling(missing: Sequence[Run], asked: dict[str, Run]) -> None:
    """Refuse, with a ValueError, runs that would have no labels, or those of other images.

    Their teacher has to be stored, or trained here, with its predictions.
    """
    trained_here = {run.id for run in missing}
    for run in missing:
        if run.relabelled_by is None:
            continue
        teacher = asked.get(run.relabelled_by)
        folder = bundle.teacher_folder(run)
        if folder is not None:
            teacher = run_dir.read_run(folder)
            if teacher.id not in trained_here:
                bundle.check_images(run, folder, data.own_hash(run.dataset))
        elif not (teacher and teacher.predictions):
            what = "give that run with predictions=True in the same list, or train it first"
            if is_without_labels(run):
                what = f"leave {run.name} out"
            raise ValueError(f"{bundle.unlabelled(run)}: {what}")
        bundle.check_teacher(run, teacher)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"room for a run?" * 1000)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"results cannot be written to {folder} ({error.strerror}); free it or set RESULTS_DIR",
        ) from error


def _under_parallel_make() -> bool:
    flags = os.environ.get("MAKEFLAGS", "").split()
    return any(flag.startswith("-j") or "jobserver" in flag for flag in flags)
