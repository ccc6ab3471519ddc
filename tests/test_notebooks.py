"""The committed notebooks, profiles and README: what can be checked without executing them (nbval
does that).
"""

import dataclasses
import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from test_experiments import values

from lib import paths, store, trainer
from lib.losses import al2_weights
from lib.run import SCREENING_SEED, Run
from lib.study import campaign, report, tables

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((paths.ROOT / "notebooks" / "solutions").glob("*.ipynb"))


def text(path):
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


def code(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def tagged(cells, tag):
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def stem(path):
    return path.stem


@pytest.fixture(params=NOTEBOOKS, ids=stem)
def cells(request):
    return code(request.param)


def test_every_code_cell_was_executed_in_order_without_error_or_warning(cells):
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_some_output_is_compared_by_nbval_and_no_address(cells):
    """A styled table's text has one, and no two executions the same."""
    outputs = [cell.outputs for cell in tagged(cells, "nbval-check-output")]
    assert any(outputs) and "Styler at 0x" not in str(outputs)


def test_most_cells_are_compared_by_nbval():
    cells = [cell for path in NOTEBOOKS for cell in code(path)]
    assert len(tagged(cells, "nbval-check-output")) >= 0.6 * len(cells)


def test_code_cells_are_short_but_for_the_parameters_and_what_they_set(cells):
    long = [cell for cell in cells if len(cell.source.splitlines()) > 32]
    long = [cell for cell in long if "\nsettings = {\n" not in cell.source]
    assert long == tagged(long, "parameters")


def test_a_cell_that_trains_is_live(cells):
    """What it leaves differs from machine to machine and is not brought up to date from stored
    runs.
    """
    training = [cell for cell in cells if "store.ensure" in cell.source]
    assert training == tagged(training, "live")


def test_the_parameters_cell_has_a_type_and_a_default_a_line(cells):
    (parameters,) = tagged(cells, "parameters")
    for line in parameters.source.splitlines():
        assert re.fullmatch(r"\w+: (str|int|float|bool|list) = [^#]+?(  # .+)?", line), line


def test_notebooks_are_small():
    assert [path for path in NOTEBOOKS if path.stat().st_size >= 1_000_000] == []


# ---- exercises and their solutions


@pytest.mark.parametrize("path", SOLUTIONS, ids=stem)
def test_each_exercise_has_a_solution_that_prints_the_outcome_it_states(path):
    """An exercise says "*Expect:* …" in a line of its own; its solution prints these words."""
    stated = re.findall(r"\*Expect:\* (.+)", text(paths.ROOT / "notebooks" / path.name))
    headings = re.findall(r"^## Exercise (\d+)", text(path), re.MULTILINE)
    assert len(stated) >= 3 and headings == [str(k + 1) for k in range(len(stated))]
    printed = " ".join(o.get("text", "") for cell in code(path) for o in cell.outputs)
    printed = " ".join(printed.split())
    assert [outcome for outcome in stated if outcome not in printed] == []
    counts = [cell.execution_count for cell in code(path)]
    assert counts == list(range(1, len(counts) + 1)) and path.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.parametrize("path", SOLUTIONS, ids=stem)
def test_a_solution_leaves_what_it_left(path):
    """Executed by nbval, strictly: every cell but those tagged nbval-ignore-output is compared."""
    words = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env"]
    words += ["--nbval-cell-timeout=600", "-p", "no:cacheprovider", str(path)]
    # runs go to this test's own folder; the committed ones are found in the project
    environment = os.environ | {"PROGRESS": "0"}
    done = subprocess.run(words, cwd=paths.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


# ---- the committed profiles


def runs_of(profile, *experiments):
    """The runs that these experiments state, all of them without any."""
    entries = campaign.plan(profile)
    return [r for e in entries if not experiments or e.experiment in experiments for r in e.runs]


def ids_of(profile, *experiments):
    return {run.id for run in runs_of(profile, *experiments)}


def test_the_quick_profile_renders_every_notebook_once():
    stems = [stem for entry in campaign.plan("quick") for stem in entry.rendered()]
    assert sorted(stems) == [path.stem for path in NOTEBOOKS]


def test_quick_experiments_share_their_runs():
    experiments = {entry.experiment for entry in campaign.plan("quick")} - {""}
    runs = {name: ids_of("quick", name) for name in experiments}
    tables = runs["label_randomization"]
    assert runs["representations"] <= tables
    assert len(runs["schedules"] & tables) == 3  # bare, the paper's weight decay, bare with AL2
    assert len(runs["relabelling"] & tables) == 2  # bare and bare+AL2 on the noisy labels
    # bare and dropout, without and with AL2
    assert len(runs["sensitivity"] & tables) == 4 and len(runs["sensitivity"] - tables) == 5
    entries = campaign.plan("quick", "sparsity_networks")
    shown = {entry.notebooks[0]: {run.id for run in entry.runs} for entry in entries}
    monitor, networks = shown["20_sparsity_monitor"], shown["21_sparsity_networks"]
    assert monitor and monitor <= networks
    # vanillaNet, sr1Net, sr2Net; and sr3Net where both read DecorrReg alike
    assert len(runs["penalty_readings"] & networks) >= 3


@pytest.mark.parametrize("profile", ["lite", "paper"])
def test_canonical_correlations_are_taken_of_the_runs_of_the_tables(profile):
    own = ids_of(profile, "representations")
    assert own and own <= ids_of(profile, "label_randomization")


def test_data_that_are_not_there_are_named_and_nothing_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "none"))
    entries = campaign.plan("lite")[:2]
    assert campaign.train(entries, "lite", jobs=1) is False
    said = capsys.readouterr().err
    assert said.count("data set not reachable") == len(entries)
    assert "make data DATASET=mnist" in said
    assert not list((tmp_path / "results").glob("lite/*/*"))


