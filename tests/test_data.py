"""lib.data, lib.data.readers and lib.data.sources: names, scales, splits, label corruption, cache,
faults. No network.
"""

import gzip
import hashlib
import http.server
import io
import itertools
import json
import math
import os
import pickle
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib import data, paths
from lib.data import (
    DataError,
    Split,
    corrupt_labels,
    load,
    noise_floor,
    readers,
    stratified_permutation,
    subset,
)
from lib.data import sources as download
from lib.data.sources import DataNotFoundError, DownloadError, fetch


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own; the machine's proxy, if any, is kept out of the way of
    127.0.0.1.
    """
    folder = tmp_path / "cache"
    monkeypatch.setenv("CACHE_DIR", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    data._warn_once.cache_clear()
    return folder


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def encoded(value, size=(4, 4), mode="RGB", kind="PNG"):
    """The bytes of an image in which every channel of every pixel is `value`."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(buffer, kind)
    return buffer.getvalue()


def write(target: Path, files: dict[str, bytes]) -> None:
    """`files` as a zip archive or, if the target has no suffix, as a folder."""
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        for name, content in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)


def pets(top=""):
    """Two classes; values tell the images apart. Not in order, with things that are no images, one
    of them greyscale.
    """
    return {
        f"{top}train/dog/10.png": encoded(110),
        f"{top}train/dog/2.png": encoded(102),
        f"{top}train/cat/1.png": encoded(1),
        f"{top}train/cat/notes.txt": b"not an image",
        f"{top}train/cat/.hidden.png": b"nor this",
        f"__MACOSX/{top}train/cat/1.png": b"nor this",
        f"{top}test/dog/1.png": encoded(151, mode="L"),
        f"{top}test/cat/1.png": encoded(51),
    }


# ---- digits, scales, names


def test_digits_are_split_by_class_and_always_the_same():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = load("digits"), load("digits")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.train.images.shape == (1438, 1, 20, 20) and first.test.images.shape == (
        359,
        1,
        20,
        20,
    )
    assert first.train.images.dtype == torch.float32 and first.train.labels.dtype == torch.int64
    assert (
        first.num_classes == 10
        and first.class_names == tuple("0123456789")
        and first.name == "digits"
    )
    assert torch.equal(first.train.images, second.train.images) and first.sha256 == second.sha256
    # a changed split would make old runs incomparable
    assert first.sha256.startswith("ec56df519c92c742")
    share = first.train.labels.bincount() / (
        first.train.labels.bincount() + first.test.labels.bincount()
    )
    assert (share - 0.8).abs().max() < 0.01


def test_digits_size_and_scale():
    unit, al2 = load("digits", normalize="unit", size=8), load("digits", normalize="al2", size=8)
    assert unit.train.images.shape[2:] == (8, 8)
    assert unit.train.images.min() == 0 and unit.train.images.max() == 1
    # sixteenths, as in scikit-learn
    assert torch.equal(unit.train.images * 16, (unit.train.images * 16).round())
    assert torch.allclose(al2.train.images, (unit.train.images - 0.5) / 0.5)
    large = load("digits", normalize="unit", size=32)
    assert large.test.images.shape == (359, 1, 32, 32) and large.sha256 == unit.sha256
    assert (
        large.test.images.mean() - load("digits", normalize="unit", size=8).test.images.mean()
    ).abs() < 0.01


def test_moving_to_a_device_and_lengths():
    moved = load("digits", device="cpu").to("cpu")
    assert (
        len(moved.train) == 1438
        and moved.train.images.device.type == "cpu"
        and moved.class_names[3] == "3"
    )


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("mnits", {}, r"'mnits'.*digits, mnist, fashion_mnist, cifar10, cifar100, tiny_imagenet"),
        ("../mnist", {}, "unknown data set"),
        ("", {}, "unknown data set"),
        (None, {}, "unknown data set None"),
        ("digits", {"normalize": "zscore"}, "'zscore'.*'al2'.*'unit'"),
        ("digits", {"sizes": 20}, "'sizes'.*options: size"),
        ("digits", {"size": 7}, "size=7.*8 to 256"),
        ("digits", {"size": 20.0}, "whole number"),
        ("mnist", {"size": 28}, "'size'.*options: none"),
        ("tiny_imagenet", {"classes": 0}, "classes=0.*2 to 200"),
    ],
)
def test_errors_name_what_is_allowed(root, name, options, said):
    with pytest.raises(ValueError, match=said):
        load(name, root=root, **options)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet"])
