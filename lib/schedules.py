"""The series of weights λ_e beside Equation 2's (`losses.al2_weights`), and series of one total."""

import math
import operator

import numpy as np
from scipy.optimize import brentq

from lib.losses import AL2_START, al2_weights

SCHEDULES = ("al2", "geometric", "linear", "constant")
PAPER_EPOCHS = 700  # the AL2 paper's trainings


def schedule(name: str, num_epochs: int, speed: float = 1, rate: float | None = None) -> np.ndarray:
    """The series λ_e by name, float64 [num_epochs], in the paper's epochs t = speed · e.

    `al2`: Eq. 2 (takes no rate). `geometric`: 0.01 · rate^t. `linear`: 0.01 + rate · t. `constant`:
    rate. The default rates make `geometric` and `linear` end, and `constant` average, where `al2`
    does over the paper's 700 epochs.

    Raises:
        ValueError: for an unknown name, less than one epoch, a speed that is not positive, a rate
            given to `al2`, one that is not positive, or one with which λ overflows.
    """
    num_epochs = operator.index(num_epochs)
    if name == "al2":
        if rate is not None:
            raise ValueError(f"rate is {rate}, but 'al2' has none: change its speed instead")
        return al2_weights(num_epochs, speed)
    al2_weights(min(num_epochs, 1), speed)  # refuses no epochs, and a speed that is not positive
    reference = al2_weights(PAPER_EPOCHS)
    end, span = reference[-1], PAPER_EPOCHS - 1
    defaults = {
        "geometric": (end / AL2_START) ** (1 / span),
        "linear": (end - AL2_START) / span,
        "constant": reference.mean(),
    }
    if name not in defaults:
        raise ValueError(f"schedule is {name!r}; allowed: al2, {', '.join(defaults)}")
    rate = defaults[name] if rate is None else rate
    if not 0 < rate < math.inf:
        raise ValueError(f"rate is {rate}; it has to be a positive, finite number")
    t = speed * np.arange(num_epochs, dtype=np.float64)
    with np.errstate(over="ignore"):
        if name == "geometric":
            weights = AL2_START * rate**t
        elif name == "linear":
            weights = AL2_START + rate * t
        else:
            weights = np.full_like(t, rate)
    if not np.isfinite(weights).all():
        raise ValueError(f"λ overflows at a rate of {rate}, {t[-1]:g} of the paper's epochs long")
    return weights


def schedule_of_total(
    name: str, num_epochs: int, total: float, speed: float = 1
) -> dict[str, float]:
    """The one setting of a schedule with which Σ λ_e is `total`, to compare those of other kinds.

    {"speed": …} of `al2`, {"rate": …} of the others; to six digits, so that a run that holds it has
    one id on every machine.

    By these six digits the sum of a geometric series is off by up to 5e-6 · num_epochs · speed of
    itself.

    Raises:
        ValueError: as for `schedule`, for a total that is no positive number, and for one that the
            schedule cannot have: with λ_0 = 0.01 first (all but `constant`) and growing it is above
            0.01 · num_epochs.
    """
    schedule(name, num_epochs, speed)  # refuses an unknown name, no epochs, a speed not above 0
    if not 0 < total < math.inf:
        raise ValueError(f"total is {total}; it has to be a positive number")
    key = "speed" if name == "al2" else "rate"
    if name == "constant":
        found = total / num_epochs
    else:
        span = max(num_epochs - 1, 1)  # limits far outside of all use, within floating point
        upper = {"al2": 5000 / span, "geometric": math.exp(200 / (speed * span)), "linear": 1e12}
        low = 1 + 1e-12 if name == "geometric" else 1e-12
        high = upper.get(name, 1.0)

        def excess(log: float) -> float:
            settings = {"speed": speed} | {key: math.exp(log)}
            return math.log(schedule(name, num_epochs, **settings).sum() / total)

        if excess(math.log(low)) > 0:
            raise ValueError(
                f"no schedule {name!r} of {num_epochs} epochs adds up to {total}; it starts at "
                f"{AL2_START} and grows, so the total has to be above {AL2_START * num_epochs:g}"
            )
        if excess(math.log(high)) < 0:
            raise ValueError(
                f"no schedule {name!r} of {num_epochs} epochs adds up to {total} by a {key} of up "
                f"to {high:.3g}; choose a smaller total"
            )
        found = math.exp(brentq(excess, math.log(low), math.log(high), xtol=1e-12))
    return {key: float(f"{found:.6g}")}
