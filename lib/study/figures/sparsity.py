"""Figures of the targeted-sparsity paper, drawn from tidy frames.

One colour a network throughout.
"""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib import measures, models
from lib.study import tables
from lib.study.experiments import VARIANTS

# blue, green, orange, red, pink, grey: dropout and batch norm as in the AL2 paper's figures
# (`lib.study.figures.COLOURS`)
COLOURS = dict(
    zip(VARIANTS, (sns.color_palette("colorblind")[k] for k in (0, 2, 1, 3, 4, 7)), strict=True)
)
# LeNet and AlexNet are never drawn beside the ConvNets: without and with SparsityReg they have
# vanilla's and sr1's colours
COLOURS |= {
    f"{name}{sr}": COLOURS["sr1Net" if sr else "vanillaNet"]
    for name in ("LeNet", "AlexNet")
    for sr in ("", "+sr")
}


def validation_losses(runs: pd.DataFrame) -> Figure:
    """Validation loss against epochs, one panel per data set, size and optimiser (Figures 3 and 6).

    Losses are smoothed, with penalties left out.

    The line is the mean over seeds of the curves smoothed with σ = 2 epochs, the band their range;
    a dot marks the moment of overfitting of each seed that has one, on its own curve.

    Args:
        runs: as `lib.study.tables.sparsity_runs` gives them.
    """
    panels = list(runs.groupby(["profile", "dataset", "size", "optimizer"], sort=False))
    fig, axes = _grid(len(panels), 3.6, 3.0)
    for ax, ((profile, dataset, size, optimizer), panel) in zip(axes, panels, strict=True):
        for network, own in _by_network(panel):
            losses = _curves(own, "test_cross_entropy")
            if losses.empty:  # every seed diverged in its first epoch
                continue
            curves = losses.apply(measures.smoothed, axis=0, result_type="broadcast")
            _line(ax, curves, COLOURS[network])
            for seed, moment in _moments(losses).items():
                ax.plot(
                    moment, curves[seed][moment], "o", color=COLOURS[network], ms=6, mec="white"
                )
        ax.set_title(f"{_panel_name(dataset, size, optimizer)}\n{profile}, {_seeds(panel)}")
        ax.set(xlabel="epoch", ylabel="validation loss (nats)")
        ax.xaxis.get_major_locator().set_params(integer=True)
    marked = any(line.get_marker() == "o" for ax in axes for line in ax.lines)
    _legend(fig, runs, "moment of overfitting, each seed" if marked else "")
    return fig


def entropies(runs: pd.DataFrame, layers: Sequence[str] = ()) -> Figure:
    """Mean entropy of a layer's activation vectors over training, one panel per layer (Fig. 5).

    The line is the mean over seeds, the band their range, from before training (epoch 0) on; a
    dashed vertical line is the moment of overfitting of each seed that has one; grey dots: ln D.

    Args:
        runs: one profile, data set, size and optimiser, as `lib.study.tables.sparsity_runs` gives
            them.
        layers: which; none given: all that were measured.
    """
    layers = list(layers) or layers_measured(runs, "entropy")
    fig, axes = _grid(len(layers), 3.0, 2.7)
    marked = False
    for ax, layer in zip(axes, layers, strict=True):
        for network, own in _by_network(runs):
            curves = _curves(own, f"entropy {layer}")
            if curves.empty:
                continue
            _line(ax, curves, COLOURS[network])
            for moment in _moments(_curves(own, "test_cross_entropy")).values():
                ax.axvline(moment, color=COLOURS[network], lw=1.2, ls="--")
                marked = True
        ax.set_title(layer)
        if size := runs["size"].iloc[0]:  # a ConvNet
            highest = math.log(models.convnet_filters(size)[layer])
            ax.axhline(highest, color="0.3", lw=1, ls=":")
            ax.set_ylim(0, 1.05 * highest)  # the whole scale: a fall looks as large as it is
        ax.set(xlabel="epoch", ylabel="mean entropy (nats)")
        ax.xaxis.get_major_locator().set_params(integer=True)
    _title(fig, runs)
    _legend(fig, runs, "moment of overfitting, each seed" if marked else "", vertical=True)
    return fig


