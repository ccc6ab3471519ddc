"""What goes wrong on real machines: kills, full and read-only disks, damaged files, two processes
at once.
"""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib import engine, paths, run_dir, store, trainer
from lib.run import Run
from lib.trainer import TrainStep

SHORT = dict(image_size=16, n_train=100, n_validation=20, test_images=40, epochs=5)
SHORT = Run("digits", **SHORT, learning_rate=0.1, batch_size=32, keep_weights=True)
# all that has a state, long enough to be killed many times
LONG = replace(SHORT, epochs=240, al2=True, batch_norm=True, dropout=0.3, momentum=0.9)
DEADLINE = 180  # seconds for a state to be reached; a failure, not a measurement

DRIVER = """
import json, os, signal, sys, traceback
import sklearn.datasets, torch
from lib import store, trainer
from lib.run import Run

# the processes that the store starts run this file, too, down to the last condition
trainer.CHECKPOINT_SECONDS = -1
fit = trainer.fit

def logged(runs, folders, **more):
    with open(os.environ["TRAINED"], "a") as log:
        print(os.getpid(), runs[0].id, file=log)
    return fit(runs, folders, **more)

trainer.fit = logged

def ensure(order):
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(order["environment"])
    try:
        store.ensure([Run.from_dict(values) for values in order["runs"]], jobs=order["jobs"])
        open(order["done"] + f"-{os.getpid()}", "w").close()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)

if __name__ == "__main__":
    # imports much at its first use: here once, not in each process
    torch.optim.SGD([torch.zeros(1)], lr=1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever has died is gone
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            ensure(json.loads(line))
        print(pid, flush=True)
"""


def folder_of(run, results=None):
    return (results or paths.results_dir()) / "own" / run.dataset / run.name


def contents(folder):
    """What a finished run says, less its wall time, to the last bit."""
    weights = torch.load(folder / "weights.pt", weights_only=True)
    arrays = run_dir.read_arrays(folder) | {f"weights {k}": v.numpy() for k, v in weights.items()}
    found = {name: (value.dtype, value.shape, value.tobytes()) for name, value in arrays.items()}
    found |= {name: (folder / name).read_text() for name in ("metrics.csv", "config.json")}
    return found | {"labels": run_dir.read_environment(folder)["labels"]}


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory):
    """Gives the results folder of a run that was trained without interruption."""
    results = tmp_path_factory.mktemp("in-one-go")

    def train(run):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RESULTS_DIR", str(results))
            patch.setenv("DEVICE", "cpu")
            patch.setattr(trainer, "CHECKPOINT_SECONDS", 1e9)
            store.ensure([run])
        return results

    return train


def assert_equal_to_the_last_bit(run, results):
    """The stored run equals that of another results folder."""
    assert run_dir.is_finished(folder_of(run))
    found, expected = contents(folder_of(run)), contents(folder_of(run, results))
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


class Stop(Exception):
    """Stands for whatever ends a training."""


@contextlib.contextmanager
def stopped_at(epoch, monkeypatch):
    """Trainings in the block keep a checkpoint an epoch and end in this one, before its own."""
    fit = trainer.fit

    def stopping(runs, folders, callback, **more):
        def stop(run, model, reached):
            if reached == epoch:
                raise Stop

        return fit(runs, folders, callback=stop, **more)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
        patch.setattr(trainer, "fit", stopping)
        yield


def leftovers():
    return list(paths.results_dir().rglob("*.part"))


# ---- interrupted


@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_a_run_stopped_by_an_error_goes_on_where_it_was(
    epoch, monkeypatch, epochs_trained, in_one_go
):
    with stopped_at(epoch, monkeypatch):
        store.ensure([SHORT])
    assert not run_dir.is_finished(folder_of(SHORT)) and not leftovers()
    epochs_trained.clear()
    store.ensure([SHORT])
    assert epochs_trained == list(range(epoch, 6))
    assert_equal_to_the_last_bit(SHORT, in_one_go(SHORT))


@pytest.mark.parametrize("left", [None, ".config.json.1.2.part"])
def test_a_run_killed_while_its_folder_was_made_is_trained(left, in_one_go):
    folder_of(SHORT).mkdir(parents=True)
    if left:
        (folder_of(SHORT) / left).write_text('{"id":')
    store.ensure([SHORT])
    assert_equal_to_the_last_bit(SHORT, in_one_go(SHORT))


