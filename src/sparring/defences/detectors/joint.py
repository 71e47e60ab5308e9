"""The joint attack: fool the network and pass its detector, by one climb that minds both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparring.attacks.gradient.parts import Climber, start_at, step_length
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import CapabilityError
from sparring.core.losses import get_loss, margin_of
from sparring.core.network import Victim, run_stage
from sparring.core.registry import Card, attack
from sparring.core.rng import KeyedRandom
from sparring.core.runner import CLAIM_SLACK, Run
from sparring.core.threat import Access
from sparring.defences.detectors.base import through

# The first step times the number of steps, in eps.
_FIRST_STEP = 20.0


@attack(
    Card(
        name="joint-pgd",
        title="PGD against a network and its detector",
        paper="Bryniarski et al. 2021, Evading Adversarial Example Detection Defenses with Orthogonal Projected Gradient "
        "Descent, arXiv:2106.15023",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="steps x (forward + backward of the network and of the detector) per restart",
        caveats="Made for victims that reject; on others it is PGD with a margin loss. The detector needs score(x) and "
        "threshold, and a gradient from the score to the input; where the score is flat, softened(x) gives a slope.",
        floor={"linf": 0.9, "l2": 0.9, "l1": 0.9},
    )
)
@dataclass(frozen=True, kw_only=True)
class JointPGD(Attack):
    """PGD that climbs the classifier's loss until the answer is wrong, and from there lowers the detector's score.

    With m the margin (positive once wrong) and e the detector's score, the step follows

        grad L(x) where m <= 0,  -grad e(x) / |grad e| + b * grad L(x) / |grad L| where m > 0.

    b is the next of `blends` at each restart: with 0 the answer barely stays wrong, and the score is all that counts;
    with more the input moves on into the wrong class, where many detectors see nothing odd. A success is wrong and
    accepted, which the run decides. Victims without a detector meet PGD.

    It needs a detector with `score(x)` and `threshold`, as those of `sparring.defences.detectors` are. One that also has
    `softened(x)` has that lowered instead: a distance of two sure answers is flat, however far from the threshold. Steps
    begin long and fall to nothing along a cosine, since the inputs that are wrong and accepted can be a thin shell.

    Args:
        steps: gradient steps per restart, each one forward and backward of the network and one of the detector.
        step_size: of the first step, in raw units; None takes 20 * eps / steps.
        restarts: independent starts.
        loss: what to climb (see `sparring.PGD`).
        blends: weights of the classifier's loss beside the detector's, one per restart, over and over.

    Paper:
        After Bryniarski et al. 2021, Evading Adversarial Example Detection Defenses with Orthogonal Projected Gradient
        Descent, arXiv:2106.15023 (the selective form), and the weighted sum of Carlini and Wagner 2017,
        arXiv:1705.07263.
    """

    steps: int = 100
    step_size: float | None = None
    restarts: int = 4
    loss: str = "margin"
    blends: tuple[float, ...] = (0.5, 0.0, 1.0, 2.0)

    def search(self, run: Run) -> None:
        """Climb from a random start."""
        victim = run.victim
        detector = getattr(victim, "detector", None)
        if detector is not None and not (hasattr(detector, "score") and hasattr(detector, "threshold")):
            raise CapabilityError(
                f"the detector of {victim.name!r} is a {type(detector).__name__} without score(x) and threshold, so "
                "there is nothing to climb; attack it by labels"
            )
        loss, blend = get_loss(self.loss), self.blends[run.restart % len(self.blends)]
        s = run.begin(Climber(start_at(run, random=True)))
        for t in run.steps(self.steps):
            g = run.gradient(s.x, loss)
            d = g.grad
            if detector is not None and isinstance(victim, Victim) and run.access is Access.GRADIENTS:
                noise = run.rng.fork(("detector", run.restart, t)) if victim.traits.stochastic else None
                both = blend * _unit(d) - _unit(excess_gradient(victim, s.x, noise))
                wrong = per_sample(margin_of(g.scores, run.y, run.goal) > CLAIM_SLACK, s.x)
                d = torch.where(wrong, both, d)
            length = step_length(run, self.step_size, _FIRST_STEP / max(1, self.steps))
            fallen = 0.5 + 0.5 * math.cos(math.pi * t / self.steps)
            s.x = run.space.project(run.x, s.x + fallen * length * run.space.steepest(d, s.x))


def has_slope(victim: Victim, x: Tensor) -> bool:
    """Whether the joint attack can climb: the detector has a score and a threshold, and the score a gradient at x."""
    if not (hasattr(victim.detector, "score") and hasattr(victim.detector, "threshold")):
        return False
    try:
        with victim.at_rest():
            excess_gradient(victim, x)
    except CapabilityError:
        return False
    return True


def excess_gradient(victim: Victim, x: Tensor, noise: KeyedRandom | None = None) -> Tensor:
    """The gradient of the detector's score, softened where it can be, in raw inputs, (n, ...), through surrogates.

    A view that averages its gradients over draws (EOT) has this one averaged over as many.
    """
    draws = int(getattr(victim, "eot", 1))
    total = torch.zeros_like(x)
    for draw in range(draws):
        keyed = noise if noise is None or draws == 1 else noise.fork(("draw", draw))
        total += _excess_gradient(victim, x, keyed)
    return torch.nan_to_num(total / draws, nan=0.0, posinf=0.0, neginf=0.0)


def _excess_gradient(victim: Victim, x: Tensor, noise: KeyedRandom | None) -> Tensor:
    detector: Any = victim.detector
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        seen = leaf
        for depth, stage in enumerate(victim.stages):
            keyed = noise is not None and getattr(stage, "keyed", False)
            seen = run_stage(stage, seen, noise, depth) if keyed else through(stage, seen)
        score = getattr(detector, "softened", detector.score)(seen).sum()
    if not score.requires_grad:
        raise CapabilityError(f"no gradient reaches the input from the score of {type(detector).__name__}")
    (grad,) = torch.autograd.grad(score, leaf)
    return grad


def _unit(d: Tensor) -> Tensor:
    """Each sample's vector at length 1; zero stays zero."""
    return d / per_sample(d.flatten(1).norm(dim=1).clamp(min=torch.finfo(d.dtype).tiny), d)
