"""What one training is: a frozen, validated description with a stable id.

The id hashes the canonical JSON of the fields that differ from their defaults, so that a field
added later changes no id; a default, once published, never changes. What is *measured* is no part
of the id, and neither is the device.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lib.losses import BATCHES, CENTRES, PAIRS, REDUCTIONS
from lib.measures import ABLATION_MASKS
from lib.models import CONVNETS, NETWORKS, NORM_PLACES, PADDINGS, features_layer
from lib.schedules import PAPER_EPOCHS, SCHEDULES, schedule

ABLATION_IMAGES = ("train-true", "train-corrupt", "test")
CCA_STARTS = ("init", "epoch1")
ABLATIONS = tuple(f"{mask}/{images}" for mask in ABLATION_MASKS for images in ABLATION_IMAGES)
TABLE_EPOCHS = range(100, PAPER_EPOCHS + 1, 100)  # at which the AL2 paper's tables are printed
ALLOWED = {
    "network": NETWORKS,
    "optimizer": ("sgd", "adam"),
    "schedule": SCHEDULES,
    "corruption_law": ("bernoulli", "exact"),
    "normalize": ("al2", "unit"),
    "bn_gamma": ("ones", "uniform"),
    "norm_place": NORM_PLACES,
    "padding": PADDINGS,
    "sparsity_batch": BATCHES,
    "decorrelation_centre": CENTRES,
    "decorrelation_pairs": PAIRS,
    "decorrelation_reduce": REDUCTIONS,
    "ablations": ABLATIONS,
    "cca": CCA_STARTS,
}
# fields, what they have to be where they are not None
LIMITS: list[tuple[str, str, Callable[[Any], object]]] = [
    ("relabelled_by", "a run's id, ten hexadecimal digits", re.compile("[0-9a-f]{10}").fullmatch),
    ("corruption", "a fraction in [0, 1]", lambda value: 0 <= value <= 1),
    ("dropout", "a probability in [0, 1)", lambda value: 0 <= value < 1),
    ("momentum", "a number in [0, 1)", lambda value: 0 <= value < 1),
    ("learning_rate speed", "a positive, finite number", lambda value: 0 < value < math.inf),
    ("rate", "a positive, finite number or None", lambda value: 0 < value < math.inf),
    (
        "weight_decay sparsity_weight decorrelation_weight",
        "a finite number ≥ 0",
        lambda value: 0 <= value < math.inf,
    ),
    (
        "batch_size epochs n_train image_size classes test_images",
        "a whole number ≥ 1",
        lambda value: value >= 1,
    ),
    ("n_validation n_measure heat_maps seed", "a whole number ≥ 0", lambda value: value >= 0),
]

# Seeds from here on are for calibration and screening; no result (table, claim, figure) has them.
SCREENING_SEED = 100

# The layers that SparsityReg and DecorrReg act on (targeted sparsity, section 4.2).
SPARSITY_NETWORKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "vanillaNet": ((), ()),
    "sr1Net": (("conv1", "conv2", "conv3", "conv4", "fc1"), ()),
    "sr2Net": (("conv3", "conv4", "fc1"), ()),
    "sr3Net": (("conv3", "conv4", "fc1"), ("conv1",)),
}


@dataclass(frozen=True)
class Term:
    """One penalty of a run's loss."""

    name: str  # in `losses.PENALTIES`
    options: dict[str, Any]  # of its class, beside the network
    weight: float | None  # that it is multiplied by; None: λ_e of the run's schedule
    added: bool = False  # one of `Run.penalties`


def epoch_measured(published_epoch: int, epochs: int) -> int:
    """The epoch of a training of `epochs` that stands for one of the AL2 paper's 700.

    A training of the paper's length, or longer, is read at the paper's own epochs.
    """
    return max(1, round(published_epoch / PAPER_EPOCHS * min(epochs, PAPER_EPOCHS)))


def _measured(default: Any) -> Any:
    return field(default=default, metadata={"measure": True}, compare=False)


