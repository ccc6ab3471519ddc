"""lib.data: names, scales, splits, label corruption, cache, faults. No network."""

import errno
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
from lib.data import DataError, Split, corrupt_labels, load, noise_floor, readers, sources
from lib.data.sources import DataNotFoundError, DownloadError, fetch


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """The test's cache folder; the machine's proxy, if any, is kept out of the way of 127.0.0.1."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    data._warn_once.cache_clear()
    return paths.cache_dir()


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    paths.data_dir().mkdir()
    return paths.data_dir()


def refused(said, name="pets", kind=DataError, **options):
    """The message, which has to match `said`, with which a set cannot be loaded."""
    with pytest.raises(kind, match=said) as caught:
        load(name, **options)
    return str(caught.value)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def encoded(value, size=(4, 4), mode="RGB", kind="PNG", **options):
    """The bytes of an image in which every channel of every pixel is `value`, or of these pixels.

    RGB pixels are [H, W, 3]; greyscale ones of 16 bits [H, W].
    """
    buffer = io.BytesIO()
    if isinstance(value, np.ndarray):
        image = Image.fromarray(value)
    else:
        image = Image.new(mode, size, value if mode == "L" else (value,) * 3)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bytes_of(images):
    """The pixels of images in [0, 1], as numbers in nested lists."""
    return (images * 255).round().to(torch.uint8).tolist()


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
    before = torch.get_rng_state()
    digits = load("digits")
    assert torch.equal(torch.get_rng_state(), before)
    train, test = digits.train, digits.test
    assert train.images.shape == (1438, 1, 20, 20) and test.images.shape == (359, 1, 20, 20)
    assert train.images.dtype == torch.float32 and train.labels.dtype == torch.int64
    assert (digits.name, digits.num_classes, len(train)) == ("digits", 10, 1438)
    assert digits.class_names == tuple("0123456789")
    # a changed split would make old runs incomparable
    assert digits.sha256.startswith("ec56df519c92c742")
    counts = train.labels.bincount()
    assert (counts / (counts + test.labels.bincount()) - 0.8).abs().max() < 0.01


def test_digits_size_and_scale():
    how = [{"normalize": "unit", "size": 8}, {"size": 8}, {"normalize": "unit", "size": 32}]
    unit, al2, large = (load("digits", **options) for options in how)
    images = unit.train.images
    assert images.shape[2:] == (8, 8) and images.min() == 0 and images.max() == 1
    assert torch.equal(images * 16, (images * 16).round())  # sixteenths, as in scikit-learn
    assert torch.allclose(al2.train.images, (images - 0.5) / 0.5)
    assert large.test.images.shape == (359, 1, 32, 32) and large.sha256 == unit.sha256
    assert (large.test.images.mean() - unit.test.images.mean()).abs() < 0.01


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
    refused(said, name, ValueError, **options)


@pytest.mark.parametrize("name", data.NAMES[1:])
def test_a_missing_set_says_how_to_get_it(root, name):
    said = refused(f"make data DATASET={name}", name, DataNotFoundError)
    assert str(root) in said and "DATA_DIR" in said


# ---- label corruption

LABELS = torch.arange(40_000) % 10


def test_so_many_labels_are_corrupted_and_to_each_other_class_alike():
    before = LABELS.clone()
    new, changed = corrupt_labels(LABELS, 0.75, 10, generator=seeded())
    assert torch.equal(LABELS, before) and new.dtype == torch.int64 and changed.dtype == torch.bool
    assert abs(changed.double().mean() - 0.75) <= 4 * math.sqrt(0.75 * 0.25 / len(LABELS))
    counts = torch.bincount(10 * LABELS[changed] + new[changed], minlength=100).view(10, 10)
    assert (counts.diagonal() == 0).all()
    expected = counts.sum(1, keepdim=True) / 9
    # 10 rows of 8 degrees of freedom
    chi_square = ((counts - expected) ** 2 / expected).fill_diagonal_(0).sum()
    assert abs(chi_square - 80) < 4 * math.sqrt(2 * 80)


def test_corruption_depends_on_the_generator_alone():
    first, again, other = (
        corrupt_labels(LABELS, 0.5, 10, generator=seeded(seed))[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"fraction": 1.1}, "fraction=1.1"),
        ({"fraction": -0.1}, r"\[0, 1\]"),
        ({"fraction": 75}, "0.75 for 75 %"),
        ({"fraction": float("nan")}, "fraction=nan"),
        ({"law": "uniform"}, "'uniform'.*'bernoulli' and 'exact'"),
        ({"num_classes": 1}, "at least 2"),
        ({"num_classes": 9}, "0 … 8, found 9"),
        ({"labels": LABELS - 1}, "found -1"),
        ({"labels": LABELS.float()}, "int64"),
        ({"labels": LABELS.view(2, -1)}, "int64"),
    ],
)
def test_corruption_errors(change, said):
    given = {"labels": LABELS, "fraction": 0.5, "num_classes": 10, "generator": seeded()}
    with pytest.raises(ValueError, match=said):
        corrupt_labels(**given | change)


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
    order = data.stratified_permutation(labels)
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    share = torch.tensor(counts) / len(labels)
    seen = torch.nn.functional.one_hot(labels[order]).cumsum(0)
    ideal = torch.arange(1, len(labels) + 1)[:, None] * share
    assert (seen - ideal).abs().max() <= 1.5


def test_the_permutation_refuses_labels_that_are_none():
    with pytest.raises(ValueError, match="0 or more, found -1"):
        data.stratified_permutation(torch.tensor([-1, 0, 1]))


def test_the_permutation_is_fixed_and_random_within_classes():
    labels = torch.arange(1000) % 10
    order = data.stratified_permutation(labels)
    assert torch.equal(order, data.stratified_permutation(labels))
    assert not torch.equal(order, data.stratified_permutation(labels, seed=1))
    assert not torch.equal(order[labels[order] == 0], torch.arange(0, 1000, 10))
    first = labels[order[:10]].tolist()
    assert sorted(first) == list(range(10)) != first


# image i holds the number i
NUMBERED = Split(torch.arange(100.0).view(-1, 1, 1, 1), torch.arange(100) % 5)


def members(split):
    return split.images.flatten().int().tolist()


def test_subsets_are_disjoint_and_held_out_ones_do_not_depend_on_n_train():
    parts = data.subset(NUMBERED, 20, 10, 15)
    train, *held_out = map(members, parts)
    assert [len(part) for part in parts] == [20, 10, 15]
    assert len({*train, *held_out[0], *held_out[1]}) == 45
    assert [part.labels.bincount().tolist() for part in parts[:2]] == [[4] * 5, [2] * 5]
    assert all((part.images.flatten() % 5 == part.labels).all() for part in parts)
    longer, *same = map(members, data.subset(NUMBERED, 40, 10, 15))
    assert longer[:20] == train and same == held_out
    rest = members(data.subset(NUMBERED, None, 10, 15)[0])
    assert len(rest) == 75 and rest[:40] == longer
    every, validation, measure = data.subset(NUMBERED)
    assert sorted(members(every)) == list(range(100)) and len(validation) == len(measure) == 0
    assert validation.images.shape == (0, 1, 1, 1)


@pytest.mark.parametrize(
    "numbers",
    [(91, 10, 0), (101,), (0,), (-1,), (10, -5), (None, 60, 40), (None, 0, 101), (1, 0, -1)],
)
def test_subset_errors_give_the_numbers(numbers):
    with pytest.raises(ValueError, match=r"n_train=.*from 100 images"):
        data.subset(NUMBERED, *numbers)


# ---- image folders


def test_image_folders_of_ones_own(root):
    write(root / "pets.zip", pets())
    loaded = load("pets", normalize="unit")
    assert loaded.class_names == ("cat", "dog") and loaded.num_classes == 2
    assert loaded.train.images.shape == (3, 3, 4, 4) and loaded.test.images.shape == (2, 3, 4, 4)
    corners = loaded.train.images[:, :, 0, 0]
    assert bytes_of(corners) == [[1] * 3, [102] * 3, [110] * 3]  # 2.png, 10.png
    assert loaded.train.labels.tolist() == [0, 1, 1] and loaded.test.labels.tolist() == [0, 1]
    assert bytes_of(loaded.test.images[1].unique()) == [151]  # grey became RGB


def named(change):
    """The files of `pets` under other names."""
    return {change(name): content for name, content in pets().items()}


NAMED = {
    "other order": dict(reversed(pets().items())),
    "folder": pets(),
    "folder in a folder": pets("all pets/"),
    "top": pets("all pets/"),
    "top called like a split": named(lambda name: "train/" + name),
    "val": named(lambda name: name.replace("test/", "val/")),
    "validation": named(lambda name: name.replace("test/", "validation/")),
    "capitals": named(lambda name: name.replace("train/", "Train/").replace("test/", "TEST/")),
    "backslashes": named(lambda name: name.replace("/", "\\")),
    "dots": named(lambda name: "./" + name),
    "jfif": named(lambda name: name.replace(".png", ".jfif") if "dog" in name else name),
    "no suffix": named(lambda name: name.removesuffix(".png")),
    "extra": pets() | {"extra/1.png": encoded(7)},
}


@pytest.mark.parametrize("case", NAMED)
def test_names_are_read_as_people_mean_them(root, case):
    write(root / ("pets" if "folder" in case else "pets.zip"), NAMED[case])
    write(root / "plain.zip", pets())
    with pytest.warns(RuntimeWarning, match=r"files were passed over \(.*notes"):
        found = load("pets")
    assert found.sha256 == load("plain").sha256
    assert [file.name[:4] for file in sorted(paths.cache_dir().iterdir())] == ["pets", "plai"]


def test_images_are_sorted_by_their_numbers_whatever_the_digits():
    names = ["a10.png", "a2.png", "a١1.png", "a1b1.png"]  # an Arabic one between
    assert sorted(names, key=readers._natural) == ["a1b1.png", "a2.png", "a10.png", "a١1.png"]


def test_an_archive_packed_in_another_way_is_said(root):
    write(root / "pets.zip", pets())
    content = bytearray((root / "pets.zip").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.find(signature)
        while at >= 0:
            content[at + offset] = 9  # "deflate64"
            at = content.find(signature, at + 1)
    (root / "pets.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"pets.zip: .* encrypted or packed in a way"):
        load("pets")


SEVEN = "train/dog/7.png"
FAULTS = [
    ({SEVEN: encoded(7, (6, 5))}, rf"{SEVEN} is 6×5 pixels, but train/cat/1.png is 4×4"),
    ({SEVEN: encoded(7)[:45]}, f"{SEVEN} cannot be read"),
    ({SEVEN: encoded(7, mode="L").replace(b"IHDR", b"IHDX")}, f"{SEVEN} cannot be read"),
    ({SEVEN: encoded(np.full((4, 4), 40_000, np.uint16))}, "8 bits a channel"),
    ({"test/bird/1.png": encoded(7)}, "test classes without training images: bird"),
    ({"train/dog/8.xyz": b"what is this?"}, "train/dog/8.xyz cannot be read as an image"),
    (lambda content: content[:-40], "truncated or no zip archive"),
    (
        lambda content: flipped(content, content.index(b"IDAT") + 6, by=0xFF),
        r"\.png .*(truncated or altered|cannot be read)",
    ),
]


def flipped(content, at, by=1):
    return content[:at] + bytes([content[at] ^ by]) + content[at + 1 :]


def test_what_stands_twice_in_an_archive_is_refused(root):
    write(root / "pets.zip", pets() | {"train\\cat\\1.png": encoded(9)})
    refused(r"holds train/cat/1\.png more than once")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "MPO"])
def test_a_file_of_several_pictures_is_refused_but_for_a_camera_s_previews(root, kind):
    more = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    several = encoded(102, kind=kind, save_all=True, append_images=more)
    write(root / "pets.zip", pets() | {"train/dog/2.png": several})
    if kind == "MPO":
        assert bytes_of(load("pets", normalize="unit").train.images)[1][0][0][0] == 102
    else:
        refused(r"dog/2.png .*it holds 3 pictures; one a file")


def test_a_set_that_is_not_scaled_yet_can_be_sent_to_another_process():
    raw = data.read("digits")
    sent = pickle.loads(pickle.dumps(raw))
    assert torch.equal(sent.scale(sent.test.images), load("digits").test.images)


@pytest.mark.parametrize("change, said", FAULTS)
def test_faults_in_image_folders_are_named(root, change, said):
    archive = root / "pets.zip"
    write(archive, pets() if callable(change) else pets() | change)
    if callable(change):
        archive.write_bytes(change(archive.read_bytes()))
    assert "train/<class>/*" in refused(said)


def test_a_letter_written_in_two_ways_is_one_class(root):
    decomposed = "e\u0301pagneul"
    files = {f"train/{decomposed}/{k}.png": encoded(k) for k in range(2)}
    files |= {"train/cat/1.png": encoded(7), "test/cat/1.png": encoded(8)}
    write(root / "pets.zip", files | {"test/\u00e9pagneul/1.png": encoded(9)})
    assert load("pets").class_names == ("cat", "\u00e9pagneul")


def seven(root, content):
    """The pixels of the first channel of an image of `pets`."""
    write(root / "pets.zip", pets() | {SEVEN: content})
    return bytes_of(load("pets", normalize="unit").train.images[2, 0])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(root, mode):
    ink = Image.new("L", (4, 4), 0)
    ink.paste(255, (0, 0, 2, 4))  # the left half
    image = Image.new(mode, (4, 4), 0)  # black all over
    image.putalpha(ink)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert seven(root, buffer.getvalue()) == [[0, 0, 255, 255]] * 4


def test_an_image_is_turned_as_it_says(root):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0] = 200  # the top row
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: the top becomes the right
    assert seven(root, encoded(pixels, exif=exif)) == [[0, 0, 0, 200]] * 4


def test_a_class_that_cannot_be_listed_is_an_error_and_not_left_out(root, monkeypatch):
    write(root / "pets", pets())
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "dog":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"dog cannot be listed \(Permission denied\); make it"):
        load("pets")


def test_links_to_a_folder_above_are_not_followed_round_and_round(root):
    write(root / "pets", pets())
    (root / "pets" / "train" / "cat" / "self").symlink_to(root / "pets" / "train" / "cat")
    assert len(load("pets").train.images) == 3


def test_archives_of_another_kind_and_two_of_one_name_are_said(root):
    write(root / "other.zip", pets())
    (root / "other.zip").rename(root / "pets.ZIP")
    assert load("pets").class_names == ("cat", "dog")
    write(root / "both.zip", pets())
    write(root / "both", pets())
    (root / "ball.tar.gz").write_bytes(b"")
    write(root / "nested.zip", {"pets.zip": b""})
    write(root / "flat.zip", {"cat/1.png": encoded(1)})
    refused("both.zip and .*both are there: keep one", "both")
    refused("ball.tar.gz is there, but .* a zip file", "ball", ValueError)
    refused("the archive pets.zip, which has to be unpacked", "nested")
    refused("has to hold train/<class>/.*; it holds cat/", "flat")


# ---- cache


@pytest.fixture
def no_decoding(monkeypatch):
    """Called in a test, makes decoding fail: what is loaded then comes from the cache."""
    return lambda: monkeypatch.setattr(
        readers, "_decode_images", lambda *_: pytest.fail("decoded again")
    )


def test_a_second_load_comes_from_the_cache_and_changed_files_are_decoded_anew(
    root, cache, no_decoding
):
    write(root / "pets", pets())
    before = sorted(root.rglob("*"))
    first = load("pets")
    assert [file.suffix for file in cache.iterdir()] == [".npz"]
    assert sorted(root.rglob("*")) == before
    write(root / "pets", {"train/dog/2.png": encoded(103)})
    assert load("pets").sha256 != first.sha256 and len(list(cache.iterdir())) == 2
    write(root / "pets", pets())
    no_decoding()
    again = load("pets")
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.test.labels, again.test.labels)
    assert (first.sha256, first.class_names) == (again.sha256, again.class_names)


DAMAGE = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "a pixel": lambda whole: flipped(whole, whole.index(b"NUMPY") + 130),
    "empty": lambda whole: b"",
    "other": lambda whole: b"not a cache" * 99,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_rebuilt(root, cache, no_decoding, damage):
    write(root / "pets.zip", pets())
    first = load("pets")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert torch.equal(load("pets").train.images, first.train.images)
    assert list(cache.iterdir()) == [file] and len(file.read_bytes()) == len(whole)
    no_decoding()
    load("pets")


def test_a_cache_that_cannot_be_written_warns_once(root, tmp_path, monkeypatch, recwarn):
    # a file where a folder should be: fails for every user, the administrator included
    (tmp_path / "file").touch()
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "file" / "cache"))
    write(root / "pets.zip", pets())
    assert len(load("pets").train) == len(load("pets").train) == 3
    (message,) = [str(w.message) for w in recwarn if "CACHE_DIR" in str(w.message)]
    assert str(tmp_path / "file") in message


def test_a_full_disk_leaves_no_partial_cache(root, cache, monkeypatch):
    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    write(root / "pets.zip", pets())
    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert len(load("pets").train) == 3
    assert list(cache.iterdir()) == []


# ---- Tiny ImageNet

WNIDS = ["n03", "n01", "n04", "n02"]


def tiny(having, top="tiny-imagenet-200/"):
    """The official layout with four classes, of which this part has `having`; val_1801 stands in
    train, too.
    """
    shown = [(f"val_{at}.JPEG", WNIDS[at % 4]) for at in (0, 1, 2, 3, 5, 1801, 10)]
    lines = "".join(f"{name}\t{wnid}\t0\t0\t63\t63\n" for name, wnid in shown)
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01\tcat"}
    files["val/val_annotations.txt"] = lines.encode()
    grey = encoded(90, (8, 8), kind="JPEG")
    files |= {f"val/images/{name}": grey for name, wnid in shown if wnid in having}
    for wnid in having:
        image = encoded(40 * WNIDS.index(wnid) + 10, (8, 8), kind="JPEG")
        files |= {f"train/{wnid}/images/{wnid}_{at}.JPEG": image for at in range(3)}
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
    return {top + name: content for name, content in files.items()}


def test_tiny_imagenet_in_two_parts(root):
    write(root / "tiny-imagenet-200-part1.zip", tiny(WNIDS[:2]))
    # one class is in both, and counts once
    write(root / "tiny-imagenet-200-part2.zip", tiny(WNIDS[1:]))
    loaded = load("tiny_imagenet", classes=4, normalize="unit")
    assert loaded.class_names == tuple(WNIDS)  # in the order of wnids.txt
    assert loaded.train.labels.bincount().tolist() == [3] * 4
    corners = bytes_of(loaded.train.images[::3, 0, 0, 0])
    assert corners == pytest.approx([10, 50, 90, 130], abs=2)
    assert loaded.test.labels.tolist() == [0, 1, 1, 2, 2, 3]  # of seven: val_1801 is left out
    assert len(load("tiny_imagenet", classes=2).train) == 6


@pytest.mark.parametrize("form", ["unpacked", "sorted", "sorted and annotated"])
def test_tiny_imagenet_s_validation_images_may_lie_in_folders_by_class(root, form):
    files = tiny(WNIDS)
    write(root / "tiny-imagenet-200.zip", files)
    files = {name.removeprefix("tiny-imagenet-200/"): content for name, content in files.items()}
    lines = files["val/val_annotations.txt"].decode().splitlines() if "sorted" in form else ()
    for name, wnid in (line.split()[:2] for line in lines):
        if image := files.pop(f"val/images/{name}", None):
            files[f"val/{wnid}/images/{name}"] = image
    if form == "sorted":
        del files["val/val_annotations.txt"]
    write(root / "other" / "tiny-imagenet-200", files)
    hashes = {load("tiny_imagenet", root=at, classes=4).sha256 for at in (root, root / "other")}
    assert len(hashes) == 1


def test_too_few_classes_say_how_many_there_are(root):
    write(root / "tiny-imagenet-200-part1.zip", tiny(WNIDS[:2]))
    for options, count in (({"classes": 3}, 3), ({}, 200)):
        said = rf"classes={count} .* only 2 of the first {count}"
        refused(said, "tiny_imagenet", DataNotFoundError, **options)
    assert load("tiny_imagenet", classes=2).num_classes == 2


@pytest.mark.parametrize(
    "lost, said",
    [
        ("train/n01/images/n01_1.JPEG", "incomplete"),
        ("val/images/val_5.JPEG", "incomplete"),
        ("wnids.txt", r"wnids\.txt is missing"),
    ],
)
def test_an_incomplete_tiny_imagenet_is_refused(root, lost, said):
    files = tiny(WNIDS)
    del files[f"tiny-imagenet-200/{lost}"]
    write(root / "tiny-imagenet-200.zip", files)
    refused(said, "tiny_imagenet", classes=4)


# ---- MNIST and CIFAR


@pytest.fixture
def mnist(root, monkeypatch):
    """Four small idx files (5 training, 3 test images) whose md5 stand in for the published ones;
    their folder, and by name what is in them.
    """
    rng, images, md5s = np.random.default_rng(0), {}, {}
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in zip(sources.IDX_MD5["MNIST"], (5, 5, 3, 3), strict=True):
        shape, high = ((count, 28, 28), 256) if "images" in name else ((count,), 10)
        images[name] = rng.integers(0, high, shape, dtype=np.uint8)
        lengths = b"".join(length.to_bytes(4, "big") for length in shape)
        content = bytes([0, 0, 8, len(shape)]) + lengths + images[name].tobytes()
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        md5s[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setitem(sources.IDX_MD5, "MNIST", md5s)
    return raw, images


def test_mnist_zipped_or_not(root, mnist):
    raw, images = mnist
    zipped = load("mnist", normalize="unit")
    assert zipped.test.images.shape == (3, 1, 28, 28)
    assert bytes_of(zipped.train.images[:, 0]) == images["train-images-idx3-ubyte"].tolist()
    assert zipped.test.labels.tolist() == images["t10k-labels-idx1-ubyte"].tolist()
    scaled = load("mnist")
    assert torch.allclose(scaled.test.images, (zipped.test.images - 0.1307) / 0.3081)
    for file in list(raw.iterdir()):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert load("mnist").sha256 == zipped.sha256


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda content: content[:-100], "truncated or no gzip"),
        (lambda content: gzip.compress(flipped(gzip.decompress(content), -1)), "altered: the md5"),
        (lambda content: b"<html>not found</html>", "no gzip"),
    ],
    ids=["cut", "altered", "text"],
)
def test_damaged_mnist_is_refused_even_with_a_cache(root, mnist, damage, said):
    load("mnist")
    file = mnist[0] / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    message = refused(said, "mnist")
    assert str(file) in message and "make data DATASET=mnist" in message


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

    name, rng = request.param, np.random.default_rng(0)
    cifar = readers.CIFAR100
    if name == "cifar10":
        cifar = replace(readers.CIFAR10, train_parts=("data_batch_1", "data_batch_2"))
    counts = dict.fromkeys(cifar.train_parts, 400 // len(cifar.train_parts))
    counts[cifar.test_parts[0]] = 100
    labels = {part: rng.integers(0, 4, count) for part, count in counts.items()}
    images = {
        part: rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        for part, count in counts.items()
    }
    splits = [
        tuple(np.concatenate([of[part] for part in parts]) for of in (images, labels))
        for parts in (cifar.train_parts, cifar.test_parts)
    ]
    if cifar.sort_within_classes:
        splits = [(pixels[readers.canonical_order(pixels, of)], of) for pixels, of in splits]
    names = pickle.dumps({cifar.class_names: ["ant", "bee", "cat", "dog"]})

    def pickled():
        """As torchvision keeps it; the images of a class stand in another order than in the
        archive.
        """
        files = {cifar.meta: names}
        for part in counts:
            pixels = images[part].copy()
            for label in range(4) if cifar.sort_within_classes else ():
                places = np.flatnonzero(labels[part] == label)
                pixels[places] = pixels[rng.permutation(places)]
            rows = pixels.transpose(0, 3, 1, 2).reshape(-1, 3072)
            files[part] = pickle.dumps({"data": rows, cifar.labels: labels[part].tolist()})
        write(root / cifar.folder, files)
        md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
        kind = getattr(torchvision.datasets, cifar.torchvision)
        for parts in ("train", "test"):
            listed = [[part, md5[part]] for part in getattr(cifar, f"{parts}_parts")]
            monkeypatch.setattr(kind, f"{parts}_list", listed)
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5[cifar.meta]})
        return root / cifar.folder

    def archived(order=slice(None), trusted=True):
        """The lossless archive; `order` of the training images in it; `trusted`: its own hash is
        the expected one.
        """
        files = {f"{cifar.top}/{cifar.meta}": names}
        for part in counts:
            known = json.dumps({cifar.labels: labels[part].tolist()})
            files[f"{cifar.top}/{part}.json"] = known.encode()
            shown = images[part] if part in cifar.test_parts else images[part][order]
            for k in range(0, len(shown), 100):
                strip = encoded(shown[k : k + 100].reshape(-1, 32, 3), kind="WEBP", lossless=True)
                files[f"{cifar.top}/{part}/{k // 100:03}.webp"] = strip
        archive = root / cifar.archive
        write(archive, files)
        use(hashlib.sha256(archive.read_bytes()).hexdigest() if trusted else "0" * 64)
        return archive

    def use(sha256):
        known = tuple(pixels_sha256(pixels) for pixels, _ in splits)
        spec = replace(cifar, pixels_sha256=known, archive_sha256=sha256)
        source = data._published(readers.find_cifar, readers.read_cifar, spec)
        monkeypatch.setitem(data._BUILT_IN, name, source)

    use(cifar.archive_sha256)
    return name, pickled, archived, splits


def test_cifar_is_the_same_from_both_sources(root, small_cifar, capsys):
    name, pickled, archived, splits = small_cifar

    def said():
        data.main([name, "--root", str(root)])
        return capsys.readouterr().out

    archive = archived()
    found = load(name, normalize="unit")
    for split, (pixels, labels) in zip((found.train, found.test), splits, strict=True):
        assert bytes_of(split.images.permute(0, 2, 3, 1)) == pixels.tolist()
        assert split.labels.tolist() == labels.tolist()
    assert found.class_names == ("ant", "bee", "cat", "dog")
    assert f"read from {archive}\n" in said()
    folder = pickled()
    both = f"read from {folder} ({archive.name} is there, too: the official files go first)"
    assert both in said()
    assert load(name).sha256 == found.sha256
    archive.unlink()
    assert load(name).sha256 == found.sha256
    assert f"read from {folder}\n" in said()


def test_faults_in_cifar_files_are_named(root, small_cifar):
    name, pickled, archived, _ = small_cifar
    refused(r"neither .* is there(.|\n)*make data DATASET=", name, DataNotFoundError)
    archived(trusted=False)
    refused(r"truncated or altered: its SHA-256 is [0-9a-f]{64}, not 0{64}", name)
    # an archive that is trusted, but in which the images stand in another order
    archived(order=slice(None, None, -1))
    refused("other images than the published ones, or holds them in another order", name)
    folder = pickled()
    test_file = folder / ("test" if name == "cifar100" else "test_batch")
    test_file.write_bytes(b"altered")
    refused("missing, truncated or altered", name)
    test_file.unlink()
    refused(f"lacks {test_file.name}: complete it, or remove it", name, DataNotFoundError)


def test_images_of_cifar_100_have_one_order():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, 30)
    order = readers.canonical_order(images, labels)
    assert sorted(order) == list(range(30)) and (labels[order] == labels).all()
    for label in range(3):
        digests = [pixels_sha256(image) for image in images[order][labels == label]]
        assert digests == sorted(digests)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_real_archives_decode_to_the_published_pixels(name):
    cifar = {"cifar10": readers.CIFAR10, "cifar100": readers.CIFAR100}[name]
    if not (paths.data_dir() / cifar.archive).is_file():
        pytest.skip(f"{cifar.archive} is not in {paths.data_dir()}; DATA_DIR names its folder")
    raw = data.read(name)
    parts = (raw.train, raw.test)
    found = tuple(pixels_sha256(part.images.permute(0, 2, 3, 1).numpy()) for part in parts)
    assert found == cifar.pixels_sha256
    assert (len(raw.train), len(raw.test)) == (50_000, 10_000)
    assert set(raw.train.labels.bincount().tolist()) == {50_000 // raw.num_classes}


def test_real_mnist():
    if not (paths.data_dir() / "MNIST" / "raw").is_dir():
        pytest.skip(f"MNIST is not in {paths.data_dir()}; `make data DATASET=mnist` brings it")
    loaded = load("mnist", normalize="unit")
    assert len(loaded.train) == 60_000 and len(loaded.test) == 10_000 and loaded.num_classes == 10
    counts = "5923 6742 5958 6131 5842 5421 5918 6265 5851 5949"
    assert loaded.train.labels.bincount().tolist() == [int(count) for count in counts.split()]
    assert loaded.train.images.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert loaded.train.images.std().item() == pytest.approx(0.3081, abs=5e-5)


# ---- downloads

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """/plain sends the content, /short hangs up half way, /wrong sends other bytes."""

    requests: list  # of paths, set by the fixture

    def do_GET(self):
        self.requests.append(self.path)
        if self.path == "/gone":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        body = CONTENT[::-1] if self.path == "/wrong" else CONTENT
        self.wfile.write(body[: len(body) // 2] if self.path == "/short" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        serve = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        serve.start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        running.requests = handler.requests
        yield running
        running.shutdown()


def test_fetch_tries_mirrors_in_order_and_only_once(server, tmp_path):
    target = tmp_path / "new" / "file.bin"
    mirrors = [f"{server.url}/{name}" for name in ("gone", "wrong", "short", "plain", "plain")]
    assert fetch(mirrors, target, MD5) == target
    assert target.read_bytes() == CONTENT and os.listdir(target.parent) == ["file.bin"]
    assert server.requests == ["/gone", "/wrong", "/short", "/plain"]
    fetch(mirrors, target, MD5)  # it is there
    assert len(server.requests) == 4


def test_fetch_keeps_nothing_with_the_wrong_hash_and_lists_what_was_tried(server, tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"what stood there stays")
    urls = [f"{server.url}/{name}" for name in ("gone", "wrong", "short")]
    with pytest.raises(DownloadError) as caught:
        fetch(urls, target, MD5)
    assert all(part in str(caught.value) for part in (*urls, "404", MD5, str(target)))
    assert os.listdir(tmp_path) == ["file"] and target.read_bytes() == b"what stood there stays"


def test_published_files_have_a_mirror_and_a_hash_each():
    assert set(sources.FILES) == set(data.NAMES) - {"digits"}
    assert len(sources.FILES["mnist"][0].urls) >= 2
    for remote in itertools.chain(*sources.FILES.values()):
        assert len(remote.md5) == 32 and all(url.startswith("http") for url in remote.urls)


def test_the_command_downloads_what_is_missing_and_nothing_else(
    root, mnist, server, monkeypatch, capsys
):
    def said(name):
        data.main([name])
        return capsys.readouterr().out

    assert "nothing to download" in said("digits")
    assert "5 training and 3 test images of 10 classes" in said("mnist")  # it is there
    with pytest.raises(SystemExit, match="digits, mnist"):
        said("mnits")
    file = mnist[0] / "t10k-labels-idx1-ubyte.gz"
    published = file.read_bytes()
    file.unlink()
    refused("t10k-labels-idx1-ubyte.gz is missing", "mnist", DataNotFoundError)
    md5 = hashlib.md5(published).hexdigest()
    remote = sources.Remote((f"{server.url}/plain",), f"MNIST/raw/{file.name}", md5)
    monkeypatch.setitem(sources.FILES, "mnist", (remote,))
    monkeypatch.setitem(globals(), "CONTENT", published)
    told = said("mnist")
    assert "is missing" in told and "5 training" in told and file.read_bytes() == published