def test_the_paper_profile_is_the_paper_s():
    table1 = runs_of("paper", "label_randomization")
    assert len({r.id for r in table1 if r.seed == 0}) == 96
    relabelled = runs_of("paper", "relabelling")
    assert len({r.id for r in relabelled if r.relabelled_by}) == 2
    runs = [*table1, *relabelled, *runs_of("paper", "representations")]
    rates = values(runs, "batch_size", "learning_rate", "momentum", "schedule", "speed")
    assert rates == {(64, 0.001, 0.5, "al2", 1.0)}
    # Figure 1 follows the dropout networks at 75 % for longer; the tables read the first 700 epochs
    # of that training
    assert all(r.epochs == (750 if (r.dropout, r.corruption) == (0.5, 0.75) else 700) for r in runs)
    assert values(runs, "n_train", "n_validation", "test_images") == {(None, 0, None)}
    assert values(runs, "weight_decay", "dropout") == {(0, 0), (5e-4, 0), (0, 0.5)}
    others = [r for r in runs_of("paper") if r.network != "al2_cnn" and r.seed < SCREENING_SEED]
    unused = 0.5  # Adam has no momentum: the field is back at its default
    rates = values(others, "optimizer", "learning_rate", "momentum")
    assert rates == {("sgd", 0.01, 0.0), ("adam", 0.001, unused)}
    shared = values(others, "batch_size", "n_measure", "corruption", "epochs")
    assert shared == {(64, 1000, 0.0, 100)}
    assert values(others, "dropout", "decorrelation_weight") == {(0.0, 1.0), (0.25, 1.0)}
    # penalty_readings' strength between mean and sum
    stronger = [r for r in others if r.sparsity_weight != 0.001]
    assert values(stronger, "variant", "seed", "sparsity_weight", "sparsity_batch") == {
        ("sr1Net", 0, 0.008, "mean"), ("sr2Net", 0, 0.008, "mean")
    }  # fmt: skip


def test_the_paper_profile_s_schedules_are_its_training_but_for_what_they_vary():
    """And for the tenth of the training images that they hold out."""
    (entry,) = campaign.plan("paper", "schedules")
    networks = {("bare", False), ("weight_decay", False), ("bare", True)}
    table1 = [
        dataclasses.replace(r, n_validation=6000)
        for r in runs_of("paper", "label_randomization")
        if (r.dataset, r.corruption, r.seed) == ("mnist", 0.75, 0)
        and (r.baseline, r.al2) in networks
    ]
    assert len(table1) == 3 and {r.id for r in table1} <= {r.id for r in entry.runs}
    varied = {"weight_decay", "al2", "schedule", "speed", "rate"}
    for run in entry.runs:
        assert {k for k, v in run.to_dict().items() if v != table1[0].to_dict()[k]} <= varied


