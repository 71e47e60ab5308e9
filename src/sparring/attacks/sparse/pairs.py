"""The best pair of a saliency map: the exact answer in O(d log d), without a table of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

# So many numbers of a table of pairs are held at once; longer fronts are gone through in strips.
TABLE = 2**22


def best_pair(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The pair p != q with the largest (u_p + u_q)(v_p + v_q), both sums positive; exact.

    For a fixed p the product rises with u_q and with v_q. So an element that two others dominate (in both coordinates) is in no
    best pair: one of the two could take its place. What remains are the first two Pareto fronts, found by one sort and two running
    maxima, and only their pairs are compared: a dozen elements out of thousands where the coordinates are not opposed. Two
    pivots high in both coordinates spare most elements the sort.

    Args:
        u, v: coordinates, (m, d); elements that must not be chosen are -inf in v.

    Returns:
        The pair, int64 (m, 2), and its product, (m,): 0 where no pair has two positive sums.
    """
    m, d = u.shape
    if d < 2:
        return torch.zeros(m, 2, dtype=torch.int64, device=u.device), u.new_zeros(m)
    columns, listed = _compact(_undominated(u, v))
    order = u.gather(1, columns).masked_fill(~listed, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    height, columns = v.gather(1, columns).masked_fill(~listed, -torch.inf).gather(1, order), columns.gather(1, order)
    first = _front(height)
    front = first | _front(height.masked_fill(first, -torch.inf))
    chosen, inside = _compact(front)
    chosen = columns.gather(1, chosen)
    width = chosen.shape[1]
    a = u.gather(1, chosen).masked_fill(~inside, -torch.inf)
    b = v.gather(1, chosen).masked_fill(~inside, -torch.inf)
    value, where = u.new_zeros(m), torch.zeros(m, 2, dtype=torch.int64, device=u.device)
    strip = max(1, TABLE // max(1, m * width))
    for start in range(0, width - 1, strip):
        rows = torch.arange(start, min(start + strip, width - 1), device=u.device)
        later = rows[:, None] < torch.arange(width, device=u.device)
        both_u, both_v = (c[:, rows, None] + c[:, None, :] for c in (a, b))
        product = torch.where(later & (both_u > 0) & (both_v > 0), both_u * both_v, 0.0).flatten(1)
        top, at = product.max(1)
        better = top > value
        value = torch.where(better, top, value)
        pair = torch.stack([start + at // width, at % width], 1)
        where = torch.where(better[:, None], pair, where)
    return chosen.gather(1, where), value


def top_pair(u: Tensor) -> tuple[Tensor, Tensor]:
    """The pair p != q with the largest u_p + u_q: what `best_pair` finds where v is u, by one look.

    Args:
        u: (m, d); elements that must not be chosen are -inf.

    Returns:
        The pair, int64 (m, 2), and its sum, (m,), negative where no pair may be chosen.
    """
    if u.shape[1] < 2:
        return torch.zeros(len(u), 2, dtype=torch.int64, device=u.device), u.new_full((len(u),), -torch.inf)
    top = u.topk(2, dim=1)
    return top.indices, top.values.sum(1)


def _undominated(u: Tensor, v: Tensor) -> Tensor:
    """Bool (m, d): which elements are not below both of two pivots."""
    tiny = torch.finfo(u.dtype).tiny
    even = torch.minimum(u / u.amax(1, keepdim=True).clamp(min=tiny), v / v.amax(1, keepdim=True).clamp(min=tiny))
    pivots = even.topk(2, dim=1).indices
    keep = torch.zeros_like(u, dtype=torch.bool).scatter_(1, pivots, True)
    for k in (0, 1):
        pivot = pivots[:, k : k + 1]
        keep |= (u > u.gather(1, pivot)) | (v > v.gather(1, pivot))
    return keep & ~v.isneginf()


def _compact(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The columns where `keep`, (m, d), holds, as (m, k >= 2) with k the most in a row, and which of them are no padding."""
    rows, columns = keep.nonzero(as_tuple=True)
    count = keep.sum(1)
    k = max(2, int(count.max())) if len(count) else 2
    slot = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    out = torch.zeros(len(count), k, dtype=torch.int64, device=rows.device)
    out[rows, slot] = columns
    return out, torch.arange(k, device=rows.device) < count[:, None]


def _front(height: Tensor) -> Tensor:
    """Bool (m, d): which elements stand above all that come before them."""
    before = height.cummax(1).values.roll(1, 1)
    before[:, 0] = -torch.inf
    return height > before
