"""The space of added words: what belongs to it, what it costs, and what its makers are told when they slip."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.core.errors import InputError
from sparring.core.space import Space
from sparring.text import AddedWords, added_words, extend

PLAIN = st.text(alphabet=st.characters(categories=["L", "Nd"]), min_size=1, max_size=6)
TEXTS = st.text(max_size=30)


@given(TEXTS, st.lists(PLAIN, max_size=5))
def test_what_was_added_is_found_again(text: str, words: list[str]) -> None:
    longer = extend(text, words)
    assert added_words(text, longer) == words
    assert AddedWords().cost([text], [longer]).tolist() == [len(words)]
    assert AddedWords(len(words)).contains([text], [longer]).tolist() == [True]
    if words:
        assert AddedWords(len(words) - 1).contains([text], [longer]).tolist() == [False]


@pytest.mark.parametrize(
    ("longer", "why"),
    [
        ("win cas", "a letter is gone"),
        ("cash win", "the order changed"),
        ("win cash!", "the last word itself changed"),
        ("hi win cash", "a word came before"),
        ("win cash  hi", "two spaces"),
        ("win cash ", "a space alone"),
        ("win cash hi\tyou", "white space inside a word"),
        ("win cash win-a-car", "several words written as one"),
    ],
)
def test_everything_else_is_no_legal_change(longer: str, why: str) -> None:
    space = AddedWords()
    assert not bool(space.contains(["win cash"], [longer])[0]), why
    assert math.isinf(float(space.cost(["win cash"], [longer])[0])), why


def test_a_vocabulary_says_what_may_be_added_and_how_it_is_written() -> None:
    space = AddedWords(vocabulary=["dinner", "e-mail"])
    longer = ["x dinner e-mail dinner", "x Dinner", "x lunch"]
    assert space.contains(["x"] * 3, longer).tolist() == [True, False, False]


def test_distinct_words_are_distinct_in_any_case() -> None:
    space = AddedWords(distinct=True)
    assert space.contains(["x"] * 3, ["x a b", "x a a", "x a A"]).tolist() == [True, False, False]
    assert AddedWords().contains(["x"], ["x a A a"]).tolist() == [True]


def test_limits_follow_their_messages() -> None:
    space = AddedWords(torch.tensor([0, 1, 2])).bound(["a", "b", "c"], None)
    assert space.contains(["a", "b", "c"], ["a w", "b w", "c w w"]).tolist() == [False, True, True]
    part = space.take(torch.tensor([2, 0]))
    assert part.contains(["c", "a"], ["c w w", "a w"]).tolist() == [True, False]
    assert part.without_limit().contains(["a"], ["a w w w"]).tolist() == [True]
    assert AddedWords(3).bound(["a", "b"], None).limit.tolist() == [3, 3]  # type: ignore[union-attr]
    assert isinstance(space, Space)


def test_it_tells_what_it_is() -> None:
    assert repr(AddedWords(150)) == "AddedWords(150)"
    assert repr(AddedWords(150).bound(["a", "b"], None)) == "AddedWords(150)"
    assert repr(AddedWords(vocabulary={"a", "b"}, distinct=True)) == "AddedWords(vocabulary of 2, distinct)"
    assert repr(AddedWords(torch.tensor([1, 2]))) == "AddedWords(<2 limits>)"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"limit": -1}, "whole number of words"),
        ({"limit": 2.5}, "whole number of words"),
        ({"limit": True}, "whole number of words"),
        ({"vocabulary": []}, "empty"),
        ({"vocabulary": "dinner love"}, "split"),
        ({"vocabulary": ["two words"]}, "white space"),
        ({"vocabulary": [3]}, "white space"),
    ],
)
def test_slips_in_the_making_are_told(given: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        AddedWords(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limit", "x", "told"),
    [
        (3, torch.zeros(2, 3), "list of str"),
        (3, "one text", "list of str"),
        (3, ["a", 4], "list of str"),
        (torch.tensor([1, 2]), ["a"], "do not fit 1"),
        (torch.tensor([1.5]), ["a"], "do not fit 1"),
        (torch.tensor([-1]), ["a"], "do not fit 1"),
    ],
)
def test_slips_in_the_binding_are_told(limit: object, x: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        AddedWords(limit).bound(x, None)  # type: ignore[arg-type]
