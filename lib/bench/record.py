"""What the commands of `lib.bench` share: the option --out, and the files in that folder."""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lib import paths, trainer
from lib.machine import cores, processor

# Instructions that the speed of products hangs on.
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "sve", "bf16")


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Of the command `python -m module`, with the option that all have."""
    found = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    folder = paths.ROOT / "results" / "bench"
    found.add_argument("--out", type=Path, default=folder, help="folder, default: results/bench")
    return found


def machine(device: str) -> dict[str, Any]:
    """What was measured on, as the operating system and PyTorch give it."""
    can = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not tell
    found = {
        "processor": processor(),
        "architecture": platform.machine(),
        "cores": cores(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": trainer.commit(),
        "instructions": [name for name in INSTRUCTIONS if can.get(name)],
    }
    if device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def write(table: pd.DataFrame, path: Path, digits: int = 4) -> None:
    """A table as CSV, moved into place whole."""
    with paths.replacing(path) as part:
        table.to_csv(part, index=False, float_format=f"%.{digits}g")


def describe(folder: Path, device: str, values: dict[str, Any]) -> None:
    """Set a device's entry in `machine.json`; other devices' stay."""
    path = folder / "machine.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with paths.replacing(path) as part:
        text = json.dumps(known | {device: values}, indent=2, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")
