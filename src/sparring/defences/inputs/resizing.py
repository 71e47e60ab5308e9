"""Random resizing and padding, drawn anew for each sample and forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.core.errors import InputError
from sparring.core.registry import Card, defence
from sparring.core.rng import KeyedRandom
from sparring.core.threat import Access
from sparring.core.victim import Traits
from sparring.defences.inputs.base import InputDefence, above, pictures, whole


@defence(
    Card(
        name="resize-pad",
        title="Random resizing and padding",
        paper="Xie et al. 2018, Mitigating Adversarial Effects Through Randomization, arXiv:1711.01991",
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="one bilinear resampling per sample",
        domains=("image",),
        caveats="Each draw is differentiable, so the expectation over 30 of them takes the accuracy to that of the bare "
        "network (Athalye et al. 2018, arXiv:1802.00420).",
        aliases=("random-resize-pad", "randomization"),
    )
)
@dataclass(kw_only=True, eq=False)
class ResizePad(InputDefence):
    """x -> x at a random size, at a random place on a canvas of zeros.

    Sizes are whole pixels, uniform on [smallest * side of the canvas, side of the canvas], the same factor for height
    and width; places are uniform among those that fit.

    Args:
        smallest: the least size over the canvas, in (0, 1]; the paper's 299 of 331 pixels.
        canvas: height and width of the canvas in pixels; None keeps the input's own, for networks of one input size.
    """

    traits = Traits(stochastic=True)
    keyed = True

    smallest: float = 299 / 331
    canvas: int | None = None

    def check(self) -> None:
        """0 < smallest <= 1, a canvas of at least one pixel."""
        above(self.smallest, "smallest", 0.0, 1.0)
        if self.canvas is not None:
            whole(self.canvas, "canvas", 1)

    def forward(self, x: Tensor, noise: KeyedRandom | None = None, stream: int = 0) -> Tensor:
        """The resized and padded pictures, (n, c, h', w').

        Args:
            x: pictures (n, c, h, w).
            noise: keyed noise of these samples; None draws from torch's global generator, as dropout does.
            stream: the place of this stage among several.
        """
        pictures(x, "ResizePad")
        n, _, h, w = x.shape
        if self.canvas is not None and h != w:
            raise InputError(f"canvas is one side of a square; the pictures are {h} x {w}. Leave canvas=None")
        height, width = (h, w) if self.canvas is None else (self.canvas, self.canvas)
        if not n:
            return x.new_zeros(0, x.shape[1], height, width)
        draws = torch.rand(n, 3) if noise is None else noise.uniform((3,), ("resize-pad", stream))
        draws = draws.to(device=x.device, dtype=x.dtype)
        least = max(1, round(self.smallest * height))
        tall = least + (draws[:, 0] * (height - least + 1)).floor()
        wide = (tall * width / height).round().clamp(min=1)
        top, left = ((draws[:, 1] * (height - tall + 1)).floor(), (draws[:, 2] * (width - wide + 1)).floor())
        # canvas coordinates run over [-1, 1]; theta takes them to the picture's own
        theta = x.new_zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = width / wide, height / tall
        theta[:, 0, 2] = (width - 2 * left) / wide - 1
        theta[:, 1, 2] = (height - 2 * top) / tall - 1
        grid = F.affine_grid(theta, [n, x.shape[1], height, width], align_corners=False)
        drawn = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        inside = (grid.abs() <= 1).all(-1)[:, None]
        return torch.where(inside, drawn, torch.zeros_like(drawn))
