"""A penalty from outside: registered here, then trained, resumed and stored like the papers'."""

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from made import code_cells
from torch import nn

from lib import bundle, losses, paths, plots, run_dir, store, trainer
from lib.run import Run
from lib.study import claims, drawing, tables
from lib.study.experiments import label_randomization

SMALL = dict(dataset="digits", image_size=16, n_train=96, test_images=40, batch_size=32)
RUN = Run(**SMALL, epochs=3, learning_rate=0.1)


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


class Distance(Shrink):
    """From where the training began."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__(model, layer)
        self.start = self.weight.detach().clone()

    def penalty(self) -> torch.Tensor:
        return (self.weight - self.start).square().mean() + self.weight.sum() * 0


TOY = {"name": "shrink", "weight": 5.0, "layer": "head.fc1"}
PENALISED = replace(RUN, penalties=[TOY])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(losses.PENALTIES, "shrink", Shrink)


def folder_of(run):
    return paths.results_dir() / "own" / run.dataset / run.name


def test_it_trains_and_is_stored_by_its_name_and_read_where_nobody_registered_it(monkeypatch):
    store.ensure([RUN, PENALISED])
    frame = store.load([PENALISED])
    assert frame.shrinkage.gt(0).all() and frame.shrinkage.is_monotonic_decreasing
    assert set(frame.regulariser) == {"shrink"}
    assert set(frame.penalties) == {"shrink(layer=head.fc1, weight=5.0)"}
    assert "shrinkage" not in store.load([RUN])
    assert "-shrink-" in PENALISED.name and PENALISED.id != RUN.id
    monkeypatch.delitem(losses.PENALTIES, "shrink")
    assert store.load([PENALISED]).equals(frame)
    store.ensure([PENALISED])  # nothing is missing


def test_its_gradient_is_that_of_the_weighted_penalty():
    """One step of SGD against the same step by hand."""
    one = replace(PENALISED, epochs=1, n_train=32, momentum=0.0, keep_weights=True)
    data = bundle.prepare(one)
    model = trainer.build_network(one, *data.shape)
    logits = model(data.train.images)
    loss = nn.functional.cross_entropy(logits, data.train.labels)
    (loss + 5.0 * model.head.fc1.weight.square().mean()).backward()
    store.ensure([one])
    stored = torch.load(folder_of(one) / "weights.pt", weights_only=True)
    for name, value in model.named_parameters():
        expected = value.detach() - one.learning_rate * value.grad
        torch.testing.assert_close(stored[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_know_it_too():
    runs = [PENALISED, replace(PENALISED, seed=1)]
    store.ensure(runs, profile="two", jobs=2)
    together, alone = store.load(runs), trainer.fit(runs)
    for name in ("shrinkage", "cross_entropy", "test_accuracy"):
        # stored metrics have six digits
        assert list(together[name]) == pytest.approx(list(alone[name]), rel=1e-5)


@pytest.mark.parametrize("kind", [Shrink, Distance])
def test_a_killed_run_goes_on_with_it_and_it_sees_the_initial_weights(kind, monkeypatch):
    monkeypatch.setitem(losses.PENALTIES, "shrink", kind)
    folder = folder_of(PENALISED)
    with contextlib.suppress(trainer.OutOfTime):
        trainer.fit([PENALISED], [folder], deadline=0.0)
    assert (folder / "checkpoint.pt").exists() and not run_dir.is_finished(folder)
    resumed = trainer.fit([PENALISED], [folder])
    assert list(resumed.shrinkage) == list(trainer.fit([PENALISED]).shrinkage)


def test_it_joins_the_papers_own():
    both = replace(PENALISED, al2=True, sparsity=("head.fc1",), decorrelation=("trunk.conv1",))
    names = ["activation_l2", "lambda", "sparsity_penalty", "decorrelation_penalty", "shrinkage"]
    assert [name for name in trainer.fit([both]) if name in names] == names
    assert both.regulariser == "al2+sparsity+decorrelation+shrink"
    terms = ["activation_l2", "sparsity", "decorrelation", "shrink"]
    assert [term.name for term in both.terms()] == terms


def test_the_papers_own_can_be_added_by_name_and_train_alike():
    added = replace(RUN, penalties=[{"name": "sparsity", "layers": {"trunk.conv2": 0.01}}])
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
    ("penalties", "error", "message"),
    [
        ("shrink", TypeError, "list of mappings"),
        ([{"weight": 1.0}], TypeError, "mappings with a name"),
        ([{"name": "two words"}], ValueError, "has to be a word"),
        ([TOY | {"weight": -1.0}], ValueError, "weight is -1.0"),
        ([TOY | {"weight": "1e-4"}], TypeError, "write 1.0e-4"),
        ([TOY | {"factor": float("nan")}], TypeError, "penalties holds"),
    ],
)
def test_a_penalty_that_cannot_be_one_is_refused(penalties, error, message):
    with pytest.raises(error, match=message):
        replace(RUN, penalties=penalties)


KNOWN = "losses.PENALTIES has activation_l2, sparsity, decorrelation, shrink"
TAKEN = ("network", "diverged", "ablation_auc")
NO_WORDS = ("entropy conv1", "")
OWN = {"name": "activation_l2", "layer": "trunk.conv1"}


@pytest.mark.parametrize(
    ("penalties", "different", "message"),
    [
        ([{"name": "shrunk"}], {}, KNOWN),
        ([TOY | {"layer": "fc7"}], {}, "no layer 'fc7'"),
        ([TOY | {"layers": {}}], {}, "'shrink' cannot be made of"),
        ([{"name": "sparsity", "layers": ["head.fc1"]}], {}, "'sparsity' cannot be made of"),
        ([OWN], {}, "metric 'activation_l2', which is taken"),
        ([TOY, TOY | {"layer": "head.fc2"}], {}, "metric 'shrinkage', which is taken"),
        *(([TOY], {"metric": n}, f"calls its metric '{n}', which is taken") for n in TAKEN),
        *(([TOY], {"metric": n}, f"its metric '{n}'; it has to be a word") for n in NO_WORDS),
        ([TOY], {"penalty": lambda p: 0}, "'shrink' gives a int"),
        ([TOY], {"penalty": lambda p: p.weight.square()}, r"gives a tensor of shape \(500, 50\)"),
        ([TOY], {"penalty": lambda p: p.weight.detach().mean()}, "'shrink' .* without grad"),
        ([TOY], {"penalty": lambda p: p.weight.mean() / 0}, "gives -?inf for a new network"),
    ],
)
def test_a_penalty_that_cannot_be_trained_with_is_refused_before_anything_trains(
    penalties, different, message, monkeypatch
):
    monkeypatch.setitem(losses.PENALTIES, "shrink", type("Odd", (Shrink,), different))
    run = replace(RUN, penalties=penalties)
    for train in (store.ensure, trainer.fit):
        with pytest.raises(ValueError, match=message):
            train([RUN, run, replace(RUN, seed=1)])
        assert not paths.results_dir().exists() or store.available([RUN]) == []


@pytest.mark.parametrize("name", ["metric", "penalty", "remove"])
def test_a_class_that_lacks_something_is_refused(name, monkeypatch):
    monkeypatch.delattr(Shrink, name)
    with pytest.raises(ValueError, match=f"'shrink' has no `{name}`"):
        store.ensure([PENALISED])


def test_a_class_that_other_processes_cannot_import_needs_one_process(monkeypatch):
    monkeypatch.setitem(losses.PENALTIES, "shrink", type("Local", (Shrink,), {}))
    runs = [PENALISED, replace(PENALISED, seed=1)]
    with pytest.raises(ValueError, match="train with jobs=1"):
        store.ensure(runs, jobs=2)
    store.ensure(runs[:1])


def test_every_column_of_the_metrics_is_a_name_that_no_penalty_can_take():
    """So that the list of these names cannot fall behind the trainer's."""
    frame = trainer.fit([replace(RUN, al2=True, n_validation=20, epochs=1)])
    assert {name for name in frame if " " not in name} <= bundle.RESERVED_METRICS


