"""Every notebook that trains renders with any parameters that its runs accept.

Own data, one epoch, other ablations or none, a seed twice, no or only wrong labels, networks that
diverge, nothing stored: it says in words what is not there. The cells are executed in one process a
notebook, which is faster than kernels; nbval executes them as they are committed.
"""

import contextlib
import io
import json
import multiprocessing
import os
import traceback
from concurrent.futures import ProcessPoolExecutor

import nbformat
import pytest
from made import image_folder

from lib import paths

OWN = {"dataset": "own", "image_size": None, "n_train": None, "batch_size": 16, "jobs": 1}
DIGITS = {"n_train": 100, "n_validation": 20, "test_images": 40, "jobs": 1}
FEW = DIGITS | {"totals": [3.0], "weight_decays": [5e-4]}
SETS = OWN | {"n_measure": 6, "screen_epochs": 1}
AL2 = {
    "own data, one epoch, another ablation": OWN
    | {"n_validation": 6, "seeds": [7], "epochs": 1, "ablations": ["channel/test"]}
    | {"totals": [], "weight_decays": [5e-4]},
    "true labels, nothing ablated or held out": DIGITS
    | {"seeds": [7], "epochs": 3, "corruption": 0.0, "ablations": [], "n_validation": 0}
    | {"totals": [], "weight_decays": []},
    "all labels wrong, a seed twice": FEW
    | {"seeds": [0, 0], "epochs": 2, "corruption": 1.0, "dropouts": [0.0]},
    "all diverge": FEW | {"seeds": [7], "epochs": 3, "learning_rate": 1e6},
    "some diverge": FEW | {"seeds": [0, 1], "epochs": 6, "learning_rate": 5.0},
}
CONVNETS = {
    "own data, one epoch, one network": SETS
    | {"seeds": [7], "epochs": 1, "networks": ["vanillaNet"]}
    | {"chosen": None, "trained": [], "strengths": []},
    "a seed twice, Adam": SETS
    | {"seeds": [1, 1], "epochs": 2, "optimizer": "adam", "learning_rate": None},
    "all diverge": SETS | {"seeds": [7], "epochs": 3, "learning_rate": 1e7},
    "some diverge": SETS | {"seeds": [1, 2], "epochs": 6, "learning_rate": 1.5},
}
TWO = OWN | {"clean_dataset": "own", "clean_image_size": None, "clean_n_train": None}
TWO |= {"clean_n_measure": 6, "clean_batch_size": 16, "n_validation": 6, "n_measure": 6}
BOTH = {
    "own data, one epoch": TWO | {"seeds": [7], "epochs": 1, "clean_epochs": 1},
    "a seed twice, no second test": TWO | {"seeds": [3, 3], "epochs": 2, "clean_dataset": None},
    "all diverge": TWO
    | {"epochs": 3, "clean_epochs": 3, "learning_rate": 1e6, "clean_learning_rate": 1e7},
    "some diverge": TWO | {"seeds": [0, 1], "epochs": 6, "clean_epochs": 6, "learning_rate": 1.5},
}
NOTEBOOKS = dict.fromkeys(["10_al2_label_randomization", "11_al2_ablation", "12_al2_cca"], AL2)
NOTEBOOKS |= dict.fromkeys(["13_al2_schedules", "15_al2_options", "16_al2_norm_scale"], AL2)
# there is nothing to relabel where no label is wrong
NOTEBOOKS["14_al2_relabel"] = {k: v for k, v in AL2.items() if not k.startswith("true labels")}
# a calibration's seeds are those of no table
NOTEBOOKS["17_al2_miniature"] = {k: v | {"seeds": [107]} for k, v in AL2.items()}
of_convnets = ["20_sparsity_monitor", "21_sparsity_networks", "23_penalty_readings"]
NOTEBOOKS |= dict.fromkeys(of_convnets, CONVNETS)
NOTEBOOKS["22_sparsity_lenet_alexnet"] = {
    k: v | {"networks": ["lenet"], "learning_rate": v.get("learning_rate") or 0.01}
    for k, v in CONVNETS.items()
}
NOTEBOOKS["22_sparsity_lenet_alexnet"]["some diverge"]["learning_rate"] = 20.0
NOTEBOOKS["30_across"] = BOTH
SMALL = {"jobs": 1, "image_size": 16, "epochs": 2}
NOTEBOOKS["00_start_here"] = {
    "one epoch, nothing held out": SMALL | {"epochs": 1, "n_validation": 0},
    "true labels": SMALL | {"corruption": 0.0},
    "all labels wrong": SMALL | {"corruption": 1.0},
    "both diverge": SMALL | {"learning_rate": 1e6},
}
NOTEBOOKS["01_explore"] = {
    "what is not stored": {"source": "lite", "dataset": "cifar10", "convnet": "sr3Net", "size": "m"}
    | {"epochs": 1, "live_corruption": 0.0},
    "all labels wrong": {"epochs": 1, "live_corruption": 1.0, "penalty": "AL2", "reading": "sum"},
}
NOTEBOOKS["02_your_own"] = {
    "one epoch": {"resnet_epochs": 1, "epochs": 1, "n_train": 32, "jobs": 1},
    "true labels, diverging": {"resnet_epochs": 2, "epochs": 2, "n_train": 32, "jobs": 1}
    | {"corruption": 0.0, "learning_rate": 1e6},
}

# which say less where nothing is stored, and fail in that part
ABOUT_STORED_RUNS = {"23_penalty_readings"}


def errors(notebook, values, results):
    """Execute a notebook's cells with other parameters, and go on after an error.

    A line an error: which cell, what, and where in the project it arose.
    """
    import matplotlib

    matplotlib.use("agg")
    from IPython.core.interactiveshell import InteractiveShell

    if notebook not in ABOUT_STORED_RUNS:
        paths.EVIDENCE = ()
    os.environ |= {"PROGRESS": "0", "RESULTS_DIR": results}
    shell = InteractiveShell.instance()
    shell.reset(new_session=False)
    cells = nbformat.read(paths.ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    found = []
    for k, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = shell.run_cell(cell.source)
        if error := result.error_before_exec or result.error_in_exec:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found.append(f"cell {k}: {error!r:.200} in {where.name}: {where.line}")
        if "parameters" in cell.metadata.get("tags", []):
            known = shell.user_ns
            shell.user_ns.update({name: v for name, v in values.items() if name in known})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebooks_render_with_any_parameters_that_their_runs_accept(
    notebook, tmp_path, monkeypatch
):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    image_folder(tmp_path / "own", "ant", "bee", "cat", images=20, shade=12)
    found = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for name, values in NOTEBOOKS[notebook].items():
            found[name] = pool.submit(errors, notebook, values, str(tmp_path / name)).result()
            runs = [file.parent for file in (tmp_path / name).glob("*/*/*/metrics.csv")]
            diverged = sum((run / "status.json").exists() for run in runs)
            assert name != "some diverge" or 0 < diverged < len(runs), (diverged, len(runs))
    assert not any(found.values()), json.dumps(found, indent=1, ensure_ascii=False)
