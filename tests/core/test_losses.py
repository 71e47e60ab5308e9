"""The losses against their formulas, for one class number after another, and their direction under both goals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sparring as sp
import tiny
from sparring.core.errors import ThreatError, UnknownNameError
from sparring.core.losses import LOSSES, Loss, get_loss, margin_of
from sparring.core.outputs import Prediction
from sparring.core.registry import make_attack
from sparring.core.threat import rival_margin

every_loss = pytest.mark.parametrize("name", list(LOSSES))
every_count = pytest.mark.parametrize("classes", [2, 3, 4, 10])


def case(classes: int, n: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(classes)
    scores = 3 * torch.randn(n, classes, generator=g, dtype=torch.float64)
    y = torch.randint(0, classes, (n,), generator=g)
    target = (y + torch.randint(1, classes, (n,), generator=g)) % classes
    return scores, y, target


def by_hand(name: str, s: list[float], y: int, t: int | None) -> float:
    """One sample's loss, from the papers' formulas in plain numbers."""
    ranked = sorted(s, reverse=True)
    z = torch.tensor(s, dtype=torch.float64)
    p = z.softmax(0).tolist()
    aim = y if t is None else t
    sign = 1 if t is None else -1

    def rival(values: list[float]) -> float:
        return max(v for j, v in enumerate(values) if j != aim) - values[aim]

    if name == "ce":
        return -sign * float(z.log_softmax(0)[aim])
    if name == "log_odds":
        return sign * math.log((1 - p[aim]) / p[aim])
    if name == "margin":
        return sign * rival(s)
    if name == "probability_margin":
        return sign * rival(p)
    if name == "squared_error":
        return sign * 0.5 * sum(((j == aim) - v) ** 2 for j, v in enumerate(s))
    assert name == "dlr"
    if t is None:
        return rival(s) / (ranked[0] - ranked[2]) if len(s) >= 3 else rival(s)
    gap = s[t] - s[y]
    return gap / (ranked[0] - (ranked[2] + ranked[3]) / 2) if len(s) >= 4 else gap


@every_loss
@every_count
def test_losses_equal_their_formulas(name: str, classes: int) -> None:
    scores, y, target = case(classes)
    free = LOSSES[name](scores, y, sp.Untargeted())
    aimed = LOSSES[name](scores, y, sp.Targeted(target))
    for i in range(len(y)):
        row = scores[i].tolist()
        assert float(free[i]) == pytest.approx(by_hand(name, row, int(y[i]), None), rel=1e-6, abs=1e-9)
        assert float(aimed[i]) == pytest.approx(by_hand(name, row, int(y[i]), int(target[i])), rel=1e-6, abs=1e-9)


@every_loss
@every_count
def test_a_step_up_the_gradient_is_a_step_towards_success(name: str, classes: int) -> None:
    scores, y, target = case(classes)
    if name == "dlr":  # beyond the boundary the spread of the logits may fall faster than the margin rises
        y = scores.argmax(1)
        target = (y + 1) % classes
    for goal, which in ((sp.Untargeted(), y), (sp.Targeted(target), target)):
        leaf = scores.clone().requires_grad_(True)
        value = LOSSES[name](leaf, y, goal)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        own = grad.gather(1, which[:, None]).squeeze(1)
        if name == "squared_error":  # it pulls the score to 1, from either side
            own = own * (1 - scores.gather(1, which[:, None]).squeeze(1)).sign()
        assert (own <= 1e-12).all() if goal.name == "untargeted" else (own >= -1e-12).all()
        assert torch.isfinite(grad).all()
        assert (value.detach() == LOSSES[name](scores, y, goal)).all()


@pytest.mark.parametrize("name", ["margin", "dlr", "probability_margin"])
@every_count
def test_margins_are_positive_exactly_for_adversarial_scores(name: str, classes: int) -> None:
    scores, y, target = case(classes)
    assert torch.equal(LOSSES[name](scores, y, sp.Untargeted()) > 0, scores.argmax(1) != y)
    if name != "dlr":
        assert torch.equal(LOSSES[name](scores, y, sp.Targeted(target)) > 0, scores.argmax(1) == target)


def test_dlr_ignores_shift_and_scale() -> None:
    scores, y, target = case(5)
    for goal in (sp.Untargeted(), sp.Targeted(target)):
        torch.testing.assert_close(LOSSES["dlr"](7 * scores + 3, y, goal), LOSSES["dlr"](scores, y, goal))


def test_equal_scores_make_no_loss_infinite() -> None:
    scores = torch.zeros(2, 5)
    for loss in LOSSES.values():
        for goal in (sp.Untargeted(), sp.Targeted(1)):
            assert torch.isfinite(loss(scores, torch.tensor([0, 2]), goal)).all()


def test_the_rival_is_the_best_other_class() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert rival_margin(scores, torch.tensor([0, 1])).tolist() == [-1.0, 2.0]
    assert margin_of(scores, torch.tensor([0, 0]), sp.Targeted(torch.tensor([2, 1]))).tolist() == [-1.0, -2.0]


def test_a_goal_may_bring_its_own_loss() -> None:
    class High:
        name = "high"

        def achieved(self, output: Prediction, y: Tensor, slack: float = 0.0) -> Tensor:
            return output.scores.amax(1) > 1

        def applicable(self, y: Tensor) -> Tensor:
            return torch.ones_like(y, dtype=torch.bool)

        def take(self, index: Tensor) -> High:
            return self

        def loss(self, scores: Tensor, y: Tensor) -> Tensor:
            return scores.amax(1)

    scores, y, _ = case(3)
    assert torch.equal(get_loss("ce")(scores, y, High()), scores.amax(1))
    with pytest.raises(ThreatError, match="no loss"):
        get_loss("ce")(scores, y, sp.Predicate(lambda output, y: output.labels != y, name="mine"))


def test_losses_go_by_name_or_as_they_are() -> None:
    assert get_loss("dlr") is LOSSES["dlr"]
    mine = Loss("mine", lambda s, y: s.sum(1), lambda s, y, t: -s.sum(1))
    assert get_loss(mine) is mine
    with pytest.raises(UnknownNameError, match="margin"):
        get_loss("margn")


def test_log_odds_order_as_cross_entropy_does_and_do_not_saturate() -> None:
    scores = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    y = scores.flip(1).argmax(1)
    goal = sp.Untargeted()
    odds, entropy = (get_loss(name)(scores, y, goal) for name in ("log_odds", "ce"))
    assert torch.equal(odds.argsort(), entropy.argsort())
    torch.testing.assert_close(torch.nn.functional.softplus(odds), entropy)
    target = sp.Targeted(2)
    torch.testing.assert_close(get_loss("log_odds")(scores, y, target).sigmoid(), scores.softmax(1)[:, 2])
    sure = torch.tensor([[60.0, 0.0, 1.0], [60.0, 0.0, 2.0]])
    told = get_loss("log_odds")(sure, torch.zeros(2, dtype=torch.int64), goal)
    assert told[1] > told[0]


@pytest.mark.parametrize("name", ["simba", "nes"])
def test_a_confident_victim_is_attacked_all_the_same(name: str) -> None:
    x, y = tiny.correct(4)
    sure = sp.Victim(lambda z: 60 * tiny.trained().net(z))
    threat = sp.ThreatModel(sp.Linf(0.4), access="scores", queries=300)
    result = make_attack(name)(sure, x, y, threat)
    assert result.attack_success_rate > 0
