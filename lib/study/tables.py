"""Published beside measured: tables drawn from stored runs alone. Nothing here trains."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib import measures, paths
from lib.losses import BATCHES
from lib.run import PAPER_EPOCHS, SCREENING_SEED, TABLE_EPOCHS, Run, epoch_measured
from lib.schedules import schedule
from lib.study.experiments import FOUR_BASELINES, PAPER_SPARSITY_WEIGHT, VARIANTS

BASELINES = dict(zip(FOUR_BASELINES, ("Bare", "BN", "DO", "WD"), strict=True))
# what a row of the AL2 paper's tables is about
CELL = ["dataset", "corruption", "baseline", "regulariser"]
# what a cell of the other paper's Table 2 is about
SPARSITY_CELL = ["dataset", "size", "optimizer", "network"]
SPARSITY_TABLES = {
    "sparsity_table2": SPARSITY_CELL,
    "sparsity_table3": ["dataset", "network", "regularized"],
}
SIZES = ("s", "m", "xxl")  # of the ConvNets, in the order of the paper's Table 2
SPARSITY_EPOCHS = 100  # the length at which that paper's tables are read
AL2_TABLES = {
    "al2_table1": ["test_accuracy", "cross_entropy", "activation_l2"],
    "al2_table2": ["ablation_auc"],
}
# networks of the relabelling, see `relabelling_runs`: their name in figures, and in words what they
# were trained on
RELABELLED = {
    "noisy": ("Bare, noisy labels", "on the noisy labels"),
    "teacher": ("Bare+AL2, noisy labels: predicts AL2's labels", "on them with AL2"),
    "al2": ("Bare, AL2's labels", "on AL2's labels"),
    "bare": ("Bare, the labels that Bare predicts", "on its own labels"),
    "clean": ("Bare, clean labels", "on the true labels"),
}
FOUND = ["measured", "sd", "n", "precision"]  # what a table says of a cell's runs
DIVERGED, NOT_RUN = "diverged", "not run"
UNSAID = "cannot be said: not measured, or diverged"
# × chance: at or below it a network counts as dead, since it predicts one class whatever it is
# shown
DEAD = 2
MARGIN = 0.14  # nats below the noise floor from which on a network counts as memorising


class NothingToShow(ValueError):
    """No run has what a table or figure is about; the message says what."""


def require(there: Any, what: str) -> Any:
    """What is there, if anything is.

    Raises:
        NothingToShow: if it is empty, saying that there is no `what`.
    """
    if not len(there):
        raise NothingToShow(f"not shown: no {what}")
    return there


def above(one: float, other: float, by: float = 0) -> bool | str:
    """Whether `one` is more than `by` above `other`; in words where either is NaN."""
    return UNSAID if np.isnan(one - other) else bool(one > other + by)


def published(name: str) -> pd.DataFrame:
    """A published table as tidy CSV, for example "al2_table1"; its source is the file's name.

    Raises:
        ValueError: for an unknown name; the message lists those there are.
    """
    there = {file.stem: file for file in sorted(paths.PUBLISHED.glob("*.csv"))}
    if name not in there:
        raise ValueError(f"no published table {name!r}; there are {', '.join(there)}")
    return _read(there[name], there[name].stat().st_mtime_ns).copy()


@lru_cache
def _read(file: Path, changed: int) -> pd.DataFrame:
    """A table by its file, and when that changed: rules look up hundreds of numbers."""
    return with_regulariser(pd.read_csv(file))


def printed(name: str, column: str, **where: Any) -> float:
    """A published table's number in the row where columns have these values; NaN: there is none."""
    table = published(name)
    there = np.logical_and.reduce([table[key].to_numpy() == value for key, value in where.items()])
    return float(table[column].to_numpy()[there][0]) if there.any() else np.nan


