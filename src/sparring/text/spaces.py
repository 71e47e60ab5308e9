"""What a legal change of a text is: words appended to a message."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.errors import InputError
from sparring.core.space import Bounds

_PLAIN = re.compile(r"\w+")


def extend(text: str, words: Sequence[str]) -> str:
    """The text with words appended, one space before each."""
    return " ".join([text, *words])


def added_words(text: str, longer: str) -> list[str] | None:
    """The words that `extend` appended to `text` to make `longer`; None where `longer` was not made so."""
    if longer == text:
        return []
    if not longer.startswith(text + " "):
        return None
    words = longer[len(text) + 1 :].split(" ")
    return words if all(word.split() == [word] for word in words) else None


@dataclass(frozen=True, eq=False)
class AddedWords:
    """Messages that begin with the original and go on with at most `limit` further words: x' = x + " " + w1 + " " + ...

    The cost of a change is the number of words added. Without a vocabulary a word is a run of letters, digits and
    underscores: "win-a-car" would be one word to write and three for a filter to count.

    Args:
        limit: the most words that may be added, a whole number or one per message, (n,). None seeks the smallest
            number.
        vocabulary: the words that may be added, as they are written; None allows every plain word.
        distinct: whether a word may be added once at most; capitals make no other word.

    Raises:
        InputError: a negative limit, an empty vocabulary, or a word in it that holds white space.

    Example:
        >>> space = AddedWords(2, vocabulary=["dinner", "love"])
        >>> space.contains(["win cash"] * 2, ["win cash love dinner", "win money"]).tolist()
        [True, False]
    """

    limit: int | Tensor | None = None
    vocabulary: Collection[str] | None = None
    distinct: bool = False

    name: ClassVar[str] = "added_words"

    def __post_init__(self) -> None:
        limit = self.limit
        whole = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0
        if limit is not None and not isinstance(limit, Tensor) and not whole:
            raise InputError(f"the limit is {limit!r}; a whole number of words >= 0 is needed, or None for no limit")
        if self.vocabulary is None:
            return
        if isinstance(self.vocabulary, str):
            raise InputError("the vocabulary is one string; a collection of words is needed: vocabulary=text.split()")
        words = frozenset(self.vocabulary)
        wrong = sorted(repr(word) for word in words if not isinstance(word, str) or word.split() != [word])
        if wrong or not words:
            found = f"holds {', '.join(wrong[:3])}" if wrong else "is empty"
            raise InputError(f"the vocabulary {found}; it needs words without white space, at least one")
        object.__setattr__(self, "vocabulary", words)

    def allows(self, word: str) -> bool:
        """Whether a word may be added at all."""
        return word in self.vocabulary if self.vocabulary is not None else bool(_PLAIN.fullmatch(word))

    def cost(self, x: Batch, x_adv: Batch) -> Tensor:
        """The number of words added, float (n,); infinite where they may not be added or the original is not kept."""
        words = [added_words(text, longer) for text, longer in zip(x, x_adv, strict=True)]
        counts = [len(w) if w is not None and self._legal(w) else torch.inf for w in words]
        return torch.tensor(counts, dtype=torch.float32)

    def contains(self, x: Batch, x_adv: Batch) -> Tensor:
        """Bool (n,): keeps the original; each word is allowed, and new where they must be distinct; not too many."""
        cost = self.cost(x, x_adv)
        return torch.isfinite(cost) if self.limit is None else torch.isfinite(cost) & (cost <= self.limit)

    def _legal(self, words: list[str]) -> bool:
        repeated = len({word.casefold() for word in words}) < len(words)
        return all(map(self.allows, words)) and not (self.distinct and repeated)

    def take(self, index: Tensor) -> AddedWords:
        """The space with the limits of the messages at `index`."""
        return replace(self, limit=self.limit[index.cpu()]) if isinstance(self.limit, Tensor) else self

    def without_limit(self) -> AddedWords:
        """The same words, as many as one likes."""
        return replace(self, limit=None)

    def bound(self, x: Batch, bounds: Bounds | None) -> AddedWords:
        """The space with one limit per message.

        Raises:
            InputError: inputs that are no texts; limits of the wrong number, or not whole numbers >= 0.
        """
        if isinstance(x, (Tensor, str)) or not all(isinstance(text, str) for text in x):
            raise InputError(f"words are added to texts; a list of str is needed, and a {type(x).__name__} came")
        if self.limit is None:
            return self
        limit = torch.as_tensor(self.limit).cpu().to(torch.float32)
        if limit.ndim == 0:
            limit = limit.expand(len(x))
        whole = torch.isfinite(limit) & (limit >= 0) & (limit == limit.floor())
        if limit.shape != (len(x),) or not bool(whole.all()):
            raise InputError(
                f"the limits, of shape {tuple(limit.shape)}, do not fit {len(x)} messages; "
                "give one whole number >= 0 for all, or one for each"
            )
        return replace(self, limit=limit.contiguous())

    def __repr__(self) -> str:
        shown = []
        if isinstance(self.limit, Tensor):
            one = self.limit.numel() > 0 and bool((self.limit == self.limit.flatten()[0]).all())
            shown.append(f"{int(self.limit.flatten()[0])}" if one else f"<{self.limit.numel()} limits>")
        elif self.limit is not None:
            shown.append(str(self.limit))
        shown += [] if self.vocabulary is None else [f"vocabulary of {len(self.vocabulary)}"]
        shown += ["distinct"] if self.distinct else []
        return f"AddedWords({', '.join(shown)})"
