"""The report, assembled from stored runs alone.

It is every table and figure of the papers and of our own, and `claims.csv`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lib import models, paths, plots, store
from lib.run import Run
from lib.study import campaign, claims, figures, tables
from lib.study.claims import pages as claim_pages
from lib.study.experiments import VARIANTS
from lib.study.figures import cca as figures_cca
from lib.study.figures import combined as figures_combined
from lib.study.figures import schedules as figures_schedules
from lib.study.figures import sensitivity as figures_sensitivity
from lib.study.figures import sparsity as figures_sparsity
from lib.study.tables import cca as tables_cca
from lib.study.tables import combined as tables_combined
from lib.study.tables import norm_scale
from lib.study.tables import sensitivity as tables_sensitivity

README_BEGIN = "<!-- from results/report/headline.md, by `make report` -->"
README_END = "<!-- end of headline.md -->"
# networks whose filter correlations are drawn
HISTOGRAMS = ("vanillaNet", "normNet", "sr1Net", "sr2Net", "sr3Net")


@dataclass(frozen=True)
class Report:
    """What was assembled.

    The runs by id and their frame, what the profiles state and lack, the tables by name, the
    claims.
    """

    frame: pd.DataFrame
    runs: dict[str, Run]
    progress: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    claims: pd.DataFrame


def gather(profiles: Sequence[str]) -> Report:
    """Read the runs that the profiles' notebooks state, as far as they are finished.

    A profile is judged by these alone.

    What it gives depends on stored runs and parameters, and not on the data sets that lie on this
    machine.

    Raises:
        ValueError: for an unknown profile.
        RecordError: if a run's folder is damaged.
    """
    frames = []
    progress = []
    finished = {}
    for profile in profiles:
        stated: dict[str, Run] = {}
        notebooks: dict[str, set[str]] = {}
        for entry in campaign.plan(profile):
            for run in entry.runs():
                stated[run.id] = run
                notebooks.setdefault(run.id, set()).add(entry.notebook)
        for dataset in dict.fromkeys(r.dataset for r in stated.values()):
            runs = [r for r in stated.values() if r.dataset == dataset]
            done = store.available(runs)
            progress.append([profile, dataset, len(done), len(runs)])
            finished |= {r.id: r for r in done}
            if done:
                frame = store.load(done).assign(profile=profile)
                frames.append(
                    frame.assign(notebooks=[" ".join(sorted(notebooks[i])) for i in frame.id])
                )
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return Report(
        frame=frame,
        runs=finished,
        progress=pd.DataFrame(
            progress, columns=["profile", "dataset", "runs finished", "runs stated"]
        ),
        tables=_tables(frame),
        claims=claims.judge(frame, profiles),
    )


def _tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The papers' tables with what was measured beside it.

    And when losses rise, and what options change, where a run says.
    """
    found = {name: tables.beside_published(name, frame) for name in tables.AL2_TABLES}
    found |= {
        name: tables.sparsity_beside_published(name, frame)
        for name in ("sparsity_table2", "sparsity_table3")
    }
    overfitting = tables.overfitting(tables.sparsity_runs(frame))
    if len(overfitting):
        found["sparsity_overfitting"] = overfitting
    options = tables_sensitivity.table(frame) if "notebooks" in frame else pd.DataFrame()
    if len(options) and (options.option != tables_sensitivity.DEFAULT).any():
        found["al2_options"] = options
    scales = norm_scale.table(frame) if "notebooks" in frame else pd.DataFrame()
    if len(scales):
        found["al2_norm_scale"] = scales
    return found


