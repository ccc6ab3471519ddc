"""Penalties on activations and filters, to attach to any network.

Pure functions of tensors, with their schedules, and a small class each to attach them::

    al2 = ActivationL2(model, "trunk")
    weights = al2_weights(epochs)
    sparsity = SparsityReg(model, {"conv3": 0.001})
    decorrelation = DecorrReg(model, {"conv1": 1.0}, pairs="abs")

    loss = F.cross_entropy(model(images), labels)
    loss = loss + weights[epoch] * al2.penalty() + sparsity.penalty() + decorrelation.penalty()

This file needs nothing but torch and numpy, so it can be copied into another project as it is.

Which passes `.penalty()` of ActivationL2 and SparsityReg speaks of:

- those made with gradients, outside a backward, since the read before. The first such pass after a
  read begins anew; a second read without a pass between gives the very same tensor. Several uses of
  a layer in that time (two views, a shared layer) are averaged over all their samples.
- Passes without gradients (`torch.no_grad`, frozen layers) count for nothing and measure nothing.
  After a read and its backward, though, they leave nothing to read: the value would be that of a
  training step that is over.
- A backward through the layer ends the collection, too, even if nobody read. What is recomputed
  inside a backward (checkpointing with use_reentrant=False) does not count.
- Passes while a network is traced or exported count for nothing. In a compiled network all of this
  holds but for the backward: there only a read ends the collection. A checkpoint may lie inside of
  what is compiled, or around a part of the network, not around all of it.
- A pass that fails with an error does not count, as where a loop goes on with a smaller batch.
- A copy of the network, by deepcopy or pickle, is free of penalties.

A sample is an entry of the layer's first dimension, unless the layer itself says otherwise
(recurrent layers and attention with `batch_first=False`, a convolution of a single image) or the
penalty is told by `samples`:

- `samples=1`: another dimension counts them, as in a transformer of [T, N, D].
- `samples="input"`: those that the network is called with count (the first dimension of its first
  tensor), of which the layer may hold several entries: windows, frames, two views.
- `samples=0`: entries of the first dimension, however many samples the network was called with.

Where the number of samples matters, the penalty is not told, and the layer's first dimension is
that of none of the tensors which the network was called with, an error asks for it.
"""

import contextlib
import functools
import itertools
import math
import operator
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# Equation 2 of the AL2 paper.
AL2_START = 0.01  # λ_0
AL2_FAST = 1.1  # the factor up to the threshold
AL2_THRESHOLD = 5.0
AL2_SLOW = 1.01  # the factor from there on
AL2_LONGEST = 70_000  # epochs; λ is 1e303 by then
# How the entropies of a batch can be joined, see `SparsityReg`.
BATCHES = ("mean", "sum")
# How the filters' correlation can be read, see `filter_correlation` and `decorrelation`.
CENTRES = ("own", "mean_filter")
PAIRS = ("signed", "abs", "square")
REDUCTIONS = ("sum", "mean")
CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}  # dimensions of positions
FILTER_LAYERS = (*CONVOLUTIONS, nn.Linear)
# What gives a tuple with the activations first.
_TUPLES = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)


def al2_weights(num_epochs: int, speed: float = 1) -> np.ndarray:
    """λ_e of the AL2 paper (Eq. 2), float64 [num_epochs].

    0.01 first, then × 1.1 while below 5, × 1.01 after that.

    Args:
        num_epochs: E; entry e is used in the (e+1)-th epoch.
        speed: entry e is λ at speed·e, interpolated geometrically between whole epochs: a shorter
            training runs along the same curve. 1 is the paper's.

    Raises:
        ValueError: if `num_epochs` is below 1, `speed` not positive, or so many epochs at that
            speed that λ would overflow.
        TypeError: if `num_epochs` is no whole number.
    """
    num_epochs = operator.index(num_epochs)
    if num_epochs < 1 or not 0 < speed < np.inf:
        raise ValueError(
            f"num_epochs is {num_epochs} and speed {speed}; at least 1 epoch and a positive speed "
            "are needed"
        )
    if speed * (num_epochs - 1) > AL2_LONGEST:
        raise ValueError(
            f"num_epochs is {num_epochs} and speed {speed}; together they may reach epoch "
            f"{AL2_LONGEST} of the paper's series, beyond which λ is no number any more"
        )
    whole, part = np.divmod(speed * np.arange(num_epochs, dtype=np.float64), 1)
    series = [AL2_START]
    while len(series) < whole[-1] + 2:
        series.append(series[-1] * (AL2_FAST if series[-1] < AL2_THRESHOLD else AL2_SLOW))
    before, after = (np.array(series)[whole.astype(int) + k] for k in (0, 1))
    return before * (after / before) ** part


