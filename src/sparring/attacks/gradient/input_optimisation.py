"""Input optimisation: descend a cost on the network's outputs, from noise, with or without a wish for the picture's
look.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.losses import Loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "scores": lambda s: s,
    "sigmoid": torch.sigmoid,
    "softmax": lambda s: s.softmax(1),
}


@dataclass
class Canvas:
    """The picture in the making, (m, ...)."""

    x: Tensor


@attack(
    Card(
        name="input-optimisation",
        title="Input optimisation from noise, towards a label and a look",
        paper="the quadratic cost on a sigmoid digit network of Nielsen 2015, Neural Networks and Deep Learning; "
        "the term for the look as in Geng and Veerapaneni 2018, Tricking Neural Networks",
        access=Access.GRADIENTS,
        spaces=("l2", "linf", "l1"),
        goals=("targeted",),
        minimal=True,
        cost="steps x (forward + backward) per restart",
        caveats="With weight 0 the result is noise that reads as the target. With a weight it looks like the input, "
        "but the change is not small: for small changes use an attack in a ball.",
        floor={"l2": 0.5, "linf": 0.25, "l1": 2.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class InputOptimisation(Attack):
    """Gradient descent on ``1/2 ||y_goal - f(x)||^2 + weight * ||x - x_look||^2``, the look being the attacked input.

    Inputs count in units of the victim's range.

    Args:
        steps: gradient steps.
        step_size: the descent's rate.
        weight: of the look (lambda); 0 leaves the label alone.
        start: "noise" draws the first picture from N(.5, .3^2) of the bounds, "input" starts at the input itself.
        restarts: independent starts; a quadratic cost behind a sigmoid is flat in many places.
        outputs: what f is: the victim's "scores" as they are, their "sigmoid", or their "softmax".
    """

    steps: int = 1000
    step_size: float = 1.0
    weight: float = 0.05
    start: str = "noise"
    restarts: int = 1
    outputs: str = "softmax"

    def search(self, run: Run) -> None:
        """Descend; the run keeps the success nearest to the look."""
        if self.start not in ("noise", "input") or self.outputs not in OUTPUTS:
            raise InputError(
                f"start is {self.start!r} and outputs is {self.outputs!r}; start is 'noise' or 'input', outputs one of "
                + ", ".join(map(repr, OUTPUTS))
            )
        f, space = OUTPUTS[self.outputs], run.space.without_limit()

        def towards(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
            return -0.5 * (F.one_hot(target, scores.shape[1]) - f(scores)).square().sum(1)

        loss = Loss("input-optimisation", lambda scores, y: -towards(scores, y, y), towards)
        first = run.x.clone()
        if self.start == "noise":
            lo, hi = (space.bounds.lo, space.bounds.hi) if space.bounds is not None else (0.0, 1.0)
            noise = run.rng.normal(tuple(run.x.shape[1:]), ("start", run.restart)).to(run.x.dtype)
            first = space.project(run.x, lo + (hi - lo) * (0.5 + 0.3 * noise))
        s, square = run.begin(Canvas(first)), run.width**2
        for _ in run.steps(self.steps):
            g = run.gradient(s.x, loss).grad
            s.x = space.project(run.x, s.x + self.step_size * (square * g - 2 * self.weight * (s.x - run.x)))
