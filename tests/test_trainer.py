"""The trainer against a plain PyTorch loop, its measures, its determinism, and that it goes on
where it was.
"""

import hashlib
import json
import math
import random
import zlib
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib import bundle, data, measures, models, run_dir, schedules, store, trainer
from lib.run import Run, generator
from lib.study.experiments import label_randomization

# the last of seven batches is short (8 images); settings with which three epochs change much
SMALL = dict(image_size=16, n_train=200, n_validation=40, test_images=50, epochs=3, corruption=0.25)
SMALL |= dict(learning_rate=0.1, momentum=0.9, batch_size=32)
BARE = Run("digits", **SMALL)
AL2 = replace(BARE, al2=True, speed=25.0)  # λ = 0.01, 0.108, 1.174
EVERYTHING = dict(batch_norm=True, dropout=0.3, weight_decay=0.01, momentum=0.5, seed=3)
NETWORKS = {
    "bare": BARE,
    "al2": AL2,
    "batch norm": replace(BARE, batch_norm=True),
    "batch norm, uniform scale": replace(BARE, batch_norm=True, bn_gamma="uniform"),
    "weight decay": replace(BARE, weight_decay=0.01),
    "dropout": replace(BARE, dropout=0.5),
    "all images in a batch": replace(BARE, batch_size=200),
    "everything": replace(AL2, **EVERYTHING),
}
COLUMNS = ["epoch", "test_accuracy", "test_cross_entropy", "test_images"]
COLUMNS += ["train_accuracy", "cross_entropy", "activation_l2"]
VALIDATION = ["validation_accuracy", "validation_cross_entropy"]

# the networks and penalties of the targeted-sparsity paper
CONV = dict(network="convnet_s", image_size=8, n_train=88, n_validation=24, n_measure=30)
CONV |= dict(test_images=40, epochs=4, corruption=0.25, normalize="unit", entropy=True, heat_maps=3)
CONV = Run("digits", **CONV, learning_rate=0.25, momentum=0.0, batch_size=10)
SR = dict(sparsity=("conv3", "conv4", "fc1"), sparsity_weight=0.1)
SQUARE = dict(decorrelation_pairs="square", decorrelation_reduce="mean")
SQUARE |= dict(decorrelation=("conv1",), decorrelation_weight=0.3)
ADAM = dict(optimizer="adam", learning_rate=0.005)
CONV_ALL = replace(CONV, **SR, **SQUARE, **EVERYTHING, al2=True, speed=8.0)
CONV_ALL = replace(CONV_ALL, dropout=0.25, seed=0, learning_rate=0.03, norm_place="block")
CONVNETS = {
    "vanilla": CONV,
    "drop": replace(CONV, dropout=0.25),
    # larger steps meet ties on some processors
    "norm": replace(CONV, batch_norm=True, learning_rate=0.02),
    "sr2": replace(CONV, **SR),
    "sr3": replace(CONV, **SR, decorrelation=("conv1",), decorrelation_weight=0.01),
    "adam": replace(CONV, **ADAM),
    "everything in a ConvNet": CONV_ALL,
    # Adam makes steps of pure rounding of a bias before batch norm, whose gradient is 0: no two
    # programs agree there
    "everything, adam": replace(
        CONV_ALL, **ADAM, corruption=0.0, batch_size=13, batch_norm=False, seed=2
    ),
}
LAYERS = ["conv1", "conv2", "conv3", "conv4", "fc1"]
SIDES = {"conv1": (8, 8), "conv2": (8, 8), "conv3": (4, 4), "conv4": (4, 4), "fc1": ()}
BOTH = NETWORKS | CONVNETS
CORRELATIONS = replace(BARE, cca=("init", "epoch1"), ablations=(), image_size=20)


def saved(folder):
    """What a finished run's folder holds, all but its wall time."""
    arrays = run_dir.read_arrays(folder)
    if (folder / "weights.pt").exists():
        arrays |= torch.load(folder / "weights.pt", weights_only=True)
    arrays = {k: (str(v.dtype), v.shape, np.asarray(v).tobytes()) for k, v in arrays.items()}
    return [(folder / name).read_bytes() for name in ("metrics.csv", "config.json")], arrays


def environment(folder):
    return json.loads((folder / "env.json").read_text())


def digest(tensors):
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def assert_same(found, expected):
    """To the last bit; found may hold other runs and their columns, too."""
    found = found[found.id.isin(expected.id)][expected.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.astype(expected.dtypes), expected, check_exact=True)


@contextmanager
def watching():
    """The forward passes in training mode of the networks: the network and its images each."""
    passes = []

    def look(module, inputs, output):
        if isinstance(module, models.AL2CNN | models.ConvNet) and module.training:
            passes.append((module, inputs[0].detach().clone()))

    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        yield passes
    finally:
        hook.remove()


