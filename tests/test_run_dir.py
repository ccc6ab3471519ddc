import errno
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lib import paths, run_dir
from lib.run import Run
from lib.run_dir import RecordError

RUN = Run("digits", epochs=5, al2=True)
ENV = {"torch": "2", "seconds": 1.5}
CONFIG = {"id": RUN.id, "run": RUN.to_dict(), "measures": RUN.measured()}


def metrics(epochs: int = 5) -> pd.DataFrame:
    rows = np.arange(1, epochs + 1)
    values = {"epoch": rows, "test_accuracy": 100 / 3 * rows / 5, "test_images": 360}
    frame = pd.DataFrame(values | {"cross_entropy": 2.3 / rows})
    return frame.assign(ablation_auc=[np.nan] * (epochs - 1) + [77.81] if epochs else [])


def arrays() -> dict[str, np.ndarray]:
    curves = np.random.default_rng(0).random((7, 11), dtype=np.float32)
    return {"ablation element/test": curves, "ablation epochs": np.arange(7)}


def state(run: Run = RUN) -> dict:
    parameter = torch.nn.Parameter(torch.arange(3.0))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.5)
    parameter.sum().backward()
    optimizer.step()
    found = {"id": run.id, "measured": json.dumps(run.measured()), "starts": {}, "seconds": 2.5}
    found |= {"optimizer": optimizer.state_dict(), "model": {"w": parameter.detach()}}
    rows = [{"epoch": 1, "lambda": 0.01}]
    return found | {"rows": rows, "arrays": {"ablation element/test": [torch.ones(11)]}}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "quick" / "digits" / RUN.name


@pytest.fixture
def under_way(folder):
    run_dir.begin(folder, RUN)
    run_dir.save_checkpoint(folder, state())
    return folder


@pytest.fixture
def finished(under_way):
    run_dir.finish(under_way, RUN, metrics(), arrays(), ENV)
    return under_way


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- round trips


def test_what_is_finished_is_read_back(finished):
    assert run_dir.is_finished(finished)
    assert names(finished) == {"config.json", "env.json", "metrics.csv", "measures.npz"}
    read = run_dir.read_run(finished)
    assert read == RUN and read.measured() == RUN.measured()
    table, diverged = run_dir.read_metrics(finished)
    assert diverged is None
    pd.testing.assert_frame_equal(table, metrics(), rtol=1e-5)
    np.testing.assert_equal(run_dir.read_arrays(finished), arrays())
    assert json.loads((finished / "env.json").read_text()) == ENV
    # what was trained and measured, with defaults
    assert json.loads((finished / "config.json").read_text()) == CONFIG


def test_a_begun_folder_is_known_but_not_finished(folder):
    run_dir.begin(folder, RUN)
    assert not run_dir.is_finished(folder)
    assert run_dir.read_run(folder) == RUN
    assert run_dir.load_checkpoint(folder, RUN) is None


@pytest.mark.parametrize("at", [1, 3])
def test_a_diverged_run_has_its_metrics_to_the_last_finite_epoch(folder, at):
    run_dir.finish(folder, RUN, metrics(at - 1), arrays(), ENV, diverged=at)
    read, diverged = run_dir.read_metrics(folder)
    assert (list(read.epoch), diverged) == (list(range(1, at)), at)
    assert json.loads((folder / "status.json").read_text()) == {"diverged": at}
    # trained again without diverging
    run_dir.finish(folder, RUN, metrics(), arrays(), ENV)
    assert run_dir.read_metrics(folder)[1] is None and "status.json" not in names(folder)


# ---- whole or not at all


