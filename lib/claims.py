"""The papers' claims, judged by stated rules from stored runs: `judge` gives `claims.csv`. No verdict is typed by hand."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.data import noise_floor
from lib.run import epoch_measured
from lib.tables import BASELINES, at_published_epochs, label_randomization_runs, published, stopping

COLUMNS = ["claim", "statement", "profile", "dataset", "published", "measured", "n", "rule", "verdict"]
PAIRED = (
    "d paired by seed; a cell holds if n ≥ 3 and mean d > 2·sd/√n, or n = 2 and both d have the sign and the smaller is ≥ 1 "
    "point; all cells: holds, half: in part"
)

SIMILAR = 2.5  # points of accuracy within which A5 calls two networks similar (the paper's pairs differ by 0.9 and 2.1)

STATEMENTS = {
    "A1": "AL2 raises the final test accuracy of all four baselines at 75 % corruption",
    "A2": "without AL2, dropout is the best baseline",
    "A3": "dropout lowers L_r one order of magnitude below BN and two below bare and WD; weight decay hardly lowers it",
    "A4": "with AL2 the training cross-entropy stays within 0.14 nats of the noise floor; without (but DO) it ends at ≤ 0.02",
    "A5": "the ablation area agrees with A1, and is larger for DO+AL2 than for DO at epochs 300 and 400",
    "A6": "AL2 changes the course of the representation (canonical correlations)",
    "A7": "results are not sensitive to the schedule while it grows exponentially",
    "A8": "the same at 0, 25 and 50 % corruption and on Fashion-MNIST and CIFAR-10",
    "A9": "the training set can be relabelled by the AL2 network and trained on again",
    "A10": "(ours) at its best epoch plain dropout is above every network with AL2",
    "S1": "without regularisation entropy drops around the moment of overfitting, most in conv3, conv4, fc1",
    "S2": "dropout and batch norm raise entropy",
    "S3": "SparsityReg keeps the validation loss from rising",
    "S4": "sr1–3 and normNet gain with size, vanillaNet hardly",
    "S5": "targeted sr2 is at least as good as sr1 in most trainings; sr3 is best on CIFAR-100 with SGD",
    "S6": "SparsityReg alone gains nothing on size s, LeNet gains .005–.010, sr3-s gains",
    "S7": "AlexNet gains from SparsityReg on all sets",
    "S8": "with Adam entropy falls fast; sr1–3 beat vanilla, not drop or norm; DecorrReg removes conv1's correlations",
    "S9": "with SGD SparsityReg alone does not correlate filters",
    "S10": "on m and xxl with SGD sr1–sr3 beat vanilla, drop and norm",
}
NOT_MEASURED = {
    "A6": "not run: canonical correlations are not measured yet",
    "A7": "not run: other schedules are not part of the profiles yet",
    "A9": "not run: relabelling is not part of the profiles yet",
} | {f"S{k}": "not run: the sparsity networks are not part of the study yet" for k in range(1, 11)}


@dataclass(frozen=True)
class Judged:
    """What a claim's rule found: in words what was measured, smallest n of its cells, the rule and the verdict."""

    published: str
    measured: str
    n: int
    rule: str
    verdict: str


def cell_holds(differences: Iterable[float]) -> bool | None:
    """Whether a claim d > 0 holds in one cell, from its paired differences in points; None where n = 1 can only indicate.

    A difference that is not finite comes from a run whose loss became NaN: the cell does not hold.
    """
    d = np.asarray(list(differences), dtype=float)
    if not np.isfinite(d).all():
        return False
    if len(d) >= 3:
        return bool(d.mean() > 2 * d.std(ddof=1) / np.sqrt(len(d)))
    return bool(d.min() >= 1) if len(d) == 2 else None


def verdict(cells: dict[str, Iterable[float]], expected: int) -> str:
    """`holds`, `holds in part`, `does not hold`, or `indicative: …` where a cell has one seed only.

    Args:
        cells: paired differences by name of the cell.
        expected: how many cells the claim is about; with fewer it is `not run`.
    """
    values = {name: list(d) for name, d in cells.items() if len(list(d))}
    if len(values) < expected:
        return f"not run: {len(values)} of {expected} cells have finished runs"
    if min(map(len, values.values())) < 2:
        right = sum(np.mean(d) > 0 for d in values.values())
        return f"indicative: {right} of {len(values)} cells have the claimed sign, one seed"
    return _of_all(cell_holds(d) for d in values.values())


