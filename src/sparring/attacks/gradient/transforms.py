"""Input transforms that make a gradient carry over to other victims: diverse inputs, translation and scale invariance.

Each is a small part: it may change what the victim sees (`view`), ask for several views a step (`copies`), or work on
the gradient (`smooth`). `parse` reads a combination from text, and `seen_through` turns it into a way to have gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.attacks.gradient.parts import Slope, at_point, gradient_through
from sparring.core.errors import InputError, UnknownNameError
from sparring.core.losses import Loss
from sparring.core.runner import Gradient, Run


class Transform:
    """One input transform; by itself it changes nothing."""

    name: ClassVar[str]
    copies: int = 1

    def view(self, x: Tensor, copy: int, run: Run, stream: tuple[str | int, ...]) -> tuple[Tensor, Tensor]:
        """The inputs as copy number `copy` shows them, differentiable in x, and which samples it left untouched, (m,).

        `stream` names the step and the view, for draws from `run.rng`.
        """
        return x, torch.ones(len(x), dtype=torch.bool, device=x.device)

    def smooth(self, grad: Tensor) -> Tensor:
        """The gradient (m, ...) to climb along in place of `grad`."""
        return grad


@dataclass(frozen=True)
class DiverseInputs(Transform):
    """Shrink the picture to a random size and pad it with zeros at a random place (DI, Xie et al. 2019, arXiv:1803.06978).

    Args:
        probability: with which a sample is transformed at a step.
        rate: the least size, as a share of the side.

    The published attack enlarges 299 to at most 330 pixels; shrinking keeps the size, which many victims need.
    """

    probability: float = 0.5
    rate: float = 0.9
    name: ClassVar[str] = "di"

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 < self.rate <= 1):
            raise InputError(
                f"di has probability {self.probability} and rate {self.rate}; a probability on [0, 1] and a rate on "
                "(0, 1] are needed"
            )

    def view(self, x: Tensor, copy: int, run: Run, stream: tuple[str | int, ...]) -> tuple[Tensor, Tensor]:
        """Every sample at its own size and place, in one call."""
        _need_pictures("di", x)
        draw = run.rng.uniform((4,), (*stream, "di")).to(x.dtype)
        chosen = draw[:, 0] < self.probability
        rows = chosen.nonzero().squeeze(1)
        draw = draw[rows]
        side = torch.tensor(x.shape[-2:], dtype=x.dtype, device=x.device)
        least = (self.rate * side).floor().clamp(min=1.0)
        # height and width share one draw: the picture keeps its proportions
        size = (least + (draw[:, 1:2] * (side - least + 1)).floor()).minimum(side)
        corner = (draw[:, 2:4] * (side - size + 1)).floor().minimum(side - size)
        return x.index_copy(0, rows, resize_and_pad(x[rows], size, corner)), ~chosen


@dataclass(frozen=True)
class TranslationInvariance(Transform):
    """Smooth the gradient by a Gaussian: near enough the mean over shifted pictures (TI, Dong et al. 2019, arXiv:1904.02884).

    Args:
        kernel: the kernel's side in pixels, odd; it covers three standard deviations to each side.
    """

    kernel: int = 15
    name: ClassVar[str] = "ti"

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(f"ti has a kernel of {self.kernel} pixels; an odd number >= 1 is needed")

    def smooth(self, grad: Tensor) -> Tensor:
        """The gradient convolved with the kernel, channel by channel; zero beyond the edges, (m, c, h, w)."""
        _need_pictures("ti", grad)
        # as two matrix products: on a processor many times faster than a convolution channel by channel
        rows, columns = (_smoother(self.kernel, side).to(grad) for side in grad.shape[-2:])
        return rows @ grad @ columns.T


@dataclass(frozen=True)
class ScaleInvariance(Transform):
    """Average the gradients at x, x / 2, x / 4, ... (SI, Lin et al. 2020, arXiv:1908.06281).

    Args:
        copies: how many scales; each costs a forward and a backward.
    """

    copies: int = 5
    name: ClassVar[str] = "si"

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise InputError(f"si has {self.copies} copies; at least one is needed")

    def view(self, x: Tensor, copy: int, run: Run, stream: tuple[str | int, ...]) -> tuple[Tensor, Tensor]:
        """x / 2^copy."""
        return (x / 2**copy if copy else x), torch.full((len(x),), copy == 0, device=x.device)


TRANSFORMS: dict[str, type[Transform]] = {
    cls.name: cls for cls in (DiverseInputs, TranslationInvariance, ScaleInvariance)
}


def parse(text: str) -> tuple[Transform, ...]:
    """The transforms in a text such as "di+ti+si"; a number sets the first parameter: "di=0.7+ti=7+si=3".

    Raises:
        UnknownNameError: no such transform.
        InputError: a number that is none, or out of range.
    """
    found = []
    for part in filter(None, (p.strip() for p in text.split("+"))):
        name, _, number = part.partition("=")
        if name.strip() not in TRANSFORMS:
            raise UnknownNameError.among("transform", name.strip(), TRANSFORMS, 'Join several with "+".')
        cls = TRANSFORMS[name.strip()]
        try:
            value = [float(number) if cls is DiverseInputs else int(number)] if number else []
        except ValueError as cause:
            raise InputError(f"{part!r} has {number!r} where a number is needed, as in ti=7") from cause
        found.append(cls(*value))
    return tuple(found)


def seen_through(transforms: Sequence[Transform] | str) -> Slope:
    """A way to have gradients: the mean over the transforms' copies, each seen through all of them, smoothed at the end."""
    parts = parse(transforms) if isinstance(transforms, str) else tuple(transforms)
    if not parts:
        return at_point
    copies = math.prod(part.copies for part in parts)

    def slope(run: Run, x: Tensor, loss: Loss, t: int) -> Gradient:
        total: Gradient | None = None
        for copy in range(copies):
            g = _one_view(run, x, loss, parts, copy, t)
            total = g if total is None else Gradient(*(a + b for a, b in zip(total, g, strict=True)))
        if total is None:
            raise InputError("no copies of the input are asked for; at least one is needed")
        value, grad, scores = total if copies == 1 else Gradient(*(a / copies for a in total))
        for part in parts:
            grad = part.smooth(grad)
        return Gradient(value, grad, scores)

    return slope


