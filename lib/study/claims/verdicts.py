"""How a verdict is computed: cells of differences paired by seed, and what follows from them.

A claim's rule gives cells. Each compares networks over the seeds for which all of them are
finished, and `holds`, `fails` (the contrary is shown) or is `undecided`; with one seed it is
`indicative`; it says `nothing` where a network of it is at chance, and is `not run` where the
profile states its runs but none is finished.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lib.data import noise_floor
from lib.study import tables
from lib.study.tables import DEAD

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
INDICATIVE, NOTHING, NOT_RUN = "indicative", "nothing", "not run"
SHOWN = "shown"  # a number beside the cells, which is not counted
STATES = (HOLDS, FAILS, UNDECIDED, INDICATIVE, NOTHING, NOT_RUN, SHOWN)
MARGIN = 2.0  # points of accuracy or area in %
CONFIDENCE = 0.9  # of the two-sided interval
# what two runs have to share to be a pair
PAIRED_BY = ("data_hash", "labels_hash", "precision")

RULE = (
    "d is the difference paired by seed, with its 90 % interval by t. A gain holds if the lower "
    f"end is above 0 and fails if the upper end is below 0, or if the interval lies within "
    f"± {MARGIN:g} points where the paper prints a gain of {MARGIN:g} points or more, or nothing; "
    f"*not lower* holds if the lower end is above −{MARGIN:g}, and fails if the upper end is below "
    f"it; *no gain* holds if the upper end is below +{MARGIN:g}, and fails if the lower end is "
    "above it. What is true or false of a run holds if it is true in every seed, and fails if in "
    f"none. One seed is indicative. A network at {DEAD} × chance or less in any seed, or one whose "
    "loss became NaN, silences its cell (nothing), unless it ends below half the noise floor: then "
    "it has memorised. All cells hold: holds, or in part if some say nothing or are not run; at "
    "least half: in part; more than half fail: does not hold; else undecided, or indicative where "
    "at least half have one seed"
)


@dataclass(frozen=True)
class Sample:
    """A number by seed, of the seeds for which all networks of a cell are finished.

    Args:
        values: by seed; NaN for a run whose loss became NaN.
        alive: whether no network is at chance in any of these seeds.
        images: test images that the accuracies were measured on, by the number "2,000" or by
            several.
        unequal: whether a seed is left out because its networks' runs differ in what they have to
            share.
    """

    values: pd.Series
    alive: bool = True
    images: str = ""
    unequal: bool = False


@dataclass(frozen=True)
class Cell:
    """One comparison of a claim, judged.

    Args:
        name: of it, such as "WD" or "sr2Net − sr1Net, m".
        kind: what is asked of the number, in words.
        state: one of `STATES`.
        n: seeds.
        mean, lower, upper: of the number over the seeds, and the ends of its interval (NaN where
            there is none).
        printed: the papers' own number, NaN where they print none.
        as_claimed: whether the mean has the claimed sign or keeps the bound; what one seed says.
        images: as in `Sample`.
        why: why it is not run.
    """

    name: str
    kind: str
    state: str
    n: int = 0
    mean: float = np.nan
    lower: float = np.nan
    upper: float = np.nan
    printed: float = np.nan
    as_claimed: bool = False
    images: str = ""
    why: str = ""


Rule = Callable[[pd.DataFrame, str], Iterable[Cell | None]]


@dataclass(frozen=True)
class Claim:
    """How a claim is judged.

    `rule` takes the runs that one profile states on one data set (finished ones with a row an
    epoch, the others with one row without epoch), and that set's name; it gives the cells, None for
    those whose runs are not stated; its docstring says in words what they are. `experiments` are
    those whose runs it reads, `select` what it takes of them. `by_reading`: judged for each way in
    which SparsityReg joins a batch, since the paper does not say which is meant. `over_sets`: there
    is a verdict over all data sets, too.
    """

    rule: Rule
    experiments: tuple[str, ...]
    select: Callable[[pd.DataFrame], pd.DataFrame] = lambda runs: runs
    by_reading: bool = False
    over_sets: bool = False

    @property
    def text(self) -> str:
        """The rule in words."""
        return " ".join(self.rule.__doc__.split())


CLAIMS: dict[str, Claim] = {}  # by name, in the order of their rules


def claim(name: str, *experiments: str, **how: Any) -> Callable[[Rule], Rule]:
    """Register the rule of a claim whose text stands in `results/published/claims.yaml`.

        @claim("A1", "label_randomization")
        def _a1(runs, dataset): ...

    Args:
        name: of the claim.
        experiments: names in `lib.study.experiments.EXPERIMENTS`; one at least.
        how: `select`, `by_reading`, `over_sets`, see `Claim`.
    """

    def register(rule: Rule) -> Rule:
        CLAIMS[name] = Claim(rule, experiments, **how)
        return rule

    return register


# ---- Numbers by seed -------------------------------------------------------------------------


def by_seed(
    value: Callable[..., float],
    *networks: pd.DataFrame,
    accuracy: str = "final",
    most: float = np.inf,
    same: Iterable[str] = PAIRED_BY,
    needs: Iterable[str] = (),
    cut: bool = True,
) -> Sample | None:
    """A number by seed, of a run a network; None where no seed of all networks is stated.

    A seed counts once the runs of all networks are finished, and share what `same` names.

    Args:
        value: takes the rows of a run per network.
        networks: the rows of one network's runs, all seeds, as a rule gets them.
        accuracy: what decides whether a network is at chance: "final" or "best" over its epochs.
        most: epochs that are read of a run at most.
        same: columns.
        needs: columns that `value` reads; a run that has not measured them is not finished.
        cut: whether a longer run is read at the shorter one's epochs, and not to its own end.
    """
    if not set.intersection(*(set(rows.seed) for rows in networks)):
        return None
    finished = [tables.longest(_finished(rows, needs), ["seed"]) for rows in networks]
    of_run = [dict(list(rows.groupby("seed"))) for rows in finished]
    values = {}
    alive = True
    unequal = False
    images = set()
    for seed in sorted(set.intersection(*map(set, of_run))):
        runs = [found[seed] for found in of_run]
        if any(len({run[c].iloc[0] for run in runs} - {None}) > 1 for c in same if c in runs[0]):
            unequal = True
            continue
        reads = [min(most, run.epochs.iloc[0]) for run in runs]
        if cut:
            reads = [min(reads)] * len(runs)
        ends = list(zip(runs, reads, strict=True))
        diverged = any((run.diverged <= read).any() for run, read in ends)
        runs = [run[run.epoch <= read].sort_values("epoch") for run, read in ends]
        alive &= not (diverged or any(at_chance(run, accuracy) for run in runs))
        values[seed] = np.nan if diverged else float(value(*runs))
        for run in runs:
            measured = run.test_images.dropna()
            images |= set(measured if accuracy == "best" else measured.iloc[-1:])
    return Sample(pd.Series(values, dtype=float), alive, tables.images_text(images), unequal)


def _finished(rows: pd.DataFrame, needs: Iterable[str]) -> pd.DataFrame:
    """The rows of runs that are finished and have measured something in these columns."""
    done = rows[rows.epoch.notna() | rows.diverged.notna()]
    for column in needs:
        seen = done[column].notna() if column in done else pd.Series(False, done.index)
        done = done[seen.groupby(done.id).transform("any") | done.diverged.notna()]
    return done


def at_chance(run: pd.DataFrame, accuracy: str = "final") -> bool:
    """Whether a finished run's network is at chance: at most `DEAD` × it, by this accuracy.

    One whose last training cross-entropy is below half the noise floor has memorised its labels,
    and is not.
    """
    found = run.test_accuracy.dropna()
    reached = found.max() if accuracy == "best" else found.iloc[-1]
    classes = int(run.num_classes.iloc[0])
    # what a network predicted are no corrupted labels: learning them by heart takes no memorising
    corruption = 0.0 if run.relabelled_by.notna().any() else run.corruption.iloc[0]
    memorised = run.cross_entropy.iloc[-1] < noise_floor(corruption, classes) / 2
    return bool(tables.at_chance(reached, classes)) and not memorised


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 90 % interval by t; the ends are NaN for fewer than two values."""
    values = np.asarray(list(values), dtype=float)
    mean = float(values.mean()) if len(values) else np.nan
    if len(values) < 2:
        return mean, np.nan, np.nan
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error)
    return mean, mean - half, mean + half


