"""The presets: AutoAttack's parameters to the letter, what they become for other victims, and that they run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import sparring as sp
import tiny
from sparring.core.errors import UnknownNameError
from sparring.core.rng import KeyedRandom, content_ids
from sparring.core.space import Bounds
from sparring.core.threat import Access
from sparring.evaluation import AttackSpec, Plan, PlanError, ThreatSpec, audit, presets
from sparring.evaluation.presets import EOT, Facts
from sparring.evaluation.starts import STARTS, starting_points

PLAIN = Facts(10, Access.GRADIENTS, sp.Traits())


def filled(preset: str, threat: ThreatSpec | None = None, known: Facts = PLAIN, **how: Any) -> Plan:
    return presets.fill(Plan(threat or ThreatSpec("linf", 0.1), preset=preset, **how), known)


def told(plan: Plan) -> list[tuple[str, dict[str, Any]]]:
    return [(spec.attack, dict(spec.params)) for spec in plan.attacks]


# Between AutoAttack's second attack and its third.
BETWEEN = [
    ("apgd", {"steps": 40, "loss": "margin"}),
    ("apgd", {"steps": 40, "loss": "probability_margin"}),
]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_standard_is_autoattack_and_two_short_climbs(norm: str) -> None:
    assert told(filled("standard", ThreatSpec(norm, 0.1))) == [
        ("apgd", {"steps": 100, "restarts": 1}),
        ("apgd-t", {"steps": 100, "classes": 9}),
        *BETWEEN,
        ("fab", {"steps": 100, "beta": 0.9, "targets": 9}),
        ("square", {"queries": 5000, "rescale": False}),
    ]


def test_standard_in_l1_has_autoattacks_restarts_and_targets() -> None:
    assert told(filled("standard", ThreatSpec("l1", 5.0))) == [
        ("apgd", {"steps": 100, "restarts": 5}),
        ("apgd-t", {"steps": 100, "classes": 5}),
        *BETWEEN,
        ("fab", {"steps": 100, "beta": 0.9, "targets": 9}),
        ("square", {"queries": 5000, "rescale": False}),
    ]


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_leave_few_targets(classes: int) -> None:
    attacks = dict(told(filled("standard", known=replace(PLAIN, classes=classes))))
    assert attacks["apgd-t"]["classes"] == classes - 1
    assert attacks["fab"]["targets"] == classes - 1


def test_random_victims_get_autoattacks_version_for_them() -> None:
    known = replace(PLAIN, traits=sp.Traits(stochastic=True))
    plan = filled("standard", known=known)
    assert told(plan) == [("apgd", {"steps": 100}), ("apgd", {"steps": 100, "loss": "dlr"})]
    assert {spec.eot for spec in plan.attacks} == {EOT == 20 and 20}
    assert any(spec.attack == "square" and spec.eot == 1 for spec in filled("thorough", known=known).attacks)


def test_what_the_attacker_may_see_decides() -> None:
    scores = replace(PLAIN, access=Access.SCORES)
    assert [spec.attack for spec in filled("standard", known=scores).attacks] == ["square"]
    labels = replace(PLAIN, access=Access.LABELS)
    assert [spec.attack for spec in filled("standard", known=labels).attacks] == ["rays"]
    assert [spec.queries for spec in filled("thorough", known=labels).attacks] == [20_000, 20_000]
    with pytest.raises(PlanError, match="nothing"):
        filled("standard", known=replace(PLAIN, access=Access.NOTHING))
    assert not filled("standard", known=scores).curve


def test_a_target_needs_attacks_that_take_one() -> None:
    for preset in presets.PRESETS:
        for spec in filled(preset, ThreatSpec("linf", 0.1, target=3)).attacks:
            assert "targeted" in spec.card.goals


def test_thorough_contains_standard_and_transfers_where_it_can() -> None:
    plan = filled("thorough", surrogates=("digits",))
    standard = filled("standard")
    assert plan.attacks[:3] == standard.attacks[:3]
    last = plan.attacks[-1]
    assert (last.access, last.surrogates) == ("nothing", ("digits",))
    assert plan.digest != filled("thorough").digest
    assert "ddn" in [spec.attack for spec in filled("thorough", ThreatSpec("l2", 1.0)).attacks]


def test_presets_are_refused_where_they_do_not_fit() -> None:
    with pytest.raises(PlanError, match="linf, l2 and l1"):
        filled("standard", ThreatSpec("l0", 3.0))
    with pytest.raises(UnknownNameError, match="thorough"):
        filled("through")


def test_the_curve_can_be_left_out() -> None:
    assert filled("fast").curve
    assert not filled("fast", with_curve=False).curve
    own = (AttackSpec("deepfool"),)
    assert filled("fast", curve=own).curve == own


@pytest.mark.slow
@pytest.mark.parametrize("threat", [sp.Linf(0.06), sp.L2(0.3), sp.L1(0.5)], ids=["linf", "l2", "l1"])
def test_fast_agrees_with_standard_at_a_tenth_of_the_passes(threat: Any) -> None:
    data = tiny.pictures(32, seed=9)
    fast = audit(tiny.trained(), data, threat, preset="fast", checks=False, curve=False)
    full = audit(tiny.trained(), data, threat, preset="standard", checks=False, curve=False)
    assert 0.1 < full.robust_accuracy < 0.9
    assert (fast.standing & ~full.standing).sum() <= 1
    assert fast.cost.forwards + fast.cost.backwards < 0.1 * (full.cost.forwards + full.cost.backwards)


@pytest.mark.parametrize("classes", [2, 3])
def test_standard_runs_on_two_and_three_classes(classes: int) -> None:
    weight = torch.randn(classes, 36, generator=torch.Generator().manual_seed(classes))
    victim = tiny.linear(weight)
    x, _ = tiny.pictures(12, seed=9)
    y = victim.query(x).labels
    plan = filled("standard", known=replace(PLAIN, classes=classes), checks=False, with_curve=False)
    light = tuple(
        replace(s, params=tuple((k, 20 if v in (100, 5000) else v) for k, v in s.params)) for s in plan.attacks
    )
    found = audit(victim, (x, y), plan=replace(plan, attacks=light, threat=ThreatSpec("linf", 0.05)))
    assert found.complete
    margin = victim.scores(x).topk(2).values
    rival = weight - weight.gather(0, y[0].expand(1, 36)) if classes == 2 else None
    if rival is not None:  # two classes: the distance to the boundary is known
        gap = (margin[:, 0] - margin[:, 1]) / (weight[0] - weight[1]).abs().sum()
        assert found.standing.tolist() == (gap > 0.05).tolist()


@pytest.mark.parametrize("space", [sp.Linf(0.1), sp.L2(0.5), sp.L1(2.0)], ids=["linf", "l2", "l1"])
@pytest.mark.parametrize("start", sorted(STARTS))
def test_starts_lie_at_the_edge_of_the_ball(space: Any, start: str) -> None:
    x = 0.3 + 0.4 * torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    rng = KeyedRandom(0, content_ids(x))
    points = starting_points(start, space, x, Bounds.of((0.0, 1.0)), rng)
    assert space.contains(x, points).all()
    assert torch.allclose(space.cost(x, points), torch.full((5,), float(space.eps)), rtol=1e-3)
    again = starting_points(start, space, x[2:4], Bounds.of((0.0, 1.0)), rng.take(torch.tensor([2, 3])))
    assert torch.equal(again, points[2:4])


def test_a_start_of_a_plan_reaches_the_attack() -> None:
    """On a plateau no gradient leads away from; the raised start lies beyond it."""

    class Plateau(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            level = x.flatten(1).mean(1)
            score = (level - 0.55).clamp(min=0.0) * 40 - 0.5
            return torch.stack([-score, score], 1)

    victim = sp.Victim(Plateau().eval())
    x, y = (
        torch.full((4, 1, 4, 4), 0.5) + 0.001 * torch.arange(4)[:, None, None, None],
        torch.zeros(4, dtype=torch.int64),
    )

    def robust(**how: Any) -> float:
        spec = AttackSpec.of({"name": "apgd", "params": {"steps": 5}, **how})
        return audit(victim, (x, y), sp.Linf(0.1), attacks=[spec], checks=False, curve=False).robust_accuracy

    assert robust() == 1.0
    assert robust(start="raised") == 0.0
    assert robust(start="lowered") == 1.0
    with pytest.raises(UnknownNameError, match="raised"):
        robust(start="risen")