def correlations(runs: pd.DataFrame) -> Figure:
    """Root mean square of the filters' correlations over training, one panel per layer.

    It is Figures 7 and A.2 in one number an epoch.
    """
    layers = layers_measured(runs, "correlation")
    fig, axes = _grid(len(layers), 3.0, 2.7)
    for ax, layer in zip(axes, layers, strict=True):
        for network, own in _by_network(runs):
            curves = _curves(own, f"correlation {layer}")
            if curves.empty:
                continue
            _line(ax, curves, COLOURS[network])
        ax.set_title(layer)
        ax.set(xlabel="epoch", ylabel="rms correlation", ylim=(0, None))
        ax.xaxis.get_major_locator().set_params(integer=True)
    _title(fig, runs)
    _legend(fig, runs)
    return fig


def layers_measured(runs: pd.DataFrame, what: str) -> list[str]:
    """The layers of which any run measured `what`, "entropy" or "correlation".

    Convolutions come first.
    """
    names = [
        c.removeprefix(f"{what} ")
        for c in runs
        if c.startswith(f"{what} ") and runs[c].notna().any()
    ]
    # frames of several networks mix their columns
    return sorted(names, key=lambda name: (not name.startswith("conv"), name))


def best_beside_paper(table: pd.DataFrame) -> Figure:
    """Best accuracies of Table 2 or 3 in %, measured and published.

    Measured: a bar ± standard deviation; published: crosses.

    A mark for each profile and reading of SparsityReg.

    One panel per cell of the table; a network of which a run diverged has that word in place of its
    mark.

    Args:
        table: as `lib.study.tables.sparsity_beside_published` gives it.
    """
    table = table.copy()
    if "regularized" in table:  # Table 3
        names = table.network + table.regularized.map({True: "+sr", False: ""})
        order = ["LeNet", "LeNet+sr", "AlexNet", "AlexNet+sr"]
        groups = ["dataset"]
    else:
        names = table.network
        order = list(VARIANTS)
        groups = ["dataset", "size", "optimizer"]
    table["name"] = names
    table["series"] = table.profile
    if "sum" in set(table.reading):  # the mean is what stands alone otherwise
        table["series"] += table.reading.map({"sum": ", SparsityReg by sum"}).fillna(
            ", SparsityReg by mean"
        )
    panels = sorted(
        table.groupby(groups),
        key=lambda panel: [panel[0][0], *map(tables.SIZES.index, panel[0][1:2]), *panel[0][2:]],
    )
    fig, axes = _grid(len(panels), 3.4, 2.6)
    # inches, between a panel and the next one's names
    fig.set_layout_engine("constrained", w_pad=0.12)
    place = {name: k for k, name in enumerate(order)}
    marks = dict(zip(table.series.dropna().unique(), "osD^v", strict=False))
    for ax, (keys, cell) in zip(axes, panels, strict=True):
        paper = cell[cell.published.notna()].drop_duplicates("name")
        ax.plot(
            100 * paper.published, paper.name.map(place), "x", color="0.2", ms=7, mew=1.8, zorder=3
        )
        ax.locator_params(axis="x", nbins=5)
        own = cell[cell.measured.notna()]
        for row in own.itertuples(index=False):
            colour, y = COLOURS[row.name], place[row.name]
            if row.measured == tables.DIVERGED:
                ax.text(
                    0.02,
                    y,
                    tables.DIVERGED,
                    color=colour,
                    va="center",
                    transform=ax.get_yaxis_transform(),
                )
                continue
            mark = marks[row.series]
            spread = 0 if pd.isna(row.sd) else row.sd
            # of one network one below the other
            y += 0.3 * list(marks).index(row.series) / len(marks)
            ax.errorbar(
                100 * float(row.measured), y, xerr=100 * spread, fmt=mark, color=colour, capsize=3
            )
        profiles = (
            ", ".join(f"{p}, n = {int(rows.n.min())}" for p, rows in own.groupby("profile"))
            or "not run"
        )
        ax.set_title(f"{_panel_name(*keys)}\n{profiles}")
        ax.set(
            xlabel="best accuracy (%)",
            yticks=range(len(order)),
            yticklabels=order,
            ylim=(len(order) - 0.5, -0.5),
        )
    handles = [plt.Line2D([], [], color="0.2", marker="x", ls="", label="published")]
    for profile, mark in (marks or {"": "o"}).items():
        label = (
            f"measured, {profile} (mean ± standard deviation)"
            if len(marks) > 1
            else "measured (mean ± standard deviation)"
        )
        handles.append(plt.Line2D([], [], color="0.2", marker=mark, ls="", label=label))
    fig.legend(
        handles=handles, loc="outside lower center", ncols=1 if len(marks) > 1 else 2, frameon=False
    )
    return fig


