"""Rules of the claims S1–S10 of the targeted-sparsity paper.

The runs that one profile states on one data set go in, cells come out.

Accuracies are compared at the best epoch of those that the tables read, in points of %. Entropies
are compared as a share of their largest value, ln D, in %, so that layers weigh alike.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import pandas as pd

from lib import measures, models
from lib.study import tables
from lib.study.claims.verdicts import (
    Cell,
    Sample,
    all_gains,
    by_seed,
    claim,
    each_run,
    gain,
    no_gain,
    not_lower,
    shown,
)
from lib.study.experiments import VARIANTS
from lib.study.tables import SIZES, SPARSITY_CELL, SPARSITY_EPOCHS, one_setting, sparsity_runs

DEEP = ("conv3", "conv4", "fc1")
SHALLOW = ("conv1", "conv2")
LAYERS = (*SHALLOW, *DEEP)
ENTROPIES = tuple(f"entropy {layer}" for layer in LAYERS)
SR = ("sr1Net", "sr2Net", "sr3Net")
UNREGULARISED = ("vanillaNet", "dropNet", "normNet")
HUNDRED = "cifar100"  # the paper's set of 100 classes
CORRELATION = 0.02  # rms correlations that differ by less hardly differ


def networks(runs: pd.DataFrame) -> pd.DataFrame:
    """The paper's networks, as printed.

    Raises:
        ValueError: if runs of one cell differ in more than seed and length.
    """
    rows = sparsity_runs(runs)
    for cell, own in rows.groupby(["profile", *SPARSITY_CELL, "regularized", "reading"]):
        one_setting(own, cell)
    return rows


def _network(runs: pd.DataFrame, network: str, size: str, optimizer: str = "sgd") -> pd.DataFrame:
    kept = (runs.network == network) & (runs["size"] == size) & (runs.optimizer == optimizer)
    return runs[kept]


def _sizes(runs: pd.DataFrame, optimizer: str = "sgd") -> list[str]:
    """The sizes of ConvNets that are stated."""
    there = set(runs[runs.optimizer == optimizer]["size"])
    return [size for size in SIZES if size in there]


def _of_best(one: pd.DataFrame, other: pd.DataFrame) -> Sample | None:
    """Best accuracy of one network − the other's, in points, by seed."""

    def difference(one: pd.DataFrame, other: pd.DataFrame) -> float:
        return one.test_accuracy.max() - other.test_accuracy.max()

    return by_seed(difference, one, other, accuracy="best", most=SPARSITY_EPOCHS)


def _printed(dataset: str, size: str, network: str, optimizer: str = "sgd") -> float:
    """The paper's accuracy in %; NaN where it prints none."""
    row = {"dataset": dataset, "size": size, "optimizer": optimizer, "network": network}
    return 100 * tables.printed("sparsity_table2", "best_accuracy", **row)


def _beside(
    runs: pd.DataFrame,
    dataset: str,
    one: str,
    other: str,
    size: str,
    optimizer: str = "sgd",
    kind=gain,
) -> Cell | None:
    """A cell of one network's best accuracy − another's of the same size."""
    sample = _of_best(*(_network(runs, name, size, optimizer) for name in (one, other)))
    printed = [_printed(dataset, size, name, optimizer) for name in (one, other)]
    where = size + (", Adam" if optimizer == "adam" else "")
    return kind(f"{one} − {other}, {where}", sample, printed[0] - printed[1])


def _relative_entropy(run: pd.DataFrame, size: str, layer: str) -> pd.Series:
    """Of one run in % of ln D by epoch, from epoch 1 on."""
    after = run[run.epoch >= 1].set_index("epoch")[f"entropy {layer}"]
    return after * 100 / np.log(models.convnet_filters(size)[layer])


def _moment(run: pd.DataFrame) -> int | None:
    """The run's moment of overfitting."""
    return measures.overfitting_onset(run.test_cross_entropy.dropna())


