"""A network's own code over rearranged layers: batch-norms folded into the convolutions before them, channels last.

In eval mode a batch-norm is a scale and a shift of each channel. Behind a convolution both go into its weights, and neither the
way forward nor the way back passes through it any more; elsewhere they are one multiplication and addition. And CPU kernels are
faster where the channels of a pixel lie side by side. The network runs as its author wrote it; only its calls of such layers are
answered otherwise. Up to float rounding the scores, and the gradients at the input, are the same.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sparring.core.convolutions import has_strided_convolutions, runs_in_python
from sparring.core.straight import overheard

# Multiplications of a pass per convolution below which answering the calls takes longer than what it saves: measured on a
# ResNet-20, a wide ResNet, a narrow MobileNet, a DenseNet and plain networks, which break even at 1 to 6 million; queries, before.
WORTH_IT = 1_000_000
# Convolutions that a network without batch-norms has at least where the layout alone pays: six do, two do not.
DEEP = 4

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONVOLVE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_EXACT = (torch.float32, torch.float64)
_ALIKE = ({torch.float32}, {torch.float64})
# The hooks that pack what a graph saves, or None.
_packing: Callable[[bool], Any] = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)
# What tells of a tensor nothing that folding changes.
_HARMLESS = frozenset(
    {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__}
    | {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad")}
)
# What sees how the numbers lie in memory.
_LAYOUT = frozenset(
    {torch.as_strided, Tensor.as_strided, Tensor.as_strided_, Tensor.data_ptr, Tensor.stride, Tensor.is_contiguous}
    | {Tensor.storage, Tensor.untyped_storage, Tensor.storage_offset}
)


class Arranged(nn.Module):
    """A network that answers as the one it was made of; for the time of one attack. Made by `arranged`."""

    def __init__(self, net: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.net = net
        self._plan, self._calls = plan, _Calls(plan)

    def forward(self, x: Tensor) -> Any:
        """What the network answers."""
        if self._plan.pays is None and len(x):
            self._plan.learn(self.net, x)
        if not self._plan.pays or len(x) * self._plan.work < WORTH_IT * self._plan.layers:
            return self.net(x)
        with self._calls:
            return self.net(x)


def arranged(net: object) -> Arranged | None:
    """The network over rearranged layers, or None where there is nothing to gain.

    Its first call learns, by a forward of two inputs and once for a network, which batch-norm stands behind which convolution.
    """
    if not runs_in_python(net) or overheard(net) or not all(runs_in_python(m) for m in net.modules()):
        return None
    plan = plan_of(net)
    return None if plan.pays is False else Arranged(net, plan)


def plan_of(net: nn.Module) -> Plan:
    """What there is to rearrange in a network; remembered until its layers or its tensors become others."""
    plan = _PLANS.get(net)
    if plan is None or not plan.holds(net):
        plan = _PLANS[net] = Plan(net)
    return plan


class Plan:
    """What there is to rearrange in a network.

    Attributes:
        pays: whether anything is; None before `learn`.
        last: whether channels go last.
        folds: whether batch-norms go into convolutions or become a multiplication and an addition.
        layers, work: how many convolutions are called, and their multiplications for one input.
        norms: the batch-norm that alone reads what the convolution with certain weights gives, and the weights, by their id.
    """

    def __init__(self, net: nn.Module) -> None:
        layers = list(net.modules())
        convolutions = sum(isinstance(m, _CONVOLVE) for m in layers)
        self.folds = convolutions > 0 and any(isinstance(m, _BATCH_NORMS) for m in layers)
        self._kind = _kind(net)
        on_cpu = all(device == "cpu" for _, device, _ in self._kind)
        # for the layout alone it does not pay in shallow networks, nor beside the quick way back of `core.convolutions`
        deep = convolutions >= DEEP and not has_strided_convolutions(net)
        self.last = on_cpu and any(isinstance(m, nn.Conv2d) for m in layers) and (self.folds or deep)
        self.pays: bool | None = None if self.folds or self.last else False
        self.layers = self.work = 0
        self.norms: dict[int, tuple[Tensor, _Norm]] = {}

    def holds(self, net: nn.Module) -> bool:
        """Whether the network is of the same tensors still, on the same devices and of the same types."""
        return self._kind == _kind(net)

    def learn(self, net: nn.Module, x: Tensor) -> None:
        """See one forward of two of the inputs x."""
        seen = _Seen(net)
        try:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False), seen:
                net(x[:2].clone())
        except Exception:  # the call of all of x will say so
            self.pays = False
            return
        self.layers, self.work, self.norms = seen.layers, seen.work // len(x[:2]), seen.found()
        self.last = self.last and not seen.layout
        self.folds = not seen.noisy and (bool(self.norms) or seen.alone)
        self.pays = self.folds or self.last


def _kind(net: nn.Module) -> list[tuple[int, str, torch.dtype]]:
    return [(id(t), t.device.type, t.dtype) for t in itertools.chain(net.parameters(), net.buffers())]


_PLANS: weakref.WeakKeyDictionary[nn.Module, Plan] = weakref.WeakKeyDictionary()


class _Norm:
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
            isinstance(other, _Norm)
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


def _called(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, _Norm | None]:
    """The input and the batch-norm of a call of `functional.batch_norm`; None where it takes the batch's own statistics."""
    if training or running_mean is None or running_var is None:
        return x, None
    return x, _Norm(running_mean, running_var, weight, bias, eps)


