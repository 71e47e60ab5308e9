"""What a victim makes of one picture: the most likely labels with their confidences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparring.core.outputs import Prediction
from sparring.core.victim import BaseVictim

if TYPE_CHECKING:
    import os

    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Classification:
    """The victim's answer to one picture, the most likely label first. Printing it gives a table.

    Attributes:
        labels: names, or numbers as text where the victim has no names.
        confidences: softmax probabilities in [0, 1], or None each where the victim answers labels alone.
        indices: class numbers.
        victim: the victim's name.
        pixels: what the victim saw, float (c, h, w) in [0, 1].
        accepted: False where the victim's detector refused the picture; None without a detector.
    """

    labels: tuple[str, ...]
    confidences: tuple[float | None, ...]
    indices: tuple[int, ...]
    victim: str
    pixels: Tensor = field(repr=False)
    accepted: bool | None = None

    @classmethod
    def of(cls, answer: Prediction, victim: BaseVictim, pixels: Tensor, top: int = 5) -> Classification:
        """The answer to a single input, (1, ...), with its `top` most likely labels."""
        accepted = None if answer.accepted is None else bool(answer.accepted[0])
        confidences: tuple[float | None, ...]
        if answer.scores is None:
            indices, confidences = (int(answer.labels[0]),), (None,)
        else:
            ranked = answer.scores[0].detach().float().softmax(0).cpu().sort(descending=True, stable=True)
            first = int(answer.labels[0])  # argmax decides between equals
            order = [first, *(i for i in ranked.indices.tolist() if i != first)][:top]
            chance = dict(zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True))
            indices, confidences = tuple(order), tuple(chance[i] for i in order)
        names = tuple(victim.label_name(i) for i in indices)
        return cls(names, confidences, indices, victim.name, pixels, accepted)

    @property
    def label(self) -> str:
        """The most likely label."""
        return self.labels[0]

    @property
    def confidence(self) -> float | None:
        """Its probability."""
        return self.confidences[0]

    @property
    def index(self) -> int:
        """Its class number."""
        return self.indices[0]

    def __repr__(self) -> str:
        width = max(len(label) for label in self.labels)
        rows = [f"{label:<{width}}  {percent(c):>7}" for label, c in zip(self.labels, self.confidences, strict=True)]
        refused = ["(refused by the victim's detector)"] if self.accepted is False else []
        return "\n".join([*rows, *refused])

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rows = [
            {"label": label, "index": index, "confidence": confidence}
            for label, index, confidence in zip(self.labels, self.indices, self.confidences, strict=True)
        ]
        told = {
            "label": self.label,
            "index": self.index,
            "confidence": self.confidence,
            "top": rows,
            "model": self.victim,
        }
        return told if self.accepted is None else {**told, "accepted": self.accepted}

    def figure(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """The picture beside its labels as a matplotlib figure, written to `path` where one is given."""
        from sparring.see.figures import classification_figure, write_figure

        return write_figure(classification_figure(self), path)


def percent(confidence: float | None) -> str:
    """A probability for people: 98.2%, or nothing where there is none; never a rounded-up certainty."""
    if confidence is None:
        return ""
    if confidence > 0.9995:
        return ">99.9%"
    return f"{confidence:.1%}" if confidence >= 0.0005 else "<0.1%"


def short_name(label: str, most: int = 28) -> str:
    """The first of a label's synonyms, cut where it is long."""
    first = label.split(",")[0].strip() or label
    return first if len(first) <= most else first[: most - 1] + "…"