def activation_l2(phi: Tensor) -> Tensor:
    """L_r of the AL2 paper: mean of φ² over the batch and all units, a scalar.

    Eq. 1, in the protocol's reading of it. Half precision is widened; complex φ counts by its
    squared modulus.

    Raises:
        ValueError: for a φ without a value, which has no mean.
    """
    if not phi.numel():
        raise ValueError(f"phi has shape {tuple(phi.shape)}; at least one value is needed")
    phi = phi.to(torch.promote_types(phi.dtype, torch.float32))
    if phi.is_complex():
        return (phi.real.square() + phi.imag.square()).mean()
    return phi.square().mean()


# Uses of one layer that may wait for a read: each keeps the graph of its pass in memory.
MAX_UNREAD = 100

# Why there is nothing to read of a layer.
_NEVER = "has not run since the penalty was attached"
_PASSED_OVER = (
    "did not run when the network did: it was replaced, or it is a layer whose weights another one "
    "uses itself, such as the out_proj of nn.MultiheadAttention (penalise that one)"
)
_NOT_AGAIN = "has not run since the last read or backward"
_FAILED = "has run in a pass only that failed with an error"
_WITHOUT_GRADIENTS = (
    "has run without gradients only: there was only evaluation since, or all that it depends on is "
    "frozen, or it lies in a torch.utils.checkpoint with use_reentrant=True (pass "
    "use_reentrant=False there)"
)
_COMPILED = (
    ". A network that was compiled and has run takes no notice of penalties attached since: attach "
    "before the first pass, or call torch.compiler.reset()"
)
_COPY = "this penalty is a copy, which is attached to no network; attach a new one"
_REMOVED = "this penalty was removed from its network; attach a new one"


class _Call:
    """One call of the network, and the sizes of the first dimensions of what it was given."""

    def __init__(self, sizes: tuple[int, ...], outer: "_Call | None") -> None:
        self.sizes = sizes
        self.outer = outer  # the call that this one was made in


class _Use(NamedTuple):
    """One use of a layer that was collected."""

    value: Tensor  # what was measured, a scalar
    count: int  # samples, by the layer's own output
    told: bool  # whether that is certain
    call: _Call | None  # of the network, that it was part of


_Uses = list[_Use]


class _Round:
    """One collection of passes: knows whether it is over, and nothing else.

    It is also the hook that a backward calls at a layer's output. The graph keeps such a hook
    alive. If the hook kept the measured values, which keep the graph alive in turn, that would be a
    circle through C++ that Python's garbage collector cannot see, and memory would never be freed.
    """

    # torch.save of a layer's output shall not warn that this hook is not saved
    __torch_unserializable__ = True

    def __init__(self, over: bool = False, depth: int = 0) -> None:
        self.over = over
        self.watched = False  # whether a backward through a layer would be noticed
        self.backward = False  # whether there was one
        self.depth = depth  # how many transforms of torch.func the passes were made in

    def __call__(self, gradient: Tensor) -> None:
        self.over = True
        self.backward = True


