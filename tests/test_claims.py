"""The rules that judge the AL2 paper's claims, on made frames."""

import dataclasses
from functools import partial

import numpy as np
import pandas as pd
import pytest
from made import ALL_CLAIMS, judge, stop, stored, together

from lib import store
from lib.schedules import SCHEDULES
from lib.study import claims, tables
from lib.study.claims import verdicts
from lib.study.experiments import label_randomization, relabelling, representations, schedules

BEST = {"bare": 26.0, "batchnorm": 26.0, "dropout": 55.0, "weight_decay": 25.0}
GAIN = {"bare": 42.0, "batchnorm": 55.0, "dropout": 36.0, "weight_decay": 61.0}
L_R = {"bare": 119.0, "batchnorm": 11.5, "dropout": 1.92, "weight_decay": 107.8}
UNANSWERED = "not run: no finished run of the profile made answers it"


def frame(
    seeds=(0, 1),
    gain=GAIN,
    profile="made",
    dataset="mnist",
    corruption=0.75,
    entropy=(0.01, 2.15),
    **settings,
):
    """The eight networks, 70 epochs, with accuracies as in the paper's last column."""
    parts = []
    stated = {"epochs": 70, "corruption": corruption, "speed": 10} | settings
    for run in label_randomization(dataset, seeds=seeds, **stated):
        final = BEST[run.baseline] + run.al2 * gain[run.baseline] + run.seed
        measured = {"test_accuracy": final, "ablation_auc": final / 2}
        measured |= {"activation_l2": L_R[run.baseline] / 1000**run.al2}
        measured |= {"cross_entropy": entropy[run.al2]}
        epochs = range(10, 71, 10)
        parts.append(stored(run, profile=profile, classes=10, epochs=epochs, **measured))
    return together(*parts)


def judged(claim, made):
    (row,) = judge(made, only=[claim]).itertuples()
    return row


def verdict(claim, made):
    return judged(claim, made).verdict


def of(made, baseline, al2=None, seed=None):
    """Which rows are of this network."""
    rows = made.baseline == baseline
    rows &= True if al2 is None else made.al2 == al2
    return rows & (True if seed is None else made.seed == seed)


# ---- the rules


@pytest.mark.parametrize(
    ("differences", "holds"),
    [
        ([3.0, 2.0, 4.0], True),
        ([3.0, -3.0, 4.0], False),
        ([0.1, 0.1, 0.1001], True),
        ([1.0, 9.0], True),
        ([0.9, 9.0], False),
        ([-2.0, 5.0], False),
        ([50.0], None),
        # the mean lies 2 standard errors above 0, or a little less, or more
        (np.array([-1.0, 0.0, 1.0]) + 2 / np.sqrt(3) - 1e-9, False),
        (np.array([-1.0, 0.0, 1.0]) + 2 / np.sqrt(3) + 1e-6, True),
    ],
)
def test_a_cell_holds_by_the_protocol_s_rule(differences, holds):
    assert verdicts.cell_holds(differences) is holds


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ([[5, 6]] * 4, "holds"),
        ([[5, 6]] * 2 + [[-5, -6]] * 2, "holds in part"),
        ([[5, 6]] + [[-5, -6]] * 3, "does not hold"),
        ([[-5, -6]] * 4, "does not hold"),
        ([[50]] + [[-1]] * 3, "indicative: 1 of 4 cells have the claimed sign, one seed"),
        ([], "not run: 0 of 4 cells have finished runs"),
        ([[5, 6]] * 3 + [[]], "not run: 3 of 4 cells have finished runs"),
    ],
)
def test_all_cells_half_of_them_or_fewer_one_seed_or_none(cells, wanted):
    assert verdicts.verdict({str(k): d for k, d in enumerate(cells)}, 4) == wanted


def test_every_claim_has_a_row_a_profile_and_says_why_it_was_not_run():
    found = judge(store.load([]), ["lite", "paper"])
    assert list(found.columns) == claims.COLUMNS
    assert len(found) == 2 * 20 and set(found.claim) == set(ALL_CLAIMS)
    assert (found.verdict == "not run: no finished run of the profile " + found["profile"]).all()


