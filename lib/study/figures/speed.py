"""Plots and tables of what `make bench` measured, drawn from its tidy tables alone.

See `lib.bench`.
"""

import re
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.bench.cpu import HALF

PARTS = dict(
    zip(
        ("DataLoader", "tensors", "stacked", "ours", "floor"),
        sns.color_palette("colorblind", 5),
        strict=True,
    )
)
WAYS = {  # of `networks` curves, in the order of the legend
    "DataLoader": PARTS["DataLoader"],
    "tensors": PARTS["tensors"],
    "vmap": PARTS["stacked"],
    "ours, AL2": PARTS["ours"],
    "floor": PARTS["floor"],
}
# the second is drawn over the first
PRECISIONS = {"float32": (0.2, 0.2, 0.2), "bfloat16": PARTS["ours"]}
BEST = "best DataLoader loop"
KEY = ["part", "what", "processes", "threads", "workers", "networks", "batch"]
HOURLY, BEST_FACTOR, SHARE = "epochs·networks/h", "× best DataLoader", "% of the floor"  # units
# Operators of a step by what they are for: the first pattern that is found in a name
OPERATORS = {
    "loading": r"^DataLoader and transforms$",
    "convolutions, backward": r"(convolution|conv2d)_backward|ConvolutionBackward",
    "convolutions, forward": r"convolution|conv2d",
    "max-pooling": r"max_pool|MaxPool",
    "ReLU": r"relu|Relu|clamp_min|threshold_backward",
    "linear layers": r"mm$|mm\d?Backward|Addmm|linear",
    "optimiser": r"Optimizer|AccumulateGrad|aten::(add_|mul_)$",
    "between operators": r"^between operators$",
    "other operators": r"",
}
STEPS = {
    "DataLoader": "before: DataLoader loop",
    "tensors": "before: the same from tensors",
    "ours, AL2": "after: ours, with AL2",
    HALF: "after: the same in bfloat16",
}