class _Hook:
    """A hook of one module. A copy of it, in a copy of the network, does nothing."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call = call

    def __call__(self, *given: Any) -> None:
        self.call(*given)

    def __reduce__(self) -> tuple:
        # deepcopy and pickle put this in the hook's place: a function that takes three arguments
        # and returns None. It is from the standard library, so that a pickled network can be loaded
        # where this file is not installed, and refers to no penalty, so that a copy of the network
        # does not report to the penalty of the original.
        return getattr, (contextlib.nullcontext(), "__exit__")


def _is_outermost_call(model: nn.Module) -> bool:
    """Whether the call of the network that asks was made in no other call of it."""
    calls = 0
    frame = sys._getframe()
    while frame is not None:
        named = frame.f_code.co_name == "_call_impl"  # in which PyTorch calls the hooks
        calls += named and frame.f_locals.get("self") is model
        frame = frame.f_back
    return calls == 1


class _Passes:
    """The passes of some layers that a penalty speaks of, see the top of this file."""

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str],
        measure: Callable[[nn.Module, Tensor], Tensor],  # (layer, output) → a scalar, of each use
        max_unread: int,
        samples: int | str | None,
    ) -> None:
        if max_unread < 1:
            raise ValueError(f"max_unread is {max_unread}; at least 1 is needed")
        dimension = isinstance(samples, int) and not isinstance(samples, bool) and samples >= 0
        if not (samples in (None, "input") or dimension):
            raise ValueError(
                f"samples is {samples!r}; allowed: None, the number of a dimension, 'input'"
            )
        modules = {name: find_layer(model, name) for name in layers}
        for name, module in {"the network": model, **modules}.items():
            if isinstance(module, torch.jit.ScriptModule):
                raise ValueError(
                    f"{name} is a {type(module).__name__}, which takes no hooks; attach penalties "
                    "to a network that is not scripted"
                )
        self.measure = measure
        self.max_unread = max_unread
        self.samples = samples
        self.thread = threading.local()  # .call: the call of the network that a thread is in
        self.thread.call = None
        self.called = False  # whether the network, and not only parts of it, has run
        self.closed = ""  # why nothing can be read any more
        self.missing = dict.fromkeys(modules, _NEVER)  # why nothing can be read of a layer
        self.uses: dict[str, _Uses] = {}
        self.joined: Tensor | None = None  # what the last read gave
        self.recomputed: Tensor | None = None  # what a checkpoint did, in compiled code
        self.round = _Round(over=True)
        # The hooks know this object, but it does not know them: no circle, so memory is freed at
        # once when the network and the penalty are dropped.
        self.handles = [
            module.register_forward_hook(_Hook(functools.partial(self.see, name)))
            for name, module in modules.items()
        ]
        if modules:
            self.handles += [
                model.register_forward_pre_hook(_Hook(self.enter), with_kwargs=True),
                model.register_forward_hook(_Hook(self.leave), always_call=True),
            ]

    def enter(self, model: nn.Module, inputs: tuple, named: dict) -> None:
        """Called by the hook of the network before it runs."""
        if self.closed:
            return
        self.recomputed = None
        # where a pass was interrupted by hand, the hook that ends its call was not called
        if self._call() and not torch.compiler.is_compiling() and _is_outermost_call(model):
            while call := self._call():
                self._forget(call)
                self.thread.call = call.outer
        sizes = ()
        if not (torch.compiler.is_exporting() or torch.jit.is_tracing()):
            sizes = _first_dimensions([*inputs, *named.values()])
        self.thread.call = _Call(sizes, self._call())
        if torch.is_grad_enabled():
            self.called = True

    def leave(self, model: nn.Module, inputs: tuple, output: Any) -> None:
        """Called by the hook of the network after it has run; a pass that failed is no pass."""
        call = self._call()
        if self.closed or call is None:
            return
        # PyTorch calls this within its `except` where the pass failed, with nothing as the output
        if output is None and sys.exc_info()[0] is not None:
            self._forget(call)
        self.thread.call = call.outer

    def _forget(self, call: _Call) -> None:
        """Drop what was seen in a call that failed."""
        for name in list(self.uses):
            self.uses[name] = [use for use in self.uses[name] if use.call is not call]
            if not self.uses[name]:
                self.missing[name] = _FAILED
                del self.uses[name]

    def _call(self) -> _Call | None:
        return getattr(self.thread, "call", None)  # in a thread of its own there is none at first

    def see(self, name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        """Called by the hook of layer `name` whenever it runs."""
        if self.closed:  # what is compiled may go on calling hooks that were removed
            return
        if not torch.is_grad_enabled():
            self._note_evaluation(name)
            return
        if isinstance(output, torch.fx.Proxy):  # the network is traced, not run
            return
        output = _activations(name, module, output)
        # Compilers follow this very code: what they cannot follow is left out for them.
        compiling = torch.compiler.is_compiling()
        depth = 0 if compiling else torch._C._functorch.get_dynamic_layer_stack_depth()
        # within torch.func's transforms, `requires_grad` does not tell
        if not (output.requires_grad or depth):
            self._note_evaluation(name)
            return
        if torch.compiler.is_exporting() or (not compiling and torch.jit.is_tracing()):
            return
        call = self._call()
        count, told = self._count(name, module, output)
        measured = _Use(self.measure(module, output), count, told, call)
        # Inside a backward a checkpoint recomputes the layer. What was measured is thrown away, but
        # it had to be measured: the checkpoint counts the tensors that are kept for the backward,
        # and demands as many as in the first pass.
        if not compiling and torch._C._current_graph_task_id() != -1:
            return
        # Compiled code cannot ask that; but the network itself is not running then. A value that
        # is kept nowhere would be left out of the compiled code.
        if compiling and self.called and call is None:
            self.recomputed = measured.value
            return
        if self.round.over or self.round.depth != depth:
            self._begin(depth)
        uses = self.uses.setdefault(name, [])
        if len(uses) >= self.max_unread:
            raise RuntimeError(
                f"{name!r} has run {len(uses)} times with gradients and the penalty was not read: "
                "call .penalty() after each pass, run evaluation under torch.no_grad(), or, where "
                "one pass uses the layer more often, attach the penalty with a larger max_unread"
            )
        uses.append(measured)
        if not compiling and output.grad_fn is not None:
            _with_history(output).register_hook(self.round)
            self.round.watched = True

    def _count(self, name: str, layer: nn.Module, output: Tensor) -> tuple[int, bool]:
        """How many samples an output holds, and whether that is certain."""
        if not output.numel():
            return 0, True
        dims = output.dim()
        if isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)):
            return (output.shape[0 if layer.batch_first else 1] if dims == 3 else 1), True
        if isinstance(layer, nn.RNNCellBase) and dims == 1:
            return 1, True
        positions = _positions(layer)
        if dims == 0 or (positions is not None and dims == positions + 1):  # of one sample
            return 1, True
        dimension = self.samples if isinstance(self.samples, int) else 0
        if positions:  # a convolution has its samples first
            dimension = 0
        # the last of a linear layer are its filters
        if dimension >= (dims if positions is None else dims - 1):
            raise ValueError(
                f"samples is {dimension}, but {name!r} gives {tuple(output.shape)}, which has no "
                "such dimension of samples; attach a penalty of its own to it"
            )
        return output.shape[dimension], isinstance(self.samples, int)

    def counts(self, name: str, uses: _Uses) -> list[int]:
        """The number of samples of each use of layer `name`; a RuntimeError if not told or none."""
        found = [use.count if use.told else self._asked(name, use) for use in uses]
        if not sum(found):
            raise RuntimeError(
                f"{name!r} has run on an empty batch, of which there is no mean; leave such "
                "batches out"
            )
        return found

    def _asked(self, name: str, use: _Use) -> int:
        sizes = use.call.sizes if use.call else ()
        if self.samples == "input":
            if not sizes:
                raise RuntimeError(
                    f"samples is 'input', but {name!r} ran outside of a call of the network with "
                    "a tensor; call the network that the penalty was attached to"
                )
            return sizes[0]
        if sizes and use.count not in sizes:
            raise RuntimeError(
                f"{name!r} gives {use.count} entries in its first dimension, where the network was "
                f"called with {', '.join(map(str, sizes))} samples; say what a sample is: "
                "samples=0 such an entry, samples=1 (or another) an entry of that dimension, "
                "samples='input' what the network is called with"
            )
        return use.count

    def _note_evaluation(self, name: str) -> None:
        # between a read and its backward nothing gets old: what was read can be read again
        if self.joined is None or self.round.backward or not self.round.watched:
            self.missing[name] = _WITHOUT_GRADIENTS

    def _begin(self, depth: int) -> None:
        for name in self.uses:
            self.missing[name] = _NOT_AGAIN
        self.uses = {}
        self.joined = None
        self.round = _Round(depth=depth)

    def read(self, join: Callable[[dict[str, _Uses]], Tensor]) -> Tensor:
        """What `join` makes of the uses of all layers, the same tensor until there are new ones."""
        if self.closed:
            raise RuntimeError(self.closed)
        if self.joined is not None and _WITHOUT_GRADIENTS not in self.missing.values():
            return self.joined
        self.round.over = True
        absent = {name: why for name, why in self.missing.items() if name not in self.uses}
        if absent:
            said = [
                f"{name!r} {_PASSED_OVER if why == _NEVER and self.called else why}"
                for name, why in absent.items()
            ]
            raise RuntimeError(
                f"no penalty to read: {'; '.join(said)}. Run the network forward with gradients "
                f"first{_COMPILED if _NEVER in absent.values() else ''}"
            )
        if torch.is_grad_enabled():
            self.joined = join(self.uses)
        else:  # read for a log: a later read gives the same tensor to a loss
            with torch.inference_mode(False), torch.enable_grad():
                self.joined = join(self.uses)
        self.uses = {}
        self.missing = dict.fromkeys(self.missing, _NOT_AGAIN)
        return self.joined

    def remove(self) -> None:
        """Detach from the network and drop what was collected."""
        for handle in self.handles:
            handle.remove()
        self._close(_REMOVED)

    def _close(self, why: str) -> None:
        self.closed = self.closed or why
        self.handles = []
        self.thread = None
        self.uses = {}
        self.joined = None
        self.recomputed = None
        self.round = _Round(over=True)

    def __getstate__(self) -> dict:
        """For deepcopy and pickle: a copy is attached to nothing, and keeps no tensors."""
        copy = object.__new__(_Passes)
        copy.__dict__.update(self.__dict__)
        copy._close(_COPY)
        return copy.__dict__


def _with_history(output: Tensor) -> Tensor:
    """Where a hook hears of every backward through a layer's output: the output itself.

    Or what it is a view of (`nn.Flatten`), which an in-place ReLU gives another history.
    """
    base = output._base
    return output if base is None or base.grad_fn is None else base


def _first_dimensions(inputs: list) -> tuple[int, ...]:
    """Of the tensors among a network's inputs, and of those that are values of a mapping there."""
    inputs = [v for x in inputs for v in (x.values() if isinstance(x, Mapping) else [x])]
    # size(0), since a nested tensor has no shape
    return tuple(x.size(0) for x in inputs if isinstance(x, Tensor) and x.dim())