def with_regulariser(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the column `regulariser`, see `Run.regulariser`.

    Stored runs have it; published tables get it from `al2`: "al2" or "".
    """
    if "regulariser" in frame or "al2" not in frame:
        return frame
    return frame.assign(regulariser=np.where(frame.al2.astype(bool), "al2", ""))


def regularisers_in(frame: pd.DataFrame) -> list[str]:
    """The regularisers of Table 1 in their order: none, AL2, then whatever else the frame has."""
    return list(dict.fromkeys(["", "al2", *with_regulariser(frame).regulariser]))


def relabelling_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the bare networks of the relabelling (AL2, section 4; claim A9).

    A column `labels` says what taught each. noisy: the corrupted labels. al2, bare: the labels that
    bare+AL2, or bare, predicts at its end, having been trained on the noisy ones. clean: the true
    labels. The network bare+AL2 itself, trained on the noisy labels, is called teacher.
    """
    rows = frame[(frame.network == "al2_cnn") & (frame.baseline == "bare")]
    with_al2 = rows.al2.astype(bool)
    noisy = rows.relabelled_by.isna() & (rows.corruption > 0)
    # NaN: relabelled by no network of these
    of_al2 = rows.relabelled_by.map(with_al2.groupby(rows.id).first())
    labels = pd.Series("", rows.index)
    labels[noisy] = "noisy"
    labels[noisy & with_al2] = "teacher"
    labels[~with_al2 & of_al2.eq(True)] = "al2"
    labels[~with_al2 & of_al2.eq(False)] = "bare"
    labels[~with_al2 & rows.relabelled_by.isna() & (rows.corruption == 0)] = "clean"
    return rows.assign(labels=labels)[labels != ""]


def epochs_read(runs: pd.DataFrame) -> int:
    """How many epochs of each run are read: those of the shortest, at most the paper's 700.

    Args:
        runs: of the networks that are compared: one profile, data set and level.
    """
    return int(min(runs.epochs.min(), PAPER_EPOCHS))


def precisions(runs: pd.DataFrame) -> str:
    """In what runs compute their products, "bfloat16, float32" of a mixture; "": not known."""
    return ", ".join(sorted(runs.precision.dropna().unique())) if "precision" in runs else ""


def at_published_epochs(
    frame: pd.DataFrame, metrics: Sequence[str], epochs: Sequence[int] = ()
) -> pd.DataFrame:
    """Mean, standard deviation and number of runs of a tidy frame's metrics at the paper's epochs.

    Args:
        frame: as `lib.store.load` gives it, of one profile or several. Longer trainings are read as
            far as `epochs_read` of their profile, data set and level.
        metrics: columns of the frame.
        epochs: the paper's epochs, of 700; default 100, 200, … 700.

    Returns:
        columns profile, dataset, corruption, baseline, regulariser, epoch, metric, epoch_measured,
        measured, sd, n, precision. `measured` is the text "diverged" where the loss of a run had
        become NaN by then; `sd` is empty for n = 1.
    """
    rows = []
    by_level = frame.groupby(["profile", "dataset", "corruption"])
    lengths = {level: epochs_read(runs) for level, runs in by_level}
    for keys, cell in frame.groupby(["profile", *CELL], sort=False):
        one_setting(cell, keys, but=("seed",))
        computed_in = precisions(cell)
        for epoch in epochs or TABLE_EPOCHS:
            here = epoch_measured(epoch, lengths[keys[:3]])
            diverged = (cell.diverged <= here).any()
            read = cell[cell.epoch == here].reindex(columns=metrics)
            for metric in metrics:
                values = read[metric].dropna()
                found = [values.mean(), values.std(), len(values)]
                if diverged:
                    found = [DIVERGED, np.nan, cell.id.nunique()]
                rows.append([*keys, epoch, metric, here, *found, computed_in])
    columns = ["profile", *CELL, "epoch", "metric", "epoch_measured", *FOUND]
    return pd.DataFrame(rows, columns=columns)


def beside_published(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """A published AL2 table with what was measured beside it, a row a profile for each of its rows.

    A data set or corruption level that the paper has no number for gets rows of its own, with
    `published` empty; a published row that no run answers has `measured` empty.
    """
    if name not in AL2_TABLES:
        raise ValueError(f"{name!r} is no AL2 table; there are {', '.join(AL2_TABLES)}")
    keys = [*CELL, "epoch", "metric"]
    paper = published(name).rename(columns={"value": "published"}).drop(columns="al2")
    measured = at_published_epochs(frame, AL2_TABLES[name])
    table = paper.merge(measured[measured.measured.notna()], on=keys, how="outer")
    table = table.assign(dataset_measured=table.dataset.where(table.profile.notna()))
    columns = [*keys, "profile", "dataset_measured", "epoch_measured", "published", *FOUND]
    return table[columns].sort_values(
        ["dataset", "corruption", "profile", "baseline", "regulariser", "metric", "epoch"]
    )


def sparsity_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a tidy frame that Tables 2 and 3 of the targeted-sparsity paper are about.

    Clean labels, no AL2, the networks of `lib.study.experiments`, the paper's λ, no seed that was
    used for screening. `network` is as printed, vanillaNet …, LeNet, AlexNet; `size` is s, m, xxl,
    or empty for the last two; `regularized` says whether SparsityReg is on, and `reading` then how
    it joins a batch, "mean" or "sum" (else empty).
    """
    names = [*VARIANTS, "LeNet", "AlexNet", "LeNet+sr", "AlexNet+sr"]
    regularized = frame.sparsity.fillna("") != ""
    rows = frame.assign(
        size=frame.network.str.extract(r"convnet_(\w+)", expand=False).fillna(""),
        network=frame.variant.str.removesuffix("+sr"),
        regularized=regularized,
        reading=frame.sparsity_batch.where(regularized, ""),
    )
    return rows[
        (frame.network != "al2_cnn")
        & (frame.corruption == 0)
        & ~frame.al2.astype(bool)
        & frame.variant.isin(names)
        & (~regularized | (frame.sparsity_weight == PAPER_SPARSITY_WEIGHT))
        & (frame.seed < SCREENING_SEED)
    ]


def readings_in(runs: pd.DataFrame) -> list[str]:
    """The readings of SparsityReg, "mean" and "sum", of these runs; "" where none has it."""
    return [batch for batch in BATCHES if batch in set(runs.reading)] or [""]


def of_reading(runs: pd.DataFrame, reading: str) -> pd.DataFrame:
    """Of `sparsity_runs`, those without SparsityReg, and those with it in one reading."""
    return runs[runs.reading.isin(["", reading])]


def sparsity_epochs_read(runs: pd.DataFrame) -> pd.Series:
    """How many epochs of its run a table reads, for each row of `runs`: at most the paper's 100.

    As many as the shortest training of its profile, data set, size and optimiser has.
    """
    shortest = runs.groupby(["profile", *SPARSITY_CELL[:3]]).epochs.transform("min")
    return shortest.clip(upper=SPARSITY_EPOCHS).astype(int)


def longest(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Of the runs that share these columns the longest: a shorter one is its beginning."""
    return runs[runs.epochs == runs.groupby(list(by)).epochs.transform("max")]


def best_accuracies(runs: pd.DataFrame) -> pd.DataFrame:
    """Each run's test accuracy in % at the best and the last of its `sparsity_epochs_read`.

    Of a network and seed that was trained at several lengths the longest.

    Args:
        runs: as `sparsity_runs` gives them.

    Returns:
        one row per run: profile, dataset, size, optimizer, network, regularized, reading, seed, id,
        epochs_read, best, best_epoch, last. Empty `best` and `last` where the loss became NaN by
        then.
    """
    of_run = ["profile", *SPARSITY_CELL, "regularized", "reading", "seed", "id"]
    if runs.empty:
        return pd.DataFrame(columns=[*of_run, "epochs_read", "best", "best_epoch", "last"])
    rows = runs.assign(epochs_read=sparsity_epochs_read(runs))
    rows = longest(rows, of_run[:-1]).reset_index(drop=True)
    found = rows.drop_duplicates(["profile", "id"])[[*of_run, "epochs_read"]]
    counted = rows.test_accuracy.notna() & (rows.epoch <= rows.epochs_read)
    read = rows[counted & ~(rows.diverged <= rows.epochs_read)]
    read = read.sort_values(["profile", "id", "epoch"])
    accuracies = read.groupby(["profile", "id"]).test_accuracy
    # the first of several
    best = read.loc[accuracies.idxmax(), ["profile", "id", "test_accuracy", "epoch"]]
    best.columns = ["profile", "id", "best", "best_epoch"]
    last = accuracies.last().rename("last").reset_index()
    return found.merge(best, how="left").merge(last, how="left")


def overfitting(runs: pd.DataFrame) -> pd.DataFrame:
    """When and how far the validation losses of runs rise again, over all epochs trained.

    Args:
        runs: as `sparsity_runs` gives them.

    Returns:
        one row per run: profile, dataset, size, optimizer, network, regularized, reading, epochs,
        seed, `moment` (the epoch of the least smoothed loss, empty where it does not overfit:
        `measures.overfitting_onset`), `rise` (%, `measures.rise_after_least`). Both empty for a
        run whose loss became NaN, which `diverged` gives the epoch of.
    """
    keys = ["profile", *SPARSITY_CELL[:3], "network", "regularized", "reading", "epochs", "seed"]
    rows = []
    for key, run in runs.groupby(keys):
        losses = run.sort_values("epoch").test_cross_entropy.dropna()
        diverged = run.diverged.max()
        found = [None, None]
        if np.isnan(diverged):
            found = [measures.overfitting_onset(losses), measures.rise_after_least(losses)]
        rows.append([*key, *found, diverged])
    table = pd.DataFrame(rows, columns=[*keys, "moment", "rise", "diverged"])
    return table.astype({"moment": "Int64", "rise": float, "diverged": "Int64"})


def sparsity_beside_published(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Table 2 or 3 of the targeted-sparsity paper, in fractions, with what was measured beside it.

    A data set that the paper has no number for gets rows of its own, with `published` empty; a
    published row that no run answers has `measured` empty; one with SparsityReg stands once for
    each `reading` of it that was measured. `measured` is the mean over n seeds of the best epoch,
    `sd` their standard deviation, `best_epoch` the mean of these epochs' numbers, and
    `measured_last` the mean at the last epoch read; "diverged" where the loss of a run became NaN.

    Raises:
        ValueError: for another table.
    """
    if name not in SPARSITY_TABLES:
        raise ValueError(
            f"{name!r} is no table of that paper; there are {', '.join(SPARSITY_TABLES)}"
        )
    keys = SPARSITY_TABLES[name]
    paper = published(name).rename(columns={"best_accuracy": "published"})
    runs = sparsity_runs(frame)
    runs = runs[(runs["size"] == "") == (name == "sparsity_table3")]
    rows = []
    for keyed, cell in best_accuracies(runs).groupby(["profile", *keys, "reading"], sort=False):
        own = runs[runs.id.isin(cell.id)]
        one_setting(own, keyed)
        # NaN where one diverged
        mean = {name: cell[name].mean(skipna=False) for name in ("best", "best_epoch", "last")}
        found = {
            "dataset_measured": cell.dataset.iloc[0],
            "epoch_measured": cell.epochs_read.iloc[0],
            "measured": DIVERGED if np.isnan(mean["best"]) else mean["best"] / 100,
            "sd": cell.best.std(skipna=False) / 100,
            "n": len(cell),
            "best_epoch": mean["best_epoch"],
            "measured_last": mean["last"] / 100,
            "precision": precisions(own),
        }
        rows.append(dict(zip(["profile", *keys, "reading"], keyed, strict=True)) | found)
    columns = ["dataset_measured", "epoch_measured", "published", *FOUND[:3]]
    columns = ["profile", "reading", *columns, "best_epoch", "measured_last", "precision"]
    measured = pd.DataFrame(rows, columns=[*keys, *columns]).drop(columns="published")
    table = paper.merge(measured, on=keys, how="outer")[[*keys, *columns]]
    # as printed
    order = {name: k for k, name in enumerate((*SIZES, *VARIANTS, "LeNet", "AlexNet"))}
    return table.sort_values(
        ["dataset", "profile", *keys[1:], "reading"],
        key=lambda column: column.map(order) if column.name in ("size", "network") else column,
    )


def images_text(numbers: Iterable[float]) -> str:
    """On how many test images accuracies were measured: "10,000", or "2,000 and 10,000"."""
    return " and ".join(f"{int(number):,}" for number in sorted(set(numbers)))


def at_chance(accuracy: float | pd.Series, classes: int | pd.Series) -> bool | pd.Series:
    """Whether an accuracy in % is that of a dead network: at most `DEAD` × chance."""
    return accuracy <= DEAD * 100 / classes


def alive(runs: pd.DataFrame) -> pd.DataFrame:
    """Whether networks are alive, judged without a clean label.

    Of q, the accuracy on n held-out noisy labels, a = (q − p/(K−1)) / (1 − p − p/(K−1)) estimates
    the true accuracy (p the level, K the number of classes). A network is alive if the lower end of
    its 95 % interval, by the normal approximation of q, is above twice chance.

    Args:
        runs: as `lib.store.load` gives them, with held-out labels.

    Returns:
        one row per run at its last epoch: dataset, corruption, speed, baseline, seed, estimate,
        lower (both in %), alive. A run whose loss became NaN is not alive.
    """
    last = runs[runs.epoch == runs.epochs].set_index("id")
    table = runs.drop_duplicates("id").set_index("id")
    wrong = table.corruption / (table.num_classes.astype(float) - 1)
    right = 1 - table.corruption - wrong
    q = last.validation_accuracy.reindex(table.index).astype(float) / 100
    half = 1.96 * np.sqrt(q * (1 - q) / table.n_validation) / right
    estimate = (q - wrong) / right
    found = table[["dataset", "corruption", "speed", "baseline", "seed"]].assign(
        estimate=100 * estimate, lower=100 * (estimate - half)
    )
    found["alive"] = found.lower.notna() & ~at_chance(found.lower, table.num_classes)
    return found.reset_index(drop=True)


def ratios(runs: Mapping[str, Run], images: int, units: int) -> pd.DataFrame:
    """What a miniature of AL2's training keeps of it, and what not.

    With η' = learning rate / (1 − momentum), U units of φ, and time = η' · steps.

    Args:
        runs: one with AL2 and weight decay by the name of its column.
        images: of the training set, where a run takes all.
        units: U.

    Returns:
        a row a quantity, a column a run.
    """
    table = {}
    for name, run in runs.items():
        step = run.learning_rate / (1 - run.momentum)
        steps = math.ceil((run.n_train or images) / run.batch_size)
        series = schedule(run.schedule, run.epochs, run.speed, run.rate)
        per_epoch = step * steps
        late = np.log(series[-1] / series[-2]) / per_epoch if run.epochs > 1 else np.nan
        table[name] = {
            "training images": run.n_train or images,
            "epochs": run.epochs,
            "steps": run.epochs * steps,
            "time, η'·steps": run.epochs * per_epoch,
            "λ in the last epoch": series[-1],
            "end stiffness, η'λ/U": step * series[-1] / units,
            "end trade-off, λ/U": series[-1] / units,
            "whole pull, Σ η'λ/U over steps": per_epoch * series.sum() / units,
            "late growth of ln λ per time": late,
            "weight decay's e-folds, wd·η'·steps": run.weight_decay * run.epochs * per_epoch,
        }
    return pd.DataFrame(table)


def one_setting(
    runs: pd.DataFrame, cell: object, but: Sequence[str] = ("seed", "epochs", "network")
) -> None:
    """Refuse to average over runs that differ in more than the fields `but`.

    Raises:
        ValueError: naming the fields in which they differ.
    """
    runs = runs.drop_duplicates("id")
    names = [
        f.name
        for f in fields(Run)
        if f.name in runs and f.name not in but and not f.metadata.get("measure")
    ]
    # None and NaN, which is unequal to itself, are one
    known = {name: {v if v == v else None for v in runs[name].tolist()} for name in names}
    if mixed := [name for name in names if len(known[name]) > 1]:
        raise ValueError(
            f"runs of one cell {cell} differ in {', '.join(mixed)}: a table averages over seeds "
            "alone"
        )


def stopping(frame: pd.DataFrame) -> pd.DataFrame:
    """For each run its test accuracy in % at the end, at its best epoch, and by early stopping.

    Early stopping takes the epoch with the highest accuracy on the held-out *noisy* labels, the
    first of several; a run that holds nothing out has none. The best epoch is an oracle that looks
    at the test set. A training longer than the paper's 700 epochs is read up to there.

    Args:
        frame: as `lib.store.load` gives it.

    Returns:
        one row per run: profile, dataset, corruption, baseline, al2, regulariser, seed, id,
        diverged, final, best, best_epoch, stopped, stopped_epoch. Where the loss became NaN within
        the epochs read, `diverged` is true and `final` empty; the others are of its finite epochs,
        and empty where there is none.
    """
    rows = []
    of_run = ["profile", "dataset", "corruption", "baseline", "al2", "regulariser", "seed", "id"]
    for keys, run in frame.groupby(of_run, sort=False):
        diverged = bool((run.diverged <= PAPER_EPOCHS).any())
        run = run[run.epoch <= PAPER_EPOCHS].sort_values("epoch")
        values = {"diverged": diverged}
        if len(run):
            best = run.loc[run.test_accuracy.idxmax()]
            values |= {"final": np.nan if diverged else run.test_accuracy.iloc[-1]}
            values |= {"best": best.test_accuracy, "best_epoch": int(best.epoch)}
        if len(run) and "validation_accuracy" in run and run.validation_accuracy.notna().any():
            stop = run.loc[run.validation_accuracy.idxmax()]
            values |= {"stopped": stop.test_accuracy, "stopped_epoch": int(stop.epoch)}
        rows.append(dict(zip(of_run, keys, strict=True)) | values)
    columns = [*of_run, "diverged", "final", "best", "best_epoch", "stopped", "stopped_epoch"]
    return pd.DataFrame(rows).reindex(columns=columns)


def weights(run) -> np.ndarray:
    """λ_e of a run's schedule, [epochs]; a row with schedule, epochs, speed, rate."""
    rate = None if run.schedule == "al2" or pd.isna(run.rate) else run.rate
    return schedule(run.schedule, int(run.epochs), run.speed, rate)


def totals(runs: pd.DataFrame) -> pd.Series:
    """Σ λ_e of AL2 runs by id, in multiples of that of the schedule `al2` at the study's own speed.

    The study's own speed is that of its geometric and linear schedules, whose rate is varied
    instead. Half-way through a campaign there may be none: then no multiple is known (NaN), since a
    schedule `al2` may be of any speed. To two digits, since a rate that is stated with six can move
    the sum by some thousandths.
    """
    al2 = runs[runs.al2].drop_duplicates("id").set_index("id")
    own = al2[al2.schedule.isin(["geometric", "linear"])].speed
    if own.empty:
        return pd.Series(np.nan, index=al2.index)
    whole = schedule("al2", int(al2.epochs.iloc[0]), float(own.iloc[0])).sum()
    return al2.apply(lambda run: float(f"{weights(run).sum() / whole:.2g}"), axis=1)


def dropouts_of(frame: pd.DataFrame) -> list[float]:
    """The dropouts of runs that may stand beside each other, the largest first.

    Raises:
        NothingToShow: if there is no run.
        ValueError: if runs differ in something else than dropout, AL2, its speed and the seed.
    """
    require(frame, "run whose loss stayed finite to the end")
    one_setting(frame, frame.dataset.iloc[0], but=("seed", "dropout", "al2", "speed"))
    # only AL2 has a speed
    one_setting(frame[frame.al2.astype(bool)], frame.dataset.iloc[0], but=("seed", "dropout"))
    return sorted(frame.dropout.unique(), reverse=True)


def course_differences(frame: pd.DataFrame) -> pd.DataFrame:
    """How far apart two curves of mean CCA with the start are: without and with AL2, or two seeds.

    AL2 is compared in each seed that was trained both without and with it; seeds are compared in
    each network by itself, whether the other one has them or not.

    Args:
        frame: runs that differ in dropout, AL2 and seed alone, as `lib.store.load` gives them; of
            the measures only `mean_cca init` is read.

    Returns:
        one row per comparison and epoch: network (`dropout 0.5`), differing in (of which seeds), by
        ("AL2", "seed, without AL2", "seed, with AL2"), epoch, points (|difference| × 100). Without
        a row where nothing can be compared.

    Raises:
        ValueError: as `dropouts_of`.
    """
    curves = frame.pivot_table(
        index="epoch", columns=["dropout", "al2", "seed"], values="mean_cca init"
    )
    found = {}
    for dropout in dropouts_of(frame):
        network = f"dropout {dropout:g}"
        of = {al2: curves.get((dropout, al2), pd.DataFrame()) for al2 in (False, True)}
        for seed in sorted(set(of[False]) & set(of[True])):
            key = network, f"AL2 (seed {seed})", "AL2"
            found[key] = of[True][seed] - of[False][seed]
        for al2, word in ((False, "without AL2"), (True, "with AL2")):
            for one, other in combinations(sorted(of[al2]), 2):
                key = network, f"seed ({one} or {other}, {word})", f"seed, {word}"
                found[key] = of[al2][one] - of[al2][other]
    rows = [
        (*key, epoch, 100 * abs(value))
        for key, curve in found.items()
        for epoch, value in curve.items()
    ]
    return pd.DataFrame(rows, columns=["network", "differing in", "by", "epoch", "points"])


def as_printed(measured: pd.DataFrame, metric: str, digits: int = 1) -> pd.DataFrame:
    """One metric laid out like the paper's Tables 1 and 2: a row a baseline, a column an epoch.

    A cell is "without / with AL2", and further regularisers behind them (`regularisers_in`).

    Args:
        measured: one data set, level and profile, as `at_published_epochs` gives it, or a published
            table.
        metric: of its metrics.
        digits: after the point.
    """
    rows = with_regulariser(measured[measured.metric == metric])
    column = "measured" if "measured" in rows else "value"

    def cell(baseline: str, epoch: int) -> str:
        here = rows[(rows.baseline == baseline) & (rows.epoch == epoch)]
        values = [here[here.regulariser == name] for name in regularisers_in(rows)]
        return " / ".join(_number(value, column, digits) for value in values)

    epochs = sorted(rows.epoch.unique())
    cells = {e: [cell(b, e) for b in BASELINES] for e in epochs}
    return pd.DataFrame(cells, index=pd.Index(BASELINES.values(), name="")).rename_axis(
        columns="epoch of 700"
    )


def _number(rows: pd.DataFrame, column: str, digits: int) -> str:
    if rows.empty or pd.isna(rows[column].iloc[0]):
        return NOT_RUN
    value = rows[column].iloc[0]
    if value == DIVERGED:
        return DIVERGED
    if value and round(value, digits) == 0:
        return f"{value:.0e}"
    return mean_and_sd(value, rows.sd.iloc[0] if "sd" in rows else float("nan"), digits)


def mean_and_sd(mean: float, sd: float, digits: int = 1) -> str:
    """A mean over seeds as text, "27.4 ± 1.3"; without ± of one seed, where `sd` is NaN."""
    return half_up(mean, digits) + ("" if pd.isna(sd) else f" ± {half_up(sd, digits)}")


def half_up(value: float, digits: int = 1) -> str:
    """A number as text with so many digits after the point, halves rounded away from zero.

    As it would be from its printed digits: 56.15 is 56.2, whatever the nearest binary number is.
    """
    if not np.isfinite(value):
        return f"{value}"
    # nine digits take back what binary fractions and 100 × 0.5615 have added
    exact = Decimal(f"{value:.9f}")
    # no float has more digits before the point than 309
    return str(exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP, Context(prec=400)))
