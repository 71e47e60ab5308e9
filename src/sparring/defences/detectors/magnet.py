"""MagNet's two detectors: how badly an autoencoder rebuilds an input, and how much the answer changes by it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparring.core.errors import InputError, VictimError
from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.defences.detectors.base import Detector
from sparring.defences.inputs.autoencoder import train_autoencoder
from sparring.defences.inputs.base import above, whole

_PAPER = "Meng and Chen 2017, MagNet: a Two-Pronged Defense against Adversarial Examples, arXiv:1705.09064"
_BREAK = (
    "Both networks are differentiable, so an attack that minds the score as well passes (Carlini and Wagner 2017, "
    "arXiv:1711.08478): use JointPGD."
)


def _none() -> None:
    """A default by factory: a plain one would stay on the class and hide the module that is assigned later."""


@dataclass(kw_only=True, eq=False)
class Rebuilding(Detector):
    """Base of the two: an autoencoder, trained at `fit` unless one was given.

    Args:
        autoencoder: a module from inputs to inputs; None trains one on the clean inputs.
        width: channels of the autoencoder that is trained.
        epochs: of its training.
    """

    autoencoder: nn.Module | None = field(default_factory=_none, repr=False)
    width: int = 16
    epochs: int = 20

    def check(self) -> None:
        """Whole numbers above zero."""
        whole(self.width, "width", 1)
        whole(self.epochs, "epochs", 1)

    def learn(self, x: Tensor, y: Tensor, adversarial: Tensor | None) -> None:
        """Train the autoencoder where none was given."""
        if self.autoencoder is None:
            self.autoencoder = train_autoencoder(x, width=self.width, epochs=self.epochs)

    def rebuilt(self, x: Tensor) -> Tensor:
        """What the autoencoder makes of x.

        Raises:
            VictimError: there is no autoencoder yet.
        """
        if self.autoencoder is None:
            raise VictimError(f"{type(self).__name__} has no autoencoder yet; call detector.fit(victim, x, y) first")
        again: Tensor = self.autoencoder(x)
        return again


@defence(
    Card(
        name="magnet-error",
        title="MagNet's detector by reconstruction error",
        paper=_PAPER,
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="one pass of a small network",
        domains=("image",),
        caveats=_BREAK,
    )
)
@dataclass(kw_only=True, eq=False)
class ReconstructionError(Rebuilding):
    """score(x) = mean |x - AE(x)|^p.

    Args:
        p: 1 or 2.
    """

    p: int = 1

    def check(self) -> None:
        """p is 1 or 2."""
        super().check()
        if self.p not in (1, 2):
            raise InputError(f"p is {self.p!r}; it must be 1 or 2")

    def score(self, x: Tensor) -> Tensor:
        """The mean error per value, (n,)."""
        return (x - self.rebuilt(x)).abs().pow(self.p).flatten(1).mean(1)


@defence(
    Card(
        name="magnet-divergence",
        title="MagNet's detector by divergence of the answers",
        paper=_PAPER,
        access=Access.SCORES,
        spaces=("linf", "l2"),
        cost="two forwards and one pass of a small network",
        domains=("image",),
        caveats=_BREAK,
    )
)
@dataclass(kw_only=True, eq=False)
class AnswerDivergence(Rebuilding):
    """score(x) = JSD(softmax(f(x) / T), softmax(f(AE(x)) / T)), in nats.

    Args:
        temperature: T, 10 or 40 in the paper.
    """

    temperature: float = 10.0

    def check(self) -> None:
        """T > 0."""
        super().check()
        above(self.temperature, "temperature", 0.0)

    def score(self, x: Tensor) -> Tensor:
        """The Jensen-Shannon divergence, (n,), between 0 and log 2."""
        head = self._reader().head
        p, q = (torch.log_softmax(head(z) / self.temperature, 1) for z in (x, self.rebuilt(x)))
        m = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
        return 0.5 * ((p.exp() * (p - m)).sum(1) + (q.exp() * (q - m)).sum(1))