def _activations(name: str, layer: nn.Module, output: Any) -> Tensor:
    """The tensor that a penalty measures; a TypeError for what cannot be measured."""
    if isinstance(layer, _TUPLES) and isinstance(output, tuple):
        output = output[0]
    if not isinstance(output, Tensor):
        given = type(output).__name__
    elif output.is_nested or output.layout != torch.strided:
        given = f"{'nested' if output.is_nested else 'sparse'} tensor"
    elif output.is_floating_point() or output.is_complex():
        return output
    else:
        given = f"tensor of {output.dtype}, which has no gradients"
    raise TypeError(
        f"{name!r}, a {type(layer).__name__}, gives a {given}; a penalty needs a layer that gives "
        "one dense tensor of floating-point numbers (of recurrent layers and attention it takes "
        "the first of the tuple): name a layer inside it, or an nn.Identity that the tensor passes"
    )


def _mean_square(layer: nn.Module, output: Tensor) -> Tensor:
    # Taken of a copy: an in-place ReLU that follows overwrites the output, which would change the
    # value if it were taken later, and break the gradient of the mean if it kept the output itself.
    return activation_l2(output.clone()) if output.numel() else output.real.sum()


def _sum_of_entropies(layer: nn.Module, output: Tensor) -> Tensor:
    return layer_entropy(layer, output).sum()


