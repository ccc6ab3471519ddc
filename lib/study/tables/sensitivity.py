"""Do the differences from the AL2 paper hang on our choices?

What is read out of the runs of `lib.study.experiments.sensitivity`.

A row of these runs belongs to an *option*: `default`, or what alone is changed: the law of the
corruption, the first scale of batch norm, Σ λ_e, or the number of epochs. The *gain* is the final
test accuracy with AL2 − without, by seed.
"""

import numpy as np
import pandas as pd

from lib.run import PAPER_EPOCHS
from lib.schedules import schedule
from lib.study.claims.verdicts import cell_holds, differences
from lib.study.tables import (
    BASELINES,
    DIVERGED,
    at_chance,
    epochs_read,
    mean_and_sd,
    one_setting,
    published,
    weights,
)

DEFAULT, EXACT, UNIFORM = "default", "exact law", "γ ~ U(0, 1)"
HALF_OF_IT = 50  # % of the gap to the paper, from which on an option closes it
CELL = ["profile", "dataset", "corruption"]
ROW = [*CELL, "baseline", "option"]


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the study and three columns: `option`, `against` and `read`.

    Args:
        frame: as `lib.store.load` gives it, of one profile or several.

    Returns:
        `option`: what is changed, see above. `against`: the option whose network without AL2 a gain
        is reckoned from: a series has none of its own, so that of the default. `read`: the epoch
        that counts, the last, but not past the shortest training's, or the paper's 700, where it is
        no whole multiple of that (dropout may go on for Figure 1 of the paper). Half-way through a
        campaign the default's series may not be known; runs of which it cannot be told are left
        out.
    """
    rows = frame
    if rows.empty:
        return pd.DataFrame(
            columns=[
                *rows,
                *(name for name in (*CELL, "option", "against", "read") if name not in rows),
            ]
        )
    return pd.concat(
        [_labelled(own) for _, own in rows.groupby(CELL, sort=False)], ignore_index=True
    )


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """`labelled` of one cell.

    The default is read off the runs: fewest epochs, the series of bare, or of a law or scale.
    """
    shortest = epochs_read(rows)
    times = rows.epochs // shortest
    al2 = rows.al2.astype(bool)
    against = pd.Series(DEFAULT, rows.index)
    against[rows.corruption_law == "exact"] = EXACT
    against[rows.bn_gamma == "uniform"] = UNIFORM
    against = against.where(times == 1, "epochs × " + times.astype(str))
    # options are not combined
    speeds = rows.speed[al2 & (times == 1) & ((rows.baseline == "bare") | (against != DEFAULT))]
    speed = float(speeds.iloc[0]) if len(speeds) else None
    option = against.copy()
    for own in rows.speed[al2 & (against == DEFAULT)].unique():
        total = np.nan if speed is None else _total(own, shortest) / _total(speed, shortest)
        here = al2 & (against == DEFAULT) & (rows.speed == own)
        option[here] = None if np.isnan(total) else DEFAULT if own == speed else f"Σλ × {total:.2g}"
    return rows.assign(option=option, against=against, read=times * shortest)[option.notna()]


def _total(speed: float, epochs: int) -> float:
    return float(schedule("al2", epochs, speed).sum())


def weights_by_option(frame: pd.DataFrame, baseline: str) -> dict[str, np.ndarray]:
    """λ_e [epochs] of a baseline with AL2, by option, the default first.

    Options that leave the series as it is are not listed.

    Args:
        frame: as `labelled` takes it, of one profile, data set and corruption level.
        baseline: whose.
    """
    rows = labelled(frame)
    own = rows[
        rows.al2.astype(bool) & (rows.baseline == baseline) & ~rows.option.isin([EXACT, UNIFORM])
    ].drop_duplicates("option")
    return {
        row.option: weights(row)
        for row in sorted(own.itertuples(), key=lambda row: place_of(row.option))
    }


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """A row an option, baseline and seed: `without` and `with_al2`, `gain`, `dead`.

    The first two are test accuracies in % at the end.

    A value is −∞ where the loss had become NaN by then, and so is its gain. `dead` says which of
    the two networks ends at no more than `lib.study.tables.DEAD` × chance: "without AL2", "with
    AL2", "both", or "". Pairs of which one is not finished are left out.

    Args:
        frame: as `labelled` takes it.

    Raises:
        ValueError: if runs of one option and baseline differ in more than the seed.
    """
    rows = labelled(frame)
    columns = [*ROW, "seed", "without", "with_al2", "gain", "dead"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    for cell, own in rows.groupby([*ROW, "al2"]):
        one_setting(own, cell, but=("seed",))
    finals = rows.drop_duplicates(["profile", "id"])[
        [*ROW, "against", "al2", "seed", "id", "num_classes"]
    ]
    last = rows[rows.epoch == rows.read][["profile", "id", "test_accuracy"]]
    finals = finals.merge(last, how="left").fillna({"test_accuracy": -np.inf})
    with_al2 = finals[finals.al2.astype(bool)].rename(columns={"test_accuracy": "with_al2"})
    plain = finals[~finals.al2.astype(bool)].rename(columns={"test_accuracy": "without"})
    plain = plain[[*CELL, "baseline", "against", "seed", "without"]]
    pairs = with_al2.merge(plain, on=[*CELL, "baseline", "against", "seed"])
    finite = np.isfinite(pairs.with_al2) & np.isfinite(pairs.without)
    pairs["gain"] = (pairs.with_al2 - pairs.without).where(finite, -np.inf)
    dead = [at_chance(pairs[name], pairs.num_classes) for name in ("without", "with_al2")]
    pairs["dead"] = np.select([dead[0] & dead[1], *dead], ["both", "without AL2", "with AL2"], "")
    return _sorted(pairs)[columns].reset_index(drop=True)


def published_gain(dataset: str, corruption: float, baseline: str) -> float:
    """What AL2 adds at the last epoch in the paper's Table 1, in points.

    NaN for a data set or level that it does not print.
    """
    table = published("al2_table1")
    kept = (
        (table.dataset == dataset) & (table.corruption == corruption) & (table.baseline == baseline)
    )
    kept &= (table.epoch == PAPER_EPOCHS) & (table.metric == "test_accuracy")
    values = table[kept].set_index("al2").value
    return float(values[True] - values[False]) if len(values) == 2 else np.nan


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row an option and baseline: accuracy without and with AL2, and the gain.

    And how much of the gap to the paper it closes.

    Args:
        frame: as `labelled` takes it.

    Returns:
        profile, dataset, corruption, baseline, option; n: seeds; `without`, `with_al2` (test
        accuracy in %) and `gain` (points), means over the seeds with their standard deviations
        `…_sd`; `gain_published`; `change`: gain − default gain, mean over the seeds that both have;
        `closed`: change in % of the gap, published gain − default gain of the same seeds, empty
        where the paper prints nothing or its gain is not the larger one; `beyond_seeds`: whether
        the change is beyond the spread of its seeds, by the rule of a cell in
        `lib.study.claims.verdicts`: "more", "less", "no", or "one seed"; `dead`: networks that end
        at no more than `lib.study.tables.DEAD` × chance in any seed. A loss that became NaN is
        "diverged".

    Raises:
        ValueError: as for `gains`.
    """
    pairs = gains(frame)
    rows = []
    for keys, own in pairs.groupby(ROW, sort=False):
        cell = dict(zip(ROW, keys, strict=True))
        default = (
            pairs[(pairs[ROW[:-1]] == list(keys[:-1])).all(axis=1) & (pairs.option == DEFAULT)]
            .set_index("seed")
            .gain
        )
        gain = own.set_index("seed").gain
        row = cell | {
            "n": len(own),
            "gain_published": published_gain(cell["dataset"], cell["corruption"], cell["baseline"]),
        }
        for name in ("without", "with_al2", "gain"):
            lost = not np.isfinite(own[name]).all()
            row[name] = DIVERGED if lost else own[name].mean()
            row[f"{name}_sd"] = np.nan if lost or len(own) < 2 else own[name].std()
        row["dead"] = _networks(own.dead)
        if cell["option"] != DEFAULT:
            row |= _against_default(gain, default, row["gain_published"])
        rows.append(row)
    columns = [
        *ROW,
        "n",
        "without",
        "without_sd",
        "with_al2",
        "with_al2_sd",
        "gain",
        "gain_sd",
        "gain_published",
    ]
    return pd.DataFrame(rows).reindex(
        columns=[*columns, "change", "closed", "beyond_seeds", "dead"]
    )


