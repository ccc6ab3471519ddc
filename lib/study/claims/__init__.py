"""The papers' claims, judged by stated rules from stored runs: `judge` gives `claims.csv`.

No verdict is typed by hand.
"""

from collections.abc import Callable, Iterable

import pandas as pd
import yaml

from lib import paths
from lib.study.claims import al2 as claims_al2
from lib.study.claims import sparsity as claims_sparsity
from lib.study.claims.verdicts import Judged
from lib.study.tables import (
    CELL,
    SPARSITY_CELL,
    label_randomization_runs,
    of_notebook,
    of_reading,
    one_setting,
    readings_in,
    relabelling_runs,
    sparsity_runs,
)

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
CLAIMS = yaml.safe_load((paths.PUBLISHED / "claims.yaml").read_text())
STATEMENTS = {claim: said["statement"] for claim, said in CLAIMS.items()}
# The runs that a claim is judged by; by its first letter where it has no entry of its own.
RUNS = {
    "A": label_randomization_runs,
    "A6": lambda frame: of_notebook(frame, "12_al2_cca"),
    "A7": lambda frame: of_notebook(frame, "13_al2_schedules"),
    "A9": relabelling_runs,
    "S": sparsity_runs,
}
RULES = claims_al2.RULES | claims_sparsity.RULES
# Claims about SparsityReg: judged for each way in which it joins a batch, since the paper does not
# say which is meant.
OF_A_READING = ("S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10")


def runs_of(claim: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a frame that a claim is judged by."""
    return _selects(claim)(frame)


def _selects(claim: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return RUNS.get(claim, RUNS[claim[0]])


def judge(
    frame: pd.DataFrame, profiles: Iterable[str], only: Iterable[str] = STATEMENTS
) -> pd.DataFrame:
    """A row for each claim, profile and data set it was measured on; columns as in `claims.csv`.

    Claims about SparsityReg have a row for each `reading` of it, "mean" or "sum" over the batch,
    that was trained.

    Args:
        frame: stored runs of the profiles, as `lib.store.load` gives them; may be empty.
        profiles: those the report is about: a claim that none of a profile's runs answers says so.
        only: claims to judge, for example "A6".

    Raises:
        ValueError: if runs of one cell differ in more than the seed (S1–S10: and the length), or
            those of A6, A7, A9 in more than their study varies.
    """
    rows = []
    known = {claim: _selects(claim) for claim in only}
    of_claim = {select: select(frame) for select in known.values()}
    sparse, random = (
        of_claim.get(select, pd.DataFrame()) for select in (sparsity_runs, label_randomization_runs)
    )
    for cell, own in (
        sparse.groupby(["profile", *SPARSITY_CELL, "regularized", "reading"]) if len(sparse) else []
    ):
        one_setting(own, cell)
    for cell, own in random.groupby(["profile", *CELL]) if len(random) else []:
        one_setting(own, cell, but=("seed",))
    for claim, select in known.items():
        statement, runs = STATEMENTS[claim], of_claim[select]
        for profile in profiles:
            own = runs[runs.profile == profile] if len(runs) else runs
            found = _judged(claim, own)
            for (dataset, reading), judged in found.items():
                values = [judged.published, judged.measured, judged.n, judged.rule, judged.verdict]
                rows.append([claim, statement, profile, dataset, reading, *values])
            if not found:
                answers = "" if own.empty else " answers it"
                why = f"not run: no finished run of the profile {profile}{answers}"
                rows.append([claim, statement, profile, "", "", "", "", 0, "", why])
    return pd.DataFrame(rows, columns=COLUMNS)


def _judged(claim: str, runs: pd.DataFrame) -> dict[tuple[str, str], Judged]:
    """What a claim's rule found in the runs of one profile.

    By data set and reading of SparsityReg, where they answer it.
    """
    found = {}
    for dataset, cells in runs.groupby("dataset") if len(runs) else []:
        for reading in readings_in(cells) if claim in OF_A_READING else [""]:
            own = of_reading(cells, reading) if claim in OF_A_READING else cells
            if (judged := RULES[claim](own, dataset)) is not None:
                found[dataset, reading] = judged
    return found
