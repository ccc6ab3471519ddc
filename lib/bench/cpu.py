"""What `lib.bench` measures on the CPU: the rows of its table, and how a process measures one.

Everything is measured side by side: in each round every row has a slice of time, one after another,
each in processes of its own, so that a machine that drifts hits all rows alike. Ratios are taken
within a round.
"""

import json
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lib import machine, run_dir, trainer
from lib.bench import tables, ways
from lib.bench.tables import HALF, LOADING, OURS
from lib.bench.ways import RUN
from lib.bundle import Bundle
from lib.data import Split
from lib.run import Run, generator
from lib.trainer import TrainStep, make_optimizer, train_epoch

BATCH = RUN.batch_size
IMAGES = 12800  # as many as a slice may want
CALL = 640  # images in one of the trainer's epochs here, so that a slice holds several
PRODUCTS = (256, 512, 1024)  # sides of the matrices that are multiplied; the fastest is the floor
# lite's settings of the AL2 study (notebooks/params/lite.yaml), for what is measured beside the
# training
LITE = Run(
    "mnist",
    n_train=2000,
    n_validation=200,
    epochs=80,
    learning_rate=0.005,
    momentum=0.9,
    al2=True,
    speed=6.15,
    test_images=2000,
    ablations=("element/train-true", "shared/train-true", "channel/train-true", "element/test"),
)
TEST_IMAGES = 10000
EVAL_BATCHES = (100, 500, 2000, 10000)
LADDER = (
    "tensors, channels_last",
    "tensors, channels_last, pool first",
    "tensors, channels_last, pool first, memory kept",
)


@dataclass(frozen=True)
class Row:
    """A way to train, in so many processes of so many threads each.

    `networks` are trained at once, all processes together; `workers` are those of each process's
    DataLoader. `kept` is whether the processes keep freed memory (`machine.keep_memory`).
    """

    part: str
    what: str
    processes: int = 1
    threads: int = 1
    workers: int = 0
    networks: int = 1
    batch: int = BATCH
    kept: bool = False
    size: str = "mnist"

    @property
    def cores(self) -> int:
        """Cores that train; a DataLoader's workers come on top."""
        return self.processes * self.threads


def rows(cores: int, tiny: bool = False) -> list[Row]:
    """What is measured, for a machine of so many cores.

    `tiny`: a row of each kind, on small images.
    """
    apart = {"processes": cores, "networks": cores}
    together = {"threads": cores}
    table = []
    for n in PRODUCTS:
        for p in (cores, 1):
            table.append(Row("floor", f"sgemm {n}", p, networks=p, batch=0, kept=True))
    for workers in range(3):
        for how in (together, apart):
            table.append(Row("DataLoader", "DataLoader", workers=workers, **how))
    table += [Row("DataLoader", "DataLoader")]
    table += [Row("tensors", "tensors", **how) for how in (together, apart, {})]
    table += [Row("tensors", name, **apart, kept="memory kept" in name) for name in LADDER]
    table += [Row("ours", name, **apart, kept=True) for name in ("ours, bare", OURS, HALF)]
    table += [Row("ours", OURS, kept=True)]
    for batch in (32, 128, 256):
        table.append(Row("ours", OURS, **apart, batch=batch, kept=True))
        table.append(Row("DataLoader", "DataLoader", **apart, batch=batch))
    if tiny:
        small = [replace(row, size="tiny", batch=min(row.batch, 8)) for row in table]
        kinds = {(row.part, row.kept, row.processes): row for row in reversed(small)}
        table = list(kinds.values())[::-1]
    return list(dict.fromkeys(table))


