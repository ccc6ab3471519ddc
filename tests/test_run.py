"""What identifies a run, what is refused, what follows from it, and its generators."""

import hashlib
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from lib import paths
from lib.run import ABLATIONS, Run, generator

# Published ids: they name folders of stored results and never change.
TRAINED = {"al2": True, "batch_norm": True, "corruption": 0.5, "dataset": "fashion_mnist"}
TRAINED |= {"dropout": 0.5, "epochs": 80, "n_train": 2000, "speed": 8.75, "weight_decay": 0.0005}
PINNED = [({"dataset": "digits"}, "8872d00f74"), (TRAINED, "40d374b9e9")]
PINNED += [({"dataset": "mnist", "al2": True, "seed": 3}, "e6853de5ea")]

MNIST = Run("mnist")
# runs of the targeted-sparsity paper
CONV = Run("digits", network="convnet_s", corruption=0.0, momentum=0.0, n_measure=50)
SR3 = replace(CONV, sparsity=("conv3", "conv4", "fc1"), decorrelation=("conv1",))
FIELDS = {"corruption": 0.0, "dataset": "digits", "decorrelation": ["conv1"], "momentum": 0.0}
FIELDS |= {"n_measure": 50, "network": "convnet_s", "sparsity": ["conv3", "conv4", "fc1"]}
PINNED += [(FIELDS, SR3.id)]


# ---- identity


@pytest.mark.parametrize(("fields", "run_id"), PINNED)
def test_ids_never_change_and_hash_what_differs_from_the_defaults(fields, run_id):
    run = Run.from_dict(fields)
    assert json.loads(run.canonical()) == fields
    text = json.dumps(dict(sorted(fields.items())), separators=(",", ":"))
    assert run.id == run_id == hashlib.sha256(text.encode()).hexdigest()[:10]
    assert Run(**run.to_dict()).id == run.id  # with every default spelled out


def test_every_committed_run_still_gives_its_own_id_and_folder():
    """Whatever fields are added: else results would be lost, and trained again."""
    committed = sorted((paths.ROOT / "results").glob("*/*/*/config.json"))
    assert committed
    for path in committed:
        config = json.loads(path.read_text())
        run = Run.from_dict(config["run"] | config["measures"])
        assert run.id == config["id"] and run.name == path.parent.name
        # the fields of then have the values of then
        assert run.to_dict() == run.to_dict() | config["run"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("corruption", [1, 1.0, np.float64(1), np.int64(1), np.float32(1)]),
        ("epochs", [5, np.int64(5), np.uint8(5)]),
        ("corruption", [0.0, -0.0]),
        ("ablations", [ABLATIONS[:3], (*reversed(ABLATIONS[:3]), ABLATIONS[0])]),
        ("sparsity", [("conv3", "conv4", "fc1"), ["fc1", "conv4", "conv3", "fc1"]]),
    ],
)
def test_kinds_of_number_and_the_order_and_repetition_of_names_mean_nothing(name, values):
    runs = [replace(SR3 if name == "sparsity" else MNIST, **{name: value}) for value in values]
    assert len({run.id for run in runs}) == 1
    assert all(run.measured() == runs[0].measured() for run in runs)


OTHER = dict(image_size=20, classes=5, normalize="unit", n_train=100, n_validation=10)
OTHER |= dict(corruption=0.5, corruption_law="exact", batch_norm=True, dropout=0.25, al2=True)
OTHER |= dict(weight_decay=0.1, learning_rate=0.1, momentum=0.9, batch_size=32, epochs=10, seed=1)
OTHER |= dict(relabelled_by="40d374b9e9")
CHANGES = [{name: value} for name, value in OTHER.items()]
CHANGES += [{"dataset": "digits"}, {"batch_norm": True, "bn_gamma": "uniform"}]
CHANGES += [{"al2": True, "speed": 2}, {"al2": True, "schedule": "linear"}]
CHANGES += [{"al2": True, "schedule": "linear", "rate": 0.5}]
CONV_CHANGES = [{"network": f"convnet_{size}"} for size in ("m", "xxl")]
CONV_CHANGES += [{"network": name} for name in ("lenet", "alexnet", "al2_cnn")]
CONV_CHANGES += [{"batch_norm": True}, {"batch_norm": True, "norm_place": "block"}]
CONV_CHANGES += [{"padding": "valid"}, {"dropout": 0.25}, {"optimizer": "adam"}, {"momentum": 0.9}]
CONV_CHANGES += [{"n_measure": 60}, {"n_measure": 0}, {"al2": True}, {"sparsity": ()}]
CONV_CHANGES += [{"sparsity": ("conv1",)}, {"sparsity_weight": 0.01}, {"decorrelation": ()}]
CONV_CHANGES += [{"decorrelation": ("conv2",)}, {"decorrelation_weight": 0.1}]
CONV_CHANGES += [{"decorrelation_centre": "mean_filter"}, {"decorrelation_pairs": "abs"}]
CONV_CHANGES += [{"decorrelation_pairs": "square"}, {"decorrelation_reduce": "mean"}]


