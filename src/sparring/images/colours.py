"""What colours become: smooth maps of colour space, and shifts of hue and saturation, as spaces of legal changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.core.errors import InputError
from sparring.images.rendering import SLACK, Drawn, number, radius_of, shown


def rgb_to_hsv(x: Tensor) -> Tensor:
    """Hue in turns, saturation and value, (n, 3, h, w), of colours in [0, 1]; the hue of grey is 0, black has saturation
    0.
    """
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    r, g, b = x.unbind(1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixth = torch.where(
        value == r, ((g - b) / safe) % 6, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    hue = torch.where(chroma > 0, sixth / 6, torch.zeros_like(chroma))
    saturation = chroma / torch.where(value > 0, value, torch.ones_like(value))
    return torch.stack([hue, saturation, value], 1)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """Colours in [0, 1], (n, 3, h, w), whose largest channel is the value to the last bit; any hue is taken mod 1."""
    hue, saturation, value = hsv.unbind(1)
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


@dataclass(frozen=True, eq=False)
class HueSaturation(Drawn):
    """Colour pictures whose hues turn and whose saturation shifts by one amount each: theta = (turns, shift), (n, 2).

    ``H' = H + turns mod 1``, ``S' = clip(S + shift, 0, 1)``, ``V' = V``. The cost is the share of what is allowed,
    ``max(|turns| / hue, |shift| / saturation)`` with turns in [-1/2, 1/2], so the limit is 1. The pair (x, x') alone
    decides: the value channel must be unchanged, and one turn and one shift, read off the pixels, must draw x' again.

    Args:
        hue: the largest turn, a share of the circle up to 0.5, which allows any.
        saturation: the largest shift, up to 1.

    Raises:
        InputError: limits out of range; with `bound`, pictures that are not in colour.

    Hosseini and Poovendran 2018, Semantic Adversarial Examples, arXiv:1804.00499.
    """

    hue: float = 0.5
    saturation: float = 1.0

    name: ClassVar[str] = "hue_saturation"
    channels: ClassVar[tuple[int, ...] | None] = (3,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("hue", 0.5), ("saturation", 1.0)):
            if number(getattr(self, name), name) > most:
                raise InputError(f"{name} is {getattr(self, name)!r}; at most {most:g} is needed")

    def reach(self, like: Tensor) -> Tensor:
        """The largest legal parameters, (2,)."""
        return like.new_tensor([self.hue, self.saturation])

    def blank(self, x: Tensor) -> Tensor:
        """No turn and no shift, (n, 2)."""
        return x.new_zeros(len(x), 2)

    def size(self, theta: Tensor) -> Tensor:
        """The largest share of a limit, (n,)."""
        theta = torch.stack([_wrapped(theta[:, 0]), theta[:, 1]], 1)
        share = theta.abs() / self.reach(theta)
        return torch.where(theta == 0, torch.zeros_like(theta), share).amax(1)

    def draw(self, x: Tensor, theta: Tensor) -> Tensor:
        """Through hue, saturation and value, and back."""
        lo, span = self._range()
        hsv = rgb_to_hsv((x - lo) / span)
        hue = hsv[:, 0] + theta[:, 0, None, None]
        saturation = (hsv[:, 1] + theta[:, 1, None, None]).clamp(0, 1)
        return lo + span * hsv_to_rgb(torch.stack([hue, saturation, hsv[:, 2]], 1))

    def infer(self, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """The turn and the shift, as weighted means over the pixels that show them."""
        lo, span = self._range()
        before, after = (rgb_to_hsv(((p - lo) / span).clamp(0, 1)).flatten(2).double() for p in (x, x_adv))
        chroma, chroma_after = before[:, 1] * before[:, 2], after[:, 1] * after[:, 2]
        weight = chroma * chroma_after
        # grey pixels count as red: they tell the turn where nothing else does
        weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, chroma_after)
        angle = 2 * math.pi * (after[:, 0] - before[:, 0])
        turns = torch.atan2((weight * angle.sin()).sum(1), (weight * angle.cos()).sum(1)) / (2 * math.pi)
        inside = before[:, 2] * ((after[:, 1] > 1e-4) & (after[:, 1] < 1 - 1e-4))
        mean = (inside * (after[:, 1] - before[:, 1])).sum(1) / inside.sum(1).clamp(min=1e-12)
        drained, lit = -before[:, 1].amax(1), before[:, 2] > 0
        full = 1 - torch.where(lit, before[:, 1], 1.0).amin(1)
        clipped = torch.where((after[:, 1] * before[:, 2]).sum(1) > 0, full, drained)
        shift = torch.where(inside.sum(1) > 0, mean, clipped)
        kept = (before[:, 2] - after[:, 2]).abs().amax(1) <= 1e-5
        theta = torch.stack([turns, shift], 1).to(x)
        reach = self.reach(theta)  # what is read off may pass a limit by its own rounding; `contains` draws again
        return torch.where(theta.abs() <= reach + SLACK, theta.clamp(-reach, reach), theta), kept

    def _range(self) -> tuple[Tensor | float, Tensor | float]:
        return (0.0, 1.0) if self.bounds is None else (self.bounds.lo, self.bounds.hi - self.bounds.lo)

    def __repr__(self) -> str:
        grid = "" if self.lattice is None else f", lattice={self.lattice}"
        return f"HueSaturation(hue={self.hue:g}, saturation={self.saturation:g}{grid})"


def _wrapped(turns: Tensor) -> Tensor:
    return (turns + 0.5) % 1 - 0.5


@dataclass(frozen=True, eq=False)
class ColourMap(Drawn):
    """Colour pictures recoloured by one map g of colour space, the same at every pixel: x'(p) = g(x(p)).

    g moves the nodes of a grid over red, green and blue by theta, (n, 3, r, r, r), and is trilinear in between:
    ``g(c) = clip(c + sum over the cell's corners of their weights times theta)``. The cost is the largest move of a node
    in any channel, as a share of the bounds' width; no pixel moves further. What is legal is in the parameters; `Drawn`
    says how a pair is checked.

    Args:
        eps: the largest legal move, a number or one per picture, (n,).
        resolution: r, nodes along each axis: the fewer, the smoother g must be.

    Raises:
        InputError: a negative or infinite eps, fewer than 2 nodes; with `bound`, pictures that are not in colour.

    Laidlaw and Feizi 2019, Functional Adversarial Attacks, arXiv:1906.00001.
    """

    eps: float | Tensor | None = 0.06
    resolution: int = 16

    name: ClassVar[str] = "colour_map"
    channels: ClassVar[tuple[int, ...] | None] = (3,)
    radius: ClassVar[str | None] = "eps"

    def __post_init__(self) -> None:
        super().__post_init__()
        radius_of(self.eps, "eps")
        if not isinstance(self.resolution, int) or self.resolution < 2:
            raise InputError(f"resolution is {self.resolution!r}; at least 2 nodes along each axis are needed")

    def blank(self, x: Tensor) -> Tensor:
        """Every colour at its place, (n, 3, r, r, r)."""
        return x.new_zeros(len(x), 3, *[self.resolution] * 3)

    def size(self, theta: Tensor) -> Tensor:
        """The largest move of a node, (n,)."""
        return theta.abs().flatten(1).amax(1)

    def draw(self, x: Tensor, theta: Tensor) -> Tensor:
        """Look every colour up in the grid."""
        lo, span = (0.0, 1.0) if self.bounds is None else (self.bounds.lo, self.bounds.hi - self.bounds.lo)
        colour = (x - lo) / span
        # the axes of theta are red, green, blue, and grid_sample names the last axis first
        where = (2 * colour - 1).flip(1).permute(0, 2, 3, 1)[:, None]
        move = F.grid_sample(theta, where, mode="bilinear", padding_mode="border", align_corners=True)[:, :, 0]
        return lo + span * (colour + move).clamp(0, 1)

    def __repr__(self) -> str:
        grid = "" if self.lattice is None else f", lattice={self.lattice}"
        return f"ColourMap(eps={shown(self.eps)}, resolution={self.resolution}{grid})"
