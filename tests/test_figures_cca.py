"""Figures of notebook 12, from made frames, matrices and features; a warning is an error."""

import math
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from test_claims import a6
from test_claims import curves as mean_cca_courses

from lib import measures
from lib.study import figures
from lib.study.figures import cca as drawing

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("figure_style")]
REFERENCE = measures.Similarities(
    measures.CanonicalCorrelations(torch.tensor([0.8, 0.2]), 0, 0), 0.45, 0.55, 0.65
)
BARE, DROPOUT = figures.COLOURS["bare"], figures.COLOURS["dropout"]
SQUARE = "start 0", "start 1", "plain 0", "plain 1", "AL2 0", "AL2 1"


def made(**options):
    """Runs whose mean CCA differs by 10 points by AL2, by 2 by the seed; four dead channels with
    AL2 at the end.
    """
    frame = mean_cca_courses(**{"speed": 3.0} | options)
    dead = 4 * (frame.al2 & (frame.epoch == 20))
    return frame.assign(
        dead=dead, **{name: frame["mean_cca init"] + 0.1 for name in ("svcca init", "pwcca init")}
    )


def without(frame, *lost):
    """The frame without the networks (dropout, AL2, seed), as if their loss had become NaN."""
    return frame[
        [key not in lost for key in zip(frame.dropout, frame.al2, frame.seed, strict=True)]
    ]


def drawn(ax):
    """How many lines there are of each colour and dashes."""
    return Counter((to_rgb(line.get_color()), line.get_linestyle()) for line in ax.lines)


def legend(fig):
    fig.canvas.draw()
    return [text.get_text() for text in fig.legends[0].get_texts()]


# ---- channel by channel, and by canonical correlations


def test_each_comparison_has_a_line_of_one_colour_on_both_sides():
    channels = {"rotated": torch.tensor([0.5, 0.3, 0.1]), "another": np.array([0.4, 0.2])}
    directions = {"rotated": torch.ones(3), "another": torch.tensor([0.9, 0.2])}
    fig = drawing.by_channel_and_direction(channels, directions)
    assert legend(fig) == ["rotated", "another"]
    left, right = fig.axes
    for ax, sides in ((left, channels), (right, directions)):
        for line, values in zip(ax.lines, sides.values(), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), range(1, len(values) + 1))
            np.testing.assert_allclose(line.get_ydata(), values)
    assert [line.get_color() for line in left.lines] == [line.get_color() for line in right.lines]
    assert left.get_ylim() == right.get_ylim() == (0, 1.03)
    assert [left.get_xlabel(), right.get_xlabel()] == [
        "channel, the best first",
        "canonical direction",
    ]


def test_where_no_channel_is_live_its_line_is_empty():
    dead = measures.cca(
        torch.zeros(3, 40), torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    ).coefficients
    fig = drawing.by_channel_and_direction({"dead": torch.zeros(0)}, {"dead": dead})
    assert legend(fig) == ["dead"] and [len(ax.lines[0].get_xdata()) for ax in fig.axes] == [0, 0]


# ---- curves


def test_courses_have_a_row_a_dropout_a_column_a_measure_and_a_line_a_seed():
    frame = made(seeds=(0, 1, 2))
    fig = drawing.curves(frame, REFERENCE)
    assert legend(fig) == ["without AL2", "with AL2", "another start"]
    rows = np.reshape(fig.axes, (2, 4))
    assert [ax.get_title() for ax in rows[0]] == [
        "mean CCA",
        "SVCCA",
        "PWCCA",
        "dead channels of φ",
    ]
    assert [row[0].get_ylabel() for row in rows] == [
        "dropout 0.5\nsimilarity to the start",
        "dropout 0\nsimilarity to the start",
    ]
    assert [ax.get_xlabel() for ax in rows[1]] == [
        "epoch"
    ] * 4 and fig.get_suptitle() == "mnist, 75 % of the labels corrupted, a line a seed"
    for row, colour in zip(rows, (DROPOUT, BARE), strict=True):
        networks = {(to_rgb(colour), "--"): 3, (to_rgb(colour), "-"): 3}
        for ax, value in zip(row, (0.45, 0.55, 0.65), strict=False):
            assert drawn(ax) == networks | {(to_rgb(drawing.REFERENCE), ":"): 1}
            assert set(ax.lines[-1].get_ydata()) == {value} and ax.get_ylim() == (0, 1)
        assert drawn(row[3]) == networks
        assert [line.get_ydata()[-1] for line in row[3].lines] == [0, 0, 0, 4, 4, 4]
    own = frame[(frame.dropout == 0.5) & ~frame.al2 & (frame.seed == 0)]
    for ax, column in zip(rows[0], drawing.COURSES, strict=True):
        assert list(zip(*ax.lines[0].get_data(), strict=True)) == list(
            zip(own.epoch, own[column], strict=True)
        )


