import warnings

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib import bench
from lib.bench import cpu as bench_cpu
from lib.study.figures import speed as figures_speed

FLOP = 13_182_000
# images a second and core in the made table: every change of the ladder brings its factor, threads
# in common lose half
FACTORS = {
    "DataLoader": 1.0,
    "tensors": 2.0,
    "tensors, channels_last": 3.0,
    "tensors, channels_last, pool first": 3.6,
    "tensors, channels_last, pool first, memory kept": 4.5,
    "ours, bare": 4.2,
    "ours, AL2": 4.0,
    "ours, AL2, bfloat16": 6.0,
}


def made(cores: int) -> pd.DataFrame:
    """A table as `make bench` writes it, of known rates: three rounds, the machine half as fast in
    the second.
    """
    rates = {}
    for row in bench_cpu.rows(cores):
        one = {"sgemm 256": 8.0, "sgemm 512": 7.9, "sgemm 1024": 7.8}.get(
            row.what, FACTORS.get(row.what, 1.5)
        )
        value = (
            1000
            * one
            * row.cores
            * (0.5 if row.threads > 1 else 1)
            * (FLOP if row.part == "floor" else 1)
        )
        rates[row] = [value, value / 2, value]
    return pd.concat([bench.derive(rates, FLOP), bench.turns(rates, FLOP)], ignore_index=True)[
        bench.COLUMNS
    ]


@pytest.mark.parametrize("cores", [1, 2])
def test_ladder_multiplies_up_to_ours(cores):
    found = figures_speed.ladder(made(cores))
    assert (
        found.iloc[0, 1] == 1
        and found.iloc[-2, 1] == pytest.approx(4)
        and found.iloc[-1, 1] == pytest.approx(6)
    )
    assert found["× the line before"].prod() == pytest.approx(6)
    assert found.loc["+ channels_last", "× the line before"] == pytest.approx(1.5)


def test_rows_compared_are_the_study_s_with_the_fastest_floor():
    found = figures_speed.compared(made(2))
    assert found.part.drop_duplicates().tolist() == list(figures_speed.PARTS)
    assert set(found.batch) == {0, 64} and set(found.processes * found.threads) == {2}
    assert found[found.part == "floor"].label.tolist() == ["floor: sgemm 256 · 2 × 1"]
    assert figures_speed.best_loader(found).label == "DataLoader, 0 workers · 2 × 1"
    assert "vmap, 4 stacked · 1 × 2" in set(found.label)
    ours = found[found.what == "ours, AL2"].iloc[0]
    assert ours[figures_speed.SHARE] == pytest.approx(50) and (
        ours["factor low"],
        ours["factor high"],
    ) == (4, 4)


def test_processors_stand_beside_each_other_with_their_own_floor():
    slow, fast = made(2), made(2)
    for table in (slow, fast):
        assert table.unit.isin([figures_speed.HOURLY]).any()
    ours = (fast.part == "ours") & (fast.unit == figures_speed.HOURLY)
    fast.loc[ours, "median"] *= 2
    found = figures_speed.processors({"slow": slow, "fast": fast})
    assert found.index.tolist() == ["slow", "fast"]
    assert (
        found.loc["fast", ["ours, AL2", "ours, AL2, bfloat16"]]
        == 2 * found.loc["slow", ["ours, AL2", "ours, AL2, bfloat16"]]
    ).all()
    assert (found.floor == 60 / 1000 * 8000 * 2).all() and found[
        "ours, AL2: % of the floor"
    ].tolist() == pytest.approx([50, 50])
    assert found.loc["slow", "ours, AL2, bfloat16: × best DataLoader loop"] == "6.0 (6.0–6.0)"


def test_operators_are_gathered_by_purpose():
    names = {
        "DataLoader and transforms": "loading",
        "aten::convolution_backward": "convolutions, backward",
        "aten::_slow_conv2d_backward": "convolutions, backward",
        "aten::mkldnn_convolution": "convolutions, forward",
        "aten::_slow_conv2d_forward": "convolutions, forward",
        "aten::max_pool2d_with_indices_backward": "max-pooling",
        "aten::threshold_backward": "ReLU",
        "aten::addmm": "linear layers",
        "aten::mm": "linear layers",
        "Optimizer.step#SGD.step": "optimiser",
        "aten::sum": "other operators",
        "between operators": "between operators",
    }
    profile = pd.DataFrame(
        [
            {"step": step, "operator": name, "ms": 1.0}
            for step in figures_speed.STEPS
            for name in names
        ]
    )
    found = figures_speed.by_purpose(profile)
    assert found.iloc[0].to_dict() == {
        name: list(names.values()).count(name) for name in figures_speed.OPERATORS
    }
    plt.close(figures_speed.profiles(profile))


@pytest.mark.parametrize("cores", [1, 2])
def test_figures_are_drawn_without_a_warning(cores):
    table = made(cores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bars = figures_speed.bars(table)
        curves = figures_speed.scaling(table)
        for fig in (bars, curves):
            fig.canvas.draw()
    assert len(bars.axes[0].get_yticklabels()) == len(figures_speed.compared(table))
    plt.close("all")


def test_precisions_are_drawn_a_panel_a_network():
    rows = [
        {"network": n, "seed": s, "precision": p, "epoch": e, "test_accuracy": 10.0 * e}
        for n in ("bare", "AL2", "dropout", "sr3Net")
        for s in (0, 1)
        for p in figures_speed.PRECISIONS
        for e in (1, 2)
    ]
    fig = figures_speed.precisions(pd.DataFrame(rows))
    assert [ax.get_title() for ax in fig.axes if ax.get_visible()] == [
        "bare",
        "AL2",
        "dropout",
        "sr3Net",
    ]
    assert all(len(ax.lines) == 4 for ax in fig.axes[:4])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["float32", "bfloat16"]
    plt.close(fig)
