import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lib import paths
from lib.run import ABLATIONS, Run, generator

# Published ids: they name folders of stored results and never change.
TRAINED = {
    "al2": True,
    "batch_norm": True,
    "corruption": 0.5,
    "dataset": "fashion_mnist",
    "dropout": 0.5,
    "epochs": 80,
}
TRAINED |= {"n_train": 2000, "speed": 8.75, "weight_decay": 0.0005}
PINNED = [
    ({"dataset": "digits"}, "8872d00f74"),
    ({"dataset": "mnist", "al2": True, "seed": 3}, "e6853de5ea"),
    (TRAINED, "40d374b9e9"),
]


# ---- identity


@pytest.mark.parametrize(("fields", "run_id"), PINNED)
def test_ids_never_change_and_hash_what_differs_from_the_defaults(fields, run_id):
    run = Run(**fields)
    assert run.id == run_id
    assert json.loads(run.canonical()) == fields
    text = json.dumps(dict(sorted(fields.items())), separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest()[:10] == run_id


def test_a_default_that_is_spelled_out_changes_no_id():
    run = Run("mnist")
    assert Run(**run.to_dict()).id == run.id
    assert json.loads(run.canonical()) == {"dataset": "mnist"}


def test_the_documented_defaults_are_the_papers_bare_network():
    expected = dict(
        network="al2_cnn",
        corruption=0.75,
        epochs=700,
        batch_size=64,
        learning_rate=0.001,
        momentum=0.5,
    )
    expected |= dict(
        weight_decay=0, dropout=0, batch_norm=False, al2=False, schedule="al2", speed=1, seed=0
    )
    values = Run("mnist").to_dict()
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize("one", [1, 1.0, np.float64(1), np.int64(1), np.float32(1)])
def test_kinds_of_number_change_no_id(one):
    assert Run("mnist", corruption=one).id == Run("mnist", corruption=1.0).id


@pytest.mark.parametrize("five", [5, np.int64(5), np.uint8(5)])
def test_kinds_of_whole_number_change_no_id(five):
    assert Run("mnist", epochs=five).id == Run("mnist", epochs=5).id


def test_minus_zero_is_zero():
    assert Run("mnist", corruption=-0.0).id == Run("mnist", corruption=0.0).id


def test_what_is_measured_is_no_part_of_the_id():
    run = Run(
        "mnist", test_images=500, ablations=("shared/test", "channel/test"), keep_weights=True
    )
    assert run.id == Run("mnist").id
    assert run == Run("mnist")
    assert not run.to_dict().keys() & {"test_images", "ablations", "keep_weights"}
    asked = {"test_images": 500, "ablations": ["shared/test", "channel/test"], "keep_weights": True}
    assert run.measured() == asked | {
        "entropy": False,
        "heat_maps": 0,
        "cca": [],
        "keep_trunk": False,
        "predictions": False,
    }


OTHER = dict(
    image_size=20,
    classes=5,
    normalize="unit",
    n_train=100,
    n_validation=10,
    corruption=0.5,
    corruption_law="exact",
)
OTHER |= dict(batch_norm=True, dropout=0.25, al2=True, weight_decay=0.1, learning_rate=0.1)
OTHER |= dict(momentum=0.9, batch_size=32, epochs=10, seed=1, relabelled_by="40d374b9e9")


def test_every_setting_that_changes_a_training_changes_its_id():
    ids = {Run("mnist").id} | {Run("mnist", **{name: value}).id for name, value in OTHER.items()}
    ids |= {Run("digits").id, Run("mnist", batch_norm=True, bn_gamma="uniform").id}
    ids |= {Run("mnist", al2=True, speed=2).id, Run("mnist", al2=True, schedule="linear").id}
    ids |= {Run("mnist", al2=True, schedule="linear", rate=0.5).id}
    assert len(ids) == len(OTHER) + 6


def test_a_run_survives_json():
    run = Run("mnist", **OTHER, ablations=("shared/test",))
    again = Run.from_dict(json.loads(json.dumps(run.to_dict() | run.measured())))
    assert again == run and again.id == run.id and again.measured() == run.measured()


def test_a_run_cannot_be_changed():
    with pytest.raises(AttributeError):
        Run("mnist").epochs = 5


def test_the_name_is_readable_and_ends_with_the_id():
    assert Run("digits").name == "al2_cnn-bare-corrupt75-seed0-8872d00f74"
    assert Run("mnist", al2=True, seed=3).name == "al2_cnn-bare-al2-corrupt75-seed3-e6853de5ea"
    run = Run("mnist", dropout=0.5, al2=True, schedule="geometric", corruption=0.07)
    assert run.name == f"al2_cnn-dropout-al2_geometric-corrupt7-seed0-{run.id}"
    run = Run("mnist", relabelled_by="40d374b9e9")
    assert run.name == f"al2_cnn-bare-relabelled-corrupt75-seed0-{run.id}"


def test_baselines_have_the_published_tables_names():
    names = [
        Run("mnist", **f).baseline
        for f in ({}, {"batch_norm": True}, {"dropout": 0.5}, {"weight_decay": 5e-4})
    ]
    assert names == ["bare", "batchnorm", "dropout", "weight_decay"]
    assert Run("mnist", batch_norm=True, dropout=0.5).baseline == "batchnorm+dropout"


# ---- bad input: the message names the field, what was given and what is allowed

FRACTIONS = [
    ("corruption", [-0.1, 1.1, math.nan, math.inf, 75], r"a fraction in \[0, 1\]"),
    ("dropout", [-0.1, 1.0, 1.5, math.nan], r"\[0, 1\)"),
    ("momentum", [-0.1, 1.0, math.nan], r"\[0, 1\)"),
    ("learning_rate", [0, -0.1, math.nan, math.inf], "a positive number"),
    ("weight_decay", [-1e-4, math.nan, math.inf], "≥ 0"),
    ("speed", [0, -1, math.nan, math.inf], "a positive number"),
    ("epochs", [0, -1], "a whole number ≥ 1"),
    ("batch_size", [0, -1], "a whole number ≥ 1"),
    ("n_train", [0, -1], "a whole number ≥ 1"),
    ("image_size", [0], "a whole number ≥ 1"),
    ("classes", [0], "a whole number ≥ 1"),
    ("test_images", [0], "a whole number ≥ 1"),
    ("n_validation", [-1], "a whole number ≥ 0"),
    ("seed", [-1], "a whole number ≥ 0"),
]


@pytest.mark.parametrize(
    ("name", "value", "wanted"), [(n, v, w) for n, values, w in FRACTIONS for v in values]
)
def test_numbers_out_of_range_are_refused(name, value, wanted):
    with pytest.raises(ValueError, match=rf"^{name} is {value}(\.0)?; it has to be .*{wanted}"):
        Run("mnist", **{name: value})


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_a_rate_has_to_be_positive(rate):
    with pytest.raises(ValueError, match=r"^rate is"):
        Run("mnist", al2=True, schedule="linear", rate=rate)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("network", "resnet", "al2_cnn"),
        ("optimizer", "sdg", "sgd"),
        ("schedule", "cosine", "al2, geometric, linear, constant"),
        ("corruption_law", "some", "bernoulli, exact"),
        ("normalize", "no", "al2, unit"),
        ("bn_gamma", "zeros", "ones, uniform"),
        ("ablations", ["element"], "element/train-true, .*channel/test"),
    ],
)
def test_unknown_names_are_refused_with_those_there_are(name, value, allowed):
    with pytest.raises(ValueError, match=rf"^{name} is .*allowed: .*{allowed}"):
        Run("mnist", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", True),
        ("epochs", 3.0),
        ("epochs", "3"),
        ("epochs", None),
        ("seed", None),
        ("n_train", 0.5),
        ("corruption", True),
        ("corruption", None),
        ("corruption", [0.5]),
        ("al2", 1),
        ("al2", "yes"),
        ("al2", None),
        ("keep_weights", 0),
        ("dataset", 3),
        ("dataset", None),
        ("schedule", None),
        ("relabelled_by", 40),
        ("relabelled_by", True),
        ("predictions", 1),
        ("ablations", "element/test"),
        ("ablations", 5),
        ("ablations", None),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name(name, value):
    with pytest.raises(TypeError, match=rf"^{name} is "):
        Run(**({"dataset": "mnist"} | {name: value}))


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "rate"])
def test_a_number_that_yaml_read_as_text_is_refused_with_the_remedy(name):
    with pytest.raises(TypeError, match=rf"^{name} is '1e-4', a str.*YAML.*1\.0e-4"):
        Run("mnist", **{name: "1e-4"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bare",
        "40d374b9e",
        "40d374b9e90",
        "40D374B9E9",
        "40d374b9eg",
        " 40d374b9e9",
        "../4d374b9",
    ],
)
def test_a_text_that_is_no_id_relabels_nothing(text):
    with pytest.raises(
        ValueError, match=r"^relabelled_by is .*; it has to be a run's id, ten hexadecimal digits"
    ):
        Run("mnist", relabelled_by=text)


