"""Training as tutorials write it, for `lib.bench` to measure ours against.

A DataLoader, or tensors, and a network in NCHW.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lib import trainer
from lib.data.vision import torchvision
from lib.run import Run

MEAN, STD = 0.1307, 0.3081  # of MNIST, as everybody has them


class PlainCNN(nn.Module):
    """The bare AL2 network as a tutorial writes it: [N, 1, S, S] → [N, K].

    Each pool comes after its ReLU.

    Args:
        pool_first: the pools before their ReLUs, as `models.AL2CNN` has them: one of the steps from
            there to here.
    """

    def __init__(
        self, image_size: int = 28, num_classes: int = 10, pool_first: bool = False
    ) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.fc2 = nn.Linear(500, num_classes)
        self.pool_first = pool_first

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2):
            x = convolution(x)
            x = F.relu(F.max_pool2d(x, 2)) if self.pool_first else F.max_pool2d(F.relu(x), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Images(Dataset):
    """Pictures kept as bytes, as torchvision's MNIST has them.

    Each is opened and transformed when it is asked for.

    Args:
        pixels: uint8 [N, S, S].
        labels: int64 [N].
    """

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        transforms = torchvision.transforms
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
        )
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index].numpy())), int(self.labels[index])


def as_tensor(pixels: Tensor) -> Tensor:
    """All pictures at once: uint8 [N, S, S] → float [N, 1, S, S].

    They are as `Images` gives them one by one.
    """
    return (pixels[:, None] / 255 - MEAN) / STD


def network(run: Run, image_size: int, num_classes: int, pool_first: bool = False) -> PlainCNN:
    """The run's bare network with the weights that ours begins with."""
    plain = PlainCNN(image_size, num_classes, pool_first)
    ours = trainer.build_network(run, 1, image_size, num_classes)
    with torch.no_grad():
        for mine, theirs in zip(plain.parameters(), ours.parameters(), strict=True):
            mine.copy_(theirs)
    return plain


def loaded(
    images: Images, order: Sequence[int], batch: int, workers: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of a DataLoader, in a given order so that another loop can take the same."""
    return DataLoader(images, batch_size=batch, sampler=order, num_workers=workers)


def indexed(
    images: Tensor, labels: Tensor, order: Tensor, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches cut out of tensors that hold all images."""
    for chosen in order.split(batch):
        yield images[chosen], labels[chosen]


def train(model: nn.Module, run: Run, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[float]:
    """The loop itself; gives each step's loss after the step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=run.learning_rate, momentum=run.momentum)
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        yield loss.item()
