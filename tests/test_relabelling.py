"""Training sets relabelled by another run: what trains on what, in which order, what is refused."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from made import stored

from lib import bundle, paths, run_dir, store, trainer
from lib.run import Run
from lib.study import campaign, tables
from lib.study.experiments import label_randomization, relabelling
from lib.trainer import TrainStep

BARE = dict(image_size=16, n_train=100, n_validation=20, test_images=40, epochs=3, ablations=())
BARE = Run("digits", **BARE, learning_rate=0.1, batch_size=32)
TEACHER = replace(BARE, al2=True, speed=8.0, predictions=True)
PLAIN = replace(TEACHER, predictions=False)
STUDENT = replace(BARE, relabelled_by=TEACHER.id)
LAST = replace(BARE, relabelled_by=STUDENT.id)
LOST = replace(TEACHER, learning_rate=1e6)  # it diverges
OTHER = {"image_size": 20, "n_train": 90, "n_validation": 30, "n_measure": 10}
OTHER |= {"normalize": "unit", "dataset": "mnist", "classes": 5}


@pytest.fixture
def trained(monkeypatch):
    """The runs trained from here on, in order, by id, and the labels that each saw."""
    seen = {}
    train = TrainStep.epoch

    def watched(steps, *arguments):
        seen[steps.run.id] = steps.data.train.labels.clone()
        return train(steps, *arguments)

    monkeypatch.setattr(TrainStep, "epoch", watched)
    return seen


def folder_of(run):
    return paths.results_dir() / "own" / run.dataset / run.name


def hash_of_labels(run):
    return json.loads((folder_of(run) / "env.json").read_text())["labels"]


def predicted(run):
    return torch.from_numpy(store.arrays(run)["predictions"].astype(np.int64))


def taught(student, teacher):
    """Whether the stored student was trained on what the stored teacher predicts."""
    sha256 = hashlib.sha256(predicted(teacher).numpy().tobytes()).hexdigest()
    assert bundle.known_hashes(student) == {"labels": sha256}
    return hash_of_labels(student) == sha256


# ---- what is trained on


def test_a_student_trains_on_its_teacher_s_predictions_and_nothing_else_is_replaced(trained):
    store.ensure([TEACHER, STUDENT])
    plain, given = bundle.prepare(BARE), bundle.prepare(STUDENT)
    assert torch.equal(trained[STUDENT.id], predicted(TEACHER))
    assert torch.equal(trained[TEACHER.id], plain.train.labels)
    assert torch.equal(given.train.labels, predicted(TEACHER))
    assert not torch.equal(given.train.labels, plain.train.labels)
    assert taught(STUDENT, TEACHER)
    assert hash_of_labels(STUDENT) == given.hashes["labels"] != hash_of_labels(TEACHER)
    assert torch.equal(given.true_labels, plain.true_labels)
    for split in ("train", "validation", "measure", "test"):
        assert torch.equal(getattr(given, split).images, getattr(plain, split).images)
        if split != "train":
            assert torch.equal(getattr(given, split).labels, getattr(plain, split).labels)
    assert given.hashes["data"] == plain.hashes["data"]


@pytest.mark.parametrize("change", [{}, {"batch_norm": True, "dropout": 0.5}], ids=["bare", "BN"])
def test_predictions_and_the_trunk_that_are_kept_are_the_trained_network_s(change):
    run = replace(TEACHER, keep_weights=True, keep_trunk=True, **change)
    store.ensure([run])
    whole, rebuilt = (trainer.build_network(run, 1, 16, 10).eval() for _ in range(2))
    whole.load_state_dict(torch.load(folder_of(run) / "weights.pt", weights_only=True))
    images = bundle.prepare(run).train.images
    kept = {k: torch.from_numpy(v) for k, v in store.arrays(run).items() if k.startswith("trunk ")}
    with torch.no_grad():
        assert torch.equal(predicted(run), whole(images).argmax(1))
        untrained = rebuilt.trunk(images)
        rebuilt.trunk.load_state_dict({k.removeprefix("trunk "): v for k, v in kept.items()})
        assert torch.equal(rebuilt.trunk(images), whole.trunk(images))
        assert not torch.equal(untrained, whole.trunk(images))
    assert len(predicted(run).unique()) > 1 or not change


def test_the_predictions_of_a_network_without_a_trunk_can_be_kept_too():
    run = replace(BARE, network="convnet_s", predictions=True, keep_trunk=True)
    store.ensure([run, replace(run, relabelled_by=run.id)])
    assert list(store.arrays(run)) == ["predictions"] and len(predicted(run)) == 100


# ---- the order


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_student_listed_before_its_teacher_is_trained_after_it(jobs, trained):
    store.ensure([STUDENT, replace(BARE, seed=1), TEACHER], jobs=jobs)
    assert len(store.load([STUDENT, TEACHER])) == 6
    assert taught(STUDENT, TEACHER)
    if jobs == 1:
        assert list(trained).index(TEACHER.id) < list(trained).index(STUDENT.id)


def test_a_stored_teacher_need_not_be_listed_and_is_not_trained_again(trained):
    store.ensure([TEACHER])
    trained.clear()
    store.ensure([STUDENT], profile="lite")
    assert list(trained) == [STUDENT.id]


def test_a_stored_run_becomes_a_teacher_by_gaining_its_predictions(trained):
    store.ensure([PLAIN])
    before = store.load([PLAIN])
    store.ensure([STUDENT, TEACHER])
    assert list(trained) == [TEACHER.id, STUDENT.id]
    pd.testing.assert_frame_equal(store.load([PLAIN]), before, check_exact=True)


def test_a_teacher_that_does_not_end_in_time_leaves_its_student_for_later(trained):
    def left():
        return store.epochs_left(TEACHER), store.epochs_left(STUDENT)

    # each run is begun, and stops after an epoch
    late = {"deadline": 0.0, "may_begin": lambda *_: True}
    store.ensure([STUDENT, TEACHER], **late)
    assert left() == (2, 3)
    assert list(trained) == [TEACHER.id] and store.find(STUDENT) is None
    for _ in range(2):  # the teacher's last epoch, then the student's first
        store.ensure([STUDENT, TEACHER], **late)
    assert left() == (0, 2)
    store.ensure([STUDENT, TEACHER])
    assert left() == (0, 0) and torch.equal(trained[STUDENT.id], predicted(TEACHER))


# ---- a teacher that predicts other labels than it did


def teach_others():
    """As a teacher trained again, in bfloat16 or elsewhere, predicts: a few labels are others."""
    arrays = run_dir.read_arrays(folder_of(TEACHER))
    arrays["predictions"][:10] = (arrays["predictions"][:10] + 1) % 10
    np.savez_compressed(folder_of(TEACHER) / "measures.npz", **arrays)


def test_a_finished_student_of_other_labels_is_trained_anew(trained):
    store.ensure([TEACHER, STUDENT])
    trained.clear()
    store.ensure([TEACHER, STUDENT])
    assert not trained and store.epochs_left(STUDENT) == 0
    teach_others()
    assert store.epochs_left(STUDENT) == 3 and store.epochs_left(TEACHER) == 0
    store.ensure([TEACHER, STUDENT])
    assert list(trained) == [STUDENT.id] and torch.equal(trained[STUDENT.id], predicted(TEACHER))
    assert store.epochs_left(STUDENT) == 0 and taught(STUDENT, TEACHER)


@pytest.mark.parametrize("others", [False, True])
def test_students_follow_a_teacher_that_is_trained_again_if_it_predicts_others(
    others, trained, monkeypatch
):
    runs = [LAST, replace(STUDENT, predictions=True)]  # a student can teach, too
    store.ensure([*runs, TEACHER])
    assert list(trained) == [TEACHER.id, STUDENT.id, LAST.id]
    trained.clear()
    predict = trainer.final_arrays

    def predicting_others(*arguments):
        found = predict(*arguments)
        return {k: (v + others) % 10 if k == "predictions" else v for k, v in found.items()}

    monkeypatch.setattr(trainer, "final_arrays", predicting_others)
    store.ensure([*runs, replace(TEACHER, keep_trunk=True)])  # trained again for its trunk
    assert list(trained) == [TEACHER.id, STUDENT.id, LAST.id][: 3 if others else 1]
    assert taught(STUDENT, TEACHER) and taught(LAST, STUDENT)


@pytest.mark.parametrize("left", ["no teacher", "no predictions", "no hash"])
def test_a_finished_student_is_done_where_nothing_can_be_compared(left, trained):
    store.ensure([TEACHER, STUDENT])
    trained.clear()
    teach_others()
    if left == "no teacher":
        shutil.rmtree(folder_of(TEACHER))
    elif left == "no predictions":
        np.savez_compressed(folder_of(TEACHER) / "measures.npz")
    else:
        path = folder_of(STUDENT) / "env.json"
        env = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in env.items() if k != "labels"}))
    assert store.epochs_left(STUDENT) == 0
    store.ensure([STUDENT])
    assert not trained


@pytest.mark.parametrize("said", [True, False])
def test_a_student_s_checkpoint_of_other_labels_is_not_gone_on_from_where_it_says(said, trained):
    store.ensure([TEACHER])
    folder = folder_of(STUDENT)
    with pytest.raises(trainer.OutOfTime):
        trainer.fit([STUDENT], [folder], deadline=0.0)
    assert store.epochs_left(STUDENT) == 2
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["labels"] == bundle.known_hashes(STUDENT)["labels"]
    assert run_dir.load_checkpoint(folder, STUDENT, {"labels": "others"}) is None
    teach_others()
    if not said:  # as checkpoints were once written
        state.pop("labels")
        torch.save(state, folder / "checkpoint.pt")
    assert store.epochs_left(STUDENT) == (3 if said else 2)
    epochs = []
    trainer.fit([STUDENT], [folder], callback=lambda run, model, epoch: epochs.append(epoch))
    assert epochs == ([0, 1, 2, 3] if said else [2, 3])
    if said:
        found, anew = store.load([STUDENT]), trainer.fit([STUDENT])
        np.testing.assert_allclose(found["cross_entropy"], anew["cross_entropy"], rtol=1e-5)


@pytest.mark.parametrize("at", [(pd.DataFrame, "to_csv"), (run_dir, "_write_json")])
def test_a_student_whose_replacing_is_cut_short_is_not_done(at, monkeypatch):
    """Or old metrics would pass for those of the new labels."""
    store.ensure([TEACHER, STUDENT])
    teach_others()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*at, killed)
        store.ensure([STUDENT])
    assert store.epochs_left(STUDENT) == 3
    store.ensure([STUDENT])
    assert store.epochs_left(STUDENT) == 0


# ---- what is refused


@pytest.mark.parametrize(
    ("listed", "left"),
    [([], []), ([PLAIN], []), ([BARE], []), ([], [PLAIN]), ([PLAIN], [PLAIN])],
)
def test_a_student_without_labels_is_refused_before_anything_trains(listed, left, trained):
    store.ensure(left)
    trained.clear()
    said = rf"{STUDENT.name} is relabelled by the run {TEACHER.id}.*predictions=True"
    with pytest.raises(ValueError, match=said):
        store.ensure([replace(BARE, seed=5), *listed, STUDENT])
    assert not trained and store.find(STUDENT) is None


@pytest.mark.parametrize("place", ["listed", "stored"])
def test_a_teacher_of_other_images_is_refused_before_anything_trains(place, trained):
    teacher = replace(TEACHER, epochs=1, n_train=90)
    student = replace(BARE, relabelled_by=teacher.id)
    store.ensure([teacher] if place == "stored" else [])
    trained.clear()
    said = rf"{student.name} and {teacher.name}, which relabels it, differ in n_train;"
    with pytest.raises(ValueError, match=said):
        store.ensure([student, teacher] if place == "listed" else [student])
    assert not trained and store.find(student) is None


def test_every_field_that_tells_which_images_there_are_is_compared():
    assert OTHER.keys() == set(bundle.DATA_FIELDS)
    for name, value in OTHER.items():
        with pytest.raises(ValueError, match=f"differ in {name};"):
            bundle.check_teacher(STUDENT, replace(TEACHER, **{name: value}))
    other = replace(TEACHER, seed=4, corruption=0.5, network="convnet_s", epochs=9)
    bundle.check_teacher(STUDENT, other)


def test_preparing_a_student_without_its_teacher_s_predictions_says_what_to_do():
    said = rf"relabelled by the run {TEACHER.id}.*train that run with predictions=True first"
    with pytest.raises(LookupError, match=said):
        bundle.prepare(STUDENT)
    store.ensure([PLAIN])
    with pytest.raises(LookupError, match="whose predictions are not in the store"):
        bundle.prepare(STUDENT)
    shutil.rmtree(folder_of(TEACHER))
    arrays, none = {"predictions": np.zeros(99, np.int16)}, pd.DataFrame({"epoch": []})
    run_dir.finish(folder_of(TEACHER), TEACHER, none, arrays, {})
    with pytest.raises(ValueError, match=r"predicted 99 labels for 100 training images"):
        bundle.prepare(STUDENT)


def test_a_teacher_that_diverged_predicts_nothing_and_its_student_is_left_out(trained):
    student = replace(BARE, relabelled_by=LOST.id)
    for ids in ({LOST.id, BARE.id}, set()):
        trained.clear()
        store.ensure([student, LOST, BARE])
        assert set(trained) == ids and store.find(student) is None
    assert "predictions" not in store.arrays(LOST)
    said = rf"1 of 3 runs .*{student.name}.*that relabel them diverged.*leave them out"
    with pytest.raises(LookupError, match=said):
        store.load([BARE, LOST, student])
    with pytest.raises(LookupError, match=r"train them with store\.ensure"):
        store.load([student, replace(BARE, seed=9)])
    with pytest.raises(ValueError, match=rf"diverged has none\): leave {student.name} out"):
        store.ensure([student])
    left_out = [store.is_without_labels(run) for run in (student, LOST, BARE, STUDENT)]
    assert left_out == [True, False, False, False]
    assert store.epochs_left(student) == 0 and store.epochs_left(STUDENT) == 3


def test_a_student_without_labels_is_neither_done_nor_left_to_do(monkeypatch):
    """Or a campaign would say for ever that epochs are left, and never render the notebook."""
    runs = [LOST, replace(BARE, relabelled_by=LOST.id), BARE]
    entry = campaign.Entry("relabelling", ("14_al2_relabel",), {})
    monkeypatch.setattr(campaign.Entry, "runs", runs)
    assert not entry.is_done()
    assert campaign.progress([entry]) == ["relabelling: 0 of 3 runs done, 9 epochs left"]
    store.ensure([LOST])
    assert not entry.is_done()
    store.ensure(runs)
    assert entry.is_done()
    said = "relabelling: 2 of 3 runs done, 1 not run: what relabels them diverged"
    assert campaign.progress([entry]) == [said]


@pytest.mark.slow
def test_the_notebook_says_what_was_not_run(tmp_path):
    """Even where every network diverges."""
    values = {"learning_rate": 1e6, "epochs": 2, "n_train": 100, "n_validation": 20, "jobs": 1}
    notebook = paths.ROOT / "notebooks" / "14_al2_relabel.ipynb"
    how = {"kernel_name": "python3", "progress_bar": False}
    made = papermill.execute_notebook(notebook, tmp_path / "made.ipynb", values, **how)
    said = "".join(o.get("text", "") for cell in made.cells for o in cell.get("outputs", []))
    question = "Do AL2's labels teach Bare better than the noisy ones (last epoch)?"
    assert f"{question} cannot be said: not measured, or diverged" in said
    assert said.count("the network that would relabel it diverged") == 2
    assert "diverged: the teacher network of seed 0" in said


# ---- tables


def frame_of(runs, accuracy=50.0):
    columns = dict(profile="quick", test_accuracy=accuracy, cross_entropy=1.0)
    parts = [stored(run, **columns) for run in runs]
    return pd.concat(parts, ignore_index=True).assign(num_classes=10)


def test_what_taught_each_bare_network_is_named():
    runs = relabelling("mnist", seeds=(0, 1), epochs=4)
    found = tables.relabelling_runs(frame_of(runs)).drop_duplicates("id")
    assert list(found.id) == [run.id for run in runs]
    assert list(found.labels) == ["noisy", "teacher", "bare", "al2", "clean"] * 2


def test_networks_that_are_no_part_of_the_relabelling_are_left_out():
    runs = relabelling("mnist", epochs=4)
    noisy, teacher = runs[:2]
    others = [r for r in label_randomization("mnist", epochs=4) if r.baseline != "bare"]
    teachers = ["0123456789", others[0].id]
    others += [replace(noisy, relabelled_by=taught_by) for taught_by in teachers]
    others += [replace(teacher, relabelled_by=noisy.id), replace(teacher, corruption=0.0)]
    made = frame_of([*runs, *others, replace(noisy, network="lenet")])
    assert set(tables.relabelling_runs(made).id) == {run.id for run in runs}


def test_no_runs_give_no_rows_but_the_column():
    found = tables.relabelling_runs(store.load([]))
    assert found.empty and "labels" in found
