"""EAD: Carlini and Wagner's balance with an elastic net for the distance, by accelerated shrinkage; L1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, Rounds, clamp, norm, reached, starts
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.outputs import Prediction
from sparring.core.registry import Card, attack
from sparring.core.runner import CLAIM_SLACK, Gradient, Run
from sparring.core.threat import Access

# The first constant, in units of the least one at which a linear victim would make any element move.
FIRST = 3.0
# The step size decays over a round to this share.
DECAY = 0.01


@dataclass
class Descent:
    """What the descent keeps per sample; each sample is in a round and at a step of its own.

    Attributes:
        x: the extrapolated point, where the gradient is taken.
        shrunk: the point before the extrapolation.
        rounds: the constant and where the sample is.
        chosen: the success with the least elastic net.
        least: that elastic net, infinite before a success, (m,).
    """

    x: Tensor
    shrunk: Tensor
    rounds: Rounds
    chosen: Tensor
    least: Tensor


@attack(
    Card(
        name="ead",
        title="Elastic-net attack",
        paper="Chen et al. 2018, EAD: Elastic-Net Attacks to Deep Neural Networks via Adversarial Examples, arXiv:1709.04114",
        access=Access.GRADIENTS,
        spaces=("l1",),
        minimal=True,
        cost="at most rounds x steps x (forward + backward); rounds that stall end early",
        caveats="FMN and ALMA want a tenth of the steps; EAD is for comparison with the literature. Unlike the paper's, "
        "rounds begin at the best point so far and the threshold follows the step size.",
        floor={"l1": 0.8},
        aliases=("elastic-net",),
    )
)
@dataclass(frozen=True, kw_only=True)
class EAD(Attack):
    """Elastic net: minimise |delta|^2 + beta |delta|_1 + c max(confidence - margin, 0) by FISTA, and bisect c.

    A step descends on the smooth part from an extrapolated point and shrinks the change element by element, by step_size * beta.
    A round has one c. It begins at the best success so far (the input, where there is none); see `CW`. Lengths are in units of
    the bounds' width.

    Args:
        steps: gradient steps per round.
        rounds: values of c tried: tenfold until one succeeds, then by bisection.
        step_size: of the descent; it decays to a hundredth over a round.
        beta: the weight of the L1 part. The paper shrinks by its beta whole: 0.01 there, at a step of 0.01, is 1 here.
        const: the first c; None takes a few times the least that would move a linear victim's input at all.
        confidence: the margin wanted, in units of the scores.
        rule: which success is kept: "l1" the nearest in L1, "en" the one with the least |delta|^2 + beta |delta|_1. Where the
            threat has a limit on L1, the first success within it.
        abort_early: end a round when its objective stalls.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.EAD(steps=50)(sp.Victim(net), x, None, sp.L1())
        >>> result.median_distance > 0
        True
    """

    steps: int = 1000
    rounds: int = 9
    step_size: float = 0.01
    beta: float = 2.0
    const: float | None = None
    confidence: float = 0.0
    rule: str = "l1"
    abort_early: bool = True

    def search(self, run: Run) -> None:
        """Descend and shrink, round after round."""
        if self.rule not in ("l1", "en"):
            raise InputError(f"rule is {self.rule!r}; it must be 'l1' or 'en'")
        loss, scale, x = get_loss("margin"), run.width, starts(run)
        far = torch.full_like(x.flatten(1)[:, 0], torch.inf)
        s = run.begin(Descent(x, x, Rounds.start(x, self.const or 0.0), x, far))
        for t in run.steps(self.steps * self.rounds):
            g = run.gradient(s.x, loss)
            if t == 0 and self.const is None:
                s.rounds.c = FIRST * self.beta / (scale * norm(g.grad, torch.inf)).clamp(min=TINY)
            delta = (s.x - run.x) / scale
            if self.rule == "en" and run.space.limit is None:
                self._choose(run, s, g)
            gap = (self.confidence - g.loss).clamp(min=0.0)
            success = reached(run, g.scores) & (gap == 0)
            objective = self._elastic_net(delta) + s.rounds.c * gap
            slope = 2.0 * delta - g.grad * per_sample(scale * s.rounds.c * (gap > 0), delta)
            rate = per_sample(self.step_size * (1.0 - (1.0 - DECAY) * s.rounds.age / self.steps), delta)
            moved = delta - rate * slope
            shrunk = clamp(run, run.x + scale * moved.sign() * (moved.abs() - self.beta * rate).clamp(min=0.0))
            momentum = per_sample(s.rounds.age / (s.rounds.age + 3.0), delta)
            s.x, s.shrunk = clamp(run, shrunk + momentum * (shrunk - s.shrunk)), shrunk
            over = s.rounds.advance(objective, success, self.steps, not self.abort_early)
            if bool(over.any()):
                best, _ = run.best()
                s.x = torch.where(per_sample(over, best), best, s.x)
                s.shrunk = torch.where(per_sample(over, best), best, s.shrunk)
                run.give_up(s.rounds.done >= self.rounds)

    def _elastic_net(self, delta: Tensor) -> Tensor:
        """|delta|^2 + beta |delta|_1 of each change in units of the width, (m,)."""
        return delta.flatten(1).square().sum(1) + self.beta * norm(delta, 1.0)

    def _choose(self, run: Run, s: Descent, g: Gradient) -> None:
        """Make the success with the least elastic net the one on record, though another be nearer in L1."""
        point = run.space.snap(run.x, s.x)
        cost = self._elastic_net((point - run.x) / run.width)
        better = run.goal.achieved(Prediction.of(g.scores), run.y, CLAIM_SLACK) & (cost < s.least)
        s.least = torch.where(better, cost, s.least)
        s.chosen = torch.where(per_sample(better, point), point, s.chosen)
        index = torch.isfinite(s.least).nonzero().squeeze(1)
        cost = run.space.take(index).cost(run.x[index], s.chosen[index])
        run.ledger.overrule(run.rows[index], s.chosen[index], cost)
