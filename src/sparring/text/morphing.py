"""Random changes of messages word by word, and the test whether a message can still be answered: what EvadeHC needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparring.core.errors import InputError

# A link, or a number to call or to text: five digits or more, however they are set apart.
_CONTACT = re.compile(r"https?://\S+|www\.\S+|\b[\w-]+\.(?:com|net|org|example|uk)\b|\d(?:[ .-]?\d){4,}", re.IGNORECASE)


@dataclass(frozen=True)
class MorphWords:
    """A morpher for texts: one word is added, replaced or misspelt, each as likely.

    Words to add or to put in another's place come from the vocabulary. A misspelling swaps two neighbouring letters.

    Args:
        vocabulary: the words, such as those of wanted messages; at least one.

    Raises:
        InputError: no words, or one string.

    Example:
        >>> import numpy as np
        >>> len(MorphWords(["dinner", "love"])("win cash", np.random.default_rng(0)).split()) in (2, 3)
        True
    """

    vocabulary: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.vocabulary, str) or not self.vocabulary:
            raise InputError(f"the vocabulary is {self.vocabulary!r}; a sequence of words is needed, at least one")

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """Another text, one word away."""
        words = text.split()
        kind = rng.integers(3) if words else 0
        at = int(rng.integers(len(words) + (kind == 0)))
        if kind == 0:
            words.insert(at, self._any(rng))
        elif kind == 1:
            words[at] = self._any(rng)
        else:
            words[at] = _misspelt(words[at], rng)
        return " ".join(words)

    def __repr__(self) -> str:
        return f"MorphWords({len(self.vocabulary)} words)"

    def _any(self, rng: np.random.Generator) -> str:
        return self.vocabulary[int(rng.integers(len(self.vocabulary)))]


def has_contact(text: str) -> bool:
    """A tester for unwanted messages: whether the text still names a link, or a number of five digits or more."""
    return bool(_CONTACT.search(text))


def _misspelt(word: str, rng: np.random.Generator) -> str:
    if len(word) < 2:
        return word
    at = int(rng.integers(len(word) - 1))
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
