"""How long trainings take, by the seconds of those that are stored, else by a few steps, and
whether one fits the time that is left.
"""

import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from statistics import mean, median

import torch

from lib import bundle, paths, run_dir, trainer
from lib.data.sources import DataNotFoundError
from lib.progress import duration, kind
from lib.run import Run

STEP_SECONDS = 1.0  # that steps are measured for, at least one and at most an epoch's
EVALUATED = {"cpu": 100, "cuda": 5000}  # images


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
    names = ("env.json", "checkpoint.pt")
    files = [file for name in names for file in paths.results_dir().glob(f"*/*/*/{name}")]
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
    variant = (run.variant, run.baseline)
    same = [p.seconds for p in alike if (p.run.variant, p.run.baseline) == variant]
    return median(same) if same else max((pace.seconds for pace in alike), default=None)


def measure(run: Run, jobs: int) -> SecondsPerEpoch:
    """The pace of a run by a few of its steps, of which nothing is kept.

    On a GPU so many networks make them side by side; on a CPU the seconds are a core's own,
    whatever else it does just now. Counted are steps, evaluation and the pass for entropies;
    ablations and correlations come on top.

    Raises as `bundle.prepare`.
    """
    device = torch.device(trainer.default_device())
    precision = trainer.default_precision()
    trainer.check_precision(precision, device)
    found = bundle.prepare(replace(run, relabelled_by=None), device)
    together = 1 if device.type == "cpu" else jobs
    with trainer.reproducible(device, precision):
        steps = [_few_steps(run, found, precision) for _ in range(together)]
        seconds = mean(trainer.take_turns(steps, device, 0))
    return SecondsPerEpoch(run, _here(), seconds)


def _few_steps(run: Run, found: bundle.Bundle, precision: str) -> Generator[None, None, float]:
    """Seconds an epoch of one network; stops after each step."""
    device = found.true_labels.device

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    model = trainer.build_network(run, *found.shape)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = trainer.make_optimizer(run, model)
    step = trainer.TrainStep(model, optimizer, found, run, precision)
    turns = step.epoch(1, 0.0)
    for _ in range(1 if device.type == "cpu" else trainer.WARM_UP + 1):  # the last one is recorded
        next(turns, None)
        yield
    number = 0
    begun = now()
    ends = time.perf_counter() + STEP_SECONDS
    while time.perf_counter() < ends and next(turns, True) is None:
        number += 1
        yield
    a_step = (now() - begun) / max(number, 1)
    step.close()
    images = found.test.images[: EVALUATED[device.type]]
    begun = now()
    trainer.predict(model, images)
    an_image = (now() - begun) / len(images)
    evaluated = len(found.test) if run.test_images is None else run.test_images
    evaluated += len(found.validation) + (len(found.measure) if run.entropy else 0)
    return a_step * -(-len(found.train) // run.batch_size) + an_image * evaluated


class Forecast:
    """How long runs take here: by stored runs, and by a few steps of each kind that none tells of.

    Of a kind that is not stored the run with the most penalties is measured, for all of them.

    Args:
        runs: those with epochs left.
        jobs: runs at a time, on each GPU where there are several.
    """

    def __init__(self, runs: Iterable[Run], jobs: int, devices: int = 1) -> None:
        self.at_a_time = jobs * devices
        self.known = paces()
        self.said: list[str] = []
        strange: dict[tuple, list[Run]] = {}
        for run in runs:
            if seconds_per_epoch(run, self.known, _here()) is None:
                strange.setdefault(kind(run), []).append(run)
        for alike in strange.values():
            most = max(alike, key=lambda r: (len(r.sparsity) + len(r.terms()), r.batch_norm))
            name = f"{most.network} on {most.dataset}"
            try:
                pace = measure(most, min(jobs, len(alike)))
            except DataNotFoundError:
                self.said.append(f"no time for {name}: data set not reachable")
                continue
            self.known.append(pace)
            self.said.append(f"measured now: {name}, {pace.seconds:.2g} s an epoch")

    def text(self, left: dict[Run, int]) -> str:
        """Of runs with so many epochs left each, for example "2 h 10 min"."""
        took = [(seconds_per_epoch(run, self.known, _here()), n) for run, n in left.items() if n]
        seconds = sum(pace * n for pace, n in took if pace is not None)
        if all(pace is None for pace, _ in took):
            return "time unknown"
        more = "more than " if any(pace is None for pace, _ in took) else ""
        return more + duration(seconds / min(self.at_a_time, len(took)))

    def sources(self) -> list[str]:
        """A line on what the times are by, and one for each kind that was measured or cannot be."""
        by = f"times: {self.at_a_time} at a time on {_here()}, by stored runs and a few steps"
        return [by, *self.said]


def fits(run: Run, epochs: int, seconds: float, known: Iterable[SecondsPerEpoch]) -> bool:
    """Whether so many epochs of a run may be begun with so many seconds left.

    The AL2 paper's long trainings go on in slices; any other is begun only if it ends in time, so
    that networks are finished rather than many left half done. One whose duration nothing tells is
    begun.
    """
    if seconds <= 0:
        return False
    if run.network == "al2_cnn":
        return True
    pace = seconds_per_epoch(run, known, _here())
    return pace is None or epochs * pace <= seconds
