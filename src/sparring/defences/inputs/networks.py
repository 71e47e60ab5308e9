"""The small networks that stages learn with, for pictures of any size: a U-Net and a generator with its critic."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring.defences.inputs.base import whole


class UNet(nn.Module):
    """Two convolutions at full, at half and at a quarter of the resolution, and back with skips; starts at zero.

    Args:
        channels: of the pictures.
        width: channels inside at full resolution; twice as many below.
        timed: whether `forward` takes the step of a diffusion.
    """

    def __init__(self, channels: int, width: int = 16, *, timed: bool = False) -> None:
        super().__init__()
        whole(channels, "channels", 1)
        whole(width, "width", 1)
        self.settings = {"channels": channels, "width": width, "timed": timed}
        self.top = _Block(channels, width, timed=timed)
        self.middle = _Block(width, 2 * width, timed=timed)
        self.bottom = _Block(2 * width, 2 * width, timed=timed)
        self.up_middle = _Block(4 * width, 2 * width, timed=timed)
        self.up_top = _Block(3 * width, width, timed=timed)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Pictures (n, c, h, w) of the same shape; `t`, int64 (n,), counts the diffusion's steps from 1."""
        told = None if t is None else _waves(t, x)
        top = self.top(x, told)
        middle = self.middle(F.avg_pool2d(top, 2, ceil_mode=True), told)
        h = self.bottom(F.avg_pool2d(middle, 2, ceil_mode=True), told)
        h = self.up_middle(torch.cat([F.interpolate(h, size=middle.shape[-2:]), middle], 1), told)
        h = self.up_top(torch.cat([F.interpolate(h, size=top.shape[-2:]), top], 1), told)
        out: Tensor = self.out(h)
        return out


class _Block(nn.Module):
    """Two convolutions with SiLU; the step of a diffusion shifts the channels between them."""

    def __init__(self, into: int, out: int, *, timed: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, padding=1)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.shift = nn.Linear(2 * _FREQUENCIES, out) if timed else None

    def forward(self, x: Tensor, told: Tensor | None) -> Tensor:
        h = F.silu(self.first(x))
        if self.shift is not None and told is not None:
            h = h + self.shift(told)[:, :, None, None]
        return F.silu(self.second(h))


_FREQUENCIES = 8


def _waves(t: Tensor, like: Tensor) -> Tensor:
    """Sines and cosines of the steps, of periods from 2 pi to about 6,000, (n, 16)."""
    rates = torch.exp(-math.log(1000) * torch.arange(_FREQUENCIES, dtype=like.dtype, device=like.device) / 7)
    angles = t.to(like)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class Generator(nn.Module):
    """G(z): a linear map to a quarter of the resolution and two convolutions behind doublings; outputs in [0, 1].

    Args:
        channels, height, width: of the pictures.
        latent: dimension of z, which is standard normal.
        breadth: channels at half resolution; twice as many at a quarter.
    """

    def __init__(self, channels: int, height: int, width: int, latent: int = 32, breadth: int = 16) -> None:
        super().__init__()
        whole(latent, "latent", 1)
        whole(breadth, "breadth", 1)
        self.settings = {
            "channels": channels,
            "height": height,
            "width": width,
            "latent": latent,
            "breadth": breadth,
        }
        self.latent = latent
        self.size = (height, width)
        self.coarse = (2 * breadth, math.ceil(height / 4), math.ceil(width / 4))
        self.into = nn.Linear(latent, math.prod(self.coarse))
        self.first = nn.Conv2d(2 * breadth, breadth, 3, padding=1)
        self.second = nn.Conv2d(breadth, channels, 5, padding=2)

    def forward(self, z: Tensor) -> Tensor:
        """Pictures (n, c, h, w) of latent vectors (n, latent)."""
        h = F.silu(self.into(z)).unflatten(1, self.coarse)
        h = F.silu(self.first(F.interpolate(h, size=[math.ceil(s / 2) for s in self.size])))
        return torch.sigmoid(self.second(F.interpolate(h, size=self.size)))


class Critic(nn.Module):
    """D(x): two convolutions of stride 2 and a linear map to one number, larger where x looks real."""

    def __init__(self, channels: int, height: int, width: int, breadth: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, breadth, 5, stride=2, padding=2)
        self.second = nn.Conv2d(breadth, 2 * breadth, 5, stride=2, padding=2)
        self.out = nn.Linear(2 * breadth * math.ceil(height / 4) * math.ceil(width / 4), 1)

    def forward(self, x: Tensor) -> Tensor:
        """One number each, (n,)."""
        h = F.leaky_relu(self.first(x), 0.2)
        h = F.leaky_relu(self.second(h), 0.2)
        out: Tensor = self.out(h.flatten(1))
        return out.squeeze(1)
