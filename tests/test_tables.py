import numpy as np
import pandas as pd
import pytest
from made import cell, pair, paper, stored

from lib import run_dir, store
from lib.run import Run
from lib.study import tables
from lib.study.experiments import VARIANTS, label_randomization, penalty_readings, sparsity_networks

KEYS = ["dataset", "corruption", "baseline", "regulariser", "epoch", "metric"]
POINTS = range(100, 701, 100)


def tidy(
    run: Run, value=50.0, profile: str = "quick", diverged: int | None = None, **columns
) -> pd.DataFrame:
    """A stored run as `store.load` gives it, `value` being its test accuracy (a number, or a
    function of the epoch).
    """
    epochs = np.arange(1, (run.epochs if diverged is None else diverged - 1) + 1)
    fields = {"profile": profile, **run.described()}
    fields |= {
        "num_classes": 10,
        "precision": "float32",
        "diverged": np.nan if diverged is None else float(diverged),
    }
    described = pd.DataFrame([fields] * max(len(epochs), 1))
    accuracy = [float(value(e)) if callable(value) else value for e in epochs]
    rows = {
        "epoch": epochs,
        "test_accuracy": accuracy,
        "cross_entropy": 2.0,
        "activation_l2": 0.5,
        "ablation_auc": 60.0,
    } | columns
    return pd.concat([described, pd.DataFrame(rows)], axis=1)


