"""How long trainings take, from the measured seconds of those that are stored, and whether one fits
the time that is left.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from lib import paths, run_dir, trainer
from lib.progress import kind
from lib.run import Run


@dataclass(frozen=True)
class SecondsPerEpoch:
    """What one stored run, finished or under way, says: seconds an epoch, and on which device, in
    which precision.
    """

    run: Run
    device: str
    seconds: float


def paces() -> list[SecondsPerEpoch]:
    """Those of all stored runs, of every profile. Folders that cannot be read say nothing here."""
    found = []
    files = [
        *paths.results_dir().glob("*/*/*/env.json"),
        *paths.results_dir().glob("*/*/*/checkpoint.pt"),
    ]
    for folder in sorted({file.parent for file in files}):
        try:
            seconds, device = run_dir.read_pace(folder)
            found.append(SecondsPerEpoch(run_dir.read_run(folder), device, seconds))
        except run_dir.RecordError:
            continue  # whoever needs that run says what is wrong with it
    return found


def _here() -> str:
    return run_dir.ran_on(trainer.device_name(), trainer.default_precision())


def seconds_per_epoch(run: Run, known: Iterable[SecondsPerEpoch], device: str) -> float | None:
    """From runs of the same kind on the device: the median of the same variant's, else the
    slowest's; None without any.
    """
    alike = [pace for pace in known if pace.device == device and kind(pace.run) == kind(run)]
    same = [
        pace.seconds
        for pace in alike
        if (pace.run.variant, pace.run.baseline) == (run.variant, run.baseline)
    ]
    return median(same) if same else max((pace.seconds for pace in alike), default=None)


def fits(run: Run, epochs: int, seconds: float, known: list[SecondsPerEpoch] | None = None) -> bool:
    """Whether so many epochs of a run may be begun with so many seconds left.

    The AL2 paper's long trainings go on in slices; any other is begun only if it ends in time, so
    that networks are finished rather than many left half done. One whose duration nothing tells is
    begun.
    """
    if seconds <= 0:
        return False
    if run.network == "al2_cnn":
        return True
    pace = seconds_per_epoch(run, paces() if known is None else known, _here())
    return pace is None or epochs * pace <= seconds
