import itertools
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from made import source
from torch import nn

from lib import losses, models, paths
from lib.models import AL2CNN, ConvNet, Dropout, architecture, features_layer
from lib.run import Run, generator
from lib.study.experiments import label_randomization, sparsity_networks
from lib.trainer import build_network as build

AL2 = Run("mnist")
CONV = Run("digits", network="convnet_s", corruption=0.0)


def images(count: int, channels: int = 1, side: int = 28) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=source(0))


def shapes(run: Run, *shape: int) -> nn.Module:
    """The network without the time that its weights take."""
    with torch.device("meta"):
        return architecture(run.network, *shape, **run.network_options())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], names) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names)


def check_size(model: nn.Module, parameters: int, *shape: int, classes: int) -> None:
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.empty(2, *shape, device="meta")).shape == (2, classes)


# ---- sizes


def conv(channels: int, filters: int, kernel: int = 3) -> int:
    return kernel * kernel * channels * filters + filters


LENET_LARGE = conv(3, 6, 5) + conv(6, 16, 5) + 2705 * 120 + 121 * 84 + 85 * 200
ALEXNET = 23_272_266


@pytest.mark.parametrize(
    ("run", "channels", "side", "classes", "expected"),
    [
        (AL2, 1, 28, 10, 431_080),
        (AL2, 3, 32, 10, 657_080),
        # a scale and a shift for each of 50 channels, and dropout has none
        (replace(AL2, batch_norm=True, dropout=0.5), 1, 28, 10, 431_080 + 100),
        (CONV, 3, 32, 10, 448 + 2320 + 4640 + 9248 + 131_136 + 650),
        (replace(CONV, dropout=0.25), 3, 32, 10, 148_442),
        (replace(CONV, batch_norm=True), 3, 32, 10, 148_442 + 2 * (16 + 16 + 32 + 32)),
        (replace(CONV, batch_norm=True, norm_place="block"), 3, 32, 10, 148_442 + 2 * (16 + 32)),
        (replace(CONV, network="lenet"), 3, 32, 10, 62_006),
        (replace(CONV, network="lenet"), 3, 64, 200, LENET_LARGE),
        (replace(CONV, network="alexnet"), 3, 32, 10, ALEXNET),
        (replace(CONV, network="alexnet"), 3, 64, 200, ALEXNET + 3 * 1024 * 4096 + 4097 * 190),
    ],
)
def test_networks_have_their_papers_numbers_of_parameters(run, channels, side, classes, expected):
    model = shapes(run, channels, side, classes)
    check_size(model, expected, channels, side, side, classes=classes)


