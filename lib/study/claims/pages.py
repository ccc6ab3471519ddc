"""A page a claim: what the paper says and where, what was measured, and more.

The rest are verdict and rule, deviations, what was unclear.

Made of `results/published/claims.yaml` (what is said about the papers) and of stored runs (every
number).
"""

from collections.abc import Sequence
from fnmatch import fnmatch

import pandas as pd

from lib.run import Run
from lib.study.claims import CLAIMS, runs_of
from lib.study.experiments import SPARSITY_DEFAULTS

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
# What the default None of a setting means, where it does not mean all.
NOT_GIVEN = {"image_size": "the set's own"}
# Of the report's figures, by what their names begin with.
CAPTIONS = {
    "al2_curves": (
        "The metrics of AL2's Table 1 over all epochs. Dashed without AL2, solid with it."
    ),
    "al2_table1": (
        "Test accuracy at the epochs of AL2's Table 1, published and measured. "
        "Dashed without AL2, solid with it."
    ),
    "al2_table2": (
        "Area under the ablation curve at the epochs of AL2's Table 2, published and measured."
    ),
    "al2_cca": (
        "AL2's Figure 1: all canonical correlations of φ with its own start, a line an epoch."
    ),
    "al2_cca_differences": (
        "How far AL2 moves the mean canonical correlation with the start, and how far another seed."
    ),
    "al2_schedules": (
        "AL2 with other series of λ than the paper's, against the series' sum and its last λ (A7)."
    ),
    "al2_weight_decay": (
        "Weight decay of several strengths beside AL2; "
        "the shaded strength is chosen on held-out noisy labels."
    ),
    "al2_relabel": (
        "Bare networks trained on labels that other networks predict (AL2, section 4; A9)."
    ),
    "al2_options": "What AL2 gains where one choice of this study is changed (notebook 15).",
    "al2_norm_scale": (
        "Batch norm with its scale γ starting at 1 and at values from U(0, 1), "
        "beside the printed (notebook 16)."
    ),
    "sparsity_table2": (
        "Best accuracies of targeted sparsity's Table 2, published (crosses) and measured."
    ),
    "sparsity_table3": (
        "Best accuracies of targeted sparsity's Table 3, published (crosses) and measured."
    ),
    "sparsity_losses": (
        "Validation losses without the penalties, smoothed (targeted sparsity, Figures 3 and 6)."
    ),
    "sparsity_entropy": (
        "Mean entropy of the activation vectors of each layer (targeted sparsity, Figure 5)."
    ),
    "sparsity_maps": (
        "Entropy maps of one measuring image, a row an epoch (targeted sparsity, "
        "Figures 4 and A.1)."
    ),
    "sparsity_correlation": (
        "Root mean square correlation of a layer's filters: "
        "Figures 7 and A.2 in one number an epoch."
    ),
    "sparsity_histograms": (
        "Correlations of all pairs of a layer's filters (targeted sparsity, Figures 7 and A.2)."
    ),
    "across_memorisation": "Both papers' penalties on corrupted labels (notebook 30).",
    "across_overfitting": (
        "Both papers' penalties where a ConvNet overfits true labels (notebook 30)."
    ),
}
READING = (
    "`reading` is how SparsityReg joins the images of a batch, mean or sum. The paper does not "
    "say; with the sum the same λ is 64 times as strong. Both were trained, neither is chosen "
    "([notebook 23](../../../notebooks/23_penalty_readings.ipynb))."
)
# what both papers' frameworks compute in where nothing is said
PAPERS_PRECISION = {"precision": "float32"}


