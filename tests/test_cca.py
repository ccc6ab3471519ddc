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


def pair(channels: int = 5, others: int = 4, points: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of channels that have something in common, with means off zero."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((channels, points))
    y = rng.standard_normal((others, channels)) @ x + 2 * rng.standard_normal((others, points))
    return x + rng.standard_normal((channels, 1)), y - 3


def eigen(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Roots of the eigenvalues of Sxx⁻¹ Sxy Syy⁻¹ Syx (Hotelling, 1936), and its vectors."""
    s, p = np.cov(x, y), len(x)
    sxx, sxy, syy = s[:p, :p], s[:p, p:], s[p:, p:]
    squares, vectors = np.linalg.eig(np.linalg.solve(sxx, sxy) @ np.linalg.solve(syy, sxy.T))
    first = np.argsort(-squares.real)[: min(len(x), len(y))]
    return np.sqrt(squares.real[first].clip(0)), vectors.real[:, first]


def rotation(size: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def invertible(size: int, seed: int) -> np.ndarray:
    """Of scales from 0.1 to 10."""
    return rotation(size, seed) * np.logspace(-1, 1, size) @ rotation(size, seed + 100)


def coefficients(x, y) -> np.ndarray:
    return cca(x, y).coefficients.numpy()


# ---- the coefficients


@pytest.mark.parametrize(
    "convert", [np.asarray, torch.tensor, lambda a: a.astype(int), lambda a: a.astype(np.float32)]
)
def test_the_coefficients_of_the_linnerud_data_are_the_known_ones_and_scikit_learn_s(convert):
    x, y = linnerud()
    found = cca(convert(x), y)
    assert found.coefficients.dtype == torch.float64 and found[1:] == (0, 0)
    np.testing.assert_allclose(found.coefficients, LINNERUD, rtol=0, atol=1e-9)
    np.testing.assert_allclose(coefficients(y, convert(x)), LINNERUD, rtol=0, atol=1e-9)
    assert mean_cca(x, y) == pytest.approx(np.mean(LINNERUD), abs=1e-9)
    u, v = CCA(n_components=3, max_iter=100_000, tol=1e-14).fit_transform(x.T, y.T)
    variates = [np.corrcoef(u[:, k], v[:, k])[0, 1] for k in range(3)]
    np.testing.assert_allclose(found.coefficients, variates, atol=1e-5)


@pytest.mark.parametrize(("channels", "others"), [(5, 4), (3, 6), (4, 4), (1, 1), (1, 5)])
def test_they_are_those_of_the_textbook_eigenvalue_formula(channels, others):
    x, y = pair(channels, others)
    found = coefficients(x, y)
    assert len(found) == min(channels, others)
    np.testing.assert_allclose(found, eigen(x, y)[0], atol=1e-7)


def test_a_thing_correlates_with_itself_and_with_any_mixture_of_its_channels():
    x, _ = pair()
    for other in (x, invertible(5, 1) @ x + 7):
        found = coefficients(x, other)
        np.testing.assert_allclose(found, np.ones(5), atol=1e-12)
        assert found.max() <= 1
    assert [measure(x, x) for measure in SCALARS] == pytest.approx([1] * 3, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scales", [[1e-8] * 5, [1, 1e-8, 1, 1e8, 1e-20], [1e-30, 1, 1, 1, 1]])
def test_no_scale_is_too_small_alone_or_beside_larger_ones(scales, dtype):
    x, y = (a.astype(dtype) for a in pair())
    scaled = x * np.array(scales, dtype)[:, None]
    assert cca(scaled, y).dropped_x == 0
    tolerance = 1e-6 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(coefficients(scaled, y), coefficients(x, y), atol=tolerance)


def test_a_small_direction_that_no_channel_shows_alone_and_one_far_from_zero_count_too():
    x, y = pair()
    squeezed = rotation(5) @ (np.array([1, 1, 1e-8, 1, 1])[:, None] * x)
    np.testing.assert_allclose(coefficients(squeezed, y), coefficients(x, y), atol=1e-6)
    # a large mean costs no more than its rounding
    np.testing.assert_allclose(coefficients(x + 1e9, y), coefficients(x, y), atol=1e-5)
    assert cca(1e-9 * x + 1e3, y).dropped_x == 0


@pytest.mark.parametrize("value", [0.0, 0.1, -1e3, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dead_channels_are_dropped_and_counted(value, dtype):
    x, y = (torch.tensor(a).to(dtype) for a in pair())
    dead = torch.full((1, 300), value, dtype=dtype)
    more = torch.cat([dead, x[:2], dead, x[2:]]), torch.cat([y, dead])
    assert cca(*more)[1:] == (2, 1)
    np.testing.assert_array_equal(coefficients(*more), coefficients(x, y))
    assert [measure(*more) for measure in SCALARS] == [measure(x, y) for measure in SCALARS]
    few = torch.cat([x[:2, :5], dead[:, :5].expand(9, 5)])  # only live channels need points
    assert cca(few, y[:2, :5])[1:] == (9, 0)


def test_a_channel_that_varies_by_rounding_alone_is_dead_and_one_that_is_seldom_active_is_not():
    x, y = (torch.tensor(a).float() for a in pair())
    rounding = 1e3 * (1 + torch.finfo(torch.float32).eps * (torch.arange(300) % 3))
    assert len(rounding.unique()) == 3
    seldom = torch.zeros(300)
    seldom[17] = 1e-6
    assert cca(torch.cat([x, rounding[None]]), y).dropped_x == 1
    # an upcast copy hides what is rounding
    assert cca(torch.cat([x, rounding[None]]).double(), y).dropped_x == 0
    assert cca(torch.cat([x, seldom[None]]), y).dropped_x == 0


def test_nothing_alive_gives_no_coefficients():
    (x, y), dead = pair(), np.ones((3, 300))
    found = cca(0 * dead, y)
    assert found.coefficients.shape == (0,) and found[1:] == (3, 0)
    for measure in SCALARS:
        assert math.isnan(measure(0 * dead, y)) and math.isnan(measure(x, dead[:2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("points", [300, 20_000])
def test_channels_that_depend_linearly_on_others_change_nothing(dtype, points):
    x, y = (torch.tensor(a).to(dtype) for a in pair(4, 6, points))
    mixed = 0.3 * x[:1] - 1.7 * x[1:2] + x[3:]
    more = torch.cat([x, x[:1], -7.1 * x[2:3], mixed, mixed * 1e-8])
    found = cca(more, torch.cat([y, y]))
    assert len(found.coefficients) == 4 and found[1:] == (0, 0)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(found.coefficients, coefficients(x, y), atol=tolerance)
    assert len(coefficients(more, more)) == 4
    assert mean_cca(more, y) == pytest.approx(mean_cca(x, y), abs=1e-6)


def test_as_many_coefficients_are_1_by_construction_as_both_ranks_exceed_the_free_points():
    found = coefficients(*np.random.default_rng(0).standard_normal((2, 12, 20)))
    assert (found > 1 - 1e-12).sum() == 12 + 12 - 19


def test_what_is_given_stays_as_it_was_and_may_be_read_only_reversed_or_part_of_a_graph():
    x, y = pair()
    kept = x.copy()
    x.flags.writeable = False
    expected = coefficients(x, y)
    tensor = torch.tensor(kept, requires_grad=True)
    np.testing.assert_array_equal(coefficients(tensor, y), expected)
    for given in (x, tensor.detach()):
        np.testing.assert_array_equal(given, kept)
    np.testing.assert_allclose(coefficients(x[:, ::-1], y[:, ::-1]), expected, atol=1e-12)


# ---- the means of them


def slow_svcca(x: np.ndarray, y: np.ndarray, variance: float) -> float:
    """By eigenvectors of the covariance and the textbook's formula on the scores."""
    scores = []
    for a in (x, y):
        values, vectors = (each[..., ::-1] for each in np.linalg.eigh(np.cov(a)))
        keep = next(k for k in range(1, len(a) + 1) if values[:k].sum() >= variance * values.sum())
        scores.append(vectors[:, :keep].T @ a)
    return eigen(*scores)[0].mean()


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 0.999999])
def test_svcca_is_the_mean_over_main_directions(variance):
    x, y = pair(7, 5)
    x = invertible(7, 1) @ x
    assert svcca(x, y, variance) == pytest.approx(slow_svcca(x, y, variance), abs=1e-8)


