"""Feature squeezing: an input is suspicious where the network answers otherwise once the input is squeezed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparring.core.errors import InputError
from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.defences.detectors.base import Detector, through
from sparring.defences.inputs.levels import BitDepth
from sparring.defences.inputs.smoothing import Median

# Divides the scores for `softened`: where the network is sure of both answers, a softmax at 1 has no slope left.
_TEMPERATURE = 5.0


@defence(
    Card(
        name="feature-squeezing",
        title="Feature squeezing",
        paper="Xu, Evans and Qi 2018, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, "
        "arXiv:1704.01155",
        access=Access.SCORES,
        spaces=("linf", "l2", "l0"),
        cost="one forward per squeezer and one for the input",
        domains=("image",),
        caveats="An attack that minimises the distance of the answers as well passes (He et al. 2017, arXiv:1706.04701): "
        "use JointPGD.",
    )
)
@dataclass(kw_only=True, eq=False)
class FeatureSqueezing(Detector):
    """score(x) = max over squeezers q of || p(x) - p(q(x)) ||_1, with p the softmax of the victim's scores.

    Args:
        squeezers: stages from raw inputs to raw inputs; the paper's for MNIST: one bit, and a 2 x 2 median.
    """

    squeezers: tuple[nn.Module, ...] = field(default_factory=lambda: (BitDepth(bits=1), Median(size=2)))

    def check(self) -> None:
        """At least one squeezer."""
        if not self.squeezers:
            raise InputError("no squeezer came; give stages such as (BitDepth(bits=1), Median(size=2))")

    def score(self, x: Tensor) -> Tensor:
        """The largest L1 distance of the answers, (n,), between 0 and 2."""
        return self._distances(x, 1.0).amax(0)

    def softened(self, x: Tensor) -> Tensor:
        """The distances at a higher temperature, of all squeezers together, (n,)."""
        return self._distances(x, _TEMPERATURE).sum(0)

    def _distances(self, x: Tensor, temperature: float) -> Tensor:
        """How far each squeezer moves the answers, (squeezers, n)."""
        head = self._reader().head
        plain = (head(x) / temperature).softmax(1)
        squeezed = ((head(through(squeezer, x)) / temperature).softmax(1) for squeezer in self.squeezers)
        return torch.stack([(plain - other).abs().sum(1) for other in squeezed])
