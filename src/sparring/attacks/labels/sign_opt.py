"""Sign-OPT: minimise the distance to the boundary over directions, with gradient signs that cost one label each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.labels.parts import crosses, first_points, halve, together
from sparring.attacks.query.noise import Noise
from sparring.attacks.query.parts import clamp_
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.batch import pick
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Heading:
    """The adversarial point, its unit direction, the boundary's distance along it, the step size, and new directions."""

    x: Tensor
    direction: Tensor
    radius: Tensor
    rate: Tensor
    noise: Noise


@attack(
    Card(
        name="sign-opt",
        title="Sign-OPT: descend the boundary's distance by signs",
        paper="Cheng, Singh, Chen, Chen, Liu and Hsieh 2020, Sign-OPT: A Query-Efficient Hard-label Adversarial "
        "Attack, arXiv:1909.10773",
        access=Access.LABELS,
        spaces=("l2",),
        minimal=True,
        cost="draws + about 20 queries a step",
        caveats="Targeted, it needs a start of the target's class.",
        floor={"l2": 0.42},
    )
)
@dataclass(frozen=True, kw_only=True)
class SignOPT(Attack):
    """g(v) is the distance to the boundary along v; its derivative along u has the sign that one label at g(v) tells.

    Args:
        steps: descent steps.
        draws: signs per gradient.
        smoothing: the step at which a sign is taken.
        rate: the first step size of the descent; it doubles while that helps and halves where it does not.
        tries: starting directions; the nearest boundary is taken.
    """

    steps: int = 200
    draws: int = 50
    smoothing: float = 0.01
    rate: float = 0.2
    tries: int = 20

    def search(self, run: Run) -> None:
        """Choose a direction, descend."""
        start, found = first_points(run, self.tries)
        run.give_up(~found)
        direction, radius = _polar(run, start)
        level = torch.full_like(radius, self.rate)
        s = run.begin(Heading(start, direction, radius, level, Noise.of(run)))
        self._measure(run, s, s.direction, s.radius, torch.ones_like(found))
        for _ in run.steps(self.steps):
            self._descend(run, s, self._gradient(run, s))

    def _gradient(self, run: Run, s: Heading) -> Tensor:
        """The mean of the directions, each with the sign of g's change along it, (m, ...)."""
        m, size = len(s.x), together(s.x)
        v, x = s.direction.flatten(1)[:, None], run.x.flatten(1)[:, None]
        total = torch.zeros_like(v)
        for begin in range(0, self.draws, size):
            j = min(size, self.draws - begin)
            u = s.noise.normal(s.x, j).flatten(2)
            scale = 1 / torch.linalg.vector_norm(u, dim=2).clamp(min=1e-12)
            step = self.smoothing * scale
            # the point at distance g along v + step u, whose length follows from v u: |v| is one, and so is |u| * scale
            along = (u @ v.mT).squeeze(2)
            reach = s.radius[:, None] * (1 + 2 * step * along + self.smoothing**2).rsqrt()
            points = torch.addcmul(x, v, reach[..., None]).addcmul_(u, (reach * step)[..., None])
            rows = torch.arange(m, device=v.device).repeat_interleave(j)
            hit, granted = crosses(run, clamp_(run, points.reshape(m * j, *s.x.shape[1:])), rows)
            # still adversarial at g(v): the boundary came nearer
            sign = torch.where(hit, -1.0, 1.0).to(s.x.dtype) * granted
            total.baddbmm_((sign.reshape(m, j) * scale).to(u.dtype)[:, None], u)
        return total.reshape(s.x.shape) / self.draws

    def _descend(self, run: Run, s: Heading, gradient: Tensor) -> None:
        """One line search along -gradient: the step doubles while g falls, else halves until it does."""
        best_direction, best_radius = s.direction, s.radius
        size, grow = s.rate.clone(), torch.ones_like(s.rate, dtype=torch.bool)
        going = torch.ones_like(grow)
        better = torch.zeros_like(grow)
        for _ in range(8):
            turned = _unit(s.direction - per_sample(size, s.x) * gradient)
            closer = self._closer(run, turned, best_radius, going)
            rows = closer.nonzero().squeeze(1)
            best_direction = best_direction.index_copy(0, rows, turned[rows])
            radius = self._halve(run, turned, best_radius, closer)
            best_radius = torch.where(closer, radius, best_radius)
            s.rate = torch.where(closer, size, s.rate)
            # the first try decides whether this sample's step grows or shrinks
            grow = torch.where(better | closer, grow & closer, torch.zeros_like(grow))
            going = going & torch.where(better, closer & grow, ~closer | grow)
            better = better | closer
            size = torch.where(grow, size * 2, size / 2)
            if not bool(going.any()):
                break
        s.rate = torch.where(better, s.rate, (s.rate / 4).clamp(min=1e-4))
        self._measure(run, s, best_direction, best_radius, better)

    @staticmethod
    def _closer(run: Run, direction: Tensor, radius: Tensor, active: Tensor) -> Tensor:
        """Bool (m,): whether the boundary along `direction` lies within a little less than `radius`."""
        rows = active.nonzero().squeeze(1)
        out = torch.zeros_like(active)
        if len(rows):
            out[rows], _ = crosses(run, _at(run, direction, radius[rows] * 0.999, rows), rows)
        return out

    @staticmethod
    def _halve(run: Run, direction: Tensor, radius: Tensor, active: Tensor) -> Tensor:
        """The boundary's distance along `direction`, at most `radius`, by halving to 2e-5 of it.

        A descent shortens by a few per cent at a time, so a point a little nearer is asked first.
        """
        lo, hi = torch.zeros_like(radius), radius.clone()
        for share in (0.97, 0.8):
            rows = (active & (lo == 0)).nonzero().squeeze(1)
            if len(rows):
                near = share * radius[rows]
                hit, told = crosses(run, _at(run, direction, near, rows), rows)
                short = ~hit & told
                hi[rows[hit]], lo[rows[short]] = near[hit], near[short]
        halve(
            run,
            lambda middle, rows: _at(run, direction, middle, rows),
            lo,
            hi,
            active,
            lambda low, high: high - low > 2e-5 * radius,
        )
        return hi

    def _measure(self, run: Run, s: Heading, direction: Tensor, radius: Tensor, changed: Tensor) -> None:
        """Take over a direction for the samples where it changed, with the boundary's distance along it."""
        radius = torch.where(changed, self._halve(run, direction, radius, changed), radius)
        s.direction, s.radius = direction, radius
        s.x = torch.where(per_sample(changed, s.x), _at(run, direction, radius), s.x)


def _at(run: Run, direction: Tensor, radius: Tensor, rows: Tensor | None = None) -> Tensor:
    """The points at these distances along the directions, of all samples or of `rows`, (m, ...), inside the bounds."""
    x, way = pick(run.x, rows), pick(direction, rows)
    return clamp_(run, torch.addcmul(x, way, per_sample(radius, way)))


def _unit(v: Tensor) -> Tensor:
    return v / per_sample(v.flatten(1).norm(dim=1), v).clamp(min=1e-12)


def _polar(run: Run, point: Tensor) -> tuple[Tensor, Tensor]:
    """The unit direction from each original to a point, and the distance."""
    delta = point - run.x
    return _unit(delta), delta.flatten(1).norm(dim=1)
