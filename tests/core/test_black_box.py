"""Victims that can only be asked: labels or scores from any function, and answers that none may give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sparring as sp
import tiny
from sparring.core.errors import (
    CapabilityError,
    InputError,
    VictimError,
)
from sparring.core.network import Victim
from sparring.core.outputs import Prediction
from sparring.core.victim import query_in_batches

X = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1])
W = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
BIAS = -0.5 * W.sum(1)  # every class has its part of the unit cube


def logits(x: Tensor) -> Tensor:
    return x.flatten(1) @ W.T + BIAS


def plain(**how: Any) -> Victim:
    return tiny.linear(W, BIAS, **how)


def test_a_black_box_answers_labels_or_scores() -> None:
    labels = sp.BlackBox(lambda x: logits(x).argmax(1), classes=3, name="labels")
    assert labels.access is sp.Access.LABELS
    assert labels.query(X).scores is None
    assert torch.equal(labels.query(X).labels, logits(X).argmax(1))
    scores = sp.BlackBox(lambda x: logits(x).numpy(), scores=True, bounds=(0, 1))
    assert torch.equal(scores.query(X).scores, logits(X))
    texts = sp.BlackBox(lambda batch: [len(t) % 2 for t in batch], classes=2, domain="text")
    assert texts.query(["a", "bb"]).labels.tolist() == [1, 0]
    assert texts.admit(["a", "bb"], [0, 1])[0] == ["a", "bb"]


@pytest.mark.parametrize(
    ("function", "scores", "says"),
    [
        (lambda x: logits(x), False, "scores=True"),
        (lambda x: torch.zeros(3, dtype=torch.int64), False, r"\(3,\) to 5 inputs"),
        (lambda x: torch.zeros(5), False, "whole-number labels"),
        (lambda x: torch.zeros(4, 3), True, r"\(4, 3\) for 5"),
        (lambda x: logits(x) * torch.nan, True, "NaN"),
        (lambda x: ["cat"] * 5, False, "whole-number labels"),
        (lambda x: 1 / 0, False, "ZeroDivisionError"),
    ],
    ids=["scores", "too few", "floats", "too few scores", "NaN", "names", "raises"],
)
def test_answers_that_a_black_box_cannot_give(function: Callable[[Any], Any], scores: bool, says: str) -> None:
    with pytest.raises(VictimError, match=says):
        sp.BlackBox(function, scores=scores).query(X)


def test_a_black_box_with_bounds_checks_its_inputs() -> None:
    with pytest.raises(InputError, match="normalised"):
        sp.BlackBox(lambda x: logits(x).argmax(1), bounds=(0, 1)).admit(X - 0.5, Y)


def test_an_attack_that_needs_more_than_the_victim_offers_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"pgd needs gradients .* offers labels"):
        sp.PGD()(sp.BlackBox(lambda x: logits(x).argmax(1), bounds=(0, 1)), X, Y, sp.Linf(0.1))


def test_asking_in_batches_equals_asking_at_once() -> None:
    victim = plain()
    parts = query_in_batches(victim, X, 2)
    torch.testing.assert_close(parts.scores, victim.query(X).scores)
    assert len(parts) == 5


def test_predictions_join_and_split() -> None:
    a = Prediction.of(logits(X), torch.ones(5, dtype=torch.bool))
    joined = Prediction.concat([a, a.labels_only()])
    assert joined.scores is None
    assert len(joined) == 10
    torch.testing.assert_close(a.confidence, logits(X).softmax(1).amax(1))
    assert a.labels_only().confidence is None
    assert len(Prediction.of(torch.zeros(0, 0))) == 0
