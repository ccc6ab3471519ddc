"""The GPU path: what a GPU has to prove before it trains (`pytest -m gpu`). Without one the CPU
plays its part.

Needs nothing but torch, numpy, pandas, scipy, pyyaml and scikit-learn (whose digits are the data).
"""

import contextlib
from dataclasses import replace

import pandas as pd
import pytest
import torch

from lib import bundle, trainer
from lib.data import Split
from lib.run import ABLATIONS, Run
from lib.study.experiments import sparsity_networks

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = dict(
    dataset="digits",
    image_size=16,
    n_train=200,
    n_validation=40,
    test_images=50,
    epochs=4,
    corruption=0.25,
)
BARE = Run(
    **SMALL, learning_rate=0.1, momentum=0.9, batch_size=32
)  # seven batches, the last of them of 8 images
AL2 = replace(BARE, al2=True, speed=25.0)
KINDS = {
    "bare": BARE,
    "al2": AL2,
    "batch norm": replace(AL2, batch_norm=True),
    "dropout": replace(AL2, dropout=0.5),
    "weight decay": replace(BARE, weight_decay=0.01, momentum=0.5),
}
CONVNETS = sparsity_networks(
    "digits", image_size=16, n_train=200, batch_size=32, n_measure=20, epochs=2
)
KINDS |= {run.variant: run for run in CONVNETS}
KINDS["adam"] = replace(KINDS["sr3Net"], optimizer="adam", learning_rate=0.001)
PRECISIONS = trainer.PRECISIONS if DEVICE.type == "cuda" else trainer.PRECISIONS[:1]
only_on_a_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="there is no GPU here")


class Again:
    """In place of a recorded step where there is no GPU: makes the step anew."""

    def __init__(self, made):
        self.made = made

    def replay(self):
        self.made._step(self.made.static_batch)


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    """On a CPU a stand-in for the graph."""
    monkeypatch.setenv("DEVICE", DEVICE.type)
    if DEVICE.type == "cpu":

        def record(self):
            self.static_batch, self.graph = (
                torch.zeros(self.run.batch_size, dtype=torch.int64),
                Again(self),
            )

        monkeypatch.setattr(trainer.TrainStep, "_record", record)


def stream():
    if DEVICE.type == "cpu":
        return contextlib.nullcontext()
    own = torch.cuda.Stream(DEVICE)
    own.wait_stream(torch.cuda.current_stream(DEVICE))
    return torch.cuda.stream(own)


def made(run, data, precision="float32", recorded=True):
    model = trainer.build_network(run, *data.shape).to(DEVICE, memory_format=torch.channels_last)
    return trainer.TrainStep(
        model,
        trainer.make_optimizer(run, model),
        data,
        run,
        precision,
        recorded,
    )


