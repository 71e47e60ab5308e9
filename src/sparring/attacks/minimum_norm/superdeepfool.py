"""SuperDeepFool: cross the boundary by DeepFool, then project the input on the boundary's tangent plane, and repeat; L2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.fab import rivals_of
from sparring.attacks.minimum_norm.parts import TINY, box, clamp, norm, reached, starts
from sparring.attacks.minimum_norm.projections import plane_step
from sparring.core.attack import Attack
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# A walk has converged when a crossing is not nearer than the nearest one before by this share.
CONVERGED = 1e-3


@dataclass
class Walk:
    """The current point, the least distance of a crossing, and how many crossings in a row were not nearer, (m,)."""

    x: Tensor
    least: Tensor
    stalled: Tensor


@attack(
    Card(
        name="superdeepfool",
        title="SuperDeepFool: DeepFool, and projections that turn the change to the boundary's normal",
        paper="Abdollahpoorrostam, Abroshan and Moosavi-Dezfooli 2023, Revisiting DeepFool: Generalization and Improvement, "
        "arXiv:2303.12481",
        access=Access.GRADIENTS,
        spaces=("l2",),
        goals=("untargeted",),
        minimal=True,
        cost="per step a forward and one backward per class considered; usually 15 to 40 steps",
        caveats="It trusts the linearised boundary, as DeepFool does. Unlike the paper's, projections keep within the bounds and "
        "repeat until they no longer help.",
        floor={"l2": 0.42},
        aliases=("sdf",),
    )
)
@dataclass(frozen=True, kw_only=True)
class SuperDeepFool(Attack):
    """SuperDeepFool: DeepFool's steps until x crosses; then x <- the nearest point to the input x0 on the tangent plane at x.

    At the smallest change the change is parallel to the boundary's normal w: x0 + (<x - x0, w> - f(x)) w / |w|^2 with
    f = s_k - s_y of the class k read at x, here inside the bounds. Where that point has not crossed, DeepFool goes on from it.

    Args:
        steps: at most so many linearisations.
        overshoot: DeepFool's steps are stretched by this share.
        beyond: planes are passed by this share of the distance to the input, so that a point on the boundary crosses it.
        classes: only the true class and its classes - 1 highest-scoring rivals are linearised; None takes all classes.
        patience: end after so many crossings in a row that are no nearer.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.SuperDeepFool()(sp.Victim(net), x, None, sp.L2())
        >>> result.median_distance > 0
        True
    """

    steps: int = 100
    overshoot: float = 0.02
    beyond: float = 0.001
    classes: int | None = 10
    patience: int = 3

    def search(self, run: Run) -> None:
        """Cross, project, repeat."""
        x = starts(run)
        zero = torch.zeros_like(x.flatten(1)[:, 0])
        s = run.begin(Walk(x, zero + torch.inf, zero))
        for _ in run.steps(self.steps):
            scores, classes, slopes = run.jacobian(s.x, lambda scores: self._candidates(scores, run.y))
            values = scores.gather(1, classes)
            crossed, distance = reached(run, scores), run.space.distance(s.x - run.x)
            nearer = crossed & (distance < (1.0 - CONVERGED) * s.least)
            s.stalled = torch.where(nearer, 0.0, s.stalled + crossed.to(distance.dtype))
            s.least = torch.where(crossed, torch.minimum(s.least, distance), s.least)
            s.x = self._step(run, s.x, values[:, 1:] - values[:, :1], slopes[:, 1:] - slopes[:, :1], crossed)
            run.give_up(s.stalled >= self.patience)
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)

    def _step(self, run: Run, x: Tensor, values: Tensor, normals: Tensor, crossed: Tensor) -> Tensor:
        """From the input onto the plane of the class read at x, where x has crossed; else from x onto the nearest plane.

        Args:
            run: the samples in play.
            x: the current points, (m, ...).
            values: each rival's score above the true one's, the highest first, (m, j).
            normals: their gradients, (m, j, ...).
            crossed: whether x has crossed, bool (m,).
        """
        origin, flat, normals = run.x.flatten(1), x.flatten(1), normals.flatten(2)
        size = normals.norm(dim=2)
        plane = torch.where(crossed, 0, (values.abs() / size.clamp(min=TINY)).argmin(1))
        rows = torch.arange(len(plane), device=plane.device)
        value, w, slope = values[rows, plane], normals[rows, plane], size[rows, plane]
        missing = self.beyond * slope * norm(x - run.x, 2.0) - value
        along = (w * (flat - origin)).sum(1)
        base = torch.where(crossed[:, None], origin, flat)
        # a point exactly on a plane still has to cross it
        least = torch.finfo(x.dtype).eps * slope
        gap = torch.where(crossed, along + missing, torch.maximum((1.0 + self.overshoot) * missing, least))
        return clamp(run, (base + plane_step(base, w, gap, *box(run), 2.0)).reshape(x.shape))

    def _candidates(self, scores: Tensor, y: Tensor) -> Tensor:
        """The true class first, then its highest-scoring rivals, int64 (m, j)."""
        return torch.cat([y[:, None], rivals_of(scores, y, None if self.classes is None else self.classes - 1)], dim=1)
