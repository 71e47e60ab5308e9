"""Primal-dual proximal gradient descent: the norm by its proximal operator, the goal by a multiplier that follows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import Adam, clamp, norm, reached, starts
from sparring.attacks.proximal.operators import proximal
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import LOSSES, Loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# The ratio of the two multipliers stays within this factor of 1.
FARTHEST = 1e6
# Fixed-point steps of the proximal operator in Adam's metric, and the relative change at which they end.
INNER, CONVERGED = 5, 1e-2

# A smooth hinge on the margin: near 0 once the goal is well reached.
SOFT_HINGE = Loss(
    "soft_hinge",
    lambda s, y: -torch.nn.functional.softplus(-LOSSES["margin"].untargeted(s, y)),
    lambda s, y, t: -torch.nn.functional.softplus(-LOSSES["margin"].targeted(s, y, t)),
)


@dataclass
class Walk:
    """The current point, Adam's moments, the log-ratio of the multipliers (loss over norm) and their running means, (m,)."""

    x: Tensor
    adam: Adam
    ratio: Tensor
    norm_weight: Tensor


@attack(
    Card(
        name="pdpgd",
        title="Primal-dual proximal gradient descent",
        paper="Matyasko and Chau 2021, PDPGD: Primal-Dual Proximal Gradient Descent Adversarial Attack, arXiv:2106.01538",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        minimal=True,
        cost="steps x (forward + backward)",
        caveats="In L2 and L1 the multiplier needs 500 steps or more to settle: after a hundred FMN and ALMA are at half the "
        "distance or less. In Linf a hundred are enough.",
        floor={"linf": 0.15, "l2": 0.6, "l1": 1.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class PDPGD(Attack):
    """Primal-dual proximal gradient: the saddle point of w |delta|_p + (1 - w) softplus(-margin) in delta and w.

    A step is one of Adam's on the loss, then the proximal operator of the norm in Adam's metric. The log-ratio of (1 - w) to w
    rises by the dual step size where the last point fails and falls by it where it succeeds; w is its running mean.

    Args:
        steps: gradient steps.
        step_size: Adam's rate in units of the bounds' width; it decays to a hundredth.
        ratio: w / (1 - w) at first; small values look for a success first.
        dual_step: by how much the log-ratio moves in a step; it decays to a tenth. None takes 50 / steps, which is the paper's
            .1 at 500 steps and lets a shorter run settle as well.
        momentum: of the running mean of w.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.PDPGD(steps=50)(sp.Victim(net), x, None, sp.L1())
        >>> result.median_distance > 0
        True
    """

    steps: int = 500
    step_size: float = 0.1
    ratio: float = 0.01
    dual_step: float | None = None
    momentum: float = 0.9

    def search(self, run: Run) -> None:
        """Adam on the loss, the proximal operator of the norm, a step of the multiplier."""
        scale, p, x = run.width, run.space.p, starts(run)
        dual_step = 50.0 / max(1, self.steps) if self.dual_step is None else self.dual_step
        log_ratio = torch.full_like(x.flatten(1)[:, 0], -math.log(self.ratio))
        s = run.begin(Walk(x, Adam.start(x), log_ratio, torch.sigmoid(-log_ratio)))
        for t in run.steps(self.steps):
            g = run.gradient(s.x, SOFT_HINGE)
            hit = reached(run, g.scores)
            share = t / max(1, self.steps)
            rate = self.step_size * 0.01**share
            # in units of the width, so that the same numbers serve pixels in [0, 255]
            delta = (s.x - run.x) / scale + s.adam.step(-scale * g.grad, rate)
            delta = (clamp(run, run.x + scale * delta) - run.x) / scale
            s.x = clamp(run, run.x + scale * self._shrink(run, s, delta, rate, p, scale))
            move = dual_step * (1.0 - 0.9 * share)
            bound = math.log(FARTHEST)
            s.ratio = torch.where(hit, s.ratio - move, s.ratio + move).clamp(-bound, bound)
            s.norm_weight = s.norm_weight.lerp(torch.sigmoid(-s.ratio), 1.0 - self.momentum)
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)

    @staticmethod
    def _shrink(run: Run, s: Walk, delta: Tensor, rate: float, p: float, scale: float) -> Tensor:
        """The proximal operator of the norm in the metric of Adam's second moments, within the bounds; (m, ...)."""
        root = s.adam.second.sqrt() / per_sample((1.0 - 0.999**s.adam.count).sqrt(), delta) + 1e-8
        most = root.flatten(1).amax(1)
        metric = root / per_sample(most, delta)
        weight = s.norm_weight / (1.0 - s.norm_weight) * rate / most
        z, going = delta, torch.ones_like(weight, dtype=torch.bool)
        level = run.space.distance(s.x - run.x) / scale if math.isinf(p) else None
        for _ in range(INNER):
            new = proximal(z - metric * (z - delta), weight, p, level)
            new = torch.where(per_sample(going, z), (clamp(run, run.x + scale * new) - run.x) / scale, z)
            # the running length is zero when all is shrunk away, and then nothing changes any more
            going = going & (norm(new - z, 2.0) > CONVERGED * norm(new, 2.0))
            z, level = new, norm(new, p) if math.isinf(p) else None
            if not bool(going.any()):
                break
        return z
