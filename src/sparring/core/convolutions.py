"""A faster way back through strided convolutions on CPUs: the input's gradient as an ordinary convolution.

Going back through a convolution of stride s is a convolution over a grid with holes, which CPU kernels compute poorly:
through the first layer of a small network it takes several times the forward. Its s x s phases are ordinary convolutions
of the output's gradient with the s-th parts of the kernel; one convolution computes them all as channels, and each
goes to its place (as in Shi et al. 2016, arXiv:1609.05158). The result is the same up to float rounding.
"""

from __future__ import annotations

import contextlib
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
            at_x = _way_back(g, weight.to(g.dtype), x, ctx.s, ctx.padding).to(x.dtype)
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


def _way_back(g: Tensor, weight: Tensor, x: Tensor, s: int, padding: tuple[int, int]) -> Tensor:
    """The gradient at the input x, (n, c, h, w), from that at the output, (n, o, ...), in the layout of x."""
    out, inside, *kernel = weight.shape
    rows, columns = (-(-k // s) for k in kernel)
    parts = functional.pad(weight, (0, columns * s - kernel[1], 0, rows * s - kernel[0]))
    parts = parts.reshape(out, inside, rows, s, columns, s).permute(3, 5, 1, 0, 2, 4)
    parts = parts.reshape(s * s * inside, out, rows, columns).flip(2, 3)
    last = inside > 1 and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    phases = functional.conv2d(g.contiguous(memory_format=layout), parts, padding=(rows - 1, columns - 1))
    reach = [min(n, s * m - p) for n, m, p in zip(x.shape[2:], phases.shape[2:], padding, strict=True)]
    whole = list(x.shape[2:]) == reach  # otherwise no window reached the last rows or columns
    found = (torch.empty if whole else torch.zeros)(x.shape, dtype=g.dtype, device=g.device)
    found = found.contiguous(memory_format=layout)
    for i in range(s):
        for j in range(s):
            (over, top), (beside, left) = _begins(i, s, padding[0]), _begins(j, s, padding[1])
            place = found[:, :, top : reach[0] : s, left : reach[1] : s]
            phase = phases[:, (i * s + j) * inside :, over:, beside:]
            place.copy_(phase[:, :inside, : place.shape[2], : place.shape[3]])
    return found


def _begins(phase: int, s: int, padding: int) -> tuple[int, int]:
    """A phase holds rows `phase`, `phase` + s, ... of the padded input: how many of them are padding, and the first that is not."""
    skipped = max(0, -((phase - padding) // s))
    return skipped, skipped * s + phase - padding