def test_an_empty_data_set_name_is_refused():
    with pytest.raises(ValueError, match="dataset"):
        Run("")


@pytest.mark.parametrize("dataset", ["../mnist", "a/b", "/mnist", "..", "my[1]", "*"])
def test_a_data_set_name_that_leads_out_of_its_folder_or_is_a_pattern_is_refused(dataset):
    with pytest.raises(ValueError, match="dataset"):
        Run(dataset)


def test_a_rate_beside_the_schedule_al2_is_refused_when_the_run_is_stated():
    with pytest.raises(ValueError, match="rate"):
        Run("mnist", al2=True, rate=1.05)


def test_an_unknown_parameter_is_refused_with_the_nearest_known_one():
    with pytest.raises(
        ValueError,
        match=r"'learning_rat'.*did you mean 'learning_rate'\?.*Known: dataset, .*keep_weights",
    ):
        Run.from_dict({"dataset": "mnist", "learning_rat": 0.1})


def test_an_unknown_parameter_that_resembles_none_is_refused_too():
    with pytest.raises(ValueError, match=r"no parameter 'zzzz'[;.:,] .*dataset"):
        Run.from_dict({"dataset": "mnist", "zzzz": 0.1})


# ---- derived


@pytest.mark.parametrize(
    ("epochs", "points"),
    [
        (700, [100, 200, 300, 400, 500, 600, 700]),
        (750, [100, 200, 300, 400, 500, 600, 700, 750]),
        (80, [11, 23, 34, 46, 57, 69, 80]),
        (7, [1, 2, 3, 4, 5, 6, 7]),
        (3, [1, 2, 3]),
        (1, [1]),
    ],
)
def test_tables_are_read_at_the_papers_epochs_and_at_the_last(epochs, points):
    assert Run("mnist", epochs=epochs).table_epochs() == points


