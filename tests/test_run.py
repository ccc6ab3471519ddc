import hashlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from lib.run import ABLATIONS, Run, generator
from lib.studies import label_randomization

# Published ids: they name folders of stored results and never change.
TRAINED = {"al2": True, "batch_norm": True, "corruption": 0.5, "dataset": "fashion_mnist", "dropout": 0.5, "epochs": 80}
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
    expected = dict(network="al2_cnn", corruption=0.75, epochs=700, batch_size=64, learning_rate=0.001, momentum=0.5)
    expected |= dict(weight_decay=0, dropout=0, batch_norm=False, al2=False, schedule="al2", speed=1, seed=0)
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
    run = Run("mnist", test_images=500, ablations=("shared/test", "channel/test"), keep_weights=True)
    assert run.id == Run("mnist").id
    assert run == Run("mnist")
    assert not run.to_dict().keys() & {"test_images", "ablations", "keep_weights"}
    asked = {"test_images": 500, "ablations": ["shared/test", "channel/test"], "keep_weights": True}
    assert run.measured() == asked | {"entropy": False, "heat_maps": 0}


OTHER = dict(image_size=20, classes=5, normalize="unit", n_train=100, n_validation=10, corruption=0.5, corruption_law="exact")
OTHER |= dict(batch_norm=True, dropout=0.25, al2=True, weight_decay=0.1, learning_rate=0.1)
OTHER |= dict(momentum=0.9, batch_size=32, epochs=10, seed=1)


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


def test_baselines_have_the_published_tables_names():
    names = [Run("mnist", **f).baseline for f in ({}, {"batch_norm": True}, {"dropout": 0.5}, {"weight_decay": 5e-4})]
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


@pytest.mark.parametrize(("name", "value", "wanted"), [(n, v, w) for n, values, w in FRACTIONS for v in values])
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
    with pytest.raises(ValueError, match=r"'learning_rat'.*did you mean 'learning_rate'\?.*Known: dataset, .*keep_weights"):
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
    assert Run("mnist", epochs=epochs).point_epochs() == points


@pytest.mark.parametrize("epochs", range(1, 30))
def test_points_are_epochs_of_the_run_and_end_with_its_last(epochs):
    points = Run("mnist", epochs=epochs).point_epochs()
    assert points == sorted(set(points))
    assert points[0] >= 1 and points[-1] == epochs


def test_with_measures_measures_what_either_does_and_keeps_the_id():
    one = Run("mnist", test_images=100, ablations=("element/test",))
    other = Run("mnist", test_images=500, ablations=("element/test", "shared/test"), keep_weights=True)
    both = one.with_measures(other)
    assert both.id == one.id
    asked = {"test_images": 500, "ablations": ["element/test", "shared/test"], "keep_weights": True}
    assert both.measured() == asked | {"entropy": False, "heat_maps": 0}
    assert one.with_measures(Run("mnist", test_images=None)).test_images is None


def test_the_order_of_the_ablations_and_their_repetition_mean_nothing():
    one, other = Run("mnist", ablations=ABLATIONS[:3]), Run("mnist", ablations=(*reversed(ABLATIONS[:3]), ABLATIONS[0]))
    assert one.measured() == other.measured()


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


# ---- generators


def test_generators_are_the_same_in_every_process_and_version():
    assert generator(0, "weights").initial_seed() == 4194789700723333633
    assert generator(3, "order", 17).initial_seed() == 2379118120399986010
    digest = hashlib.sha256(b"3/order/17").digest()
    assert generator(3, "order", 17).initial_seed() == int.from_bytes(digest[:8], "little") // 2


def test_python_s_salted_hash_has_no_part_in_generators_and_ids():
    code = "from lib.run import *; print(generator(1, 'dropout', 2).initial_seed(), Run('mnist', al2=True).id)"
    here = f"{generator(1, 'dropout', 2).initial_seed()} {Run('mnist', al2=True).id}"
    there = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here


def test_generators_differ_by_seed_and_purpose():
    purposes = ["weights", "corruption", "dropout", "bn_gamma", ("order", 1), ("order", 2), ("order", 11)]
    seeds = [generator(s, *(p if isinstance(p, tuple) else (p,))).initial_seed() for s in (0, 1, 10) for p in purposes]
    assert len(set(seeds)) == len(seeds)


def test_a_generator_begins_anew_at_each_call():
    draw = [int(generator(0, "order", 1).initial_seed()), int(generator(0, "order", 1).initial_seed())]
    assert draw[0] == draw[1]
    assert generator(0, "order").get_state().tolist() == generator(0, "order").get_state().tolist()
