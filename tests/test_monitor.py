import copy
import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made import plain_entropy, source
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lib import bundle, measures, trainer
from lib.losses import filter_layers
from lib.monitor import Monitor, explored, explorer
from lib.plots import correlation_figure, heat_map_figure
from lib.run import Run

LAYERS = {"conv1": 6, "conv2": 4, "fc1": 5}


class Net(nn.Module):
    """Two convolutions, a dense layer, a classifier; with modes that matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, stride=2)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(4 * 4 * 4, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # [N, 1, 12, 12] → [N, 6, 10, 10] → [N, 4, 4, 4]
        x = self.conv2(torch.relu(self.norm(self.conv1(images))))
        return self.fc2(torch.relu(self.fc1(self.dropout(x.relu()).flatten(1))))


@pytest.fixture
def net() -> Net:
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=source(parameter.numel()))
    return model


def batch(count: int = 2, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 12, 12, generator=source(seed))


def read(folder) -> EventAccumulator:
    sizes = {"images": 0, "histograms": 0, "scalars": 0}
    return EventAccumulator(str(folder), size_guidance=sizes).Reload()


def logged(folder, model, epochs=(0,), *arguments, images=None, **options) -> EventAccumulator:
    """What a monitor has written after these epochs."""
    with Monitor(folder, batch() if images is None else images, *arguments, **options) as monitor:
        for epoch in epochs:
            monitor.log(model, epoch)
    return read(folder)


def steps(events) -> list[int]:
    return [event.step for event in events]


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image


def slow_entropies(model: Net, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Entropies at each position by scipy, from the layers called one after another."""
    model.eval()
    with torch.no_grad():
        one = model.conv1(images)
        two = model.conv2(torch.relu(model.norm(one)))
        outputs = {"conv1": one, "conv2": two, "fc1": model.fc1(two.relu().flatten(1))}
    return {name: plain_entropy(x) for name, x in outputs.items()}


# ---- what is written


def test_a_log_holds_entropies_correlations_and_pictures_of_each_epoch(tmp_path, net):
    many = batch(7, seed=1)
    means, coefficients = [], []
    with Monitor(tmp_path, batch(), measure_images=many) as monitor:
        for epoch in (0, 1, 4):
            with torch.no_grad():
                net.conv2.weight.mul_(1.5)
                net.conv1.weight[0] += 0.1 * epoch
            monitor.log(net, epoch)
            means.append({name: h.mean() for name, h in slow_entropies(net, many).items()})
            weights = {name: net.get_submodule(name).weight.detach().flatten(1) for name in LAYERS}
            coefficients.append({name: np.corrcoef(w.double()) for name, w in weights.items()})
    events = read(tmp_path)
    tags = events.Tags()
    assert tags["scalars"] == [f"entropy/{name}" for name in LAYERS]
    assert tags["histograms"] == [f"correlations/{name}" for name in LAYERS]
    assert sorted(tags["images"]) == ["correlations_over_epochs", "heat_maps"]
    for name, filters in LAYERS.items():
        scalars = events.Scalars(f"entropy/{name}")
        histograms = events.Histograms(f"correlations/{name}")
        assert steps(scalars) == steps(histograms) == [0, 1, 4]
        np.testing.assert_allclose([e.value for e in scalars], [m[name] for m in means], rtol=1e-5)
        assert means[0][name] != means[2][name]
        for event, c in zip(histograms, coefficients, strict=True):
            value = event.histogram_value
            pairs = c[name][np.tril_indices(filters, -1)]
            assert sum(value.bucket) == value.num == filters * (filters - 1) / 2
            # empty outer bins would be drawn as spikes at ± 1
            assert -1 <= value.min <= pairs.min() and pairs.max() <= value.max <= 1
            assert value.bucket[0] and value.bucket[-1]
            # half a bin each, at most
            assert value.sum == pytest.approx(pairs.sum(), abs=0.005 * len(pairs))
            counts, _ = np.histogram(pairs, bins=[-1, *value.bucket_limit])
            np.testing.assert_array_equal(value.bucket, counts)
    for tag in tags["images"]:
        assert steps(events.Images(tag)) == [0, 1, 4]
        for event in events.Images(tag):
            assert opened(event.encoded_image_string).size == (event.width, event.height)
            assert len(event.encoded_image_string) < 60_000


