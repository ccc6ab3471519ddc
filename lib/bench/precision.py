"""Whether training in bfloat16 changes what the study measures.

Called by `make precision`, or `python -m lib.bench.precision`.

Each network is trained in float32 and in bfloat16, each seed in both: the same first weights,
labels, batches and coins. What the precision changes is set against what another seed changes.
Written is `precision.csv`: network, seed, precision, epoch and the curves, with the settings of the
lite profile; `machine.json` says where. About fifteen minutes on two cores.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from lib import paths, trainer
from lib.bench import describe, machine, write
from lib.bench.cpu import LITE
from lib.data.sources import DataError
from lib.run import SPARSITY_NETWORKS, Run
from lib.study.experiments import SPARSITY_DEFAULTS

CURVES = ["test_accuracy", "test_cross_entropy", "cross_entropy"]
SEEDS = (0, 1, 2)
AL2 = replace(LITE, ablations=(), n_validation=0)
CONVNET = Run(
    "cifar10",
    network="convnet_s",
    **SPARSITY_DEFAULTS | {"epochs": 20, "n_train": 4000, "entropy": False},
)
CONVNET = replace(CONVNET, learning_rate=0.01, test_images=2000)
NETWORKS = {
    "bare": replace(AL2, al2=False),
    "bare + AL2": AL2,
    "batch norm + AL2": replace(AL2, batch_norm=True),
    "dropout": replace(AL2, al2=False, dropout=0.5),
    "vanillaNet": CONVNET,
    "sr3Net": replace(
        CONVNET,
        **dict(zip(("sparsity", "decorrelation"), SPARSITY_NETWORKS["sr3Net"], strict=True)),
    ),
}


def trained(job: tuple[str, Run, str]) -> pd.DataFrame:
    """The curves of one training, a row an epoch."""
    name, run, precision = job
    curves = trainer.fit([run], precision=precision)[["epoch", *CURVES]]
    return pd.DataFrame(
        {"network": name, "seed": run.seed, "precision": precision}, index=curves.index
    ).join(curves)


def measure(networks: dict[str, Run], seeds: Sequence[int], jobs: int) -> pd.DataFrame:
    """The curves of every network, seed and precision, trained in so many processes."""
    work = [
        (n, replace(run, seed=seed), p)
        for n, run in networks.items()
        for seed in seeds
        for p in trainer.PRECISIONS
    ]
    if jobs == 1:
        return pd.concat(map(trained, tqdm(work, unit="run", disable=None)), ignore_index=True)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        found = tqdm(pool.imap(trained, work), total=len(work), unit="run", disable=None)
        return pd.concat(found, ignore_index=True)


def spreads(curves: pd.DataFrame, curve: str = "test_accuracy") -> pd.DataFrame:
    """How far curves lie apart, one row per network.

    Root mean squares over epochs, and a difference at the last epoch.

    Returns:
        `seeds`: between two float32 trainings of different seeds; `precisions`: between the two
        precisions of one seed; `last`: bfloat16 less float32 at the last epoch, mean over seeds;
        `last_sd`: of the float32 seeds there; all in the curve's unit. `within`: whether
        `precisions` is below `seeds` and |last| at most 2·last_sd·√(2/n), what chance makes of the
        means of n seeds.

    Raises:
        ValueError: for fewer than two seeds.
    """
    if curves.seed.nunique() < 2:
        raise ValueError(f"there is {curves.seed.nunique()} seed; a spread needs two at least")
    rows = []
    for network, own in curves.groupby("network", sort=False):
        wide = own.pivot(index="epoch", columns=["precision", "seed"], values=curve)
        single, half = wide["float32"], wide["bfloat16"]
        n = single.shape[1]
        between = 2 * single.var(axis=1)  # mean square of the difference of two seeds
        last = (half - single).iloc[-1].mean()
        sd = single.iloc[-1].std()
        row = {
            "seeds": between.mean() ** 0.5,
            "precisions": (half - single).pow(2).mean(axis=1).mean() ** 0.5,
        }
        row |= {"last": last, "last_sd": sd, "n": n}
        within = row["precisions"] < row["seeds"] and abs(last) <= 2 * sd * (2 / n) ** 0.5
        rows.append({"network": network, **row, "within": within})
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> None:
    """The command; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.bench.precision", description="Compare float32 and bfloat16."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=paths.ROOT / "results" / "bench",
        help="folder (default: results/bench)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        help="training processes on a CPU (default: all cores)",
    )
    parser.add_argument(
        "--only", default="", help="networks whose name holds this text; nothing is written"
    )
    options = parser.parse_args(arguments)
    chosen = {name: run for name, run in NETWORKS.items() if options.only in name}
    if not chosen:
        parser.error(f"--only is {options.only!r}; networks are {', '.join(NETWORKS)}")
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; at least one process is needed")
    try:
        device = trainer.default_device()
        curves = measure(chosen, SEEDS, options.jobs if device == "cpu" else 1)
    except (ValueError, DataError) as error:
        sys.exit(f"error: {error}")
    if not options.only:
        options.out.mkdir(parents=True, exist_ok=True)
        write(curves, options.out / "precision.csv")
        describe(options.out, "precision", machine(device))
    print(spreads(curves).round(2).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
