"""`make check`: a line each, OK or FAIL and what to do, and an exit code."""

import re
import sys
from collections import namedtuple

import pytest
import torch

from lib import data, machine, paths, trainer
from lib.data.sources import IDX_MD5
from lib.study import check


def states(lines):
    return {line.what: line.state for line in lines}


def test_all_is_well_here(capsys, monkeypatch, tmp_path):
    """Packages may be others than those pinned where the tests run."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert states(check.packages()).keys() >= {"requirements.lock"}
    monkeypatch.setattr(check, "CHECKS", tuple(c for c in check.CHECKS if c is not check.packages))
    assert check.main() == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "everything is OK"
    assert all(re.match(r"(OK  |info)  \S.*: .+", line) for line in lines)
    for what in ("Python", "processor", "device", "digits", "RESULTS_DIR", "code"):
        assert [line for line in lines if line[6:].startswith(f"{what}: ")], what


def test_what_fails_is_counted_and_gives_1_and_the_other_checks_go_on(capsys, monkeypatch):
    def lacking():
        raise ModuleNotFoundError("No module named 'torch'")
        yield

    bad = check.Line(check.FAIL, "x", "is wrong", "mend it")
    good = check.Line(check.OK, "y", "fine")
    monkeypatch.setattr(check, "CHECKS", (lambda: iter([bad, good]), lacking, lambda: iter([bad])))
    assert check.main() == 1
    *told, lacks, again, last = capsys.readouterr().out.splitlines()
    assert told == ["FAIL  x: is wrong → mend it", "OK    y: fine"] and again == told[0]
    assert lacks.startswith("FAIL  lacking: No module named 'torch' → ")
    assert last == "3 FAIL, see above"


def test_an_old_python_fails(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    (line,) = check.python()
    assert str(line) == "FAIL  Python: 3.10.4 → 3.11 or newer is needed: make PYTHON=python3.11 ..."


@pytest.fixture
def packages_of(tmp_path, monkeypatch):
    """What is said in a project with these pins and this lock; numpy is installed, no-such-thing is
    not.
    """
    monkeypatch.setattr(paths, "ROOT", tmp_path)

    def said(pins, lock):
        pinned = "".join(f"      - {pin}\n" for pin in pins)
        (tmp_path / "environment.yml").write_text(f"dependencies:\n  - python=3.11\n{pinned}")
        (tmp_path / "requirements.lock").write_text("\n".join(["# all", *lock]))
        return list(check.packages())

    return said


NUMPY = check.importlib.metadata.version("numpy")


def test_packages_are_compared_with_the_pins(packages_of):
    numpy, other, lock = packages_of(["numpy==0.0.1", "no-such-thing==1.0"], [])
    assert numpy.state == other.state == check.FAIL
    assert numpy.found == f"{NUMPY}, pinned is 0.0.1" and "make clean setup" in numpy.advice
    assert other.found == "not installed, pinned is 1.0" and lock.what == "requirements.lock"


def test_the_lock_is_compared_and_a_difference_is_no_failure(packages_of):
    own = [f"numpy=={NUMPY}"]
    found = states(packages_of(own, [*own, "no-such-thing==1.0"]))
    assert found == {"packages": check.OK, "requirements.lock": check.INFO}
    assert states(packages_of([], own))["requirements.lock"] == check.OK


def test_a_build_s_local_suffix_is_no_difference(monkeypatch):
    monkeypatch.setattr(check.importlib.metadata, "version", lambda name: "2.13.0+cu130")
    assert check.differing({"torch": "2.13.0"}) == {}
    assert check.differing({"torch": "2.12.0"}) == {"torch": "2.13.0+cu130"}


def test_the_committed_lock_holds_every_pin():
    pins = check.PIN.findall((paths.ROOT / "environment.yml").read_text())
    locked = check.LOCKED.findall((paths.ROOT / "requirements.lock").read_text())
    assert len(pins) > 20 and {*pins} <= {(name.lower(), version) for name, version in locked}


@pytest.mark.parametrize("quick, precision", [(1, "bfloat16"), (0, "float32"), (0, "bfloat16")])
def test_a_precision_that_is_slow_here_fails(monkeypatch, quick, precision):
    monkeypatch.setattr(machine, "has_bfloat16", lambda device: quick)
    monkeypatch.setenv("PRECISION", precision)
    state = check.OK if quick or precision == "float32" else check.FAIL
    assert states(check.device()) == {"processor": check.INFO, "device": state}


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DEVICE", "gpu", "'gpu'.*allowed"),
        ("DEVICE", "cuda", "PyTorch finds no GPU here"),
        ("PRECISION", "half", "'half'.*allowed"),
        ("PRECISION", "tf32", "not have"),
    ],
)
def test_a_wrong_setting_of_the_machine_fails(monkeypatch, variable, value, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(variable, value)
    line = list(check.device())[-1]
    assert line.state == check.FAIL and re.search(said, line.found)


def test_data_sets_that_are_here_are_read_and_the_others_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(data, "NAMES", ("digits", "mnist", "fashion_mnist"))
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for name in IDX_MD5["MNIST"]:
        (tmp_path / "MNIST" / "raw" / name).write_bytes(b"not the published bytes")
    lines = list(check.data_sets())
    assert states(lines) == {"digits": check.OK, "mnist": check.FAIL, "data sets": check.INFO}
    assert data.load("digits").sha256[:16] in lines[0].found
    assert "truncated" in lines[1].found and "\n" not in lines[1].found
    assert lines[2].found.endswith(": fashion_mnist")


def test_a_folder_that_cannot_be_written_and_a_full_disk_fail(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "file" / "results"))
    usage = namedtuple("usage", "free")(1e9)
    monkeypatch.setattr(check.shutil, "disk_usage", lambda folder: usage)
    results, cache = check.disk()
    assert results.state == cache.state == check.FAIL
    assert "cannot be written" in results.found and "RESULTS_DIR" in results.advice
    assert "1.0 GB free, 2 GB are needed" in cache.found and "CACHE_DIR" in cache.advice


def test_the_state_of_the_code_is_told(monkeypatch, tmp_path):
    found = {}
    for commit in ("unknown", "abc1234", "abc1234-dirty"):
        monkeypatch.setattr(trainer, "commit", lambda commit=commit: commit)
        (found[commit],) = check.code()
    assert states(found.values()) == {"code": check.INFO}
    assert found["abc1234"].state == check.OK and not found["abc1234"].advice
    assert "COMMIT" in found["unknown"].advice and "commit them" in found["abc1234-dirty"].advice
    monkeypatch.setattr(paths, "ROOT", tmp_path)  # without git, $COMMIT says it
    (line,) = check.code()
    assert line.state == check.OK and "abc1234-dirty" in line.found


def test_every_test_that_the_table_of_faults_names_is_there():
    folder = paths.ROOT / "tests"
    sources = "".join(file.read_text(encoding="utf-8") for file in folder.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (folder / "FAULTS.md").read_text(encoding="utf-8"))
    assert named and [name for name in named if f"def {name}(" not in sources] == []
