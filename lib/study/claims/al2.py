"""Rules of the claims A1–A10 of the AL2 paper.

The runs that one profile states on one data set go in, cells come out.
"""

from collections.abc import Callable, Iterable
from functools import wraps

import numpy as np
import pandas as pd

from lib.data import noise_floor
from lib.run import SCREENING_SEED, TABLE_EPOCHS, epoch_measured
from lib.schedules import PAPER_EPOCHS
from lib.study import tables
from lib.study.claims.verdicts import (
    Cell,
    Rule,
    Sample,
    above,
    below,
    by_seed,
    claim,
    each_run,
    gain,
    not_run,
    shown,
)
from lib.study.tables import BASELINES, CELL, course_differences, one_setting, relabelling_runs

TOP = 0.75  # the level that the paper prints
# The paper's 2.07 is 2.065 or more; other numbers of classes get as much room below their floor.
ROOM = noise_floor(TOP, 10) - 2.065
MEMORISED = 0.025  # what is printed as .02 is less
# in what a network with AL2 differs from the same one without
AL2_FIELDS = ("al2", "schedule", "speed", "rate")
# A7: "empirically chosen weights": as much or as little as a careful second choice might take
NEAR = 3.5


def as_stated(runs: pd.DataFrame) -> pd.DataFrame:
    """Without runs with a reader's own penalties, and those of screening."""
    return runs[(runs.penalties == "") & (runs.seed < SCREENING_SEED)]


def eight_networks(runs: pd.DataFrame) -> pd.DataFrame:
    """The paper's networks alone, without those of a reader's own penalties and of screening.

    Raises:
        ValueError: if runs of one cell differ in more than the seed.
    """
    rows = as_stated(runs)
    for cell, own in rows.groupby(["profile", *CELL]):
        one_setting(own, cell, but=("seed",))
    return rows


def _network(runs: pd.DataFrame, baseline: str, al2: bool) -> pd.DataFrame:
    return runs[(runs.baseline == baseline) & (runs.al2 == al2)]


