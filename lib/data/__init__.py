"""Data sets by name, as tensors: `load`; what a run does to them: `subset`, `corrupt_labels`.

Built in are the sets of both papers, and digits, which comes inside scikit-learn. Every other name
is looked for in `DATA_DIR` as an image folder or zip archive of the reader's own. Loading never
downloads and never writes next to the data; `python -m lib.data NAME` (`make data DATASET=NAME`)
downloads. Decoded sets are kept in `CACHE_DIR`, by the hash of the files they came from. Nothing
here touches a global random state.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import sys
import tarfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib import paths
from lib.data import readers
from lib.data.sources import FILES, DataError, fetch

_CACHE_FORMAT = 2  # count up when decoding changes, so that older caches are not read


@dataclass(frozen=True, eq=False)
class Split:
    """Images, float32 [N, C, H, W], and their labels, int64 [N], on one device.

    Images are uint8 where they are not scaled yet.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"images have shape {tuple(self.images.shape)} and labels "
                f"{tuple(self.labels.shape)}; [N, C, H, W] and [N] are needed"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: torch.Tensor) -> "Split":
        """The images at `indices`, int64 [n], in that order."""
        indices = indices.to(self.labels.device)
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class DataSet:
    """A training and a test split.

    `sha256` is the hash of the decoded images (uint8, before scaling), labels and class names: the
    same from a zip archive, a folder, or another mirror's repackaging.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    sha256: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class _Decoded(NamedTuple):
    """What is cached: images uint8 [N, C, H, W], labels int64 [N], names, a hash of all of them."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: np.ndarray
    sha256: np.ndarray


@dataclass(frozen=True, eq=False)
class RawDataSet(DataSet):
    """A data set as it is decoded, images uint8 [N, C, H, W], and how its pixels become floats.

    A quarter of the memory of what `load` gives: whoever needs a part of the images takes it here
    and scales that part.
    """

    files: tuple[Path, ...]  # what it was read from
    # images uint8 [n, C, H, W] → float32 [n, C, S, S], on the same device
    scale: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Source:
    """How one data set is found and read."""

    # root → the files or folders that it is read from, [] if it needs none
    find: Callable[[Path], list[Path]]
    decode: Callable[..., readers.Arrays]  # those files → arrays
    advice: str  # how to get it
    mean: float = 0.5
    std: float = 0.5
    white: float = 255.0  # the pixel value that becomes 1
    # name → default, what is allowed
    options: dict[str, tuple[int, range]] = field(default_factory=dict)


def load(
    name: str,
    *,
    root: str | os.PathLike | None = None,
    device: torch.device | str = "cpu",
    normalize: str = "al2",
    **options: int,
) -> DataSet:
    """A data set by name, decoded, scaled, on `device`.

    Args:
        name: a built-in name (`NAMES`), or that of an image folder of yours, `<root>/<name>.zip` or
            `<root>/<name>/`, in it `train/<class>/*` and `test/<class>/*` (or `val`), all images of
            one size; greyscale ones become RGB.
        root: folder of the data sets, by default `$DATA_DIR` or the project's `data/`.
        normalize: `al2`, the AL2 paper's: (x - mean) / std with 0.1307, 0.3081 for mnist and 0.5,
            0.5 elsewhere; `unit`: [0, 1], the targeted-sparsity paper's (design choice: the paper
            does not say).
        options: `size` of digits (8×8 images, enlarged bilinearly, default 20); `classes` of
            tiny_imagenet (the first n of `wnids.txt`, default 200).

    Raises:
        ValueError: unknown name, scale or option; lists those there are.
        DataNotFoundError: the files are not there. DataError: they are truncated, altered or not as
            expected.
    """
    raw = read(name, root=root, normalize=normalize, **options)
    train, test = (
        Split(raw.scale(part.images.to(device)), part.labels.to(device))
        for part in (raw.train, raw.test)
    )
    return DataSet(name, train, test, raw.class_names, raw.sha256)


