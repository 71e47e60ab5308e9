"""The audit's own attacks as the checks run them: which they are, made short, and on a few samples."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparring.core.attack import Attack
from sparring.core.balls import Ball
from sparring.core.network import Victim
from sparring.core.result import AttackResult
from sparring.core.threat import Access, Goal, Targeted
from sparring.core.victim import BaseVictim
from sparring.defences.detectors import JointPGD
from sparring.evaluation.checks.parts import Bill, Few, radius_of
from sparring.evaluation.findings import Context
from sparring.evaluation.plan import Step
from sparring.evaluation.units import threat_of, view_of


def white_box(context: Context) -> list[Step]:
    """The audit's attacks at its eps that climb the victim's own gradient, in their order."""
    if not isinstance(context.victim, Victim):
        return []
    specs = [(step, step.spec) for step in context.evidence.steps if step.role == "main" and step.spec is not None]
    cards = [(step, spec, spec.card) for step, spec in specs if not spec.surrogates]
    return [step for step, _, card in cards if card.access is Access.GRADIENTS and not card.needs]


def climb(context: Context) -> Step | None:
    """The longest of them that takes a number of steps up one loss; the first of equals."""
    longest: Step | None = None
    most = 0
    for step in white_box(context):
        attack: Any = attack_of(step)
        climbs = hasattr(attack, "steps") and hasattr(attack, "loss") and not attack.card.minimal
        if climbs and not isinstance(attack, JointPGD) and attack.steps > most:
            longest, most = step, attack.steps
    return longest


def joint(context: Context) -> Step | None:
    """The first of them that minds the victim's detector; None where there is no detector, or no such attack."""
    if getattr(context.victim, "detector", None) is None:
        return None
    return next((step for step in white_box(context) if isinstance(attack_of(step), JointPGD)), None)


def attack_of(step: Step) -> Attack:
    """The attack of a step, with the plan's hyper-parameters."""
    if step.spec is None:
        raise TypeError("the clean pass has no attack")
    return step.spec.build()


def shortened(attack: Attack, **most: int) -> Attack:
    """The attack with each named hyper-parameter that it has lowered to at most the number given."""
    known = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}  # type: ignore[arg-type]
    lowered = {k: v for k, v in most.items() if isinstance(known.get(k), int) and known[k] > v}
    return replace(attack, **lowered) if lowered else attack  # type: ignore[type-var]


def stretched(attack: Attack, factor: float) -> Attack:
    """The attack for a radius `factor` times as wide: a step length in raw units grows with it."""
    size = getattr(attack, "step_size", None)
    return replace(attack, step_size=size * factor) if isinstance(size, float) and size else attack  # type: ignore[type-var]


def view(context: Context) -> Victim | None:
    """The victim as the audit's first white-box attack sees it; None where nothing has gradients."""
    if not isinstance(context.victim, Victim):
        return None
    steps = white_box(context)
    seen = view_of(context.victim, steps[0].spec) if steps and steps[0].spec else context.victim.attack_view()
    return seen if isinstance(seen, Victim) else None


def assail(
    context: Context,
    step: Step,
    few: Few,
    bill: Bill,
    *,
    attack: Attack | None = None,
    victim: BaseVictim | None = None,
    radius: float | None = None,
    goal: Goal | None = None,
    early_stop: bool = True,
) -> AttackResult:
    """Run a step of the plan on some samples, with parts of it exchanged.

    Args:
        context, step, few: who, what, on whom.
        bill: what it costs is added here.
        attack: instead of the step's own.
        victim: instead of the audited one.
        radius: instead of the threat's eps.
        goal: instead of the threat's own.
        early_stop: as for any attack.
    """
    if step.spec is None:
        raise TypeError("the clean pass has no attack")
    threat = threat_of(context.threat, step, step.spec)
    space, aim = threat.space, threat.goal
    if isinstance(space, Ball):
        space = space.take(few.positions) if radius is None else replace(space, eps=radius)
    threat = replace(threat, space=space, goal=goal or (aim.take(few.positions) if isinstance(aim, Targeted) else aim))
    result = (attack or attack_of(step))(
        victim or view_of(context.victim, step.spec),
        few.x,
        few.y,
        threat,
        seed=context.seed,
        ids=few.ids.to(few.y.device),
        batch_size=context.batch_size,
        early_stop=early_stop,
    )
    bill.pay(result)
    return result


def worst_case(
    context: Context,
    few: Few,
    bill: Bill,
    radius: float,
    goal: Goal | None,
    *,
    victim: BaseVictim | None = None,
    steps: int = 100,
) -> tuple[Tensor, Tensor]:
    """Which samples were right at first and which of these the audit's own attacks, made short, break: two bool (m,).

    Only the white-box attacks take part where there are any, at most three, and the one that minds a detector first.

    Args:
        context, few, bill: who, on whom, and what it costs.
        radius: in the place of the threat's eps.
        goal: in the place of the threat's own; None keeps that.
        victim: in the place of the audited one.
        steps: how many each attack takes at most.
    """
    attacks = white_box(context) or [s for s in context.evidence.steps if s.role == "main"]
    minding = joint(context)
    if minding is not None and victim is None:
        attacks = [minding, *(s for s in attacks if s is not minding)]
    factor = radius / (radius_of(context) or radius)
    correct = torch.ones(len(few.y), dtype=torch.bool, device=few.y.device)
    broken = torch.zeros_like(correct)
    for place, step in enumerate(attacks[:3]):
        index = (correct & ~broken).nonzero().squeeze(1)
        if not len(index):
            break
        attack = shortened(
            stretched(attack_of(step), factor), steps=steps, restarts=1, classes=3, targets=3, queries=500
        )
        result = assail(context, step, few.take(index), bill, attack=attack, victim=victim, radius=radius, goal=goal)
        broken[index] = result.succeeded
        if place == 0:
            correct[index] = result.clean_correct
    return correct, broken
