"""Images from files, as uint8 arrays: idx files, CIFAR, folders and archives of images.

A `find_…` says which files a data set is read from, the `read_…` of the same name decodes them.
Scaling, caching, splits and names are `lib.data`'s.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.data.sources import IDX_MD5, DataError, DataNotFoundError

#: Training images uint8 [N, C, H, W], their labels [N], the same for testing, and the class names.
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]

_IDX_CLASSES = {
    "MNIST": [str(digit) for digit in range(10)],
    "FashionMNIST": [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ],
}


def find_idx(folder: str, root: Path) -> list[Path]:
    """The four files of MNIST or FashionMNIST, zipped or not, in torchvision's layout."""
    found = []
    for name in IDX_MD5[folder]:
        zipped = root / folder / "raw" / f"{name}.gz"
        plain = zipped.with_suffix("")
        if not zipped.is_file() and not plain.is_file():
            raise DataNotFoundError(f"{zipped} is missing (unzipped, without .gz, it may be, too)")
        found.append(zipped if zipped.is_file() else plain)
    return found


def read_idx(folder: str, files: list[Path]) -> Arrays:
    """MNIST or FashionMNIST; DataError unless the unzipped files are the published ones."""
    content = []
    for path, md5 in zip(files, IDX_MD5[folder].values(), strict=True):
        data = path.read_bytes()
        try:
            data = gzip.decompress(data) if path.suffix == ".gz" else data
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path} is truncated or no gzip file ({error})") from error
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != md5:
            raise DataError(
                f"{path} is truncated or altered: the md5 of its unzipped content is {found}, not "
                f"{md5}"
            )
        content.append(np.frombuffer(data, np.uint8))
    train, train_labels, test, test_labels = content  # after headers of 16 and 8 bytes
    images = (part[16:].reshape(-1, 1, 28, 28).copy() for part in (train, test))
    return next(images), train_labels[8:], next(images), test_labels[8:], _IDX_CLASSES[folder]


@dataclass(frozen=True)
class Cifar:
    """How one of the CIFAR sets is stored, by torchvision and as a lossless archive, and checked.

    The archive holds `<top>/<part>/<nnn>.webp`, each 100 images one below the other,
    `<top>/<part>.json` with the labels, and the pickled class names as they are published.
    """

    folder: str  # torchvision's, below the folder of the data sets
    torchvision: str  # its class
    archive: str
    archive_sha256: str
    train_parts: tuple[str, ...]  # of both forms: pickled files, and folders of the archive
    test_parts: tuple[str, ...]
    meta: str
    labels: str  # the labels' key
    class_names: str  # theirs in `meta`
    # of all training and test images in their order here, uint8 [N, 32, 32, 3]
    pixels_sha256: tuple[str, str]
    sort_within_classes: bool = False  # see `canonical_order`

    @property
    def top(self) -> str:
        """The one folder that the archive holds."""
        return self.archive.removesuffix("-lossless-webp.zip")


CIFAR10 = Cifar(
    folder="cifar-10-batches-py",
    torchvision="CIFAR10",
    archive="cifar-10-lossless-webp.zip",
    archive_sha256="de1032acc169d6f005a7c68c8d32f0f922fa462ecb5163f61888b4a0caf3f7a5",
    train_parts=tuple(f"data_batch_{k}" for k in range(1, 6)),
    test_parts=("test_batch",),
    meta="batches.meta",
    labels="labels",
    class_names="label_names",
    pixels_sha256=(
        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    ),
)
CIFAR100 = Cifar(
    folder="cifar-100-python",
    torchvision="CIFAR100",
    archive="cifar-100-lossless-webp.zip",
    archive_sha256="edb7f5b561737a7bbd92c2ca9774bb23db56d1de45297e3da4b74776ceb94b59",
    train_parts=("train",),
    test_parts=("test",),
    meta="meta",
    labels="fine_labels",
    class_names="fine_label_names",
    pixels_sha256=(
        "20e25ce5e24e13b36733f28d3bcb6d6ea8d508e6626f82fa3238da003ad2aefb",
        "c0ed2ea4e131f2c5b9dadd4781a689900f11fc0507c14f8facba237c2598a8d8",
    ),
    sort_within_classes=True,
)


