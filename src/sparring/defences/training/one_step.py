"""The one step of fast adversarial training: from a uniform start that may lie outside the bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from sparring.attacks.gradient.parts import Climber, step_length
from sparring.attacks.gradient.pgd import PGD
from sparring.core.attack import Attack
from sparring.core.balls import Ball
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.registry import Card
from sparring.core.runner import Run


@dataclass(frozen=True, kw_only=True)
class OneStep(Attack):
    """x' = P(x + d + step * eps * steepest(grad L(x + d))), d uniform in the ball, whatever the bounds.

    PGD clamps its start to the bounds. Where most values stand at a bound, as in MNIST, a start that is clamped there
    and a step longer than eps end in the same corners every time, and training on those overfits at once. This is a
    way to train and no measure of robustness, so it is in no registry: a start outside the bounds is no legal input.

    Args:
        step: step over eps.
        loss: what to climb (see `sparring.PGD`).
    """

    card: ClassVar[Card] = replace(PGD.card, name="one-step", aliases=(), floor={})

    step: float = 1.25
    loss: str = "ce"

    def search(self, run: Run) -> None:
        """One gradient, one step."""
        space = run.space
        if not isinstance(space, Ball):
            raise InputError(f"fast adversarial training starts anywhere in a ball; the space is {space!r}")
        start = replace(space, bounds=None, lattice=None).sample(run.x, run.rng, ("start", run.restart))
        s = run.begin(Climber(run.x))
        for _ in run.steps(1):
            grad = run.gradient(start, get_loss(self.loss)).grad
            length = step_length(run, None, self.step)
            s.x = space.project(run.x, start + length * space.steepest(grad))
