"""What a run trains on: its data, split, corrupted and on its device. Every check of a run against
the data is made here.
"""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import data, losses, models, paths, run_dir
from lib.run import Run, generator


@dataclass(frozen=True)
class Task:
    """A run's data on its device: images float [N, C, H, W], labels int64 [N]."""

    train: data.Split  # labels corrupted, or those that another run predicts
    true_labels: Tensor
    validation: data.Split  # labels corrupted; may be empty
    measure: data.Split  # images that entropy is measured on; may be empty
    test: data.Split
    num_classes: int
    hashes: dict[str, str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels and side of the images and number of classes, as `models.build` takes them."""
        return self.train.images.shape[1], self.train.images.shape[2], self.num_classes


def prepare(run: Run, device: str | torch.device = "cpu") -> Task:
    """The data that a run trains on, split and corrupted.

    Raises:
        ValueError: if the run does not fit the data (fewer images than asked for, a batch larger
            than the data) or names a layer that its network does not have.
        data.DataError: if the data set is not at hand.
        LookupError: if the run that relabels the training images has not been trained, or not with
            its predictions.
    """
    (train, validation, measure, test), classes, digest = _splits(
        data_fields(run), str(device), paths.data_dir()
    )
    check(run, (*train.images.shape[1:3], classes), len(train), len(test))

    def corrupted(split: data.Split, purpose: str) -> Tensor:
        source = generator(run.seed, purpose)
        return data.corrupt_labels(
            split.labels, run.corruption, classes, generator=source, law=run.corruption_law
        )[0]

    def placed(split: data.Split, labels: Tensor) -> data.Split:
        return data.Split(split.images, labels.to(device))

    labels = (
        corrupted(train, "corruption") if run.relabelled_by is None else _predicted(run, len(train))
    )
    return Task(
        train=placed(train, labels),
        true_labels=train.labels.to(device),
        validation=placed(validation, corrupted(validation, "validation corruption")),
        measure=placed(measure, measure.labels),
        test=placed(test, test.labels),
        num_classes=classes,
        hashes={"data": digest, "labels": _hash(labels)},
    )


def penalties(
    run: Run, model: nn.Module
) -> tuple[losses.ActivationL2, losses.SparsityReg, losses.DecorrReg]:
    """The run's penalties, attached to its network; L_r is always measured, the others act on the
    layers the run names.
    """
    return (
        losses.ActivationL2(model, models.features_layer(run.network)),
        losses.SparsityReg(
            model, dict.fromkeys(run.sparsity, run.sparsity_weight), run.sparsity_batch
        ),
        losses.DecorrReg(
            model,
            dict.fromkeys(run.decorrelation, run.decorrelation_weight),
            centre=run.decorrelation_centre,
            pairs=run.decorrelation_pairs,
            reduce=run.decorrelation_reduce,
        ),
    )


def relabeller(run: Run) -> Path | None:
    """The folder of the finished run whose predictions are this run's labels; None where it is not
    there with them.
    """
    folder = run_dir.find(run.dataset, run.relabelled_by)
    ready = (
        folder is not None
        and run_dir.is_finished(folder)
        and "predictions" in run_dir.read_arrays(folder)
    )
    return folder if ready else None


def check_relabeller(run: Run, teacher: Run) -> None:
    """Refuse, with a ValueError that names the fields, a teacher that does not train on the images
    of the run it relabels.
    """
    if other := [name for name in DATA_FIELDS if getattr(teacher, name) != getattr(run, name)]:
        raise ValueError(
            f"{run.name} and {teacher.name}, which relabels it, differ in {', '.join(other)}; they "
            "need the same images"
        )


def taught_labels(run: Run) -> str | None:
    """Hash of the labels that the run's teacher predicts now, as `Task.hashes` has it; None where
    no teacher predicts any.

    A teacher that is trained again, on another device or in another precision, may predict other
    labels than it did.
    """
    folder = relabeller(run) if run.relabelled_by else None
    return _hash(_predictions(folder)) if folder else None


def _hash(labels: Tensor) -> str:
    return sha256(labels.numpy().tobytes()).hexdigest()


def _predictions(folder: Path) -> Tensor:
    return torch.from_numpy(run_dir.read_arrays(folder)["predictions"].astype("int64"))


def _predicted(run: Run, count: int) -> Tensor:
    """The labels [count] that `run.relabelled_by` predicted, checked to be of the same images."""
    if (folder := relabeller(run)) is None:
        raise LookupError(
            f"{run.name} is relabelled by the run {run.relabelled_by}, whose predictions are not "
            "in the store (a run that "
            "diverged has none): train that run with predictions=True first"
        )
    teacher = run_dir.read_run(folder)
    check_relabeller(run, teacher)
    labels = _predictions(folder)
    if len(labels) != count:
        raise ValueError(
            f"{teacher.name} predicted {len(labels)} labels for {count} training images"
        )
    return labels


DATA_FIELDS = (
    "dataset",
    "image_size",
    "classes",
    "normalize",
    "n_train",
    "n_validation",
    "n_measure",
)
LABEL_FIELDS = ("corruption", "corruption_law", "seed", "relabelled_by")
CHECKED_FIELDS = ("batch_size", "test_images", "network", "padding", "sparsity", "decorrelation")


def data_fields(run: Run) -> tuple:
    """Runs with the same fields train, and are tested, on the same images."""
    return tuple(getattr(run, name) for name in DATA_FIELDS)


def data_key(run: Run) -> tuple:
    """Runs with the same key train on the same images and labels."""
    return data_fields(run) + tuple(getattr(run, name) for name in LABEL_FIELDS)


def check_key(run: Run) -> tuple:
    """Runs with the same key pass or fail the checks of `prepare` together."""
    return data_fields(run) + tuple(getattr(run, name) for name in CHECKED_FIELDS)


def check(run: Run, shape: tuple[int, int, int], n_train: int, n_test: int) -> None:
    """Refuse, with a ValueError, a run that its data or its network cannot serve.

    That is: a batch or a test set larger than there are images, images too small for the network, a
        layer it does not have.
    """
    if run.batch_size > n_train:
        raise ValueError(
            f"batch_size is {run.batch_size}, larger than the {n_train} training images"
        )
    if run.test_images is not None and run.test_images > n_test:
        raise ValueError(
            f"test_images is {run.test_images}, but {run.dataset} has {n_test} test images"
        )
    with torch.device("meta"):  # xxl networks are large: their shapes are enough here
        penalties(run, models.architecture(run, *shape))


@lru_cache(maxsize=1)
def _splits(fields: tuple, device: str, root: Path) -> tuple[list[data.Split], int, str]:
    """Training, validation, measuring and test images of `data_fields`, on the device once for all
    runs that share them.

    Returns:
        the four splits, images in channels_last on the device and true labels on the CPU; number of
        classes; the data's hash.
    """
    values = dict(zip(DATA_FIELDS, fields, strict=True))
    names = {"size": values["image_size"], "classes": values["classes"]}
    options = {name: value for name, value in names.items() if value is not None}
    raw = data.read(values["dataset"], root=root, normalize=values["normalize"], **options)
    height, width = raw.scale(raw.train.images[:1]).shape[2:]
    if height != width:
        raise ValueError(
            f"{values['dataset']} has images of {height}×{width} pixels; the networks take square "
            "ones"
        )
    # archives are sorted by class: in this order the first so many test images hold every class in
    # proportion
    test = raw.test.take(data.stratified_permutation(raw.test.labels))
    parts = [
        *data.subset(raw.train, values["n_train"], values["n_validation"], values["n_measure"]),
        test,
    ]

    def placed(pixels: Tensor) -> Tensor:
        return raw.scale(pixels.to(device)).contiguous(memory_format=torch.channels_last)

    return (
        [data.Split(placed(part.images), part.labels) for part in parts],
        raw.num_classes,
        raw.sha256,
    )
