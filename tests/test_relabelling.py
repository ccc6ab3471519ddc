"""Training sets relabelled by another run: what is trained on what, in which order, what is
refused, what is drawn.
"""

import hashlib
import json
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from made import stored
from matplotlib.colors import to_rgb

from lib import bundle, data, paths, run_dir, store, trainer
from lib.run import Run
from lib.study import campaign, figures, report, tables
from lib.study.experiments import label_randomization, relabelling
from lib.trainer import TrainStep

BARE = Run(
    dataset="digits",
    image_size=16,
    n_train=100,
    n_validation=20,
    test_images=40,
    epochs=3,
    learning_rate=0.1,
    batch_size=32,
    ablations=(),
)
TEACHER = replace(BARE, al2=True, speed=8.0, predictions=True)
STUDENT = replace(BARE, relabelled_by=TEACHER.id)
OTHER_DATA = {
    "image_size": 20,
    "n_train": 90,
    "n_validation": 30,
    "n_measure": 10,
    "normalize": "unit",
}
OTHER_FIELDS = OTHER_DATA | {"dataset": "mnist", "classes": 5}


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


# ---- what is trained on


def test_a_student_trains_on_its_teacher_s_predictions_of_the_same_images(trained):
    store.ensure([TEACHER, STUDENT])
    assert torch.equal(trained[STUDENT.id], predicted(TEACHER))
    plain, given = bundle.prepare(BARE), bundle.prepare(STUDENT)
    assert torch.equal(trained[TEACHER.id], plain.train.labels)
    assert (
        torch.equal(given.train.labels, predicted(TEACHER))
        and given.train.labels.dtype == torch.int64
    )
    assert not torch.equal(given.train.labels, plain.train.labels)
    assert (
        hash_of_labels(STUDENT) == hashlib.sha256(predicted(TEACHER).numpy().tobytes()).hexdigest()
    )
    assert hash_of_labels(STUDENT) == given.hashes["labels"] != hash_of_labels(TEACHER)


def test_only_the_training_labels_are_replaced(trained):
    store.ensure([TEACHER])
    plain, given = bundle.prepare(BARE), bundle.prepare(STUDENT)
    assert torch.equal(given.true_labels, plain.true_labels)
    for split in ("validation", "measure", "test"):
        assert torch.equal(getattr(given, split).labels, getattr(plain, split).labels)
        assert torch.equal(getattr(given, split).images, getattr(plain, split).images)
    assert torch.equal(given.train.images, plain.train.images)
    assert given.hashes["data"] == plain.hashes["data"]


def test_predictions_are_the_last_network_s_on_its_training_images():
    run = replace(TEACHER, keep_weights=True, batch_norm=True)
    store.ensure([run])
    model = trainer.build_network(run, 1, 16, 10)
    model.load_state_dict(torch.load(folder_of(run) / "weights.pt", weights_only=True))
    model.eval()
    train, _, _ = data.subset(data.load("digits", size=16).train, 100, 20)
    with torch.no_grad():
        assert torch.equal(predicted(run), model(train.images).argmax(1))
    assert len(predicted(run).unique()) > 1


def test_the_predictions_of_a_network_without_a_trunk_can_be_kept_too():
    run = replace(BARE, network="convnet_s", predictions=True, keep_trunk=True)
    store.ensure([run, replace(run, relabelled_by=run.id)])
    assert list(store.arrays(run)) == ["predictions"] and len(predicted(run)) == 100


