"""Progress on long trainings: runs and epochs done and the time that remains, where a person looks.

In a terminal one line that is drawn anew, in JupyterLab one under the cell, else (a log file) a
line a minute. `PROGRESS=0` in the environment shows none.
"""

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable

from lib.run import Run


class Progress:
    """What a campaign has done, told epoch by epoch, and shown.

        with Progress(runs) as progress:
            progress.at(run, 3)

    Args:
        runs: all that are to be trained, each once.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs: dict[str, Run] = {}
        self.done: dict[str, int] = {}  # epochs by run
        self.add(runs)
        self.began: dict[str, tuple[int, float]] = {}  # by run its first epoch seen here, and when
        self.seen: dict[str, float] = {}  # when its last one was
        self.reached: dict[str, int] = {}  # and which that was: a run may end before its time
        self.shown = 0.0
        self.started = time.monotonic()
        self.every, self.show = _way()

    def add(self, runs: Iterable[Run]) -> None:
        """More runs are to be trained, or the same ones again."""
        self.runs |= {run.id: run for run in runs}
        self.done |= {run.id: 0 for run in runs}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.show(self.text(), True)

    def at(self, run: Run, epoch: int) -> None:
        """A run has reached the end of an epoch."""
        if epoch > self.done[run.id]:
            now = time.monotonic()
            self.began.setdefault(run.id, (epoch, now))
            self.seen[run.id] = now
            self.done[run.id] = self.reached[run.id] = epoch
        self.tick()

    def finished(self, run: Run) -> None:
        """A run is stored, however many epochs it had (it may have been there, or diverged)."""
        self.done[run.id] = self.runs[run.id].epochs
        self.tick()

    def tick(self) -> None:
        """Show where things stand, if it is time to."""
        now = time.monotonic()
        if now - self.shown >= self.every:
            self.shown = now
            self.show(self.text(), False)

    def text(self) -> str:
        """For example "3 of 24 runs, 160 of 1,200 epochs, 2 h 10 min left: al2_cnn-bare-…"."""
        epochs = sum(run.epochs for run in self.runs.values())
        whole = sum(self.done[i] == run.epochs for i, run in self.runs.items())
        text = f"{whole:,} of {len(self.runs):,} runs, "
        text += f"{sum(self.done.values()):,} of {epochs:,} epochs"
        if whole == len(self.runs):
            return f"{text}, {duration(time.monotonic() - self.started)}"
        left = self.seconds_left()
        text += "" if left is None else f", {duration(left)} left"
        names = [self.runs[i].name for i in self._under_way()]
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        return text + (f": {', '.join(names[:2])}{more}" if names else "")

    def _under_way(self) -> list[str]:
        return [i for i in self.seen if self.done[i] < self.runs[i].epochs]

    def seconds_left(self) -> float | None:
        """By the seconds an epoch that runs of the same kind took here, else the average's.

        As many are trained at a time as are under way now. None before any has ended two epochs.
        """
        spent, epochs = Counter(), Counter()
        for i, (first, when) in self.began.items():
            spent[kind(self.runs[i])] += self.seen[i] - when
            epochs[kind(self.runs[i])] += self.reached[i] - first
        if not epochs.total():
            return None
        average = spent.total() / epochs.total()
        left = 0.0
        for i, run in self.runs.items():
            pace = spent[kind(run)] / epochs[kind(run)] if epochs[kind(run)] else average
            left += (run.epochs - self.done[i]) * pace
        return left / max(1, len(self._under_way()))


def kind(run: Run) -> tuple:
    """Runs of one kind take about the same time: network with its size, and the images."""
    return run.network, run.dataset, run.image_size, run.classes, run.n_train


def duration(seconds: float) -> str:
    """In words: "40 s", "12 min", "2 h 10 min", "3 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _line(text: str, last: bool) -> None:
    print(f"{time.strftime('%H:%M')} {text}", file=sys.stderr, flush=True)


def _redraw(text: str, last: bool) -> None:
    columns = os.get_terminal_size(sys.stderr.fileno()).columns
    cut = text if len(text) < columns else text[: columns - 2] + "…"
    print(f"\r\033[K{cut}", end="\n" if last else "", file=sys.stderr, flush=True)


class _Cell:
    """One line under a notebook's cell."""

    handle = None

    def __call__(self, text: str, last: bool) -> None:
        from IPython.display import display

        shown = {"text/plain": text}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)
        else:
            self.handle.update(shown, raw=True)


def _way() -> tuple[float, Callable[[str, bool], None]]:
    """Seconds between two showings, and how a text is shown; `last` says that none follows."""
    if os.environ.get("PROGRESS", "") == "0":
        return math.inf, lambda text, last: None
    shell = sys.modules.get("IPython")
    if shell is not None and hasattr(shell.get_ipython(), "kernel"):
        return 1.0, _Cell()
    return (0.5, _redraw) if sys.stderr.isatty() else (60.0, _line)
