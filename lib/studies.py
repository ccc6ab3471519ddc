"""The papers' experiments as lists of runs: what a notebook trains, with its parameters as arguments."""

from collections.abc import Iterable, Sequence
from typing import Any

from lib.losses import CENTRES, PAIRS, REDUCTIONS
from lib.run import SCREENING_SEED, SPARSITY_NETWORKS, Run

# How the targeted-sparsity paper trains (section 4; scale of the images: the protocol).
SPARSITY_DEFAULTS = {"corruption": 0.0, "normalize": "unit", "momentum": 0.0, "epochs": 100, "n_measure": 1000, "entropy": True}
VARIANTS = ("vanillaNet", "dropNet", "normNet", "sr1Net", "sr2Net", "sr3Net")


def label_randomization(
    dataset: str, *, seeds: Iterable[int] = (0,), dropout: float = 0.5, weight_decay: float = 5e-4, **settings: Any
) -> list[Run]:
    """The eight networks of Table 1 for each seed: bare, batch norm, dropout, weight decay, each without and with AL2.

    `dropout` and `weight_decay` are the strengths of their own baselines; `settings` are fields of `Run`.
    """
    if fixed := {"al2", "batch_norm", "seed"} & settings.keys():
        raise ValueError(f"{', '.join(sorted(fixed))} cannot be set: it is what the eight networks differ in (seeds: a list)")
    if not (dropout > 0 and weight_decay > 0):
        raise ValueError(f"dropout is {dropout} and weight_decay {weight_decay}; their baselines need both positive")
    baselines = [{}, {"batch_norm": True}, {"dropout": dropout}, {"weight_decay": weight_decay}]
    return [
        Run.from_dict({"dataset": dataset, "seed": seed, "al2": al2, **settings, **baseline})
        for seed in seeds
        for baseline in baselines
        for al2 in (False, True)
    ]


def sparsity_networks(
    dataset: str,
    *,
    networks: Sequence[str] = VARIANTS,
    size: str = "s",
    seeds: Iterable[int] = (0,),
    dropout: float = 0.25,
    optimizer: str = "sgd",
    learning_rate: float | None = None,
    long_networks: Sequence[str] = (),
    long_epochs: int | None = None,
    **settings: Any,
) -> list[Run]:
    """ConvNets of Table 2 of the targeted-sparsity paper, on clean labels: vanilla, drop, norm, sr1, sr2, sr3 for each seed.

    Args:
        dataset: where to train.
        networks: those of `VARIANTS` that are wanted.
        size: "s", "m" or "xxl".
        seeds: of the runs.
        dropout: of dropNet, which alone has it; > 0.
        optimizer: "sgd" (no momentum) or "adam".
        learning_rate: None: 0.01 for SGD, 0.001 for Adam.
        long_networks: those that train for `long_epochs`, to see whether they overfit later (Fig. 6). The first epochs of a
            long training are the short one, so tables read both.
        settings: fields of `Run` for all of them.

    Raises:
        ValueError: for an unknown network or size, and a setting in which the networks differ.
    """
    if fixed := {"network", "batch_norm", "sparsity", "decorrelation", "seed"} & settings.keys():
        raise ValueError(
            f"{', '.join(sorted(fixed))} cannot be set: it is what the networks differ in (size, seeds: arguments)"
        )
    if not dropout > 0:
        raise ValueError(f"dropout is {dropout}; dropNet needs it positive")
    for name, given in (("networks", networks), ("long_networks", long_networks)):
        if unknown := [network for network in given if network not in VARIANTS]:
            raise ValueError(f"{name} holds {', '.join(unknown)}; allowed: {', '.join(VARIANTS)}")
    if long_networks and not long_epochs:
        raise ValueError("long_networks needs long_epochs, a whole number ≥ 1")
    own = {"dropNet": {"dropout": dropout}, "normNet": {"batch_norm": True}}
    shared = SPARSITY_DEFAULTS | {"dataset": dataset, "network": f"convnet_{size}", "optimizer": optimizer} | settings
    shared["learning_rate"] = (0.001 if optimizer == "adam" else 0.01) if learning_rate is None else learning_rate
    runs = []
    for seed in seeds:
        for name in networks:
            layers = dict(zip(("sparsity", "decorrelation"), SPARSITY_NETWORKS.get(name, ((), ())), strict=True))
            longer = {"epochs": long_epochs} if name in long_networks else {}
            runs.append(Run.from_dict(shared | {"seed": seed} | layers | own.get(name, {}) | longer))
    return runs