def judge(frame: pd.DataFrame, profiles: Iterable[str]) -> pd.DataFrame:
    """A row for each claim, profile and data set it was measured on; columns as in `claims.csv`.

    Args:
        frame: stored runs of the profiles, as `lib.store.load` gives them; may be empty.
        profiles: those the report is about: a claim that none of a profile's runs answers says so.
    """
    rows = []
    runs = label_randomization_runs(frame)
    for claim, statement in STATEMENTS.items():
        for profile in profiles:
            own = runs[runs.profile == profile] if len(runs) else runs
            if claim in NOT_MEASURED or own.empty:
                why = NOT_MEASURED.get(claim, f"not run: no finished run of the profile {profile}")
                rows.append([claim, statement, profile, "", "", "", 0, "", why])
                continue
            judged = {dataset: RULES[claim](cells, dataset) for dataset, cells in own.groupby("dataset")}
            for dataset, found in judged.items():
                if found is not None:
                    values = [found.published, found.measured, found.n, found.rule, found.verdict]
                    rows.append([claim, statement, profile, dataset, *values])
            if not any(judged.values()):
                rows.append([claim, statement, profile, "", "", "", 0, "", f"not run: not part of the profile {profile}"])
    return pd.DataFrame(rows, columns=COLUMNS)


def paired(runs: pd.DataFrame, metric: str, one: dict, other: dict, epoch: int | None = None) -> pd.Series:
    """Differences one − other by seed, at one of the paper's epochs (default: the last).

    Args:
        runs: one profile, data set and level.
        metric: a column of the runs.
        one: values of `baseline` and `al2` of the first network.
        other: of the second.
        epoch: of the paper's 700.
    """
    return (_value(runs, metric, **one, epoch=epoch) - _value(runs, metric, **other, epoch=epoch)).dropna()


def _value(runs: pd.DataFrame, metric: str, baseline: str, al2: bool, epoch: int | None = None) -> pd.Series:
    """By seed; −∞ where the loss had become NaN by then, so that no cell holds because such a run is left out."""
    here = epoch_measured(epoch or 700, int(runs.epochs.iloc[0]))
    mine = runs[(runs.baseline == baseline) & (runs.al2 == al2)]
    values = mine[mine.epoch == here].set_index("seed")[metric]
    diverged = [seed for seed in mine[mine.diverged <= here].seed.unique() if seed not in values.index]
    return values.reindex([*values.index, *diverged], fill_value=-np.inf)


def _at_75(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs.corruption == 0.75]


def _gains(runs: pd.DataFrame, metric: str) -> dict[str, pd.Series]:
    """For each baseline, what AL2 adds to it at the last epoch, by seed."""
    gains = {b: paired(runs, metric, {"baseline": b, "al2": True}, {"baseline": b, "al2": False}) for b in BASELINES}
    return {b: d for b, d in gains.items() if len(d)}


def _published(metric: str, epoch: int, baseline: str, al2: bool) -> float:
    table = published("al2_table2" if metric == "ablation_auc" else "al2_table1")
    row = table[(table.metric == metric) & (table.epoch == epoch) & (table.baseline == baseline) & (table.al2 == al2)]
    return float(row.value.iloc[0])


def _published_pairs(dataset: str, metric: str) -> str:
    """What the paper prints at epoch 700; it prints MNIST only."""
    if dataset != "mnist":
        return ""
    return "; ".join(
        f"{short} {_published(metric, 700, b, False):g} → {_published(metric, 700, b, True):g}"
        for b, short in BASELINES.items()
    )


def _pairs(runs: pd.DataFrame, metric: str, names: Iterable[str] = BASELINES) -> str:
    table = at_published_epochs(runs, [metric], [700])

    def mean(baseline: str, al2: bool) -> str:
        values = table[(table.baseline == baseline) & (table.al2 == al2)].measured
        return "not run" if values.empty else values.iloc[0] if isinstance(values.iloc[0], str) else f"{values.iloc[0]:.1f}"

    return "; ".join(f"{BASELINES[b]} {mean(b, False)} → {mean(b, True)}" for b in names)


