import copy
import itertools
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from made import plain_entropy, source
from torch import nn

from lib.data import Split
from lib.losses import SparsityReg, filter_correlation
from lib.measures import (
    ablation_area,
    accuracy,
    correlation_histogram,
    correlation_rms,
    correlation_summary,
    cumulative_ablation,
    entropy_maps,
    hidden_layers,
    mean_entropies,
    overfitting_onset,
    rise_after_least,
    smoothed,
)

MASKS = ["element", "shared", "channel"]


# ---- accuracy under ablation


def problem(images: int = 60, shape: tuple[int, ...] = (6, 2, 3), classes: int = 4):
    """Random features, a random linear head with a bias, random labels."""
    phi = torch.rand(images, *shape, generator=source(1))
    head = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 1, generator=source(2))
    return head, phi, torch.randint(classes, (images,), generator=source(3))


def plain_accuracy(head, phi: torch.Tensor, labels: torch.Tensor) -> float:
    right = 0
    for features, label in zip(phi, labels, strict=True):
        right += int(head(features[None])[0].argmax()) == int(label)
    return 100 * right / len(labels)


def zeros_given(phi: torch.Tensor, **options) -> list[torch.Tensor]:
    """Which features were zero each time that the head was asked."""
    seen, labels = [], torch.zeros(len(phi), dtype=torch.long)

    def head(given):
        seen.append(given == 0)
        return torch.zeros(len(given), 2)

    cumulative_ablation(head, phi, labels, generator=source(), **options)
    return seen


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        ([[0, 2.0, 1], [5, 2, 1], [0, 0, 1], [0, 1, 0]], [1, 0, 2, 2], 75),
        ([[NAN, 0], [0, NAN], [INF, 0], [0, -INF]], [0, 0, 0, 0], 50),
    ],
)
def test_accuracy_is_the_share_of_right_answers_and_nan_predicts_nothing(logits, labels, expected):
    assert accuracy(torch.tensor(logits), torch.tensor(labels)).item() == expected


@pytest.mark.parametrize("mask", MASKS)
def test_the_curve_is_the_accuracy_on_what_the_head_was_given_averaged_over_orders(mask):
    """From plain accuracy to that of the bias, without a graph, and φ is left as it was."""
    head, phi, labels = problem()
    before, seen = phi.clone().requires_grad_(), []

    def spied(given):
        seen.append(given.clone())
        assert not head(given).requires_grad
        return head(given)

    phi.requires_grad_()
    curve = cumulative_ablation(spied, phi, labels, mask=mask, generator=source(), orders=4)
    assert torch.equal(phi, before)
    assert len(seen) == (11 if mask == "element" else 44)
    for given in seen:  # each unit is as it was or zero: nothing is rescaled
        assert torch.equal(given, phi * (given != 0))
    slow = np.array([plain_accuracy(head, given, labels) for given in seen]).reshape(-1, 11)
    np.testing.assert_allclose(curve.numpy(), slow.mean(0), rtol=1e-5)
    assert curve[0].item() == pytest.approx(plain_accuracy(head, phi, labels), rel=1e-6)
    bias = 100 * (labels == head[1].bias.argmax()).float().mean().item()
    assert curve[10].item() == pytest.approx(bias, rel=1e-6)