# Layers that Table 3 regularises: the paper names none, so all but the last; or, as in the ConvNets, the last two
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
    learning_rate: float = 0.01,
    **settings: Any,
) -> list[Run]:
    """LeNet and AlexNet, each without and with SparsityReg, for each seed (Table 3 of the targeted-sparsity paper).

    Args:
        dataset: where to train.
        networks: "lenet", "alexnet", or both.
        seeds: of the runs.
        layers: which are regularised, "all" but the last, or "targeted", see `REGULARISED`.
        learning_rate: of SGD.
        settings: fields of `Run` for all of them.

    Raises:
        ValueError: for an unknown network or choice of layers, and a setting in which the runs differ.
    """
    if fixed := {"network", "seed", "sparsity"} & settings.keys():
        raise ValueError(
            f"{', '.join(sorted(fixed))} cannot be set: it is what the runs differ in (networks, seeds, layers: arguments)"
        )
    if unknown := [name for name in networks if name not in REGULARISED]:
        raise ValueError(f"networks holds {', '.join(unknown)}; allowed: {', '.join(REGULARISED)}")
    if layers not in ("all", "targeted"):
        raise ValueError(f"layers is {layers!r}; allowed: all, targeted")
    shared = SPARSITY_DEFAULTS | {"dataset": dataset, "learning_rate": learning_rate} | settings
    return [
        Run.from_dict(shared | {"network": network, "seed": seed, "sparsity": REGULARISED[network][layers] if on else ()})
        for seed in seeds
        for network in networks
        for on in (False, True)
    ]


READINGS = tuple(f"{c}/{p}/{r}" for c in CENTRES for p in PAIRS for r in REDUCTIONS)


def decorrelation_readings(
    dataset: str,
    *,
    screen_epochs: int = 3,
    screen_seed: int = SCREENING_SEED,
    trained: Sequence[str] = (),
    chosen: str | None = None,
    seeds: Iterable[int] = (),
    epochs: int = 100,
    long_networks: Sequence[str] = (),
    long_epochs: int | None = None,
    **settings: Any,
) -> list[Run]:
    """sr2Net, and sr3Net in every reading of Eq. 6–7, for a few epochs; then those of `trained` in full, on the same one seed.

    Last sr2Net and sr3Net in the `chosen` reading on other seeds, as in Table 2.

    Args:
        dataset: where to train.
        screen_epochs: length of the short trainings.
        screen_seed: the one seed; none of the tables' own.
        trained: readings "centre/pairs/reduce" to train for `epochs`, with sr2Net beside them.
        chosen: the reading whose accuracy is compared with sr2Net's.
        seeds: on which.
        epochs: length of the full trainings.
        long_networks, long_epochs: see `sparsity_networks`; of the trainings on `seeds`.
        settings: as `sparsity_networks` takes them, for all.

    Raises:
        ValueError: for an unknown reading, and a screening seed that tables read.
    """
    if screen_seed < SCREENING_SEED:
        raise ValueError(f"screen_seed is {screen_seed}; seeds below {SCREENING_SEED} are the tables': take one from there on")
    if unknown := [reading for reading in (*trained, *[chosen] * bool(chosen)) if reading not in READINGS]:
        raise ValueError(f"trained or chosen holds {', '.join(unknown)}; allowed: {', '.join(READINGS)}")
    runs = []
    for length, readings in ((screen_epochs, READINGS), (epochs, trained)):
        shared = settings | {"seeds": (screen_seed,), "epochs": length}
        runs += sparsity_networks(dataset, networks=("sr2Net",), **shared) if readings else []
        for reading in readings:
            runs += sparsity_networks(dataset, networks=("sr3Net",), **shared | reading_of(reading))
    if chosen:
        longer = {"long_networks": long_networks, "long_epochs": long_epochs, "epochs": epochs, "seeds": seeds}
        runs += sparsity_networks(dataset, networks=("sr2Net", "sr3Net"), **settings | longer | reading_of(chosen))
    return runs


def reading_of(reading: str) -> dict[str, str]:
    """Fields of `Run` for a reading "centre/pairs/reduce"."""
    names = ("decorrelation_centre", "decorrelation_pairs", "decorrelation_reduce")
    return dict(zip(names, reading.split("/"), strict=True))
