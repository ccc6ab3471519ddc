"""The papers' experiments as lists of runs."""

import pandas as pd
import pytest
from made import stored

from lib import measures, trainer
from lib.run import SCREENING_SEED, Run
from lib.schedules import SCHEDULES, schedule
from lib.study import campaign, evidence, tables
from lib.study.experiments import (
    READINGS,
    REGULARISED,
    VARIANTS,
    calibration,
    combined,
    label_randomization,
    lenet_alexnet,
    norm_scales,
    options,
    penalty_readings,
    reading_of,
    relabelling,
    schedules,
    sensitivity,
    sparsity_networks,
)

# ---- AL2


def test_label_randomization_is_eight_networks_a_seed_in_pairs_that_differ_in_al2_only():
    runs = label_randomization("mnist", seeds=(0, 5), epochs=80)
    assert len({run.id for run in runs}) == len(runs) == 16
    for without, with_al2 in zip(runs[::2], runs[1::2], strict=True):
        assert not without.al2 and with_al2.al2
        assert with_al2.to_dict() == without.to_dict() | {"al2": True}
    assert [run.baseline for run in runs[:8:2]] == ["bare", "batchnorm", "dropout", "weight_decay"]
    assert {run.seed for run in runs[:8]} == {0} and {run.seed for run in runs[8:]} == {5}
    assert {run.epochs for run in runs} == {80}
    # the papers' strengths, in their own baselines alone
    assert runs[4].dropout == 0.5 and runs[6].weight_decay == 5e-4
    assert {run.dropout for run in runs if run.baseline != "dropout"} == {0}


def test_label_randomization_passes_strengths_to_their_own_baselines():
    runs = label_randomization("mnist", dropout=0.2, weight_decay=0.1)
    assert {run.dropout for run in runs} == {0, 0.2} and {run.weight_decay for run in runs} == {
        0,
        0.1,
    }


def test_label_randomization_refuses_an_unknown_setting():
    with pytest.raises(ValueError, match=r"epoch.*did you mean 'epochs'"):
        label_randomization("mnist", epoch=3)


@pytest.mark.parametrize(
    "settings", [{"al2": True}, {"batch_norm": True}, {"dropout": 0}, {"weight_decay": 0}]
)
def test_label_randomization_refuses_what_would_make_two_of_the_eight_one(settings):
    with pytest.raises((ValueError, TypeError), match=next(iter(settings))):
        label_randomization("mnist", **settings)


@pytest.mark.parametrize("setting", [{"speed": 8.75}, {"schedule": "geometric"}])
def test_networks_without_al2_are_the_same_runs_whatever_the_schedule(setting):
    """A setting that cannot change the result is no part of the id: baselines are trained once for
    all schedules.
    """
    plain = label_randomization("mnist")
    other = label_randomization("mnist", **setting)
    assert [run.id for run in plain[::2]] == [run.id for run in other[::2]]
    assert not {run.id for run in plain[1::2]} & {run.id for run in other[1::2]}


def test_schedules_are_bare_weight_decays_and_each_kind_at_each_total():
    runs = schedules(
        "mnist",
        seeds=(0, 7),
        totals=[0.3, 1.0],
        weight_decays=[1e-3, 5e-4],
        epochs=80,
        speed=6.15,
        n_train=50,
    )
    assert len({run.id for run in runs}) == len(runs) == 2 * (1 + 2 + 4 * 2)
    for seed, own in ((0, runs[:11]), (7, runs[11:])):
        assert {run.seed for run in own} == {seed}
        assert [run.weight_decay for run in own] == [0, 1e-3, 5e-4] + [0] * 8
        assert [run.al2 for run in own] == [False] * 3 + [True] * 8
        assert [run.schedule for run in own[3:]] == [kind for kind in SCHEDULES for _ in range(2)]
    assert {(run.epochs, run.n_train, run.dropout, run.batch_norm) for run in runs} == {
        (80, 50, 0, False)
    }
    whole = schedule("al2", 80, 6.15).sum()
    found = [schedule(r.schedule, 80, r.speed, r.rate).sum() / whole for r in runs if r.al2]
    assert found == pytest.approx([0.3, 1.0] * 8, rel=4e-3)


