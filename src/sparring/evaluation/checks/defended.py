"""Checks of a defended victim: is the defence in the loop, is its detector minded, and would the bare model fall."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparring.attacks.gradient import APGD
from sparring.core.balls import Ball
from sparring.core.network import Victim
from sparring.core.rng import KeyedRandom
from sparring.core.victim import Traits, query_in_batches
from sparring.defences.detectors import JointPGD, has_slope
from sparring.evaluation.checks.legality import stored_pairs
from sparring.evaluation.checks.own import assail, joint, view, white_box, worst_case
from sparring.evaluation.checks.parts import (
    FEW,
    POINT,
    Bill,
    afford,
    anyone,
    found,
    idle,
    radius_of,
    right,
    standing,
    still_standing,
)
from sparring.evaluation.findings import Context, Finding, check

SAMPLES = 32
DRAWS = 3  # random points of each ball, beside the sample itself
SAME = 1e-3  # of the largest score: more than any order of summation makes
STAND_IN = 0.5  # of the clean inputs: surrogates that answer otherwise on more stand for another defence
BARE = 0.5
SHORT = 50  # steps on the bare model
JOINT_STEPS = 40


class Bare(Victim):
    """A defended victim without its stages and its detector."""

    def __init__(self, victim: Victim) -> None:
        self.__dict__.update(victim.__dict__)
        random = any(getattr(stage, "traits", Traits()).stochastic for stage in victim.stages)
        self.stages, self.detector = (), None
        self.traits = replace(
            victim.traits,
            stochastic=victim.traits.stochastic and not random,
            differentiable=True,
            optimises=False,
            rejects=False,
        )


@check(9, "in-the-loop", "The forward that the attacks climb is the one that decides", "before")
def in_the_loop(context: Context) -> Finding | None:
    """The share of points at which the differentiated forward gives other scores than the query that decides.

    A stage that steps aside where gradients are asked for, or a query that does more than the network, leaves the
    defence out of the attack. Where stages have surrogates, their answers to the clean inputs are compared as well, with
    every such stage replaced: a surrogate that answers otherwise on most of them has the gradient of something else.
    """
    few, seen, bill = anyone(context, SAMPLES), view(context), Bill()
    space = context.threat.space
    if few is None or seen is None:
        return None
    points = [few.x]
    if isinstance(space, Ball) and radius_of(context):
        ball, rng = space.take(few.positions).bound(few.x, context.victim.bounds), few.rng(context.seed)
        points += [ball.sample(few.x, rng, ("loop", draw)) for draw in range(DRAWS)]
    noise = few.rng(context.seed).fork("loop") if context.victim.traits.stochastic else None
    other = torch.zeros(len(points), len(few.y), dtype=torch.bool)
    alone = 0.0
    with context.victim.at_rest():
        for place, x in enumerate(points):
            true, again = (context.victim.query(x, noise) for _ in range(2))
            bill.forwards += 2 * len(few.y)
            if true.scores is None or again.scores is None:
                return None
            if bool(_apart(true.scores, again.scores).any()):
                return idle(9, "The victim answers differently each time, so its two forwards cannot be compared.")
            other[place] = _apart(_climbed(seen, x, noise), true.scores).cpu()
            bill.forwards += len(few.y)
            if place == 0 and any(getattr(s, "surrogate", None) is not None for s in seen.stages):
                alone = float((_by_surrogates(seen, x).argmax(1) != true.labels).double().mean())
                bill.forwards += len(few.y)
    differ = float(other.double().mean())
    says = (
        f"At {int(other.sum())} of {other.numel()} points the scores that the attacks climb are not those that decide"
    )
    says += f"; the surrogates alone answer otherwise on {alone:.0%} of {len(few.y)} clean inputs."
    return found(
        9,
        differ > 0 or alone > STAND_IN,
        alone if not differ and alone > STAND_IN else differ,
        f"> 0 of the points, or surrogates that answer otherwise on > {STAND_IN:g} of the inputs",
        says,
        "The defence is not in the loop: attack victim.attack_view(), whose forward is the true one with the surrogates' "
        "gradients, and give each stage a surrogate near its own output.",
        bill=bill,
        details={"points": other.numel(), "differ": int(other.sum()), "surrogates_alone": alone},
    )


def _apart(scores: Tensor, true: Tensor) -> Tensor:
    """Bool (n,): where scores differ by more than rounding."""
    return (scores - true).abs().amax(1) > SAME * float(true.abs().max().clamp(min=1e-12))


def _climbed(seen: Victim, x: Tensor, noise: KeyedRandom | None) -> Tensor:
    """The scores of the forward that is differentiated, computed as an attack computes it."""
    with torch.enable_grad():
        return seen.scores(x.detach().clone().requires_grad_(True), noise).detach()


def _by_surrogates(seen: Victim, x: Tensor) -> Tensor:
    """The scores with each stage's surrogate in its place, where it has one."""
    with torch.no_grad():
        for stage in seen.stages:
            x = (getattr(stage, "surrogate", None) or stage)(x)
        return seen.head(x)