@pytest.mark.parametrize("epochs", range(1, 30))
def test_points_are_epochs_of_the_run_and_end_with_its_last(epochs):
    points = Run("mnist", epochs=epochs).table_epochs()
    assert points == sorted(set(points))
    assert points[0] >= 1 and points[-1] == epochs


def test_with_measures_measures_what_either_does_and_keeps_the_id():
    one = Run("mnist", test_images=100, ablations=("element/test",))
    other = Run(
        "mnist", test_images=500, ablations=("element/test", "shared/test"), keep_weights=True
    )
    both = one.with_measures(other)
    assert both.id == one.id
    asked = {"test_images": 500, "ablations": ["element/test", "shared/test"], "keep_weights": True}
    assert both.measured() == asked | {
        "entropy": False,
        "heat_maps": 0,
        "cca": [],
        "keep_trunk": False,
        "predictions": False,
    }
    assert one.with_measures(Run("mnist", test_images=None)).test_images is None


def test_the_order_of_the_ablations_and_their_repetition_mean_nothing():
    one, other = (
        Run("mnist", ablations=ABLATIONS[:3]),
        Run("mnist", ablations=(*reversed(ABLATIONS[:3]), ABLATIONS[0])),
    )
    assert one.measured() == other.measured()


# ---- runs of the targeted-sparsity paper

CONV = Run("digits", network="convnet_s", corruption=0.0, momentum=0.0, n_measure=50)
SR3 = replace(CONV, sparsity=("conv3", "conv4", "fc1"), decorrelation=("conv1",))
COMMITTED = sorted((paths.ROOT / "results").glob("*/*/*/config.json"))


def test_every_committed_run_still_gives_its_own_id_and_folder():
    """Whatever fields are added: else results would be lost, and trained again."""
    assert COMMITTED
    for path in COMMITTED:
        config = json.loads(path.read_text())
        run = Run.from_dict(config["run"] | config["measures"])
        assert run.id == config["id"]
        assert run.name == path.parent.name
        assert (
            run.to_dict() == run.to_dict() | config["run"]
        )  # the fields of then have the values of then


def test_the_id_of_a_regularised_run_hashes_its_layers_as_a_list():
    fields = {
        "corruption": 0.0,
        "dataset": "digits",
        "decorrelation": ["conv1"],
        "momentum": 0.0,
        "n_measure": 50,
    }
    fields |= {"network": "convnet_s", "sparsity": ["conv3", "conv4", "fc1"]}
    assert json.loads(SR3.canonical()) == fields
    text = json.dumps(fields, separators=(",", ":"))
    assert SR3.id == hashlib.sha256(text.encode()).hexdigest()[:10]
    assert Run.from_dict(fields).id == SR3.id


