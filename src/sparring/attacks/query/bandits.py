"""Bandits: a gradient prior that is carried over time and shared by tiles, updated by two queries a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.gradient.parts import start_at
from sparring.attacks.query.noise import Noise
from sparring.attacks.query.parts import as_pictures, ask_several, budget, positive, project_several, spread
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# The paper's settings: image step as a share of eps, finite difference, prior's learning rate, exploration.
PAPER = {"linf": (0.2, 0.1, 100.0, 1.0), "l2": (0.1, 0.01, 0.1, 0.01)}


@dataclass
class Belief:
    """The point, (m, ...), the prior over its gradient, (m, c, th, tw), in Linf the log-odds of the sign, and directions."""

    x: Tensor
    prior: Tensor
    noise: Noise


@attack(
    Card(
        name="bandits",
        title="Bandits with time and data priors",
        paper="Ilyas, Engstrom and Madry 2019, Prior Convictions: Black-Box Adversarial Attacks with Bandits and Priors, "
        "arXiv:1807.07978",
        access=Access.SCORES,
        spaces=("linf", "l2"),
        cost="two queries a step",
        caveats="Its four step sizes were tuned on ImageNet networks; on others a tenfold change of `prior_rate` or "
        "`probe` can decide success. Square has nothing to tune.",
        floor={"linf": 0.7, "l2": 0.9},
    )
)
@dataclass(frozen=True, kw_only=True)
class Bandits(Attack):
    """Bandits: v is a belief about the gradient; q = v +- e u tells by two queries along which u to correct it.

    The estimate u (L(x + h q+ / |q+|) - L(x + h q- / |q-|)) / (h e) moves the prior by exponentiated gradients in Linf and
    by a plain step in L2; then x steps along the prior. The prior lives on tiles, spread to pixels without smoothing.

    Args:
        queries: queries per sample where the threat model names no number.
        tiles: the prior's side; at most half the picture's.
        step: the image step, as a share of eps; None takes the paper's .2 in Linf and .1 in L2.
        probe: h, the Euclidean length of a query's step, in units of the victim's range; None takes .1 and .01.
        prior_rate: the prior's learning rate; None takes 100 and .1.
        exploration: e, the size of u beside the prior; None takes 1 and .01.
        loss: what to climb.
    """

    queries: int = 10_000
    tiles: int = 50
    step: float | None = None
    probe: float | None = None
    prior_rate: float | None = None
    exploration: float | None = None
    loss: str = "ce"

    def search(self, run: Run) -> None:
        """Probe the belief, correct it, and step along it."""
        own = (self.step, self.probe, self.prior_rate, self.exploration)
        step, probe, rate, explore = (a if b is None else b for a, b in zip(PAPER[run.space.name], own, strict=True))
        positive(tiles=self.tiles, step=step, probe=probe, prior_rate=rate, exploration=explore)
        count, loss = budget(run, self.queries), get_loss(self.loss)
        bounded = run.space.name == "linf"
        _, c, h, w = as_pictures(run.x).shape
        tile = (c, *(max(1, min(self.tiles, side // 2)) for side in (h, w)))
        zero = run.x.new_zeros(len(run.x), *tile)
        s = run.begin(Belief(start_at(run, random=False), zero, Noise.of(run)))
        for _ in run.steps(-(-count // 2)):
            u = s.noise.normal(s.prior) / (c * tile[1] * tile[2]) ** 0.5
            v = s.prior.tanh() if bounded else s.prior
            beliefs = torch.stack([v + explore * u, v - explore * u], dim=1).flatten(0, 1)
            both = _unit(spread(beliefs, run.x)).reshape(len(u), 2, *run.x.shape[1:])
            value = ask_several(
                run, project_several(run, both.mul_(probe * run.width).add_(s.x[:, None])), loss
            ).value.nan_to_num(nan=0.0)
            slope = ((value[:, 0] - value[:, 1]) / (probe * explore))[:, None, None, None]
            # with v = tanh(z) the exponentiated gradient v <- (p e^{rg} - q e^{-rg}) / (p e^{rg} + q e^{-rg}) is z <- z + r g
            s.prior = s.prior + rate * slope * explore * u
            v = s.prior.tanh() if bounded else s.prior
            length = per_sample(step * run.space.eps, run.x)
            s.x = run.space.project(run.x, s.x + length * run.space.steepest(spread(v, run.x)))


def _unit(x: Tensor) -> Tensor:
    """x at Euclidean norm 1; zero where it is zero."""
    return x / per_sample(torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=1e-12), x)