def read(
    name: str, *, root: str | os.PathLike | None = None, normalize: str = "al2", **options: int
) -> RawDataSet:
    """A data set by name, decoded but not scaled, on the CPU. Arguments and errors as `load`."""
    if normalize not in ("al2", "unit"):
        raise ValueError(
            f"normalize={normalize!r} is unknown; allowed are 'al2' (mean, std) and 'unit' ([0, 1])"
        )
    root = _folder(root)
    source = source_of(name, root)
    options = _checked_options(name, source, options)
    size = options.pop("size", None)  # of digits, which are enlarged after decoding
    try:
        files = source.find(root)
        decode = partial(source.decode, files, **options)
        decoded = _cached(name, files, options, decode) if files else _with_hash(decode())
    except DataError as error:
        advice = source.advice.format(root=root, name=name, names=", ".join(NAMES))
        raise type(error)(f"{name}: {error}\n{advice}") from error.__cause__

    around = (source.mean, source.std) if normalize == "al2" else None
    scale = partial(_scaled, white=source.white, size=size, around=around)
    arrays = list(map(torch.from_numpy, decoded[:4]))
    train, test = Split(*arrays[:2]), Split(*arrays[2:])
    class_names = tuple(map(str, decoded.class_names))
    return RawDataSet(name, train, test, class_names, str(decoded.sha256), tuple(files), scale)


def _folder(root: str | os.PathLike | None) -> Path:
    return paths.data_dir() if root is None else Path(root).expanduser()


def _scaled(
    pixels: torch.Tensor, white: float, size: int | None, around: tuple[float, float] | None
) -> torch.Tensor:
    """`RawDataSet.scale`; at the top of the module, so that another process can be sent it."""
    images = pixels.to(torch.float32).div_(white)
    if size is not None:
        images = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear")
    if around is not None:
        mean, std = around
        images.sub_(mean).div_(std)
    return images


def own_hash(name: str, *, root: str | os.PathLike | None = None) -> str | None:
    """`RawDataSet.sha256` of an image folder of yours as it is now, read anew if it has changed.

    None for a built-in set, whose files are checked whenever they are read, and where the images
    are absent or damaged. Names, sizes and times of the files say whether it has changed.
    """
    if name in _BUILT_IN:
        return None
    root = _folder(root)
    try:
        (path,) = source_of(name, root).find(root)
        inside = [path / f for f in readers.Archive(path).names] if path.is_dir() else [path]
        stats = [(str(f), s.st_size, s.st_mtime_ns) for f in inside for s in [f.stat()]]
    except (ValueError, DataError, OSError):
        return None
    seen = hashlib.sha256(repr((_CACHE_FORMAT, stats)).encode()).hexdigest()
    kept = paths.cache_dir() / f"{name}-seen.json"
    with contextlib.suppress(OSError, ValueError):
        said = json.loads(kept.read_text(encoding="utf-8"))
        if said["files"] == seen:
            return str(said["sha256"])
    try:
        found = read(name, root=root).sha256
    except DataError:
        return None
    with contextlib.suppress(OSError), paths.replacing(kept) as part:
        part.write_text(json.dumps({"files": seen, "sha256": found}), encoding="utf-8")
    return found


# ---- what a run does to a data set


