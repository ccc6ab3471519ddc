import collections
import contextlib
import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
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
    perplexity,
    rfav_entropy,
)
from lib.schedules import schedule, schedule_of_total

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _keep_the_global_generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def filled(model: nn.Module, scale: float) -> nn.Module:
    """The network with weights and biases of some size, always the same ones."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale, generator=source)
    return model


# ---- schedules

KINDS = ("al2", "geometric", "linear", "constant")


def loop(num_epochs: int) -> list[float]:
    """λ_e by Eq. 2, word for word."""
    weight, series = 0.01, []
    for _ in range(num_epochs):
        series.append(weight)
        weight = weight * 1.1 if weight < 5 else weight * 1.01
    return series


def test_al2_weights_have_the_printed_values():
    """The protocol's check values, as precisely as they are printed there."""
    epochs = [1, 10, 50, 65, 66, 100, 200, 300, 400, 500, 600, 699, 700]
    printed = ".011 .02594 1.1739 4.9037 5.3941 7.5656 20.464 55.350 149.71 404.94 1095.3 2933.2"
    for epoch, value in zip(epochs, f"{printed} 2962.6".split(), strict=True):
        digits = len(value.split(".")[1])
        assert round(al2_weights(701)[epoch], digits) == float(value), epoch


@pytest.mark.parametrize("num_epochs", [1, 2, 66, 67, 68, 700, 1500])
def test_al2_weights_are_a_plain_loop_in_float64_and_fewer_epochs_the_beginning_of_more(num_epochs):
    weights = al2_weights(num_epochs)
    assert weights.dtype == np.float64 and weights.shape == (num_epochs,)
    np.testing.assert_allclose(weights, loop(num_epochs), rtol=1e-12)
    np.testing.assert_array_equal(weights, al2_weights(2000)[:num_epochs])


@pytest.mark.parametrize("speed", [2, 7, 10, 2.75, 8.75, 0.1])
def test_speed_steps_along_the_same_curve_and_interpolates_it_geometrically(speed):
    exact, expected = loop(900), []
    for epoch in range(80):
        whole, rest = divmod(speed * epoch, 1)
        low, high = exact[int(whole)], exact[int(whole) + 1]
        expected.append(low ** (1 - rest) * high**rest)
    np.testing.assert_allclose(al2_weights(80, speed), expected, rtol=1e-12)
    np.testing.assert_array_equal(schedule("al2", 80, speed), al2_weights(80, speed))


def test_the_default_rates_end_or_average_where_al2_does_and_warn_of_nothing():
    reference = loop(700)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        al2, geometric, linear, constant = (schedule(name, 700) for name in KINDS)
    np.testing.assert_array_equal(al2, al2_weights(700))
    assert geometric[0] == linear[0] == 0.01
    assert [geometric[-1], linear[-1]] == pytest.approx([reference[-1]] * 2, rel=1e-9)
    np.testing.assert_allclose(constant, sum(reference) / 700)
    np.testing.assert_allclose(geometric[1:] / geometric[:-1], geometric[1] / geometric[0])
    np.testing.assert_allclose(np.diff(linear), linear[1] - linear[0])


def test_rates_and_speeds_of_the_other_schedules():
    expected = [0.01 * 1.5 ** (3 * e) for e in range(4)]
    np.testing.assert_allclose(schedule("geometric", 4, speed=3, rate=1.5), expected)
    np.testing.assert_allclose(schedule("linear", 4, speed=3, rate=0.5), [0.01, 1.51, 3.01, 4.51])
    np.testing.assert_array_equal(schedule("constant", 4, speed=3, rate=0.5), [0.5] * 4)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("epochs", "speed"), [(50, 3.4), (80, 6.15), (700, 1.0)])
