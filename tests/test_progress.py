"""What is said of a long training: counts, names, and an honest remaining time."""

from dataclasses import replace

import pytest

from lib import progress
from lib.progress import Progress, duration
from lib.run import Run

LONG = Run("digits", epochs=100)
SHORT = replace(LONG, epochs=20, seed=1)
OTHER = Run("mnist", epochs=10)  # another kind, of which nothing is known


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand; nothing is shown."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("PROGRESS", "0")
    return now


def test_durations_are_said_as_a_person_would():
    said = {0.4: "0 s", 59: "59 s", 61: "1 min", 3540: "59 min", 3600: "1 h 0 min"}
    said |= {7800: "2 h 10 min", 47.9 * 3600: "47 h 54 min", 100 * 3600: "4 d 4 h"}
    assert {seconds: duration(seconds) for seconds in said} == said


def test_progress_0_shows_nothing(monkeypatch, capsys):
    monkeypatch.setenv("PROGRESS", "0")
    with Progress([SHORT]) as told:
        told.at(SHORT, 1)
    assert capsys.readouterr().err == ""


def test_the_remaining_time_is_that_of_the_kinds_seen_and_of_the_runs_under_way(clock):
    told = Progress([LONG, SHORT, OTHER])
    assert told.seconds_left() is None and "left" not in told.text()
    told.at(LONG, 60)  # what came before the first epoch seen, a checkpoint say, took no time here
    clock[0] = 20
    told.at(LONG, 70)  # 2 s an epoch
    assert told.seconds_left() == pytest.approx(2 * (30 + 20 + 10))
    told.at(SHORT, 1)  # two at a time
    assert told.seconds_left() == pytest.approx(2 * (30 + 19 + 10) / 2)
    assert told.text() == f"0 of 3 runs, 71 of 130 epochs, 59 s left: {LONG.name}, {SHORT.name}"


def test_finished_runs_count_whole_whatever_they_had(clock):
    told = Progress([LONG, SHORT])
    told.finished(LONG)
    assert told.text().startswith("1 of 2 runs, 100 of 120 epochs")
    told.finished(SHORT)
    clock[0] = 61
    assert told.text() == "2 of 2 runs, 120 of 120 epochs, 1 min"
    told.add([replace(LONG, epochs=5)])
    assert told.text().startswith("2 of 3 runs")


def test_epochs_that_a_diverged_run_never_had_do_not_make_the_others_look_fast(clock):
    told = Progress([LONG, replace(LONG, seed=1)])
    for epoch in (1, 2):
        clock[0] += 10
        told.at(LONG, epoch)
    told.finished(LONG)  # its loss became NaN
    assert told.seconds_left() == 100 * 10


def test_a_log_file_gets_a_line_a_minute_and_one_at_the_end(clock, monkeypatch, capsys):
    monkeypatch.setenv("PROGRESS", "")
    with Progress([LONG]) as told:
        for second in range(1, 101):
            clock[0] = 100 + second
            told.at(LONG, second)
    lines = capsys.readouterr().err.splitlines()
    said = [line.split(",")[1].split(":")[0] for line in lines]
    assert said == [f" {epochs} of 100 epochs" for epochs in (1, 61, 100)]
