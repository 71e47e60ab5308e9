"""Training without crafted inputs: the entropy penalty, and negatives added to the training set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparring.core.errors import InputError
from sparring.core.registry import Card, defence
from sparring.core.space import Bounds
from sparring.core.threat import Access
from sparring.defences.inputs.base import whole
from sparring.defences.training.crafting import Crafter
from sparring.defences.training.method import Standard, cross_entropy


@defence(
    Card(
        name="entropy",
        title="Entropy regularisation",
        paper="Cubuk, Zoph, Schoenholz and Le 2017, Intriguing Properties of Adversarial Examples, arXiv:1711.02846",
        access=Access.GRADIENTS,
        spaces=("linf",),
        cost="1 forward + backward per step",
        caveats="Confident answers flatten the cross-entropy that an attack climbs: with a margin loss most of the gain is "
        "gone.",
    )
)
@dataclass(frozen=True, kw_only=True)
class EntropyRegularised(Standard):
    """min E [CE(f(x), y) + weight * H(p(x))], H the entropy of the answer in nats.

    Args:
        weight: of the entropy; positive weights reward confident answers.
    """

    weight: float = 1.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """Cross-entropy and the weighted mean entropy."""
        scores = model(x)
        log_p = scores.log_softmax(1)
        entropy: Tensor = -(log_p.exp() * log_p).sum(1).mean()
        return cross_entropy(scores, y) + self.weight * entropy


@defence(
    Card(
        name="negatives",
        title="Fine-tuning on negative images",
        paper="Hosseini, Xiao, Jaiswal and Poovendran 2017, On the Limitation of Convolutional Neural Networks in "
        "Recognizing Negative Images, arXiv:1703.06857",
        access=Access.GRADIENTS,
        spaces=(),
        cost="ordinary training on the larger set",
        domains=("image",),
        caveats="Covers that one transform and no other.",
    )
)
@dataclass(frozen=True, kw_only=True)
class Negatives(Standard):
    """Ordinary training on the clean set and lo + hi - x of its first `count` inputs.

    Args:
        count: negatives added; None takes all, 0 is ordinary training.
        only: train on the negatives alone, which fails on clean inputs (the paper's control).
    """

    count: int | None = None
    only: bool = False

    def __post_init__(self) -> None:
        if self.count is not None:
            whole(self.count, "count", 1 if self.only else 0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(model(x), y)

    def data(self, x: Tensor, y: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
        """The training set with its negatives behind."""
        first = x[: self.count]
        if x.dtype == torch.uint8:
            negative = 255 - first
        else:
            bounds = bounds.like(x)
            negative = bounds.lo + bounds.hi - first
        if self.only:
            return negative, y[: self.count]
        if self.count is not None and self.count > len(x):
            raise InputError(f"count is {self.count}; the training set has {len(x)} inputs")
        return torch.cat([x, negative]), torch.cat([y, y[: self.count]])
