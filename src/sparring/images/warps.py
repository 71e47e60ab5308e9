"""Where pixels come from: rotations with translations, and flows, as spaces of legal changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.core.errors import InputError
from sparring.images.rendering import Drawn, number, radius_of, shown

FILLS = {"black": "zeros", "edge": "border", "mirror": "reflection"}


def sample(x: Tensor, right: Tensor, down: Tensor, fill: str = "edge") -> Tensor:
    """Bilinear values of x at points of each picture.

    Args:
        x: pictures, (n, c, h, w).
        right, down: the points in pixels from the first pixel's centre, (n, h', w').
        fill: what lies outside: "black" (zero), "edge" (the border repeated) or "mirror".

    Returns:
        (n, c, h', w'), differentiable in the points.
    """
    h, w = x.shape[2:]
    grid = torch.stack([(2 * right + 1) / w - 1, (2 * down + 1) / h - 1], -1)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode=FILLS[fill], align_corners=False)


def pixels_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """The column and the row of each pixel of (n, c, h, w), two tensors (h, w)."""
    down, right = torch.meshgrid(
        torch.arange(x.shape[2], dtype=x.dtype, device=x.device),
        torch.arange(x.shape[3], dtype=x.dtype, device=x.device),
        indexing="ij",
    )
    return right, down


@dataclass(frozen=True, eq=False)
class Rotations(Drawn):
    """Pictures turned about their middle and then moved: theta = (degrees, pixels right, pixels down), (n, 3).

    Positive angles turn counter-clockwise, as `torch.rot90` does. The cost of a change is its share of what is allowed:
    ``max(|angle| / degrees, |right| / pixels, |down| / pixels)``, so the limit is 1. What is legal is in the parameters;
    `Drawn` says how a pair is checked.

    Args:
        degrees: the largest angle.
        pixels: the largest shift along each axis; a tenth of the side is usual (3 for CIFAR, 24 for ImageNet).
        fill: what comes in from outside: "black" (the lower bound), "edge" or "mirror".

    Raises:
        InputError: a negative or infinite limit, an unknown fill.

    Example:
        >>> space = Rotations(30, 3)
        >>> x = torch.rand(1, 3, 8, 8)
        >>> turned = space.render(x, torch.tensor([[15.0, 1.0, 0.0]]))
        >>> space.contains(x, turned).tolist(), space.contains(x, turned + 0.01).tolist(), space.cost(x, turned).tolist()
        ([True], [False], [0.5])
    """

    degrees: float = 30.0
    pixels: float = 3.0
    fill: str = "black"

    name: ClassVar[str] = "rotations"

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.degrees, "degrees")
        number(self.pixels, "pixels")
        if self.fill not in FILLS:
            raise InputError(f"fill is {self.fill!r}; it must be one of: {', '.join(FILLS)}")

    def reach(self, like: Tensor) -> Tensor:
        """The largest legal parameters, (3,)."""
        return like.new_tensor([self.degrees, self.pixels, self.pixels])

    def blank(self, x: Tensor) -> Tensor:
        """No turn and no shift, (n, 3)."""
        return x.new_zeros(len(x), 3)

    def size(self, theta: Tensor) -> Tensor:
        """The largest share of a limit, (n,); what is not allowed at all costs infinitely much."""
        share = theta.abs() / self.reach(theta)
        return torch.where(theta == 0, torch.zeros_like(theta), share).amax(1)

    def draw(self, x: Tensor, theta: Tensor) -> Tensor:
        """Each pixel looks up where it was before the shift and the turn."""
        right, down = pixels_of(x)
        angle, across, along = (theta[:, i, None, None] for i in range(3))
        angle = angle * (math.pi / 180)
        middle = ((x.shape[3] - 1) / 2, (x.shape[2] - 1) / 2)
        u, v = right - across - middle[0], down - along - middle[1]
        lo = 0.0 if self.bounds is None else self.bounds.lo  # black is the lower bound
        return lo + sample(
            x - lo,
            u * angle.cos() - v * angle.sin() + middle[0],
            u * angle.sin() + v * angle.cos() + middle[1],
            self.fill,
        )

    def __repr__(self) -> str:
        more = "" if self.fill == "black" else f", fill={self.fill!r}"
        grid = "" if self.lattice is None else f", lattice={self.lattice}"
        return f"Rotations(degrees={self.degrees:g}, pixels={self.pixels:g}{more}{grid})"


@dataclass(frozen=True, eq=False)
class Flow(Drawn):
    """Pictures whose every pixel is looked up a little elsewhere: x'(p) = x(p + f(p)), with f = theta, (n, 2, h, w).

    f holds pixels to the right and pixels down; values between pixels are bilinear, and the border is repeated. The cost
    is the longest displacement in pixels, ``max_p |f(p)|_2``. What is legal is in the parameters; `Drawn` says how a
    pair is checked.

    Args:
        pixels: the longest legal displacement, a number or one per picture, (n,); None seeks the smallest.

    Raises:
        InputError: a negative or infinite limit.
    """

    pixels: float | Tensor | None = None

    name: ClassVar[str] = "flow"
    radius: ClassVar[str | None] = "pixels"

    def __post_init__(self) -> None:
        super().__post_init__()
        radius_of(self.pixels, "pixels")

    def blank(self, x: Tensor) -> Tensor:
        """Every pixel at its place, (n, 2, h, w)."""
        return x.new_zeros(len(x), 2, *x.shape[2:])

    def size(self, theta: Tensor) -> Tensor:
        """The longest displacement, (n,)."""
        length: Tensor = torch.linalg.vector_norm(theta, dim=1)
        return length.flatten(1).amax(1)

    def draw(self, x: Tensor, theta: Tensor) -> Tensor:
        """Each pixel looks up the point that its flow names."""
        right, down = pixels_of(x)
        return sample(x, right + theta[:, 0], down + theta[:, 1])

    def __repr__(self) -> str:
        grid = "" if self.lattice is None else f", lattice={self.lattice}"
        return f"Flow(pixels={shown(self.pixels)}{grid})"


def roughness(flow: Tensor) -> Tensor:
    """Xiao et al.'s flow loss: the sum over neighbours p, q of sqrt(|du|^2 + |dv|^2), (n,).

    Each pair of neighbours counts twice, as in the paper; the root is softened near zero, where it has no slope.
    """
    total = flow.new_zeros(len(flow))
    for axis in (2, 3):
        step = flow.diff(dim=axis)
        total = total + 2 * (step.square().sum(1) + 1e-8).sqrt().flatten(1).sum(1)
    return total
