"""The papers' experiments as lists of runs.

What a notebook trains, with its parameters as arguments.
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
SPARSITY_DEFAULTS = {
    "corruption": 0.0,
    "normalize": "unit",
    "momentum": 0.0,
    "epochs": 100,
    "n_measure": 1000,
    "entropy": True,
}
VARIANTS = ("vanillaNet", "dropNet", "normNet", "sr1Net", "sr2Net", "sr3Net")


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
    """The eight networks of Table 1 for each seed.

    They are bare, batch norm, dropout, weight decay, each without and with AL2.

    `dropout` and `weight_decay` are the strengths of their own baselines; `settings` are fields of
    `Run`. `dropout_epochs` is a length of its own for the dropout networks, whose training Figure 1
    follows for longer; the tables read the first part. Each of `penalties`, a mapping as
    `Run.penalties` takes them, adds four networks: a regulariser of one's own beside AL2.
    """
    _refuse(settings, "al2 batch_norm seed", "what the eight networks differ in (seeds: a list)")
    if not (dropout > 0 and weight_decay > 0):
        raise ValueError(
            f"dropout is {dropout} and weight_decay {weight_decay}; their baselines need both "
            "positive"
        )
    longer = {} if dropout_epochs is None else {"epochs": dropout_epochs}
    baselines = [
        {},
        {"batch_norm": True},
        {"dropout": dropout} | longer,
        {"weight_decay": weight_decay},
    ]
    regularisers = [{"al2": False}, {"al2": True}]
    regularisers += [{"al2": False, "penalties": [penalty]} for penalty in penalties]
    return [
        Run.from_dict({"dataset": dataset, "seed": seed, **settings, **baseline, **regulariser})
        for seed, baseline, regulariser in product(seeds, baselines, regularisers)
    ]


def calibration(
    dataset: str,
    *,
    speeds: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (SCREENING_SEED,),
    **settings: Any,
) -> list[Run]:
    """The four networks with AL2 of `label_randomization`, at several speeds of λ.

    A miniature's speed is chosen by them, from accuracies on held-out noisy labels alone
    (`lib.study.tables.alive`), on seeds that no result has.

    Raises:
        ValueError: for a seed that tables read, and a setting in which the networks differ.
    """
    if low := [seed for seed in seeds if seed < SCREENING_SEED]:
        raise ValueError(
            f"seeds holds {', '.join(map(str, low))}; those below {SCREENING_SEED} are the tables'"
        )
    runs = []
    for speed in speeds:
        eight = label_randomization(dataset, seeds=seeds, speed=speed, **settings)
        runs += [run for run in eight if run.al2]
    return runs


def representations(
    dataset: str,
    *,
    seeds: Iterable[int] = (0, 1),
    dropouts: Sequence[float] = (0.5, 0.0),
    **settings: Any,
) -> list[Run]:
    """Networks whose φ is compared with its own start (AL2, section 5.1, Figure 1).

    There is each dropout, without and with AL2.

    They measure canonical correlations against the initial network and keep the weights of their
    trunk, so that networks can be compared with each other. Two seeds at least serve as a control:
    what any second training would show.

    Args:
        dataset: where to train.
        seeds: of the runs.
        dropouts: 0.5 is the paper's Fig. 1; 0 the bare network.
        settings: fields of `Run` for all of them.

    Raises:
        ValueError: for a setting in which the runs differ, and a dropout given twice.
    """
    _refuse(settings, "al2 dropout seed", "what the runs differ in (seeds, dropouts: lists)")
    if len(set(dropouts)) < len(dropouts):
        raise ValueError(f"dropouts is {list(dropouts)}; each of them once")
    shared = {"dataset": dataset, "cca": ["init"], "keep_trunk": True} | settings
    return [
        Run.from_dict(shared | {"seed": seed, "dropout": dropout, "al2": al2})
        for seed, dropout, al2 in product(seeds, dropouts, (False, True))
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
    """The bare network, with several weight decays, and with AL2 on several schedules.

    See AL2, section 4, and claim A7.

    Args:
        dataset: where to train.
        seeds: of the runs.
        kinds: schedules, see `lib.schedules.schedule`.
        totals: Σ λ_e of each kind, as a multiple of that of the schedule `al2` at `speed`.
        weight_decays: strengths of the weight-decay baseline.
        epochs: length of all trainings.
        speed: of the schedule `al2` at total 1, see `Run`.
        settings: fields of `Run` for all of them.

    Raises:
        ValueError: for an unknown schedule, a total that one cannot have, and a setting in which
            the runs differ.
    """
    _refuse(
        settings,
        "al2 rate schedule seed weight_decay",
        "what the runs differ in (seeds, kinds, totals, weight_decays)",
    )
    shared = {"dataset": dataset, "epochs": epochs, **settings}
    whole = schedule("al2", epochs, speed).sum()
    varied: list[dict[str, Any]] = [{}, *({"weight_decay": strength} for strength in weight_decays)]
    for kind in kinds:
        for total in totals:
            exact = (
                {"speed": speed}
                if (kind, total) == ("al2", 1)
                else schedule_of_total(kind, epochs, total * whole, speed)
            )
            varied.append({"al2": True, "schedule": kind, "speed": speed} | exact)
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
        dataset: where to train.
        seeds, baselines: of the runs.
        totals: Σ λ_e of weaker, or stronger, series of AL2, as multiples of that at `speed`.
        longer: how many times the epochs, along the same λ to the same last one; None: none is
            longer.
        epochs, dropout_epochs, speed, dropout: as in `label_randomization`; with an option all
            train for `epochs`.
        settings: fields of `Run` for all of them.

    Raises:
        ValueError: for a setting in which the runs differ, another baseline, total 1 or one no
            series has, a `longer` below 2.
    """
    fixed = "al2 batch_norm bn_gamma corruption_law schedule seed weight_decay"
    _refuse(settings, fixed, "what the runs differ in, or what none of them has")
    if unknown := set(baselines) - {"bare", "batchnorm", "dropout"}:
        raise ValueError(
            f"baselines holds {', '.join(sorted(unknown))}; allowed: bare, batchnorm, dropout"
        )
    if 1 in totals or (longer is not None and longer < 2):
        raise ValueError(
            f"totals is {list(totals)}, longer {longer}: no total may be 1; longer is None or a "
            "whole number ≥ 2"
        )
    settings |= {"dataset": dataset, "epochs": epochs, "speed": speed}
    norm = {"batch_norm": True}
    drop = {"dropout": dropout}
    exact = {"corruption_law": "exact"}
    without_and_with = [{"al2": False}, {"al2": True}]
    tried = {
        "exact law": list(product([exact, drop | exact], without_and_with)),
        "γ ~ U(0, 1)": list(product([norm | {"bn_gamma": "uniform"}], without_and_with)),
    }
    whole = schedule("al2", epochs, speed).sum()
    for total in sorted(totals):
        series = {"al2": True} | schedule_of_total("al2", epochs, total * whole, speed)
        tried[f"Σλ × {total:g}"] = list(product([norm, drop], [series]))
    if longer:
        # the speed is rounded, as it is stated
        slow = {
            "epochs": longer * epochs,
            "speed": float(f"{speed * (epochs - 1) / (longer * epochs - 1):.6g}"),
        }
        tried[f"epochs × {longer}"] = list(product([slow, drop | slow], without_and_with))
    lengths = {"dropout": dropout, "dropout_epochs": dropout_epochs}
    runs = {"default": label_randomization(**settings, seeds=seeds, **lengths)}
    for name, networks in tried.items():
        stated = (
            settings | {"seed": seed} | network | own for seed in seeds for network, own in networks
        )
        runs[name] = [Run.from_dict(fields) for fields in stated]
    return {name: [run for run in own if run.baseline in baselines] for name, own in runs.items()}


