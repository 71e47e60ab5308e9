"""Small networks with batch-norms that do something, for tests of what rearranges them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparring.core.arrangement import Arranged, arranged


def lively(net: nn.Module) -> nn.Module:
    """Batch-norms that do something, in eval mode."""
    generator = torch.Generator().manual_seed(3)
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            if m.running_mean is not None and m.running_var is not None:
                m.running_mean.normal_(0, 0.5, generator=generator)
                m.running_var.uniform_(0.3, 3, generator=generator)
            if m.affine:
                m.weight.data.normal_(1, 0.5, generator=generator)
                m.bias.data.normal_(0, 0.5, generator=generator)
    return net.eval()


def net_of(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return lively(build())


class Body(nn.Module):
    """Two convolutions with a batch-norm each, on which the tests' own forwards stand."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 3)

    def end(self, x: Tensor) -> Tensor:
        return self.last(x.mean((2, 3)))


def inputs(net: nn.Module, n: int = 5) -> Tensor:
    dtype = next(net.parameters()).dtype
    return torch.rand(n, 3, 6, 5, dtype=dtype, generator=torch.Generator().manual_seed(1))


def quick_of(net: nn.Module) -> Arranged:
    """The network over rearranged layers, which it must be worth."""
    quick = arranged(net)
    assert quick is not None
    return quick
