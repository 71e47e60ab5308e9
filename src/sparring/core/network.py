"""The PyTorch victim: raw inputs in, class scores out, with traits that are checked and gradients that can be
replaced.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparring.core.arrangement import arranged
from sparring.core.batch import Batch
from sparring.core.door import admit_tensor, as_pair, coerce_scores, finite_scores
from sparring.core.errors import CapabilityError, InputError, VictimError
from sparring.core.identity import identity, operations
from sparring.core.inspection import inspect
from sparring.core.nearby import Nearby, Window
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom
from sparring.core.space import Bounds
from sparring.core.straight import flat, overheard, straightened
from sparring.core.threat import Access
from sparring.core.untouched import untouched
from sparring.core.victim import BaseVictim, Traits

# Networks and inputs in these are attacked in float32, and their scores are compared there.
LOW = (torch.float16, torch.bfloat16)


class Victim(BaseVictim):
    """A PyTorch classifier with its true input domain. Normalisation belongs here, never to the attack or the caller.

    A network that refuses the inputs' type is handed them in that of its weights, and one that writes into its input a copy.

    Args:
        net: a module (or any differentiable callable) from normalised inputs to class scores. Its parameters, their
            gradients and its train/eval mode are never changed.
        bounds: (lo, hi) of the raw input: numbers, or tensors per feature without the batch dimension.
        mean, std: per-channel normalisation applied to raw inputs before `net`; None for none.
        labels: class names.
        output: which part of the network's answer holds the scores: a key, or a function of the answer; None finds
            `.logits`, the usual keys, or the only tensor.
        probabilities: the network ends in a softmax or sigmoid; scores become log-probabilities.
        traits: see `Traits`; a random network is `Traits(stochastic=True)`.
        name: what messages and reports call it.
        quick: whether searches may call the network over rearranged layers, which answer up to float rounding as it does:
            batch-norms folded into convolutions, channels last, activations in place, strided convolutions that go back by
            hand, windows from memory. Clean answers and the last re-check take the network as it is.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> victim = sp.Victim(net, labels=["cat", "dog", "gnu"])
        >>> victim.query(torch.rand(2, 1, 2, 2)).labels.shape
        torch.Size([2])
    """

    domain = "tensor"
    access = Access.GRADIENTS

    def __init__(  # noqa: PLR0913 (a network, what it takes and answers, and what is known of it)
        self,
        net: Callable[..., Any],
        *,
        bounds: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        labels: Sequence[str] | None = None,
        output: str | Callable[[Any], Any] | None = None,
        probabilities: bool = False,
        traits: Traits | None = None,
        name: str | None = None,
        quick: bool = True,
    ) -> None:
        super().__init__(labels=labels, name=name or type(net).__name__, traits=traits)
        self.quick = quick
        if not callable(net):
            raise InputError(
                f"net is a {type(net).__name__}; a torch.nn.Module or a function of a batch is needed. "
                "sparring.victims.SklearnVictim(model) takes scikit-learn's models"
            )
        self.net = net
        self.bounds: Bounds = Bounds.of(bounds)
        self.mean, self.std = _normalisation(mean, std)
        self.output = output
        self.probabilities = probabilities
        self.stages: tuple[nn.Module, ...] = ()
        self.detector: Callable[..., Tensor] | None = None
        self._inspected = self._casts = False
        self._frozen_on = _device_of_constants(net)

    @property
    def device(self) -> torch.device:
        """The device of the network's first parameter, buffer or frozen constant; the CPU where it has none."""
        if isinstance(self.net, nn.Module):
            for tensor in itertools.chain(self.net.parameters(), self.net.buffers()):
                return tensor.device
        return self._frozen_on

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The network, its defence stages and its detector, as far as they are modules."""
        return tuple(m for m in (self.net, *self.stages, self.detector) if isinstance(m, nn.Module))

    def scores(self, x: Tensor, noise: KeyedRandom | None = None) -> Tensor:
        """Differentiable class scores (n, k) of raw inputs (n, ...), through every defence stage as it truly is.

        Raises:
            VictimError: the network raised, or returned no class scores.
        """
        for depth, stage in enumerate(self.stages):
            x = run_stage(stage, x, noise, depth)
        return self.head(x)

    def objective(
        self, x: Tensor, loss: Callable[[Tensor], Tensor], noise: KeyedRandom | None = None
    ) -> tuple[Tensor, Tensor]:
        """What an attacker of this victim raises, (n,), and the scores (n, k) beside it, both differentiable in x.

        `loss` maps scores (n, k) to one value per sample.
        """
        scores = self.scores(x, noise)
        return loss(scores), scores

    def head(self, x: Tensor) -> Tensor:
        """Class scores of inputs that have already passed the defence stages: normalisation and the network."""
        if self.mean is not None and self.std is not None:
            x = standardise(x, self.mean, self.std)
        try:
            out = self._forward(x)
        except Exception as cause:
            raise VictimError(
                f"{self.name!r} raised {type(cause).__name__} on inputs of shape {tuple(x.shape)} and "
                f"{x.dtype}: {cause}"
            ) from cause
        if callable(self.output):
            out = self.output(out)
        elif self.output is not None:
            try:
                out = out[self.output] if isinstance(out, Mapping) else getattr(out, self.output)
            except (KeyError, AttributeError) as cause:
                raise VictimError(f"{self.name!r} returned a {type(out).__name__} without {self.output!r}") from cause
        scores = coerce_scores(out, x.shape[0], self.name)
        scores = scores.float() if scores.dtype in LOW else scores
        if not self.probabilities:
            return as_pair(finite_scores(scores))
        if scores.shape[1] == 1:  # one sigmoid output: its complement is the other class
            scores = torch.cat([1 - scores, scores], dim=1)
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()

    def _forward(self, x: Tensor) -> Any:
        """What the network answers, in the type of its weights where it refuses that of x."""
        if not self._casts:
            try:
                return untouched(self.net, x)
            except RuntimeError:
                if self._weights_dtype() in (None, x.dtype):
                    raise
        out = untouched(self.net, x.to(self._weights_dtype()))
        self._casts = True
        return out

    def _weights_dtype(self) -> torch.dtype | None:
        """The type of the first weights, None where there are none."""
        if not isinstance(self.net, nn.Module):
            return None
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), None)

    def capability(self, name: str) -> Any:
        """`"layers"`: the modules that lead from raw inputs to class scores one after another, a tuple.

        Nested `Sequential`s are read flat, and the normalisation comes first, as a `Normalise`.

        Raises:
            CapabilityError: anything else; or a victim that is more than a `Sequential` network.
        """
        if name != "layers":
            return super().capability(name)
        if type(self.net) is not nn.Sequential:
            raise CapabilityError(
                f"the net of {self.name!r} is a {type(self.net).__name__}; only those of a torch.nn.Sequential can be read"
            )
        beyond = {
            "defence stages": self.stages,
            "a detector": self.detector,
            "output=": self.output,
            "probabilities=True": self.probabilities,
            "randomness": self.traits.stochastic,
        }
        if also := [what for what, there in beyond.items() if there]:
            raise CapabilityError(f"{self.name!r} has {' and '.join(also)} beside its layers; give the bare network")
        first = () if self.mean is None or self.std is None else (Normalise(self.mean, self.std),)
        return (*first, *flat(self.net))

    def nearby(self, x: Batch) -> Nearby | None:
        """A memory that answers questions about points which differ from known ones in a window, or None where it cannot pay.

        It serves networks of layers one after another on CPUs, and none whose forward somebody has replaced or listens to.
        """
        if not isinstance(x, Tensor) or x.ndim != 4 or x.device.type != "cpu" or not x.is_floating_point():
            return None
        if not self.quick:
            return None
        if any(getattr(type(self), name) is not getattr(Victim, name) for name in ("query", "scores", "head")):
            return None
        try:
            layers = self.capability("layers")
        except CapabilityError:
            return None
        if isinstance(self.net, nn.Module) and overheard(self.net):
            return None
        return Nearby(layers, (Normalise,), (x.shape[1], x.shape[2], x.shape[3]))

    def query_nearby(self, memory: Nearby, x: Batch, window: Window) -> Prediction:
        """The answer of `query` from a memory of `nearby` that stands at points which differ from x in the window alone.

        Raises:
            VictimError: the network failed, or answered NaN.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"{self.name!r} takes a tensor batch; a {type(x).__name__} came")
        return self._predicted(self.scores_nearby(memory, x, window))

    def scores_nearby(self, memory: Nearby, x: Tensor, window: Window) -> Tensor:
        """The answer of `scores`, without gradients, from such a memory."""
        with torch.no_grad():
            return as_pair(finite_scores(coerce_scores(memory.scores(x, window), len(x), self.name)))

    def accepts(self, x: Tensor, noise: KeyedRandom | None = None) -> Tensor | None:
        """Bool (n,): which inputs the detector lets through the stages; None where there is no detector."""
        if self.detector is None:
            return None
        with torch.no_grad():
            for depth, stage in enumerate(self.stages):
                x = run_stage(stage, x, noise, depth)
            return self._accepted(x)

    def _accepted(self, x: Tensor) -> Tensor | None:
        """The detector's word on inputs that have passed the stages, copied as scores are."""
        return None if self.detector is None else untouched(self.detector, x).clone()

    def query(self, x: Batch, noise: KeyedRandom | None = None) -> Prediction:
        """The true answer: every stage as it is, the detector's acceptance, no gradient kept.

        Raises:
            VictimError: the network failed, or answered NaN.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"{self.name!r} takes a tensor batch; a {type(x).__name__} came")
        with torch.no_grad():
            x = x.to(self.device)
            for depth, stage in enumerate(self.stages):
                x = run_stage(stage, x, noise, depth)
            scores = self.head(x)
            return self._predicted(scores, self._accepted(x))

    def _predicted(self, scores: Tensor, accepted: Tensor | None = None) -> Prediction:
        if bool(torch.isnan(scores).any()):
            bad = torch.isnan(scores).any(1)
            raise VictimError(
                f"{self.name!r} answered NaN for {int(bad.sum())} of {len(scores)} inputs; a robustness number from "
                "such a model means nothing. Look for log(0), 0/0 or half precision inside it"
            )
        return Prediction.of(scores, accepted)

    def admit(self, x: Batch, y: Any) -> tuple[Batch, Tensor]:
        """Inputs on the device, finite, inside the bounds; labels in range. Warns once about traits that spoil
        results.
        """
        if not isinstance(x, Tensor):
            raise InputError(
                f"{self.name!r} takes a tensor batch (n, ...); a {type(x).__name__} came. Try torch.as_tensor(x)"
            )
        x = admit_tensor(x, self.bounds, self.name).detach().to(self.device)
        x = x.float() if x.dtype in LOW else x  # steps and distances in half precision would be too coarse
        if len(x) and not self._inspected:
            inspect(self, x, self._in_training())
            self._inspected = True
        return x, self._admit_labels(y, len(x))

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Eval mode for every submodule, and a forked random state; both are put back exactly on leaving."""
        modules = self._in_training()
        devices = [self.device] if self.device.type == "cuda" else []
        for m in modules:
            m.training = False
        try:
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            for m in modules:
                m.training = True

    def _in_training(self) -> list[nn.Module]:
        """The submodules in train mode; a frozen TorchScript module has no mode."""
        return [m for module in self.modules for m in module.modules() if getattr(m, "training", False)]

    def fingerprint(self) -> str:
        """SHA-256 over the parameters, buffers, structure, normalisation, bounds and stages."""
        digest = hashlib.sha256(f"{self.name}|{self.bounds}|{self.mean}|{self.std}|{self.probabilities}".encode())
        for part in itertools.chain.from_iterable(identity(module) for module in self.modules):
            digest.update(part)
        return digest.hexdigest()

    def straight(self) -> Victim | None:
        """The same view, its network one whose gradients are computed by hand (`sparring.core.straight`), or None.

        For the time of one attack: it has the weights that the network has now.
        """
        if not self.quick or type(self).head is not Victim.head or (net := straightened(self.net)) is None:
            return None
        return self._over(net)

    def arranged(self) -> Victim:
        """The same view, its network over rearranged layers (`sparring.core.arrangement`) where that pays, or itself.

        For the time of one attack.
        """
        kind = type(self)
        if not self.quick or kind.head is not Victim.head or kind.query is not Victim.query:
            return self
        if (net := arranged(self.net)) is None:
            return self
        return self._over(net)

    def _over(self, net: nn.Module) -> Victim:
        view = copy.copy(self)
        view.net = net
        return view

    def defended(self, pre: Sequence[nn.Module] = (), detector: Callable[..., Tensor] | None = None) -> Victim:
        """A victim with `pre` in front of this one, in order, and a detector `(x) -> accepted bool (n,)` behind them.

        A stage is a module from raw inputs to raw inputs; it may declare `traits: Traits`, and a `surrogate(x)` that is
        differentiable where its forward is not.
        """
        new = self._copy()
        new.stages = (*pre, *self.stages)
        new.detector = detector if detector is not None else self.detector
        stages = [getattr(s, "traits", Traits()) for s in pre]
        new.traits = Traits(
            stochastic=self.traits.stochastic or any(t.stochastic for t in stages),
            differentiable=self.traits.differentiable and all(t.differentiable for t in stages),
            optimises=self.traits.optimises or any(t.optimises for t in stages),
            rejects=self.traits.rejects or detector is not None,
            costly=self.traits.costly,
        )
        new.name = "+".join([*(type(s).__name__ for s in pre), self.name])
        return new

    def attack_view(self, *, bpda: bool = True, eot: int = 1) -> Victim:
        """The same victim with other gradients: scoring always takes the true forward.

        Args:
            bpda: stages that have a `surrogate` differentiate through it (Athalye et al. 2018, arXiv:1802.00420).
            eot: gradients are averaged over so many draws of the victim's randomness (expectation over transformation).
        """
        if eot < 1:
            raise InputError(f"eot is {eot}; at least one draw is needed")
        return AttackView(self, bpda=bpda, eot=eot)

    def _copy(self) -> Victim:
        new = Victim.__new__(Victim)
        new.__dict__.update(self.__dict__)
        return new