def test_trying_a_penalty_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    bundle.prepare(replace(PENALISED, dropout=0.5))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_stands_in_table_1_beside_al2_and_no_claim_reads_it():
    runs = label_randomization(**SMALL, epochs=7, penalties=[TOY])
    assert len(runs) == 12
    store.ensure(runs[:3])  # bare: without, with AL2, with the toy
    frame = store.load(runs[:3])
    measured = tables.at_published_epochs(frame, ["test_accuracy"])
    assert list(measured.regulariser.unique()) == ["", "al2", "shrink"]
    printed = tables.as_printed(measured, "test_accuracy").loc["Bare", 700]
    assert len(printed.split(" / ")) == 3 and "not run" not in printed
    beside = tables.beside_published("al2_table1", frame)
    assert {"", "al2", "shrink"} == set(beside.regulariser[beside.measured.notna()])
    names = {"plt": plt, "plots": plots, "drawing": drawing, "tables": tables}
    notebook = code_cells("10_al2_label_randomization").values()
    exec(next(c for c in notebook if c.startswith("def training_curves(")), names)
    for fig in (names["training_curves"](frame), drawing.beside_paper(beside)):
        labels = [text.get_text() for text in fig.legends[0].get_texts()]
        told = [word for word in labels if word.startswith("with")]
        assert told == ["without AL2", "with AL2", "with shrink"]
    read = claims.runs_of("A1", {"label_randomization": frame})
    assert set(read.regulariser) == {"", "al2"}


# ---- the core by itself


def test_the_core_imports_nothing_from_the_study():
    files = [*paths.ROOT.glob("lib/*.py"), *paths.ROOT.glob("lib/data/*.py")]
    assert len(files) > 10
    upwards = re.compile(r"lib\.(study|bench)|from lib import .*\b(study|bench)\b")
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not upwards.search(text.replace("`lib.study", "")), file


@pytest.mark.slow
def test_two_trainings_in_threads_do_not_see_each_other():
    sparse = dict(sparsity=("conv3", "fc1"), decorrelation=("conv1",), corruption=0.0)
    runs = [
        replace(RUN, dropout=0.5, al2=True, speed=100.0, epochs=4),
        replace(RUN, network="convnet_s", **sparse, epochs=4),
    ]
    alone = [trainer.fit([run]) for run in runs]
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            found = pool.map(trainer.fit, [[run] for run in runs])
            assert all(one.equals(other) for one, other in zip(found, alone, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was used"
    assert torch.get_num_threads() == threads