def frame(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


def eight(
    dataset: str = "mnist",
    profile: str = "quick",
    epochs: int = 7,
    seeds=(0,),
    value=50.0,
    **settings,
) -> pd.DataFrame:
    return frame(
        *(
            tidy(run, value, profile)
            for run in label_randomization(dataset, seeds=seeds, epochs=epochs, **settings)
        )
    )


def test_the_made_frames_have_the_columns_that_the_store_gives(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    run = Run("digits", epochs=2)
    made = tidy(run)
    stored = ["epoch", "test_accuracy", "cross_entropy", "activation_l2", "ablation_auc"]
    run_dir.finish(
        tmp_path / "quick" / "digits" / run.name,
        run,
        made[stored],
        {},
        {"num_classes": 10, "precision": "float32"},
    )
    pd.testing.assert_frame_equal(store.load([run]), made, check_dtype=False)


# ---- the papers' numbers


def test_an_unknown_published_table_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"'al2_table9'.*al2_table1, al2_table2, sparsity_table1_widths"
    ):
        tables.published("al2_table9")


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
    assert sorted(table.epoch.unique()) == list(POINTS)
    assert set(table.metric) == set(tables.AL2_TABLES[name])
    assert set(table.dataset) == {"mnist"} and set(table.corruption) == {0.75}


def test_table_1_has_the_numbers_that_the_claims_rest_on():
    table = tables.published("al2_table1")
    last = (
        table[(table.epoch == 700) & (table.metric == "test_accuracy")]
        .set_index(["baseline", "al2"])
        .value
    )
    claimed = {
        "bare": (25.84, 68.46),
        "batchnorm": (25.55, 81.16),
        "dropout": (55.39, 91.70),
        "weight_decay": (25.57, 86.98),
    }
    assert {b: (last[b, False], last[b, True]) for b in claimed} == claimed  # A1
    entropy = table[table.metric == "cross_entropy"]
    assert entropy[entropy.al2].value.min() == 2.07  # A4
    without = entropy[(entropy.epoch == 700) & ~entropy.al2].set_index("baseline").value
    assert without["dropout"] == 1.79 and (without.drop("dropout") <= 0.02).all()
    accuracy = table[table.metric == "test_accuracy"]
    assert accuracy.value.between(0, 100).all()
    assert accuracy[accuracy.al2].value.max() < accuracy[~accuracy.al2].value.max() == 96.47  # A10


def test_table_2_holds_areas_and_the_value_that_rules_out_corrupted_labels():
    table = tables.published("al2_table2")
    assert table.value.between(0, 100).all()
    assert (
        table[(table.baseline == "bare") & table.al2 & (table.epoch == 100)].value.item() == 77.81
    )


def test_the_sparsity_tables_are_complete():
    widths = tables.published("sparsity_table1_widths").set_index("size")
    assert widths.loc["xxl"].tolist() == [256, 256, 512, 512, 1024] and list(widths.index) == [
        "s",
        "m",
        "xxl",
    ]
    second, third = tables.published("sparsity_table2"), tables.published("sparsity_table3")
    keys = ["dataset", "size", "optimizer", "network"]
    # 6 networks × (3 sizes, Adam, 2 more data sets)
    assert len(second) == len(second[keys].drop_duplicates()) == 36
    assert len(third) == len(third[["dataset", "network", "regularized"]].drop_duplicates()) == 12
    assert second.best_accuracy.between(0.1, 1).all() and third.best_accuracy.between(0.1, 1).all()
    # S6
    assert (
        second[(second.network == "sr3Net") & (second["size"] == "s")].best_accuracy.item()
        == 0.3781
    )


# ---- reading at the papers' epochs


@pytest.mark.parametrize(
    ("published", "epochs", "expected"),
    [
        (100, 700, 100),
        (400, 750, 400),
        (700, 750, 700),
        (100, 80, 11),
        (400, 80, 46),
        (700, 80, 80),
        (100, 3, 1),
        (700, 1, 1),
    ],
)
def test_the_epoch_that_stands_for_one_of_the_papers(published, epochs, expected):
    assert tables.epoch_measured(published, epochs) == expected


def test_tables_are_read_where_runs_are_measured_whatever_their_length():
    for epochs in range(1, 801):
        assert {tables.epoch_measured(e, epochs) for e in POINTS} <= set(
            Run("mnist", epochs=epochs).table_epochs()
        )


def test_a_cell_is_the_mean_the_standard_deviation_and_the_number_of_seeds():
    values = [80.0, 90.0, 97.0]
    runs = [
        tidy(Run("mnist", epochs=80, seed=s), lambda e, v=v: v + e / 10)
        for s, v in enumerate(values)
    ]
    measured = tables.at_published_epochs(frame(*runs), ["test_accuracy"]).set_index("epoch")
    assert list(measured.index) == list(POINTS)
    assert measured.epoch_measured.tolist() == [11, 23, 34, 46, 57, 69, 80]
    for epoch, row in measured.iterrows():
        there = np.array(values) + row.epoch_measured / 10
        assert row.measured == pytest.approx(there.mean()), epoch
        assert row.sd == pytest.approx(there.std(ddof=1))
        assert row.n == 3


def test_one_seed_has_no_spread():
    measured = tables.at_published_epochs(tidy(Run("mnist", epochs=7)), ["test_accuracy"])
    assert measured.sd.isna().all() and set(measured.n) == {1}


def test_cells_are_data_set_level_baseline_regulariser_and_profile():
    parts = [
        tidy(Run("mnist", epochs=7)),
        tidy(Run("digits", epochs=7)),
        tidy(Run("mnist", epochs=7, corruption=0.5)),
    ]
    parts += [tidy(Run("mnist", epochs=7, dropout=0.5)), tidy(Run("mnist", epochs=7, al2=True))]
    parts += [tidy(Run("mnist", epochs=7), profile="lite")]
    measured = tables.at_published_epochs(frame(*parts), ["test_accuracy"], [700])
    assert len(measured) == 6 and set(measured.n) == {1}


def test_a_longer_training_is_read_at_the_papers_own_epochs():
    measured = tables.at_published_epochs(
        tidy(Run("mnist", epochs=750), lambda e: e / 10), ["test_accuracy"]
    )
    assert measured.epoch_measured.tolist() == list(POINTS)
    assert measured.measured.tolist() == pytest.approx([e / 10 for e in POINTS])


def test_a_longer_training_is_read_as_far_as_the_shortest_beside_it():
    """Or dropout, which may go on for Figure 1, would be compared at another epoch than in the
    claims.
    """
    runs = frame(
        tidy(Run("mnist", epochs=7)), tidy(Run("mnist", epochs=9, dropout=0.5), lambda e: e)
    )
    # of another level
    other = tidy(Run("mnist", epochs=9, dropout=0.5, corruption=0.5), lambda e: e)
    measured = tables.at_published_epochs(frame(runs, other), ["test_accuracy"]).set_index(
        ["corruption", "baseline"]
    )
    assert measured.measured[0.75, "dropout"].tolist() == list(range(1, 8))
    assert measured.epoch_measured[0.5, "dropout"].tolist() == [1, 3, 4, 5, 6, 8, 9]
    assert (tables.epochs_read(runs), tables.epochs_read(tidy(Run("mnist", epochs=750)))) == (
        7,
        700,
    )


def test_a_diverged_run_is_text_from_the_epoch_on_at_which_it_diverged():
    runs = frame(
        tidy(Run("mnist", epochs=7), 90.0), tidy(Run("mnist", epochs=7, seed=1), 80.0, diverged=4)
    )
    measured = tables.at_published_epochs(runs, ["test_accuracy"])
    assert measured.measured.tolist() == [85.0] * 3 + ["diverged"] * 4
    assert measured.sd.notna().tolist() == [True] * 3 + [False] * 4
    assert set(measured.n) == {2}


def test_a_run_that_diverged_in_its_first_epoch_is_text_everywhere():
    measured = tables.at_published_epochs(
        tidy(Run("mnist", epochs=7), diverged=1), ["test_accuracy"]
    )
    assert measured.measured.tolist() == ["diverged"] * 7


def test_a_metric_that_was_not_measured_is_empty_with_no_runs():
    measured = tables.at_published_epochs(
        tidy(Run("mnist", epochs=7)), ["validation_accuracy"], [700]
    )
    assert measured.measured.isna().all() and measured.n.tolist() == [0]


def test_trainings_of_different_lengths_do_not_share_a_cell():
    with pytest.raises(ValueError, match="epochs"):
        tables.at_published_epochs(
            frame(tidy(Run("mnist", epochs=7)), tidy(Run("mnist", epochs=8, seed=1))),
            ["test_accuracy"],
        )


@pytest.mark.parametrize(
    "other",
    [{"speed": 2, "al2": True}, {"learning_rate": 0.1}, {"n_train": 100}, {"batch_size": 32}],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(other):
    al2 = other.get("al2", False)
    runs = frame(tidy(Run("mnist", epochs=7, al2=al2)), tidy(Run("mnist", epochs=7, **other)))
    with pytest.raises(ValueError, match=next(iter(other))):
        tables.at_published_epochs(runs, ["test_accuracy"])


def test_no_runs_give_no_rows_but_the_columns():
    measured = tables.at_published_epochs(pd.DataFrame(), ["test_accuracy"])
    assert measured.empty and {"measured", "sd", "n", "epoch_measured"} <= set(measured.columns)


def test_tables_1_and_2_leave_out_other_schedules_laws_and_networks():
    paper = [tidy(Run("mnist", epochs=7)), tidy(Run("mnist", epochs=7, al2=True))]
    others = [
        dict(al2=True, schedule="geometric"),
        dict(corruption_law="exact"),
        dict(batch_norm=True, dropout=0.5),
    ]
    others += [dict(batch_norm=True, bn_gamma="uniform")]
    kept = tables.label_randomization_runs(
        frame(*paper, *(tidy(Run("mnist", epochs=7, **o)) for o in others))
    )
    assert set(kept.id) == {part.id.iloc[0] for part in paper}
    assert tables.label_randomization_runs(pd.DataFrame()).empty


# ---- beside the published


@pytest.mark.parametrize("name", ["al2_table1", "al2_table2"])
def test_every_published_row_stands_once_beside_what_was_measured(name):
    table = tables.beside_published(name, eight(seeds=(0, 1)))
    paper = tables.published(name)
    assert list(table.columns[:6]) == KEYS
    merged = paper.merge(table, on=KEYS, validate="one_to_one")
    assert len(merged) == len(table) == len(paper)
    assert (merged.value == merged.published).all()
    assert (
        merged.measured.notna().all() and set(merged.n) == {2} and set(merged.profile) == {"quick"}
    )
    assert (merged.epoch_measured == merged.epoch / 100).all()
    assert set(merged.dataset_measured) == {"mnist"}


def test_measured_values_stand_in_their_own_rows():
    runs = label_randomization("mnist", epochs=7)
    parts = [tidy(run, lambda e, k=k: 10 * k + e) for k, run in enumerate(runs)]
    table = tables.beside_published("al2_table1", frame(*parts))
    table = table[table.metric == "test_accuracy"].set_index(["baseline", "regulariser", "epoch"])
    for k, run in enumerate(runs):
        for epoch in POINTS:
            assert table.measured[run.baseline, run.regulariser, epoch] == 10 * k + epoch / 100


def test_published_rows_without_any_run_have_measured_empty():
    table = tables.beside_published("al2_table1", pd.DataFrame())
    assert len(table) == 168
    assert table.measured.isna().all() and table.published.notna().all()
    assert table.dataset_measured.isna().all() and table.profile.isna().all()


def test_published_rows_that_only_some_networks_answer_stay():
    table = tables.beside_published("al2_table1", tidy(Run("mnist", epochs=7)))
    assert len(table) == 168
    answered = table[table.measured.notna()]
    assert (
        set(zip(answered.baseline, answered.regulariser, strict=True)) == {("bare", "")}
        and len(answered) == 21
    )


def test_published_rows_stay_where_runs_lack_their_metric():
    frame_without = eight().drop(columns="ablation_auc")
    table = tables.beside_published("al2_table2", frame_without)
    assert len(table) == 56
    assert table.measured.isna().all() and table.published.notna().all()


@pytest.mark.parametrize("stand_in", [{"dataset": "fashion_mnist"}, {"corruption": 0.5}])
def test_a_stand_in_never_fills_another_set_s_row(stand_in):
    table = tables.beside_published("al2_table1", eight(**stand_in))
    assert len(table) == 2 * 168
    paper = table[table.published.notna()]
    own = table[table.published.isna()]
    assert len(paper) == 168 and paper.measured.isna().all() and paper.dataset_measured.isna().all()
    assert set(paper.dataset) == {"mnist"} and set(paper.corruption) == {0.75}
    assert own.measured.notna().all()
    assert set(own.dataset) == set(own.dataset_measured) == {stand_in.get("dataset", "mnist")}
    assert set(own.corruption) == {stand_in.get("corruption", 0.75)}


def test_two_profiles_give_a_row_each():
    runs = frame(
        eight(profile="lite", epochs=80, value=70.0), eight(profile="paper", epochs=700, value=90.0)
    )
    table = tables.beside_published("al2_table1", runs)
    assert len(table) == 2 * 168
    assert (table.groupby(KEYS).profile.apply(set) == {"lite", "paper"}).all()
    assert table.published.notna().all()
    accuracy = table[table.metric == "test_accuracy"]
    assert set(accuracy[accuracy.profile == "lite"].measured) == {70.0}
    assert set(accuracy[accuracy.profile == "paper"].measured) == {90.0}


def test_diverged_stands_in_the_table_as_text():
    runs = frame(tidy(Run("mnist", epochs=7), diverged=4), tidy(Run("mnist", epochs=7, al2=True)))
    table = tables.beside_published("al2_table1", runs)
    bare = (
        table[
            (table.baseline == "bare")
            & table.regulariser.eq("")
            & (table.metric == "test_accuracy")
        ]
        .set_index("epoch")
        .measured
    )
    assert bare.tolist() == [50.0] * 3 + ["diverged"] * 4


def mixed(runs):
    """The runs, those of seed 1 in bfloat16."""
    return runs.assign(precision=np.where(runs.seed == 1, "bfloat16", "float32"))


def test_no_mixture_of_precisions_is_silent():
    one = eight(seeds=(1,))
    both = eight(seeds=(0, 1))
    for runs, said in (
        (mixed(one), "bfloat16"),
        (mixed(both), "bfloat16, float32"),
        (both.drop(columns="precision"), ""),
    ):
        assert set(tables.at_published_epochs(runs, ["test_accuracy"]).precision) == {said}
        assert set(tables.beside_published("al2_table1", runs).precision) == {said}
    made = mixed(frame(cell({"sr1Net": 30.0}, seeds=(0, 1)), cell({"sr2Net": 30.0}, seeds=[0])))
    table = tables.sparsity_beside_published("sparsity_table2", made).set_index("network")
    table = table[table.measured.notna()]
    assert table.precision.to_dict() == {"sr1Net": "bfloat16, float32", "sr2Net": "float32"}


# ---- as printed


def test_a_published_table_is_laid_out_as_in_the_paper():
    printed = tables.as_printed(tables.published("al2_table1"), "test_accuracy", 2)
    assert list(printed.index) == ["Bare", "BN", "DO", "WD"]
    assert list(printed.columns) == list(POINTS)
    assert printed.loc["Bare", 700] == "25.84 / 68.46" and printed.loc["DO", 700] == "55.39 / 91.70"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.01, 2, "0.01"), (0.0001, 4, "0.0001"), (0.1, 1, "0.1"), (0.0, 2, "0.00")],
)
def test_a_number_that_the_digits_can_show_is_shown_with_them(value, digits, text):
    rows = tables.published("al2_table1").assign(value=value)
    assert set(tables.as_printed(rows, "test_accuracy", digits).to_numpy().ravel()) == {
        f"{text} / {text}"
    }


