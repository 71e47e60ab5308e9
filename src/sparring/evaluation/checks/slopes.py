"""Checks of the gradient: does it reach the input at all, and is the loss smooth enough for it to mean much."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.core.balls import Ball
from sparring.core.losses import get_loss
from sparring.core.network import Victim
from sparring.evaluation.checks.own import attack_of, view, white_box
from sparring.evaluation.checks.parts import Bill, Few, found, margins, radius_of, right
from sparring.evaluation.findings import Context, Finding, Taint, check

SAMPLES = 32
NEIGHBOURS = 100
NEIGHBOURHOODS = 8
ROUGH = 0.1
# These climb scores or their differences, which do not saturate as cross-entropy does.
UNSATURATED = ("margin", "dlr")


@check(5, "input-gradient", "The loss has a gradient at the input", "before")
def input_gradient(context: Context) -> Finding | None:
    """The share of right samples where the gradient of cross-entropy is zero everywhere, not finite, or an exception.

    Where the margin still has one, cross-entropy has only saturated: an audit that climbs a margin is not misled.
    """
    few, seen, bill = right(context, SAMPLES), view(context), Bill()
    if few is None or seen is None:
        return None
    with context.victim.at_rest():
        dead, why = _dead(context, seen, few, "ce", bill)
        margin, _ = _dead(context, seen, few, "margin", bill) if dead else (0.0, "")
    losses = {str(getattr(attack_of(step), "loss", "")) for step in white_box(context)}
    covered = dead > 0 and margin == 0 and not losses.isdisjoint(UNSATURATED)
    taints: Taint = "nothing" if covered else "robust"
    says = "Every sample has a gradient at the input."
    step = "Put a differentiable surrogate in the gradient's way (BPDA), or search without gradients: square."
    if dead:
        says = f"On {dead:.0%} of {len(few.y)} samples the gradient of cross-entropy is {why}"
        says += f", and that of the margin on {margin:.0%}."
        if margin < dead:
            step = "Climb a margin: loss = 'dlr' or 'margin'. " + ("The audit does so." if covered else step)
    return found(5, dead > 0, dead, "> 0", says, step, taints=taints, bill=bill, details={"margin": margin})


def _dead(context: Context, seen: Victim, few: Few, loss: str, bill: Bill) -> tuple[float, str]:
    """The share of samples without a usable gradient of a loss, and what is wrong with it in words."""
    noise = few.rng(context.seed).fork("slopes") if context.victim.traits.stochastic else None
    leaf = few.x.detach().clone().requires_grad_(True)
    bill.forwards += len(few.y)
    try:
        with torch.enable_grad():
            value = get_loss(loss).untargeted(seen.scores(leaf, noise), few.y).sum()
        (grad,) = torch.autograd.grad(value, leaf)
    except Exception as cause:  # whatever autograd meets in a foreign network
        return 1.0, f"an exception ({type(cause).__name__}: {str(cause)[:120]})"
    bill.backwards += len(few.y)
    flat = grad.flatten(1)
    broken = ~torch.isfinite(flat).all(1)
    zero = ~broken & (flat == 0).all(1)
    words = [w for w, some in (("zero", zero), ("not finite", broken)) if bool(some.any())]
    return float((zero | broken).double().mean()), " or ".join(words)


@check(6, "smooth-loss", "The loss changes little within a tenth of eps", "before")
def smooth_loss(context: Context) -> Finding | None:
    """Mean change of the margin at 100 random points within eps / 10 of each of 8 samples, over the mean margin.

    The margin and not cross-entropy, which changes by a fifth within eps / 10 = .8/255 on sound networks that are sure.
    """
    few, eps = right(context, NEIGHBOURHOODS), radius_of(context)
    space, bill = context.threat.space, Bill()
    if few is None or eps is None or not isinstance(space, Ball) or context.victim.traits.stochastic:
        return None
    near = type(space)(max(1.0, eps / 10) if space.name == "l0" else eps / 10).bound(few.x, context.victim.bounds)
    rng = few.rng(context.seed)
    with context.victim.at_rest():
        start = _margin_at(context, few.x, few.y, bill)
        if start is None:
            return None
        change = torch.zeros_like(start)
        for draw in range(NEIGHBOURS):
            there = _margin_at(context, near.sample(few.x, rng, ("neighbour", draw)), few.y, bill)
            change += (start if there is None else there - start).abs() / NEIGHBOURS
    measured = float(change.mean() / start.abs().mean().clamp(min=1e-12))
    largest = float((change / start.abs().clamp(min=1e-12)).max())
    return found(
        6,
        measured > ROUGH,
        measured,
        f"> {ROUGH:g}",
        f"Within a tenth of eps the margin changes by {measured:.2g} of itself on average.",
        "The loss surface is noisy: average gradients over random neighbours (eot for a random victim, vmi-fgsm's "
        "neighbours for a fixed one), or search without gradients: square.",
        bill=bill,
        details={"samples": len(few.y), "points": NEIGHBOURS, "largest": largest},
    )


def _margin_at(context: Context, x: Tensor, y: Tensor, bill: Bill) -> Tensor | None:
    bill.forwards += len(x)
    scores = context.victim.query(x).scores
    return None if scores is None else margins(scores, y).double()
