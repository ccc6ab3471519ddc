"""Figures of notebook 12: canonical correlations of φ with its start.

And the controls that the AL2 paper's Figure 1 lacks.

The figure of the paper itself is `lib.study.figures.canonical_correlations`.
"""

from collections.abc import Mapping
from itertools import cycle, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from lib.measures import Similarities
from lib.study.figures import COLOURS
from lib.study.tables.cca import differences, dropouts

Curves = Mapping[str, Tensor | np.ndarray]
REFERENCE = "0.35"  # grey: what nobody trained
DIFFERENCES = {  # in what two networks differ: colour, dashes
    "AL2": ("0", "-"),
    "seed, without AL2": ("0.55", "--"),
    "seed, with AL2": ("0.55", "-"),
}
# pink, brown, light blue, grey: no network's colours
COMPARED = [sns.color_palette("colorblind")[k] for k in (4, 5, 9, 7)]
COURSES = {
    "mean_cca init": "mean CCA",
    "svcca init": "SVCCA",
    "pwcca init": "PWCCA",
    "dead": "dead channels of φ",
}


def by_channel_and_direction(channels: Curves, directions: Curves) -> Figure:
    """What the same features have in common with a start.

    Left channel by channel, right by canonical correlations.

    Args:
        channels: |correlations|, descending, by the name of what is compared with the start; their
            number may differ.
        directions: canonical correlations, descending, by the same names.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for name, colour in zip(channels, cycle(COMPARED), strict=False):
        for ax, values in zip(axes, (channels[name], directions[name]), strict=True):
            ax.plot(range(1, len(values) + 1), values, color=colour, label=name)
    axes[0].set(
        title="channel by channel",
        xlabel="channel, the best first",
        ylabel="|correlation| with the start",
    )
    axes[1].set(title="CCA", xlabel="canonical direction", ylabel="ρ", ylim=(0, 1.03))
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return fig


def curves(frame: pd.DataFrame, reference: Similarities) -> Figure:
    """Mean CCA, SVCCA and PWCCA of φ with its start, against epochs.

    And the number of dead channels.

    One row per dropout, the largest first; one line per seed, solid with AL2, dashed without.

    Args:
        frame: runs that differ in dropout, AL2 and seed alone, as `lib.store.load` gives them, with
            the column dead (channels).
        reference: another start with this one, a dotted line.

    Raises:
        ValueError: if there is no run, or runs differ in something else.
    """
    rows = dropouts(frame)
    panels = {"sharex": True, "sharey": "col", "squeeze": False}
    fig, axes = plt.subplots(len(rows), len(COURSES), figsize=(11, 2.3 * len(rows) + 0.7), **panels)
    for row, dropout in zip(axes, rows, strict=True):
        for ax, column in zip(row, COURSES, strict=True):
            for (al2, _), course in frame[frame.dropout == dropout].groupby(["al2", "seed"]):
                ax.plot(
                    course.epoch,
                    course[column],
                    color=_colour(dropout),
                    ls="-" if al2 else "--",
                    lw=1.4,
                )
            if column != "dead":
                ax.axhline(
                    getattr(reference, column.removesuffix(" init")),
                    color=REFERENCE,
                    ls=":",
                    lw=1.4,
                )
                ax.set_ylim(0, 1)
        row[0].set_ylabel(f"dropout {dropout:g}\nsimilarity to the start")
    for ax, name in zip(axes[0], COURSES.values(), strict=True):
        ax.set_title(name)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    axes[0, -1].yaxis.get_major_locator().set_params(integer=True)
    lines = {
        "without AL2": ("0.2", "--"),
        "with AL2": ("0.2", "-"),
        "another start": (REFERENCE, ":"),
    }
    _legend_of_lines(fig, lines)
    fig.suptitle(
        f"{frame.dataset.iloc[0]}, {100 * frame.corruption.iloc[0]:.0f} % of the labels corrupted, "
        "a line a seed"
    )
    return fig


def difference_curves(frame: pd.DataFrame) -> Figure:
    """The `differences` of such a frame against epochs, one panel per dropout.

    Those by AL2 are one line per seed, those by another seed grey.
    """
    apart = differences(frame)
    panels = dropouts(frame)
    fig, axes = plt.subplots(1, len(panels), figsize=(8.8, 3.4), sharey=True, squeeze=False)
    for ax, network in zip(axes[0], [f"dropout {dropout:g}" for dropout in panels], strict=True):
        for (by, _), curve in apart[apart.network == network].groupby(
            ["by", "differing in"], sort=False
        ):
            colour, dashes = DIFFERENCES[by]
            ax.plot(curve.epoch, curve.points, color=colour, ls=dashes, lw=1.4)
        ax.set(title=network, xlabel="epoch")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("|difference| in mean CCA\nwith the start (points)")
    fig.suptitle(
        f"{frame.dataset.iloc[0]}, {100 * frame.corruption.iloc[0]:.0f} % of the labels corrupted"
    )
    labels = ("by AL2 (a line a seed)", "by another seed, without AL2", "by another seed, with AL2")
    _legend_of_lines(fig, dict(zip(labels, DIFFERENCES.values(), strict=True)))
    return fig


def between_networks(tables: Mapping[float, pd.DataFrame], title: str = "") -> Figure:
    """The mean CCA of each two networks as a triangle of numbers, one panel per dropout.

    Args:
        tables: by dropout: mean CCA [networks, networks], symmetric, of two networks at least, with
            their names on both sides. A NaN, where a network has no live channel, is an empty cell.
        title: of the figure.
    """
    fig, axes = plt.subplots(1, len(tables), figsize=(4.4 * len(tables) + 0.6, 3.8), squeeze=False)
    for ax, (dropout, table) in zip(axes[0], tables.items(), strict=True):
        upper = np.triu(np.ones(table.shape, bool))
        shown = {
            "annot": True,
            "fmt": ".2f",
            "cmap": "crest",
            "vmin": 0,
            "vmax": 1,
            "square": True,
            "cbar": ax is axes[0, -1],
        }
        sns.heatmap(table.mask(upper).iloc[1:, :-1], ax=ax, cbar_kws={"label": "mean CCA"}, **shown)
        ax.set(title=f"dropout {dropout:g}")
        ax.grid(False)
        ax.tick_params("y", rotation=0)
        ax.tick_params("x", rotation=45)
    fig.suptitle(title)
    return fig


def mean_between(table: pd.DataFrame, one: str, other: str, *, same_seed: bool) -> float:
    """The mean CCA of networks of two kinds (`start`, `plain`, `AL2`).

    It is over all pairs of the same seed, or of different ones.

    Args:
        table: mean CCA as in `between_networks`, its names a kind and a seed: `AL2 0`.
        one: a kind.
        other: a kind, possibly the same.
        same_seed: whether the two networks of a pair have one seed or two.

    Returns:
        NaN where there is no such pair, or one without a live channel.
    """
    ones, others = (
        [name for name in table if name.startswith(f"{kind} ")] for kind in (one, other)
    )
    pairs = [
        (a, b)
        for a, b in product(ones, others)
        if a != b and (a.split()[-1] == b.split()[-1]) == same_seed
    ]
    return float(np.mean([table.loc[pair] for pair in pairs])) if pairs else float("nan")


def made_sparse(controls: Mapping[str, pd.DataFrame], trained: pd.DataFrame) -> Figure:
    """Mean CCA with the start against the share of φ that is zero.

    Lines are untrained features made sparse, dots are networks.

    Args:
        controls: by name: columns zeros (%) and `mean CCA`.
        trained: one row per network: dropout, al2, zeros (%), `mean CCA`. Dots are filled with AL2.
    """
    fig, ax = plt.subplots(figsize=(8, 3.6))
    for (name, line), dashes in zip(controls.items(), ("--", ":", "-."), strict=False):
        ax.plot(line.zeros, line["mean CCA"], color=REFERENCE, ls=dashes, label=name)
    for dropout, al2, zeros, mean_cca in trained[
        ["dropout", "al2", "zeros", "mean CCA"]
    ].itertuples(index=False):
        ax.plot(
            zeros,
            mean_cca,
            "o",
            color=_colour(dropout),
            mfc=_colour(dropout) if al2 else "white",
            ms=7,
        )
    for dropout in sorted(trained.dropout.unique(), reverse=True):
        ax.plot(
            [],
            [],
            "o",
            color=_colour(dropout),
            mfc="white",
            label=f"trained, dropout {dropout:g}, without AL2",
        )
        ax.plot(
            [], [], "o", color=_colour(dropout), label=f"trained, dropout {dropout:g}, with AL2"
        )
    ax.set(xlabel="share of φ that is zero (%)", ylabel="mean CCA with the start", ylim=(0, 1.03))
    fig.legend(loc="outside right center", frameon=False)
    return fig


def _colour(dropout: float) -> tuple[float, float, float]:
    return COLOURS["dropout" if dropout else "bare"]


def _legend_of_lines(fig: Figure, lines: Mapping[str, tuple]) -> None:
    handles = [
        plt.Line2D([], [], color=colour, ls=dashes, label=name)
        for name, (colour, dashes) in lines.items()
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