def test_a_number_too_small_for_the_digits_is_not_printed_as_zero():
    rows = tables.published("al2_table1").assign(value=0.00123)
    assert set(tables.as_printed(rows, "test_accuracy", 2).to_numpy().ravel()) == {"1e-03 / 1e-03"}


def test_a_measured_table_shows_spread_divergence_and_what_was_not_run():
    parts = [tidy(Run("mnist", epochs=7, seed=s), v) for s, v in enumerate((80.0, 90.0))]
    parts += [
        tidy(Run("mnist", epochs=7, al2=True), 95.0),
        tidy(Run("mnist", epochs=7, batch_norm=True), diverged=2),
    ]
    measured = tables.at_published_epochs(frame(*parts), ["test_accuracy", "cross_entropy"])
    printed = tables.as_printed(measured, "test_accuracy")
    assert list(printed.columns) == list(POINTS)
    assert printed.loc["Bare", 700] == f"85.0 ± {np.std([80, 90], ddof=1):.1f} / 95.0"
    assert (
        printed.loc["BN", 100] == "50.0 / not run"
        and printed.loc["BN", 200] == "diverged / not run"
    )
    assert printed.loc["WD", 700] == "not run / not run"
    assert tables.as_printed(measured, "cross_entropy", 2).loc["Bare", 100] == "2.00 ± 0.00 / 2.00"


