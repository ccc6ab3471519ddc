"""Which first scale of batch norm the AL2 paper's numbers speak for.

From the runs of `lib.study.experiments.norm_scales`.
"""

import pandas as pd

from lib.study.tables import (
    AL2_TABLES,
    CELL,
    DIVERGED,
    at_published_epochs,
    mean_and_sd,
    published,
)
from lib.study.tables.sensitivity import UNIFORM

SCALES = {"ones": "γ = 1", "uniform": UNIFORM}  # how a run's `bn_gamma` is called
KEYS = ["profile", "dataset", "corruption", "al2", "scale"]
METRICS = ["test_accuracy", "cross_entropy", "activation_l2", "ablation_auc"]


def runs_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the study and a column `scale`.

    Args:
        frame: as `lib.store.load` gives it, of one profile or several.
    """
    rows = frame
    return rows.assign(scale=rows.bn_gamma.map(SCALES) if len(rows) else [])


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """The paper's metrics of batch norm by first scale, at the paper's epochs, beside the printed.

    Args:
        frame: as for `runs_of`.

    Returns:
        one row per profile, dataset, corruption, al2, metric, epoch (the paper's) and scale:
        epoch_measured, measured (mean over n seeds, or "diverged"), sd, n, precision, published
        (empty where the paper prints nothing).

    Raises:
        ValueError: if runs of one row differ in more than the seed.
    """
    runs = runs_of(frame)
    parts = [at_published_epochs(pd.DataFrame(), METRICS).assign(scale=[])]
    for scale, own in runs.groupby("scale") if len(runs) else []:
        parts.append(at_published_epochs(own, METRICS).assign(scale=scale))
    paper = pd.concat(map(published, AL2_TABLES)).rename(columns={"value": "published"})
    found = pd.concat([part for part in parts if len(part)] or parts)
    found = found.assign(al2=found.regulariser == "al2")
    found = found.merge(
        paper.drop(columns="al2"), on=[*CELL, "epoch", "metric"], how="left"
    ).sort_values(KEYS, kind="stable", ignore_index=True)
    return found.reindex(
        columns=[
            *KEYS,
            "epoch",
            "metric",
            "epoch_measured",
            "measured",
            "sd",
            "n",
            "precision",
            "published",
        ]
    )


def beside(table: pd.DataFrame) -> pd.DataFrame:
    """`table` for reading.

    One row per network, metric and what is published or a scale gave, a column an epoch of the
    paper's.

    Args:
        table: of one profile, data set and corruption level.

    Returns:
        texts, mean ± sd where there are several seeds.
    """
    names = ["network", "metric", "of"]
    cells = []
    for row in table.assign(network=table.al2.map({False: "BN", True: "BN+AL2"})).itertuples():
        cell = (row.network, row.metric)
        cells.append((*cell, "published", row.epoch, _text(row.published)))
        cells.append((*cell, row.scale, row.epoch, _text(row.measured, row.sd)))
    shown = pd.DataFrame(cells, columns=[*names, "epoch", "text"]).drop_duplicates(
        [*names, "epoch"]
    )
    wide = shown.pivot(index=names, columns="epoch", values="text")
    order = {name: place for place, name in enumerate([*METRICS, "published", *SCALES.values()])}
    return wide.sort_index(key=lambda level: level.map(lambda name: order.get(name, name)))


def nearer(table: pd.DataFrame) -> tuple[int, int]:
    """At how many of the published numbers γ ~ U(0, 1) is nearer to the paper than γ = 1.

    And of how many (both measured).

    Compared in the metric's own unit, L_r by its ratio, since it spans orders of magnitude: one
    printed as 0.0000 has none.
    """
    keys = ["al2", "epoch", "metric"]
    measured = table[table.published.notna() & (table.measured != DIVERGED)]
    measured = measured[(measured.metric != "activation_l2") | (measured.published > 0)]
    ratio = measured.metric == "activation_l2"
    distance = (measured.measured.astype(float) - measured.published).abs()
    distance[ratio] = (measured.measured[ratio].astype(float) / measured.published[ratio]).map(
        lambda r: max(r, 1 / r)
    )
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
