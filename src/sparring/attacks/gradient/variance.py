"""Variance tuning: VMI-FGSM and VNI-FGSM correct each gradient by how much its neighbours differed one step before."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparring.attacks.gradient.momentum import climb_with_momentum
from sparring.attacks.gradient.parts import Climber, Look
from sparring.attacks.gradient.transforms import Transform, parse, seen_through
from sparring.core.attack import Attack
from sparring.core.losses import Loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Gradient, Run
from sparring.core.threat import Access


@dataclass(frozen=True)
class Neighbours(Transform):
    """Random points around x, uniform in a ball of the space's own norm that ignores the victim's bounds.

    Args:
        copies: how many.
        radius: the ball's radius over the sample's eps.
    """

    copies: int = 20
    radius: float = 1.5
    name: ClassVar[str] = "neighbours"

    def view(self, x: Tensor, copy: int, run: Run, stream: tuple[str | int, ...]) -> tuple[Tensor, Tensor]:
        """x and a step away from it."""
        ball = dataclasses.replace(run.space, eps=run.space.eps * self.radius, lattice=None, bounds=None)
        shift = ball.sample(torch.zeros_like(x), run.rng, (*stream, "neighbour"))
        return x + shift, torch.zeros(len(x), dtype=torch.bool, device=x.device)


@attack(
    Card(
        name="vmi-fgsm",
        title="Variance-tuned momentum iterative FGSM",
        paper="Wang and He 2021, Enhancing the Transferability of Adversarial Attacks through Variance Tuning, "
        "arXiv:2103.15571",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="(steps + (steps - 1) x neighbours) x (forward + backward)",
        caveats="Made to transfer, at twenty times the price of MI-FGSM.",
        floor={"linf": 0.95, "l2": 0.95, "l1": 0.95},
        aliases=("vmifgsm", "vmi"),
    )
)
@dataclass(frozen=True, kw_only=True)
class VMIFGSM(Attack):
    """Variance-tuned MI-FGSM: g <- mu g + (grad + v) / ||grad + v||_1, then v <- mean gradient of neighbours - grad.

    Args:
        steps, step_size, decay, nesterov, transform, loss: as in `MIFGSM`.
        neighbours: how many random neighbours each step asks.
        radius: how far they lie, over eps.
    """

    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    nesterov: bool = False
    transform: str = ""
    loss: str = "ce"
    neighbours: int = 20
    radius: float = 1.5

    def search(self, run: Run) -> None:
        """Climb with momentum from the input, along corrected gradients."""
        climb_with_momentum(run, self, self._tune)

    def _tune(self, look: Look) -> Look:
        around = seen_through((Neighbours(self.neighbours, self.radius), *parse(self.transform)))

        def gradient(run: Run, s: Climber, loss: Loss, t: int) -> Gradient:
            g = look(run, s, loss, t)
            tuned = g.grad if s.variance is None else g.grad + s.variance
            if t + 1 < self.steps:  # nobody asks for the last step's variance
                s.variance = around(run, s.x, loss, t).grad - g.grad
            return Gradient(g.loss, tuned, g.scores)

        return gradient


@attack(
    Card(
        name="vni-fgsm",
        title="Variance-tuned Nesterov iterative FGSM",
        paper="Wang and He 2021, Enhancing the Transferability of Adversarial Attacks through Variance Tuning, "
        "arXiv:2103.15571",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="(steps + (steps - 1) x neighbours) x (forward + backward)",
        caveats="Made to transfer, at twenty times the price of NI-FGSM.",
        floor={"linf": 0.95, "l2": 0.95, "l1": 0.95},
        aliases=("vnifgsm", "vni"),
    )
)
@dataclass(frozen=True, kw_only=True)
class VNIFGSM(VMIFGSM):
    """VMI-FGSM with the gradient taken one momentum step ahead, at P(x + a mu g)."""

    nesterov: bool = True
