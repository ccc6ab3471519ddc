"""Work through a profile: train every run that its notebooks state, then render the notebooks from
the stored runs.

    python -m lib.study.campaign --profile quick          # `make study`
    python -m lib.study.campaign --profile lite --list    # what there is to do
    python -m lib.study.campaign --profile lite --train-only --only mnist
    python -m lib.study.campaign --profile paper --budget 540     # `make campaign`: train for nine
    minutes, go on another time python -m lib.study.campaign --profile paper --export DIR     #
    carry runs from one machine to another: see `lib.study.transfer` python -m lib.study.campaign
        --profile paper --import DIR

A profile is `notebooks/params/<profile>.yaml`: under `all`, values for every notebook that has such
    a parameter; under "1", "2"
or "3", for the notebooks whose names begin so (the AL2 paper's, the targeted-sparsity paper's, our
own); under `notebooks`, one entry for each time a notebook is executed. A notebook's parameters but
`profile`, `jobs` and `interactive` are the arguments of the function that states its runs
(`PLANS`), so that the notebook and this module cannot disagree.
"""

import argparse
import ast
import json
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import yaml

from lib import paths, run_dir, store
from lib.data.sources import DataError, DataNotFoundError
from lib.run import Run
from lib.study import budget, experiments, transfer

PLANS: dict[str, Callable[..., list[Run]]] = {
    "10_al2_label_randomization": experiments.label_randomization,
    "11_al2_ablation": experiments.label_randomization,
    "12_al2_cca": experiments.representations,
    "13_al2_schedules": experiments.schedules,
    "14_al2_relabel": experiments.relabelling,
    "15_al2_options": experiments.sensitivity,
    "16_al2_norm_scale": experiments.norm_scales,
    "20_sparsity_monitor": experiments.sparsity_networks,
    "21_sparsity_networks": experiments.sparsity_networks,
    "22_sparsity_lenet_alexnet": experiments.lenet_alexnet,
    "23_penalty_readings": experiments.penalty_readings,
    "30_across": experiments.combined,
}
NOT_OF_THE_RUNS = {"profile", "jobs", "interactive"}


@dataclass(frozen=True)
class Entry:
    """One execution of one notebook."""

    notebook: str
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """Notebook and what sets this execution apart: the stem of the rendered notebook."""
        marks = [
            str(self.parameters[k])
            for k in ("dataset", "size", "optimizer", "corruption")
            if k in self.parameters
        ]
        return "-".join([self.notebook, *marks])

    def runs(self) -> list[Run]:
        """The runs that the notebook states with these parameters; none for a notebook that only
        reads.
        """
        if self.notebook not in PLANS:
            return []
        values = notebook_parameters(self.notebook) | self.parameters
        return PLANS[self.notebook](**{k: v for k, v in values.items() if k not in NOT_OF_THE_RUNS})

    def is_done(self) -> bool:
        """Whether its runs are finished; those that can never be trained
        (`store.is_without_labels`) are not waited for.
        """
        there = {run.id for run in store.available(self.runs())}
        return all(run.id in there or store.is_without_labels(run) for run in self.runs())

    def metrics(self) -> list[Path]:
        """The metrics of those of its runs that are finished."""
        return [store.find(r) / "metrics.csv" for r in store.available(self.runs())]


