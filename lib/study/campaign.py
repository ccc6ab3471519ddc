"""Work through a profile: train every run that its experiments state, then render the notebooks
that show them.

    python -m lib.study.campaign --profile quick          # `make study`
    python -m lib.study.campaign --profile lite --list    # what there is to do
    python -m lib.study.campaign --profile lite --experiment schedules   # `make experiment`
    python -m lib.study.campaign --profile lite --train-only --only mnist
    python -m lib.study.campaign --profile paper --budget 540  # nine minutes, then go on later

A profile is `notebooks/params/<profile>.yaml`. Under `all` stand values for every experiment that
takes them. Under `experiments`, by the name that `lib.study.experiments` gives it, stand an
experiment's `settings`, the `notebooks` that show it, and `entries`: the values of each execution,
which may name `notebooks` of its own. What an entry leaves open is as the parameters cell of its
first notebook has it, so that the notebook and this module cannot disagree. Under `notebooks` stand
those that are rendered, too, but show no experiment. An experiment whose settings name another
`profile` trains runs of that one: they are stored and judged as its own.
"""

import argparse
import ast
import difflib
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import yaml

from lib import bundle, engine, machine, paths, run_dir, store
from lib.data.sources import DataError, DataNotFoundError
from lib.run import Run
from lib.study import budget
from lib.study.experiments import EXPERIMENTS

# parameters of a notebook that are no arguments of its experiment
NOT_OF_THE_RUNS = {"profile", "jobs", "interactive", "save"}
# else a kernel logs that its connection is not encrypted, and that it is told to end
QUIET_KERNEL = ["--IPKernelApp.log_level=CRITICAL"]
CONNECT_SECONDS = 10  # that a scheduler is given to answer
# the safe one in C, if it is there: ten times as fast, and every notebook reads the profiles
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MARKS = ("dataset", "size", "optimizer", "corruption")  # what sets executions apart


@dataclass(frozen=True)
class Entry:
    """An experiment with its values, and the notebooks that show it; one without name has no runs
    of its own.
    """

    experiment: str
    notebooks: tuple[str, ...]
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """Experiment (else notebook), and what sets this entry apart."""
        return self._named(self.experiment or self.notebooks[0])

    def _named(self, what: str) -> str:
        marks = [str(self.parameters[mark]) for mark in MARKS if mark in self.parameters]
        return "-".join([what, *marks])

    @property
    def profile(self) -> str:
        """The profile whose runs these are: they are stored and judged as its own."""
        return self.parameters.get("profile", "")

    def rendered(self) -> dict[str, str]:
        """The stem of each rendered notebook, and the notebook it is made of."""
        return {self._named(notebook): notebook for notebook in self.notebooks}

    @cached_property
    def runs(self) -> list[Run]:
        """The runs that the entry states."""
        return EXPERIMENTS[self.experiment](**self.arguments()) if self.experiment else []

    def arguments(self) -> dict[str, Any]:
        """What its experiment is called with."""
        values = notebook_parameters(self.notebooks[0]) | self.parameters
        return {name: v for name, v in values.items() if name not in NOT_OF_THE_RUNS}

    def is_done(self) -> bool:
        """Whether its runs are finished, but for those that can never be trained
        (`store.is_without_labels`).
        """
        there = {run.id for run in store.available(self.runs)}
        return all(run.id in there or store.is_without_labels(run) for run in self.runs)


def _refuse_unknown(what: str, name: str, known: Iterable[str], where: str = "") -> None:
    if name not in known:
        raise ValueError(f"{where}there is no {what} {name!r}; there are {', '.join(known)}")


def _stems(folder: Path, ending: str) -> list[str]:
    return sorted(file.stem for file in folder.glob(f"*.{ending}"))


