"""Faults that an evaluation must notice, ready to be built into any network, and the check that should notice them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad  # by name, as a user's layer may have it

import sparring as sp
from sparring.attacks.gradient.parts import Climber
from sparring.core.errors import VictimWarning
from sparring.core.registry import Card
from sparring.core.runner import Run
from sparring.core.threat import ThreatModel
from sparring.evaluation import audit
from sparring.evaluation.data import as_data
from sparring.evaluation.engine import run_check
from sparring.evaluation.findings import CHECKS, Check, Context, Finding, checks
from sparring.evaluation.units import seeded

Map = Callable[[Tensor], Tensor]


class Before(nn.Module):
    """A layer in front of a network, moduled or a plain function."""

    def __init__(self, layer: Map, net: nn.Module) -> None:
        super().__init__()
        self.layer, self.net = layer, net
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.layer(x))


class After(nn.Module):
    """A layer behind a network."""

    def __init__(self, net: nn.Module, layer: Map) -> None:
        super().__init__()
        self.layer, self.net = layer, net
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.net(x))


# -- faults of a victim ------------------------------------------------------------------------------------------------


def quantised(levels: int) -> Map:
    """Rounds inputs to so many steps: the gradient is zero wherever it exists."""
    return lambda x: (x * levels).round() / levels


def jagged(height: float) -> Map:
    """Adds a fine sawtooth: a steep gradient everywhere that says nothing about the next tooth."""
    return lambda x: x + height * ((x * 997).frac() - 0.5)


def steep(z: Tensor) -> Tensor:
    """A hundred times the logits: cross-entropy saturates to the last bit."""
    return 100 * z


def saturated(z: Tensor) -> Tensor:
    """A hard sigmoid, flat on both sides."""
    return F.hardsigmoid(20 * z)


def nan_slope(x: Tensor) -> Tensor:
    """The inputs themselves, with a gradient that is zero times infinity."""
    return x + (0 * x).sqrt()


def rippled(x: Tensor) -> Tensor:
    """Adds ripples too small to see and steep enough to turn the gradient's sign at every other point."""
    return x + 1e-3 * torch.sin(1e4 * x)


def contrary(x: Tensor) -> Tensor:
    """Turns the gradient round at the levels of an 8-bit picture, and nearly nowhere else: one step goes astray."""
    return x - 1e-3 * torch.sin(2 * torch.pi * 255 * x)


class Absent(nn.Module):
    """A stage that steps aside where gradients are asked for: applied to queries, and never attacked."""

    traits = sp.Traits(differentiable=False)

    def forward(self, x: Tensor) -> Tensor:
        return x if x.requires_grad else (x * 3).round() / 3


class Unrelated(nn.Module):
    """A stage that leaves its input as it is, with a surrogate that makes another picture of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def surrogate(self, x: Tensor) -> Tensor:
        return 1 - x


class Elsewhere(sp.Victim):
    """A victim whose defence is applied to its answers alone."""

    def query(self, x: Any, noise: Any = None) -> Any:
        return super().query((x * 3).round() / 3, noise)


class Noise(nn.Module):
    """Fresh Gaussian noise at every forward."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.deviation * torch.randn_like(x)


class Optimising(nn.Module):
    """Moves its input by three gradient steps of its own before the network sees it."""

    traits = sp.Traits(optimises=True)

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.detach().clone()
            for _ in range(3):
                z.requires_grad_(True)
                (slope,) = grad(self.net(z).logsumexp(1).sum(), z)
                z = (z - 1e-3 * slope.sign()).detach()
        return x + (z - x).detach()


class Bridged(Optimising):
    """The same with a surrogate to differentiate through."""

    def surrogate(self, x: Tensor) -> Tensor:
        return x


# -- faults of an attack -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Forgetful(sp.PGD):
    """Climbs outside the run's sight, and goes home whatever it has seen."""

    card: ClassVar[Card] = dataclasses.replace(sp.PGD.card, name="forgetful", aliases=())

    def search(self, run: Run) -> None:
        """Climb, and end at the start."""
        run.begin(Climber(run.x.clone()))
        x = run.x.clone()
        for _ in range(self.steps):
            leaf = x.detach().requires_grad_(True)
            (slope,) = grad(F.cross_entropy(run.victim.scores(leaf), run.y), leaf)  # type: ignore[attr-defined]
            x = run.space.project(run.x, x + run.space.eps.min() / 4 * slope.sign())


@dataclass(frozen=True, kw_only=True)
class Shy(sp.PGD):
    """Searches balls of up to `limit`, and does nothing in wider ones."""

    limit: float = 0.01
    card: ClassVar[Card] = dataclasses.replace(sp.PGD.card, name="shy", aliases=())

    def search(self, run: Run) -> None:
        """Climb in a narrow ball."""
        if float(run.space.eps.max()) <= self.limit:
            super().search(run)


# -- what the checks say -----------------------------------------------------------------------------------------------


def context(
    victim: sp.Victim, data: tuple[Tensor, Tensor], threat: Any, attacks: Sequence[Any], seed: int = 0
) -> Context:
    """What the checks see after an audit of these samples with these attacks."""
    whole = ThreatModel.resolve(threat, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VictimWarning)  # the checks are asked here, not the door
        found = audit(victim, data, whole, attacks=list(attacks), seed=seed, checks=False, curve=False)
    return Context(victim, as_data(data), whole, found.evidence, seed, None)


def registered() -> list[Check]:
    """Every check, in the order in which an audit runs them."""
    return [*checks("before"), *checks("after")]


def finding(number: int, seen: Context) -> Finding:
    """What one check finds; it must not stop by an exception of its own."""
    registered()
    with seeded(number, seen.victim.device):
        found = run_check(CHECKS[number], seen)
    assert "check itself stopped" not in found.says, found.says
    return found


def failures(seen: Context, numbers: Sequence[int] | None = None) -> dict[int, Finding]:
    """The checks that fail, of these or of all."""
    found = [finding(check.number, seen) for check in registered() if numbers is None or check.number in numbers]
    return {f.number: f for f in found if f.result == "fail"}
