"""A learned detector: a small network that tells clean from adversarial inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring.core.errors import InputError, VictimError
from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.defences.detectors.base import Detector
from sparring.defences.inputs.base import above, whole


def _none() -> None:
    """A default by factory: a plain one would stay on the class and hide the module that is assigned later."""


@defence(
    Card(
        name="learned-detector",
        title="A network trained to tell adversarial from clean inputs",
        paper="Metzen, Genewein, Fischer and Bischoff 2017, On Detecting Adversarial Perturbations, arXiv:1702.04267; Gong, "
        "Wang and Ku 2017, Adversarial and Clean Data Are Not Twins, arXiv:1704.04960",
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="one pass of a small network",
        caveats="Knows the attack that it was trained on, and is a network itself: a joint attack fools both (Carlini and "
        "Wagner 2017, arXiv:1705.07263).",
    )
)
@dataclass(kw_only=True, eq=False)
class LearnedDetector(Detector):
    """score(x) = g(x), the logit of "adversarial", trained by cross-entropy on clean and adversarial inputs.

    Args:
        net: a module from inputs to one logit each; None builds one of two convolutions (pictures) or layers (rows).
        width: channels or units of the one that is built.
        epochs: of the training.
        lr: of Adam.
        seed: of its weights and batches.
    """

    net: nn.Module | None = field(default_factory=_none, repr=False)
    width: int = 16
    epochs: int = 20
    lr: float = 3e-3
    seed: int = 0

    def check(self) -> None:
        """Positive numbers."""
        whole(self.width, "width", 1)
        whole(self.epochs, "epochs", 1)
        above(self.lr, "lr", 0.0)

    def learn(self, x: Tensor, y: Tensor, adversarial: Tensor | None) -> None:
        """Train on both kinds, equally weighted.

        Raises:
            InputError: no adversarial inputs came.
        """
        if adversarial is None or not len(adversarial):
            raise InputError(
                "a learned detector learns from both kinds: detector.fit(victim, x, y, adversarial=x_adv), for example "
                "x_adv = sparring.PGD().craft(victim, x, y, space)"
            )
        source = torch.Generator().manual_seed(self.seed)
        if self.net is None:
            with torch.random.fork_rng(devices=[]):
                torch.random.set_rng_state(source.get_state())
                self.net = _two_layers(x, self.width)
        device = self._reader().device
        net = self.net.to(device).train()
        both = torch.cat([x.to(device), adversarial.to(device)])
        target = torch.cat([torch.zeros(len(x)), torch.ones(len(adversarial))]).to(device)
        balance = torch.tensor(len(x) / len(adversarial), device=device)
        optimiser = torch.optim.Adam(net.parameters(), lr=self.lr)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(both), generator=source).split(128):
                optimiser.zero_grad()
                logit = net(both[rows]).flatten()
                F.binary_cross_entropy_with_logits(logit, target[rows], pos_weight=balance).backward()
                optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        net.eval().requires_grad_(False)

    def score(self, x: Tensor) -> Tensor:
        """The logit, (n,)."""
        if self.net is None:
            raise VictimError(
                "LearnedDetector has not learned yet; call detector.fit(victim, x, y, adversarial=...) first"
            )
        logit: Tensor = self.net(x)
        return logit.flatten()


def _two_layers(x: Tensor, width: int) -> nn.Module:
    """A small network for inputs like x."""
    if x.ndim != 4:
        return nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), width), nn.ReLU(), nn.Linear(width, 1))
    return nn.Sequential(
        nn.Conv2d(x.shape[1], width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, 1),
    )
