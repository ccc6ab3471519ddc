"""What a run trains on, what it is checked for, and which penalties it gets."""

from dataclasses import replace
from hashlib import sha256

import pytest
import torch

from lib import bundle, data, losses, models, trainer
from lib.run import Run, generator
from lib.study.experiments import sparsity_networks

SPLIT = dict(image_size=16, n_train=60, n_validation=30, n_measure=40)
RUN = Run("digits", network="convnet_s", corruption=0.5, normalize="unit", **SPLIT, batch_size=20)


def keys(images: torch.Tensor) -> set[bytes]:
    return {image.contiguous().numpy().tobytes() for image in images}


# ---- the data


def test_training_validation_measuring_and_test_images_are_disjoint_and_as_many_as_asked_for():
    found = bundle.prepare(RUN)
    splits = [found.train, found.validation, found.measure, found.test]
    assert [len(split) for split in splits] == [60, 30, 40, 359]
    assert len(set.union(*(keys(split.images) for split in splits))) == 60 + 30 + 40 + 359
    assert found.shape == (1, 16, 10) and found.num_classes == 10
    for images in (split.images for split in splits):
        assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
        assert images.is_contiguous(memory_format=torch.channels_last)
    # the first test images hold every class
    counts = found.test.labels[:50].bincount(minlength=10)
    assert counts.min() >= 4 and counts.max() <= 6


def test_labels_to_train_and_validate_on_are_corrupted_and_those_to_measure_and_test_on_are_not():
    dataset, found = data.load("digits", size=16, normalize="unit"), bundle.prepare(RUN)
    train, validation, measure = data.subset(dataset.train, 60, 30, 40)
    assert torch.equal(found.train.images, train.images)
    assert torch.equal(found.measure.images, measure.images)
    corrupted = [(train, found.train, "corruption")]
    corrupted += [(validation, found.validation, "validation corruption")]
    for split, given, purpose in corrupted:
        source = generator(0, purpose)
        labels, changed = data.corrupt_labels(split.labels, 0.5, 10, generator=source)
        assert torch.equal(given.labels, labels) and changed.any()
    assert torch.equal(found.true_labels, train.labels)
    assert torch.equal(found.measure.labels, measure.labels)
    assert sorted(found.test.labels.tolist()) == sorted(dataset.test.labels.tolist())
    labels = sha256(found.train.labels.numpy().tobytes()).hexdigest()
    assert found.hashes == {"data": dataset.sha256, "labels": labels}


def test_images_held_out_to_measure_on_do_not_depend_on_the_training_or_its_seed():
    state, first = torch.get_rng_state(), bundle.prepare(RUN).measure.images
    changes = [{"n_train": None}, {"n_validation": 0}, {"seed": 5}, {"network": "al2_cnn"}]
    for change in [*changes, {"corruption": 0.0}]:
        assert torch.equal(bundle.prepare(replace(RUN, **change)).measure.images, first)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone


# ---- what is refused

ALL_LAYERS = "its layers are conv1, conv2, conv3, conv4, features, fc1, fc2"
BAD = [
    ({"batch_size": 61}, "batch_size is 61, larger than the 60 training images"),
    ({"test_images": 360}, "test_images is 360, but digits has 359"),
    ({"n_measure": 1400}, "n_measure=1400 from 1438 images"),
    ({"padding": "valid", "image_size": 15}, "15×15 are too small for a ConvNet.*16×16"),
    ({"network": "lenet", "image_size": 12}, "12×12 are too small for LeNet"),
    ({"network": "alexnet", "image_size": 12}, "12×12 are too small for AlexNet"),
    ({"network": "al2_cnn", "image_size": 12}, "12×12 are too small for the AL2 network"),
    ({"sparsity": ("conv3", "conv5")}, f"no layer 'conv5'; {ALL_LAYERS}"),
    ({"decorrelation": ("fc3",)}, "no layer 'fc3'"),
    ({"sparsity": ("features",)}, "'features' is a Flatten; only convolutions and linear layers"),
    ({"decorrelation": ("norm1",), "batch_norm": True}, "'norm1' is a BatchNorm2d"),
    ({"network": "al2_cnn", "sparsity": ("conv1",)}, "no layer 'conv1'; its layers are trunk, tr"),
    ({"dataset": "no_such_set"}, "no_such_set"),
    ({"classes": 5}, "digits knows no option 'classes'"),
]


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_penalties_are_checked_where_the_caller_has_switched_gradients_off(off):
    added = [{"name": name, "layers": {"conv1": 1.0}} for name in ("sparsity", "decorrelation")]
    with off():
        for penalty in added:
            bundle.prepare(replace(RUN, penalties=[penalty]))


@pytest.mark.parametrize(("change", "message"), BAD, ids=["-".join(change) for change, _ in BAD])
def test_a_run_that_its_data_or_network_cannot_serve_is_refused(change, message):
    run = replace(RUN, **change)
    with pytest.raises(ValueError, match=message):
        bundle.prepare(run)
    # what makes a run fail is part of the key of runs that fail together
    assert bundle.check_key(run) != bundle.check_key(RUN)


@pytest.mark.parametrize(
    "change", [{"batch_norm": False}, {"dropout": 0.0}, {"norm_place": "block"}]
)
def test_options_that_an_added_penalty_may_need_are_part_of_the_key(change):
    run = replace(RUN, batch_norm=True, dropout=0.3)
    assert bundle.check_key(run) != bundle.check_key(replace(run, **change))


def test_canonical_correlations_of_too_few_points_are_refused_before_training():
    run = Run("digits", image_size=16, n_train=50, batch_size=8, cca=("init",))
    with pytest.raises(ValueError, match="cca compares 50 channels over 50 points"):
        bundle.prepare(run)
    bundle.prepare(replace(run, n_train=51))


