"""The GPU path: what a GPU has to prove before it trains, a test a feature (`pytest -m gpu -vv`).

Needs nothing but torch (which brings filelock), numpy, pandas, scipy, pyyaml and pytest. Without a
GPU the CPU plays its part, and in place of a recorded step it makes the step anew.
"""

import contextlib
import gc
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import bundle, data, losses, machine, run_dir, trainer
from lib.data import Split
from lib.run import ABLATIONS, Run
from lib.study.experiments import sparsity_networks

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISIONS = ["float32"]
if DEVICE.type == "cuda":
    PRECISIONS = [p for p in trainer.PRECISIONS if p != "tf32" or machine.has_tf32(DEVICE)]
only_on_a_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="there is no GPU here")
SMALL = dict(dataset="digits", image_size=16, n_train=200, n_validation=40, test_images=50)
# seven batches, the last of them of 8 images
BARE = dict(epochs=4, corruption=0.25, learning_rate=0.1, momentum=0.9, batch_size=32)
BARE = Run(**SMALL, **BARE)
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


class Again:
    """In place of a recorded step where there is no GPU: makes the step anew."""

    def __init__(self, made):
        self.made = made
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.made._step(self.made.static_batch)


class Waits(losses.ActivationL2):
    """A penalty that cannot be recorded: it waits for the device."""

    metric = "waits"

    def penalty(self):
        value = super().penalty()
        return value * (1 if value.item() >= 0 else 2)


