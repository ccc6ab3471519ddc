"""Rules of the claims A1–A10 of the AL2 paper.

Stored runs of one profile and data set go in, what was found comes out.
"""

import numpy as np
import pandas as pd

from lib.data import noise_floor
from lib.run import epoch_measured
from lib.study.claims.verdicts import (
    PAIRED,
    Judged,
    claim,
    differences,
    of_parts,
    smallest_n,
    verdict,
)
from lib.study.tables import (
    BASELINES,
    CELL,
    DEAD,
    DIVERGED,
    MARGIN,
    NOT_RUN,
    RELABELLED,
    at_chance,
    course_differences,
    epochs_read,
    mean_text,
    one_setting,
    published,
    relabelling_runs,
    stopping,
    totals,
)

# points of accuracy within which A5 calls two networks similar (the paper's pairs differ by 0.9 and
# 2.1)
SIMILAR = 2.5

# in what a network with AL2 differs from the same one without
AL2_FIELDS = ("al2", "schedule", "speed", "rate")
# A7: "empirically chosen weights": as much or as little as a careful second choice might take
NEAR = 3.5


def paired(
    runs: pd.DataFrame, metric: str, one: dict, other: dict, epoch: int | None = None
) -> pd.Series:
    """Differences one − other by seed, at one of the paper's epochs (default: the last).

    Args:
        runs: one profile, data set and level.
        metric: a column of the runs.
        one: values of `baseline` and `al2` of the first network.
        other: of the second.
        epoch: of the paper's 700.
    """
    return differences(
        *(_value(runs, metric, **network, epoch=epoch).dropna() for network in (one, other))
    )


def _value(
    runs: pd.DataFrame, metric: str, baseline: str, al2: bool, epoch: int | None = None
) -> pd.Series:
    """A value by seed, −∞ where the loss had become NaN by then.

    So no cell holds because such a run is left out.
    """
    here = epoch_measured(epoch or 700, epochs_read(runs))
    mine = runs[(runs.baseline == baseline) & (runs.al2 == al2)]
    values = mine[mine.epoch == here].set_index("seed")[metric]
    diverged = [
        seed for seed in mine[mine.diverged <= here].seed.unique() if seed not in values.index
    ]
    return values.reindex([*values.index, *diverged], fill_value=-np.inf)


def eight_networks(runs: pd.DataFrame) -> pd.DataFrame:
    """The paper's networks alone, without those of a reader's own penalties.

    Raises:
        ValueError: if runs of one cell differ in more than the seed.
    """
    rows = runs[runs.penalties == ""]
    for cell, own in rows.groupby(["profile", *CELL]):
        one_setting(own, cell, but=("seed",))
    return rows


def _at_75(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs.corruption == 0.75]


def _gains(runs: pd.DataFrame, metric: str) -> dict[str, pd.Series]:
    """For each baseline, what AL2 adds to it at the last epoch, by seed."""
    gains = {
        b: paired(runs, metric, {"baseline": b, "al2": True}, {"baseline": b, "al2": False})
        for b in BASELINES
    }
    return {b: d for b, d in gains.items() if len(d)}


def _published(metric: str, epoch: int, baseline: str, al2: bool) -> float:
    table = published("al2_table2" if metric == "ablation_auc" else "al2_table1")
    row = table[
        (table.metric == metric)
        & (table.epoch == epoch)
        & (table.baseline == baseline)
        & (table.al2 == al2)
    ]
    return float(row.value.iloc[0])


def _published_pairs(dataset: str, metric: str) -> str:
    """What the paper prints at epoch 700; it prints MNIST only."""
    if dataset != "mnist":
        return ""
    return "; ".join(
        f"{short} {_published(metric, 700, b, False):g} → {_published(metric, 700, b, True):g}"
        for b, short in BASELINES.items()
    )


def _pairs(runs: pd.DataFrame, metric: str) -> str:
    """Means without → with AL2 over the seeds that both have, as the verdict pairs them.

    Where there are none, over those that there are.
    """

    def of(baseline: str) -> str:
        pair = [_value(runs, metric, baseline, al2).dropna() for al2 in (False, True)]
        both = pair[0].index.intersection(pair[1].index)
        pair = [own.loc[both] if len(both) else own for own in pair]
        if all(own.empty for own in pair):
            return NOT_RUN
        return " → ".join(NOT_RUN if own.empty else mean_text(own) for own in pair)

    return "; ".join(f"{short} {of(b)}" for b, short in BASELINES.items())