def test_rules_are_stated_for_every_judged_claim():
    found = judge(frame())
    assert (found.n > 0).any() and (found[found.n > 0].rule != "").all()
    fields = [field.name for field in dataclasses.fields(verdicts.Judged)]
    assert fields == ["published", "measured", "n", "rule", "verdict"]


def test_the_paper_s_own_numbers_bear_out_its_claims():
    made = frame()
    table = tables.published("al2_table1")
    values = table.pivot(index=["baseline", "al2", "epoch"], columns="metric", values="value")
    here = pd.MultiIndex.from_arrays([made.baseline, made.al2, 10 * made.epoch])
    made = made.assign(**{metric: values[metric].reindex(here).to_numpy() for metric in values})
    found = judge(made, only=["A1", "A2", "A3", "A4"])
    assert found.verdict.tolist() == ["holds"] * 4


def test_published_numbers_stand_beside_mnist_only():
    both = together(frame(), frame(dataset="fashion_mnist"))
    found = judge(both, only=["A1", "A8"]).set_index(["claim", "dataset"]).published
    assert "25.84 → 68.46" in found["A1", "mnist"] and found["A1", "fashion_mnist"] == ""
    assert ("A8", "fashion_mnist") in found and ("A8", "mnist") not in found


# ---- A1–A5, A8, A10: the eight networks

SAME = dict.fromkeys(GAIN, 0.0)
SMALL = dict.fromkeys(GAIN, 3.0) | {"dropout": -9.0}
AT_CHANCE = {name: 10.0 - best for name, best in BEST.items()}


@pytest.mark.parametrize(
    ("claim", "made", "wanted"),
    [
        ("A1", {"gain": dict.fromkeys(GAIN, -10.0)}, "does not hold"),
        ("A1", {"gain": GAIN | {"dropout": -10.0}}, "holds in part"),
        # to the two digits that the paper prints; three of seven parts rest on the least with AL2
        ("A4", {"entropy": (0.01, 2.0651)}, "holds"),
        ("A4", {"entropy": (0.01, 2.0649)}, "does not hold"),
        ("A4", {"entropy": (0.0249, 2.15)}, "holds"),  # printed 0.02
        ("A4", {"entropy": (0.0251, 2.15)}, "holds in part"),  # printed 0.03
        ("A4", {"gain": SAME}, "holds"),
        ("A4", {"gain": AT_CHANCE}, "does not hold"),
        ("A5", {"gain": GAIN | {"dropout": 2.4}}, "holds"),
        ("A5", {}, "holds in part"),  # no pair of similar accuracy
        ("A5", {"gain": GAIN | {"dropout": -20.0}}, "holds in part"),  # both fall: they agree
        ("A10", {"gain": SMALL}, "holds"),
        ("A10", {}, "does not hold"),
    ],
)
def test_claims_about_the_eight_networks(claim, made, wanted):
    row = judged(claim, frame(**made))
    assert row.verdict == wanted
    assert ("near chance" in row.measured) == (made.get("gain") is AT_CHANCE)


def test_the_area_does_not_agree_where_it_moves_against_the_accuracy():
    opposed = frame()
    opposed.loc[opposed.al2, "ablation_auc"] = 1.0
    assert verdict("A5", opposed) == "does not hold"


def test_a4_and_a6_have_one_reading_of_a_dead_network(monkeypatch):
    made = {"A4": frame(gain=SAME), "A6": curves().assign(test_accuracy=25.0)}
    assert {verdict(claim, runs) for claim, runs in made.items()} == {"holds"}
    monkeypatch.setattr(tables, "DEAD", 3)  # × chance: 30 %
    found = {claim: verdict(claim, runs) for claim, runs in made.items()}
    assert found == {"A4": "holds in part", "A6": "does not hold"}