class ActivationL2:
    """L_r of one layer's output in any network, measured whenever the network runs with gradients.

    Args:
        model: any module.
        layer: name of the layer whose output is penalised, as in `model.named_modules()`.
        max_unread: uses of the layer that may wait for a read; the next is a RuntimeError.
        samples: what counts samples, see the top of this file; it plays a part where several uses
            of the layer are averaged.

    Raises:
        ValueError: for a layer that the model does not have (the message lists those it has) or
            that takes no hooks, `max_unread` below 1, and a `samples` that is none.

    Of a recurrent layer and of nn.MultiheadAttention the first of the tuple is meant. A layer that
    gives anything but a tensor of floating-point or complex numbers is a TypeError when it runs.
    """

    metric = "activation_l2"

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        *,
        max_unread: int = MAX_UNREAD,
        samples: int | str | None = None,
    ) -> None:
        self.layer = layer
        self._passes = _Passes(model, [layer], _mean_square, max_unread, samples)

    def penalty(self) -> Tensor:
        """L_r of the passes since the read before, over all their samples, a differentiable scalar.

        Raises:
            RuntimeError: if there is nothing to read (says why), or an empty batch alone; where the
                number of samples of several uses cannot be told; after `remove`; of a copy.
        """
        return self._passes.read(self._join)

    def _join(self, uses: dict[str, _Uses]) -> Tensor:
        own = [use for use in uses[self.layer] if use.count] or uses[self.layer]
        if len(own) == 1 and own[0].count:
            return own[0].value
        counts = self._passes.counts(self.layer, own)
        shares = [count / sum(counts) for count in counts]
        return _total(use.value * share for use, share in zip(own, shares, strict=True))

    def remove(self) -> None:
        """Detach from the network."""
        self._passes.remove()


