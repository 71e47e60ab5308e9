"""A faster way back through strided convolutions on CPUs: the input's gradient as an ordinary convolution.

Going back through a convolution of stride s is a convolution over a grid with holes, which CPU kernels compute poorly:
through the first layer of a small network it takes several times the forward. Its s x s phases are ordinary convolutions
of the output's gradient with the s-th parts of the kernel; one convolution computes them all as channels, and each
goes to its place (as in Shi et al. 2016, arXiv:1609.05158). The result is the same up to float rounding.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight
from torch.overrides import TorchFunctionMode

# Measured with kernels of 3 to 16 at strides of 2 to 16: it pays where the phases pad the kernel by no more than this factor
# (4 x 4 by 2, 7 x 7 by 2, patches), and not for 3 x 3 by 2.
MOST_PADDING = 1.4
# Elements of an input batch below which Python's own time is more than what it saves.
WORTH_IT = 40_000


@contextlib.contextmanager
def quick_input_gradients(apply: bool) -> Iterator[None]:
    """Inside, forwards of strided convolutions on the CPU are recorded so that the way back to their input is short.

    Args:
        apply: whether to do so at all, as `has_strided_convolutions` says of a network.
    """
    if not apply:
        yield
        return
    with _Shortcut():
        yield


def way_back(c: nn.Conv2d) -> WayBack | None:
    """The short way back through a convolution on a CPU; None for what is not served."""
    if type(c) is not nn.Conv2d or c.padding_mode != "zeros" or c.weight.device.type != "cpu":
        return None
    if not _serves(c.weight, c.stride, c.padding, c.dilation, c.groups):
        return None
    return WayBack(c.weight.detach(), c.stride[0], (int(c.padding[0]), int(c.padding[1])))


def has_strided_convolutions(net: object) -> bool:
    """Whether a network has a convolution that this serves; compiled and scripted networks are left alone."""
    if not runs_in_python(net):
        return False
    return any(
        type(m) is nn.Conv2d
        and m.padding_mode == "zeros"
        and m.weight.device.type == "cpu"
        and _serves(m.weight, m.stride, m.padding, m.dilation, m.groups)
        for m in net.modules()
    )


def runs_in_python(net: object) -> TypeGuard[nn.Module]:
    """Whether a network's layers call torch one by one, so that a mode can send their calls elsewhere."""
    return isinstance(net, nn.Module) and not isinstance(net, torch.jit.ScriptModule) and not hasattr(net, "_orig_mod")


class _Shortcut(TorchFunctionMode):
    """Sends convolutions that it serves through `_Strided`, everything else on its way."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.conv2d and not kwargs and len(args) == 7 and torch.is_grad_enabled():
            x, weight, bias, stride, padding, dilation, groups = args
            if (
                type(x) is Tensor
                and x.requires_grad
                and x.device.type == "cpu"
                and x.numel() >= WORTH_IT
                and x.ndim == 4
                and _serves(weight, stride, padding, dilation, groups)
            ):
                # as views: the engine tells of those, not of leaves, whether anybody asks for their gradients
                bias = None if bias is None else bias.view_as(bias)
                return _Strided.apply(x, weight.view_as(weight), bias, stride[0], padding)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _serves(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    if not (isinstance(stride, tuple) and isinstance(padding, tuple) and groups == 1 and set(dilation) == {1}):
        return False
    s, height, width = stride[0], *weight.shape[2:]
    if stride != (s, s) or s == 1 or not weight.is_floating_point():
        return False
    padded = (-(-height // s) * s) * (-(-width // s) * s)
    return bool(padded <= MOST_PADDING * height * width)


class _Strided(torch.autograd.Function):
    """A convolution of stride s, whose way back to the input is one ordinary convolution and a pixel shuffle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, s: int, padding: tuple[int, int]) -> Tensor:
        """The convolution itself."""
        ctx.save_for_backward(x, weight)
        ctx.s, ctx.padding = s, padding
        return functional.conv2d(x, weight, bias, s, padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """The gradients that somebody asks for, from that at the output, (n, o, h, w)."""
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[0], _wanted(ctx, 1), _wanted(ctx, 2)
        at_x = at_weight = at_bias = None
        if to_x:
            last = x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last)
            at_x = WayBack(weight.to(g.dtype), ctx.s, ctx.padding)(g, x.shape, last=last).to(x.dtype)
        if to_weight:
            at_weight = conv2d_weight(x.to(g.dtype), weight.shape, g, ctx.s, ctx.padding).to(weight.dtype)
        if to_bias:
            at_bias = g.sum((0, 2, 3))
        return at_x, at_weight, at_bias, None, None


