"""Recolouring: one smooth map of colour space for the whole picture, found by its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import Adam, cosine
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access
from sparring.images.rendering import broadcast


@dataclass
class Recoloured:
    """The picture, the moves of the grid's nodes, (m, 3, r, r, r), and their moments."""

    x: Tensor
    move: Tensor
    adam: Adam


@attack(
    Card(
        name="recolor",
        title="ReColorAdv: an adversarial map of colours",
        paper="Laidlaw and Feizi 2019, Functional Adversarial Attacks, arXiv:1906.00001",
        access=Access.GRADIENTS,
        spaces=("colour_map",),
        cost="restarts x steps x (forward + backward)",
        domains=("image",),
        caveats="The grid lies in red, green and blue; the paper's main results are in CIELUV, where equal moves look more equal. "
        "Smoothness between nodes is in the loss alone; the grid's resolution is what the space enforces.",
        floor={},
        aliases=("recoloradv",),
    )
)
@dataclass(frozen=True, kw_only=True)
class ReColorAdv(Attack):
    """Climb the margin over the moves of the grid's nodes, each within eps, with a price on unlike neighbours.

    The price is ``smoothness`` times the sum of |theta_i - theta_j|^2 over neighbouring nodes i, j and channels, with
    theta in units of eps.

    Args:
        steps: gradient steps per restart.
        step_size: Adam's rate as a share of eps; it anneals to a tenth.
        smoothness: the price, against the margin in units of the scores.
        restarts: the first starts from no change, the others from random maps.
    """

    steps: int = 100
    step_size: float = 0.1
    smoothness: float = 0.001
    restarts: int = 1

    def search(self, run: Run) -> None:
        """Climb."""
        if self.smoothness < 0:
            raise InputError(f"{self} needs steps >= 1, step_size > 0 and smoothness >= 0")
        loss, move = get_loss("margin"), run.space.blank(run.x)
        if run.restart:
            draw = run.rng.uniform(tuple(move.shape[1:]), ("map", run.restart), -1.0, 1.0).to(move)
            move = draw * broadcast(run.space.limit, move)
        s = run.begin(Recoloured(run.space.render(run.x, move), move, Adam.start(move)))
        for t in run.steps(self.steps):
            g = run.gradient(s.x, loss)
            eps = per_sample(run.space.limit, s.move)
            slope = -run.space.pull(run.x, s.move, g.grad) * eps  # in units of eps, as the price is
            slope = slope + self.smoothness * _unlike(s.move / eps.clamp(min=1e-12))
            rate = cosine(self.step_size, self.step_size / 10, t, self.steps)
            s.move = torch.clamp(s.move + eps * s.adam.step(slope, rate), -eps, eps)
            s.x = run.space.render(run.x, s.move)


def _unlike(move: Tensor) -> Tensor:
    """The slope of the sum of squared differences between neighbouring nodes, shaped like `move`."""
    slope = torch.zeros_like(move)
    for axis in (2, 3, 4):
        step = 2 * move.diff(dim=axis)
        size = move.shape[axis]
        slope.narrow(axis, 1, size - 1).add_(step)
        slope.narrow(axis, 0, size - 1).sub_(step)
    return slope