def test_one_dropout_has_one_row():
    fig = drawing.curves(made(dropouts=[0.5]), REFERENCE)
    assert (
        len(fig.axes) == 4
        and fig.axes[0].get_ylabel().startswith("dropout 0.5")
        and fig.axes[0].get_xlabel() == "epoch"
    )


def test_the_largest_dropout_is_on_top_in_whatever_order_the_runs_come():
    frame = made(dropouts=[0.0, 0.5])
    assert drawing.curves(frame, REFERENCE).axes[0].get_ylabel().startswith("dropout 0.5")
    assert [ax.get_title() for ax in drawing.difference_curves(frame).axes] == [
        "dropout 0.5",
        "dropout 0",
    ]


def test_a_network_whose_loss_became_nan_has_no_line():
    fig = drawing.curves(without(made(), (0.5, True, 1)), REFERENCE)
    assert (
        drawn(fig.axes[0])[to_rgb(DROPOUT), "-"] == 1 and drawn(fig.axes[4])[to_rgb(BARE), "-"] == 2
    )


def test_the_course_of_a_network_that_has_no_live_channel_any_more_ends():
    frame = made()
    late = (frame.dropout == 0.5) & frame.al2 & (frame.seed == 0) & (frame.epoch > 10)
    frame.loc[late, ["mean_cca init", "svcca init", "pwcca init"]] = np.nan
    frame.loc[late, "dead"] = 50
    fig = drawing.curves(frame, REFERENCE)
    fig.canvas.draw()
    assert [np.isfinite(ax.lines[2].get_ydata()).sum() for ax in fig.axes[:4]] == [10, 10, 10, 20]
    apart = drawing.differences(frame).dropna().groupby(["network", "differing in"]).epoch.max()
    assert apart["dropout 0.5", "AL2 (seed 0)"] == 10 and apart["dropout 0.5", "AL2 (seed 1)"] == 20
    legend(drawing.difference_curves(frame))


def test_runs_that_differ_in_something_else_and_no_runs_are_refused():
    for draw in (
        lambda frame: drawing.curves(frame, REFERENCE),
        drawing.differences,
        drawing.difference_curves,
    ):
        with pytest.raises(ValueError, match="differ in learning_rate"):
            draw(pd.concat([made(), made(learning_rate=0.5)]))
        with pytest.raises(ValueError, match="differ in speed"):
            draw(pd.concat([made(), made(speed=5.0)]))
        with pytest.raises(ValueError, match="there is no run to draw: of one at least the loss"):
            draw(made().iloc[:0])


# ---- by AL2 and by the seed


def test_differences_are_by_al2_of_each_seed_and_by_each_two_seeds_of_each_network():
    apart = drawing.differences(made(seeds=(0, 1, 2), dropouts=[0.5]))
    assert set(apart.network) == {"dropout 0.5"} and len(apart) == 20 * (3 + 3 * 2)
    points = apart.groupby(["by", "differing in"], sort=False).points.agg(["min", "max"])
    assert list(points.loc["AL2"].index) == ["AL2 (seed 0)", "AL2 (seed 1)", "AL2 (seed 2)"]
    assert points.loc["AL2"].to_numpy() == pytest.approx(10)
    for al2 in ("without", "with"):
        own = points.loc[f"seed, {al2} AL2"]
        assert list(own.index) == [
            f"seed ({pair}, {al2} AL2)" for pair in ("0 or 1", "0 or 2", "1 or 2")
        ]
        assert list(own["min"]) == pytest.approx([2, 4, 2]) and list(own["max"]) == pytest.approx(
            [2, 4, 2]
        )


