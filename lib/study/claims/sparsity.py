"""Rules of the claims S1–S10 of the targeted-sparsity paper.

Stored runs of one profile and data set go in, what was found comes out.

Accuracies are compared at the best epoch of those that the tables read, in points of %. Entropies
are compared as a share of their largest value, ln D, in %, so that layers with more filters do not
weigh more. No cell and no part of a rule holds because of a run whose loss became NaN.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from lib import models
from lib.study.claims.verdicts import (
    PAIRED,
    Judged,
    cell_holds,
    claim,
    differences,
    of_parts,
    smallest_n,
    verdict,
)
from lib.study.experiments import VARIANTS
from lib.study.tables import (
    DIVERGED,
    SIZES,
    SPARSITY_CELL,
    SPARSITY_EPOCHS,
    best_accuracies,
    mean_text,
    one_setting,
    overfitting,
    published,
    sparsity_runs,
)

DEEP = ("conv3", "conv4", "fc1")
SHALLOW = ("conv1", "conv2")
SR = ("sr1Net", "sr2Net", "sr3Net")
COLUMNS = ["network", "seed", "epoch", "epochs", "diverged"]
PRINTED = ("cifar10", "cifar100", "tiny_imagenet")  # the paper's data sets
HUNDRED = "cifar100"  # the paper's set of 100 classes


def networks(runs: pd.DataFrame) -> pd.DataFrame:
    """The paper's networks, as printed.

    Raises:
        ValueError: if runs of one cell differ in more than seed and length.
    """
    rows = sparsity_runs(runs)
    for cell, own in rows.groupby(["profile", *SPARSITY_CELL, "regularized", "reading"]):
        one_setting(own, cell)
    return rows


def _best(
    best: pd.DataFrame,
    network: str,
    size: str = "",
    optimizer: str = "sgd",
    regularized: bool | None = None,
) -> pd.Series:
    """Best accuracy in % by seed, out of `tables.best_accuracies`; −∞ where the loss became NaN."""
    kept = (best.network == network) & (best["size"] == size) & (best.optimizer == optimizer)
    if regularized is not None:
        kept &= best.regularized == regularized
    return best[kept].set_index("seed").best.astype(float).fillna(-np.inf)


def _pair(best: pd.DataFrame, one: str, other: str, size: str, optimizer: str = "sgd") -> pd.Series:
    """Best accuracy of one − other, in points, by seed."""
    return differences(_best(best, one, size, optimizer), _best(best, other, size, optimizer))


def _beats(d: pd.Series) -> bool:
    """Whether d > 0 by the rule of a cell; with one seed, which can only indicate, by a point."""
    return bool(cell_holds(d)) if len(d) != 1 else bool(1 <= d.min() < np.inf)


def _column(
    runs: pd.DataFrame,
    network: str,
    size: str,
    optimizer: str,
    column: str,
    most: int = SPARSITY_EPOCHS,
) -> pd.DataFrame:
    """A measured column over epochs, one column per seed.

    It goes as far as every network of the cell was trained, and as the tables read.

    NaN from the epoch on at which a run's loss became NaN; a run that did not measure the column is
    left out.
    """
    if column not in runs:
        return pd.DataFrame()
    cell = runs.loc[(runs["size"] == size) & (runs.optimizer == optimizer), [*COLUMNS, column]]
    own = cell[cell.network == network]
    read = min(int(cell.epochs.min()), most) if len(cell) else 0
    seeds = own.seed[own[column].notna() | own.diverged.notna()].unique()
    curves = own[own.epoch <= read].pivot(index="epoch", columns="seed", values=column)
    return curves.reindex(index=range(1, read + 1), columns=sorted(seeds))


def _relative_entropy(
    runs: pd.DataFrame,
    network: str,
    size: str,
    optimizer: str,
    layer: str,
    most: int = SPARSITY_EPOCHS,
) -> pd.DataFrame:
    filters = models.convnet_filters(size)[layer]
    return _column(runs, network, size, optimizer, f"entropy {layer}", most) * 100 / np.log(filters)


def _at_the_end(curves: pd.DataFrame) -> pd.Series:
    return curves.iloc[-1] if not curves.empty else pd.Series(dtype=float)


def _overfitting(runs: pd.DataFrame, network: str, size: str) -> pd.DataFrame:
    """One row per seed with SGD, over all epochs trained.

    It has the `moment` of overfitting and `rise` of the loss, or that it `diverged`.
    """
    return overfitting(
        runs[(runs.network == network) & (runs["size"] == size) & (runs.optimizer == "sgd")]
    )


def _moment(row) -> int | str | None:
    return DIVERGED if pd.notna(row.diverged) else int(row.moment) if pd.notna(row.moment) else None


def _sizes(
    runs: pd.DataFrame, optimizer: str = "sgd", least: Iterable[str] = ("vanillaNet",)
) -> list[str]:
    """The sizes at which all of `least` were trained."""
    cells = runs[runs.optimizer == optimizer].groupby("size").network.agg(set)
    return [size for size in SIZES if size in cells and set(least) <= cells[size]]


def _printed(dataset: str, size: str, optimizer: str, networks: Iterable[str]) -> str:
    """The paper's accuracies in %, where it has any."""
    table = published("sparsity_table2")
    table = table[
        (table.dataset == dataset) & (table["size"] == size) & (table.optimizer == optimizer)
    ]
    values = table.set_index("network").best_accuracy
    return ", ".join(f"{name} {100 * values[name]:.1f}" for name in networks if name in values)


