"""Carrying runs to another machine and back: what is packed, what is merged, and what is
refused.
"""

import json
import os
import shutil
import sys
import zipfile
from dataclasses import replace

import pytest

from lib import paths, run_dir, store, trainer
from lib.run import Run
from lib.study import budget, campaign, transfer

BARE = Run(
    dataset="digits",
    image_size=16,
    n_train=64,
    n_validation=20,
    test_images=40,
    epochs=3,
    learning_rate=0.1,
    batch_size=32,
)
UNDER_WAY = replace(BARE, seed=1)
CONV = replace(BARE, network="convnet_s", corruption=0.0, image_size=8)
RUNS = [BARE, UNDER_WAY, CONV]


def begin(run, epochs=1):
    """Train a run's next epochs and leave it with a checkpoint."""
    folder = store.find(run) or paths.results_dir() / "quick" / run.dataset / run.name
    for _ in range(epochs):
        with pytest.raises(trainer.OutOfTime):
            trainer.fit([run], [folder], deadline=0.0)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A results folder with a finished run, an AL2 network under way and a ConvNet under way,
    trained once.
    """
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESULTS_DIR", str(folder))
        patch.setenv("CACHE_DIR", str(folder / ".cache"))
        patch.setenv("DEVICE", "cpu")
        store.ensure([BARE], profile="quick")
        begin(UNDER_WAY)
        begin(CONV)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    shutil.rmtree(folder / ".locks")
    return folder


@pytest.fixture
def box(trained, tmp_path):
    """A folder with the archives of RUNS, exported from a results folder that is gone: there is
    none yet.
    """
    shutil.copytree(trained, paths.results_dir())
    transfer.export(RUNS, "quick", tmp_path / "box")
    shutil.rmtree(paths.results_dir())
    return tmp_path / "box"


def files(folder):
    """Every file below a folder but the locks."""
    found = {
        f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()
    }
    return {name: content for name, content in found.items() if not name.startswith(".locks")}


def name_of(run, file=None):
    folder = f"quick/{run.dataset}/{run.name}"
    return f"{folder}/{file}" if file else folder


def largest():
    """Bytes that the larger of the two runs that are packed takes in an archive."""
    folders = [store.find(run) for run in (BARE, UNDER_WAY)]
    return max(
        len(transfer._archive({f: {c.name: c.read_bytes() for c in f.iterdir()}})) for f in folders
    )


def repack(box, change):
    """Change an archive's contents, a dict by path."""
    path = box / "quick-1.zip"
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    change(held)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)


# ---- there and back


def test_finished_runs_and_al2_networks_under_way_arrive_with_identical_bytes(box, trained):
    assert [f.name for f in box.iterdir()] == ["quick-1.zip"]
    done = transfer.take_over("quick", box)
    assert (
        sorted(done.taken) == sorted([BARE.name, UNDER_WAY.name])
        and done.kept == done.refused == []
    )
    packed = {name: content for name, content in files(trained).items() if CONV.id not in name}
    assert files(paths.results_dir()) == packed and len(packed) == 6


def test_a_run_goes_on_where_it_was_on_another_machine(box, trained, monkeypatch):
    transfer.take_over("quick", box)
    assert store.epochs_left(UNDER_WAY) == 2
    store.ensure([UNDER_WAY], profile="quick")
    trainer.fit([UNDER_WAY], [paths.results_dir() / "whole" / "digits" / UNDER_WAY.name])
    here, whole = (paths.results_dir() / p / "digits" / UNDER_WAY.name for p in ("quick", "whole"))
    for name in ("metrics.csv", "measures.npz"):
        assert (here / name).read_bytes() == (whole / name).read_bytes()


def test_the_same_runs_give_the_same_archives(box, trained, tmp_path):
    transfer.take_over("quick", box)
    for folder in paths.results_dir().rglob("*"):
        os.utime(folder, (1e9, 1e9))
    transfer.export(list(reversed(RUNS)) + RUNS, "quick", tmp_path / "again")
    assert files(tmp_path / "again") == files(box)


def test_taking_over_twice_changes_nothing(box):
    transfer.take_over("quick", box)
    before = {f: f.stat().st_mtime_ns for f in paths.results_dir().rglob("*.*")}
    done = transfer.take_over("quick", box)
    assert done.taken == [] and len(done.kept) == 2
    assert {f: f.stat().st_mtime_ns for f in paths.results_dir().rglob("*.*")} == before


def test_runs_are_spread_over_archives_each_whole_in_one(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(trained))
    monkeypatch.setattr(transfer, "MOST_BYTES", largest() + 1)
    made = transfer.export(RUNS, "quick", tmp_path / "box")
    assert [f.name for f in made] == ["quick-1.zip", "quick-2.zip"]
    assert all(f.stat().st_size < transfer.MOST_BYTES for f in made)
    folders = [{name.rsplit("/", 1)[0] for name in zipfile.ZipFile(f).namelist()} for f in made]
    assert sorted(map(sorted, folders)) == sorted([[name_of(BARE)], [name_of(UNDER_WAY)]])
    monkeypatch.setattr(transfer, "MOST_BYTES", 2**24)
    assert [f.name for f in transfer.export(RUNS, "quick", tmp_path / "box")] == ["quick-1.zip"]
    assert [f.name for f in (tmp_path / "box").iterdir()] == ["quick-1.zip"], (
        "no archive of the earlier export is left"
    )


