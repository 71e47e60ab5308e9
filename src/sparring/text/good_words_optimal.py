"""The fewest added words, exactly, for a filter whose scores are sums over words: good words with the box open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sparring.core.attack import Attack
from sparring.core.errors import CapabilityError, InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access
from sparring.text.corpus import Side, sides
from sparring.text.good_words import PAPER
from sparring.text.spaces import AddedWords, extend

Floats = NDArray[np.float64]

_ROUNDING = 1e-9  # of the scores' size: how far a sum of ours may lie from the filter's own
_EXTRA = 2  # words beyond the count that the sums give, where rounding made them too hopeful


class AdditiveWords(Protocol):
    """What a victim offers under the name `word_weights`: class scores that are a bias plus a weight per word."""

    @property
    def words(self) -> Sequence[str]:
        """The words that the filter knows."""
        ...

    @property
    def weights(self) -> Floats:
        """The weight of each word for each class, (v, k)."""
        ...

    @property
    def presence(self) -> bool:
        """Whether a repeated word counts once."""
        ...

    def tokens(self, text: str) -> list[int]:
        """The numbers of the known words in a text, each as often as it counts."""
        ...

    def scores(self, text: str) -> Floats:
        """The class scores of a text, (k,)."""
        ...


@dataclass(frozen=True)
class Plan:
    """How many words suffice, and in which order to add them; `count` is None where no number does."""

    count: int | None
    words: list[str]


@dataclass
class Messages:
    """Per message: the text so far, and its plan."""

    x: list[str]
    plan: list[Plan]


@attack(
    Card(
        name="good-words-optimal",
        title="The fewest good words, exactly, for naive Bayes and linear filters on word counts",
        paper=f"{PAPER}: the closed form for its additive filters",
        access=Access.GRADIENTS,
        needs=("word_weights",),
        spaces=("added_words",),
        minimal=True,
        cost="one sort of the vocabulary per pair of classes, and one forward per message",
        domains=("text",),
        caveats="Exact over the filter's own vocabulary, or the space's. Additive filters alone: one that normalises "
        "its vectors (TF-IDF with norm='l2') has no such form and is refused.",
        floor={"added_words": 10.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class GoodWordsOptimal(Attack):
    r"""Adds the words of largest weight: the exact minimum where scores are sums over words.

    To lift class j over the true class y, whose lead is :math:`g = s_y(x) - s_j(x)`, the fewest words are the fewest
    largest :math:`w_j - w_y` whose sum makes up for g: the best word again and again, or each once where the space asks
    for distinct words or the filter sees presence alone. Untargeted, the class that needs fewest is taken.

    Args:
        most: longest addition considered; where more words are needed, or none helps, the message survives.
    """

    most: int = 10_000

    def search(self, run: Run) -> None:
        """Plan each message by the weights, then let the filter itself confirm the count."""
        if self.most < 1:
            raise InputError(f"most is {self.most}; at least one word must be allowed")
        planner = _Planner(run.victim.capability("word_weights"), run.space, self.most)
        plans = [planner.plan(x, y, side) for x, y, side in zip(run.x, run.y.tolist(), sides(run), strict=True)]
        s = run.begin(Messages(list(run.x), plans))
        run.give_up(torch.tensor([plan.count is None for plan in plans]))
        for extra in run.steps(1 + _EXTRA):
            s.x = [extend(text, p.words[: (p.count or 0) + extra]) for text, p in zip(run.x, s.plan, strict=True)]
            run.give_up(run.goal.achieved(run.look(s.x), run.y))


class _Planner:
    """The words that may be added, each as the weights that it brings."""

    def __init__(self, filter_: AdditiveWords, space: AddedWords, most: int) -> None:
        self.filter, self.most = filter_, most
        self.once = space.distinct or filter_.presence
        listed = filter_.words if space.vocabulary is None else sorted(space.vocabulary)
        words, tokens = [], []
        for word in listed:
            known = filter_.tokens(word) if space.allows(word) else []
            if len(known) > 1 and filter_.presence:
                raise CapabilityError(
                    f"the space's word {word!r} is {len(known)} words to this filter, which counts each once: the "
                    "fewest such words are a covering problem. Give a vocabulary of single words"
                )
            if known:
                words.append(word)
                tokens.append(known)
        self.words, self.tokens, self.fold = words, tokens, space.distinct
        self.weights = np.array([filter_.weights[known].sum(axis=0) for known in tokens])

    def plan(self, text: str, y: int, side: Side) -> Plan:
        """The fewest words that take a message of class y to the side, over all rivals of y that lie there."""
        scores = self.filter.scores(text)
        rivals = [c for c in range(len(scores)) if c != y] if side.away else [side.label]
        if not side.away and len(scores) > 2:
            raise CapabilityError(
                f"with {len(scores)} classes a chosen one must pass all others at once, which no sort of words "
                "settles; use goal=None (untargeted), or good-words-active"
            )
        plans = [self._against(text, rival, y, scores) for rival in rivals]
        return min(plans, key=lambda plan: np.inf if plan.count is None else plan.count)

    def _against(self, text: str, rival: int, y: int, scores: Floats) -> Plan:
        if not self.words:
            return Plan(None, [])
        gains = self.weights[:, rival] - self.weights[:, y]
        order = [i for i in np.argsort(-gains, kind="stable").tolist() if gains[i] > 0]
        needed = float(scores[y] - scores[rival]) - _ROUNDING * max(1.0, float(np.abs(scores).max()))
        if not self.once:
            count = max(1, int(np.ceil(needed / gains[order[0]]))) if order else self.most + 1
            return Plan(None, []) if count > self.most else Plan(count, [self.words[order[0]]] * (count + _EXTRA))
        order = self._each_once(order, set(self.filter.tokens(text)) if self.filter.presence else set())
        sums = np.cumsum(gains[order])
        count = int(np.searchsorted(sums, needed)) + 1
        words = [self.words[i] for i in order]
        return Plan(None, []) if count > min(self.most, len(words)) else Plan(count, words)

    def _each_once(self, order: list[int], present: set[int]) -> list[int]:
        """The words in order, without those that add nothing or differ from an earlier one in capitals alone."""
        seen: set[object] = set(present)
        kept = []
        for i in order:
            keys: list[object] = [self.tokens[i][0]] if self.filter.presence else []
            keys += [self.words[i].casefold()] if self.fold else []
            if seen.isdisjoint(keys):
                seen.update(keys)
                kept.append(i)
        return kept