def test_element_masks_are_coins_for_each_image_and_unit_drawn_anew_at_each_fraction():
    head, phi, labels = problem(images=20, shape=(5,))
    coins, slow = source(9), []
    for fraction in np.linspace(0, 1, 11):
        uniform, ablated = torch.rand(phi.shape, generator=coins), phi.clone()
        for image, unit in np.ndindex(20, 5):
            if uniform[image, unit] < fraction:
                ablated[image, unit] = 0
        slow.append(plain_accuracy(head, ablated, labels))
    curve = cumulative_ablation(head, phi, labels, generator=source(9))
    np.testing.assert_allclose(curve.numpy(), slow, rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "shape", "counts"),
    [
        # f · 24, rounded
        ("shared", (24,), [0, 2, 5, 7, 10, 12, 14, 17, 19, 22, 24]),
        ("shared", (4, 2, 3), [0, 2, 5, 7, 10, 12, 14, 17, 19, 22, 24]),
        ("channel", (20, 3, 3), [9 * count for count in range(0, 21, 2)]),
    ],
)
def test_shared_masks_ablate_exact_counts_nested_and_the_same_for_all_images(mask, shape, counts):
    zeros = zeros_given(torch.ones(7, *shape), mask=mask, orders=2)
    assert not torch.equal(zeros[5], zeros[16])
    for order in (zeros[:11], zeros[11:]):
        assert [int(zero[0].sum()) for zero in order] == counts
        assert all(torch.equal(zero, zero[:1].expand_as(zero)) for zero in order)
        assert all((fewer <= more).all() for fewer, more in itertools.pairwise(order))
        for zero in order if mask == "channel" else ():  # whole maps together
            assert torch.equal(zero, zero[:, :, :1, :1].expand_as(zero))


@pytest.mark.parametrize("mask", MASKS)
def test_a_generator_s_seed_decides_the_curve_and_the_global_one_is_left_alone(mask):
    head, phi, labels = problem()
    state = torch.get_rng_state()
    first, same, other = (
        cumulative_ablation(head, phi, labels, mask=mask, generator=source(s)) for s in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_the_area_is_numpy_s_trapezoid_with_steps_of_a_tenth(kind):
    random = np.random.default_rng(0).uniform(0, 100, 11)
    assert ablation_area(kind([100.0] * 11)) == 100
    assert ablation_area(kind(random)) == pytest.approx(np.trapezoid(random, dx=0.1), rel=1e-12)


# ---- entropy maps


def small_net() -> nn.Sequential:
    """With modes that matter, ReLU in place, and weights of some size."""
    layers = OrderedDict(
        conv1=nn.Conv2d(1, 6, 3),
        norm=nn.BatchNorm2d(6),
        relu1=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(6, 4, 3, stride=2),
        relu2=nn.ReLU(inplace=True),
        flat=nn.Flatten(),
        drop=nn.Dropout(0.5),
        fc1=nn.Linear(4 * 9, 7),
        relu3=nn.ReLU(inplace=True),
        fc2=nn.Linear(7, 3),
    )
    model = nn.Sequential(layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7, generator=source(5))
    return model


def pictures(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 1, 9, 9, generator=source(6))


def test_entropy_maps_are_of_every_hidden_layer_s_linear_outputs_in_eval_mode():
    model, x = small_net(), pictures()
    maps = entropy_maps(model, x)
    assert list(maps) == hidden_layers(model) == ["conv1", "conv2", "fc1"]
    model.eval()
    first = model.conv1(x)
    second = model.conv2(model.norm(first).clamp(min=0))
    expected = first, second, model.fc1(second.clamp(min=0).flatten(1))
    assert [m.shape for m in maps.values()] == [(5, 7, 7), (5, 3, 3), (5,)]
    for found, outputs in zip(maps.values(), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), plain_entropy(outputs), rtol=1e-4, atol=1e-5)
        assert not found.requires_grad
    sparsity = SparsityReg(model, dict.fromkeys(maps, 1.0))  # the penalty sums these
    model(x)
    total = sum(m.sum() for m in maps.values()).item() / 5
    assert -total == pytest.approx(sparsity.penalty().item(), rel=1e-5)


def test_entropy_maps_of_named_layers_come_in_the_order_asked_for_and_each_once():
    maps = entropy_maps(small_net(), pictures(), ["fc2", "conv2", "fc2"])
    assert [(name, m.shape) for name, m in maps.items()] == [("fc2", (5,)), ("conv2", (5, 3, 3))]


@pytest.mark.parametrize("batch", [1, 2, 5, 500])
def test_entropy_maps_do_not_depend_on_how_many_images_are_taken_at_a_time(batch):
    model, x = small_net(), pictures()
    torch.testing.assert_close(entropy_maps(model, x, batch=batch), entropy_maps(model, x))


