"""The run store: what is trained, not trained again, read back, and refused."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made import image_folder

from lib import bundle, data, engine, paths, run_dir, store, trainer
from lib.data.sources import DataNotFoundError
from lib.run import Run
from lib.trainer import TrainStep

SMALL = dict(image_size=16, n_train=100, n_validation=20, test_images=40, batch_size=32)
BARE = Run("digits", epochs=3, learning_rate=0.1, **SMALL)
AL2 = replace(BARE, al2=True, speed=8.0)
CONV = replace(BARE, network="convnet_s", image_size=8, n_measure=20, corruption=0.0, momentum=0.0)
SR = replace(CONV, sparsity=("conv4", "fc1"), decorrelation=("conv1",), decorrelation_weight=0.01)
BEFORE = "entropy before training"
LAYERS = ["conv1", "conv2", "conv3", "conv4", "fc1"]
FILES = {"config.json", "env.json", "measures.npz", "metrics.csv"}


@pytest.fixture
def trained(monkeypatch):
    """The ids of the runs trained from here on, in order."""
    ids, fit = [], trainer.fit

    def watched(runs, *args, **more):
        ids.extend(run.id for run in runs)
        return fit(runs, *args, **more)

    monkeypatch.setattr(trainer, "fit", watched)
    return ids


def folder_of(run, profile="own"):
    return paths.results_dir() / profile / run.dataset / run.name


def run_folders():
    return [f for f in paths.results_dir().glob("*/*/*") if f.is_dir()]


def files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*")}


def interrupt(run, monkeypatch):
    """Train a run and stop at its third epoch, with a checkpoint of the second."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)

    def stop(run, model, epoch):
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit([run], [folder_of(run)], callback=stop)


# ---- ensure


@pytest.mark.parametrize("more", [set(), {"weights.pt"}])
def test_a_run_lies_under_its_profile_and_data_set_with_every_file_and_no_other(more):
    store.ensure([replace(BARE, keep_weights=bool(more))], profile="lite")
    folder = folder_of(BARE, "lite")
    assert run_folders() == [folder] and {f.name for f in folder.iterdir()} == FILES | more
    config = json.loads((folder / "config.json").read_text())
    assert config["id"] == BARE.id and Run.from_dict(config["run"] | config["measures"]) == BARE
    env = json.loads((folder / "env.json").read_text())
    said = "python torch device precision commit data labels seconds"
    assert set(said.split()) <= env.keys()


def test_what_is_missing_is_trained_once_in_the_order_given_and_the_rest_not_touched(trained):
    store.ensure([])
    assert not paths.results_dir().exists()
    store.ensure([BARE])
    longer = replace(BARE, epochs=5)
    store.ensure([BARE, longer, AL2, replace(AL2)])
    assert trained == [BARE.id, longer.id, AL2.id]
    before = {file: file.stat().st_mtime_ns for file in paths.results_dir().rglob("*.*")}
    store.ensure([AL2, BARE, longer])
    assert len(trained) == 3
    assert before == {file: file.stat().st_mtime_ns for file in paths.results_dir().rglob("*.*")}


def test_a_run_is_found_in_whatever_profile_it_was_trained_for(trained):
    store.ensure([BARE], profile="lite")
    store.ensure([BARE], profile="quick")
    assert trained == [BARE.id]
    assert set(store.load([BARE])["profile"]) == {"lite"}


def test_an_unfinished_run_is_missing_and_continued_in_its_profile():
    run_dir.begin(folder_of(BARE, "paper"), BARE)
    for read in (lambda: store.load([BARE]), lambda: store.arrays(BARE)):
        with pytest.raises(LookupError, match=BARE.name):
            read()
    assert store.collect("paper").empty
    store.ensure([BARE], profile="quick")
    assert run_folders() == [folder_of(BARE, "paper")]
    assert run_dir.is_finished(folder_of(BARE, "paper"))


