"""SuperDeepFool: cross the boundary by DeepFool, then project the input on the boundary's tangent plane, and repeat; L2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, boundaries, box, clamp, norm, reached, starts
from sparring.attacks.minimum_norm.projections import plane_step
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import Loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# A walk has converged when a crossing is not nearer than the nearest one before by this share.
CONVERGED = 1e-3


@dataclass
class Walk:
    """What the walk keeps per sample.

    Attributes:
        x: the current point.
        rival: the class whose boundary is approached, int64 (m,).
        least: the least distance of a crossing, (m,).
        stalled: how many crossings in a row were not nearer, (m,).
    """

    x: Tensor
    rival: Tensor
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
        cost="a forward and one backward per class considered, then usually 15 to 35 x (forward + backward)",
        caveats="Unlike the paper's, projections keep within the bounds, go half the way, and repeat until they no longer help.",
        floor={"l2": 0.42},
        aliases=("sdf",),
    )
)
@dataclass(frozen=True, kw_only=True)
class SuperDeepFool(Attack):
    """SuperDeepFool: DeepFool's steps until x crosses; then towards the nearest point to the input x0 on the tangent plane at x.

    At the smallest change the change is parallel to the boundary's normal w: x0 + (<x - x0, w> - f(x)) w / |w|^2 with
    f = s_k - s_y of the class k read at x, here inside the bounds. Where the next point has not crossed, DeepFool goes on from
    it. The nearest class is chosen once, among several linearised ones, and again at every crossing.

    Args:
        steps: at most so many linearisations.
        overshoot: DeepFool's steps are stretched by this share.
        beyond: planes are passed by this share of the distance to the input, so that a point on the boundary crosses it.
        turn: how much of the way to that nearest point is gone. The paper's 1 turns from side to side where the boundary is bent.
        classes: the first step linearises the true class and its classes - 1 highest-scoring rivals; None takes all classes.
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
    turn: float = 0.5
    classes: int | None = 10
    patience: int = 2

    def search(self, run: Run) -> None:
        """Cross, project, repeat."""
        x = starts(run)
        zero = torch.zeros_like(x.flatten(1)[:, 0])
        s = run.begin(Walk(x, torch.zeros_like(run.y), zero + torch.inf, zero))
        for t in run.steps(self.steps):
            value, normal, scores = self._nearest_plane(run, s) if t == 0 else approached(run, s)
            crossed, distance = reached(run, scores), run.space.distance(s.x - run.x)
            s.rival = torch.where(crossed, scores.argmax(1), s.rival)
            nearer = crossed & (distance < (1.0 - CONVERGED) * s.least)
            s.stalled = torch.where(nearer, 0.0, s.stalled + crossed.to(distance.dtype))
            s.least = torch.where(crossed, torch.minimum(s.least, distance), s.least)
            s.x = self._step(run, s.x, value, normal, crossed)
            run.give_up(s.stalled >= self.patience)
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)

    def _nearest_plane(self, run: Run, s: Walk) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the rival whose linearised boundary is nearest: its score above the true one's, the gradient, the scores."""
        planes = boundaries(run, s.x, self.classes)
        size = planes.slopes(2.0)
        # where the start has crossed already, the plane is that of the class read there, the highest
        plane = torch.where(reached(run, planes.scores), 0, (planes.values.abs() / size.clamp(min=TINY)).argmin(1))
        rows = torch.arange(len(plane), device=plane.device)
        s.rival = planes.rivals[rows, plane]
        return planes.values[rows, plane], planes.normals[rows, plane], planes.scores

    def _step(self, run: Run, x: Tensor, value: Tensor, normal: Tensor, crossed: Tensor) -> Tensor:
        """From x towards the point of the plane nearest to the input, where x has crossed; else from x onto the plane, (m, ...).

        Args:
            run: the samples in play.
            x: the current points, (m, ...).
            value: the rival's score above the true one's, (m,).
            normal: its gradient, (m, ...).
            crossed: whether x has crossed, bool (m,).
        """
        origin, flat, w = run.x.flatten(1), x.flatten(1), normal.flatten(1)
        slope = norm(w, 2.0)
        missing = self.beyond * slope * norm(x - run.x, 2.0) - value
        base = torch.where(crossed[:, None], origin, flat)
        # a point exactly on a plane still has to cross it
        least = torch.finfo(x.dtype).eps * slope
        along = (w * (flat - origin)).sum(1)
        gap = torch.where(crossed, along + missing, torch.maximum((1.0 + self.overshoot) * missing, least))
        onto = (base + plane_step(base, w, gap, *box(run), 2.0)).reshape(x.shape)
        return clamp(run, torch.where(per_sample(crossed, x), torch.lerp(x, onto, self.turn), onto))


def approached(run: Run, s: Walk) -> tuple[Tensor, Tensor, Tensor]:
    """The boundary ahead of each sample, or the one it has crossed: the score above the true one's, its gradient, the scores."""

    def gap(scores: Tensor, y: Tensor) -> Tensor:
        own = scores.gather(1, y[:, None])
        top, read = scores.scatter(1, y[:, None], -torch.inf).max(1, keepdim=True)
        rival = torch.where(top > own, read, s.rival[:, None])
        return (scores.gather(1, rival) - own).squeeze(1)

    g = run.gradient(s.x, Loss("approached", gap, lambda scores, y, target: gap(scores, y)))
    return g.loss, g.grad, g.scores
