"""The rules that judge S1–S10, on made frames: borne out, refuted, in part, one seed, not run,
diverged.
"""

from functools import lru_cache, partial

import numpy as np
import pandas as pd
import pytest
from made import (
    DEEP,
    HUNDRED,
    LAYERS,
    cell,
    cliff,
    judge,
    kept,
    pair,
    paper,
    rising,
    stop,
    together,
)

from lib import run_dir, store
from lib.study.claims import verdicts
from lib.study.claims.verdicts import CLAIMS
from lib.study.experiments import VARIANTS, sparsity_networks
from lib.study.tables import sparsity_runs


def each(*values):
    return dict(zip(VARIANTS, values, strict=True))


# Table 2, cifar-100
S = each(34.9, 25.1, 36.3, 26.6, 34.6, 37.8)
M = each(36.0, 47.1, 43.0, 49.2, 50.2, 52.2)
XXL = each(36.6, 42.0, 50.6, 53.3, 53.9, 54.2)
ADAM = each(38.4, 45.1, 52.9, 39.6, 40.3, 40.8)
IN_ADAM = {
    "vanillaNet": dict.fromkeys(DEEP, lambda e: cliff(e, at=1.5)),
    "sr2Net": {"correlation conv4": 0.4, "correlation conv1": 0.5},
}
TWO = (0, 1)
ONE = (0,)


def but(networks, *names):
    return {name: value for name, value in networks.items() if name not in names}


def adam(accuracies=ADAM, over=None, **options):
    return cell(accuracies, optimizer="adam", over=IN_ADAM | (over or {}), **options)


def sizes(s=S, m=M, xxl=XXL, **options):
    of_size = {"s": s, "m": m, "xxl": xxl}.items()
    return together(*(cell(values, size=size, **options) for size, values in of_size))


def judged(claim, made, dataset=HUNDRED):
    return CLAIMS[claim].rule(sparsity_runs(made), dataset)


def verdict(claim, made, dataset=HUNDRED):
    return judged(claim, made, dataset).verdict


# ---- differences


def test_differences_are_of_the_seeds_that_both_have():
    one, other = pd.Series({0: 5.0, 1: 6.0, 2: 9.0}), pd.Series({1: 1.0, 2: 2.0, 3: 3.0})
    assert verdicts.differences(one, other).to_dict() == {1: 5.0, 2: 7.0}
    assert verdicts.differences(one, pd.Series(dtype=float)).empty


@pytest.mark.parametrize(
    ("one", "other"),
    [(-np.inf, 3.0), (3.0, -np.inf), (-np.inf, -np.inf), (np.nan, 1.0), (1.0, np.inf)],
)
def test_a_difference_from_a_diverged_run_is_below_every_other_and_never_nan(one, other):
    d = verdicts.differences(pd.Series({0: one, 1: 9.0}), pd.Series({0: other, 1: 1.0}))
    assert d.to_dict() == {0: -np.inf, 1: 8.0}
    assert verdicts.cell_holds(d) is False


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_a_diverged_run_has_no_sign_where_one_seed_indicates(value):
    wanted = "indicative: 1 of 2 cells have the claimed sign, one seed"
    assert verdicts.verdict({"a": [value], "b": [3.0]}, 2) == wanted


def test_fewer_parts_than_expected_are_not_judged():
    assert verdicts.of_parts([True], 2, 4) == "not run: 1 of 4 parts have finished runs"
    assert verdicts.of_parts([True] * 4, 2, 4) == "holds"
    assert verdicts.of_parts([True, False], 1) == "indicative: 1 of 2 parts hold, one seed"


# ---- the paper's printed numbers