def test_svcca_keeps_99_percent_unless_told_and_leaves_out_faint_channels_that_mean_cca_counts():
    x, y = pair(4, 4)
    noise = np.random.default_rng(9).standard_normal((2, 3, 300))
    a, b = np.concatenate([x, 1e-3 * noise[0]]), np.concatenate([y, 1e-3 * noise[1]])
    assert svcca(a, b) == svcca(a, b, 0.99) == pytest.approx(mean_cca(x, y), abs=1e-3)
    assert mean_cca(a, b) < svcca(a, b) - 0.1
    assert svcca(a, b, 1) == mean_cca(a, b)
    assert svcca(1e-8 * (rotation(7) @ a + 5), b) == pytest.approx(svcca(a, b), abs=1e-12)


def slow_pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """By eigenvectors of the textbook's matrix, one variate at a time."""
    centred = x - x.mean(1, keepdims=True)
    rho, vectors = eigen(x, y)
    variates = [h / np.sqrt((h**2).sum()) for h in vectors.T @ centred]
    alpha = [sum(abs(h @ channel) for channel in centred) for h in variates]
    return (alpha * rho).sum() / sum(alpha)


@pytest.mark.parametrize(("channels", "others"), [(4, 6), (5, 5), (6, 3)])
def test_pwcca_weighs_by_projections_of_the_first_argument(channels, others):
    x, y = pair(channels, others)
    x = invertible(channels, 1) @ x
    found = pwcca(x, y)
    assert found == pytest.approx(slow_pwcca(x, y), abs=1e-8)
    assert pwcca(y, x) == pytest.approx(slow_pwcca(y, x), abs=1e-8)
    assert found != pytest.approx(pwcca(y, x), abs=1e-3)
    mapped = 1e-8 * (x + 3), invertible(others, 2) @ y + 1
    assert pwcca(*mapped) == pytest.approx(found, abs=1e-10)


