"""The papers' claims, judged by stated rules from stored runs: `judge` gives `claims.csv`.

A claim is its text in `results/published/claims.yaml` and a function that `verdicts.claim`
registers with the experiments whose runs it reads. No verdict is typed by hand.
"""

from collections.abc import Iterable, Mapping

import pandas as pd
import yaml

from lib import paths, store
from lib.study.claims import al2, sparsity  # noqa: F401  they register their claims
from lib.study.claims.verdicts import CLAIMS, Claim, Judged
from lib.study.tables import of_reading, readings_in

COLUMNS = [
    "claim",
    "statement",
    "profile",
    "dataset",
    "reading",
    "published",
    "measured",
    "n",
    "rule",
    "verdict",
]

# what the papers say, and where
TEXTS = yaml.safe_load((paths.PUBLISHED / "claims.yaml").read_text())
STATEMENTS = {name: said["statement"] for name, said in TEXTS.items()}
if alone := TEXTS.keys() ^ CLAIMS.keys():
    raise ValueError(
        f"of {', '.join(sorted(alone))} there is a text in claims.yaml or a rule, but not both"
    )


def runs_of(claim: str, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows that a claim is judged by, of frames by experiment; empty where there is none."""
    return _selected(CLAIMS[claim], frames)


def _selected(claim: Claim, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    read = [frames[name] for name in claim.experiments if name in frames and len(frames[name])]
    runs = pd.concat(read, ignore_index=True) if read else store.load([])
    return claim.select(runs)


def judge(
    frames: Mapping[str, pd.DataFrame],
    profiles: Iterable[str],
    only: Iterable[str] | None = None,
) -> pd.DataFrame:
    """A row for each claim, profile and data set it was measured on; columns as in `claims.csv`.

    Claims about SparsityReg have a row for each `reading` of it, "mean" or "sum" over the batch,
    that was trained.

    Args:
        frames: by experiment its stored runs of the profiles, as `lib.store.load` gives them; may
            be empty.
        profiles: those the report is about: a claim that none of a profile's runs answers says so.
        only: claims to judge, for example "A6"; None: those that read one of the experiments given.

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
            selected[key] = _selected(claim, frames)
        for profile in profiles:
            own = selected[key][selected[key].profile == profile]
            found = _judged(claim, own)
            for (dataset, reading), judged in found.items():
                values = [judged.published, judged.measured, judged.n, judged.rule, judged.verdict]
                rows.append([name, STATEMENTS[name], profile, dataset, reading, *values])
            if not found:
                answers = "" if own.empty else " answers it"
                why = f"not run: no finished run of the profile {profile}{answers}"
                rows.append([name, STATEMENTS[name], profile, "", "", "", "", 0, "", why])
    return pd.DataFrame(rows, columns=COLUMNS)


def _judged(claim: Claim, runs: pd.DataFrame) -> dict[tuple[str, str], Judged]:
    """What a claim's rule found in the runs of one profile.

    By data set and reading of SparsityReg, where they answer it.
    """
    found = {}
    for dataset, cells in runs.groupby("dataset"):
        for reading in readings_in(cells) if claim.by_reading else [""]:
            own = of_reading(cells, reading) if claim.by_reading else cells
            if (judged := claim.rule(own, dataset)) is not None:
                found[dataset, reading] = judged
    return found