def _pair(runs: pd.DataFrame, baseline: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A baseline with AL2, and without."""
    return _network(runs, baseline, True), _network(runs, baseline, False)


def at_top(rule: Rule) -> Rule:
    """A rule that is given the runs at 75 % alone; where none is stated, a cell says so."""

    @wraps(rule)
    def judged(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
        yield from _missing_top(runs)
        yield from rule(runs[runs.corruption == TOP], dataset)

    return judged


def _missing_top(runs: pd.DataFrame) -> list[Cell]:
    if runs.empty or (runs.corruption == TOP).any():
        return []
    return [not_run("", f"top level {100 * runs.corruption.max():.0f} %")]


def _final(run: pd.DataFrame, metric: str = "test_accuracy") -> float:
    return run[metric].iloc[-1]


def _at(run: pd.DataFrame, published_epoch: int, metric: str = "test_accuracy") -> float:
    """A metric at one of the paper's epochs; NaN where it was not measured there."""
    here = epoch_measured(published_epoch, int(run.epochs.iloc[0]))
    return run.set_index("epoch")[metric].get(here, np.nan)


def _minus(
    metric: str = "test_accuracy", value: Callable[[pd.DataFrame, str], float] = _final
) -> Callable[[pd.DataFrame, pd.DataFrame], float]:
    return lambda one, other: value(one, metric) - value(other, metric)


def _published(
    dataset: str, metric: str, baseline: str, al2: bool, epoch: int = PAPER_EPOCHS
) -> float:
    """A printed number; NaN where the paper prints none for the data set."""
    name = "al2_table2" if metric == "ablation_auc" else "al2_table1"
    row = {"dataset": dataset, "metric": metric, "epoch": epoch, "baseline": baseline, "al2": al2}
    return tables.printed(name, "value", **row)


def _printed_gain(dataset: str, metric: str, baseline: str, epoch: int = PAPER_EPOCHS) -> float:
    with_al2, without = (_published(dataset, metric, baseline, al2, epoch) for al2 in (True, False))
    return with_al2 - without


def _of_tables(value: Callable[..., float], *networks: pd.DataFrame, **kept) -> Sample | None:
    """`by_seed`, read at most at the paper's 700 epochs."""
    return by_seed(value, *networks, most=PAPER_EPOCHS, **kept)


def _accuracy_gains(runs: pd.DataFrame, dataset: str, what: str, **kept) -> Iterable[Cell | None]:
    for baseline, short in BASELINES.items():
        sample = _of_tables(_minus(), *_pair(runs, baseline))
        level = runs.corruption.iloc[0] if len(runs) else 0
        printed = _printed_gain(dataset, "test_accuracy", baseline) if level == TOP else np.nan
        yield gain(f"{short}{what}", sample, printed, **kept)


@claim("A1", "label_randomization", select=eight_networks)
def _a1(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """MNIST at 75 %, four gains: accuracy of a baseline with AL2 − without, last epoch."""
    if dataset == "mnist":
        yield from _missing_top(runs)
        yield from _accuracy_gains(runs[runs.corruption == TOP], dataset, "")


@claim("A2", "label_randomization", select=eight_networks)
@at_top
def _a2(own: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """At 75 %, three gains: accuracy of dropout − another baseline, without AL2, last epoch."""
    for baseline, short in BASELINES.items():
        if baseline != "dropout":
            pair = ("dropout", baseline)
            sample = _of_tables(_minus(), *(_network(own, b, False) for b in pair))
            printed = [_published(dataset, "test_accuracy", b, False) for b in pair]
            yield gain(f"DO − {short}", sample, printed[0] - printed[1])


@claim("A3", "label_randomization", select=eight_networks)
@at_top
def _a3(own: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """At 75 %, log10 of ratios of L_r without AL2, last epoch, against a bound: dropout one order
    below BN (BN/DO ≥ .5), two below bare and WD (Bare/DO, WD/DO ≥ 1.5 each); weight decay hardly
    lowers it (Bare/WD < .3).
    """
    parts = [
        ("batchnorm", "dropout", above, 0.5),
        ("bare", "dropout", above, 1.5),
        ("weight_decay", "dropout", above, 1.5),
        ("bare", "weight_decay", below, 0.3),
    ]

    def log_ratio(one: pd.DataFrame, other: pd.DataFrame) -> float:
        pair = [_final(run, "activation_l2") for run in (one, other)]
        return np.log10(pair[0] / pair[1]) if min(pair) > 0 else np.nan

    for one, other, kind, bound in parts:
        pair = [_published(dataset, "activation_l2", b, False) for b in (one, other)]
        sample = _of_tables(log_ratio, *(_network(own, b, False) for b in (one, other)))
        name = f"log10 {BASELINES[one]}/{BASELINES[other]}"
        yield kind(name, sample, bound, np.log10(pair[0] / pair[1]))


@claim("A4", "label_randomization", select=eight_networks)
@at_top
def _a4(own: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """At 75 %, seven cells, true or false of a run: the training cross-entropy of the four networks
    with AL2 is ≥ 2.065 (printed 2.07; for other than ten classes as far below the noise floor) at
    all seven table epochs; that of bare, BN and WD without AL2 ends below .025 (printed .02).
    """
    classes = own.num_classes.dropna()
    least = noise_floor(TOP, int(classes.iloc[0]) if len(classes) else 10) - ROOM

    def lowest(run: pd.DataFrame) -> float:
        return min(_at(run, epoch, "cross_entropy") for epoch in TABLE_EPOCHS)

    def last(run: pd.DataFrame) -> float:
        return _final(run, "cross_entropy")

    for baseline, short in BASELINES.items():
        sample = _of_tables(lowest, _network(own, baseline, True))
        printed = min(_published(dataset, "cross_entropy", baseline, True, e) for e in TABLE_EPOCHS)
        kind = f"≥ {least:.3f}"
        yield each_run(f"{short}+AL2, least", sample, lambda v: v >= least, kind, printed)
    for baseline in ("bare", "batchnorm", "weight_decay"):
        sample = _of_tables(last, _network(own, baseline, False))
        printed = _published(dataset, "cross_entropy", baseline, False)
        name = f"{BASELINES[baseline]}, end"
        yield each_run(name, sample, lambda v: v < MEMORISED, f"< {MEMORISED}", printed)


@claim("A5", "label_randomization", select=eight_networks)
@at_top
def _a5(own: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """At 75 %, six gains of the area under the ablation curve: with AL2 − without at the last
    epoch, for each baseline; and at epochs 300 and 400 (3/7 and 4/7 of a shorter training) the gain
    in area of dropout with AL2 over dropout less the absolute difference of their accuracies.
    """
    area = {"needs": ["ablation_auc"]}
    for baseline, short in BASELINES.items():
        sample = _of_tables(_minus("ablation_auc"), *_pair(own, baseline), **area)
        yield gain(f"area, {short}", sample, _printed_gain(dataset, "ablation_auc", baseline))
    both = ("ablation_auc", "test_accuracy")
    for epoch in (300, 400):

        def beyond(one: pd.DataFrame, other: pd.DataFrame, epoch: int = epoch) -> float:
            wider, better = (_at(one, epoch, metric) - _at(other, epoch, metric) for metric in both)
            return wider - abs(better)

        wider, better = (_printed_gain(dataset, metric, "dropout", epoch) for metric in both)
        sample = _of_tables(beyond, *_pair(own, "dropout"), **area)
        yield gain(f"area − absolute accuracy, DO at {epoch}", sample, wider - abs(better))


@claim("A6", "representations", select=as_stated)
@at_top
def _a6(own: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """At 75 % with dropout, one gain by t without the ± 2: by seed, the mean over epochs of |mean
    CCA with the start, with AL2 − without|, × 100, less the largest such distance between two seeds
    of one network, with AL2 or without. Without dropout it is shown, not counted.
    """
    for dropout, networks in own.groupby("dropout"):
        name = "AL2 − another seed" + ("" if dropout else ", without dropout")
        pair = [networks[networks.al2 == al2] for al2 in (True, False)]
        one_setting(networks, (dataset, name), but=("seed", *AL2_FIELDS))
        one_setting(pair[0], (dataset, name), but=("seed",))
        sample = by_seed(lambda *runs: 0.0, *pair, needs=["mean_cca init"])
        if sample is None:
            continue
        seeds = sample.values.index
        if len(seeds) < 2:
            if dropout:
                yield not_run(name, "a second seed is the control, and it is not finished")
            continue
        apart = course_differences(networks)
        mean = apart.groupby(["by", "differing in"]).points.mean()
        control = mean.drop("AL2", level="by", errors="ignore").max()
        # a dead φ has no correlations to compare: NaN
        values = {seed: mean.get(("AL2", f"AL2 (seed {seed})"), np.nan) - control for seed in seeds}
        sample = Sample(pd.Series(values, dtype=float), sample.alive)
        if dropout:
            yield gain(name, sample, margin=None)
        else:
            yield shown(name, sample, "gain")


@claim("A7", "schedules", select=as_stated)
@at_top
def _a7(own: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """At 75 %, a gain for each exponential series (al2, geometric) whose Σλ lies within a factor
    3.5 of that of al2: what bare gains by it, less half of what it gains by al2 itself, last epoch.
    The other series are shown, not counted.
    """
    own = own[own.baseline == "bare"]
    with_al2 = own[own.al2.astype(bool)]
    if with_al2.empty:
        return
    one_setting(own, f"{dataset}, schedules", but=("seed", *AL2_FIELDS))
    # the study's own speed is that of these kinds: several of them are several studies
    kinds = with_al2[with_al2.schedule.isin(["geometric", "linear"])]
    one_setting(kinds, f"{dataset}, schedules", but=("seed", "schedule", "rate"))
    with_al2 = with_al2.assign(total=with_al2.id.map(tables.totals(own)))
    series = dict(list(with_al2.groupby(["schedule", "total"])))
    for (kind, total), rows in series.items():
        one_setting(rows, f"{dataset}, {kind} ×{total:g}", but=("seed",))
    if with_al2.total.isna().all() and with_al2.speed[with_al2.schedule == "al2"].nunique() > 1:
        yield not_run("", "which Σλ is al2's own, a geometric or linear series would tell")
    if ("al2", 1.0) not in series:
        return
    bare, paper = own[~own.al2.astype(bool)], series["al2", 1.0]
    yield shown("al2 ×1, whole gain", _of_tables(_minus(), paper, bare), "gain")

    def kept(one: pd.DataFrame, own: pd.DataFrame, without: pd.DataFrame) -> float:
        return _final(one) - _final(without) - (_final(own) - _final(without)) / 2

    for (kind, total), rows in series.items():
        if (kind, total) == ("al2", 1.0):
            continue
        sample = _of_tables(kept, rows, paper, bare)
        exponential = kind in ("al2", "geometric") and 1 / NEAR <= total <= NEAR
        name = f"{kind} ×{total:g} − half of al2's gain"
        yield gain(name, sample) if exponential else shown(name, sample, "gain")


@claim("A8", "label_randomization", select=eight_networks)
def _a8(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """A1's four gains on every other set and level; at 0 % the ± 2 points do not count."""
    for level, own in runs.groupby("corruption"):
        if (dataset, level) != ("mnist", TOP):
            kept = {} if level else {"margin": None}
            yield from _accuracy_gains(own, dataset, f", {100 * level:.0f} %", **kept)


def _relabelling(runs: pd.DataFrame) -> pd.DataFrame:
    return relabelling_runs(as_stated(runs))


def _taught_by_the_diverged(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs; those that a network whose loss became NaN was to teach count as diverged with it:
    they can never be trained.
    """
    teachers = runs[runs.diverged.notna()].drop_duplicates("id").set_index("id")
    lost = runs.epoch.isna() & runs.relabelled_by.isin(teachers.index)
    if not lost.any():
        return runs
    runs = runs.copy()
    for column in ("diverged", "data_hash", "precision"):
        runs.loc[lost, column] = runs.relabelled_by[lost].map(teachers[column])
    return runs


@claim("A9", "relabelling", select=_relabelling)
def _a9(runs: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """At 75 %, one gain: final accuracy of bare trained on the labels that bare+AL2 predicts −
    trained on the noisy ones. A student at chance is dead however well it knows its labels, as is
    one whose teacher's loss became NaN. The control, bare trained on the labels that bare itself
    predicts, and training on the true labels are shown beside.
    """
    yield from _missing_top(runs[runs.corruption > 0])
    runs = _taught_by_the_diverged(runs)
    of = dict(list(runs[runs.corruption.isin([0, TOP])].groupby("labels")))
    for labels, rows in of.items():
        one_setting(rows, f"bare on the {labels} labels", but=("seed", "relabelled_by"))
    if not {"al2", "noisy"} <= of.keys():
        return
    same = ("data_hash", "precision")  # the labels are what differs
    yield gain("AL2's labels", _of_tables(_minus(), of["al2"], of["noisy"], same=same))
    names = {"bare": "its own labels", "clean": "true labels", "teacher": "with AL2"}
    for labels, name in names.items():
        if labels in of:
            sample = _of_tables(_minus(), of[labels], of["noisy"], same=same)
            yield shown(name, sample, "gain")


@claim("A10", "label_randomization", select=eight_networks)
@at_top
def _a10(own: pd.DataFrame, dataset: str) -> Iterable[Cell | None]:
    """At 75 %, four gains: best accuracy over the epochs of plain dropout − of each network with
    AL2. What early stopping on held-out noisy labels would have reached is shown beside.
    """

    def best(run: pd.DataFrame, metric: str) -> float:
        return run[metric].max()

    def stopped(run: pd.DataFrame, metric: str) -> float:
        return run.loc[run.validation_accuracy.idxmax(), metric]

    def printed_best(baseline: str, al2: bool) -> float:
        return max(_published(dataset, "test_accuracy", baseline, al2, e) for e in TABLE_EPOCHS)

    def sample(baseline: str, value: Callable[[pd.DataFrame, str], float]) -> Sample | None:
        pair = _network(own, "dropout", False), _network(own, baseline, True)
        return _of_tables(_minus(value=value), *pair, accuracy="best")

    for baseline, short in BASELINES.items():
        printed = printed_best("dropout", False) - printed_best(baseline, True)
        yield gain(f"DO − {short}+AL2, best", sample(baseline, best), printed)
    if "validation_accuracy" in own and own.validation_accuracy.notna().any():
        for baseline, short in BASELINES.items():
            yield shown(f"DO − {short}+AL2, stopped early", sample(baseline, stopped), "gain")
