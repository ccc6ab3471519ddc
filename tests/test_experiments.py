"""The papers' experiments as lists of runs."""

import pytest

from lib import measures, trainer
from lib.run import SCREENING_SEED, Run
from lib.schedules import SCHEDULES, schedule
from lib.study import campaign, evidence
from lib.study.experiments import (
    EXPERIMENTS,
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
    representations,
    schedules,
    sensitivity,
    sparsity_networks,
)


def ids(runs):
    """Their ids in order, no two alike."""
    found = [run.id for run in runs]
    assert len(set(found)) == len(found)
    return found


def differing(one: Run, other: Run) -> set[str]:
    return {name for name, value in one.to_dict().items() if value != other.to_dict()[name]}


def values(runs, *names):
    """The values that some fields have together in any of the runs."""
    return {tuple(getattr(run, name) for name in names) for run in runs}


# ---- what is refused

OPTIONS = dict(epochs=50, speed=3.4)
#: What an experiment is called with beside the setting that it refuses.
CALLED = {"schedules": OPTIONS, "sensitivity": OPTIONS, "combined": {"clean_dataset": "digits"}}
#: By experiment what its networks differ in.
FIXED = {
    label_randomization: "al2 batch_norm seed",
    representations: "al2 dropout seed",
    schedules: "al2 rate schedule seed weight_decay",
    sensitivity: "al2 batch_norm bn_gamma corruption_law schedule seed weight_decay",
    relabelling: "al2 predictions relabelled_by seed",
    sparsity_networks: "batch_norm decorrelation network seed sparsity sparsity_batch",
    lenet_alexnet: "network seed sparsity sparsity_batch",
    penalty_readings: "decorrelation sparsity_batch",
    combined: "al2 clean_al2 clean_networks clean_seed clean_sparsity networks seed sparsity",
}
SUM = {"chosen": "own/abs/sum"}
REFUSED = [
    *((experiment, {"epoch": 3}, "'epoch'; did you mean") for experiment in EXPERIMENTS.values()),
    # what would make two of an experiment's networks one
    *(
        (experiment, dict.fromkeys(fixed.split(), 1), f"^{fixed.replace(' ', ', ')} cannot be set")
        for experiment, fixed in FIXED.items()
    ),
    (label_randomization, {"dropout": 0}, "dropout is 0"),
    (label_randomization, {"weight_decay": 0}, "weight_decay 0"),
    (representations, {"dropouts": [0.5, 0.5]}, "each of them once"),
    (relabelling, {"corruption": 0}, "corruption is 0; there has to be something to repair"),
    (sparsity_networks, {"dropout": 0.0}, "dropout is 0.0"),
    (combined, {"corruption": 0.0}, "corruption is 0.0"),
    (combined, {"sparsity_weight": 0.0}, "sparsity_weight 0.0"),
    # what does not exist
    (schedules, {"kinds": ["al2", "cosine"]}, "'cosine'; allowed: al2, geometric, linear, const"),
    (schedules, {"totals": [0.0]}, "total is 0.0"),
    (schedules, {"totals": [1e-9]}, "no schedule 'al2' of 50 epochs adds up to"),
    (schedules, {"weight_decays": [-1.0]}, "weight_decay is -1.0"),
    (sensitivity, {"baselines": ["bare", "weight_decay"]}, "holds weight_decay; allowed: bare, ba"),
    (sensitivity, {"totals": [0.3, 1.0]}, "no total may be 1"),
    (sensitivity, {"totals": [1e-9]}, "no schedule 'al2' of 50 epochs adds up to"),
    (sensitivity, {"longer": 1}, "longer 1: .* whole number ≥ 2"),
    (
        sparsity_networks,
        {"networks": ["vanillaNet", "sr4Net"]},
        "networks holds sr4Net; allowed: v",
    ),
    (sparsity_networks, {"size": "l"}, "'convnet_l'; allowed: .*convnet_s, convnet_m, convnet_xxl"),
    (sparsity_networks, {"optimizer": "rmsprop"}, "optimizer is 'rmsprop'; allowed: sgd, adam"),
    (sparsity_networks, {"learning_rate": 0.0}, "learning_rate is 0.0; it has to be a positive"),
    (sparsity_networks, {"long_networks": ["sr2Net"]}, "long_networks needs long_epochs"),
    (sparsity_networks, {"long_networks": ["sr9Net"], "long_epochs": 4}, "long_networks holds sr9"),
    (sparsity_networks, {"sparsity_batches": ["sum", "sum"]}, "each of them once"),
    (lenet_alexnet, {"networks": ["lenet", "vgg"]}, "networks holds vgg; allowed: lenet, alexnet"),
    (lenet_alexnet, {"layers": "some"}, "layers is 'some'; allowed: all, targeted"),
    (lenet_alexnet, {"batch_norm": True}, "lenet has neither batch norm nor dropout"),
    (
        penalty_readings,
        {"trained": ["own/abs/sum", "own/abs"]},
        "chosen holds own/abs; allowed: own",
    ),
    (penalty_readings, {"chosen": "mean"}, "trained or chosen holds mean; allowed"),
    (penalty_readings, {"strengths": [8, 0]}, r"strengths is \[8, 0\]; each .* positive multiple"),
    (penalty_readings, {"strengths": [float("inf")]}, r"strengths is \[inf\]"),
    (penalty_readings, {"strengths": [float("nan")]}, r"strengths is \[nan\]"),
    (penalty_readings, SUM | {"sparsity_batches": ["median"]}, r"\['median'\]; allowed: mean, sum"),
    (penalty_readings, SUM | {"sparsity_batches": []}, r"sparsity_batches is \[\]"),
    (combined, {"clean_epoch": 3}, "'epoch'; did you mean 'epochs'"),
    (combined, {"n_measure": 0}, "n_measure is 0"),
    # seeds of the tables
    (penalty_readings, {"screen_seed": 3}, "screen_seed is 3; seeds below 100 are the tables'"),
    (calibration, {"seeds": [3, 100]}, "seeds holds 3; those below 100 are the tables'"),
]


