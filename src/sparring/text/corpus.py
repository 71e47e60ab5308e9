"""What an attacker learns from messages of his own: which words are common in wanted ones and rare in the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sparring.core.errors import InputError, ThreatError
from sparring.core.runner import Run
from sparring.core.threat import Targeted, Untargeted

Choice = Literal["ratio", "frequent", "dictionary"]

_WORD = re.compile(r"\w\w+")  # a single letter says little, and most filters drop it


def words_in(text: str) -> list[str]:
    """The words of a text in order, lower case: runs of two or more letters, digits and underscores."""
    return _WORD.findall(text.lower())


class Side(NamedTuple):
    """What a sample wants to look like: messages of class `label`, or of any other class when `away` is true."""

    label: int
    away: bool


def sides(run: Run) -> list[Side]:
    """The side that each active sample wants to reach.

    Raises:
        ThreatError: a goal that is no label.
    """
    goal = run.goal
    if isinstance(goal, Targeted):
        return [Side(label, False) for label in goal.of(run.y).tolist()]
    if isinstance(goal, Untargeted):
        return [Side(label, True) for label in run.y.tolist()]
    raise ThreatError(f"good words lead from label to label; the goal is {goal!r}: use Untargeted() or Targeted(label)")


@dataclass(frozen=True)
class Corpus:
    """Messages that the attacker owns, with their labels."""

    texts: Sequence[str]
    labels: Sequence[int]

    @classmethod
    def of(cls, run: Run) -> Corpus:
        """The corpus in the run's `threat.knowledge.data`.

        Raises:
            ThreatError: there is none.
            InputError: no texts, or as many labels as texts are needed.
        """
        data = run.threat.knowledge.data
        if data is None:
            raise ThreatError(
                "good words come from messages that the attacker owns, and this threat model has none; "
                "give ThreatModel(space, knowledge=Knowledge(data=(texts, labels)))"
            )
        texts, labels = data
        numbers = torch.as_tensor(labels).tolist()
        if isinstance(texts, (str, Tensor)) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"knowledge.data holds a {type(texts).__name__}; texts, a list of str, are needed")
        if len(texts) != len(numbers):
            raise InputError(f"knowledge.data holds {len(texts)} texts and {len(numbers)} labels; each text needs one")
        return cls(texts, numbers)

    def split(self, side: Side) -> tuple[list[str], list[str]]:
        """The messages on the side one wants to reach, and the others.

        Raises:
            ThreatError: there is no message to learn from on that side.
        """
        inside = [(label == side.label) != side.away for label in self.labels]
        good = [text for text, wanted in zip(self.texts, inside, strict=True) if wanted]
        if not good:
            wanted = f"other than {side.label}" if side.away else str(side.label)
            raise ThreatError(
                f"knowledge.data holds no message of class {wanted}, so no good word can be learnt from it"
            )
        return good, [text for text, wanted in zip(self.texts, inside, strict=True) if not wanted]

    def rank(self, side: Side, choice: Choice) -> list[str]:
        r"""The words of the corpus, the most promising first.

        With g of G wanted messages and b of B others holding the word, "ratio" sorts by
        :math:`\frac{(g + 1) / (G + 2)}{(b + 1) / (B + 2)}` and "frequent" by g, ties by the alphabet; "dictionary" is
        the alphabet itself, for the caller to shuffle.

        Raises:
            InputError: an unknown choice.
        """
        if choice not in get_args(Choice):
            raise InputError(f"the choice of words is {choice!r}; one of {', '.join(get_args(Choice))} is needed")
        good, bad = self.split(side)
        g, b = (Counter(word for text in texts for word in set(words_in(text))) for texts in (good, bad))
        if choice == "dictionary":
            return sorted({*g, *b})
        if choice == "frequent":
            return sorted(g, key=lambda word: (-g[word], word))
        return sorted(g, key=lambda word: (-(g[word] + 1) / (b[word] + 1), word))


def word_lists(run: Run, choice: Choice) -> list[list[str]]:
    """For each active sample the words of the attacker's corpus that the space allows, the most promising first."""
    corpus, wanted = Corpus.of(run), sides(run)
    ranked = {s: [word for word in corpus.rank(s, choice) if run.space.allows(word)] for s in set(wanted)}
    if choice != "dictionary":
        return [ranked[s] for s in wanted]
    size = max(map(len, ranked.values()))
    orders = run.rng.permutation(size, "dictionary").tolist()
    return [[ranked[s][i] for i in order if i < len(ranked[s])] for s, order in zip(wanted, orders, strict=True)]
