"""Checks of the audit's own search: does it keep what it finds, converge, beat one step, and gain by working longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparring.attacks.gradient.pgd import FGSM
from sparring.core.balls import Ball
from sparring.core.losses import get_loss
from sparring.core.network import Victim
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom
from sparring.core.runner import CLAIM_SLACK
from sparring.core.threat import Goal, Targeted
from sparring.evaluation.checks.own import assail, attack_of, climb, joint, shortened, white_box
from sparring.evaluation.checks.parts import (
    FEW,
    POINT,
    Bill,
    Few,
    afford,
    found,
    idle,
    pick,
    right,
    standing,
    still_standing,
)
from sparring.evaluation.findings import Context, Finding, check
from sparring.evaluation.units import view_of

WATCHED = 8
LAST = 10
UNFINISHED = 0.05
NOBODY = "No sample is left standing."


class Witness(Victim):
    """A victim that remembers what it was asked: the same answers and gradients, and a note of every forward.

    Args:
        victim: whose answers these are.
        note: is told the inputs and the scores of each differentiable forward.
    """

    def __init__(self, victim: Victim, note: Callable[[Tensor, Tensor], None]) -> None:
        self.__dict__.update(victim.__dict__)
        self._seen, self._note = victim, note

    def scores(self, x: Tensor, noise: KeyedRandom | None = None) -> Tensor:
        """The victim's own scores, (n, k)."""
        scores = self._seen.scores(x, noise)
        self._note(x.detach(), scores.detach())
        return scores


@check(7, "best-kept", "An attack that saw a success reports it")
def best_kept(context: Context) -> Finding | None:
    """How many samples end unbroken although a forward of the search showed a legal success.

    Each white-box attack, shortened, meets a few samples one at a time, so that every forward has one owner: samples
    that the audit broke where there are any, since only those can be lost.
    """
    steps = [step for step in white_box(context) if step.spec is not None and step.spec.eot == 1]
    few, bill = _broken(context) or right(context, WATCHED), Bill()
    if not steps or few is None or context.victim.traits.stochastic or not isinstance(context.threat.space, Ball):
        return None
    lost: dict[str, int] = {}
    for step in steps[:4]:
        attack = shortened(attack_of(step), steps=20, restarts=1, classes=2)
        lost[step.label] = 0
        for i in range(len(few.y)):
            one = few.take(torch.tensor([i]))
            sighted: list[bool] = []
            result = assail(context, step, one, bill, attack=attack, victim=_watched(context, step, one, sighted))
            lost[step.label] += int(any(sighted) and not bool(result.succeeded.any()))
    count = sum(lost.values())
    return found(
        7,
        count > 0,
        float(count),
        "> 0 samples",
        f"Of {len(few.y)} samples, {count} were broken by an iterate and reported as standing."
        if count
        else f"On {len(few.y)} samples no success that an iterate had was lost.",
        "Keep the best iterate: " + ", ".join(label for label, n in lost.items() if n) + " forgets it.",
        bill=bill,
        details={"samples": len(few.y), "lost": lost},
    )


def _broken(context: Context) -> Few | None:
    """Samples that were right at first and that the audit broke."""
    return pick(context, context.evidence.samples["correct"] & ~still_standing(context), WATCHED)


def _watched(context: Context, step: Any, one: Few, sighted: list[bool]) -> Victim:
    """The victim that a step sees, noting whether each forward shows a legal success on this one sample."""
    view = view_of(context.victim, step.spec)
    goal = context.threat.goal
    aim: Goal = goal.take(one.positions) if isinstance(goal, Targeted) else goal
    space: Any = context.threat.space.take(one.positions)
    space = space.bound(one.x, context.victim.bounds)

    def note(x: Tensor, scores: Tensor) -> None:
        if x.shape != one.x.shape:
            return
        accepted = view.accepts(x) if isinstance(view, Victim) else None
        if bool(aim.achieved(Prediction.of(scores, accepted), one.y, CLAIM_SLACK).any()):
            sighted.append(bool(space.contains(one.x, x).any()))

    if not isinstance(view, Victim):
        raise TypeError(f"{view.name!r} offers no gradient")
    return Witness(view, note)


