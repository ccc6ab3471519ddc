"""Canonical correlations and the three means of them."""

import math

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from sklearn.datasets import load_linnerud

from lib.measures import cca, channel_points, mean_cca, pwcca, similarities, svcca

LINNERUD = [0.7956081544, 0.2005560411, 0.0725702862]
SCALARS = [mean_cca, svcca, pwcca]


def linnerud() -> tuple[np.ndarray, np.ndarray]:
    """(weight, waist, pulse) and (chins, situps, jumps) of 20 men, [3, 20] each."""
    exercise, body = load_linnerud(return_X_y=True)
    return body.T, exercise.T


def pair(
    channels: int = 5, others: int = 4, points: int = 300, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of channels that have something in common, with means off zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((channels, points))
    y = rng.standard_normal((others, channels)) @ x + 2 * rng.standard_normal((others, points))
    return x + rng.standard_normal((channels, 1)), y - 3


def textbook(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Roots of the eigenvalues of Sxx⁻¹ Sxy Syy⁻¹ Syx (Hotelling, 1936), descending."""
    s = np.cov(x, y)
    p = len(x)
    sxx = s[:p, :p]
    sxy = s[:p, p:]
    syy = s[p:, p:]
    squares = np.linalg.eigvals(np.linalg.solve(sxx, sxy) @ np.linalg.solve(syy, sxy.T)).real
    return np.sqrt(np.sort(squares)[::-1][: min(len(x), len(y))].clip(0))


def invertible(size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    q, r = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    return q * np.logspace(-1, 1, size) @ r


def test_the_coefficients_of_the_linnerud_data():
    x, y = linnerud()
    for a, b in [
        (x, y),
        (y, x),
        (torch.tensor(x), torch.tensor(y)),
        (x.astype(int), y.astype(np.float32)),
    ]:
        found = cca(a, b)
        np.testing.assert_allclose(found.coefficients, LINNERUD, rtol=0, atol=1e-9)
        assert found.coefficients.dtype == torch.float64
        assert (found.dropped_x, found.dropped_y) == (0, 0)
    assert mean_cca(x, y) == pytest.approx(np.mean(LINNERUD), abs=1e-9)


def test_they_are_those_of_the_textbook_eigenvalue_formula():
    for channels, others in [(5, 4), (3, 6), (4, 4), (1, 1), (1, 5)]:
        x, y = pair(channels, others)
        found = cca(x, y).coefficients
        assert len(found) == min(channels, others)
        np.testing.assert_allclose(found, textbook(x, y), atol=1e-7)
    x, y = pair(1, 1)
    assert cca(x, y).coefficients.item() == pytest.approx(abs(np.corrcoef(x, y)[0, 1]), rel=1e-12)


def test_they_are_the_correlations_of_scikit_learns_variates():
    x, y = linnerud()
    u, v = CCA(n_components=3, max_iter=100_000, tol=1e-14).fit_transform(x.T, y.T)
    variates = [np.corrcoef(u[:, k], v[:, k])[0, 1] for k in range(3)]
    np.testing.assert_allclose(cca(x, y).coefficients, variates, atol=1e-5)


def test_they_find_the_correlations_of_a_population_within_the_error_of_the_sample():
    rho = np.array([0.9, 0.5, 0.2])
    n = 40_000
    rng = np.random.default_rng(1)
    x, noise = rng.standard_normal((2, 3, n))
    y = rho[:, None] * x + np.sqrt(1 - rho**2)[:, None] * noise
    found = cca(invertible(3, 2) @ x, invertible(3, 3) @ y).coefficients.numpy()
    assert (abs(found - rho) < 4 * (1 - rho**2) / math.sqrt(n)).all()


def test_those_of_independent_noise_shrink_with_the_number_of_points():
    rng = np.random.default_rng(4)
    for n in (400, 6400):
        found = cca(*rng.standard_normal((2, 10, n))).coefficients
        # the edge of the spectrum of two independent bases, for many channels
        assert found[0] < 1.15 * 2 * math.sqrt(10 / n)
        # the mean square is p/(n − 1)
        assert found.square().mean().item() == pytest.approx(10 / n, rel=0.3)


def test_a_thing_correlates_with_itself_and_with_any_mixture_of_its_channels():
    x, _ = pair()
    for other in (x, invertible(5, 1) @ x + 7):
        np.testing.assert_allclose(cca(x, other).coefficients, np.ones(5), atol=1e-12)
        assert cca(x, other).coefficients.max() <= 1
    for measure in SCALARS:
        assert measure(x, x) == pytest.approx(1, abs=1e-12)


def test_invertible_affine_maps_and_the_order_of_arguments_and_of_points_change_nothing():
    x, y = pair(6, 4)
    expected = cca(x, y).coefficients
    mapped = invertible(6, 1) @ x + np.arange(6)[:, None], invertible(4, 2) @ y - 50
    order = np.random.default_rng(0).permutation(x.shape[1])
    for a, b in [mapped, (y, x), (x[:, order], y[:, order])]:
        np.testing.assert_allclose(cca(a, b).coefficients, expected, atol=1e-11)
    assert mean_cca(y, x) == pytest.approx(mean_cca(x, y), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scales", [[1e-8] * 5, [1, 1e-8, 1, 1e8, 1e-20], [1e-30, 1, 1, 1, 1]])
def test_no_scale_is_too_small_alone_or_beside_larger_ones(scales, dtype):
    x, y = (a.astype(dtype) for a in pair())
    found = cca(x * np.array(scales, dtype)[:, None], y)
    assert found.dropped_x == 0
    np.testing.assert_allclose(
        found.coefficients, cca(x, y).coefficients, atol=1e-6 if dtype is np.float32 else 1e-12
    )


def test_a_small_direction_that_no_channel_shows_alone_counts_too():
    x, y = pair()
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    squeezed = rotation @ (np.array([1, 1, 1e-8, 1, 1])[:, None] * x)
    np.testing.assert_allclose(cca(squeezed, y).coefficients, cca(x, y).coefficients, atol=1e-6)


def test_a_large_mean_costs_no_more_than_its_rounding():
    x, y = pair()
    np.testing.assert_allclose(cca(x + 1e9, y).coefficients, cca(x, y).coefficients, atol=1e-5)
    assert cca(1e-9 * x + 1e3, y).dropped_x == 0


@pytest.mark.parametrize("value", [0.0, 0.1, -1e3, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dead_channels_are_dropped_and_counted(value, dtype):
    x, y = (torch.tensor(a).to(dtype) for a in pair())
    dead = torch.full((1, 300), value, dtype=dtype)
    found = cca(torch.cat([dead, x[:2], dead, x[2:]]), torch.cat([y, dead]))
    assert (found.dropped_x, found.dropped_y) == (2, 1)
    np.testing.assert_array_equal(found.coefficients, cca(x, y).coefficients)
    for measure in SCALARS:
        assert measure(torch.cat([dead, x]), torch.cat([y, dead])) == measure(x, y)


def test_a_channel_that_varies_by_rounding_alone_is_dead_and_one_that_is_seldom_active_is_not():
    x, y = (torch.tensor(a).float() for a in pair())
    rounding = 1e3 * (1 + torch.finfo(torch.float32).eps * (torch.arange(300) % 3))
    assert len(rounding.unique()) == 3
    assert cca(torch.cat([x, rounding[None]]), y).dropped_x == 1
    # an upcast copy hides what is rounding
    assert cca(torch.cat([x, rounding[None]]).double(), y).dropped_x == 0
    seldom = torch.zeros(1, 300)
    seldom[0, 17] = 1e-6
    assert cca(torch.cat([x, seldom]), y).dropped_x == 0


def test_nothing_alive_gives_no_coefficients():
    x, y = pair()
    found = cca(np.zeros((3, 300)), y)
    assert found.coefficients.shape == (0,)
    assert (found.dropped_x, found.dropped_y) == (3, 0)
    for measure in SCALARS:
        assert math.isnan(measure(np.zeros((3, 300)), y))
        assert math.isnan(measure(x, np.ones((2, 300))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("points", [300, 20_000])
def test_channels_that_depend_linearly_on_others_change_nothing(dtype, points):
    x, y = (torch.tensor(a).to(dtype) for a in pair(4, 6, points))
    mixed = 0.3 * x[:1] - 1.7 * x[1:2] + x[3:]
    more = torch.cat([x, x[:1], -7.1 * x[2:3], mixed, mixed * 1e-8])
    found = cca(more, torch.cat([y, y]))
    assert len(found.coefficients) == 4
    assert (found.dropped_x, found.dropped_y) == (0, 0)
    np.testing.assert_allclose(
        found.coefficients, cca(x, y).coefficients, atol=1e-6 if dtype == torch.float32 else 1e-12
    )
    assert len(cca(more, more).coefficients) == 4
    assert mean_cca(more, y) == pytest.approx(mean_cca(x, y), abs=1e-6)


def test_as_many_coefficients_are_1_by_construction_as_both_ranks_exceed_the_free_points():
    found = cca(*np.random.default_rng(0).standard_normal((2, 12, 20))).coefficients
    assert (found > 1 - 1e-12).sum() == 12 + 12 - 19


def test_what_is_given_stays_as_it_was_and_may_be_read_only_reversed_or_part_of_a_graph():
    x, y = pair()
    kept = x.copy()
    x.flags.writeable = False
    expected = cca(x, y).coefficients
    np.testing.assert_array_equal(x, kept)
    tensor = torch.tensor(kept, requires_grad=True)
    np.testing.assert_array_equal(cca(tensor, y).coefficients, expected)
    np.testing.assert_array_equal(tensor.detach(), kept)
    np.testing.assert_allclose(cca(x[:, ::-1], y[:, ::-1]).coefficients, expected, atol=1e-12)


def slow_svcca(x: np.ndarray, y: np.ndarray, variance: float) -> float:
    """By eigenvectors of the covariance and the textbook's formula on the scores."""
    scores = []
    for a in (x, y):
        values, vectors = np.linalg.eigh(np.cov(a))
        values = values[::-1]
        vectors = vectors[:, ::-1]
        keep = next(k for k in range(1, len(a) + 1) if values[:k].sum() >= variance * values.sum())
        scores.append(vectors[:, :keep].T @ a)
    return (
        textbook(*scores).mean()
        if min(map(len, scores)) > 1
        else cca(*scores).coefficients.mean().item()
    )


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 0.999999])
def test_svcca_is_the_mean_over_main_directions(variance):
    x, y = pair(7, 5)
    x = invertible(7, 1) @ x  # scales from 0.1 to 10
    assert svcca(x, y, variance) == pytest.approx(slow_svcca(x, y, variance), abs=1e-8)


