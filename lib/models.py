"""The papers' networks. Layers carry the papers' names, so that a penalty or a measure can be attached by name."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.run import Run, generator


class Dropout(nn.Module):
    """Dropout whose coins come from a generator of its own (`.generator`), so that a run can be resumed and compared.

    Args:
        p: probability of dropping a unit; kept units are scaled by 1 / (1 - p) in training mode.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        # drawn in the logical order of x, whatever its memory format: the same coins on every layout
        coins = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        return x * (coins >= self.p) * (1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class AL2Trunk(nn.Module):
    """Trunk φ of the AL2 network: [N, C, S, S] → [N, 50, w, w] (w = 4 for 28×28 input, 5 for 32×32).

    conv1 5×5 (C → 20), pool, ReLU, conv2 5×5 (20 → 50), [batch norm], pool, ReLU, [dropout]. Pooling comes before ReLU:
    the maximum of rectified values is the rectified maximum, so the function is the paper's, on a quarter of the units.
    """

    def __init__(self, in_channels: int = 1, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.norm = nn.BatchNorm2d(50) if batch_norm else nn.Identity()
        self.dropout = Dropout(dropout) if dropout else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # [N, C, 28, 28] → [N, 20, 24, 24] → [N, 20, 12, 12]
        x = self.norm(self.conv2(x))  # → [N, 50, 8, 8]
        x = F.relu(F.max_pool2d(x, 2))  # → [N, 50, 4, 4]
        return self.dropout(x)


class AL2CNN(nn.Module):
    """Network of the AL2 paper (section 4 and the authors' code): trunk φ, then head ψ (fc1, ReLU, fc2).

    Args:
        in_channels: C of the images.
        image_size: S, side of the images in pixels, at least 16 (φ has then one position).
        num_classes: K.
        batch_norm: batch norm after the second convolution, before ReLU.
        dropout: probability of element-wise dropout, last in the trunk; 0 for none.

    Raises:
        ValueError: if the images are too small for two 5×5 convolutions, each followed by 2×2 pooling.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        *,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"images of {image_size}×{image_size} are too small for the AL2 network: 16×16 is the least")
        self.trunk = AL2Trunk(in_channels, batch_norm, dropout)
        self.head = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),  # [N, 50, w, w] → [N, 50·w·w]
                fc1=nn.Linear(50 * side * side, 500),
                relu=nn.ReLU(),
                fc2=nn.Linear(500, num_classes),
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        phi = self.trunk(images)  # [N, C, S, S] → [N, 50, w, w]
        return self.head(phi)  # → [N, K]


def build(run: Run, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """The network that `run` names, with its initial weights: the same in all networks of a seed, where they share them.

    Weights are drawn on the CPU in PyTorch's default way from the run's own seed; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(run.seed, "weights").initial_seed())
        model = AL2CNN(in_channels, image_size, num_classes, batch_norm=run.batch_norm, dropout=run.dropout)
    if run.batch_norm and run.bn_gamma == "uniform":
        nn.init.uniform_(model.trunk.norm.weight, generator=generator(run.seed, "bn_gamma"))
    return model