def _printed_of(dataset: str, sizes: Iterable[str]) -> str:
    """The paper's accuracies in % with SGD, by size."""
    printed = {size: _printed(dataset, size, "sgd", VARIANTS) for size in sizes}
    return "; ".join(f"{size}: {values}" for size, values in printed.items() if values)


def _accuracies(best: pd.DataFrame, size: str, optimizer: str) -> str:
    values = {name: _best(best, name, size, optimizer) for name in VARIANTS}
    return ", ".join(f"{name} {mean_text(own)}" for name, own in values.items() if len(own))


@claim("S1", "sparsity_networks", select=networks)
def _s1(runs: pd.DataFrame, dataset: str) -> Judged | None:
    held = []
    said = []
    n = []
    # read as far as it was trained, whatever the length of the others
    runs = runs[runs.network == "vanillaNet"]
    for size in _sizes(runs):
        every = int(runs.epochs.max())
        relative = {
            layer: _relative_entropy(runs, "vanillaNet", size, "sgd", layer, every)
            for layer in (*SHALLOW, *DEEP)
        }
        if any(curves.empty for curves in relative.values()):
            continue
        last = int(relative["fc1"].index.max())
        judged = 0
        moments = {
            row.seed: _moment(row) for row in _overfitting(runs, "vanillaNet", size).itertuples()
        }
        for seed, moment in moments.items():
            if not all(seed in curves for curves in relative.values()):
                continue
            if moment is None or (moment != DIVERGED and moment > last):
                said.append(f"{size}, seed {seed}: does not overfit within {last} epochs")
                continue
            judged += 1
            if moment == DIVERGED:
                said.append(f"{size}, seed {seed}: {DIVERGED}")
                held += [False] * 5
                continue
            window = max(2, round(last / 20))
            begin = max(1, moment - window)
            end = min(last, moment + window)
            falls = {
                layer: curves.loc[begin, seed] - curves.loc[end, seed]
                for layer, curves in relative.items()
            }
            average = {
                k: (c.loc[1, seed] - c.loc[last, seed]) * (end - begin) / max(last - 1, 1)
                for k, c in relative.items()
            }
            deep, shallow = (
                np.mean([falls[layer] for layer in layers]) for layers in (DEEP, SHALLOW)
            )
            held += [falls[layer] > 0 for layer in DEEP]
            held += [deep > 2 * max(shallow, 0), deep > np.mean([average[layer] for layer in DEEP])]
            said.append(
                f"{size}, seed {seed}: overfits at epoch {moment}; from epoch {begin} to {end} "
                "entropy falls by "
                + ", ".join(f"{layer} {fall:.1f}" for layer, fall in falls.items())
                + " % of ln D"
            )
        n += [judged] if judged else []
    if not said:
        return None
    rule = (
        "vanillaNet with SGD, in a window of ± 1/20 of the training (at least 2 epochs) around "
        "its moment of overfitting, five parts a run: entropy falls in conv3, conv4 and fc1 each; "
        "their mean fall is more than twice that of conv1 and conv2; it is faster than the "
        "training's average"
    )
    judged = (
        of_parts([bool(h) for h in held], min(n))
        if held
        else "not run: no vanillaNet overfits: there is no such moment"
    )
    return Judged("", "; ".join(said), min(n, default=0), rule, judged)


