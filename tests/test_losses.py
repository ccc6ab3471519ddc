import collections
import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from scipy.stats import entropy
from torch import nn

from lib import losses
from lib.losses import (
    AL2_START,
    ActivationL2,
    DecorrReg,
    SparsityReg,
    activation_l2,
    al2_weights,
    decorrelation,
    filter_correlation,
    rfav_entropy,
)
from lib.schedules import schedule, schedule_of_total

# the protocol's check values, as precisely as they are printed there
PRINTED = {
    1: ".011",
    10: ".02594",
    50: "1.1739",
    65: "4.9037",
    66: "5.3941",
    100: "7.5656",
    200: "20.464",
    300: "55.350",
}
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


@pytest.mark.parametrize(
    ("num_epochs", "speed"), [(0, 1), (-1, 1), (10, 0), (10, -1), (10, math.nan)]
)
def test_al2_weights_refuse_no_epochs_and_speeds_that_are_not_positive(num_epochs, speed):
    with pytest.raises(ValueError, match=r"num_epochs .* speed"):
        al2_weights(num_epochs, speed)


def test_the_schedule_al2_is_eq_2():
    np.testing.assert_array_equal(schedule("al2", 80, 8.75), al2_weights(80, 8.75))


def test_the_default_rates_end_or_average_where_al2_does():
    reference = loop(700)
    with np.errstate(over="ignore"):
        geometric, linear, constant = (
            schedule(name, 700) for name in ("geometric", "linear", "constant")
        )
    assert geometric[0] == linear[0] == 0.01
    assert geometric[-1] == pytest.approx(reference[-1], rel=1e-9)
    assert linear[-1] == pytest.approx(reference[-1], rel=1e-9)
    np.testing.assert_allclose(constant, sum(reference) / 700)
    np.testing.assert_allclose(geometric[1:] / geometric[:-1], geometric[1] / geometric[0])
    np.testing.assert_allclose(np.diff(linear), linear[1] - linear[0])


def test_rates_and_speeds_of_the_other_schedules():
    np.testing.assert_allclose(
        schedule("geometric", 4, speed=3, rate=1.5), [0.01 * 1.5 ** (3 * e) for e in range(4)]
    )
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


KINDS = ("al2", "geometric", "linear", "constant")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("epochs", "speed"), [(50, 3.4), (80, 6.15), (700, 1.0)])
@pytest.mark.parametrize("share", [0.1, 1.0, 3.0])
def test_a_schedule_of_a_total_adds_up_to_it_by_its_one_setting(name, epochs, speed, share):
    total = share * sum(al2_weights(epochs, speed))
    setting = schedule_of_total(name, epochs, total, speed)
    assert list(setting) == ["speed" if name == "al2" else "rate"]
    weights = schedule(name, epochs, **{"speed": speed} | setting)
    assert sum(weights) == pytest.approx(
        total, rel=4e-3
    )  # six digits of a factor that is raised to the 700th power
    assert weights[0] == (AL2_START if name != "constant" else weights[-1])
    assert (np.diff(weights) > 0).all() or name == "constant"


def test_settings_of_a_total_have_six_digits_and_are_those_of_plain_sums():
    """Digits beyond the sixth differ from machine to machine, and with them the id of a run."""
    total = 500.0
    found = {name: schedule_of_total(name, 50, total, 3.4) for name in KINDS}
    for setting in found.values():
        (value,) = setting.values()
        assert value == float(f"{value:.5e}")
    assert found["constant"] == {"rate": 10.0}
    assert found["linear"]["rate"] == pytest.approx(
        (total - 50 * 0.01) / (3.4 * sum(range(50))), rel=1e-5
    )
    growth = found["geometric"]["rate"] ** 3.4
    assert 0.01 * (growth**50 - 1) / (growth - 1) == pytest.approx(total, rel=1e-3)
    assert schedule_of_total("al2", 50, sum(loop(50)))["speed"] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("name", ["al2", "geometric", "linear"])
def test_a_growing_schedule_cannot_add_up_to_less_than_its_first_weight_each_time(name):
    with pytest.raises(
        ValueError,
        match=rf"no schedule '{name}' of 10 epochs adds up to 0\.09; .* has to be above 0\.1",
    ):
        schedule_of_total(name, 10, 0.09)
    assert schedule_of_total("constant", 10, 0.09) == {"rate": 0.009}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("total", [0, -1, math.nan, math.inf])