# ---- targeted sparsity: the runs


def test_the_runs_of_tables_2_and_3_are_called_as_printed():
    made = frame(
        cell(dict.fromkeys(VARIANTS, 30.0), size="m", seeds=[0]),
        pair("lenet", 20.0, 21.0),
        pair("alexnet", 30.0, 31.0),
    )
    runs = tables.sparsity_runs(made).drop_duplicates("id")
    assert list(runs.network[:6]) == list(VARIANTS) and set(runs.network[6:]) == {
        "LeNet",
        "AlexNet",
    }
    assert set(runs["size"][:6]) == {"m"} and set(runs["size"][6:]) == {""}
    assert runs.set_index("network").regularized.to_dict()["vanillaNet"] is False
    assert runs.groupby("network").regularized.mean().to_dict() == dict(
        AlexNet=0.5, LeNet=0.5, dropNet=0, normNet=0, sr1Net=1, sr2Net=1, sr3Net=1, vanillaNet=0
    )


@pytest.mark.parametrize(
    "other",
    [
        Run("mnist", epochs=3),
        Run("digits", network="convnet_s", corruption=0.5, epochs=3),
        Run("digits", network="convnet_s", corruption=0.0, al2=True, epochs=3),
        Run("digits", network="convnet_s", corruption=0.0, sparsity=("fc1",), epochs=3),
        Run("digits", network="convnet_s", corruption=0.0, batch_norm=True, dropout=0.2, epochs=3),
        Run("digits", network="lenet", corruption=0.0, decorrelation=("conv1",), epochs=3),
        Run("digits", network="convnet_s", corruption=0.0, seed=100, epochs=3),
    ],
    ids=lambda run: run.name,
)
def test_other_networks_labels_and_screening_seeds_are_in_neither_table(other):
    own = cell({"vanillaNet": 30.0})
    kept = tables.sparsity_runs(frame(own, stored(other, test_accuracy=99.0)))
    assert set(kept.id) == set(own.id)