@dataclass(frozen=True)
class Run:
    """One network trained once.

    Defaults: the bare network of the AL2 paper on 75 % corrupted labels (sections 3 and 4).

    Args:
        dataset: a name that `lib.data.load` knows, or that of an image folder in `DATA_DIR`.
        image_size: side in pixels, for data sets that can be resized; None: the set's own.
        classes: the first so many classes, for data sets that can be cut; None: all.
        normalize: input scale, "al2" (mean and standard deviation) or "unit" ([0, 1]).
        n_train: training images, the first of a fixed stratified permutation; None: all that are
            not held out.
        n_validation: images held out of the training split before corruption, and corrupted like
            the rest.
        corruption: fraction of training labels replaced by another class, in [0, 1].
        corruption_law: see `lib.data.corrupt_labels`.
        network: see `lib.models.build`.
        norm_place, padding: of ConvNets alone, see `lib.models.ConvNet`.
        batch_norm: in al2_cnn after the second convolution, in ConvNets see `norm_place`.
        bn_gamma: first scale of batch normalisation, "ones" or "uniform" (U(0, 1), as PyTorch drew
            it up to 1.1).
        dropout: probability of dropping a unit, of φ in al2_cnn, after each pool in ConvNets; in
            [0, 1).
        al2: whether λ_e · mean(φ²) is added to the loss.
        schedule: the series λ_e, see `lib.schedules.schedule`.
        speed: how many of the paper's epochs one epoch of the schedule stands for; > 0.
        rate: the schedule's factor, slope or value; None: its own default.
        sparsity, sparsity_weight, sparsity_batch: layers whose entropy SparsityReg keeps up, λ_i of
            each of them (≥ 0), "mean" or "sum" over a batch; see `lib.losses.SparsityReg`.
        decorrelation, decorrelation_weight: layers whose filters DecorrReg decorrelates, κ_i of
            each of them (≥ 0).
        decorrelation_centre, decorrelation_pairs, decorrelation_reduce: see
            `lib.losses.decorrelation`.
        penalties: further penalties, each a mapping of `name` (in `lib.losses.PENALTIES`), `weight`
            (1 if it is left out) and whatever options its class takes; added to the loss in this
            order. Kept as JSON texts, which are accepted, too.
        relabelled_by: id of another run, of the same images, whose last predictions replace the
            corrupted training labels (AL2, section 4: relabelling); the validation labels stay as
            they are.
        n_measure: images held out of the training split to measure entropy on; in neither training
            nor validation set.
        optimizer, learning_rate, momentum, weight_decay, batch_size, epochs: the training.
        seed: of initial weights, corruption, batch order, dropout and ablation masks, a generator
            for each.
        test_images: measured each epoch on so many test images, of every class; None: on all. Not
            in the id, like all below.
        ablations: "mask/images" pairs of `ABLATIONS`; of al2_cnn alone.
        entropy: mean entropy of each hidden layer over the `n_measure` images, root mean square and
            histogram of its filters' correlations (up to 1,024 filters), before training and after
            each epoch.
        cca: canonical correlations of φ, of one fixed sample of training images, between
            `cca_epochs()` and a start: "init" (before training) or "epoch1" (after the first epoch,
            as the AL2 authors' code has it). Of al2_cnn alone.
        heat_maps: entropy maps of the first so many measuring images, at `heat_map_epochs()`.
        keep_weights: store the last weights in the run's folder.
        keep_trunk: store the trunk's last weights among the arrays; of al2_cnn alone, 100 KB.
        predictions: store the classes predicted for the training images at the end; needed for
            `relabelled_by`.

    Raises:
        ValueError, TypeError: for a value, or a type, that is not allowed; names the field and what
            is allowed.
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
    norm_place: str = "conv"
    padding: str = "same"
    sparsity: tuple[str, ...] = ()
    sparsity_weight: float = 0.001
    decorrelation: tuple[str, ...] = ()
    decorrelation_weight: float = 1.0
    decorrelation_centre: str = "own"
    decorrelation_pairs: str = "signed"
    decorrelation_reduce: str = "sum"
    n_measure: int = 0
    relabelled_by: str | None = None
    sparsity_batch: str = "mean"
    penalties: tuple[str, ...] = ()
    test_images: int | None = _measured(None)
    ablations: tuple[str, ...] = _measured(("element/train-true",))
    keep_weights: bool = _measured(False)
    entropy: bool = _measured(False)
    heat_maps: int = _measured(0)
    cca: tuple[str, ...] = _measured(())
    keep_trunk: bool = _measured(False)
    predictions: bool = _measured(False)

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _coerce(f.name, f.type, getattr(self, f.name)))
        for name, allowed in ALLOWED.items():
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if item not in allowed:
                    raise ValueError(f"{name} is {item!r}; allowed: {', '.join(allowed)}")
        if not self.dataset or self.dataset.startswith(".") or set(self.dataset) & set("/\\*?["):
            raise ValueError(
                f"dataset is {self.dataset!r}; it has to be a name, such as 'mnist' or a folder's "
                "in DATA_DIR"
            )
        for names, wanted, is_allowed in LIMITS:
            for name in names.split():
                value = getattr(self, name)
                _check(name, value, wanted, value is None or is_allowed(value))
        if self.al2:
            largest = _largest_weight(self.schedule, self.epochs, self.speed, self.rate)
            fits = largest <= torch.finfo(torch.float32).max
            _check(
                "epochs", self.epochs, "so few, at this speed and rate, that λ fits float32", fits
            )
        if self.entropy and not self.n_measure:
            raise ValueError(
                "entropy is measured on images held out for it: n_measure is 0; it has to be a "
                "whole number ≥ 1"
            )
        few_enough = self.heat_maps <= self.n_measure
        _check("heat_maps", self.heat_maps, f"at most n_measure, {self.n_measure}", few_enough)
        if self.network in ("lenet", "alexnet") and (self.batch_norm or self.dropout):
            raise ValueError(
                f"{self.network} has neither batch norm nor dropout; take a ConvNet: "
                f"{', '.join(CONVNETS)}"
            )
        for name in self._without_effect():
            object.__setattr__(self, name, self.__dataclass_fields__[name].default)
        if self.network != "al2_cnn":
            for name, none in (("ablations", ()), ("cca", ()), ("keep_trunk", False)):
                object.__setattr__(self, name, none)

    def _without_effect(self) -> list[str]:
        """Settings that cannot change the result, and so are no part of the id."""
        convnet = self.network in CONVNETS
        sparsity = self.sparsity and self.sparsity_weight
        decorrelation = self.decorrelation and self.decorrelation_weight
        of_decorrelation = [name for name in self.__dataclass_fields__ if "decorrelation" in name]
        idle = [
            (not self.al2, ["schedule", "speed", "rate"]),
            (self.schedule == "constant", ["speed"]),
            (self.corruption == 0, ["corruption_law"]),
            (not (self.batch_norm and self.network == "al2_cnn"), ["bn_gamma"]),
            (not (self.batch_norm and convnet), ["norm_place"]),
            (not convnet, ["padding"]),
            (self.optimizer == "adam", ["momentum"]),
            (not sparsity, ["sparsity", "sparsity_weight", "sparsity_batch"]),
            (not decorrelation, of_decorrelation),
        ]
        return [name for is_idle, names in idle if is_idle for name in names]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Run":
        """A run from a mapping of field names; an unknown one is refused with the nearest known."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(f"a run has no parameter {name!r}{hint} Known: {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """What is trained: every field but the measured ones, defaults included."""
        return self._fields(measured=False)

    def measured(self) -> dict[str, Any]:
        """What is measured on the way; no part of the id."""
        return self._fields(measured=True)

    def described(self) -> dict[str, Any]:
        """The run as columns of a tidy frame: `id`, its names, and every field.

        Layers are one text, "conv3 conv4"; penalties are "name(weight=0.1, layer=conv3)".
        """
        fields = self.to_dict()
        for name, value in fields.items():
            if isinstance(value, list):
                fields[name] = " ".join(value if name != "penalties" else map(_as_text, value))
        names = ("id", "baseline", "regulariser", "variant")
        return {name: getattr(self, name) for name in names} | fields

    def _fields(self, measured: bool) -> dict[str, Any]:
        """As JSON gives them back."""
        values = {}
        for f in dataclasses.fields(self):
            if f.metadata.get("measure", False) == measured:
                value = getattr(self, f.name)
                values[f.name] = list(value) if isinstance(value, tuple) else value
        if "penalties" in values:
            values["penalties"] = [json.loads(text) for text in self.penalties]
        return values

    def network_options(self) -> dict[str, Any]:
        """What `models.architecture` takes beside the network's name and the images' shape."""
        names = ("batch_norm", "dropout", "norm_place", "padding")
        return {name: getattr(self, name) for name in names}

    def terms(self) -> list[Term]:
        """The penalties of the run's loss, in the order in which they are added to it."""
        terms = []
        if self.al2:
            terms.append(Term("activation_l2", {"layer": features_layer(self.network)}, None))
        if self.sparsity:
            weights = dict.fromkeys(self.sparsity, self.sparsity_weight)
            options = {"layers": weights, "batch": self.sparsity_batch}
            terms.append(Term("sparsity", options, 1.0))
        if self.decorrelation:
            options = {
                "layers": dict.fromkeys(self.decorrelation, self.decorrelation_weight),
                "centre": self.decorrelation_centre,
                "pairs": self.decorrelation_pairs,
                "reduce": self.decorrelation_reduce,
            }
            terms.append(Term("decorrelation", options, 1.0))
        for text in self.penalties:
            options = json.loads(text)
            name = options.pop("name")
            weight = options.pop("weight", 1.0)
            terms.append(Term(name, options, weight, added=True))
        return terms

    def canonical(self) -> str:
        """The JSON that the id hashes: sorted keys, fields at their default left out."""
        fields = self.__dataclass_fields__
        kept = {
            name: value
            for name, value in self.to_dict().items()
            if getattr(self, name) != fields[name].default
        }
        return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that stand for this training."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:10]

    @property
    def baseline(self) -> str:
        """The published tables' name without AL2: bare, or a sum of what it has."""
        on = {
            "batchnorm": self.batch_norm,
            "dropout": self.dropout > 0,
            "weight_decay": self.weight_decay > 0,
        }
        return "+".join(name for name, used in on.items() if used) or "bare"

    @property
    def regulariser(self) -> str:
        """The penalties by name, a sum if there are several: "al2+sparsity"; "" for none."""
        return "+".join("al2" if term.weight is None else term.name for term in self.terms())

    @property
    def variant(self) -> str:
        """The targeted-sparsity paper's name of the network, such as sr3Net.

        LeNet and AlexNet have `+sr` where they are regularised; what has no name in the paper is
        spelled out.
        """
        plain = {"lenet": "LeNet", "alexnet": "AlexNet", "al2_cnn": "AL2CNN"}.get(self.network)
        regularised = (self.sparsity, self.decorrelation)
        named = [name for name, layers in SPARSITY_NETWORKS.items() if layers == regularised]
        if named and not (plain or self.batch_norm or self.dropout):
            parts = named
        else:
            convnet = "normNet" if self.batch_norm else "dropNet" if self.dropout else "vanillaNet"
            parts = [plain or convnet]
            if not plain and self.batch_norm and self.dropout:
                parts.append("dropout")
            if self.sparsity and self.network in ("lenet", "alexnet"):
                parts.append("sr")
            elif self.sparsity:
                parts.append(f"sr {' '.join(self.sparsity)}")
            if self.decorrelation:
                parts.append(f"decorr {' '.join(self.decorrelation)}")
        if self.al2:
            parts.append("al2")
        return "+".join([*parts, *self._added_names()])

    def _added_names(self) -> list[str]:
        return [term.name for term in self.terms() if term.added]

    @property
    def name(self) -> str:
        """Readable, unique by its end: network, what sets it apart, id. The name of its folder."""
        if self.network == "al2_cnn":
            parts = [self.network, self.baseline]
            if self.sparsity:
                parts.append(f"sr_{len(self.sparsity)}")
            if self.decorrelation:
                parts.append(f"decorr_{len(self.decorrelation)}")
            if self.al2:
                parts.append("al2" if self.schedule == "al2" else f"al2_{self.schedule}")
            parts += self._added_names()
            if self.relabelled_by:
                parts.append("relabelled")
        else:
            parts = [self.network, re.sub(r"\W+", "_", self.variant), self.optimizer]
        return "-".join([*parts, f"corrupt{100 * self.corruption:g}", f"seed{self.seed}", self.id])

    def heat_map_epochs(self) -> list[int]:
        """About a dozen: 0 (before training, the paper's −1), 1, ever more rarely to the last."""
        return sorted({0} | {round(self.epochs ** (k / 10)) for k in range(11)})

    def cca_epochs(self) -> list[int]:
        """Every tenth, as in Fig. 1 of the AL2 paper; of a short training at least 50, or all."""
        step = max(1, min(10, self.epochs // 50))
        return list(range(step, self.epochs + 1, step))

    def table_epochs(self) -> list[int]:
        """The epochs at which the AL2 paper's tables are read, 100, 200, … 700, and the last.

        A shorter training is read at the same sevenths. All test images and the ablations are
        measured there. The other paper's tables read the best epoch of a curve that has to be
        measured on the same images throughout: its networks have no such epochs.
        """
        if self.network != "al2_cnn":
            return []
        return sorted({*(epoch_measured(e, self.epochs) for e in TABLE_EPOCHS), self.epochs})

    def with_measures(self, other: "Run") -> "Run":
        """This run, measuring what either of the two measures."""
        images = [r.test_images for r in (self, other)]
        return dataclasses.replace(
            self,
            test_images=None if None in images else max(images),
            ablations=tuple(dict.fromkeys([*self.ablations, *other.ablations])),
            keep_weights=self.keep_weights or other.keep_weights,
            entropy=self.entropy or other.entropy,
            cca=(*self.cca, *other.cca),
            heat_maps=max(self.heat_maps, other.heat_maps),
            keep_trunk=self.keep_trunk or other.keep_trunk,
            predictions=self.predictions or other.predictions,
        )


def generator(seed: int, *purpose: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own for each purpose, for example `generator(seed, "order", epoch)`.

    Seeded from (seed, purpose) by a hash that is the same on every machine. Because an epoch can be
    part of the purpose, a resumed training needs no stored generator states.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _coerce(name: str, kind: Any, value: Any) -> Any:
    """`value` as the field's type (True is no number), so that 1 and 1.0 give one id."""
    text = str(kind)
    if value is None and "None" in text:
        return None
    if kind in (str, str | None) and isinstance(value, str):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if name == "penalties":
        if not isinstance(value, list | tuple):
            raise TypeError(f"penalties is {value!r}; it has to be a list of mappings with a name")
        return tuple(filter(None, map(_penalty, value)))
    if "tuple" in text and isinstance(value, list | tuple):
        if strange := [item for item in value if not isinstance(item, str)]:
            raise TypeError(f"{name} holds {strange[0]!r}; it has to be a list of names")
        order = ABLATIONS if name == "ablations" else ()
        return tuple(sorted(set(value), key=lambda item: ((*order, item).index(item), item)))
    if not isinstance(value, (bool, str)):
        try:
            if "int" in text:
                return operator.index(value)
            if "float" in text:
                return float(value) + 0.0  # -0.0 is 0.0
        except (TypeError, OverflowError):
            pass
    wanted = getattr(kind, "__name__", text)
    is_text = isinstance(value, str) and "float" in text
    hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if is_text else ""
    raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; it has to be {wanted}{hint}")


def _penalty(entry: Any) -> str | None:
    """An entry of `Run.penalties` as canonical JSON text; None for one whose weight is 0."""
    try:
        options = json.loads(entry) if isinstance(entry, str) else dict(entry)
        name = options.pop("name")
        weight = options.pop("weight", 1.0)
        text = json.dumps(options, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TypeError(
            f"penalties holds {entry!r} ({error!r}); it has to be a list of mappings with a name, "
            "such as {'name': 'sparsity', 'weight': 1.0, 'layers': {'conv3': 0.001}}"
        ) from error
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name):
        raise ValueError(f"penalties holds the name {name!r}; it has to be a word of ASCII letters")
    weight = _coerce("weight", float, weight)
    _check("weight", weight, "a number ≥ 0", 0 <= weight < math.inf)
    if weight == 0:
        return None
    options = json.loads(text) | {"name": name}
    if weight != 1:
        options["weight"] = weight
    return json.dumps(options, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _as_text(penalty: dict[str, Any]) -> str:
    """An entry of `Run.penalties` in words: "name(weight=0.1, layer=conv3)"."""
    options = ", ".join(f"{key}={value}" for key, value in penalty.items() if key != "name")
    return f"{penalty['name']}({options})"


@functools.cache
def _largest_weight(name: str, epochs: int, speed: float, rate: float | None) -> float:
    """λ_e's largest value, in Python's own float; a ValueError if there is no such schedule."""
    return float(schedule(name, epochs, speed, rate).max())


def _check(name: str, value: Any, wanted: str, ok: bool) -> None:
    if not ok:
        raise ValueError(f"{name} is {value}; it has to be {wanted}")
