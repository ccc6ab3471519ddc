"""Figures that several of the study's notebooks share, drawn from tidy frames.

One colour a baseline or network throughout; of the AL2 paper's solid with AL2, dashed without.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown
from matplotlib.figure import Figure

from lib import measures, models, plots
from lib.data import noise_floor
from lib.study import tables
from lib.study.experiments import VARIANTS
from lib.study.tables import BASELINES, of_reading, readings_in, regularisers_in

_PALETTE = sns.color_palette("colorblind")
COLOURS = dict(zip(BASELINES, _PALETTE, strict=False))
# blue, green, orange, red, pink, grey: dropout and batch norm as in the AL2 paper's figures
NETWORK_COLOURS = {name: _PALETTE[k] for name, k in zip(VARIANTS, (0, 2, 1, 3, 4, 7), strict=True)}
# LeNet and AlexNet are never drawn beside the ConvNets: without and with SparsityReg they have
# vanilla's and sr1's colours
NETWORK_COLOURS |= {
    f"{name}{sr}": NETWORK_COLOURS["sr1Net" if sr else "vanillaNet"]
    for name in ("LeNet", "AlexNet")
    for sr in ("", "+sr")
}
AXES = {
    "test_accuracy": "test accuracy (%)",
    "train_accuracy": "training accuracy (%),\ncorrupted labels",
    "cross_entropy": "training\ncross-entropy (nats)",
    "activation_l2": "Lᵣ = mean of φ²",
    "ablation_auc": "area under the\nablation curve (%)",
    "validation_accuracy": "validation accuracy (%),\ncorrupted labels",
}


def shown(make: Callable[..., Any], *arguments: Any) -> Any:
    """What `make` gives, a figure as a small picture; in words why it raises `NothingToShow`."""
    try:
        made = make(*arguments)
    except tables.NothingToShow as reason:
        return Markdown(str(reason))
    return plots.small_png(made) if isinstance(made, Figure) else made


def require_one_cell(frame: pd.DataFrame, keys: Sequence[str] = ("dataset", "corruption")) -> None:
    """ValueError unless the columns `keys` have one combination of values."""
    cells = frame[list(keys)].drop_duplicates()
    if len(cells) != 1:
        raise ValueError(f"a figure shows one {' and '.join(keys)}, not {np.array(cells).tolist()}")


def draw_reference(ax: plt.Axes, metric: str, corruption: float, classes: int) -> None:
    """What a metric of Table 1 is read against, dotted: chance, noise floor; a log axis of L_r."""
    references = {"test_accuracy": 100 / classes, "cross_entropy": noise_floor(corruption, classes)}
    if metric in references:
        ax.axhline(references[metric], color="0.3", lw=1, ls=":")
    if metric == "activation_l2":
        ax.set_yscale("log")


def dashes_of(frame: pd.DataFrame) -> dict[str, Any]:
    """seaborn's dashes of each regulariser of Table 1: none dashed, AL2 solid, then others."""
    dashes = [(3.7, 1.6), "", (1, 1.6), (6.4, 1.6, 1, 1.6), (6, 1, 1, 1, 1, 1), (1, 3), (8, 3)]
    return dict(zip(regularisers_in(frame), cycle(dashes)))


def line_style(dashes: Any) -> Any:
    """matplotlib's line style for seaborn's dashes."""
    return (0, dashes) if dashes else "-"


def al2_legend(
    fig: Figure, drawn_as: Mapping[str, Any], baselines: Sequence[str] = (), dotted: str = ""
) -> None:
    """The legend below a figure: a colour a baseline, a line style a regulariser, a dotted line."""
    lines = [_key(BASELINES[b], color=COLOURS[b], lw=3) for b in baselines]
    called = {"": "without AL2", "al2": "with AL2"}
    for name, dashes in drawn_as.items():
        label = called.get(name, f"with {name}")
        lines.append(_key(label, color="0.2", ls=line_style(dashes)))
    if dotted:
        lines.append(_key(dotted, color="0.3", ls=":", lw=1))
    _legend_below(fig, lines, len(lines))


def _key(label: str, **how: Any) -> plt.Line2D:
    return plt.Line2D([], [], label=label, **how)


