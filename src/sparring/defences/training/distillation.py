"""Defensive distillation: a student learns the softened answers of a teacher, and is used without the softening."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sparring.core.network import Victim
from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.defences.inputs.base import above
from sparring.defences.training.crafting import Crafter
from sparring.defences.training.method import Method, Standard, Trainer, cross_entropy


@defence(
    Card(
        name="distillation",
        title="Defensive distillation",
        paper="Papernot, McDaniel, Wu, Jha and Swami 2016, Distillation as a Defense to Adversarial Perturbations Against "
        "Deep Neural Networks, arXiv:1511.04508",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l0"),
        cost="two ordinary trainings",
        caveats="Trained at a high temperature and used at 1, the logits are so large that the gradient of cross-entropy "
        "underflows. A margin loss does not mind: C&W succeed on nearly all inputs (arXiv:1608.04644).",
    )
)
@dataclass(frozen=True, kw_only=True)
class Distillation(Standard):
    """min E -sum_k q_k(x) log p_k(x), with q and p the softmax of the teacher's and the student's scores over T.

    The loss is multiplied by T, which makes its gradient as large as at temperature 1.

    Args:
        temperature: T.
        teacher: a victim trained at T; None trains one first on the labels, from the same start.
    """

    temperature: float = 100.0
    teacher: Victim | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        above(self.temperature, "temperature", 0.0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """The softened cross-entropy, to the labels where there is no teacher."""
        softened = model(x) / self.temperature
        if self.teacher is None:
            return self.temperature * cross_entropy(softened, y)
        with self.teacher.at_rest(), torch.no_grad():
            told = (self.teacher.scores(x) / self.temperature).softmax(1)
        loss: Tensor = -self.temperature * (told * softened.log_softmax(1)).sum(1).mean()
        return loss

    def facts(self) -> str:
        """The temperature, and the teacher's fingerprint."""
        return f"{self!r} of {None if self.teacher is None else self.teacher.fingerprint()}"

    def prepared(self, train: Trainer) -> Method:
        """The method with a teacher that was trained on the labels at the same temperature."""
        return self if self.teacher is not None else replace(self, teacher=train(self))
