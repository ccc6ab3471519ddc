"""Stored runs by experiment, and what a notebook saves of them for the report.

A notebook asks for its experiment's runs by name and draws them. With `save=True`, which
`make report` sets, it leaves figures and tables in `results/report/`, each with its caption; what
it has left stands in `results/report/saved/<notebook>.json`.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lib import paths, plots, store
from lib.run import Run
from lib.study import campaign
from lib.study.tables import NothingToShow

PROFILES = ("lite", "paper")  # those that the report is about
COMMITTED = (*PROFILES, "calibration")  # those whose runs are committed
_read: set[str] = set()  # the experiments that this process has asked for
_saving: list["Report"] = []  # the notebook's, where it saves


def stated(experiment: str, profiles: Iterable[str] = PROFILES) -> dict[str, list[Run]]:
    """The runs that each profile states for an experiment, each once, with every measure asked for.

    Raises:
        ValueError: for an unknown experiment or profile.
    """
    _read.add(experiment)
    for report in _saving:
        report.note()
    found = {}
    for profile in profiles:
        # what a profile takes over from another one is that one's
        entries = [e for e in campaign.plan(profile, experiment) if e.profile in ("", profile)]
        found[profile] = list(store.merged(run for e in entries for run in e.runs).values())
    return found


def finished(experiment: str, profiles: Iterable[str] = PROFILES) -> dict[str, list[Run]]:
    """Those of the stated runs that are stored, by profile."""
    return {name: store.available(runs) for name, runs in stated(experiment, profiles).items()}


def load(*experiments: str, profiles: Iterable[str] = PROFILES) -> pd.DataFrame:
    """One frame of the stored runs of some experiments, as `store.load` gives it.

    `profile` is the one that states a run, whichever trained it. A run of several experiments is
    there once.
    """
    done = [finished(experiment, profiles) for experiment in experiments]
    frames = []
    for profile in profiles:
        # each run once, see `store.load`
        runs = [run for found in done for run in found[profile]]
        frames.append(store.load(runs).assign(profile=profile))
    return _together(frames, store.load([]))


def to_judge(*experiments: str, profiles: Iterable[str] = PROFILES) -> dict[str, pd.DataFrame]:
    """What `lib.study.claims` judges by: by experiment the frame of `load`, `with_unfinished`."""
    loaded = {experiment: load(experiment, profiles=profiles) for experiment in experiments}
    return with_unfinished(loaded, profiles)


def with_unfinished(
    loaded: Mapping[str, pd.DataFrame], profiles: Iterable[str]
) -> dict[str, pd.DataFrame]:
    """Frames of `load` by experiment, and in each a row without epoch for each run that is stated
    and not finished.
    """
    frames = {}
    for experiment, frame in loaded.items():
        done = set(zip(frame.profile, frame.id, strict=True))
        missing = [
            {"profile": profile} | run.described()
            for profile, runs in stated(experiment, profiles).items()
            for run in runs
            if (profile, run.id) not in done
        ]
        rows = pd.DataFrame(missing).reindex(columns=frame.columns)
        frames[experiment] = _together([frame, rows], frame)
    return frames


def _together(frames: Iterable[pd.DataFrame], none: pd.DataFrame) -> pd.DataFrame:
    full = [frame for frame in frames if len(frame)]
    return pd.concat(full, ignore_index=True) if full else none


class Report:
    """Where a notebook puts the figures and tables that the report shows.

    Args:
        notebook: its name.
        save: whether anything is written; without it figures are only shown.

    Raises:
        ValueError: if papermill was given a parameter that the notebook does not have.
    """

    def __init__(self, notebook: str, save: bool) -> None:
        campaign.refuse_unknown_parameters(notebook)
        self.notebook = notebook
        self.save = save
        self.folder = folder()
        self.figures: dict[str, str] = {}
        self.tables: dict[str, str] = {}
        if save:
            _saving.append(self)

    def figure(
        self,
        name: str,
        caption: str,
        draw: Callable[..., Figure],
        *arguments: Any,
        show: bool = True,
    ) -> None:
        """Show a figure as a small picture, and write it under its name where the report is saved.

        Args:
            name: of its file: what it shows, then of what, apart by hyphens.
            caption: a sentence or two: what is drawn, and what lines and bands are.
            draw: makes the figure from the arguments; called only if it is shown or saved.
            arguments: of `draw`.
            show: whether the notebook shows it, too.
        """
        if not (show or self.save):
            return
        try:
            fig = draw(*arguments)
        except NothingToShow as reason:
            display(Markdown(str(reason)))
            return
        # shown first: each drawing lays a figure out anew; what is shown must not depend on save
        if show:
            display(plots.small_png(fig))
        if self.save:
            write(self.folder / "figures" / f"{name}.png", plots.png(fig))
            self.figures[name] = caption
            self.note()
        plt.close(fig)

    def table(self, name: str, caption: str, table: pd.DataFrame) -> None:
        """Write a table as CSV under its name, where the report is saved."""
        if self.save:
            text = table.to_csv(index=False, float_format="%.6g")
            write(self.folder / "tables" / f"{name}.csv", text)
            self.tables[name] = caption
            self.note()

    def note(self) -> None:
        """Write down what has been saved, and what it was made from."""
        modules = {
            Path(module.__file__).relative_to(paths.ROOT).as_posix()
            for name, module in list(sys.modules.items())
            if name.startswith("lib.") and getattr(module, "__file__", None)
        }
        said = {"experiments": sorted(_read), "figures": self.figures}
        said |= {"modules": sorted(modules), "tables": self.tables}
        text = json.dumps(said, indent=1, ensure_ascii=False) + "\n"
        write(self.folder / "saved" / f"{self.notebook}.json", text)


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file or none; texts as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with paths.replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def folder() -> Path:
    """Where the report lies."""
    return paths.results_dir() / "report"


def saved() -> dict[str, dict[str, Any]]:
    """By notebook what it has saved: figures and tables with their captions, and what it read."""
    files = sorted((folder() / "saved").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
