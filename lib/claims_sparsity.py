"""Rules of the claims S1–S10 of the targeted-sparsity paper: stored runs of one profile and data set in, what was found out.

Accuracies are compared at the best epoch of those that the tables read, in points of %. Entropies are compared as a share of
their largest value, ln D, in %, so that layers with more filters do not weigh more.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from lib import measures, models
from lib.studies import VARIANTS
from lib.tables import best_accuracies, published
from lib.verdicts import PAIRED, Judged, of_parts, smallest_n, verdict

DEEP, SHALLOW = ("conv3", "conv4", "fc1"), ("conv1", "conv2")
SR = ("sr1Net", "sr2Net", "sr3Net")
SIZES = ("s", "m", "xxl")
HUNDRED = ("cifar100", "tiny_imagenet_32")  # the paper's set of 100 classes, and its stand-in


def _best(
    runs: pd.DataFrame, network: str, size: str = "", optimizer: str = "sgd", regularized: bool | None = None
) -> pd.Series:
    """Best accuracy in % by seed; −∞ where the loss became NaN, so that no cell holds because such a run is left out."""
    kept = (runs.network == network) & (runs["size"] == size) & (runs.optimizer == optimizer)
    table = best_accuracies(runs[(runs["size"] == size) & (runs.optimizer == optimizer)]) if kept.any() else pd.DataFrame()
    if table.empty:
        return pd.Series(dtype=float)
    table = table[(table.network == network) & (True if regularized is None else table.regularized == regularized)]
    return table.set_index("seed").best.astype(float).fillna(-np.inf)


def _pair(runs: pd.DataFrame, one: str, other: str, size: str, optimizer: str = "sgd") -> pd.Series:
    """Best accuracy of one − other, in points, by seed."""
    return (_best(runs, one, size, optimizer) - _best(runs, other, size, optimizer)).dropna()


def _column(runs: pd.DataFrame, network: str, size: str, optimizer: str, column: str) -> pd.DataFrame:
    """A measured column over epochs, a column a seed; as far as every network of the cell was trained."""
    cell = runs[(runs["size"] == size) & (runs.optimizer == optimizer)]
    own = cell[(cell.network == network) & (cell.epoch <= cell.epochs.min())] if len(cell) else cell
    return own.pivot(index="epoch", columns="seed", values=column) if len(own) and column in own else pd.DataFrame()


def _relative_entropy(runs: pd.DataFrame, network: str, size: str, optimizer: str, layer: str) -> pd.DataFrame:
    widths = dict(zip((*SHALLOW, *DEEP), models.CONVNET_WIDTHS[size], strict=True))
    return _column(runs, network, size, optimizer, f"entropy {layer}") * 100 / np.log(widths[layer])


def _moments(runs: pd.DataFrame, network: str, size: str, optimizer: str = "sgd") -> dict[int, int | None]:
    """Moment of overfitting by seed, over all epochs trained."""
    own = runs[(runs.network == network) & (runs["size"] == size) & (runs.optimizer == optimizer)]
    return {
        seed: measures.moment_of_overfitting(run.sort_values("epoch").test_cross_entropy) for seed, run in own.groupby("seed")
    }


def _sizes(runs: pd.DataFrame, optimizer: str = "sgd", least: Iterable[str] = ("vanillaNet",)) -> list[str]:
    """The sizes at which all of `least` were trained."""
    cells = runs[runs.optimizer == optimizer].groupby("size").network.agg(set)
    return [size for size in SIZES if size in cells and set(least) <= cells[size]]


def _printed(dataset: str, size: str, optimizer: str, networks: Iterable[str]) -> str:
    """The paper's accuracies in %, where it has any."""
    table = published("sparsity_table2")
    table = table[(table.dataset == dataset) & (table["size"] == size) & (table.optimizer == optimizer)]
    values = table.set_index("network").best_accuracy
    return ", ".join(f"{name} {100 * values[name]:.1f}" for name in networks if name in values)


