"""What a training defence is: a loss of one batch, and what it asks of the loop that minimises it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from sparring.attacks.gradient.pgd import PGD
from sparring.core.attack import Attack
from sparring.core.network import Victim
from sparring.core.registry import Card
from sparring.core.space import Bounds
from sparring.core.threat import ThreatModel

if TYPE_CHECKING:
    from sparring.defences.training.crafting import Crafter

# Trains a fresh copy of the victim with another method, under the settings of the call that asks.
Trainer = Callable[["Method"], Victim]


class Method:
    """Base of the training defences: a frozen dataclass whose call is the loss.

    Attributes:
        replays: optimiser steps that each batch gets in a row.
        adversarial: whether the loss crafts, so that a threat model is needed.
    """

    card: ClassVar[Card]
    adversarial: ClassVar[bool] = True

    @property
    def replays(self) -> int:
        """Optimiser steps per batch."""
        return 1

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """The mean loss of one batch, a scalar.

        Args:
            model: raw inputs to class scores, in train mode; its parameters are what is trained.
            x: inputs in raw units, (n, ...).
            y: labels, int64 (n,).
            attack: `attack(x, y)` gives adversarial inputs, crafted in eval mode.
        """
        raise NotImplementedError

    def facts(self) -> str:
        """The method as text that changes with whatever changes its loss."""
        return repr(self)

    def default_attack(self, threat: ThreatModel) -> Attack:
        """What crafts in the space of `threat` where the caller names nothing: PGD-10 from a random start."""
        return PGD(steps=10)

    def data(self, x: Tensor, y: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
        """The training set that the method wants, from the one that came."""
        return x, y

    def prepared(self, train: Trainer) -> Method:
        """The method after whatever it must train first (a teacher)."""
        return self


class Standard(Method):
    """Base of the losses that need no attack."""

    adversarial: ClassVar[bool] = False


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy, a scalar."""
    return F.cross_entropy(scores, y)
