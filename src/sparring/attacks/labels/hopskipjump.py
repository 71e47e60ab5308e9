"""HopSkipJump: estimate the boundary's normal from labels around a boundary point, step along it, and return."""

from __future__ import annotations

import math
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
class Hop:
    """The adversarial boundary point of each sample, (m, ...)."""

    x: Tensor


@attack(
    Card(
        name="hopskipjump",
        title="HopSkipJump: boundary walk with an estimated normal",
        paper="Chen, Jordan and Wainwright 2020, HopSkipJumpAttack: A Query-Efficient Decision-Based Attack, "
        "arXiv:1904.02144",
        access=Access.LABELS,
        spaces=("l2", "linf"),
        minimal=True,
        cost="about 25 queries for each way back to the boundary and draws * sqrt(t) for each normal",
        caveats="Targeted, it needs a start of the target's class: Knowledge(starts=...) or Knowledge(data=...).",
        floor={"l2": 0.42, "linf": 0.11},
        aliases=("hsj",),
    )
)
@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """HopSkipJump, in L2 and Linf.

    The normal at a boundary point z is ``sum_b (phi(z + delta u_b) - mean phi) u_b`` over random unit directions, with
    phi = +1 where the point is adversarial and -1 elsewhere.

    Args:
        steps: hops.
        draws: directions for the first normal; the t-th takes ``draws * sqrt(t)``.
        most_draws: and never more than so many.
        tries: random points asked for a first adversarial one.
    """

    steps: int = 64
    draws: int = 100
    most_draws: int = 10_000
    tries: int = 100

    def search(self, run: Run) -> None:
        """Find a start, walk."""
        start, found = first_points(run, self.tries)
        run.give_up(~found)
        s = run.begin(Hop(start))
        d = math.prod(run.x.shape[1:])
        theta = d**-1.5 if run.space.name == "l2" else d**-2.0
        for t in run.steps(self.steps):
            tolerance = torch.full((len(s.x),), max(theta, 2.0**-20), device=s.x.device)
            s.x = to_boundary(run, s.x, tolerance)
            distance = run.space.distance(s.x - run.x)
            delta = self._probe(run, distance, d, theta, t)
            normal = self._normal(run, s.x, delta, min(self.most_draws, int(self.draws * math.sqrt(t + 1))), t)
            s.x = self._hop(run, s.x, run.space.steepest(normal), distance / math.sqrt(t + 1))

    @staticmethod
    def _probe(run: Run, distance: Tensor, d: int, theta: float, t: int) -> Tensor:
        """How far from the boundary point the normal's draws are, (m,)."""
        if t == 0:
            span = (run.space.bounds.hi - run.space.bounds.lo).amax() if run.space.bounds is not None else 1.0
            return torch.full_like(distance, 0.1) * span
        return (math.sqrt(d) if run.space.name == "l2" else d) * theta * distance

    def _normal(self, run: Run, z: Tensor, delta: Tensor, draws: int, t: int) -> Tensor:
        """The estimated normal, (m, ...); draws are made in chunks whose size depends on the input's size alone."""
        shape = tuple(z.shape[1:])
        chunk = max(1, 2**18 // max(1, math.prod(shape)))
        weighted, plain = torch.zeros_like(z), torch.zeros_like(z)
        total, count = torch.zeros_like(delta), torch.zeros_like(delta)
        m = len(z)
        for number, start in enumerate(range(0, draws, chunk)):
            size = min(chunk, draws - start)
            u = run.rng.normal((size, *shape), ("normal", t, number)).to(z.dtype)
            u = u / u.flatten(2).norm(dim=2).clamp(min=1e-12).reshape(m, size, *[1] * len(shape))
            points = (z[:, None] + per_sample(delta, u) * u).flatten(0, 1)
            points = points if run.space.bounds is None else run.space.bounds.clamp(points)
            moved = (points.reshape(u.shape) - z[:, None]) / per_sample(delta.clamp(min=1e-12), u)
            rows = torch.arange(m, device=z.device).repeat_interleave(size)
            hit, granted = crosses(run, points, rows)
            phi = torch.where(hit, 1.0, -1.0) * granted
            phi, told = phi.reshape(m, size), granted.reshape(m, size).to(z.dtype)
            weighted += (moved * phi.reshape(m, size, *[1] * len(shape))).sum(1)
            plain += (moved * told.reshape(m, size, *[1] * len(shape))).sum(1)
            total, count = total + phi.sum(1), count + told.sum(1)
        mean = total / count.clamp(min=1)
        # where all draws agree the centred sum is zero, and the plain one still points away from the others
        level = torch.where(mean.abs() < 1, mean, torch.zeros_like(mean))
        return weighted - per_sample(level, z) * plain

    @staticmethod
    def _hop(run: Run, z: Tensor, direction: Tensor, length: Tensor) -> Tensor:
        """A step along the normal, halved until its end is adversarial; z itself where none is."""
        out, going = z.clone(), torch.ones(len(z), dtype=torch.bool, device=z.device)
        for _ in range(15):
            rows = going.nonzero().squeeze(1)
            if not len(rows):
                break
            point = run.space.without_limit().project(z, z + per_sample(length, z) * direction)[rows]
            hit, granted = crosses(run, point, rows)
            out[rows[hit]] = point[hit]
            going[rows[hit | ~granted]] = False
            length = length / 2
        return out
