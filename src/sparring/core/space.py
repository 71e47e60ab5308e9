"""The space protocol: what is a legal change of an input, and what the change costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.errors import InputError


@runtime_checkable
class Space(Protocol):
    """A set of legal changes. Tensors, strings, rows and graphs each bring their own.

    `limit` is the largest legal cost per sample, float (n,) or a number, or None where the smallest change is sought.
    """

    @property
    def name(self) -> str:
        """What cards and messages call it."""
        ...

    @property
    def limit(self) -> Tensor | float | None:
        """The largest legal cost, or None."""
        ...

    def contains(self, x: Batch, x_adv: Batch) -> Tensor:
        """Bool (n,): which changes are legal."""
        ...

    def cost(self, x: Batch, x_adv: Batch) -> Tensor:
        """Float (n,): what each change costs, in the space's own unit; 0 for no change."""
        ...

    def take(self, index: Tensor) -> Space:
        """The space for the samples at `index` (per-sample limits follow their samples)."""
        ...

    def bound(self, x: Batch, bounds: Bounds | None) -> Space:
        """The space made ready for a batch: limits checked and moved to its device, the victim's bounds taken in.

        Raises:
            InputError: limits that do not fit the batch, or an input that is itself illegal.
        """
        ...


@dataclass(frozen=True, eq=False)
class Bounds:
    """The victim's input domain, lo <= x <= hi, as tensors that broadcast against one batch (scalars or per
    feature).
    """

    lo: Tensor
    hi: Tensor

    @classmethod
    def of(cls, bounds: tuple[float | Tensor, float | Tensor]) -> Bounds:
        """Build from a pair of numbers or of per-feature tensors without the batch dimension.

        Raises:
            InputError: not a pair, not finite, or lo not below hi.
        """
        try:
            lo, hi = (torch.as_tensor(b, dtype=torch.float32) for b in bounds)
        except (TypeError, ValueError) as cause:
            raise InputError(
                f"bounds are {bounds!r}; a pair (lo, hi) of numbers or per-feature tensors is needed"
            ) from cause
        if not (bool(torch.isfinite(lo).all()) and bool(torch.isfinite(hi).all()) and bool((lo < hi).all())):
            raise InputError(f"bounds are {bounds!r}; finite numbers with lo < hi are needed")
        return cls(lo, hi)

    def like(self, x: Tensor) -> Bounds:
        """The same bounds on x's device and in its dtype."""
        return Bounds(self.lo.to(x), self.hi.to(x))

    def clamp(self, x: Tensor) -> Tensor:
        """x with every element inside."""
        if self.lo.ndim == 0 and self.hi.ndim == 0:
            return x.clamp(float(self.lo), float(self.hi))
        return torch.minimum(torch.maximum(x, self.lo), self.hi)

    def contain(self, x: Tensor, tolerance: float = 0.0) -> Tensor:
        """Bool (n,): which samples lie inside, up to `tolerance` of the range."""
        slack = tolerance * (self.hi - self.lo)
        return ((x >= self.lo - slack) & (x <= self.hi + slack)).flatten(1).all(1)

    def __repr__(self) -> str:
        show = [f"{float(b):g}" if b.ndim == 0 else f"tensor{tuple(b.shape)}" for b in (self.lo, self.hi)]
        return f"[{show[0]}, {show[1]}]"