def test_the_family_in_one_go_is_the_functions_one_by_one():
    x, y = (torch.randn(6, 200, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    y = y + 0.5 * x
    x[2], y[1] = 3.0, x[0]  # a dead channel, and one that both share
    found = similarities(x, y)
    assert torch.equal(found.cca.coefficients, cca(x, y).coefficients) and found.cca[1:] == (1, 0)
    assert found[1:] == (mean_cca(x, y), svcca(x, y), pwcca(x, y))


def test_channel_points_has_a_row_a_channel():
    phi = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    expected = [[phi[n, c, a, b].item() for n, a, b in np.ndindex(2, 4, 4)] for c in range(3)]
    assert channel_points(phi).tolist() == expected
    assert torch.equal(channel_points(phi[:, :, 0, 0]), phi[:, :, 0, 0].T)


# ---- what is refused

X, Y = pair()


def broken(value: float) -> np.ndarray:
    y = Y.copy()
    y[1, 7] = y[1, 9] = y[3, 0] = value
    return y


@pytest.mark.parametrize("measure", [cca, *SCALARS])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:, 1:], "x has 300 points and y 299"),
        (np.ma.masked_greater(X, 1), Y, "x is masked; leave the masked points out"),
        (X[:, :4], Y[:, :4], "x has 4 points for 5 live channels.*more points"),
        (X[:3, :4], Y[:, :4], "y has 4 points for 4 live channels"),
        *(
            (X, broken(bad), "y has 3 values that are NaN or infinite, in 2 of 4 channels")
            for bad in (np.nan, np.inf, -np.inf)
        ),
        *(
            (np.zeros(shape), Y, "channel_points")
            for shape in [(300,), (2, 3, 300), (0, 300), (5, 1), (5, 0), ()]
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(measure, x, y, message):
    with pytest.raises(ValueError, match=message):
        measure(x, y)


@pytest.mark.parametrize("variance", [0, -1, 1.01, math.nan])
def test_svcca_refuses_a_share_that_is_none_and_channel_points_what_has_no_channels(variance):
    with pytest.raises(ValueError, match=r"variance is .*above 0 and up to 1"):
        svcca(X, Y, variance)
    with pytest.raises(ValueError, match=r"\(7,\)"):
        channel_points(torch.zeros(7))
