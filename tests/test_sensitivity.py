"""What options of the protocol change: table, figure, report; and that their runs are judged by no
claim. From made frames.
"""

import numpy as np
import pandas as pd
import pytest
from made import stored
from test_report import assembled

from lib.study import claims, report, tables
from lib.study.experiments import label_randomization, sensitivity
from lib.study.figures import sensitivity as figures_sensitivity
from lib.study.tables import sensitivity as opt

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("figure_style")]
PLAIN = {"bare": 27.0, "batchnorm": 28.0, "dropout": 37.0}
AL2 = {"bare": 51.0, "batchnorm": 40.0, "dropout": 11.0}
SMALL = {"epochs": 80, "speed": 6.15, "n_train": 300}
NOTEBOOKS = ("10_al2_label_randomization 15_al2_options", "15_al2_options")
TRIED = {
    "bare": ["default", "exact law", "epochs × 2"],
    "batchnorm": ["default", "γ ~ U(0, 1)", "Σλ × 0.1", "Σλ × 0.3"],
    "dropout": ["default", "exact law", "Σλ × 0.1", "Σλ × 0.3", "epochs × 2"],
}


def is_weaker(run):
    return run.baseline == "dropout" and run.al2 and run.epochs == 80 and run.speed < 6.15


def study(
    seeds=(0, 1), dataset="mnist", corruption=0.75, rules=(), lost=(), profile="made", **settings
):
    """A tidy frame of the study; `rules`: (which runs, what their accuracy gains); `lost`: which
    diverge in epoch 3.
    """
    stated = {"totals": [0.1, 0.3], "longer": 2, "corruption": corruption} | SMALL | settings
    runs = sensitivity(dataset, seeds=seeds, **stated)
    parts = []
    default = {
        run.id for run in label_randomization(dataset, seeds=seeds, corruption=corruption, **SMALL)
    }
    for run in runs:
        value = (
            (AL2 if run.al2 else PLAIN)[run.baseline]
            + run.seed
            + sum(by for which, by in rules if which(run))
        )
        measured = {"cross_entropy": 2.0, "activation_l2": 0.1, "ablation_auc": 20.0}
        measured["test_accuracy"] = lambda e, v=value, n=run.epochs: np.where(e == n, v, 90.0)
        part = stored(
            run,
            profile=profile,
            diverged=3 if any(which(run) for which in lost) else None,
            **measured,
        )
        parts.append(part.assign(num_classes=10, notebooks=NOTEBOOKS[run.id not in default]))
    return pd.concat(parts, ignore_index=True)


def cell(table, baseline, option):
    (row,) = table[(table.baseline == baseline) & (table.option == option)].to_dict("records")
    return row


# ---- which option


def test_each_run_is_told_by_the_one_option_that_is_changed():
    rows = opt.labelled(study())
    found = rows.drop_duplicates(["baseline", "option"]).groupby("baseline").option.agg(set)
    assert found.to_dict() == {name: set(names) for name, names in TRIED.items()}
    weaker = rows[rows.option.str.startswith("Σλ")]
    assert set(weaker.against) == {"default"} and weaker.al2.all()
    others = rows[~rows.option.str.startswith("Σλ")]
    assert (others.against == others.option).all()
    assert (rows.read == np.where(rows.option == "epochs × 2", 160, 80)).all()


def test_the_study_s_rows_are_those_that_notebook_15_states():
    made = study()
    assert opt.labelled(made.assign(notebooks="10_al2_label_randomization")).empty
    assert len(opt.labelled(made.drop(columns="notebooks"))) == len(made)
    assert opt.table(pd.DataFrame()).empty and opt.gains(pd.DataFrame()).empty


def test_dropout_that_goes_on_for_figure_1_is_the_default_read_where_the_others_end():
    made = study(seeds=[0], longer=None, totals=[0.3], dropout_epochs=90)
    pairs = opt.gains(made).set_index(["baseline", "option"])
    assert made.epochs.max() == 90
    default = pairs.loc[("dropout", "default")]
    # of epoch 80, where the made curve is not at its end
    assert (default.without, default.with_al2) == (90.0, 90.0)
    assert pairs.loc[("dropout", "exact law")].gain == AL2["dropout"] - PLAIN["dropout"]


def test_dropout_of_750_epochs_is_read_at_the_paper_s_700_though_nothing_else_is_finished():
    made = study(
        seeds=[0], longer=None, totals=[], epochs=700, dropout_epochs=750, baselines=["dropout"]
    )
    made = made[made.epochs == 750]
    assert set(opt.labelled(made).read) == {700}


