"""The augmented Lagrangian attack: the distance plus a penalty whose multiplier follows the goal; L2 and L1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, clamp, dual, norm, polish, reached, starts
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import LOSSES, Loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access, Goal, Targeted

# The constraint is looked at every so many steps; the penalty grows where it has not fallen to this share since.
CHECK, IMPROVED = 10, 0.95
# The multiplier stays in this range.
LEAST, MOST = 1e-6, 1e12
# A hair beyond the boundary, in units of the ratio of logits.
BEYOND = 1e-4
# The first step goes at most so many times as far as the linearised boundary, but this share of the wanted length at least.
REACH, LEAST_MOVE = 1.5, 0.01
# The learning rate decays to this share.
DECAY = 0.01


def ratio(scores: Tensor, y: Tensor, goal: Goal) -> Tensor:
    """The difference of logits over their spread, (m,): positive before the goal is reached, as the paper's DLR+.

    The spread reaches from the first logit to the third, towards a target to the mean of the third and fourth: to the third
    alone, the ratio would be constant wherever the target is the third. With too few classes it is the plain difference.
    """
    margin, last = LOSSES["margin"](scores, y, goal), 4 if isinstance(goal, Targeted) else 3
    if scores.shape[1] < last:
        return BEYOND - margin
    top = scores.topk(last, dim=1).values
    return BEYOND - margin / (top[:, 0] - top[:, 2:].mean(1)).clamp(min=TINY)


def penalty_slope(gap: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """dP/d(gap) of the paper's penalty P2, (m,): a cubic where the goal is missed, a rational function where it is reached.

    P(y) = mu y + mu rho y^2 + mu rho^2 y^3 / 6 for y >= 0, and mu y / (1 - rho y) for y < 0; at 0 its slope is mu.
    """
    z = rho * gap
    return mu * torch.where(gap >= 0, 1.0 + 2.0 * z + 0.5 * z.square(), (1.0 - z.clamp(max=0.0)).square().reciprocal())


@dataclass
class Walk:
    """What ALMA keeps per sample.

    Attributes:
        x: the current point.
        square: the running mean of the squared gradients.
        velocity: the momentum.
        mu: the multiplier.
        rho: how steep the penalty is.
        rate: the first step size.
        mark: the constraint at the last check.
        since: the step of the first success; beyond the last step before.
    """

    x: Tensor
    square: Tensor
    velocity: Tensor
    mu: Tensor
    rho: Tensor
    rate: Tensor
    mark: Tensor
    since: Tensor


@attack(
    Card(
        name="alma",
        title="Augmented Lagrangian method",
        paper="Rony et al. 2021, Augmented Lagrangian Adversarial Attacks, arXiv:2011.11857",
        access=Access.GRADIENTS,
        spaces=("l2", "l1"),
        minimal=True,
        cost="steps x (forward + backward), and a few forwards",
        caveats="Unlike the paper's, the first step goes at most one and a half times as far as the linearised boundary. "
        "In L1, FMN comes nearer on natural pictures.",
        floor={"l2": 0.4, "l1": 0.8},
    )
)
@dataclass(frozen=True, kw_only=True)
class ALMA(Attack):
    """Augmented Lagrangian: descend on D(delta) + P(gap, rho, mu) by RMSprop with momentum, gap the ratio of logits to close.

    D is |delta|_p and P the paper's penalty P2. After every step mu moves to a running mean of P's slope; every
    tenth step rho grows where no success has been seen and the gap has not closed by a twentieth.

    Args:
        steps: gradient steps.
        first_move: the longest that the first step may be, in units of the bounds' width; the paper's .1 in L2 is too short for
            digits.
        alpha: of the running mean of the multiplier, of RMSprop and of its momentum: .9, or .5 for a hundred steps; None
            chooses by the steps.
        mu: the first multiplier.
        rho: the first steepness.
        growth: by what factor rho grows.
        polish: forwards at the end to move the best success onto the boundary, along the line to the input.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.ALMA(steps=100)(sp.Victim(net), x, None, sp.L2())
        >>> result.median_distance > 0
        True
    """

    steps: int = 1000
    first_move: float = 1.0
    alpha: float | None = None
    mu: float = 1.0
    rho: float = 1.0
    growth: float = 1.2
    polish: int = 4

    def search(self, run: Run) -> None:
        """Descend while the multiplier follows the boundary."""
        scale, p = run.width, run.space.p
        alpha = (0.9 if self.steps > 300 else 0.5) if self.alpha is None else self.alpha
        x = starts(run)
        one = torch.ones_like(x.flatten(1)[:, 0])
        s = run.begin(
            Walk(
                x=x,
                square=torch.ones_like(x),
                velocity=torch.zeros_like(x),
                mu=self.mu * one,
                rho=self.rho * one,
                rate=one,
                mark=torch.inf * one,
                since=(self.steps + 1) * one,
            )
        )
        climb = Loss("logit_ratio", lambda z, y: -ratio(z, y, run.goal), lambda z, y, _: -ratio(z, y, run.goal))
        for t in run.steps(self.steps):
            g = run.gradient(s.x, climb)
            self._follow(s, -g.loss, reached(run, g.scores), t, alpha)
            delta = (s.x - run.x) / scale
            slope = delta / per_sample(norm(delta, 2.0).clamp(min=TINY), delta) if p == 2 else delta.sign()
            slope = slope - g.grad * per_sample(scale * penalty_slope(-g.loss, s.rho, s.mu), delta)
            s.square = s.square.lerp(slope.square(), 1.0 - alpha)
            s.velocity = alpha * s.velocity + slope / (s.square.sqrt() + 1e-8)
            if t == 0:
                plane = g.loss.abs() / (scale * norm(g.grad, dual(p))).clamp(min=TINY)
                s.rate = self._first_rate(
                    run, s, scale, (REACH * plane).clamp(LEAST_MOVE * self.first_move, self.first_move)
                )
            # steps stay long until a first success, and then decay over the steps that are left
            share = torch.where(s.since <= t, (t - s.since) / (self.steps - s.since), 0.0)
            s.x = clamp(run, s.x - s.velocity * per_sample(scale * s.rate * DECAY**share, delta))
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)
            polish(run, self.polish)

    @staticmethod
    def _first_rate(run: Run, s: Walk, scale: float, length: Tensor) -> Tensor:
        """The rate at which the first step, cut at the bounds, is as long as wanted, (m,)."""
        along, p = s.velocity, run.space.p
        low = length / norm(along, p).clamp(min=TINY)
        high = 1e4 * low
        for _ in range(24):  # halving the logarithm of a range of 1e4
            middle = (low * high).sqrt()
            moved = clamp(run, s.x - along * per_sample(scale * middle, along)) - s.x
            short = norm(moved, p) < scale * length
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        # where the bounds do not let it come so far, the uncut length decides
        return torch.where(
            high < 9e3 * length / norm(along, p).clamp(min=TINY), low, length / norm(along, p).clamp(min=TINY)
        )

    def _follow(self, s: Walk, gap: Tensor, hit: Tensor, t: int, alpha: float) -> None:
        """Move the multiplier to the penalty's slope, and steepen the penalty where nothing improves."""
        s.since = torch.where(hit, s.since.clamp(max=t), s.since)
        if t == 0:
            s.mark = gap
            return
        if (t + 1) % CHECK == 0:
            stuck = ~((s.since <= t) | (gap < IMPROVED * s.mark))
            s.rho = torch.where(stuck, s.rho * self.growth, s.rho)
            s.mark = gap
        s.mu = s.mu.lerp(penalty_slope(gap, s.rho, s.mu), 1.0 - alpha).clamp(LEAST, MOST)
