import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lib import losses
from lib.losses import ActivationL2, activation_l2, al2_weights, schedule

# the protocol's check values, as precisely as they are printed there
PRINTED = {1: ".011", 10: ".02594", 50: "1.1739", 65: "4.9037", 66: "5.3941", 100: "7.5656", 200: "20.464", 300: "55.350"}
PRINTED |= {400: "149.71", 500: "404.94", 600: "1095.3", 699: "2933.2", 700: "2962.6"}


def loop(num_epochs: int) -> list[float]:
    """λ_e by Eq. 2, word for word."""
    weight, series = 0.01, []
    for _ in range(num_epochs):
        series.append(weight)
        weight = weight * 1.1 if weight < 5 else weight * 1.01
    return series


# ---- schedules


@pytest.mark.parametrize(("epoch", "printed"), PRINTED.items())
def test_al2_weights_have_the_printed_values(epoch, printed):
    digits = len(printed.split(".")[1])
    assert round(al2_weights(701)[epoch], digits) == float(printed)


def test_al2_weights_equal_a_plain_loop_and_are_float64():
    weights = al2_weights(1500)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, loop(1500), rtol=1e-12)


def test_the_first_weight_above_5_is_that_of_epoch_66():
    weights = al2_weights(700)
    assert np.flatnonzero(weights > 5)[0] == 66


@pytest.mark.parametrize("num_epochs", [1, 2, 66, 67, 68, 700])
def test_fewer_epochs_are_the_beginning_of_more(num_epochs):
    weights = al2_weights(num_epochs)
    assert weights.shape == (num_epochs,)
    assert weights[0] == pytest.approx(0.01, rel=1e-15)
    np.testing.assert_array_equal(weights, al2_weights(1000)[:num_epochs])


@pytest.mark.parametrize("speed", [2, 7, 10])
def test_a_whole_speed_steps_over_the_same_values(speed):
    np.testing.assert_allclose(al2_weights(70, speed), loop(70 * speed)[::speed], rtol=1e-12)


def test_a_fractional_speed_interpolates_geometrically():
    exact = loop(200)
    for epoch, weight in enumerate(al2_weights(60, 2.75)):
        whole, rest = divmod(2.75 * epoch, 1)
        low, high = exact[int(whole)], exact[int(whole) + 1]
        assert weight == pytest.approx(low ** (1 - rest) * high**rest, rel=1e-12)


def test_a_slow_schedule_still_begins_at_the_first_weight_and_grows():
    weights = al2_weights(100, 0.1)
    np.testing.assert_allclose(weights[::10], loop(10), rtol=1e-12)
    assert (np.diff(weights) > 0).all()


@pytest.mark.parametrize(("num_epochs", "speed"), [(0, 1), (-1, 1), (10, 0), (10, -1), (10, math.nan)])
def test_al2_weights_refuse_no_epochs_and_speeds_that_are_not_positive(num_epochs, speed):
    with pytest.raises(ValueError, match=r"num_epochs .* speed"):
        al2_weights(num_epochs, speed)


def test_the_schedule_al2_is_eq_2():
    np.testing.assert_array_equal(schedule("al2", 80, 8.75), al2_weights(80, 8.75))


def test_the_default_rates_end_or_average_where_al2_does():
    reference = loop(700)
    with np.errstate(over="ignore"):
        geometric, linear, constant = (schedule(name, 700) for name in ("geometric", "linear", "constant"))
    assert geometric[0] == linear[0] == 0.01
    assert geometric[-1] == pytest.approx(reference[-1], rel=1e-9)
    assert linear[-1] == pytest.approx(reference[-1], rel=1e-9)
    np.testing.assert_allclose(constant, sum(reference) / 700)
    np.testing.assert_allclose(geometric[1:] / geometric[:-1], geometric[1] / geometric[0])
    np.testing.assert_allclose(np.diff(linear), linear[1] - linear[0])


def test_rates_and_speeds_of_the_other_schedules():
    np.testing.assert_allclose(schedule("geometric", 4, speed=3, rate=1.5), [0.01 * 1.5 ** (3 * e) for e in range(4)])
    np.testing.assert_allclose(schedule("linear", 4, speed=3, rate=0.5), [0.01, 1.51, 3.01, 4.51])
    np.testing.assert_array_equal(schedule("constant", 4, speed=3, rate=0.5), [0.5] * 4)