@pytest.mark.parametrize(
    ("experiment", "settings", "message"),
    REFUSED,
    ids=[f"{experiment.__name__}: {', '.join(settings)}" for experiment, settings, _ in REFUSED],
)
def test_what_an_experiment_cannot_be_is_refused(experiment, settings, message):
    with pytest.raises(ValueError, match=message):
        experiment("digits", **CALLED.get(experiment.__name__, {}) | settings)


# ---- AL2


def test_label_randomization_is_eight_networks_a_seed_in_pairs_that_differ_in_al2_only():
    runs = label_randomization("mnist", seeds=(0, 5), epochs=80)
    assert len(ids(runs)) == 16 and [run.seed for run in runs] == [0] * 8 + [5] * 8
    for without, with_al2 in zip(runs[::2], runs[1::2], strict=True):
        assert not without.al2 and with_al2.al2 and differing(without, with_al2) == {"al2"}
    assert [run.baseline for run in runs[:8:2]] == ["bare", "batchnorm", "dropout", "weight_decay"]
    # the papers' strengths, in their own baselines alone
    assert [(run.dropout, run.weight_decay) for run in runs[:8:2]] == [
        (0, 0), (0, 0), (0.5, 0), (0, 5e-4)
    ]  # fmt: skip
    runs = label_randomization("mnist", dropout=0.2, weight_decay=0.1)
    assert values(runs, "dropout", "weight_decay") == {(0, 0), (0.2, 0), (0, 0.1)}


def test_schedules_are_bare_weight_decays_and_each_kind_at_each_total():
    settings = {"totals": [0.3, 1.0], "weight_decays": [1e-3, 5e-4], "speed": 6.15, "n_train": 50}
    runs = schedules("mnist", seeds=(0, 7), epochs=80, **settings)
    assert len(ids(runs)) == 2 * (1 + 2 + 4 * 2)
    for seed, own in ((0, runs[:11]), (7, runs[11:])):
        assert {run.seed for run in own} == {seed}
        assert [run.weight_decay for run in own] == [0, 1e-3, 5e-4] + [0] * 8
        assert [run.al2 for run in own] == [False] * 3 + [True] * 8
        assert [run.schedule for run in own[3:]] == [kind for kind in SCHEDULES for _ in range(2)]
    assert values(runs, "epochs", "n_train", "dropout", "batch_norm") == {(80, 50, 0, False)}
    whole = schedule("al2", 80, 6.15).sum()
    found = [schedule(r.schedule, 80, r.speed, r.rate).sum() / whole for r in runs if r.al2]
    assert found == pytest.approx([0.3, 1.0] * 8, rel=4e-3)


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
    assert ids(found["default"]) == ids(default)
    beside = {(run.baseline, run.al2, run.seed): run for run in default}
    for option, (baselines, al2, fields) in changes.items():
        wanted = {(b, a, seed) for b in baselines for a in al2 for seed in (0, 4)}
        assert values(found[option], "baseline", "al2", "seed") == wanted
        assert len(found[option]) == len(wanted)
        for run in found[option]:
            # a network without AL2 has no series that a speed could change
            acting = fields - (set() if run.al2 else {"speed"})
            assert differing(run, beside[run.baseline, run.al2, run.seed]) == acting


