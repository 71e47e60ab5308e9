"""Fast minimum norm: a gradient step, a projection on a ball, and a radius that follows the boundary; L0, L1, L2, Linf."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import (
    TINY,
    box,
    clamp,
    cosine,
    dual,
    farthest,
    norm,
    polish,
    reached,
    starts,
    unit,
)
from sparring.attacks.minimum_norm.projections import l0_keep
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Gradient, Run
from sparring.core.threat import Access
from sparring.core.thresholds import caps, soft_threshold

# The first step by p, as a factor and a power of the number of elements, times eps: in units of the half diagonal of the cube in
# Linf, of the radius in L2, and in L1 of a length halfway between one changed element and all of them. Much longer steps only
# jump about a small ball; in Linf, shorter ones hardly reach the corners of a large one.
PACE = {1.0: (10.0, -0.25), 2.0: (0.5, 0.0), math.inf: (5.0, 0.5)}


@dataclass
class Walk:
    """What FMN keeps per sample.

    Attributes:
        x: the current point.
        eps: the radius of the ball that it was projected on.
        best: the least distance of a success.
        most: the largest distance that the bounds allow.
        shrink: the last threshold of the L1 projection, where the next one begins to look.
    """

    x: Tensor
    eps: Tensor
    best: Tensor
    most: Tensor
    shrink: Tensor


@attack(
    Card(
        name="fmn",
        title="Fast minimum norm",
        paper="Pintor et al. 2021, Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints, arXiv:2102.12827",
        access=Access.GRADIENTS,
        spaces=("l0", "l1", "l2", "linf"),
        minimal=True,
        cost="steps x (forward + backward), and a few forwards",
        caveats="Unlike the paper's, steps are in proportion to eps. Victims with flat margins can be left without any success, "
        "which counts as infinitely far.",
        floor={"l0": 2.0, "l1": 0.8, "l2": 0.42, "linf": 0.1},
    )
)
@dataclass(frozen=True, kw_only=True)
class FMN(Attack):
    """Fast minimum norm: delta <- P_eps(delta + a g/|g|_2), g the gradient of the margin L.

    Before the first success eps = |delta|_p + |L| / |g|_q, the distance to the linearised boundary; afterwards eps shrinks to
    min((1 - c) eps, best) after a success and grows to (1 + c) eps elsewhere. a and c anneal. In L0 eps moves by 1 at least.

    Args:
        steps: gradient steps.
        step_size: a, in units of the bounds' width; it anneals to a hundredth. None takes the paper's 10 in L0, and follows eps
            elsewhere: five times the half diagonal of the cube in Linf, in L1 and L2 the paper's 1 or, where eps is small, less.
        gamma: c, by how much eps changes in a step.
        gamma_final: what c anneals to.
        loss: what to climb: "margin" in the paper.
        polish: forwards at the end to move the success onto the boundary, along the line to the input; none in L0.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.FMN(steps=50)(sp.Victim(net), x, None, sp.Linf())
        >>> result.median_distance > 0
        True
    """

    steps: int = 100
    step_size: float | None = None
    gamma: float = 0.05
    gamma_final: float = 0.001
    loss: str = "margin"
    polish: int = 4

    def search(self, run: Run) -> None:
        """Walk along the boundary while the radius shrinks."""
        loss, scale, p = get_loss(self.loss), run.width, run.space.p
        x = starts(run)
        first = run.space.distance(x - run.x)
        eps = torch.where(first > 0, first, 1.0 if p == 0 else torch.inf)
        s = run.begin(Walk(x, eps, torch.full_like(eps, torch.inf), farthest(run), torch.zeros_like(eps)))
        for t in run.steps(self.steps):
            g = run.gradient(s.x, loss)
            length = run.space.distance(s.x - run.x)
            hit = reached(run, g.scores)
            s.best = torch.where(hit, torch.minimum(s.best, length), s.best)
            c = cosine(self.gamma, self.gamma_final, t, self.steps)
            s.eps = torch.minimum(next_radius(s, hit, length, g, c, p), s.most)
            direction = unit(g.grad, run, ("direction", run.restart, t))
            step = self._first_step(run, s, scale) * cosine(1.0, 0.01, t, self.steps)
            s.x = project(run, s, (s.x - run.x).addcmul_(direction, per_sample(step, direction)))
        run.shrink()
        polish(run, 0 if p == 0 else self.polish)

    def _first_step(self, run: Run, s: Walk, scale: float) -> Tensor:
        """The length of the step before it anneals, (m,)."""
        p = run.space.p
        if self.step_size is not None or p == 0:
            return torch.full_like(s.eps, scale * (10.0 if self.step_size is None else self.step_size))
        share, power = PACE[p]
        typical = float(share * run.x[0].numel() ** power)
        return s.eps.clamp(max=scale) * typical if math.isinf(p) else (s.eps * typical).clamp(max=scale)


def next_radius(s: Walk, hit: Tensor, length: Tensor, g: Gradient, c: float, p: float) -> Tensor:
    """The radius of each sample's next ball, (m,)."""
    if p == 0:
        less = torch.minimum(torch.minimum(s.eps - 1, (s.eps * (1 - c)).floor()), s.best).clamp(min=0.0)
        return torch.where(hit, less, torch.maximum(s.eps + 1, (s.eps * (1 + c)).floor()))
    plane = length + g.loss.abs() / norm(g.grad, dual(p)).clamp(min=TINY)
    grown = torch.where(torch.isinf(s.best), plane, s.eps * (1 + c))
    return torch.where(hit, torch.minimum(s.eps * (1 - c), s.best), grown)


def project(run: Run, s: Walk, delta: Tensor) -> Tensor:
    """The point nearest to x + delta in the ball of radius eps around x, in L2 on its sphere, and in the bounds, (m, ...)."""
    p, eps = run.space.p, per_sample(s.eps, delta)
    if math.isinf(p):
        return clamp(run, torch.clamp(delta, -eps, eps).add_(run.x))
    if p == 2:
        # onto the sphere, where the smallest change is: measured on a certified network, points inside ended a fifth farther away
        return clamp(run, delta.mul_(eps / per_sample(norm(delta, 2.0).clamp(min=TINY), delta)).add_(run.x))
    if p == 0:
        inside = clamp(run, run.x + delta).sub_(run.x)
        return l0_keep(delta, inside, s.eps, run.space.pixels).add_(run.x)
    x, size = run.x.flatten(1), delta.abs().flatten(1)
    s.shrink = soft_threshold(size, caps(delta.flatten(1), x, *box(run)), s.eps, s.shrink, 1e-4)
    kept = size.sub_(s.shrink[:, None]).clamp_(min=0.0)
    return clamp(run, (kept.reshape(delta.shape) * delta.sign()).add_(run.x))