def test_schedules_shares_bare_the_paper_s_decay_and_bare_with_al2_with_label_randomization():
    settings = dict(
        seeds=(0, 1), epochs=50, speed=3.4, learning_rate=0.03, momentum=0.9, n_validation=143
    )
    eight = {run.id: run for run in label_randomization("digits", **settings)}
    shared = [
        eight[r.id]
        for r in schedules("digits", **settings, totals=[0.1, 1], weight_decays=[5e-4, 0.02])
        if r.id in eight
    ]
    assert [(run.seed, run.baseline, run.al2) for run in shared] == [
        (seed, baseline, al2)
        for seed in (0, 1)
        for baseline, al2 in (("bare", False), ("weight_decay", False), ("bare", True))
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"al2": True}, "al2 cannot be set"),
        (
            {"schedule": "linear", "rate": 0.5},
            "rate, schedule cannot be set: .*kinds, totals, weight_decays",
        ),
        ({"weight_decay": 5e-4}, "weight_decay cannot be set"),
        ({"seed": 3}, "seed cannot be set"),
        ({"kinds": ["al2", "cosine"]}, "'cosine'; allowed: al2, geometric, linear, constant"),
        ({"totals": [0.0]}, "total is 0.0"),
        ({"totals": [1e-9]}, "no schedule 'al2' of 50 epochs adds up to"),
        ({"epoch": 3}, "'epoch'; did you mean 'epochs'"),
        ({"weight_decays": [-1.0]}, "weight_decay is -1.0"),
    ],
)
def test_schedules_refuses_what_its_runs_differ_in_and_totals_that_no_series_has(settings, message):
    with pytest.raises(ValueError, match=message):
        schedules("digits", **{"epochs": 50, "speed": 3.4} | settings)


SMALL = dict(epochs=80, speed=6.15, n_train=300)


def test_options_are_the_default_networks_and_those_with_one_option_changed():
    found = options("mnist", seeds=(0, 4), totals=[0.3, 0.1], longer=2, **SMALL)
    changes = {
        "exact law": ({"bare", "dropout"}, {False, True}, {"corruption_law"}),
        "γ ~ U(0, 1)": ({"batchnorm"}, {False, True}, {"bn_gamma"}),
        "Σλ × 0.1": ({"batchnorm", "dropout"}, {True}, {"speed"}),
        "Σλ × 0.3": ({"batchnorm", "dropout"}, {True}, {"speed"}),
        "epochs × 2": ({"bare", "dropout"}, {False, True}, {"epochs", "speed"}),
    }
    assert list(found) == ["default", *changes]
    eight = label_randomization("mnist", seeds=(0, 4), **SMALL)
    default = [run for run in eight if run.baseline != "weight_decay"]
    assert [run.id for run in found["default"]] == [run.id for run in default]
    beside = {(run.baseline, run.al2, run.seed): run.to_dict() for run in default}
    for option, (baselines, al2, fields) in changes.items():
        wanted = {(b, a, seed) for b in baselines for a in al2 for seed in (0, 4)}
        assert {(r.baseline, r.al2, r.seed) for r in found[option]} == wanted
        assert len(found[option]) == len(wanted)
        for run in found[option]:
            same = beside[run.baseline, run.al2, run.seed]
            # a network without AL2 has no series that a speed could change
            differing = {k for k, v in run.to_dict().items() if v != same[k]}
            assert differing == fields - (set() if run.al2 else {"speed"})


def test_sensitivity_is_the_default_then_the_options_seed_by_seed():
    settings = {"seeds": (0, 4), "totals": [0.1], "longer": 2} | SMALL
    runs = sensitivity("mnist", **settings)
    found = options("mnist", **settings)
    assert len({run.id for run in runs}) == len(runs) == 2 * (6 + 6 + 2 + 4)
    assert {run.id for run in runs} == {run.id for own in found.values() for run in own}
    assert runs[:12] == found["default"] and [run.seed for run in runs[12:]] == [0] * 12 + [4] * 12


def test_norm_scales_are_batch_norm_s_runs_with_both_scales():
    found = options("mnist", **SMALL)
    tried = {run.id: run.bn_gamma for run in found["γ ~ U(0, 1)"]}
    default = {run.id: "ones" for run in found["default"] if run.baseline == "batchnorm"}
    assert {run.id: run.bn_gamma for run in norm_scales("mnist", **SMALL)} == default | tried


