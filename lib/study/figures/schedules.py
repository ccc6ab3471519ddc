"""Figures of the schedule study (AL2, sections 3 and 4; A7).

Weight decays of several strengths, AL2 with several series.
"""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lib.data import noise_floor
from lib.schedules import SCHEDULES
from lib.study.figures import AXES, COLOURS
from lib.study.tables import MARGIN, one_setting, stopping, totals, weights

# the paper's series has bare's colour, as bare+AL2 everywhere; then brown, light blue, grey: none
# of the baselines' colours
KIND_COLOURS = {
    "al2": COLOURS["bare"],
    **dict(
        zip(SCHEDULES[1:], (sns.color_palette("colorblind")[k] for k in (5, 9, 7)), strict=True)
    ),
}
KIND_MARKS = dict(zip(SCHEDULES, "osD^", strict=True))
PAPER_DECAY = 5e-4  # AL2, section 4: found by a search
PANELS = {
    "final": "test accuracy (%),\nlast epoch",
    "stopped": "test accuracy (%),\nstopped early",
    "best": "test accuracy (%),\nbest epoch",
    "ablation_auc": AXES["ablation_auc"] + ",\nlast epoch",
    "cross_entropy": AXES["cross_entropy"] + ",\nlast epoch",
    "held_out": "accuracy on held-out\nnoisy labels (%), last epoch",
}
ACCURACIES = ("final", "stopped", "best")
# in what the runs of one study differ
VARIED = ("seed", "weight_decay", "al2", "schedule", "speed", "rate")