def _moments(losses: pd.DataFrame) -> dict[int, int]:
    """The moment of overfitting of each seed that has one.

    From validation losses with one column per seed.
    """
    found = {seed: measures.overfitting_onset(losses[seed]) for seed in losses}
    return {seed: moment for seed, moment in found.items() if moment is not None}


def _curves(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """One column per seed that measured it, over the epochs that all of these have.

    It is empty where there are none.
    """
    there = runs[runs.epoch.notna() & runs[column].notna()] if column in runs else runs[:0]
    return (
        there.pivot(index="epoch", columns="seed", values=column).dropna()
        if len(there)
        else pd.DataFrame()
    )


def _line(ax: plt.Axes, curves: pd.DataFrame, colour) -> None:
    """Mean and range over seeds, a column each."""
    ax.plot(curves.index, curves.mean(axis=1), color=colour, lw=1.6)
    ax.fill_between(
        curves.index, curves.min(axis=1), curves.max(axis=1), color=colour, alpha=0.2, lw=0
    )


def _title(fig: Figure, runs: pd.DataFrame) -> None:
    first = runs.iloc[0]
    name = _panel_name(first.dataset, first["size"], first.optimizer)
    fig.suptitle(f"{name}, profile {first.profile}, {_seeds(runs)}", fontsize="medium")


def _by_network(runs: pd.DataFrame):
    present = set(runs.network)
    return [(name, runs[runs.network == name]) for name in COLOURS if name in present]


def _panel_name(dataset: str, size: str = "", optimizer: str = "") -> str:
    words = [dataset]
    if size:
        words.append(f"size {size}")
    if optimizer:
        words.append({"sgd": "SGD", "adam": "Adam"}.get(optimizer, optimizer))
    return ", ".join(words)


def _seeds(runs: pd.DataFrame) -> str:
    n = runs.groupby("network").seed.nunique().min()
    return f"{n} seeds: mean and range" if n > 1 else "one seed"


def _grid(panels: int, width: float, height: float) -> tuple[Figure, list[plt.Axes]]:
    if not panels:
        raise ValueError("there is nothing to draw: no run measured it")
    columns = min(3, panels)
    rows = -(-panels // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(max(6.5, width * columns), height * rows + 0.4), squeeze=False
    )
    for ax in axes.flat[panels:]:
        ax.remove()
    return fig, list(axes.flat[:panels])


def _legend(fig: Figure, runs: pd.DataFrame, mark: str = "", vertical: bool = False) -> None:
    handles = [
        plt.Line2D([], [], color=COLOURS[name], label=name, lw=2) for name, _ in _by_network(runs)
    ]
    if mark:
        style = {"ls": "--", "lw": 1.2} if vertical else {"ls": "", "marker": "o"}
        handles.append(plt.Line2D([], [], color="0.3", label=mark, **style))
    fig.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False
    )