def test_a3_takes_each_ratio_on_the_seeds_that_both_networks_have():
    made = frame(seeds=(0, 1, 2))
    assert judged("A3", made).measured == "BN/DO 6.0×; Bare/DO 62.0×; WD/DO 56.1×; WD/Bare 0.91×"
    row = judged("A3", made[~of(made, "batchnorm", seed=2)])
    assert (row.verdict, row.n) == ("holds", 2)
    row = judged("A3", made[made.baseline != "batchnorm"])
    assert row.measured == "Bare/DO 62.0×; WD/DO 56.1×; WD/Bare 0.91×"
    # in every seed, or a part does not hold
    made.loc[of(made, "dropout", seed=1), "activation_l2"] = 20.0
    assert verdict("A3", made) == "does not hold"
    made.loc[of(made, "dropout", seed=1), "activation_l2"] = 0.0
    row = judged("A3", made)
    assert row.verdict == "does not hold"
    assert row.measured.startswith("BN/DO no ratio: an L_r is 0; ")


@pytest.mark.parametrize(("al2", "n"), [(False, 2), (True, 1)])
def test_a4_counts_the_seeds_of_its_seven_parts_alone(al2, n):
    """DO without AL2 is none of them."""
    made = frame()
    assert judged("A4", made[~of(made, "dropout", al2, seed=1)]).n == n


def test_a8_takes_every_level_but_the_one_of_a1():
    worse = frame(corruption=0.5, gain=dict.fromkeys(GAIN, -9.0))
    both = together(frame(), frame(corruption=0.25), worse)
    # a level that nobody ran is no level less
    assert verdict("A8", both) == "not run: 8 of 12 cells have finished runs"
    row = judged("A8", together(both, frame(corruption=0.0)))
    assert row.verdict == "holds in part" and "25 %: Bare +42.0" in row.measured


def test_what_is_printed_is_of_the_seeds_that_the_verdict_pairs():
    made = frame(seeds=(0, 1, 2))
    # bare has a third seed, and BN none in common
    made = made[(made.seed < 2) | of(made, "bare", False)]
    made = made[~((made.baseline == "batchnorm") & (made.al2 == (made.seed == 0)))]
    made = made[(made.baseline != "weight_decay") & ~of(made, "dropout", True)]
    expected = "Bare 26.5 → 68.5; BN 26.0 → 82.0; DO 55.5 → not run; WD not run"
    assert judged("A1", made).measured == expected


@pytest.mark.parametrize("first", ["dropout", "bare"])
def test_claims_and_tables_read_the_same_epoch_whichever_run_comes_first(first):
    made = frame()
    # dropout goes on to epoch 90
    more = made[(made.baseline == "dropout") & (made.epoch > 50)].assign(test_accuracy=1.0)
    made = together(made, more.assign(epoch=more.epoch + 20))
    made.loc[made.baseline == "dropout", "epochs"] = 90
    made = together(made[made.baseline == first], made[made.baseline != first])
    assert "DO 55.5 → 91.5" in judged("A1", made).measured
    table = tables.at_published_epochs(made, ["test_accuracy"], [700])
    table = table.set_index(["baseline", "regulariser"]).measured
    assert table["dropout", "al2"] == 91.5


# ---- early stopping, which A10 rests on


def alone(baseline, **columns):
    made = frame(seeds=[0])
    return made[of(made, baseline, False)].assign(**columns)


def test_early_stopping_takes_the_best_epoch_on_noisy_labels():
    made = alone(
        "bare",
        test_accuracy=[10.0, 60.0, 80.0, 70.0, 40.0, 30.0, 20.0],
        validation_accuracy=[5.0, 9.0, 8.0, 9.0, 3.0, 2.0, 1.0],
    )
    (row,) = tables.stopping(made).itertuples()
    assert (row.final, row.best, row.best_epoch) == (20.0, 80.0, 30)
    assert (row.stopped, row.stopped_epoch) == (60.0, 20)
    assert tables.stopping(made.drop(columns="validation_accuracy")).stopped.isna().all()