@pytest.mark.parametrize("name", ["value", "data_hash", "labels_hash", "metric", "where"])
def test_a_penalty_s_metric_is_no_column_that_frames_have(name, monkeypatch):
    made = type("Named", (losses.SparsityReg,), {"metric": name})
    monkeypatch.setitem(losses.PENALTIES, "named", made)
    run = replace(RUN, penalties=[{"name": "named", "layers": {"conv1": 1.0}}])
    with pytest.raises(ValueError, match=f"'{name}', which is taken"):
        bundle.prepare(run)


def test_images_that_are_not_square_are_refused(monkeypatch):
    split = data.Split(torch.zeros(20, 1, 16, 18, dtype=torch.uint8), torch.arange(20) % 10)
    wide = data.RawDataSet("wide", split, split, tuple("0123456789"), "0", (), torch.Tensor.float)
    monkeypatch.setattr(data, "read", lambda *args, **more: wide)
    with pytest.raises(ValueError, match="wide has images of 16×18 pixels"):
        bundle.prepare(Run("wide", batch_size=4))


@pytest.mark.parametrize("network", ["convnet_xxl", "alexnet"])
def test_large_networks_are_checked_without_their_weights(network, monkeypatch):
    """A check must not cost what the network costs."""
    built, plain = [], models.architecture

    def building(*args, **more):
        built.append(plain(*args, **more))
        return built[-1]

    monkeypatch.setattr(models, "architecture", building)
    bundle.prepare(replace(RUN, network=network))
    assert built and all(p.device.type == "meta" for p in built[0].parameters())


# ---- keys


def test_runs_with_one_data_key_have_one_and_the_same_data():
    """Every field of a run either changes its key or leaves its images and labels as they are."""
    other = dict(image_size=20, normalize="al2", n_train=50, n_validation=20, n_measure=30, seed=1)
    other |= dict(corruption=0.25, corruption_law="exact", network="al2_cnn", batch_norm=True)
    other |= dict(dropout=0.5, al2=True, optimizer="adam", learning_rate=0.1, momentum=0.1)
    other |= dict(weight_decay=0.1, batch_size=10, epochs=3, padding="valid", test_images=9)
    other |= dict(sparsity=("conv1",), decorrelation=("conv1",), entropy=True, heat_maps=3)
    other |= dict(keep_weights=True, relabelled_by="0123456789", predictions=True)

    def contents(run: Run) -> list[torch.Tensor]:
        found = bundle.prepare(run)
        splits = (found.train, found.validation, found.measure, found.test)
        return [part for split in splits for part in (split.images, split.labels)]

    first = contents(RUN)
    for name, value in other.items():
        run = replace(RUN, **{name: value})
        if bundle.data_key(run) == bundle.data_key(RUN):
            assert all(torch.equal(a, b) for a, b in zip(contents(run), first, strict=True)), name
        else:
            assert name in bundle.DATA_FIELDS + bundle.LABEL_FIELDS


# ---- penalties


def step_of(run, model):
    optimizer = trainer.make_optimizer(run, model)
    return trainer.TrainStep(model, optimizer, bundle.prepare(run), run)


def test_a_run_s_penalties_act_on_its_layers_with_its_weights():
    run = replace(RUN, sparsity=("conv2", "fc1"), sparsity_weight=0.3)
    how = dict(decorrelation_weight=0.7, decorrelation_pairs="square")
    run = replace(run, decorrelation=("conv1", "conv3"), decorrelation_reduce="mean", **how)
    model = trainer.build_network(run, 1, 16, 10)
    step = step_of(run, model)
    sparsity, decorrelation = [penalty for _, penalty in step.penalties]
    seen, x = {}, torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for name in ("conv2", "fc1", "features"):
        model.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: seen.update({name: out.detach()})
        )
    model(x)
    outputs = [torch.distributions.Categorical(logits=seen[n].movedim(1, -1)) for n in run.sparsity]
    h = sum(output.entropy().sum().item() for output in outputs)
    assert sparsity.penalty().item() == pytest.approx(-0.3 * h / 5, rel=1e-5)
    filters = [model.get_submodule(name).weight.detach().flatten(1) for name in run.decorrelation]
    c = [torch.corrcoef(rows) for rows in filters]
    c = [m[tuple(torch.tril_indices(len(m), len(m), -1))] for m in c]
    expected = sum(pairs.square().mean().item() for pairs in c)
    assert decorrelation.penalty().item() == pytest.approx(0.7 * expected, rel=1e-4)
    l2 = seen["features"].square().mean().item()
    assert step.activation_l2.penalty().item() == pytest.approx(l2, rel=1e-6)


def test_a_run_s_centre_reaches_the_penalty():
    run = replace(RUN, decorrelation=("conv1",), decorrelation_centre="mean_filter")
    model = trainer.build_network(run, 1, 16, 10)
    expected = losses.decorrelation(model.conv1.weight, centre="mean_filter").item()
    ((_, penalty),) = bundle.attach(run, model)
    assert penalty.penalty().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("run", sparsity_networks("digits", n_measure=40), ids=lambda r: r.variant)
def test_a_network_has_the_penalties_of_its_regularisers_and_none_beside(run):
    model = trainer.build_network(run, 1, 8, 10).eval()
    step = step_of(run, model)
    model(torch.rand(2, 1, 8, 8))
    expected = ["sparsity_penalty"] * bool(run.sparsity)
    expected += ["decorrelation_penalty"] * bool(run.decorrelation)
    assert step.metrics == expected
    assert all(penalty.penalty().item() != 0 for _, penalty in step.penalties)
    assert step.activation_l2.penalty().item() > 0
