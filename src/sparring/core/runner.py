"""The one place for an attack's bookkeeping: active set, early stop, best so far, budgets, the lattice, counting.

An attack sees a `Run`: the samples still in play and four ways to learn about them (`gradient`, `jacobian`,
`evaluate`, `ask`). Whatever it keeps between steps lives in a dataclass of tensors with leading dimension n, handed
to `begin`; `steps` drops the samples that are decided from that state and from the run's own `x`, `y`, `goal`,
`space` and `rng` together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sparring.core import events
from sparring.core.batch import Batch, own, pick, put, take
from sparring.core.differentiation import Differentiator
from sparring.core.errors import CapabilityError, InputError
from sparring.core.ledger import Ledger, select_fields
from sparring.core.losses import Loss
from sparring.core.nearby import Standing, Window
from sparring.core.network import Victim
from sparring.core.oracle import Oracle
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom
from sparring.core.space import Space
from sparring.core.threat import Access, Goal, ThreatModel
from sparring.core.victim import BaseVictim

S = TypeVar("S")

# Numbers in the inputs of one forward on a CPU that answers queries: beyond, what passes between its layers falls out of the
# processor's cache (measured on a MobileNet: a photograph in a batch of 30 takes 2.3 times as long as in one of 6).
CACHED = 2**20
# And inputs: the layers of larger batches live in memory that the system hands out anew in each pass (measured on two small
# networks and a ResNet-20: four attacks take .5 to .95 of the time that they take in batches of 512).
MOST = 128

# A success within float rounding of the boundary could vanish at the re-check or at another batch size.
CLAIM_SLACK = 1e-5


class Gradient(NamedTuple):
    """One gradient step's findings: the loss (n,), its gradient (n, ...), and the scores (n, k) at the point."""

    loss: Tensor
    grad: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Terms:
    """What holds for all batches of one call.

    Attributes:
        access: what the search sees of the victim.
        smallest: whether the smallest change is sought.
        early_stop: whether a success ends a sample.
        batch_size: samples attacked at once.
        samples: samples in the whole call; 0 where nobody says.
        space: the space of the whole call, bound to the victim; None where nobody says.
    """

    access: Access
    smallest: bool
    early_stop: bool
    batch_size: int
    samples: int = 0
    space: Any = None


class SearchOver(Exception):  # noqa: N818 (a signal, not an error)
    """Raised inside a search when every sample is decided, so that no backward pass is spent on them."""