def label(row: Mapping) -> str:
    """A row of the table in words: its name, workers or networks a process, processes × threads."""
    words = [f"floor: {row['what']}" if row["part"] == "floor" else row["what"]]
    if row["part"] == "DataLoader":
        words.append("1 worker" if row["workers"] == 1 else f"{row['workers']} workers")
    if row["part"] == "stacked":
        words.append(f"{row['networks'] // row['processes']} stacked")
    return f"{', '.join(words)} · {row['processes']} × {row['threads']}"


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are compared, with all cores and the study's batch.

    There is one row per way, with columns `label` and the units' medians.

    Also `low` and `high` of epochs·networks an hour and of the factor. Of the floor only the
    fastest product is kept.
    """
    chosen = table[table.groupby(KEY)["unit"].transform(lambda units: BEST_FACTOR in set(units))]
    wide = chosen.pivot_table(
        index=KEY, columns="unit", values=["median", "low", "high"], sort=False
    )
    found = wide["median"].reset_index()
    for unit, name in ((HOURLY, ""), (BEST_FACTOR, "factor ")):
        for edge in ("low", "high"):
            found[name + edge] = wide[edge][unit].to_numpy()
    floor = found[found.part == "floor"]
    found = found.drop(floor.index.difference([floor[HOURLY].idxmax()]))
    found = found.sort_values("part", key=lambda parts: parts.map(list(PARTS).index), kind="stable")
    return found.assign(label=[label(row) for row in found.to_dict("records")]).reset_index(
        drop=True
    )


def best_loader(found: pd.DataFrame) -> pd.Series:
    """The best DataLoader loop among the rows of `compared`."""
    loops = found[found.part == "DataLoader"]
    return loops.loc[loops[HOURLY].idxmax()]


def bars(table: pd.DataFrame) -> Figure:
    """Epochs·networks an hour of each way, and how often the best DataLoader loop.

    A bar is the median, a line the range over rounds.
    """
    found = compared(table)
    fig, ax = plt.subplots(figsize=(9, 0.27 * len(found) + 1))
    y = range(len(found))
    ax.barh(y, found[HOURLY], color=[PARTS[part] for part in found.part], height=0.75)
    ax.hlines(y, found.low, found.high, color="0.2", lw=1.2)
    for position, row in zip(y, found.to_dict("records"), strict=True):
        text = f" × {row[BEST_FACTOR]:.2f}, {row[SHARE]:.0f} %"
        # hides the dashed line below the words
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        ax.text(max(row["high"], row[HOURLY]), position, text, va="center", fontsize=8, bbox=paper)
    best = best_loader(found)
    ax.axvline(best[HOURLY], color="0.2", ls="--", lw=1)
    ax.annotate(
        BEST,
        (best[HOURLY], -0.6),
        xytext=(3, 2),
        textcoords="offset points",
        fontsize=8,
        va="bottom",
    )
    ax.set_yticks(y, found.label)
    ax.set_ylim(len(found) - 0.4, -1.6)
    ax.set_xlim(0, 1.25 * found.high.max())
    ax.set_xlabel("epochs·networks an hour (60,000 images)")
    ax.set_title(
        "processes × threads; beside each bar: × best DataLoader loop, % of the floor",
        loc="right",
        fontsize=9,
    )
    ax.grid(axis="y", visible=False)
    return fig


def scaling(table: pd.DataFrame) -> Figure:
    """Seconds an epoch of 1, 2, 4 networks.

    And epochs·networks an hour against batch size and against cores; all on log axes.
    """
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    networks = table[table.part == "networks"]
    for what, colour in WAYS.items():
        _line(
            axes[0], networks[networks.what == what].rename(columns={"networks": "x"}), what, colour
        )
    _axis(axes[0], networks.networks, "networks", "seconds an epoch of all of them")

    hourly = table[table.unit == HOURLY].assign(cores=table.processes * table.threads)
    study = compared(table).query("part == 'ours'").batch.iloc[0]
    floors = hourly[hourly.part == "floor"].groupby("cores")["median"].max()
    apart = hourly[(hourly.threads == 1) & (hourly.workers == 0)]
    for what in ("DataLoader", "ours, AL2"):
        own = apart[apart.what == what]
        batches = own[own.processes == hourly.processes.max()].rename(columns={"batch": "x"})
        _line(axes[1], batches, what, WAYS[what])
        _line(axes[2], own[own.batch == study].rename(columns={"cores": "x"}), what, WAYS[what])
    axes[1].axhline(floors.iloc[-1], color=WAYS["floor"])
    axes[2].plot(floors.index, floors, color=WAYS["floor"], marker=".")
    ours = apart[apart.part == "ours"]
    _axis(axes[1], ours.batch, "images a step (all cores)", "epochs·networks an hour")
    _axis(axes[2], ours.cores, "cores, a network each", "epochs·networks an hour")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return fig


def profiles(profile: pd.DataFrame) -> Figure:
    """Milliseconds a step on one thread by what the operators are for.

    Before and after have a bar each, its parts stacked.
    """
    found = by_purpose(profile)
    fig, ax = plt.subplots(figsize=(10, 3.2))
    palette = dict(zip(OPERATORS, sns.color_palette("colorblind", len(OPERATORS)), strict=True))
    left = pd.Series(0.0, index=found.index)
    for purpose in found:
        ax.barh(
            range(len(found)),
            found[purpose],
            left=left,
            color=palette[purpose],
            label=purpose,
            height=0.6,
            lw=0,
        )
        left += found[purpose]
    for position, total in enumerate(left):
        ax.text(total, position, f" {total:.0f} ms", va="center", fontsize=9)
    ax.set_yticks(range(len(found)), found.index)
    ax.set_xlim(0, 1.1 * left.max())
    ax.invert_yaxis()
    ax.set_xlabel("milliseconds a step of one network on one thread, under the profiler")
    ax.grid(axis="y", visible=False)
    fig.legend(loc="outside lower center", ncols=5, frameon=False)
    return fig


def by_purpose(profile: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds a step by what they are for.

    A row is a step in the order of `STEPS`, one column per purpose in that of `OPERATORS`.
    """
    purposes = [
        next(name for name, pattern in OPERATORS.items() if re.search(pattern, op))
        for op in profile.operator
    ]
    wide = profile.assign(purpose=purposes).pivot_table(
        index="step", columns="purpose", values="ms", aggfunc="sum"
    )
    wide = wide.reindex(
        index=list(STEPS), columns=[name for name in OPERATORS if name in wide]
    ).fillna(0.0)
    return wide.rename(index=STEPS).rename_axis(index=None, columns=None)