@pytest.mark.parametrize("name", ["al2", "geometric", "linear", "constant"])
def test_a_schedule_with_its_default_rate_warns_of_nothing(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(schedule(name, 700)).all()


def test_an_unknown_schedule_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'cosine'.*al2, geometric, linear, constant"):
        schedule("cosine", 10)


def test_al2_takes_no_rate():
    with pytest.raises(ValueError, match=r"rate is 1\.05.*al2.*speed"):
        schedule("al2", 10, rate=1.05)


@pytest.mark.parametrize("rate", [0, -1, math.nan])
@pytest.mark.parametrize("name", ["geometric", "linear", "constant"])
def test_a_rate_has_to_be_positive(name, rate):
    with pytest.raises(ValueError, match="rate is"):
        schedule(name, 10, rate=rate)


@pytest.mark.parametrize("name", ["geometric", "linear", "constant"])
@pytest.mark.parametrize(("num_epochs", "speed"), [(0, 1), (10, 0), (10, -1), (10, math.nan)])
def test_every_schedule_refuses_no_epochs_and_speeds_that_are_not_positive(name, num_epochs, speed):
    with pytest.raises(ValueError):
        schedule(name, num_epochs, speed)


# ---- the penalty


@pytest.mark.parametrize("shape", [(6, 800), (3, 50, 4, 4), (1, 1)])
def test_activation_l2_is_the_mean_of_squares_over_batch_and_units(shape):
    phi = np.random.default_rng(0).normal(1, 3, shape)
    assert activation_l2(torch.from_numpy(phi)).item() == pytest.approx((phi**2).sum() / phi.size, rel=1e-12)


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture(autouse=True)
def _keep_the_global_generator():
    with torch.random.fork_rng():
        yield


def test_the_penalty_is_that_of_the_named_layer_of_the_last_forward_pass():
    model, x = tiny(), torch.randn(5, 3, dtype=torch.float64)
    al2 = ActivationL2(model, "1")
    model(10 * x)
    model(x)
    hidden = np.tanh(x.numpy() @ model[0].weight.detach().numpy().T + model[0].bias.detach().numpy())
    assert al2.penalty().item() == pytest.approx(np.mean(hidden**2), rel=1e-12)


def test_layers_are_found_by_their_full_names():
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    x = torch.randn(5, 3)
    for name, expected in (("body.0", model.body[0](x)), ("body", model(x))):
        al2 = ActivationL2(model, name)
        model(x)
        assert al2.penalty().item() == pytest.approx(expected.square().mean().item(), rel=1e-6)
        al2.remove()


def test_the_penalty_s_gradient_agrees_with_finite_differences():
    model, x = tiny(), torch.randn(5, 3, dtype=torch.float64)
    al2 = ActivationL2(model, "1")

    def penalty(weight, bias):
        torch.func.functional_call(model, {"0.weight": weight, "0.bias": bias}, (x,))
        return al2.penalty()

    weight, bias = (p.detach().clone().requires_grad_() for p in (model[0].weight, model[0].bias))
    assert torch.autograd.gradcheck(penalty, (weight, bias))


def test_the_penalty_reaches_the_layers_below_and_no_others():
    model = tiny()
    al2 = ActivationL2(model, "1")
    model(torch.randn(5, 3, dtype=torch.float64))
    al2.penalty().backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert model[2].weight.grad is None


def test_attaching_the_penalty_leaves_the_network_s_output_alone():
    model, x = tiny(), torch.randn(5, 3, dtype=torch.float64)
    before = model(x)
    ActivationL2(model, "1")
    assert torch.equal(model(x), before)


def test_two_penalties_on_one_network_do_not_disturb_each_other():
    model, x = tiny(), torch.randn(5, 3, dtype=torch.float64)
    first, last = ActivationL2(model, "0"), ActivationL2(model, "2")
    model(x)
    assert first.penalty().item() == pytest.approx(model[0](x).square().mean().item())
    first.remove()
    assert last.penalty().item() == pytest.approx(model(x).square().mean().item())


@pytest.mark.parametrize("layer", ["trunk", "0.weight", ""])
def test_an_unknown_layer_is_refused_with_the_layers_there_are(layer):
    with pytest.raises(ValueError, match=rf"'{layer}'.* 0, 1, 2$"):
        ActivationL2(tiny(), layer)


def test_a_penalty_before_any_forward_pass_is_an_error_that_names_the_layer():
    al2 = ActivationL2(tiny(), "1")
    with pytest.raises(RuntimeError, match=r"'1'.*forward"):
        al2.penalty()


def test_removed_it_measures_nothing_any_more():
    model, x = tiny(), torch.randn(5, 3, dtype=torch.float64)
    al2 = ActivationL2(model, "1")
    model(x)
    al2.remove()
    model(x)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError):
        al2.penalty()


@pytest.fixture(scope="module")
def alexnets():
    """torchvision's AlexNet as it is (ReLU in place), a copy with ReLU out of place, and images; a small classifier."""
    from lib.vision import torchvision

    with torch.device("meta"):  # no time for 58 million weights that are not used here
        model = torchvision.models.alexnet(weights=None)
        model.classifier = nn.Linear(256 * 6 * 6, 4)
    model.to_empty(device="cpu")
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05, generator=source)
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, nn.ReLU):
            assert module.inplace
            module.inplace = False
    return model, other, torch.randn(2, 3, 64, 64, generator=source)


@pytest.mark.parametrize("layer", ["features.0", "features.3", "features.4", "features.10", "features"])
def test_on_alexnet_the_penalty_is_the_same_with_relu_in_place_and_out_of_place(alexnets, layer):
    penalties = []
    for model in alexnets[:2]:
        al2 = ActivationL2(model, layer)
        with torch.no_grad():
            model(alexnets[2])
        penalties.append(al2.penalty().item())
        al2.remove()
    assert penalties[0] == penalties[1] > 0


@pytest.mark.parametrize("layer", ["features.3", "features.4", "features.10"])
def test_on_alexnet_the_penalty_s_gradient_is_the_same_with_relu_in_place_and_out_of_place(alexnets, layer):
    gradients = []
    for model in alexnets[:2]:
        al2 = ActivationL2(model, layer)
        logits = model(alexnets[2])
        (logits.logsumexp(1).sum() + al2.penalty()).backward()
        gradients.append(model.features[0].weight.grad.clone())
        model.zero_grad(set_to_none=True)
        al2.remove()
    torch.testing.assert_close(*gradients)


def test_find_layer_gives_the_module_itself():
    model = tiny()
    assert losses.find_layer(model, "2") is model[2]
