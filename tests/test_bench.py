import json
import math
import sys

import pandas as pd
import pytest
import torch

from lib import bench, run_dir, trainer
from lib.bench import cpu as bench_cpu
from lib.bench import gpu_rows as bench_rows
from lib.bench import plain as bench_plain
from lib.bench.cpu import Row
from lib.run import Run, generator
from lib.study import campaign

BATCH, SIZE = 6, 20
# float32 in another order of sums (layouts, pooling): weights agree to 1e-5 of their size after two
# steps
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_arithmetic_is_the_hand_count_and_what_pytorch_counts():
    model = trainer.build_network(Run("mnist"), 1, 28, 10)
    found = bench_cpu.arithmetic(model, (1, 28, 28))
    # 2 · outputs · fan-in; backward twice that, but the first layer's images need no gradient
    by_hand = {
        "trunk.conv1": (2 * 20 * 24 * 24 * 25, 2 * 20 * 24 * 24 * 25),
        "trunk.conv2": (2 * 50 * 8 * 8 * 500, 4 * 50 * 8 * 8 * 500),
        "head.fc1": (2 * 800 * 500, 4 * 800 * 500),
        "head.fc2": (2 * 500 * 10, 4 * 500 * 10),
    }
    assert found == by_hand
    total = sum(map(sum, found.values()))
    assert total == bench_rows.flops(model, (1, 28, 28)) == 13_182_000


@pytest.fixture(scope="module")
def data():
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2 * BATCH, SIZE, SIZE), generator=source, dtype=torch.uint8)
    return pixels, torch.randint(10, (2 * BATCH,), generator=source)


@pytest.mark.parametrize(
    ("pool_first", "layout"),
    [(False, torch.contiguous_format), (False, torch.channels_last), (True, torch.channels_last)],
    ids=["plain", "channels_last", "pool first"],
)
@pytest.mark.parametrize("loader", [True, False], ids=["DataLoader", "tensors"])
def test_plain_loops_train_the_network_that_ours_trains(loader, pool_first, layout, data):
    pixels, labels = data
    run = Run("mnist", learning_rate=0.05, batch_size=BATCH)
    ours, epoch = bench_rows.trained(run, bench_plain.as_tensor(pixels), labels, 10)
    before = [p.detach().clone() for p in ours.parameters()]
    means = epoch()

    order = torch.randperm(len(labels), generator=generator(run.seed, "order", 1))
    if loader:
        batches = bench_plain.loaded(
            bench_plain.Images(pixels, labels), order.tolist(), BATCH, workers=0
        )
    else:
        batches = bench_plain.indexed(bench_plain.as_tensor(pixels), labels, order, BATCH)
    plain = bench_plain.network(run, SIZE, 10, pool_first).to(memory_format=layout)
    lost = list(bench_plain.train(plain, run, batches))
    assert sum(lost) / 2 == pytest.approx(means["cross_entropy"], rel=1e-5)
    for mine, theirs, start in zip(plain.parameters(), ours.parameters(), before, strict=True):
        assert not torch.allclose(start, theirs, **CLOSE)
        torch.testing.assert_close(mine, theirs, **CLOSE)


def test_rows_are_distinct_and_use_no_more_cores_than_there_are():
    for cores in (1, 2, 4):
        table = bench_cpu.rows(cores)
        assert len(set(table)) == len(table)
        assert {row.cores for row in table} == {1, cores}
        assert all(row.networks % row.processes == 0 for row in table)
    loops = {
        (r.processes, r.threads, r.workers)
        for r in bench_cpu.rows(2)
        if r.part == "DataLoader" and r.batch == 64
    }
    assert loops == {(p, t, w) for p, t in ((1, 2), (2, 1)) for w in range(3)} | {(1, 1, 0)}
    assert {row.part for row in bench_cpu.rows(2, tiny=True)} == {
        row.part for row in bench_cpu.rows(2)
    }


@pytest.mark.parametrize("row", bench_cpu.rows(1, tiny=True), ids=lambda row: row.what)
def test_each_kind_of_row_does_something(row):
    waited = []
    assert bench_cpu.rate(lambda: waited.append(1), row, 0.0) > 0
    assert waited == [1]


def test_ratios_are_taken_within_a_round():
    rates = {
        Row("floor", "sgemm 256", 2, networks=2, batch=0): [100e9, 200e9, 160e9],
        Row("floor", "sgemm 512", 2, networks=2, batch=0): [90e9, 90e9, 300e9],
        Row("floor", "sgemm 256", networks=1, batch=0): [100e9, 100e9, 100e9],
        Row("DataLoader", "DataLoader", 2, networks=2): [1000, 2000, 1000],
        Row("DataLoader", "DataLoader", threads=2): [3000, 500, 500],
        Row("ours", "ours, AL2", 2, networks=2): [5000, 10000, 6000],
        Row("ours", "ours, AL2"): [4000, 4000, 4000],
        Row("ours", "ours, AL2", 2, networks=2, batch=32): [4000, 8000, 4000],
    }
    table = bench.derive(rates, flop=10e6)

    def found(what, unit, processes=2, batch=64):
        rows = table[
            (table.what == what)
            & (table.unit == unit)
            & (table.processes == processes)
            & (table.batch == batch)
        ]
        (row,) = rows.itertuples()
        return row.low, row.median, row.high

    # operations a second / 10 MFLOP an image
    assert found("sgemm 256", bench.RATE, batch=0) == (10000, 16000, 20000)
    assert found("sgemm 256", "GFLOP/s", processes=1, batch=0) == (100, 100, 100)
    assert found("ours, AL2", bench.HOURLY) == (300, 360, 600)
    # against the loop of the largest median, round by round
    assert found("ours, AL2", bench.FACTOR) == (5, 5, 6)
    assert found("ours, AL2", bench.SHARE) == pytest.approx((37.5, 50, 50))
    # of one core's product
    assert found("ours, AL2", bench.SHARE, processes=1) == pytest.approx((40, 40, 40))
    others = table[(table.processes == 1) & (table.threads == 1) | (table.batch == 32)]
    assert bench.FACTOR not in set(others.unit)

    seconds = bench.turns(rates, flop=10e6).set_index(["what", "networks"])["median"]
    assert seconds["ours, AL2", 1] == 15  # alone on one core
    assert seconds["ours, AL2", 4] == 2 * seconds["ours, AL2", 2] == 40
    assert seconds["DataLoader", 1] == 120 and seconds["DataLoader", 2] == 120
    assert seconds["floor", 2] == 120000 / 16000
    assert "vmap" not in seconds.index.get_level_values("what")


