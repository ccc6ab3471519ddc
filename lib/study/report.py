"""The report: what notebooks saved of the stored runs, and every claim judged by them.

    python -m lib.study.report              # `make report`
    python -m lib.study.report --in-place   # `make evidence`

Executes the cells of the notebooks that rest on stored runs (all but those tagged `live`) with
`save=True`, several notebooks at a time, those whose inputs changed; they write figures and tables
into `results/report/`. Then `90_report` judges the claims and writes the index. Nothing is trained.
In place, the outputs of these cells are put into the committed notebooks, too.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient

from lib import machine, paths, store
from lib.study import campaign, claims, evidence, tables
from lib.study.claims import pages as claim_pages
from lib.study.claims.verdicts import CLAIMS
from lib.study.experiments import EXPERIMENTS, VARIANTS

INDEX = "90_report"  # the notebook that judges and writes the index, after all others
# what is quoted from `results/report/`, and in which file of the project
QUOTED = {"matrix.md": "README.md", "headline.md": "results/findings.md"}
SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
SETS |= {"cifar100": "CIFAR-100", "tiny_imagenet": "Tiny ImageNet"}

MATRIX_READ_AS = (
    "*paper*: the papers' own settings; *lite*: a miniature on two processor cores. Holds, in "
    "part, fails, undecided: by 90 % intervals over the seeds that there are. k/m: of the m cells "
    "with one seed k came out as claimed, an indication; cells with more seeds that hold or fail "
    "are counted behind it, undecided or silent ones are not. –: not run, or no claim about that "
    "set. Mean, sum: how SparsityReg joins a batch, which the paper does not say."
)


@dataclass(frozen=True)
class Report:
    """The stored runs by experiment, what the profiles state and lack, the claims, their cells."""

    frames: dict[str, pd.DataFrame]
    progress: pd.DataFrame
    cells: pd.DataFrame
    claims: pd.DataFrame


def gather(profiles: Sequence[str]) -> Report:
    """Read the runs that the profiles' experiments state, as far as they are finished: a profile is
    judged by these alone, whatever data sets lie on this machine.

    Raises:
        ValueError: for an unknown profile.
        RecordError: if a run's folder is damaged.
    """
    frames = {name: evidence.load(name, profiles=profiles) for name in EXPERIMENTS}
    progress = []
    for profile in profiles:
        own = [entry for entry in campaign.plan(profile) if entry.profile in ("", profile)]
        stated = store.merged(run for entry in own for run in entry.runs)
        done = {run.id for run in store.available(list(stated.values()))}
        for dataset in dict.fromkeys(run.dataset for run in stated.values()):
            own = [run.id for run in stated.values() if run.dataset == dataset]
            progress.append([profile, dataset, len(done.intersection(own)), len(own)])
    columns = ["profile", "dataset", "runs finished", "runs stated"]
    to_judge = evidence.with_unfinished(frames, profiles)
    cells = claims.cells(to_judge, profiles, only=claims.STATEMENTS)
    progress = pd.DataFrame(progress, columns=columns)
    return Report(frames, progress, cells, claims.verdicts_of(cells))


def write(report: Report) -> None:
    """Write `claims/*.md`, the tables of claims and cells, `headline.md`, `matrix.md`, `report.md`;
    figures and tables that no notebook has saved go.
    """
    folder = evidence.folder()
    saved = evidence.saved().values()
    figures, written = (
        dict(sorted(item for said in saved for item in said[kind].items()))
        for kind in ("figures", "tables")
    )
    for kind, names in (("figures", figures), ("tables", written)):
        for old in (folder / kind).glob("*.*"):
            if old.stem not in names:
                old.unlink()
    for claim in claims.STATEMENTS:
        page = claim_pages.page(claim, report.claims, report.cells, report.frames, figures, written)
        evidence.write(folder / "claims" / f"{claim}.md", page)
    cells = report.cells.drop(columns="statement").to_csv(index=False, float_format="%.6g")
    verdicts = matrix(report.claims, "results/report/claims/") + f"\n{MATRIX_READ_AS}\n"
    evidence.write(folder / "claims.csv", report.claims.to_csv(index=False))
    evidence.write(folder / "claim_cells.csv", cells)
    evidence.write(folder / "headline.md", headline(report))
    evidence.write(folder / "matrix.md", verdicts)
    evidence.write(folder / "report.md", _markdown(report, figures, written))


def marks(quoted: str) -> tuple[str, str]:
    """Between which comments a file of the report stands where it is quoted."""
    begin = f"<!-- from results/report/{quoted}, by `make report` -->"
    return begin, f"<!-- end of {quoted} -->"


def quote(quoted: str, file: Path) -> None:
    """Put a file of the report between its two marks in another, so that no number is typed there.

    Raises:
        ValueError: if the other has not got both marks.
    """
    text = file.read_text(encoding="utf-8")
    begin, end = marks(quoted)
    if begin not in text or end not in text:
        raise ValueError(f"{file} lacks the marks between which {quoted} stands: {begin} … {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    content = (evidence.folder() / quoted).read_text(encoding="utf-8").strip()
    quoting = f"{before}{begin}\n{content}\n{end}{after}"
    if quoting != text:
        evidence.write(file, quoting)


def quote_all() -> None:
    """Quote the report wherever `QUOTED` says; that of another results folder nowhere."""
    if paths.results_dir() != paths.ROOT / "results":
        return
    for quoted, file in QUOTED.items():
        quote(quoted, paths.ROOT / file)


def headline(report: Report) -> str:
    """Each paper's main table in short, published and measured: Table 1 of AL2 at each set's
    highest corruption, Table 2 of sparsity.
    """
    return "\n".join([_al2_headline(report), _sparsity_headline(report)])


def matrix(judged: pd.DataFrame, links: str | None = None) -> str:
    """The verdicts in short: a table a paper, a column a claim, a row where any was measured.

    Args:
        judged: as `lib.study.claims.verdicts_of` gives it.
        links: what leads to the claims' pages from where it is read, "claims/"; None: no links.
    """
    parts = []
    for paper, name in (("A", "AL2"), ("S", "Targeted sparsity")):
        answered = (judged.n > 0) | (judged.verdict == claims.NOTHING)
        own = judged[judged.claim.str.startswith(paper) & answered]
        rows = {}
        for profile, dataset in own[["profile", "dataset"]].drop_duplicates().itertuples(False):
            here = own[(own.profile == profile) & (own.dataset == dataset)]
            for reading in sorted(set(here.reading) - {""}) or [""]:
                found = here[here.reading.isin(["", reading])].set_index("claim")
                where = ", ".join(filter(None, [SETS.get(dataset, dataset), reading, profile]))
                rows[where] = found.apply(_short, axis=1)
        names = [claim for claim in claims.STATEMENTS if claim.startswith(paper)]
        table = pd.DataFrame(rows, index=names, dtype=object).T.fillna("–")
        if links is not None:
            table.columns = [f"[{claim}]({links}{claim}.md)" for claim in names]
        parts.append(table.rename_axis(name).to_markdown(disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def _short(row: pd.Series) -> str:
    """A claim's verdict in a word or two; of one seed how many of its cells are as claimed."""
    if counted := re.match(r"indicative: (\d+) of (\d+)", row.verdict):
        settled = re.findall(r"\d+ (?:holds|fails)", row.cells)
        return ", ".join([f"{counted[1]}/{counted[2]}", *settled])
    if row.verdict.startswith("not run"):
        return "–"
    return {"holds in part": "in part", "does not hold": "fails"}.get(row.verdict, row.verdict)