# By hand from Tables 2 and 3; of a difference in points the smallest decides. cifar100: S4 sr3
# m→xxl +2.04, dropNet falls 5.06, vanillaNet gains 1.70 and the least of the others 14.33; S5
# sr2 − sr1 +7.97 +1.06 +0.62, Adam +0.65, sr3 − best other +1.55 (normNet) +1.96 +0.36 (sr2Net);
# S6 −8.23 −0.26 +2.95, LeNet +0.50; S10 least +2.09 (sr1 − dropNet, m). cifar10: S5 −0.37, LeNet
# +0.95, S10 least +1.40. tiny_imagenet: S5 +4.09, LeNet +0.78, S10 least +0.53 (sr1 − normNet),
# then +2.68.
ALL_HOLD = dict.fromkeys(("S4", "S5", "S6", "S7", "S10"), "holds")
LACKS = {
    "S4": "not run: no finished vanillaNet of size s, m",
    "S6": "not run: 1 of 4 parts have finished runs",
}
CELLS = "cells have the claimed sign, one seed"
PRINTED = [
    (3, "cifar100", ALL_HOLD),
    (3, "cifar10", ALL_HOLD | LACKS | {"S5": "does not hold"}),
    (3, "tiny_imagenet", ALL_HOLD | LACKS),
    # a difference below a point does not hold: 4 of 7 cells of S5, 8 of 9 of S10
    (2, "cifar100", ALL_HOLD | {"S5": "holds in part"}),
    (2, "cifar10", ALL_HOLD | LACKS | {"S5": "does not hold"}),
    (2, "tiny_imagenet", ALL_HOLD | LACKS | {"S10": "holds in part"}),
    (
        1,
        "cifar100",
        {name: f"indicative: {n} of {n} {CELLS}" for name, n in (("S4", 11), ("S5", 7), ("S7", 1))}
        | {"S6": "indicative: 4 of 4 parts hold, one seed", "S10": f"indicative: 18 of 18 {CELLS}"},
    ),
    (1, "cifar10", {"S5": f"indicative: 0 of 1 {CELLS}", "S10": f"indicative: 9 of 9 {CELLS}"}),
]


@lru_cache
def printed():
    return paper(measured=False)


@pytest.mark.parametrize(("n", "dataset", "wanted"), PRINTED)
def test_the_paper_s_own_numbers_are_judged_as_they_stand(n, dataset, wanted):
    runs = printed()[lambda rows: (rows.seed < n) & (rows.dataset == dataset)]
    assert {claim: verdict(claim, runs, dataset) for claim in wanted} == wanted
    assert judged("S10", runs, dataset).n == n


def test_the_paper_s_own_numbers_stand_beside_as_published():
    made = printed()[lambda rows: (rows.seed == 0) & (rows.dataset == "cifar100")]
    for claim in ("S4", "S5", "S10"):
        found = judged(claim, made, "cifar100")
        xxl = "vanillaNet 36.6, dropNet 42.0, normNet 50.6, sr1Net 53.2, sr2Net 53.9, sr3Net 54.2"
        assert f"xxl: {xxl}" in found.published
        assert found.published in found.measured  # one seed: the same numbers
    assert judged("S6", made, "cifar100").published.endswith("sr3Net 37.8; LeNet 29.8 → 30.3")
    s7 = judged("S7", made, "cifar100")
    assert s7.published == s7.measured == "AlexNet 38.4 → 46.8"
    assert judged("S7", made, "digits").published == ""  # not in the paper
    # accuracies alone
    assert {judged(claim, made, "cifar100") for claim in ("S1", "S2", "S9")} == {None}


def test_accuracies_with_adam_bear_out_s8_with_entropies_and_correlations_as_the_paper_shows():
    runs = together(cell(XXL, size="xxl"), adam(size="xxl"))
    assert verdict("S8", runs) == "holds"
    assert judged("S8", runs, "cifar100").published.startswith("xxl: vanillaNet 38.4, dropNet 45.1")
    alone = together(cell(XXL, size="xxl", measured=False), adam(size="xxl", measured=False))
    assert verdict("S8", alone) == (
        "not run: no finished runs for entropy with Adam and SGD, conv4's filters, conv1's filters"
    )


