"""Outcomes and figures of the schedule study, from made frames; a warning is an error."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from test_claims import frame as eight
from test_claims import study

from lib.data import noise_floor
from lib.losses import al2_weights
from lib.schedules import SCHEDULES
from lib.study import figures
from lib.study.figures import schedules as drawing

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("figure_style")]
DRAW = {
    "weight_decays": drawing.weight_decays,
    "schedules": drawing.schedules,
    "memorising": drawing.memorising,
}


def means(ax, colour, style="-"):
    """The lines of one colour that join settings, as lists of points."""
    found = [
        line
        for line in ax.lines
        if to_rgb(line.get_color()) == to_rgb(colour) and line.get_linestyle() == style
    ]
    return [list(zip(*line.get_data(), strict=True)) for line in found if len(line.get_xdata()) > 1]


def settings(made):
    return made.drop_duplicates("id").set_index("id")


# ---- outcomes


def test_outcomes_are_a_row_a_run_read_at_the_last_epoch():
    made = study({("linear", 3.0): 12.0}, seeds=[4])
    table = drawing.outcomes(made)
    assert list(table.id) == list(made.id.unique())
    row = table[(table.schedule == "linear") & (table.total == 3)].iloc[0]
    assert row[["final", "held_out", "ablation_auc", "cross_entropy"]].tolist() == [
        41.0,
        41 / 4,
        20.5,
        pytest.approx(1.8),
    ]
    assert row[["best", "best_epoch", "stopped", "stopped_epoch"]].tolist() == [50.0, 1, 50.0, 1]
    assert (
        table.total[table.al2].tolist() == [0.1, 0.3, 1.0, 3.0] * 4
        and table.total[~table.al2].isna().all()
    )


def test_the_last_weight_is_the_one_of_the_last_epoch():
    table = drawing.outcomes(study(seeds=[0]))
    last = table[table.al2].set_index(["schedule", "total"]).last_weight
    assert last["al2", 1.0] == pytest.approx(al2_weights(631)[-1])  # λ of epoch 9 at speed 70
    assert last["constant", 1.0] == pytest.approx(al2_weights(10, 70).mean(), rel=1e-5)
    assert table.last_weight[~table.al2].isna().all()


def test_memorising_begins_below_the_floor_by_more_than_claim_a4_allows():
    floor = noise_floor(0.75, 10)
    made = study(seeds=[0])
    made["cross_entropy"] = floor - 0.04 * made.epoch  # below by more than 0.14 from epoch 4 on
    made.loc[made.schedule == "constant", "cross_entropy"] = floor - 0.1
    table = drawing.outcomes(made)
    constant = table.schedule == "constant"
    assert (
        table.memorising_from[constant].isna().all()
        and (table.memorising_from[~constant] == 4).all()
    )


def test_outcomes_of_diverged_runs_are_empty_at_the_end():
    table = drawing.outcomes(study(diverged=[("al2", 3.0, 0)])).set_index(
        ["schedule", "total", "seed"]
    )
    lost, other = table.loc[("al2", 3.0, 0)], table.loc[("al2", 3.0, 1)]
    at_end = ["final", "held_out", "ablation_auc", "cross_entropy"]
    assert lost[at_end].isna().all() and other[at_end].notna().all() and lost.best == 74.0


def test_other_networks_are_left_out_and_other_settings_refused():
    made = study(seeds=[0])
    student = made[~made.al2].assign(relabelled_by="0123456789", id="student")
    others = eight(seeds=[0])[
        lambda f: ~f.baseline.isin(["bare"]) & (f.al2 | (f.baseline != "weight_decay"))
    ]
    assert list(drawing.outcomes(pd.concat([made, student, others])).id) == list(made.id.unique())
    with pytest.raises(ValueError, match="differ in learning_rate"):
        drawing.outcomes(pd.concat([made, study(seeds=[1], learning_rate=0.5)]))
    with pytest.raises(ValueError, match="differ in corruption"):
        drawing.outcomes(pd.concat([made, study(seeds=[1], corruption=0.5)]))
    assert drawing.studied(pd.DataFrame()).empty


# ---- the search


def searched(by_strength, seeds=(0, 1)):
    """A study whose held-out accuracy at the last epoch is given by strength and seed; test
    accuracies oppose it.
    """
    made = study(seeds=seeds, shares=[1.0], weight_decays=list(by_strength))
    for (strength, seed), own in made[made.weight_decay > 0].groupby(["weight_decay", "seed"]):
        made.loc[own.index, "validation_accuracy"] = np.where(
            own.epoch == 10, by_strength[strength][seed], 99.0
        )
        made.loc[own.index, "test_accuracy"] = 50 - by_strength[strength][seed]
    made.loc[made.weight_decay == 0, "validation_accuracy"] = 99.0
    return made


def test_the_strength_is_chosen_by_held_out_noisy_labels_at_the_last_epoch_alone():
    made = searched({1e-3: (20, 22), 5e-3: (10, 30), 5e-2: (23, 20)})
    assert drawing.chosen_decay(drawing.outcomes(made)) == 5e-2
    made = searched({5e-2: (20, 22), 1e-3: (22, 20), 1e-1: (20, 20)})
    assert drawing.chosen_decay(drawing.outcomes(made)) == 1e-3  # of equal ones the weakest


def test_a_strength_of_which_a_run_diverged_is_not_chosen():
    table = drawing.outcomes(searched({1e-3: (20, 22), 5e-3: (40, 30)}))
    table.loc[(table.weight_decay == 5e-3) & (table.seed == 1), "held_out"] = np.nan
    assert drawing.chosen_decay(table) == 1e-3


def test_nothing_can_be_chosen_where_nothing_is_held_out():
    table = drawing.outcomes(study().drop(columns="validation_accuracy"))
    with pytest.raises(
        ValueError, match="none has finished runs that hold images out; set n_validation"
    ):
        drawing.chosen_decay(table)


# ---- figures


def test_the_search_is_drawn_with_its_means_the_chosen_strength_and_the_paper_s():
    made = searched({5e-4: (20, 22), 5e-3: (23, 25), 5e-2: (10, 12)})
    fig = drawing.weight_decays(made)
    fig.canvas.draw()
    held_out, final, _, _, area = fig.axes
    (line,) = means(held_out, figures.COLOURS["weight_decay"])[:1]
    assert line == [(5e-4, 21.0), (5e-3, 24.0), (5e-2, 11.0)]
    (line,) = means(final, figures.COLOURS["weight_decay"])[:1]
    assert line == [(5e-4, 29.0), (5e-3, 26.0), (5e-2, 39.0)]
    for ax in fig.axes:
        vertical = [
            ln.get_xdata()[0]
            for ln in ax.lines
            if len(set(ln.get_xdata())) == 1 and list(ln.get_ydata()) == [0, 1]
        ]
        # the paper's, then the chosen one
        assert vertical == [5e-4, 5e-3] and ax.get_xscale() == "log"
    dashed, solid = (means(final, figures.COLOURS["bare"], style) for style in ("--", "-"))
    assert {y for _, y in dashed[0]} == {25.5} and {y for _, y in solid[0]} == {65.5}
    assert (
        fig.axes[1].get_ylim()
        == fig.axes[2].get_ylim()
        == fig.axes[3].get_ylim()
        != area.get_ylim()
    )


def test_a_search_without_held_out_images_is_drawn_without_a_choice():
    fig = drawing.weight_decays(study().drop(columns="validation_accuracy"))
    assert "chosen" not in " ".join(text.get_text() for text in fig.legends[0].get_texts())


def test_schedules_are_drawn_against_their_total_and_last_against_their_last_weight():
    made = study({("al2", 0.1): 1.0, ("al2", 3.0): 7.0, ("linear", 3.0): 12.0})
    fig = drawing.schedules(made)
    fig.canvas.draw()
    final = fig.axes[0]
    by_last = fig.axes[-1]
    assert means(final, drawing.KIND_COLOURS["al2"])[0] == [
        (0.1, 26.5),
        (0.3, 65.5),
        (1.0, 65.5),
        (3.0, 32.5),
    ]
    assert means(final, drawing.KIND_COLOURS["linear"])[0][-1] == (3.0, 37.5)
    assert [label.get_text() for label in final.get_xticklabels()] == ["0.1", "0.3", "1", "3"]
    (dashed,) = means(final, figures.COLOURS["bare"], "--")
    assert {y for _, y in dashed} == {25.5}
    (points,) = means(by_last, drawing.KIND_COLOURS["constant"])[:1]
    assert [x for x, _ in points] == pytest.approx(
        [s * al2_weights(10, 70).mean() for s in (0.1, 0.3, 1, 3)], rel=1e-5
    )
    assert any(
        line.get_ydata()[0] == pytest.approx(noise_floor(0.75, 10)) for line in fig.axes[4].lines
    )
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert texts == ["al2 (the paper's)", *SCHEDULES[1:], "bare", "noise floor"]


def test_cross_entropy_has_a_panel_a_total():
    fig = drawing.memorising(study(shares=[0.1, 1.0]))
    assert [ax.get_title() for ax in fig.axes] == ["Σλ = 0.1 × the paper's", "Σλ = 1 × the paper's"]
    for ax in fig.axes:
        for kind in SCHEDULES:
            (curve,) = means(ax, drawing.KIND_COLOURS[kind])
            assert curve[-1] == (10, pytest.approx(2.3 if kind == "constant" else 1.8))
        assert len(means(ax, figures.COLOURS["bare"], "--")) == 1


MADE = {
    "one seed": lambda: study(seeds=[0]),
    "no weight decay": lambda: study(
        weight_decays=[], shares=[0.1, 1.0], diverged=[("al2", 0.1, 0), ("", 0, 1)]
    ),
    "bare is not there yet": lambda: study(kinds=["al2", "geometric"], shares=[1.0])[
        lambda f: f.al2 | (f.weight_decay > 0)
    ],
    "no areas": lambda: study(shares=[1.0]).drop(columns="ablation_auc"),
}


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("what", MADE)
def test_what_is_not_there_yet_does_not_keep_a_figure_from_being_drawn(name, what):
    fig = DRAW[name](MADE[what]())
    fig.canvas.draw()
    seeds = "one seed" if what == "one seed" else "2 seeds"
    assert fig.get_suptitle().startswith(f"mnist, 75 % of the labels corrupted, {seeds}")
    assert fig.axes[0].get_ylabel()


def test_half_way_through_a_campaign_totals_may_not_be_known():
    for kind in ("constant", "al2"):
        made = study()[lambda f, kind=kind: ~f.al2 | (f.schedule == kind)]
        assert means(drawing.schedules(made).axes[-1], drawing.KIND_COLOURS[kind])
        # against a total
        assert not means(drawing.schedules(made).axes[0], drawing.KIND_COLOURS[kind])
        assert drawing.weight_decays(made)
        with pytest.raises(ValueError, match="none of these runs has AL2"):
            drawing.memorising(made)


def test_the_paper_s_series_has_bare_s_colour_and_no_other_kind_a_baseline_s():
    colours = [to_rgb(c) for c in (*drawing.KIND_COLOURS.values(), *figures.COLOURS.values())]
    assert drawing.KIND_COLOURS["al2"] == figures.COLOURS["bare"]
    assert len(set(colours)) == 7 and len(set(drawing.KIND_MARKS.values())) == 4
