"""Every test has its own results and caches, trains on the CPU, and needs nothing from the
internet.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import pytest

from lib import paths


def pytest_ignore_collect(collection_path, config):
    """With `-m gpu` no other file is imported: a machine that only trains has few packages."""
    if config.option.markexpr == "gpu" and collection_path.suffix == ".py":
        return collection_path.name != "test_gpu.py" or None


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Nothing that a test writes outlives it or meets what another test, or a reader, has trained,
    or what is committed.
    """
    monkeypatch.setattr(paths, "EVIDENCE", ())
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.delenv("PRECISION", raising=False)
    # under a parallel make the store starts no processes
    monkeypatch.delenv("MAKEFLAGS", raising=False)


@pytest.fixture
def epochs_trained(monkeypatch):
    """Every epoch that is trained in this process, in order; a test may clear the list."""
    from lib.trainer import TrainStep

    epochs = []
    train = TrainStep.epoch
    monkeypatch.setattr(
        TrainStep,
        "epoch",
        lambda steps, epoch, weight: (epochs.append(epoch), train(steps, epoch, weight))[1],
    )
    return epochs


@pytest.fixture
def figure_style():
    """Figures look as in the notebooks, and none stays open."""
    import matplotlib.pyplot as plt

    from lib import plots

    with plt.rc_context():
        plots.style()
        yield
    plt.close("all")
