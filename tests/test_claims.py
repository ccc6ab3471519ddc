"""The rules that judge the AL2 paper's claims, and how cells make a verdict, on made frames."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from made import ALL_CLAIMS, cells, judge, states, stop, stored, together, unfinished

from lib.run import Run
from lib.schedules import SCHEDULES
from lib.study import claims, evidence, tables
from lib.study.claims import verdicts
from lib.study.claims.verdicts import Sample
from lib.study.experiments import label_randomization, relabelling, representations, schedules

BEST = {"bare": 26.0, "batchnorm": 26.0, "dropout": 55.0, "weight_decay": 25.0}
GAIN = {"bare": 42.0, "batchnorm": 55.0, "dropout": 36.0, "weight_decay": 61.0}
L_R = {"bare": 119.0, "batchnorm": 11.5, "dropout": 1.92, "weight_decay": 107.8}


def frame(
    seeds=(0, 1, 2),
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
        measured = {"test_accuracy": final, "ablation_auc": 1.5 * final}
        measured |= {"activation_l2": L_R[run.baseline] / 1000**run.al2}
        measured |= {"cross_entropy": entropy[run.al2]}
        epochs = range(10, 71, 10)
        parts.append(stored(run, profile=profile, classes=10, epochs=epochs, **measured))
    return together(*parts)


def of(made, baseline, al2=None, seed=None):
    """Which rows are of this network."""
    rows = made.baseline == baseline
    rows &= True if al2 is None else made.al2 == al2
    return rows & (True if seed is None else made.seed == seed)


def verdict(claim, made):
    (row,) = judge(made, only=[claim]).itertuples()
    return row.verdict


# ---- numbers and kinds


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        # t(0.95) is 6.3138 with one degree of freedom, 2.9200 with two
        ([1.0, 3.0], (2.0, 2 - 6.3138, 2 + 6.3138)),
        ([1.0, 2.0, 3.0], (2.0, 2 - 2.9200 / np.sqrt(3), 2 + 2.9200 / np.sqrt(3))),
        ([4.0], (4.0, np.nan, np.nan)),
        ([], (np.nan, np.nan, np.nan)),
    ],
)
def test_intervals_are_those_of_the_tables_of_t(values, wanted):
    assert verdicts.interval(values) == pytest.approx(wanted, abs=1e-4, nan_ok=True)


H, F, U, I, N, R = "holds", "fails", "undecided", "indicative", "nothing", "not run"  # noqa: E741
CLEAR, WIDE, SMALL = np.array([0.9, 1.0, 1.1]), np.array([-2.0, 1.0, 4.0]), np.array([-0.1, 0, 0.1])


@pytest.mark.parametrize(
    ("kind", "options", "wanted"),
    [
        # CLEAR, −CLEAR, 3 CLEAR, −3 CLEAR, WIDE, SMALL, two seeds of one sign, one seed, none
        ("gain", {}, (H, F, H, F, U, F, U, I, R)),  # SMALL is shown to be small
        ("gain", {"printed": 2.0}, (H, F, H, F, U, F, U, I, R)),
        ("gain", {"printed": 1.9}, (H, F, H, F, U, U, U, I, R)),
        ("gain", {"margin": None}, (H, F, H, F, U, U, U, I, R)),
        ("gain", {"margin": 0.05}, (H, F, H, F, U, U, U, I, R)),
        ("not_lower", {}, (H, H, H, F, U, H, U, I, R)),
        ("no_gain", {}, (H, H, F, H, U, H, U, I, R)),
        ("no_gain", {"margin": 0.02}, (F, H, F, H, U, U, U, I, R)),
        ("above", {"bound": 0.5}, (H, F, H, F, U, F, U, I, R)),
        ("above", {"bound": 1.0}, (U, F, H, F, U, F, U, I, R)),
        ("above", {"bound": 1.5}, (F, F, H, F, U, F, U, I, R)),
        ("below", {"bound": 1.5}, (H, H, F, H, U, H, U, I, R)),
        ("below", {"bound": 0.5}, (F, H, F, H, U, H, U, I, R)),
        ("each_run", {"claimed": lambda v: v > 1, "kind": ""}, (U, F, H, F, U, F, U, I, R)),
    ],
)
def test_each_kind_of_cell(kind, options, wanted):
    judged = partial(getattr(verdicts, kind), "name", **options)
    several = (CLEAR, -CLEAR, 3 * CLEAR, -3 * CLEAR, WIDE, SMALL, [1.0, 9.0], [50.0], [])
    several = [pd.Series(values, dtype=float) for values in several]
    assert tuple(judged(sample=Sample(values)).state for values in several) == wanted
    assert judged(sample=Sample(several[0], alive=False)).state == "nothing"
    assert judged(sample=None) is None  # its runs are not stated


@pytest.mark.parametrize(
    ("kind", "claimed", "other"),
    [("gain", 0.1, -0.1), ("not_lower", -1.9, -2.1), ("no_gain", 1.9, 2.1)],
)
def test_one_seed_has_the_claimed_sign_or_keeps_the_bound(kind, claimed, other):
    for value, wanted in ((claimed, True), (other, False)):
        cell = getattr(verdicts, kind)("name", Sample(pd.Series([value])))
        assert cell.as_claimed is wanted and cell.mean == value


def gains(*of_values, alive=True):
    return [verdicts.gain("", Sample(pd.Series(v, dtype=float), alive)) for v in of_values]


@pytest.mark.parametrize(
    ("several", "wanted"),
    [
        (gains(CLEAR, CLEAR), H),
        (gains(CLEAR, WIDE), U),
        (gains(CLEAR, SMALL), U),  # small is no shown loss
        (gains(CLEAR, -CLEAR), F),
        (gains(CLEAR, [1.0]), I),
        (gains(CLEAR, []), R),
        (gains(CLEAR, []) + gains(CLEAR, alive=False), R),
        (gains(CLEAR) + gains(CLEAR, alive=False), N),
    ],
)
def test_a_cell_of_several_gains(several, wanted):
    assert verdicts.all_gains("", several, "").state == wanted
    assert verdicts.all_gains("", [*several, None], "") is None


@pytest.mark.parametrize(
    ("wanted", "several"),
    [
        ("holds", "HHH HHS"),
        ("holds in part", "HHN HHR HF HU HI NH"),  # half of those that were run are alive
        ("does not hold", "HFF FFFRRR"),
        ("undecided", "HFFU UUH IUUH"),  # half fail, not more
        ("indicative: 2 of 2 cells as claimed, one seed", "II IIHF"),
        ("nothing", "NNH NNR"),
        ("not run", "RR S"),
    ],
)
def test_what_cells_say_together(wanted, several):
    states = dict(zip("HFUINRS", (H, F, U, I, N, R, "shown"), strict=True))
    for letters in several.split():
        of_cells = [states[letter] for letter in letters]
        assert verdicts.verdict(of_cells, [True] * len(of_cells)) == wanted, letters
    assert verdicts.verdict([], []) == "not run"


# ---- which runs a cell compares


def difference(one, other, **kept):
    def value(a, b):
        return a.test_accuracy.iloc[-1] - b.test_accuracy.iloc[-1]

    return verdicts.by_seed(value, one, other, **kept)


def two():
    made = frame()
    return made[of(made, "bare", True)], made[of(made, "bare", False)]


def test_a_pair_is_of_the_seeds_that_both_have_finished():
    one, other = two()
    late = unfinished(one, one.seed == 1)
    assert list(difference(late, other[other.seed > 0]).values.index) == [2]
    assert difference(one[one.seed == 0], other[other.seed == 1]) is None  # no seed of both
    assert difference(unfinished(one, one.seed >= 0), other).values.empty


@pytest.mark.parametrize("column", verdicts.PAIRED_BY)
def test_a_pair_shares_images_labels_and_precision(column):
    one, other = two()
    apart = other.assign(**{column: other[column].where(other.seed != 1, "another")})
    assert list(difference(one, apart).values.index) == [0, 2]
    unknown = other.assign(**{column: None})
    assert len(difference(one, unknown).values) == 3


def test_a_longer_run_is_read_at_the_shorter_one_s_epochs():
    runs = (Run("mnist", epochs=epochs) for epochs in (9, 5))
    long, short = (stored(run, classes=10, test_accuracy=lambda e: 30 + e) for run in runs)
    assert difference(long, short).values.tolist() == [0]
    assert difference(long, long, most=7).values.tolist() == [0]
    ended = stop(long, long.epoch > 0, 7)
    assert difference(ended, short).alive and not difference(ended, long).alive


@pytest.mark.parametrize(
    ("accuracy", "entropy", "alive"),
    [
        (20.1, 2.2, True),
        (20.0, 2.2, False),  # twice chance
        (10.0, 1.2, False),
        (10.0, 1.1, True),  # below half the noise floor of 2.2103: it has memorised
    ],
)
def test_a_network_at_chance_silences_its_cell_unless_it_has_memorised(accuracy, entropy, alive):
    one, other = two()
    worse = {"test_accuracy": accuracy, "cross_entropy": entropy}
    one = one.assign(**{k: one[k].where(one.seed != 1, v) for k, v in worse.items()})
    assert difference(one, other).alive is alive
    assert ("nothing" in states(together(one, other), "A1").values()) is not alive


def test_a_diverged_run_is_at_chance():
    made = frame()
    made = stop(made, of(made, "bare", True, 1), 35)
    found = states(made, "A1")
    assert found.pop("Bare") == "nothing" and set(found.values()) == {"holds"}
    assert verdict("A1", made) == "holds in part"


# ---- claims about the eight networks


def test_every_claim_has_a_text_and_a_rule_in_words():
    assert list(claims.STATEMENTS) == list(ALL_CLAIMS)
    assert all(claims.CLAIMS[name].text.endswith(".") for name in ALL_CLAIMS)


@pytest.mark.parametrize(
    ("claim", "made", "wanted"),
    [
        ("A1", {}, "holds"),
        ("A1", {"seeds": [0]}, "indicative: 4 of 4 cells as claimed, one seed"),
        ("A1", {"gain": GAIN | {"bare": -3.0, "dropout": -3.0}}, "holds in part"),
        ("A1", {"gain": dict.fromkeys(GAIN, -3.0)}, "does not hold"),
        ("A1", {"gain": dict.fromkeys(GAIN, 0.5)}, "holds"),
        ("A2", {}, "holds"),
        ("A3", {}, "holds"),
        ("A4", {}, "holds"),
        ("A4", {"entropy": (0.0249, 2.0651)}, "holds"),
        ("A4", {"entropy": (0.0251, 2.0649)}, "does not hold"),
        ("A4", {"entropy": (0.0251, 2.0651)}, "holds in part"),
        ("A5", {}, "holds"),
        ("A5", {"gain": GAIN | {"dropout": -5.0}}, "holds in part"),
        ("A8", {"corruption": 0.5}, "holds"),
        ("A8", {"dataset": "cifar10"}, "holds"),
        ("A10", {}, "does not hold"),
        ("A10", {"gain": dict.fromkeys(GAIN, -3.0)}, "holds"),
    ],
)
def test_claims_about_the_eight_networks(claim, made, wanted):
    assert verdict(claim, frame(**made)) == wanted


def test_printed_numbers_stand_beside_mnist_at_75_percent_alone():
    wanted = {"Bare": 42.62, "BN": 55.61, "DO": 36.31, "WD": 61.41}
    assert cells(frame(), "A1").printed.to_dict() == pytest.approx(wanted)
    assert cells(frame(dataset="fashion_mnist"), "A8").printed.isna().all()
    ratios = cells(frame(), "A3").printed
    assert ratios["log10 Bare/WD"] == pytest.approx(np.log10(119.24 / 107.93), abs=1e-3)


def test_a1_is_mnist_at_75_percent_and_a8_all_the_rest():
    made = together(frame(), frame(corruption=0.0, seeds=[0]), frame(dataset="fashion_mnist"))
    assert set(judge(made, only=["A1"]).dataset) == {"mnist"}
    found = claims.cells({"label_randomization": made}, ["made"], ["A8"])
    level = found["name"].str.split(", ").str[1]
    assert set(zip(found.dataset, level, strict=True)) == {
        ("mnist", "0 %"),
        ("fashion_mnist", "75 %"),
    }


def test_at_0_percent_a_small_change_does_not_fail():
    close = frame(corruption=0.0, gain=dict.fromkeys(GAIN, 0.0))
    close["test_accuracy"] += 60 + np.where(close.al2, close.seed - 1, 0)
    assert set(states(close, "A8").values()) == {"undecided"}
    assert set(states(close.assign(corruption=0.5), "A8").values()) == {"fails"}


def test_a_set_without_75_percent_says_what_its_top_level_is():
    made = frame(corruption=0.5, dataset="cifar10")
    for claim in ("A2", "A3", "A4", "A5", "A10"):
        assert verdict(claim, made) == "not run: top level 50 %"


@pytest.mark.parametrize(
    ("one", "other", "bound", "is_above"),
    [
        ("batchnorm", "dropout", 0.5, True),
        ("bare", "dropout", 1.5, True),
        ("weight_decay", "dropout", 1.5, True),
        ("bare", "weight_decay", 0.3, False),
    ],
)
def test_a3_s_bounds_are_those_of_its_rule(one, other, bound, is_above):
    name = f"log10 {tables.BASELINES[one]}/{tables.BASELINES[other]}"
    for apart in (0.01, -0.01):
        made = frame()
        lower = made.activation_l2[of(made, other, False)].iloc[0]
        made.loc[of(made, one, False), "activation_l2"] = lower * 10 ** (bound + apart)
        wanted = "holds" if (apart > 0) == is_above else "fails"
        assert states(made, "A3")[name] == wanted


def test_a4_reads_all_table_epochs_with_al2_and_the_last_without():
    made = frame()
    made.loc[of(made, "bare", True) & (made.epoch == 30), "cross_entropy"] = 2.0
    made.loc[of(made, "bare", False) & (made.epoch < 70), "cross_entropy"] = 2.0
    found = states(made, "A4")
    assert found["Bare+AL2, least"] == "fails" and found["Bare, end"] == "holds"


def test_a5_takes_what_the_accuracies_differ_by_whichever_is_better():
    made = frame(gain=GAIN | {"dropout": -5.0})
    own = of(made, "dropout", True)
    made.loc[own, "ablation_auc"] = 1.5 * (BEST["dropout"] + made.seed[own]) + 3
    assert states(made, "A5")["area − absolute accuracy, DO at 300"] == "fails"


def test_a2_and_a10_stand_beside_the_paper_s_differences():
    accuracies = tables.published("al2_table1").query("metric == 'test_accuracy'")
    bare = accuracies[(accuracies.baseline == "bare") & accuracies.al2]
    plain = accuracies[(accuracies.baseline == "dropout") & ~accuracies.al2]
    beside = cells(frame(), "A10").printed["DO − Bare+AL2, best"]
    assert beside == pytest.approx(plain.value.max() - bare.value.max())
    assert cells(frame(), "A2").printed["DO − Bare"] == pytest.approx(55.39 - 25.84)


def test_a5_asks_for_more_area_than_the_accuracies_differ_by():
    made = frame()
    dropout = of(made, "dropout", True) & made.epoch.isin([30, 40])
    assert states(made, "A5")["area − absolute accuracy, DO at 300"] == "holds"
    made.loc[dropout, "ablation_auc"] -= 20
    found = states(made, "A5")
    assert {found[f"area − absolute accuracy, DO at {e}"] for e in (300, 400)} == {"fails"}
    assert found["area, DO"] == "holds"


def test_a10_looks_at_the_best_epoch_and_shows_early_stopping_beside():
    made = frame(gain=dict.fromkeys(GAIN, -3.0))
    made["validation_accuracy"] = -made.epoch
    made.loc[of(made, "bare", True) & (made.epoch == 20), "test_accuracy"] += 90
    found = states(made, "A10")
    assert found["DO − Bare+AL2, best"] == "fails" and found["DO − WD+AL2, best"] == "holds"
    assert found["DO − Bare+AL2, stopped early"] == "shown"


def test_a3_says_nothing_of_features_that_are_dead():
    made = frame()
    made.loc[of(made, "dropout", False), ["activation_l2", "test_accuracy"]] = [0.0, 10.0]
    found = states(made, "A3")
    assert [found[f"log10 {k}/DO"] for k in ("BN", "Bare", "WD")] == ["nothing"] * 3
    assert found["log10 Bare/WD"] == "holds"


@pytest.mark.parametrize("claim", ALL_CLAIMS)
def test_where_nothing_is_stored_every_claim_says_so(claim):
    frames = {}
    for experiment in claims.CLAIMS[claim].experiments:
        frames |= evidence.to_judge(experiment)
    judged = claims.judge(frames, evidence.PROFILES, only=[claim])
    assert len(judged) and judged.verdict.str.startswith("not run: ").all()


def test_what_is_stated_and_not_finished_is_not_run():
    made = frame()
    none = unfinished(made, made.seed >= 0)
    assert verdict("A1", none) == "not run: no seed is finished"
    part = unfinished(made, of(made, "bare", True))
    assert verdict("A1", part) == "holds in part" and states(part, "A1")["Bare"] == "not run"
    less = unfinished(made, made.seed > 0)
    assert verdict("A1", less) == "indicative: 4 of 4 cells as claimed, one seed"
    assert judge(made, profiles=["other"], only=["A1"]).empty  # a profile that states none of it


def test_screening_seeds_and_penalties_of_one_s_own_are_not_judged():
    worse = dict.fromkeys(GAIN, -9.0)
    mine = frame(gain=worse).assign(penalties="mine(weight=1)")
    assert verdict("A1", together(frame(), frame(seeds=[100], gain=worse), mine)) == "holds"


# ---- early stopping, which A10 rests on


def alone(baseline, **columns):
    made = frame(seeds=[0])
    return made[of(made, baseline, False)].assign(**columns)


def test_early_stopping_takes_the_best_epoch_on_noisy_labels():
    noisy = {"validation_accuracy": [5.0, 9.0, 8.0, 9.0, 3.0, 2.0, 1.0]}
    made = alone("bare", test_accuracy=[10.0, 60.0, 80.0, 70.0, 40.0, 30.0, 20.0], **noisy)
    (row,) = tables.stopping(made).itertuples()
    assert (row.final, row.best, row.best_epoch) == (20.0, 80.0, 30)
    assert (row.stopped, row.stopped_epoch) == (60.0, 20)
    assert tables.stopping(made.drop(columns="validation_accuracy")).stopped.isna().all()


def test_a_training_longer_than_the_paper_s_is_read_at_its_last_epoch():
    """Dropout goes on to epoch 750 for Figure 1; the others end at 700."""
    epochs = {"epoch": [100, 300, 500, 600, 699, 700, 750], "diverged": 760.0}
    made = alone("dropout", test_accuracy=[10.0, 60.0, 80.0, 70.0, 40.0, 30.0, 99.0], **epochs)
    (row,) = tables.stopping(made).itertuples()
    assert (row.final, row.best, row.best_epoch, row.diverged) == (30.0, 80.0, 500, False)


@pytest.mark.parametrize("at", [1, 35])
def test_a_diverged_run_has_no_final_accuracy(at):
    made = frame(seeds=[0, 1], gain=dict.fromkeys(GAIN, -10.0))
    made = stop(made, of(made, "dropout", True, 0), at)
    table = tables.stopping(made).set_index(["baseline", "al2", "seed"])
    lost = table.loc["dropout", True, 0]
    assert len(table) == 16 and list(table.index[table.diverged]) == [("dropout", True, 0)]
    assert np.isnan(lost.final)
    assert lost[["best", "best_epoch"]].isna().all() if at == 1 else lost.best == 45.0


def test_early_stopping_is_of_each_run_though_several_share_baseline_and_seed():
    made = study(shares=[1.0])
    found = tables.stopping(made)
    assert list(found.id) == list(made.id.unique()) and (found.best_epoch == 1).all()


# ---- A6: |difference by AL2| against |difference by seed|, in points of mean CCA


def curves(by_al2=0.1, by_seed=0.02, seeds=(0, 1, 2), accuracy=50.0, **settings):
    """Mean CCA with the start falling over 20 epochs; AL2 and another seed shift it by so much, by
    AL2 to either side.
    """
    parts = []
    for run in representations("mnist", seeds=seeds, epochs=20, **settings):
        shift = by_seed * run.seed + run.al2 * by_al2
        course = {"mean_cca init": lambda e, s=shift: 0.7 - 0.01 * e + s * (-1) ** e}
        parts.append(stored(run, classes=10, test_accuracy=accuracy, **course))
    return together(*parts)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        ({}, "holds"),
        ({"by_al2": 0.03}, "does not hold"),  # seeds 0 and 2 are .04 apart
        ({"by_al2": 0.0401}, "holds"),
        ({"accuracy": 20.0}, "nothing"),
        ({"seeds": [0]}, "not run: a second seed is the control, and it is not finished"),
        ({"corruption": 0.5}, "not run: top level 50 %"),
    ],
)
def test_al2_changes_the_course_if_it_does_so_by_more_than_another_seed(made, wanted):
    assert verdict("A6", curves(**made)) == wanted


def test_a6_has_no_margin():
    made = curves(by_al2=0.0, by_seed=0.0)
    for seed, shift in ((1, 0.01), (2, 0.005)):
        made.loc[made.al2 & (made.seed == seed), "mean_cca init"] += shift
    assert verdict("A6", made) == "undecided"  # the interval lies within ± 2 points


def test_a6_s_control_is_of_all_finished_seeds_of_a_network():
    made = curves(by_al2=0.03, dropouts=[0.5])  # seeds 0 and 2 without AL2 are .04 apart
    assert verdict("A6", unfinished(made, (made.seed == 2) & made.al2)) == "does not hold"


def test_a6_counts_the_network_with_dropout_and_shows_the_other():
    found = cells(curves(), "A6")
    names = ["AL2 − another seed", "AL2 − another seed, without dropout"]
    assert found.state.to_dict() == dict(zip(names, ["holds", "shown"], strict=True))
    assert found["mean"].iloc[0] == pytest.approx(10 - 4)


# ---- A7: other series


def study(gains=None, seeds=(0, 1, 2), shares=(0.1, 0.3, 1, 3), diverged=(), **settings):
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


def test_totals_are_multiples_of_the_paper_s_series_whatever_the_kind():
    made = study()
    found = made.drop_duplicates("id").set_index("id").assign(total=tables.totals(made))
    assert found.total[~found.al2].isna().all()
    for _, own in found[found.al2].groupby(["schedule", "seed"]):
        assert list(own.total) == [0.1, 0.3, 1.0, 3.0]


@pytest.mark.parametrize(
    ("kinds", "known"),
    [("al2", False), ("al2 constant", False), ("al2 linear", True), ("geometric", True)],
)
def test_without_a_geometric_or_linear_series_no_multiple_is_known(kinds, known):
    """Of the schedules al2 alone, of which some are finished, none can be told to be that of ×1."""
    made = study(shares=(0.1, 1.0, 3.0), seeds=[0])
    found = tables.totals(made[~made.al2 | made.schedule.isin(kinds.split())])
    expected = [0.1, 1.0, 3.0] if known else [np.nan] * 3
    assert list(found) == pytest.approx(expected * len(kinds.split()), nan_ok=True)


def test_a7_says_what_is_missing_where_no_multiple_is_known():
    made = study()
    made = made[made.schedule.isin(["al2", "constant"]) | ~made.al2]
    assert verdict("A7", made).startswith("not run: which Σλ is al2's own")


def test_a_claim_of_which_only_numbers_beside_its_cells_are_stated_says_so():
    assert verdict("A6", curves(dropouts=[0.0])) == "not run: none of its cells is stated"


OTHERS = {(kind, total): -9.0 for kind in ("linear", "constant") for total in (0.3, 1.0, 3.0)}
LOST = {("al2", 0.3): 5.0, ("geometric", 0.3): 19.0, ("geometric", 1.0): 5.0}


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        ({"gains": {("geometric", 3.0): 20.5}}, "holds"),
        # it is not about linear and constant series, nor about a tenth of the weight
        ({"gains": OTHERS | {("al2", 0.1): 0.0, ("geometric", 0.1): 0.0}}, "holds"),
        ({"gains": LOST}, "does not hold"),  # three of five
        ({"gains": {("al2", 0.3): 5.0}}, "holds in part"),
        ({"gains": {("geometric", 1.0): -9.0}}, "holds in part"),  # dead: it says nothing
        ({"gains": LOST, "seeds": [0]}, "indicative: 2 of 5 cells as claimed, one seed"),
    ],
)
def test_a7_holds_where_the_exponential_series_keep_half_of_the_gain(made, wanted):
    assert verdict("A7", study(**made)) == wanted


def test_a7_shows_the_other_series_and_reads_the_bare_network_alone():
    found = states(study(), "A7")
    assert sum(state == "shown" for state in found.values()) == 11
    every = {(kind, s): -5.0 for kind in SCHEDULES for s in (0.1, 0.3, 1.0, 3.0)}
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


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        ({}, "holds"),
        ({"finals": FINALS | {"al2": 26.5}}, "holds"),  # above the noisy labels; bare's are beside
        ({"finals": FINALS | {"al2": 24.0}}, "does not hold"),
        ({"diverged": {("al2", 0)}}, "nothing"),
        ({"seeds": [0]}, "indicative: 1 of 1 cells as claimed, one seed"),
    ],
)
def test_a9_compares_with_training_on_the_noisy_labels(made, wanted):
    assert verdict("A9", relabelled(**made)) == wanted


def test_a9_shows_the_control_and_the_true_labels_beside():
    found = cells(relabelled(), "A9")
    shown = found[found.state == "shown"]["mean"].round(6).to_dict()
    assert shown == {"its own labels": 1.0, "true labels": 74.0, "with AL2": 43.0}


def test_a9_of_a_teacher_that_diverged_says_nothing_though_its_student_cannot_be_trained():
    whole, made = relabelled(), relabelled(diverged={("teacher", 0)})
    student = whole[(whole.seed == 0) & whole.relabelled_by.notna() & ~whole.id.isin(made.id)]
    assert student.id.nunique() == 1
    made = together(made, unfinished(student, student.seed == 0))
    (found,) = cells(made, "A9").query("state != 'shown'").to_dict("records")
    assert (found["state"], found["n"]) == ("nothing", 3)


def test_a9_a_student_at_chance_is_dead_though_it_knows_its_labels_by_heart():
    made = relabelled(finals=FINALS | {"al2": 10.0})
    made.loc[made.relabelled_by.notna(), "cross_entropy"] = 0.0
    assert verdict("A9", made) == "nothing"


# ---- of every rule


@pytest.mark.parametrize(("claim", "make"), [("A6", curves), ("A7", study), ("A9", relabelled)])
def test_screening_and_a_reader_s_penalties_are_judged_by_no_claim_of_other_networks(claim, make):
    assert verdict(claim, make()) == "holds"
    for none in (make(seeds=(100, 101)), make().assign(penalties="mine(weight=1)")):
        assert judge(none, only=[claim]).empty
        assert verdict(claim, together(make(), none)) == "holds"


def of_one_total(made):
    return made[made.schedule.eq("al2") & made.al2].assign(speed=lambda rows: rows.speed * 1.0001)


@pytest.mark.parametrize(
    ("claim", "make", "other", "field"),
    [
        *((claim, frame, {"n_train": 500}, "n_train") for claim in ("A2", "A8", "A10")),
        ("A6", curves, {"speed": 3.0}, "speed"),
        ("A6", curves, {"n_train": 500}, "n_train"),
        ("A6", curves, {"epochs": 40}, "epochs"),
        ("A7", study, {"n_train": 500}, "n_train"),
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
    cell = {"A6": "AL2 − another seed.*", "A7": "mnist, .*"}.get(claim, "")
    with pytest.raises(ValueError, match=f"{cell}differ in {field}:"):
        judge(together(made, more.assign(id=more.id + "x")), only=[claim])
