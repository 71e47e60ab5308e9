"""The step of a walk along the boundary: the shortest change on a tangent plane, within the bounds and a trust region."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, norm
from sparring.attacks.minimum_norm.projections import plane_step
from sparring.core.batch import choose

# Of the plane: the share of the way to it that may be missing.
RESIDUE = 1e-2
# In L1, L2 and Linf the trust region is met by so many rounds at most, which aim at this share of the radius and end above that.
ROUNDS, AIM, ENOUGH = 8, 0.995, 0.97
# In L0: halvings of the pull; each bracket of the multiplier grows fourfold at most so often; and so many false positions.
HALVINGS, GROWTHS, SECANTS = 10, 12, 8


def boundary_step(v: Tensor, b: Tensor, need: Tensor, radius: Tensor, lo: Tensor, hi: Tensor, p: float) -> Tensor:
    """The u of least p-norm with <b, u - v> >= need, |u - v|_2 <= radius and lo <= u <= hi, (m, d).

    Where the point of the plane nearest to zero lies in the trust region, it is the answer. Where even the shortest way to the
    plane leaves the region, it is cut to the radius. Between the two the region binds, and the norm's pull is to be found that
    ends on its rim.

    Args:
        v: the changes so far, (m, d), within lo and hi.
        b: unit normals of the planes, (m, d).
        need: how far along the normal the plane lies, (m,); negative where v is beyond it.
        radius: of the trust region, (m,).
        lo, hi: the least and largest changes that the bounds allow, (m, d).
        p: 0, 1, 2 or inf.
    """
    tolerance = RESIDUE * need.abs() + 1e-4 * radius + 1e-6 * norm(v, 2.0)
    way = plane_step(v, b, need.clamp(min=0.0), lo, hi, 2.0)
    free = norm(way, 2.0)
    best: Tensor = v + way * (radius / free.clamp(min=TINY)).clamp(max=1.0)[:, None]
    bound = free <= radius
    task = Task(v, b, need, radius, lo, hi, tolerance, p)
    if p == 0:
        return _halved(task, best, bound, free)
    foot = plane_step(torch.zeros_like(v), b, ((b * v).sum(1) + need).clamp(min=0.0), lo, hi, p)
    inside = norm(foot - v, 2.0) <= radius
    best = choose(inside, foot, best)
    return _rimmed(task, best, bound & ~inside)


@dataclass(frozen=True)
class Task:
    """What `boundary_step` is asked, and how far from the plane an answer may be, (m,)."""

    v: Tensor
    b: Tensor
    need: Tensor
    radius: Tensor
    lo: Tensor
    hi: Tensor
    tolerance: Tensor
    p: float

    def of(self, rows: Tensor) -> Task:
        """The same for some samples, by index."""
        v, b, need, radius = self.v[rows], self.b[rows], self.need[rows], self.radius[rows]
        return Task(v, b, need, radius, self.lo[rows], self.hi[rows], self.tolerance[rows], self.p)


def _rimmed(task: Task, best: Tensor, live: Tensor) -> Tensor:
    """The steps that the trust region binds, in L1, L2 and Linf: Newton's rounds in the multiplier of the plane and the pull.

    The change is piecewise linear in the two, so that each round solves its piece: a linear equation for the plane, and a
    quadratic one for the rim. One or two samples in a hundred need more rounds or go in a circle: those keep the best point met.

    Args:
        task: what is asked.
        best: points that will do, (m, d).
        live: whose trust region binds, (m,).
    """
    p, rows = task.p, torch.nonzero(live).squeeze(1)
    if not len(rows):
        return best
    task = task if len(rows) == len(live) else task.of(rows)
    multiplier = task.need.clamp(min=0.0)
    ease, least, most = _eases(task)
    shortest, live = norm(best[rows], p), torch.ones_like(rows, dtype=torch.bool)
    for _ in range(ROUNDS):
        u, parts = piece(task.v, task.b, multiplier, ease, task.lo, task.hi, p)
        products = _products(parts)
        length, over, long = products[0], products[3] - task.need, norm(u, p)
        allowed = (over >= -2.0 * task.tolerance) & (length <= task.radius.square())
        better = torch.nonzero(live & allowed & (long < shortest)).squeeze(1)
        best[rows[better]], shortest[better] = u[better], long[better]
        met = (over <= 2.0 * task.tolerance) | (multiplier == 0)
        live = live & ~(allowed & met & (length >= (ENOUGH * task.radius).square()))
        left = int(live.sum())
        if not left:
            break
        y, shift, tilt = _round(task, products, multiplier, over)
        # where nothing is left to move towards the plane, the pull was far too strong
        eased = torch.where(torch.isnan(y), (ease + most) / 2.0, ease + y)
        eased = torch.minimum(torch.maximum(eased, least), most)
        multiplier = (multiplier + shift - tilt * (eased - ease)).clamp(min=0.0)
        ease = eased
        if 2 * left <= len(rows):
            keep = torch.nonzero(live).squeeze(1)
            task, rows, live = task.of(keep), rows[keep], live[keep]
            multiplier, ease, least, most, shortest = (part[keep] for part in (multiplier, ease, least, most, shortest))
    return best


def _eases(task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Where the pull begins, the strongest, and the weakest that the region could bear, as eases (see `piece`), each (m,)."""
    size = task.v.abs().amax(1)
    if task.p == 2:
        return torch.ones_like(size), torch.zeros_like(size), torch.ones_like(size)
    if task.p == 1:
        return torch.zeros_like(size), -100.0 * size, torch.zeros_like(size)
    return 0.98 * size, (size - task.radius).clamp(min=0.0), size + task.radius


