"""What attacks by labels share: asking whether points are adversarial, first adversarial points, binary searches."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparring.core.balls import per_sample
from sparring.core.batch import Batch, pick
from sparring.core.errors import ThreatError
from sparring.core.runner import Run

# A line search halves at most so often: float32 cannot tell the points apart after that.
HALVINGS = 25
# Points asked about at once, in numbers for each sample.
_NUMBERS = 2**16


def together(x: Tensor) -> int:
    """How many points of each sample are asked about at once; it depends on the input's size alone, never on the batch."""
    return max(1, _NUMBERS // math.prod(x.shape[1:]))


def crosses(run: Run, x: Batch, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Whether each point reaches its sample's goal, and whether the question was granted; both bool.

    Args:
        run: the samples in play.
        x: (j, ...) points, or a list of j inputs.
        rows: the active sample of each point, int64 (j,); None for one each, in order.
    """
    answer, granted = run.ask(x, rows)
    goal, y = (run.goal, run.y) if rows is None else (run.goal.take(rows), run.y[rows])
    hit = goal.achieved(answer, y) & granted
    return hit, granted


def first_points(run: Run, tries: int) -> tuple[Tensor, Tensor]:
    """An adversarial point for each sample, however far: (points (m, ...), found bool (m,)).

    The threat's starting points come first; then inputs of the attacker's own data, in an order of each sample's own;
    then uniform draws of the bounds.
    """
    x = run.x.clone()
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    known = run.threat.knowledge.starts
    if isinstance(known, Tensor):
        point = known[run.rows.to(known.device)].to(x)
        hit, _ = crosses(run, point)
        x, found = torch.where(per_sample(hit, x), point, x), found | hit
    data = run.threat.knowledge.data
    order = None
    if data is not None and isinstance(data[0], Tensor) and len(data[0]):
        pool = data[0].to(x)
        order = run.rng.permutation(len(pool), "data")
    for t in range(tries):
        rows = (~found).nonzero().squeeze(1)
        if not len(rows):
            break
        if order is not None and t < order.shape[1]:
            point = pool[order[rows, t]]
        else:
            point = _anywhere(run, rows, t)
        hit, granted = crosses(run, point, rows)
        won = rows[hit]
        x[won], found[won] = point[hit], True
        if not bool(granted.any()):
            break
    return x, found


def _anywhere(run: Run, rows: Tensor, t: int) -> Tensor:
    if run.space.bounds is None:
        raise ThreatError(
            "a first adversarial point is drawn from the victim's bounds, which it does not declare; give "
            "Knowledge(starts=...) or Knowledge(data=...)"
        )
    lo, hi = run.space.bounds.lo, run.space.bounds.hi
    draw = run.rng.take(rows).uniform(tuple(run.x.shape[1:]), ("first point", run.restart, t)).to(run.x.dtype)
    return lo + (hi - lo) * draw  # type: ignore[no-any-return]


def between(run: Run, near: Tensor, far: Tensor, share: Tensor) -> Tensor:
    """The point `share`, (m,), of the way from near to far: on the segment, or in Linf the far point clipped to a cube.

    In Linf the cube around `near` has the radius share * |far - near|: the projection that HopSkipJump and its kin use.
    """
    s = per_sample(share.to(near.dtype), near)
    if run.space.name == "linf":
        reach = s * per_sample((far - near).flatten(1).abs().amax(1), near)
        return torch.minimum(torch.maximum(far, near - reach), near + reach)
    return torch.lerp(near, far, s)


def to_boundary(run: Run, far: Tensor, tolerance: Tensor, active: Tensor | None = None) -> Tensor:
    """The adversarial point of the way from each original to `far` that is nearest to the original, by halving.

    Args:
        run: the samples in play.
        far: (m, ...), adversarial.
        tolerance: (m,), the share of the way at which a sample's halving ends.
        active: bool (m,); the others keep `far`.

    Returns:
        (m, ...), adversarial wherever `far` is.
    """
    lo = far.new_zeros(len(far))
    hi = torch.ones_like(lo)
    going = torch.ones_like(lo, dtype=torch.bool) if active is None else active
    halve(
        run,
        lambda share, rows: between(run, pick(run.x, rows), pick(far, rows), share),
        lo,
        hi,
        going,
        lambda low, high: high - low > tolerance,
    )
    return torch.where(per_sample(hi < 1, far), between(run, run.x, far, hi), far)


def halve(
    run: Run,
    at: Callable[[Tensor, Tensor], Tensor],
    lo: Tensor,
    hi: Tensor,
    going: Tensor,
    wide: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Bring lo and hi, which are changed, together on each sample's way to the boundary.

    Args:
        run: the samples in play.
        at: from places on the ways of some samples, (j,), and which those are, int64 (j,), to the points there, (j, ...).
        lo, hi: (m,), places short of the boundary and beyond it.
        going: bool (m,), whose to bring together; one that can pay no more stays as it is.
        wide: from lo and hi to bool (m,): whose are not yet near enough.
    """
    for _ in range(HALVINGS):
        going = going & wide(lo, hi)
        rows = going.nonzero().squeeze(1)
        if not len(rows):
            return
        middle = (lo[rows] + hi[rows]) / 2
        hit, granted = crosses(run, at(middle, rows), rows)
        short = ~hit & granted
        hi[rows[hit]], lo[rows[short]] = middle[hit], middle[short]
        going[rows[~granted]] = False