def _a1(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    if runs.empty:
        return None
    cells = _gains(runs, "test_accuracy")
    rule = f"four cells, one a baseline: d = accuracy with AL2 − without, last epoch; {PAIRED}"
    return Judged(_published_pairs(dataset, "test_accuracy"), _pairs(runs, "test_accuracy"), _n(cells), rule, verdict(cells, 4))


def _a2(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs, dropout = _at_75(runs), {"baseline": "dropout", "al2": False}
    if runs.empty:
        return None
    cells = {b: paired(runs, "test_accuracy", dropout, {"baseline": b, "al2": False}) for b in BASELINES if b != "dropout"}
    cells = {b: d for b, d in cells.items() if len(d)}
    said = "; ".join(f"DO − {BASELINES[b]} {d.mean():+.1f}" for b, d in cells.items())
    printed = {b: _published("test_accuracy", 700, b, False) for b in BASELINES}
    paper = "; ".join(f"DO − {BASELINES[b]} {printed['dropout'] - printed[b]:+.1f}" for b in cells)
    rule = f"three cells: d = accuracy of DO − another baseline, without AL2, last epoch; {PAIRED}"
    return Judged(paper if dataset == "mnist" else "", said, _n(cells), rule, verdict(cells, 3))


def _a3(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    if runs.empty:
        return None
    values = pd.DataFrame({b: _value(runs, "activation_l2", b, False) for b in BASELINES})
    logs = np.log10(values.where(values > 0)).dropna()  # seeds that have all four, none of them diverged
    if logs.empty:
        return None
    ratios = {f"{BASELINES[b]}/DO": logs[b] - logs.dropout for b in ("batchnorm", "bare", "weight_decay")}
    needed = {"BN/DO": 1, "Bare/DO": 2, "WD/DO": 2}
    held = [bool((ratios[name].round() >= orders).all()) for name, orders in needed.items()]
    decay = logs.weight_decay - logs.bare
    held.append(bool((decay > np.log10(0.5)).all()))
    said = "; ".join(f"{name} {10 ** d.mean():.1f}×" for name, d in ratios.items()) + f"; WD/Bare {10 ** decay.mean():.2f}×"
    paper = {b: _published("activation_l2", 700, b, False) for b in BASELINES}
    printed = "; ".join(f"{BASELINES[b]}/DO {paper[b] / paper['dropout']:.1f}×" for b in ("batchnorm", "bare", "weight_decay"))
    printed += f"; WD/Bare {paper['weight_decay'] / paper['bare']:.2f}×"
    rule = (
        "L_r without AL2, last epoch: log10 of BN/DO rounds to ≥ 1, of Bare/DO and WD/DO to ≥ 2, and WD/Bare > 0.5, every seed"
    )
    return Judged(printed if dataset == "mnist" else "", said, len(decay), rule, _few(held, len(decay)))


def _a4(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    if runs.empty:
        return None
    classes = int(runs.num_classes.iloc[0])
    floor, chance, held, said = noise_floor(0.75, classes), 100 / classes, [], []
    epochs = [epoch_measured(e, int(runs.epochs.iloc[0])) for e in range(100, 701, 100)]
    for baseline, short in BASELINES.items():
        mine = runs[(runs.baseline == baseline) & runs.al2]
        last = _value(runs, "test_accuracy", baseline, True)
        if last.empty:
            continue
        lowest, alive = mine[mine.epoch.isin(epochs)].cross_entropy.min(), bool((last > 2 * chance).all())
        held.append(bool(lowest >= floor - 0.14) and alive)
        said.append(f"{short}+AL2 least {lowest:.2f}" + ("" if alive else ", but the network is at or near chance"))
    for baseline in ("bare", "batchnorm", "weight_decay"):
        last = _value(runs, "cross_entropy", baseline, False)
        if len(last):
            held.append(bool((last.abs() <= 0.02).all()))
            said.append(f"{BASELINES[baseline]} ends {last.mean():.2f}")
    paper = published("al2_table1").query("metric == 'cross_entropy'")
    ends = "; ".join(f"{BASELINES[b]} ends {_published('cross_entropy', 700, b, False):.2f}" for b in BASELINES)
    printed = f"with AL2 least {paper[paper.al2].value.min():.2f}; {ends}" if dataset == "mnist" else ""
    n = int(runs.groupby(["baseline", "al2"]).seed.nunique().min())
    rule = (
        f"seven parts: with AL2 ≥ {floor:.4f} − 0.14 at the seven table epochs, every seed, and a final accuracy above twice "
        "chance (a dead network is near the floor, too); bare, BN, WD without AL2 end ≤ 0.02"
    )
    judged = _few(held, n) if len(held) == 7 else f"not run: {len(held)} of 7 parts have finished runs"
    return Judged(printed, "; ".join(said), n, rule, judged)


def _a5(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    if runs.empty or "ablation_auc" not in runs:
        return None
    # the area agrees with the accuracy where it changes in the same direction
    accuracy = _gains(runs, "test_accuracy")
    cells = {b: d * np.sign(accuracy[b].mean()) for b, d in _gains(runs, "ablation_auc").items()}
    expected, pair = 4, ({"baseline": "dropout", "al2": True}, {"baseline": "dropout", "al2": False})
    said, printed = [f"area {_pairs(runs, 'ablation_auc')}"], [f"area {_published_pairs('mnist', 'ablation_auc')}"]
    for epoch in (300, 400):
        area, change = (paired(runs, m, *pair, epoch) for m in ("ablation_auc", "test_accuracy"))
        if area.empty:
            continue
        if abs(change.mean()) <= SIMILAR:
            cells[f"DO at {epoch}"], expected = area, expected + 1
        said.append(f"DO+AL2 − DO at {epoch}: area {area.mean():+.1f}, accuracy {change.mean():+.1f}")
        area, change = (
            _published(m, epoch, "dropout", True) - _published(m, epoch, "dropout", False)
            for m in ("ablation_auc", "test_accuracy")
        )
        printed.append(f"DO+AL2 − DO at {epoch}: area {area:+.1f}, accuracy {change:+.1f}")
    rule = (
        "four cells: d = (area with AL2 − without), last epoch, times the sign of the accuracy's change; and, where the "
        f"accuracies of DO and DO+AL2 differ by ≤ {SIMILAR} points, a cell each for epochs 300 and 400: d = their areas' "
        f"difference; {PAIRED}; without such a cell the claim's second half is untested: in part at best"
    )
    judged = verdict(cells, expected)
    if expected == 4 and judged == "holds":
        judged = "holds in part"
    printed = "; ".join(printed) if dataset == "mnist" else ""
    return Judged(printed, "; ".join(said), _n(cells), rule, judged)


def _a8(runs: pd.DataFrame, dataset: str) -> Judged | None:
    cells, said, levels = {}, [], 0
    for corruption, level in runs.groupby("corruption"):
        if corruption == 0.75 and dataset in ("mnist", "digits"):
            continue  # MNIST at 75 % is A1, and the claim is not about digits
        gains, levels = _gains(level, "test_accuracy"), levels + 1
        cells |= {f"{b} {corruption}": d for b, d in gains.items()}
        said.append(f"{100 * corruption:.0f} %: " + ", ".join(f"{BASELINES[b]} {d.mean():+.1f}" for b, d in gains.items()))
    if not cells:
        return None
    rule = f"a cell a level and baseline: d = accuracy with AL2 − without, last epoch; {PAIRED}"
    return Judged("", "; ".join(said), _n(cells), rule, verdict(cells, 4 * levels))


def _a10(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    if runs.empty:
        return None
    table = stopping(runs[runs.epoch.notna()]).set_index(["baseline", "al2", "seed"]).sort_index()
    if ("dropout", False) not in table.index:
        return None
    dropout = table.best["dropout", False]
    cells = {b: (dropout - table.best[b, True]).dropna() for b in BASELINES if (b, True) in table.index}
    said = []
    for (baseline, al2), own in table.groupby(level=["baseline", "al2"], sort=False):
        early = "no labels held out" if own.stopped.isna().all() else f"stopped early {own.stopped.mean():.1f}"
        name = BASELINES[baseline] + "+AL2" * al2
        said.append(f"{name}: final {own.final.mean():.1f}, best {own.best.mean():.1f}, {early}")
    paper = published("al2_table1").query("metric == 'test_accuracy'")
    highest = paper[paper.al2].value.max(), paper[(paper.baseline == "dropout") & ~paper.al2].value.max()
    printed = f"best printed: DO {highest[1]:.2f}, highest with AL2 {highest[0]:.2f}" if dataset == "mnist" else ""
    rule = f"a cell a baseline: d = best epoch of DO − best epoch of the baseline with AL2; {PAIRED}"
    return Judged(printed, "; ".join(said), _n(cells), rule, verdict(cells, 4))


RULES: dict[str, Callable[[pd.DataFrame, str], Judged | None]] = {
    "A1": _a1,
    "A2": _a2,
    "A3": _a3,
    "A4": _a4,
    "A5": _a5,
    "A8": _a8,
    "A10": _a10,
}


def _n(cells: dict[str, pd.Series]) -> int:
    return min((len(d) for d in cells.values()), default=0)


def _of_all(held: Iterable[bool | None]) -> str:
    held = list(held)
    return "holds" if all(held) else "holds in part" if 2 * sum(map(bool, held)) >= len(held) else "does not hold"


def _few(held: list[bool], n: int) -> str:
    """The verdict of a rule on curves: one seed can only indicate."""
    return _of_all(held) if n >= 2 else f"indicative: {sum(held)} of {len(held)} parts hold, one seed"
