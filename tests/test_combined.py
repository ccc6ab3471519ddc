"""Both penalties under both tests: what is read out of made frames and drawn; that no paper's table
or claim reads them.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from made import cliff, kept, rising, stored
from matplotlib.colors import to_rgb
from test_report import assembled

from lib import measures, trainer
from lib.run import Run
from lib.study import claims, drawing, report, tables
from lib.study.experiments import combined as study
from lib.study.figures import combined as figures_combined
from lib.study.tables import combined

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("figure_style")]
NOISY = ("trunk.conv1", "trunk.conv2", "head.fc1")
CLEAN = ("conv1", "conv2", "conv3", "conv4", "fc1")
WIDTHS = {
    "trunk.conv1": 20,
    "trunk.conv2": 50,
    "head.fc1": 500,
    "conv1": 16,
    "conv2": 16,
    "conv3": 32,
    "conv4": 32,
    "fc1": 64,
}


def peak(epoch):
    """A test accuracy that is highest, 80 %, at epoch 10."""
    return 80 - np.abs(epoch - 10)


def sinking(epoch):
    """A training cross-entropy that is below the noise floor of 75 % in 10 classes, 2.2103, from
    epoch 8 on.
    """
    return 3 - 0.1 * epoch


def late(epoch):
    """Entropy as a share of ln D that has fallen by 5 % from epoch 13 on."""
    return cliff(epoch, at=15)


def made(
    seeds=(0, 1), profile="made", over=None, diverged=None, start=None, corruption=0.75, long=40
):
    """A frame of both tests, 30 epochs (the ConvNets' 20).

    Args:
        over: by (test, method), columns other than the common ones; a layer's entropy as a share of
            ln D.
        diverged: the epoch at which a (test, method, seed) diverged.
        start: entropy before training, as a share of ln D.
        long: epochs of vanillaNet and sr2Net.
    """
    settings = {
        "epochs": 30,
        "clean_epochs": 20,
        "clean_long_networks": ["vanillaNet", "sr2Net"],
        "clean_long_epochs": long,
    }
    parts = []
    for run in study(
        "mnist", clean_dataset="digits", seeds=seeds, corruption=corruption, **settings
    ):
        test = "memorisation" if run.network == "al2_cnn" else "overfitting"
        method = {(0, 0): "none", (1, 0): "AL2", (0, 1): "SparsityReg", (1, 1): "both"}[
            run.al2, bool(run.sparsity)
        ]
        method = combined.CONTROL if test == "memorisation" and not run.corruption else method
        columns = {"test_accuracy": peak, "cross_entropy": sinking, "test_cross_entropy": kept}
        columns |= {"activation_l2": 0.5, "ablation_auc": 60.0}
        columns |= dict.fromkeys(NOISY if test == "memorisation" else CLEAN, 0.95) | (
            over or {}
        ).get((test, method), {})
        for name in [name for name in columns if name in WIDTHS]:
            value = columns.pop(name)
            most = np.log(WIDTHS[name])
            columns[f"entropy {name}"] = (
                (lambda e, v=value, m=most: m * v(e)) if callable(value) else most * value
            )
        part = stored(
            run, profile=profile, diverged=(diverged or {}).get((test, method, run.seed)), **columns
        )
        before = {
            f"start entropy {layer}": start * np.log(WIDTHS[layer]) for layer in NOISY if start
        }
        parts.append(part.assign(num_classes=10, precision="float32", **before))
    return pd.concat(parts, ignore_index=True)


# ---- what is read


def test_each_run_has_its_test_and_method():
    rows = combined.labelled(made(seeds=(0,)))
    found = rows.drop_duplicates("id").groupby("test", sort=False).method.agg(list).to_dict()
    assert found == {
        "memorisation": [*combined.METHODS, combined.CONTROL],
        "overfitting": list(combined.METHODS),
    }
    assert combined.labelled(pd.DataFrame()).empty


def test_long_trainings_are_read_as_far_as_the_others():
    rows = combined.labelled(made())
    assert rows.groupby("test").epoch.max().to_dict() == {"memorisation": 30, "overfitting": 20}
    assert len(rows) == 2 * (5 * 30 + 4 * 20)


@pytest.mark.parametrize("network", ["al2_cnn", "convnet_s", "lenet"])
def test_filters_are_those_of_the_network_as_built(network):
    model = trainer.build_network(Run("digits", network=network), 1, 32, 10)
    widths = {name: len(model.get_submodule(name).weight) for name in measures.hidden_layers(model)}
    assert combined.filters(network) == widths
    assert network == "lenet" or widths.items() <= WIDTHS.items()


def test_entropy_is_a_share_of_ln_d_from_before_training_on():
    run = made(seeds=(0,), start=0.99)
    # the order of rows is of no consequence
    run = run[run.id == run.id.iloc[0]].sample(frac=1, random_state=0)
    for layer in NOISY:
        curve = combined.entropy(run, layer)
        assert list(curve.index) == list(range(31))
        assert curve[0] == pytest.approx(99) and curve[1:].to_numpy() == pytest.approx(95)
    assert combined.entropy(run, "fc9").empty


@pytest.mark.parametrize(
    ("values", "by", "epoch"),
    [
        ([100, 96, 94], 5, 3),
        ([100, 95, 99], 5, 2),
        ([90, 96, 92, 91], 5, 4),  # 5 below 96, not below the first
        ([90, 80, 99, 94], 10, 2),
        ([99, 96], 5, None),
        ([50, 60, 70], 5, None),
    ],
)
def test_a_fall_is_from_the_highest_value_so_far(values, by, epoch):
    assert combined.fall_epoch(pd.Series(values, index=range(1, len(values) + 1)), by) == epoch


def test_accuracy_has_turned_where_it_ends_two_points_below_its_peak():
    epochs = np.arange(1, 31)
    assert combined.turn(peak(epochs)) == 10
    spike = np.where(epochs == 25, 100, peak(epochs))  # one epoch is no peak
    assert combined.turn(spike) == 10
    assert combined.turn(np.minimum(epochs, 20)) is None and combined.turn(epochs) is None
    assert combined.turn([]) is None


def test_moments_of_a_run_and_the_lead_of_its_entropy():
    over = {
        ("memorisation", "none"): {"trunk.conv2": late},
        ("memorisation", "AL2"): {"cross_entropy": 2.3},
    }
    over |= {
        ("overfitting", "none"): {"test_cross_entropy": rising, "conv4": lambda e: cliff(e, at=7)}
    }
    rows = combined.labelled(made(over=over))
    runs = combined.of_runs(rows).set_index(["test", "method", "seed"])
    assert len(runs) == 18
    names = ["turn", "crossing", "final", "best", "best_epoch"]
    assert runs.loc[("memorisation", "none", 1), names].tolist() == [10, 8, 60, 80, 10]
    assert np.isnan(runs.loc[("memorisation", "AL2", 0), "crossing"])
    # its noise floor is 0
    assert np.isnan(runs.loc[("memorisation", combined.CONTROL, 0), "crossing"])
    assert runs.loc[("overfitting", "none", 0), "turn"] == measures.overfitting_onset(
        rising(np.arange(1, 21))
    )
    assert np.isnan(runs.loc[("overfitting", "AL2", 0), "turn"])
    layers = combined.of_layers(rows).set_index(["test", "method", "seed", "layer"])
    assert len(layers) == 2 * (5 * 3 + 4 * 5)
    found = layers.loc[("memorisation", "none", 0, "trunk.conv2")]
    assert (found.fallen, found.lead) == (13, -3) and found["last"] == pytest.approx(40, abs=0.01)
    assert np.isnan(
        layers.loc[("memorisation", "none", 0, "head.fc1"), ["fallen", "lead"]].astype(float)
    ).all()
    early = layers.loc[("overfitting", "none", 1, "conv4")]
    assert early.lead == runs.loc[("overfitting", "none", 1), "turn"] - 5 > 0
    assert combined.of_layers(rows, by=45).fallen.notna().sum() == 4


def test_a_run_that_diverged_has_no_numbers_and_the_table_says_so():
    rows = combined.labelled(
        made(diverged={("memorisation", "AL2", 1): 5, ("memorisation", "both", 0): 1})
    )
    runs = combined.of_runs(rows).set_index(["test", "method", "seed"])
    assert (
        runs.loc[("memorisation", "AL2", 1)].drop(["profile", "dataset", "diverged"]).isna().all()
    )
    assert runs.diverged.dropna().to_dict() == {
        ("memorisation", "AL2", 1): 5,
        ("memorisation", "both", 0): 1,
    }
    layers = combined.of_layers(rows, by=0.001).set_index(["test", "method", "seed"])
    assert (
        layers.loc[("memorisation", "AL2", 1), ["highest", "last", "fallen", "lead"]]
        .isna()
        .all(axis=None)
    )
    assert layers.loc[("memorisation", "AL2", 0), ["highest", "last"]].notna().all(axis=None)
    table = combined.accuracies(combined.of_runs(rows)).set_index(["test", "method"])
    assert table.loc[("memorisation", "AL2"), ["final", "best", "n"]].tolist() == [
        "diverged",
        "diverged",
        2,
    ]
    assert table.loc[("memorisation", "none"), ["final", "best", "n"]].tolist() == [
        "60.0 ± 0.0",
        "80.0 ± 0.0",
        2,
    ]
    for draw in (figures_combined.memorisation, figures_combined.overfitting):
        draw(rows).canvas.draw()


def test_a_divergence_after_the_epochs_read_does_not_count():
    runs = combined.of_runs(combined.labelled(made(diverged={("overfitting", "none", 0): 33})))
    assert runs.final.notna().all() and runs.diverged.isna().all()


def test_gains_are_paired_by_seed_and_their_sum_stands_beside_both():
    accuracy = {"none": 30.0, "AL2": 40.0, "SparsityReg": 33.0, "both": 41.5}
    over = {
        (test, m): {"test_accuracy": v}
        for test in ("memorisation", "overfitting")
        for m, v in accuracy.items()
    }
    gained = combined.gains(combined.of_runs(combined.labelled(made(over=over))))
    assert gained[["test", "seed"]].to_numpy().tolist() == [
        ["memorisation", 0], ["memorisation", 1], ["overfitting", 0], ["overfitting", 1]
    ]  # fmt: skip
    assert gained[["AL2", "SparsityReg", "sum", "both"]].to_numpy() == pytest.approx(
        np.array([[10, 3, 13, 11.5]] * 4)
    )


def test_one_seed_has_no_spread_and_a_missing_network_no_gain():
    rows = combined.labelled(made(seeds=(0,)))
    runs = combined.of_runs(rows[rows.method != "AL2"])
    assert set(combined.accuracies(runs).final) == {"60.0", "70.0"}
    assert combined.gains(runs).AL2.isna().all() and combined.gains(runs).both.notna().all()


def test_two_levels_are_not_mixed():
    rows = combined.labelled(
        pd.concat([made(seeds=(0,)), made(seeds=(0,), corruption=0.5)], ignore_index=True)
    )
    with pytest.raises(ValueError, match=r"2 runs are .*method none.*one corruption level"):
        combined.of_runs(rows)
    with pytest.raises(ValueError, match="one profile, data set, corruption level"):
        figures_combined.memorisation(rows)


# ---- figures


def drawn(ax):
    """Curves of an axes by colour and dashes: not the vertical and horizontal lines, not the
    dots.
    """
    lines = [line for line in ax.lines if len(line.get_xdata()) > 2]
    return {(to_rgb(line.get_color()), line.get_linestyle()): line for line in lines}


def verticals(ax):
    return sorted(
        (line.get_xdata()[0], line.get_linestyle())
        for line in ax.lines
        if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]
    )


def dots(ax):
    return sorted(line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o")


def test_colours_and_dashes_are_those_of_the_other_figures():
    colours = drawing.NETWORK_COLOURS
    assert [figures_combined.COLOURS[m] for m in combined.METHODS] == [
        *[colours["vanillaNet"]] * 2,
        *[colours["sr2Net"]] * 2,
    ]
    # solid with AL2
    assert [figures_combined.DASHES[m] for m in combined.METHODS] == ["--", "-", "--", "-"]
    assert (
        len(
            {to_rgb(c) for c in figures_combined.LAYERS}
            | {to_rgb(c) for c in figures_combined.COLOURS.values()}
        )
        == 6
    )


def test_memorisation_is_a_column_a_method_with_its_moments():
    over = {("memorisation", "none"): {"trunk.conv2": late}}
    fig = figures_combined.memorisation(combined.labelled(made(over=over)))
    fig.canvas.draw()
    axes = np.array(fig.axes).reshape(3, 5)
    assert [ax.get_title() for ax in axes[0]] == [*combined.METHODS, combined.CONTROL]
    for ax in axes[:, 0]:
        assert [x for x, _ in verticals(ax)] == [8, 8, 10, 10]  # noise floor, peak; two seeds
        assert len({dashes for _, dashes in verticals(ax)}) == 2
    assert dots(axes[2, 0]) == [13, 13] and dots(axes[2, 1]) == []
    assert [x for x, _ in verticals(axes[0, 4])] == [10, 10]
    assert [len(drawn(ax)) for ax in axes[:, 0]] == [1, 1, 3]
    conv2 = drawn(axes[2, 0])[to_rgb(figures_combined.LAYERS[1]), "--"]
    assert conv2.get_ydata() == pytest.approx(100 * late(np.arange(1, 31)))
    assert (
        fig.get_suptitle()
        == "AL2 CNN, mnist, 75 % of the labels corrupted, profile made, 2 seeds: mean and range"
    )


def test_overfitting_is_a_panel_a_measure_with_the_moment_on_each():
    fig = figures_combined.overfitting(
        combined.labelled(made(over={("overfitting", "both"): {"test_cross_entropy": rising}}))
    )
    fig.canvas.draw()
    assert [ax.get_title().split(":")[0] for ax in fig.axes[3:]] == list(CLEAN)
    moment = measures.overfitting_onset(rising(np.arange(1, 21)))
    for ax in fig.axes:
        assert set(drawn(ax)) - {(to_rgb("0.3"), ":")} == {
            (to_rgb(figures_combined.COLOURS[m]), figures_combined.DASHES[m])
            for m in combined.METHODS
        }
        assert dots(ax) == [moment]
        assert all(line.get_xdata()[-1] == 20 for line in drawn(ax).values())
    assert fig.get_suptitle().startswith("ConvNet-s, digits, true labels")


@pytest.mark.parametrize("draw", [figures_combined.memorisation, figures_combined.overfitting])
def test_nothing_to_draw_is_said(draw):
    with pytest.raises(ValueError, match="nothing to draw: no run of the"):
        draw(combined.labelled(pd.DataFrame()))


# ---- the report, and the papers' tables and claims


def test_the_report_draws_the_runs_of_notebook_30_alone():
    frame = made().assign(notebooks="21_sparsity_networks 30_across")
    names = {name for name in report.drawings(assembled(frame)) if name.startswith("across")}
    assert names == {"across_memorisation-made-mnist", "across_overfitting-made-digits"}
    assert not [
        name
        for name in report.drawings(assembled(frame.assign(notebooks="10_al2")))
        if name.startswith("across")
    ]
    assert not [name for name in report.drawings(assembled(made())) if name.startswith("across")]


def test_the_report_draws_each_level_with_the_control():
    frame = pd.concat([made(seeds=(0,)), made(seeds=(0,), corruption=0.5)]).drop_duplicates(
        ["id", "epoch"]
    )
    found = report.drawings(assembled(frame.reset_index(drop=True).assign(notebooks="30_across")))
    for level in (50, 75):
        fig = found[f"across_memorisation-made-mnist-{level}"]()
        assert f"{level} % of the labels" in fig.get_suptitle() and len(fig.axes) == 15


def test_no_run_of_notebook_30_is_in_a_table_or_claim_of_the_papers():
    """But vanillaNet and sr2Net, which are notebook 21's own runs (see the test of the study)."""
    frame = made().assign(notebooks="30_across")
    assert tables.label_randomization_runs(frame).empty
    assert set(tables.sparsity_runs(frame).network) == {"vanillaNet", "sr2Net"}
    assert set(tables.sparsity_runs(frame.drop(columns="notebooks")).network) == {
        "vanillaNet",
        "sr2Net",
    }
    assert tables.beside_published("al2_table1", frame).measured.isna().all()
    judged = claims.judge(frame, ["made"])
    assert set(judged[judged.claim.str.startswith("A")].n) == {0}
    own = frame[(frame.network != "al2_cnn") & ~frame.al2.astype(bool)]
    pd.testing.assert_frame_equal(judged, claims.judge(own, ["made"]))


def test_penalised_al2_networks_are_in_no_table_even_of_a_frame_that_names_no_notebook():
    rows = tables.label_randomization_runs(made())
    assert set(rows.sparsity) == {""}


def test_one_convnet_with_al2_is_not_taken_for_vanillanet():
    (run,) = {r for r in study("mnist", clean_dataset="digits") if r.variant == "vanillaNet+al2"}
    assert dataclasses.replace(run, al2=False).variant == "vanillaNet"
    assert tables.sparsity_runs(stored(run, test_accuracy=50.0, test_cross_entropy=1.0)).empty
