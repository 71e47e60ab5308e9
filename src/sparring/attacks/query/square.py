"""Square attack: random search over square windows, in Linf, L2 and L1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sparring.attacks.query.parts import as_pictures, bar, budget, loss_for, lowest, scores_of
from sparring.attacks.query.windows import AHEAD, Bumps, Colours, Windows
from sparring.core.attack import Attack
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# The share of elements in a window halves at these steps of 10,000.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass
class Walk:
    """The best point so far, (m, ...), the loss that a better one must exceed, (m,), and the windows to come."""

    x: Tensor
    bar: Tensor
    windows: Windows


@attack(
    Card(
        name="square",
        title="Square attack: random search over square windows",
        paper="Andriushchenko, Croce, Flammarion and Hein 2020, Square Attack: a Query-Efficient Black-Box Adversarial "
        "Attack via Random Search, arXiv:1912.00049; L1 after Croce and Hein 2021, Mind the Box, arXiv:2103.01208",
        access=Access.SCORES,
        spaces=("linf", "l2", "l1"),
        cost="one query a step, at most the budget",
        caveats="The windows suit pictures: on inputs whose neighbours are unrelated they are an arbitrary grouping. "
        "Below a hundred queries the result is little more than its striped start.",
        floor={"linf": 0.9, "l2": 0.9, "l1": 0.9},
    )
)
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square: recolour a random square window, and keep the change if the loss rises.

    In Linf every pixel stands at x - eps or x + eps: the start is vertical stripes, and a window takes one sign for each
    channel. In L2 and L1 a window takes a bump of unit norm and the norm that a second window gives up. The window's
    share p of the picture falls on a fixed schedule from `p_init`.

    Args:
        queries: queries per sample where the threat model names no number; the schedule stretches over them.
        p_init: the share of the picture that the first windows cover.
        loss: what to raise; None takes the margin for untargeted goals and cross-entropy for targeted ones.
        rescale: stretch the schedule, made for 10,000 queries, over the budget; False keeps its absolute steps.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> x = torch.rand(2, 1, 4, 4)
        >>> result = sp.attacks.Square(queries=20)(sp.Victim(net), x, None, sp.Linf(0.1))
        >>> bool((result.queries <= 20).all())
        True
    """

    queries: int = 5000
    p_init: float = 0.8
    loss: str | None = None
    rescale: bool = True

    def search(self, run: Run) -> None:
        """Propose a window, ask, and keep what raises the loss."""
        count = budget(run, self.queries)
        loss, shape = loss_for(run, self.loss), as_pictures(run.x).shape[1:]
        sides = [self._sides(max(t, 1), count, shape, run.space.name) for t in range(max(count, 2))]
        start, windows = (Colours if run.space.name == "linf" else Bumps).start(run, sides[1])
        s = run.begin(Walk(start, lowest(run.x), windows))
        drawn = 1
        for t in run.steps(count):
            if t - drawn == AHEAD or sides[t] != sides[drawn]:
                drawn = t
                s.windows.draw(run, sides[t], t)
                if s.windows.window(sides[t], 0) is not None:
                    run.stand(s.x, sides[t])
            point = s.windows.propose(run, s.x, sides[t], t - drawn) if t else s.x
            answer, _ = run.ask(point, window=s.windows.window(sides[t], t - drawn) if t else None)
            scores = scores_of(answer)
            value = loss(scores, run.y, run.goal)
            better = value > s.bar
            if t:
                s.windows.settle(run, s.x, point, better)
                run.settle(better)
            rows = better.nonzero().squeeze(1)
            if len(rows):  # some victims answer float64
                s.bar.index_copy_(0, rows, bar(value[rows], scores[rows]).to(s.bar.dtype))

    def share(self, t: int, count: int) -> float:
        """The share p of the picture that the window of step t of `count` covers."""
        at = (t - 1) / count * 10_000 if self.rescale else t - 1
        return self.p_init / 2.0 ** sum(int(at) > step for step in HALVINGS)

    def _sides(self, t: int, count: int, shape: tuple[int, ...], norm: str) -> tuple[int, int]:
        """Height and width of the window of step t: a square, or as long as it must be where the picture is too flat."""
        _, h, w = shape
        elements = self.share(t, count) * h * w
        side = max(1, round(math.sqrt(elements)))
        if norm != "linf":
            side = max(side, 3) | 1  # a bump needs a centre
        short = min(h, w, side)
        long = side if short == side else max(short, round(elements / short))
        return (short, min(w, long)) if h <= w else (min(h, long), short)