@pytest.mark.parametrize(
    ("channels", "side", "classes"), [(3, 32, 10), (3, 32, 100), (3, 64, 200), (1, 8, 10)]
)
@pytest.mark.parametrize("size", ["s", "m", "xxl"])
def test_convnets_have_table_1_s_widths_and_the_parameters_of_these(size, channels, side, classes):
    table = pd.read_csv(paths.PUBLISHED / "sparsity_table1_widths.csv", index_col="size")
    printed = table.loc[size, ["conv1", "conv2", "conv3", "conv4", "fc1"]].to_dict()
    one, two, three, four, units = printed.values()
    model = shapes(replace(CONV, network=f"convnet_{size}"), channels, side, classes)
    widths = {name: len(layer.weight) for name, layer in losses.filter_layers(model).items()}
    assert widths == printed | {"fc2": classes}
    assert all(model.get_submodule(f"conv{k}").kernel_size == (3, 3) for k in (1, 2, 3, 4))
    expected = conv(channels, one) + conv(one, two) + conv(two, three) + conv(three, four)
    expected += (four * (side // 4) ** 2 + 1) * units + (units + 1) * classes
    check_size(model, expected, channels, side, side, classes=classes)


@pytest.mark.parametrize(
    ("options", "kind", "names"),
    [
        ({"batch_norm": True}, nn.BatchNorm2d, ["norm1", "norm2", "norm3", "norm4"]),
        ({"batch_norm": True, "norm_place": "block"}, nn.BatchNorm2d, ["norm2", "norm4"]),
        ({"dropout": 0.25}, Dropout, ["dropout1", "dropout2"]),
    ],
)
def test_normnet_and_dropnet_have_their_layers_and_no_others(options, kind, names):
    modules = shapes(replace(CONV, **options), 3, 32, 10).named_modules()
    found = {name: m for name, m in modules if isinstance(m, (nn.BatchNorm2d, Dropout))}
    assert list(found) == names and all(type(m) is kind for m in found.values())
    assert kind is nn.BatchNorm2d or all(m.p == 0.25 for m in found.values())


@pytest.mark.parametrize(
    ("network", "options", "least"),
    [
        ("al2_cnn", {}, 16),
        ("convnet_s", {"padding": "same"}, 4),
        ("convnet_s", {"padding": "valid"}, 16),
        ("lenet", {}, 16),
        ("alexnet", {}, 15),
    ],
)
def test_images_that_are_too_small_are_refused_with_the_least_size(network, options, least):
    message = ".*".join([*options.values(), f": {least}×{least} is the least"])
    for side in (1, least // 2, least - 1):
        with pytest.raises(ValueError, match=f"{side}×{side} are too small.*{message}"):
            models.build(network, 1, side, 10, **options)
    run = replace(CONV, network=network, **options)
    model = shapes(run, 1, least, 10)
    assert model(torch.empty(2, 1, least, least, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("resnet", {}, "network is 'resnet'; allowed: al2_cnn, convnet_s, .*, lenet, alexnet"),
        ("convnet_s", {"norm_place": "Conv"}, "norm_place is 'Conv'; allowed: conv, block"),
        ("convnet_s", {"padding": 1}, "padding is 1; allowed: same, valid"),
        ("lenet", {"batch_norm": True}, "lenet has neither"),
        ("alexnet", {"dropout": 0.5}, "alexnet has neither"),
        ("al2_cnn", {"dropout": 1.0}, "probability in"),
    ],
)
def test_networks_and_options_that_cannot_be_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(network, 3, 32, 10, **options)


# ---- what they compute


def textbook(model: nn.Module, run: Run, x: torch.Tensor, coins: torch.Generator) -> tuple:
    """φ and logits as the paper draws the network: pool after ReLU; dropout last in a block."""
    values = dict(model.named_parameters()) | dict(model.named_buffers())
    al2 = run.network == "al2_cnn"
    pool = nn.MaxPool2d(2)

    def conv(k, x, padding=0, stride=1):
        name = f"trunk.conv{k}" if al2 else f"conv{k}"
        x = F.pad(x, [padding] * 4)
        x = F.conv2d(x, values[f"{name}.weight"], values[f"{name}.bias"], stride)
        norm = f"norm{k}" if not al2 else "trunk.norm" if k == 2 else ""
        if f"{norm}.weight" in values:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            if not model.training:
                mean, var = values[f"{norm}.running_mean"], values[f"{norm}.running_var"]
            x = x.movedim(1, -1)  # channels last
            x = (x - mean) / torch.sqrt(var + 1e-5) * values[f"{norm}.weight"]
            x = (x + values[f"{norm}.bias"]).movedim(-1, 1)
        return x.relu()

    def drop(x):
        if not (run.dropout and model.training):
            return x
        kept = torch.rand(x.shape, generator=coins, dtype=x.dtype) >= run.dropout
        return x * kept / (1 - run.dropout)

    if run.network in ("al2_cnn", "lenet"):
        phi = drop(pool(conv(2, pool(conv(1, x)))))
    elif run.network == "alexnet":
        x = pool(conv(2, pool(conv(1, x, 1, stride=2)), 1))
        phi = pool(conv(5, conv(4, conv(3, x, 1), 1), 1))
    else:
        padding = 1 if run.padding == "same" else 0
        x = drop(pool(conv(2, conv(1, x, padding), padding)))
        phi = drop(pool(conv(4, conv(3, x, padding), padding)))
    x, deep = phi.flatten(1), run.network in ("lenet", "alexnet")
    linear = ("head.fc1", "head.fc2") if al2 else ("fc1", "fc2", "fc3")[: 2 + deep]
    for name in linear:
        x = x @ values[f"{name}.weight"].T + values[f"{name}.bias"]
        x = x if name == linear[-1] else x.relu()
    return phi, x


PAPERS = [
    AL2,
    replace(AL2, batch_norm=True),
    replace(AL2, batch_norm=True, dropout=0.5),
    CONV,
    replace(CONV, padding="valid"),
    replace(CONV, batch_norm=True),
    replace(CONV, dropout=0.25),
    replace(CONV, padding="valid", batch_norm=True, norm_place="block", dropout=0.4),
    replace(CONV, network="lenet"),
    replace(CONV, network="alexnet"),
]
EVALUATED = [run for run in PAPERS if run.batch_norm or run.dropout]  # the others do the same


@pytest.mark.parametrize(
    ("run", "training"), [*((run, True) for run in PAPERS), *((run, False) for run in EVALUATED)]
)
def test_networks_are_their_papers_with_pooling_before_relu_as_good_as_after(run, training):
    """φ, where a penalty on the features finds it, the logits and the gradients."""
    model, phis = build(run, 3, 18, 7).double().train(training), []
    layer = model.get_submodule(features_layer(run.network))
    layer.register_forward_hook(lambda m, i, out: phis.append(out.flatten(1)))
    # every scale, negative ones too, so that the order of batch norm, pool and ReLU matters
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if values.dim() == 1:
            low, high = (0.1, 2) if name.endswith("var") else (-1, 1)
            values.detach().copy_(torch.linspace(low, high, len(values)))
    x = images(4, 3, 18).double()
    phi, expected = textbook(model, run, x, source(3))
    assert (phi == 0).any() and (phi > 0).any()  # ReLU does something here
    for layout in (torch.contiguous_format, torch.channels_last):
        generator_of_coins = source(3)
        for module in model.modules():
            if isinstance(module, Dropout):
                module.generator = generator_of_coins
        logits = model(x.contiguous(memory_format=layout))
        torch.testing.assert_close([phis[-1], logits], [phi.flatten(1), expected])
    watched = [p for p in model.parameters() if p.numel() < 1e6]
    slopes = [torch.autograd.grad(each.sin().sum(), watched) for each in (logits, expected)]
    torch.testing.assert_close(*slopes)


# ---- dropout


ONES = torch.ones(64, 50, 4, 4)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
def test_dropout_refuses_what_is_no_probability_or_keeps_nothing(p):
    for network in (lambda: Dropout(p), lambda: AL2CNN(1, 28, 10, dropout=p)):
        with pytest.raises(ValueError, match=r"dropout is .*probability in \[0, 1\)"):
            network()


def test_a_convnet_refuses_options_that_it_does_not_know():
    with pytest.raises(ValueError, match="norm_place is 'Conv'; allowed: conv, block"):
        ConvNet((4, 4, 4, 4, 8), batch_norm=True, norm_place="Conv")


def coins(seed: int, p: float = 0.5, x: torch.Tensor = ONES) -> torch.Tensor:
    layer = Dropout(p)
    layer.generator = source(seed)
    return layer(x)


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
def test_dropout_keeps_the_expectation_and_in_eval_mode_everything(p):
    kept = coins(0, p)
    assert kept.unique().tolist() == [0, pytest.approx(1 / (1 - p))]
    spread = (p / (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - 1) < 4 * spread
    assert torch.equal(Dropout(p).eval()(kept), kept)


def test_dropout_drops_elements_not_channels_draws_anew_at_each_call_and_alike_on_every_layout():
    layer = Dropout(0.5)
    layer.generator = source(0)
    first, second = layer(ONES), layer(ONES)
    assert 0 < (first == 0).float().mean((2, 3)).median() < 1
    assert ((first == 0) == (second == 0)).float().mean() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(coins(0, x=ONES.contiguous(memory_format=torch.channels_last)), first)


# ---- initial weights

VARIANTS = sparsity_networks("digits", n_measure=10)


VARIANTS += [
    replace(VARIANTS[2], norm_place="block"),
    replace(VARIANTS[0], optimizer="adam", al2=True),
]


@pytest.mark.parametrize(("runs", "common"), [(label_randomization("mnist"), 8), (VARIANTS, 12)])
def test_the_networks_of_a_seed_share_the_weights_that_they_have_in_common_and_no_other_seed_s(
    runs, common
):
    states = [build(run, 1, 28, 10).state_dict() for run in runs]
    for one, other in itertools.combinations(states, 2):
        names = one.keys() & other.keys()
        assert len([name for name in names if "norm" not in name]) == common
        assert same(one, other, names)
    other = build(replace(runs[0], seed=1), 1, 28, 10).state_dict()
    weights = [name for name in other if name.endswith("weight")]
    assert not any(torch.equal(states[0][name], other[name]) for name in weights)


@pytest.mark.parametrize("run", [replace(AL2, bn_gamma="uniform"), CONV], ids=["al2", "convnet"])
def test_building_leaves_the_global_generators_alone_and_does_not_depend_on_them(run, monkeypatch):
    run, seeded, states = replace(run, batch_norm=True, dropout=0.5), [], []
    # GPUs' generators, also where there is none
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with torch.random.fork_rng():
        for seed in (5, 6):
            torch.manual_seed(seed)
            seeded.clear()
            before = torch.get_rng_state()
            states.append(build(run, 1, 28, 10).state_dict())
            assert torch.equal(torch.get_rng_state(), before) and seeded == []
    assert same(*states, states[0])


@pytest.mark.parametrize("options", [{}, {"batch_norm": True}, {"dropout": 0.5}])
def test_the_al2_network_starts_as_pytorch_starts_it(options):
    """The same numbers as the layers' own start draws from the global generator."""
    weights = generator(3, "weights")
    with torch.random.fork_rng():
        torch.manual_seed(weights.initial_seed())
        expected = AL2CNN(1, 28, 10, **options).state_dict()
    found = models.build("al2_cnn", 1, 28, 10, generator=weights, **options).state_dict()
    assert found.keys() == expected.keys() and same(found, expected, expected)


def test_bn_gamma_uniform_fills_0_to_1_and_touches_no_other_weight():
    ones, uniform, other = (
        build(Run("mnist", batch_norm=True, bn_gamma=gamma, seed=seed), 1, 28, 10).state_dict()
        for gamma, seed in (("ones", 0), ("uniform", 0), ("uniform", 1))
    )
    name = "trunk.norm.weight"
    gamma = uniform[name]
    assert torch.equal(ones[name], torch.ones(50)) and not torch.equal(gamma, other[name])
    assert 0 <= gamma.min() < 0.2 and 0.8 < gamma.max() <= 1 and 0.3 < gamma.mean() < 0.7
    assert same(ones, uniform, ones.keys() - {name})


@pytest.mark.parametrize("network", ["convnet_s", "convnet_m", "lenet"])
def test_weights_are_glorot_uniform_biases_zero_and_norms_the_identity(network):
    """Keras' fans of a convolution: channels times the kernel's area."""
    run = replace(CONV, network=network, batch_norm=network != "lenet")
    model = build(run, 3, 20, 10)
    for name, layer in losses.filter_layers(model).items():
        area = layer.weight[0, 0].numel() if layer.weight.dim() == 4 else 1
        bound = math.sqrt(6 / (area * (layer.weight.shape[0] + layer.weight.shape[1])))
        assert 0.93 * bound < layer.weight.abs().max() <= bound, name
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
        assert abs(layer.weight.mean().item()) < 5 * bound / math.sqrt(3 * layer.weight.numel())
        assert (layer.bias == 0).all()
    norms = {name: value for name, value in model.state_dict().items() if "norm" in name}
    assert all((value == name.endswith(("weight", "var"))).all() for name, value in norms.items())


def test_without_a_generator_a_network_built_from_plain_arguments_is_always_the_same():
    before = torch.random.get_rng_state()
    one, other = (models.build("convnet_s", 3, 16, 7, padding="same") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.conv1.weight, other.conv1.weight)
    assert one.eval()(torch.rand(2, 3, 16, 16)).shape == (2, 7)