def test_a_training_longer_than_the_paper_s_is_read_at_its_last_epoch():
    """Dropout goes on to epoch 750 for Figure 1; the others end at 700."""
    made = alone(
        "dropout",
        epoch=[100, 300, 500, 600, 699, 700, 750],
        test_accuracy=[10.0, 60.0, 80.0, 70.0, 40.0, 30.0, 99.0],
        diverged=760.0,
    )
    (row,) = tables.stopping(made).itertuples()
    assert (row.final, row.best, row.best_epoch, row.diverged) == (30.0, 80.0, 500, False)


@pytest.mark.parametrize("at", [1, 35])
def test_a_diverged_run_has_no_final_accuracy(at):
    made = frame(gain=SMALL)
    made = stop(made, of(made, "dropout", True, 0), at)
    table = tables.stopping(made).set_index(["baseline", "al2", "seed"])
    lost = table.loc["dropout", True, 0]
    assert len(table) == 16 and list(table.index[table.diverged]) == [("dropout", True, 0)]
    assert np.isnan(lost.final)
    assert lost[["best", "best_epoch"]].isna().all() if at == 1 else lost.best == 46.0


def test_early_stopping_is_of_each_run_though_several_share_baseline_and_seed():
    made = study(shares=[1.0])
    found = tables.stopping(made)
    assert list(found.id) == list(made.id.unique()) and (found.best_epoch == 1).all()


# ---- A6: |difference by AL2| against |difference by seed|, in points of mean CCA


def curves(by_al2=0.1, by_seed=0.02, seeds=(0, 1), **settings):
    """Mean CCA with the start falling over 20 epochs; AL2 and another seed shift it by so much, by
    AL2 to either side.
    """
    parts = []
    for run in representations("mnist", seeds=seeds, epochs=20, **settings):
        own = by_al2[run.dropout] if isinstance(by_al2, dict) else by_al2
        shift = by_seed * run.seed + run.al2 * own
        course = {"mean_cca init": lambda e, s=shift: 0.7 - 0.01 * e + s * (-1) ** e}
        parts.append(stored(run, classes=10, test_accuracy=50.0, **course))
    return together(*parts)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (dict(), "holds"),
        (dict(seeds=(0, 1, 2)), "holds"),
        (dict(by_al2=0.01), "does not hold"),  # less than a second seed does
        (dict(by_al2=0.029), "does not hold"),  # more, but by less than a point
        (dict(by_al2={0.5: 0.1, 0.0: 0.01}), "holds in part"),
        (dict(by_al2=0.1, seeds=(0, 20)), "does not hold"),  # seeds far apart
    ],
)
def test_al2_changes_the_course_if_it_does_so_by_more_than_a_second_seed(made, wanted):
    assert verdict("A6", curves(**made)) == wanted


def test_a6_takes_the_seeds_largest_difference_without_or_with_al2():
    made = curves(dropouts=[0.5])
    row = judged("A6", made)
    assert row.measured == "dropout 0.5: by AL2 10.0, by another seed at most 2.0"
    assert row.n == 2 and "× 100" in row.rule
    apart = made.al2 & (made.seed == 1)
    # with AL2 the seeds differ by 28 points
    made.loc[apart, "mean_cca init"] -= 0.3 * (-1.0) ** made.epoch[apart]
    row = judged("A6", made)
    assert row.measured == "dropout 0.5: by AL2 15.0, by another seed at most 28.0"
    assert row.verdict == "does not hold"


@pytest.mark.parametrize(
    ("since", "accuracy", "course"),
    [
        (0, 10.1, ()),
        # a dead φ has no correlations: from the start, from epoch 13 on, or the last has none
        (0, 10.0, ("mean_cca init",)),
        (12, 10.0, ("mean_cca init",)),
        (19, 10.0, ("mean_cca init",)),
    ],
)
def test_a6_does_not_count_a_network_at_chance(since, accuracy, course):
    made = curves()
    dead = made.al2 & (made.dropout == 0.5) & (made.seed == 1) & (made.epoch > since)
    made.loc[dead, "test_accuracy"] = accuracy
    made.loc[dead, list(course)] = np.nan
    row = judged("A6", made)
    assert row.verdict == "holds in part" and "nan" not in row.measured
    assert row.measured.count("at or near chance") == 1


