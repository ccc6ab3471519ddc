"""What the commands of `lib.bench` share: the option --out, and the files in that folder."""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lib import paths, trainer
from lib.machine import cores, instruction_sets, processor

FOLDER = paths.ROOT / "results" / "bench"


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Of the command `python -m module`, with the option that all have."""
    found = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    found.add_argument("--out", type=Path, default=FOLDER, help="folder, default: results/bench")
    return found


def machine(device: str) -> dict[str, Any]:
    """What was measured on, as the operating system and PyTorch give it."""
    found = {
        "processor": processor(),
        "architecture": platform.machine(),
        "cores": cores(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": trainer.commit(),
        "instructions": instruction_sets(),
    }
    if device.startswith("cuda"):
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def known(folder: Path) -> dict[str, Any]:
    """What `machine.json` says by device; the folder is made where it is not there. To be called
    before anything is measured, too.

    Raises:
        OSError: if the folder cannot be made.
        ValueError: if the file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "machine.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, or measure elsewhere") from None


def write(table: pd.DataFrame, path: Path, digits: int = 4) -> None:
    """A table as CSV, moved into place whole."""
    with paths.replacing(path) as part:
        table.to_csv(part, index=False, float_format=f"%.{digits}g")


def describe(folder: Path, device: str, values: dict[str, Any]) -> None:
    """Set a device's entry in `machine.json`; other devices' stay."""
    said = known(folder) | {device: values}
    with paths.replacing(folder / "machine.json") as part:
        text = json.dumps(said, indent=2, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")
