"""NewtonFool: Newton's step towards the point where the true class is no more probable than chance; L2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import clamp, norm, polish, starts, unit
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Walk:
    """The current point."""

    x: Tensor


@attack(
    Card(
        name="newtonfool",
        title="NewtonFool",
        paper="Jang, Wu and Jha 2017, Objective Metrics and Gradient Descent Algorithms for Adversarial Examples in Machine "
        "Learning, doi:10.1145/3134600.3134635",
        access=Access.GRADIENTS,
        spaces=("l2",),
        goals=("untargeted",),
        minimal=True,
        cost="(steps to the first success) x (forward + backward), and a few forwards",
        caveats="It stops at the first success and never turns: distances are overrated, up to threefold; DDN, FMN and C&W go "
        "on. The step is in proportion to the input's norm, so that a black picture does not move.",
        floor={"l2": 0.45},
    )
)
@dataclass(frozen=True, kw_only=True)
class NewtonFool(Attack):
    """NewtonFool: x <- x - min(eta |x0| |g|, p - 1 / k) g / |g|^2 until the label changes; p = p(y | x) and g its gradient.

    The second term is Newton's step for p(x) = 1 / k, with k classes; the first keeps steps shorter than eta |x0|, where
    p is nearly flat. g comes from the log-odds of y, g = p (1 - p) d(log-odds), which is exact where p rounds to 1.

    Args:
        steps: gradient steps; on robust victims a hundred end short of the boundary for half of the samples.
        eta: the longest step, as a share of the input's L2 norm.
        polish: forwards at the end to move the success onto the boundary, along the line to the input; 0 leaves it.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.NewtonFool()(sp.Victim(net), x, None, sp.L2())
        >>> result.median_distance > 0
        True
    """

    steps: int = 200
    eta: float = 0.01
    polish: int = 4

    def search(self, run: Run) -> None:
        """Step until the label changes."""
        s = run.begin(Walk(starts(run)))
        for t in run.steps(self.steps):
            g = run.gradient(s.x, get_loss("log_odds"))
            moving = ~run.found()
            if not bool(moving.any()):
                break
            p = torch.sigmoid(-g.loss)
            steepness = p * torch.sigmoid(g.loss) * norm(g.grad, 2.0)
            newton = (p - 1.0 / g.scores.shape[1]).clamp(min=0.0) / steepness
            length = torch.minimum(self.eta * norm(run.x, 2.0), newton.nan_to_num(nan=torch.inf)) * moving
            s.x = clamp(run, s.x + unit(g.grad, run, ("direction", run.restart, t)) * per_sample(length, s.x))
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)
            polish(run, self.polish)
