"""Each way trains what it says; rows, costs and profiles; the commands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch

from lib import paths, trainer
from lib.bench import __main__ as bench_command
from lib.bench import cpu as bench_cpu
from lib.bench import precision as bench_precision
from lib.bench import tables, ways
from lib.bench.cpu import Row
from lib.run import Run

BATCH, SIDE = 6, 20
# float32 in another order of sums (layouts, pooling), after two steps
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_arithmetic_is_the_hand_count():
    """2 · outputs · fan-in; backward twice that, but the first layer's images need no gradient."""
    assert ways.arithmetic(trainer.build_network(Run("mnist"), 1, 28, 10), (1, 28, 28)) == {
        "trunk.conv1": (2 * 20 * 24 * 24 * 25, 2 * 20 * 24 * 24 * 25),
        "trunk.conv2": (2 * 50 * 8 * 8 * 500, 4 * 50 * 8 * 8 * 500),
        "head.fc1": (2 * 800 * 500, 4 * 800 * 500),
        "head.fc2": (2 * 500 * 10, 4 * 500 * 10),
    }


@pytest.mark.parametrize(
    ("pool_first", "layout"),
    [(False, torch.contiguous_format), (False, torch.channels_last), (True, torch.channels_last)],
    ids=["plain", "channels_last", "pool first"],
)
@pytest.mark.parametrize("part", ["DataLoader", "tensors"])
def test_plain_loops_train_the_network_that_ours_trains(part, pool_first, layout):
    drawn, labels = ways.pixels(SIDE, 2 * BATCH)
    run = Run("mnist", learning_rate=0.05, batch_size=BATCH)
    ours = ways.ours(run, ways.as_tensor(drawn), labels)
    before = [p.detach().clone() for p in ours.model.parameters()]
    means = trainer.train_epoch(ours, 1, 0.0)

    images = drawn if part == "DataLoader" else ways.as_tensor(drawn)
    batches = bench_cpu.batches(Row(part, part, batch=BATCH), images, labels)
    plain = ways.plain_network(run, SIDE, pool_first).to(memory_format=layout)
    lost = list(ways.train(plain, run, batches))
    assert float(sum(lost)) / 2 == pytest.approx(means["cross_entropy"], rel=1e-5)
    trained = zip(plain.parameters(), ours.model.parameters(), before, strict=True)
    for mine, theirs, start in trained:
        assert not torch.allclose(start, theirs, **CLOSE)
        torch.testing.assert_close(mine, theirs, **CLOSE)


def test_rows_are_distinct_and_use_no_more_cores_than_there_are():
    for cores in (1, 2, 4):
        table = bench_cpu.rows(cores)
        assert len(set(table)) == len(table)
        assert {row.processes * row.threads for row in table} == {cores}
        for rows in (table, bench_cpu.rows(cores, tiny=True)):
            assert {row.part for row in rows} == set(tables.PARTS) - {"stacked"}
    loops = [row for row in bench_cpu.rows(2) if row.part == "DataLoader"]
    found = {(row.processes, row.threads, row.workers) for row in loops}
    assert found == {(p, t, w) for p, t in ((1, 2), (2, 1)) for w in range(3)}


@pytest.mark.parametrize("row", bench_cpu.rows(1, tiny=True), ids=lambda row: row.what)
def test_each_kind_of_row_does_something(row):
    waited = []
    assert bench_cpu.rate(lambda: waited.append(1), row, 0.0) > 0
    assert waited == [1]


