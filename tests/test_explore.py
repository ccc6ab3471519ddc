"""Notebooks 01 and 02: what stands behind their widgets, called as a reader would."""

import numpy as np
import pytest
import torch
from made import code_cells

from lib import data, losses, paths

COMMITTED = tuple(paths.ROOT / "results" / profile for profile in ("lite", "paper"))


@pytest.fixture(scope="module")
def loaded():
    """What notebook 01 defines, with the committed runs; nothing is shown or trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "EVIDENCE", COMMITTED)
        names = {"display": lambda shown: print(type(shown).__name__)}
        for name, source in code_cells("01_explore").items():
            if not name.endswith("-run") and "if interactive:" not in source:
                exec(source.replace("import display", "import Image"), names)
    return names


@pytest.fixture
def notebook(loaded, monkeypatch, figure_style):
    monkeypatch.setattr(paths, "EVIDENCE", COMMITTED)
    before = dict(loaded)
    yield loaded
    loaded.clear()
    loaded.update(before, trained=[])


NO_MAPS = "no maps of none; there are those of vanillaNet-s, cifar100;"
DEFAULT = ["Bare, penalty none. Epoch 200: 39 of 100", "0.44 below the noise floor of 2.21"]
CALLS = [
    ("show", {}, DEFAULT),
    ("show", {"penalty": "AL2", "epoch": 999}, ["Epoch 700: 69 of 100", "by heart"]),
    ("show", {"source": "lite", "network": "dropout"}, ["DO, penalty none. Epoch 50: "]),
    ("show", {"corruption": 0.3}, ["not run: bare, penalty none, mnist, 30 %, paper"]),
    ("show_entropy", {}, ["vanillaNet. Epoch 100: 29 of 100", "conv4 0.63 of ln 32 = 3.47"]),
    ("show_entropy", {"network": "sr2Net", "reading": "sum", "epoch": 0}, ["sr2Net. Epoch 0: "]),
    ("show_entropy", {"network": "normNet", "size": "m"}, ["normNet. ", "of 64 filters"]),
    ("show_entropy", {"size": "xxl", "network": "dropNet"}, ["not run: dropNet, size xxl"]),
    ("explore", {"network": "none"}, [NO_MAPS]),
]


@pytest.mark.parametrize(("function", "arguments", "said"), CALLS)
def test_what_is_chosen_is_drawn_and_said_in_words(notebook, function, arguments, said, capsys):
    notebook[function](**arguments)
    printed = capsys.readouterr().out
    assert [words for words in said if words not in printed] == []
    assert printed.startswith("Image\n") == (not printed.startswith("no"))


@pytest.mark.parametrize("there", [False, True])
def test_stored_maps_are_drawn_with_their_images_where_the_data_set_is(
    notebook, there, monkeypatch, capsys
):
    """The data set is made up: its hash is that of the stored run, or another one."""
    run = notebook["shown_run"]
    stored = notebook["store"].load([run]).data_hash.iloc[0]
    images = torch.arange(1200)[:, None, None, None].expand(-1, 3, 32, 32).to(torch.uint8)
    split = data.Split(images, torch.arange(1200) % 100)
    digest, names = stored if there else "0", tuple(map(str, range(100)))
    raw = data.RawDataSet("cifar100", split, split, names, digest, (), torch.clone)
    monkeypatch.setattr(data, "read", lambda *_, **__: raw)
    notebook["measuring_images"].cache_clear()
    found = notebook["measuring_images"](run)
    assert (found is not None and found.shape == (4, 3, 32, 32)) == there
    for arguments in ({}, {"network": "dropNet-m, cifar100", "layer": "conv1", "epoch": 7}):
        notebook["explore"](**arguments)
    notebook["measuring_images"].cache_clear()
    said = capsys.readouterr().out
    assert said.count("Image\n") == 2 and ("other images" in said) != there


@pytest.mark.parametrize(
    ("cell", "function", "changes", "said"),
    [
        ("show-default", "show", {"penalty": "AL2", "epoch": 300}, "Bare, penalty AL2. Epoch 300:"),
        ("show-entropy-default", "show_entropy", {"size": "m", "epoch": 1}, "vanillaNet. Epoch 1:"),
    ],
)
def test_a_widget_calls_the_function_below_it(notebook, cell, function, changes, said, capsys):
    notebook["interactive"] = True
    exec(code_cells("01_explore")[cell], notebook)
    controls = {w.description: w for w in notebook[function].widget.children[:-1]}
    for name, value in changes.items():
        controls[name].value = value
    assert said in capsys.readouterr().out.rsplit("Image\n", 1)[1]


def test_a_network_is_trained_with_the_settings_chosen_and_compared(notebook, capsys):
    notebook["epochs"], heard = 2, []
    kept = notebook["train"](corruption=0.25)
    notebook["compare"](kept, al2=False)
    told = notebook["train"](corruption=0.25, al2=True, tell=heard.append)
    notebook["compare"](told, al2=True)
    assert heard == [0, 1, 2] and len(list(paths.results_dir().glob("quick/digits/*"))) == 1
    assert told.activation_l2.iloc[-1] < kept.activation_l2.iloc[-1]
    said = capsys.readouterr().out
    assert "Bare. Epoch 2:" in said and "noise floor of 1.11" in said
    assert [line[0] for line in notebook["trained"]] == ["Bare", "Bare + AL2"]
    notebook["compare"](told.assign(corruption=0.5), al2=True)  # another level: drawn alone
    assert len(notebook["trained"]) == 1


def test_the_button_trains_what_the_controls_say(notebook, capsys):
    notebook["epochs"] = 1
    source = code_cells("01_explore")["live-run"]
    exec(source[: source.index("if interactive:")], notebook)
    box = notebook["train_by_hand"]()
    level, al2, button, bar = box.children[0].children
    level.value, al2.value = 0.1, True
    button.click()
    assert bar.value == 1 and not button.disabled
    assert "Bare + AL2. Epoch 1:" in capsys.readouterr().out


# ---- notebook 02


def test_digits_are_written_as_an_image_folder_that_is_read_back(tmp_path):
    names = {"data": data, "torch": torch}
    source = code_cells("02_your_own")["folder"]
    exec("from PIL import Image\n" + source[: source.index("root =")], names)
    names["write_folder"](tmp_path, "mine")
    mine, digits = data.load("mine", root=tmp_path), data.load("digits", size=20)
    assert (len(mine.train), len(mine.test)) == (len(digits.train), len(digits.test))
    assert mine.test.images.shape[1:] == (3, 20, 20)
    assert torch.bincount(mine.train.labels).equal(torch.bincount(digits.train.labels))


@pytest.mark.parametrize("scale", [0.0, 30.0])
def test_the_confidence_penalty_is_minus_the_entropy_of_the_predictions(scale, monkeypatch):
    monkeypatch.setattr(losses, "PENALTIES", dict(losses.PENALTIES))
    names = {"losses": losses, "torch": torch}
    exec(code_cells("02_your_own")["own"], names)
    layer = torch.nn.Linear(10, 10, bias=False)
    layer.weight.data = scale * torch.eye(10)
    model = torch.nn.Sequential(layer)
    penalty = losses.PENALTIES["confidence"](model, "0")
    model(torch.eye(10))
    wanted = -np.log(10) if scale == 0 else 0.0  # alike, or sure of one
    assert penalty.penalty().item() == pytest.approx(wanted, abs=1e-6)
    penalty.remove()
    assert not layer._forward_hooks
