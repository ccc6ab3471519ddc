"""Profiles: what an experiment's entries state, what is refused, and the committed ones; then how
a campaign trains them.
"""

import argparse
import os
import subprocess
import sys
import types
from contextlib import nullcontext
from dataclasses import replace

import pytest
from test_data import WNIDS, tiny, write

from lib import paths
from lib.run import Run
from lib.study import campaign
from lib.study.experiments import EXPERIMENTS

NOTEBOOKS = {
    "10_one": {"profile": "quick", "epochs": 50, "dataset": "digits", "dropout": 0.5},
    "11_two": {"profile": "quick", "epochs": 50, "dataset": "digits"},
    "20_three": {"profile": "quick", "epochs": 9, "size": "s", "dataset": "digits"},
    "00_zero": {"profile": "quick"},
}
TEXT = """
all: {epochs: 1}
settings: {al2: &al2 {epochs: 2, dropout: 0.1}}
experiments:
  label_randomization:
    settings: *al2
    notebooks: [10_one]
    entries: [{}, {epochs: 4, dataset: mnist, notebooks: [10_one, 11_two]}]
  schedules: {settings: *al2, notebooks: [11_two], entries: [{dataset: mnist, corruption: 0.5}]}
  sparsity_networks: {notebooks: [20_three], entries: [{}]}
notebooks: [00_zero]
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The plan of a profile from its text, for notebooks with the parameters above."""
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    known = {name: values | {"corruption": 0.75} for name, values in NOTEBOOKS.items()}
    monkeypatch.setattr(campaign, "notebook_parameters", known.__getitem__)

    def planned(text, experiment=None):
        (tmp_path / "mine.yaml").write_text(text)
        return campaign.plan("mine", experiment)

    return planned


def test_an_entry_s_values_go_before_its_experiment_s_and_those_before_all(plan):
    entries = plan(TEXT)
    assert [(entry.name, entry.parameters.get("epochs")) for entry in entries] == [
        ("label_randomization", 2),
        ("label_randomization-mnist", 4),
        ("schedules-mnist-0.5", 2),
        ("sparsity_networks", 1),
        ("00_zero", None),
    ]
    assert all(entry.profile == "mine" for entry in entries)
    # 11_two has no dropout; 10_one, whose settings these are, too, has
    assert "dropout" not in entries[2].parameters
    # each is rendered by its own notebooks under names that set it apart
    assert entries[0].rendered() == {"10_one": "10_one"}
    assert entries[1].rendered() == {"10_one-mnist": "10_one", "11_two-mnist": "11_two"}
    assert entries[-1].rendered() == {"00_zero": "00_zero"} and entries[-1].runs == []
    # one experiment's can be asked for
    assert [entry.name for entry in plan(TEXT, "schedules")] == ["schedules-mnist-0.5"]
    with pytest.raises(ValueError, match="no experiment 'schedule'; there are calibration, lab"):
        plan(TEXT, "schedule")


ONE = "all: {}\nexperiments: {schedules: {notebooks: [11_two], entries: [{}]}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "has to hold two mappings, `all` and `experiments`"),
        ("all: {}\nexperiments: [a]", "has to hold two mappings"),
        ("all: {\n", "is no YAML"),
        (ONE + "more: {}", "holds more; allowed are all, settings, experiments, notebooks"),
        ("all: {}\nexperiments: {nine: {entries: []}}", "no experiment 'nine'; there are calib"),
        (ONE.replace("[{}]", "{}"), "schedules needs `entries`, a list of mappings"),
        (ONE.replace("[{}]", "[3]"), "schedules needs `entries`, a list of mappings"),
        (ONE.replace("entries", "entry"), "schedules needs `entries`"),
        (ONE.replace("11_two", ""), "an entry of schedules names no notebook"),
        (ONE.replace("{}]", "{sise: m}]"), "11_two has no parameter sise; it has profile, epochs"),
        (ONE.replace("all: {}", "all: {sise: m}"), "no notebook .* has a parameter sise"),
        (ONE.replace("{notebooks", "{settings: {size: m}, notebooks"), "has a parameter size"),
        (ONE.replace("[{}]", "[{}, {epochs: 3}]"), "several executions are called 11_two and"),
    ],
)
def test_what_a_profile_cannot_mean_is_refused(plan, text, message):
    with pytest.raises(ValueError, match=rf"mine\.yaml:? .*{message}"):
        plan(text)


def test_the_committed_profiles_state_valid_runs_and_the_quick_one_those_of_every_experiment():
    """Quick's each with its notebooks' own defaults: a notebook with a parameter that its
    experiment does not know, or the other way round, would fail at its first cell.
    """
    for file in paths.PARAMS.glob("*.yaml"):
        for entry in campaign.plan(file.stem):
            assert bool(entry.runs) == bool(entry.experiment)
    entries = [entry for entry in campaign.plan("quick") if entry.experiment]
    assert {entry.experiment for entry in entries} == set(EXPERIMENTS)
    for entry in entries:
        assert entry.parameters == {"profile": "quick"}
        assert all(campaign.Entry(entry.experiment, (n,), {}).runs for n in entry.notebooks)