def test_a6_is_judged_by_runs_at_75_percent_with_the_measure():
    more = curves(by_al2=0.0, corruption=0.5)
    assert verdict("A6", together(curves(), more)) == "holds"
    assert verdict("A6", curves().drop(columns="mean_cca init")) == UNANSWERED


# ---- A7: other series


def study(gains=None, seeds=(0, 1), shares=(0.1, 0.3, 1, 3), diverged=(), **settings):
    """Runs of the schedule study, 10 epochs: bare ends at 25 + seed, bare with AL2 so much above it
    (40 if not given).

    Args:
        gains: by (schedule, total).
        diverged: (schedule, total, seed), in epoch 6; schedule "" is bare.
    """
    varied = {"totals": shares, "weight_decays": (5e-4, 5e-3)} | settings
    runs = schedules("mnist", seeds=seeds, epochs=10, speed=70, **varied)
    stated = [("", 0), *[("weight_decay", 0)] * 2, *((k, s) for k in SCHEDULES for s in shares)]
    parts = []
    for run, named in zip(runs, stated * len(seeds), strict=True):
        final = 25.0 + run.seed + run.al2 * (gains or {}).get(named, 40.0) + 1000 * run.weight_decay
        ended = 6 if (*named, run.seed) in diverged else None
        accuracy = {"test_accuracy": lambda e, final=final: final + 10 - e}
        parts.append(stored(run, classes=10, diverged=ended, **accuracy))
    return together(*parts)


def finished(*of_al2, more=""):
    """Of the study's schedules `al2` those with these totals, and one of another kind."""
    made = study()
    total = made.id.map(tables.totals(made))
    kept = made.schedule.eq("al2") & total.isin(of_al2) | made.schedule.eq(more) & total.eq(1)
    return made[~made.al2 | kept]


def test_totals_are_multiples_of_the_paper_s_series_whatever_the_kind():
    made = study()
    found = made.drop_duplicates("id").set_index("id").assign(total=tables.totals(made))
    assert found.total[~found.al2].isna().all()
    for _, own in found[found.al2].groupby(["schedule", "seed"]):
        assert list(own.total) == [0.1, 0.3, 1.0, 3.0]


@pytest.mark.parametrize(
    ("kinds", "known"),
    [
        (["al2"], False),
        (["al2", "constant"], False),
        (["al2", "linear"], True),
        (["geometric"], True),
    ],
)
def test_without_a_geometric_or_linear_series_no_multiple_is_known(kinds, known):
    """Of the schedules al2 alone, of which some are finished, none can be told to be that of ×1."""
    made = study(shares=(0.1, 1.0, 3.0), seeds=[0])
    found = tables.totals(made[~made.al2 | made.schedule.isin(kinds)])
    expected = [0.1, 1.0, 3.0] if known else [np.nan] * 3
    assert list(found) == pytest.approx(expected * len(kinds), nan_ok=True)


OTHERS = {(kind, total): -9.0 for kind in ("linear", "constant") for total in (0.3, 1.0, 3.0)}
LOST = {("al2", 0.3): 5.0, ("geometric", 0.3): 19.9, ("geometric", 1.0): 5.0}


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        ({"gains": {("geometric", 3.0): 20.5}}, "holds"),
        # it is not about linear and constant series, nor about a tenth of the weight
        ({"gains": OTHERS | {("al2", 0.1): 0.0, ("geometric", 0.1): 0.0}}, "holds"),
        ({"gains": LOST}, "does not hold"),  # two of five parts
        ({"gains": {("al2", 0.3): 5.0}}, "holds in part"),
        ({"gains": LOST, "seeds": [0]}, "indicative: 2 of 5 parts hold, one seed"),
    ],
)
def test_a7_holds_where_the_exponential_series_keep_half_of_the_gain(made, wanted):
    assert verdict("A7", study(**made)) == wanted


