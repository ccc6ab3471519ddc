"""The report on made frames: what is drawn, the headline, the files; that a profile is judged by
its own runs.
"""

import numpy as np
import pandas as pd
import pytest
from made import HUNDRED, cell, pair, stored
from test_claims import frame as al2_frame
from test_claims import study

from lib import run_dir
from lib.run import Run
from lib.study import campaign, claims, report, tables
from lib.study.experiments import VARIANTS, representations, sparsity_networks

ALL = dict.fromkeys(VARIANTS, 30.0)


def assembled(frame=None, runs=None):
    """A report of these runs, as `gather` puts it together."""
    frame = pd.DataFrame() if frame is None else frame
    names = ("sparsity_table2", "sparsity_table3")
    return report.Report(
        frame=frame,
        runs=runs or {},
        progress=pd.DataFrame(
            [["made", "mnist", 16, 16]],
            columns=["profile", "dataset", "runs finished", "runs stated"],
        ),
        tables={name: tables.beside_published(name, frame) for name in tables.AL2_TABLES}
        | {name: tables.sparsity_beside_published(name, frame) for name in names},
        claims=claims.judge(frame, ["made"]),
    )


def rows_of(headline):
    """The lines of the second table, of the targeted-sparsity paper, as lists of cells."""
    lines = [
        line for line in headline.split("targeted sparsity")[1].splitlines() if line.startswith("|")
    ]
    return [[value.strip() for value in line.strip("|").split("|")] for line in lines]


# ---- headline


def test_the_headline_gives_mean_spread_and_n_of_al2():
    text = report.headline(assembled(al2_frame(seeds=(0, 1, 2))))
    assert "27.0 ± 1.0 → 69.0 ± 1.0" in text
    assert "25.8 → 68.5" in text  # the published one
    assert f"| {3:<3} |" in text


def test_the_headline_says_how_many_seeds_there_are_and_once_what_was_not_run():
    made = al2_frame(seeds=(0, 1, 2))
    made = made[((made.seed == 0) | (made.baseline == "bare")) & (made.baseline != "dropout")]
    made = made[~((made.baseline == "weight_decay") & made.al2)]
    (line,) = [
        line for line in report.headline(assembled(made)).splitlines() if "measured, made" in line
    ]
    assert [value.strip() for value in line.strip("|").split("|")][2:] == [
        "1–3", "27.0 ± 1.0 → 69.0 ± 1.0", "26.0 → 81.0", "not run", "25.0 → not run",
    ]  # fmt: skip


def test_the_headline_of_no_runs_has_the_papers_rows_and_says_not_run():
    text = report.headline(assembled())
    assert "25.8 → 68.5" in text and text.count("not run") >= 10
    head, _, *rows = rows_of(text)
    assert head == ["", "data set", "size", "optimiser", "n", *VARIANTS]
    assert [row[:4] for row in rows[:3]] == [
        ["published", "cifar100", size, "sgd"] for size in ("s", "m", "xxl")
    ]
    assert rows[2][5:] == ["36.6", "42.0", "50.6", "53.2", "53.9", "54.2"]
    assert [row[:2] for row in rows[3:]] == [["measured", "not run"]] and rows[3][5:] == [
        "not run"
    ] * 6


def test_the_headline_reads_longer_trainings_whole_in_rows_of_their_own():
    long = cell({"vanillaNet": 31.0, "sr2Net": 36.0}, epochs=40, diverged={("sr2Net", 1): 39})
    short = cell({name: 30.0 for name in VARIANTS if name not in ("vanillaNet", "sr2Net")})
    _, _, *rows = rows_of(report.headline(assembled(pd.concat([long, short], ignore_index=True))))
    assert rows[3][0] == "measured, made, mean" and rows[3][5] == "31.0 ± 0.0"
    assert rows[4] == [
        "measured, made, mean, 40 epochs", HUNDRED, "s", "sgd", "3",
        "31.0 ± 0.0", "not run", "not run", "not run", "diverged", "not run",
    ]  # fmt: skip
    assert len(rows) == 5


