"""How a verdict is computed from differences paired by seed.

See the protocol, "How a verdict is computed".
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

PAIRED = (
    "d paired by seed; a cell holds if n ≥ 3 and mean d > 2·sd/√n, or n = 2 and both d have the "
    "sign and the smaller is ≥ 1 point; all cells: holds, half: in part"
)


@dataclass(frozen=True)
class Judged:
    """What a claim's rule found.

    In words what was measured, the smallest n of its cells, the rule and the verdict.
    """

    published: str
    measured: str
    n: int
    rule: str
    verdict: str


Rule = Callable[[pd.DataFrame, str], Judged | None]


@dataclass(frozen=True)
class Claim:
    """How a claim is judged.

    `rule` takes the runs of one profile and data set, and that set's name; it gives None where they
    do not answer it. `experiments` are those whose runs it reads, `select` what it takes of them.
    `by_reading`: judged for each way in which SparsityReg joins a batch, since the paper does not
    say which is meant.
    """

    rule: Rule
    experiments: tuple[str, ...]
    select: Callable[[pd.DataFrame], pd.DataFrame]
    by_reading: bool


CLAIMS: dict[str, Claim] = {}  # by name, in the order of their rules


def claim(
    name: str,
    *experiments: str,
    select: Callable[[pd.DataFrame], pd.DataFrame] = lambda runs: runs,
    by_reading: bool = False,
) -> Callable[[Rule], Rule]:
    """Register the rule of a claim whose text stands in `results/published/claims.yaml`.

        @claim("A1", "label_randomization")
        def _a1(runs, dataset): ...

    Args:
        name: of the claim.
        experiments: names in `lib.study.experiments.EXPERIMENTS`; one at least.
        select, by_reading: see `Claim`.
    """

    def register(rule: Rule) -> Rule:
        CLAIMS[name] = Claim(rule, experiments, select, by_reading)
        return rule

    return register


def cell_holds(differences: Iterable[float]) -> bool | None:
    """Whether a claim d > 0 holds in one cell, from its paired differences in points.

    None where n = 1 can only indicate.

    A difference that is not finite comes from a run whose loss became NaN: the cell does not hold.
    """
    d = np.asarray(list(differences), dtype=float)
    if not np.isfinite(d).all():
        return False
    if len(d) >= 3:
        return bool(d.mean() > 2 * d.std(ddof=1) / np.sqrt(len(d)))
    return bool(d.min() >= 1) if len(d) == 2 else None


def differences(one: pd.Series, other: pd.Series) -> pd.Series:
    """one − other for the seeds that both have.

    −∞ where either value is not finite, that of a run whose loss became NaN.

    So no cell holds because such a run is left out, and none because it is the other one's.
    """
    seeds = one.index.intersection(other.index)
    one, other = one.loc[seeds].astype(float), other.loc[seeds].astype(float)
    return (one - other).where(np.isfinite(one) & np.isfinite(other), -np.inf)


def verdict(cells: dict[str, Iterable[float]], expected: int) -> str:
    """`holds`, `holds in part`, `does not hold`, or `indicative: …` where a cell has one seed only.

    Args:
        cells: paired differences by name of the cell.
        expected: how many cells the claim is about; with fewer it is `not run`.
    """
    values = {name: list(d) for name, d in cells.items() if len(list(d))}
    if len(values) < expected:
        return f"not run: {len(values)} of {expected} cells have finished runs"
    if min(map(len, values.values())) < 2:
        right = sum(bool(np.isfinite(d).all() and np.mean(d) > 0) for d in values.values())
        return f"indicative: {right} of {len(values)} cells have the claimed sign, one seed"
    return _of_all(cell_holds(d) for d in values.values())


def smallest_n(cells: dict[str, pd.Series]) -> int:
    """The number of seeds of the cell that has fewest; 0 without cells."""
    return min((len(d) for d in cells.values()), default=0)


def _of_all(held: Iterable[bool | None]) -> str:
    held = list(held)
    return (
        "holds"
        if all(held)
        else "holds in part"
        if 2 * sum(map(bool, held)) >= len(held)
        else "does not hold"
    )


def of_parts(held: list[bool], n: int, expected: int = 0) -> str:
    """The verdict of a rule on parts, such as curves.

    One seed can only indicate; fewer parts than expected are `not run`.
    """
    if len(held) < expected:
        return f"not run: {len(held)} of {expected} parts have finished runs"
    return (
        _of_all(held) if n >= 2 else f"indicative: {sum(held)} of {len(held)} parts hold, one seed"
    )
