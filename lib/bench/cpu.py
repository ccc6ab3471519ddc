"""What `lib.bench` measures on the CPU: the rows of its table, and how a process measures one.

Everything is measured side by side: in each round every row has a slice of time, one after another,
each in processes of its own, so that a machine that drifts hits all rows alike. Ratios are taken
within a round.
"""

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib import machine, trainer
from lib.bench import tables, ways
from lib.bench.tables import HALF, LOADING, OURS
from lib.bench.ways import RUN
from lib.run import SPARSITY_NETWORKS, Run, generator
from lib.trainer import train_epoch

BATCH = RUN.batch_size
IMAGES = 12800  # as many as a slice may want
CALL = 640  # images in one of the trainer's epochs here, so that a slice holds several
PRODUCTS = (256, 512, 1024)  # sides of the matrices that are multiplied; the fastest is the floor
PROFILED = 30  # steps
BETWEEN = "between operators"
CONVNET = Run("cifar10", network="convnet_s", learning_rate=1e-6)  # random images teach nothing
# what our rows train
OURS_RUNS = {"ours, bare": RUN, OURS: replace(RUN, al2=True), HALF: replace(RUN, al2=True)}
CONVNETS = {
    f"ours, ConvNet-s {name}": replace(CONVNET, sparsity=sparse, decorrelation=decorrelated)
    for name, (sparse, decorrelated) in SPARSITY_NETWORKS.items()
    if name in ("vanillaNet", "sr3Net")
}
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


def rows(cores: int, tiny: bool = False) -> list[Row]:
    """What is measured on so many cores; `tiny`: a row of each kind, on small images."""
    apart = {"processes": cores, "networks": cores}
    ways_to_share = {"threads": cores}, apart
    table = [Row("floor", f"sgemm {n}", **apart, batch=0, kept=True) for n in PRODUCTS]
    for workers in range(3):
        table += [Row("DataLoader", "DataLoader", workers=workers, **how) for how in ways_to_share]
    table += [Row("tensors", "tensors", **how) for how in ways_to_share]
    table += [Row("tensors", name, **apart, kept="memory kept" in name) for name in LADDER]
    table += [Row("ours", name, **apart, kept=True) for name in ("ours, bare", OURS, HALF)]
    if tiny:
        small = [replace(row, size="tiny", batch=min(row.batch, 8)) for row in table]
        kinds = {(row.part, row.kept, row.processes): row for row in reversed(small)}
        table = list(kinds.values())[::-1]
    return list(dict.fromkeys(table))


