"""How far apart curves of canonical correlations are: what claim A6 is judged by."""

from itertools import combinations, product

import pandas as pd

from lib.study.tables import one_setting


def dropouts_of(frame: pd.DataFrame) -> list[float]:
    """The dropouts of runs that may stand beside each other, the largest first.

    Raises:
        ValueError: if there is no run, or runs differ in something else than dropout, AL2, its
            speed and the seed.
    """
    if frame.empty:
        raise ValueError(
            "there is no run to draw: of one at least the loss has to stay finite to the end"
        )
    one_setting(frame, frame.dataset.iloc[0], but=("seed", "dropout", "al2", "speed"))
    # only AL2 has a speed
    one_setting(frame[frame.al2.astype(bool)], frame.dataset.iloc[0], but=("seed", "dropout"))
    return sorted(frame.dropout.unique(), reverse=True)


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """How far apart two curves of mean CCA with the start are: without and with AL2, or two seeds.

    Only seeds that were trained both without and with AL2 are compared.

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
        both = [
            s
            for s in sorted(set(frame.seed))
            if {(dropout, False, s), (dropout, True, s)} <= set(curves)
        ]
        for seed in both:
            found[network, f"AL2 (seed {seed})", "AL2"] = (
                curves[dropout, True, seed] - curves[dropout, False, seed]
            )
        for (one, other), (al2, word) in product(
            combinations(both, 2), ((False, "without"), (True, "with"))
        ):
            key = network, f"seed ({one} or {other}, {word} AL2)", f"seed, {word} AL2"
            found[key] = curves[dropout, al2, one] - curves[dropout, al2, other]
    rows = [
        (*key, epoch, 100 * abs(value))
        for key, curve in found.items()
        for epoch, value in curve.items()
    ]
    return pd.DataFrame(rows, columns=["network", "differing in", "by", "epoch", "points"])
