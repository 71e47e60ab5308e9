"""What a window of Square holds: one of two colours for each channel in Linf, a smooth bump in L2 and L1."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparring.attacks.query.parts import as_pictures, clamp_
from sparring.core.balls import per_sample
from sparring.core.nearby import Window, offsets
from sparring.core.rng import KeyedRandom
from sparring.core.runner import Run

# Windows are drawn for so many steps at once: a draw costs as much for one step as for sixty.
AHEAD = 64


class Windows(Protocol):
    """How a window changes a picture; a dataclass of tensors with leading dimension m."""

    def draw(self, run: Run, sides: tuple[int, int], t: int) -> None:
        """Draw the windows of the steps t .. t + AHEAD - 1, all of height and width `sides`."""
        ...

    def propose(self, run: Run, x: Tensor, sides: tuple[int, int], j: int) -> Tensor:
        """The points x, (m, ...), with the j-th of the drawn windows changed; this may change x itself, until `settle`."""
        ...

    def window(self, sides: tuple[int, int], j: int) -> Window | None:
        """The j-th of the drawn windows; None where a proposal changes more than that."""
        ...

    def settle(self, run: Run, x: Tensor, point: Tensor, better: Tensor) -> None:
        """Let x be the proposed points where `better`, bool (m,), and what it was elsewhere."""
        ...


def corners(run: Run, sides: tuple[int, int], words: Tensor) -> Tensor:
    """The position of a random window's first element in a flattened channel, int64 (m, AHEAD), from words below 2^30.

    Args:
        run: the samples in play.
        sides: height and width of the window.
        words: int64 (m, 2, AHEAD).
    """
    _, _, h, w = as_pictures(run.x).shape
    top, left = ((words[:, i] * room) >> 30 for i, room in enumerate((h - sides[0] + 1, w - sides[1] + 1)))
    return top * w + left


@dataclass
class Colours:
    """Linf: every element stands at the lowest or at the highest value that the ball and the bounds allow it.

    Attributes:
        ends: these values, flattened: all lowest ones, then all highest ones, (m, 2 * c * h * w).
        at: where the drawn windows begin in each channel of a flattened picture, int64 (m, AHEAD, c, 1).
        source: where the new values begin in `ends`, as `at`.
        other: where to take them from if those would change nothing, as `at`.
        index: the elements of the window that is being asked about, int64 (m, size).
        old: what stood there, and
        new: what stands there now, (m, size).
    """

    ends: Tensor
    at: Tensor
    source: Tensor
    other: Tensor
    index: Tensor
    old: Tensor
    new: Tensor

    @classmethod
    def start(cls, run: Run, sides: tuple[int, int]) -> tuple[Tensor, Colours]:
        """Vertical stripes, (m, ...), and the first windows."""
        _, c, h, w = as_pictures(run.x).shape
        low, high = run.space.box(run.x)
        stripes = run.rng.signs((c, 1, w), "start").expand(-1, c, h, w).reshape(run.x.shape)
        ends = torch.cat([low.flatten(1), high.flatten(1)], dim=1)
        none = ends[:, :0]
        first = torch.where(stripes > 0, high, low).contiguous()  # windows are painted into it
        return first, cls(ends, *_colour_draws(run, sides, 1), none.long(), none, none)

    def draw(self, run: Run, sides: tuple[int, int], t: int) -> None:
        """See `Windows`."""
        self.at, self.source, self.other = _colour_draws(run, sides, t)

    def propose(self, run: Run, x: Tensor, sides: tuple[int, int], j: int) -> Tensor:
        """A window of x at new ends, of which at least one channel's differs from what stood there.

        It is painted into x itself: late windows are a few elements, and a copy of a picture costs more than they do.
        """
        window = offsets(sides, x.shape[-1], x.device)
        self.index = (self.at[:, j] + window).flatten(1)
        self.old = x.flatten(1).gather(1, self.index)
        self.new = self.ends.gather(1, (self.source[:, j] + window).flatten(1))
        idle = (self.new == self.old).all(1, keepdim=True)
        if bool(idle.any()):
            self.new = torch.where(idle, self.ends.gather(1, (self.other[:, j] + window).flatten(1)), self.new)
        x.view(len(x), -1).scatter_(1, self.index, self.new)
        return x

    def window(self, sides: tuple[int, int], j: int) -> Window | None:
        """See `Windows`."""
        return Window(self.at[:, j, 0, 0], sides)

    def settle(self, run: Run, x: Tensor, point: Tensor, better: Tensor) -> None:
        """See `Windows`."""
        x.view(len(x), -1).scatter_(1, self.index, torch.where(better[:, None], self.new, self.old))


def _colour_draws(run: Run, sides: tuple[int, int], t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of windows, of one end for each channel, and of ends that differ in one channel or more."""
    _, c, h, w = as_pictures(run.x).shape
    words = run.rng.integers((4, AHEAD), ("windows", t), 2**30)
    channel = torch.arange(c, device=words.device)
    high = (words[:, 2, :, None] >> channel) & 1 if c <= 30 else run.rng.integers((AHEAD, c), ("ends", t), 2)
    flip = ((1 + words[:, 3, :, None] % (2 ** min(c, 30) - 1)) >> channel.clamp(max=30)) & 1
    at = corners(run, sides, words[:, :2])[..., None] + channel * (h * w)
    return at[..., None], (at + high * (c * h * w))[..., None], (at + (high ^ flip) * (c * h * w))[..., None]


