"""What the minimum-norm attacks share: annealing, success by the goal, norms of vectors, the search for a trade-off constant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.core.balls import per_sample
from sparring.core.losses import get_loss
from sparring.core.outputs import Prediction
from sparring.core.runner import Run

# Quotients by a norm below this would be noise: a gradient that small is treated as none.
TINY = 1e-12


def cosine(first: float, last: float, t: int, count: int) -> float:
    """Cosine annealing from `first` at t = 0 towards `last` at t = count."""
    return last + (first - last) * (1.0 + math.cos(math.pi * t / max(1, count))) / 2.0


def reached(run: Run, scores: Tensor) -> Tensor:
    """Bool (m,): which scores reach the goal; the run itself asks for a hair more before it records a success."""
    return run.goal.achieved(Prediction.of(scores), run.y)


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


def width(run: Run) -> float:
    """The mean width of the victim's bounds, the unit of the papers' step sizes; 1 where there are none."""
    bounds = run.space.bounds
    return 1.0 if bounds is None else float((bounds.hi - bounds.lo).mean())


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
        scaled = tiny / tiny.abs().flatten(1).amax(1).clamp(min=torch.finfo(tiny.dtype).tiny).reshape(-1, *[1] * (tiny.ndim - 1))
        noise = run.rng.take(flat).normal(tuple(tiny.shape[1:]), stream).to(tiny)
        dead = (tiny == 0).flatten(1).all(1)
        gradient = gradient.index_put((flat,), torch.where(dead.reshape(-1, *[1] * (tiny.ndim - 1)), noise, scaled))
        length = norm(gradient, 2.0)
    return gradient / length.reshape(-1, *[1] * (gradient.ndim - 1))


@dataclass
class Tradeoff:
    """Bisection on the constant c that weighs the victim's loss against the distance, one per sample.

    Attributes:
        value: c, (m,).
        low: the largest c that failed, (m,).
        high: the smallest c that succeeded, infinite before, (m,).
    """

    value: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def start(cls, like: Tensor, value: float) -> Tradeoff:
        """c = value for every sample of `like`, nothing known."""
        m = like.shape[0]
        c = torch.full((m,), value, dtype=like.dtype, device=like.device)
        return cls(c, torch.zeros_like(c), torch.full_like(c, torch.inf))

    def settle(self, over: Tensor, hit: Tensor) -> None:
        """Move c where a round is `over`, bool (m,): down where it was a `hit`, up where not (tenfold until one succeeds)."""
        self.high = torch.where(over & hit, torch.minimum(self.high, self.value), self.high)
        self.low = torch.where(over & ~hit, torch.maximum(self.low, self.value), self.low)
        middle = torch.where(torch.isinf(self.high), 10.0 * self.value, (self.low + self.high) / 2.0)
        self.value = torch.where(over, middle, self.value)


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