def measure(
    cores: int, seconds: float, rounds: int, folder: Path, tiny: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table and the profiles: every row in every round, and what is done beside the training.

    Args:
        seconds: of a row, over all rounds.
        folder: where a checkpoint can be written, to time it.
    """
    todo = rows(cores, tiny)
    rates: dict[Row, list[float]] = {row: [] for row in todo}
    beside: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        begun = time.monotonic()
        for row in todo:
            rates[row].append(sum(call(row.kept, row.processes, rate, row, seconds / rounds)))
        # in every other round alone: they take long
        found = call(True, cores, costs, folder, tiny) if number % 2 == 0 else [{}]
        for name in found[0]:
            beside[name].append(sum(one[name] for one in found) / cores)
        passed = time.monotonic() - begun
        print(f"round {number + 1} of {rounds}: {len(todo)} rows, {passed:.0f} s", flush=True)
    side = ways.SIDES[todo[0].size]
    model = trainer.build_network(RUN, 1, side, ways.CLASSES)
    layers = ways.arithmetic(model, (1, side, side))
    flop = sum(map(sum, layers.values()))
    parts = [tables.derive(rates, flop), tables.turns(rates, flop), beside_training(beside)]
    for name, counts in layers.items():
        for way, count in zip(("forward", "backward"), counts, strict=True):
            about = {"part": "arithmetic", "what": f"{name}, {way}"}
            parts.append(tables.tidy(about, [count / 1e6], "MFLOP/image"))
    return pd.concat(parts, ignore_index=True)[tables.COLUMNS], profiles(todo[0].size)


def profiles(size: str) -> pd.DataFrame:
    """The operators of a step before and after, on one thread."""
    table = []
    for what in ("DataLoader", "tensors", OURS, HALF):
        part = what if what in tables.PARTS else "ours"
        batch = BATCH if size == "mnist" else 8
        row = Row(part, what, batch=batch, kept=part == "ours", size=size)
        (found,) = call(row.kept, 1, profiled, row, 2 if part == "ours" else 20)
        table += [{"step": what, "operator": name, "ms": ms} for name, ms in found.items()]
    return pd.DataFrame(table)


def beside_training(beside: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """What is done beside the training: milliseconds, and a share of a mean epoch of `LITE`.

    A checkpoint is set against the time between two of them. Evaluation in batches of a size is one
    pass over the test set.
    """
    points = len(LITE.table_epochs()) / LITE.epochs
    often = {"evaluation of a curve": 1 - points, "evaluation on all images": points}
    often |= {"ablation": points}
    parts = []
    for name, found in beside.items():
        about = {"part": "beside", "what": name}
        if name.startswith("batches of "):
            about = {"part": "evaluation", "what": "all test images"}
            about |= {"batch": int(name.removeprefix("batches of "))}
        parts.append(tables.tidy(about, found, "ms"))
        if name in often:
            share = tables.ratios(found, beside["training"], 100 * often[name])
            parts.append(tables.tidy(about, share, "% of training"))
        elif name == "checkpoint":
            share = [100 * ms / 1000 / trainer.CHECKPOINT_SECONDS for ms in found]
            parts.append(tables.tidy(about, share, "% of the time between two"))
    return pd.concat(parts, ignore_index=True)


# ---- in a process of its own


def call(kept: bool, n: int, function: Callable, *arguments) -> list:
    """What n new processes answer that call a function of this module.

    They begin together, and each times itself.

    New ones each time: what a loop leaves behind in a process (the C library's thresholds, threads,
    compiled kernels) would speed up the next. They are forked from a server that has imported
    everything, in a fraction of a second.

    Args:
        kept: whether they keep freed memory, see `machine.keep_memory`.

    Raises:
        RuntimeError: if a process fails; with its message.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lib.bench.cpu"])
    barrier = context.Barrier(n)
    pipes = []
    started = []
    try:
        for _ in range(n):
            mine, theirs = context.Pipe()
            pipes.append(mine)
            told = (theirs, barrier, kept, function, arguments)
            # no daemon: a DataLoader's workers are children of it
            started.append(context.Process(target=answer, args=told))
            started[-1].start()
            theirs.close()
        answers = [pipe.recv() for pipe in pipes]
    except EOFError as problem:  # killed, perhaps, for memory
        what = f"{function.__name__}{arguments}"
        raise RuntimeError(f"a measuring process ended during {what}") from problem
    finally:
        for process, pipe in zip(started, pipes, strict=False):
            process.join(timeout=5)
            process.terminate()
            pipe.close()
    if problems := [problem for _, problem in answers if problem]:
        raise RuntimeError(f"{function.__name__}{arguments} failed: {'; '.join(problems)}")
    return [value for value, _ in answers]


def answer(pipe, barrier, kept: bool, function: Callable, arguments: tuple) -> None:
    """A measuring process: calls a function of this module.

    It sends what the function gives, or what went wrong.
    """
    # a DataLoader starts its workers as it would in anybody's script
    multiprocessing.set_start_method(None, force=True)
    if kept:
        machine.keep_memory()
    try:
        pipe.send((function(lambda: barrier.wait(timeout=120), *arguments), ""))
    except Exception as problem:  # the parent raises it
        barrier.abort()
        pipe.send((None, f"{type(problem).__name__}: {problem}"))


def data(size: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, S, S] and labels int64 [N] of a size."""
    return ways.pixels(ways.SIDES[size], IMAGES if size == "mnist" else 96)


def workload(row: Row) -> Iterator[float]:
    """Train in a row's way.

    After each call of `next` what it has done: images × networks, or operations of sgemm.
    """
    drawn, labels = data(row.size)
    if row.part == "floor":
        n = int(row.what.split()[-1])
        a, b, product = (torch.randn(n, n) for _ in range(3))
        while True:
            torch.mm(a, b, out=product)
            yield 2.0 * n**3
    elif row.part == "ours":
        count = min(CALL, len(labels)) // row.batch * row.batch
        run = replace(RUN, al2=row.what != "ours, bare", batch_size=row.batch)
        precision = "bfloat16" if row.what == HALF else "float32"
        steps = ways.ours(run, ways.as_tensor(drawn[:count]), labels[:count], precision)
        while True:
            train_epoch(steps, 1, ways.LAMBDA * run.al2)
            yield count
    else:
        model = ways.plain_network(RUN, drawn.shape[-1], pool_first="pool first" in row.what)
        if "channels_last" in row.what:
            model = model.to(memory_format=torch.channels_last)
        images = drawn if row.part == "DataLoader" else ways.as_tensor(drawn)
        while True:
            for _ in ways.train(model, RUN, batches(row, images, labels)):
                yield row.batch


def batches(row: Row, images: Tensor, labels: Tensor):
    """An epoch's batches of a plain loop, in the order of the trainer's first epoch."""
    order = torch.randperm(len(labels), generator=generator(RUN.seed, "order", 1))
    order = order[: len(order) // row.batch * row.batch]  # full batches alone: each counts the same
    if row.part == "DataLoader":
        return ways.loaded(ways.Images(images, labels), order.tolist(), row.batch, row.workers)
    return ways.indexed(images, labels, order, row.batch)


def rate(start: Callable[[], object], row: Row, seconds: float) -> float:
    """What a row does in a second in this process: images × networks, or operations.

    `start` waits for the others.
    """
    torch.set_num_threads(row.threads)
    with closing(workload(row)) as work:
        # first steps; the batches that workers had ready
        for _ in range(1 if row.part == "ours" else 2 * row.workers + 5):
            next(work)
        start()
        done = 0.0
        begin = time.perf_counter()
        while (passed := time.perf_counter() - begin) < seconds or not done:
            done += next(work)
        return done / passed


def costs(start: Callable[[], object], folder: Path, tiny: bool) -> dict[str, float]:
    """Milliseconds of an epoch at lite's settings, and of what is done beside the training.

    Evaluation by batch size. Each once; the folder is where a checkpoint is written to (and
    deleted).
    """
    torch.set_num_threads(1)
    counts = (40, 8, 48) if tiny else (LITE.n_train, LITE.n_validation, TEST_IMAGES)
    drawn, labels = data("tiny" if tiny else "mnist")
    images = ways.as_tensor(drawn).contiguous(memory_format=torch.channels_last)
    run = replace(LITE, n_train=counts[0], test_images=counts[0])
    train, validation, test = (Split(images[:n], labels[:n]) for n in counts)
    empty = Split(images[:0], labels[:0])
    task = Bundle(train, train.labels, validation, empty, test, ways.CLASSES, {})
    model = trainer.build_network(run, *task.shape).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(run, model)
    steps = TrainStep(model, optimizer, task, run)
    arrays: dict[str, list[Tensor]] = {}
    point = run.table_epochs()[0]
    found = {}

    def timed(name: str, work: Callable):
        begin = time.perf_counter()
        value = work()
        found[name] = 1000 * (time.perf_counter() - begin)
        return value

    start()
    train_epoch(steps, 1, ways.LAMBDA)
    row = {"epoch": 1} | timed("training", lambda: train_epoch(steps, 2, ways.LAMBDA))
    row |= timed("evaluation of a curve", lambda: trainer.evaluate(model, task, run, full=False))
    timed("evaluation on all images", lambda: trainer.evaluate(model, task, run, full=True))
    row |= timed("ablation", lambda: trainer.measure(model, task, run, point, arrays, {}))
    state = {"id": run.id, "measured": json.dumps(run.measured()), "starts": {}, "seconds": 0.0}
    state |= {"device": "cpu", "rows": [row] * run.epochs}
    state |= {"arrays": {name: values * 7 for name, values in arrays.items()}}
    with tempfile.TemporaryDirectory(dir=folder) as inside:

        def save() -> None:
            state["model"] = model.state_dict()
            state["optimizer"] = optimizer.state_dict()
            run_dir.save_checkpoint(Path(inside), state)

        timed("checkpoint", save)
    model.eval()
    with torch.no_grad():
        for size in (16, 48) if tiny else EVAL_BATCHES:
            parts = test.images.split(size)
            timed(f"batches of {size}", lambda parts=parts: [model(x) for x in parts])
    return found


def profiled(start: Callable[[], object], row: Row, calls: int) -> dict[str, float]:
    """Milliseconds of the processor that each operator takes in a step of a row.

    Its callees are apart, on one thread. What happens inside the DataLoader is one entry, and so is
    the time between operators: Python's, and the profiler's own.
    """
    torch.set_num_threads(row.threads)
    with closing(workload(row)) as work:
        for _ in range(3):
            next(work)
        start()
        begin = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU]) as kept:
            done = sum(next(work) for _ in range(calls))
            wall = 1000 * (time.perf_counter() - begin)
    steps = done / row.batch
    found = defaultdict(float)
    for event in kept.events():
        names = [event.name]
        parent = event.cpu_parent
        while parent is not None:
            names.append(parent.name)
            parent = parent.cpu_parent
        loading = any(name.startswith("enumerate(DataLoader)") for name in names)
        found[LOADING if loading else event.name] += event.self_cpu_time_total / 1000 / steps
    found["between operators"] = wall / steps - sum(found.values())
    return dict(sorted(found.items(), key=lambda item: -item[1]))
