"""Texts: what a legal change of a message is, and the searches that only words allow."""

from sparring.text.good_words import GoodWordsList, GoodWordsPassive
from sparring.text.good_words_active import GoodWordsActive
from sparring.text.good_words_optimal import GoodWordsOptimal
from sparring.text.morphing import MorphWords, has_contact
from sparring.text.spaces import AddedWords, added_words, extend

__all__ = [
    "AddedWords",
    "GoodWordsActive",
    "GoodWordsList",
    "GoodWordsOptimal",
    "GoodWordsPassive",
    "MorphWords",
    "added_words",
    "extend",
    "has_contact",
]