def test_a7_says_the_gain_of_every_series():
    row = judged("A7", study({("geometric", 3.0): 20.5}))
    assert "geometric: ×0.1 +40.0, ×0.3 +40.0, ×1 +40.0, ×3 +20.5" in row.measured
    assert "linear: ×0.1 +40.0" in row.measured and row.n == 2
    assert "al2: ×0.3 +40.0" in judged("A7", finished(0.3, 1, more="linear")).measured


@pytest.mark.parametrize(
    "late", [lambda f: f.schedule.eq("geometric") & f.al2, lambda f: of(f, "bare", False)]
)
def test_a_seed_that_a_series_or_bare_has_not_been_trained_on_yet_is_left_out(late):
    made = study()
    row = judged("A7", made[~(late(made) & made.seed.eq(1))])
    assert (row.verdict, row.n) == ("indicative: 5 of 5 parts hold, one seed", 1)


def test_a7_reads_the_bare_network_alone():
    every = {(kind, s): -50.0 for kind in SCHEDULES for s in (0.1, 0.3, 1.0, 3.0)}
    assert verdict("A7", together(study(), study(every, dropout=0.5))) == "holds"


# ---- A9: relabelling

FINALS = {"noisy": 25.0, "teacher": 68.0, "bare": 26.0, "al2": 70.0, "clean": 99.0}


def relabelled(seeds=(0, 1, 2), finals=FINALS, diverged=(), **settings):
    """Runs of the relabelling with these final accuracies, 0.1 apart between seeds.

    `diverged` are (labels, seed); those that such a run would have relabelled are not there.
    """
    runs = relabelling(seeds=seeds, epochs=7, **{"dataset": "mnist"} | settings)
    parts, lost = [], set()
    for run, labels in zip(runs, list(FINALS) * len(seeds), strict=True):
        ended = 4 if (labels, run.seed) in diverged else None
        lost |= {run.id} if ended else set()
        if run.relabelled_by not in lost:
            final = finals[labels] + run.seed / 10
            accuracy = {"test_accuracy": lambda e, final=final: np.where(e < 7, 99.0, final)}
            parts.append(stored(run, classes=10, diverged=ended, **accuracy))
    return together(*parts)


def test_a9_says_what_each_network_reached():
    row = judged("A9", relabelled())
    assert (row.verdict, row.n, row.dataset) == ("holds", 3, "mnist")
    assert row.measured == (
        "bare trained on the noisy labels 25.1; on them with AL2 68.1; on AL2's labels 70.1; on "
        "its own labels 26.1; on the true labels 99.1"
    )


@pytest.mark.parametrize(
    ("finals", "seeds", "wanted"),
    [
        ({}, 2, "holds"),
        ({"al2": 24.0}, 3, "does not hold"),
        ({"al2": 25.5}, 3, "holds in part"),  # above the noisy labels, below its own
        ({"bare": 71.0}, 3, "holds in part"),  # any second training would do
        ({"noisy": 71.0, "bare": 71.0}, 3, "does not hold"),
        ({"teacher": 99.0, "clean": 10.0}, 3, "holds"),  # neither enters the verdict
        ({"al2": 26.9}, 2, "holds in part"),  # of two seeds, less than a point
        ({}, 1, "indicative: 2 of 2 cells have the claimed sign, one seed"),
    ],
)
def test_a9_compares_with_the_noisy_labels_and_the_network_s_own(finals, seeds, wanted):
    row = judged("A9", relabelled(seeds=range(seeds), finals=FINALS | finals))
    assert (row.verdict, row.n) == (wanted, seeds)


