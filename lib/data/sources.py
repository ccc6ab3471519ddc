"""Files from the internet: several mirrors, checked by md5 before they take their name.

Nothing here runs by itself: `python -m lib.data NAME` (`make data DATASET=NAME`) calls it, loading
a data set never does. The md5 sums are the published ones; they guard against truncated and altered
files, not against malice.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 30  # seconds without a byte


class DataError(RuntimeError):
    """A data set that is named rightly cannot be read; the message says why and what to do."""


class DataNotFoundError(DataError):
    """The data set's files are not there: what a report calls "not run: data set not reachable"."""


class DownloadError(DataNotFoundError):
    """No mirror gave the file; lists what was tried and where to put the file by hand."""


@dataclass(frozen=True)
class Remote:
    """A public file: its mirrors in order of preference, its place below `DATA_DIR`, its md5."""

    urls: tuple[str, ...]
    target: str
    md5: str


def _idx(folder: str, mirrors: Sequence[str], md5s: dict[str, str]) -> tuple[Remote, ...]:
    return tuple(
        Remote(tuple(f"{mirror}{name}.gz" for mirror in mirrors), f"{folder}/raw/{name}.gz", md5)
        for name, md5 in md5s.items()
    )


#: What each data set needs, by the data set's name.
FILES: dict[str, tuple[Remote, ...]] = {
    "mnist": _idx(
        "MNIST",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
        {
            "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": _idx(
        "FashionMNIST",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": (
        Remote(
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
        ),
    ),
    "cifar100": (
        Remote(
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
        ),
    ),
    "tiny_imagenet": (
        Remote(
            (
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
            ),
            "tiny-imagenet-200.zip",
            "90528d7ca1a48142e341f4ef8d21d0de",
        ),
    ),
}

#: md5 of the unzipped files, well known: archives are repacked often, their content is not.
IDX_MD5 = {
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def fetch(urls: Sequence[str], target: str | os.PathLike, md5: str) -> Path:
    """Download one file to `target`, unless a file with the right md5 is there; its path.

    The mirrors are tried in order. Only a file with the right md5 takes the target's name.

    Raises:
        DownloadError: every mirror failed.
    """
    import pooch  # here: whoever has the files does without it

    pooch.get_logger().setLevel("WARNING")
    target = Path(target)
    failures = []
    for url in urls:
        how = pooch.HTTPDownloader(timeout=TIMEOUT, progressbar=sys.stderr.isatty())
        try:
            pooch.retrieve(url, f"md5:{md5}", target.name, target.parent, downloader=how)
            return target
        except (OSError, ValueError) as error:
            failures.append(f"{url}: {error}")
    raise DownloadError(
        f"{target.name} could not be downloaded. Tried:\n  "
        + "\n  ".join(failures)
        + f"\nTry again, or get the file (md5 {md5}) in another way and place it at\n  {target}"
    )
