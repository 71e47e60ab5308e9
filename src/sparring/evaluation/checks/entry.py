"""Checks at the door: is the victim right at all on these inputs and labels, and is eps in the units of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparring.core.network import Victim
from sparring.core.victim import query_in_batches
from sparring.evaluation.checks.parts import Bill, Few, anyone, chance, found, largest_radius, radius_of, standard_error
from sparring.evaluation.findings import Context, Finding, check

# What models are trained with and users forget, by number of channels.
STATISTICS: dict[int, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    3: {
        "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    },
    1: {"MNIST's": ((0.1307,), (0.3081,))},
}
GAIN = 0.05  # another reading must be right on so many more of the samples, beside three standard errors
PROBES = 128
NARROW = 0.02  # of the bounds' width: pictures that were divided by 255 twice fill .4% of it
LEVEL = 1 / 255  # of the bounds' width; a smaller eps in a domain wider than WIDE is counted in the wrong unit
WIDE = 10.0


class Reading(NamedTuple):
    """Another way to hand raw inputs to the network: its name, how to make it the victim's own, and the map."""

    name: str
    cure: str
    of: Callable[[Tensor], Tensor]


@check(0, "clean-accuracy", "The victim beats chance, and no other reading of its inputs is better", "before")
def clean_accuracy(context: Context) -> Finding:
    """Clean accuracy against guessing; then, on some samples, other normalisations, channel orders and scales.

    A doubled or missing normalisation often leaves a network above chance, but undoing it brings the accuracy back.
    """
    samples = context.evidence.samples
    n, bill = len(samples["correct"]), Bill()
    accuracy, guess = float(samples["correct"].mean()), chance(context)
    line = guess + 3 * standard_error(guess, n)
    rates: dict[str, float] = {}
    better = _better_reading(context, bill, rates) if accuracy + GAIN <= 1 else None
    relabelled = _matched(samples["label"], samples["predicted"])
    says = f"The victim is right on {accuracy:.1%} of {n:,} clean samples; guessing gives {guess:.1%}."
    step = "Look at the normalisation (missing or doubled), the order of the channels and the order of the labels."
    if better is not None:
        says += f" Of {int(rates['samples'])} samples it reads {rates[better.name]:.0%} rightly with {better.name}, "
        says += f"and {rates['as given']:.0%} as they are given."
        step = better.cure
    elif relabelled > max(0.5, accuracy + 0.25) and n * guess >= 4:
        step = f"With the classes renumbered {relabelled:.0%} are right: put the labels into the victim's own order."
    return found(
        0,
        accuracy <= line or better is not None,
        accuracy,
        f"<= {line:.3f} (chance + 3 SE), or another reading gains > {GAIN:.0%} and > 3 SE",
        says,
        step,
        taints="any",
        bill=bill,
        details={"chance": guess, "relabelled": relabelled, "readings": rates},
    )


def _better_reading(context: Context, bill: Bill, rates: dict[str, float]) -> Reading | None:
    """The reading that beats the given one beyond doubt, if any; the accuracy of each goes into `rates`."""
    victim, few = context.victim, anyone(context, PROBES)
    if few is None or not isinstance(victim, Victim) or victim.stages or few.x.ndim != 4:
        return None
    best, lead = None, GAIN
    line = chance(context) + 3 * standard_error(chance(context), len(few.y))
    with victim.at_rest():
        given = _hits(context, few, few.x, bill)
        rates |= {"samples": float(len(few.y)), "as given": float(given.float().mean())}
        for reading in _readings(victim, few.x):
            hits = _hits(context, few, reading.of(few.x), bill)
            rates[reading.name] = float(hits.float().mean())
            won, lost = int((hits & ~given).sum()), int((given & ~hits).sum())
            gain = (won - lost) / len(hits)
            if rates[reading.name] > line and gain > lead and won - lost > 3 * math.sqrt(won + lost):
                best, lead = reading, gain
    return best


def _hits(context: Context, few: Few, x: Tensor, bill: Bill) -> Tensor:
    bill.forwards += len(x)
    noise = few.rng(context.seed).fork("readings") if context.victim.traits.stochastic else None
    return query_in_batches(context.victim, x, context.batch_size or 64, noise).labels == few.y