# ---- Kinds of cells ----------------------------------------------------------------------------


def gain(
    name: str,
    sample: Sample | None,
    printed: float = np.nan,
    margin: float | None = MARGIN,
    kind: str = "gain",
) -> Cell | None:
    """A difference that is claimed to be positive.

    Args:
        name: of the cell.
        sample: the difference by seed.
        printed: the paper's own, in the same unit; NaN: it prints none.
        margin: an interval within ± margin fails, too, unless the paper prints a smaller gain;
            None: it never does.
        kind: what is asked, in words.
    """

    def fails(lower: float, upper: float) -> bool:
        small = margin is not None and -margin < lower and upper < margin
        return upper < 0 or (small and not printed < margin)

    return _cell(
        name,
        kind,
        sample,
        printed,
        holds=lambda lower, upper: lower > 0,
        fails=fails,
        as_claimed=lambda mean: mean > 0,
    )


def above(
    name: str, sample: Sample | None, bound: float, printed: float = np.nan, kind: str = ""
) -> Cell | None:
    """A number that is claimed to lie above a bound."""
    return _cell(
        name,
        kind or f"above {bound:g}",
        sample,
        printed,
        holds=lambda lower, upper: lower > bound,
        fails=lambda lower, upper: upper < bound,
        as_claimed=lambda mean: mean > bound,
    )


def below(
    name: str, sample: Sample | None, bound: float, printed: float = np.nan, kind: str = ""
) -> Cell | None:
    """A number that is claimed to lie below a bound."""
    return _cell(
        name,
        kind or f"below {bound:g}",
        sample,
        printed,
        holds=lambda lower, upper: upper < bound,
        fails=lambda lower, upper: lower > bound,
        as_claimed=lambda mean: mean < bound,
    )