def test_the_headline_has_a_row_a_cell_with_spread_words_for_diverged_and_what_was_not_run():
    few = {name: 30.0 for name in VARIANTS if name != "dropNet"}
    made = pd.concat(
        [
            cell(few, diverged={("sr1Net", 1): 4}),
            cell(ALL, optimizer="adam", seeds=[0]),
            cell(ALL, profile="other", seeds=[0]),
        ],
        ignore_index=True,
    )
    _, _, *rows = rows_of(report.headline(assembled(made)))
    measured = {tuple(row[:4]): row[4:] for row in rows[3:]}
    assert measured == {
        ("measured, made, mean", HUNDRED, "s", "sgd"): [
            "3",
            "30.0 ± 0.0",
            "not run",
            "30.0 ± 0.0",
            "diverged",
            *["30.0 ± 0.0"] * 2,
        ],
        ("measured, made, mean", HUNDRED, "s", "adam"): ["1", *["30.0"] * 6],
        ("measured, other, mean", HUNDRED, "s", "sgd"): ["1", *["30.0"] * 6],
    }  # fmt: skip


# ---- drawings


def test_drawings_are_named_by_profile_and_cell():
    made = pd.concat(
        [cell(ALL, seeds=[0]), cell(ALL, optimizer="adam", seeds=[0]), pair("lenet", 20.0, 21.0)]
    )
    made = made.reset_index(drop=True)
    marks = [f"made-{HUNDRED}-s-{optimizer}-mean" for optimizer in ("adam", "sgd")]
    assert set(report.drawings(assembled(made))) == {
        "al2_table1-made", "al2_table2-made",
        "sparsity_table2", "sparsity_table3", "sparsity_losses-made-mean",
        *(f"sparsity_entropy-{mark}" for mark in marks),
        *(f"sparsity_correlation-{mark}" for mark in marks),
        *(f"sparsity_histograms-{mark}" for mark in marks),
    }  # fmt: skip


def test_nothing_is_drawn_of_nothing_and_only_what_was_measured():
    assert report.drawings(assembled()) == {}
    assert not [
        name for name in report.drawings(assembled(al2_frame())) if name.startswith("sparsity")
    ]
    plain = [
        name
        for name in report.drawings(assembled(cell(ALL, measured=False)))
        if name.startswith("sparsity")
    ]
    assert plain == ["sparsity_table2", "sparsity_losses-made-mean"]
    alone = report.drawings(assembled(pair("alexnet", 20.0, 21.0)))
    assert [name for name in alone if name.startswith("sparsity")] == ["sparsity_table3"]


def test_a_cell_of_networks_without_a_histogram_has_none():
    """Half-way through a campaign only dropNet may be finished."""
    found = report.drawings(assembled(cell({"dropNet": 30.0})))
    assert not [name for name in found if name.startswith("sparsity_histograms")]
    assert [name for name in found if name.startswith("sparsity_correlation")]


def test_the_schedule_study_is_drawn_where_it_has_several_series_or_strengths():
    def names(made, notebooks="13_al2_schedules"):
        found = report.drawings(assembled(made.assign(notebooks=notebooks)))
        return sorted(
            name for name in found if name.startswith(("al2_schedules", "al2_weight_decay"))
        )

    both = ["al2_schedules-made-mnist", "al2_weight_decay-made-mnist"]
    assert names(study()) == names(study(), "12_al2_cca 13_al2_schedules") == both
    assert names(study(), "14_al2_relabel") == names(study(corruption=0.5)) == []
    assert names(study(weight_decays=[5e-4])) == both[:1]
    assert names(study(kinds=["al2"], shares=[1.0])) == both[1:]
    assert names(pd.concat([study(), study().assign(profile="other", dataset="digits")])) == [
        f"al2_{kind}-{cell}"
        for kind in ("schedules", "weight_decay")
        for cell in ("made-mnist", "other-digits")
    ]
    found = report.drawings(assembled(study().assign(notebooks="13_al2_schedules")))
    assert [len(found[name]().axes) for name in both] == [6, 5]


def followed(seeds=(0, 1), **settings):
    """Runs with canonical correlations, and their frame as `gather` makes it."""
    runs = representations("mnist", seeds=seeds, epochs=20, **settings)
    measured = {
        "test_accuracy": 30.0,
        "cross_entropy": 2.0,
        "activation_l2": 0.1,
        "ablation_auc": 20.0,
        "mean_cca init": 0.5,
    }
    frame = pd.concat([stored(run, **measured) for run in runs], ignore_index=True)
    return {run.id: run for run in runs}, frame.assign(
        num_classes=10, precision="float32", notebooks="10_al2_label_randomization 12_al2_cca"
    )