@pytest.mark.parametrize("late", [False, True])
def test_several_processes_begin_with_the_longest_unless_time_is_short(late, monkeypatch):
    monkeypatch.setenv("DEVICE", "cpu:0")  # as good a name as cpu
    runs, order = [BARE, replace(BARE, epochs=5)], []
    monkeypatch.setattr(
        engine, "by", lambda pool, groups, *_, **__: order.extend(run for (run,) in groups)
    )
    store.ensure(runs, jobs=2, deadline=time.monotonic() + 1000 if late else None)
    assert order == (runs if late else runs[::-1])


def test_a_parallel_make_gets_one_process(monkeypatch, trained):
    monkeypatch.setenv("MAKEFLAGS", " -j2 --jobserver-auth=3,4")
    monkeypatch.setattr(engine, "processes", lambda *_: pytest.fail("started processes"))
    store.ensure([BARE, AL2], jobs=2)
    assert len(trained) == 2


def test_on_a_gpu_jobs_are_trained_side_by_side_in_one_process(monkeypatch):
    """The device is called a GPU: what is tested is which runs the trainer is given together."""
    runs = [BARE, AL2, *(replace(BARE, seed=seed) for seed in (1, 2, 3))]
    store.ensure([AL2])
    groups, fit = [], trainer.fit

    def watched(group, folders, **options):
        groups.append([run.id for run in group])
        return fit(group, folders, device="cpu", side_by_side=True, **options)

    monkeypatch.setattr(trainer, "default_device", lambda: "cuda")
    monkeypatch.setattr(trainer, "device_name", lambda device=None: "a GPU")
    monkeypatch.setattr(trainer, "fit", watched)
    store.ensure(runs, jobs=3)
    todo = [run.id for run in runs if run != AL2]
    assert groups == [todo[:3], todo[3:]]
    assert len(store.load(runs)) == sum(run.epochs for run in runs)


# ---- measures


def test_a_finished_run_gains_a_measure_now_asked_for_and_keeps_the_earlier_ones(trained):
    store.ensure([BARE])
    before = store.load([BARE])
    more = replace(BARE, ablations=("shared/test",), keep_weights=True)
    store.ensure([more])
    assert trained == [BARE.id] * 2
    after = store.load([BARE])
    assert after["ablation_auc shared/test"].notna().any()
    pd.testing.assert_frame_equal(after[before.columns], before, check_exact=True)
    kept = {f"ablation {name}" for name in ("element/train-true", "shared/test", "epochs")}
    assert store.arrays(BARE).keys() == kept
    assert (folder_of(BARE) / "weights.pt").exists()
    store.ensure([BARE, more])
    assert trained == [BARE.id] * 2


def test_two_askings_for_one_run_are_both_met(trained):
    """Equal runs that measure different things, as two notebooks may state them, are one run."""
    store.ensure([replace(BARE, ablations=(f"{mask}/test",)) for mask in ("shared", "element")])
    assert trained == [BARE.id]
    assert {"ablation_auc shared/test", "ablation_auc element/test"} <= set(store.load([BARE]))


def test_fewer_test_images_than_were_measured_train_nothing(trained):
    store.ensure([BARE])
    store.ensure([replace(BARE, test_images=10, ablations=())])
    assert trained == [BARE.id]
    store.ensure([replace(BARE, test_images=None)])
    assert trained == [BARE.id] * 2
    assert set(store.load([BARE])["test_images"]) == {359}


def test_more_heat_maps_are_a_measure_gained_and_fewer_train_nothing(trained):
    points = len(CONV.heat_map_epochs())
    store.ensure([replace(CONV, heat_maps=3)])
    store.ensure([replace(CONV, heat_maps=2), CONV])
    assert trained == [CONV.id]
    assert store.arrays(CONV)["heat maps conv1"].shape == (points, 3, 8, 8)
    store.ensure([replace(CONV, heat_maps=4, entropy=True)])
    store.ensure([replace(CONV, heat_maps=3), replace(CONV, entropy=True)])
    assert trained == [CONV.id] * 2
    assert store.arrays(CONV)["heat maps fc1"].shape == (points, 4)
    measures = run_dir.read_run(folder_of(CONV)).measured()
    assert measures["heat_maps"] == 4 and measures["entropy"] is True