def stratified_permutation(labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A fixed random order of the images, int64 [N].

    Every prefix holds each class in proportion, to within about one image. It depends on the labels
    and `seed` alone, never on a run's seed: subsets are the same for all runs.
    """
    _check_labels(labels)
    labels = labels.cpu()
    cpu = torch.Generator("cpu").manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=cpu, device="cpu")
    by_class = torch.argsort(labels[shuffled], stable=True)
    counts = torch.bincount(labels)
    grouped = labels[shuffled][by_class]
    # 0, 1, … within each class
    rank = torch.arange(len(labels), device="cpu") - (counts.cumsum(0) - counts)[grouped]
    when = torch.empty(len(labels), dtype=torch.float64, device="cpu")
    # spreads each class evenly over (0, 1); ties fall at random
    when[by_class] = (rank.double() + 0.5) / counts[grouped]
    return shuffled[torch.argsort(when, stable=True)]


def _check_labels(labels: torch.Tensor) -> None:
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 [N], not {labels.dtype} {list(labels.shape)}")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"labels must be 0 or more, found {labels.min()}")


def subset(
    split: Split, n_train: int | None = None, n_validation: int = 0, n_measure: int = 0
) -> tuple[Split, Split, Split]:
    """Disjoint, class-balanced training, validation and measuring sets, the same for every seed.

    Training images are the first `n_train` of `stratified_permutation` (None: all that the others
    leave); the measuring set is its end and the validation set what lies before that, so neither
    depends on `n_train`. Use it before `corrupt_labels` (protocol, section 3).

    Raises:
        ValueError: a negative number, no training image, or more images asked for than there are.
    """
    total = len(split)
    held_out = n_validation + n_measure
    if n_train is None:
        n_train = total - held_out
    if n_validation < 0 or n_measure < 0 or n_train < 1 or n_train + held_out > total:
        raise ValueError(
            f"cannot take n_train={n_train}, n_validation={n_validation}, n_measure={n_measure} "
            f"from {total} images: n_train must be at least 1, the others at least 0, and their "
            "sum at most the number of images"
        )
    order = stratified_permutation(split.labels)
    validation_at, measure_at = total - held_out, total - n_measure
    return (
        split.take(order[:n_train]),
        split.take(order[validation_at:measure_at]),
        split.take(order[measure_at:]),
    )


def corrupt_labels(
    labels: torch.Tensor,
    fraction: float,
    num_classes: int,
    *,
    generator: torch.Generator,
    law: str = "bernoulli",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace labels by wrong ones, uniform over the other classes: AL2, section 4; protocol, 1.

    Args:
        labels: int64 [N]; not modified.
        fraction: share of the labels that become wrong, in [0, 1].
        generator: on the CPU. What is drawn does not depend on `fraction`: a label wrong at 25 % is
            as wrong at 50 %.
        law: `bernoulli`, each label with probability `fraction` (the authors' code), or `exact`,
            round(fraction · N) labels (the paper's text).

    Returns:
        new labels, int64 [N], and the mask of the changed ones, bool [N], on their device.

    Raises:
        ValueError: an argument, a label or the generator's device is not allowed.
    """
    fraction = _checked_fraction(fraction, num_classes)
    if law not in ("bernoulli", "exact"):
        raise ValueError(f"law={law!r} is unknown; allowed are 'bernoulli' and 'exact'")
    _check_labels(labels)
    if len(labels) and labels.max() >= num_classes:
        raise ValueError(f"labels must lie in 0 … {num_classes - 1}, found {labels.max()}")
    if generator.device.type != "cpu":
        raise ValueError(
            f"generator is on {generator.device}; it must be on the CPU, so that devices agree"
        )
    # [0, 1)
    chance = torch.rand(len(labels), generator=generator, dtype=torch.float64, device="cpu")
    # 1 … K-1: never the label itself
    offset = torch.randint(1, num_classes, (len(labels),), generator=generator, device="cpu")
    if law == "bernoulli":
        changed = chance < fraction
    else:
        changed = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
        changed[chance.argsort(stable=True)[: round(fraction * len(labels))]] = True
    changed, offset = changed.to(labels.device), offset.to(labels.device)
    return torch.where(changed, (labels + offset) % num_classes, labels), changed


def noise_floor(fraction: float, num_classes: int) -> float:
    """The best cross-entropy, in nats, on labels of which `fraction` are wrong, without memorising.

    It is the entropy H(p) = -(1-p) ln(1-p) - p ln(p / (K-1)): 2.2103, 1.7918, 1.1116 at 75, 50,
    25 % of 10 classes.
    """
    p = _checked_fraction(fraction, num_classes)
    right = -(1 - p) * math.log(1 - p) if p < 1 else 0.0
    wrong = -p * math.log(p / (num_classes - 1)) if p > 0 else 0.0
    return right + wrong


def _checked_fraction(fraction: float, num_classes: int) -> float:
    if not 0 <= fraction <= 1:  # NaN fails, too
        raise ValueError(f"fraction={fraction} must lie in [0, 1] (0.75 for 75 %)")
    if num_classes < 2:
        raise ValueError(
            f"num_classes={num_classes} must be at least 2: a wrong label needs another class"
        )
    return float(fraction)


# ---- names and options


def source_of(name: str, root: Path) -> _Source:
    """How that data set is found and read; ValueError: neither built in nor a folder in `root`."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    # no path, nothing hidden
    is_plain = isinstance(name, str) and re.fullmatch(r"[^./\\][^/\\]*", name)
    if is_plain and readers.folders_of(name, root):
        return _Source(partial(readers.find_folder, name), readers.read_folder, _FOLDER_ADVICE)
    files = root.iterdir() if is_plain and root.is_dir() else ()
    near = sorted(file.name for file in files if file.name.startswith(f"{name}."))
    packed = f"; {', '.join(near)} is there, but an archive has to be a zip file" if near else ""
    raise ValueError(
        f"unknown data set {name!r}. Built in: {', '.join(NAMES)}. A data set of your own is "
        f"looked for as {root}/<name>.zip or {root}/<name>/, in it train/<class>/* and "
        f"test/<class>/* (or val){packed}"
    )


def _checked_options(name: str, source: _Source, given: dict[str, int]) -> dict[str, int]:
    allowed = ", ".join(source.options) or "none"
    for option, value in given.items():
        if option not in source.options:
            raise ValueError(f"{name} knows no option {option!r}; its options: {allowed}")
        values = source.options[option][1]
        if not isinstance(value, int) or value not in values:
            raise ValueError(
                f"{option}={value!r} must be a whole number from {values[0]} to {values[-1]}"
            )
    return {option: default for option, (default, _) in source.options.items()} | given


# ---- cache


def _cached(
    name: str, files: list[Path], options: dict[str, int], decode: Callable[[], readers.Arrays]
) -> _Decoded:
    """`decode()`, or what it gave before for the same bytes; processes that race write the same."""
    said = (_CACHE_FORMAT, sorted(options.items()), readers.files_sha256(files))
    key = hashlib.sha256(repr(said).encode()).hexdigest()
    path = paths.cache_dir() / f"{name}-{key[:24]}.npz"
    # npz files hold checksums; damaged ones fail in many ways, and are as good as none
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as stored:
        return _Decoded(*(stored[array] for array in _Decoded._fields))
    decoded = _with_hash(decode())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with paths.replacing(path) as part, open(part, "wb") as file:
            np.savez(file, **decoded._asdict())
    except OSError as error:
        _warn_once(
            f"decoded data sets cannot be kept in {path.parent} ({error}); set CACHE_DIR to save "
            "time"
        )
    return decoded


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _with_hash(arrays: readers.Arrays) -> _Decoded:
    *parts, names = arrays
    dtypes = (np.uint8, np.int64, np.uint8, np.int64)
    parts = [np.ascontiguousarray(part, dtype) for part, dtype in zip(parts, dtypes, strict=True)]
    names = list(map(str, names))
    total = hashlib.sha256(repr((names, [part.shape for part in parts])).encode())
    for part in parts:
        total.update(part)
    return _Decoded(*parts, np.array(names), np.array(total.hexdigest()))


# ---- the built-in sets


def _decode_digits(_: list[Path]) -> readers.Arrays:
    """1,797 images 8×8 with values 0 … 16, split 80/20 by class."""
    from sklearn.datasets import load_digits  # inside the package: nothing to download

    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    order = stratified_permutation(torch.from_numpy(labels)).numpy()
    train, test = map(np.sort, np.split(order, [round(0.8 * len(order))]))
    return images[train], labels[train], images[test], labels[test], digits.target_names


_ADVICE = (
    "To get it: `make data DATASET={name}`; or place the files by hand below {root}; "
    "or set DATA_DIR to their folder."
)
_FOLDER_ADVICE = (
    "An image folder {root}/{name}.zip or {root}/{name}/ holds, below one top folder at most, "
    "train/<class>/* and test/<class>/* (or val), 8-bit images of one size. Built in: {names}."
)
_CLASSES = {"classes": (200, range(2, 201))}


def _published(find: Callable, decode: Callable, stored: str | readers.Cifar, **more) -> _Source:
    return _Source(partial(find, stored), partial(decode, stored), _ADVICE, **more)


_BUILT_IN = {
    "digits": _Source(
        lambda _: [], _decode_digits, "", white=16.0, options={"size": (20, range(8, 257))}
    ),
    "mnist": _published(readers.find_idx, readers.read_idx, "MNIST", mean=0.1307, std=0.3081),
    "fashion_mnist": _published(readers.find_idx, readers.read_idx, "FashionMNIST"),
    "cifar10": _published(readers.find_cifar, readers.read_cifar, readers.CIFAR10),
    "cifar100": _published(readers.find_cifar, readers.read_cifar, readers.CIFAR100),
    "tiny_imagenet": _Source(
        readers.find_tiny_imagenet, readers.read_tiny_imagenet, _ADVICE, options=_CLASSES
    ),
}
NAMES = tuple(_BUILT_IN)


def download(name: str, *, root: str | os.PathLike | None = None) -> None:
    """Bring a data set to `root` (`$DATA_DIR`), unless it is there, and read it; says what it does.

    Raises:
        DataError: no mirror answered, no public address is known, or what came cannot be read.
        ValueError: unknown name.
    """
    root = _folder(root)
    if name == "digits":
        print("digits: nothing to download, they come inside scikit-learn")
    try:
        data = read(name, root=root)
    except DataError as error:
        if name not in FILES:
            raise
        print(str(error).splitlines()[0])
        for remote in FILES[name]:
            path = fetch(remote.urls, root / remote.target, remote.md5)
            if path.name.endswith(".tar.gz"):
                with tarfile.open(path) as archive:
                    archive.extractall(root, filter="data")
        data = read(name, root=root)
    if data.files:
        print(f"{name}: read from {_shown(data.files)}")
    shape = list(data.scale(data.train.images[:1]).shape[1:])
    print(
        f"{name}: {len(data.train):,} training and {len(data.test):,} test images of "
        f"{data.num_classes} classes, {shape}, sha256 {data.sha256[:16]}…"
    )


def _shown(files: Sequence[Path]) -> str:
    """The file or folder that a data set was read from, and a second source that was not read."""
    where = files[0] if len(files) == 1 else files[0].parent
    official = {cifar.folder: cifar.archive for cifar in (readers.CIFAR10, readers.CIFAR100)}
    other = official.get(where.name)
    if other is None or not (where.parent / other).is_file():
        return str(where)
    return f"{where} ({other} is there, too: the official files go first)"


def main(arguments: list[str] | None = None) -> None:
    """`python -m lib.data NAME [--root DIR]`."""
    about = "Download a data set and check it."
    parser = argparse.ArgumentParser(prog="python -m lib.data", description=about)
    names = f"one of {', '.join(NAMES)}, or an image folder of yours to check"
    parser.add_argument("name", metavar="NAME", help=names)
    where = "where the data sets lie (default: $DATA_DIR, or data/)"
    parser.add_argument("--root", metavar="DIR", help=where)
    given = parser.parse_args(arguments)
    try:
        download(given.name, root=given.root)
    except (DataError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