def _readings(victim: Victim, x: Tensor) -> list[Reading]:
    """Other ways to hand pictures (n, c, h, w) to the network, each as a map of what the victim is given."""
    lo, width = victim.bounds.like(x).lo, victim.bounds.like(x).hi - victim.bounds.like(x).lo
    ways: list[Reading] = []
    if victim.mean is not None and victim.std is not None:
        mean, std = (t.to(x).reshape(-1, 1, 1) for t in (victim.mean, victim.std))
        cure = "The network normalises by itself: leave out mean= and std= of the victim."
        ways.append(Reading("the victim's own normalisation left out", cure, lambda z: z * std + mean))
    else:
        scales = {f"{name} normalisation": value for name, value in STATISTICS.get(x.shape[1], {}).items()}
        scales |= {"pixels in [-1, 1]": ((0.5,), (0.5,)), "pixels in [0, 255]": ((0.0,), (1 / 255,))}
        for name, (m, s) in scales.items():
            centre, spread = (torch.tensor(v, dtype=x.dtype, device=x.device).reshape(-1, 1, 1) for v in (m, s))
            told = f"mean={m}, std={tuple(round(v, 4) for v in s)}"
            cure = f"Normalise inside the victim: for pixels in [0, 1] with {told}."
            ways.append(Reading(name, cure, lambda z, c=centre, d=spread: ((z - lo) / width - c) / d))  # type: ignore[misc]
    if x.shape[1] == 3:
        cure = "Reverse the order of the channels (BGR and RGB) inside the network or in the data."
        ways.append(Reading("the channels reversed", cure, lambda z: z.flip(1)))
    if x.shape[2] == x.shape[3]:
        cure = "Exchange height and width in the data."
        ways.append(Reading("height and width exchanged", cure, lambda z: z.transpose(2, 3)))
    return ways


def _matched(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """The accuracy under the best renumbering of the classes (a maximum matching of the confusion matrix)."""
    from scipy.optimize import linear_sum_assignment

    known = (labels >= 0) & (predicted >= 0)
    if not known.any():
        return 0.0
    _, rows = np.unique(labels[known], return_inverse=True)
    _, columns = np.unique(predicted[known], return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(labels))


@check(2, "units", "Inputs are raw and eps is in their units", "before")
def units(context: Context) -> Finding | None:
    """Signs that inputs are normalised, or that eps and the inputs are counted in different units.

    Pixels that may be negative; inputs that fill a fiftieth of the bounds; an eps that reaches across the whole
    domain (8 for 8/255); an eps below one level of pixels that count up to 255 (8/255 for 8).
    """
    bounds, few = context.victim.bounds, anyone(context, PROBES)
    if few is None or bounds is None:
        return None
    box = bounds.like(few.x)
    width, low, high = float((box.hi - box.lo).max()), float(few.x.min()), float(few.x.max())
    picture = few.x.ndim == 4 and few.x.shape[1] in (1, 3, 4)
    radius, limit = radius_of(context), largest_radius(context, few)
    share = None if radius is None or not limit else radius / limit
    signs: list[str] = []
    if picture and float(box.lo.min()) < 0:
        signs.append(f"pixels from {bounds} may be negative: they are normalised, and eps is not in pixels")
    if high - low < NARROW * width:
        signs.append(f"the inputs fill {(high - low) / width:.2%} of {bounds}, as if divided by 255 once too often")
    if share is not None and share >= 1:
        signs.append(f"eps {radius:g} reaches across the whole domain {bounds}; {radius:g}/255 may be meant")
    if radius and picture and width > WIDE and radius < LEVEL * width and context.threat.space.name == "linf":
        signs.append(f"eps {radius:g} is less than one level of {bounds}; {radius * width:g} may be meant")
    says = "; ".join(signs) or f"the inputs span [{low:.3g}, {high:.3g}] of {bounds}, and eps fits them"
    return found(
        2,
        bool(signs),
        float(len(signs)),
        "> 0 signs",
        says[0].upper() + says[1:] + ".",
        "Give the victim raw inputs and its own bounds, with mean= and std= where it needs them, and count eps like them.",
        taints="any",
        details={"low": low, "high": high, "mean": float(few.x.mean()), "std": float(few.x.std()), "eps_share": share},
    )
