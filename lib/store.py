"""The run store: a run is a folder.

`ensure` trains what is missing, `load` and `collect` read what is there.

    results/<profile>/<dataset>/<network>-<what differs>-<id>/

The profile names a folder and no more: a run is found by its id in whichever profile it was trained
for, in `$RESULTS_DIR` or among the committed runs of the project.
"""

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import bundle, losses, paths, run_dir, trainer
from lib.run import Run

MayBegin = Callable[[Run, int, float], bool]


def find(run: Run) -> Path | None:
    """The folder of a run, finished or under way, in any profile; None if there is none.

    Raises as `run_dir.find`.
    """
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
    deadline: float | None = None,
    may_begin: MayBegin | None = None,
) -> None:
    """Train the runs that are missing, or that lack a measure now asked for.

    What it leaves behind is on the disk.

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
            parallel make in one; a script that asks for more than one has to guard its own start by
            `if __name__ == "__main__":`, as Python's multiprocessing wants it. On a GPU side by
            side in this process, which its memory has to hold.
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
    missing = [run for run in asked.values() if not _is_done(run)]
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
    while ready := _ready(missing):
        _ensure(ready, profile, jobs, deadline, may_begin)
        missing = [run for run in missing if run not in ready]
        # those whose teacher was trained again are missing now, too: it may predict other labels
        teachers = {run.id for run in ready}
        for run in asked.values():
            if run.relabelled_by in teachers and run not in missing and not _is_done(run):
                missing.append(run)


def _while_there_is_time(run: Run, epochs: int, seconds: float) -> bool:
    return seconds > 0


def _ready(missing: Sequence[Run]) -> list[Run]:
    """Those that wait for no other.

    A teacher that is trained again, for a measure that it lacks, comes before those that it
    relabels, too.
    """
    ids = {run.id for run in missing}
    ready = []
    for run in missing:
        teacher = run.relabelled_by
        if teacher is None or (teacher not in ids and bundle.teacher_folder(run) is not None):
            ready.append(run)
    return ready


def _ensure(
    missing: list[Run],
    profile: str,
    jobs: int,
    deadline: float | None,
    may_begin: MayBegin,
) -> None:
    """Train runs that wait for no other."""
    on_cpu = trainer.default_device() == "cpu"
    jobs = 1 if on_cpu and _under_parallel_make() else min(jobs, len(missing))
    if jobs > 1 and on_cpu and deadline is None:
        # the longest first, so that no process is left alone at the end
        missing.sort(key=lambda run: -run.epochs)
    total = sum(run.epochs for run in missing)
    with tqdm(total=total, unit="epoch", disable=None, desc=f"{len(missing)} runs") as bar:
        if jobs == 1 or not on_cpu:
            _train_all(iter(missing), profile, bar.update, deadline, may_begin, together=jobs)
        else:
            _train_in_processes(missing, profile, jobs, bar, deadline, may_begin)


def load(runs: Sequence[Run]) -> pd.DataFrame:
    """One tidy frame of the runs' metrics: one row per run and epoch.

    With `profile` and what `Run.described` gives. Epoch 0, before training, is a row where
    something was measured there; what was not is empty. A run whose loss became NaN has its rows up
    to the last finite epoch (at least one, whose metrics are empty), and in `diverged` (else NaN)
    the epoch after it. A frame of no run has the same columns, but only the metrics of every run.

    Raises:
        LookupError: if a run has not been trained; the message says which and what to do.
        RecordError: if a folder is damaged.
    """
    done = {run.id for run in available(runs)}
    if absent := [run for run in runs if run.id not in done]:
        names = ", ".join(run.name for run in absent[:3]) + (" …" if len(absent) > 3 else "")
        what = "train them with store.ensure"
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
    folders = sorted(f.parent for f in (paths.results_dir() / profile).glob("*/*/metrics.csv"))
    return _together([_tidy(folder) for folder in folders])


def _together(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    if frames:
        return pd.concat(frames, ignore_index=True)
    of_folder = ["num_classes", "precision", "data_hash", "labels_hash", "diverged"]
    described = ["profile", *Run("digits").described(), *of_folder]
    return pd.DataFrame(columns=[*described, *trainer.METRICS])


def available(runs: Sequence[Run]) -> list[Run]:
    """Those of the runs that are finished.

    Also where `ensure` would train them again (for a measure, or for other labels).
    """
    return [
        run for run in runs if (folder := find(run)) is not None and run_dir.is_finished(folder)
    ]


def epochs_left(run: Run) -> int:
    """How many epochs a run lacks: those after its checkpoint.

    0 if it is finished with its measures, or if it can never be trained (`is_without_labels`).
    """
    if _is_done(run) or is_without_labels(run):
        return 0
    folder = find(run)
    if folder is None or not run_dir.is_begun(folder):
        return run.epochs
    state = run_dir.load_checkpoint(
        folder, run.with_measures(run_dir.read_run(folder)), bundle.pseudo_labels_hash(run)
    )
    return run.epochs - len(state["rows"]) if state else run.epochs


def is_without_labels(run: Run) -> bool:
    """Whether a run can never be trained, for want of labels.

    So it is if the loss of the run that relabels it became NaN.
    """
    folder = run_dir.find(run.dataset, run.relabelled_by) if run.relabelled_by else None
    return (
        folder is not None
        and run_dir.is_finished(folder)
        and run_dir.read_metrics(folder)[1] is not None
    )


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
    fields |= {"num_classes": said.get("num_classes"), "precision": said.get("precision")}
    fields |= {"data_hash": said.get("data"), "labels_hash": said.get("labels")}
    fields["diverged"] = float("nan") if diverged is None else float(diverged)
    if run.entropy:
        before = run_dir.read_arrays(folder).get("entropy before training")  # [1, layers]
        if before is not None:
            layers = [name for name in metrics if name.startswith("entropy ")]
            start = pd.DataFrame({"epoch": [0]} | dict(zip(layers, before.T, strict=True)))
            metrics = pd.concat([start, metrics], ignore_index=True)[list(metrics)]
    described = pd.DataFrame([fields] * max(len(metrics), 1))
    return pd.concat([described, metrics], axis=1)


def _is_done(run: Run) -> bool:
    """Whether a run is finished with its measures, on the labels it would be given now.

    That is: with every measure asked for. Damaged folders raise.

    A run that is relabelled by another one is not done if that teacher has been trained again and
    predicts other labels than those whose hash the run recorded. Where either hash is missing (no
    teacher in the store, no predictions) it is done.
    """
    folder = find(run)
    if folder is None or not run_dir.is_begun(folder):
        return False
    stored = run_dir.read_run(folder)
    if not run_dir.is_finished(folder):
        run_dir.load_checkpoint(folder, stored)
        return False
    run_dir.read_metrics(folder)
    run_dir.read_arrays(folder)
    if stored.measured() != stored.with_measures(run).measured():
        return False
    labels = bundle.pseudo_labels_hash(run)
    return labels is None or run_dir.read_environment(folder).get("labels", labels) == labels


def _train_all(
    runs: Iterator[Run],
    profile: str,
    advance: Callable[[int], object],
    deadline: float | None,
    may_begin: MayBegin,
    together: int = 1,
) -> None:
    """Train the runs, so many at a time.

    Those that another process is training are waited for, without a deadline. `advance` is told of
    each number of epochs that are done.
    """
    busy: list[Run] = []
    while group := list(islice(runs, together)):
        if deadline is not None:
            # asked anew before each: what was trained meanwhile says how long the next one takes
            group = [
                run
                for run in group
                if may_begin(run, epochs_left(run), deadline - time.monotonic())
            ]
        try:
            busy += _train(group, profile, advance, deadline, block=False)
        except trainer.OutOfTime:
            return
    for run in busy if deadline is None else ():
        _train([run], profile, advance, None, block=True)


def _train(
    runs: Sequence[Run],
    profile: str,
    advance: Callable[[int], object],
    deadline: float | None,
    *,
    block: bool,
) -> list[Run]:
    """Train runs under their locks; gives those that another process still holds.

    Those that another process has finished meanwhile are not trained.
    """
    done: Counter[str] = Counter()  # epochs by run

    def count(run: Run, model: object, epoch: int) -> None:
        advance(epoch - done[run.id])  # the first epoch after a checkpoint counts those before
        done[run.id] = epoch

    with contextlib.ExitStack() as locks:
        held = [run for run in runs if locks.enter_context(lock(run, block=block))]
        todo = []
        folders = []
        for run in held:
            if _is_done(run):
                advance(run.epochs)
                continue
            folder = run_dir.find(run.dataset, run.id, to_write=True)
            if folder is None:
                folder = paths.results_dir() / profile / run.dataset / run.name
            if run_dir.is_begun(folder):
                run = run.with_measures(run_dir.read_run(folder))
            todo.append(run)
            folders.append(folder)
        if todo:
            trainer.fit(todo, folders, callback=count, deadline=deadline)
    return [run for run in runs if run not in held]


def _train_in_processes(
    runs: list[Run],
    profile: str,
    jobs: int,
    bar: tqdm,
    deadline: float | None,
    may_begin: MayBegin,
) -> None:
    """Train the runs in processes, each of which takes the next run that nobody has taken.

    The first error ends them all and is raised here.
    """
    context = multiprocessing.get_context("spawn")
    taken = context.Value("i", 0)
    epochs = context.Value("i", 0)
    errors = context.SimpleQueue()
    penalties = _classes_to_send(runs)
    # one monotonic clock serves all processes
    arguments = (runs, profile, taken, epochs, errors, deadline, may_begin, penalties)
    processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(jobs)]
    for process in processes:
        process.start()
    try:
        while alive := [process.sentinel for process in processes if process.is_alive()]:
            wait(alive, timeout=0.5)
            bar.update(epochs.value - bar.n)
            if any(process.exitcode for process in processes):
                break
        bar.update(epochs.value - bar.n)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    if not errors.empty():
        raise errors.get()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed and not all(_is_done(run) for run in runs):
        raise RuntimeError(
            f"a training process ended with code {failed[0]}; run again to go on where it was"
            " (a script of yours needs `if __name__ == '__main__':` around its call with jobs > 1)"
        )


def _classes_to_send(runs: Iterable[Run]) -> dict[str, type]:
    """The classes of the runs' added penalties by name, which another process has not registered.

    Raises:
        ValueError: for one that another process cannot import: defined in a notebook, in an
            interactive session or inside a function.
    """
    names = {term.name for run in runs for term in run.terms() if term.added}
    classes = {name: losses.PENALTIES[name] for name in sorted(names)}
    for name, kind in classes.items():
        script = getattr(sys.modules["__main__"], "__file__", None)
        typed_in = kind.__module__ == "__main__" and not (script and os.path.exists(script))
        try:
            pickle.dumps(kind)
        except (pickle.PicklingError, AttributeError):
            typed_in = True
        if typed_in:
            raise ValueError(
                f"the penalty {name!r} is a class that other processes cannot import (it was "
                "defined in a notebook or inside a function): train with jobs=1, or put the class "
                "into a module"
            )
    return classes


def _work(
    runs: list[Run],
    profile: str,
    taken,
    epochs,
    errors,
    deadline: float | None,
    may_begin: MayBegin,
    penalties: dict[str, type],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    parent = multiprocessing.parent_process().sentinel
    # a process whose parent was killed must not go on holding locks
    threading.Thread(target=lambda: (wait([parent]), os._exit(1)), daemon=True).start()
    losses.PENALTIES.update(penalties)

    def count(more: int) -> None:
        with epochs.get_lock():
            epochs.value += more

    def mine() -> Iterator[Run]:
        while True:
            with taken.get_lock():
                next_one = taken.value
                taken.value += 1
            if next_one >= len(runs):
                return
            yield runs[next_one]

    try:
        _train_all(mine(), profile, count, deadline, may_begin)
    except Exception as error:
        error.add_note(f"In a training process: {traceback.format_exc()}")
        errors.put(error)
        raise SystemExit(1) from error


@contextlib.contextmanager
def lock(run: Run, *, block: bool) -> Iterator[bool]:
    """Hold the run's lock, or say that another process does.

    The system frees it however its holder ends.
    """
    folder = paths.results_dir() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / run.id, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if block else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _check_relabelling(missing: Sequence[Run], asked: dict[str, Run]) -> None:
    """Refuse, with a ValueError, runs that would have no labels, or those of other images.

    That is: runs whose labels come from a run that is neither stored with its predictions nor
    trained here, with them; and those whose labels come from a run of other images.
    """
    for run in missing:
        if run.relabelled_by is None:
            continue
        teacher = asked.get(run.relabelled_by)
        folder = bundle.teacher_folder(run)
        if folder is not None:
            teacher = run_dir.read_run(folder)
        elif not (teacher and teacher.predictions):
            raise ValueError(
                f"{run.name} is relabelled by the run {run.relabelled_by}, whose predictions are "
                "not in the store (a run that "
                "diverged has none): give that run with predictions=True in the same list, or "
                "train it first"
            )
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
    return any(
        flag.startswith("-j") or "jobserver" in flag
        for flag in os.environ.get("MAKEFLAGS", "").split()
    )
