"""Small networks that an attacker trains for himself, with weights from generators of their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparring.core.space import Bounds


class Centred(nn.Module):
    """Brings raw inputs from the victim's bounds to [-1, 1]."""

    lo: Tensor
    hi: Tensor

    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self.register_buffer("lo", bounds.lo.detach().clone())
        self.register_buffer("hi", bounds.hi.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """2 (x - lo) / (hi - lo) - 1."""
        return 2 * (x - self.lo) / (self.hi - self.lo) - 1


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The network that `build` makes, its weights uniform in +-sqrt(6 / fan_in) by `seed`, its biases zero.

    The global random state is as before (He et al. 2015, Delving Deep into Rectifiers, arXiv:1502.01852).
    """
    with torch.random.fork_rng(devices=[]):  # the layers' own initialisation draws from the global source
        net = build().float()  # whatever torch's default type is
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                bound = math.sqrt(6 / parameter[0].numel())
                parameter.uniform_(-bound, bound, generator=source)
            else:
                parameter.zero_()
    return net


def small_classifier(shape: tuple[int, ...], classes: int, bounds: Bounds, seed: int = 0) -> nn.Module:
    """An untrained classifier that suits inputs of `shape`: two convolutions for pictures of 8 pixels and more (c, h, w),
    else two hidden layers; raw inputs (n, *shape) to logits (n, classes).
    """

    def build() -> nn.Module:
        if len(shape) == 3 and min(shape[1:]) >= 8:
            rows, columns = (-(-side // 4) for side in shape[1:])  # two strides of 2, rounded up
            return nn.Sequential(
                Centred(bounds),
                nn.Conv2d(shape[0], 16, 3, 2, 1),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, 2, 1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32 * rows * columns, 100),
                nn.ReLU(),
                nn.Linear(100, classes),
            )
        width = 128
        return nn.Sequential(
            Centred(bounds),
            nn.Flatten(),
            nn.Linear(math.prod(shape), width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )

    return seeded(build, seed)