def test_a_run_that_gains_a_measure_stays_readable_until_it_has_it(monkeypatch):
    """What took a GPU hours is not thrown away before its successor is whole."""
    store.ensure([BARE])
    before = store.load([BARE])

    def fail(*args, **more):
        raise OSError("stands for a killed training")

    monkeypatch.setattr(trainer, "fit", fail)
    with pytest.raises(OSError, match="stands for"):
        store.ensure([replace(BARE, ablations=("shared/test",))])
    pd.testing.assert_frame_equal(store.load([BARE]), before, check_exact=True)


BOTH = replace(BARE, ablations=("element/train-true", "shared/test"))
MEASURED = replace(SR, entropy=True, heat_maps=2, optimizer="adam")
AUCS = ["ablation_auc", "ablation_auc shared/test"]


@pytest.mark.parametrize(
    ("begun", "asked", "columns"),
    [
        (BOTH, {"ablations": BOTH.ablations[:1]}, AUCS),
        (BOTH, {"ablations": BOTH.ablations[1:]}, AUCS),
        (MEASURED, {"entropy": False}, ["entropy fc1", "correlation conv1"]),
    ],
    ids=["first", "second", "none"],
)
def test_an_interrupted_run_goes_on_whatever_subset_of_its_measures_is_asked_for(
    begun, asked, columns, monkeypatch, epochs_trained
):
    interrupt(begun, monkeypatch)
    epochs_trained.clear()
    store.ensure([replace(begun, **asked)])
    assert epochs_trained == [3]
    assert store.load([begun])[columns].iloc[-1].notna().all()
    lengths = {len(of) for name, of in store.arrays(begun).items() if name.startswith("corr")}
    assert lengths <= {4}  # before training, and after each of three epochs


def test_a_run_stored_before_a_measure_was_thought_of_is_not_trained_again(trained):
    """As the committed runs, whose files name neither entropy nor heat maps nor any later field."""
    store.ensure([BARE])
    path = folder_of(BARE) / "config.json"
    config = json.loads(path.read_text())
    later = "entropy heat_maps sparsity sparsity_weight decorrelation padding norm_place n_measure"
    for name in later.split():
        del config["measures" if name in config["measures"] else "run"][name]
    path.write_text(json.dumps(config))
    store.ensure([BARE])
    assert trained == [BARE.id] and len(store.load([BARE])) == 3


# ---- load, collect, arrays


def test_load_gives_a_row_a_run_and_epoch_with_the_fields_of_the_run():
    store.ensure([BARE, AL2])
    frame = store.load([AL2, BARE, AL2])  # each once
    rows = [(run.id, epoch) for run in (AL2, BARE) for epoch in (1, 2, 3)]
    assert list(zip(frame["id"], frame["epoch"], strict=True)) == rows
    assert list(frame.index) == list(range(6))
    assert {*BARE.to_dict(), "id", "baseline", "profile", "diverged", "lambda"} <= set(frame)
    assert set(frame["baseline"]) == {"bare"} and set(frame["profile"]) == {"own"}
    assert frame["diverged"].isna().all()
    assert list(frame["al2"]) == list(frame["lambda"].notna()) == [True] * 3 + [False] * 3


def test_load_gives_what_fit_returns_to_six_digits():
    store.ensure([AL2])
    returned = trainer.fit([AL2]).drop(columns="id")
    read = store.load([AL2])[returned.columns]
    pd.testing.assert_frame_equal(read, returned, rtol=1e-5, check_dtype=False)


def test_load_names_the_runs_that_are_missing_and_says_what_to_do():
    for read in (store.load, store.load_long):
        with pytest.raises(LookupError, match=rf"1 of 1 .*{BARE.name}.*store\.ensure"):
            read([BARE])
    store.ensure([BARE])
    with pytest.raises(LookupError, match=rf"1 of 2 .*{AL2.name}"):
        store.load([BARE, AL2])


def test_no_runs_give_a_frame_of_no_rows_and_every_column():
    empty = store.load([])
    assert empty.empty and store.collect("own").columns.equals(empty.columns)
    store.ensure([replace(BARE, ablations=())])
    columns = list(store.load([BARE]))
    own = columns[columns.index("epoch") + 1 :]
    of_every_run = [name for name in columns if name not in own or name in trainer.METRICS]
    assert list(empty) == [*of_every_run, *store.OPTIONAL] and len(own) > 1
    assert set(store.OPTIONAL) <= set(own)  # although nothing was ablated
    long = store.load_long([])
    described = columns[: columns.index("epoch") + 1]
    assert long.empty and list(long) == [*described, "metric", "where", "value"]


