"""A network's own code over rearranged layers: batch-norms folded into the convolutions before them, channels last.

In eval mode a batch-norm is a scale and a shift of each channel. Behind a convolution both go into its weights, and neither the
way forward nor the way back passes through it any more; elsewhere they are one multiplication and addition. CPU kernels are
faster where the channels of a pixel lie side by side. And where no gradient is wanted, an activation needs no memory of its own.
The network runs as its author wrote it; only its calls of such layers are answered otherwise. Up to float rounding the scores,
and the gradients at the input, are the same.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sparring.core.calls import CONVOLUTIONS, EXACT, HARMLESS, LAYOUT, Calls, Norm, Reread, norm_called, tensors
from sparring.core.convolutions import has_strided_convolutions, runs_in_python
from sparring.core.straight import overheard

# Multiplications of a pass per convolution below which answering the calls takes longer than what it saves: measured on a
# ResNet-20, a wide ResNet, a narrow MobileNet, a DenseNet and plain networks, which break even at 1 to 6 million; queries, before.
WORTH_IT = 1_000_000
# Convolutions that a network without batch-norms has at least where the layout alone pays: six do, two do not.
DEEP = 4
# Inputs from which on it pays at all: with single ones the calls' own time is what they save.
LEAST = 2
# Rounds of the check, each of which may find out about a layer; and how far apart answers may be (rounding is a millionth of them,
# in half precision a hundredth), gradients (units that rounding switches move them by a hundredth), and vanishing ones of both.
ROUNDS = 5
APART, APART_HALF, APART_GRADIENTS, TINY = 1e-3, 0.03, 0.05, 1e-6

_CONVOLVE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ALIKE = ({torch.float32}, {torch.float64})


class Arranged(nn.Module):
    """A network that answers as the one it was made of; for the time of one attack. Made by `arranged`."""

    def __init__(self, net: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.net = net
        self._plan, self._calls = plan, Calls(plan)

    def forward(self, x: Tensor) -> Any:
        """What the network answers."""
        plan = self._plan
        if len(x) < LEAST:
            return self.net(x)
        if plan.pays is None:
            plan.learn(self.net, x)
        if not plan.pays or len(x) * plan.work < WORTH_IT * plan.layers:
            return self.net(x)
        to_input = torch.is_grad_enabled() and x.requires_grad
        if to_input not in plan.checked:
            plan.check(self._quick, self.net, x, to_input)
        return self._quick(x) if plan.pays else self.net(x)

    def _quick(self, x: Tensor) -> Any:
        """The same over rearranged layers; as the network is where somebody notices, or where that fails."""
        try:
            with self._calls:
                out = self.net(x.clone() if self._plan.writes else x)
        except Reread:
            return self.net(x)
        except Exception:
            out = self.net(x)  # where this fails too, it is the network
            self._plan.pays = False
            return out
        return self.net(x) if self._calls.lost else out


def arranged(net: object) -> Arranged | None:
    """The network over rearranged layers, or None where there is nothing to gain.

    Its first call learns, by a forward of two inputs and once for a network, which batch-norm stands behind which convolution, and
    holds what the rearranged layers make of two inputs against what the network makes of them: the first forward without
    gradients does so for the answers, the first with them for those and the gradients.
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
        overwrites: whether activations may write over what they read; a network that reads it again ends that.
        layers, work: how many convolutions are called, and their multiplications for one input.
        norms: the batch-norm that alone reads what the convolution with certain weights gives, and the weights, by their id.
        own: the ids of the network's tensors.
        writes: whether the network writes into its input.
        checked: whether answers (False) and gradients (True) have been held against the network's own.
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
        self.overwrites = True
        self.writes = False
        self.checked: set[bool] = set()
        self.own = frozenset(key for key, _, _ in self._kind)
        self.layers = self.work = 0
        self.norms: dict[int, tuple[Tensor, Norm]] = {}

    def holds(self, net: nn.Module) -> bool:
        """Whether the network is of the same tensors still, on the same devices and of the same types."""
        return self._kind == _kind(net)

    def learn(self, net: nn.Module, x: Tensor) -> None:
        """See one forward of two of the inputs x."""
        seen, two = _Seen(net), x[:2].clone()
        version = two._version
        try:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False), seen:
                net(two)
        except Exception:  # the call of all of x will say so
            self.pays = False
            return
        self.layers, self.work, self.norms = seen.layers, seen.work // len(x[:2]), seen.found()
        self.last = self.last and not seen.layout
        self.folds = not seen.noisy and (bool(self.norms) or seen.alone)
        self.pays = self.folds or self.last
        self.writes = two._version != version

    def check(self, quick: Callable[[Tensor], Any], net: nn.Module, x: Tensor, to_input: bool) -> None:
        """Hold the answers to two of the inputs x, and where `to_input` the gradients, against those of the network as it is.

        Functions hidden from Python, seeded noise, writing through views: what a network may do has no end. Where they differ,
        activations are left their own memory, then channels their place, then all is left as it is.
        """
        self.checked.add(to_input)
        for left in ("overwrites", "last", "pays"):
            try:
                if self._stands(quick, net, x[:2], to_input):
                    break
            except Exception:  # so does the network, or it answers nothing that can be compared
                self.pays = False
                break
            setattr(self, left, False)
        self.pays = self.pays and (self.folds or self.last)

    def _stands(self, quick: Callable[[Tensor], Any], net: nn.Module, x: Tensor, to_input: bool) -> bool:
        for _ in range(ROUNDS):
            self.pays = True
            before = self.overwrites, len(self.norms)
            mine, its = (_answered(call, x, to_input) for call in (quick, net))
            if not self.pays:  # it failed
                return False
            if before == (self.overwrites, len(self.norms)):  # a pass that found nothing out has shown what is to come
                return len(mine) == len(its) and all(_near(*pair) for pair in zip(mine, its, strict=True))
        return False