def test_a_run_killed_while_its_results_were_written_is_trained_and_nothing_is_left_over(
    monkeypatch, in_one_go
):
    with stopped_at(4, monkeypatch):
        store.ensure([SHORT])
    for name in ("measures.npz", ".checkpoint.pt.1.2.part"):
        (folder_of(SHORT) / name).write_bytes(b"half of it")
    (folder_of(SHORT) / "env.json").write_text("{}")
    store.ensure([SHORT])
    assert_equal_to_the_last_bit(SHORT, in_one_go(SHORT))
    wanted = {"config.json", "env.json", "measures.npz", "metrics.csv", "weights.pt"}
    assert {f.name for f in folder_of(SHORT).iterdir()} == wanted


@pytest.fixture
def no_training(monkeypatch):
    """Training anything in this block fails the test."""

    @contextlib.contextmanager
    def forbidden():
        with monkeypatch.context() as patch:
            patch.setattr(TrainStep, "epoch", lambda *_: pytest.fail("trained"))
            yield

    return forbidden


def test_a_run_killed_between_its_last_two_steps_is_finished(monkeypatch, no_training):
    """metrics.csv is in place, the checkpoint still there."""
    with stopped_at(4, monkeypatch):
        store.ensure([SHORT])
    checkpoint = (folder_of(SHORT) / "checkpoint.pt").read_bytes()
    store.ensure([SHORT])
    (folder_of(SHORT) / "checkpoint.pt").write_bytes(checkpoint)
    with no_training():
        store.ensure([SHORT])
    store.ensure([replace(SHORT, ablations=("shared/test",))])
    assert "ablation_auc shared/test" in store.load([SHORT])


# ---- damaged files


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_run(path):
    run_dir._write_config(path.parent, replace(SHORT, seed=5))


def holding(content):
    return lambda path: path.write_bytes(content)


# in how many ways each may be damaged: test_run_dir.py
DAMAGE = {
    "metrics.csv truncated": truncate,
    "config.json garbage": holding(b"{garbage"),
    "config.json binary": holding(b"\xff\xfe\x00"),
    "config.json a number": holding(b'{"id": 1, "run": 3, "measures": 4}'),
    "config.json missing": Path.unlink,
    "config.json of another run": of_another_run,
    "measures.npz truncated": truncate,
    "measures.npz missing": Path.unlink,
    "status.json garbage": holding(b"?"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_finished_run_is_named_before_anything_trains_and_when_it_is_loaded(
    name, in_one_go, no_training
):
    shutil.copytree(folder_of(SHORT, in_one_go(SHORT)), folder_of(SHORT))
    DAMAGE[name](folder_of(SHORT) / name.split()[0])
    with no_training(), pytest.raises(run_dir.RecordError, match=SHORT.name):
        store.ensure([replace(SHORT, seed=1), SHORT])
    if "npz" not in name:
        with pytest.raises(run_dir.RecordError, match=SHORT.name):
            store.load([SHORT])
    shutil.rmtree(folder_of(SHORT))  # what the message advises
    assert store.find(SHORT) is None


@pytest.mark.parametrize(
    "damage",
    [truncate, lambda path: torch.save(torch.zeros(3), path)],
    ids=["truncated", "a tensor"],
)
def test_a_damaged_checkpoint_is_named_before_anything_trains(damage, monkeypatch, no_training):
    with stopped_at(4, monkeypatch):
        store.ensure([SHORT])
    damage(folder_of(SHORT) / "checkpoint.pt")
    with no_training(), pytest.raises(run_dir.RecordError, match=r"checkpoint\.pt"):
        store.ensure([replace(SHORT, seed=1), SHORT])
    shutil.rmtree(folder_of(SHORT))  # what the message advises
    store.ensure([SHORT])


def test_a_checkpoint_that_vanishes_while_it_is_looked_at_is_none(monkeypatch):
    """Another process has just finished the run and dropped it."""
    with stopped_at(4, monkeypatch):
        store.ensure([SHORT])
    load = torch.load

    def vanishing(path, **more):
        Path(path).unlink()
        return load(path, **more)

    monkeypatch.setattr(torch, "load", vanishing)
    assert run_dir.load_checkpoint(folder_of(SHORT), SHORT) is None


# ---- disks


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_results_that_cannot_be_written_are_said_before_anything_trains(
    monkeypatch, tmp_path, no_training
):
    (tmp_path / "file").touch()
    results = paths.results_dir()
    with no_training():
        monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "file"))
        with pytest.raises(OSError, match="RESULTS_DIR"):
            store.ensure([SHORT])
        monkeypatch.setenv("RESULTS_DIR", str(results))
        monkeypatch.setattr(tempfile, "TemporaryFile", failing(errno.EROFS))  # read-only
        with pytest.raises(OSError, match="RESULTS_DIR") as caught:
            store.ensure([SHORT])
    assert caught.value.errno == errno.EROFS
    assert not list(results.glob("*/*/*"))


