"""The check of what was found: every stored adversarial input measured again, with arithmetic of its own."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparring.core.balls import Ball
from sparring.core.space import Bounds
from sparring.core.threat import Targeted
from sparring.core.victim import query_in_batches
from sparring.evaluation.checks.parts import Bill, found, idle
from sparring.evaluation.findings import Context, Finding, check

PAIRS = 64
TOLERANCE = 1e-6
LEVELS = 256


@check(1, "legality", "What was found lies inside the ball and the bounds, and survives a file of 8 bits where it must")
def legality(context: Context) -> Finding | None:
    """The largest step outside: over the radius, over the bounds, or a NaN; and which successes last on the lattice.

    Distances are summed in float64, and a violation counts in units of the larger of 1 and the radius.
    """
    pairs = stored_pairs(context)
    bounds, space, bill = context.victim.bounds, context.threat.space, Bill()
    if not isinstance(space, Ball):
        return None
    if pairs is None:
        return idle(1, "No attack found an adversarial input that could be measured.")
    x, adversarial, y, radii = pairs
    over = _distance(adversarial.double() - x.double(), space.p) - radii
    worst = float((over / radii.clamp(min=1.0)).max())
    if bounds is not None:
        box = bounds.like(x)
        width = box.hi - box.lo
        worst = max(worst, float(((box.lo - adversarial) / width).max()), float(((adversarial - box.hi) / width).max()))
    if not bool(torch.isfinite(adversarial).all()):
        worst = math.inf
    outside = worst > TOLERANCE
    kept, lost = _round_trip(context, x, adversarial, y, bill) if not outside and bounds is not None else (None, 0)
    must = space.lattice is not None
    says = f"{len(y)} adversarial inputs: the largest step outside the ball or the bounds is {max(worst, 0.0):.2g}."
    if kept is not None:
        says += f" {kept:.0%} of them still fool the victim as files of {space.lattice or LEVELS} levels."
    step = "Project into the ball and the bounds before judging a success."
    if must and lost and not outside:
        step = "Round to the lattice inside the search, and judge the rounded input: Linf(eps, lattice=256)."
    return found(
        1,
        outside or (must and lost > 0),
        max(worst, 0.0),
        f"> {TOLERANCE:g}, or on a lattice a success lost",
        says,
        step,
        taints="any",
        bill=bill,
        details={"pairs": len(y), "round_trip": kept, "lost": lost},
    )


def stored_pairs(context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Originals, adversarial inputs, labels and the radii that they prove, of the successes nearest to their limits."""
    evidence = context.evidence
    columns = evidence.attempts
    rows = np.flatnonzero((columns["row"] >= 0) & np.isfinite(columns["radius"]))
    if not len(rows):
        return None
    # the largest excess of the stored distance over the radius first; then every k-th, for all attacks alike
    excess = columns["distance"][rows] - columns["radius"][rows]
    first = rows[np.argsort(-excess, kind="stable")][: PAIRS // 4]
    rest = np.setdiff1d(rows, first)
    rows = np.sort(np.concatenate([first, rest[:: max(1, math.ceil(len(rest) / (PAIRS - len(first))))]]))
    stored = [evidence.pair(int(columns["step"][r]), int(columns["sample"][r])) for r in rows]
    if not all(isinstance(t, Tensor) for pair in stored for t in pair):
        return None
    place = np.searchsorted(evidence.samples["sample"], columns["sample"][rows])
    labels: NDArray[np.int64] = evidence.samples["label"][place]
    radii = torch.from_numpy(columns["radius"][rows].astype(np.float64))
    return torch.stack([a for a, _ in stored]), torch.stack([b for _, b in stored]), torch.from_numpy(labels), radii


def _distance(delta: Tensor, p: float) -> Tensor:
    """The p-norm of each change in float64, (n,); how many elements changed for p = 0."""
    flat = delta.flatten(1).abs()
    if p == 0:
        return (flat > 0).double().sum(1)
    if math.isinf(p):
        return flat.amax(1)
    return flat.pow(p).sum(1).pow(1 / p)


def _round_trip(context: Context, x: Tensor, adversarial: Tensor, y: Tensor, bill: Bill) -> tuple[float | None, int]:
    """The share of successes that still succeed on the lattice's levels, and how many do not; None where unknown."""
    victim, space, goal = context.victim, context.threat.space, context.threat.goal
    if victim.traits.stochastic or victim.bounds is None:
        return None, 0
    if isinstance(goal, Targeted) and isinstance(goal.target, Tensor):
        return None, 0
    box: Bounds = victim.bounds.like(adversarial)
    size = (box.hi - box.lo) / ((getattr(space, "lattice", None) or LEVELS) - 1)
    rounded = box.clamp(box.lo + ((adversarial - box.lo) / size).round() * size)
    with victim.at_rest():
        admitted, labels = victim.admit(rounded, y)
        answer = query_in_batches(victim, admitted, context.batch_size or 64)
    bill.forwards += len(y)
    holds = goal.achieved(answer, labels)
    return float(holds.double().mean()), int((~holds).sum())
