"""The study's style, small pictures, entropy maps beside their images, filter correlations.

Each function draws on the figure it is given, or on a new one of pyplot's, as a notebook shows it.
"""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

GAP = 1.08  # from the top of a picture to that of the one below, in heights


def style() -> None:
    """The look of all figures and tables; call it once in a notebook."""
    pd.set_option("display.max_colwidth", 120)
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    sizes = {"figure.dpi": 80, "savefig.dpi": 110, "axes.titlesize": "medium"}
    plt.rcParams.update(sizes | {"figure.constrained_layout.use": True})


def png(fig: Figure, **options: Any) -> bytes:
    """A figure as a PNG file of at most 256 colours, a third of the bytes of many fine lines.

    Args:
        fig: it stays open.
        options: of `Figure.savefig`, such as dpi.
    """
    whole, small = BytesIO(), BytesIO()
    fig.savefig(whole, format="png", **options)
    few = PIL.Image.open(whole).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
    few.save(small, "png", optimize=True)
    return small.getvalue()


def small_png(fig: Figure) -> Image:
    """A figure as such a picture for a notebook, and closed."""
    picture = Image(png(fig, dpi=fig.dpi, bbox_inches="tight"))
    plt.close(fig)
    return picture


def curves(
    frame: pd.DataFrame,
    y: str,
    ax: Axes | None = None,
    *,
    x: str = "epoch",
    hue: str | None = None,
    palette: Mapping[Any, Any] | None = None,
    style: str | None = None,
    dashes: Mapping[Any, Any] | None = None,
    **options: Any,
) -> Axes:
    """A measured column against epochs: a line is the mean over seeds, a band their range.

    What `seaborn.lineplot(errorbar=("pi", 100), legend=False)` draws, in a hundredth of its time:
    it calls its estimator for each epoch of each line.

    Args:
        frame: rows as `lib.store.load` gives them, or `load_long` with `y="value"`.
        y: the column.
        ax: to draw on; None: pyplot's.
        x: the other axis.
        hue, palette: the column that colours tell apart, and the colour of each of its values.
        style, dashes: the column that dashes tell apart, and seaborn's dashes ("" for a solid line)
            of each of its values.
        options: of `Axes.plot`, such as color, lw, marker.

    Raises:
        ValueError: for a column that the frame has not; the message lists those it has.
    """
    for column in filter(None, (x, y, hue, style)):
        if column not in frame:
            there = ", ".join(map(str, frame))
            raise ValueError(f"there is no column {column!r} to draw; the frame has {there}")
    ax = plt.gca() if ax is None else ax
    rows = frame[frame[y].notna()]
    keys = [column for column in (hue, style) if column]
    for key, own in rows.groupby(keys, sort=False) if keys else [((), rows)]:
        values = dict(zip(keys, key, strict=True))
        how = {"lw": 1.6} | options
        if palette:
            how["color"] = palette[values[hue]]
        if dashes and dashes[values[style]]:
            how["ls"] = (0, dashes[values[style]])
        over_seeds = own.groupby(x)[y].agg(["mean", "min", "max"]).astype(float)
        (line,) = ax.plot(over_seeds.index, over_seeds["mean"], **how)
        if own[x].duplicated().any():
            band = {"color": line.get_color(), "alpha": 0.2, "lw": 0}
            ax.fill_between(over_seeds.index, over_seeds["min"], over_seeds["max"], **band)
    ax.set(xlabel=x, ylabel=y)
    return ax


