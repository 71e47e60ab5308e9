"""Gradients that pass where a ReLU is off: a surrogate for networks that are flat around their inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_RELUS = (functional.relu, torch.relu, Tensor.relu)
_IN_PLACE = (functional.relu_, torch.relu_, Tensor.relu_)


@contextlib.contextmanager
def leaky_gradients(slope: float) -> Iterator[None]:
    """Inside, ReLUs answer as they do, and their gradient where they are off is `slope` instead of 0.

    A certified network holds many units off in a whole neighbourhood of an input, and no gradient tells what lies beyond. A
    small slope points at the units that could come on; slope 1 is the linear backpropagation of Guo, Li and Chen 2020
    (arXiv:2012.03528).
    """
    if not slope:
        yield
        return
    with _Leaks(slope):
        yield


class _Leaks(TorchFunctionMode):
    """Sends ReLUs through `_Leaky`, everything else on its way."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (func in _RELUS or func in _IN_PLACE) and torch.is_grad_enabled():
            x: Tensor = args[0] if args else (kwargs or {})["input"]
            if x.requires_grad:
                out = _Leaky.apply(x, self.slope)  # type: ignore[no-untyped-call]
                inplace = func in _IN_PLACE or bool(args[1:] and args[1]) or bool((kwargs or {}).get("inplace"))
                return x.copy_(out) if inplace else out
        return func(*args, **(kwargs or {}))


class _Leaky(torch.autograd.Function):
    """A ReLU with a leaky way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        """The ReLU itself."""
        out = torch.relu(x)
        ctx.save_for_backward(out > 0)
        ctx.slope = slope
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """The gradient at the input, leaking where the ReLU was off."""
        (on,) = ctx.saved_tensors
        return torch.where(on, g, g * ctx.slope), None