# ---- against a training that is written down once more


@pytest.fixture
def no_ties(monkeypatch):
    """Digits' backgrounds are all 0: which of equal values a pool takes is rounding. A little noise
    leaves no two equal.
    """
    read = data.read

    def noisy(*args, **more):
        raw = read(*args, **more)

        def scale(pixels):
            images = raw.scale(pixels)
            for image, pixel in zip(images, pixels, strict=True):  # an image's own, in any order
                source = torch.Generator().manual_seed(zlib.crc32(pixel.numpy().tobytes()))
                image += 0.1 * torch.rand(image.shape, generator=source)
            return images

        return replace(raw, scale=scale)

    monkeypatch.setattr(data, "read", noisy)


def percent_right(logits, labels):
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def plain_training(run):
    """The papers' trainings written down once more, in functions and the optimisers' formulas; a
    row an epoch, from that before training on.
    """
    dataset = data.load("digits", size=run.image_size, normalize=run.normalize)
    train, validation, measure = data.subset(
        dataset.train, run.n_train, run.n_validation, run.n_measure
    )
    labels, validation_labels = (
        data.corrupt_labels(part.labels, run.corruption, 10, generator=generator(run.seed, why))[0]
        for part, why in ((train, "corruption"), (validation, "validation corruption"))
    )
    test = dataset.test.take(data.stratified_permutation(dataset.test.labels))
    initial = trainer.build_network(run, 1, run.image_size, 10)
    weights = {name: p.detach().clone().requires_grad_() for name, p in initial.named_parameters()}
    moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in weights.items()}
    running = {
        name: [torch.zeros(len(p)), torch.ones(len(p))]
        for name, p in weights.items()
        if "norm" in name
    }
    step = 0
    if run.network == "al2_cnn":
        convolutions, pools, head, padding = ("trunk.conv1", "trunk.conv2"), 1, "head.", 0
    else:
        convolutions, pools, head, padding = LAYERS[:4], 2, "", 1

    def dense(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def normalised(x, name, training):
        kept = running[f"{name}.weight"]
        mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)) if training else kept
        if training:
            count = x.numel() / x.shape[1]
            for old, new in zip(kept, (mean, var * count / (count - 1)), strict=True):
                old.mul_(0.9).add_(0.1 * new.detach())
        x = (x - mean.view(-1, 1, 1)) / torch.sqrt(var.view(-1, 1, 1) + 1e-5)
        scale, shift = (weights[f"{name}.{kind}"].view(-1, 1, 1) for kind in ("weight", "bias"))
        return x * scale + shift

    def psi(phi):
        return dense(dense(phi.flatten(1), f"{head}fc1").relu(), f"{head}fc2")

    def forward(x, coins=None):
        """By layer, its linear outputs; φ; logits. With coins: in training."""
        linear = {}
        for k, name in enumerate(convolutions, 1):
            x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)
            linear[name] = x
            norm = name.replace("conv", "norm") if head == "" else "trunk.norm"
            if f"{norm}.weight" in weights and (head == "" or k == 2):
                x = normalised(x, norm, training=coins is not None)
            x = x.relu()
            if k % pools == 0:
                x = F.max_pool2d(x, 2)
            if k % 2 == 0 and coins and run.dropout:
                x = x * (torch.rand(x.shape, generator=coins) >= run.dropout) / (1 - run.dropout)
        linear[f"{head}fc1"] = dense(x.flatten(1), f"{head}fc1")
        return linear, x, psi(x)

    def entropies(outputs):
        return torch.distributions.Categorical(logits=outputs.movedim(1, -1)).entropy()

    def correlations(name):
        c = torch.corrcoef(weights[f"{name}.weight"].flatten(1))
        c = c[tuple(torch.tril_indices(len(c), len(c), -1))]
        return c.square().mean() if run.decorrelation_pairs == "square" else c.sum()

    def update(name, gradient):
        gradient = gradient + run.weight_decay * weights[name].detach()
        first, second = moments[name]
        if run.optimizer == "adam":
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            change = first / (1 - 0.9**step) / (torch.sqrt(second / (1 - 0.999**step)) + 1e-8)
        else:
            change = first.mul_(run.momentum).add_(gradient)
        weights[name].data -= run.learning_rate * change

    rows = []
    for epoch in range(run.epochs + 1):
        # Eq. 2 below its threshold, `speed` of the paper's epochs at a time
        lam = 0.01 * 1.1 ** (run.speed * (epoch - 1)) if run.al2 else 0.0
        order = torch.randperm(run.n_train, generator=generator(run.seed, "order", epoch))
        coins = generator(run.seed, "dropout", epoch)
        batches, values = order.split(run.batch_size) if epoch else (), []
        for batch in batches:
            step += 1
            linear, phi, logits = forward(train.images[batch], coins)
            h = sum((entropies(linear[name]).sum() for name in run.sparsity), torch.zeros(()))
            c = sum(map(correlations, run.decorrelation), torch.zeros(()))
            terms = {
                "cross_entropy": F.cross_entropy(logits, labels[batch]),
                "activation_l2": phi.square().mean(),
                "sparsity_penalty": -run.sparsity_weight * h / len(batch),
                "decorrelation_penalty": run.decorrelation_weight * c,
            }
            loss = terms["cross_entropy"] + lam * terms["activation_l2"]
            loss = loss + terms["sparsity_penalty"] + terms["decorrelation_penalty"]
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                update(name, gradient)
            values.append({name: value.item() for name, value in terms.items()})
            values[-1]["train_accuracy"] = percent_right(logits, labels[batch])
        values = pd.DataFrame(values)
        row = {"epoch": epoch, "lambda": lam}
        if epoch:
            row |= (values.mul([len(b) for b in batches], axis=0).sum() / run.n_train).to_dict()
            row["cross_entropy_over_batches"] = values["cross_entropy"].mean()
        with torch.no_grad():
            shown = test.take(
                torch.arange(len(test) if epoch in run.table_epochs() else run.test_images)
            )
            row["test_images"] = len(shown)
            for name, images, known in (
                ("test", shown.images, shown.labels),
                ("validation", validation.images, validation_labels),
            ):
                logits = forward(images)[2]
                row[f"{name}_accuracy"] = percent_right(logits, known)
                row[f"{name}_cross_entropy"] = F.cross_entropy(logits, known).item()
            if run.entropy:
                linear = forward(measure.images)[0]
                row |= {f"entropy {name}": entropies(linear[name]).mean().item() for name in LAYERS}
            if run.ablations:
                phi, curve = forward(train.images)[1], []
                coins = generator(run.seed, "ablation", "element/train-true", epoch)
                for fraction in torch.arange(11) / 10:
                    kept = torch.rand(phi.shape, generator=coins) >= fraction
                    curve.append(percent_right(psi(phi * kept), train.labels))
                row["ablation_auc"] = np.trapezoid(curve, dx=0.1)
        rows.append(row)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("name", [name for name in BOTH if name != "sr2"])