@pytest.mark.parametrize(("run", "changes"), [(MNIST, CHANGES), (SR3, CONV_CHANGES)])
def test_every_setting_that_changes_a_training_changes_its_id(run, changes):
    ids = {run.id} | {replace(run, **change).id for change in changes}
    assert len(ids) == 1 + len(changes)


DECORRELATION = dict(decorrelation_weight=0.5, decorrelation_centre="mean_filter")
DECORRELATION |= dict(decorrelation_pairs="square", decorrelation_reduce="mean")
IDLE = [
    (CONV, {"sparsity_weight": 0.5}),
    (CONV, {"sparsity": ("conv1",), "sparsity_weight": 0.0}),
    (CONV, {"sparsity_batch": "sum"}),
    (CONV, DECORRELATION),
    (CONV, DECORRELATION | {"decorrelation": ("conv1",), "decorrelation_weight": 0.0}),
    (CONV, {"norm_place": "block"}),
    (CONV, {"bn_gamma": "uniform"}),
    (replace(CONV, batch_norm=True), {"bn_gamma": "uniform"}),
    (CONV, {"corruption_law": "exact"}),
    (CONV, {"schedule": "linear", "speed": 2.0, "rate": 0.5}),
    (replace(CONV, optimizer="adam"), {"momentum": 0.9}),
    (replace(CONV, network="lenet"), {"padding": "valid", "norm_place": "block"}),
    (replace(CONV, network="alexnet"), {"padding": "valid"}),
    (MNIST, {"padding": "valid", "norm_place": "block", "bn_gamma": "uniform"}),
    (Run("mnist", batch_norm=True), {"norm_place": "block"}),
    (Run("mnist", al2=True, schedule="constant", rate=0.5), {"speed": 3.0}),
]


@pytest.mark.parametrize(("run", "settings"), IDLE)
def test_settings_without_effect_are_reset_and_no_part_of_the_id(run, settings):
    other = replace(run, **settings)
    assert other == run and other.id == run.id and other.canonical() == run.canonical()
    assert other.to_dict() == run.to_dict()


NOTHING = dict(test_images=None, ablations=[], keep_weights=False, entropy=False, heat_maps=0)
NOTHING |= dict(cca=[], keep_trunk=False, predictions=False)
TWO = ("shared/test", "channel/test")
KEPT = {"predictions": True, "keep_trunk": True}


@pytest.mark.parametrize(
    ("run", "asked"),
    [
        (MNIST, {"test_images": 500, "ablations": TWO, "keep_weights": True}),
        (MNIST, {"test_images": 500, "ablations": ()} | KEPT),
        (CONV, {"entropy": True, "heat_maps": 4}),
        (CONV, {"predictions": True}),
    ],
)
def test_what_is_measured_is_no_part_of_the_id(run, asked):
    other = replace(run, **asked)
    assert other == run and other.id == run.id and not other.to_dict().keys() & asked.keys()
    if "ablations" in asked:
        asked = asked | {"ablations": list(asked["ablations"])}
    assert other.measured() == NOTHING | asked


NONE = {"test_images": None, "ablations": ()}
MAPS = {"entropy": True, "heat_maps": 4}
MORE = {"test_images": 500, "ablations": TWO, "keep_weights": True}


@pytest.mark.parametrize(
    ("run", "one", "other", "both"),
    [
        (MNIST, {"test_images": 100, "ablations": TWO[:1]}, MORE, MORE | {"ablations": list(TWO)}),
        (MNIST, {"test_images": 100, "ablations": TWO[:1]}, NONE, {"ablations": list(TWO[:1])}),
        (MNIST, NONE | {"predictions": True}, NONE | {"keep_trunk": True}, KEPT),
        (CONV, {"heat_maps": 9}, MAPS, MAPS | {"heat_maps": 9}),
        (CONV, MAPS, {"heat_maps": 9}, MAPS | {"heat_maps": 9}),
        (CONV, MAPS, {}, MAPS),
    ],
)
def test_with_measures_measures_what_either_does_and_keeps_the_id(run, one, other, both):
    found = replace(run, **one).with_measures(replace(run, **other))
    assert found.id == run.id and found.measured() == NOTHING | both