def test_a_linear_layer_s_filters_are_last_wherever_its_positions_are():
    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(3, 4, 2, 6, generator=source())
    (found,) = entropy_maps(model, x, ["0"]).values()
    assert found.shape == (3, 4, 2)
    np.testing.assert_allclose(found.numpy(), plain_entropy(model(x), -1), rtol=1e-5)


def test_measuring_leaves_modes_statistics_hooks_gradients_and_global_states_alone():
    model = small_net().train()
    model.norm.eval()  # frozen, as for fine-tuning
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    randomness = torch.get_rng_state()
    entropy_maps(model, pictures())
    with pytest.raises(RuntimeError):
        entropy_maps(model, torch.ones(2, 3, 9, 9))  # three channels instead of one
    with pytest.raises(ValueError):
        entropy_maps(model, pictures(), ["conv1", "conv3"])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), randomness)


# ---- correlation histograms


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (40, 10)])
@pytest.mark.parametrize("bins", [200, 10])
def test_the_histogram_counts_each_pair_of_filters_once(shape, bins):
    weight = torch.randn(shape, generator=source())
    counts = correlation_histogram(nn.Parameter(weight), bins)
    c = np.corrcoef(weight.double().flatten(1).numpy())[np.tril_indices(len(weight), -1)]
    expected, _ = np.histogram(c, bins, (-1, 1))
    assert counts.shape == (bins,) and counts.sum().item() == len(c)
    # a coefficient at a bin's edge may fall to either side
    assert np.abs(counts.numpy() - expected).sum() <= 2


def test_the_histogram_s_ends_hold_opposite_and_equal_filters_and_its_middle_constant_ones():
    one, other = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([4.0, 2.0, 1.0])
    constant, between = torch.full((3,), 0.1), int((np.corrcoef(one, other)[0, 1] + 1) / 0.01)
    for filters, expected in (
        ([one, 3 * one, one - 10, -one], {0: 3, 199: 3}),
        ([one, constant, constant], {100: 3}),
        ([one, other], {between: 1}),
    ):
        counts = correlation_histogram(torch.stack(filters))
        assert {int(k): int(n) for k, n in enumerate(counts) if n} == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_filters_that_are_no_numbers_any_more_are_not_said_to_correlate_with_none(bad):
    weight = torch.randn(5, 9, generator=source())
    whole = correlation_histogram(weight[1:])
    weight[0, :2] = torch.tensor([bad, -bad])
    assert filter_correlation(weight)[0].isnan().all()
    assert correlation_rms(weight).isnan()
    assert torch.equal(correlation_histogram(weight), whole)


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (96, 32, 3, 3), (256, 1024), (1, 5)])
@pytest.mark.parametrize("bins", [200, 10])
def test_one_matrix_gives_the_rms_and_the_histogram_to_the_last_bit(shape, bins):
    weight = torch.randn(shape, generator=source())
    if weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    rms, histogram = correlation_summary(nn.Parameter(weight), bins)
    assert torch.equal(rms, correlation_rms(weight)) and not rms.requires_grad
    assert torch.equal(histogram, correlation_histogram(weight, bins))


# ---- the moment of overfitting


def plain_smoothed(curve) -> np.ndarray:
    """A Gaussian of σ = 2 cut at 4 σ, the ends held, written down once more."""
    weights = np.exp(-(np.arange(-8, 9) ** 2) / (2 * 2**2))
    held = np.concatenate([np.full(8, curve[0]), curve, np.full(8, curve[-1])])
    return np.array([weights @ held[k : k + 17] / weights.sum() for k in range(len(curve))])


@pytest.mark.parametrize("epochs", [1, 2, 5, 40, 200])
def test_curves_are_smoothed_by_a_gaussian_of_two_epochs_with_their_ends_held(epochs):
    curve = np.random.default_rng(0).normal(2, 1, epochs)
    np.testing.assert_allclose(smoothed(curve), plain_smoothed(curve), rtol=1e-12)
    np.testing.assert_allclose(smoothed([3] * epochs), 3)  # whole numbers are no reason to round


