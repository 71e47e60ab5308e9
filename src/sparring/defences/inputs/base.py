"""What every stage in front of a network shares: traits, an optional surrogate, and checks of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from sparring.core.errors import InputError, VictimError
from sparring.core.network import Victim
from sparring.core.registry import Card
from sparring.core.victim import Traits

M = TypeVar("M", bound=nn.Module)


class InputDefence(nn.Module):
    """A stage from raw inputs to raw inputs; subclasses are dataclasses of their hyper-parameters.

    Stages are put together in any order by `victim.defended(pre=[...])`, and stand in their module list's repr with
    every hyper-parameter, so that a victim's fingerprint changes with them.

    Attributes:
        traits: what the stage does to a victim's answers and gradients.
        surrogate: a differentiable stand-in `(x) -> x` whose gradient replaces the stage's own under
            `attack_view(bpda=True)`; None where the stage's own gradient is the right one.
        keyed: whether `forward(x, noise=None, stream=0)` takes keyed noise.
    """

    card: ClassVar[Card]
    traits: Traits = Traits()
    surrogate: Callable[[Tensor], Tensor] | None = None
    keyed: ClassVar[bool] = False

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """A module that is ready to take submodules: the dataclass's own __init__ assigns the fields."""
        made = super().__new__(cls)
        nn.Module.__init__(made)
        return made

    def __post_init__(self) -> None:
        self.check()
        self.eval()

    def check(self) -> None:
        """Refuse hyper-parameters that cannot be right.

        Raises:
            InputError: which one, and what was needed.
        """


class Learned(InputDefence):
    """A stage with a network of its own, which `fit` trains on clean data where none was given."""

    def fit(self, victim: Victim, x: Tensor, y: Tensor) -> Self:
        """Train the network, unless there is one already.

        Args:
            victim: the model that will stand behind the stage.
            x: clean inputs in raw units, (n, ...).
            y: their labels, int64 (n,).
        """
        raise NotImplementedError

    def ready(self, network: nn.Module | None) -> nn.Module:
        """The network.

        Raises:
            VictimError: there is none yet.
        """
        if network is None:
            name = type(self).__name__
            raise VictimError(f"{name} has no network yet; give it one, or call {name}().fit(victim, x, y) first")
        return network


def nothing() -> None:
    """A default by factory: a plain None would stay on the class and hide the module that is assigned later."""


def seeded(make: Callable[[], M], source: torch.Generator) -> M:
    """A module whose first weights come from `source`; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(source.get_state())
        made = make()
        source.set_state(torch.random.get_rng_state())
    return made


def whole(value: int, name: str, least: int, most: int | None = None) -> None:
    """Refuse anything but a whole number from `least` to `most`.

    Raises:
        InputError: what came and what was needed.
    """
    wrong = isinstance(value, bool) or not isinstance(value, int)
    if wrong or value < least or (most is not None and value > most):
        upto = f"from {least} to {most}" if most is not None else f">= {least}"
        raise InputError(f"{name} is {value!r}; a whole number {upto} is needed")


def above(value: float, name: str, least: float, most: float = float("inf")) -> None:
    """Refuse anything but a number above `least` and at most `most`.

    Raises:
        InputError: what came and what was needed.
    """
    if not (isinstance(value, (int, float)) and least < value <= most):
        upto = f" and at most {most:g}" if most != float("inf") else ""
        raise InputError(f"{name} is {value!r}; a number above {least:g}{upto} is needed")


def pictures(x: Tensor, stage: str) -> None:
    """Refuse inputs that are no batch of pictures.

    Raises:
        InputError: the shape that came.
    """
    if x.ndim != 4:
        raise InputError(
            f"{stage} works on pictures (n, channels, height, width); inputs of shape {tuple(x.shape)} came"
        )