def answer(table: pd.DataFrame) -> list[str]:
    """Whether an option closes the gap to the paper, in a sentence a baseline.

    The last says where accuracy with AL2 itself is higher.

    An option closes the gap if it makes up half of it or more, if the change is beyond the seeds,
    and if none of its networks ends dead.

    Args:
        table: as `table` gives it, of one profile, data set and corruption level.
    """
    default = table[table.option == DEFAULT]
    changed = table[table.option != DEFAULT]
    said = []
    for baseline, own in changed.groupby("baseline", sort=False):
        if own.gain_published.isna().all():
            words = "the paper prints no number for this data set and level"
        elif own.closed.isna().all():
            words = "there is no gap that could be closed, or no run to say so"
        else:
            closing = own[
                (own.closed >= HALF_OF_IT) & (own.beyond_seeds == "more") & (own.dead == "")
            ]
            options = ", ".join(closing.option) or "none of the options tried"
            words = f"closed at least by half by: {options}"
            if set(own.beyond_seeds) == {"one seed"}:
                words += " (one seed: nothing can be beyond its spread)"
        said.append(f"{BASELINES[baseline]}: {words}")
    alone = default.set_index("baseline").with_al2
    finite = [
        row
        for row in changed.itertuples()
        if DIVERGED not in (row.with_al2, alone.get(row.baseline, DIVERGED))
    ]
    higher = [
        f"{BASELINES[row.baseline]} {row.option}"
        for row in finite
        if row.with_al2 > alone[row.baseline]
    ]
    return [*said, f"Higher accuracy with AL2 than by default: {', '.join(higher) or 'none'}"]