def pictures(name, *, normalize, size):
    """A data set that no file is needed for: ten patterns, with noise."""
    source = torch.Generator().manual_seed(0)
    patterns = torch.randint(256, (10, 1, size, size), generator=source)
    labels = torch.arange(480) % 10
    noise = torch.randint(256, (480, 1, size, size), generator=source)
    images = ((patterns[labels] + noise) // 2).to(torch.uint8)
    parts = Split(images[:360], labels[:360]), Split(images[360:], labels[360:])
    names = tuple("0123456789")
    return data.RawDataSet(name, *parts, names, "made", (), lambda x: x.float() / 255 - 0.5)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Pictures that are made; on a CPU something in place of the graph."""
    monkeypatch.setattr(data, "read", pictures)
    monkeypatch.setenv("DEVICE", DEVICE.type)
    if DEVICE.type == "cpu":

        def record(self):
            self.static_batch = torch.zeros(self.run.batch_size, dtype=torch.int64)
            self.graph = Again(self)

        monkeypatch.setattr(trainer.TrainStep, "_record", record)


def stream():
    if DEVICE.type == "cpu":
        return contextlib.nullcontext()
    own = torch.cuda.Stream(DEVICE)
    own.wait_stream(torch.cuda.current_stream(DEVICE))
    return torch.cuda.stream(own)


def made(run, found, precision="float32", recorded=True):
    model = trainer.build_network(run, *found.shape).to(DEVICE, memory_format=torch.channels_last)
    optimizer = trainer.make_optimizer(run, model)
    return trainer.TrainStep(model, optimizer, found, run, precision, recorded)


def trained(run, precision="float32", recorded=True, weights=(0.5, 1.0, 1.5, 2.0), around=None):
    """An epoch a weight λ: means of each epoch and the weights; `around`: precision of `fit`."""
    found = bundle.prepare(run, DEVICE)
    with trainer.reproducible(DEVICE, around or precision), stream():
        one = made(run, found, precision, recorded)
        means = [trainer.train_epoch(one, epoch, λ) for epoch, λ in enumerate(weights, 1)]
        return means, {name: value.cpu() for name, value in one.model.state_dict().items()}, one


def same(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_recorded_steps_are_the_eager_ones_bit_for_bit(precision):
    off = []
    for kind, run in KINDS.items():
        eager, replayed = (trained(run, precision, recorded) for recorded in (False, True))
        assert eager[2].graph is None and replayed[2].graph is not None, kind
        off += [] if same(eager, replayed) else [kind]
        if DEVICE.type == "cpu":  # four epochs' whole batches but the first, no short one
            assert replayed[2].graph.replays == 4 * 6 - trainer.WARM_UP
    assert not off


def test_a_recorded_step_takes_each_epoch_s_λ():
    still, stiff = (trained(AL2, weights=(0.0, 0.0, last))[0] for last in (0.0, 50.0))
    assert still[:2] == stiff[:2]
    assert stiff[2]["activation_l2"] < 0.9 * still[2]["activation_l2"]


def test_a_recorded_step_draws_new_coins_each_time_and_an_epoch_s_again():
    run = replace(KINDS["dropout"], learning_rate=1e-12, momentum=0.0, al2=False)
    batch = torch.arange(run.batch_size, device=DEVICE)
    found = bundle.prepare(run, DEVICE)
    with trainer.reproducible(DEVICE), stream():
        one = made(run, found)
        lost = {}
        for epoch in ("first", 1, 2, "first again"):
            one.dropout_generator.manual_seed(epoch if isinstance(epoch, int) else 1)
            lost[epoch] = []
            for _ in range(trainer.WARM_UP + 5):
                one.sums.zero_()
                one._advance(batch)
                lost[epoch].append(one.sums[0].item())
    assert one.graph is not None and len(set(lost[1])) == len(lost[1])
    assert not set(lost[1]) & set(lost[2])
    for epoch in ("first", "first again"):  # the first few steps of the first were not recorded
        assert lost[epoch] == pytest.approx(lost[1], rel=1e-6)


@pytest.mark.parametrize("collects", [True, False], ids=["collecting", "not collecting"])
def test_a_step_that_cannot_be_recorded_is_made_as_it_is_written(collects, monkeypatch):
    """The recording fails after its forward pass, with coins drawn and passes unread."""
    monkeypatch.setitem(losses.PENALTIES, "waits", Waits)
    penalty = {"name": "waits", "layer": "trunk", "weight": 0.1}
    run = replace(KINDS["dropout"], penalties=(penalty,))
    eager = trained(run, recorded=False)
    if DEVICE.type == "cpu":

        def fails(self):
            assert not gc.isenabled()
            self.model(self.data.train.images[:32])
            raise RuntimeError("it waits")

        monkeypatch.setattr(trainer.TrainStep, "_record", fails)
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.warns(RuntimeWarning, match=f"^{re.escape(run.name)}: .*cannot be") as warned:
            found = trained(run)
        assert gc.isenabled() == collects
    finally:
        gc.enable()
    assert found[2].graph is None and len(warned) == 1
    assert same(found, eager)
    if DEVICE.type == "cuda":
        assert trained(AL2)[2].graph is not None, "the next network is not recorded, either"


@only_on_a_gpu
def test_no_recorded_step_waits_for_the_host():
    run = replace(AL2, dropout=0.5)
    images = torch.randn(64 * 60, 1, 16, 16, device=DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (64 * 60,), device=DEVICE)
    few = Split(images[:9], labels[:9])
    found = bundle.Bundle(Split(images, labels), labels, few, few, few, 10, {})
    with trainer.reproducible(DEVICE), stream():
        turns = made(run, found).epoch(1, 0.1)
        for _ in range(trainer.WARM_UP + 3):
            next(turns)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(40):
                next(turns)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@only_on_a_gpu
def test_memory_is_flat_over_epochs_with_all_that_is_measured():
    run = replace(AL2, dropout=0.5, epochs=12, ablations=ABLATIONS, cca=("init",))
    held = []
    trainer.fit([run], device=DEVICE, callback=lambda *_: held.append(torch.cuda.memory_reserved()))
    assert held[-1] == held[6]


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
    run, (begun, ended) = replace(KINDS[kind], epochs=4), places

    def weights(folders=None, **how):
        """All weights after each epoch that is trained now."""
        seen = []

        def keep(run, model, epoch):
            seen.append(torch.cat([p.detach().cpu().flatten() for p in model.parameters()]))

        with contextlib.suppress(trainer.OutOfTime):
            trainer.fit([run], folders, callback=keep, **how)
        return seen

    folder = [tmp_path / run.name]
    weights(folder, device=begun, deadline=0.0)
    moved, whole = weights(folder, device=ended), weights(device="cpu")
    first = len(whole) - len(moved)
    assert first >= 1
    # a training without its optimiser's state is half of the way off
    assert (moved[-1] - whole[-1]).norm() < 0.1 * (whole[-1] - whole[first - 1]).norm()


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


def test_everything_that_is_measured_agrees_with_a_cpu(tmp_path):
    every = dict(ablations=ABLATIONS, cca=("init", "epoch1"), predictions=True, keep_trunk=True)
    for run in (
        replace(AL2, epochs=2, **every),
        replace(KINDS["sr3Net"], heat_maps=8),
        KINDS["normNet"],
    ):
        folders = [tmp_path / place / run.name for place in ("here", "cpu")]
        here, there = (
            trainer.fit([run], [folder], device=device)
            for folder, device in zip(folders, (DEVICE, "cpu"), strict=True)
        )
        assert list(here) == list(there)
        for name in here.columns.drop(["id", "epoch"]):
            found, expected = here[name].to_numpy(float)[0], there[name].to_numpy(float)[0]
            rough = "accuracy" in name or "ablation" in name
            least = 5.0 if rough else 0.03 * max(abs(expected), 0.01)
            assert abs(found - expected) <= least, f"{name}: {found} here, {expected} on a CPU"
        arrays, others = map(run_dir.read_arrays, folders)
        assert arrays.keys() == others.keys()
        for name, found in arrays.items():
            assert found.shape == others[name].shape and found.dtype == others[name].dtype, name
            if name.startswith(("trunk", "heat maps", "entropy")):
                np.testing.assert_allclose(found, others[name], atol=0.05, err_msg=name)


@only_on_a_gpu
def test_tf32_is_near_float32_and_each_training_s_own(tmp_path):
    if not machine.has_tf32(DEVICE):
        pytest.skip("this GPU has no TF32")
    exact, rounded = (trained(AL2, precision) for precision in ("float32", "tf32"))
    assert not same(exact, rounded), "TF32 was not used"
    lost = [[epoch["cross_entropy"] for epoch in found[0]] for found in (exact, rounded)]
    assert lost[1] == pytest.approx(lost[0], rel=0.03)
    assert same(trained(AL2, around="tf32"), exact)
    trainer.fit([BARE], [tmp_path / BARE.name], device=DEVICE, precision="tf32")
    assert run_dir.read_environment(tmp_path / BARE.name)["precision"] == "tf32"