@claim("S2", "sparsity_networks", select=networks)
def _s2(runs: pd.DataFrame, dataset: str) -> Judged | None:
    cells = {}
    said = []
    expected = 0
    for size in _sizes(runs):
        expected += 2
        for network in ("dropNet", "normNet"):
            pairs = []
            for layer in (*SHALLOW, *DEEP):
                own = _at_the_end(_relative_entropy(runs, network, size, "sgd", layer))
                vanilla = _at_the_end(_relative_entropy(runs, "vanillaNet", size, "sgd", layer))
                pairs.append(differences(own, vanilla))
            if len(d := pd.concat(pairs, axis=1, join="inner").mean(axis=1)):
                cells[f"{network}-{size}"] = d
                layers = ", ".join(
                    f"{k} {mean_text(p, '+.0f')}"
                    for k, p in zip((*SHALLOW, *DEEP), pairs, strict=True)
                )
                said.append(f"{network}-{size} {mean_text(d, '+.1f')} % of ln D ({layers})")
    if not cells:
        return None
    rule = (
        "a cell a network and size: d = mean over the hidden layers of entropy / ln D, in %, − "
        f"vanillaNet's, last epoch read; {PAIRED}"
    )
    printed = "raised for all layers (section 5)" if dataset in PRINTED else ""
    return Judged(printed, "; ".join(said), smallest_n(cells), rule, verdict(cells, expected))


@claim("S3", "sparsity_networks", select=networks, by_reading=True)
def _s3(runs: pd.DataFrame, dataset: str) -> Judged | None:
    held = []
    said = []
    n = []
    sizes = _sizes(runs, least=("vanillaNet", "sr2Net"))
    for size in sizes:
        for network in VARIANTS:
            found = _overfitting(runs, network, size)
            if found.empty:
                continue
            moments = [_moment(row) for row in found.itertuples()]
            at = [
                f"{m} (+{rise:.0f} %)" if isinstance(m, int) else m or "never"
                for m, rise in zip(moments, found.rise, strict=True)
            ]
            said.append(f"{network}-{size} {', '.join(at)} of {found.epochs.max()}")
            if network == "vanillaNet":
                held.append(all(isinstance(m, int) for m in moments))
            elif network in SR:
                held.append(all(m is None for m in moments))
            if network not in ("dropNet", "normNet"):  # these are said, not judged
                n.append(len(moments))
    if not held:
        return None
    rule = (
        "a part for vanillaNet and sr1–sr3 of each size, every seed, SGD, all epochs trained: "
        "vanillaNet has a moment of overfitting (the smoothed validation loss ends more than 2 % "
        "above its least), sr1–sr3 have none"
    )
    printed = (
        "sr1–sr3 never within 200 epochs, vanillaNet at epoch 8 (xxl)" if dataset == HUNDRED else ""
    )
    said = (
        "moment of overfitting by seed (and how far the smoothed loss ends above its least): "
        + "; ".join(said)
    )
    return Judged(printed, said, min(n), rule, of_parts(held, min(n), 4 * len(sizes)))


