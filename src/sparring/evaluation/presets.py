"""The presets `fast`, `standard` and `thorough`: which attacks a plan takes for a norm, a victim's traits and its
access.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparring.core.balls import Linf
from sparring.core.errors import UnknownNameError
from sparring.core.network import Victim
from sparring.core.threat import Access
from sparring.core.victim import BaseVictim, Traits
from sparring.defences.detectors import has_slope
from sparring.evaluation.data import Data
from sparring.evaluation.errors import PlanError
from sparring.evaluation.plan import Plan
from sparring.evaluation.specs import AttackSpec, options_of
from sparring.evaluation.threats import ThreatSpec

PRESETS = ("fast", "standard", "thorough")
# What an audit without arguments asks of the embedded digits.
DEFAULT_THREAT = Linf(0.15)
# Draws per gradient on random victims, as in AutoAttack's version for them.
EOT = 20


@dataclass(frozen=True)
class Facts:
    """What a preset must know of a victim.

    Attributes:
        classes: how many it has, or None where it does not say.
        access: what the attacker sees of it.
        traits: what its forward does.
        guarded: whether it has a detector that a joint attack can climb.
    """

    classes: int | None
    access: Access
    traits: Traits
    guarded: bool = False


def facts(victim: BaseVictim, data: Data, threat: ThreatSpec) -> Facts:
    """Look at a victim; a few samples are shown to it where it has not said how many classes it has."""
    classes, guard = victim.classes, getattr(victim, "detector", None)
    few = torch.arange(min(4, len(data)))
    guarded = False
    if classes is None or guard is not None:
        with victim.at_rest():
            x, _ = victim.admit(data.inputs(few), data.y[few])
            scores = victim.query(x).scores
        classes = None if scores is None else scores.shape[1]
        guarded = guard is not None and isinstance(victim, Victim) and isinstance(x, Tensor) and has_slope(victim, x)
    access = victim.access if threat.access is None else min(victim.access, Access.parse(threat.access))
    return Facts(classes, access, victim.traits, guarded)


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
    attacks = list(_by_queries(plan.preset, threat, known))
    if known.access is Access.GRADIENTS:
        gradients = [*_MADE[plan.preset](threat, known), *_joint(plan.preset, known)]
        attacks = [*gradients, *(attacks if plan.preset != "fast" else ())]
        if known.traits.stochastic:
            attacks = [replace(s, eot=EOT) if s.card.access is Access.GRADIENTS else s for s in attacks]
    if plan.surrogates and plan.preset == "thorough":
        attacks.append(replace(_spec("mi-fgsm", steps=20), access="nothing", surrogates=plan.surrogates))
    added = curve(threat, known.access) if plan.with_curve else ()
    return replace(plan, attacks=tuple(attacks), curve=plan.curve or added)


def curve(threat: ThreatSpec, access: Access = Access.GRADIENTS) -> tuple[AttackSpec, ...]:
    """The attacks for accuracy against eps: the smallest change of every sample, and wider balls for those left over."""
    if threat.norm not in ("linf", "l2", "l1") or threat.eps is None or access < Access.GRADIENTS:
        return ()
    wider = tuple(_spec("pgd", steps=20, eps=threat.eps * factor) for factor in (2, 4, 8))
    return (_spec("fmn", steps=30), *wider)


def _standard(threat: ThreatSpec, known: Facts) -> list[AttackSpec]:
    """AutoAttack's white-box attacks with its parameters; its version for random victims where the victim is random.

    Two short climbs stand between them, for a fiftieth of the cost: measured on adversarially trained digits they find what
    APGD misses from its own starts, so that FAB and Square meet fewer.
    """
    l1, others = threat.norm == "l1", _others(known, 9)
    if known.traits.stochastic:
        return [_spec("apgd", steps=100), _spec("apgd", steps=100, loss="dlr")]
    first = _spec("apgd", steps=100, restarts=5 if l1 else 1)
    if threat.target is not None:
        return [first, _spec("apgd", steps=100, loss="dlr"), _spec("fab", steps=100, beta=0.9)]
    return [
        first,
        _spec("apgd-t", steps=100, classes=min(others, 5) if l1 else others),
        _spec("apgd", steps=40, loss="margin", start="raised"),
        _spec("apgd", steps=40, loss="probability_margin"),
        _spec("fab", steps=100, beta=0.9, targets=others),
    ]


def _fast(threat: ThreatSpec, known: Facts) -> list[AttackSpec]:
    """A short climb, short ones to eight classes from a raised input, another start, and two through closed ReLUs.

    Chosen by measurement (see `starts.starting_points`): 280 forwards and 265 backwards for a sample that stands. What the
    last climbs find on a certified network beyond its radius, of all else only Square does, by thousands of queries.
    """
    first = _spec("apgd", steps=20, loss="dlr")
    second = _spec("apgd-t", steps=18, classes=_others(known, 8), loss="margin", start="raised")
    if threat.target is not None:
        second = _spec("apgd", steps=40, loss="margin", start="raised")
    return [
        first,
        second,
        _spec("apgd", steps=40, loss="margin", start="raised", relu_slope=0.01),
        _spec("apgd", steps=20, loss="probability_margin"),
        _spec("apgd", steps=40, loss="margin", start="raised", relu_slope=0.075),
    ]


def _thorough(threat: ThreatSpec, known: Facts) -> list[AttackSpec]:
    """`standard`, then other losses from far starts, more random starts, and the smallest change in two ways."""
    smallest = _spec("ddn", steps=200) if threat.norm == "l2" else _spec("fmn", steps=200)
    far = (
        ()
        if threat.target is not None
        else tuple(
            _spec("apgd-t", steps=50, classes=_others(known, 9), loss="margin", start=start)
            for start in ("raised", "tiles")
        )
    )
    more = _spec("apgd", steps=50, restarts=5, loss="probability_margin")
    return [*_standard(threat, known), *far, more, _spec("pgd", steps=100, restarts=5, loss="margin"), smallest]


def _joint(preset: str, known: Facts) -> list[AttackSpec]:
    """Where a detector rejects: the climb that minds its score as well, since no loss of the others does."""
    steps = {"fast": 40, "standard": 100, "thorough": 200}[preset]
    return [_spec("joint-pgd", steps=steps)] if known.guarded else []


def _by_queries(preset: str, threat: ThreatSpec, known: Facts) -> list[AttackSpec]:
    """What only asks: by scores Square, with the schedule that AutoAttack uses; by labels what there is for the norm."""
    queries = 20_000 if preset == "thorough" else 5_000
    if known.access >= Access.SCORES:
        return [] if known.traits.stochastic and preset != "thorough" else [_square(queries)]
    if known.access is Access.LABELS:
        names: tuple[str, ...] = {
            "linf": ("rays", "hopskipjump"),
            "l2": ("hopskipjump", "surfree"),
            "l1": ("pointwise", "geoda"),
        }[threat.norm]
        if threat.target is not None:
            names = tuple(name for name in names if name not in ("rays", "geoda"))
        return [AttackSpec(name, queries=queries) for name in (names if preset == "thorough" else names[:1])]
    raise PlanError(
        f"this threat lets the attacker see {known.access}; the presets ask the victim. Name attacks: audit(..., attacks=[...])"
    )


_MADE = {"fast": _fast, "standard": _standard, "thorough": _thorough}


def _square(queries: int) -> AttackSpec:
    return _spec("square", queries=queries, rescale=False)


def _others(known: Facts, most: int) -> int:
    return most if known.classes is None else max(1, min(most, known.classes - 1))


def _spec(name: str, *, eps: float | None = None, start: str | None = None, **params: Any) -> AttackSpec:
    return AttackSpec(name, options_of(params), eps=eps, start=start)