def test_differences_are_those_that_claim_a6_is_judged_by():
    frame = made(by_al2={0.5: 0.1, 0.0: 0.01}, by_seed=0.03)
    frame["mean_cca init"] *= 1 + 0.1 * frame.al2
    of_pairs = drawing.differences(frame).groupby(["network", "by", "differing in"]).points.mean()
    for network, by_al2, by_seed in re.findall(
        r"(dropout \S+): by AL2 ([\d.]+), by another seed at most ([\d.]+)", a6(frame).measured
    ):
        own = of_pairs[network]
        assert f"{own['AL2'].mean():.1f}" == by_al2 and f"{own.drop('AL2').max():.1f}" == by_seed


def test_a_seed_that_is_not_there_without_and_with_al2_is_compared_with_nothing():
    frame = without(made(), (0.5, True, 1), (0.0, False, 0), (0.0, True, 1))
    apart = drawing.differences(frame)
    assert list(apart["differing in"].unique()) == ["AL2 (seed 0)"] and set(apart.network) == {
        "dropout 0.5"
    }
    fig = drawing.difference_curves(frame)
    assert [(ax.get_title(), len(ax.lines)) for ax in fig.axes] == [
        ("dropout 0.5", 1),
        ("dropout 0", 0),
    ]
    assert len(legend(fig)) == 3
    assert drawing.differences(without(frame, (0.5, False, 0))).empty


def test_difference_curves_are_coloured_by_what_differs():
    fig = drawing.difference_curves(made())
    assert legend(fig) == [
        "by AL2 (a line a seed)",
        "by another seed, without AL2",
        "by another seed, with AL2",
    ]
    by_al2 = to_rgb(drawing.DIFFERENCES["AL2"][0])
    grey = to_rgb(drawing.DIFFERENCES["seed, with AL2"][0])
    for ax in fig.axes:
        assert drawn(ax) == {(by_al2, "-"): 2, (grey, "--"): 1, (grey, "-"): 1}
        assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([10, 10, 2, 2])
        assert (
            ax.get_ylim()[0] == 0
            and ax.get_xlabel() == "epoch"
            and list(ax.lines[0].get_xdata()) == list(range(1, 21))
        )
    assert "points" in fig.axes[0].get_ylabel()
    assert len({by_al2, grey, to_rgb(BARE), to_rgb(DROPOUT)}) == 4
    (one,) = drawing.difference_curves(made(dropouts=[0.0], seeds=[3])).axes
    assert one.get_title() == "dropout 0" and drawn(one) == {(by_al2, "-"): 1}


# ---- networks among themselves


def matrix(names=SQUARE):
    """Mean CCA of two networks: their distance in the list as hundredths below 1."""
    at = np.arange(len(names))
    return pd.DataFrame(1 - abs(at[:, None] - at) / 100, index=list(names), columns=list(names))


def test_each_two_networks_have_one_cell_with_its_number():
    fig = drawing.between_networks({0.5: matrix(), 0.0: matrix(SQUARE[::2])}, "made")
    fig.canvas.draw()
    left, right, bar = fig.axes
    assert [left.get_title(), right.get_title(), fig.get_suptitle()] == [
        "dropout 0.5",
        "dropout 0",
        "made",
    ]
    assert bar.get_ylabel() == "mean CCA"
    for ax, names in ((left, SQUARE), (right, SQUARE[::2])):
        assert [tick.get_text() for tick in ax.get_yticklabels()] == list(names[1:])
        assert [tick.get_text() for tick in ax.get_xticklabels()] == list(names[:-1])
        size = len(names)
        (mesh,) = ax.collections
        wanted = [
            f"{1 - (row - column) / 100:.2f}" for row in range(1, size) for column in range(row)
        ]
        assert [text.get_text() for text in ax.texts] == wanted
        assert mesh.get_clim() == (0, 1) and mesh.get_array().count() == size * (size - 1) // 2


def test_a_network_without_a_live_channel_has_empty_cells():
    table = matrix()
    table.loc["AL2 0"] = table["AL2 0"] = np.nan
    left, bar = drawing.between_networks({0.5: table}).axes
    assert len(left.texts) == 15 - 5 and bar.get_ylabel() == "mean CCA"


