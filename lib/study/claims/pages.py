"""A page a claim: what the paper says, what was measured, verdict, deviations, what was unclear.

Made of `results/published/claims.yaml` (what is said about the papers) and of stored runs (every
number).
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from lib.run import Run
from lib.study import evidence
from lib.study.claims import RULE, TEXTS, runs_of, shown_cells
from lib.study.claims.verdicts import CLAIMS
from lib.study.experiments import SPARSITY_DEFAULTS

# Settings in which a profile's runs may deviate from the papers', as a reader would call them.
SETTINGS = {
    "n_train": "training images",
    "n_validation": "images held out",
    "epochs": "epochs",
    "batch_size": "batch size",
    "optimizer": "optimiser",
    "learning_rate": "learning rate",
    "momentum": "momentum",
    "weight_decay": "weight decay, where there is any",
    "speed": "epochs of the λ series an epoch",
    "image_size": "image size (pixels)",
    "classes": "classes",
    "precision": "precision of a step's products",
}
# What the default None of a setting means, where it does not mean all.
NOT_GIVEN = {"image_size": "the set's own"}
READING = (
    "`reading` is how SparsityReg joins the images of a batch, mean or sum. The paper does not "
    "say; with the sum the same λ is 64 times as strong. Both were trained, neither is chosen "
    "([notebook 23](../../../notebooks/23_penalty_readings.ipynb))."
)
UNSTATED = "not run: no profile of this report states its runs."
# what both papers' frameworks compute in where nothing is said
PAPERS_PRECISION = {"precision": "float32"}
BOTH_OPTIMISERS = {"optimizer": "sgd, adam", "learning_rate": "0.01 (SGD), not given (Adam)"}
# where a paper trains differently for one claim
DIFFERENTLY = {
    "A6": {"epochs": "750"},  # AL2, Figure 1: its dropout networks train a little longer
    "S3": {"epochs": "100, 200 (Figure 6)"},
    "S5": BOTH_OPTIMISERS,
    "S8": BOTH_OPTIMISERS,
}


def page(
    claim: str,
    judged: pd.DataFrame,
    cells: pd.DataFrame,
    frames: Mapping[str, pd.DataFrame],
    figures: Mapping[str, str],
    tables: Mapping[str, str],
) -> str:
    """The page of one claim, Markdown.

    Args:
        claim: "A1" … "A10", "S1" … "S10".
        judged, cells: as `lib.study.claims` gives them.
        frames: the runs it was judged by, by experiment.
        figures: captions of the report's figures by name, which lie in `../figures` beside the
            page's folder.
        tables: captions of its tables, which lie in `../tables`.
    """
    said = TEXTS[claim]
    rows = judged[judged.claim == claim].drop(columns=["claim", "statement"])
    by_reading = (rows.reading != "").any()
    profiles = rows.profile.unique() if len(rows) else ["paper"]
    if not by_reading:
        rows = rows.drop(columns="reading")
    run = shown_cells(cells[cells.claim == claim]).drop(columns="claim")
    parts = [
        f"# {claim}: {said['statement']}",
        f"**Where the claim is made.** {said['source']}.",
        "## Verdict",
        rows.to_markdown(index=False, disable_numparse=True) if len(rows) else UNSTATED,
        "`n`: the least number of seeds of a cell. `images`: test images that accuracies were "
        "measured on.",
        READING if by_reading else "",
        "## Cells",
        run.to_markdown(index=False, disable_numparse=True) if len(run) else "None was run.",
        f"**What its cells are.** {CLAIMS[claim].text}",
        f"**How a verdict is computed.** {RULE}.",
        *(["**Changes of the rule since first results.**"] if said.get("changes") else []),
        *(f"- {text}" for text in said.get("changes", [])),
        "## How the runs deviate from the paper",
        deviations(claim, frames),
    ]
    if said["unclear"]:
        parts.append("## What the paper leaves unclear, and how it is read here")
        parts += [f"- {text}" for text in said["unclear"]]
    parts += ["## How to make it", *commands(claim, profiles)]
    if shown := [name for name in said["tables"] if name in tables]:
        parts.append("## Tables")
        for name in shown:
            parts.append(f"[`{name}`](../tables/{name}.csv): {tables[name]}")
            parts += small_table(evidence.folder() / "tables" / f"{name}.csv")
    if shown := figures_of(claim, figures):
        parts.append("## Figures")
        parts += [picture(name, figures[name], "../figures") for name in shown]
    return "\n\n".join([*filter(None, parts), "[All claims](../report.md)"]) + "\n"


def figures_of(claim: str, figures: Iterable[str]) -> list[str]:
    """The names of those figures that are about a claim."""
    return [name for name in figures if any(fnmatch(name, p) for p in TEXTS[claim]["figures"])]


def commands(claim: str, profiles: Iterable[str]) -> list[str]:
    """What trains and renders the runs that a claim reads, a line each."""
    lines = [
        f"make experiment NAME={experiment} PROFILE={profile}"
        for profile in profiles
        for experiment in CLAIMS[claim].experiments
    ]
    return ["```sh\n" + "\n".join([*lines, "make report"]) + "\n```"]


def small_table(path: Path, rows: int = 15) -> list[str]:
    """A stored table as Markdown, where it is there and has no more than so many rows."""
    if not path.exists() or len(table := pd.read_csv(path)) > rows:
        return []
    texts = table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value)
    return [texts.mask(table.isna(), "–").to_markdown(index=False, disable_numparse=True)]


def picture(name: str, caption: str, folder: str) -> str:
    """A figure of the report with its caption, Markdown; `folder` as seen from the page."""
    return f"![{name}]({folder}/{name}.png)\n\n*{caption}* (`{name}`)"


def deviations(claim: str, frames: Mapping[str, pd.DataFrame]) -> str:
    """The settings in which a claim's runs differ from the paper's, a column a profile."""
    runs = runs_of(claim, frames)
    runs = runs[runs.epoch.notna() | runs.diverged.notna()]  # finished
    if runs.empty:
        return "No run of it is stored."
    if claim.startswith("S") and DIFFERENTLY.get(claim) is not BOTH_OPTIMISERS:
        runs = runs[runs.optimizer == "sgd"]  # which alone is judged
    if claim.startswith("S") and claim not in ("S6", "S7"):
        runs = runs[runs["size"] != ""]  # LeNet and AlexNet have claims of their own
    paper = _papers_settings(claim)
    rows = []
    for name, label in SETTINGS.items():
        found = {
            f"profile {profile}": _values(own, name)
            for profile, own in runs.groupby("profile", sort=False)
        }
        if any(values not in (paper[name], "–") for values in found.values()):
            rows.append({"setting": label, "in the paper": paper[name], **found})
    if not rows:
        return "In no setting of the training."
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _papers_settings(claim: str) -> dict[str, str]:
    """The papers' settings: the defaults of `Run`, or those of `lib.study.experiments`."""
    settings = Run("mnist", al2=True, weight_decay=5e-4).to_dict() | PAPERS_PRECISION
    if claim.startswith("S"):
        settings |= SPARSITY_DEFAULTS | {"optimizer": "sgd", "learning_rate": "0.01"}
    settings |= DIFFERENTLY.get(claim, {})
    return {name: _text(name, settings[name]) for name in SETTINGS}


def _values(runs: pd.DataFrame, name: str) -> str:
    # the runs in which the setting acts
    if name == "speed":
        runs = runs[runs.al2.astype(bool)]
    if name == "momentum":
        runs = runs[runs.optimizer == "sgd"]
    if name == "weight_decay":
        runs = runs[runs.weight_decay > 0]
    texts = {_text(name, value) for value in runs[name]} or {"–"}
    values = sorted(texts, key=lambda text: (len(text), text))
    return ", ".join(values) if len(values) <= 4 else f"{values[0]} … {values[-1]}"


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    return NOT_GIVEN.get(name, "all") if value is None or pd.isna(value) else f"{value:g}"