def _al2_headline(report: Report) -> str:
    """Final test accuracy without → with AL2 at each set's highest corruption: the paper's MNIST
    row, then each profile and data set.
    """
    printed = tables.published("al2_table1").rename(columns={"value": "measured"})
    rows = [["published", "mnist", "75 %", 1, "10,000", *_arrows(printed)]]
    every = report.frames["label_randomization"]
    every = every[(every.penalties == "") & (every.corruption > 0)]
    highest = every.groupby(["profile", "dataset"]).corruption.transform("max")
    every = every[every.corruption == highest]
    for (profile, dataset, level), runs in every.groupby(["profile", "dataset", "corruption"]):
        n = _seeds(runs.groupby(["baseline", "al2"]).seed.nunique())
        last = runs[runs.epoch == tables.epochs_read(runs)]
        images = tables.images_text(last.test_images.dropna())
        measured = tables.at_published_epochs(runs, ["test_accuracy"])
        share = f"{100 * level:.0f} %"
        rows.append([f"measured, {profile}", dataset, share, n, images, *_arrows(measured)])
    if len(rows) == 1:
        rows.append(["measured", "not run", "", "", "", *["not run"] * len(tables.BASELINES)])
    told = (
        "Test accuracy (%) after the last epoch, without → with AL2, at each set's highest share "
        "of corrupted training labels (mean over n seeds ± standard deviation)"
    )
    columns = ["", "data set", "corrupted", "n", "test images", *tables.BASELINES.values()]
    return _headed(told, rows, columns)


