"""The papers' claims, judged by stated rules from stored runs: `judge` gives `claims.csv`. No verdict is typed by hand."""

from collections.abc import Iterable

import pandas as pd

from lib import claims_al2, claims_sparsity
from lib.tables import SPARSITY_CELL, label_randomization_runs, of_notebook, one_setting, sparsity_runs

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
# The runs that a claim is judged by; by its first letter where it has no entry of its own.
RUNS = {
    "A": label_randomization_runs,
    "A6": lambda frame: of_notebook(frame, "12_al2_cca"),
    "A7": lambda frame: of_notebook(frame, "13_al2_schedules"),
    "A9": lambda frame: of_notebook(frame, "14_al2_relabel"),
    "S": sparsity_runs,
}
RULES = claims_al2.RULES | claims_sparsity.RULES


def judge(frame: pd.DataFrame, profiles: Iterable[str], only: Iterable[str] = STATEMENTS) -> pd.DataFrame:
    """A row for each claim, profile and data set it was measured on; columns as in `claims.csv`.

    Args:
        frame: stored runs of the profiles, as `lib.store.load` gives them; may be empty.
        profiles: those the report is about: a claim that none of a profile's runs answers says so.
        only: claims to judge, for example "A6".

    Raises:
        ValueError: if runs of one cell differ in more than the seed and the length.
    """
    rows = []
    known = {claim: RUNS.get(claim, RUNS[claim[0]]) for claim in only}
    of_claim = {select: select(frame) for select in known.values()}
    sparse = of_claim.get(sparsity_runs, pd.DataFrame())
    for cell, own in sparse.groupby(["profile", *SPARSITY_CELL, "regularized"]) if len(sparse) else []:
        one_setting(own, cell)
    for claim, select in known.items():
        statement, runs = STATEMENTS[claim], of_claim[select]
        for profile in profiles:
            own = runs[runs.profile == profile] if len(runs) else runs
            if own.empty:
                rows.append(
                    [claim, statement, profile, "", "", "", 0, "", f"not run: no finished run of the profile {profile}"]
                )
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
