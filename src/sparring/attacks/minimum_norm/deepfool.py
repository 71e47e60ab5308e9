"""DeepFool: step onto the nearest of the hyperplanes that a linearised victim has between its classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import boundaries, norm
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# After the first step only so many rivals are linearised, those whose boundaries were nearest there: measured on five networks,
# the median distances are those of all ten classes within a hundredth.
NEAREST = 3
# A step is no shorter than this share of the way gone: before a curved boundary ever shorter ones would never cross it.
SHORTEST = 0.002


@dataclass
class Walk:
    """The current point, (m, ...), and the rivals followed, int64 (m, j)."""

    x: Tensor
    rivals: Tensor | None = None


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
        cost="per step 1-2 forwards and 3 backwards, at the first one backward per class considered; usually 2 to 5 steps",
        caveats="It stops at the first success, which overrates the distance of robust victims by a fifth and more; "
        "DDN and FMN go on. Victims whose gradients vanish defeat it entirely.",
        floor={"l2": 0.65, "linf": 0.16},
    )
)
@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """DeepFool: project on the nearest hyperplane of the linearised victim, and repeat until the label changes.

    With ``f_k = s_k - s_y`` and ``w_k`` its gradient, the nearest class k has the least ``|f_k| / ||w_k||`` in the dual
    norm, and the step is that far along ``w_k`` (L2) or its signs (Linf). Steps go on from the point inside the bounds: the
    paper's sum of all steps, cut to the bounds each time, ends farther away where many elements stand there.

    Args:
        steps: at most so many linearisations.
        overshoot: steps are longer by this share, so that the point crosses the boundary.
        classes: the first step linearises the true class and its classes - 1 highest-scoring rivals, later ones the nearest
            three of these; None takes all classes.
    """

    steps: int = 100
    overshoot: float = 0.02
    classes: int | None = 10

    def search(self, run: Run) -> None:
        """Linearise, project, repeat."""
        s = run.begin(Walk(run.x.clone()))
        for step in run.steps(self.steps):
            if step:  # a forward is cheap beside the backwards that it saves on samples that have just crossed
                run.evaluate(s.x)
                run.give_up(run.found())
                run.shrink()
                if not len(run.rows):
                    return
            planes = boundaries(run, s.x, self.classes, s.rivals)
            size = planes.slopes(run.space.p)
            # a point exactly on a plane still has to cross it
            gap = torch.maximum(planes.values.abs(), 1e-6 * planes.scores.abs().amax(1, keepdim=True))
            distance = torch.where(size > 0, gap / size.clamp(min=torch.finfo(size.dtype).tiny), torch.inf)
            if s.rivals is None:
                near = distance.topk(min(NEAREST, distance.shape[1]), dim=1, largest=False).indices
                s.rivals = planes.rivals.gather(1, near)
            least, plane = distance.min(1)
            length = torch.maximum(least, SHORTEST * norm(s.x - run.x, run.space.p))
            rows = torch.arange(len(plane), device=plane.device)
            move = _towards(planes.normals[rows, plane], size[rows, plane], length, run.space.p)
            s.x = run.space.without_limit().project(run.x, s.x + (1 + self.overshoot) * move)
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)


def _towards(normal: Tensor, size: Tensor, length: Tensor, p: float) -> Tensor:
    """The step of a length, (m,), along a normal, (m, ...), of dual norm `size`, (m,); none where the length is infinite."""
    direction = (
        normal.sign() if math.isinf(p) else normal / per_sample(size.clamp(min=torch.finfo(size.dtype).tiny), normal)
    )
    return direction * per_sample(length.nan_to_num(posinf=0.0), normal)