def test_the_moment_is_the_least_value_of_the_smoothed_curve():
    random, moments = np.random.default_rng(1), []
    for _ in range(50):
        curve = 5 + np.cumsum(random.normal(0, 0.3, 80))
        smooth = plain_smoothed(curve)
        low = min(range(80), key=smooth.__getitem__)
        expected = low + 1 if smooth[-1] > 1.02 * smooth[low] else None
        assert overfitting_onset(curve) == expected
        moments.append(expected)
    assert 5 < moments.count(None) < 45


EPOCHS = np.arange(1, 61)


@pytest.mark.parametrize(
    ("curve", "moment"),
    [
        *((1 + 0.001 * (EPOCHS - dip) ** 2, dip) for dip in (10, 20, 45)),
        (np.linspace(1, 2, 40), 1),  # only rises
        # epochs 11 … 50 are 0, the first of equal ones counts; eight before and after are needed
        (np.concatenate([np.ones(10), np.zeros(40), np.ones(10)]), 19),
        (np.geomspace(3, 1, 50), None),
        ([2.0] * 30, None),
        ([1.5], None),
        (np.linspace(3, 1, 9).tolist(), None),
        (np.interp(range(80), [0, 20, 40, 79], [2, 1, 3, 1]), None),  # a rise that is undone
    ],
)
def test_curves_whose_moment_is_known_or_that_have_none(curve, moment):
    assert overfitting_onset(curve) == moment


@pytest.mark.parametrize("rise", [0.0, 0.015, 0.0199, 0.0201, 0.5, 3.0])
def test_the_rise_is_a_share_of_the_least_value_and_overfitting_above_2_percent(rise):
    curve = 1 + rise * (EPOCHS > 30)
    for scale in (1, 7):
        assert rise_after_least(scale * curve) == pytest.approx(100 * rise)
        assert (overfitting_onset(scale * curve) is not None) == (rise > 0.02)
    assert rise_after_least(curve[::-1]) == pytest.approx(0, abs=1e-9)


# ---- what is refused


def ablate(images: int = 60, labels: int = 60, **options) -> torch.Tensor:
    head, phi, known = problem()
    return cumulative_ablation(head, phi[:images], known[:labels], **options)


TWICE = nn.Sequential(*[nn.Conv2d(1, 1, 1)] * 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ablate(mask="unit"), "'unit'.*element, shared, channel"),
        (lambda: ablate(labels=59), r"shape \(60, 6, 2, 3\) and labels \(59,\)"),
        (lambda: ablate(0, 0), "at least one"),
        (
            lambda: cumulative_ablation(nn.Linear(5, 2), torch.ones(1, 5), torch.tensor(1)),
            r"labels \(\); \[N, …\]",
        ),
        (lambda: ablate(mask="shared", orders=0), "orders is 0"),
        (lambda: entropy_maps(small_net(), pictures(), ["conv3"]), "'conv3'; its layers are conv1"),
        (lambda: entropy_maps(small_net(), pictures(0)), "there are 0 images"),
        (lambda: entropy_maps(TWICE, pictures(), ["0"]), "0 ran more than once"),
        *(
            (lambda curve=curve: ablation_area(curve), "at least two")
            for curve in ([], [100.0], 100.0, [[1.0, 2.0], [3.0, 4.0]])
        ),
        *(
            (lambda judge=judge, curve=curve: judge(curve), "one finite value an epoch")
            for judge in (overfitting_onset, rise_after_least)
            for curve in ([], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]], 3.0)
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: accuracy(torch.zeros(3, 2), torch.zeros(3, 1)),
        lambda: accuracy(torch.zeros(3, 2), torch.zeros(2)),
        lambda: accuracy(torch.zeros(0, 2), torch.zeros(0)),
        lambda: cumulative_ablation(lambda z: z, torch.ones(3, 2), torch.zeros(3, 1)),
        lambda: cumulative_ablation(lambda z: z[:1], torch.ones(3, 2), torch.zeros(3)),
        lambda: smoothed([[1.0, 2.0]]),
        lambda: Split(torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_and_not_broadcast(call):
    with pytest.raises(ValueError, match="shape"):
        call()


class TimeFirst(nn.Module):
    """A transformer's tokens before its images."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 6, 4, stride=4)
        self.dense = nn.Linear(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(images).flatten(2).permute(2, 0, 1)  # [T, N, 6]
        return self.out(self.dense(tokens).mean(0))


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_entropies_are_told_by_image_where_the_network_has_tokens_first(count):
    network, images = TimeFirst(), torch.randn(count, 1, 8, 8)
    found = entropy_maps(network, images, batch=4)
    assert list(found) == ["patch", "dense"] and found["dense"].shape == (count, 4)
    tokens = network.patch(images).flatten(2).transpose(1, 2)
    expected = plain_entropy(network.dense(tokens), -1)
    np.testing.assert_allclose(found["dense"].numpy(), expected, rtol=1e-4)
    means = mean_entropies(network, images, batch=4)
    assert means["dense"] == pytest.approx(expected.mean(), rel=1e-4)


class Attention(nn.Module):
    """Patches, attention, a dense layer over windows folded into the batch, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 6, 4, stride=4)
        self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
        self.dense = nn.Linear(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)  # [N, 1, 8, 8] → [N, 4, 6]
        mixed, _ = self.mix(tokens, tokens, tokens)
        windows = self.dense(mixed.reshape(-1, 2, 6))  # [2 N, 2, 5]
        return self.out(windows.reshape(len(images), 4, 5).mean(1))


