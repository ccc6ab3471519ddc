"""What `lib.bench.gpu` measures: the rows of its table, and how each is made ready to be timed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lib import losses, models, trainer
from lib.bench.stacked import PRECISIONS, WAYS, Feed, Stack
from lib.bundle import Bundle
from lib.data import Split
from lib.run import Run
from lib.trainer import TrainStep, make_optimizer, train_epoch

SHAPES = {"mnist": (1, 28, 10), "cifar10": (3, 32, 10), "tiny": (1, 20, 10)}  # C, S, K
Advance = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One thing to measure.

    `make(row, device, images)` gives a function that makes `steps` steps of `k` networks.
    """

    part: str
    name: str
    make: Callable
    k: int = 1
    precision: str = "fp32"
    shape: str = "mnist"
    graph: bool = False
    compiled: bool = False
    shared: bool = True

    @property
    def title(self) -> str:
        extra = {
            "graph": self.graph,
            "compiled": self.compiled,
            "own order": not self.shared,
            self.shape: self.shape == "cifar10",
        }
        return ", ".join([self.name, *(word for word, told in extra.items() if told)])


@dataclass
class Workload:
    """What a row makes: a function, a step's work, stack and data.

    And how many steps (of all k networks) a call of the function takes.
    """

    advance: Advance
    steps: int = 1
    flop: float = 0.0
    stack: Stack | None = None
    feed: Feed | None = None
    streams: Sequence[
        "torch.cuda.Stream"
    ] = ()  # that a call leaves work on, beside the current one


def rows(tiny: bool = False) -> list[Row]:
    """What is measured, in this order.

    What decides most comes first, what may fail or take long (compiling) last.
    """
    ks, shape, few = (
        ((8,), "tiny", ("fp32",)) if tiny else ((8, 32, 96), "mnist", ("fp32", "tf32", "bf16"))
    )
    middling = "fp32" if tiny else "tf32"
    table = [
        Row("peak", "peak", peak, precision=precision, shape=shape) for precision in PRECISIONS
    ]

    def al2(
        name: str, k: int, precision: str = "fp32", make: Callable = stacked, **options
    ) -> None:
        table.append(Row("al2", name, make, k, precision, **({"shape": shape} | options)))

    for precision in few[:2]:
        al2("plain", 1, precision, plain)
    for precision in few:
        al2("grouped", 1, precision, graph=True)
    for k in ks:
        for precision in few:
            al2("hand", k, precision, graph=True)
    for k in (2,) if tiny else (1, 4, 8, 16, 32):
        for precision in few[::2]:
            al2("ours side by side", k, precision, side_by_side, graph=not tiny)
    for name in ("grouped", "grouped channels_last"):
        for k in ks:
            for precision in few if k <= 32 else few[1:]:
                al2(name, k, precision, graph=True)
    for k in ks[-2:]:
        for precision in few:
            al2("hand slices", k, precision, graph=True)
    middle = ks[min(1, len(ks) - 1)]
    for name in ("hand", "grouped", "grouped channels_last"):
        for precision in few:
            al2(
                name,
                middle,
                precision,
                graph=True,
                shape="tiny" if tiny else "cifar10",
                shared=not tiny,
            )
    for name in ("hand", "grouped"):
        al2(name, middle, few[-1])
        al2(name, middle, few[-1], graph=not tiny, shared=False)
    for precision in few:
        for layout in ("", " channels_last"):
            for name in ("vanilla", "sr3"):
                table.append(
                    Row("sparsity", name + layout, sparsity, precision=precision, shape=shape)
                )
    for k in ks:
        al2("vmap", k, middling)
        al2("vmap", k, middling, graph=True)
    if tiny:
        return list({(row.part, row.title, row.k, row.precision): row for row in table}.values())
    for precision in ("bf16", "tf32", "fp32"):
        al2("hand", 32, precision, graph=True, compiled=True)
        for name in ("vanilla", "sr3"):
            table.append(
                Row(
                    "sparsity",
                    f"{name} channels_last",
                    sparsity,
                    precision=precision,
                    compiled=True,
                )
            )
    for precision in ("bf16", "tf32"):
        al2("hand", 96, precision, graph=True, compiled=True)
        al2("grouped", 32, precision, graph=True, compiled=True)
    al2("hand", 32, "bf16", graph=True, compiled=True, shape="cifar10")
    al2("vmap", 32, "tf32", graph=True, compiled=True)
    return table


def peak(row: Row, device: torch.device, images: int) -> Workload:
    """A large matrix product of random numbers, in the row's precision."""
    n = 8192 if device.type == "cuda" else 128
    a, b = (torch.randn(n, n, device=device).to(PRECISIONS[row.precision]) for _ in range(2))
    return Workload(lambda: a @ b, flop=2 * n**3)


def plain(row: Row, device: torch.device, images: int) -> Workload:
    """The trainer's own loop, an epoch of at most 100 steps a call: the bare network with AL2."""
    run = Run("mnist", al2=True)
    shape = SHAPES[row.shape]
    split, labels = _data(row, device, min(images, 6400))
    model, advance = trained(run, split, labels[0], shape[2])
    return Workload(
        advance, len(split) // run.batch_size, flops(model, split.shape[1:]) * run.batch_size
    )


def trained(
    run: Run,
    images: Tensor,
    labels: Tensor,
    classes: int,
    precision: str = "float32",
    recorded: bool = False,
) -> tuple[nn.Module, Advance]:
    """A run's network, and a function that trains it for an epoch.

    It trains on images [N, C, S, S] with the trainer's own steps.
    """
    steps = _steps(run, images, labels, classes, precision, recorded)
    return steps.model, lambda: train_epoch(steps, 1, 0.01 * run.al2)


