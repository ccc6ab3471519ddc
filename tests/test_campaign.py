"""Profiles: groups of values by the beginning of a notebook's name, names of executions, and the
committed ones.
"""

import pytest
from test_data import WNIDS, tiny, write

from lib import paths
from lib.data import load
from lib.run import Run
from lib.study import campaign

NOTEBOOKS = {
    "10_one": {"profile": "quick", "epochs": 50, "dataset": "digits", "dropout": 0.5},
    "11_two": {"profile": "quick", "epochs": 50, "dataset": "digits"},
    "20_three": {"profile": "quick", "epochs": 9, "size": "s", "dataset": "digits"},
    "00_zero": {"profile": "quick"},
}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The plan of a profile from its text, for notebooks with the parameters above."""
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    monkeypatch.setattr(campaign, "notebook_parameters", NOTEBOOKS.__getitem__)

    def planned(text):
        (tmp_path / "mine.yaml").write_text(text)
        return campaign.plan("mine")

    return planned


ALL = (
    "notebooks: {00_zero: [{}], 10_one: [{}, {epochs: 4, dataset: mnist}], 11_two: [{}], "
    "20_three: [{}]}\n"
)


def epochs_of(entries):
    return [(entry.notebook, entry.parameters.get("epochs")) for entry in entries]


def test_a_group_s_values_go_before_those_of_all_and_an_execution_s_before_both(plan):
    entries = plan(ALL + 'all: {epochs: 1}\n"1": {epochs: 2}\n"11": {epochs: 3}\n')
    assert epochs_of(entries) == [
        ("00_zero", None),
        ("10_one", 2),
        ("10_one", 4),
        ("11_two", 3),
        ("20_three", 1),
    ]
    assert all(entry.parameters["profile"] == "mine" for entry in entries)


def test_the_values_of_all_are_for_whatever_notebook_has_such_a_parameter(plan):
    entries = plan(ALL + "all: {epochs: 1, size: m}\n")
    assert [set(entry.parameters) - {"profile"} for entry in entries] == [
        set(), {"epochs"}, {"epochs", "dataset"}, {"epochs"}, {"epochs", "size"}
    ]  # fmt: skip


def test_a_group_s_number_needs_no_quotes(plan):
    assert epochs_of(plan(ALL + "all: {}\n2: {epochs: 7}\n"))[-1] == ("20_three", 7)


@pytest.mark.parametrize("group", ["3", "one", "10_two", "12"])
def test_a_group_that_no_notebook_belongs_to_is_refused(plan, group):
    with pytest.raises(
        ValueError,
        match=rf"mine\.yaml: no notebook's name begins with {group}; there are 00_zero, 10_one",
    ):
        plan(ALL + f'all: {{}}\n"{group}": {{epochs: 2}}\n')


@pytest.mark.parametrize(
    "text",
    [
        'all: {}\n"1": {size: m}\n',  # only 20 has it
        'all: {size: s}\n"1": {size: m}\n',  # and `all` gives it to 20
        'all: {}\n"2": {size: s}\n"1": {size: m}\n',
        'all: {}\n"0": {size: m}\n',
        "all: {sise: m}\n",
    ],
)
def test_a_value_that_no_notebook_of_its_group_has_is_refused(plan, text):
    with pytest.raises(
        ValueError, match=r"mine\.yaml: no notebook that it is for has a parameter si[sz]e"
    ):
        plan(ALL + text)


@pytest.mark.parametrize("text", ['all: {}\n"1": 3\n', 'all: {}\n"1": [epochs]\n', "all: {}\n1:\n"])
def test_a_group_that_is_no_mapping_is_refused(plan, text):
    with pytest.raises(ValueError, match=r"mine\.yaml has to hold two mappings"):
        plan(ALL + text)


@pytest.mark.parametrize(
    "executions", ["[{}, {}]", "[{epochs: 3}, {epochs: 4}]", "[{dataset: mnist}, {dataset: mnist}]"]
)
def test_executions_that_would_overwrite_each_other_are_refused(plan, executions):
    with pytest.raises(
        ValueError,
        match=r"mine\.yaml: several executions are called 11_two.* and would overwrite each other",
    ):
        plan(f"all: {{}}\nnotebooks: {{11_two: {executions}}}\n")


def test_an_execution_is_named_by_what_sets_it_apart():
    entry = campaign.Entry(
        "21_x",
        {"epochs": 3, "optimizer": "adam", "dataset": "mnist", "size": "m", "corruption": 0.5},
    )
    assert entry.name == "21_x-mnist-m-adam-0.5"


@pytest.mark.parametrize("name", sorted(f.stem for f in paths.PARAMS.glob("*.yaml")))
def test_a_committed_profile_states_valid_runs_under_names_of_their_own(name):
    entries = campaign.plan(name)
    assert len({entry.name for entry in entries}) == len(entries) > 0
    for entry in entries:
        runs = entry.runs()
        assert all(isinstance(run, Run) for run in runs) and bool(runs) == (
            entry.notebook in campaign.PLANS
        )
        assert entry.parameters.get("profile", name) == name


def test_every_plan_takes_the_parameters_of_its_notebook():
    """A notebook with a parameter that its study does not know, or the other way round, would fail
    at its first cell.
    """
    for notebook in campaign.PLANS:
        assert campaign.Entry(notebook, {}).runs()


def test_a_run_that_two_notebooks_state_is_asked_for_once_with_the_measures_of_both(monkeypatch):
    """Or a training of hours would be made again for a measure that a later notebook wants."""
    plain = Run("digits", epochs=2)
    more = Run("digits", epochs=2, predictions=True)
    own = Run("digits", epochs=3)
    monkeypatch.setattr(
        campaign.Entry, "runs", lambda self: [plain] if self.notebook == "10_one" else [more, own]
    )
    asked = []
    entries = [campaign.Entry("10_one", {}), campaign.Entry("11_two", {})]
    monkeypatch.setattr(
        campaign.store,
        "ensure",
        lambda runs, **_: asked.append([(r.id, r.predictions) for r in runs]),
    )
    assert campaign.train(iter(entries), "quick", jobs=1)
    assert asked == [[(plain.id, True)], [(plain.id, True), (own.id, False)]]
    assert campaign.progress(iter(entries))[-1].startswith(
        "together: 0 of 2 runs done, 5 epochs left"
    )


def test_a_data_set_of_which_classes_are_absent_is_named_and_the_campaign_goes_on(
    tmp_path, monkeypatch, capsys
):
    write(tmp_path / "tiny-imagenet-200-part1.zip", tiny(WNIDS[:2]))
    monkeypatch.setattr(
        campaign.Entry, "runs", lambda self: [Run(self.parameters["dataset"], epochs=2)]
    )
    entries = [campaign.Entry("10_one", {"dataset": name}) for name in ("tiny_imagenet", "digits")]
    trained = []

    def ensure(runs, **_):
        load(runs[0].dataset, root=tmp_path)
        trained.append(runs[0].dataset)

    monkeypatch.setattr(campaign.store, "ensure", ensure)
    assert campaign.train(entries, "quick", jobs=1) and trained == ["digits"]
    said = (
        "not run: 10_one-tiny_imagenet: data set not reachable: tiny_imagenet: classes=200 were "
        "asked for"
    )
    assert capsys.readouterr().err.startswith(said)
