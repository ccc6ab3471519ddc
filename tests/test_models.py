import itertools

import pytest
import torch
import torch.nn.functional as F

from lib.models import AL2CNN, Dropout, build
from lib.run import Run
from lib.studies import label_randomization

NETWORKS = label_randomization("mnist")


def images(count: int, channels: int = 1, side: int = 28) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("channels", "side", "parameters"), [(1, 28, 431_080), (3, 32, 657_080)])
def test_the_network_has_the_papers_number_of_parameters(channels, side, parameters):
    assert sum(p.numel() for p in AL2CNN(channels, side, 10).parameters()) == parameters


def test_batch_norm_adds_a_scale_and_a_shift_for_each_of_50_channels_and_dropout_nothing():
    assert sum(p.numel() for p in AL2CNN(1, 28, 10, batch_norm=True, dropout=0.5).parameters()) == 431_080 + 100


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


def papers_network(model: AL2CNN, x: torch.Tensor, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """φ and ψ(φ) in the order of the protocol's table: conv, [batch norm,] ReLU, pool; linear, ReLU, linear."""
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    x = F.max_pool2d(F.relu(F.conv2d(x, weights["trunk.conv1.weight"], weights["trunk.conv1.bias"])), 2)
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
    for one, other in zip(first, torch.autograd.grad(logits.square().sum(), list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_stands_between_the_second_convolution_and_relu(training):
    model, x = build(Run("mnist", batch_norm=True), 1, 28, 10), images(16)
    with torch.no_grad():  # every scale, negative ones too, so that the order of the layers matters
        for values in (model.trunk.norm.weight, model.trunk.norm.bias, model.trunk.norm.running_mean):
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
    for layer, fan_in in {"trunk.conv1": 25, "trunk.conv2": 500, "head.fc1": 800, "head.fc2": 500}.items():
        weight, bound = state[f"{layer}.weight"], fan_in**-0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert state[f"{layer}.bias"].abs().max() <= bound


def test_building_leaves_the_global_generators_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)  # GPUs' generators, also where there is none
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
    assert all(torch.equal(ones[name], uniform[name]) for name in ones if name != "trunk.norm.weight")


def test_layers_carry_the_papers_names():
    names = dict(build(Run("mnist"), 1, 28, 10).named_modules())
    assert {"trunk", "trunk.conv1", "trunk.conv2", "head", "head.fc1", "head.fc2"} <= names.keys()