def rfav_entropy(activations: Tensor) -> Tensor:
    """Entropy of the receptive-field activation vectors, in nats, 0 … ln D.

    Targeted sparsity, Eq. 1, 3 and 4: the softmax over a layer's D filters turns the vector of
    linear outputs at one receptive field into a distribution; low entropy means a sparse vector.

    Args:
        activations: *linear* outputs of a layer (bias included, before batch norm and ReLU): [N, D]
            of a dense layer, [N, D, A, B] of a convolution (or with any number of dimensions of
            positions). Half precision is widened.

    Returns:
        [N], [N, A, B]: an entropy for each receptive field.

    Raises:
        ValueError: for a tensor without filters, or of complex numbers, which have no order.
    """
    if activations.dim() < 2 or not activations.shape[1] or activations.is_complex():
        raise ValueError(
            f"activations have shape {tuple(activations.shape)} and are {activations.dtype}; [N, "
            "D] or [N, D, A, B] of real numbers is needed"
        )
    # [N, D, A, B] → [N, A, B, D]: contiguous where the network runs in channels_last
    return _Entropy.apply(activations.movedim(1, -1))[0]


class _Entropy(torch.autograd.Function):
    """H = −Σ p ln p of p = softmax(z) over the last dimension, with a gradient of its own.

    dH/dz = −(p ln p + H p). Written out, it takes two passes over the activations where autograd's
    chain of operators takes six. It keeps nothing of z, which an in-place ReLU may overwrite. p and
    p ln p are outputs, so that the gradient can be differentiated again. Forward-mode derivatives
    are not there.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z [..., D] → H [...], p [..., D], p ln p [..., D]; float32 at least."""
        # log_softmax subtracts the maximum first, so that logits of ±1e4 stay finite; p ln p is 0
        # where p underflows
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
            slope = torch.addcmul(p_log_p, p, entropy.unsqueeze(-1))
            terms.append(slope * -of_entropy.unsqueeze(-1))
        if of_p is not None:  # these two only where a gradient of the gradient is taken
            terms.append(p * (of_p - (p * of_p).sum(-1, keepdim=True)))
        if of_p_log_p is not None:
            own = of_p_log_p * (p_log_p + p)
            terms.append(own - p * own.sum(-1, keepdim=True))
        return sum(terms[1:], terms[0]).to(ctx.dtype) if terms else None


def perplexity(activations: Tensor) -> Tensor:
    """exp(entropy), targeted sparsity, Eq. 2: 1 … D filters that share the answer."""
    return rfav_entropy(activations).exp()


def layer_entropy(layer: nn.Module, output: Tensor) -> Tensor:
    """`rfav_entropy` of a layer's output.

    A linear layer has its filters last, [N, …, D], everything else second. What a convolution or a
    linear layer gives of one sample alone, [D, A, B] or [D], is taken for a batch of one.
    """
    positions = _positions(layer)
    if positions is not None and output.dim() == positions + 1:
        output = output[None]
    return rfav_entropy(output.movedim(-1, 1) if isinstance(layer, nn.Linear) else output)


def _positions(layer: nn.Module) -> int | None:
    """The number of dimensions that a layer's positions have at least; None: it has no filters."""
    if isinstance(layer, nn.Linear):
        return 0
    return next((n for kind, n in CONVOLUTIONS.items() if isinstance(layer, kind)), None)


def filter_correlation(weight: Tensor, centre: str = "own") -> Tensor:
    """Pearson's correlation of the filters of a layer, pairwise: [D, D] (targeted sparsity, Eq. 6).

    Args:
        weight: of a convolution or dense layer, [D, …]; a row is one filter. Half precision is
            widened, within autocast, too.
        centre: `own` subtracts each filter's own mean (numpy.corrcoef); `mean_filter` the mean of
            all filters, as Eq. 6 reads literally: each then correlates with the others to about −1
            in sum from the start. A filter of which nothing is left (a constant one; one equal to
            the mean filter; one too small to be squared) correlates with none: 0. One with a value
            that is NaN or infinite, or that is too large to be squared, has NaN for all its
            correlations.

    Raises:
        ValueError: for an unknown centre, a weight without a dimension beside the filters', and
            complex numbers.
    """
    if weight.dim() < 2 or weight.is_complex():
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and is {weight.dtype}; [D, …] of real numbers "
            "with at least one more dimension is needed"
        )
    _allowed("centre", centre, CENTRES)
    # [D, …] → [D, F]
    filters = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    centred = filters - filters.mean(1 if centre == "own" else 0, keepdim=True)
    # rounding of the mean leaves a constant filter up to 4 eps off zero (sums of 9 … 100,000
    # terms): that has no direction
    norm = centred.norm(dim=1, keepdim=True)
    least = 16 * torch.finfo(filters.dtype).eps * filters.detach().norm(dim=1, keepdim=True)
    norm = norm.masked_fill(norm.isinf(), torch.nan)  # not 0: that would say "correlates with none"
    gone = norm <= least
    unit = torch.where(gone, 0, centred) / torch.where(gone, 1, norm)
    with _without_autocast(unit.device.type):  # which would take the product in half precision
        return unit @ unit.T


