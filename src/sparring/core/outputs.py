"""What a classifier answers: labels always, scores where the access allows, and whether a detector accepted the
input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Answers for n inputs.

    Attributes:
        labels: int64 (n,), the class with the highest score.
        scores: float (n, k) class scores (logits where the victim has them), or None behind label-only access.
        accepted: bool (n,), False where a detector rejected the input, or None where there is no detector.
    """

    labels: Tensor
    scores: Tensor | None = None
    accepted: Tensor | None = None

    @classmethod
    def of(cls, scores: Tensor, accepted: Tensor | None = None) -> Prediction:
        """The prediction that goes with class scores (n, k)."""
        if scores.shape[0] == 0:  # argmax refuses an empty batch of unknown width
            return cls(torch.zeros(0, dtype=torch.int64, device=scores.device), scores, accepted)
        return cls(scores.argmax(1), scores, accepted)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, index: Tensor) -> Prediction:
        """The answers at `index`, int64 (m,)."""
        pick = [None if t is None else t[index] for t in (self.scores, self.accepted)]
        return Prediction(self.labels[index], *pick)

    def labels_only(self) -> Prediction:
        """The same answers without their scores."""
        return Prediction(self.labels, None, self.accepted)

    @property
    def confidence(self) -> Tensor | None:
        """Softmax probability of the predicted class, (n,), or None without scores."""
        return None if self.scores is None else self.scores.detach().float().softmax(1).amax(1)

    @staticmethod
    def concat(parts: list[Prediction]) -> Prediction:
        """Several predictions one after another."""
        scores = [p.scores for p in parts if p.scores is not None]
        accepted = [p.accepted for p in parts if p.accepted is not None]
        return Prediction(
            torch.cat([p.labels for p in parts]),
            torch.cat(scores) if len(scores) == len(parts) else None,
            torch.cat(accepted) if len(accepted) == len(parts) else None,
        )