@pytest.mark.parametrize(
    "change", [{}, {"batch_norm": True, "dropout": 0.5}], ids=["bare", "BN and dropout"]
)
def test_the_trunk_that_is_kept_gives_the_features_of_the_trained_network(change):
    run = replace(TEACHER, keep_weights=True, keep_trunk=True, **change)
    store.ensure([run])
    whole, rebuilt = (trainer.build_network(run, 1, 16, 10).eval() for _ in range(2))
    whole.load_state_dict(torch.load(folder_of(run) / "weights.pt", weights_only=True))
    kept = {
        k.removeprefix("trunk "): torch.from_numpy(v)
        for k, v in store.arrays(run).items()
        if k.startswith("trunk ")
    }
    x = torch.rand(7, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        untrained = rebuilt.trunk(x)
        rebuilt.trunk.load_state_dict(kept)
        assert torch.equal(rebuilt.trunk(x), whole.trunk(x)) and not torch.equal(
            untrained, whole.trunk(x)
        )


def test_keeping_predictions_and_trunk_changes_nothing_in_training():
    plain = trainer.fit([replace(TEACHER, predictions=False)])
    pd.testing.assert_frame_equal(
        trainer.fit([replace(TEACHER, keep_trunk=True)]), plain, check_exact=True
    )


# ---- the order


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_student_listed_before_its_teacher_is_trained_after_it(jobs, trained):
    store.ensure([STUDENT, replace(BARE, seed=1), TEACHER], jobs=jobs)
    assert len(store.load([STUDENT, TEACHER])) == 6
    assert (
        hash_of_labels(STUDENT) == hashlib.sha256(predicted(TEACHER).numpy().tobytes()).hexdigest()
    )
    if jobs == 1:
        assert list(trained).index(TEACHER.id) < list(trained).index(STUDENT.id)


def test_a_student_can_teach_too(trained):
    middle = replace(STUDENT, predictions=True)
    last = replace(BARE, relabelled_by=STUDENT.id)
    store.ensure([last, middle, TEACHER])
    assert list(trained) == [TEACHER.id, STUDENT.id, last.id]
    assert torch.equal(trained[last.id], predicted(STUDENT))


def test_a_stored_teacher_need_not_be_listed_and_is_not_trained_again(trained):
    store.ensure([TEACHER])
    trained.clear()
    store.ensure([STUDENT], profile="lite")
    assert list(trained) == [STUDENT.id]


def test_a_stored_run_becomes_a_teacher_by_gaining_its_predictions(trained):
    plain = replace(TEACHER, predictions=False)
    store.ensure([plain])
    before = store.load([plain])
    store.ensure([STUDENT, TEACHER])
    assert list(trained) == [TEACHER.id, STUDENT.id]
    pd.testing.assert_frame_equal(store.load([plain]), before, check_exact=True)


def test_a_teacher_that_does_not_end_in_time_leaves_its_student_for_later(trained):
    # each run is begun, and stops after an epoch
    late = {"deadline": 0.0, "may_begin": lambda *_: True}
    store.ensure([STUDENT, TEACHER], **late)
    assert (store.epochs_left(TEACHER), store.epochs_left(STUDENT)) == (2, 3)
    assert list(trained) == [TEACHER.id] and store.find(STUDENT) is None
    store.ensure([STUDENT, TEACHER], **late)
    store.ensure([STUDENT, TEACHER], **late)  # the teacher's last epoch, then the student's first
    assert (store.epochs_left(TEACHER), store.epochs_left(STUDENT)) == (0, 2)
    store.ensure([STUDENT, TEACHER])
    assert (store.epochs_left(TEACHER), store.epochs_left(STUDENT)) == (0, 0)
    assert torch.equal(trained[STUDENT.id], predicted(TEACHER))


# ---- a teacher that predicts other labels than it did


def teach_others(teacher=TEACHER):
    """As after another training of the teacher, in bfloat16 or on another device: a few predictions
    are others.
    """
    path = folder_of(teacher) / "measures.npz"
    arrays = run_dir.read_arrays(folder_of(teacher))
    arrays["predictions"][:10] = (arrays["predictions"][:10] + 1) % 10
    np.savez_compressed(path, **arrays)


def test_a_finished_student_of_other_labels_is_trained_anew(trained):
    store.ensure([TEACHER, STUDENT])
    trained.clear()
    store.ensure([TEACHER, STUDENT])
    assert not trained and store.epochs_left(STUDENT) == 0
    teach_others()
    assert store.epochs_left(STUDENT) == 3 and store.epochs_left(TEACHER) == 0
    store.ensure([TEACHER, STUDENT])
    assert list(trained) == [STUDENT.id] and torch.equal(trained[STUDENT.id], predicted(TEACHER))
    assert store.epochs_left(STUDENT) == 0 and hash_of_labels(STUDENT) == bundle.pseudo_labels_hash(
        STUDENT
    )


def test_a_student_follows_its_teacher_in_one_call_and_the_student_s_student_too(
    trained, monkeypatch
):
    middle = replace(STUDENT, predictions=True)
    last = replace(BARE, relabelled_by=STUDENT.id)
    store.ensure([last, middle, TEACHER])
    trained.clear()
    predict = trainer.final_arrays
    monkeypatch.setattr(
        trainer,
        "final_arrays",
        lambda *a: {k: (v + 1) % 10 if k == "predictions" else v for k, v in predict(*a).items()},
    )
    store.ensure([last, middle, replace(TEACHER, keep_trunk=True)])  # trained again for its trunk
    assert list(trained) == [TEACHER.id, STUDENT.id, last.id]
    assert torch.equal(trained[STUDENT.id], predicted(TEACHER)) and torch.equal(
        trained[last.id], predicted(STUDENT)
    )


def test_a_teacher_that_predicts_the_same_again_leaves_its_student_as_it_is(trained):
    store.ensure([STUDENT, TEACHER])
    trained.clear()
    store.ensure([STUDENT, replace(TEACHER, keep_trunk=True)])
    assert list(trained) == [TEACHER.id]


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
        path.write_text(
            json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "labels"})
        )
    assert store.epochs_left(STUDENT) == 0
    store.ensure([STUDENT])
    assert not trained


