"""Where things lie.

Every path is absolute, so that nothing depends on the folder a notebook or a test is started in.

Three folders can be moved, each by one environment variable: `DATA_DIR` (data sets as a user
downloads them), `CACHE_DIR` (their decoded copies, safe to delete) and `RESULTS_DIR` (run folders).
A relative one is taken from the project's folder, for a kernel works elsewhere than make does. They
are read at each call, so that a test or a notebook can set them late. The papers' own numbers and
the stored evidence always lie in the project: its runs are found there wherever `RESULTS_DIR`
points, and nothing is written to them then.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ABOVE = Path(__file__).resolve().parent.parent
# The project's folder; where the package is installed without it, the folder one works in.
ROOT = _ABOVE if (_ABOVE / "environment.yml").exists() else Path.cwd()
PUBLISHED = ROOT / "results" / "published"
PARAMS = ROOT / "notebooks" / "params"
# committed runs, by profile
EVIDENCE = tuple(ROOT / "results" / profile for profile in ("lite", "paper", "calibration"))


def _folder(variable: str, default: Path) -> Path:
    return ROOT / Path(os.environ.get(variable) or default).expanduser()


def data_dir() -> Path:
    """Data sets as downloaded: `$DATA_DIR`, else `data/` in the project."""
    return _folder("DATA_DIR", ROOT / "data")


def cache_dir() -> Path:
    """Decoded data sets: `$CACHE_DIR`, else `.cache/` in the project."""
    return _folder("CACHE_DIR", ROOT / ".cache")


def results_dir() -> Path:
    """Run folders, by profile: `$RESULTS_DIR`, else `results/` in the project."""
    return _folder("RESULTS_DIR", ROOT / "results")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, moved over it when the block ends well, else deleted.

    Whoever reads `target` sees the old file or the whole new one, whenever the writer is killed.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