def _accuracies(runs: pd.DataFrame, size: str, optimizer: str, networks: Iterable[str]) -> str:
    means = {name: _best(runs, name, size, optimizer).mean() for name in networks}
    return ", ".join(f"{name} {mean:.1f}" for name, mean in means.items() if not np.isnan(mean))


def _s1(runs: pd.DataFrame, dataset: str) -> Judged | None:
    held, said, seeds = [], [], set()
    for size in _sizes(runs):
        relative = {layer: _relative_entropy(runs, "vanillaNet", size, "sgd", layer) for layer in (*SHALLOW, *DEEP)}
        if any(curves.empty for curves in relative.values()):
            continue
        for seed, moment in _moments(runs, "vanillaNet", size).items():
            seeds.add(seed)
            last = relative["fc1"].index.max()
            if moment is None or moment > last:
                said.append(f"{size}, seed {seed}: does not overfit within {last} epochs")
                continue
            window = max(2, round(last / 20))
            begin, end = max(1, moment - window), min(last, moment + window)
            falls = {layer: curves.loc[begin, seed] - curves.loc[end, seed] for layer, curves in relative.items()}
            average = {k: (c.loc[1, seed] - c.loc[last, seed]) * (end - begin) / max(last - 1, 1) for k, c in relative.items()}
            deep, shallow = (np.mean([falls[layer] for layer in layers]) for layers in (DEEP, SHALLOW))
            held += [falls[layer] > 0 for layer in DEEP]
            held += [deep > 2 * max(shallow, 0), deep > np.mean([average[layer] for layer in DEEP])]
            said.append(
                f"{size}, seed {seed}: overfits at epoch {moment}; from epoch {begin} to {end} entropy falls by "
                + ", ".join(f"{layer} {fall:.1f}" for layer, fall in falls.items())
                + " % of ln D"
            )
    if not said:
        return None
    rule = (
        "vanillaNet with SGD, in a window of ± 1/20 of the training (at least 2 epochs) around its moment of overfitting, "
        "five parts a "
        "run: entropy falls in conv3, conv4 and fc1 each; their mean fall is more than twice that of conv1 and conv2; it is "
        "faster than "
        "the training's average"
    )
    judged = (
        of_parts([bool(h) for h in held], len(seeds)) if held else "not run: no vanillaNet overfits, so there is no such moment"
    )
    return Judged("", "; ".join(said), len(seeds), rule, judged)


def _s2(runs: pd.DataFrame, dataset: str) -> Judged | None:
    cells, said, expected = {}, [], 0
    for size in _sizes(runs):
        expected += 2
        for network in ("dropNet", "normNet"):
            pairs = []
            for layer in (*SHALLOW, *DEEP):
                one, other = (_relative_entropy(runs, n, size, "sgd", layer) for n in (network, "vanillaNet"))
                if len(one) and len(other):
                    pairs.append(one.iloc[-1] - other.iloc[-1])
            if pairs:
                cells[f"{network}-{size}"] = pd.concat(pairs, axis=1).mean(axis=1).dropna()
                said.append(f"{network}-{size} {cells[f'{network}-{size}'].mean():+.1f} % of ln D")
    if not cells:
        return None
    rule = (
        "a cell a network and size: d = mean over the hidden layers of entropy / ln D, in %, − vanillaNet's, last epoch "
        f"read; {PAIRED}"
    )
    return Judged("raised in all layers (Fig. 5)", ", ".join(said), smallest_n(cells), rule, verdict(cells, expected))