@pytest.mark.parametrize("network", ["convnet_s", "lenet", "alexnet"])
def test_networks_without_trunk_and_head_have_no_ablations_no_points_and_no_trunk(network):
    run = Run("digits", network=network, ablations=TWO[:1], keep_trunk=True)
    assert run.ablations == () and run.table_epochs() == [] and not run.keep_trunk
    assert run.with_measures(Run("digits", network=network)).ablations == ()


def test_a_run_cannot_be_changed():
    with pytest.raises(AttributeError):
        MNIST.epochs = 5


# ---- names

SR1_LAYERS = ("conv1", "conv2", "conv3", "conv4", "fc1")
SR2 = {"sparsity": SR1_LAYERS[2:]}
FIRST = SR1_LAYERS[:2]
NAMED = [
    ({}, "vanillaNet"),
    ({"dropout": 0.25}, "dropNet"),
    ({"batch_norm": True}, "normNet"),
    ({"batch_norm": True, "norm_place": "block"}, "normNet"),
    ({"sparsity": SR1_LAYERS}, "sr1Net"),
    (SR2, "sr2Net"),
    (SR2 | {"decorrelation": ("conv1",), "decorrelation_pairs": "square"}, "sr3Net"),
    # what the paper has not
    (SR2 | {"sparsity_weight": 0.0}, "vanillaNet"),
    ({"sparsity": ("conv1",)}, "vanillaNet+sr conv1"),
    ({"decorrelation": ("conv1",)}, "vanillaNet+decorr conv1"),
    (SR2 | {"decorrelation": FIRST}, "vanillaNet+sr conv3 conv4 fc1+decorr conv1 conv2"),
    (SR2 | {"batch_norm": True}, "normNet+sr conv3 conv4 fc1"),
    ({"sparsity": SR1_LAYERS, "dropout": 0.25}, "dropNet+sr conv1 conv2 conv3 conv4 fc1"),
    ({"batch_norm": True, "dropout": 0.25}, "normNet+dropout"),
    ({"al2": True}, "vanillaNet+al2"),
    (SR2 | {"al2": True}, "sr2Net+al2"),
    ({"al2": True, "batch_norm": True}, "normNet+al2"),
    ({"network": "lenet"}, "LeNet"),
    ({"network": "alexnet", "sparsity": ("conv1", "fc1")}, "AlexNet+sr"),
    ({"network": "lenet", "decorrelation": ("conv1",)}, "LeNet+decorr conv1"),
    ({"network": "al2_cnn", "sparsity": ("trunk.conv1",)}, "AL2CNN+sr trunk.conv1"),
]


@pytest.mark.parametrize(("settings", "variant"), NAMED)
def test_variants_have_the_papers_names_and_others_are_spelled_out(settings, variant):
    run = replace(CONV, **settings)
    assert run.variant == run.described()["variant"] == variant
    assert re.fullmatch(r"[\w.-]+", run.name, re.ASCII)  # as a folder's name


@pytest.mark.parametrize(
    ("settings", "baseline"),
    [
        ({}, "bare"),
        ({"batch_norm": True, "dropout": 0.5}, "batchnorm+dropout"),
        ({"weight_decay": 5e-4}, "weight_decay"),
    ],
)
def test_baselines_have_the_published_tables_names(settings, baseline):
    assert Run("mnist", **settings).baseline == baseline


TRUNK = {"sparsity": ("trunk.conv1", "head.fc1"), "decorrelation": ("trunk.conv1",), "al2": True}
GEOMETRIC = {"dropout": 0.5, "al2": True, "schedule": "geometric", "corruption": 0.07}
MIXED = {"sparsity": ("conv1", "fc1"), "batch_norm": True, "optimizer": "adam", "seed": 4}


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (Run("digits"), "al2_cnn-bare-corrupt75-seed0"),
        (Run("mnist", al2=True, seed=3), "al2_cnn-bare-al2-corrupt75-seed3"),
        (Run("mnist", **GEOMETRIC), "al2_cnn-dropout-al2_geometric-corrupt7-seed0"),
        (Run("mnist", relabelled_by="40d374b9e9"), "al2_cnn-bare-relabelled-corrupt75-seed0"),
        (Run("mnist", **TRUNK), "al2_cnn-bare-sr_2-decorr_1-al2-corrupt75-seed0"),
        (SR3, "convnet_s-sr3Net-sgd-corrupt0-seed0"),
        (replace(CONV, **MIXED), "convnet_s-normNet_sr_conv1_fc1-adam-corrupt0-seed4"),
    ],
)
def test_names_of_folders_say_what_was_trained_and_end_with_the_id(run, name):
    assert run.name == f"{name}-{run.id}"


