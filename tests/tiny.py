"""Tiny victims that tests share: a trained network on synthetic pictures, linear ones with known answers, and a spy."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparring as sp

CLASSES = 4
SIDE = 6


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy bright blobs on grey, a corner for each of four classes: 8-bit pictures (n, 1, 6, 6) in [0, 1]; labels."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    ticks = torch.linspace(0, 1, SIDE)
    v, u = torch.meshgrid(ticks, ticks, indexing="ij")
    across = torch.tensor([0.2, 0.8, 0.8, 0.2])[y] + 0.08 * torch.randn(n, generator=g)
    down = torch.tensor([0.2, 0.2, 0.8, 0.8])[y] + 0.08 * torch.randn(n, generator=g)
    far = (u - across[:, None, None]).square() + (v - down[:, None, None]).square()
    x = 0.3 + 0.35 * torch.exp(-far / 0.08) + 0.08 * torch.randn(n, SIDE, SIDE, generator=g)
    return ((x.clamp(0, 1) * 255).round() / 255)[:, None], y


def network(seed: int = 0) -> nn.Module:
    """An untrained convolutional network for `pictures`, smooth everywhere, its weights from a generator of its own."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(6 * SIDE * SIDE, 16),
        nn.Tanh(),
        nn.Linear(16, CLASSES),
    )
    g = torch.Generator().manual_seed(seed)
    for module in net:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, generator=g)
            nn.init.zeros_(module.bias)
    return net.eval()


def taught(net: nn.Module) -> nn.Module:
    """The network after a tenth of a second of training on `pictures`, in its own mode; and the network itself."""
    x, y = pictures(400, seed=1)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return net


@functools.cache
def trained(seed: int = 0) -> sp.Victim:
    """`network`, taught; nearly every picture is right, and small changes break it."""
    net = taught(network(seed))
    return sp.Victim(net, name="tiny")


def correct(n: int = 12, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Held-out pictures that `trained()` reads rightly."""
    x, y = pictures(2 * n, seed)
    right = trained().query(x).labels == y
    return x[right][:n], y[right][:n]


def linear(weight: Any, bias: Any = None, *, bounds: Any = (0.0, 1.0), **how: Any) -> sp.Victim:
    """A victim with scores W x + b on flattened inputs; weight (k, d)."""
    w = torch.as_tensor(weight, dtype=torch.float32)
    layer = nn.Linear(w.shape[1], w.shape[0])
    with torch.no_grad():
        layer.weight.copy_(w)
        layer.bias.copy_(torch.zeros(w.shape[0]) if bias is None else torch.as_tensor(bias, dtype=torch.float32))
    return sp.Victim(nn.Sequential(nn.Flatten(), layer).eval(), bounds=bounds, **how)


def threshold(level: float = 0.5, **how: Any) -> sp.Victim:
    """Two classes on one number in [0, 1]: class 1 above `level`."""
    return linear([[-10.0], [10.0]], [10 * level, -10 * level], **how)


def gradient(net: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The scores, and the gradient of a sum that weighs each differently."""
    leaf = x.detach().requires_grad_(True)
    scores = net(leaf)
    (found,) = torch.autograd.grad((scores * torch.linspace(-1, 1, scores.numel()).reshape(scores.shape)).sum(), leaf)
    return scores.detach(), found


class Spy(nn.Module):
    """Passes inputs on to a network and keeps the size of every batch that came."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.net(x)


def spied(victim: sp.Victim) -> tuple[sp.Victim, Spy]:
    """A victim like `victim` on a spy, already inspected, so that only what follows is counted."""
    assert isinstance(victim.net, nn.Module)
    spy = Spy(victim.net).eval()
    watched = sp.Victim(spy, bounds=(victim.bounds.lo, victim.bounds.hi), name=victim.name)
    watched.classes, watched._inspected = victim.classes, True
    return watched, spy


class Fixed(nn.Module):
    """Answers through a function of the inputs, whatever it returns; one parameter, so that it has a device."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


def random_states() -> list[Any]:
    """The global random states of torch, numpy and Python, to compare before and after."""
    return [torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002
