import copy
import itertools
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import nn

from lib.losses import SparsityReg
from lib.measures import (
    ABLATION_FRACTIONS,
    ablation_area,
    accuracy,
    correlation_histogram,
    correlation_rms,
    correlation_summary,
    cumulative_ablation,
    entropy_maps,
    hidden_layers,
    overfitting_onset,
    rise_after_least,
    smoothed,
)

MASKS = ["element", "shared", "channel"]


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Spy:
    """A head that keeps what it is given; it decides by the sum of φ."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, phi: torch.Tensor) -> torch.Tensor:
        self.seen.append(phi.clone())
        total = phi.flatten(1).sum(1)
        return torch.stack([total, torch.zeros_like(total)], 1)


def problem(images: int = 60, shape: tuple[int, ...] = (6, 2, 3), classes: int = 4):
    """Random features, a random linear head with a bias, random labels."""
    phi = torch.rand(images, *shape, generator=source(1))
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), classes))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 1, generator=source(2))
    return head, phi, torch.randint(classes, (images,), generator=source(3))


def plain_accuracy(head, phi: torch.Tensor, labels: torch.Tensor) -> float:
    right = 0
    for features, label in zip(phi, labels, strict=True):
        right += int(head(features[None])[0].argmax()) == int(label)
    return 100 * right / len(labels)


def test_accuracy_is_the_share_of_right_answers_in_percent():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert accuracy(logits, torch.tensor([1, 0, 2, 2])).item() == 75


def test_the_fractions_are_0_to_100_percent_in_tenths():
    np.testing.assert_allclose(ABLATION_FRACTIONS, np.linspace(0, 1, 11))


@pytest.mark.parametrize("mask", MASKS)
def test_nothing_ablated_is_plain_accuracy_and_all_ablated_is_that_of_the_bias(mask):
    head, phi, labels = problem()
    curve = cumulative_ablation(head, phi, labels, mask=mask, generator=source())
    assert curve.shape == (11,)
    assert curve[0].item() == pytest.approx(plain_accuracy(head, phi, labels), rel=1e-6)
    favourite = head[1].bias.argmax()
    assert curve[10].item() == pytest.approx(
        100 * (labels == favourite).float().mean().item(), rel=1e-6
    )


@pytest.mark.parametrize("mask", MASKS)
def test_the_curve_is_the_accuracy_on_what_the_head_was_given_averaged_over_orders(mask):
    head, phi, labels = problem()
    spy = Spy()
    kept = []

    def spied(x):
        spy(x)
        return head(x)

    curve = cumulative_ablation(spied, phi, labels, mask=mask, generator=source(), orders=4)
    assert len(spy.seen) == (11 if mask == "element" else 44)
    for given in spy.seen:  # each unit is as it was or zero: nothing is rescaled
        kept.append(given != 0)
        assert torch.equal(given, phi * kept[-1])
    slow = (
        np.array([plain_accuracy(head, given, labels) for given in spy.seen])
        .reshape(-1, 11)
        .mean(0)
    )
    np.testing.assert_allclose(curve.numpy(), slow, rtol=1e-5)


def test_element_masks_are_coins_for_each_image_and_unit_drawn_anew_at_each_fraction():
    phi = torch.ones(50, 20, 4, 4)
    spy = Spy()
    cumulative_ablation(spy, phi, torch.zeros(50, dtype=torch.long), generator=source())
    zeros = [(given == 0) for given in spy.seen]
    for fraction, zero in zip(ABLATION_FRACTIONS, zeros, strict=True):
        spread = math.sqrt(fraction * (1 - fraction) / zero.numel())
        assert abs(zero.float().mean().item() - fraction) <= 5 * spread
    half = zeros[5].flatten(1)
    counts = half.sum(1).float()
    # binomial, not the same count in each image
    assert counts.std().item() == pytest.approx(math.sqrt(320 / 4), rel=0.4)
    agreement = (half[0] == half[1]).float().mean().item()
    assert agreement == pytest.approx(0.5, abs=0.15)  # images are independent
    # and fractions are not nested
    assert (zeros[5] & ~zeros[6]).float().mean().item() == pytest.approx(0.5 * 0.4, abs=0.02)


def test_element_masks_equal_a_slow_loop_over_images_and_units():
    head, phi, labels = problem(images=20, shape=(5,))
    coins = source(9)
    slow = []
    for fraction in ABLATION_FRACTIONS:
        uniform = torch.rand(phi.shape, generator=coins)
        ablated = phi.clone()
        for image in range(20):
            for unit in range(5):
                if uniform[image, unit] < fraction:
                    ablated[image, unit] = 0
        slow.append(plain_accuracy(head, ablated, labels))
    curve = cumulative_ablation(head, phi, labels, generator=source(9))
    np.testing.assert_allclose(curve.numpy(), slow, rtol=1e-6)


def test_where_one_unit_decides_accuracy_falls_linearly_on_average():
    def by_first_unit(phi):
        return torch.stack([phi[:, 0], torch.full((len(phi),), 0.5)], 1)

    phi = torch.ones(20_000, 3)
    labels = torch.zeros(20_000, dtype=torch.long)
    expected = [100 * (1 - f) for f in ABLATION_FRACTIONS]
    curve = cumulative_ablation(by_first_unit, phi, labels, generator=source())
    np.testing.assert_allclose(curve.numpy(), expected, atol=1.8)  # five standard errors
    for mask in ("shared", "channel"):
        phi = torch.ones(1, 10)
        curve = cumulative_ablation(
            by_first_unit, phi, labels[:1], mask=mask, generator=source(), orders=2000
        )
        np.testing.assert_allclose(curve.numpy(), expected, atol=5.6)


@pytest.mark.parametrize("shape", [(24,), (4, 2, 3)])
def test_shared_masks_ablate_exact_counts_nested_and_the_same_for_all_images(shape):
    spy = Spy()
    cumulative_ablation(
        spy,
        torch.ones(7, *shape),
        torch.zeros(7, dtype=torch.long),
        mask="shared",
        generator=source(),
        orders=2,
    )
    orders = [spy.seen[:11], spy.seen[11:]]
    for order in orders:
        zeros = [given.flatten(1) == 0 for given in order]
        # f · 24, rounded
        assert [int(zero[0].sum()) for zero in zeros] == [0, 2, 5, 7, 10, 12, 14, 17, 19, 22, 24]
        for zero in zeros:
            assert torch.equal(zero, zero[:1].expand_as(zero))
        for fewer, more in itertools.pairwise(zeros):
            assert (fewer <= more).all()
    assert not torch.equal(orders[0][5], orders[1][5])


def test_channel_masks_zero_whole_maps_together_nested_and_the_same_for_all_images():
    spy = Spy()
    phi = 1 + torch.rand(7, 20, 3, 3, generator=source(4))
    cumulative_ablation(
        spy, phi, torch.zeros(7, dtype=torch.long), mask="channel", generator=source(), orders=1
    )
    zeros = [given.flatten(2) == 0 for given in spy.seen]
    for count, zero in zip(range(0, 21, 2), zeros, strict=True):
        assert torch.equal(zero, zero[:1, :, :1].expand_as(zero))
        assert int(zero[0, :, 0].sum()) == count
    for fewer, more in itertools.pairwise(zeros):
        assert (fewer <= more).all()


@pytest.mark.parametrize("mask", MASKS)
def test_a_generator_s_seed_decides_the_curve_and_the_global_one_is_left_alone(mask):
    head, phi, labels = problem()
    state = torch.get_rng_state()
    first, same, other = (
        cumulative_ablation(head, phi, labels, mask=mask, generator=source(s)) for s in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("mask", MASKS)
def test_features_are_left_as_they_were_and_no_graph_is_kept(mask):
    head, phi, labels = problem()
    before = phi.clone()
    graphs = []

    def watched(x):
        graphs.append(head(x).requires_grad)
        return head(x)

    cumulative_ablation(watched, phi.requires_grad_(), labels, mask=mask, generator=source())
    assert not any(graphs)
    assert torch.equal(phi, before)


def test_bad_input_of_an_ablation_is_named():
    head, phi, labels = problem()
    with pytest.raises(ValueError, match=r"'unit'.*element, shared, channel"):
        cumulative_ablation(head, phi, labels, mask="unit")
    with pytest.raises(ValueError, match="60 feature vectors and 59 labels"):
        cumulative_ablation(head, phi, labels[:-1])
    with pytest.raises(ValueError, match="at least one"):
        cumulative_ablation(head, phi[:0], labels[:0])
    with pytest.raises(ValueError, match="orders is 0"):
        cumulative_ablation(head, phi, labels, mask="shared", orders=0)


def test_a_constant_100_percent_has_the_area_100():
    assert ablation_area([100.0] * 11) == pytest.approx(100, rel=1e-12)
    assert ablation_area(torch.full((11,), 100.0)) == pytest.approx(100, rel=1e-12)


def test_a_straight_fall_from_100_to_0_has_the_area_50():
    assert ablation_area([100 - 10 * k for k in range(11)]) == pytest.approx(50, rel=1e-12)


def test_the_area_is_numpy_s_trapezoid_with_steps_of_a_tenth():
    curve = np.random.default_rng(0).uniform(0, 100, 11)
    assert ablation_area(curve.tolist()) == pytest.approx(np.trapezoid(curve, dx=0.1), rel=1e-12)
    assert ablation_area(torch.from_numpy(curve)) == pytest.approx(
        np.trapezoid(curve, dx=0.1), rel=1e-12
    )


@pytest.mark.parametrize("accuracies", [[], [100.0], 100.0, [[1.0, 2.0], [3.0, 4.0]]])
def test_the_area_of_what_is_no_curve_is_refused(accuracies):
    with pytest.raises(ValueError, match="at least two"):
        ablation_area(accuracies)


# ---- entropy maps


def small_net() -> nn.Sequential:
    """conv1, batch norm, ReLU in place, conv2 strided, ReLU in place, dropout, fc1, classifier;
    weights of some size.
    """
    names = "conv1 norm relu1 conv2 relu2 flat drop fc1 relu3 fc2".split()
    layers = [
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.ReLU(inplace=True),
    ]
    layers += [
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4 * 9, 7),
        nn.ReLU(inplace=True),
        nn.Linear(7, 3),
    ]
    model = nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7, generator=source(5))
    return model


def plain_entropy(a: torch.Tensor) -> np.ndarray:
    """Over dimension 1, by scipy."""
    return entropy(softmax(a.detach().double().numpy(), 1), axis=1)


def pictures(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 1, 9, 9, generator=source(6))


def test_entropy_maps_are_of_every_hidden_layer_s_linear_outputs_in_eval_mode():
    model = small_net()
    x = pictures()
    maps = entropy_maps(model, x)
    assert list(maps) == hidden_layers(model) == ["conv1", "conv2", "fc1"]
    model.eval()
    first = model.conv1(x)
    second = model.conv2(model.norm(first).clamp(min=0))
    expected = {"conv1": first, "conv2": second, "fc1": model.fc1(second.clamp(min=0).flatten(1))}
    assert [m.shape for m in maps.values()] == [(5, 7, 7), (5, 3, 3), (5,)]
    for name, outputs in expected.items():
        np.testing.assert_allclose(maps[name].numpy(), plain_entropy(outputs), rtol=1e-4, atol=1e-5)
        assert not maps[name].requires_grad


def test_entropy_maps_of_named_layers_come_in_the_order_asked_for_and_each_once():
    maps = entropy_maps(small_net(), pictures(), ["fc2", "conv2", "fc2"])
    assert {name: m.shape for name, m in maps.items()} == {"fc2": (5,), "conv2": (5, 3, 3)}
    assert list(maps) == ["fc2", "conv2"]


@pytest.mark.parametrize("batch", [1, 2, 5, 500])
def test_entropy_maps_do_not_depend_on_how_many_images_are_taken_at_a_time(batch):
    model = small_net()
    x = pictures()
    whole = entropy_maps(model, x)
    for name, m in entropy_maps(model, x, batch=batch).items():
        torch.testing.assert_close(m, whole[name])


def test_a_bright_corner_of_the_image_is_that_corner_of_the_map():
    """Row-major as the image: k = a · B + b of the paper. The map is of another height than
    width.
    """
    conv = nn.Conv2d(1, 3, 3, padding=1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[0] = 5.0  # one filter answers to brightness, and entropy falls there
    x = torch.zeros(4, 1, 6, 9)
    for image, (a, b) in zip(x, [(0, 0), (0, 8), (5, 0), (5, 8)], strict=True):
        image[0, a, b] = 1
    (found,) = entropy_maps(nn.Sequential(conv), x, ["0"]).values()
    assert found.shape == (4, 6, 9)
    for m, (rows, columns) in zip(
        found, [((0, 1), (0, 1)), ((0, 1), (7, 8)), ((4, 5), (0, 1)), ((4, 5), (7, 8))], strict=True
    ):
        low = m < math.log(3) - 0.1
        assert low.nonzero().tolist() == [[a, b] for a in rows for b in columns]


def test_measuring_leaves_modes_statistics_hooks_gradients_and_global_states_alone():
    model = small_net()
    x = pictures()
    model.train()
    model.norm.eval()  # frozen, as for fine-tuning
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    randomness = torch.get_rng_state()
    entropy_maps(model, x)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), randomness)


def test_what_stops_a_measurement_leaves_no_hook_and_the_mode_as_it_was():
    model = small_net().train()
    with pytest.raises(ValueError, match=r"'conv3'; its layers are conv1, norm,"):
        entropy_maps(model, pictures(), ["conv1", "conv3"])
    with pytest.raises(RuntimeError):
        entropy_maps(model, torch.ones(2, 3, 9, 9))  # three channels instead of one
    with pytest.raises(ValueError, match="no images"):
        entropy_maps(model, pictures(0))
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_entropy_maps_are_those_that_the_penalty_sums():
    model = small_net().eval()
    x = pictures()
    sparsity = SparsityReg(model, {"conv1": 1.0, "fc1": 1.0})
    model(x)
    maps = entropy_maps(model, x, ["conv1", "fc1"])
    assert -sum(m.sum() for m in maps.values()).item() / 5 == pytest.approx(
        sparsity.penalty().item(), rel=1e-5
    )


def test_a_linear_layer_s_filters_are_last_wherever_its_positions_are():
    model = nn.Sequential(nn.Linear(6, 5))
    x = torch.randn(3, 4, 2, 6, generator=source())
    (found,) = entropy_maps(model, x, ["0"]).values()
    assert found.shape == (3, 4, 2)
    np.testing.assert_allclose(found.numpy(), plain_entropy(model(x).movedim(-1, 1)), rtol=1e-5)


def test_hidden_layers_of_torchvision_s_networks_leave_out_the_classifier():
    from lib.data.vision import torchvision

    with torch.device("meta"):
        resnet = torchvision.models.resnet18(weights=None)
        alexnet = torchvision.models.alexnet(weights=None)
    assert hidden_layers(alexnet) == [f"features.{k}" for k in (0, 3, 6, 8, 10)] + [
        "classifier.1",
        "classifier.4",
    ]
    assert len(hidden_layers(resnet)) == 20 and "fc" not in hidden_layers(resnet)


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
    weight = torch.stack([one, 3 * one, one - 10, -one])
    assert {int(k): int(n) for k, n in enumerate(correlation_histogram(weight)) if n} == {
        0: 3,
        199: 3,
    }
    constant = torch.full((3,), 0.1)
    counts = correlation_histogram(torch.stack([one, constant, constant]))
    assert {int(k): int(n) for k, n in enumerate(counts) if n} == {100: 3}
    c = np.corrcoef(one, other)[0, 1]
    assert correlation_histogram(torch.stack([one, other]))[int((c + 1) / 0.01)] == 1


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (96, 32, 3, 3), (256, 1024), (1, 5)])
@pytest.mark.parametrize("bins", [200, 10])
def test_one_matrix_gives_the_rms_and_the_histogram_to_the_last_bit(shape, bins):
    weight = nn.Parameter(torch.randn(shape, generator=source()))
    if weight.dim() == 4:
        weight = nn.Parameter(weight.detach().contiguous(memory_format=torch.channels_last))
    rms, histogram = correlation_summary(weight, bins)
    assert torch.equal(rms, correlation_rms(weight)) and torch.equal(
        histogram, correlation_histogram(weight, bins)
    )
    assert not rms.requires_grad


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


def test_a_dip_and_a_rise_is_overfitting_from_the_epoch_of_the_dip_on():
    epochs = np.arange(1, 61)
    for dip in (10, 20, 45):
        curve = 1 + 0.001 * (epochs - dip) ** 2
        assert overfitting_onset(curve) == dip
        noise = 0.004 * (-1.0) ** epochs  # which would move the least value of the curve itself
        assert abs(overfitting_onset(curve + noise) - dip) <= 1


def test_the_moment_is_the_least_value_of_the_smoothed_curve():
    random = np.random.default_rng(1)
    moments = []
    for _ in range(50):
        curve = 5 + np.cumsum(random.normal(0, 0.3, 80))
        smooth = plain_smoothed(curve)
        low = min(range(80), key=smooth.__getitem__)
        expected = low + 1 if smooth[-1] > 1.02 * smooth[low] else None
        assert overfitting_onset(curve) == expected
        moments.append(expected)
    assert 5 < moments.count(None) < 45


@pytest.mark.parametrize(
    "curve", [np.geomspace(3, 1, 50), [2.0] * 30, [1.5], np.linspace(3, 1, 9).tolist()]
)
def test_a_curve_that_does_not_rise_again_has_no_moment(curve):
    assert overfitting_onset(curve) is None


@pytest.mark.parametrize("rise", [0.0, 0.015, 0.5, 3.0])
def test_the_rise_is_a_share_of_the_least_value(rise):
    curve = 1 + rise * (np.arange(60) >= 30)
    assert (
        rise_after_least(curve)
        == pytest.approx(100 * rise)
        == pytest.approx(rise_after_least(7 * curve))
    )
    assert rise_after_least(curve[::-1]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("rise", "overfits"), [(0.0, False), (0.0199, False), (0.0201, True), (0.5, True)]
)
def test_the_end_has_to_lie_more_than_2_percent_above_the_least(rise, overfits):
    curve = 1 + rise * (np.arange(60) >= 30)
    assert (overfitting_onset(curve) is not None) == overfits
    assert (
        overfitting_onset(7 * curve) is not None
    ) == overfits  # a share of the least value, not an amount


def test_a_rise_before_the_end_that_is_undone_does_not_count():
    curve = np.concatenate([np.linspace(2, 1, 20), np.linspace(1, 3, 20), np.linspace(3, 1, 40)])
    assert overfitting_onset(curve) is None


def test_of_equal_least_values_the_first_is_the_moment():
    curve = np.concatenate([np.ones(10), np.zeros(40), np.ones(10)])
    # epochs 11 … 50 are 0; eight of them before and after are needed
    assert overfitting_onset(curve) == 19


def test_a_curve_that_only_rises_overfits_from_the_first_epoch():
    assert overfitting_onset(np.linspace(1, 2, 40)) == 1


@pytest.mark.parametrize("curve", [[], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]], 3.0])
def test_the_moment_of_what_is_no_curve_is_refused(curve):
    for judge in (overfitting_onset, rise_after_least):
        with pytest.raises(ValueError, match="one finite value an epoch"):
            judge(curve)
