"""The tables of `make bench` and `make precision`: how they follow from rates, and are compared.

Pandas alone, so that who reads them does not import what measures.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

EPOCH = 60000  # images
SETTINGS = ["processes", "threads", "workers", "networks", "batch"]
KEY = ["part", "what", *SETTINGS]
COLUMNS = [*KEY, "median", "low", "high", "rounds", "unit"]
RATE = "images/s"
HOURLY = "epochs·networks/h"
FACTOR = "× best DataLoader"
SHARE = "% of the floor"
# in the order in which they are shown; stored tables have stacked networks, which are not measured
# any more
PARTS = ("DataLoader", "tensors", "stacked", "ours", "floor")
OURS = "ours, AL2"
HALF = "ours, AL2, bfloat16"
LOADING = "DataLoader and transforms"  # an entry of a profile
Rates = Mapping[Any, Sequence[float]]  # of a `cpu.Row`, one a round


def tidy(about: Mapping[str, Any], values: Sequence[float], unit: str) -> pd.DataFrame:
    """One row: median and range of the rounds' values."""
    found = pd.Series(values, dtype=float)
    measured = {"median": found.median(), "low": found.min(), "high": found.max()}
    measured |= {"rounds": len(found), "unit": unit}
    return pd.DataFrame([dict.fromkeys(SETTINGS, 0) | about | measured])


def derive(rates: Rates, flop: float) -> pd.DataFrame:
    """Rates as a table: images, epochs, share of the floor, factor of the best DataLoader loop.

    All go by rounds. The floor is the fastest matrix product, divided by the operations of an image
    (`flop`): the images it would suffice for. Fastest and best are those of the largest median.

    Args:
        rates: images × networks a second of each round; of the floor's rows operations a second.
    """
    speeds = {
        row: [value / (flop if row.part == "floor" else 1) for value in found]
        for row, found in rates.items()
    }
    floor = fastest(speeds, "floor")
    best = fastest(speeds, "DataLoader")
    parts = []
    for row, found in speeds.items():
        about = {name: getattr(row, name) for name in KEY}
        if row.part == "floor":
            parts.append(tidy(about, [value / 1e9 for value in rates[row]], "GFLOP/s"))
        parts.append(tidy(about, found, RATE))
        parts.append(tidy(about, [value * 3600 / EPOCH for value in found], HOURLY))
        parts.append(tidy(about, ratios(found, speeds[floor], 100), SHARE))
        parts.append(tidy(about, ratios(found, speeds[best]), FACTOR))
    return pd.concat(parts, ignore_index=True)


def fastest(rates: Rates, part: str) -> Any:
    """The row of the largest median in a part."""
    return max((row for row in rates if row.part == part), key=lambda row: median(rates[row]))


def ratios(values: Sequence[float], others: Sequence[float], times: float = 1) -> list[float]:
    """Quotients, round by round."""
    return [times * value / other for value, other in zip(values, others, strict=True)]


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are compared, with all cores and the study's batch, one per way.

    Of the floor only the fastest product is kept.

    Returns:
        the units' medians by name; `low` and `high` of epochs·networks an hour; `factor low` and
        `factor high` of the factor.
    """
    chosen = table[table.groupby(KEY)["unit"].transform(lambda units: FACTOR in set(units))]
    values = ["median", "low", "high"]
    wide = chosen.pivot_table(index=KEY, columns="unit", values=values, sort=False)
    found = wide["median"].reset_index()
    for edge in ("low", "high"):
        found[edge] = wide[edge][HOURLY].to_numpy()
        found[f"factor {edge}"] = wide[edge][FACTOR].to_numpy()
    floor = found[found.part == "floor"]
    found = found.drop(floor.index.difference([floor[HOURLY].idxmax()]))
    found = found.sort_values("part", key=lambda parts: parts.map(PARTS.index), kind="stable")
    return found.reset_index(drop=True)


def best_loader(found: pd.DataFrame) -> pd.Series:
    """The best DataLoader loop among the rows of `compared`."""
    loops = found[found.part == "DataLoader"]
    return loops.loc[loops[HOURLY].idxmax()]


def spreads(curves: pd.DataFrame, curve: str = "test_accuracy") -> pd.DataFrame:
    """How far curves of two precisions and several seeds lie apart, one row per network.

    Root mean squares over epochs, and a difference at the last epoch.

    Returns:
        `seeds`: between two float32 trainings of different seeds; `precisions`: between the two
        precisions of one seed; `last`: bfloat16 less float32 at the last epoch, mean over seeds;
        `last_sd`: of the float32 seeds there; all in the curve's unit. `within`: whether
        `precisions` is below `seeds` and |last| at most 2·last_sd·√(2/n), what chance makes of the
        means of n seeds; not where a training is missing or ended early, as one that diverged.

    Raises:
        ValueError: for fewer than two seeds.
    """
    if curves.seed.nunique() < 2:
        raise ValueError(f"there is {curves.seed.nunique()} seed; a spread needs two at least")
    rows = []
    for network, own in curves.groupby("network", sort=False):
        wide = own.pivot(index="epoch", columns=["precision", "seed"], values=curve)
        single = wide["float32"]
        apart = wide["bfloat16"] - single
        n = single.shape[1]
        # twice the variance is the mean square of the difference of two seeds
        row = {"network": network, "seeds": (2 * single.var(axis=1)).mean() ** 0.5}
        row |= {"precisions": apart.pow(2).mean(axis=1).mean() ** 0.5}
        row |= {"last": apart.iloc[-1].mean(), "last_sd": single.iloc[-1].std(), "n": n}
        unbiased = abs(row["last"]) <= 2 * row["last_sd"] * (2 / n) ** 0.5
        whole = apart.notna().all(axis=None)
        rows.append(row | {"within": row["precisions"] < row["seeds"] and unbiased and whole})
    return pd.DataFrame(rows)
