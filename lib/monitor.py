"""Sparsity while it happens.

A TensorBoard writer for any training loop, and an explorer of stored heat maps for notebooks::

    with Monitor("logs/mine", images[:4], measure_images=images) as monitor:
        monitor.log(model, 0)  # before training
        for epoch in range(1, epochs + 1):
            train(model)
            monitor.log(model, epoch)

trainer.fit(runs, callback=monitor.watch) does the same for this project's runs. To see it:
`tensorboard --logdir logs --samples_per_plugin images=1000` (without the latter TensorBoard keeps
ten epochs' pictures), and "Show actual image size".
"""

import io
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lib import measures
from lib.losses import filter_layers, layer_weight
from lib.plots import (
    as_array,
    check_filters,
    correlation_figure,
    displayed,
    entropy_bar,
    heat_map_figure,
    highest,
    show_images,
    show_maps,
    when,
)
from lib.run import Run

MOST_IMAGES = 16


class Monitor:
    """Writes what targeted sparsity looks at to TensorBoard (C1, Fig. 1–7).

    Tags: `entropy/<layer>` mean entropy in nats (scalars, and all layers in one chart under Custom
    Scalars), `correlations/<layer>` the coefficients of all pairs of filters (histograms of 200
    bins), `heat_maps` the images beside their maps, `correlations_over_epochs` the same histograms
    with the epoch on x (both pictures).

    The network is left as it was: in its modes, without gradients, with no random number drawn.
    Where a log is continued, as after an interruption, what it already held of the same or later
    epochs gives way to the new; the picture of correlations over epochs then begins where it goes
    on. Correlations are of layers of at most 1,024 filters.

    Args:
        log_dir: folder for TensorBoard, made by the first `log`.
        images: [n, C, H, W], at most 16, scaled as the network takes them: those drawn.
        layers: names of convolutions or linear layers; None: all that run but the last, which is
            the classifier.
        measure_images: [N, C, H, W] that the mean entropies are over (1,000 in the paper); None:
            `images`.
        every: draw the pictures, which take most of a log's time, at every so many epochs only; the
            rest is written at each.
        batch: images that go through the network at a time, which bounds the memory.

    Raises:
        ValueError: for images of another shape or of whole numbers, which are not scaled, too many
            of them to draw, two sets of images of different channels or sizes, an `every` or a
            `batch` below 1, or a file where the folder would be.
    """

    def __init__(
        self,
        log_dir: str | Path,
        images: Tensor,
        layers: Sequence[str] | None = None,
        *,
        measure_images: Tensor | None = None,
        every: int = 1,
        batch: int = 500,
    ) -> None:
        self.images = _measured("images", images)
        if len(images) > MOST_IMAGES:
            raise ValueError(
                f"{len(images)} images cannot be drawn, {MOST_IMAGES} at most; give many as "
                "measure_images"
            )
        self.measure_images = None
        if measure_images is not None:
            self.measure_images = _measured("measure_images", measure_images)
            if measure_images.shape[1:] != images.shape[1:]:
                raise ValueError(
                    f"images have shape {tuple(images.shape)} and measure_images "
                    f"{tuple(measure_images.shape)}; they have to agree in channels and size"
                )
        if every < 1 or batch < 1:
            raise ValueError(f"every is {every} and batch {batch}; each has to be at least 1")
        self.log_dir = Path(log_dir).expanduser()
        if self.log_dir.is_file():
            raise ValueError(f"log_dir is {self.log_dir}, which is a file; give a folder")
        self.batch = batch
        self.every = every
        self.layers = None if layers is None else list(layers)
        self.closed = False
        self._writer = None
        self._epochs: list[int] = []
        self._histograms: dict[str, list[np.ndarray]] = {}
        self._runs: dict[str, Monitor] = {}

    def log(self, model: nn.Module, epoch: int) -> None:
        """Measure the network as it is after `epoch`; 0 is before training (−1 in the paper).

        Raises:
            ValueError: for a layer that the network does not have (the message lists those it has),
                and an epoch that does not come after the last one.
            RuntimeError: after `close`.
        """
        self._refuse_if_closed()
        epoch = operator.index(epoch)
        last = self._epochs[-1] if self._epochs else -1
        if epoch <= last:
            raise ValueError(
                f"epoch is {epoch}, but it has to be {last + 1} or more; open another monitor for "
                "another training"
            )
        layers = self._layers(model)
        like = next(model.parameters())
        # a network may draw random numbers even in eval mode; and only there is a spectral norm not
        # changed by a look at its weights
        drawn = torch.random.fork_rng([like.device] if like.is_cuda else [])
        with drawn, measures.eval_mode(model), torch.no_grad():
            maps = measures.entropy_maps(model, self.images.to(like), self.layers, batch=self.batch)
            if self.measure_images is None:
                means = {name: entropy.mean().item() for name, entropy in maps.items()}
            else:
                many = self.measure_images.to(like)
                means = measures.mean_entropies(model, many, list(maps), batch=self.batch)
            weights = {name: layer_weight(layers[name]) for name in maps}
            histograms = {
                name: measures.correlation_histogram(weight).cpu().numpy()
                for name, weight in weights.items()
                if len(weight) <= measures.MOST_FILTERS
            }

        writer = self._open(epoch)  # may fail: what is noted below is drawn together
        self._epochs.append(epoch)
        for name, counts in histograms.items():
            self._histograms.setdefault(name, []).append(counts)
        for name, entropy in means.items():
            writer.add_scalar(f"entropy/{name}", entropy, epoch)
        for name, counts in histograms.items():
            writer.add_histogram_raw(f"correlations/{name}", **_raw(counts), global_step=epoch)
        if epoch % self.every == 0:
            # [n, A, B]; not dense layers
            planes = {name: h.float().cpu().numpy() for name, h in maps.items() if h.dim() == 3}
            filters = {name: len(weight) for name, weight in weights.items()}
            if planes:
                figure = Figure(dpi=100)
                heat_map_figure(self.images, planes, filters, title=when(epoch), figure=figure)
                writer.add_figure("heat_maps", figure, epoch)
            self._draw_correlations()
        writer.flush()

    def watch(self, run: Run, model: nn.Module, epoch: int) -> None:
        """`log` for `trainer.fit(runs, callback=…)`.

        A run's log has its own folder, `log_dir`/<name of the run>, closed after its last epoch.
        """
        self._refuse_if_closed()
        if run.name not in self._runs:
            self._runs[run.name] = Monitor(
                self.log_dir / run.name,
                self.images,
                self.layers,
                measure_images=self.measure_images,
                every=self.every,
                batch=self.batch,
            )
        self._runs[run.name].log(model, epoch)
        if epoch == run.epochs:  # each has a thread that writes
            self._runs.pop(run.name).close()

    def close(self) -> None:
        """Draw what is not drawn yet and close the files; a second time does nothing."""
        for monitor in self._runs.values():
            monitor.close()
        try:
            if self._writer and self._epochs and self._epochs[-1] % self.every:
                self._draw_correlations()
        finally:
            if self._writer:
                self._writer.close()
            self._writer, self.closed = None, True

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise RuntimeError(f"the monitor of {self.log_dir} is closed; open another one")

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        known = filter_layers(model)
        names = list(known) if self.layers is None else self.layers
        if not names or not known.keys() >= set(names):
            wrong = ", ".join(repr(name) for name in names if name not in known) or "none"
            raise ValueError(
                f"layers: {wrong}; the network's convolutions and linear layers are "
                f"{', '.join(known) or 'none'}"
            )
        return {name: known[name] for name in names}

    def _open(self, epoch: int):
        if self._writer is None:
            # takes seconds: only where something is written
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.log_dir, purge_step=epoch)
            self._writer.add_custom_scalars(
                {"entropy": {"all layers (nats)": ["Multiline", ["entropy/.*"]]}}
            )
        return self._writer

    def _draw_correlations(self) -> None:
        stacked = {name: np.stack(rows) for name, rows in self._histograms.items()}
        if stacked:
            figure = correlation_figure(stacked, self._epochs, figure=Figure(dpi=100))
            self._writer.add_figure("correlations_over_epochs", figure, self._epochs[-1])