def test_the_order_of_the_layers_and_their_repetition_mean_nothing():
    assert replace(SR3, sparsity=["fc1", "conv4", "conv3", "fc1"]).id == SR3.id


CHANGES = [
    {"network": name} for name in ("convnet_m", "convnet_xxl", "lenet", "alexnet", "al2_cnn")
]
CHANGES += [
    {"batch_norm": True},
    {"batch_norm": True, "norm_place": "block"},
    {"padding": "valid"},
    {"dropout": 0.25},
]
CHANGES += [
    {"optimizer": "adam"},
    {"momentum": 0.9},
    {"n_measure": 60},
    {"n_measure": 0},
    {"al2": True},
]
CHANGES += [
    {"sparsity": ()},
    {"sparsity": ("conv1",)},
    {"sparsity_weight": 0.01},
    {"decorrelation": ()},
]
CHANGES += [
    {"decorrelation": ("conv2",)},
    {"decorrelation_weight": 0.1},
    {"decorrelation_centre": "mean_filter"},
]
CHANGES += [
    {"decorrelation_pairs": "abs"},
    {"decorrelation_pairs": "square"},
    {"decorrelation_reduce": "mean"},
]


def test_every_setting_that_changes_a_regularised_training_changes_its_id():
    assert len({SR3.id} | {replace(SR3, **change).id for change in CHANGES}) == 1 + len(CHANGES)


DECORRELATION = {"weight": 0.5, "centre": "mean_filter", "pairs": "square", "reduce": "mean"}
DECORRELATION = {f"decorrelation_{name}": value for name, value in DECORRELATION.items()}
IDLE = [
    (CONV, {"sparsity_weight": 0.5}),
    (CONV, {"sparsity": ("conv1",), "sparsity_weight": 0.0}),
    (CONV, {"sparsity_batch": "sum"}),
    (CONV, DECORRELATION),
    (CONV, {"decorrelation": ("conv1",)} | DECORRELATION | {"decorrelation_weight": 0.0}),
    (CONV, {"norm_place": "block"}),
    (CONV, {"bn_gamma": "uniform"}),
    (replace(CONV, batch_norm=True), {"bn_gamma": "uniform"}),
    (CONV, {"corruption_law": "exact"}),
    (CONV, {"schedule": "linear", "speed": 2.0, "rate": 0.5}),
    (replace(CONV, optimizer="adam"), {"momentum": 0.9}),
    (replace(CONV, network="lenet"), {"padding": "valid", "norm_place": "block"}),
    (replace(CONV, network="alexnet"), {"padding": "valid"}),
    (Run("mnist"), {"padding": "valid", "norm_place": "block", "bn_gamma": "uniform"}),
    (Run("mnist", batch_norm=True), {"norm_place": "block"}),
    (Run("mnist", al2=True, schedule="constant", rate=0.5), {"speed": 3.0}),
]


@pytest.mark.parametrize(("run", "settings"), IDLE)
def test_settings_without_effect_are_reset_and_no_part_of_the_id(run, settings):
    other = replace(run, **settings)
    assert other == run and other.id == run.id and other.canonical() == run.canonical()
    assert other.to_dict() == run.to_dict()


