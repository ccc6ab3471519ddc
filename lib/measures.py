"""What is measured on a network and its curves: pure functions of tensors and arrays."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from lib.cca import (  # noqa: F401  (canonical correlations are measures, too)
    CanonicalCorrelations,
    Similarities,
    cca,
    channel_points,
    mean_cca,
    pwcca,
    similarities,
    svcca,
)
from lib.losses import eval_mode, filter_correlation, filter_layers, find_layer, layer_entropy

# ConvNet-xxl's fc1; the correlations of AlexNet's 4,096 units would take longer than an epoch
MOST_FILTERS = 1024
ABLATION_MASKS = ("element", "shared", "channel")
ABLATION_FRACTIONS = tuple(k / 10 for k in range(11))


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right predictions in %, a scalar. logits [N, K], labels [N].

    Where a logit is NaN nothing is predicted: the image counts as wrong.

    Raises:
        ValueError: for other shapes, which would be broadcast, and for no images.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or not logits.numel():
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; [N, K] and "
            "[N] with at least one image are needed"
        )
    right = (logits.argmax(1) == labels) & ~logits.amax(1).isnan()
    return 100 * right.float().mean()


def cumulative_ablation(
    head: Callable[[Tensor], Tensor],
    phi: Tensor,
    labels: Tensor,
    *,
    mask: str = "element",
    generator: torch.Generator | None = None,
    orders: int = 3,
) -> Tensor:
    """Accuracy in % as 0, 10, … 100 % of φ is set to zero, [11] (AL2, section 5.2).

    Nothing is rescaled. Take φ and the head in eval mode.

    Args:
        head: maps φ to logits [N, K].
        phi: features [N, units] or [N, channels, …].
        labels: [N].
        mask: `element`, an independent coin for each image and unit, anew at each fraction (the AL2
            authors' code); `shared`, one random order of units for all images, nested over
            fractions (Morcos et al., 2018); `channel`, the same for whole feature maps (dimension 1
            of φ).
        generator: of the coins and orders, on φ's device; None: the global one.
        orders: random orders averaged over, for `shared` and `channel`.

    Raises:
        ValueError: for an unknown mask, no images, no orders, and for features, labels or logits of
            other shapes.
    """
    if phi.dim() < 2 or labels.shape != phi.shape[:1] or not phi.numel():
        raise ValueError(
            f"features have shape {tuple(phi.shape)} and labels {tuple(labels.shape)}; [N, …] and "
            "[N] with at least one image are needed"
        )
    if mask not in ABLATION_MASKS:
        raise ValueError(f"mask is {mask!r}; allowed: {', '.join(ABLATION_MASKS)}")
    if orders < 1:
        raise ValueError(f"orders is {orders}; at least one is needed")

    def curve(keep: Callable[[float], Tensor]) -> Tensor:
        return torch.stack([accuracy(head(phi * keep(f)), labels) for f in ABLATION_FRACTIONS])

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=phi.device)

    with torch.no_grad():
        if mask == "element":
            return curve(lambda f: draw(*phi.shape) >= f)
        shape = phi.shape[1:] if mask == "shared" else (phi.shape[1], *[1] * (phi.dim() - 2))
        units = math.prod(shape)

        def in_a_random_order() -> Tensor:
            # the first round(f · units) of it are ablated, so fractions are exact and nested
            rank = draw(units).argsort().argsort().view(1, *shape)
            return curve(lambda f: rank >= round(f * units))

        return torch.stack([in_a_random_order() for _ in range(orders)]).mean(0)


def ablation_area(accuracies: Tensor | Sequence[float]) -> float:
    """Area under an ablation curve over fractions 0 … 1; a constant 100 % gives 100 (Table 2)."""
    values = torch.as_tensor(accuracies, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2:
        shape = tuple(values.shape)
        raise ValueError(f"an ablation curve is one row of at least two accuracies, not {shape}")
    return torch.trapezoid(values, dx=1 / (len(values) - 1)).item()


@torch.no_grad()
def entropy_maps(
    model: nn.Module, images: Tensor, layers: Sequence[str] | None = None, *, batch: int = 500
) -> dict[str, Tensor]:
    """Entropy of the activation vector at each receptive field, in nats.

    As in targeted sparsity, Eq. 4, Figures 1 and 4.

    Args:
        model: any module; runs in eval mode, uncompiled, and is left in the modes it was in.
        images: [N, C, H, W].
        layers: names of convolutions or linear layers; None: all of them whose entropies can be
            told, but the last to run, which is the classifier. (The output projection of an
            `nn.MultiheadAttention` does not run as a layer.)
        batch: images at a time, which bounds the memory.

    Returns:
        by layer, in the order in which they are registered: [N, A, B] of a convolution, row-major
        as the image; [N] of a dense layer, [N, T] where it acts on T tokens, wherever the network
        has its images. Where the network folds k parts of an image, such as windows or views, into
        the batch, in either order: [N, k, …]. The largest value possible is ln D for D filters.

    Raises:
        ValueError: for no images, a `batch` below 1, and for a layer that is not there (the message
            lists those there are), does not run, runs more than once, or whose rows cannot be told
            to be of which image.
    """
    parts: dict[str, list[Tensor]] = {}
    for found in entropy_batches(model, images, layers, batch=batch):
        for name, entropy in found.items():
            parts.setdefault(name, []).append(entropy)
    return {name: torch.cat(found) for name, found in parts.items()}


@torch.no_grad()
def mean_entropies(
    model: nn.Module, images: Tensor, layers: Sequence[str] | None = None, *, batch: int = 500
) -> dict[str, float]:
    """The means of `entropy_maps`, which are not kept: memory does not grow with the images."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for found in entropy_batches(model, images, layers, batch=batch):
        for name, entropy in found.items():
            sums[name] = sums.get(name, 0.0) + entropy.double().sum().item()
            counts[name] = counts.get(name, 0) + entropy.numel()
    return {name: sums[name] / counts[name] for name in sums}


def entropy_batches(
    model: nn.Module, images: Tensor, layers: Sequence[str] | None = None, *, batch: int = 500
) -> Iterator[dict[str, Tensor]]:
    """What `entropy_maps` gives, of `batch` images after the other.

    A look at one or two images first tells which dimension of an output grows with them.
    """
    if len(images) == 0 or batch < 1:
        raise ValueError(
            f"there are {len(images)} images to measure the entropy on, {batch} at a time; at "
            "least one each is needed"
        )
    modules = filter_layers(model)
    if layers is not None:
        modules = {name: find_layer(model, name) for name in layers}
    first, *others = images.split(batch)
    few = first[:2] if len(first) > 2 else torch.cat([first[:1]] * (3 - len(first)))
    looked, seen = (_entropies(model, some, modules) for some in (few, first))
    places, parts_first, problems = {}, {}, {}
    for name in modules:
        uses = [len(found[name]) for found in (looked, seen)]
        place = None
        if uses == [1, 1]:
            (one,), (many,) = looked[name], seen[name]
            place = _image_dimension(one.shape, many.shape, len(few), len(first))
        if place is None:
            problems[name] = _why_not(name, max(uses), seen[name], len(first))
        else:
            places[name] = place
            parts_first[name] = _parts_first(one, many, place, len(few), len(first))
    told = list(places)
    if layers is None:
        last = [name for name in seen if seen[name]][-1:]  # in the order in which they ran
        told = [name for name in told if name not in last]
    elif problems:
        told = []
    if not told:
        there = ", ".join(name for name in seen if name in places) or "none"
        said = "; ".join(problems.values()) or "the network has no hidden layer"
        raise ValueError(f"{said}, so there is no entropy; name the layers that do: {there}")
    wanted = {name: modules[name] for name in told}
    for part in (first, *others):
        found = seen if part is first else _entropies(model, part, wanted)
        for name in told:
            uses = found[name]
            if len(uses) != 1 or uses[0].shape[places[name]] % len(part):
                raise ValueError(_why_not(name, len(uses), uses, len(part)))
        yield {
            name: _by_image(found[name][0], places[name], len(part), parts_first[name])
            for name in told
        }


@torch.no_grad()
def _entropies(
    model: nn.Module, images: Tensor, modules: Mapping[str, nn.Module]
) -> dict[str, list[Tensor]]:
    """The entropies of every use of each layer, in the order in which the layers ran first."""
    found: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda m, i, out, name=name: found.setdefault(name, []).append(layer_entropy(m, out))
        )
        for name, module in modules.items()
    ]
    try:
        # a compiled graph runs no hooks that it was not compiled with
        with eval_mode(model), torch.compiler.set_stance("force_eager"):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found | {name: [] for name in modules if name not in found}


