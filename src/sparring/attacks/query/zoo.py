"""ZOO: the Carlini-Wagner objective, climbed by Adam on randomly chosen coordinates with finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.attacks.query.parts import as_pictures, ask_several, budget, chunks, clamp_, positive, span
from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Descent:
    """The point and its change in the attack space, Adam's moments there, and the search for each sample's constant.

    Attributes:
        x: (m, ...).
        z, first, second, age: the change, its moments, and how often each coordinate was updated, (m, d).
        constant, low, high: c and its bracket, (m,).
        met: whether a success was seen under this c, bool (m,).
    """

    x: Tensor
    z: Tensor
    first: Tensor
    second: Tensor
    age: Tensor
    constant: Tensor
    low: Tensor
    high: Tensor
    met: Tensor


@attack(
    Card(
        name="zoo",
        title="ZOO: coordinate-wise zeroth-order Carlini-Wagner",
        paper="Chen, Zhang, Sharma, Yi and Hsieh 2017, ZOO: Zeroth Order Optimization Based Black-box Attacks, "
        "arXiv:1708.03999",
        access=Access.SCORES,
        spaces=("l2",),
        minimal=True,
        cost="2 x coordinates + 1 queries a step",
        caveats="Hundreds of thousands of queries for a picture: history, and a yardstick for the thrifty. On large "
        "pictures it needs `side`. A lattice of 256 levels rounds its differences away: attack without one.",
        floor={"l2": 0.5},
    )
)
@dataclass(frozen=True, kw_only=True)
class ZOO(Attack):
    """ZOO: min |x' - x|^2 + c max(margin of the true class, 0), by Adam on `coordinates` random coordinates a step.

    Each partial derivative of the margin takes two queries, (f(x' + h e) - f(x' - h e)) / 2h; c is searched by bisection.

    Args:
        queries: queries per sample where the threat model names no number, shared by the searches.
        coordinates: coordinates a step.
        learning_rate: of Adam, as a share of the victim's range; None takes the paper's .01, or where the budget visits
            each coordinate so seldom that this leads nowhere, one range over the number of visits, at most .3.
        constant: the first c, where changes count in units of the range; tenfold until a success is seen, then bisected. The
            descent goes on from where it stands.
        searches: values of c.
        h: the finite difference, as a share of the victim's range.
        side: optimise a picture of this side, spread bilinearly over the input; None optimises every element.
    """

    queries: int = 100_000
    coordinates: int = 128
    learning_rate: float | None = None
    constant: float = 0.01
    searches: int = 9
    h: float = 1e-4
    side: int | None = None

    def search(self, run: Run) -> None:
        """Descend once for each constant."""
        positive(coordinates=self.coordinates, learning_rate=self.learning_rate, constant=self.constant, h=self.h)
        if self.searches < 1:
            raise InputError(f"searches is {self.searches}; at least one value of the constant is needed")
        m, d = len(run.x), math.prod(self._shape(run))
        chosen = min(self.coordinates, d)
        steps = -(-budget(run, self.queries) // (2 * chosen + 1))
        each = max(1, -(-steps // self.searches))
        rate = min(0.3, max(0.01, d / (steps * chosen))) if self.learning_rate is None else self.learning_rate
        unit = self._unit(run)
        zero, c = run.x.new_zeros(m, d), run.x.new_full((m,), self.constant)
        met = torch.zeros(m, dtype=torch.bool, device=run.x.device)
        s = run.begin(Descent(run.x.clone(), zero, zero, zero, zero, c, 0 * c, c + torch.inf, met))
        for t in run.steps(steps):
            if t and t % each == 0:
                _next_constant(s)
            where = run.rng.permutation(d, ("coordinates", t))[:, :chosen]
            met, slope = self._probe(run, s, where, self.h * unit)
            s.met = s.met | met
            # of changes in units of the range
            slope = self._pull(run, s.z).gather(1, where) / unit[where] + s.constant[:, None] * slope * unit[where]
            _adam(s, where, slope, rate * unit[where])
            s.x = self._render(run, s.z[:, None])[:, 0]
            if self.side is None:  # the bounds hold back each element for itself
                s.z = (s.x - run.x).flatten(1)

    def _unit(self, run: Run) -> Tensor:
        """The victim's range at each coordinate of the attack space, (d,)."""
        lo, hi = (bound.expand(run.x.shape[1:]) for bound in span(run))
        return (hi - lo).flatten() if self.side is None else (hi - lo).mean().expand(math.prod(self._shape(run)))

    def _shape(self, run: Run) -> tuple[int, ...]:
        """The shape of a change in the attack space."""
        if self.side is None:
            return tuple(run.x.shape[1:])
        c, h, w = as_pictures(run.x).shape[1:]
        return (c, min(h, self.side), min(w, self.side))

    def _spread(self, run: Run, z: Tensor) -> Tensor:
        """Changes (k, d) of the attack space as changes of inputs, (k, ...)."""
        if self.side is None:
            return z.reshape(-1, *run.x.shape[1:])
        size = as_pictures(run.x).shape[2:]
        wide = F.interpolate(z.reshape(-1, *self._shape(run)), size=size, mode="bilinear", align_corners=False)
        return wide.reshape(-1, *run.x.shape[1:])

    def _render(self, run: Run, z: Tensor) -> Tensor:
        """The points with the changes z, (m, j, d): (m, j, ...), inside the bounds."""
        moved = run.x[:, None] + self._spread(run, z.flatten(0, 1)).reshape(*z.shape[:2], *run.x.shape[1:])
        return clamp_(run, moved)

    def _pull(self, run: Run, z: Tensor) -> Tensor:
        """The gradient of |x' - x|^2, (m, d); it costs no query."""
        if self.side is None:
            return 2 * z
        leaf = z.detach().requires_grad_(True)
        with torch.enable_grad():
            length = self._spread(run, leaf).square().sum()
        return torch.autograd.grad(length, leaf)[0]

    def _beside(self, run: Run, s: Descent, where: Tensor, h: Tensor) -> Tensor:
        """The points a step h, (m, j), up and then down along each of the coordinates `where`, (m, j): (m, 2 j, ...)."""
        both, way = torch.cat([where, where], dim=1), torch.cat([h, -h], dim=1)
        if self.side is not None:
            z = s.z[:, None].repeat(1, both.shape[1], 1)
            return self._render(run, z.scatter_add_(2, both[:, :, None], way[:, :, None]))
        points = s.x.flatten(1)[:, None].repeat(1, both.shape[1], 1)  # one coordinate of each is another
        lo, hi = (bound.flatten()[both] for bound in span(run))
        there = (s.x.flatten(1).gather(1, both) + way).maximum(lo).minimum(hi)
        return points.scatter_(2, both[:, :, None], there[:, :, None]).reshape(*both.shape, *run.x.shape[1:])

    def _probe(self, run: Run, s: Descent, where: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the goal is met at the point, bool (m,), and the margin's slopes along the coordinates, (m, j)."""
        loss = get_loss("margin")
        here = ask_several(run, s.x[:, None], loss).value.squeeze(1)
        slopes = []
        for lo, hi in chunks(run, where.shape[1]):
            part = where[:, lo:hi]
            step = h[part]
            value = ask_several(run, self._beside(run, s, part, step), loss).value
            value = (-value).clamp(min=0.0).nan_to_num(nan=0.0)
            slopes.append((value[:, : part.shape[1]] - value[:, part.shape[1] :]) / (2 * step))
        return here > 0, torch.cat(slopes, dim=1)


def _adam(s: Descent, where: Tensor, slope: Tensor, rate: Tensor) -> None:
    """One step of Adam down `slope` at the coordinates `where`, (m, j); each coordinate counts its own steps."""
    age = s.age.gather(1, where) + 1
    first = 0.9 * s.first.gather(1, where) + 0.1 * slope
    second = 0.999 * s.second.gather(1, where) + 0.001 * slope.square()
    move = first / (1 - 0.9**age) / ((second / (1 - 0.999**age)).sqrt() + 1e-8)
    s.age, s.first = s.age.scatter(1, where, age), s.first.scatter(1, where, first)
    s.second = s.second.scatter(1, where, second)
    s.z = s.z.scatter_add(1, where, -rate * move)


def _next_constant(s: Descent) -> None:
    """Bisect or raise each sample's constant; the descent goes on from where it stands."""
    s.high = torch.where(s.met, torch.minimum(s.high, s.constant), s.high)
    s.low = torch.where(s.met, s.low, torch.maximum(s.low, s.constant))
    s.constant = torch.where(s.high.isfinite(), (s.low + s.high) / 2, 10 * s.constant)
    s.met = torch.zeros_like(s.met)
