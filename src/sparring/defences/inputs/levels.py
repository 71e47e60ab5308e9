"""Fewer grey levels: the binary threshold and the reduction of bit depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.core.errors import InputError
from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.core.victim import Traits
from sparring.defences.inputs.base import InputDefence, above, whole


@defence(
    Card(
        name="threshold",
        title="Binary threshold: every value becomes black or white",
        paper="Xu, Evans and Qi 2018, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, "
        "arXiv:1704.01155 (depth 1)",
        access=Access.NOTHING,
        spaces=("linf",),
        cost="one comparison per value",
        domains=("image",),
        caveats="Holds where pixels are nearly black or white already and eps stays below the gap, as on MNIST; on photos "
        "it costs most of the clean accuracy and BPDA goes through what is left.",
        aliases=("binary-threshold",),
    )
)
@dataclass(kw_only=True, eq=False)
class Threshold(InputDefence):
    """x -> 1[x > level] (as lo or hi), with a sigmoid of the given slope in its place for gradients.

    Args:
        level: in raw units; values at the level become lo.
        lo, hi: the two values that are left.
        slope: of the surrogate at the level, per raw unit; 0 takes the identity.
    """

    traits = Traits(differentiable=False)

    level: float = 0.5
    lo: float = 0.0
    hi: float = 1.0
    slope: float = 10.0

    def check(self) -> None:
        """lo < level < hi and a slope that is not negative."""
        if not self.lo < self.level < self.hi:
            raise InputError(f"level is {self.level!r}; it must lie between lo {self.lo:g} and hi {self.hi:g}")
        if self.slope < 0:
            raise InputError(f"slope is {self.slope!r}; a number >= 0 is needed")

    def forward(self, x: Tensor) -> Tensor:
        """lo or hi in every place, (n, ...); the gradient is zero everywhere."""
        above_it = (x - self.level).sign().clamp(min=0.0)
        return self.lo + (self.hi - self.lo) * above_it

    def surrogate(self, x: Tensor) -> Tensor:
        """A smooth step, steepest at the level."""
        if self.slope == 0:
            return x
        return self.lo + (self.hi - self.lo) * torch.sigmoid(4 * self.slope * (x - self.level) / (self.hi - self.lo))


@defence(
    Card(
        name="bit-depth",
        title="Bit depth reduction",
        paper="Xu, Evans and Qi 2018, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, "
        "arXiv:1704.01155; Guo et al. 2018, Countering Adversarial Images using Input Transformations, arXiv:1711.00117",
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="one rounding per value",
        domains=("image",),
        caveats="Rounding hides the gradient and nothing else: the identity as its surrogate breaks it "
        "(Athalye et al. 2018, arXiv:1802.00420).",
        aliases=("bits",),
    )
)
@dataclass(kw_only=True, eq=False)
class BitDepth(InputDefence):
    """x -> the nearest of 2^bits levels between lo and hi; gradients pass as through the identity.

    Args:
        bits: 1 to 16.
        lo, hi: the ends of the input's range.
    """

    traits = Traits(differentiable=False)

    bits: int = 4
    lo: float = 0.0
    hi: float = 1.0

    def check(self) -> None:
        """1 to 16 bits, lo < hi."""
        whole(self.bits, "bits", 1, 16)
        above(self.hi - self.lo, "hi - lo", 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """The nearest level, (n, ...); the gradient is zero everywhere."""
        steps = (2**self.bits - 1) / (self.hi - self.lo)
        rounded: Tensor = ((x - self.lo) * steps).round() / steps
        return self.lo + rounded

    def surrogate(self, x: Tensor) -> Tensor:
        """The identity."""
        return x