def _s3(runs: pd.DataFrame, dataset: str) -> Judged | None:
    held, said, n = [], [], []
    for size in _sizes(runs, least=("vanillaNet", "sr2Net")):
        for network in VARIANTS:
            moments = _moments(runs, network, size)
            if not moments:
                continue
            epochs = int(runs[(runs.network == network) & (runs["size"] == size) & (runs.optimizer == "sgd")].epochs.max())
            at = ", ".join("never" if m is None else str(m) for m in moments.values())
            said.append(f"{network}-{size} overfits at epoch {at} of {epochs}")
            if network == "vanillaNet":
                held.append(all(m is not None for m in moments.values()))
            elif network in SR:
                held.append(all(m is None for m in moments.values()))
            n.append(len(moments))
    if not held:
        return None
    rule = (
        "a part a network and size, every seed, SGD, all epochs trained: vanillaNet has a moment of overfitting (the "
        "smoothed validation "
        "loss ends more than 2 % above its least), sr1–sr3 have none"
    )
    printed = "sr1–sr3 never within 200 epochs, vanillaNet at epoch 8 (xxl)" if dataset in HUNDRED[:1] else ""
    return Judged(printed, "; ".join(said), min(n), rule, of_parts(held, min(n)))


def _s4(runs: pd.DataFrame, dataset: str) -> Judged | None:
    sizes = _sizes(runs)
    if not sizes:
        return None
    if len(sizes) < 3:
        measured = "; ".join(f"{size}: {_accuracies(runs, size, 'sgd', VARIANTS)}" for size in sizes)
        why = f"not run: sizes {', '.join(set(SIZES) - set(sizes))} were not trained here (they need a GPU)"
        return Judged("", measured, 0, "", why)
    gains = {
        (network, a, b): (_best(runs, network, b) - _best(runs, network, a)).dropna()
        for network in VARIANTS
        for a, b in (("s", "m"), ("m", "xxl"))
    }
    cells = {f"{k[0]} {k[1]}→{k[2]}": d for k, d in gains.items() if k[0] in ("normNet", *SR)}
    cells["dropNet s→m"], cells["dropNet m→xxl falls"] = gains["dropNet", "s", "m"], -gains["dropNet", "m", "xxl"]
    whole = {n: gains[n, "s", "m"] + gains[n, "m", "xxl"] for n in ("vanillaNet", "normNet", *SR)}
    least = pd.concat([whole[n] for n in ("normNet", *SR)], axis=1).min(axis=1)
    cells["vanillaNet hardly"] = (least / 3 - whole["vanillaNet"]).dropna()
    said = "; ".join(f"{size}: {_accuracies(runs, size, 'sgd', VARIANTS)}" for size in SIZES)
    printed = "; ".join(f"{size}: {_printed(dataset, size, 'sgd', VARIANTS)}" for size in SIZES)
    rule = (
        "eleven cells: d = gain from s to m and from m to xxl of normNet and sr1–sr3, dropNet's gain from s to m and its "
        "loss from m to "
        f"xxl, and a third of the least of the four's whole gains − vanillaNet's; {PAIRED}"
    )
    return Judged(printed, said, smallest_n(cells), rule, verdict(cells, 11))


def _s5(runs: pd.DataFrame, dataset: str) -> Judged | None:
    cells, said, printed, expected = {}, [], [], 0
    for size in _sizes(runs):
        expected += 1
        if len(d := _pair(runs, "sr2Net", "sr1Net", size)):
            cells[f"sr2 − sr1, {size}"] = d
        if dataset in HUNDRED:
            expected += 1
            others = pd.concat([_best(runs, n, size) for n in VARIANTS if n != "sr3Net"], axis=1).max(axis=1)
            if len(d := (_best(runs, "sr3Net", size) - others).dropna()):
                cells[f"sr3 − best other, {size}"] = d
        said.append(f"{size}: {_accuracies(runs, size, 'sgd', VARIANTS)}")
        printed.append(
            f"{size}: {_printed(dataset, size, 'sgd', VARIANTS)}" if _printed(dataset, size, "sgd", VARIANTS) else ""
        )
    if not cells:
        return None
    said.append(", ".join(f"{name} {d.mean():+.1f}" for name, d in cells.items()))
    rule = (
        "a cell a size: d = best accuracy of sr2Net − sr1Net; on the set of 100 classes also sr3Net − the best other "
        f"network; {PAIRED}"
    )
    return Judged("; ".join(filter(None, printed)), "; ".join(said), smallest_n(cells), rule, verdict(cells, expected))


