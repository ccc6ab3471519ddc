"""The papers' claims, judged by stated rules from stored runs: `judge` gives `claims.csv`. No verdict is typed by hand."""

from collections.abc import Iterable

import pandas as pd

from lib import claims_al2, claims_sparsity
from lib.tables import SPARSITY_CELL, label_randomization_runs, one_setting, sparsity_runs

COLUMNS = ["claim", "statement", "profile", "dataset", "published", "measured", "n", "rule", "verdict"]

STATEMENTS = {
    "A1": "AL2 raises the final test accuracy of all four baselines at 75 % corruption",
    "A2": "without AL2, dropout is the best baseline",
    "A3": "dropout lowers L_r one order of magnitude below BN and two below bare and WD; weight decay hardly lowers it",
    "A4": "with AL2 the training cross-entropy stays within 0.14 nats of the noise floor; without (but DO) it ends at ≤ 0.02",
    "A5": "the ablation area agrees with A1, and is larger for DO+AL2 than for DO at epochs 300 and 400",
    "A6": "AL2 changes the course of the representation (canonical correlations)",
    "A7": "results are not sensitive to the schedule while it grows exponentially",
    "A8": "the same at 0, 25 and 50 % corruption and on Fashion-MNIST and CIFAR-10",
    "A9": "the training set can be relabelled by the AL2 network and trained on again",
    "A10": "(ours) at its best epoch plain dropout is above every network with AL2",
    "S1": "without regularisation entropy drops around the moment of overfitting, most in conv3, conv4, fc1",
    "S2": "dropout and batch norm raise entropy",
    "S3": "SparsityReg keeps the validation loss from rising",
    "S4": "sr1–3 and normNet gain with size, vanillaNet hardly",
    "S5": "targeted sr2 is at least as good as sr1 in most trainings; sr3 is best on CIFAR-100 with SGD",
    "S6": "SparsityReg alone gains nothing on size s, LeNet gains .005–.010, sr3-s gains",
    "S7": "AlexNet gains from SparsityReg on all sets",
    "S8": "with Adam entropy falls fast; sr1–3 beat vanilla, not drop or norm; DecorrReg removes conv1's correlations",
    "S9": "with SGD SparsityReg alone does not correlate filters",
    "S10": "on m and xxl with SGD sr1–sr3 beat vanilla, drop and norm",
}
NOT_MEASURED = {
    "A6": "not run: canonical correlations are not measured yet",
    "A7": "not run: other schedules are not part of the profiles yet",
    "A9": "not run: relabelling is not part of the profiles yet",
}
RULES = claims_al2.RULES | claims_sparsity.RULES


def judge(frame: pd.DataFrame, profiles: Iterable[str]) -> pd.DataFrame:
    """A row for each claim, profile and data set it was measured on; columns as in `claims.csv`.

    Args:
        frame: stored runs of the profiles, as `lib.store.load` gives them; may be empty.
        profiles: those the report is about: a claim that none of a profile's runs answers says so.

    Raises:
        ValueError: if runs of one cell differ in more than the seed and the length.
    """
    rows = []
    of_paper = {"A": label_randomization_runs(frame), "S": sparsity_runs(frame)}
    for cell, own in of_paper["S"].groupby(["profile", *SPARSITY_CELL, "regularized"]) if len(of_paper["S"]) else []:
        one_setting(own, cell)
    for claim, statement in STATEMENTS.items():
        runs = of_paper[claim[0]]
        for profile in profiles:
            own = runs[runs.profile == profile] if len(runs) else runs
            if claim in NOT_MEASURED or own.empty:
                why = NOT_MEASURED.get(claim, f"not run: no finished run of the profile {profile}")
                rows.append([claim, statement, profile, "", "", "", 0, "", why])
                continue
            judged = {dataset: RULES[claim](cells, dataset) for dataset, cells in own.groupby("dataset")}
            for dataset, found in judged.items():
                if found is not None:
                    values = [found.published, found.measured, found.n, found.rule, found.verdict]
                    rows.append([claim, statement, profile, dataset, *values])
            if not any(judged.values()):
                rows.append(
                    [
                        claim,
                        statement,
                        profile,
                        "",
                        "",
                        "",
                        0,
                        "",
                        f"not run: no finished run of the profile {profile} answers it",
                    ]
                )
    return pd.DataFrame(rows, columns=COLUMNS)