def full_disk(name, after=0):
    """An os.replace that finds no room for files of this name, after so many."""
    seen = []
    move = os.replace

    def replacing(source, target):
        if Path(target).name == name:
            seen.append(1)
            if len(seen) > after:
                failing(errno.ENOSPC)()
        return move(source, target)

    return replacing


FILES = ["config.json", "checkpoint.pt", "env.json", "measures.npz", "weights.pt", "metrics.csv"]


@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_fills_up_is_said_and_the_run_goes_on_when_there_is_room(
    name, monkeypatch, in_one_go, epochs_trained
):
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
        patch.setattr(os, "replace", full_disk(name, after=2 if name == "checkpoint.pt" else 0))
        with pytest.raises(OSError) as caught:
            store.ensure([SHORT])
    assert caught.value.errno == errno.ENOSPC
    assert not leftovers() and store.collect("own").empty
    epochs_trained.clear()
    store.ensure([SHORT])
    assert epochs_trained[0] == {"config.json": 1, "checkpoint.pt": 3}.get(name, 5)
    assert_equal_to_the_last_bit(SHORT, in_one_go(SHORT))


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_an_oserror(monkeypatch, in_one_go):
    """A real failure of the write itself: the system refuses files above a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError) as caught:
            store.ensure([SHORT])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert not leftovers()
    store.ensure([SHORT])
    assert_equal_to_the_last_bit(SHORT, in_one_go(SHORT))


# ---- processes


def wait_until(reached, running=lambda: True):
    """Poll until something is so; fails where what should bring it about has ended."""
    end = time.monotonic() + DEADLINE
    while not reached():
        assert running() or reached(), "the training ended before it was to be killed"
        assert time.monotonic() < end, "the state that the test waits for was not reached"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A process that imports the library once, and forks one that trains for each line sent."""
    script = tmp_path_factory.mktemp("driver") / "driver.py"
    script.write_text(DRIVER)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.fixture
def start(driver, tmp_path):
    """Starts processes that call `store.ensure`; what a test leaves running is killed."""
    started = []

    def start(runs, jobs=1):
        # the test's, which are not yet set where the driver begins
        environment = {name: os.environ[name] for name in ("RESULTS_DIR", "CACHE_DIR", "DEVICE")}
        environment |= {"PRECISION": "", "TRAINED": str(tmp_path / "trained")}
        order = {"environment": environment, "jobs": jobs, "done": str(tmp_path / "done")}
        order["runs"] = [run.to_dict() | run.measured() for run in runs]
        driver.stdin.write(json.dumps(order) + "\n")
        driver.stdin.flush()
        started.append(int(driver.stdout.readline()))
        return started[-1]

    yield start
    for pid in started:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)  # its workers end with it


@pytest.fixture
def trained(tmp_path):
    """The trainings begun by started processes: a process id and a run's id each."""

    def read():
        return [line.split() for line in (tmp_path / "trained").read_text().splitlines()]

    return read


