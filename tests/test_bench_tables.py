"""Rates become a table, and its rows are compared: by known rates."""

import subprocess
import sys

import pytest

from lib import paths
from lib.bench import tables
from lib.bench.cpu import Row

RATES = {
    Row("floor", "sgemm 256", 2, networks=2, batch=0): [100e9, 200e9, 160e9],
    Row("floor", "sgemm 512", 2, networks=2, batch=0): [90e9, 90e9, 300e9],
    Row("DataLoader", "DataLoader", 2, networks=2): [1000, 2000, 1000],
    Row("DataLoader", "DataLoader", threads=2): [3000, 500, 500],
    Row("ours", "ours, AL2", 2, networks=2): [5000, 10000, 6000],
    Row("stacked", "vmap", threads=2, networks=2): [2000, 3000, 2000],  # as a stored table has it
}
FLOP = 10e6  # of an image


def test_ratios_are_taken_within_a_round():
    table = tables.derive(RATES, FLOP).set_index(["what", "processes", "batch", "unit"])

    def found(what, unit, batch=64):
        return tuple(table.loc[(what, 2, batch, unit), ["low", "median", "high"]])

    # operations a second / 10 MFLOP an image
    assert found("sgemm 256", tables.RATE, batch=0) == (10000, 16000, 20000)
    assert found("sgemm 256", "GFLOP/s", batch=0) == (100, 160, 200)
    assert found("ours, AL2", tables.HOURLY) == (300, 360, 600)
    # against the loop of the largest median, round by round
    assert found("ours, AL2", tables.FACTOR) == (5, 5, 6)
    assert found("ours, AL2", tables.SHARE) == pytest.approx((37.5, 50, 50))


def test_rows_compared_are_the_study_s_with_the_fastest_floor():
    found = tables.compared(tables.derive(RATES, FLOP))
    assert found.part.tolist() == ["DataLoader", "DataLoader", "stacked", "ours", "floor"]
    assert found.what.iloc[-1] == "sgemm 256" and set(found.batch) == {0, 64}
    assert tables.best_loader(found).processes == 2
    ours = found[found.part == "ours"].iloc[0]
    assert (ours.low, ours[tables.HOURLY], ours.high) == (300, 360, 600)
    assert (ours["factor low"], ours[tables.FACTOR], ours["factor high"]) == (5, 5, 6)
    assert ours[tables.SHARE] == pytest.approx(50)


def test_tables_are_read_without_what_measures():
    code = "import sys, lib.bench.tables; print({m for m in sys.modules if 'torch' in m})"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=paths.ROOT, text=True).strip() == "set()"
