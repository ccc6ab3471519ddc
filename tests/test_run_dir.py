import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

from lib import paths, run_dir
from lib.run import Run
from lib.run_dir import RecordError

RUN = Run("digits", epochs=5, al2=True)
ENV = {"torch": "2", "seconds": 1.5}


def metrics(epochs: int = 5) -> pd.DataFrame:
    rows = np.arange(1, epochs + 1)
    frame = pd.DataFrame(
        {
            "epoch": rows,
            "test_accuracy": 100 / 3 * rows / 5,
            "test_images": 360,
            "cross_entropy": 2.3 / rows,
        }
    )
    return frame.assign(ablation_auc=[np.nan] * (epochs - 1) + [77.81] if epochs else [])


def arrays() -> dict[str, np.ndarray]:
    return {
        "ablation element/test": np.random.default_rng(0).random((7, 11), dtype=np.float32),
        "ablation epochs": np.arange(7),
    }


def state(run: Run = RUN) -> dict:
    parameter = torch.nn.Parameter(torch.arange(3.0))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.5)
    parameter.sum().backward()
    optimizer.step()
    saved = {
        "id": run.id,
        "measured": json.dumps(run.measured()),
        "optimizer": optimizer.state_dict(),
    }
    saved |= {"model": {"w": parameter.detach()}, "rows": [{"epoch": 1, "lambda": 0.01}]}
    return saved | {
        "arrays": {"ablation element/test": [torch.ones(11)]},
        "starts": {},
        "seconds": 2.5,
    }


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "quick" / "digits" / RUN.name


@pytest.fixture
def finished(folder):
    run_dir.begin(folder, RUN)
    run_dir.save_checkpoint(folder, state())
    run_dir.finish(folder, RUN, metrics(), arrays(), ENV)
    return folder


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- round trips


def test_what_is_finished_is_read_back(finished):
    assert run_dir.is_finished(finished)
    assert run_dir.read_run(finished) == RUN
    assert run_dir.read_run(finished).measured() == RUN.measured()
    read, diverged = run_dir.read_metrics(finished)
    assert diverged is None
    pd.testing.assert_frame_equal(read, metrics(), rtol=1e-5)
    assert {k: v.tolist() for k, v in run_dir.read_arrays(finished).items()} == {
        k: v.tolist() for k, v in arrays().items()
    }
    assert json.loads((finished / "env.json").read_text()) == ENV


def test_a_finished_folder_holds_the_documented_files_and_no_others(finished):
    assert names(finished) == {"config.json", "env.json", "metrics.csv", "measures.npz"}


def test_config_json_says_what_was_trained_and_measured_with_defaults(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config == {"id": RUN.id, "run": RUN.to_dict(), "measures": RUN.measured()}


def test_a_begun_folder_is_known_but_not_finished(folder):
    run_dir.begin(folder, RUN)
    assert not run_dir.is_finished(folder)
    assert run_dir.read_run(folder) == RUN


def test_a_diverged_run_has_its_metrics_to_the_last_finite_epoch(folder):
    run_dir.finish(folder, RUN, metrics(2), arrays(), ENV, diverged=3)
    read, diverged = run_dir.read_metrics(folder)
    assert (list(read.epoch), diverged) == ([1, 2], 3)
    assert json.loads((folder / "status.json").read_text()) == {"diverged": 3}


def test_a_run_that_diverged_in_its_first_epoch_has_no_rows(folder):
    run_dir.finish(folder, RUN, metrics(0), {}, ENV, diverged=1)
    read, diverged = run_dir.read_metrics(folder)
    assert (len(read), diverged) == (0, 1)


def test_a_run_trained_again_without_diverging_has_no_status_any_more(folder):
    run_dir.finish(folder, RUN, metrics(2), arrays(), ENV, diverged=3)
    run_dir.finish(folder, RUN, metrics(), arrays(), ENV)
    assert run_dir.read_metrics(folder)[1] is None
    assert "status.json" not in names(folder)


def test_weights_are_stored_on_request_only(finished):
    assert "weights.pt" not in names(finished)
    run_dir.finish(finished, RUN, metrics(), arrays(), ENV, weights={"w": torch.arange(3.0)})
    assert torch.load(finished / "weights.pt", weights_only=True)["w"].tolist() == [0, 1, 2]


# ---- whole or not at all


def test_metrics_csv_is_moved_into_place_last_and_then_the_checkpoint_goes(folder, monkeypatch):
    run_dir.begin(folder, RUN)
    run_dir.save_checkpoint(folder, state())
    moved, replace = [], os.replace

    def spy(part, target):
        assert (folder / "checkpoint.pt").exists()
        moved.append(target.name)
        replace(part, target)

    monkeypatch.setattr(paths.os, "replace", spy)
    run_dir.finish(folder, RUN, metrics(2), arrays(), ENV, diverged=3, weights={"w": torch.ones(1)})
    assert moved[-1] == "metrics.csv"
    assert set(moved[:-1]) == {
        "config.json",
        "env.json",
        "measures.npz",
        "status.json",
        "weights.pt",
    }
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "broken", ["config.json", "env.json", "measures.npz", "weights.pt", "metrics.csv"]
)
def test_a_failure_at_any_file_leaves_the_run_unfinished_resumable_and_without_rubbish(
    folder, monkeypatch, broken
):
    run_dir.begin(folder, RUN)
    run_dir.save_checkpoint(folder, state())
    replace = os.replace

    def full_disk(part, target):
        if target.name == broken:
            raise OSError(28, "No space left on device")
        replace(part, target)

    with monkeypatch.context() as patch:
        patch.setattr(paths.os, "replace", full_disk)
        with pytest.raises(OSError):
            run_dir.finish(folder, RUN, metrics(), arrays(), ENV, weights={"w": torch.ones(1)})
    assert not run_dir.is_finished(folder)
    assert run_dir.load_checkpoint(folder, RUN)["rows"] == state()["rows"]
    assert not [name for name in names(folder) if "part" in name]
    run_dir.finish(folder, RUN, metrics(), arrays(), ENV)
    assert run_dir.is_finished(folder)


