"""How fast the trainer is, beside plain loops and the floor of arithmetic.

Called by `make bench`, or `python -m lib.bench`.

On a CPU everything is measured side by side: in each round every row has a slice of time, one after
another, each in processes of its own, so that a machine that drifts hits all rows alike. Ratios are
taken within a round. Written are, whole or not at all, `cpu.csv` (tidy: what, its settings, median
and range over the rounds, unit), `profile.csv` (operators of a training step before and after) and
`machine.json`. About six minutes on two idle cores.

On a GPU (`--device cuda`) `lib.bench.gpu` measures, into `cuda.csv`.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lib import paths, trainer
from lib.bench import cpu as bench_cpu
from lib.bench import gpu as bench_gpu
from lib.bench.cpu import BATCH, LITE, RUN, Row
from lib.bench.gpu_rows import SHAPES
from lib.machine import processor

EPOCH = 60000  # images
ROUNDS = 5
SETTINGS = ["processes", "threads", "workers", "networks", "batch"]
COLUMNS = ["part", "what", *SETTINGS, "median", "low", "high", "rounds", "unit"]
# Instructions that the speed of products hangs on.
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "sve", "bf16")
RATE = "images/s"
HOURLY = "epochs·networks/h"
FACTOR = "× best DataLoader"
SHARE = "% of the floor"
TIME = "s/epoch"


def main(arguments: list[str] | None = None) -> None:
    """The command; see `--help`."""
    try:
        here = trainer.default_device()
    except ValueError as error:
        sys.exit(f"error: {error}")
    parser = argparse.ArgumentParser(
        prog="python -m lib.bench", description="Time the trainer, plain loops and the floor."
    )
    parser.add_argument("--device", default=here, choices=["cpu", "cuda"])
    parser.add_argument(
        "--seconds",
        type=float,
        help="measuring time of a row: 5 on a CPU, over all rounds; 2 on a GPU",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=paths.ROOT / "results" / "bench",
        help="folder (default: results/bench)",
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=min(2, cores_here()),
        help="cores to use, as the plain loops do (default: 2)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=ROUNDS,
        help=f"on a CPU; more say better how far to trust (default: {ROUNDS})",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="few rows at tiny sizes, to try the command"
    )
    options = parser.parse_args(arguments)
    seconds = (
        options.seconds
        if options.seconds is not None
        else {"cpu": 5.0, "cuda": 2.0}[options.device]
    )
    if not 0 < seconds < float("inf"):
        parser.error(f"--seconds is {seconds:g}; it has to be a positive number")
    if not 1 <= options.cores <= cores_here():
        parser.error(f"--cores is {options.cores}; this machine gives 1 to {cores_here()}")
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; at least one is needed")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device is cuda, but PyTorch finds no GPU here; --device cpu measures the processor"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    described = machine(options.device) | {"seconds": seconds}
    if options.device == "cuda":
        describe(options.out, "cuda", described)
        asked = [
            "--device",
            "cuda",
            "--seconds",
            str(seconds),
            "--out",
            str(options.out),
            "--table",
            "cuda.csv",
        ]
        if options.tiny:
            asked.append("--tiny")
        bench_gpu.main(asked)
        return
    busy = {"busy_before": busy_cores()}
    table, profiles = measure(options.cores, seconds, options.rounds, options.out, options.tiny)
    busy |= {"busy_after": busy_cores()}
    write(table, options.out / "cpu.csv")
    write(profiles, options.out / "profile.csv")
    describe(options.out, "cpu", described | {"cores_used": options.cores} | busy)
    shown = table[table.unit.isin([HOURLY, FACTOR, SHARE]) & (table.part != "networks")]
    wide = shown.pivot_table(
        index=["part", "what", *SETTINGS], columns="unit", values="median", sort=False
    )
    with pd.option_context("display.width", 200, "display.max_rows", None):
        print(wide.to_string(float_format="%.3g", na_rep=""))


def cores_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: str) -> dict[str, Any]:
    """What was measured on, as the operating system and PyTorch give it."""
    found = {"processor": processor(), "architecture": platform.machine()}
    found |= {"cores": cores_here(), "torch": torch.__version__}
    found |= {"python": platform.python_version(), "commit": trainer.commit()}
    can = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not tell
    found |= {"instructions": [name for name in INSTRUCTIONS if can.get(name)]}
    return found | (
        {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        if device == "cuda"
        else {}
    )


def busy_cores(seconds: float = 2.0) -> float:
    """How many cores other programs keep busy: looked at for so long while this process waits."""
    import psutil  # here: the GPU's half does without it

    return round(psutil.cpu_percent(interval=seconds) / 100 * psutil.cpu_count(), 2)


def measure(
    cores: int, seconds: float, rounds: int, folder: Path, tiny: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table and the profiles: every row in every round, and what is done beside the training.

    Args:
        seconds: of a row, over all rounds.
        folder: where a checkpoint can be written, to time it.
    """
    todo = bench_cpu.rows(cores, tiny)
    shape = "tiny" if tiny else "mnist"
    rates: dict[Row, list[float]] = {row: [] for row in todo}
    beside: dict[str, list[float]] = {}
    for number in range(rounds):
        begun = time.monotonic()
        for row in todo:
            rates[row].append(
                sum(call(row.kept, row.processes, bench_cpu.rate, row, seconds / rounds))
            )
        # in every other round alone: they take long
        found = call(True, cores, bench_cpu.costs, folder, tiny) if number % 2 == 0 else [{}]
        for name in found[0]:
            beside.setdefault(name, []).append(sum(one[name] for one in found) / cores)
        print(
            f"round {number + 1} of {rounds}: {len(todo)} rows, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    steps = [Row("DataLoader", "DataLoader"), Row("tensors", "tensors")]
    steps += [Row("ours", what, kept=True) for what in ("ours, AL2", bench_cpu.HALF)]
    profiles = []
    for row in steps:
        row = replace(row, shape=shape, batch=todo[-1].batch if tiny else BATCH)
        (found,) = call(row.kept, 1, bench_cpu.profiled, row, 2 if row.part == "ours" else 20)
        profiles += [{"step": row.what, "operator": name, "ms": ms} for name, ms in found.items()]
    side = SHAPES[shape][1]
    layers = bench_cpu.arithmetic(trainer.build_network(RUN, *SHAPES[shape]), (1, side, side))
    flop = sum(map(sum, layers.values()))
    parts = [derive(rates, flop), turns(rates, flop), beside_training(beside)]
    for name, (forward, backward) in layers.items():
        for way, count in (("forward", forward), ("backward", backward)):
            parts.append(
                tidy({"part": "arithmetic", "what": f"{name}, {way}"}, [count / 1e6], "MFLOP/image")
            )
    return pd.concat(parts, ignore_index=True)[COLUMNS], pd.DataFrame(profiles)


def derive(rates: dict[Row, Sequence[float]], flop: float) -> pd.DataFrame:
    """Rates as a table: images and epochs, factor against the best DataLoader loop, and more.

    Shares are of the floor, and all go by rounds.

    The floor of a row is the fastest matrix product on as many cores, measured in the same round,
    divided by the operations of an image (`flop`). The best DataLoader loop is the one of the
    largest median on all the cores, at the study's batch.

    Args:
        rates: images × networks a second of each round; of the floor's rows operations a second.
    """
    cores = max(row.cores for row in rates)
    batch = study_batch(rates)
    floors = {
        n: fastest(rates, lambda row, n=n: row.part == "floor" and row.cores == n)
        for n in {row.cores for row in rates}
    }
    best = fastest(
        rates, lambda row: row.part == "DataLoader" and row.cores == cores and row.batch == batch
    )
    parts = []
    for row, found in images_per_second(rates, flop).items():
        about = {"part": row.part, "what": row.what} | {
            name: getattr(row, name) for name in SETTINGS
        }
        if row.part == "floor":
            parts.append(tidy(about, [value / 1e9 for value in rates[row]], "GFLOP/s"))
        parts += [
            tidy(about, found, RATE),
            tidy(about, [value * 3600 / EPOCH for value in found], HOURLY),
        ]
        shares = [
            100 * value * flop / most
            for value, most in zip(found, rates[floors[row.cores]], strict=True)
        ]
        parts.append(tidy(about, shares, SHARE))
        if row.cores == cores and row.batch in (batch, 0):
            parts.append(
                tidy(
                    about,
                    [value / plain for value, plain in zip(found, rates[best], strict=True)],
                    FACTOR,
                )
            )
    return pd.concat(parts, ignore_index=True)


def turns(rates: dict[Row, Sequence[float]], flop: float) -> pd.DataFrame:
    """Seconds an epoch of 1, 2 and 4 networks in each way.

    They are by the fastest of its rows whose networks fit in whole turns.
    """
    speeds = images_per_second(rates, flop)
    batch = study_batch(rates)
    parts = []
    for what in ("DataLoader", "tensors", "vmap", "ours, AL2", "floor"):
        named = {
            row: row.part if row.part == "floor" else row.what
            for row in speeds
            if row.batch in (batch, 0)
        }
        own = {row: speeds[row] for row, name in named.items() if name == what}
        for count in (1, 2, 4):
            if any(count % row.networks == 0 for row in own):
                row = fastest(own, lambda row, count=count: count % row.networks == 0)
                about = {"part": "networks", "what": what} | {
                    name: getattr(row, name) for name in SETTINGS
                }
                parts.append(
                    tidy(
                        about | {"networks": count},
                        [count * EPOCH / value for value in own[row]],
                        TIME,
                    )
                )
    return pd.concat(parts, ignore_index=True)


def images_per_second(rates: dict[Row, Sequence[float]], flop: float) -> dict[Row, list[float]]:
    """Operations a second of the floor's rows become the images that they would suffice for.

    Other rates stay.
    """
    return {
        row: [value / (flop if row.part == "floor" else 1) for value in found]
        for row, found in rates.items()
    }


def study_batch(rates: dict[Row, Sequence[float]]) -> int:
    """Images a step in the rows that are compared with each other.

    It is that of the first of our rows; the others are for a curve.
    """
    return next(row.batch for row in rates if row.part == "ours")


def fastest(rates: dict[Row, Sequence[float]], chosen: Callable[[Row], bool]) -> Row:
    """The row of the largest median among the chosen ones."""
    return max(filter(chosen, rates), key=lambda row: pd.Series(rates[row]).median())


def beside_training(beside: dict[str, Sequence[float]]) -> pd.DataFrame:
    """What is done beside the training: milliseconds, and a share of a mean epoch.

    The epoch is one at lite's settings.

    A checkpoint is set against the time between two of them. Evaluation in batches of a size is one
    pass over the test set.
    """
    points = len(LITE.table_epochs())
    often = {
        "evaluation of a curve": (LITE.epochs - points) / LITE.epochs,
        "evaluation on all images": points / LITE.epochs,
    }
    often["ablation"] = points / LITE.epochs
    parts = []
    for name, found in beside.items():
        about = {"part": "beside", "what": name}
        if name.startswith("batches of "):
            about = {
                "part": "evaluation",
                "what": "all test images",
                "batch": int(name.removeprefix("batches of ")),
            }
        parts.append(tidy(about, found, "ms"))
        if name in often:
            share = [
                100 * often[name] * ms / epoch
                for ms, epoch in zip(found, beside["training"], strict=True)
            ]
            parts.append(tidy(about, share, "% of training"))
        elif name == "checkpoint":
            share = [100 * ms / 1000 / trainer.CHECKPOINT_SECONDS for ms in found]
            parts.append(tidy(about, share, "% of the time between two"))
    return pd.concat(parts, ignore_index=True)


def tidy(about: dict[str, Any], values: Sequence[float], unit: str) -> pd.DataFrame:
    """One row: median and range of the rounds' values."""
    found = pd.Series(values, dtype=float)
    measured = {
        "median": found.median(),
        "low": found.min(),
        "high": found.max(),
        "rounds": len(found),
        "unit": unit,
    }
    return pd.DataFrame([dict.fromkeys(SETTINGS, 0) | about | measured])


def call(kept: bool, n: int, function: Callable, *arguments) -> list:
    """What n new processes answer that call a function of `lib.bench.cpu`.

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
            # no daemon: a DataLoader's workers are children of it
            started.append(
                context.Process(
                    target=bench_cpu.answer, args=(theirs, barrier, kept, function, arguments)
                )
            )
            started[-1].start()
            theirs.close()
        answers = [pipe.recv() for pipe in pipes]
    except EOFError as problem:  # killed, perhaps, for memory
        raise RuntimeError(
            f"a measuring process ended during {function.__name__}{arguments}"
        ) from problem
    finally:
        for process, pipe in zip(started, pipes, strict=False):
            process.join(timeout=5)
            process.terminate()
            pipe.close()
    if problems := [problem for _, problem in answers if problem]:
        raise RuntimeError(f"{function.__name__}{arguments} failed: {'; '.join(problems)}")
    return [value for value, _ in answers]


def write(table: pd.DataFrame, path: Path) -> None:
    """A table as CSV, moved into place whole."""
    with paths.replacing(path) as part:
        table.to_csv(part, index=False, float_format="%.4g")


def describe(folder: Path, device: str, values: dict[str, Any]) -> None:
    """Set a device's entry in `machine.json`; other devices' stay."""
    path = folder / "machine.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    with paths.replacing(path) as part:
        part.write_text(json.dumps(known | {device: values}, indent=2, ensure_ascii=False) + "\n")