class AttackView(Victim):
    """A victim whose gradients are replaced (BPDA) or averaged (EOT); its answers are the victim's own."""

    def __init__(self, victim: Victim, *, bpda: bool, eot: int) -> None:
        self.__dict__.update(victim.__dict__)
        self.bpda, self.eot = bpda, eot

    def scores(self, x: Tensor, noise: KeyedRandom | None = None) -> Tensor:
        """The true scores, with each stage's gradient taken through its surrogate where it has one."""
        for depth, stage in enumerate(self.stages):
            surrogate = getattr(stage, "surrogate", None)
            if self.bpda and surrogate is not None:
                with torch.no_grad():
                    true = run_stage(stage, x, noise, depth)
                smooth = surrogate(x)
                x = true + (smooth - smooth.detach())
            else:
                x = run_stage(stage, x, noise, depth)
        return self.head(x)


class Normalise(nn.Module):
    """A victim's per-channel normalisation as a layer: (x - mean) / std."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        """Normalised inputs, (n, ...)."""
        return standardise(x, self.mean, self.std)


def standardise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std along the channels, or the features, of a batch (n, c, ...)."""
    shape = (-1, *([1] * (x.ndim - 2)))
    return (x - mean.to(x).reshape(shape)) / std.to(x).reshape(shape)


