"""Both penalties under both tests (the project's own extension).

What is read out of the runs of `lib.study.experiments.combined`.

The label-randomisation test of the AL2 paper is called *memorisation* here, the overfitting test of
the targeted-sparsity paper *overfitting*. Entropies are a share of their largest value, ln D, in %,
so that layers can be compared.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from lib import measures, models
from lib.data import noise_floor
from lib.losses import filter_layers
from lib.study.tables import DIVERGED, mean_and_sd

METHODS = ("none", "AL2", "SparsityReg", "both")
CONTROL = "none, true labels"  # the AL2 CNN without penalty on true labels
KEYS = ["profile", "test", "dataset", "method", "seed"]
TURNED = 2.0  # points of test accuracy below the peak at which a curve has turned
FALLEN = 5.0  # % of ln D below its highest value so far at which a layer's entropy has fallen


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows and three columns: `test`, `method` and `epochs_read`.

    `test` is memorisation or overfitting, `method` one of `METHODS`, or `CONTROL`.

    As far as every network of a test, data set and profile was trained: some go on for longer in
    other notebooks.
    """
    if frame.empty:
        return frame.assign(test="", method="", epochs_read=0)
    al2 = frame.al2.astype(bool)
    sparsity = frame.sparsity.fillna("") != ""
    noisy = frame.network == "al2_cnn"
    names = np.select(
        [al2 & sparsity, al2, sparsity, noisy & (frame.corruption == 0)],
        ["both", *METHODS[1:3], CONTROL],
        "none",
    )
    rows = frame.assign(test=np.where(noisy, "memorisation", "overfitting"), method=names)
    rows["epochs_read"] = rows.groupby(["profile", "test", "dataset"]).epochs.transform("min")
    # a run that diverged at once has a row without epoch
    return rows[~(rows.epoch > rows.epochs_read)].reset_index(drop=True)


@lru_cache
def filters(network: str) -> dict[str, int]:
    """Filters of a network's hidden layers by name, in order."""
    with torch.device("meta"):
        model = models.architecture(network, 3, 32, 10)
    return {name: len(filter_layers(model)[name].weight) for name in measures.hidden_layers(model)}


def entropy(run: pd.DataFrame, layer: str) -> pd.Series:
    """Mean entropy of a layer in % of ln D by epoch; empty if not measured.

    It goes from 0 (before training) where the frame has it.

    Args:
        run: rows of one run, as `lib.store.load` gives them.
        layer: its name in the network.
    """
    if f"entropy {layer}" not in run:
        return pd.Series(dtype=float)
    values = run.set_index("epoch")[f"entropy {layer}"].dropna().sort_index()
    return 100 * values / np.log(filters(run.network.iloc[0])[layer])


def fall_epoch(curve: pd.Series, by: float = FALLEN) -> int | None:
    """The first epoch at which a curve lies `by` or more below its highest value so far.

    None where there is none.

    It looks at the past alone, so that it could be used while a network trains.
    """
    fallen = curve.cummax() - curve >= by
    return int(fallen.idxmax()) if fallen.any() else None


def turn(accuracies: Sequence[float]) -> int | None:
    """The epoch, counted from 1, of the highest test accuracy, smoothed with σ = 2 epochs.

    None unless the accuracy ends `TURNED` points lower.
    """
    curve = measures.smoothed(accuracies)
    return int(curve.argmax()) + 1 if len(curve) and curve.max() - curve[-1] >= TURNED else None