def _answered(call: Callable[[Tensor], Any], x: Tensor, to_input: bool) -> list[tuple[Tensor, float]]:
    """The numbers that a network answers to inputs, and where `to_input` the gradient of a weighted sum of them.

    With how far apart two of each may be.
    """
    leaf = x.detach().clone().requires_grad_(to_input)
    devices = [x.device] if x.device.type == "cuda" else []
    exact = torch.autocast(x.device.type, enabled=False)
    with torch.random.fork_rng(devices=devices), torch.set_grad_enabled(to_input), exact:
        found = [t for t in _numbers(call(leaf.clone())) if t.is_floating_point()]  # it may write into its input
        if not found:
            raise ValueError("an answer without numbers")
        told = [(t.detach(), APART if t.dtype in EXACT else APART_HALF) for t in found]
        steep = [t for t in found if t.requires_grad]
        if steep:
            sums = [(t.flatten() * torch.linspace(1, 2, t.numel(), device=t.device)).sum().double() for t in steep]
            (grad,) = torch.autograd.grad(torch.stack(sums).sum(), leaf, allow_unused=True)
            told += [] if grad is None else [(grad, APART_GRADIENTS)]
    return told


def _numbers(answer: Any) -> Iterator[Tensor]:
    """The tensors of an answer: itself, or the parts of a sequence, a mapping or an object."""
    if isinstance(answer, Tensor):
        yield answer
        return
    named = answer if isinstance(answer, Mapping) else getattr(answer, "__dict__", {})
    for part in answer if isinstance(answer, (tuple, list)) else named.values():
        if isinstance(part, (Tensor, Mapping, tuple, list)):
            yield from _numbers(part)


def _near(mine: tuple[Tensor, float], its: tuple[Tensor, float]) -> bool:
    """Whether two answers are one, but for rounding and the units that it switches."""
    (left, share), (right, _) = mine, its
    known = torch.isfinite(right)
    if left.shape != right.shape or left.dtype != right.dtype or not torch.equal(known, torch.isfinite(left)):
        return False
    apart, size = (torch.linalg.vector_norm(t[known].double()) for t in (left - right, right))
    return bool(apart <= share * size + TINY)


def _kind(net: nn.Module) -> list[tuple[int, str, torch.dtype]]:
    return [(id(t), t.device.type, t.dtype) for t in itertools.chain(net.parameters(), net.buffers())]


_PLANS: weakref.WeakKeyDictionary[nn.Module, Plan] = weakref.WeakKeyDictionary()


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
        self._folds: dict[int, list[tuple[Tensor, Norm]]] = {}
        self._normed: tuple[weakref.ref[Tensor], Tensor] | None = None  # what the last batch-norm read, and its weights

    def found(self) -> dict[int, tuple[Tensor, Norm]]:
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
        self.layout = self.layout or func in LAYOUT
        if func is functional.batch_norm or func in CONVOLUTIONS:
            self.noisy = self.noisy or any(self._changed(t) for t in tensors(args, kwargs))
        if func is functional.batch_norm:
            self._norm(*norm_called(*args, **(kwargs or {})))
        elif self._outputs and func not in HARMLESS:
            for t in tensors(args, kwargs):
                self._outputs.pop(id(t), None)
        out = func(*args, **(kwargs or {}))
        if func not in CONVOLUTIONS or len(args) < 2 or type(out) is not Tensor:
            return out
        self.layers += 1
        self.work += args[1][0].numel() * out.numel()
        if isinstance(args[1], nn.Parameter):
            self._uses[id(args[1])] = self._uses.get(id(args[1]), 0) + 1
            self._outputs[id(out)] = (weakref.ref(out), args[1])
        return out

    def _norm(self, x: Tensor, norm: Norm | None) -> None:
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