def test_entropy_is_measured_on_the_layers_that_run_with_the_image_as_the_unit():
    torch.manual_seed(0)
    network, images = Attention(), torch.randn(3, 1, 8, 8)
    assert "mix.out_proj" in hidden_layers(network)  # whose forward is never called
    found = entropy_maps(network, images, batch=2)
    assert {name: tuple(h.shape) for name, h in found.items()} == {
        "patch": (3, 2, 2),
        "dense": (3, 2, 2),  # windows, tokens in each
    }
    alone = entropy_maps(network, images[1:2])
    torch.testing.assert_close(found["dense"][1:2], alone["dense"])
    with pytest.raises(ValueError, match=r"mix.out_proj did not run.*patch"):
        entropy_maps(network, images, ["patch", "mix.out_proj"])


class Views(nn.Module):
    """Two views of each image in one batch: all first ones and then all second ones, or in turn."""

    def __init__(self, join) -> None:
        super().__init__()
        self.join = join
        self.conv = nn.Conv2d(1, 4, 3)
        self.out = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        views = self.join([images, images.flip(-1)])  # [2 N, 1, 8, 8]
        return self.out(self.conv(views).mean((2, 3)))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("join", [torch.cat, lambda views: torch.stack(views, 1).flatten(0, 1)])
def test_views_of_an_image_are_told_by_image_whichever_way_they_are_joined(join, count):
    network, images = Views(join), torch.randn(count, 1, 8, 8, generator=source())
    found = entropy_maps(network, images, batch=3)["conv"]
    for view, seen in enumerate([images, images.flip(-1)]):
        expected = plain_entropy(network.conv(seen))
        np.testing.assert_allclose(found[:, view].numpy(), expected, rtol=1e-4)


def test_a_compiled_network_is_measured_as_it_would_run_without():
    torch.manual_seed(0)
    network, images = Attention(), torch.randn(3, 1, 8, 8)
    expected = entropy_maps(network, images)
    compiled = torch.compile(network, backend="eager")
    with torch.no_grad():
        compiled.eval()(images)  # a graph without hooks
    for _ in range(2):
        found = entropy_maps(compiled, images)
        assert [name.removeprefix("_orig_mod.") for name in found] == list(expected)
        for value, wanted in zip(found.values(), expected.values(), strict=True):
            torch.testing.assert_close(value, wanted)