def test_without_the_default_series_a_run_with_al2_cannot_be_told():
    made = study(baselines=["batchnorm", "dropout"], longer=None)
    # half-way through a campaign
    made = made[(made.corruption_law == "bernoulli") & (made.bn_gamma == "ones")]
    assert not opt.labelled(made).al2.any() and opt.table(made).empty


# ---- table


def test_a_row_an_option_and_baseline_with_gain_published_gain_change_and_share():
    table = opt.table(study(rules=[(is_weaker, 40.0)]))
    assert table.groupby("baseline", sort=False).option.agg(list).to_dict() == TRIED
    default, weaker = (cell(table, "dropout", option) for option in ("default", "Σλ × 0.3"))
    assert (default["without"], default["with_al2"], default["gain"], default["n"]) == (
        37.5,
        11.5,
        -26.0,
        2,
    )
    assert default["without_sd"] == pytest.approx(0.5**0.5) and default["gain_sd"] == 0
    assert default["gain_published"] == pytest.approx(91.70 - 55.39)
    assert np.isnan(default["change"]) and pd.isna(default["beyond_seeds"])
    assert (weaker["without"], weaker["with_al2"], weaker["gain"], weaker["change"]) == (
        37.5,
        51.5,
        14.0,
        40.0,
    )
    assert (
        weaker["closed"] == pytest.approx(100 * 40 / (91.70 - 55.39 + 26))
        and weaker["beyond_seeds"] == "more"
    )


def test_a_gain_is_reckoned_from_the_same_option_where_it_changes_the_baseline():
    table = opt.table(
        study(rules=[(lambda run: run.corruption_law == "exact" and not run.al2, -5.0)])
    )
    assert cell(table, "bare", "exact law")["without"] == 22.5
    assert (
        cell(table, "bare", "exact law")["change"]
        == cell(table, "dropout", "exact law")["change"]
        == 5.0
    )
    assert cell(table, "batchnorm", "γ ~ U(0, 1)")["change"] == 0.0


@pytest.mark.parametrize(
    ("by_seed", "said"),
    [
        ([5.0, 5.0], "more"),
        ([5.0, 0.5], "no"),
        ([-5.0, -2.0], "less"),
        ([5.0, -5.0], "no"),
        ([5.0], "one seed"),
    ],
)
def test_whether_a_change_is_beyond_the_seeds_is_the_rule_of_a_cell_in_either_direction(
    by_seed, said
):
    rules = [
        (lambda run, s=s: is_weaker(run) and run.seed == s, by) for s, by in enumerate(by_seed)
    ]
    table = opt.table(study(seeds=range(len(by_seed)), rules=rules))
    assert cell(table, "dropout", "Σλ × 0.1")["beyond_seeds"] == said


def test_the_paper_s_gain_stands_beside_its_own_data_set_and_level_alone():
    for other in (study(dataset="fashion_mnist"), study(corruption=0.5)):
        table = opt.table(other)
        assert (
            table.gain_published.isna().all()
            and table.closed.isna().all()
            and table.change.notna().any()
        )


def test_no_gap_is_closed_where_the_default_gains_as_much_as_the_paper():
    table = opt.table(study(rules=[(lambda run: run.baseline == "bare" and run.al2, 40.0)]))
    assert (
        np.isnan(cell(table, "bare", "exact law")["closed"])
        and cell(table, "batchnorm", "Σλ × 0.1")["closed"] == 0
    )


def test_networks_at_no_more_than_twice_chance_are_named():
    rules = [
        (is_weaker, 40.0),
        (lambda run: run.epochs == 160 and run.baseline == "dropout" and not run.al2, -20.0),
    ]
    table = opt.table(study(rules=rules))
    dead = table[table.baseline == "dropout"].set_index("option").dead
    assert dead.to_dict() == dict.fromkeys(TRIED["dropout"], "") | {
        "default": "with AL2",
        "exact law": "with AL2",
        "epochs × 2": "both",
    }
    assert (table.dead[table.baseline != "dropout"] == "").all()


def test_a_diverged_run_is_named_in_words_and_closes_nothing():
    table = opt.table(study(lost=[lambda run: is_weaker(run) and run.seed == 1]))
    row = cell(table, "dropout", "Σλ × 0.3")
    assert row["with_al2"] == row["gain"] == row["change"] == row["beyond_seeds"] == "diverged"
    assert row["without"] == 37.5 and np.isnan(row["closed"])
    assert "37.5 ± 0.7 → diverged" in opt.shown(table)["accuracy (%)"].tolist()
    table = opt.table(
        study(
            lost=[
                lambda run: (
                    run.baseline == "bare"
                    and run.epochs == 80
                    and run.corruption_law == "bernoulli"
                )
            ]
        )
    )
    # the default is not there to compare with
    assert cell(table, "bare", "exact law")["change"] == "diverged"