def test_a_total_has_to_be_a_positive_number(name, total):
    with pytest.raises(ValueError, match="total is"):
        schedule_of_total(name, 10, total)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("epochs", "speed"), [(0, 1), (10, 0), (10, math.nan)])
def test_a_total_of_no_epochs_or_at_no_speed_is_refused(name, epochs, speed):
    with pytest.raises(ValueError, match=r"num_epochs .* speed"):
        schedule_of_total(name, epochs, 5, speed)


def test_a_total_of_an_unknown_schedule_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'cosine'.*al2, geometric, linear, constant"):
        schedule_of_total("cosine", 10, 5)


# ---- the penalty


@pytest.mark.parametrize("shape", [(6, 800), (3, 50, 4, 4), (1, 1)])
def test_activation_l2_is_the_mean_of_squares_over_batch_and_units(shape):
    phi = np.random.default_rng(0).normal(1, 3, shape)
    assert activation_l2(torch.from_numpy(phi)).item() == pytest.approx(
        (phi**2).sum() / phi.size, rel=1e-12
    )


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture(autouse=True)
def _keep_the_global_generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_the_penalty_is_that_of_the_named_layer_of_the_last_forward_pass():
    model, x = tiny(), torch.randn(5, 3, dtype=torch.float64)
    al2 = ActivationL2(model, "1")
    model(10 * x)
    model(x)
    hidden = np.tanh(
        x.numpy() @ model[0].weight.detach().numpy().T + model[0].bias.detach().numpy()
    )
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
    """torchvision's AlexNet as it is (ReLU in place), a copy with ReLU out of place, and images; a
    small classifier.
    """
    from lib.data.vision import torchvision

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


@pytest.mark.parametrize(
    "layer", ["features.0", "features.3", "features.4", "features.10", "features"]
)
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
def test_on_alexnet_the_penalty_s_gradient_is_the_same_with_relu_in_place_and_out_of_place(
    alexnets, layer
):
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


# ---- entropy of receptive-field activation vectors


def pixel_entropies(layer: nn.Module, x: torch.Tensor) -> np.ndarray:
    """Eq. 1, 3 and 4 word for word in float64: at each receptive field a patch of the input, D
    products, softmax, entropy.

    [N, A, B] of a convolution, [N] of a linear layer.
    """
    weight = layer.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().numpy()
    images = x.detach().double().numpy()
    if isinstance(layer, nn.Linear):
        return np.array([plain_entropy(weight @ image + bias) for image in images])
    (down, across), (far_down, far_across), (top, left) = (
        layer.stride,
        layer.dilation,
        layer.padding,
    )
    images = np.pad(images, ((0, 0), (0, 0), (top, top), (left, left)))
    filters, channels, height, width = weight.shape
    a_count = (images.shape[2] - far_down * (height - 1) - 1) // down + 1
    b_count = (images.shape[3] - far_across * (width - 1) - 1) // across + 1
    group = filters // layer.groups
    entropies = np.empty((len(images), a_count, b_count))
    for n, a, b in np.ndindex(entropies.shape):
        outputs = np.empty(filters)
        for d in range(filters):
            first = d // group * channels
            rows = slice(a * down, a * down + far_down * (height - 1) + 1, far_down)
            columns = slice(b * across, b * across + far_across * (width - 1) + 1, far_across)
            outputs[d] = (
                weight[d] * images[n, first : first + channels, rows, columns]
            ).sum() + bias[d]
        entropies[n, a, b] = plain_entropy(outputs)
    return entropies


def plain_entropy(vector: np.ndarray) -> float:
    p = np.exp(vector) / np.exp(vector).sum()
    return -sum(share * np.log(share) for share in p)


LAYERS = {
    "3×3": nn.Conv2d(3, 5, 3),
    "padding": nn.Conv2d(3, 5, 3, padding=(1, 2)),
    "stride": nn.Conv2d(3, 5, 3, stride=(2, 1)),
    "dilation": nn.Conv2d(3, 5, (3, 2), dilation=(1, 3)),
    "groups": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, padding=1),
    "no bias": nn.Conv2d(3, 5, 3, bias=False),
    "1×1": nn.Conv2d(3, 5, 1),
    "everything": nn.Conv2d(4, 6, (2, 3), stride=(2, 3), dilation=(3, 2), groups=2, padding=(2, 3)),
    "linear": nn.Linear(7, 5),
    "linear, no bias": nn.Linear(7, 5, bias=False),
}


