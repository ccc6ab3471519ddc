"""Which reading of DecorrReg (targeted sparsity, Eq. 6 and 7) is used.

It is a rule, fixed before any of them was trained.

A reading *breaks* the training if the mean cross-entropy of the last epoch, on the training images,
is more than 5 % above sr2Net's or the loss became NaN. Of those that do not, the three with the
lowest root mean square correlation in conv1 after a few epochs are trained to the end, and the one
with the lowest then, that does not break by the same rule, is chosen. Where all break, it is the
one with the least excess. Accuracy is not looked at.
"""

import numpy as np
import pandas as pd

BREAKS = 5.0  # % of cross-entropy above sr2Net's
PLAIN = "none (sr2Net)"


def readings(frame: pd.DataFrame, epochs: int) -> pd.DataFrame:
    """What each reading did to sr3Net after so many epochs, beside sr2Net; best first.

    Args:
        frame: as `lib.store.load` gives it, of sr2Net and sr3Net of one data set, size and seed,
            each trained for `epochs`.
        epochs: their length.

    Returns:
        by reading, "centre/pairs/reduce" and `PLAIN`: `correlation` (root mean square in conv1),
        `cross_entropy` (of the last epoch, training mode), `excess` (% above sr2Net's; infinite
        where the loss became NaN), `breaks`.

    Raises:
        ValueError: for a frame without an sr2Net of that length, or with several runs of one
            reading.
    """
    runs = frame[(frame.epochs == epochs) & frame.variant.isin(["sr2Net", "sr3Net"])]
    last = runs.sort_values("epoch").groupby("id").tail(1)
    names = last[["decorrelation_centre", "decorrelation_pairs", "decorrelation_reduce"]].agg(
        "/".join, axis=1
    )
    last = last.assign(reading=names.where(last.variant == "sr3Net", PLAIN)).set_index("reading")
    if last.index.has_duplicates:
        twice = ", ".join(sorted(set(last.index[last.index.duplicated()])))
        raise ValueError(
            f"there are several runs of {twice}: give those of one seed, strength and reading of "
            "SparsityReg"
        )
    if PLAIN not in last.index:
        raise ValueError(
            f"there is no sr2Net of {epochs} epochs among the runs: the readings are compared with "
            "it"
        )
    table = last[["correlation conv1", "cross_entropy"]].rename(
        columns={"correlation conv1": "correlation"}
    )
    excess = 100 * (table.cross_entropy / table.cross_entropy[PLAIN] - 1)
    table["excess"] = excess.where(last.diverged.isna(), np.inf)
    table["breaks"] = ~(table.excess <= BREAKS)
    return table.sort_values(["breaks", "correlation"])


def best_readings(table: pd.DataFrame, count: int = 1) -> list[str]:
    """The first `count` readings by the rule.

    Those that do not break, by correlation, then the others, by excess.
    """
    own = table.drop(index=PLAIN)
    whole = own[~own.breaks].sort_values("correlation")
    broken = own[own.breaks].sort_values("excess")
    return [*whole.index, *broken.index][:count]