class _Seen(TorchFunctionMode):
    """Watches one forward.

    Attributes:
        layout: whether the network looks at how numbers lie in memory.
        alone: whether some batch-norm stands behind no convolution that it could be folded into.
        noisy: whether weights are not what they were before it: noise is added to them, behind autograd's back for all we know.
        layers, work: calls of convolutions, and their multiplications.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.layout = self.alone = self.noisy = False
        self._sums = {id(t): t.detach().sum() for t in itertools.chain(net.parameters(), net.buffers())}
        self.layers = self.work = 0
        self._outputs: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}  # with the weights they were made by
        self._uses: dict[int, int] = {}  # of weights, by their id
        self._folds: dict[int, list[tuple[Tensor, _Norm]]] = {}
        self._normed: tuple[weakref.ref[Tensor], Tensor] | None = None  # what the last batch-norm read, and its weights

    def found(self) -> dict[int, tuple[Tensor, _Norm]]:
        """The `norms` of a `Plan`."""
        self._look_back()
        one = {key: found[0] for key, found in self._folds.items() if len(found) == self._uses[key]}
        return {
            key: (weight, norm) for key, (weight, norm) in one.items() if all(f[1] == norm for f in self._folds[key])
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._look_back()
        self.layout = self.layout or func in _LAYOUT
        if func is functional.batch_norm or func in _CONVOLUTIONS:
            self.noisy = self.noisy or any(self._changed(t) for t in _tensors(args, kwargs))
        if func is functional.batch_norm:
            self._norm(*_called(*args, **(kwargs or {})))
        elif self._outputs and func not in _HARMLESS:
            for t in _tensors(args, kwargs):
                self._outputs.pop(id(t), None)
        out = func(*args, **(kwargs or {}))
        if func not in _CONVOLUTIONS or len(args) < 2 or type(out) is not Tensor:
            return out
        self.layers += 1
        self.work += args[1][0].numel() * out.numel()
        if isinstance(args[1], nn.Parameter):
            self._uses[id(args[1])] = self._uses.get(id(args[1]), 0) + 1
            self._outputs[id(out)] = (weakref.ref(out), args[1])
        return out

    def _norm(self, x: Tensor, norm: _Norm | None) -> None:
        made, weight = self._outputs.pop(id(x), (None, None))
        if norm is None:
            return
        if made is None or weight is None or made() is not x or {x.dtype, weight.dtype, norm.mean.dtype} not in _ALIKE:
            self.alone = True
            return
        self._folds.setdefault(id(weight), []).append((weight, norm))
        self._normed = (made, weight)

    def _changed(self, t: Tensor) -> bool:
        before = self._sums.get(id(t))
        return before is not None and not torch.equal(before, t.detach().sum())

    def _look_back(self) -> None:
        """What a batch-norm has read must be gone by now: who still holds it could read it, too, and find it folded."""
        if self._normed is not None:
            made, weight = self._normed
            self._normed = None
            if made() is not None:
                self._uses[id(weight)] += 1


class _Calls(TorchFunctionMode):
    """Answers a network's calls of convolutions and batch-norms."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self._folded: dict[int, _Folded] = {}
        self._lines: dict[int, tuple[_Norm, Tensor, Tensor]] = {}
        self._sources: list[Tensor] = []  # of what is kept here
        self._versions: list[int] = []
        self._pending: dict[int, _Pending] = {}  # what folded layers gave, until the batch-norm comes

    def __enter__(self) -> _Calls:
        """Begin a pass, with the weights that the network has now."""
        if self._versions != [t._version for t in self._sources]:
            self._folded.clear()
            self._lines.clear()
            self._sources, self._versions = [], []
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *how: Any) -> None:
        """Leave the pass."""
        self._pending.clear()
        super().__exit__(*how)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.batch_norm:
            return self._norm(args, kwargs or {})
        if self._pending and func not in _HARMLESS:
            args, kwargs = self._unfolded(args), {key: self._unfolded(value) for key, value in (kwargs or {}).items()}
        if func in _CONVOLUTIONS and len(args) > 1:
            return self._convolve(func, *args, **(kwargs or {}))
        if self._plan.last and args and isinstance(args[0], Tensor) and not args[0].is_contiguous():
            if func is Tensor.view:
                return _viewed(args, kwargs or {})
            if func in _LAYOUT:  # in a part of the network that the first look did not see
                args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))

    def _convolve(
        self, func: Callable[..., Any], x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any
    ) -> Any:
        if self._plan.last and func is functional.conv2d and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        folded = self._fold(weight, bias)
        # who packs what the graph saves may compute it anew on the way back, where nothing is rearranged
        if folded is None or not self._plan.folds or _packing(True) is not None:
            return func(x, weight, bias, *rest, **more)
        out = func(x, folded.weight, folded.bias, *rest, **more)
        self._pending[id(out)] = _Pending(weakref.ref(out), folded, lambda: func(x, weight, bias, *rest, **more))
        return out

    def _fold(self, weight: Tensor, bias: Tensor | None) -> _Folded | None:
        folded = self._folded.get(id(weight))
        if folded is not None and folded.bias_before is bias:
            return folded
        known = self._plan.norms.get(id(weight))
        if known is None or known[0] is not weight:
            return None
        self._remember(weight, *(() if bias is None else (bias,)), *known[1].tensors)
        folded = self._folded[id(weight)] = _Folded(weight, bias, known[1], last=self._plan.last)
        return folded

    def _remember(self, *sources: Tensor) -> None:
        tracked = [t for t in sources if not t.is_inference()]
        self._sources += tracked
        self._versions += [t._version for t in tracked]

    def _norm(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, norm = _called(*args, **kwargs)
        pending = self._pending.pop(id(x), None)
        if pending is not None and pending.out() is x:
            if pending.plain is None and norm == pending.folded.norm:
                return x
            x = self._plain(pending)
        serves = self._plan.folds and x.dtype in _EXACT and _packing(True) is None
        if norm is None or not serves or norm.mean.dtype != x.dtype:
            return functional.batch_norm(x, *args[1:], **kwargs)
        known, scale, shift = self._lines.get(id(norm.mean), (None, x, x))
        if known != norm:
            self._remember(*norm.tensors)
            shape = (1, -1, *([1] * (x.ndim - 2)))
            scale, shift = (part.reshape(shape) for part in norm.line())
            self._lines[id(norm.mean)] = (norm, scale, shift)
        return torch.addcmul(shift, x, scale)

    def _plain(self, pending: _Pending) -> Tensor:
        """What the plain layer gives, which is called as it is from now on."""
        self._plan.norms.pop(id(pending.folded.weight_before), None)
        self._folded.pop(id(pending.folded.weight_before), None)
        if pending.plain is None:
            pending.plain = pending.again()
        return pending.plain

    def _unfolded(self, value: Any) -> Any:
        """An argument, or arguments, with what folded layers gave replaced by what the plain ones give."""
        if isinstance(value, Tensor):
            pending = self._pending.get(id(value))
            return value if pending is None or pending.out() is not value else self._plain(pending)
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

    def __init__(self, weight: Tensor, bias: Tensor | None, norm: _Norm, *, last: bool) -> None:
        self.weight_before, self.bias_before, self.norm = weight, bias, norm
        scale, shift = norm.line()
        folded = weight.detach() * scale.reshape(-1, *([1] * (weight.ndim - 1)))
        self.weight = folded.contiguous(memory_format=torch.channels_last) if last and folded.ndim == 4 else folded
        self.bias = shift if bias is None else shift + bias.detach() * scale


class _Pending:
    """What a folded layer gave, before its batch-norm has come.

    Attributes:
        out: that.
        folded: the layer.
        again: what the plain layer gives, computed.
        plain: the same, once somebody else has wanted it.
    """

    def __init__(self, out: weakref.ref[Tensor], folded: _Folded, again: Callable[[], Tensor]) -> None:
        self.out, self.folded, self.again = out, folded, again
        self.plain: Tensor | None = None


def _viewed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A view, or a copy where the layout allows none: a network may call `view` where only `reshape` serves every layout."""
    with contextlib.suppress(RuntimeError):
        return Tensor.view(*args, **kwargs)
    return Tensor.view(args[0].contiguous(), *args[1:], **kwargs)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Iterator[Tensor]:
    for value in (*args, *(kwargs or {}).values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (part for part in value if isinstance(part, Tensor))