def filled(
    layer: nn.Module, shape: tuple[int, ...], seed: int = 0
) -> tuple[nn.Module, torch.Tensor]:
    """The layer with weights and biases of some size, and an input."""
    source = torch.Generator().manual_seed(seed)
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.7, generator=source)
    return layer, torch.randn(shape, generator=source, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_entropy_equals_a_loop_over_receptive_fields(name):
    shape = (6, 7) if "linear" in name else (2, LAYERS[name].in_channels, 7, 8)
    layer, x = filled(LAYERS[name], shape)
    found, expected = rfav_entropy(layer(x)), pixel_entropies(layer, x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    assert np.ptp(expected) > 0.1  # the fields differ, so their order matters


def test_entropy_is_that_of_scipy_over_filters_for_any_number_of_positions():
    for shape in ((4, 6), (4, 6, 3), (2, 5, 3, 4), (2, 5, 2, 3, 2)):
        a = 3 * torch.randn(shape, dtype=torch.float64)
        found = rfav_entropy(a)
        assert found.shape == shape[:1] + shape[2:]
        np.testing.assert_allclose(
            found.numpy(), entropy(softmax(a.numpy(), 1), axis=1), rtol=1e-10
        )


def test_entropy_is_that_of_every_memory_layout():
    a = torch.randn(3, 5, 4, 6)
    assert torch.equal(
        rfav_entropy(a), rfav_entropy(a.contiguous(memory_format=torch.channels_last))
    )
    assert torch.equal(
        rfav_entropy(a), rfav_entropy(a.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0))
    )


@pytest.mark.parametrize("scale", [0, 1e-8, 1e-3, 1, 30, 1e3, 1e6])
@pytest.mark.parametrize("filters", [1, 2, 7, 512])
def test_entropy_lies_between_0_and_ln_d_and_perplexity_between_1_and_d(scale, filters):
    h = rfav_entropy(scale * torch.randn(4, filters, 3, 3))
    assert (h >= 0).all() and (h <= math.log(filters) + 1e-5).all()
    assert (h.exp() >= 1).all() and (h.exp() <= filters * (1 + 1e-5)).all()


def test_equal_outputs_have_the_largest_entropy_a_towering_one_has_none_and_a_shift_no_effect():
    assert rfav_entropy(torch.full((1, 8), 3.0)).item() == pytest.approx(math.log(8), rel=1e-6)
    assert rfav_entropy(torch.tensor([[0.0, 0.0, 200.0]])).item() == 0
    assert rfav_entropy(torch.tensor([[50.0, -90.0, 50.0]])).item() == pytest.approx(
        math.log(2), rel=1e-6
    )
    a = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(rfav_entropy(a + 100), rfav_entropy(a))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_extreme_outputs_have_finite_entropies_and_gradients(dtype):
    high = 1e4
    rows = [
        [high] * 4,
        [-high] * 4,
        [high, -high, high, -high],
        [high, 0, 0, 0],
        [-high, 0, 1, 2],
        [0, 1e-7, high, high - 8],
    ]
    a = torch.tensor(rows, dtype=dtype).requires_grad_()
    h = rfav_entropy(a)
    h.sum().backward()
    assert torch.isfinite(h).all() and torch.isfinite(a.grad).all()
    assert h[:4].tolist() == pytest.approx([math.log(4), math.log(4), math.log(2), 0], rel=1e-6)
    expected = entropy(
        softmax(a.detach().double().numpy(), 1), axis=1
    )  # of the values as they were rounded
    np.testing.assert_allclose(h.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_the_softmax(dtype):
    a = (3 * torch.randn(6, 300, 2, 2)).to(dtype)
    assert rfav_entropy(a).dtype == torch.float32
    assert torch.equal(rfav_entropy(a), rfav_entropy(a.float()))
    assert rfav_entropy(a.double()).dtype == torch.float64


def autograd_entropy(activations):
    """The same entropy with PyTorch's own operators and gradient."""
    log_p = F.log_softmax(activations.movedim(1, -1), -1)
    return -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 2, 3)])
