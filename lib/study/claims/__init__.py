"""The papers' claims, judged by stated rules from stored runs.

`cells` compares networks, one row a cell; `judge` gives the verdicts, `claims.csv`. A claim is its
text in `results/published/claims.yaml` and a function that `verdicts.claim` registers with the
experiments whose runs it reads. No verdict is typed by hand.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace

import numpy as np
import pandas as pd
import yaml

from lib import paths, store
from lib.study.claims import al2, sparsity  # noqa: F401  they register their claims
from lib.study.claims.verdicts import CLAIMS, NOT_RUN, NOTHING, SHOWN, Cell, counts, verdict
from lib.study.claims.verdicts import RULE as RULE  # part of the surface
from lib.study.tables import half_up, of_reading, readings_in

OF_CLAIM = ["claim", "statement", "profile", "dataset", "reading"]
CELL_COLUMNS = [*OF_CLAIM, *(f.name for f in fields(Cell))]
COLUMNS = [*OF_CLAIM, "cells", "n", "images", "verdict"]
ALL_SETS = "all sets"
# its archive was not to be had for this study; a user who has it trains and judges it like others
NOT_REACHABLE = {"tiny_imagenet"}

# what the papers say, and where
TEXTS = yaml.safe_load((paths.PUBLISHED / "claims.yaml").read_text(encoding="utf-8"))
STATEMENTS = {name: said["statement"] for name, said in TEXTS.items()}
if alone := TEXTS.keys() ^ CLAIMS.keys():
    raise ValueError(
        f"of {', '.join(sorted(alone))} there is a text in claims.yaml or a rule, but not both"
    )


def runs_of(claim: str, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows that a claim is judged by, of frames by experiment; empty where there is none."""
    experiments = CLAIMS[claim].experiments
    read = [frames[name] for name in experiments if name in frames and len(frames[name])]
    runs = pd.concat(read, ignore_index=True) if read else store.load([])
    return CLAIMS[claim].select(runs).copy()  # one block of memory a type: rules take many rows


def cells(
    frames: Mapping[str, pd.DataFrame],
    profiles: Iterable[str],
    only: Iterable[str] | None = None,
) -> pd.DataFrame:
    """A row for each cell of each claim, by profile and data set.

    Claims about SparsityReg have theirs for each `reading` of it, "mean" or "sum" over the batch,
    that is stated.

    Args:
        frames: by experiment its runs of the profiles, as `lib.store.load` gives the finished ones
            and `lib.study.evidence.to_judge` adds the others; may be empty.
        profiles: those that are judged.
        only: claims, for example "A6"; None: those that read one of the experiments given.

    Raises:
        ValueError: if runs of one cell differ in more than the seed (S1–S10: and the length), or
            those of A6, A7, A9 in more than their study varies.
    """
    if only is None:
        only = [name for name in STATEMENTS if set(CLAIMS[name].experiments) & set(frames)]
    rows = []
    selected = {}
    for name in only:
        claim = CLAIMS[name]
        key = claim.experiments, claim.select
        if key not in selected:
            selected[key] = runs_of(name, frames)
        for profile in profiles:
            own = selected[key][selected[key].profile == profile]
            for dataset, of_set in own.groupby("dataset"):
                for reading in readings_in(of_set) if claim.by_reading else [""]:
                    runs = of_reading(of_set, reading) if claim.by_reading else of_set
                    of_claim = [name, STATEMENTS[name], profile, dataset, reading]
                    found = list(filter(None, claim.rule(runs, dataset)))
                    if dataset in NOT_REACHABLE and not any(cell.n for cell in found):
                        found = [replace(cell, why="data set not reachable") for cell in found]
                    rows += [[*of_claim, *asdict(cell).values()] for cell in found]
    return pd.DataFrame(rows, columns=CELL_COLUMNS)


def judge(
    frames: Mapping[str, pd.DataFrame],
    profiles: Iterable[str],
    only: Iterable[str] | None = None,
) -> pd.DataFrame:
    """The verdicts that follow from `cells` (same arguments); columns as in `claims.csv`."""
    return verdicts_of(cells(frames, profiles, only))


def verdicts_of(cells: pd.DataFrame) -> pd.DataFrame:
    """A row for each claim, profile, data set and reading: how many cells of which state, the
    verdict.

    `n` is the least number of seeds of its cells that say something, `images` on how many test
    images accuracies were measured. S7 has a row over all sets, too.
    """
    rows = []
    over_sets = cells[cells.claim.isin([name for name in CLAIMS if CLAIMS[name].over_sets])]
    every = pd.concat([cells, over_sets.assign(dataset=ALL_SETS)])
    for key, own in every.groupby(OF_CLAIM, sort=False):
        alive = own[~own.state.isin([NOT_RUN, NOTHING, SHOWN])]
        found = verdict(own.state, own.as_claimed)
        if found == NOT_RUN:
            reasons = sorted(set(own.why) - {""}) or ["none of its cells is stated"]
            found = f"{NOT_RUN}: {', '.join(reasons)}"
        images = ", ".join(sorted(set(own.images) - {""}))
        n = int(alive.n.min()) if len(alive) else 0
        rows.append([*key, counts(own.state), n, images, found])
    found = pd.DataFrame(rows, columns=COLUMNS)
    place = list(STATEMENTS).index
    return found.sort_values("claim", key=lambda c: c.map(place), kind="stable", ignore_index=True)


def shown_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells for a reader: those that were run, numbers as text, their interval as one column."""
    run = cells[cells.state != NOT_RUN].reset_index(drop=True)
    ends = ("mean", "lower", "upper", "printed")
    mean, lower, upper, printed = (run[name].map(_number).astype(str) for name in ends)
    table = run[["claim", "profile", "dataset", "reading"]].assign(
        cell=run["name"],
        asked=run.kind,
        n=run.n,
        measured=mean,
        interval=("[" + lower + ", " + upper + "]").where(lower != "", ""),
        printed=printed,
        state=run.state,
    )
    return table.drop(columns=[] if (table.reading != "").any() else ["reading"])


def _number(value: float) -> str:
    """With its sign; two digits behind the point, three where it is small; empty for none."""
    if np.isnan(value):
        return ""
    text = half_up(value, 3 if abs(value) < 0.995 else 2)
    return text if text.startswith("-") else f"+{text}"