def _sparsity_headline(report: Report) -> str:
    """Best accuracy of the six networks: the paper's rows for 100 classes and SGD, then each cell
    that was measured.
    """
    frame = report.frames["sparsity_networks"]
    table = tables.sparsity_beside_published("sparsity_table2", frame)
    paper = table[table.published.notna() & (table.dataset == "cifar100")]
    paper = paper[paper.optimizer == "sgd"].drop_duplicates(["size", "network"])
    keys = ["profile", *tables.SPARSITY_CELL[:3]]
    rows = []
    for size, cell in paper.groupby("size", sort=False):
        values = 100 * cell.set_index("network").published.reindex(VARIANTS)
        rows.append(["published", "cifar100", size, "sgd", 1, *map(tables.half_up, values)])
    measured = table[table.measured.notna()]
    for (profile, *where), cell in measured.groupby(keys, sort=False):
        for reading in tables.readings_in(cell):
            own = tables.of_reading(cell, reading)
            name = ", ".join(filter(None, [f"measured, {profile}", reading]))
            rows.append([name, *where, _seeds(own.n), *_six(own)])
    for (profile, *where, epochs, reading), cell in _longer(frame, keys):
        name = ", ".join(filter(None, [f"measured, {profile}", reading, f"{epochs} epochs"]))
        rows.append([name, *where, int(cell.n.min()), *_six(cell)])
    both = on = ""
    if measured.empty:
        rows.append(["measured", "not run", "", "", "", *["not run"] * len(VARIANTS)])
    else:
        both = "; mean, sum: how SparsityReg joins a batch, which the paper does not say"
        on = f"; on {tables.images_text(frame.test_images.dropna())} test images"
    told = (
        "Best validation accuracy (%) over the epochs read, targeted sparsity (mean over n seeds ± "
        f"standard deviation{both}{on})"
    )
    return _headed(told, rows, ["", "data set", "size", "optimiser", "n", *VARIANTS])


def _headed(told: str, rows: list[list], columns: list[str]) -> str:
    table = pd.DataFrame(rows, columns=columns).to_markdown(index=False, disable_numparse=True)
    return f"{told}:\n\n{table}\n"


def _seeds(n: pd.Series) -> str:
    """How many; "1–3" where some networks have fewer."""
    return "–".join(map(str, sorted({int(n.min()), int(n.max())})))


def _longer(frame: pd.DataFrame, keys: list[str]) -> Iterable[tuple[tuple, pd.DataFrame]]:
    """Best accuracy of ConvNets over all their epochs, of those trained longer than the table
    reads, by cell, length and reading.
    """
    runs = tables.sparsity_runs(frame)
    if runs.empty:
        return []
    longer = runs[(runs["size"] != "") & (runs.epochs > tables.sparsity_epochs_read(runs))]
    keys = [*keys, "epochs"]
    every = []
    for reading in tables.readings_in(longer):
        best = tables.of_reading(longer, reading).groupby([*keys, "network", "seed"])
        best = best.agg(best=("test_accuracy", "max"), diverged=("diverged", "max")).reset_index()
        best["best"] = best.best.mask(best.diverged.notna()) / 100
        cells = best.groupby([*keys, "network"]).best
        found = cells.agg(measured=lambda values: values.mean(skipna=False), sd="std", n="size")
        finite = found.measured.notna()
        found["measured"] = found.measured.astype(object).where(finite, tables.DIVERGED)
        every.append(found.reset_index().assign(reading=reading))
    return pd.concat(every).groupby([*keys, "reading"], sort=False)


