"""The step of a walk along the boundary: the shortest change on a tangent plane, within the bounds and a trust region."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY

# Halvings of the pull; each bracket of the multiplier grows fourfold at most so often; and root findings end at this residue.
HALVINGS, GROWTHS, SECANTS, RESIDUE = 10, 12, 16, 1e-2
# In L0, L1 and L2 the pull is a power of ten between these exponents.
POWERS = {0.0: (-4.0, 2.0), 1.0: (-6.0, 2.0), 2.0: (-4.0, 3.0)}


def shrunk(y: Tensor, pull: Tensor, lo: Tensor, hi: Tensor, p: float) -> Tensor:
    """The change near y that the norm draws towards zero, cut at the bounds, element by element, (m, d).

    argmin_u of pull * |u|_1 + |u - y|^2 / 2 in lo <= u <= hi in L1; of pull^2 * |u|_0 + |u - y|^2 in L0, of
    pull * |u|^2 + |u - y|^2 in L2; in Linf the projection on the cube of half width `pull`. Every element rises with its y.

    Args:
        y: wanted changes, (m, d).
        pull: how strong the norm is, (m,); in Linf the half width.
        lo, hi: the least and largest changes that the bounds allow, (m, d).
        p: 0, 1, 2 or inf.
    """
    weight = pull[:, None]
    if math.isinf(p):
        return y.clamp(torch.maximum(lo, -weight), torch.minimum(hi, weight))
    if p == 2:
        return (y / (1.0 + weight)).clamp(lo, hi)
    if p == 1:
        return (y - y.clamp(-weight, weight)).clamp(lo, hi)
    u = y.clamp(lo, hi)
    # a change costs the weight, and saves y^2 less what the bounds cut off it
    return u * (y.square() - (y - u).square() > weight.square())


def pulls(v: Tensor, free: Tensor, radius: Tensor, p: float) -> Callable[[Tensor], Tensor]:
    """From a share between 0 and 1, (m,), to pulls between hardly any and more than the trust region can bear, (m,).

    `free` is the length of the step without a pull, (m,).
    """
    size = v.abs().amax(1)
    if math.isinf(p):
        # the step without a pull is inside the largest cube, and no step in the trust region inside a smaller one than the least
        return lambda share: (size + free).lerp((size - radius).clamp(min=0.0), share)
    if p == 0:
        return lambda share: size * share / (1.0 - share).clamp(min=0.01)
    least, most = POWERS[p]
    unit = torch.ones_like(size) if p == 2 else size.clamp(min=TINY)
    return lambda share: unit * torch.pow(10.0, least + (most - least) * share)


def _pulled(v: Tensor, b: Tensor, pull: Tensor, lo: Tensor, hi: Tensor, p: float, multiplier: Tensor) -> Tensor:
    """The change v moved along b by the multiplier and drawn by the norm, (m, d)."""
    return shrunk(v + multiplier[:, None] * b, pull, lo, hi, p)


def onto(
    level: Tensor, b: Tensor, change: Callable[[Tensor], Tensor], guess: Tensor, tolerance: Tensor
) -> tuple[Tensor, Tensor]:
    """The least multiplier at which <b, change(multiplier)> reaches the level, for a change that rises with it.

    A bracket that grows from 0 around the guess, then false position with halving (Illinois). Each sample ends by its own
    residue; where the change jumps over the level, past the jump; where the level is out of reach, at the farthest one tried.

    Args:
        level: what the product should reach, (m,).
        b: (m, d), of unit length.
        change: from multipliers (m,) to changes (m, d).
        guess: where the multiplier may be, (m,).
        tolerance: of the product, (m,).

    Returns:
        The multipliers, (m,), and their changes, (m, d).
    """

    def miss(at: Tensor) -> Tensor:
        return (b * change(at)).sum(1) - level

    near = torch.zeros_like(level)
    value = miss(near)
    done = value >= -tolerance
    far = torch.where(done, 0.0, guess.clamp(min=TINY))
    end = miss(far)
    for _ in range(GROWTHS):
        short = ~done & (end < 0)
        if not bool(short.any()):
            break
        near, value = torch.where(short, far, near), torch.where(short, end, value)
        far = torch.where(short, 4.0 * far, far)
        end = torch.where(short, miss(far), end)
    at = far
    done = done | (end <= tolerance)
    side = torch.zeros_like(level)
    for _ in range(SECANTS):
        if bool(done.all()):
            break
        middle = (near * end - far * value) / (end - value).where(end != value, torch.ones_like(end))
        now = miss(middle)
        before = now < 0
        hit = ~done & (now.abs() <= tolerance)
        at = torch.where(hit | (~done & ~before), middle, at)
        done = done | hit
        # the end that stays for a second time loses half its weight, or the other end would hardly move
        end = torch.where(before, torch.where(side > 0, end / 2, end), now)
        value = torch.where(before, now, torch.where(side < 0, value / 2, value))
        near, far = torch.where(before, middle, near), torch.where(before, far, middle)
        side = torch.where(before, 1.0, -1.0)
    return at, change(at)


def boundary_step(v: Tensor, b: Tensor, need: Tensor, radius: Tensor, lo: Tensor, hi: Tensor, p: float) -> Tensor:
    """The u of least p-norm with <b, u - v> = need, |u - v|_2 <= radius and lo <= u <= hi, (m, d).

    The norm's pull and the plane's multiplier are the dual variables: for each pull the multiplier that meets the plane is a
    root, and the largest pull that stays in the trust region is found by halving. Where even the step without a pull leaves the
    region, that step is cut to the radius.

    Args:
        v: the changes so far, (m, d), within lo and hi.
        b: unit normals of the planes, (m, d).
        need: how far along the normal the plane lies, (m,).
        radius: of the trust region, (m,).
        lo, hi: the least and largest changes that the bounds allow, (m, d).
        p: 0, 1, 2 or inf.
    """
    level = (b * v).sum(1) + need
    tolerance = RESIDUE * need.abs() + 1e-4 * radius + 1e-6 * torch.linalg.vector_norm(v, dim=1)
    # without a pull all norms agree: the foot of the perpendicular, within the bounds
    multiplier, u = onto(level, b, lambda at: (v + at[:, None] * b).clamp(lo, hi), need, tolerance)
    free = torch.linalg.vector_norm(u - v, dim=1)
    best: Tensor = v + (u - v) * (radius / free.clamp(min=TINY)).clamp(max=1.0)[:, None]
    done = free > radius
    pull_of = pulls(v, free, radius, p)
    low, high = torch.zeros_like(need), torch.ones_like(need)
    guess = multiplier + radius
    share = high
    for _ in range(HALVINGS + 1):
        at, u = onto(level, b, functools.partial(_pulled, v, b, pull_of(share), lo, hi, p), guess, tolerance)
        reaches = (b * u).sum(1) - level >= -2.0 * tolerance
        inside = reaches & (torch.linalg.vector_norm(u - v, dim=1) <= radius)
        best = torch.where((inside & ~done)[:, None], u, best)
        guess = torch.where(inside, at + tolerance, guess)
        low, high = torch.where(inside, share, low), torch.where(inside, high, share)
        done = done | (low >= high)
        if bool(done.all()):
            break
        share = (low + high) / 2
    return best
