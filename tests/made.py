"""Stored runs as `store.load` gives them, made by hand: no test of tables trains anything."""

from itertools import product
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.special import softmax
from scipy.stats import entropy

from lib import paths, store
from lib.models import CONVNET_WIDTHS
from lib.run import Run
from lib.study import claims, tables
from lib.study.experiments import VARIANTS, lenet_alexnet, sparsity_networks

LAYERS = ("conv1", "conv2", "conv3", "conv4", "fc1")
DEEP = LAYERS[2:]
HUNDRED = "cifar100"
ALL_CLAIMS = (*(f"A{k}" for k in range(1, 11)), *(f"S{k}" for k in range(1, 11)))


def code_cells(notebook: str) -> dict[str, str]:
    """The code cells of a notebook by id."""
    found = nbformat.read(paths.ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    return {cell.id: cell.source for cell in found if cell.cell_type == "code"}


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_entropy(activations: torch.Tensor, filters: int = 1) -> np.ndarray:
    """Of the softmax over the dimension of filters, by scipy."""
    return entropy(softmax(activations.detach().double().numpy(), filters), axis=filters)


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
    run: Run,
    *,
    profile: str = "made",
    classes: int = 100,
    epochs=None,
    diverged: int | None = None,
    **columns,
) -> pd.DataFrame:
    """A run's rows at these epochs, all unless given; a column is a number or a function of them.
    Diverged in epoch 1: one row, of NaN.
    """
    columns = {"test_images": 10000, "cross_entropy": 1.9} | columns
    last = run.epochs if diverged is None else diverged - 1
    epochs = np.array([e for e in epochs or range(1, run.epochs + 1) if e <= last], dtype=float)
    rows = {
        name: value(epochs) if callable(value) else np.full(len(epochs), value)
        for name, value in columns.items()
    }
    fields = {"profile": profile, **run.described(), "num_classes": classes}
    fields |= {"precision": "float32", "diverged": np.nan if diverged is None else float(diverged)}
    fields |= {"data_hash": run.dataset, "labels_hash": f"{run.dataset} {run.seed}"}
    described = pd.DataFrame([fields] * max(len(epochs), 1))
    return pd.concat([described, pd.DataFrame({"epoch": epochs} | rows)], axis=1)


def image_folder(folder: Path, *classes: str, images: int = 8, shade: int = 16) -> None:
    """A data set of one's own, 16×16, greyscale; another `shade` gives other images."""
    for split, (kind, label), k in product(("train", "test"), enumerate(classes), range(images)):
        place = folder / split / label
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((16, 16), (shade * k + kind) % 256, np.uint8)
        Image.fromarray(pixels).save(place / f"{k}.png")


def together(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


def stop(made: pd.DataFrame, hit: pd.Series, at: float) -> pd.DataFrame:
    """The same runs, those of the rows `hit` diverged in epoch `at`; where that is their first,
    they have one row without an epoch and without a number.
    """
    begins = made.epoch.min()
    rows = made[~hit | (made.epoch < at) | (made.epoch == begins) & (at <= begins)]
    hit = hit.loc[rows.index]
    rows = rows.assign(diverged=np.where(hit, float(at), rows.diverged))
    if at <= begins:
        rows.loc[hit, rows.columns[rows.columns.get_loc("epoch") :]] = np.nan
    return rows


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
    seen = {"size": size, "seeds": seeds, "optimizer": optimizer, "epochs": epochs} | settings
    widths = dict(zip(LAYERS, CONVNET_WIDTHS[size], strict=True))
    parts = []
    for run in sparsity_networks(dataset, networks=list(accuracies), **seen):
        curves = dict.fromkeys(LAYERS, 0.95) | {f"correlation {layer}": 0.2 for layer in LAYERS}
        curves |= PAPERLIKE[run.variant] | (over or {}).get(run.variant, {})
        accuracy = accuracies[run.variant] + 0.01 * run.seed
        columns = {"test_accuracy": accuracy, "test_cross_entropy": curves.pop("loss")}
        for name, value in curves.items() if measured else ():
            if name in widths:
                most = np.log(widths[name])
                columns[f"entropy {name}"] = (
                    (lambda e, v=value, m=most: m * v(e)) if callable(value) else most * value
                )
            else:
                columns[name] = value
        ended = (diverged or {}).get((run.variant, run.seed))
        parts.append(stored(run, profile=profile, diverged=ended, **columns))
    return together(*parts)


def pair(
    network: str, without: float, with_sr: float, *, dataset=HUNDRED, seeds=(0, 1, 2), **settings
) -> pd.DataFrame:
    """LeNet or AlexNet, without and with SparsityReg, with these best accuracies in %."""
    parts = []
    for run in lenet_alexnet(dataset, networks=[network], seeds=seeds, epochs=20, **settings):
        accuracy = (with_sr if run.sparsity else without) + 0.01 * run.seed
        parts.append(stored(run, test_accuracy=accuracy, test_cross_entropy=kept))
    return together(*parts)


def paper(seeds=(0, 1, 2), **options) -> pd.DataFrame:
    """The paper's printed numbers as runs: Tables 2 and 3."""
    parts = []
    second, third = tables.published("sparsity_table2"), tables.published("sparsity_table3")
    for (dataset, size, optimizer), rows in second.groupby(["dataset", "size", "optimizer"]):
        best = dict(zip(rows.network, 100 * rows.best_accuracy, strict=True))
        where = {"dataset": dataset, "size": size, "optimizer": optimizer}
        parts.append(cell(best, seeds=seeds, **where, **options))
    for (dataset, network), rows in third.groupby(["dataset", "network"]):
        best = 100 * rows.set_index("regularized").best_accuracy
        parts.append(pair(network.lower(), best[False], best[True], dataset=dataset, seeds=seeds))
    return together(*parts)


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


def cells(frame: pd.DataFrame, claim: str, reading: str | None = None) -> pd.DataFrame:
    """The cells of one claim by name, of one reading if it is given."""
    found = claims.cells(by_experiment(frame), ["made"], [claim]).set_index("name")
    return found if reading is None else found[found.reading == reading]


def states(frame: pd.DataFrame, claim: str, reading: str | None = None) -> dict[str, str]:
    """The state of each cell of one claim, by name."""
    return cells(frame, claim, reading).state.to_dict()


def unfinished(frame: pd.DataFrame, hit: pd.Series) -> pd.DataFrame:
    """The same runs, those of the rows `hit` stated and not finished: one row without a number."""
    kept = frame[~hit]
    missing = frame[hit].drop_duplicates("id")
    measured = frame.columns[frame.columns.get_loc("num_classes") :]
    return together(kept, missing.assign(**dict.fromkeys(measured, np.nan)))
