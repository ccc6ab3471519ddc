"""Which way of training is the fastest on this device.

Called by `python -m lib.bench.gpu --seconds 2 --out DIR`.

Measures, on random data of the sets' shapes, every way in which the AL2 study's networks could be
trained (part `al2`) and the ConvNet-xxl of the targeted-sparsity study without and with its
penalties (part `sparsity`), after the device's own peak of matrix products. `study_minutes` takes
all 96 networks at the row's rate, 938 steps an epoch. Writes `bench_gpu.csv`, a row as soon as it
is measured, and prints the table. What fails (memory, an operation that is missing, time) is a row
that says why; if the device is lost with it, the rest runs in a new process.
"""

import argparse
import os
import re
import signal
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from lib import machine, paths, trainer
from lib.bench.gpu_rows import Row, Workload, rows

STUDY_STEPS = 96 * 700 * 938  # networks × epochs × steps of 60,000 images
SLICES, CHECKED = 7, 20
ROW_SECONDS = 120
COLUMNS = (
    "part name k precision ms_per_step spread_% network_steps_per_s study_minutes share_of_peak_% "
    "share_of_bf16_peak_% penalty_overhead_% tflops loss_after_20 peak_memory_gb setup_s problem"
).split()


def main(arguments: list[str] | None = None) -> None:
    """The command; see `--help`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m lib.bench.gpu", description="Time the ways of training on this device."
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="measuring time of a row, at most"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=540.0,
        help="seconds for everything; rows that come later are not run",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--table", default="bench_gpu.csv", help="the table's name")
    parser.add_argument("--device", default=trainer.default_device())
    parser.add_argument(
        "--only",
        default="",
        help="regular expression: rows whose 'part name, … k precision' contains it",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a few rows at tiny sizes, to try the command on a CPU"
    )
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument(
        "--skip",
        type=int,
        default=0,
        help="leave out so many rows and add to the table that is there",
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    begun = time.monotonic()
    words = {row: f"{row.part} {row.title} {row.k} {row.precision}" for row in rows(options.tiny)}
    todo = [row for row in words if re.search(options.only, words[row]) or row.part == "peak"]
    if options.list:
        print(*(words[row] for row in todo), sep="\n")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / options.table
    done: list[dict] = pd.read_csv(path).to_dict("records") if options.skip else []
    if device.type == "cuda":
        print(
            torch.cuda.get_device_name(device),
            f"torch {torch.__version__}, CUDA {torch.version.cuda}",
            flush=True,
        )
    else:
        machine.keep_memory()
    for number, row in enumerate(todo):
        if number < options.skip:
            continue
        left = options.limit - (time.monotonic() - begun)
        seconds = min(options.seconds, max(left, 0) / (len(todo) - number))
        found = {"part": row.part, "name": row.title, "k": row.k, "precision": row.precision}
        try:
            if left < 3:
                raise TimeoutError(f"not run: the time limit of {options.limit:.0f} s was reached")
            with _at_most(min(left, ROW_SECONDS)), _precision(row.precision):
                found |= measure(row, device, seconds, options.tiny)
        except Exception as problem:  # whatever it is, it is this row's result
            found["problem"] = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        done.append(found)
        table = _derived(pd.DataFrame(done).reindex(columns=COLUMNS))
        with paths.replacing(path) as part:
            table.to_csv(part, index=False, float_format="%.5g")
        print(
            words[row],
            {k: v for k, v in found.items() if k not in ("part", "name", "k", "precision")},
            flush=True,
        )
        if device.type == "cuda" and "problem" in found and not _healthy(device):
            print("the device is lost to this process: going on in a new one", flush=True)
            rest = max(0.0, options.limit - (time.monotonic() - begun) - 10)
            # the last of two options counts
            again = [*arguments, "--skip", str(number + 1), "--limit", f"{rest:.0f}"]
            os.execv(sys.executable, [sys.executable, "-m", "lib.bench.gpu", *again])
    with pd.option_context(
        "display.width",
        250,
        "display.max_rows",
        None,
        "display.max_columns",
        None,
        "display.max_colwidth",
        60,
    ):
        print(
            table.dropna(axis=1, how="all").to_string(index=False, na_rep="", float_format="%.4g")
        )


def measure(row: Row, device: torch.device, seconds: float, tiny: bool) -> dict[str, float]:
    """Time a row: milliseconds a step, memory, work, first losses.

    Milliseconds are the median of `SLICES` slices, with their range.
    """
    if row.graph and device.type != "cuda":
        raise RuntimeError("a CUDA graph needs a GPU")
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if row.compiled:
        torch._dynamo.reset()
    started = time.monotonic()
    workload = row.make(row, device, 128 if tiny else 60000)
    for _ in range(3):
        workload.advance()
    _wait(device)
    found: dict[str, float] = {}
    # the same batches in every row: a wrong capture, or a precision too low, shows here
    if workload.feed:
        while int(workload.feed.done) < CHECKED:
            workload.advance()
            _wait(device)
        found["loss_after_20"] = (
            workload.stack.sums[0, 0].item()
            / int(workload.feed.done)
            / workload.feed.order.shape[-1]
        )
    setup = time.monotonic() - started
    begin = time.perf_counter()
    workload.advance()
    _wait(device)
    calls = max(1, int(seconds / SLICES / max(time.perf_counter() - begin, 1e-7)))
    # the first slice only says how many calls fill the next ones
    for _ in range(2 if seconds > 0.1 else 1):
        begin = time.perf_counter()
        for _ in range(calls):
            workload.advance()
        _wait(device)
        calls = max(1, int(seconds / SLICES / ((time.perf_counter() - begin) / calls)))
    times = [_slice(workload, calls, device) / calls / workload.steps for _ in range(SLICES)]  # ms
    ms = statistics.median(times)
    found |= {
        "ms_per_step": ms,
        "spread_%": 100 * (max(times) - min(times)) / ms,
        "tflops": workload.flop / ms / 1e9,
    }
    if row.part == "al2":
        found["network_steps_per_s"] = row.k / ms * 1000
    if device.type == "cuda":
        found["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found | {"setup_s": round(setup, 1)}


def _slice(workload: Workload, calls: int, device: torch.device) -> float:
    """Milliseconds of so many calls.

    Between events on the device, which wait for side streams, too; on a CPU by the clock.
    """
    _wait(device)
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(calls):
            workload.advance()
        return 1000 * (time.perf_counter() - begin)
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(calls):
        workload.advance()
    for stream in workload.streams:
        torch.cuda.current_stream(device).wait_stream(stream)
    last.record()
    _wait(device)
    return first.elapsed_time(last)


def _derived(table: pd.DataFrame) -> pd.DataFrame:
    """Columns that follow from others.

    They are shares of the measured peaks, minutes of the study, overhead of the penalties.
    """
    peaks = table[table.part == "peak"].set_index("precision").tflops.to_dict()
    table["study_minutes"] = STUDY_STEPS / table.network_steps_per_s / 60
    table["share_of_peak_%"] = 100 * table.tflops / table.precision.map(peaks)
    table["share_of_bf16_peak_%"] = 100 * table.tflops / peaks.get("bf16", float("nan"))
    key = list(
        zip(table.part, table.name.str.replace("sr3", "vanilla"), table.precision, strict=True)
    )
    vanilla = {
        k: ms
        for k, ms, name in zip(key, table.ms_per_step, table.name, strict=True)
        if name.startswith("vanilla")
    }
    base = pd.Series([vanilla.get(k, float("nan")) for k in key], index=table.index)
    table["penalty_overhead_%"] = (100 * (table.ms_per_step / base - 1)).where(
        table.name.str.startswith("sr3")
    )
    return table


@contextmanager
def _precision(name: str):
    """Float32 products as such, or in TF32 where the row says so.

    cuDNN chooses its algorithms by trying.
    """
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=True, deterministic=False, allow_tf32=name == "tf32"
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False  # PyTorch's own default


@contextmanager
def _at_most(seconds: float):
    """Stop what takes longer, by a TimeoutError (compiling can take minutes).

    It does nothing where there is no such signal.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    kept = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _healthy(device: torch.device) -> bool:
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except RuntimeError:
        return False


if __name__ == "__main__":
    main()
