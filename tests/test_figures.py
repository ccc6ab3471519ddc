"""Figures of the AL2 paper, drawn from made arrays; a warning is an error."""

from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
from matplotlib.collections import LineCollection

from lib import plots
from lib.study import figures

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("figure_style")]


def falling(points=5, channels=50, missing=0):
    """Epochs 10, 20 … and sequences that fall with both epoch and direction, the last `missing`
    ones absent.
    """
    epochs = 10 * np.arange(1, points + 1)
    coefficients = np.linspace(1, 0.1, channels) * np.linspace(1, 0.5, points)[:, None]
    coefficients[:, channels - missing :] = np.nan
    return epochs, coefficients


def sequences(fig):
    """Lines of each panel, in reading order; panels without any are left out."""
    fig.canvas.draw()  # laid out, as saving it would, which is where most warnings come from
    drawn = [c for ax in fig.axes for c in ax.collections if isinstance(c, LineCollection)]
    # the colour bar has lines, too
    return [lines for lines in drawn if lines.get_array() is not None]


def panel(fig, text):
    return next(ax for ax in fig.axes if ax.get_title() == text)


def test_each_epoch_is_a_line_of_all_directions_coloured_by_epoch():
    epochs, coefficients = falling()
    fig = figures.canonical_correlations(
        {"dropout 0.5": {False: (epochs, coefficients), True: (epochs, coefficients / 2)}}
    )
    without, with_al2 = sequences(fig)
    assert without.axes is panel(fig, "without AL2") and with_al2.axes is panel(fig, "with AL2")
    for lines, expected in ((without, coefficients), (with_al2, coefficients / 2)):
        np.testing.assert_allclose([path.vertices[:, 1] for path in lines.get_paths()], expected)
        np.testing.assert_allclose(
            [path.vertices[:, 0] for path in lines.get_paths()], [np.arange(1, 51)] * 5
        )
        np.testing.assert_array_equal(lines.get_array(), epochs)
    brightness = without.cmap(without.norm(epochs))[:, :3].sum(1)
    assert (np.diff(brightness) < 0).all()  # light to dark: increasing intensity, as in the paper
    # the colour bar
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel() == "epoch"] == ["epoch"]


def test_panels_share_one_colour_scale_and_both_axes():
    rows = {
        "dropout 0.5": {False: falling(3), True: falling(5)},
        "dropout 0": {False: falling(2), True: falling(4, 20)},
    }
    found = sequences(figures.canonical_correlations(rows))
    assert len(found) == 4
    assert {(lines.norm.vmin, lines.norm.vmax) for lines in found} == {(0, 50)}
    assert {(lines.axes.get_xlim(), lines.axes.get_ylim()) for lines in found} == {
        ((0, 51), (0, 1.02))
    }
    assert [lines.axes.get_ylabel().splitlines()[0] for lines in found[::2]] == list(rows)


@pytest.mark.parametrize("missing", [1, 49, 50])
def test_directions_that_a_dead_channel_takes_away_end_the_line(missing):
    (lines,) = sequences(
        figures.canonical_correlations({"seed 0": {True: falling(missing=missing)}})
    )
    drawn = [np.isfinite(path.vertices[:, 1]).sum() for path in lines.get_paths()]
    assert set(drawn) <= {50 - missing}


def test_a_network_that_was_not_run_leaves_its_panel_empty():
    (lines,) = sequences(figures.canonical_correlations({"seed 0": {False: falling(1)}}))
    assert lines.axes.get_title() == "without AL2"


def test_references_are_grey_lines_in_each_panel_and_in_the_legend():
    floor = {
        "unrelated": np.full(50, 0.1),
        "another start": np.full(40, 0.4),
        "a": np.ones(5),
        "b": np.ones(5),
    }
    rows = {"x": {False: falling(), True: falling()}, "y": {False: falling()}}
    fig = figures.canonical_correlations(rows, references=floor, title="made")
    sequences(fig)
    for ax in fig.axes[:4]:
        assert [len(line.get_ydata()) for line in ax.lines] == [50, 40, 5, 5]
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == list(floor)
    assert not figures.canonical_correlations(rows).legends


def test_nothing_and_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one row at least"):
        figures.canonical_correlations({})
    epochs, coefficients = falling()
    with pytest.raises(ValueError, match=r"\(5, 50\) and \(4,\)"):
        figures.canonical_correlations({"x": {False: (epochs[1:], coefficients)}})


def test_a_small_png_is_the_figure_in_few_colours_and_fewer_bytes():
    rows = {"x": {False: falling(75), True: falling(75)}}
    whole = BytesIO()
    figures.canonical_correlations(rows).savefig(whole, format="png", bbox_inches="tight", dpi=80)
    fig = figures.canonical_correlations(rows)
    small = plots.small_png(fig)
    assert not plt.fignum_exists(fig.number) and len(small.data) < len(whole.getvalue()) / 2
    one, other = (
        np.asarray(PIL.Image.open(file).convert("RGB"), float)
        for file in (whole, BytesIO(small.data))
    )
    assert one.shape == other.shape and np.abs(one - other).mean() < 1
