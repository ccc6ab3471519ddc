"""The GPU's half of the bench, on a CPU and at tiny sizes; and its command where there is none."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch

from lib import paths
from lib.bench import __main__ as bench_command
from lib.bench import gpu as bench_gpu
from lib.bench import record
from lib.run import Run

CPU = torch.device("cpu")


def test_rows_differ_and_the_networks_side_by_side_are_the_study_s():
    assert len(set(bench_gpu.rows())) == len(bench_gpu.rows())
    assert {row.part for row in bench_gpu.rows(tiny=True)} == set(bench_gpu.WORKLOADS)
    assert len({Run("mnist", **kind).id for kind in bench_gpu.VARIANTS}) == 8


def test_side_by_side_trains_every_network(epochs_trained):
    work = bench_gpu.al2(bench_gpu.Row("al2", "ours", 2), CPU, tiny=True)
    for _ in range(3):  # an epoch has two steps
        work.advance()
    assert len(epochs_trained) == 4
    assert work.flop == 2 * bench_gpu.al2(bench_gpu.Row("al2", "tensors"), CPU, tiny=True).flop


def test_plain_loops_go_on_over_epochs_and_agree():
    """Ten steps are five epochs; both begin with the same weights and, by the seed, batches."""
    lost = []
    for name in ("DataLoader, 0 workers", "tensors"):
        torch.manual_seed(0)
        work = bench_gpu.al2(bench_gpu.Row("al2", name), CPU, tiny=True)
        lost.append([work.advance().item() for _ in range(10)])
    assert lost[0] == pytest.approx(lost[1], rel=1e-5) and len(set(lost[0])) == 10


@pytest.mark.slow
def test_every_row_is_measured_and_a_failure_stated(tmp_path, monkeypatch):
    monkeypatch.setitem(bench_gpu.WORKLOADS, "floor", lambda *_: 1 / 0)
    path = tmp_path / "cuda.csv"
    bench_gpu.measure(CPU, 0.01, path, tiny=True)
    table = pd.read_csv(path)
    assert list(table) == bench_gpu.COLUMNS and len(table) == len(bench_gpu.rows(tiny=True))
    failed = table.part == "floor"
    assert table[failed].problem.str.contains("ZeroDivisionError").all()
    assert table[~failed].problem.isna().all() and (table[~failed].tflops > 0).all()
    assert (table[table.part == "al2"].study_minutes > 0).all()
    bench_gpu.measure(CPU, 0.01, path, tiny=True, limit=0)
    assert pd.read_csv(path).problem.str.contains("time limit").all()


def test_shares_are_of_the_floor_and_factors_of_the_best_loop():
    rows = [
        {"part": "floor", "name": "matrix product", "tflops": 50.0},
        {"part": "sparsity", "name": "vanillaNet", "ms_per_step": 2.0, "tflops": 5.0},
        {"part": "sparsity", "name": "sr3Net", "ms_per_step": 3.0, "tflops": 4.0},
        {"part": "sparsity", "name": "vanillaNet", "ms_per_step": 1.0, "precision": "tf32"},
        {"part": "al2", "name": "DataLoader, 0 workers", "network_steps_per_s": 938.0},
        {"part": "al2", "name": "DataLoader, 4 workers", "network_steps_per_s": 2 * 938.0},
        {"part": "al2", "name": "ours", "network_steps_per_s": 96 * 938.0},
    ]
    table = pd.DataFrame([{"precision": "float32"} | row for row in rows])
    found = bench_gpu.derived(table.reindex(columns=bench_gpu.COLUMNS))
    assert found["share_of_floor_%"].tolist()[:3] == [100, 10, 8]
    assert found["penalty_overhead_%"].dropna().to_dict() == {2: 50}
    assert found["×_best_DataLoader"].dropna().tolist() == [0.5, 1, 48]
    assert found.study_minutes.iloc[-1] == pytest.approx(700 / 60)


def test_the_command_measures_a_gpu_and_describes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    asked = []
    monkeypatch.setattr(bench_gpu, "measure", lambda *arguments: asked.append(arguments))
    record.describe(tmp_path, "cpu", {"cores": 2})
    bench_command.main(["--device", "cuda", "--out", str(tmp_path)])
    assert asked == [(torch.device("cuda"), 2.0, tmp_path / "cuda.csv", False)]
    machine = json.loads((tmp_path / "machine.json").read_text())
    assert machine["cpu"] == {"cores": 2} and machine["cuda"]["gpu"] == "GPU cuda"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_what_is_needed(tmp_path):
    command = [sys.executable, "-m", "lib.bench", "--device", "cuda"]
    command += ["--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and "needs a GPU" in done.stderr
