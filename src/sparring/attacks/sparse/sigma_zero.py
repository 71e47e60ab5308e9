"""Sigma-zero: descend on a smooth count of the changed features, and drop the small changes after every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, Adam, clamp, cosine, norm, reached, starts
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# Elements this much smaller than the largest are the victim's rounding, which Adam would blow up into whole steps.
NOISE = 1e-5


@dataclass
class Walk:
    """The current point, Adam's moments, and the size below which changes are dropped, (m,)."""

    x: Tensor
    adam: Adam
    tau: Tensor


@attack(
    Card(
        name="sigma-zero",
        title="Sigma-zero: smooth count of changes with an adaptive threshold",
        paper="Cina et al. 2024, Sigma-zero: Gradient-based Optimization of L0-norm Adversarial Examples, arXiv:2402.01879",
        access=Access.GRADIENTS,
        spaces=("l0",),
        minimal=True,
        cost="steps x (forward + backward)",
        caveats="The paper takes 1000 steps; a hundred leave a few percent more features changed.",
        floor={"l0": 2.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class SigmaZero(Attack):
    """Sigma-zero: minimise max(-margin, 0) + (1/d) sum of delta_i^2 / (delta_i^2 + sigma).

    Adam steps on gradients scaled to a largest element of 1. After every step delta is cut at the bounds, and changes below tau are
    set to zero; tau rises by t times the step size where the last point was adversarial, and falls by as much elsewhere. A pixel of
    `L0(pixels=True)` counts once, by the sum of the squares of its channels.

    Args:
        steps: gradient steps; 1000 in the paper.
        step_size: in units of the bounds' width; it anneals to a tenth.
        sigma: how sharp the count is: smaller is nearer to the true one and harder to descend.
        threshold: the first tau, in units of the bounds' width.
        adapt: t, by how much tau follows the outcome.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.SigmaZero(steps=50)(sp.Victim(net), x, None, sp.L0())
        >>> bool((result.distance <= 4).all())
        True
    """

    steps: int = 1000
    step_size: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    adapt: float = 0.01

    def search(self, run: Run) -> None:
        """Descend, cut, drop."""
        loss, scale = get_loss("margin"), run.width
        x = starts(run)
        s = run.begin(Walk(x, Adam.start(x), torch.full_like(x.flatten(1)[:, 0], self.threshold)))
        features = x[0].numel() // (x.shape[1] if run.space.pixels else 1)
        rate = self.step_size
        for t in run.steps(self.steps):
            g = run.gradient(s.x, loss)
            hit = reached(run, g.scores)
            delta = (s.x - run.x).div_(scale)
            size = delta.square().sum(1, keepdim=True) if run.space.pixels else delta.square()
            slope = delta * (2.0 * self.sigma / features) / (size + self.sigma).square()
            # the hinge is flat once the goal is reached
            slope -= g.grad * per_sample(torch.where(hit, 0.0, scale), delta)
            slope /= per_sample(norm(slope, torch.inf).clamp(min=TINY), delta)
            slope.masked_fill_(slope.abs() < NOISE, 0.0)
            delta = (clamp(run, run.x + scale * (delta + s.adam.step(slope, rate))) - run.x).div_(scale)
            rate = cosine(self.step_size, self.step_size / 10.0, t, self.steps)
            s.tau = (s.tau + self.adapt * rate * torch.where(hit, 1.0, -1.0).to(s.tau.dtype)).clamp(0.0, 1.0)
            size = delta.abs().amax(1, keepdim=True) if run.space.pixels else delta.abs()
            s.x = torch.where(size < per_sample(s.tau, delta), run.x, clamp(run, run.x + scale * delta))
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)