def test_a_missing_set_says_how_to_get_it(root, name):
    with pytest.raises(DataNotFoundError, match=f"make data DATASET={name}") as caught:
        load(name, root=root)
    assert str(root) in str(caught.value) and "DATA_DIR" in str(caught.value)


def test_the_default_root_is_data_dir(root, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(root))
    write(root / "pets.zip", pets())
    assert load("pets").num_classes == 2


# ---- label corruption

LABELS = torch.arange(40_000) % 10


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_bernoulli_corruption(fraction):
    before = LABELS.clone()
    new, changed = corrupt_labels(LABELS, fraction, 10, generator=seeded())
    assert torch.equal(LABELS, before) and new.dtype == torch.int64 and changed.dtype == torch.bool
    assert torch.equal(new != LABELS, changed)  # a corrupted label is never the true one
    assert new.min() >= 0 and new.max() < 10
    spread = math.sqrt(fraction * (1 - fraction) / len(LABELS))
    assert abs(changed.double().mean() - fraction) <= 4 * spread


def test_corrupted_labels_are_uniform_over_the_other_classes():
    new, changed = corrupt_labels(LABELS, 0.75, 10, generator=seeded())
    counts = torch.zeros(10, 10).index_put_(
        (LABELS[changed], new[changed]), torch.ones(()), accumulate=True
    )
    assert (counts.diagonal() == 0).all()
    expected = counts.sum(1, keepdim=True) / 9
    # 10 rows of 8 degrees of freedom
    chi_square = ((counts - expected) ** 2 / expected).fill_diagonal_(0).sum()
    assert abs(chi_square - 80) < 4 * math.sqrt(2 * 80)


@pytest.mark.parametrize("law", ["bernoulli", "exact"])
def test_corruption_is_nested_over_fractions(law):
    results = [
        corrupt_labels(LABELS, p, 10, generator=seeded(), law=law) for p in (0.25, 0.5, 0.75)
    ]
    for (fewer, changed), (more, changed_more) in itertools.pairwise(results):
        assert (changed <= changed_more).all() and torch.equal(fewer[changed], more[changed])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 1 / 3, 1.0])
def test_exact_corruption_counts(fraction):
    labels = torch.arange(1003) % 7
    new, changed = corrupt_labels(labels, fraction, 7, generator=seeded(), law="exact")
    assert changed.sum() == round(fraction * 1003) and torch.equal(new != labels, changed)


def test_corruption_depends_on_the_generator_alone():
    torch.manual_seed(1)
    first = corrupt_labels(LABELS, 0.5, 10, generator=seeded(3))[0]
    torch.manual_seed(2)
    assert torch.equal(first, corrupt_labels(LABELS, 0.5, 10, generator=seeded(3))[0])
    assert not torch.equal(first, corrupt_labels(LABELS, 0.5, 10, generator=seeded(4))[0])


def test_corruption_of_two_classes_and_of_none():
    labels = torch.tensor([0, 1, 1])
    assert corrupt_labels(labels, 1.0, 2, generator=seeded())[0].tolist() == [1, 0, 0]
    assert len(corrupt_labels(labels[:0], 0.5, 2, generator=seeded())[0]) == 0


@pytest.mark.parametrize(
    "change, said",
    [
        ({"fraction": 1.1}, "fraction=1.1"),
        ({"fraction": -0.1}, r"\[0, 1\]"),
        ({"fraction": 75}, "0.75 for 75 %"),
        ({"fraction": float("nan")}, "fraction=nan"),
        ({"law": "uniform"}, "'uniform'.*'bernoulli' and 'exact'"),
        ({"num_classes": 1}, "at least 2"),
        ({"num_classes": 9}, "0 … 8, found 0 … 9"),
        ({"labels": LABELS - 1}, "found -1"),
        ({"labels": LABELS.float()}, "int64"),
        ({"labels": LABELS.view(2, -1)}, "int64"),
    ],
)
def test_corruption_errors(change, said):
    arguments = {
        "labels": LABELS,
        "fraction": 0.5,
        "num_classes": 10,
        "generator": seeded(),
    } | change
    with pytest.raises(ValueError, match=said):
        corrupt_labels(**arguments)


def test_noise_floor():
    for fraction, floor in ((0.75, 2.2103), (0.5, 1.7918), (0.25, 1.1116)):
        assert noise_floor(fraction, 10) == pytest.approx(floor, abs=5e-5)
    assert noise_floor(0, 10) == 0 and noise_floor(1, 10) == pytest.approx(math.log(9))
    assert noise_floor(0.9, 10) == pytest.approx(math.log(10))  # nothing left to know
    with pytest.raises(ValueError, match="fraction=2"):
        noise_floor(2, 10)


