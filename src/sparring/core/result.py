"""What an attack returns: tensors per sample, an outcome per sample, and rates whose denominators are named."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.core.batch import Batch, concat
from sparring.core.errors import InputError, LoadError, ThreatError
from sparring.core.outputs import Prediction
from sparring.core.stored import read_stored, write_stored


class Outcome(enum.IntEnum):
    """How one sample ended.

    `SUCCEEDED` was seen by the final re-check. `CLEAN_ERROR` was wrong before any change and `ALREADY_TARGET` read as
    the target before any; neither is the attack's success. `NOT_APPLICABLE` has its true label as the target. `FAILED`
    claimed a success outside the space, which is the attack's fault.
    """

    SUCCEEDED = 0
    SURVIVED = 1
    CLEAN_ERROR = 2
    ALREADY_TARGET = 3
    OUT_OF_BUDGET = 4
    FAILED = 5
    NOT_APPLICABLE = 6


@dataclass(frozen=True, eq=False)
class AttackResult:
    """The evidence of one attack on n samples.

    Attributes:
        attack: the attack's name.
        space: the space, as text.
        original: the inputs, (n, ...) or a list.
        adversarial: the changed inputs; the best effort where the attack did not succeed (of a search for the smallest change
            perhaps one outside the ball, misread and no success), the original where it never tried.
        y: the true labels, int64 (n,).
        target: the targets, int64 (n,), or None.
        outcome: `Outcome` codes, int64 (n,).
        distance: the cost of each change in the space's unit, float (n,).
        limit: the largest legal cost, float (n,), or None where the smallest change was sought.
        queries: oracle queries charged to each sample, int64 (n,).
        forwards: forward passes of the search, int64 (n,); clean pass and re-check are not the search's.
        backwards: backward passes of the search, int64 (n,).
        clean: the victim's answers to the originals.
        final: the victim's answers to `adversarial`.
        ids: the samples' ids, int64 (n,).
        seconds: wall time of the whole call.
        params: the attack's hyper-parameters, the seed, and what else a rerun needs.
    """

    attack: str
    space: str
    original: Batch
    adversarial: Batch
    y: Tensor
    target: Tensor | None
    outcome: Tensor
    distance: Tensor
    limit: Tensor | None
    queries: Tensor
    forwards: Tensor
    backwards: Tensor
    clean: Prediction
    final: Prediction
    ids: Tensor
    seconds: float = 0.0
    params: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.outcome.shape[0]

    @property
    def succeeded(self) -> Tensor:
        """Bool (n,)."""
        return self.outcome == Outcome.SUCCEEDED

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcome of every sample."""
        return [Outcome(v) for v in self.outcome.tolist()]

    @property
    def clean_correct(self) -> Tensor:
        """Bool (n,): right (and accepted, where there is a detector) before any change."""
        right = self.clean.labels == self.y
        return right if self.clean.accepted is None else right & self.clean.accepted

    @property
    def clean_accuracy(self) -> float:
        """The share of all samples that are right before any change."""
        return _mean(self.clean_correct)

    @property
    def robust_accuracy(self) -> float:
        """The share of all samples that are right before any change and not broken by this attack.

        Raises:
            ThreatError: the space had no eps, so there is no ball to be robust in.
        """
        if self.limit is None:
            raise ThreatError(
                "robust_accuracy needs an eps and this attack sought the smallest change; "
                "use result.curve(), or result.curve(eps=0.3) for the accuracy at one radius"
            )
        return _mean(self.clean_correct & ~self.succeeded)

    @property
    def attack_success_rate(self) -> float:
        """Successes over the samples that were attacked: right at first, and a target that differs from the label."""
        tried = torch.isin(self.outcome, torch.tensor(_TRIED, device=self.outcome.device))
        return float(self.succeeded.sum()) / max(1, int(tried.sum()))

    @property
    def median_distance(self) -> float:
        """The median distance over the attacked samples, a failure counting as infinity; NaN where none was
        attacked.
        """
        tried = torch.isin(self.outcome, torch.tensor(_TRIED, device=self.outcome.device))
        d = torch.where(self.succeeded, self.distance, torch.inf)[tried].sort().values
        if not len(d):
            return math.nan
        middle = (len(d) - 1) // 2
        return (
            float(d[middle]) if len(d) % 2 or math.isinf(float(d[middle + 1])) else float(d[middle : middle + 2].mean())
        )

    def curve(self, eps: Tensor | list[float] | float | None = None) -> tuple[Tensor, Tensor]:
        """Accuracy against eps: the share of all samples right at first and not broken within each radius.

        Args:
            eps: radii; None takes 0 and every distance at which a sample broke.

        Returns:
            (eps, accuracy), both float (m,), eps ascending. After a search in a ball, accuracies below its radius are upper
            bounds: it did not look for smaller changes.

        Raises:
            InputError: radii beyond the ball that was searched.
        """
        broken = self.distance[self.succeeded].double().cpu()
        if eps is None:
            radii = torch.cat([torch.zeros(1, dtype=torch.float64), broken.sort().values])
        else:
            radii = torch.as_tensor(eps, dtype=torch.float64).flatten().sort().values
            self._within(radii)
        fallen = (broken[None, :] <= radii[:, None]).sum(1)
        return radii, (int(self.clean_correct.sum()) - fallen).double() / max(1, len(self))

    def _within(self, radii: Tensor) -> None:
        if self.limit is None or not len(self) or not len(radii):
            return
        most, limit = float(radii[-1]), float(self.limit.amin())
        if most > limit * (1 + 1e-6):
            raise InputError(
                f"a curve to {most:g} was asked of a search within {limit:g}; attack again with a wider "
                "ball, or seek smallest changes: sparring.DeepFool()(victim, x, y, sparring.L2()).curve()"
            )

    def __repr__(self) -> str:
        if not len(self):
            return f"<{self.attack} in {self.space}: no samples>"
        counts = {o.name.lower(): int((self.outcome == o).sum()) for o in Outcome if bool((self.outcome == o).any())}
        told = ", ".join(f"{k} {v}" for k, v in counts.items())
        rate = (
            f"median distance {self.median_distance:.4g}"
            if self.limit is None
            else f"robust {self.robust_accuracy:.1%}"
        )
        return f"<{self.attack} in {self.space}: {told}; clean {self.clean_accuracy:.1%}, {rate}, {self.seconds:.2f} s>"

    def to(self, device: torch.device | str) -> AttackResult:
        """The same result with its tensors on `device`."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                value = value.to(device)
            elif isinstance(value, Prediction):
                parts = (value.labels, value.scores, value.accepted)
                value = Prediction(*(None if t is None else t.to(device) for t in parts))  # type: ignore[arg-type]
            moved[f.name] = value
        return AttackResult(**moved)

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file (tensors as they are, the rest as JSON in its header).

        Raises:
            InputError: inputs that are neither tensors nor plain text or numbers.
        """
        tensors: dict[str, Tensor] = {}
        told: dict[str, Any] = {"format": "sparring.AttackResult", "version": 1}
        for key, value in self._flat().items():
            if isinstance(value, Tensor):
                tensors[key] = value
            elif value is not None:
                told[key] = value
        try:
            return write_stored(path, tensors, told)
        except TypeError as cause:
            raise InputError(
                f"this result holds inputs that JSON cannot write ({cause}); save them in your own format"
            ) from cause

    @classmethod
    def load(cls, path: str | Path) -> AttackResult:
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            LoadError: no such file, damaged, or another kind of file.
        """
        told, flat = read_stored(path, "is not a result")
        if told.get("format") != "sparring.AttackResult" or told.get("version") != 1:
            raise LoadError(
                f"{path} holds {told.get('format')!r} version {told.get('version')!r}; AttackResult version 1 is needed"
            )
        missing = {"outcome", "y", "distance", "clean.labels", "final.labels"} - set(flat)
        if missing:
            raise LoadError(f"{path} lacks {', '.join(sorted(missing))}, which every result has; it was damaged or cut")
        values = {**told, **flat}
        for name in ("clean", "final"):
            values[name] = Prediction(
                values.pop(f"{name}.labels"), values.pop(f"{name}.scores", None), values.pop(f"{name}.accepted", None)
            )
        known = {f.name for f in fields(cls)}
        values = {"target": None, "limit": None, **{k: v for k, v in values.items() if k in known}}
        return cls(**values)

    def _flat(self) -> dict[str, Any]:
        flat = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("clean", "final"):
            p: Prediction = flat.pop(name)
            flat |= {f"{name}.labels": p.labels, f"{name}.scores": p.scores, f"{name}.accepted": p.accepted}
        return flat

    @classmethod
    def concat(cls, parts: list[AttackResult]) -> AttackResult:
        """The results of consecutive batches of one call as one result."""
        first = parts[0]
        if len(parts) == 1:
            return first
        merged: dict[str, Any] = {}
        for f in fields(cls):
            values = [getattr(p, f.name) for p in parts]
            if f.name in ("original", "adversarial"):
                merged[f.name] = concat(values)
            elif isinstance(values[0], Tensor):
                merged[f.name] = torch.cat(values)
            elif isinstance(values[0], Prediction):
                merged[f.name] = Prediction.concat(values)
            else:
                merged[f.name] = values[0]
        merged["seconds"] = sum(p.seconds for p in parts)
        return cls(**merged)


_TRIED = [int(o) for o in (Outcome.SUCCEEDED, Outcome.SURVIVED, Outcome.OUT_OF_BUDGET, Outcome.FAILED)]


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else math.nan
