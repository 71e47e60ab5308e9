"""The parts of a gradient attack: starts, step sizes, directions, gradients from elsewhere, and the one loop that climbs.

BIM, PGD, MI-FGSM and their kin are short recipes of these parts. An attack whose loop truly differs has its own file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparring.core.balls import per_sample
from sparring.core.losses import Loss
from sparring.core.runner import Gradient, Run


@dataclass
class Climber:
    """What a climb keeps per sample: the point, the direction's memory, and the gradient's own (None where unused)."""

    x: Tensor
    memory: Tensor | None = None
    variance: Tensor | None = None


class Direction(Protocol):
    """Turns raw gradients into the vector whose steepest direction is taken."""

    def __call__(self, grad: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The vector to climb along, (m, ...), and the memory for the next step."""
        ...


# How a gradient is had near x, (m, ...), at step t: plain, through input transforms, averaged over neighbours.
Slope = Callable[[Run, Tensor, Loss, int], Gradient]
# How a climb has its gradient, from its state: at its point, one momentum step ahead of it, corrected by an earlier one.
Look = Callable[[Run, Climber, Loss, int], Gradient]


def plain(grad: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The gradient itself."""
    return grad, None


def at_point(run: Run, x: Tensor, loss: Loss, t: int) -> Gradient:
    """The gradient at x itself."""
    return run.gradient(x, loss)


def start_at(run: Run, random: bool, stream: tuple[str | int, ...] = ()) -> Tensor:
    """The starting points: the threat's own where it knows some, random in the space, or the inputs themselves.

    `stream` tells the random starts of one restart apart.
    """
    known = run.threat.knowledge.starts
    if isinstance(known, Tensor):
        return run.space.project(run.x, known[run.rows.to(known.device)].to(run.x))  # type: ignore[no-any-return]
    if random:
        return run.space.sample(run.x, run.rng, ("start", run.restart, *stream))  # type: ignore[no-any-return]
    return run.x.clone()  # type: ignore[no-any-return]


def step_length(run: Run, step_size: float | None, relative: float) -> Tensor | float:
    """An absolute step in the victim's raw units, or `relative` times each sample's eps; it broadcasts against the
    inputs.
    """
    if step_size is not None:
        return step_size
    return per_sample(relative * run.space.eps, run.x)


def gradient_through(
    run: Run, x: Tensor, loss: Loss, through: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> Gradient:
    """The loss of the victim at a transformed input, and its gradient with respect to x.

    What the victim answers there is no answer at x: it ends no sample and counts as no success, except for the samples
    that the transform left untouched.

    Args:
        run: the samples in play.
        x: (m, ...), inside the space where samples may be left untouched.
        loss: what to raise.
        through: a differentiable map from x to what the victim sees, which may have another shape, and which samples it
            left untouched, bool (m,), or None for none of them.
    """
    if getattr(run.space, "lattice", None) is not None:
        x = run.space.snap(run.x, x)
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        seen, untouched = through(leaf)
    value, grad, scores = run.gradient(seen.detach(), loss, candidates=False)
    if seen is not leaf:
        (grad,) = torch.autograd.grad(seen, leaf, grad)
    if untouched is not None:
        run.claim(leaf.detach(), scores, untouched)
    return Gradient(value, grad, scores)


def off_limits(leaf: Tensor) -> tuple[Tensor, Tensor | None]:
    """For `gradient_through`: the point as it is, of which no sample may be claimed, since it may lie outside the space."""
    return leaf, None


def climb(
    run: Run,
    *,
    steps: int,
    loss: Loss,
    start: Tensor,
    step: Callable[[Run, int], Tensor | float],
    direction: Direction = plain,
    memory: Tensor | None = None,
    gradient: Look | None = None,
) -> None:
    """Climb the loss inside the space: x <- P(x + a * steepest(d)), where d comes from the gradients seen so far.

    Args:
        run: the samples in play.
        steps: gradient steps.
        loss: what to raise.
        start: (m, ...), inside the space.
        step: the length a of a step, from the run and the step's number.
        direction: plain gradient, momentum, ...
        memory: what the direction remembers at first, (m, ...).
        gradient: how a gradient is had at the state's point; None asks the run once (input transforms average several).
    """
    s = run.begin(Climber(start, memory))
    for t in run.steps(steps):
        g = run.gradient(s.x, loss) if gradient is None else gradient(run, s, loss, t)
        d, s.memory = direction(g.grad, s.memory)
        s.x = run.space.project(run.x, moved(s.x, step(run, t), run.space.steepest(d, s.x)))


def moved(x: Tensor, step: Tensor | float, direction: Tensor) -> Tensor:
    """x + step * direction in one pass over the elements."""
    if isinstance(step, Tensor):
        return torch.addcmul(x, direction, step)
    return torch.add(x, direction, alpha=step)