@pytest.mark.parametrize("share", [0.1, 1.0, 3.0])
def test_a_schedule_of_a_total_adds_up_to_it_by_its_one_setting(name, epochs, speed, share):
    total = share * sum(al2_weights(epochs, speed))
    setting = schedule_of_total(name, epochs, total, speed)
    assert list(setting) == ["speed" if name == "al2" else "rate"]
    weights = schedule(name, epochs, **{"speed": speed} | setting)
    # six digits of a factor that is raised to the power of the last epoch
    assert sum(weights) == pytest.approx(total, rel=5e-6 * epochs * speed)
    assert weights[0] == (AL2_START if name != "constant" else weights[-1])
    assert (np.diff(weights) > 0).all() or name == "constant"


def test_settings_of_a_total_have_six_digits():
    """Digits beyond the sixth differ from machine to machine, and with them the id of a run."""
    found = {name: schedule_of_total(name, 50, 500.0, 3.4) for name in KINDS}
    for setting in found.values():
        (value,) = setting.values()
        assert value == float(f"{value:.5e}")
    assert found["constant"] == {"rate": 10.0}
    assert schedule_of_total("constant", 10, 0.09) == {"rate": 0.009}


POSITIVE = r"num_epochs .* speed"
ALL_KINDS = r"'cosine'.*al2, geometric, linear, constant"
TOO_LITTLE = r"no schedule '{}' of 10 epochs adds up to 0\.09; .* has to be above 0\.1"


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (schedule, ("cosine", 10), ALL_KINDS),
        (schedule_of_total, ("cosine", 10, 5), ALL_KINDS),
        (schedule, ("al2", 10, 1, 1.05), r"rate is 1\.05.*al2.*speed"),
        *((schedule, (k, 10, 1, r), "rate is") for k in KINDS[1:] for r in (0, -1, math.nan)),
        *(
            (schedule_of_total, (kind, 10, total), "total is")
            for kind in KINDS
            for total in (0, -1, math.nan, math.inf)
        ),
        *((schedule_of_total, (k, 10, 0.09), TOO_LITTLE.format(k)) for k in KINDS[:3]),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_the_reason(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize(
    ("epochs", "speed"), [(0, 1), (-1, 1), (10, 0), (10, -1), (10, math.nan), (10, math.inf)]
)
def test_no_epochs_and_speeds_that_are_not_positive_are_refused(epochs, speed):
    with pytest.raises(ValueError, match=POSITIVE):
        al2_weights(epochs, speed)
    for name in KINDS:
        with pytest.raises(ValueError, match=POSITIVE):
            schedule(name, epochs, speed)
        with pytest.raises(ValueError, match=POSITIVE):
            schedule_of_total(name, epochs, 5, speed)


# ---- L_r


@pytest.mark.parametrize("shape", [(6, 800), (3, 50, 4, 4), (1, 1)])
def test_activation_l2_is_the_mean_of_squares_over_batch_and_units(shape):
    phi = 1 + 3 * numbers(*shape)
    expected = (phi.numpy() ** 2).sum() / phi.numel()
    assert activation_l2(phi).item() == pytest.approx(expected, rel=1e-12)


def tiny() -> nn.Sequential:
    body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    return nn.Sequential(collections.OrderedDict(body=body, out=nn.Linear(4, 2))).double()


def test_each_penalty_is_of_its_named_layer_and_leaves_the_output_and_the_others_alone():
    model, x = tiny(), numbers(5, 3)
    logits = model(x)
    names = ("body.0", "body.1", "body", "out")
    penalties = [ActivationL2(model, name) for name in names]
    model(10 * x)
    for penalty in penalties:
        penalty.penalty()
    assert torch.equal(model(x), logits)
    weight, bias = (p.detach().numpy() for p in model.body[0].parameters())
    linear = x.numpy() @ weight.T + bias
    hidden = np.tanh(linear)
    expected = [np.mean(a**2) for a in (linear, hidden, hidden, logits.detach().numpy())]
    penalties[0].remove()
    penalties[2].penalty().backward()
    assert model.body[0].weight.grad.abs().sum() > 0 and model.out.weight.grad is None
    found = [penalty.penalty().item() for penalty in penalties[1:]]
    assert found == pytest.approx(expected[1:], rel=1e-12)
    first = ActivationL2(model, names[0])
    model(x)
    assert first.penalty().item() == pytest.approx(expected[0], rel=1e-12)


def test_the_penalty_s_gradient_agrees_with_finite_differences():
    model, x = tiny(), numbers(5, 3)
    al2 = ActivationL2(model, "body")

    def penalty(weight, bias):
        torch.func.functional_call(model, {"body.0.weight": weight, "body.0.bias": bias}, (x,))
        return al2.penalty()

    given = tuple(p.detach().clone().requires_grad_() for p in model.body[0].parameters())
    assert torch.autograd.gradcheck(penalty, given)


# ---- entropy of receptive-field activation vectors


def plain_entropies(layer: nn.Module, x: torch.Tensor) -> np.ndarray:
    """Eq. 1, 3 and 4 word for word in float64: at each receptive field a patch of the input, D
    products, softmax, entropy.

    [N, A, B] of a convolution, [N] of a linear layer.
    """
    weight = layer.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().numpy()
    images = x.detach().double().numpy()
    if isinstance(layer, nn.Linear):
        return np.array([plain_entropy(weight @ image + bias) for image in images])
    down, across = layer.stride
    far_down, far_across = layer.dilation
    images = np.pad(images, [(0, 0), (0, 0), *((pixels, pixels) for pixels in layer.padding)])
    filters, channels, height, width = weight.shape
    tall, wide = far_down * (height - 1) + 1, far_across * (width - 1) + 1
    fields = (images.shape[2] - tall) // down + 1, (images.shape[3] - wide) // across + 1
    entropies = np.empty((len(images), *fields))
    for n, a, b in np.ndindex(entropies.shape):
        rows = slice(a * down, a * down + tall, far_down)
        columns = slice(b * across, b * across + wide, far_across)
        outputs = bias.copy()
        for d in range(filters):
            first = d // (filters // layer.groups) * channels
            outputs[d] += (weight[d] * images[n, first : first + channels, rows, columns]).sum()
        entropies[n, a, b] = plain_entropy(outputs)
    return entropies


def plain_entropy(vector: np.ndarray) -> float:
    p = np.exp(vector) / np.exp(vector).sum()
    return -sum(share * np.log(share) for share in p)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3),
        nn.Conv2d(3, 5, 3, padding=(1, 2)),
        nn.Conv2d(3, 5, 3, stride=(2, 1)),
        nn.Conv2d(3, 5, (3, 2), dilation=(1, 3)),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(4, 8, 3, groups=4, padding=1),
        nn.Conv2d(3, 5, 3, bias=False),
        nn.Conv2d(3, 5, 1),
        nn.Conv2d(4, 6, (2, 3), stride=(2, 3), dilation=(3, 2), groups=2, padding=(2, 3)),
        nn.Linear(7, 5),
        nn.Linear(7, 5, bias=False),
    ],
    ids=str,
)
def test_entropy_equals_a_loop_over_receptive_fields(layer):
    layer = filled(copy.deepcopy(layer).double(), 0.7)
    x = numbers(6, 7) if isinstance(layer, nn.Linear) else numbers(2, layer.in_channels, 7, 8)
    found, expected = rfav_entropy(layer(x)), plain_entropies(layer, x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    assert np.ptp(expected) > 0.1  # the fields differ, so their order matters


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (2, 5, 3, 4), (2, 5, 2, 3, 2)])
def test_entropy_is_that_of_scipy_over_filters_for_any_positions_and_memory_layout(shape):
    a = 3 * numbers(*shape)
    found = rfav_entropy(a)
    assert found.shape == shape[:1] + shape[2:]
    expected = entropy(softmax(a.numpy(), 1), axis=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    for order in ((0, *range(2, a.dim()), 1), tuple(range(a.dim()))[::-1]):
        other = a.permute(order).contiguous().permute(np.argsort(order).tolist())
        assert torch.equal(other, a) and torch.equal(rfav_entropy(other), found)


@pytest.mark.parametrize("scale", [0, 1e-8, 1e-3, 1, 30, 1e3, 1e6])
@pytest.mark.parametrize("filters", [1, 2, 7, 512])
def test_entropy_lies_between_0_and_ln_d_and_perplexity_between_1_and_d(scale, filters):
    a = scale * torch.randn(4, filters, 3, 3)
    h = rfav_entropy(a)
    assert (h >= 0).all() and (h <= math.log(filters) + 1e-5).all()
    assert (perplexity(a) >= 1).all() and (perplexity(a) <= filters * (1 + 1e-5)).all()
    assert torch.equal(perplexity(a), h.exp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_extreme_outputs_have_finite_entropies_and_gradients(dtype):
    high = 1e4
    rows = [[high] * 4, [-high] * 4, [high, -high] * 2, [high, 0, 0, 0]]
    rows += [[-high, 0, 1, 2], [0, 1e-7, high, high - 8]]
    a = torch.tensor(rows, dtype=dtype).requires_grad_()
    h = rfav_entropy(a)
    h.sum().backward()
    assert torch.isfinite(h).all() and torch.isfinite(a.grad).all()
    assert h[:4].tolist() == pytest.approx([math.log(4), math.log(4), math.log(2), 0], rel=1e-6)
    # of the values as they were rounded
    expected = entropy(softmax(a.detach().double().numpy(), 1), axis=1)
    np.testing.assert_allclose(h.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def autograd_entropy(activations):
    """The same entropy with PyTorch's own operators and gradient."""
    log_p = activations.movedim(1, -1).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_widened_before_the_softmax_and_may_be_overwritten_after_it(dtype):
    z = (3 * torch.randn(6, 300, 2, 2)).to(dtype).requires_grad_()
    linear = z * 1
    found = rfav_entropy(linear)
    assert found.dtype == torch.float32 and rfav_entropy(z.double()).dtype == torch.float64
    assert torch.equal(found, rfav_entropy(z.float()))
    linear.relu_()  # as torchvision's networks do
    (slope,) = torch.autograd.grad(found.sum(), z)
    (expected,) = torch.autograd.grad(autograd_entropy(z.float()).sum(), z)
    assert slope.dtype == dtype
    torch.testing.assert_close(slope, expected, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 2, 3)])
def test_entropy_s_gradients_agree_with_finite_differences(shape):
    """Those of the gradient, too."""
    z = (2 * numbers(*shape)).requires_grad_()
    assert torch.autograd.gradcheck(rfav_entropy, z)
    assert torch.autograd.gradgradcheck(rfav_entropy, z)


@pytest.mark.parametrize("size", [1, 100])
def test_entropy_s_gradients_are_autograd_s_own(size):
    z = (size * numbers(4, 16, 3, 3)).requires_grad_()
    weight = numbers(4, 3, 3)
    found = []
    for of in (rfav_entropy, autograd_entropy):
        (slope,) = torch.autograd.grad((weight * of(z)).sum(), z, create_graph=True)
        found.append([slope.detach(), *torch.autograd.grad(slope.square().sum(), z)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


# ---- correlation of filters

OPTIONS = [
    dict(centre=centre, pairs=pairs, reduce=reduce)
    for centre, pairs, reduce in itertools.product(losses.CENTRES, losses.PAIRS, losses.REDUCTIONS)
]


def plain_correlation(weight: torch.Tensor, centre: str) -> np.ndarray:
    """By numpy, or Eq. 6 word for word."""
    w = weight.detach().double().flatten(1).numpy()
    if centre == "own":
        return np.atleast_2d(np.corrcoef(w))
    w = w - sum(w) / len(w)
    return np.array([[a @ b / math.sqrt((a**2).sum() * (b**2).sum()) for b in w] for a in w])


def plain_decorrelation(weight, centre="own", pairs="signed", reduce="sum") -> float:
    c = plain_correlation(weight, centre)
    read = {"signed": float, "abs": abs, "square": np.square}[pairs]
    terms = [read(c[d, e]) for d in range(len(c)) for e in range(d + 1, len(c))]
    return sum(terms) / (len(terms) if reduce == "mean" else 1)


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (5, 40), (4, 2, 5), (3, 2, 2, 2, 2)])
@pytest.mark.parametrize("centre", losses.CENTRES)
def test_correlation_is_numpy_s_or_eq_6_at_every_scale_and_precision(centre, shape):
    weight = 0.3 + numbers(*shape)
    c = filter_correlation(weight, centre)
    np.testing.assert_allclose(c.numpy(), plain_correlation(weight, centre), rtol=0, atol=1e-12)
    single = filter_correlation(weight.float(), centre)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), c, rtol=0, atol=1e-5)
    for scale in (1e-15, 1e-3, 1e15):
        torch.testing.assert_close(filter_correlation(scale * weight.float(), centre), single)
    for dtype in HALVES:
        half = weight.to(dtype)
        wide = filter_correlation(half.float(), centre)
        assert torch.equal(filter_correlation(half, centre), wide)
    assert torch.autograd.gradcheck(
        lambda w: filter_correlation(w, centre), weight[:4].flatten(1)[:, :8].requires_grad_()
    )


