"""Training in bfloat16: chosen by a word, said in the record, and no further from float32 than
another seed is.
"""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from lib import models, paths, run_dir, store, trainer
from lib.bench import precision as bench_precision
from lib.run import Run
from lib.study import budget

DIGITS = dict(image_size=16, n_train=640, test_images=300, epochs=12, corruption=0.5)
DIGITS |= dict(learning_rate=0.02, momentum=0.9, ablations=(), speed=30.0)
DIGITS = Run("digits", **DIGITS)
SHORT = replace(DIGITS, n_train=128, epochs=3, test_images=50)


def folder_of(run, profile="own"):
    return paths.results_dir() / profile / run.dataset / run.name


def said(run, profile="own"):
    return json.loads((folder_of(run, profile) / "env.json").read_text())["precision"]


@pytest.mark.slow
def test_bfloat16_stays_closer_to_float32_than_another_seed_does():
    al2 = replace(DIGITS, al2=True)
    runs = {"bare": DIGITS, "AL2": al2, "batch norm + AL2": replace(al2, batch_norm=True)}
    runs["dropout + AL2"] = replace(al2, dropout=0.3)
    curves = bench_precision.measure(runs, seeds=(0, 1, 2), jobs=1)
    for curve in ("test_accuracy", "cross_entropy"):
        found = bench_precision.spreads(curves, curve)
        assert (found.precisions > 0).all(), "bfloat16 was not used"
        assert found.within.all(), found


def test_the_penalties_train_in_bfloat16_too():
    layers = dict(sparsity=("conv3", "fc1"), sparsity_weight=0.01, decorrelation=("conv1",))
    run = replace(SHORT, network="convnet_s", image_size=8, al2=True, **layers)
    one, other = (
        trainer.fit([run], precision=precision) for precision in bench_precision.PRECISIONS
    )
    for name in ("sparsity_penalty", "decorrelation_penalty", "activation_l2"):
        assert (one[name] != other[name]).any()
        pd.testing.assert_series_equal(one[name], other[name], rtol=0.05)


def test_the_environment_variable_chooses_unless_it_is_said_and_the_record_says_which(monkeypatch):
    store.ensure([SHORT])
    monkeypatch.setenv("PRECISION", "bfloat16")
    store.ensure([SHORT])  # what is there stays
    trainer.fit([SHORT], [folder_of(SHORT, "other")])
    trainer.fit([SHORT], [folder_of(SHORT, "third")], precision="float32")
    profiles = {"own": "float32", "other": "bfloat16", "third": "float32"}
    found = {profile: store.collect(profile) for profile in profiles}
    assert {p: set(frame.precision) for p, frame in found.items()} == {
        profile: {precision} for profile, precision in profiles.items()
    }
    own, other, third = (frame.cross_entropy for frame in found.values())
    assert own.equals(third) and not own.equals(other)


def begun(run, **more):
    """What is stored of a run that was stopped after its first epoch."""
    with pytest.raises(trainer.OutOfTime):
        trainer.fit([run], [folder_of(run)], deadline=0.0, **more)
    return run_dir.load_checkpoint(folder_of(run), run)