def ladder(table: pd.DataFrame) -> pd.DataFrame:
    """From the best DataLoader loop to ours, one change at a time.

    Epochs·networks an hour and factors.
    """
    found = compared(table)
    steps = {BEST: best_loader(found)}
    tensors, ours = found[found.part == "tensors"], found[found.part == "ours"]
    tensors = tensors[tensors.processes == tensors.processes.max()]
    names = {
        "tensors": "data as tensors, a thread a network",
        "tensors, channels_last": "+ channels_last",
        "tensors, channels_last, pool first": "+ pooling before ReLU",
        "tensors, channels_last, pool first, memory kept": "+ freed memory kept",
    }
    steps |= {name: tensors[tensors.what == what].iloc[0] for what, name in names.items()}
    steps |= {
        f"{what}: the trainer, with what it records": ours[ours.what == what].iloc[0]
        for what in ("ours, bare", "ours, AL2")
    }
    steps |= {"the same with products in bfloat16": ours[ours.what == HALF].iloc[0]}
    found = pd.DataFrame(
        {name: row[[HOURLY, BEST_FACTOR]] for name, row in steps.items()}
    ).T.astype(float)
    return found.assign(**{"× the line before": found[BEST_FACTOR] / found[BEST_FACTOR].shift()})


def processors(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What `make bench` found on several processors, a row each by name.

    Epochs·networks an hour of the floor, of the best DataLoader loop and of ours; ours also as a
    factor of that loop (with its range over rounds) and as a share of the floor.
    """
    rows = {}
    for name, table in tables.items():
        found = compared(table)
        row = {
            "floor": found[HOURLY][found.part == "floor"].iloc[0],
            BEST: best_loader(found)[HOURLY],
        }
        for what in ("ours, AL2", HALF):
            own = found[found.what == what].iloc[0]
            row[what] = own[HOURLY]
            row[f"{what}: × {BEST}"] = (
                f"{own[BEST_FACTOR]:.1f} ({own['factor low']:.1f}–{own['factor high']:.1f})"
            )
            row[f"{what}: {SHARE}"] = own[SHARE]
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def precisions(curves: pd.DataFrame) -> Figure:
    """Test accuracy by epoch, one panel per network, one line per seed and precision.

    Of what `lib.bench.precision` trained.
    """
    networks = list(dict.fromkeys(curves.network))
    rows = -(-len(networks) // 3)
    fig, axes = plt.subplots(rows, 3, figsize=(10.5, 2.6 * rows), squeeze=False)
    for ax, network in zip(axes.flat, networks, strict=False):
        own = curves[curves.network == network]
        for (precision, colour), style in zip(PRECISIONS.items(), ("-", "--"), strict=True):
            for seed, line in own[own.precision == precision].groupby("seed"):
                label = precision if seed == own.seed.min() else None
                ax.plot(line.epoch, line.test_accuracy, color=colour, ls=style, lw=1.2, label=label)
        ax.set(title=network, xlabel="epoch", ylabel="test accuracy (%)")
    for ax in axes.flat[len(networks) :]:
        ax.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return fig


def _line(ax: plt.Axes, rows: pd.DataFrame, name: str, colour) -> None:
    rows = rows.sort_values("x")
    ax.plot(rows.x, rows["median"], color=colour, marker=".", ms=8, label=name)
    ax.fill_between(rows.x, rows.low, rows.high, color=colour, alpha=0.15, lw=0)


def _axis(ax: plt.Axes, ticks: pd.Series, x: str, y: str) -> None:
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    ax.set_xticks(sorted(set(ticks)), [str(tick) for tick in sorted(set(ticks))])
    ax.xaxis.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    ax.tick_params(axis="y", which="minor", labelsize=8)
