"""Every command that the README or `make help` names works in a clone, called as a reader calls it.

A clone holds what is committed: changes that are not are not tested here. Python and its packages
are those of the tests; the clone's .venv points to them, so that nothing is installed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import IPython
import nbformat
import pytest

from lib import paths

pytestmark = pytest.mark.slow
MADE_OF = Path(sys.prefix)  # a virtual environment, or conda's
if not shutil.which("make") or not (paths.ROOT / ".git").exists():
    pytest.skip("make and the project's git history are needed", allow_module_level=True)
if not (MADE_OF / "bin" / "python").exists():
    pytest.skip(f"{MADE_OF} has no bin/python", allow_module_level=True)

#: Targets that make only expands (`make -n`): some would run this file again, others train for
#: minutes or hours, and the lab is a server that does not end by itself.
DRY = ("test", "test-lib", "test-slow", "test-notebooks", "lite", "paper", "lab")
#: What a command is given beside its own words, where it would take long.
SMALL = {
    "make data": ["DATASET=digits"],
    "make study": ["PROFILE=tiny"],
    "make campaign": ["PROFILE=tiny"],
    "make experiment": ["NAME=label_randomization", "PROFILE=tiny"],
    "make bench": ["OPTIONS=--tiny --rounds 1 --cores 1", "SECONDS=0.01", "OUT=.cache/bench"],
    "make notebooks": ["NOTEBOOKS=notebooks/80_speed.ipynb"],
    "python -m lib.study.campaign": ["--profile", "tiny"],
    "papermill": ["-y", "{dataset: digits, epochs: 7, image_size: 16, seeds: [0], n_train: 64}"],
}
#: Need data sets, which are not here: the error that they have to end with.
ERRORS = {
    "make precision": "error: mnist: .* is missing",
    "make verify": "error: no stored run could be trained again",
}
TINY = """all: {}
experiments:
  label_randomization:
    notebooks: [10_al2_label_randomization]
    entries: [{epochs: 7, image_size: 16, seeds: [0], n_train: 64}]
"""

EXAMPLE = r'make [a-z-]+(?: [A-Z]+=(?:"[^"]*"|[^\s:)]+))+'  # with words, in a line of `make help`


def commands() -> list[str]:
    """All `make …`, `python -m …` and `papermill …`, each once; `make clean` last."""
    text = (paths.ROOT / "README.md").read_text()
    fenced = r"^```(\w*)\n(.*?)^```"
    shell = [block for language, block in re.findall(fenced, text, re.M | re.S) if language == "sh"]
    found = [line.split("  #")[0].strip() for block in shell for line in block.splitlines()]
    found += re.findall(r"`([^`\n]+)`", re.sub(fenced, "", text, flags=re.M | re.S))
    # `make test` calls this
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    listed = subprocess.check_output(["make", "help"], cwd=paths.ROOT, text=True, env=own)
    for line in listed.splitlines():
        target, told = line.split(maxsplit=1)
        found += [f"make {target}", *re.findall(EXAMPLE, told)]
    found = [c for c in found if re.match(r"make [a-z]|python -m |(\S*/)?papermill ", c)]
    return sorted(dict.fromkeys(found), key=lambda command: command == "make clean")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with a profile of seconds, `tiny`."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    subprocess.run(["git", "clone", "--quiet", str(paths.ROOT), str(folder)], check=True)
    (folder / "notebooks" / "params" / "tiny.yaml").write_text(TINY)
    (folder / "data").mkdir()
    return folder


def call(folder, words, **more):
    """Run a command in the clone, in an environment without this process's settings."""
    venv = folder / ".venv"
    if not venv.exists():
        venv.mkdir()
        for entry in MADE_OF.iterdir():
            if entry.name != ".ready":
                (venv / entry.name).symlink_to(entry)
        (venv / ".ready").touch()  # newer than environment.yml: set up
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"PYTHONPATH": str(folder), "DEVICE": "cpu", "OMP_NUM_THREADS": "1"} | more
    environment["PATH"] = f"{venv / 'bin'}:{environment['PATH']}"  # for `python -m …`, as in conda
    where = {"cwd": folder, "env": environment}
    return subprocess.run(words, **where, timeout=600, capture_output=True, text=True)


def git(folder, *words):
    name = ["-c", "user.name=A Reader", "-c", "user.email=reader@example.org"]
    return subprocess.check_output(["git", *name, *words], cwd=folder, text=True)


