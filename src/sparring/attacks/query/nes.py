"""NES: projected gradient ascent whose gradient comes from antithetic Gaussian queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.gradient.parts import start_at
from sparring.attacks.query.noise import Noise
from sparring.attacks.query.parts import budget, estimate, positive, span
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# The paper's step: .01 in a ball of .05, halved on a plateau, down to a two-hundredth of it.
STEP, LEAST = 0.2, 1 / 200


@dataclass
class Climb:
    """The point, the estimated gradient and its momentum, (m, ...), and what the step length depends on.

    Attributes:
        near: the mean loss around the point, (m,).
        past: that of the last `plateau` steps, newest last, (m, plateau).
        seen: how many of those count, int64 (m,).
        step: the step as a share of eps, (m,).
        noise: where directions come from.
    """

    x: Tensor
    grad: Tensor
    momentum: Tensor
    near: Tensor
    past: Tensor
    seen: Tensor
    step: Tensor
    noise: Noise


@attack(
    Card(
        name="nes",
        title="NES: gradient estimates from antithetic Gaussian queries",
        paper="Ilyas, Engstrom, Athalye and Lin 2018, Black-box Adversarial Attacks with Limited Queries and "
        "Information, arXiv:1804.08598",
        access=Access.SCORES,
        spaces=("linf", "l2"),
        cost="`samples` queries a step",
        caveats="It needs a thousand queries where Square needs tens; on victims whose scores are rounded or quantised "
        "the differences vanish: raise sigma.",
        floor={"linf": 0.9, "l2": 0.9},
    )
)
@dataclass(frozen=True, kw_only=True)
class NES(Attack):
    """NES: g = mean of u L(x + sigma u) / sigma over pairs +-u of normal directions; x <- P(x + a * steepest(momentum)).

    The step halves for a sample whose loss has not risen over `plateau` steps.

    Args:
        queries: queries per sample where the threat model names no number.
        samples: queries a step, an even number.
        sigma: the standard deviation of the directions, as a share of the victim's range.
        step: a, as a share of eps; the paper's is .01 in a ball of .05.
        momentum: of the estimated gradients.
        plateau: steps without a rise after which the step halves.
        loss: what to climb; the log-odds lead where cross-entropy does, and do not vanish on confident victims.
    """

    queries: int = 10_000
    samples: int = 50
    sigma: float = 0.001
    step: float = STEP
    momentum: float = 0.9
    plateau: int = 20
    loss: str = "log_odds"

    def search(self, run: Run) -> None:
        """Estimate and step until the queries are spent."""
        positive(sigma=self.sigma, step=self.step, plateau=self.plateau)
        if self.samples < 2 or self.samples % 2:
            raise InputError(f"samples is {self.samples}; directions come in pairs, so an even number >= 2 is needed")
        count, loss = budget(run, self.queries), get_loss(self.loss)
        lo, hi = span(run)
        m = len(run.x)
        zero, none = torch.zeros_like(run.x), run.x.new_zeros(m)
        past = none[:, None].repeat(1, self.plateau)
        start, step = start_at(run, random=False), none + self.step
        s = run.begin(Climb(start, zero, zero, none, past, none.long(), step, Noise.of(run)))

        def draw(j: int, group: int) -> Tensor:
            return s.noise.normal(s.x, j)

        for _ in run.steps(-(-count // self.samples)):
            if not estimate(run, s, loss, self.samples // 2, self.sigma * (hi - lo), draw):
                return
            s.momentum = self.momentum * s.momentum + (1 - self.momentum) * s.grad
            self._judge(s)
            length = per_sample(s.step * run.space.eps, s.x)
            s.x = run.space.project(run.x, s.x + length * run.space.steepest(s.momentum))

    def _judge(self, s: Climb) -> None:
        """Halve the step of the samples on a plateau, and forget what led there."""
        s.past = torch.cat([s.past[:, 1:], s.near[:, None]], dim=1)
        s.seen = s.seen + 1
        flat = (s.seen >= self.plateau) & (s.past[:, -1] < s.past[:, 0])
        s.step = torch.where(flat, (s.step / 2).clamp(min=self.step * LEAST), s.step)
        s.seen = torch.where(flat, 0, s.seen)