@claim("S4", "sparsity_networks", select=networks, by_reading=True)
def _s4(runs: pd.DataFrame, dataset: str) -> Judged | None:
    sizes = _sizes(runs)
    best = best_accuracies(runs)
    if not sizes:
        return None
    said = "; ".join(f"{size}: {_accuracies(best, size, 'sgd')}" for size in sizes)
    if len(sizes) < 3:
        missing = ", ".join(size for size in SIZES if size not in sizes)
        return Judged("", said, 0, "", f"not run: no finished vanillaNet of size {missing}")
    gains = {
        (network, a, b): differences(_best(best, network, b), _best(best, network, a))
        for network in VARIANTS
        for a, b in (("s", "m"), ("m", "xxl"))
    }
    cells = {f"{k[0]} {k[1]}→{k[2]}": d for k, d in gains.items() if k[0] in ("normNet", *SR)}
    cells["dropNet s→m"] = gains["dropNet", "s", "m"]
    cells["dropNet m→xxl falls"] = differences(
        _best(best, "dropNet", "m"), _best(best, "dropNet", "xxl")
    )
    whole = {
        n: differences(_best(best, n, "xxl"), _best(best, n, "s"))
        for n in ("vanillaNet", "normNet", *SR)
    }
    least = pd.concat([whole[n] for n in ("normNet", *SR)], axis=1, join="inner").min(axis=1)
    cells["vanillaNet hardly"] = differences(least / 3, whole["vanillaNet"])
    rule = (
        "eleven cells: d = gain from s to m and from m to xxl of normNet and sr1–sr3, dropNet's "
        "gain from s to m and its loss from m to xxl, and a third of the least of the four's "
        f"whole gains − vanillaNet's; {PAIRED}"
    )
    return Judged(_printed_of(dataset, SIZES), said, smallest_n(cells), rule, verdict(cells, 11))


@claim("S5", "sparsity_networks", select=networks, by_reading=True)
def _s5(runs: pd.DataFrame, dataset: str) -> Judged | None:
    cells = {}
    said = []
    expected = 0
    best = best_accuracies(runs)
    for size in _sizes(runs):
        expected += 1
        if len(d := _pair(best, "sr2Net", "sr1Net", size)):
            cells[f"sr2 − sr1, {size}"] = d
        if dataset == HUNDRED:
            expected += 1
            others = pd.concat(
                [_best(best, n, size) for n in VARIANTS if n != "sr3Net"], axis=1, join="inner"
            )
            # the best of the others is not known where one of them diverged
            finite = np.isfinite(others).all(axis=1)
            if len(
                d := differences(
                    _best(best, "sr3Net", size), others.max(axis=1).where(finite, -np.inf)
                )
            ):
                cells[f"sr3 − best other, {size}"] = d
        said.append(f"{size}: {_accuracies(best, size, 'sgd')}")
    for size in _sizes(runs, "adam", ("sr1Net", "sr2Net")):
        expected += 1
        cells[f"sr2 − sr1, {size}, Adam"] = _pair(best, "sr2Net", "sr1Net", size, "adam")
    if not cells:
        return None
    said.append(", ".join(f"{name} {mean_text(d, '+.1f')}" for name, d in cells.items() if len(d)))
    rule = (
        "a cell a size, and one for Adam where both were trained: d = best accuracy of sr2Net − "
        "sr1Net; on the set of 100 classes with SGD also sr3Net − the best of the five others; "
        f"{PAIRED}"
    )
    return Judged(
        _printed_of(dataset, _sizes(runs)),
        "; ".join(said),
        smallest_n(cells),
        rule,
        verdict(cells, expected),
    )


