"""Auto-PGD: projected gradient ascent without a step size to choose, alone and towards each of the nearest classes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.gradient.auto_steps import ConjugateSteps, HalvingSteps, Peak, SparseSteps
from sparring.attacks.gradient.parts import gradient_through, off_limits, start_at
from sparring.core.attack import Attack
from sparring.core.balls import Ball, per_sample
from sparring.core.losses import Loss, get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# In L1 the climb begins in wider balls (Croce and Hein 2021): each one's radius over eps, and its share of the steps.
PHASES = {"l1": ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))}
# There, every so many steps, a forward asks whether the peak would do inside the true ball: most easy samples end here.
LOOK_EVERY = 5


@dataclass
class Ascent:
    """What a climb keeps per sample.

    Attributes:
        x: what the sample would end with: a point of the true ball, the peak once the climb is inside it.
        z: the current iterate.
        loss: the loss at the iterate before it.
        peak: the best point so far.
        rule: the state of the steps.
        order: classes to climb towards, int64 (m, j), or None.
    """

    x: Tensor
    z: Tensor
    loss: Tensor
    peak: Peak
    rule: HalvingSteps | SparseSteps
    order: Tensor | None


@dataclass(frozen=True)
class Climb:
    """How to climb: the settings that an attack of this family hands to `ascend`."""

    steps: int
    loss: Loss
    rho: float
    conjugate: bool = False

    def towards(self, s: Ascent, turn: int) -> Loss:
        """The loss itself, or its targeted form towards the class whose turn it is, whatever the goal."""
        if s.order is None:
            return self.loss
        target, targeted = s.order[:, turn], self.loss.targeted
        return Loss(
            self.loss.name,
            lambda scores, y: targeted(scores, y, target),
            lambda scores, y, _: targeted(scores, y, target),
        )

    def rule(self, ball: Ball, x: Tensor, start: Tensor, fresh: bool) -> HalvingSteps | SparseSteps:
        """The first state of the steps."""
        if ball.name == "l1":
            return SparseSteps.begin(ball, x, start, fresh)
        return (ConjugateSteps if self.conjugate else HalvingSteps).begin(ball, x, start)


def ascend(run: Run, how: Climb, order: Tensor | None = None, turn: int = 0) -> Tensor | None:
    """One climb from a random start, towards the class `order[:, turn]` of each sample where an order is given.

    Returns:
        The order of the samples still in play.
    """
    start, left = _start(run, turn), how.steps
    phases = PHASES.get(run.space.name, ((1.0, 1.0),))
    for phase, (factor, share) in enumerate(phases):
        steps = min(left, math.ceil(share * how.steps))
        left -= steps
        ball = _widened(run.space, factor)
        start = ball.project(run.x, start)
        rule = how.rule(ball, run.x, start, phase == 0)
        low = torch.full_like(rule.step, -torch.inf)
        peak = Peak(start, low, torch.zeros_like(start))
        inside = start if factor == 1.0 else run.x
        s = run.begin(Ascent(inside, start, low, peak, rule, order))
        _climb(run, s, how, steps, turn, factor)
        if not len(run.rows):
            break
        start, order = s.peak.x, s.order
    return order


def _climb(run: Run, s: Ascent, how: Climb, steps: int, turn: int, factor: float) -> None:
    """Steps inside a ball `factor` times as wide as the space; only in the space itself does a success count."""
    windows = s.rule.checkpoints(steps)
    for t in run.steps(steps):
        ball = _widened(run.space, factor)
        loss = how.towards(s, turn)
        g = run.gradient(s.z, loss) if factor == 1.0 else gradient_through(run, s.z, loss, off_limits)
        s.rule.watch(g.loss > s.loss)
        s.peak.rise(s.z, g.loss, g.grad)
        s.loss, grad = g.loss, g.grad
        if t in windows:
            back = per_sample(s.rule.judge(ball, run.x, s.peak, windows[t], how.rho), s.z)
            s.z, grad = torch.where(back, s.peak.x, s.z), torch.where(back, s.peak.grad, grad)
        if factor == 1.0:
            s.x = s.peak.x
        elif run.early_stop and t % LOOK_EVERY == LOOK_EVERY - 1:
            run.evaluate(run.space.project(run.x, s.peak.x))
        s.z = s.rule.move(ball, run.x, s.z, grad, first=t == 0)
    run.shrink()
    if factor == 1.0 and len(run.rows):  # the last iterate has only been reached, not judged
        scores = run.evaluate(s.z)
        s.peak.rise(s.z, how.towards(s, turn)(scores, run.y, run.goal))
        s.x = s.peak.x
        run.shrink()


def _start(run: Run, turn: int) -> Tensor:
    """The threat's own starting points, or random ones; in L1 noise that the first projection makes sparse."""
    if run.space.name == "l1" and run.threat.knowledge.starts is None:
        noise = run.rng.normal(tuple(run.x.shape[1:]), ("start", run.restart, turn))
        return run.x + run.width * noise.to(run.x.dtype)  # type: ignore[no-any-return]
    return start_at(run, random=True, stream=(turn,))


