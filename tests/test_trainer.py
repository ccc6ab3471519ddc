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
SMALL = dict(
    dataset="digits",
    image_size=16,
    n_train=200,
    n_validation=40,
    test_images=50,
    epochs=3,
    corruption=0.25,
)
SMALL |= dict(learning_rate=0.1, momentum=0.9, batch_size=32)
BARE = Run(**SMALL)
AL2 = replace(BARE, al2=True, speed=25.0)  # λ = 0.01, 0.108, 1.174
NETWORKS = {
    "bare": BARE,
    "al2": AL2,
    "batch norm": replace(BARE, batch_norm=True),
    "batch norm, uniform scale": replace(BARE, batch_norm=True, bn_gamma="uniform"),
    "weight decay": replace(BARE, weight_decay=0.01),
    "dropout": replace(BARE, dropout=0.5),
    "everything": replace(
        AL2, batch_norm=True, dropout=0.3, weight_decay=0.01, momentum=0.5, seed=3
    ),
}
COLUMNS = (
    "epoch test_accuracy test_cross_entropy test_images train_accuracy cross_entropy activation_l2"
).split()


def percent_right(logits, labels):
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def plain_training(run):
    """The paper's training written down once more, with PyTorch's own layers in the paper's order;
    a row an epoch.
    """
    dataset = data.load("digits", size=run.image_size)
    train, validation, _ = data.subset(dataset.train, run.n_train, run.n_validation)
    labels, _ = data.corrupt_labels(
        train.labels, run.corruption, 10, generator=generator(run.seed, "corruption")
    )
    source = generator(run.seed, "validation corruption")
    validation_labels, _ = data.corrupt_labels(
        validation.labels, run.corruption, 10, generator=source
    )

    norm = [nn.BatchNorm2d(50)] if run.batch_norm else []
    trunk = nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        *norm,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    side = ((run.image_size - 4) // 2 - 4) // 2
    head = nn.Sequential(nn.Linear(50 * side**2, 500), nn.ReLU(), nn.Linear(500, 10))
    network = nn.Sequential(trunk, head)
    initial = list(trainer.build_network(run, 1, run.image_size, 10).parameters())
    with torch.no_grad():
        for mine, theirs in zip(network.parameters(), initial, strict=True):
            mine.copy_(theirs)
    optimizer = torch.optim.SGD(
        network.parameters(), run.learning_rate, run.momentum, weight_decay=run.weight_decay
    )

    rows = []
    for epoch in range(1, run.epochs + 1):
        # Eq. 2 below its threshold, `speed` of the paper's epochs at a time
        weight = 0.01 * 1.1 ** (run.speed * (epoch - 1)) if run.al2 else 0.0
        order = torch.randperm(run.n_train, generator=generator(run.seed, "order", epoch))
        coins = generator(run.seed, "dropout", epoch)
        network.train()
        totals, batches, right = np.zeros(2), [], 0
        for start in range(0, run.n_train, run.batch_size):
            batch = order[start : start + run.batch_size]
            phi = trunk(train.images[batch])
            if run.dropout:
                kept = (
                    torch.rand(len(phi), 50, side, side, generator=coins).flatten(1) >= run.dropout
                )
                phi = phi * kept / (1 - run.dropout)
            logits = head(phi)
            cross_entropy, squares = nn.CrossEntropyLoss()(logits, labels[batch]), (phi**2).mean()
            optimizer.zero_grad()
            (cross_entropy + weight * squares).backward()
            optimizer.step()
            totals += len(batch) * np.array([cross_entropy.item(), squares.item()])
            batches.append(cross_entropy.item())
            right += (logits.argmax(1) == labels[batch]).sum().item()
        network.eval()
        with torch.no_grad():
            shown = dataset.test.take(data.stratified_permutation(dataset.test.labels))
            test, held_out, phi = (
                network(shown.images),
                network(validation.images),
                trunk(train.images),
            )
            coins = generator(run.seed, "ablation", "element/train-true", epoch)
            curve = []
            for fraction in torch.arange(11) / 10:
                kept = torch.rand(len(phi), 50, side, side, generator=coins).flatten(1) >= fraction
                curve.append(percent_right(head(phi * kept), train.labels))
        rows.append(
            {
                "epoch": epoch,
                "test_accuracy": percent_right(test, shown.labels),
                "test_accuracy_of_the_first": percent_right(
                    test[: run.test_images], shown.labels[: run.test_images]
                ),
                "train_accuracy": 100 * right / run.n_train,
                "cross_entropy": totals[0] / run.n_train,
                "cross_entropy_over_batches": np.mean(batches),
                "activation_l2": totals[1] / run.n_train,
                "lambda": weight,
                "validation_accuracy": percent_right(held_out, validation_labels),
                "validation_cross_entropy": F.cross_entropy(held_out, validation_labels).item(),
                "ablation_auc": np.trapezoid(curve, dx=0.1),
            }
        )
    return pd.DataFrame(rows)


@contextmanager
def watching():
    """What the AL2 networks are fed in training mode, and the parameters they start from: (batches,
    first parameters).
    """
    batches, first = [], []

    def look(module, inputs):
        if isinstance(module, models.AL2CNN) and module.training:
            batches.append(inputs[0].clone())
            if not first:
                first.append({name: p.detach().clone() for name, p in module.named_parameters()})

    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield batches, first
    finally:
        hook.remove()


def digest(tensors):
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()


# ---- metrics


@pytest.mark.parametrize("run", NETWORKS.values(), ids=NETWORKS)
def test_training_agrees_with_a_plain_pytorch_loop(run):
    expected, found = plain_training(run), trainer.fit([run])
    assert list(found["epoch"]) == [1, 2, 3]
    for name in ["cross_entropy", "activation_l2", "validation_cross_entropy"] + [
        "lambda"
    ] * run.al2:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for name, images in {
        "test_accuracy": 359,
        "train_accuracy": 200,
        "validation_accuracy": 40,
    }.items():
        # a tie may fall to either side by the last bit
        np.testing.assert_allclose(
            found[name], expected[name], rtol=0, atol=100 / images + 1e-4, err_msg=name
        )
    np.testing.assert_allclose(found["ablation_auc"], expected["ablation_auc"], rtol=0, atol=0.5)
    assert np.ptp(expected["cross_entropy"]) > 0.1  # it is a training that moves


def test_the_networks_that_are_compared_differ_by_much_more_than_the_tolerance():
    ends = [
        trainer.fit([replace(run, seed=0, ablations=())])["cross_entropy"].iloc[-1]
        for run in NETWORKS.values()
    ]
    assert np.diff(sorted(ends)).min() > 5e-3


def test_means_are_over_images_and_not_over_batches():
    expected, found = plain_training(BARE), trainer.fit([BARE])
    assert (expected["cross_entropy"] - expected["cross_entropy_over_batches"]).abs().max() > 1e-3
    np.testing.assert_allclose(found["cross_entropy"], expected["cross_entropy"], rtol=1e-4)


def test_a_batch_may_hold_all_images():
    run = replace(BARE, batch_size=200)
    np.testing.assert_allclose(
        trainer.fit([run])["cross_entropy"], plain_training(run)["cross_entropy"], rtol=1e-4
    )


def test_lambda_is_constant_in_an_epoch_and_follows_the_schedule_of_the_run():
    assert "lambda" not in trainer.fit([BARE])
    for run in (
        AL2,
        replace(AL2, schedule="linear", speed=100.0),
        replace(AL2, schedule="constant", rate=0.3),
    ):
        series = schedules.schedule(run.schedule, run.epochs, run.speed, run.rate)
        np.testing.assert_allclose(trainer.fit([run])["lambda"], series, rtol=1e-12)
    assert list(trainer.fit([replace(AL2, schedule="constant", rate=0.3)])["lambda"]) == [0.3] * 3


def test_all_test_images_are_measured_at_point_epochs_only():
    run = replace(BARE, epochs=10)
    assert run.table_epochs() == [1, 3, 4, 6, 7, 9, 10]
    found, expected = trainer.fit([run]), plain_training(run)
    at_points = found["epoch"].isin(run.table_epochs())
    assert list(found["test_images"]) == [359 if point else 50 for point in at_points]
    wanted = expected["test_accuracy"].where(at_points, expected["test_accuracy_of_the_first"])
    np.testing.assert_allclose(found["test_accuracy"], wanted, atol=2.01)
    assert set(trainer.fit([replace(run, test_images=None)])["test_images"]) == {359}


def test_ablation_is_measured_at_point_epochs_only_and_its_curves_are_kept(tmp_path):
    run = replace(
        BARE, epochs=10, ablations=("element/train-true", "shared/test", "channel/train-corrupt")
    )
    found = trainer.fit([run], [tmp_path / run.name])
    measured = found.loc[found["ablation_auc"].notna(), "epoch"]
    assert list(measured) == run.table_epochs()
    kept = run_dir.read_arrays(tmp_path / run.name)
    assert list(kept["ablation epochs"]) == run.table_epochs()
    for spec in run.ablations:
        column = "ablation_auc" if spec == "element/train-true" else f"ablation_auc {spec}"
        curves = kept[f"ablation {spec}"]  # [points, 11]
        assert curves.shape == (7, 11)
        np.testing.assert_allclose(
            np.trapezoid(curves, dx=0.1, axis=1), found[column].dropna(), rtol=1e-5
        )


def test_an_unablated_network_has_the_accuracy_of_the_whole_network(tmp_path):
    run = replace(BARE, corruption=0.0, ablations=("element/test", "shared/test"))
    found = trainer.fit([run], [tmp_path / run.name])
    for spec in run.ablations:
        np.testing.assert_allclose(
            run_dir.read_arrays(tmp_path / run.name)[f"ablation {spec}"][:, 0],
            found["test_accuracy"],
        )


def test_what_is_measured_does_not_change_what_is_trained():
    more = replace(BARE, ablations=("shared/test", "element/train-true"), test_images=None)
    less = replace(BARE, ablations=())
    pd.testing.assert_frame_equal(
        trainer.fit([more])[["cross_entropy"]], trainer.fit([less])[["cross_entropy"]]
    )


def test_columns_are_the_published_metrics():
    assert list(trainer.fit([replace(BARE, n_validation=0, ablations=())])) == [*COLUMNS, "id"]
    validation = ["validation_accuracy", "validation_cross_entropy"]
    assert list(trainer.fit([AL2])) == [*COLUMNS, "lambda", *validation, "ablation_auc", "id"]


def test_validation_images_are_held_out_of_training():
    with watching() as (batches, _):
        trainer.fit([replace(BARE, n_train=None, n_validation=1000, epochs=1)])
    assert sum(map(len, batches)) == 1438 - 1000


# ---- what is shared, and determinism


def test_the_networks_of_a_seed_share_labels_weights_and_order(tmp_path):
    labels, orders, weights = {}, {}, {}
    settings = {k: v for k, v in SMALL.items() if k != "dataset"} | {"epochs": 2, "ablations": ()}
    runs = label_randomization("digits", seeds=(0, 1), **settings)
    for run in runs:
        with watching() as (batches, first):
            trainer.fit([run], [tmp_path / run.name])
        labels.setdefault(run.seed, set()).add(
            json.loads((tmp_path / run.name / "env.json").read_text())["labels"]
        )
        orders.setdefault(run.seed, set()).add(digest(batches))
        shared = [p for name, p in first[0].items() if "norm" not in name]
        weights.setdefault(run.seed, set()).add((len(shared), digest(shared)))
    assert len(runs) == len({run.id for run in runs}) == 16
    for found in (labels, orders, weights):
        assert [len(found[seed]) for seed in (0, 1)] == [1, 1]
        assert found[0] != found[1]


def test_the_hash_of_the_labels_is_that_of_the_labels_trained_on(tmp_path):
    trainer.fit([BARE], [tmp_path / BARE.name])
    train, _, _ = data.subset(data.load("digits").train, 200, 40)
    labels, _ = data.corrupt_labels(train.labels, 0.25, 10, generator=generator(0, "corruption"))
    env = json.loads((tmp_path / BARE.name / "env.json").read_text())
    assert env["labels"] == hashlib.sha256(labels.numpy().tobytes()).hexdigest()
    assert env["data"] == data.load("digits").sha256


def test_each_epoch_has_an_order_of_its_own_and_sees_every_image_once():
    with watching() as (batches, _):
        trainer.fit([replace(BARE, epochs=2)])
    assert [len(b) for b in batches] == [*[32] * 6, 8] * 2
    first, second = torch.cat(batches[:7]), torch.cat(batches[7:])
    assert not torch.equal(first, second)
    train, _, _ = data.subset(data.load("digits", size=16).train, 200, 40)
    for seen in (first, second):
        assert sorted(digest([x]) for x in seen) == sorted(digest([x]) for x in train.images)


@pytest.mark.parametrize("name", ["bare", "everything"])
def test_two_trainings_give_equal_frames_whatever_the_global_random_state(name):
    first = trainer.fit([NETWORKS[name]])
    torch.manual_seed(99)
    torch.rand(7)
    pd.testing.assert_frame_equal(trainer.fit([NETWORKS[name]]), first, check_exact=True)


def test_global_random_states_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    trainer.fit([NETWORKS["everything"]])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_random_states_of_other_devices_are_left_alone(monkeypatch):
    """A process may hold a GPU while it trains on the CPU; building a network seeds neither."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    trainer.build_network(BARE, 1, 16, 10)
    assert seeded == []


def test_runs_trained_together_are_as_if_trained_alone():
    runs = [NETWORKS["bare"], NETWORKS["everything"], NETWORKS["dropout"]]
    together = trainer.fit(runs)
    for run in runs:
        alone = trainer.fit([run]).dropna(axis=1, how="all")
        found = together[together["id"] == run.id].reset_index(drop=True)
        pd.testing.assert_frame_equal(found[alone.columns], alone, check_exact=True)


def test_the_number_of_threads_is_as_before():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        trainer.fit([replace(BARE, epochs=1)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_results_do_not_depend_on_the_number_of_threads():
    before, first = torch.get_num_threads(), trainer.fit([AL2])
    try:
        torch.set_num_threads(2)
        pd.testing.assert_frame_equal(trainer.fit([AL2]), first, check_exact=True)
    finally:
        torch.set_num_threads(before)


# ---- bad input and divergence


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dataset": "no_such_set"}, "mnist"),
        ({"batch_size": 201}, "201.*200"),
        ({"n_train": 1400}, "1438"),
        ({"n_validation": 1300}, "1438"),
        ({"test_images": 360}, "359"),
        ({"image_size": 15}, "16×16"),
        ({"classes": 5}, "classes"),
        ({"al2": True, "schedule": "al2", "rate": 2.0}, "rate"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_run_that_does_not_fit_is_refused_before_any_is_trained(change, message, tmp_path):
    trained = []
    with pytest.raises(ValueError, match=message):
        runs = [BARE, replace(BARE, **change)]
        trainer.fit(runs, [tmp_path / "a", tmp_path / "b"], callback=lambda *_: trained.append(1))
    assert trained == []
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_folders_have_to_be_as_many_as_runs(tmp_path):
    with pytest.raises(ValueError, match="2 runs and 1 folders"):
        trainer.fit([BARE, AL2], [tmp_path / "a"])


def test_a_diverging_run_stops_and_its_metrics_hold_finite_epochs_only(tmp_path):
    run = replace(
        BARE, weight_decay=21.0, momentum=0.0, epochs=50
    )  # a step doubles the weights and turns their signs
    folder = tmp_path / run.name
    found = trainer.fit([run], [folder])
    metrics, diverged = run_dir.read_metrics(folder)
    assert json.loads((folder / "status.json").read_text()) == {"diverged": diverged}
    assert 2 <= diverged <= 3 and len(metrics) == len(found) == diverged - 1
    assert np.isfinite(metrics[["cross_entropy", "activation_l2", "test_accuracy"]]).all(axis=None)
    assert run_dir.is_finished(folder) and not (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize("rate", [1e3, 1e6, 1e30])
def test_a_run_that_diverges_at_once_has_no_rows_but_all_columns(rate, tmp_path):
    run = replace(BARE, learning_rate=rate)
    trainer.fit([run], [tmp_path / run.name])
    metrics, diverged = run_dir.read_metrics(tmp_path / run.name)
    assert diverged == 1 and len(metrics) == 0
    assert list(metrics)[:7] == COLUMNS


@pytest.mark.parametrize("weight_decay", [21.0, 22.0, 50.0])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_row_that_is_kept_is_finite(weight_decay, batch_norm):
    """The weights may still be finite, and the loss of the last batch too, where their products no
    longer are.
    """
    run = replace(
        BARE, weight_decay=weight_decay, momentum=0.0, batch_norm=batch_norm, epochs=6, ablations=()
    )
    found = trainer.fit([run])
    assert len(found) < run.epochs
    assert np.isfinite(found[[*COLUMNS, "validation_cross_entropy"]].to_numpy(dtype=float)).all()


# ---- going on


class Stop(Exception):
    """Stands for whatever ends a training."""


def train_until(run, folder, epoch):
    """Train, or go on, and stop at an epoch, before its checkpoint is written."""

    def stop(run, model, reached):
        if reached == epoch:
            raise Stop

    with pytest.raises(Stop):
        trainer.fit([run], [folder], callback=stop)


RESUMED = {
    "bare": BARE,
    "batch norm": NETWORKS["batch norm"],
    "dropout": NETWORKS["dropout"],
    "al2 with momentum": replace(AL2, momentum=0.9, speed=8.0),
    "everything": NETWORKS["everything"],
    "canonical correlations": replace(BARE, cca=("init", "epoch1"), ablations=(), image_size=20),
}


@pytest.mark.parametrize("run", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
    run = replace(run, epochs=8, keep_weights=True, speed=min(run.speed, 8.0))
    whole, pieces = tmp_path / "whole" / run.name, tmp_path / "pieces" / run.name
    frame = trainer.fit([run], [whole])
    for epoch in (1, 2, 4, 7, 8):
        train_until(run, pieces, epoch)
        assert not run_dir.is_finished(pieces)
    with watching() as (batches, _):
        resumed = trainer.fit([run], [pieces])
    assert len(batches) == 7  # the last epoch alone was left
    pd.testing.assert_frame_equal(resumed, frame, check_exact=True)
    assert (pieces / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    first, second = run_dir.read_arrays(whole), run_dir.read_arrays(pieces)
    assert first.keys() == second.keys() and all(
        np.array_equal(first[k], second[k], equal_nan=True) for k in first
    )
    weights = [torch.load(folder / "weights.pt", weights_only=True) for folder in (whole, pieces)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not (pieces / "checkpoint.pt").exists()


def test_canonical_correlations_are_those_with_the_network_before_training_and_after_one_epoch(
    tmp_path,
):
    run = replace(BARE, cca=("init", "epoch1"), image_size=20, epochs=3)
    seen = []

    def keep(run, model, epoch):
        images = bundle.prepare(run).train.images[:1000]
        seen.append(measures.channel_points(trainer.predict(model.trunk, images)))

    frame = trainer.fit([run], [tmp_path / run.name], callback=keep)
    arrays = run_dir.read_arrays(tmp_path / run.name)
    for start, reference in (("init", seen[0]), ("epoch1", seen[1])):
        wanted = [measures.cca(reference, phi) for phi in seen[1:]]
        for k, found in enumerate(wanted):
            count = len(found.coefficients)
            np.testing.assert_allclose(
                arrays[f"cca {start}"][k, :count], found.coefficients, atol=1e-6
            )
            assert np.isnan(arrays[f"cca {start}"][k, count:]).all()
            assert list(arrays[f"cca dropped {start}"][k]) == [found.dropped_x, found.dropped_y]
        for name in ("mean_cca", "svcca", "pwcca"):
            values = [getattr(measures, name)(reference, phi) for phi in seen[1:]]
            np.testing.assert_allclose(frame[f"{name} {start}"], values, atol=1e-6)
        assert list(arrays[f"cca epochs {start}"]) == [1, 2, 3] == run.cca_epochs()
    np.testing.assert_allclose(frame["mean_cca epoch1"][0], 1)
    assert replace(run, epochs=750).cca_epochs() == list(range(10, 751, 10))


def test_a_resumed_training_calls_back_for_the_epochs_that_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
    train_until(BARE, tmp_path / BARE.name, 3)
    seen = []
    trainer.fit(
        [BARE], [tmp_path / BARE.name], callback=lambda run, model, epoch: seen.append(epoch)
    )
    assert seen == [3]


def test_wall_time_adds_up_over_interruptions(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(clock))
    train_until(BARE, tmp_path / BARE.name, 3)
    earlier = torch.load(tmp_path / BARE.name / "checkpoint.pt", weights_only=True)["seconds"]
    trainer.fit([BARE], [tmp_path / BARE.name])
    assert json.loads((tmp_path / BARE.name / "env.json").read_text())["seconds"] > earlier > 0


def test_no_checkpoint_is_written_before_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", math.inf)
    train_until(BARE, tmp_path / BARE.name, 3)
    assert [f.name for f in (tmp_path / BARE.name).iterdir()] == ["config.json"]


@pytest.mark.slow
def test_one_process_and_two_give_the_same_files(tmp_path, monkeypatch):
    runs = [replace(run, epochs=4) for run in NETWORKS.values()]
    for jobs in (1, 2):
        monkeypatch.setenv("RESULTS_DIR", str(tmp_path / f"jobs{jobs}"))
        store.ensure(runs, profile="quick", jobs=jobs)
    for run in runs:
        one, two = (tmp_path / f"jobs{jobs}" / "quick" / "digits" / run.name for jobs in (1, 2))
        assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
        assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
        first, second = run_dir.read_arrays(one), run_dir.read_arrays(two)
        assert first.keys() == second.keys() and all(
            np.array_equal(first[k], second[k]) for k in first
        )


# ---- the networks and penalties of the targeted-sparsity paper

CONV = Run(
    dataset="digits",
    network="convnet_s",
    image_size=8,
    n_train=88,
    n_validation=24,
    n_measure=30,
    test_images=40,
    epochs=4,
    corruption=0.25,
    normalize="unit",
    learning_rate=0.25,
    momentum=0.0,
    batch_size=10,
    entropy=True,
    heat_maps=3,
)
SR = dict(sparsity=("conv3", "conv4", "fc1"), sparsity_weight=0.1)
DECORR = dict(
    decorrelation=("conv1",),
    decorrelation_weight=0.3,
    decorrelation_pairs="square",
    decorrelation_reduce="mean",
)
ALL = replace(
    CONV,
    **SR,
    **DECORR,
    batch_norm=True,
    dropout=0.25,
    momentum=0.5,
    al2=True,
    speed=8.0,
    weight_decay=0.01,
)
ALL = replace(ALL, learning_rate=0.03, norm_place="block")
ADAM = dict(optimizer="adam", learning_rate=0.005)
CONVNETS = {
    "vanilla": CONV,
    "drop": replace(CONV, dropout=0.25),
    "norm": replace(
        CONV, batch_norm=True, learning_rate=0.02
    ),  # larger steps meet ties on some processors
    "sr2": replace(CONV, **SR),
    "sr3": replace(CONV, **SR, decorrelation=("conv1",), decorrelation_weight=0.01),
    "adam": replace(CONV, **ADAM),
    "everything": ALL,
    # Adam makes steps of pure rounding of a bias before batch norm, whose gradient is 0: no two
    # programs agree there
    "everything, adam": replace(
        ALL, **ADAM, corruption=0.0, batch_size=13, batch_norm=False, seed=2
    ),
}
LAYERS = ["conv1", "conv2", "conv3", "conv4", "fc1"]
SIDES = {"conv1": 8, "conv2": 8, "conv3": 4, "conv4": 4}


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
            sources = [
                torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes()))
                for image in pixels
            ]
            noise = [
                torch.rand(images.shape[1:], generator=source) for source in sources
            ]  # an image's own, in any order
            return images + 0.1 * torch.stack(noise)

        return replace(raw, scale=scale)

    monkeypatch.setattr(data, "read", noisy)
    yield


def plain_convnet_training(run):
    """A ConvNet's training written down once more, in functions and the optimisers' formulas; a row
    an epoch.
    """
    dataset = data.load("digits", size=run.image_size, normalize=run.normalize)
    train, _, measure = data.subset(dataset.train, run.n_train, run.n_validation, run.n_measure)
    labels, _ = data.corrupt_labels(
        train.labels, run.corruption, 10, generator=generator(run.seed, "corruption")
    )
    shown = dataset.test.take(data.stratified_permutation(dataset.test.labels)[: run.test_images])
    initial = trainer.build_network(run, 1, run.image_size, 10)
    weights = {name: p.detach().clone().requires_grad_() for name, p in initial.named_parameters()}
    running = {
        name: [torch.zeros(len(p)), torch.ones(len(p))]
        for name, p in weights.items()
        if name.startswith("norm")
    }
    moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in weights.items()}
    step = 0

    def forward(x, training, coins=None):
        linear = {}  # by layer: its linear outputs
        for k in (1, 2, 3, 4):
            x = linear[f"conv{k}"] = F.conv2d(
                x, weights[f"conv{k}.weight"], weights[f"conv{k}.bias"], padding=1
            )
            if f"norm{k}.weight" in weights:
                kept = running[f"norm{k}.weight"]
                mean, var = (
                    (x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)) if training else kept
                )
                if training:
                    count = x.numel() / x.shape[1]
                    for old, new in zip(kept, (mean, var * count / (count - 1)), strict=True):
                        old.mul_(0.9).add_(0.1 * new.detach())
                x = (x - mean.view(-1, 1, 1)) / torch.sqrt(var.view(-1, 1, 1) + 1e-5)
                x = x * weights[f"norm{k}.weight"].view(-1, 1, 1) + weights[f"norm{k}.bias"].view(
                    -1, 1, 1
                )
            x = x.relu()
            if k in (2, 4):
                x = F.max_pool2d(x, 2)
                if training and run.dropout:
                    x = (
                        x
                        * (torch.rand(x.shape, generator=coins) >= run.dropout)
                        / (1 - run.dropout)
                    )
        phi = x.flatten(1)
        linear["fc1"] = phi @ weights["fc1.weight"].T + weights["fc1.bias"]
        return linear, phi, linear["fc1"].relu() @ weights["fc2.weight"].T + weights["fc2.bias"]

    def entropies(outputs):
        return torch.distributions.Categorical(logits=outputs.movedim(1, -1)).entropy()

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
        row = {"epoch": epoch}
        if epoch:
            lam = 0.01 * 1.1 ** (run.speed * (epoch - 1)) if run.al2 else 0.0
            order = torch.randperm(run.n_train, generator=generator(run.seed, "order", epoch))
            coins = generator(run.seed, "dropout", epoch)
            sums = {
                "cross_entropy": 0.0,
                "activation_l2": 0.0,
                "sparsity_penalty": 0.0,
                "decorrelation_penalty": 0.0,
            }
            for start in range(0, run.n_train, run.batch_size):
                batch, step = order[start : start + run.batch_size], step + 1
                linear, phi, logits = forward(train.images[batch], True, coins)
                terms = {
                    "cross_entropy": F.cross_entropy(logits, labels[batch]),
                    "activation_l2": phi.square().mean(),
                }
                h = sum((entropies(linear[name]).sum() for name in run.sparsity), torch.zeros(()))
                terms["sparsity_penalty"] = -run.sparsity_weight * h / len(batch)
                c = [
                    torch.corrcoef(weights[f"{name}.weight"].flatten(1))
                    for name in run.decorrelation
                ]
                pairs = [m[tuple(torch.tril_indices(len(m), len(m), -1))] for m in c]
                pairs = [
                    p.square().mean() if run.decorrelation_pairs == "square" else p.sum()
                    for p in pairs
                ]
                terms["decorrelation_penalty"] = run.decorrelation_weight * sum(
                    pairs, torch.zeros(())
                )
                for name, value in terms.items():
                    sums[name] += len(batch) * value.item() / run.n_train
                loss = terms["cross_entropy"] + lam * terms["activation_l2"]
                loss = loss + terms["sparsity_penalty"] + terms["decorrelation_penalty"]
                gradients = torch.autograd.grad(loss, list(weights.values()))
                for name, gradient in zip(weights, gradients, strict=True):
                    update(name, gradient)
            row |= sums | {"lambda": lam}
        with torch.no_grad():
            row["test_cross_entropy"] = F.cross_entropy(
                forward(shown.images, False)[2], shown.labels
            ).item()
            linear = forward(measure.images, False)[0]
            row |= {f"entropy {name}": entropies(linear[name]).mean().item() for name in LAYERS}
        rows.append(row)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "name", ["vanilla", "drop", "norm", "sr3", "adam", "everything", "everything, adam"]
)
def test_convnet_training_agrees_with_one_written_down_once_more(name, no_ties, tmp_path):
    run = CONVNETS[name]
    expected, found = plain_convnet_training(run), trainer.fit([run], [tmp_path / run.name])
    before, after = expected.iloc[0], expected.iloc[1:]
    columns = [
        "cross_entropy",
        "activation_l2",
        "test_cross_entropy",
        *(f"entropy {layer}" for layer in LAYERS),
    ]
    columns += ["sparsity_penalty"] * bool(run.sparsity) + ["decorrelation_penalty"] * bool(
        run.decorrelation
    )
    for column in columns + ["lambda"] * run.al2:
        np.testing.assert_allclose(
            found[column], after[column], rtol=2e-4, atol=1e-6, err_msg=column
        )
    stored = run_dir.read_arrays(tmp_path / run.name)["entropy before training"]
    np.testing.assert_allclose(
        stored, [[before[f"entropy {layer}"] for layer in LAYERS]], rtol=1e-4
    )
    assert np.ptp(after["cross_entropy"]) > 0.005  # it is a training that moves


def test_correlations_are_measured_of_layers_of_at_most_1024_filters(monkeypatch):
    monkeypatch.setattr(measures, "MOST_FILTERS", 32)
    found = trainer.fit([replace(CONV, epochs=1)])
    assert [c for c in found if c.startswith("correlation ")] == [
        f"correlation conv{k}" for k in (1, 2, 3, 4)
    ]
    assert len([c for c in found if c.startswith("entropy ")]) == 5


def test_the_convnets_that_are_compared_differ_by_more_than_the_tolerance(no_ties):
    ends = [
        trainer.fit([replace(run, seed=0, corruption=0.25)])["cross_entropy"].iloc[-1]
        for run in CONVNETS.values()
    ]
    assert np.diff(np.log(sorted(ends))).min() > 5e-4


def test_columns_of_a_convnet_have_every_penalty_and_entropy_and_no_ablation():
    validation = ["validation_accuracy", "validation_cross_entropy"]
    entropies = [f"{measure} {layer}" for measure in ("entropy", "correlation") for layer in LAYERS]
    assert list(trainer.fit([replace(CONV, epochs=1)])) == [*COLUMNS, *validation, *entropies, "id"]
    penalties = ["lambda", "sparsity_penalty", "decorrelation_penalty"]
    less = replace(ALL, epochs=1, entropy=False, heat_maps=0, n_validation=0)
    assert list(trainer.fit([less])) == [*COLUMNS, *penalties, "id"]


def test_a_convnet_s_curve_is_measured_on_the_same_test_images_throughout():
    assert set(trainer.fit([replace(CONV, epochs=8)])["test_images"]) == {40}


@pytest.mark.parametrize(
    "change", [{"network": "lenet", "image_size": 16}, {"network": "alexnet", "image_size": 15}]
)
def test_lenet_and_alexnet_train_with_every_penalty(change):
    run = replace(
        CONV,
        epochs=1,
        **change,
        n_train=8,
        batch_size=8,
        sparsity=("conv2", "fc2"),
        decorrelation=("conv1",),
    )
    run = replace(run, decorrelation_weight=0.001, learning_rate=0.01, entropy=False)
    found = trainer.fit([run])
    assert np.isfinite(found.drop(columns="id").to_numpy(dtype=float)).all()
    assert (found["sparsity_penalty"] < 0).all()


def test_al2_works_on_the_features_of_a_convnet():
    without, with_al2 = (
        trainer.fit([replace(CONV, al2=on, schedule="constant", rate=20.0)]) for on in (False, True)
    )
    assert (with_al2["lambda"] == 20).all()
    assert with_al2["activation_l2"].iloc[-1] < 0.5 * without["activation_l2"].iloc[-1]


def test_sparsity_regularisation_keeps_entropy_up_and_decorrelation_correlations_down(tmp_path):
    changes = [
        {},
        {"sparsity": ("fc1",), "sparsity_weight": 3.0},
        DECORR | {"decorrelation_weight": 9.0},
    ]
    runs = [replace(CONV, corruption=0.0, epochs=13, heat_maps=0, **change) for change in changes]
    plain, sparse, decorrelated = (trainer.fit([run], [tmp_path / run.name]) for run in runs)
    assert sparse["entropy fc1"].tail(3).mean() > plain["entropy fc1"].tail(3).mean() + 0.05
    assert sparse["cross_entropy"].iloc[-1] < 1.5  # it learns, too
    squares = np.linspace(-0.995, 0.995, 200) ** 2
    spread = []
    for run in (runs[0], runs[2]):
        counts = run_dir.read_arrays(tmp_path / run.name)["correlations conv1"][-1]
        spread.append((counts * squares).sum() / counts.sum())
    assert spread[1] < 0.75 * spread[0]
    assert (
        decorrelated["decorrelation_penalty"].iloc[-1]
        < decorrelated["decorrelation_penalty"].iloc[0]
    )


def test_layers_do_not_drop_alike():
    """The coins of a step's second dropout are not those of its first over again."""
    coins = []

    def look(module, inputs, output):
        if isinstance(module, models.Dropout) and module.training:
            coins.append(torch.where(inputs[0] != 0, (output == 0).float(), torch.nan).flatten())

    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        trainer.fit([replace(CONV, dropout=0.5, epochs=1, entropy=False, heat_maps=0)])
    finally:
        hook.remove()
    first, second = coins[:2]
    same = (first[: len(second)] == second)[~(first[: len(second)] + second).isnan()]
    assert len(same) > 500
    assert same.float().mean().item() == pytest.approx(0.5, abs=0.1)


# ---- what is measured on the way


def test_measures_are_those_of_the_network_after_each_epoch_and_before_the_first(tmp_path):
    run, images, watched = replace(CONV, epochs=5), bundle.prepare(CONV).measure.images, []

    def watch(seen, model, epoch):
        assert seen == run
        maps = {name: h.numpy() for name, h in measures.entropy_maps(model, images).items()}
        filters = {
            name: measures.correlation_histogram(model.get_submodule(name).weight).numpy()
            for name in LAYERS
        }
        watched.append((epoch, maps, filters))

    found = trainer.fit([run], [tmp_path / run.name], callback=watch)
    stored = run_dir.read_arrays(tmp_path / run.name)
    epochs, maps, filters = zip(*watched, strict=True)
    assert epochs == (0, 1, 2, 3, 4, 5)
    assert list(stored["heat map epochs"]) == run.heat_map_epochs()
    names = {"entropy before training", "heat map epochs"} | {f"heat maps {x}" for x in LAYERS}
    assert stored.keys() == names | {f"correlations {x}" for x in LAYERS}
    for k, layer in enumerate(LAYERS):
        np.testing.assert_allclose(
            found[f"entropy {layer}"], [m[layer].mean() for m in maps[1:]], rtol=1e-6
        )
        assert stored["entropy before training"][0, k] == pytest.approx(
            maps[0][layer].mean(), rel=1e-6
        )
        np.testing.assert_array_equal(stored[f"correlations {layer}"], [f[layer] for f in filters])
        expected = np.stack([maps[e][layer][:3] for e in run.heat_map_epochs()])
        assert stored[f"heat maps {layer}"].dtype == np.float16
        assert stored[f"heat maps {layer}"].shape == expected.shape
        np.testing.assert_allclose(stored[f"heat maps {layer}"], expected, atol=2e-3)


@pytest.mark.parametrize("epochs", [1, 4])
def test_arrays_have_a_row_for_each_time_they_were_measured(epochs, tmp_path):
    run = replace(CONV, epochs=epochs)
    trainer.fit([run], [tmp_path / run.name])
    shapes = {
        name: values.shape for name, values in run_dir.read_arrays(tmp_path / run.name).items()
    }
    points = len(run.heat_map_epochs())
    expected = {
        "entropy before training": (1, 5),
        "heat map epochs": (points,),
        "heat maps fc1": (points, 3),
    }
    expected |= {f"heat maps {layer}": (points, 3, side, side) for layer, side in SIDES.items()}
    assert shapes == expected | {f"correlations {layer}": (epochs + 1, 200) for layer in LAYERS}


@pytest.mark.parametrize(
    "change", [{"entropy": False}, {"heat_maps": 0}, {"entropy": False, "heat_maps": 0}]
)
def test_entropy_and_heat_maps_are_measured_each_without_the_other(change, tmp_path):
    run = replace(CONV, **change)
    columns = set(trainer.fit([run], [tmp_path / run.name]))
    names = set(run_dir.read_arrays(tmp_path / run.name))
    assert (
        {f"entropy {layer}" for layer in LAYERS} <= columns
        if run.entropy
        else not any("entropy c" in c for c in columns)
    )
    assert ("correlations conv1" in names) == ("entropy before training" in names) == run.entropy
    assert ("heat maps conv1" in names) == ("heat map epochs" in names) == bool(run.heat_maps)


def test_a_stored_heat_map_lies_as_the_image_does(tmp_path, monkeypatch):
    """A bright corner of the measuring image shows in that corner of the first layer's map."""
    given = bundle.prepare(CONV)
    images = torch.zeros(4, 1, 8, 8)
    corners = [(0, 0), (0, 7), (7, 0), (7, 7)]
    for image, (row, column) in zip(images, corners, strict=True):
        image[0, row, column] = 30
    measuring = data.Split(images, torch.zeros(4, dtype=torch.long))
    monkeypatch.setattr(bundle, "prepare", lambda *_: replace(given, measure=measuring))
    run = replace(CONV, heat_maps=4, epochs=1)
    trainer.fit([run], [tmp_path / run.name])
    maps = run_dir.read_arrays(tmp_path / run.name)["heat maps conv1"][0].astype(
        float
    )  # before training, all biases are 0
    for found, (row, column) in zip(maps, corners, strict=True):
        assert found[row, column] < math.log(16) - 0.5
        far = np.ones((8, 8), bool)
        far[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = False
        np.testing.assert_allclose(found[far], math.log(16), atol=2e-3)


@pytest.mark.parametrize("name", ["everything", "everything, adam"])
def test_measuring_entropy_and_heat_maps_changes_nothing_in_training(name):
    measured = trainer.fit([CONVNETS[name]])
    plain = trainer.fit([replace(CONVNETS[name], entropy=False, heat_maps=0)])
    pd.testing.assert_frame_equal(measured[plain.columns], plain, check_exact=True)


def test_the_al2_network_s_entropies_are_measured_beside_its_ablations(tmp_path):
    run = replace(AL2, n_measure=20, entropy=True, heat_maps=2, sparsity=("trunk.conv2",), epochs=2)
    found = trainer.fit([run], [tmp_path / run.name])
    assert (
        found.filter(like="entropy trunk").shape == (2, 2) and found["ablation_auc"].notna().all()
    )
    stored = run_dir.read_arrays(tmp_path / run.name)
    assert stored["heat maps trunk.conv1"].shape == (3, 2, 12, 12) and stored[
        "entropy before training"
    ].shape == (1, 3)
    assert stored["ablation element/train-true"].shape == (2, 11)


@pytest.mark.parametrize("name", ["sr3", "everything", "everything, adam"])
def test_a_resumed_convnet_equals_an_uninterrupted_one_bit_for_bit(
    name, tmp_path, monkeypatch, epochs_trained
):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
    run = replace(CONVNETS[name], epochs=5, keep_weights=True)
    whole, pieces = tmp_path / "whole" / run.name, tmp_path / "pieces" / run.name
    frame = trainer.fit([run], [whole])
    for epoch in (1, 2, 4, 5):
        train_until(run, pieces, epoch)
    epochs_trained.clear()
    watched = []
    resumed = trainer.fit([run], [pieces], callback=lambda run, model, epoch: watched.append(epoch))
    assert (
        epochs_trained == watched == [5]
    )  # what was trained before is neither trained nor shown again
    pd.testing.assert_frame_equal(resumed, frame, check_exact=True)
    assert (pieces / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    first, second = run_dir.read_arrays(whole), run_dir.read_arrays(pieces)
    assert first.keys() == second.keys() and len(first) == 2 + 2 * len(LAYERS)
    assert all(
        np.array_equal(first[k], second[k]) and first[k].dtype == second[k].dtype for k in first
    )
    weights = [torch.load(folder / "weights.pt", weights_only=True) for folder in (whole, pieces)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_convnet_that_diverges_at_once_has_its_arrays_from_before_training(tmp_path):
    run = replace(CONVNETS["sr3"], learning_rate=1e30)
    assert trainer.fit([run], [tmp_path / run.name]).empty
    metrics, diverged = run_dir.read_metrics(tmp_path / run.name)
    assert diverged == 1 and f"entropy {LAYERS[0]}" in metrics
    stored = run_dir.read_arrays(tmp_path / run.name)
    assert stored["correlations conv1"].shape == (1, 200) and list(stored["heat map epochs"]) == [0]


def test_a_run_that_measures_no_array_has_none(tmp_path):
    run = replace(CONV, entropy=False, heat_maps=0)
    trainer.fit([run], [tmp_path / run.name])
    assert run_dir.read_arrays(tmp_path / run.name) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": ("conv5",)}, "no layer 'conv5'"),
        ({"decorrelation": ("features",)}, "'features' is a Flatten"),
        ({"network": "lenet"}, "8×8 are too small for LeNet"),
        ({"network": "al2_cnn"}, "8×8 are too small for the AL2 network"),
    ],
)
def test_of_runs_sharing_data_one_that_its_network_cannot_serve_is_refused_before_all(
    change, message
):
    trained = []
    with pytest.raises(ValueError, match=message):
        trainer.fit([CONV, replace(CONV, **change)], callback=lambda *_: trained.append(1))
    assert trained == []


def test_the_six_networks_of_a_seed_share_labels_weights_and_order(tmp_path):
    """The papers' comparisons are paired: what differs is what the names say."""
    labels, orders, weights = set(), set(), set()
    for run in [CONVNETS[name] for name in ("vanilla", "drop", "norm", "sr2", "sr3", "adam")]:
        batches = []

        def look(module, inputs, batches=batches):
            if isinstance(module, models.ConvNet) and module.training:
                batches.append(inputs[0].clone())

        def watch(run, model, epoch):
            if epoch == 0:
                weights.add(
                    digest(p.detach() for name, p in model.named_parameters() if "norm" not in name)
                )

        hook = nn.modules.module.register_module_forward_pre_hook(look)
        try:
            trainer.fit([replace(run, epochs=2)], [tmp_path / run.name], callback=watch)
        finally:
            hook.remove()
        orders.add(digest(batches))
        labels.add(json.loads((tmp_path / run.name / "env.json").read_text())["labels"])
    assert len(labels) == len(orders) == len(weights) == 1


# ---- side by side, recorded

TOGETHER = [NETWORKS[name] for name in ("bare", "al2", "batch norm", "dropout", "everything")]
TOGETHER += [replace(BARE, corruption=0.75, seed=1, epochs=2, batch_size=50)]


def test_runs_side_by_side_are_as_if_trained_alone_bit_for_bit(tmp_path):
    runs = [*TOGETHER, replace(CONVNETS["sr3"], epochs=2)]
    folders = [tmp_path / run.name for run in runs]
    several = trainer.fit(runs, folders, side_by_side=True)
    for run, folder in zip(runs, folders, strict=True):
        alone = tmp_path / "alone" / run.name
        expected = trainer.fit([run], [alone])
        found = several[several.id == run.id][expected.columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        assert (folder / "metrics.csv").read_bytes() == (alone / "metrics.csv").read_bytes()
        assert (folder / "measures.npz").read_bytes() == (alone / "measures.npz").read_bytes()


def test_networks_side_by_side_take_their_steps_in_turns():
    runs, seen = [BARE, replace(BARE, seed=1), replace(BARE, epochs=1)], []

    def look(module, inputs):
        if isinstance(module, models.AL2CNN) and module.training:
            seen.append(id(module))

    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        trainer.fit(runs, side_by_side=True)
    finally:
        hook.remove()
    first, second, third = dict.fromkeys(
        seen
    )  # they begin a third of an epoch of seven steps apart
    assert seen[:13] == [first] * 3 + [first, second] * 2 + [first, second, third] * 2
    assert len(seen) == 7 * (3 + 3 + 1)


def test_side_by_side_each_keeps_a_checkpoint_at_the_deadline_and_goes_on(tmp_path):
    folders = [tmp_path / run.name for run in TOGETHER]
    with pytest.raises(trainer.OutOfTime):
        trainer.fit(TOGETHER, folders, side_by_side=True, deadline=0.0)
    assert all((folder / "checkpoint.pt").exists() for folder in folders)
    resumed = trainer.fit(TOGETHER, folders, side_by_side=True)
    whole = trainer.fit(TOGETHER)
    pd.testing.assert_frame_equal(resumed[whole.columns], whole, check_exact=True)


def test_side_by_side_one_that_diverges_leaves_the_others_alone():
    wild = replace(BARE, learning_rate=1e6)
    found = trainer.fit([wild, AL2], side_by_side=True)
    alone = trainer.fit([AL2])
    kept = found[found.id == AL2.id][alone.columns].reset_index(drop=True).astype(alone.dtypes)
    pd.testing.assert_frame_equal(kept, alone, check_exact=True)
    assert len(found[found.id == wild.id]) < wild.epochs


@pytest.mark.parametrize("run", [NETWORKS["everything"], AL2], ids=["everything", "al2"])
def test_a_recorded_step_takes_each_whole_batch_after_the_first_steps_and_no_short_one(
    run, monkeypatch
):
    """The record is one that makes the step anew: what is tested is which images it is given, and
    with which λ and coins.
    """
    replayed = []

    class Record:
        def __init__(self, steps):
            self.steps = steps

        def replay(self):
            replayed.append(len(self.steps.static_batch))
            self.steps._step(self.steps.static_batch)

    def record_step(self):
        self.static_batch, self.graph = torch.zeros(run.batch_size, dtype=torch.int64), Record(self)

    expected = trainer.fit([run])
    monkeypatch.setattr(trainer.TrainStep, "_record", record_step)
    kept = trainer.TrainStep.__init__
    monkeypatch.setattr(
        trainer.TrainStep, "__init__", lambda self, *args: kept(self, *args, use_cuda_graph=True)
    )
    pd.testing.assert_frame_equal(trainer.fit([run]), expected, check_exact=True)
    assert replayed == [32] * (6 * 3 - trainer.WARM_UP)


def test_steps_are_recorded_on_a_gpu_unless_told_otherwise(monkeypatch):
    def made(**options):
        model = trainer.build_network(BARE, 1, 16, 10)
        return trainer.TrainStep(
            model,
            trainer.make_optimizer(BARE, model),
            found,
            BARE,
            **options,
        )

    found = bundle.prepare(BARE)
    assert not made().use_cuda_graph and made(use_cuda_graph=True).use_cuda_graph


def test_evaluating_leaves_the_penalties_alone():
    run = replace(CONVNETS["sr3"], al2=True)
    found = bundle.prepare(run)
    model = trainer.build_network(run, *found.shape)
    attached = [penalty for _, penalty in bundle.attach(run, model)]
    model(found.train.images[:8])
    before = [penalty.penalty().item() for penalty in attached]
    model(found.train.images[:8])
    trainer.predict(model, found.test.images[:8])
    measures.entropy_maps(model, found.test.images[:8])
    model.train()
    after = [penalty.penalty() for penalty in attached]
    assert [value.item() for value in after] == before
    assert all(value.requires_grad for value in after)
    model(found.test.images[:8])
    assert attached[1].penalty().item() != before[1]


@pytest.mark.parametrize("before", ["high", "highest"])
def test_products_are_whole_while_training_and_afterwards_as_they_were(before):
    kept, seen = torch.get_float32_matmul_precision(), []
    torch.set_float32_matmul_precision(before)
    try:
        trainer.fit(
            [replace(BARE, epochs=1)],
            callback=lambda *_: seen.append(torch.get_float32_matmul_precision()),
        )
        assert seen == ["highest"] * 2 and torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(kept)
