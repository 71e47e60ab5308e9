"""Decoupled direction and norm: step along the gradient, then set the length by whether the last point succeeded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, clamp, cosine, norm, polish, reached, starts, unit
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Walk:
    """The current point and the length that its change was given."""

    x: Tensor
    eps: Tensor


@attack(
    Card(
        name="ddn",
        title="Decoupled direction and norm",
        paper="Rony et al. 2019, Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and "
        "Defenses, arXiv:1811.09600",
        access=Access.GRADIENTS,
        spaces=("l2",),
        minimal=True,
        cost="steps x (forward + backward), and a few forwards",
        caveats="The norm moves by a factor 1 +- gamma a step: a victim whose distances are far from init_norm needs the first "
        "steps to get there. FMN starts at the linearised boundary and needs half as many.",
        floor={"l2": 0.42},
    )
)
@dataclass(frozen=True, kw_only=True)
class DDN(Attack):
    """Decoupled direction and norm: delta <- delta + a g/|g|, then |delta| is set to eps, which shrinks after a success.

    eps <- (1 - gamma) eps where the last point was adversarial and (1 + gamma) eps elsewhere; a anneals from 1 to 0.01.

    Args:
        steps: gradient steps.
        init_norm: the first eps, in units of the bounds' width.
        gamma: by how much eps changes in a step.
        step_size: a, in units of the bounds' width; it anneals to a hundredth.
        loss: what to climb: "ce" in the paper; see `sparring.core.losses`.
        polish: forwards at the end to move the success onto the boundary, along the line to the input; 0 leaves it.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.DDN(steps=50)(sp.Victim(net), x, None, sp.L2())
        >>> result.median_distance > 0
        True
    """

    steps: int = 100
    init_norm: float = 1.0
    gamma: float = 0.05
    step_size: float = 1.0
    loss: str = "ce"
    polish: int = 4

    def search(self, run: Run) -> None:
        """Walk along the boundary."""
        loss, scale = get_loss(self.loss), run.width
        x = starts(run)
        first = norm(x - run.x, 2.0)
        s = run.begin(Walk(x, torch.where(first > 0, first, self.init_norm * scale)))
        for t in run.steps(self.steps):
            g = run.gradient(s.x, loss)
            s.eps = s.eps * torch.where(reached(run, g.scores), 1.0 - self.gamma, 1.0 + self.gamma)
            alpha = scale * cosine(self.step_size, self.step_size / 100.0, t, self.steps)
            delta = (s.x - run.x).add_(unit(g.grad, run, ("direction", run.restart, t)), alpha=alpha)
            delta *= per_sample(s.eps / norm(delta, 2.0).clamp(min=TINY), delta)
            s.x = clamp(run, delta.add_(run.x))
        run.shrink()
        polish(run, self.polish)