@check(8, "converged", "The climb has converged: its last ten steps gain next to nothing")
def converged(context: Context) -> Finding | None:
    """What the last 10 steps add to the best loss, as a share of what the whole climb adds; mean over survivors.

    The audit's longest climb is repeated on samples that it left standing, without early stopping (Pintor et al.
    2022, Indicators of Attack Failure, arXiv:2106.09947).
    """
    step, bill = climb(context), Bill()
    if step is None or step.spec is None:
        return None
    attack: Any = shortened(attack_of(step), restarts=1, classes=1)
    few = standing(context, afford(context, 2.0 * attack.steps * step.spec.eot))
    view = view_of(context.victim, step.spec)
    if few is None or not isinstance(view, Victim):
        return idle(8, NOBODY)
    loss, goal = get_loss(attack.loss), context.threat.goal
    aim = goal.take(few.positions) if isinstance(goal, Targeted) else goal
    curve: list[Tensor] = []

    def note(x: Tensor, scores: Tensor) -> None:
        if len(scores) == len(few.y):
            curve.append(loss(scores, few.y, aim))

    assail(context, step, few, bill, attack=attack, victim=Witness(view, note), early_stop=False)
    if len(curve) < 2:
        return None
    eot = step.spec.eot
    values = torch.stack(curve)
    values = values[: len(values) // eot * eot].reshape(-1, eot, len(few.y)).mean(1).double()
    best = values.cummax(0).values
    gain = best[-1] - best[0]
    late = best[-1] - best[max(0, len(best) - 1 - LAST)]
    share = torch.where(gain > 0, late / gain.clamp(min=torch.finfo(gain.dtype).tiny), torch.zeros_like(gain))
    measured = float(share.mean())
    return found(
        8,
        measured > UNFINISHED,
        measured,
        f"> {UNFINISHED:g}",
        f"The last {LAST} of {step.label}'s {attack.steps} steps make {measured:.1%} of its gain, on {len(few.y)} samples.",
        f"More steps: {step.label} with steps = {2 * attack.steps}, or apgd, which chooses its step sizes.",
        bill=bill,
        details={"samples": len(few.y), "attack": step.label, "flat": int((gain <= 0).sum())},
    )


@check(13, "iterations-help", "One step breaks nothing that the audit left standing")
def iterations_help(context: Context) -> Finding | None:
    """How many samples FGSM breaks of those that every attack of the audit left standing."""
    steps, bill = white_box(context), Bill()
    if not steps or context.threat.space.name not in FGSM.card.spaces:
        return None
    few = standing(context, afford(context, 4.0, most=256))
    if few is None:
        return idle(13, NOBODY)
    result = assail(context, steps[0], few, bill, attack=FGSM())
    return _extra(
        context,
        13,
        few,
        result.succeeded,
        bill,
        what="one step (FGSM)",
        step="The iterative attack is misconfigured: look at its step size, its start and its loss.",
    )


@check(14, "budget", "Twice the steps and restarts break no more")
def budget(context: Context) -> Finding | None:
    """How many survivors the audit's longest climb breaks with twice the steps and twice the restarts.

    Against a detector it is the attack that minds it, with twice the steps alone: its restarts differ in kind.
    """
    minding, bill = joint(context), Bill()
    step = minding or climb(context)
    if step is None or step.spec is None:
        return None
    attack: Any = attack_of(step)
    steps, restarts = int(attack.steps), int(getattr(attack, "restarts", 1))
    more: dict[str, int] = {"steps": 2 * steps}
    if hasattr(attack, "restarts") and minding is None:
        more["restarts"] = 2 * restarts
    few = standing(context, afford(context, (8.0 if minding is None else 4.0) * steps * restarts * step.spec.eot))
    if few is None:
        return idle(14, NOBODY)
    result = assail(context, step, few, bill, attack=replace(attack, **more))
    told = ", ".join(f"{name} = {value}" for name, value in more.items())
    return _extra(
        context,
        14,
        few,
        result.succeeded,
        bill,
        what=f"{step.label} with {told}",
        step=f"The budget is too small: {step.label} with {told}, and again until nothing more breaks.",
    )


def _extra(context: Context, number: int, few: Few, broke: Tensor, bill: Bill, *, what: str, step: str) -> Finding:
    """A finding about samples that something breaks after the audit: a failure over one point and over two samples."""
    count, met = int(broke.sum()), len(few.y)
    survivors = still_standing(context)
    points = count / met * float(survivors.mean())
    return found(
        number,
        count > FEW and points > POINT,
        points,
        f"> {POINT:g} of all samples, and > {FEW} samples",
        f"Of {met} samples that the audit left standing, {what} breaks {count}: about {points:.1%} of all samples.",
        step,
        bill=bill,
        details={"met": met, "broke": count, "standing": int(survivors.sum())},
    )
