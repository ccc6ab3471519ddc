"""Trainings by an executor: the standard library's, and Dask with a scheduler and workers that are
processes of their own.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
import types
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from made import image_folder

from lib import engine, losses, paths, progress, run_dir, store, trainer
from lib.run import Run
from lib.study import campaign

SHORT = dict(image_size=16, n_train=100, n_validation=20, test_images=40, epochs=3)
SHORT = Run("digits", **SHORT, learning_rate=0.1, batch_size=32)
TEACHER = replace(SHORT, predictions=True)
STUDENT = replace(SHORT, relabelled_by=TEACHER.id)
FOUR = [replace(SHORT, seed=seed, epochs=150, al2=True) for seed in range(4)]
DEADLINE = 120  # seconds for a state to be reached; a failure, not a measurement


def metrics(run):
    return (store.find(run) / "metrics.csv").read_text()


def test_any_executor_of_the_standard_library_will_do():
    runs = [STUDENT, TEACHER, replace(SHORT, seed=1)]
    with ThreadPoolExecutor(3) as threads:
        store.ensure(runs, executor=threads)
    assert store.available(runs) == runs
    assert not list(paths.results_dir().rglob("progress"))
    assert not list(paths.results_dir().glob(".locks/seen-by-*"))


def test_the_first_error_is_raised_and_says_where_it_was(monkeypatch):
    def fail(*_, **__):
        raise FloatingPointError("in a step")

    monkeypatch.setattr(engine.trainer, "fit", fail)
    with ThreadPoolExecutor(1) as threads, pytest.raises(FloatingPointError) as caught:
        store.ensure([SHORT, replace(SHORT, seed=1)], executor=threads)
    assert "In a training process" in caught.value.__notes__[0]
    assert store.available([SHORT]) == []


def test_a_worker_tells_which_runs_another_process_trains():
    with ThreadPoolExecutor(1) as threads, engine.lock(SHORT, block=False):
        task = engine.Task((SHORT,), "own", None, None, {}, "none", {})
        assert threads.submit(engine.work, task).result().busy == (SHORT,)


def test_a_campaign_waits_for_a_run_that_another_process_trains(monkeypatch):
    asked, work = [], engine.work
    monkeypatch.setattr(engine, "work", lambda task: (asked.append(task.block), work(task))[1])
    with ThreadPoolExecutor(1) as threads, ThreadPoolExecutor(1) as beside:
        with engine.lock(SHORT, block=False):
            training = beside.submit(store.ensure, [SHORT], executor=threads)
            until(lambda: asked == [False, True] or training.done())
        training.result(timeout=DEADLINE)
    assert asked == [False, True] and store.available([SHORT]) == [SHORT]


def test_a_deadline_reaches_workers_and_they_ask_again_whether_a_run_may_begin():
    runs = [SHORT, replace(SHORT, seed=1)]
    with ThreadPoolExecutor(1) as threads:
        store.ensure(runs, executor=threads, deadline=0.0, may_begin=lambda *_: True)
        left = [run.epochs - 1 for run in runs]  # an epoch each, and a checkpoint
        assert [store.epochs_left(run) for run in runs] == left
        asked = []

        def once(run, *_):
            asked.append(run.id)
            return asked.count(run.id) == 1

        store.ensure(runs, executor=threads, deadline=time.monotonic() + 1e6, may_begin=once)
        assert [store.epochs_left(run) for run in runs] == left and len(asked) == 4


def test_the_first_error_cancels_what_has_not_begun():
    made = []

    class FirstFails(Executor):
        def submit(self, function, task):
            made.append(Future())
            if len(made) == 1:
                made[0].set_exception(FloatingPointError("in a step"))
            return made[-1]

    with pytest.raises(FloatingPointError):
        store.ensure([replace(SHORT, seed=seed) for seed in range(3)], executor=FirstFails())
    assert [future.cancelled() for future in made] == [False, True, True]


def test_how_far_a_worker_is_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(progress.Progress, "at", lambda self, run, epoch: told.append(epoch))
    fit = trainer.fit

    def until_told(*arguments, callback, **more):
        def after(run, model, epoch):
            callback(run, model, epoch)
            until(lambda: epoch in told)

        return fit(*arguments, callback=after, **more)

    monkeypatch.setattr(trainer, "fit", until_told)
    with ThreadPoolExecutor(1) as threads:
        store.ensure([SHORT], executor=threads)
    assert set(range(1, SHORT.epochs + 1)) <= set(told)


def test_a_training_process_that_is_killed_is_said():
    ended = pytest.raises(RuntimeError, match=r"ended from outside .*run again")
    with ended, engine.processes(1) as pool:
        pool.submit(os._exit, 1).result(timeout=DEADLINE)


ANOTHER_S = rf"{SHORT.id} cannot be locked \(Permission denied\): it is another user's; .*chmod"


@pytest.mark.parametrize(
    ("problem", "kind", "said"),
    [
        (NotImplementedError("no flock"), OSError, "cannot be locked .*set RESULTS_DIR"),
        (PermissionError(errno.EACCES, "Permission denied"), PermissionError, ANOTHER_S),
    ],
    ids=["a file system without locks", "another user's lock"],
)
def test_where_files_cannot_be_locked_it_is_said(problem, kind, said, monkeypatch):
    def refuse(self, **_):
        raise problem

    monkeypatch.setattr(engine.FileLock, "acquire", refuse)
    with pytest.raises(kind, match=said):
        store.ensure([SHORT])


def test_a_worker_that_does_not_share_the_results_sends_them_back(monkeypatch, tmp_path):
    """Teachers go the other way: it could not relabel without them."""
    store.ensure([TEACHER, STUDENT], profile="alone")
    expected = metrics(STUDENT)
    (paths.results_dir() / "alone").rename(tmp_path / "kept")
    own = paths.results_dir()

    class Elsewhere(ThreadPoolExecutor):
        """Its worker has a results folder of its own."""

        def submit(self, function, task):
            def there():
                monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "elsewhere"))
                try:
                    return function(task)
                finally:
                    monkeypatch.setenv("RESULTS_DIR", str(own))

            future = super().submit(there)
            future.exception()  # one at a time: the environment is the whole process's
            return future

    with Elsewhere(1) as executor:
        store.ensure([TEACHER, STUDENT], executor=executor)
    assert store.find(STUDENT).is_relative_to(own) and metrics(STUDENT) == expected
    assert (tmp_path / "elsewhere" / "own" / "digits" / STUDENT.name / "metrics.csv").exists()
    # under another profile's name the worker has the teacher already, and keeps one folder of it
    shutil.rmtree(store.find(STUDENT))
    (store.find(TEACHER).parent.parent).rename(own / "second")
    with Elsewhere(1) as executor:
        store.ensure([TEACHER, STUDENT], profile="second", executor=executor)
    assert metrics(STUDENT) == expected


def test_a_run_sent_over_an_older_record_of_it_is_whole_or_unfinished(tmp_path, monkeypatch):
    old = {"metrics.csv": b"old", "env.json": b"old", "status.json": b"{}", "checkpoint.pt": b"0"}
    new = {"metrics.csv": b"new", "env.json": b"new", "measures.npz": b"new"}
    engine._write_files(tmp_path / "run", old)
    seen, move = [], os.replace

    def watched(source, target):
        move(source, target)
        seen.append(run_dir.is_finished(tmp_path / "run"))

    monkeypatch.setattr(os, "replace", watched)
    engine._write_files(tmp_path / "run", new)
    assert seen == [False, False, True]
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == new
    engine._write_files(tmp_path / "run", new)  # another worker may be reading it
    assert len(seen) == 3


# ---- GPUs


@pytest.fixture
def two_gpus(monkeypatch):
    """A stand-in: what this process asks of two GPUs, of 80 and 24 GB. Its workers have the CPU."""
    monkeypatch.setattr(trainer, "default_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    memory = [80 << 30, 24 << 30]
    properties = lambda k: types.SimpleNamespace(total_memory=memory[k])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("device", "visible", "names", "jobs"),
    [
        ("cuda", None, ["0", "1"], 6),
        ("cuda", "5,7", ["5", "7"], 6),
        ("cuda:0", "5,7", ["5"], 16),
        ("cpu", None, [], None),
    ],
)
def test_gpus_have_the_names_that_are_visible_and_jobs_by_the_smallest_one_s_memory(
    device, visible, names, jobs, two_gpus, monkeypatch
):
    monkeypatch.setattr(trainer, "default_device", lambda: device)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert engine.gpus() == names
    assert engine.default_jobs() == (jobs or len(os.sched_getaffinity(0)))


def test_gpus_share_the_runs_evenly_and_each_has_at_most_jobs_at_a_time(two_gpus, monkeypatch):
    asked = []

    @contextlib.contextmanager
    def processes(number, gpus):
        asked.append((number, gpus))
        yield None

    monkeypatch.setattr(engine, "processes", processes)
    monkeypatch.setattr(engine, "by", lambda _, groups, *__, **___: asked.append(groups))
    five = [replace(SHORT, seed=seed) for seed in range(5)]
    store.ensure(five, jobs=16)
    store.ensure(five, jobs=2)
    sizes = [[len(group) for group in groups] for groups in asked[1::2]]
    assert sizes == [[3, 2], [2, 2, 1]] and asked[::2] == [(2, ["0", "1"])] * 2


def seen_by_a_worker(folder):
    """The GPUs that a worker sees, once two of them are at work."""
    (folder / str(os.getpid())).touch()
    until(lambda: len(list(folder.iterdir())) == 2)
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.slow
def test_a_process_each_sees_one_gpu_and_trains_its_runs(two_gpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    (tmp_path / "workers").mkdir()
    with engine.processes(2, engine.gpus()) as pool:
        seen = pool.map(seen_by_a_worker, [tmp_path / "workers"] * 2, timeout=DEADLINE)
        assert sorted(seen) == ["5", "7"]
    three = [replace(SHORT, seed=seed) for seed in range(3)]
    store.ensure(three, jobs=16)
    assert store.available(three) == three


# ---- Dask


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Starts workers of one scheduler: cluster(name, **environment) gives a worker's process."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "often.py").write_text("from lib import trainer\ntrainer.CHECKPOINT_SECONDS = -1\n")
    said = folder / "scheduler.json"
    environment = os.environ | {"PYTHONPATH": f"{paths.ROOT}{os.pathsep}{folder}"}
    environment.pop("PRECISION", None)
    started = []

    def start(kind, *arguments, **more):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
        command += ["--no-dashboard"]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(subprocess.Popen(command, env=environment | more, cwd=folder, **quiet))
        return started[-1]

    start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(said))
    until(lambda: said.exists() and said.read_text().endswith("}"))
    address = json.loads(said.read_text())["address"]

    def worker(name, **more):
        options = ["--nthreads", "1", "--no-nanny", "--name", name, "--preload", "often"]
        # the test's, which are not yet set where this module's fixture begins
        own = {name: os.environ[name] for name in ("RESULTS_DIR", "CACHE_DIR", "DEVICE")}
        return start("worker", address, *options, **own | more)

    worker.address = address
    worker.folder = folder
    yield worker
    for process in started:
        process.kill()
        process.wait()


@contextlib.contextmanager
def at_work(cluster, *names, **more):
    """Workers of these names, and the executor."""
    processes = [cluster(name, **more) for name in names]
    executor = campaign.scheduler(cluster.address)
    try:
        until(lambda: len(executor._client.scheduler_info()["workers"]) == len(names))
        yield processes, executor
    finally:
        executor._client.close()
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def workers(cluster):
    """Two workers that share the results folder, and the executor."""
    with at_work(cluster, "one", "two") as both:
        yield both


def until(reached):
    end = time.monotonic() + DEADLINE
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing_and_nothing_is_trained_twice(
    workers, tmp_path, monkeypatch
):
    both, executor = workers
    own = paths.results_dir()
    with ThreadPoolExecutor(1) as beside:
        training = beside.submit(store.ensure, FOUR, executor=executor)
        until(lambda: list(own.rglob("checkpoint.pt")))
        both[0].kill()
        training.result(timeout=DEADLINE)
    assert store.available(FOUR) == FOUR
    found = [metrics(run) for run in FOUR]
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "alone"))
    store.ensure(FOUR)
    assert found == [metrics(run) for run in FOUR]


@pytest.mark.slow
def test_two_campaigns_on_one_store_train_each_run_once(workers):
    _, executor = workers
    with ThreadPoolExecutor(2) as beside:
        asked = [beside.submit(store.ensure, FOUR, executor=e) for e in (executor, None)]
        for training in asked:
            training.result(timeout=DEADLINE)
    assert store.available(FOUR) == FOUR and len(list(paths.results_dir().glob("own/*/*"))) == 4


@pytest.mark.slow
def test_a_penalty_of_one_s_own_is_trained_by_workers(workers, cluster, monkeypatch):
    (cluster.folder / "mine.py").write_text(
        "from lib.losses import ActivationL2\n\n\nclass Mine(ActivationL2):\n    metric = 'mine'\n"
    )
    monkeypatch.syspath_prepend(str(cluster.folder))
    from mine import Mine

    monkeypatch.setitem(losses.PENALTIES, "mine", Mine)
    run = replace(SHORT, penalties=({"name": "mine", "layer": "trunk"},))
    store.ensure([run], executor=workers[1])
    assert store.available([run]) == [run]


@pytest.mark.slow
def test_a_worker_without_the_data_set_says_so(cluster, tmp_path, monkeypatch):
    here, nothing = tmp_path / "here", tmp_path / "nothing"
    image_folder(here / "my_pictures", "a", "b")
    monkeypatch.setenv("DATA_DIR", str(here))
    run = Run("my_pictures", epochs=2, batch_size=4)
    poor = {"DATA_DIR": str(nothing), "CACHE_DIR": str(nothing)}
    with at_work(cluster, "poor", **poor) as (_, executor):
        with pytest.raises(ValueError, match="unknown data set 'my_pictures'") as caught:
            store.ensure([run], executor=executor)
        assert "In a training process" in caught.value.__notes__[0]
        assert run_dir.find(run.dataset, run.id) is None


def test_a_scheduler_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(campaign, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ValueError, match=r"answers at tcp://127.0.0.1:1 .*dask worker"):
        campaign.scheduler("tcp://127.0.0.1:1")


def test_without_the_package_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match="pip install distributed"):
        campaign.scheduler("tcp://127.0.0.1:1")