def test_settings_without_effect_are_checked_all_the_same():
    for settings in (
        {"norm_place": "twice"},
        {"padding": "reflect"},
        {"decorrelation_pairs": "cubic"},
        {"schedule": "cosine"},
    ):
        with pytest.raises(ValueError, match=rf"^{next(iter(settings))} is .*allowed"):
            replace(CONV, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity_weight": -0.1}, r"^sparsity_weight is -0\.1; it has to be a number ≥ 0"),
        ({"sparsity_weight": math.nan}, "^sparsity_weight is nan"),
        (
            {"decorrelation_weight": math.inf},
            "^decorrelation_weight is inf; it has to be a number ≥ 0",
        ),
        ({"n_measure": -1}, "^n_measure is -1; it has to be a whole number ≥ 0"),
        ({"heat_maps": -1}, "^heat_maps is -1"),
        ({"heat_maps": 51}, "^heat_maps is 51; it has to be at most n_measure, 50"),
        ({"n_measure": 0, "entropy": True}, "^entropy is .*n_measure is 0"),
        (
            {"network": "lenet", "dropout": 0.25},
            "^lenet has neither batch norm nor dropout.*convnet_s",
        ),
        ({"network": "alexnet", "batch_norm": True}, "^alexnet has neither"),
        (
            {"network": "convnet_l"},
            "^network is 'convnet_l'; allowed: al2_cnn, convnet_s, convnet_m, convnet_xxl, lenet, "
            "alexnet",
        ),
        ({"optimizer": "sdg"}, "^optimizer is 'sdg'; allowed: sgd, adam"),
        ({"decorrelation_centre": "median"}, "allowed: own, mean_filter"),
        ({"sparsity_batch": "max"}, "allowed: mean, sum"),
        ({"decorrelation_reduce": "max"}, "allowed: sum, mean"),
    ],
)
def test_bad_settings_of_a_sparsity_run_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(CONV, **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparsity", "conv1"),
        ("sparsity", [1]),
        ("decorrelation", None),
        ("entropy", 1),
        ("heat_maps", True),
        ("n_measure", 1.5),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name_in_a_sparsity_run(name, value):
    with pytest.raises(TypeError, match=rf"^{name} (is|holds) "):
        replace(CONV, **{name: value})


def test_entropy_and_heat_maps_are_measures_and_no_part_of_the_id():
    run = replace(CONV, entropy=True, heat_maps=4)
    assert run == CONV and run.id == CONV.id and not run.to_dict().keys() & {"entropy", "heat_maps"}
    asked = {
        "test_images": None,
        "ablations": [],
        "keep_weights": False,
        "entropy": True,
        "heat_maps": 4,
        "cca": [],
    }
    asked |= {"keep_trunk": False, "predictions": False}
    assert run.measured() == asked
    both = replace(CONV, heat_maps=9).with_measures(run)
    assert both.entropy and both.heat_maps == 9 and both.id == CONV.id

    assert run.with_measures(CONV).measured() == run.measured()
    assert run.with_measures(replace(CONV, heat_maps=9)).measured() == both.measured()


def test_predictions_and_the_trunk_are_measures_and_no_part_of_the_id():
    run = Run("mnist", predictions=True, keep_trunk=True)
    assert (
        run == Run("mnist")
        and run.id == Run("mnist").id
        and not run.to_dict().keys() & {"predictions", "keep_trunk"}
    )
    both = Run("mnist", predictions=True).with_measures(Run("mnist", keep_trunk=True))
    assert both.predictions and both.keep_trunk
    assert (
        not replace(CONV, keep_trunk=True).keep_trunk
        and replace(CONV, predictions=True).predictions
    )  # a ConvNet has none


def test_a_sparsity_run_survives_json():
    run = replace(SR3, entropy=True, heat_maps=3, optimizer="adam", decorrelation_pairs="square")
    again = Run.from_dict(json.loads(json.dumps(run.to_dict() | run.measured())))
    assert again == run and again.id == run.id and again.measured() == run.measured()


@pytest.mark.parametrize("network", ["convnet_s", "lenet", "alexnet"])
def test_networks_without_trunk_and_head_have_no_ablations_and_no_points(network):
    run = Run("digits", network=network, ablations=("shared/test",))
    assert run.ablations == () and run.table_epochs() == []
    assert run.with_measures(Run("digits", network=network)).ablations == ()


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [0, 1]), (2, [0, 1, 2]), (100, [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100])],
)
def test_heat_maps_are_taken_before_training_and_ever_more_rarely_to_the_last_epoch(
    epochs, expected
):
    assert Run("digits", epochs=epochs).heat_map_epochs() == expected


@pytest.mark.parametrize("epochs", range(1, 210, 7))
def test_heat_map_epochs_are_epochs_of_the_run(epochs):
    found = Run("digits", epochs=epochs).heat_map_epochs()
    assert (
        found == sorted(set(found))
        and found[:2] == [0, 1]
        and found[-1] == epochs
        and len(found) <= 12
    )