def test_without_measuring_images_the_means_are_over_those_drawn(tmp_path, net):
    events = logged(tmp_path, net, (0,), ["fc1", "conv1"])
    assert events.Tags()["scalars"] == ["entropy/fc1", "entropy/conv1"]
    expected = slow_entropies(net, batch())
    for name in ("fc1", "conv1"):
        found = events.Scalars(f"entropy/{name}")[0].value
        assert found == pytest.approx(expected[name].mean(), rel=1e-5)


def test_pictures_can_be_drawn_at_some_epochs_only_but_for_the_last_correlations(tmp_path, net):
    events = logged(tmp_path, net, range(4), every=2)
    assert steps(events.Images("heat_maps")) == [0, 2]
    assert steps(events.Images("correlations_over_epochs")) == [0, 2, 3]
    assert steps(events.Scalars("entropy/conv1")) == [0, 1, 2, 3]
    assert steps(events.Histograms("correlations/conv1")) == [0, 1, 2, 3]


def test_dense_layers_have_entropy_and_correlations_but_no_heat_map(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3))
    tags = logged(tmp_path, model).Tags()
    assert tags["scalars"] == ["entropy/1"]
    assert tags["images"] == ["correlations_over_epochs"]


def test_a_log_that_failed_can_be_made_again(tmp_path, net, monkeypatch):
    monitor = Monitor(tmp_path, batch(), every=2)
    monkeypatch.setattr(Monitor, "_open", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        monitor.log(net, 0)
    monkeypatch.undo()
    monitor.log(net, 0)
    monitor.log(net, 1)
    monitor.close()
    events = read(tmp_path)
    assert steps(events.Scalars("entropy/conv1")) == [0, 1]
    assert steps(events.Images("correlations_over_epochs")) == [0, 1]


def test_the_files_are_closed_though_a_last_picture_cannot_be_drawn(tmp_path, net, monkeypatch):
    monitor = Monitor(tmp_path, batch(), every=2)
    monitor.log(net, 0)
    monitor.log(net, 1)

    def fail(*_):
        raise RuntimeError("no picture")

    monkeypatch.setattr(Monitor, "_draw_correlations", fail)
    with pytest.raises(RuntimeError, match="no picture"):
        monitor.close()
    assert monitor.closed
    monitor.close()  # does nothing
    assert steps(read(tmp_path).Scalars("entropy/conv1")) == [0, 1]


def test_a_network_that_has_diverged_can_be_logged(tmp_path, net):
    with torch.no_grad():
        net.conv1.weight[2] = math.nan
    events = logged(tmp_path, net)
    assert math.isnan(events.Scalars("entropy/conv1")[0].value)
    assert len(events.Images("heat_maps")) == 1


def test_a_continued_log_replaces_what_it_held_of_the_same_and_later_epochs(tmp_path, net):
    logged(tmp_path, net, range(4))
    assert steps(logged(tmp_path, net, (2,)).Scalars("entropy/conv1")) == [0, 1, 2]


# ---- the network is left alone


def test_a_log_leaves_modes_weights_gradients_and_random_numbers_as_they_were(tmp_path, net):
    net.train()
    net.norm.eval()  # frozen, as in fine-tuning
    nn.utils.parametrizations.spectral_norm(net.conv1)  # moves on when it is looked at in training
    modes = [module.training for module in net.modules()]
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    coins = torch.get_rng_state()
    images = batch().requires_grad_()
    logged(tmp_path, net, images=images)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), coins)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert images.grad is None and all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_images_follow_the_network_s_precision(tmp_path, net):
    expected = slow_entropies(net.double(), batch().double())["conv1"].mean()
    found = logged(tmp_path, net).Scalars("entropy/conv1")[0].value
    assert found == pytest.approx(expected, rel=1e-6)


def test_images_may_be_an_array_s_view_and_what_the_network_draws_is_not_missed(tmp_path, net):
    net.dropout.forward = lambda x: x + torch.rand_like(x)
    coins = torch.get_rng_state()
    turned = batch().flip(3)
    logged(tmp_path, net, images=batch().numpy()[..., ::-1])
    assert torch.equal(torch.get_rng_state(), coins)
    assert torch.equal(Monitor("log", batch().numpy()[..., ::-1]).images, turned)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny", "resnet18"])