def measure(
    cores: int, seconds: float, rounds: int, tiny: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table, every row in every round, of so many seconds over all rounds, and the profiles."""
    todo = rows(cores, tiny)
    rates: dict[Row, list[float]] = {row: [] for row in todo}
    for number in range(rounds):
        begun = time.monotonic()
        for row in todo:
            rates[row].append(sum(call(row.kept, row.processes, rate, row, seconds / rounds)))
        passed = time.monotonic() - begun
        print(f"round {number + 1} of {rounds}: {len(todo)} rows, {passed:.0f} s", flush=True)
    size = todo[0].size
    side = ways.SIDES[size]
    layers = ways.arithmetic(trainer.build_network(RUN, 1, side, ways.CLASSES), (1, side, side))
    parts = [tables.derive(rates, flop=sum(map(sum, layers.values())))]
    for name, counts in layers.items():
        for way, count in zip(("forward", "backward"), counts, strict=True):
            about = {"part": "arithmetic", "what": f"{name}, {way}"}
            parts.append(tables.tidy(about, [count / 1e6], "MFLOP/image"))
    return pd.concat(parts, ignore_index=True)[tables.COLUMNS], profiles(size)


def profiles(size: str) -> pd.DataFrame:
    """The operators of a step before and after, on one thread."""
    table = []
    batch, steps = (BATCH, PROFILED) if size == "mnist" else (8, 2)
    for what in ("DataLoader", "tensors", OURS, HALF, *CONVNETS):
        part = what if what in tables.PARTS else "ours"
        row = Row(part, what, batch=batch, kept=part == "ours", size=size)
        (found,) = call(row.kept, 1, profiled, row, steps)
        table += [{"step": what, "operator": name, "ms": ms} for name, ms in found.items()]
    return pd.DataFrame(table)


# ---- in a process of its own


def call(kept: bool, n: int, function: Callable, *arguments) -> list:
    """What n new processes answer that call a function of this module, all at once.

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
    """A measuring process: sends what the function gives, or what went wrong."""
    # a DataLoader starts its workers as it would in anybody's script
    multiprocessing.set_start_method(None, force=True)
    if kept:
        machine.keep_memory()
    try:
        pipe.send((function(lambda: barrier.wait(timeout=120), *arguments), ""))
    except Exception as problem:  # the parent raises it
        barrier.abort()
        pipe.send((None, f"{type(problem).__name__}: {problem}"))


def workload(
    row: Row, images_a_call: int = CALL, loaded: Callable[[Iterable], Iterable] = iter
) -> Iterator[float]:
    """Train in a row's way, on so many images a call where it is the trainer's.

    Gives what each call has done: images, or operations of sgemm. `loaded` may watch a DataLoader.
    """
    drawn, labels = ways.pixels(ways.SIDES[row.size], IMAGES if row.size == "mnist" else 96)
    if row.part == "floor":
        n = int(row.what.split()[-1])
        a, b, product = (torch.randn(n, n) for _ in range(3))
        while True:
            torch.mm(a, b, out=product)
            yield 2.0 * n**3
    elif row.part == "ours":
        count = min(images_a_call, len(labels)) // row.batch * row.batch
        run = replace((OURS_RUNS | CONVNETS)[row.what], batch_size=row.batch)
        precision = "bfloat16" if row.what == HALF else "float32"
        images = ways.as_tensor(drawn[:count])
        if row.what in CONVNETS:
            images = torch.rand(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        steps = ways.ours(run, images, labels[:count], precision)
        while True:
            train_epoch(steps, 1, ways.LAMBDA * run.al2)
            yield count
    else:
        model = ways.plain_network(RUN, drawn.shape[-1], pool_first="pool first" in row.what)
        if "channels_last" in row.what:
            model = model.to(memory_format=torch.channels_last)
        images = drawn if row.part == "DataLoader" else ways.as_tensor(drawn)
        watched = loaded if row.part == "DataLoader" else iter
        while True:
            for _ in ways.train(model, RUN, watched(batches(row, images, labels))):
                yield row.batch


def batches(row: Row, images: Tensor, labels: Tensor):
    """An epoch's batches of a plain loop, in the order of the trainer's first epoch."""
    order = torch.randperm(len(labels), generator=generator(RUN.seed, "order", 1))
    order = order[: len(order) // row.batch * row.batch]  # full batches alone: each counts the same
    if row.part == "DataLoader":
        return ways.loaded(ways.Images(images, labels), order.tolist(), row.batch, row.workers)
    return ways.indexed(images, labels, order, row.batch)


def rate(start: Callable[[], object], row: Row, seconds: float) -> float:
    """What a row does in a second in this process; `start` waits for the others."""
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


class Operators(TorchDispatchMode):
    """The processor's milliseconds by operator, of this thread, while it is entered.

    Waiting for other programs does not count; a cache shared with them does. An operator counts
    with all that it calls; what happens inside the DataLoader is one entry.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ms: Counter[str] = Counter()
        self.loading = False

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if self.loading:
            return operator(*args, **(kwargs or {}))
        begin = time.thread_time()
        result = operator(*args, **(kwargs or {}))
        self.ms[operator._schema.name] += 1000 * (time.thread_time() - begin)
        return result

    def loaded(self, loader: Iterable) -> Iterator:
        """What a loader gives."""
        batches = iter(loader)
        while True:
            begin = time.thread_time()
            self.loading = True
            batch = next(batches, None)
            self.loading = False
            self.ms[LOADING] += 1000 * (time.thread_time() - begin)
            if batch is None:
                return
            yield batch


def profiled(start: Callable[[], object], row: Row, steps: int) -> dict[str, float]:
    """Milliseconds of the processor by operator in a step of a row, on one thread: the medians.

    The time between operators is one entry: Python's, and that of measuring.
    """
    torch.set_num_threads(row.threads)
    operators = Operators()
    seen = []
    with closing(workload(row, row.batch, operators.loaded)) as work, operators:
        for _ in range(3):
            next(work)
        start()
        for _ in range(steps):
            operators.ms.clear()
            begin = time.thread_time()
            next(work)
            whole = 1000 * (time.thread_time() - begin)
            seen.append(operators.ms | {BETWEEN: whole - operators.ms.total()})
    return pd.DataFrame(seen).fillna(0.0).median().sort_values(ascending=False).to_dict()
