"""How a network's calls of its layers are answered while it runs over rearranged ones (see `core.arrangement`).

Three things: a convolution takes the batch-norm behind it into its weights, its channels lie last, and where no gradient is
wanted an activation writes over what it reads, which the network has just got and, as a rule, drops. Where somebody reads all the
same what a plain layer would have given, the pass is over: it is run again as the network is, and that layer is plain from then on.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
# What tells of a tensor nothing that folding changes.
HARMLESS = frozenset(
    {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__}
    | {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad")}
)
# What sees how the numbers lie in memory.
LAYOUT = frozenset(
    {torch.as_strided, Tensor.as_strided, Tensor.as_strided_, Tensor.data_ptr, Tensor.stride, Tensor.is_contiguous}
    | {Tensor.storage, Tensor.untyped_storage, Tensor.storage_offset}
)
EXACT = (torch.float32, torch.float64)
# The hooks that pack what a graph saves, or None.
_packing: Callable[[bool], Any] = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)
# Activations that can write over what they read: how, and the place of the argument by which the caller asks for that.
_ACTIVATIONS: dict[Callable[..., Any], tuple[Callable[..., Any], int]] = {
    torch.relu: (torch.relu_, 1),
    Tensor.relu: (torch.relu_, 1),
    functional.relu: (torch.relu_, 1),
    functional.relu6: (lambda x: x.clamp_(0.0, 6.0), 1),
    functional.hardtanh: (lambda x, min_val=-1.0, max_val=1.0: x.clamp_(min_val, max_val), 3),
    functional.leaky_relu: (functional.leaky_relu_, 2),
    functional.silu: (lambda x: functional.silu(x, inplace=True), 1),
    functional.hardswish: (lambda x: functional.hardswish(x, inplace=True), 1),
}
_SUMS = (torch.add, Tensor.add)


class Norm:
    """A batch-norm in eval mode, as one call has it.

    Attributes:
        mean, var, weight, bias: of each channel, (c,); the last two or None.
        eps: added to the variance.
    """

    def __init__(self, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        self.mean, self.var, self.weight, self.bias, self.eps = mean, var, weight, bias, eps

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        return [t for t in (self.mean, self.var, self.weight, self.bias) if t is not None]

    def __eq__(self, other: object) -> bool:
        """Whether the other one is of the same tensors."""
        return (
            isinstance(other, Norm)
            and self.mean is other.mean
            and self.var is other.var
            and self.weight is other.weight
            and self.bias is other.bias
            and self.eps == other.eps
        )

    __hash__ = object.__hash__

    def line(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, (c,) each."""
        scale = (self.var.detach() + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.detach()
        shift = -self.mean.detach() * scale
        return scale, shift if self.bias is None else shift + self.bias.detach()


def norm_called(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Norm | None]:
    """The input and the batch-norm of a call of `functional.batch_norm`; None where it takes the batch's own statistics."""
    if training or running_mean is None or running_var is None:
        return x, None
    return x, Norm(running_mean, running_var, weight, bias, eps)


def tensors(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Iterator[Tensor]:
    """The tensors among the arguments of a call."""
    for value in (*args, *(kwargs or {}).values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (part for part in value if isinstance(part, Tensor))


class Orders(Protocol):
    """What is to be rearranged.

    Attributes:
        last: whether channels go last.
        folds: whether batch-norms go into convolutions or become a multiplication and an addition.
        overwrites: whether activations may write over what they read; a network that reads it again ends that.
        norms: the batch-norm that alone reads what the convolution with certain weights gives, and the weights, by their id.
        own: the ids of the network's own tensors.
    """

    last: bool
    folds: bool
    overwrites: bool
    norms: dict[int, tuple[Tensor, Norm]]
    own: frozenset[int]


class Reread(BaseException):
    """The network reads what a plain layer would have given, and what is not there."""


class Calls(TorchFunctionMode):
    """Answers a network's calls of convolutions, batch-norms and activations, one pass after another.

    A pass that is `lost`, or ends in `Reread`, has to be run again without; what misled it is left plain from then on.
    """

    def __init__(self, orders: Orders) -> None:
        super().__init__()
        self.lost = False
        self._orders = orders
        self._folded: dict[int, _Folded] = {}
        self._lines: dict[tuple[int, int], tuple[Norm, Tensor, Tensor]] = {}
        self._sources: list[Tensor] = []  # of what is kept here
        self._versions: list[int] = []
        self._pending: dict[int, _Passed] = {}  # what folded layers gave, until the batch-norm comes
        self._fresh: weakref.ref[Tensor] | None = None  # what the last call made, if an activation may write over it
        self._gone: list[_Passed] = []  # what nobody should have any more
        self._writing = self._tracking = False

    def __enter__(self) -> Calls:
        """Begin a pass, with the weights that the network has now."""
        if self._versions != [t._version for t in self._sources]:
            self._folded.clear()
            self._lines.clear()
            self._sources, self._versions = [], []
        self.lost = False
        self._tracking = not torch.is_grad_enabled()  # a graph has what is dropped for longer than the network's code
        self._writing = self._orders.overwrites and self._tracking
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *how: Any) -> None:
        """Leave the pass; it is lost where the network keeps what is not what a plain layer gives."""
        super().__exit__(*how)  # type: ignore[no-untyped-call]
        for passed in (*self._pending.values(), *self._gone):
            if how[0] is None and passed.out() is not None:
                self._forgo(passed)
                self.lost = True
        self._pending.clear()
        self._gone.clear()
        self._fresh = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in HARMLESS:
            return func(*args, **(kwargs or {}))
        fresh, self._fresh = self._fresh, None
        if self._gone:
            while self._gone and self._gone[-1].out() is None:  # as nearly always
                self._gone.pop()
            if self._gone:
                self._look(args, kwargs)
        if func is functional.batch_norm:
            return self._norm(args, kwargs or {})
        if fresh is not None and func in _ACTIVATIONS and args and args[0] is fresh():
            return self._activate(func, args, kwargs)
        if self._pending:
            for t in tensors(args, kwargs):
                passed = self._pending.get(id(t))
                if passed is not None and passed.out() is t:
                    self._forgo(passed)
                    raise Reread
        if func in CONVOLUTIONS and len(args) > 1:
            return self._convolve(func, *args, **(kwargs or {}))
        if self._orders.last and args and isinstance(args[0], Tensor) and not args[0].is_contiguous():
            if func is Tensor.view:
                return _viewed(args, kwargs or {})
            if func in LAYOUT:  # in a part of the network that the first look did not see
                args = (args[0].contiguous(), *args[1:])
        out = func(*args, **(kwargs or {}))
        return self._made(out) if func in _SUMS and not kwargs else out

    def _convolve(
        self, func: Callable[..., Any], x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any
    ) -> Any:
        if self._orders.last and func is functional.conv2d and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        folded = self._fold(weight, bias)
        # who packs what the graph saves may compute it anew on the way back, where nothing is rearranged
        if folded is None or not self._orders.folds or _packing(True) is not None:
            return self._made(func(x, weight, bias, *rest, **more))
        out = func(x, folded.weight, folded.bias, *rest, **more)
        self._pending[id(out)] = _Passed(out, folded)
        return out

    def _fold(self, weight: Tensor, bias: Tensor | None) -> _Folded | None:
        folded = self._folded.get(id(weight))
        if folded is not None and folded.bias_before is bias:
            return folded
        known = self._orders.norms.get(id(weight))
        if known is None or known[0] is not weight:
            return None
        self._remember(weight, *(() if bias is None else (bias,)), *known[1].tensors)
        folded = self._folded[id(weight)] = _Folded(weight, bias, known[1], last=self._orders.last)
        return folded

    def _remember(self, *sources: Tensor) -> None:
        tracked = [t for t in sources if not t.is_inference()]
        self._sources += tracked
        self._versions += [t._version for t in tracked]

    def _norm(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, norm = norm_called(*args, **kwargs)
        passed = self._pending.pop(id(x), None)
        if passed is not None and passed.out() is x:
            if passed.folded is None or norm != passed.folded.norm:
                self._forgo(passed)
                raise Reread
            if not self._tracking or torch.is_grad_enabled():
                return x
            self._gone.append(passed)
            return self._made(x.detach())  # another object: who still has the first one means the plain layer's
        serves = self._orders.folds and x.dtype in EXACT and _packing(True) is None
        own = norm is not None and self._orders.own.issuperset(map(id, norm.tensors))
        if norm is None or not own or not serves or norm.mean.dtype != x.dtype:
            return self._made(functional.batch_norm(*args, **kwargs))
        key = (id(norm.mean), x.ndim)
        known, scale, shift = self._lines.get(key, (None, x, x))
        if known != norm:
            self._remember(*norm.tensors)
            shape = (1, -1, *([1] * (x.ndim - 2)))
            scale, shift = (part.reshape(shape) for part in norm.line())
            self._lines[key] = (norm, scale, shift)
        return self._made(torch.addcmul(shift, x, scale))

    def _made(self, out: Any) -> Any:
        """A new tensor, which an activation may write over if it is the next to come."""
        if self._writing and type(out) is Tensor:
            self._fresh = weakref.ref(out)
        return out

    def _activate(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """An activation of what has just been made, in its place."""
        over, place = _ACTIVATIONS[func]
        more = dict(kwargs or {})
        if more.pop("inplace", False) or (len(args) > place and args[place]) or torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        out: Tensor = over(*args[:place], **more).detach()  # another object: who still has the first means what it was
        self._gone.append(_Passed(args[0], None))
        return out

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
        """End the pass if somebody reads what is gone."""
        asked = {id(t) for t in tensors(args, kwargs)}
        for passed in self._gone:
            out = passed.out()
            if out is not None and id(out) in asked:
                self._forgo(passed)
                raise Reread

    def _forgo(self, passed: _Passed) -> None:
        """Leave plain from now on what somebody reads."""
        if passed.folded is None:
            self._orders.overwrites = False
        else:
            self._orders.norms.pop(id(passed.folded.weight_before), None)
            self._folded.pop(id(passed.folded.weight_before), None)


class _Folded:
    """A layer's weights with its batch-norm in them.

    Attributes:
        weight, bias: of the folded layer.
        weight_before, bias_before: its own.
        norm: the batch-norm.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, norm: Norm, *, last: bool) -> None:
        self.weight_before, self.bias_before, self.norm = weight, bias, norm
        scale, shift = norm.line()
        folded = weight.detach() * scale.reshape(-1, *([1] * (weight.ndim - 1)))
        self.weight = folded.contiguous(memory_format=torch.channels_last) if last and folded.ndim == 4 else folded
        self.bias = shift if bias is None else shift + bias.detach() * scale


class _Passed:
    """A tensor that is not what a plain layer gives.

    Attributes:
        out: it, as long as somebody has it.
        folded: the layer that gave it; None where an activation has written over it.
    """

    __slots__ = ("folded", "out")

    def __init__(self, out: Tensor, folded: _Folded | None) -> None:
        self.out, self.folded = weakref.ref(out), folded


def _viewed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A view, or a copy where the layout allows none: a network may call `view` where only `reshape` serves every layout."""
    with contextlib.suppress(RuntimeError):
        return Tensor.view(*args, **kwargs)
    return Tensor.view(args[0].contiguous(), *args[1:], **kwargs)
