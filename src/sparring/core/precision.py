"""Searching in bfloat16 where the hardware multiplies faster in it; float32 decides what succeeded."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sparring.core.convolutions import runs_in_python
from sparring.core.errors import InputError
from sparring.core.network import Victim
from sparring.core.rng import KeyedRandom

PRECISIONS = ("auto", "float32", "bfloat16")
# Multiplications in one forward of all samples below which casting costs what the faster arithmetic saves: measured, a small
# network for MNIST breaks even at about 15 samples, a ResNet-20 at one.
WORTH_CASTING = 10_000_000
# Multiplications for one input below which a small strided network goes faster by hand in float32 (`core.straight`) than by
# autograd in bfloat16: measured, one of 450,000 does, and one of 720,000 in batches of fifty (.87 of the time), not of 200.
WORTH_GRAPH = 1_000_000
# Numbers of rows between one power of two and the next that a last layer meets.
SIZES = 8

_work: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]] = weakref.WeakKeyDictionary()


class Scout(Victim):
    """A view whose scores and gradients come from bfloat16 autocast, for looking around only.

    Its gradients' signs agree with float32 on nearly all pixels; its scores are good to two or three digits, so that no
    success may be claimed from them.
    """

    def __init__(self, view: Victim) -> None:
        self.__dict__.update(view.__dict__)
        self.exact = view

    def scores(self, x: Tensor, noise: KeyedRandom | None = None) -> Tensor:
        """Scores (n, k) in float32, computed in bfloat16."""
        with self._bfloat16(x.device.type):
            return self.exact.scores(x, noise).float()

    def objective(
        self, x: Tensor, loss: Callable[[Tensor], Tensor], noise: KeyedRandom | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the exact view raises, of scores computed in bfloat16; both in float32."""
        with self._bfloat16(x.device.type):
            value, scores = self.exact.objective(x, lambda s: loss(s.float()), noise)
        return value.float(), scores.float()

    @contextlib.contextmanager
    def _bfloat16(self, device: str) -> Iterator[None]:
        """Autocast, and what goes with it for networks that call torch layer by layer."""
        few = _FewRows() if device == "cpu" and runs_in_python(self.net) else contextlib.nullcontext()
        with torch.autocast(device, dtype=torch.bfloat16), few:
            yield


class _FewRows(TorchFunctionMode):
    """Lets the linear layers of a network on a CPU meet few different numbers of rows.

    oneDNN compiles its bfloat16 product anew for each number of rows of a linear layer over single vectors, and never lets go of
    it: 70 MiB a layer for all below 256.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and not kwargs and args[0].ndim == 2:
            x, *rest = args
            m = len(x)
            more = -m % max(1, (1 << max(0, m.bit_length() - 1)) // SIZES)
            if more:
                return func(torch.cat([x, x[:more].detach()]), *rest)[:m]
        return func(*args, **(kwargs or {}))


def scout(
    view: Victim, x: Tensor, precision: str, samples: int, *, quick: Victim | None = None, by_hand: bool = False
) -> Scout | None:
    """The view that explores on behalf of `view`, or None where float32 does so itself.

    Args:
        view: what the attack differentiates.
        x: inputs of the shape to come, (n, ...).
        precision: "auto" takes bfloat16 where it pays: a plain convolutional network of float32 weights, large enough, on
            hardware with bfloat16 arithmetic. The choice depends on the network, the machine and the number of samples in the
            call, never on the batch size or a clock, so that a run repeats. "float32" and "bfloat16" insist.
        samples: how many the whole call attacks, in however many batches.
        quick: the view that the explorer asks, where it is another: what is known of a network is kept by `view`'s.
        by_hand: whether float32 would go through the network by hand.

    Raises:
        InputError: another precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; one of {', '.join(PRECISIONS)} is needed")
    if precision == "float32" or (precision == "auto" and not _pays(view, x, samples)):
        return None
    if precision == "auto" and by_hand and _multiplications(view, x) < WORTH_GRAPH:
        return None
    return Scout(quick or view)


def too_fine(space: object, x: object) -> bool:
    """Whether some sample's ball is narrower than the steps in which bfloat16 rounds inputs, 2^-8 of their range.

    The gradients there are those of points far outside the ball, and what is adversarial in it does not look so: measured on
    60 photos at .2/255, auto-PGD left 15 in bfloat16 and 10 in float32.
    """
    eps, p = getattr(space, "eps", None), getattr(space, "p", None)
    if eps is None or p not in (2, math.inf) or not isinstance(x, Tensor) or not len(x):
        return False
    bounds = getattr(space, "bounds", None)
    span = 1.0 if bounds is None else float((bounds.like(x).hi - bounds.like(x).lo).amax())
    each = float(torch.as_tensor(eps).amin()) / (math.sqrt(x[0].numel()) if p == 2 else 1.0)
    return each < span * 2.0**-8


def _pays(view: Victim, x: Tensor, samples: int) -> bool:
    net = view.net
    if not isinstance(net, nn.Module) or view.stages or view.detector is not None:
        return False
    if view.traits.stochastic or view.probabilities or not len(x) or x.ndim != 4:
        return False
    if any(m.groups > 1 for m in net.modules() if isinstance(m, nn.Conv2d)):
        return False  # depthwise layers move memory: measured on a MobileNet, bfloat16 was no faster
    if x.dtype != torch.float32 or any(p.dtype != torch.float32 for p in net.parameters()):
        return False
    if not _has_bfloat16(x.device):
        return False
    # no convolution that keeps or lowers the resolution does more: small networks are spared the look
    most = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d)) * x.shape[-2] * x.shape[-1]
    return most * samples >= WORTH_CASTING and _multiplications(view, x) * samples >= WORTH_CASTING


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    kinds = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(kind()) for kind in kinds if kind is not None)


def _multiplications(view: Victim, x: Tensor) -> int:
    """Multiplications in the convolutions for one input, seen by one forward and remembered."""
    net: nn.Module = view.net  # type: ignore[assignment]
    known, shape = _work.setdefault(net, {}), tuple(x.shape[1:])
    if shape not in known:
        seen = [0]

        def count(module: nn.Module, _: object, out: Tensor) -> None:
            weight: Tensor = module.weight  # type: ignore[assignment]
            seen[0] += weight[0].numel() * out[0].numel()

        hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d)]
        try:
            with torch.no_grad():
                view.scores(x[:1])
        finally:
            for hook in hooks:
                hook.remove()
        known[shape] = seen[0]
    return known[shape]
