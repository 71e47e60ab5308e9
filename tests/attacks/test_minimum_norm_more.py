"""EAD, SuperDeepFool, NewtonFool, L-BFGS, Brendel-Bethge: linear victims, the parts of their steps, known figures."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

import sparring as sp
import tiny
from sparring.attacks.minimum_norm import EAD, LBFGS, BrendelBethge, DeepFool, NewtonFool, SuperDeepFool
from sparring.attacks.minimum_norm.lbfgs import Curvature
from sparring.attacks.minimum_norm.trust_region import boundary_step, kept, piece
from sparring.core.balls import NORMS, Ball
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.threat import Knowledge

SPACES: dict[float, type[Ball]] = {ball.p: ball for ball in NORMS.values()}
CASES: list[tuple[sp.Attack, float, float]] = [
    # with the share by which each may miss the exact distance
    (EAD(steps=200), 1.0, 0.02),
    (SuperDeepFool(), 2.0, 0.002),
    (LBFGS(), 2.0, 0.01),
    (NewtonFool(), 2.0, 0.01),
    (BrendelBethge(), 1.0, 0.01),
    (BrendelBethge(), 2.0, 0.002),
    (BrendelBethge(), math.inf, 0.005),
]


def hyperplane(seed: int = 7) -> tuple[sp.Victim, Tensor, Tensor, Tensor, Tensor]:
    """Two classes on either side of a plane in 20 dimensions: victim, inputs, labels, the normal, and the scores' gaps."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(1, 20, generator=g)
    x = 0.5 + 0.02 * torch.randn(8, 20, generator=g)
    level = 0.5 * float(w.sum()) + 0.5  # so near that one element alone can cross within the bounds
    victim = tiny.linear(torch.cat([-w, w]), [level, -level])
    return victim, x, victim.query(x).labels, w[0], (x @ w.T - level).squeeze(1)


@pytest.mark.parametrize(("attack", "p", "miss"), CASES, ids=[f"{type(a).__name__}-{p:g}" for a, p, _ in CASES])
def test_linear_victims_fall_at_the_margin_over_the_dual_norm(attack: sp.Attack, p: float, miss: float) -> None:
    victim, x, y, w, gap = hyperplane()
    dual = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[p]
    exact = gap.abs() / float(torch.linalg.vector_norm(w, dual))
    result = attack(victim, x, y, SPACES[p]())
    assert result.succeeded.all()
    ratio = result.distance / exact
    assert (ratio >= 1 - 1e-4).all()
    assert float(ratio.median()) <= 1 + miss


def test_brendel_bethge_changes_the_fewest_elements_that_can_cross() -> None:
    """On a linear victim the steepest elements, each to its bound, cross first."""
    victim, x, y, w, gap = hyperplane()
    room = torch.where(torch.sign(-gap)[:, None] * w > 0, 1 - x, x) * w.abs()
    needed = (room.sort(dim=1, descending=True).values.cumsum(1) < gap.abs()[:, None]).sum(1) + 1.0
    result = BrendelBethge()(victim, x, y, sp.L0())
    assert result.succeeded.all()
    assert (result.distance >= needed).all()
    assert float((result.distance - needed).mean()) <= 0.5


# -- the step along the boundary ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("radius", [0.05, 0.4, 10.0])
def test_the_boundary_step_is_the_shortest_of_the_feasible_ones(p: float, radius: float) -> None:
    g = torch.Generator().manual_seed(3)
    m, d = 6, 8
    x0 = torch.rand(m, d, generator=g)
    lo, hi = -x0, 1 - x0
    v = (torch.rand(m, d, generator=g) - x0) * 0.8
    b = torch.nn.functional.normalize(torch.randn(m, d, generator=g), dim=1)
    need = torch.tensor([0.02, -0.02, 0.0, 0.01, -0.04, 0.03])
    r = torch.full((m,), radius)
    u = boundary_step(v, b, need, r, lo, hi, p)
    assert (u >= lo).all()
    assert (u <= hi).all()
    assert ((u - v).norm(dim=1) <= r * (1 + 1e-5)).all()
    assert ((b * (u - v)).sum(1) >= need - 0.03 * need.abs() - 3e-4 * r - 1e-5).all()
    length = torch.linalg.vector_norm(u, p, dim=1)
    for k in range(2000):
        other = (u + torch.randn(m, d, generator=g) * 0.3 ** (k % 6)).clamp(lo, hi)
        legal = ((other - v).norm(dim=1) <= r) & ((b * (other - v)).sum(1) >= need)
        assert (torch.linalg.vector_norm(other, p, dim=1)[legal] >= length[legal] * 0.98).all()


def test_the_boundary_step_in_the_plane_by_hand() -> None:
    """With room enough the L2 step is the foot of the perpendicular; with none, the way is cut to the radius."""
    v, b = torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    far = torch.full_like(v, 100.0)
    wide = boundary_step(v, b, torch.tensor([0.5]), torch.tensor([50.0]), -far, far, 2.0)
    torch.testing.assert_close(wide, torch.tensor([[0.0, 1.5]]), atol=0.02, rtol=0)
    narrow = boundary_step(v, b, torch.tensor([0.5]), torch.tensor([0.2]), -far, far, 2.0)
    torch.testing.assert_close(narrow, torch.tensor([[3.0, 1.2]]), atol=1e-4, rtol=0)


