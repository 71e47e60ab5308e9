"""The oracle: budgets exact per sample, refusals instead of exceptions, repeated questions free where cached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparring as sp
import tiny
from sparring.core.errors import CapabilityError, ThreatError
from sparring.core.oracle import Oracle
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom

W = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
X = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))


class Counted:
    """A black box that keeps every batch it was sent."""

    def __init__(self, **how: Any) -> None:
        self.asked: list[Tensor] = []
        self.victim = sp.BlackBox(self.answer, scores=True, classes=3, name="counted", **how)

    def answer(self, x: Tensor) -> Tensor:
        self.asked.append(x)
        return x @ W.T

    @property
    def inputs(self) -> int:
        return sum(len(x) for x in self.asked)


def oracle(n: int, budget: int | None, access: sp.Access = sp.Access.SCORES, **how: Any) -> tuple[Oracle, Counted]:
    counted = Counted(traits=how.pop("traits", None))
    return Oracle(counted.victim, access, n, budget=budget, **how), counted


def test_answers_are_the_victims_own() -> None:
    ask, _ = oracle(30, None)
    answer, granted = ask(X, torch.arange(30))
    assert granted.all()
    torch.testing.assert_close(answer.scores, X @ W.T)
    assert torch.equal(answer.labels, (X @ W.T).argmax(1))
    assert ask.spent.tolist() == [1] * 30
    assert (ask.left(torch.arange(30)) > 10**9).all()


@given(
    rows=st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=6),
    budget=st.integers(0, 6),
    size=st.integers(1, 40),
    cache=st.booleans(),
)
def test_budgets_are_exact_whatever_is_asked_together(
    rows: list[list[int]], budget: int, size: int, cache: bool
) -> None:
    """Against a ledger kept by hand: in the order of the questions, each sample pays until its budget is gone."""
    ask, counted = oracle(5, budget, batch_size=size, cache=cache)
    spent, at = [0] * 5, 0
    x = torch.arange(200.0)[:, None].expand(200, 4) / 200  # no question twice
    for call in rows:
        expected = []
        for row in call:
            expected.append(spent[row] < budget)
            spent[row] += expected[-1]
        part = x[at : at + len(call)]
        at += len(call)
        answer, granted = ask(part, torch.tensor(call, dtype=torch.int64), apart=len(set(call)) == len(call))
        assert granted.tolist() == expected
        assert ask.ending or max(spent) < budget  # nobody's end is missed
        assert len(answer) == len(call)
        assert (answer.labels[~granted] == -1).all()
        torch.testing.assert_close(answer.labels[granted], (part @ W.T).argmax(1)[granted])
        if answer.scores is not None:
            torch.testing.assert_close(answer.scores[granted], (part @ W.T)[granted])
            assert torch.isnan(answer.scores[~granted]).all()
    assert ask.spent.tolist() == spent
    assert ask.left(torch.arange(5)).tolist() == [budget - s for s in spent]
    assert counted.inputs == sum(spent)
    assert all(len(batch) <= size for batch in counted.asked)


def test_peer_bug_9_a_limit_counted_per_iteration_and_not_per_attack() -> None:
    ask, counted = oracle(2, 5)
    for _ in range(7):
        ask(X[:4], torch.tensor([0, 0, 1, 1]))
    assert ask.spent.tolist() == [5, 5]
    assert counted.inputs == 10


def test_an_exhausted_sample_never_stops_the_others() -> None:
    ask, counted = oracle(3, 1)
    ask(X[:1], torch.tensor([1]))
    answer, granted = ask(X[:3], torch.arange(3))
    assert granted.tolist() == [True, False, True]
    assert answer.labels[1] == -1
    answer, granted = ask(X[:3], torch.arange(3))
    assert not granted.any()
    assert answer.labels.tolist() == [-1, -1, -1]
    assert counted.inputs == 3


def test_the_victim_is_not_asked_for_nothing() -> None:
    ask, counted = oracle(3, 0)
    ask(X[:3], torch.arange(3))
    assert counted.asked == []


def test_refused_scores_are_nan_even_when_all_are_refused() -> None:
    ask, _ = oracle(2, 0)
    answer, granted = ask(X[:2], torch.arange(2))
    assert not granted.any()
    assert answer.scores is not None
    assert torch.isnan(answer.scores).all()


def test_label_access_hides_the_scores() -> None:
    ask, _ = oracle(4, 2, sp.Access.LABELS)
    answer, _ = ask(X[:4], torch.arange(4))
    assert answer.scores is None
    assert torch.equal(answer.labels, (X[:4] @ W.T).argmax(1))
    assert not hasattr(ask, "gradient")


@pytest.mark.parametrize("cache", [True, None])
def test_a_question_asked_before_is_free_where_it_is_cached(cache: bool | None) -> None:
    ask, counted = oracle(2, 3, cache=cache, traits=sp.Traits(costly=True))
    rows = torch.tensor([0, 0, 1, 0])
    x = X[[0, 0, 0, 1]]  # twice the same of sample 0, and once of sample 1, which has to pay for itself
    answer, granted = ask(x, rows)
    assert granted.all()
    assert ask.spent.tolist() == [2, 1]
    torch.testing.assert_close(answer.scores, x @ W.T)
    for _ in range(5):
        again, granted = ask(x, rows)
        assert granted.all()
        assert torch.equal(again.labels, answer.labels)
        assert torch.equal(again.scores, answer.scores)
    assert ask.spent.tolist() == [2, 1]
    assert counted.inputs == 3


def test_a_cached_question_is_answered_after_the_budget_is_gone() -> None:
    ask, _ = oracle(1, 1, cache=True)
    ask(X[:1], torch.tensor([0]))
    answer, granted = ask(X[[1, 0]], torch.tensor([0, 0]))
    assert granted.tolist() == [False, True]
    assert answer.labels[0] == -1
    assert ask.spent.tolist() == [1]


def test_texts_are_asked_and_cached_like_tensors() -> None:
    asked: list[list[str]] = []

    def answer(batch: list[str]) -> list[int]:
        asked.append(list(batch))
        return [len(t) % 2 for t in batch]

    ask = Oracle(sp.BlackBox(answer, classes=2), sp.Access.LABELS, 2, budget=2, cache=True)
    got, granted = ask(["a", "bb", "a", "ccc"], torch.tensor([0, 0, 0, 0]))
    assert got.labels.tolist() == [1, 0, 1, -1]
    assert granted.tolist() == [True, True, True, False]
    assert asked == [["a", "bb"]]


def test_rejections_are_shown_to_the_attacker() -> None:
    victim = tiny.linear(W).defended(detector=lambda x: x.mean(1) < 0.5)
    for cache in (False, True):
        answer, _ = Oracle(victim, sp.Access.LABELS, 30, cache=cache)(X, torch.arange(30))
        assert torch.equal(answer.accepted, X.mean(1) < 0.5)


def test_a_random_victim_gets_the_noise_of_each_question() -> None:
    class Noisy(sp.Victim):
        def query(self, x: Tensor, noise: KeyedRandom | None = None) -> Prediction:
            assert noise is not None
            return Prediction.of(noise.normal((3,), "noise"))

    victim = Noisy(tiny.linear(W).net)
    noise = KeyedRandom(0, torch.arange(5))
    whole = Oracle(victim, sp.Access.SCORES, 5)(X[:5], torch.arange(5), noise)[0].scores
    parts = Oracle(victim, sp.Access.SCORES, 5, batch_size=2)(X[:5], torch.arange(5), noise)[0].scores
    assert torch.equal(whole, parts)
    ask = Oracle(victim, sp.Access.SCORES, 5, budget=1)
    ask(X[:1], torch.tensor([2]), noise.take(torch.tensor([0])))
    left = ask(X[:5], torch.arange(5), noise)[0].scores
    kept = torch.tensor([0, 1, 3, 4])
    assert torch.equal(left[kept], whole[kept])


def test_an_oracle_needs_access_that_the_victim_offers() -> None:
    labels = sp.BlackBox(lambda x: (x @ W.T).argmax(1), classes=3)
    with pytest.raises(CapabilityError, match="scores"):
        Oracle(labels, sp.Access.SCORES, 1)
    with pytest.raises(ThreatError, match="nothing"):
        Oracle(labels, sp.Access.NOTHING, 1)
