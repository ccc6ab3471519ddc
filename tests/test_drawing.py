"""What notebooks share is drawn from made frames whatever is there; a warning is an error."""

from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
from made import LAYERS, cell, pair, paper, rising, together

from lib import plots
from lib.study import drawing, tables

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("figure_style")]
FEW = dict.fromkeys(("vanillaNet", "dropNet", "sr1Net"), 30.0)
AT_ONCE = {("sr1Net", seed): 1 for seed in range(3)} | {("dropNet", 0): 1}
MADE = {
    "one seed": lambda: cell(FEW, seeds=[0]),
    "one epoch": lambda: cell(FEW, epochs=1),
    "a run diverged": lambda: cell(FEW, diverged={("vanillaNet", 1): 9}),
    "diverged at once": lambda: cell(FEW, diverged=AT_ONCE),
    "a long seed": lambda: together(
        cell(FEW, seeds=[0]), cell({"sr1Net": 30.0}, seeds=[1], epochs=40)
    ),
    "LeNet": lambda: pair("lenet", 20.0, 21.0).assign(**{"entropy conv1": 1.0}),
}


def drawn(fig):
    """The figure laid out, which is where most warnings come from; its legend's labels."""
    fig.canvas.draw()
    (legend,) = fig.legends
    return fig.axes, [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("made", MADE)
def test_losses_and_entropies_are_drawn_whatever_the_runs(made):
    runs = tables.sparsity_runs(MADE[made]())
    for draw in (drawing.validation_losses, drawing.entropies):
        axes, labels = drawn(draw(runs))
        lenet = made == "LeNet"
        assert len(axes) == (1 if lenet or draw == drawing.validation_losses else len(LAYERS))
        assert labels[: 2 if lenet else 3] == (["LeNet", "LeNet+sr"] if lenet else list(FEW))
        assert all(ax.get_title() and ax.get_xlabel() == "epoch" for ax in axes)


def test_readings_of_sparsity_reg_are_never_drawn_as_seeds_of_one_another():
    mean, summed = (cell(FEW, seeds=[0], sparsity_batches=[b]) for b in ("mean", "sum"))
    summed = summed[summed.variant == "sr1Net"].assign(test_cross_entropy=5.0, id="other")
    runs = tables.sparsity_runs(together(mean, summed))
    axes, _ = drawn(drawing.validation_losses(runs))
    assert [ax.get_title().rpartition("; ")[2] for ax in axes] == ["mean", "sum"]
    tops = [max(line.get_ydata().max() for line in ax.lines) for ax in axes]
    assert tops[0] < 5 == tops[1]
    axes, _ = drawn(drawing.entropies(runs))
    titles = [f"{layer}, {reading}" for reading in ("mean", "sum") for layer in LAYERS]
    assert [ax.get_title() for ax in axes] == titles


def test_each_seed_that_overfits_has_its_moment_and_a_run_that_diverged_has_none():
    later = {"vanillaNet": {"loss": lambda epoch: rising(epoch - 4)}}
    parts = cell(FEW, seeds=[0]), cell(FEW, seeds=[1], over=later)
    broken = cell({"vanillaNet": 30.0}, seeds=[2], epochs=40, diverged={("vanillaNet", 2): 20})
    runs = tables.sparsity_runs(together(*parts, broken))
    (ax,), _ = drawn(drawing.validation_losses(runs))
    assert [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "o"] == [[8], [12]]
    for ax in drawn(drawing.entropies(runs))[0]:
        assert [x.get_xdata()[0] for x in ax.lines if x.get_linestyle() == "--"] == [8, 12]


def test_what_no_run_measured_is_not_drawn():
    runs = tables.sparsity_runs(cell(FEW, measured=False))
    for draw, frame in ((drawing.entropies, runs), (drawing.validation_losses, runs[:0])):
        with pytest.raises(ValueError, match="no run that has measured it"):
            draw(frame)


@pytest.mark.parametrize(("name", "panels"), [("sparsity_table2", 6), ("sparsity_table3", 3)])
def test_a_table_is_drawn_beside_the_paper_with_a_word_for_a_network_that_diverged(name, panels):
    runs = paper(seeds=[0], measured=False)
    runs.loc[runs.variant.isin(["sr1Net", "LeNet"]), "diverged"] = 4.0
    axes, labels = drawn(drawing.best_beside_paper(tables.sparsity_beside_published(name, runs)))
    assert len(axes) == panels and labels[0] == "published"
    assert all([text.get_text() for text in ax.texts] == ["diverged"] for ax in axes)
    axes, _ = drawn(drawing.best_beside_paper(tables.sparsity_beside_published(name, runs[:0])))
    assert all(ax.get_title().endswith("not run here") for ax in axes)


def test_a_small_png_is_the_figure_in_few_colours_and_fewer_bytes():
    fig, ax = plt.subplots()
    for shade in np.linspace(0, 1, 75):  # as many fine lines as Figure 1 of the AL2 paper has
        ax.plot(np.linspace(1, 0.1, 50) * (1 - shade / 2), lw=0.9, color=plt.cm.viridis(shade))
    whole = BytesIO()
    fig.savefig(whole, format="png", bbox_inches="tight", dpi=80)
    small = plots.small_png(fig)
    assert not plt.fignum_exists(fig.number) and len(small.data) < len(whole.getvalue()) / 2
    files = (whole, BytesIO(small.data))
    one, other = (np.asarray(PIL.Image.open(file).convert("RGB"), float) for file in files)
    assert one.shape == other.shape and np.abs(one - other).mean() < 1
