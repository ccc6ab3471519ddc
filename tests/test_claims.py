"""The rules that judge the papers' claims, on made frames."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from lib import claims, tables, verdicts
from lib.studies import label_randomization

BEST = {"bare": 26.0, "batchnorm": 26.0, "dropout": 55.0, "weight_decay": 25.0}
GAIN = {"bare": 42.0, "batchnorm": 55.0, "dropout": 36.0, "weight_decay": 61.0}


def frame(seeds=(0, 1), gain=GAIN, profile="made", dataset="mnist", corruption=0.75, entropy=(0.01, 2.15), **settings):
    """A tidy frame of the eight networks, 70 epochs, with accuracies as in the paper's last column."""
    rows = []
    for run in label_randomization(dataset, seeds=seeds, epochs=70, corruption=corruption, speed=10, **settings):
        described = {
            "profile": profile,
            **run.described(),
            "diverged": np.nan,
            "num_classes": 10,
        }
        final = BEST[run.baseline] + run.al2 * gain[run.baseline] + run.seed
        size = {"bare": 119.0, "batchnorm": 11.5, "dropout": 1.92, "weight_decay": 107.8}[run.baseline]
        for epoch in range(10, 71, 10):
            measured = {
                "epoch": epoch,
                "test_accuracy": final,
                "ablation_auc": final / 2,
                "activation_l2": size / 1000**run.al2,
            }
            rows.append(described | measured | {"cross_entropy": entropy[run.al2]})
    return pd.DataFrame(rows)


def verdicts_of(made, **only):
    judged = claims.judge(made, ["made"])
    return dict(zip(judged.claim, judged.verdict, strict=True))


@pytest.mark.parametrize(
    ("differences", "holds"),
    [
        ([3.0, 2.0, 4.0], True),
        ([3.0, -3.0, 4.0], False),
        ([0.1, 0.1, 0.1001], True),
        ([1.0, 9.0], True),
        ([0.9, 9.0], False),
        ([-2.0, 5.0], False),
        ([50.0], None),
    ],
)
def test_a_cell_holds_by_the_protocol_s_rule(differences, holds):
    assert verdicts.cell_holds(differences) is holds


def test_a_mean_of_exactly_two_standard_errors_does_not_hold():
    d = np.array([1.0, 2.0, 3.0])
    shifted = d - d.mean() + 2 * d.std(ddof=1) / np.sqrt(3)
    assert verdicts.cell_holds(shifted - 1e-9) is False
    assert verdicts.cell_holds(shifted + 1e-6) is True


@pytest.mark.parametrize(
    ("signs", "wanted"),
    [
        ([1, 1, 1, 1], "holds"),
        ([1, 1, -1, -1], "holds in part"),
        ([1, -1, -1, -1], "does not hold"),
        ([-1, -1, -1, -1], "does not hold"),
    ],
)
def test_all_cells_half_of_them_or_fewer(signs, wanted):
    assert verdicts.verdict({str(k): [5.0 * s, 6.0 * s] for k, s in enumerate(signs)}, 4) == wanted


def test_one_seed_can_only_indicate():
    assert verdicts.verdict({"a": [50.0], "b": [-1.0]}, 2).startswith("indicative: 1 of 2")


def test_a_claim_about_cells_that_were_not_run_is_not_judged():
    assert verdicts.verdict({}, 4) == "not run: 0 of 4 cells have finished runs"
    assert verdicts.verdict({"a": [5.0, 6.0], "b": []}, 2) == "not run: 1 of 2 cells have finished runs"
    bare = frame()
    found = verdicts_of(bare[bare.baseline == "bare"])
    assert found["A1"] == "not run: 1 of 4 cells have finished runs"
    assert found["A4"].startswith("not run: 2 of 7")


def test_a_network_at_chance_does_not_bear_out_a4():
    found = frame(gain=dict(zip(BEST, (-16.0, -16.0, -45.0, -15.0), strict=True)))
    assert verdicts_of(found)["A4"] == "does not hold"
    assert "near chance" in claims.judge(found, ["made"]).set_index("claim").loc["A4"].measured


def test_the_area_agrees_where_it_moves_with_the_accuracy():
    assert verdicts_of(frame(gain=GAIN | {"dropout": 2.4}))["A5"] == "holds"
    assert verdicts_of(frame())["A5"] == "holds in part"  # no pair of similar accuracy
    assert verdicts_of(frame(gain=GAIN | {"dropout": -20.0}))["A5"] == "holds in part"  # both fall: they agree
    opposed = frame()
    opposed.loc[opposed.al2, "ablation_auc"] = 1.0
    assert verdicts_of(opposed)["A5"] == "does not hold"