def test_metrics_csv_is_moved_into_place_last_and_then_the_checkpoint_goes(under_way, monkeypatch):
    folder, moved, replace = under_way, [], os.replace

    def spy(part, target):
        assert (folder / "checkpoint.pt").exists()
        moved.append(target.name)
        replace(part, target)

    monkeypatch.setattr(paths.os, "replace", spy)
    run_dir.finish(folder, RUN, metrics(2), arrays(), ENV, diverged=3, weights={"w": torch.ones(1)})
    *before, last = moved
    assert last == "metrics.csv"
    assert set(before) == {"config.json", "env.json", "measures.npz", "status.json", "weights.pt"}
    assert not (folder / "checkpoint.pt").exists()


FILES = ["config.json", "env.json", "measures.npz", "weights.pt", "metrics.csv"]


@pytest.mark.parametrize("broken", FILES)
def test_a_failure_at_any_file_leaves_the_run_unfinished_resumable_and_without_rubbish(
    under_way, monkeypatch, broken
):
    folder, replace = under_way, os.replace

    def full_disk(part, target):
        if target.name == broken:
            raise OSError(28, "No space left on device")
        replace(part, target)

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(paths.os, "replace", full_disk)
        run_dir.finish(folder, RUN, metrics(), arrays(), ENV, weights={"w": torch.ones(1)})
    assert not run_dir.is_finished(folder)
    assert run_dir.load_checkpoint(folder, RUN)["rows"] == state()["rows"]
    assert not [name for name in names(folder) if "part" in name]
    run_dir.finish(folder, RUN, metrics(), arrays(), ENV)
    assert run_dir.is_finished(folder)


@pytest.mark.parametrize("writer", [(np, "savez_compressed"), (pd.DataFrame, "to_csv")])
def test_a_writer_that_stops_half_way_leaves_no_file(folder, monkeypatch, writer):
    def half(*args, **_):
        for target in args:
            if hasattr(target, "write"):
                target.write(b"half")
            elif isinstance(target, Path):
                target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(*writer, half)
    with pytest.raises(KeyboardInterrupt):
        run_dir.finish(folder, RUN, metrics(), arrays(), ENV)
    assert not run_dir.is_finished(folder)
    assert names(folder) <= {"config.json", "env.json", "measures.npz"}


# ---- checkpoints


def test_a_checkpoint_is_read_back_as_it_was(under_way):
    assert repr(run_dir.load_checkpoint(under_way, RUN)) == repr(state())  # few, round numbers
    assert names(under_way) == {"config.json", "checkpoint.pt"}


def test_a_checkpoint_of_other_measures_is_not_continued_and_one_of_another_run_refused(under_way):
    more = RUN.with_measures(Run("digits", ablations=("shared/test",)))
    assert run_dir.load_checkpoint(under_way, more) is None
    run_dir.save_checkpoint(under_way, state(Run("mnist")))
    with pytest.raises(RecordError, match=rf"checkpoint\.pt.*{Run('mnist').id}.*{RUN.id}"):
        run_dir.load_checkpoint(under_way, RUN)


# ---- damage: the message names the path and says what to do


DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "noise": lambda content: bytes(range(256)) * 4,
    "flipped": lambda content: content[:99] + bytes([content[99] ^ 0xFF]) + content[100:],
}
READERS = {
    "config.json": run_dir.read_run,
    "metrics.csv": run_dir.read_metrics,
    "measures.npz": run_dir.read_arrays,
    "checkpoint.pt": lambda folder: run_dir.load_checkpoint(folder, RUN),
}
DAMAGES = [(name, kind) for name in READERS for kind in ("missing", "empty", "cut", "noise")]
DAMAGES.remove(("checkpoint.pt", "missing"))


@pytest.mark.parametrize(("name", "kind"), [*DAMAGES, ("measures.npz", "flipped")])
def test_a_damaged_file_is_an_error_that_names_it_and_the_remedy(finished, name, kind):
    run_dir.save_checkpoint(finished, state())
    path = finished / name
    content = path.read_bytes()
    path.unlink()
    if kind != "missing":
        path.write_bytes(DAMAGE[kind](content))
    with pytest.raises(RecordError, match="Delete") as error:
        READERS[name](finished)
    assert str(path) in str(error.value)