@pytest.mark.parametrize("size", [1, 2, 27, 576, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
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


def test_256_filters_in_26_dimensions_are_correlated_however_they_are_turned():
    """Protocol: the rms of c is at least √((256 − 26) / (26 · 255)) = .186; descending on c²
    reaches that, and stays above.
    """
    floor = math.sqrt((256 - 26) / (26 * 255))
    assert floor == pytest.approx(0.186, abs=5e-4)
    weight = torch.randn(256, 3, 3, 3).requires_grad_()
    # why Eq. 6, read literally, is inert: about the mean filter the sum is −D/2 from the start
    inert = decorrelation(weight.double(), centre="mean_filter").item()
    assert inert == pytest.approx(-256 / 2, rel=0.05)
    rms = [decorrelation(weight, pairs="square", reduce="mean").sqrt()]
    for _ in range(30):
        (gradient,) = torch.autograd.grad(decorrelation(weight, pairs="square"), weight)
        weight = (weight - 0.03 * gradient).detach().requires_grad_()
        rms.append(decorrelation(weight, pairs="square", reduce="mean").sqrt())
    assert min(rms) >= floor - 1e-4
    assert rms[-1] < floor + 2e-3 < floor + 5e-3 < rms[0]


@pytest.mark.parametrize("options", OPTIONS)
def test_decorrelation_takes_each_pair_once_and_its_gradient_agrees_with_finite_differences(
    options,
):
    weight = numbers(7, 2, 3, 3)
    expected = plain_decorrelation(weight, **options)
    assert decorrelation(weight, **options).item() == pytest.approx(expected, rel=1e-10)
    small = (0.2 + numbers(5, 2, 2, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: decorrelation(w, **options), small)


@pytest.mark.parametrize("reduce", losses.REDUCTIONS)
def test_one_filter_alone_has_no_pairs(reduce):
    weight = torch.randn(1, 3, 3, 3).requires_grad_()
    total = decorrelation(weight, reduce=reduce)
    total.backward()
    assert total.item() == 0 and (weight.grad == 0).all()


# ---- SparsityReg and DecorrReg


def convnet() -> nn.Sequential:
    """Two convolutions (the second strided) with ReLU in place, and a classifier; float64."""
    layers = dict(
        conv1=nn.Conv2d(2, 4, 3),
        relu1=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(4, 5, 3, stride=2),
        flat=nn.Flatten(),
        relu2=nn.ReLU(inplace=True),
        fc=nn.Linear(5 * 2 * 2, 3),
    )
    return filled(nn.Sequential(collections.OrderedDict(layers)).double(), 0.5)


def sparsity_by_hand(model: nn.Module, x: torch.Tensor, layers: dict[str, float]) -> float:
    """L_s of what goes *into* the layers, taken by a plain pre-hook, averaged over the batch."""
    inputs = {}
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name in layers:
            hook = model.get_submodule(name).register_forward_pre_hook(
                lambda m, given, name=name: inputs.update({name: given[0].clone()})
            )
            hooks.enter_context(hook)
        model(x)
    entropies = {name: plain_entropies(model.get_submodule(name), inputs[name]) for name in layers}
    return -sum(lam * entropies[name].sum() / len(x) for name, lam in layers.items())


@pytest.mark.parametrize("count", [1, 3])
def test_the_sparsity_penalty_sums_over_weighted_layers_and_fields_and_averages_over_the_batch(
    count,
):
    model, x, layers = convnet(), numbers(count, 2, 7, 7), {"conv1": 0.25, "conv2": 3.0, "fc": 0.0}
    mean, total = (SparsityReg(model, layers, batch=batch) for batch in losses.BATCHES)
    model(x)
    found = mean.penalty().item(), total.penalty().item()
    expected = sparsity_by_hand(model, x, layers)
    assert found == pytest.approx((expected, count * expected), rel=1e-10) and expected < 0


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
    model, x = convnet(), numbers(2, 2, 7, 7)
    sparsity = SparsityReg(model, {"conv2": 0.7})

    def penalty(one, two):
        torch.func.functional_call(model, {"conv1.weight": one, "conv2.bias": two}, (x,))
        return sparsity.penalty()

    given = (p.detach().clone().requires_grad_() for p in (model.conv1.weight, model.conv2.bias))
    assert torch.autograd.gradcheck(penalty, tuple(given))


@pytest.mark.parametrize("sign", [1, -1])
def test_descending_on_the_sparsity_penalty_raises_entropy_and_the_other_sign_would_lower_it(sign):
    model, x, course = convnet(), numbers(8, 2, 7, 7), []
    sparsity = SparsityReg(model, {"conv1": 0.01, "conv2": 0.01})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(30):
        with torch.no_grad():
            course.append(rfav_entropy(model.conv1(x)).mean().item())
        optimizer.zero_grad()
        model(x)
        (sign * sparsity.penalty()).backward()
        optimizer.step()
    assert sign * (course[-1] - course[0]) > 0.02
    assert (sign * np.diff(course) > 0).all()


@pytest.mark.parametrize("options", [{}, *OPTIONS])
def test_the_decorrelation_penalty_is_of_each_layer_s_weights_as_they_are_now(options):
    model = convnet()
    decorr = DecorrReg(model, {"conv1": 0.5, "fc": 2.0}, **options)
    weights = [model.conv1.weight, model.fc.weight]
    for _ in range(2):
        one, two = (plain_decorrelation(weight, **options) for weight in weights)
        assert decorr.penalty().item() == pytest.approx(0.5 * one + 2 * two, rel=1e-10)
        with torch.no_grad():
            model.conv1.weight.normal_()
    decorr.penalty().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in weights)
    assert model.conv2.weight.grad is None


@pytest.mark.parametrize("make", [SparsityReg, DecorrReg])
def test_no_layers_are_no_penalty(make):
    assert make(convnet(), {}).penalty().item() == 0


def test_layers_are_found_by_name_and_those_with_filters_in_order():
    model = nn.Sequential(
        nn.Conv1d(2, 3, 1),
        nn.BatchNorm1d(3),
        nn.Sequential(nn.Conv3d(2, 3, 1), nn.ReLU()),
        nn.Linear(2, 2),
    )
    found = losses.filter_layers(model)
    assert list(found) == ["0", "2.0", "3"] and found["2.0"] is model[2][0]
    assert losses.find_layer(model, "2.0") is model[2][0]


NAMES = "conv1, relu1, conv2, flat, relu2, fc$"
CENTRE = "centre is 'median'; allowed: own, mean_filter"
PAIRS = "pairs is 'cubic'; allowed: signed, abs, square"
REDUCE = "reduce is 'max'; allowed: sum, mean"
WEIGHT = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: rfav_entropy(torch.ones(())), r"shape \(\) .*; \[N, D\] or"),
        (lambda model: rfav_entropy(torch.ones(5)), r"shape \(5,\) .*; \[N, D\] or"),
        (lambda model: filter_correlation(torch.ones(3)), r"shape \(3,\) .*; \[D, …\]"),
        (lambda model: filter_correlation(WEIGHT, "median"), CENTRE),
        (lambda model: decorrelation(WEIGHT, centre="median"), CENTRE),
        (lambda model: decorrelation(WEIGHT, pairs="cubic"), PAIRS),
        (lambda model: decorrelation(WEIGHT, reduce="max"), REDUCE),
        (lambda model: DecorrReg(model, {"conv1": 1}, centre="median"), CENTRE),
        (lambda model: DecorrReg(model, {"conv1": 1}, pairs="cubic"), PAIRS),
        (lambda model: DecorrReg(model, {"conv1": 1}, reduce="max"), REDUCE),
        (lambda model: SparsityReg(model, {"conv1": 1}, "max"), "'max'; allowed: mean, sum"),
        (lambda model: SparsityReg(model, {"fc": 1}, max_unread=0), "max_unread is 0"),
        (lambda model: ActivationL2(model, "fc", max_unread=0), "max_unread is 0"),
        (lambda model: ActivationL2(model, "trunk"), f"'trunk'; its layers are {NAMES}"),
        (lambda model: ActivationL2(model, "fc.weight"), f"'fc.weight'; .* {NAMES}"),
        (lambda model: ActivationL2(model, ""), f"''; .* {NAMES}"),
    ],
)
def test_bad_input_is_refused_with_what_there_is(call, message):
    with pytest.raises(ValueError, match=message):
        call(convnet())


