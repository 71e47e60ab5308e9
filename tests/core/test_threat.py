"""Threat models: goals decide rightly, contradictions are refused, and a bare space is shorthand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparring as sp
from sparring.core.errors import InputError, ThreatError
from sparring.core.outputs import Prediction
from sparring.core.threat import Goal, Knowledge

SCORES = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
Y = torch.tensor([0, 0, 2])


def test_untargeted_means_wrong() -> None:
    assert sp.Untargeted().achieved(Prediction.of(SCORES), Y).tolist() == [False, True, False]
    assert sp.Untargeted().applicable(Y).all()


def test_targeted_means_reads_as_the_target() -> None:
    assert sp.Targeted(1).achieved(Prediction.of(SCORES), Y).tolist() == [False, True, False]
    each = sp.Targeted(torch.tensor([1, 1, 0]))
    assert each.achieved(Prediction.of(SCORES), Y).tolist() == [False, True, False]
    assert each.applicable(Y).tolist() == [True, True, True]
    assert sp.Targeted(0).applicable(Y).tolist() == [False, False, True]
    assert each.take(torch.tensor([2, 0])).of(Y[[2, 0]]).tolist() == [0, 1]
    assert sp.Targeted(1).of(Y).tolist() == [1, 1, 1]


def test_with_a_detector_success_must_be_accepted() -> None:
    output = Prediction.of(SCORES[[1, 1]], accepted=torch.tensor([True, False]))
    assert sp.Untargeted().achieved(output, Y[:2]).tolist() == [True, False]
    assert sp.Targeted(1).achieved(output, Y[:2]).tolist() == [True, False]


def test_slack_asks_for_a_margin_where_scores_are_known() -> None:
    close = torch.tensor([[1.0, 1.0 + 1e-6], [1.0, 1.1]])
    y = torch.tensor([0, 0])
    for goal in (sp.Untargeted(), sp.Targeted(1)):
        assert goal.achieved(Prediction.of(close), y).tolist() == [True, True]
        assert goal.achieved(Prediction.of(close), y, 1e-5).tolist() == [False, True]
        assert goal.achieved(Prediction.of(close).labels_only(), y, 1e-5).tolist() == [True, True]


def test_a_predicate_is_any_rule() -> None:
    goal = sp.Predicate(lambda output, y: output > 0.5, name="vanished")
    assert isinstance(goal, Goal)
    assert goal.achieved(torch.tensor([0.2, 0.9]), None).tolist() == [False, True]
    assert goal.applicable([0, 1]).tolist() == [True, True]
    assert goal.take(torch.tensor([1])) is goal


def test_a_bare_space_is_shorthand() -> None:
    space = sp.Linf(0.1)
    assert sp.ThreatModel.resolve(space, None).space is space
    assert isinstance(sp.ThreatModel.resolve(space, None).goal, sp.Untargeted)
    goal = sp.ThreatModel.resolve(space, 2).goal
    assert isinstance(goal, sp.Targeted)
    assert goal.target == 2
    each = sp.ThreatModel.resolve(space, torch.tensor([1, 2])).goal
    assert each.of(Y[:2]).tolist() == [1, 2]
    full = sp.ThreatModel(space, access="scores", queries=5)
    assert sp.ThreatModel.resolve(full, None) is full
    assert full.with_space(sp.L2(1)).queries == 5


def test_a_goal_beside_a_full_threat_model_is_refused() -> None:
    with pytest.raises(ThreatError, match="inside the ThreatModel"):
        sp.ThreatModel.resolve(sp.ThreatModel(sp.Linf(0.1)), sp.Targeted(1))


@pytest.mark.parametrize(
    ("threat", "goal", "says"),
    [
        (0.3, None, r"sparring\.Linf\(0\.3\)"),
        (None, None, "space"),
        ("linf", None, "space"),
        (sp.Linf(0.1), [1, 2], "Targeted"),
        (sp.Linf(0.1), "cat", "Targeted"),
    ],
)
def test_what_is_no_threat_is_refused(threat: Any, goal: Any, says: str) -> None:
    with pytest.raises(ThreatError, match=says):
        sp.ThreatModel.resolve(threat, goal)


@pytest.mark.parametrize(
    "budget", [{"queries": -1}, {"steps": -3}, {"queries": 2.5}, {"steps": True}, {"queries": "10"}]
)
def test_impossible_budgets_are_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(ThreatError, match="whole number"):
        sp.ThreatModel(sp.Linf(0.1), **budget)


def test_access_goes_by_name() -> None:
    assert sp.ThreatModel(sp.Linf(0.1), access="Scores").access is sp.Access.SCORES
    assert sp.Access.parse(sp.Access.LABELS) is sp.Access.LABELS
    assert [str(a) for a in sorted(sp.Access)] == ["nothing", "labels", "scores", "gradients"]
    with pytest.raises(ThreatError, match="nothing, labels, scores, gradients"):
        sp.ThreatModel(sp.Linf(0.1), access="whitebox")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (torch.tensor([1, 2, 0]), r"\(3,\) targets came for 2 samples"),
        (torch.tensor([[1, 2]]), "targets came for 2 samples"),
        (torch.tensor([0.0, 1.0]), "int64"),
        (torch.tensor([True, False]), "int64"),
        (True, "int64"),
        (1.0, "int64"),
        (3, r"0\.\.2"),
        (-1, r"0\.\.2"),
        (torch.tensor([0, 9]), r"0\.\.2"),
    ],
)
def test_impossible_targets_are_refused(target: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sp.Targeted(target).check(2, 3)


def test_knowledge_is_empty_by_default() -> None:
    assert Knowledge() == Knowledge(surrogates=(), data=None, starts=None)


def test_targets_may_come_as_labels_do() -> None:
    y = torch.tensor([0, 1, 2])
    for target in ([1, 2, 0], (1, 2, 0), torch.tensor([1, 2, 0]).numpy()):
        assert sp.Targeted(target).of(y).tolist() == [1, 2, 0]


def test_surrogates_are_victims() -> None:
    net = torch.nn.Linear(2, 2)
    victim = sp.Victim(net)
    for given in (victim, [victim], (victim,)):
        assert Knowledge(surrogates=given).surrogates == (victim,)
    with pytest.raises(ThreatError, match=r"sparring\.Victim"):
        Knowledge(surrogates=(net,))