# ---- subsets


@pytest.mark.parametrize("counts", [[100] * 10, [30, 200, 71, 5]])
def test_every_prefix_of_the_permutation_is_balanced(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = stratified_permutation(labels)
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    share = torch.tensor(counts) / len(labels)
    seen = torch.nn.functional.one_hot(labels[order]).cumsum(0)
    ideal = torch.arange(1, len(labels) + 1)[:, None] * share
    assert (seen - ideal).abs().max() <= 1.5


def test_the_permutation_is_fixed_and_random_within_classes():
    labels = torch.arange(1000) % 10
    torch.manual_seed(1)
    order = stratified_permutation(labels)
    torch.manual_seed(2)
    assert torch.equal(order, stratified_permutation(labels))
    assert not torch.equal(order, stratified_permutation(labels, seed=1))
    assert not torch.equal(order[labels[order] == 0], torch.arange(0, 1000, 10))
    assert sorted(labels[order[:10]].tolist()) == list(range(10)) and labels[
        order[:10]
    ].tolist() != list(range(10))


def numbered(total=100, classes=5):
    """Image i holds the number i."""
    return Split(torch.arange(float(total)).view(-1, 1, 1, 1), torch.arange(total) % classes)


def members(split):
    return split.images.flatten().int().tolist()


def test_subsets_are_disjoint_and_held_out_ones_do_not_depend_on_n_train():
    split = numbered()
    train, validation, measure = subset(split, 20, 10, 15)
    assert [len(part) for part in (train, validation, measure)] == [20, 10, 15]
    assert len(set(members(train) + members(validation) + members(measure))) == 45
    assert (
        train.labels.bincount().tolist() == [4] * 5
        and validation.labels.bincount().tolist() == [2] * 5
    )
    assert (train.images.flatten() % 5 == train.labels).all()  # images keep their labels
    longer, same_validation, same_measure = subset(split, 40, 10, 15)
    assert members(longer)[:20] == members(train)
    assert members(same_validation) == members(validation) and members(same_measure) == members(
        measure
    )
    rest, _, _ = subset(split, None, 10, 15)
    assert len(rest) == 75 and members(rest)[:40] == members(longer)


def test_a_subset_of_all_is_all():
    train, validation, measure = subset(numbered())
    assert sorted(members(train)) == list(range(100)) and len(validation) == len(measure) == 0
    assert validation.images.shape == (0, 1, 1, 1)


@pytest.mark.parametrize(
    "numbers",
    [(91, 10, 0), (101,), (0,), (-1,), (10, -5), (None, 60, 40), (None, 0, 101), (1, 0, -1)],
)
def test_subset_errors_give_the_numbers(numbers):
    with pytest.raises(ValueError, match=r"n_train=.*from 100 images"):
        subset(numbered(), *numbers)


# ---- image folders


@pytest.mark.parametrize("target", ["pets.zip", "pets"])
@pytest.mark.parametrize("top", ["", "all pets/"])
def test_image_folders_of_ones_own(root, target, top):
    write(root / target, pets(top))
    loaded = load("pets", root=root, normalize="unit")
    assert loaded.class_names == ("cat", "dog") and loaded.num_classes == 2
    assert loaded.train.images.shape == (3, 3, 4, 4) and loaded.test.images.shape == (2, 3, 4, 4)
    # 2.png, 10.png
    assert (loaded.train.images[:, :, 0, 0] * 255).round().tolist() == [
        [1] * 3,
        [102] * 3,
        [110] * 3,
    ]
    assert loaded.train.labels.tolist() == [0, 1, 1] and loaded.test.labels.tolist() == [0, 1]
    assert (loaded.test.images[1] * 255).round().unique().tolist() == [151]  # grey became RGB


def test_archive_order_and_form_do_not_matter(root):
    write(root / "a.zip", pets())
    write(root / "b.zip", dict(reversed(pets("top/").items())))
    write(root / "c", pets())
    assert len({load(name, root=root).sha256 for name in "abc"}) == 1
    assert {file.name[0] for file in paths.cache_dir().iterdir()} == set("abc")


def test_val_stands_in_for_test(root):
    write(
        root / "pets.zip",
        {name.replace("test/", "val/"): content for name, content in pets().items()},
    )
    assert len(load("pets", root=root).test) == 2


@pytest.mark.parametrize(
    "change, said",
    [
        (
            {"train/dog/7.png": encoded(7, size=(6, 5))},
            r"train/dog/7.png is 6×5 pixels, but train/cat/1.png is 4×4",
        ),
        ({"train/dog/7.png": encoded(7)[:45]}, r"train/dog/7.png cannot be read"),
        (
            {"train/dog/7.png": encoded(7, mode="L").replace(b"IHDR", b"IHDX")},
            r"train/dog/7.png cannot be read",
        ),
        ({"test/bird/1.png": encoded(7)}, "test classes without training images: bird"),
        ({"other/train/dog/1.png": encoded(7)}, "below 2 top folders"),
    ],
)
def test_faults_in_image_folders_are_named(root, change, said):
    write(root / "pets.zip", pets() | change)
    with pytest.raises(DataError, match=said) as caught:
        load("pets", root=root)
    assert "train/<class>/*" in str(caught.value)


def test_an_archive_without_the_layout_or_cut_short(root):
    write(root / "pets.zip", {"cat/1.png": encoded(1)})
    with pytest.raises(DataError, match="0 images in train/<class>/ and 0 in test"):
        load("pets", root=root)
    write(root / "pets.zip", pets())
    (root / "pets.zip").write_bytes((root / "pets.zip").read_bytes()[:-40])
    with pytest.raises(DataError, match="truncated or no zip archive"):
        load("pets", root=root)


def test_an_altered_image_in_an_archive(root):
    write(root / "pets.zip", pets())
    content = bytearray((root / "pets.zip").read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF
    (root / "pets.zip").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"\.png .*(truncated or altered|cannot be read)"):
        load("pets", root=root)


def test_sixteen_bit_images_are_refused(root):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(buffer, "PNG")
    write(root / "pets.zip", pets() | {"train/dog/7.png": buffer.getvalue()})
    with pytest.raises(DataError, match="8 bits a channel"):
        load("pets", root=root)


# ---- cache


@pytest.fixture
def no_decoding(monkeypatch):
    """Called in a test, makes decoding fail: what is loaded then comes from the cache."""

    def forbid():
        monkeypatch.setattr(readers, "_decode_images", lambda *_: pytest.fail("decoded again"))

    return forbid


def test_a_second_load_comes_from_the_cache(root, cache, no_decoding):
    write(root / "pets.zip", pets())
    first = load("pets", root=root)
    assert [file.suffix for file in cache.iterdir()] == [".npz"] and len(list(root.iterdir())) == 1
    no_decoding()
    second = load("pets", root=root)
    assert torch.equal(first.train.images, second.train.images) and torch.equal(
        first.test.labels, second.test.labels
    )
    assert (first.sha256, first.class_names) == (second.sha256, second.class_names)


def test_changed_files_are_decoded_anew(root, cache):
    write(root / "pets", pets())
    first = load("pets", root=root)
    write(root / "pets", {"train/dog/2.png": encoded(103)})
    second = load("pets", root=root)
    assert first.sha256 != second.sha256 and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_cache_is_rebuilt(root, cache, no_decoding, damage):
    write(root / "pets.zip", pets())
    first = load("pets", root=root)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"NUMPY") + 130] ^= 1  # a pixel
    damaged = {
        "cut": whole[: len(whole) // 2],
        "flip": bytes(flipped),
        "empty": b"",
        "other": b"not a cache" * 99,
    }
    file.write_bytes(damaged[damage])
    assert torch.equal(load("pets", root=root).train.images, first.train.images)
    assert list(cache.iterdir()) == [file] and len(file.read_bytes()) == len(whole)
    no_decoding()
    load("pets", root=root)


def test_a_cache_that_cannot_be_written_warns_once(root, cache, tmp_path, monkeypatch, recwarn):
    blocker = tmp_path / "file"
    blocker.write_text(
        "a file where a folder should be: fails for every user, the administrator included"
    )
    monkeypatch.setenv("CACHE_DIR", str(blocker / "cache"))
    write(root / "pets.zip", pets())
    assert len(load("pets", root=root).train) == len(load("pets", root=root).train) == 3
    messages = [str(warning.message) for warning in recwarn if "CACHE_DIR" in str(warning.message)]
    assert len(messages) == 1 and str(blocker) in messages[0]


def test_a_full_disk_leaves_no_partial_cache(root, cache, monkeypatch):
    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    write(root / "pets.zip", pets())
    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert len(load("pets", root=root).train) == 3
    assert list(cache.iterdir()) == []


# ---- Tiny ImageNet

WNIDS = ["n03", "n01", "n04", "n02"]


def tiny(having, top="tiny-imagenet-200/"):
    """The official layout with four classes, of which this part has `having`; val_1801 stands in
    train, too.
    """
    files = {f"{top}wnids.txt": "\n".join(WNIDS).encode(), f"{top}words.txt": b"n01\tcat"}
    annotated = [(f"val_{at}.JPEG", WNIDS[at % 4]) for at in (0, 1, 2, 3, 5, 1801, 10)]
    files[f"{top}val/val_annotations.txt"] = "".join(
        f"{n}\t{w}\t0\t0\t63\t63\n" for n, w in annotated
    ).encode()
    files |= {
        f"{top}val/images/{n}": encoded(90, (8, 8), kind="JPEG")
        for n, w in annotated
        if w in having
    }
    for wnid in having:
        value = 40 * WNIDS.index(wnid) + 10
        files |= {
            f"{top}train/{wnid}/images/{wnid}_{at}.JPEG": encoded(value, (8, 8), kind="JPEG")
            for at in range(3)
        }
        files[f"{top}train/{wnid}/{wnid}_boxes.txt"] = b""
    return files


def test_tiny_imagenet_in_two_parts(root):
    write(root / "tiny-imagenet-200-part1.zip", tiny(WNIDS[:2]))
    # one class is in both, and counts once
    write(root / "tiny-imagenet-200-part2.zip", tiny(WNIDS[1:]))
    loaded = load("tiny_imagenet", root=root, classes=4, normalize="unit")
    assert loaded.class_names == tuple(WNIDS)  # in the order of wnids.txt
    assert loaded.train.labels.bincount().tolist() == [3] * 4
    assert (loaded.train.images[::3, 0, 0, 0] * 255).round().tolist() == pytest.approx(
        [10, 50, 90, 130], abs=2
    )
    assert loaded.test.labels.tolist() == [0, 1, 1, 2, 2, 3]  # of seven: val_1801 is left out
    assert len(load("tiny_imagenet", root=root, classes=2).train) == 6


def test_tiny_imagenet_unpacked_equals_the_archive(root, tmp_path):
    write(root / "tiny-imagenet-200.zip", tiny(WNIDS))
    write(tmp_path / "other" / "tiny-imagenet-200", tiny(WNIDS, top=""))
    packed, unpacked = (
        load("tiny_imagenet", root=at, classes=4) for at in (root, tmp_path / "other")
    )
    assert packed.sha256 == unpacked.sha256 and torch.equal(
        packed.test.images, unpacked.test.images
    )


def test_too_few_classes_say_how_many_there_are(root):
    write(root / "tiny-imagenet-200-part1.zip", tiny(WNIDS[:2]))
    with pytest.raises(DataNotFoundError, match=r"classes=3 .* only 2 of the first 3"):
        load("tiny_imagenet", root=root, classes=3)
    with pytest.raises(DataNotFoundError, match=r"classes=200 .* only 2 of the first 200"):
        load("tiny_imagenet", root=root)
    assert load("tiny_imagenet", root=root, classes=2).num_classes == 2


@pytest.mark.parametrize(
    "lost", ["train/n01/images/n01_1.JPEG", "val/images/val_5.JPEG", "wnids.txt"]
)
def test_an_incomplete_tiny_imagenet_is_refused(root, lost):
    files = tiny(WNIDS)
    del files[f"tiny-imagenet-200/{lost}"]
    write(root / "tiny-imagenet-200.zip", files)
    with pytest.raises(DataError, match=r"incomplete|wnids\.txt is missing"):
        load("tiny_imagenet", root=root, classes=4)


# ---- MNIST and CIFAR


@pytest.fixture
def mnist(root, monkeypatch):
    """Four small idx files (5 training, 3 test images) whose md5 stand in for the published
    ones.
    """
    rng = np.random.default_rng(0)
    raw = root / "MNIST" / "raw"
    images = {}
    md5s = {}
    raw.mkdir(parents=True)
    for name, count in zip(download.IDX_MD5["MNIST"], (5, 5, 3, 3), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        images[name] = rng.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + b"".join(
            length.to_bytes(4, "big") for length in shape
        )
        content = header + images[name].tobytes()
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        md5s[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setitem(download.IDX_MD5, "MNIST", md5s)
    return raw, images


def test_mnist_zipped_or_not(root, mnist):
    raw, images = mnist
    zipped = load("mnist", root=root, normalize="unit")
    assert zipped.train.images.shape == (5, 1, 28, 28) and zipped.test.images.shape == (
        3,
        1,
        28,
        28,
    )
    assert (zipped.train.images * 255).round().squeeze(1).tolist() == images[
        "train-images-idx3-ubyte"
    ].tolist()
    assert zipped.test.labels.tolist() == images["t10k-labels-idx1-ubyte"].tolist()
    scaled = load("mnist", root=root)
    assert torch.allclose(scaled.test.images, (zipped.test.images - 0.1307) / 0.3081)
    for file in list(raw.iterdir()):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert load("mnist", root=root).sha256 == zipped.sha256


@pytest.mark.parametrize(
    "damage, said",
    [("cut", "truncated or no gzip"), ("alter", "altered: the md5"), ("text", "no gzip")],
)
def test_damaged_mnist_is_refused_even_with_a_cache(root, mnist, damage, said):
    load("mnist", root=root)
    file = mnist[0] / "train-images-idx3-ubyte.gz"
    content = gzip.decompress(file.read_bytes())
    altered = gzip.compress(content[:-1] + bytes([content[-1] ^ 1]))
    file.write_bytes(
        {"cut": file.read_bytes()[:-100], "alter": altered, "text": b"<html>not found</html>"}[
            damage
        ]
    )
    with pytest.raises(DataError, match=said) as caught:
        load("mnist", root=root)
    assert str(file) in str(caught.value) and "make data DATASET=mnist" in str(caught.value)


def test_mnist_with_one_file_missing(root, mnist):
    (mnist[0] / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataNotFoundError, match=r"t10k-labels-idx1-ubyte.gz is missing"):
        load("mnist", root=root)


def pixels_sha256(images):
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def small_cifar(request, root, monkeypatch):
    """A CIFAR set of 400 training images and 100 test images whose hashes stand in for the
    published ones.

    Returns its name, a function for each source that writes it, and the images as they have to come
    out.
    """
    from lib.data.vision import torchvision

    name = request.param
    rng = np.random.default_rng(0)
    is_100 = name == "cifar100"
    cifar = (
        replace(readers.CIFAR100)
        if is_100
        else replace(readers.CIFAR10, train_parts=("data_batch_1", "data_batch_2"))
    )
    counts = {"train": 400} if is_100 else {"data_batch_1": 200, "data_batch_2": 200}
    counts[cifar.test_parts[0]] = 100
    labels = {part: rng.integers(0, 4, count) for part, count in counts.items()}
    images = {
        part: rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        for part, count in counts.items()
    }

    def joined(parts):
        return np.concatenate([images[part] for part in parts]), np.concatenate(
            [labels[part] for part in parts]
        )

    splits = [joined(cifar.train_parts), joined(cifar.test_parts)]
    if is_100:
        splits = [(pixels[readers.canonical_order(pixels, of)], of) for pixels, of in splits]
    names = {cifar.class_names: ["ant", "bee", "cat", "dog"]}

    def pickled():
        """As torchvision keeps it; the images of a class stand in another order than in the
        archive.
        """
        folder = root / cifar.folder
        md5 = {}
        folder.mkdir()
        for part in counts:
            data_ = images[part].copy()
            if is_100:
                for label in range(4):
                    places = np.flatnonzero(labels[part] == label)
                    data_[places] = data_[rng.permutation(places)]
            content = {
                "data": data_.transpose(0, 3, 1, 2).reshape(-1, 3072),
                cifar.labels: labels[part].tolist(),
            }
            (folder / part).write_bytes(pickle.dumps(content))
        (folder / cifar.meta).write_bytes(pickle.dumps(names))
        for file in folder.iterdir():
            md5[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
        kind = getattr(torchvision.datasets, cifar.torchvision)
        monkeypatch.setattr(kind, "train_list", [[part, md5[part]] for part in cifar.train_parts])
        monkeypatch.setattr(kind, "test_list", [[part, md5[part]] for part in cifar.test_parts])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5[cifar.meta]})
        return folder

    def archived(order=slice(None), trusted=True):
        """The lossless archive; `order` of the training images in it; `trusted`: its own hash is
        the expected one.
        """
        files = {f"{cifar.top}/{cifar.meta}": pickle.dumps(names)}
        for part in counts:
            files[f"{cifar.top}/{part}.json"] = json.dumps(
                {cifar.labels: labels[part].tolist()}
            ).encode()
            shown = images[part] if part in cifar.test_parts else images[part][order]
            for k in range(0, len(shown), 100):
                buffer = io.BytesIO()
                strip = Image.fromarray(shown[k : k + 100].reshape(-1, 32, 3))
                strip.save(buffer, "WEBP", lossless=True)
                files[f"{cifar.top}/{part}/{k // 100:03}.webp"] = buffer.getvalue()
        write(root / cifar.archive, files)
        digest = (
            hashlib.sha256((root / cifar.archive).read_bytes()).hexdigest() if trusted else "0" * 64
        )
        use(replace(known, archive_sha256=digest))
        return root / cifar.archive

    def use(spec):
        monkeypatch.setitem(
            data._BUILT_IN, name, data._published(readers.find_cifar, readers.read_cifar, spec)
        )

    known = replace(cifar, pixels_sha256=tuple(pixels_sha256(pixels) for pixels, _ in splits))
    use(known)
    return name, pickled, archived, splits


def test_cifar_is_the_same_from_both_sources(root, small_cifar, capsys):
    name, pickled, archived, splits = small_cifar
    archive = archived()
    from_archive = load(name, root=root, normalize="unit")
    for split, (pixels, labels) in zip(
        (from_archive.train, from_archive.test), splits, strict=True
    ):
        assert (split.images * 255).round().to(torch.uint8).permute(
            0, 2, 3, 1
        ).numpy().tolist() == pixels.tolist()
        assert split.labels.tolist() == labels.tolist()
    assert from_archive.class_names == ("ant", "bee", "cat", "dog")
    data.main([name, "--root", str(root)])
    assert f"read from {archive}\n" in capsys.readouterr().out
    folder = pickled()
    data.main([name, "--root", str(root)])
    assert (
        f"read from {folder} ({archive.name} is there, too: the official files go first)"
        in capsys.readouterr().out
    )
    from_pickles = load(name, root=root, normalize="unit")
    assert from_pickles.sha256 == from_archive.sha256
    assert torch.equal(from_pickles.train.images, from_archive.train.images)
    archive.unlink()
    assert load(name, root=root).sha256 == from_archive.sha256


def test_faults_in_cifar_files_are_named(root, small_cifar):
    name, pickled, archived, _ = small_cifar
    with pytest.raises(DataNotFoundError, match=r"neither .* is there(.|\n)*make data DATASET="):
        load(name, root=root)
    with pytest.raises(
        DataError, match=r"truncated or altered: its SHA-256 is [0-9a-f]{64}, not 0{64}"
    ):
        load(name, root=archived(trusted=False).parent)
    archive = archived()
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated or altered"):
        load(name, root=root)
    # an archive that is trusted, but in which the images stand in another order
    archived(order=slice(None, None, -1))
    with pytest.raises(
        DataError, match="other images than the published ones, or holds them in another order"
    ):
        load(name, root=root)
    folder = pickled()
    test_file = (
        folder / readers.CIFAR100.test_parts[0] if name == "cifar100" else folder / "test_batch"
    )
    test_file.write_bytes(b"altered")
    with pytest.raises(DataError, match="missing, truncated or altered"):
        load(name, root=root)
    test_file.unlink()
    with pytest.raises(
        DataNotFoundError, match=f"lacks {test_file.name}: complete it, or remove it"
    ):
        load(name, root=root)


def test_images_of_cifar_100_have_one_order():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, 30)
    order = readers.canonical_order(images, labels)
    assert sorted(order) == list(range(30)) and (labels[order] == labels).all()
    for label in range(3):
        digests = [
            hashlib.sha256(image.tobytes()).hexdigest() for image in images[order][labels == label]
        ]
        assert digests == sorted(digests)
    assert (images[order][readers.canonical_order(images[order], labels)] == images[order]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_real_archives_decode_to_the_published_pixels(name):
    cifar = {"cifar10": readers.CIFAR10, "cifar100": readers.CIFAR100}[name]
    if not (paths.data_dir() / cifar.archive).is_file():
        pytest.skip(
            f"{cifar.archive} is not in {paths.data_dir()}; DATA_DIR names the folder that has it"
        )
    raw = data.read(name)
    found = tuple(
        pixels_sha256(part.images.permute(0, 2, 3, 1).numpy()) for part in (raw.train, raw.test)
    )
    assert found == cifar.pixels_sha256
    assert (len(raw.train), len(raw.test)) == (50_000, 10_000)
    assert set(raw.train.labels.bincount().tolist()) == {50_000 // raw.num_classes}
    again = data.read(name)  # from the cache
    assert again.sha256 == raw.sha256 and torch.equal(again.test.images, raw.test.images)


def test_real_mnist():
    if not (paths.data_dir() / "MNIST" / "raw").is_dir():
        pytest.skip(
            f"MNIST is not in {paths.data_dir()}; `make data DATASET=mnist` or DATA_DIR brings it"
        )
    loaded = load("mnist", normalize="unit")
    assert len(loaded.train) == 60_000 and len(loaded.test) == 10_000 and loaded.num_classes == 10
    assert loaded.train.labels.bincount().tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert loaded.train.images.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert loaded.train.images.std().item() == pytest.approx(0.3081, abs=5e-5)


# ---- downloads

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """/range honours ranges, /plain ignores them, /short hangs up half way, /wrong sends other
    bytes.
    """

    requests: list  # of (path, Range header), set by the fixture

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.requests.append((self.path, wanted))
        body = CONTENT
        start = 0
        if self.path == "/gone":
            return self.send_error(404)
        if self.path == "/wrong":
            body = CONTENT[::-1]
        if wanted and self.path in ("/range", "/short"):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = (start + len(body)) // 2 if self.path == "/short" else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(
            target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        running.requests = handler.requests
        yield running
        running.shutdown()


def test_fetch_tries_mirrors_in_order_and_only_once(server, tmp_path):
    target = tmp_path / "new" / "file.bin"
    assert fetch([f"{server.url}/gone", f"{server.url}/plain"], target, MD5) == target
    assert target.read_bytes() == CONTENT and [path for path, _ in server.requests] == [
        "/gone",
        "/plain",
    ]
    fetch([f"{server.url}/plain"], target, MD5)  # it is there
    assert len(server.requests) == 2 and os.listdir(target.parent) == ["file.bin"]


@pytest.mark.parametrize("path, ranged", [("/range", True), ("/plain", False)])
def test_fetch_continues_where_the_server_can(server, tmp_path, path, ranged):
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    fetch([server.url + path], tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT and server.requests == [
        (path, "bytes=1000-")
    ]


def test_fetch_goes_on_with_the_next_mirror_after_a_broken_connection(server, tmp_path):
    fetch([f"{server.url}/short", f"{server.url}/range"], tmp_path / "file", MD5)
    assert server.requests == [("/short", None), ("/range", f"bytes={len(CONTENT) // 2}-")]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_fetch_recovers_from_a_bad_beginning_and_from_a_whole_part(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    fetch([f"{server.url}/range"], tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT and len(server.requests) == 2
    # killed between the last byte and the renaming
    (tmp_path / "file").rename(tmp_path / "other.part")
    fetch([f"{server.url}/range"], tmp_path / "other", MD5)
    assert (tmp_path / "other").read_bytes() == CONTENT


def test_fetch_deletes_what_has_the_wrong_hash_and_lists_what_was_tried(server, tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"what stood there stays")
    with pytest.raises(DownloadError) as caught:
        fetch([f"{server.url}/gone", f"{server.url}/wrong"], target, MD5)
    message = str(caught.value)
    for part in (f"{server.url}/gone", "404", f"{server.url}/wrong", "deleted", MD5, str(target)):
        assert part in message
    assert os.listdir(tmp_path) == ["file"] and target.read_bytes() == b"what stood there stays"


def test_fetch_keeps_a_partial_file_for_the_next_call(server, tmp_path):
    with pytest.raises(DownloadError, match="connection closed after 512,000 of 1,024,000 bytes"):
        fetch([f"{server.url}/short"], tmp_path / "file", MD5)
    assert (tmp_path / "file.part").stat().st_size == len(CONTENT) // 2


def test_published_files_have_a_mirror_and_a_hash_each():
    assert set(download.FILES) == set(data.NAMES) - {"digits"}
    assert len(download.FILES["mnist"][0].urls) >= 2
    for remote in (remote for remotes in download.FILES.values() for remote in remotes):
        assert len(remote.md5) == 32 and all(url.startswith("http") for url in remote.urls)


def test_command_line(root, mnist, capsys):
    data.main(["digits"])
    assert "nothing to download" in capsys.readouterr().out
    data.main(["mnist", "--root", str(root)])  # it is there: the network is not asked
    assert "5 training and 3 test images of 10 classes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="digits, mnist"):
        data.main(["mnits", "--root", str(root)])


def test_command_line_downloads_what_is_missing(root, mnist, server, monkeypatch, capsys):
    file = mnist[0] / "t10k-labels-idx1-ubyte.gz"
    published = file.read_bytes()
    file.unlink()
    remote = download.Remote(
        (f"{server.url}/plain",),
        "MNIST/raw/t10k-labels-idx1-ubyte.gz",
        hashlib.md5(published).hexdigest(),
    )
    monkeypatch.setitem(download.FILES, "mnist", (remote,))
    monkeypatch.setitem(globals(), "CONTENT", published)
    data.main(["mnist", "--root", str(root)])
    said = capsys.readouterr().out
    assert "is missing" in said and "5 training" in said and file.read_bytes() == published
