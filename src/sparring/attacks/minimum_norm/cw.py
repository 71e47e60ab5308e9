"""Carlini and Wagner's attacks in L2 and Linf: a hinge on the margin against the distance, Adam, and a search for the balance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, Adam, Rounds, clamp, dual, norm, reached, starts
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Gradient, Run
from sparring.core.threat import Access

# In Linf a success at distance d leaves changes up to this share of d free of cost.
FREE = 0.9
# tanh never reaches the bounds: an input on them starts so far out, as a share of the half width.
INSIDE = 0.99
# The step size, as a share of the mean change per element.
PACE = 0.3
GROW = 3.0


@dataclass
class Descent:
    """What the descent keeps per sample; each sample is in a round and at a step of its own.

    Attributes:
        x: the current point.
        w: the variable that is optimised: the point itself, or its inverse hyperbolic tangent.
        adam: moments of the gradient with respect to w.
        rounds: the constant and where the sample is.
        tau: in Linf, the change per element that costs nothing.
        pace: the step size at the beginning of this round.
    """

    x: Tensor
    w: Tensor
    adam: Adam
    rounds: Rounds
    tau: Tensor
    pace: Tensor


class Pixels:
    """The variable is the point, clipped to the bounds."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def variable(self, x: Tensor) -> Tensor:
        """w for a point."""
        return x

    def point(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The point for w, and w brought back where it left the bounds."""
        x = clamp(self.run, w)
        return x, x

    def pull(self, slope: Tensor, x: Tensor) -> Tensor:
        """The slope with respect to w, from the one with respect to the point."""
        return slope

    def pace(self, change: Tensor) -> Tensor:
        """The step in w for a change per element, (m,)."""
        return change


class Tanh(Pixels):
    """x = mid + half tanh(w): every w is inside the bounds."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        bounds = run.space.bounds
        if bounds is None:
            raise InputError(
                "variables='tanh' needs the victim's bounds, which it does not declare; use variables='pixels'"
            )
        self.mid, self.half = (bounds.hi + bounds.lo) / 2, (bounds.hi - bounds.lo) / 2

    def variable(self, x: Tensor) -> Tensor:
        """w for a point."""
        return torch.atanh((x - self.mid) / self.half * INSIDE)

    def point(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The point for w, and w."""
        return self.mid + self.half * w.tanh(), w

    def pull(self, slope: Tensor, x: Tensor) -> Tensor:
        """The chain rule: dx/dw = half (1 - tanh(w)^2)."""
        scale: Tensor = self.half - (x - self.mid).square() / self.half
        return slope * scale

    def pace(self, change: Tensor) -> Tensor:
        """The step in w for a change per element at mid, (m,)."""
        half: Tensor = self.half.mean()
        return change / half


@attack(
    Card(
        name="cw",
        title="Carlini and Wagner",
        paper="Carlini and Wagner 2017, Towards Evaluating the Robustness of Neural Networks, arXiv:1608.04644",
        access=Access.GRADIENTS,
        spaces=("l2", "linf"),
        minimal=True,
        cost="at most rounds x steps x (forward + backward); rounds that stall end early",
        caveats="The first rounds are spent on finding a constant that works at all. Unlike the paper's, rounds begin at the best "
        "point so far, clip at the bounds, and step in proportion to the distance: variables='tanh', step_size=0.01 is nearer.",
        floor={"l2": 0.42, "linf": 0.1},
        aliases=("carlini-wagner",),
    )
)
@dataclass(frozen=True, kw_only=True)
class CW(Attack):
    """Carlini and Wagner: minimise D(delta) + c max(confidence - margin, 0) with Adam, and bisect c.

    D is |delta|^2 in L2, and in Linf the sum of max(|delta_i| - tau, 0), where tau follows 0.9 of the distance of successes.
    A round has one c. It begins with fresh moments at the best success so far (the input, where there is none) and ends after
    `steps` steps or when it stalls; every sample goes through its rounds at its own speed.

    Args:
        steps: gradient steps per round.
        rounds: values of c tried: tenfold until one succeeds, then by bisection.
        step_size: Adam's rate in the units of the variables; it anneals to a hundredth over a round. None takes a fifth of the
            change per element that is expected: of the best distance so far, before one of the distance to the linearised boundary.
        const: the first c, where changes count in units of the victim's range.
        confidence: the margin wanted, in units of the scores.
        variables: "pixels" optimises the point and clips it to the bounds; "tanh" optimises w with x = mid + half tanh(w), which
            hardly moves elements that lie on the bounds.
        abort_early: end a round when its objective stalls.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.CW(steps=50)(sp.Victim(net), x, None, sp.L2())
        >>> result.median_distance > 0
        True
    """

    steps: int = 1000
    rounds: int = 9
    step_size: float | None = None
    const: float = 1e-3
    confidence: float = 0.0
    variables: str = "pixels"
    abort_early: bool = True

    def search(self, run: Run) -> None:
        """Descend, round after round."""
        loss, linf = get_loss("margin"), math.isinf(run.space.p)
        kinds = {"pixels": Pixels, "tanh": Tanh}
        if self.variables not in kinds:
            raise InputError(f"variables is {self.variables!r}; it must be 'pixels' or 'tanh'")
        box = kinds[self.variables](run)
        s = run.begin(self._start(run, box))
        for t in run.steps(self.steps * self.rounds):
            g = run.gradient(s.x, loss)
            if t == 0:
                self._first_pace(run, s, box, g)
            delta = s.x - run.x
            gap = (self.confidence - g.loss).clamp(min=0.0)
            success = reached(run, g.scores) & (gap == 0)
            if linf:
                s.tau = torch.where(success, torch.minimum(s.tau, FREE * run.space.distance(delta)), s.tau)
            cost, slope = excess(delta, s.tau) if linf else (delta.flatten(1).square().sum(1), 2.0 * delta)
            slope -= g.grad * per_sample(s.rounds.c * (gap > 0), delta)
            rate = s.pace * (0.505 + 0.495 * torch.cos(math.pi / self.steps * s.rounds.age))
            s.w = s.w + s.adam.step(box.pull(slope, s.x), 1.0).mul_(per_sample(rate, delta))
            s.x, s.w = box.point(s.w)
            over = s.rounds.advance(cost + s.rounds.c * gap, success, self.steps, not self.abort_early)
            if bool(over.any()):
                self._next_round(run, s, box, over)

    def _start(self, run: Run, box: Pixels) -> Descent:
        """Round 0, step 0, at the start."""
        w = box.variable(starts(run))
        x, w = box.point(w)
        zero = x.new_zeros(len(x))
        const = self.const * run.width ** (1 if math.isinf(run.space.p) else 2)
        return Descent(x, w, Adam.start(w), Rounds.start(w, const), zero + torch.inf, zero)

    def _first_pace(self, run: Run, s: Descent, box: Pixels, g: Gradient) -> None:
        """Set tau and the step by the distance to the linearised boundary, where nothing better is known yet."""
        distance = g.loss.abs() / norm(g.grad, dual(run.space.p)).clamp(min=TINY)
        s.tau = distance
        s.pace = self._pace(run, box, distance)

    def _pace(self, run: Run, box: Pixels, distance: Tensor) -> Tensor:
        """The first step of a round, (m,)."""
        if self.step_size is not None:
            return torch.full_like(distance, self.step_size)
        spread = 1.0 if math.isinf(run.space.p) else math.sqrt(run.x[0].numel())
        return box.pace(PACE * distance / spread)

    def _next_round(self, run: Run, s: Descent, box: Pixels, over: Tensor) -> None:
        """Begin a round at the best success so far, where one is `over`."""
        best, distance = run.best()
        known, index = torch.isfinite(distance), over.nonzero().squeeze(1)
        s.tau = torch.where(over & known, FREE * distance, s.tau)
        s.pace = torch.where(over, torch.where(known, self._pace(run, box, distance), GROW * s.pace), s.pace)
        s.w[index] = box.variable(best[index])
        s.x, s.w = box.point(s.w)
        s.adam.reset(index)
        run.give_up(s.rounds.done >= self.rounds)


def excess(delta: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of max(|delta_i| - tau, 0), (m,), and its slope, shaped like delta."""
    beyond = (delta.abs() - per_sample(tau, delta)).clamp_(min=0.0)
    return beyond.flatten(1).sum(1), delta.sign().mul_(beyond.sign())
