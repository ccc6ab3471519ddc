"""A run's folder: what lies in it, and that it is written whole or not at all.

config.json     what was trained and what was measured on the way
env.json        versions, device, processor, threads, precision, commit, wall time,
                hashes of data and labels
metrics.csv     a row an epoch; moved into place last: a folder that holds it is finished
measures.npz    arrays: ablation curves, heat maps, histograms, canonical correlations, predictions
status.json     only where the loss became NaN: {"diverged": epoch}
checkpoint.pt   only while unfinished
weights.pt      only on request (`keep_weights`)
"""

import errno
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib import paths
from lib.paths import replacing
from lib.run import Run

# what ails the machine, the disk or the permissions, and not the file: nothing to delete for
_PASSING = {
    getattr(errno, name, None)  # Windows has no ESTALE
    for name in ("EMFILE", "ENFILE", "EACCES", "EPERM", "EIO", "ENOMEM", "ESTALE")
} - {None}

CHECKPOINT_KEYS = {"id", "measured", "model", "optimizer", "rows", "arrays", "starts", "seconds"}


class RecordError(RuntimeError):
    """A run's folder cannot be read or written; the message names it and says what to do."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever fails in the block is a `RecordError` that names the file."""
    try:
        yield
    except Exception as error:
        passing = isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSING
        advice = "" if passing else " Delete the folder to train this run anew."
        raise RecordError(f"{path} cannot be read ({error}).{advice}") from error


def find(dataset: str, run_id: str, *, to_write: bool = False) -> Path | None:
    """The folder of a run, finished or under way, in any profile; None if there is none.

    Looked for in `$RESULTS_DIR`, then, unless it is `to_write`, among the project's committed runs
    (`paths.EVIDENCE`).

    Raises:
        RecordError: if there are several in one place, since ids are unique across profiles.
    """
    name = f"{dataset}/*-{run_id}"
    folders = [f for f in paths.results_dir().glob(f"*/{name}") if f.is_dir()]
    # one under way may only be about to gain a measure
    if not to_write and not any(map(is_finished, folders)):
        folders = [
            f for profile in paths.EVIDENCE for f in profile.glob(name) if is_finished(f)
        ] or folders
    if len(folders) > 1:
        raise RecordError(
            f"the run {run_id} has {len(folders)} folders, keep one: {', '.join(map(str, folders))}"
        )
    return folders[0] if folders else None


def begin(folder: Path, run: Run) -> None:
    """Make the folder and say in it what is going to be trained; a finished one stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_finished(folder):
        _write_config(folder, run)


def is_begun(folder: Path) -> bool:
    """Whether the folder says what it holds; not if its maker was killed right away."""
    return (folder / "config.json").exists() or is_finished(folder)


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a whole run."""
    return (folder / "metrics.csv").exists()


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a training's state, which `load_checkpoint` gives back."""
    _write_torch(folder / "checkpoint.pt", state)


