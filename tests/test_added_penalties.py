"""A penalty from outside: registered here, then trained, resumed and stored like the papers'."""

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from lib import bundle, losses, paths, plots, run_dir, store, trainer
from lib.run import Run
from lib.study import claims, drawing, tables
from lib.study.experiments import label_randomization

RUN = Run(
    "digits",
    image_size=16,
    n_train=96,
    test_images=40,
    epochs=3,
    learning_rate=0.1,
    batch_size=32,
)


class Shrink:
    """Toy penalty: the mean square of one layer's weights, times a factor."""

    metric = "shrinkage"

    def __init__(self, model: nn.Module, layer: str, factor: float = 1.0) -> None:
        self.weight = losses.find_layer(model, layer).weight
        self.factor = factor

    def penalty(self) -> torch.Tensor:
        return self.factor * self.weight.square().mean()

    def remove(self) -> None:
        del self.weight


TOY = {"name": "shrink", "weight": 5.0, "layer": "head.fc1"}
PENALISED = replace(RUN, penalties=[TOY])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(losses.PENALTIES, "shrink", Shrink)


def folder_of(run, profile="own"):
    return paths.results_dir() / profile / run.dataset / run.name


def test_it_trains_and_is_stored_under_its_own_name():
    store.ensure([RUN, PENALISED])
    frame = store.load([PENALISED])
    assert frame.shrinkage.gt(0).all() and frame.shrinkage.is_monotonic_decreasing
    assert set(frame.regulariser) == {"shrink"}
    assert set(frame.penalties) == {"shrink(layer=head.fc1, weight=5.0)"}
    assert "shrinkage" not in store.load([RUN])
    assert "-shrink-" in PENALISED.name and PENALISED.id != RUN.id


def test_its_gradient_is_that_of_the_weighted_penalty():
    """One step of SGD against the same step by hand."""
    one = replace(PENALISED, epochs=1, n_train=32, momentum=0.0, keep_weights=True)
    data = bundle.prepare(one)
    model = trainer.build_network(one, *data.shape)
    logits = model(data.train.images)
    loss = nn.functional.cross_entropy(logits, data.train.labels)
    loss = loss + 5.0 * model.head.fc1.weight.square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= one.learning_rate * parameter.grad
    store.ensure([one])
    stored = torch.load(folder_of(one) / "weights.pt", weights_only=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_know_it_too(monkeypatch):
    runs = [PENALISED, replace(PENALISED, seed=1)]
    store.ensure(runs, profile="two", jobs=2)
    together = store.load(runs)
    alone = trainer.fit(runs)
    for name in ("shrinkage", "cross_entropy", "test_accuracy"):
        # stored metrics have six digits
        assert list(together[name]) == pytest.approx(list(alone[name]), rel=1e-5)


def test_a_killed_run_goes_on_with_it():
    folder = folder_of(PENALISED)
    with contextlib.suppress(trainer.OutOfTime):
        trainer.fit([PENALISED], [folder], deadline=0.0)
    assert (folder / "checkpoint.pt").exists() and not run_dir.is_finished(folder)
    resumed = trainer.fit([PENALISED], [folder])
    whole = trainer.fit([PENALISED])
    assert list(resumed.shrinkage) == list(whole.shrinkage)


def test_it_joins_the_papers_own():
    both = replace(PENALISED, al2=True, sparsity=("head.fc1",), decorrelation=("trunk.conv1",))
    names = ["activation_l2", "lambda", "sparsity_penalty", "decorrelation_penalty", "shrinkage"]
    frame = trainer.fit([both])
    assert [name for name in frame if name in names] == names
    assert both.regulariser == "al2+sparsity+decorrelation+shrink"
    assert [term.name for term in both.terms()] == [
        "activation_l2",
        "sparsity",
        "decorrelation",
        "shrink",
    ]


def test_the_papers_own_can_be_added_by_name_and_train_alike():
    layers = {"trunk.conv2": 0.01}
    added = replace(RUN, penalties=[{"name": "sparsity", "layers": layers}])
    field = replace(RUN, sparsity=("trunk.conv2",), sparsity_weight=0.01)
    columns = ["cross_entropy", "sparsity_penalty", "test_accuracy"]
    assert trainer.fit([added])[columns].equals(trainer.fit([field])[columns])


def test_an_empty_list_changes_no_id_and_the_text_form_is_the_same_run():
    assert Run("mnist").id == replace(Run("mnist"), penalties=()).id
    assert "penalties" not in Run("mnist").canonical()
    assert Run.from_dict(PENALISED.to_dict()) == PENALISED
    assert replace(RUN, penalties=PENALISED.penalties) == PENALISED
    assert replace(RUN, penalties=[TOY | {"weight": 5}]).id == PENALISED.id
    assert replace(RUN, penalties=[TOY | {"weight": 0}]) == RUN
    one, other = ({"name": "shrink", "layer": layer} for layer in ("head.fc1", "head.fc2"))
    assert replace(RUN, penalties=[one, other]).id != replace(RUN, penalties=[other, one]).id


@pytest.mark.parametrize(
    ("penalty", "error", "message"),
    [
        ("shrink", TypeError, "list of mappings"),
        ([{"weight": 1.0}], TypeError, "mappings with a name"),
        ([{"name": "two words"}], ValueError, "has to be a word"),
        ([TOY | {"weight": -1.0}], ValueError, "weight is -1.0"),
        ([TOY | {"weight": "1e-4"}], TypeError, "write 1.0e-4"),
        ([TOY | {"factor": float("nan")}], TypeError, "penalties holds"),
    ],
)
def test_a_penalty_that_cannot_be_one_is_refused(penalty, error, message):
    with pytest.raises(error, match=message):
        replace(RUN, penalties=penalty)


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        ({"name": "shrunk"}, "losses.PENALTIES has activation_l2, sparsity, decorrelation, shrink"),
        (TOY | {"layer": "fc7"}, "no layer 'fc7'"),
        (TOY | {"layers": {}}, "cannot be made of"),
        ({"name": "sparsity", "layers": ["head.fc1"]}, "'sparsity' cannot be made of"),
        ({"name": "activation_l2", "layer": "trunk.conv1"}, "'activation_l2', which is taken"),
    ],
)
def test_a_penalty_that_the_network_cannot_have_is_refused_before_anything_trains(penalty, message):
    with pytest.raises(ValueError, match=message):
        store.ensure([RUN, replace(RUN, penalties=[penalty])])
    assert not paths.results_dir().exists() or store.available([RUN]) == []


