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
from lib.data import DataError, Split, corrupt_labels, load, noise_floor, readers, sources
from lib.data.sources import DataNotFoundError, DownloadError, fetch


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """The test's cache folder; the machine's proxy, if any, is kept out of the way of 127.0.0.1."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    data._warn_once.cache_clear()
    return paths.cache_dir()


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


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
    first, second = load("digits"), load("digits", device="cpu").to("cpu")
    assert torch.equal(torch.get_rng_state(), before)
    train, test = first.train, first.test
    assert train.images.shape == (1438, 1, 20, 20) and test.images.shape == (359, 1, 20, 20)
    assert len(train) == 1438
    assert train.images.dtype == torch.float32 and train.labels.dtype == torch.int64
    assert (first.name, first.num_classes, first.class_names) == ("digits", 10, tuple("0123456789"))
    assert torch.equal(train.images, second.train.images)
    assert second.train.images.device.type == "cpu" and second.class_names == first.class_names
    # a changed split would make old runs incomparable
    assert first.sha256 == second.sha256 and first.sha256.startswith("ec56df519c92c742")
    counts = train.labels.bincount()
    assert (counts / (counts + test.labels.bincount()) - 0.8).abs().max() < 0.01


def test_digits_size_and_scale():
    unit, al2, large = (
        load("digits", normalize=normalize, size=size)
        for normalize, size in (("unit", 8), ("al2", 8), ("unit", 32))
    )
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
SOME = torch.arange(1003) % 7


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.75, 1.0])
def test_so_many_labels_are_corrupted_and_none_to_the_true_one(fraction):
    for labels, law in ((LABELS, "bernoulli"), (SOME, "exact")):
        before, classes = labels.clone(), int(labels.max()) + 1
        new, changed = corrupt_labels(labels, fraction, classes, generator=seeded(), law=law)
        assert torch.equal(labels, before)
        assert new.dtype == torch.int64 and changed.dtype == torch.bool
        assert torch.equal(new != labels, changed) and new.min() >= 0 and new.max() < classes
        if law == "exact":
            assert changed.sum() == round(fraction * len(labels))
        else:
            spread = math.sqrt(fraction * (1 - fraction) / len(labels))
            assert abs(changed.double().mean() - fraction) <= 4 * spread


def test_corrupted_labels_are_uniform_over_the_other_classes():
    new, changed = corrupt_labels(LABELS, 0.75, 10, generator=seeded())
    pairs = 10 * LABELS[changed] + new[changed]
    counts = torch.bincount(pairs, minlength=100).view(10, 10).double()
    assert (counts.diagonal() == 0).all()
    expected = counts.sum(1, keepdim=True) / 9
    # 10 rows of 8 degrees of freedom
    chi_square = ((counts - expected) ** 2 / expected).fill_diagonal_(0).sum()
    assert abs(chi_square - 80) < 4 * math.sqrt(2 * 80)


@pytest.mark.parametrize("law", ["bernoulli", "exact"])
def test_corruption_is_nested_over_fractions(law):
    fractions = (0.25, 0.5, 0.75)
    results = [corrupt_labels(LABELS, p, 10, generator=seeded(), law=law) for p in fractions]
    for (fewer, changed), (more, changed_more) in itertools.pairwise(results):
        assert (changed <= changed_more).all() and torch.equal(fewer[changed], more[changed])


def test_corruption_depends_on_the_generator_alone():
    first, again, other = [
        (torch.manual_seed(k), corrupt_labels(LABELS, 0.5, 10, generator=seeded(seed))[0])[1]
        for k, seed in enumerate((3, 3, 4))
    ]
    assert torch.equal(first, again) and not torch.equal(first, other)


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
    torch.manual_seed(1)
    order = data.stratified_permutation(labels)
    torch.manual_seed(2)
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


@pytest.mark.parametrize("target", ["pets.zip", "pets"])
@pytest.mark.parametrize("top", ["", "all pets/"])
@pytest.mark.parametrize("test", ["test/", "val/"])
def test_image_folders_of_ones_own(root, target, top, test):
    write(root / target, {k.replace("test/", test): v for k, v in pets(top).items()})
    loaded = load("pets", root=root, normalize="unit")
    assert loaded.class_names == ("cat", "dog") and loaded.num_classes == 2
    assert loaded.train.images.shape == (3, 3, 4, 4) and loaded.test.images.shape == (2, 3, 4, 4)
    corners = loaded.train.images[:, :, 0, 0]
    assert bytes_of(corners) == [[1] * 3, [102] * 3, [110] * 3]  # 2.png, 10.png
    assert loaded.train.labels.tolist() == [0, 1, 1] and loaded.test.labels.tolist() == [0, 1]
    assert bytes_of(loaded.test.images[1].unique()) == [151]  # grey became RGB


def test_archive_order_and_form_do_not_matter(root):
    write(root / "a.zip", pets())
    write(root / "b.zip", dict(reversed(pets("top/").items())))
    write(root / "c", pets())
    assert len({load(name, root=root).sha256 for name in "abc"}) == 1
    assert {file.name[0] for file in paths.cache_dir().iterdir()} == set("abc")


SEVEN = "train/dog/7.png"
SIXTEEN_BITS = encoded(np.full((4, 4), 40_000, np.uint16))
FAULTS = [
    ({SEVEN: encoded(7, (6, 5))}, rf"{SEVEN} is 6×5 pixels, but train/cat/1.png is 4×4"),
    ({SEVEN: encoded(7)[:45]}, f"{SEVEN} cannot be read"),
    ({SEVEN: encoded(7, mode="L").replace(b"IHDR", b"IHDX")}, f"{SEVEN} cannot be read"),
    ({SEVEN: SIXTEEN_BITS}, "8 bits a channel"),
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
    again = {"train\\cat\\1.png": encoded(9)}
    write(root / "pets.zip", pets() | again)
    with pytest.raises(DataError, match=r"holds train/cat/1\.png more than once"):
        load("pets", root=root)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "MPO"])
def test_a_file_of_several_pictures_is_refused_but_for_a_camera_s_previews(root, kind):
    more = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    several = encoded(102, kind=kind, save_all=True, append_images=more)
    write(root / "pets.zip", pets() | {"train/dog/2.png": several})
    if kind == "MPO":
        assert bytes_of(load("pets", root=root, normalize="unit").train.images)[1][0][0][0] == 102
        return
    with pytest.raises(DataError, match=r"dog/2.png .*it holds 3 pictures; one a file"):
        load("pets", root=root)


def test_a_set_that_is_not_scaled_yet_can_be_sent_to_another_process():
    raw = data.read("digits")
    sent = pickle.loads(pickle.dumps(raw))
    assert torch.equal(sent.scale(sent.test.images), load("digits").test.images)


@pytest.mark.parametrize("change, said", FAULTS)
def test_faults_in_image_folders_are_named(root, change, said):
    if callable(change):
        write(root / "pets.zip", pets())
        (root / "pets.zip").write_bytes(change((root / "pets.zip").read_bytes()))
    else:
        write(root / "pets.zip", pets() | change)
    with pytest.raises(DataError, match=said) as caught:
        load("pets", root=root)
    assert "train/<class>/*" in str(caught.value)


def test_an_archive_without_the_layout_is_refused(root):
    write(root / "pets.zip", {"cat/1.png": encoded(1)})
    with pytest.raises(DataError, match=r"has to hold train/<class>/.*; it holds cat/"):
        load("pets", root=root)


def named(change):
    """The files of `pets` under other names."""
    return {change(name): content for name, content in pets().items()}


@pytest.mark.parametrize(
    "files",
    [
        named(lambda name: name.replace("train/", "Train/").replace("test/", "TEST/")),
        named(lambda name: name.replace("test/", "validation/")),
        named(lambda name: "train/" + name),  # a top folder that is called like a split
        named(lambda name: name.replace("/", "\\")),
        named(lambda name: "./" + name),
        named(lambda name: name.replace(".png", ".jfif") if "dog" in name else name),
        named(lambda name: name.removesuffix(".png")),
        pets() | {"extra/1.png": encoded(7)},
    ],
    ids=["capitals", "validation", "top", "backslashes", "dots", "jfif", "no suffix", "extra"],
)
def test_names_are_read_as_people_mean_them(root, files):
    write(root / "pets.zip", files)
    write(root / "plain.zip", pets())
    with pytest.warns(RuntimeWarning, match=r"files were passed over \(.*notes"):
        found = load("pets", root=root)
    assert found.sha256 == load("plain", root=root).sha256


def test_a_letter_written_in_two_ways_is_one_class(root):
    decomposed = "e\u0301pagneul"
    files = {f"train/{decomposed}/{k}.png": encoded(k) for k in range(2)}
    files |= {"train/cat/1.png": encoded(7), "test/cat/1.png": encoded(8)}
    write(root / "pets.zip", files | {"test/\u00e9pagneul/1.png": encoded(9)})
    assert load("pets", root=root).class_names == ("cat", "\u00e9pagneul")


def drawing(mode):
    """Black ink in the alpha channel of an image that is black all over."""
    ink = Image.new("L", (4, 4), 0)
    ink.paste(255, (0, 0, 2, 4))  # the left half
    image = Image.new("LA" if mode == "LA" else "RGBA", (4, 4), 0)
    image.putalpha(ink)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(root, mode):
    buffer = io.BytesIO()
    drawing(mode).save(buffer, "PNG")
    write(root / "pets.zip", pets() | {SEVEN: buffer.getvalue()})
    image = load("pets", root=root, normalize="unit").train.images[2]
    assert bytes_of(image[0]) == [[0, 0, 255, 255]] * 4


def test_an_image_is_turned_as_it_says(root):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0] = 200  # the top row
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: the top becomes the right
    content = encoded(pixels, exif=exif)
    write(root / "pets.zip", pets() | {SEVEN: content})
    image = load("pets", root=root, normalize="unit").train.images[2]
    assert bytes_of(image[0]) == [[0, 0, 0, 200]] * 4


def test_links_to_a_folder_above_are_not_followed_round_and_round(root):
    write(root / "pets", pets())
    (root / "pets" / "train" / "cat" / "self").symlink_to(root / "pets" / "train" / "cat")
    assert len(load("pets", root=root).train.images) == 3


def test_archives_of_another_kind_and_two_of_one_name_are_said(root):
    write(root / "other.zip", pets())
    (root / "other.zip").rename(root / "pets.ZIP")
    assert load("pets", root=root).class_names == ("cat", "dog")
    write(root / "both.zip", pets())
    write(root / "both", pets())
    with pytest.raises(DataError, match=r"both.zip and .*both are there: keep one"):
        load("both", root=root)
    (root / "ball.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ball.tar.gz is there, but .* a zip file"):
        load("ball", root=root)
    write(root / "nested.zip", {"pets.zip": b""})
    with pytest.raises(DataError, match=r"the archive pets.zip, which has to be unpacked"):
        load("nested", root=root)


@pytest.mark.parametrize("annotated", [False, True])
def test_tiny_imagenet_s_validation_images_may_lie_in_folders_by_class(root, annotated):
    files = tiny(WNIDS)
    official = {name.removeprefix("tiny-imagenet-200/"): content for name, content in files.items()}
    moved = {k: v for k, v in official.items() if not k.startswith("val/") or annotated}
    for line in official["val/val_annotations.txt"].decode().splitlines():
        name, wnid = line.split()[:2]
        moved.pop(f"val/images/{name}", None)
        moved[f"val/{wnid}/images/{name}"] = official[f"val/images/{name}"]
    write(root / "sorted" / "tiny-imagenet-200", moved)
    write(root / "official" / "tiny-imagenet-200", official)
    hashes = {
        load("tiny_imagenet", root=root / kind, classes=4).sha256 for kind in ("official", "sorted")
    }
    assert len(hashes) == 1


# ---- cache


@pytest.fixture
def no_decoding(monkeypatch):
    """Called in a test, makes decoding fail: what is loaded then comes from the cache."""

    def forbid():
        monkeypatch.setattr(readers, "_decode_images", lambda *_: pytest.fail("decoded again"))

    return forbid


def test_a_second_load_comes_from_the_cache_and_changed_files_are_decoded_anew(
    root, cache, no_decoding
):
    write(root / "pets", pets())
    before = sorted(root.rglob("*"))
    first = load("pets", root=root)
    assert [file.suffix for file in cache.iterdir()] == [".npz"]
    assert sorted(root.rglob("*")) == before
    write(root / "pets", {"train/dog/2.png": encoded(103)})
    assert load("pets", root=root).sha256 != first.sha256 and len(list(cache.iterdir())) == 2
    write(root / "pets", pets())
    no_decoding()
    again = load("pets", root=root)
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
    first = load("pets", root=root)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert torch.equal(load("pets", root=root).train.images, first.train.images)
    assert list(cache.iterdir()) == [file] and len(file.read_bytes()) == len(whole)
    no_decoding()
    load("pets", root=root)


def test_a_cache_that_cannot_be_written_warns_once(root, tmp_path, monkeypatch, recwarn):
    # a file where a folder should be: fails for every user, the administrator included
    (tmp_path / "file").touch()
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "file" / "cache"))
    write(root / "pets.zip", pets())
    assert len(load("pets", root=root).train) == len(load("pets", root=root).train) == 3
    (message,) = [str(w.message) for w in recwarn if "CACHE_DIR" in str(w.message)]
    assert str(tmp_path / "file") in message


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
    loaded = load("tiny_imagenet", root=root, classes=4, normalize="unit")
    assert loaded.class_names == tuple(WNIDS)  # in the order of wnids.txt
    assert loaded.train.labels.bincount().tolist() == [3] * 4
    corners = bytes_of(loaded.train.images[::3, 0, 0, 0])
    assert corners == pytest.approx([10, 50, 90, 130], abs=2)
    assert loaded.test.labels.tolist() == [0, 1, 1, 2, 2, 3]  # of seven: val_1801 is left out
    assert len(load("tiny_imagenet", root=root, classes=2).train) == 6


def test_tiny_imagenet_unpacked_equals_the_archive(root, tmp_path):
    write(root / "tiny-imagenet-200.zip", tiny(WNIDS))
    write(tmp_path / "other" / "tiny-imagenet-200", tiny(WNIDS, top=""))
    packed, unpacked = (
        load("tiny_imagenet", root=at, classes=4) for at in (root, tmp_path / "other")
    )
    assert packed.sha256 == unpacked.sha256
    assert torch.equal(packed.test.images, unpacked.test.images)


def test_too_few_classes_say_how_many_there_are(root):
    write(root / "tiny-imagenet-200-part1.zip", tiny(WNIDS[:2]))
    for options, count in (({"classes": 3}, 3), ({}, 200)):
        said = rf"classes={count} .* only 2 of the first {count}"
        with pytest.raises(DataNotFoundError, match=said):
            load("tiny_imagenet", root=root, **options)
    assert load("tiny_imagenet", root=root, classes=2).num_classes == 2


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
    with pytest.raises(DataError, match=said):
        load("tiny_imagenet", root=root, classes=4)


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
    zipped = load("mnist", root=root, normalize="unit")
    assert zipped.test.images.shape == (3, 1, 28, 28)
    assert bytes_of(zipped.train.images[:, 0]) == images["train-images-idx3-ubyte"].tolist()
    assert zipped.test.labels.tolist() == images["t10k-labels-idx1-ubyte"].tolist()
    scaled = load("mnist", root=root)
    assert torch.allclose(scaled.test.images, (zipped.test.images - 0.1307) / 0.3081)
    for file in list(raw.iterdir()):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert load("mnist", root=root).sha256 == zipped.sha256


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
    load("mnist", root=root)
    file = mnist[0] / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=said) as caught:
        load("mnist", root=root)
    assert str(file) in str(caught.value) and "make data DATASET=mnist" in str(caught.value)


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
    is_100 = name == "cifar100"
    cifar = readers.CIFAR100
    if not is_100:
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
    if is_100:
        splits = [(pixels[readers.canonical_order(pixels, of)], of) for pixels, of in splits]
    names = {cifar.class_names: ["ant", "bee", "cat", "dog"]}

    def pickled():
        """As torchvision keeps it; the images of a class stand in another order than in the
        archive.
        """
        files = {cifar.meta: names}
        for part in counts:
            pixels = images[part].copy()
            for label in range(4) if is_100 else ():
                places = np.flatnonzero(labels[part] == label)
                pixels[places] = pixels[rng.permutation(places)]
            rows = pixels.transpose(0, 3, 1, 2).reshape(-1, 3072)
            files[part] = {"data": rows, cifar.labels: labels[part].tolist()}
        files = {file: pickle.dumps(content) for file, content in files.items()}
        write(root / cifar.folder, files)
        md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
        kind = getattr(torchvision.datasets, cifar.torchvision)
        monkeypatch.setattr(kind, "train_list", [[part, md5[part]] for part in cifar.train_parts])
        monkeypatch.setattr(kind, "test_list", [[part, md5[part]] for part in cifar.test_parts])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5[cifar.meta]})
        return root / cifar.folder

    def archived(order=slice(None), trusted=True):
        """The lossless archive; `order` of the training images in it; `trusted`: its own hash is
        the expected one.
        """
        files = {f"{cifar.top}/{cifar.meta}": pickle.dumps(names)}
        for part in counts:
            known = json.dumps({cifar.labels: labels[part].tolist()})
            files[f"{cifar.top}/{part}.json"] = known.encode()
            shown = images[part] if part in cifar.test_parts else images[part][order]
            for k in range(0, len(shown), 100):
                strip = shown[k : k + 100].reshape(-1, 32, 3)
                files[f"{cifar.top}/{part}/{k // 100:03}.webp"] = encoded(
                    strip, kind="WEBP", lossless=True
                )
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
    from_archive = load(name, root=root, normalize="unit")
    for split, (pixels, labels) in zip(
        (from_archive.train, from_archive.test), splits, strict=True
    ):
        found = (split.images * 255).round().permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(found, pixels)
        assert split.labels.tolist() == labels.tolist()
    assert from_archive.class_names == ("ant", "bee", "cat", "dog")
    assert f"read from {archive}\n" in said()
    folder = pickled()
    both = f"read from {folder} ({archive.name} is there, too: the official files go first)"
    assert both in said()
    from_pickles = load(name, root=root, normalize="unit")
    assert from_pickles.sha256 == from_archive.sha256
    assert torch.equal(from_pickles.train.images, from_archive.train.images)
    archive.unlink()
    assert load(name, root=root).sha256 == from_archive.sha256


def test_faults_in_cifar_files_are_named(root, small_cifar):
    name, pickled, archived, _ = small_cifar

    def refused(said, kind=DataError):
        with pytest.raises(kind, match=said):
            load(name, root=root)

    refused(r"neither .* is there(.|\n)*make data DATASET=", DataNotFoundError)
    archived(trusted=False)
    refused(r"truncated or altered: its SHA-256 is [0-9a-f]{64}, not 0{64}")
    archive = archived()
    archive.write_bytes(archive.read_bytes()[:-100])
    refused("truncated or altered")
    # an archive that is trusted, but in which the images stand in another order
    archived(order=slice(None, None, -1))
    refused("other images than the published ones, or holds them in another order")
    folder = pickled()
    test_file = folder / ("test" if name == "cifar100" else "test_batch")
    test_file.write_bytes(b"altered")
    refused("missing, truncated or altered")
    test_file.unlink()
    refused(f"lacks {test_file.name}: complete it, or remove it", DataNotFoundError)


def test_images_of_cifar_100_have_one_order():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, 30)
    order = readers.canonical_order(images, labels)
    assert sorted(order) == list(range(30)) and (labels[order] == labels).all()
    for label in range(3):
        digests = [pixels_sha256(image) for image in images[order][labels == label]]
        assert digests == sorted(digests)
    assert (images[order][readers.canonical_order(images[order], labels)] == images[order]).all()


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
    again = data.read(name)  # from the cache
    assert again.sha256 == raw.sha256 and torch.equal(again.test.images, raw.test.images)


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
    with pytest.raises(DownloadError) as caught:
        fetch([f"{server.url}/{name}" for name in ("gone", "wrong", "short")], target, MD5)
    for part in (f"{server.url}/gone", "404", f"{server.url}/wrong", MD5, str(target), "/short"):
        assert part in str(caught.value)
    assert os.listdir(tmp_path) == ["file"] and target.read_bytes() == b"what stood there stays"


def test_published_files_have_a_mirror_and_a_hash_each():
    assert set(sources.FILES) == set(data.NAMES) - {"digits"}
    assert len(sources.FILES["mnist"][0].urls) >= 2
    for remote in itertools.chain(*sources.FILES.values()):
        assert len(remote.md5) == 32 and all(url.startswith("http") for url in remote.urls)


def test_the_command_downloads_what_is_missing_and_nothing_else(
    root, mnist, server, monkeypatch, capsys
):
    def said(*arguments):
        data.main([*arguments, "--root", str(root)])
        return capsys.readouterr().out

    assert "nothing to download" in said("digits")
    assert "5 training and 3 test images of 10 classes" in said("mnist")  # it is there
    with pytest.raises(SystemExit, match="digits, mnist"):
        said("mnits")
    file = mnist[0] / "t10k-labels-idx1-ubyte.gz"
    published = file.read_bytes()
    file.unlink()
    with pytest.raises(DataNotFoundError, match=r"t10k-labels-idx1-ubyte.gz is missing"):
        load("mnist", root=root)
    md5 = hashlib.md5(published).hexdigest()
    remote = sources.Remote((f"{server.url}/plain",), f"MNIST/raw/{file.name}", md5)
    monkeypatch.setitem(sources.FILES, "mnist", (remote,))
    monkeypatch.setitem(globals(), "CONTENT", published)
    told = said("mnist")
    assert "is missing" in told and "5 training" in told and file.read_bytes() == published