def _s6(runs: pd.DataFrame, dataset: str) -> Judged | None:
    held, said, n = [], [], []
    for network, gains in (("sr1Net", False), ("sr2Net", False), ("sr3Net", True)):
        d = _pair(runs, network, "vanillaNet", "s")
        if len(d):
            up = bool(d.min() >= 1) if len(d) < 3 else bool(d.mean() > 2 * d.std(ddof=1) / np.sqrt(len(d)))
            held.append(up == gains)
            said.append(f"{network}-s − vanillaNet-s {d.mean():+.1f}")
            n.append(len(d))
    lenet = (_best(runs, "LeNet", regularized=True) - _best(runs, "LeNet", regularized=False)).dropna()
    if len(lenet):
        held.append(bool(0 < lenet.mean() <= 2))
        said.append(f"LeNet {lenet.mean():+.1f}")
        n.append(len(lenet))
    if not held:
        return None
    printed = _printed(dataset, "s", "sgd", ("vanillaNet", *SR))
    rule = (
        "four parts, best accuracy, SGD: sr1-s and sr2-s do not gain over vanillaNet-s (by the rule of a cell), sr3-s does; "
        "LeNet gains "
        "more than 0 and at most 2 points"
    )
    judged = of_parts(held, min(n)) if len(held) == 4 else f"not run: {len(held)} of 4 parts have finished runs"
    return Judged("; ".join(filter(None, [printed, _table3(dataset, "LeNet")])), ", ".join(said), min(n), rule, judged)


def _s7(runs: pd.DataFrame, dataset: str) -> Judged | None:
    d = (_best(runs, "AlexNet", regularized=True) - _best(runs, "AlexNet", regularized=False)).dropna()
    if d.empty:
        return None
    values = [_best(runs, "AlexNet", regularized=on).mean() for on in (False, True)]
    rule = f"a cell a data set: d = best accuracy with SparsityReg on all layers but the last − without; {PAIRED}"
    return Judged(
        _table3(dataset, "AlexNet"), f"AlexNet {values[0]:.1f} → {values[1]:.1f}", len(d), rule, verdict({"AlexNet": d}, 1)
    )


def _s8(runs: pd.DataFrame, dataset: str) -> Judged | None:
    held, said, n = [], [], []
    for size in _sizes(runs, "adam"):
        fall = {}
        for optimizer in ("sgd", "adam"):
            curves = [_relative_entropy(runs, "vanillaNet", size, optimizer, layer) for layer in DEEP]
            if all(map(len, curves)):
                tenth = max(1, round(curves[0].index.max() / 10))
                fall[optimizer] = pd.concat([c.loc[1] - c.loc[tenth] for c in curves], axis=1).mean(axis=1)
        if len(fall) == 2 and len(d := (fall["adam"] - fall["sgd"]).dropna()):
            held.append(bool((d > 0).all()))
            said.append(
                f"{size}: entropy falls in the first tenth by {fall['adam'].mean():.1f} % of ln D (SGD "
                f"{fall['sgd'].mean():.1f})"
            )
            n.append(len(d))
        for name in (s for s in SR if len(_best(runs, s, size, "adam"))):
            for other, sign in (("vanillaNet", 1), ("dropNet", -1), ("normNet", -1)):
                if len(d := sign * _pair(runs, name, other, size, "adam")):
                    held.append(bool((d > 0).all()))
                    n.append(len(d))
        said.append(f"{size}: {_accuracies(runs, size, 'adam', VARIANTS)}")
        rms = {k: _column(runs, k, size, "adam", "correlation conv1") for k in ("vanillaNet", "sr2Net", "sr3Net")}
        deep = {k: _column(runs, k, size, "adam", "correlation conv4") for k in ("vanillaNet", "sr2Net")}
        if all(map(len, deep.values())):
            held.append(bool((deep["sr2Net"].iloc[-1] > deep["vanillaNet"].iloc[-1] + 0.02).all()))
            said.append(f"rms correlation in conv4: {', '.join(f'{k} {v.iloc[-1].mean():.2f}' for k, v in deep.items())}")
        if all(map(len, rms.values())):
            held.append(bool((rms["sr3Net"].iloc[-1] < 0.5 * rms["sr2Net"].iloc[-1]).all()))
            said.append(f"in conv1: {', '.join(f'{k} {v.iloc[-1].mean():.2f}' for k, v in rms.items())}")
    if not held:
        return None
    rule = (
        "parts, a size with Adam, every seed: vanillaNet's entropy (conv3, conv4, fc1) falls faster than with SGD in the "
        "first tenth of "
        "the training; each sr network that was trained beats vanillaNet, and neither dropNet nor normNet; the filters of "
        "sr2Net's conv4 "
        "end more correlated than vanillaNet's (by 0.02 rms); in conv1 sr3Net's end below half of sr2Net's"
    )
    printed = _printed(dataset, "xxl", "adam", VARIANTS)
    return Judged(
        f"xxl: {printed}" if printed else "", "; ".join(said), min(n, default=1), rule, of_parts(held, min(n, default=1))
    )


