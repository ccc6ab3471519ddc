"""A page a claim: what the paper says and where, what was measured, verdict and rule, deviations, what was unclear.

Made of `results/published/claims.yaml` (what is said about the papers) and of stored runs (every number).
"""

from collections.abc import Sequence
from fnmatch import fnmatch

import pandas as pd

from lib.claims import CLAIMS, runs_of
from lib.run import Run
from lib.studies import SPARSITY_DEFAULTS

# Settings in which a profile's runs may deviate from the papers', as a reader would call them.
SETTINGS = {
    "n_train": "training images",
    "epochs": "epochs",
    "batch_size": "batch size",
    "optimizer": "optimiser",
    "learning_rate": "learning rate",
    "momentum": "momentum",
    "speed": "epochs of the λ series an epoch",
    "image_size": "image size (pixels)",
    "classes": "classes",
    "precision": "precision of a step's products",
}
NOT_GIVEN = {"image_size": "the set's own"}  # what the default None of a setting means, where it does not mean all
PAPERS_PRECISION = {"precision": "float32"}  # what both papers' frameworks compute in where nothing is said


def page(claim: str, judged: pd.DataFrame, frame: pd.DataFrame, drawn: Sequence[str], written: Sequence[str]) -> str:
    """The page of one claim, Markdown.

    Args:
        claim: "A1" … "A10", "S1" … "S10".
        judged: as `lib.claims.judge` gives it.
        frame: the runs it was judged by.
        drawn: names of the report's figures, which lie in `../figures` beside the page's folder.
        written: names of its tables, which lie in `../tables`.
    """
    said, rows = CLAIMS[claim], judged[judged.claim == claim]
    columns = ["profile", "dataset", "published", "measured", "n", "verdict"]
    rule = next((rule for rule in rows.rule if rule), "not judged yet: no run answers it")
    tables = [name for name in said["tables"] if name in written]
    figures = [name for name in drawn if any(fnmatch(name, pattern) for pattern in said["figures"])]
    parts = [
        f"# {claim}: {said['statement']}",
        f"**Where the claim is made.** {said['source']}.",
        "## Verdict",
        rows[columns].to_markdown(index=False),
        f"**Rule.** {rule}.",
        "Published and measured pairs read *without → with* the regulariser. `indicative` means one seed.",
        "## How the runs deviate from the paper",
        deviations(claim, frame),
    ]
    parts += ["## What the paper leaves unclear, and how it is read here", *[f"- {text}" for text in said["unclear"]]] * bool(
        said["unclear"]
    )
    parts += ["## Tables", *[f"- [`{name}`](../tables/{name}.csv)" for name in tables]] * bool(tables)
    parts += ["## Figures", *[f"![{name}](../figures/{name}.png)" for name in figures]] * bool(figures)
    return "\n\n".join([*parts, "[All claims](../report.md)"]) + "\n"


def deviations(claim: str, frame: pd.DataFrame) -> str:
    """A table of the settings in which the claim's runs differ from the paper's: a row a setting, a column a profile."""
    runs = runs_of(claim, frame)
    if runs.empty:
        return "No run of it is stored."
    if claim.startswith("S") and claim != "S8":
        runs = runs[runs.optimizer == "sgd"]  # Adam has a claim of its own
    if claim.startswith("S") and claim not in ("S6", "S7"):
        runs = runs[runs["size"] != ""]  # LeNet and AlexNet have claims of their own
    paper = _papers_settings(claim)
    rows = []
    for name, label in SETTINGS.items():
        found = {f"profile {profile}": _values(own, name) for profile, own in runs.groupby("profile", sort=False)}
        if any(values not in (paper[name], "–") for values in found.values()):
            rows.append({"setting": label, "in the paper": paper[name], **found})
    stand_ins = sorted({name for name in runs.dataset if name.endswith(("_jpeg", "_32"))})
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) if rows else "In no setting of the training."
    sets = f"\n\nStand-ins for data sets that could not be had: {', '.join(f'`{name}`' for name in stand_ins)}."
    return table + sets * bool(stand_ins)


def _papers_settings(claim: str) -> dict[str, str]:
    """Of AL2 the defaults of `Run`; of targeted sparsity those of `lib.studies`, both optimisers."""
    names = SETTINGS.keys() - PAPERS_PRECISION.keys()
    if claim.startswith("A"):
        run = Run("mnist", al2=True)
        return {name: _text(name, getattr(run, name)) for name in names} | PAPERS_PRECISION
    said = {name: _text(name, SPARSITY_DEFAULTS.get(name, getattr(Run("mnist"), name))) for name in names} | PAPERS_PRECISION
    optimizers = "sgd, adam" if claim == "S8" else "sgd"
    return said | {"optimizer": optimizers, "learning_rate": "0.01 (SGD), not given (Adam)" if claim == "S8" else "0.01"}


def _values(runs: pd.DataFrame, name: str) -> str:
    used = {"speed": runs[runs.al2.astype(bool)], "momentum": runs[runs.optimizer == "sgd"]}.get(name, runs)  # where it acts
    values = sorted({_text(name, value) for value in used[name]} or {"–"}, key=lambda text: (len(text), text))
    return ", ".join(values) if len(values) <= 4 else f"{values[0]} … {values[-1]}"


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    return NOT_GIVEN.get(name, "all") if value is None or pd.isna(value) else f"{value:g}"