def test_training_agrees_with_one_that_is_written_down_once_more(
    name, request, tmp_path, monkeypatch
):
    if name in CONVNETS:
        request.getfixturevalue("no_ties")
    # Of two values that are equal but for rounding, a pool or a ReLU may take the one here and the
    # other there, on some processors; from then on the two part, far with batches of ten images
    # under batch norm. Weights moved by a millionth have other such values, or none; two programs
    # that differ in what they compute agree at none.
    build = trainer.build_network
    for seed in range(6):
        with monkeypatch.context() as moving:
            if seed:
                moving.setattr(trainer, "build_network", moved_by_a_millionth(build, seed))
            try:
                return assert_agreement(name, tmp_path / str(seed))
            except AssertionError as apart:
                problem = apart
    raise problem


def moved_by_a_millionth(build, seed):
    def moved(*args):
        network = build(*args)
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1 + 1e-6 * torch.randn(weight.shape, generator=source))
        return network

    return moved


def assert_agreement(name, folder):
    run = BOTH[name]
    expected, found = plain_training(run), trainer.fit([run], [folder])
    before, after = expected.iloc[0], expected.iloc[1:].reset_index(drop=True)
    tolerance = dict(rtol=1e-4, atol=1e-5) if name in NETWORKS else dict(rtol=2e-4, atol=1e-6)
    columns = ["cross_entropy", "activation_l2", "test_cross_entropy", "validation_cross_entropy"]
    columns += [f"entropy {layer}" for layer in LAYERS] * run.entropy + ["lambda"] * run.al2
    columns += ["sparsity_penalty"] * bool(run.sparsity)
    columns += ["decorrelation_penalty"] * bool(run.decorrelation)
    for column in columns:
        np.testing.assert_allclose(found[column], after[column], **tolerance, err_msg=column)
    assert list(found["epoch"]) == list(after["epoch"])
    assert list(found["test_images"]) == list(after["test_images"])
    for column, images in (("test", found.test_images), ("train", run.n_train), ("validation", 24)):
        # a tie may fall to either side by the last bit
        apart = (found[f"{column}_accuracy"] - after[f"{column}_accuracy"]).abs()
        assert (apart <= 100 / images + 1e-4).all(), column
    if run.ablations:
        np.testing.assert_allclose(found["ablation_auc"], after["ablation_auc"], rtol=0, atol=0.5)
    if run.entropy:
        stored = run_dir.read_arrays(folder)["entropy before training"]
        np.testing.assert_allclose(stored, [[before[f"entropy {x}"] for x in LAYERS]], rtol=1e-4)
    # it is a training that moves, and its means are over images and not over batches
    much = name in NETWORKS and run.batch_size < run.n_train
    assert np.ptp(after["cross_entropy"]) > (0.1 if much else 0.005)
    if much:
        apart = (after["cross_entropy"] - after["cross_entropy_over_batches"]).abs()
        assert apart.max() > 1e-3


