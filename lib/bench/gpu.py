"""How fast the trainer is on a GPU, and what it could gain there.

Called by `python -m lib.bench --device cuda`, or `python -m lib.bench.gpu`. Measures, on random
data of the sets' shapes, the AL2 study's networks (part `al2`: one after another without CUDA
graphs, and side by side as the trainer takes them) and the ConvNet-xxl of the targeted-sparsity
study without and with its penalties (part `sparsity`), after the device's own peak of matrix
products. `study_minutes` takes all 96 networks at the row's rate, 938 steps an epoch. A row is
written as soon as it is measured. What fails (memory, an operation that is missing, time) is a row
that says why.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from lib import losses, models, trainer
from lib.bench import record, ways
from lib.run import Run
from lib.trainer import train_epoch

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
STUDY_STEPS = 96 * 700 * 938  # networks × epochs × steps of 60,000 images
SLICES = 7
LIMIT = 540.0  # seconds for everything; rows that come later are not run
COLUMNS = (
    "part name k precision compiled ms_per_step spread_% network_steps_per_s study_minutes "
    "share_of_peak_% share_of_bf16_peak_% penalty_overhead_% tflops peak_memory_gb setup_s problem"
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
    precision: str = "fp32"
    compiled: bool = False


@dataclass
class Workload:
    """A function, how many steps of all k networks a call of it takes, and a step's operations."""

    advance: Callable[[], object]
    steps: int = 1
    flop: float = 0.0


