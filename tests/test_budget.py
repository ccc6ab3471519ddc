"""Training within a budget: it stops between epochs, goes on to the same bytes, and begins only
what it can finish.
"""

import json
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from lib import engine, paths, run_dir, store, trainer
from lib.run import Run
from lib.study import budget, campaign

AL2 = Run("digits", image_size=16, n_train=64, n_validation=20, test_images=40, epochs=3)
AL2 = replace(AL2, learning_rate=0.1, batch_size=32, dropout=0.5, al2=True, speed=8.0)
CONV = replace(AL2, network="convnet_s", al2=False, corruption=0.0, image_size=8, dropout=0.0)
HERE = trainer.device_name("cpu")


def folder_of(run, profile="own"):
    return paths.results_dir() / profile / run.dataset / run.name


def written(folder):
    """A run's files but env.json, whose seconds differ from run to run."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "env.json"}


def remember(run, seconds):
    """Put a finished run into the store that took so many seconds an epoch."""
    folder = folder_of(run, "earlier")
    run_dir.begin(folder, run)
    environment = {"seconds": seconds * run.epochs, "device": HERE}
    (folder / "env.json").write_text(json.dumps(environment))
    (folder / "metrics.csv").write_text("\n".join(map(str, ["epoch", *range(1, run.epochs + 1)])))


@pytest.fixture
def always(monkeypatch):
    """Every run is begun, though the deadline is over: it stops after one epoch."""
    monkeypatch.setattr(budget, "fits", lambda *_, **__: True)
    return budget.fits


@pytest.fixture
def entries(monkeypatch):
    """A profile of two entries that state AL2 and CONV."""
    stated = {"schedules": [AL2], "combined": [AL2, CONV]}
    monkeypatch.setattr(campaign.Entry, "runs", property(lambda self: stated[self.experiment]))
    plan = [campaign.Entry(name, ("10_one",), {}) for name in stated]
    monkeypatch.setattr(campaign, "plan", lambda profile, experiment: plan)
    return plan


def call(monkeypatch, *arguments):
    """The command line; it has to end well."""
    monkeypatch.setattr(sys, "argv", ["campaign", "--profile", "quick", "--jobs", "1", *arguments])
    campaign.main()


# ---- stopping and going on


def test_a_run_stopped_after_each_epoch_ends_with_the_bytes_of_one_that_never_was():
    trainer.fit([AL2], [folder_of(AL2, "whole")])
    for epoch in (1, 2):
        with pytest.raises(trainer.OutOfTime, match=f"after epoch {epoch} of 3"):
            trainer.fit([AL2], [folder_of(AL2)], deadline=0.0)
        assert {f.name for f in folder_of(AL2).iterdir()} == {"config.json", "checkpoint.pt"}
    # nothing is left after the last epoch: the run is finished
    trainer.fit([AL2], [folder_of(AL2)], deadline=0.0)
    # a deadline that does not come changes nothing
    trainer.fit([AL2], [folder_of(AL2, "in time")], deadline=time.monotonic() + 1e6)
    for profile in ("own", "in time"):
        assert written(folder_of(AL2, profile)) == written(folder_of(AL2, "whole"))


def test_the_store_stops_at_the_deadline_and_goes_on_later(always):
    other = replace(AL2, seed=1)
    store.ensure([AL2, other], deadline=0.0, may_begin=always)
    assert (store.epochs_left(AL2), store.epochs_left(other)) == (2, 3)  # the second was not begun
    assert store.find(other) is None and store.available([AL2]) == []
    store.ensure([AL2, other])
    assert (store.epochs_left(AL2), store.epochs_left(other)) == (0, 0)


def test_a_run_that_gains_a_measure_in_slices_stays_readable(always):
    store.ensure([AL2])
    more = replace(AL2, ablations=("shared/test",))
    store.ensure([more], deadline=0.0, may_begin=always)
    assert (store.epochs_left(AL2), store.epochs_left(more), len(store.load([AL2]))) == (0, 2, 3)
    store.ensure([more])
    assert store.epochs_left(more) == 0


def test_after_the_deadline_nothing_is_begun():
    store.ensure([AL2, CONV], deadline=time.monotonic() - 1)
    assert not paths.results_dir().exists()


def test_with_a_deadline_a_run_that_another_process_trains_is_not_waited_for():
    with engine.lock(AL2, block=False) as held:
        assert held
        store.ensure([AL2], deadline=time.monotonic() + 1e6)
    assert store.available([AL2]) == []


# ---- what is begun


def test_the_pace_of_a_finished_run_and_of_one_under_way(always):
    store.ensure([CONV])
    store.ensure([AL2], deadline=0.0, may_begin=always)
    paces = {pace.run.id: pace for pace in budget.paces()}
    seconds = json.loads((folder_of(CONV) / "env.json").read_text())["seconds"]
    assert paces[CONV.id].seconds == pytest.approx(seconds / 3)
    state = torch.load(folder_of(AL2) / "checkpoint.pt", weights_only=True)
    assert paces[AL2.id].seconds == state["seconds"] > 0 and paces[AL2.id].device == HERE


def test_folders_that_cannot_be_read_have_no_pace():
    remember(CONV, 2.0)
    (folder_of(CONV, "earlier") / "env.json").write_text("{}")
    remember(AL2, 2.0)
    (folder_of(AL2, "earlier") / "config.json").write_text("{")
    assert budget.paces() == []


def pace(run, seconds, device=HERE):
    return budget.SecondsPerEpoch(run, device, seconds)


def test_a_pace_is_that_of_the_same_variant_else_the_slowest_of_the_kind():
    known = [pace(replace(CONV, seed=k), seconds) for k, seconds in enumerate((1.0, 2.0, 9.0))]
    known += [pace(replace(CONV, batch_norm=True), 20.0)]
    assert budget.seconds_per_epoch(replace(CONV, seed=7), known, HERE) == 2.0
    assert budget.seconds_per_epoch(replace(CONV, dropout=0.5), known, HERE) == 20.0
    for other in ({"network": "convnet_m"}, {"n_train": 65}, {"image_size": 16}):
        assert budget.seconds_per_epoch(replace(CONV, **other), known, HERE) is None
    assert budget.seconds_per_epoch(CONV, known, "a GPU") is None


def test_a_run_is_begun_only_if_it_ends_in_time_unless_it_goes_on_in_slices():
    known = [pace(CONV, 2.0), pace(AL2, 2.0)]
    assert budget.fits(CONV, 3, 6.0, known) and not budget.fits(CONV, 3, 5.9, known)
    assert budget.fits(AL2, 3, 0.1, known) and not budget.fits(AL2, 3, 0.0, known)
    assert budget.fits(CONV, 3, 0.1, []), "nothing tells how long it takes"
    assert budget.fits(CONV, 3, 0.1, [pace(CONV, 2.0, "a GPU")]), "nor does another device"


def test_a_run_that_does_not_fit_is_passed_over_and_the_next_one_is_trained():
    remember(replace(CONV, seed=9), 1e7)
    may_begin = partial(budget.fits, known=budget.paces())
    store.ensure([CONV, AL2], deadline=time.monotonic() + 1e6, may_begin=may_begin)
    assert store.available([CONV, AL2]) == [AL2] and store.find(CONV) is None


# ---- the command line


def test_the_list_gives_runs_and_epochs_for_each_entry(entries, monkeypatch, capsys):
    remember(replace(CONV, seed=9), 3600.0)
    asked = []

    def measure(run, jobs):
        asked.append((run, jobs))
        return pace(run, 20.0)

    monkeypatch.setattr(budget, "measure", measure)
    call(monkeypatch, "--list")
    lines = [
        "schedules: 0 of 1 runs done, 3 epochs left, 1 min",
        "combined: 0 of 2 runs done, 6 epochs left, 3 h 1 min",
        "together: 0 of 2 runs done, 6 epochs left, 3 h 1 min",
        f"times: 1 at a time on {HERE}, by stored runs and a few steps",
        "measured now: al2_cnn on digits, 20 s an epoch",
    ]
    assert capsys.readouterr().out.splitlines() == lines and asked == [(AL2, 1)]
    assert not (paths.results_dir() / "quick").exists()
    call(monkeypatch, "--list", "--jobs", "2")
    assert "6 epochs left, 1 h 30 min" in capsys.readouterr().out


def test_a_kind_whose_images_are_not_here_has_no_time(monkeypatch):
    far = replace(AL2, dataset="mnist", image_size=None)
    monkeypatch.setenv("DATA_DIR", str(paths.results_dir()))
    remember(CONV, 90.0)
    forecast = budget.Forecast([far, CONV], jobs=1)
    assert forecast.said == ["no time for al2_cnn on mnist: data set not reachable"]
    assert forecast.text({far: 3}) == "time unknown"
    assert forecast.text({far: 3, CONV: 2, AL2: 0}) == "more than 3 min"


@pytest.mark.parametrize("run", [AL2, replace(CONV, entropy=True, n_measure=10, optimizer="adam")])
def test_a_few_steps_say_how_long_an_epoch_takes_and_leave_nothing(run, epochs_trained):
    found = budget.measure(run, jobs=4)
    assert found == pace(run, found.seconds) and found.seconds > 0 and epochs_trained == [1]
    assert not paths.results_dir().exists()


def test_a_budget_trains_in_order_renders_nothing_and_says_what_remains(
    entries, monkeypatch, capsys
):
    remember(replace(CONV, seed=9), 1e7)
    monkeypatch.setattr(campaign, "render_all", lambda *_: pytest.fail("rendered"))
    call(monkeypatch, "--budget", "1000")
    first, second, *_, last = capsys.readouterr().out.splitlines()
    assert first == "schedules: 1 of 1 runs done"
    assert second == "combined: 1 of 2 runs done, 3 epochs left"
    assert last.startswith("1 runs would each take longer than a budget of 1000 s: ")


def test_a_budget_that_ends_leaves_a_checkpoint_and_ends_well(entries, monkeypatch, capsys, always):
    monkeypatch.setattr(campaign, "plan", lambda profile, experiment: entries[:1])
    call(monkeypatch, "--budget", "1e-9")
    assert capsys.readouterr().out == "schedules: 0 of 1 runs done, 2 epochs left\n"
    assert {f.name for f in folder_of(AL2, "quick").iterdir()} == {"config.json", "checkpoint.pt"}


@pytest.mark.parametrize("given", ["0", "-5", "inf", "nan", "soon"])
def test_a_budget_that_is_no_time_is_refused(given, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, f"--budget={given}")
    assert caught.value.code == 2 and "--budget" in capsys.readouterr().err
