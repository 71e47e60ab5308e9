"""DeepFool: step onto the nearest of the hyperplanes that a linearised victim has between its classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import boundaries
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Walk:
    """The current point and the sum of the steps that led there, both (m, ...)."""

    x: Tensor
    total: Tensor


@attack(
    Card(
        name="deepfool",
        title="DeepFool: projection on the nearest decision hyperplane",
        paper="Moosavi-Dezfooli, Fawzi and Frossard 2016, DeepFool: a Simple and Accurate Method to Fool Deep "
        "Neural Networks, arXiv:1511.04599",
        access=Access.GRADIENTS,
        spaces=("l2", "linf"),
        goals=("untargeted",),
        minimal=True,
        cost="per step 1-2 forwards and one backward per class considered; usually 2 to 5 steps",
        caveats="It stops at the first success, which overrates the distance of robust victims by a fifth and more; "
        "DDN and FMN go on. Victims whose gradients vanish defeat it entirely.",
        floor={"l2": 0.65, "linf": 0.16},
    )
)
@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """DeepFool: project on the nearest hyperplane of the linearised victim, and repeat until the label changes.

    With ``f_k = s_k - s_y`` and ``w_k`` its gradient, the nearest class k has the least ``|f_k| / ||w_k||`` in the dual
    norm, and the step is that far along ``w_k`` (L2) or its signs (Linf).

    Args:
        steps: at most so many linearisations.
        overshoot: the sum of steps is stretched by this share, so that the point crosses the boundary.
        classes: only the true class and its classes - 1 highest-scoring rivals are linearised; None takes all classes.
    """

    steps: int = 50
    overshoot: float = 0.02
    classes: int | None = 10

    def search(self, run: Run) -> None:
        """Linearise, project, repeat."""
        s = run.begin(Walk(run.x.clone(), torch.zeros_like(run.x)))
        for step in run.steps(self.steps):
            if step:  # a forward is cheap beside the backwards that it saves on samples that have just crossed
                run.evaluate(s.x)
                run.give_up(run.found())
                run.shrink()
                if not len(run.rows):
                    return
            planes = boundaries(run, s.x, self.classes)
            # a point exactly on a plane still has to cross it
            gap = torch.maximum(planes.values.abs(), 1e-6 * planes.scores.abs().amax(1, keepdim=True))
            s.total = s.total + self._nearest_step(gap, planes.normals, run.space.p)
            s.x = run.space.without_limit().project(run.x, run.x + (1 + self.overshoot) * s.total)
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)

    @staticmethod
    def _nearest_step(gap: Tensor, normal: Tensor, p: float) -> Tensor:
        """The step onto the nearest of the hyperplanes gap + normal . r = 0, (m, ...)."""
        flat = normal.flatten(2)
        norm = flat.abs().sum(2) if math.isinf(p) else flat.norm(dim=2)
        distance = torch.where(norm > 0, gap / norm.clamp(min=torch.finfo(norm.dtype).tiny), torch.inf)
        nearest = distance.argmin(1)
        rows = torch.arange(len(nearest), device=nearest.device)
        w, d, size = normal[rows, nearest], distance[rows, nearest], norm[rows, nearest]
        direction = w.sign() if math.isinf(p) else w / per_sample(size.clamp(min=torch.finfo(size.dtype).tiny), w)
        return torch.where(per_sample(torch.isfinite(d), w), direction * per_sample(d.nan_to_num(posinf=0.0), w), 0.0)
