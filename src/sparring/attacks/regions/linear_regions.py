"""Searching a ReLU network's linear regions: climbs by gradient, and integer programmes that cross what they found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.regions.pieces import Chain
from sparring.attacks.regions.programme import best_shift
from sparring.core.attack import Attack
from sparring.core.balls import Ball, per_sample
from sparring.core.errors import CapabilityError, ThreatError
from sparring.core.outputs import Prediction
from sparring.core.registry import Card, attack
from sparring.core.rng import KeyedRandom
from sparring.core.runner import CLAIM_SLACK, Run
from sparring.core.threat import Access, Goal, Targeted, Untargeted, rival_margin

# The first step of a climb over eps: of those from anywhere, and of those from around the best point.
FIRST_STEP, LATER_STEP = 1.0, 0.7
MOMENTUM = 0.75
# The first climbs go towards so many of the nearest classes, the later ones towards the best one's.
RIVALS = 4
# Units nearest to their kink at the best point are free in every programme, beside those that the parents differ in.
NEAREST = 10
# Elements in which the parents differ by less, over eps, stay where they are.
APART = 0.05


@dataclass
class Rows:
    """The samples' points; the best one of each that has been searched."""

    x: Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample's search: x (1, ...) in the box lo..hi, its label (1,), its goal, and what it costs."""

    chain: Chain
    x: Tensor
    lo: Tensor
    hi: Tensor
    y: Tensor
    goal: Goal
    space: Ball
    rng: KeyedRandom

    @classmethod
    def first(cls, run: Run, chain: Chain) -> Sample:
        """The first of the samples still in play."""
        index = torch.zeros(1, dtype=torch.int64, device=run.rows.device)
        x, space = run.x[:1], run.space.take(index)
        lo, hi = (space.project(x, torch.full_like(x, end)) for end in (-torch.inf, torch.inf))
        return cls(chain, x, lo, hi, run.y[:1], run.goal.take(index), space, run.rng.take(index))

    def aims(self, point: Tensor, count: int) -> Tensor:
        """The classes to climb towards from `point`, (1, ...): the target, or the `count` nearest rivals, nearest first."""
        if isinstance(self.goal, Targeted):
            return self.goal.of(self.y)
        with torch.no_grad():
            scores = self.chain.scores(point).scatter(1, self.y[:, None], -torch.inf)
        return scores[0].topk(min(count, scores.shape[1] - 1)).indices

    def leads(self, scores: Tensor, aims: Tensor) -> Tensor:
        """By how much each row's aim leads: the label where any other class will do, else the best of all others."""
        if isinstance(self.goal, Targeted):
            return -rival_margin(scores, aims)
        return (scores.gather(1, aims[:, None]) - scores[:, self.y]).squeeze(1)

    def judge(self, point: Tensor, aim: Tensor) -> tuple[float, bool]:
        """The lead at one point, (1, ...), as the victim will see it, and whether it is a success beyond rounding."""
        with torch.no_grad():
            scores = self.chain.scores(self.space.snap(self.x, point))
        return float(self.leads(scores, aim)), bool(self.goal.achieved(Prediction.of(scores), self.y, CLAIM_SLACK))

    def anywhere(self, count: int, stream: tuple[str | int, ...]) -> Tensor:
        """Uniform points of the box, (count, ...)."""
        share = self.rng.uniform((count, *self.x.shape[1:]), (*stream, "anywhere"))[0].to(self.x)
        return self.lo + (self.hi - self.lo) * share

    def around(self, best: Tensor, count: int, stream: tuple[str | int, ...]) -> Tensor:
        """`best` with a random share of its elements drawn anew, (count, ...)."""
        share = self.rng.uniform((count,), (*stream, "share"))[0]
        drawn = self.rng.uniform((count, *self.x.shape[1:]), (*stream, "drawn"))[0]
        return torch.where(drawn < per_sample(share, drawn), self.anywhere(count, stream), best)

    def climb(self, z: Tensor, aims: Tensor, steps: int, first: float) -> tuple[Tensor, Tensor, Tensor]:
        """Signed climbs of the leads from each row of z towards its aim.

        Returns:
            The points of those with the best one's aim, best first; their leads; and that aim, (1,).
        """
        best, points = z.new_full((len(z),), -torch.inf), z
        memory = torch.zeros_like(z)
        eps = 0.5 * (self.hi - self.lo).amax()
        for t in range(steps):
            leaf = z.detach().requires_grad_(True)
            with torch.enable_grad():
                lead = self.leads(self.chain.scores(leaf), aims)
                (grad,) = torch.autograd.grad(lead.sum(), leaf)
            lead = lead.detach()
            points = torch.where(per_sample(lead > best, z), z, points)
            best = torch.maximum(best, lead)
            size = grad.flatten(1).abs().mean(1).clamp(min=torch.finfo(z.dtype).tiny)
            memory = MOMENTUM * memory + grad / per_sample(size, grad)
            step = eps * (first * (1 - t / steps) ** 1.5 + 1 / 300)
            z = torch.minimum(torch.maximum(z + step * memory.sign(), self.lo), self.hi)
        order = best.argsort(descending=True, stable=True)
        aim = aims[order[:1]]
        order = order[aims[order] == aim]
        return points[order], best[order], aim

    def programme(self, point: Tensor, aim: Tensor, movable: Tensor, free: Tensor, nodes: int) -> Tensor | None:
        """The best point of the regions around `point` where only `movable` elements move; None where nothing rises."""
        if not len(movable):
            return None
        least, most = ((end - point).flatten()[movable] for end in (self.lo, self.hi))
        hood = self.chain.around(point[0], least, most, movable, free)
        winner, any_class = int(aim), isinstance(self.goal, Untargeted)
        losers = [int(self.y)] if any_class else [k for k in range(len(hood.here)) if k != winner]
        shift = best_shift(hood, winner, losers, nodes)
        if shift is None:
            return None
        moved = point.flatten().clone()
        moved[movable] += shift[: len(movable)]
        return torch.minimum(torch.maximum(moved.reshape(point.shape), self.lo), self.hi)