def test_the_readings_tried_on_the_screening_seed_are_left_out():
    runs = penalty_readings(
        "digits", trained=["own/abs/sum"], chosen="own/square/sum", seeds=(0, 1), epochs=4
    )
    kept = tables.sparsity_runs(frame(*(stored(run, test_accuracy=1.0) for run in runs)))
    assert set(kept.seed) == {0, 1} and set(kept[kept.network == "sr3Net"].decorrelation_pairs) == {
        "square"
    }


def test_runs_at_another_strength_are_in_no_table():
    runs = penalty_readings("digits", chosen="own/abs/sum", seeds=[0], strengths=[8], epochs=4)
    kept = tables.sparsity_runs(frame(*(stored(run, test_accuracy=1.0) for run in runs)))
    assert set(kept.network) == {"vanillaNet", "sr1Net", "sr2Net", "sr3Net"} and set(
        kept.sparsity_weight
    ) == {0.001}


def test_the_readings_of_sparsityreg_stand_side_by_side():
    both = cell({"vanillaNet": 30.0, "sr1Net": 35.0}, sparsity_batches=["mean"])
    both = frame(both, cell({"sr1Net": 25.0}, sparsity_batches=["sum"]))
    runs = tables.sparsity_runs(both)
    assert tables.readings_in(runs) == ["mean", "sum"] and tables.readings_in(
        runs[~runs.regularized]
    ) == [""]
    assert set(tables.of_reading(runs, "sum").reading) == {"", "sum"}
    table = tables.sparsity_beside_published("sparsity_table2", both)
    cells = table[
        (table.dataset == "cifar100") & (table["size"] == "s") & (table.optimizer == "sgd")
    ]
    rows = cells.set_index(["network", "reading"])
    assert rows.measured["sr1Net", "mean"] == pytest.approx(0.3501) and rows.measured[
        "sr1Net", "sum"
    ] == pytest.approx(0.2501)
    assert (rows.loc["sr1Net"].published == 0.2663).all() and rows.measured[
        "vanillaNet", ""
    ] == pytest.approx(0.3001)