def find_cifar(cifar: Cifar, root: Path) -> list[Path]:
    """The files of torchvision's folder where it is there, else the lossless archive.

    DataNotFoundError if neither is there, or only a part of the folder.
    """
    folder, archive = root / cifar.folder, root / cifar.archive
    wanted = [folder / name for name in (*cifar.train_parts, *cifar.test_parts, cifar.meta)]
    absent = [file.name for file in wanted if not file.is_file()]
    if not absent:
        return wanted
    if len(absent) < len(wanted):
        raise DataNotFoundError(
            f"{folder} lacks {', '.join(absent)}: complete it, or remove it to read {archive.name} "
            "instead"
        )
    if not archive.is_file():
        raise DataNotFoundError(f"neither {folder}/ nor {archive} is there")
    return [archive]


def read_cifar(cifar: Cifar, files: list[Path]) -> Arrays:
    """CIFAR-10 or CIFAR-100 from either source: the same images in the same order, checked by hash.

    DataError unless they are the published ones in their order.
    """
    if len(files) == 1:
        read, source = _read_cifar_archive, files[0]
    else:
        read, source = _read_cifar_pickles, files[0].parent
    splits, class_names = read(cifar, source)
    arrays = []
    for (images, labels), published in zip(splits, cifar.pixels_sha256, strict=True):
        if cifar.sort_within_classes:
            images = images[canonical_order(images, labels)]
        if (found := hashlib.sha256(np.ascontiguousarray(images)).hexdigest()) != published:
            raise DataError(
                f"{source} holds other images than the published ones, or holds them in another "
                f"order: their SHA-256 is {found}, not {published}"
            )
        arrays += [images.transpose(0, 3, 1, 2), labels]  # [N, H, W, C] → [N, C, H, W]
    return (*arrays, class_names)