def load_checkpoint(
    folder: Path, run: Run, hashes: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """The state a training was left in, on the CPU, or None where it has to start anew.

    So it has to where it measured something else than is asked for now, or trained on other images
    or labels; None, too, where another process has finished the run and taken the state away.

    Args:
        folder: the run's.
        run: with the measures that are asked for.
        hashes: of the images and labels to train on (`lib.bundle.Bundle.hashes`); those that are
            not given, or that the state does not say, are not compared.

    Raises:
        RecordError: if the checkpoint is damaged.
    """
    path = folder / "checkpoint.pt"
    state = None
    with _reading(path), suppress(FileNotFoundError):
        state = torch.load(path, map_location="cpu", weights_only=True)
        if absent := CHECKPOINT_KEYS - state.keys():
            raise KeyError(f"no {', '.join(sorted(absent))}")
    if state is None:
        return None
    if state["id"] != run.id:
        raise RecordError(
            f"{path} belongs to the run {state['id']}, not to {run.id}. Delete the folder to train "
            "it anew."
        )
    same = all(state.get(name, value) == value for name, value in (hashes or {}).items())
    return state if state["measured"] == json.dumps(run.measured()) and same else None


def read_pace(folder: Path) -> tuple[float, str]:
    """Seconds an epoch of a training, finished or under way, and what it ran on.

    The latter as `ran_on` has it, "" where the folder does not say.

    Raises:
        RecordError: if the files are not there or damaged.
    """
    try:
        if is_finished(folder):
            said = read_environment(folder)
            epochs = len((folder / "metrics.csv").read_text(encoding="utf-8").splitlines()) - 1
        else:  # without reading the weights
            path = folder / "checkpoint.pt"
            said = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            epochs = len(said["rows"])
        device = ran_on(said.get("device", ""), said.get("precision", "float32"))
        return float(said["seconds"]) / max(epochs, 1), device
    except Exception as error:
        raise RecordError(f"{folder} does not say how long its training took ({error})") from error


def ran_on(device: str, precision: str) -> str:
    """What sets a training's pace beside the training itself: "x86_64", "x86_64 in bfloat16"."""
    return str(device) if precision == "float32" else f"{device} in {precision}"


def finish(
    folder: Path,
    run: Run,
    metrics: pd.DataFrame,
    arrays: dict[str, np.ndarray],
    env: dict[str, Any],
    diverged: int | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the results of a run, `metrics.csv` last of what is new; then drop the checkpoint.

    Where a finished run is replaced, to gain a measure or because its labels are others now,
    `env.json` and `config.json` name the labels and the measure only when all else is in place.
    """
    replaced = is_finished(folder)
    status = folder / "status.json"
    if replaced and _diverged(status) != diverged:
        # killed before the new metrics are there, it has to be trained once more
        (folder / "metrics.csv").unlink()
    begin(folder, run)
    if not replaced:
        _write_json(folder / "env.json", env)
    with replacing(folder / "measures.npz") as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)
    if diverged is not None:
        _write_json(status, {"diverged": diverged})
    else:
        status.unlink(missing_ok=True)
    if weights is not None:
        _write_torch(folder / "weights.pt", weights)
    else:
        (folder / "weights.pt").unlink(missing_ok=True)
    with replacing(folder / "metrics.csv") as part:
        metrics.to_csv(part, index=False, float_format="%.6g")
    if replaced:
        _write_json(folder / "env.json", env)
        _write_config(folder, run)
    # a killed writer leaves its temporary file
    for left in [folder / "checkpoint.pt", folder / "progress", *folder.glob(".*.part")]:
        left.unlink(missing_ok=True)


def read_run(folder: Path) -> Run:
    """The run that a folder holds or is going to hold.

    Raises:
        RecordError: if `config.json` is missing, damaged, or not of the folder's name.
    """
    path = folder / "config.json"
    with _reading(path):
        config = json.loads(path.read_text(encoding="utf-8"))
        run = Run.from_dict(config["run"] | config["measures"])
    if run.id != config.get("id") or not folder.name.endswith(run.id):
        raise RecordError(
            f"{path} describes the run {run.id}, but its folder is {folder.name}. Delete or rename "
            "the folder."
        )
    return run


def read_metrics(folder: Path) -> tuple[pd.DataFrame, int | None]:
    """A finished run's metrics, a row an epoch, and the epoch at which it diverged, if it did.

    Raises:
        RecordError: if the files are damaged or do not hold every epoch.
    """
    run = read_run(folder)
    path = folder / "metrics.csv"
    with _reading(path):
        metrics = pd.read_csv(path)
        whole = ("epoch", "test_images")
        metrics = metrics.astype({name: int if name in whole else float for name in metrics})
        if metrics.get(["test_accuracy", "cross_entropy"], metrics).isna().any(axis=None):
            raise ValueError("it has empty cells")
        diverged = _diverged(folder / "status.json")
        last = run.epochs if diverged is None else diverged - 1
        if list(metrics["epoch"]) != list(range(1, last + 1)):
            raise ValueError(f"it holds {len(metrics)} epochs instead of 1 … {last}")
    return metrics, diverged


def read_environment(folder: Path) -> dict[str, Any]:
    """What `env.json` of a finished run says: device, wall time, hashes, number of classes, ….

    Raises:
        RecordError: if the file is damaged.
    """
    path = folder / "env.json"
    with _reading(path):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def array_names(folder: Path) -> list[str]:
    """The names of `read_arrays`, without reading the arrays.

    Raises:
        RecordError: if the file is damaged.
    """
    path = folder / "measures.npz"
    with _reading(path), np.load(path, allow_pickle=False) as file:
        return list(file)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a finished run, by name.

    Raises:
        RecordError: if the file is damaged.
    """
    path = folder / "measures.npz"
    with _reading(path), np.load(path, allow_pickle=False) as file:
        return dict(file)


def _diverged(status: Path) -> int | None:
    if not status.exists():
        return None
    return int(json.loads(status.read_text(encoding="utf-8"))["diverged"])


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_config(folder: Path, run: Run) -> None:
    config = {"id": run.id, "run": run.to_dict(), "measures": run.measured()}
    _write_json(folder / "config.json", config)


def _write_torch(path: Path, state: Any) -> None:
    # torch.save to a path hides that a disk is full behind an error of its own
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replacing(path) as part:
        part.write_bytes(buffer.getbuffer())