def test_collect_gives_every_finished_run_of_one_profile_and_nothing_that_is_no_run():
    store.ensure([BARE, AL2], profile="quick")
    store.ensure([CONV], profile="lite")
    run_dir.begin(folder_of(replace(BARE, seed=9), "quick"), replace(BARE, seed=9))
    for name in ("report/tables/claims.csv", "quick/notebooks/10.ipynb"):
        (paths.results_dir() / name).parent.mkdir(parents=True)
        (paths.results_dir() / name).touch()
    stored = sorted([BARE, AL2], key=lambda run: run.name)
    pd.testing.assert_frame_equal(store.collect("quick"), store.load(stored))
    pd.testing.assert_frame_equal(store.collect("lite"), store.load([CONV]))
    assert store.collect("report").empty


def test_arrays_hold_the_ablation_curves_of_the_point_epochs():
    store.ensure([BARE])
    stored = store.arrays(BARE)
    assert list(stored["ablation epochs"]) == BARE.table_epochs()
    area = np.trapezoid(stored["ablation element/train-true"], dx=0.1, axis=1)
    np.testing.assert_allclose(area, store.load([BARE])["ablation_auc"].dropna(), rtol=1e-5)


# ---- before training, and one row a value


def test_entropy_gained_later_keeps_the_curves_and_is_a_row_of_epoch_0_before_training(trained):
    store.ensure([SR])
    before = store.load([SR])
    assert store.arrays(SR) == {} and not any("entropy c" in column for column in before)
    store.ensure([replace(SR, entropy=True)])
    store.ensure([SR, replace(SR, entropy=True)])
    assert trained == [SR.id] * 2
    on_disk = files(folder_of(SR))
    after = store.load([SR])
    assert list(after.epoch) == [0, 1, 2, 3]
    trained_rows = after[after.epoch > 0].reset_index(drop=True)
    same = {"check_exact": True, "check_dtype": False}
    pd.testing.assert_frame_equal(trained_rows[before.columns], before, **same)
    entropies = [f"entropy {layer}" for layer in LAYERS]
    assert after[entropies].notna().all(axis=None)
    # epoch 0 is what was measured before training, and that alone
    arrays = store.arrays(SR)
    assert arrays.keys() == {*(f"correlations {layer}" for layer in LAYERS), BEFORE}
    assert after.loc[0, entropies].tolist() == arrays[BEFORE][0].tolist()
    epoch = after.columns.get_loc("epoch")
    assert after.iloc[0, epoch + 1 :].drop(entropies).isna().all()
    assert after.iloc[[0], :epoch].equals(after.iloc[[1], :epoch].set_axis([0]))
    # the file itself begins with epoch 1, and reading does not change it
    assert run_dir.read_metrics(folder_of(SR))[0].epoch.tolist() == [1, 2, 3]
    assert files(folder_of(SR)) == on_disk


def test_load_long_holds_every_value_of_load_once():
    diverged = replace(BARE, learning_rate=1e6)
    runs = [replace(BARE, ablations=("shared/test",)), replace(SR, entropy=True), diverged]
    store.ensure(runs)
    wide, long = store.load(runs), store.load_long(runs)
    measured = wide.columns[wide.columns.get_loc("epoch") + 1 :]
    described = [name for name in wide if name not in measured]
    assert list(long) == [*described, "metric", "where", "value"]
    values = wide.set_index(["id", "epoch"])[measured].stack().dropna()
    assert len(long) == len(values) > 0
    name = (long.metric + " " + long["where"]).str.rstrip()
    again = long.set_index([long.id, long.epoch, name]).value
    assert again.index.is_unique and again.to_dict() == values.to_dict()
    # what describes a run stands beside each of its values
    own = wide.drop_duplicates("id").set_index("id")
    for name in ("profile", "variant", "network", "diverged"):
        assert long[name].equals(long.id.map(own[name]).rename(name)), name
    assert set(long[long.metric == "entropy"].epoch) == {0, 1, 2, 3}
    assert set(long[long.metric == "ablation_auc"]["where"]) == {"shared/test"}


