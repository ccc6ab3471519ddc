"""Penalties on activations as pure functions of tensors, their schedules, and a small class each to attach them.

al2, weights = ActivationL2(model, "trunk"), al2_weights(epochs)
loss = F.cross_entropy(model(images), labels) + weights[epoch] * al2.penalty()
"""

import numpy as np
from torch import Tensor, nn

# Equation 2 of the AL2 paper: λ_0, the factor up to the threshold, the threshold, the factor from there on.
AL2_START, AL2_FAST, AL2_THRESHOLD, AL2_SLOW = 0.01, 1.1, 5.0, 1.01
PAPER_EPOCHS = 700


def al2_weights(num_epochs: int, speed: float = 1) -> np.ndarray:
    """λ_e of the AL2 paper (Eq. 2), float64 [num_epochs]: 0.01 first, then × 1.1 while below 5, × 1.01 after that.

    Args:
        num_epochs: E; entry e is used in the (e+1)-th epoch.
        speed: entry e is λ at speed·e, interpolated geometrically between whole epochs: a shorter training runs along
            the same curve. 1 is the paper's.

    Raises:
        ValueError: if `num_epochs` is below 1 or `speed` not positive.
    """
    if num_epochs < 1 or not 0 < speed < np.inf:
        raise ValueError(f"num_epochs is {num_epochs} and speed {speed}; at least 1 epoch and a positive speed are needed")
    whole, part = np.divmod(speed * np.arange(num_epochs, dtype=np.float64), 1)
    series = [AL2_START]
    while len(series) < whole[-1] + 2:
        series.append(series[-1] * (AL2_FAST if series[-1] < AL2_THRESHOLD else AL2_SLOW))
    before, after = (np.array(series)[whole.astype(int) + k] for k in (0, 1))
    return before * (after / before) ** part


def schedule(name: str, num_epochs: int, speed: float = 1, rate: float | None = None) -> np.ndarray:
    """The series λ_e by name, float64 [num_epochs], in the paper's epochs t = speed · e.

    `al2`: Eq. 2 (takes no rate). `geometric`: 0.01 · rate^t. `linear`: 0.01 + rate · t. `constant`: rate. The default rates
    make `geometric` and `linear` end, and `constant` average, where `al2` does over the paper's 700 epochs.

    Raises:
        ValueError: for an unknown name, a rate given to `al2`, or a rate that is not positive.
    """
    weights = al2_weights(num_epochs, speed)  # also checks both
    if name == "al2":
        if rate is not None:
            raise ValueError(f"rate is {rate}, but the schedule 'al2' has none: change its speed instead")
        return weights
    reference = al2_weights(PAPER_EPOCHS)
    end, span = reference[-1], PAPER_EPOCHS - 1
    defaults = {
        "geometric": (end / AL2_START) ** (1 / span),
        "linear": (end - AL2_START) / span,
        "constant": reference.mean(),
    }
    if name not in defaults:
        raise ValueError(f"schedule is {name!r}; allowed: al2, {', '.join(defaults)}")
    rate = defaults[name] if rate is None else rate
    if not rate > 0:
        raise ValueError(f"rate is {rate}; it has to be positive")
    t = speed * np.arange(num_epochs, dtype=np.float64)
    if name == "geometric":
        return AL2_START * rate**t
    return AL2_START + rate * t if name == "linear" else np.full_like(t, rate)


def activation_l2(phi: Tensor) -> Tensor:
    """L_r of the AL2 paper: mean of φ² over the batch and all units, a scalar (Eq. 1 and the protocol's reading of it)."""
    return phi.square().mean()


class ActivationL2:
    """L_r of one layer's output in any network, measured whenever the network runs.

    The mean is taken inside the hook, of a copy: an in-place ReLU that follows overwrites the output, which would change
    the value if it were taken later, and break the gradient of the mean if it had kept the output itself.

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
        self._value = activation_l2(output.clone())

    def penalty(self) -> Tensor:
        """L_r of the last forward pass, a differentiable scalar.

        Raises:
            RuntimeError: if the network has not run since the penalty was attached.
        """
        if self._value is None:
            raise RuntimeError(f"nothing has been measured at {self.layer!r} yet: run the network forward first")
        return self._value

    def remove(self) -> None:
        """Detach from the network."""
        self._hook.remove()
        self._value = None


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The submodule called `layer`; a ValueError that lists the names if there is none."""
    layers = {name: module for name, module in model.named_modules() if name}
    if layer not in layers:
        raise ValueError(f"the network has no layer {layer!r}; its layers are {', '.join(layers)}")
    return layers[layer]