def test_networks_that_behave_as_the_paper_says_bear_out_all_its_claims():
    """Its accuracies, a loss that only vanillaNet's rises, entropies as in Figure 5 and
    correlations as in Figure 7.
    """
    made = together(
        sizes(), adam(size="xxl"), pair("lenet", 29.8, 30.3), pair("alexnet", 38.4, 46.8)
    )
    found = judge(made, only=[name for name in CLAIMS if name.startswith("S")])
    assert len(found) == 10 and set(found.verdict) == {"holds"} and set(found.n) == {3}
    assert (found.measured != "").all() and (found.rule != "").all()
    assert not found.rule.str.contains("  ").any()


def test_what_was_measured_before_training_changes_no_verdict():
    """Entropies are: the store gives them as a row of epoch 0."""
    made = together(cell(S, seeds=TWO), adam(seeds=TWO))
    before = made[made.epoch == 1].assign(epoch=0)
    others = [name for name in before if name.startswith(("test_", "correlation "))]
    entropies = [name for name in before if name.startswith("entropy ")]
    before.loc[:, others], before.loc[:, entropies] = np.nan, 0.1
    with_0 = pd.concat([before, made]).sort_values(["optimizer", "seed", "network", "epoch"])
    claims = ["S1", "S2", "S3", "S5", "S8", "S9"]
    assert {judged(claim, made) == judged(claim, with_0) for claim in claims} == {True}


# ---- borne out, in part, refuted


def vanilla(**curves):
    return {"vanillaNet": curves}


def over(networks, **curves):
    return dict.fromkeys(networks, curves)


def layers(value, of=LAYERS):
    return dict.fromkeys(of, value)


SHALLOW = LAYERS[:2]
FLAT = layers(0.9)
LATER = layers(lambda e: 0.9 - 0.001 * e**2, DEEP) | layers(0.9, SHALLOW)


@pytest.mark.parametrize(
    ("claim", "changed", "wanted"),
    [
        # entropy falls around the moment of overfitting
        ("S1", {}, "holds"),
        ("S1", vanilla(**layers(cliff)), "holds in part"),  # as much in conv1 and conv2: 4 of 5
        # faster later: 0.064 in these 4 epochs, 0.084 in four on average
        ("S1", vanilla(**LATER), "holds in part"),
        # three of five: falls, but neither twice nor faster
        ("S1", vanilla(**layers(lambda e: cliff(e, at=16), DEEP)), "holds in part"),
        ("S1", vanilla(**FLAT), "does not hold"),
        ("S1", vanilla(**layers(lambda e: 0.5 + 0.01 * e)), "does not hold"),  # rises
        ("S1", vanilla(loss=kept), "not run: no vanillaNet overfits: there is no such moment"),
        # dropout and batch norm raise entropy
        ("S2", {}, "holds"),
        ("S2", over(["dropNet"], **layers(0.2)), "holds in part"),
        ("S2", over(["dropNet", "normNet"], **layers(0.2)), "does not hold"),
        ("S2", over(["normNet"], conv1=0.5), "holds"),  # the mean over layers
        ("S2", over(["normNet"], **layers(0.0, SHALLOW)), "holds in part"),  # 2 · −85 + 3 · 55
        # sparsity keeps the validation loss from rising; of drop and norm it is said, not judged
        ("S3", {}, "holds"),
        ("S3", over(["normNet", "dropNet"], loss=rising), "holds"),
        ("S3", over(["sr1Net"], loss=rising), "holds in part"),
        ("S3", vanilla(loss=kept), "holds in part"),
        ("S3", over(["sr1Net", "sr2Net", "sr3Net"], loss=rising), "does not hold"),
        # ends 0.7 % above its least
        ("S3", over(["sr2Net"], loss=lambda e: 1 + 0.00005 * (e - 8) ** 2), "holds"),
        # filters are not more alike; fewer is no harm
        ("S9", {}, "holds"),
        ("S9", {"sr1Net": {"correlation fc1": 0.01}}, "holds"),
        ("S9", {"sr1Net": {"correlation fc1": 0.23}}, "holds in part"),
        ("S9", over(["sr1Net"], **{"correlation fc1": 0.219}), "holds"),
        ("S9", over(["sr3Net"], **{"correlation fc1": 0.9}), "holds"),
        ("S9", over(["sr1Net", "sr2Net"], **{"correlation conv3": 0.3}), "does not hold"),
    ],
)
def test_claims_about_curves(claim, changed, wanted):
    assert verdict(claim, cell(S, over=changed)) == wanted