def half_trained(run=STUDENT):
    """The run after its first epoch, with a checkpoint."""
    with pytest.raises(trainer.OutOfTime):
        trainer.fit([run], [folder_of(run)], deadline=0.0)


def test_a_student_s_checkpoint_of_other_labels_is_not_gone_on_from(trained):
    store.ensure([TEACHER])
    half_trained()
    assert store.epochs_left(STUDENT) == 2
    teach_others()
    assert store.epochs_left(STUDENT) == 3
    store.ensure([STUDENT])
    pd.testing.assert_frame_equal(
        store.load([STUDENT])[["epoch", "cross_entropy"]],
        trainer.fit([STUDENT])[["epoch", "cross_entropy"]],
        check_exact=False,
        check_dtype=False,
    )


def test_a_student_s_checkpoint_of_the_same_labels_or_of_none_said_is_gone_on_from(trained):
    store.ensure([TEACHER])
    half_trained()
    path = folder_of(STUDENT) / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    assert state["labels"] == bundle.pseudo_labels_hash(STUDENT)
    assert run_dir.load_checkpoint(folder_of(STUDENT), STUDENT, "others") is None
    teach_others()
    # as they were once written
    torch.save({name: value for name, value in state.items() if name != "labels"}, path)
    assert store.epochs_left(STUDENT) == 2
    epochs = []
    trainer.fit(
        [STUDENT], [folder_of(STUDENT)], callback=lambda run, model, epoch: epochs.append(epoch)
    )
    assert epochs == [2, 3]


@pytest.mark.parametrize("at", ["metrics", "environment"])
def test_a_student_whose_replacing_is_cut_short_is_not_done(at, monkeypatch):
    """Or old metrics would pass for those of the new labels."""
    store.ensure([TEACHER, STUDENT])
    teach_others()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            *((pd.DataFrame, "to_csv") if at == "metrics" else (run_dir, "_write_json")), killed
        )
        store.ensure([STUDENT])
    assert store.epochs_left(STUDENT) == 3
    store.ensure([STUDENT])
    assert store.epochs_left(STUDENT) == 0


# ---- what is refused


@pytest.mark.parametrize(
    "listed", [[], [replace(TEACHER, predictions=False)], [BARE]], ids=["no", "without", "another"]
)
@pytest.mark.parametrize("left", ["nothing", "without predictions"])
def test_a_student_without_labels_is_refused_before_anything_trains(listed, left, trained):
    if left != "nothing":
        store.ensure([replace(TEACHER, predictions=False)])
        trained.clear()
    with pytest.raises(
        ValueError, match=rf"{STUDENT.name} is relabelled by the run {TEACHER.id}.*predictions=True"
    ):
        store.ensure([replace(BARE, seed=5), *listed, STUDENT])
    assert not trained and store.find(STUDENT) is None


@pytest.mark.parametrize(("name", "value"), OTHER_DATA.items(), ids=OTHER_DATA)
@pytest.mark.parametrize("place", ["listed", "stored"])
def test_a_teacher_of_other_images_is_refused_before_anything_trains(name, value, place, trained):
    teacher = replace(TEACHER, **{name: value})
    student = replace(BARE, relabelled_by=teacher.id)
    if place == "stored":
        store.ensure([teacher])
        trained.clear()
    with pytest.raises(
        ValueError,
        match=rf"{student.name} and {teacher.name}, which relabels it, differ in {name};",
    ):
        store.ensure([student, teacher] if place == "listed" else [student])
    assert not trained and store.find(student) is None


