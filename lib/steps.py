"""The steps of a training, one network at a time or several in turns; on a GPU a step is recorded
once and replayed.

A step of these networks is some hundred small operators, which a GPU ends sooner than Python has
launched the next. So its first steps are made as they are written, then one is recorded in a CUDA
graph, and from there on a step is a single launch. Graphs of several networks, each on a stream of
its own (`lib.trainer`), fill a GPU that one of them leaves idle. Recorded or not, a step is the
same operators in the same order. `CUDA_GRAPHS=0` in the environment turns recording off.
"""

import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import losses, measures, models
from lib.run import Run, generator
from lib.task import Task

PRECISIONS = ("float32", "bfloat16")
WARM_UP = (
    3  # steps made before one is recorded: libraries set themselves up, and the optimiser its state
)

Penalties = tuple[losses.ActivationL2, losses.SparsityReg, losses.DecorrReg]


def optimizer_of(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """The run's optimiser, for a network that lies on its device."""
    options = {"lr": run.learning_rate, "weight_decay": run.weight_decay}
    if run.optimizer == "adam":
        on_gpu = next(
            model.parameters()
        ).is_cuda  # its count of steps has to lie where a recorded step can find it
        return torch.optim.Adam(model.parameters(), **options, capturable=on_gpu)
    return torch.optim.SGD(model.parameters(), momentum=run.momentum, **options)


class Steps:
    """Trains a network on its task, an epoch at a call of `epoch`.

    Args:
        model: on the task's device.
        optimizer: of its parameters.
        penalties: as `lib.task.penalties` attaches them.
        task: images and labels.
        run: what is trained.
        precision: of the products, one of `PRECISIONS`; losses, penalties and weights are float32
            in either.
        recorded: whether steps are replayed from a CUDA graph; None: on a GPU, unless $CUDA_GRAPHS
            is 0.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        penalties: Penalties,
        task: Task,
        run: Run,
        precision: str = PRECISIONS[0],
        recorded: bool | None = None,
    ) -> None:
        self.model, self.optimizer, self.task, self.run, self.precision = (
            model,
            optimizer,
            task,
            run,
            precision,
        )
        self.activation_l2, sparsity, decorrelation = penalties
        device = task.train.images.device
        wanted = device.type == "cuda" and os.environ.get("CUDA_GRAPHS") != "0"
        self.recorded = wanted if recorded is None else recorded
        self.added = (
            {"sparsity_penalty": sparsity} if run.sparsity else {}
        )  # penalties that join the loss as they are
        self.added |= {"decorrelation_penalty": decorrelation} if run.decorrelation else {}
        self.names = ["cross_entropy", "activation_l2", "train_accuracy", *self.added]
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self.weight = torch.zeros(
            (), device=device
        )  # λ_e: changed in place, since a recorded step reads it from there
        self.coins = torch.Generator(device)  # one for all layers, or they would drop alike
        for module in model.modules():
            if isinstance(module, models.Dropout):
                module.generator = self.coins
        self.made = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.chosen: Tensor | None = None  # the images of a recorded step [B]

    def epoch(self, epoch: int, weight: float) -> Iterator[None]:
        """A pass over the training images, which stops after each step so that other networks can
        take theirs.

        Args:
            epoch: 1 for the first; order of images and dropout's coins depend on it.
            weight: λ of this epoch.

        Returns:
            (of the generator) means over the epoch's images, in training mode, by name; and
            `lambda` with AL2.
        """
        self.model.train()
        labels, run = self.task.train.labels, self.run
        order = torch.randperm(len(labels), generator=generator(run.seed, "order", epoch)).to(
            labels.device
        )
        self.coins.manual_seed(generator(run.seed, "dropout", epoch).initial_seed())
        self.weight.fill_(weight)
        self.sums.zero_()
        for batch in order.split(run.batch_size):
            self._advance(batch)
            yield
        means = (self.sums / len(labels)).tolist()  # the epoch's only wait for the device
        values = dict(zip(self.names, means, strict=True))
        return values | {"lambda": weight} if run.al2 else values

    def _advance(self, batch: Tensor) -> None:
        if (
            not self.recorded or self.made < WARM_UP or len(batch) < self.run.batch_size
        ):  # a short rest has no graph
            self._step(batch)
            self.made += 1
            return
        if self.graph is None:
            self._record()
        self.chosen.copy_(batch)
        self.graph.replay()

    def _record(self) -> None:
        """Capture a step, which does not make it. On the current stream: graphs that share one
        share its work space, too.
        """
        self.chosen = torch.zeros(self.run.batch_size, dtype=torch.int64, device=self.sums.device)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.coins)
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            self._step(self.chosen)

    def _step(self, batch: Tensor) -> None:
        """One step on the images with these numbers, int64 [B]; all that stays is changed in
        place.
        """
        x, y = self.task.train.images[batch], self.task.train.labels[batch]  # [B, C, H, W], [B]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = (
                self.model(x).float()
            )  # [B, K]; losses, and gradients of weights, are float32 whatever the products are
        cross_entropy, l2 = F.cross_entropy(logits, y), self.activation_l2.penalty()
        loss = cross_entropy + self.weight * l2 if self.run.al2 else cross_entropy
        added = [penalty.penalty() for penalty in self.added.values()]
        loss = sum(added, loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        values = [
            cross_entropy,
            l2,
            measures.accuracy(logits, y),
            *added,
        ]  # in the order of `names`
        self.sums += torch.stack([value.detach() for value in values]).double() * len(y)


def train_epoch(steps: Steps, epoch: int, weight: float) -> dict[str, float]:
    """All steps of an epoch of one network, one after another: what `Steps.epoch` gives at its
    end.
    """
    turns = steps.epoch(epoch, weight)
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value