@claim("S6", "sparsity_networks", "lenet_alexnet", select=networks, by_reading=True)
def _s6(runs: pd.DataFrame, dataset: str) -> Judged | None:
    held = []
    said = []
    n = []
    best = best_accuracies(runs)
    for network, gains in (("sr1Net", False), ("sr2Net", False), ("sr3Net", True)):
        d = _pair(best, network, "vanillaNet", "s")
        if len(d):
            held.append(bool(np.isfinite(d).all()) and _beats(d) == gains)
            said.append(f"{network}-s − vanillaNet-s {mean_text(d, '+.1f')}")
            n.append(len(d))
    lenet = differences(
        _best(best, "LeNet", regularized=True), _best(best, "LeNet", regularized=False)
    )
    if len(lenet):
        held.append(bool(0 < lenet.mean() <= 2))
        said.append(f"LeNet {mean_text(lenet, '+.1f')}")
        n.append(len(lenet))
    if not held:
        return None
    printed = _printed(dataset, "s", "sgd", ("vanillaNet", *SR))
    rule = (
        "four parts, best accuracy, SGD: sr1-s and sr2-s do not gain over vanillaNet-s (by the "
        "rule of a cell), sr3-s does; LeNet gains more than 0 and at most 2 points"
    )
    printed = "; ".join(filter(None, [printed, _table3(dataset, "LeNet")]))
    return Judged(printed, ", ".join(said), min(n), rule, of_parts(held, min(n), 4))


@claim("S7", "lenet_alexnet", select=networks, by_reading=True)
def _s7(runs: pd.DataFrame, dataset: str) -> Judged | None:
    best = best_accuracies(runs)
    without, with_sr = (_best(best, "AlexNet", regularized=on) for on in (False, True))
    d = differences(with_sr, without)
    if d.empty:
        return None
    rule = (
        "a cell a data set: d = best accuracy with SparsityReg on all layers but the last − "
        f"without; {PAIRED}"
    )
    measured = f"AlexNet {mean_text(without)} → {mean_text(with_sr)}"
    return Judged(_table3(dataset, "AlexNet"), measured, len(d), rule, verdict({"AlexNet": d}, 1))


@claim("S8", "sparsity_networks", select=networks, by_reading=True)
def _s8(runs: pd.DataFrame, dataset: str) -> Judged | None:
    held = {
        "entropy with Adam and SGD": [],
        "an sr network beside others": [],
        "conv4's filters": [],
        "conv1's filters": [],
    }
    entropy, accuracy, conv4, conv1 = held.values()
    said = []
    n = []
    best = best_accuracies(runs)
    sizes = _sizes(runs, "adam")
    for size in sizes:
        curves = [
            [_relative_entropy(runs, "vanillaNet", size, k, layer) for layer in DEEP]
            for k in ("adam", "sgd")
        ]
        if not any(c.empty for own in curves for c in own):
            # one epoch, were one trained for longer
            tenth = max(1, round(min(own[0].index.max() for own in curves) / 10))
            # every network starts within a percent of ln D
            adam, sgd = (
                100 - pd.concat([c.loc[tenth] for c in own], axis=1).mean(axis=1, skipna=False)
                for own in curves
            )
            if len(d := differences(adam, sgd)):
                entropy.append(bool((d > 0).all()))
                n.append(len(d))
                fallen = (
                    f"after epoch {tenth} entropy has fallen by {mean_text(adam)} % of ln D "
                    f"(SGD {mean_text(sgd)})"
                )
                said.append(f"{size}: {fallen}")
        for name in SR:
            for other, better in (("vanillaNet", True), ("dropNet", False), ("normNet", False)):
                if len(d := _pair(best, name, other, size, "adam")):
                    accuracy.append(bool(np.isfinite(d).all()) and _beats(d) == better)
                    n.append(len(d))
        said.append(f"{size}: {_accuracies(best, size, 'adam')}")
        for parts, layer, one, other in (
            (conv4, "conv4", "sr2Net", "vanillaNet"),
            (conv1, "conv1", "sr2Net", "sr3Net"),
        ):
            rms = {
                k: _at_the_end(_column(runs, k, size, "adam", f"correlation {layer}"))
                for k in (one, other)
            }
            factor, least = (1, 0.02) if layer == "conv4" else (0.5, 0)
            if len(d := differences(factor * rms[one], rms[other])):
                parts.append(bool((d > least).all()))
                n.append(len(d))
                said.append(
                    f"{size}: rms correlation in {layer}: "
                    + ", ".join(f"{k} {mean_text(v, '.2f')}" for k, v in rms.items())
                )
    if not sizes:
        return None
    rule = (
        "parts, a size with Adam: after a tenth of the shorter training vanillaNet's entropy "
        "(conv3, conv4, fc1) is further below ln D than with SGD, every seed; each sr network "
        "that was trained beats vanillaNet, and neither dropNet nor normNet (by the rule of a "
        "cell); the filters of sr2Net's conv4 end more correlated than vanillaNet's (by 0.02 "
        "rms), every seed; in conv1 sr3Net's end below half of sr2Net's, every seed"
    )
    printed = _printed(dataset, "xxl", "adam", VARIANTS)
    missing = [what for what, parts in held.items() if not parts]
    judged = of_parts([h for parts in held.values() for h in parts], min(n, default=0))
    judged = f"not run: no finished runs for {', '.join(missing)}" if missing else judged
    return Judged(
        f"xxl: {printed}" if printed else "", "; ".join(said), min(n, default=0), rule, judged
    )


