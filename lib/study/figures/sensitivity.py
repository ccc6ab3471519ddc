"""What options of the protocol change, beside the paper's numbers.

Drawn from `lib.study.tables.sensitivity` and `lib.study.tables.norm_scale`.
"""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.study.figures import AXES, COLOURS, draw_reference, require_one_cell
from lib.study.tables import AL2_TABLES, BASELINES, DEAD
from lib.study.tables.norm_scale import SCALES, runs_of
from lib.study.tables.norm_scale import table as table_of_scales
from lib.study.tables.sensitivity import (
    CELL,
    DEFAULT,
    labelled,
    place_of,
    published_gain,
    weights_by_option,
)

# of batch norm's colour, by its first scale
SHADES = dict(zip(SCALES.values(), (1.0, 0.45), strict=True))
# the default's first
DASHES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (5, 1)), (0, (1, 3)))


def gains(pairs: pd.DataFrame) -> Figure:
    """AL2's gain by option, one panel per baseline.

    A bar is the mean over seeds, one dot per seed, hollow where a network ends dead.

    Dashed: the default's mean gain; dotted: the published gain, where the paper prints one. A
    diverged pair is a cross at no gain.

    Args:
        pairs: of one profile, data set and corruption level.

    Raises:
        ValueError: for none, or several.
    """
    require_one_cell(pairs, CELL)
    _, dataset, corruption = pairs[CELL].iloc[0]
    baselines = [b for b in BASELINES if b in set(pairs.baseline)]
    widths = [pairs.option[pairs.baseline == b].nunique() + 1 for b in baselines]
    size = (max(0.78 * sum(widths) + 1, 7), 4.0)
    fig, axes = plt.subplots(
        1, len(baselines), figsize=size, sharey=True, squeeze=False, width_ratios=widths
    )
    for ax, baseline in zip(axes[0], baselines, strict=True):
        _panel(ax, pairs[pairs.baseline == baseline], published_gain(dataset, corruption, baseline))
        ax.set_title(BASELINES[baseline])
    axes[0, 0].set_ylabel("gain of AL2 in final\ntest accuracy (points)")
    grey = {"color": "0.35", "ls": ""}
    handles = [
        plt.Line2D([], [], color="0.2", ls="--", lw=1.4, label="mean gain, default"),
        plt.Line2D([], [], **grey, marker="o", label="a seed"),
        plt.Line2D(
            [],
            [],
            **grey,
            marker="o",
            mfc="white",
            label=f"at most {DEAD} × chance,\nwith AL2 or without",
        ),
    ]
    if any(pd.notna(published_gain(dataset, corruption, b)) for b in baselines):
        handles.insert(1, plt.Line2D([], [], color="0.2", ls=":", lw=1.8, label="published gain"))
    if not np.isfinite(pairs.gain).all():
        handles.append(plt.Line2D([], [], **grey, marker="x", label="diverged"))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    fig.suptitle(_title(pairs, "mean and each (dots)"), fontsize="medium")
    return fig


def curves(frame: pd.DataFrame) -> Figure:
    """Test accuracy with AL2 against the share of the training that is done.

    There is one panel per baseline, a line an option.

    A line is the mean over seeds, black where nothing is changed, the later options the lighter.
    Dotted: chance.

    Args:
        frame: as `lib.study.tables.sensitivity.labelled` takes it, of one profile, data set and
            corruption level.

    Raises:
        ValueError: for none, or several.
    """
    rows = labelled(frame)
    require_one_cell(rows, CELL)
    rows = rows[rows.al2.astype(bool) & (rows.epoch <= rows.read)]
    baselines = [b for b in BASELINES if b in set(rows.baseline)]
    fig, axes = plt.subplots(
        1, len(baselines), figsize=(max(3.6 * len(baselines), 7), 3.8), sharey=True, squeeze=False
    )
    for ax, baseline in zip(axes[0], baselines, strict=True):
        own = rows[rows.baseline == baseline]
        names = sorted(set(own.option), key=place_of)
        for k, (name, dashes) in enumerate(zip(names, cycle(DASHES), strict=False)):
            one = own[own.option == name]
            mean = one.groupby(100 * one.epoch / one.read).test_accuracy.mean()
            # the later, the lighter
            shade = 1 if name == DEFAULT else 1 - 0.55 * (k - 1) / max(len(names) - 2, 1)
            colour = "0.15" if name == DEFAULT else COLOURS[baseline]
            ax.plot(mean.index, mean, color=colour, alpha=shade, ls=dashes, lw=1.6, label=name)
        ax.axhline(100 / int(rows.num_classes.iloc[0]), color="0.3", lw=1, ls=":")
        ax.set(title=f"{BASELINES[baseline]}+AL2", xlabel="epochs done (%)", ylim=(0, 101))
        ax.legend(
            frameon=False,
            fontsize="small",
            loc="upper center",
            bbox_to_anchor=(0.5, -0.18),
            ncols=2,
        )
    axes[0, 0].set_ylabel(AXES["test_accuracy"])
    fig.suptitle(_title(rows) + "; dotted: chance", fontsize="medium")
    return fig


