"""How missing runs are trained: in this process, in processes of one thread, or by an executor.

A task is one run, or on a GPU a group that share it. Whoever takes it trains it under its lock,
from its last checkpoint, in the results folder. A worker that does not share that folder trains in
its own and sends the finished run back as bytes. No cluster code here: any
`concurrent.futures.Executor` will do, such as Dask's.
"""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from lib import bundle, losses, machine, paths, run_dir, trainer
from lib.progress import Progress
from lib.run import Run

MayBegin = Callable[[Run, int, float], bool]
Files = dict[str, bytes]  # of a run's folder by name

LOOK_SECONDS = 1.0  # between two looks at how far others' runs are
# one training at a time in a process, whatever the threads of an executor's worker
_alone = threading.Lock()


def is_done(run: Run) -> bool:
    """Whether a run is finished, with every measure asked for, on the data it would get now.

    That is not so if an image folder of one's own has changed since, or if the run that relabels it
    has been trained again and predicts other labels than those whose hash was recorded. Where a
    hash is missing (no teacher in the store, no predictions) it is done. Damaged folders raise.
    """
    folder = run_dir.find(run.dataset, run.id)
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
    said = run_dir.read_environment(folder)
    return all(said.get(name, value) == value for name, value in bundle.known_hashes(run).items())


def epochs_left(run: Run) -> int:
    """How many epochs a run lacks: those after its checkpoint; 0 if it is done or cannot be."""
    if is_done(run) or is_without_labels(run):
        return 0
    folder = run_dir.find(run.dataset, run.id)
    if folder is None or not run_dir.is_begun(folder):
        return run.epochs
    state = run_dir.load_checkpoint(
        folder, run.with_measures(run_dir.read_run(folder)), bundle.known_hashes(run)
    )
    return run.epochs - len(state["rows"]) if state else run.epochs


def is_without_labels(run: Run) -> bool:
    """Whether a run can never be trained: the loss of the run that relabels it became NaN."""
    folder = run_dir.find(run.dataset, run.relabelled_by) if run.relabelled_by else None
    return (
        folder is not None
        and run_dir.is_finished(folder)
        and run_dir.read_metrics(folder)[1] is not None
    )


@contextlib.contextmanager
def lock(run: Run, *, block: bool) -> Iterator[bool]:
    """Hold the run's lock, or say that another process does.

    The system frees it however its holder ends. A run has one lock, whichever profile it is in.

    Raises:
        OSError: where the file system of the results cannot lock.
    """
    folder = paths.results_dir() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / run.id)
    try:
        held.acquire(timeout=-1 if block else 0)
    except Timeout:
        yield False
        return
    except PermissionError as error:
        raise PermissionError(
            error.errno,
            f"{folder / run.id} cannot be locked ({error.strerror}): it is another user's; have "
            "the folder made writable for both (chmod -R g+w), or set RESULTS_DIR",
        ) from error
    except (NotImplementedError, OSError) as error:
        raise OSError(
            f"files in {folder} cannot be locked ({error}): set RESULTS_DIR to a folder on a file "
            "system with locks (a local disk, NFS 4)"
        ) from error
    try:
        yield True
    finally:
        held.release()


def train(
    runs: Sequence[Run],
    profile: str,
    told: Callable[[Run, int], object],
    deadline: float | None,
    *,
    block: bool,
) -> list[Run]:
    """Train runs together under their locks, but those that another process has finished meanwhile.

    Gives those that another process still holds.

    Args:
        runs: of one device.
        profile: the folder of those that are new.
        told: of each run and epoch that is done.
        deadline: a value of `time.monotonic()`, see `trainer.fit`.
        block: whether a lock is waited for.

    Raises:
        trainer.OutOfTime: at the deadline.
    """
    with contextlib.ExitStack() as locks:
        held = [run for run in runs if locks.enter_context(lock(run, block=block))]
        todo: dict[Path, Run] = {}
        for run in held:
            if is_done(run):
                continue
            folder = folder_of(run, profile)
            if run_dir.is_begun(folder):
                run = run.with_measures(run_dir.read_run(folder))
            todo[folder] = run

        def after(run: Run, _: object, epoch: int) -> None:
            told(run, epoch)

        if todo:
            trainer.fit(list(todo.values()), list(todo), callback=after, deadline=deadline)
    return [run for run in runs if run not in held]


def folder_of(run: Run, profile: str) -> Path:
    """Where a run is trained: its folder in the results, of whichever profile, else a new one."""
    found = run_dir.find(run.dataset, run.id, to_write=True)
    return found or paths.results_dir() / profile / run.dataset / run.name


