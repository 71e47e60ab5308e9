"""What a soundness check is and what it finds; the checks register here, the audit runs them and the store keeps them.

A check is a function `(Context) -> Finding | None` decorated with `@check(...)`; None says that it does not apply to
this victim, and is kept as skipped. It runs once per run, after the clean pass ("before") or after all attacks
("after"), and is not repeated when the run is resumed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sparring.core.errors import SparringError

if TYPE_CHECKING:
    from sparring.core.threat import ThreatModel
    from sparring.core.victim import BaseVictim
    from sparring.evaluation.data import Data
    from sparring.evaluation.evidence import Evidence

Phase = Literal["before", "after"]
Result = Literal["pass", "fail", "skipped"]
Taint = Literal["robust", "any", "nothing"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        number: the check's number; findings are listed in this order.
        name: a short name, "zero-gradient".
        result: "pass", "fail", or "skipped" where the check does not apply.
        measured: the figure, None where skipped.
        threshold: the line it is held against, in words: "> 0.05".
        says: one sentence for the reader: what the figure means here.
        next_step: what to do about a failure; empty where it passed.
        taints: what a failure spoils: "robust", a good number (the attack may be too weak); "any", every number (the
            evaluation measures something else); "nothing", it is only told.
        forwards, backwards: passes spent on it, over all samples.
        seconds: wall time.
        details: further figures as plain data.
    """

    number: int
    name: str
    result: Result
    measured: float | None
    threshold: str
    says: str
    next_step: str = ""
    taints: Taint = "robust"
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a check may look at.

    Attributes:
        victim: the victim, at rest in nobody's hands: enter `victim.at_rest()` for forwards of your own.
        data: the audited samples; `data.take(positions)` gives (x, y, ids).
        threat: the audit's threat model, with its eps.
        evidence: everything recorded so far; in phase "before" that is the clean pass alone.
        seed: of the check's own randomness; key it by `KeyedRandom(seed, ids)`.
        batch_size: samples to forward at once, or None.
    """

    victim: BaseVictim
    data: Data
    threat: ThreatModel
    evidence: Evidence
    seed: int
    batch_size: int | None


@dataclass(frozen=True)
class Check:
    """A registered check: its number, its name, one line about it, and when it runs."""

    number: int
    name: str
    title: str
    phase: Phase
    function: Callable[[Context], Finding | None]


CHECKS: dict[int, Check] = {}
_CHECK_MODULES = ["sparring.evaluation.checks"]


def check(
    number: int, name: str, title: str, phase: Phase = "after"
) -> Callable[[Callable[[Context], Finding | None]], Callable[[Context], Finding | None]]:
    """Register a function as the check of this number."""

    def decorate(function: Callable[[Context], Finding | None]) -> Callable[[Context], Finding | None]:
        known = CHECKS.get(number)
        if known is not None and known.name != name:
            raise SparringError(f"two checks have the number {number}: {known.name} and {name}")
        CHECKS[number] = Check(number, name, title, phase, function)
        return function

    return decorate


def checks(phase: Phase) -> list[Check]:
    """The registered checks of a phase, by number."""
    for module in _CHECK_MODULES:
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    return [CHECKS[number] for number in sorted(CHECKS) if CHECKS[number].phase == phase]