def as_run(command: str) -> tuple[list[str], str]:
    """A command's words as this test calls it, and by which name the tables above know it."""
    words = [word for word in shlex.split(command) if "…" not in word]
    name = " ".join(words[: 2 if words[0] == "make" else 3])
    name = "papermill" if "papermill" in words[0] else name
    if name.removeprefix("make ") in DRY:
        return [*words, "-n"], name
    return words + SMALL.get(name, []), name


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_works_in_a_clone(command, clone):
    words, name = as_run(command)
    done = call(clone, words)
    said = f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr and bool(done.returncode) == (name in ERRORS), said
    assert re.search(ERRORS.get(name, ""), done.stderr), said


def test_the_commands_are_found_and_the_tables_name_no_other():
    found = {as_run(command)[1] for command in commands()}
    assert {"make study", "make data", "make report", "make check", "make help"} <= found
    assert {*SMALL, *ERRORS, *(f"make {name}" for name in DRY)} <= found


def test_a_report_of_what_is_committed_changes_nothing_whichever_data_sets_are_here(
    clone, tmp_path
):
    git(clone, "checkout", "--quiet", ".")
    (clone / "results" / "report" / "report.md").unlink()
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_text("")
    done = call(clone, ["make", "report"], DATA_DIR=str(tmp_path))
    assert done.returncode == 0 and (clone / "results" / "report" / "report.md").exists()
    assert git(clone, "status", "--porcelain", "--untracked-files=no") == ""


@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_device_that_is_not_there_is_an_error_of_one_line(device, clone):
    words = ["make", "study", "PROFILE=quick", f"DEVICE={device}"]
    done = call(clone, words, CUDA_VISIBLE_DEVICES="")
    own = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode and len(own) == 1 and own[0].startswith("error: the device is "), done


def test_clean_leaves_runs_of_one_s_own(clone):
    for name in ("own", "quick"):
        (clone / "results" / name / "digits").mkdir(parents=True, exist_ok=True)
    assert call(clone, ["make", "clean"]).returncode == 0
    assert (clone / "results" / "own" / "digits").is_dir() and (clone / "data").is_dir()
    assert not (clone / "results" / "quick").exists() and not (clone / ".venv").exists()


def test_lab_takes_options_and_runs_as_root_and_finds_programs(clone):
    done = call(clone, ["make", "-n", "lab", "LAB=--no-browser --port 8889"])
    root = "--allow-root" if os.geteuid() == 0 else ""
    assert f"jupyter lab {root} --no-browser --port 8889 notebooks" in done.stdout
    assert f'PATH="{clone / ".venv" / "bin"}:' in done.stdout


def test_notebook_20_shows_tensorboard_wherever_jupyter_runs(monkeypatch, tmp_path):
    """Its own program, and all pictures; what the magic then starts would outlive the test."""
    path = paths.ROOT / "notebooks" / "20_sparsity_monitor.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    (source,) = [cell.source for cell in cells if '"tensorboard", options' in cell.source]
    called = {}
    shell = types.SimpleNamespace(run_line_magic=called.__setitem__)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    values = {"os": os, "interactive": True, "log_dir": tmp_path}
    monkeypatch.setenv("TENSORBOARD_BINARY", "")  # put back after the test
    del os.environ["TENSORBOARD_BINARY"]
    exec(source[source.index("if interactive:") :], values)
    assert called["load_ext"] == "tensorboard"
    assert called["tensorboard"] == f"--logdir '{tmp_path}' --samples_per_plugin images=1000"
    assert Path(os.environ["TENSORBOARD_BINARY"]).is_file()


def test_git_ignores_no_module_of_lib():
    ignored = git(paths.ROOT, "ls-files", "--others", "--ignored", "--exclude-standard", "lib")
    assert [name for name in ignored.splitlines() if name.endswith(".py")] == []
    for name in ("lib/data/new.py", "lib/results/new.py", "lib/study/new.py"):
        check = subprocess.run(["git", "check-ignore", "--quiet", name], cwd=paths.ROOT)
        assert check.returncode == 1, f"git would ignore {name}"


def test_ruff_sees_every_module_of_lib():
    words = [sys.executable, "-m", "ruff", "check", "--show-files", "lib"]
    seen = subprocess.check_output(words, cwd=paths.ROOT, text=True).splitlines()
    assert {*(paths.ROOT / "lib").rglob("*.py")} <= set(map(Path, seen))
