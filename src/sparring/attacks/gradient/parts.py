"""The parts of a gradient attack: starts, step sizes, directions, and the one loop that climbs with them.

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
    """What a climb keeps per sample: the point, and the direction's memory (None for a direction that has none)."""

    x: Tensor
    memory: Tensor | None = None


class Direction(Protocol):
    """Turns raw gradients into the vector whose steepest direction is taken."""

    def __call__(self, grad: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The vector to climb along, (m, ...), and the memory for the next step."""
        ...


def plain(grad: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The gradient itself."""
    return grad, None


def start_at(run: Run, random: bool) -> Tensor:
    """The starting points: the threat's own where it knows some, random in the space, or the inputs themselves."""
    known = run.threat.knowledge.starts
    if isinstance(known, Tensor):
        return run.space.project(run.x, known[run.rows.to(known.device)].to(run.x))  # type: ignore[no-any-return]
    if random:
        return run.space.sample(run.x, run.rng, ("start", run.restart))  # type: ignore[no-any-return]
    return run.x.clone()  # type: ignore[no-any-return]


def step_length(run: Run, step_size: float | None, relative: float) -> Tensor | float:
    """An absolute step in the victim's raw units, or `relative` times each sample's eps; it broadcasts against the inputs."""
    if step_size is not None:
        return step_size
    return per_sample(relative * run.space.eps, run.x)


def climb(
    run: Run,
    *,
    steps: int,
    loss: Loss,
    start: Tensor,
    step: Callable[[Run, int], Tensor | float],
    direction: Direction = plain,
    gradient: Callable[[Run, Climber, Loss, int], Gradient] | None = None,
) -> None:
    """Climb the loss inside the space: x <- P(x + a * steepest(d)), where d comes from the gradients seen so far.

    Args:
        run: the samples in play.
        steps: gradient steps.
        loss: what to raise.
        start: (m, ...), inside the space.
        step: the length a of a step, from the run and the step's number.
        direction: plain gradient, momentum, ...
        gradient: how a gradient is had at the state's point; None asks the run once (input transforms average several).
    """
    s = run.begin(Climber(start))
    for t in run.steps(steps):
        g = run.gradient(s.x, loss) if gradient is None else gradient(run, s, loss, t)
        d, s.memory = direction(g.grad, s.memory)
        s.x = run.space.project(run.x, s.x + step(run, t) * run.space.steepest(d))