def drawings(report: Report) -> dict[str, Callable[[], Figure]]:
    """The report's figures by name, each a function that draws it."""
    found: dict[str, Callable[[], Figure]] = {}
    table1, table2 = report.tables["al2_table1"], report.tables["al2_table2"]
    for (profile, dataset, corruption), runs in _cells(
        tables.label_randomization_runs(report.frame, added=True)
    ):
        name = f"al2_curves-{profile}-{dataset}-{100 * corruption:.0f}"
        found[name] = lambda runs=runs: figures.training_curves(runs)
    for profile in report.frame.profile.unique() if len(report.frame) else []:
        for name, table, metric in (
            ("al2_table1", table1, "test_accuracy"),
            ("al2_table2", table2, "ablation_auc"),
        ):
            # the published curves whole, whichever profile answers them
            own = table.assign(measured=table.measured.where(table.profile == profile))
            found[f"{name}-{profile}"] = lambda own=own, metric=metric: figures.beside_paper(
                own, metric
            )
    found |= (
        _cca_drawings(report)
        | _schedule_drawings(report)
        | _relabelling_drawings(report)
        | _option_drawings(report)
    )
    return found | _sparsity_drawings(report) | _across_drawings(report)


def _schedule_drawings(report: Report) -> dict[str, Callable[[], Figure]]:
    """The study of claim A7 at 75 % corruption.

    As far as there is more than one series, more than one weight decay.
    """
    found: dict[str, Callable[[], Figure]] = {}
    runs = figures_schedules.studied(tables.of_notebook(report.frame, "13_al2_schedules"))
    runs = runs[runs.corruption == 0.75] if len(runs) else runs
    for (profile, dataset), own in (
        runs.groupby(["profile", "dataset"], sort=False) if len(runs) else []
    ):
        if own[own.al2].groupby(["schedule", "speed", "rate"], dropna=False).ngroups > 1:
            found[f"al2_schedules-{profile}-{dataset}"] = lambda own=own: (
                figures_schedules.schedules(own)
            )
        if own.weight_decay[own.weight_decay > 0].nunique() > 1:
            found[f"al2_weight_decay-{profile}-{dataset}"] = lambda own=own: (
                figures_schedules.weight_decays(own)
            )
    return found


def _relabelling_drawings(report: Report) -> dict[str, Callable[[], Figure]]:
    """The relabelling that the AL2 paper's section 4 remarks on, at 75 % corruption."""
    runs = tables.relabelling_runs(report.frame)
    found = {}
    runs = runs[runs.corruption.isin((0, 0.75))] if len(runs) else runs
    for (profile, dataset), own in runs.groupby(["profile", "dataset"]) if len(runs) else []:
        if own.labels.isin(("al2", "bare")).any():
            found[f"al2_relabel-{profile}-{dataset}"] = lambda own=own: figures.relabelling_curves(
                own
            )
    return found


def _option_drawings(report: Report) -> dict[str, Callable[[], Figure]]:
    """What options of the protocol change at 75 % corruption, where any was tried."""
    gains = (
        tables_sensitivity.gains(report.frame) if "notebooks" in report.frame else pd.DataFrame()
    )
    gains = gains[gains.corruption == 0.75] if len(gains) else gains
    found = {}
    for (profile, dataset), own in (
        gains.groupby(["profile", "dataset"], sort=False) if len(gains) else []
    ):
        if (own.option != tables_sensitivity.DEFAULT).any():
            found[f"al2_options-{profile}-{dataset}"] = lambda own=own: figures_sensitivity.gains(
                own
            )
    scales = norm_scale.runs_of(report.frame) if "notebooks" in report.frame else pd.DataFrame()
    for (profile, dataset), own in scales.groupby(["profile", "dataset"]) if len(scales) else []:
        if own.scale.nunique() > 1:
            found[f"al2_norm_scale-{profile}-{dataset}"] = lambda own=own: (
                figures_sensitivity.norm_scales(own)
            )
    return found