def test_every_field_that_tells_which_images_there_are_is_compared():
    assert OTHER_FIELDS.keys() == set(bundle.DATA_FIELDS)
    for name, value in OTHER_FIELDS.items():
        with pytest.raises(ValueError, match=f"differ in {name};"):
            bundle.check_teacher(STUDENT, replace(TEACHER, **{name: value}))
    bundle.check_teacher(
        STUDENT, replace(TEACHER, seed=4, corruption=0.5, network="convnet_s", epochs=9)
    )


def test_preparing_a_student_without_its_teacher_s_predictions_says_what_to_do():
    with pytest.raises(
        LookupError,
        match=rf"relabelled by the run {TEACHER.id}.*train that run with predictions=True first",
    ):
        bundle.prepare(STUDENT)
    store.ensure([replace(TEACHER, predictions=False)])
    with pytest.raises(LookupError, match="whose predictions are not in the store"):
        bundle.prepare(STUDENT)


def test_predictions_of_another_number_of_images_are_refused():
    run_dir.finish(
        folder_of(TEACHER),
        TEACHER,
        pd.DataFrame({"epoch": []}),
        {"predictions": np.zeros(99, np.int16)},
        {},
    )
    with pytest.raises(ValueError, match=r"predicted 99 labels for 100 training images"):
        bundle.prepare(STUDENT)


def test_a_teacher_that_diverged_predicts_nothing_and_its_student_is_left_out(trained):
    lost = replace(TEACHER, learning_rate=1e6)
    student = replace(BARE, relabelled_by=lost.id)
    store.ensure([student, lost, BARE])
    assert "predictions" not in store.arrays(lost)
    assert set(trained) == {lost.id, BARE.id} and store.find(student) is None
    trained.clear()
    store.ensure([student, lost, BARE])
    assert not trained
    with pytest.raises(
        LookupError,
        match=rf"1 of 3 runs .*{student.name}.*that relabel them diverged.*leave them out",
    ):
        store.load([BARE, lost, student])
    with pytest.raises(LookupError, match=r"train them with store\.ensure"):
        store.load([student, replace(BARE, seed=9)])
    with pytest.raises(ValueError, match="a run that diverged has none"):
        store.ensure([student])
    assert [store.is_without_labels(run) for run in (student, lost, BARE, STUDENT)] == [
        True,
        False,
        False,
        False,
    ]
    assert store.epochs_left(student) == 0 and store.epochs_left(STUDENT) == 3


def test_a_student_without_labels_is_neither_done_nor_left_to_do(monkeypatch, trained):
    """Or a campaign would say for ever that epochs are left, and never render the notebook."""
    lost = replace(TEACHER, learning_rate=1e6)
    runs = [lost, replace(BARE, relabelled_by=lost.id), BARE]
    entry = campaign.Entry("14_al2_relabel", {})
    monkeypatch.setattr(campaign.Entry, "runs", lambda self: runs)
    assert not entry.is_done()
    assert campaign.progress([entry]) == [
        "14_al2_relabel: 0 of 3 runs done, 9 epochs left, hours unknown"
    ]
    store.ensure([lost])
    assert not entry.is_done()
    store.ensure(runs)
    assert entry.is_done()
    assert campaign.progress([entry]) == [
        "14_al2_relabel: 2 of 3 runs done, 1 not run: what relabels them diverged"
    ]


@pytest.mark.slow
def test_the_notebook_says_what_was_not_run(tmp_path):
    """Even where every network diverges."""
    values = {"learning_rate": 1e6, "epochs": 2, "n_train": 100, "n_validation": 20, "jobs": 1}
    notebook = paths.ROOT / "notebooks" / "14_al2_relabel.ipynb"
    made = papermill.execute_notebook(
        notebook, tmp_path / "made.ipynb", values, kernel_name="python3", progress_bar=False
    )
    said = "".join(o.get("text", "") for cell in made.cells for o in cell.get("outputs", []))
    assert (
        said.count("the network that would relabel it diverged") == 2
        and "diverged: the teacher network of seed 0" in said
    )
    assert (
        "Do AL2's labels teach Bare better than the noisy ones (last epoch)? not run: a network "
        "diverged" in said
    )


# ---- identity