@claim("S9", "sparsity_networks", select=networks, by_reading=True)
def _s9(runs: pd.DataFrame, dataset: str) -> Judged | None:
    held = []
    said = []
    n = []
    sizes = _sizes(runs, least=("vanillaNet", "sr2Net"))
    for size in sizes:
        for network in ("sr1Net", "sr2Net"):
            rises = {}
            for layer in (*SHALLOW, *DEEP):
                column = f"correlation {layer}"
                own = _at_the_end(_column(runs, network, size, "sgd", column))
                vanilla = _at_the_end(_column(runs, "vanillaNet", size, "sgd", column))
                rises[layer] = differences(own, vanilla)
            if all(map(len, rises.values())):
                held.append(all(bool((np.isfinite(d) & (d <= 0.02)).all()) for d in rises.values()))
                n.append(min(map(len, rises.values())))
                said.append(
                    f"{network}-{size} "
                    + ", ".join(f"{layer} {mean_text(d, '+.3f')}" for layer, d in rises.items())
                )
    if not held:
        return None
    rule = (
        "a part for sr1Net and sr2Net of each size: in every hidden layer and seed the rms "
        "correlation ends at most 0.02 above vanillaNet's"
    )
    judged = of_parts(held, min(n), 2 * len(sizes))
    return Judged(
        "hardly differ (Fig. 7a, b)" if dataset in PRINTED else "",
        "; ".join(said),
        min(n),
        rule,
        judged,
    )


@claim("S10", "sparsity_networks", select=networks, by_reading=True)
def _s10(runs: pd.DataFrame, dataset: str) -> Judged | None:
    sizes = _sizes(runs)
    best = best_accuracies(runs)
    if not sizes:
        return None
    if not set(sizes) & {"m", "xxl"}:
        measured = f"s: {_accuracies(best, 's', 'sgd')}"
        return Judged("", measured, 0, "", "not run: no finished vanillaNet of size m, xxl")
    sizes = [size for size in ("m", "xxl") if size in sizes]
    cells = {}
    for size in sizes:
        for one in SR:
            for other in ("vanillaNet", "dropNet", "normNet"):
                cells[f"{one} − {other}, {size}"] = _pair(best, one, other, size)
    cells = {name: d for name, d in cells.items() if len(d)}
    said = "; ".join(f"{size}: {_accuracies(best, size, 'sgd')}" for size in sizes)
    rule = (
        "nine cells a size, m and xxl (only xxl on sets of other than 100 classes): d = best "
        f"accuracy of sr1, sr2, sr3 − vanilla, drop, norm; {PAIRED}"
    )
    expected = 9 * (2 if dataset == HUNDRED else len(sizes))
    return Judged(
        _printed_of(dataset, sizes), said, smallest_n(cells), rule, verdict(cells, expected)
    )


def _table3(dataset: str, network: str) -> str:
    table = published("sparsity_table3")
    values = (
        table[(table.dataset == dataset) & (table.network == network)]
        .set_index("regularized")
        .best_accuracy
    )
    return f"{network} {100 * values[False]:.1f} → {100 * values[True]:.1f}" if len(values) else ""
