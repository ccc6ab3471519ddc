"""The pictures show what the models and the code have, and all of their text lies inside."""

import importlib

import pytest
import torch
from torch import nn

from lib import losses, models
from lib.run import SPARSITY_NETWORKS, Run
from lib.study import pictures

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("figure_style")]
SHAPES = {"al2_cnn": (1, 28, 10), "convnet_s": (3, 32, 100)}
SHAPES |= dict.fromkeys(("lenet", "alexnet"), (3, 32, 10))


def texts(fig):
    """What is written, once it is laid out; all of it has to lie on the page."""
    fig.canvas.draw()
    found = [text for text in fig.axes[0].texts if text.get_text()]
    for text in found:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= fig.bbox.width, text
        assert box.y0 >= 0 and box.y1 <= fig.bbox.height, text
    return [text.get_text() for text in found]


@pytest.mark.parametrize("name", SHAPES)
def test_a_network_is_drawn_with_its_own_layers_and_shapes(name):
    channels, side, _ = SHAPES[name]
    model = models.build(name, *SHAPES[name])
    rows, trunk = pictures.network_rows(name, *SHAPES[name])
    assert [row.layer for row in rows] == list(losses.filter_layers(model))
    came_out = {}
    for layer in (models.features_layer(name), rows[-1].layer):
        model.get_submodule(layer).register_forward_hook(
            lambda module, given, output, layer=layer: came_out.update({layer: output[0]})
        )
    model(torch.zeros(1, channels, side, side))
    phi, logits = came_out.values()
    assert torch.Size(rows[trunk - 1].shape).numel() == phi.numel()
    assert rows[-1].shape == logits.shape
    pools = sum("pool" in row.then for row in rows)
    assert rows[trunk - 1].shape[-1] * 2**pools <= side

    shown = texts(pictures.network(name, *SHAPES[name]))
    for row in rows:
        assert f"{row.layer.rpartition('.')[2]}: {row.what}" in shown
        assert any("×".join(map(str, row.shape)) in text for text in shown)


def test_steps_come_in_the_order_of_the_forward_pass():
    (first, second, *_), trunk = pictures.network_rows("al2_cnn", *SHAPES["al2_cnn"])
    assert trunk == 2
    assert (first.then, first.shape) == (["pool", "ReLU"], (20, 12, 12))
    assert second.then == ["[batch norm]", "pool", "ReLU", "[dropout]"]


def test_penalties_stand_where_the_runs_have_them():
    places = pictures.penalty_places("convnet_s")
    shown = texts(pictures.network("convnet_s", *SHAPES["convnet_s"]))
    for name, (sparsity, decorrelation) in SPARSITY_NETWORKS.items():
        run = Run("cifar100", network="convnet_s", sparsity=sparsity, decorrelation=decorrelation)
        for penalty, layers in ("SparsityReg", run.sparsity), ("DecorrReg", run.decorrelation):
            short = name.removesuffix("Net")
            assert {k for k, which in places[penalty].items() if short in which} == set(layers)
    for penalty, layers in places.items():
        assert sum(text.startswith(f"{penalty} sr") for text in shown) == len(layers)
    assert pictures.penalty_places("al2_cnn") == {"AL2": {"trunk": ""}}
    model = models.build("lenet", *SHAPES["lenet"])
    for layer in pictures.penalty_places("lenet")["SparsityReg"]:
        assert isinstance(losses.find_layer(model, layer), nn.Conv2d | nn.Linear)


def test_the_way_of_the_data_names_functions_that_are_there():
    shown = texts(pictures.data_flow())
    for what, name, _ in pictures.FLOW:
        assert {what, name} <= set(shown)
        module, function = name.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(module), function))
