"""SimBA: one orthonormal direction at a time, up or down, kept when the true class loses."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.query.parts import as_pictures, bar, budget, lowest, positive, scores_of, span
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Walk:
    """The best point and its bar; the order of directions, how far along it each sample is, and whether it tried up.

    Attributes:
        x: (m, ...).
        bar: the loss that a better point must exceed, (m,).
        order: directions by number, int64 (m, d).
        at: the position in the order, int64 (m,).
        tried: whether the upward step of this direction was refused, bool (m,).
    """

    x: Tensor
    bar: Tensor
    order: Tensor
    at: Tensor
    tried: Tensor


@attack(
    Card(
        name="simba",
        title="SimBA: simple black-box attack over pixels or cosines",
        paper="Guo, Gardner, You, Wilson and Weinberger 2019, Simple Black-box Adversarial Attacks, arXiv:1905.07121",
        access=Access.SCORES,
        spaces=("l2", "linf"),
        cost="one query, then one or two for each direction",
        caveats="Made for small Euclidean changes without a limit: inside a small Linf ball each step is cut to eps and "
        "Square needs a tenth of the queries.",
        floor={"l2": 0.9, "linf": 0.9},
    )
)
@dataclass(frozen=True, kw_only=True)
class SimBA(Attack):
    """SimBA: x + a q for the next direction q of an orthonormal basis, else x - a q, kept if the loss rises.

    Args:
        queries: queries per sample where the threat model names no number.
        step: a, as a share of the victim's range.
        basis: "dct" takes cosines from low frequencies to high ones, "pixel" single elements in random order.
        frequencies: the share of each side's frequencies that come first in "dct"; later ones follow in bands of a
            quarter of it.
        loss: what to raise; the log-odds order points as the paper's class probability does, without saturating.
    """

    queries: int = 10_000
    step: float = 0.2
    basis: str = "dct"
    frequencies: float = 1 / 8
    loss: str = "log_odds"

    def search(self, run: Run) -> None:
        """Step along one direction after another."""
        positive(step=self.step, frequencies=self.frequencies)
        if self.basis not in ("dct", "pixel"):
            raise InputError(f'basis is {self.basis!r}; it must be "dct" or "pixel"')
        count, loss = budget(run, self.queries), get_loss(self.loss)
        lo, hi = span(run)
        length = self.step * (hi - lo)
        order = self._order(run)
        none = torch.zeros(len(run.x), dtype=torch.int64, device=run.x.device)
        s = run.begin(Walk(run.x.clone(), lowest(run.x), order, none, none.bool()))
        for t in run.steps(count):
            point = s.x.clone()
            if t:
                number = s.order.gather(1, s.at[:, None] % s.order.shape[1]).squeeze(1)
                q = self._direction(run, number, torch.where(s.tried, -1.0, 1.0).to(s.x.dtype)) * length
                point = run.space.project(run.x, s.x + q)
                idle = (
                    (point - s.x).flatten(1).abs().amax(1) == 0
                ) & ~s.tried  # at the edge of the bounds: down at once
                if bool(idle.any()):
                    point = torch.where(per_sample(idle, q), run.space.project(run.x, s.x - q), point)
                    s.tried = s.tried | idle
            answer, _ = run.ask(point)
            scores = scores_of(answer)
            value = loss(scores, run.y, run.goal)
            gain = value > s.bar
            rows = gain.nonzero().squeeze(1)
            s.x.index_copy_(0, rows, point[rows])
            s.bar.index_copy_(0, rows, bar(value[rows], scores[rows]).to(s.bar.dtype))  # some victims answer float64
            if t:
                done = gain | s.tried
                s.at, s.tried = s.at + done.long(), ~done

    def _order(self, run: Run) -> Tensor:
        """The directions of each sample in the order they are tried, int64 (m, d)."""
        d = run.x[0].numel()
        if self.basis == "pixel":
            return run.rng.permutation(d, "order")
        _, c, h, w = as_pictures(run.x).shape
        band = torch.maximum(_band(h, self.frequencies)[:, None], _band(w, self.frequencies)[None, :])
        key = band.to(run.x.device).expand(c, h, w).reshape(-1) * 2**32 + run.rng.words(d, "order").long()
        return key.argsort(dim=1, stable=True)

    def _direction(self, run: Run, number: Tensor, sign: Tensor) -> Tensor:
        """The basis vectors of these numbers, of unit norm and these signs, (m, ...)."""
        if self.basis == "pixel":
            return torch.zeros_like(run.x).flatten(1).scatter_(1, number[:, None], sign[:, None]).reshape(run.x.shape)
        _, c, h, w = as_pictures(run.x).shape
        down = cosines(h).to(run.x)[number // w % h]
        across = cosines(w).to(run.x)[number % w] * sign[:, None]
        wave = down[:, None, :, None] * across[:, None, None, :]
        channel = torch.arange(c, device=number.device) == (number // (h * w))[:, None]
        return (wave * channel[..., None, None]).reshape(run.x.shape)


def _band(side: int, share: float) -> Tensor:
    """The band of each frequency of a side: 0 for the first `share` of them, then one for each quarter of it."""
    first = max(1, round(side * share))
    width = max(1, round(side * share / 4))
    return ((torch.arange(side) - first).clamp(min=-1) // width + 1).clamp(min=0)


@functools.lru_cache(maxsize=16)
def cosines(side: int) -> Tensor:
    """The orthonormal cosine basis of one side (DCT-II), a row for each frequency, (side, side)."""
    at = (torch.arange(side, dtype=torch.float64) + 0.5) * math.pi / side
    rows = torch.cos(torch.arange(side, dtype=torch.float64)[:, None] * at)
    rows[0] *= math.sqrt(0.5)
    return (rows * math.sqrt(2.0 / side)).float()