def explorer(
    images: ArrayLike | Tensor | None,
    heat_maps: Mapping[str, ArrayLike],
    epochs: Sequence[int],
    entropies: Mapping[str, Sequence[float]] | None = None,
    *,
    filters: Mapping[str, int],
):
    """An `ipywidgets.VBox` that shows `explored` of a layer, epoch and image chosen by hand (C1).

    Arguments and errors are those of `explored`.
    """
    import ipywidgets as widgets

    given = (images, heat_maps, epochs, entropies)
    _, maps, kept, _ = _explorable(*given, filters)
    count = len(next(iter(maps.values()))[0])
    layer = widgets.Dropdown(options=list(maps), description="layer")
    epoch = widgets.SelectionSlider(options=kept, description="epoch")
    image = widgets.IntSlider(0, 0, count - 1, description="image")
    label = "colours over this layer's own range"
    stretch = widgets.Checkbox(False, description=label, indent=False)
    picture = widgets.Image(format="png")

    def draw(change: object = None) -> None:
        chosen = {"layer": layer.value, "epoch": epoch.value, "image": image.value}
        figure = explored(*given, filters=filters, stretch=stretch.value, **chosen)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=figure.dpi)
        picture.value = file.getvalue()

    for control in (layer, epoch, image, stretch):
        control.observe(draw, "value")
    draw()
    return widgets.VBox([widgets.HBox([layer, epoch]), widgets.HBox([image, stretch]), picture])


