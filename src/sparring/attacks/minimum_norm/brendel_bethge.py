"""Brendel and Bethge's attack: a walk along the boundary from an adversarial point to the input; L0, L1, L2, Linf."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, box, clamp, norm, polish, reached, starts, unit
from sparring.attacks.minimum_norm.trust_region import boundary_step
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Gradient, Run
from sparring.core.threat import Access

# A start is climbed to in steps of this length per element, in units of the bounds' width.
CLIMB = 0.03
# Halvings of a way to the boundary.
HALVINGS = 8
# After so many points in a row short of the boundary a walk has lost it.
LOST = 10
# The walk keeps this far beyond the boundary, in units of the largest score: nearer points might not survive the re-check.
AIM = 1e-4
# The trust region shrinks to this share of its first radius; in L0 elements go in and out whole, which takes some room.
LAST, LAST_L0 = 0.002, 0.01


@dataclass
class Walk:
    """What the walk keeps per sample.

    Attributes:
        x: the current point.
        normal: the running mean of the boundary's unit normals.
        first: the length of the first change, (m,).
        lost: points in a row that were not adversarial, (m,).
    """

    x: Tensor
    normal: Tensor
    first: Tensor
    lost: Tensor


@attack(
    Card(
        name="brendel-bethge",
        title="Brendel and Bethge: along the boundary from an adversarial point",
        paper="Brendel et al. 2019, Accurate, reliable and fast robustness evaluation, arXiv:1907.01003",
        access=Access.GRADIENTS,
        spaces=("l0", "l1", "l2", "linf"),
        minimal=True,
        cost="steps x (forward + backward), some 15 to 50 forwards for the start and the end, and 8 where a walk gets lost",
        caveats="The boundary it meets first decides much: other starts end elsewhere, and Knowledge(starts=...) takes better "
        "ones. Its own work per step outweighs a small victim's in L0, and about equals it in L1 and Linf.",
        floor={"l0": 2.0, "l1": 0.9, "l2": 0.45, "linf": 0.11},
        aliases=("bb",),
    )
)
@dataclass(frozen=True, kw_only=True)
class BrendelBethge(Attack):
    """Brendel and Bethge: min |x + r - x0|_p over r with <b, r> = gap, |r|_2 <= radius, x + r in the bounds; step after step.

    b is the mean normal of the boundary near x and gap the distance to its linearisation, so that the walk keeps to the boundary
    while it slides towards the input x0 as far as the trust region allows. The start is the threat's own where it has some, else
    uniform noise, else a climb along the gradient, and is moved to the boundary on its way to the input.

    Args:
        steps: steps along the boundary.
        radius: of the trust region at first, in units of the length of the first change; it shrinks exponentially to a five
            hundredth, in L0 to a hundredth. None takes 1 in L0 and a half elsewhere.
        momentum: of the mean of the normals.
        overshoot: the gap is closed this many times where x has not crossed, and left 2 - overshoot times where it has.
        tries: draws of noise for a start.
        climbs: gradient steps to a start where no noise is adversarial.
        polish: forwards at the end to move the best success onto the boundary, along the line to the input; none in L0.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.BrendelBethge(steps=50)(sp.Victim(net), x, None, sp.Linf())
        >>> result.median_distance > 0
        True
    """

    steps: int = 100
    radius: float | None = None
    momentum: float = 0.5
    overshoot: float = 1.1
    tries: int = 20
    climbs: int = 20
    polish: int = 4

    def search(self, run: Run) -> None:
        """Find a start and walk."""
        p, loss = run.space.p, get_loss("margin")
        radius = (1.0 if p == 0 else 0.5) if self.radius is None else self.radius
        last = LAST_L0 if p == 0 else LAST
        x = self._to_boundary(run, self._start(run))
        first = norm(x - run.x, 2.0)
        s = run.begin(Walk(x, torch.zeros_like(x), first, torch.zeros_like(first)))
        for t in run.steps(self.steps):
            g = run.gradient(s.x, loss)
            direction = unit(g.grad, run, ("direction", run.restart, t))
            s.normal = s.normal.lerp(direction, 1.0 - self.momentum)
            reach = radius * last ** (t / max(1, self.steps - 1)) * s.first
            s.x = self._step(run, s, g, reach, unit(s.normal, run, ("normal", run.restart, t)))
            self._return(run, s, g)
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)
            polish(run, 0 if p == 0 else self.polish)

    def _step(self, run: Run, s: Walk, g: Gradient, reach: Tensor, normal: Tensor) -> Tensor:
        """The point nearest to the input on the linearised boundary, within `reach` of the current one, (m, ...)."""
        beyond = g.loss - AIM * g.scores.abs().amax(1)
        share = torch.where(beyond > 0, 2.0 - self.overshoot, self.overshoot).to(beyond.dtype)
        gap = -share * beyond / norm(g.grad, 2.0).clamp(min=TINY)
        origin = run.x.flatten(1)
        low, high = (bound - origin for bound in box(run))
        change = boundary_step((s.x - run.x).flatten(1), normal.flatten(1), gap, reach, low, high, run.space.p)
        return clamp(run, run.x + change.reshape(s.x.shape))

    @staticmethod
    def _return(run: Run, s: Walk, g: Gradient) -> None:
        """Take a walk that has lost the boundary back towards its best success, as far as needed.

        It is near the boundary, if on its wrong side; to begin again at the success would waste the way that it has come.
        """
        s.lost = torch.where(g.loss > 0, 0.0, s.lost + 1.0)
        rows = torch.nonzero((s.lost >= LOST) & run.found()).squeeze(1)
        if not len(rows):
            return
        short = s.x[rows]
        away = run.best()[0][rows] - short
        s.x = s.x.index_copy(0, rows, _crossing(run, lambda share: short + per_sample(share, away) * away, rows))
        s.normal[rows], s.lost[rows] = 0.0, 0.0

    def _start(self, run: Run) -> Tensor:
        """Adversarial points wherever some are found, (m, ...)."""
        x = starts(run)
        hit = reached(run, run.evaluate(x))
        bounds = run.space.bounds
        for k in range(0 if bounds is None else self.tries):
            if bool(hit.all()):
                return x
            draw = run.rng.uniform(tuple(x.shape[1:]), ("noise", run.restart, k)).to(x)
            x = torch.where(per_sample(hit, x), x, bounds.lo + (bounds.hi - bounds.lo) * draw)
            hit = reached(run, run.evaluate(x))
        # noise that failed is no place to climb from
        x = torch.where(per_sample(hit, x), x, starts(run))
        step = CLIMB * run.width * math.sqrt(x[0].numel())
        for t in range(self.climbs):
            g = run.gradient(x, get_loss("margin"))
            missing = ~reached(run, g.scores)
            if not bool(missing.any()):
                break
            moved = clamp(run, x + step * unit(g.grad, run, ("start", run.restart, t)))
            x = torch.where(per_sample(missing, x), moved, x)
        return x

    @staticmethod
    def _to_boundary(run: Run, far: Tensor) -> Tensor:
        """The adversarial point on the way from the input to `far` that halving finds, in Linf with `far` cut to cubes."""
        away = far - run.x

        def between(share: Tensor) -> Tensor:
            if math.isinf(run.space.p):
                cube = per_sample(share * norm(away, math.inf), away)
                return clamp(run, run.x + away.clamp(-cube, cube))
            return clamp(run, run.x + per_sample(share, away) * away)

        return _crossing(run, between)


def _crossing(run: Run, between: Callable[[Tensor], Tensor], rows: Tensor | None = None) -> Tensor:
    """The adversarial points that halving finds on the ways from shares of 0 to shares of 1, where these end in such points.

    `between` takes the shares, one for each active sample or for each of `rows`, to points.
    """
    low = run.x.new_zeros(len(run.rows if rows is None else rows))
    high = torch.ones_like(low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        hit = reached(run, run.evaluate(between(middle), rows), rows)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    return between(high)