def _s9(runs: pd.DataFrame, dataset: str) -> Judged | None:
    held, said, n = [], [], []
    for size in _sizes(runs, least=("vanillaNet", "sr2Net")):
        for network in ("sr1Net", "sr2Net"):
            rises = {}
            for layer in (*SHALLOW, *DEEP):
                one, other = (_column(runs, k, size, "sgd", f"correlation {layer}") for k in (network, "vanillaNet"))
                if len(one) and len(other):
                    rises[layer] = (one.iloc[-1] - other.iloc[-1]).dropna()
            if rises:
                held.append(all(bool((d <= 0.02).all()) for d in rises.values()))
                n.append(min(map(len, rises.values())))
                said.append(f"{network}-{size} " + ", ".join(f"{layer} {d.mean():+.3f}" for layer, d in rises.items()))
    if not held:
        return None
    rule = (
        "a part for sr1Net and sr2Net of each size: in every hidden layer and seed the rms correlation ends at most 0.02 "
        "above vanillaNet's"
    )
    return Judged("hardly differ (Fig. 7a, b)", "; ".join(said), min(n), rule, of_parts(held, min(n)))


def _s10(runs: pd.DataFrame, dataset: str) -> Judged | None:
    sizes = _sizes(runs)
    if not sizes:
        return None
    if not set(sizes) & {"m", "xxl"}:
        measured = f"s: {_accuracies(runs, 's', 'sgd', VARIANTS)}"
        return Judged("", measured, 0, "", "not run: sizes m and xxl were not trained here (they need a GPU)")
    cells, said, printed = {}, [], []
    for size in (s for s in ("m", "xxl") if s in sizes):
        for one in SR:
            for other in ("vanillaNet", "dropNet", "normNet"):
                if len(d := _pair(runs, one, other, size)):
                    cells[f"{one} − {other}, {size}"] = d
        said.append(f"{size}: {_accuracies(runs, size, 'sgd', VARIANTS)}")
        printed.append(f"{size}: {_printed(dataset, size, 'sgd', VARIANTS)}")
    rule = f"nine cells a size, m and xxl: d = best accuracy of sr1, sr2, sr3 − vanilla, drop, norm; {PAIRED}"
    expected = 9 * len(said)
    return Judged("; ".join(printed), "; ".join(said), smallest_n(cells), rule, verdict(cells, expected))


def _table3(dataset: str, network: str) -> str:
    table = published("sparsity_table3")
    values = table[(table.dataset == dataset) & (table.network == network)].set_index("regularized").best_accuracy
    return f"{network} {100 * values[False]:.1f} → {100 * values[True]:.1f}" if len(values) else ""


RULES: dict[str, Callable[[pd.DataFrame, str], Judged | None]] = {
    "S1": _s1,
    "S2": _s2,
    "S3": _s3,
    "S4": _s4,
    "S5": _s5,
    "S6": _s6,
    "S7": _s7,
    "S8": _s8,
    "S9": _s9,
    "S10": _s10,
}
