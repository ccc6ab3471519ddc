"""Every plot of the papers, drawn from tidy frames.

One colour a baseline throughout; solid with AL2, dashed without.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.data import noise_floor
from lib.study.tables import (
    AL2_TABLES,
    BASELINES,
    RELABELLED,
    regularisers_in,
    with_regulariser,
)

COLOURS = dict(zip(BASELINES, sns.color_palette("colorblind", len(BASELINES)), strict=True))
_RELABELLED_COLOURS = dict(
    zip(
        ("al2", "bare", "clean"),
        (sns.color_palette("colorblind")[k] for k in (4, 5, 7)),
        strict=True,
    )
)
# networks of the relabelling: legend, colour, dashes
RELABELLING = {
    labels: (
        legend,
        _RELABELLED_COLOURS.get(labels, COLOURS["bare"]),
        "-" if labels == "teacher" else "--",
    )
    for labels, (legend, _) in RELABELLED.items()
}
AXES = {
    "test_accuracy": "test accuracy (%)",
    "train_accuracy": "training accuracy (%),\ncorrupted labels",
    "cross_entropy": "training\ncross-entropy (nats)",
    "activation_l2": "Lᵣ = mean of φ²",
    "ablation_auc": "area under the\nablation curve (%)",
    "validation_accuracy": "validation accuracy (%),\ncorrupted labels",
}


def require_one_cell(frame: pd.DataFrame, keys: Sequence[str] = ("dataset", "corruption")) -> None:
    """ValueError unless the columns `keys` have one combination of values.

    That is what one figure can show.
    """
    cells = frame[list(keys)].drop_duplicates()
    if len(cells) != 1:
        raise ValueError(f"a figure shows one {' and '.join(keys)}, not {np.array(cells).tolist()}")


def draw_reference(ax: plt.Axes, metric: str, corruption: float, classes: int) -> None:
    """What a metric of Table 1 is read against, dotted: chance, or the noise floor.

    L_r falls by decades: a log axis.
    """
    references = {"test_accuracy": 100 / classes, "cross_entropy": noise_floor(corruption, classes)}
    if metric in references:
        ax.axhline(references[metric], color="0.3", lw=1, ls=":")
    if metric == "activation_l2":
        ax.set_yscale("log")


def dashes_of(frame: pd.DataFrame) -> dict[str, Any]:
    """A line style for each regulariser of Table 1: dashed for none, solid for AL2, then others."""
    styles = ["--", "-", ":", "-.", (0, (6, 1, 1, 1)), (0, (1, 3)), (0, (8, 3))]
    return dict(zip(regularisers_in(frame), cycle(styles)))


def training_curves(frame: pd.DataFrame) -> Figure:
    """Table 1's metrics against epochs, one column per baseline, a line style a regulariser.

    A line is the mean over seeds, a band the range.

    Args:
        frame: runs of one data set and one corruption level, as `lib.store.load` gives them.
    """
    require_one_cell(frame)
    frame = with_regulariser(frame)
    drawn_as = dashes_of(frame)
    metrics = AL2_TABLES["al2_table1"]
    corruption = frame.corruption.iloc[0]
    classes = int(frame.num_classes.iloc[0])
    seeds = frame.seed.nunique()
    baselines = [b for b in BASELINES if b in set(frame.baseline)]
    fig, axes = plt.subplots(
        len(metrics),
        len(baselines),
        # title and legend need some width
        figsize=(max(2.9 * len(baselines), 6), 2.3 * len(metrics)),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for column, baseline in enumerate(baselines):
        axes[0, column].set_title(BASELINES[baseline])
        for row, metric in enumerate(metrics):
            ax = axes[row, column]
            for regulariser, dashes in drawn_as.items():
                runs = frame[(frame.baseline == baseline) & (frame.regulariser == regulariser)]
                _line(ax, runs, metric, COLOURS[baseline], dashes)
            draw_reference(ax, metric, corruption, classes)
            ax.set_ylabel(AXES[metric] if column == 0 else "")
        axes[-1, column].set_xlabel("epoch")
    _al2_legend(fig, dotted="noise floor; chance", drawn_as=drawn_as)
    band = f", {seeds} seeds: mean and range" if seeds > 1 else ", one seed"
    fig.suptitle(f"{frame.dataset.iloc[0]}, {100 * corruption:.0f} % of the labels corrupted{band}")
    return fig


def relabelling_curves(frame: pd.DataFrame) -> Figure:
    """Test accuracy against epochs of a bare network on four kinds of labels.

    And of the AL2 network that predicts one kind.

    Mean over seeds, a band their range; dashed without AL2, as everywhere.

    Args:
        frame: one profile, data set and corruption level beside the clean labels, as
            `lib.study.tables.relabelling_runs` gives it.
    """
    noisy = frame[frame.corruption > 0]
    require_one_cell(noisy)
    corruption = noisy.corruption.iloc[0]
    seeds = frame.seed.nunique()
    fig, ax = plt.subplots(figsize=(7.5, 4.2))
    shown = [labels for labels in RELABELLING if labels in set(frame.labels)]
    for labels in shown:
        _line(ax, frame[frame.labels == labels], "test_accuracy", *RELABELLING[labels][1:])
    ax.axhline(100 / int(frame.num_classes.iloc[0]), color="0.3", lw=1, ls=":")
    ax.set(xlabel="epoch", ylabel=AXES["test_accuracy"], ylim=(0, 101))
    lines = [
        plt.Line2D([], [], color=colour, ls=dashes, label=label)
        for label, colour, dashes in map(RELABELLING.get, shown)
    ]
    lines.append(plt.Line2D([], [], color="0.3", ls=":", lw=1, label="chance"))
    fig.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)
    band = f"{seeds} seeds: mean and range" if seeds > 1 else "one seed"
    fig.suptitle(
        f"{frame.dataset.iloc[0]}, {100 * corruption:.0f} % of the noisy labels wrong, {band}"
    )
    return fig


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
    measured = rows[rows.measured.notna() & (rows.measured != "diverged")]
    cells = measured[["profile", "dataset_measured", "corruption"]].drop_duplicates()
    # the sort is stable: profiles stay in their order
    answered = sorted(
        cells.itertuples(index=False, name=None), key=lambda cell: cell[1:] != ("mnist", 0.75)
    )
    panels = [("published", "mnist", 0.75), *answered]
    width = min(4, len(panels))
    height = -(-len(panels) // width)
    fig, axes = plt.subplots(
        height,
        width,
        figsize=(max(7, 3 * width), 2.9 * height),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, (profile, dataset, corruption) in zip(axes.flat, panels, strict=False):
        if profile == "published":
            own = paper
            column = "published"
        else:
            own = measured[(measured.profile == profile) & (measured.dataset == dataset)]
            column = "measured"
            own = own[own.corruption == corruption]
        for (baseline, regulariser), line in own.groupby(["baseline", "regulariser"]):
            line = line.sort_values("epoch")
            dashes = drawn_as[regulariser]
            mean = line[column].astype(float)
            sd = line.sd.astype(float).fillna(0) if column == "measured" else 0
            ax.plot(line.epoch, mean, color=COLOURS[baseline], ls=dashes, marker=".")
            ax.fill_between(
                line.epoch, mean - sd, mean + sd, color=COLOURS[baseline], alpha=0.15, lw=0
            )
        title = (
            profile
            if profile == "published"
            else f"measured, profile {profile}, n = {int(own.n.min())}"
        )
        ax.set_title(f"{title}\n{dataset}, {100 * corruption:.0f} %")
        ax.set_xlabel("epoch of the paper's 700")
        ax.xaxis.set_tick_params(labelbottom=True)  # also above a panel that was removed
    for ax in axes[:, 0]:
        ax.set_ylabel(AXES.get(metric, metric))
    drawn = set(paper.baseline) | set(measured.baseline)
    baselines = [baseline for baseline in BASELINES if baseline in drawn]
    _al2_legend(fig, baselines=baselines, drawn_as=drawn_as)
    return fig


def _line(
    ax: plt.Axes, runs: pd.DataFrame, metric: str, colour, dashes: str, marker: str = ""
) -> None:
    if runs.empty or metric not in runs:
        return
    over_seeds = runs.groupby("epoch")[metric].agg(["mean", "min", "max"]).dropna()
    ax.plot(
        over_seeds.index, over_seeds["mean"], color=colour, ls=dashes, lw=1.6, marker=marker, ms=4
    )
    ax.fill_between(
        over_seeds.index, over_seeds["min"], over_seeds["max"], color=colour, alpha=0.2, lw=0
    )


def _al2_legend(
    fig: Figure,
    dotted: str = "",
    baselines: Sequence[str] = (),
    drawn_as: Mapping[str, Any] | None = None,
) -> None:
    lines = [plt.Line2D([], [], color=COLOURS[b], label=BASELINES[b], lw=3) for b in baselines]
    called = {"": "without AL2", "al2": "with AL2"}
    for name, dashes in (drawn_as or {"": "--", "al2": "-"}).items():
        label = called.get(name, f"with {name}")
        lines.append(plt.Line2D([], [], color="0.2", ls=dashes, label=label))
    if dotted:
        lines.append(plt.Line2D([], [], color="0.3", ls=":", lw=1, label=dotted))
    fig.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
