"""The check by planting: an adversarial input is put near each sample, and the audit's own attacks must find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparring.core.balls import Ball, per_sample
from sparring.core.network import Victim
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom
from sparring.core.threat import Untargeted
from sparring.core.victim import query_in_batches
from sparring.evaluation.checks.own import assail, attack_of, shortened, white_box
from sparring.evaluation.checks.parts import Bill, Few, afford, found, margins, radius_of, right
from sparring.evaluation.findings import Context, Finding, check
from sparring.evaluation.plan import Step
from sparring.evaluation.units import view_of

INNER, OUTER = 48, 8  # points drawn inside each ball, and candidates on its surface
INSIDE = 0.95  # of eps: how far out the inner points reach
HEIGHT = 0.9  # where the threshold lies between the best inner point and the planted one
# Of the mean variance of a score. Scores that hardly vary inside the ball would otherwise rule the direction, and what
# stands out there is a kink that no slope leads to: at 1e-6, 7 of 250 points planted on a sound network were not found.
RIDGE = 0.1
FOUND = 0.95
FEWEST = 8


@dataclass(frozen=True)
class Head:
    """A decision on class scores s: s . weight - bias > 0 means adversarial.

    Attributes:
        weight: (k,).
        bias: a number.
        chance: the share of other random points on the surface that it calls adversarial.
    """

    weight: Tensor
    bias: Tensor
    chance: float


class Planted(Victim):
    """A victim whose last step is another decision, of two classes: 0 near the sample, 1 at the planted input.

    Args:
        victim: whose scores are decided upon, through every stage and with the gradients that it has.
        head: the decision.
    """

    def __init__(self, victim: Victim, head: Head) -> None:
        self.__dict__.update(victim.__dict__)
        self._inner, self._head = victim, head
        self.labels, self.classes, self.detector, self._inspected = None, 2, None, True

    def scores(self, x: Tensor, noise: KeyedRandom | None = None) -> Tensor:
        """Two scores, (n, 2)."""
        return self._decide(self._inner.scores(x, noise))

    def query(self, x: Tensor, noise: KeyedRandom | None = None) -> Prediction:  # type: ignore[override]
        """The answer of the other decision to the true scores."""
        scores = self._inner.query(x, noise).scores
        if scores is None:
            raise TypeError(f"{self.name!r} answers no scores")
        return Prediction.of(self._decide(scores))

    def _decide(self, scores: Tensor) -> Tensor:
        z = scores @ self._head.weight.to(scores) - self._head.bias.to(scores)
        return torch.stack([-0.5 * z, 0.5 * z], dim=1)


@check(20, "planted", "The attacks find an adversarial input that certainly exists")
def planted(context: Context) -> Finding | None:
    """The share of planted adversarial inputs that the audit's white-box attacks find, one sample at a time.

    For each sample a linear decision on the victim's own scores calls 48 points inside the ball and the sample itself
    normal, and one point on the ball's surface adversarial; its margin at the sample is the victim's own (binarisation
    test, Zimmermann et al. 2022, Increasing Confidence in Adversarial Robustness Evaluations, arXiv:2206.13991).
    """
    steps, bill = white_box(context)[:3], Bill()
    few = right(context, afford(context, 100.0, least=16))
    if not steps or few is None or not radius_of(context) or context.victim.traits.stochastic:
        return None
    heads = _plant(context, few, bill)
    index = [i for i, head in enumerate(heads) if head is not None]
    if len(index) < min(FEWEST, len(few.y)):
        says = f"The scores of only {len(index)} of {len(few.y)} samples can be parted inside the ball."
        return found(20, None, None, f"< {FOUND:g}", says, bill=bill, details={"planted": len(index)})
    hits = sum(_find(context, steps, few.take(torch.tensor([i])), heads[i], bill) for i in index)
    rate = hits / len(index)
    chance = sum(head.chance for head in heads if head is not None) / len(index)
    return found(
        20,
        rate < FOUND,
        rate,
        f"< {FOUND:g}",
        f"The attacks find {hits} of {len(index)} adversarial inputs that were planted inside the ball.",
        "The attacks fail their unit test on this victim: another loss (dlr, margin), more steps, BPDA, or square.",
        bill=bill,
        details={"planted": len(index), "found": hits, "samples": len(few.y), "by_chance": chance},
    )


def _find(context: Context, steps: list[Step], few: Few, head: Head | None, bill: Bill) -> bool:
    """Whether any of the audit's white-box attacks finds what was planted at this one sample."""
    if head is None:
        return False
    zero = few._replace(y=torch.zeros_like(few.y))
    for step in steps:
        view = context.victim if step.spec is None else view_of(context.victim, step.spec)
        if not isinstance(view, Victim):
            continue
        attack = shortened(attack_of(step), steps=100, restarts=1, classes=1)
        result = assail(context, step, zero, bill, attack=attack, victim=Planted(view, head), goal=Untargeted())
        if bool(result.succeeded.all()):
            return True
    return False


