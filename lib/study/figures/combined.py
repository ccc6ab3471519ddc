"""Figures of both penalties under both tests.

They are drawn from the tidy frames of `lib.study.tables.combined.labelled`.

Blue without SparsityReg, pink with it, as vanillaNet and sr2Net elsewhere; solid with AL2, dashed
without, as everywhere.
"""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib import measures
from lib.data import noise_floor
from lib.study import drawing
from lib.study.tables.combined import (
    CONTROL,
    FALLEN,
    METHODS,
    entropy,
    fall_epoch,
    filters,
    of_runs,
)

PLAIN, REGULARISED = (drawing.NETWORK_COLOURS[name] for name in ("vanillaNet", "sr2Net"))
COLOURS = dict(zip(METHODS, (PLAIN, PLAIN, REGULARISED, REGULARISED), strict=True)) | {
    CONTROL: "0.35"
}
DASHES = dict(zip(METHODS, ("--", "-", "--", "-"), strict=True)) | {CONTROL: "--"}
LAYERS = sns.color_palette("copper_r", 3)  # of the AL2 CNN, light to dark: no method's colours
CROSSING = (0, (1, 1))
TURN = "-."


def memorisation(rows: pd.DataFrame) -> Figure:
    """The label-randomisation test, one column per method.

    Test accuracy, training cross-entropy and entropies.

    A line is the mean over seeds, a band their range. Vertical lines, one a seed: where the
    training cross-entropy goes below the noise floor (dotted), and where accuracy has its peak
    (dash-dotted, see `lib.study.tables.combined.turn`). Dots: where a layer's entropy has fallen by
    `FALLEN` % of ln D. The horizontal dotted lines are chance and the noise floor.

    Args:
        rows: of one profile and data set, as `labelled` gives them; other rows of the frame are
            left out.
    """
    rows = _one(rows, "memorisation")
    methods = [m for m in (*METHODS, CONTROL) if m in set(rows.method)]
    moments = of_runs(rows).set_index(["method", "seed"])
    classes = int(rows.num_classes.max())
    fig, axes = plt.subplots(
        3,
        len(methods),
        figsize=(2.6 * max(len(methods), 2), 6.6),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for column, method in zip(axes.T, methods, strict=True):
        own = rows[rows.method == method]
        style = {"color": COLOURS[method], "ls": DASHES[method]}
        for ax, name in zip(column, ("test_accuracy", "cross_entropy"), strict=False):
            _line(ax, _curves(own, name), **style)
        for layer, colour in zip(filters(own.network.iloc[0]), LAYERS, strict=True):
            curves = _entropies(own, layer)
            _line(column[2], curves, color=colour, ls=DASHES[method])
            for seed in curves:
                if (epoch := fall_epoch(curves[seed])) is not None:
                    column[2].plot(
                        epoch, curves[seed][epoch], "o", color=colour, ms=6, mec="white", zorder=3
                    )
        for ax in column:
            for moment in moments.loc[[method]].itertuples():
                for epoch, dashes in ((moment.crossing, CROSSING), (moment.turn, TURN)):
                    if pd.notna(epoch):
                        ax.axvline(epoch, color="0.35", lw=1.1, ls=dashes, zorder=1)
        column[0].axhline(100 / classes, color="0.3", lw=1, ls=":")
        if (corruption := own.corruption.iloc[0]) > 0:
            column[1].axhline(noise_floor(corruption, classes), color="0.3", lw=1, ls=":")
        column[0].set_title(method)
        column[2].set_xlabel("epoch")
        column[2].xaxis.get_major_locator().set_params(integer=True)
    labels = ("test accuracy (%)", "training\ncross-entropy (nats)", "mean entropy\n(% of ln D)")
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    handles = [
        plt.Line2D([], [], color=colour, label=layer, lw=2)
        for layer, colour in zip(filters("al2_cnn"), LAYERS, strict=True)
    ]
    handles.append(
        plt.Line2D(
            [], [], color="0.3", ls="", marker="o", label=f"entropy fallen by {FALLEN:g} % of ln D"
        )
    )
    handles.append(
        plt.Line2D([], [], color="0.35", lw=1.1, ls=CROSSING, label="below the noise floor")
    )
    handles.append(
        plt.Line2D([], [], color="0.35", lw=1.1, ls=TURN, label="peak of accuracy (smoothed)")
    )
    fig.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    corrupted = f"{100 * rows.corruption.max():.0f} % of the labels corrupted"
    fig.suptitle(f"AL2 CNN, {rows.dataset.iloc[0]}, {corrupted}, {_who(rows)}", fontsize="medium")
    return fig


def overfitting(rows: pd.DataFrame) -> Figure:
    """The overfitting test on true labels.

    Test accuracy, validation loss (smoothed, σ = 2 epochs), training loss, entropies.

    A line is the mean over seeds, a band their range; a dot marks, on all curves of a method, its
    moment of overfitting, where it has one (of the seeds' mean loss). The losses are
    cross-entropies, penalties left out; dotted: ln D.

    Args:
        rows: of one profile and data set, as `labelled` gives them; other rows of the frame are
            left out.
    """
    rows = _one(rows, "overfitting")
    layers = list(filters(rows.network.iloc[0]))
    names = {
        "test_accuracy": "test accuracy (%)",
        "test_cross_entropy": "validation loss (nats)",
        "cross_entropy": "training loss (nats)",
    }
    panels = [*names, *layers]
    fig, axes = plt.subplots(
        -(-len(panels) // 4), 4, figsize=(11.5, 5.4), sharex=True, squeeze=False
    )
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    methods = [m for m in METHODS if m in set(rows.method)]
    for method in methods:
        own = rows[rows.method == method]
        losses = _curves(own, "test_cross_entropy")
        if losses.empty:  # every seed diverged in its first epoch
            continue
        moment = measures.overfitting_onset(losses.mean(axis=1))
        for ax, panel in zip(axes.flat, panels, strict=False):
            curves = _curves(own, panel) if panel in names else _entropies(own, panel)
            if panel == "test_cross_entropy":
                curves = curves.apply(measures.smoothed, axis=0, result_type="broadcast")
            _line(ax, curves, color=COLOURS[method], ls=DASHES[method])
            if moment is not None and moment in curves.index:
                ax.plot(
                    moment,
                    curves.mean(axis=1)[moment],
                    "o",
                    color=COLOURS[method],
                    ms=6,
                    mec="white",
                    zorder=3,
                )
    for ax, panel in zip(axes.flat, panels, strict=False):
        ax.set_title(names.get(panel, f"{panel}: entropy (% of ln D)"))
        ax.xaxis.get_major_locator().set_params(integer=True)
        if panel in layers:
            ax.set_ylim(0, 105)  # the whole scale: a fall looks as large as it is
            ax.axhline(100, color="0.3", lw=1, ls=":")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    handles = [plt.Line2D([], [], color=COLOURS[m], ls=DASHES[m], label=m, lw=2) for m in methods]
    handles.append(
        plt.Line2D(
            [], [], color="0.3", ls="", marker="o", label="moment of overfitting (mean loss)"
        )
    )
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    name = rows.network.iloc[0].replace("convnet_", "ConvNet-")
    fig.suptitle(f"{name}, {rows.dataset.iloc[0]}, true labels, {_who(rows)}", fontsize="medium")
    return fig


def _curves(own: pd.DataFrame, column: str) -> pd.DataFrame:
    """One column per seed over the epochs that all seeds have."""
    there = own[own.epoch.notna()]
    return (
        there.pivot(index="epoch", columns="seed", values=column).dropna()
        if len(there)
        else pd.DataFrame()
    )


def _entropies(own: pd.DataFrame, layer: str) -> pd.DataFrame:
    return pd.DataFrame({seed: entropy(run, layer) for seed, run in own.groupby("seed")}).dropna()


def _line(ax: plt.Axes, curves: pd.DataFrame, **style) -> None:
    if curves.empty:
        return
    ax.plot(curves.index, curves.mean(axis=1), lw=1.6, **style)
    ax.fill_between(
        curves.index, curves.min(axis=1), curves.max(axis=1), color=style["color"], alpha=0.2, lw=0
    )


def _who(rows: pd.DataFrame) -> str:
    seeds = rows.seed.nunique()
    return f"profile {rows.profile.iloc[0]}, " + (
        f"{seeds} seeds: mean and range" if seeds > 1 else "one seed"
    )


def _one(rows: pd.DataFrame, test: str) -> pd.DataFrame:
    rows = rows[rows.test == test]
    if rows.empty:
        raise ValueError(f"there is nothing to draw: no run of the {test} test")
    wanted = rows[rows.method != CONTROL]
    if len(cells := wanted[["profile", "dataset", "corruption", "network"]].drop_duplicates()) > 1:
        raise ValueError(
            "a figure shows one profile, data set, corruption level and network, not "
            f"{cells.to_numpy().tolist()}"
        )
    return rows
