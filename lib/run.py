"""What one training is: a frozen, validated description with a stable id.

The id hashes the canonical JSON of the fields that differ from their defaults, so that a field added later changes no id;
a default, once published, never changes. What is *measured* is no part of the id, and neither is the device.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

NETWORKS = ("al2_cnn",)
OPTIMIZERS = ("sgd",)
SCHEDULES = ("al2", "geometric", "linear", "constant")
CORRUPTION_LAWS = ("bernoulli", "exact")
NORMALIZATIONS = ("al2", "unit")
BN_GAMMAS = ("ones", "uniform")
ABLATION_MASKS = ("element", "shared", "channel")
ABLATION_IMAGES = ("train-true", "train-corrupt", "test")
ABLATIONS = tuple(f"{mask}/{images}" for mask in ABLATION_MASKS for images in ABLATION_IMAGES)


PAPER_EPOCHS = 700


def epoch_measured(published_epoch: int, epochs: int) -> int:
    """The epoch of a training of `epochs` that stands for one of the AL2 paper's 700.

    A training of the paper's length, or longer, is read at the paper's own epochs.
    """
    return max(1, round(published_epoch / PAPER_EPOCHS * min(epochs, PAPER_EPOCHS)))


def _measured(default: Any) -> Any:
    return field(default=default, metadata={"measure": True}, compare=False)


@dataclass(frozen=True)
class Run:
    """One network trained once. Defaults: the bare network of the AL2 paper on 75 % corrupted labels (sections 3 and 4).

    Args:
        dataset: a name that `lib.data.load` knows, or that of an image folder in `DATA_DIR`.
        image_size: side in pixels, for data sets that can be resized; None: the set's own.
        classes: the first so many classes, for data sets that can be cut; None: all.
        normalize: input scale, "al2" (mean and standard deviation) or "unit" ([0, 1]).
        n_train: training images, the first of a fixed stratified permutation; None: all that are not held out.
        n_validation: images held out of the training split before corruption, and corrupted like the rest.
        corruption: fraction of training labels replaced by another class, in [0, 1].
        corruption_law: "bernoulli" (each label with that probability) or "exact" (exactly that share).
        network: architecture, see `lib.models.build`.
        batch_norm: batch normalisation after the second convolution.
        bn_gamma: first scale of batch normalisation, "ones" or "uniform" (U(0, 1), as PyTorch 1.1 drew it).
        dropout: probability of dropping a unit of φ, in [0, 1).
        al2: whether λ_e · mean(φ²) is added to the loss.
        schedule: the series λ_e, see `lib.losses.schedule`.
        speed: how many of the paper's epochs one epoch of the schedule stands for; > 0.
        rate: the schedule's factor, slope or value, see `lib.losses.schedule`; None: its own default.
        optimizer, learning_rate, momentum, weight_decay, batch_size, epochs: the training.
        seed: of initial weights, corruption, batch order, dropout and ablation masks, a generator for each.
        test_images: measured each epoch on so many test images, of every class; None: on all. Not in the id, like all below.
        ablations: "mask/images" pairs; masks `element`, `shared`, `channel`, images `train-true`, `train-corrupt`, `test`.
        keep_weights: store the last weights in the run's folder.

    Raises:
        ValueError: for a value that is not allowed; the message names the field and what is allowed.
        TypeError: for a value of a type that the field cannot take.
    """

    dataset: str
    image_size: int | None = None
    classes: int | None = None
    normalize: str = "al2"
    n_train: int | None = None
    n_validation: int = 0
    corruption: float = 0.75
    corruption_law: str = "bernoulli"
    network: str = "al2_cnn"
    batch_norm: bool = False
    bn_gamma: str = "ones"
    dropout: float = 0.0
    al2: bool = False
    schedule: str = "al2"
    speed: float = 1.0
    rate: float | None = None
    optimizer: str = "sgd"
    learning_rate: float = 0.001
    momentum: float = 0.5
    weight_decay: float = 0.0
    batch_size: int = 64
    epochs: int = 700
    seed: int = 0
    test_images: int | None = _measured(None)
    ablations: tuple[str, ...] = _measured(("element/train-true",))
    keep_weights: bool = _measured(False)

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _coerce(f.name, f.type, getattr(self, f.name)))
        _one_of("network", self.network, NETWORKS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("corruption_law", self.corruption_law, CORRUPTION_LAWS)
        _one_of("normalize", self.normalize, NORMALIZATIONS)
        _one_of("bn_gamma", self.bn_gamma, BN_GAMMAS)
        for spec in self.ablations:
            _one_of("ablations", spec, ABLATIONS)
        if not self.dataset or self.dataset.startswith(".") or set(self.dataset) & set("/\\*?["):
            raise ValueError(f"dataset is {self.dataset!r}; it has to be a name, such as 'mnist' or a folder's in DATA_DIR")
        _check("corruption", self.corruption, "a fraction in [0, 1]", 0 <= self.corruption <= 1)
        _check("dropout", self.dropout, "a probability in [0, 1)", 0 <= self.dropout < 1)
        _check("learning_rate", self.learning_rate, "a positive number", 0 < self.learning_rate < math.inf)
        _check("momentum", self.momentum, "a number in [0, 1)", 0 <= self.momentum < 1)
        _check("weight_decay", self.weight_decay, "a number ≥ 0", 0 <= self.weight_decay < math.inf)
        _check("speed", self.speed, "a positive number", 0 < self.speed < math.inf)
        if self.rate is not None:
            _check("rate", self.rate, "a positive number or None", 0 < self.rate < math.inf)
        for name in ("batch_size", "epochs", "n_train", "image_size", "classes", "test_images"):
            value = getattr(self, name)
            _check(name, value, "a whole number ≥ 1", value is None or value >= 1)
        for name in ("n_validation", "seed"):
            _check(name, getattr(self, name), "a whole number ≥ 0", getattr(self, name) >= 0)
        if self.al2 and self.schedule == "al2" and self.rate is not None:
            raise ValueError(f"rate is {self.rate}, but the schedule 'al2' has none: change its speed instead")
        # a setting that cannot change the result is no part of the id
        unused = ["schedule", "speed", "rate"] * (not self.al2) + ["bn_gamma"] * (not self.batch_norm)
        for name in unused + ["corruption_law"] * (self.corruption == 0):
            object.__setattr__(self, name, self.__dataclass_fields__[name].default)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Run":
        """A run from a mapping of field names; an unknown name is refused with the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(f"a run has no parameter {name!r}{hint} Known: {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """What is trained: every field but the measured ones, defaults included."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.metadata.get("measure")}

    def measured(self) -> dict[str, Any]:
        """What is measured on the way; no part of the id."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("measure")}
        return values | {"ablations": list(self.ablations)}

    def canonical(self) -> str:
        """The JSON that the id hashes: sorted keys, fields at their default left out."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        kept = {name: value for name, value in self.to_dict().items() if value != defaults[name]}
        return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that stand for this training."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:10]

    @property
    def baseline(self) -> str:
        """The published tables' name of the network without AL2: bare, batchnorm, dropout, weight_decay, or a sum."""
        on = {"batchnorm": self.batch_norm, "dropout": self.dropout > 0, "weight_decay": self.weight_decay > 0}
        return "+".join(name for name, used in on.items() if used) or "bare"

    @property
    def name(self) -> str:
        """Readable, unique by its end: network, what sets it apart, id. The name of its folder."""
        parts = [self.network, self.baseline]
        if self.al2:
            parts.append("al2" if self.schedule == "al2" else f"al2_{self.schedule}")
        return "-".join([*parts, f"corrupt{100 * self.corruption:g}", f"seed{self.seed}", self.id])

    def point_epochs(self) -> list[int]:
        """The epochs at which tables are read: 100, 200, … 700 as in the paper, a shorter training at the same sevenths.

        All test images and the ablations are measured there, and at the last epoch.
        """
        return sorted({epoch_measured(e, self.epochs) for e in range(100, PAPER_EPOCHS + 1, 100)} | {self.epochs})

    def with_measures(self, other: "Run") -> "Run":
        """This run, measuring what either of the two measures."""
        images = [r.test_images for r in (self, other)]
        return dataclasses.replace(
            self,
            test_images=None if None in images else max(images),
            ablations=tuple(dict.fromkeys([*self.ablations, *other.ablations])),
            keep_weights=self.keep_weights or other.keep_weights,
        )


def label_randomization(
    dataset: str, *, seeds: Iterable[int] = (0,), dropout: float = 0.5, weight_decay: float = 5e-4, **settings: Any
) -> list[Run]:
    """The eight networks of Table 1 for each seed: bare, batch norm, dropout, weight decay, each without and with AL2.

    `dropout` and `weight_decay` are the strengths of their own baselines; `settings` are fields of `Run`.
    """
    if fixed := {"al2", "batch_norm", "seed"} & settings.keys():
        raise ValueError(f"{', '.join(sorted(fixed))} cannot be set: it is what the eight networks differ in (seeds: a list)")
    if not (dropout > 0 and weight_decay > 0):
        raise ValueError(f"dropout is {dropout} and weight_decay {weight_decay}; their baselines need both positive")
    baselines = [{}, {"batch_norm": True}, {"dropout": dropout}, {"weight_decay": weight_decay}]
    return [
        Run.from_dict({"dataset": dataset, "seed": seed, "al2": al2, **settings, **baseline})
        for seed in seeds
        for baseline in baselines
        for al2 in (False, True)
    ]


def generator(seed: int, *purpose: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own for each purpose, for example `generator(seed, "order", epoch)`.

    Seeded from (seed, purpose) by a hash that is the same on every machine. Because an epoch can be part of the purpose,
    a resumed training needs no stored generator states.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _coerce(name: str, kind: Any, value: Any) -> Any:
    """`value` as the field's type, so that 1 and 1.0 give one id; refuses what is not of it (True is no number)."""
    text = str(kind)
    if value is None and "None" in text:
        return None
    if kind is str and isinstance(value, str):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if "tuple" in text and isinstance(value, list | tuple):
        return tuple(spec for spec in ABLATIONS if spec in value) + tuple(spec for spec in value if spec not in ABLATIONS)
    if not isinstance(value, (bool, str)):
        try:
            if "int" in text:
                return operator.index(value)
            if "float" in text:
                return float(value) + 0.0  # -0.0 is 0.0
        except (TypeError, OverflowError):
            pass
    wanted = getattr(kind, "__name__", text)
    hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(value, str) and "float" in text else ""
    raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; it has to be {wanted}{hint}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def _check(name: str, value: Any, wanted: str, ok: bool) -> None:
    if not ok:
        raise ValueError(f"{name} is {value}; it has to be {wanted}")