def sensitivity(dataset: str, *, seeds: Sequence[int] = (0,), **settings: Any) -> list[Run]:
    """The runs of `options`: those of `default`, then the others, seed by seed."""
    default, *tried = options(dataset, seeds=seeds, **settings).values()
    return default + [run for seed in seeds for own in tried for run in own if run.seed == seed]


def norm_scales(dataset: str, *, seeds: Sequence[int] = (0,), **settings: Any) -> list[Run]:
    """Batch norm without and with AL2, its scale γ beginning at 1, and at U(0, 1).

    The latter is as PyTorch drew it up to 1.1. The runs are among those of `sensitivity`.
    """
    return sensitivity(dataset, seeds=seeds, baselines=["batchnorm"], **settings)


def relabelling(
    dataset: str, *, seeds: Iterable[int] = (0,), corruption: float = 0.75, **settings: Any
) -> list[Run]:
    """A training set relabelled by the AL2 network, and a bare network trained on the labels.

    See AL2, section 4, and claim A9.

    For each seed: bare and bare+AL2 on the corrupted labels, which predict the training images at
    their last epoch; bare trained on the predictions of each (those of bare itself are the
    control); and bare on clean labels.

    Raises:
        ValueError: for a setting in which the runs differ, and for labels that are not corrupted.
    """
    _refuse(
        settings, "al2 predictions relabelled_by seed", "what the runs differ in (seeds: a list)"
    )
    if not corruption > 0:
        raise ValueError(f"corruption is {corruption}; there has to be something to repair")
    runs = []
    for seed in seeds:
        shared = {"dataset": dataset, "seed": seed, "corruption": corruption, **settings}
        teachers = [
            Run.from_dict(shared | {"al2": al2, "predictions": True}) for al2 in (False, True)
        ]
        runs += [
            *teachers,
            *(Run.from_dict(shared | {"relabelled_by": teacher.id}) for teacher in teachers),
        ]
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

    They are vanilla, drop, norm, sr1, sr2, sr3 for each seed.

    Args:
        dataset: where to train.
        networks: those of `VARIANTS` that are wanted.
        size: "s", "m" or "xxl".
        seeds: of the runs.
        dropout: of dropNet, which alone has it; > 0.
        sparsity_batches: how SparsityReg joins a batch, "mean", "sum" or both: sr1, sr2, sr3 are
            trained with each.
        optimizer: "sgd" (no momentum) or "adam".
        learning_rate: None: 0.01 for SGD, 0.001 for Adam.
        long_networks: those that train for `long_epochs`, to see whether they overfit later (Fig.
            6). The first epochs of a long training are the short one, so tables read both.
        settings: fields of `Run` for all of them.

    Raises:
        ValueError: for an unknown network or size, and a setting in which the networks differ.
    """
    own_fields = "batch_norm decorrelation network seed sparsity sparsity_batch"
    _refuse(
        settings,
        own_fields,
        "what the networks differ in (size, seeds, sparsity_batches: arguments)",
    )
    _checked_batches(sparsity_batches)
    if not dropout > 0:
        raise ValueError(f"dropout is {dropout}; dropNet needs it positive")
    for name, given in (("networks", networks), ("long_networks", long_networks)):
        if unknown := [network for network in given if network not in VARIANTS]:
            raise ValueError(f"{name} holds {', '.join(unknown)}; allowed: {', '.join(VARIANTS)}")
    if long_networks and not long_epochs:
        raise ValueError("long_networks needs long_epochs, a whole number ≥ 1")
    own = {"dropNet": {"dropout": dropout}, "normNet": {"batch_norm": True}}
    shared = (
        SPARSITY_DEFAULTS
        | {"dataset": dataset, "network": f"convnet_{size}", "optimizer": optimizer}
        | settings
    )
    shared["learning_rate"] = (
        (0.001 if optimizer == "adam" else 0.01) if learning_rate is None else learning_rate
    )
    runs = []
    for seed in seeds:
        for name in networks:
            layers = dict(
                zip(
                    ("sparsity", "decorrelation"),
                    SPARSITY_NETWORKS.get(name, ((), ())),
                    strict=True,
                )
            )
            longer = {"epochs": long_epochs} if name in long_networks else {}
            network = shared | {"seed": seed} | layers | own.get(name, {}) | longer
            batches = sparsity_batches if layers["sparsity"] else BATCHES[:1]
            runs += [Run.from_dict(network | {"sparsity_batch": batch}) for batch in batches]
    return runs


def _checked_batches(batches: Sequence[str]) -> None:
    if not batches or len(set(batches)) < len(batches) or set(batches) - set(BATCHES):
        raise ValueError(
            f"sparsity_batches is {list(batches)}; allowed: {', '.join(BATCHES)}, each of them once"
        )


# Layers that Table 3 regularises: the paper names none, so all but the last; or, as in the
# ConvNets, the last two
# convolutions and the first dense layer.
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
    """LeNet and AlexNet, each without and with SparsityReg, for each seed.

    As in Table 3 of the targeted-sparsity paper.

    Args:
        dataset: where to train.
        networks: "lenet", "alexnet", or both.
        seeds: of the runs.
        layers: which are regularised, "all" but the last, or "targeted", see `REGULARISED`.
        sparsity_batches: as in `sparsity_networks`.
        learning_rate: of SGD.
        settings: fields of `Run` for all of them.

    Raises:
        ValueError: for an unknown network or choice of layers, and a setting in which the runs
            differ.
    """
    own_fields = "network seed sparsity sparsity_batch"
    _refuse(
        settings,
        own_fields,
        "what the runs differ in (networks, seeds, layers, sparsity_batches: arguments)",
    )
    _checked_batches(sparsity_batches)
    if unknown := [name for name in networks if name not in REGULARISED]:
        raise ValueError(f"networks holds {', '.join(unknown)}; allowed: {', '.join(REGULARISED)}")
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
READINGS = tuple(f"{c}/{p}/{r}" for c in CENTRES for p in PAIRS for r in REDUCTIONS)


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
        strengths: λ of sr1Net and sr2Net, joined by the mean over the batch, as multiples of the
            paper's.
        sparsity_batches, long_networks, long_epochs: as in `sparsity_networks`; of the trainings on
            `seeds`.
        settings: as `sparsity_networks` takes them, for all.

    Raises:
        ValueError: for an unknown reading, a screening seed that tables read, and a strength that
            is not positive.
    """
    if screen_seed < SCREENING_SEED:
        raise ValueError(
            f"screen_seed is {screen_seed}; seeds below {SCREENING_SEED} are the tables': take one "
            "from there on"
        )
    asked = [*trained, chosen] if chosen else trained
    if unknown := [reading for reading in asked if reading not in READINGS]:
        raise ValueError(
            f"trained or chosen holds {', '.join(unknown)}; allowed: {', '.join(READINGS)}"
        )
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
        own = {
            "long_networks": long_networks,
            "long_epochs": long_epochs,
            "epochs": epochs,
            "seeds": seeds,
        }
        own |= {"sparsity_batches": sparsity_batches} | reading_of(chosen)
        networks = ("vanillaNet", "sr1Net", "sr2Net", "sr3Net")
        runs += sparsity_networks(dataset, networks=networks, **settings | own)
    for strength in strengths:
        own = {
            "epochs": epochs,
            "seeds": seeds[:1],
            "sparsity_weight": PAPER_SPARSITY_WEIGHT * strength,
        }
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
    """Both papers' penalties under both papers' tests (in neither paper).

    None, AL2, SparsityReg, both, for each test and seed.

    First the AL2 CNN on corrupted labels (AL2's test), then a ConvNet on clean labels (targeted
    sparsity's). SparsityReg acts on `AL2_CNN_SPARSITY` and, in the ConvNet, on the layers of
    sr2Net; AL2 on φ, with its own schedule. All measure entropy. A fifth AL2 CNN, without penalty
    on true labels, is the control: how far entropy falls where nothing false is memorised.

    Args:
        dataset: where the AL2 CNN is trained.
        clean_dataset: where the ConvNet is; None: the first test alone.
        seeds: of both.
        corruption: of the AL2 CNN's labels; > 0.
        sparsity_weight: λ_i of SparsityReg's layers; > 0.
        clean_epochs: length of the ConvNets' trainings.
        clean_speed: of AL2's schedule in the ConvNets; `speed` is that of the AL2 CNN.
        clean_long_networks, clean_long_epochs: as in `sparsity_networks`, whose vanillaNet and
            sr2Net are two of the four: with the same settings they are the same runs.
        settings: fields of `Run` for the AL2 CNN; with the prefix `clean_` what `sparsity_networks`
            takes for the ConvNet.

    Raises:
        ValueError: for a setting in which the four differ, labels that are not corrupted, and a
            penalty of weight 0.
    """
    own = "al2 network networks seed seeds sparsity"
    _refuse(
        settings,
        f"{own} clean_{own.replace(' ', ' clean_')}",
        "what the four networks differ in (seeds: a list)",
    )
    if not (corruption > 0 and sparsity_weight > 0):
        raise ValueError(
            f"corruption is {corruption} and sparsity_weight {sparsity_weight}; both have to be "
            "positive"
        )
    clean = {
        name.removeprefix("clean_"): value
        for name, value in settings.items()
        if name.startswith("clean_")
    }
    clean |= {
        "networks": ("vanillaNet", "sr2Net"),
        "sparsity_weight": sparsity_weight,
        "epochs": clean_epochs,
    }
    longer = {"long_networks": clean_long_networks, "long_epochs": clean_long_epochs}
    noisy = {"dataset": dataset, "corruption": corruption, "n_measure": 1000, "entropy": True}
    noisy |= {name: value for name, value in settings.items() if not name.startswith("clean_")}
    penalised = {"sparsity": AL2_CNN_SPARSITY, "sparsity_weight": sparsity_weight}
    memorising, overfitting = [], []
    for seed in seeds:
        for own in ({}, penalised):
            memorising += [
                Run.from_dict(noisy | {"seed": seed, "al2": al2} | own) for al2 in (False, True)
            ]
        memorising.append(Run.from_dict(noisy | {"seed": seed, "corruption": 0.0}))
        if clean_dataset is None:
            continue
        plain = sparsity_networks(clean_dataset, seeds=(seed,), **clean, **longer)
        short = sparsity_networks(clean_dataset, seeds=(seed,), **clean)
        for without, as_long_as_the_rest in zip(plain, short, strict=True):
            overfitting += [
                without,
                dataclasses.replace(as_long_as_the_rest, al2=True, speed=clean_speed),
            ]
    return memorising + overfitting


def _refuse(settings: dict[str, Any], fixed: str, why: str) -> None:
    """ValueError if a setting is given that a study fixes itself; their names apart by blanks."""
    if given := sorted({*fixed.split()} & settings.keys()):
        raise ValueError(f"{', '.join(given)} cannot be set: it is {why}")


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
