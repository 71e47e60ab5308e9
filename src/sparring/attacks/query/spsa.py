"""SPSA: Adam on gradients from simultaneous random-sign perturbations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.gradient.parts import start_at
from sparring.attacks.query.noise import Noise
from sparring.attacks.query.parts import budget, estimate, loss_for, positive, span
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Climb:
    """The point, the estimated gradient, Adam's two moments, all (m, ...), the mean loss nearby, (m,), and directions."""

    x: Tensor
    grad: Tensor
    first: Tensor
    second: Tensor
    near: Tensor
    noise: Noise


@attack(
    Card(
        name="spsa",
        title="SPSA: Adam on simultaneous-perturbation gradients",
        paper="Uesato, O'Donoghue, van den Oord and Kohli 2018, Adversarial Risk and the Dangers of Evaluating Against "
        "Weak Attacks, arXiv:1802.05666; after Spall 1992",
        access=Access.SCORES,
        spaces=("linf", "l2"),
        cost="2 x samples queries a step",
        caveats="A probe of masked gradients, not a thrifty attack: the paper spends thousands of directions a step.",
        floor={"linf": 0.9, "l2": 0.9},
    )
)
@dataclass(frozen=True, kw_only=True)
class SPSA(Attack):
    """SPSA: g = mean of v (L(x + d v) - L(x - d v)) / 2d over random signs v; x <- P(Adam(x, g)).

    Args:
        queries: queries per sample where the threat model names no number; the default is a hundred steps.
        samples: directions a step, two queries each.
        delta: d, as a share of the victim's range.
        learning_rate: of Adam, as a share of the victim's range; None takes the paper's .01, or what crosses the ball
            within the budget where that is more.
        loss: what to climb; None takes the margin for untargeted goals and cross-entropy for targeted ones.
    """

    queries: int = 25_600
    samples: int = 128
    delta: float = 0.01
    learning_rate: float | None = None
    loss: str | None = None

    def search(self, run: Run) -> None:
        """Estimate and step until the queries are spent."""
        positive(delta=self.delta, learning_rate=self.learning_rate)
        if self.samples < 1:
            raise InputError(f"samples is {self.samples}; at least one direction a step is needed")
        count, loss = budget(run, self.queries), loss_for(run, self.loss)
        lo, hi = span(run)
        zero = torch.zeros_like(run.x)
        s = run.begin(Climb(start_at(run, random=False), zero, zero, zero, run.x.new_zeros(len(run.x)), Noise.of(run)))
        steps = -(-count // (2 * self.samples))

        def draw(j: int, group: int) -> Tensor:
            return s.noise.signs(s.x, j)

        for t in run.steps(steps):
            if not estimate(run, s, loss, self.samples, self.delta * (hi - lo), draw):
                return
            s.first = 0.9 * s.first + 0.1 * s.grad
            s.second = 0.999 * s.second + 0.001 * s.grad.square()
            first, second = s.first / (1 - 0.9 ** (t + 1)), s.second / (1 - 0.999 ** (t + 1))
            move = first / (second.sqrt() + 1e-8)
            s.x = run.space.project(run.x, s.x + self._rate(run, steps) * move)

    def _rate(self, run: Run, steps: int) -> Tensor:
        """The length of a unit move of each element, broadcasting against the inputs."""
        lo, hi = span(run)
        if self.learning_rate is not None:
            return self.learning_rate * (hi - lo)
        reach = run.space.eps if run.space.name == "linf" else run.space.eps / run.x[0].numel() ** 0.5
        return torch.maximum(0.01 * (hi - lo), per_sample(2.5 * reach / steps, run.x))
