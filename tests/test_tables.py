"""Tables drawn from stored runs: the papers' numbers, read where they were and beside what was
measured; best accuracies and overfitting.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from made import cell, pair, paper, stored, together

from lib import store
from lib.run import Run
from lib.study import tables
from lib.study.experiments import VARIANTS, label_randomization, penalty_readings, sparsity_networks

KEYS = ["dataset", "corruption", "baseline", "regulariser", "epoch", "metric"]
POINTS = list(range(100, 701, 100))
SEVEN = partial(Run, "mnist", epochs=7)


def tidy(run: Run, value=50.0, profile="quick", diverged=None, **columns):
    """A stored run of the AL2 paper, `value` being its test accuracy."""
    measured = {"test_accuracy": value, "cross_entropy": 2.0, "activation_l2": 0.5}
    measured |= {"ablation_auc": 60.0} | columns
    return stored(run, profile=profile, diverged=diverged, classes=10, **measured)


def eight(dataset="mnist", profile="quick", value=50.0, **settings):
    runs = label_randomization(dataset, **{"epochs": 7} | settings)
    return together(*(tidy(run, value, profile) for run in runs))


def accuracies(runs, epochs=()):
    return tables.at_published_epochs(runs, ["test_accuracy"], epochs)


def answered(name, runs):
    """A table of the sparsity paper, the rows that runs answer alone."""
    table = tables.sparsity_beside_published(name, runs)
    return table[table.measured.notna()]


# ---- the papers' numbers


def test_an_unknown_published_table_is_refused_with_those_there_are():
    known = "al2_table1, al2_table2, sparsity_table1_widths"
    with pytest.raises(ValueError, match=rf"'al2_table9'.*{known}"):
        tables.published("al2_table9")
    with pytest.raises(ValueError, match="'al2_table1' is no table of that paper; there are spars"):
        tables.sparsity_beside_published("al2_table1", store.load([]))


@pytest.mark.parametrize(
    ("name", "rows"), [("al2_table1", 4 * 2 * 7 * 3), ("al2_table2", 4 * 2 * 7)]
)
def test_the_al2_tables_hold_each_cell_once(name, rows):
    table = tables.published(name)
    assert set(table.columns) == {*KEYS, "al2", "value"}
    assert (table.al2 == (table.regulariser == "al2")).all()
    assert len(table) == len(table[KEYS].drop_duplicates()) == rows
    assert table.value.notna().all() and (table.value >= 0).all()
    assert set(table.baseline) == set(tables.BASELINES)
    assert sorted(table.epoch.unique()) == POINTS
    assert set(table.metric) == set(tables.AL2_TABLES[name])
    assert set(table.dataset) == {"mnist"} and set(table.corruption) == {0.75}


def test_tables_1_and_2_have_the_numbers_that_the_claims_rest_on():
    table = tables.published("al2_table1").set_index(["metric", "epoch", "baseline", "al2"])
    table = table.value.sort_index()
    claimed = [25.84, 68.46, 25.55, 81.16, 55.39, 91.70, 25.57, 86.98]
    assert table["test_accuracy", 700].tolist() == claimed  # A1; without, with AL2
    assert table["cross_entropy"][:, :, True].min() == 2.07  # A4
    without = table["cross_entropy", 700][:, False]
    assert without["dropout"] == 1.79 and (without.drop("dropout") <= 0.02).all()
    accuracy = table["test_accuracy"]
    assert accuracy.between(0, 100).all()
    assert accuracy[:, :, True].max() < accuracy[:, :, False].max() == 96.47  # A10
    second = tables.published("al2_table2")
    assert second.value.between(0, 100).all()
    # the value that rules out that the areas are of corrupted labels
    one = (second.baseline == "bare") & second.al2 & (second.epoch == 100)
    assert second[one].value.tolist() == [77.81]


def test_the_sparsity_tables_are_complete():
    widths = tables.published("sparsity_table1_widths").set_index("size")
    assert list(widths.index) == ["s", "m", "xxl"]
    assert widths.loc["xxl"].tolist() == [256, 256, 512, 512, 1024]
    second, third = tables.published("sparsity_table2"), tables.published("sparsity_table3")
    # 6 networks × (3 sizes, Adam, 2 more data sets)
    keys = ["dataset", "size", "optimizer", "network"]
    assert len(second) == len(second[keys].drop_duplicates()) == 36
    assert len(third) == len(third[["dataset", "network", "regularized"]].drop_duplicates()) == 12
    assert second.best_accuracy.between(0.1, 1).all() and third.best_accuracy.between(0.1, 1).all()
    s6 = second[(second.network == "sr3Net") & (second["size"] == "s")]
    assert s6.best_accuracy.tolist() == [0.3781]


# ---- reading at the papers' epochs


def test_tables_are_read_where_runs_are_measured_whatever_their_length():
    for epochs in range(1, 801):
        read = [tables.epoch_measured(epoch, epochs) for epoch in POINTS]
        assert {*read} <= set(Run("mnist", epochs=epochs).table_epochs())
        if epochs in (1, 3, 700, 750):
            assert read == {1: [1] * 7, 3: [1, 1, 1, 2, 2, 3, 3]}.get(epochs, POINTS)


def test_a_cell_is_the_mean_the_standard_deviation_and_the_number_of_seeds():
    values = np.array([80.0, 90.0, 97.0])
    of = partial(Run, "mnist", epochs=80)
    runs = [tidy(of(seed=s), lambda e, v=v: v + e / 10) for s, v in enumerate(values)]
    found = accuracies(together(*runs))
    assert found.epoch.tolist() == POINTS
    assert found.epoch_measured.tolist() == [11, 23, 34, 46, 57, 69, 80]
    assert found.measured.tolist() == pytest.approx(values.mean() + found.epoch_measured / 10)
    assert found.sd.tolist() == pytest.approx([values.std(ddof=1)] * 7)
    assert set(found.n) == {3}
    alone = accuracies(runs[0])
    assert alone.sd.isna().all() and set(alone.n) == {1}


def test_cells_are_data_set_level_baseline_regulariser_and_profile():
    runs = [SEVEN(), Run("digits", epochs=7), SEVEN(corruption=0.5), SEVEN(dropout=0.5)]
    parts = [tidy(run) for run in [*runs, SEVEN(al2=True)]] + [tidy(SEVEN(), profile="lite")]
    found = accuracies(together(*parts), [700])
    assert len(found) == 6 and set(found.n) == {1}


def test_a_longer_training_is_read_as_far_as_the_paper_and_the_shortest_beside_it():
    """Dropout may go on for Figure 1."""
    long = tidy(Run("mnist", epochs=750), lambda e: e / 10)
    assert accuracies(long).epoch_measured.tolist() == POINTS
    assert accuracies(long).measured.tolist() == pytest.approx([e / 10 for e in POINTS])
    nine = partial(Run, "mnist", epochs=9, dropout=0.5)
    runs = together(tidy(SEVEN()), tidy(nine(), lambda e: e))
    other = tidy(nine(corruption=0.5), lambda e: e)  # another level is read for itself
    found = accuracies(together(runs, other)).set_index(["corruption", "baseline"])
    assert found.measured[0.75, "dropout"].tolist() == list(range(1, 8))
    assert found.epoch_measured[0.5, "dropout"].tolist() == [1, 3, 4, 5, 6, 8, 9]
    assert (tables.epochs_read(runs), tables.epochs_read(long)) == (7, 700)


@pytest.mark.parametrize("at", [1, 4])
def test_a_diverged_run_is_text_from_the_epoch_on_at_which_it_diverged(at):
    whole = [tidy(SEVEN(), 90.0), tidy(SEVEN(seed=1), 85.0)]
    runs = together(*whole, tidy(SEVEN(seed=2), 80.0, diverged=at))
    found = accuracies(runs)
    assert found.measured.tolist() == [85.0] * (at - 1) + ["diverged"] * (8 - at)
    assert found.sd.notna().tolist() == [True] * (at - 1) + [False] * (8 - at)
    assert set(found.n) == {3}
    table = tables.beside_published("al2_table1", runs).set_index(KEYS[2:]).sort_index()
    beside = table.loc["bare", ""].measured.unstack("metric").test_accuracy
    assert beside.tolist() == found.measured.tolist()


def test_a_metric_that_was_not_measured_and_no_runs_are_empty():
    (row,) = tables.at_published_epochs(tidy(SEVEN()), ["nothing"], [700]).itertuples()
    assert np.isnan(row.measured) and row.n == 0
    none = accuracies(store.load([]))
    assert none.empty and {"measured", "sd", "n", "epoch_measured"} <= set(none)


@pytest.mark.parametrize(
    "other", [{"epochs": 8, "seed": 1}, {"speed": 2, "al2": True}, {"n_train": 100}]
)
def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(other):
    runs = [SEVEN(al2=other.get("al2", False)), Run("mnist", **{"epochs": 7} | other)]
    with pytest.raises(ValueError, match=f"differ in {next(iter(other))}"):
        accuracies(together(*map(tidy, runs)))


# ---- beside the published


@pytest.mark.parametrize("name", ["al2_table1", "al2_table2"])
def test_every_published_row_stands_once_beside_what_was_measured(name):
    table = tables.beside_published(name, eight(seeds=(0, 1)))
    assert list(table.columns[:6]) == KEYS
    merged = tables.published(name).merge(table, on=KEYS, validate="one_to_one")
    assert len(merged) == len(table) == len(tables.published(name))
    assert (merged.value == merged.published).all() and merged.measured.notna().all()
    assert set(merged.n) == {2} and set(merged.profile) == {"quick"}
    assert (merged.epoch_measured == merged.epoch / 100).all()
    assert set(merged.dataset_measured) == {"mnist"}


def test_measured_values_stand_in_their_own_rows():
    runs = label_randomization("mnist", epochs=7)
    parts = [tidy(run, lambda e, k=k: 10 * k + e) for k, run in enumerate(runs)]
    table = tables.beside_published("al2_table1", together(*parts))
    table = table[table.metric == "test_accuracy"].set_index(["baseline", "regulariser", "epoch"])
    for k, run in enumerate(runs):
        own = table.measured[run.baseline, run.regulariser]
        assert own[POINTS].tolist() == [10 * k + e for e in range(1, 8)]


@pytest.mark.parametrize(
    ("name", "runs", "answered"),
    [
        ("al2_table1", store.load([]), set()),
        ("al2_table1", tidy(SEVEN()), {("bare", "")}),
        ("al2_table2", eight().drop(columns="ablation_auc"), set()),
    ],
    ids=["no run", "one network", "not measured"],
)
def test_published_rows_that_no_run_answers_stay_and_are_empty(name, runs, answered):
    table = tables.beside_published(name, runs)
    assert len(table) == len(tables.published(name)) and table.published.notna().all()
    there = table[table.measured.notna()]
    assert set(zip(there.baseline, there.regulariser, strict=True)) == answered
    assert len(there) == 21 * len(answered)
    rest = table[table.measured.isna()]
    assert rest.dataset_measured.isna().all() and rest.profile.isna().all()


@pytest.mark.parametrize("stand_in", [{"dataset": "fashion_mnist"}, {"corruption": 0.5}])
def test_a_stand_in_never_fills_another_set_s_row(stand_in):
    table = tables.beside_published("al2_table1", eight(**stand_in))
    printed, own = table[table.published.notna()], table[table.published.isna()]
    assert len(printed) == len(own) == 168
    assert printed[["measured", "dataset_measured"]].isna().all(axis=None)
    stated = {"dataset": "mnist", "corruption": 0.75} | stand_in
    assert own.measured.notna().all()
    assert set(own.dataset) == set(own.dataset_measured) == {stated["dataset"]}
    assert set(own.corruption) == {stated["corruption"]}


def test_two_profiles_give_a_row_each():
    lite = eight(profile="lite", epochs=14, value=70.0)
    table = tables.beside_published("al2_table1", together(lite, eight(profile="paper", value=90)))
    assert len(table) == 2 * 168 and table.published.notna().all()
    assert (table.groupby(KEYS).profile.apply(set) == {"lite", "paper"}).all()
    accuracy = table[table.metric == "test_accuracy"].groupby("profile").measured.agg(set)
    assert accuracy.to_dict() == {"lite": {70.0}, "paper": {90.0}}


def test_no_mixture_of_precisions_is_silent():
    def mixed(runs):
        return runs.assign(precision=np.where(runs.seed == 1, "bfloat16", "float32"))

    one, other = (tidy(SEVEN(seed=seed)) for seed in (0, 1))
    both = together(one, other)
    said_of = [(mixed(other), "bfloat16"), (mixed(both), "bfloat16, float32")]
    for runs, said in (*said_of, (both.drop(columns="precision"), "")):
        assert set(accuracies(runs).precision) == {said}
        assert set(tables.beside_published("al2_table1", runs).precision.dropna()) == {said}
    made = mixed(together(cell({"sr1Net": 30.0}, seeds=(0, 1)), cell({"sr2Net": 30.0}, seeds=[0])))
    found = answered("sparsity_table2", made).set_index("network").precision
    assert found.to_dict() == {"sr1Net": "bfloat16, float32", "sr2Net": "float32"}


# ---- as printed


def test_a_published_table_is_laid_out_as_in_the_paper():
    printed = tables.as_printed(tables.published("al2_table1"), "test_accuracy", 2)
    assert list(printed.index) == ["Bare", "BN", "DO", "WD"] and list(printed.columns) == POINTS
    assert printed.loc["Bare", 700] == "25.84 / 68.46" and printed.loc["DO", 700] == "55.39 / 91.70"


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(0.01, 2, "0.01"), (0.0, 2, "0.00"), (0.00123, 2, "1e-03")]
)
def test_only_zero_is_printed_as_zero(value, digits, text):
    rows = tables.published("al2_table1").assign(value=value)
    printed = tables.as_printed(rows, "test_accuracy", digits)
    assert set(printed.to_numpy().ravel()) == {f"{text} / {text}"}


def test_a_measured_table_shows_spread_divergence_and_what_was_not_run():
    parts = [tidy(SEVEN(seed=s), v) for s, v in enumerate((80.0, 90.0))]
    parts += [tidy(SEVEN(al2=True), 95.0), tidy(SEVEN(batch_norm=True), diverged=2)]
    found = tables.at_published_epochs(together(*parts), ["test_accuracy", "cross_entropy"])
    printed = tables.as_printed(found, "test_accuracy")
    assert printed.loc["Bare", 700] == f"85.0 ± {np.std([80, 90], ddof=1):.1f} / 95.0"
    assert printed.loc["BN", [100, 200]].tolist() == ["50.0 / not run", "diverged / not run"]
    assert printed.loc["WD", 700] == "not run / not run"
    assert tables.as_printed(found, "cross_entropy", 2).loc["Bare", 100] == "2.00 ± 0.00 / 2.00"


# ---- targeted sparsity: the runs


def test_the_runs_of_tables_2_and_3_are_called_as_printed():
    networks = cell(dict.fromkeys(VARIANTS, 30.0), size="m", seeds=[0])
    made = together(networks, pair("lenet", 20.0, 21.0), pair("alexnet", 30.0, 31.0))
    runs = tables.sparsity_runs(made).drop_duplicates("id")
    assert list(runs.network[:6]) == list(VARIANTS)
    assert set(runs.network[6:]) == {"LeNet", "AlexNet"}
    assert set(runs["size"][:6]) == {"m"} and set(runs["size"][6:]) == {""}
    regularized = runs.groupby("network").regularized.mean().to_dict()
    assert {regularized.pop(name) for name in ("AlexNet", "LeNet")} == {0.5}
    assert regularized == {name: name.startswith("sr") for name in VARIANTS}


CLEAN = partial(Run, "digits", network="convnet_s", corruption=0.0, epochs=3)


@pytest.mark.parametrize(
    "other",
    [
        Run("mnist", epochs=3),
        CLEAN(corruption=0.5),
        CLEAN(al2=True),
        CLEAN(sparsity=("fc1",)),
        CLEAN(batch_norm=True, dropout=0.2),
        CLEAN(network="lenet", decorrelation=("conv1",)),
        CLEAN(seed=100),
    ],
    ids=lambda run: run.name,
)
def test_other_networks_labels_and_screening_seeds_are_in_neither_table(other):
    own = cell({"vanillaNet": 30.0})
    kept = tables.sparsity_runs(together(own, stored(other, test_accuracy=99.0)))
    assert set(kept.id) == set(own.id)


READING_TRIED = {"trained": ["own/abs/sum"], "chosen": "own/square/sum"}
STRENGTH_TRIED = {"chosen": "own/abs/sum", "strengths": [8]}


@pytest.mark.parametrize(
    ("tried", "field", "stated"),
    [
        (READING_TRIED, "decorrelation_pairs", ["signed"] * 3 + ["square"]),
        (STRENGTH_TRIED, "sparsity_weight", [0.001] * 4),
    ],
    ids=["readings tried on the screening seed", "another strength"],
)
def test_what_was_tried_with_the_penalties_is_in_no_table(tried, field, stated):
    runs = penalty_readings("digits", seeds=(0, 1), epochs=4, **tried)
    kept = tables.sparsity_runs(together(*(stored(run, test_accuracy=1.0) for run in runs)))
    assert set(kept.seed) == {0, 1} and len(runs) > kept.id.nunique()
    names = ("vanillaNet", "sr1Net", "sr2Net", "sr3Net")
    assert set(zip(kept.network, kept[field], strict=True)) == set(zip(names, stated, strict=True))


def test_the_readings_of_sparsityreg_stand_side_by_side():
    mean = cell({"vanillaNet": 30.0, "sr1Net": 35.0}, sparsity_batches=["mean"])
    both = together(mean, cell({"sr1Net": 25.0}, sparsity_batches=["sum"]))
    runs = tables.sparsity_runs(both)
    assert tables.readings_in(runs) == ["mean", "sum"]
    assert tables.readings_in(runs[~runs.regularized]) == [""]
    assert set(tables.of_reading(runs, "sum").reading) == {"", "sum"}
    rows = answered("sparsity_table2", both).set_index(["network", "reading"])
    expected = {("sr1Net", "mean"): 0.3501, ("sr1Net", "sum"): 0.2501, ("vanillaNet", ""): 0.3001}
    assert rows.measured.to_dict() == pytest.approx(expected)
    assert (rows.loc["sr1Net"].published == 0.2663).all()


NOBODY_S = {"no run": store.load([]), "another paper's": tidy(Run("mnist", epochs=3))}


@pytest.mark.parametrize("made", NOBODY_S.values(), ids=NOBODY_S)
def test_without_runs_of_the_paper_its_rows_stay_and_all_else_is_empty(made):
    runs = tables.sparsity_runs(made)
    best, overfit = tables.best_accuracies(runs), tables.overfitting(runs)
    assert runs.empty and best.empty and overfit.empty
    assert "best_epoch" in best and "rise" in overfit
    for name in tables.SPARSITY_TABLES:
        table = tables.sparsity_beside_published(name, made)
        assert len(table) == len(tables.published(name)) and table.published.notna().all()
        assert table[["measured", "profile", "n"]].isna().all(axis=None)


# ---- best accuracies


def curve(*values):
    return lambda epoch: np.array(values, dtype=float)[: len(epoch)]


def best_of(*parts):
    return tables.best_accuracies(tables.sparsity_runs(together(*parts)))


def one(value, network="vanillaNet", diverged=None, seed=0, **settings):
    (run,) = sparsity_networks("digits", networks=[network], seeds=[seed], **settings)
    return stored(run, test_accuracy=value, diverged=diverged)


@pytest.mark.parametrize(
    ("value", "epochs", "expected"),
    [
        (curve(1, 7, 3, 7, 5), 5, (7, 2, 5, 5)),
        # no table reads more than the paper's 100 epochs
        (lambda epoch: epoch / 4, 120, (25, 100, 25, 100)),
    ],
)
def test_best_is_the_first_of_several_and_last_the_last_read(value, epochs, expected):
    run = one(value, epochs=epochs)
    for made in (run, run.sample(frac=1, random_state=1)):
        (row,) = best_of(made).itertuples()
        assert (row.best, row.best_epoch, row.last, row.epochs_read) == expected


def test_a_table_reads_as_many_epochs_as_the_shortest_training_of_its_cell():
    parts = [
        one(curve(1, 2, 3, 4, 9), epochs=5),
        one(curve(5, 4, 3), "sr2Net", epochs=3),
        # cells of their own
        one(curve(1, 2, 3, 4, 5), epochs=5, optimizer="adam"),
        one(curve(1, 2, 3, 4), epochs=4, size="m"),
        one(curve(1, 2, 3, 4, 5, 6), epochs=6).assign(profile="other"),
    ]
    found = best_of(*parts)
    columns = ["epochs_read", "best", "best_epoch", "last"]
    assert found[columns].to_numpy(int).tolist() == [
        [3, 3, 3, 3],
        [3, 5, 1, 3],
        [5, 5, 5, 5],
        [4, 4, 4, 4],
        [6, 6, 6, 6],
    ]


def test_a_run_that_diverged_within_the_epochs_read_has_no_best():
    ended = {0: 4, 1: None, 2: 1}
    parts = [one(9.0, epochs=6, seed=seed, diverged=at) for seed, at in ended.items()]
    found = best_of(*parts).set_index("seed")
    assert found.best.isna().to_dict() == {0: True, 1: False, 2: True}
    assert found["last"].isna().equals(found.best.isna())
    # of three epochs read, it diverged later
    short = best_of(*parts, one(1.0, "sr1Net", epochs=3)).set_index(["network", "seed"])
    assert short.best["vanillaNet", 0] == 9.0


# ---- Tables 2 and 3 beside the published


@pytest.mark.parametrize("name", tables.SPARSITY_TABLES)
def test_the_paper_s_numbers_measured_stand_beside_the_paper_s_numbers(name):
    table = tables.sparsity_beside_published(name, paper(measured=False))
    rows = len(tables.published(name))
    assert len(table) == len(table.drop_duplicates(tables.SPARSITY_TABLES[name])) == rows
    # seeds 0, 1, 2: 0.01 points each
    assert (table.measured.astype(float) - table.published).round(6).eq(1e-4).all()
    assert table.sd.round(6).eq(1e-4).all()
    assert set(table.n) == {3} and set(table.epoch_measured) == {20}
    assert (table.measured_last == table.measured).all()
    assert (table.dataset_measured == table.dataset).all()


@pytest.mark.parametrize(
    ("name", "made", "twin"),
    [
        ("sparsity_table2", partial(cell, {"sr1Net": 30.0}, size="xxl"), "cifar100"),
        ("sparsity_table3", partial(pair, "lenet", 30.0, 31.0), "cifar10"),
    ],
)
def test_a_set_that_the_paper_does_not_print_never_fills_the_row_of_one_that_it_does(
    name, made, twin
):
    table = tables.sparsity_beside_published(name, made(dataset="digits"))
    printed, own = table[table.published.notna()], table[table.published.isna()]
    assert len(printed) == len(tables.published(name)) and printed.measured.isna().all()
    assert set(own.dataset) == set(own.dataset_measured) == {"digits"}
    assert own.measured.notna().all()
    beside = tables.sparsity_beside_published(name, made(dataset=twin))
    assert beside.measured.notna().sum() == len(own)


def test_another_size_fills_no_row_of_table_2_nor_do_runs_of_table_3():
    own = answered("sparsity_table2", cell({"sr1Net": 30.0}, dataset="cifar10", size="s"))
    assert len(own) and own.published.isna().all()
    assert answered("sparsity_table2", pair("lenet", 20.0, 21.0, dataset="cifar10")).empty


def test_rows_stand_in_the_order_of_the_paper():
    rows = tables.sparsity_beside_published("sparsity_table2", store.load([]))
    rows = rows[(rows.dataset == "cifar100") & (rows.optimizer == "sgd")]
    order = [(size, name) for size in ("s", "m", "xxl") for name in VARIANTS]
    assert list(zip(rows["size"], rows.network, strict=True)) == order


def test_each_profile_has_rows_of_its_own():
    lite = cell({"sr1Net": 20}, profile="lite", seeds=[0])
    made = together(lite, cell({"sr1Net": 50}, profile="paper", seeds=[0, 1]))
    own = answered("sparsity_table2", made).set_index("profile")
    assert own.measured.to_dict() == pytest.approx({"lite": 0.2, "paper": 0.50005})
    assert own.n.to_dict() == {"lite": 1, "paper": 2}
    assert own.sd.isna().to_dict() == {"lite": True, "paper": False}
    assert (own.published == 0.2663).all()
    assert len(tables.sparsity_beside_published("sparsity_table2", made)) == 37


def test_a_diverged_run_of_table_2_is_text():
    made = cell({"sr1Net": 30.0}, diverged={("sr1Net", 1): 4})
    (row,) = answered("sparsity_table2", made).itertuples()
    assert (row.measured, row.n) == ("diverged", 3)
    assert np.isnan(row.sd) and np.isnan(row.measured_last)


SR3 = partial(cell, {"sr3Net": 30.0})
LENET = partial(pair, "lenet", 20.0, 21.0)


@pytest.mark.parametrize(
    ("made", "other", "field"),
    [
        (SR3, {"learning_rate": 0.5}, "learning_rate"),
        (SR3, {"decorrelation_pairs": "square"}, "decorrelation_pairs"),
        (SR3, {"classes": 5}, "classes"),
        (LENET, {"layers": "targeted"}, "sparsity"),
    ],
)
def test_runs_of_one_cell_that_differ_in_more_are_refused(made, other, field):
    name = "sparsity_table2" if made is SR3 else "sparsity_table3"
    with pytest.raises(ValueError, match=f"(sr3Net|LeNet).*differ in {field}:"):
        tables.sparsity_beside_published(name, together(made(seeds=[0]), made(seeds=[1], **other)))


def test_runs_of_one_cell_may_differ_in_length_and_measures():
    both = together(SR3(seeds=[0]), SR3(seeds=[1], epochs=30, test_images=50))
    assert answered("sparsity_table2", both).n.tolist() == [2]


def test_a_mean_is_printed_with_its_standard_deviation_where_there_is_one():
    assert tables.mean_and_sd(27.44, 1.26) == "27.4 ± 1.3"
    assert tables.mean_and_sd(27.44, np.nan) == "27.4"
    assert tables.mean_and_sd(0.5, 0.0, 3) == "0.500 ± 0.000"


# ---- overfitting


def test_overfitting_is_said_of_each_run_over_all_its_epochs():
    # the smoothed curve's ends are flat
    step = {"sr2Net": {"loss": lambda epoch: 1 + 0.5 * (epoch > 20)}}
    ended = {("vanillaNet", 1): 5}
    made = together(
        cell({"vanillaNet": 30.0, "sr1Net": 30.0}, seeds=(0, 1), diverged=ended),
        cell({"sr2Net": 30.0}, seeds=[0], epochs=40, over=step),
    )
    table = tables.overfitting(tables.sparsity_runs(made)).set_index(["network", "seed"])
    assert table.moment["vanillaNet", 0] == 8
    assert table.moment.drop(["vanillaNet", "sr2Net"]).isna().all()
    assert table.rise["sr2Net", 0] == pytest.approx(50) and table.epochs["sr2Net", 0] == 40
    assert table.rise["sr1Net"].tolist() == [0, 0]
    diverged = table.loc[("vanillaNet", 1)]
    assert diverged[["moment", "rise"]].isna().all() and diverged.diverged == 5


def test_halves_are_rounded_up_from_the_printed_digits():
    values = (56.15, 100 * 0.5615, 25.25, -0.25, 0.0, np.nan)
    assert [tables.half_up(v) for v in values] == ["56.2", "56.2", "25.3", "-0.3", "0.0", "nan"]
    assert tables.half_up(2.0619, 2) == "2.06"


def test_alive_is_judged_by_held_out_noisy_labels():
    """Of 5,000 labels at 75 %, the half-width near chance is 5 points; nothing of the test set."""
    run = Run("mnist", al2=True, n_validation=5000, seed=100, epochs=2)
    made = [
        stored(replace(run, seed=100 + k), classes=10, validation_accuracy=q, test_accuracy=99.0)
        for k, q in enumerate((10.0, 20.0, 12.0, 13.0))
    ]
    found = tables.alive(together(*made))
    # q = a(1 − p) + (1 − a) p / 9
    assert found.estimate.tolist() == pytest.approx([10.0, 70.0, 22.0, 28.0])
    assert found.estimate[0] - found.lower[0] == pytest.approx(4.99, abs=0.01)
    assert found.alive.tolist() == [False, True, False, True]
    lost = stored(run, classes=10, diverged=2, validation_accuracy=25.0, test_accuracy=99.0)
    assert tables.alive(lost).alive.tolist() == [False]


def test_ratios_of_the_paper_s_own_training():
    paper = Run("mnist", al2=True, weight_decay=5e-4)
    half = replace(paper, epochs=350, speed=2)
    found = tables.ratios({"paper": paper, "half": half}, images=60000, units=800)
    assert found.paper["steps"] == 938 * 700
    assert found.paper["λ in the last epoch"] == pytest.approx(2933.2, abs=0.1)
    assert found.paper["end stiffness, η'λ/U"] == pytest.approx(0.00733, abs=1e-5)
    assert found.paper["whole pull, Σ η'λ/U over steps"] == pytest.approx(694, abs=1)
    assert found.paper["weight decay's e-folds, wd·η'·steps"] == pytest.approx(0.657, abs=1e-3)
    assert found.half["time, η'·steps"] == pytest.approx(found.paper["time, η'·steps"] / 2)
    assert found.half["late growth of ln λ per time"] == pytest.approx(
        2 * found.paper["late growth of ln λ per time"]
    )
