"""What every stage in front of a network shares: traits, an optional surrogate, and checks of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from sparring.core.errors import InputError
from sparring.core.registry import Card
from sparring.core.victim import Traits


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
    traits: ClassVar[Traits] = Traits()
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
