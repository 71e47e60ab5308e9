"""EvadeHC: hill climbing with nothing but yes and no, on inputs of any kind, by a morpher and a tester of one's own."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.attacks.labels.parts import crosses
from sparring.core.attack import Attack
from sparring.core.batch import Batch, own, put
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# One morph: the seed of its path and its number there, from which its randomness comes, on whatever input.
Move = tuple[int, int]


@dataclass
class Climb:
    """Where each sample stands.

    Attributes:
        x: the input that paths start from; the tester accepts it.
        score: its mean gap between the two flips, minus infinity where it is to be measured, (m,).
        next: the input that the next paths start from, to see whether it is better.
        past: the moves that lead from the original to `x`, a list for each sample.
        ahead: those that lead to `next`.
    """

    x: Batch
    score: Tensor
    next: Batch
    past: list[list[Move]]
    ahead: list[list[Move]]


@attack(
    Card(
        name="evadehc",
        title="EvadeHC: morph in the dark, by accept or reject alone",
        paper="Dang, Huang and Chang 2017, Evading Classifiers by Morphing in the Dark, arXiv:1705.07535",
        access=Access.LABELS,
        spaces=("morphs",),
        minimal=True,
        cost="up to paths * (2 + log2 length) queries a step, two for each morph of what evades, about as many calls of the tester",
        domains=("text", "table", "any"),
        caveats="As good as its morpher. It ends at the first input that evades, less the morphs that it can do without; "
        "no smaller change is looked for elsewhere. Calls of the tester are not counted against the budget.",
        floor={"morphs": 9.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class EvadeHC(Attack):
    """Hill climbing on two flips along random paths, in the space `Morphs(morpher, tester)`.

    A path is a chain of random morphs. On it the tester flips after m steps (the property is lost) and the detector
    after r (the goal is reached); both are found by bisection, as the paper does. Where r < m the r-th input evades.
    An input scores the mean of m - r over its paths, length + 1 standing for "never". From an input the climb looks at
    one half-way to the tester's flip on the path of the greatest m - r, stays there if the score is no lower, and else
    goes back and draws other paths. From the moves to the input that evades it leaves out halves, quarters and so on down
    to single ones, as long as what the others make still evades.

    The climb among inputs by a score of both flips is the paper's; where to look next, the mean and the leaving out are
    ours.

    Args:
        steps: inputs that paths are drawn from.
        paths: random paths from each.
        length: morphs on a path.
        shorten: leave out the moves that are not needed.
    """

    steps: int = 50
    paths: int = 6
    length: int = 32
    shorten: bool = True

    def search(self, run: Run) -> None:
        """Draw paths, measure, climb."""
        for name in ("paths", "length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; at least one is needed")
        m = len(run.x)
        start = torch.full((m,), -torch.inf, dtype=torch.float32)
        s = run.begin(Climb(own(run.x), start, own(run.x), [[] for _ in range(m)], [[] for _ in range(m)]))
        for t in run.steps(self.steps):
            seeds = [self._seed(run, i, t) for i in range(len(run.x) * self.paths)]
            chains = [self._chain(run, s.next[i // self.paths], seed) for i, seed in enumerate(seeds)]
            lost = torch.tensor([_flip(chain, run.space.tester) for chain in chains])
            reached = self._reached(run, chains, lost)
            if self.shorten:
                self._shorten(run, self._evasions(s, seeds, reached, lost))
            if run.space.limit is None:  # with one, the run itself ends what is near enough
                run.give_up(run.found())
            self._climb(run, s, (lost - reached).reshape(-1, self.paths), chains, seeds, lost)

    def _seed(self, run: Run, i: int, t: int) -> int:
        """The number from which the randomness of path i comes; it is the path's own in every batch."""
        return run.rng.take(torch.tensor([i // self.paths])).number(("path", t, i % self.paths))

    def _chain(self, run: Run, x: Any, seed: int) -> list[Any]:
        """The start of a path and what comes after each morph."""
        chain = [x]
        for number in range(self.length):
            chain.append(run.space.morpher(chain[-1], np.random.default_rng((seed, number))))
        return chain

    def _reached(self, run: Run, chains: list[list[Any]], lost: Tensor) -> Tensor:
        """After how many morphs the goal is reached on each path, int64 (paths,); length + 1 for "never".

        The last input that keeps the property is asked first: if it reaches the goal, so may an earlier one. A path that
        loses the property at once has nothing to offer, and nothing is asked about it.
        """
        lo, hi = torch.zeros_like(lost), torch.full_like(lost, self.length + 1)
        going = lost > 1
        for ask in (lost - 1, torch.full_like(lost, self.length), None):
            while bool(going.any()):
                at = (lo + hi) // 2 if ask is None else ask
                rows = (going & (at > lo) & (at < hi)).nonzero().squeeze(1)
                if not len(rows):
                    break
                points = _batch([chains[i][int(at[i])] for i in rows.tolist()], run.x)
                hit, granted = crosses(run, points, rows // self.paths)
                hi[rows[hit]] = at[rows[hit]]
                lo[rows[~hit & granted]] = at[rows[~hit & granted]]
                going[rows[~granted]] = False
                if ask is not None:
                    break
        return hi

    def _evasions(self, s: Climb, seeds: list[int], reached: Tensor, lost: Tensor) -> dict[int, list[Move]]:
        """The moves to the first input that evades, on the path where it comes soonest, of each sample that has one."""
        trails = {}
        soonest = torch.where(reached < lost, reached, self.length + 1).reshape(-1, self.paths).min(1)
        for i, (moves, which) in enumerate(zip(soonest.values.tolist(), soonest.indices.tolist(), strict=True)):
            if moves <= self.length:
                trails[i] = s.ahead[i] + _moves(seeds[i * self.paths + which], moves)
        return trails

    @staticmethod
    def _shorten(run: Run, trails: dict[int, list[Move]]) -> None:
        """Leave out what moves the evasions can do without; the run keeps the nearest input that evades."""
        searches = {i: _fewer(trail) for i, trail in trails.items()}
        tried = {i: next(search, None) for i, search in searches.items()}
        while tried:
            made = {i: _made(run, i, moves) for i, moves in tried.items() if moves is not None}
            legal = [i for i, x in made.items() if run.space.tester(x)]
            evades, over = dict.fromkeys(made, False), set()
            if legal:
                hit, granted = crosses(run, _batch([made[i] for i in legal], run.x), torch.tensor(legal))
                evades |= dict(zip(legal, hit.tolist(), strict=True))
                over = {i for i, told in zip(legal, granted.tolist(), strict=True) if not told}
            answered = {i: _told(searches[i], evades[i]) for i in made if i not in over}
            tried = {i: moves for i, moves in answered.items() if moves is not None}

    def _climb(self, run: Run, s: Climb, gap: Tensor, chains: list[list[Any]], seeds: list[int], lost: Tensor) -> None:
        """Stay at the new input where it scores no lower, and choose what to look at next."""
        score = gap.double().mean(1).float()
        for i in range(len(gap)):
            place = torch.tensor([i])
            if score[i] < s.score[i]:
                put(s.next, place, _batch([s.x[i]], s.x))
                s.ahead[i] = s.past[i]
                s.score[i] = -torch.inf  # measured anew: a lucky score would hold the climb for ever
                continue
            s.score[i], s.past[i] = score[i], s.ahead[i]
            put(s.x, place, _batch([s.next[i]], s.x))
            best = i * self.paths + int(gap[i].argmax())
            half = int(lost[best]) // 2
            if run.space.tester(chains[best][half]):  # bisection has not looked at every input before the flip
                s.ahead[i] = s.past[i] + _moves(seeds[best], half)
                put(s.next, place, _batch([chains[best][half]], s.x))


def _moves(seed: int, count: int) -> list[Move]:
    """The first moves of a path."""
    return [(seed, number) for number in range(count)]


def _made(run: Run, i: int, moves: list[Move]) -> Any:
    """What the moves make of the original of sample i."""
    x = run.x[i]
    for move in moves:
        x = run.space.morpher(x, np.random.default_rng(move))
    return x


def _fewer(moves: list[Move]) -> Generator[list[Move], bool, None]:
    """Ever fewer moves: without each half, quarter and so on down to single ones; is told which of them evade."""
    size = len(moves)
    while size > 1:
        size, at = -(-size // 2), 0
        while at < len(moves):
            fewer = moves[:at] + moves[at + size :]
            if fewer and (yield fewer):
                moves = fewer
            else:
                at += size


def _told(search: Generator[list[Move], bool, None], evades: bool) -> list[Move] | None:
    """What a search tries after this answer; None where it has ended."""
    try:
        return search.send(evades)
    except StopIteration:
        return None


def _flip(chain: list[Any], tester: Any) -> int:
    """After how many morphs the tester's answer flips, by bisection; the chain's length where it does not."""
    last = len(chain) - 1
    if tester(chain[last]):
        return last + 1
    lo, hi = 0, last
    while hi - lo > 1:
        middle = (lo + hi) // 2
        lo, hi = (middle, hi) if tester(chain[middle]) else (lo, middle)
    return hi


def _batch(items: list[Any], like: Batch) -> Batch:
    """Inputs as a batch of the kind of `like`."""
    return torch.stack(items).to(like) if isinstance(like, Tensor) else items
