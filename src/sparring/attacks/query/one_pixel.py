"""One-pixel and few-pixel attack: differential evolution over where pixels stand and what colours they take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.query.parts import as_pictures, ask_several, budget, positive, span
from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# Candidates asked at once for each sample; a success ends the sample before the next of them.
TOGETHER = 20


@dataclass
class Herd:
    """A population of candidates for each sample, each of them k pixels as (down, across, colours) in [0, 1].

    Attributes:
        x: the best candidate as a picture, (m, ...).
        genes: (m, population, k, 2 + c).
        fitness: (m, population).
        children: the candidates being asked, as `genes`.
        result: their fitness, as far as it is known, (m, population).
    """

    x: Tensor
    genes: Tensor
    fitness: Tensor
    children: Tensor
    result: Tensor


@attack(
    Card(
        name="one-pixel",
        title="One-pixel attack: differential evolution over few pixels",
        paper="Su, Vargas and Sakurai 2019, One Pixel Attack for Fooling Deep Neural Networks, arXiv:1710.08864",
        access=Access.SCORES,
        spaces=("l0",),
        cost="`population` queries a generation",
        caveats="For a handful of pixels: with ten or more Sparse-RS finds them with far fewer queries. One pixel is "
        "enough on small pictures only.",
        floor={"l0": 0.9},
        aliases=("few-pixel",),
    )
)
@dataclass(frozen=True, kw_only=True)
class OnePixel(Attack):
    """Differential evolution: a child is a + F (b - c) for three members a, b, c, and replaces its parent if it is fitter.

    `L0(k, pixels=True)` allows k pixels in all channels; `L0(k)` k single elements. Positions wrap around the picture's
    edges, colours stop at the bounds.

    Args:
        queries: queries per sample where the threat model names no number; the default is the paper's hundred
            generations.
        population: members; None takes the paper's 400, or a twentieth of the budget where that is less.
        weight: F. The paper's 0.5 draws the members together before they have found the place: it needs twice the queries.
        best: take the fittest member for a, as most implementations do; False takes a random one, as the paper does.
        loss: the fitness; cross-entropy orders candidates as the paper's class probability does.
    """

    queries: int = 40_400
    population: int | None = None
    weight: float = 0.8
    best: bool = True
    loss: str = "ce"

    def search(self, run: Run) -> None:
        """Ask about one generation after another."""
        positive(weight=self.weight)
        count, loss = budget(run, self.queries), get_loss(self.loss)
        size = min(400, max(10, count // 20)) if self.population is None else self.population
        if size < 4:
            raise InputError(f"population is {size}; at least 4 members are needed, since a child has three parents")
        most = max(1, int(_allowed(run).max()))
        genes = _first(run, most, size)
        low = run.x.new_full((len(run.x), size), torch.finfo(run.x.dtype).min)
        s = run.begin(Herd(run.x.clone(), genes, low, genes, low))
        run.give_up(_allowed(run) == 0)
        for t in run.steps(-(-count // size)):
            s.children = s.genes if t == 0 else self._breed(run, s, t)
            s.result = torch.full_like(s.result, torch.finfo(s.result.dtype).min)
            for lo in range(0, size, TOGETHER):
                run.shrink()
                if not len(run.rows):
                    return
                value = ask_several(run, _paint(run, s.children[:, lo : lo + TOGETHER]), loss).value
                s.result[:, lo : lo + TOGETHER] = value.nan_to_num(nan=torch.finfo(value.dtype).min)
            fitter = s.result > s.fitness
            s.genes = torch.where(fitter[..., None, None], s.children, s.genes)
            s.fitness = torch.where(fitter, s.result, s.fitness)
            first = s.fitness.argmax(1)
            s.x = _paint(run, s.genes[torch.arange(len(first), device=first.device), first][:, None])[:, 0]

    def _breed(self, run: Run, s: Herd, t: int) -> Tensor:
        """The children of this generation, as `genes`."""
        size = s.genes.shape[1]
        words = run.rng.integers((3, size), ("parents", t), 2**30)
        a, b, c = ((words[:, i] * (size - i)) >> 30 for i in range(3))
        if self.best:
            a = s.fitness.argmax(1, keepdim=True).expand_as(b)
        b = b + (b >= a)  # three different members
        least, most = torch.minimum(a, b), torch.maximum(a, b)
        c = c + (c >= least)
        c = c + (c >= most)
        row = torch.arange(len(a), device=a.device)[:, None]
        child = s.genes[row, a] + self.weight * (s.genes[row, b] - s.genes[row, c])
        return torch.cat([child[..., :2] % 1.0, child[..., 2:].clamp(0.0, 1.0)], dim=3)


def _pixels(run: Run) -> Tensor:
    """Inputs as pictures, (m, c, h, w), whose pixels change in all channels at once."""
    x = as_pictures(run.x)
    return x if run.space.pixels and run.x.ndim > 2 else x.reshape(len(x), 1, -1, x.shape[3])


def _allowed(run: Run) -> Tensor:
    """How many pixels may change, int64 (m,)."""
    return run.space.eps.floor().clamp(max=_pixels(run)[0, 0].numel()).long()  # type: ignore[no-any-return]


def _first(run: Run, most: int, size: int) -> Tensor:
    """The first generation: uniform places, normal colours around the middle of the range (Su 2019, section 3.4).

    They spread thrice as wide as the paper's, so that most stand at the ends of the range, where colours fool most.
    """
    c = _pixels(run).shape[1]
    place = run.rng.uniform((most, size, 2), "place")
    even = run.rng.uniform((most, size, c), "colour", 1e-6, 1.0)
    colour = 0.5 + 1.5 * math.sqrt(2.0) * torch.erfinv(2 * even - 1)
    return torch.cat([place, colour.clamp(0.0, 1.0)], dim=3).transpose(1, 2).to(run.x.dtype)


def _paint(run: Run, genes: Tensor) -> Tensor:
    """The pictures of candidates (m, j, k, 2 + c): (m, j, ...). The first of two pixels at one place wins."""
    x = _pixels(run)
    m, c, h, w = x.shape
    j, k = genes.shape[1:3]
    lo, hi = (bound.reshape(c, h * w) for bound in span(run))
    down = (genes[..., 0] * h).long().clamp(max=h - 1)
    place = down * w + (genes[..., 1] * w).long().clamp(max=w - 1)
    number = torch.arange(k, device=genes.device)
    # pixels past a sample's own number, and those on another's place, stand in for the first of their kind
    first = (place[..., :, None] == place[..., None, :]).long().argmax(3)
    source = torch.where(number < _allowed(run)[:, None, None], first, first[..., :1])
    place = place.gather(2, source)[:, :, None].expand(-1, -1, c, -1)
    shade = genes[..., 2:].gather(2, source[..., None].expand(-1, -1, -1, c)).transpose(2, 3)
    low, high = (bound.expand(m, j, -1, -1).gather(3, place) for bound in (lo, hi))
    canvas = x.flatten(2)[:, None].expand(-1, j, -1, -1)
    return canvas.scatter(3, place, low + shade * (high - low)).reshape(m, j, *run.x.shape[1:])