def test_profile_gathers_what_the_loader_does():
    row = Row("DataLoader", "DataLoader", size="tiny", batch=8)
    found = bench_cpu.profiled(lambda: None, row, 2)
    assert found[tables.LOADING] > 0 and found["aten::convolution_backward"] > 0
    ours = bench_cpu.profiled(lambda: None, Row("ours", tables.OURS, size="tiny", batch=8), 1)
    assert tables.LOADING not in ours and ours["aten::convolution_backward"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seconds", "nan"], "positive"),
        (["--cores", "0"], "gives 1 to"),
        (["--rounds", "0"], "at least one"),
        (["--device", "abacus"], "invalid choice"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_measured(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        bench_command.main([*arguments, "--out", str(tmp_path / "out")])
    assert end.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_trial_does_not_replace_the_project_s_measurements(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_cpu, "measure", stop)
    monkeypatch.setattr(bench_command, "busy_cores", lambda: 0.0)
    with pytest.raises(KeyboardInterrupt):
        bench_command.main(["--tiny", "--device", "cpu"])
    place = capsys.readouterr().out.removeprefix("written to ").strip()
    assert Path(place).is_dir() and not Path(place).is_relative_to(paths.ROOT)
    Path(place).rmdir()


def damage(place):
    place.mkdir()
    (place / "machine.json").write_text('{"cpu": ')


@pytest.mark.parametrize("command", [bench_command, bench_precision])
@pytest.mark.parametrize(
    ("spoil", "said"), [(Path.touch, "File exists"), (damage, "machine.json is damaged")]
)
def test_where_nothing_can_be_written_nothing_is_measured(
    command, spoil, said, tmp_path, monkeypatch
):
    place = tmp_path / "out"
    spoil(place)
    for module in (bench_cpu, bench_precision):
        monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit, match=rf"^error: .*{said}"):
        command.main(["--out", str(place)])


def read_by_notebook_80(folder):
    """What it shows of a folder that `make bench` wrote."""
    shown = []
    names = {"display": shown.append}
    book = nbformat.read(paths.ROOT / "notebooks" / "80_speed.ipynb", as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            names["bench"] = str(folder)  # after the parameters, which are the first
    return shown


def test_the_notebook_says_what_was_not_measured(tmp_path, capsys):
    floor = {"part": ["floor"], "name": ["products"], "study_minutes": [1.0], "problem": [None]}
    for gpu in (None, pd.DataFrame(floor)):  # nothing; a GPU's measurement that was interrupted
        if gpu is not None:
            gpu.to_csv(tmp_path / "cuda.csv")
        assert read_by_notebook_80(tmp_path) == []
        said = capsys.readouterr().out
        assert said.count("not run: make bench") > 5 and "not run: no GPU measured yet" in said


def test_machines_of_one_processor_stand_beside_each_other(tmp_path):
    measured = paths.ROOT / "results" / "bench"
    for name in ("main", "main/one", "main/other"):
        shutil.copytree(measured / "xeon_amx", tmp_path / name)
    tables_shown = read_by_notebook_80(tmp_path / "main")
    assert "ours, AL2, bfloat16" in tables_shown[-1].index and tables_shown[-1].shape[1] == 3


@pytest.mark.slow
def test_command_measures_in_processes_and_writes_whole_tables(tmp_path):
    options = "--device cpu --seconds 0.01 --tiny --cores 1 --rounds 1 --out".split()
    command = [sys.executable, "-m", "lib.bench", *options, str(tmp_path)]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and tables.HOURLY in done.stdout, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"cpu.csv", "profile.csv", "machine.json"}
    table = pd.read_csv(tmp_path / "cpu.csv")
    assert list(table) == tables.COLUMNS
    assert not table.duplicated([*tables.KEY, "unit"]).any()
    assert ((table.low <= table["median"]) & (table["median"] <= table.high)).all()
    assert (table.high > 0).all()
    assert set(table[table.unit == tables.RATE].part) == {row.part for row in bench_cpu.rows(1)}
    profile = pd.read_csv(tmp_path / "profile.csv")
    steps = {"DataLoader", "tensors", tables.OURS, tables.HALF, *bench_cpu.CONVNETS}
    assert set(profile.step) == steps
    machine = json.loads((tmp_path / "machine.json").read_text())["cpu"]
    assert machine["cores_used"] == 1 and not [v for v in machine.values() if "/" in str(v)]
    assert machine["busy_before"] >= 0 and machine["busy_after"] >= 0


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_told():
    with pytest.raises(RuntimeError, match="invalid literal"):
        bench_cpu.call(True, 1, bench_cpu.rate, Row("floor", "sgemm none"), 0.0)
    with pytest.raises(RuntimeError, match="ended during exit"):
        bench_cpu.call(False, 1, sys.exit)