@attack(
    Card(
        name="linear-regions",
        title="Integer programmes over the linear regions between the best iterates",
        paper="Zhang et al. 2022, A Branch and Bound Framework for Stronger Adversarial Attacks of ReLU Networks "
        "(BaB-Attack), ICML, PMLR 162; the programme of Tjeng et al. 2019, arXiv:1711.07356",
        access=Access.GRADIENTS,
        needs=("layers",),
        spaces=("linf",),
        cost="per sample at most restarts x rounds x (climbs x steps x (forward + backward) + programmes mixed-integer "
        "and as many linear programmes); one sample at a time",
        caveats="For small ReLU networks read layer by layer, after the gradient attacks: on what they leave standing. "
        "On a lattice its narrow wins are rounded away.",
        floor={"linf": 0.95},
    )
)
@dataclass(frozen=True, kw_only=True)
class LinearRegions(Attack):
    r"""Gradient climbs find the hills, mixed-integer programmes find what lies between them.

    A ReLU network is affine on the region where every unit keeps its side. Climbs from many starts end in different
    regions, of which the good ones differ in a few units. Each programme frees the units in which the best point and
    some of the next best differ, and the nearest to their kink; it keeps all others on their side, moves the elements
    in which those points differ, and so searches up to 2^units regions at once, near the parents' own. A linear
    programme over all elements then takes the optimum of the region reached. Further rounds climb from points around
    the best one. Budgets are counts: the outcome does not depend on the machine's speed.

    The victim must offer its layers: a `Victim` whose net is a `Sequential`, nested or not, of affine modules and
    ReLUs. The paper searches by beams over bounds on a GPU; its programmes, between candidates of a pool, are the part that
    is taken here.

    Args:
        restarts: populations from new random starts; later ones meet only the samples still unbroken.
        rounds: of climbs and programmes, per restart.
        climbs: starts per round.
        steps: gradient steps per climb.
        programmes: mixed-integer programmes per round.
        units: free units per programme, at most, beside the few nearest to their kink.
        nodes: branch-and-bound nodes per programme, at most.
    """

    restarts: int = 4
    rounds: int = 4
    climbs: int = 100
    steps: int = 100
    programmes: int = 4
    units: int = 60
    nodes: int = 5

    def search(self, run: Run) -> None:
        """Search one sample after the other.

        Raises:
            CapabilityError: the run may not read the victim, or a layer is neither affine nor a ReLU.
            ThreatError: a goal that names no classes, or a limit on gradient steps.
        """
        if run.access is not Access.GRADIENTS:
            raise CapabilityError(f"linear-regions reads the victim's weights; this run has access to {run.access}")
        if not isinstance(run.threat.goal, (Untargeted, Targeted)):
            raise ThreatError(f"the goal is {run.threat.goal!r}; linear-regions needs Untargeted() or Targeted(label)")
        if run.threat.steps is not None:
            raise ThreatError(
                f"the threat model grants {run.threat.steps} gradient steps; linear-regions is bounded by its own "
                "restarts, rounds and programmes: leave steps=None"
            )
        chain = Chain.of(run.victim.capability("layers"))
        s = run.begin(Rows(run.x.clone()))
        for _ in run.steps(len(run.rows)):
            s.x = torch.cat([self._search_one(run, chain), s.x[1:]])
            run.give_up(torch.arange(len(s.x), device=run.rows.device) == 0)

    def _search_one(self, run: Run, chain: Chain) -> Tensor:
        """The best point found for the first active sample, (1, ...)."""
        one = Sample.first(run, chain)
        best, lead, aim = one.x, -torch.inf, one.aims(one.x, RIVALS)
        for turn in range(self.rounds):
            stream = ("climb", run.restart, turn)
            fresh = turn == 0
            starts = one.anywhere(self.climbs, stream) if fresh else one.around(best, self.climbs, stream)
            aims = aim[torch.arange(self.climbs, device=aim.device) % len(aim)]
            points, leads, aim = one.climb(starts, aims, self.steps, FIRST_STEP if fresh else LATER_STEP)
            for spent in (run.ledger.forwards, run.ledger.backwards):
                spent[run.rows[:1]] += self.climbs * self.steps
            if float(leads[0]) > lead:
                best, lead = points[:1], float(leads[0])
            if run.early_stop and one.judge(best, aim)[1]:
                break
            best, lead, over = self._cross(one, best, lead, aim, points, run.early_stop)
            if over:
                break
        return best

    def _cross(
        self, one: Sample, best: Tensor, lead: float, aim: Tensor, points: Tensor, early_stop: bool
    ) -> tuple[Tensor, float, bool]:
        """One programme after another, each between the best point and the next of `points`, best first.

        Returns:
            The best point, its lead, and whether it ends the search.
        """
        units, left = one.chain.units(points), 0
        apart = APART * 0.5 * float((one.hi - one.lo).amax())
        everything = (one.hi > one.lo).flatten().nonzero().squeeze(1)
        for _ in range(self.programmes):
            here = one.chain.units(best)[0]
            free, count = self._parents((units[left:] > 0) ^ (here > 0), here.abs())
            if not count:
                break
            moving = ((points[left : left + count] - best).abs() > apart).flatten(1).any(0)
            left += count
            found = one.programme(best, aim, moving.nonzero().squeeze(1), free, self.nodes)
            if found is None:
                continue
            settled = one.programme(found, aim, everything, torch.zeros_like(free), self.nodes)
            for point in (found, settled):
                if point is None:
                    continue
                value, reached = one.judge(point, aim)
                if value > lead:
                    best, lead = point, value
                if reached and early_stop:
                    return point, value, True
        return best, lead, False

    def _parents(self, differ: Tensor, kink: Tensor) -> tuple[Tensor, int]:
        """The units to free, bool, and how many of the next points, in their order, are parents.

        Args:
            differ: where the units of each point are on the other side than the best point's, (n, number of units).
            kink: how far each unit is from its kink at the best point.
        """
        union = differ.cumsum(0) > 0
        count = int((union.sum(1) <= self.units).sum())
        if count:
            free = union[count - 1]
        elif len(differ):  # one parent alone differs in too many: those nearest to their kink
            count, free = 1, torch.zeros_like(differ[0])
            near = torch.where(differ[0], kink, torch.inf).argsort(stable=True)
            free[near[: self.units]] = True
        else:
            return torch.zeros_like(kink, dtype=torch.bool), 0
        free = free.clone()
        free[kink.argsort(stable=True)[:NEAREST]] = True
        return free, count