def _plant(context: Context, few: Few, bill: Bill) -> list[Head | None]:
    """One decision for each sample; None where no surface point stands out from the inner ones."""
    space = context.threat.space
    if not isinstance(space, Ball):
        return [None] * len(few.y)
    space = space.take(few.positions).bound(few.x, context.victim.bounds)
    inner = type(space)(space.eps * INSIDE).bound(few.x, context.victim.bounds)  # type: ignore[operator]
    rng = few.rng(context.seed)
    near = [few.x, *(inner.sample(few.x, rng, ("inner", i)) for i in range(INNER))]
    far = [_surface(space, few.x, rng, i) for i in range(OUTER)]
    size = context.batch_size or 64
    with context.victim.at_rest():
        scores = [query_in_batches(context.victim, x, size).scores for x in near + far]
    bill.forwards += len(scores) * len(few.y)
    if any(s is None for s in scores):
        return [None] * len(few.y)
    table = torch.stack([s.double() for s in scores if s is not None], dim=1)  # (m, points, k)
    own = margins(table[:, 0], few.y)
    return [_head(points[: len(near)], points[len(near) :], margin) for points, margin in zip(table, own, strict=True)]


def _surface(space: Ball, x: Tensor, rng: KeyedRandom, i: int) -> Tensor:
    """A point on the surface of each ball, a random corner in Linf and a random direction elsewhere; (m, ...)."""
    eps: Any = space.eps
    if space.name in ("linf", "l2"):
        toward = space.steepest(rng.normal(tuple(x.shape[1:]), ("surface", i)).to(x.dtype))
    else:
        toward = space.sample(x, rng, ("surface", i)) - x
        toward = toward / per_sample(space.distance(toward).clamp(min=1e-12), x) if space.name == "l1" else toward
        eps = eps if space.name == "l1" else torch.ones_like(eps)
    return space.snap(x, space.project(x, x + per_sample(eps, x) * toward))


def _head(near: Tensor, far: Tensor, margin: Tensor) -> Head | None:
    """A decision that parts the most outlying of the far points, (b, k), from all near ones, (a, k), in scores.

    The direction is Fisher's, the inverse covariance of the near points (with a ridge) times the difference; the
    threshold lies just below the planted point; the scale gives the sample itself, near[0], the victim's own margin.
    """
    centre = near.mean(0)
    spread = near - centre
    covariance = spread.T @ spread / len(near)
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=near.dtype, device=near.device)
    if not bool(torch.isfinite(covariance).all()) or float(covariance.diagonal().sum()) <= 0:
        return None
    weights = torch.linalg.solve(covariance + ridge, (far - centre).T).T  # (b, k)
    top = (near @ weights.T).amax(0)
    gap = (far * weights).sum(1) - top
    width = (top - centre @ weights.T).clamp(min=torch.finfo(near.dtype).tiny)
    best = int((gap / width).argmax())
    if not bool(gap[best] > 0.05 * width[best]):
        return None
    weight = weights[best]
    bias = top[best] + HEIGHT * gap[best]
    below = bias - near[0] @ weight
    scale = margin.clamp(min=1e-3) / below
    others = torch.cat([far[:best], far[best + 1 :]]) @ weight > bias
    return Head(weight * scale, bias * scale, float(others.double().mean()))