def test_no_runs_of_the_paper_give_empty_frames():
    for made in (pd.DataFrame(), tidy(Run("mnist", epochs=3))):
        runs = tables.sparsity_runs(made)
        assert runs.empty
        assert tables.best_accuracies(runs).empty and "best_epoch" in tables.best_accuracies(runs)


# ---- best accuracies


def curve(*values):
    return lambda epoch: np.array(values, dtype=float)[: len(epoch)]


def best_of(*parts):
    return tables.best_accuracies(tables.sparsity_runs(frame(*parts)))


def one(value, network="vanillaNet", diverged=None, seed=0, **settings) -> pd.DataFrame:
    (run,) = sparsity_networks("digits", networks=[network], seeds=[seed], **settings)
    return stored(run, test_accuracy=value, diverged=diverged)


def test_best_is_the_first_of_several_and_last_the_last_read():
    (row,) = best_of(one(curve(1, 7, 3, 7, 5), epochs=5)).itertuples()
    assert (row.best, row.best_epoch, row.last, row.epochs_read) == (7, 2, 5, 5)
    shuffled = one(curve(1, 7, 3, 7, 5), epochs=5).sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(
        tables.best_accuracies(tables.sparsity_runs(shuffled)),
        best_of(one(curve(1, 7, 3, 7, 5), epochs=5)),
    )


def test_a_table_reads_as_many_epochs_as_the_shortest_training_has():
    found = best_of(
        one(curve(1, 2, 3, 4, 9), epochs=5), one(curve(5, 4, 3), "sr2Net", epochs=3)
    ).set_index("network")
    assert found.epochs_read.to_dict() == {"vanillaNet": 3, "sr2Net": 3}
    assert found.loc["vanillaNet", ["best", "best_epoch", "last"]].tolist() == [3, 3, 3]
    assert found.loc["sr2Net", ["best", "best_epoch", "last"]].tolist() == [5, 1, 3]


def test_other_cells_are_read_as_far_as_their_own_shortest():
    parts = [one(curve(1, 2, 3), epochs=3), one(curve(1, 2, 3, 4, 5), epochs=5, optimizer="adam")]
    parts += [
        one(curve(1, 2, 3, 4), epochs=4, size="m"),
        one(curve(1, 2, 3, 4, 5, 6), epochs=6).assign(profile="other"),
    ]
    found = best_of(*parts)
    best = found.set_index(["size", "optimizer", "profile"]).best.to_dict()
    assert best == {
        ("s", "sgd", "made"): 3,
        ("s", "adam", "made"): 5,
        ("m", "sgd", "made"): 4,
        ("s", "sgd", "other"): 6,
    }


def test_no_table_reads_more_than_the_paper_s_100_epochs():
    (row,) = best_of(one(lambda epoch: epoch / 4, epochs=120)).itertuples()
    assert (row.epochs_read, row.best, row.best_epoch, row.last) == (100, 25.0, 100, 25.0)