def test_figure_1_is_drawn_of_each_dropout_a_row_a_seed(monkeypatch):
    runs, frame = followed()
    asked = []
    sequences = {"cca epochs init": np.array([10, 20]), "cca init": np.ones((2, 50))}
    monkeypatch.setattr(report.store, "arrays", lambda run: sequences | {"run": run})
    monkeypatch.setattr(
        report.figures,
        "canonical_correlations",
        lambda panels, title: asked.append((panels, title)),
    )
    found = report._cca_drawings(assembled(frame, runs))
    sequences_of = ["al2_cca-made-mnist-0", "al2_cca-made-mnist-0.5"]
    assert sorted(found) == [
        *sequences_of,
        *(name.replace("cca", "cca_differences") for name in sequences_of),
    ]
    for name in sequences_of:
        found[name]()
    for (panels, title), dropout in zip(asked, ("dropout 0", "dropout 0.5"), strict=True):
        assert f"mnist, 75 % of the labels corrupted, {dropout}, profile made" == title
        assert {name: list(row) for name, row in panels.items()} == {
            "seed 0": [False, True],
            "seed 1": [False, True],
        }


def test_figure_1_is_drawn_of_notebook_12_s_runs_with_correlations_alone():
    runs, frame = followed(dropouts=[0.5])
    assert not report._cca_drawings(
        assembled(frame.assign(notebooks="10_al2_label_randomization"), runs)
    )
    assert not report._cca_drawings(assembled(frame.assign(**{"mean_cca init": np.nan}), runs))
    assert not report._cca_drawings(assembled(al2_frame()))
    half = frame[~(frame.al2 & (frame.seed == 1))]
    for without_control in (half, frame[~frame.al2]):
        assert list(report._cca_drawings(assembled(without_control, runs))) == [
            "al2_cca-made-mnist-0.5"
        ]


# ---- files


def finished(runs, tmp_path, profile="lite"):
    """Stored runs with made curves and histograms."""
    for run in runs:
        made = cell({run.variant: 30.0}, dataset=run.dataset, seeds=[run.seed], epochs=run.epochs)
        metrics = made[list(made)[list(made).index("epoch") :]]
        arrays = {
            f"correlations {layer}": np.ones((run.epochs + 1, 200), np.int32)
            for layer in ("conv1", "conv4", "fc1")
        }
        folder = tmp_path / "results" / profile / run.dataset / run.name
        run_dir.finish(folder, run, metrics, arrays, {"num_classes": 10})


class Planned:
    """An entry that states these runs."""

    def __init__(self, runs, notebook="21_sparsity_networks"):
        self.runs = lambda: runs
        self.notebook = notebook


def test_gather_reads_the_finished_of_the_stated_runs_and_write_writes_them_whole(
    tmp_path, monkeypatch
):
    stated = sparsity_networks("digits", networks=["vanillaNet", "dropNet", "sr3Net"], epochs=4)
    monkeypatch.setattr(
        campaign, "plan", lambda profile: [Planned(stated if profile == "lite" else stated[2:])]
    )
    finished(stated[:2], tmp_path)
    # stated by nobody
    finished(
        [Run("digits", network="convnet_s", corruption=0.0, epochs=4, seed=7, n_measure=5)],
        tmp_path,
    )
    found = report.gather(["lite", "other"])
    assert found.progress.to_numpy().tolist() == [
        ["lite", "digits", 2, 3],
        ["other", "digits", 0, 1],
    ]
    assert set(found.runs) == {run.id for run in stated[:2]}
    assert found.frame.groupby("profile").id.nunique().to_dict() == {"lite": 2}
    out = tmp_path / "report"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "old.png").write_text("")
    report.write(found, out)
    figures = {"al2_table1-lite", "al2_table2-lite", "sparsity_losses-lite", "sparsity_table2"}
    figures |= {
        f"sparsity_{kind}-lite-digits-s-sgd" for kind in ("entropy", "correlation", "histograms")
    }
    names = {*tables.AL2_TABLES, "sparsity_table2", "sparsity_table3", "sparsity_overfitting"}
    assert {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()} == (
        {"claims.csv", "headline.md", "report.md"}
        | {f"figures/{name}.png" for name in figures}
        | {f"tables/{name}.csv" for name in names}
        | {f"claims/{claim}.md" for claim in claims.STATEMENTS}
    )
    text = (out / "report.md").read_text()
    assert all(f"](figures/{name}.png)" in text for name in figures) and all(
        f"](tables/{n}.csv)" in text for n in names
    )
    table = pd.read_csv(out / "tables" / "sparsity_table2.csv")
    assert len(table) == 36 + 2 and table.measured.notna().sum() == 2