def _device_of_constants(net: Any) -> torch.device:
    """Where the weights of a frozen network are, which has no parameters: they cannot be moved."""
    if not isinstance(net, torch.jit.ScriptModule) or next(net.parameters(), None) is not None:
        return torch.device("cpu")
    return next((part.device for part in operations(net) if isinstance(part, Tensor)), torch.device("cpu"))


def run_stage(stage: nn.Module, x: Tensor, noise: KeyedRandom | None, depth: int) -> Tensor:
    """One defence stage; a stage of ours that is stochastic takes keyed noise, a foreign one draws for itself."""
    if noise is not None and getattr(stage, "keyed", False):
        return untouched(stage, x, noise=noise, stream=depth)  # type: ignore[no-any-return]
    return untouched(stage, x)  # type: ignore[no-any-return]


def _normalisation(mean: Any, std: Any) -> tuple[Tensor | None, Tensor | None]:
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise InputError(f"mean is {mean!r} and std is {std!r}; give both or neither")
    m, s = (torch.as_tensor(v, dtype=torch.float32).flatten() for v in (mean, std))
    if m.numel() != s.numel() or not bool((s > 0).all()):
        raise InputError(
            f"mean has {m.numel()} values and std {s.numel()} (least {float(s.min()):g}); "
            "equal numbers and std > 0 are needed"
        )
    return m, s