@pytest.mark.parametrize(("networks", "least"), [(NETWORKS, 2.5e-3), (CONVNETS, 5e-4)])
def test_the_networks_that_are_compared_differ_by_more_than_the_tolerance(networks, least, no_ties):
    runs = [replace(run, seed=0, corruption=0.25, ablations=()) for run in networks.values()]
    ends = [trainer.fit([run])["cross_entropy"].iloc[-1] for run in runs]
    assert np.diff(np.log(sorted(ends))).min() > least


@pytest.mark.parametrize(
    ("change", "series"),
    [
        ({"schedule": "linear", "speed": 100.0}, schedules.schedule("linear", 3, 100.0)),
        ({"schedule": "constant", "rate": 0.3}, [0.3] * 3),
    ],
    ids=["linear", "constant"],
)
def test_lambda_is_constant_in_an_epoch_and_follows_the_schedule_of_the_run(change, series):
    np.testing.assert_allclose(trainer.fit([replace(AL2, **change)])["lambda"], series, rtol=1e-12)


@pytest.mark.parametrize(
    "change", [{"network": "lenet", "image_size": 16}, {"network": "alexnet", "image_size": 15}]
)
def test_lenet_and_alexnet_train_with_every_penalty(change):
    run = replace(CONV, epochs=1, n_train=8, batch_size=8, learning_rate=0.01, entropy=False)
    layers = dict(sparsity=("conv2", "fc2"), decorrelation=("conv1",), decorrelation_weight=0.001)
    found = trainer.fit([replace(run, **change, **layers)])
    assert np.isfinite(found.drop(columns="id").to_numpy(dtype=float)).all()
    assert (found["sparsity_penalty"] < 0).all()


def test_sparsity_regularisation_keeps_entropy_up_and_decorrelation_correlations_down():
    base = replace(CONV, corruption=0.0, epochs=13, heat_maps=0)
    changes = [{}, {"sparsity": ("fc1",), "sparsity_weight": 3.0}]
    changes += [SQUARE | {"decorrelation_weight": 9.0}]
    plain, sparse, decorrelated = (trainer.fit([replace(base, **change)]) for change in changes)
    assert sparse["entropy fc1"].tail(3).mean() > plain["entropy fc1"].tail(3).mean() + 0.05
    assert sparse["cross_entropy"].iloc[-1] < 1.5  # it learns, too
    ends = [found["correlation conv1"].iloc[-1] for found in (plain, decorrelated)]
    assert ends[1] < 0.75**0.5 * ends[0]


def test_evaluating_leaves_the_penalties_alone():
    """Between a step's forward pass and the reading of its penalties, too."""
    run = replace(CONVNETS["sr3"], al2=True)
    found = bundle.prepare(run)
    model = trainer.build_network(run, *found.shape)
    attached = [penalty for _, penalty in bundle.attach(run, model)]
    read = []
    for evaluated in (False, True):
        model.train()(found.train.images[:8])
        if evaluated:
            trainer.predict(model, found.test.images[:8])
            measures.entropy_maps(model, found.test.images[:8])
        read.append([penalty.penalty() for penalty in attached])
    assert read[0] == read[1] and all(value.requires_grad for value in read[1])


# ---- what is measured


def entropy_columns(layers=LAYERS):
    return [f"{measure} {layer}" for measure in ("entropy", "correlation") for layer in layers]


@pytest.mark.parametrize(
    ("run", "more"),
    [
        (replace(BARE, n_validation=0, ablations=()), []),
        (AL2, ["lambda", *VALIDATION, "ablation_auc"]),
        (CONV, [*VALIDATION, *entropy_columns()]),
        (
            replace(CONV_ALL, entropy=False, heat_maps=0, n_validation=0),
            ["lambda", "sparsity_penalty", "decorrelation_penalty"],
        ),
    ],
)
def test_columns_are_the_published_metrics_and_those_of_every_penalty_and_measure(run, more):
    assert list(trainer.fit([replace(run, epochs=1)])) == [*COLUMNS, *more, "id"]


def test_correlations_are_measured_of_layers_of_at_most_1024_filters(monkeypatch):
    assert measures.MOST_FILTERS == 1024
    monkeypatch.setattr(measures, "MOST_FILTERS", 32)
    found = list(trainer.fit([replace(CONV, epochs=1)]))
    assert found[-10:-1] == entropy_columns()[:-1]


