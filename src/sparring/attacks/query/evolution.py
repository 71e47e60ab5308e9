"""Evolution of a real picture: an evolution strategy over a coarse change of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.gradient.parts import start_at
from sparring.attacks.query.noise import Noise
from sparring.attacks.query.parts import (
    as_pictures,
    ask_several,
    bar,
    budget,
    loss_for,
    lowest,
    positive,
    project_several,
    spread,
)
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Parent:
    """The fittest change so far.

    Attributes:
        x: the picture with it, (m, ...).
        genes: the change before squashing, (m, c, h', w').
        bar: the loss that a child must exceed, (m,).
        step: the mutations' standard deviation, (m,).
        base: the picture that it changes, (m, ...).
        noise: where mutations come from.
    """

    x: Tensor
    genes: Tensor
    bar: Tensor
    step: Tensor
    base: Tensor
    noise: Noise


@attack(
    Card(
        name="evolution",
        title="Evolution strategy over a coarse change of a real picture",
        paper="Meunier, Atif and Teytaud 2019, Yet Another but More Efficient Black-box Adversarial Attack: Tiling and "
        "Evolution Strategies, arXiv:1910.02244; the step rule after Rechenberg 1973",
        access=Access.SCORES,
        spaces=("linf", "l2"),
        cost="one query for each child",
        caveats="A change of few tiles is quickly evolved and coarse to look at; where fine texture decides, raise "
        "`tiles`.",
        floor={"linf": 0.8, "l2": 0.9},
    )
)
@dataclass(frozen=True, kw_only=True)
class Evolution(Attack):
    """A (1 + lambda) strategy: the fittest of lambda normal mutations replaces its parent if the loss rises.

    In Linf a gene z stands for a change eps tanh(z), in L2 for a direction on the sphere; each gene colours one tile. The
    step grows by e^(.8 / s) on success and shrinks by e^(-.2 / s) otherwise, so that about one generation in five
    succeeds. With starts in the threat's knowledge it evolves those, inside the ball around the input.

    Args:
        queries: queries per sample where the threat model names no number.
        children: lambda.
        tiles: genes on each side; at most half the picture's side.
        step: the first mutations' standard deviation.
        damping: s above.
        loss: the fitness; None takes the margin for untargeted goals and cross-entropy for targeted ones.
    """

    queries: int = 10_000
    children: int = 1
    tiles: int = 50
    step: float = 1.0
    damping: float = 8.0
    loss: str | None = None

    def search(self, run: Run) -> None:
        """Mutate, ask, and keep the fittest."""
        positive(step=self.step, damping=self.damping)
        if self.children < 1 or self.tiles < 1:
            raise InputError(f"children is {self.children} and tiles is {self.tiles}; at least one of each is needed")
        count, loss = budget(run, self.queries), loss_for(run, self.loss)
        c, h, w = as_pictures(run.x).shape[1:]
        shape = (c, *(max(1, min(self.tiles, side // 2)) for side in (h, w)))
        noise, base = Noise.of(run), start_at(run, random=False)
        genes = noise.normal(run.x.new_empty(len(run.x), *shape))
        s = run.begin(Parent(base, genes, lowest(run.x), run.x.new_full((len(run.x),), self.step), base, noise))
        for t in run.steps(1 + -(-max(0, count - 1) // self.children)):
            litter = s.genes[:, None]
            if t:
                mutation = s.noise.normal(s.genes, self.children)
                litter = litter + mutation * per_sample(s.step, mutation)
            pictures = _render(run, s.base, litter)
            value, scores = ask_several(run, pictures, loss)
            best, which = value.nan_to_num(nan=torch.finfo(s.bar.dtype).min).max(1)
            rose = best > s.bar
            rows = rose.nonzero().squeeze(1)
            fittest = which[rows]
            s.genes = s.genes.index_copy(0, rows, litter[rows, fittest])
            s.x = s.x.index_copy(0, rows, pictures[rows, fittest])
            s.bar = s.bar.index_copy(0, rows, bar(best[rows], scores[rows, fittest]).to(s.bar.dtype))
            if t:
                wider, narrower = math.exp(0.8 / self.damping), math.exp(-0.2 / self.damping)
                s.step = torch.where(rose, s.step * wider, s.step * narrower)


def _render(run: Run, base: Tensor, genes: Tensor) -> Tensor:
    """The pictures (m, j, ...) of changes (m, j, c, h', w')."""
    tiles = genes.flatten(0, 1)
    tiles = tiles.tanh() if run.space.name == "linf" else tiles
    change = spread(tiles, run.x).reshape(*genes.shape[:2], *run.x.shape[1:])
    if run.space.name == "l2":
        change = run.space.steepest(change.flatten(0, 1)).reshape(change.shape)
    return project_several(run, base[:, None] + change * per_sample(run.space.eps, change))
