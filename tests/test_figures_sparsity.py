"""Figures of the targeted-sparsity paper, drawn from made frames; a warning is an error."""

import numpy as np
import pandas as pd
import pytest
from made import HUNDRED, LAYERS, cell, pair, paper, rising
from matplotlib.colors import to_rgb

from lib.study import tables
from lib.study.experiments import VARIANTS
from lib.study.figures import sparsity as figures_sparsity
from lib.study.figures.sparsity import COLOURS

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("figure_style")]
ALL = dict.fromkeys(VARIANTS, 30.0)


def frame(*parts):
    return tables.sparsity_runs(pd.concat(parts, ignore_index=True))


def drawn(fig):
    """The figure laid out, as saving it would, which is where most warnings come from."""
    fig.canvas.draw()
    return fig


def legend(fig):
    (found,) = fig.legends
    return {
        text.get_text(): handle
        for text, handle in zip(found.get_texts(), found.legend_handles, strict=True)
    }


def lines(ax, network, style="-"):
    return [
        line
        for line in ax.lines
        if line.get_linestyle() == style
        and len(line.get_xdata()) > 1
        and to_rgb(line.get_color()) == to_rgb(COLOURS[network])
    ]


FEW = dict.fromkeys(("vanillaNet", "dropNet", "sr1Net"), 30.0)
MADE = {
    "one seed": lambda: frame(cell(FEW, seeds=[0])),
    "one epoch": lambda: frame(cell(FEW, epochs=1)),
    "one run diverged": lambda: frame(cell(FEW, diverged={("sr1Net", 1): 9})),
    "from the beginning": lambda: frame(
        cell(FEW, diverged={("sr1Net", s): 1 for s in range(3)} | {("dropNet", 0): 1})
    ),
    "long and short": lambda: frame(cell({"sr2Net": 30.0}, epochs=40), cell(FEW)),
    "a long seed": lambda: frame(
        cell(FEW, seeds=[0]), cell({"sr1Net": 30.0}, seeds=[1], epochs=40)
    ),
    "not all measured": lambda: frame(
        cell({"sr1Net": 30.0}), cell({"sr2Net": 30.0}, measured=False)
    ),
}
DRAW = {
    "losses": figures_sparsity.validation_losses,
    "entropies": figures_sparsity.entropies,
    "correlations": figures_sparsity.correlations,
}


@pytest.mark.parametrize("made", MADE)
def test_curves_are_drawn_whatever_the_runs(made):
    runs = MADE[made]()
    for name, draw in DRAW.items():
        fig = drawn(draw(runs, **({"layers": ["fc1"]} if name == "entropies" else {})))
        assert len(fig.axes) == (len(LAYERS) if name == "correlations" else 1)
        assert all(
            ax.get_title() and ax.get_xlabel() == "epoch" and ax.get_ylabel() for ax in fig.axes
        )
        assert list(legend(fig))[: runs.network.nunique()] == [
            n for n in VARIANTS if n in set(runs.network)
        ]


def test_each_network_has_a_colour_of_its_own_in_all_figures():
    assert len({COLOURS[name] for name in VARIANTS}) == len(VARIANTS)
    runs = frame(cell(ALL))
    for name, draw in DRAW.items():
        fig = draw(runs)
        assert len(fig.axes) == (1 if name == "losses" else len(LAYERS))
        for ax in fig.axes:
            assert [len(lines(ax, name)) for name in VARIANTS] == [1] * len(VARIANTS)
        handles = legend(fig)
        assert {name: to_rgb(handles[name].get_color()) for name in VARIANTS} == {
            n: to_rgb(COLOURS[n]) for n in VARIANTS
        }


def test_adam_stands_beside_sgd_in_a_panel_of_its_own():
    fig = drawn(
        figures_sparsity.validation_losses(
            frame(cell(ALL), cell(ALL, optimizer="adam"), cell(ALL, size="m"))
        )
    )
    assert [ax.get_title().splitlines()[0] for ax in fig.axes] == [
        f"{HUNDRED}, size s, SGD", f"{HUNDRED}, size s, Adam", f"{HUNDRED}, size m, SGD"
    ]  # fmt: skip
    assert {ax.get_title().splitlines()[1] for ax in fig.axes} == {"made, 3 seeds: mean and range"}


def test_the_moment_of_overfitting_is_a_dot_or_a_dashed_line_of_the_networks_that_have_one():
    runs = frame(cell(ALL, over={"dropNet": {"loss": rising}}))
    (ax,) = figures_sparsity.validation_losses(runs).axes
    dots = {
        to_rgb(line.get_color()): line.get_xdata() for line in ax.lines if line.get_marker() == "o"
    }
    assert {colour: list(x) for colour, x in dots.items()} == {
        to_rgb(COLOURS[n]): [8] for n in ("vanillaNet", "dropNet")
    }
    for ax in figures_sparsity.entropies(runs).axes:
        assert [lines(ax, n, "--")[0].get_xdata()[0] for n in ("vanillaNet", "dropNet")] == [8, 8]
        assert not lines(ax, "sr1Net", "--")
    assert "moment of overfitting, each seed" in legend(figures_sparsity.entropies(runs))
    assert not any(
        "moment" in text
        for text in legend(figures_sparsity.entropies(frame(cell({"sr1Net": 30.0}))))
    )