def _widened(ball: Ball, factor: float) -> Ball:
    return ball if factor == 1.0 else dataclasses.replace(ball, eps=ball.eps * factor)  # type: ignore[operator]


@attack(
    Card(
        name="apgd",
        title="Auto-PGD",
        paper="Croce and Hein 2020, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks, arXiv:2003.01690; in L1 Croce and Hein 2021, Mind the Box, arXiv:2103.01208",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="steps x (forward + backward) + 1 forward per restart, less what early stopping saves",
        caveats="Cross-entropy misses what a margin finds on some victims: 'apgd-t' on top, or loss='dlr'.",
        floor={"linf": 0.95, "l2": 0.95, "l1": 0.95},
        aliases=("auto-pgd", "apgd-ce"),
    )
)
@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD: momentum, a step size halved where progress stops, and the best point of each sample in the end.

    z = P(x_k + a * steepest(grad L)),  x_{k+1} = P(x_k + .75 (z - x_k) + .25 (x_k - x_{k-1})), a = 2 eps at first.

    Args:
        steps: gradient steps per restart.
        restarts: independent starts; later ones meet only the samples still unbroken.
        loss: what to climb: "ce", "dlr", "margin", "probability_margin", "squared_error".
        rho: a sample halves its step where the loss rose in no more than this share of the steps.
        precision: what the gradients are computed in (see `PGD`).
        relu_slope: the gradient that ReLUs pass where they are off; above 0 it is a surrogate's, which finds a way on networks
            that are flat around an input (Guo, Li and Chen 2020, arXiv:2012.03528, take 1).
    """

    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    rho: float = 0.75
    precision: str = "auto"
    relu_slope: float = 0.0

    def search(self, run: Run) -> None:
        """One climb, once per restart."""
        run.explore(self.precision)
        run.soften(self.relu_slope)
        ascend(run, Climb(self.steps, get_loss(self.loss), self.rho))


@attack(
    Card(
        name="acg",
        title="Auto conjugate gradient",
        paper="Yamamura et al. 2022, Diversified Adversarial Attacks Based on Conjugate Gradient Method, arXiv:2206.09628",
        access=Access.GRADIENTS,
        spaces=("linf", "l2"),
        cost="steps x (forward + backward) + 1 forward per restart, less what early stopping saves",
        caveats="Finds other examples than 'apgd' does: one after the other breaks more than either twice.",
        floor={"linf": 0.95, "l2": 0.95},
    )
)
@dataclass(frozen=True, kw_only=True)
class ACG(Attack):
    """Auto-PGD along conjugate directions instead of momentum.

    Args:
        steps: gradient steps per restart.
        restarts: independent starts; later ones meet only the samples still unbroken.
        loss: what to climb (see `APGD`).
        rho: as in `APGD`.
        precision: what the gradients are computed in (see `PGD`).
    """

    steps: int = 100
    restarts: int = 1
    loss: str = "margin"
    rho: float = 0.75
    precision: str = "auto"

    def search(self, run: Run) -> None:
        """One climb, once per restart."""
        run.explore(self.precision)
        ascend(run, Climb(self.steps, get_loss(self.loss), self.rho, conjugate=True))


@attack(
    Card(
        name="apgd-t",
        title="Auto-PGD towards each of the nearest classes",
        paper="Croce and Hein 2020, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks, arXiv:2003.01690; in L1 Croce and Hein 2021, Mind the Box, arXiv:2103.01208",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        goals=("untargeted",),
        cost="1 forward + classes x (steps x (forward + backward) + 1 forward), less what early stopping saves",
        caveats="Any wrong class counts, not the one aimed at; for a chosen class take 'apgd' with that target.",
        floor={"linf": 0.95, "l2": 0.95, "l1": 0.95},
    )
)
@dataclass(frozen=True, kw_only=True)
class APGDT(Attack):
    """Auto-PGD with a targeted loss towards the classes that score highest on the clean input, one after another.

    Args:
        steps: gradient steps per class.
        restarts: independent rounds over the classes; later ones meet only the samples still unbroken.
        classes: how many classes to try; the number of other classes where that is less.
        loss: what to climb, in its targeted form.
        rho: as in `APGD`.
        precision: what the gradients are computed in (see `PGD`).
    """

    steps: int = 100
    restarts: int = 1
    classes: int = 9
    loss: str = "dlr"
    rho: float = 0.75
    precision: str = "auto"

    def search(self, run: Run) -> None:
        """One climb per class on the samples still unbroken."""
        run.explore(self.precision)
        scores = run.evaluate(run.x)
        others = scores.scatter(1, run.y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
        classes = min(self.classes, scores.shape[1] - 1)
        order: Tensor | None = others[:, :classes]
        how = Climb(self.steps, get_loss(self.loss), self.rho)
        for turn in range(classes):
            order = ascend(run, how, order, turn)
            if not len(run.rows):
                return