@pytest.mark.parametrize(
    ("files_", "size"), [(1, None), (8, 500)], ids=["too many files", "a run too large"]
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    files_, size, trained, tmp_path, monkeypatch
):
    monkeypatch.setenv("RESULTS_DIR", str(trained))
    monkeypatch.setattr(transfer, "MOST_FILES", files_)
    monkeypatch.setattr(transfer, "MOST_BYTES", size or largest() + 1)
    with pytest.raises(
        transfer.TransferError, match=r"the 2 runs take \d\.\d MiB packed, in 2 files.* have to fit"
    ):
        transfer.export(RUNS, "quick", tmp_path / "box")
    assert not (tmp_path / "box").exists()


def test_without_anything_stored_there_is_nothing_to_export(tmp_path):
    with pytest.raises(transfer.TransferError, match="no run of quick is finished"):
        transfer.export(RUNS, "quick", tmp_path)


# ---- merging


def test_a_run_under_way_never_replaces_a_finished_one(box):
    store.ensure([UNDER_WAY], profile="mine")
    before = files(paths.results_dir())
    done = transfer.take_over("quick", box)
    assert done.kept == [UNDER_WAY.name] and done.taken == [BARE.name]
    assert {
        name: c for name, c in files(paths.results_dir()).items() if UNDER_WAY.id in name
    } == before


def test_a_finished_run_stays_though_another_one_arrives(box):
    store.ensure([replace(BARE, ablations=("shared/test",))], profile="quick")
    before = files(paths.results_dir())
    assert transfer.take_over("quick", box).kept == [BARE.name]
    assert files(paths.results_dir()).items() >= before.items()


def test_a_finished_run_takes_the_place_of_one_under_way_and_its_checkpoint_goes(box):
    folder = paths.results_dir() / "mine" / BARE.dataset / BARE.name
    with pytest.raises(trainer.OutOfTime):
        trainer.fit([BARE], [folder], deadline=0.0)
    assert BARE.name in transfer.take_over("quick", box).taken
    assert {f.name for f in folder.iterdir()} == {
        "config.json",
        "env.json",
        "measures.npz",
        "metrics.csv",
    }
    assert store.find(BARE) == folder, "it stays in the profile in which it was begun"


@pytest.mark.parametrize(("epochs", "left"), [(1, 2), (2, 1)])
def test_of_two_runs_under_way_the_one_that_is_further_stays(epochs, left, box):
    begin(UNDER_WAY, epochs)
    mine = (store.find(UNDER_WAY) / "checkpoint.pt").read_bytes()
    assert UNDER_WAY.name in transfer.take_over("quick", box).kept
    assert (
        store.epochs_left(UNDER_WAY) == left
        and (store.find(UNDER_WAY) / "checkpoint.pt").read_bytes() == mine
    )


def test_a_run_under_way_that_is_further_is_taken_over(box):
    run_dir.begin(paths.results_dir() / "quick" / "digits" / UNDER_WAY.name, UNDER_WAY)
    assert UNDER_WAY.name in transfer.take_over("quick", box).taken
    assert store.epochs_left(UNDER_WAY) == 2


def test_a_run_that_is_being_trained_is_left_alone(box):
    with store.lock(BARE, block=False):
        assert transfer.take_over("quick", box).kept == [BARE.name]
    assert store.find(BARE) is None


# ---- refused


def other_config(held):
    path = name_of(BARE, "config.json")
    held[path] = held[path].replace(b'"learning_rate": 0.1', b'"learning_rate": 0.2')


def other_folder(held):
    for path in [path for path in held if BARE.id in path]:
        held[path.replace(BARE.id, "0123456789")] = held.pop(path)


def other_dataset(held):
    for path in [path for path in held if BARE.id in path]:
        held[path.replace("/digits/", "/mnist/")] = held.pop(path)


def other_checkpoint(held):
    for file in ("env.json", "measures.npz", "metrics.csv"):
        del held[name_of(BARE, file)]
    held[name_of(BARE, "checkpoint.pt")] = held[name_of(UNDER_WAY, "checkpoint.pt")]


def fewer_epochs(held):
    path = name_of(BARE, "metrics.csv")
    held[path] = b"\n".join(held[path].splitlines()[:-1])


def no_arrays(held):
    held[name_of(BARE, "measures.npz")] = b"no arrays"


def no_config(held):
    del held[name_of(BARE, "config.json")]


def nothing_trained(held):
    for file in ("env.json", "measures.npz", "metrics.csv"):
        del held[name_of(BARE, file)]