def of_s6(accuracies=S, lenet=30.3, seeds=(0, 1, 2)):
    return together(cell(accuracies, seeds=seeds), pair("lenet", 29.8, lenet, seeds=seeds))


def of_s8(accuracies=ADAM, over=None):
    return together(cell(S), adam(accuracies, over))


ALIKE = {"sr2Net": {"correlation conv4": 0.21, "correlation conv1": 0.5}}
OTHER_WAY = S | {"sr2Net": 40.0, "sr1Net": 40.0, "sr3Net": 30.0}
FEW = but(ADAM, "dropNet", "sr1Net")


@pytest.mark.parametrize(
    ("claim", "make", "wanted"),
    [
        # sr and norm gain with size, and vanilla hardly
        ("S4", sizes, "holds"),
        # more than a third of the others' least gain
        ("S4", partial(sizes, xxl=XXL | {"vanillaNet": 44.0}), "holds in part"),
        ("S4", partial(sizes, xxl=XXL | {"dropNet": 48.0}), "holds in part"),  # does not lose
        # six of eleven: the five gains from s to m, and vanillaNet's
        ("S4", partial(sizes, m=XXL, xxl=M), "holds in part"),
        ("S4", partial(sizes, s=XXL, m=M, xxl=dict.fromkeys(S, 20.0)), "does not hold"),
        # targeted beats all layers, and sr3 is best
        ("S5", partial(cell, S), "holds"),
        ("S5", partial(cell, S | {"sr3Net": 36.0}), "holds in part"),  # below normNet
        ("S5", partial(cell, S | {"sr1Net": 35.0}), "holds in part"),
        ("S5", partial(cell, S | {"sr1Net": 40.0}), "does not hold"),
        # of Adam, sr2 − sr1 alone, where both were trained
        ("S5", partial(of_s8, ADAM | {"sr3Net": 10.8}), "holds"),
        ("S5", partial(of_s8, ADAM | {"sr2Net": 30.0}), "holds in part"),
        ("S5", partial(of_s8, but(ADAM, "sr1Net")), "holds"),
        # small networks gain nothing, LeNet a little
        ("S6", of_s6, "holds"),
        ("S6", partial(of_s6, S | {"sr2Net": 40.0}), "holds in part"),
        ("S6", partial(of_s6, lenet=35.0), "holds in part"),
        ("S6", partial(of_s6, lenet=29.0), "holds in part"),
        ("S6", partial(of_s6, OTHER_WAY), "does not hold"),
        # with two seeds a gain is a point at least
        ("S6", partial(of_s6, S | {"sr2Net": 35.8}, seeds=TWO), "holds"),
        ("S6", partial(of_s6, S | {"sr2Net": 36.1}, seeds=TWO), "holds in part"),
        ("S7", partial(pair, "alexnet", 38.4, 46.8), "holds"),
        ("S7", partial(pair, "alexnet", 46.8, 38.4), "does not hold"),
        # with Adam
        ("S8", of_s8, "holds"),
        ("S8", partial(of_s8, over=vanilla(**FLAT)), "holds in part"),  # does not fall faster
        ("S8", partial(of_s8, over=ALIKE), "holds in part"),
        ("S8", partial(of_s8, over={"sr3Net": {"correlation conv1": 0.3}}), "holds in part"),
        ("S8", partial(of_s8, ADAM | {"sr1Net": 60.0}), "holds in part"),  # beats drop and norm
        ("S8", partial(of_s8, each(50, 20, 20, 40, 40, 40)), "does not hold"),  # 3 of 12
        ("S8", partial(of_s8, FEW), "holds"),  # judged on those that were trained
        # sr beats vanilla, drop and norm
        ("S10", lambda: together(cell(M, size="m"), cell(XXL, size="xxl")), "holds"),
    ],
)
def test_claims_about_accuracies(claim, make, wanted):
    assert verdict(claim, make()) == wanted


