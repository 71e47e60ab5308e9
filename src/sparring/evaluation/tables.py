"""The rows of an audit's tables: what each attack added, each class, each broken sample, and what it all cost."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.evaluation.intervals import Interval


@dataclass(frozen=True)
class AttackRow:
    """What one attack did: whom it met, what it broke, what stood afterwards and what it cost.

    `broke` counts samples that no earlier step had broken at the audit's eps; `robust_accuracy` and `interval` are
    those after this step. Steps of the curve come last and can still break a sample.
    """

    step: int
    label: str
    role: str
    eps: float | None
    met: int
    broke: int
    standing: int
    robust_accuracy: float
    interval: Interval
    forwards: int
    backwards: int
    queries: int
    seconds: float


@dataclass(frozen=True)
class ClassRow:
    """One true class: how many samples, how many right at first and at the end, with the interval of the latter."""

    label: int
    name: str
    n: int
    clean_accuracy: float
    robust_accuracy: float
    interval: Interval


@dataclass(frozen=True)
class Case:
    """One sample and the smallest adversarial change that the run holds of it.

    Attributes:
        sample: its position in the data.
        id: its content id.
        label: its true label.
        predicted: what the victim says to the changed input.
        confidence: how sure it is, NaN where it gives no scores.
        radius: the size of the change.
        step: the step that holds the inputs: `evidence.pair(step, sample)`.
        attack: that step's label.
    """

    sample: int
    id: int
    label: int
    predicted: int
    confidence: float
    radius: float
    step: int
    attack: str


@dataclass(frozen=True)
class Cost:
    """What the run has cost over all samples, and the checks' share of its passes."""

    forwards: int
    backwards: int
    queries: int
    seconds: float
    checks_forwards: int
    checks_backwards: int
    checks_seconds: float

    @property
    def checks_share(self) -> float:
        """The checks' part of all forward and backward passes."""
        checks = self.checks_forwards + self.checks_backwards
        return checks / max(1, checks + self.forwards + self.backwards)