def test_options_spend_the_stated_totals_and_a_longer_training_ends_at_the_same_weight():
    found = options("mnist", totals=[0.1, 0.3], longer=3, **SMALL)
    default = schedule("al2", 80, 6.15)
    for total in (0.1, 0.3):
        for run in found[f"Σλ × {total}"]:
            spent = schedule("al2", 80, run.speed).sum() / default.sum()
            assert spent == pytest.approx(total, rel=1e-4)
    (slow,) = {run.speed for run in found["epochs × 3"] if run.al2}
    assert schedule("al2", 240, slow)[-1] == pytest.approx(default[-1], rel=1e-4)


def test_options_are_tried_on_the_wanted_baselines_and_only_those_that_are_stated():
    assert {
        run.baseline for run in sensitivity("mnist", baselines=["dropout"], totals=[0.3], longer=2)
    } == {"dropout"}
    assert len(sensitivity("mnist")) == 6 + 6  # the laws alone
    long = sensitivity("mnist", dropout_epochs=750)
    assert [run.epochs for run in long if run.baseline == "dropout"] == [750, 750, 700, 700]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption_law": "exact", "al2": True}, "al2, corruption_law cannot be set"),
        ({"bn_gamma": "ones"}, "bn_gamma cannot be set"),
        ({"weight_decay": 5e-4}, "weight_decay cannot be set"),
        ({"seed": 3}, "seed cannot be set"),
        (
            {"baselines": ["bare", "weight_decay"]},
            "baselines holds weight_decay; allowed: bare, batchnorm, dropout",
        ),
        ({"totals": [0.3, 1.0]}, "no total may be 1"),
        ({"totals": [1e-9]}, "no schedule 'al2' of 50 epochs adds up to"),
        ({"longer": 1}, "longer 1: .* whole number ≥ 2"),
        ({"epoch": 3}, "'epoch'; did you mean 'epochs'"),
    ],
)
def test_options_refuses_what_its_runs_differ_in_and_options_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        sensitivity("digits", **{"epochs": 50, "speed": 3.4} | settings)


def test_relabelling_is_two_teachers_their_students_and_clean_labels_for_each_seed():
    runs = relabelling("mnist", seeds=(0, 4), corruption=0.5, epochs=80, speed=2.0, n_train=300)
    assert len({run.id for run in runs}) == len(runs) == 10
    for seed, (bare, al2, by_bare, by_al2, clean) in ((0, runs[:5]), (4, runs[5:])):
        settings = {"epochs": 80, "n_train": 300, "seed": seed}
        assert bare == Run("mnist", corruption=0.5, **settings)
        assert al2 == Run("mnist", corruption=0.5, al2=True, speed=2.0, **settings)
        assert clean == Run("mnist", corruption=0.0, **settings)
        assert by_bare == Run("mnist", corruption=0.5, relabelled_by=bare.id, **settings)
        assert by_al2 == Run("mnist", corruption=0.5, relabelled_by=al2.id, **settings)
        assert [run.predictions for run in (bare, al2, by_bare, by_al2, clean)] == [
            True,
            True,
            False,
            False,
            False,
        ]


def test_the_teachers_are_runs_of_table_1():
    teachers = [run.id for run in relabelling("mnist", epochs=80) if run.predictions]
    assert teachers == [run.id for run in label_randomization("mnist", epochs=80)[:2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption": 0}, "corruption is 0; there has to be something to repair"),
        ({"al2": True, "seed": 3}, "al2, seed cannot be set"),
        ({"relabelled_by": "0123456789"}, "relabelled_by cannot be set"),
        ({"predictions": True}, "predictions cannot be set"),
        ({"epoch": 3}, "'epoch'; did you mean 'epochs'"),
    ],
)
def test_a_relabelling_that_would_be_none_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        relabelling("mnist", **settings)


# ---- targeted sparsity

