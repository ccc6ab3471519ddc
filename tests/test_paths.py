import threading
from pathlib import Path

import pytest

from lib import paths

FOLDERS = {"DATA_DIR": paths.data_dir, "CACHE_DIR": paths.cache_dir}
FOLDERS |= {"RESULTS_DIR": paths.results_dir}


@pytest.mark.parametrize("variable", FOLDERS)
def test_each_variable_moves_its_own_folder_at_each_call_and_the_project_s_is_the_default(
    variable, monkeypatch, tmp_path
):
    def folders():
        return {name: folder() for name, folder in FOLDERS.items()}

    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)
    default = folders()
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert folders() == default | {variable: tmp_path / "elsewhere"}
    monkeypatch.setenv(variable, "")
    monkeypatch.chdir(tmp_path)
    assert folders() == default
    assert default[variable].parent == Path(__file__).resolve().parent.parent


def test_a_home_folder_is_expanded_and_a_relative_one_is_the_project_s(monkeypatch, tmp_path):
    """A kernel works in notebooks/, make in the project's folder: both mean the same one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA_DIR", "~/sets")
    assert paths.data_dir() == tmp_path / "sets"
    monkeypatch.setenv("DATA_DIR", "../sets")
    monkeypatch.chdir(tmp_path)
    assert paths.data_dir() == paths.ROOT / ".." / "sets"


def test_published_numbers_lie_in_the_project_whatever_results_dir_says(monkeypatch, tmp_path):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    assert (paths.PUBLISHED / "al2_table1.csv").is_file()


@pytest.fixture
def target(tmp_path):
    (tmp_path / "metrics.csv").write_text("old")
    return tmp_path / "metrics.csv"


def test_replacing_shows_the_old_file_until_the_block_ends_and_the_new_one_after(target):
    with paths.replacing(target) as part:
        part.write_text("new")
        assert target.read_text() == "old"
        assert part.parent == target.parent  # a rename over two file systems would not be atomic
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_replacing_leaves_the_old_file_and_nothing_else_after_a_failure(target, error, monkeypatch):
    def fails(*_):
        raise error

    if error is OSError:  # of the move itself
        monkeypatch.setattr(paths.os, "replace", fails)
    with pytest.raises(error), paths.replacing(target) as part:
        part.write_text("half")
        if error is not OSError:
            fails()
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_two_writers_of_one_file_do_not_share_a_part(target):
    def write() -> None:
        with paths.replacing(target) as part:
            part.write_text("second")

    with paths.replacing(target) as part:
        part.write_text("first")
        other = threading.Thread(target=write)
        other.start()
        other.join()
        assert target.read_text() == "second" and part.read_text() == "first"
    assert target.read_text() == "first"