def _cca_drawings(report: Report) -> dict[str, Callable[[], Figure]]:
    """Figure 1 of the AL2 paper, one row per seed, for each profile, data set and dropout.

    And what claim A6 is judged by.
    """
    runs = tables.of_notebook(report.frame, "12_al2_cca")
    found = {}
    if runs.empty or "mean_cca init" not in runs:
        return found
    measured = runs[runs["mean_cca init"].notna() & (runs.corruption == 0.75)]
    for (profile, dataset, dropout), own in measured.groupby(["profile", "dataset", "dropout"]):
        title = f"{dataset}, 75 % of the labels corrupted, dropout {dropout:g}, profile {profile}"
        ids = (
            own.drop_duplicates("id").sort_values("seed")[["seed", "al2", "id"]].to_numpy().tolist()
        )
        found[f"al2_cca-{profile}-{dataset}-{dropout:g}"] = lambda ids=ids, title=title: _sequences(
            report, ids, title
        )
        # AL2's beside a second seed's, the control
        if tables_cca.differences(own).by.nunique() > 1:
            name = f"al2_cca_differences-{profile}-{dataset}-{dropout:g}"
            found[name] = lambda own=own: figures_cca.difference_curves(own)
    return found


def _sequences(report: Report, ids: Sequence[tuple[int, bool, str]], title: str) -> Figure:
    panels: dict[str, dict[bool, tuple]] = {}
    for seed, al2, name in ids:
        arrays = store.arrays(report.runs[name])
        panels.setdefault(f"seed {seed}", {})[al2] = arrays["cca epochs init"], arrays["cca init"]
    return figures.canonical_correlations(panels, title=title)


def _sparsity_drawings(report: Report) -> dict[str, Callable[[], Figure]]:
    """Figures 3, 5, 6, 7, A.1 and A.2 and Tables 2 and 3 of the targeted-sparsity paper."""
    found: dict[str, Callable[[], Figure]] = {}
    for name in ("sparsity_table2", "sparsity_table3"):
        if report.tables[name].measured.notna().any():
            found[name] = lambda name=name: figures_sparsity.best_beside_paper(report.tables[name])
    runs = tables.sparsity_runs(report.frame)
    runs = runs[runs["size"] != ""] if len(runs) else runs
    for profile, every in runs.groupby("profile", sort=False) if len(runs) else []:
        for reading in tables.readings_in(every):
            own = tables.of_reading(every, reading)
            name = "-".join(filter(None, ["sparsity_losses", profile, reading]))
            found[name] = lambda own=own: figures_sparsity.validation_losses(own)
    for cell, every in (
        runs.groupby(["profile", "dataset", "size", "optimizer"]) if len(runs) else []
    ):
        for run in (report.runs[i] for i in every.id.unique() if i in report.runs):
            if "heat map epochs" in store.arrays(run):
                name = "-".join(filter(None, ["sparsity_maps", *cell, run.variant, str(run.seed)]))
                found[name] = lambda run=run: _heat_maps(run)
        for reading in tables.readings_in(every):
            found |= _cell_drawings(
                report, tables.of_reading(every, reading), "-".join(filter(None, [*cell, reading]))
            )
    return found


def _cell_drawings(
    report: Report, runs: pd.DataFrame, mark: str
) -> dict[str, Callable[[], Figure]]:
    """Figures 5, 7 and A.2 of one data set, size, optimiser and reading of SparsityReg.

    Their names end in `mark`.
    """
    found: dict[str, Callable[[], Figure]] = {}
    if figures_sparsity.layers_measured(runs, "entropy"):
        found[f"sparsity_entropy-{mark}"] = lambda: figures_sparsity.entropies(runs)
    if figures_sparsity.layers_measured(runs, "correlation"):
        found[f"sparsity_correlation-{mark}"] = lambda: figures_sparsity.correlations(runs)
        ids = runs.sort_values("seed").drop_duplicates("network").set_index("network").id
        if drawn := {name: ids[name] for name in HISTOGRAMS if name in ids}:
            found[f"sparsity_histograms-{mark}"] = lambda: _histograms(
                {k: report.runs[i] for k, i in drawn.items()}
            )
    return found