def test_load_long_takes_the_metrics_asked_for_and_parts_them_from_their_place():
    runs = [BARE, replace(SR, entropy=True)]
    store.ensure(runs)
    long = store.load_long(runs, ["entropy", "test_accuracy"])
    places = long.groupby("metric")["where"].agg(lambda where: list(dict.fromkeys(where)))
    assert places.to_dict() == {"entropy": LAYERS, "test_accuracy": [""]}
    assert len(long) == 2 * 3 + 4 * len(LAYERS)
    assert store.to_long(store.load(runs), ["entropy", "test_accuracy"]).equals(long)
    known = "there are .*test_accuracy, .*entropy, .*correlation"
    with pytest.raises(TypeError, match="metrics is 'entropy'; a list"):
        store.load_long(runs, "entropy")
    with pytest.raises(ValueError, match=f"has the metric accuracy, entropy conv1; {known}"):
        store.load_long(runs, ["test_accuracy", "entropy conv1", "accuracy"])


# ---- divergence


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 1e6}, {"weight_decay": 25.0}],
    ids=["at the first epoch", "after some epochs"],
)
def test_a_diverged_run_is_finished_and_not_trained_again(change, trained):
    run = replace(BARE, **change, momentum=0.0, n_validation=0, epochs=40)
    store.ensure([run])
    status = json.loads((folder_of(run) / "status.json").read_text())
    frame = store.load([run])
    assert set(frame["diverged"]) == {status["diverged"]}
    kept = frame["test_accuracy"].dropna().astype(float)
    assert len(kept) == status["diverged"] - 1 and np.isfinite(kept).all()
    store.ensure([run])
    assert trained == [run.id]


def test_diverged_and_whole_runs_are_read_together():
    diverged = replace(BARE, learning_rate=1e6)
    store.ensure([BARE, diverged])
    frame = store.load([diverged, BARE])
    assert list(frame["diverged"].notna()) == [True, False, False, False]
    assert list(frame["epoch"].dropna()) == [1, 2, 3]
    # means and plots need numbers
    for name in ("epoch", "test_accuracy", "cross_entropy", "diverged"):
        assert pd.api.types.is_numeric_dtype(frame[name]), f"{name} is {frame[name].dtype}"


