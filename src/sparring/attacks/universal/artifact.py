"""Artifacts: what is fitted once, with gradients, and then changes any input without asking the victim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.attacks.transfer.substitute import seen_by
from sparring.core.attack import Attack
from sparring.core.balls import NORMS, Ball
from sparring.core.errors import InputError, LoadError, SparringError
from sparring.core.registry import attack_class
from sparring.core.result import AttackResult
from sparring.core.space import Bounds
from sparring.core.stored import read_stored, write_stored
from sparring.core.threat import Goal, Targeted, ThreatModel, Untargeted
from sparring.core.victim import BaseVictim, query_in_batches

FORMAT = "sparring.Artifact"


@dataclass(frozen=True)
class Record:
    """Where an artifact comes from, and what it cost.

    Attributes:
        method: the name of the attack that fitted it.
        params: that attack's hyper-parameters.
        space, eps: the norm ball in which it was fitted; eps in the victim's raw units.
        target: the label that it aims at, or None.
        shape: of one input.
        classes: of the victim.
        samples: inputs that it was fitted on.
        forwards, backwards: passes of single inputs through the victim while fitting, in all.
        victim, fingerprint: whose gradients were used.
        seed: of the fit.
        fitting, applying: the access to the victim while fitting, and after.
    """

    method: str
    params: dict[str, Any]
    space: str
    eps: float
    target: int | None
    shape: tuple[int, ...]
    classes: int
    samples: int
    forwards: int
    backwards: int
    victim: str
    fingerprint: str
    seed: int
    fitting: str = "gradients"
    applying: str = "nothing"


class Artifact:
    """A change for any input, fitted once; applying it asks nobody.

    Args:
        record: where it comes from.
        tensors: what was fitted.
        bounds: the input domain of the victim that it was fitted on.
    """

    def __init__(self, record: Record, tensors: Mapping[str, Tensor], bounds: Bounds) -> None:
        self.record, self.tensors, self.bounds = record, dict(tensors), bounds

    def change(self, x: Tensor) -> Tensor:
        """What is added to the inputs x, (n, ...), before the projection on the space; it broadcasts against x."""
        raise NotImplementedError

    def apply(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """The changed inputs, (n, ...): inside the ball of the fit and the victim's bounds.

        `ids`, one per sample, are for artifacts that are placed at random.

        Raises:
            InputError: inputs of another shape than those of the fit.
        """
        self.admit(x)
        with torch.no_grad():
            space = self.ball.bound(x, self.bounds)
            return space.project(x, x + self.change(x))

    @property
    def ball(self) -> Ball:
        """The space of the fit."""
        return NORMS[self.record.space](self.record.eps)

    @property
    def goal(self) -> Goal:
        """The goal of the fit."""
        return Untargeted() if self.record.target is None else Targeted(self.record.target)

    @property
    def attack(self) -> Attack:
        """This artifact as an attack that has access to nothing. In another ball it is projected on that one."""
        from sparring.attacks.universal.fitted import Applied  # which stands on this file

        return Applied(choose=self._always, method=self.record.method)

    def evaluate(self, victim: BaseVictim, x: Tensor, y: Any, *, ids: Tensor | None = None) -> AttackResult:
        """The success on held-out inputs x, (n, ...), with labels y, (n,), in the ball and for the goal of the fit."""
        return self.attack(victim, x, y, ThreatModel(self.ball, goal=self.goal), ids=ids)

    def fooling_rate(self, victim: BaseVictim, x: Tensor) -> float:
        """The share of all inputs x, (n, ...), right or wrong, whose label the change changes.

        Victims of tables see pictures flattened.
        """
        with victim.at_rest():
            before, after = (query_in_batches(victim, seen_by(victim, z), 512).labels for z in (x, self.apply(x)))
        return float((before != after).double().mean())

    def _always(self, eps: float, target: int | None) -> Artifact:
        """Itself, whatever the radius and the target."""
        return self

    def admit(self, x: Tensor) -> None:
        """Refuse inputs of another shape than those of the fit.

        Raises:
            InputError: the shape that came, and the one that is needed.
        """
        if tuple(x.shape[1:]) != self.record.shape:
            raise InputError(
                f"this {self.record.method} artifact was fitted on inputs of shape {self.record.shape}; inputs of shape "
                f"{tuple(x.shape[1:])} came"
            )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the tensors, and the record as JSON in its header."""
        tensors = {**self.tensors, "bounds/lo": self.bounds.lo, "bounds/hi": self.bounds.hi}
        header = {"format": FORMAT, "version": 1, **asdict(self.record)}
        return write_stored(path, tensors, header)

    @staticmethod
    def load(path: str | Path) -> Artifact:
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            LoadError: no such file, damaged, or another kind of file.
        """
        told, tensors = read_stored(path, "holds no artifact")
        try:
            if (told.pop("format"), told.pop("version")) != (FORMAT, 1):
                raise ValueError("another format or version")
            record = Record(**{**told, "shape": tuple(told["shape"])})
            bounds = Bounds(tensors.pop("bounds/lo"), tensors.pop("bounds/hi"))
            kind = getattr(attack_class(record.method), "artifact", None)
            if kind is None or record.space not in NORMS:
                raise ValueError(f"{record.method} in {record.space} fits no artifact")
            artifact: Artifact = kind(record, tensors, bounds)
            artifact.change(torch.zeros(1, *record.shape, dtype=torch.float32))  # tensors that do not fit fail here
        except (SparringError, KeyError, TypeError, ValueError, RuntimeError) as cause:
            raise LoadError(f"{path} holds no artifact that sparring saved: {cause}") from cause
        return artifact

    def __repr__(self) -> str:
        r = self.record
        aim = "" if r.target is None else f" towards {r.target}"
        return (
            f"<{r.method} in {self.ball!r}{aim}, fitted on {r.samples} samples of shape {r.shape} with the gradients of "
            f"{r.victim!r}: {r.forwards} forwards, {r.backwards} backwards>"
        )