def _across_drawings(report: Report) -> dict[str, Callable[[], Figure]]:
    """Both penalties under both tests: notebook 30's figures, from its own runs alone."""
    if "notebooks" not in report.frame:
        return {}
    found: dict[str, Callable[[], Figure]] = {}
    rows = tables_combined.labelled(tables.of_notebook(report.frame, "30_across"))
    if rows.empty:
        return found
    for (test, profile, dataset), own in rows.groupby(["test", "profile", "dataset"]):
        levels = sorted(own.corruption[own.method != tables_combined.CONTROL].unique())
        for level in levels:
            name = f"across_{test}-{profile}-{dataset}"
            if len(levels) > 1:
                name += f"-{100 * level:.0f}"
            cell = own[(own.corruption == level) | (own.method == tables_combined.CONTROL)]
            if cell.method[cell.method != tables_combined.CONTROL].nunique() < len(
                tables_combined.METHODS
            ):
                # vanillaNet and sr2Net are other notebooks' runs: drawn when AL2 stands beside them
                continue
            draw = (
                figures_combined.memorisation
                if test == "memorisation"
                else figures_combined.overfitting
            )
            found[name] = lambda draw=draw, cell=cell: draw(cell)
    return found


def _heat_maps(run: Run) -> Figure:
    """Figure 4 and A.1: entropy maps of the first measuring image.

    There is a row an epoch, one column per convolution.
    """
    arrays = store.arrays(run)
    found = {
        k.removeprefix("heat maps "): m
        for k, m in arrays.items()
        if k.startswith("heat maps ") and m.ndim == 4
    }
    filters = models.convnet_filters(run.network.removeprefix("convnet_"))
    rows = [plots.when(int(epoch)) for epoch in arrays["heat map epochs"]]
    title = f"{run.variant}, {run.dataset}, {run.optimizer}"
    return plots.heat_map_figure(
        None, {k: m[:, 0] for k, m in found.items()}, filters, rows=rows, title=title
    )


def _histograms(runs: dict[str, Run]) -> Figure:
    """Figure 7 and A.2: conv1, conv4 and fc1 of `HISTOGRAMS`, of each one's first seed."""
    panels = {}
    for network, run in runs.items():
        arrays = store.arrays(run)
        panels |= {
            f"{network} {layer}": arrays[f"correlations {layer}"]
            for layer in ("conv1", "conv4", "fc1")
        }
    length = min(map(len, panels.values()))
    return plots.correlation_figure({name: counts[:length] for name, counts in panels.items()})