SR1_LAYERS = ("conv1", "conv2", "conv3", "conv4", "fc1")
NAMED = [
    ({}, "vanillaNet"),
    ({"dropout": 0.25}, "dropNet"),
    ({"batch_norm": True}, "normNet"),
    ({"batch_norm": True, "norm_place": "block"}, "normNet"),
    ({"sparsity": SR1_LAYERS}, "sr1Net"),
    ({"sparsity": SR1_LAYERS[2:]}, "sr2Net"),
    (
        {"sparsity": SR1_LAYERS[2:], "decorrelation": ("conv1",), "decorrelation_pairs": "square"},
        "sr3Net",
    ),
    # what the paper has not
    ({"sparsity": SR1_LAYERS[2:], "sparsity_weight": 0.0}, "vanillaNet"),
    ({"sparsity": ("conv1",)}, "vanillaNet+sr conv1"),
    ({"decorrelation": ("conv1",)}, "vanillaNet+decorr conv1"),
    (
        {"sparsity": SR1_LAYERS[2:], "decorrelation": ("conv1", "conv2")},
        "vanillaNet+sr conv3 conv4 fc1+decorr conv1 conv2",
    ),
    ({"sparsity": SR1_LAYERS[2:], "batch_norm": True}, "normNet+sr conv3 conv4 fc1"),
    ({"sparsity": SR1_LAYERS, "dropout": 0.25}, "dropNet+sr conv1 conv2 conv3 conv4 fc1"),
    ({"batch_norm": True, "dropout": 0.25}, "normNet+dropout"),
    ({"al2": True}, "vanillaNet+al2"),
    ({"al2": True, "sparsity": SR1_LAYERS[2:]}, "sr2Net+al2"),
    ({"al2": True, "batch_norm": True}, "normNet+al2"),
    ({"network": "lenet"}, "LeNet"),
    ({"network": "alexnet", "sparsity": ("conv1", "fc1")}, "AlexNet+sr"),
    ({"network": "lenet", "decorrelation": ("conv1",)}, "LeNet+decorr conv1"),
    ({"network": "al2_cnn", "sparsity": ("trunk.conv1",)}, "AL2CNN+sr trunk.conv1"),
]


@pytest.mark.parametrize(("settings", "variant"), NAMED)
def test_variants_have_the_papers_names_and_others_are_spelled_out(settings, variant):
    run = replace(CONV, **settings)
    assert run.variant == variant
    assert run.described()["variant"] == variant


def test_names_of_folders_are_plain_and_say_what_was_trained():
    assert SR3.name == f"convnet_s-sr3Net-sgd-corrupt0-seed0-{SR3.id}"
    run = replace(CONV, sparsity=("conv1", "fc1"), batch_norm=True, optimizer="adam", seed=4)
    assert run.name == f"convnet_s-normNet_sr_conv1_fc1-adam-corrupt0-seed4-{run.id}"
    run = Run(
        "mnist", sparsity=("trunk.conv1", "head.fc1"), decorrelation=("trunk.conv1",), al2=True
    )
    assert run.name == f"al2_cnn-bare-sr_2-decorr_1-al2-corrupt75-seed0-{run.id}"
    for settings, _ in NAMED:
        assert not set(replace(CONV, **settings).name) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
        )


def test_described_gives_layers_as_one_text_beside_every_field():
    described = SR3.described()
    assert described["sparsity"] == "conv3 conv4 fc1" and described["decorrelation"] == "conv1"
    assert CONV.described()["sparsity"] == ""
    assert described.keys() == SR3.to_dict().keys() | {"id", "baseline", "regulariser", "variant"}
    assert described["id"] == SR3.id and described["baseline"] == "bare"


# ---- generators


def test_generators_are_the_same_in_every_process_and_version():
    assert generator(0, "weights").initial_seed() == 4194789700723333633
    assert generator(3, "order", 17).initial_seed() == 2379118120399986010
    digest = hashlib.sha256(b"3/order/17").digest()
    assert generator(3, "order", 17).initial_seed() == int.from_bytes(digest[:8], "little") // 2


def test_python_s_salted_hash_has_no_part_in_generators_and_ids():
    code = (
        "from lib.run import *; "
        "print(generator(1, 'dropout', 2).initial_seed(), Run('mnist', al2=True).id)"
    )
    here = f"{generator(1, 'dropout', 2).initial_seed()} {Run('mnist', al2=True).id}"
    there = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here


def test_generators_differ_by_seed_and_purpose():
    purposes = [
        "weights",
        "corruption",
        "dropout",
        "bn_gamma",
        ("order", 1),
        ("order", 2),
        ("order", 11),
    ]
    seeds = [
        generator(s, *(p if isinstance(p, tuple) else (p,))).initial_seed()
        for s in (0, 1, 10)
        for p in purposes
    ]
    assert len(set(seeds)) == len(seeds)


def test_a_generator_begins_anew_at_each_call():
    draw = [
        int(generator(0, "order", 1).initial_seed()),
        int(generator(0, "order", 1).initial_seed()),
    ]
    assert draw[0] == draw[1]
    assert generator(0, "order").get_state().tolist() == generator(0, "order").get_state().tolist()