def _without_autocast(device: str) -> contextlib.AbstractContextManager:
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def layer_weight(layer: nn.Module) -> Tensor:
    """A layer's weight as its next pass will use it, in full precision.

    Where it is computed (pruning, weight and spectral norm, any parametrisation) it is computed
    anew, with a graph of its own, and without moving a spectral norm on.

    Raises:
        ValueError: for a lazy layer that has not run yet.
    """
    if nn.parameter.is_lazy(layer._parameters.get("weight")):
        raise ValueError(
            f"a {type(layer).__name__} has no weight before its first pass; run the network once"
        )
    if parametrize.is_parametrized(layer, "weight"):
        computed = layer.parametrizations["weight"]
        first = next(itertools.chain(computed.parameters(), computed.buffers()))
        with _without_autocast(first.device.type), eval_mode(computed):
            return layer.weight
    for hook in layer._forward_pre_hooks.values():  # in the order in which a pass calls them
        with _without_autocast(layer.weight.device.type):
            if isinstance(hook, (BasePruningMethod, WeightNorm)):
                hook(layer, ())
            elif isinstance(hook, SpectralNorm):
                _refresh(layer, hook)
    return layer.weight


def _refresh(layer: nn.Module, hook: SpectralNorm) -> None:
    """Compute a spectral norm's weight anew, of copies of its vectors: a pass changes those."""
    vectors = {name: getattr(layer, name) for name in (f"{hook.name}_u", f"{hook.name}_v")}
    for name, vector in vectors.items():
        setattr(layer, name, vector.clone())
    setattr(layer, hook.name, hook.compute_weight(layer, do_power_iteration=False))
    for name, vector in vectors.items():
        setattr(layer, name, vector)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards each submodule is in its own again, as frozen ones."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def decorrelation(
    weight: Tensor, *, centre: str = "own", pairs: str = "signed", reduce: str = "sum"
) -> Tensor:
    """Σ over pairs of filters of their correlation, each once: a scalar (targeted sparsity, Eq. 7).

    Args:
        weight: [D, …].
        centre: see `filter_correlation`.
        pairs: `signed` c as Eq. 7 has it (which rewards anti-correlation), `abs` `|c|`, or
            `square` c².
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
        max_unread, samples: as for `ActivationL2`.

    Raises:
        ValueError: for a layer that the model does not have (the message lists those it has), one
            that is neither a convolution nor linear or takes no hooks, a λ that is negative or not
            finite, an unknown `batch`, `max_unread` below 1, and a `samples` that is none.
        TypeError: for `layers` that are no mapping, and a λ that is no number.
    """

    metric = "sparsity_penalty"

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, float],
        batch: str = "mean",
        *,
        max_unread: int = MAX_UNREAD,
        samples: int | str | None = None,
    ) -> None:
        self.weights = _checked_layers(model, layers, "λ")
        _allowed("batch", batch, BATCHES)
        self.batch = batch
        self._passes = _Passes(model, self.weights, _sum_of_entropies, max_unread, samples)

    def penalty(self) -> Tensor:
        """L_s of the passes since the read before, over all their samples, a differentiable scalar.

        0 if no layer is regularised.

        Raises:
            RuntimeError: if there is nothing to read of a layer (says of which and why), or for the
                mean an empty batch alone; where the number of samples cannot be told; after
                `remove`; of a copy.
        """
        return self._passes.read(self._join)

    def _join(self, uses: dict[str, _Uses]) -> Tensor:
        terms = []
        for name, weight in self.weights.items():
            entropy = _total(use.value for use in uses[name])
            if self.batch == "mean":
                entropy = entropy / sum(self._passes.counts(name, uses[name]))
            terms.append(weight * entropy)
        return -_total(terms)

    def remove(self) -> None:
        """Detach from the network."""
        self._passes.remove()


