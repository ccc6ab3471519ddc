"""What options of the protocol change of AL2's gain, beside the paper's: from the tidy frame of `lib.tables.options.gains`."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.figures import COLOURS
from lib.tables import BASELINES, DEAD
from lib.tables.options import DEFAULT, published_gain


def gains(pairs: pd.DataFrame) -> Figure:
    """AL2's gain by option, a panel a baseline: a bar the mean over seeds, a dot a seed, hollow where a network ends dead.

    Dashed: the default's mean gain; dotted: the published gain, where the paper prints one. A diverged pair is a cross at
    no gain.

    Args:
        pairs: of one profile, data set and corruption level.

    Raises:
        ValueError: for none, or several.
    """
    cells = pairs[["profile", "dataset", "corruption"]].drop_duplicates()
    if len(cells) != 1:
        raise ValueError(f"a figure shows one profile, data set and corruption level, not {cells.to_numpy().tolist()}")
    profile, dataset, corruption = cells.iloc[0]
    baselines = [b for b in BASELINES if b in set(pairs.baseline)]
    widths = [pairs.option[pairs.baseline == b].nunique() + 1 for b in baselines]
    size = (max(0.78 * sum(widths) + 1, 7), 4.0)
    fig, axes = plt.subplots(1, len(baselines), figsize=size, sharey=True, squeeze=False, width_ratios=widths)
    for ax, baseline in zip(axes[0], baselines, strict=True):
        _panel(ax, pairs[pairs.baseline == baseline], published_gain(dataset, corruption, baseline))
        ax.set_title(BASELINES[baseline])
    axes[0, 0].set_ylabel("gain of AL2 in final\ntest accuracy (points)")
    grey = {"color": "0.35", "ls": ""}
    handles = [
        plt.Line2D([], [], color="0.2", ls="--", lw=1.4, label="mean gain, default"),
        plt.Line2D([], [], **grey, marker="o", label="a seed"),
        plt.Line2D([], [], **grey, marker="o", mfc="white", label=f"at most {DEAD} × chance,\nwith AL2 or without"),
    ]
    if any(pd.notna(published_gain(dataset, corruption, b)) for b in baselines):
        handles.insert(1, plt.Line2D([], [], color="0.2", ls=":", lw=1.8, label="published gain"))
    if not np.isfinite(pairs.gain).all():
        handles.append(plt.Line2D([], [], **grey, marker="x", label="diverged"))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    n = pairs.seed.nunique()
    seeds = f"{n} seeds: mean and each (dots)" if n > 1 else "one seed"
    fig.suptitle(f"{dataset}, {100 * corruption:.0f} % of the labels corrupted, profile {profile}, {seeds}", fontsize="medium")
    return fig


def _panel(ax: plt.Axes, own: pd.DataFrame, published: float) -> None:
    colour, options = COLOURS[own.baseline.iloc[0]], list(dict.fromkeys(own.option))
    for place, option in enumerate(options):
        here = own[own.option == option]
        finite = here[np.isfinite(here.gain)]
        if len(finite) == len(here):
            ax.bar(place, here.gain.mean(), width=0.6, color=colour, alpha=0.35, lw=0)
        spots = place + 0.12 * (np.arange(len(finite)) - (len(finite) - 1) / 2)  # beside each other, in the order of the seeds
        for x, pair in zip(spots, finite.itertuples(), strict=True):
            ax.plot(x, pair.gain, "o", color=colour, mfc="white" if pair.dead else colour, ms=6, zorder=3)
        ax.plot([place] * (len(here) - len(finite)), [0] * (len(here) - len(finite)), "x", color=colour, ms=7, zorder=3)
    default = own.gain[own.option == DEFAULT]
    if len(default) and np.isfinite(default).all():
        ax.axhline(default.mean(), color=colour, ls="--", lw=1.4)
    if pd.notna(published):
        ax.axhline(published, color=colour, ls=":", lw=1.8)
    ax.axhline(0, color="0.3", lw=0.8)
    ax.set_ymargin(0.08)
    ax.set_xticks(range(len(options)), [option.replace(" ", "\n", 1) for option in options], fontsize="small")
    ax.set_xlim(-0.6, len(options) - 0.4)
    ax.grid(axis="x", visible=False)