def test_sensitivity_is_the_default_then_the_options_seed_by_seed():
    settings = {"seeds": (0, 4), "totals": [0.1], "longer": 2} | SMALL
    runs = sensitivity("mnist", **settings)
    found = options("mnist", **settings)
    assert len(ids(runs)) == 2 * (6 + 6 + 2 + 4)
    assert {*ids(runs)} == {run.id for own in found.values() for run in own}
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
    runs = sensitivity("mnist", baselines=["dropout"], totals=[0.3], longer=2)
    assert values(runs, "baseline") == {("dropout",)}
    assert len(sensitivity("mnist")) == 6 + 6  # the laws alone
    long = sensitivity("mnist", dropout_epochs=750)
    assert [run.epochs for run in long if run.baseline == "dropout"] == [750, 750, 700, 700]


def test_relabelling_is_two_teachers_their_students_and_clean_labels_for_each_seed():
    runs = relabelling("mnist", seeds=(0, 4), corruption=0.5, epochs=80, speed=2.0, n_train=300)
    assert len(ids(runs)) == 10
    for seed, (bare, al2, *students, clean) in ((0, runs[:5]), (4, runs[5:])):
        settings = {"epochs": 80, "n_train": 300, "seed": seed}
        assert bare == Run("mnist", corruption=0.5, **settings)
        assert al2 == Run("mnist", corruption=0.5, al2=True, speed=2.0, **settings)
        assert clean == Run("mnist", corruption=0.0, **settings)
        for student, teacher in zip(students, (bare, al2), strict=True):
            assert student == Run("mnist", corruption=0.5, relabelled_by=teacher.id, **settings)
            assert teacher.predictions and not student.predictions and not clean.predictions
    # the teachers are runs of Table 1
    teachers = ids(run for run in relabelling("mnist", epochs=80) if run.predictions)
    assert teachers == ids(label_randomization("mnist", epochs=80))[:2]


# ---- targeted sparsity

SR = ("conv3", "conv4", "fc1")
PAPER = dict(dataset="cifar100", corruption=0.0, normalize="unit", momentum=0.0, epochs=100)
PAPER |= dict(n_measure=1000, batch_size=64, learning_rate=0.01, weight_decay=0.0, n_train=None)
PAPER |= dict(n_validation=0, al2=False, padding="same", optimizer="sgd")
SIX = {
    "vanillaNet": {},
    "dropNet": {"dropout": 0.25},
    "normNet": {"batch_norm": True},
    "sr1Net": {"sparsity": ("conv1", "conv2", *SR)},
    "sr2Net": {"sparsity": SR},
    "sr3Net": {"sparsity": SR, "decorrelation": ("conv1",)},
}
LONG = {"long_networks": ["vanillaNet", "sr2Net"]}


@pytest.mark.parametrize("size", ["s", "m", "xxl"])
def test_sparsity_networks_are_table_2_s_six_with_section_4_s_settings(size):
    runs = sparsity_networks("cifar100", size=size)
    assert [run.variant for run in runs] == list(SIX) == list(VARIANTS)
    wanted = [Run(**PAPER, network=f"convnet_{size}", **own) for own in SIX.values()]
    assert ids(runs) == ids(wanted)
    assert values(runs, "entropy", "sparsity_weight", "decorrelation_weight") == {(True, 0.001, 1)}


def test_adam_has_a_learning_rate_of_its_own_and_no_momentum():
    runs = sparsity_networks("cifar100", optimizer="adam")
    assert values(runs, "optimizer", "learning_rate") == {("adam", 0.001)}
    assert ids(runs) == ids(sparsity_networks("cifar100", optimizer="adam", momentum=0.9))