def test_it_works_on_torchvision_s_networks_with_the_layers_that_it_chooses(tmp_path, name):
    from lib.data.vision import torchvision

    options = {"image_size": 64} if name == "vit_b_16" else {}
    model = getattr(torchvision.models, name)(weights=None, **options)
    filters = {layer: len(module.weight) for layer, module in filter_layers(model).items()}
    images = torch.randn(2, 3, 64, 64, generator=source())
    events = logged(tmp_path, model, (1,), images=images, every=2)  # no pictures
    found = {tag.removeprefix("entropy/"): tag for tag in events.Tags()["scalars"]}
    assert found and found.keys() < filters.keys()
    for layer, tag in found.items():
        assert 0 <= events.Scalars(tag)[0].value <= math.log(filters[layer]) + 1e-5


RUN = dict(corruption=0.0, network="convnet_s", normalize="unit", n_train=64, n_measure=20)
RUN = Run("digits", **RUN, image_size=16, epochs=2, entropy=True, dropout=0.25)
SR3 = dict(sparsity=("conv3", "conv4", "fc1"), decorrelation=("conv1",))
RUNS = [RUN, replace(RUN, **SR3, decorrelation_pairs="square")]


@pytest.mark.slow
def test_a_watched_training_is_the_same_as_one_that_is_not_and_each_run_has_its_log(tmp_path):
    weights = []

    def keep(run, model, epoch):
        if epoch == 2:
            weights.append(copy.deepcopy(model.state_dict()))

    frame = trainer.fit(RUNS, callback=keep)
    images = bundle.prepare(RUNS[0]).measure.images
    with Monitor(tmp_path, images[:2], measure_images=images) as monitor:

        def watch(run, model, epoch):
            monitor.watch(run, model, epoch)
            keep(run, model, epoch)

        watched = trainer.fit(RUNS, callback=watch)
    assert frame.equals(watched)
    for k in (0, 1):
        assert all(torch.equal(value, weights[2 + k][name]) for name, value in weights[k].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(run.name for run in RUNS)
    for run in RUNS:
        events = read(tmp_path / run.name)
        own = frame[frame.id == run.id]
        for layer in ("conv1", "conv2", "conv3", "conv4", "fc1"):
            scalars = events.Scalars(f"entropy/{layer}")
            assert steps(scalars) == [0, 1, 2]
            found = [e.value for e in scalars[1:]]
            np.testing.assert_allclose(found, own[f"entropy {layer}"], rtol=1e-6)


# ---- what is drawn


def corner() -> np.ndarray:
    """Images [2, 1, 8, 8]: bright at the top right; bright at the bottom left."""
    images = np.zeros((2, 1, 8, 8), dtype=np.float32)
    images[0, 0, :3, 5:] = images[1, 0, 5:, :3] = 1
    return images


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def panel(figure: Figure, title: str) -> np.ndarray:
    """Colours [H, W, 3] of the column of a heat map figure that has this title, top row first."""
    drawn = pixels(figure)
    box = next(ax for ax in figure.axes if ax.get_title() == title).get_window_extent()
    rows = slice(math.ceil(len(drawn) - box.y1), math.floor(len(drawn) - box.y0))
    return drawn[rows, math.ceil(box.x0) : math.floor(box.x1)]


def test_a_bright_corner_is_in_the_same_corner_of_the_map_and_of_the_picture():
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Flatten(), nn.Linear(256, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([20.0, 0, 0, 0]).view(4, 1, 1, 1))
    images = corner()
    maps = measures.entropy_maps(model, torch.from_numpy(images))["0"]
    bright = images[:, 0] == 1
    np.testing.assert_allclose(maps.numpy()[bright], 0, atol=1e-6)  # one filter answers alone
    np.testing.assert_allclose(maps.numpy()[~bright], math.log(4), rtol=1e-6)  # none answers

    figure = heat_map_figure(images, {"0": maps}, {"0": 4}, figure=Figure(dpi=100))
    low, high = (np.array(colormaps["viridis"](v)[:3]) * 255 for v in (0.0, 1.0))
    for title, there, elsewhere in (("0", low, high), ("image", [255] * 3, [0] * 3)):
        halves = np.array_split(panel(figure, title), 2)  # first image on top
        for half, bright_at in zip(halves, ((0.12, 0.88), (0.88, 0.12)), strict=True):
            for place in itertools.product((0.12, 0.88), repeat=2):
                colour = half[int(place[0] * len(half)), int(place[1] * half.shape[1])]
                expected = there if place == bright_at else elsewhere
                np.testing.assert_allclose(colour, expected, atol=2)


def test_colours_go_from_0_to_ln_d_in_each_layer_whatever_the_maps_hold():
    maps = {"conv1": np.full((2, 8, 8), 1.0), "conv2": np.full((2, 4, 4), 0.1)}
    figure = heat_map_figure(corner(), maps, {"conv1": 16, "conv2": 32}, figure=Figure())
    columns = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    assert list(columns) == ["image", "conv1", "conv2"]
    for name, filters in (("conv1", 16), ("conv2", 32)):
        assert len(columns[name].images) == 2
        for drawn in columns[name].images:
            assert drawn.get_clim() == (0, math.log(filters))
            assert drawn.origin == "upper" and drawn.get_interpolation() == "nearest"
    pixels(figure)
    labels = [text.get_text() for ax in figure.axes for text in ax.get_xticklabels()]
    assert labels == ["0", "ln 16 = 2.77 nats", "0", "ln 32 = 3.47 nats"]


@pytest.mark.parametrize("given", [True, False])
def test_rows_can_be_epochs_of_one_image_or_stand_without_it(given):
    maps = {"conv1": np.stack([np.full((8, 8), h) for h in (2.0, 1.0, 0.5)]).astype(np.float16)}
    rows = ["before training", "epoch 1", "epoch 5"]
    image = corner()[0] if given else None
    figure = heat_map_figure(image, maps, {"conv1": 16}, rows=rows, figure=Figure())
    pixels(figure)
    first, column = figure.axes[0], figure.axes[int(given)]
    assert [text.get_text() for text in first.get_yticklabels()] == rows
    assert column.get_title() == "conv1"
    assert [float(drawn.get_array().max()) for drawn in column.images] == [2.0, 1.0, 0.5]
    assert first.get_ylim() == column.get_ylim() and len(first.images) == (1 if given else 3)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_of_any_scale_and_number_of_channels_are_drawn(channels):
    images = torch.randn(1, channels, 6, 9, generator=source())
    figure = heat_map_figure(images, {"a": np.ones((1, 3, 4))}, {"a": 1}, figure=Figure())
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == ((6, 9, 3) if channels == 3 else (6, 9))
    assert drawn.min() >= 0 and drawn.max() <= 1
    if channels == 1:
        plain = images[0, 0].numpy()
        np.testing.assert_allclose(drawn, (plain - plain.min()) / np.ptp(plain), atol=1e-6)


def test_correlations_are_drawn_as_shares_over_epochs_that_need_not_be_regular():
    counts = np.zeros((3, 200), dtype=np.int32)
    counts[0, 100] = 600
    counts[1, [100, 150]] = (400, 200)
    counts[2, 199] = 600
    given = {"conv1": counts, "fc1": counts[:, ::-1]}
    figure = correlation_figure(given, [0, 1, 5], figure=Figure())
    pixels(figure)
    for ax, h in zip(figure.axes, given.values(), strict=False):
        (mesh,) = ax.collections
        corners = mesh.get_coordinates()
        # half-way to the next epoch
        np.testing.assert_allclose(corners[0, :, 0], [-0.5, 0.5, 3, 7])
        np.testing.assert_allclose(corners[:, 0, 1], np.linspace(-1, 1, 201))
        shares = mesh.get_array()
        np.testing.assert_allclose(shares.filled(0), 100 * h.T / 600)
        assert (shares.mask == (h.T == 0)).all()
    assert [ax.get_title() for ax in figure.axes[:2]] == ["conv1: 600 pairs", "fc1: 600 pairs"]


def test_the_bins_of_few_pairs_are_drawn_five_at_a_time():
    counts = np.zeros((2, 200), dtype=np.int32)
    counts[:, [0, 4, 5, 199]] = 10, 20, 30, 60
    (mesh,) = correlation_figure({"conv1": counts}, figure=Figure()).axes[0].collections
    shares = mesh.get_array().filled(0)
    assert shares.shape == (40, 2)
    np.testing.assert_allclose(shares[[0, 1, 39], 0], [25, 25, 50])


def test_figures_are_pyplot_s_unless_one_is_given():
    import matplotlib.pyplot as plt

    plt.close("all")
    figure = heat_map_figure(corner(), {"a": np.ones((2, 8, 8))}, {"a": 16})
    assert plt.get_fignums() == [figure.number]
    plt.close("all")
    correlation_figure({"a": np.ones((1, 20))}, figure=Figure())
    assert plt.get_fignums() == []


# ---- the explorer


def stored(layers: dict[str, int], epochs: list[int], count: int) -> dict[str, np.ndarray]:
    maps = np.random.default_rng(0).random((len(layers), len(epochs), count, 8, 8))
    scaled = zip(layers.items(), maps, strict=True)
    return {name: (h * math.log(filters)).astype(np.float16) for (name, filters), h in scaled}


@pytest.mark.parametrize("curves", [False, True])
def test_each_control_of_the_explorer_changes_the_picture(curves):
    layers = {"conv1": 16, "conv2": 32}
    epochs, entropies = [0, 1, 5], None
    if curves:
        entropies = {name: np.linspace(math.log(d), 1, 6) for name, d in layers.items()}
    widget = explorer(corner(), stored(layers, epochs, 2), epochs, entropies, filters=layers)
    controls = {child.description: child for row in widget.children[:2] for child in row.children}
    picture = widget.children[2]
    assert controls["layer"].options == ("conv1", "conv2")
    assert controls["epoch"].options == (0, 1, 5)
    changes = {"layer": "conv2", "epoch": 5, "image": 1}
    changes["colours over this layer's own range"] = True
    before = {name: controls[name].value for name in changes}
    assert list(before.values()) == ["conv1", 0, 0, False]
    seen = [picture.value]
    for name, value in changes.items():
        controls[name].value = value
        assert picture.value not in seen
        seen.append(picture.value)
    for png in seen:
        assert opened(png).width > 300 and len(png) < 60_000
    for name, value in before.items():
        controls[name].value = value
    assert picture.value == seen[0]


@pytest.mark.parametrize(("images", "entropies"), [(None, None), (corner(), {"conv1": [2, 1, 1]})])
def test_what_is_explored_has_a_panel_for_each_thing_that_there_is(images, entropies):
    layers = {"conv1": 16}
    maps = stored(layers, [0, 2], 2)
    chosen = {"filters": layers, "layer": "conv1", "epoch": 2, "image": 1}
    figure = explored(images, maps, [0, 2], entropies, **chosen)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    expected = ["conv1, epoch 2"]
    assert titles == (["image 1", *expected, "conv1, mean"] if entropies else expected)
    drawn = next(ax for ax in figure.axes if ax.get_title() == expected[0]).images[0]
    assert np.array_equal(drawn.get_array(), maps["conv1"][1, 1].astype(np.float32))


# ---- errors

ONE = {"conv1": 16}
STORED = stored(ONE, [0, 1], 2)
MAPS = {"conv1": np.ones((2, 8, 8))}
UNFIT = MAPS | {"conv2": np.ones((2, 8))}
COUNTS = {"conv1": np.ones((2, 200))}
FILTERS = {"filters": ONE}
AT = {"filters": ONE, "layer": "conv1", "epoch": 1}
SEEN = [corner(), STORED, [0, 1]]
REFUSED = [
    (explorer, [corner(), STORED, [0, 1, 2]], FILTERS, r"\(2, 2, 8, 8\); \[3, 2, A, B\]"),
    (explorer, [corner()[:1], STORED, [0, 1]], FILTERS, r"8, 8\); \[2, 1, A, B\]"),
    (explorer, SEEN, {"filters": {"b": 9}}, "number of filters of conv1"),
    (explorer, [*SEEN, {"conv1": [2.0]}], FILTERS, r"'conv1' have shape \(1,\); one before"),
    (explorer, [corner(), {}, [0, 1]], FILTERS, "0 layers"),
    (explored, SEEN, AT | {"layer": "fc"}, "layer is 'fc'; there are conv1"),
    (explored, [None, STORED, [0, 1]], AT | {"epoch": 7}, "epoch is 7; there are 0, 1"),
    (explored, [None, STORED, [0, 1]], AT | {"image": 2}, "image is 2; it has to be from 0 to 1"),
    (explored, [None, MAPS, [0, 1]], AT, r"\(2, 8, 8\); \[2, 0, A, B\] is needed"),
    (Monitor, ["log", batch()[0]], {}, r"images have shape \(1, 12, 12\); \[n, C, H, W\]"),
    (Monitor, ["log", batch()[:0]], {}, "at least one image"),
    (Monitor, ["log", batch()], {"measure_images": batch()[:0]}, r"measure_images .* \(0, 1, 12"),
    (Monitor, ["log", batch()], {"measure_images": batch()[..., 1:]}, "agree in channels and size"),
    (Monitor, ["log", batch(17)], {}, r"17 images .* 16 at most; .* measure_images"),
    (Monitor, ["log", batch()], {"every": 0}, "every is 0"),
    (Monitor, ["log", batch()], {"batch": 0}, "batch 0"),
    (Monitor, ["log", batch().byte()], {}, "images are torch.uint8; floating-point numbers"),
    (Monitor, ["log", batch().numpy().astype(int)], {}, "images are torch.int64; floating"),
    (heat_map_figure, [np.ones((3, 1, 8, 8)), MAPS, ONE], {}, r"\(3, 1, 8, 8\).*\[2, C, H, W\]"),
    (heat_map_figure, [corner(), UNFIT, ONE | {"conv2": 4}], {}, r"'conv2' have shape \(2, 8\)"),
    (heat_map_figure, [corner(), MAPS, ONE], {"rows": ["one"]}, "1 labels for 2 rows"),
    (heat_map_figure, [corner(), MAPS, {}], {}, "number of filters of conv1"),
    (heat_map_figure, [corner(), {}, {}], {}, "0 maps"),
    (correlation_figure, [COUNTS, [0, 1, 2]], {}, r"\(2, 200\); \[3 epochs, bins\]"),
    (correlation_figure, [COUNTS, [1, 1]], {}, "increase"),
    (correlation_figure, [{}], {}, "at least one layer"),
]


@pytest.mark.parametrize(("made", "arguments", "options", "message"), REFUSED)
def test_what_cannot_be_logged_or_drawn_is_refused(made, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        made(*arguments, **options)


@pytest.mark.parametrize("layers", [["conv1", "conv9"], ["norm"], []])
def test_layers_that_cannot_be_logged_are_named_with_those_that_can(tmp_path, net, layers):
    wrong = layers[-1] if layers else "none"
    with pytest.raises(ValueError, match=f"{wrong}.*conv1, conv2, fc1, fc2"):
        Monitor(tmp_path / "log", batch(), layers).log(net, 0)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("epoch", [-1, 1, 2])
def test_epochs_have_to_increase_from_0(tmp_path, net, epoch):
    with Monitor(tmp_path, batch(), every=10) as monitor:
        if epoch >= 0:
            monitor.log(net, 2)
        least = 3 if epoch >= 0 else 0
        with pytest.raises(ValueError, match=f"epoch is {epoch}.* {least} or more"):
            monitor.log(net, epoch)


def test_a_closed_monitor_logs_no_more_and_can_be_closed_again(tmp_path, net):
    monitor = Monitor(tmp_path, batch())
    monitor.log(net, 0)
    monitor.close()
    monitor.close()
    for log in (lambda: monitor.log(net, 1), lambda: monitor.watch(RUNS[0], net, 1)):
        with pytest.raises(RuntimeError, match="closed"):
            log()


def test_the_home_folder_is_meant_by_a_tilde_and_a_file_is_no_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    images = torch.zeros(1, 1, 12, 12)
    with Monitor("~/logs", images=images.numpy()) as monitor:
        monitor.log(Net(), 0)
    assert list((tmp_path / "logs").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file, which is a file; give a folder"):
        Monitor(tmp_path / "file", images=images)
