"""RayS: search the vertices of the cube for the direction whose ray meets the boundary soonest, block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.labels.parts import crosses, halve
from sparring.attacks.query.parts import clamp_
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.batch import pick
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Ray:
    """The best direction's signs, its radius, and the adversarial point there: (m, ...), (m,), (m, ...)."""

    x: Tensor
    signs: Tensor
    radius: Tensor


@attack(
    Card(
        name="rays",
        title="RayS: the nearest ray to a vertex of the cube",
        paper="Chen and Gu 2020, RayS: A Ray Searching Method for Hard-label Adversarial Attack, arXiv:2006.12792",
        access=Access.LABELS,
        spaces=("linf",),
        goals=("untargeted",),
        minimal=True,
        cost="1 query for a flip that does not help, about 10 for one that does",
        caveats="The direction has equal signs over blocks: a boundary seen only through fine texture is found late.",
        floor={"linf": 0.1},
    )
)
@dataclass(frozen=True, kw_only=True)
class RayS(Attack):
    """RayS: flip the signs of ever smaller blocks of the direction, and keep a flip whose ray is shorter.

    Args:
        steps: flips tried per sample.
        tolerance: the radius at which a halving ends, as a share of the bounds' span.
    """

    steps: int = 1000
    tolerance: float = 1e-3

    def search(self, run: Run) -> None:
        """Every sample walks the same plan of blocks, each with its own signs."""
        bounds = run.space.bounds
        span = float((bounds.hi - bounds.lo).amax()) if bounds is not None else 1.0
        d = math.prod(run.x.shape[1:])
        signs = torch.ones_like(run.x)
        s = run.begin(Ray(run.x.clone(), signs, run.x.new_full((len(run.x),), math.inf)))
        self._shorten(run, s, s.signs, span)
        level, block = 0, 0
        for _ in run.steps(self.steps):
            size = math.ceil(d / 2**level)
            flipped = s.signs.flatten(1).clone()
            flipped[:, block * size : (block + 1) * size] *= -1
            self._shorten(run, s, flipped.reshape(s.signs.shape), span)
            block += 1
            if block * size >= d:
                level, block = (level + 1 if size > 1 else 0), 0

    def _shorten(self, run: Run, s: Ray, signs: Tensor, span: float) -> None:
        """Keep `signs` for the samples whose ray along them is shorter, and find its length by halving."""

        def at(radius: Tensor, rows: Tensor | None = None) -> Tensor:
            x, way = pick(run.x, rows), pick(signs, rows)
            return clamp_(run, torch.addcmul(x, per_sample(radius.to(x.dtype), x), way))

        hi = torch.where(torch.isinf(s.radius), torch.full_like(s.radius, span), s.radius)
        hit, _ = crosses(run, at(hi))  # the fast check: does the new ray cross inside the best radius?
        width = self.tolerance * span
        halve(run, at, torch.zeros_like(hi), hi, hit, lambda low, high: high - low > width)
        rows = hit.nonzero().squeeze(1)
        if len(rows):
            s.signs = s.signs.index_copy(0, rows, pick(signs, rows))
            s.radius = torch.where(hit, hi, s.radius)
            s.x = s.x.index_copy(0, rows, at(hi[rows], rows))