def explored(
    images: ArrayLike | Tensor | None,
    heat_maps: Mapping[str, ArrayLike],
    epochs: Sequence[int],
    entropies: Mapping[str, Sequence[float]] | None = None,
    *,
    filters: Mapping[str, int],
    layer: str,
    epoch: int,
    image: int = 0,
    stretch: bool = False,
) -> Figure:
    """One image, its heat map in a layer after an epoch, and the layer's mean entropy by epoch.

    Args:
        images: [n, C, H, W]; None: the maps alone, where the images are not at hand.
        heat_maps: by layer, [epochs, n, A, B] in nats, as a run stores them ("heat maps <layer>").
        epochs: at which the maps were taken ("heat map epochs"); 0 is before training.
        entropies: by layer, the mean entropy before training and after each epoch: [E + 1].
        filters: D by layer; colours go from 0 to ln D.
        layer, epoch, image: one of those in the maps, and the image's number from 0.
        stretch: whether colours go over what the layer has at all epochs instead.

    Raises:
        ValueError: for shapes that do not fit each other, a layer without its number of filters,
            and a layer, epoch or image that there is not.
    """
    pictures, maps, kept, curves = _explorable(images, heat_maps, epochs, entropies, filters)
    numbers = range(len(next(iter(maps.values()))[0]))
    for name, value, known in (("layer", layer, maps), ("epoch", epoch, kept)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; there are {', '.join(map(str, known))}")
    if image not in numbers:
        raise ValueError(f"image is {image!r}; it has to be from 0 to {numbers[-1]}")
    panels = 1 + (pictures is not None) + (layer in curves)
    figure = Figure(figsize=(3 * panels, 3), dpi=90, layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if pictures is not None:
        ax = axes.pop(0)
        show_images(ax, pictures[[image]])
        ax.set_title(f"image {image}", size="medium")
    drawn = show_maps(axes[0], maps[layer][kept.index(epoch), [image]], filters[layer])
    if stretch:
        drawn.set_clim(maps[layer].min(), maps[layer].max())
        figure.colorbar(drawn, ax=axes[0], shrink=0.8).set_label("entropy (nats)")
    else:
        entropy_bar(figure, drawn, filters[layer], ax=axes[0], shrink=0.8)
    axes[0].set_title(f"{layer}, {when(epoch)}", size="medium")
    if layer in curves:
        axes[1].plot(range(len(curves[layer])), curves[layer], color="0.2")
        axes[1].axvline(epoch, color="tab:red", lw=1)
        axes[1].set(xlabel="epoch", ylabel="mean entropy (nats)", ylim=(0, highest(filters[layer])))
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        axes[1].set_title(f"{layer}, mean", size="medium")
    return figure


def _explorable(
    images: ArrayLike | Tensor | None,
    heat_maps: Mapping[str, ArrayLike],
    epochs: Sequence[int],
    entropies: Mapping[str, Sequence[float]] | None,
    filters: Mapping[str, int],
) -> tuple[np.ndarray | None, dict[str, np.ndarray], list[int], dict[str, np.ndarray]]:
    """The arrays that `explored` draws, images between 0 and 1; a ValueError where they misfit."""
    epochs = [int(e) for e in epochs]
    maps = {name: as_array(m) for name, m in heat_maps.items()}
    if images is not None:
        images = as_array(images)
        _check_images("images", images)
    counts = [m.shape[1] for m in maps.values() if m.ndim == 4]
    count = len(images) if images is not None else max(counts, default=0)
    for name, m in maps.items():
        if m.ndim != 4 or m.shape[:2] != (len(epochs), count):
            raise ValueError(
                f"heat maps of {name!r} have shape {m.shape}; [{len(epochs)}, {count}, A, B] "
                "is needed"
            )
    if not maps or not epochs:
        there = f"there are {len(maps)} layers and {len(epochs)} epochs to show"
        raise ValueError(f"{there}; at least one each is needed")
    check_filters(maps, filters)
    curves = {name: as_array(curve) for name, curve in (entropies or {}).items()}
    for name, curve in curves.items():
        if curve.ndim != 1 or len(curve) <= max(epochs):
            raise ValueError(
                f"entropies of {name!r} have shape {curve.shape}; one before training and one an "
                "epoch are needed"
            )
    return None if images is None else displayed(images), maps, epochs, curves


def _raw(counts: np.ndarray) -> dict:
    """A histogram over −1 … 1 as TensorBoard takes it; sums are those of the bins' middles.

    Without its empty outer bins, which the tab Distributions would draw as spikes at ± 1.
    """
    edges = np.linspace(-1, 1, len(counts) + 1)
    filled = np.flatnonzero(counts)
    first, last = (filled[0], filled[-1]) if len(filled) else (0, len(counts) - 1)
    edges, counts = edges[first : last + 2], counts[first : last + 1]
    middles = (edges[1:] + edges[:-1]) / 2
    return {
        "min": float(edges[0]),
        "max": float(edges[-1]),
        "num": int(counts.sum()),
        "sum": float(counts @ middles),
        "sum_squares": float(counts @ middles**2),
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": counts.tolist(),
    }


def _measured(name: str, images: np.ndarray | Tensor) -> Tensor:
    """Images that a network can be run on; a ValueError for others."""
    _check_images(name, images)
    if not isinstance(images, Tensor):
        # stays on the CPU, whatever the session's default device is; a view that is turned round,
        # as from BGR to RGB, is copied
        images = torch.as_tensor(np.ascontiguousarray(images), device="cpu")
    if not images.is_floating_point():
        raise ValueError(
            f"{name} are {images.dtype}; floating-point numbers, scaled as the network takes them, "
            "are needed"
        )
    return images


def _check_images(name: str, images: np.ndarray | Tensor) -> None:
    if images.ndim != 4 or len(images) == 0:
        shape = tuple(images.shape)
        raise ValueError(f"{name} have shape {shape}; [n, C, H, W], at least one image, is needed")