def test_the_report_is_the_same_whichever_data_sets_lie_here(tmp_path, monkeypatch):
    stated = [Run(name, epochs=4) for name in ("digits", "fashion_mnist", "my_pictures")]
    monkeypatch.setattr(campaign, "plan", lambda profile: [Planned(stated)])
    written = []
    for name in ("without", "with"):
        monkeypatch.setenv("DATA_DIR", str(tmp_path / name))
        (tmp_path / "with" / "my_pictures" / "train").mkdir(parents=True, exist_ok=True)
        report.write(report.gather(["lite"]), tmp_path / f"report {name}")
        files = sorted((tmp_path / f"report {name}").rglob("*.*"))
        written.append([(file.name, file.read_bytes()) for file in files])
    assert written[0] == written[1]
    assert "| my_pictures" in (tmp_path / "report with" / "report.md").read_text()


def test_figure_1_of_stored_runs_is_written(tmp_path, monkeypatch):
    runs, frame = followed(seeds=[0], dropouts=[0.5])
    folder = tmp_path / "results" / "lite" / "mnist"
    k = list(frame).index("epoch")
    for run in runs.values():
        arrays = {
            "cca epochs init": np.array([10, 20]),
            "cca init": np.linspace([1.0] * 2, [0.1] * 2, 50).T,
        }
        metrics = frame[frame.id == run.id].iloc[:, k:].drop(columns="notebooks")
        run_dir.finish(folder / run.name, run, metrics, arrays, {"num_classes": 10})
    monkeypatch.setattr(
        campaign, "plan", lambda profile: [Planned(list(runs.values()), "12_al2_cca")]
    )
    report.write(report.gather(["lite"]), tmp_path / "report")
    assert (tmp_path / "report" / "figures" / "al2_cca-lite-mnist-0.5.png").stat().st_size > 10_000
    assert (
        "](figures/al2_cca-lite-mnist-0.5.png)" in (tmp_path / "report" / "report.md").read_text()
    )


def test_gather_without_any_run_reports_that():
    found = report.gather(["lite"])
    assert found.frame.empty and not found.runs and (found.progress["runs finished"] == 0).all()
    assert found.claims.verdict.str.startswith("not run").all() and report.drawings(found) == {}


def test_a_report_of_al2_alone_is_written_whole_and_its_old_figures_go(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").write_text("")
    report.write(assembled(al2_frame()), tmp_path)
    written = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()}
    assert written == {
        "claims.csv", "headline.md", "report.md", "tables/al2_table1.csv", "tables/al2_table2.csv",
        "tables/sparsity_table2.csv", "tables/sparsity_table3.csv",
        "figures/al2_curves-made-mnist-75.png",
        "figures/al2_table1-made.png", "figures/al2_table2-made.png",
    } | {f"claims/{claim}.md" for claim in claims.STATEMENTS}  # fmt: skip
    assert pd.read_csv(tmp_path / "claims.csv").claim.nunique() == 20
    table = pd.read_csv(tmp_path / "tables" / "al2_table1.csv")
    assert len(table) == 168
    assert table.published.notna().all()
    assert (table.n == 2).all()


def test_quoting_needs_the_marks(tmp_path):
    (tmp_path / "headline.md").write_text("new\n")
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{report.README_BEGIN}\nold\n{report.README_END}\nb\n")
    report.quote_in_readme(tmp_path, readme)
    assert readme.read_text() == f"a\n{report.README_BEGIN}\nnew\n{report.README_END}\nb\n"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        report.quote_in_readme(tmp_path, readme)
