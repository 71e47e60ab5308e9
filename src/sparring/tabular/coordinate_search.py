"""A search by labels alone for victims whose answer moves in steps, such as forests: ever smaller cubes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access, Targeted

_HANDFULS = 4  # rounds of the attacker's own nearest rows before random points are tried
_FIRST_CUBE, _DOUBLINGS = 0.01, 30  # random starts come from cubes of radius 0.01 up to some ten million units
_LEAST_SHRINK, _MOST_SHRINK = 1e-3, 0.5


@dataclass
class Walk:
    """Per row: the nearest adversarial point and its radius (infinite before the first), and where its search stands.

    `low` is the largest radius below it at which the clipped point is known to fail, `lining` whether that bracket is
    still being narrowed, `shrink` how much smaller the next cube is, and `near` the attacker's nearest rows as indices,
    -1 for none.
    """

    x: Tensor
    radius: Tensor
    low: Tensor
    shrink: Tensor
    lining: Tensor
    near: Tensor


@attack(
    Card(
        name="coordinate-search",
        title="Shrinking cubes, by labels alone: for victims whose answer moves in steps, such as forests",
        paper="a random search after Chen and Gu 2020, RayS: A Ray Searching Method for Hard-label Adversarial Attack, "
        "arXiv:2006.12792, with a value per coordinate in place of one ray",
        access=Access.LABELS,
        spaces=("linf",),
        minimal=True,
        cost="rounds x at_once queries",
        domains=("table",),
        caveats="Made for tens of columns; with many it moves slowly. Without rows of the attacker's own "
        "(knowledge.data) it starts from random points, all of which may lie far away.",
        floor={"linf": 0.4},
    )
)
@dataclass(frozen=True, kw_only=True)
class CoordinateSearch(Attack):
    """Finds a near adversarial row by labels alone, with neither gradients nor smoothness.

    It starts from the attacker's nearest rows with another label (or from random points in growing cubes) and clips the
    best towards the original, bracketing the smallest cube in which the clipped row still fools. Then it draws rows
    from slightly smaller cubes, most coordinates clipped and a few anew, at the cube's faces or between; one that fools
    is clipped again.

    Args:
        rounds: how often the victim is asked.
        at_once: points asked about per row in each round.
        precision: a bracket narrower than this share of the radius is narrow enough.
    """

    rounds: int = 100
    at_once: int = 20
    precision: float = 1e-3

    def search(self, run: Run) -> None:
        """One round for every row: a start for those that have none, a smaller cube for the others."""
        if self.at_once < 1 or not 0 < self.precision < 1:
            raise InputError(f"{self} needs rounds >= 1, at_once >= 1 and a precision between 0 and 1")
        zeros = torch.zeros(len(run.rows), dtype=run.x.dtype)
        near = self._nearest(run)
        s = run.begin(Walk(run.x.clone(), zeros + torch.inf, zeros, zeros + 0.2, zeros == 0, near))
        for t in run.steps(self.rounds):
            lost = torch.isinf(s.radius)
            radii = self._radii(run, s, t)
            points = torch.where(_over(lost, 3), self._starts(run, s, t), self._smaller(run, s, radii, t))
            if run.space.bounds is not None:
                points = run.space.bounds.clamp(points)
            failed = self._ask(run, points)
            s.x, cost = run.best()
            self._learn(s, radii, failed, cost.to(s.radius.dtype), lost)
            run.give_up(torch.isinf(s.radius) & (t + 1 >= _HANDFULS + _DOUBLINGS))

    def _ask(self, run: Run, points: Tensor) -> Tensor:
        """Bool (m, k): which points do not reach the goal, or were not answered; the run records the others."""
        owner = torch.arange(len(points)).repeat_interleave(self.at_once)
        answer, granted = run.ask(points.flatten(0, 1), owner)
        reached: Tensor = run.goal.take(owner).achieved(answer, run.y[owner]) & granted
        return ~reached.reshape(-1, self.at_once)

    def _nearest(self, run: Run) -> Tensor:
        """The attacker's own rows that should fool, nearest first: int64 (m, handfuls x at_once), -1 for none."""
        wanted = _HANDFULS * self.at_once
        data = run.threat.knowledge.data
        if data is None:
            return torch.full((len(run.rows), wanted), -1)
        rows, labels = torch.as_tensor(data[0]).to(run.x), torch.as_tensor(data[1])
        if rows.ndim != 2 or rows.shape[1:] != run.x.shape[1:]:
            raise InputError(f"knowledge.data has rows of shape {tuple(rows.shape)}; (n, {run.x.shape[1]}) is needed")
        fits = labels == run.goal.of(run.y)[:, None] if isinstance(run.goal, Targeted) else labels != run.y[:, None]
        far = torch.cdist(run.x, rows, p=torch.inf).masked_fill(~fits, torch.inf)
        distance, order = far.sort(dim=1, stable=True)
        order = order.masked_fill(torch.isinf(distance), -1)[:, :wanted]
        return torch.nn.functional.pad(order, (0, wanted - order.shape[1]), value=-1)

    def _starts(self, run: Run, s: Walk, t: int) -> Tensor:
        """Points to begin from, (m, k, d): the next handful of known rows, random where there are none (left)."""
        k, d = self.at_once, run.x.shape[1]
        size = _FIRST_CUBE * 2.0 ** min(t, _DOUBLINGS)
        points: Tensor = run.x[:, None] + size * run.rng.uniform((k, d), ("start", t), -1.0, 1.0).to(run.x)
        known = run.threat.knowledge
        if t < _HANDFULS and known.data is not None:
            near = s.near[:, t * k : (t + 1) * k]
            rows = torch.as_tensor(known.data[0]).to(run.x)[near.clamp(min=0)]
            points = torch.where((near >= 0)[:, :, None], rows, points)
        if t == 0 and isinstance(known.starts, Tensor):
            points = torch.cat([known.starts[run.rows].to(run.x)[:, None], points[:, 1:]], dim=1)
        return points

    def _radii(self, run: Run, s: Walk, t: int) -> Tensor:
        """The cubes of this round, (m, k): evenly spaced in the bracket, or a little below the radius at random."""
        k = self.at_once
        even = torch.arange(1, k + 1, dtype=s.radius.dtype) / (k + 1)
        inside = s.low[:, None] + (s.radius - s.low)[:, None] * even
        below = s.radius[:, None] * (1 - s.shrink[:, None] * run.rng.uniform((k,), ("cube", t)).to(s.radius))
        return torch.where(s.lining[:, None], inside, below)

    def _smaller(self, run: Run, s: Walk, radii: Tensor, t: int) -> Tensor:
        """The nearest point clipped to each cube, (m, k, d); past the bracket with a few coordinates drawn anew."""
        k, d = self.at_once, run.x.shape[1]
        r = radii.nan_to_num(posinf=0.0)[:, :, None]
        clipped = run.x[:, None] + (s.x - run.x)[:, None].clamp(-r, r)
        u = run.rng.uniform((3, k, d), ("coordinates", t)).to(run.x)
        share = 2.0 ** -(torch.arange(k) % 5).to(run.x)[:, None]  # from all coordinates to one in sixteen
        face, value = torch.where(u[:, 1] < 0.5, -1.0, 1.0), 2 * u[:, 1] - 1
        drawn = run.x[:, None] + r * torch.where(u[:, 2] < 0.5, face, value)
        anew = (u[:, 0] < share) & ~_over(s.lining, 3)
        return torch.where(anew, drawn, clipped)

    def _learn(self, s: Walk, radii: Tensor, failed: Tensor, cost: Tensor, lost: Tensor) -> None:
        """Take the new radius over, narrow the bracket, and choose between bracket and random points."""
        better = cost < s.radius
        below = torch.where(failed & (radii < cost[:, None]), radii, 0.0).amax(1)
        fresh = (better & ~s.lining) | lost
        s.low = torch.where(fresh, 0.0, torch.where(s.lining, torch.maximum(s.low, below), s.low))
        factor = torch.where(better, 1.5, 0.9)
        s.shrink = torch.where(s.lining | lost, s.shrink, (s.shrink * factor).clamp(_LEAST_SHRINK, _MOST_SHRINK))
        s.radius = cost
        s.lining = fresh | (s.lining & (cost - s.low > self.precision * cost))


def _over(mask: Tensor, ndim: int) -> Tensor:
    return mask.reshape(-1, *([1] * (ndim - 1)))