def _round(task: Task, products: tuple[Tensor, ...], multiplier: Tensor, over: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far the ease moves on this piece, and the multiplier with it: by shift - tilt * that, each (m,).

    d + x * along + y * pulled is the change a little farther on; NaN where none of it moves towards the plane.

    Args:
        task: what is asked.
        products: see `_products`.
        multiplier: of the plane, (m,).
        over: how far d is beyond the plane, (m,).
    """
    length, ad, pd, _, aa, ap, pp, bp = products
    rest = length - (AIM * task.radius).square()
    shift, tilt = -over / aa, bp / aa
    # along the plane, and with a multiplier of zero: one below would hold the change back at the plane, which it may leave
    moves, tilts = torch.stack((shift, -multiplier)), torch.stack((tilt, torch.zeros_like(tilt)))
    along = aa * moves
    y, alone = _lower_root(
        tilts * (aa * tilts - 2.0 * ap) + pp,
        2.0 * (pd + ap * moves - (along + ad) * tilts),
        rest + moves * (along + 2.0 * ad),
    )
    leaves = multiplier + shift < tilt * y
    y, shift, tilt = torch.where(leaves, torch.stack((alone, *moves[1:], *tilts[1:])), torch.stack((y, shift, tilt)))
    stuck = aa <= TINY
    return y.masked_fill(stuck, torch.nan), shift.masked_fill(stuck, 0.0), tilt.masked_fill(stuck, 0.0)


def piece(
    v: Tensor, b: Tensor, multiplier: Tensor, ease: Tensor, lo: Tensor, hi: Tensor, p: float
) -> tuple[Tensor, Tensor]:
    """The change u near v that the plane and the norm draw, (m, d), and its piece, (m, 4, d).

    argmin_u of |u - v|_2^2 / 2 - multiplier * <b, u> + the norm's pull, in lo <= u <= hi, element by element. The piece holds
    u - v, how u moves with the multiplier and how with the ease, and b, side by side for `_products`.

    Args:
        v, b, lo, hi: see `boundary_step`.
        multiplier: of the plane, (m,).
        ease: how little the norm pulls, (m,): in L2 the share of v that stays (a pull of w |u|^2 / 2 leaves 1 / (1 + w), and
            the multiplier is counted after it), in Linf the half width of the cube, in L1 minus the threshold.
        p: 1, 2 or inf.
    """
    parts = v.new_empty(v.shape[0], 4, v.shape[1])
    d, along, pulled, normal = parts.unbind(1)
    normal.copy_(b)
    weight = ease[:, None]
    y = (v * weight if p == 2 else v).addcmul(multiplier[:, None], b)
    if p == 1:
        y = y - torch.maximum(torch.minimum(y, -weight), weight)
    cut = torch.maximum(torch.minimum(y, weight), -weight) if math.isinf(p) else y
    u = torch.maximum(torch.minimum(cut, hi), lo)
    torch.sub(u, v, out=d)
    # comparisons end in numbers: booleans cost a CPU several times as much
    free = torch.eq(u, y, out=torch.empty_like(u))
    torch.mul(free, b, out=along)
    if p == 2:
        torch.mul(free, v, out=pulled)
    elif p == 1:
        torch.mul(free, y.sign_(), out=pulled)
        along.mul_(y.abs_())
    else:
        edge = torch.eq(u.abs(), weight, out=torch.empty_like(u))
        torch.mul(edge.sub_(free).clamp_(min=0.0), u.sign(), out=pulled)
    return u, parts


def _products(parts: Tensor) -> tuple[Tensor, ...]:
    """<d, d>, <d, along>, <d, pulled>, <d, b>, <along, along>, <along, pulled>, <pulled, pulled> and <pulled, b>, each (m,).

    One product of matrices a sample takes a third of the time of eight sums.
    """
    gram = torch.bmm(parts, parts.transpose(1, 2)).flatten(1)
    return (*gram[:, :4].unbind(1), *gram[:, 5:7].unbind(1), *gram[:, 10:12].unbind(1))


def _lower_root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The lower root of a y^2 + b y + c, a >= 0; where there is none, the y that comes nearest to one; 0 where a vanishes."""
    root = (b.square() - 4.0 * a * c).clamp_(min=0.0).sqrt_()
    return ((b + root) / (-2.0 * a).clamp_(max=-2.0 * TINY)).masked_fill_(a <= TINY, 0.0)


def kept(y: Tensor, pull: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """argmin_u of pull^2 |u|_0 + |u - y|^2 in lo <= u <= hi, element by element, (m, d); every element rises with its y.

    Args:
        y: wanted changes, (m, d).
        pull: how strong the norm is, (m,).
        lo, hi: the least and largest changes that the bounds allow, (m, d).
    """
    u = torch.maximum(torch.minimum(y, hi), lo)
    # a change costs the pull, and saves y^2 less what the bounds cut off it; signs are several times as fast as comparisons
    gain = y.square().sub_((y - u).square_()).sub_(pull.square()[:, None])
    return gain.sign_().clamp_(min=0.0).mul_(u)


def _halved(task: Task, best: Tensor, bound: Tensor, free: Tensor) -> Tensor:
    """The steps in L0, where elements go in and out whole: for each pull the multiplier that meets the plane is a root, and the
    largest pull that stays in the trust region is found by halving.

    Args:
        task: what is asked.
        best: points that will do, (m, d).
        bound: who has room for a pull, (m,).
        free: the length of the step without one, (m,).
    """
    size = task.v.abs().amax(1)
    done = ~bound
    low, high = torch.zeros_like(size), torch.ones_like(size)
    guess = free + task.radius
    share = high
    for _ in range(HALVINGS + 1):
        at, u = _meeting(task, size * share / (1.0 - share).clamp(min=0.01), guess)
        d = u - task.v
        reaches = (task.b * d).sum(1) - task.need >= -2.0 * task.tolerance
        inside = reaches & (norm(d, 2.0) <= task.radius)
        best = choose(inside & ~done, u, best)
        guess = torch.where(inside, at + task.tolerance, guess)
        low, high = torch.where(inside, share, low), torch.where(inside, high, share)
        done = done | (low >= high)
        if bool(done.all()):
            break
        share = (low + high) / 2
    return best


def _meeting(task: Task, pull: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
    """The least multipliers at which the L0 changes under a pull, (m,), reach the plane, (m,), and those changes, (m, d).

    A bracket that grows from 0 around the guess, then false position with halving (Illinois). Each sample ends by its own
    residue; where the change jumps over the plane, past the jump; where the plane is out of reach, at the farthest one tried.
    """
    level = (task.b * task.v).sum(1) + task.need

    def miss(at: Tensor, some: Task = task, pull: Tensor = pull, level: Tensor = level) -> Tensor:
        return (some.b * kept(torch.addcmul(some.v, at[:, None], some.b), pull, some.lo, some.hi)).sum(1) - level

    near = torch.zeros_like(level)
    value = miss(near)
    done = value >= -task.tolerance
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
    rows = torch.nonzero(~done & (end > task.tolerance)).squeeze(1)
    if len(rows):
        some = task if len(rows) == len(level) else task.of(rows)
        part, heights, near, value, far, end = (t[rows] for t in (pull, level, near, value, far, end))
        best, hit, side = far, torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(far)
        for _ in range(SECANTS):
            middle = (near * end - far * value) / (end - value).where(end != value, torch.ones_like(end))
            now = miss(middle, some, part, heights)
            before, close = now < 0, ~hit & (now.abs() <= some.tolerance)
            best = torch.where(close | (~hit & ~before), middle, best)
            hit = hit | close
            if bool(hit.all()):
                break
            # the end that stays for a second time loses half its weight, or the other end would hardly move
            end = torch.where(before, torch.where(side > 0, end / 2, end), now)
            value = torch.where(before, now, torch.where(side < 0, value / 2, value))
            near, far = torch.where(before, middle, near), torch.where(before, far, middle)
            side = torch.where(before, 1.0, -1.0).to(far.dtype)
        at = at.index_copy(0, rows, best)
    return at, kept(torch.addcmul(task.v, at[:, None], task.b), pull, task.lo, task.hi)
