"""Attacks that treat the goal as a constraint: proximal operators, the penalty, linear victims, golden comparisons."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

import sparring as sp
import tiny
from sparring.attacks.minimum_norm import FMN
from sparring.attacks.proximal import ALMA, PDPGD
from sparring.attacks.proximal.alma import penalty_slope
from sparring.attacks.proximal.operators import proximal
from sparring.core.balls import Ball

SPACES: dict[float, type[Ball]] = {1.0: sp.L1, 2.0: sp.L2, math.inf: sp.Linf}
CASES = [(PDPGD(steps=400), p) for p in (1.0, 2.0, math.inf)] + [(ALMA(steps=400), p) for p in (1.0, 2.0)]
by_case = pytest.mark.parametrize(("attack", "p"), CASES, ids=[f"{type(a).__name__}-{p}" for a, p in CASES])


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_the_proximal_operator_is_the_minimiser(p: float) -> None:
    """No nearby point has a lower t |z|_p + |z - v|^2 / 2, and weights past the dual norm leave nothing."""
    g = torch.Generator().manual_seed(1)
    v, t = torch.randn(6, 2, 5, generator=g), torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 100.0])

    def objective(z: Tensor) -> Tensor:
        return t * torch.linalg.vector_norm(z.flatten(1), p, dim=1) + 0.5 * (z - v).flatten(1).square().sum(1)

    z = proximal(v, t, p)
    least = objective(z)
    for k in range(200):
        other = z + torch.randn(v.shape, generator=g) * 10.0 ** -(k % 5)
        assert (objective(other) >= least - 1e-4).all()
    torch.testing.assert_close(z[0], v[0])
    assert torch.count_nonzero(z[5]) == 0


def test_weights_too_small_for_the_common_level_end_the_search_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut off has the sum t up to the resolution of the level, and that is noticed within a few looks."""
    looks: list[int] = []
    true = Tensor.sum
    monkeypatch.setattr(Tensor, "sum", lambda a, *how: (looks.append(len(a)), true(a, *how))[1])
    v = torch.rand(5, 784, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1e-12, 1e-9, 1e-7, 1e-3, 1.0])
    cut = (v - proximal(v, t, math.inf)).sum(1)
    assert len(looks) < 25
    assert ((cut - t).abs() <= 1e-4 * t + 2.0**-23).all()


def test_the_proximal_operators_by_hand() -> None:
    v, t = torch.tensor([[3.0, -4.0, 0.5]]), torch.tensor([1.0])
    torch.testing.assert_close(proximal(v, t, 1.0), torch.tensor([[2.0, -3.0, 0.0]]))
    torch.testing.assert_close(proximal(v, t, 2.0), v * (1 - 1 / v.norm()))
    torch.testing.assert_close(proximal(v, t, math.inf), torch.tensor([[3.0, -3.0, 0.5]]), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="p is 3"):
        proximal(v, t, 3.0)


def test_the_penalty_is_smooth_and_rises() -> None:
    """At the boundary the slope is the multiplier from both sides, and numerical slopes of P2 agree with it."""
    mu, rho = torch.tensor([0.3, 2.0], dtype=torch.float64), torch.tensor([1.0, 4.0], dtype=torch.float64)

    def penalty(y: Tensor) -> Tensor:
        reached = mu * y / (1 - rho * y.clamp(max=0))
        return torch.where(y >= 0, mu * y + mu * rho * y**2 + mu * rho**2 * y**3 / 6, reached)

    for at in (-2.0, -0.5, 0.0, 0.1, 3.0):
        y = torch.full((2,), at, dtype=torch.float64)
        h = 1e-6
        torch.testing.assert_close(
            penalty_slope(y, rho, mu), (penalty(y + h) - penalty(y - h)) / (2 * h), rtol=1e-4, atol=1e-6
        )
    assert torch.equal(penalty_slope(torch.zeros(2, dtype=torch.float64), rho, mu), mu)


@by_case
def test_linear_victims_fall_at_the_margin_over_the_dual_norm(attack: sp.Attack, p: float) -> None:
    g = torch.Generator().manual_seed(7)
    w = torch.randn(1, 20, generator=g)
    x = 0.5 + 0.02 * torch.randn(8, 20, generator=g)
    level = 0.5 * float(w.sum()) + 0.5  # so near that one element alone can cross within the bounds
    victim = tiny.linear(torch.cat([-w, w]), [level, -level])
    y = victim.query(x).labels
    dual = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[p]
    exact = (x @ w.T - level).abs().squeeze(1) / float(torch.linalg.vector_norm(w, dual))
    result = attack(victim, x, y, SPACES[p]())
    assert result.succeeded.all()
    assert (result.distance >= exact * (1 - 1e-4)).all()
    assert float((result.distance / exact).median()) <= 1.1


@by_case
def test_other_units_change_nothing(attack: sp.Attack, p: float) -> None:
    """Pixels in [0, 255]: the same search, and distances 255 times as large."""
    x, y = tiny.correct(6)
    net = tiny.trained().net
    far = sp.Victim(torch.nn.Sequential(Shrink(), net).eval(), bounds=(0, 255))
    quick = type(attack)(steps=60)  # type: ignore[call-arg]
    here = quick(tiny.trained(), x, y, SPACES[p]()).median_distance
    there = quick(far, x * 255, y, SPACES[p]()).median_distance
    assert there == pytest.approx(255 * here, rel=0.05)


class Shrink(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 255


@by_case
def test_batches_do_not_matter(attack: sp.Attack, p: float) -> None:
    victim, (x, y) = tiny.trained(), tiny.correct(9)
    quick = type(attack)(steps=30)  # type: ignore[call-arg]
    whole = quick(victim, x, y, SPACES[p](), batch_size=9)
    parts = quick(victim, x, y, SPACES[p](), batch_size=4)
    assert torch.equal(whole.outcome, parts.outcome)
    torch.testing.assert_close(whole.distance, parts.distance, atol=1e-4, rtol=1e-4)


def test_a_success_inside_eps_ends_the_search() -> None:
    x, y = tiny.correct(4)
    for attack in (PDPGD(), ALMA()):
        result = attack(tiny.trained(), x, y, sp.L2(2.0))
        assert result.succeeded.all()
        assert (result.backwards < 100).all()


def test_alma_and_pdpgd_are_near_on_digits(zoo: ModuleType) -> None:
    victim = sp.Victim(zoo.load("mnist_adv"))
    x, y = zoo.data("mnist", 12)
    fmn = FMN(steps=100)(victim, x, y, sp.L2()).median_distance
    alma = ALMA(steps=100)(victim, x, y, sp.L2())
    assert alma.succeeded.sum() == (alma.clean.labels == y).sum()
    assert alma.median_distance <= fmn
    assert PDPGD(steps=100)(victim, x, y, sp.Linf()).median_distance <= 0.42


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("space", [sp.L2(), sp.L1()], ids=repr)
def test_alma_reaches_targets_of_every_rank(rank: int, space: sp.L2 | sp.L1) -> None:
    """With the spread to the third logit alone the ratio is constant, and its gradient zero, wherever the target is the third."""
    x, y = tiny.correct(8)
    victim = tiny.trained()
    target = victim.query(x).scores.argsort(1, descending=True)[:, rank]  # type: ignore[union-attr]
    assert ALMA(steps=100)(victim, x, y, space, goal=sp.Targeted(target)).succeeded.all()