@lru_cache
def notebook_parameters(notebook: str) -> dict[str, Any]:
    """The defaults in a notebook's parameters cell, by name.

    Raises:
        ValueError: for an unknown notebook; the message lists those there are.
    """
    folder = paths.ROOT / "notebooks"
    if not (folder / f"{notebook}.ipynb").exists():
        known = ", ".join(sorted(f.stem for f in folder.glob("*.ipynb")))
        raise ValueError(f"there is no notebook {notebook!r}; there are {known}")
    cells = json.loads((folder / f"{notebook}.ipynb").read_text())["cells"]
    tagged = (cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    lines = ast.parse("".join(next(tagged, []))).body
    return {line.target.id: ast.literal_eval(line.value) for line in lines}


def plan(profile: str) -> list[Entry]:
    """Every notebook execution of a profile, checked: every key is a parameter that a notebook has.

    Raises:
        ValueError: for an unknown profile, notebook or parameter, naming what there is, and for two
            executions of one name.
    """
    path = paths.PARAMS / f"{profile}.yaml"
    if not path.exists():
        raise ValueError(
            f"there is no profile {profile!r}; there are "
            f"{', '.join(sorted(f.stem for f in paths.PARAMS.glob('*.yaml')))}"
        )
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is no YAML: {error}") from error
    shaped = isinstance(content, dict) and content.keys() >= {"all", "notebooks"}
    if not shaped or not all(isinstance(value, dict) for value in content.values()):
        raise ValueError(
            f"{path.name} has to hold two mappings, `all` and `notebooks`, and may hold some for "
            "notebooks by number"
        )
    groups = {str(key): value for key, value in content.items() if key not in ("all", "notebooks")}
    if strange := [
        key for key in groups if not any(name.startswith(key) for name in content["notebooks"])
    ]:
        raise ValueError(
            f"{path.name}: no notebook's name begins with {', '.join(strange)}; there are "
            f"{', '.join(content['notebooks'])}"
        )
    entries: list[Entry] = []
    unused = {
        key: {str(name) for name in values}
        for key, values in (groups | {"": content["all"]}).items()
    }
    for notebook, executions in content["notebooks"].items():
        shared = content["all"] | {"profile": profile}
        for key, values in groups.items():
            shared |= values if notebook.startswith(key) else {}
        known = notebook_parameters(notebook)
        for key in unused:
            unused[key] -= known.keys() if notebook.startswith(key) else set()
        if not isinstance(executions, list) or not all(isinstance(own, dict) for own in executions):
            raise ValueError(
                f"{path.name}: {notebook} needs a list of mappings, one an execution ([{{}}] for "
                "once)"
            )
        for own in executions:
            if unknown := own.keys() - known.keys():
                raise ValueError(
                    f"{path.name}: {notebook} has no parameter {', '.join(sorted(unknown))}; it "
                    f"has {', '.join(known)}"
                )
            entries.append(Entry(notebook, {k: v for k, v in shared.items() if k in known} | own))
    if strange := sorted(set().union(*unused.values())):
        raise ValueError(
            f"{path.name}: no notebook that it is for has a parameter {', '.join(strange)}"
        )
    if twice := sorted(
        name for name, count in Counter(entry.name for entry in entries).items() if count > 1
    ):
        raise ValueError(
            f"{path.name}: several executions are called {', '.join(twice)} and would overwrite "
            "each other; one "
            "notebook's have to differ in dataset, size, optimizer or corruption"
        )
    return entries


def train(entries: Iterable[Entry], profile: str, jobs: int, deadline: float | None = None) -> bool:
    """Train what the entries lack, in their order, until a value of `time.monotonic()` (None: to
    the end).

    A run that several entries state is trained once, with the measures that any of them asks for.
    Entries whose data set is not there are named and passed over. At the deadline runs under way
    end their epoch and are left with a checkpoint.

    Returns whether any entry could be trained.
    """
    entries = list(entries)
    reached = []
    wanted = _wanted(entries)
    for entry in entries:
        try:
            runs = [wanted[run.id] for run in entry.runs()]
            # what earlier entries trained says how long these take
            known = budget.paces() if deadline is not None else []
            may_begin = partial(budget.fits, known=known)
            store.ensure(runs, profile=profile, jobs=jobs, deadline=deadline, may_begin=may_begin)
            reached.append(entry)
        except DataNotFoundError as error:
            print(f"not run: {entry.name}: data set not reachable: {error}", file=sys.stderr)
    return bool(reached)


def _wanted(entries: Iterable[Entry]) -> dict[str, Run]:
    """All their runs by id, with the measures that any of them asks for."""
    return store.merged(run for entry in entries for run in entry.runs())


def progress(entries: Iterable[Entry], seconds: float | None = None) -> list[str]:
    """A line for each entry: runs done, epochs that remain and the hours they take in one process;
    then all distinct runs.

    Runs that are not there and never will be, because the one that relabels them diverged, are
    counted apart. With a budget in seconds, last how many runs it will never suffice for.
    """
    known, entries = budget.paces(), list(entries)
    groups = [(entry.name, dict.fromkeys(run.id for run in entry.runs())) for entry in entries]
    left = {i: (run, store.epochs_left(run)) for i, run in _wanted(entries).items()}
    absent = {i for i, (run, n) in left.items() if n == 0 and not store.available([run])}
    lines = []
    for name, runs in [*groups, ("together", left)] if len(groups) > 1 else groups:
        rest = [left[i][1] for i in runs]
        never = len(absent & runs.keys())
        line = f"{name}: {rest.count(0) - never} of {len(rest)} runs done"
        line += f", {never} not run: what relabels them diverged" if never else ""
        if any(rest):
            line += f", {sum(rest)} epochs left, {budget.hours([left[i] for i in runs], known)}"
        lines.append(line)
    long = [
        (run, n)
        for run, n in left.values()
        if seconds is not None and n and not budget.fits(run, n, seconds, known)
    ]
    if long:
        lines.append(
            f"{len(long)} runs would each take longer than a budget of {seconds:g} s: they need a "
            "longer one, or none"
        )
    return lines


def render(entry: Entry, profile: str) -> Path:
    """Execute a notebook into `results/<profile>/notebooks/`, unless it is newer than all that it
    is made from.
    """
    import papermill  # here: a machine that only trains does without it

    source = paths.ROOT / "notebooks" / f"{entry.notebook}.ipynb"
    target = paths.results_dir() / profile / "notebooks" / f"{entry.name}.ipynb"
    values, makes = notebook_parameters(entry.notebook) | entry.parameters, [target]
    made_from = [
        source,
        *paths.PARAMS.glob("*.yaml"),
        *paths.PUBLISHED.iterdir(),
        *(paths.ROOT / "lib").rglob("*.py"),
    ]
    made_from += entry.metrics()
    if "bench" in values:
        made_from += (paths.ROOT / values["bench"]).glob("*")
    # a report: it reads whatever these profiles state, and writes a folder and perhaps the README
    if "profiles" in values:
        made_from += [
            file for read in values["profiles"] for other in plan(read) for file in other.metrics()
        ]
        made_from += [paths.ROOT / "README.md"] * values["readme"]
        makes.append(paths.results_dir() / values["folder"] / "report.md")
    if all(made.exists() for made in makes):
        oldest = min(made.stat().st_mtime for made in makes)
        if oldest > max(f.stat().st_mtime for f in made_from):
            return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with paths.replacing(target) as part, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # papermill calls the temporary name's ending unknown
        quiet = [
            "--IPKernelApp.log_level=ERROR"
        ]  # the kernel warns that its local connection is not encrypted
        papermill.execute_notebook(
            str(source),
            str(part),
            entry.parameters,
            kernel_name="python3",
            progress_bar=False,
            extra_arguments=quiet,
        )
    return target


def _seconds(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(
            f"the budget is {text}; it has to be a positive number of seconds"
        )
    return value


def main() -> None:
    """Command line, see the top of this module."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description="Train a profile's runs and render its notebooks.")
    parser.add_argument("--profile", required=True, help="quick, lite or paper")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        help="training processes on a CPU (default: all cores)",
    )
    parser.add_argument("--only", default="", help="only executions whose name holds this text")
    parser.add_argument(
        "--budget",
        type=_seconds,
        help="train for so many seconds, render nothing; a later call goes on",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="show what there is to do (hours in one process) and stop",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="pack the stored runs into archives there and stop",
    )
    parser.add_argument(
        "--import",
        type=Path,
        metavar="DIR",
        dest="import_from",
        help="take over runs packed by --export and stop",
    )
    parser.add_argument("--train-only", action="store_true", help="train, render nothing")
    arguments = parser.parse_args()
    logging.getLogger("papermill").setLevel(logging.WARNING)
    try:
        entries = [entry for entry in plan(arguments.profile) if arguments.only in entry.name]
        if arguments.list:
            print(*progress(entries), sep="\n")
            return
        if arguments.export:
            runs = [run for entry in entries for run in entry.runs()]
            print(*transfer.export(runs, arguments.profile, arguments.export), sep="\n")
            return
        if arguments.import_from:
            done = transfer.take_over(arguments.profile, arguments.import_from)
            print(f"{len(done.taken)} runs taken over, {len(done.kept)} left as they were")
            if done.refused:
                sys.exit("\n".join(f"error: refused: {reason}" for reason in done.refused))
            return
        deadline = None if arguments.budget is None else began + arguments.budget
        if not train(entries, arguments.profile, arguments.jobs, deadline):
            sys.exit(f"error: nothing of {arguments.profile} could be run, see above")
        if arguments.budget is not None:
            print(*progress(entries, arguments.budget), sep="\n")
        elif not arguments.train_only:
            for entry in entries:
                if entry.is_done():
                    print(os.path.relpath(render(entry, arguments.profile)))
    except (
        ValueError,
        TypeError,
        OSError,
        DataError,
        run_dir.RecordError,
        transfer.TransferError,
    ) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