def test_svcca_keeps_99_percent_unless_told_and_leaves_out_faint_channels_that_mean_cca_counts():
    x, y = pair(4, 4)
    noise = np.random.default_rng(9).standard_normal((2, 3, 300))
    a, b = np.concatenate([x, 1e-3 * noise[0]]), np.concatenate([y, 1e-3 * noise[1]])
    assert svcca(a, b) == svcca(a, b, 0.99) == pytest.approx(mean_cca(x, y), abs=1e-3)
    assert mean_cca(a, b) < svcca(a, b) - 0.1
    assert svcca(a, b, 1) == mean_cca(a, b)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))[0]
    assert svcca(1e-8 * (rotation @ a + 5), b) == pytest.approx(svcca(a, b), abs=1e-12)


def slow_pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """By eigenvectors of the textbook's matrix, one variate at a time."""
    s = np.cov(x, y)
    p = len(x)
    sxx = s[:p, :p]
    sxy = s[:p, p:]
    syy = s[p:, p:]
    squares, vectors = np.linalg.eig(np.linalg.solve(sxx, sxy) @ np.linalg.solve(syy, sxy.T))
    centred = x - x.mean(1, keepdims=True)
    total = weights = 0.0
    for k in np.argsort(-squares.real)[: min(len(x), len(y))]:
        h = vectors[:, k].real @ centred
        h /= np.sqrt((h**2).sum())
        alpha = sum(abs(h @ channel) for channel in centred)
        total = total + alpha * np.sqrt(squares[k].real)
        weights = weights + alpha
    return total / weights