def test_who_relabels_is_part_of_the_data_and_what_is_kept_is_not():
    assert (
        bundle.data_key(STUDENT)
        != bundle.data_key(BARE)
        != bundle.data_key(replace(BARE, relabelled_by="0123456789"))
    )
    assert bundle.data_key(replace(BARE, predictions=True, keep_trunk=True)) == bundle.data_key(
        BARE
    )


# ---- tables


def frame_of(runs, accuracy=50.0, profile="quick", **columns):
    parts = [
        stored(run, profile=profile, test_accuracy=accuracy, cross_entropy=1.0, **columns)
        for run in runs
    ]
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
    others += [replace(noisy, relabelled_by="0123456789"), replace(teacher, relabelled_by=noisy.id)]
    others += [
        replace(noisy, relabelled_by=others[0].id),
        replace(teacher, corruption=0.0),
        replace(noisy, network="lenet"),
    ]
    made = frame_of([*runs, *others])
    assert set(tables.relabelling_runs(made).id) == {run.id for run in runs}
    of_notebooks = made.assign(
        notebooks=["10_x 14_al2_relabel" if i == noisy.id else "10_x" for i in made.id]
    )
    assert set(tables.relabelling_runs(of_notebooks).id) == {noisy.id}
    assert not set(tables.label_randomization_runs(made).id) & {
        run.id for run in runs if run.relabelled_by
    }


def test_no_runs_give_no_rows_but_the_column():
    for empty in (pd.DataFrame(), frame_of([BARE]).drop(columns="relabelled_by")):
        assert tables.relabelling_runs(empty).empty and "labels" in tables.relabelling_runs(empty)


# ---- the figure


@pytest.fixture
def closed():
    yield
    plt.close("all")


@pytest.mark.filterwarnings("error")
def test_the_figure_shows_a_line_for_each_kind_of_labels(closed):
    made = frame_of(relabelling("mnist", seeds=(0, 1), epochs=4), accuracy=lambda epoch: 10 * epoch)
    made.loc[made.seed == 1, "test_accuracy"] += 2
    fig = figures.relabelling_curves(tables.relabelling_runs(made))
    fig.canvas.draw()
    (ax,) = fig.axes
    curves = ax.lines[:-1]
    (chance,) = ax.lines[-1:]
    assert [list(line.get_ydata()) for line in curves] == [[11, 21, 31, 41]] * 5 and set(
        chance.get_ydata()
    ) == {10}
    # solid with AL2, as everywhere
    assert [line.get_linestyle() for line in curves] == ["--", "-", "--", "--", "--"]
    colours = [to_rgb(line.get_color()) for line in curves]
    assert colours[0] == colours[1] == to_rgb(figures.COLOURS["bare"]) and len(set(colours)) == 4
    assert not set(colours[2:]) & {to_rgb(c) for c in figures.COLOURS.values()}
    (legend,) = fig.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        v[0] for v in figures.RELABELLING.values()
    ] + ["chance"]
    assert "2 seeds" in fig.get_suptitle() and "75 %" in fig.get_suptitle()


def test_the_figure_shows_what_there_is(closed):
    made = tables.relabelling_runs(frame_of(relabelling("mnist", epochs=4)))
    fig = figures.relabelling_curves(made[made.labels.isin(["noisy", "al2"])])
    assert len(fig.axes[0].lines) == 3 and "one seed" in fig.get_suptitle()
    with pytest.raises(ValueError, match="one dataset and corruption"):
        figures.relabelling_curves(pd.concat([made, made.assign(dataset="fashion_mnist")]))


def test_the_report_draws_it_for_each_data_set_that_was_relabelled(closed):
    names = {"mnist": (), "fashion_mnist": ()}
    made = pd.concat([frame_of(relabelling(name, epochs=4)) for name in names], ignore_index=True)
    made = made[(made.dataset == "mnist") | made.relabelled_by.isna()].assign(
        notebooks="14_al2_relabel"
    )
    empty = {name: tables.beside_published(name, pd.DataFrame()) for name in tables.AL2_TABLES}
    empty |= {
        n: tables.sparsity_beside_published(n, pd.DataFrame())
        for n in ("sparsity_table2", "sparsity_table3")
    }
    found = report.drawings(report.Report(made, {}, pd.DataFrame(), empty, pd.DataFrame()))
    assert [name for name in found if name.startswith("al2_relabel")] == ["al2_relabel-quick-mnist"]
    assert len(found["al2_relabel-quick-mnist"]().axes[0].lines) == 6