def heat_map_figure(
    images: ArrayLike | Tensor | None,
    maps: Mapping[str, ArrayLike],
    filters: Mapping[str, int],
    *,
    rows: Sequence[str] = (),
    title: str = "",
    figure: Figure | None = None,
) -> Figure:
    """Images beside their entropy maps, one column per layer, each from 0 to ln D.

    As in targeted sparsity, Figures 1 and 4.

    Args:
        images: [n, C, H, W], a row each; one image [C, H, W] that all rows are of, as where a row
            is an epoch; or None: maps alone.
        maps: by layer, [n, A, B] in nats, the image's top row first.
        filters: D by layer.
        rows: a label each.
        title: above all.
        figure: to draw on; None: a new one of pyplot's.

    Raises:
        ValueError: for shapes that do not fit each other, and a layer without its number of
            filters.
    """
    maps = {name: as_array(m) for name, m in maps.items()}
    images = None if images is None else as_array(images)
    count = len(next(iter(maps.values()), ()))
    for name, m in maps.items():
        if m.ndim != 3 or len(m) != count or not count:
            needed = "[n, A, B] with the same n for all layers is needed"
            raise ValueError(f"maps of {name!r} have shape {m.shape}; {needed}")
    fits = images is None or images.ndim == 3 or (images.ndim == 4 and len(images) == count)
    if not maps or not fits:
        given = None if images is None else images.shape
        raise ValueError(
            f"images have shape {given} and there are {count} maps a layer; [{count}, C, H, W], "
            "[C, H, W] or None is needed"
        )
    if rows and len(rows) != count:
        raise ValueError(f"{len(rows)} labels for {count} rows; one each is needed")
    check_filters(maps, filters)
    figure = plt.figure() if figure is None else figure
    figure.set_layout_engine("constrained")
    first = 0 if images is None else 1
    columns = first + len(maps)
    _, height, width = next(iter(maps.values())).shape
    # inches, of a map; its width is what the labels leave, and what else is high has to be added,
    # or bands stay blank
    side = 1.3
    across = side * columns + 0.08 * max(map(len, rows), default=0) + 0.1
    high = side * count * GAP * height / width + (1 if title else 0.75)
    figure.set_size_inches(across, high)
    # the colour bars have a row of their own, so that images and maps line up; a column is one pair
    # of axes: they are dear
    axes = figure.subplots(2, columns, height_ratios=[1, 0.05 / count], squeeze=False)
    if images is not None:
        show_images(axes[0, 0], displayed(images if images.ndim == 4 else images[None]), count)
        axes[0, 0].set_title("image", size="small")
        axes[1, 0].remove()
    for column, (name, m) in enumerate(maps.items(), first):
        drawn = show_maps(axes[0, column], m, filters[name])
        axes[0, column].set_title(name, size="small")
        entropy_bar(figure, drawn, filters[name], cax=axes[1, column], orientation="horizontal")
    axes[0, 0].set_yticks(np.arange(len(rows)) * GAP + 0.5, rows, size="small")
    figure.supxlabel("entropy", size="x-small")
    if title:
        figure.suptitle(title, size="medium")
    return figure


def correlation_figure(
    histograms: Mapping[str, ArrayLike],
    epochs: Sequence[int] | None = None,
    *,
    figure: Figure | None = None,
) -> Figure:
    """How the correlations of a layer's filters change in training (targeted sparsity, Fig. 7).

    Epoch is on x, the coefficient on y. Colour is the share of the layer's pairs in a bin, on one
    logarithmic scale; white: none. Bins of layers with fewer than 500 pairs are drawn five at a
    time, or else a distribution of 120 pairs in 200 bins would be a bar code.

    Args:
        histograms: by layer, counts [E, bins] over −1 … 1 as `measures.correlation_histogram` gives
            them.
        epochs: of the rows, increasing; None: 0, 1, …
        figure: to draw on; None: a new one of pyplot's.

    Raises:
        ValueError: for shapes that do not fit each other, and epochs that do not increase.
    """
    counts = {name: as_array(h).astype(np.float64) for name, h in histograms.items()}
    count = len(next(iter(counts.values()), ()))
    at = np.arange(count) if epochs is None else np.asarray(epochs, dtype=np.float64)
    for name, h in counts.items():
        if h.ndim != 2 or h.shape[0] != len(at):
            needed = f"[{len(at)} epochs, bins] is needed"
            raise ValueError(f"histograms of {name!r} have shape {h.shape}; {needed}")
    if not count or not (np.diff(at) > 0).all():
        raise ValueError(
            f"epochs are {at.tolist()}; they have to increase, at least one, for at least one layer"
        )
    counts = {name: _coarser(h) for name, h in counts.items()}
    middles = (at[1:] + at[:-1]) / 2
    first, last = (middles[0], middles[-1]) if count > 1 else (at[0] + 0.5, at[0] - 0.5)
    # a column reaches half-way to the next epoch
    edges = np.concatenate([[2 * at[0] - first], middles, [2 * at[-1] - last]])
    shares = {name: 100 * h / np.maximum(h.sum(1, keepdims=True), 1) for name, h in counts.items()}

    width = min(3, len(shares))
    height = -(-len(shares) // width)
    figure = plt.figure() if figure is None else figure
    figure.set_layout_engine("constrained")
    figure.set_size_inches(2.3 * width + 0.8, 2.1 * height + 0.2)
    axes = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True)
    norm = LogNorm(0.02, 50)  # the same in all figures, so that they can be compared
    for ax in axes.flat[len(shares) :]:
        ax.remove()
    for ax, (name, share) in zip(axes.flat, shares.items(), strict=False):
        ax.grid(False)
        places = np.linspace(-1, 1, share.shape[1] + 1)
        some = np.ma.masked_equal(share.T, 0)
        drawn = ax.pcolormesh(edges, places, some, cmap="YlGnBu", norm=norm)
        ax.set_title(f"{name}: {counts[name][-1].sum():.0f} pairs", size="small")
        ax.tick_params(labelsize="small")
        ax.set_ylim(-1.04, 1.04)  # pairs at ±1 must not hide under the frame
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.xaxis.set_tick_params(labelbottom=True)  # also above a panel that was removed
    for ax in axes[:, 0]:
        ax.set_ylabel("correlation", size="small")
    figure.supxlabel("epoch (0: before training)", size="small")
    how = {"aspect": 30, "extend": "both", "format": "%g", "ticks": [0.1, 1, 10]}
    bar = figure.colorbar(drawn, ax=list(figure.axes), **how)
    bar.set_label("% of the pairs", size="small")
    bar.ax.tick_params(labelsize="small")
    return figure