def test_what_ails_the_machine_is_no_reason_to_delete_a_run(finished, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(RecordError, match=r"measures.npz cannot be read .*Too many") as error:
        run_dir.read_arrays(finished)
    assert "Delete" not in str(error.value)


@pytest.mark.parametrize("content", [[], {}, {"id": RUN.id}, {"model": {}}])
def test_a_checkpoint_without_its_marks_is_damaged(folder, content):
    run_dir.begin(folder, RUN)
    run_dir.save_checkpoint(folder, content)
    with pytest.raises(RecordError, match=r"checkpoint\.pt"):
        run_dir.load_checkpoint(folder, RUN)


@pytest.mark.parametrize(
    "config",
    [
        *([], "text", None, {}),
        {"id": RUN.id, "run": RUN.to_dict()},
        *(CONFIG | {"run": run} for run in (None, RUN.to_dict() | {"epoch": 5})),
        *(CONFIG | {"run": RUN.to_dict() | {"epochs": number}} for number in (0, "five")),
        *(CONFIG | {"measures": {"ablations": ablations}} for ablations in (5, ["no"])),
        # what does not fit the folder's name
        CONFIG | {"run": RUN.to_dict() | {"seed": 1}},
        CONFIG | {"id": "0123456789"},
    ],
)
def test_a_config_that_states_no_run_or_another_one_is_refused(finished, config):
    (finished / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecordError) as error:
        run_dir.read_run(finished)
    assert str(finished / "config.json") in str(error.value)


def test_a_folder_under_another_run_s_name_is_refused(finished):
    moved = finished.rename(finished.with_name(Run("digits").name))
    with pytest.raises(RecordError, match=rf"{RUN.id}.*{Run('digits').id}"):
        run_dir.read_run(moved)


UNFIT = {
    **{f"{n} rows": (metrics(n), f"it holds {n} epochs instead of 1 … 5") for n in (0, 4, 6)},
    "another order": (metrics().iloc[::-1], "it holds 5 epochs instead of 1 … 5"),
    "no epochs": (metrics().drop(columns="epoch"), "epoch"),
    "cut within a row": (metrics().assign(cross_entropy=[2.3, 2.3, 2.3, 2.3, None]), "empty cells"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_metrics_that_do_not_hold_every_epoch_in_order_are_refused(finished, case):
    table, message = UNFIT[case]
    table.to_csv(finished / "metrics.csv", index=False)
    with pytest.raises(RecordError, match=rf"metrics\.csv .*{message}"):
        run_dir.read_metrics(finished)


@pytest.mark.parametrize("status", ["", "[]", "3", "{}", '{"diverged": null}', '{"diverged": "a"}'])
def test_a_damaged_status_is_refused(finished, status):
    (finished / "status.json").write_text(status)
    with pytest.raises(RecordError, match=str(finished)):
        run_dir.read_metrics(finished)


@pytest.mark.parametrize(("old", "new"), [(None, 3), (3, None), (3, 5)])
def test_a_run_replaced_by_one_that_ended_otherwise_is_whole_or_unfinished_at_every_moment(
    folder, monkeypatch, old, new
):
    kept = {"weight": torch.ones(1)}
    run_dir.finish(folder, RUN, metrics(5 if old is None else old - 1), arrays(), ENV, old, kept)
    seen, move = [], os.replace

    def watched(source, target):
        move(source, target)
        seen.append(run_dir.is_finished(folder))
        if seen[-1]:
            run_dir.read_metrics(folder)

    monkeypatch.setattr(os, "replace", watched)
    run_dir.finish(folder, RUN, metrics(5 if new is None else new - 1), arrays(), ENV, new)
    assert False in seen and seen[-1] and not (folder / "weights.pt").exists()
    assert run_dir.read_metrics(folder)[1] == new