def _legend_below(fig: Figure, handles: Sequence[plt.Line2D], columns: int) -> None:
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def beside_paper(table: pd.DataFrame, metric: str = "test_accuracy") -> Figure:
    """Measured against published over the paper's epochs, one panel per profile and data set.

    A line is the mean, a band ± standard deviation.

    Args:
        table: as `lib.study.tables.beside_published` gives it.
        metric: which of its metrics.
    """
    rows = table[table.metric == metric]
    drawn_as = dashes_of(rows)
    paper = rows[rows.published.notna()].drop_duplicates(["baseline", "regulariser", "epoch"])
    measured = rows[rows.measured.notna() & (rows.measured != tables.DIVERGED)]
    answered = list(measured.groupby(["profile", "dataset_measured", "corruption"], sort=False))
    # the sort is stable: profiles stay in their order
    answered.sort(key=lambda panel: panel[0][1:] != ("mnist", 0.75))
    panels = [(("published", "mnist", 0.75), paper), *answered]
    width = min(4, len(panels))
    height = -(-len(panels) // width)
    size = (max(7, 3 * width), 2.9 * height)
    fig, axes = plt.subplots(height, width, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, ((profile, dataset, corruption), own) in zip(axes.flat, panels, strict=False):
        title, column = "published", "published"
        if own is not paper:
            title, column = f"measured, profile {profile}, n = {int(own.n.min())}", "measured"
        for (baseline, regulariser), line in own.groupby(["baseline", "regulariser"]):
            line = line.sort_values("epoch")
            style = line_style(drawn_as[regulariser])
            mean = line[column].astype(float)
            sd = line.sd.astype(float).fillna(0) if column == "measured" else 0
            ax.plot(line.epoch, mean, color=COLOURS[baseline], ls=style, marker=".")
            band = {"color": COLOURS[baseline], "alpha": 0.15, "lw": 0}
            ax.fill_between(line.epoch, mean - sd, mean + sd, **band)
        ax.set_title(f"{title}\n{dataset}, {100 * corruption:.0f} %")
        ax.set_xlabel("epoch of the paper's 700")
        ax.xaxis.set_tick_params(labelbottom=True)  # also above a panel that was removed
    for ax in axes[:, 0]:
        ax.set_ylabel(AXES.get(metric, metric))
    drawn = set(paper.baseline) | set(measured.baseline)
    al2_legend(fig, drawn_as, [baseline for baseline in BASELINES if baseline in drawn])
    return fig


def validation_losses(runs: pd.DataFrame) -> Figure:
    """Validation loss against epochs, one panel per data set, size, optimiser and reading of
    SparsityReg (Figures 3 and 6).

    Penalties are left out. Thin lines are measured, a run each; the line is smoothed (σ = 2
    epochs), the mean over seeds, the band their range; a dot marks the moment of overfitting of
    each seed that has one, on its own curve.

    Args:
        runs: as `lib.study.tables.sparsity_runs` gives them.

    Raises:
        NothingToShow: for no runs.
    """
    runs = runs.sort_values("epoch", kind="stable").reset_index(drop=True)
    measured = runs[runs.test_cross_entropy.notna()].groupby(["profile", "id"])
    runs = runs.assign(smooth=measured.test_cross_entropy.transform(measures.smoothed))
    panels = [
        (*key, reading, of_reading(own, reading))
        for key, own in runs.groupby(["profile", "dataset", "size", "optimizer"], sort=False)
        for reading in readings_in(own)
    ]
    fig, axes = grid(len(panels), 3.6, 3.0)
    marked = False
    several = len(readings_in(runs)) > 1
    for ax, (profile, dataset, size, optimizer, reading, panel) in zip(axes, panels, strict=True):
        for (name, _), run in panel.groupby(["variant", "id"], sort=False):
            thin = {"color": NETWORK_COLOURS[name], "lw": 0.5, "alpha": 0.4}
            ax.plot(run.epoch, run.test_cross_entropy, **thin)
        plots.curves(panel, "smooth", ax, hue="variant", palette=NETWORK_COLOURS)
        for name, run, moment in _moments(panel):
            height = panel.smooth[(panel.id == run) & (panel.epoch == moment)]
            ax.plot(moment, height, "o", color=NETWORK_COLOURS[name], ms=6, mec="white")
            marked = True
        number = seeds(panel).partition(":")[0]  # what line and band are would not fit
        what = f"{profile}, {number}, smoothed; thin: raw"
        what += f"; {reading}" if several else ""
        ax.set_title(f"{panel_name(dataset, size, optimizer)}\n{what}")
        ax.set(xlabel="epoch", ylabel="validation loss (nats)")
        ax.xaxis.get_major_locator().set_params(integer=True)
    network_legend(fig, runs, "moment of overfitting, each seed" if marked else "")
    return fig


def entropies(runs: pd.DataFrame) -> Figure:
    """Mean entropy of a layer's activation vectors over training, one panel per layer and reading
    of SparsityReg (Fig. 5).

    The line is the mean over seeds, the band their range, from before training (epoch 0) on; a
    dashed vertical line is the moment of overfitting of each seed that has one; grey dots: ln D.

    Args:
        runs: one profile, data set, size and optimiser, as `lib.study.tables.sparsity_runs` gives
            them.

    Raises:
        NothingToShow: if no run measured it.
    """
    layers = layers_measured(runs, "entropy")
    readings = readings_in(runs)
    panels = [(reading, layer) for reading in readings for layer in layers]
    fig, axes = grid(len(panels), 3.0, 2.7)
    marked = "moment of overfitting, each seed" if _moments(runs) else ""
    for ax, (reading, layer) in zip(axes, panels, strict=True):
        own = of_reading(runs, reading)
        plots.curves(own, f"entropy {layer}", ax, hue="variant", palette=NETWORK_COLOURS)
        for name, _, moment in _moments(own):
            ax.axvline(moment, color=NETWORK_COLOURS[name], lw=1.2, ls="--")
        ax.set_title(f"{layer}, {reading}" if len(readings) > 1 else layer)
        if size := runs["size"].iloc[0]:  # a ConvNet
            highest = math.log(models.convnet_filters(size)[layer])
            ax.axhline(highest, color="0.3", lw=1, ls=":")
            ax.set_ylim(0, 1.05 * highest)  # the whole scale: a fall looks as large as it is
        else:
            ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
        ax.set(xlabel="epoch", ylabel="mean entropy (nats)")
        ax.xaxis.get_major_locator().set_params(integer=True)
    cell_title(fig, runs)
    network_legend(fig, runs, marked, vertical=True)
    return fig


def _moments(runs: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Variant, id and moment of overfitting (epoch) of each run that has one.

    A run that diverged has none, as in `lib.study.tables.overfitting`.
    """
    found = []
    for (name, run), own in runs[runs.diverged.isna()].groupby(["variant", "id"], sort=False):
        moment = measures.overfitting_onset(own.sort_values("epoch").test_cross_entropy.dropna())
        if moment is not None:
            found.append((name, run, moment))
    return found


def layers_measured(runs: pd.DataFrame, what: str) -> list[str]:
    """The layers, convolutions first, of which any run measured "entropy" or "correlation"."""
    columns = [c for c in runs if c.startswith(f"{what} ") and runs[c].notna().any()]
    names = [c.removeprefix(f"{what} ") for c in columns]
    # frames of several networks mix their columns
    return sorted(names, key=lambda name: (not name.startswith("conv"), name))


def best_beside_paper(table: pd.DataFrame) -> Figure:
    """Best accuracies of Table 2 or 3 in %, one panel per cell of the table.

    Published: crosses; measured: a mark for each profile and reading of SparsityReg, with a bar
    ± standard deviation, or the word for a network of which a run diverged.

    Args:
        table: as `lib.study.tables.sparsity_beside_published` gives it.
    """
    table = table.assign(name=table.network, series=table.profile)
    order = list(VARIANTS)
    groups = ["dataset", "size", "optimizer"]
    if "regularized" in table:  # Table 3
        table["name"] += table.regularized.map({True: "+sr", False: ""})
        order = ["LeNet", "LeNet+sr", "AlexNet", "AlexNet+sr"]
        groups = ["dataset"]
    if "sum" in set(table.reading):  # the mean is what stands alone otherwise
        table["series"] += ", SparsityReg by " + table.reading.where(table.reading == "sum", "mean")
    panels = sorted(
        table.groupby(groups),
        key=lambda panel: [panel[0][0], *map(tables.SIZES.index, panel[0][1:2]), *panel[0][2:]],
    )
    fig, axes = grid(len(panels), 3.4, 2.6)
    # inches, between a panel and the next one's names
    fig.set_layout_engine("constrained", w_pad=0.12)
    place = {name: k for k, name in enumerate(order)}
    marks = dict(zip(table.series.dropna().unique(), "osD^v", strict=False))
    for ax, (keys, cell) in zip(axes, panels, strict=True):
        paper = cell[cell.published.notna()].drop_duplicates("name")
        cross = {"color": "0.2", "ms": 7, "mew": 1.8, "zorder": 3}
        ax.plot(100 * paper.published, paper.name.map(place), "x", **cross)
        ax.locator_params(axis="x", nbins=5)
        own = cell[cell.measured.notna()]
        for row in own.itertuples(index=False):
            colour, y = NETWORK_COLOURS[row.name], place[row.name]
            if row.measured == tables.DIVERGED:
                where = {"va": "center", "transform": ax.get_yaxis_transform()}
                ax.text(0.02, y, tables.DIVERGED, color=colour, **where)
                continue
            # of one network one below the other
            y += 0.3 * list(marks).index(row.series) / len(marks)
            spread = 0 if pd.isna(row.sd) else 100 * row.sd
            how = {"fmt": marks[row.series], "color": colour, "capsize": 3}
            ax.errorbar(100 * float(row.measured), y, xerr=spread, **how)
        profiles = [f"{p}, n = {int(rows.n.min())}" for p, rows in own.groupby("profile")]
        ax.set_title(f"{panel_name(*keys)}\n{', '.join(profiles) or 'published; not run here'}")
        ax.set_yticks(range(len(order)), order)
        ax.set(xlabel="best accuracy (%)", ylim=(len(order) - 0.5, -0.5))
    handles = [_key("published", color="0.2", marker="x", ls="")]
    several = len(marks) > 1
    for series, mark in (marks or {"": "o"}).items():
        label = f"measured{f', {series}' if several else ''} (mean ± standard deviation)"
        handles.append(_key(label, color="0.2", marker=mark, ls=""))
    _legend_below(fig, handles, 1 if several else 2)
    return fig


def cell_title(fig: Figure, runs: pd.DataFrame) -> None:
    """Above a figure of one profile, data set, size and optimiser: these, and how many seeds."""
    first = runs.iloc[0]
    name = panel_name(first.dataset, first["size"], first.optimizer)
    fig.suptitle(f"{name}, profile {first.profile}, {seeds(runs)}", fontsize="medium")


def panel_name(dataset: str, size: str = "", optimizer: str = "") -> str:
    """What a panel shows, in words; without size and optimiser where these are empty."""
    called = {"sgd": "SGD", "adam": "Adam"}.get(optimizer, optimizer)
    return ", ".join(filter(None, [dataset, size and f"size {size}", called]))


def seeds(runs: pd.DataFrame) -> str:
    """How many seeds the network with the fewest has, in words."""
    n = runs.groupby("variant").seed.nunique().min()
    return f"{n} seeds: mean and range" if n > 1 else "one seed"


def grid(panels: int, width: float, height: float) -> tuple[Figure, list[plt.Axes]]:
    """A figure of so many panels, at most three in a row; width and height of each in inches.

    Raises:
        NothingToShow: for no panel.
    """
    tables.require(range(panels), "run that has measured it")
    columns = min(3, panels)
    rows = -(-panels // columns)
    size = (max(6.5, width * columns), height * rows + 0.4)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax in axes.flat[panels:]:
        ax.remove()
    return fig, list(axes.flat[:panels])


def network_legend(fig: Figure, runs: pd.DataFrame, mark: str = "", vertical: bool = False) -> None:
    """The legend below a figure: a colour a network, LeNet and AlexNet with SparsityReg apart.

    Args:
        fig: of the runs.
        runs: as `lib.study.tables.sparsity_runs` gives them.
        mark: what a dot means, or, with `vertical`, a dashed line; empty: there is none.
    """
    present = set(runs.variant)
    drawn = [name for name in NETWORK_COLOURS if name in present]
    handles = [_key(name, color=NETWORK_COLOURS[name], lw=2) for name in drawn]
    if mark:
        style = {"ls": "--", "lw": 1.2} if vertical else {"ls": "", "marker": "o"}
        handles.append(_key(mark, color="0.3", **style))
    _legend_below(fig, handles, min(4, len(handles)))