def _image_dimension(one: Sequence[int], other: Sequence[int], few: int, many: int) -> int | None:
    """The dimension that grows with the images, a multiple of them; None: there is no such one."""
    if len(one) != len(other):
        return None
    grown = [k for k, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    told = len(grown) == 1 and not one[grown[0]] % few
    return grown[0] if told and one[grown[0]] * many == other[grown[0]] * few else None


def _parts_first(one: Tensor, other: Tensor, place: int, few: int, many: int) -> bool:
    """Whether k·N rows are the first part of all N images, then the second, as `torch.cat` has it.

    Else they are all parts of one image after the other, as windows are. Rows of the same image and
    part in two looks are alike but for rounding.
    """
    one, other = one.movedim(place, 0), other.movedim(place, 0)
    rows, images = min(len(one), len(other)), min(few, many)
    by_image = one[:rows] - other[:rows]
    by_part = one.unflatten(0, (-1, few))[:, :images] - other.unflatten(0, (-1, many))[:, :images]
    return bool(by_part.abs().mean() + 1e-4 < by_image.abs().mean())


def _by_image(entropy: Tensor, place: int, images: int, parts_first: bool) -> Tensor:
    """[…, k·N, …] → [N, …], or [N, k, …] where k is not 1."""
    entropy = entropy.movedim(place, 0)
    if len(entropy) == images:
        return entropy
    if parts_first:
        return entropy.unflatten(0, (-1, images)).movedim(1, 0)
    return entropy.unflatten(0, (images, -1))


def _why_not(name: str, uses: int, found: Sequence[Tensor], images: int) -> str:
    if not uses:
        return f"{name} did not run"
    if uses > 1:
        return f"{name} ran more than once for each image; its entropies cannot be told apart"
    return (
        f"{name} gives entropies of shape {tuple(found[0].shape)} for {images} images; which are "
        "whose cannot be told"
    )


def hidden_layers(model: nn.Module) -> list[str]:
    """Names of a network's convolutions and linear layers but the last, the classifier."""
    return list(filter_layers(model))[:-1]


@torch.no_grad()
def correlation_rms(weight: Tensor) -> Tensor:
    """Root mean square of the correlations of pairs of filters, a scalar.

    It is 0 for none, 1 where all filters are alike. D filters in F dimensions, of which F − 1 are
    free without the mean, cannot have less than about 1 / √(F − 1) where D ≫ F.
    """
    return _rms(filter_correlation(weight.float()))


@torch.no_grad()
def correlation_histogram(weight: Tensor, bins: int = 200) -> Tensor:
    """How often each correlation of two filters of [D, …] occurs: counts [bins] over −1 … 1.

    Each pair counts once (targeted sparsity, Fig. 7), one whose correlation is NaN not at all. The
    last bin holds 1.
    """
    return _histogram(filter_correlation(weight), bins)


@torch.no_grad()
def correlation_summary(weight: Tensor, bins: int = 200) -> tuple[Tensor, Tensor]:
    """`correlation_rms` and `correlation_histogram` of a float32 weight, at the cost of one."""
    c = filter_correlation(weight.float())
    return _rms(c), _histogram(c, bins)


def _rms(c: Tensor) -> Tensor:
    pairs = max(len(c) * (len(c) - 1) // 2, 1)
    return (c.square().tril(-1).sum() / pairs).sqrt()


def _histogram(c: Tensor, bins: int) -> Tensor:
    below = torch.tril_indices(len(c), len(c), -1, device=c.device)
    pairs = c[below[0], below[1]]
    place = ((pairs + 1) * (bins / 2)).long().clamp_(0, bins - 1)
    # NaN in a bin of its own, which is dropped
    return torch.bincount(place.where(~pairs.isnan(), bins), minlength=bins + 1)[:bins]


def smoothed(curve: Sequence[float]) -> np.ndarray:
    """A curve smoothed by a Gaussian of σ = 2 epochs, its ends held.

    As in targeted sparsity, Fig. 3 (protocol, section 2).

    Raises:
        ValueError: for anything but one row of at least one value.
    """
    values = np.asarray(curve, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a curve is one row of values, at least one, not of shape {values.shape}")
    return gaussian_filter1d(values, sigma=2, mode="nearest")


def overfitting_onset(losses: Sequence[float]) -> int | None:
    """The epoch, counted from 1, at which the smoothed validation loss is least.

    None unless the loss ends more than 2 % above that: the network has not overfitted (protocol,
    section 2). `losses`: one an epoch, penalties left out.

    Raises:
        ValueError: for no epochs, or a loss that is not finite.
    """
    curve = _smoothed_loss(losses)
    return int(curve.argmin()) + 1 if curve[-1] > 1.02 * curve.min() else None


def rise_after_least(losses: Sequence[float]) -> float:
    """By how much the smoothed validation loss ends above its least value, in % of that.

    NaN or infinite where the least is 0. `losses` and errors: as for `overfitting_onset`.
    """
    curve = _smoothed_loss(losses)
    return float(100 * (curve[-1] / curve.min() - 1))


def _smoothed_loss(losses: Sequence[float]) -> np.ndarray:
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError("a loss curve has one finite value an epoch, at least one")
    return smoothed(values)
