"""Defended victims: stages in front, detectors behind, replaced gradients, and keyed noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
import tiny
from sparring.core.errors import (
    InputError,
)
from sparring.core.network import Victim
from sparring.core.rng import KeyedRandom
from sparring.core.victim import query_in_batches

X = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1])
W = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
BIAS = -0.5 * W.sum(1)  # every class has its part of the unit cube


def logits(x: Tensor) -> Tensor:
    return x.flatten(1) @ W.T + BIAS


def plain(**how: Any) -> Victim:
    return tiny.linear(W, BIAS, **how)


class Round(nn.Module):
    """Rounds the input to whole numbers; its surrogate is the identity."""

    traits = sp.Traits(differentiable=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.round()

    def surrogate(self, x: Tensor) -> Tensor:
        return x


class Shake(nn.Module):
    """Adds keyed noise."""

    traits = sp.Traits(stochastic=True)
    keyed = True

    def forward(self, x: Tensor, noise: KeyedRandom | None = None, stream: int = 0) -> Tensor:
        assert noise is not None
        return x + 0.1 * noise.normal(tuple(x.shape[1:]), ("shake", stream))


def test_stages_run_before_the_network_and_bring_their_traits() -> None:
    bare = plain()
    victim = bare.defended(pre=[Round().eval()])
    torch.testing.assert_close(victim.query(X).scores, bare.query(X.round()).scores)
    assert not victim.traits.differentiable
    assert bare.traits.differentiable
    assert bare.stages == ()


def test_bpda_changes_gradients_and_never_answers() -> None:
    victim = plain().defended(pre=[Round().eval()])
    view = victim.attack_view(bpda=True)
    assert torch.equal(view.query(X).scores, victim.query(X).scores)
    x = X.clone().requires_grad_(True)
    torch.testing.assert_close(view.scores(x), victim.scores(x), atol=1e-6, rtol=1e-6)
    through, straight = (torch.autograd.grad(v.scores(x)[:, 0].sum(), x)[0] for v in (view, victim))
    assert torch.equal(straight, torch.zeros_like(x))
    torch.testing.assert_close(through, W[0].reshape(1, 1, 2, 2).expand_as(x))


def test_keyed_noise_does_not_depend_on_the_batch() -> None:
    victim = plain().defended(pre=[Shake().eval()])
    rng = KeyedRandom(0, torch.arange(5))
    whole = victim.query(X, rng).scores
    parts = query_in_batches(victim, X, 2, rng).scores
    torch.testing.assert_close(parts, whole)
    assert not torch.equal(whole, victim.query(X, KeyedRandom(1, torch.arange(5))).scores)


def test_a_detector_accepts_or_not() -> None:
    victim = plain().defended(detector=lambda x: x.flatten(1).mean(1) < 0.5)
    assert victim.traits.rejects
    answer = victim.query(X)
    assert torch.equal(answer.accepted, X.flatten(1).mean(1) < 0.5)
    assert torch.equal(answer.take(torch.tensor([2])).accepted, answer.accepted[2:3])


def test_a_view_needs_a_draw() -> None:
    with pytest.raises(InputError, match="eot is 0"):
        plain().attack_view(eot=0)
