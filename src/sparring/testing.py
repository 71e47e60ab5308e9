"""For a project's own tests: assert that a model is robust enough, and that inputs which once fooled it do so no
more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from sparring.core.errors import LoadError
from sparring.core.space import Space
from sparring.core.threat import ThreatModel
from sparring.core.victim import BaseVictim
from sparring.evaluation.reading import Audit
from sparring.evaluation.running import AuditOptions, audit
from sparring.evaluation.sources import load_victim

__all__ = ["Failure", "assert_robust", "known_failures", "load_victim"]


def assert_robust(
    model: BaseVictim | Any,
    data: Any,
    threat: ThreatModel | Space,
    *,
    at_least: float,
    preset: str = "fast",
    run: str | Path | None = None,
    **options: Unpack[AuditOptions],
) -> Audit:
    """Audit a model and fail unless its robust accuracy is at least `at_least`, by the lower end of its interval.

    Args:
        model: a victim, a network in eval mode, or a name for `sparring.load`.
        data: a pair (x, y), a map-style dataset, or a name such as "digits".
        threat: a `ThreatModel` or a bare space such as `sparring.Linf(8 / 255)`.
        at_least: the robust accuracy that is asked for, between 0 and 1.
        preset: "fast", "standard" or "thorough".
        run: keep the evidence in this folder; None drops it afterwards.
        options: see `sparring.evaluation.running.AuditOptions`.

    Returns:
        The audit.

    Raises:
        AssertionError: the interval's lower end is below `at_least`, or a soundness check spoils the number.

    Example:
        >>> import sparring as sp
        >>> from sparring.testing import assert_robust
        >>> quick = {"attacks": ["fgsm"], "samples": 50, "checks": False}
        >>> found = assert_robust("digits", "digits", sp.Linf(0.01), at_least=0.5, **quick)
        >>> found.verdict.result
        'robust'
    """
    wanted: AuditOptions = {**options, "claim": at_least}
    found = audit(model, data, threat, preset=preset, run=run, **wanted)
    verdict = found.verdict
    if verdict.result != "robust":
        raise AssertionError(_message(found))
    return found


def _message(found: Audit) -> str:
    """Why a model is not robust enough, with what a person needs to go on."""
    verdict = found.verdict
    lines = [verdict.sentence, *verdict.reasons]
    lines += [
        f"  {row.label:<12} met {row.met:>6,}  broke {row.broke:>6,}  left {row.robust_accuracy:>6.1%}"
        for row in found.attacks
    ]
    failures = found.failures()
    if failures:
        first = failures[0]
        lines.append(
            f"The smallest change that broke one is {first.radius:.4g} ({first.attack}): sample {first.sample}, label "
            f"{first.label} read as {first.predicted}."
        )
    return "\n".join([*lines, f"Next: {verdict.next_step}"])


@dataclass(frozen=True, eq=False)
class Failure:
    """An input that once fooled a model.

    Attributes:
        sample: the position of its original in the data that it came from.
        label: how it must be read.
        original, adversarial: the inputs, without a batch dimension.
        radius: the size of the change.
        attack: what made it.
    """

    sample: int
    label: int
    original: Tensor
    adversarial: Tensor
    radius: float
    attack: str

    def read_by(self, victim: BaseVictim) -> int:
        """The label that a victim gives to the adversarial input."""
        with victim.at_rest():
            x, _ = victim.admit(self.adversarial[None], torch.tensor([self.label]))
            return int(victim.query(x).labels)

    def __str__(self) -> str:
        return f"sample{self.sample}-label{self.label}-{self.attack}-{self.radius:.4g}"


def known_failures(path: str | Path) -> list[Failure]:
    """The failures that `sparring regress` wrote.

    Raises:
        LoadError: no such file, or another kind of file.
    """
    from safetensors import safe_open

    try:
        found = load(Path(path).read_bytes())
        with safe_open(str(path), framework="pt") as stored:
            attacks = (stored.metadata() or {})["attacks"].split(",")
        return [
            Failure(
                sample=int(found["sample"][i]),
                label=int(found["label"][i]),
                original=found["original"][i],
                adversarial=found["adversarial"][i],
                radius=float(found["radius"][i]),
                attack=attack,
            )
            for i, attack in enumerate(attacks)
        ]
    except (OSError, SafetensorError, KeyError, IndexError) as cause:
        raise LoadError(f"{str(path)!r} holds no failures that `sparring regress` wrote: {cause}") from cause