@check(22, "detector", "A success is wrong and accepted, and the attacks mind the detector")
def detector(context: Context) -> Finding | None:
    """Stored successes that the detector rejects, and samples that fall once an attack minds the detector's score.

    Where the plan has such an attack, its evidence is the answer and costs nothing; else a short `JointPGD` meets some
    of the samples that the audit left standing.
    """
    victim, bill = context.victim, Bill()
    steps = white_box(context)
    if not isinstance(victim, Victim) or victim.detector is None or radius_of(context) is None:
        return None
    rejected, stored = _rejected(context, bill)
    if rejected:
        return found(
            22,
            True,
            float(rejected),
            "> 0 successes that the detector rejects",
            f"Of {stored} stored successes the detector rejects {rejected}: they were counted as if there were none.",
            "A success is wrong and accepted: audit the victim with its detector, victim.defended(detector=...).",
            taints="any",
            bill=bill,
            details={"stored": stored, "rejected": rejected},
        )
    if not steps or context.threat.space.name not in JointPGD.card.spaces:
        return None
    line = f"> {POINT:g} of all samples, and > {FEW} samples, by a joint attack that the plan lacks"
    step = "Attacked obliviously: add the joint loss, --attack joint-pgd, which lowers the detector's score as well."
    samples = anyone(context, 4)
    if samples is None or not has_slope(victim, samples.x):
        says = (
            f"No attack minds the detector, a {type(victim.detector).__name__}: its score is hidden or has no gradient."
        )
        return found(22, True, None, line, says, "Give it a differentiable score(x) and a threshold.", bill=bill)
    minding = joint(context)
    if minding is not None:
        columns = context.evidence.attempt(minding.index)
        won = int((columns["radius"] < float("inf")).sum())
        met = len(columns["sample"])
        says = f"{minding.label} minds the detector: of {met} samples that no attack before it broke, it breaks {won}."
        return found(22, False, 0.0, line, says, bill=bill, details={"met": met, "broke": won})
    attack = JointPGD(steps=JOINT_STEPS)
    few = standing(context, afford(context, 4.0 * attack.steps * attack.restarts, least=16))
    if few is None:
        return idle(22, "No sample is left standing.")
    count = int(assail(context, steps[0], few, bill, attack=attack).succeeded.sum())
    points = count / len(few.y) * float(still_standing(context).mean())
    says = f"No attack of the audit minds the detector; one that does breaks {count} of {len(few.y)} samples left "
    says += f"standing: about {points:.1%} of all."
    return found(
        22,
        count > FEW and points > POINT,
        points,
        line,
        says,
        step,
        bill=bill,
        details={"met": len(few.y), "broke": count},
    )


def _rejected(context: Context, bill: Bill) -> tuple[int, int]:
    """How many of some stored successes the detector rejects, and of how many."""
    pairs = stored_pairs(context)
    if pairs is None or context.victim.traits.stochastic:
        return 0, 0
    _, adversarial, y, _ = pairs
    with context.victim.at_rest():
        x, _ = context.victim.admit(adversarial, y)
        accepted = query_in_batches(context.victim, x, context.batch_size or 64).accepted
    bill.forwards += len(y)
    return (0 if accepted is None else int((~accepted).sum())), len(y)


@check(23, "undefended", "The same attacks break the model without its defence")
def undefended(context: Context) -> Finding | None:
    """The share of right samples that the audit's attacks, made short, break on the model without stages and detector.

    Where they fail there, what they leave standing says nothing about the defence. APGD meets what they leave: a model
    that stands by itself, as a certified one does, is no failure of theirs.
    """
    victim, eps, bill = context.victim, radius_of(context), Bill()
    few = right(context, afford(context, 8.0 * SHORT))
    if not isinstance(victim, Victim) or not (victim.stages or victim.detector) or few is None or not eps:
        return None
    steps = white_box(context)
    bare = Bare(victim)
    correct, broken = worst_case(context, few, bill, eps, None, victim=bare, steps=SHORT)
    met, own = int(correct.sum()), int(broken.sum())
    if not met:
        return idle(23, f"Without its defence the model is wrong on all of {len(few.y)} samples.")
    rate, more = own / met, 0
    says = f"On the model without its defence the same attacks break {rate:.0%} of {met} samples"
    if steps and rate < BARE and context.threat.space.name in APGD.card.spaces:
        left = few.take((correct & ~broken).nonzero().squeeze(1))
        attack = APGD(steps=SHORT, loss="dlr")
        more = int(assail(context, steps[0], left, bill, attack=attack, victim=bare).succeeded.sum())
        says += f", and APGD {more} of the rest"
        says += "" if more else ": it stands by itself at this eps"
    return found(
        23,
        rate < BARE and more > FEW,
        rate,
        f"< {BARE:g}, where APGD breaks > {FEW} samples more",
        says + ".",
        "The attacks are too weak to say anything about the defence: more steps or another loss, until the bare model "
        "falls.",
        bill=bill,
        details={"samples": met, "more": more},
    )
