"""Which first scale of batch norm the AL2 paper's numbers speak for: from the runs of `lib.studies.norm_scales`."""

import pandas as pd

from lib.run import PAPER_EPOCHS, epoch_measured
from lib.tables import AL2_TABLES, CELL, DIVERGED, at_published_epochs, mean_and_sd, of_notebook, published
from lib.tables.options import UNIFORM

SCALES = {"ones": "γ = 1", "uniform": UNIFORM}  # how a run's `bn_gamma` is called
KEYS = ["profile", "dataset", "corruption", "al2", "scale"]
METRICS = ["test_accuracy", "cross_entropy", "activation_l2", "ablation_auc"]


def runs_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the study and two columns: `scale`, and `length`, the epochs of the longest training beside it.

    Args:
        frame: as `lib.store.load` gives it, of one profile or several.
    """
    rows = of_notebook(frame, "16_al2_norm_scale")
    if rows.empty:
        return rows.assign(scale=[], length=[])
    length = rows.groupby(["profile", "dataset", "corruption"]).epochs.transform("max")
    return rows.assign(scale=rows.bn_gamma.map(SCALES), length=length)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """The paper's metrics of batch norm by first scale, at those of its epochs that a training reaches, beside the printed.

    A training of one scale may stop early, on the λ of the longer one, whose last epoch stands for the paper's 700.

    Args:
        frame: as for `runs_of`.

    Returns:
        a row a profile, dataset, corruption, al2, metric, epoch (the paper's) and scale: epoch_measured, measured (mean over n
        seeds, or "diverged"), sd, n, precision, published (empty where the paper prints nothing).

    Raises:
        ValueError: if runs of one row differ in more than the seed.
    """
    runs, parts = runs_of(frame), [at_published_epochs(pd.DataFrame(), METRICS).assign(scale=[])]
    for (*_, scale), own in runs.groupby(["profile", "dataset", "corruption", "scale"]) if len(runs) else []:
        length = min(int(own.length.iloc[0]), PAPER_EPOCHS)
        reached = [e for e in range(100, PAPER_EPOCHS + 1, 100) if epoch_measured(e, length) <= own.epochs.min()]
        parts.append(at_published_epochs(own, METRICS, reached, length).assign(scale=scale))
    paper = pd.concat(map(published, AL2_TABLES)).rename(columns={"value": "published"})
    found = pd.concat([part for part in parts if len(part)] or parts)
    found = found.merge(paper, on=[*CELL, "epoch", "metric"], how="left").sort_values(KEYS, kind="stable", ignore_index=True)
    return found.reindex(columns=[*KEYS, "epoch", "metric", "epoch_measured", "measured", "sd", "n", "precision", "published"])


def beside(table: pd.DataFrame) -> pd.DataFrame:
    """`table` for reading: a row a network, epoch and metric, a column what is published and each scale; mean ± sd of n seeds.

    Only epochs that all scales reach.
    """
    reached = table.groupby("epoch").scale.nunique() == table.scale.nunique()
    shown = table[table.epoch.map(reached)]
    texts = shown.assign(
        network=shown.al2.map({False: "BN", True: "BN+AL2"}),
        text=[_text(row.measured, row.sd) for row in shown.itertuples()],
        published=[_text(value) for value in shown.published],
        order=shown.metric.map(METRICS.index),
    )
    wide = texts.pivot(index=["network", "epoch", "order", "metric", "published"], columns="scale", values="text")
    return wide.reindex(columns=[name for name in SCALES.values() if name in wide]).reset_index().drop(columns="order")


def nearer(table: pd.DataFrame) -> tuple[int, int]:
    """At how many of the published numbers γ ~ U(0, 1) is nearer to the paper than γ = 1, and of how many (both measured).

    Compared in the metric's own unit, L_r by its ratio, since it spans orders of magnitude.
    """
    keys = ["al2", "epoch", "metric"]
    measured = table[table.published.notna() & (table.measured != DIVERGED)]
    ratio = measured.metric == "activation_l2"
    distance = (measured.measured.astype(float) - measured.published).abs()
    distance[ratio] = (measured.measured[ratio].astype(float) / measured.published[ratio]).map(lambda r: max(r, 1 / r))
    wide = measured.assign(distance=distance).pivot(index=keys, columns="scale", values="distance")
    both = wide.reindex(columns=list(SCALES.values())).dropna()
    return int((both[SCALES["uniform"]] < both[SCALES["ones"]]).sum()), len(both)


def _text(value: float | str, sd: float = float("nan")) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "–"
    digits = 4 if abs(value) < 0.1 else 2 if abs(value) < 10 else 1
    return mean_and_sd(value, sd, digits)