def canonical_order(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The order of CIFAR-100 in this study, whichever file it comes from (protocol, 3): int64 [N].

    The sequence of labels stays; the k-th place of a class gets that class's k-th image by the
    SHA-256 of its bytes. The lossless archive has lost the official order within a class, and a run
    has to mean the same images everywhere. Images are uint8 [N, H, W, C], labels int64 [N].
    """
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    order = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        order[places] = sorted(places, key=digests.__getitem__)
    return order


def _read_cifar_pickles(cifar: Cifar, folder: Path) -> tuple[list[tuple], list[str]]:
    """Images [N, H, W, C] and labels of both splits, and class names; torchvision checks hashes."""
    from lib.data.vision import torchvision  # takes seconds: only where it is needed

    kind = getattr(torchvision.datasets, cifar.torchvision)
    try:
        train, test = (kind(folder.parent, train=part, download=False) for part in (True, False))
    except (RuntimeError, OSError) as error:  # torchvision compares md5 sums before it unpickles
        raise DataError(
            f"a file in {folder} is missing, truncated or altered (its md5 is not the published)"
        ) from error
    return [(part.data, np.array(part.targets)) for part in (train, test)], train.classes


def _read_cifar_archive(cifar: Cifar, path: Path) -> tuple[list[tuple], list[str]]:
    """The same from the lossless archive, whose own hash is compared before anything is read."""
    from PIL import Image  # here, as below: the raw files are read without it

    if (found := file_sha256(path).hex()) != cifar.archive_sha256:
        raise DataError(
            f"{path} is truncated or altered: its SHA-256 is {found}, not {cifar.archive_sha256}"
        )
    archive = Archive(path)
    splits = []
    for parts in (cifar.train_parts, cifar.test_parts):
        images, labels = [], []
        for part in parts:
            labels += json.loads(archive.read(f"{cifar.top}/{part}.json"))[cifar.labels]
            for name in archive.names:
                if name.startswith(f"{cifar.top}/{part}/"):
                    with Image.open(io.BytesIO(archive.read(name))) as strip:
                        images.append(np.asarray(strip.convert("RGB")).reshape(-1, 32, 32, 3))
        splits.append((np.concatenate(images), np.array(labels)))
    # the archive is the published one
    meta = pickle.loads(archive.read(f"{cifar.top}/{cifar.meta}"), encoding="latin1")
    return splits, meta[cifar.class_names]


# what people call the two splits
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
# files that lie beside images and are none; whatever else lies there has to be one
_NO_IMAGES = {".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf"}
_NO_IMAGES |= {".db", ".ini", ".mat", ".npy", ".npz", ".pkl", ".py"}


class Archive:
    """A zip archive or a folder, read alike; `names` are relative, sorted, none of them hidden."""

    def __init__(self, path: Path):
        self.path = path
        self._zip = None
        if path.is_dir():
            names = set()

            def refuse(error: OSError) -> None:
                raise DataError(
                    f"{error.filename} cannot be listed ({error.strerror}); make it readable"
                ) from error

            # what cannot be listed would be left out in silence, a class and its images
            for at, folders, found in os.walk(path, onerror=refuse, followlinks=True):
                here = Path(at)
                above = {parent.resolve() for parent in (here, *here.parents)}
                # a link to a folder above would lead round and round
                folders[:] = [name for name in folders if (here / name).resolve() not in above]
                names |= {(here / file).relative_to(path).as_posix() for file in found}
        else:
            try:
                self._zip = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise DataError(f"{path} is truncated or no zip archive ({error})") from error
            # some programs write the other slash, or where one is
            inside = [(n.replace("\\", "/").removeprefix("./"), n) for n in self._zip.namelist()]
            inside = [(name, given) for name, given in inside if not name.endswith("/")]
            self._inside = dict(inside)
            names = set(self._inside)
            if len(names) < len(inside):
                counted = Counter(name for name, _ in inside)
                raise DataError(f"{path} holds {counted.most_common(1)[0][0]} more than once")
        self.names = sorted(
            n for n in names if not any(p.startswith((".", "__MACOSX")) for p in n.split("/"))
        )

    def read(self, name: str) -> bytes:
        try:
            if self._zip:
                return self._zip.read(self._inside[name])
            return (self.path / name).read_bytes()
        except RuntimeError as error:  # NotImplementedError is one, too
            raise DataError(
                f"{self.path}: {name} is encrypted or packed in a way that cannot be read "
                f"({error}); pack the archive anew, without a password"
            ) from error
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.path}: {name} is truncated or altered ({error})") from error


def files_sha256(files: Iterable[Path]) -> str:
    """Hash of the bytes of files and of whole folders (with the names in them)."""
    total = hashlib.sha256()
    for path in files:
        if path.is_dir():
            archive = Archive(path)
            for name in archive.names:
                total.update(name.encode("utf-8", "surrogateescape"))
                total.update(hashlib.sha256(archive.read(name)).digest())
        else:
            total.update(file_sha256(path))
    return total.hexdigest()


def file_sha256(path: Path) -> bytes:
    """SHA-256 of one file's bytes, as 32 bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _natural(name: str) -> tuple:
    """Sorts `img2` before `img10`, the same on every machine."""
    parts = re.split("([0-9]+)", name)  # text and number by turns
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], name


def folders_of(name: str, root: Path) -> list[Path]:
    """The archives `<name>.zip` and the folder `<name>/`, those that are there."""
    inside = root.iterdir() if root.is_dir() else ()
    found = [f for f in inside if f.stem == name and f.suffix.lower() == ".zip" and f.is_file()]
    return found + [f for f in [root / name] if f.is_dir()]


def find_folder(name: str, root: Path) -> list[Path]:
    """The archive `<name>.zip` or the folder `<name>/`; DataError if both are there."""
    found = folders_of(name, root)
    if len(found) > 1:
        raise DataError(f"{' and '.join(map(str, found))} are there: keep one of them")
    return found


