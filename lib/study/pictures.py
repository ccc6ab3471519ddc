"""Pictures of the method: the networks with the places of the penalties, and the way of the data.

What they show is read from the models and the code, so that it cannot differ from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from textwrap import fill

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from lib import models
from lib.run import SPARSITY_NETWORKS
from lib.study.experiments import REGULARISED

WIDTH = 4.6  # inches: text stays legible on a page of 400 pixels
FILL, LINE = "0.96", "0.35"
PENALTY_COLOURS = dict(
    zip(("AL2", "SparsityReg", "DecorrReg"), sns.color_palette("colorblind")[:3], strict=True)
)
NOTES = {
    "AL2": "AL2 penalises the mean of φ², after dropout.",
    "SparsityReg": "SparsityReg: entropy of a layer's outputs, before what follows in its box.",
    "DecorrReg": "DecorrReg: correlation of the weights of a layer's filters.",
}
# Steps of a forward pass, by module or function.
STEPS = {
    "Identity": [],
    "Flatten": [],
    "BatchNorm2d": ["[batch norm]"],
    "Dropout": ["[dropout]"],
    "ReLU": ["ReLU"],
    "relu": ["ReLU"],
    "boolean_dispatch": ["pool"],
    "max_pool2d": ["pool"],
}
# From data to figures: what happens, the function or files that do it or hold it, what comes out.
FLOW = (
    ("data set", "lib.data.read", "images and true labels"),
    ("split", "lib.data.subset", "training, validation, measuring and test images"),
    ("corruption", "lib.data.corrupt_labels", "wrong labels in training and validation alone"),
    ("training", "lib.trainer.fit", "a network after each epoch, with or without penalties"),
    ("measures", "lib.trainer.measure", "accuracy, losses, L_r, ablation, entropy, CCA"),
    ("stored run", "lib.run_dir.finish", "config.json, env.json, metrics.csv, measures.npz"),
    ("frame", "lib.store.load", "one row per run and epoch"),
    ("figures and tables", "lib.study.evidence.load", "published beside measured, in notebooks"),
    ("claims", "lib.study.claims.judge", "cells and verdicts, in the report"),
)


@dataclass(frozen=True)
class Row:
    """A layer with filters, and what follows it up to the next one.

    Args:
        layer: its name in the model, such as "trunk.conv1".
        what: it does, such as "5×5, 1 → 20".
        then: what follows, in order; in brackets what only some variants have.
        shape: of what comes out at the end, without the batch.
    """

    layer: str
    what: str
    then: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()


class _Tracer(fx.Tracer):
    """Takes dropout, which has a generator of its own, as one step."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, models.Dropout) or super().is_leaf_module(module, name)


def network_rows(
    network: str, in_channels: int, image_size: int, num_classes: int
) -> tuple[list[Row], int]:
    """The steps of a network's forward pass, and how many rows of them belong to the trunk.

    They are traced on the model itself, with batch norm and dropout where it can have them.

    Args:
        network: of `lib.models.NETWORKS`.
        in_channels, image_size, num_classes: C, S, K.

    Raises:
        ValueError: as `lib.models.architecture`.
    """
    variants = {} if network in REGULARISED else {"batch_norm": True, "dropout": 0.5}
    model = models.architecture(network, in_channels, image_size, num_classes, **variants).eval()
    graph = fx.GraphModule(model, _Tracer().trace(model))
    ShapeProp(graph).propagate(torch.zeros(1, in_channels, image_size, image_size))
    rows, trunk = [], 0
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        layer = model.get_submodule(node.target) if node.op == "call_module" else node.target
        shape = tuple(node.meta["tensor_meta"].shape[1:])
        if isinstance(layer, nn.Conv2d):
            side, stride = layer.kernel_size[0], layer.stride[0]
            stride = f", stride {stride}" if stride > 1 else ""
            what = f"{side}×{side}{stride}, {layer.in_channels} → {layer.out_channels}"
            rows.append(Row(node.target, what, shape=shape))
            trunk = len(rows)
        elif isinstance(layer, nn.Linear):
            what = f"linear, {layer.in_features} → {layer.out_features}"
            rows.append(Row(node.target, what, shape=shape))
        else:
            rows[-1].then.extend(_named(layer))
            if not isinstance(layer, nn.Flatten):
                rows[-1] = replace(rows[-1], shape=shape)
    return rows, trunk


def _named(layer: object) -> list[str]:
    """What a step without filters, a module or a function, is called, if it does anything."""
    name = type(layer).__name__ if isinstance(layer, nn.Module) else layer.__name__
    return STEPS[name]


