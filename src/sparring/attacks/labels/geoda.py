"""GeoDA: estimate the normal of a nearly flat boundary from labels, and go to the boundary along it from the original."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.labels.frequencies import Frequencies, unit
from sparring.attacks.labels.parts import crosses, first_points, halve, to_boundary, together
from sparring.attacks.query.noise import Noise
from sparring.attacks.query.parts import budget, clamp_, positive
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.batch import pick
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# A way to the boundary is halved until its end is known to this share of its length, which takes so many queries.
_TOLERANCE = 2.0**-12
_LINE = 13
# How far to turn from the last normal to a new one: all the way, or less where the boundary bends away from that.
_TURNS = (1.0, 0.5, 0.25)


@dataclass
class Flat:
    """The adversarial boundary point of each sample, (m, ...), and the answers around it.

    Attributes:
        x: the point.
        heading: the normal along which it was reached, (m, ...), of unit length.
        signed: the sum of the probes' coordinates, each with the sign of its answer, (m, k).
        plain: their sum without signs, (m, k).
        signs: the sum of the signs, (m,).
        count: the number of probes answered, (m,).
        noise: where the probes' directions come from.
    """

    x: Tensor
    heading: Tensor
    signed: Tensor
    plain: Tensor
    signs: Tensor
    count: Tensor
    noise: Noise


@attack(
    Card(
        name="geoda",
        title="GeoDA: the normal of a flat boundary from labels",
        paper="Rahmati, Moosavi-Dezfooli, Frossard and Dai 2020, GeoDA: a geometric framework for black-box adversarial "
        "attacks, arXiv:2003.06468",
        access=Access.LABELS,
        spaces=("l2", "linf", "l1"),
        goals=("untargeted",),
        minimal=True,
        cost="the whole budget: about 25 queries for the way to the boundary, 13 a step, the rest for normals",
        caveats="Takes the boundary for flat and its normal for smooth across the picture. That pays below a thousand "
        "queries; beyond, HopSkipJump or frequencies=1 ends nearer.",
        floor={"l2": 0.42, "linf": 0.11, "l1": 0.8},
    )
)
@dataclass(frozen=True, kw_only=True)
class GeoDA(Attack):
    r"""GeoDA in L2, Linf and L1.

    At a boundary point z the normal is ``w = sum_b phi(z + delta u_b) u_b``, centred, over random unit directions of low
    frequency, with phi = +1 where the point is adversarial and -1 elsewhere. The next z is where the boundary is met from
    x along the direction that a ball of the norm offers to w: w itself in L2, sign(w) in Linf, the elements of the
    greatest ``|w|`` one after another in L1. With q queries for all normals the t-th of T takes
    :math:`q \rho^t / \sum_s \rho^s` of them, :math:`\rho = \lambda^{-2/3}`: later ones, which decide, take more.

    Where the boundary bends so that w leads no nearer, a direction between the last one and w is taken. If that fails as
    well, z stays, and the answers around it count for the next normal too. The paper has neither; without them the walk
    gets stuck on networks.

    Args:
        queries: queries per sample where the threat model names no number.
        first: about how many queries the first normal takes; it decides T.
        decay: lambda, the rate at which the distance to the best point is thought to fall from step to step.
        frequencies: the share of each side's frequencies, the lowest, that the normal is made of; None takes half, and at most
            64 of them.
        probe: delta, as a share of z's Euclidean distance from x.
        tries: random points asked for a first adversarial one.
    """

    queries: int = 10_000
    first: int = 30
    decay: float = 0.6
    frequencies: float | None = None
    probe: float = 0.05
    tries: int = 100

    def search(self, run: Run) -> None:
        """Find a start; estimate and go."""
        positive(first=self.first, probe=self.probe)
        if not 0 < self.decay < 1:
            raise InputError(f"decay is {self.decay}; it must be in (0, 1)")
        waves = Frequencies.of(run.x, self.frequencies)
        total = budget(run, self.queries)
        start, found = first_points(run, self.tries)
        run.give_up(~found)
        start = to_boundary(run, start, start.new_full((len(start),), _TOLERANCE), found)
        m, ratio = len(start), self.decay ** (-2 / 3)
        steps = max(1, round(math.log1p(total * (ratio - 1) / self.first) / math.log(ratio)))
        none = start.new_zeros(m, waves.size)
        heading = unit((start - run.x).flatten(1)).reshape(start.shape)
        s = run.begin(Flat(start, heading, none, none.clone(), start.new_zeros(m), start.new_zeros(m), Noise.of(run)))
        for t in run.steps(steps):
            left = run.oracle.left(run.rows) - _LINE * (steps - t) if run.oracle is not None else run.rows
            share = (ratio - 1) / (ratio ** (steps - t) - 1)
            self._probe(run, s, waves, (left * share).long().clamp(min=1))
            self._go(run, s, self._normal(s, waves))

    def _probe(self, run: Run, s: Flat, waves: Frequencies, draws: Tensor) -> None:
        """Ask around each point, as often as `draws`, (m,), says, and add the answers to what is known there."""
        m, size = len(draws), together(s.x)
        z = s.x.flatten(1)[:, None]
        length = (self.probe * torch.linalg.vector_norm((s.x - run.x).flatten(1), dim=1)).clamp(min=1e-12)
        noise = s.noise.copy()
        s.noise.skip(draws)
        moved = z.new_zeros(m, 2, z.shape[2])
        for begin in range(0, int(draws.max()), size):
            waved = waves.vectors(unit(noise.normal(s.plain, size))).flatten(2)
            points = clamp_(run, torch.addcmul(z, waved, length[:, None, None]).reshape(m * size, *s.x.shape[1:]))
            asked = torch.arange(size, device=z.device) + begin < draws[:, None]
            rows, which = asked.nonzero(as_tuple=True)
            every = len(rows) == m * size
            hit, granted = crosses(run, points if every else points[rows * size + which], rows)
            told = z.new_zeros(m, size).index_put_((rows, which), granted.to(z.dtype))
            phi = told.index_put((rows, which), torch.where(hit, 1.0, -1.0).to(z.dtype) * granted)
            # the bounds may have cut a move
            moved.baddbmm_(torch.stack([phi, told], 1), points.reshape(m, size, -1).sub_(z))
            s.signs, s.count = s.signs + phi.sum(1), s.count + told.sum(1)
        # sums first: their coordinates are the sums of the moves' coordinates
        sums = waves.coordinates(moved.reshape(m, 2, *s.x.shape[1:])) / length[:, None, None]
        s.signed, s.plain = s.signed + sums[:, 0], s.plain + sums[:, 1]

    @staticmethod
    def _normal(s: Flat, waves: Frequencies) -> Tensor:
        """The normal at each point as far as its answers tell it, towards the adversarial side, (m, ...)."""
        mean = s.signs / s.count.clamp(min=1)
        # where all answers agree the centred sum is zero, and the plain one still points away from the others
        level = torch.where(mean.abs() < 1, mean, torch.zeros_like(mean))
        return waves.vectors(unit(s.signed - level[:, None] * s.plain))

    @staticmethod
    def _go(run: Run, s: Flat, normal: Tensor) -> None:
        """Move to the boundary along the normal from x wherever that is nearer, and forget the answers around the old z."""
        distance = run.space.distance(s.x - run.x)
        heading, nearer = s.heading, torch.zeros(len(s.x), dtype=torch.bool, device=s.x.device)
        for turn in _TURNS:
            rows = (~nearer).nonzero().squeeze(1)
            if not len(rows):
                break
            tried = unit((turn * normal + (1 - turn) * s.heading).flatten(1)).reshape(normal.shape)
            hit, _ = crosses(run, Path.along(run, tried).at(distance[rows], rows), rows)
            nearer[rows[hit]] = True
            heading = heading.clone()
            heading[rows[hit]] = tried[rows[hit]]
        path = Path.along(run, heading)
        hi, lo = distance.clone(), torch.zeros_like(distance)
        halve(run, path.at, lo, hi, nearer, lambda low, high: high - low > _TOLERANCE * high)
        s.x, s.heading = torch.where(per_sample(nearer, s.x), path.at(hi), s.x), heading
        stays = (~nearer).to(s.x.dtype)
        s.signed, s.plain = s.signed * stays[:, None], s.plain * stays[:, None]
        s.signs, s.count = s.signs * stays, s.count * stays


@dataclass(frozen=True)
class Path:
    """From each original the way that raises w.x fastest for its length in the run's norm and inside the bounds.

    Attributes:
        run: the samples in play.
        direction: the change per length, (m, ...); in L1 the sign of each element's change.
        room: how far each element may go, (m, d), and
        before: how far the ones before it go in all, (m, d); both for L1 alone.
    """

    run: Run
    direction: Tensor
    room: Tensor | None = None
    before: Tensor | None = None

    @classmethod
    def along(cls, run: Run, w: Tensor) -> Path:
        """The path for normals w, (m, ...)."""
        bounds, x = run.space.bounds, run.x
        if bounds is not None:  # what stands at the bound it would move to takes no part, nor counts as length
            w = w.masked_fill(bounds.clamp(x + w.sign() * (bounds.hi - bounds.lo)) == x, 0.0)
        if run.space.name != "l1":
            return cls(run, run.space.steepest(w))
        sign, size = w.sign(), w.flatten(1).abs()
        end = x + sign * torch.inf if bounds is None else bounds.clamp(x + sign * (bounds.hi - bounds.lo))
        room = (end - x).flatten(1).abs().nan_to_num(nan=0.0)
        order = size.argsort(dim=1, descending=True, stable=True)
        ordered = room.gather(1, order)
        before = torch.empty_like(room).scatter_(1, order, ordered.cumsum(1) - ordered)
        return cls(run, sign, room, before)

    def at(self, length: Tensor, rows: Tensor | None = None) -> Tensor:
        """The points at these lengths, of all samples or of `rows`, (m, ...)."""
        x, direction = pick(self.run.x, rows), pick(self.direction, rows)
        step = per_sample(length, x)
        if self.room is not None and self.before is not None:
            amount = (length[:, None] - pick(self.before, rows)).clamp(min=0.0)
            step = torch.minimum(amount, pick(self.room, rows)).reshape(x.shape)
        return clamp_(self.run, torch.addcmul(x, step, direction))
