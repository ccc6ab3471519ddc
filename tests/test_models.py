import csv
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib import losses, models, paths
from lib.models import AL2CNN, Dropout, architecture, features_layer
from lib.run import Run, generator
from lib.study.experiments import label_randomization, sparsity_networks
from lib.trainer import build_network as build

NETWORKS = label_randomization("mnist")


def images(count: int, channels: int = 1, side: int = 28) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("channels", "side", "parameters"), [(1, 28, 431_080), (3, 32, 657_080)])
def test_the_network_has_the_papers_number_of_parameters(channels, side, parameters):
    assert sum(p.numel() for p in AL2CNN(channels, side, 10).parameters()) == parameters


def test_batch_norm_adds_a_scale_and_a_shift_for_each_of_50_channels_and_dropout_nothing():
    assert (
        sum(p.numel() for p in AL2CNN(1, 28, 10, batch_norm=True, dropout=0.5).parameters())
        == 431_080 + 100
    )


@pytest.mark.parametrize(("side", "units"), [(28, 800), (32, 1250), (20, 200), (16, 50), (17, 50)])
def test_phi_has_50_channels_and_the_head_fits_it(side, units):
    model = AL2CNN(1, side, 7)
    phi = model.trunk(images(2, 1, side))
    assert phi.shape[:2] == (2, 50)
    assert phi[0].numel() == units
    assert model(images(2, 1, side)).shape == (2, 7)


@pytest.mark.parametrize("side", [1, 8, 15])
def test_images_that_are_too_small_are_refused_with_the_least_size(side):
    with pytest.raises(ValueError, match=f"{side}×{side}.*16×16"):
        AL2CNN(1, side, 10)