def test_a_run_that_diverged_within_the_epochs_read_has_no_best():
    parts = [
        one(9.0, epochs=6, diverged=4),
        one(9.0, epochs=6, seed=1),
        one(9.0, epochs=6, seed=2, diverged=1),
    ]
    found = best_of(*parts).set_index("seed")
    assert found.best.isna().to_dict() == {0: True, 1: False, 2: True} and found[
        "last"
    ].isna().equals(found.best.isna())
    # diverged later
    assert (
        best_of(*parts, one(1.0, "sr1Net", epochs=3))
        .set_index(["network", "seed"])
        .best["vanillaNet", 0]
        == 9.0
    )


# ---- Tables 2 and 3 beside the published

SPARSITY_KEYS = {
    "sparsity_table2": tables.SPARSITY_CELL,
    "sparsity_table3": ["dataset", "network", "regularized"],
}


@pytest.mark.parametrize("name", SPARSITY_KEYS)
def test_the_paper_s_numbers_measured_stand_beside_the_paper_s_numbers(name):
    table = tables.sparsity_beside_published(name, paper(measured=False))
    assert (
        len(table) == len(tables.published(name)) == len(table.drop_duplicates(SPARSITY_KEYS[name]))
    )
    # seeds 0, 1, 2: 0.01 points each
    assert (table.measured.astype(float) - table.published).round(6).eq(1e-4).all()
    assert (
        table.sd.round(6).eq(1e-4).all()
        and set(table.n) == {3}
        and set(table.epoch_measured) == {20}
    )
    assert (table.measured_last == table.measured).all() and (
        table.dataset_measured == table.dataset
    ).all()


@pytest.mark.parametrize("name", SPARSITY_KEYS)
@pytest.mark.parametrize(
    "made", [pd.DataFrame(), tidy(Run("mnist", epochs=3))], ids=["no run", "another paper's"]
)
def test_the_published_rows_of_tables_2_and_3_stay_without_any_run(name, made):
    table = tables.sparsity_beside_published(name, made)
    assert len(table) == len(tables.published(name)) and table.published.notna().all()
    assert table.measured.isna().all() and table.profile.isna().all() and table.n.isna().all()


@pytest.mark.parametrize(
    ("name", "made", "twin"),
    [
        (
            "sparsity_table2",
            lambda name: cell({"sr1Net": 30.0}, dataset=name, size="xxl"),
            "cifar100",
        ),
        ("sparsity_table3", lambda name: pair("lenet", 30.0, 31.0, dataset=name), "cifar10"),
    ],
)
def test_a_set_that_the_paper_does_not_print_never_fills_the_row_of_one_that_it_does(
    name, made, twin
):
    table = tables.sparsity_beside_published(name, made("digits"))
    paper_rows = table[table.published.notna()]
    own = table[table.published.isna()]
    assert len(paper_rows) == len(tables.published(name)) and paper_rows.measured.isna().all()
    assert (
        set(own.dataset) == set(own.dataset_measured) == {"digits"} and own.measured.notna().all()
    )
    assert tables.sparsity_beside_published(name, made(twin)).measured.notna().sum() == len(own)


def test_another_size_or_optimizer_fills_no_row_of_table_2():
    table = tables.sparsity_beside_published(
        "sparsity_table2", cell({"sr1Net": 30.0}, dataset="cifar10", size="s")
    )
    assert table[table.measured.notna()].published.isna().all()
    table = tables.sparsity_beside_published(
        "sparsity_table2", pair("lenet", 20.0, 21.0, dataset="cifar10")
    )
    assert table.measured.isna().all()  # that is Table 3


def test_rows_stand_in_the_order_of_the_paper():
    rows = tables.sparsity_beside_published("sparsity_table2", pd.DataFrame())
    rows = rows[(rows.dataset == "cifar100") & (rows.optimizer == "sgd")]
    assert list(zip(rows["size"], rows.network, strict=True)) == [
        (size, n) for size in ("s", "m", "xxl") for n in VARIANTS
    ]