def _six(cell: pd.DataFrame) -> pd.Series:
    """The six networks' accuracies in a cell as they are printed."""
    return cell.set_index("network").apply(_percent, axis=1).reindex(VARIANTS).fillna("not run")


def _percent(row: pd.Series) -> str:
    if row.measured == tables.DIVERGED:
        return tables.DIVERGED
    return tables.mean_and_sd(100 * row.measured, 100 * row.sd)


def _arrows(measured: pd.DataFrame) -> list[str]:
    rows = measured[(measured.metric == "test_accuracy") & (measured.epoch == tables.PAPER_EPOCHS)]
    printed = tables.as_printed(rows, "test_accuracy")[tables.PAPER_EPOCHS]
    pairs = [printed[short].replace(" / ", " → ") for short in tables.BASELINES.values()]
    neither = f"{tables.NOT_RUN} → {tables.NOT_RUN}"
    return [tables.NOT_RUN if pair == neither else pair for pair in pairs]


def _markdown(report: Report, figures: dict[str, str], written: dict[str, str]) -> str:
    shown = {name: claim_pages.figures_of(name, figures) for name in claims.STATEMENTS}
    rest = figures.keys() - {figure for found in shown.values() for figure in found}
    parts = [
        "# Report",
        "Assembled from the stored runs; `make report` writes it anew. Nothing is typed by hand.",
        "## Verdicts",
        matrix(report.claims, "claims/").strip(),
        MATRIX_READ_AS,
        "## Headline",
        _al2_headline(report),
        _sparsity_headline(report),
        "## What was run",
        report.progress.to_markdown(index=False),
        "## Claims, their rules and figures",
        "A claim's own page has its cells with their numbers and what the papers print, where the "
        "paper makes it, how the runs deviate and what was unclear. All cells stand in "
        "[`claim_cells.csv`](claim_cells.csv), all verdicts in [`claims.csv`](claims.csv).",
        f"{claims.RULE}.",
    ]
    for name, statement in claims.STATEMENTS.items():
        parts += [f"### [{name}](claims/{name}.md): {statement}", CLAIMS[name].text]
        links = [f"[{figure}](figures/{figure}.png)" for figure in shown[name]]
        parts += ["Figures: " + ", ".join(links)] if links else []
    parts += ["## Tables"]
    parts += ["\n".join(f"- [`{name}`](tables/{name}.csv): {t}" for name, t in written.items())]
    parts += ["## Figures of no claim"] if rest else []
    parts += [claim_pages.picture(name, figures[name], "figures") for name in sorted(rest)]
    return "\n\n".join(parts) + "\n"