def test_a9_reads_75_percent_a_row_a_data_set():
    worse = FINALS | {"al2": 1.0}
    other = relabelled(finals=worse, corruption=0.5)
    assert verdict("A9", together(relabelled(), other[other.corruption > 0])) == "holds"
    both = together(relabelled(), relabelled(dataset="fashion_mnist", finals=worse))
    found = judge(both, only=["A9"]).set_index("dataset").verdict
    assert found.to_dict() == {"mnist": "holds", "fashion_mnist": "does not hold"}


# ---- every claim: not run, diverged, mixed

KEEPS_NOTHING = "not run: AL2 with its own schedule gains nothing here, so there is nothing to keep"
UNKNOWN = "not run: Σλ at ×1 is not known before a geometric or linear series is finished"


CONTROL = "not run: a second seed is the control, and there is none"


def only(make, keep, **settings):
    """Those of made runs that are kept."""
    return lambda: make(**settings)[lambda made: keep(made)]


def students_not_of(al2):
    return lambda made: ~made.relabelled_by.isin(made[made.al2 == al2].id)


@pytest.mark.parametrize(
    ("claim", "make", "wanted"),
    [
        ("A1", only(frame, lambda f: of(f, "bare")), "1 of 4 cells have finished runs"),
        ("A3", only(frame, lambda f: ~of(f, "batchnorm")), "3 of 4 parts have finished runs"),
        ("A3", only(frame, lambda f: of(f, "bare")), UNANSWERED),
        ("A4", only(frame, lambda f: of(f, "bare")), "2 of 7 parts have finished runs"),
        ("A4", only(frame, lambda f: of(f, "dropout", False)), "0 of 7 parts have finished runs"),
        ("A6", lambda: curves(seeds=[0]), CONTROL),
        ("A6", only(curves, lambda f: ~(f.al2 & (f.seed == 1))), CONTROL),
        ("A7", lambda: study({("al2", 1.0): -1.0}), KEEPS_NOTHING),
        ("A7", lambda: finished(1), UNKNOWN),
        ("A7", lambda: finished(0.3, 1), UNKNOWN),
        ("A7", lambda: finished(0.3, 1, more="linear"), "no geometric series within a factor 3.5"),
        ("A7", only(study, lambda f: ~f.al2), UNANSWERED),
        ("A7", lambda: study(corruption=0.5), UNANSWERED),
        ("A9", lambda: store.load([]), "not run: no finished run of the profile made"),
        ("A9", only(relabelled, lambda f: f.relabelled_by.isna()), UNANSWERED),
        ("A9", only(relabelled, students_not_of(True)), "0 of 2 cells have finished runs"),
        ("A9", only(relabelled, students_not_of(False)), "1 of 2 cells have finished runs"),
        ("A9", lambda: relabelled(corruption=0.5), UNANSWERED),
    ],
)
def test_what_the_runs_do_not_answer_is_not_run_and_why_is_said(claim, make, wanted):
    found = verdict(claim, make())
    assert found.startswith("not run: ") and found.endswith((wanted, f"{wanted} is finished"))


def levels():
    return together(*(frame(corruption=level) for level in (0, 0.25, 0.5)))


THREE = partial(frame, seeds=(0, 1, 2))
TEN = partial(frame, gain=SMALL)
COURSES = partial(curves, seeds=(0, 1, 2))


def of_al2(made):
    return made.al2 & (made.dropout == 0.5) & (made.seed == 1)