@pytest.mark.parametrize("writer", ["np.savez_compressed", "pd.DataFrame.to_csv"])
def test_a_writer_that_stops_half_way_leaves_no_file(folder, monkeypatch, writer):
    def half(*args, **_):
        target = next(a for a in args if hasattr(a, "write") or hasattr(a, "write_bytes"))
        target.write(b"half") if hasattr(target, "write") else target.write_bytes(b"half")
        raise KeyboardInterrupt

    owner, name = (np, "savez_compressed") if writer.startswith("np") else (pd.DataFrame, "to_csv")
    monkeypatch.setattr(owner, name, half)
    with pytest.raises(KeyboardInterrupt):
        run_dir.finish(folder, RUN, metrics(), arrays(), ENV)
    assert not run_dir.is_finished(folder)
    assert names(folder) <= {"config.json", "env.json", "measures.npz"}


# ---- checkpoints


def test_a_checkpoint_is_read_back_as_it_was(folder):
    run_dir.begin(folder, RUN)
    run_dir.save_checkpoint(folder, state())
    read, written = run_dir.load_checkpoint(folder, RUN), state()
    assert torch.equal(read["model"].pop("w"), written["model"].pop("w"))
    assert torch.equal(read["arrays"]["ablation element/test"][0], torch.ones(11))
    momentum = read["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, torch.ones(3))
    assert read["optimizer"]["param_groups"] == written["optimizer"]["param_groups"]
    for key in ("id", "rows", "seconds"):
        assert read[key] == written[key]
    assert names(folder) == {"config.json", "checkpoint.pt"}


def test_no_checkpoint_is_none(folder):
    run_dir.begin(folder, RUN)
    assert run_dir.load_checkpoint(folder, RUN) is None


def test_a_checkpoint_that_measured_something_else_is_not_continued(folder):
    run_dir.begin(folder, RUN)
    run_dir.save_checkpoint(folder, state())
    assert (
        run_dir.load_checkpoint(
            folder, RUN.with_measures(Run("digits", ablations=("shared/test",)))
        )
        is None
    )


def test_a_checkpoint_of_another_run_is_refused_by_path(folder):
    run_dir.begin(folder, RUN)
    run_dir.save_checkpoint(folder, state(Run("mnist")))
    with pytest.raises(RecordError, match=rf"checkpoint\.pt.*{Run('mnist').id}.*{RUN.id}"):
        run_dir.load_checkpoint(folder, RUN)


# ---- damage: the message names the path and says what to do


def cut(path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def damage(path, kind: str) -> None:
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        cut(path)
    elif kind == "noise":
        path.write_bytes(bytes(range(256)) * 4)
    elif kind == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 0xFF
        path.write_bytes(bytes(content))


READERS = {
    "config.json": run_dir.read_run,
    "metrics.csv": run_dir.read_metrics,
    "measures.npz": run_dir.read_arrays,
}


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "noise"])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_an_error_that_names_its_folder_and_the_remedy(finished, name, kind):
    damage(finished / name, kind)
    with pytest.raises(RecordError) as error:
        READERS[name](finished)
    assert str(finished) in str(error.value)
    assert "Delete" in str(error.value)


def test_a_flipped_byte_in_the_arrays_is_noticed(finished):
    damage(finished / "measures.npz", "flipped")
    with pytest.raises(RecordError, match=r"measures\.npz"):
        run_dir.read_arrays(finished)


