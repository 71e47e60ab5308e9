"""Auto-PGD's rules for a step: halve its size when it gains too little, and in L1 fit its sparsity to the best point.

A rule is a dataclass of per-sample tensors, so that the runner shrinks it with the rest of a climb's state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sparring.core.balls import Ball, per_sample
from sparring.core.thresholds import least_of_largest


@dataclass
class Peak:
    """The best point a climb has seen, for each of m samples: where it is, its loss, and the gradient there."""

    x: Tensor
    loss: Tensor
    grad: Tensor

    def rise(self, x: Tensor, loss: Tensor, grad: Tensor | None = None) -> None:
        """Take over the points that stand higher."""
        higher = loss > self.loss
        if bool(higher.all()):  # as in the first steps: nothing to copy
            self.x, self.loss, self.grad = x, loss, self.grad if grad is None else grad
            return
        self.loss = torch.where(higher, loss, self.loss)
        higher = per_sample(higher, x)
        self.x = torch.where(higher, x, self.x)
        if grad is not None:
            self.grad = torch.where(higher, grad, self.grad)


@dataclass
class HalvingSteps:
    """Steps of Auto-PGD in Linf and L2 (Croce and Hein 2020, arXiv:2003.01690, section 3).

    Attributes:
        step: the step size, (m,).
        rises: in how many steps since the last checkpoint the loss rose, int64 (m,).
        halved: whether the last checkpoint halved the step, bool (m,).
        marked: the peak's loss at the last checkpoint, (m,).
        before: the iterate before the current one, (m, ...).
    """

    step: Tensor
    rises: Tensor
    halved: Tensor
    marked: Tensor
    before: Tensor

    @classmethod
    def begin(cls, ball: Ball, x: Tensor, start: Tensor) -> Self:
        """The first step is as long as the ball is wide."""
        step = 2 * torch.as_tensor(ball.eps, dtype=x.dtype, device=x.device)
        none = torch.zeros_like(step, dtype=torch.int64)
        return cls(step, none, torch.ones_like(none, dtype=torch.bool), torch.full_like(step, -torch.inf), start)

    @staticmethod
    def checkpoints(steps: int) -> dict[int, int]:
        """After how many steps a sample judges its progress, each with the length of the window that ends there."""
        window, least, shorter = (max(1, int(share * steps)) for share in (0.22, 0.06, 0.03))
        at, found = window, {}
        while at < steps:
            found[at] = window
            window = max(window - shorter, least)
            at += window
        return found

    def watch(self, rose: Tensor) -> None:
        """Count the samples whose last step raised their loss."""
        self.rises = self.rises + rose

    def judge(self, ball: Ball, x: Tensor, peak: Peak, window: int, rho: float) -> Tensor:
        """Halve where fewer than a share `rho` of the steps rose, or where an unhalved step found no new peak.

        Returns:
            Bool (m,): which samples go back to their peak.
        """
        stuck = (self.rises <= rho * window) | (~self.halved & (self.marked >= peak.loss))
        self.step = torch.where(stuck, self.step / 2, self.step)
        self.rises, self.halved, self.marked = torch.zeros_like(self.rises), stuck, peak.loss
        return stuck

    def move(self, ball: Ball, x: Tensor, z: Tensor, grad: Tensor, first: bool) -> Tensor:
        """The next iterate: a projected step, of which a quarter gives way to the last move."""
        ahead = ball.project(x, torch.addcmul(z, ball.steepest(grad), per_sample(self.step, z)))
        if not first:
            ahead = torch.lerp(z, ahead, 0.75).add_(z, alpha=0.25).sub_(self.before, alpha=0.25)
            ahead = ball.project(x, ahead)
        self.before = z
        return ahead


@dataclass
class ConjugateSteps(HalvingSteps):
    """Steps along conjugate directions instead of momentum (Yamamura et al. 2022, arXiv:2206.09628).

    s_k = g_k + b s_{k-1} with Hestenes and Stiefel's b = <g_k, g_k - g_{k-1}> / <s_{k-1}, g_{k-1} - g_k>: these
    directions turn more from step to step than gradients do, and one climb sees more of the ball.

    Attributes:
        before: the gradient before the current one, (m, ...), where `HalvingSteps` keeps the iterate.
        along: the last direction s, (m, ...); zero where a sample starts afresh.
    """

    along: Tensor

    @classmethod
    def begin(cls, ball: Ball, x: Tensor, start: Tensor) -> Self:
        """As in `HalvingSteps`, with no direction yet."""
        base = HalvingSteps.begin(ball, x, start)
        return cls(base.step, base.rises, base.halved, base.marked, torch.zeros_like(x), torch.zeros_like(x))

    def judge(self, ball: Ball, x: Tensor, peak: Peak, window: int, rho: float) -> Tensor:
        """As in `HalvingSteps`; a sample that goes back to its peak forgets its direction."""
        stuck = super().judge(ball, x, peak, window, rho)
        self.along = torch.where(per_sample(stuck, x), torch.zeros_like(self.along), self.along)
        return stuck

    def move(self, ball: Ball, x: Tensor, z: Tensor, grad: Tensor, first: bool) -> Tensor:
        """The next iterate: a projected step along the conjugate direction."""
        change = (self.before - grad).flatten(1)
        share = -(grad.flatten(1) * change).sum(1) / (self.along.flatten(1) * change).sum(1)
        share = torch.nan_to_num(share, nan=0.0, posinf=0.0, neginf=0.0)  # no direction yet, or none that helps
        self.along = torch.addcmul(grad, self.along, per_sample(share, grad))
        self.before = grad
        return ball.project(x, torch.addcmul(z, ball.steepest(self.along), per_sample(self.step, z)))


@dataclass
class SparseSteps:
    """Steps of Auto-PGD in L1 (Croce and Hein 2021, arXiv:2103.01208): the signs of the largest elements, ever fewer.

    Attributes:
        step: the step size, (m,).
        share: the share of the elements that move, (m,).
        support: how many elements of the peak differed from the input at the last checkpoint, (m,).
    """

    step: Tensor
    share: Tensor
    support: Tensor

    @classmethod
    def begin(cls, ball: Ball, x: Tensor, start: Tensor, fresh: bool) -> SparseSteps:
        """Steps eps long, over a fifth of the elements; over two thirds of the start's where the climb goes on."""
        step = torch.as_tensor(ball.eps, dtype=x.dtype, device=x.device).clone()
        if fresh:
            return cls(step, torch.full_like(step, 0.2), torch.full_like(step, float(x[0].numel())))
        support = _changed(x, start)
        return cls(step, support / x[0].numel() / 1.5, support)

    @staticmethod
    def checkpoints(steps: int) -> dict[int, int]:
        """After every twenty-fifth part of the steps."""
        window = max(1, int(0.04 * steps))
        return dict.fromkeys(range(window, steps, window), window)

    def watch(self, rose: Tensor) -> None:
        """Nothing: the rule looks at the peak alone."""

    def judge(self, ball: Ball, x: Tensor, peak: Peak, window: int, rho: float) -> Tensor:
        """Long steps again where the peak has grown sparser by a twentieth, shorter ones elsewhere.

        Returns:
            Bool (m,): which samples go back to their peak.
        """
        support = _changed(x, peak.x)
        sparser = support < 0.95 * self.support
        eps = torch.as_tensor(ball.eps, dtype=x.dtype, device=x.device)
        self.step = torch.where(sparser, eps, torch.maximum(self.step / 1.5, eps / 10))
        self.support, self.share = support, support / x[0].numel() / 1.5
        return sparser

    def move(self, ball: Ball, x: Tensor, z: Tensor, grad: Tensor, first: bool) -> Tensor:
        """The next iterate: a step along the signs of each sample's largest elements, projected."""
        size = grad.flatten(1).abs()
        count = (self.share * size.shape[1]).long().clamp(1, size.shape[1])
        signs = torch.ge(size, least_of_largest(size, count), out=torch.empty_like(size)).mul_(grad.flatten(1).sign())
        signs = signs * (self.step[:, None] / signs.abs().sum(1, keepdim=True).clamp(min=1.0))
        return ball.project(x, z + signs.reshape(z.shape))


def _changed(x: Tensor, z: Tensor) -> Tensor:
    """How many elements of each sample differ, float (m,)."""
    return torch.ne(z, x, out=torch.empty_like(x)).flatten(1).sum(1)