SR = ("conv3", "conv4", "fc1")
PAPER = dict(
    dataset="cifar100",
    corruption=0.0,
    normalize="unit",
    momentum=0.0,
    epochs=100,
    n_measure=1000,
    batch_size=64,
)
PAPER |= dict(
    learning_rate=0.01,
    weight_decay=0.0,
    n_train=None,
    n_validation=0,
    al2=False,
    padding="same",
    optimizer="sgd",
)
SIX = {
    "vanillaNet": {},
    "dropNet": {"dropout": 0.25},
    "normNet": {"batch_norm": True},
    "sr1Net": {"sparsity": ("conv1", "conv2", *SR)},
    "sr2Net": {"sparsity": SR},
    "sr3Net": {"sparsity": SR, "decorrelation": ("conv1",)},
}


@pytest.mark.parametrize("size", ["s", "m", "xxl"])
def test_sparsity_networks_are_table_2_s_six_with_section_4_s_settings(size):
    runs = sparsity_networks("cifar100", size=size)
    assert [run.variant for run in runs] == list(SIX) == list(VARIANTS)
    assert [run.id for run in runs] == [
        Run(**PAPER, network=f"convnet_{size}", **own).id for own in SIX.values()
    ]
    for run in runs:
        assert run.entropy and run.sparsity_weight == 0.001 and run.decorrelation_weight == 1.0


def test_the_six_differ_in_what_their_names_say_and_nothing_else():
    runs = sparsity_networks("digits", n_measure=100, sparsity_weight=0.5)
    for run in runs[1:]:
        differing = {
            name for name, value in run.to_dict().items() if value != runs[0].to_dict()[name]
        }
        own = set(SIX[run.variant])
        assert differing == own | ({"sparsity_weight"} if "sparsity" in own else set())


def test_adam_has_a_learning_rate_of_its_own_and_no_momentum():
    runs = sparsity_networks("cifar100", optimizer="adam")
    assert {(run.optimizer, run.learning_rate) for run in runs} == {("adam", 0.001)}
    assert [run.id for run in sparsity_networks("cifar100", optimizer="adam", momentum=0.9)] == [
        run.id for run in runs
    ]
    assert [run.variant for run in runs] == list(VARIANTS)


def test_seeds_networks_and_settings_are_passed_on():
    runs = sparsity_networks(
        "digits",
        networks=["sr3Net", "dropNet"],
        seeds=(1, 4),
        dropout=0.5,
        epochs=3,
        learning_rate=0.2,
        heat_maps=2,
    )
    assert [(run.seed, run.variant) for run in runs] == [
        (1, "sr3Net"),
        (1, "dropNet"),
        (4, "sr3Net"),
        (4, "dropNet"),
    ]
    assert [run.dropout for run in runs] == [0, 0.5] * 2
    assert {(run.epochs, run.learning_rate, run.heat_maps, run.n_measure) for run in runs} == {
        (3, 0.2, 2, 1000)
    }
    (reading,) = sparsity_networks(
        "digits", networks=["sr3Net"], decorrelation_pairs="square", decorrelation_reduce="mean"
    )
    assert (reading.decorrelation_pairs, reading.decorrelation_reduce) == ("square", "mean")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"networks": ["vanillaNet", "sr4Net"]},
            "networks holds sr4Net; allowed: vanillaNet, dropNet, normNet, sr1Net",
        ),
        ({"size": "l"}, "'convnet_l'; allowed: .*convnet_s, convnet_m, convnet_xxl"),
        ({"optimizer": "rmsprop"}, "optimizer is 'rmsprop'; allowed: sgd, adam"),
        ({"epoch": 3}, "'epoch'; did you mean 'epochs'"),
        ({"dropout": 0.0}, "dropout is 0.0"),
        ({"batch_norm": True}, "batch_norm cannot be set"),
        ({"sparsity": ("conv1",)}, "sparsity cannot be set"),
        ({"decorrelation": ("conv1",)}, "decorrelation cannot be set"),
        ({"network": "lenet", "seed": 3}, "network, seed cannot be set"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it has to be a positive number"),
        ({"long_networks": ["sr2Net"]}, "long_networks needs long_epochs"),
        (
            {"long_networks": ["sr9Net"], "long_epochs": 4},
            "long_networks holds sr9Net; allowed: vanillaNet",
        ),
    ],
)
def test_what_would_make_two_of_the_six_one_or_is_unknown_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sparsity_networks("digits", **settings)


