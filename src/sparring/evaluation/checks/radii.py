"""Checks at radii where the answer is known: nothing stands without a limit, nor where every input can be grey."""

from __future__ import annotations

import itertools

from sparring.core.threat import Untargeted
from sparring.evaluation.checks.own import assail, attack_of, climb, shortened, stretched, worst_case
from sparring.evaluation.checks.parts import (
    Bill,
    afford,
    anyone,
    chance,
    found,
    largest_radius,
    radius_of,
    right,
    standard_error,
)
from sparring.evaluation.findings import Context, Finding, check

FRACTIONS = (0.25, 0.5, 1.0, 2.0)
STEPS = 20


@check(10, "unbounded", "Without a limit on the change nothing stands")
def unbounded(context: Context) -> Finding | None:
    """The share of right samples that the audit's own attacks break when any input may become any other."""
    few, bill = right(context, afford(context, 20.0, least=16)), Bill()
    limit = None if few is None else largest_radius(context, few)
    if few is None or limit is None or not radius_of(context):
        return None
    correct, broken = worst_case(context, few, bill, limit, Untargeted())
    met = int(correct.sum())
    if not met:
        return None
    rate = int(broken.sum()) / met
    return found(
        10,
        rate < 1,
        rate,
        "< 1",
        f"With an eps of {limit:g}, which reaches every input, the attacks break {rate:.0%} of {met} samples.",
        "The attacks are broken or blinded: look at the victim's gradient, then try a margin loss, BPDA and square.",
        bill=bill,
        details={"samples": met, "eps": limit},
    )


@check(11, "grey", "Where every input can be the same grey, accuracy is chance")
def grey(context: Context) -> Finding | None:
    """Accuracy at half the domain's width (Linf .5 for pixels in [0, 1]): every ball holds the middle of the domain."""
    few, bill = anyone(context, afford(context, 20.0, least=16)), Bill()
    limit = None if few is None else largest_radius(context, few)
    if few is None or limit is None or not radius_of(context):
        return None
    if context.threat.space.name == "l0" or context.victim.traits.rejects:  # a detector may reject all that is grey
        return None
    correct, broken = worst_case(context, few, bill, limit / 2, Untargeted())
    n = len(few.y)
    accuracy = int((correct & ~broken).sum()) / n
    line = chance(context) + 3 * standard_error(chance(context), n)
    return found(
        11,
        accuracy > line,
        accuracy,
        f"> {line:.3f} (chance + 3 SE)",
        f"At an eps of {limit / 2:g}, where every input can be the same grey, {accuracy:.0%} of {n} stay right.",
        "No model can be right there, so the attacks miss: look at the victim's gradient, then try BPDA and square.",
        bill=bill,
        details={"samples": n, "eps": limit / 2},
    )


@check(12, "monotone", "Accuracy falls as eps grows")
def monotone(context: Context) -> Finding | None:
    """The largest rise of accuracy from one eps to the next, in standard errors, with the audit's climb made short.

    The standard error is that of the two rates together, with one success and one failure added, so that one sample
    among few is no rise.
    """
    step, eps, bill = climb(context), radius_of(context), Bill()
    few = anyone(context, afford(context, 2.0 * STEPS * len(FRACTIONS), least=16))
    if step is None or few is None or not eps:
        return None
    attack = shortened(attack_of(step), steps=STEPS, restarts=1, classes=1)
    rates: list[float] = []
    for fraction in FRACTIONS:
        result = assail(
            context, step, few, bill, attack=stretched(attack, fraction), radius=eps * fraction, goal=Untargeted()
        )
        rates.append(float((result.clean_correct & ~result.succeeded).double().mean()))
    n = len(few.y)
    measured = max(0.0, *(_rise(a, b, n) for a, b in itertools.pairwise(rates)))
    shown = ", ".join(f"{rate:.0%} at {eps * f:.3g}" for f, rate in zip(FRACTIONS, rates, strict=True))
    return found(
        12,
        measured > 1,
        measured,
        "> 1 SE",
        f"Accuracy against eps on {n} samples: {shown}.",
        "A larger ball holds the smaller one, so the attack fails in it: look at its steps and at the victim's gradient.",
        bill=bill,
        details={"eps": [eps * f for f in FRACTIONS], "accuracy": rates, "samples": n},
    )


def _rise(before: float, after: float, n: int) -> float:
    """A rise of a rate in standard errors of the mean rate; with few samples one of them is no more than one."""
    error = standard_error((n * (before + after) / 2 + 1) / (n + 2), n)
    return (after - before) / max(error, 1 / n)
