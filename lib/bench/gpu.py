"""How fast the trainer is on a GPU: beside plain loops, and beside the GPU's own matrix product.

Called by `python -m lib.bench --device cuda`. Images are random, of the sets' shapes. Part `floor`
is a large matrix product in each precision. Part `al2` is networks of the AL2 study: one by a plain
loop with PyTorch's own settings (a DataLoader with several numbers of workers, of which the best
counts, and tensors that lie on the GPU), then ours side by side. Part `sparsity` is ours of size
xxl, without and with the penalties of sr3Net. `study_minutes` takes all 96 AL2 networks at the
row's rate, 938 steps an epoch. A row is written as soon as it is measured. What fails (memory,
time) is a row that says why.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lib import trainer
from lib.bench import record, ways
from lib.run import SPARSITY_NETWORKS, Run

STUDY_STEPS = 96 * 700 * 938  # networks × epochs × steps of 60,000 images
SLICES = 7
LIMIT = 540.0  # seconds for everything; rows that come later are not run
TOGETHER = (1, 8, 16, 32)
WORKERS = (0, 4, 8)
COLUMNS = (
    "part name k precision ms_per_step spread_% network_steps_per_s study_minutes "
    "×_best_DataLoader share_of_floor_% penalty_overhead_% tflops peak_memory_gb problem"
).split()
VARIANTS = [
    kind | {"al2": al2}
    for kind in ({}, {"weight_decay": 5e-4}, {"dropout": 0.5}, {"batch_norm": True})
    for al2 in (False, True)
]  # of the study


@dataclass(frozen=True)
class Row:
    """One thing to measure: k networks of a name, in a precision."""

    part: str
    name: str
    k: int = 1
    precision: str = "float32"


@dataclass
class Workload:
    """A function, and of how many operations a call of it is, a step of each network."""

    advance: Callable[[], object]
    flop: float


def rows(tiny: bool = False) -> list[Row]:
    """What is measured, in this order."""
    loops = [f"DataLoader, {workers} workers" for workers in ((0,) if tiny else WORKERS)]
    ours = [("al2", "ours", k) for k in ((2,) if tiny else TOGETHER)]
    ours += [("sparsity", "vanillaNet", 1), ("sparsity", "sr3Net", 1)]
    table = [Row("floor", "matrix product", precision=name) for name in trainer.PRECISIONS]
    table += [Row("al2", loop) for loop in (*loops, "tensors")]
    return table + [Row(*row, name) for row in ours for name in trainer.PRECISIONS]


def measure(
    device: torch.device, seconds: float, path: Path, tiny: bool = False, limit: float = LIMIT
) -> None:
    """Every row, of at most so many seconds each, into a table that is written row by row."""
    begun = time.monotonic()
    todo = rows(tiny)
    done = []
    for number, row in enumerate(todo):
        left = limit - (time.monotonic() - begun)
        share = min(seconds, max(left, 0) / (len(todo) - number))
        try:
            if left < 3:
                raise TimeoutError(f"not run: the time limit of {limit:.0f} s was reached")
            with trainer.reproducible(device, row.precision):
                found = timed(row, device, share, tiny)
        except Exception as problem:  # whatever it is, it is this row's result
            found = {"problem": " ".join(f"{type(problem).__name__}: {problem}".split())[:300]}
        done.append(asdict(row) | found)
        record.write(derived(pd.DataFrame(done).reindex(columns=COLUMNS)), path, digits=5)
        print(f"{row.part} {row.name} {row.k} {row.precision}", found, flush=True)


def timed(row: Row, device: torch.device, seconds: float, tiny: bool) -> dict[str, float]:
    """Milliseconds a step, the median of `SLICES` slices, with their range; memory and work."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    work = WORKLOADS[row.part](row, device, tiny)
    took(work, trainer.WARM_UP + 2, device)  # a recorded step is among them
    calls = 1
    for _ in range(3):  # each says better how many calls fill a slice
        calls = max(1, int(calls * seconds / SLICES / took(work, calls, device)))
    times = [1000 * took(work, calls, device) / calls for _ in range(SLICES)]
    ms = statistics.median(times)
    found = {"ms_per_step": ms, "spread_%": 100 * (max(times) - min(times)) / ms}
    found |= {"tflops": work.flop / ms / 1e9}
    if row.part == "al2":
        found["network_steps_per_s"] = row.k / ms * 1000
    if device.type == "cuda":
        found["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


def took(work: Workload, calls: int, device: torch.device) -> float:
    """Seconds of so many calls, with all that they leave to the device."""
    begin = time.perf_counter()
    for _ in range(calls):
        work.advance()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def derived(table: pd.DataFrame) -> pd.DataFrame:
    """With what follows from the rates, each against rows of its own precision."""
    floors = table[table.part == "floor"].set_index("precision").tflops.to_dict()
    loops = table[table.name.str.startswith("DataLoader")].network_steps_per_s
    table["study_minutes"] = STUDY_STEPS / table.network_steps_per_s / 60
    table["×_best_DataLoader"] = table.network_steps_per_s / loops.max()
    table["share_of_floor_%"] = 100 * table.tflops / table.precision.map(floors)
    bare = table[table.name == "vanillaNet"].set_index("precision").ms_per_step
    overhead = 100 * (table.ms_per_step / table.precision.map(bare.to_dict()) - 1)
    table["penalty_overhead_%"] = overhead.where(table.name == "sr3Net")
    return table


def product(row: Row, device: torch.device, tiny: bool) -> Workload:
    """A large matrix product of random numbers."""
    n = 128 if tiny else 8192
    kind = torch.bfloat16 if row.precision == "bfloat16" else torch.float32
    a, b = (torch.randn(n, n, device=device).to(kind) for _ in range(2))

    def advance() -> Tensor:
        with trainer.products(device, row.precision):
            return a @ b

    return Workload(advance, 2 * n**3)


def al2(row: Row, device: torch.device, tiny: bool) -> Workload:
    """A step of k networks: by a plain loop, or by the trainer, whose networks take turns."""
    side = ways.SIDES["tiny" if tiny else "mnist"]
    drawn, labels = ways.pixels(side, 128 if tiny else 12800)
    flop = ways.flops(trainer.build_network(ways.RUN, 1, side, ways.CLASSES), (1, side, side))
    flop *= ways.RUN.batch_size * row.k
    if row.name == "ours":
        runs = [Run("mnist", **VARIANTS[i * len(VARIANTS) // row.k]) for i in range(row.k)]
        return Workload(turns(runs, ways.as_tensor(drawn).to(device), labels, row.precision), flop)
    order = torch.randperm(len(labels))
    batch = ways.RUN.batch_size
    if row.name == "tensors":
        there = ways.as_tensor(drawn).to(device), labels.to(device), order.to(device)
        epochs = (ways.indexed(*there, batch) for _ in itertools.count())
    else:
        workers = int(row.name.split()[1])
        loader = ways.loaded(ways.Images(drawn, labels), order.tolist(), batch, workers)
        epochs = itertools.repeat(loader)
    model = ways.plain_network(ways.RUN, side).to(device, memory_format=torch.channels_last)
    steps = plain(model, itertools.chain.from_iterable(epochs))
    return Workload(lambda: next(steps), flop)


def plain(model: torch.nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """A plain loop over batches of the host, whose copies need not be waited for, or of the GPU.

    With PyTorch's own settings, and cuDNN's choice of its fastest method.
    """
    device = next(model.parameters()).device
    moved = (tuple(part.to(device, non_blocking=True) for part in batch) for batch in batches)
    steps = ways.train(model, ways.RUN, moved)
    while True:
        chosen = {"enabled": True, "benchmark": True, "deterministic": False, "allow_tf32": True}
        with torch.backends.cudnn.flags(**chosen):
            lost = next(steps)
        yield lost


def turns(runs: list[Run], images: Tensor, labels: Tensor, precision: str) -> Callable[[], object]:
    """A step of each of these networks, each on a stream of its own, as the trainer makes them."""
    device = images.device

    def training(run: Run) -> Iterator[None]:
        steps = ways.ours(run, images, labels.to(device), precision)
        while True:
            yield from steps.epoch(1, ways.LAMBDA * run.al2)

    streams = [torch.cuda.Stream(device) if device.type == "cuda" else None for _ in runs]
    going = [training(run) for run in runs]
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the images are there before other streams read them

    def advance() -> None:
        for turn, stream in zip(going, streams, strict=True):
            with torch.cuda.stream(stream) if stream else nullcontext():
                next(turn)

    return advance


def sparsity(row: Row, device: torch.device, tiny: bool) -> Workload:
    """A step of ConvNet-xxl on 32×32 images, with the penalties of the network of that name."""
    layers = dict(zip(("sparsity", "decorrelation"), SPARSITY_NETWORKS[row.name], strict=True))
    run = Run(
        "cifar10",
        network="convnet_s" if tiny else "convnet_xxl",
        batch_size=4 if tiny else 64,
        learning_rate=1e-6,  # random images teach nothing, and shall not make it diverge
        **layers,
    )
    size = 8 if tiny else 32
    model = trainer.build_network(run, 3, size, ways.CLASSES)
    flop = ways.flops(model, (3, size, size)) * run.batch_size
    source = torch.Generator().manual_seed(0)
    images = torch.rand(10 * run.batch_size, 3, size, size, generator=source).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(ways.CLASSES, (len(images),), generator=source)
    return Workload(turns([run], images, labels, row.precision), flop)


WORKLOADS = {"floor": product, "al2": al2, "sparsity": sparsity}