def test_the_boundary_step_meets_the_rim_and_the_plane() -> None:
    """Where the region binds, steps end on its rim and on the plane, whatever their neighbours in the batch."""
    g = torch.Generator().manual_seed(5)
    m, d = 64, 50
    x0 = torch.rand(m, d, generator=g)
    v, lo, hi = (torch.rand(m, d, generator=g) - x0) * 0.9, -x0, 1 - x0
    b = torch.nn.functional.normalize(torch.randn(m, d, generator=g), dim=1)
    need, r = torch.full((m,), 0.05), torch.full((m,), 0.2)
    for p in (1.0, 2.0, math.inf):
        u = boundary_step(v, b, need, r, lo, hi, p)
        alone = torch.cat(
            [
                boundary_step(v[i : i + 1], b[i : i + 1], need[:1], r[:1], lo[i : i + 1], hi[i : i + 1], p)
                for i in range(m)
            ]
        )
        torch.testing.assert_close(u, alone)
        rim = (u - v).norm(dim=1) / r
        assert float(rim.max()) <= 1 + 1e-5
        assert int((rim >= 0.96).sum()) >= m - 1
        off = (b * (u - v)).sum(1) - need
        assert float(off.abs().median()) <= 1e-4


def test_changes_move_along_their_piece() -> None:
    """By hand: what the norm and the plane draw, and the derivatives, which the next point on the piece confirms."""
    v, b = torch.tensor([[0.5, -0.2, 2.0]]), torch.tensor([[0.6, 0.0, 0.8]])
    lo, hi = torch.full((1, 3), -1.0), torch.full((1, 3), 1.0)
    for p, ease, want in (
        (1.0, -0.3, [0.26, 0.0, 1.0]),
        (2.0, 0.5, [0.31, -0.1, 1.0]),
        (math.inf, 0.3, [0.3, -0.2, 0.3]),
    ):
        at, pull = torch.tensor([0.1]), torch.tensor([ease])
        u, parts = piece(v, b, at, pull, lo, hi, p)
        change, along, pulled, normal = parts.unbind(1)
        torch.testing.assert_close(u, torch.tensor([want]))
        torch.testing.assert_close(change, u - v)
        torch.testing.assert_close(normal, b)
        farther, _ = piece(v, b, at + 1e-2, pull + 1e-2, lo, hi, p)
        torch.testing.assert_close(farther, u + 1e-2 * (along + pulled))


def test_l0_changes_are_kept_whole() -> None:
    y, lo, hi = torch.tensor([[0.5, -0.2, 2.0]]), torch.full((1, 3), -1.0), torch.full((1, 3), 1.0)
    torch.testing.assert_close(kept(y, torch.tensor([0.3]), lo, hi), torch.tensor([[0.5, 0.0, 1.0]]))


def test_brendel_bethge_walks_from_the_starts_it_is_given() -> None:
    victim, x, y, _, gap = hyperplane()
    blind = BrendelBethge(tries=0, climbs=0, steps=30)
    w = hyperplane()[3]
    start = (x - torch.sign(gap)[:, None] * 0.4 * w.sign()).clamp(0, 1)
    assert (victim.query(start).labels != y).all()
    given = blind(victim, x, y, sp.ThreatModel(sp.L2(), knowledge=Knowledge(starts=start)))
    assert given.succeeded.all()
    assert (given.distance < 0.5 * (start - x).norm(dim=1)).all()


# -- L-BFGS ------------------------------------------------------------------------------------------------------------