def test_described_gives_layers_as_one_text_beside_every_field():
    described = SR3.described()
    assert described["sparsity"] == "conv3 conv4 fc1" and described["decorrelation"] == "conv1"
    assert CONV.described()["sparsity"] == ""
    assert described.keys() == SR3.to_dict().keys() | {"id", "baseline", "regulariser", "variant"}
    assert described["id"] == SR3.id and described["baseline"] == "bare"


# ---- bad input: the message names the field, what was given and what is allowed

NUMBERS = [
    ("corruption", [-0.1, 1.1, math.nan, math.inf, 75], r"a fraction in \[0, 1\]"),
    ("dropout", [-0.1, 1.0, 1.5, math.nan], r"\[0, 1\)"),
    ("momentum", [-0.1, 1.0, math.nan], r"\[0, 1\)"),
    ("learning_rate", [0, -0.1, math.nan, math.inf], "a positive, finite number"),
    ("weight_decay", [-1e-4, math.nan, math.inf], "≥ 0"),
    ("speed", [0, -1, math.nan, math.inf], "a positive, finite number"),
    ("sparsity_weight", [-0.1, math.nan], "a finite number ≥ 0"),
    ("decorrelation_weight", [math.inf], "a finite number ≥ 0"),
    ("epochs", [0, -1], "a whole number ≥ 1"),
    ("batch_size", [0, -1], "a whole number ≥ 1"),
    ("n_train", [0, -1], "a whole number ≥ 1"),
    ("image_size", [0], "a whole number ≥ 1"),
    ("classes", [0], "a whole number ≥ 1"),
    ("test_images", [0], "a whole number ≥ 1"),
    ("n_validation", [-1], "a whole number ≥ 0"),
    ("n_measure", [-1], "a whole number ≥ 0"),
    ("heat_maps", [-1], "≥ 0"),
    ("heat_maps", [51], "at most n_measure, 50"),
    ("seed", [-1], "a whole number ≥ 0"),
]
NAMES = [
    ("network", "resnet", "al2_cnn, convnet_s, convnet_m, convnet_xxl, lenet, alexnet"),
    ("network", "convnet_l", "al2_cnn, convnet_s, convnet_m, convnet_xxl, lenet, alexnet"),
    ("optimizer", "sdg", "sgd, adam"),
    ("schedule", "cosine", "al2, geometric, linear, constant"),
    ("corruption_law", "some", "bernoulli, exact"),
    ("normalize", "no", "al2, unit"),
    ("bn_gamma", "zeros", "ones, uniform"),
    ("ablations", ["element"], "element/train-true, .*channel/test"),
    ("cca", ["epoch2"], "init, epoch1"),
    # without an effect, and checked all the same
    ("norm_place", "twice", ""),
    ("padding", "reflect", ""),
    ("decorrelation_pairs", "cubic", ""),
    ("decorrelation_centre", "median", "own, mean_filter"),
    ("decorrelation_reduce", "max", "sum, mean"),
    ("sparsity_batch", "max", "mean, sum"),
]
TYPES = [
    ("epochs", [True, 3.0, "3", None]),
    ("seed", [None]),
    ("n_train", [0.5]),
    ("n_measure", [1.5]),
    ("corruption", [True, None, [0.5]]),
    ("al2", [1, "yes", None]),
    ("keep_weights", [0]),
    ("dataset", [3, None]),
    ("schedule", [None]),
    ("relabelled_by", [40, True]),
    ("predictions", [1]),
    ("entropy", [1]),
    ("heat_maps", [True]),
    ("ablations", ["element/test", 5, None]),
    ("sparsity", ["conv1", [1]]),
    ("decorrelation", [None]),
]
LINEAR = {"al2": True, "schedule": "linear"}
NO_IDS = ["", "bare", "40d374b9e", "40d374b9e90", "40D374B9E9", " 40d374b9e9", "../4d374b9"]
LEADING_OUT = ["", "../mnist", "a/b", "/mnist", "..", "my[1]", "*"]
REFUSED = [
    ({n: v}, ValueError, rf"^{n} is {v}(\.0)?; it has to be .*{wanted}")
    for n, values, wanted in NUMBERS
    for v in values
]
REFUSED += [({n: v}, ValueError, rf"^{n} is .*allowed: .*{those}") for n, v, those in NAMES]
REFUSED += [({n: v}, TypeError, rf"^{n} (is|holds) ") for n, values in TYPES for v in values]
YAML = ("learning_rate", "weight_decay", "rate")
REFUSED += [({n: "1e-4"}, TypeError, rf"^{n} is '1e-4', a str.*YAML.*1\.0e-4") for n in YAML]
TEN = "^relabelled_by is .*a run's id, ten hexadecimal digits"
REFUSED += [({"relabelled_by": text}, ValueError, TEN) for text in NO_IDS]
REFUSED += [({"dataset": name}, ValueError, "dataset") for name in LEADING_OUT]
REFUSED += [(LINEAR | {"rate": r}, ValueError, "^rate is") for r in (0, -1, math.nan, math.inf)]
KNOWN = r"'learning_rat'.*did you mean 'learning_rate'\?.*Known: dataset, .*keep_weights"
REFUSED += [
    ({"al2": True, "rate": 1.05}, ValueError, "rate"),
    ({"al2": True, "epochs": 9000}, ValueError, "^epochs is 9000.* that λ fits float32"),
    ({"al2": True, "epochs": 80_000}, ValueError, "80000"),
    ({"n_measure": 0, "entropy": True}, ValueError, "^entropy is .*n_measure is 0"),
    ({"network": "lenet", "dropout": 0.25}, ValueError, "^lenet has neither batch .*convnet_s"),
    ({"network": "alexnet", "batch_norm": True}, ValueError, "^alexnet has neither"),
    ({"learning_rat": 0.1}, ValueError, KNOWN),
    ({"zzzz": 0.1}, ValueError, r"no parameter 'zzzz'[;.:,] .*dataset"),
]