def test_costs_are_those_of_a_lite_run(tmp_path, monkeypatch):
    (ablation,) = [entry for entry in campaign.plan("lite") if entry.notebook == "11_al2_ablation"]
    stated = {run: run for run in ablation.runs()}
    assert set(stated[bench_cpu.LITE].ablations) == set(bench_cpu.LITE.ablations)
    assert stated[bench_cpu.LITE].test_images == bench_cpu.LITE.test_images
    states = []
    monkeypatch.setattr(run_dir, "save_checkpoint", lambda folder, state: states.append(state))
    found = bench_cpu.costs(lambda: None, tmp_path, tiny=True)
    assert all(ms > 0 for ms in found.values())
    assert (
        states[0].keys() >= run_dir.CHECKPOINT_KEYS
        and len(states[0]["rows"]) == bench_cpu.LITE.epochs
    )
    assert list(tmp_path.iterdir()) == []

    table = bench.beside_training({name: [100.0, 300.0] for name in found}).set_index(
        ["what", "unit"]
    )["median"]
    assert table["checkpoint", "% of the time between two"] == pytest.approx(100 * 0.2 / 30)
    shares = [
        table[name, "% of training"]
        for name in ("evaluation of a curve", "evaluation on all images", "ablation")
    ]
    assert shares == pytest.approx([100 * 73 / 80, 100 * 7 / 80, 100 * 7 / 80])


def test_profile_gathers_what_the_loader_does():
    row = Row("DataLoader", "DataLoader", shape="tiny", batch=8)
    found = bench_cpu.profiled(lambda: None, row, 2)
    assert found[bench_cpu.LOADING] > 0 and found["aten::convolution_backward"] > 0
    ours = bench_cpu.profiled(lambda: None, Row("ours", "ours, AL2", shape="tiny", batch=8), 1)
    assert bench_cpu.LOADING not in ours and ours["aten::convolution_backward"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seconds", "0"], "positive"),
        (["--seconds", "nan"], "positive"),
        (["--cores", "0"], "gives 1 to"),
        (["--rounds", "0"], "at least one"),
        (["--cores", "100000"], "gives 1 to"),
        (["--device", "cuda"], "finds no GPU"),
        (["--device", "abacus"], "invalid choice"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_measured(
    arguments, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "measure", None)
    with pytest.raises(SystemExit) as end:
        bench.main([*arguments, "--out", str(tmp_path / "out")])
    assert end.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_gpu_is_measured_by_its_own_half(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    asked = []
    monkeypatch.setattr(bench.bench_gpu, "main", asked.append)
    bench.describe(tmp_path, "cpu", {"cores": 2})
    bench.main(["--device", "cuda", "--out", str(tmp_path)])
    assert asked == [
        ["--device", "cuda", "--seconds", "2.0", "--out", str(tmp_path), "--table", "cuda.csv"]
    ]
    machine = json.loads((tmp_path / "machine.json").read_text())
    assert machine["cpu"] == {"cores": 2} and machine["cuda"]["gpu"] == "a GPU"


@pytest.mark.slow
def test_command_measures_in_processes_and_writes_whole_tables(tmp_path, capsys):
    bench.main(
        [
            "--device",
            "cpu",
            "--seconds",
            "0.01",
            "--out",
            str(tmp_path),
            "--tiny",
            "--cores",
            "1",
            "--rounds",
            "1",
        ]
    )
    assert {path.name for path in tmp_path.iterdir()} == {"cpu.csv", "profile.csv", "machine.json"}
    table = pd.read_csv(tmp_path / "cpu.csv")
    assert (
        list(table) == bench.COLUMNS
        and not table.duplicated(["part", "what", *bench.SETTINGS, "unit"]).any()
    )
    assert (
        (table.low <= table["median"]).all()
        and (table["median"] <= table.high).all()
        and (table.high > 0).all()
    )
    rates = table[(table.unit == bench.RATE)]
    assert set(rates.part) == {row.part for row in bench_cpu.rows(1)}
    profile = pd.read_csv(tmp_path / "profile.csv")
    assert set(profile.step) == {"DataLoader", "tensors", "ours, AL2", bench_cpu.HALF}
    machine = json.loads((tmp_path / "machine.json").read_text())["cpu"]
    assert machine["cores_used"] == 1 and not [v for v in machine.values() if "/" in str(v)]
    assert all(
        math.isfinite(machine[name]) and machine[name] >= 0
        for name in ("busy_before", "busy_after")
    )
    assert bench.HOURLY in capsys.readouterr().out


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_told():
    with pytest.raises(RuntimeError, match="invalid literal"):
        bench.call(True, 1, bench_cpu.rate, Row("floor", "sgemm none"), 0.0)
    with pytest.raises(RuntimeError, match="ended during exit"):
        bench.call(False, 1, sys.exit)
