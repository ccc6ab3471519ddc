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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3540, "59 min"),
        (3600, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (47.9 * 3600, "47 h 54 min"),
        (100 * 3600, "4 d 4 h"),
    ],
)
def test_durations_are_said_as_a_person_would(seconds, text):
    assert duration(seconds) == text


def test_the_remaining_time_is_that_of_the_kinds_seen_and_of_the_runs_under_way(clock):
    told = Progress([LONG, SHORT, OTHER])
    assert told.seconds_left() is None and "left" not in told.text()
    told.at(LONG, 1)  # what came before the first epoch seen, a checkpoint say, took no time here
    clock[0] = 20
    told.at(LONG, 11)  # 2 s an epoch
    assert told.seconds_left() == pytest.approx(2 * (89 + 20 + 10))
    told.at(SHORT, 1)  # two at a time
    assert told.seconds_left() == pytest.approx(2 * (89 + 19 + 10) / 2)
    assert told.text() == (f"0 of 3 runs, 12 of 130 epochs, 2 min left: {LONG.name}, {SHORT.name}")


def test_a_run_that_goes_on_from_a_checkpoint_has_its_epochs_behind_it(clock):
    told = Progress([LONG])
    told.at(LONG, 60)
    clock[0] = 10
    told.at(LONG, 70)
    assert told.seconds_left() == pytest.approx(30)


def test_finished_runs_count_whole_whatever_they_had(clock):
    told = Progress([LONG, SHORT])
    told.finished(LONG)
    assert told.text().startswith("1 of 2 runs, 100 of 120 epochs")
    told.finished(SHORT)
    clock[0] = 61
    assert told.text() == "2 of 2 runs, 120 of 120 epochs, 1 min"
    told.add([replace(LONG, epochs=5)])
    assert told.text().startswith("2 of 3 runs")


def test_a_log_file_gets_a_line_a_minute_and_one_at_the_end(clock, monkeypatch, capsys):
    monkeypatch.setenv("PROGRESS", "")
    with Progress([LONG]) as told:
        for second in range(1, 101):
            clock[0] = 100 + second
            told.at(LONG, second)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[1].split(":")[0] for line in lines] == [
        " 1 of 100 epochs",
        " 61 of 100 epochs",
        " 100 of 100 epochs",
    ]
