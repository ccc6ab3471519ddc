"""The papers' experiments as lists of runs: what a notebook trains, its parameters as arguments.

Of each, `seeds` are those of the runs and `settings` fields of `Run` for all of them. A ValueError
says which setting is unknown, or cannot be set since the runs differ in it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from lib.losses import BATCHES, CENTRES, PAIRS, REDUCTIONS
from lib.run import SCREENING_SEED, SPARSITY_NETWORKS, Run
from lib.schedules import SCHEDULES, schedule, schedule_of_total

# How the targeted-sparsity paper trains (section 4; scale of the images: the protocol).
SPARSITY_DEFAULTS = {"corruption": 0.0, "normalize": "unit", "momentum": 0.0, "epochs": 100}
SPARSITY_DEFAULTS |= {"n_measure": 1000, "entropy": True}
VARIANTS = ("vanillaNet", "dropNet", "normNet", "sr1Net", "sr2Net", "sr3Net")
WITHOUT_AND_WITH = ({"al2": False}, {"al2": True})
FOUR_BASELINES = ("bare", "batchnorm", "dropout", "weight_decay")  # of AL2's Table 1


def label_randomization(
    dataset: str,
    *,
    seeds: Iterable[int] = (0,),
    dropout: float = 0.5,
    weight_decay: float = 5e-4,
    dropout_epochs: int | None = None,
    penalties: Sequence[Mapping[str, Any]] = (),
    **settings: Any,
) -> list[Run]:
    """The eight networks of AL2's Table 1: bare, batch norm, dropout, weight decay, each without
    and with AL2.

    Args:
        dropout, weight_decay: strengths of their own baselines; > 0.
        dropout_epochs: length of the dropout networks, which Figure 1 follows for longer; the
            tables read the first part.
        penalties: each, as `Run.penalties` takes it, adds four networks: a regulariser of one's own
            beside AL2.
    """
    _refuse(settings, "al2 batch_norm seed", "what the eight networks differ in (seeds: a list)")
    if not (dropout > 0 and weight_decay > 0):
        raise ValueError(
            f"dropout is {dropout} and weight_decay {weight_decay}; their baselines need both "
            "positive"
        )
    longer = {} if dropout_epochs is None else {"epochs": dropout_epochs}
    baselines = [{}, {"batch_norm": True}, {"dropout": dropout} | longer]
    baselines.append({"weight_decay": weight_decay})
    own = [{"al2": False, "penalties": [penalty]} for penalty in penalties]
    return [
        Run.from_dict({"dataset": dataset, "seed": seed, **settings, **baseline, **regulariser})
        for seed, baseline, regulariser in product(seeds, baselines, [*WITHOUT_AND_WITH, *own])
    ]


def calibration(
    dataset: str,
    *,
    speeds: Sequence[float] = (1.0,),
    baselines: Sequence[str] = FOUR_BASELINES,
    seeds: Sequence[int] = (SCREENING_SEED,),
    **settings: Any,
) -> list[Run]:
    """The networks with AL2 of `label_randomization`, at several speeds of λ.

    A miniature's speed is chosen by them, from accuracies on held-out noisy labels alone
    (`lib.study.tables.alive`). ValueError for seeds that tables read, too.
    """
    if low := [seed for seed in seeds if seed < SCREENING_SEED]:
        raise ValueError(
            f"seeds holds {', '.join(map(str, low))}; those below {SCREENING_SEED} are the tables'"
        )
    _only("baselines", baselines, FOUR_BASELINES)
    runs = []
    for speed in speeds:
        eight = label_randomization(dataset, seeds=seeds, speed=speed, **settings)
        runs += [run for run in eight if run.al2 and run.baseline in baselines]
    return runs


def representations(
    dataset: str,
    *,
    seeds: Iterable[int] = (0, 1),
    dropouts: Sequence[float] = (0.5, 0.0),
    **settings: Any,
) -> list[Run]:
    """Networks whose φ is compared with its own start (AL2, section 5.1, Figure 1): each dropout
    (0.5 is the paper's, 0 the bare network; none twice), without and with AL2.

    They measure canonical correlations against the initial network and keep the weights of their
    trunk, so that networks can be compared with each other. Two seeds at least serve as a control:
    what any second training would show.
    """
    _refuse(settings, "al2 dropout seed", "what the runs differ in (seeds, dropouts: lists)")
    if len(set(dropouts)) < len(dropouts):
        raise ValueError(f"dropouts is {list(dropouts)}; each of them once")
    shared = {"dataset": dataset, "cca": ["init"], "keep_trunk": True} | settings
    return [
        Run.from_dict(shared | {"seed": seed, "dropout": dropout} | al2)
        for seed, dropout, al2 in product(seeds, dropouts, WITHOUT_AND_WITH)
    ]


def schedules(
    dataset: str,
    *,
    seeds: Iterable[int] = (0,),
    kinds: Sequence[str] = SCHEDULES,
    totals: Sequence[float] = (0.1, 1.0),
    weight_decays: Sequence[float] = (),
    epochs: int = 700,
    speed: float = 1.0,
    **settings: Any,
) -> list[Run]:
    """The bare network, with several weight decays, and with AL2 on several schedules (AL2,
    section 4; claim A7).

    Args:
        kinds: of `lib.schedules.SCHEDULES`.
        totals: Σ λ_e of each kind, as a multiple of that of the schedule `al2` at `speed`;
            ValueError for one that it cannot have.
        weight_decays: strengths of the weight-decay baseline.
        speed: of the schedule `al2` at total 1, see `Run`.
    """
    varied_by = "what the runs differ in (seeds, kinds, totals, weight_decays)"
    _refuse(settings, "al2 rate schedule seed weight_decay", varied_by)
    shared = {"dataset": dataset, "epochs": epochs, **settings}
    whole = schedule("al2", epochs, speed).sum()
    varied: list[dict[str, Any]] = [{}, *({"weight_decay": strength} for strength in weight_decays)]
    for kind, total in product(kinds, totals):
        series = {"al2": True, "schedule": kind, "speed": speed}
        if (kind, total) != ("al2", 1):
            series |= schedule_of_total(kind, epochs, total * whole, speed)
        varied.append(series)
    return [Run.from_dict(shared | {"seed": seed} | own) for seed in seeds for own in varied]


def options(
    dataset: str,
    *,
    seeds: Sequence[int] = (0,),
    baselines: Sequence[str] = ("bare", "batchnorm", "dropout"),
    totals: Sequence[float] = (),
    longer: int | None = None,
    epochs: int = 700,
    dropout_epochs: int | None = None,
    speed: float = 1.0,
    dropout: float = 0.5,
    **settings: Any,
) -> dict[str, list[Run]]:
    """Baselines without and with AL2, and again with one option changed, by the option.

    `default` are those of `label_randomization`; an option is tried where it concerns them:
    `exact law` and longer training, `epochs × 2`: bare, dropout. `γ ~ U(0, 1)`: batch norm. Another
    Σ λ_e, `Σλ × 0.3`, with AL2: batch norm, dropout. Where it concerns none of the baselines it has
    no runs.

    Args:
        totals: Σ λ_e of weaker, or stronger, series of AL2, as multiples (not 1) of that at
            `speed`; ValueError for one that no series has.
        longer: how many times the epochs, ≥ 2, along the same λ to the same last one; None: none is
            longer.
        epochs, dropout_epochs, speed, dropout: as in `label_randomization`; with an option all
            train for `epochs`.
    """
    fixed = "al2 batch_norm bn_gamma corruption_law schedule seed weight_decay"
    _refuse(settings, fixed, "what the runs differ in, or what none of them has")
    _only("baselines", baselines, ("bare", "batchnorm", "dropout"))
    if 1 in totals or (longer is not None and longer < 2):
        raise ValueError(
            f"totals is {list(totals)}, longer {longer}: no total may be 1; longer is None or a "
            "whole number ≥ 2"
        )
    settings |= {"dataset": dataset, "epochs": epochs, "speed": speed}
    lengths = {"dropout": dropout, "dropout_epochs": dropout_epochs}
    runs = {"default": label_randomization(**settings, seeds=seeds, **lengths)}
    norm = {"batch_norm": True}
    drop = {"dropout": dropout}
    exact = {"corruption_law": "exact"}
    tried = {
        "exact law": ([exact, drop | exact], WITHOUT_AND_WITH),
        "γ ~ U(0, 1)": ([norm | {"bn_gamma": "uniform"}], WITHOUT_AND_WITH),
    }
    whole = schedule("al2", epochs, speed).sum()
    for total in sorted(totals):
        series = {"al2": True} | schedule_of_total("al2", epochs, total * whole, speed)
        tried[f"Σλ × {total:g}"] = ([norm, drop], [series])
    if longer:
        slower = float(f"{speed * (epochs - 1) / (longer * epochs - 1):.6g}")  # as it is stated
        slow = {"epochs": longer * epochs, "speed": slower}
        tried[f"epochs × {longer}"] = ([slow, drop | slow], WITHOUT_AND_WITH)
    for name, varied in tried.items():
        runs[name] = [
            Run.from_dict(settings | {"seed": seed} | network | own)
            for seed, network, own in product(seeds, *varied)
        ]
    return {name: [run for run in own if run.baseline in baselines] for name, own in runs.items()}


def sensitivity(dataset: str, *, seeds: Sequence[int] = (0,), **settings: Any) -> list[Run]:
    """The runs of `options`: those of `default`, then the others, seed by seed."""
    default, *tried = options(dataset, seeds=seeds, **settings).values()
    return default + [run for seed in seeds for own in tried for run in own if run.seed == seed]


def norm_scales(dataset: str, *, seeds: Sequence[int] = (0,), **settings: Any) -> list[Run]:
    """Batch norm without and with AL2, its scale γ beginning at 1, and at U(0, 1), as PyTorch drew
    it up to 1.1. The runs are among those of `sensitivity`.
    """
    return sensitivity(dataset, seeds=seeds, baselines=["batchnorm"], **settings)


def relabelling(
    dataset: str, *, seeds: Iterable[int] = (0,), corruption: float = 0.75, **settings: Any
) -> list[Run]:
    """A training set relabelled by the AL2 network, and a bare network trained on the labels (AL2,
    section 4; claim A9).

    For each seed: bare and bare+AL2 on the corrupted labels (`corruption` > 0), which predict the
    training images at their last epoch; bare trained on the predictions of each (those of bare
    itself are the control); and bare on clean labels.
    """
    fixed = "al2 predictions relabelled_by seed"
    _refuse(settings, fixed, "what the runs differ in (seeds: a list)")
    if not corruption > 0:
        raise ValueError(f"corruption is {corruption}; there has to be something to repair")
    runs = []
    for seed in seeds:
        shared = {"dataset": dataset, "seed": seed, "corruption": corruption, **settings}
        teachers = [Run.from_dict(shared | al2 | {"predictions": True}) for al2 in WITHOUT_AND_WITH]
        runs += teachers
        runs += [Run.from_dict(shared | {"relabelled_by": teacher.id}) for teacher in teachers]
        runs.append(Run.from_dict(shared | {"corruption": 0.0}))
    return runs


def sparsity_networks(
    dataset: str,
    *,
    networks: Sequence[str] = VARIANTS,
    size: str = "s",
    seeds: Iterable[int] = (0,),
    dropout: float = 0.25,
    sparsity_batches: Sequence[str] = BATCHES[:1],
    optimizer: str = "sgd",
    learning_rate: float | None = None,
    long_networks: Sequence[str] = (),
    long_epochs: int | None = None,
    **settings: Any,
) -> list[Run]:
    """ConvNets of Table 2 of the targeted-sparsity paper, on clean labels.

    Args:
        networks: those of `VARIANTS` that are wanted.
        size: "s", "m" or "xxl".
        dropout: of dropNet, which alone has it; > 0.
        sparsity_batches: how SparsityReg joins a batch, "mean", "sum" or both: sr1, sr2, sr3 are
            trained with each.
        optimizer: "sgd" (no momentum) or "adam".
        learning_rate: None: 0.01 for SGD, 0.001 for Adam.
        long_networks: those that train for `long_epochs`, to see whether they overfit later (Fig.
            6). The first epochs of a long training are the short one, so tables read both.
    """
    fixed = "batch_norm decorrelation network seed sparsity sparsity_batch"
    differing = "what the networks differ in (size, seeds, sparsity_batches: arguments)"
    _refuse(settings, fixed, differing)
    _check_batches(sparsity_batches)
    if not dropout > 0:
        raise ValueError(f"dropout is {dropout}; dropNet needs it positive")
    _only("networks", networks, VARIANTS)
    _only("long_networks", long_networks, VARIANTS)
    if long_networks and not long_epochs:
        raise ValueError("long_networks needs long_epochs, a whole number ≥ 1")
    if learning_rate is None:
        learning_rate = 0.001 if optimizer == "adam" else 0.01
    shared = SPARSITY_DEFAULTS | {"dataset": dataset, "network": f"convnet_{size}"} | settings
    shared |= {"optimizer": optimizer, "learning_rate": learning_rate}
    own = {"dropNet": {"dropout": dropout}, "normNet": {"batch_norm": True}}
    runs = []
    for seed, name in product(seeds, networks):
        sparsity, decorrelation = SPARSITY_NETWORKS.get(name, ((), ()))
        network = shared | {"seed": seed, "sparsity": sparsity, "decorrelation": decorrelation}
        network |= own.get(name, {})
        if name in long_networks:
            network["epochs"] = long_epochs
        batches = sparsity_batches if sparsity else BATCHES[:1]
        runs += [Run.from_dict(network | {"sparsity_batch": batch}) for batch in batches]
    return runs


# Layers that Table 3 regularises: the paper names none, so all but the last; or, as in the
# ConvNets, the last two convolutions and the first dense layer.
REGULARISED = {
    "lenet": {"all": ("conv1", "conv2", "fc1", "fc2"), "targeted": ("conv1", "conv2", "fc1")},
    "alexnet": {
        "all": ("conv1", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2"),
        "targeted": ("conv4", "conv5", "fc1"),
    },
}


def lenet_alexnet(
    dataset: str,
    *,
    networks: Sequence[str] = ("lenet", "alexnet"),
    seeds: Iterable[int] = (0,),
    layers: str = "all",
    sparsity_batches: Sequence[str] = BATCHES[:1],
    learning_rate: float = 0.01,
    **settings: Any,
) -> list[Run]:
    """LeNet and AlexNet, each without and with SparsityReg (targeted sparsity, Table 3).

    Args:
        layers: which are regularised, "all" but the last, or "targeted", see `REGULARISED`.
        sparsity_batches: as in `sparsity_networks`.
        learning_rate: of SGD.
    """
    differing = "what the runs differ in (networks, seeds, layers, sparsity_batches: arguments)"
    _refuse(settings, "network seed sparsity sparsity_batch", differing)
    _check_batches(sparsity_batches)
    _only("networks", networks, REGULARISED)
    if layers not in ("all", "targeted"):
        raise ValueError(f"layers is {layers!r}; allowed: all, targeted")
    shared = SPARSITY_DEFAULTS | {"dataset": dataset, "learning_rate": learning_rate} | settings
    runs = []
    for seed, network in product(seeds, networks):
        plain = shared | {"network": network, "seed": seed}
        penalised = plain | {"sparsity": REGULARISED[network][layers]}
        runs.append(Run.from_dict(plain))
        runs += [Run.from_dict(penalised | {"sparsity_batch": batch}) for batch in sparsity_batches]
    return runs


PAPER_SPARSITY_WEIGHT = 0.001  # λ (targeted sparsity, section 4)
READINGS = tuple(map("/".join, product(CENTRES, PAIRS, REDUCTIONS)))


def penalty_readings(
    dataset: str,
    *,
    screen_epochs: int = 5,
    screen_seed: int = SCREENING_SEED,
    trained: Sequence[str] = (),
    chosen: str | None = None,
    seeds: Iterable[int] = (),
    epochs: int = 100,
    strengths: Sequence[float] = (),
    sparsity_batches: Sequence[str] = BATCHES[:1],
    long_networks: Sequence[str] = (),
    long_epochs: int | None = None,
    **settings: Any,
) -> list[Run]:
    """What the targeted-sparsity paper leaves open: which DecorrReg, and how strong a SparsityReg.

    First sr2Net, and sr3Net in every reading of Eq. 6–7, for a few epochs; then those of `trained`
    in full, on the same one seed. Then vanillaNet, sr1Net, sr2Net and sr3Net in the `chosen`
    reading on other seeds, as in Table 2, and sr1Net and sr2Net at other strengths on the first of
    them.

    Args:
        screen_epochs: length of the short trainings.
        screen_seed: the one seed; none of the tables' own.
        trained: readings "centre/pairs/reduce" to train for `epochs`, with sr2Net beside them.
        chosen: the reading whose accuracy is compared with sr2Net's.
        seeds: on which.
        epochs: length of the full trainings.
        strengths: λ of sr1Net and sr2Net, joined by the mean over the batch, as positive multiples
            of the paper's.
        sparsity_batches, long_networks, long_epochs: as in `sparsity_networks`; of the trainings on
            `seeds`.
        settings: as `sparsity_networks` takes them.
    """
    if screen_seed < SCREENING_SEED:
        raise ValueError(
            f"screen_seed is {screen_seed}; seeds below {SCREENING_SEED} are the tables': take one "
            "from there on"
        )
    _only("trained or chosen", [*trained, chosen] if chosen else trained, READINGS)
    if not all(0 < strength < math.inf for strength in strengths):
        raise ValueError(
            f"strengths is {list(strengths)}; each has to be a positive multiple of the paper's λ"
        )
    runs = []
    seeds = list(seeds)
    for length, readings in ((screen_epochs, READINGS), (epochs, trained)):
        shared = settings | {"seeds": (screen_seed,), "epochs": length}
        runs += sparsity_networks(dataset, networks=("sr2Net",), **shared) if readings else []
        for reading in readings:
            runs += sparsity_networks(dataset, networks=("sr3Net",), **shared | reading_of(reading))
    if chosen:
        own = {"long_networks": long_networks, "long_epochs": long_epochs, "epochs": epochs}
        own |= {"seeds": seeds, "sparsity_batches": sparsity_batches} | reading_of(chosen)
        networks = ("vanillaNet", "sr1Net", "sr2Net", "sr3Net")
        runs += sparsity_networks(dataset, networks=networks, **settings | own)
    for strength in strengths:
        own = {"epochs": epochs, "seeds": seeds[:1]}
        own["sparsity_weight"] = PAPER_SPARSITY_WEIGHT * strength
        runs += sparsity_networks(dataset, networks=("sr1Net", "sr2Net"), **settings | own)
    return runs


def reading_of(reading: str) -> dict[str, str]:
    """Fields of `Run` for a reading "centre/pairs/reduce"."""
    names = ("decorrelation_centre", "decorrelation_pairs", "decorrelation_reduce")
    return dict(zip(names, reading.split("/"), strict=True))


# SparsityReg on the AL2 CNN acts where sr2Net has it: on the last convolution and the first dense
# layer.
AL2_CNN_SPARSITY = ("trunk.conv2", "head.fc1")


def combined(
    dataset: str,
    *,
    clean_dataset: str | None,
    seeds: Iterable[int] = (0,),
    corruption: float = 0.75,
    sparsity_weight: float = 0.001,
    clean_epochs: int = 100,
    clean_speed: float = 1.0,
    clean_long_networks: Sequence[str] = (),
    clean_long_epochs: int | None = None,
    **settings: Any,
) -> list[Run]:
    """Both papers' penalties under both papers' tests (in neither paper): none, AL2, SparsityReg,
    both.

    First the AL2 CNN on corrupted labels (AL2's test), then a ConvNet on clean labels (targeted
    sparsity's). SparsityReg acts on `AL2_CNN_SPARSITY` and, in the ConvNet, on the layers of
    sr2Net; AL2 on φ, with its own schedule. All measure entropy. A fifth AL2 CNN, without penalty
    on true labels, is the control: how far entropy falls where nothing false is memorised.

    Args:
        dataset: where the AL2 CNN is trained.
        clean_dataset: where the ConvNet is; None: the first test alone.
        corruption: of the AL2 CNN's labels; > 0.
        sparsity_weight: λ_i of SparsityReg's layers; > 0.
        clean_epochs: length of the ConvNets' trainings.
        clean_speed: of AL2's schedule in the ConvNets; `speed` is that of the AL2 CNN.
        clean_long_networks, clean_long_epochs: as in `sparsity_networks`, whose vanillaNet and
            sr2Net are two of the four: with the same settings they are the same runs.
        settings: fields of `Run` for the AL2 CNN; with the prefix `clean_` what `sparsity_networks`
            takes for the ConvNet.
    """
    fixed = "al2 network networks seed seeds sparsity"
    fixed = f"{fixed} clean_{fixed.replace(' ', ' clean_')}"
    _refuse(settings, fixed, "what the four networks differ in (seeds: a list)")
    if not (corruption > 0 and sparsity_weight > 0):
        raise ValueError(
            f"corruption is {corruption} and sparsity_weight {sparsity_weight}; both have to be "
            "positive"
        )
    noisy = {"dataset": dataset, "corruption": corruption, "n_measure": 1000, "entropy": True}
    clean = {}
    for name, value in settings.items():
        test = clean if name.startswith("clean_") else noisy
        test[name.removeprefix("clean_")] = value
    clean |= {"networks": ("vanillaNet", "sr2Net"), "epochs": clean_epochs}
    clean["sparsity_weight"] = sparsity_weight
    longer = {"long_networks": clean_long_networks, "long_epochs": clean_long_epochs}
    penalised = {"sparsity": AL2_CNN_SPARSITY, "sparsity_weight": sparsity_weight}
    memorising, overfitting = [], []
    for seed in seeds:
        memorising += [
            Run.from_dict(noisy | {"seed": seed} | penalty | al2)
            for penalty, al2 in product(({}, penalised), WITHOUT_AND_WITH)
        ]
        memorising.append(Run.from_dict(noisy | {"seed": seed, "corruption": 0.0}))
        if clean_dataset is None:
            continue
        plain = sparsity_networks(clean_dataset, seeds=(seed,), **clean, **longer)
        short = sparsity_networks(clean_dataset, seeds=(seed,), **clean)
        for without, as_long_as_the_rest in zip(plain, short, strict=True):
            with_al2 = dataclasses.replace(as_long_as_the_rest, al2=True, speed=clean_speed)
            overfitting += [without, with_al2]
    return memorising + overfitting


def _refuse(settings: dict[str, Any], fixed: str, why: str) -> None:
    """ValueError if a setting is given that a study fixes itself; their names apart by blanks."""
    if given := sorted({*fixed.split()} & settings.keys()):
        raise ValueError(f"{', '.join(given)} cannot be set: it is {why}")


def _only(name: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """ValueError if anything is given that is not allowed."""
    if unknown := [value for value in given if value not in allowed]:
        raise ValueError(f"{name} holds {', '.join(unknown)}; allowed: {', '.join(allowed)}")


def _check_batches(batches: Sequence[str]) -> None:
    if not batches or len(set(batches)) < len(batches) or set(batches) - set(BATCHES):
        raise ValueError(
            f"sparsity_batches is {list(batches)}; allowed: {', '.join(BATCHES)}, each of them once"
        )


# by the names that `notebooks/params` and the claims know them by
EXPERIMENTS: dict[str, Callable[..., list[Run]]] = {
    experiment.__name__: experiment
    for experiment in (
        calibration,
        label_randomization,
        representations,
        schedules,
        relabelling,
        sensitivity,
        norm_scales,
        sparsity_networks,
        lenet_alexnet,
        penalty_readings,
        combined,
    )
}
