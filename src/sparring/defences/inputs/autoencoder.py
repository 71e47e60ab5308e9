"""A small convolutional autoencoder for pictures of any size, its training, and the reformer that it makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring.core.errors import InputError
from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.defences.inputs.base import InputDefence, above, pictures, whole


class Autoencoder(nn.Module):
    """Two convolutions at full and two at half resolution, smooth activations, an output in [0, 1].

    Args:
        channels: of the pictures.
        width: channels inside.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.settings = {"channels": channels, "width": width}
        self.into = nn.Conv2d(channels, width, 3, padding=1)
        self.low = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The rebuilt pictures, (n, c, h, w)."""
        h = torch.sigmoid(self.into(x))
        h = torch.sigmoid(self.low(F.avg_pool2d(h, 2, ceil_mode=True)))
        h = F.interpolate(h, size=x.shape[-2:], mode="nearest")
        return torch.sigmoid(self.out(torch.sigmoid(self.up(h))))


def train_autoencoder(
    x: Tensor, *, width: int = 16, noise: float = 0.1, epochs: int = 20, lr: float = 1e-2, seed: int = 0
) -> Autoencoder:
    """An autoencoder that rebuilds clean pictures from noisy ones by least squares.

    Args:
        x: clean pictures in [0, 1], (n, c, h, w).
        width: channels inside.
        noise: standard deviation of the Gaussian noise, in raw units.
        epochs: passes over x, in batches of 128.
        lr: highest learning rate of Adam; it falls to nothing along a cosine.
        seed: of weights, order and noise; the global random state stays as it is.

    Raises:
        InputError: no pictures, or settings that cannot be right.
    """
    pictures(x, "an autoencoder")
    whole(epochs, "epochs", 1)
    whole(width, "width", 1)
    above(lr, "lr", 0.0)
    if not len(x):
        raise InputError("no picture came; an autoencoder learns from clean ones")
    source = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(source.get_state())
        net = Autoencoder(x.shape[1], width)
    net.to(x.device)
    optimiser = torch.optim.Adam(net.parameters(), lr=lr)
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(x), generator=source).split(128)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches))
    for rows in batches:
        clean = x[rows]
        spoilt = clean + noise * torch.randn(clean.shape, generator=source).to(clean)
        optimiser.zero_grad()
        F.mse_loss(net(spoilt.clamp(0, 1)), clean).backward()
        optimiser.step()
        schedule.step()
    optimiser.zero_grad(set_to_none=True)
    return net.eval().requires_grad_(False)


@defence(
    Card(
        name="reformer",
        title="MagNet's reformer: inputs pass through an autoencoder",
        paper="Meng and Chen 2017, MagNet: a Two-Pronged Defense against Adversarial Examples, arXiv:1705.09064",
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="one pass of a small network",
        domains=("image",),
        caveats="Differentiable: PGD through it needs no surrogate, and a copy of the autoencoder is enough to transfer "
        "(Carlini and Wagner 2017, arXiv:1711.08478).",
    )
)
@dataclass(kw_only=True, eq=False)
class Reformer(InputDefence):
    """x -> the autoencoder's rebuilding of x.

    Args:
        autoencoder: a module from inputs to inputs, such as `train_autoencoder` makes.
    """

    autoencoder: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """The rebuilt inputs, of the same shape."""
        rebuilt: Tensor = self.autoencoder(x)
        return rebuilt
