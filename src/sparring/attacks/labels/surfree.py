"""SurFree: random directions, and on each the circle that a flat boundary would touch; no gradient is estimated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.labels.frequencies import Frequencies, unit
from sparring.attacks.labels.parts import crosses, first_points, to_boundary
from sparring.attacks.query.noise import Noise
from sparring.attacks.query.parts import clamp_
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Circling:
    """Where each sample stands.

    Attributes:
        x: the adversarial point, (m, ...).
        reach: the greatest angle that is tried, in radians, (m,).
        past: the last directions by their coordinates, nearly orthonormal, (m, memory, k).
        noise: where directions come from.
    """

    x: Tensor
    reach: Tensor
    past: Tensor
    noise: Noise


@attack(
    Card(
        name="surfree",
        title="SurFree: circles in random low-frequency directions",
        paper="Maho, Furon and Le Merrer 2021, SurFree: a fast surrogate-free black-box attack, arXiv:2011.12807",
        access=Access.LABELS,
        spaces=("l2",),
        minimal=True,
        cost="about 20 queries for the way to the boundary, then 2 or 3 a step",
        caveats="At its best below a thousand queries; with thousands, attacks that estimate the normal come nearer, and "
        "frequencies=1 helps. Targeted, it needs a start of the target's class: Knowledge(starts=...) or Knowledge(data=...).",
        floor={"l2": 0.42},
    )
)
@dataclass(frozen=True, kw_only=True)
class SurFree(Attack):
    r"""From the boundary point ``x + d u`` turn towards a random v orthogonal to u, as far as stays adversarial.

    The points :math:`z(\theta) = x + d \cos\theta\,(u \cos\theta + v \sin\theta)` make the circle through x and the
    boundary point; a flat boundary cuts it at the nearest point to x in the plane of u and v, and all of them are nearer
    than d. The coordinates of v, of low frequency, are -1, 0 or 1 at random, made orthogonal to the
    directions before.

    The paper spends up to six queries on the side and ten on the angle (adaptation 0.98, three grades, ten halvings).
    Two and one come nearer for the same queries: a new direction gains more than the last bit of an angle.

    Args:
        steps: directions.
        frequencies: the share of each side's frequencies, the lowest, that directions are made of; None takes half, and at
            most 64 of them.
        angle: the first greatest angle, in degrees; it grows with each success and shrinks with each failure.
        adaptation: by which factor.
        grades: fractions of the greatest angle that are tried to both sides, from the greatest down.
        halvings: of the angle, after the first success.
        memory: directions that the next one is orthogonal to.
        tries: random points asked for a first adversarial one.
    """

    steps: int = 10_000
    frequencies: float | None = None
    angle: float = 30.0
    adaptation: float = 0.9
    grades: int = 1
    halvings: int = 1
    memory: int = 100
    tries: int = 100

    def search(self, run: Run) -> None:
        """Find a start, turn."""
        if not (0 < self.adaptation < 1 and 0 < self.angle <= 90):
            raise InputError(
                f"adaptation and angle are {self.adaptation} and {self.angle}; they must be in (0, 1) and (0, 90]"
            )
        waves = Frequencies.of(run.x, self.frequencies)
        start, found = first_points(run, self.tries)
        run.give_up(~found)
        start = to_boundary(run, start, start.new_full((len(start),), 2.0**-10), found)
        m, memory = len(start), min(self.memory, waves.size // 2)
        reach = start.new_full((m,), math.radians(self.angle))
        s = run.begin(Circling(start, reach, start.new_zeros(m, memory, waves.size), Noise.of(run)))
        for t in run.steps(self.steps):
            v = self._direction(s, min(t, memory))
            s.x, turned = self._turn(run, s, waves.vectors(v))
            s.reach = torch.where(turned, s.reach / self.adaptation, s.reach * self.adaptation).clamp(max=math.pi / 2)
            if memory:
                s.past[:, t % memory] = v

    @staticmethod
    def _direction(s: Circling, known: int) -> Tensor:
        """The coordinates of a random unit vector orthogonal to the last directions, as far as known, (m, k)."""
        drawn = (s.noise.uniform(s.past.new_empty(len(s.past), s.past.shape[2])) * 3).floor() - 1
        if known:
            past = s.past[:, :known]
            drawn = drawn - ((past @ drawn[:, :, None]).mT @ past).squeeze(1)
        return unit(drawn)

    def _turn(self, run: Run, s: Circling, v: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest adversarial point found on each circle, (m, ...), and which samples have moved, bool (m,)."""
        away = s.x - run.x
        distance = away.square().flatten(1).sum(1).sqrt()
        slope = (v * away).flatten(1).sum(1) / distance.clamp(min=1e-12)
        rest = (1 - slope.square()).clamp(min=1e-12).sqrt()  # the length of the part of v that is orthogonal to u

        def at(angle: Tensor, rows: Tensor) -> Tensor:
            c, turn = angle.cos(), angle.sin() / rest
            weights = per_sample(c * (c - turn * slope), away), per_sample(c * turn * distance, v)
            some = run.x, away, weights[0], v, weights[1]
            x, home, much, aside, more = some if len(rows) == len(v) else (part.index_select(0, rows) for part in some)
            return clamp_(run, torch.addcmul(x, home, much).addcmul_(aside, more))

        best = torch.zeros_like(distance)
        going = torch.ones_like(best, dtype=torch.bool)
        for grade in range(self.grades, 0, -1):
            for side in (1, -1):
                rows = (going & (best == 0)).nonzero().squeeze(1)
                if len(rows):
                    angle = (s.reach * (side * grade / self.grades)).to(best.dtype)
                    hit, granted = crosses(run, at(angle, rows), rows)
                    best[rows[hit]] = angle[rows[hit]]
                    going[rows[~granted]] = False
        going = going & (best != 0)
        beyond = (best.abs() + s.reach / self.grades).clamp(max=math.pi / 2) * best.sign()
        for _ in range(self.halvings):
            rows = going.nonzero().squeeze(1)
            if not len(rows):
                break
            middle = (best + beyond) / 2
            hit, granted = crosses(run, at(middle, rows), rows)
            best[rows[hit]] = middle[rows[hit]]
            beyond[rows[~hit & granted]] = middle[rows[~hit & granted]]
            going[rows[~granted]] = False
        moved = best != 0
        rows = moved.nonzero().squeeze(1)
        return s.x.index_copy(0, rows, at(best, rows)), moved