@pytest.mark.parametrize(
    ("claim", "accuracies", "wanted"),
    [
        ("S5", S | {"sr3Net": 7.8}, "holds"),  # sr3Net is to be best on 100 classes alone
        ("S10", XXL, "holds"),
        ("S10", XXL | {"normNet": 53.5}, "holds in part"),
        ("S10", dict.fromkeys(S, 30.0) | {"vanillaNet": 60}, "does not hold"),
    ],
)
def test_on_other_sets_less_is_asked_for(claim, accuracies, wanted):
    made = cell(accuracies, size="xxl", dataset="cifar10")
    assert verdict(claim, made, "cifar10") == wanted


@pytest.mark.parametrize(
    ("claim", "make", "wanted"),
    [
        ("S4", partial(cell, S), "no finished vanillaNet of size m, xxl"),
        ("S4", partial(cell, M, size="m"), "no finished vanillaNet of size s, xxl"),
        ("S4", partial(sizes, m=but(M, "sr3Net")), "9 of 11 cells have finished runs"),
        ("S5", partial(cell, but(S, "normNet")), "1 of 2 cells have finished runs"),
        ("S8", adam, "no finished runs for entropy with Adam and SGD"),
        ("S10", partial(cell, S), "no finished vanillaNet of size m, xxl"),
        ("S10", partial(cell, XXL, size="xxl"), "9 of 18 cells have finished runs"),
        (
            "S10",
            lambda: together(cell(M, size="m"), cell(but(XXL, "dropNet"), size="xxl")),
            "15 of 18 cells have finished runs",
        ),
    ],
)
def test_what_is_missing_is_named_in_the_order_of_size(claim, make, wanted):
    assert verdict(claim, make()) == f"not run: {wanted}"


# ---- which epochs and seeds are read


def late(before, after, at=100):
    """A curve that changes after an epoch, the last that the tables read unless given."""
    return lambda e: np.where(e <= at, before, after)


def overfits(at, over_epochs=100):
    loss = {"loss": lambda e: 1 + (e - at) ** 2 / over_epochs}
    return loss | layers(lambda e: cliff(e, at=at), DEEP)


def test_s1_says_where_and_by_how_much():
    found = judged("S1", cell(S, seeds=TWO))
    where = "s, seed 1: overfits at epoch 8; from epoch 6 to 10 entropy falls by "
    assert where + "conv1 3.8, conv2 3.8, conv3 38.1" in found.measured
    assert found.n == 2


@pytest.mark.parametrize(
    ("epochs", "curves", "window"),
    [
        (40, overfits(25), "overfits at epoch 25; from epoch 23 to 27"),
        (200, overfits(150, 1000), "from epoch 140 to 160"),
    ],
)
def test_s1_alone_reads_a_long_vanilla_net_to_its_end(epochs, curves, window):
    long = cell({"vanillaNet": 30}, over=vanilla(**curves), epochs=epochs)
    found = judged("S1", together(long, cell({"normNet": 30})))
    assert found.verdict == "holds" and window in found.measured
    # 20 epochs: as far as all seeds have
    short = cell({"vanillaNet": 30}, seeds=[3], over=vanilla(loss=kept))
    said = judged("S1", together(long, short)).measured
    assert "seed 0: does not overfit within 20 epochs" in said