def test_at_point_epochs_all_test_images_are_measured_and_ablation_curves_kept(tmp_path):
    specs = ("element/train-true", "shared/test", "element/test", "channel/train-corrupt")
    run = replace(BARE, epochs=10, ablations=specs)
    points = [1, 3, 4, 6, 7, 9, 10]
    found, expected = trainer.fit([run], [tmp_path / run.name]), plain_training(run)
    kept = run_dir.read_arrays(tmp_path / run.name)
    assert list(found["test_images"]) == [359 if e in points else 50 for e in range(1, 11)]
    np.testing.assert_allclose(found["test_accuracy"], expected["test_accuracy"][1:], atol=2.01)
    assert list(found.loc[found["ablation_auc"].notna(), "epoch"]) == points
    assert list(kept["ablation epochs"]) == points
    for spec in specs:
        areas = found["ablation_auc" if spec == specs[0] else f"ablation_auc {spec}"].dropna()
        curves = kept[f"ablation {spec}"]  # [points, 11]
        assert curves.shape == (7, 11)
        np.testing.assert_allclose(np.trapezoid(curves, dx=0.1, axis=1), areas, rtol=1e-5)
        if "test" in spec:  # an unablated network has the accuracy of the whole network
            whole = found.loc[found["epoch"].isin(points), "test_accuracy"]
            np.testing.assert_allclose(curves[:, 0], whole)
    every = trainer.fit([replace(run, test_images=None, ablations=())])
    assert set(every["test_images"]) == {359}
    assert list(every["cross_entropy"]) == list(found["cross_entropy"])


MEASURED = [
    (BARE, {"ablations": ("shared/test", "element/train-true")}),
    (AL2, {"predictions": True, "keep_trunk": True}),
    (replace(CONV_ALL, entropy=False, heat_maps=0), {"entropy": True, "heat_maps": 3}),
    (
        replace(CONVNETS["everything, adam"], entropy=False, heat_maps=0),
        {"entropy": True, "heat_maps": 3},
    ),
]


@pytest.mark.parametrize(("run", "measured"), MEASURED)
def test_what_is_measured_does_not_change_what_is_trained(run, measured):
    run = replace(run, ablations=())
    assert_same(trainer.fit([replace(run, **measured)]), trainer.fit([run]))


def test_canonical_correlations_are_those_with_the_network_before_training_and_after_one_epoch(
    tmp_path,
):
    run, seen = CORRELATIONS, []

    def keep(run, model, epoch):
        images = bundle.prepare(run).train.images[:1000]
        seen.append(measures.channel_points(trainer.predict(model.trunk, images)))

    frame = trainer.fit([run], [tmp_path / run.name], callback=keep)
    arrays = run_dir.read_arrays(tmp_path / run.name)
    for start, reference in (("init", seen[0]), ("epoch1", seen[1])):
        for k, found in enumerate(measures.cca(reference, phi) for phi in seen[1:]):
            count, values = len(found.coefficients), arrays[f"cca {start}"][k]
            np.testing.assert_allclose(values[:count], found.coefficients, atol=1e-6)
            assert np.isnan(values[count:]).all()
            assert list(arrays[f"cca dropped {start}"][k]) == [found.dropped_x, found.dropped_y]
        for name in ("mean_cca", "svcca", "pwcca"):
            values = [getattr(measures, name)(reference, phi) for phi in seen[1:]]
            np.testing.assert_allclose(frame[f"{name} {start}"], values, atol=1e-6)
        assert list(arrays[f"cca epochs {start}"]) == [1, 2, 3] == run.cca_epochs()
    np.testing.assert_allclose(frame["mean_cca epoch1"][0], 1)
    assert replace(run, epochs=750).cca_epochs() == list(range(10, 751, 10))


