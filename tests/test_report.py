"""The report: the headline, what is gathered and written, and what notebooks save for it."""

import json
import types

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made import HUNDRED, cell, stored, together
from test_claims import frame as al2_frame

from lib import paths, run_dir, store
from lib.run import Run
from lib.study import campaign, claims, evidence, report
from lib.study.experiments import VARIANTS, sparsity_networks

ALL = dict.fromkeys(VARIANTS, 30.0)


def assembled(al2=None, sparsity=None):
    """A report of these runs, as `gather` puts it together."""
    none = store.load([])
    frames = {"label_randomization": al2, "sparsity_networks": sparsity}
    frames = {name: none if frame is None else frame for name, frame in frames.items()}
    progress = [["made", "mnist", 16, 16]]
    columns = ["profile", "dataset", "runs finished", "runs stated"]
    cells = claims.cells(frames, ["made"], only=claims.STATEMENTS)
    judged = claims.verdicts_of(cells)
    return report.Report(frames, pd.DataFrame(progress, columns=columns), cells, judged)


def rows(headline, table):
    """The rows of one of its two tables: head, line, then what was published and measured."""
    lines = [line for line in headline.split("\n\n")[2 * table + 1].splitlines() if line]
    return [[value.strip() for value in line.strip("|").split("|")] for line in lines]


# ---- headline


def test_the_headline_gives_mean_spread_and_n_of_al2():
    """How many seeds there are, and once what was not run."""
    made = al2_frame(seeds=(0, 1, 2))
    published, measured = rows(report.headline(assembled(made)), 0)[2:]
    assert published[5] == "25.8 → 68.5"
    assert measured[2:6] == ["75 %", "3", "10,000", "27.0 ± 1.0 → 69.0 ± 1.0"]
    lower = al2_frame(seeds=(0,)).assign(corruption=0.5)
    assert rows(report.headline(assembled(together(made, lower))), 0)[3:] == [measured]
    made = made[((made.seed == 0) | (made.baseline == "bare")) & (made.baseline != "dropout")]
    made = made[~((made.baseline == "weight_decay") & made.al2)]
    assert rows(report.headline(assembled(made)), 0)[3][3:] == [
        "1–3", "10,000", "27.0 ± 1.0 → 69.0 ± 1.0", "26.0 → 81.0", "not run", "25.0 → not run",
    ]  # fmt: skip


def test_the_headline_of_no_runs_has_the_papers_rows_and_says_not_run():
    text = report.headline(assembled())
    *_, published, measured = rows(text, 0)
    assert published[5] == "25.8 → 68.5"
    assert measured == ["measured", "not run", "", "", "", *["not run"] * 4]
    head, _, *papers, measured = rows(text, 1)
    assert head == ["", "data set", "size", "optimiser", "n", *VARIANTS]
    sizes = ("s", "m", "xxl")
    assert [row[:4] for row in papers] == [["published", "cifar100", s, "sgd"] for s in sizes]
    assert papers[2][5:] == ["36.6", "42.0", "50.6", "53.3", "53.9", "54.2"]
    assert measured == ["measured", "not run", "", "", "", *["not run"] * 6]


def test_the_headline_reads_longer_trainings_whole_in_rows_of_their_own():
    long = cell({"vanillaNet": 31.0, "sr2Net": 36.0}, epochs=40, diverged={("sr2Net", 1): 39})
    short = cell({name: 30.0 for name in VARIANTS if name not in ("vanillaNet", "sr2Net")})
    read, whole = rows(report.headline(assembled(sparsity=together(long, short))), 1)[5:]
    assert read[0] == "measured, made, mean" and read[5] == "31.0 ± 0.0"
    assert whole == [
        "measured, made, mean, 40 epochs", HUNDRED, "s", "sgd", "3",
        "31.0 ± 0.0", "not run", "not run", "not run", "diverged", "not run",
    ]  # fmt: skip


def test_the_headline_has_a_row_a_cell_with_spread_words_for_diverged_and_what_was_not_run():
    made = together(
        cell({name: 30.0 for name in VARIANTS if name != "dropNet"}, diverged={("sr1Net", 1): 4}),
        cell(ALL, optimizer="adam", seeds=[0]),
        cell(ALL, profile="other", seeds=[0]),
    )
    spread = ["30.0 ± 0.0", "not run", "30.0 ± 0.0", "diverged", "30.0 ± 0.0", "30.0 ± 0.0"]
    assert sorted(rows(report.headline(assembled(sparsity=made)), 1)[5:]) == [
        ["measured, made, mean", HUNDRED, "s", "adam", "1", *["30.0"] * 6],
        ["measured, made, mean", HUNDRED, "s", "sgd", "3", *spread],
        ["measured, other, mean", HUNDRED, "s", "sgd", "1", *["30.0"] * 6],
    ]


# ---- gathered and written


