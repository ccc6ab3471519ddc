"""Penalties on activations and filters as pure functions of tensors, their schedules, and a small
class each to attach them.

al2, weights = ActivationL2(model, "trunk"), al2_weights(epochs)
sparsity, decorrelation = SparsityReg(model, {"conv3": 0.001}), DecorrReg(model, {"conv1": 1.0},
pairs="abs") loss = F.cross_entropy(model(images), labels)
loss = loss + weights[epoch] * al2.penalty() + sparsity.penalty() + decorrelation.penalty()
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Equation 2 of the AL2 paper: λ_0, the factor up to the threshold, the threshold, the factor from
# there on.
AL2_START, AL2_FAST, AL2_THRESHOLD, AL2_SLOW = 0.01, 1.1, 5.0, 1.01
# How the entropies of a batch can be joined, see `SparsityReg`.
BATCHES = ("mean", "sum")
# How the filters' correlation can be read, see `decorrelation`.
CENTRES, PAIRS, REDUCTIONS = ("own", "mean_filter"), ("signed", "abs", "square"), ("sum", "mean")
FILTER_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def al2_weights(num_epochs: int, speed: float = 1) -> np.ndarray:
    """λ_e of the AL2 paper (Eq. 2), float64 [num_epochs]: 0.01 first, then × 1.1 while below 5, ×
    1.01 after that.

    Args:
        num_epochs: E; entry e is used in the (e+1)-th epoch.
        speed: entry e is λ at speed·e, interpolated geometrically between whole epochs: a shorter
            training runs along the same curve. 1 is the paper's.

    Raises:
        ValueError: if `num_epochs` is below 1 or `speed` not positive.
    """
    if num_epochs < 1 or not 0 < speed < np.inf:
        raise ValueError(
            f"num_epochs is {num_epochs} and speed {speed}; at least 1 epoch and a positive speed "
            "are needed"
        )
    whole, part = np.divmod(speed * np.arange(num_epochs, dtype=np.float64), 1)
    series = [AL2_START]
    while len(series) < whole[-1] + 2:
        series.append(series[-1] * (AL2_FAST if series[-1] < AL2_THRESHOLD else AL2_SLOW))
    before, after = (np.array(series)[whole.astype(int) + k] for k in (0, 1))
    return before * (after / before) ** part


def activation_l2(phi: Tensor) -> Tensor:
    """L_r of the AL2 paper: mean of φ² over the batch and all units, a scalar (Eq. 1 and the
    protocol's reading of it).

    Half precision is widened.
    """
    return phi.to(torch.promote_types(phi.dtype, torch.float32)).square().mean()


_measuring = True  # whether attached penalties measure when their network runs


@contextmanager
def unmeasured() -> Iterator[None]:
    """Within it, penalties that are attached to a network measure nothing when it runs: an
    evaluation is then faster.

    What `.penalty()` gives stays that of the last forward pass outside.
    """
    global _measuring
    before, _measuring = _measuring, False
    try:
        yield
    finally:
        _measuring = before


class ActivationL2:
    """L_r of one layer's output in any network, measured whenever the network runs.

    The mean is taken inside the hook, of a copy: an in-place ReLU that follows overwrites the
        output, which would change
    the value if it were taken later, and break the gradient of the mean if it had kept the output
    itself.

    Args:
        model: any module.
        layer: name of the layer whose output is penalised, as in `model.named_modules()`.

    Raises:
        ValueError: for a layer that the model does not have; the message lists those it has.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.layer = layer
        self._value: Tensor | None = None
        self._hook = find_layer(model, layer).register_forward_hook(self._measure)

    def _measure(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if _measuring:
            self._value = activation_l2(output.clone())

    def penalty(self) -> Tensor:
        """L_r of the last forward pass, a differentiable scalar.

        Raises:
            RuntimeError: if the network has not run since the penalty was attached.
        """
        if self._value is None:
            raise RuntimeError(
                f"nothing has been measured at {self.layer!r} yet: run the network forward first"
            )
        return self._value

    def remove(self) -> None:
        """Detach from the network."""
        self._hook.remove()
        self._value = None


def rfav_entropy(activations: Tensor) -> Tensor:
    """Entropy of the receptive-field activation vectors, in nats, 0 … ln D (targeted sparsity, Eq.
    2–4).

    The softmax over a layer's D filters turns the vector of linear outputs at one receptive field
    into a distribution; low entropy means a sparse vector. exp(entropy) is the perplexity.

    Args:
        activations: *linear* outputs of a layer (bias included, before batch norm and ReLU): [N, D]
            of a dense layer, [N, D, A, B] of a convolution (or with any number of positions'
            dimensions). Half precision is widened.

    Returns:
        [N], [N, A, B]: an entropy for each receptive field.

    Raises:
        ValueError: for a tensor without a dimension of filters.
    """
    if activations.dim() < 2:
        raise ValueError(
            f"activations have shape {tuple(activations.shape)}; [N, D] or [N, D, A, B] is needed"
        )
    # [N, D, A, B] → [N, A, B, D]: contiguous where the network runs in channels_last
    return _Entropy.apply(activations.movedim(1, -1))[0]


class _Entropy(torch.autograd.Function):
    """H = −Σ p ln p of p = softmax(z) over the last dimension, with a gradient of its own: dH/dz =
    −(p ln p + H p).

    Written out, it takes two passes over the activations where autograd's chain of operators takes
    six. It keeps nothing of z, which an in-place ReLU may overwrite. p and p ln p are outputs, so
    that the gradient can be differentiated again. Forward-mode derivatives are not there.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z [..., D] → H [...], p [..., D], p ln p [..., D]; float32 at least."""
        # log_softmax subtracts the maximum first: logits of ±1e4 stay finite, and p ln p is 0 where
        # p underflows
        log_p = F.log_softmax(vectors, -1, dtype=torch.promote_types(vectors.dtype, torch.float32))
        p = log_p.exp()
        p_log_p = log_p.mul_(p)
        return -p_log_p.sum(-1), p, p_log_p

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(
        ctx, of_entropy: Tensor | None, of_p: Tensor | None, of_p_log_p: Tensor | None
    ) -> Tensor | None:
        entropy, p, p_log_p = ctx.saved_tensors
        terms = []
        if of_entropy is not None:
            terms.append(
                torch.addcmul(p_log_p, p, entropy.unsqueeze(-1)) * -of_entropy.unsqueeze(-1)
            )
        if of_p is not None:  # these two only where a gradient of the gradient is taken
            terms.append(p * (of_p - (p * of_p).sum(-1, keepdim=True)))
        if of_p_log_p is not None:
            own = of_p_log_p * (p_log_p + p)
            terms.append(own - p * own.sum(-1, keepdim=True))
        return sum(terms[1:], terms[0]).to(ctx.dtype) if terms else None


def perplexity(activations: Tensor) -> Tensor:
    """exp(entropy) of the activation vectors: 1 … D filters that share the answer (targeted
    sparsity, Eq. 2).
    """
    return rfav_entropy(activations).exp()


def layer_entropy(layer: nn.Module, output: Tensor) -> Tensor:
    """`rfav_entropy` of a layer's output. A linear layer has its filters last, [N, …, D],
    everything else second.
    """
    return rfav_entropy(output.movedim(-1, 1) if isinstance(layer, nn.Linear) else output)


def filter_correlation(weight: Tensor, centre: str = "own") -> Tensor:
    """Pearson's correlation of the filters of a layer, pairwise: [D, D] (targeted sparsity, Eq. 6).

    Args:
        weight: of a convolution or dense layer, [D, …]; a row is one filter. Half precision is
            widened.
        centre: `own` subtracts each filter's own mean (numpy.corrcoef); `mean_filter` the mean of
            all filters, as Eq. 6 reads literally: each then correlates with the others to about −1
                in sum from the start. A filter of which nothing is
            left (a constant one; one equal to the mean filter) correlates with none: 0.

    Raises:
        ValueError: for an unknown centre, or a weight without a dimension beside the filters'.
    """
    if weight.dim() < 2:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; [D, …] with at least one more dimension is "
            "needed"
        )
    _allowed("centre", centre, CENTRES)
    filters = weight.flatten(1).to(
        torch.promote_types(weight.dtype, torch.float32)
    )  # [D, …] → [D, F]
    centred = filters - filters.mean(1 if centre == "own" else 0, keepdim=True)
    # rounding of the mean leaves a constant filter up to 4 eps off zero (sums of 9 … 100,000
    # terms): that has no direction
    norm = centred.norm(dim=1, keepdim=True)
    kept = norm > 16 * torch.finfo(filters.dtype).eps * filters.detach().norm(dim=1, keepdim=True)
    unit = torch.where(kept, centred, 0) / torch.where(kept, norm, 1)
    return unit @ unit.T


def decorrelation(
    weight: Tensor, *, centre: str = "own", pairs: str = "signed", reduce: str = "sum"
) -> Tensor:
    """Σ over pairs of filters of their correlation, each pair once: a scalar (targeted sparsity,
    Eq. 7).

    Args:
        weight: [D, …].
        centre: see `filter_correlation`.
        pairs: `signed` c as Eq. 7 has it (which rewards anti-correlation), `abs` |c|, or `square`
            c².
        reduce: `sum`, as Eq. 7 has it, or `mean` over the D (D − 1) / 2 pairs.

    Raises:
        ValueError: for an unknown option.
    """
    _allowed("pairs", pairs, PAIRS)
    _allowed("reduce", reduce, REDUCTIONS)
    c = filter_correlation(weight, centre)
    c = {"signed": c, "abs": c.abs(), "square": c.square()}[pairs]
    total = c.tril(-1).sum()
    return total / max(len(c) * (len(c) - 1) // 2, 1) if reduce == "mean" else total


class SparsityReg:
    """L_s = −Σ_i λ_i Σ_k H_k of chosen layers of any network, summed over receptive fields (Eq. 5).

    The entropy is taken inside a forward hook, of what the layer gives, before an in-place ReLU can
    overwrite it.

    Args:
        model: any module.
        layers: λ_i by name of the layer, as in `model.named_modules()`; 0.001 in the paper.
        batch: `mean` or `sum` over the images of a batch. Eq. 5 has one image and the paper does
            not say; with the sum the same λ is as many times stronger as a batch has images.

    Raises:
        ValueError: for a layer that the model does not have (the message lists those it has), one
            that is neither a convolution nor linear, a λ that is negative or not finite, and an
            unknown `batch`.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, float], batch: str = "mean") -> None:
        self.weights = _checked_layers(model, layers, "λ")
        _allowed("batch", batch, BATCHES)
        self.batch = batch
        self._values: dict[str, Tensor] = {}
        self._hooks = [
            find_layer(model, name).register_forward_hook(self._measure(name))
            for name in self.weights
        ]

    def _measure(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if _measuring:
                entropy = layer_entropy(module, output)  # [N, A, B] or [N]
                total = entropy.sum()
                self._values[name] = total / len(entropy) if self.batch == "mean" else total

        return hook

    def penalty(self) -> Tensor:
        """L_s of the last forward pass, a differentiable scalar (0 if no layer is regularised).

        Raises:
            RuntimeError: if a layer has not run since the penalty was attached.
        """
        if absent := self.weights.keys() - self._values.keys():
            raise RuntimeError(
                f"nothing has been measured at {', '.join(sorted(absent))} yet: run the network "
                "forward first"
            )
        return -_total(weight * self._values[name] for name, weight in self.weights.items())

    def remove(self) -> None:
        """Detach from the network."""
        for hook in self._hooks:
            hook.remove()
        self._values.clear()


class DecorrReg:
    """L_c = Σ_i κ_i Σ_d Σ_{e>d} c_{d,e} of the filters of chosen layers of any network (Eq. 6 and
    7).

    Args:
        model: any module.
        layers: κ_i by name of the layer; 1 in the paper.
        centre, pairs, reduce: see `decorrelation`; the defaults are the equations' (with each
            filter's own mean).

    Raises:
        ValueError: as for `SparsityReg`, and for an unknown option.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, float],
        *,
        centre: str = "own",
        pairs: str = "signed",
        reduce: str = "sum",
    ) -> None:
        self.weights = _checked_layers(model, layers, "κ")
        for name, value, known in (
            ("centre", centre, CENTRES),
            ("pairs", pairs, PAIRS),
            ("reduce", reduce, REDUCTIONS),
        ):
            _allowed(name, value, known)
        self.options = {"centre": centre, "pairs": pairs, "reduce": reduce}
        self._layers = {name: find_layer(model, name) for name in self.weights}

    def penalty(self) -> Tensor:
        """L_c of the weights as they are now, a differentiable scalar; needs no forward pass."""
        return _total(
            kappa * decorrelation(self._layers[name].weight, **self.options)
            for name, kappa in self.weights.items()
        )

    def remove(self) -> None:
        """Forget the network."""
        self._layers.clear()
        self.weights.clear()


def filter_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers of a network by name, in the order in which they are
    registered.
    """
    return {
        name: module for name, module in model.named_modules() if isinstance(module, FILTER_LAYERS)
    }


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The submodule called `layer`; a ValueError that lists the names if there is none."""
    layers = {name: module for name, module in model.named_modules() if name}
    if layer not in layers:
        raise ValueError(f"the network has no layer {layer!r}; its layers are {', '.join(layers)}")
    return layers[layer]


def _checked_layers(model: nn.Module, layers: Mapping[str, float], symbol: str) -> dict[str, float]:
    for name, weight in layers.items():
        if not isinstance(find_layer(model, name), FILTER_LAYERS):
            found, known = (
                type(find_layer(model, name)).__name__,
                ", ".join(filter_layers(model)) or "none",
            )
            raise ValueError(
                f"{name!r} is a {found}; only convolutions and linear layers have filters: {known}"
            )
        if not 0 <= weight < math.inf:
            raise ValueError(f"{symbol} of {name!r} is {weight}; it has to be a number ≥ 0")
    return dict(layers)


def _total(terms: Iterable[Tensor]) -> Tensor:
    terms = list(terms)
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _allowed(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(known)}")