@pytest.mark.parametrize(("make", "symbol"), [(SparsityReg, "λ"), (DecorrReg, "κ")])
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"conv1": 1, "conv9": 1}, f"'conv9'; its layers are {NAMES}"),
        (
            {"conv1": 1, "relu1": 1},
            "'relu1' is a ReLU; only convolutions and linear layers .*: conv1, conv2, fc$",
        ),
        ({"conv1": 1, "conv2": -0.1}, r"{} of 'conv2' is -0\.1; it has to be a number ≥ 0"),
        ({"conv1": math.nan}, "{} of 'conv1' is nan"),
        ({"conv1": math.inf}, "{} of 'conv1' is inf"),
    ],
)
def test_bad_layers_and_weights_are_refused_and_leave_no_hook_behind(make, symbol, layers, message):
    model = convnet()
    with pytest.raises(ValueError, match=message.format(symbol)):
        make(model, layers)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match=r"'0' is a ReLU; .*: none"):
        make(nn.Sequential(nn.ReLU()), {"0": 1})


# ---- on torchvision's AlexNet


def alexnet() -> nn.Module:
    """torchvision's, with small random weights."""
    from lib.data.vision import torchvision

    with torch.device("meta"):  # no time for 58 million weights that are not used here
        model = torchvision.models.alexnet(weights=None)
        model.classifier = nn.Linear(256 * 6 * 6, 4)
    return filled(model.to_empty(device="cpu"), 0.05)