def test_s1_counts_only_the_seeds_that_overfit():
    other = cell({"vanillaNet": 30}, seeds=[1], over=vanilla(loss=kept))
    made = together(cell({"vanillaNet": 30}, seeds=ONE), other)
    assert verdict("S1", made) == "indicative: 5 of 5 parts hold, one seed"


def test_s2_reads_the_last_epoch_that_all_networks_have():
    turned = {"dropNet": layers(late(0.95, 0.1, at=20))}
    long = cell({"dropNet": 30}, over=turned, epochs=40)
    found = judged("S2", together(long, cell({"vanillaNet": 30, "normNet": 30})))
    # (2 · 10 + 3 · 55) / 5: 0.95 against 0.90 − 0.05 and − 0.5
    assert found.verdict == "holds" and "+37.0 % of ln D" in found.measured


def test_s2_and_s9_read_a_cell_of_200_epochs_as_far_as_the_tables_do():
    curves = over(["dropNet", "normNet"], **layers(late(0.95, 0.1)))
    curves |= over(["sr1Net", "sr2Net"], **{"correlation fc1": late(0.2, 0.9)})
    made = cell(S, over=curves, epochs=200)
    assert verdict("S2", made) == verdict("S9", made) == "holds"


def test_s3_counts_the_seeds_of_the_networks_that_it_judges():
    made = together(cell(but(S, "normNet")), cell({"normNet": 36.3}, seeds=ONE))
    found = judged("S3", made)
    assert (found.verdict, found.n) == ("holds", 3) and "normNet-s never of 20" in found.measured


def test_s3_looks_at_all_epochs_trained():
    loss = {"loss": lambda e: 1 + (e - 25) ** 2 / 100}
    long = cell({"sr2Net": 30}, over={"sr2Net": loss}, epochs=40)
    # smoothed: least 1 + σ²/100 = 1.04; at the end, held at 3.25, about 3.04 (by hand: the half of
    # the kernel inside falls)
    found = judged("S3", together(long, cell(but(S, "sr2Net"))))
    assert found.verdict == "holds in part" and "sr1Net-s never" in found.measured
    assert "sr2Net-s 25 (+192 %), 25 (+192 %), 25 (+192 %) of 40" in found.measured


def test_s8_judges_networks_of_other_seeds_than_each_other():
    made = together(cell(S, seeds=TWO), adam(FEW, seeds=ONE))
    assert verdict("S8", made) == "indicative: 7 of 7 parts hold, one seed"
    some = adam(but(FEW, "sr2Net", "sr3Net"))
    made = together(cell(S), some, adam(but(FEW, "vanillaNet", "normNet"), seeds=TWO))
    assert verdict("S8", made) == "holds"
    assert judged("S8", cell(S)) is None


@pytest.mark.parametrize(("sgd", "with_adam"), [(40, 20), (20, 40), (200, 20)])
def test_s8_reads_both_optimisers_at_the_same_epoch(sgd, with_adam):
    falling = layers(lambda e: 0.9 - 0.02 * e, DEEP)
    slow = vanilla(**layers(lambda e: 0.89 - 0.02 * e, DEEP))
    with_sgd = cell(S, over=vanilla(**falling), epochs=sgd)
    found = judged("S8", together(with_sgd, adam(over=slow, epochs=with_adam)))
    assert found.verdict == "holds"
    fallen = "after epoch 2 entropy has fallen by 15.0 % of ln D (SGD 14.0)"
    assert fallen in found.measured


# ---- every claim


@lru_cache
def whole(claim, seeds=(0, 1, 2)):
    """Runs that bear a claim out."""
    if claim == "S4":
        return sizes(seeds=seeds)
    if claim == "S10":
        return together(cell(M, size="m", seeds=seeds), cell(XXL, size="xxl", seeds=seeds))
    if claim == "S6":
        return of_s6(seeds=seeds)
    plain = cell(S, seeds=seeds)
    return together(plain, adam(seeds=seeds)) if claim == "S8" else plain