def execute(notebook: str, *, in_place: bool) -> None:
    """Execute a notebook's cells but those tagged `live`, with `save=True`; in place, put their
    outputs into it.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    source = paths.ROOT / "notebooks" / f"{notebook}.ipynb"
    book = nbformat.read(source, as_version=4)
    (parameters,) = [k for k, cell in enumerate(book.cells) if "parameters" in _tags(cell)]
    book.cells.insert(parameters + 1, nbformat.v4.new_code_cell("save = True"))
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several kernels beside each other
    client = NotebookClient(
        book,
        timeout=None,
        kernel_name="python3",
        extra_arguments=campaign.QUIET_KERNEL,
        resources={"metadata": {"path": str(source.parent)}},
    )
    with client.setup_kernel():
        for index, cell in enumerate(book.cells):
            if cell.cell_type != "code" or "live" in _tags(cell):
                continue
            count = cell.execution_count
            client.execute_cell(cell, index)
            cell.execution_count = count
            cell.metadata.pop("execution", None)
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
    if in_place:
        del book.cells[parameters + 1]
        evidence.write(source, nbformat.writes(book) + "\n")


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def inputs(notebook: str) -> str:
    """A hash of what a notebook's saved figures are made from: its code cells, the modules it
    imported, the settings of its experiments, the published numbers, and the settings and metrics
    of the stored runs that it read; "" where it has saved nothing yet.
    """
    files = input_files(notebook)
    if not files:
        return ""
    book = nbformat.read(paths.ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    seen = hashlib.sha256()
    for cell in book.cells:
        if cell.cell_type == "code" and "live" not in _tags(cell):
            seen.update(cell.source.encode())
    for file in files:
        seen.update(file.read_bytes() if file.exists() else b"gone")
    return seen.hexdigest()


def input_files(notebook: str) -> list[Path]:
    """The files that a notebook's saved figures are made from; none where it has saved nothing."""
    said = evidence.saved().get(notebook)
    if said is None:
        return []
    files = [paths.ROOT / name for name in said["modules"]]
    files += [paths.PARAMS / f"{profile}.yaml" for profile in evidence.COMMITTED]
    files += sorted(paths.PUBLISHED.iterdir())
    for experiment in said["experiments"]:
        for runs in evidence.finished(experiment, evidence.COMMITTED).values():
            folders = [store.find(run) for run in runs]
            files += [f / name for f in folders for name in ("config.json", "metrics.csv")]
    if "lib/bench/precision.py" in said["modules"]:
        files += sorted((paths.ROOT / "results" / "bench" / "precision").rglob("metrics.csv"))
    return files


def _is_older(files: Iterable[Path], moment: float) -> bool:
    """Whether none of the files has changed since."""
    return all(file.stat().st_mtime < moment for file in files if file.exists())


def make(jobs: int, *, in_place: bool, every: bool = False) -> None:
    """Bring `results/report/` up to date, so many notebooks at a time; see the top of this module.

    Args:
        in_place: whether the notebooks' outputs are brought up to date, too.
        every: all notebooks, whether their inputs changed or not.
    """
    folder = paths.ROOT / "notebooks"
    names = sorted(file.stem for file in folder.glob("*.ipynb"))
    names = [name for name in names if "save" in campaign.notebook_parameters(name)]
    noted = evidence.folder() / "inputs.json"
    known = json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else {}
    asked = [n for n in names if n != INDEX and (every or not known.get(n) == inputs(n) != "")]
    # one that is interrupted, or whose inputs change while it runs, is made again the next time
    known = {name: known[name] for name in names if name in known and name not in asked}
    evidence.write(noted, json.dumps(known, indent=1) + "\n")
    began = time.time()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        work = pool.map(partial(execute, in_place=in_place), asked)
        for done, (name, _) in enumerate(zip(asked, work, strict=True), 1):
            if _is_older(input_files(name), began):
                known[name] = inputs(name)
            print(f"{name} ({done} of {len(asked)})", flush=True)
    for gone in evidence.saved().keys() - set(names):
        (evidence.folder() / "saved" / f"{gone}.json").unlink()
    known = {name: known[name] for name in names if name in known}
    evidence.write(noted, json.dumps(known, indent=1) + "\n")
    execute(INDEX, in_place=in_place)
    print(os.path.relpath(evidence.folder() / "report.md"))


def main() -> None:
    """Command line, see the top of this module."""
    parser = argparse.ArgumentParser(description="Bring results/report up to date.")
    add = parser.add_argument
    add("--jobs", type=campaign.positive, default=machine.cores(), help="notebooks at a time")
    parser.add_argument("--in-place", action="store_true", help="the notebooks' outputs, too")
    parser.add_argument("--all", action="store_true", help="also where no input changed")
    arguments = parser.parse_args()
    make(arguments.jobs, in_place=arguments.in_place, every=arguments.all)


if __name__ == "__main__":
    main()