# ---- refused


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (replace(BARE, dataset="no_such_set"), ValueError, "no_such_set.*digits.*tiny_imagenet"),
        (replace(BARE, n_validation=1400), ValueError, "1400.*1438"),
        (replace(BARE, batch_size=101), ValueError, "101.*100"),
        (replace(CONV, sparsity=("conv5",)), ValueError, "no layer 'conv5'"),
        (Run("mnist"), DataNotFoundError, r"mnist.*\n.*make data"),
    ],
    ids=["data set", "images", "batch", "layer", "not at hand"],
)
def test_bad_input_is_refused_before_anything_trains_and_leaves_no_folder(
    bad, kind, message, jobs, monkeypatch, tmp_path
):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "no data"))
    monkeypatch.setattr(TrainStep, "epoch", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(engine, "processes", lambda *_: pytest.fail("started processes"))
    with pytest.raises(kind, match=message):
        store.ensure([BARE, bad, replace(BARE, seed=1)], jobs=jobs)
    assert run_folders() == []


@pytest.mark.parametrize(
    "option",
    # a run stored in such a profile would never be found again
    [{"jobs": 0}, *({"profile": name} for name in ("", ".", "..", "a/b", "../elsewhere"))],
)
def test_no_process_and_a_profile_that_is_no_name_of_a_folder_are_refused(option, trained):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is "):
        store.ensure([BARE], **option)
    assert trained == []


@pytest.mark.parametrize("read", [store.ensure, store.load])
def test_one_run_in_two_profiles_is_an_error_that_names_both(read):
    store.ensure([BARE], profile="quick")
    shutil.copytree(folder_of(BARE, "quick"), folder_of(BARE, "lite"))
    with pytest.raises(run_dir.RecordError, match=f"{BARE.id} has 2 folders") as caught:
        read([BARE])
    assert all(str(folder_of(BARE, name)) in str(caught.value) for name in ("quick", "lite"))


# ---- committed runs


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """A run among the project's committed ones, and not in the results folder."""
    store.ensure([BARE], profile="paper")
    folder = tmp_path / "committed" / "paper"
    shutil.move(paths.results_dir() / "paper", folder)
    assert store.find(BARE) is None
    monkeypatch.setattr(paths, "EVIDENCE", (folder,))
    return folder


def test_committed_runs_are_found_from_everywhere_and_only_read(committed):
    assert store.available([BARE]) == [BARE]
    before = files(committed)
    store.ensure([BARE], profile="own")
    assert not (paths.results_dir() / "own").exists(), "it is there already"
    # a measure that the committed run lacks
    store.ensure([replace(BARE, keep_weights=True)], profile="own")
    assert files(committed) == before
    assert store.find(BARE).parent.parent == paths.results_dir() / "own"


def test_a_committed_run_is_read_while_another_measure_of_it_is_under_way(committed):
    run_dir.begin(folder_of(BARE), replace(BARE, keep_weights=True))  # and then killed
    assert store.available([BARE]) == [BARE] and store.find(BARE).is_relative_to(committed)
    assert run_dir.find(BARE.dataset, BARE.id, to_write=True) == folder_of(BARE)


# ---- images of one's own that change


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """An image folder of two classes, and a run on it that is stored."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "data" / "mine"
    image_folder(folder, "cat", "dog")
    run = Run("mine", corruption=0.0, epochs=2, batch_size=4, ablations=())
    store.ensure([run])
    return folder, run


def test_runs_on_a_folder_of_one_s_own_are_trained_anew_once_it_has_changed(mine, trained):
    folder, run = mine
    before = store.load([run])
    trained.clear()
    store.ensure([run])
    assert trained == []
    image_folder(folder, "ant", "cat", "dog")
    with pytest.raises(LookupError, match="trained on other images than their data set has now"):
        store.load([run])
    store.ensure([run])
    after = store.load([run])
    assert trained and before.num_classes.unique() == [2] and after.num_classes.unique() == [3]
    assert before.data_hash[0] != after.data_hash[0]


def test_a_teacher_of_images_that_have_changed_since_is_refused_unless_it_is_trained_again(
    mine, trained
):
    folder, run = mine
    teacher = replace(run, predictions=True)
    store.ensure([teacher])
    student = replace(run, relabelled_by=teacher.id)
    image_folder(folder, "cat", "dog", shade=7)  # as many of other pixels
    trained.clear()
    said = f"{teacher.name}, which relabels {student.name}, was trained on other images than mine"
    with pytest.raises(ValueError, match=said):
        store.ensure([student])
    with pytest.raises(ValueError, match=said):
        bundle.prepare(student)
    assert trained == []
    store.ensure([student, teacher])
    assert store.available([student, teacher]) == [student, teacher]


def test_a_stored_run_is_read_where_its_images_are_absent(mine, monkeypatch, tmp_path):
    _, run = mine
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nothing"))
    assert len(store.load([run])) == 2


def test_a_checkpoint_is_not_continued_on_other_images(mine):
    folder, run = mine
    longer = replace(run, epochs=3)
    store.ensure([longer], deadline=time.monotonic() + 1e-3, may_begin=lambda *_: True)
    assert store.epochs_left(longer) == 2
    image_folder(folder, "cat", "dog", shade=7)  # the same labels
    assert store.epochs_left(longer) == 3


def test_a_folder_of_one_s_own_is_read_once_and_anew_where_a_file_has_changed(mine, monkeypatch):
    folder, _ = mine
    known = data.own_hash("mine")
    with monkeypatch.context() as patch:
        patch.setattr(data, "read", lambda *_, **__: pytest.fail("read again"))
        assert data.own_hash("mine") == known
    assert data.own_hash("digits") is None and data.own_hash("no_such_set") is None
    (folder / "train" / "cat" / "0.png").unlink()
    assert data.own_hash("mine") not in (known, None)
