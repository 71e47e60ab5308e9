"""Spaces of changes that are drawn: x' = draw(x, theta), where what is legal is said of theta and not of the pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparring.core.balls import TOLERANCE, per_sample
from sparring.core.batch import Batch
from sparring.core.errors import InputError
from sparring.core.rng import content_ids
from sparring.core.space import Bounds

# How far two drawings of one theta may differ, as a share of the bounds: sampling points carry float rounding.
SLACK = 1e-4
# So many of the newest pictures that were looked up stay in the memory of each original.
NEWEST = 4


class Memory:
    """Which parameters made which picture: each original's latest drawings, and those that were looked up since.

    A search draws thousands of pictures and few matter. A success is looked up when the run notes its cost, the last
    picture of a search at the re-check; what is neither is forgotten at the next drawing. Of what was looked up, each
    original keeps the first, the smallest and the newest few: what a run may come back to.
    """

    def __init__(self) -> None:
        self._latest: dict[int, dict[int, Tensor]] = {}
        self._kept: dict[int, dict[int, Tensor]] = {}

    def note(self, x: Tensor, x_adv: Tensor, theta: Tensor) -> None:
        """Remember what drew each x_adv, (n, ...), from its x; several of one original may come in one call."""
        fresh: dict[int, dict[int, Tensor]] = {}
        ids = zip(content_ids(x).tolist(), content_ids(x_adv).tolist(), strict=True)
        for row, (original, picture) in enumerate(ids):
            fresh.setdefault(original, {})[picture] = theta[row].clone()  # a view would keep the whole batch alive
        self._latest.update(fresh)

    def find(self, x: Tensor, x_adv: Tensor, blank: Tensor, size: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The parameters of each picture, shaped like `blank` (n, ...), and bool (n,): where they are known.

        A picture that is its original has the parameters of no change, which `blank` holds. `size` measures parameters.
        """
        theta = blank.clone()
        known = (x == x_adv).flatten(1).all(1)
        ids = list(zip(content_ids(x).tolist(), content_ids(x_adv).tolist(), strict=True))
        for row in (~known).nonzero().squeeze(1).tolist():
            original, picture = ids[row]
            kept = self._kept.setdefault(original, {})
            found = kept.get(picture)
            if found is None:
                found = self._latest.get(original, {}).get(picture)
            if found is not None and found.shape == blank.shape[1:]:
                theta[row], known[row] = found.to(theta), True
                kept[picture] = found
                if len(kept) > NEWEST + 2:
                    first, *_ = kept
                    smallest = min(kept, key=lambda p: float(size(kept[p][None])))
                    stay = {first, smallest, *list(kept)[-NEWEST:]}
                    self._kept[original] = {p: theta for p, theta in kept.items() if p in stay}
        return theta, known

    def forget(self) -> None:
        """Drop everything."""
        self._latest.clear()
        self._kept.clear()


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures (n, c, h, w) drawn from their originals by parameters theta, which are legal or not.

    Whether x' can be drawn from x is an inverse problem that the pair alone seldom answers, so a space remembers the
    parameters of what it drew (see `Memory`), and `contains` draws again from them and compares: a picture is legal
    where its parameters are known, within their limits, and give that very picture. What nobody drew with `render` is
    not legal, unless the subclass can read the parameters off the pair (`infer`). Nothing is taken on trust: a wrong
    note in the memory can deny a picture, and cannot admit one.

    Subclasses say `draw`, `size` and `blank`. Zero parameters are no change.

    Args:
        lattice: levels between the bounds (256 for 8-bit files) to which pictures are rounded, or None.
        bounds: the victim's; `bound` fills them in.
        memory: shared by all that is made from this space by `bound` and `take`, so that `parameters` answers after an
            attack. It grows with the pictures attacked: take a new space for a new data set.
    """

    lattice: int | None = field(default=None, kw_only=True)
    bounds: Bounds | None = field(default=None, kw_only=True)
    memory: Memory = field(default_factory=Memory, kw_only=True, repr=False)

    name: ClassVar[str] = "drawn"
    channels: ClassVar[tuple[int, ...] | None] = None  # the numbers of channels that make sense; None for any
    radius: ClassVar[str | None] = None  # the field that holds one limit per sample

    def __post_init__(self) -> None:
        if self.lattice is not None and (not isinstance(self.lattice, int) or self.lattice < 2):
            raise InputError(f"lattice is {self.lattice!r}; a whole number of levels >= 2 is needed (256 for 8 bits)")

    # -- what a subclass says ------------------------------------------------------------------------------------------

    def blank(self, x: Tensor) -> Tensor:
        """The parameters of no change, (n, ...): zeros."""
        raise NotImplementedError

    def draw(self, x: Tensor, theta: Tensor) -> Tensor:
        """The pictures, (n, c, h, w), before rounding; differentiable in theta where the space's searches need it."""
        raise NotImplementedError

    def size(self, theta: Tensor) -> Tensor:
        """What parameters cost, float (n,); infinite where no limit allows them."""
        raise NotImplementedError

    def infer(self, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters read off pairs, where that can be done, and bool (n,): where it was."""
        return self.blank(x), torch.zeros(len(x), dtype=torch.bool, device=x.device)

    # -- drawing -------------------------------------------------------------------------------------------------------

    def render(self, x: Tensor, theta: Tensor) -> Tensor:
        """The pictures as they are handed to a victim, remembered: inside the bounds and on the lattice.

        Args:
            x: originals, (n, c, h, w).
            theta: parameters, (n, ...).
        """
        theta = theta.detach()
        with torch.no_grad():
            x_adv = self._finish(self.draw(x, theta))
        self.memory.note(x, x_adv, theta)
        return x_adv

    def pull(self, x: Tensor, theta: Tensor, slope: Tensor) -> Tensor:
        """The slope with respect to theta, from the one with respect to the picture: the chain rule through `draw`."""
        leaf = theta.detach().requires_grad_(True)
        with torch.enable_grad():
            drawn = self.draw(x, leaf)
        (grad,) = torch.autograd.grad(drawn, leaf, slope)
        return grad

    def parameters(self, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """What drew each x_adv from its x: theta (n, ...), and bool (n,), where that is known."""
        theta, known = self.memory.find(x, x_adv, self.blank(x), self.size)
        rest = (~known).nonzero().squeeze(1)
        if len(rest):
            guess, read = self.infer(x[rest], x_adv[rest])
            theta[rest], known[rest] = guess.to(theta), read
        return theta, known

    def _finish(self, x_adv: Tensor) -> Tensor:
        if self.bounds is None:
            return x_adv
        x_adv = self.bounds.clamp(x_adv)
        if self.lattice is None:
            return x_adv
        span = self.bounds.hi - self.bounds.lo
        return self.bounds.lo + ((x_adv - self.bounds.lo) / span * (self.lattice - 1)).round() * span / (
            self.lattice - 1
        )

    def _span(self) -> Tensor | float:
        return 1.0 if self.bounds is None else self.bounds.hi - self.bounds.lo

    # -- the space protocol --------------------------------------------------------------------------------------------

    @property
    def limit(self) -> Tensor | float | None:
        """The largest legal size; 1 where sizes are shares of what is allowed."""
        return 1.0 if self.radius is None else getattr(self, self.radius)

    def cost(self, x: Batch, x_adv: Batch) -> Tensor:
        """The size of each change's parameters, float (n,); infinite where they are not known."""
        x, x_adv = _pictures(x), _pictures(x_adv)
        theta, known = self.parameters(x, x_adv)
        return torch.where(known, self.size(theta).to(x.dtype), torch.inf)

    def contains(self, x: Batch, x_adv: Batch) -> Tensor:
        """Bool (n,): the parameters are known and legal, and draw this picture once more."""
        x, x_adv = _pictures(x), _pictures(x_adv)
        theta, known = self.parameters(x, x_adv)
        size = self.size(theta)
        legal = known & torch.isfinite(size) & torch.isfinite(x_adv).flatten(1).all(1)
        if self.limit is not None:
            limit = torch.as_tensor(self.limit, dtype=size.dtype, device=size.device)
            legal = legal & (size <= limit * (1 + TOLERANCE) + TOLERANCE)
        if self.bounds is not None:
            legal = legal & self.bounds.contain(x_adv, TOLERANCE)
        rows = legal.nonzero().squeeze(1)
        if len(rows):
            slack = SLACK + (0.0 if self.lattice is None else 0.5 / (self.lattice - 1))
            with torch.no_grad():
                again = self.draw(x[rows], theta[rows])
            again = again if self.bounds is None else self.bounds.clamp(again)
            near = ((again - x_adv[rows]).abs() <= slack * self._span()).flatten(1).all(1)
            legal[rows] = near & self._on_lattice(x_adv[rows])
        return legal

    def _on_lattice(self, x: Tensor) -> Tensor:
        if self.lattice is None or self.bounds is None:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        k = (x - self.bounds.lo) / (self.bounds.hi - self.bounds.lo) * (self.lattice - 1)
        return ((k - k.round()).abs() <= 1e-3).flatten(1).all(1)

    def take(self, index: Tensor) -> Self:
        """The space with the limits of the samples at `index`, and the same memory."""
        limit = self.limit
        if self.radius is None or not isinstance(limit, Tensor):
            return self
        return self._limited(limit[index.to(limit.device)])

    def without_limit(self) -> Self:
        """The same changes, however large; the space itself where its limits are not one radius."""
        return self._limited(None)

    def _limited(self, limit: Tensor | None) -> Self:
        """The same space with another radius; itself where it has none."""
        changes: dict[str, Any] = {} if self.radius is None else {self.radius: limit}
        return replace(self, **changes)

    def bound(self, x: Batch, bounds: Bounds | None) -> Self:
        """The space with one limit per sample and the victim's bounds; the memory is shared.

        Raises:
            InputError: no pictures, or of channels that this change is not made for; limits that do not fit; x off the
                lattice.
        """
        x = _pictures(x)
        if self.channels is not None and x.shape[1] not in self.channels:
            wanted = " or ".join(map(str, self.channels))
            grey = "; grey pictures have no colour to change" if self.channels == (3,) and x.shape[1] == 1 else ""
            raise InputError(
                f"{self.name.replace('_', ' ')} changes pictures (n, c, h, w) with {wanted} channels; "
                f"{x.shape[1]} came{grey}"
            )
        if bounds is None and (self.lattice is not None or self.channels is not None):
            raise InputError(f"{self!r} needs the victim's bounds, and it declares none")
        space = replace(self, bounds=None if bounds is None else bounds.like(x))
        off = ~space._on_lattice(x)
        if bool(off.any()):
            raise InputError(
                f"{int(off.sum())} of {len(x)} inputs are not on the {self.lattice}-level lattice of {bounds}; "
                "round them first (for 8 bits: x = (x * 255).round() / 255), or leave lattice=None"
            )
        if self.radius is None or self.limit is None:
            return space
        limit = torch.as_tensor(self.limit, dtype=x.dtype, device=x.device)
        limit = limit.expand(len(x)) if limit.ndim == 0 else limit
        if limit.shape != (len(x),) or not bool((torch.isfinite(limit) & (limit >= 0)).all()):
            raise InputError(
                f"{self.radius}, of shape {tuple(limit.shape)}, does not fit {len(x)} pictures; "
                "give one finite number >= 0 for all, or one for each"
            )
        return space._limited(limit.contiguous())


def broadcast(values: Tensor | float, like: Tensor) -> Tensor:
    """One number per sample, or one for all, shaped to broadcast against `like`, (n, ...)."""
    values = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    return values if values.ndim == 0 else per_sample(values, like)


def number(value: object, name: str, least: float = 0.0) -> float:
    """A finite number >= `least`.

    Raises:
        InputError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise InputError(f"{name} is {value!r}; a finite number >= {least:g} is needed")
    return float(value)


def radius_of(value: object, name: str) -> None:
    """Refuse a radius that is neither None, a number >= 0, nor a tensor (which `bound` looks at).

    Raises:
        InputError: what came.
    """
    if value is not None and not isinstance(value, Tensor):
        number(value, name)


def shown(value: object) -> str:
    """A radius in a word: its number, or how many there are."""
    if isinstance(value, Tensor):
        one = value.numel() > 0 and bool((value == value.flatten()[0]).all())
        return f"{float(value.flatten()[0]):g}" if one else f"<{value.numel()} limits>"
    return "None" if value is None else f"{value:g}"


def _pictures(x: Batch) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 4:
        came = f"inputs of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(f"this changes pictures (n, c, h, w); {came} came")
    return x
