"""Whether training in bfloat16 changes what the study measures.

Called by `make precision`, or `python -m lib.bench.precision`.

Each network is trained in float32 and in bfloat16, each seed in both: the same first weights,
labels, batches and coins. What the precision changes is set against what another seed changes.
Written is `precision.csv`: network, seed, precision, epoch and the curves, on a few thousand
images; `machine.json` says where. About fifteen minutes on two cores.

`--whole` trains one network at the AL2 paper's own settings in float32 instead, the twin of a run
that is stored in bfloat16. Precision is no part of a run's id, so the twin is no second run: it is
a comparison, in the folder `precision`. Two to three hours of a core; interrupted, it goes on.
"""

import itertools
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from lib import machine, run_dir, store, trainer
from lib.bench import record
from lib.bench.tables import spreads
from lib.data.sources import DataError
from lib.progress import Progress
from lib.run import SPARSITY_NETWORKS, TABLE_EPOCHS, Run
from lib.study.campaign import positive
from lib.study.experiments import SPARSITY_DEFAULTS

CURVES = ["test_accuracy", "test_cross_entropy", "cross_entropy"]
SEEDS = (0, 1, 2)
PRECISIONS = ("float32", "bfloat16")
AL2 = Run(
    "mnist",
    n_train=2000,
    epochs=80,
    learning_rate=0.005,
    momentum=0.9,
    al2=True,
    speed=6.15,
    test_images=2000,
    ablations=(),
)
CONVNET = Run(
    "cifar10",
    network="convnet_s",
    **SPARSITY_DEFAULTS | {"epochs": 20, "n_train": 4000, "entropy": False},
    learning_rate=0.01,
    test_images=2000,
)
SR3 = dict(zip(("sparsity", "decorrelation"), SPARSITY_NETWORKS["sr3Net"], strict=True))
NETWORKS = {
    "bare": replace(AL2, al2=False),
    "bare + AL2": AL2,
    "batch norm + AL2": replace(AL2, batch_norm=True),
    "dropout": replace(AL2, al2=False, dropout=0.5),
    "vanillaNet": CONVNET,
    "sr3Net": replace(CONVNET, **SR3),
}
# in bfloat16 its training cross-entropy falls 0.003 nats below what claim A4 asks for
WHOLE = Run("mnist", al2=True, ablations=())


def trained(job: tuple[str, Run, str]) -> pd.DataFrame:
    """The curves of one training, a row an epoch."""
    name, run, precision = job
    curves = trainer.fit([run], precision=precision)
    curves = curves.assign(network=name, seed=run.seed, precision=precision)
    return curves[["network", "seed", "precision", "epoch", *CURVES]]


def measure(networks: dict[str, Run], seeds: Sequence[int], jobs: int) -> pd.DataFrame:
    """The curves of every network, seed and precision, trained in so many processes."""
    every = itertools.product(networks.items(), seeds, PRECISIONS)
    work = [(name, replace(run, seed=seed), precision) for (name, run), seed, precision in every]
    if jobs == 1:
        return pd.concat(map(trained, tqdm(work, unit="run")), ignore_index=True)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        found = tqdm(pool.map(trained, work), total=len(work), unit="run")
        return pd.concat(found, ignore_index=True)


def whole(out: Path) -> Path:
    """The folder of `WHOLE` in float32, below `out`, trained where it is not finished.

    Raises:
        ValueError: if the stored run is of float32 itself: there is nothing to compare.
    """
    stored = store.find(WHOLE)
    done = stored is not None and run_dir.is_finished(stored)
    if done and run_dir.read_environment(stored)["precision"] == "float32":
        raise ValueError(f"{stored} is of float32 itself; there is nothing to compare")
    folder = _twin(out)
    if not run_dir.is_finished(folder):
        run_dir.begin(folder, WHOLE)
        with Progress([WHOLE]) as progress:

            def told(run: Run, _: object, epoch: int) -> None:
                progress.at(run, epoch)

            trainer.fit([WHOLE], [folder], precision="float32", callback=told)
    return folder


def twins(out: Path = record.FOLDER) -> pd.DataFrame:
    """The curves of `WHOLE`, stored and as its twin below `out`, as `measure` gives them.

    There are no rows of one that is not finished.
    """
    columns = ["network", "seed", "precision", "epoch", *CURVES]
    found = [pd.DataFrame(columns=columns)]
    for place in (store.find(WHOLE), _twin(out)):
        if place and run_dir.is_finished(place):
            precision = run_dir.read_environment(place)["precision"]
            said = {"network": "bare + AL2", "seed": WHOLE.seed, "precision": precision}
            found.append(run_dir.read_metrics(place)[0].assign(**said)[columns])
    return pd.concat(found[1:] or found, ignore_index=True)


def _twin(out: Path) -> Path:
    return out / "precision" / WHOLE.name


def main(arguments: list[str] | None = None) -> None:
    """The command; see `--help`."""
    parser = record.parser("lib.bench.precision", "Compare float32 and bfloat16.")
    add = parser.add_argument
    jobs = {"type": positive, "default": machine.cores()}
    add("--jobs", **jobs, help="processes on a CPU, default: all cores")
    add("--only", default="", help="networks whose name holds this text; nothing is written")
    add("--whole", action="store_true", help="one network at the paper's settings, in float32")
    options = parser.parse_args(arguments)
    chosen = {name: run for name, run in NETWORKS.items() if options.only in name}
    if not chosen:
        parser.error(f"--only is {options.only!r}; networks are {', '.join(NETWORKS)}")
    try:
        if options.whole:
            whole(options.out)
            curves = twins(options.out)
            curves = curves[curves.epoch.isin(TABLE_EPOCHS)]
            wide = curves.pivot(index="epoch", columns="precision", values=CURVES)
            print(wide.round(4).to_string())
            return
        if not options.only:
            record.known(options.out)
        device = trainer.default_device()
        curves = measure(chosen, SEEDS, options.jobs if device == "cpu" else 1)
    except (ValueError, OSError, DataError, run_dir.RecordError) as error:
        sys.exit(f"error: {error}")
    if not options.only:
        record.write(curves, options.out / "precision.csv")
        record.describe(options.out, "precision", record.machine(device))
    print(spreads(curves).round(2).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
