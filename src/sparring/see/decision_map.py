"""What a victim answers in a plane through an input: along an adversarial direction and a second one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparring.core.errors import InputError
from sparring.core.network import Victim
from sparring.core.rng import KeyedRandom, content_ids
from sparring.core.victim import query_in_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class DecisionMap:
    """The answers on a grid of the plane x + u d1 + v d2.

    Attributes:
        x: the input in the middle, (...).
        directions: d1 and d2, (2, ...), orthogonal and of unit Euclidean length.
        reach: the grid's coordinates, in Euclidean length along each direction, float (side,).
        labels: the answer at (v, u), int64 (side, side), row 0 at the least v.
        margins: the true class's score less the best other one there, (side, side); None by labels alone.
        label: the class of the input.
        marks: (u, v) of the points that gave the directions.
        names: class names, or None.
    """

    x: Tensor
    directions: Tensor
    reach: Tensor
    labels: Tensor
    margins: Tensor | None
    label: int
    marks: tuple[tuple[float, float], ...]
    names: tuple[str, ...] | None
    bounds: tuple[Tensor, Tensor]

    def starts(self, count: int = 1) -> Tensor:
        """The `count` points of the grid nearest to the input that the victim takes for another class, (count, ...).

        They serve as `Knowledge(starts=...)` of attacks that begin at an adversarial point.

        Raises:
            InputError: fewer points of the map are of another class.
        """
        v, u = (self.labels != self.label).nonzero(as_tuple=True)
        if len(u) < count:
            raise InputError(
                f"{len(u)} points of the map are of another class; {count} were asked for: widen its radius"
            )
        at = torch.stack([self.reach[u], self.reach[v]], dim=1)
        return self.points(at[at.norm(dim=1).argsort(stable=True)[:count]])

    def points(self, at: Tensor) -> Tensor:
        """The inputs at coordinates (u, v), float (m, 2), brought inside the bounds: (m, ...)."""
        flat = self.x.flatten() + at.to(self.x) @ self.directions.flatten(1)
        lo, hi = self.bounds
        return torch.minimum(torch.maximum(flat.reshape(-1, *self.x.shape), lo), hi)

    def figure(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """The regions in colours, the boundary of the true class as a line, the input and its neighbours as marks.

        Args:
            path: where to write it (.png, .svg, .pdf, ...); None only returns it.
        """
        from sparring.see.figures import write_figure
        from sparring.see.plots import map_figure

        return write_figure(map_figure(self), path)


def decision_map(
    victim: Victim,
    x: Tensor,
    adversarial: Tensor,
    second: Tensor | None = None,
    *,
    label: int | None = None,
    radius: float | None = None,
    side: int = 61,
    seed: int = 0,
) -> DecisionMap:
    """Ask a victim about the plane through an input, an adversarial one, and a second adversarial or a random direction.

    Points outside the victim's bounds are asked about where they meet the bounds.

    Args:
        victim: whose answers are mapped.
        x: one input, (...), in raw units.
        adversarial: an adversarial input beside it, (...).
        second: another adversarial input; None takes a random direction.
        label: the input's class; None takes the victim's own answer.
        radius: how far the map reaches, Euclidean; None takes twice the distance of the farther adversarial input.
        side: grid points per side, odd.
        seed: of the random direction.

    Raises:
        InputError: shapes that differ, inputs that coincide or lie on one line, an even or tiny grid.
    """
    if x.shape != adversarial.shape or (second is not None and second.shape != x.shape):
        raise InputError(f"the input has shape {tuple(x.shape)}; the adversarial ones must have it too")
    if side < 3 or side % 2 == 0:
        raise InputError(f"side is {side}; an odd number >= 3 puts the input in the middle")
    x = x.to(victim.device)
    first = adversarial.to(x) - x
    if second is None:
        rng = KeyedRandom(seed, content_ids(x[None]).to(x.device))
        other = rng.normal(tuple(x.shape), "decision-map")[0].to(x)
    else:
        other = second.to(x) - x
    d1, length = _unit(first)
    d2, _ = _unit(other - (other * d1).sum() * d1, least=1e-5 * float(other.norm()))
    spots = [(length, 0.0)] + ([] if second is None else [(float((other * d1).sum()), float((other * d2).sum()))])
    radius = 2 * max(max(abs(u), abs(v)) for u, v in spots) if radius is None else radius
    if not radius > 0:
        raise InputError(f"radius is {radius}; a length > 0 is needed")
    reach = torch.linspace(-radius, radius, side, dtype=torch.float64)
    reach[side // 2] = 0.0
    bounds = victim.bounds.like(x)
    blank = torch.zeros(0, dtype=torch.int64)
    made = DecisionMap(x, torch.stack([d1, d2]), reach, blank, None, -1, tuple(spots), None, (bounds.lo, bounds.hi))
    v, u = torch.meshgrid(reach, reach, indexing="ij")
    with victim.at_rest():
        answer = query_in_batches(victim, made.points(torch.stack([u.flatten(), v.flatten()], dim=1)), 256)
        middle = victim.query(x[None])
    label = int(middle.labels[0]) if label is None else label
    margins = None
    if answer.scores is not None:
        own = answer.scores[:, label]
        others = answer.scores.clone()
        others[:, label] = -torch.inf
        margins = (own - others.amax(1)).reshape(side, side)
    names = None if victim.labels is None else tuple(victim.labels)
    labels = answer.labels.reshape(side, side)
    return DecisionMap(x, made.directions, reach, labels, margins, label, made.marks, names, made.bounds)


def _unit(delta: Tensor, least: float = 1e-9) -> tuple[Tensor, float]:
    """The direction of a change and its length, which must be more than `least`: below, it is what rounding left."""
    length = float(delta.norm())
    if not length > least:
        raise InputError("two of the inputs coincide, or all three lie on one line; a plane needs two directions")
    return delta / length, length