def _that_may_begin(
    runs: Sequence[Run], deadline: float | None, may_begin: MayBegin
) -> Sequence[Run]:
    """Asked anew before each: what was trained meanwhile says how long the next one takes."""
    if deadline is None:
        return runs
    left = deadline - time.monotonic()
    return [run for run in runs if may_begin(run, epochs_left(run), left)]


# ---- In this process -----------------------------------------------------------------------------


def here(
    runs: Sequence[Run],
    profile: str,
    progress: Progress,
    deadline: float | None,
    may_begin: MayBegin,
    together: int = 1,
) -> None:
    """Train the runs in their order, so many side by side.

    Those that another process is training are waited for, without a deadline.
    """
    busy: list[Run] = []
    for first in range(0, len(runs), together):
        group = _that_may_begin(runs[first : first + together], deadline, may_begin)
        try:
            held = train(group, profile, progress.at, deadline, block=False)
        except trainer.OutOfTime:
            return
        busy += held
        for run in group:
            if run not in held:
                progress.finished(run)
    for run in busy if deadline is None else ():
        train([run], profile, progress.at, None, block=True)
        progress.finished(run)


# ---- By an executor ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What a worker is asked to do.

    Args:
        runs: one, or those that share a GPU.
        profile: the folder of those that are new.
        deadline: a value of `time.time()`, which several machines share; None: no end.
        may_begin: as `store.ensure` takes it.
        penalties: classes of added penalties, which a worker has not registered.
        marker: a file beside the profiles; a worker that does not see it does not share the results
            folder.
        teachers: the runs that relabel these, with their files, for such a worker.
        block: whether a run that another process trains is waited for.
    """

    runs: tuple[Run, ...]
    profile: str
    deadline: float | None
    may_begin: MayBegin
    penalties: dict[str, type]
    marker: str
    teachers: tuple[tuple[Run, Files], ...]
    block: bool = False


@dataclass(frozen=True)
class Answer:
    """What a worker has done: the runs that another process holds, and finished runs as bytes."""

    busy: tuple[Run, ...] = ()
    sent: tuple[tuple[Run, Files], ...] = ()


def work(task: Task) -> Answer:
    """Do a task, in whatever process an executor runs it.

    Each run's folder says in `progress` which epoch it has reached.

    Raises:
        Exception: whatever ends a training, with a note that says where.
    """
    shared = (paths.results_dir() / task.marker).exists()
    losses.PENALTIES.update(task.penalties)
    folders = {run.id: folder_of(run, task.profile) for run in task.runs}

    def told(run: Run, epoch: int) -> None:
        with contextlib.suppress(OSError):
            (folders[run.id] / "progress").write_text(str(epoch), encoding="utf-8")

    try:
        with _alone:
            for teacher, files in () if shared else task.teachers:
                _write_files(folder_of(teacher, task.profile), files)
            deadline = None
            if task.deadline is not None:
                deadline = task.deadline - time.time() + time.monotonic()
            runs = _that_may_begin(task.runs, deadline, task.may_begin)
            try:
                busy = train(runs, task.profile, told, deadline, block=task.block)
            except trainer.OutOfTime:
                return Answer()
        finished = [] if shared else [run for run in runs if run not in busy]
        sent = [(run, _read_files(run_dir.find(run.dataset, run.id))) for run in finished]
        return Answer(tuple(busy), tuple(sent))
    except Exception as error:
        error.add_note(f"In a training process (pid {os.getpid()} on {socket.gethostname()}).")
        raise


def _read_files(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def _write_files(folder: Path, files: Files) -> None:
    """A run's folder, `metrics.csv` last, which says that it is whole.

    What is there of the run is replaced, and nothing of it stays; the same files are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = _read_files(folder)
    if there == files:
        return
    (folder / "metrics.csv").unlink(missing_ok=True)  # killed from here on it is no finished run
    for name in there.keys() - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: name == "metrics.csv"):
        with paths.replacing(folder / name) as part:
            part.write_bytes(files[name])