@pytest.fixture
def entries_of(monkeypatch):
    """Makes entries that state these lists of runs, all that their profile has; and what the store
    is asked to train: a profile and runs each time.
    """
    asked = []

    def made(*lists):
        entries = [campaign.Entry("schedules", (f"{k}",), {"size": k}) for k in range(len(lists))]
        stated = property(lambda self: lists[self.parameters["size"]])
        monkeypatch.setattr(campaign, "plan", lambda profile: entries)
        monkeypatch.setattr(campaign.Entry, "runs", stated)
        return entries, asked

    def ensure(runs, profile, **_):
        asked.append((profile, runs))

    monkeypatch.setattr(campaign.store, "ensure", ensure)
    return made


def test_a_run_that_two_entries_state_is_asked_for_once_with_the_measures_of_both(entries_of):
    """Or a training of hours would be made again for a measure that a later notebook wants."""
    plain = Run("digits", epochs=2)
    more = Run("digits", epochs=2, predictions=True)
    own = Run("digits", epochs=3)
    entries, asked = entries_of([plain], [more, own])
    assert campaign.train(iter(entries), "quick", jobs=1)
    ((_, runs),) = asked  # neighbours on one data set in one go
    both = (plain.id, True)
    assert [(run.id, run.predictions) for run in runs] == [both, both, (own.id, False)]
    assert campaign.progress(iter(entries))[-1] == "together: 0 of 2 runs done, 5 epochs left"
    # also where a part of the profile is trained, as by `make experiment`
    for entry in entries:
        entry.parameters["profile"] = "quick"
    assert campaign.train(entries[:1], "quick", jobs=1)
    assert [(run.id, run.predictions) for run in asked[1][1]] == [both]


def test_runs_that_a_profile_takes_over_from_another_are_trained_as_that_one_s(entries_of):
    runs = [Run("digits", epochs=2)], [Run("digits", epochs=3)]
    entries, asked = entries_of(*runs)
    entries[1].parameters["profile"] = "paper"
    campaign.train(entries, "lite", jobs=1)
    assert asked == [("lite", runs[0]), ("paper", runs[1])]


def test_a_data_set_of_which_classes_are_absent_is_named_and_the_campaign_goes_on(
    tmp_path, monkeypatch, capsys, entries_of
):
    write(tmp_path / "tiny-imagenet-200-part1.zip", tiny(WNIDS[:2]))
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    there = [Run("digits", epochs=2)]
    entries, asked = entries_of([Run("tiny_imagenet", epochs=2)], there)
    assert campaign.train(entries, "quick", jobs=1) and asked == [("quick", there)]
    said = "not run: schedules-0: data set not reachable: tiny_imagenet: classes=200 were asked for"
    assert capsys.readouterr().err.startswith(said)


def test_what_is_stored_needs_no_images_and_is_not_passed_over_with_what_does(
    monkeypatch, tmp_path, entries_of, capsys
):
    stored, missing = [Run("mnist", epochs=k) for k in (1, 2)]
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nothing"))
    done = {stored.id}
    monkeypatch.setattr(campaign.engine, "is_done", lambda run: run.id in done and not run.cca)
    entries, asked = entries_of([missing], [stored])
    assert campaign.train(entries, "quick", jobs=1) and asked == [("quick", [stored])]
    assert capsys.readouterr().err.count("not run") == 1
    # a measure that is asked for elsewhere needs the images, too
    entries, asked = entries_of([stored], [replace(stored, cca=("init",))])
    asked.clear()
    assert not campaign.train(entries, "quick", jobs=1) and asked == []


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_processes_is_a_whole_positive_one(jobs):
    with pytest.raises(argparse.ArgumentTypeError, match="no whole number of at least 1"):
        campaign.positive(jobs)
    assert campaign.positive("3") == 3


@pytest.mark.parametrize(
    ("injected", "said"),
    [
        ("# Parameters\nseeds = [3]\n", None),
        ("corruptoin = 3", None),  # a reader's own cell
        ("# Parameters\ncorruptoin = 3\n", "has no parameter corruptoin; did you mean corruption"),
        ("# Parameters\nqwertz = 1\n", "has no parameter qwertz. It has profile, jobs"),
    ],
)
def test_a_parameter_that_papermill_injects_and_no_notebook_has_is_refused(
    injected, said, monkeypatch
):
    shell = types.SimpleNamespace(user_ns={"In": ["", "profile = 'quick'", injected]})
    module = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)
    with pytest.raises(ValueError, match=said) if said else nullcontext():
        campaign.refuse_unknown_parameters("10_al2_label_randomization")


@pytest.mark.slow
def test_profiles_are_read_in_any_locale():
    """They hold λ and ×; a locale may have Latin letters alone."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = "from lib.study import campaign, claims; print(len(campaign.plan('lite')) > 0)"
    asked = [sys.executable, "-c", command]
    done = subprocess.run(asked, env=environment, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