def is_running(pid):
    """Whether a process is there, and no dead one that nobody has asked after yet."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # a system without /proc, or it has just ended
        return not Path("/proc/self").exists()


def wait_for_end(pid, tmp_path):
    """Until a started process is gone; it has to have returned from `ensure`."""
    wait_until(lambda: not is_running(pid))
    assert (tmp_path / f"done-{pid}").exists(), "ensure failed, see the captured stderr"


def assert_free(runs):
    for run in runs:
        with engine.lock(run, block=False) as held:
            assert held


def checkpoint_version(run):
    try:
        status = (folder_of(run) / "checkpoint.pt").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def wait_for_checkpoints(count, run, pid):
    """Until so many more checkpoints have been seen in place."""
    seen = {checkpoint_version(run)}

    def enough():
        seen.add(checkpoint_version(run))
        return len(seen) > count

    wait_until(enough, lambda: is_running(pid))


@pytest.mark.slow
def test_a_run_killed_again_and_again_equals_one_trained_in_one_go(
    start, trained, tmp_path, in_one_go
):
    kills = [(0, signal.SIGKILL), (1, signal.SIGKILL), (2, signal.SIGTERM), (9, signal.SIGINT)]
    kills += [(4, signal.SIGKILL), (7, signal.SIGINT), (3, signal.SIGTERM), (5, signal.SIGKILL)]
    for count, number in kills:
        pid = start([LONG])
        if count:
            wait_for_checkpoints(count, LONG, pid)
        else:
            wait_until((folder_of(LONG) / "config.json").exists, lambda pid=pid: is_running(pid))
        os.kill(pid, number)
        wait_until(lambda pid=pid: not is_running(pid))
        assert not run_dir.is_finished(folder_of(LONG))
    last = start([LONG])
    wait_for_end(last, tmp_path)
    assert [run_id for _, run_id in trained()] == [LONG.id] * (len(kills) + 1)
    assert not (folder_of(LONG) / "checkpoint.pt").exists()
    assert_equal_to_the_last_bit(LONG, in_one_go(LONG))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["parent killed", "Ctrl-C"])
def test_workers_end_with_their_parent_and_free_the_locks(how, start, trained):
    runs = [replace(LONG, al2=False, epochs=60_000, seed=seed) for seed in (0, 1)]
    parent = start(runs, jobs=2)
    for run in runs:
        wait_until(lambda run=run: checkpoint_version(run) is not None, lambda: is_running(parent))
    workers = {int(pid) for pid, _ in trained()}
    assert len(workers) == 2 and parent not in workers and all(map(is_running, workers))
    if how == "Ctrl-C":
        os.killpg(parent, signal.SIGINT)
    else:
        os.kill(parent, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, {parent, *workers})))
    assert_free(runs)
    for run in runs:
        assert run_dir.load_checkpoint(folder_of(run), run)["rows"]
        assert not run_dir.is_finished(folder_of(run))


@pytest.mark.slow
def test_two_processes_train_each_run_once_and_both_wait_for_all(
    start, trained, tmp_path, in_one_go
):
    runs = [replace(LONG, epochs=12, seed=seed) for seed in range(4)]
    both = [start(runs), start(runs)]
    for pid in both:
        wait_for_end(pid, tmp_path)
    for run in runs:
        assert_equal_to_the_last_bit(run, in_one_go(run))
    assert sorted(run_id for _, run_id in trained()) == sorted(run.id for run in runs)
    assert {int(pid) for pid, _ in trained()} == set(both)


@pytest.mark.slow
def test_a_run_whose_trainer_was_killed_is_taken_over_by_the_process_that_waits(
    start, trained, tmp_path, in_one_go
):
    first = start([LONG])
    wait_for_checkpoints(2, LONG, first)
    second = start([LONG])
    wait_for_checkpoints(10, LONG, first)
    os.kill(first, signal.SIGKILL)
    wait_for_end(second, tmp_path)
    assert trained() == [[str(first), LONG.id], [str(second), LONG.id]]
    assert_equal_to_the_last_bit(LONG, in_one_go(LONG))


@pytest.mark.slow
def test_a_failing_worker_ends_the_others_and_its_error_is_raised():
    runs = [replace(SHORT, epochs=100_000 + k) for k in (3, 2, 1)]  # the longest is taken first
    folder_of(runs[0]).parent.mkdir(parents=True)
    folder_of(runs[0]).write_text("a file where the run's folder has to be")
    with pytest.raises((OSError, run_dir.RecordError), match=runs[0].name):
        store.ensure(runs, jobs=2)
    assert_free(runs)
