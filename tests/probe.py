"""An attack whose search is whatever a test wants to see done, and a few such searches on one-number inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sparring as sp
from sparring.core.losses import get_loss
from sparring.core.registry import Card
from sparring.core.runner import Run

CE = get_loss("ce")
WHITE = Card(name="probe", title="", paper="", access=sp.Access.GRADIENTS, spaces=("linf", "l2", "l1", "l0"))
SCORES = dataclasses.replace(WHITE, access=sp.Access.SCORES)
LABELS = dataclasses.replace(WHITE, access=sp.Access.LABELS)
BLIND = dataclasses.replace(WHITE, access=sp.Access.NOTHING)
MINIMAL = dataclasses.replace(WHITE, minimal=True)


@dataclass(frozen=True, kw_only=True)
class Probe(sp.Attack):
    """An attack whose search is whatever a test wants to see done."""

    body: Callable[[Run], None]
    card: Card = WHITE
    restarts: int = 1

    def search(self, run: Run) -> None:
        self.body(run)


@dataclass
class At:
    """The smallest state: the current point."""

    x: Tensor


def below(*values: float) -> tuple[Tensor, Tensor]:
    """Inputs for `tiny.threshold()`, all of class 0: numbers below one half."""
    return torch.tensor(values)[:, None], torch.zeros(len(values), dtype=torch.int64)


def walk(step: float, count: int = 40) -> Callable[[Run], None]:
    """Up by `step` at each gradient step."""

    def body(run: Run) -> None:
        s = run.begin(At(run.x.clone()))
        for _ in run.steps(count):
            run.gradient(s.x, CE)
            s.x = s.x + step

    return body


def ask_up(step: float, count: int = 40) -> Callable[[Run], None]:
    """Up by `step` before each query."""

    def body(run: Run) -> None:
        s = run.begin(At(run.x.clone()))
        for _ in run.steps(count):
            s.x = s.x + step
            run.ask(s.x)

    return body


def visit(*points: float) -> Callable[[Run], None]:
    """One forward at each of these points."""

    def body(run: Run) -> None:
        s = run.begin(At(run.x.clone()))
        for t in run.steps(len(points)):
            s.x = torch.full_like(run.x, points[t])
            run.evaluate(s.x)

    return body