def diverge(made, networks, seeds, at):
    """The same runs, those of `networks` and `seeds` diverged in epoch `at`."""
    return stop(made, made.variant.isin(networks) & made.seed.isin(seeds), at)


# networks on whose numbers each claim rests
SR = ("sr1Net", "sr2Net", "sr3Net")
RESTS_ON = dict.fromkeys(("S4", "S5", "S8", "S10"), VARIANTS) | {
    "S1": ("vanillaNet",),
    "S2": ("vanillaNet", "dropNet", "normNet"),
    "S3": ("vanillaNet", *SR),
    "S6": ("vanillaNet", *SR),
    "S9": ("vanillaNet", "sr1Net", "sr2Net"),
}


@pytest.mark.parametrize("at", [None, 1, 3])
def test_the_made_frames_are_as_the_store_gives_them(tmp_path, at):
    ended = {("sr1Net", 0): at}
    made = cell({"sr1Net": 30.0}, dataset="digits", seeds=ONE, epochs=4, diverged=ended)
    (run,) = sparsity_networks("digits", networks=["sr1Net"], epochs=4)
    metrics = made.loc[made.epoch.notna(), list(made)[list(made).index("epoch") :]]
    folder = tmp_path / "results" / "made" / "digits" / run.name
    run_dir.finish(folder, run, metrics, {}, {"num_classes": 100, "precision": "float32"}, at)
    pd.testing.assert_frame_equal(store.load([run]), made, check_dtype=False, check_like=True)
    if at:
        other = diverge(cell({"sr1Net": 30.0}, dataset="digits", seeds=ONE, epochs=4), SR, ONE, at)
        pd.testing.assert_frame_equal(other.reset_index(drop=True), made, check_dtype=False)


@pytest.mark.parametrize("claim", RESTS_ON)
def test_one_seed_only_indicates(claim):
    found = judged(claim, whole(claim, ONE))
    assert found.verdict.startswith("indicative: ") and found.n == 1
    right, _, of = found.verdict.split(maxsplit=4)[1:4]
    assert right == of


@pytest.mark.parametrize("claim", RESTS_ON)
def test_a_diverged_run_never_makes_a_cell_hold(claim):
    assert verdict(claim, whole(claim)) == "holds"
    # no rule treats them as it treats no other
    alike = ("dropNet", "sr1Net") if RESTS_ON[claim] == VARIANTS else ()
    for k, network in enumerate(name for name in RESTS_ON[claim] if name not in alike):
        # one run of three; all of them, from the beginning
        for hit, at in (((0,), 12), ((0, 1, 2), 1))[k % 2 :]:
            found = judged(claim, diverge(whole(claim), [network], hit, at))
            assert found.verdict in ("holds in part", "does not hold"), (network, found)
            assert "diverged" in found.measured
            assert "inf" not in found.measured and "nan" not in found.measured
    one = judged(claim, diverge(whole(claim, ONE), [network], (0,), 12))
    right, _, of = one.verdict.split(maxsplit=4)[1:4]
    assert int(right) < int(of)


@pytest.mark.parametrize("claim", RESTS_ON)
def test_where_every_run_diverged_nothing_holds(claim):
    for at in (1, 12):  # the LeNets of S6 did not: one part of four
        assert verdict(claim, diverge(whole(claim), VARIANTS, (0, 1, 2), at)) == "does not hold"


def test_a_run_that_diverged_after_the_epochs_read_counts():
    long = cell({"sr2Net": 34.6}, epochs=40, diverged={("sr2Net", 1): 30})
    made = together(cell(but(S, "sr2Net")), long)
    found = {claim: verdict(claim, made) for claim in ("S3", "S5", "S9")}
    assert found == {"S3": "holds in part", "S5": "holds", "S9": "holds"}  # S3: all epochs trained


