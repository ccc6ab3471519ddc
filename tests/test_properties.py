"""Laws that hold for whatever is put in, each tried on examples drawn by hypothesis."""

import math
from dataclasses import fields

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lib import data, schedules
from lib.cca import cca, pwcca
from lib.losses import ActivationL2, DecorrReg, SparsityReg, al2_weights, rfav_entropy
from lib.run import Run

# the same examples each time, and no judgement of speed
fixed = {"derandomize": True, "database": None, "max_examples": 60}
law = settings(deadline=None, suppress_health_check=list(HealthCheck), **fixed)
seeds = st.integers(0, 2**31 - 1)
SHARES = st.floats(0, 1)
LAWS = st.sampled_from(["bernoulli", "exact"])
BATCHES = st.lists(st.integers(1, 5), min_size=1, max_size=3)


def drawn(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=source, dtype=torch.float64)


OPTIONS = {
    "seed": st.integers(0, 3),
    "epochs": st.integers(1, 4),
    "batch_size": st.integers(1, 64),
    "learning_rate": st.sampled_from([0.1, 0.05, 1e-3]),
    "corruption": st.sampled_from([0.0, 0.25, 0.75]),
    "al2": st.booleans(),
    "batch_norm": st.booleans(),
    "dropout": st.sampled_from([0.0, 0.3]),
    "weight_decay": st.sampled_from([0.0, 1e-4]),
    "n_train": st.sampled_from([None, 100]),
}
SETTINGS = st.fixed_dictionaries({}, optional=OPTIONS)


@law
@given(SETTINGS, SETTINGS)
def test_runs_have_one_id_if_and_only_if_their_fields_are_equal(one, other):
    one, other = Run("mnist", **one), Run("mnist", **other)
    assert (one.canonical() == other.canonical()) == (one.id == other.id)
    same = all(getattr(one, f.name) == getattr(other, f.name) for f in fields(Run))
    assert not same or one.id == other.id
    assert Run.from_dict(one.to_dict()).id == one.id


@law
@given(seeds, st.integers(0, 200), st.integers(2, 30), SHARES, SHARES, LAWS)
def test_corrupted_labels_are_other_classes_and_those_of_less_noise_are_among_those_of_more(
    seed, count, classes, one, other, law
):
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, count))
    found = []
    for fraction in sorted((one, other)):
        source = torch.Generator().manual_seed(seed)
        new, mask = data.corrupt_labels(labels, fraction, classes, generator=source, law=law)
        assert torch.equal(new != labels, mask)
        assert not count or (new.min() >= 0 and new.max() < classes)
        assert law == "bernoulli" or mask.sum() == round(fraction * count)
        found.append((new, mask))
    (less, few), (more, many) = found
    assert (many | ~few).all() and torch.equal(less[few], more[few])


@law
@given(st.integers(1, 900), st.floats(0.05, 10), st.floats(1.1, 50))
def test_lambda_grows_from_its_start_and_a_schedule_of_a_total_has_it(epochs, speed, factor):
    weights = al2_weights(epochs, speed)
    assert weights[0] == 0.01 and len(weights) == epochs and (np.diff(weights) > 0).all()
    assert (weights[1:] <= weights[:-1] * 1.1**speed * (1 + 1e-9)).all()
    epochs = min(epochs, 60)
    total = 0.01 * epochs * factor + 1e-3
    for name in schedules.SCHEDULES[1:] if epochs > 1 else ["constant"]:
        setting = schedules.schedule_of_total(name, epochs, total)
        series = schedules.schedule(name, epochs, **setting)
        np.testing.assert_allclose(series.sum(), total, rtol=5e-6 * max(epochs, 10))


@law
@given(seeds, st.integers(1, 40), st.sampled_from([0.0, 1e-6, 1.0, 50.0, 1e4]), st.floats(-99, 99))
def test_entropy_lies_between_0_and_ln_d_and_ignores_order_and_shift_of_filters(
    seed, filters, scale, shift
):
    z = drawn(seed, 5, filters, 2, scale=scale)
    h = rfav_entropy(z)
    assert (h >= 0).all() and (h <= math.log(filters) + 1e-9).all()
    order = torch.randperm(filters, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(rfav_entropy(z[:, order] + shift), h, rtol=1e-7, atol=1e-9)


@law
@given(seeds, st.integers(1, 6), st.integers(1, 6), st.integers(20, 60))
def test_canonical_correlations_lie_in_0_1_and_survive_invertible_maps(seed, one, other, points):
    x, y = drawn(seed, one, points), drawn(seed + 1, other, points)
    y[0] += x[0]
    found = cca(x, y).coefficients
    assert len(found) == min(one, other) and (found >= 0).all() and (found <= 1).all()
    assert (found[:-1] >= found[1:]).all() and 0 <= pwcca(x, y) <= 1
    torch.testing.assert_close(cca(y, x).coefficients, found, rtol=0, atol=1e-9)
    turned = torch.linalg.qr(drawn(seed + 2, one, one)).Q * (1 + torch.arange(one))
    moved = turned @ x + drawn(seed + 3, one, 1)
    torch.testing.assert_close(cca(moved, 7 * y).coefficients, found, rtol=0, atol=1e-8)


@law
@given(seeds, BATCHES, st.integers(2, 5), st.integers(1, 3), st.floats(0, 3))
def test_penalties_are_those_of_a_second_implementation_on_small_networks(
    seed, batches, filters, kernel, weight
):
    model = nn.Sequential(
        nn.Conv2d(2, filters, kernel), nn.ReLU(inplace=True), nn.Flatten(1), nn.LazyLinear(4)
    ).double()
    model(drawn(seed, 1, 2, 4, 4))
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            parameter.copy_(drawn(seed + k, *parameter.shape))
    names = {"0": weight, "3": 1.0}
    penalties = ActivationL2(model, "1"), SparsityReg(model, names)
    decorr = DecorrReg(model, names, pairs="square")
    squares, entropies, correlations = [], [], 0.0
    for k, size in enumerate(batches):
        for image in drawn(seed + 9 + k, size, 2, 4, 4).split(1):
            linear = nn.functional.conv2d(image, model[0].weight, model[0].bias)
            logits = nn.functional.linear(linear.relu().flatten(1), *model[3].parameters())
            squares.append((linear.clamp(min=0).detach().numpy() ** 2).mean())
            own = 0.0
            for scale, vectors in ((weight, linear.flatten(2)[0].T), (1.0, logits)):
                for vector in vectors.detach().numpy():
                    p = np.exp(vector - vector.max())
                    p /= p.sum()
                    own -= scale * sum(q * math.log(q) for q in p if q > 0)
            entropies.append(own)
        model(drawn(seed + 9 + k, size, 2, 4, 4))
    for scale, layer in ((weight, model[0]), (1.0, model[3])):
        rows = layer.weight.detach().flatten(1).numpy()
        for d in range(len(rows)):
            for e in range(d):
                correlations += scale * np.corrcoef(rows[d], rows[e])[0, 1] ** 2
    found = [penalty.penalty().item() for penalty in (*penalties, decorr)]
    expected = [np.mean(squares), -np.mean(entropies), correlations]
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