def test_every_column_of_the_metrics_is_a_name_that_no_penalty_can_take():
    """So that the list of these names cannot fall behind the trainer's."""
    frame = trainer.fit([replace(RUN, al2=True, n_validation=20, epochs=1)])
    assert {name for name in frame if " " not in name} <= bundle.RESERVED_METRICS


def test_trying_a_penalty_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    bundle.prepare(replace(PENALISED, dropout=0.5))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_two_penalties_of_one_metric_are_refused():
    with pytest.raises(ValueError, match="'shrinkage', which is taken"):
        trainer.fit([replace(RUN, penalties=[TOY, TOY | {"layer": "head.fc2"}])])


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        (lambda self: 0, "gives a int"),
        (lambda self: self.weight.square(), r"gives a tensor of shape \(500, 50\)"),
        (lambda self: self.weight.detach().mean(), "without gradients"),
        (lambda self: self.weight.mean() / 0, "gives -?inf for a new network"),
    ],
)
def test_a_value_that_is_no_differentiable_scalar_is_refused_by_name(penalty, message, monkeypatch):
    monkeypatch.setattr(Shrink, "penalty", penalty)
    with pytest.raises(ValueError, match=rf"'shrink' .*{message}"):
        store.ensure([RUN, PENALISED])
    assert store.available([RUN]) == []


@pytest.mark.parametrize("metric", ["network", "diverged", "ablation_auc", "entropy conv1", ""])
def test_a_metric_whose_name_is_taken_or_no_word_is_refused(metric, monkeypatch):
    monkeypatch.setattr(Shrink, "metric", metric)
    with pytest.raises(ValueError, match="'shrink' calls its metric"):
        store.ensure([PENALISED])


def test_a_class_that_lacks_something_is_refused(monkeypatch):
    monkeypatch.delattr(Shrink, "remove")
    with pytest.raises(ValueError, match="'shrink' has no `remove`"):
        store.ensure([PENALISED])