def read_folder(files: list[Path]) -> Arrays:
    """An image folder or archive: train/<class>/*, test/<class>/* (or val).

    These lie below one top folder at most. Whatever lies in a class's folder has to be an image,
    but for files such as .txt, which are passed over and counted in a warning.

    Classes are sorted by name, images by class and natural order of their names, whatever the order
    in the archive. Raises DataError, also for images of different sizes.
    """
    archive = Archive(files[0])
    top = _top_folder(archive)
    found: dict[str, list[tuple[str, str]]] = {"train": [], "test": [], "val": []}
    passed_over = []
    for name in archive.names:
        split, *inside = name.removeprefix(top).split("/")
        kind = _SPLITS.get(split.lower())
        outside = not name.startswith(top) or kind is None or len(inside) < 2
        if outside or Path(name).suffix.lower() in _NO_IMAGES:
            passed_over.append(name)
        else:
            # one letter may be written in two ways, by two systems
            found[kind].append((unicodedata.normalize("NFC", inside[0]), name))
    test = "test" if found["test"] else "val"
    passed_over += [name for kind in {"val", "test"} - {test} for _, name in found[kind]]
    for kind in ("train", test):
        if not found[kind]:
            raise DataError(f"{archive.path}: {top}{kind}/ holds no image in folders by class")
    classes = sorted({label for label, _ in found["train"]})
    if strange := sorted({label for label, _ in found[test]} - set(classes)):
        raise DataError(
            f"{archive.path} has test classes without training images: {', '.join(strange[:5])}"
        )
    if passed_over:
        shown = ", ".join(sorted(passed_over)[:3]) + (" …" if len(passed_over) > 3 else "")
        warnings.warn(
            f"{archive.path}: {len(passed_over)} files were passed over ({shown})",
            RuntimeWarning,
            stacklevel=2,
        )
    number = {label: index for index, label in enumerate(classes)}
    rows = [
        [(number[label], archive, name) for label, name in found[kind]] for kind in ("train", test)
    ]
    return _decode_images(*rows, classes)


def _top_folder(archive: Archive) -> str:
    """Where train/ and test/ lie, "" or "name/"; a DataError says what there is instead."""
    tops = {name.split("/")[0] for name in archive.names if "/" in name}
    for top in ("", *(f"{name}/" for name in tops if len(tops) == 1)):
        inside = [name.removeprefix(top) for name in archive.names if name.startswith(top)]
        folders = {name.split("/")[0] for name in inside if "/" in name}
        kinds = {_SPLITS.get(folder.lower()) for folder in folders}
        if "train" in kinds and kinds & {"test", "val"}:
            return top
    there = sorted(f"{name}/" for name in tops)[:5] or ["no folder"]
    packed = [name for name in archive.names if name.lower().endswith((".zip", ".tar", ".gz"))]
    if packed:
        there.append(f"the archive {packed[0]}, which has to be unpacked")
    raise DataError(
        f"{archive.path} has to hold train/<class>/ and test/<class>/ (or val), below one top "
        f"folder at most; it holds {', '.join(there)}"
    )


def _as_seen(image) -> np.ndarray:
    """What a viewer shows, uint8 [H, W, 3]: turned as it says, on white where it is transparent."""
    from PIL import Image, ImageOps

    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode}; 8 bits a channel are expected")
    # a camera's MPO has previews behind its picture
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ValueError(f"it holds {image.n_frames} pictures; one a file is expected")
    image = ImageOps.exif_transpose(image)
    if "A" in image.mode.upper().removeprefix("LAB") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _decode_images(train: list[tuple], test: list[tuple], classes: list[str]) -> Arrays:
    """Decode (label, archive, name) rows, by label and natural order of the names."""
    from PIL import Image
    from tqdm import tqdm

    train, test = (
        sorted(part, key=lambda row: (row[0], _natural(row[2]))) for part in (train, test)
    )
    rows = train + test
    images = None
    for at, (_, archive, name) in enumerate(tqdm(rows, "decoding", unit=" images", disable=None)):
        try:
            with Image.open(io.BytesIO(archive.read(name))) as image:
                pixels = _as_seen(image)  # [H, W, 3]
        except DataError:
            raise
        except Exception as error:  # decoders fail in many ways
            raise DataError(
                f"{archive.path}: {name} cannot be read as an image ({error})"
            ) from error
        if images is None:
            size = pixels.shape
            images = np.empty((len(rows), 3, *size[:2]), np.uint8)
        if pixels.shape != size:
            raise DataError(
                f"{archive.path}: {name} is {pixels.shape[1]}×{pixels.shape[0]} pixels, but "
                f"{rows[0][2]} is {size[1]}×{size[0]}; all images must share one size"
            )
        images[at] = pixels.transpose(2, 0, 1)
    labels = np.array([label for label, *_ in rows])
    cut = len(train)
    return images[:cut], labels[:cut], images[cut:], labels[cut:], classes