class DecorrReg:
    """L_c = Σ_i κ_i Σ_d Σ_{e>d} c_{d,e} of chosen layers' filters (targeted sparsity, Eq. 6 and 7).

    Args:
        model: any module.
        layers: κ_i by name of the layer; 1 in the paper.
        centre, pairs, reduce: see `decorrelation`; the defaults are the equations' (with each
            filter's own mean).

    Raises:
        ValueError: as for `SparsityReg`, and for an unknown option.
    """

    metric = "decorrelation_penalty"

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
        _allowed("centre", centre, CENTRES)
        _allowed("pairs", pairs, PAIRS)
        _allowed("reduce", reduce, REDUCTIONS)
        self.options = {"centre": centre, "pairs": pairs, "reduce": reduce}
        self._model = model
        self._layers = {name: find_layer(model, name) for name in self.weights}

    def penalty(self) -> Tensor:
        """L_c of the weights as they are now, a differentiable scalar; needs no forward pass.

        Raises:
            RuntimeError: after `remove`, and where a layer was replaced by another.
            ValueError: for a lazy layer that has not run yet.
        """
        if self._model is None:
            raise RuntimeError(_REMOVED)
        there = set(self._model.modules())
        if gone := [name for name, layer in self._layers.items() if layer not in there]:
            raise RuntimeError(
                f"{', '.join(map(repr, gone))} was replaced in the network since the penalty was "
                "attached; attach a new one"
            )
        return _total(
            kappa * decorrelation(layer_weight(self._layers[name]), **self.options)
            for name, kappa in self.weights.items()
        )

    def remove(self) -> None:
        """Forget the network."""
        self._model = None
        self._layers.clear()


def filter_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers of a network by name, in the order of registration."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FILTER_LAYERS)}


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The submodule called `layer`; a ValueError that lists the names if there is none."""
    for name, module in model.named_modules(remove_duplicate=False):  # a tied layer has two names
        if name and name == layer:
            return module
    known = ", ".join(name for name, _ in model.named_modules() if name)
    raise ValueError(f"the network has no layer {layer!r}; its layers are {known}")


def _checked_layers(model: nn.Module, layers: Mapping[str, float], symbol: str) -> dict[str, float]:
    if not isinstance(layers, Mapping):
        raise TypeError(
            f"layers is {layers!r}; a mapping from names of layers to {symbol} is needed, such as "
            "{'conv1': 0.001}"
        )
    for name, weight in layers.items():
        layer = find_layer(model, name)
        if not isinstance(layer, FILTER_LAYERS):
            known = ", ".join(filter_layers(model)) or "none"
            raise ValueError(
                f"{name!r} is a {type(layer).__name__}; only convolutions and linear layers have "
                f"filters: {known}"
            )
        if any(p.is_complex() for p in layer.parameters()):
            raise ValueError(f"{name!r} has complex weights; filters of real numbers are needed")
        if not isinstance(weight, Real):
            raise TypeError(f"{symbol} of {name!r} is {weight!r}; it has to be a number ≥ 0")
        if not 0 <= weight < math.inf:
            raise ValueError(f"{symbol} of {name!r} is {weight}; it has to be a number ≥ 0")
    return dict(layers)


def _total(terms: Iterable[Tensor]) -> Tensor:
    """The sum, on the first term's device: layers may lie on several. One term as it is."""
    terms = list(terms)
    if len(terms) < 2:
        return terms[0] if terms else torch.zeros((), device="cpu")
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def _allowed(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(known)}")


class Penalty(Protocol):
    """What a penalty is to whoever trains with it; it needs no base class.

    It keeps nothing from one step to the next: a training that is resumed makes it anew, of the
    initial weights, and a step that is recorded on a GPU runs its code once. What it draws at
    random has to come from a generator of its own.
    """

    metric: str  # the name of its value in a log: a word in small letters

    def __init__(self, model: nn.Module, **options: Any) -> None: ...

    def penalty(self) -> Tensor:
        """A differentiable scalar, of the passes since the read before or of the weights."""

    def remove(self) -> None:
        """Detach from the network."""


# The penalties by the name that a run or a configuration calls them. To add one, write a class like
# `Penalty` and enter it here.
PENALTIES: dict[str, type[Penalty]] = {
    "activation_l2": ActivationL2,
    "sparsity": SparsityReg,
    "decorrelation": DecorrReg,
}