def studied(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the networks that the study compares, on corrupted labels.

    They are bare, weight decay without AL2, bare with AL2.
    """
    if frame.empty:
        return frame
    kept = frame.baseline.eq("bare") | (frame.baseline.eq("weight_decay") & ~frame.al2.astype(bool))
    return frame[kept & frame.relabelled_by.isna()] if "relabelled_by" in frame else frame[kept]


def outcomes(frame: pd.DataFrame) -> pd.DataFrame:
    """What each run of a study came to.

    Args:
        frame: runs of one data set and corruption level, as `lib.store.load` gives them; of other
            networks none is taken.

    Returns:
        one row per run: id, weight_decay, al2, schedule, speed, rate, epochs, seed; total (Σ λ_e, ×
        that of the paper's series) and last_weight (λ in the last epoch), empty without AL2; best,
        best_epoch, stopped, stopped_epoch (`lib.study.tables.stopping`); at the last epoch final
        (test accuracy), held_out (accuracy on the held-out noisy labels), ablation_auc,
        cross_entropy, empty where the loss became NaN before; memorising_from, the first epoch
        whose cross-entropy is `MARGIN` below the noise floor, empty for none.

    Raises:
        ValueError: if the runs differ in something else than the study varies.
    """
    runs = studied(frame)
    runs = runs.assign(al2=runs.al2.astype(bool))
    one_setting(runs, runs.dataset.iloc[0], but=VARIED)
    keys = ["id", "weight_decay", "al2", "schedule", "speed", "rate", "epochs", "seed"]
    table = runs.drop_duplicates("id")[keys].set_index("id")
    table["total"] = totals(runs) if table.al2.any() else np.nan
    table["last_weight"] = [weights(run)[-1] if run.al2 else np.nan for run in table.itertuples()]
    curves = runs[runs.epoch.notna()]
    stops = stopping(curves).set_index("id")
    last = curves[curves.epoch == curves.epochs].set_index("id")
    floor = noise_floor(float(runs.corruption.iloc[0]), int(runs.num_classes.iloc[0]))
    table["memorising_from"] = (
        curves[curves.cross_entropy < floor - MARGIN].groupby("id").epoch.min()
    )
    at_end = {"final": "test_accuracy", "held_out": "validation_accuracy"}
    for name in ("final", "held_out", "ablation_auc", "cross_entropy"):
        table[name] = last.get(at_end.get(name, name), np.nan)
    return table.join(stops[["best", "best_epoch", "stopped", "stopped_epoch"]]).reset_index()


def chosen_decay(table: pd.DataFrame) -> float:
    """The strength that a search would choose.

    It has the highest mean accuracy on held-out *noisy* labels at the last epoch.

    No test image and no clean label is looked at. Of several equal ones it is the weakest; one with
    which a run diverged is not chosen.

    Args:
        table: as `outcomes` gives it.

    Raises:
        ValueError: if no strength has that accuracy.
    """
    of_strength = table[table.weight_decay > 0].groupby("weight_decay").held_out
    means = of_strength.agg(lambda values: values.mean(skipna=False)).dropna()
    if means.empty:
        raise ValueError(
            "no strength of weight decay can be chosen: none has finished runs that hold images "
            "out; set n_validation, e.g. 200"
        )
    return float(means.idxmax())


def weight_decays(frame: pd.DataFrame) -> Figure:
    """The search for a strength of weight decay.

    What it is chosen by, and what each comes to beside bare and bare+AL2.

    A line the mean over seeds, one dot per seed. AL2 is that with the paper's own series (total 1).

    Args:
        frame: as `outcomes` takes it.
    """
    table = outcomes(frame)
    names = ("held_out", *ACCURACIES, "ablation_auc")
    fig, axes = plt.subplots(2, 3, figsize=(9.2, 5.1), sharex=True)
    own = table[table.weight_decay > 0]
    bare = table[(table.weight_decay == 0) & ~table.al2]
    with_al2 = table[table.al2 & (table.schedule == "al2") & (table.total == 1)]
    try:
        chosen = chosen_decay(table)
    except ValueError:  # nothing held out: the other panels still have something to show
        chosen = None
    for ax, name in zip(axes.flat, names, strict=False):
        _reference(ax, bare[name], "--")
        _reference(ax, with_al2[name], "-")
        _means_and_seeds(ax, own, "weight_decay", name, COLOURS["weight_decay"], "o")
        ax.axvline(PAPER_DECAY, color="0.3", lw=1.2, ls=":")
        if chosen is not None:
            ax.axvline(chosen, color=COLOURS["weight_decay"], lw=6, alpha=0.25)
        ax.set(xscale="log", ylabel=PANELS[name], xlabel="weight decay")
        ax.xaxis.set_tick_params(labelbottom=True)
    _one_scale([axes.flat[names.index(name)] for name in ACCURACIES])
    axes[1, 2].remove()
    handles = [
        plt.Line2D([], [], color=COLOURS["weight_decay"], marker="o", label="weight decay"),
        plt.Line2D(
            [],
            [],
            color=COLOURS["weight_decay"],
            lw=6,
            alpha=0.25,
            label="strength chosen by\nheld-out noisy labels",
        ),
        plt.Line2D([], [], color="0.3", lw=1.2, ls=":", label="the paper's 5e-4"),
        plt.Line2D([], [], color=COLOURS["bare"], ls="--", label="bare"),
        plt.Line2D([], [], color=COLOURS["bare"], label="bare+AL2, the paper's series"),
    ]
    if chosen is None:
        del handles[1]
    fig.legend(handles=handles, loc="center", bbox_to_anchor=(0.84, 0.27), frameon=False)
    fig.suptitle(_title(frame))
    return fig


def schedules(frame: pd.DataFrame) -> Figure:
    """Where AL2 ends against the total weight of its series, one line per kind of series.

    And, last, against its last λ.

    A line the mean over seeds, one dot per seed; the bare network is dashed, the range of its seeds
    a band.

    Args:
        frame: as `outcomes` takes it.
    """
    table = outcomes(frame)
    bare = table[(table.weight_decay == 0) & ~table.al2]
    with_al2 = table[table.al2]
    kinds = [kind for kind in SCHEDULES if kind in set(with_al2.schedule)]
    panels = [(name, "total") for name in (*ACCURACIES, "ablation_auc", "cross_entropy")]
    fig, axes = plt.subplots(2, 3, figsize=(9.6, 5.4))
    for ax, (name, x) in zip(axes.flat, [*panels, ("final", "last_weight")], strict=True):
        _reference(ax, bare[name], "--", band=True)
        for kind in kinds:
            own = with_al2[with_al2.schedule == kind]
            _means_and_seeds(ax, own, x, name, KIND_COLOURS[kind], KIND_MARKS[kind])
        ax.set(xscale="log", ylabel=PANELS[name], xlabel="λ in the last epoch")
        if x == "total":
            ax.set_xlabel("Σλ, × that of al2 at ×1")
            ax.xaxis.set_major_locator(FixedLocator(sorted(with_al2.total.dropna().unique())))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.xaxis.set_minor_locator(NullLocator())
        if name == "cross_entropy":
            ax.axhline(_floor(frame), color="0.3", lw=1, ls=":")
    _one_scale(axes[0])
    _legend(fig, kinds)
    fig.suptitle(_title(frame))
    return fig


def memorising(frame: pd.DataFrame) -> Figure:
    """Training cross-entropy against epochs, one panel per total, one line per kind of series.

    Bare is dashed, the noise floor dotted.

    A line the mean over seeds, a band their range.

    Args:
        frame: as `outcomes` takes it.

    Raises:
        ValueError: if there is no run with AL2.
    """
    runs = studied(frame)
    table = outcomes(frame).set_index("id")
    columns = sorted(table.total.dropna().unique())
    if not columns:
        raise ValueError(
            "none of these runs has AL2 with a total that is known; take runs as "
            "lib.study.experiments.schedules states them"
        )
    fig, axes = plt.subplots(
        1,
        len(columns),
        figsize=(max(3 * len(columns), 8.4), 3),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    kinds = [kind for kind in SCHEDULES if kind in set(table.schedule[table.al2])]
    for ax, total in zip(axes[0], columns, strict=True):
        _curve(
            ax,
            runs[runs.id.isin(table.index[(table.weight_decay == 0) & ~table.al2])],
            COLOURS["bare"],
            "--",
        )
        for kind in kinds:
            ids = table.index[(table.schedule == kind) & (table.total == total)]
            _curve(ax, runs[runs.id.isin(ids)], KIND_COLOURS[kind], "-")
        ax.axhline(_floor(frame), color="0.3", lw=1, ls=":")
        ax.set(xlabel="epoch", title=f"Σλ = {total:g} × the paper's")
    axes[0, 0].set_ylabel(AXES["cross_entropy"])
    _legend(fig, kinds, marks=False)
    fig.suptitle(_title(frame, "mean and range"))
    return fig


def _floor(frame: pd.DataFrame) -> float:
    return noise_floor(float(frame.corruption.iloc[0]), int(frame.num_classes.iloc[0]))


def _title(frame: pd.DataFrame, of_seeds: str = "mean and each (dots)") -> str:
    seeds = studied(frame).seed.nunique()
    count = f"{seeds} seeds: {of_seeds}" if seeds > 1 else "one seed"
    share = f"{100 * frame.corruption.iloc[0]:.0f} % of the labels corrupted"
    return f"{frame.dataset.iloc[0]}, {share}, {count}"


def _means_and_seeds(ax: plt.Axes, table: pd.DataFrame, x: str, y: str, colour, mark: str) -> None:
    found = table.dropna(subset=[x, y])
    if found.empty:
        return
    means = found.groupby(x, as_index=False)[
        y
    ].mean()  # sorted by x; the seeds of one setting have the same x
    ax.plot(means[x], means[y], color=colour, marker=mark, ms=5, lw=1.6)
    if found.seed.nunique() > 1:
        ax.plot(found[x], found[y], mark, color=colour, ms=2.5, alpha=0.6)


def _reference(ax: plt.Axes, values: pd.Series, dashes: str, band: bool = False) -> None:
    if values.notna().any():
        ax.axhline(values.mean(), color=COLOURS["bare"], lw=1.4, ls=dashes)
        if band and values.nunique() > 1:
            ax.axhspan(values.min(), values.max(), color=COLOURS["bare"], alpha=0.12, lw=0)


def _one_scale(axes: Iterable[plt.Axes]) -> None:
    """What is worth a point in one panel is worth a point in the others."""
    axes = list(axes)
    limits = [limit for ax in axes for limit in ax.get_ylim()]
    margin = 0.02 * (max(limits) - min(limits))
    for ax in axes:
        ax.set_ylim(min(limits) - margin, max(limits) + margin)


def _curve(ax: plt.Axes, runs: pd.DataFrame, colour, dashes: str) -> None:
    over_seeds = runs.groupby("epoch").cross_entropy.agg(["mean", "min", "max"])
    ax.plot(over_seeds.index, over_seeds["mean"], color=colour, ls=dashes, lw=1.6)
    ax.fill_between(
        over_seeds.index, over_seeds["min"], over_seeds["max"], color=colour, alpha=0.2, lw=0
    )


def _legend(fig: Figure, kinds: list[str], marks: bool = True) -> None:
    lines = [
        plt.Line2D(
            [],
            [],
            color=KIND_COLOURS[kind],
            marker=KIND_MARKS[kind] if marks else "",
            label=_label(kind),
        )
        for kind in kinds
    ]
    lines.append(plt.Line2D([], [], color=COLOURS["bare"], ls="--", label="bare"))
    lines.append(plt.Line2D([], [], color="0.3", ls=":", lw=1, label="noise floor"))
    fig.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)


def _label(kind: str) -> str:
    return "al2 (the paper's)" if kind == "al2" else kind