def test_each_profile_has_rows_of_its_own():
    made = frame(
        *(
            cell({"sr1Net": v}, dataset="cifar100", profile=p, seeds=s)
            for p, v, s in (("lite", 20, [0]), ("paper", 50, [0, 1]))
        )
    )
    table = tables.sparsity_beside_published("sparsity_table2", made)
    own = table[table.measured.notna()].set_index("profile")
    assert own.measured.to_dict() == {
        "lite": 0.2,
        "paper": pytest.approx(0.50005),
    } and own.n.to_dict() == {
        "lite": 1,
        "paper": 2,
    }
    assert own.sd.isna().to_dict() == {"lite": True, "paper": False}
    assert (own.published == 0.2663).all() and len(table) == 37


def test_a_diverged_run_of_table_2_is_text():
    table = tables.sparsity_beside_published(
        "sparsity_table2", cell({"sr1Net": 30.0}, dataset="cifar100", diverged={("sr1Net", 1): 4})
    )
    (row,) = table[table.measured.notna()].itertuples()
    assert (
        row.measured == "diverged"
        and np.isnan(row.sd)
        and row.n == 3
        and np.isnan(row.measured_last)
    )


@pytest.mark.parametrize(
    "other",
    [
        {"learning_rate": 0.5},
        {"n_train": 50},
        {"decorrelation_pairs": "square"},
        {"padding": "valid"},
        {"classes": 5},
    ],
)
def test_runs_of_one_cell_of_table_2_differ_in_seed_and_length_alone(other):
    first = cell({"sr3Net": 30.0}, seeds=[0])
    with pytest.raises(ValueError, match=f"sr3Net.*differ in {next(iter(other))}"):
        tables.sparsity_beside_published(
            "sparsity_table2", frame(first, cell({"sr3Net": 30.0}, seeds=[1], **other))
        )
    long = cell({"sr3Net": 30.0}, seeds=[1], epochs=30, test_images=50)
    assert tables.sparsity_beside_published("sparsity_table2", frame(first, long)).n.max() == 2


def test_which_layers_table_3_regularises_is_not_mixed():
    with pytest.raises(ValueError, match=r"LeNet.*differ in sparsity"):
        made = frame(
            pair("lenet", 20.0, 21.0, seeds=[0]),
            pair("lenet", 20.0, 21.0, seeds=[1], layers="targeted"),
        )
        tables.sparsity_beside_published("sparsity_table3", made)


def test_a_table_of_the_other_paper_is_refused():
    with pytest.raises(
        ValueError,
        match="'al2_table1' is no table of that paper; there are sparsity_table2, sparsity_table3",
    ):
        tables.sparsity_beside_published("al2_table1", pd.DataFrame())


@pytest.mark.parametrize(
    ("mean", "sd", "digits", "text"),
    [
        (27.44, 1.26, 1, "27.4 ± 1.3"),
        (27.44, float("nan"), 1, "27.4"),
        (0.5, 0.0, 3, "0.500 ± 0.000"),
        (7.6, 2.4, 0, "8 ± 2"),
    ],
)
def test_a_mean_is_printed_with_its_standard_deviation_where_there_is_one(mean, sd, digits, text):
    assert tables.mean_and_sd(mean, sd, digits) == text
    assert tables.mean_and_sd(*pd.Series([1.0]).agg(["mean", "std"])) == "1.0"


# ---- overfitting


def test_overfitting_is_said_of_each_run_over_all_its_epochs():
    # the smoothed curve's ends are flat
    step = {"sr2Net": {"loss": lambda epoch: 1 + 0.5 * (epoch > 20)}}
    made = frame(
        cell({"vanillaNet": 30.0, "sr1Net": 30.0}, seeds=(0, 1), diverged={("vanillaNet", 1): 5}),
        cell({"sr2Net": 30.0}, seeds=[0], epochs=40, over=step),
    )
    table = tables.overfitting(tables.sparsity_runs(made)).set_index(["network", "seed"])
    assert (
        table.moment["vanillaNet", 0] == 8
        and table.moment.drop(["vanillaNet", "sr2Net"]).isna().all()
    )
    assert table.rise["sr2Net", 0] == pytest.approx(50) and table.epochs["sr2Net", 0] == 40
    assert table.rise["sr1Net"].tolist() == [0, 0]
    diverged = table.loc[("vanillaNet", 1)]
    assert diverged[["moment", "rise"]].isna().all() and diverged.diverged == 5


def test_no_runs_overfit_nowhere():
    table = tables.overfitting(tables.sparsity_runs(pd.DataFrame()))
    assert table.empty and "rise" in table