@pytest.mark.parametrize("epochs", [1, 5])
def test_measures_are_those_of_the_network_after_each_epoch_and_before_the_first(epochs, tmp_path):
    run, images = replace(CONV, epochs=epochs), bundle.prepare(CONV).measure.images
    maps, filters = [], []

    def watch(seen, model, epoch):
        assert seen == run and epoch == len(maps)
        maps.append({name: h.numpy() for name, h in measures.entropy_maps(model, images).items()})
        weights = {name: model.get_submodule(name).weight for name in LAYERS}
        filters.append({n: measures.correlation_histogram(w).numpy() for n, w in weights.items()})

    found = trainer.fit([run], [tmp_path / run.name], callback=watch)
    stored, points = run_dir.read_arrays(tmp_path / run.name), run.heat_map_epochs()
    assert len(maps) == epochs + 1 and list(stored["heat map epochs"]) == points
    assert stored["entropy before training"].shape == (1, 5)
    for k, layer in enumerate(LAYERS):
        means = [h[layer].mean() for h in maps]
        np.testing.assert_allclose(found[f"entropy {layer}"], means[1:], rtol=1e-6)
        assert stored["entropy before training"][0, k] == pytest.approx(means[0], rel=1e-6)
        np.testing.assert_array_equal(stored[f"correlations {layer}"], [f[layer] for f in filters])
        expected = np.stack([maps[epoch][layer][:3] for epoch in points])
        assert stored[f"heat maps {layer}"].dtype == np.float16
        assert stored[f"heat maps {layer}"].shape == (len(points), 3, *SIDES[layer])
        np.testing.assert_allclose(stored[f"heat maps {layer}"], expected, atol=2e-3)


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("heat_maps", [3, 0])
def test_entropy_and_heat_maps_are_measured_each_without_the_other(entropy, heat_maps, tmp_path):
    run = replace(CONV, entropy=entropy, heat_maps=heat_maps, epochs=2)
    columns = trainer.fit([run], [tmp_path / run.name]).columns
    assert [c for c in columns if c.startswith("entropy ")] == entropy_columns()[: 5 * entropy]
    names = {"entropy before training", *(f"correlations {x}" for x in LAYERS)}
    names = names if entropy else set()
    if heat_maps:
        names |= {"heat map epochs", *(f"heat maps {x}" for x in LAYERS)}
    assert run_dir.read_arrays(tmp_path / run.name).keys() == names


def test_the_al2_network_s_entropies_are_measured_beside_its_ablations(tmp_path):
    run = replace(AL2, n_measure=20, entropy=True, heat_maps=2, sparsity=("trunk.conv2",), epochs=2)
    found = trainer.fit([run], [tmp_path / run.name])
    assert found.filter(like="entropy trunk").shape == (2, 2)
    assert found["ablation_auc"].notna().all()
    stored = run_dir.read_arrays(tmp_path / run.name)
    assert stored["heat maps trunk.conv1"].shape == (3, 2, 12, 12)
    assert stored["entropy before training"].shape == (1, 3)
    assert stored["ablation element/train-true"].shape == (2, 11)


# ---- what is shared, and determinism

SHARING = SMALL | {"epochs": 2, "ablations": ()}
SIX = ("vanilla", "drop", "norm", "sr2", "sr3", "adam")


@pytest.mark.parametrize(
    "runs",
    [
        label_randomization("digits", seeds=(0, 1), **SHARING),
        [replace(CONVNETS[name], epochs=2, seed=seed) for seed in (0, 1) for name in SIX],
    ],
    ids=["AL2", "sparsity"],
)
def test_the_networks_of_a_seed_share_labels_weights_and_order(runs, tmp_path):
    """The papers' comparisons are paired: what differs is what the names say."""
    assert len({run.id for run in runs}) == len(runs) in (16, 12)
    labels, orders, weights = {}, {}, {}

    def keep(run, model, epoch):
        if epoch == 0:
            shared = [p.detach() for name, p in model.named_parameters() if "norm" not in name]
            weights.setdefault(run.seed, set()).add((len(shared), digest(shared)))

    for run in runs:
        with watching() as passes:
            trainer.fit([run], [tmp_path / run.name], callback=keep)
        labels.setdefault(run.seed, set()).add(environment(tmp_path / run.name)["labels"])
        orders.setdefault(run.seed, set()).add(digest(images for _, images in passes))
    for found in (labels, orders, weights):
        assert [len(found[seed]) for seed in (0, 1)] == [1, 1]
        assert found[0] != found[1]


