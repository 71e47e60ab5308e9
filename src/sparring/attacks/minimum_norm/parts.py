"""What the minimum-norm attacks share: annealing, success by the goal, norms of vectors, the search for a trade-off constant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparring.core.balls import per_sample
from sparring.core.losses import get_loss
from sparring.core.outputs import Prediction
from sparring.core.runner import Run

# Quotients by a norm below this would be noise: a gradient that small is treated as none.
TINY = 1e-12
# A round of a descent is looked at so many times: has it stalled, and did it succeed lately?
CHECKS = 10
# It has stalled where its lowest objective fell by less than this share since the last check.
STALL = 1e-4


def cosine(first: float, last: float, t: int, count: int) -> float:
    """Cosine annealing from `first` at t = 0 towards `last` at t = count."""
    return last + (first - last) * (1.0 + math.cos(math.pi * t / max(1, count))) / 2.0


def reached(run: Run, scores: Tensor, rows: Tensor | None = None) -> Tensor:
    """Bool: which scores reach the goal, of all active samples or of `rows`; the run asks for a hair more of a success."""
    goal, y = (run.goal, run.y) if rows is None else (run.goal.take(rows), run.y[rows])
    return goal.achieved(Prediction.of(scores), y)


def norm(delta: Tensor, p: float) -> Tensor:
    """The p-norm of each sample's vector, (m,); p = 0 counts the non-zero elements."""
    flat = delta.flatten(1)
    if math.isinf(p):  # many times faster than vector_norm
        return flat.abs().amax(1)
    return flat.abs().sum(1) if p == 1 else torch.linalg.vector_norm(flat, p, dim=1)


def dual(p: float) -> float:
    """The exponent of the dual norm: a linear score with gradient g changes by at most eps * |g|_q over an eps-ball of norm p."""
    if p <= 1.0:  # moving one element is as good as L1 allows; L0 counts elements and borrows it
        return math.inf
    return 1.0 if math.isinf(p) else p / (p - 1.0)


def clamp(run: Run, x: Tensor) -> Tensor:
    """x inside the victim's bounds, where it has some."""
    bounds = run.space.bounds
    return x if bounds is None else bounds.clamp(x)


def box(run: Run) -> tuple[Tensor, Tensor]:
    """The victim's bounds as tensors that broadcast against flattened inputs (m, d); infinite where there are none."""
    bounds = run.space.bounds
    if bounds is None:
        far = torch.full_like(run.x.flatten(1)[:1, :1], torch.inf)
        return -far, far
    lo, hi = (b.expand(run.x.shape[1:]).reshape(1, -1) if b.ndim else b for b in (bounds.lo, bounds.hi))
    return lo, hi


def farthest(run: Run) -> Tensor:
    """The distance from each input to the farthest point of the bounds, (m,): no change can be larger. Infinite without bounds."""
    bounds = run.space.bounds
    if bounds is None:
        return torch.full_like(run.x.flatten(1)[:, 0], torch.inf)
    return run.space.distance(torch.maximum(run.x - bounds.lo, bounds.hi - run.x))  # type: ignore[no-any-return]


def starts(run: Run) -> Tensor:
    """The starting points: the threat's own where it knows some, else the inputs."""
    known = run.threat.knowledge.starts
    if isinstance(known, Tensor):
        return clamp(run, known[run.rows.to(known.device)].to(run.x))
    return run.x.clone()  # type: ignore[no-any-return]


def unit(gradient: Tensor, run: Run, stream: tuple[str | int, ...]) -> Tensor:
    """The gradient over its Euclidean norm; where there is none, a random direction, so that a flat spot is left."""
    length = norm(gradient, 2.0)
    flat = (length < TINY).nonzero().squeeze(1)
    if len(flat):
        tiny = gradient[flat]
        scaled = tiny / tiny.abs().flatten(1).amax(1).clamp(min=torch.finfo(tiny.dtype).tiny).reshape(
            -1, *[1] * (tiny.ndim - 1)
        )
        noise = run.rng.take(flat).normal(tuple(tiny.shape[1:]), stream).to(tiny)
        dead = (tiny == 0).flatten(1).all(1)
        gradient = gradient.index_put((flat,), torch.where(dead.reshape(-1, *[1] * (tiny.ndim - 1)), noise, scaled))
        length = norm(gradient, 2.0)
    return gradient / length.reshape(-1, *[1] * (gradient.ndim - 1))


