"""Projections inside a box: on the L0 ball, and on hyperplanes (by root finding, see `sparring.core.thresholds`)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.core.thresholds import caps, least_of_largest


def l0_keep(delta: Tensor, inside: Tensor, eps: Tensor, pixels: bool) -> Tensor:
    """The exact projection of `delta` on at most eps changes within the bounds: the changes that save the most, the rest zero.

    Args:
        delta: wanted changes, (m, ...).
        inside: the same changes cut at the bounds, (m, ...).
        eps: how many may stay, (m,).
        pixels: count positions of an (m, c, h, w) batch instead of elements.
    """
    # leaving an element costs delta^2 and changing it costs (delta - inside)^2; the difference is what it saves
    gain = delta.square() - (delta - inside).square()
    gain = (gain.sum(1, keepdim=True) if pixels else gain).flatten(1)
    count = eps.long().clamp(min=0, max=gain.shape[1])
    least = least_of_largest(gain, count.clamp(min=1))
    keep = (gain >= torch.where(count > 0, least.squeeze(1), torch.inf)[:, None]).to(delta.dtype)
    shape = (delta.shape[0], 1, *delta.shape[2:]) if pixels else delta.shape
    return inside * keep.reshape(shape)


def plane_step(z: Tensor, w: Tensor, gap: Tensor, lo: Tensor, hi: Tensor, p: float) -> Tensor:
    """The smallest r in p-norm with <w, r> = gap and lo <= z + r <= hi; where no r is enough, the one that comes nearest.

    Args:
        z: the points, (m, d), inside the box.
        w: the normals of their hyperplanes, (m, d); a zero normal moves nothing.
        gap: by how much <w, z> has to rise (or fall, where negative), (m,).
        lo, hi: the box; they broadcast against z.
        p: 1, 2 or inf.

    Returns:
        r, (m, d).
    """
    slope = w.abs()
    largest = slope.amax(1)
    # normals of length 1e-30 still have a direction: squares of the scaled ones do not vanish
    scale = largest.clamp(min=torch.finfo(w.dtype).tiny)
    slope.div_(scale[:, None])
    need = torch.where(largest > 0, gap.abs() / scale, 0.0).clamp_(max=1e30)
    direction = w.sign().mul_(torch.where(gap < 0, -1.0, 1.0).to(w.dtype)[:, None])
    room = caps(direction, z, lo, hi)
    if p == 1:
        return direction.mul_(_fill(slope, room, need))
    return direction.mul_(_level(slope, room, need, p == 2))


def _level(slope: Tensor, room: Tensor, need: Tensor, proportional: bool) -> Tensor:
    """Moves min(t * shape, room) with sum(slope * move) = need, (m, d): shape is the slope (L2) or 1 (Linf).

    The sum is concave in t, so Newton's steps from 0 never overshoot, and end on the exact linear piece. Where every element
    meets its bound before the sum is reached, t stays past them all.
    """
    tiny = torch.finfo(slope.dtype).tiny
    weight = slope.square() if proportional else slope
    t = need / weight.sum(1).clamp(min=tiny)
    while True:
        wanted = slope * t[:, None] if proportional else t[:, None]
        move = torch.minimum(wanted, room)
        missing = need - (slope * move).sum(1)
        short = missing > 1e-6 * need
        if not bool(short.any()):
            return move
        rate = (room - wanted).sign_().clamp_(min=0.0).mul_(weight).sum(1)
        short = short & (rate > 0)
        if not bool(short.any()):
            return move
        further = t + missing / rate.clamp(min=tiny)
        if bool((further[short] <= t[short]).any()):  # the step is below the resolution of t
            return move
        t = torch.where(short, further, t)


def _fill(slope: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """The least sum of moves with sum(slope * move) = need and move <= room: the steepest elements first, (m, d)."""
    d = slope.shape[1]
    k = min(d, 16)
    while True:
        steep, order = slope.topk(k, dim=1)
        left = room.gather(1, order)
        gain = steep * left
        before = gain.cumsum(1) - gain
        if k == d or bool((before[:, -1] + gain[:, -1] >= need).all()):
            break
        k = min(d, 4 * k)
    tiny = torch.finfo(slope.dtype).tiny
    move = torch.minimum(((need[:, None] - before) / steep.clamp(min=tiny)).clamp_(min=0.0), left)
    return torch.zeros_like(slope).scatter_(1, order, (move * (steep > 0)).to(slope.dtype))
