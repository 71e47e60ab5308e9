"""Fast adaptive boundary: project on the linearised boundary inside the box, with a pull towards the input; L1, L2, Linf."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import (
    TINY,
    boundaries,
    box,
    clamp,
    farthest,
    norm,
    polish,
    reached,
    rivals_of,
    starts,
)
from sparring.attacks.minimum_norm.projections import plane_step
from sparring.core.attack import Attack
from sparring.core.losses import Loss, get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access, Untargeted


@dataclass
class Walk:
    """The current point, and the classes to be walked to one after another, int64 (m, k), or None."""

    x: Tensor
    rivals: Tensor | None


@attack(
    Card(
        name="fab",
        title="Fast adaptive boundary",
        paper="Croce and Hein 2020, Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary "
        "Attack, arXiv:1907.02044",
        access=Access.GRADIENTS,
        spaces=("l1", "l2", "linf"),
        minimal=True,
        cost="steps x (forward + one backward per class); with targets, targets x steps x (forward + backward)",
        caveats="It trusts the linearised boundary: victims whose gradients are masked or vanish look robust to it. Untargeted L1 "
        "and L2 on such victims want targets=9.",
        floor={"l1": 0.8, "l2": 0.42, "linf": 0.1},
    )
)
@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Fast adaptive boundary: x <- (1 - a)(x + eta d(x)) + a (x0 + eta d(x0)), clipped to the bounds.

    d(z) is the exact step from z onto the hyperplane of the nearest class's linearised boundary, inside the bounds, and
    a = min(|d(x)| / (|d(x)| + |d(x0)|), alpha_max) pulls towards the input x0. After a success the walk goes on from
    (1 - beta) x0 + beta x, with the linearisation had at the success, so that each step takes one forward and no more.

    Args:
        steps: linearisations per walk.
        restarts: the first walk starts at the input, later ones at random points half as far as the best success.
        alpha_max: the largest pull.
        eta: how far beyond the hyperplane a step goes.
        beta: how much of the change stays after a success (0.9 in the paper, which linearises once more there).
        targets: None linearises all boundaries at each point and takes the nearest; a number takes one walk to each of so many
            highest-scoring other classes, with one backward a step (FAB-T; 9 in AutoAttack).
        classes: without targets, only so many highest-scoring classes are linearised, the true one included; None takes all.
        polish: forwards at the end to move the best success onto the boundary, along the line to the input.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.FAB(steps=5)(sp.Victim(net), x, None, sp.Linf())
        >>> result.median_distance > 0
        True
    """

    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.7
    targets: int | None = None
    classes: int | None = 10
    polish: int = 4

    def search(self, run: Run) -> None:
        """Walk to the nearest class, or to each of several."""
        several = self.targets is not None and isinstance(run.goal, Untargeted)
        s = run.begin(Walk(run.x, rivals_of(run.evaluate(run.x), run.y, self.targets) if several else None))
        for walk in range(1 if s.rivals is None else s.rivals.shape[1]):
            run.shrink()
            if not len(run.rows):
                return
            s.x = self._start(run, walk)
            for _ in run.steps(self.steps):
                value, normal, scores = self._boundary(run, s, walk)
                s.x = self._step(run, s.x, value, normal, reached(run, scores))
            if len(run.rows):
                run.evaluate(s.x)
        polish(run, self.polish)

    def _start(self, run: Run, walk: int) -> Tensor:
        """The input or the threat's starting points; at a restart, a random point within half the best distance."""
        if not run.restart:
            return starts(run)
        _, distance = run.best()
        radius = torch.where(torch.isfinite(distance), distance, farthest(run)) / 2
        if run.space.limit is not None:
            radius = torch.minimum(radius, run.space.limit)
        return replace(run.space, eps=radius).sample(run.x, run.rng, ("start", run.restart, walk))  # type: ignore[no-any-return]

    def _boundary(self, run: Run, s: Walk, walk: int) -> tuple[Tensor, Tensor, Tensor]:
        """The boundary function at the current points, positive beyond it, its gradient, and the scores."""
        if s.rivals is not None or not isinstance(run.goal, Untargeted):
            g = run.gradient(s.x, get_loss("margin") if s.rivals is None else towards(s.rivals[:, walk]))
            return g.loss, g.grad, g.scores
        planes = boundaries(run, s.x, self.classes)
        size = planes.slopes(run.space.p)
        nearest = (planes.values.abs() / size.clamp(min=TINY)).argmin(1)
        rows = torch.arange(len(nearest), device=nearest.device)
        return planes.values[rows, nearest], planes.normals[rows, nearest], planes.scores

    def _step(self, run: Run, x: Tensor, value: Tensor, normal: Tensor, hit: Tensor) -> Tensor:
        """The next point, from the boundary value + <normal, . - x> = 0 linearised at x."""
        keep = torch.where(hit, self.beta, 1.0).to(x.dtype)
        origin, flat, w = run.x.flatten(1), x.flatten(1), normal.flatten(1)
        lo, hi = box(run)
        along = (w * (flat - origin)).sum(1)
        back = torch.lerp(origin, flat, keep[:, None])
        near = plane_step(back, w, (1 - keep) * along - value, lo, hi, run.space.p)
        far = plane_step(origin, w, along - value, lo, hi, run.space.p)
        d, d0 = norm(near, run.space.p), norm(far, run.space.p)
        pull = (d / (d + d0).clamp(min=TINY)).clamp(max=self.alpha_max)
        moved = torch.lerp(near.mul_(self.eta).add_(back), far.mul_(self.eta).add_(origin), pull[:, None])
        return clamp(run, moved.reshape(x.shape))


def towards(rival: Tensor) -> Loss:
    """The score of `rival`, one class per sample, above the true one's."""

    def gap(scores: Tensor, y: Tensor) -> Tensor:
        return (scores.gather(1, rival[:, None]) - scores.gather(1, y[:, None])).squeeze(1)

    return Loss("rival", gap, lambda scores, y, target: gap(scores, y))