def differing(one: Run, other: Run) -> set[str]:
    return {name for name, value in one.to_dict().items() if value != other.to_dict()[name]}


def test_long_trainings_differ_from_short_ones_in_length_alone():
    """So the first epochs of the long one are the short one, and tables may read both."""
    short = sparsity_networks("digits", seeds=(0, 1), epochs=10)
    both = sparsity_networks(
        "digits", seeds=(0, 1), epochs=10, long_networks=["vanillaNet", "sr2Net"], long_epochs=20
    )
    assert [run.variant for run in both] == [run.variant for run in short]
    for one, other in zip(short, both, strict=True):
        assert differing(one, other) == (
            {"epochs"} if one.variant in ("vanillaNet", "sr2Net") else set()
        )
        assert other.epochs == (20 if one.variant in ("vanillaNet", "sr2Net") else 10)
        assert (one.id == other.id) == (one.epochs == other.epochs)


def test_a_long_network_that_is_not_wanted_is_not_trained():
    runs = sparsity_networks(
        "digits", networks=["sr2Net"], long_networks=["vanillaNet", "sr2Net"], long_epochs=200
    )
    assert [(run.variant, run.epochs) for run in runs] == [("sr2Net", 200)]


def test_table_3_is_two_networks_without_and_with_sparsity_reg_for_each_seed():
    runs = lenet_alexnet("cifar10", seeds=(0, 3))
    assert [(run.seed, run.variant) for run in runs] == [
        (seed, name) for seed in (0, 3) for name in ("LeNet", "LeNet+sr", "AlexNet", "AlexNet+sr")
    ]
    assert len({run.id for run in runs}) == 8
    for without, with_sr in zip(runs[::2], runs[1::2], strict=True):
        assert differing(without, with_sr) == {"sparsity"} and not without.sparsity
        assert without == Run(
            **PAPER | {"dataset": "cifar10", "network": without.network, "seed": without.seed}
        )
        assert with_sr.sparsity_weight == 0.001


@pytest.mark.parametrize("network", ["lenet", "alexnet"])
def test_regularised_layers_are_all_but_the_last_or_the_last_convolutions_and_first_dense_one(
    network,
):
    names = measures.hidden_layers(trainer.build_network(Run("digits", network=network), 3, 32, 10))
    assert list(REGULARISED[network]["all"]) == names
    convolutions, dense = ([n for n in names if n.startswith(kind)] for kind in ("conv", "fc"))
    assert list(REGULARISED[network]["targeted"]) == [*convolutions[-2:], dense[0]]
    (_, run) = lenet_alexnet("digits", networks=[network], layers="targeted")
    assert set(run.sparsity) == set(REGULARISED[network]["targeted"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": ["lenet", "vgg"]}, "networks holds vgg; allowed: lenet, alexnet"),
        ({"layers": "some"}, "layers is 'some'; allowed: all, targeted"),
        ({"sparsity": ("fc1",)}, "sparsity cannot be set"),
        ({"network": "lenet", "seed": 3}, "network, seed cannot be set"),
        ({"batch_norm": True}, "lenet has neither batch norm nor dropout"),
        ({"epoch": 3}, "'epoch'; did you mean 'epochs'"),
    ],
)
def test_what_table_3_does_not_know_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lenet_alexnet("digits", **settings)


# ---- readings of DecorrReg and strengths of SparsityReg


def test_twelve_readings_and_sr2net_are_screened_on_one_seed_of_no_table():
    runs = penalty_readings("digits", screen_epochs=4, epochs=20)
    assert [run.variant for run in runs] == ["sr2Net"] + ["sr3Net"] * 12
    assert len({run.id for run in runs}) == 13 == len(READINGS) + 1
    assert {run.seed for run in runs} == {SCREENING_SEED} and {run.epochs for run in runs} == {4}
    for reading, run in zip(READINGS, runs[1:], strict=True):
        fields = (run.decorrelation_centre, run.decorrelation_pairs, run.decorrelation_reduce)
        assert "/".join(fields) == reading
        assert differing(runs[0], run) <= {"decorrelation", *reading_of(reading)}