def _coarser(counts: np.ndarray) -> np.ndarray:
    """[E, bins] → [E, bins / 5] where there are few pairs."""
    few = counts.shape[1] % 5 == 0 and counts[-1].sum() < 500
    return counts.reshape(len(counts), -1, 5).sum(2) if few else counts


def show_images(ax: Axes, images: np.ndarray, rows: int = 0) -> None:
    """Images as `displayed` gives them, one below the other, with room for as many as `rows`."""
    _stack(ax, images, max(rows, len(images)), cmap="gray", vmin=0, vmax=1)


def show_maps(ax: Axes, entropies: np.ndarray, filters: int) -> AxesImage:
    """Maps [n, A, B] from 0 to ln D, each with its row 0 on top as in the image."""
    return _stack(ax, entropies, len(entropies), cmap="viridis", vmin=0, vmax=highest(filters))


def entropy_bar(figure: Figure, drawn: AxesImage, filters: int, **options: Any) -> None:
    """The colour bar of maps from 0 to ln D, in nats."""
    bar = figure.colorbar(drawn, ticks=[0, highest(filters)], **options)
    bar.set_ticklabels(["0", f"ln {filters} = {math.log(filters):.2f} nats"], size="x-small")
    if bar.orientation == "horizontal":  # inside the bar's width
        for text, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
            text.set_horizontalalignment(side)


def highest(filters: int) -> float:
    """ln D, the largest entropy; ln 2 for a single filter, whose scale needs a length, too."""
    return math.log(max(filters, 2))


def displayed(images: np.ndarray) -> np.ndarray:
    """[n, C, H, W] on any scale → 0 … 1, [n, H, W, 3] or, unless C = 3, the channels' mean."""
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        images = (images - low) / max(high - low, 1e-12)
    return images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images.mean(1)


def as_array(values: ArrayLike | Tensor) -> np.ndarray:
    """float32, from anything: a tensor on any device, half precision as runs store it."""
    values = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(values, dtype=np.float32)


def check_filters(maps: Mapping[str, np.ndarray], filters: Mapping[str, int]) -> None:
    """Refuse, with a ValueError, maps of layers whose number of filters is not given."""
    if absent := [name for name in maps if filters.get(name, 0) < 1]:
        raise ValueError(
            f"filters lacks the number of filters of {', '.join(absent)}; the colour scale ends at "
            "its logarithm"
        )


def when(epoch: int) -> str:
    """An epoch in words; 0 is before training."""
    return f"epoch {epoch}" if epoch else "before training"


def _stack(ax: Axes, pictures: np.ndarray, rows: int, **colours: Any) -> AxesImage:
    """Pictures [n, A, B, …] of height 1 below each other; the axis points down from 0."""
    width = pictures.shape[2] / pictures.shape[1]
    for k, picture in enumerate(pictures):
        place = (0, width, k * GAP + 1, k * GAP)  # left, right, bottom, top
        drawn = ax.imshow(picture, extent=place, origin="upper", interpolation="nearest", **colours)
    ax.grid(False)
    ax.set(xlim=(0, width), ylim=((rows - 1) * GAP + 1, 0), aspect="equal", frame_on=False)
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    return drawn