@dataclass
class Rounds:
    """Descents one after another with a constant c between the victim's loss and the distance, each sample at its own pace.

    c rises tenfold until a round succeeds and is bisected from then on. A round ends after so many steps, or when its lowest
    objective has stopped falling. It succeeds by what it did since its last check: rounds may start at a success.

    Attributes:
        c: the constant, (m,).
        low: the largest c that failed, (m,).
        high: the smallest c that succeeded, infinite before, (m,).
        age: steps taken in this round, (m,).
        done: rounds finished, (m,).
        hit: whether a success was seen since the last check, bool (m,).
        lowest: the lowest objective since the last check, (m,).
        mark: the lowest objective of this round before that, (m,).
    """

    c: Tensor
    low: Tensor
    high: Tensor
    age: Tensor
    done: Tensor
    hit: Tensor
    lowest: Tensor
    mark: Tensor

    @classmethod
    def start(cls, like: Tensor, c: float) -> Rounds:
        """The first round of every sample of `like`."""
        zero = like.new_zeros(like.shape[0])
        far = torch.full_like(zero, torch.inf)
        return cls(zero + c, zero, far, zero, zero, zero > 0, far, far)

    def advance(self, objective: Tensor, success: Tensor, steps: int, patient: bool) -> Tensor:
        """Count a step.

        Args:
            objective: what the round minimises, (m,).
            success: which points reach the goal, bool (m,).
            steps: the most steps of a round.
            patient: let rounds that have stalled go on.

        Returns:
            The samples whose round is over, bool (m,); their c has moved and their next round has begun.
        """
        self.age = self.age + 1
        self.hit = self.hit | success
        self.lowest = torch.minimum(self.lowest, objective)
        check = self.age % max(1, steps // CHECKS) == 0
        over = self.age >= steps
        if not patient:
            over = over | (check & (self.lowest > (1.0 - STALL) * self.mark))
        self.mark = torch.where(check, torch.minimum(self.mark, self.lowest), self.mark)
        self.lowest = torch.where(check, torch.inf, self.lowest)
        if bool(over.any()):
            self.high = torch.where(over & self.hit, torch.minimum(self.high, self.c), self.high)
            self.low = torch.where(over & ~self.hit, torch.maximum(self.low, self.c), self.low)
            middle = torch.where(torch.isinf(self.high), 10.0 * self.c, (self.low + self.high) / 2.0)
            self.c = torch.where(over, middle, self.c)
            self.age, self.done = torch.where(over, 0.0, self.age), self.done + over
            self.lowest, self.mark = torch.where(over, torch.inf, self.lowest), torch.where(over, torch.inf, self.mark)
        self.hit = self.hit & ~(check | over)
        return over


@dataclass
class Adam:
    """Adam's moments and step counts, one per sample, so that each sample can begin anew on its own (Kingma and Ba 2015)."""

    first: Tensor
    second: Tensor
    count: Tensor

    @classmethod
    def start(cls, like: Tensor) -> Adam:
        """No gradient seen yet."""
        return cls(torch.zeros_like(like), torch.zeros_like(like), like.new_zeros(like.shape[0]))

    def step(self, gradient: Tensor, rate: float, betas: tuple[float, float] = (0.9, 0.999)) -> Tensor:
        """The change that descends along `gradient`, shaped like it."""
        self.count += 1
        self.first.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
        self.second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        shape = (-1, *[1] * (gradient.ndim - 1))
        scale = (-rate / (1 - betas[0] ** self.count)).reshape(shape)
        root = (1 - betas[1] ** self.count).rsqrt().reshape(shape)
        return (self.first * scale).div_((self.second.sqrt() * root).add_(1e-8))

    def reset(self, index: Tensor) -> None:
        """Forget the gradients of the samples at `index`."""
        self.first[index] = 0.0
        self.second[index] = 0.0
        self.count[index] = 0.0


def polish(run: Run, forwards: int) -> None:
    """Move each best success towards its input, to where the margin vanishes on the segment between them, by the secant method.

    The run records what succeeds nearer by; samples without a success are not touched.
    """
    if not forwards or not len(run.rows) or run.found().sum() == 0:
        return
    best, _ = run.best()
    away, margin = best - run.x, get_loss("margin")
    share = torch.ones_like(away.flatten(1)[:, 0])
    low, high = torch.zeros_like(share), share.clone()  # not a success at low, a success at high
    previous, value = share, margin(run.evaluate(best), run.y, run.goal)
    share = share * 0.97
    for _ in range(forwards - 1):
        point = clamp(run, run.x + away * per_sample(share, away))
        scores = run.evaluate(point)
        now = margin(scores, run.y, run.goal)
        high = torch.where(now > 0, torch.minimum(high, share), high)
        low = torch.where(now > 0, low, torch.maximum(low, share))
        root = share - now * (share - previous) / (now - value).where(now != value, torch.ones_like(now))
        # a tenth of the way from the root to the success: landing exactly on the boundary is no success
        aim = root + 0.1 * (high - root)
        inside = (aim > low) & (aim < high)
        previous, value = share, now
        share = torch.where(inside, aim, (low + high) / 2)


class Boundaries(NamedTuple):
    """The linearised boundaries between the true class and each of j rivals at one point of each sample.

    Attributes:
        values: each rival's score above the true one's, (m, j).
        normals: their gradients, (m, j, ...).
        rivals: the rivals, int64 (m, j).
        scores: all scores, (m, k).
    """

    values: Tensor
    normals: Tensor
    rivals: Tensor
    scores: Tensor

    def slopes(self, p: float) -> Tensor:
        """The dual norms of the normals, (m, j): how fast each value rises with a distance of norm p."""
        return norm(self.normals.flatten(0, 1), dual(p)).reshape(self.values.shape)


def boundaries(run: Run, x: Tensor, classes: int | None, rivals: Tensor | None = None) -> Boundaries:
    """Linearise at x, (m, ...), the boundaries to several rivals, with one forward and a backward for each.

    Args:
        run: the samples in play.
        x: the points.
        classes: how many classes, the true one included, the highest-scoring first; None for all.
        rivals: the rivals, int64 (m, j), where they are known.
    """

    def chosen(scores: Tensor) -> Tensor:
        return rivals_of(scores, run.y, None if classes is None else classes - 1) if rivals is None else rivals

    def above(scores: Tensor) -> Tensor:
        return scores.gather(1, chosen(scores.detach())) - scores.gather(1, run.y[:, None])

    scores, values, normals = run.jacobian(x, above)
    return Boundaries(values, normals, chosen(scores), scores)


def rivals_of(scores: Tensor, y: Tensor, count: int | None) -> Tensor:
    """The `count` highest-scoring classes beside y (None: all of them), best first, int64 (m, k)."""
    others = scores.shape[1] - 1
    k = others if count is None else max(1, min(count, others))
    return scores.scatter(1, y[:, None], -torch.inf).topk(k, dim=1).indices
