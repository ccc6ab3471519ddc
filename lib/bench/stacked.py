"""Several AL2 networks trained in one step.

Their parameters are stacked, [k, …] each, and there are four ways to run such a stack.

What each way computes is what the networks would compute alone (`lib.trainer`), up to rounding:
every network has its own loss, λ, weight decay, dropout or batch norm. `lib.bench.gpu` measures
which way is the fastest.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import trainer
from lib.run import Run, generator

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
SUMS = ("cross_entropy", "activation_l2", "train_accuracy")
Forward = Callable[["Stack", dict[str, Tensor], Tensor, Tensor | None], tuple[Tensor, Tensor]]


class Stack:
    """k AL2 networks: parameters and momentum by name, [k, …].

    Those of batch norm are [m, …], for the m networks that have it.

    Networks of a kind stand side by side: `drop` and `norm` are slices of the k networks, `decayed`
    those with weight decay.

    Args:
        runs: of one data shape, learning rate, momentum and dropout; ordered so that networks with
            weight decay, with dropout and with batch norm each form one block.
        shape: C, S, K of the images and classes.
        dtype: of activations and of the weights' copies that meet them; master weights stay
            float32.

    Raises:
        ValueError: if the runs differ in what has to be equal, a kind of them is in more than one
            block, or one has both weight decay and batch norm.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        shape: tuple[int, int, int],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.k = len(runs)
        self.dtype = dtype
        self.rate, self.momentum = _one("learning_rate", runs), _one("momentum", runs)
        self.drop, self.dropout = _block("dropout", runs)
        self.norm, _ = _block("batch_norm", runs)
        self.decayed, self.decay = _block("weight_decay", runs)
        if max(self.norm.start, self.decayed.start) < min(self.norm.stop, self.decayed.stop):
            raise ValueError(
                "a network has weight decay and batch norm; a stack takes one of them a network, "
                "as the study does"
            )
        networks = [trainer.build_network(run, *shape) for run in runs]
        states = [dict(network.named_parameters()) for network in networks]
        self.params: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for state in states for name in state):
            stacked = torch.stack([state[name].detach() for state in states if name in state])
            self.params[name] = stacked.to(device).requires_grad_()
        self.moments = [torch.zeros_like(value) for value in self.params.values()]
        normed = self.norm.stop - self.norm.start
        # mean, variance
        self.running = (
            torch.zeros(normed, 50, device=device),
            torch.ones(normed, 50, device=device),
        )
        # λ of each network, changed in place between epochs
        self.weight = torch.zeros(self.k, device=device)
        self.sums = torch.zeros(len(SUMS), self.k, dtype=torch.float64, device=device)
        self.shape = shape
        # for their forward alone
        self.modules = [_Penalised(network.requires_grad_(False)) for network in networks]

    def rows(self, name: str, block: slice) -> slice:
        """Where the networks of `block` stand in the stacked parameter `name`."""
        first = self.norm.start if ".norm." in name else 0
        return slice(block.start - first, block.stop - first)

    def blocks(self) -> list[slice]:
        """The networks by architecture: plain, with dropout, with batch norm.

        Only those there are.
        """
        edges = sorted(
            {0, self.k, self.drop.start, self.drop.stop, self.norm.start, self.norm.stop}
        )
        return [slice(a, b) for a, b in pairwise(edges)]

    def network(self, i: int) -> dict[str, Tensor]:
        """Parameters of network i by name, as a network alone would have them."""
        within = self.norm.start <= i < self.norm.stop
        kept = {
            name: value for name, value in self.params.items() if ".norm." not in name or within
        }
        return {
            name: value.detach()[self.rows(name, slice(i, i + 1))][0]
            for name, value in kept.items()
        }

    def coins(self, x: Tensor) -> Tensor | None:
        """Dropout's coins for images x.

        They are [B, 50, w, w] for all networks where they share images, else one set each.
        """
        count = self.drop.stop - self.drop.start
        if not count:
            return None
        side = ((self.shape[1] - 4) // 2 - 4) // 2
        return torch.rand(
            (x.shape[0], 50, side, side) if x.dim() == 4 else (count, x.shape[1], 50, side, side),
            device=x.device,
        )

    def losses(
        self, forward: Forward, x: Tensor, y: Tensor, coins: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sum of the networks' losses, a scalar, and what is recorded.

        The latter is [3, k] in the order of `SUMS`.

        Args:
            x: [B, C, S, S], one batch for all networks, or [k, B, C, S, S].
            y: int64 [k, B].
        """
        cast = {name: value.to(self.dtype) for name, value in self.params.items()}
        logits, l2 = forward(self, cast, x.to(self.dtype), coins)  # [k, B, K], [k]
        logits = logits.float()
        each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        cross_entropy = each.view(y.shape).mean(1)
        accuracy = (logits.argmax(-1) == y).float().mean(1) * 100
        return (cross_entropy + self.weight * l2).sum(), torch.stack(
            [cross_entropy, l2, accuracy]
        ).detach()

    def step(self, forward: Callable, x: Tensor, y: Tensor, coins: Tensor | None = None) -> None:
        """One step of SGD with momentum of all networks.

        All is done in place, so that a CUDA graph can hold it.

        Args:
            forward: a way of `WAYS`, or a function of x, y and coins that stands for `losses`, for
                example compiled.
        """
        coins = self.coins(x) if coins is None else coins
        loss, values = (
            self.losses(forward, x, y, coins) if forward in WAYS.values() else forward(x, y, coins)
        )
        params = list(self.params.values())
        with torch.no_grad():
            grads = [grad.contiguous() for grad in torch.autograd.grad(loss, params)]
            if self.decay:
                where = [
                    self.rows(name, self.decayed) for name in self.params if ".norm." not in name
                ]
                plain = [j for j, name in enumerate(self.params) if ".norm." not in name]
                decayed = [grads[j][rows] for j, rows in zip(plain, where, strict=True)]
                torch._foreach_add_(
                    decayed,
                    [params[j][rows] for j, rows in zip(plain, where, strict=True)],
                    alpha=self.decay,
                )
            torch._foreach_mul_(self.moments, self.momentum)
            torch._foreach_add_(self.moments, grads)
            torch._foreach_add_(params, self.moments, alpha=-self.rate)
            self.sums += values.double() * y.shape[1]


class Feed:
    """Batches gathered on the device by a counter that lives there too.

    So a step captured once takes the next batch each time.

    Args:
        images: [N, C, S, S].
        labels: int64 [k, N], one row per network.
        batch: images a step; a shorter rest is left out.
        shared: whether all networks take the same images in the same order, as the study's networks
            of a seed do.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, batch: int, shared: bool = True, seed: int = 0
    ) -> None:
        self.images, self.labels = images, labels
        steps = len(images) // batch
        orders = 1 if shared else len(labels)
        drawn = [
            torch.randperm(len(images), generator=generator(seed + j, "order", 1))
            for j in range(orders)
        ]
        # [steps, 1 or k, batch]
        order = torch.stack([one[: steps * batch].view(steps, batch) for one in drawn], 1)
        self.order = order.to(images.device)
        self.done = torch.zeros(1, dtype=torch.int64, device=images.device)

    def next(self) -> tuple[Tensor, Tensor]:
        """Images [B, …] or [k, B, …] and labels [k, B] of the next step."""
        batch = self.order.index_select(0, self.done % len(self.order))[0]  # [1 or k, B]
        self.done += 1
        if len(batch) == 1:
            return self.images[batch[0]], self.labels[:, batch[0]]
        return self.images[batch], self.labels.gather(1, batch)


def by_hand(
    stack: Stack,
    params: dict[str, Tensor],
    x: Tensor,
    coins: Tensor | None,
    unfold: Callable | None = None,
):
    """Convolutions as patches times weights: one batched matrix product for all networks.

    Channels are last throughout.
    """
    unfold = unfold or _windows
    x = (x if x.dim() == 5 else x[None]).movedim(2, -1)  # [1 or k, B, S, S, C]
    x = _pool(_convolve(x, params, "trunk.conv1", unfold), relu=True)  # [k, B, 12, 12, 20]
    x = _convolve(x, params, "trunk.conv2", unfold)  # [k, B, 8, 8, 50]
    if stack.norm.stop > stack.norm.start:
        x = torch.cat(
            [x[: stack.norm.start], _normalise(stack, x[stack.norm]), x[stack.norm.stop :]]
        )
    phi = _pool(x, relu=True).movedim(-1, 2)  # [k, B, 50, w, w]
    return _head(stack, params, phi, coins)


def by_slices(
    stack: Stack, params: dict[str, Tensor], x: Tensor, coins: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `by_hand`, but the gradient of the patches is added up slice by slice."""
    return by_hand(stack, params, x, coins, _Slices.apply)


def grouped(
    stack: Stack,
    params: dict[str, Tensor],
    x: Tensor,
    coins: Tensor | None,
    layout=torch.contiguous_format,
):
    """Convolutions with a group a network; linear layers as one batched product."""
    shared = x.dim() == 4
    k = stack.k
    # [B, C or k·C, S, S]
    x = (x if shared else x.transpose(0, 1).flatten(1, 2)).contiguous(memory_format=layout)
    for name, groups in (("trunk.conv1", 1 if shared else k), ("trunk.conv2", k)):
        weight = params[f"{name}.weight"].flatten(0, 1).contiguous(memory_format=layout)
        x = F.conv2d(x, weight, params[f"{name}.bias"].flatten(), groups=groups)  # [B, k·D, …]
        if name == "trunk.conv2" and stack.norm.stop > stack.norm.start:
            a, b = stack.norm.start * 50, stack.norm.stop * 50
            gamma, beta = (
                stack.params[f"trunk.norm.{part}"].flatten() for part in ("weight", "bias")
            )
            normed = F.batch_norm(
                x[:, a:b], *(value.view(-1) for value in stack.running), gamma, beta, training=True
            )
            x = torch.cat([x[:, :a], normed, x[:, b:]], 1)
        x = F.relu(F.max_pool2d(x, 2))
    return _head(stack, params, x.unflatten(1, (k, 50)).transpose(0, 1), coins)


def grouped_last(
    stack: Stack, params: dict[str, Tensor], x: Tensor, coins: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `grouped`, in channels_last."""
    return grouped(stack, params, x, coins, torch.channels_last)


def mapped(
    stack: Stack, params: dict[str, Tensor], x: Tensor, coins: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torch.func: the module itself, called functionally and mapped over the networks.

    There is one map for each architecture.
    """
    logits, l2 = [], []
    for block in stack.blocks():
        module = stack.modules[block.start]
        normed = stack.norm.start <= block.start < stack.norm.stop
        chosen = {
            name: v[stack.rows(name, block)]
            for name, v in params.items()
            if normed or ".norm." not in name
        }
        if normed:
            chosen |= {
                "trunk.norm.running_mean": stack.running[0],
                "trunk.norm.running_var": stack.running[1],
            }
        dropped = stack.drop.start <= block.start < stack.drop.stop
        # else all networks' coins, taken as they are
        own = coins if dropped and coins.dim() == 5 else None
        module.trunk.dropout.coins = coins if dropped else None
        images, axis = (x, None) if x.dim() == 4 else (x[block], 0)

        def call(
            values: dict[str, Tensor],
            images: Tensor,
            own: Tensor | None,
            module: nn.Module = module,
        ):
            if own is not None:
                module.trunk.dropout.coins = own
            return torch.func.functional_call(module, values, (images,))

        out = torch.func.vmap(call, in_dims=(0, axis, None if own is None else 0))(
            chosen, images, own
        )
        logits.append(out[0])
        l2.append(out[1])
    return torch.cat(logits), torch.cat(l2)


WAYS: dict[str, Forward] = {
    "hand": by_hand,
    "hand slices": by_slices,
    "grouped": grouped,
    "grouped channels_last": grouped_last,
    "vmap": mapped,
}


class _Coins(nn.Module):
    """Dropout with coins that are given to it; identity without."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.coins = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.coins is None else _drop(x, self.coins, self.p)


class _Penalised(nn.Module):
    """Logits and L_r of an AL2 network, whose parameters keep their names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = network.trunk, network.head
        self.trunk.dropout = _Coins(getattr(self.trunk.dropout, "p", 0.0))
        if isinstance(self.trunk.norm, nn.BatchNorm2d):
            self.trunk.norm.num_batches_tracked = (
                None  # never read: the momentum of the running means is a constant
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        phi = self.trunk(images)
        return self.head(phi), phi.float().square().mean()


class _Slices(torch.autograd.Function):
    """`_windows` with a gradient of ten sums over slices.

    The sums go first along a row, then along a column.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return _windows(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        k, batch, height, width, channels = ctx.shape
        rows, columns = height - 4, width - 4
        grad = grad.view(k, batch, rows, columns, 5, 5, channels)
        across = grad.new_zeros(k, batch, rows, width, 5, channels)
        for j in range(5):
            across[:, :, :, j : j + columns] += grad[..., j, :]
        down = grad.new_zeros(k, batch, height, width, channels)
        for i in range(5):
            down[:, :, i : i + rows] += across[..., i, :]
        return down


def _windows(x: Tensor) -> Tensor:
    """5×5 patches: [k, B, H, W, C] → [k, B, H − 4, W − 4, 25·C].

    A patch is in the order row, column, channel.
    """
    return x.unfold(2, 5, 1).unfold(3, 5, 1).permute(0, 1, 2, 3, 5, 6, 4).flatten(4)


def _convolve(x: Tensor, params: dict[str, Tensor], name: str, unfold: Callable) -> Tensor:
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]  # [k, D, C, 5, 5], [k, D]
    patches = unfold(x)
    shape = patches.shape[1:4]
    patches = patches.flatten(1, 3).expand(len(weight), -1, -1)  # [k, B·H'·W', 25·C]
    matrix = weight.permute(0, 3, 4, 2, 1).flatten(1, 3)  # [k, 25·C, D]
    return torch.baddbmm(bias[:, None], patches, matrix).unflatten(1, shape)


def _pool(x: Tensor, relu: bool) -> Tensor:
    """2×2 maxima of [k, B, H, W, D], then ReLU."""
    pooled = (
        F.max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 2)
        .permute(0, 2, 3, 1)
        .unflatten(0, x.shape[:2])
    )
    return F.relu(pooled) if relu else pooled


def _normalise(stack: Stack, x: Tensor) -> Tensor:
    """Batch norm in training mode of [m, B, H, W, 50], in float32.

    The running means follow as PyTorch has them.
    """
    gamma, beta = (
        stack.params[f"trunk.norm.{part}"][:, None, None, None] for part in ("weight", "bias")
    )
    values = x.float()
    variance, mean = torch.var_mean(values, (1, 2, 3), correction=0, keepdim=True)
    with torch.no_grad():
        count = values[0, ..., 0].numel()
        stack.running[0].lerp_(mean.flatten(1), 0.1)
        stack.running[1].lerp_(variance.flatten(1) * (count / (count - 1)), 0.1)
    return ((values - mean) * torch.rsqrt(variance + 1e-5) * gamma + beta).to(x.dtype)


def _head(
    stack: Stack, params: dict[str, Tensor], phi: Tensor, coins: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits [k, B, K] and L_r [k] of φ [k, B, 50, w, w]."""
    if coins is not None:
        phi = torch.cat(
            [
                phi[: stack.drop.start],
                _drop(phi[stack.drop], coins, stack.dropout),
                phi[stack.drop.stop :],
            ]
        )
    l2 = phi.float().square().mean((1, 2, 3, 4))
    x = phi.flatten(2)
    x = F.relu(torch.baddbmm(params["head.fc1.bias"][:, None], x, params["head.fc1.weight"].mT))
    return torch.baddbmm(params["head.fc2.bias"][:, None], x, params["head.fc2.weight"].mT), l2


def _drop(x: Tensor, coins: Tensor, p: float) -> Tensor:
    return x * (coins >= p) * (1 / (1 - p))


def _one(field: str, runs: Sequence[Run]) -> float:
    values = {getattr(run, field) for run in runs}
    if len(values) != 1:
        raise ValueError(
            f"stacked networks have {field} {sorted(values)}; it has to be the same in all"
        )
    return values.pop()


def _block(field: str, runs: Sequence[Run]) -> tuple[slice, float]:
    """Where the runs stand whose `field` is not 0, and that value.

    They stand side by side, with one value.
    """
    where = [i for i, run in enumerate(runs) if getattr(run, field)]
    if not where:
        return slice(0, 0), 0.0
    if where != list(range(where[0], where[-1] + 1)):
        raise ValueError(
            f"networks {where} have {field}; stacked networks that have it must stand side by side"
        )
    return slice(where[0], where[-1] + 1), _one(field, [runs[i] for i in where])