def test_a_checkpoint_goes_on_in_the_precision_that_it_was_begun_in():
    run = replace(SHORT, dropout=0.5, al2=True)
    trainer.fit([run], [folder_of(run, "whole")], precision="bfloat16")
    begun(run, precision="bfloat16")
    trainer.fit([run], [folder_of(run)], precision="float32")
    assert said(run) == "bfloat16"
    files = [folder_of(run, profile) / "metrics.csv" for profile in ("own", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_checkpoint_that_does_not_say_is_of_float32(monkeypatch):
    state = begun(SHORT)
    state.pop("precision")
    run_dir.save_checkpoint(folder_of(SHORT), state)
    monkeypatch.setenv("PRECISION", "bfloat16")
    trainer.fit([SHORT], [folder_of(SHORT)])
    assert said(SHORT) == "float32"


def test_an_unknown_precision_is_refused_before_anything_is_written(monkeypatch):
    monkeypatch.setenv("PRECISION", "quarter")
    for argument, said in (("half", "half"), (None, "quarter")):
        with pytest.raises(ValueError, match=f"precision is '{said}'; allowed: float32, bfloat16"):
            trainer.fit([SHORT], [folder_of(SHORT)], precision=argument)
    assert not folder_of(SHORT).exists()


def test_tf32_is_refused_where_the_device_has_none():
    with pytest.raises(ValueError, match=r"^precision is 'tf32', which .* does not have.*Ampere"):
        trainer.fit([SHORT], [folder_of(SHORT)], precision="tf32")
    assert not folder_of(SHORT).exists()
    run_dir.save_checkpoint(folder_of(SHORT), begun(SHORT) | {"precision": "tf32"})
    with pytest.raises(
        ValueError, match=rf"^the checkpoint of {SHORT.name} .*delete it: precision"
    ):
        trainer.fit([SHORT], [folder_of(SHORT)])


@pytest.mark.parametrize(
    ("precision", "products"),
    [("float32", ("highest", False)), ("bfloat16", ("highest", True)), ("tf32", ("high", True))],
)
def test_each_training_s_steps_have_their_own_products_on_a_gpu(precision, products):
    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = now()
    with trainer.products(torch.device("cuda"), precision):
        assert now() == products
    with trainer.products(torch.device("cpu"), precision):
        assert now() == before
    assert now() == before


def test_dropout_draws_the_same_coins_in_every_precision():
    layer = models.Dropout(0.3)
    kept = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        layer.generator = torch.Generator().manual_seed(0)
        kept.append(layer(torch.ones(50, 40, dtype=dtype)))
        assert kept[-1].dtype == dtype
    assert torch.equal(kept[0] > 0, kept[1] > 0)
    assert abs((kept[1] > 0).float().mean() - 0.7) < 0.03


def test_a_pace_is_of_one_precision():
    folder = folder_of(SHORT)
    run_dir.begin(folder, SHORT)
    env = {"seconds": 30.0, "device": trainer.device_name("cpu"), "precision": "bfloat16"}
    (folder / "env.json").write_text(json.dumps(env))
    (folder / "metrics.csv").write_text("epoch\n1\n2\n3\n")
    more = replace(SHORT, seed=1)
    paces = budget.paces()
    device = env["device"]
    assert budget.seconds_per_epoch(more, paces, device) is None
    assert budget.seconds_per_epoch(more, paces, f"{device} in bfloat16") == 10.0


# ---- how far apart


def made(differ, seeds=(0.0, 4.0)):
    """Two epochs: float32 at 10 and 20 plus the seed's offset, bfloat16 so much higher."""
    rows = [
        ("bare", seed, precision, epoch, 10.0 * epoch + offset + (precision == "bfloat16") * apart)
        for seed, (offset, apart) in enumerate(zip(seeds, differ, strict=True))
        for precision in bench_precision.PRECISIONS
        for epoch in (1, 2)
    ]
    return pd.DataFrame(rows, columns=["network", "seed", "precision", "epoch", "test_accuracy"])


def test_spreads_are_root_mean_squares_over_epochs():
    (row,) = bench_precision.spreads(made((1.0, -3.0))).to_dict("records")
    expected = {"seeds": 4.0, "precisions": 5**0.5, "last": -1.0, "last_sd": 8**0.5, "n": 2}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["within"]


@pytest.mark.parametrize(
    "curves", [made((5.0, -5.0)), made((3.0, 3.0), (0.0, 1.0))], ids=["far apart", "shifted"]
)
def test_what_is_further_than_a_seed_is_not_within(curves):
    assert not bench_precision.spreads(curves).within.any()


def test_a_training_that_ended_early_or_is_missing_is_not_within():
    whole = made((1.0, -1.0))
    for lost in (whole.epoch == 2, whole.epoch > 0):
        rest = whole[~(lost & (whole.precision == "bfloat16") & (whole.seed == 1))]
        assert bench_precision.spreads(whole).within.all()
        assert not bench_precision.spreads(rest).within.any()


def test_one_seed_has_no_spread():
    with pytest.raises(ValueError, match="there is 1 seed; a spread needs two"):
        bench_precision.spreads(made((1.0,), seeds=(0.0,)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(["--only", "resnet"], "networks are bare"), (["--jobs", "0"], "of at least 1")],
)
def test_the_command_refuses_what_it_does_not_know(wrong, message, capsys):
    with pytest.raises(SystemExit):
        bench_precision.main(wrong)
    assert message in capsys.readouterr().err


def test_the_command_writes_every_curve(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_precision, "NETWORKS", {"bare": SHORT})
    bench_precision.main(["--out", str(tmp_path), "--jobs", "1"])
    table = pd.read_csv(tmp_path / "precision.csv")
    assert len(table) == len(bench_precision.SEEDS) * 2 * SHORT.epochs
    assert set(table.precision) == set(bench_precision.PRECISIONS)
    assert "bare" in capsys.readouterr().out


def test_the_twin_of_a_stored_run_is_trained_once_in_float32_and_set_beside_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(bench_precision, "WHOLE", SHORT)
    monkeypatch.setattr(bench_precision, "TABLE_EPOCHS", [1, 3])
    trainer.fit([SHORT], [folder_of(SHORT, "paper")], precision="bfloat16")
    bench_precision.main(["--whole", "--out", str(tmp_path)])
    table = capsys.readouterr().out
    assert "bfloat16" in table and "float32" in table
    assert [line.split()[0] for line in table.splitlines()[-2:]] == ["1", "3"]
    folder = tmp_path / "precision" / SHORT.name
    beside = bench_precision.twins(tmp_path)
    assert beside.groupby("precision").size().to_dict() == {"bfloat16": 3, "float32": 3}
    stored = store.load([SHORT])
    own = beside[beside.precision == "bfloat16"].reset_index(drop=True)
    pd.testing.assert_series_equal(own.cross_entropy, stored.cross_entropy)
    written = (folder / "metrics.csv").stat().st_mtime_ns
    assert bench_precision.whole(tmp_path) == folder  # it is there
    assert (folder / "metrics.csv").stat().st_mtime_ns == written


def test_a_twin_alone_is_shown_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_precision, "WHOLE", SHORT)
    assert bench_precision.twins(tmp_path).empty  # neither is there
    bench_precision.whole(tmp_path)
    assert set(bench_precision.twins(tmp_path).precision) == {"float32"}


def test_a_run_that_is_stored_in_float32_has_no_twin(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_precision, "WHOLE", SHORT)
    trainer.fit([SHORT], [folder_of(SHORT, "paper")], precision="float32")
    with pytest.raises(SystemExit, match="is of float32 itself; there is nothing to compare"):
        bench_precision.main(["--whole", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