def write(report: Report, folder: Path) -> None:
    """Write the report's files; an older report's go.

    They are `tables/*.csv`, `figures/*.png`, `claims/*.md`, `claims.csv`, `headline.md`,
    `report.md`.
    """
    for kind in ("tables", "figures", "claims"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    drawn = drawings(report)
    for old in [*(folder / "figures").glob("*.png"), *(folder / "tables").glob("*.csv")]:
        if old.stem not in drawn and old.stem not in report.tables:
            old.unlink()
    for name, table in report.tables.items():
        _write(folder / "tables" / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    for name, draw in drawn.items():
        fig = draw()
        with paths.replacing(folder / "figures" / f"{name}.png") as part:
            part.write_bytes(plots.png(fig))
        plt.close(fig)

    def page(claim: str) -> str:
        return claim_pages.page(
            claim, report.claims, report.frame, sorted(drawn), list(report.tables)
        )

    for claim in claims.STATEMENTS:
        _write(folder / "claims" / f"{claim}.md", page(claim))
    _write(folder / "claims.csv", report.claims.to_csv(index=False))
    _write(folder / "headline.md", headline(report))
    _write(folder / "report.md", _markdown(report, sorted(drawn)))


def quote_in_readme(folder: Path, readme: Path = paths.ROOT / "README.md") -> None:
    """Put `headline.md` between the two marks in the README, so that no number there is typed.

    Raises:
        ValueError: if the README has not got both marks.
    """
    text = readme.read_text()
    if README_BEGIN not in text or README_END not in text:
        raise ValueError(
            f"{readme} lacks the marks between which the headline stands: {README_BEGIN} … "
            f"{README_END}"
        )
    before, after = text.split(README_BEGIN)[0], text.split(README_END)[1]
    headline = (folder / "headline.md").read_text().strip()
    quoting = f"{before}{README_BEGIN}\n{headline}\n{README_END}{after}"
    if quoting != text:
        _write(readme, quoting)


def headline(report: Report) -> str:
    """Each paper's main table in short, published and measured.

    They are Table 1 of AL2 at 75 % corruption, Table 2 of sparsity.
    """
    return _al2_headline(report) + "\n" + _sparsity_headline(report)


def _al2_headline(report: Report) -> str:
    """Final test accuracy without → with AL2 at 75 % corruption.

    The paper's MNIST row, then each profile and data set.
    """
    rows = [
        [
            "published",
            "mnist",
            1,
            *_arrows(tables.published("al2_table1").rename(columns={"value": "measured"})),
        ]
    ]
    for (profile, dataset, corruption), runs in _cells(
        tables.label_randomization_runs(report.frame)
    ):
        if corruption == 0.75:
            seeds = runs.groupby(["baseline", "al2"]).seed.nunique()
            # "1–3" where some networks have fewer
            n = "–".join(map(str, sorted({seeds.min(), seeds.max()})))
            measured = tables.at_published_epochs(runs, ["test_accuracy"])
            rows.append([f"measured, {profile}", dataset, n, *_arrows(measured)])
    if len(rows) == 1:
        rows.append(["measured", "not run", "", *["not run"] * len(tables.BASELINES)])
    table = pd.DataFrame(rows, columns=["", "data set", "n", *tables.BASELINES.values()])
    return (
        "Test accuracy (%) after the last epoch, 75 % of the training labels corrupted, without → "
        "with AL2 (mean over n seeds ± standard deviation):\n\n"
        + table.to_markdown(index=False, disable_numparse=True)
        + "\n"
    )


def _sparsity_headline(report: Report) -> str:
    """Best accuracy of the six networks.

    The paper's rows for 100 classes and SGD, then each cell that was measured.
    """
    table = report.tables["sparsity_table2"]
    rows = []
    for (dataset, size, optimizer), cell in table[table.published.notna()].groupby(
        tables.SPARSITY_CELL[:3], sort=False
    ):
        if dataset == "cifar100" and optimizer == "sgd":
            values = (
                cell.drop_duplicates("network").set_index("network").published.reindex(VARIANTS)
            )
            rows.append(
                ["published", dataset, size, optimizer, 1, *(f"{100 * v:.1f}" for v in values)]
            )
    measured = table[table.measured.notna()]
    for (profile, dataset, size, optimizer), cell in measured.groupby(
        ["profile", *tables.SPARSITY_CELL[:3]], sort=False
    ):
        for reading in tables.readings_in(cell):
            own = tables.of_reading(cell, reading)
            printed = (
                own.set_index("network").apply(_percent, axis=1).reindex(VARIANTS).fillna("not run")
            )
            name = ", ".join(filter(None, [f"measured, {profile}", reading]))
            # "1–3" where some networks have fewer
            n = "–".join(map(str, sorted({int(own.n.min()), int(own.n.max())})))
            rows.append([name, dataset, size, optimizer, n, *printed])
    for (profile, dataset, size, optimizer, epochs, reading), cell in _longer(report.frame):
        printed = (
            cell.set_index("network").apply(_percent, axis=1).reindex(VARIANTS).fillna("not run")
        )
        name = ", ".join(filter(None, [f"measured, {profile}", reading, f"{epochs} epochs"]))
        rows.append([name, dataset, size, optimizer, int(cell.n.min()), *printed])
    if measured.empty:
        rows.append(["measured", "not run", "", "", "", *["not run"] * len(VARIANTS)])
    frame = pd.DataFrame(rows, columns=["", "data set", "size", "optimiser", "n", *VARIANTS])
    both = (
        "; mean, sum: how SparsityReg joins a batch, which the paper does not say"
        if len(measured)
        else ""
    )
    return (
        "Best validation accuracy (%) over the epochs read, targeted sparsity (mean over n seeds ± "
        f"standard deviation{both}):\n\n"
        + frame.to_markdown(index=False, disable_numparse=True)
        + "\n"
    )


def _longer(frame: pd.DataFrame):
    """Networks of the ConvNets trained longer than the table reads.

    Best accuracy over all their epochs, by cell and length.
    """
    runs = tables.sparsity_runs(frame)
    if runs.empty:
        return []
    longer = runs[(runs["size"] != "") & (runs.epochs > tables.sparsity_epochs_read(runs))]
    keys = ["profile", *tables.SPARSITY_CELL[:3], "epochs"]
    every = []
    for reading in tables.readings_in(longer):
        best = tables.of_reading(longer, reading).groupby([*keys, "network", "seed"])
        best = best.agg(best=("test_accuracy", "max"), diverged=("diverged", "max")).reset_index()
        best["best"] = best.best.mask(best.diverged.notna()) / 100
        cells = best.groupby([*keys, "network"]).best
        found = cells.agg(
            measured=lambda values: values.mean(skipna=False), sd="std", n="size"
        ).reset_index()
        found["measured"] = found.measured.astype(object).where(
            found.measured.notna(), tables.DIVERGED
        )
        every.append(found.assign(reading=reading))
    return pd.concat(every).groupby([*keys, "reading"], sort=False)


def _percent(row: pd.Series) -> str:
    if row.measured == tables.DIVERGED:
        return tables.DIVERGED
    # a fraction may lie a bit below the % it was made of
    return tables.mean_and_sd(round(100 * row.measured, 6), 100 * row.sd)


def _arrows(measured: pd.DataFrame) -> list[str]:
    rows = measured[(measured.metric == "test_accuracy") & (measured.epoch == tables.PAPER_EPOCHS)]
    printed = tables.as_printed(rows, "test_accuracy")
    pairs = [
        printed.loc[short, tables.PAPER_EPOCHS].replace(" / ", " → ")
        for short in tables.BASELINES.values()
    ]
    return [
        tables.NOT_RUN if pair == f"{tables.NOT_RUN} → {tables.NOT_RUN}" else pair for pair in pairs
    ]


def _cells(frame: pd.DataFrame):
    return frame.groupby(["profile", "dataset", "corruption"]) if len(frame) else []


def _markdown(report: Report, drawn: Sequence[str]) -> str:
    judged = report.claims.copy()
    first = judged.claim.ne(judged.claim.shift())
    judged["statement"] = judged.statement.where(first, "")
    judged["claim"] = ("[" + judged.claim + "](claims/" + judged.claim + ".md)").where(first, "")
    columns = [
        "claim",
        "statement",
        "profile",
        "dataset",
        "reading",
        "published",
        "measured",
        "n",
        "verdict",
    ]
    rules = report.claims[report.claims.rule != ""].drop_duplicates("claim")
    return (
        "\n\n".join(
            [
                "# Report",
                "Assembled from the stored runs of the profiles below; `make report` writes it "
                "anew. Nothing is typed by hand.",
                "## What was run",
                report.progress.to_markdown(index=False),
                "## Headline",
                headline(report).strip(),
                "## Claims",
                "Published and measured pairs read *without → with AL2*. The rules of the "
                "verdicts stand below. A claim's own page says where the paper makes it, how the "
                "runs deviate and what was unclear. A claim about SparsityReg has a row for each "
                "reading of it, mean or sum over the batch: the paper does not say which.",
                judged[columns].to_markdown(index=False),
                "### Rules",
                *[f"**{row.claim}**: {row.rule}." for row in rules.itertuples()],
                "## Tables",
                *[f"- [`tables/{name}.csv`](tables/{name}.csv)" for name in report.tables],
                "## Figures",
                *[f"### {name}\n\n{claim_pages.picture(name, 'figures')}" for name in drawn],
            ]
        )
        + "\n"
    )


def _write(path: Path, text: str) -> None:
    with paths.replacing(path) as part:
        part.write_text(text)
