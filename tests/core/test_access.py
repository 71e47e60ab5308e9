"""Access: what a search may see of the victim, and what card, threat and victim must agree on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import sparring as sp
import tiny
from probe import BLIND, CE, LABELS, SCORES, WHITE, At, Probe, below, walk
from sparring.core.errors import CapabilityError, ThreatError
from sparring.core.registry import Card
from sparring.core.result import Outcome
from sparring.core.runner import Run
from sparring.core.threat import Knowledge

O = Outcome


# -- access ------------------------------------------------------------------------------------------------------------


def test_without_access_the_victim_is_not_consulted_during_the_search() -> None:
    victim, spy = tiny.spied(tiny.threshold(0.5))
    surrogate, other = tiny.spied(tiny.threshold(0.3))  # falls earlier than the victim does
    during: list[int] = []

    def body(run: Run) -> None:
        before = len(spy.batches)
        walk(0.04, 5)(run)
        assert not run.found().any()
        during.append(len(spy.batches) - before)

    x, y = below(0.25, 0.45, 0.1)
    threat = sp.ThreatModel(sp.Linf(0.9), access="nothing", knowledge=Knowledge(surrogates=(surrogate,)))
    result = Probe(body=body, restarts=2)(victim, x, y, threat)
    assert during == [0, 0]
    assert spy.batches == [3, 3]  # the clean pass, which decides who is attacked, and the re-check
    assert len(other.batches) >= 10
    torch.testing.assert_close(result.adversarial, x + 0.2)  # no early stop, no best so far: the last point
    assert result.outcomes == [O.SURVIVED, O.SUCCEEDED, O.SURVIVED]
    assert result.queries.tolist() == [0, 0, 0]
    assert result.backwards.tolist() == [10, 10, 10]


def test_an_attack_without_access_needs_no_surrogate_when_its_card_says_so() -> None:
    victim, spy = tiny.spied(tiny.threshold())

    def body(run: Run) -> None:
        s = run.begin(At(run.x.clone()))
        for _ in run.steps(3):
            s.x = s.x + 0.1

    result = Probe(body=body, card=BLIND)(victim, *below(0.3, 0.1), sp.Linf(0.5))
    assert result.outcomes == [O.SUCCEEDED, O.SURVIVED]
    assert spy.batches == [2, 2]


@pytest.mark.parametrize("how", ["gradient", "jacobian", "evaluate"])
@pytest.mark.parametrize("card", [LABELS, SCORES, BLIND])
def test_no_gradient_without_access_to_gradients(how: str, card: Card) -> None:
    def body(run: Run) -> None:
        arguments: dict[str, Any] = {
            "gradient": (run.x, CE),
            "jacobian": (run.x, lambda s: run.y[:, None]),
            "evaluate": (run.x,),
        }
        getattr(run, how)(*arguments[how])

    with pytest.raises(CapabilityError, match="gradient"):
        Probe(body=body, card=card)(tiny.threshold(), *below(0.1), sp.Linf(0.1))


@pytest.mark.parametrize("card", [WHITE, BLIND])
def test_no_queries_where_none_are_granted(card: Card) -> None:
    with pytest.raises(CapabilityError, match="labels or scores"):
        Probe(body=lambda run: run.ask(run.x) and None, card=card)(tiny.threshold(), *below(0.1), sp.Linf(0.1))


def test_label_access_shows_no_scores_to_the_attack() -> None:
    def body(run: Run) -> None:
        answer, _ = run.ask(run.x)
        assert answer.scores is None
        assert not hasattr(run.oracle, "scores")

    Probe(body=body, card=LABELS)(tiny.threshold(), *below(0.1), sp.Linf(0.1))


@pytest.mark.parametrize(
    ("card", "threat", "says"),
    [
        (
            WHITE,
            sp.ThreatModel(sp.Linf(0.1), access="scores"),
            "probe needs access to gradients; the threat model grants scores",
        ),
        (SCORES, sp.ThreatModel(sp.Linf(0.1), access="labels"), "needs access to scores"),
        (WHITE, sp.ThreatModel(sp.Linf(0.1), access="nothing"), "surrogates"),
        (dataclasses.replace(WHITE, spaces=("l2",)), sp.Linf(0.1), r"searches l2; the threat is Linf"),
        (dataclasses.replace(WHITE, goals=("targeted",)), sp.Linf(0.1), "targeted only"),
        (WHITE, sp.Linf(), "minimal"),
    ],
)
def test_what_card_and_threat_cannot_agree_on_is_refused(card: Card, threat: Any, says: str) -> None:
    with pytest.raises(ThreatError, match=says):
        Probe(body=walk(0.1), card=card)(tiny.threshold(), *below(0.1), threat)


@pytest.mark.parametrize("space", [sp.L2(0.1), sp.Linf()])
def test_transfer_is_held_to_the_card_as_well(space: Any) -> None:
    card = dataclasses.replace(WHITE, spaces=("linf",))
    threat = sp.ThreatModel(space, access="nothing", knowledge=Knowledge(surrogates=(tiny.threshold(),)))
    with pytest.raises(ThreatError, match="probe"):
        Probe(body=walk(0.1, 2), card=card)(tiny.threshold(), *below(0.1), threat)


def test_starting_points_follow_their_samples() -> None:
    x, y = below(0.1, 0.2, 0.3, 0.4, 0.45)
    starts = torch.arange(5.0)[:, None]

    def body(run: Run) -> None:
        s = run.begin(At(run.x.clone()))
        for _ in run.steps(2):
            known = run.threat.knowledge.starts[run.rows]
            torch.testing.assert_close(run.x, x[known.flatten().long()])
            run.give_up(run.rows == 0)
            s.x = run.x.clone()

    threat = sp.ThreatModel(sp.Linf(0.1), knowledge=Knowledge(starts=starts))
    y = y.clone()
    y[1] = 1  # wrong at first: not attacked
    for size in (1, 2, 5):
        Probe(body=body)(tiny.threshold(), x, y, threat, batch_size=size)