def _falls(run: pd.DataFrame, size: str) -> tuple[dict[str, float], dict[str, float]]:
    """By layer the fall of entropy around the moment of overfitting, in % of ln D.

    Also the 75th percentile of the falls in all windows of the run that are as wide.
    """
    last = int(run.epochs.iloc[0])
    half = max(2, round(last / 20))
    begin = min(max(1, _moment(run) - half), max(1, last - 2 * half))
    around, usual = {}, {}
    for layer in LAYERS:
        curve = _relative_entropy(run, size, layer).to_numpy()
        falls = curve[: -2 * half] - curve[2 * half :] if len(curve) > 2 * half else np.zeros(1)
        around[layer] = falls[begin - 1]
        usual[layer] = np.percentile(falls, 75)
    return around, usual


@claim("S1", "sparsity_networks", select=networks)
def _s1(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """vanillaNet with SGD, two cells a size, true or false of a run: in a window of ± 1/20 of the
    epochs (at least ± 2, shifted inside the run, which is read from epoch 1 on) around its moment
    of overfitting, (a) the fall of entropy is above the 75th percentile of all equally wide windows
    in at least three of the five layers; (b) the least fall, in % of ln D, of conv3, conv4 and fc1
    is above the larger of conv1's and conv2's. A run without such a moment is not counted; where
    there is none, the cell says nothing.
    """

    def unusual(run: pd.DataFrame, size: str) -> float:
        around, usual = _falls(run, size)
        return sum(around[layer] > usual[layer] for layer in LAYERS)

    def deeper(run: pd.DataFrame, size: str) -> float:
        around, _ = _falls(run, size)
        return min(around[k] for k in DEEP) - max(around[k] for k in SHALLOW)

    def where_it_overfits(run: pd.DataFrame, size: str, value) -> float:
        return np.nan if _moment(run) is None else value(run, size)

    for size in _sizes(runs):
        vanilla = _network(runs, "vanillaNet", size)
        for name, value, claimed, kind in (
            ("layers that fall unusually fast", unusual, lambda v: v >= 3, "≥ 3 of 5"),
            ("later layers' least fall − earlier ones' largest", deeper, lambda v: v > 0, "> 0"),
        ):
            of_run = partial(where_it_overfits, size=size, value=value)
            sample = _where_known(by_seed(of_run, vanilla, accuracy="best", needs=ENTROPIES))
            yield each_run(f"{name}, {size}", sample, claimed, kind)


def _where_known(sample: Sample | None) -> Sample | None:
    """Without the seeds that have no number; where none has one, the sample says nothing."""
    if sample is None or sample.values.empty or not sample.alive:
        return sample
    known = sample.values.dropna()
    return Sample(known, True, sample.images) if len(known) else Sample(sample.values, alive=False)


@claim("S2", "sparsity_networks", select=networks)
def _s2(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """With SGD, a gain by t without the ± 2 for each hidden layer of dropNet and normNet of each
    size: entropy at the last epoch − vanillaNet's, in % of ln D.
    """

    def raised(one: pd.DataFrame, other: pd.DataFrame, size: str, layer: str) -> float:
        ends = [_relative_entropy(run, size, layer).iloc[-1] for run in (one, other)]
        return ends[0] - ends[1]

    for size in _sizes(runs):
        for network in ("dropNet", "normNet"):
            pair = [_network(runs, name, size) for name in (network, "vanillaNet")]
            for layer in LAYERS:
                value = partial(raised, size=size, layer=layer)
                read = {"most": SPARSITY_EPOCHS, "needs": [f"entropy {layer}"]}
                sample = by_seed(value, *pair, accuracy="best", **read)
                yield gain(f"{network}-{size}, {layer}", sample, margin=None)


@claim("S3", "sparsity_networks", select=networks, by_reading=True)
def _s3(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """With SGD, a cell for sr1, sr2, sr3 of each size, and dropNet of s and m, true or false of a
    run: over all its epochs it does not overfit, that is, its smoothed validation loss ends at most
    2 % above its least. A seed in which vanillaNet does not overfit over its own is not counted;
    where none is left, the cell says nothing.
    """

    def rise(run: pd.DataFrame, vanilla: pd.DataFrame) -> float:
        if _moment(vanilla) is None:
            return np.nan
        return measures.rise_after_least(run.test_cross_entropy.dropna())

    for size in _sizes(runs):
        judged = (*SR, "dropNet") if size in ("s", "m") else SR
        for network in (*judged, *({"dropNet", "normNet"} - set(judged))):
            pair = [_network(runs, name, size) for name in (network, "vanillaNet")]
            sample = _where_known(by_seed(rise, *pair, accuracy="best", cut=False))
            name = f"rise of {network}-{size}'s loss (%)"
            if network in judged:
                yield each_run(name, sample, lambda v: v <= 2, "≤ 2 %")
            elif sample is not None and sample.alive:
                yield shown(name, sample, "≤ 2 %")


@claim("S4", "sparsity_networks", select=networks, by_reading=True)
def _s4(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """Best accuracy with SGD, m − s and xxl − m: eight gains of normNet, sr1, sr2, sr3; no gain,
    twice, of vanillaNet; dropNet a gain from s to m, and m − xxl a gain.
    """
    for network in ("normNet", *SR, "vanillaNet", "dropNet"):
        for smaller, larger in (("s", "m"), ("m", "xxl")):
            falls = network == "dropNet" and larger == "xxl"
            one, other = (smaller, larger) if falls else (larger, smaller)
            sample = _of_best(*(_network(runs, network, size) for size in (one, other)))
            printed = _printed(dataset, one, network) - _printed(dataset, other, network)
            kind = no_gain if network == "vanillaNet" else gain
            yield kind(f"{network}, {one} − {other}", sample, printed)


@claim("S5", "sparsity_networks", select=networks, by_reading=True)
def _s5(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """Best accuracy: sr2Net − sr1Net is not lower, a cell a size and optimiser; on the set of 100
    classes with SGD, a cell a size, sr3Net is above each of the five others: it holds if all five
    gains do, and fails if one is a shown loss.
    """
    for optimizer in ("sgd", "adam"):
        for size in _sizes(runs, optimizer):
            yield _beside(runs, dataset, "sr2Net", "sr1Net", size, optimizer, kind=not_lower)
    if dataset == HUNDRED:
        for size in _sizes(runs):
            others = [name for name in VARIANTS if name != "sr3Net"]
            gains = [_beside(runs, dataset, "sr3Net", other, size) for other in others]
            yield all_gains(f"sr3Net − best other, {size}", gains, "five gains")


def _lenet_alexnet(runs: pd.DataFrame, dataset: str, network: str) -> tuple[Sample | None, float]:
    """Table 3: what SparsityReg adds to a network's best accuracy, measured and printed."""
    own = runs[runs.network == network]
    sample = _of_best(own[own.regularized], own[~own.regularized])
    row = {"dataset": dataset, "network": network}
    with_sr, without = (
        tables.printed("sparsity_table3", "best_accuracy", regularized=regularized, **row)
        for regularized in (True, False)
    )
    return sample, 100 * (with_sr - without)


@claim("S6", "sparsity_networks", "lenet_alexnet", select=networks, by_reading=True)
def _s6(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """Best accuracy with SGD over vanillaNet at size s: no gain of sr1 and sr2, a gain of sr3;
    LeNet with SparsityReg no gain over LeNet without.
    """
    for network, kind in (("sr1Net", no_gain), ("sr2Net", no_gain), ("sr3Net", gain)):
        yield _beside(runs, dataset, network, "vanillaNet", "s", kind=kind)
    yield no_gain("LeNet", *_lenet_alexnet(runs, dataset, "LeNet"))


@claim("S7", "lenet_alexnet", select=networks, by_reading=True, over_sets=True)
def _s7(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """A gain a data set: best accuracy of AlexNet with SparsityReg on all layers but the last −
    without.
    """
    yield gain("AlexNet", *_lenet_alexnet(runs, dataset, "AlexNet"))


def _readings_of_adam(runs: pd.DataFrame) -> pd.DataFrame:
    """`networks`, of SGD only those without SparsityReg: what is compared is Adam's."""
    rows = networks(runs)
    return rows[(rows.optimizer == "adam") | (rows.reading == "")]


@claim("S8", "sparsity_networks", select=_readings_of_adam, by_reading=True)
def _s8(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """A size with Adam: for vanilla, drop and norm, true or false of a run, entropy after 5 epochs
    is below that with SGD in at least three layers; best accuracy of sr1, sr2, sr3 − vanilla's, and
    drop's and norm's − each of theirs, gains; rms correlation of sr3Net − normNet's at the last
    epoch, a gain in conv3, conv4 and fc1 and normNet − sr3Net a gain in conv1 (± .02 for ± 2).
    """

    def lower(adam: pd.DataFrame, sgd: pd.DataFrame, size: str) -> float:
        if min(adam.epoch.max(), sgd.epoch.max()) < 5:
            return np.nan
        after = [[_relative_entropy(run, size, k)[5] for k in LAYERS] for run in (adam, sgd)]
        return sum(one < other for one, other in zip(*after, strict=True))

    for size in _sizes(runs, "adam"):
        for network in UNREGULARISED:
            pair = [_network(runs, network, size, optimizer) for optimizer in ("adam", "sgd")]
            name = f"layers in which {network}-{size} has lower entropy after 5 epochs"
            sample = by_seed(partial(lower, size=size), *pair, accuracy="best", needs=ENTROPIES)
            yield each_run(name, sample, lambda v: v >= 3, "≥ 3 of 5")
        for network in SR:
            yield _beside(runs, dataset, network, "vanillaNet", size, "adam")
            for other in ("dropNet", "normNet"):
                yield _beside(runs, dataset, other, network, size, "adam")
        for layer in (*DEEP, "conv1"):
            names = ("sr3Net", "normNet") if layer in DEEP else ("normNet", "sr3Net")
            sample = _correlations(*(_network(runs, n, size, "adam") for n in names), layer)
            name = f"rms correlation in {layer}, {names[0]} − {names[1]}, {size}"
            yield gain(name, sample, margin=CORRELATION)


def _correlations(one: pd.DataFrame, other: pd.DataFrame, layer: str) -> Sample | None:
    """rms correlation of a layer's filters at the last epoch, one network's − the other's."""
    column = f"correlation {layer}"

    def difference(one: pd.DataFrame, other: pd.DataFrame) -> float:
        return one[column].iloc[-1] - other[column].iloc[-1]

    read = {"most": SPARSITY_EPOCHS, "needs": [column]}
    return by_seed(difference, one, other, accuracy="best", **read)


@claim("S9", "sparsity_networks", select=networks, by_reading=True)
def _s9(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """With SGD, no gain (± .02 for ± 2) for each hidden layer of sr1Net and sr2Net of each size:
    rms correlation of its filters at the last epoch − vanillaNet's.
    """
    for size in _sizes(runs):
        for network in ("sr1Net", "sr2Net"):
            pair = [_network(runs, name, size) for name in (network, "vanillaNet")]
            for layer in LAYERS:
                sample = _correlations(*pair, layer)
                yield no_gain(f"{network}-{size}, {layer}", sample, margin=CORRELATION)


@claim("S10", "sparsity_networks", select=networks, by_reading=True)
def _s10(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """Best accuracy with SGD on m and on xxl, nine gains a size: each of sr1, sr2, sr3 − each of
    vanilla, drop, norm.
    """
    for size in _sizes(runs):
        if size in ("m", "xxl"):
            for network in SR:
                for other in UNREGULARISED:
                    yield _beside(runs, dataset, network, other, size)