def test_on_alexnet_values_and_gradients_are_the_same_with_relu_in_place_and_out_of_place():
    model, x = alexnet(), torch.randn(2, 3, 64, 64)
    other, found = copy.deepcopy(model), []
    for module in other.modules():
        if isinstance(module, nn.ReLU):
            assert module.inplace
            module.inplace = False
    layers = {"features.0": 0.001, "features.3": 0.01, "features.10": 0.02}
    expected = sparsity_by_hand(other, x, layers)
    for net in (model, other):
        names = ("features.0", "features.3", "features.4", "features.10", "features")
        penalties = [ActivationL2(net, name) for name in names]
        penalties += [SparsityReg(net, layers), DecorrReg(net, {"features.0": 1}, pairs="square")]
        loss = net(x).logsumexp(1).sum()
        values = [penalty.penalty() for penalty in penalties]
        watched = [net.get_submodule(name).weight for name in layers]
        slopes = [torch.autograd.grad(loss + value, watched, retain_graph=True) for value in values]
        found.append([torch.stack(values), slopes])
        assert values[-2].item() == pytest.approx(expected, rel=1e-4)  # of linear outputs, then
    (values, slopes), (same, same_slopes) = found
    assert torch.equal(values, same) and values.all()
    torch.testing.assert_close(slopes, same_slopes)
