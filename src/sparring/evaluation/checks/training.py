"""Checks of what training can do to an evaluation: gradients that mislead ten steps, and those that fool only one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.attacks.gradient.pgd import FGSM, PGD
from sparring.core.balls import Ball
from sparring.core.network import Victim
from sparring.core.threat import Untargeted
from sparring.defences.training.overfitting import LARGEST_GAP, LEAST_COSINE
from sparring.evaluation.checks.own import assail, view, white_box
from sparring.evaluation.checks.parts import (
    FEW,
    Bill,
    Few,
    afford,
    chance,
    found,
    pick,
    radius_of,
    right,
    standard_error,
    still_standing,
)
from sparring.evaluation.findings import Context, Finding, check

MASKED = 0.05
STEPS = 10


@check(18, "ten-steps", "Ten steps of PGD tell nearly what the whole audit tells")
def ten_steps(context: Context) -> Finding | None:
    """Robust accuracy by PGD-10 less that of the whole audit, from PGD-10 on samples that the audit broke.

    Training that masks the gradient, as some runs of TRADES and MART do, shows as a gap above five points.
    """
    steps, bill = white_box(context), Bill()
    space, traits = context.threat.space, context.victim.traits
    if not steps or traits.rejects or traits.stochastic or not radius_of(context) or space.name not in PGD.card.spaces:
        return None
    broken = context.evidence.samples["correct"] & ~still_standing(context)
    few = pick(context, broken, afford(context, 2.0 * STEPS))
    left = met = 0
    if few is not None:
        result = assail(context, steps[0], few, bill, attack=PGD(steps=STEPS))
        left, met = int((~result.succeeded).sum()), len(few.y)
    gap = left / max(1, met) * float(broken.mean())
    return found(
        18,
        gap > MASKED and left > FEW,
        gap,
        f"> {MASKED:g}, and > {FEW} samples",
        f"Of {met} samples that the audit broke, PGD-{STEPS} leaves {left} standing: alone it would say {gap:.1%} too much.",
        "The gradient is masked, by training or by a stage: believe the stronger attacks alone, add margin losses and "
        "square, and try the thorough preset.",
        bill=bill,
        details={"met": met, "left": left, "broken": float(broken.mean())},
    )


@check(19, "one-step", "The gradient keeps its direction in the ball, and ten steps win little over one")
def one_step(context: Context) -> Finding | None:
    """The mean cosine of the loss gradients at x and at a random point of the ball, and FGSM accuracy less PGD-10's.

    Both are signs of catastrophic overfitting to one-step attacks (Wong et al. 2020, arXiv:2001.03994; Andriushchenko
    and Flammarion 2020, arXiv:2007.02617), the same that the training of `sparring.defences.training` watches. Turning
    gradients alone are a sign only where FGSM leaves more than chance standing: those of undefended networks turn too.
    """
    steps, seen, bill = white_box(context), view(context), Bill()
    space, traits = context.threat.space, context.victim.traits
    few = right(context, afford(context, 2.0 * STEPS + 4, least=16))
    if not steps or seen is None or few is None or traits.rejects or traits.stochastic:
        return None
    if not isinstance(space, Ball) or not radius_of(context) or space.name not in PGD.card.spaces:
        return None
    ball = space.take(few.positions).bound(few.x, context.victim.bounds)
    near = ball.sample(few.x, few.rng(context.seed), "cosine")
    with context.victim.at_rest():
        here, there = (_slope(seen, few, at, bill) for at in (few.x, near))
    known = (here.norm(dim=1) > 0) & (there.norm(dim=1) > 0)
    if not bool(known.any()):
        return None
    cosine = float(F.cosine_similarity(here[known], there[known]).mean())
    fast, slow = (
        assail(context, steps[0], few, bill, attack=attack, goal=Untargeted()) for attack in (FGSM(), PGD(steps=STEPS))
    )
    gained = int((slow.succeeded & ~fast.succeeded).sum()) - int((fast.succeeded & ~slow.succeeded).sum())
    gap = gained / len(few.y)
    left = 1 - float(fast.succeeded.double().mean())
    guess = chance(context)
    turned = cosine < LEAST_COSINE and left > guess + 3 * standard_error(guess, len(few.y))
    return found(
        19,
        turned or (gap > LARGEST_GAP and gained > FEW),
        cosine,
        f"< {LEAST_COSINE:g} where FGSM fails, or FGSM over PGD-{STEPS} by > {LARGEST_GAP:g}",
        f"On {len(few.y)} samples gradients within the ball have a cosine of {cosine:.2f}, and FGSM leaves {left:.0%} "
        f"standing, {gap:.0%} more than PGD-{STEPS}.",
        "Catastrophic overfitting: numbers by one step mean nothing, and gradients mislead; train with several steps or "
        "a gradient alignment, and confirm with square.",
        bill=bill,
        details={"samples": len(few.y), "fgsm": left, "gap": gap},
    )


def _slope(seen: Victim, few: Few, x: Tensor, bill: Bill) -> Tensor:
    """The gradient of cross-entropy at x, float64 (m, d); zeros where there is none."""
    leaf = x.detach().clone().requires_grad_(True)
    bill.forwards += len(few.y)
    bill.backwards += len(few.y)
    with torch.enable_grad():
        # the sum in float64: a gradient of 1e-30 has a direction still, one of 0 has none
        loss = F.cross_entropy(seen.scores(leaf).double(), few.y, reduction="sum")
    grad = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
    flat = torch.zeros_like(leaf) if grad is None else torch.nan_to_num(grad)
    return flat.flatten(1).double()