CHANGES = [
    other_config,
    other_folder,
    other_dataset,
    other_checkpoint,
    fewer_epochs,
    no_arrays,
    no_config,
    nothing_trained,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_is_not_what_its_name_says_is_refused_and_the_others_are_taken_over(change, box):
    repack(box, change)
    done = transfer.take_over("quick", box)
    assert done.taken == [UNDER_WAY.name] and len(done.refused) == 1
    assert (
        done.refused[0].startswith("quick/") and "al2_cnn-bare-corrupt75-seed0-" in done.refused[0]
    )
    assert {name.split("/")[2] for name in files(paths.results_dir())} == {UNDER_WAY.name}


def test_a_run_whose_place_is_damaged_is_refused_and_the_others_are_taken_over(box):
    begin(UNDER_WAY)
    path = store.find(UNDER_WAY) / "checkpoint.pt"
    path.write_bytes(b"no checkpoint")
    done = transfer.take_over("quick", box)
    assert (
        done.taken == [BARE.name]
        and UNDER_WAY.name in done.refused[0]
        and path.read_bytes() == b"no checkpoint"
    )


@pytest.mark.parametrize(
    "path",
    [
        "../escaped.txt",
        "quick/digits/../../../metrics.csv",
        "/tmp/metrics.csv",
        "quick\\..\\x",
        "quick//x/metrics.csv",
    ],
)
def test_a_path_that_would_leave_the_results_folder_is_refused_and_nothing_is_written(path, box):
    repack(box, lambda held: held.update({path: b"x"}))
    with pytest.raises(
        transfer.TransferError, match=r"quick-1\.zip holds .* would leave the results folder"
    ):
        transfer.take_over("quick", box)
    assert not paths.results_dir().exists()
    assert not (paths.results_dir().parent / "escaped.txt").exists()


@pytest.mark.parametrize(
    "path",
    [
        "notes.txt",
        "quick/digits/x-1/notes.txt",
        ".locks/digits/x-1/metrics.csv",
        "a/b/c/d/config.json",
    ],
)
def test_anything_but_files_of_runs_is_refused(path, box):
    repack(box, lambda held: held.update({path: b"x"}))
    with pytest.raises(transfer.TransferError, match="no file of a run"):
        transfer.take_over("quick", box)
    assert not paths.results_dir().exists()


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:200] + bytes(50) + b[250:]]
)
def test_a_damaged_archive_is_refused_before_anything_is_written(damage, box):
    """Also what is whole in another archive waits until all are read."""
    content = (box / "quick-1.zip").read_bytes()
    (box / "quick-2.zip").write_bytes(damage(content))
    with pytest.raises(transfer.TransferError, match=r"quick-2\.zip is damaged"):
        transfer.take_over("quick", box)
    assert not paths.results_dir().exists()


def test_a_folder_without_archives_is_refused(tmp_path):
    with pytest.raises(transfer.TransferError, match=r"holds no archive quick-1\.zip"):
        transfer.take_over("quick", tmp_path)


def test_a_killed_take_over_leaves_no_run_that_looks_finished(box, monkeypatch):
    replacing = paths.replacing
    seen = []

    def killed(target):
        seen.append(target.name)
        if target.name == "metrics.csv":
            raise KeyboardInterrupt
        return replacing(target)

    monkeypatch.setattr(paths, "replacing", killed)
    with pytest.raises(KeyboardInterrupt):
        transfer.take_over("quick", box)
    monkeypatch.undo()
    assert "metrics.csv" in seen and store.available(RUNS) == []


# ---- the command line


def test_the_command_line_packs_takes_over_and_refuses_by_name(
    trained, box, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(campaign, "plan", lambda profile: [campaign.Entry("10_one", {})])
    monkeypatch.setattr(campaign.Entry, "runs", lambda self: RUNS)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["campaign", "--profile", "quick", *map(str, arguments)])
        campaign.main()
        return capsys.readouterr().out

    assert call("--import", box) == "2 runs taken over, 0 left as they were\n"
    assert call("--export", tmp_path / "mine") == f"{tmp_path / 'mine' / 'quick-1.zip'}\n"
    assert files(tmp_path / "mine") == files(box)
    repack(box, other_config)
    with pytest.raises(SystemExit, match=f"error: refused: quick/digits/{BARE.name}.*"):
        call("--import", box)
    with pytest.raises(SystemExit, match=r"error: .*holds no archive"):
        call("--import", tmp_path)
    assert json.loads((store.find(BARE) / "config.json").read_text())["run"]["learning_rate"] == 0.1


def test_what_was_carried_here_says_how_long_the_rest_takes(box):
    transfer.take_over("quick", box)
    assert {pace.run.id for pace in budget.paces()} == {BARE.id, UNDER_WAY.id}


def test_what_a_killed_training_left_behind_does_not_spoil_a_finished_run(box):
    folder = paths.results_dir() / name_of(BARE)
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"diverged": 2}')
    (folder / "weights.pt").write_bytes(b"of another")
    transfer.take_over("quick", box)
    assert run_dir.read_metrics(folder)[1] is None and not (folder / "weights.pt").exists()
