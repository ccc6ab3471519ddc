"""Carrying stored runs from one machine to another in a few small files.

`export` packs finished runs, and AL2 networks under way with their checkpoint, into
`<profile>-1.zip` … `<profile>-8.zip`, each run whole in one of them, by its path in the results
folder. `take_over` merges such files into the results folder.
"""

import contextlib
import io
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lib import paths, run_dir, store
from lib.run import Run

MOST_FILES = 8
MOST_BYTES = 15 * 2**20  # of each
# metrics.csv last
FINISHED = ("config.json", "env.json", "measures.npz", "status.json", "weights.pt", "metrics.csv")
UNDER_WAY = ("config.json", "checkpoint.pt")
START = (1980, 1, 1, 0, 0, 0)  # a date for every file, so that equal runs give equal archives


class TransferError(RuntimeError):
    """Runs cannot be packed or taken over; the message says which and what to do."""


@dataclass
class Taken:
    """What `take_over` did.

    Names of runs taken over, of runs left as they were, and why others were refused.
    """

    taken: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def export(runs: Iterable[Run], profile: str, folder: Path) -> list[Path]:
    """Pack those of the runs that are stored.

    The archives of an earlier export of the profile are replaced.

    Returns the archives.

    Raises:
        TransferError: if nothing is stored, or if it does not fit `MOST_FILES` files of
            `MOST_BYTES`; nothing is written then.
    """
    packed: dict[Path, dict[str, bytes]] = {}
    for run in {run.id: run for run in runs}.values():
        if (source := run_dir.find(run.dataset, run.id, to_write=True)) is not None and (
            names := _to_pack(source, run)
        ):
            packed[source] = {
                name: (source / name).read_bytes() for name in names if (source / name).exists()
            }
    if not packed:
        raise TransferError(
            f"no run of {profile} is finished, nor an AL2 network under way: there is nothing to "
            "export"
        )
    # runs in one archive take no more room than in one each
    sizes = {source: len(_archive({source: files})) for source, files in packed.items()}
    bins: list[list[Path]] = []
    for source in sorted(sizes, key=lambda source: (-sizes[source], str(source))):
        room = (held for held in bins if sum(map(sizes.get, held)) + sizes[source] < MOST_BYTES)
        if (held := next(room, None)) is not None:
            held.append(source)
        else:
            bins.append([source])
    most = max(sizes.values())
    if len(bins) > MOST_FILES or most >= MOST_BYTES:
        raise TransferError(
            f"the {len(sizes)} runs take {sum(sizes.values()) / 2**20:.1f} MiB packed, in "
            f"{len(bins)} files, the largest run {most / 2**20:.1f} MiB; they have to fit "
            f"{MOST_FILES} files below {MOST_BYTES / 2**20:g} MiB each. Export a part of the "
            "profile (--only)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"{profile}-{k}.zip" for k in range(1, MOST_FILES + 1)]
    for target, held in zip(targets, bins, strict=False):
        with paths.replacing(target) as part:
            part.write_bytes(_archive({source: packed[source] for source in held}))
    for stale in targets[len(bins) :]:
        stale.unlink(missing_ok=True)
    return targets[: len(bins)]


def take_over(profile: str, folder: Path) -> Taken:
    """Merge the archives `<profile>-*.zip` of a folder into the results folder.

    All are read before anything is written.

    A finished run that is already there stays; one under way gives way to a finished one, or to one
    that is further. Runs that are being trained are left alone. Each file is moved into place
    whole, `metrics.csv` last. A run that is damaged, or whose config does not match its id, is
    refused by name while the others are taken over.

    Raises:
        TransferError: if there is no archive, or if one is damaged or holds anything but files of
            runs.
    """
    archives = sorted(folder.glob(f"{profile}-*.zip"))
    if not archives:
        raise TransferError(
            f"{folder} holds no archive {profile}-1.zip, …; make some with --export"
        )
    done = Taken()
    for found in [_read(archive) for archive in archives]:
        for (where, dataset, name), files in found.items():
            with tempfile.TemporaryDirectory() as temporary:
                staged = Path(temporary) / name
                staged.mkdir()
                for file, content in files.items():
                    (staged / file).write_bytes(content)
                try:
                    run = _checked(staged, dataset)
                    target = (
                        run_dir.find(run.dataset, run.id, to_write=True)
                        or paths.results_dir() / where / dataset / name
                    )
                    with store.lock(run, block=False) as held:
                        if taken := held and _is_further(staged, target, run):
                            _place(files, target)
                    (done.taken if taken else done.kept).append(name)
                except (run_dir.RecordError, TransferError) as error:
                    done.refused.append(
                        f"{where}/{dataset}/{name}: {str(error).replace(temporary, '…')}"
                    )
    return done


def _to_pack(source: Path, run: Run) -> tuple[str, ...]:
    if run_dir.is_finished(source):
        return FINISHED
    return UNDER_WAY if run.network == "al2_cnn" and (source / "checkpoint.pt").exists() else ()


def _archive(packed: dict[Path, dict[str, bytes]]) -> bytes:
    """An archive of run folders, with paths relative to the results folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for source in sorted(packed):
            for name, content in packed[source].items():
                entry = zipfile.ZipInfo(
                    (source.relative_to(paths.results_dir()) / name).as_posix(), START
                )
                archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _read(archive: Path) -> dict[tuple[str, str, str], dict[str, bytes]]:
    """The files of an archive by profile, data set and folder, then by name.

    Every path is checked.
    """
    found: dict[tuple[str, str, str], dict[str, bytes]] = {}
    try:
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                parts = entry.orig_filename.split("/")
                if (
                    "\\" in entry.orig_filename
                    or "\0" in entry.orig_filename
                    or any(p in ("", ".", "..") for p in parts)
                ):
                    raise TransferError(
                        f"{archive} holds {entry.orig_filename!r}, which would leave the results "
                        "folder"
                    )
                known = len(parts) == 4 and parts[3] in FINISHED + UNDER_WAY
                if (
                    not known
                    or any(part.startswith(".") for part in parts)
                    or parts[3] in found.get(tuple(parts[:3]), ())
                ):
                    raise TransferError(
                        f"{archive} holds {entry.orig_filename!r}, which is no file of a run (or "
                        "there twice)"
                    )
                found.setdefault(tuple(parts[:3]), {})[parts[3]] = file.read(entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, TransferError):
            raise
        raise TransferError(f"{archive} is damaged ({error}): export or copy it again") from error
    return found


def _checked(staged: Path, dataset: str) -> Run:
    """The run of a folder, every file of which was read.

    A RecordError or TransferError says what is wrong.
    """
    run = run_dir.read_run(staged)
    if run.dataset != dataset or not staged.name.endswith(f"-{run.id}"):
        raise TransferError(f"it describes the run {run.name} of {run.dataset}")
    if run_dir.is_finished(staged):
        if (staged / "checkpoint.pt").exists():
            raise TransferError("it is finished and has a checkpoint, too")
        run_dir.read_metrics(staged)
        run_dir.read_arrays(staged)
        run_dir.read_environment(staged)
    elif run_dir.load_checkpoint(staged, run) is None:
        raise TransferError(
            "it is neither finished nor has it a checkpoint of what its config says"
        )
    return run


def _is_further(staged: Path, target: Path, run: Run) -> bool:
    """Whether a run that was carried here has more epochs than what is in its place."""
    if run_dir.is_finished(target):
        return False
    if run_dir.is_finished(staged) or not run_dir.is_begun(target):
        return True
    there = run_dir.load_checkpoint(target, run_dir.read_run(target))
    return there is None or len(there["rows"]) < len(run_dir.load_checkpoint(staged, run)["rows"])


def _place(files: dict[str, bytes], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    # what a training killed in its last moments left there says nothing of this one
    if "metrics.csv" in files:
        for name in set(FINISHED) - files.keys():
            (target / name).unlink(missing_ok=True)
    for name in [name for name in FINISHED + UNDER_WAY[1:] if name in files]:
        with paths.replacing(target / name) as part:
            part.write_bytes(files[name])
    if "metrics.csv" in files:
        with contextlib.suppress(FileNotFoundError):
            (target / "checkpoint.pt").unlink()