@pytest.mark.parametrize(("claim", "network"), [("S6", "lenet"), ("S7", "alexnet")])
@pytest.mark.parametrize("regularized", [False, True])
def test_a_diverged_lenet_or_alexnet_does_not_gain(claim, network, regularized):
    made = pair(network, 20.0, 21.0)
    made = stop(made, (made.sparsity != "") == regularized, 5)
    found = judged(claim, together(cell(S), made) if claim == "S6" else made)
    assert found.verdict == ("holds in part" if claim == "S6" else "does not hold")
    assert "diverged" in found.measured


@pytest.mark.parametrize("claim", RESTS_ON)
def test_a_missing_network_is_not_judged_around(claim):
    """Without one of the networks that a rule needs, the claim is not run, or nothing is said of
    it.
    """
    needed = ("vanillaNet", "sr2Net", "sr3Net") if claim == "S8" else RESTS_ON[claim]
    for network in needed:
        made = whole(claim)
        found = judged(claim, made[made.variant != network])
        assert found is None or found.verdict.startswith("not run: "), (network, found)


def test_each_profile_is_judged_by_its_own_runs():
    found = judge(pair("alexnet", 20.0, 21.0), ["made", "other"], [f"S{k}" for k in range(1, 11)])
    found = found.set_index(["profile", "claim"]).verdict
    assert set(found["other"]) == {"not run: no finished run of the profile other"}
    assert found["made", "S7"] == "holds"
    # it reads this experiment, too, but LeNet is not there
    assert found["made", "S6"] == "not run: no finished run of the profile made answers it"
    others = found["made"].drop(["S6", "S7"])
    assert set(others) == {"not run: no finished run of the profile made"}


def test_screening_seeds_are_not_judged():
    found = judged("S5", together(cell(S), cell({"sr2Net": 5.0}, seeds=[100])))
    assert (found.verdict, found.n) == ("holds", 3)


def test_two_data_sets_and_two_profiles_are_judged_each_for_itself():
    other = cell(S | {"sr1Net": 40.0}, dataset="cifar10")
    made = together(cell(S), other, cell(S, profile="other", seeds=ONE))
    found = judge(made, ["made", "other"], only=["S5"]).set_index(["profile", "dataset"]).verdict
    assert found.to_dict() == {
        ("made", HUNDRED): "holds",
        ("made", "cifar10"): "does not hold",
        ("other", HUNDRED): "indicative: 2 of 2 cells have the claimed sign, one seed",
    }


def test_runs_of_one_cell_that_differ_in_more_than_seed_and_length_are_refused():
    other = partial(cell, {"sr3Net": 40.0}, seeds=[3])
    with pytest.raises(ValueError, match=r"sr3Net.*differ in decorrelation_pairs"):
        judge(together(cell(S), other(decorrelation_pairs="square")), only=["S5"])
    found = judge(together(cell(S), other(epochs=30)), only=["S5"])
    assert found.verdict.tolist() == ["holds"]


def test_a_claim_about_sparsityreg_is_judged_for_each_of_its_readings():
    mean = cell({"vanillaNet": 30.0, "sr1Net": 29.0, "sr2Net": 29.0, "sr3Net": 35.0})
    summed = cell({"sr1Net": 35.0, "sr2Net": 29.0, "sr3Net": 29.0}, sparsity_batches=["sum"])
    lenet = pair("lenet", 20.0, 29.0, sparsity_batches=["sum"])
    made = together(mean, pair("lenet", 20.0, 21.0), summed, lenet[lenet.sparsity != ""])
    rows = judge(made, only=["S1", "S6"]).set_index(["claim", "reading"])
    assert list(rows.index) == [("S1", ""), ("S6", "mean"), ("S6", "sum")]
    assert rows.verdict["S6"].to_dict() == {"mean": "holds", "sum": "does not hold"}
    assert "LeNet +1.0" in rows.measured["S6", "mean"]
    assert "LeNet +9.0" in rows.measured["S6", "sum"]