@claim("A1", "label_randomization", select=eight_networks)
def _a1(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    if runs.empty:
        return None
    cells = _gains(runs, "test_accuracy")
    rule = f"four cells, one a baseline: d = accuracy with AL2 − without, last epoch; {PAIRED}"
    return Judged(
        _published_pairs(dataset, "test_accuracy"),
        _pairs(runs, "test_accuracy"),
        smallest_n(cells),
        rule,
        verdict(cells, 4),
    )


@claim("A2", "label_randomization", select=eight_networks)
def _a2(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    dropout = {"baseline": "dropout", "al2": False}
    if runs.empty:
        return None
    cells = {
        b: paired(runs, "test_accuracy", dropout, {"baseline": b, "al2": False})
        for b in BASELINES
        if b != "dropout"
    }
    cells = {b: d for b, d in cells.items() if len(d)}
    said = "; ".join(f"DO − {BASELINES[b]} {mean_text(d, '+.1f')}" for b, d in cells.items())
    printed = {b: _published("test_accuracy", 700, b, False) for b in BASELINES}
    paper = "; ".join(f"DO − {BASELINES[b]} {printed['dropout'] - printed[b]:+.1f}" for b in cells)
    rule = f"three cells: d = accuracy of DO − another baseline, without AL2, last epoch; {PAIRED}"
    return Judged(
        paper if dataset == "mnist" else "", said, smallest_n(cells), rule, verdict(cells, 3)
    )


@claim("A3", "label_randomization", select=eight_networks)
def _a3(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    if runs.empty:
        return None
    # one / other: the digits to print it with, and when its part holds, from log10 of the ratio by
    # seed
    ratios = {
        ("batchnorm", "dropout"): (1, lambda logs: logs.round() >= 1),
        ("bare", "dropout"): (1, lambda logs: logs.round() >= 2),
        ("weight_decay", "dropout"): (1, lambda logs: logs.round() >= 2),
        ("weight_decay", "bare"): (2, lambda logs: logs > np.log10(0.5)),
    }
    held = []
    said = []
    printed = []
    n = []
    for (one, other), (digits, holds) in ratios.items():
        name = f"{BASELINES[one]}/{BASELINES[other]}"
        paper = [_published("activation_l2", 700, baseline, False) for baseline in (one, other)]
        printed.append(f"{name} {paper[0] / paper[1]:.{digits}f}×")
        both = pd.concat(
            [_value(runs, "activation_l2", b, False).dropna() for b in (one, other)],
            axis=1,
            join="inner",
        )
        if both.empty:
            continue
        whole = bool((np.isfinite(both) & (both > 0)).all(axis=None))
        logs = np.log10(both.iloc[:, 0] / both.iloc[:, 1]) if whole else None
        held.append(whole and bool(holds(logs).all()))
        no_ratio = DIVERGED if np.isinf(both).any(axis=None) else "no ratio: an L_r is 0"
        said.append(f"{name} " + (f"{10 ** logs.mean():.{digits}f}×" if whole else no_ratio))
        n.append(len(both))
    if not held:
        return None
    rule = (
        "four parts, L_r without AL2, last epoch, seed by seed: log10 of BN/DO rounds to ≥ 1, of "
        "Bare/DO and WD/DO to ≥ 2, and WD/Bare > 0.5, every seed"
    )
    printed = "; ".join(printed) if dataset == "mnist" else ""
    return Judged(printed, "; ".join(said), min(n), rule, of_parts(held, min(n), len(ratios)))


@claim("A4", "label_randomization", select=eight_networks)
def _a4(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    if runs.empty:
        return None
    classes = int(runs.num_classes.iloc[0])
    floor = noise_floor(0.75, classes)
    held = []
    said = []
    n = []
    least = round(floor - MARGIN, 2)  # as the paper prints it: 2.07 against 2.2103 − 0.14 = 2.0703
    epochs = [epoch_measured(e, epochs_read(runs)) for e in range(100, 701, 100)]
    for baseline, short in BASELINES.items():
        mine = runs[(runs.baseline == baseline) & runs.al2]
        last = _value(runs, "test_accuracy", baseline, True)
        if last.empty:
            continue
        lowest = mine[mine.epoch.isin(epochs)].cross_entropy.min()
        alive = not at_chance(last, classes).any()
        held.append(bool(round(lowest, 2) >= least) and alive)
        n.append(len(last))
        found = f"least {lowest:.2f}" + ("" if alive else ", but the network is at or near chance")
        said.append(f"{short}+AL2 {found if np.isfinite(last).all() else DIVERGED}")
    for baseline in ("bare", "batchnorm", "weight_decay"):
        last = _value(runs, "cross_entropy", baseline, False)
        if len(last):
            held.append(bool((last.abs().round(2) <= 0.02).all()))
            n.append(len(last))
            said.append(
                f"{BASELINES[baseline]} "
                + (f"ends {last.mean():.2f}" if np.isfinite(last).all() else DIVERGED)
            )
    paper = published("al2_table1").query("metric == 'cross_entropy'")
    ends = "; ".join(
        f"{BASELINES[b]} ends {_published('cross_entropy', 700, b, False):.2f}" for b in BASELINES
    )
    printed = (
        f"with AL2 least {paper[paper.al2].value.min():.2f}; {ends}" if dataset == "mnist" else ""
    )
    rule = (
        f"seven parts, to the two digits that the paper prints: with AL2 ≥ {floor:.4f} − {MARGIN} "
        f"at the seven table epochs, every seed, and a final accuracy above {DEAD} × chance (a "
        "dead network is near the floor, too); bare, BN, WD without AL2 end ≤ 0.02"
    )
    fewest = min(n, default=0)
    return Judged(printed, "; ".join(said), fewest, rule, of_parts(held, fewest, 7))


@claim("A5", "label_randomization", select=eight_networks)
def _a5(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    if runs.empty or "ablation_auc" not in runs:
        return None
    # the area agrees with the accuracy where it changes in the same direction
    accuracy = _gains(runs, "test_accuracy")
    cells = {b: d * np.sign(accuracy[b].mean()) for b, d in _gains(runs, "ablation_auc").items()}
    expected = 4
    pair = ({"baseline": "dropout", "al2": True}, {"baseline": "dropout", "al2": False})
    said = [f"area {_pairs(runs, 'ablation_auc')}"]
    printed = [f"area {_published_pairs('mnist', 'ablation_auc')}"]
    for epoch in (300, 400):
        area, change = (paired(runs, m, *pair, epoch) for m in ("ablation_auc", "test_accuracy"))
        if area.empty:
            continue
        if abs(change.mean()) <= SIMILAR:
            cells[f"DO at {epoch}"] = area
            expected += 1
        said.append(
            f"DO+AL2 − DO at {epoch}: area {mean_text(area, '+.1f')}, accuracy "
            f"{mean_text(change, '+.1f')}"
        )
        area, change = (
            _published(m, epoch, "dropout", True) - _published(m, epoch, "dropout", False)
            for m in ("ablation_auc", "test_accuracy")
        )
        printed.append(f"DO+AL2 − DO at {epoch}: area {area:+.1f}, accuracy {change:+.1f}")
    rule = (
        "four cells: d = (area with AL2 − without), last epoch, times the sign of the accuracy's "
        f"change; and, where the accuracies of DO and DO+AL2 differ by ≤ {SIMILAR} points, a cell "
        f"each for epochs 300 and 400: d = their areas' difference; {PAIRED}; without such a cell "
        "the claim's second half is untested: in part at best"
    )
    judged = verdict(cells, expected)
    if expected == 4 and judged == "holds":
        judged = "holds in part"
    printed = "; ".join(printed) if dataset == "mnist" else ""
    return Judged(printed, "; ".join(said), smallest_n(cells), rule, judged)


@claim("A8", "label_randomization", select=eight_networks)
def _a8(runs: pd.DataFrame, dataset: str) -> Judged | None:
    cells = {}
    said = []
    levels = [0, 0.25, 0.5]
    if dataset not in ("mnist", "digits"):  # MNIST at 75 % is A1; digits are nobody's
        levels.append(0.75)
    for corruption, level in runs[runs.corruption.isin(levels)].groupby("corruption"):
        if not (gains := _gains(level, "test_accuracy")):
            continue
        cells |= {f"{b} {corruption}": d for b, d in gains.items()}
        said.append(
            f"{100 * corruption:.0f} %: "
            + ", ".join(f"{BASELINES[b]} {mean_text(d, '+.1f')}" for b, d in gains.items())
        )
    if not cells:
        return None
    rule = f"a cell a level and baseline: d = accuracy with AL2 − without, last epoch; {PAIRED}"
    return Judged("", "; ".join(said), smallest_n(cells), rule, verdict(cells, 4 * len(levels)))


@claim("A6", "representations")
def _a6(runs: pd.DataFrame, dataset: str) -> Judged | None:
    if runs.empty or "mean_cca init" not in runs:
        return None
    runs = _at_75(runs)
    measured = runs[runs["mean_cca init"].notna()]
    cells = {}
    said = []
    for dropout, curves in measured.groupby("dropout"):
        # a dead φ has no correlations, nor has a network that diverged at once: they count, too
        own = runs[(runs.dropout == dropout) & runs.baseline.isin(curves.baseline)]
        name = f"{dataset}, dropout {dropout:g}"
        by_al2 = own.al2.astype(bool)
        one_setting(own, name, but=("seed", *AL2_FIELDS))
        # or pivot_table would average over two speeds
        one_setting(own[by_al2], name, but=("seed",))
        seeds = sorted(set(own.seed[by_al2]) & set(own.seed[~by_al2]))
        if len(seeds) < 2:
            continue
        apart = course_differences(own)
        of_pairs = apart.groupby(["by", "differing in"]).points.mean()
        changes, others = (
            of_pairs[(of_pairs.index.get_level_values("by") == "AL2") == which]
            for which in (True, False)
        )
        last = _final(own[by_al2], ["seed"])
        alive = not at_chance(last, int(own.num_classes.iloc[0])).any()
        if alive and others.empty:
            continue
        found = f"by AL2 {changes.mean():.1f}, by another seed at most {others.max():.1f}"
        found = "no two curves to compare" if others.empty else found
        if alive:
            cells[f"dropout {dropout:g}"] = changes - others.max()
        else:
            # a dead φ has left its course, too
            cells[f"dropout {dropout:g}"] = pd.Series(0.0, seeds)
            found += ", but with AL2 the network is at or near chance" + (
                "" if np.isfinite(last).all() else ", or diverged"
            )
        said.append(f"dropout {dropout:g}: {found}")
    if not cells:
        return Judged("", "", 0, "", "not run: a second seed is the control, and there is none")
    rule = (
        "a cell a dropout: the mean over epochs of |mean CCA with the start, with AL2 − without|, "
        "× 100, by seed, less the largest such difference between two seeds, without or with AL2; "
        f"where a network with AL2 ends at no more than {DEAD} × chance, or diverges, the cell "
        f"does not hold; {PAIRED}"
    )
    return Judged(
        "", "; ".join(said), smallest_n(cells), rule, verdict(cells, measured.dropout.nunique())
    )


def _final(runs: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Accuracy at the last epoch by the keys; −∞ where the loss had become NaN by then."""
    last = runs.sort_values("epoch").groupby("id").tail(1)
    return (
        last.assign(final=last.test_accuracy.where(last.epoch == last.epochs, -np.inf))
        .set_index(keys)
        .final.sort_index()
    )


@claim("A7", "schedules")
def _a7(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    runs = runs[runs.baseline == "bare"]
    if runs.empty or not runs.al2.any():
        return None
    bare = _final(runs[~runs.al2], ["seed"])
    with_al2 = runs[runs.al2 & runs.seed.isin(bare.index)]
    if with_al2.empty:
        return None
    one_setting(runs, f"{dataset}, schedules", but=("seed", *AL2_FIELDS))
    # the study's own speed is that of these kinds: several of them are several studies, with a ×1
    # each
    kinds = runs[runs.al2 & runs.schedule.isin(["geometric", "linear"])]
    one_setting(kinds, f"{dataset}, schedules", but=("seed", "schedule", "rate"))
    with_al2 = with_al2.assign(total=with_al2.id.map(totals(runs)))
    if with_al2.total.isna().all():
        return Judged(
            "",
            "",
            0,
            "",
            "not run: Σλ at ×1 is not known before a geometric or linear series is finished",
        )
    for (kind, total), own in with_al2.groupby(["schedule", "total"]):
        one_setting(own, f"{dataset}, {kind} ×{total:g}", but=("seed",))
    final = _final(with_al2, ["schedule", "total", "seed"])
    beside = bare.loc[final.index.get_level_values("seed")].to_numpy()
    gains = (final - beside).where(np.isfinite(final) & np.isfinite(beside), -np.inf)
    if ("al2", 1.0) not in gains.index:
        return None
    paper = gains["al2", 1.0]
    said = []
    for kind, of_kind in gains.groupby(level="schedule", sort=False):
        by_total = of_kind.groupby(level="total")
        texts = [f"×{total:g} {mean_text(own, '+.1f')}" for total, own in by_total]
        said.append(f"{kind}: {', '.join(texts)}")
    rule = (
        "gain over bare, final accuracy, by schedule and Σλ (× that of al2 at the profile's "
        f"speed): every exponential one (al2, geometric) within a factor {NEAR:g} keeps at least "
        "half of the gain at ×1, in every seed"
    )
    if (paper <= 0).any():
        why = "not run: AL2 with its own schedule gains nothing here, so there is nothing to keep"
        return Judged("", "; ".join(said), len(paper), rule, why)
    held = []
    seeds = [len(paper)]
    judged = set()
    for (kind, total), own in gains.groupby(level=["schedule", "total"]):
        if (
            kind in ("al2", "geometric")
            and 1 / NEAR <= total <= NEAR
            and (kind, total) != ("al2", 1.0)
        ):
            own = own.droplevel(["schedule", "total"])
            both = own.index.intersection(paper.index)
            if len(both):
                held.append(bool((own[both] >= paper[both] / 2).all()))
                seeds.append(len(both))
                judged.add(kind)
    found = of_parts(held, min(seeds))
    if "geometric" not in judged:
        found = f"not run: no geometric series within a factor {NEAR:g} is finished"
    return Judged("", "; ".join(said), min(seeds), rule, found)


@claim("A9", "relabelling", select=relabelling_runs)
def _a9(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = runs[runs.corruption.isin((0, 0.75))]
    if not runs.relabelled_by.notna().any() and not runs.diverged.notna().any():
        return None
    table = runs.drop_duplicates("id")
    # −∞: diverged
    final = table.id.map(runs[runs.epoch == runs.epochs].set_index("id").test_accuracy).fillna(
        -np.inf
    )
    values = {}
    for labels, (_, trained_on) in RELABELLED.items():
        own = table[table.labels == labels]
        one_setting(own, f"trained {trained_on} of {dataset}", but=("seed", "relabelled_by"))
        values[labels] = final[own.index].set_axis(own.seed)
    # a network that diverged gives no labels to train on
    for labels, teacher in (("al2", "teacher"), ("bare", "noisy")):
        lost = values[teacher][values[teacher] == -np.inf].index
        values[labels] = values[labels].reindex(
            values[labels].index.union(lost), fill_value=-np.inf
        )
    cells = {
        f"AL2's − {other}": differences(values["al2"], values[other]) for other in ("noisy", "bare")
    }
    cells = {name: d for name, d in cells.items() if len(d)}
    said = "; ".join(
        f"{RELABELLED[labels][1]} {mean_text(own)}" for labels, own in values.items() if len(own)
    )
    rule = (
        "two cells at 75 % corruption: d = final accuracy of bare trained on the labels that "
        "bare+AL2 predicts − on the noisy labels, and − on those that bare itself predicts; "
        f"{PAIRED}"
    )
    return Judged("", f"bare trained {said}", smallest_n(cells), rule, verdict(cells, 2))


@claim("A10", "label_randomization", select=eight_networks)
def _a10(runs: pd.DataFrame, dataset: str) -> Judged | None:
    runs = _at_75(runs)
    if runs.empty:
        return None
    table = stopping(runs).set_index(["baseline", "al2", "seed"]).sort_index()
    if ("dropout", False) not in table.index:
        return None
    best = table.best.where(~table.diverged, -np.inf)
    cells = {
        b: differences(best["dropout", False], best[b, True])
        for b in BASELINES
        if (b, True) in table.index
    }
    cells = {b: d for b, d in cells.items() if len(d)}
    said = []
    for (baseline, al2), own in table.groupby(level=["baseline", "al2"], sort=False):
        early = (
            "no labels held out"
            if own.stopped.isna().all()
            else f"stopped early {own.stopped.mean():.1f}"
        )
        found = f"final {own.final.mean():.1f}, best {own.best.mean():.1f}, {early}"
        name = f"{BASELINES[baseline]}+AL2" if al2 else BASELINES[baseline]
        said.append(f"{name}: {DIVERGED if own.diverged.any() else found}")
    paper = published("al2_table1").query("metric == 'test_accuracy'")
    highest = (
        paper[paper.al2].value.max(),
        paper[(paper.baseline == "dropout") & ~paper.al2].value.max(),
    )
    printed = (
        f"best printed: DO {highest[1]:.2f}, highest with AL2 {highest[0]:.2f}"
        if dataset == "mnist"
        else ""
    )
    rule = (
        f"a cell a baseline: d = best epoch of DO − best epoch of the baseline with AL2; {PAIRED}"
    )
    return Judged(printed, "; ".join(said), smallest_n(cells), rule, verdict(cells, 4))
