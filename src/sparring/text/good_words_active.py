"""Good words found by asking the filter: each is tried alone on a message that barely fails (Lowd and Meek 2005)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access
from sparring.text.corpus import Corpus, sides, word_lists, words_in
from sparring.text.good_words import PAPER
from sparring.text.spaces import extend

T = TypeVar("T")

# A conversation yields texts to ask about, with the best message it would send now, and is told which of them pass.
Conversation = Generator[tuple[list[str], str], list[bool], T]

_WANTED = 10  # wanted messages of the attacker's own that lead from a blocked text to one that passes
_COMMON = 150  # common words that lead there where whole messages do not
_BAD_WORDS = 12  # unwanted words tried to raise the bar for the good ones


@dataclass
class Talks:
    """Per message: the best one known, the conversation, and what it asks next."""

    x: list[str]
    talk: list[Conversation[None]]
    asked: list[list[str]]


@attack(
    Card(
        name="good-words-active",
        title="Good words, active: test words one by one on a message that barely fails, and add the good ones",
        paper=PAPER,
        access=Access.LABELS,
        spaces=("added_words",),
        minimal=True,
        cost="about log2 of a message's length, then one query per word tested and per word added",
        domains=("text",),
        caveats="Each message pays for its own search, since budgets are counted per message; a sender of many would "
        "pay once for all. Tests prove a word good on a barely blocked message: where words interact, less follows.",
        floor={"added_words": 20.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class GoodWordsActive(Attack):
    """Finds words that help by asking about each, then adds them one at a time until the message passes.

    Between the message and a wanted one of the attacker's own lies a pair of texts, one word apart, of which the first
    is blocked and the second passes; bisection finds it. A word is good if it carries the first, barely blocked text
    over. "first" takes the first `words` good ones, in the order of the attacker's list. "best" tests all candidates
    and then raises the bar with unwanted words, until at most `words` good ones still carry the text over; those come
    first.

    Args:
        method: "first" or "best".
        words: n, how many good words are wanted.
        candidates: words of the attacker's list that may be tested.
        at_once: words tested between two answers; "first" may overshoot by as many.
    """

    method: Literal["first", "best"] = "first"
    words: int = 30
    candidates: int = 1000
    at_once: int = 10

    def search(self, run: Run) -> None:
        """Hold one conversation per message, and ask all their questions together."""
        self._check()
        s = run.begin(Talks(list(run.x), self._conversations(run), [[] for _ in run.x]))
        self._advance(run, s, [None] * len(run.x))
        rounds = 64 + (_BAD_WORDS + 1) * -(-self.candidates // self.at_once) + self.words
        for _ in run.steps(rounds):
            texts = [text for asked in s.asked for text in asked]
            owner = torch.tensor([i for i, asked in enumerate(s.asked) for _ in asked])
            answer, granted = run.ask(texts, owner)
            passes = run.goal.take(owner).achieved(answer, run.y[owner])
            sizes = [len(asked) for asked in s.asked]
            told = zip(passes.split(sizes), granted.split(sizes), strict=True)
            self._advance(run, s, [part.tolist() if bool(paid.all()) else None for part, paid in told])

    def _check(self) -> None:
        if self.method not in ("first", "best"):
            raise InputError(f"the method is {self.method!r}; 'first' or 'best' is needed")
        for name in ("words", "candidates", "at_once"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; at least one is needed")

    def _conversations(self, run: Run) -> list[Conversation[None]]:
        corpus, wanted = Corpus.of(run), sides(run)
        draws = run.rng.integers((_WANTED,), "wanted", 2**30).tolist()
        good = word_lists(run, "ratio")
        limit = run.space.limit
        most = [self.words] * len(run.x) if limit is None else limit.clamp(max=self.words).long().tolist()
        split = {side: corpus.split(side) for side in set(wanted)}
        bad = {
            s: corpus.rank(s._replace(away=not s.away), "ratio") if others else [] for s, (_, others) in split.items()
        }
        common = {side: corpus.rank(side, "frequent")[:_COMMON] for side in split}
        talks = []
        for i, side in enumerate(wanted):
            pool = split[side][0]
            way = [word for draw in draws[i] for word in words_in(pool[draw % len(pool)])]
            lists = good[i][: self.candidates], bad[side][:_BAD_WORDS]
            talks.append(self._talk(run.x[i], [way, common[side]], *lists, most[i]))
        return talks

    def _advance(self, run: Run, s: Talks, answers: list[list[bool] | None]) -> None:
        """Tell every conversation its answers; one that has ended, or was not fully answered, gives its sample up."""
        over = torch.zeros(len(s.talk), dtype=torch.bool)
        for i, (talk, told) in enumerate(zip(s.talk, answers, strict=True)):
            if told is None and s.asked[i]:
                over[i] = True
                continue
            try:
                s.asked[i], s.x[i] = next(talk) if told is None else talk.send(told)
            except StopIteration:
                over[i] = True
        run.give_up(over)

    def _talk(self, x: str, ways: list[list[str]], good: list[str], bad: list[str], most: int) -> Conversation[None]:
        """The whole attack on one message."""
        if not most:
            return
        barely = yield from _barely_blocked(x, ways)
        if barely is None:
            return
        found = yield from self._good_words(x, barely, good, most)
        if self.method == "best" and len(found) > self.words:
            found = yield from self._best_words(x, barely, found, bad, most)
        for count in range(1, min(len(found), most) + 1):
            message = extend(x, found[:count])
            passes = yield [message], message
            if passes[0]:
                return

    def _good_words(self, x: str, barely: str, candidates: list[str], most: int) -> Conversation[list[str]]:
        """The candidates that carry the barely blocked text over, in their order; "first" stops at `words` of them."""
        found: list[str] = []
        for start in range(0, len(candidates), self.at_once):
            batch = candidates[start : start + self.at_once]
            passes = yield [extend(barely, [word]) for word in batch], extend(x, found[:most])
            found += [word for word, passed in zip(batch, passes, strict=True) if passed]
            if self.method == "first" and len(found) >= self.words:
                return found[: self.words]
        return found

    def _best_words(self, x: str, barely: str, found: list[str], bad: list[str], most: int) -> Conversation[list[str]]:
        """The good words by how many unwanted words they make up for, the best first.

        An unwanted word that no good one makes up for is taken back, and a milder one tried.
        """
        left: list[str] = found
        weaker: list[str] = []
        for word in bad:
            if len(left) <= self.words:
                break
            harder, survivors = extend(barely, [word]), []
            for start in range(0, len(left), self.at_once):
                batch = left[start : start + self.at_once]
                passes = yield [extend(harder, [w]) for w in batch], extend(x, [*left, *weaker][:most])
                survivors += [w for w, passed in zip(batch, passes, strict=True) if passed]
            if survivors:
                fallen = set(left) - set(survivors)
                left, weaker, barely = survivors, [w for w in left if w in fallen] + weaker, harder
        return left + weaker


def _barely_blocked(x: str, ways: list[list[str]]) -> Conversation[str | None]:
    """The last blocked text before the first that passes, on a way from the message to wanted words.

    The way adds the wanted words one by one. Where all of them together do not carry the message over, it goes on and
    drops the message's own words from the front. Bisection keeps one end blocked and the other passing. None where the
    wanted words alone are blocked as well.
    """
    own = x.split()
    found: tuple[list[str], int] | None = None
    for dropped in (0, len(own)):
        for words in ways:
            if found is None:
                passes = yield [_on_the_way(x, own, words, len(words) + dropped)], x
                found = (words, len(words) + dropped) if passes[0] else None
    if found is None:
        return None
    (words, passing), blocked = found, 0
    while passing - blocked > 1:
        middle = (blocked + passing) // 2
        passes = yield [_on_the_way(x, own, words, middle)], x
        blocked, passing = (blocked, middle) if passes[0] else (middle, passing)
    return _on_the_way(x, own, words, blocked)


def _on_the_way(x: str, own: list[str], words: list[str], i: int) -> str:
    """The i-th text on the way: i wanted words added, or all of them added and the rest of i dropped from the front."""
    return extend(x, words[:i]) if i <= len(words) else " ".join([*own[i - len(words) :], *words])