@pytest.mark.parametrize("channels, others", [(4, 6), (5, 5), (6, 3)])
def test_pwcca_weighs_by_projections_of_the_first_argument(channels, others):
    x, y = pair(channels, others)
    x = invertible(channels, 1) @ x
    assert pwcca(x, y) == pytest.approx(slow_pwcca(x, y), abs=1e-8)
    assert pwcca(y, x) == pytest.approx(slow_pwcca(y, x), abs=1e-8)
    assert pwcca(x, y) != pytest.approx(pwcca(y, x), abs=1e-3)
    assert pwcca(1e-8 * (x + 3), invertible(others, 2) @ y + 1) == pytest.approx(
        pwcca(x, y), abs=1e-10
    )


def test_pwcca_leans_to_the_direction_that_accounts_for_most_of_x():
    x, noise = np.random.default_rng(0).standard_normal((2, 2, 2000))
    y = np.stack([x[0], noise[1]])  # one channel in common, the other one not
    large, small = 100 * np.eye(2)[0][:, None] + 1, 100 * np.eye(2)[1][:, None] + 1
    assert pwcca(large * x, y) > 0.95
    assert pwcca(small * x, y) < 0.1
    assert (
        mean_cca(large * x, y)
        == pytest.approx(mean_cca(small * x, y), abs=1e-12)
        == pytest.approx(0.5, abs=0.05)
    )