@pytest.mark.parametrize(
    ("claim", "make", "hit", "at", "said"),
    [
        # all runs of a cell; without AL2 and with it, so that their difference is of no use
        ("A1", frame, lambda f: of(f, "bare", True), 40, "Bare 26.5 → diverged"),
        ("A1", THREE, lambda f: of(f, "bare", seed=0), 40, "Bare diverged → diverged"),
        ("A2", THREE, lambda f: of(f, "weight_decay", False, 0), 40, "DO − WD diverged"),
        ("A3", THREE, lambda f: of(f, "batchnorm", False, 0), 40, "BN/DO diverged; Bare/DO 62.0×"),
        ("A4", frame, lambda f: of(f, "bare", seed=0), 40, "Bare+AL2 diverged"),
        ("A4", frame, lambda f: of(f, "bare", seed=0), 40, "; Bare diverged"),
        ("A5", frame, lambda f: of(f, "bare", True), 40, "Bare 13.2 → diverged"),
        ("A6", curves, of_al2, 13, "or diverged"),
        ("A6", COURSES, of_al2, 1, "or diverged"),
        ("A8", levels, lambda f: of(f, "bare", True) & (f.corruption == 0.5), 40, "Bare diverged"),
        ("A10", TEN, lambda f: of(f, "dropout", True, 0), 1, "DO+AL2: diverged"),
        ("A10", TEN, lambda f: of(f, "dropout", True, 0), 35, "DO+AL2: diverged"),
    ],
)
def test_no_cell_holds_because_a_diverged_run_is_left_out(claim, make, hit, at, said):
    made = make()
    before = judged(claim, made)
    assert before.verdict == ("holds in part" if claim == "A5" else "holds")
    row = judged(claim, stop(made, hit(made), at))
    assert (row.verdict, row.n) == ("holds in part", before.n)
    assert "inf" not in row.measured and "nan" not in row.measured
    assert row.measured.count(said) == 1


@pytest.mark.parametrize(
    ("claim", "diverged", "wanted"),
    [
        ("A7", [("geometric", 1.0, 0), ("geometric", 1.0, 1)], "holds in part"),
        ("A7", [("geometric", 3.0, 1)], "holds in part"),
        ("A7", [("al2", 1.0, 0)], KEEPS_NOTHING),
        ("A7", [("", 0, 0)], KEEPS_NOTHING),  # nothing to gain over
        ("A9", [("al2", 1)], "does not hold"),
        ("A9", [("bare", 1)], "holds in part"),
        # neither difference is of use: there are no labels for the control either
        ("A9", [("noisy", 1)], "does not hold"),
        ("A9", [("teacher", 1)], "does not hold"),  # there are no labels to be had from AL2
        ("A9", [("clean", 1)], "holds"),
    ],
)
def test_a_series_or_student_that_diverged_has_kept_nothing(claim, diverged, wanted):
    made = (study if claim == "A7" else relabelled)(diverged=diverged)
    row = judged(claim, made)
    assert (row.verdict, row.n) == (wanted, made.seed.nunique()) and "diverged" in row.measured


def of_one_total(made):
    return made[made.schedule.eq("al2") & made.al2].assign(speed=lambda rows: rows.speed * 1.0001)


@pytest.mark.parametrize(
    ("claim", "make", "other", "field"),
    [
        *((claim, frame, {"n_train": 500}, "n_train") for claim in ("A2", "A8", "A10")),
        ("A6", curves, {"speed": 3.0}, "speed"),
        ("A6", curves, {"n_train": 500}, "n_train"),
        ("A6", curves, {"batch_norm": True}, "batch_norm"),
        ("A6", curves, {"epochs": 40}, "epochs"),
        ("A7", study, {"n_train": 500}, "n_train"),
        ("A7", study, {"learning_rate": 0.1}, "learning_rate"),
        ("A7", study, {"epochs": 20}, "epochs"),
        ("A7", study, {"speed": 35.0}, "speed"),
        ("A7", study, of_one_total, "speed"),
        ("A9", relabelled, {"learning_rate": 0.1, "seed": 3}, "learning_rate"),
    ],
)
def test_no_rule_averages_over_several_settings(claim, make, other, field):
    made = make()
    more = other(made) if callable(other) else made.assign(**other)
    if field == "speed":  # it has no effect on those without AL2
        more = more[more.al2]
    cell = {"A6": "mnist, dropout 0 ", "A7": "mnist, .*"}.get(claim, "")
    with pytest.raises(ValueError, match=f"{cell}differ in {field}:"):
        judge(together(made, more.assign(id=more.id + "x")), only=[claim])