def _steps(
    run: Run, images: Tensor, labels: Tensor, classes: int, precision: str, recorded: bool
) -> TrainStep:
    task = Bundle(Split(images, labels), labels, *[Split(images[:0], labels[:0])] * 3, classes, {})
    model = trainer.build_network(run, *task.shape).to(
        images.device, memory_format=torch.channels_last
    )
    return TrainStep(model, make_optimizer(run, model), task, run, precision, recorded)


def _variants(k: int) -> list[Run]:
    """k networks: the study's eight variants in equal parts."""
    kinds = [{}, {"weight_decay": 5e-4}, {"dropout": 0.5}, {"batch_norm": True}]
    kinds = [kind | {"al2": al2} for kind in kinds for al2 in (False, True)]
    return [Run("mnist", **kinds[i * len(kinds) // k]) for i in range(k)]


def stacked(
    row: Row,
    device: torch.device,
    images: int,
    several: Sequence[Run] | None = None,
) -> Workload:
    """k networks in one step, in the way that the row's name says.

    The step is captured in a CUDA graph where the name asks for that.

    Args:
        several: the networks; None: the study's variants in equal parts.
    """
    several = several or _variants(row.k)
    shape = SHAPES[row.shape]
    stack = Stack(several, shape, device, PRECISIONS[row.precision])
    stack.weight += torch.tensor([0.01 * run.al2 for run in several], device=device)
    batch = 8 if row.shape == "tiny" else 64
    feed = Feed(*_data(row, device, images), batch, row.shared)
    forward = WAYS.get(row.name, WAYS["grouped"])
    if row.compiled:
        way = forward
        forward = torch.compile(lambda x, y, coins: stack.losses(way, x, y, coins))
    work = (
        flops(trainer.build_network(several[0], *shape), (shape[0], shape[1], shape[1]))
        * batch
        * row.k
    )
    advance = lambda: stack.step(forward, *feed.next())  # noqa: E731
    return Workload(_captured(advance) if row.graph else advance, 1, work, stack, feed)


def side_by_side(row: Row, device: torch.device, images: int) -> Workload:
    """k trainings that take their steps in turns, as `lib.trainer` lets them on a GPU.

    A call is one step of each.
    """
    pixels, labels = _data(row, device, images)
    streams = [torch.cuda.Stream(device) for _ in range(row.k)] if device.type == "cuda" else []
    precision = "bfloat16" if row.precision == "bf16" else "float32"

    def training(run: Run, own: Tensor) -> Iterator[None]:
        steps = _steps(run, pixels, own, SHAPES[row.shape][2], precision, row.graph)
        while True:
            yield from steps.epoch(1, 0.01 * run.al2)

    turns = [training(run, own) for run, own in zip(_variants(row.k), labels, strict=True)]

    def advance() -> None:
        for turn, stream in zip_longest(turns, streams):
            with torch.cuda.stream(stream) if stream else nullcontext():
                next(turn)

    work = (
        flops(trainer.build_network(Run("mnist"), *SHAPES[row.shape]), pixels.shape[1:])
        * Run("mnist").batch_size
        * row.k
    )
    return Workload(advance, 1, work, streams=streams)


def sparsity(row: Row, device: torch.device, images: int) -> Workload:
    """ConvNet-xxl on 32×32 images, batch 64: vanilla, or with sr3's penalties.

    bf16 is by autocast, with the penalties in float32.
    """
    tiny = images < 1000
    penalised = row.name.startswith("sr3")
    layout = torch.channels_last if "channels_last" in row.name else torch.contiguous_format
    size, batch = (8, 4) if tiny else (32, 64)
    torch.manual_seed(0)
    model = models.ConvNet(
        (4, 4, 8, 8, 16) if tiny else models.CONVNET_WIDTHS["xxl"], image_size=size
    )
    model = model.to(device, memory_format=layout)
    work = flops(model, (3, size, size)) * batch
    entropy = losses.SparsityReg(
        model, dict.fromkeys(("conv3", "conv4", "fc1"), 0.001) if penalised else {}
    )
    # a mean of the pairs takes the time of the sum, and the training does not break at random
    # images
    filters = losses.DecorrReg(
        model, {"conv1": 1.0} if penalised else {}, pairs="square", reduce="mean"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    y = torch.randint(10, (batch,), device=device)

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=row.precision == "bf16"):
            logits = model(x)
        total = F.cross_entropy(logits.float(), y)
        return total + entropy.penalty() + filters.penalty() if penalised else total

    loss = torch.compile(loss) if row.compiled else loss

    def advance() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return Workload(advance, 1, work)


def flops(model: nn.Module, shape: tuple[int, ...]) -> float:
    """Operations of a forward and a backward pass for one image [C, S, S].

    Multiplications and additions count; penalties are apart.
    """
    image = torch.zeros(1, *shape, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        grads = torch.autograd.grad(model.eval()(image).sum(), list(model.parameters()))
    del grads
    model.train()
    return counter.get_total_flops()


def _captured(step: Advance) -> Advance:
    """A CUDA graph of the step, replayed at each call; three steps are made before.

    One stream a graph keeps their work space apart, so that graphs can run side by side.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def _data(row: Row, device: torch.device, images: int) -> tuple[Tensor, Tensor]:
    """Random images [N, C, S, S] and labels [k, N], the same in each row of a shape."""
    channels, size, classes = SHAPES[row.shape]
    source = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (row.k, images), generator=source)
    labels[0] = torch.arange(images) % classes  # the network whose first losses are compared
    pixels = torch.randn(
        images,
        channels,
        size,
        size,
        device=device,
        generator=torch.Generator(device).manual_seed(1),
    )
    return pixels, labels.to(device)