def trained(run, precision, recorded):
    """Four epochs, λ changing between them: means of each epoch, and the weights."""
    data = bundle.prepare(run, DEVICE)
    with trainer.reproducible(DEVICE, precision), stream():
        one = made(run, data, precision, recorded)
        means = [trainer.train_epoch(one, epoch, 0.5 * epoch) for epoch in range(1, 5)]
        assert (one.graph is not None) == recorded
        return means, {name: value.cpu() for name, value in one.model.state_dict().items()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_are_the_eager_ones_bit_for_bit(kind, precision):
    eager, replayed = (trained(KINDS[kind], precision, recorded) for recorded in (False, True))
    assert replayed[0] == eager[0]
    for name, value in eager[1].items():
        assert torch.equal(replayed[1][name], value), name


def test_dropout_s_coins_are_new_in_each_recorded_step_and_the_same_in_the_same_epoch():
    run = replace(KINDS["dropout"], learning_rate=1e-12, momentum=0.0, al2=False)
    with trainer.reproducible(DEVICE), stream():
        one = made(run, bundle.prepare(run, DEVICE))
        first, second, again = (
            trainer.train_epoch(one, epoch, 0.0)["cross_entropy"] for epoch in (1, 2, 1)
        )
    assert first != second and again == pytest.approx(first, rel=1e-6)


@only_on_a_gpu
def test_no_recorded_step_waits_for_the_host():
    run = replace(AL2, dropout=0.5)
    images = torch.randn(64 * 60, 1, 16, 16, device=DEVICE).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.randint(10, (64 * 60,), device=DEVICE)
    data = bundle.Bundle(
        Split(images, labels), labels, *[Split(images[:9], labels[:9])] * 3, 10, {}
    )
    with trainer.reproducible(DEVICE), stream():
        turns = made(run, data).epoch(1, 0.1)
        for _ in range(trainer.WARM_UP + 3):
            next(turns)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(40):
                next(turns)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@only_on_a_gpu
def test_recorded_networks_take_no_more_memory_the_longer_they_train():
    data = bundle.prepare(AL2, DEVICE)
    with trainer.reproducible(DEVICE), stream():
        one, seen = made(AL2, data), []
        for epoch in range(1, 9):
            trainer.train_epoch(one, epoch, 0.1)
            seen.append(torch.cuda.memory_reserved())
    assert seen[-1] == seen[1]


def test_networks_side_by_side_train_as_alone():
    runs = [KINDS[kind] for kind in ("bare", "al2", "batch norm", "dropout", "weight decay")]
    together, alone = (trainer.fit(runs, device=DEVICE, side_by_side=on) for on in (True, False))
    pd.testing.assert_frame_equal(together, alone, check_exact=True)


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    runs = [KINDS[kind] for kind in ("bare", "dropout", "adam")]
    folders = [tmp_path / run.name for run in runs]
    with contextlib.suppress(trainer.OutOfTime):
        trainer.fit(runs, folders, device=DEVICE, side_by_side=True, deadline=0.0)
    assert all((folder / "checkpoint.pt").exists() for folder in folders)
    resumed = trainer.fit(runs, folders, device=DEVICE, side_by_side=True)
    whole = trainer.fit(runs, device=DEVICE, side_by_side=True)
    pd.testing.assert_frame_equal(resumed[whole.columns], whole, check_exact=True)


@pytest.mark.parametrize("kind", ["al2", "adam"])
@pytest.mark.parametrize(
    "places", [("cpu", DEVICE.type), (DEVICE.type, "cpu")], ids=["begun on a CPU", "ended on a CPU"]
)
def test_a_checkpoint_goes_on_on_another_device(kind, places, tmp_path):
    run, (begun, ended) = KINDS[kind], places
    with contextlib.suppress(trainer.OutOfTime):
        trainer.fit([run], [tmp_path / run.name], device=begun, deadline=0.0)
    moved = trainer.fit([run], [tmp_path / run.name], device=ended)
    assert len(moved) == run.epochs and moved.cross_entropy.notna().all()


def test_adam_s_count_of_steps_lies_where_the_device_wants_it(tmp_path):
    """A checkpoint of a GPU says that it can be recorded; on a CPU that is refused."""
    run, folder = KINDS["adam"], tmp_path / KINDS["adam"].name
    with contextlib.suppress(trainer.OutOfTime):
        trainer.fit([run], [folder], device="cpu", deadline=0.0)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group["capturable"] = True
    torch.save(state, folder / "checkpoint.pt")
    assert len(trainer.fit([run], [folder], device="cpu")) == run.epochs


def test_everything_that_is_measured_agrees_with_a_cpu():
    every = replace(AL2, epochs=2, ablations=ABLATIONS, cca=("init", "epoch1"))
    for run in (every, replace(KINDS["sr3Net"], heat_maps=8), KINDS["normNet"]):
        here, there = trainer.fit([run], device=DEVICE), trainer.fit([run], device="cpu")
        for name in here.columns.drop(["id", "epoch"]):
            found, expected = here[name].to_numpy(float)[0], there[name].to_numpy(float)[0]
            least = (
                5.0 if "accuracy" in name or "ablation" in name else 0.03 * max(abs(expected), 0.01)
            )
            assert abs(found - expected) <= least, f"{name}: {found} here, {expected} on a CPU"