def test_some_readings_are_trained_in_full_and_the_chosen_one_on_the_tables_seeds():
    options = {
        "trained": ["own/abs/sum", "own/square/mean"],
        "chosen": "own/square/sum",
        "seeds": (0, 1),
        "epochs": 20,
    }
    runs = penalty_readings(
        "digits", **options, long_networks=["vanillaNet", "sr2Net"], long_epochs=40, n_train=300
    )
    full = runs[13:16]
    last = runs[16:]
    assert [(run.variant, run.seed, run.epochs) for run in full] == [
        ("sr2Net", 100, 20), ("sr3Net", 100, 20), ("sr3Net", 100, 20)
    ]  # fmt: skip
    assert [run.decorrelation_pairs for run in full[1:]] == ["abs", "square"]
    assert [(run.variant, run.seed, run.epochs) for run in last] == [
        (network, seed, epochs)
        for seed in (0, 1)
        for network, epochs in (("vanillaNet", 40), ("sr1Net", 20), ("sr2Net", 40), ("sr3Net", 20))
    ]
    shared = {
        "seeds": (0, 1),
        "epochs": 20,
        "n_train": 300,
        "long_networks": ["vanillaNet", "sr2Net"],
        "long_epochs": 40,
    }
    networks = ["vanillaNet", "sr1Net", "sr2Net", "sr3Net"]
    table = sparsity_networks("digits", networks=networks, **shared, **reading_of("own/square/sum"))
    # Table 2's own runs, if it reads the same way
    assert [run.id for run in last] == [run.id for run in table]
    assert {run.n_train for run in runs} == {300}


def test_both_ways_over_the_batch_are_trained_on_the_tables_seeds_and_one_on_the_screening_seed():
    runs = penalty_readings(
        "digits",
        trained=["own/abs/sum"],
        chosen="own/abs/sum",
        seeds=(0, 1),
        sparsity_batches=["mean", "sum"],
    )
    screened = [run for run in runs if run.seed == SCREENING_SEED]
    assert {run.sparsity_batch for run in screened} == {"mean"}
    for seed in (0, 1):
        assert [(run.variant, run.sparsity_batch) for run in runs if run.seed == seed] == [
            ("vanillaNet", "mean"), ("sr1Net", "mean"), ("sr1Net", "sum"),
            ("sr2Net", "mean"), ("sr2Net", "sum"), ("sr3Net", "mean"), ("sr3Net", "sum"),
        ]  # fmt: skip
    assert len({run.id for run in runs}) == len(runs) == 13 + 2 + 2 * 7


def test_other_strengths_are_sr1_and_sr2_by_mean_on_the_first_seed():
    options = {
        "chosen": "own/abs/sum",
        "seeds": iter((3, 4)),
        "epochs": 20,
        "sparsity_batches": ["sum"],
    }
    runs = penalty_readings("digits", **options, strengths=[8, 0.5])
    assert len({run.id for run in runs}) == len(runs) == 13 + 2 * 4 + 2 * 2
    strong = runs[-4:]
    assert [(run.variant, run.seed, run.epochs, run.sparsity_batch) for run in strong] == [
        ("sr1Net", 3, 20, "mean"), ("sr2Net", 3, 20, "mean")
    ] * 2  # fmt: skip
    assert [run.sparsity_weight for run in strong] == pytest.approx([0.008, 0.008, 0.0005, 0.0005])
    assert {run.sparsity_weight for run in runs[:-4]} == {0.001}
    (plain,) = sparsity_networks("digits", networks=["sr1Net"], seeds=(3,), epochs=20)
    assert differing(plain, strong[0]) == {"sparsity_weight"}


def test_without_seeds_there_is_neither_a_table_s_run_nor_a_strength():
    assert len(penalty_readings("digits", chosen="own/abs/sum", strengths=[8])) == 13


