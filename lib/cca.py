"""Canonical correlations of two representations, and their summaries: CCA, SVCCA, PWCCA."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# A channel whose values all lie within this many machine epsilons of each other, relative to the
# largest, is dead: what is left of it is rounding. Epsilon is that of the array as given, so the
# scale of a channel plays no part.
DEAD_SPREAD = 8
MAIN = 0.99  # share of the variance that SVCCA keeps (Raghu et al., 2017)


class CanonicalCorrelations(NamedTuple):
    """What `cca` gives."""

    coefficients: Tensor  # descending, in [0, 1], float64 [min(rank of x, rank of y)]
    dropped_x: int  # dead channels of x
    dropped_y: int


def channel_points(phi: Tensor) -> Tensor:
    """Features [N, C, …] as C channels for `cca`: [C, N·w·w] of [N, C, w, w] (AL2, section 5.1)."""
    if phi.dim() < 2:
        raise ValueError(f"features are [N, C, …], not of shape {tuple(phi.shape)}")
    return phi.movedim(1, 0).flatten(1)


def cca(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> CanonicalCorrelations:
    """The canonical correlations of two sets of channels at the same points (AL2, Eq. 3, Fig. 1).

    They are the singular values of Bx·Byᵀ with Bx, By orthonormal bases of the centred channels
    (Björck and Golub, 1973): no covariance is formed or inverted, which would cost half of the
    digits. Invariant to any invertible affine map of the channels. In float64 on the CPU.

    Channels count alike whatever their scale, one of 1e-8 beside one of 1. Dead ones, constant but
    for rounding (see DEAD_SPREAD), are dropped and counted. Live ones may depend linearly on each
    other (one channel twice): after scaling to unit variance, directions whose singular value is
    below C·ε of the largest hold rounding alone and are dropped, so a repeated channel changes
    nothing. ε is that of the array given (float64's: times √points): give the precision that it was
    computed in, since an upcast copy passes its rounding off as signal. A mean of k standard
    deviations makes a channel's rounding k times as large, so beyond k ≈ 10 dependence may go
    unnoticed. No live channel: no coefficients.

    Args:
        x: [channels, points], as `channel_points` makes them.
        y: [channels, points], the same points; the number of channels may differ.

    Raises:
        ValueError: for arrays that are not [channels, points], numbers of points that differ, NaN
            or infinity, and as few points as live channels: x (or y) then spans everything and each
            coefficient is 1 whatever the data. Where rank x + rank y > points − 1, as many
            coefficients as it exceeds are 1 for the same reason: take many points.
    """
    x, y = _pair(x, y)
    return CanonicalCorrelations(_correlate(x, _span(x), y, _span(y))[1], x.dropped, y.dropped)


def mean_cca(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> float:
    """Mean of the coefficients of `cca`, whose arguments and errors it has; NaN of none."""
    return cca(x, y).coefficients.mean().item()


def svcca(x: Tensor | np.ndarray, y: Tensor | np.ndarray, variance: float = MAIN) -> float:
    """Mean canonical correlation of the main principal directions of x and y (Raghu et al., 2017).

    Kept on each side are the fewest directions that hold `variance`, a share, of the sum of the
    channels' variances (squared singular values); 1 is `mean_cca`. Channels are centred but keep
    their scale, or else there were no main directions to speak of: unlike `cca` this is invariant
    to rotation and to one common scale only.

    Raises:
        ValueError: as `cca`, and for a share outside (0, 1].
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance is {variance}; a share above 0 and up to 1 is allowed")
    if variance == 1:
        return mean_cca(x, y)
    x, y = _pair(x, y)
    main = _correlate(x, _main_directions(x, variance), y, _main_directions(y, variance))[1]
    return main.mean().item()


def pwcca(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> float:
    """Mean canonical correlation, weighted by each direction's part in x (Morcos et al., 2018).

    It is Σ_i α_i ρ_i / Σ_i α_i with `α_i = Σ_j |⟨h_i, x_j⟩|`, h_i the i-th
    canonical variate of x (unit length over the points), x_j the centred channel j of x in its own
    scale. i runs over the coefficients of `cca`: where x has the larger rank, its directions
    without a partner in y have no weight. Not symmetric; invariant to any invertible affine map of
    y, and to one common scale of x and shifts of its channels. Arguments and errors as `cca`; NaN
    where there are no coefficients.
    """
    x, y = _pair(x, y)
    return _weighted(x, *_correlate(x, _span(x), y, _span(y)))


class Similarities(NamedTuple):
    """What `similarities` gives, each as the function of its name has it."""

    cca: CanonicalCorrelations
    mean_cca: float
    svcca: float
    pwcca: float


def similarities(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> Similarities:
    """The whole family at the cost of one decomposition; arguments and errors as `cca`."""
    x, y = _pair(x, y)
    variates, rho = _correlate(x, _span(x), y, _span(y))
    main = _correlate(x, _main_directions(x, MAIN), y, _main_directions(y, MAIN))[1]
    summaries = rho.mean().item(), main.mean().item(), _weighted(x, variates, rho)
    return Similarities(CanonicalCorrelations(rho, x.dropped, y.dropped), *summaries)


def _weighted(x: "_Channels", variates: Tensor, rho: Tensor) -> float:
    """Mean of ρ weighted by how much of x's channels each variate accounts for."""
    alpha = (variates.T @ x.r).abs().sum(1)  # ⟨h_i, x_j⟩: both are Q times what stands here
    return ((alpha * rho).sum() / alpha.sum()).item()


class _Channels(NamedTuple):
    """Centred live channels as the columns of Q·R; what concerns one array is read from R alone."""

    q: Tensor  # orthonormal columns, float64 [points, C]
    r: Tensor  # [C, C]
    # singular values of unit channels below this share of the largest are rounding
    tolerance: float
    dropped: int


def _pair(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> tuple[_Channels, _Channels]:
    x, y = _channels(x, "x"), _channels(y, "y")
    if len(x.q) != len(y.q):
        points = f"x has {len(x.q)} points and y {len(y.q)}"
        raise ValueError(f"{points}; they have to be the same points")
    return x, y


def _channels(given: Tensor | np.ndarray, name: str) -> _Channels:
    """Live channels of [channels, points], centred; the errors of `cca` that concern one array."""
    if np.ma.is_masked(given):
        raise ValueError(f"{name} is masked; leave the masked points out of x and of y")
    if isinstance(given, Tensor):
        x = given.detach().cpu()
    else:  # a copy, since torch takes neither read-only ones nor negative strides
        x = torch.from_numpy(np.array(given, order="C"))
    if x.dim() != 2 or x.shape[0] < 1 or x.shape[1] < 2 or x.is_complex():
        raise ValueError(
            f"{name} is [channels, points] of real numbers, at least one and two, not of shape "
            f"{tuple(x.shape)} and {x.dtype}; channel_points makes it of convolutional features"
        )
    epsilon = torch.finfo(x.dtype if x.dtype.is_floating_point else torch.float64).eps
    low, high = x.aminmax(dim=1)
    low, high = low.double(), high.double()
    if not (low.isfinite() & high.isfinite()).all():  # a NaN is least and greatest at once
        bad = ~x.isfinite()
        raise ValueError(
            f"{name} has {int(bad.sum())} values that are NaN or infinite, in "
            f"{int(bad.any(1).sum())} of {len(x)} channels; correlations need finite ones"
        )
    live = high - low > DEAD_SPREAD * epsilon * torch.maximum(low.abs(), high.abs())
    dropped = int((~live).sum())
    points = (x[live] if dropped else x).to(torch.float64, copy=True)
    if len(points) >= points.shape[1]:
        raise ValueError(
            f"{name} has {points.shape[1]} points for {len(points)} live channels, which then span "
            "everything, and all correlations are 1; give more points than channels, several "
            "times as many"
        )
    for _ in range(2):  # the first mean is rounded, which shows where it is far from 0
        points -= points.mean(1, keepdim=True)
    # Householder's QR is as accurate in a small column as in a large one: scaling can wait
    q, r = torch.linalg.qr(points.T)
    # the rounding of the array given, or that of QR here, which grows with the number of points
    tolerance = len(r) * max(epsilon, math.sqrt(len(q)) * torch.finfo(torch.float64).eps)
    return _Channels(q, r, tolerance, dropped)


def _span(x: _Channels) -> Tensor:
    """Columns u [C, rank] such that Q·u is an orthonormal basis of what the channels span."""
    if x.r.numel() == 0:
        return x.r
    scaled = x.r / x.r.abs().amax(0)  # first, so that no square underflows
    u, s, _ = torch.linalg.svd(scaled / scaled.norm(dim=0))
    return u[:, s > x.tolerance * s[0]]


def _main_directions(x: _Channels, variance: float) -> Tensor:
    """Columns u: those of Q·u are the first principal directions, which hold `variance`."""
    if x.r.numel() == 0:
        return x.r
    u, s, _ = torch.linalg.svd(x.r / x.r.abs().max())
    held = s.square().cumsum(0)
    return u[:, : int((held < variance * held[-1]).sum()) + 1]


def _correlate(x: _Channels, u: Tensor, y: _Channels, v: Tensor) -> tuple[Tensor, Tensor]:
    """Canonical variates of x, as Q·[C, k], and correlations [k] of the spans of Q·u and Q·v."""
    left, rho, _ = torch.linalg.svd(u.T @ (x.q.T @ y.q) @ v, full_matrices=False)
    return u @ left, rho.clamp(max=1)
