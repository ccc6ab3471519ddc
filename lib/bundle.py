"""What a run trains on: its images and labels, split, corrupted and on their device.

Every check of a run against its data and its network is made here, before anything trains.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import data, losses, models, run_dir
from lib.run import Run, Term, generator

# Runs with the same values train, and are tested, on the same images …
DATA_FIELDS = tuple("dataset image_size classes normalize n_train n_validation n_measure".split())
# … with these, too, on the same labels; with these pass or fail the checks of `prepare` together.
LABEL_FIELDS = ("corruption", "corruption_law", "seed", "relabelled_by")
CHECKED_FIELDS = tuple(
    "batch_size test_images network batch_norm dropout norm_place padding sparsity decorrelation "
    "penalties cca".split()
)


@dataclass(frozen=True)
class Bundle:
    """A run's data on its device: images float [N, C, H, W], labels int64 [N]."""

    train: data.Split  # labels corrupted, or those that another run predicts
    true_labels: Tensor
    validation: data.Split  # labels corrupted; may be empty
    measure: data.Split  # probe images, that entropy is measured on; may be empty
    test: data.Split
    num_classes: int
    hashes: dict[str, str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels and side of the images and number of classes, as `models.build` takes them."""
        return self.train.images.shape[1], self.train.images.shape[2], self.num_classes


@dataclass(frozen=True)
class Images:
    """The images of `DATA_FIELDS` on their device, in channels_last; true labels on the CPU."""

    train: data.Split
    validation: data.Split
    measure: data.Split
    test: data.Split
    num_classes: int
    sha256: str


CCA_IMAGES = 1000  # of the training set, that canonical correlations are of (protocol, section 1)

Loaded = dict[tuple, Images]  # by the values of `DATA_FIELDS`


def prepare(run: Run, device: str | torch.device = "cpu", loaded: Loaded | None = None) -> Bundle:
    """The data that a run trains on, split and corrupted.

    Args:
        run: what is to be trained.
        device: where the images and labels go.
        loaded: images that are on this device already; those that were not are added.

    Raises:
        ValueError: if the run does not fit the data, or as `check`.
        data.DataError: if the data set is not at hand.
        LookupError: if the run that relabels the training images has not been trained, or not with
            its predictions.
    """
    loaded = {} if loaded is None else loaded
    key = _values(run, DATA_FIELDS)
    if key not in loaded:
        loaded[key] = _load(run, device)
    images = loaded[key]
    num_classes = images.num_classes
    check(run, (*images.train.images.shape[1:3], num_classes), len(images.train), len(images.test))

    def corrupted(split: data.Split, purpose: str) -> Tensor:
        source = generator(run.seed, purpose)
        how = {"generator": source, "law": run.corruption_law}
        return data.corrupt_labels(split.labels, run.corruption, num_classes, **how)[0]

    def placed(split: data.Split, labels: Tensor) -> data.Split:
        return data.Split(split.images, labels.to(device))

    if run.relabelled_by is None:
        labels = corrupted(images.train, "corruption")
    else:
        labels = _pseudo_labels(run, images)
    return Bundle(
        train=placed(images.train, labels),
        true_labels=images.train.labels.to(device),
        validation=placed(images.validation, corrupted(images.validation, "validation corruption")),
        measure=placed(images.measure, images.measure.labels),
        test=placed(images.test, images.test.labels),
        num_classes=num_classes,
        hashes={"data": images.sha256, "labels": _hash(labels)},
    )


def _load(run: Run, device: str | torch.device) -> Images:
    """The run's images, split and scaled; the first so many test images hold all classes."""
    options = {"size": run.image_size, "classes": run.classes}
    options = {name: value for name, value in options.items() if value is not None}
    raw = data.read(run.dataset, normalize=run.normalize, **options)
    height, width = raw.scale(raw.train.images[:1]).shape[2:]
    if height != width:
        raise ValueError(
            f"{run.dataset} has images of {height}×{width} pixels; the networks take square ones"
        )
    parts = data.subset(raw.train, run.n_train, run.n_validation, run.n_measure)
    # archives are sorted by class: in this order every class has its share from the start
    test = raw.test.take(data.stratified_permutation(raw.test.labels))

    def placed(split: data.Split) -> data.Split:
        images = raw.scale(split.images.to(device))
        return data.Split(images.contiguous(memory_format=torch.channels_last), split.labels)

    return Images(*map(placed, (*parts, test)), raw.num_classes, raw.sha256)


def attach(run: Run, model: nn.Module) -> list[tuple[Term, losses.Penalty]]:
    """The terms of the run's loss beside the cross-entropy, each with its penalty, attached.

    Raises:
        ValueError: for a penalty that is not in `losses.PENALTIES`, options that its class does not
            take, a layer that the network does not have, and a metric whose name is taken.
    """
    attached = []
    metrics: set[str] = set()
    for term in run.terms():
        if term.name not in losses.PENALTIES:
            raise ValueError(
                f"penalties holds {term.name!r}; losses.PENALTIES has "
                f"{', '.join(losses.PENALTIES)}: register its class there first"
            )
        kind = losses.PENALTIES[term.name]
        for needed in ("metric", "penalty", "remove"):
            if not hasattr(kind, needed):
                raise ValueError(f"the class of the penalty {term.name!r} has no `{needed}`")
        try:
            penalty = kind(model, **term.options)
        except (TypeError, AttributeError, LookupError, RuntimeError) as error:
            raise ValueError(
                f"the penalty {term.name!r} cannot be made of {term.options}: {error}"
            ) from error
        metric = penalty.metric
        if term.added and not (isinstance(metric, str) and re.fullmatch(r"[a-z]\w*", metric)):
            raise ValueError(
                f"the penalty {term.name!r} calls its metric {metric!r}; it has to be a word in "
                "small letters, such as 'shrinkage'"
            )
        if metric in metrics or (term.added and metric in RESERVED_METRICS):
            raise ValueError(
                f"the penalty {term.name!r} calls its metric {metric!r}, which is taken: give its "
                "class a name of its own, or name all layers in one entry"
            )
        metrics.add(metric)
        attached.append((term, penalty))
    return attached


# What else a run's frame has for columns. L_r of φ is measured whether it is penalised or not.
RESERVED_METRICS = {
    *"epoch lambda test_accuracy test_cross_entropy train_accuracy cross_entropy".split(),
    *"activation_l2 validation_accuracy validation_cross_entropy ablation_auc".split(),
    *"profile id baseline regulariser variant num_classes precision diverged".split(),
    *"data_hash labels_hash metric where value".split(),  # the latter of the long frame
    *Run.__dataclass_fields__,
}


def check(run: Run, shape: tuple[int, int, int], n_train: int, n_test: int) -> None:
    """Refuse, with a ValueError, a run that its data or its network cannot serve.

    That is: a batch or a test set larger than there are images, images too small for the network or
    too few for its canonical correlations, a layer it does not have, a penalty that nobody
    registered or that is no differentiable scalar.
    """
    if run.batch_size > n_train:
        raise ValueError(
            f"batch_size is {run.batch_size}, larger than the {n_train} training images"
        )
    if run.test_images is not None and run.test_images > n_test:
        raise ValueError(
            f"test_images is {run.test_images}, but {run.dataset} has {n_test} test images"
        )
    if run.cca:
        _check_points(run, shape, n_train)
    # xxl networks are large: their shapes are enough, but for classes that nobody here has tried
    if not run.penalties:
        with torch.device("meta"):
            attach(run, models.architecture(run.network, *shape, **run.network_options()))
        return
    # as a training does, whatever the caller has switched off
    with torch.inference_mode(False), torch.enable_grad():
        model = models.build(run.network, *shape, **run.network_options())
        attached = attach(run, model)
        channels, side, _ = shape
        source = torch.Generator("cpu").manual_seed(0)
        noise = torch.rand(2, channels, side, side, generator=source, device="cpu")
        model.eval()  # dropout would draw from the global generator
        model(noise)
        for term, penalty in attached:
            _check_value(term, penalty.penalty())


def _check_points(run: Run, shape: tuple[int, int, int], n_train: int) -> None:
    channels, side, _ = shape
    with torch.device("meta"):
        trunk = models.architecture(run.network, *shape, **run.network_options()).trunk.eval()
        _, live, *positions = trunk(torch.empty(1, channels, side, side)).shape
    images = min(n_train, CCA_IMAGES)
    if images * math.prod(positions) <= live:
        raise ValueError(
            f"cca compares {live} channels over {images * math.prod(positions)} points, those of "
            f"{images} training images; it needs more points than channels, several times as many"
        )


def _check_value(term: Term, value: object) -> None:
    if not isinstance(value, Tensor):
        found = f"a {type(value).__name__}"
    elif value.dim():
        found = f"a tensor of shape {tuple(value.shape)}"
    elif not value.requires_grad:
        found = "a tensor without gradients, which would change nothing"
    elif not torch.isfinite(value):
        found = f"{value.item()} for a new network"
    else:
        return
    raise ValueError(
        f".penalty() of {term.name!r} gives {found}; it has to be a differentiable scalar"
    )


def teacher_folder(run: Run) -> Path | None:
    """The folder of the finished run whose predictions are this run's labels, if it has them."""
    folder = run_dir.find(run.dataset, run.relabelled_by)
    if folder is None or not run_dir.is_finished(folder):
        return None
    return folder if "predictions" in run_dir.array_names(folder) else None


def check_teacher(run: Run, teacher: Run) -> None:
    """Refuse a teacher of other images than its student's: a ValueError that names the fields."""
    different = [name for name in DATA_FIELDS if getattr(teacher, name) != getattr(run, name)]
    if different:
        raise ValueError(
            f"{run.name} and {teacher.name}, which relabels it, differ in {', '.join(different)}; "
            "they need the same images"
        )


def is_of(folder: Path, images: str | None) -> bool:
    """Whether a finished run was trained on the images of this hash; None: nothing is compared."""
    return images is None or run_dir.read_environment(folder).get("data", images) == images


def check_images(run: Run, folder: Path, images: str | None) -> None:
    """Refuse, with a ValueError, a teacher (its folder) of other images than there are now."""
    if not is_of(folder, images):
        raise ValueError(
            f"{folder.name}, which relabels {run.name}, was trained on other images than "
            f"{run.dataset} has now: train it again first, or give it in the same list"
        )


def known_hashes(run: Run) -> dict[str, str]:
    """Those of `Bundle.hashes` that may have changed since a run was trained, as they are now.

    `data` of an image folder of one's own. `labels` of a run that another one relabels: a teacher
    that is trained again, on another device or in another precision, may predict other labels than
    it did. Without an entry where the images are absent, or no teacher predicts any labels.
    """
    found = {}
    if (images := data.own_hash(run.dataset)) is not None:
        found["data"] = images
    folder = teacher_folder(run) if run.relabelled_by else None
    if folder is not None:
        found["labels"] = _hash(_predictions(folder))
    return found


def data_key(run: Run) -> tuple:
    """Runs with the same key train on the same images and labels."""
    return _values(run, DATA_FIELDS + LABEL_FIELDS)


def check_key(run: Run) -> tuple:
    """Runs with the same key pass or fail the checks of `prepare` together."""
    return _values(run, DATA_FIELDS + CHECKED_FIELDS)


def _values(run: Run, names: Iterable[str]) -> tuple:
    return tuple(getattr(run, name) for name in names)


def _hash(labels: Tensor) -> str:
    return sha256(labels.numpy().tobytes()).hexdigest()


def _predictions(folder: Path) -> Tensor:
    return torch.from_numpy(run_dir.read_arrays(folder)["predictions"].astype("int64"))


def unlabelled(run: Run) -> str:
    """What is said of a run whose teacher has no predictions."""
    return (
        f"{run.name} is relabelled by the run {run.relabelled_by}, whose predictions are not in "
        "the store (a run that diverged has none)"
    )


def _pseudo_labels(run: Run, images: Images) -> Tensor:
    """The labels [N] that `run.relabelled_by` predicted, checked to be of the same images."""
    folder = teacher_folder(run)
    if folder is None:
        raise LookupError(f"{unlabelled(run)}: train that run with predictions=True first")
    teacher = run_dir.read_run(folder)
    check_teacher(run, teacher)
    check_images(run, folder, images.sha256)
    labels = _predictions(folder)
    if len(labels) != len(images.train):
        raise ValueError(
            f"{teacher.name} predicted {len(labels)} labels for {len(images.train)} training images"
        )
    return labels