def penalty_places(network: str) -> dict[str, dict[str, str]]:
    """By penalty and layer, which of the papers' networks have it there.

    All networks with AL2 have it at the features φ; of LeNet and AlexNet there is one each.
    """
    if network == "al2_cnn":
        return {"AL2": {models.features_layer(network): ""}}
    if network in REGULARISED:
        return {"SparsityReg": dict.fromkeys(REGULARISED[network]["all"], "")}
    places: dict[str, dict[str, str]] = {}
    for name, kinds in SPARSITY_NETWORKS.items():
        for penalty, layers in zip(("SparsityReg", "DecorrReg"), kinds, strict=True):
            there = places.setdefault(penalty, {})
            for layer in layers:
                there[layer] = ", ".join(filter(None, (there.get(layer), name.removesuffix("Net"))))
    return places


def network(name: str, in_channels: int = 1, image_size: int = 28, num_classes: int = 10) -> Figure:
    """A network from top to bottom, with the places where each penalty attaches.

    Shapes are channels × height × width. Arguments and errors as `network_rows`.
    """
    rows, trunk = network_rows(name, in_channels, image_size, num_classes)
    places = penalty_places(name)
    notes = [NOTES[penalty] for penalty in places]
    if any("[" in step for row in rows for step in row.then):
        notes.append("In brackets: batch norm of BN and normNet, dropout of DO and dropNet.")
    fig, ax = _page(len(rows) + 1.3 + 0.3 * len(notes))
    ax.text(-0.6, len(rows) + 1.1, "\n".join(notes), va="top", fontsize=8, linespacing=1.4)
    _box(ax, 0, "images", "", 0.5)
    _arrow(ax, 0.5, 1, _size((in_channels, image_size, image_size)))
    for y, row in enumerate(rows, 1):
        short = row.layer.rpartition(".")[2]
        _box(ax, y, f"{short}: {row.what}", ", ".join(row.then), 0.62)
        phi = "φ, " if y == trunk else ""
        logits = " logits" if y == len(rows) else ""
        _arrow(ax, y + 0.62, y + 1, f"{phi}{_size(row.shape)}{logits}")
        for k, penalty in enumerate(p for p in places if short in places[p]):
            which = places[penalty][short]
            _tag(ax, y + 0.16 + 0.3 * k, penalty, f"{penalty} {which}".strip())
    if "AL2" in places:
        _tag(ax, trunk + 0.81, "AL2", "AL2", 2.8)
    for text, top, bottom in (("trunk φ", 1, trunk), ("head ψ", trunk + 1, len(rows))):
        ax.plot([-0.25, -0.25], [top, bottom + 0.62], color=LINE, lw=1.5)
        ax.text(-0.5, (top + bottom + 0.62) / 2, text, rotation=90, ha="center", va="center")
    return fig


def data_flow() -> Figure:
    """The way from a data set to the claims, with the function of `lib` that goes each step."""
    fig, ax = _page(len(FLOW))
    for y, (what, function, result) in enumerate(FLOW):
        _box(ax, y, what, function, 0.62, 4.0)
        ax.text(4.25, y + 0.31, fill(result, 30), va="center", fontsize=8.5)
        if y + 1 < len(FLOW):
            _arrow(ax, y + 0.62, y + 1, "")
    return fig


def _page(rows: float) -> tuple[Figure, Axes]:
    fig = plt.figure(figsize=(WIDTH, 0.62 * rows + 0.1), layout="none")
    ax = fig.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set(xlim=(-0.8, 8.2), ylim=(rows - 0.1, -0.08))
    ax.axis("off")
    return fig, ax


def _box(ax: Axes, y: float, title: str, below: str, height: float, width: float = 4.3) -> None:
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((0, y), width, height, style, fc=FILL, ec=LINE, lw=1))
    middle = y + height / 2
    if below:
        ax.text(width / 2, middle + 0.15, below, ha="center", va="center", fontsize=8)
        middle -= 0.13
    ax.text(width / 2, middle, title, ha="center", va="center", fontsize=9, weight="bold")


def _arrow(ax: Axes, start: float, end: float, text: str) -> None:
    arrow = {"arrowstyle": "-|>", "color": LINE, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (1.0, end), (1.0, start), arrowprops=arrow)
    ax.text(1.25, (start + end) / 2, text, va="center", fontsize=8.5)


def _tag(ax: Axes, y: float, penalty: str, text: str, left: float = 4.3) -> None:
    """A penalty's name on its colour, tied to what stands to the left of it."""
    colour = PENALTY_COLOURS[penalty]
    ax.plot([left, 4.7], [y, y], color=colour, lw=1.5)
    around = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": colour, "lw": 1.5}
    ax.text(4.8, y, text, va="center", fontsize=8.5, bbox=around)


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
