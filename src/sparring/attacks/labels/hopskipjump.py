"""HopSkipJump: estimate the boundary's normal from labels around a boundary point, step along it, and return."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.labels.parts import crosses, first_points, to_boundary, together
from sparring.attacks.query.noise import Noise
from sparring.attacks.query.parts import clamp_
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# One normal takes at most this share of a budget: with a hundred queries, a normal that takes them all leads nowhere.
_SHARE = 0.25


@dataclass
class Hop:
    """The adversarial boundary point of each sample, (m, ...), and where its directions come from."""

    x: Tensor
    noise: Noise


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
        most_draws: and never more than so many, nor than a quarter of the budget.
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
        s = run.begin(Hop(start, Noise.of(run)))
        d = math.prod(run.x.shape[1:])
        theta = d**-1.5 if run.space.name == "l2" else d**-2.0
        granted = run.oracle.budget if run.oracle is not None else None
        most = self.most_draws if granted is None else min(self.most_draws, max(1, int(granted * _SHARE)))
        for t in run.steps(self.steps):
            tolerance = s.x.new_full((len(s.x),), max(theta, 2.0**-20))
            s.x = to_boundary(run, s.x, tolerance)
            distance = run.space.distance(s.x - run.x)
            delta = self._probe(run, distance, d, theta, t)
            draws = min(most, int(self.draws * math.sqrt(t + 1)))
            normal = self._normal(run, s, delta, draws)
            s.x = self._hop(run, s.x, run.space.steepest(normal), distance / math.sqrt(t + 1))

    @staticmethod
    def _probe(run: Run, distance: Tensor, d: int, theta: float, t: int) -> Tensor:
        """How far from the boundary point the normal's draws are, (m,)."""
        if t == 0:
            span = (run.space.bounds.hi - run.space.bounds.lo).amax() if run.space.bounds is not None else 1.0
            return torch.full_like(distance, 0.1) * span
        return (math.sqrt(d) if run.space.name == "l2" else d) * theta * distance

    @staticmethod
    def _normal(run: Run, s: Hop, delta: Tensor, draws: int) -> Tensor:
        """The estimated normal, (m, ...).

        Directions are taken in groups whose size depends on the input's size alone: sums are rounded alike in every batch.
        """
        m, size = len(s.x), together(s.x)
        z, delta = s.x.flatten(1)[:, None], delta.clamp(min=1e-12)[:, None]
        sums, counts = z.new_zeros(m, 2, z.shape[2]), z.new_zeros(m, 2)
        for begin in range(0, draws, size):
            j = min(size, draws - begin)
            u = s.noise.normal(s.x, j).flatten(2)
            length = delta / torch.linalg.vector_norm(u, dim=2).clamp(min=1e-12)
            points = clamp_(run, torch.addcmul(z, u, length[..., None]).reshape(m * j, *s.x.shape[1:]))
            hit, granted = crosses(run, points, torch.arange(m, device=z.device).repeat_interleave(j))
            told = granted.to(z.dtype)
            weights = torch.stack([torch.where(hit, told, -told), told]).reshape(2, m, j).transpose(0, 1)
            # the bounds may have cut the moves
            sums.baddbmm_(weights, points.reshape(m, j, -1).sub_(z))
            counts += weights.sum(2)
        mean = counts[:, 0] / counts[:, 1].clamp(min=1)
        # where all draws agree the centred sum is zero, and the plain one still points away from the others
        level = torch.where(mean.abs() < 1, mean, torch.zeros_like(mean))
        return ((sums[:, 0] - level[:, None] * sums[:, 1]) / delta).reshape(s.x.shape)

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