def test_pairs_that_are_not_finished_are_left_out_and_changes_are_of_the_seeds_that_both_have():
    made = study(seeds=[0, 1, 2])
    made = made[~((made.corruption_law == "exact") & ~made.al2 & (made.seed == 2))]
    row = cell(opt.table(made), "bare", "exact law")
    assert row["n"] == 2 and row["change"] == 0.0
    lacking = made[
        ~(
            (made.baseline == "dropout")
            & (made.corruption_law == "bernoulli")
            & ~made.al2
            & (made.epochs == 80)
        )
    ]
    assert (
        cell(opt.table(lacking), "dropout", "exact law")["beyond_seeds"]
        == "not run: no seed of the default"
    )


def test_runs_of_one_cell_that_differ_in_more_than_the_seed_are_refused():
    with pytest.raises(ValueError, match="differ in learning_rate"):
        opt.table(
            pd.concat([study(seeds=[0]), study(seeds=[1], learning_rate=0.5)], ignore_index=True)
        )


def test_the_table_for_reading_has_words_and_signs():
    shown = opt.shown(opt.table(study(rules=[(is_weaker, 40.0)]))).set_index(["network", "option"])
    row = shown.loc[("DO", "Σλ × 0.3")]
    assert row.tolist() == [
        2,
        "37.5 ± 0.7 → 51.5 ± 0.7",
        "+14.0 ± 0.0",
        "+36.3",
        "+40.0",
        "64",
        "more",
        "–",
    ]
    assert shown.loc[("DO", "default")].tolist()[4:] == ["–", "–", "–", "with AL2"]


# ---- figure


def test_a_panel_a_baseline_with_a_bar_an_option_a_dot_a_seed_and_both_lines():
    fig = figures_sensitivity.gains(opt.gains(study(rules=[(is_weaker, 40.0)])))
    assert [ax.get_title() for ax in fig.axes] == ["Bare", "BN", "DO"]
    ax = fig.axes[2]
    assert [bar.get_height() for bar in ax.patches] == [-26.0, -26.0, 14.0, 14.0, -26.0]
    assert [text.get_text().replace("\n", " ") for text in ax.get_xticklabels()] == TRIED["dropout"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) == 5 * 2
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [True] * 4 + [False] * 4 + [
        True
    ] * 2  # dead: hollow
    lines = {
        line.get_linestyle(): line.get_ydata()[0]
        for line in ax.lines
        if line.get_marker() == "None"
    }
    assert lines["--"] == -26.0 and lines[":"] == pytest.approx(36.31)
    fig.canvas.draw()


def test_a_figure_without_printed_numbers_has_no_published_line_and_a_diverged_pair_is_a_cross():
    made = study(dataset="digits", lost=[lambda run: is_weaker(run) and run.seed == 1])
    fig = figures_sensitivity.gains(opt.gains(made))
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert "published gain" not in labels and "diverged" in labels
    assert not [line for ax in fig.axes for line in ax.lines if line.get_linestyle() == ":"]
    assert (
        len(
            [
                line
                for line in fig.axes[2].lines
                if line.get_marker() == "x" and len(line.get_xdata())
            ]
        )
        == 2
    )
    assert len(fig.axes[2].patches) == 3  # a mean without a diverged seed would be another one


def test_a_figure_of_two_levels_or_of_none_is_refused():
    two = pd.concat([study(), study(corruption=0.5)], ignore_index=True)
    for pairs in (opt.gains(two), opt.gains(pd.DataFrame())):
        with pytest.raises(ValueError, match="one profile and dataset and corruption"):
            figures_sensitivity.gains(pairs)


def test_a_course_a_line_an_option_of_networks_with_al2_the_default_black():
    fig = figures_sensitivity.curves(study())
    for ax, (baseline, options_of) in zip(fig.axes, TRIED.items(), strict=True):
        lines = [line for line in ax.lines if len(line.get_xdata()) > 2]
        assert [line.get_label() for line in lines] == options_of
        assert [line.get_color() == "0.15" for line in lines] == [
            name == "default" for name in options_of
        ]
        assert all(
            line.get_xdata()[-1] == 100 and line.get_ydata()[-1] == AL2[baseline] + 0.5
            for line in lines
        )
        assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in lines}) == len(
            lines
        )
    fig.canvas.draw()


