"""`make check`, or `python -m lib.study.check`: is all here that is needed?

A line each: OK, FAIL and what to do, or `info` where something can only be told, such as which data
sets are not here. The exit code is 1 if anything fails.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lib import paths

OK, FAIL, INFO = "OK", "FAIL", "info"
OLDEST_PYTHON = (3, 11)
NEEDED_GB = 2.0  # runs, caches and temporary files of the quick profile, with room to spare
PIN = re.compile(r"^ *- ([A-Za-z0-9_.-]+)==(\S+)$", re.MULTILINE)  # in environment.yml
LOCKED = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)$", re.MULTILINE)
REINSTALL = "`make clean setup`, or with conda `conda env update -f environment.yml`"


class Line(NamedTuple):
    """One thing that was looked at."""

    state: str  # OK, FAIL or INFO
    what: str
    found: str
    advice: str = ""  # what to do, where it fails

    def __str__(self) -> str:
        text = f"{self.state:<4}  {self.what}: {self.found}"
        return f"{text} → {self.advice}" if self.advice else text


def python() -> Iterator[Line]:
    """Its version."""
    version = ".".join(map(str, sys.version_info[:3]))
    oldest = ".".join(map(str, OLDEST_PYTHON))
    advice = f"{oldest} or newer is needed: make PYTHON=python{oldest} ..."
    old = sys.version_info < OLDEST_PYTHON
    yield Line(FAIL, "Python", version, advice) if old else Line(OK, "Python", version)


def packages() -> Iterator[Line]:
    """Those installed against the pins of `environment.yml`, and what came with them, which may
    differ on other systems and Pythons: that is told and is no failure.
    """
    pins = dict(PIN.findall((paths.ROOT / "environment.yml").read_text(encoding="utf-8")))
    wrong = differing(pins)
    for name, found in wrong.items():
        yield Line(FAIL, name, f"{found}, pinned is {pins[name]}", REINSTALL)
    if not wrong:
        yield Line(OK, "packages", f"all {len(pins)} as pinned in environment.yml")
    locked = dict(LOCKED.findall((paths.ROOT / "requirements.lock").read_text(encoding="utf-8")))
    others = differing({name: v for name, v in locked.items() if name.lower() not in pins})
    if others:
        shown = [f"{name} {found} ({locked[name]})" for name, found in list(others.items())[:5]]
        more = " …" if len(others) > 5 else ""
        told = f"{len(others)} of {len(locked)} are not as in it: {', '.join(shown)}{more}"
        yield Line(INFO, "requirements.lock", told)
    else:
        yield Line(OK, "requirements.lock", f"all {len(locked)} packages are as in it")


def differing(versions: dict[str, str]) -> dict[str, str]:
    """By name, what is installed instead; a build's local suffix, as in 2.13.0+cpu, is none."""
    found = {}
    for name, version in versions.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        if installed.split("+")[0] != version:
            found[name] = installed
    return found


def device() -> Iterator[Line]:
    """Processor or GPU, and the precision that is fast on it."""
    import torch

    from lib import machine, trainer

    sets = ", ".join(machine.instruction_sets()) or "none of those that are looked for"
    found = f"{machine.processor()}, {machine.cores()} cores, instruction sets: {sets}"
    yield Line(INFO, "processor", found)
    try:
        chosen = torch.device(trainer.default_device())
        precision = trainer.default_precision()
        trainer.check_precision(precision, chosen)
    except ValueError as error:
        yield Line(FAIL, "device", str(error))
        return
    name = trainer.device_name(chosen) if chosen.type == "cuda" else "the processor"
    quick = machine.has_bfloat16(chosen)
    speed = "bfloat16 is faster than float32" if quick else "float32 is fast, bfloat16 is slow"
    found = f"{name}; {speed}; PRECISION is {precision}"
    if precision == "bfloat16" and not quick:
        yield Line(FAIL, "device", found, "leave PRECISION unset")
    else:
        yield Line(OK, "device", found)


def data_sets() -> Iterator[Line]:
    """Those in `DATA_DIR`, each read whole and checked; naming what is not here is no failure."""
    from lib import data
    from lib.data.sources import DataError, DataNotFoundError

    absent = []
    for name in data.NAMES:
        try:
            found = data.load(name)
        except DataNotFoundError:
            absent.append(name)
        except DataError as error:
            yield Line(FAIL, name, " ".join(str(error).split()))
        else:
            size = f"{len(found.train):,} training and {len(found.test):,} test images"
            yield Line(OK, name, f"{size}, sha256 {found.sha256[:16]}…")
    if absent:
        advice = "`make data DATASET=…` downloads; the quick profile needs none of them"
        yield Line(INFO, "data sets", f"not in {paths.data_dir()}: {', '.join(absent)}", advice)


def disk() -> Iterator[Line]:
    """Whether results and caches can be written, and the room there."""
    folders = {"RESULTS_DIR": paths.results_dir(), "CACHE_DIR": paths.cache_dir()}
    for variable, folder in folders.items():
        advice = f"free some, or set {variable} to another folder"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"room?")
            free = shutil.disk_usage(folder).free / 1e9
        except OSError as error:
            yield Line(FAIL, variable, f"{folder} cannot be written ({error.strerror})", advice)
            continue
        if free < NEEDED_GB:
            found = f"{folder}, {free:.1f} GB free, {NEEDED_GB:g} GB are needed"
            yield Line(FAIL, variable, found, advice)
        else:
            yield Line(OK, variable, f"{folder} can be written, {free:.0f} GB free")


def code() -> Iterator[Line]:
    """The commit that runs would record, and whether files differ from it."""
    from lib import trainer

    commit = trainer.commit()
    if commit == "unknown":
        advice = "runs will not say by which code; set COMMIT, or write it into a file COMMIT here"
        yield Line(INFO, "code", "no git here, commit unknown", advice)
        return
    if not (commit.endswith("-dirty") and (paths.ROOT / ".git").exists()):
        yield Line(OK, "code", f"commit {commit}")
        return
    command = ["git", "diff", "--name-only", "HEAD"]
    git = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    names = git.stdout.splitlines()
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    advice = "commit them before training what is to be kept: runs record the commit"
    yield Line(INFO, "code", f"commit {commit}, {len(names)} files changed since: {shown}", advice)


CHECKS: tuple[Callable[[], Iterator[Line]], ...] = (python, packages, device, data_sets, disk, code)


def main() -> int:
    """Print every line; 1 if anything fails, else 0."""
    failed = 0
    for check in CHECKS:
        try:
            for line in check():
                print(line, flush=True)
                failed += line.state == FAIL
        except ImportError as error:  # a package is missing: said above, by name
            failed += 1
            print(Line(FAIL, check.__name__, f"{error}", "install the packages first: make setup"))
    print(f"{failed} FAIL, see above" if failed else "everything is OK")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
