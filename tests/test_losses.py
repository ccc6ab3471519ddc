import itertools
import math
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from made import plain_entropy
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


@pytest.mark.parametrize("speed", [1, 2, 7, 10, 2.75, 8.75, 0.1])
def test_al2_weights_are_a_plain_loop_that_speed_interpolates_geometrically(speed):
    """Fewer epochs are the beginning of more."""
    exact, expected = loop(900), []
    for epoch in range(80):
        whole, rest = divmod(speed * epoch, 1)
        low, high = exact[int(whole)], exact[int(whole) + 1]
        expected.append(low ** (1 - rest) * high**rest)
    weights = al2_weights(80, speed)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    for epochs in (1, 2, 66, 67, 68, 80):
        for found in (al2_weights(epochs, speed), schedule("al2", epochs, speed)):
            np.testing.assert_array_equal(found, weights[:epochs])
    for name in KINDS:
        with pytest.raises(TypeError):
            schedule(name, 2.5, speed)


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
    for name in ("linear", "constant"):  # longer than the paper's series can be
        assert np.isfinite(schedule(name, 80_000)).all()


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
    # those beyond the sixth differ from machine to machine, and with them the id of a run
    assert [float(f"{value:.5e}") for value in setting.values()] == list(setting.values())


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
        (schedule_of_total, ("al2", 2, 1e30), "adds up to 1e.30 by a speed of up to .* smaller"),
        (schedule, ("geometric", 700, 1, 10.0), "overflows at a rate of 10.0"),
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


def test_each_penalty_is_of_its_named_layer_and_leaves_the_output_and_the_others_alone():
    body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    model = nn.Sequential(OrderedDict(body=body, out=nn.Linear(4, 2))).double()
    x = numbers(5, 3)
    linear, logits = body[0](x), model(x)
    expected = [activation_l2(out).item() for out in (linear, linear.tanh(), linear.tanh(), logits)]
    penalties = [ActivationL2(model, name) for name in ("body.0", "body.1", "body", "out")]
    assert torch.equal(model(x), logits)
    assert [p.penalty().item() for p in penalties] == pytest.approx(expected, rel=1e-12)
    penalties.pop(0).remove()
    model(x)
    penalties[1].penalty().backward()
    assert body[0].weight.grad.abs().sum() > 0 and model.out.weight.grad is None
    assert [p.penalty().item() for p in penalties] == pytest.approx(expected[1:], rel=1e-12)


# ---- entropy of receptive-field activation vectors


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (2, 5, 3, 4), (2, 5, 2, 3, 2)])
def test_entropy_is_that_of_scipy_over_filters_for_any_positions_and_memory_layout(shape):
    a = 3 * numbers(*shape)
    found = rfav_entropy(a)
    assert found.shape == shape[:1] + shape[2:] and torch.equal(perplexity(a), found.exp())
    np.testing.assert_allclose(found.numpy(), plain_entropy(a), rtol=1e-10)
    for order in ((0, *range(2, a.dim()), 1), tuple(range(a.dim()))[::-1]):
        other = a.permute(order).contiguous().permute(np.argsort(order).tolist())
        assert torch.equal(other, a) and torch.equal(rfav_entropy(other), found)


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
    np.testing.assert_allclose(h.detach().numpy(), plain_entropy(a), rtol=1e-5, atol=1e-6)


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
    """Protocol: the rms of c is at least √((256 − 26) / (26 · 255)) = .186, and Eq. 6, read
    literally, is inert: about the mean filter the sum is −D/2 from the start.
    """
    weight = numbers(256, 3, 3, 3)
    rms = decorrelation(weight, pairs="square", reduce="mean").sqrt()
    assert 0.186 < rms < 0.2
    inert = decorrelation(weight, centre="mean_filter").item()
    assert inert == pytest.approx(-256 / 2, rel=0.05)


@pytest.mark.parametrize("options", OPTIONS)
def test_decorrelation_takes_each_pair_once_and_has_the_gradient_of_finite_differences(options):
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
    return nn.Sequential(OrderedDict(layers)).double()


@pytest.mark.parametrize("count", [1, 3])
def test_the_sparsity_penalty_sums_over_weighted_layers_and_fields_and_averages_over_the_batch(
    count,
):
    model, x = convnet(), 5 * numbers(count, 2, 7, 7)
    layers = {"conv1": 0.25, "conv2": 3.0, "fc": 0.0}
    one = model.conv1(x)
    two = model.conv2(one.relu())
    mean, total = (SparsityReg(model, layers, batch=batch) for batch in losses.BATCHES)
    model(x)
    expected = -0.25 * plain_entropy(one).sum() - 3 * plain_entropy(two).sum()
    assert mean.penalty().item() == pytest.approx(expected / count, rel=1e-10)
    assert total.penalty().item() == pytest.approx(expected, rel=1e-10)


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
    block = nn.Sequential(nn.Conv3d(2, 3, 1), nn.ReLU())
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), block, nn.Linear(2, 2))
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
        ({"conv1": 1, "relu1": 1}, "'relu1' is a ReLU; only convolutions .*: conv1, conv2, fc$"),
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


@pytest.mark.parametrize("measure", [losses.rfav_entropy, losses.filter_correlation])
@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 4, dtype=torch.complex64), torch.zeros(3)], ids=["complex", "a row"]
)
def test_measures_refuse_complex_numbers_and_what_has_no_filters(measure, wrong):
    with pytest.raises(ValueError, match="of real numbers"):
        measure(wrong)
    with pytest.raises(ValueError, match="of real numbers"):
        losses.rfav_entropy(torch.zeros(4, 0))