@dataclass
class Bumps:
    """L2 and L1: a window takes a new bump, the norm that is to spare, and the norm of a second window, which it empties.

    Attributes:
        delta: the change so far, (m, c, h * w).
        size: the sum of its elements' p-th powers, (m,).
        first, second: where the drawn windows begin in a flattened channel, int64 (m, AHEAD).
        sign: of the bump in each channel, (m, AHEAD, c, 1).
        cut: 0 for bumps cut along the rows, 1 along the columns, int64 (m, AHEAD).
    """

    delta: Tensor
    size: Tensor
    first: Tensor
    second: Tensor
    sign: Tensor
    cut: Tensor

    @classmethod
    def start(cls, run: Run, sides: tuple[int, int]) -> tuple[Tensor, Bumps]:
        """A tiling of bumps, stretched to the sphere in L2 and projected in L1, (m, ...), and the first windows."""
        p, shape = int(run.space.p), as_pictures(run.x).shape
        pattern = tiling(shape[1:], p, run.rng, ("start",)).to(run.x.dtype).reshape(run.x.shape)
        if p == 2:
            pattern = run.space.steepest(pattern) * per_sample(run.space.eps, run.x)
        else:
            pattern = run.width * pattern
        x = run.space.project(run.x, run.x + pattern)
        delta = (x - run.x).reshape(*shape[:2], -1)
        return x, cls(delta, delta.abs().pow(p).sum((1, 2)), *_bump_draws(run, sides, 1))

    def draw(self, run: Run, sides: tuple[int, int], t: int) -> None:
        """See `Windows`."""
        self.first, self.second, self.sign, self.cut = _bump_draws(run, sides, t)

    def propose(self, run: Run, x: Tensor, sides: tuple[int, int], j: int) -> Tensor:
        """A bump added to the direction of what stands in a window; in L2 back on the sphere, in L1 in the ball."""
        p, c = int(run.space.p), self.delta.shape[1]
        window = offsets(sides, x.shape[-1], x.device)
        first, second = ((at[:, j, None] + window)[:, None].expand(-1, c, -1) for at in (self.first, self.second))
        old = self.delta.gather(2, first)
        delta = self.delta.scatter(2, first, 0.0)
        freed = _power(old, p) + _power(delta.gather(2, second), p)  # a shared element counts once: it is zero by now
        fresh = bump(*sides, p).flatten(1).to(delta)[self.cut[:, j]][:, None] * self.sign[:, j]
        fresh = fresh + old / (_power(old, p).pow(1 / p) + 1e-12)[..., None]
        room = freed + ((run.space.eps**p - self.size).clamp(min=0.0) / c)[:, None]
        room = room * c if p == 1 else room.sqrt()  # in L1 the window may ask for c times its due: the rest shrinks
        fresh = fresh * (room / _power(fresh, p).pow(1 / p).clamp(min=1e-12))[..., None]
        delta.scatter_(2, second, 0.0).scatter_(2, first, fresh)
        if p == 2:
            size = self.size + (room.square() - freed).sum(1)
            scale = run.space.eps / size.clamp(min=1e-24).sqrt()
            return clamp_(run, delta.reshape(x.shape).mul_(per_sample(scale, x)).add_(run.x))
        return clamp_(run, run.x + self._shrunk(run, delta.reshape(x.shape)))

    def window(self, sides: tuple[int, int], j: int) -> Window | None:
        """See `Windows`: elsewhere the change is scaled."""
        return None

    def settle(self, run: Run, x: Tensor, point: Tensor, better: Tensor) -> None:
        """See `Windows`; the changes of the samples that move are remembered."""
        rows = better.nonzero().squeeze(1)
        if not len(rows):
            return
        moved = point[rows]
        x.index_copy_(0, rows, moved)
        delta = (moved - run.x[rows]).reshape(len(rows), *self.delta.shape[1:])
        self.delta[rows] = delta
        self.size[rows] = delta.abs().pow(int(run.space.p)).sum((1, 2))

    def _shrunk(self, run: Run, delta: Tensor) -> Tensor:
        bounds = run.space.bounds
        if bounds is None:
            cap = torch.full_like(delta, torch.inf)
        else:
            cap = torch.where(delta > 0, bounds.hi - run.x, run.x - bounds.lo)
        return shrink_into_l1(delta.flatten(1), cap.flatten(1), run.space.eps).reshape(delta.shape)


