"""The papers' networks.

Layers carry the papers' names, so that a penalty or a measure can be attached by name.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.losses import filter_layers

CONVNETS = ("convnet_s", "convnet_m", "convnet_xxl")
NETWORKS = ("al2_cnn", *CONVNETS, "lenet", "alexnet")
NORM_PLACES = ("conv", "block")
PADDINGS = ("same", "valid")


class Dropout(nn.Module):
    """Dropout with probability p whose coins come from its own `.generator`.

    So a run can be resumed and compared. Kept units are scaled by 1 / (1 - p) in training mode.

    Raises:
        ValueError: for a p that is no probability, and for 1, which would keep nothing.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout is {p}; it has to be a probability in [0, 1)")
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        # drawn in logical order, whatever the memory format and precision of x: the same coins on
        # every layout, in float32 at least
        dtype = torch.promote_types(x.dtype, torch.float32)
        coins = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=dtype)
        return x * (coins >= self.p) * (1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _refuse_if_too_small(side: int, image_size: int, network: str, least: int) -> None:
    """A ValueError where the last feature maps have no side."""
    if side < 1:
        raise ValueError(
            f"images of {image_size}×{image_size} are too small for {network}: {least}×{least} is "
            "the least"
        )


def _check_convnet_options(norm_place: str, padding: str) -> None:
    if norm_place not in NORM_PLACES:
        raise ValueError(f"norm_place is {norm_place!r}; allowed: {', '.join(NORM_PLACES)}")
    if padding not in PADDINGS:
        raise ValueError(f"padding is {padding!r}; allowed: {', '.join(PADDINGS)}")


class AL2Trunk(nn.Module):
    """Trunk φ of the AL2 network: [N, C, S, S] → [N, 50, w, w].

    w = 4 for 28×28 input, 5 for 32×32. conv1 5×5 (C → 20), pool, ReLU, conv2 5×5 (20 → 50),
    [batch norm], pool, ReLU, [dropout]. Pooling comes before ReLU: the maximum of rectified values
    is the rectified maximum, so the function is the paper's, on a quarter of the units.
    """

    def __init__(
        self, in_channels: int = 1, batch_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.norm = nn.BatchNorm2d(50) if batch_norm else nn.Identity()
        self.dropout = Dropout(dropout) if dropout else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        # [N, C, 28, 28] → [N, 20, 24, 24] → [N, 20, 12, 12]
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = self.norm(self.conv2(x))  # → [N, 50, 8, 8]
        x = F.relu(F.max_pool2d(x, 2))  # → [N, 50, 4, 4]
        return self.dropout(x)


class AL2CNN(nn.Module):
    """Trunk φ, then head ψ (fc1, ReLU, fc2), of the AL2 paper (section 4 and the authors' code).

    Args:
        in_channels: C of the images.
        image_size: S, side of the images in pixels, at least 16 (φ has then one position).
        num_classes: K.
        batch_norm: batch norm after the second convolution, before ReLU.
        dropout: probability of element-wise dropout, last in the trunk; 0 for none.

    Raises:
        ValueError: if the images are too small for the layers.
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
        _refuse_if_too_small(side, image_size, "the AL2 network", 16)
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


# Filters of conv1 … conv4 and units of fc1 (targeted sparsity, Table 1).
CONVNET_WIDTHS = {
    "s": (16, 16, 32, 32, 64),
    "m": (64, 64, 128, 128, 256),
    "xxl": (256, 256, 512, 512, 1024),
}


def convnet_filters(size: str) -> dict[str, int]:
    """Filters of conv1 … conv4 and units of fc1, by name, of a ConvNet "s", "m" or "xxl"."""
    return dict(zip(("conv1", "conv2", "conv3", "conv4", "fc1"), CONVNET_WIDTHS[size], strict=True))


class ConvNet(nn.Module):
    """conv1-conv2-pool-conv3-conv4-pool-fc1-fc2, ReLU after each but fc2.

    Targeted sparsity, Figure 2 and Table 1.

    Args:
        widths: filters of conv1 … conv4, units of fc1.
        in_channels, image_size, num_classes: C, S, K.
        batch_norm: normNet; before ReLU.
        norm_place: "conv": after each convolution; "block": after the second of a block.
        dropout: dropNet, 0.25 in the paper: element-wise after each pool; 0 for none.
        padding: "same" or "valid".

    Raises:
        ValueError: if the images are too small for the layers.
    """

    def __init__(
        self,
        widths: Sequence[int],
        in_channels: int = 3,
        image_size: int = 32,
        num_classes: int = 10,
        *,
        batch_norm: bool = False,
        norm_place: str = "conv",
        dropout: float = 0.0,
        padding: str = "same",
    ) -> None:
        super().__init__()
        _check_convnet_options(norm_place, padding)
        lost = 0 if padding == "same" else 4  # pixels that two 3×3 convolutions take off a side
        side = ((image_size - lost) // 2 - lost) // 2
        kind = f"a ConvNet with padding {padding!r}"
        _refuse_if_too_small(side, image_size, kind, 4 + 3 * lost)
        one, two, three, four, units = widths
        self.conv1 = nn.Conv2d(in_channels, one, 3, padding=padding)
        self.conv2 = nn.Conv2d(one, two, 3, padding=padding)
        self.conv3 = nn.Conv2d(two, three, 3, padding=padding)
        self.conv4 = nn.Conv2d(three, four, 3, padding=padding)
        self.features = nn.Flatten()  # φ by name, for a penalty on the features
        self.fc1 = nn.Linear(four * side * side, units)
        self.fc2 = nn.Linear(units, num_classes)
        for k, width in enumerate(widths[:4], 1):
            normalised = batch_norm and (norm_place == "conv" or k in (2, 4))
            self.add_module(f"norm{k}", nn.BatchNorm2d(width) if normalised else nn.Identity())
        self.dropout1 = Dropout(dropout) if dropout else nn.Identity()
        self.dropout2 = Dropout(dropout) if dropout else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(images)))  # [N, C, S, S] → [N, D1, S, S]
        # → [N, D2, S/2, S/2]; pooling first is the same, and cheaper
        x = F.relu(F.max_pool2d(self.norm2(self.conv2(x)), 2))
        x = F.relu(self.norm3(self.conv3(self.dropout1(x))))  # → [N, D3, S/2, S/2]
        x = F.relu(F.max_pool2d(self.norm4(self.conv4(x)), 2))  # → [N, D4, S/4, S/4]
        phi = self.features(self.dropout2(x))  # → [N, D4·S/4·S/4]
        return self.fc2(F.relu(self.fc1(phi)))  # → [N, D5] → [N, K]


class LeNet(nn.Module):
    """conv 6@5×5, pool, conv 16@5×5, pool, fc 120, 84, K; ReLU.

    Targeted sparsity, Table 3, as the protocol reads it.

    Raises:
        ValueError: if the images are too small for the layers.
    """

    def __init__(self, in_channels: int = 3, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        _refuse_if_too_small(side, image_size, "LeNet", 16)
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.features = nn.Flatten()
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # [N, C, 32, 32] → [N, 6, 14, 14]
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # → [N, 16, 5, 5]
        x = F.relu(self.fc2(F.relu(self.fc1(self.features(x)))))  # → [N, 400] → [N, 120] → [N, 84]
        return self.fc3(x)  # → [N, K]


class AlexNet(nn.Module):
    """AlexNet for small images: five 3×3 convolutions, padding 1, then fc 4096, 4096, K.

    No dropout (targeted sparsity, Table 3).

    Raises:
        ValueError: if the images are too small for the layers.
    """

    def __init__(self, in_channels: int = 3, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        side = (image_size + 1) // 2 // 2 // 2 // 2  # stride 2, then three pools
        _refuse_if_too_small(side, image_size, "AlexNet", 15)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(64, 192, 3, padding=1)
        self.conv3 = nn.Conv2d(192, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 256, 3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, 3, padding=1)
        self.features = nn.Flatten()
        self.fc1 = nn.Linear(256 * side * side, 4096)
        self.fc2 = nn.Linear(4096, 4096)
        self.fc3 = nn.Linear(4096, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # [N, C, 32, 32] → [N, 64, 8, 8]
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # → [N, 192, 4, 4]
        x = F.relu(self.conv4(F.relu(self.conv3(x))))  # → [N, 384, 4, 4] → [N, 256, 4, 4]
        x = F.relu(F.max_pool2d(self.conv5(x), 2))  # → [N, 256, 2, 2]
        # → [N, 1024] → [N, 4096] → [N, 4096]
        x = F.relu(self.fc2(F.relu(self.fc1(self.features(x)))))
        return self.fc3(x)  # → [N, K]


def features_layer(network: str) -> str:
    """Name of the layer whose output is φ, the features before the classifier."""
    return "trunk" if network == "al2_cnn" else "features"


def architecture(
    network: str,
    in_channels: int,
    image_size: int,
    num_classes: int,
    *,
    batch_norm: bool = False,
    dropout: float = 0.0,
    norm_place: str = "conv",
    padding: str = "same",
) -> nn.Module:
    """A network of `NETWORKS` with whatever weights PyTorch gives its layers.

    Args:
        in_channels, image_size, num_classes: C, S, K.
        batch_norm, dropout: of the AL2 network and the ConvNets; LeNet and AlexNet have neither.
        norm_place, padding: of the ConvNets alone, see `ConvNet`.

    Raises:
        ValueError: for an unknown network or option, one that the network does not have, and for
            images that are too small for it.
    """
    if network not in NETWORKS:
        raise ValueError(f"network is {network!r}; allowed: {', '.join(NETWORKS)}")
    if network in ("lenet", "alexnet") and (batch_norm or dropout):
        raise ValueError(f"{network} has neither batch norm nor dropout")
    _check_convnet_options(norm_place, padding)
    shape = in_channels, image_size, num_classes
    if network in ("lenet", "alexnet"):
        return LeNet(*shape) if network == "lenet" else AlexNet(*shape)
    options = {"batch_norm": batch_norm, "dropout": dropout}
    if network == "al2_cnn":
        return AL2CNN(*shape, **options)
    widths = CONVNET_WIDTHS[network.removeprefix("convnet_")]
    return ConvNet(widths, *shape, norm_place=norm_place, padding=padding, **options)


def build(
    network: str,
    in_channels: int,
    image_size: int,
    num_classes: int,
    *,
    generator: torch.Generator | None = None,
    gamma_generator: torch.Generator | None = None,
    **options: bool | float | str,
) -> nn.Module:
    """A network of `NETWORKS` on the CPU, with its initial weights.

    The AL2 network starts as PyTorch starts its layers; the others as Keras does, with
    Glorot-uniform weights and zero biases (protocol, section 2). The global generator is neither
    used nor changed.

    Args:
        network, in_channels, image_size, num_classes: see `architecture`.
        generator: of the weights, on the CPU; networks that are built with equal ones share the
            weights that they have in common. None: a new one, seeded with 0.
        gamma_generator: of the scales γ of the AL2 network's batch norm, U(0, 1) as PyTorch drew
            them up to 1.1; None: γ = 1.
        options: of `architecture`.

    Raises:
        ValueError: as for `architecture`.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):  # layers draw from the global generator where they have memory
        model = architecture(network, in_channels, image_size, num_classes, **options)
    model.to_empty(device="cpu")
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    for layer in filter_layers(model).values():
        if network == "al2_cnn":
            _start_as_pytorch(layer, generator)
        else:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    if gamma_generator is not None and network == "al2_cnn" and options.get("batch_norm"):
        nn.init.uniform_(model.trunk.norm.weight, generator=gamma_generator)
    return model


def _start_as_pytorch(layer: nn.Module, generator: torch.Generator) -> None:
    """What `layer.reset_parameters()` does, with a generator of one's own: the same numbers."""
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(layer.weight[0].numel())  # of the inputs of one filter
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