def test_a_resumed_penalty_sees_the_initial_weights(monkeypatch):
    """Such as a distance from where the training began."""

    def measured_from_the_start(self, model, layer):
        self.weight = losses.find_layer(model, layer).weight
        self.start = self.weight.detach().clone()

    monkeypatch.setattr(Shrink, "__init__", measured_from_the_start)
    monkeypatch.setattr(
        Shrink,
        "penalty",
        lambda self: (self.weight - self.start).square().mean() + self.weight.sum() * 0,
    )
    folder = folder_of(PENALISED)
    with contextlib.suppress(trainer.OutOfTime):
        trainer.fit([PENALISED], [folder], deadline=0.0)
    resumed = trainer.fit([PENALISED], [folder])
    assert list(resumed.shrinkage) == list(trainer.fit([PENALISED]).shrinkage)


def test_a_stored_run_can_be_read_where_nobody_registered_its_penalty(monkeypatch):
    store.ensure([PENALISED])
    monkeypatch.delitem(losses.PENALTIES, "shrink")
    assert store.load([PENALISED]).shrinkage.notna().all()
    store.ensure([PENALISED])  # nothing is missing


def test_a_class_that_other_processes_cannot_import_needs_one_process(monkeypatch):
    class Local(Shrink):
        pass

    monkeypatch.setitem(losses.PENALTIES, "shrink", Local)
    runs = [PENALISED, replace(PENALISED, seed=1)]
    with pytest.raises(ValueError, match="train with jobs=1"):
        store.ensure(runs, jobs=2)
    store.ensure(runs[:1])


# ---- in Table 1


def test_it_stands_in_table_1_beside_al2_and_no_claim_reads_it():
    runs = label_randomization(
        **{name: getattr(RUN, name) for name in ("dataset", "image_size", "n_train", "batch_size")},
        epochs=7,
        test_images=40,
        penalties=[TOY],
    )
    assert len(runs) == 12
    store.ensure(runs[:3])  # bare: without, with AL2, with the toy
    frame = store.load(runs[:3])
    measured = tables.at_published_epochs(frame, ["test_accuracy"])
    assert list(measured.regulariser.unique()) == ["", "al2", "shrink"]
    printed = tables.as_printed(measured, "test_accuracy").loc["Bare", 700]
    assert len(printed.split(" / ")) == 3 and "not run" not in printed
    beside = tables.beside_published("al2_table1", frame)
    assert {"", "al2", "shrink"} == set(beside.regulariser[beside.measured.notna()])
    for fig in (training_curves(frame), drawing.beside_paper(beside)):
        labels = [text.get_text() for text in fig.legends[0].get_texts()]
        assert [word for word in labels if word.startswith("with")] == [
            "without AL2",
            "with AL2",
            "with shrink",
        ]
    read = claims.runs_of("A1", {"label_randomization": frame})
    assert set(read.regulariser) == {"", "al2"}


def training_curves(frame):
    """Notebook 10's figure of Table 1, drawn by the notebook's own cell."""
    path = paths.ROOT / "notebooks" / "10_al2_label_randomization.ipynb"
    cells = [cell["source"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    (source,) = ["".join(c) for c in cells if "".join(c).startswith("def training_curves(")]
    names = {"plt": plt, "plots": plots, "drawing": drawing, "tables": tables}
    exec(source, names)
    return names["training_curves"](frame)


# ---- the core by itself


def test_the_core_imports_nothing_from_the_study():
    files = [*paths.ROOT.glob("lib/*.py"), *paths.ROOT.glob("lib/data/*.py")]
    assert len(files) > 10
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "lib.study" not in text.replace("`lib.study", ""), file
        assert "lib.bench" not in text, file


def test_training_starts_without_the_study():
    """What is imported, not only what is written."""
    code = (
        "import sys; import lib.store, lib.monitor; print([m for m in sys.modules if 'study' in m])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=paths.ROOT
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_two_trainings_in_threads_do_not_see_each_other():
    from concurrent.futures import ThreadPoolExecutor

    others = {
        "dropout": replace(RUN, dropout=0.5, al2=True, speed=100.0, epochs=4),
        "sparsity": replace(
            RUN,
            network="convnet_s",
            corruption=0.0,
            sparsity=("conv3", "fc1"),
            decorrelation=("conv1",),
            epochs=4,
        ),
    }
    alone = {name: trainer.fit([run]) for name, run in others.items()}
    state = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            futures = {name: pool.submit(trainer.fit, [run]) for name, run in others.items()}
            for name, future in futures.items():
                assert future.result().equals(alone[name]), name
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was used"
    assert torch.get_num_threads() == threads


def test_this_file_can_be_imported_by_other_processes():
    assert Path(sys.modules[Shrink.__module__].__file__).parent in map(Path, sys.path)
