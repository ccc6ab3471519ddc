"""How far apart two curves of mean CCA with the start are, of made frames."""

import numpy as np
import pandas as pd
import pytest
from made import stored

from lib.study.experiments import representations
from lib.study.tables import NothingToShow, course_differences, dropouts_of


def courses(*lost, by_al2=0.1, by_seed=0.02, seeds=(0, 1), **settings):
    """Mean CCA falls over 20 epochs; AL2 lowers it and another seed raises it, by so much.

    Without the runs (dropout, AL2, seed) that are lost.
    """
    runs = representations("mnist", seeds=seeds, **{"epochs": 20, "speed": 3.0} | settings)
    parts = []
    for run in runs:
        shift = by_seed * run.seed - by_al2 * run.al2
        if (run.dropout, run.al2, run.seed) not in lost:
            parts.append(stored(run, **{"mean_cca init": lambda e, s=shift: 0.7 - 0.01 * e + s}))
    return pd.concat(parts, ignore_index=True)


def test_differences_are_by_al2_of_each_seed_and_by_each_two_seeds_of_each_network():
    apart = course_differences(courses(seeds=(0, 1, 2)))
    assert list(apart.network.unique()) == ["dropout 0.5", "dropout 0"]
    assert len(apart) == 2 * 20 * (3 + 3 * 2)
    apart = apart[apart.network == "dropout 0.5"]
    points = apart.groupby(["by", "differing in"], sort=False).points.agg(["min", "max"])
    assert list(points.loc["AL2"].index) == ["AL2 (seed 0)", "AL2 (seed 1)", "AL2 (seed 2)"]
    assert points.loc["AL2"].to_numpy() == pytest.approx(10)
    pairs = ("0 or 1", "0 or 2", "1 or 2")
    for al2 in ("without", "with"):
        own = points.loc[f"seed, {al2} AL2"]
        assert list(own.index) == [f"seed ({pair}, {al2} AL2)" for pair in pairs]
        for extreme in (own["min"], own["max"]):
            assert list(extreme) == pytest.approx([2, 4, 2])


def test_each_pair_of_curves_that_is_there_is_compared():
    lost = (0.5, True, 1), (0.0, False, 0), (0.0, True, 1)
    apart = course_differences(courses(*lost))
    assert list(apart["differing in"].unique()) == ["AL2 (seed 0)", "seed (0 or 1, without AL2)"]
    assert set(apart.network) == {"dropout 0.5"}
    assert course_differences(courses(*lost, (0.5, False, 0))).empty


def test_the_course_of_a_network_that_has_no_live_channel_any_more_ends():
    frame = courses()
    late = (frame.dropout == 0.5) & frame.al2 & (frame.seed == 0) & (frame.epoch > 10)
    frame.loc[late, "mean_cca init"] = np.nan
    last = course_differences(frame).dropna().groupby(["network", "differing in"]).epoch.max()
    assert last["dropout 0.5", "AL2 (seed 0)"] == 10 and last["dropout 0.5", "AL2 (seed 1)"] == 20


def test_the_largest_dropout_comes_first_and_other_runs_and_no_runs_are_refused():
    assert dropouts_of(courses(dropouts=[0.0, 0.5])) == [0.5, 0.0]
    for made in (dropouts_of, course_differences):
        with pytest.raises(ValueError, match="differ in learning_rate"):
            made(pd.concat([courses(), courses(learning_rate=0.5)]))
        with pytest.raises(ValueError, match="differ in speed"):
            made(pd.concat([courses(), courses(speed=5.0)]))
        with pytest.raises(NothingToShow, match="no run whose loss stayed finite"):
            made(courses().iloc[:0])
