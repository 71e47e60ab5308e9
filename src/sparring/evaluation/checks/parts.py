"""What the checks share: their samples, the threat's known radii, the bill, and how a finding is written.

A check that attacks may spend about `SHARE` of the passes that the audit has spent so far, on `LEAST` to `MOST`
samples: an audit of few samples pays for the least, and every finding says how many passes it took.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparring.core.balls import Ball
from sparring.core.losses import get_loss
from sparring.core.result import AttackResult
from sparring.core.rng import KeyedRandom
from sparring.core.threat import Targeted
from sparring.evaluation.findings import CHECKS, Context, Finding, Result, Taint

SHARE = 0.01
LEAST, MOST = 8, 32

# A number of samples is told from none only above this, beside a share of at least one point (Carlini et al. 2019).
FEW = 2
POINT = 0.01


class Few(NamedTuple):
    """Some of the audit's samples, on the victim's device: inputs (m, ...), labels, ids and positions, int64 (m,)."""

    x: Tensor
    y: Tensor
    ids: Tensor
    positions: Tensor

    def take(self, index: Tensor) -> Few:
        """Those at `index`, int64 (j,)."""
        return Few(*(t[index.to(t.device)] for t in self))

    def rng(self, seed: int) -> KeyedRandom:
        """Their keyed randomness."""
        return KeyedRandom(seed, self.ids.to(self.y.device))


@dataclass
class Bill:
    """What a check has spent: passes over single samples."""

    forwards: int = 0
    backwards: int = 0

    def pay(self, result: AttackResult) -> None:
        """Add an attack: its search, its look at the clean inputs, and its re-check."""
        self.forwards += int(result.forwards.sum()) + 2 * len(result)
        self.backwards += int(result.backwards.sum())


def found(
    number: int,
    failed: bool | None,
    measured: float | None,
    threshold: str,
    says: str,
    next_step: str = "",
    *,
    taints: Taint = "robust",
    bill: Bill | None = None,
    details: Mapping[str, Any] | None = None,
) -> Finding:
    """The finding of check `number`; `failed` is None where it could not be measured."""
    result: Result = "skipped" if failed is None else "fail" if failed else "pass"
    spent = bill or Bill()
    return Finding(
        number,
        CHECKS[number].name,
        result,
        measured,
        threshold,
        says,
        next_step if failed else "",
        taints,
        spent.forwards,
        spent.backwards,
        details=dict(details or {}),
    )


def idle(number: int, why: str) -> Finding:
    """The finding of a check that had nothing to look at."""
    return found(number, None, None, "", why, taints="nothing")


# -- samples -----------------------------------------------------------------------------------------------------------


def allowance(context: Context) -> float:
    """How many passes over single samples a check may spend without asking for more than its share."""
    columns = context.evidence.attempts
    return SHARE * float(columns["forwards"].sum() + columns["backwards"].sum())


def afford(context: Context, passes: float, least: int = LEAST, most: int = MOST) -> int:
    """How many samples a check may take that spends `passes` on each."""
    return int(min(most, max(least, allowance(context) / max(1.0, passes))))


def anyone(context: Context, most: int) -> Few | None:
    """At most so many samples, right or wrong; None where they are no tensors."""
    return pick(context, np.ones(len(context.evidence.samples["sample"]), dtype=np.bool_), most)


def right(context: Context, most: int) -> Few | None:
    """At most so many samples that were right at first; None where there are none, or where they are no tensors."""
    return pick(context, context.evidence.samples["correct"], most)


def standing(context: Context, most: int) -> Few | None:
    """At most so many samples that no attack has broken and for which the goal makes sense; None for none."""
    samples, goal = context.evidence.samples, context.threat.goal
    if isinstance(goal, Targeted):
        goal = goal.take(torch.from_numpy(samples["sample"]))
    sensible = goal.applicable(torch.from_numpy(samples["label"])).numpy()
    return pick(context, still_standing(context) & sensible, most)


def still_standing(context: Context) -> NDArray[np.bool_]:
    """Which samples no attack has broken at the audit's eps, (n,) by row of the evidence."""
    eps = radius_of(context)
    if eps is None:
        return np.zeros(len(context.evidence.samples["sample"]), dtype=np.bool_)
    broken: NDArray[np.bool_] = context.evidence.breaker(eps) == -1
    return broken


def pick(context: Context, mask: NDArray[np.bool_], most: int) -> Few | None:
    """At most so many of the samples where `mask` is true, chosen by a hash of their content, so in no order."""
    samples = context.evidence.samples
    positions, ids = (torch.from_numpy(samples[name][mask]) for name in ("sample", "id"))
    order = KeyedRandom(context.seed, ids).words(1, "checks").squeeze(1).argsort(stable=True)
    positions = positions[order[:most]]
    if not len(positions):
        return None
    x, y, ids = context.data.take(positions)
    if not isinstance(x, Tensor):
        return None
    x, y = context.victim.admit(x, y)
    return Few(x, y, ids, positions) if isinstance(x, Tensor) else None


# -- the threat --------------------------------------------------------------------------------------------------------


def radius_of(context: Context) -> float | None:
    """The audit's eps, None where the threat is no ball with one radius."""
    space = context.threat.space
    if not isinstance(space, Ball) or space.eps is None or torch.as_tensor(space.eps).numel() != 1:
        return None
    return float(space.eps)


def largest_radius(context: Context, few: Few) -> float | None:
    """The distance between opposite corners of the victim's domain; None without bounds. Any input is that near."""
    bounds, space = context.victim.bounds, context.threat.space
    if bounds is None or not isinstance(space, Ball):
        return None
    width = (bounds.like(few.x).hi - bounds.like(few.x).lo).expand(few.x.shape[1:])
    return float(space.distance(width[None])[0])


def chance(context: Context) -> float:
    """The accuracy of guessing."""
    classes = context.victim.classes or int(context.evidence.samples["label"].max()) + 1
    return 1.0 / max(2, classes)


def standard_error(rate: float, n: int) -> float:
    """Of a share measured on n samples."""
    return math.sqrt(max(0.0, rate * (1 - rate)) / max(1, n))


def margins(scores: Tensor, y: Tensor) -> Tensor:
    """How far each true label stands above the best other, (n,); positive where it is right."""
    return -get_loss("margin").untargeted(scores, y)