@lru_cache
def notebook_parameters(notebook: str) -> dict[str, Any]:
    """The defaults in a notebook's parameters cell, by name.

    Raises:
        ValueError: for an unknown notebook; the message lists those there are.
    """
    folder = paths.ROOT / "notebooks"
    _refuse_unknown("notebook", notebook, _stems(folder, "ipynb"))
    cells = json.loads((folder / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    tagged = (cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    lines = ast.parse("".join(next(tagged, []))).body
    return {line.target.id: ast.literal_eval(line.value) for line in lines}


def refuse_unknown_parameters(notebook: str) -> None:
    """Refuse parameters that papermill has injected and that the notebook does not have.

    papermill itself warns, and runs the notebook with its defaults. Called by a notebook's first
    cell after its parameters, before anything trains.

    Raises:
        ValueError: naming the nearest parameter that there is.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    for source in shell.user_ns.get("In", ()) if shell else ():
        if not source.startswith("# Parameters\n"):
            continue
        known = notebook_parameters(notebook)
        lines = ast.parse(source).body
        names = [target.id for line in lines for target in getattr(line, "targets", ())]
        if unknown := [name for name in names if name not in known]:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(
                f"the notebook {notebook} has no parameter {unknown[0]}{hint} It has "
                f"{', '.join(known)}"
            )


def plan(profile: str, experiment: str | None = None) -> list[Entry]:
    """Every entry of a profile, or those of one experiment, checked: every key is a parameter that
    its notebook has.

    Raises:
        ValueError: for an unknown profile, experiment, notebook or parameter, naming what there is,
            and for two renderings of one name.
    """
    _refuse_unknown("profile", profile, _stems(paths.PARAMS, "yaml"))
    if experiment is not None:
        _refuse_unknown("experiment", experiment, EXPERIMENTS)
    file = f"{profile}.yaml"
    content = _content(file)
    entries: list[Entry] = []
    # by group of values, those that no notebook takes: a misspelt parameter must not be passed over
    # in silence; a YAML alias is the same object
    unused: dict[int, set[str]] = {}
    for name, said in content["experiments"].items():
        _check_experiment(file, name, said)
        for own in said["entries"]:
            notebooks = tuple(own.get("notebooks", said.get("notebooks", ())))
            own = {key: value for key, value in own.items() if key != "notebooks"}
            if not notebooks:
                raise ValueError(f"{file}: an entry of {name} names no notebook that shows it")
            known = notebook_parameters(notebooks[0])
            if unknown := own.keys() - known.keys():
                raise ValueError(
                    f"{file}: {notebooks[0]} has no parameter {', '.join(sorted(unknown))}; "
                    f"it has {', '.join(known)}"
                )
            shared = {}
            for group in (content["all"], said.get("settings", {})):
                unused[id(group)] = unused.get(id(group), set(group)) - known.keys()
                shared |= {key: value for key, value in group.items() if key in known}
            entries.append(Entry(name, notebooks, {"profile": profile} | shared | own))
    if strange := sorted(map(str, set().union(*unused.values()))):
        raise ValueError(f"{file}: no notebook that it is for has a parameter {', '.join(strange)}")
    for notebook in content.get("notebooks", ()):
        known = notebook_parameters(notebook)
        entries.append(Entry("", (notebook,), {"profile": profile} if "profile" in known else {}))
    stems = Counter(stem for entry in entries for stem in entry.rendered())
    if twice := sorted(stem for stem, count in stems.items() if count > 1):
        raise ValueError(
            f"{file}: several executions are called {', '.join(twice)} and would overwrite "
            f"each other; one notebook's have to differ in {', '.join(MARKS)}"
        )
    return [entry for entry in entries if experiment in (None, entry.experiment)]


def _content(file: str) -> dict[str, Any]:
    try:
        content = yaml.load((paths.PARAMS / file).read_text(encoding="utf-8"), Loader=LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    needed = ("all", "experiments")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), dict) for k in needed):
        raise ValueError(f"{file} has to hold two mappings, `all` and `experiments`")
    if strange := content.keys() - {*needed, "settings", "notebooks"}:
        raise ValueError(
            f"{file} holds {', '.join(map(str, strange))}; allowed are all, settings, "
            "experiments, notebooks"
        )
    return content


def _check_experiment(file: str, name: str, said: Any) -> None:
    _refuse_unknown("experiment", name, EXPERIMENTS, f"{file}: ")
    shaped = isinstance(said, dict) and isinstance(said.get("settings", {}), dict)
    shaped = shaped and said.keys() <= {"settings", "notebooks", "entries"}
    entries = said.get("entries") if shaped else None
    if not isinstance(entries, list) or not all(isinstance(own, dict) for own in entries):
        raise ValueError(
            f"{file}: {name} needs `entries`, a list of mappings, one an execution ([{{}}] for "
            "once), and may have `settings`, a mapping, and `notebooks`, a list"
        )


def train(
    entries: Iterable[Entry],
    profile: str,
    jobs: int,
    deadline: float | None = None,
    executor: Executor | None = None,
) -> bool:
    """Train what the entries lack, in their order, until a value of `time.monotonic()` (None: to
    the end). Returns whether any entry could be trained.

    A run that several entries state is trained once, with the measures that any entry of their
    profiles asks for, so that to train a part first costs nothing later. Entries whose data set is
    not there are named first and passed over; all others are trained in one go. At the deadline
    runs under way end their epoch and are left with a checkpoint.
    """
    entries = [entry for entry in entries if entry.runs]
    wanted = _wanted(entries)
    reached = []
    absent: dict[tuple, DataNotFoundError | None] = {}
    for entry in entries:
        if (error := _not_reachable(entry, wanted, absent)) is None:
            reached.append(entry)
        else:
            print(f"not run: {entry.name}: data set not reachable: {error}", file=sys.stderr)
    # what was trained before says how long these take
    known = budget.paces() if deadline is not None else []
    ends = {"deadline": deadline, "may_begin": partial(budget.fits, known=known)}
    for own in dict.fromkeys(entry.profile for entry in reached):
        runs = [wanted[run.id] for e in reached if e.profile == own for run in e.runs]
        store.ensure(runs, profile=own or profile, jobs=jobs, executor=executor, **ends)
    return bool(reached)


def _wanted(entries: Iterable[Entry]) -> dict[str, Run]:
    """The runs of some entries by id, with the measures that any entry of their profiles asks
    for.
    """
    own = [run for entry in entries for run in entry.runs]
    ids = {run.id for run in own}
    profiles = dict.fromkeys(entry.profile for entry in entries if entry.profile)
    stated = (run for name in profiles for entry in plan(name) for run in entry.runs)
    return store.merged([*own, *(run for run in stated if run.id in ids)])


def _not_reachable(
    entry: Entry, wanted: Mapping[str, Run], absent: dict[tuple, DataNotFoundError | None]
) -> DataNotFoundError | None:
    """Why the images of an entry's runs that are not done cannot be read, if they cannot.

    Args:
        wanted: the runs by id, with all that is to be measured of them.
        absent: what is known of other entries' images.
    """
    for run in entry.runs:
        if engine.is_done(wanted[run.id]):
            continue
        key = run.dataset, run.image_size, run.classes
        if key not in absent:
            absent[key] = None
            try:
                bundle.prepare(replace(run, relabelled_by=None))
            except DataNotFoundError as error:
                absent[key] = error
            except (ValueError, DataError):
                pass  # `store.ensure` says it
        if absent.get(key) is not None:
            return absent[key]
    return None


def scheduler(address: str) -> Executor:
    """The executor of a Dask scheduler, such as "tcp://host:8786".

    Raises:
        ValueError: where the package is missing, or nothing answers at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        needed = "a scheduler needs the package distributed: pip install distributed"
        raise ValueError(needed) from error
    try:
        return Client(address, timeout=CONNECT_SECONDS).get_executor()
    except (OSError, ValueError, TimeoutError) as error:
        raise ValueError(
            f"no scheduler answers at {address} ({error}); start one with `dask scheduler` and "
            "workers with `dask worker ADDRESS --nthreads 1`"
        ) from error


def progress(
    entries: Iterable[Entry], seconds: float | None = None, jobs: int | None = None
) -> list[str]:
    """A line for each entry: runs done and epochs that remain; then all distinct runs.

    Runs that are not there and never will be, because the one that relabels them diverged, are
    counted apart. With a budget in seconds, last how many runs it will never suffice for. With
    jobs, how long each entry takes with so many runs at a time, and by what that is known.
    """
    entries = [entry for entry in entries if entry.runs]
    wanted = _wanted(entries)
    groups = [(entry.name, [run.id for run in entry.runs]) for entry in entries]
    left = {i: store.epochs_left(run) for i, run in wanted.items()}
    absent = {i for i, n in left.items() if n == 0 and not store.available([wanted[i]])}
    if len(groups) > 1:
        groups.append(("together", list(left)))
    lines = []
    forecast = None
    if jobs is not None:
        todo = [run for i, run in wanted.items() if left[i]]
        forecast = budget.Forecast(todo, jobs, max(1, len(engine.gpus())))
    for name, ids in groups:
        rest = [left[i] for i in dict.fromkeys(ids)]
        never = len(absent & set(ids))
        line = f"{name}: {rest.count(0) - never} of {len(rest)} runs done"
        line += f", {never} not run: what relabels them diverged" if never else ""
        if any(rest):
            line += f", {sum(rest)} epochs left"
            line += f", {forecast.text({wanted[i]: left[i] for i in ids})}" if forecast else ""
        lines.append(line)
    if forecast and any(left.values()):
        lines += forecast.sources()
    if seconds is not None:
        known = budget.paces()
        long = [i for i, n in left.items() if n and not budget.fits(wanted[i], n, seconds, known)]
        if long:
            lines.append(
                f"{len(long)} runs would each take longer than a budget of {seconds:g} s: they "
                "need a longer one, or none"
            )
    return lines


def render(entry: Entry, stem: str, profile: str) -> Path:
    """Execute one of an entry's notebooks into `results/<profile>/notebooks/`, unless it is newer
    than all that it is made from.
    """
    import papermill  # here: a machine that only trains does without it

    logging.getLogger("papermill").setLevel(logging.WARNING)
    notebook = entry.rendered()[stem]
    source = paths.ROOT / "notebooks" / f"{notebook}.ipynb"
    target = paths.results_dir() / profile / "notebooks" / f"{stem}.ipynb"
    made_from = [source, *paths.PARAMS.glob("*.yaml"), *paths.PUBLISHED.iterdir()]
    made_from += (paths.ROOT / "lib").rglob("*.py")
    made_from += (paths.ROOT / "results" / "bench").rglob("*.csv")
    made_from += [store.find(run) / "metrics.csv" for run in store.available(entry.runs)]
    made_from += [file for folder in paths.EVIDENCE for file in folder.glob("*/*/metrics.csv")]
    if target.exists() and target.stat().st_mtime > max(f.stat().st_mtime for f in made_from):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    known = notebook_parameters(notebook)
    os.environ["PROGRESS"] = "0"  # a rendered page keeps none
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several kernels beside each other
    with paths.replacing(target) as part, warnings.catch_warnings():
        # papermill calls the temporary name's ending unknown
        warnings.simplefilter("ignore", UserWarning)
        papermill.execute_notebook(
            str(source),
            str(part),
            {name: value for name, value in entry.parameters.items() if name in known},
            kernel_name="python3",
            progress_bar=False,
            extra_arguments=QUIET_KERNEL,
        )
    return target


def render_all(entries: Iterable[Entry], profile: str, jobs: int) -> None:
    """Render the notebooks of the entries whose runs are finished, so many at a time."""
    asked = [(entry, stem) for entry in entries if entry.is_done() for stem in entry.rendered()]
    asked.sort(key=lambda one: bool(one[0].experiment))  # first those that train by themselves
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        rendering = [pool.submit(render, entry, stem, profile) for entry, stem in asked]
        for done, future in enumerate(rendering, 1):
            path = os.path.relpath(future.result())
            print(f"{path} ({done} of {len(asked)})", flush=True)


def positive(text: str) -> int:
    """A number of processes, as an argument on the command line."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


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
    parser.add_argument("--experiment", help="this one alone, by its name")
    told = "runs at a time: processes on a CPU (default: all cores), networks side by side on "
    told += "each GPU (default: by its memory)"
    parser.add_argument("--jobs", type=positive, help=told)
    parser.add_argument("--only", default="", help="only entries whose name holds this text")
    told = "train for so many seconds, render nothing; a later call goes on"
    parser.add_argument("--budget", type=_seconds, help=told)
    parser.add_argument("--list", action="store_true", help="show what there is to do and stop")
    parser.add_argument("--train-only", action="store_true", help="train, render nothing")
    parser.add_argument("--scheduler", help="of Dask, which trains instead: tcp://host:8786")
    arguments = parser.parse_args()
    try:
        entries = plan(arguments.profile, arguments.experiment)
        entries = [entry for entry in entries if arguments.only in entry.name]
        if not entries:
            sys.exit(f"error: the profile {arguments.profile} states no such entry: see --list")
        jobs = arguments.jobs or engine.default_jobs()
        if arguments.list:
            print(*progress(entries, jobs=jobs), sep="\n")
            return
        deadline = None if arguments.budget is None else began + arguments.budget
        executor = scheduler(arguments.scheduler) if arguments.scheduler else None
        if not train(entries, arguments.profile, jobs, deadline, executor):
            sys.exit(f"error: nothing of {arguments.profile} could be run, see above")
        if arguments.budget is not None:
            print(*progress(entries, arguments.budget), sep="\n")
        elif not arguments.train_only:
            render_all(entries, arguments.profile, arguments.jobs or machine.cores())
    except (ValueError, TypeError, OSError, DataError, run_dir.RecordError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
