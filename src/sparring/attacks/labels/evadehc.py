"""EvadeHC: hill climbing with nothing but yes and no, on inputs of any kind, by a morpher and a tester of one's own."""

from __future__ import annotations

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


@dataclass
class Climb:
    """Where each sample stands.

    Attributes:
        x: the input that paths start from; the tester accepts it.
        score: its mean gap between the two flips, minus infinity where it is to be measured, (m,).
        next: the input that the next paths start from, to see whether it is better.
    """

    x: Batch
    score: Tensor
    next: Batch


@attack(
    Card(
        name="evadehc",
        title="EvadeHC: morph in the dark, by accept or reject alone",
        paper="Dang, Huang and Chang 2017, Evading Classifiers by Morphing in the Dark, arXiv:1705.07535",
        access=Access.LABELS,
        spaces=("morphs",),
        minimal=True,
        cost="up to paths * (2 + log2 length) queries a step, and about as many calls of the tester",
        domains=("text", "table", "any"),
        caveats="As good as its morpher. It ends at the first input that evades, on the shortest stretch of that path; "
        "no smaller change is looked for elsewhere. Calls of the tester are not counted against the budget.",
        floor={"morphs": 16.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class EvadeHC(Attack):
    """Hill climbing on two flips along random paths, in the space `Morphs(morpher, tester)`.

    A path is a chain of random morphs. On it the tester flips after m steps (the property is lost) and the detector
    after r (the goal is reached); both are found by bisection, as the paper does. Where r < m the r-th input evades.
    An input scores the mean of m - r over its paths, length + 1 standing for "never". From an input the climb looks at
    one half-way to the tester's flip on the path of the greatest m - r, stays there if the score is no lower, and else
    goes back and draws other paths.

    The climb among inputs by a score of both flips is the paper's; where to look next and the mean are ours.

    Args:
        steps: inputs that paths are drawn from.
        paths: random paths from each.
        length: morphs on a path.
    """

    steps: int = 50
    paths: int = 6
    length: int = 32

    def search(self, run: Run) -> None:
        """Draw paths, measure, climb."""
        for name in ("paths", "length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; at least one is needed")
        s = run.begin(Climb(own(run.x), torch.full((len(run.x),), -torch.inf), own(run.x)))
        for t in run.steps(self.steps):
            chains = [self._chain(run, s.next[i // self.paths], i, t) for i in range(len(run.x) * self.paths)]
            lost = torch.tensor([_flip(chain, run.space.tester) for chain in chains])
            gap = (lost - self._reached(run, chains, lost)).reshape(-1, self.paths)
            if run.space.limit is None:  # with one, the run itself ends what is near enough
                run.give_up(run.found())
            self._climb(run, s, gap, chains, lost)

    def _chain(self, run: Run, x: Any, i: int, t: int) -> list[Any]:
        """The start of path i and what comes after each morph; the randomness is the path's own in every batch."""
        sample = torch.tensor([i // self.paths])
        rng = np.random.default_rng(run.rng.take(sample).number(("path", t, i % self.paths)))
        chain = [x]
        for _ in range(self.length):
            chain.append(run.space.morpher(chain[-1], rng))
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

    def _climb(self, run: Run, s: Climb, gap: Tensor, chains: list[list[Any]], lost: Tensor) -> None:
        """Stay at the new input where it scores no lower, and choose what to look at next."""
        score = gap.double().mean(1).float()
        for i in range(len(gap)):
            place = torch.tensor([i])
            if score[i] < s.score[i]:
                put(s.next, place, _batch([s.x[i]], s.x))
                s.score[i] = -torch.inf  # measured anew: a lucky score would hold the climb for ever
                continue
            s.score[i] = score[i]
            put(s.x, place, _batch([s.next[i]], s.x))
            best = i * self.paths + int(gap[i].argmax())
            ahead = chains[best][int(lost[best]) // 2]
            # bisection has not looked at every input before the flip
            put(s.next, place, _batch([ahead if run.space.tester(ahead) else s.x[i]], s.x))


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
