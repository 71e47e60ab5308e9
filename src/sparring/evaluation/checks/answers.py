"""Checks of the victim's answers: do they repeat, are they logits, and does it optimise to give them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

from sparring.core.inspection import BESIDE
from sparring.core.outputs import Prediction
from sparring.evaluation.checks.own import white_box
from sparring.evaluation.checks.parts import Bill, Few, anyone, found
from sparring.evaluation.findings import Context, Finding, check

REPEATS = 5
SAME = 1e-4
SUM = 1e-5
SAMPLES = 32


@check(3, "deterministic", "Five forwards of the same batch agree, and one of half of it", "before")
def deterministic(context: Context) -> Finding | None:
    """The largest difference between five forwards, over the largest score where that exceeds 1; or that to a forward of half
    of the batch, where it is more than batches' rounding: then answers depend on what else is asked.

    A random victim that says so, and that every white-box attack meets in expectation (EOT), passes: its number stands.
    """
    few, bill = anyone(context, SAMPLES), Bill()
    if few is None:
        return None
    with context.victim.at_rest():
        answers = [_ask(context, few, bill, draw) for draw in range(REPEATS)]
    measured = max(_apart(a, answers[0]) for a in answers)
    random = measured > SAME
    attacks = white_box(context)
    averaged = bool(attacks) and all(step.spec is not None and step.spec.eot > 1 for step in attacks)
    declared = context.victim.traits.stochastic
    if not random and not declared and (coupled := _coupling(context, few, answers[0], bill)) > BESIDE:
        return found(
            3,
            True,
            coupled,
            f"> {BESIDE:g}",
            f"An input's answer moves by up to {coupled:.2g} with what else is in its batch, so that no outcome is its own.",
            "Give the model statistics of its own (a BatchNorm with running ones), or ask and attack it at batch size 1.",
            taints="any",
            bill=bill,
            details={"declared": declared, "averaged": False},
        )
    says = f"Five answers to the same {len(few.y)} inputs differ by up to {measured:.2g}."
    if random and declared and averaged:
        says += " The victim says that it is random, and the attacks climb its expectation."
    step = "Attack the expectation: eot = 30 for every attack."
    if not declared:
        step += " Give the victim traits=Traits(stochastic=True), so that a success means most of ten draws."
    return found(
        3,
        random and not (declared and averaged),
        measured,
        f"> {SAME:g}",
        says,
        step,
        taints="robust" if declared else "any",
        bill=bill,
        details={"declared": declared, "averaged": averaged},
    )


@check(4, "logits", "The scores are logits, not probabilities", "before")
def logits(context: Context) -> Finding | None:
    """How far from 1 the scores of an input sum up, at most; scores that are nowhere negative and sum to 1 are
    probabilities, whose gradients vanish where the victim is sure.
    """
    few, bill = anyone(context, SAMPLES), Bill()
    if few is None:
        return None
    with context.victim.at_rest():
        scores = _ask(context, few, bill).scores
    if scores is None:
        return None
    off = float((scores.double().sum(1) - 1).abs().max())
    looks = off <= SUM and bool((scores >= 0).all())
    return found(
        4,
        looks,
        off,
        f"<= {SUM:g}, and none negative",
        "The scores look like probabilities: nowhere negative, and they sum to 1."
        if looks
        else f"The scores of an input sum to up to {off:.2g} away from 1, so they are no probabilities.",
        "Attack the logits: remove the softmax, or say sparring.Victim(net, probabilities=True).",
        bill=bill,
    )


@check(17, "no-optimisation", "A forward runs no gradient computation of its own", "before")
def no_optimisation(context: Context) -> Finding | None:
    """Calls of autograd inside one plain query.

    A victim that says so, with surrogates for its stages, passes: the attacks then differentiate through those (BPDA).
    """
    few, bill = anyone(context, 4), Bill()
    if few is None:
        return None
    with context.victim.at_rest(), _counting() as calls:
        _ask(context, few, bill)
    stages = getattr(context.victim, "stages", ())
    bridged = context.victim.traits.optimises and any(getattr(stage, "surrogate", None) is not None for stage in stages)
    count = len(calls)
    says = f"One query calls autograd {count} times." if count else "A query computes no gradient of its own."
    if count:
        says += " The victim optimises at inference, and a gradient through that may be useless"
        says += "; the attacks go around it by a surrogate." if bridged else "."
    return found(
        17,
        count > 0 and not bridged,
        float(count),
        "> 0 calls",
        says,
        "Say traits=Traits(optimises=True) and give the stage a differentiable surrogate(x) for BPDA, or attack the "
        "scores alone: square.",
        bill=bill,
    )


def _ask(context: Context, few: Few, bill: Bill, draw: int = 0) -> Prediction:
    bill.forwards += len(few.y)
    noise = few.rng(context.seed).fork(("answers", draw)) if context.victim.traits.stochastic else None
    return context.victim.query(few.x, noise)


def _apart(a: Prediction, b: Prediction) -> float:
    """The largest difference of two answers, over the largest score where that exceeds 1; the share of labels without scores."""
    if a.scores is None or b.scores is None:
        return float((a.labels != b.labels).double().mean())
    return float((a.scores - b.scores).abs().max()) / max(1.0, float(b.scores.abs().max()))


def _coupling(context: Context, few: Few, whole: Prediction, bill: Bill) -> float:
    """How far the answers to half of the batch are from those among the whole."""
    index = torch.arange((len(few.y) + 1) // 2)
    with context.victim.at_rest():
        return _apart(_ask(context, few.take(index), bill), whole.take(index.to(few.y.device)))


@contextlib.contextmanager
def _counting() -> Iterator[list[str]]:
    """The calls of `torch.autograd.grad` and `backward` made in this thread, under whatever name they were imported."""
    watched = {f.__code__: f.__name__ for f in (torch.autograd.grad, torch.autograd.backward)}
    calls: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in watched:
            calls.append(watched[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)