def of_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per run.

    Args:
        rows: as `labelled` gives them, of one corruption level.

    Returns:
        profile, test, dataset, method, seed; `final` and `best`: test accuracy in %, `best_epoch`
        the first such epoch; `cross_entropy`: of the training images, at the end; `turn`: the epoch
        from which on things get worse, of accuracy (memorisation, see `turn`) or of the validation
        loss (overfitting, see `measures.overfitting_onset`); `crossing`: the first epoch with a
        training cross-entropy below the noise floor (memorisation). Missing epochs are NaN, and so
        are all values of a run whose loss became NaN within the epochs read; `diverged` says at
        which epoch.

    Raises:
        ValueError: where several runs are one method and seed: of several levels, networks or
            settings.
    """
    found = []
    for keys, run in rows.groupby(KEYS, sort=False):
        if run.id.nunique() > 1:
            names = ", ".join(f"{name} {value}" for name, value in zip(KEYS, keys, strict=True))
            raise ValueError(
                f"{run.id.nunique()} runs are {names}; give rows of one corruption level, network "
                "and setting"
            )
        run = run.sort_values("epoch")
        values = dict(zip(KEYS, keys, strict=True)) | {"diverged": run.diverged.iloc[0]}
        if not values["diverged"] <= run.epochs_read.iloc[0]:
            best = run.loc[run.test_accuracy.idxmax()]
            values |= {
                "diverged": np.nan,
                "final": run.test_accuracy.iloc[-1],
                "best": best.test_accuracy,
            }
            values |= {"best_epoch": int(best.epoch), "cross_entropy": run.cross_entropy.iloc[-1]}
            if values["test"] == "memorisation":
                floor = noise_floor(run.corruption.iloc[0], int(run.num_classes.iloc[0]))
                values |= {
                    "turn": turn(run.test_accuracy),
                    "crossing": run.epoch[run.cross_entropy < floor].min(),
                }
            else:
                values["turn"] = measures.overfitting_onset(run.test_cross_entropy)
        found.append(values)
    columns = [
        *KEYS,
        "final",
        "best",
        "best_epoch",
        "cross_entropy",
        "turn",
        "crossing",
        "diverged",
    ]
    return pd.DataFrame(found).reindex(columns=columns).astype(dict.fromkeys(columns[5:], float))


def of_layers(rows: pd.DataFrame, by: float = FALLEN) -> pd.DataFrame:
    """One row per run and layer: how far entropy falls, when, and how long before things get worse.

    Args:
        rows: as `labelled` gives them.
        by: see `fall_epoch`.

    Returns:
        the columns of `of_runs` and `layer`; `highest`, `last`: entropy in % of ln D; `fallen`: the
        epoch at which it has fallen by `by`; `lead`: `turn` − `fallen`, in epochs, positive where
        entropy falls first. All of these are NaN for a run whose loss became NaN within the epochs
        read, as in `of_runs`: its curve ends too early to be compared.
    """
    found = []
    for keys, run in rows.groupby(KEYS, sort=False):
        for layer in filters(run.network.iloc[0]):
            curve = entropy(run, layer)
            if len(curve):
                found.append([*keys, layer, curve.max(), curve.iloc[-1], fall_epoch(curve, by)])
    layers = pd.DataFrame(found, columns=[*KEYS, "layer", "highest", "last", "fallen"]).astype(
        {"fallen": float}
    )
    table = of_runs(rows).merge(layers, on=KEYS)
    table.loc[table.diverged.notna(), ["highest", "last", "fallen"]] = np.nan
    return table.assign(lead=table.turn - table.fallen)


def accuracies(runs: pd.DataFrame) -> pd.DataFrame:
    """Final and best test accuracy in % as text, mean ± standard deviation over the n seeds.

    There is one row per test and method.

    Args:
        runs: as `of_runs` gives them.
    """
    rows = []
    for keys, own in runs.groupby(KEYS[:4], sort=False):
        diverged = own.final.isna().any()
        rows.append(
            [
                *keys,
                *(
                    DIVERGED if diverged else mean_and_sd(own[name].mean(), own[name].std())
                    for name in ("final", "best")
                ),
                len(own),
            ]
        )
    return pd.DataFrame(rows, columns=[*KEYS[:4], "final", "best", "n"])


def gains(runs: pd.DataFrame) -> pd.DataFrame:
    """What each method adds to the final accuracy of "none", in points, one row per seed.

    `sum`: AL2's and SparsityReg's together.

    Columns profile, test, dataset, seed, AL2, SparsityReg, sum, both; NaN where a run is missing or
    diverged.
    """
    final = runs.pivot(
        index=["profile", "test", "dataset", "seed"], columns="method", values="final"
    )
    final = final.reindex(columns=list(METHODS))
    gained = final[list(METHODS[1:])].sub(final["none"], axis=0)
    gained.insert(2, "sum", gained.AL2 + gained.SparsityReg)
    return gained.rename_axis(columns=None).reset_index()