def _bump_draws(run: Run, sides: tuple[int, int], t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions of two windows, signs and cuts."""
    words = run.rng.integers((5, AHEAD), ("windows", t), 2**30)
    sign = run.rng.signs((AHEAD, as_pictures(run.x).shape[1], 1), ("signs", t)).to(run.x.dtype)
    return corners(run, sides, words[:, :2]), corners(run, sides, words[:, 2:4]), sign, words[:, 4] & 1


def _power(window: Tensor, p: int) -> Tensor:
    """The sum of p-th powers in each channel of windows (m, c, s): (m, c)."""
    return window.abs().sum(2) if p == 1 else window.square().sum(2)


@functools.lru_cache(maxsize=64)
def bump(height: int, width: int, p: int) -> Tensor:
    """Two bumps of opposite sign, cut along the rows and along the columns: float (2, height, width), unit p-norm.

    Each half is a stack of centred rectangles, of which the r-th from the centre weighs 1 / r^2 in L2 and 1 / r^4 in
    L1: the shape that gradients have in a network's first layers (Andriushchenko et al. 2020, section 3.4).
    """
    return torch.stack([_halves(height, width, p), _halves(width, height, p).T])


def _halves(height: int, width: int, p: int) -> Tensor:
    top = height // 2
    parts = [_hill(top, width, p)] if top else []
    both = torch.cat([*parts, -_hill(height - top, width, p)])
    return _of_unit_norm(both, p)


def _hill(height: int, width: int, p: int) -> Tensor:
    """One bump of unit p-norm: an element at Chebyshev distance d of the centre sums the rectangles that reach it."""
    rings = max(height // 2, width // 2) + 1
    weight = 1.0 / torch.arange(1, rings + 1, dtype=torch.float32).pow(4 if p == 1 else 2)
    tail = weight.flip(0).cumsum(0).flip(0)
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    return _of_unit_norm(tail[torch.maximum(down[:, None], across[None, :])], p)


def _of_unit_norm(x: Tensor, p: int) -> Tensor:
    return x / x.abs().pow(p).sum().pow(1 / p)


def tiling(shape: Sequence[int], p: int, rng: KeyedRandom, stream: tuple[str | int, ...]) -> Tensor:
    """About five by five bumps of random sign and cut, float (n, c, h, w), not normalised.

    Args:
        shape: (c, h, w).
        p: 1 or 2, the norm.
        rng: randomness of the n samples.
        stream: names the draw.
    """
    c, h, w = shape
    a, b = max(1, h // 5), max(1, w // 5)
    down, across = h // a, w // b
    sign = rng.signs((c, down, across), (*stream, "sign"))
    cut = rng.integers((down, across), (*stream, "cut"), 2)
    tiles = bump(a, b, p).to(sign.device)[cut][:, None] * sign[..., None, None]
    pattern = tiles.permute(0, 1, 2, 4, 3, 5).reshape(-1, c, down * a, across * b)
    out = pattern.new_zeros(len(pattern), c, h, w)
    v, u = (h - down * a) // 2, (w - across * b) // 2
    out[:, :, v : v + down * a, u : u + across * b] = pattern
    return out


def shrink_into_l1(delta: Tensor, cap: Tensor, eps: Tensor, rounds: int = 30) -> Tensor:
    """Changes (n, d) shrunk towards zero by one amount t per sample and cut at `cap`, so that their L1 norm is eps.

    The projection on the ball within the bounds (Croce and Hein 2021), its t found by Newton's steps inside a bracket
    and not by sorting: a few passes over the elements, so that a query stays dearer than its proposal.

    Args:
        delta: changes, (n, d).
        cap: the largest size that the bounds allow to each, (n, d).
        eps: radii, (n,).
        rounds: Newton's steps at most; four to eight are usual.
    """
    size, eps = delta.abs(), eps[:, None]
    t, low, high = torch.zeros_like(eps), torch.zeros_like(eps), size.amax(1, keepdim=True)
    kept = torch.minimum(size, cap)
    for _ in range(rounds):
        over = kept.sum(1, keepdim=True) - eps
        open_ = (over > 1e-6 * eps) | ((over < -1e-6 * eps) & (t > 0))
        if not bool(open_.any()):
            break
        low, high = torch.where(over > 0, t, low), torch.where(over < 0, t, high)
        falling = ((kept > 0) & (kept < cap)).sum(1, keepdim=True)
        guess = t + over / falling.clamp(min=1)
        guess = torch.where((guess > low) & (guess < high), guess, (low + high) / 2)
        t = torch.where(open_, guess, t)
        kept = torch.minimum((size - t).clamp(min=0.0), cap)
    kept = kept * (eps / kept.sum(1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
    return kept.copysign(delta)