def test_the_paper_profile_states_both_readings_of_sparsity_reg_and_one_strength_between():
    (entry,) = campaign.plan("paper", "penalty_readings")
    runs = entry.runs()
    assert len({run.id for run in runs}) == len(runs) == 13 + 4 + 3 * 7 + 2
    assert {run.sparsity_weight for run in runs} == {0.001, 0.008}
    assert {run.sparsity_batch for run in runs} == {"mean", "sum"}
    assert {(run.dataset, run.network, run.batch_size) for run in runs} == {
        ("cifar100", "convnet_s", 64)
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"trained": ["own/abs/sum", "own/abs"]},
            "trained or chosen holds own/abs; allowed: own/signed/sum",
        ),
        ({"chosen": "mean"}, "trained or chosen holds mean; allowed"),
        ({"screen_seed": 3}, "screen_seed is 3; seeds below 100 are the tables'"),
        ({"decorrelation": ("conv1",)}, "decorrelation cannot be set"),
        (
            {"strengths": [8, 0]},
            r"strengths is \[8, 0\]; each has to be a positive multiple of the paper's λ",
        ),
        ({"strengths": [-1]}, r"strengths is \[-1\]"),
        ({"strengths": [float("inf")]}, r"strengths is \[inf\]"),
        ({"strengths": [float("nan")]}, r"strengths is \[nan\]"),
        (
            {"chosen": "own/abs/sum", "sparsity_batches": ["median"]},
            r"sparsity_batches is \['median'\]; allowed: mean, sum",
        ),
        ({"chosen": "own/abs/sum", "sparsity_batches": []}, r"sparsity_batches is \[\]"),
        ({"sparsity_batch": "sum"}, "sparsity_batch cannot be set"),
    ],
)
def test_unknown_readings_strengths_and_seeds_of_the_tables_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        penalty_readings("digits", **settings)


# ---- both penalties under both tests

SHORT = {
    "epochs": 7,
    "speed": 2.0,
    "n_measure": 30,
    "clean_n_measure": 40,
    "clean_epochs": 6,
    "clean_speed": 3.0,
}


def test_each_test_has_the_four_networks_for_each_seed_and_the_first_a_control():
    runs = combined("mnist", clean_dataset="cifar10", seeds=(0, 4), corruption=0.5, **SHORT)
    assert len({run.id for run in runs}) == len(runs) == 18
    assert [run.seed for run in runs] == [0] * 5 + [4] * 5 + [0] * 4 + [4] * 4
    noisy = runs[:10]
    clean = runs[10:]
    assert {(r.network, r.dataset, r.epochs, r.n_measure) for r in noisy} == {
        ("al2_cnn", "mnist", 7, 30)
    }
    assert {(r.network, r.dataset, r.corruption, r.epochs) for r in clean} == {
        ("convnet_s", "cifar10", 0.0, 6)
    }
    assert all(run.entropy for run in runs)
    deep = ["head.fc1", "trunk.conv2"]
    for four, layers, speed in (
        (noisy[:4], deep, 2),
        (noisy[5:9], deep, 2),
        (clean[:4], [*SR], 3),
        (clean[4:], [*SR], 3),
    ):
        none, al2, sparsity, both = four
        assert al2.to_dict() == none.to_dict() | {"al2": True, "speed": speed}
        assert (
            sparsity.to_dict() == none.to_dict() | {"sparsity": layers}
            and sparsity.sparsity_weight == 0.001
        )
        assert both.to_dict() == sparsity.to_dict() | {"al2": True, "speed": speed}
    for none, control in ((noisy[0], noisy[4]), (noisy[5], noisy[9])):
        assert none.corruption == 0.5 and control.to_dict() == none.to_dict() | {"corruption": 0.0}


def test_without_a_set_for_the_second_test_the_first_is_alone():
    both = combined("mnist", clean_dataset="digits", seeds=(0, 4), **SHORT)
    alone = combined("mnist", clean_dataset=None, seeds=(0, 4), **SHORT)
    assert [run.id for run in alone] == [run.id for run in both[:10]]


def test_sparsity_reg_acts_on_the_same_kinds_of_layers_in_both_networks():
    """sr2Net: the last convolutions and the first dense layer."""
    run = combined("mnist", clean_dataset="digits")[3]
    names = measures.hidden_layers(trainer.build_network(run, 1, 28, 10))
    assert names == ["trunk.conv1", "trunk.conv2", "head.fc1"] and sorted(names[1:]) == list(
        run.sparsity
    )