@pytest.mark.parametrize(("settings", "kind", "message"), REFUSED)
@pytest.mark.parametrize("network", ["al2_cnn", "convnet_s"])
def test_what_is_not_allowed_is_refused_by_name(network, settings, kind, message):
    with pytest.raises(kind, match=message):
        Run.from_dict({"dataset": "digits", "network": network, "n_measure": 50} | settings)


# ---- derived


@pytest.mark.parametrize(
    ("epochs", "points"),
    [
        (700, [100, 200, 300, 400, 500, 600, 700]),
        (750, [100, 200, 300, 400, 500, 600, 700, 750]),
        (80, [11, 23, 34, 46, 57, 69, 80]),
        *((epochs, list(range(1, epochs + 1))) for epochs in (1, 3, 7)),
    ],
)
def test_tables_are_read_at_the_papers_epochs_and_at_the_last(epochs, points):
    assert Run("mnist", epochs=epochs).table_epochs() == points


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [0, 1]), (2, [0, 1, 2]), (100, [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100])],
)
def test_heat_maps_are_taken_ever_more_rarely(epochs, expected):
    assert Run("digits", epochs=epochs).heat_map_epochs() == expected


def test_points_and_epochs_of_heat_maps_are_epochs_of_the_run_and_end_with_its_last():
    for epochs in range(1, 210):
        run = Run("digits", epochs=epochs)
        points, mapped = run.table_epochs(), run.heat_map_epochs()
        assert points == sorted(set(points)) and points[0] >= 1 and points[-1] == epochs
        assert mapped == sorted(set(mapped)) and mapped[:2] == [0, 1] and mapped[-1] == epochs
        assert len(mapped) <= 12


# ---- generators


def test_generators_are_the_same_in_every_process_and_version():
    """Python's own hash is salted anew in each."""
    assert generator(0, "weights").initial_seed() == 4194789700723333633
    assert generator(3, "order", 17).initial_seed() == 2379118120399986010
    states = [generator(0, "order").get_state().tolist() for _ in range(2)]
    assert states[0] == states[1]


def test_generators_differ_by_seed_and_purpose():
    purposes = [("weights",), ("corruption",), ("dropout",), ("bn_gamma",)]
    purposes += [("order", epoch) for epoch in (1, 2, 11)]
    seeds = {generator(s, *p).initial_seed() for s in (0, 1, 10) for p in purposes}
    assert len(seeds) == 3 * len(purposes)
