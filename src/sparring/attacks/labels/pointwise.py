"""Pointwise clean-up: put elements back to the original while the point stays adversarial."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.labels.parts import crosses, first_points, to_boundary
from sparring.core.attack import Attack
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Cleaning:
    """The adversarial point, the order of its elements, the block's size and place, and whether the sweep helped."""

    x: Tensor
    order: Tensor
    block: Tensor
    place: Tensor
    helped: Tensor


@attack(
    Card(
        name="pointwise",
        title="Pointwise clean-up of a far adversarial point",
        paper="Schott, Rauber, Bethge and Brendel 2019, Towards the First Adversarially Robust Neural Network "
        "Model on MNIST, arXiv:1805.09190",
        access=Access.LABELS,
        spaces=("l0", "l1", "l2"),
        minimal=True,
        cost="about one query for each changed element and sweep",
        caveats="A local optimum of the start it is given. Better starts: Knowledge(starts=...) from another attack.",
        floor={"l0": 7.0, "l1": 1.4, "l2": 0.7},
    )
)
@dataclass(frozen=True, kw_only=True)
class Pointwise(Attack):
    """Sweep over the changed elements in a random order of each sample's own; blocks that can go back, go back.

    Blocks halve from sweep to sweep, so that the first sweeps clear much with few queries; the last ones go element by
    element, and repeat until nothing more goes back.

    Args:
        steps: queries per sample at most.
        tries: random points asked for a first adversarial one.
        coarsest: the first block, as a share of the elements.
    """

    steps: int = 5000
    tries: int = 100
    coarsest: float = 0.125

    def search(self, run: Run) -> None:
        """Find a start, clean it up."""
        start, found = first_points(run, self.tries)
        run.give_up(~found)
        start = to_boundary(run, start, start.new_full((len(start),), 1e-3), found)
        m, d = len(start), math.prod(run.x.shape[1:])
        zeros = torch.zeros(m, dtype=torch.int64, device=start.device)
        order = run.rng.permutation(d, ("order", run.restart))
        coarse = zeros + max(1, round(self.coarsest * d))
        s = run.begin(Cleaning(start, order, coarse, zeros, zeros.bool()))
        for _ in run.steps(self.steps):
            self._skip_clean(run, s, d)
            back = self._block_mask(s, d).reshape(run.x.shape)
            point = torch.where(back, run.x, s.x)
            rows = (point != s.x).flatten(1).any(1).nonzero().squeeze(1)
            if len(rows):
                hit, _ = crosses(run, point[rows], rows)
                s.x[rows[hit]] = point[rows[hit]]
                s.helped[rows[hit]] = True
            s.place = s.place + s.block
            done = s.place >= d
            # element by element, a sweep that put nothing back is the last
            run.give_up(done & (s.block == 1) & ~s.helped)
            s.block = torch.where(done, (s.block // 2).clamp(min=1), s.block)
            s.helped = s.helped & ~done
            s.place = torch.where(done, torch.zeros_like(s.place), s.place)

    @staticmethod
    def _block_mask(s: Cleaning, d: int) -> Tensor:
        """Bool (m, d): the elements of each sample's current block."""
        position = torch.arange(d, device=s.x.device)
        here = (position >= s.place[:, None]) & (position < (s.place + s.block)[:, None])
        return torch.zeros(len(s.x), d, dtype=torch.bool, device=s.x.device).scatter_(1, s.order, here)

    @staticmethod
    def _skip_clean(run: Run, s: Cleaning, d: int) -> None:
        """Move each sample's place to its next changed element, so that no step is spent on what is back already."""
        changed = (s.x != run.x).flatten(1).gather(1, s.order)
        position = torch.arange(d, device=s.x.device)
        ahead = changed & (position >= s.place[:, None])
        first = torch.where(ahead, position, d).amin(1)
        s.place = torch.where(first < d, first, s.place)
