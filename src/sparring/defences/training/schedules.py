"""Learning rates as functions of the step alone, so that a resumed run needs no state for them."""

from __future__ import annotations

import math
from collections.abc import Callable

from sparring.core.errors import UnknownNameError

# share of the run that is done, on [0, 1) -> share of the highest rate
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    # up to two fifths, then down to nothing (Smith 2017, as Wong et al. 2020 use it)
    "cyclic": lambda done: done / 0.4 if done < 0.4 else (1 - done) / 0.6,
    # a tenth at three quarters, a hundredth at nine tenths (Zhang et al. 2019)
    "steps": lambda done: 1.0 if done < 0.75 else 0.1 if done < 0.9 else 0.01,
}


def rate(schedule: str, highest: float, step: int, total: int) -> float:
    """The learning rate of step 0 <= step < total; the middle of the step counts, so that none is 0.

    Raises:
        UnknownNameError: no such schedule.
    """
    if schedule not in SCHEDULES:
        raise UnknownNameError.among("schedule", schedule, SCHEDULES)
    return highest * SCHEDULES[schedule]((step + 0.5) / total)