def papers_network(
    model: AL2CNN, x: torch.Tensor, training: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """φ and ψ(φ) in the order of the protocol's table: conv, [batch norm,] ReLU, pool; linear,
    ReLU, linear.
    """
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    x = F.max_pool2d(
        F.relu(F.conv2d(x, weights["trunk.conv1.weight"], weights["trunk.conv1.bias"])), 2
    )
    x = F.conv2d(x, weights["trunk.conv2.weight"], weights["trunk.conv2.bias"])
    if "trunk.norm.weight" in weights:
        mean, var = weights["trunk.norm.running_mean"], weights["trunk.norm.running_var"]
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        shape = (1, 50, 1, 1)
        x = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)
        x = x * weights["trunk.norm.weight"].view(shape) + weights["trunk.norm.bias"].view(shape)
    phi = F.max_pool2d(F.relu(x), 2)
    hidden = F.relu(F.linear(phi.flatten(1), weights["head.fc1.weight"], weights["head.fc1.bias"]))
    return phi, F.linear(hidden, weights["head.fc2.weight"], weights["head.fc2.bias"])


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_pooling_before_relu_is_exactly_the_papers_order_with_the_same_gradients(channels, side):
    model, x = build(Run("mnist"), channels, side, 10), images(8, channels, side)
    phi = model.trunk(x)
    expected, logits = papers_network(model, x, training=True)
    assert torch.equal(phi, expected)
    assert (phi == 0).any() and (phi > 0).any()  # ReLU does something on these
    assert torch.equal(model(x), logits)
    first = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for one, other in zip(
        first, torch.autograd.grad(logits.square().sum(), list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_stands_between_the_second_convolution_and_relu(training):
    model, x = build(Run("mnist", batch_norm=True), 1, 28, 10), images(16)
    with torch.no_grad():  # every scale, negative ones too, so that the order of the layers matters
        for values in (
            model.trunk.norm.weight,
            model.trunk.norm.bias,
            model.trunk.norm.running_mean,
        ):
            values.copy_(torch.linspace(-1, 1, 50))
        model.trunk.norm.running_var.copy_(torch.linspace(0.1, 2, 50))
    model.train(training)
    expected, _ = papers_network(model, x, training)
    torch.testing.assert_close(model.trunk(x), expected, rtol=1e-4, atol=1e-5)


def test_dropout_comes_last_in_the_trunk_so_phi_is_taken_after_it():
    model, x = build(Run("mnist", dropout=0.5), 1, 28, 10), images(4)
    whole = papers_network(model, x, training=True)[0]
    phi = model.train().trunk(x)
    dropped = phi == 0
    torch.testing.assert_close(phi[~dropped], 2 * whole[~dropped])
    assert 0.4 < dropped[whole > 0].float().mean() < 0.6
    assert torch.equal(model.eval().trunk(x), whole)


# ---- dropout


def coins(seed: int, p: float = 0.5, x: torch.Tensor | None = None) -> torch.Tensor:
    layer = Dropout(p)
    layer.generator = torch.Generator().manual_seed(seed)
    return layer(torch.ones(64, 50, 4, 4) if x is None else x)


def test_dropout_s_own_generator_decides_and_the_global_one_is_neither_read_nor_moved():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = coins(7)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(coins(7), first)
    assert not torch.equal(coins(8), first)


@pytest.mark.parametrize("p", [0.25, 0.5, 0.9])
def test_dropout_keeps_the_expectation(p):
    kept = coins(0, p)
    assert kept.unique().tolist() == [0, pytest.approx(1 / (1 - p))]
    spread = (p / (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - 1) < 4 * spread


def test_dropout_drops_elements_not_channels_and_draws_anew_at_each_call():
    layer = Dropout(0.5)
    layer.generator = torch.Generator().manual_seed(0)
    first, second = layer(torch.ones(64, 50, 4, 4)), layer(torch.ones(64, 50, 4, 4))
    assert 0 < (first == 0).float().mean((2, 3)).median() < 1
    assert ((first == 0) == (second == 0)).float().mean() == pytest.approx(0.5, abs=0.02)


def test_dropout_in_eval_mode_is_the_identity():
    x = images(3)
    assert torch.equal(Dropout(0.9).eval()(x), x)


def test_dropout_draws_the_same_coins_on_every_memory_layout():
    x = torch.rand(8, 50, 4, 4)
    assert torch.equal(coins(0, x=x), coins(0, x=x.contiguous(memory_format=torch.channels_last)))


# ---- initial weights


def test_the_networks_of_a_seed_share_the_initial_weights_that_they_have_in_common():
    states = [build(run, 1, 28, 10).state_dict() for run in NETWORKS]
    for one, other in itertools.combinations(states, 2):
        common = one.keys() & other.keys()
        assert len(common) >= 8
        assert all(torch.equal(one[name], other[name]) for name in common)


def test_building_twice_gives_the_same_weights_whatever_the_global_generator():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = build(NETWORKS[0], 1, 28, 10).state_dict()
        torch.manual_seed(2)
        second = build(NETWORKS[0], 1, 28, 10).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights():
    first, second = (build(Run("mnist", seed=seed), 1, 28, 10).state_dict() for seed in (0, 1))
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_weights_and_biases_are_uniform_within_one_over_the_root_of_the_fan_in():
    """PyTorch's default for convolutions and linear layers."""
    state = build(Run("mnist"), 1, 28, 10).state_dict()
    for layer, fan_in in {
        "trunk.conv1": 25,
        "trunk.conv2": 500,
        "head.fc1": 800,
        "head.fc2": 500,
    }.items():
        weight, bound = state[f"{layer}.weight"], fan_in**-0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert state[f"{layer}.bias"].abs().max() <= bound


def test_building_leaves_the_global_generators_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(
        torch.cuda, "manual_seed_all", seeded.append
    )  # GPUs' generators, also where there is none
    with torch.random.fork_rng():
        torch.manual_seed(5)
        seeded.clear()
        state = torch.get_rng_state()
        build(Run("mnist", batch_norm=True, bn_gamma="uniform", dropout=0.5), 1, 28, 10)
        assert torch.equal(torch.get_rng_state(), state)
    assert seeded == []


def test_bn_gamma_uniform_fills_0_to_1_and_touches_no_other_weight():
    ones, uniform, other = (
        build(Run("mnist", batch_norm=True, bn_gamma=gamma, seed=seed), 1, 28, 10).state_dict()
        for gamma, seed in (("ones", 0), ("uniform", 0), ("uniform", 1))
    )
    gamma = uniform["trunk.norm.weight"]
    assert torch.equal(ones["trunk.norm.weight"], torch.ones(50))
    assert 0 <= gamma.min() < 0.2 and 0.8 < gamma.max() <= 1 and 0.3 < gamma.mean() < 0.7
    assert not torch.equal(gamma, other["trunk.norm.weight"])
    assert all(
        torch.equal(ones[name], uniform[name]) for name in ones if name != "trunk.norm.weight"
    )


def test_layers_carry_the_papers_names():
    names = dict(build(Run("mnist"), 1, 28, 10).named_modules())
    assert {"trunk", "trunk.conv1", "trunk.conv2", "head", "head.fc1", "head.fc2"} <= names.keys()


# ---- the networks of the targeted-sparsity paper

CONV = Run("digits", network="convnet_s", corruption=0.0)
VARIANT_RUNS = sparsity_networks("digits", n_measure=10)


def shapes(run: Run, *shape: int) -> nn.Module:
    """The network without the time that its weights take."""
    with torch.device("meta"):
        return architecture(run.network, *shape, **run.network_options())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def conv_parameters(channels: int, filters: int, kernel: int = 3) -> int:
    return kernel * kernel * channels * filters + filters


@pytest.mark.parametrize(
    ("channels", "side", "classes"), [(3, 32, 10), (3, 32, 100), (3, 64, 200), (1, 8, 10)]
)
@pytest.mark.parametrize("size", ["s", "m", "xxl"])
def test_convnets_have_table_1_s_widths_and_the_parameters_of_these(size, channels, side, classes):
    with open(paths.PUBLISHED / "sparsity_table1_widths.csv") as file:
        (row,) = [row for row in csv.DictReader(file) if row["size"] == size]
    one, two, three, four, units = (
        int(row[name]) for name in ("conv1", "conv2", "conv3", "conv4", "fc1")
    )
    model = shapes(replace(CONV, network=f"convnet_{size}"), channels, side, classes)
    widths = {name: len(layer.weight) for name, layer in losses.filter_layers(model).items()}
    assert widths == dict(conv1=one, conv2=two, conv3=three, conv4=four, fc1=units, fc2=classes)
    assert all(model.get_submodule(f"conv{k}").kernel_size == (3, 3) for k in (1, 2, 3, 4))
    expected = (
        conv_parameters(channels, one) + conv_parameters(one, two) + conv_parameters(two, three)
    )
    expected += (
        conv_parameters(three, four) + (four * (side // 4) ** 2 + 1) * units + (units + 1) * classes
    )
    assert parameters(model) == expected
    assert model(torch.empty(2, channels, side, side, device="meta")).shape == (2, classes)


def test_convnet_s_for_cifar_10_has_148442_parameters():
    assert (
        parameters(shapes(CONV, 3, 32, 10)) == 448 + 2320 + 4640 + 9248 + 131_136 + 650 == 148_442
    )


@pytest.mark.parametrize(("place", "widths"), [("conv", [16, 16, 32, 32]), ("block", [16, 32])])
def test_normnet_normalises_after_each_convolution_or_once_a_block(place, widths):
    model = shapes(replace(CONV, batch_norm=True, norm_place=place), 3, 32, 10)
    norms = {
        name: m.num_features for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)
    }
    assert list(norms.values()) == widths
    assert list(norms) == (
        ["norm1", "norm2", "norm3", "norm4"] if place == "conv" else ["norm2", "norm4"]
    )
    assert parameters(model) == 148_442 + 2 * sum(widths)


def test_dropnet_has_dropout_after_each_pool_and_no_parameter_more():
    model = shapes(replace(CONV, dropout=0.25), 3, 32, 10)
    assert [(name, m.p) for name, m in model.named_modules() if isinstance(m, Dropout)] == [
        ("dropout1", 0.25),
        ("dropout2", 0.25),
    ]
    assert parameters(model) == 148_442


def textbook(
    model: nn.Module, run: Run, x: torch.Tensor, coins: torch.Generator | None = None
) -> torch.Tensor:
    """The network as its paper draws it: convolution, [batch norm,] ReLU, then pool; padding by
    hand; in training mode.
    """
    weights = dict(model.named_parameters())

    def conv(name, x, padding, stride=1):
        x = F.conv2d(
            F.pad(x, [padding] * 4), weights[f"{name}.weight"], weights[f"{name}.bias"], stride
        )
        norm = f"norm{name[-1]}"
        if f"{norm}.weight" in weights:
            mean, var = (
                x.mean((0, 2, 3), keepdim=True),
                x.var((0, 2, 3), unbiased=False, keepdim=True),
            )
            scale, shift = (
                weights[f"{norm}.{kind}"].view(1, -1, 1, 1) for kind in ("weight", "bias")
            )
            x = (x - mean) / torch.sqrt(var + 1e-5) * scale + shift
        return x.relu()

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def drop(x):
        if not run.dropout:
            return x
        return x * (torch.rand(x.shape, generator=coins) >= run.dropout) / (1 - run.dropout)

    if run.network == "lenet":
        x = F.max_pool2d(conv("conv2", F.max_pool2d(conv("conv1", x, 0), 2), 0), 2)
        return linear("fc3", linear("fc2", linear("fc1", x.flatten(1)).relu()).relu())
    if run.network == "alexnet":
        x = F.max_pool2d(conv("conv2", F.max_pool2d(conv("conv1", x, 1, stride=2), 2), 1), 2)
        x = F.max_pool2d(conv("conv5", conv("conv4", conv("conv3", x, 1), 1), 1), 2)
        return linear("fc3", linear("fc2", linear("fc1", x.flatten(1)).relu()).relu())
    padding = 1 if run.padding == "same" else 0
    x = drop(F.max_pool2d(conv("conv2", conv("conv1", x, padding), padding), 2))
    x = drop(F.max_pool2d(conv("conv4", conv("conv3", x, padding), padding), 2))
    return linear("fc2", linear("fc1", x.flatten(1)).relu())


TEXTBOOK = {
    "vanilla": CONV,
    "valid": replace(CONV, padding="valid"),
    "norm": replace(CONV, batch_norm=True),
    "norm, block": replace(CONV, batch_norm=True, norm_place="block"),
    "drop": replace(CONV, dropout=0.25),
    "everything": replace(CONV, padding="valid", batch_norm=True, norm_place="block", dropout=0.4),
    "lenet": replace(CONV, network="lenet"),
    "alexnet": replace(CONV, network="alexnet"),
}


@pytest.mark.parametrize("name", TEXTBOOK)
def test_networks_are_their_papers_with_pooling_before_relu_as_good_as_after(name):
    run, x = TEXTBOOK[name], images(4, 3, 18)
    model = build(run, 3, 18, 7)
    with (
        torch.no_grad()
    ):  # every scale, negative ones too, so that the order of batch norm, pool and ReLU matters
        for parameter_name, values in model.named_parameters():
            if parameter_name.startswith("norm") or parameter_name.endswith("bias"):
                values.copy_(torch.linspace(-1, 1, len(values)))
    coins = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = coins
    found, expected = model.train()(x), textbook(model, run, x, torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    watched = [p for n, p in model.named_parameters() if "conv" in n]
    for one, other in zip(
        torch.autograd.grad(found.sin().sum(), watched),
        torch.autograd.grad(expected.sin().sum(), watched),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_same_padding_keeps_the_side_and_valid_takes_two_pixels_off():
    for padding, sides in (("same", [32, 32, 16, 16]), ("valid", [30, 28, 12, 10])):
        model, found = shapes(replace(CONV, padding=padding), 3, 32, 10), []
        for k in (1, 2, 3, 4):
            model.get_submodule(f"conv{k}").register_forward_hook(
                lambda m, i, out, found=found: found.append(out.shape[2:])
            )
        model(torch.empty(1, 3, 32, 32, device="meta"))
        assert found == [(side, side) for side in sides]
        assert model.fc1.in_features == 32 * (sides[-1] // 2) ** 2


@pytest.mark.parametrize(
    ("network", "padding", "least"), [("convnet_s", "same", 4), ("convnet_s", "valid", 16)]
)
def test_images_too_small_for_a_convnet_are_refused_with_the_least_size(network, padding, least):
    run = replace(CONV, network=network, padding=padding)
    for side in (1, least - 1):
        with pytest.raises(
            ValueError,
            match=f"{side}×{side} are too small.*{padding}.*: {least}×{least} is the least",
        ):
            shapes(run, 1, side, 10)
    assert shapes(run, 1, least, 10)(torch.empty(2, 1, least, least, device="meta")).shape == (
        2,
        10,
    )


@pytest.mark.parametrize(("network", "least"), [("lenet", 16), ("alexnet", 15)])
def test_images_too_small_for_lenet_and_alexnet_are_refused_with_the_least_size(network, least):
    run = replace(CONV, network=network)
    for side in (1, least - 1):
        with pytest.raises(
            ValueError, match=f"{side}×{side} are too small.*: {least}×{least} is the least"
        ):
            shapes(run, 1, side, 10)
    assert shapes(run, 1, least, 10)(torch.empty(2, 1, least, least, device="meta")).shape == (
        2,
        10,
    )


@pytest.mark.parametrize(
    ("network", "side", "classes", "expected"),
    [
        ("lenet", 32, 10, 62_006),
        (
            "lenet",
            64,
            200,
            conv_parameters(3, 6, 5) + conv_parameters(6, 16, 5) + 2705 * 120 + 121 * 84 + 85 * 200,
        ),
        ("alexnet", 32, 10, 23_272_266),
        ("alexnet", 64, 200, 23_272_266 + 3 * 1024 * 4096 + 4097 * 190),
    ],
)
def test_lenet_and_alexnet_have_their_numbers_of_parameters(network, side, classes, expected):
    model = shapes(replace(CONV, network=network), 3, side, classes)
    assert parameters(model) == expected
    assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, classes)
    assert not any(isinstance(m, (nn.BatchNorm2d, Dropout)) for m in model.modules())


def test_all_six_networks_and_every_reading_of_batch_norm_start_from_the_same_weights():
    runs = [
        *VARIANT_RUNS,
        replace(VARIANT_RUNS[2], norm_place="block"),
        replace(VARIANT_RUNS[0], optimizer="adam", al2=True),
    ]
    states = [build(run, 1, 12, 10).state_dict() for run in runs]
    for state in states[1:]:
        shared = [name for name in state if "norm" not in name]
        assert len(shared) == 12
        assert all(torch.equal(state[name], states[0][name]) for name in shared)
    norms = {name: value for name, value in states[2].items() if "norm" in name}
    assert all((value == (name.endswith(("weight", "var")))).all() for name, value in norms.items())
    other = build(replace(CONV, seed=1), 1, 12, 10).state_dict()
    assert not any(
        torch.equal(states[0][name], other[name]) for name in other if name.endswith("weight")
    )


@pytest.mark.parametrize("network", ["convnet_s", "convnet_m", "lenet"])
def test_weights_are_glorot_uniform_and_biases_zero(network):
    """Keras' fans of a convolution: channels times the kernel's area."""
    model = build(replace(CONV, network=network), 3, 20, 10)
    for name, layer in losses.filter_layers(model).items():
        area = layer.weight[0, 0].numel() if layer.weight.dim() == 4 else 1
        bound = math.sqrt(6 / (area * (layer.weight.shape[0] + layer.weight.shape[1])))
        assert 0.93 * bound < layer.weight.abs().max() <= bound, name
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
        assert abs(layer.weight.mean().item()) < 5 * bound / math.sqrt(3 * layer.weight.numel())
        assert (layer.bias == 0).all()


def test_building_a_convnet_leaves_the_global_generator_alone_and_does_not_depend_on_it():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = torch.get_rng_state()
        first = build(replace(CONV, batch_norm=True, dropout=0.25), 1, 8, 10).state_dict()
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(6)
        second = build(replace(CONV, batch_norm=True, dropout=0.25), 1, 8, 10).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("network", ["al2_cnn", "convnet_s", "lenet", "alexnet"])
def test_every_network_says_where_its_features_are(network):
    """φ: what the classifier (after the last convolution, pool, ReLU and dropout) is given."""
    run = replace(CONV, network=network)
    model, seen = shapes(run, 3, 32, 10), {}
    first = next(m for m in model.modules() if isinstance(m, nn.Linear))
    losses.find_layer(model, features_layer(network)).register_forward_hook(
        lambda m, i, out: seen.update(phi=out)
    )
    first.register_forward_pre_hook(lambda m, given: seen.update(given=given[0]))
    model(torch.empty(2, 3, 32, 32, device="meta"))
    assert seen["phi"].numel() == seen["given"].numel() == 2 * first.in_features


def test_phi_of_a_convnet_is_taken_after_dropout_and_is_the_same_in_every_memory_layout():
    run = replace(CONV, dropout=0.5)
    model, phis = build(run, 1, 12, 10).train(), []
    model.features.register_forward_hook(lambda m, i, out: phis.append(out))
    for x in (images(4, 1, 12), images(4, 1, 12).contiguous(memory_format=torch.channels_last)):
        coins = torch.Generator().manual_seed(0)
        model.dropout1.generator = model.dropout2.generator = coins
        model(x)
    assert 0.5 < (phis[0] == 0).float().mean() < 1
    torch.testing.assert_close(*phis)


# ---- plain arguments, a generator of one's own


@pytest.mark.parametrize("options", [{}, {"batch_norm": True}, {"dropout": 0.5}])
def test_the_al2_network_starts_as_pytorch_starts_it(options):
    """The same numbers as the layers' own start draws from the global generator."""
    source = generator(3, "weights")
    with torch.random.fork_rng():
        torch.manual_seed(source.initial_seed())
        expected = AL2CNN(1, 28, 10, **options).state_dict()
    found = models.build("al2_cnn", 1, 28, 10, generator=source, **options).state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_network_is_built_from_plain_arguments_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    one, other = (models.build("convnet_s", 3, 16, 7, padding="same") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.conv1.weight, other.conv1.weight)
    assert one.eval()(torch.rand(2, 3, 16, 16)).shape == (2, 7)
    with pytest.raises(ValueError, match="network is 'resnet'; allowed: al2_cnn"):
        models.build("resnet", 3, 32, 10)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("convnet_s", {"norm_place": "Conv"}, "norm_place is 'Conv'; allowed: conv, block"),
        ("convnet_s", {"padding": 1}, "padding is 1; allowed: same, valid"),
        ("lenet", {"batch_norm": True}, "lenet has neither"),
        ("alexnet", {"dropout": 0.5}, "alexnet has neither"),
        ("al2_cnn", {"dropout": 1.0}, "probability in"),
    ],
)
def test_options_that_a_network_cannot_have_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(network, 3, 32, 10, **options)
