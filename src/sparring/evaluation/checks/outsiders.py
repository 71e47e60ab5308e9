"""Checks from outside the gradient: do queries, surrogates or mere chance break what white-box attacks left."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from sparring.attacks.gradient.pgd import PGD
from sparring.attacks.noise import GaussianNoise, UniformNoise
from sparring.attacks.query.square import Square
from sparring.core.attack import Attack
from sparring.core.result import AttackResult, Outcome
from sparring.core.threat import Access, Targeted, ThreatModel
from sparring.evaluation.checks.own import white_box
from sparring.evaluation.checks.parts import (
    FEW,
    POINT,
    Bill,
    Few,
    afford,
    allowance,
    found,
    idle,
    radius_of,
    standing,
    still_standing,
)
from sparring.evaluation.findings import Context, Finding, check

QUERIES, FEWEST_QUERIES = 500, 200
DRAWS = 10_000
FEWEST_DRAWS = 1_000


@check(15, "no-masking", "Without gradients no more breaks than with them")
def no_masking(context: Context) -> Finding | None:
    """How many samples that survived every white-box attack fall to Square, or to transfer where surrogates are known.

    Where the plan has attacks of less access after its white-box ones, their evidence is the answer and costs nothing.
    """
    steps = white_box(context)
    if not steps or radius_of(context) is None:
        return None
    later = [s for s in context.evidence.steps if s.role == "main" and s.index > steps[-1].index]
    if later:
        columns = context.evidence.attempts
        rows = np.isin(columns["step"], [s.index for s in later])
        met = len(np.unique(columns["sample"][rows]))
        count = int((columns["outcome"][rows] == Outcome.SUCCEEDED).sum())
        points = count / max(1, len(context.evidence.samples["sample"]))
        return _masked(count, met, points, ", ".join(s.label for s in later), Bill())
    few, bill = standing(context, afford(context, float(QUERIES))), Bill()
    if few is None:
        return idle(15, "No sample is left standing.")
    broke = torch.zeros(len(few.y), dtype=torch.bool, device=few.y.device)
    names: list[str] = []
    queries = int(min(QUERIES, max(FEWEST_QUERIES, allowance(context) / len(few.y))))
    for attack, threat in _outsiders(context, few, queries):
        names.append(attack.card.name)
        broke |= _meet(context, few, attack, threat, bill).succeeded
    if not names:
        return None
    points = int(broke.sum()) / len(few.y) * float(still_standing(context).mean())
    return _masked(int(broke.sum()), len(few.y), points, " and transfer by ".join(names), bill)


def _outsiders(context: Context, few: Few, queries: int) -> list[tuple[Attack, ThreatModel]]:
    threat = _threat(context, few)
    pairs: list[tuple[Attack, ThreatModel]] = []
    if threat.space.name in Square.card.spaces:
        pairs.append((Square(queries=queries), dataclasses.replace(threat, access=Access.SCORES, queries=queries)))
    if threat.knowledge.surrogates:
        pairs.append((PGD(steps=20), dataclasses.replace(threat, access=Access.NOTHING)))
    return pairs


def _masked(count: int, met: int, points: float, what: str, bill: Bill) -> Finding:
    return found(
        15,
        count > FEW and points > POINT,
        points,
        f"> {POINT:g} of all samples, and > {FEW} samples",
        f"Of {met} samples that every white-box attack left standing, {what} breaks {count}: about {points:.1%} of all.",
        "The gradient is masked: BPDA or another loss for the white-box attacks, and square with more queries.",
        bill=bill,
        details={"met": met, "broke": count},
    )


@check(16, "noise", "Random noise breaks nothing that the audit left standing")
def noise(context: Context) -> Finding | None:
    """How many survivors fall to random points of their balls: 10,000 draws in all, fewer in a small audit."""
    few = standing(context, afford(context, 1.0))
    if radius_of(context) is None:
        return None
    if few is None:
        return idle(16, "No sample is left standing.")
    total = int(min(DRAWS, max(FEWEST_DRAWS, allowance(context))))
    space, bill = context.threat.space, Bill()
    kinds: list[type[UniformNoise] | type[GaussianNoise]] = [UniformNoise, GaussianNoise]
    kinds = [kind for kind in kinds if space.name in kind.card.spaces]
    if not kinds:
        return None
    each = max(1, round(total / len(few.y) / len(kinds)))
    broke = torch.zeros(len(few.y), dtype=torch.bool, device=few.y.device)
    threat, made = dataclasses.replace(_threat(context, few), access=Access.LABELS, queries=None), 0
    for kind in kinds:
        result = _meet(context, few, kind(draws=each), threat, bill)
        broke |= result.succeeded
        made += int(result.queries.sum())
    count = int(broke.sum())
    return found(
        16,
        count > 0,
        float(count),
        "> 0 samples",
        f"{made:,} random points of the balls of {len(few.y)} samples that the audit left standing break {count}.",
        "Noise beats the attacks: look at the victim's gradient and at the attacks' step sizes, then try square.",
        bill=bill,
        details={"draws": made, "met": len(few.y), "broke": count},
    )


def _threat(context: Context, few: Few) -> ThreatModel:
    threat = context.threat
    goal = threat.goal.take(few.positions) if isinstance(threat.goal, Targeted) else threat.goal
    return dataclasses.replace(threat, space=threat.space.take(few.positions), goal=goal, steps=None)


def _meet(context: Context, few: Few, attack: Attack, threat: ThreatModel, bill: Bill) -> AttackResult:
    x: Tensor = few.x
    result = attack(
        context.victim,
        x,
        few.y,
        threat,
        seed=context.seed,
        ids=few.ids.to(few.y.device),
        batch_size=context.batch_size,
    )
    bill.pay(result)
    return result
