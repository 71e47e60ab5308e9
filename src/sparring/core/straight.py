"""Small strided networks, forward and back to their input by hand: what autograd finds, in two thirds of the time.

An attack on a small network spends much of its time beside the arithmetic: a graph is built and taken apart layer by layer,
each ReLU makes a new tensor, each convolution turns its input and its output into other layouts. Here the whole network is one
node of the graph: channels stay last throughout, ReLUs work in place, nothing is kept but what the way back to the input needs
(no attack asks for the parameters' gradients), and kernels are arranged once a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sparring.core.convolutions import WayBack, way_back

# Layers that do nothing in eval mode.
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


class Straight(nn.Module):
    """A network that answers as the one it was made of, and whose gradients reach its input alone, and once.

    Made by `straightened`.
    """

    def __init__(self, net: nn.Sequential, before: nn.Sequential, layers: Sequence[_Layer]) -> None:
        super().__init__()
        self.net, self._before = net, before
        self._layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """The scores, (n, k), of inputs (n, c, h, w)."""
        served = type(x) is Tensor and x.ndim == 4 and x.dtype == self._layers[0].weight.dtype
        if not served or torch.is_autocast_enabled("cpu"):
            out: Tensor = self.net(x)
            return out
        x = self._before(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Through.apply(x, self._layers)  # type: ignore[no-untyped-call, no-any-return]
        for layer in self._layers:
            x = layer.output(x)
        return x


def straightened(net: object) -> Straight | None:
    """A network of layers one after another whose way back to its input is by hand, with the weights that it has now.

    None for networks that are not served. Served are those on the CPU of strided convolutions (as `core.convolutions` serves
    them), a flattening and linear layers, with ReLUs between; what comes before the first convolution runs as it is. Measured,
    others gain nothing so: convolutions of stride 1 take their time in themselves, linear layers alone change no layouts.
    """
    if type(net) is not nn.Sequential or overheard(net):
        return None
    all_of_it = list(flat(net))
    first = next((i for i, m in enumerate(all_of_it) if isinstance(m, nn.Conv2d)), len(all_of_it))
    layers: list[_Layer] = []
    flattened = False
    for m in all_of_it[first:]:
        if type(m) in _NOTHING and not m.training:
            continue
        if type(m) is nn.ReLU:
            layers[-1].relu = True
        elif flattens(m) and not flattened:
            flattened = True
        elif type(m) is nn.Linear and flattened:
            inside = layers[-1].weight.shape[0] if isinstance(layers[-1], _Convolution) else 1
            if m.in_features % inside:
                return None
            layers.append(_Line(weight_for_last(m, inside), _detached(m.bias)))
        elif isinstance(m, nn.Conv2d) and not flattened and (way := way_back(m)) is not None:
            kernel = m.weight.detach().contiguous(memory_format=torch.channels_last)
            layers.append(_Convolution(kernel, _detached(m.bias), way=way, first=not layers))
        else:
            return None
    alike = {layer.weight.dtype for layer in layers} in ({torch.float32}, {torch.float64})
    if not alike or not isinstance(layers[-1], _Line):
        return None
    return Straight(net, nn.Sequential(*all_of_it[:first]), layers)


def flat(net: nn.Sequential) -> Iterator[nn.Module]:
    """The layers of a network one after another, those of nested `Sequential`s among them."""
    for layer in net:
        if type(layer) is nn.Sequential:
            yield from flat(layer)
        else:
            yield layer


def overheard(net: nn.Module) -> bool:
    """Whether somebody listens to a network's layers, or has replaced the forward of one."""
    return any(
        "forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in net.modules()
    )


def flattens(layer: nn.Module) -> bool:
    """Whether a layer makes one vector of each input."""
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)


def weight_for_last(linear: nn.Linear, channels: int) -> Tensor:
    """The weights of a linear layer behind a flattening, for pictures flattened with their channels last, (out, in)."""
    return linear.weight.detach().reshape(linear.out_features, channels, -1).transpose(1, 2).flatten(1)


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


@dataclass
class _Layer:
    """A layer and the ReLU behind it.

    Attributes:
        weight, bias: as torch has them.
        relu: whether there is one.
    """

    weight: Tensor
    bias: Tensor | None
    relu: bool = False

    def output(self, x: Tensor) -> Tensor:
        """The output at x: a tensor of its own."""
        out = self.there(x)
        return out.relu_() if self.relu else out

    def there(self, x: Tensor) -> Tensor:
        """The output at x, without the ReLU: a tensor of its own."""
        raise NotImplementedError

    def back(self, g: Tensor, size: torch.Size) -> Tensor:
        """The gradient at an x of this size from that at the output."""
        raise NotImplementedError


@dataclass
class _Line(_Layer):
    """A linear layer; its weights are in the order of what it is given, where that is a picture with the channels last."""

    def there(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.permute(0, 2, 3, 1).flatten(1)
        return functional.linear(x, self.weight, self.bias)

    def back(self, g: Tensor, size: torch.Size) -> Tensor:
        at_x = g @ self.weight
        if len(size) == 4:
            n, c, h, w = size
            at_x = at_x.view(n, h, w, c).permute(0, 3, 1, 2)
        return at_x


@dataclass
class _Convolution(_Layer):
    """A strided convolution, between layers that have the channels last.

    Attributes:
        way: back.
        first: whether it is the first: the gradient at its input has the plain layout, as inputs have.
    """

    way: WayBack = field(kw_only=True)
    first: bool = field(kw_only=True)

    def there(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if c == 1:  # either layout is the same then, and torch takes it for the other
            x = x.reshape(n, h, w, 1).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        return functional.conv2d(x, self.weight, self.bias, self.way.s, self.way.padding)

    def back(self, g: Tensor, size: torch.Size) -> Tensor:
        return self.way(g, size, last=not self.first)


class _Through(torch.autograd.Function):
    """All layers as one node."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[_Layer]) -> Tensor:
        """The network's output."""
        ctx.layers, ctx.kept = layers, []
        for layer in layers:
            size, x = x.shape, layer.output(x)
            ctx.kept.append((size, x if layer.relu else None))
        return x.clone() if layers[-1].relu else x  # kept by the graph that it is the end of, it would never be freed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """The gradient at the input."""
        for layer, (size, out) in zip(reversed(ctx.layers), reversed(ctx.kept), strict=True):
            if out is not None:
                g = torch.ops.aten.threshold_backward(g, out, 0)
            g = layer.back(g, size)
        return g, None