@pytest.mark.parametrize("kind", ["empty", "cut", "noise"])
def test_a_damaged_checkpoint_is_an_error_that_names_its_path_and_the_remedy(folder, kind):
    run_dir.begin(folder, RUN)
    run_dir.save_checkpoint(folder, state())
    damage(folder / "checkpoint.pt", kind)
    with pytest.raises(RecordError) as error:
        run_dir.load_checkpoint(folder, RUN)
    assert str(folder / "checkpoint.pt") in str(error.value)
    assert "Delete" in str(error.value)


@pytest.mark.parametrize("content", [[], {}, {"id": RUN.id}, {"model": {}}])
def test_a_checkpoint_without_its_marks_is_damaged(folder, content):
    run_dir.begin(folder, RUN)
    run_dir.save_checkpoint(folder, content)
    with pytest.raises(RecordError, match=r"checkpoint\.pt"):
        run_dir.load_checkpoint(folder, RUN)


CONFIG = {"id": RUN.id, "run": RUN.to_dict(), "measures": RUN.measured()}


@pytest.mark.parametrize(
    "config",
    [
        [],
        "text",
        None,
        {},
        {"id": RUN.id, "run": RUN.to_dict()},
        CONFIG | {"run": None},
        CONFIG | {"run": RUN.to_dict() | {"epoch": 5}},
        CONFIG | {"run": RUN.to_dict() | {"epochs": 0}},
        CONFIG | {"run": RUN.to_dict() | {"epochs": "five"}},
        CONFIG | {"measures": {"ablations": 5}},
        CONFIG | {"measures": {"ablations": ["no"]}},
    ],
)
def test_a_config_that_states_no_run_is_damaged(finished, config):
    (finished / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecordError) as error:
        run_dir.read_run(finished)
    assert str(finished / "config.json") in str(error.value)


def test_an_altered_setting_does_not_match_the_id(finished):
    (finished / "config.json").write_text(json.dumps(CONFIG | {"run": RUN.to_dict() | {"seed": 1}}))
    with pytest.raises(RecordError, match=Run("digits", epochs=5, al2=True, seed=1).id):
        run_dir.read_run(finished)


def test_an_altered_id_does_not_match_the_settings(finished):
    (finished / "config.json").write_text(json.dumps(CONFIG | {"id": "0123456789"}))
    with pytest.raises(RecordError, match=RUN.id):
        run_dir.read_run(finished)


def test_a_folder_under_another_run_s_name_is_refused(finished):
    moved = finished.rename(finished.with_name(Run("digits").name))
    with pytest.raises(RecordError, match=rf"{RUN.id}.*{Run('digits').id}"):
        run_dir.read_run(moved)


@pytest.mark.parametrize("epochs", [0, 4, 6])
def test_metrics_that_do_not_hold_every_epoch_are_refused(finished, epochs):
    metrics(epochs).to_csv(finished / "metrics.csv", index=False)
    with pytest.raises(RecordError, match=rf"metrics\.csv.* {epochs} epochs instead of 1 … 5"):
        run_dir.read_metrics(finished)


def test_metrics_in_another_order_or_without_epochs_are_refused(finished):
    metrics().iloc[::-1].to_csv(finished / "metrics.csv", index=False)
    with pytest.raises(RecordError, match=r"metrics\.csv"):
        run_dir.read_metrics(finished)
    metrics().drop(columns="epoch").to_csv(finished / "metrics.csv", index=False)
    with pytest.raises(RecordError, match="cannot be read"):
        run_dir.read_metrics(finished)


def test_metrics_cut_within_their_last_row_are_refused(finished):
    text = (finished / "metrics.csv").read_text()
    (finished / "metrics.csv").write_text(text[: text.rindex("\n5,") + 3])
    with pytest.raises(RecordError, match=r"metrics\.csv"):
        run_dir.read_metrics(finished)


@pytest.mark.parametrize(
    "status", ["", "[]", "3", "{}", '{"diverged": null}', '{"diverged": "soon"}']
)
def test_a_damaged_status_is_refused(finished, status):
    (finished / "status.json").write_text(status)
    with pytest.raises(RecordError) as error:
        run_dir.read_metrics(finished)
    assert str(finished) in str(error.value)


@pytest.mark.parametrize(("old", "new"), [(None, 3), (3, None), (3, 5)])
def test_a_run_replaced_by_one_that_ended_otherwise_is_whole_or_unfinished_at_every_moment(
    folder, monkeypatch, old, new
):
    run_dir.finish(folder, RUN, metrics(5 if old is None else old - 1), arrays(), ENV, old)
    seen, move = [], os.replace

    def watched(source, target):
        move(source, target)
        seen.append(run_dir.is_finished(folder))
        if seen[-1]:
            run_dir.read_metrics(folder)

    monkeypatch.setattr(os, "replace", watched)
    run_dir.finish(folder, RUN, metrics(5 if new is None else new - 1), arrays(), ENV, new)
    assert False in seen and seen[-1]
    assert run_dir.read_metrics(folder)[1] == new
