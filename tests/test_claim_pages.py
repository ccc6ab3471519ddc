"""The pages of the claims: complete, from what was judged, with links that lead somewhere."""

import re
from functools import partial

import numpy as np
import pytest
from made import ALL_CLAIMS, by_experiment, cell, together, unfinished
from test_claims import frame as al2_frame
from test_report import assembled

from lib import paths, store
from lib.study import claims, evidence, report
from lib.study.claims import pages as claim_pages
from lib.study.experiments import VARIANTS

DRAWN = ["al2_curves-made-mnist-75", "al2_curves-made-mnist-50"]
DRAWN += ["al2_table1-made", "sparsity_table2"]


def page(claim, frame):
    tables = dict.fromkeys(["al2_table1", "sparsity_table2"], "A table.")
    figures = dict.fromkeys(DRAWN, "A figure.")
    frames = by_experiment(frame)
    cells = claims.cells(frames, ["made"], [claim])
    return claim_pages.page(claim, claims.verdicts_of(cells), cells, frames, figures, tables)


def deviations(claim, frame):
    return claim_pages.deviations(claim, by_experiment(frame))


def rows_of(text):
    """The texts of a Markdown table's rows, without its head."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[value.strip() for value in row] for row in rows[2:]]


def test_every_claim_of_the_protocol_says_what_it_is_and_where_it_stands():
    assert list(claims.TEXTS) == list(ALL_CLAIMS)
    for said in claims.TEXTS.values():
        assert said.keys() == {"statement", "source", "unclear", "changes", "figures", "tables"}
        assert all(re.match(r"2026-\d\d-\d\d: .*\.$", text) for text in said["changes"])
        assert re.match("AL2|TS|this study", said["source"])
        assert all(text.endswith(".") for text in said["unclear"])
        # nothing of it is printed in a paper
        ours = {"al2_options", "al2_norm_scale", "al2_ratios", "al2_calibration"}
        ours |= {"al2_precision", "sparsity_overfitting"}
        assert all((paths.PUBLISHED / f"{name}.csv").exists() for name in {*said["tables"]} - ours)


def test_a_page_gives_statement_source_verdict_rule_and_its_own_figures():
    text = page("A1", al2_frame())
    said = claims.TEXTS["A1"]
    for part in (said["statement"], said["source"], said["changes"][0], claims.RULE):
        assert part in text
    assert claims.CLAIMS["A1"].text in text
    rows = rows_of(text)
    assert rows[0] == ["made", "mnist", "4 holds", "3", "10,000", "holds"]
    bare = ["Bare", "gain", "3", "+42.00", "[+42.00, +42.00]", "+42.62", "holds"]
    assert ["made", "mnist", *bare] in rows
    assert re.findall(r"!\[(.*?)\]", text) == ["al2_curves-made-mnist-75", "al2_table1-made"]
    assert re.findall(r"tables/(\w+)", text) == ["al2_table1"]  # not one that was not written
    assert "*A figure.* (`al2_table1-made`)" in text and "tables/al2_table1.csv): A table." in text
    assert "make experiment NAME=label_randomization PROFILE=made" in text


def test_cells_that_were_not_run_are_counted_and_not_listed():
    made = al2_frame()
    text = page("A1", unfinished(made, made.baseline.eq("dropout")))
    assert "3 holds, 1 not run" in text and "| DO " not in text


def test_deviations_are_the_settings_in_which_the_runs_differ_from_the_paper():
    frame = al2_frame(n_train=2000, learning_rate=0.005, image_size=20)
    assert rows_of(deviations("A1", frame)) == [
        ["training images", "all", "2000"],
        ["epochs", "700", "70"],
        ["learning rate", "0.001", "0.005"],
        ["epochs of the λ series an epoch", "1", "10"],
        ["image size (pixels)", "the set's own", "20"],
    ]


def test_weight_decay_is_that_of_the_runs_which_have_any_and_images_held_out_are_told():
    decays = {"weight_decay": np.where(al2_frame().baseline == "weight_decay", 1.68e-3, 0.0)}
    rows = rows_of(deviations("A1", al2_frame(n_validation=1000).assign(**decays)))
    assert ["weight decay, where there is any", "0.0005", "0.00168"] in rows
    assert ["images held out", "0", "1000"] in rows


def test_figure_1_of_the_paper_is_of_750_epochs():
    made = al2_frame()
    assert ["epochs", "750", "70"] in rows_of(deviations("A6", made))
    long = rows_of(deviations("A6", made.assign(epochs=750)))
    assert "epochs" not in [setting for setting, *_ in long]


def test_runs_as_the_paper_s_deviate_in_nothing():
    frame = cell(dict.fromkeys(VARIANTS, 30.0), epochs=100)
    assert deviations("S2", frame) == "In no setting of the training."


def test_adam_deviates_where_the_claim_is_about_sgd_only_if_it_is_judged_by_it():
    of = partial(cell, dict.fromkeys(VARIANTS, 30.0), epochs=100)
    frame = together(of(optimizer="sgd"), of(optimizer="adam"))
    assert "adam" not in deviations("S2", frame)
    assert "0.001" in deviations("S8", frame) and "0.001" in deviations("S5", frame)


@pytest.mark.parametrize("claim", ["A6", "S4"])
def test_a_claim_without_runs_says_so(claim):
    text = page(claim, store.load([]))
    assert claim_pages.UNSTATED in text and "No run of it is stored." in text
    assert "None was run." in text and "PROFILE=paper" in text


def test_links_of_a_written_report_lead_somewhere():
    report.write(assembled(al2_frame()))
    folder = evidence.folder()
    pages = [folder / "report.md", *(folder / "claims").glob("*.md")]
    assert len(pages) == 1 + len(ALL_CLAIMS)
    for written in pages:
        targets = re.findall(r"\]\(([^)]+)\)", written.read_text())
        assert targets and not [t for t in targets if not (written.parent / t).exists()]