@pytest.mark.parametrize("profile", ["quick", "lite", "paper"])
def test_the_networks_that_sparsity_networks_trains_too_are_its_runs(profile):
    """So they are trained once, and the paper's tables hold no cell that it does not state."""
    stated = {run.id for e in campaign.plan(profile, "sparsity_networks") for run in e.runs()}
    for run in (run for e in campaign.plan(profile, "combined") for run in e.runs()):
        assert (run.id in stated) == (run.network != "al2_cnn" and not run.al2)


def test_penalised_networks_train_as_long_as_is_read_whatever_the_length_of_the_others():
    runs = combined(
        "mnist",
        clean_dataset="digits",
        **SHORT,
        clean_long_networks=["vanillaNet", "sr2Net"],
        clean_long_epochs=9,
    )
    assert [(run.variant, run.epochs) for run in runs[5:]] == [
        ("vanillaNet", 9), ("vanillaNet+al2", 6), ("sr2Net", 9), ("sr2Net+al2", 6)
    ]  # fmt: skip


def test_settings_reach_their_own_test():
    runs = combined(
        "mnist",
        clean_dataset="digits",
        batch_size=16,
        clean_batch_size=32,
        clean_size="m",
        sparsity_weight=0.1,
    )
    assert [(run.batch_size, run.network) for run in runs] == [(16, "al2_cnn")] * 5 + [
        (32, "convnet_m")
    ] * 4
    assert {run.sparsity_weight for run in runs if run.sparsity} == {0.1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"al2": True}, "al2 cannot be set"),
        ({"clean_al2": True}, "clean_al2 cannot be set"),
        (
            {"sparsity": ("fc1",), "clean_networks": ["dropNet"]},
            "clean_networks, sparsity cannot be set",
        ),
        ({"corruption": 0.0}, "corruption is 0.0"),
        ({"sparsity_weight": 0.0}, "sparsity_weight 0.0"),
        ({"epoch": 3}, "'epoch'; did you mean 'epochs'"),
        ({"clean_epoch": 3}, "'epoch'; did you mean 'epochs'"),
        ({"n_measure": 0}, "n_measure is 0"),
    ],
)
def test_what_would_make_two_of_the_four_one_or_is_unknown_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        combined("mnist", clean_dataset="digits", **settings)


def test_of_both_penalties_runs_the_papers_tables_read_vanillanet_and_sr2net_alone():
    runs = combined("mnist", clean_dataset="digits", **SHORT)
    frame = pd.concat([stored(run, test_accuracy=50.0) for run in runs], ignore_index=True)
    assert set(tables.sparsity_runs(frame).variant) == {"vanillaNet", "sr2Net"}


# ---- calibration


def test_a_calibration_is_the_networks_with_al2_at_each_speed_on_screening_seeds():
    shared = {"epochs": 5, "n_validation": 500, "weight_decay": 1e-3}
    runs = calibration("mnist", speeds=[2.0, 4.0], **shared)
    assert [(run.speed, run.baseline) for run in runs] == [
        (speed, baseline)
        for speed in (2.0, 4.0)
        for baseline in ("bare", "batchnorm", "dropout", "weight_decay")
    ]
    assert all(run.al2 and run.seed == 100 and run.n_validation == 500 for run in runs)
    with pytest.raises(ValueError, match="seeds holds 3; those below 100 are the tables'"):
        calibration("mnist", seeds=[3, 100])


def test_what_lite_takes_over_from_paper_are_that_profile_s_own_runs():
    taken = [entry for entry in campaign.plan("lite") if entry.profile == "paper"]
    stated = {run.id for entry in campaign.plan("paper") for run in entry.runs()}
    assert {entry.experiment for entry in taken} == {
        "penalty_readings",
        "sparsity_networks",
        "lenet_alexnet",
    }
    assert {run.id for entry in taken for run in entry.runs()} <= stated
    own = evidence.stated("sparsity_networks")
    assert own["lite"] == [] and own["paper"]


def test_what_claims_are_judged_by_has_a_row_for_each_run_that_is_not_finished():
    frame = evidence.to_judge("schedules", profiles=["paper"])["schedules"]
    stated = evidence.stated("schedules", ["paper"])["paper"]
    assert set(frame.id) == {run.id for run in stated}
    missing = frame[frame.epoch.isna() & frame.diverged.isna()]
    assert missing.id.is_unique and set(frame.profile) == {"paper"}
