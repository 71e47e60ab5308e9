"""The metered, access-limited view of a victim that a black-box attacker gets: exact budgets, no gradients to give."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.core.batch import Batch, take
from sparring.core.errors import ThreatError
from sparring.core.nearby import Standing, Window
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom, content_ids
from sparring.core.threat import Access
from sparring.core.victim import BaseVictim


class Oracle:
    """Answers queries for n samples and counts them, each sample against its own budget.

    Args:
        victim: who answers.
        access: LABELS hides the scores; SCORES shows them.
        n: the number of samples being attacked.
        budget: queries granted to each sample; None for no limit.
        batch_size: the victim is asked at most so many inputs at once.
        cache: answer an input that this sample asked before from memory, uncharged; None does so for costly victims
            only.
    """

    def __init__(
        self,
        victim: BaseVictim,
        access: Access,
        n: int,
        *,
        budget: int | None = None,
        batch_size: int = 1024,
        cache: bool | None = None,
    ) -> None:
        if access < Access.LABELS:
            raise ThreatError(f"an oracle needs access to labels at least; the threat model grants {access}")
        victim.require(min(access, Access.SCORES), "an oracle of this access")
        self.victim, self.access, self.budget, self.batch_size = victim, access, budget, batch_size
        self._quick = victim.arranged()
        self.spent = torch.zeros(n, dtype=torch.int64, device=victim.device)
        self._most = 0  # no sample has spent more
        self._standing = Standing()
        use_cache = victim.traits.costly if cache is None else cache
        self._cache: dict[tuple[int, int], tuple[int, Tensor | None, bool | None]] | None = {} if use_cache else None

    def left(self, rows: Tensor) -> Tensor:
        """Queries left to the samples `rows`, int64 (m,); a very large number where there is no limit."""
        if self.budget is None:
            return torch.full_like(rows, 2**62)
        return self.budget - self.spent[rows]

    @property
    def ending(self) -> bool:
        """Whether some sample may have spent its budget; `left` says which."""
        return self.budget is not None and self._most >= self.budget

    def __call__(
        self,
        x: Batch,
        rows: Tensor,
        noise: KeyedRandom | None = None,
        *,
        apart: bool = False,
        window: Window | None = None,
    ) -> tuple[Prediction, Tensor]:
        """Ask about the inputs x, of which input i belongs to sample rows[i] (a sample may ask several at once).

        Args:
            x: the inputs.
            rows: whose they are, int64 (m,).
            noise: for a stochastic victim, one row an input.
            apart: the caller knows that no sample asks twice here.
            window: all in which x differs from the points that `stand` and `settle` left, one input a sample; it spares work
                and changes nothing.

        Returns:
            The prediction for every input, and `granted`, bool (m,). Inputs past a sample's budget are not granted:
            their label is -1 and their scores NaN. They are never sent to the victim, and nothing is raised.
        """
        if self._cache is not None:
            return self._cached(x, rows, noise)
        granted = self._charge(rows, apart)
        if granted is None:
            near = self._ask_nearby(x, rows, window) if window is not None and apart else None
            return self._ask(x, noise) if near is None else near, torch.ones_like(rows, dtype=torch.bool)
        self._standing.forget()  # it cannot follow a question that only some could pay
        index = granted.nonzero().squeeze(1)
        if len(index):
            answer = self._ask(take(x, index), None if noise is None else noise.take(index))
        else:
            answer = self._silence()
        return _spread(answer, index, len(rows)), granted

    def stand(self, x: Batch, rows: Tensor, sides: tuple[int, int]) -> None:
        """Say where the samples `rows` stand, x (m, ...), before windows of these sides are changed in them.

        Their answers are known: this asks nothing and charges nothing. A victim that can remembers what its layers made of them.
        """
        if isinstance(x, Tensor) and self._cache is None:
            self._standing.stand(self.victim, x, rows, sides)

    def settle(self, better: Tensor) -> None:
        """Say which points of the last question, bool (m,), the samples now stand at; the others stay where they stood."""
        self._standing.settle(better)

    def forget(self) -> None:
        """Nobody stands anywhere: a new search begins."""
        self._standing.forget()

    def _ask_nearby(self, x: Batch, rows: Tensor, window: Window) -> Prediction | None:
        """The answer from memory and window, or None where there is no memory."""
        memory = self._standing.at(rows)
        if memory is None:
            return None
        answer = self.victim.query_nearby(memory, x, window)
        return answer.labels_only() if self.access is Access.LABELS else answer

    def _silence(self) -> Prediction:
        """The answer to no question: nobody is asked."""
        labels = torch.zeros(0, dtype=torch.int64, device=self.spent.device)
        known = self.access is not Access.LABELS and self.victim.classes is not None
        return Prediction(labels, torch.zeros(0, self.victim.classes or 0, device=labels.device) if known else None)

    def _charge(self, rows: Tensor, apart: bool) -> Tensor | None:
        """Bool (m,): which queries their samples can still pay, and have paid, in the order they were asked; None for all."""
        if apart:
            asked, most = None, self._most + 1
        else:
            asked = torch.bincount(rows, minlength=len(self.spent))
            most = self._most + int(asked.max()) if len(rows) else self._most
        if self.budget is None or most <= self.budget:
            if asked is not None:
                self.spent += asked
            elif len(rows) == len(self.spent):  # no index then: on small networks its price shows
                self.spent += 1
            else:
                self.spent[rows] += 1
            self._most = most
            return None
        granted = self._affordable(rows)
        self.spent.index_add_(0, rows, granted.long())
        self._most = int(self.spent.max())
        return None if bool(granted.all()) else granted

    def _affordable(self, rows: Tensor) -> Tensor:
        """Bool (m,): which queries are among the last that their samples can pay."""
        left = self.left(rows)
        order = rows.argsort(stable=True)
        ordered = rows[order]
        position = torch.arange(len(rows), device=rows.device)
        starts = torch.ones_like(ordered, dtype=torch.bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        first = torch.where(starts, position, torch.zeros_like(position)).cummax(0).values
        rank = torch.empty_like(position)
        rank[order] = position - first
        return rank < left

    def _ask(self, x: Batch, noise: KeyedRandom | None) -> Prediction:
        n = len(x)
        parts = []
        for start in range(0, max(n, 1), self.batch_size):
            stop = min(n, start + self.batch_size)
            part = x[start:stop]
            keyed = None if noise is None else KeyedRandom(noise.seed, noise.ids[start:stop])
            parts.append(self._quick.query(part, keyed))
        answer = parts[0] if len(parts) == 1 else Prediction.concat(parts)
        return answer.labels_only() if self.access is Access.LABELS else answer

    def _cached(self, x: Batch, rows: Tensor, noise: KeyedRandom | None) -> tuple[Prediction, Tensor]:
        memory = self._cache if self._cache is not None else {}
        keys = list(zip(rows.tolist(), content_ids(x).tolist(), strict=True))
        fresh: dict[tuple[int, int], int] = {}
        for i, key in enumerate(keys):
            if key not in memory:
                fresh.setdefault(key, i)
        index = torch.tensor(list(fresh.values()), dtype=torch.int64, device=rows.device)
        if len(index):
            paid = self._charge(rows[index], apart=False)
            index = index if paid is None else index[paid]
        if len(index):
            answer = self._ask(take(x, index), None if noise is None else noise.take(index))
            for j, i in enumerate(index.tolist()):
                memory[keys[i]] = (
                    int(answer.labels[j]),
                    None if answer.scores is None else answer.scores[j],
                    None if answer.accepted is None else bool(answer.accepted[j]),
                )
        return _collect([memory.get(key) for key in keys], rows.device)


def _spread(answer: Prediction, index: Tensor, n: int) -> Prediction:
    """The answers at `index` among n, with -1, NaN and False elsewhere."""
    labels = torch.full((n,), -1, dtype=torch.int64, device=answer.labels.device)
    labels[index] = answer.labels
    scores = accepted = None
    if answer.scores is not None:
        scores = torch.full((n, answer.scores.shape[1]), torch.nan, dtype=answer.scores.dtype, device=labels.device)
        scores[index] = answer.scores
    if answer.accepted is not None:
        accepted = torch.zeros(n, dtype=torch.bool, device=labels.device)
        accepted[index] = answer.accepted
    return Prediction(labels, scores, accepted)


def _collect(
    entries: list[tuple[int, Tensor | None, bool | None] | None], device: torch.device
) -> tuple[Prediction, Tensor]:
    known = [e for e in entries if e is not None]
    granted = torch.tensor([e is not None for e in entries], dtype=torch.bool, device=device)
    index = granted.nonzero().squeeze(1)
    scores = [e[1] for e in known if e[1] is not None]
    accepted = [e[2] for e in known if e[2] is not None]
    answer = Prediction(
        torch.tensor([e[0] for e in known], dtype=torch.int64, device=device),
        torch.stack(scores) if scores else None,
        torch.tensor(accepted, dtype=torch.bool, device=device) if accepted else None,
    )
    return _spread(answer, index, len(entries)), granted
