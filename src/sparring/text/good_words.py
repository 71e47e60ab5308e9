"""Good-word attacks without a search: words from a list, all at once or one more at a time (Lowd and Meek 2005)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access
from sparring.text.corpus import Choice, word_lists
from sparring.text.spaces import extend

PAPER = "Lowd and Meek 2005, Good Word Attacks on Statistical Spam Filters, CEAS"


@dataclass
class Listed:
    """What stands per message: the text so far, and the words to add."""

    x: list[str]
    words: list[list[str]]


@attack(
    Card(
        name="good-words-passive",
        title="Good words, passive: words that wanted messages hold and unwanted ones lack, the filter never asked",
        paper=PAPER,
        access=Access.NOTHING,
        spaces=("added_words",),
        cost="no query; one look through the attacker's own messages",
        domains=("text",),
        caveats="As strong as the attacker's corpus is like the filter's. It always adds as many words as the "
        "limit allows: run it at several limits for the curve, or good-words-list for the fewest.",
        floor={"added_words": 0.5},
    )
)
@dataclass(frozen=True, kw_only=True)
class GoodWordsPassive(Attack):
    """Appends the first words of a list made from `threat.knowledge.data`, as many as the limit allows; never asks.

    Args:
        choose: "ratio" takes the words most typical of wanted messages, "frequent" their commonest, "dictionary" any.
    """

    choose: Choice = "ratio"

    def search(self, run: Run) -> None:
        """Append them."""
        limits = run.space.limit.long().tolist()
        words = [listed[:most] for listed, most in zip(word_lists(run, self.choose), limits, strict=True)]
        run.begin(Listed([extend(text, w) for text, w in zip(run.x, words, strict=True)], words))


@attack(
    Card(
        name="good-words-list",
        title="Good words from a list, one more at a time until the filter lets the message pass",
        paper=PAPER,
        access=Access.LABELS,
        spaces=("added_words",),
        minimal=True,
        cost="one query per word added",
        domains=("text",),
        caveats="The order of the list is made without the filter, so a far shorter list may do: see "
        "good-words-active.",
        floor={"added_words": 40.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class GoodWordsList(Attack):
    """The passive list, used by a sender who sees whether a message passes: one word more until it does.

    Its distances are what the passive attack would have needed, had it known when to stop.

    Args:
        choose: as for `GoodWordsPassive`.
        most: words tried at most; the space's limit counts as well.
    """

    choose: Choice = "ratio"
    most: int = 150

    def search(self, run: Run) -> None:
        """Add a word, ask, repeat."""
        if self.most < 1:
            raise InputError(f"most is {self.most}; at least one word must be tried")
        limit = run.space.limit
        limits = [self.most] * len(run.x) if limit is None else limit.clamp(max=self.most).long().tolist()
        words = [listed[:most] for listed, most in zip(word_lists(run, self.choose), limits, strict=True)]
        s = run.begin(Listed(list(run.x), words))
        run.give_up(torch.tensor([not w for w in words]))
        for t in run.steps(self.most):
            s.x = [extend(text, w[: t + 1]) for text, w in zip(run.x, s.words, strict=True)]
            run.ask(s.x)
            run.give_up(run.found() | torch.tensor([len(w) <= t + 1 for w in s.words]))
