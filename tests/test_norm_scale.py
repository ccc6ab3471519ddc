"""Batch norm's first scale: its runs, its table beside the paper's, figure and report. From made
frames.
"""

import warnings

import numpy as np
import pandas as pd
import pytest
from made import stored
from test_report import assembled

from lib.study import report, tables
from lib.study.experiments import label_randomization, norm_scales, sensitivity
from lib.study.figures import sensitivity as figures_sensitivity
from lib.study.tables import norm_scale

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("figure_style")]
NUMBERS = {"test_accuracy": 60.0, "cross_entropy": 2.0, "activation_l2": 0.5, "ablation_auc": 30.0}


def study(seeds=(0, 1), profile="made", uniform=NUMBERS, lost=(), **settings):
    """A tidy frame of the study at the paper's length; a seed adds 1 to the accuracy."""
    runs = norm_scales("mnist", seeds=seeds, **{"epochs": 700, "corruption": 0.75} | settings)
    parts = []
    for run in runs:
        values = NUMBERS if run.bn_gamma == "ones" else uniform
        values = values | {"test_accuracy": values["test_accuracy"] + run.seed}
        diverged = 50 if (run.bn_gamma, run.al2) in lost else None
        part = stored(run, profile=profile, diverged=diverged, **values).assign(num_classes=10)
        parts.append(part.assign(notebooks="10_al2_label_randomization 16_al2_norm_scale"))
    return pd.concat(parts, ignore_index=True)


def test_runs_with_scale_1_are_those_of_the_eight_networks_and_the_others_those_of_the_options():
    shared = {"seeds": (0, 1), "epochs": 80, "speed": 6.15, "corruption": 0.75}
    runs = norm_scales("mnist", **shared)
    eight, tried = (
        {r.id for r in study("mnist", **shared)} for study in (label_randomization, sensitivity)
    )
    assert [r.id in eight for r in runs] == [r.bn_gamma == "ones" for r in runs] and {
        r.id for r in runs
    } <= tried
    assert len(runs) == 8 and all(r.batch_norm for r in runs)


def test_the_table_has_a_row_a_network_scale_metric_and_epoch_of_the_paper():
    table = norm_scale.table(study())
    assert len(table) == 2 * 2 * 4 * 7 and (table.epoch_measured == table.epoch).all()
    accuracy = table[table.metric == "test_accuracy"]
    assert (
        set(accuracy.measured) == {60.5}
        and set(accuracy.n) == {2}
        and accuracy.sd.to_numpy() == pytest.approx(np.sqrt(0.5))
    )


def test_published_are_the_numbers_printed_for_batch_norm():
    table = (
        norm_scale.table(study())
        .drop_duplicates(["al2", "metric", "epoch"])
        .set_index(["al2", "metric", "epoch"])
        .published
    )
    # AL2, Table 1
    assert (
        table[False, "test_accuracy", 100] == 74.72 and table[True, "test_accuracy", 700] == 81.16
    )
    # Tables 1 and 2
    assert table[False, "activation_l2", 100] == 0.84 and table[True, "ablation_auc", 100] == 77.01
    assert norm_scale.table(study(corruption=0.5)).published.isna().all()


def test_trainings_of_other_lengths_stand_for_the_papers_by_their_share():
    table = norm_scale.table(study(epochs=80))
    assert set(table.epoch) == set(range(100, 701, 100)) and table.epoch_measured.max() == 80
    assert table[table.epoch == 100].epoch_measured.unique().tolist() == [11]


def test_nearer_counts_numbers_that_both_scales_and_the_paper_have():
    printed = {
        "test_accuracy": 74.0,
        "cross_entropy": 2.07,
        "activation_l2": 0.8,
        "ablation_auc": 35.0,
    }
    table = norm_scale.table(study(seeds=[0], uniform=printed))
    without = 4  # all of the network without AL2: nearer to 74.72, 2.07, 0.84 and 35.1
    # with AL2 (95.47, 2.22, 0.0024, 77.0): accuracy, cross-entropy and area, but not L_r, of which
    # 0.5 is the nearer
    assert norm_scale.nearer(table[table.epoch == 100]) == (without + 3, 8)
    assert norm_scale.nearer(table)[1] == 2 * 4 * 7 - 1  # L_r with AL2 is printed as 0.0000 at 700
    assert norm_scale.nearer(norm_scale.table(study(corruption=0.5))) == (0, 0)


def test_beside_sets_the_published_and_both_scales_under_each_other_and_the_epochs_beside():
    shown = norm_scale.beside(norm_scale.table(study()))
    assert list(shown.columns) == list(range(100, 701, 100)) and len(shown) == 2 * 4 * 3
    of = shown.xs(("BN", "test_accuracy"), level=["network", "metric"]).index
    assert list(of) == ["published", *norm_scale.SCALES.values()]
    assert list(dict.fromkeys(shown.index.get_level_values("metric"))) == norm_scale.METRICS
    assert shown.loc[("BN", "test_accuracy", "published"), 100] == "74.7"
    assert shown.loc[("BN", "test_accuracy", "γ = 1"), 100] == "60.5 ± 0.7"
    unprinted = norm_scale.beside(norm_scale.table(study(corruption=0.5)))
    assert set(unprinted.xs("published", level="of").to_numpy().ravel()) == {"–"}


def test_a_diverged_network_is_text_and_near_to_nothing():
    table = norm_scale.table(study(lost=[("uniform", False)]))
    own = table[(table.scale != "γ = 1") & ~table.al2]
    assert set(own.measured) == {tables.DIVERGED} and set(own.n) == {2}
    assert norm_scale.nearer(table)[1] == 4 * 7 - 1  # those with AL2
    assert set(norm_scale.beside(table).loc[("BN", "test_accuracy", "γ ~ U(0, 1)")]) == {"diverged"}


def test_no_runs_give_no_rows():
    for frame in (pd.DataFrame(), study().assign(notebooks="10_al2_label_randomization")):
        table = norm_scale.table(frame)
        assert table.empty and "published" in table


def test_the_figure_has_both_scales_with_and_without_al2_and_the_printed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = figures_sensitivity.norm_scales(study())
        fig.canvas.draw()
    lines = [
        line
        for line in fig.axes[0].lines
        if line.get_linestyle() in ("-", "--") and len(line.get_xdata()) > 7
    ]
    assert sorted((line.get_linestyle(), line.get_alpha()) for line in lines) == [
        ("-", 0.45),
        ("-", 1),
        ("--", 0.45),
        ("--", 1),
    ]
    (crosses,) = [line for line in fig.axes[0].lines if line.get_marker() == "x"]
    assert sorted(crosses.get_ydata())[-1] == 95.47 and len(crosses.get_xdata()) == 14
    with pytest.raises(ValueError, match="one profile and dataset"):
        figures_sensitivity.norm_scales(pd.concat([study(), study(corruption=0.5)]))


def test_the_report_has_table_and_figure_where_there_are_runs():
    made = study()
    assert len(report._tables(made)["al2_norm_scale"]) == 2 * 2 * 4 * 7
    assert "al2_norm_scale-made-mnist" in report.drawings(assembled(made))
    alone = made[made.bn_gamma == "ones"]
    assert "al2_norm_scale-made-mnist" not in report.drawings(assembled(alone))
    assert "al2_norm_scale" not in report._tables(
        made.assign(notebooks="10_al2_label_randomization")
    )
