"""What is measured on a trained network: pure functions of tensors."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ABLATION_FRACTIONS = tuple(k / 10 for k in range(11))


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right predictions in %, a scalar. logits [N, K], labels [N]."""
    return 100 * (logits.argmax(1) == labels).float().mean()


def cumulative_ablation(
    head: Callable[[Tensor], Tensor],
    phi: Tensor,
    labels: Tensor,
    *,
    mask: str = "element",
    generator: torch.Generator | None = None,
    orders: int = 3,
) -> Tensor:
    """Accuracy in % as more and more of φ is set to zero: [11], at 0, 10, … 100 % (AL2, section 5.2).

    Nothing is rescaled. Take φ in eval mode and give a head in eval mode.

    Args:
        head: maps φ to logits [N, K].
        phi: features [N, units] or [N, channels, …].
        labels: [N].
        mask: `element`, an independent coin for each image and unit, anew at each fraction (the AL2 authors' code);
            `shared`, one random order of units for all images, nested over fractions (Morcos et al., 2018);
            `channel`, the same for whole feature maps (dimension 1 of φ).
        generator: of the coins and orders, on φ's device; None: the global one.
        orders: random orders averaged over, for `shared` and `channel`.

    Raises:
        ValueError: for an unknown mask, no images, or numbers of features and labels that differ.
    """
    if len(phi) != len(labels) or len(phi) == 0:
        raise ValueError(f"{len(phi)} feature vectors and {len(labels)} labels; they have to be as many, and at least one")
    if mask not in ("element", "shared", "channel"):
        raise ValueError(f"mask is {mask!r}; allowed: element, shared, channel")
    if orders < 1:
        raise ValueError(f"orders is {orders}; at least one is needed")

    def curve(keep: Callable[[float], Tensor]) -> Tensor:
        return torch.stack([accuracy(head(phi * keep(f)), labels) for f in ABLATION_FRACTIONS])

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=phi.device)

    with torch.no_grad():
        if mask == "element":
            return curve(lambda f: draw(*phi.shape) >= f)
        shape = (1, *phi.shape[1:]) if mask == "shared" else (1, phi.shape[1], *[1] * (phi.dim() - 2))
        curves = []
        for _ in range(orders):
            # rank of each unit in a random order: the first round(f · units) are ablated, so fractions are exact and nested
            rank = draw(math.prod(shape)).argsort().argsort()
            units = rank.numel()
            curves.append(curve(lambda f, rank=rank, units=units: rank.view(shape) >= round(f * units)))
        return torch.stack(curves).mean(0)


def ablation_area(accuracies: Tensor | Sequence[float]) -> float:
    """Area under an ablation curve by the trapezoid rule over fractions 0 … 1: a constant 100 % gives 100 (Table 2)."""
    values = torch.as_tensor(accuracies, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(f"an ablation curve is one row of at least two accuracies, not of shape {tuple(values.shape)}")
    return torch.trapezoid(values, dx=1 / (len(values) - 1)).item()