def _one_view(run: Run, x: Tensor, loss: Loss, parts: tuple[Transform, ...], number: int, t: int) -> Gradient:
    """The gradient through view `number` of all combinations; samples that no transform touched are answered as ever."""
    if all(type(part).view is Transform.view for part in parts):
        return run.gradient(x, loss)

    def through(leaf: Tensor) -> tuple[Tensor, Tensor | None]:
        untouched = torch.ones(len(leaf), dtype=torch.bool, device=leaf.device)
        rest = number
        for part in parts:
            rest, copy = divmod(rest, part.copies)
            leaf, same = part.view(leaf, copy, run, ("transform", run.restart, t, number))
            untouched = untouched & same
        return leaf, untouched

    return gradient_through(run, x, loss, through)


def resize_and_pad(x: Tensor, size: Tensor, corner: Tensor) -> Tensor:
    """Each picture resized bilinearly to its own size, at its own corner of a black picture of the old size.

    Args:
        x: (n, c, h, w).
        size: (n, 2), height and width in pixels, at most h and w.
        corner: (n, 2), the first row and column.
    """
    grids = []
    for axis, length in ((0, x.shape[-2]), (1, x.shape[-1])):
        pixel = torch.arange(length, dtype=x.dtype, device=x.device) + 0.5
        # where each output pixel's centre lies in the resized picture, from -1 at its first edge to 1 at its last
        grids.append((pixel - corner[:, axis, None]) / size[:, axis, None] * 2 - 1)
    rows, columns = grids
    grid = torch.stack(
        [columns[:, None, :].expand(-1, x.shape[-2], -1), rows[:, :, None].expand(-1, -1, x.shape[-1])], -1
    )
    inside = (rows.abs() <= 1)[:, :, None] & (columns.abs() <= 1)[:, None, :]
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False) * inside[:, None].to(x.dtype)


@lru_cache(maxsize=16)
def _smoother(kernel: int, side: int) -> Tensor:
    """The (side, side) matrix that convolves a line with a Gaussian over `kernel` pixels, summing to 1."""
    place = torch.linspace(-3.0, 3.0, kernel) if kernel > 1 else torch.zeros(1)
    weight = (-0.5 * place.square()).exp()
    pixel = torch.arange(side)
    tap = pixel[None, :] - pixel[:, None] + kernel // 2
    inside = (tap >= 0) & (tap < kernel)
    return torch.where(inside, (weight / weight.sum())[tap.clamp(0, kernel - 1)], 0.0)


def _need_pictures(name: str, x: Tensor) -> None:
    if x.ndim != 4:
        raise InputError(f"{name} works on pictures (n, c, h, w); inputs of shape {tuple(x.shape)} came")
