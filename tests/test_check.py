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


def test_anything_that_fails_gives_1_and_is_counted(capsys, monkeypatch):
    bad = check.Line(check.FAIL, "x", "is wrong", "mend it")
    good = check.Line(check.OK, "y", "fine")
    failing = [bad, good]
    monkeypatch.setattr(check, "CHECKS", (lambda: iter(failing), lambda: iter(failing)))
    assert check.main() == 1
    told = ["FAIL  x: is wrong → mend it", "OK    y: fine"]
    assert capsys.readouterr().out.splitlines() == [*told, *told, "2 FAIL, see above"]


def test_a_check_that_lacks_a_package_says_so_and_the_others_go_on(capsys, monkeypatch):
    def lacking():
        raise ModuleNotFoundError("No module named 'torch'")
        yield

    monkeypatch.setattr(check, "CHECKS", (lacking, check.python))
    assert check.main() == 1
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("FAIL  lacking: No module named 'torch' → ")
    assert second.startswith("OK    Python: ")


def test_an_old_python_fails(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    (line,) = check.python()
    assert str(line) == "FAIL  Python: 3.10.4 → 3.11 or newer is needed: make PYTHON=python3.11 ..."


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with these pins and this lock; numpy is installed, no-such-thing is not."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    numpy = check.importlib.metadata.version("numpy")

    def write(pins, lock):
        pinned = "".join(f"      - {pin}\n" for pin in pins)
        (tmp_path / "environment.yml").write_text(f"dependencies:\n  - python=3.11\n{pinned}")
        (tmp_path / "requirements.lock").write_text("# all\n" + "".join(f"{x}\n" for x in lock))
        return list(check.packages())

    return write, numpy


def test_packages_are_compared_with_the_pins(project):
    write, numpy = project
    lines = write(["numpy==0.0.1", "no-such-thing==1.0", "pytest==" + pytest.__version__], [])
    assert states(lines)["numpy"] == states(lines)["no-such-thing"] == check.FAIL
    assert lines[0].found == f"{numpy}, pinned is 0.0.1" and "make clean setup" in lines[0].advice
    assert lines[1].found == "not installed, pinned is 1.0"
    assert len(lines) == 3  # no word of packages being as pinned


def test_the_lock_is_compared_and_a_difference_is_no_failure(project):
    write, numpy = project
    found = states(write([f"numpy=={numpy}"], [f"numpy=={numpy}", "no-such-thing==1.0"]))
    assert found == {"packages": check.OK, "requirements.lock": check.INFO}
    assert states(write([], [f"numpy=={numpy}"]))["requirements.lock"] == check.OK


def test_a_build_s_local_suffix_is_no_difference(monkeypatch):
    monkeypatch.setattr(check.importlib.metadata, "version", lambda name: "2.13.0+cu130")
    assert check.differing({"torch": "2.13.0"}) == {}
    assert check.differing({"torch": "2.12.0"}) == {"torch": "2.13.0+cu130"}


def test_the_committed_lock_holds_every_pin():
    pins = check.PIN.findall((paths.ROOT / "environment.yml").read_text())
    locked = check.LOCKED.findall((paths.ROOT / "requirements.lock").read_text())
    assert len(pins) > 20
    assert set(pins) <= {(name.lower(), version) for name, version in locked}


@pytest.mark.parametrize("quick, precision, state", [
    (True, "bfloat16", check.OK), (False, "float32", check.OK), (False, "bfloat16", check.FAIL),
])  # fmt: skip
def test_a_precision_that_is_slow_here_fails(monkeypatch, quick, precision, state):
    monkeypatch.setattr(machine, "has_bfloat16", lambda device: quick)
    monkeypatch.setenv("PRECISION", precision)
    assert states(check.device()) == {"processor": check.INFO, "device": state}


WRONG = [("DEVICE", "gpu", "'gpu'.*allowed"), ("PRECISION", "half", "'half'.*allowed")]
WRONG += [("DEVICE", "cuda", "PyTorch finds no GPU here"), ("PRECISION", "tf32", "not have")]


@pytest.mark.parametrize("variable, value, said", WRONG)
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
    assert "1.0 GB free" in cache.found and "2 GB are needed" in cache.advice


def test_the_state_of_the_code_is_told(monkeypatch):
    found = {}
    for commit in ("unknown", "abc1234", "abc1234-dirty"):
        monkeypatch.setattr(trainer, "commit", lambda commit=commit: commit)
        (found[commit],) = check.code()
    assert states(found.values()) == {"code": check.INFO}
    assert found["abc1234"].state == check.OK and not found["abc1234"].advice
    assert "COMMIT" in found["unknown"].advice and "commit them" in found["abc1234-dirty"].advice


def test_every_test_that_the_table_of_faults_names_is_there():
    folder = paths.ROOT / "tests"
    sources = "".join(file.read_text(encoding="utf-8") for file in folder.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (folder / "FAULTS.md").read_text(encoding="utf-8"))
    assert named and [name for name in named if f"def {name}(" not in sources] == []
