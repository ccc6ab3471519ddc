"""Ways of training that are measured: the trainer's own steps, and loops as tutorials write them.

The latter are of a DataLoader, or of tensors, and a network in NCHW. Images and labels are random:
how long a step takes does not depend on what is in them, and nothing has to be downloaded.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from lib import trainer
from lib.bundle import Bundle
from lib.data import Split
from lib.run import Run
from lib.trainer import TrainStep, make_optimizer

SIDES = {"mnist": 28, "tiny": 20}  # of the images, by the name of a size
CLASSES = 10
RUN = Run("mnist")  # the bare network of the AL2 study: batch 64, learning rate 0.001
LAMBDA = 0.01  # of AL2, where it is trained
MEAN, STD = 0.1307, 0.3081  # of MNIST, as everybody has them


def pixels(side: int, count: int) -> tuple[Tensor, Tensor]:
    """Random images uint8 [N, S, S] and labels int64 [N]."""
    source = torch.Generator().manual_seed(0)
    drawn = torch.randint(256, (count, side, side), generator=source, dtype=torch.uint8)
    return drawn, torch.randint(CLASSES, (count,), generator=source)


def as_tensor(pixels: Tensor) -> Tensor:
    """All pictures, as `Images` gives them one by one: uint8 [N, S, S] → float [N, 1, S, S]."""
    return (pixels[:, None] / 255 - MEAN) / STD


def ours(
    run: Run,
    images: Tensor,
    labels: Tensor,
    precision: str = "float32",
    use_cuda_graph: bool | None = None,
) -> TrainStep:
    """The trainer's own steps of a run's network on images [N, 1, S, S]."""
    empty = Split(images[:0], labels[:0])
    task = Bundle(Split(images, labels), labels, empty, empty, empty, CLASSES, {})
    model = trainer.build_network(run, *task.shape)
    model = model.to(images.device, memory_format=torch.channels_last)
    return TrainStep(model, make_optimizer(run, model), task, run, precision, use_cuda_graph)


def arithmetic(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, tuple[float, float]]:
    """Multiplications and additions of each layer, forward and backward, for an image [C, S, S]."""
    parameters = list(model.parameters())
    image = torch.zeros(1, *shape, device=parameters[0].device)

    def counted(work: Callable[[], object]) -> dict[str, int]:
        with FlopCounterMode(display=False) as counter:
            work()
        return {name: sum(own.values()) for name, own in counter.get_flop_counts().items()}

    model.eval()
    forward = counted(lambda: model(image))
    both = counted(lambda: torch.autograd.grad(model(image).sum(), parameters))
    model.train()
    layers = [
        (name, f"{type(model).__name__}.{name}")
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    return {name: (forward[key], both[key] - forward[key]) for name, key in layers}


def flops(model: nn.Module, shape: tuple[int, int, int]) -> float:
    """Operations of a forward and a backward pass for one image [C, S, S]."""
    return sum(map(sum, arithmetic(model, shape).values()))


# ---- as tutorials write it


class PlainCNN(nn.Module):
    """The bare AL2 network as a tutorial writes it, each pool after its ReLU.

    Args:
        pool_first: the pools before their ReLUs, as `models.AL2CNN` has them.
    """

    def __init__(self, side: int = 28, pool_first: bool = False) -> None:
        super().__init__()
        left = ((side - 4) // 2 - 4) // 2
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * left * left, 500)
        self.fc2 = nn.Linear(500, CLASSES)
        self.pool_first = pool_first

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, S, S] → [N, K]
        for convolution in (self.conv1, self.conv2):
            x = convolution(x)
            x = F.relu(F.max_pool2d(x, 2)) if self.pool_first else F.max_pool2d(F.relu(x), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Images(Dataset):
    """Pictures kept as bytes, as torchvision's MNIST has them; each is transformed when asked for.

    Args:
        pixels: uint8 [N, S, S].
        labels: int64 [N].
    """

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        # here: all but the DataLoader's rows do without them
        from PIL import Image

        from lib.data.vision import torchvision

        transforms = torchvision.transforms
        scaled = transforms.Normalize((MEAN,), (STD,))
        self.transform = transforms.Compose([transforms.ToTensor(), scaled])
        self.open = Image.fromarray
        self.pixels = pixels
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.open(self.pixels[index].numpy())), int(self.labels[index])


def plain_network(run: Run, side: int, pool_first: bool = False) -> PlainCNN:
    """The run's bare network with the weights that ours begins with."""
    plain = PlainCNN(side, pool_first)
    begun = trainer.build_network(run, 1, side, CLASSES)
    with torch.no_grad():
        for mine, theirs in zip(plain.parameters(), begun.parameters(), strict=True):
            mine.copy_(theirs)
    return plain


def loaded(
    images: Images, order: Sequence[int], batch: int, workers: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of a DataLoader, in a given order; in memory that a GPU, if any, can copy from."""
    return DataLoader(
        images,
        batch_size=batch,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def indexed(
    images: Tensor, labels: Tensor, order: Tensor, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches cut out of tensors that hold all images."""
    for chosen in order.split(batch):
        yield images[chosen], labels[chosen]


def train(model: nn.Module, run: Run, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """The loop itself; gives each step's loss after the step, for which nothing waits."""
    optimizer = torch.optim.SGD(model.parameters(), lr=run.learning_rate, momentum=run.momentum)
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        yield loss.detach()
