"""What `lib.bench` measures on the CPU: the rows of its table.

And what a process does to measure one of them.

Images and labels are random: how long a step takes does not depend on what is in them. Nothing has
to be downloaded.
"""

import json
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lib import machine, run_dir, trainer
from lib.bench import gpu_rows as bench_rows
from lib.bench import plain as bench_plain
from lib.bench.gpu_rows import SHAPES
from lib.bench.stacked import WAYS
from lib.bundle import Bundle
from lib.data import Split
from lib.run import Run, generator
from lib.trainer import TrainStep, make_optimizer, train_epoch

CPU = torch.device("cpu")
RUN = Run("mnist")  # the bare network of the AL2 study: batch 64, learning rate 0.001
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
HALF = "ours, AL2, bfloat16"
LOADING = "DataLoader and transforms"


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
    shape: str = "mnist"

    @property
    def cores(self) -> int:
        """Cores that train; a DataLoader's workers come on top."""
        return self.processes * self.threads


def rows(cores: int, tiny: bool = False) -> list[Row]:
    """What is measured, for a machine of so many cores.

    `tiny`: the same kinds of rows, few and on small images.
    """
    apart = {"processes": cores, "networks": cores}
    together = {"threads": cores}
    table = [
        Row("floor", f"sgemm {n}", p, networks=p, batch=0, kept=True)
        for n in PRODUCTS
        for p in (cores, 1)
    ]
    table += [
        Row("DataLoader", "DataLoader", workers=w, **how)
        for w in range(3)
        for how in (together, apart)
    ]
    table += [
        Row("DataLoader", "DataLoader"),
        *(Row("tensors", "tensors", **how) for how in (together, apart, {})),
    ]
    table += [Row("tensors", name, **apart, kept="memory kept" in name) for name in LADDER]
    for k in (2, 4):
        # the recipe as it stands in tutorials
        table.append(Row("stacked", "vmap", threads=cores, networks=k))
        table += [Row("stacked", way, cores, networks=k * cores, kept=True) for way in WAYS]
    table += [
        Row("ours", "ours, bare", **apart, kept=True),
        Row("ours", "ours, AL2", **apart, kept=True),
    ]
    table += [Row("ours", HALF, **apart, kept=True), Row("ours", "ours, AL2", kept=True)]
    for batch in (32, 128, 256):
        table += [
            Row("ours", "ours, AL2", **apart, batch=batch, kept=True),
            Row("DataLoader", "DataLoader", **apart, batch=batch),
        ]
    if tiny:
        small = [
            replace(row, shape="tiny", batch=min(row.batch, 8))
            for row in table
            if row.networks <= 2 * cores
        ]
        table = list(
            {(row.part, row.kept, row.processes): row for row in reversed(small)}.values()
        )[::-1]
    return list(dict.fromkeys(table))


def pixels(shape: str) -> tuple[Tensor, Tensor]:
    """Random images uint8 [N, S, S] and labels int64 [N]."""
    _, size, classes = SHAPES[shape]
    source = torch.Generator().manual_seed(0)
    count = IMAGES if shape == "mnist" else 96
    drawn = torch.randint(256, (count, size, size), generator=source, dtype=torch.uint8)
    return drawn, torch.randint(classes, (count,), generator=source)


def in_memory(shape: str) -> tuple[Tensor, Tensor]:
    """The same as tensors: float [N, 1, S, S] and int64 [N]."""
    drawn, labels = pixels(shape)
    return bench_plain.as_tensor(drawn), labels


