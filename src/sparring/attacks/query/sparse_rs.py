"""Sparse-RS: random search over which few pixels change, and to which corner of the colour cube."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.query.parts import bar, budget, loss_for, lowest, positive, scores_of, span
from sparring.core.attack import Attack
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# Swaps are drawn for so many steps at once.
AHEAD = 16
# From these steps of 10,000 on, the share of pixels that swap is divided by these numbers.
SCHEDULE = ((1, 2), (51, 4), (201, 5), (501, 6), (1001, 8), (2001, 10), (4001, 12), (6001, 15), (8001, 20))


@dataclass
class Walk:
    """The best point so far and its bar; the pixels of each sample, of which the first k are changed; coming swaps.

    Attributes:
        x: (m, ...).
        bar: the loss that a better point must exceed, (m,).
        order: a permutation of the pixels, int64 (m, P).
        words: random words below 2^30, int64 (m, e, AHEAD, 4).
    """

    x: Tensor
    bar: Tensor
    order: Tensor
    words: Tensor


@attack(
    Card(
        name="sparse-rs",
        title="Sparse-RS: random search over few pixels",
        paper="Croce, Andriushchenko, Singh, Flammarion and Hein 2022, Sparse-RS: a Versatile Framework for "
        "Query-Efficient Sparse Black-Box Adversarial Attacks, arXiv:2006.12834",
        access=Access.SCORES,
        spaces=("l0",),
        cost="one query a step, at most the budget",
        caveats="It sets pixels to the corners of the colour cube, and uses all that eps allows: it does not look for "
        "fewer pixels or for unobtrusive ones.",
        floor={"l0": 0.9},
    )
)
@dataclass(frozen=True, kw_only=True)
class SparseRS(Attack):
    """Sparse-RS: k pixels stand at corners of the colour cube; some of them swap with others, and gains are kept.

    With `L0(k, pixels=True)` a pixel changes in all channels at once; with `L0(k)` single elements change.

    Args:
        queries: queries per sample where the threat model names no number; the schedule stretches over them.
        share: alpha, the share of the k pixels that swap in the first steps; the paper takes .3, and .1 for targets.
        loss: what to raise; None takes the margin for untargeted goals and cross-entropy for targeted ones.
    """

    queries: int = 10_000
    share: float = 0.3
    loss: str | None = None

    def search(self, run: Run) -> None:
        """Swap pixels, ask, and keep what raises the loss."""
        positive(share=self.share)
        count, loss = budget(run, self.queries), loss_for(run, self.loss)
        start, order = _start(run)
        s = run.begin(Walk(start, lowest(run.x), order, order.new_zeros(len(order), 1, AHEAD, 4)))
        run.give_up(_allowed(run) == 0)
        for t in run.steps(count):
            if t == 0:
                point, swap = s.x.clone(), None
            else:
                moving = self._moving(run, t, count)
                if t == 1 or t % AHEAD == 0:
                    s.words = run.rng.integers((int(moving.max()), AHEAD, 4), ("swap", t // AHEAD), 2**30)
                swap = _draw_swap(run, s, moving, t % AHEAD)
                point = _recolour(run, s, swap)
            answer, _ = run.ask(point)
            scores = scores_of(answer)
            value = loss(scores, run.y, run.goal)
            rows = (value > s.bar).nonzero().squeeze(1)
            if len(rows):
                s.x.index_copy_(0, rows, point[rows])
                s.bar.index_copy_(0, rows, bar(value[rows], scores[rows]))
                if swap is not None:
                    out, into = swap.out[rows], swap.into[rows]
                    kept = s.order[rows]
                    leaves, enters = kept.gather(1, out), kept.gather(1, into)
                    s.order.index_copy_(0, rows, kept.scatter(1, out, enters).scatter(1, into, leaves))

    def _moving(self, run: Run, t: int, count: int) -> Tensor:
        """How many pixels of each sample swap at step t, int64 (m,); at least one, and no more than stand outside."""
        at = int((t - 1) / count * 10_000)
        share = self.share / next((part for first, part in reversed(SCHEDULE) if at >= first), 1)
        allowed = _allowed(run)
        outside = _pixels(run) - allowed
        moving = torch.minimum((share * allowed).long().clamp(min=1), allowed)
        return torch.where(outside > 0, torch.minimum(moving, outside), moving)


@dataclass
class Swap:
    """Places in the order that leave the changed set and that enter it, and the corners of those that enter.

    Attributes:
        out, into: int64 (m, e); where a sample swaps fewer than e, its first pair stands in for the rest.
        corner, other: a colour's number and one that differs from it, int64 (m, e).
    """

    out: Tensor
    into: Tensor
    corner: Tensor
    other: Tensor


def _pixels(run: Run) -> int:
    """How many positions an input has."""
    return math.prod(run.x.shape[2:] if run.space.pixels and run.x.ndim > 2 else run.x.shape[1:])


def _allowed(run: Run) -> Tensor:
    """How many of them may change, int64 (m,)."""
    return run.space.eps.floor().clamp(max=_pixels(run)).long()  # type: ignore[no-any-return]


def _flat(run: Run, x: Tensor) -> Tensor:
    """Inputs as (m, c, P): one row for each channel of a pixel, one row in all where elements change singly."""
    return x.reshape(len(x), -1, _pixels(run))


def _start(run: Run) -> tuple[Tensor, Tensor]:
    """k random pixels at random corners, and the order that tells which."""
    order = run.rng.permutation(_pixels(run), "place")
    k = _allowed(run)
    most = max(1, int(k.max()))
    words = run.rng.integers((most, 2), "colour", 2**30)
    c = _flat(run, run.x).shape[1]
    place = order[:, :most]
    corner, other = _corner_numbers(words[..., 0], words[..., 1], c)
    value = _colours(run, place, corner, other)
    x = _flat(run, run.x)
    index = place[:, None].expand(-1, c, -1)
    standing = torch.arange(most, device=k.device) < k[:, None]
    value = torch.where(standing[:, None], value, x.gather(2, index))
    return x.scatter(2, index, value).reshape(run.x.shape), order


def _corner_numbers(first: Tensor, second: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """Random corners of the colour cube, one bit a channel, and others that differ from them."""
    bits = min(c, 30)
    corner = first & (2**bits - 1)
    return corner, corner ^ (1 + second % (2**bits - 1))


def _colours(run: Run, place: Tensor, corner: Tensor, other: Tensor) -> Tensor:
    """The colours (m, c, e) to give to the pixels `place`, (m, e): a corner of the cube, another where they have it."""
    lo, hi = (_flat(run, bound[None]).expand(len(place), -1, -1) for bound in span(run))
    c = lo.shape[1]
    index = place[:, None].expand(-1, c, -1)
    low, high, now = lo.gather(2, index), hi.gather(2, index), _flat(run, run.x).gather(2, index)
    bit = torch.arange(c, device=place.device)[:, None] % 30
    value = torch.where((corner[:, None] >> bit & 1).bool(), high, low)
    same = (value == now).all(1, keepdim=True)
    return torch.where(same, torch.where((other[:, None] >> bit & 1).bool(), high, low), value)


def _subset(words: Tensor, size: Tensor, e: Tensor) -> Tensor:
    """A random subset of e out of 0 .. size - 1 for each sample, int64 (m, j), ascending, its first filling up the rest.

    Sorted draws from 0 .. size - e, each raised by its rank: distinct at once. For e = 1 the draw is uniform; for more,
    subsets with neighbours are a little rarer, which means nothing in a random order.
    """
    rank = torch.arange(words.shape[1], device=words.device)
    use = rank < e[:, None]
    drawn = torch.where(use, (words * (size - e + 1)[:, None]) >> 30, 2**40)
    chosen = (drawn.sort(dim=1).values if words.shape[1] > 1 else drawn) + rank
    return torch.where(use, chosen, chosen[:, :1])


def _draw_swap(run: Run, s: Walk, moving: Tensor, j: int) -> Swap:
    """The j-th of the drawn swaps, with `moving` pixels of each sample, (m,)."""
    most = min(int(moving.max()), s.words.shape[1])
    words = s.words[:, :most, j]
    k = _allowed(run)
    outside = _pixels(run) - k
    out = _subset(words[..., 0], k, moving)
    into = torch.where((outside > 0)[:, None], k[:, None] + _subset(words[..., 1], outside, moving), out)
    corner, other = _corner_numbers(words[..., 2], words[..., 3], _flat(run, run.x).shape[1])
    use = torch.arange(most, device=k.device) < moving[:, None]
    return Swap(out, into, torch.where(use, corner, corner[:, :1]), torch.where(use, other, other[:, :1]))


def _recolour(run: Run, s: Walk, swap: Swap) -> Tensor:
    """The points with the leaving pixels put back and the entering ones coloured."""
    x, point = _flat(run, run.x), _flat(run, s.x)
    leaves, enters = s.order.gather(1, swap.out), s.order.gather(1, swap.into)
    back = leaves[:, None].expand(-1, x.shape[1], -1)
    point = point.scatter(2, back, x.gather(2, back))
    into = enters[:, None].expand(-1, x.shape[1], -1)
    return point.scatter(2, into, _colours(run, enters, swap.corner, swap.other)).reshape(run.x.shape)