def test_seeds_networks_and_settings_are_passed_on():
    settings = {"epochs": 3, "learning_rate": 0.2, "heat_maps": 2}
    two = ["sr3Net", "dropNet"]
    runs = sparsity_networks("digits", networks=two, seeds=(1, 4), dropout=0.5, **settings)
    assert [(run.seed, run.variant) for run in runs] == [(s, name) for s in (1, 4) for name in two]
    assert [run.dropout for run in runs] == [0, 0.5] * 2
    assert values(runs, *settings, "n_measure") == {(3, 0.2, 2, 1000)}
    reading = {"decorrelation_pairs": "square", "decorrelation_reduce": "mean"}
    runs = sparsity_networks("digits", networks=["sr3Net"], **reading)
    assert values(runs, *reading) == {("square", "mean")}


def test_long_trainings_differ_from_short_ones_in_length_alone():
    """So the first epochs of the long one are the short one, and tables may read both."""
    short = sparsity_networks("digits", seeds=(0, 1), epochs=10)
    both = sparsity_networks("digits", seeds=(0, 1), epochs=10, **LONG, long_epochs=20)
    for one, other in zip(short, both, strict=True):
        long = one.variant in LONG["long_networks"]
        assert differing(one, other) == ({"epochs"} if long else set())
        assert other.epochs == (20 if long else 10) and (one.id == other.id) != long
    # one that is not wanted is not trained
    runs = sparsity_networks("digits", networks=["sr2Net"], **LONG, long_epochs=200)
    assert [(run.variant, run.epochs) for run in runs] == [("sr2Net", 200)]


def test_table_3_is_two_networks_without_and_with_sparsity_reg_for_each_seed():
    runs = lenet_alexnet("cifar10", seeds=(0, 3))
    names = ("LeNet", "LeNet+sr", "AlexNet", "AlexNet+sr")
    assert [(run.seed, run.variant) for run in runs] == [
        (s, name) for s in (0, 3) for name in names
    ]
    assert len(ids(runs)) == 8
    for without, with_sr in zip(runs[::2], runs[1::2], strict=True):
        assert differing(without, with_sr) == {"sparsity"} and with_sr.sparsity_weight == 0.001
        own = {"dataset": "cifar10", "network": without.network, "seed": without.seed}
        assert without == Run(**PAPER | own)


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


# ---- readings of DecorrReg and strengths of SparsityReg


def test_twelve_readings_and_sr2net_are_screened_on_one_seed_of_no_table():
    runs = penalty_readings("digits", screen_epochs=4, epochs=20)
    assert [run.variant for run in runs] == ["sr2Net"] + ["sr3Net"] * 12
    assert len(ids(runs)) == 13 == len(READINGS) + 1
    assert values(runs, "seed", "epochs") == {(SCREENING_SEED, 4)}
    for reading, run in zip(READINGS, runs[1:], strict=True):
        fields = (run.decorrelation_centre, run.decorrelation_pairs, run.decorrelation_reduce)
        assert "/".join(fields) == reading
        assert differing(runs[0], run) <= {"decorrelation", *reading_of(reading)}
    # without seeds there is neither a table's run nor a strength
    assert len(penalty_readings("digits", **SUM, strengths=[8])) == 13


def test_some_readings_are_trained_in_full_and_the_chosen_one_on_the_tables_seeds():
    shared = {"seeds": (0, 1), "epochs": 20, "n_train": 300, "long_epochs": 40} | LONG
    chosen = {"trained": ["own/abs/sum", "own/square/mean"], "chosen": "own/square/sum"}
    runs = penalty_readings("digits", **chosen, **shared)
    full = runs[13:16]
    assert [run.variant for run in full] == ["sr2Net", "sr3Net", "sr3Net"]
    assert values(full, "seed", "epochs") == {(100, 20)}
    assert [run.decorrelation_pairs for run in full[1:]] == ["abs", "square"]
    assert [(run.variant, run.epochs) for run in runs[16:20]] == [
        ("vanillaNet", 40), ("sr1Net", 20), ("sr2Net", 40), ("sr3Net", 20)
    ]  # fmt: skip
    networks = ["vanillaNet", "sr1Net", "sr2Net", "sr3Net"]
    table = sparsity_networks("digits", networks=networks, **shared, **reading_of("own/square/sum"))
    # Table 2's own runs, if it reads the same way
    assert ids(runs[16:]) == ids(table)
    assert {run.n_train for run in runs} == {300}