def test_each_seed_has_a_moment_of_overfitting_of_its_own():
    later = {"vanillaNet": {"loss": lambda epoch: rising(epoch - 4)}}
    runs = frame(
        cell({"vanillaNet": 30.0}, seeds=[0]), cell({"vanillaNet": 30.0}, seeds=[1], over=later)
    )
    (ax,) = figures_sparsity.validation_losses(runs).axes
    assert [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "o"] == [[8], [12]]
    for ax in figures_sparsity.entropies(runs).axes:
        assert [line.get_xdata()[0] for line in lines(ax, "vanillaNet", "--")] == [8, 12]


def test_the_line_is_the_mean_over_seeds_and_the_band_their_range():
    over = {"sr1Net": {"fc1": 0.5}}
    runs = frame(
        cell({"sr1Net": 30.0}, seeds=[0], over=over),
        cell({"sr1Net": 30.0}, seeds=[1], over={"sr1Net": {"fc1": 0.7}}),
    )
    (ax,) = figures_sparsity.entropies(runs, layers=["fc1"]).axes
    (line,) = lines(ax, "sr1Net")
    assert list(line.get_xdata()) == list(range(1, 21))
    assert line.get_ydata() == pytest.approx(0.6 * np.log(64))
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert [band.min(), band.max()] == pytest.approx([0.5 * np.log(64), 0.7 * np.log(64)])
    assert "2 seeds" in ax.figure.get_suptitle() and HUNDRED in ax.figure.get_suptitle()


def test_lenet_and_alexnet_are_drawn_by_what_they_are_called():
    for network, name in (("lenet", "LeNet"), ("alexnet", "AlexNet")):
        runs = frame(pair(network, 20.0, 21.0)).assign(network=lambda rows: rows.variant)
        fig = drawn(figures_sparsity.validation_losses(runs))
        assert [f"{name}", f"{name}+sr"] == list(legend(fig))[:2] and COLOURS[name] != COLOURS[
            f"{name}+sr"
        ]
        assert fig.axes[0].get_title().startswith(f"{HUNDRED}, SGD")


@pytest.mark.parametrize("draw", [figures_sparsity.entropies, figures_sparsity.correlations])
def test_what_no_run_measured_is_not_drawn(draw):
    with pytest.raises(ValueError, match="nothing to draw: no run measured it"):
        draw(frame(cell(ALL, measured=False)))


# ---- Tables 2 and 3


@pytest.mark.parametrize("name", ["sparsity_table2", "sparsity_table3"])
def test_a_table_is_drawn_with_a_panel_a_cell_measured_and_published(name):
    table = tables.sparsity_beside_published(name, paper(seeds=[0, 1], measured=False))
    fig = drawn(figures_sparsity.best_beside_paper(table))
    assert len(fig.axes) == {"sparsity_table2": 6, "sparsity_table3": 3}[name]
    for ax in fig.axes:
        (published,) = [line for line in ax.lines if line.get_marker() == "x"]
        assert len(published.get_xdata()) == {"sparsity_table2": 6, "sparsity_table3": 4}[name]
        measured = [line for line in ax.lines if line.get_marker() == "o"]
        assert sorted(line.get_xdata()[0] for line in measured) == pytest.approx(
            sorted(published.get_xdata()), abs=0.01
        )
        assert ax.get_xlabel() == "best accuracy (%)" and "made, n = 2" in ax.get_title()
    assert any(label.startswith("measured") for label in legend(fig)) and "published" in legend(fig)


def table2(runs, dataset):
    """The panels of one data set by title."""
    table = tables.sparsity_beside_published("sparsity_table2", runs)
    fig = drawn(figures_sparsity.best_beside_paper(table[table.dataset == dataset]))
    return fig, {ax.get_title(): ax for ax in fig.axes}


def test_a_table_without_runs_is_drawn_in_the_order_of_the_paper():
    _, panels = table2(pd.DataFrame(), "cifar100")
    names = ("size s, SGD", "size m, SGD", "size xxl, Adam", "size xxl, SGD")
    assert list(panels) == [f"cifar100, {name}\nnot run" for name in names]


def test_a_diverged_network_has_the_word_in_place_of_a_mark():
    _, panels = table2(cell(FEW, dataset="cifar100", diverged={("sr1Net", 1): 4}), "cifar100")
    ax = panels["cifar100, size s, SGD\nmade, n = 3"]
    assert [(text.get_text(), text.get_position()[1]) for text in ax.texts] == [
        ("diverged", VARIANTS.index("sr1Net"))
    ]


def test_two_profiles_have_a_mark_each():
    made = [
        cell(FEW, dataset="digits", profile="lite"),
        cell(FEW, dataset="digits", profile="paper", seeds=[0]),
    ]
    fig, panels = table2(pd.concat(made, ignore_index=True), "digits")
    (ax,) = panels.values()
    assert list(panels) == ["digits, size s, SGD\nlite, n = 3, paper, n = 1"]
    assert {line.get_marker() for line in ax.lines if line.get_marker() in "osD"} == {"o", "s"}
    assert [label.split(" (")[0] for label in legend(fig)] == [
        "published",
        "measured, lite",
        "measured, paper",
    ]
