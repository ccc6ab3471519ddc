"""`make verify`: stored runs come out again, and wrong ones are noticed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from lib import paths, run_dir, trainer
from lib.run import Run
from lib.study import verify

RUN = Run("digits", image_size=16, n_train=1000, batch_size=32, test_images=200, al2=True)
RUN = dataclasses.replace(RUN, speed=6.24, learning_rate=0.005, momentum=0.9, epochs=30)
pytestmark = pytest.mark.slow  # each trains a network of 1,000 images
ONLY = ["--only", "bare + AL2", "--epochs", "3"]
COLUMNS = ["test_accuracy", "cross_entropy", "activation_l2", "lambda"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run's folder."""
    folder = tmp_path_factory.mktemp("stored") / RUN.name
    trainer.fit([RUN], [folder], device="cpu", precision="float32")
    return folder


@pytest.fixture
def stored(trained, tmp_path, monkeypatch):
    """A copy of it among the committed runs; a test may change it."""
    monkeypatch.setattr(paths, "EVIDENCE", (tmp_path / "lite",))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    return shutil.copytree(trained, tmp_path / "lite" / "digits" / RUN.name)


def replace_environment(folder, **values):
    said = run_dir.read_environment(folder) | values
    (folder / "env.json").write_text(json.dumps(said))


def test_first_epochs_are_those_of_the_whole_training(stored):
    """Schedule, order and the images tested are, though nothing else is measured."""
    again = verify.retrained(RUN, 3)
    old, _ = run_dir.read_metrics(stored)
    assert list(again["test_images"]) == list(old["test_images"][:3]) == [200] * 3
    np.testing.assert_allclose(again[COLUMNS], old[COLUMNS][:3], rtol=1e-5)


def test_a_run_shorter_than_what_is_asked_for_is_trained_whole(epochs_trained):
    short = dataclasses.replace(RUN, epochs=2)
    assert list(verify.retrained(short, 5)["epoch"]) == [1, 2] == epochs_trained


def test_what_agrees_is_ok_and_gives_0(stored, capsys):
    before = sorted(path.stat().st_mtime_ns for path in stored.iterdir())
    assert verify.main(ONLY) == 0
    *_, line, last = capsys.readouterr().out.splitlines()
    assert line.startswith("AL2 CNN, bare + AL2, digits, 3 epochs: ok, ")
    assert str(verify.SAME) in line and last == "1 of 1 agree"
    assert sorted(path.stat().st_mtime_ns for path in stored.iterdir()) == before


@pytest.mark.parametrize(
    "wrong",
    [{"al2": False}, {"learning_rate": 0.01}, {"seed": 1}, {"momentum": 0.8}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_curves_of_another_setting_differ(wrong, stored, capsys):
    other = trainer.fit([dataclasses.replace(RUN, **wrong)])
    other.drop(columns="id").to_csv(stored / "metrics.csv", index=False)
    assert verify.main(ONLY) == 1
    *_, line, last = capsys.readouterr().out.splitlines()
    assert ", digits, 3 epochs: DIFFERS, " in line and last == "0 of 1 agree"


def test_other_labels_differ_before_anything_is_trained(stored, capsys, epochs_trained):
    replace_environment(stored, labels="0" * 64)
    assert verify.main(ONLY) == 1
    assert "DIFFERS, trained on other labels" in capsys.readouterr().out and not epochs_trained


def test_a_loss_that_becomes_nan_differs(stored, capsys, monkeypatch):
    monkeypatch.setattr(verify, "retrained", lambda run, epochs: trainer.fit([RUN])[: epochs - 1])
    assert verify.main(ONLY) == 1
    assert "DIFFERS, 2 epochs without NaN, stored are 3" in capsys.readouterr().out


def test_another_precision_is_allowed_more(stored, capsys):
    replace_environment(stored, precision="bfloat16")
    assert verify.main([*ONLY, "--epochs", "1"]) == 0
    (line,) = [told for told in capsys.readouterr().out.splitlines() if ", digits, " in told]
    assert ", digits, 1 epoch: ok, " in line and str(verify.OTHER) in line


def test_how_far_another_seed_lies_is_told(stored, capsys):
    other = dataclasses.replace(RUN, seed=1)
    trainer.fit([other], [stored.parent / other.name])
    assert verify.main(ONLY) == 0
    assert "another seed: " in capsys.readouterr().out


def test_a_data_set_that_is_not_there_is_no_failure(stored, capsys):
    away = dataclasses.replace(RUN, dataset="mnist", al2=False)
    folder = stored.parent.parent / "mnist" / away.name
    trainer.fit([dataclasses.replace(away, dataset="digits")], [folder])
    config = {"id": away.id, "run": away.to_dict(), "measures": away.measured()}
    (folder / "config.json").write_text(json.dumps(config))
    assert verify.main(["--only", "AL2 CNN, bare"]) == 0
    out = capsys.readouterr().out
    told = f"AL2 CNN, bare: not run: mnist is not in {paths.data_dir()}: make data DATASET=mnist"
    assert told in out and "1 of 1 agree" in out


def test_nothing_to_train_is_an_error(stored):
    with pytest.raises(SystemExit, match="error: no stored run could be trained again"):
        verify.main(["--only", "LeNet"])


@pytest.mark.parametrize("words", [["--only", "GoogLeNet"], ["--epochs", "0"]])
def test_bad_arguments_are_said(words, capsys):
    with pytest.raises(SystemExit):
        verify.main(words)
    assert f"{words[0]} is " in capsys.readouterr().err


def test_every_kind_has_a_committed_run(monkeypatch):
    profiles = tuple(paths.ROOT / "results" / name for name in ("lite", "paper"))
    monkeypatch.setattr(paths, "EVIDENCE", profiles)
    found = verify.stored_runs()
    assert all(any(kind.holds(stored.run) for stored in found) for kind in verify.KINDS.values())