def test_the_family_in_one_go_is_the_functions_one_by_one():
    x, y = (torch.randn(6, 200, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    y = y + 0.5 * x
    x[2], y[1] = 3.0, x[0]  # a dead channel, and one that both share
    found = similarities(x, y)
    assert torch.equal(found.cca.coefficients, cca(x, y).coefficients) and found.cca[1:] == (1, 0)
    assert found[1:] == (mean_cca(x, y), svcca(x, y), pwcca(x, y))


def test_channel_points_has_a_row_a_channel():
    phi = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    rows = channel_points(phi)
    assert rows.shape == (3, 2 * 16)
    for c in range(3):
        assert rows[c].tolist() == [
            phi[n, c, a, b].item() for n in range(2) for a in range(4) for b in range(4)
        ]
    assert torch.equal(channel_points(phi[:, :, 0, 0]), phi[:, :, 0, 0].T)
    with pytest.raises(ValueError, match=r"\(7,\)"):
        channel_points(torch.zeros(7))


@pytest.mark.parametrize("measure", [cca, *SCALARS])
def test_what_cannot_be_measured_is_refused_with_the_reason(measure):
    x, y = pair()
    with pytest.raises(ValueError, match="x has 300 points and y 299"):
        measure(x, y[:, 1:])
    with pytest.raises(ValueError, match=r"x has 4 points for 5 live channels.*more points"):
        measure(x[:, :4], y[:, :4])
    with pytest.raises(ValueError, match="y has 4 points for 4 live channels"):
        measure(x[:3, :4], y[:, :4])
    # only live channels need points
    assert measure(np.concatenate([x[:2, :5], np.ones((9, 5))]), y[:2, :5]) is not None
    for bad in (np.nan, np.inf, -np.inf):
        broken = y.copy()
        broken[1, 7] = broken[1, 9] = broken[3, 0] = bad
        with pytest.raises(
            ValueError, match="y has 3 values that are NaN or infinite, in 2 of 4 channels"
        ):
            measure(x, broken)
    for shape in [(300,), (2, 3, 300), (0, 300), (5, 1), (5, 0), ()]:
        with pytest.raises(ValueError, match="channel_points"):
            measure(np.zeros(shape), y)


@pytest.mark.parametrize("variance", [0, -1, 1.01, math.nan])
def test_svcca_refuses_a_share_that_is_none(variance):
    with pytest.raises(ValueError, match=r"variance is .*above 0 and up to 1"):
        svcca(*pair(), variance)
