"""The papers' experiments as lists of runs: what a notebook trains, with its parameters as arguments."""

from collections.abc import Iterable, Sequence
from typing import Any

from lib.run import SPARSITY_NETWORKS, Run

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
    **settings: Any,
) -> list[Run]:
    """ConvNets of Table 2 of the targeted-sparsity paper, on clean labels: vanilla, drop, norm, sr1, sr2, sr3 for each seed.

    Args:
        dataset: where to train.
        networks: those of `VARIANTS` that are wanted.
        size: "s", "m" or "xxl".
        seeds: of the runs.
        dropout: of dropNet, which alone has it.
        optimizer: "sgd" (learning rate 0.01, no momentum) or "adam" (0.001).
        settings: fields of `Run` for all of them.

    Raises:
        ValueError: for an unknown network or size.
    """
    if unknown := [name for name in networks if name not in VARIANTS]:
        raise ValueError(f"networks holds {', '.join(unknown)}; allowed: {', '.join(VARIANTS)}")
    own = {"dropNet": {"dropout": dropout}, "normNet": {"batch_norm": True}}
    return [
        Run.from_dict(
            {"dataset": dataset, "network": f"convnet_{size}", "seed": seed, **SPARSITY_DEFAULTS, "optimizer": optimizer}
            | {"learning_rate": 0.001 if optimizer == "adam" else 0.01}
            | settings
            | dict(zip(("sparsity", "decorrelation"), SPARSITY_NETWORKS.get(name, ((), ())), strict=True))
            | own.get(name, {})
        )
        for seed in seeds
        for name in networks
    ]
