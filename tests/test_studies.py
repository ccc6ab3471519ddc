"""The papers' experiments as lists of runs."""

import pytest

from lib.run import Run
from lib.studies import VARIANTS, label_randomization, sparsity_networks

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
    assert runs[4].dropout == 0.5 and runs[6].weight_decay == 5e-4  # the papers' strengths, in their own baselines alone
    assert {run.dropout for run in runs if run.baseline != "dropout"} == {0}


def test_label_randomization_passes_strengths_to_their_own_baselines():
    runs = label_randomization("mnist", dropout=0.2, weight_decay=0.1)
    assert {run.dropout for run in runs} == {0, 0.2} and {run.weight_decay for run in runs} == {0, 0.1}


def test_label_randomization_refuses_an_unknown_setting():
    with pytest.raises(ValueError, match=r"epoch.*did you mean 'epochs'"):
        label_randomization("mnist", epoch=3)


@pytest.mark.parametrize("settings", [{"al2": True}, {"batch_norm": True}, {"dropout": 0}, {"weight_decay": 0}])
def test_label_randomization_refuses_what_would_make_two_of_the_eight_one(settings):
    with pytest.raises((ValueError, TypeError), match=next(iter(settings))):
        label_randomization("mnist", **settings)


@pytest.mark.parametrize("setting", [{"speed": 8.75}, {"schedule": "geometric"}])
def test_networks_without_al2_are_the_same_runs_whatever_the_schedule(setting):
    """A setting that cannot change the result is no part of the id: baselines are trained once for all schedules."""
    plain, other = label_randomization("mnist"), label_randomization("mnist", **setting)
    assert [run.id for run in plain[::2]] == [run.id for run in other[::2]]
    assert not {run.id for run in plain[1::2]} & {run.id for run in other[1::2]}


# ---- targeted sparsity

SR = ("conv3", "conv4", "fc1")
PAPER = dict(dataset="cifar100", corruption=0.0, normalize="unit", momentum=0.0, epochs=100, n_measure=1000, batch_size=64)
PAPER |= dict(learning_rate=0.01, weight_decay=0.0, n_train=None, n_validation=0, al2=False, padding="same", optimizer="sgd")
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
    assert [run.id for run in runs] == [Run(**PAPER, network=f"convnet_{size}", **own).id for own in SIX.values()]
    for run in runs:
        assert run.entropy and run.sparsity_weight == 0.001 and run.decorrelation_weight == 1.0


def test_the_six_differ_in_what_their_names_say_and_nothing_else():
    runs = sparsity_networks("digits", n_measure=100, sparsity_weight=0.5)
    for run in runs[1:]:
        differing = {name for name, value in run.to_dict().items() if value != runs[0].to_dict()[name]}
        own = set(SIX[run.variant])
        assert differing == own | ({"sparsity_weight"} if "sparsity" in own else set())


def test_adam_has_a_learning_rate_of_its_own_and_no_momentum():
    runs = sparsity_networks("cifar100", optimizer="adam")
    assert {(run.optimizer, run.learning_rate) for run in runs} == {("adam", 0.001)}
    assert [run.id for run in sparsity_networks("cifar100", optimizer="adam", momentum=0.9)] == [run.id for run in runs]
    assert [run.variant for run in runs] == list(VARIANTS)


def test_seeds_networks_and_settings_are_passed_on():
    runs = sparsity_networks(
        "digits", networks=["sr3Net", "dropNet"], seeds=(1, 4), dropout=0.5, epochs=3, learning_rate=0.2, heat_maps=2
    )
    assert [(run.seed, run.variant) for run in runs] == [(1, "sr3Net"), (1, "dropNet"), (4, "sr3Net"), (4, "dropNet")]
    assert [run.dropout for run in runs] == [0, 0.5] * 2
    assert {(run.epochs, run.learning_rate, run.heat_maps, run.n_measure) for run in runs} == {(3, 0.2, 2, 1000)}
    (reading,) = sparsity_networks("digits", networks=["sr3Net"], decorrelation_pairs="square", decorrelation_reduce="mean")
    assert (reading.decorrelation_pairs, reading.decorrelation_reduce) == ("square", "mean")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": ["vanillaNet", "sr4Net"]}, "networks holds sr4Net; allowed: vanillaNet, dropNet, normNet, sr1Net"),
        ({"size": "l"}, "'convnet_l'; allowed: .*convnet_s, convnet_m, convnet_xxl"),
        ({"optimizer": "rmsprop"}, "optimizer is 'rmsprop'; allowed: sgd, adam"),
        ({"epoch": 3}, "'epoch'; did you mean 'epochs'"),
        ({"dropout": 0.0}, "dropout is 0.0"),
        ({"batch_norm": True}, "batch_norm cannot be set"),
        ({"sparsity": ("conv1",)}, "sparsity cannot be set"),
        ({"decorrelation": ("conv1",)}, "decorrelation cannot be set"),
        ({"network": "lenet", "seed": 3}, "network, seed cannot be set"),
    ],
)
def test_what_would_make_two_of_the_six_one_or_is_unknown_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sparsity_networks("digits", **settings)
