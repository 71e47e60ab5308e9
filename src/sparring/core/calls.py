"""How a network's calls of its layers are answered while it runs over rearranged ones (see `core.arrangement`).

Three things: a convolution takes the batch-norm behind it into its weights, its channels lie last, and where no gradient is
wanted an activation writes over what it reads, which the network has just got and, as a rule, drops. Who reads all the same what
a plain layer would have given is handed that.
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
_EXACT = (torch.float32, torch.float64)
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
    """

    last: bool
    folds: bool
    overwrites: bool
    norms: dict[int, tuple[Tensor, Norm]]


class Calls(TorchFunctionMode):
    """Answers a network's calls of convolutions, batch-norms and activations, one pass after another."""

    def __init__(self, orders: Orders) -> None:
        super().__init__()
        self._orders = orders
        self._folded: dict[int, _Folded] = {}
        self._lines: dict[int, tuple[Norm, Tensor, Tensor]] = {}
        self._sources: list[Tensor] = []  # of what is kept here
        self._versions: list[int] = []
        self._pending: dict[int, _Pending] = {}  # what folded layers gave, until the batch-norm comes
        self._fresh: _Made | None = None  # what the last call made, if it was of this kind
        self._overwritten: list[_Made] = []
        self._writing = False

    def __enter__(self) -> Calls:
        """Begin a pass, with the weights that the network has now."""
        if self._versions != [t._version for t in self._sources]:
            self._folded.clear()
            self._lines.clear()
            self._sources, self._versions = [], []
        self._writing = self._orders.overwrites and not torch.is_grad_enabled()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *how: Any) -> None:
        """Leave the pass; what the network has kept of it is what plain layers give."""
        super().__exit__(*how)  # type: ignore[no-untyped-call]
        overwritten, self._overwritten = self._overwritten, []
        for made in overwritten if how[0] is None else ():
            self._orders.overwrites = not made.restored() and self._orders.overwrites
        self._pending.clear()
        self._fresh = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in HARMLESS:
            return func(*args, **(kwargs or {}))
        fresh, self._fresh = self._fresh, None
        if self._overwritten:
            if self._overwritten[-1].out() is None:  # as nearly always
                self._overwritten.pop()
            if self._overwritten:
                self._restore(args, kwargs)
        if func is functional.batch_norm:
            return self._norm(args, kwargs or {})
        if fresh is not None and func in _ACTIVATIONS and args and args[0] is fresh.out():
            return self._activate(func, fresh, args, kwargs)
        if self._pending:
            args, kwargs = self._unfolded(args), {key: self._unfolded(value) for key, value in (kwargs or {}).items()}
        if func in CONVOLUTIONS and len(args) > 1:
            return self._convolve(func, *args, **(kwargs or {}))
        if self._orders.last and args and isinstance(args[0], Tensor) and not args[0].is_contiguous():
            if func is Tensor.view:
                return _viewed(args, kwargs or {})
            if func in LAYOUT:  # in a part of the network that the first look did not see
                args = (args[0].contiguous(), *args[1:])
        if func in _SUMS and not kwargs:
            return self._make(func, args)
        return func(*args, **(kwargs or {}))

    def _convolve(
        self, func: Callable[..., Any], x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any
    ) -> Any:
        if self._orders.last and func is functional.conv2d and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        folded = self._fold(weight, bias)
        # who packs what the graph saves may compute it anew on the way back, where nothing is rearranged
        if folded is None or not self._orders.folds or _packing(True) is not None:
            return self._make(func, (x, weight, bias, *rest), more)
        out = func(x, folded.weight, folded.bias, *rest, **more)
        self._pending[id(out)] = _Pending(_Made(out, func, (x, folded.weight, folded.bias, *rest), more), folded)
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
        pending = self._pending.pop(id(x), None)
        if pending is not None and pending.made.out() is x:
            if pending.given is None and norm == pending.folded.norm:
                self._fresh = pending.made if self._writing else None
                return x
            x = self._plain(pending)
        serves = self._orders.folds and x.dtype in _EXACT and _packing(True) is None
        if norm is None or not serves or norm.mean.dtype != x.dtype:
            return self._make(functional.batch_norm, (x, *args[1:]), kwargs)
        known, scale, shift = self._lines.get(id(norm.mean), (None, x, x))
        if known != norm:
            self._remember(*norm.tensors)
            shape = (1, -1, *([1] * (x.ndim - 2)))
            scale, shift = (part.reshape(shape) for part in norm.line())
            self._lines[id(norm.mean)] = (norm, scale, shift)
        return self._make(torch.addcmul, (shift, x, scale))

    def _make(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """The new tensor that a call gives, which an activation may write over if it is the next to come."""
        out = func(*args, **kwargs) if kwargs else func(*args)
        if self._writing and type(out) is Tensor:
            self._fresh = _Made(out, func, args, kwargs)
        return out

    def _activate(
        self, func: Callable[..., Any], fresh: _Made, args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> Any:
        """An activation of what has just been made, in its place."""
        over, place = _ACTIVATIONS[func]
        more = dict(kwargs or {})
        if more.pop("inplace", False) or (len(args) > place and args[place]) or torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        out: Tensor = over(*args[:place], **more).detach()  # another object: who still has the first means what it was
        self._overwritten.append(fresh)
        return out

    def _restore(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
        """Give the arguments that an activation has written over what they were, and let that be the last time."""
        self._overwritten = [made for made in self._overwritten if made.out() is not None]
        asked = {id(t) for t in tensors(args, kwargs)}
        for made in [made for made in self._overwritten if id(made.out()) in asked]:
            made.restored()
            self._overwritten.remove(made)
            self._orders.overwrites = self._writing = False

    def _plain(self, pending: _Pending) -> Tensor:
        """What the plain layer gives, which is called as it is from now on."""
        self._orders.norms.pop(id(pending.folded.weight_before), None)
        self._folded.pop(id(pending.folded.weight_before), None)
        if pending.given is None:
            pending.given = pending.made.again(pending.folded.weight_before, pending.folded.bias_before)
        return pending.given

    def _unfolded(self, value: Any) -> Any:
        """An argument, or arguments, with what folded layers gave replaced by what the plain ones give."""
        if isinstance(value, Tensor):
            pending = self._pending.get(id(value))
            return value if pending is None or pending.made.out() is not value else self._plain(pending)
        if type(value) in (tuple, list):
            return type(value)(self._unfolded(part) for part in value)
        return value


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


class _Made:
    """A tensor that a call has made.

    Attributes:
        out: it, as long as somebody has it.
    """

    __slots__ = ("_args", "_func", "_kwargs", "out")

    def __init__(
        self, out: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> None:
        self.out = weakref.ref(out)
        self._func, self._args, self._kwargs = func, args, kwargs

    def again(self, *others: Any) -> Tensor:
        """What the call gives, with others for as many arguments behind the first."""
        first, *rest = self._args
        made: Tensor = self._func(first, *others, *rest[len(others) :], **(self._kwargs or {}))
        return made

    def restored(self) -> bool:
        """Whether somebody still has it; it is then what the call gives, whatever has been written over it."""
        out = self.out()
        if out is not None:
            out.data = self.again().to(out.dtype)
        return out is not None


class _Pending:
    """What a folded layer gave, before its batch-norm has come.

    Attributes:
        made: that.
        folded: the layer.
        given: what the plain layer gives, once somebody else has wanted it.
    """

    __slots__ = ("folded", "given", "made")

    def __init__(self, made: _Made, folded: _Folded) -> None:
        self.made, self.folded = made, folded
        self.given: Tensor | None = None


def _viewed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A view, or a copy where the layout allows none: a network may call `view` where only `reshape` serves every layout."""
    with contextlib.suppress(RuntimeError):
        return Tensor.view(*args, **kwargs)
    return Tensor.view(args[0].contiguous(), *args[1:], **kwargs)
