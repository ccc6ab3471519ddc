import math

import pandas as pd
import pytest
import torch

from lib import trainer
from lib.bench import gpu as bench_gpu
from lib.bench import gpu_rows as bench_rows
from lib.bench.stacked import SUMS, WAYS, Feed, Stack
from lib.bundle import Bundle
from lib.data import Split
from lib.run import Run, generator
from lib.trainer import TrainStep, make_optimizer, train_epoch

CPU = torch.device("cpu")
SHAPE = (1, 20, 10)
BATCH = 6
STEPS = 3
LAMBDA = 2.0
# float32 in another order of sums: losses agree to 1e-5 of their size, weights to 1e-5 of theirs
# after three steps
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def runs(seeds=(0,) * 8) -> list[Run]:
    """The study's eight variants, at a rate at which three steps move the weights far beyond
    rounding.
    """
    kinds = [{}, {"weight_decay": 0.3}, {"dropout": 0.5}, {"batch_norm": True}]
    kinds = [kind | {"al2": al2} for kind in kinds for al2 in (False, True)]
    common = {"learning_rate": 0.05, "momentum": 0.5, "batch_size": BATCH, "epochs": 1}
    return [
        Run("mnist", seed=seed, **common, **kind) for seed, kind in zip(seeds, kinds, strict=True)
    ]


def alone(run: Run, images, labels):
    """Means of an epoch and weights of a network that the trainer trains by itself."""
    empty = Split(images[:0], labels[:0])
    task = Bundle(Split(images, labels), labels, empty, empty, empty, SHAPE[2], {})
    model = trainer.build_network(run, *SHAPE)
    steps = TrainStep(model, make_optimizer(run, model), task, run)
    means = train_epoch(steps, 1, LAMBDA * run.al2)
    return means, model.state_dict()


@pytest.fixture(scope="module")
def data():
    source = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH * STEPS, 1, 20, 20, generator=source)
    return images, torch.randint(10, (8, BATCH * STEPS), generator=source)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_stacked_networks_are_trained_as_if_alone(way, shared, data):
    images, labels = data
    several = runs() if shared else runs(seeds=range(8))
    stack = Stack(several, SHAPE, CPU)
    stack.weight += torch.tensor([LAMBDA * run.al2 for run in several])
    feed = Feed(images, labels, BATCH, shared)
    sources = [generator(run.seed, "dropout", 1) for run in several if run.dropout]
    for _ in range(STEPS):
        coins = torch.stack([torch.rand(BATCH, 50, 2, 2, generator=source) for source in sources])
        stack.step(WAYS[way], *feed.next(), coins[0] if shared else coins)
    for i, run in enumerate(several):
        means, state = alone(run, images, labels[i])
        found = (stack.sums[:, i] / len(images)).tolist()
        assert found == pytest.approx([means[name] for name in SUMS], rel=1e-5), (i, run)
        for name, value in stack.network(i).items():
            torch.testing.assert_close(
                value, state[name], **CLOSE, msg=lambda text, i=i, name=name: f"{i} {name}: {text}"
            )
        if run.batch_norm:
            row = i - stack.norm.start
            for mine, name in zip(stack.running, ("mean", "var"), strict=True):
                torch.testing.assert_close(mine[row], state[f"trunk.norm.running_{name}"], **CLOSE)


def test_a_stack_of_one_architecture_has_one_block():
    assert Stack(runs()[:4], SHAPE, CPU).blocks() == [slice(0, 4)]
    assert Stack(runs(), SHAPE, CPU).blocks() == [slice(0, 4), slice(4, 6), slice(6, 8)]


def test_networks_that_cannot_share_a_step_are_refused():
    several = runs()
    with pytest.raises(ValueError, match="learning_rate"):
        Stack([several[0], Run("mnist", learning_rate=0.1)], SHAPE, CPU)
    with pytest.raises(ValueError, match="side by side"):
        Stack([several[4], several[0], several[5]], SHAPE, CPU)
    with pytest.raises(ValueError, match="weight decay and batch norm"):
        Stack([Run("mnist", weight_decay=0.1, batch_norm=True)], SHAPE, CPU)


def test_bf16_stays_near_float32_and_keeps_float32_weights(data):
    images, labels = data
    sums = {}
    for dtype in (torch.float32, torch.bfloat16):
        stack = Stack(runs()[:4], SHAPE, CPU, dtype)
        feed = Feed(images, labels[:4], BATCH)
        for _ in range(STEPS):
            stack.step(WAYS["hand"], *feed.next())
        assert all(value.dtype == torch.float32 for value in stack.params.values())
        sums[dtype] = stack.sums[0]
    torch.testing.assert_close(sums[torch.bfloat16], sums[torch.float32], rtol=0.02, atol=0)


def test_feed_goes_round_and_shows_each_image_once(data):
    _, labels = data
    feed = Feed(torch.arange(7.0).view(7, 1, 1, 1), labels[:2, :7], 3, shared=False)
    seen = torch.cat([feed.next()[0] for _ in range(2)], 1).flatten(1)  # [2, 6]
    assert all(len(set(row.tolist())) == 6 for row in seen) and not seen[0].equal(seen[1])
    assert feed.next()[0].flatten().tolist() == seen[:, :3].flatten().tolist()


def test_flops_of_the_study_networks():
    assert bench_rows.flops(
        trainer.build_network(Run("mnist"), 1, 28, 10), (1, 28, 28)
    ) == pytest.approx(13.2e6, rel=0.01)


def test_rows_differ_and_hold_every_way():
    table = [(row.part, row.title, row.k, row.precision) for row in bench_rows.rows()]
    assert len(set(table)) == len(table)
    assert {row.name for row in bench_rows.rows() if row.part == "al2"} == {
        *WAYS,
        "plain",
        "ours side by side",
    }


def test_command_writes_its_table_and_states_failures(tmp_path, capsys):
    bench_gpu.main(
        ["--seconds", "0.01", "--out", str(tmp_path), "--device", "cpu", "--tiny", "--limit", "100"]
    )
    table = pd.read_csv(tmp_path / "bench_gpu.csv")
    assert (
        len(table) == len(bench_rows.rows(tiny=True))
        and not table.duplicated(["part", "name", "k", "precision"]).any()
    )
    done = table[table.problem.isna()]
    assert {"peak", "plain", "hand", "grouped", "vmap", "vanilla", "sr3"} <= set(done.name)
    stacked = done[done.part == "al2"]
    assert (stacked.network_steps_per_s > 0).all() and (stacked.study_minutes > 0).all()
    assert math.isclose(
        stacked.loss_after_20.dropna().min(), stacked.loss_after_20.max(), rel_tol=0.02
    )
    assert table.loc[table.name.str.contains("graph"), "problem"].str.contains("needs a GPU").all()
    assert "network_steps_per_s" in capsys.readouterr().out


def test_a_row_that_fails_or_comes_too_late_stops_nothing(tmp_path):
    bench_gpu.main(
        ["--seconds", "0.01", "--out", str(tmp_path), "--device", "cpu", "--tiny", "--limit", "0"]
    )
    table = pd.read_csv(tmp_path / "bench_gpu.csv")
    assert len(table) and table.problem.str.contains("time limit").all()