def page(
    claim: str,
    judged: pd.DataFrame,
    frame: pd.DataFrame,
    drawn: Sequence[str],
    written: Sequence[str],
) -> str:
    """The page of one claim, Markdown.

    Args:
        claim: "A1" … "A10", "S1" … "S10".
        judged: as `lib.study.claims.judge` gives it.
        frame: the runs it was judged by.
        drawn: names of the report's figures, which lie in `../figures` beside the page's folder.
        written: names of its tables, which lie in `../tables`.
    """
    said = CLAIMS[claim]
    rows = judged[judged.claim == claim]
    columns = ["profile", "dataset", "reading", "published", "measured", "n", "verdict"]
    columns = [name for name in columns if name != "reading" or (rows.reading != "").any()]
    rule = next((rule for rule in rows.rule if rule), "not judged yet: no run answers it")
    tables = [name for name in said["tables"] if name in written]
    explained = ""
    if rows.measured.str.contains("→").any():
        explained += "Pairs read *without → with* the regulariser. "
    if rows.verdict.str.contains("indicative").any():
        explained += "`indicative` means one seed."
    figures = [name for name in drawn if any(fnmatch(name, pattern) for pattern in said["figures"])]
    parts = [
        f"# {claim}: {said['statement']}",
        f"**Where the claim is made.** {said['source']}.",
        "## Verdict",
        rows[columns].to_markdown(index=False),
        f"**Rule.** {rule}.",
        explained,
        READING if (rows.reading != "").any() else "",
        "## How the runs deviate from the paper",
        deviations(claim, frame),
    ]
    if said["unclear"]:
        parts.append("## What the paper leaves unclear, and how it is read here")
        parts += [f"- {text}" for text in said["unclear"]]
    if tables:
        parts.append("## Tables")
        parts += [f"- [`{name}`](../tables/{name}.csv)" for name in tables]
    if figures:
        parts.append("## Figures")
        parts += [picture(name, "../figures") for name in figures]
    return "\n\n".join([*filter(None, parts), "[All claims](../report.md)"]) + "\n"


def picture(name: str, folder: str) -> str:
    """A figure of the report with its caption, Markdown.

    Args:
        name: as `lib.study.report.drawings` gives it: what it shows, then of what.
        folder: of the figures, seen from the page.
    """
    what, _, of = name.partition("-")
    caption = CAPTIONS[what]
    if of:
        caption += f" (`{of}`)"
    return f"![{name}]({folder}/{name}.png)\n\n*{caption}*"


def deviations(claim: str, frame: pd.DataFrame) -> str:
    """A table of the settings in which the claim's runs differ from the paper's.

    It has one row per setting, one column per profile.
    """
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
        found = {
            f"profile {profile}": _values(own, name)
            for profile, own in runs.groupby("profile", sort=False)
        }
        if any(values not in (paper[name], "–") for values in found.values()):
            rows.append({"setting": label, "in the paper": paper[name], **found})
    return (
        pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
        if rows
        else "In no setting of the training."
    )


def _papers_settings(claim: str) -> dict[str, str]:
    """The papers' settings.

    Of AL2 they are the defaults of `Run`; of targeted sparsity those of `lib.study.experiments`,
    both optimisers.
    """
    names = SETTINGS.keys() - PAPERS_PRECISION.keys()
    if claim.startswith("A"):
        run = Run("mnist", al2=True)
        # AL2, Figure 1: its dropout networks train a little longer
        epochs = {"epochs": "750"} if claim == "A6" else {}
        return {name: _text(name, getattr(run, name)) for name in names} | PAPERS_PRECISION | epochs
    said = {
        name: _text(name, SPARSITY_DEFAULTS.get(name, getattr(Run("mnist"), name)))
        for name in names
    } | PAPERS_PRECISION
    if claim == "S3":
        said["epochs"] = "100, 200 (Figure 6)"
    optimizers = "sgd, adam" if claim == "S8" else "sgd"
    return said | {
        "optimizer": optimizers,
        "learning_rate": "0.01 (SGD), not given (Adam)" if claim == "S8" else "0.01",
    }


def _values(runs: pd.DataFrame, name: str) -> str:
    # the runs in which the setting acts
    used = {"speed": runs[runs.al2.astype(bool)], "momentum": runs[runs.optimizer == "sgd"]}.get(
        name, runs
    )
    values = sorted(
        {_text(name, value) for value in used[name]} or {"–"}, key=lambda text: (len(text), text)
    )
    return ", ".join(values) if len(values) <= 4 else f"{values[0]} … {values[-1]}"


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    return NOT_GIVEN.get(name, "all") if value is None or pd.isna(value) else f"{value:g}"
