"""Rotations and translations: a grid, a few random tries, or steps along the gradient of three numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access
from sparring.images.rendering import Drawn

PAPER = (
    "Engstrom, Tran, Tsipras, Schmidt and Madry 2019, Exploring the Landscape of Spatial Robustness, arXiv:1712.02779"
)


@dataclass
class Posed:
    """The point, (m, c, h, w), and the parameters: those still to try, (m, k, 3), or the current ones, (m, 3)."""

    x: Tensor
    theta: Tensor


def ask_all(run: Run, space: Drawn, theta: Tensor) -> None:
    """Draw several candidates of each active sample, theta (m, j, ...), and ask about them in that order."""
    m, j = theta.shape[:2]
    rows = torch.arange(m, device=theta.device).repeat_interleave(j)
    run.ask(space.render(run.x[rows], theta.flatten(0, 1)), rows)


@attack(
    Card(
        name="rotation-translation",
        title="Rotation and translation, by a grid or by random tries",
        paper=PAPER,
        access=Access.LABELS,
        spaces=("rotations",),
        cost="angles x shifts x shifts queries at most (774 by the paper's grid without its middle), or `tries`",
        domains=("image",),
        caveats="A grid is no proof: what it misses may lie between its points, though in three dimensions little does. "
        "The random form (worst of 10) is a cheap lower bound on it.",
        floor={},
        aliases=("spatial",),
    )
)
@dataclass(frozen=True, kw_only=True)
class RotationTranslation(Attack):
    """Turn and shift the picture until the victim errs, the smallest changes first.

    Args:
        search_by: "grid" takes every combination of evenly spaced angles and shifts; "random" draws uniformly.
        angles: angles of the grid, from -degrees to degrees.
        shifts: shifts of the grid along each axis, from -pixels to pixels.
        tries: random draws for each sample.
        at_once: candidates of a sample that are asked in one go; a success among them costs them all.
    """

    search_by: str = "grid"
    angles: int = 31
    shifts: int = 5
    tries: int = 10
    at_once: int = 5

    def search(self, run: Run) -> None:
        """Ask about one handful after the other."""
        if min(self.angles, self.shifts, self.tries, self.at_once) < 1:
            raise InputError(f"{self} needs angles, shifts, tries and at_once of at least 1")
        if self.search_by == "grid":
            theta = self._grid(run)
        elif self.search_by == "random":
            draw = run.rng.uniform((self.tries, 3), ("pose", run.restart), -1.0, 1.0).to(run.x)
            theta = draw * run.space.reach(run.x)
        else:
            raise InputError(f"search_by is {self.search_by!r}; it must be 'grid' or 'random'")
        s = run.begin(Posed(run.x, theta))
        for t in run.steps(math.ceil(theta.shape[1] / self.at_once)):
            ask_all(run, run.space, s.theta[:, t * self.at_once : (t + 1) * self.at_once])

    def _grid(self, run: Run) -> Tensor:
        """Every pose but the picture's own, the smallest first, (m, k, 3)."""
        steps = (self.angles, self.shifts, self.shifts)
        ticks = [
            torch.linspace(-reach, reach, k) if k > 1 and reach > 0 else torch.zeros(1)
            for k, reach in zip(steps, run.space.reach(run.x).tolist(), strict=True)
        ]
        poses = torch.cartesian_prod(*ticks).to(run.x)
        poses = poses[run.space.size(poses) > 1e-6]
        poses = poses[run.space.size(poses).argsort(stable=True)]
        return poses.expand(len(run.x), -1, -1)


@attack(
    Card(
        name="rotation-translation-fo",
        title="Rotation and translation, by gradient steps",
        paper=PAPER,
        access=Access.GRADIENTS,
        spaces=("rotations",),
        cost="restarts x steps x (forward + backward)",
        domains=("image",),
        caveats="Far weaker than the grid, as the paper shows: over three parameters the loss is full of local maxima.",
        floor={},
    )
)
@dataclass(frozen=True, kw_only=True)
class RotationTranslationFO(Attack):
    """Sign steps on angle and shifts from a random pose, clipped to their limits.

    Args:
        steps: gradient steps per restart.
        step_size: the first step as a share of each limit; it falls to a tenth in a line.
        loss: what is climbed.
        restarts: random poses to start from.
    """

    steps: int = 20
    step_size: float = 0.25
    loss: str = "ce"
    restarts: int = 1

    def search(self, run: Run) -> None:
        """Climb."""
        loss, space = get_loss(self.loss), run.space
        reach = space.reach(run.x)
        theta = reach * run.rng.uniform((3,), ("pose", run.restart), -1.0, 1.0).to(run.x)
        s = run.begin(Posed(space.render(run.x, theta), theta))
        for t in run.steps(self.steps):
            slope = space.pull(run.x, s.theta, run.gradient(s.x, loss).grad)
            step = self.step_size * (1 - 0.9 * t / self.steps)
            s.theta = torch.clamp(s.theta + step * reach * slope.sign(), -reach, reach)
            s.x = space.render(run.x, s.theta)
