"""Stored runs of the targeted-sparsity paper as `store.load` gives them, made by hand: no test of
tables trains anything.
"""

import numpy as np
import pandas as pd

from lib import store
from lib.models import CONVNET_WIDTHS
from lib.run import Run
from lib.study import claims, tables
from lib.study.experiments import VARIANTS, lenet_alexnet, sparsity_networks

LAYERS = ("conv1", "conv2", "conv3", "conv4", "fc1")
DEEP = LAYERS[2:]
HUNDRED = "cifar100"
ALL_CLAIMS = (*(f"A{k}" for k in range(1, 11)), *(f"S{k}" for k in range(1, 11)))


def rising(epoch):
    """A validation loss that overfits at epoch 8."""
    return 1 + (epoch - 8) ** 2 / 100


def kept(epoch):
    """A validation loss that never rises."""
    return 1 + 1 / epoch


def cliff(epoch, at=8, depth=0.5):
    """Entropy as a share of ln D that falls by `depth` around an epoch."""
    return 0.9 - depth / (1 + np.exp(at - epoch))


# columns of each network's curves in which it differs from the others, as the paper has them
PAPERLIKE = {network: {"loss": kept} for network in VARIANTS}
PAPERLIKE["vanillaNet"] = (
    {"loss": rising}
    | dict.fromkeys(DEEP, cliff)
    | dict.fromkeys(LAYERS[:2], lambda e: cliff(e, depth=0.05))
)
PAPERLIKE["sr3Net"] = {"loss": kept, "correlation conv1": 0.05}


def stored(
    run: Run, *, profile: str = "made", diverged: int | None = None, **columns
) -> pd.DataFrame:
    """A run's rows; a column is a number or a function of the epochs. Diverged in epoch 1: one row,
    of NaN.
    """
    epochs = np.arange(1.0, (run.epochs if diverged is None else diverged - 1) + 1)
    rows = {
        name: value(epochs) if callable(value) else np.full(len(epochs), value)
        for name, value in columns.items()
    }
    fields = {"profile": profile, **run.described(), "num_classes": 100, "precision": "float32"}
    fields["diverged"] = np.nan if diverged is None else float(diverged)
    described = pd.DataFrame([fields] * max(len(epochs), 1))
    return pd.concat([described, pd.DataFrame({"epoch": epochs} | rows)], axis=1)


def cell(
    accuracies: dict[str, float],
    *,
    dataset: str = HUNDRED,
    size: str = "s",
    optimizer: str = "sgd",
    seeds=(0, 1, 2),
    epochs: int = 20,
    over: dict[str, dict] | None = None,
    diverged: dict[tuple[str, int], int] | None = None,
    measured: bool = True,
    profile: str = "made",
    **settings,
) -> pd.DataFrame:
    """ConvNets of one cell.

    Args:
        accuracies: in %, of the networks that are to be there, the same at all epochs but for 0.01
            between seeds.
        over: by network, curves other than `PAPERLIKE`'s: `loss`, a layer's name (entropy as a
            share of ln D), other columns.
        diverged: the epoch at which a (network, seed) diverged.
        measured: whether entropies and correlations were.
    """
    runs = sparsity_networks(
        dataset,
        networks=list(accuracies),
        size=size,
        seeds=seeds,
        optimizer=optimizer,
        epochs=epochs,
        **settings,
    )
    widths = dict(zip(LAYERS, CONVNET_WIDTHS[size], strict=True))
    parts = []
    for run in runs:
        curves = dict.fromkeys(LAYERS, 0.95) | {f"correlation {layer}": 0.2 for layer in LAYERS}
        curves |= PAPERLIKE[run.variant] | (over or {}).get(run.variant, {})
        columns = {
            "test_accuracy": accuracies[run.variant] + 0.01 * run.seed,
            "test_cross_entropy": curves.pop("loss"),
        }
        for name, value in curves.items() if measured else ():
            if name in widths:
                value = curves[name]
                factor = np.log(widths[name])
                name = f"entropy {name}"
                columns[name] = (
                    (lambda e, v=value, f=factor: f * v(e)) if callable(value) else factor * value
                )
            else:
                columns[name] = value
        parts.append(
            stored(
                run,
                profile=profile,
                diverged=(diverged or {}).get((run.variant, run.seed)),
                **columns,
            )
        )
    return pd.concat(parts, ignore_index=True)


def pair(
    network: str,
    without: float,
    with_sr: float,
    *,
    dataset: str = HUNDRED,
    seeds=(0, 1, 2),
    **settings,
) -> pd.DataFrame:
    """LeNet or AlexNet, without and with SparsityReg, with these best accuracies in %."""
    runs = lenet_alexnet(dataset, networks=[network], seeds=seeds, epochs=20, **settings)
    return pd.concat(
        [
            stored(
                r,
                test_accuracy=(with_sr if r.sparsity else without) + 0.01 * r.seed,
                test_cross_entropy=kept,
            )
            for r in runs
        ],
        ignore_index=True,
    )


def paper(seeds=(0, 1, 2), **options) -> pd.DataFrame:
    """The paper's printed numbers as runs: Tables 2 and 3."""
    parts = []
    for (dataset, size, optimizer), rows in tables.published("sparsity_table2").groupby(
        ["dataset", "size", "optimizer"]
    ):
        accuracies = dict(zip(rows.network, 100 * rows.best_accuracy, strict=True))
        parts.append(
            cell(
                accuracies, dataset=dataset, size=size, optimizer=optimizer, seeds=seeds, **options
            )
        )
    for (dataset, network), rows in tables.published("sparsity_table3").groupby(
        ["dataset", "network"]
    ):
        values = 100 * rows.set_index("regularized").best_accuracy
        parts.append(
            pair(network.lower(), values[False], values[True], dataset=dataset, seeds=seeds)
        )
    return pd.concat(parts, ignore_index=True)


AL2_EXPERIMENTS = ("label_randomization", "representations", "schedules", "relabelling")


def by_experiment(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Made runs as the claims' experiments would have them."""
    if frame.empty:
        frame = store.load([])
    al2 = frame.network == "al2_cnn"
    table3 = frame.network.isin(["lenet", "alexnet"])
    found = dict.fromkeys(AL2_EXPERIMENTS, frame[al2])
    return found | {"sparsity_networks": frame[~al2 & ~table3], "lenet_alexnet": frame[table3]}


def judge(frame: pd.DataFrame, profiles=("made",), only=claims.STATEMENTS) -> pd.DataFrame:
    """The claims, judged by made runs."""
    return claims.judge(by_experiment(frame), profiles, only)