def test_means_are_of_pairs_of_two_kinds_of_one_seed_or_of_two():
    table = matrix()
    # two places apart
    assert drawing.mean_between(table, "start", "plain", same_seed=True) == pytest.approx(0.98)
    assert drawing.mean_between(table, "start", "AL2", same_seed=True) == pytest.approx(0.96)
    # (3 + 5) / 2
    assert drawing.mean_between(table, "start", "AL2", same_seed=False) == pytest.approx(0.96)
    assert drawing.mean_between(table, "plain", "plain", same_seed=False) == pytest.approx(0.99)
    seeds = ("plain 1", "plain 11", "plain 21")
    assert drawing.mean_between(matrix(seeds), "plain", "plain", same_seed=False) == pytest.approx(
        1 - (1 + 1 + 2) / 300
    )


@pytest.mark.parametrize(("one", "same_seed"), [("AL2", False), ("plain", True), ("network", True)])
def test_the_mean_of_no_pair_is_nan(one, same_seed):
    # AL2 1 diverged
    assert math.isnan(drawing.mean_between(matrix(SQUARE[:5]), one, one, same_seed=same_seed))


def test_the_mean_of_pairs_of_which_one_has_no_live_channel_is_nan():
    table = matrix()
    table.loc["AL2 0"] = table["AL2 0"] = np.nan
    assert math.isnan(drawing.mean_between(table, "start", "AL2", same_seed=True))
    assert drawing.mean_between(table, "start", "plain", same_seed=True) == pytest.approx(0.98)


# ---- made sparse


def sparse(dropouts=(0.5, 0.0)):
    line = pd.DataFrame({"zeros": [10.0, 50.0, 99.0], "mean CCA": [1.0, 0.8, np.nan]})
    controls = {
        "its own start, made sparse": line,
        "another start, made sparse": line.assign(**{"mean CCA": 0.4}),
    }
    rows = [
        (d, al2, seed, 60.0 + 30 * al2 + seed, 0.45 - 0.1 * al2)
        for d in dropouts
        for al2 in (False, True)
        for seed in (0, 1)
    ]
    return controls, pd.DataFrame(rows, columns=["dropout", "al2", "seed", "zeros", "mean CCA"])


def test_untrained_features_made_sparse_are_lines_and_trained_networks_dots():
    controls, trained = sparse()
    fig = drawing.made_sparse(controls, trained)
    (ax,) = fig.axes
    kinds = [
        f"trained, dropout {d}, {al2} AL2" for d in ("0.5", "0") for al2 in ("without", "with")
    ]
    assert legend(fig) == [*controls, *kinds]
    own, other, *dots = [line for line in ax.lines if len(line.get_xdata())]
    assert [own.get_linestyle(), other.get_linestyle()] == ["--", ":"]
    np.testing.assert_array_equal(own.get_ydata(), [1.0, 0.8, np.nan])
    np.testing.assert_array_equal(other.get_xdata(), [10.0, 50.0, 99.0])
    for dot, row in zip(dots, trained.itertuples(index=False), strict=True):
        assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (row.zeros, row[-1])
        colour = DROPOUT if row.dropout else BARE
        assert to_rgb(dot.get_color()) == to_rgb(colour)
        assert to_rgb(dot.get_markerfacecolor()) == to_rgb(colour if row.al2 else "white")
    assert (
        ax.get_xlabel() == "share of φ that is zero (%)"
        and ax.get_ylabel() == "mean CCA with the start"
    )


def test_a_dropout_that_was_not_trained_and_a_network_without_a_live_channel_are_not_drawn():
    controls, trained = sparse(dropouts=[0.0])
    trained.loc[trained.al2, ["zeros", "mean CCA"]] = [100.0, np.nan]
    fig = drawing.made_sparse(controls, trained)
    assert not [name for name in legend(fig) if "0.5" in name]
    points = [line.get_ydata()[0] for line in fig.axes[0].lines[2:] if len(line.get_ydata())]
    assert np.isfinite(points).tolist() == [True, True, False, False]