def test_the_series_of_dropout_by_option_and_their_figure():
    weights = opt.weights_by_option(study(), "dropout")
    assert list(weights) == ["default", "Σλ × 0.1", "Σλ × 0.3", "epochs × 2"]
    assert [len(w) for w in weights.values()] == [80, 80, 80, 160]
    sums = [w.sum() / weights["default"].sum() for w in weights.values()]
    assert sums[:3] == pytest.approx([1, 0.1, 0.3], rel=0.02) and weights["epochs × 2"][
        -1
    ] == pytest.approx(weights["default"][-1])
    (ax,) = figures_sensitivity.series(study()).axes
    assert [line.get_linestyle() for line in ax.lines] == ["-", "-", "-", "--"]
    assert [text.get_text() for text in ax.texts] == list(weights) and ax.get_xlim() == (0, 200)


@pytest.mark.parametrize("draw", [figures_sensitivity.curves, figures_sensitivity.series])
def test_courses_and_series_of_two_levels_or_of_none_are_refused(draw):
    for frame in (pd.concat([study(), study(corruption=0.5)], ignore_index=True), pd.DataFrame()):
        with pytest.raises(ValueError, match="one profile and dataset and corruption"):
            draw(frame)


# ---- the answer


def said(**changes):
    return opt.answer(opt.table(study(**changes)))


def test_an_option_that_makes_up_half_of_the_gap_in_all_seeds_and_is_alive_closes_it():
    bare, norm, dropout, higher = said(rules=[(is_weaker, 40.0)])
    assert bare.startswith("Bare: ") and norm.startswith(
        "BN: closed at least by half by: none of the options tried"
    )
    assert dropout == "DO: closed at least by half by: Σλ × 0.1, Σλ × 0.3"
    assert higher == "Higher accuracy with AL2 than by default: DO Σλ × 0.1, DO Σλ × 0.3"
    assert said(rules=[(is_weaker, 4.0)])[2].endswith("none of the options tried")  # less than half
    one = said(seeds=[0], rules=[(is_weaker, 40.0)])
    assert (
        one[2].endswith("none of the options tried (one seed: nothing can be beyond its spread)")
        and one[3] == higher
    )


def test_an_answer_without_printed_numbers_or_of_diverged_runs_says_so():
    assert (
        said(dataset="digits")[0] == "Bare: the paper prints no number for this data set and level"
    )
    lost = said(lost=[is_weaker], rules=[(is_weaker, 40.0)])
    assert lost[2].endswith("none of the options tried") and lost[3].endswith(": none")


# ---- report and claims


def test_the_report_has_table_and_figure_where_an_option_was_tried():
    made = study()
    assert report._tables(made)["al2_options"].option.nunique() == 6
    drawn = report.drawings(assembled(made))
    assert "al2_options-made-mnist" in drawn and len(drawn["al2_options-made-mnist"]().axes) == 3
    default = made[made.notebooks == NOTEBOOKS[0]]
    for other in (default, made.assign(notebooks="11_al2_ablation"), pd.DataFrame()):
        assert "al2_options" not in report._tables(other)
        assert not [
            name for name in report.drawings(assembled(other)) if name.startswith("al2_options")
        ]
    assert not report._option_drawings(assembled(study(corruption=0.5)))  # no claim of A1


def test_the_page_of_claim_a1_lists_them(tmp_path):
    made = study()
    found = assembled(made)
    found.tables["al2_options"] = opt.table(made)
    report.write(found, tmp_path)
    page = (tmp_path / "claims" / "A1.md").read_text()
    assert "../tables/al2_options.csv" in page and "../figures/al2_options-made-mnist.png" in page
    written = pd.read_csv(tmp_path / "tables" / "al2_options.csv")
    assert (
        len(written) == sum(map(len, TRIED.values()))
        and written.columns.tolist() == opt.table(made).columns.tolist()
    )


def test_runs_of_options_enter_no_table_and_no_claim():
    """Not the law and γ alone, which have columns of their own, but also weaker series and longer
    trainings.
    """
    made = study(rules=[(is_weaker, 40.0)])
    default = made[made.notebooks == NOTEBOOKS[0]].reset_index(drop=True)
    assert set(tables.label_randomization_runs(made).id) == set(default.id)
    for name in tables.AL2_TABLES:
        pd.testing.assert_frame_equal(
            tables.beside_published(name, made), tables.beside_published(name, default)
        )
    pd.testing.assert_frame_equal(claims.judge(made, ["made"]), claims.judge(default, ["made"]))
    assert report.headline(assembled(made)) == report.headline(assembled(default))


@pytest.mark.parametrize("which", ["weaker", "longer"])
def test_without_word_of_their_notebooks_they_are_refused_rather_than_averaged(which):
    made = study(longer=2 if which == "longer" else None, totals=[0.3] if which == "weaker" else [])
    with pytest.raises(ValueError, match=r"differ in .*a table averages over seeds alone"):
        tables.beside_published("al2_table1", made.drop(columns="notebooks"))