def _against_default(gain: pd.Series, default: pd.Series, wanted: float) -> dict[str, object]:
    change = differences(gain, default)
    if change.empty:
        return {"beyond_seeds": "not run: no seed of the default"}
    if not np.isfinite(change).all():
        return {"change": DIVERGED, "beyond_seeds": DIVERGED}
    gap = wanted - default[change.index].mean()
    more = cell_holds(change)
    less = cell_holds(-change)
    beyond = "one seed" if more is None else "more" if more else "less" if less else "no"
    return {
        "change": change.mean(),
        "closed": 100 * change.mean() / gap if gap > 0 else np.nan,
        "beyond_seeds": beyond,
    }


def _networks(dead: pd.Series) -> str:
    """One word for several seeds."""
    words = set(dead) - {""}
    return "both" if len(words) > 1 else next(iter(words), "")


def _sorted(pairs: pd.DataFrame) -> pd.DataFrame:
    """By cell, then baselines as the paper prints them, then options.

    Options are in the order default, laws, scale, Σλ upwards, epochs.
    """

    def key(column: pd.Series) -> pd.Series:
        if column.name == "baseline":
            return column.map(list(BASELINES).index)
        if column.name == "option":
            return column.map(place_of)
        return column

    return pairs.sort_values([*ROW, "seed"], key=key, kind="stable")


def place_of(option: str) -> float:
    """The place of an option among all: default, laws, scale, Σλ upwards, epochs upwards."""
    kinds = [DEFAULT, EXACT, UNIFORM]
    if option in kinds:
        return kinds.index(option)
    factor = float(option.split("×")[1])
    return 10**6 + 3 + factor if option.startswith("epochs") else 3 + factor


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`table` as text for reading: accuracies and gains as mean ± standard deviation.

    It has – where there is nothing.
    """

    def spread(row: pd.Series, name: str, digits: int = 1, sign: str = "") -> str:
        value = row[name]
        if pd.isna(value):
            return "–"
        if isinstance(value, str):
            return value
        return (sign if value >= 0 else "") + mean_and_sd(
            value, row.get(f"{name}_sd", np.nan), digits
        )

    def texts(row: pd.Series) -> dict[str, object]:
        named = {"network": BASELINES[row.baseline], "option": row.option, "n": row.n}
        named["accuracy (%)"] = f"{spread(row, 'without')} → {spread(row, 'with_al2')}"
        named["gain"] = spread(row, "gain", sign="+")
        named["published gain"] = spread(row, "gain_published", sign="+")
        named["change"] = spread(row, "change", sign="+")
        named["gap closed (%)"] = spread(row, "closed", 0)
        named["beyond the seeds"] = "–" if pd.isna(row.beyond_seeds) else row.beyond_seeds
        return named | {"at chance": row.dead or "–"}

    return pd.DataFrame([texts(row) for _, row in table.iterrows()])