def rows(tiny: bool = False) -> list[Row]:
    """What is measured, in this order: what may fail or take long (compiling) last."""
    table = [Row("peak", "peak", precision=precision) for precision in PRECISIONS]
    table += [Row("al2", "plain", precision=precision) for precision in ("fp32", "tf32")]
    for k in (2,) if tiny else (1, 4, 8, 16, 32):
        table += [Row("al2", "ours side by side", k, name) for name in ("fp32", "bf16")]
    names = ("vanilla", "sr3", "vanilla channels_last", "sr3 channels_last")
    table += [Row("sparsity", name, precision=p) for p in PRECISIONS for name in names]
    if not tiny:
        table += [Row("sparsity", name, 1, p, True) for p in PRECISIONS for name in names[2:]]
    return table


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
            with products(row.precision):
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
    if row.compiled:
        torch._dynamo.reset()
    started = time.monotonic()
    work = WORKLOADS[row.part](row, device, tiny)
    took(work, 5, device)  # a recorded step is among them
    found = {"setup_s": round(time.monotonic() - started, 1)}
    calls = 1
    for _ in range(3):  # each says better how many calls fill a slice
        calls = max(1, int(calls * seconds / SLICES / took(work, calls, device)))
    times = [1000 * took(work, calls, device) / calls / work.steps for _ in range(SLICES)]
    ms = statistics.median(times)
    found |= {"ms_per_step": ms, "spread_%": 100 * (max(times) - min(times)) / ms}
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
    """With what follows from the rates.

    Shares are of the measured peaks; the overhead of the penalties is against the same network
    without them.
    """
    peaks = table[table.part == "peak"].set_index("precision").tflops.to_dict()
    table["study_minutes"] = STUDY_STEPS / table.network_steps_per_s / 60
    table["share_of_peak_%"] = 100 * table.tflops / table.precision.map(peaks)
    table["share_of_bf16_peak_%"] = 100 * table.tflops / peaks.get("bf16", float("nan"))
    same = [table.part, table.name.str.replace("sr3", "vanilla"), table.precision, table.compiled]
    vanilla = table.ms_per_step.where(table.name.str.startswith("vanilla"))
    base = vanilla.groupby(same).transform("first")
    penalised = table.name.str.startswith("sr3")
    table["penalty_overhead_%"] = (100 * (table.ms_per_step / base - 1)).where(penalised)
    return table


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Float32 products as such, or in TF32 where asked; cuDNN chooses its algorithms by trying."""
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    chosen = {"enabled": True, "benchmark": True, "deterministic": False, "allow_tf32": tf32}
    try:
        with torch.backends.cudnn.flags(**chosen):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False  # PyTorch's own default


def peak(row: Row, device: torch.device, tiny: bool) -> Workload:
    """A large matrix product of random numbers."""
    n = 128 if tiny else 8192
    a, b = (torch.randn(n, n, device=device).to(PRECISIONS[row.precision]) for _ in range(2))
    return Workload(lambda: a @ b, flop=2 * n**3)


def al2(row: Row, device: torch.device, tiny: bool) -> Workload:
    """The trainer's own steps.

    Plain is one network and no CUDA graph, an epoch of 100 steps a call. Side by side, k networks
    take a step each a call, in turns as `lib.trainer` lets them: recorded in CUDA graphs, each on a
    stream of its own.
    """
    side = ways.SIDES["tiny" if tiny else "mnist"]
    drawn, labels = (values.to(device) for values in ways.pixels(side, 128 if tiny else 6400))
    images = ways.as_tensor(drawn)
    batch = ways.RUN.batch_size
    shape = (1, side, side)
    flop = ways.flops(trainer.build_network(ways.RUN, 1, side, ways.CLASSES), shape) * batch
    if row.name == "plain":
        steps = ways.ours(Run("mnist", al2=True), images, labels, use_cuda_graph=False)
        count = len(labels) // batch
        return Workload(lambda: train_epoch(steps, 1, ways.LAMBDA), count, flop)
    precision = "bfloat16" if row.precision == "bf16" else "float32"
    streams = [torch.cuda.Stream(device) if device.type == "cuda" else None for _ in range(row.k)]

    def training(run: Run) -> Iterator[None]:
        steps = ways.ours(run, images, labels, precision)
        while True:
            yield from steps.epoch(1, ways.LAMBDA * run.al2)

    runs = [Run("mnist", **VARIANTS[i * len(VARIANTS) // row.k]) for i in range(row.k)]
    turns = [training(run) for run in runs]

    def advance() -> None:
        for turn, stream in zip(turns, streams, strict=True):
            with torch.cuda.stream(stream) if stream else nullcontext():
                next(turn)

    return Workload(advance, 1, flop * row.k)


def sparsity(row: Row, device: torch.device, tiny: bool) -> Workload:
    """ConvNet-xxl on 32×32 images, batch 64: vanilla, or with sr3's penalties.

    bf16 is by autocast, with the penalties in float32.
    """
    penalised = row.name.startswith("sr3")
    layout = torch.channels_last if "channels_last" in row.name else torch.contiguous_format
    size, batch = (8, 4) if tiny else (32, 64)
    torch.manual_seed(0)
    widths = (4, 4, 8, 8, 16) if tiny else models.CONVNET_WIDTHS["xxl"]
    model = models.ConvNet(widths, image_size=size).to(device, memory_format=layout)
    flop = ways.flops(model, (3, size, size)) * batch
    layers = dict.fromkeys(("conv3", "conv4", "fc1"), 0.001) if penalised else {}
    entropy = losses.SparsityReg(model, layers)
    # a mean of the pairs takes the time of the sum, and the training does not break at random
    # images
    pairs = {"pairs": "square", "reduce": "mean"}
    filters = losses.DecorrReg(model, {"conv1": 1.0} if penalised else {}, **pairs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    y = torch.randint(10, (batch,), device=device)

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=row.precision == "bf16"):
            logits = model(x)
        total = F.cross_entropy(logits.float(), y)
        return total + entropy.penalty() + filters.penalty() if penalised else total

    loss = torch.compile(loss) if row.compiled else loss

    def advance() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return Workload(advance, 1, flop)


WORKLOADS = {"peak": peak, "al2": al2, "sparsity": sparsity}

if __name__ == "__main__":
    from lib.bench.__main__ import main

    main(["--device", "cuda", *sys.argv[1:]])