def test_early_stopping_takes_the_best_epoch_on_noisy_labels():
    made = frame(seeds=[0])
    made = made[(made.baseline == "bare") & ~made.al2].assign(
        test_accuracy=[10.0, 60.0, 80.0, 70.0, 40.0, 30.0, 20.0], validation_accuracy=[5.0, 9.0, 8.0, 9.0, 3.0, 2.0, 1.0]
    )
    (row,) = tables.stopping(made).itertuples()
    assert (row.final, row.best, row.best_epoch, row.stopped, row.stopped_epoch) == (20.0, 80.0, 30, 60.0, 20)
    assert tables.stopping(made.drop(columns="validation_accuracy")).stopped.isna().all()


def test_the_paper_s_own_numbers_bear_out_its_claims():
    found = verdicts_of(frame())
    assert {claim: found[claim] for claim in ("A1", "A2", "A3", "A4")} == dict.fromkeys(("A1", "A2", "A3", "A4"), "holds")


def test_a_gain_that_is_a_loss_is_reported_as_such():
    assert verdicts_of(frame(gain=dict.fromkeys(GAIN, -10.0)))["A1"] == "does not hold"
    assert verdicts_of(frame(gain=GAIN | {"dropout": -10.0}))["A1"] == "holds in part"


def test_memorising_with_al2_refutes_a4():
    assert verdicts_of(frame(entropy=(0.5, 2.15)))["A4"] == "holds in part"  # four of seven parts
    assert verdicts_of(frame(entropy=(0.01, 2.0)))["A4"] == "does not hold"  # three


def test_every_claim_has_a_row_a_profile_and_says_why_it_was_not_run():
    judged = claims.judge(pd.DataFrame(), ["lite", "paper"])
    assert list(judged.columns) == claims.COLUMNS
    assert len(judged) == 2 * 20
    assert judged.verdict.str.startswith("not run: ").all()
    assert set(judged.claim) == {f"A{k}" for k in range(1, 11)} | {f"S{k}" for k in range(1, 11)}


def test_published_numbers_stand_beside_mnist_only():
    both = pd.concat([frame(), frame(dataset="fashion_mnist")])
    judged = claims.judge(both, ["made"]).set_index(["claim", "dataset"])
    assert "25.84 → 68.46" in judged.loc[("A1", "mnist"), "published"]
    assert judged.loc[("A1", "fashion_mnist"), "published"] == ""
    assert ("A8", "fashion_mnist") in judged.index
    assert ("A8", "mnist") not in judged.index


def test_a8_takes_every_level_but_the_one_of_a1():
    both = pd.concat([frame(), frame(corruption=0.25), frame(corruption=0.5, gain=dict.fromkeys(GAIN, -9.0))])
    judged = claims.judge(both, ["made"]).set_index(["claim", "dataset"])
    assert judged.loc[("A8", "mnist"), "verdict"] == "holds in part"
    assert "25 %: Bare +42.0" in judged.loc[("A8", "mnist"), "measured"]


def test_other_schedules_do_not_enter_the_claims_of_table_1():
    other = frame(gain=dict.fromkeys(GAIN, -50.0), schedule="geometric")
    assert verdicts_of(pd.concat([frame(), other[other.al2]]))["A1"] == "holds"


def test_a_diverged_run_is_named_in_words():
    made = frame()
    made = made[~((made.baseline == "bare") & made.al2 & (made.epoch > 30))]
    made.loc[(made.baseline == "bare") & made.al2, "diverged"] = 40.0
    row = claims.judge(made, ["made"]).set_index("claim").loc["A1"]
    assert "diverged" in row.measured
    assert row.verdict == "holds in part"  # three of four: a run without a number does not make its cell hold


def test_a_cell_whose_runs_all_diverged_does_not_hold_because_of_the_others():
    made = frame(seeds=(0, 1, 2))
    bad = (made.baseline == "bare") & (made.seed == 0)  # without AL2 and with it: the difference is of no use
    made = made[~(bad & (made.epoch > 30))].assign(diverged=lambda rows: np.where(bad.loc[rows.index], 40.0, np.nan))
    assert verdicts_of(frame(seeds=(0, 1, 2)))["A1"] == "holds"
    assert verdicts_of(made)["A1"] == "holds in part"


def test_rules_are_stated_for_every_judged_claim():
    judged = claims.judge(frame(), ["made"])
    assert (judged[judged.n > 0].rule != "").all()
    assert {f.name for f in dataclasses.fields(verdicts.Judged)} == {"published", "measured", "n", "rule", "verdict"}
