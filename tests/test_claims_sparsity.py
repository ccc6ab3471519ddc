"""The rules that judge S1–S10, on made frames: as the paper has it, refuted, dead, not run."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from made import (
    DEEP,
    LAYERS,
    cell,
    cells,
    cliff,
    judge,
    kept,
    pair,
    paper,
    rising,
    states,
    stop,
    together,
    unfinished,
)

from lib import run_dir, store
from lib.study import tables
from lib.study.claims import verdicts
from lib.study.experiments import VARIANTS, sparsity_networks


def each(*values):
    return dict(zip(VARIANTS, values, strict=True))


# Table 2, cifar-100
S = each(34.9, 25.1, 36.3, 26.6, 34.6, 37.8)
M = each(36.0, 47.1, 43.0, 49.2, 50.2, 52.2)
XXL = each(36.6, 42.0, 50.6, 53.3, 53.9, 54.2)
ADAM = each(38.4, 45.1, 52.9, 39.6, 40.3, 40.8)
IN_ADAM = {
    "vanillaNet": dict.fromkeys(DEEP, lambda e: cliff(e, at=1.5)),
    "dropNet": dict.fromkeys(DEEP, 0.5),
    "normNet": dict.fromkeys(DEEP, 0.5),
    "sr3Net": {f"correlation {layer}": 0.4 for layer in DEEP},
}


def adam(accuracies=ADAM, over=None, **options):
    return cell(accuracies, optimizer="adam", over=IN_ADAM | (over or {}), **options)


def sizes(s=S, m=M, xxl=XXL, **options):
    of_size = {"s": s, "m": m, "xxl": xxl}.items()
    return together(*(cell(values, size=size, **options) for size, values in of_size))


def of_s6(s=S, lenet=(29.8, 30.3), **options):
    return together(cell(s, **options), pair("lenet", *lenet, **options))


def verdict(claim, made):
    return judge(made, only=[claim]).set_index("dataset").verdict["cifar100"]


@lru_cache
def whole(claim, seeds=(0, 1, 2)):
    """Runs as the paper has them."""
    if claim in ("S4", "S10"):
        return sizes(seeds=seeds)
    if claim == "S6":
        return of_s6(seeds=seeds)
    if claim == "S7":
        return pair("alexnet", 38.4, 46.8, seeds=seeds)
    plain = cell(S, seeds=seeds)
    return together(plain, adam(seeds=seeds)) if claim == "S8" else plain


CLAIMS = [f"S{k}" for k in range(1, 11)]


@pytest.mark.parametrize("claim", CLAIMS)
def test_networks_that_behave_as_the_paper_says_bear_out_its_claims(claim):
    assert verdict(claim, whole(claim)) == "holds"
    one = verdict(claim, whole(claim, seeds=(0,)))
    assert one.startswith("indicative: ") and one.endswith(" as claimed, one seed")


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_is_stated_and_not_finished_is_not_run(claim):
    made = whole(claim)
    none = unfinished(made, made.seed >= 0)
    assert verdict(claim, none) == "not run: no seed is finished"
    assert judge(made, profiles=["other"], only=[claim]).empty


def test_a_data_set_that_was_not_to_be_had_is_named_until_one_of_its_runs_is_finished():
    made = whole("S9").assign(dataset="tiny_imagenet")
    (said,) = judge(unfinished(made, made.seed >= 0), only=["S9"]).verdict
    assert said == "not run: data set not reachable"
    (said,) = judge(unfinished(made, made.seed > 0), only=["S9"]).verdict
    assert said.startswith("indicative: ")


@pytest.mark.parametrize("claim", ["S1", "S2", "S3", "S9"])  # every cell is about vanillaNet
@pytest.mark.parametrize("at", [1, 3])
def test_a_network_that_diverged_or_is_dead_in_one_seed_silences_its_cells(claim, at):
    made = whole(claim)
    hit = made.variant.eq("vanillaNet") & made.seed.eq(1)
    assert verdict(claim, stop(made, hit, at)) == "nothing"
    assert verdict(claim, made.assign(test_accuracy=made.test_accuracy.mask(hit, 2.0))) == "nothing"


def curves(network, **columns):
    return {"over": {network: columns}}


# falls in the window, but no faster than in every other one
STEADY = {layer: lambda e: 0.9 - 0.02 * e for layer in LAYERS}
CONV2 = {"conv2": lambda e: cliff(e, depth=0.8)}


@pytest.mark.parametrize(
    ("claim", "changed", "wanted"),
    [
        ("S1", curves("vanillaNet", **STEADY), "does not hold"),
        ("S1", curves("vanillaNet", **CONV2), "holds in part"),  # an earlier layer falls most
        ("S1", curves("vanillaNet", fc1=0.9, conv4=0.9, conv3=0.9), "does not hold"),
        ("S1", curves("vanillaNet", loss=kept), "nothing"),  # no moment of overfitting
        ("S2", curves("normNet", fc1=0.1), "holds in part"),  # one layer, not a mean over all
        ("S2", curves("vanillaNet", **dict.fromkeys(LAYERS, 0.99)), "does not hold"),
        ("S3", curves("sr2Net", loss=rising), "holds in part"),
        ("S3", curves("vanillaNet", loss=kept), "nothing"),  # nobody overfits by then
        ("S9", curves("sr1Net", **{"correlation conv4": 0.21}), "holds"),
        ("S9", curves("sr1Net", **{"correlation conv4": 0.23}), "holds in part"),
    ],
)
def test_claims_about_curves(claim, changed, wanted):
    assert verdict(claim, cell(S, **changed)) == wanted


def test_a_network_and_seed_at_two_lengths_is_one_run_the_longer():
    parts = [cell({"vanillaNet": 30.0}, seeds=[0], epochs=epochs) for epochs in (20, 40)]
    rows = tables.sparsity_runs(together(*parts))
    found = verdicts.by_seed(lambda run: len(run), rows)
    assert found.values.to_dict() == {0: 40}
    (best,) = tables.best_accuracies(rows).itertuples()
    assert best.id == parts[1].id[0] and best.epochs_read == 20


def test_s1_window_is_shifted_inside_the_run():
    """The moment is epoch 19 of 20: the window is 16 to 20, and not shorter."""

    def late(epoch):
        return 1 + np.abs(epoch - 19) / 10 + np.where(epoch == 20, 3.0, 0.0)

    falls = {layer: lambda e: np.where(e > 16, 0.2, 0.9) for layer in DEEP}
    made = cell(S, over={"vanillaNet": {"loss": late} | falls})
    assert set(states(made, "S1").values()) == {"holds"}


@pytest.mark.parametrize("longer", [["vanillaNet", "sr2Net"], ["sr2Net"]])
def test_s3_reads_all_epochs_trained_and_judges_dropnet_at_s_and_m(longer):
    def later(epoch):
        return np.where(epoch <= 100, kept(epoch), 2.0)

    long = {"epochs": 100, "long_networks": longer, "long_epochs": 120}
    made = cell(S, over={"sr2Net": {"loss": later}}, **long)
    found = states(made, "S3")
    assert found["rise of sr2Net-s's loss (%)"] == "fails"
    assert found["rise of dropNet-s's loss (%)"] == "holds"
    assert found["rise of normNet-s's loss (%)"] == "shown"


def test_accuracies_are_compared_at_the_best_of_the_100_epochs_that_are_read():
    made = cell(S, epochs=120)
    made.loc[made.variant.eq("sr2Net") & (made.epoch == 100), "test_accuracy"] = 5.0
    made.loc[made.variant.eq("sr1Net") & (made.epoch == 110), "test_accuracy"] = 90.0
    assert states(made, "S5")["sr2Net − sr1Net, s"] == "holds"


def test_s2_and_s9_read_the_last_of_the_100_epochs_and_s2_has_no_margin():
    made = cell(S, epochs=120)
    last = made.epoch == 100
    made.loc[made.variant.eq("dropNet") & last, "entropy conv1"] = 0.1
    made.loc[made.variant.eq("sr1Net") & last, "correlation conv1"] = 0.5
    vanilla = made[made.variant.eq("vanillaNet")]
    near = vanilla["entropy conv2"] + 0.01 * np.log(16) * (vanilla.seed - 1)  # by up to 1 %
    made.loc[made.variant.eq("dropNet"), "entropy conv2"] = near.to_numpy()
    found = states(made, "S2")
    assert found["dropNet-s, conv1"] == "fails" and found["dropNet-s, conv2"] == "undecided"
    assert states(made, "S9")["sr1Net-s, conv1"] == "fails"


@pytest.mark.parametrize(("rise", "wanted"), [(0.019, "holds"), (0.021, "fails")])
def test_s3_allows_2_percent(rise, wanted):
    over = {"sr2Net": {"loss": lambda epoch: 1 + rise * (epoch > 10)}}
    found = states(cell(S, epochs=40, over=over), "S3")
    assert found["rise of sr2Net-s's loss (%)"] == wanted


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [({46: 0.1, 75: 0.15}, "holds"), ({15: 0.15, 30: 0.15, 46: 0.1, 75: 0.15}, "fails")],
)
def test_s1_s_window_is_a_twentieth_to_either_side_and_unusual_above_three_quarters(steps, wanted):
    def falling(epoch):
        return 0.9 - sum(by * (epoch > at) for at, by in steps.items())

    own = {"loss": lambda epoch: 1 + (epoch - 50) ** 2 / 1000} | dict.fromkeys(DEEP, falling)
    made = cell(S, epochs=100, over={"vanillaNet": own})
    assert states(made, "S1")["layers that fall unusually fast, s"] == wanted


def test_s8_reads_entropies_after_5_epochs():
    lower_at_5, higher_else = (
        dict.fromkeys(LAYERS, lambda epoch, at=at, else_=else_: np.where(epoch == 5, at, else_))
        for at, else_ in ((0.4, 0.9), (0.5, 0.1))
    )
    plain = cell(S, over={"normNet": higher_else})
    found = states(together(plain, adam(over={"normNet": lower_at_5})), "S8")
    assert found["layers in which normNet-s has lower entropy after 5 epochs"] == "holds"


def test_s8_says_nothing_of_entropies_after_5_epochs_of_a_shorter_training():
    found = states(together(cell(S, epochs=4), adam(epochs=4)), "S8")
    after = {name: state for name, state in found.items() if "after 5 epochs" in name}
    assert len(after) == 3 and set(after.values()) == {"nothing"}
    assert found["sr1Net − vanillaNet, s, Adam"] == "holds"


LOSES = S | {"sr3Net": 33.0}


@pytest.mark.parametrize(
    ("claim", "made", "wanted"),
    [
        ("S4", sizes(m=M | {"vanillaNet": 45.0}), {"vanillaNet, m − s": "fails"}),
        ("S4", sizes(xxl=XXL | {"dropNet": 50.0}), {"dropNet, m − xxl": "fails"}),
        ("S4", sizes(m=M | {"sr1Net": 26.7}), {"sr1Net, m − s": "holds"}),
        ("S5", cell(S | {"sr2Net": 24.7}), {"sr2Net − sr1Net, s": "holds"}),  # not lower by 2
        ("S5", cell(S | {"sr2Net": 24.5}), {"sr2Net − sr1Net, s": "fails"}),
        ("S5", cell(LOSES), {"sr3Net − best other, s": "fails"}),
        ("S6", of_s6(S | {"sr1Net": 40.0}), {"sr1Net − vanillaNet, s": "fails"}),
        ("S6", of_s6(LOSES), {"sr3Net − vanillaNet, s": "fails"}),
        ("S6", of_s6(lenet=(30.0, 33.0)), {"LeNet": "fails"}),
        ("S6", of_s6(lenet=(30.0, 20.0)), {"LeNet": "holds"}),  # a loss is no gain
        ("S7", pair("alexnet", 40.0, 30.0), {"AlexNet": "fails"}),
        ("S8", adam(ADAM | {"sr1Net": 50.0}), {"dropNet − sr1Net, s, Adam": "fails"}),
        ("S10", sizes(xxl=XXL | {"normNet": 54.0}), {"sr2Net − normNet, xxl": "fails"}),
    ],
)
def test_claims_about_accuracies(claim, made, wanted):
    found = states(made, claim)
    assert {name: found[name] for name in wanted} == wanted


def test_s8_compares_entropies_of_both_optimisers_and_correlations_with_adam():
    same = adam(over={"vanillaNet": {}, "sr3Net": {}})
    found = states(together(cell(S), same), "S8")
    assert found["layers in which dropNet-s has lower entropy after 5 epochs"] == "holds"
    assert found["layers in which vanillaNet-s has lower entropy after 5 epochs"] == "fails"
    assert found["rms correlation in conv4, sr3Net − normNet, s"] == "fails"  # within ± .02
    assert found["rms correlation in conv1, normNet − sr3Net, s"] == "holds"


PRINTED = {
    "S4": {"vanillaNet, m − s": "holds", "vanillaNet, xxl − m": "holds"},
    "S5": {"sr2Net − sr1Net, xxl, Adam": "holds", "sr3Net − best other, m": "holds"},
    "S6": {"sr3Net − vanillaNet, s": "holds", "LeNet": "holds"},
    "S8": {"sr1Net − vanillaNet, xxl, Adam": "holds", "normNet − sr3Net, xxl, Adam": "holds"},
}


@pytest.mark.parametrize("claim", PRINTED)
def test_the_paper_s_own_numbers_are_judged_as_they_stand(claim):
    found = cells(paper(), claim)
    found = found[found.dataset == "cifar100"]
    wanted = PRINTED[claim]
    assert found.state[list(wanted)].to_dict() == wanted
    accuracies = found[found.printed.notna()]
    assert accuracies["mean"].tolist() == pytest.approx(accuracies.printed.tolist(), abs=0.02)


def test_s7_has_a_verdict_over_all_sets_too():
    made = together(pair("alexnet", 38.4, 46.8), pair("alexnet", 69.9, 60.0, dataset="cifar10"))
    found = judge(made, only=["S7"]).set_index("dataset").verdict.to_dict()
    assert found.pop("all sets") == "holds in part"
    assert found == {"cifar10": "does not hold", "cifar100": "holds"}


def test_a_claim_about_sparsityreg_is_judged_for_each_of_its_readings():
    made = cell(S, sparsity_batches=["mean", "sum"])
    worse = made.assign(test_accuracy=made.test_accuracy.mask(made.sparsity_batch.eq("sum"), 1.0))
    found = judge(worse, only=["S3"]).set_index("reading").verdict
    assert found.to_dict() == {"mean": "holds", "sum": "nothing"}
    assert judge(made, only=["S1"]).reading.tolist() == [""]


def test_adam_by_sum_is_no_row_where_no_such_network_is_stated():
    made = together(cell(S, sparsity_batches=["mean", "sum"]), adam())
    assert judge(made, only=["S8"]).reading.tolist() == ["mean"]
    assert set(judge(made, only=["S5"]).reading) == {"mean", "sum"}


def test_what_was_measured_before_training_changes_no_verdict():
    made = cell(S)
    first = made[made.epoch == 1].assign(epoch=0.0)
    entropies = [name for name in made if name.startswith("entropy ")]
    measured = list(made)[list(made).index("epoch") + 1 :]
    first = first.assign(**{name: np.nan for name in measured if name not in entropies})
    first[entropies] = 5.0
    before = together(first, made)
    for claim in ("S1", "S2", "S3", "S5", "S9"):
        assert states(before, claim) == states(made, claim)


def test_two_data_sets_and_two_profiles_are_judged_each_for_itself():
    made = together(cell(S), cell(S, dataset="cifar10", profile="other", seeds=[0]))
    found = judge(made, profiles=["made", "other"], only=["S2"])
    rows = found[["profile", "dataset", "n"]].to_numpy().tolist()
    assert rows == [["made", "cifar100", 3], ["other", "cifar10", 1]]


def test_runs_of_one_cell_that_differ_in_more_than_seed_and_length_are_refused():
    made = together(cell(S), cell(S, learning_rate=0.5))
    with pytest.raises(ValueError, match="differ in learning_rate"):
        judge(made, only=["S2"])


@pytest.mark.parametrize("at", [None, 1, 3])
def test_the_made_frames_are_as_the_store_gives_them(tmp_path, at):
    ended = {("sr1Net", 0): at}
    made = cell({"sr1Net": 30.0}, dataset="digits", seeds=(0,), epochs=4, diverged=ended)
    (run,) = sparsity_networks("digits", networks=["sr1Net"], epochs=4)
    metrics = made.loc[made.epoch.notna(), list(made)[list(made).index("epoch") :]]
    folder = tmp_path / "results" / "made" / "digits" / run.name
    said = {"num_classes": 100, "precision": "float32", "data": "digits", "labels": "digits 0"}
    run_dir.finish(folder, run, metrics, {}, said, at)
    read = store.load([run]).drop(columns=list(store.OPTIONAL))
    pd.testing.assert_frame_equal(read, made, check_dtype=False, check_like=True)