def test_both_ways_over_the_batch_are_trained_on_the_tables_seeds_and_one_on_the_screening_seed():
    shared = {"seeds": (0, 1), "sparsity_batches": ["mean", "sum"]} | SUM
    runs = penalty_readings("digits", trained=["own/abs/sum"], **shared)
    screened = [run for run in runs if run.seed == SCREENING_SEED]
    assert {run.sparsity_batch for run in screened} == {"mean"}
    for seed in (0, 1):
        assert [(run.variant, run.sparsity_batch) for run in runs if run.seed == seed] == [
            ("vanillaNet", "mean"), ("sr1Net", "mean"), ("sr1Net", "sum"),
            ("sr2Net", "mean"), ("sr2Net", "sum"), ("sr3Net", "mean"), ("sr3Net", "sum"),
        ]  # fmt: skip
    assert len(ids(runs)) == 13 + 2 + 2 * 7


def test_other_strengths_are_sr1_and_sr2_by_mean_on_the_first_seed():
    shared = {"seeds": iter((3, 4)), "epochs": 20, "sparsity_batches": ["sum"]} | SUM
    runs = penalty_readings("digits", **shared, strengths=[8, 0.5])
    assert len(ids(runs)) == 13 + 2 * 4 + 2 * 2
    strong = runs[-4:]
    assert [run.variant for run in strong] == ["sr1Net", "sr2Net"] * 2
    assert values(strong, "seed", "epochs", "sparsity_batch") == {(3, 20, "mean")}
    assert [run.sparsity_weight for run in strong] == pytest.approx([0.008, 0.008, 0.0005, 0.0005])
    assert {run.sparsity_weight for run in runs[:-4]} == {0.001}
    (plain,) = sparsity_networks("digits", networks=["sr1Net"], seeds=(3,), epochs=20)
    assert differing(plain, strong[0]) == {"sparsity_weight"}


def test_the_paper_profile_states_both_readings_of_sparsity_reg_and_one_strength_between():
    (entry,) = campaign.plan("paper", "penalty_readings")
    assert len(ids(entry.runs)) == 13 + 4 + 3 * 7 + 2
    assert values(entry.runs, "sparsity_weight") == {(0.001,), (0.008,)}
    assert values(entry.runs, "sparsity_batch") == {("mean",), ("sum",)}
    where = values(entry.runs, "dataset", "network", "batch_size")
    assert where == {("cifar100", "convnet_s", 64)}


# ---- both penalties under both tests

SHORT = {"epochs": 7, "speed": 2.0, "n_measure": 30}
SHORT |= {"clean_n_measure": 40, "clean_epochs": 6, "clean_speed": 3.0}


def test_each_test_has_the_four_networks_for_each_seed_and_the_first_a_control():
    runs = combined("mnist", clean_dataset="cifar10", seeds=(0, 4), corruption=0.5, **SHORT)
    assert len(ids(runs)) == 18 and all(run.entropy for run in runs)
    assert [run.seed for run in runs] == [0] * 5 + [4] * 5 + [0] * 4 + [4] * 4
    noisy, clean = runs[:10], runs[10:]
    fields = ("network", "dataset", "epochs", "n_measure")
    assert values(noisy, *fields) == {("al2_cnn", "mnist", 7, 30)}
    assert values(clean, *fields) == {("convnet_s", "cifar10", 6, 40)}
    assert values(clean, "corruption") == {(0.0,)}
    deep = ("head.fc1", "trunk.conv2")
    tests = [(noisy[:4], deep, 2), (noisy[5:9], deep, 2), (clean[:4], SR, 3), (clean[4:], SR, 3)]
    for (none, al2, sparsity, both), layers, speed in tests:
        assert al2.to_dict() == none.to_dict() | {"al2": True, "speed": speed}
        assert sparsity.to_dict() == none.to_dict() | {"sparsity": list(layers)}
        assert sparsity.sparsity_weight == 0.001
        assert both.to_dict() == sparsity.to_dict() | {"al2": True, "speed": speed}
    for none, control in ((noisy[0], noisy[4]), (noisy[5], noisy[9])):
        assert none.corruption == 0.5 and control.to_dict() == none.to_dict() | {"corruption": 0.0}
    # without a set for the second test the first is alone
    alone = combined("mnist", clean_dataset=None, seeds=(0, 4), corruption=0.5, **SHORT)
    assert ids(alone) == ids(noisy)