#: Validation images that stand byte for byte in the training split, too.
_TINY_LEAKED = {f"val_{number}" for number in (1801, 2157, 5035, 5819, 7310, 8670, 9920)}
_JPEG = r"[^/]+\.(?i:jpe?g)"


def find_tiny_imagenet(root: Path) -> list[Path]:
    """Every archive `tiny-imagenet-200*.zip`, else the unpacked folder."""
    folder = root / "tiny-imagenet-200"
    found = sorted(root.glob(f"{folder.name}*.zip")) or [f for f in [folder] if f.is_dir()]
    if not found:
        raise DataNotFoundError(
            f"neither an archive {folder.name}*.zip nor a folder {folder.name}/ is in {root}"
        )
    return found


def read_tiny_imagenet(files: list[Path], classes: int) -> Arrays:
    """The first `classes` of `wnids.txt`; the validation split is the test split.

    `files` are archives in the official layout, whole or in parts, or the unpacked folder:
    wnids.txt, train/<wnid>/images/*, val/images/*, val/val_annotations.txt; or, as many sort them,
    val/<wnid>/*. Raises DataNotFoundError if they hold fewer classes: the other archives are not
    there; DataError if they hold fewer images of a class.
    """
    # name below tiny-imagenet-200/ → archive, name in it; what stands in two archives counts once
    where = {}
    for archive in map(Archive, files):
        for name in archive.names:
            where.setdefault(name.removeprefix("tiny-imagenet-200/"), (archive, name))

    def lines(name: str) -> list[str]:
        if name not in where:
            raise DataError(f"{name} is missing in {', '.join(map(str, files))}")
        archive, full = where[name]
        return archive.read(full).decode(errors="replace").splitlines()

    wanted = [wnid.strip() for wnid in lines("wnids.txt") if wnid.strip()][:classes]
    train, val = defaultdict(list), defaultdict(list)
    for name in where:
        if match := re.fullmatch(rf"train/([^/]+)/images/{_JPEG}", name):
            train[match[1]].append(name)
        match = re.fullmatch(rf"val/([^/]+)/(?:images/)?{_JPEG}", name)
        if match and match[1] in wanted:
            val[match[1]].append(name)
    # val_0.JPEG, wnid, bounding box; as small letters where the files have them
    real = {name.lower(): name for name in where}
    for line in () if val else filter(str.strip, lines("val/val_annotations.txt")):
        file, wnid = line.split()[:2]
        name = f"val/images/{file}"
        val[wnid].append(real.get(name.lower(), name))
    found = [wnid for wnid in wanted if train[wnid] and any(name in where for name in val[wnid])]
    if len(found) < classes:
        raise DataNotFoundError(
            f"classes={classes} were asked for (200 by default), but only {len(found)} of the "
            f"first {classes} in wnids.txt were found in {', '.join(map(str, files))}: ask for "
            "fewer, or add the archive that holds the rest"
        )
    absent = [name for wnid in found for name in val[wnid] if name not in where]
    counts = sorted(len(train[wnid]) for wnid in found)
    if absent or counts[0] != counts[-1]:
        raise DataError(
            f"{', '.join(map(str, files))} is incomplete: {len(absent)} validation images are "
            f"missing, and classes have {counts[0]} to {counts[-1]} training images instead of "
            "one number"
        )
    rows = [
        [
            (label, *where[name])
            for label, wnid in enumerate(found)
            for name in part[wnid]
            if Path(name).stem not in _TINY_LEAKED
        ]
        for part in (train, val)
    ]
    return _decode_images(*rows, found)