def finished(runs, root):
    """Put made runs into the store, in the profile lite."""
    for run in runs:
        frame = stored(run, test_accuracy=30.0, cross_entropy=1.0, test_cross_entropy=1.0)
        metrics = frame.iloc[:, list(frame).index("epoch") :]
        folder = root / "results" / "lite" / run.dataset / run.name
        run_dir.finish(folder, run, metrics, {"a": np.zeros(1)}, {"num_classes": 10})


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Two profiles that state some ConvNets, of which two are finished."""
    runs = sparsity_networks("digits", networks=["vanillaNet", "dropNet", "sr3Net"], epochs=4)
    runs = [Run.from_dict(run.to_dict()) for run in runs]  # nothing is measured
    of_profile = {"lite": runs, "paper": runs[2:]}

    def plan(profile, experiment="sparsity_networks"):
        entry = types.SimpleNamespace(runs=of_profile[profile], profile="")
        return [entry] if experiment == "sparsity_networks" else []

    monkeypatch.setattr(campaign, "plan", plan)
    finished(runs[:2], tmp_path)
    finished([Run("digits", network="convnet_s", corruption=0.0, epochs=4, seed=7)], tmp_path)
    return runs


def test_gather_reads_the_finished_of_the_stated_runs_by_experiment(planned):
    found = report.gather(["lite", "paper"])
    lite, paper = found.progress.to_numpy().tolist()
    assert lite == ["lite", "digits", 2, 3] and paper == ["paper", "digits", 0, 1]
    own = found.frames["sparsity_networks"]
    assert set(own.id) == {run.id for run in planned[:2]} and set(own.profile) == {"lite"}
    assert all(f.empty for name, f in found.frames.items() if name != "sparsity_networks")
    # vanillaNet never overfits, so that S3 says nothing
    assert set(found.claims.verdict) == {"not run: no seed is finished", "nothing"}


def test_the_index_shows_what_notebooks_saved_and_the_rest_goes(planned):
    saves = evidence.Report("21_sparsity_networks", True)
    caption = "Best accuracies, published and measured."
    saves.figure("sparsity_table2", caption, plt.figure, show=False)
    saves.table("sparsity_table2", "Table 2.", pd.DataFrame({"a": [1]}))
    folder = evidence.folder()
    old = [folder / "figures" / "old.png", folder / "tables" / "old.csv"]
    for file in old:
        file.write_text("")
    report.write(report.gather(["lite"]))
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    own = {"claims.csv", "claim_cells.csv", "headline.md", "matrix.md", "report.md"}
    own |= {f"claims/{claim}.md" for claim in claims.STATEMENTS}
    kept = {"figures/sparsity_table2.png", "tables/sparsity_table2.csv"}
    assert files == own | kept | {"saved/21_sparsity_networks.json"}
    text = (folder / "report.md").read_text()
    assert "Figures: [sparsity_table2](figures/sparsity_table2.png)" in text
    assert "[`sparsity_table2`](tables/sparsity_table2.csv): Table 2." in text
    page = (folder / "claims" / "S5.md").read_text()
    assert f"](../figures/sparsity_table2.png)\n\n*{caption}*" in page
    page = (folder / "claims" / "S3.md").read_text()
    assert "make experiment NAME=sparsity_networks PROFILE=lite" in page


def test_quoting_needs_the_marks(tmp_path):
    evidence.folder().mkdir(parents=True)
    (evidence.folder() / "headline.md").write_text("new\n")
    begin, end = report.marks("headline.md")
    file = tmp_path / "README.md"
    file.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    report.quote("headline.md", file)
    assert file.read_text() == f"before\n{begin}\nnew\n{end}\nafter\n"
    file.write_text("nothing")
    with pytest.raises(ValueError, match=r"lacks the marks between which headline\.md stands"):
        report.quote("headline.md", file)


def test_the_report_of_another_results_folder_is_quoted_nowhere(monkeypatch):
    monkeypatch.setattr(report, "quote", lambda *_: pytest.fail("quoted"))
    report.quote_all()  # of the test's own folder


def test_the_matrix_has_a_row_where_something_was_measured_and_a_word_a_verdict():
    columns = ["claim", "profile", "dataset", "reading", "n", "verdict"]
    rows = [
        ["A1", "lite", "mnist", "", 3, "holds in part"],
        ["A2", "lite", "mnist", "", 1, "indicative: 2 of 3 cells as claimed, one seed"],
        ["A2", "lite", "cifar10", "", 0, "not run: no seed is finished"],
        ["S2", "paper", "cifar100", "", 3, "does not hold"],
        ["S3", "paper", "cifar100", "sum", 3, "undecided"],
    ]
    judged = pd.DataFrame(rows, columns=columns).assign(cells="4 holds, 1 fails, 3 indicative")
    text = report.matrix(judged, "claims/")
    assert report.matrix(judged.assign(n=0)).count("\n") < 6  # nothing measured: no rows
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    al2, sparsity = (row for row in lines if row and row[0].endswith((", lite", ", paper")))
    assert al2[:4] == ["MNIST, lite", "in part", "2/3, 4 holds, 1 fails", "–"]
    assert sparsity[:4] == ["CIFAR-100, sum, paper", "–", "fails", "undecided"]
    assert lines[0][:2] == ["AL2", "[A1](claims/A1.md)"]
    dead = judged.assign(n=0, verdict="nothing")  # run, and silent
    assert "| nothing " in report.matrix(dead)


def test_the_committed_report_was_made_of_the_committed_notebooks_code_and_runs(monkeypatch):
    """`make evidence` makes it so."""
    monkeypatch.setenv("RESULTS_DIR", str(paths.ROOT / "results"))
    known = json.loads((evidence.folder() / "inputs.json").read_text())
    assert set(known) == set(evidence.saved()) and len(known) >= 12
    assert [name for name, inputs in known.items() if report.inputs(name) != inputs] == []


# ---- what notebooks save


def test_nothing_is_written_or_drawn_unless_it_is_saved_or_shown(capsys):
    plt.close("all")
    quiet = evidence.Report("11_al2_ablation", False)
    quiet.figure("a", "A.", lambda: pytest.fail("drawn"), show=False)
    quiet.table("b", "B.", pd.DataFrame())
    assert not paths.results_dir().exists()
    quiet.figure("a", "A.", plt.figure)
    assert "Image" in capsys.readouterr().out and not plt.get_fignums()


def test_what_is_saved_says_of_which_experiments_and_modules_it_is_made(planned):
    assert set(evidence.load("sparsity_networks").profile) == {"lite"}
    evidence.Report("11_al2_ablation", True).table("b", "B.", pd.DataFrame({"a": [1 / 3]}))
    said = evidence.saved()["11_al2_ablation"]
    assert "sparsity_networks" in said["experiments"] and "lib/study/evidence.py" in said["modules"]
    assert said["tables"] == {"b": "B."} and said["figures"] == {}
    assert (evidence.folder() / "tables" / "b.csv").read_text() == "a\n0.333333\n"


CELLS = [
    # a first line `save` would be IPython's magic
    ("profile: str = 'quick'  # where\nsave: bool = False  # whether to save", ["parameters"]),
    ("from lib.study import evidence\nimport pandas as pd", []),
    ("raise ValueError('trained')", ["live"]),
    ("frame = pd.DataFrame({'a': [1]})\nframe", []),
    ("evidence.Report('10_made', save).table('made', 'Made.', frame)", []),
]


def write_notebook(folder, *, value=1):
    cells = []
    for k, (source, tags) in enumerate(CELLS):
        source = source.replace("[1]", f"[{value}]")
        cells.append({"cell_type": "code", "source": source, "metadata": {"tags": tags}})
        cells[-1] |= {"outputs": [], "execution_count": k + 1, "id": f"c{k}"}
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    folder.mkdir(exist_ok=True)
    (folder / "10_made.ipynb").write_text(json.dumps(book))


def test_a_notebook_that_shows_the_float32_twin_is_made_of_its_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    twin = tmp_path / "results" / "bench" / "precision" / "run" / "metrics.csv"
    twin.parent.mkdir(parents=True)
    twin.write_text("epoch\n1\n")
    modules = {"10_shows": ["lib/bench/precision.py"], "11_does_not": ["lib/run.py"]}
    said = {name: {"modules": own, "experiments": []} for name, own in modules.items()}
    monkeypatch.setattr(evidence, "saved", lambda: said)
    assert {name: twin in report.input_files(name) for name in said} == {
        "10_shows": True,
        "11_does_not": False,
    }


@pytest.mark.slow
def test_cells_that_rest_on_stored_runs_are_executed_and_know_what_they_are_made_of(
    tmp_path, monkeypatch
):
    (tmp_path / "lib").symlink_to(paths.ROOT / "lib")
    monkeypatch.setenv("PYTHONPATH", str(paths.ROOT))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    write_notebook(tmp_path / "notebooks")
    report.execute("10_made", in_place=True)
    cells = json.loads((tmp_path / "notebooks" / "10_made.ipynb").read_text())["cells"]
    assert [cell["outputs"] for cell in cells if cell["outputs"]] == [cells[3]["outputs"]]
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3, 4, 5]
    assert evidence.saved()["10_made"]["tables"] == {"made": "Made."}
    before = report.inputs("10_made")
    assert before == report.inputs("10_made") != report.inputs("11_never_saved") == ""
    files = report.input_files("10_made")
    newest = max(file.stat().st_mtime for file in files)
    assert report._is_older(files, newest + 1) and not report._is_older(files, newest)
    write_notebook(tmp_path / "notebooks", value=2)
    assert report.inputs("10_made") != before