def by(
    executor: Executor,
    groups: Sequence[Sequence[Run]],
    profile: str,
    progress: Progress,
    deadline: float | None,
    may_begin: MayBegin,
    penalties: dict[str, type],
) -> None:
    """Hand groups of runs to an executor, in their order, and wait for them.

    The first error cancels what has not begun and is raised here. Runs that another process is
    training are waited for, without a deadline.
    """
    name = f".locks/seen-by-{secrets.token_hex(8)}"
    marker = paths.results_dir() / name
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    ends = None if deadline is None else time.time() + deadline - time.monotonic()
    pending: dict[Future, Sequence[Run]] = {}
    # where a worker that shares this folder says how far it is; looked up once
    places = {run.id: folder_of(run, profile) for runs in groups for run in runs}

    def submit(runs: Sequence[Run], block: bool = False) -> None:
        teachers = _teachers(runs)
        task = Task(tuple(runs), profile, ends, may_begin, penalties, name, teachers, block)
        pending[executor.submit(work, task)] = runs

    try:
        for runs in groups:
            submit(runs)
        while pending:
            done, _ = wait(pending, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                runs = pending.pop(future)
                answer = future.result()
                for run, files in answer.sent:
                    _write_files(folder_of(run, profile), files)
                if answer.busy and deadline is None:
                    for run in answer.busy:  # one lock each: two that wait for several may for ever
                        submit([run], block=True)
                for run in runs:
                    if run not in answer.busy and is_done(run):
                        progress.finished(run)
            for run in itertools.chain.from_iterable(pending.values()):
                _look(run, places[run.id], progress)
            progress.tick()
    finally:
        for future in pending:
            future.cancel()
        marker.unlink(missing_ok=True)


def _look(run: Run, folder: Path, progress: Progress) -> None:
    """Tell the progress how far a worker says that it is."""
    with contextlib.suppress(OSError, ValueError):
        progress.at(run, int((folder / "progress").read_text(encoding="utf-8")))


def _teachers(runs: Iterable[Run]) -> tuple[tuple[Run, Files], ...]:
    folders = {bundle.teacher_folder(run) for run in runs if run.relabelled_by} - {None}
    return tuple((run_dir.read_run(folder), _read_files(folder)) for folder in folders)


# ---- Processes of our own ------------------------------------------------------------------------


@contextlib.contextmanager
def processes(number: int, gpus: Sequence[str] = ()) -> Iterator[Executor]:
    """A pool of processes, spawned, each of which trains what it takes.

    They end with this process, however it ends, and with the block.

    Args:
        number: how many.
        gpus: where there are several, the one that each process alone sees; see `gpus`.

    Raises:
        RuntimeError: if one of them is killed.
    """
    context = multiprocessing.get_context("spawn")
    stop, stopped = context.Pipe(duplex=False)
    begun = context.Value("i", 0)
    pool = ProcessPoolExecutor(
        max_workers=number, mp_context=context, initializer=_begin, initargs=(stop, begun, gpus)
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a training process was ended from outside (by the system, for memory, or by hand); "
            "run again to go on where it was (a script of yours needs `if __name__ == "
            "'__main__':` around its call with jobs > 1)"
        ) from error
    except BaseException:
        stopped.close()  # which all of them see: what is under way ends, too
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        stopped.close()
        stop.close()


def _begin(stop, begun, gpus: Sequence[str]) -> None:
    """Settings of a process of the pool; `begun` counts them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    if gpus:
        with begun.get_lock():
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[begun.value]  # before CUDA starts here
            begun.value += 1
    parent = multiprocessing.parent_process().sentinel
    # a process whose parent was killed, or has ended the pool, must not go on holding locks
    threading.Thread(target=lambda: (wait_for([parent, stop]), os._exit(1)), daemon=True).start()


def classes_to_send(runs: Iterable[Run]) -> dict[str, type]:
    """The classes of the runs' added penalties by name, which a worker has not registered."""
    names = {term.name for run in runs for term in run.terms() if term.added}
    return {name: losses.PENALTIES[name] for name in sorted(names)}


def check_importable(classes: dict[str, type]) -> None:
    """Refuse penalties that a spawned process cannot import.

    Raises:
        ValueError: for one defined in a notebook, in an interactive session or inside a function.
    """
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


def gpus() -> list[str]:
    """The GPUs that trainings are shared out over, by the names in $CUDA_VISIBLE_DEVICES.

    None where the device is the CPU, and one where it is a single GPU such as cuda:1.
    """
    device = torch.device(trainer.default_device())
    if device.type == "cpu":
        return []
    number = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(number)))
    names = visible.split(",")[:number]
    return names if device.index is None else [names[device.index]]


def default_jobs() -> int:
    """Runs at a time: on a CPU a process a core; on each GPU as many as the smallest one holds.

    A network of these studies, with its data set and a recorded step, takes up to 4 GiB.
    """
    device = torch.device(trainer.default_device())
    if device.type == "cpu":
        return machine.cores()
    used = range(torch.cuda.device_count()) if device.index is None else [device.index]
    memory = min(torch.cuda.get_device_properties(k).total_memory for k in used)
    return int(max(1, min(16, memory // (4 << 30))))