def test_sparsity_reg_acts_on_the_same_kinds_of_layers_in_both_networks():
    """sr2Net: the last convolutions and the first dense layer."""
    run = combined("mnist", clean_dataset="digits")[3]
    names = measures.hidden_layers(trainer.build_network(run, 1, 28, 10))
    assert names == ["trunk.conv1", "trunk.conv2", "head.fc1"]
    assert sorted(names[1:]) == list(run.sparsity)


@pytest.mark.parametrize("profile", ["quick", "lite", "paper"])
def test_the_networks_that_sparsity_networks_trains_too_are_its_runs(profile):
    """So they are trained once, and the paper's tables hold no cell that it does not state."""
    stated = {run.id for e in campaign.plan(profile, "sparsity_networks") for run in e.runs}
    for run in (run for e in campaign.plan(profile, "combined") for run in e.runs):
        assert (run.id in stated) == (run.network != "al2_cnn" and not run.al2)


def test_penalised_networks_train_as_long_as_is_read_whatever_the_length_of_the_others():
    longer = {f"clean_{name}": value for name, value in (LONG | {"long_epochs": 9}).items()}
    runs = combined("mnist", clean_dataset="digits", **SHORT, **longer)
    assert [(run.variant, run.epochs) for run in runs[5:]] == [
        ("vanillaNet", 9), ("vanillaNet+al2", 6), ("sr2Net", 9), ("sr2Net+al2", 6)
    ]  # fmt: skip


def test_settings_reach_their_own_test():
    settings = {"batch_size": 16, "clean_batch_size": 32, "clean_size": "m", "sparsity_weight": 0.1}
    runs = combined("mnist", clean_dataset="digits", **settings)
    assert values(runs[:5], "batch_size", "network") == {(16, "al2_cnn")}
    assert values(runs[5:], "batch_size", "network") == {(32, "convnet_m")}
    assert {run.sparsity_weight for run in runs if run.sparsity} == {0.1}


# ---- calibration, and what a profile takes over


def test_a_calibration_is_the_networks_with_al2_at_each_speed_on_screening_seeds():
    shared = {"epochs": 5, "n_validation": 500, "weight_decay": 1e-3}
    runs = calibration("mnist", speeds=[2.0, 4.0], **shared)
    four = ("bare", "batchnorm", "dropout", "weight_decay")
    assert [(r.speed, r.baseline) for r in runs] == [(s, b) for s in (2.0, 4.0) for b in four]
    assert values(runs, "al2", "seed", "n_validation") == {(True, 100, 500)}
    two = calibration("mnist", speeds=[2.0, 4.0], baselines=["bare", "dropout"], **shared)
    assert two == [run for run in runs if run.baseline in ("bare", "dropout")]
    with pytest.raises(ValueError, match="baselines"):
        calibration("mnist", baselines=["bare", "wd"], **shared)


def test_what_lite_takes_over_from_paper_are_that_profile_s_own_runs():
    taken = [entry for entry in campaign.plan("lite") if entry.profile == "paper"]
    stated = {run.id for entry in campaign.plan("paper") for run in entry.runs}
    names = {"penalty_readings", "sparsity_networks", "lenet_alexnet"}
    assert {entry.experiment for entry in taken} == names
    assert {run.id for entry in taken for run in entry.runs} <= stated
    own = evidence.stated("sparsity_networks")
    assert own["lite"] == [] and own["paper"]


def test_what_claims_are_judged_by_has_a_row_for_each_run_that_is_not_finished():
    frame = evidence.to_judge("schedules", profiles=["paper"])["schedules"]
    stated = evidence.stated("schedules", ["paper"])["paper"]
    assert set(frame.id) == {run.id for run in stated}
    missing = frame[frame.epoch.isna() & frame.diverged.isna()]
    assert missing.id.is_unique and set(frame.profile) == {"paper"}
