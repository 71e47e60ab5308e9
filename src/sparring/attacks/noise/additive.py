"""Uniform and Gaussian noise of a given norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Draw:
    """The current draw, (m, ...)."""

    x: Tensor


def _try_draws(run: Run, draws: int, draw: Callable[[int], Tensor]) -> None:
    """Ask about one draw after another."""
    if draws < 1:
        raise InputError(f"draws is {draws}; at least one is needed")
    s = run.begin(Draw(run.x.clone()))
    for t in run.steps(draws):
        s.x = draw(t)
        run.ask(s.x)


@attack(
    Card(
        name="uniform-noise",
        title="Uniform noise in the ball",
        paper="the baseline; in L1 and L2 after Barthe et al. 2005, A Probabilistic Approach to the Geometry of "
        "the l_p^n-Ball",
        access=Access.LABELS,
        spaces=("linf", "l2", "l1", "l0"),
        cost="draws forwards",
        caveats="A victim that random noise breaks needs no attack; one that it does not break may still fall at once.",
        floor={"linf": 0.0, "l2": 0.0, "l1": 0.0, "l0": 0.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class UniformNoise(Attack):
    """Random points of the ball, until one succeeds.

    Args:
        draws: at most so many points.
    """

    draws: int = 1

    def search(self, run: Run) -> None:
        """Draw and ask."""
        _try_draws(run, self.draws, lambda t: run.space.sample(run.x, run.rng, ("noise", t)))


@attack(
    Card(
        name="gaussian-noise",
        title="Gaussian noise scaled to the ball",
        paper="the baseline, as in Hendrycks and Dietterich 2019, arXiv:1903.12261",
        access=Access.LABELS,
        spaces=("linf", "l2", "l1"),
        cost="draws forwards",
        caveats="As for uniform noise.",
        floor={"linf": 0.0, "l2": 0.0, "l1": 0.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Attack):
    """Normal directions: in L2 and L1 stretched to the ball's surface, in Linf of deviation eps / 2 and cut at eps.

    Args:
        draws: at most so many points.
    """

    draws: int = 1

    def search(self, run: Run) -> None:
        """Draw and ask."""

        def draw(t: int) -> Tensor:
            noise = run.rng.normal(tuple(run.x.shape[1:]), ("noise", t)).to(run.x.dtype)
            eps = run.space.eps.reshape(-1, *([1] * (run.x.ndim - 1)))
            if math.isinf(run.space.p):
                step = noise * (eps / 2)
            else:
                norm = run.space.distance(noise).reshape(eps.shape).clamp(min=1e-12)
                step = noise / norm * eps
            return run.space.project(run.x, run.x + step)  # type: ignore[no-any-return]

        _try_draws(run, self.draws, draw)
