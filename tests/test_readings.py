"""Which reading of DecorrReg the rule chooses, from made frames: each run's last row is all that it
reads.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from made import stored

from lib.run import SCREENING_SEED
from lib.study.experiments import READINGS, reading_of, sparsity_networks
from lib.study.tables.readings import BREAKS, PLAIN, best_readings, readings

EPOCHS = 4


def network(reading=PLAIN, correlation=0.2, cross_entropy=2.0, *, epochs=EPOCHS, diverged=None):
    """The rows of sr2Net, or of sr3Net in a reading; both values are those of the last epoch,
    before it both are higher.
    """
    names, fields = (("sr2Net",), {}) if reading == PLAIN else (("sr3Net",), reading_of(reading))
    (run,) = sparsity_networks(
        "digits", networks=names, seeds=(SCREENING_SEED,), epochs=epochs, **fields
    )
    columns = {"correlation conv1": correlation, "cross_entropy": cross_entropy}
    curves = {
        name: lambda e, v=value: v + (e.max(initial=0) - e) for name, value in columns.items()
    }
    return stored(run, diverged=diverged, **curves)


def table(*runs, epochs=EPOCHS):
    return readings(pd.concat(runs, ignore_index=True), epochs)


def test_each_reading_has_its_last_epoch_beside_sr2net_s():
    made = table(
        network(), network("own/abs/sum", 0.01, 1.9), network("mean_filter/signed/mean", 0.25, 2.02)
    )
    assert set(made.index) == {PLAIN, "own/abs/sum", "mean_filter/signed/mean"}
    assert made.correlation.to_dict() == {
        PLAIN: 0.2,
        "own/abs/sum": 0.01,
        "mean_filter/signed/mean": 0.25,
    }
    excess = made.excess.to_dict()
    assert excess == pytest.approx(
        {PLAIN: 0.0, "own/abs/sum": -5.0, "mean_filter/signed/mean": 1.0}
    )
    assert not made.breaks.any()


def test_the_order_of_the_rows_does_not_matter():
    rows = pd.concat(
        [network(), network("own/abs/sum", 0.01), network("own/abs/mean", 0.02)], ignore_index=True
    )
    shuffled = rows.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(readings(shuffled, EPOCHS), readings(rows, EPOCHS))


@pytest.mark.parametrize(
    ("percent", "breaks"), [(4.9, False), (5.1, True), (60.0, True), (-60.0, False)]
)
def test_a_reading_breaks_where_its_cross_entropy_is_more_than_five_percent_above(percent, breaks):
    assert BREAKS == 5.0
    made = table(network(), network("own/abs/sum", 0.0, 2.0 * (1 + percent / 100)))
    assert made.breaks.to_dict() == {PLAIN: False, "own/abs/sum": breaks}


@pytest.mark.parametrize("diverged", [1, 3])
def test_a_reading_whose_loss_became_nan_breaks_however_low_its_last_finite_loss(diverged):
    made = table(
        network(),
        network("own/abs/sum", 0.0, 0.1, diverged=diverged),
        network("own/abs/mean", 0.3, 2.05),
    )
    assert made.excess["own/abs/sum"] == np.inf and made.breaks["own/abs/sum"]
    assert best_readings(made, 2) == ["own/abs/mean", "own/abs/sum"]


def test_whole_readings_come_first_by_correlation_then_broken_ones():
    made = table(
        network("own/signed/sum", 0.05, 3.0),  # breaks, with the second lowest correlation of all
        network("own/abs/sum", 0.10),
        network(),
        network("own/square/sum", 0.01),
        network("own/square/mean", 0.15),
        network("own/abs/mean", 0.00, 2.2),  # breaks, with the lowest
    )
    assert made.index.to_list() == [
        "own/square/sum", "own/abs/sum", "own/square/mean", PLAIN, "own/abs/mean", "own/signed/sum"
    ]  # fmt: skip
    assert best_readings(made, 3) == ["own/square/sum", "own/abs/sum", "own/square/mean"]
    assert best_readings(made) == ["own/square/sum"]


def test_where_fewer_than_three_are_whole_the_least_excess_fills_up():
    made = table(
        network(),
        network("own/abs/sum", 0.0, 3.0),
        network("own/abs/mean", 0.3, 2.0),
        network("own/square/sum", 0.1, 2.5),
        network("own/square/mean", 0.2, 2.2),
    )
    assert best_readings(made, 3) == ["own/abs/mean", "own/square/mean", "own/square/sum"]


def test_where_all_break_the_least_excess_is_chosen_not_the_lowest_correlation():
    made = table(
        network(),
        network("own/abs/sum", 0.0, 2.4),
        network("own/abs/mean", 0.3, 2.2),
        network("own/square/sum", 0.1, 2.3),
    )
    assert made.drop(index=PLAIN).breaks.all()
    assert best_readings(made, 3) == ["own/abs/mean", "own/square/sum", "own/abs/sum"]


def test_sr2net_is_never_a_candidate():
    made = table(network(correlation=0.0), *(network(reading) for reading in READINGS))
    assert len(made) == len(READINGS) + 1 and made.index[0] == PLAIN
    assert sorted(best_readings(made, 20)) == sorted(READINGS)


def test_runs_of_another_length_and_other_networks_are_not_read():
    (other,) = sparsity_networks(
        "digits", networks=("sr1Net",), seeds=(SCREENING_SEED,), epochs=EPOCHS
    )
    more = stored(other, **{"correlation conv1": 0.0, "cross_entropy": 0.0})
    both = [
        network(),
        network("own/abs/sum", 0.1),
        network(epochs=9, correlation=0.4),
        network("own/abs/mean", epochs=9),
        more,
    ]
    assert set(table(*both).index) == {PLAIN, "own/abs/sum"}
    assert set(table(*both, epochs=9).index) == {PLAIN, "own/abs/mean"}


def test_without_sr2net_there_is_nothing_to_compare_with():
    with pytest.raises(
        ValueError,
        match="there is no sr2Net of 4 epochs among the runs: the readings are compared with it",
    ):
        table(network("own/abs/sum"), network(epochs=5))


def test_several_runs_of_one_reading_are_refused():
    from lib.study.experiments import penalty_readings

    runs = penalty_readings("digits", screen_epochs=2)[:2]
    twice = [*runs, dataclasses.replace(runs[0], sparsity_batch="sum")]
    frame = pd.concat(
        [stored(run, cross_entropy=1.0, **{"correlation conv1": 0.1}) for run in twice],
        ignore_index=True,
    )
    with pytest.raises(ValueError, match=r"several runs of none \(sr2Net\)"):
        readings(frame, 2)