def test_the_newest_pair_holds_in_the_two_loops() -> None:
    """The inverse Hessian maps the newest change of the gradient to its move, and each sample has a memory of its own."""
    g = torch.Generator().manual_seed(5)
    moves = torch.randn(5, 3, 6, generator=g)
    hessian = torch.diag(torch.tensor([1.0, 2.0, 3.0, 5.0, 8.0, 13.0]))
    memory = Curvature.start(torch.zeros(3, 6), 4)
    for move in moves:
        memory.add(move, move @ hessian, torch.tensor([True, True, False]))
    newest = moves[-1] @ hessian
    direction = memory.descent(newest, torch.ones(3, 6))
    torch.testing.assert_close(direction[:2], -moves[-1][:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(direction[2], -0.5 * newest[2])
    memory.forget(torch.tensor([True, False, False]))
    torch.testing.assert_close(memory.descent(newest, torch.ones(3, 6))[0], -0.5 * newest[0])


def test_downward_curvature_is_not_remembered_and_held_elements_stay() -> None:
    memory = Curvature.start(torch.zeros(1, 3), 2)
    move = torch.tensor([[1.0, 2.0, 3.0]])
    memory.add(move, -move, torch.tensor([True]))
    assert (memory.weight == 0).all()
    memory.add(move, 4 * move, torch.tensor([True]))
    direction = memory.descent(torch.ones(1, 3), torch.tensor([[1.0, 0.0, 1.0]]))
    assert direction[0, 1] == 0
    assert (direction[0, [0, 2]] < 0).all()


# -- EAD, NewtonFool, SuperDeepFool ------------------------------------------------------------------------------------


def test_the_decision_rules_keep_what_they_say() -> None:
    """In one round both rules see the same points: each keeps the least by its own measure, and they differ somewhere."""
    x, y = tiny.correct(12)
    kept = {
        rule: EAD(steps=100, rounds=1, const=1.0, beta=0.2, rule=rule, abort_early=False)(tiny.trained(), x, y, sp.L1())
        for rule in ("l1", "en")
    }
    assert torch.equal(kept["l1"].succeeded, kept["en"].succeeded)
    assert kept["en"].succeeded.all()

    def net(result: sp.AttackResult) -> Tensor:
        delta = (result.adversarial - x).flatten(1)
        return delta.square().sum(1) + 0.2 * delta.abs().sum(1)

    assert (net(kept["en"]) <= net(kept["l1"]) * (1 + 1e-5)).all()
    assert (kept["l1"].distance <= kept["en"].distance * (1 + 1e-5)).all()
    assert (net(kept["en"]) < net(kept["l1"])).any()


def test_an_unknown_rule_is_refused() -> None:
    x, y = tiny.correct(2)
    with pytest.raises(InputError, match="rule is 'l2'"):
        EAD(rule="l2")(tiny.trained(), x, y, sp.L1())


def test_certainty_does_not_stop_newtonfool() -> None:
    """Scores of a thousand: the probability rounds to 1 and its gradient to 0; the log-odds keep theirs."""
    w = torch.tensor([[-1000.0, 0.0], [1000.0, 0.0]])
    victim, x = tiny.linear(w, [500.0, -500.0]), torch.tensor([[0.9, 0.4]])
    y = torch.tensor([1])
    scores = victim.query(x).scores
    assert scores is not None
    assert scores.softmax(1)[0, 1] == 1
    assert get_loss("log_odds").untargeted(scores, y).item() == pytest.approx(-800, rel=1e-4)
    result = NewtonFool(steps=100)(victim, x, y, sp.L2())
    assert result.distance.item() == pytest.approx(0.4, rel=0.01)


def test_newtonfools_first_step_is_eta_of_the_inputs_norm() -> None:
    w = torch.tensor([[-5.0, 0.0], [5.0, 0.0]])
    victim, x = tiny.linear(w, [2.5, -2.5]), torch.tensor([[0.9, 0.4]])
    result = NewtonFool(steps=1, eta=0.02, polish=0)(victim, x, torch.tensor([1]), sp.L2())
    assert not result.succeeded.any()
    assert result.distance.item() == pytest.approx(0.02 * float(x.norm()), rel=1e-4)


def test_superdeepfool_is_nearer_than_deepfool() -> None:
    x, y = tiny.correct(12)
    plain = DeepFool()(tiny.trained(), x, y, sp.L2())
    result = SuperDeepFool()(tiny.trained(), x, y, sp.L2())
    assert (result.distance <= plain.distance * 1.001).all()
    assert result.median_distance < 0.97 * plain.median_distance


def test_units_of_the_input_do_not_matter() -> None:
    """Pixels in [0, 255]: the same search, and distances 255 times as large."""
    x, y = tiny.correct(6)
    far = sp.Victim(torch.nn.Sequential(Shrink(), tiny.trained().net).eval(), bounds=(0, 255))
    for attack, ball in ((EAD(steps=40), sp.L1), (LBFGS(), sp.L2), (SuperDeepFool(), sp.L2)):
        here = attack(tiny.trained(), x, y, ball()).median_distance
        assert attack(far, x * 255, y, ball()).median_distance == pytest.approx(255 * here, rel=0.05)


class Shrink(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 255


def test_known_figures_on_digits(zoo: ModuleType) -> None:
    """Twelve digits, a network trained against Linf: the medians that these searches are known to come down to."""
    victim = sp.Victim(zoo.load("mnist_adv"))
    x, y = zoo.data("mnist", 12)
    for attack, ball, most in (
        (EAD(steps=100), sp.L1, 8.0),
        (SuperDeepFool(classes=3), sp.L2, 2.3),
        (LBFGS(), sp.L2, 1.9),
        (NewtonFool(), sp.L2, 2.3),
        (BrendelBethge(), sp.L2, 1.15),
        (BrendelBethge(), sp.L0, 5.0),
        (BrendelBethge(), sp.Linf, 0.32),
    ):
        result = attack(victim, x, y, ball())
        assert result.succeeded.sum() == (result.clean.labels == y).sum(), str(attack)
        assert result.median_distance <= most, str(attack)


def test_a_walk_that_has_lost_the_boundary_goes_no_farther_back_than_needed(zoo: ModuleType) -> None:
    """A digit whose walk from noise, at a distance of 327 in L1, first crosses the boundary after two returns."""
    x, y = zoo.data("mnist", 41)
    result = BrendelBethge()(sp.Victim(zoo.load("mnist_adv")), x[40:], y[40:], sp.L1())
    assert float(result.distance) <= 20
