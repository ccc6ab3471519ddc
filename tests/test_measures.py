import itertools
import math

import numpy as np
import pytest
import torch

from lib.measures import ABLATION_FRACTIONS, ablation_area, accuracy, cumulative_ablation

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
    assert curve[10].item() == pytest.approx(100 * (labels == favourite).float().mean().item(), rel=1e-6)


@pytest.mark.parametrize("mask", MASKS)
def test_the_curve_is_the_accuracy_on_what_the_head_was_given_averaged_over_orders(mask):
    head, phi, labels = problem()
    spy, kept = Spy(), []

    def spied(x):
        spy(x)
        return head(x)

    curve = cumulative_ablation(spied, phi, labels, mask=mask, generator=source(), orders=4)
    assert len(spy.seen) == (11 if mask == "element" else 44)
    for given in spy.seen:  # each unit is as it was or zero: nothing is rescaled
        kept.append(given != 0)
        assert torch.equal(given, phi * kept[-1])
    slow = np.array([plain_accuracy(head, given, labels) for given in spy.seen]).reshape(-1, 11).mean(0)
    np.testing.assert_allclose(curve.numpy(), slow, rtol=1e-5)


def test_element_masks_are_coins_for_each_image_and_unit_drawn_anew_at_each_fraction():
    phi, spy = torch.ones(50, 20, 4, 4), Spy()
    cumulative_ablation(spy, phi, torch.zeros(50, dtype=torch.long), generator=source())
    zeros = [(given == 0) for given in spy.seen]
    for fraction, zero in zip(ABLATION_FRACTIONS, zeros, strict=True):
        spread = math.sqrt(fraction * (1 - fraction) / zero.numel())
        assert abs(zero.float().mean().item() - fraction) <= 5 * spread
    half = zeros[5].flatten(1)
    counts = half.sum(1).float()
    assert counts.std().item() == pytest.approx(math.sqrt(320 / 4), rel=0.4)  # binomial, not the same count in each image
    agreement = (half[0] == half[1]).float().mean().item()
    assert agreement == pytest.approx(0.5, abs=0.15)  # images are independent
    assert (zeros[5] & ~zeros[6]).float().mean().item() == pytest.approx(0.5 * 0.4, abs=0.02)  # and fractions are not nested


def test_element_masks_equal_a_slow_loop_over_images_and_units():
    head, phi, labels = problem(images=20, shape=(5,))
    coins, slow = source(9), []
    for fraction in ABLATION_FRACTIONS:
        uniform, ablated = torch.rand(phi.shape, generator=coins), phi.clone()
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

    phi, labels = torch.ones(20_000, 3), torch.zeros(20_000, dtype=torch.long)
    expected = [100 * (1 - f) for f in ABLATION_FRACTIONS]
    curve = cumulative_ablation(by_first_unit, phi, labels, generator=source())
    np.testing.assert_allclose(curve.numpy(), expected, atol=1.8)  # five standard errors
    for mask in ("shared", "channel"):
        phi = torch.ones(1, 10)
        curve = cumulative_ablation(by_first_unit, phi, labels[:1], mask=mask, generator=source(), orders=2000)
        np.testing.assert_allclose(curve.numpy(), expected, atol=5.6)


@pytest.mark.parametrize("shape", [(24,), (4, 2, 3)])
def test_shared_masks_ablate_exact_counts_nested_and_the_same_for_all_images(shape):
    spy = Spy()
    cumulative_ablation(
        spy, torch.ones(7, *shape), torch.zeros(7, dtype=torch.long), mask="shared", generator=source(), orders=2
    )
    orders = [spy.seen[:11], spy.seen[11:]]
    for order in orders:
        zeros = [given.flatten(1) == 0 for given in order]
        assert [int(zero[0].sum()) for zero in zeros] == [0, 2, 5, 7, 10, 12, 14, 17, 19, 22, 24]  # f · 24, rounded
        for zero in zeros:
            assert torch.equal(zero, zero[:1].expand_as(zero))
        for fewer, more in itertools.pairwise(zeros):
            assert (fewer <= more).all()
    assert not torch.equal(orders[0][5], orders[1][5])


def test_channel_masks_zero_whole_maps_together_nested_and_the_same_for_all_images():
    spy = Spy()
    phi = 1 + torch.rand(7, 20, 3, 3, generator=source(4))
    cumulative_ablation(spy, phi, torch.zeros(7, dtype=torch.long), mask="channel", generator=source(), orders=1)
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
    first, same, other = (cumulative_ablation(head, phi, labels, mask=mask, generator=source(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("mask", MASKS)
def test_features_are_left_as_they_were_and_no_graph_is_kept(mask):
    head, phi, labels = problem()
    before, graphs = phi.clone(), []

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
    assert ablation_area(torch.from_numpy(curve)) == pytest.approx(np.trapezoid(curve, dx=0.1), rel=1e-12)


@pytest.mark.parametrize("accuracies", [[], [100.0], 100.0, [[1.0, 2.0], [3.0, 4.0]]])
def test_the_area_of_what_is_no_curve_is_refused(accuracies):
    with pytest.raises(ValueError, match="at least two"):
        ablation_area(accuracies)