@pytest.mark.parametrize("name", ["bare", "everything"])
def test_no_random_state_of_the_process_matters_and_each_is_left_alone(name, monkeypatch):
    first = trainer.fit([NETWORKS[name]])
    torch.manual_seed(99)
    torch.rand(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    seeded = []  # a process may hold a GPU while it trains on the CPU
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    assert_same(trainer.fit([NETWORKS[name]]), first)
    assert torch.equal(torch.get_rng_state(), before[0]) and seeded == []
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


@pytest.mark.parametrize("products", ["high", "highest"])
def test_one_thread_and_whole_products_train_and_afterwards_all_is_as_before(products):
    def now():
        return torch.get_num_threads(), torch.get_float32_matmul_precision()

    def become(threads, products):
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(products)

    first, before, seen = trainer.fit([AL2]), now(), []
    become(2, products)
    try:
        assert_same(trainer.fit([AL2], callback=lambda *_: seen.append(now())), first)
        assert seen == [(1, "highest")] * 4 and now() == (2, products)
    finally:
        become(*before)


@pytest.mark.slow
def test_one_process_and_two_give_the_same_files(tmp_path, monkeypatch):
    runs = [NETWORKS["dropout"], NETWORKS["everything"], CONV_ALL]
    for jobs in (1, 2):
        monkeypatch.setenv("RESULTS_DIR", str(tmp_path / f"jobs{jobs}"))
        store.ensure(runs, profile="quick", jobs=jobs)
    for run in runs:
        one, two = (tmp_path / f"jobs{jobs}" / "quick" / "digits" / run.name for jobs in (1, 2))
        assert saved(one) == saved(two)


# ---- bad input and divergence

REFUSED = [
    (BARE, {"dataset": "no_such_set"}, "mnist"),
    (BARE, {"n_train": 1400}, "1438"),
    # on the data of the first
    (BARE, {"batch_size": 201}, "201.*200"),
    (BARE, {"test_images": 360}, "359"),
    (CONV, {"sparsity": ("conv5",)}, "no layer 'conv5'"),
    (CONV, {"network": "al2_cnn"}, "8×8 are too small for the AL2 network"),
]


@pytest.mark.parametrize(("run", "change", "message"), REFUSED)
def test_a_run_that_does_not_fit_is_refused_before_any_is_trained(run, change, message, tmp_path):
    trained, folders = [], [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(ValueError, match=message):
        trainer.fit([run, replace(run, **change)], folders, callback=lambda *_: trained.append(1))
    assert trained == [] and not any(folder.exists() for folder in folders)


def test_folders_have_to_be_as_many_as_runs(tmp_path):
    with pytest.raises(ValueError, match="2 runs and 1 folders"):
        trainer.fit([BARE, AL2], [tmp_path / "a"])


@pytest.mark.parametrize("weight_decay", [21.0, 22.0, 50.0])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_diverging_run_stops_and_every_row_that_is_kept_is_finite(
    weight_decay, batch_norm, tmp_path
):
    """A step multiplies the weights and turns their signs. They may still be finite, and the loss
    of the last batch too, where their products no longer are.
    """
    run = replace(BARE, momentum=0.0, epochs=6, ablations=())
    run = replace(run, weight_decay=weight_decay, batch_norm=batch_norm)
    found, folder = trainer.fit([run], [tmp_path / run.name]), tmp_path / run.name
    metrics, diverged = run_dir.read_metrics(folder)
    assert json.loads((folder / "status.json").read_text()) == {"diverged": diverged}
    assert 1 <= diverged <= 6 and len(metrics) == len(found) == diverged - 1
    assert np.isfinite(found[[*COLUMNS, "validation_cross_entropy"]].to_numpy(dtype=float)).all()
    assert run_dir.is_finished(folder) and not (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("name", "rate"), [("bare", 1e3), ("bare", 1e6), ("bare", 1e30), ("sr3", 1e30)]
)
def test_a_run_that_diverges_at_once_has_no_rows_but_all_columns(name, rate, tmp_path):
    run = replace(BOTH[name], learning_rate=rate)
    assert trainer.fit([run], [tmp_path / run.name]).empty
    metrics, diverged = run_dir.read_metrics(tmp_path / run.name)
    assert diverged == 1 and len(metrics) == 0
    more = ["ablation_auc"] if name == "bare" else entropy_columns()
    penalties = ["sparsity_penalty", "decorrelation_penalty"] * (name == "sr3")
    assert list(metrics) == [*COLUMNS, *penalties, *VALIDATION, *more]
    if name == "sr3":  # the arrays from before training are there
        stored = run_dir.read_arrays(tmp_path / run.name)
        assert stored["correlations conv1"].shape == (1, 200)
        assert list(stored["heat map epochs"]) == [0]


# ---- going on


@pytest.fixture
def often(monkeypatch):
    """A checkpoint is written after every epoch."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)


class Stop(Exception):
    """Stands for whatever ends a training."""


def train_until(run, folder, epoch):
    """Train, or go on, and stop at an epoch, before its checkpoint is written."""

    def stop(run, model, reached):
        if reached == epoch:
            raise Stop

    with pytest.raises(Stop):
        trainer.fit([run], [folder], callback=stop)


RESUMED = ["everything", "everything in a ConvNet", "correlations"]
# what those hold, too, one by one
ALONE = ["bare", "al2", "batch norm", "dropout", "sr3", "everything, adam"]
RESUMED += [pytest.param(name, marks=pytest.mark.slow) for name in ALONE]


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    name, tmp_path, often, epochs_trained
):
    run = (BOTH | {"correlations": CORRELATIONS})[name]
    run = replace(run, epochs=8, keep_weights=True, speed=min(run.speed, 8.0))
    whole, pieces = tmp_path / "whole" / run.name, tmp_path / "pieces" / run.name
    frame = trainer.fit([run], [whole])
    for epoch in (1, 2, 4, 7, 8):
        train_until(run, pieces, epoch)
        assert not run_dir.is_finished(pieces)
    epochs_trained.clear()
    shown = []
    resumed = trainer.fit([run], [pieces], callback=lambda run, model, epoch: shown.append(epoch))
    assert epochs_trained == shown == [8]  # what was trained is neither trained nor shown again
    assert_same(resumed, frame)
    assert saved(pieces) == saved(whole)
    assert not (pieces / "checkpoint.pt").exists()


def test_wall_time_adds_up_over_interruptions(tmp_path, often, monkeypatch):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(clock))
    train_until(BARE, tmp_path / BARE.name, 3)
    earlier = torch.load(tmp_path / BARE.name / "checkpoint.pt", weights_only=True)["seconds"]
    trainer.fit([BARE], [tmp_path / BARE.name])
    assert environment(tmp_path / BARE.name)["seconds"] > earlier > 0


def test_no_checkpoint_is_written_before_its_time(tmp_path, monkeypatch):
    assert trainer.CHECKPOINT_SECONDS == 30  # what README promises
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", math.inf)
    train_until(BARE, tmp_path / BARE.name, 3)
    assert [f.name for f in (tmp_path / BARE.name).iterdir()] == ["config.json"]


# ---- several, side by side, recorded

TOGETHER = [NETWORKS[name] for name in ("bare", "al2", "batch norm", "dropout", "everything")]
TOGETHER += [replace(BARE, corruption=0.75, seed=1, epochs=2, batch_size=50)]
TOGETHER += [replace(CONVNETS["sr3"], epochs=2)]


@pytest.mark.parametrize("side_by_side", [False, True])
def test_runs_trained_together_are_as_if_trained_alone_bit_for_bit(side_by_side, tmp_path):
    folders = [tmp_path / run.name for run in TOGETHER]
    several = trainer.fit(TOGETHER, folders, side_by_side=side_by_side)
    for run, folder in zip(TOGETHER, folders, strict=True):
        alone = tmp_path / "alone" / run.name
        assert_same(several, trainer.fit([run], [alone]))
        for name in ("metrics.csv", "measures.npz"):
            assert (folder / name).read_bytes() == (alone / name).read_bytes()


def test_networks_side_by_side_take_their_steps_in_turns():
    with watching() as passes:
        trainer.fit([BARE, replace(BARE, seed=1), replace(BARE, epochs=1)], side_by_side=True)
    seen = [id(module) for module, _ in passes]
    # they begin a third of an epoch of seven steps apart
    first, second, third = dict.fromkeys(seen)
    assert seen[:13] == [first] * 3 + [first, second] * 2 + [first, second, third] * 2
    assert len(seen) == 7 * (3 + 3 + 1)


def test_side_by_side_one_that_diverges_leaves_the_others_alone():
    wild = replace(BARE, learning_rate=1e6)
    found = trainer.fit([wild, AL2], side_by_side=True)
    assert_same(found, trainer.fit([AL2]))
    assert len(found[found.id == wild.id]) < wild.epochs


def test_steps_are_recorded_on_a_gpu_unless_told_otherwise(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.delenv("CUDA_GRAPHS", raising=False)
    assert trainer.records_steps(gpu) and not trainer.records_steps(torch.device("cpu"))
    monkeypatch.setenv("CUDA_GRAPHS", "0")
    assert not trainer.records_steps(gpu)
    found, model = bundle.prepare(BARE), trainer.build_network(BARE, 1, 16, 10)
    made = [model, trainer.make_optimizer(BARE, model), found, BARE]
    assert not trainer.TrainStep(*made).use_cuda_graph
    assert trainer.TrainStep(*made, use_cuda_graph=True).use_cuda_graph


def refused(asked, message, monkeypatch):
    with pytest.raises(ValueError, match=message):
        trainer.fit([BARE], device=asked)
    monkeypatch.setenv("DEVICE", asked)
    with pytest.raises(ValueError, match=message):
        trainer.default_device()


@pytest.mark.parametrize("asked", ["mps", "meta", "gpu", "cuda:x"])
def test_devices_other_than_the_cpu_and_nvidia_s_gpus_are_refused(asked, monkeypatch):
    refused(asked, f"'{asked}'; allowed are cpu and cuda .DEVICE", monkeypatch)


@pytest.mark.parametrize(
    ("asked", "gpus", "message"),
    [
        ("cuda", 0, "cuda, but PyTorch finds no GPU here; set DEVICE=cpu"),
        ("cuda:9", 2, "cuda:9, but PyTorch finds 2 GPUs here, numbered from 0"),
    ],
)
def test_a_gpu_that_is_not_there_is_said(asked, gpus, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    refused(asked, message, monkeypatch)


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad])
def test_a_run_is_the_same_without_gradients_around_it_and_refused_in_autocast(around):
    run = replace(CONV_ALL, epochs=1)
    expected = trainer.fit([run])
    with around():
        found = trainer.fit([run])
    assert_same(found, expected)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"autocast is on .*PRECISION says"),
    ):
        trainer.fit([run])