class Run:
    """One attack on one batch.

    Attributes, all for the samples still in play, m of n:
        x: the originals, (m, ...) or a list.
        y: the true labels, int64 (m,).
        goal: the goal of these samples.
        space: the space, bound to the victim, with the limits of these samples.
        rng: keyed randomness of these samples.
        rows: their positions in the batch, int64 (m,).
    And for the whole run:
        smallest: whether the smallest change is sought (success does not end a sample).
        early_stop: whether a success ends a sample.
        restart: the number of the current restart, from 0.
        vanished: for which samples of the batch every gradient so far was zero or no number, bool (n,).
        victim, threat, oracle: as given; the oracle is None above label and score access.
    """

    def __init__(
        self,
        victim: BaseVictim,
        view: Victim | None,
        x: Batch,
        y: Tensor,
        threat: ThreatModel,
        rng: KeyedRandom,
        terms: Terms,
    ) -> None:
        self.victim, self.threat, self.access = victim, threat, terms.access
        self.smallest, self.early_stop = terms.smallest, terms.early_stop
        self.restart = 0
        self._differentiator = None if view is None else Differentiator(view)
        self._terms = terms
        # without access to the victim neither early stop nor best-so-far may see its answers
        self._blind = terms.access is Access.NOTHING
        self._standing = Standing()  # of free forwards; the oracle has its own
        self.oracle: Oracle | None = None
        if Access.LABELS <= terms.access <= Access.SCORES:
            # many candidates of one sample share a forward, however few samples are attacked at once
            size = max(256, terms.batch_size)
            if isinstance(victim, Victim) and isinstance(x, Tensor) and x.device.type == "cpu" and len(x):
                size = max(1, min(size, MOST, CACHED // max(1, x[0].numel())))
            self.oracle = Oracle(victim, terms.access, len(x), budget=threat.queries, batch_size=size)
        self.whole = (x, y, threat, rng)
        # no margin says how sure a success by labels is: the nearest one may be gone at the re-check by a rounding
        self.ledger = Ledger.open(x, y.device, spares=terms.smallest and terms.access is Access.LABELS)
        self._state: Any = None
        self._calls = 0
        self.vanished = torch.zeros(len(x), dtype=torch.bool, device=y.device)
        self._felt: bool | None = None  # whether all of them have had a gradient; None before the first
        self.on_step: Callable[[int, int, int], None] | None = None
        self._activate(torch.arange(len(x), device=y.device))

    # -- the active set ------------------------------------------------------------------------------------------------

    def _activate(self, rows: Tensor) -> None:
        x, y, threat, rng = self.whole
        goal, space = threat.goal, threat.space
        whole = len(rows) == len(x)
        self.rows = rows
        self.x: Any = x if whole else take(x, rows)
        self.y = y if whole else y[rows]
        self.goal: Goal = goal if whole else goal.take(rows)
        self.space: Any = space if whole else space.take(rows)
        self.rng = rng if whole else rng.take(rows)

    def _decided(self) -> Tensor:
        """Bool (m,): which of the active samples need no more work."""
        rows = self.rows
        over = self.ledger.given_up[rows]
        if self.early_stop and not self._blind:
            found = self.ledger.found[rows]
            if self.smallest:
                limit = self.space.limit
                found = found & (self.ledger.best_cost[rows] <= limit) if limit is not None else torch.zeros_like(found)
            over = over | found
        if self.oracle is not None:
            over = over | (self.oracle.left(rows) <= 0)
        if self.threat.steps is not None:
            over = over | (self.ledger.backwards[rows] >= self.threat.steps)
        return over

    def _may_be_over(self) -> bool:
        """Whether anything that `_decided` looks at may have changed since `shrink` last did: most steps decide nothing."""
        oracle = self.oracle
        return self.ledger.changed or self.threat.steps is not None or (oracle is not None and oracle.ending)

    def begin(self, state: S) -> S:
        """Register what the attack keeps between steps: a dataclass of tensors with leading dimension m.

        Its field `x` is the current point; what stands there when a sample ends without a success is its adversarial
        input.
        """
        self._state = state
        return state

    def steps(self, count: int) -> Iterator[int]:
        """Count steps, dropping decided samples before each; ends early when none is left."""
        for step in range(count):
            self.shrink()
            if not len(self.rows):
                return
            if self.on_step is not None:
                self.on_step(step, count, len(self.rows))
            yield step

    def shrink(self) -> None:
        """Drop the decided samples from the run and from the state given to `begin`."""
        if not self._may_be_over():
            return
        over = self._decided()
        self.ledger.changed = False
        if not bool(over.any()):
            return
        self._keep_last(over.nonzero().squeeze(1))
        index = (~over).nonzero().squeeze(1)
        select_fields(self._state, index, len(self.rows))
        self._activate(self.rows[index])

    def give_up(self, mask: Tensor) -> None:
        """End the samples where `mask`, bool (m,), is true, found or not: they have converged or cannot go on."""
        self.ledger.give_up(self.rows[mask])

    def _keep_last(self, index: Tensor) -> None:
        """The current point becomes the last candidate of the samples at `index` that have no recorded success."""
        point = getattr(self._state, "x", None)
        if point is None or not len(index):
            return
        index = index[~self.ledger.found[self.rows[index]]] if not self.keeps_last else index
        if len(index):
            rows = self.rows[index]
            put(self.last, rows, self._snap(take(self.x, index), take(point, index), self.space.take(index)))

    @property
    def keeps_last(self) -> bool:
        return not self.early_stop or self._blind

    @contextlib.contextmanager
    def searching(self, restart: int, *, more: bool = False) -> Iterator[None]:
        """One restart: activates the unbroken samples, and keeps the last points when the search ends.

        The last point of a climb has not been seen by a forward: the re-check sees it, unless `more` restarts follow.
        """
        self.restart, self._calls, self._state = restart, 0, None
        self.forget()
        if restart == 0:
            self.last = own(self.whole[0])
        else:
            self.ledger.begin_again()
            self._activate(torch.arange(len(self.last), device=self.rows.device))
            self._activate(self.rows[~self._decided()])
        with contextlib.suppress(SearchOver):
            yield
        self.shrink()
        self._keep_last(torch.arange(len(self.rows), device=self.rows.device))
        if (
            more
            and self._differentiator is not None
            and len(self.rows)
            and isinstance(getattr(self._state, "x", None), Tensor)
        ):
            self.evaluate(self._state.x)
        self._state = None

    # -- learning about points -----------------------------------------------------------------------------------------

    def explore(self, precision: str) -> None:
        """Let `gradient` compute in bfloat16 where that pays (see `sparring.core.precision`).

        A success seen so is looked at once more in float32 before it counts.
        """
        if self._differentiator is not None and isinstance(self.x, Tensor):
            self._differentiator.explore(self.x, self._terms.space, precision, self._terms.samples)

    def soften(self, slope: float) -> None:
        """Let `gradient` pass through ReLUs that are off, by this slope (see `sparring.core.slopes`); scores stay as they are."""
        if self._differentiator is not None:
            self._differentiator.soften(slope)

    def gradient(self, x: Tensor, loss: Loss, *, candidates: bool = True) -> Gradient:
        """The loss, its gradient and the scores at x, (m, ...); the same forward serves the success check.

        Without `candidates`, x is what the victim sees of other points (transformed, of another shape, outside the space):
        it is taken as it is, and no success there counts. `claim` says which of those points are inputs all the same.

        Raises:
            SearchOver: every sample is decided by this forward; the runner catches it.
        """
        steep = self._steep()
        point = self._snap(self.x, x, self.space) if candidates else x
        total: Gradient | None = None
        for _ in range(steep.draws):
            leaf = point.detach().requires_grad_(True)
            value, scores = steep.objective(leaf, lambda s: loss(s, self.y, self.goal), self._noise())
            self._count(forwards=1)
            if steep.draws == 1:
                if candidates:
                    self._note(point, self._output(point, scores), sure=steep.sure)
                self._stop_if_over()
            with torch.enable_grad():
                whole = value.sum()
            grad = steep.gradient(whole, leaf)
            self._count(backwards=1)
            part = Gradient(value.detach(), grad, scores.detach())
            total = part if total is None else Gradient(*(a + b for a, b in zip(total, part, strict=True)))
        if total is None:
            raise InputError(f"eot is {steep.draws}; at least one draw is needed")
        if steep.draws > 1:
            total = Gradient(*(t / steep.draws for t in total))
            if candidates:
                self._note(point, self._output(point, total.scores), sure=steep.sure)
        grad = total.grad
        if not bool(torch.isfinite(grad.sum())):  # one sum is cheap; the repair is rare
            grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
        self._look_at(grad)
        return Gradient(total.loss, grad, total.scores)

    def claim(self, x: Tensor, scores: Tensor, only: Tensor) -> None:
        """Note the successes at x, (m, ...), inside the space, among the samples `only`, bool (m,); by a gradient's scores."""
        self._note(x, self._output(x, scores), sure=self._steep().sure, only=only)

    def jacobian(self, x: Tensor, outputs: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (m, k) at x, several values made of them (m, j), and the gradients of those (m, j, ...).

        One forward and j backwards. `outputs` maps scores to the values, differentiably.

        Raises:
            SearchOver: every sample is decided by this forward; the runner catches it.
        """
        steep = self._steep()
        point, noise = self._snap(self.x, x, self.space), self._noise()
        leaf = point.detach().requires_grad_(True)

        def forward() -> tuple[Tensor, Tensor]:
            self._count(forwards=1)
            scores = steep.scores(leaf, noise)
            with torch.enable_grad():
                return scores, outputs(scores)

        scores, values = forward()
        self._note(point, self._output(point, scores))
        self._stop_if_over()
        rows = []
        for row in steep.gradients(values, leaf, lambda: forward()[1]):
            rows.append(row)
            self._count(backwards=1)
        slopes = torch.nan_to_num(torch.stack(rows, 1), nan=0.0, posinf=0.0, neginf=0.0)
        self._look_at(slopes)
        return scores.detach(), values.detach(), slopes

    def evaluate(self, x: Tensor, rows: Tensor | None = None, *, window: Window | None = None) -> Tensor:
        """The scores at x by a forward alone, noted like those of a gradient step.

        Point i belongs to active sample i, or to rows[i], each at most once. For a `window` see `ask`.
        """
        steep = self._steep()
        point, noise = self._snap_at(x, rows), self._noise(rows)
        memory = None if window is None else self._standing.at(self.rows)
        if memory is not None and window is not None:
            scores = steep.view.scores_nearby(memory, point, window)
        else:
            with torch.no_grad():
                scores = steep.quick.scores(point, noise)
        if rows is None:
            self._count(forwards=1)
        else:
            self.ledger.forwards[self.rows[rows]] += 1
        self._note(point, self._output(point, scores, rows), rows=rows)
        return scores

    def look(self, x: Batch) -> Prediction:
        """The true victim's answers at x, one candidate per active sample, unmetered and noted.

        For white-box searches over models that have no input gradient (trees, word counts).

        Raises:
            CapabilityError: the threat model grants less than the white box.
        """
        if self.access is not Access.GRADIENTS:
            raise CapabilityError(
                f"this run has access to {self.access}; an unmetered look needs the white box: use ask"
            )
        point = self._snap(self.x, x, self.space)
        answer = self.victim.query(point, self._noise())
        self._count(forwards=1)
        self._note(point, answer)
        return answer

    def ask(self, x: Batch, rows: Tensor | None = None, *, window: Window | None = None) -> tuple[Prediction, Tensor]:
        """Query the oracle about x; candidate i belongs to active sample rows[i] (its own position where None).

        A `window` says that x, one candidate a sample, differs only there from the points that `stand` and `settle` left: a
        victim that can computes no more than that.

        Returns:
            The answers, as far as the access shows them, and `granted`, bool: False for queries past a sample's budget.

        Raises:
            CapabilityError: the threat model grants no queries.
        """
        if self.oracle is None:
            raise CapabilityError(f"this run has access to {self.access}; queries need access to labels or scores")
        owner = self.rows if rows is None else self.rows[rows]
        point = self._snap_at(x, rows)
        answer, granted = self.oracle(point, owner, self._noise(rows), apart=rows is None, window=window)
        if rows is None and not self.oracle.ending:  # all were granted
            self._count(forwards=1)
        else:
            self.ledger.forwards.index_add_(0, owner, granted.long())
        goal, y = (self.goal, self.y) if rows is None else (self.goal.take(rows), self.y[rows])
        reached = goal.achieved(answer, y) & granted
        if bool(reached.any()):  # most queries reach nothing, and a margin costs more than a look at the labels
            self._record(point, reached & goal.achieved(answer, y, CLAIM_SLACK), rows)
        return answer, granted

    def stand(self, x: Tensor, sides: tuple[int, int]) -> None:
        """Say where the active samples stand, (m, ...), before windows of these sides are changed there; it costs no query."""
        x = self._snap(self.x, x, self.space)
        if self.oracle is not None:
            self.oracle.stand(x, self.rows, sides)
        else:
            self._standing.stand(self._steep().view, x, self.rows, sides)

    def settle(self, better: Tensor) -> None:
        """Say which of the points last looked at in a window, bool (m,), the active samples now stand at."""
        (self._standing if self.oracle is None else self.oracle).settle(better)

    def forget(self) -> None:
        """Nobody stands anywhere any more."""
        (self._standing if self.oracle is None else self.oracle).forget()

    @property
    def width(self) -> float:
        """The mean width of the victim's bounds, the unit of the papers' step sizes; 1 where there are none."""
        bounds = self.space.bounds
        return 1.0 if bounds is None else float((bounds.hi - bounds.lo).mean())

    def found(self) -> Tensor:
        """Bool (m,): which active samples have a recorded success."""
        return self.ledger.found[self.rows]

    def best(self) -> tuple[Any, Tensor]:
        """The best recorded success of each active sample, and its cost (infinite, and the original, where none is)."""
        return take(self.ledger.best, self.rows), self.ledger.best_cost[self.rows]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _steep(self) -> Differentiator:
        if self._differentiator is None:
            raise CapabilityError(f"this run has access to {self.access}; a gradient or a free forward needs gradients")
        return self._differentiator

    def _look_at(self, grad: Tensor) -> None:
        """Note which samples have had a gradient to follow, from one of theirs, (m, ...); after the first steps all have."""
        if self._felt:
            return
        zero = grad.flatten(1).abs().amax(1) == 0
        self.vanished[self.rows] = zero if self._felt is None else zero & self.vanished[self.rows]
        self._felt = not bool(self.vanished.any())

    def _output(self, point: Tensor, scores: Tensor, rows: Tensor | None = None) -> Prediction:
        """The prediction that goes with the scores of a search step; a detector is asked as well."""
        view = self._steep().view
        accepted = view.accepts(point, self._noise(rows)) if view.detector is not None else None
        return Prediction.of(scores.detach(), accepted)

    def _snap(self, x: Any, point: Any, space: Space) -> Any:
        snap = getattr(space, "snap", None)
        return point if snap is None or not isinstance(point, Tensor) else snap(x, point)

    def _snap_at(self, point: Any, rows: Tensor | None) -> Any:
        """The points on the lattice, of which candidate i belongs to active sample rows[i] (its own position where None).

        Without a lattice the originals, as many as candidates, are not even gathered.
        """
        if rows is None:
            return self._snap(self.x, point, self.space)
        if getattr(self.space, "lattice", None) is None:
            return point
        return self._snap(take(self.x, rows), point, self.space.take(rows))

    def _noise(self, index: Tensor | None = None) -> KeyedRandom | None:
        """Fresh keyed noise for each forward of a stochastic victim; the same for a sample in any batch."""
        self._calls += 1
        if not self.victim.traits.stochastic:
            return None
        rng = self.rng if index is None else self.rng.take(index)
        return rng.fork(("victim", self.restart, self._calls))

    def _count(self, forwards: int = 0, backwards: int = 0) -> None:
        everyone = len(self.rows) == len(self.ledger.forwards)  # no index then: it would cost as much as a small layer
        for tally, passes in ((self.ledger.forwards, forwards), (self.ledger.backwards, backwards)):
            if passes and everyone:
                tally += passes
            elif passes:
                tally[self.rows] += passes

    def _note(
        self,
        point: Batch,
        output: Prediction,
        *,
        sure: bool = True,
        only: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> None:
        """Record the successes at `point`, among the samples `only` where given; unsure ones are looked at once more.

        Point i belongs to active sample i, or to rows[i] (of sure ones alone).
        """
        if self._blind:
            return
        goal, y = (self.goal, self.y) if rows is None else (self.goal.take(rows), self.y[rows])
        reached = goal.achieved(output, y)
        reached = reached if only is None else reached & only
        if not bool(reached.any()):  # most steps of a search reach nothing
            return
        reached = reached & goal.achieved(output, y, CLAIM_SLACK)
        if not sure:
            reached = self._confirmed(point, reached)
        self._record(point, reached, rows)

    def _confirmed(self, point: Batch, reached: Tensor) -> Tensor:
        """Bool (m,): which of the successes that a scout saw are new ones and stand in float32."""
        if not self.smallest:
            reached = reached & ~self.found()
        index = reached.nonzero().squeeze(1)
        if len(index):
            some: Any = take(point, index)
            with torch.no_grad():
                answer = self._output(some, self._steep().quick.scores(some, self._noise(index)), index)
            self.ledger.forwards[self.rows[index]] += 1
            reached = reached.clone()
            reached[index] = self.goal.take(index).achieved(answer, self.y[index], CLAIM_SLACK)
        return reached

    def _record(self, point: Batch, reached: Tensor, rows: Tensor | None = None) -> None:
        """Keep the first success of each sample, or the nearest where the smallest change is sought.

        Candidate i belongs to active sample rows[i], or to the i-th where `rows` is None.
        """
        owner = self.rows if rows is None else self.rows[rows]
        if not self.smallest:
            reached = reached & ~self.ledger.found[owner]
        elif self.early_stop and self.space.limit is not None:
            # near enough already: a further look, which it gets only while others of its batch go on, must not count
            limit = self.space.limit if rows is None else self.space.take(rows).limit
            reached = reached & ~(self.ledger.best_cost[owner] <= limit)
        index = reached.nonzero().squeeze(1)
        if len(index):
            candidates = pick(point, index)
            mine = index if rows is None else rows[index]
            x = pick(self.x, mine) if rows is None else take(self.x, mine)
            cost = self.space.take(mine).cost(x, candidates)
            self.ledger.record(candidates, cost, owner[index], nearest=self.smallest)

    def _stop_if_over(self) -> None:
        if self._may_be_over() and bool(self._decided().all()):
            raise SearchOver


def progress_to(attack: str, total: int, done: int) -> Callable[[int, int, int], None] | None:
    """A step callback that emits `AttackProgress`, or None where nobody listens."""
    if not events.heard():
        return None

    def tell(step: int, steps: int, standing: int) -> None:
        events.emit(events.AttackProgress("attack", attack, done, total, step, steps, standing))

    return tell
