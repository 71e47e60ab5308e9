"""The boundary attack: a random walk on the adversarial side, along the sphere and then towards the original."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.labels.parts import crosses, first_points, to_boundary
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Walker:
    """The current adversarial point, two relative step sizes, and running rates of success of each kind of step."""

    x: Tensor
    sideways: Tensor
    towards: Tensor
    kept: Tensor
    gained: Tensor


@attack(
    Card(
        name="boundary",
        title="Boundary attack: random walk along the decision boundary",
        paper="Brendel, Rauber and Bethge 2018, Decision-Based Adversarial Attacks, arXiv:1712.04248",
        access=Access.LABELS,
        spaces=("l2",),
        minimal=True,
        cost="2 queries a step",
        caveats="Needs thousands of steps where HopSkipJump needs hundreds of queries; a yardstick more than a tool. "
        "Targeted, it needs a start of the target's class.",
        floor={"l2": 0.45},
    )
)
@dataclass(frozen=True, kw_only=True)
class Boundary(Attack):
    """The boundary attack; each sample adapts its own two step sizes.

    Args:
        steps: proposals.
        sideways: the first orthogonal step, relative to the distance.
        towards: the first step towards the original, relative to the distance.
        adaptation: the factor by which step sizes change.
        tries: random points asked for a first adversarial one.
    """

    steps: int = 5000
    sideways: float = 0.01
    towards: float = 0.01
    adaptation: float = 1.05
    tries: int = 100

    def search(self, run: Run) -> None:
        """Find a start, walk."""
        start, found = first_points(run, self.tries)
        run.give_up(~found)
        start = to_boundary(run, start, torch.full((len(start),), 1e-3, device=start.device), found)
        level = torch.ones(len(start), device=start.device)
        s = run.begin(Walker(start, self.sideways * level, self.towards * level, 0.5 * level, 0.25 * level))
        for t in run.steps(self.steps):
            side = self._sideways(run, s, t)
            stays, granted = crosses(run, side)
            near = run.space.without_limit().project(run.x, side + per_sample(s.towards, side) * (run.x - side))
            rows = stays.nonzero().squeeze(1)
            gains = torch.zeros_like(stays)
            if len(rows):
                gains[rows], _ = crosses(run, near[rows], rows)
            s.x = torch.where(per_sample(gains, s.x), near, s.x)
            self._adapt(s, stays, gains, granted)

    @staticmethod
    def _sideways(run: Run, s: Walker, t: int) -> Tensor:
        """A random step orthogonal to the way home, back on the sphere around the original."""
        home = run.x - s.x
        distance = per_sample(run.space.distance(home), home)
        unit = home / distance.clamp(min=1e-12)
        u = run.rng.normal(tuple(run.x.shape[1:]), ("side", t)).to(s.x.dtype)
        u = u - per_sample((u * unit).flatten(1).sum(1), u) * unit
        u = u / per_sample(run.space.distance(u), u).clamp(min=1e-12)
        point = s.x + per_sample(s.sideways, u) * distance * u
        away = point - run.x
        away = away / per_sample(run.space.distance(away), away).clamp(min=1e-12) * distance
        return run.space.without_limit().project(run.x, run.x + away)  # type: ignore[no-any-return]

    def _adapt(self, s: Walker, stays: Tensor, gains: Tensor, granted: Tensor) -> None:
        """Longer steps where they succeed often, shorter where they rarely do (half and a quarter are the aims)."""
        s.kept = torch.where(granted, 0.97 * s.kept + 0.03 * stays, s.kept)
        s.gained = torch.where(stays, 0.97 * s.gained + 0.03 * gains, s.gained)
        f = self.adaptation
        for name, rate, aim in (("sideways", s.kept, 0.5), ("towards", s.gained, 0.25)):
            size = getattr(s, name)
            size = torch.where(rate > aim * 1.2, size * f, torch.where(rate < aim * 0.8, size / f, size))
            setattr(s, name, size.clamp(1e-6, 0.5))