def test_entropy_s_gradients_agree_with_finite_differences(shape):
    """Those of the gradient, too."""
    z = (2 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(rfav_entropy, z)
    assert torch.autograd.gradgradcheck(rfav_entropy, z)


@pytest.mark.parametrize("size", [1, 100])
def test_entropy_s_gradients_are_autograd_s_own(size):
    z = (size * torch.randn(4, 16, 3, 3, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(4, 3, 3, dtype=torch.float64)
    found = []
    for of in (rfav_entropy, autograd_entropy):
        (slope,) = torch.autograd.grad((weight * of(z)).sum(), z, create_graph=True)
        found.append([slope.detach(), *torch.autograd.grad(slope.square().sum(), z)])
    for ours, autograd in zip(*found, strict=True):
        torch.testing.assert_close(ours, autograd, rtol=1e-9, atol=1e-12)


def test_entropy_s_gradient_where_the_activations_are_half_precision_or_overwritten():
    z = torch.randn(4, 16, 3, 3, dtype=torch.bfloat16).requires_grad_()
    linear = z * 1
    total = rfav_entropy(linear).sum()
    linear.relu_()  # as torchvision's networks do
    (slope,) = torch.autograd.grad(total, z)
    (expected,) = torch.autograd.grad(autograd_entropy(z.float()).sum(), z)
    assert slope.dtype == torch.bfloat16
    torch.testing.assert_close(slope, expected, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_entropy_of_what_has_no_filters_is_refused(shape):
    with pytest.raises(ValueError, match=r"shape .*\[N, D\] or \[N, D, A, B\]"):
        rfav_entropy(torch.ones(shape))


# ---- correlation of filters

SHAPES = [(6, 3, 3, 3), (5, 40), (4, 2, 5), (3, 2, 2, 2, 2)]
OPTIONS = [
    (centre, pairs, reduce)
    for centre in losses.CENTRES
    for pairs in losses.PAIRS
    for reduce in losses.REDUCTIONS
]


@pytest.mark.parametrize("shape", SHAPES)
def test_correlation_is_numpy_s(shape):
    weight = 0.3 + torch.randn(shape, dtype=torch.float64)
    c = filter_correlation(weight)
    np.testing.assert_allclose(
        c.numpy(), np.corrcoef(weight.flatten(1).numpy()), rtol=0, atol=1e-12
    )
    assert filter_correlation(weight.float()).dtype == torch.float32
    torch.testing.assert_close(filter_correlation(weight.float()).double(), c, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_correlation_about_the_mean_filter_is_eq_6_word_for_word(shape):
    weight = 0.3 + torch.randn(shape, dtype=torch.float64)
    w = [filter_.ravel() for filter_ in weight.numpy()]
    mean = sum(w) / len(w)
    c = filter_correlation(weight, "mean_filter")
    for d, e in np.ndindex(len(w), len(w)):
        expected = (
            (w[d] - mean)
            @ (w[e] - mean)
            / math.sqrt(((w[d] - mean) ** 2).sum() * ((w[e] - mean) ** 2).sum())
        )
        assert c[d, e].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e15])
@pytest.mark.parametrize("centre", losses.CENTRES)
def test_correlation_does_not_depend_on_the_weights_scale(centre, scale):
    weight = torch.randn(5, 3, 3, 3)
    torch.testing.assert_close(
        filter_correlation(scale * weight, centre), filter_correlation(weight, centre)
    )


@pytest.mark.parametrize("size", [1, 2, 27, 576, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_constant_filter_correlates_with_none_and_its_gradient_is_finite(size, dtype):
    """However large, and whatever the rounding of its mean."""
    constants = torch.tensor([0.0, 0.1, -0.7, 0.3, 1 / 3, 123.4, -1e-3]).to(dtype)
    weight = constants[:, None].repeat(1, size)
    if size > 1:
        weight = torch.cat([weight, torch.randn(2, size).to(dtype)])
    weight.requires_grad_()
    c = filter_correlation(weight)
    assert (c[:7] == 0).all() and (c[:, :7] == 0).all()
    for pairs in losses.PAIRS:
        (gradient,) = torch.autograd.grad(decorrelation(weight, pairs=pairs), weight)
        assert torch.isfinite(gradient).all()


def test_equal_filters_correlate_fully_about_their_own_means_and_not_about_their_common_one():
    weight = torch.randn(1, 3, 3, 3).repeat(40, 1, 1, 1).requires_grad_()
    torch.testing.assert_close(filter_correlation(weight), torch.ones(40, 40))
    about_mean = decorrelation(weight, centre="mean_filter")
    assert about_mean.item() == 0
    about_mean.backward()
    assert torch.isfinite(weight.grad).all()


def test_weights_in_half_precision_are_widened():
    weight = torch.randn(6, 3, 3, 3).half()
    assert torch.equal(filter_correlation(weight), filter_correlation(weight.float()))


@pytest.mark.parametrize("filters", [64, 256])
def test_about_the_mean_filter_the_sum_over_pairs_is_minus_half_the_filters_from_the_start(filters):
    """Which is why Eq. 6, read literally, is inert; about their own means the sum is near 0 by
    comparison with its terms.
    """
    weight = torch.randn(filters, 3, 3, 3, dtype=torch.float64)
    assert decorrelation(weight, centre="mean_filter").item() == pytest.approx(
        -filters / 2, rel=0.05
    )


def test_256_filters_in_26_dimensions_are_correlated_however_they_are_turned():
    """Protocol: the rms of c is at least √((256 − 26) / (26 · 255)) = .186; descending on c²
    reaches that, and stays above.
    """
    floor = math.sqrt((256 - 26) / (26 * 255))
    assert floor == pytest.approx(0.186, abs=5e-4)
    weight = torch.randn(256, 3, 3, 3).requires_grad_()
    rms = [decorrelation(weight, pairs="square", reduce="mean").sqrt()]
    for _ in range(30):
        (gradient,) = torch.autograd.grad(decorrelation(weight, pairs="square"), weight)
        weight = (weight - 0.03 * gradient).detach().requires_grad_()
        rms.append(decorrelation(weight, pairs="square", reduce="mean").sqrt())
    assert min(rms) >= floor - 1e-4
    assert rms[-1] < floor + 2e-3 < floor + 5e-3 < rms[0]


@pytest.mark.parametrize(("centre", "pairs", "reduce"), OPTIONS)
def test_decorrelation_takes_each_pair_once(centre, pairs, reduce):
    weight = torch.randn(7, 2, 3, 3, dtype=torch.float64)
    c = filter_correlation(weight, centre).numpy()
    terms = [c[d, e] for d in range(7) for e in range(d + 1, 7)]
    terms = [{"signed": x, "abs": abs(x), "square": x**2}[pairs] for x in terms]
    found = decorrelation(weight, centre=centre, pairs=pairs, reduce=reduce).item()
    assert found == pytest.approx(sum(terms) / (21 if reduce == "mean" else 1), rel=1e-10)


@pytest.mark.parametrize(("centre", "pairs", "reduce"), OPTIONS)
def test_decorrelation_s_gradient_agrees_with_finite_differences(centre, pairs, reduce):
    weight = (0.2 + torch.randn(5, 2, 2, 2, dtype=torch.float64)).requires_grad_()
    options = {"centre": centre, "pairs": pairs, "reduce": reduce}
    assert torch.autograd.gradcheck(lambda w: decorrelation(w, **options), weight)


@pytest.mark.parametrize("centre", losses.CENTRES)
def test_the_correlations_gradient_agrees_with_finite_differences(centre):
    weight = (0.2 + torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: filter_correlation(w, centre), weight)


@pytest.mark.parametrize("reduce", losses.REDUCTIONS)
def test_one_filter_alone_has_no_pairs(reduce):
    weight = torch.randn(1, 3, 3, 3).requires_grad_()
    total = decorrelation(weight, reduce=reduce)
    total.backward()
    assert total.item() == 0 and (weight.grad == 0).all()


def test_unknown_options_of_a_correlation_are_refused_with_those_there_are():
    weight = torch.ones(3, 4)
    for call, message in (
        (
            lambda: filter_correlation(weight, "median"),
            "centre is 'median'; allowed: own, mean_filter",
        ),
        (
            lambda: decorrelation(weight, centre="median"),
            "centre is 'median'; allowed: own, mean_filter",
        ),
        (
            lambda: decorrelation(weight, pairs="cubic"),
            "pairs is 'cubic'; allowed: signed, abs, square",
        ),
        (lambda: decorrelation(weight, reduce="max"), "reduce is 'max'; allowed: sum, mean"),
        (lambda: filter_correlation(torch.ones(3)), r"shape \(3,\); \[D, …\]"),
        (lambda: DecorrReg(convnet(), {"conv1": 1}, pairs="cubic"), "pairs is 'cubic'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ---- SparsityReg and DecorrReg


def convnet() -> nn.Sequential:
    """Two convolutions (the second strided) with ReLU in place, and a classifier; float64."""
    layers = dict(
        conv1=nn.Conv2d(2, 4, 3),
        relu1=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(4, 5, 3, stride=2),
        flat=nn.Flatten(),
    )
    layers |= dict(relu2=nn.ReLU(inplace=True), fc=nn.Linear(5 * 2 * 2, 3))
    model = nn.Sequential(collections.OrderedDict(layers)).double()
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=source)
    return model


def pictures(count: int = 3) -> torch.Tensor:
    return torch.randn(
        count, 2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def test_the_sparsity_penalty_sums_over_weighted_layers_and_fields_and_averages_over_the_batch():
    model, x = convnet(), pictures()
    sparsity = SparsityReg(model, {"conv1": 0.25, "conv2": 3.0, "fc": 0.0})
    model(10 * x)
    model(x)
    first = model.conv1(x)
    expected = 0.0
    for lam, h in (
        (0.25, pixel_entropies(model.conv1, x)),
        (3.0, pixel_entropies(model.conv2, first.relu())),
    ):
        assert h.ndim == 3
        expected -= lam * sum(h.ravel()) / len(x)
    model(x)
    assert sparsity.penalty().item() == pytest.approx(expected, rel=1e-10)
    assert expected < 0


def test_the_sparsity_penalty_s_sum_over_the_batch_is_as_many_times_its_mean():
    model, x = convnet(), pictures()
    mean, total = (
        SparsityReg(model, {"conv1": 0.001, "fc": 0.002}, batch=batch) for batch in losses.BATCHES
    )
    model(x)
    assert total.penalty().item() == pytest.approx(len(x) * mean.penalty().item(), rel=1e-12)
    with pytest.raises(ValueError, match="batch is 'max'; allowed: mean, sum"):
        SparsityReg(model, {"conv1": 0.001}, batch="max")


def test_the_sparsity_penalty_is_that_of_any_batch_size():
    """A mean over the batch: doubling the images changes nothing."""
    model, x = convnet(), pictures()
    sparsity = SparsityReg(model, {"conv1": 0.001, "fc": 0.001})
    values = []
    for batch in (x, torch.cat([x, x])):
        model(batch)
        values.append(sparsity.penalty().item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    parts = []
    for image in x:
        model(image[None])
        parts.append(sparsity.penalty().item())
    assert values[0] == pytest.approx(np.mean(parts), rel=1e-12)


def test_a_linear_layer_has_its_filters_last_wherever_its_positions_are():
    """As in torchvision's ConvNeXt and transformers, which apply linear layers to [N, …,
    features].
    """
    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(3, 4, 2, 6)
    sparsity = SparsityReg(model, {"0": 1.0})
    outputs = model(x)
    expected = -entropy(softmax(outputs.detach().numpy(), -1), axis=-1).sum() / 3
    assert sparsity.penalty().item() == pytest.approx(expected, rel=1e-5)


def test_the_sparsity_penalty_s_gradient_agrees_with_finite_differences():
    model, x = convnet(), pictures(2)
    sparsity = SparsityReg(model, {"conv2": 0.7})

    def penalty(one, two):
        torch.func.functional_call(model, {"conv1.weight": one, "conv2.bias": two}, (x,))
        return sparsity.penalty()

    given = (p.detach().clone().requires_grad_() for p in (model.conv1.weight, model.conv2.bias))
    assert torch.autograd.gradcheck(penalty, tuple(given))


def test_descending_on_the_sparsity_penalty_raises_entropy_and_the_other_sign_would_lower_it():
    for sign in (1, -1):
        model, x = convnet(), pictures(8)
        sparsity = SparsityReg(model, {"conv1": 0.01, "conv2": 0.01})
        optimizer, course = torch.optim.SGD(model.parameters(), 0.1), []
        for _ in range(30):
            model(x)
            course.append(rfav_entropy(model.conv1(x)).mean().item())
            optimizer.zero_grad()
            model(x)
            (sign * sparsity.penalty()).backward()
            optimizer.step()
        assert sign * (course[-1] - course[0]) > 0.02
        assert (sign * np.diff(course) > 0).all()


def test_descending_on_decorrelation_of_squares_decorrelates():
    model = convnet()
    decorr = DecorrReg(model, {"conv1": 1.0}, pairs="square")
    before = decorr.penalty().item()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(50):
        optimizer.zero_grad()
        decorr.penalty().backward()
        optimizer.step()
    assert decorr.penalty().item() < 0.1 * before


@pytest.mark.parametrize(("centre", "pairs", "reduce"), OPTIONS)
def test_the_decorrelation_penalty_is_of_the_weights_as_they_are_now_each_layer_with_its_own_weight(
    centre, pairs, reduce
):
    model, options = convnet(), {"centre": centre, "pairs": pairs, "reduce": reduce}
    decorr = DecorrReg(model, {"conv1": 0.5, "fc": 2.0}, **options)
    for _ in range(2):
        expected = 0.5 * decorrelation(model.conv1.weight, **options) + 2 * decorrelation(
            model.fc.weight, **options
        )
        assert decorr.penalty().item() == pytest.approx(expected.item(), rel=1e-12)
        with torch.no_grad():
            model.conv1.weight.normal_()
    decorr.penalty().backward()
    assert model.conv1.weight.grad.abs().sum() > 0 and model.fc.weight.grad.abs().sum() > 0
    assert model.conv2.weight.grad is None


def test_the_defaults_of_decorrreg_are_the_equations_about_the_filters_own_means():
    model = convnet()
    c = np.corrcoef(model.conv2.weight.detach().flatten(1).numpy())
    assert DecorrReg(model, {"conv2": 1}).penalty().item() == pytest.approx(
        c[np.tril_indices(5, -1)].sum(), rel=1e-10
    )


@pytest.mark.parametrize("make", [SparsityReg, DecorrReg])
def test_attached_penalties_leave_the_output_alone_and_removed_ones_leave_nothing_behind(make):
    model, x = convnet(), pictures()
    before = model(x)
    penalty = make(model, {"conv1": 1.0, "conv2": 1.0})
    assert torch.equal(model(x), before)
    penalty.penalty()
    penalty.remove()
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(x), before)
    penalty.remove()  # twice does no harm


def test_a_sparsity_penalty_without_a_forward_pass_is_an_error_that_names_the_layers():
    model = convnet()
    sparsity = SparsityReg(model, {"conv2": 1.0, "conv1": 1.0})
    with pytest.raises(RuntimeError, match=r"conv1, conv2.*forward"):
        sparsity.penalty()
    model.conv1(pictures())
    with pytest.raises(RuntimeError, match=r"at conv2 yet"):
        sparsity.penalty()
    model(pictures())
    sparsity.remove()
    with pytest.raises(RuntimeError, match=r"conv1, conv2.*forward"):
        sparsity.penalty()


def test_no_layers_are_no_penalty():
    model = convnet()
    assert SparsityReg(model, {}).penalty().item() == 0
    assert DecorrReg(model, {}).penalty().item() == 0


@pytest.mark.parametrize(("make", "symbol"), [(SparsityReg, "λ"), (DecorrReg, "κ")])
def test_bad_layers_and_weights_are_refused_and_leave_no_hook_behind(make, symbol):
    model = convnet()
    for layers, message in (
        (
            {"conv1": 1, "conv9": 1},
            r"'conv9'; its layers are conv1, relu1, conv2, flat, relu2, fc$",
        ),
        (
            {"conv1": 1, "relu1": 1},
            r"'relu1' is a ReLU; only convolutions and linear layers .*: conv1, conv2, fc$",
        ),
        ({"conv1": 1, "conv2": -0.1}, rf"{symbol} of 'conv2' is -0\.1; it has to be a number ≥ 0"),
        ({"conv1": math.nan}, rf"{symbol} of 'conv1' is nan"),
        ({"conv1": math.inf}, rf"{symbol} of 'conv1' is inf"),
    ):
        with pytest.raises(ValueError, match=message):
            make(model, layers)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match=r"'0' is a ReLU; .*: none"):
        make(nn.Sequential(nn.ReLU()), {"0": 1})


def test_filter_layers_are_the_convolutions_and_linear_layers_in_order():
    model = nn.Sequential(
        nn.Conv1d(2, 3, 1),
        nn.BatchNorm1d(3),
        nn.Sequential(nn.Conv3d(2, 3, 1), nn.ReLU()),
        nn.Linear(2, 2),
    )
    found = losses.filter_layers(model)
    assert list(found) == ["0", "2.0", "3"] and found["2.0"] is model[2][0]


# ---- on torchvision's networks


@pytest.fixture(scope="module")
def resnet():
    """torchvision's ResNet-18 with small random weights, in eval mode, and images."""
    from lib.data.vision import torchvision

    with torch.device("meta"):
        model = torchvision.models.resnet18(weights=None, num_classes=5)
    model.to_empty(device="cpu").eval()
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05, generator=source)
        for name, buffer in model.named_buffers():
            buffer.fill_(0 if "mean" in name else 1)
    return model, torch.randn(2, 3, 32, 32, generator=source)


def patch_outputs(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Eq. 1 by explicit patches: [N, D, A, B]."""
    patches = F.unfold(
        x, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )  # [N, C·i·j, R]
    outputs = layer.weight.flatten(1) @ patches + (0 if layer.bias is None else layer.bias[:, None])
    return outputs.unflatten(2, layer(x).shape[2:])


def hand_sparsity(model: nn.Module, x: torch.Tensor, layers: dict[str, float]) -> float:
    """L_s of what goes *into* the layers, taken by a plain pre-hook."""
    inputs, modules = {}, dict(model.named_modules())
    hooks = [
        modules[name].register_forward_pre_hook(
            lambda m, given, name=name: inputs.update({name: given[0].clone()})
        )
        for name in layers
    ]
    with torch.no_grad():
        model(x)
        for hook in hooks:
            hook.remove()
        total = 0.0
        for name, lam in layers.items():
            layer = modules[name]
            outputs = (
                patch_outputs(layer, inputs[name])
                if isinstance(layer, nn.Conv2d)
                else layer(inputs[name])
            )
            p = softmax(outputs.double().numpy(), 1)
            total -= lam * entropy(p, axis=1).sum() / len(x)
    return total


RESNET_LAYERS = {
    "conv1": 0.001,
    "layer1.0.conv2": 0.01,
    "layer2.0.downsample.0": 0.002,
    "layer4.1.conv1": 0.5,
    "fc": 0.3,
}
ALEXNET_LAYERS = {"features.0": 0.001, "features.3": 0.01, "features.10": 0.02}


def test_on_resnet18_both_penalties_equal_a_hand_computation(resnet):
    model, x = resnet
    sparsity, decorr = (
        SparsityReg(model, RESNET_LAYERS),
        DecorrReg(model, {"conv1": 1.0, "layer1.0.conv2": 0.1}),
    )
    with torch.no_grad():
        model(x)
    assert sparsity.penalty().item() == pytest.approx(
        hand_sparsity(model, x, RESNET_LAYERS), rel=1e-4
    )
    expected = 0.0
    for weight, kappa in ((model.conv1.weight, 1.0), (model.layer1[0].conv2.weight, 0.1)):
        c = np.corrcoef(weight.detach().double().flatten(1).numpy())
        expected += kappa * c[np.tril_indices(len(c), -1)].sum()
    assert decorr.penalty().item() == pytest.approx(expected, rel=1e-3)
    sparsity.remove()
    decorr.remove()


def test_on_alexnet_the_sparsity_penalty_is_of_linear_outputs_though_relu_is_in_place(alexnets):
    values = []
    for model in alexnets[:2]:
        sparsity = SparsityReg(model, ALEXNET_LAYERS)
        with torch.no_grad():
            model(alexnets[2])
        values.append(sparsity.penalty().item())
        sparsity.remove()
    assert values[0] == values[1]
    assert values[0] == pytest.approx(
        hand_sparsity(alexnets[1], alexnets[2], ALEXNET_LAYERS), rel=1e-4
    )


def test_on_alexnet_both_penalties_gradients_are_the_same_with_relu_in_place_and_out_of_place(
    alexnets,
):
    gradients = []
    for model in alexnets[:2]:
        sparsity, decorr = (
            SparsityReg(model, ALEXNET_LAYERS),
            DecorrReg(model, {"features.0": 1.0}, pairs="square"),
        )
        logits = model(alexnets[2])
        (logits.logsumexp(1).sum() + sparsity.penalty() + decorr.penalty()).backward()
        gradients.append([model.features[k].weight.grad.clone() for k in (0, 3, 10)])
        model.zero_grad(set_to_none=True)
        sparsity.remove()
        decorr.remove()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