def workload(row: Row) -> Iterator[float]:
    """Train in a row's way.

    After each call of `next` what it has done: images × networks, or operations of sgemm.
    """
    _, size, classes = SHAPES[row.shape]
    if row.part == "floor":
        n = int(row.what.split()[-1])
        a, b, product = (torch.randn(n, n) for _ in range(3))
        while True:
            torch.mm(a, b, out=product)
            yield 2.0 * n**3
    elif row.part == "ours":
        images, labels = (
            values[: CALL // row.batch * row.batch] for values in in_memory(row.shape)
        )
        run = replace(RUN, al2="AL2" in row.what, batch_size=row.batch)
        precision = "bfloat16" if row.what == HALF else "float32"
        _, epoch = bench_rows.trained(run, images, labels, classes, precision)
        while True:
            epoch()
            yield len(labels)
    elif row.part == "stacked":
        several = [
            replace(RUN, al2=True, seed=seed) for seed in range(row.networks // row.processes)
        ]
        asked = bench_rows.Row("al2", row.what, bench_rows.stacked, len(several), shape=row.shape)
        stack = bench_rows.stacked(asked, CPU, len(in_memory(row.shape)[1]), several=several)
        while True:
            stack.advance()
            yield row.batch * len(several)
    else:
        model = bench_plain.network(RUN, size, classes, pool_first="pool first" in row.what)
        model = (
            model.to(memory_format=torch.channels_last) if "channels_last" in row.what else model
        )
        while True:
            for _ in bench_plain.train(model, RUN, batches(row)):
                yield row.batch


def batches(row: Row):
    """An epoch's batches of a plain loop, in the order of the trainer's first epoch."""
    images, labels = pixels(row.shape) if row.part == "DataLoader" else in_memory(row.shape)
    order = torch.randperm(len(labels), generator=generator(RUN.seed, "order", 1))
    order = order[: len(order) // row.batch * row.batch]  # full batches alone: each counts the same
    if row.part == "DataLoader":
        return bench_plain.loaded(
            bench_plain.Images(images, labels), order.tolist(), row.batch, row.workers
        )
    return bench_plain.indexed(images, labels, order, row.batch)


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

    Evaluation by batch size.

    Each once; the folder is where a checkpoint is written to (and deleted).
    """
    torch.set_num_threads(1)
    counts = (40, 8, 48) if tiny else (LITE.n_train, LITE.n_validation, TEST_IMAGES)
    images, labels = in_memory("tiny" if tiny else "mnist")
    run = replace(LITE, n_train=counts[0], test_images=counts[0])
    splits = [
        Split(images[:n].contiguous(memory_format=torch.channels_last), labels[:n]) for n in counts
    ]
    train, validation, test = splits
    task = Bundle(train, train.labels, validation, Split(images[:0], labels[:0]), test, 10, {})
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
    train_epoch(steps, 1, 0.01)
    row = {"epoch": 1} | timed("training", lambda: train_epoch(steps, 2, 0.01))
    row |= timed("evaluation of a curve", lambda: trainer.evaluate(model, task, run, full=False))
    timed("evaluation on all images", lambda: trainer.evaluate(model, task, run, full=True))
    row |= timed("ablation", lambda: trainer.measure(model, task, run, point, arrays, {}))
    state = {
        "id": run.id,
        "measured": json.dumps(run.measured()),
        "starts": {},
        "seconds": 0.0,
        "device": "cpu",
    }
    state |= {
        "rows": [row] * run.epochs,
        "arrays": {name: values * 7 for name, values in arrays.items()},
    }
    with tempfile.TemporaryDirectory(dir=folder) as inside:

        def save() -> None:
            run_dir.save_checkpoint(
                Path(inside),
                state | {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
            )

        timed("checkpoint", save)
    model.eval()
    with torch.no_grad():
        for size in (16, 48) if tiny else EVAL_BATCHES:
            timed(
                f"batches of {size}", lambda size=size: [model(x) for x in test.images.split(size)]
            )
    return found


def profiled(start: Callable[[], object], row: Row, calls: int) -> dict[str, float]:
    """Milliseconds of the processor that each operator takes in a step of a row.

    Its callees are apart, on one thread.

    What happens inside the DataLoader is one entry, and so is the time between operators: Python's,
    and the profiler's own.
    """
    torch.set_num_threads(row.threads)
    with closing(workload(row)) as work:
        for _ in range(3):
            next(work)
        start()
        done = 0.0
        begin = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU]) as kept:
            for _ in range(calls):
                done += next(work)
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


def arithmetic(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, tuple[float, float]]:
    """Operations of each layer, forward and backward, for one image [C, S, S].

    Multiplications and additions count.

    A layer that maps n values to m with a fan-in of f takes 2·m·f forward. Backward it takes the
    same again for the gradient of its weights, and once more for that of its input, which the first
    layer does not need.
    """
    found: dict[str, tuple[float, float]] = {}

    def count(name: str):
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            forward = 2.0 * output[0].numel() * layer.weight[0].numel()
            found[name] = forward, forward * (2 if found else 1)

        return hook

    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    handles = [layer.register_forward_hook(count(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return found


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