def _wanted(ctx: Any, i: int) -> bool:
    """Whether this pass needs the gradient of the i-th argument; an attack's passes go to the input alone."""
    node = ctx.next_functions[i][0]
    if node is None:
        return False
    wanted: bool = torch._C._will_engine_execute_node(node)
    return wanted


class WayBack:
    """From the gradient at the output of a strided convolution to that at its input.

    Args:
        weight: the kernel, (o, c, height, width).
        s: the stride, of both axes.
        padding: zeros around the input, rows and columns.
    """

    def __init__(self, weight: Tensor, s: int, padding: tuple[int, int]) -> None:
        out, self.inside, *kernel = weight.shape
        self.s, self.padding = s, padding
        self.rows, self.columns = (-(-k // s) for k in kernel)
        parts = functional.pad(weight, (0, self.columns * s - kernel[1], 0, self.rows * s - kernel[0]))
        self._parts = parts.reshape(out, self.inside, self.rows, s, self.columns, s)

    @functools.cached_property
    def _kernels(self) -> Tensor:
        """One convolution's kernels that give all phases as channels, (s * s * c, o, rows, columns)."""
        return self._parts.permute(3, 5, 1, 0, 2, 4).flatten(0, 2).flip(2, 3)

    @functools.cached_property
    def _kernels_last(self) -> Tensor:
        return self._kernels.contiguous(memory_format=torch.channels_last)

    @functools.cached_property
    def _taps(self) -> Tensor:
        """What one output gives to each phase, tap by tap, (rows * columns * s * s * c, o)."""
        return self._parts.permute(2, 4, 3, 5, 1, 0).flatten(0, 4)

    def __call__(self, g: Tensor, size: torch.Size, *, last: bool) -> Tensor:
        """The gradient at an input of a size (n, c, h, w) from that at the output, (n, o, ...); channels-last where `last`."""
        if self.inside == 1 and g.shape[1] > 1 and g.is_contiguous(memory_format=torch.channels_last):
            phases = self._spread(g)
        else:
            layout, kernels = (
                (torch.channels_last, self._kernels_last) if last else (torch.contiguous_format, self._kernels)
            )
            around = (self.rows - 1, self.columns - 1)
            phases = functional.conv2d(g.contiguous(memory_format=layout), kernels, padding=around)
        return self._woven_last(phases, size) if last else self._woven(phases, size)

    def _spread(self, g: Tensor) -> Tensor:
        """The phases by a product and few sums: a convolution to a handful of channels leaves most of a CPU's width unused."""
        n, o, h, w = g.shape
        each = (self._taps @ g.permute(0, 2, 3, 1).reshape(-1, o).t()).view(self.rows, self.columns, -1, n, h, w)
        phases = g.new_zeros(each.shape[2], n, h + self.rows - 1, w + self.columns - 1)
        for a in range(self.rows):
            for b in range(self.columns):
                phases[:, :, a : a + h, b : b + w] += each[a, b]
        return phases.transpose(0, 1)

    def _woven(self, phases: Tensor, size: torch.Size) -> Tensor:
        """The phases, (n, s * s * c, ...), each at its place."""
        s = self.s
        reach = [min(n, s * m - p) for n, m, p in zip(size[2:], phases.shape[2:], self.padding, strict=True)]
        whole = list(size[2:]) == reach  # otherwise no window reached the last rows or columns
        found = (phases.new_empty if whole else phases.new_zeros)(size)
        for i in range(s):
            for j in range(s):
                (over, top), (beside, left) = _begins(i, s, self.padding[0]), _begins(j, s, self.padding[1])
                place = found[:, :, top : reach[0] : s, left : reach[1] : s]
                phase = phases[:, (i * s + j) * self.inside :, over:, beside:]
                place.copy_(phase[:, : self.inside, : place.shape[2], : place.shape[3]])
        return found

    def _woven_last(self, phases: Tensor, size: torch.Size) -> Tensor:
        """The same where channels come last: they move in one piece, so that the padding's part is cut off afterwards."""
        s, (n, _, h, w) = self.s, phases.shape
        whole = phases.permute(0, 2, 3, 1).reshape(n, h, w, s, s, self.inside).transpose(2, 3)
        whole = whole.reshape(n, h * s, w * s, self.inside)
        (top, left), (height, width) = self.padding, size[2:]
        whole = whole[:, top : top + height, left : left + width]
        short = (0, 0, 0, width - whole.shape[2], 0, height - whole.shape[1])
        return (functional.pad(whole, short) if any(short) else whole).permute(0, 3, 1, 2)


def _begins(phase: int, s: int, padding: int) -> tuple[int, int]:
    """A phase holds rows `phase`, `phase` + s, ... of the padded input: how many of them are padding, and the first that is not."""
    skipped = max(0, -((phase - padding) // s))
    return skipped, skipped * s + phase - padding
