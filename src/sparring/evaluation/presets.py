"""The presets `fast`, `standard` and `thorough`: which attacks a plan takes for a norm, a victim's traits and its
access.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from sparring.core.balls import Linf
from sparring.core.errors import UnknownNameError
from sparring.core.threat import Access
from sparring.core.victim import BaseVictim, Traits
from sparring.evaluation.data import Data
from sparring.evaluation.errors import PlanError
from sparring.evaluation.plan import Plan
from sparring.evaluation.specs import AttackSpec, options_of
from sparring.evaluation.threats import ThreatSpec

PRESETS = ("fast", "standard", "thorough")
# What an audit without arguments asks of the embedded digits.
DEFAULT_THREAT = Linf(0.1)
# Draws per gradient on random victims, as in AutoAttack's version for them.
EOT = 20


@dataclass(frozen=True)
class Facts:
    """What a preset must know of a victim.

    Attributes:
        classes: how many it has, or None where it does not say.
        access: what the attacker sees of it.
        traits: what its forward does.
    """

    classes: int | None
    access: Access
    traits: Traits


def facts(victim: BaseVictim, data: Data, threat: ThreatSpec) -> Facts:
    """Look at a victim; a few samples are shown to it where it has not said how many classes it has."""
    classes = victim.classes
    if classes is None:
        few = torch.arange(min(4, len(data)))
        with victim.at_rest():
            x, _ = victim.admit(data.inputs(few), data.y[few])
            scores = victim.query(x).scores
        classes = None if scores is None else scores.shape[1]
    access = victim.access if threat.access is None else min(victim.access, Access.parse(threat.access))
    return Facts(classes, access, victim.traits)


def check_name(preset: str) -> None:
    """Refuse an unknown preset.

    Raises:
        UnknownNameError: no such preset.
    """
    if preset not in PRESETS:
        raise UnknownNameError.among("preset", preset, PRESETS)


def fill(plan: Plan, known: Facts) -> Plan:
    """The plan with the attacks and the curve of its preset.

    Raises:
        UnknownNameError: no such preset.
        PlanError: the preset has nothing for this threat; the message says what to do.
    """
    check_name(plan.preset)
    threat = plan.threat
    if threat.norm not in ("linf", "l2", "l1"):
        raise PlanError(
            f"the presets are for linf, l2 and l1; the threat is {threat}. Name attacks: audit(..., attacks=[...]), "
            "or [[attack]] tables in the plan"
        )
    if known.access < Access.SCORES:
        attacks = _by_labels()
    elif known.access is Access.SCORES:
        attacks = (_square(20_000 if plan.preset == "thorough" else 5_000),)
    else:
        attacks = _MADE[plan.preset](threat, known)
        if known.traits.stochastic:
            attacks = tuple(replace(s, eot=EOT) if s.card.access is Access.GRADIENTS else s for s in attacks)
    added = curve(threat, known.access) if plan.with_curve else ()
    return replace(plan, attacks=attacks, curve=plan.curve or added)


def curve(threat: ThreatSpec, access: Access = Access.GRADIENTS) -> tuple[AttackSpec, ...]:
    """The attacks for accuracy against eps: the smallest change of every sample, and wider balls for those left
    over.
    """
    if threat.norm not in ("linf", "l2", "l1") or threat.eps is None or threat.target is not None:
        return ()
    if access < Access.GRADIENTS:
        return ()
    wider = tuple(_spec("pgd", steps=20, eps=threat.eps * factor) for factor in (2, 4, 8))
    return (_spec("fmn", steps=30), *wider)


def _standard(threat: ThreatSpec, known: Facts) -> tuple[AttackSpec, ...]:
    """AutoAttack's four with its parameters; its version for random victims where the victim is random."""
    if known.traits.stochastic:
        return (_spec("apgd", steps=100), _spec("apgd", steps=100, loss="dlr"))
    l1 = threat.norm == "l1"
    others = _others(known, 9)
    first = _spec("apgd", steps=100, restarts=5 if l1 else 1)
    if threat.target is not None:
        return (first, _spec("apgd", steps=100, loss="dlr"), _spec("fab", steps=100), _square(5_000))
    return (
        first,
        _spec("apgd-t", steps=100, classes=min(others, 5) if l1 else others),
        _spec("fab-t", steps=100, classes=others),
        _square(5_000),
    )


def _fast(threat: ThreatSpec, known: Facts) -> tuple[AttackSpec, ...]:
    """A short climb, then short ones to nine classes from a raised input, then two more starts on a margin of probabilities.

    Chosen by measurement: see `starting_points`; 220 forwards and 210 backwards for a sample that stands.
    """
    first = _spec("apgd", steps=20, loss="dlr")
    last = (
        _spec("apgd", steps=20, loss="probability_margin", start="corners"),
        _spec("apgd", steps=20, loss="probability_margin"),
    )
    if threat.target is not None:
        return (first, _spec("apgd", steps=40, loss="margin", start="raised"), *last)
    return (first, _spec("apgd-t", steps=20, classes=_others(known, 9), loss="margin", start="raised"), *last)


def _thorough(threat: ThreatSpec, known: Facts) -> tuple[AttackSpec, ...]:
    """`standard`, then more starts on margins, the smallest changes, and a longer search that only asks."""
    return (
        *_standard(threat, known),
        _spec("pgd", steps=100, restarts=5, loss="margin"),
        _spec("fmn", steps=200),
        _square(20_000),
    )


def _by_labels() -> tuple[AttackSpec, ...]:
    raise PlanError(
        "this victim shows its labels alone, and the presets need scores. Name the attacks: audit(..., attacks=[...]); "
        "`sparring attacks --access labels` lists them"
    )


_MADE = {"fast": _fast, "standard": _standard, "thorough": _thorough}


def _square(queries: int) -> AttackSpec:
    """Square with the schedule that AutoAttack uses, which is not stretched over the budget."""
    return _spec("square", queries=queries, rescale=False)


def _others(known: Facts, most: int) -> int:
    return most if known.classes is None else max(1, min(most, known.classes - 1))


def _spec(name: str, *, eps: float | None = None, start: str | None = None, **params: Any) -> AttackSpec:
    return AttackSpec(name, options_of(params), eps=eps, start=start)