def series(frame: pd.DataFrame, baseline: str = "dropout") -> Figure:
    """The λ series of a baseline with AL2 by option, a longer training dashed.

    Args:
        frame: as for `curves`.
        baseline: whose.

    Raises:
        ValueError: as `curves`.
    """
    require_one_cell(labelled(frame), CELL)
    own = weights_by_option(frame, baseline)
    fig, ax = plt.subplots(figsize=(6.5, 3.4))
    for (name, weights), shade in zip(own.items(), np.linspace(1, 0.35, len(own)), strict=True):
        dashes = "--" if len(weights) > len(own[DEFAULT]) else "-"
        ax.plot(
            range(1, len(weights) + 1),
            weights,
            lw=2,
            ls=dashes,
            color=COLOURS[baseline],
            alpha=shade,
        )
        ax.annotate(
            name,
            (len(weights), weights[-1]),
            xytext=(5, -3),
            textcoords="offset points",
            fontsize="small",
        )
    ax.set(
        xlabel="epoch", ylabel="λ", yscale="log", title=f"the λ series of {BASELINES[baseline]}+AL2"
    )
    ax.set_xlim(0, 1.25 * max(map(len, own.values())))
    return fig


def norm_scales(frame: pd.DataFrame) -> Figure:
    """Batch norm's networks by their first scale γ, against epochs.

    Test accuracy, cross-entropy and L_r, and what is printed.

    Mean over seeds; dashed without AL2, as everywhere; γ ~ U(0, 1) is the lighter. Crosses:
    published, where the paper prints the data set and level, at the epochs that stand for the
    paper's.

    Args:
        frame: as `lib.study.tables.norm_scale.runs_of` takes it, of one profile, data set and
            corruption level.

    Raises:
        ValueError: for none, or several.
    """
    rows = runs_of(frame)
    require_one_cell(rows, CELL)
    metrics = AL2_TABLES["al2_table1"]
    classes = int(rows.num_classes.iloc[0])
    printed = table_of_scales(frame).drop_duplicates(["al2", "metric", "epoch"])
    fig, axes = plt.subplots(1, len(metrics), figsize=(10.5, 3.8))
    for ax, metric in zip(axes, metrics, strict=True):
        for (scale, al2), own in rows.groupby(["scale", "al2"]):
            mean = own.groupby("epoch")[metric].mean()
            ax.plot(
                mean,
                color=COLOURS["batchnorm"],
                ls="-" if al2 else "--",
                alpha=SHADES[scale],
                lw=1.6,
            )
        crosses = printed[(printed.metric == metric) & printed.published.notna()]
        ax.plot(crosses.epoch_measured, crosses.published, "x", color="0.15", ms=7, mew=1.8)
        draw_reference(ax, metric, rows.corruption.iloc[0], classes)
        ax.set(xlabel="epoch", ylabel=AXES[metric])
    lines = [
        (f"{scale}, {word} AL2", ls, shade)
        for scale, shade in SHADES.items()
        for word, ls in (("without", "--"), ("with", "-"))
    ]
    handles = [
        plt.Line2D([], [], color=COLOURS["batchnorm"], ls=ls, alpha=shade, label=name)
        for name, ls, shade in lines
    ]
    if printed.published.notna().any():
        handles.append(plt.Line2D([], [], color="0.15", ls="", marker="x", label="published"))
    handles.append(plt.Line2D([], [], color="0.3", ls=":", lw=1, label="chance; noise floor"))
    fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    fig.suptitle(f"BN, {_title(rows)}", fontsize="medium")
    return fig


def _title(rows: pd.DataFrame, of_seeds: str = "mean") -> str:
    profile, dataset, corruption = rows[CELL].iloc[0]
    n = rows.seed.nunique()
    seeds = f"{n} seeds: {of_seeds}" if n > 1 else "one seed"
    return (
        f"{dataset}, {100 * corruption:.0f} % of the labels corrupted, profile {profile}, {seeds}"
    )


def _panel(ax: plt.Axes, own: pd.DataFrame, published: float) -> None:
    colour = COLOURS[own.baseline.iloc[0]]
    options = list(dict.fromkeys(own.option))
    for place, option in enumerate(options):
        here = own[own.option == option]
        finite = here[np.isfinite(here.gain)]
        if len(finite) == len(here):
            ax.bar(place, here.gain.mean(), width=0.6, color=colour, alpha=0.35, lw=0)
        # beside each other, in the order of the seeds
        spots = place + 0.12 * (np.arange(len(finite)) - (len(finite) - 1) / 2)
        for x, pair in zip(spots, finite.itertuples(), strict=True):
            ax.plot(
                x,
                pair.gain,
                "o",
                color=colour,
                mfc="white" if pair.dead else colour,
                ms=6,
                zorder=3,
            )
        diverged = len(here) - len(finite)
        ax.plot([place] * diverged, [0] * diverged, "x", color=colour, ms=7, zorder=3)
    default = own.gain[own.option == DEFAULT]
    if len(default) and np.isfinite(default).all():
        ax.axhline(default.mean(), color=colour, ls="--", lw=1.4)
    if pd.notna(published):
        ax.axhline(published, color=colour, ls=":", lw=1.8)
    ax.axhline(0, color="0.3", lw=0.8)
    ax.set_ymargin(0.08)
    ax.set_xticks(
        range(len(options)), [option.replace(" ", "\n", 1) for option in options], fontsize="small"
    )
    ax.set_xlim(-0.6, len(options) - 0.4)
    ax.grid(axis="x", visible=False)