def test_the_lite_profile_s_schedules_go_out_from_the_networks_of_the_tables():
    ids = ids_of("lite", "label_randomization")
    runs = runs_of("lite", "schedules")
    shared = [r for r in runs if r.id in ids]
    assert len(shared) == len(runs) - 3 * (3 + 11) == 3 * 3
    assert values(shared, "baseline", "al2") == {
        ("bare", False), ("bare", True), ("weight_decay", False)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "seeds", "tried", "epochs"), [("lite", 2, 2 * 8, 50), ("paper", 1, 8, 700)]
)
def test_options_go_out_from_the_networks_of_the_tables(profile, seeds, tried, epochs):
    ids = ids_of(profile, "label_randomization")
    runs = runs_of(profile, "sensitivity")
    assert len({r.id for r in runs}) == len(runs) == 6 * seeds + tried
    assert [r.id for r in runs if r.id in ids] == [r.id for r in runs[: 6 * seeds]]
    # what the options train is never longer than the tables' training
    assert {r.epochs for r in runs[6 * seeds :]} == {epochs}


@pytest.mark.parametrize(
    ("profile", "experiments", "factor", "units"),
    [
        ("quick", ["label_randomization", "combined"], 3, {"digits": 200}),
        ("paper", ["label_randomization", "combined"], 1, {}),
    ],
)
def test_speed_follows_the_stated_rule(profile, experiments, factor, units):
    """λ_end · η / (1 − m) / units of φ is three times the AL2 paper's, 2933.2 · 0.002 / 800; in the
    profile paper the same.

    There the AL2 CNN itself has the paper's own schedule, whatever the units. The experiment
    schedules varies it on purpose.
    """
    curve = al2_weights(2000)
    runs = {r for r in runs_of(profile, *experiments) if r.al2}
    assert runs
    for r in runs:
        size = 2048 if r.network == "convnet_s" else units.get(r.dataset, 800)
        wanted = factor * curve[699] * 0.002 / 800 * size * (1 - r.momentum) / r.learning_rate
        last = np.interp(np.log(wanted), np.log(curve), np.arange(2000))
        papers_own = profile == "paper" and r.network == "al2_cnn"
        assert r.speed == pytest.approx(1.0 if papers_own else last / (r.epochs - 1), rel=0.005)
    convnet = trainer.build_network(Run("digits", network="convnet_s"), 3, 32, 10)
    assert convnet.fc1.in_features == 2048


# ---- README


@pytest.mark.parametrize("quoted, file", report.QUOTED.items())
def test_what_the_report_is_quoted_in_has_it_as_it_stands(quoted, file):
    begin, end = report.marks(quoted)
    text = (paths.ROOT / file).read_text().split(begin)[1].split(end)[0]
    assert text.strip() == (paths.ROOT / "results" / "report" / quoted).read_text().strip()


@pytest.mark.parametrize("file", ["README.md", "results/findings.md", "results/report/report.md"])
def test_links_lead_somewhere(file):
    file = paths.ROOT / file
    targets = re.findall(r"\]\(([^)#]+)\)", file.read_text())
    targets = [target for target in targets if not target.startswith("http")]
    assert targets and not [name for name in targets if not (file.parent / name).exists()]


def test_the_readme_s_make_targets_exist():
    makefile = (paths.ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+)(?=[ :])", makefile, re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", (paths.ROOT / "README.md").read_text()))
    assert named <= targets, named - targets


def test_lite_runs_at_the_speed_and_with_the_rules_of_its_calibration(monkeypatch):
    monkeypatch.setattr(paths, "EVIDENCE", (paths.ROOT / "results" / "calibration",))
    calibrated = runs_of("calibration", "calibration")
    lite = [r for r in runs_of("lite", "label_randomization", "combined") if r.al2]
    names = ("speed", "epochs", "n_train", "learning_rate", "momentum", "batch_size")
    assert values(lite, *names) == values(calibrated, *names)
    # wd · η' · steps is the paper's
    with_decay = [r for r in lite if r.weight_decay]
    (decay,) = {
        r.weight_decay * r.learning_rate / (1 - r.momentum) * r.epochs * 157 for r in with_decay
    }
    assert decay == pytest.approx(5e-4 * 0.002 * 938 * 700, rel=0.01)
    # a set's top level: the highest of 25, 50, 75 % at which all four are alive
    judged = tables.alive(store.load(store.available(calibrated)))
    alive = judged.groupby(["dataset", "corruption"]).alive.agg(["all", "size"])
    top = alive[alive["all"] & (alive["size"] == 4)].reset_index().groupby("dataset").corruption
    for name in ("mnist", "fashion_mnist", "cifar10"):
        assert top.max()[name] == max(r.corruption for r in lite if r.dataset == name)
