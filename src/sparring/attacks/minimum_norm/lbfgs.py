"""Box-constrained L-BFGS: the squared distance against the likelihood of the goal, and a search for the balance; L2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, Rounds, box, clamp, reached, starts
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.batch import choose
from sparring.core.losses import Loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# Armijo's condition: a step counts when the objective falls by this share of what its slope promised.
ARMIJO = 1e-4
# A line search gives up after so many cuts, and the memory of curvature is cleared.
CUTS = 8


def _away(scores: Tensor, y: Tensor) -> Tensor:
    """The log-probability of not being y: smooth, and 0 once y is ruled out."""
    others = scores.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return -F.softplus(scores.gather(1, y[:, None]).squeeze(1) - others)


# Cross-entropy towards the goal: the paper's loss of the target, and of "any class but y" where there is none.
LIKELIHOOD = Loss("goal_likelihood", _away, lambda s, y, t: -F.cross_entropy(s, t, reduction="none"))


@dataclass
class Curvature:
    """The last pairs of moves and changes of the gradient, one memory per sample: what L-BFGS knows of the Hessian.

    Attributes:
        pairs: changes of the gradient, then moves, (m, 2 h, d), in a ring each.
        weight: 1 / <move, turn>, 0 for an empty place, (m, h).
        newest: the place of the last pair, int64 (m,).
    """

    pairs: Tensor
    weight: Tensor
    newest: Tensor

    @classmethod
    def start(cls, like: Tensor, memory: int) -> Curvature:
        """Nothing known; `like` is (m, d)."""
        none = like.new_zeros(len(like), 2 * memory, like.shape[1])
        return cls(none, like.new_zeros(len(like), memory), torch.zeros_like(like[:, 0], dtype=torch.int64))

    def add(self, move: Tensor, turn: Tensor, where: Tensor) -> None:
        """Take in a pair where bool (m,) and where it curves upwards, so that the Hessian stays positive."""
        product = (move * turn).sum(1)
        keep = where & (product > 1e-8 * turn.square().sum(1))
        index = keep.nonzero().squeeze(1)
        memory = self.weight.shape[1]
        place = (self.newest[index] + 1) % memory
        self.pairs[index, place], self.pairs[index, memory + place] = turn[index], move[index]
        self.weight[index, place], self.newest[index] = 1.0 / product[index], place

    def forget(self, where: Tensor) -> None:
        """Clear the memory where bool (m,)."""
        self.weight[where] = 0.0

    def descent(self, gradient: Tensor, free: Tensor) -> Tensor:
        """Minus the inverse Hessian times the gradient on the free elements, (m, d) (Nocedal 1980, two loops).

        The loops go over the inner products alone, so that the vectors are read three times and not in each turn of a loop.

        Args:
            gradient: (m, d).
            free: 1 for elements that may move, 0 for those held at a bound, (m, d).
        """
        memory = self.weight.shape[1]
        order = (self.newest[:, None] + 1 + torch.arange(memory, device=free.device)) % memory  # the oldest first
        places = torch.cat([order, memory + order], dim=1)
        gradient = gradient * free
        slopes = torch.bmm(self.pairs, gradient[:, :, None]).squeeze(2).gather(1, places)
        products = torch.bmm(self.pairs[:, :memory] * free[:, None], self.pairs.mT)
        products = products.gather(1, order[:, :, None].expand_as(products))
        turn_turn, turn_move = products.gather(2, places[:, None].expand_as(products)).chunk(2, dim=2)
        turned, moved = slopes.chunk(2, dim=1)
        curve, square = turn_move.diagonal(dim1=1, dim2=2), turn_turn.diagonal(dim1=1, dim2=2)
        use = (self.weight.gather(1, order) > 0) & (curve > 1e-8 * square)
        rho = torch.where(use, 1.0 / curve.where(use, torch.ones_like(curve)), 0.0)
        # of the gradient less share * turns, the moves' inner products, newest first
        share = torch.zeros_like(rho)
        for i in range(memory - 1, -1, -1):
            share[:, i] = rho[:, i] * (moved[:, i] - (share * turn_move[:, :, i]).sum(1))
        # the newest usable pair sets the scale; without one, the squared distance's own Hessian, 2
        scale = torch.full_like(rho[:, 0], 0.5)
        for i in range(memory):
            scale = torch.where(use[:, i], curve[:, i] / square[:, i].clamp(min=TINY), scale)
        # of that times the scale, plus back * moves, the turns' inner products, oldest first
        rest = scale[:, None] * (turned - (turn_turn * share[:, None]).sum(2))
        back = torch.zeros_like(rho)
        for i in range(memory):
            back[:, i] = share[:, i] - rho[:, i] * (rest[:, i] + (back * turn_move[:, i]).sum(1))
        parts = torch.zeros_like(slopes).scatter(1, places, torch.cat([-scale[:, None] * share, back], dim=1))
        along = torch.bmm(parts[:, None], self.pairs).squeeze(1).mul_(free)
        return along.addcmul_(scale[:, None], gradient).neg_()


@dataclass
class Descent:
    """What the descent keeps per sample; each sample is in a round and a line search of its own.

    Attributes:
        x: the point that is tried next.
        at: the last accepted point, (m, ...).
        value: the objective there, |delta|^2 + c loss with the change in units of the width, (m,).
        slope: its gradient to the change, (m, d).
        toward: the direction of the line search, (m, ...).
        share: how much of it is tried, (m,).
        cuts: how often it was cut; -1 where the point tried begins a round, (m,).
        curvature: the memory.
        rounds: the constant and where the sample is.
    """

    x: Tensor
    at: Tensor
    value: Tensor
    slope: Tensor
    toward: Tensor
    share: Tensor
    cuts: Tensor
    curvature: Curvature
    rounds: Rounds


@attack(
    Card(
        name="lbfgs",
        title="Box-constrained L-BFGS",
        paper="Szegedy et al. 2014, Intriguing properties of neural networks, arXiv:1312.6199",
        access=Access.GRADIENTS,
        spaces=("l2",),
        minimal=True,
        cost="at most rounds x steps x (forward + backward); rounds that stall end early",
        caveats="On natural pictures it ends as near as C&W, on robust digits a fifth to a third farther. "
        "Unlike the paper's, rounds begin at the best point so far, and goals may be untargeted.",
        floor={"l2": 0.42},
        aliases=("l-bfgs",),
    )
)
@dataclass(frozen=True, kw_only=True)
class LBFGS(Attack):
    """L-BFGS in the box: minimise |delta|^2 - c log p(goal | x + delta) for the least c that succeeds, found by bisection.

    p(goal) is the probability of the target, or of any class but the true one. Elements at a bound that the slope holds there
    are left out of a step, the rest moves by the two-loop recursion and is clipped; steps are halved until the objective falls
    (Armijo). Each sample has its own memory, line search and round. Lengths are in units of the bounds' width.

    Args:
        steps: forwards and backwards per round.
        rounds: values of c tried: tenfold until one succeeds, then by bisection.
        const: the first c; None takes the one whose first step closes the linearised loss.
        memory: pairs of moves and gradients remembered.
        abort_early: end a round when its objective stalls.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.LBFGS()(sp.Victim(net), x, None, sp.L2())
        >>> result.median_distance > 0
        True
    """

    steps: int = 20
    rounds: int = 12
    const: float | None = None
    memory: int = 4
    abort_early: bool = True

    def search(self, run: Run) -> None:
        """Try a point; accept it or cut the step; when a round is over, go on with another c."""
        scale, x = run.width, starts(run)
        zero = torch.zeros_like(x.flatten(1)[:, 0])
        s = run.begin(
            Descent(
                x=x,
                at=x,
                value=zero,
                slope=torch.zeros_like(x.flatten(1)),
                toward=torch.zeros_like(x),
                share=zero,
                cuts=zero - 1.0,
                curvature=Curvature.start(x.flatten(1), self.memory),
                rounds=Rounds.start(x, self.const or 0.0),
            )
        )
        for t in run.steps(self.steps * self.rounds):
            g = run.gradient(s.x, LIKELIHOOD)
            loss, climb = -g.loss, scale * g.grad
            if t == 0 and self.const is None:
                s.rounds.c = 2.0 * loss / climb.flatten(1).square().sum(1).clamp(min=TINY)
            objective = self._take(run, s, loss, climb.flatten(1), scale)
            over = s.rounds.advance(objective, reached(run, g.scores), self.steps, not self.abort_early)
            self._propose(run, s, scale)
            if bool(over.any()):
                best, _ = run.best()
                s.x = choose(over, best, s.x)
                s.cuts = torch.where(over, -1.0, s.cuts)
                s.curvature.forget(over)
                run.give_up(s.rounds.done >= self.rounds)

    @staticmethod
    def _take(run: Run, s: Descent, loss: Tensor, climb: Tensor, scale: float) -> Tensor:
        """Accept the points that were tried where the objective fell enough, and learn the curvature; else count a cut.

        Args:
            run: the run.
            s: what is kept.
            loss: minus the log-likelihood of the goal at the points tried, (m,).
            climb: the gradient of the log-likelihood there, (m, d).
            scale: the width.

        Returns:
            The objective there, (m,).
        """
        change, c = ((s.x - run.x) / scale).flatten(1), s.rounds.c
        value: Tensor = change.square().sum(1) + c * loss
        slope = (2.0 * change).addcmul_(c[:, None], climb, value=-1.0)
        move = ((s.x - s.at) / scale).flatten(1)
        promised, risen = (s.slope * move).sum(1), value - s.value
        fresh = s.cuts < 0
        accepted = fresh | (risen <= ARMIJO * promised)
        s.curvature.add(move, slope - s.slope, accepted & ~fresh)
        # where a parabola through the objective's values and first slope has its least, within reason
        aim = -promised / (2.0 * (risen - promised)).clamp(min=TINY)
        s.share = torch.where(accepted, 1.0, s.share * aim.clamp(0.1, 0.5))
        s.cuts = torch.where(accepted, 0.0, s.cuts + 1.0)
        s.at, s.slope = choose(accepted, s.x, s.at), choose(accepted, slope, s.slope)
        s.value = torch.where(accepted, value, s.value)
        stuck = s.cuts > CUTS
        if bool(stuck.any()):
            s.curvature.forget(stuck)
            s.cuts, s.share = torch.where(stuck, 0.0, s.cuts), torch.where(stuck, 1.0, s.share)
        return value

    @staticmethod
    def _propose(run: Run, s: Descent, scale: float) -> None:
        """The next point to try: along a new direction after an accepted point, nearer to the last one otherwise."""
        fresh = s.cuts == 0
        free = _free(s.at.flatten(1), s.slope, *box(run))
        toward = s.curvature.descent(s.slope, free)
        falls = (toward * s.slope).sum(1) < 0
        if not bool(falls.all()):
            toward = choose(falls, toward, -0.5 * s.slope * free)
        s.toward = choose(fresh, toward.reshape(s.x.shape), s.toward)
        s.x = clamp(run, s.at + s.toward * per_sample(scale * s.share, s.x))


def _free(at: Tensor, slope: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """1 for elements that a descent may move, 0 for those that the bounds hold back, (m, d).

    Comparisons end in numbers: booleans cost a CPU several times as much.
    """
    empty = torch.empty_like(at)
    low = torch.le(at, lo, out=torch.empty_like(at)).mul_(torch.gt(slope, 0.0, out=empty))
    high = torch.ge(at, hi, out=torch.empty_like(at)).mul_(torch.lt(slope, 0.0, out=empty))
    return (1.0 - low.add_(high)).clamp_(min=0.0)