def not_lower(name: str, sample: Sample | None, printed: float = np.nan) -> Cell | None:
    """A difference that is claimed not to be negative."""
    return above(name, sample, -MARGIN, printed, "not lower")


def no_gain(
    name: str, sample: Sample | None, printed: float = np.nan, margin: float = MARGIN
) -> Cell | None:
    """A difference that is claimed to be hardly positive."""
    return below(name, sample, margin, printed, "no gain")


def each_run(
    name: str,
    sample: Sample | None,
    claimed: Callable[[float], bool],
    kind: str,
    printed: float = np.nan,
) -> Cell | None:
    """What is true or false of a run: it holds if true in every seed, and fails if in none."""
    truths = [] if sample is None else [claimed(value) for value in sample.values]
    return _cell(
        name,
        kind,
        sample,
        printed,
        holds=lambda lower, upper: all(truths),
        fails=lambda lower, upper: not any(truths),
        as_claimed=lambda mean: all(truths),
        spread=False,
    )


def all_gains(name: str, gains: Iterable[Cell | None], kind: str) -> Cell | None:
    """One cell of several gains: it holds if all do, and fails if one is a shown loss."""
    gains = list(gains)
    if any(one is None for one in gains):
        return None
    states = {one.state for one in gains}
    n = min(one.n for one in gains)
    if NOT_RUN in states:
        state = NOT_RUN
    elif NOTHING in states:
        state = NOTHING
    elif any(one.upper < 0 for one in gains):
        state = FAILS
    elif n == 1:
        state = INDICATIVE
    else:
        state = HOLDS if states == {HOLDS} else UNDECIDED
    least = min(gains, key=lambda one: one.mean if one.n else -np.inf)
    every = {
        "printed": min(one.printed for one in gains),
        "as_claimed": all(one.as_claimed for one in gains),
        "why": next((one.why for one in gains if one.why), ""),
    }
    return replace(least, name=name, kind=kind, state=state, n=n, **every)


def shown(name: str, sample: Sample | None, kind: str) -> Cell | None:
    """A number that stands beside the cells and is not counted."""
    if sample is None or sample.values.empty:
        return None
    found = interval(sample.values)
    return Cell(name, kind, SHOWN, len(sample.values), *found, images=sample.images)


def not_run(name: str, why: str) -> Cell:
    """A cell that cannot be there, and why."""
    return Cell(name, "", NOT_RUN, why=why)


def _cell(
    name: str,
    kind: str,
    sample: Sample | None,
    printed: float,
    holds: Callable[[float, float], bool],
    fails: Callable[[float, float], bool],
    as_claimed: Callable[[float], bool],
    spread: bool = True,
) -> Cell | None:
    """`holds` and `fails` take the ends of the interval, `as_claimed` the mean."""
    if sample is None:
        return None
    n = len(sample.values)
    if n == 0:
        why = "no seed is finished"
        if sample.unequal:
            why = "its networks differ in precision, images or labels"
        return Cell(name, kind, NOT_RUN, printed=printed, why=why)
    mean, *ends = interval(sample.values)
    if not (sample.alive and np.isfinite(sample.values).all()):
        state = NOTHING
    elif n == 1:
        state = INDICATIVE
    else:
        state = HOLDS if holds(*ends) else FAILS if fails(*ends) else UNDECIDED
    ends = ends if spread else [np.nan, np.nan]
    claimed = sample.alive and bool(as_claimed(mean))
    return Cell(name, kind, state, n, mean, *ends, printed, claimed, sample.images)


# ---- Verdicts ------------------------------------------------------------------------------------


def verdict(states: Iterable[str], as_claimed: Iterable[bool]) -> str:
    """What a claim's cells say together.

    `holds`, `holds in part`, `does not hold`, `undecided`, `nothing`, `not run`, or `indicative: k
    of m cells as claimed, one seed`.

    Args:
        states: of the cells; `shown` ones are not counted.
        as_claimed: see `Cell`, in the same order.
    """
    cells = list(zip(states, as_claimed, strict=True))
    count = Counter(state for state, _ in cells if state != SHOWN)
    run = count.total() - count[NOT_RUN]
    alive = run - count[NOTHING]
    if not run:
        return NOT_RUN
    if 2 * alive < run:
        return NOTHING
    if count[HOLDS] == count.total():
        return HOLDS
    if 2 * count[HOLDS] >= alive:
        return "holds in part"
    if 2 * count[FAILS] > alive:
        return "does not hold"
    if 2 * count[INDICATIVE] >= alive:
        right = sum(claimed for state, claimed in cells if state == INDICATIVE)
        return f"{INDICATIVE}: {right} of {count[INDICATIVE]} cells as claimed, one seed"
    return UNDECIDED


def counts(states: Iterable[str]) -> str:
    """How many cells there are of each state, "3 holds, 1 undecided"."""
    count = Counter(states)
    return ", ".join(f"{count[s]} {s}" for s in STATES if count[s] and s != SHOWN)
