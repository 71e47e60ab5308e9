"""Smoothing in space: the median of a window, non-local means, and total variation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.core.victim import Traits
from sparring.defences.inputs.base import InputDefence, above, pictures, whole


@defence(
    Card(
        name="median",
        title="Median smoothing",
        paper="Xu, Evans and Qi 2018, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, "
        "arXiv:1704.01155",
        access=Access.NOTHING,
        spaces=("l0", "l2", "linf"),
        cost="size^2 values sorted per value",
        domains=("image",),
        caveats="Removes lone pixels. It has a gradient, to the value that is the median, so PGD goes straight through.",
    )
)
@dataclass(kw_only=True, eq=False)
class Median(InputDefence):
    """x -> the median of each size x size window of each channel, mirrored at the border.

    Args:
        size: 2 to 9 pixels; an even window reaches one pixel further up and left, and its median is the upper of the two.
    """

    size: int = 3

    def check(self) -> None:
        """2 to 9."""
        whole(self.size, "size", 2, 9)

    def forward(self, x: Tensor) -> Tensor:
        """Medians, (n, c, h, w); the gradient goes to the value that was chosen."""
        pictures(x, "Median")
        n, c, h, w = x.shape
        before, after = self.size // 2, (self.size - 1) // 2
        padded = F.pad(x, (before, after, before, after), mode="reflect")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1).reshape(n, c, h, w, self.size**2)
        return windows.sort(-1).values[..., self.size**2 // 2]


@defence(
    Card(
        name="non-local-means",
        title="Non-local means",
        paper="Buades, Coll and Morel 2005, A Non-Local Algorithm for Image Denoising, doi:10.1109/CVPR.2005.38; as a "
        "defence Xu, Evans and Qi 2018, arXiv:1704.01155",
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="search^2 shifted copies of the input",
        domains=("image",),
        caveats="Differentiable throughout: PGD through it needs no surrogate.",
        aliases=("nlm",),
    )
)
@dataclass(kw_only=True, eq=False)
class NonLocalMeans(InputDefence):
    """x_i -> sum_j w_ij x_j with w_ij = exp(-||P_i - P_j||^2 / strength^2), over a window around i.

    Here ||P_i - P_j||^2 is the mean squared difference of the patches around i and j, over all channels.

    Args:
        search: side of the window that j runs over, odd, in pixels.
        patch: side of the patches that are compared, odd, in pixels.
        strength: in raw units; larger values smooth more.
    """

    search: int = 7
    patch: int = 3
    strength: float = 0.1

    def check(self) -> None:
        """Odd sides, a positive strength."""
        whole((self.search - 1) // 2 if self.search % 2 else 0, "half of an odd search window", 1, 15)
        whole((self.patch - 1) // 2 if self.patch % 2 else -1, "half of an odd patch", 0, 7)
        above(self.strength, "strength", 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Weighted means, (n, c, h, w)."""
        pictures(x, "NonLocalMeans")
        h, w = x.shape[-2:]
        reach, half = self.search // 2, self.patch // 2
        padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
        total = torch.zeros_like(x)
        weights = torch.zeros_like(x[:, :1])
        for down in range(self.search):
            for right in range(self.search):
                other = padded[..., down : down + h, right : right + w]
                far = (x - other).square().mean(1, keepdim=True)
                far = F.avg_pool2d(far, self.patch, 1, half, count_include_pad=False) if half else far
                weight = torch.exp(-far / self.strength**2)
                total = total + weight * other
                weights = weights + weight
        return total / weights


@defence(
    Card(
        name="total-variation",
        title="Total variation minimisation",
        paper="Rudin, Osher and Fatemi 1992, doi:10.1016/0167-2789(92)90242-F, by Chambolle 2004, "
        "doi:10.1023/B:JMIV.0000011325.36760.1e; as a defence Guo et al. 2018, arXiv:1711.00117",
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="steps x a few elementwise operations",
        domains=("image",),
        caveats="An optimisation inside the forward: unrolled it is differentiable, at steps times its memory; the "
        "identity as surrogate is cheaper and broke it in Athalye et al. 2018.",
        aliases=("tv",),
    )
)
@dataclass(kw_only=True, eq=False)
class TotalVariation(InputDefence):
    """x -> argmin_z ||z - x||^2 / 2 + weight * TV(z) per channel, by Chambolle's dual iteration.

    Args:
        weight: in raw units; larger values flatten more.
        steps: iterations, a fixed number so that every sample gets the same whatever its batch.
        unroll: differentiate through the iterations; False gives the gradient of the identity under BPDA.
    """

    traits = Traits(optimises=True)

    weight: float = 0.1
    steps: int = 20
    unroll: bool = True

    def check(self) -> None:
        """A positive weight and at least one step."""
        above(self.weight, "weight", 0.0)
        whole(self.steps, "steps", 1)
        if not self.unroll:
            self.surrogate = _identity

    def forward(self, x: Tensor) -> Tensor:
        """The flattened pictures, (n, c, h, w)."""
        pictures(x, "TotalVariation")
        if self.unroll:
            return self._solve(x)
        with torch.no_grad():
            solved = self._solve(x)
        return solved + 0 * x  # connected, with no gradient of its own

    def _solve(self, x: Tensor) -> Tensor:
        down, right = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(self.steps):
            slope_down, slope_right = _gradient(_divergence(down, right) - x / self.weight)
            # +1e-12: the length has no derivative where the picture is flat
            scale = 1 + 0.25 * (slope_down.square() + slope_right.square() + 1e-12).sqrt()
            down, right = (down + 0.25 * slope_down) / scale, (right + 0.25 * slope_right) / scale
        return x - self.weight * _divergence(down, right)


def _identity(x: Tensor) -> Tensor:
    return x


def _gradient(z: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences down and right, zero at the last row and column."""
    return F.pad(z[..., 1:, :] - z[..., :-1, :], (0, 0, 0, 1)), F.pad(z[..., 1:] - z[..., :-1], (0, 1))


def _divergence(down: Tensor, right: Tensor) -> Tensor:
    """The negative adjoint of `_gradient`."""
    rows = down[..., :-1, :]
    columns = right[..., :-1]
    return F.pad(rows, (0, 0, 0, 1)) - F.pad(rows, (0, 0, 1, 0)) + F.pad(columns, (0, 1)) - F.pad(columns, (1, 0))
