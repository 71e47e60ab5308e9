"""The norm balls: projections, samples, steepest directions and the lattice, as properties and against known optima."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sparring as sp
from sparring.core.balls import NORMS, Ball, per_sample
from sparring.core.errors import InputError
from sparring.core.rng import KeyedRandom, content_ids
from sparring.core.space import Bounds

UNIT = Bounds.of((0.0, 1.0))
SHAPE = (2, 2, 3)
PER_FEATURE = Bounds.of((torch.linspace(-1, 0, 12).reshape(SHAPE), torch.linspace(0.5, 3, 12).reshape(SHAPE)))
DOMAINS = {"unit": UNIT, "per feature": PER_FEATURE}

balls = pytest.mark.parametrize("name", list(NORMS))
domains = pytest.mark.parametrize("domain", list(DOMAINS))
seeds = st.integers(0, 2**32)


def points(seed: int, box: Bounds, n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Centres inside the box (some at its edges), points far and near around them, and radii, one of them 0."""
    g = torch.Generator().manual_seed(seed)
    at = torch.rand((n, *SHAPE), generator=g)
    at = torch.where(torch.rand(at.shape, generator=g) < 0.2, at.round(), at)
    x = box.clamp(box.lo + at * (box.hi - box.lo))
    scale = 10.0 ** (4 * torch.rand((n, 1, 1, 1), generator=g) - 3)
    z = x + scale * torch.randn(at.shape, generator=g)
    z = torch.where(torch.rand(at.shape, generator=g) < 0.2, x, z)
    eps = torch.rand(n, generator=g) * 10.0 ** (2 * torch.rand(n, generator=g) - 1)
    eps[0] = 0.0
    return x, z, eps


def radii(name: str, eps: Tensor) -> Tensor:
    """Radii that mean something in the norm: L0 counts elements."""
    return (eps * 5).ceil() if name == "l0" else eps


def ball(name: str, eps: Any, box: Bounds | None, x: Tensor, **how: Any) -> Ball:
    return NORMS[name](eps, **how).bound(x, box)


def keyed(x: Tensor, seed: int = 0) -> KeyedRandom:
    return KeyedRandom(seed, content_ids(x))


# -- projection --------------------------------------------------------------------------------------------------------


@balls
@domains
@given(seed=seeds)
@settings(max_examples=40)
def test_projections_land_inside(name: str, domain: str, seed: int) -> None:
    x, z, eps = points(seed, DOMAINS[domain])
    space = ball(name, radii(name, eps), DOMAINS[domain], x)
    p = space.project(x, z)
    assert space.contains(x, p).all()
    assert (space.distance(p - x) <= radii(name, eps) * (1 + 1e-5) + 1e-5).all()


@balls
@domains
@given(seed=seeds)
@settings(max_examples=40)
def test_projections_are_idempotent(name: str, domain: str, seed: int) -> None:
    x, z, eps = points(seed, DOMAINS[domain])
    space = ball(name, radii(name, eps), DOMAINS[domain], x)
    once = space.project(x, z)
    torch.testing.assert_close(space.project(x, once), once, atol=1e-5, rtol=0)


@balls
@domains
@given(seed=seeds)
@settings(max_examples=40)
def test_points_inside_stay_where_they_are_to_the_last_bit(name: str, domain: str, seed: int) -> None:
    x, z, eps = points(seed, DOMAINS[domain])
    p = ball(name, radii(name, eps), DOMAINS[domain], x).project(x, z)
    wider = ball(name, radii(name, eps) * 1.01, DOMAINS[domain], x)
    assert torch.equal(wider.project(x, p)[1:], p[1:])  # the first radius is 0, which no factor widens


@balls
@given(seed=seeds)
@settings(max_examples=40)
def test_one_radius_per_sample_equals_the_loop_over_samples(name: str, seed: int) -> None:
    x, z, eps = points(seed, UNIT)
    eps = radii(name, eps)
    together = ball(name, eps, UNIT, x)
    p, drawn = together.project(x, z), together.sample(x, keyed(x), "s")
    for i in range(len(x)):
        row = slice(i, i + 1)
        alone = ball(name, float(eps[i]), UNIT, x[row])
        torch.testing.assert_close(alone.project(x[row], z[row]), p[row], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(alone.sample(x[row], keyed(x[row]), "s"), drawn[row], atol=1e-6, rtol=1e-6)


@balls
def test_without_eps_only_the_bounds_hold(name: str) -> None:
    x, z, _ = points(3, UNIT)
    space = ball(name, None, UNIT, x)
    assert torch.equal(space.project(x, z), z.clamp(0, 1))
    assert space.contains(x, z.clamp(0, 1)).all()
    assert ball(name, 1e-3, UNIT, x).without_limit().contains(x, z.clamp(0, 1)).all()


@balls
def test_taking_samples_takes_their_radii(name: str) -> None:
    x, _, eps = points(3, UNIT)
    index = torch.tensor([3, 1])
    limit = ball(name, eps, UNIT, x).take(index).limit
    assert isinstance(limit, Tensor)
    assert torch.equal(limit, eps[index])


@balls
def test_empty_batches_pass(name: str) -> None:
    x = torch.zeros(0, *SHAPE)
    space = ball(name, 1.0, UNIT, x)
    for out in (space.project(x, x), space.sample(x, keyed(x), "s"), space.steepest(x), space.snap(x, x)):
        assert out.shape == x.shape
    assert space.distance(x).shape == space.contains(x, x).shape == (0,)


def test_peer_bug_1_an_l2_projection_that_moves_nothing_or_pushes_points_outwards() -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    space = ball("l2", 0.2, UNIT, x)
    outside, inside = x + 0.3, x + 0.01
    assert space.distance(space.project(x, outside) - x) == pytest.approx([0.2, 0.2], rel=1e-5)
    assert torch.equal(space.project(x, inside), inside)


@given(seed=seeds, with_bounds=st.booleans())
@settings(max_examples=60)
def test_the_l1_projection_is_the_nearest_point_of_ball_and_box(seed: int, with_bounds: bool) -> None:
    """p is the projection of z on a convex set C exactly if <z - p, q - p> <= 0 for all q in C: a linear programme."""
    g = torch.Generator().manual_seed(seed)
    d = 4
    x = torch.rand((1, d), generator=g)
    z = x + torch.randn((1, d), generator=g) * float(10 ** (2 * torch.rand((), generator=g) - 1))
    eps = float(2 * torch.rand((), generator=g))
    p = ball("l1", eps, UNIT if with_bounds else None, x).project(x, z)
    slope = (z - p)[0].double().numpy()
    centre = x[0].double().numpy()
    # q - x = plus - minus with both >= 0, plus within hi - x, minus within x - lo, their sum at most eps
    room = [(0, 1 - c) for c in centre] + [(0, c) for c in centre] if with_bounds else [(0, None)] * (2 * d)
    best = scipy.optimize.linprog(np.concatenate([-slope, slope]), A_ub=np.ones((1, 2 * d)), b_ub=[eps], bounds=room)
    assert best.success
    reached = float(slope @ (p - x)[0].double().numpy())
    assert -best.fun - reached <= 2e-5 * max(1.0, float(np.abs(slope).max()))


def test_the_l1_projection_agrees_with_a_quadratic_programme() -> None:
    x, z, eps = points(11, UNIT)
    p = ball("l1", eps, UNIT, x).project(x, z)
    for i in range(1, len(x)):
        c, t = x[i].flatten().double().numpy(), z[i].flatten().double().numpy()
        d = len(c)
        qp = scipy.optimize.minimize(
            lambda v, c=c, t=t, d=d: float(((c + v[:d] - v[d:] - t) ** 2).sum()),
            np.full(2 * d, float(eps[i]) / (4 * d)),
            jac=lambda v, c=c, t=t, d=d: np.concatenate([2 * (c + v[:d] - v[d:] - t), -2 * (c + v[:d] - v[d:] - t)]),
            bounds=[(0, 1 - a) for a in c] + [(0, a) for a in c],
            constraints={"type": "ineq", "fun": lambda v, i=i: float(eps[i]) - v.sum()},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        ours = float((p[i] - z[i]).double().square().sum())
        assert ours == pytest.approx(qp.fun, rel=1e-4, abs=1e-6)


def test_the_l0_projection_keeps_the_largest_changes() -> None:
    x = torch.zeros(1, 1, 1, 4) + 0.5
    z = x + torch.tensor([0.1, -0.4, 0.3, 0.0])
    assert torch.equal(ball("l0", 2, UNIT, x).project(x, z), x + torch.tensor([0.0, -0.4, 0.3, 0.0]))


def test_l0_counts_pixels_or_elements() -> None:
    x = torch.full((1, 3, 2, 2), 0.5)
    z = x.clone()
    z[0, :, 0, 0] = 0.9  # one pixel, three elements
    z[0, 1, 1, 1] = 0.6
    assert ball("l0", 4, UNIT, x).distance(z - x) == 4
    pixels = ball("l0", 1, UNIT, x, pixels=True)
    assert pixels.distance(z - x) == 2
    kept = pixels.project(x, z)
    assert torch.equal(kept[0, :, 0, 0], z[0, :, 0, 0])
    assert pixels.contains(x, kept)
    assert not pixels.contains(x, z)
    drawn = ball("l0", 2, UNIT, x, pixels=True).sample(x, keyed(x), "s")
    assert (drawn != x).any(1).sum() <= 2


# -- distance and membership -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_distances_are_the_norms(name: str) -> None:
    x, z, _ = points(5, UNIT)
    expected = torch.linalg.vector_norm((z - x).flatten(1), ord=NORMS[name].p, dim=1)
    torch.testing.assert_close(NORMS[name]().cost(x, z), expected)


@balls
def test_membership_refuses_what_is_outside(name: str) -> None:
    x = torch.full((4, *SHAPE), 0.5)
    space = ball(name, 3.0 if name == "l0" else 0.3, UNIT, x)
    z = x.clone()
    z[1] += 0.4 if name == "linf" else 0.45  # the ball
    z[2, 0, 0, 0] = torch.nan
    z[3, 0, 0, 0] = 1.01  # the bounds
    assert space.contains(x, z).tolist() == [True, False, False, False]


def test_membership_forgives_rounding_and_no_more() -> None:
    x = torch.full((3, *SHAPE), 0.7)
    z = x + torch.tensor([0.3, 0.3 + 5e-7, 0.3 + 1e-5]).reshape(3, 1, 1, 1)
    assert ball("linf", 0.3, Bounds.of((0.0, 2.0)), x).contains(x, z).tolist() == [True, True, False]


# -- samples -----------------------------------------------------------------------------------------------------------


@balls
@domains
@given(seed=seeds)
@settings(max_examples=20)
def test_samples_lie_inside_and_move(name: str, domain: str, seed: int) -> None:
    x, _, eps = points(seed, DOMAINS[domain])
    eps = radii(name, eps)
    space = ball(name, eps, DOMAINS[domain], x)
    drawn = space.sample(x, keyed(x), ("s", 1))
    assert space.contains(x, drawn).all()
    assert torch.equal(drawn[0], x[0])
    assert (drawn[1:] != x[1:]).flatten(1).any(1).all()
    assert not torch.equal(drawn, space.sample(x, keyed(x), ("s", 2)))
    assert torch.equal(drawn, space.sample(x, keyed(x), ("s", 1)))


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_samples_are_uniform_in_the_ball(name: str) -> None:
    """In a ball of dimension d, (norm / eps)^d of a uniform point is uniform on [0, 1]; directions are balanced."""
    x = torch.zeros(4000, 3) + torch.arange(4000)[:, None]
    rng = keyed(x)
    zero = torch.zeros_like(x)
    delta = ball(name, 0.5, None, zero).sample(zero, rng, "s")
    u = (NORMS[name]().distance(delta) / 0.5).pow(3).double().numpy()
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3
    assert delta.mean(0).abs().max() < 0.02
    assert (delta > 0).float().mean(0).sub(0.5).abs().max() < 0.04


def test_l0_samples_choose_every_place() -> None:
    x = torch.full((2000, 6), 0.5)
    drawn = ball("l0", 2, UNIT, x).sample(x, KeyedRandom(0, torch.arange(2000)), "s")
    changed = (drawn != x).float()
    assert (changed.sum(1) == 2).all()
    assert (changed.mean(0) - 2 / 6).abs().max() < 0.05


# -- steepest ----------------------------------------------------------------------------------------------------------


@balls
@given(seed=seeds)
@settings(max_examples=40)
def test_the_steepest_direction_has_unit_norm_and_none_is_steeper(name: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    gradient = torch.randn((4, *SHAPE), generator=g) * 10.0 ** torch.randint(-30, 20, (4, 1, 1, 1), generator=g)
    space = NORMS[name]()
    d = space.steepest(gradient)
    torch.testing.assert_close(space.distance(d), torch.ones(4), atol=1e-5, rtol=0)
    rivals = torch.randn((50, 4, *SHAPE), generator=g)
    if name == "l0":  # one element, of size 1 at most
        one = torch.nn.functional.one_hot(rivals.flatten(2).abs().argmax(2), math.prod(SHAPE)).reshape(rivals.shape)
        rivals = one * rivals.sign()
    else:
        rivals = rivals / torch.stack([per_sample(space.distance(r), r) for r in rivals])
    unit = gradient / per_sample(gradient.flatten(1).abs().amax(1), gradient)
    gain = (rivals * unit).flatten(2).sum(2)
    assert (gain <= (d * unit).flatten(1).sum(1) + 1e-4).all()


@balls
def test_a_gradient_of_zero_has_no_direction(name: str) -> None:
    assert torch.equal(NORMS[name]().steepest(torch.zeros(2, *SHAPE)), torch.zeros(2, *SHAPE))


# -- the lattice -------------------------------------------------------------------------------------------------------


def grid_points(seed: int, n: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, *SHAPE), generator=g).float() / 255
    return x, x + 0.4 * torch.randn(x.shape, generator=g)


def test_plain_rounding_would_leave_a_ball_of_76_and_a_half_levels() -> None:
    x = torch.full((2, *SHAPE), 100 / 255)
    space = ball("linf", 0.3, UNIT, x, lattice=256)
    away = torch.stack([x[0] + 0.3, x[1] - 0.3])
    moved = space.snap(x, away)
    assert ((moved - x) * 255).round().flatten(1).abs().unique().tolist() == [76.0]
    assert space.contains(x, moved).all()
    assert not space.contains(x, x + 77 / 255).any()


def test_eps_of_eight_levels_reaches_eight_levels() -> None:
    x, z = grid_points(0)
    space = ball("linf", 8 / 255, UNIT, x, lattice=256)
    moved = space.snap(x, space.project(x, z))
    assert int(((moved - x) * 255).round().abs().max()) == 8
    assert space.contains(x, moved).all()


@balls
@given(seed=seeds)
@settings(max_examples=40)
def test_snapped_points_are_on_the_lattice_and_inside(name: str, seed: int) -> None:
    x, z = grid_points(seed)
    eps = radii(name, torch.rand(5, generator=torch.Generator().manual_seed(seed)))
    space = ball(name, eps, UNIT, x, lattice=256)
    moved = space.snap(x, space.project(x, z))
    assert ((moved * 255) - (moved * 255).round()).abs().max() < 1e-3
    assert space.contains(x, moved).all()
    torch.testing.assert_close(space.snap(x, moved), moved, atol=1e-6, rtol=0)


@balls
def test_snapping_an_input_changes_nothing(name: str) -> None:
    """k * (1 / 255) and k / 255 differ in the last bit for many k: a pixel that nobody changed must not count."""
    x = (torch.arange(256).float() / 255).reshape(1, 1, 16, 16)
    space = ball(name, 0.0, UNIT, x, lattice=256)
    assert torch.equal(space.snap(x, x), x)


def test_peer_bug_7_truncating_instead_of_rounding_to_8_bits() -> None:
    x = torch.full((1, *SHAPE), 100 / 255)
    space = ball("linf", 0.5, UNIT, x, lattice=256)
    assert torch.equal((space.snap(x, x + 0.9 / 255) * 255).round(), torch.full_like(x, 101))
    assert torch.equal((space.snap(x, x - 0.9 / 255) * 255).round(), torch.full_like(x, 99))


def test_a_lattice_between_bounds_of_each_feature() -> None:
    span = PER_FEATURE.hi - PER_FEATURE.lo
    levels = torch.arange(12).reshape(SHAPE)[None]
    x = PER_FEATURE.lo + levels * span / 15
    space = ball("linf", 0.5, PER_FEATURE, x, lattice=16)
    moved = space.snap(x, space.project(x, x + 10.0))
    steps = (moved - PER_FEATURE.lo) / span * 15
    assert (steps - steps.round()).abs().max() < 1e-3
    assert space.contains(x, moved)
    room = torch.minimum((0.5 / (span / 15) + 1e-4).floor(), 15.0 - levels)
    assert torch.equal(steps.round() - levels, room)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
def test_impossible_radii_are_refused(eps: float) -> None:
    with pytest.raises(InputError, match="finite"):
        sp.Linf(eps)
    with pytest.raises(InputError, match="finite"):
        sp.Linf(torch.tensor([0.1, eps])).bound(torch.zeros(2, 3), UNIT)


@pytest.mark.parametrize("lattice", [1, 0, -2, 2.5])
def test_impossible_lattices_are_refused(lattice: Any) -> None:
    with pytest.raises(InputError, match="levels"):
        sp.Linf(0.1, lattice=lattice)


def test_radii_of_the_wrong_number_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(3,\) for 2 samples"):
        sp.L2(torch.ones(3)).bound(torch.zeros(2, 3), UNIT)


def test_inputs_off_the_lattice_are_refused_with_the_remedy() -> None:
    x = torch.full((3, 4), 0.5)  # 127.5 levels
    x[0] = 51 / 255
    with pytest.raises(InputError, match=r"2 of 3 inputs.*round"):
        sp.Linf(0.1, lattice=256).bound(x, UNIT)


def test_a_lattice_needs_bounds_and_a_ball_needs_tensors() -> None:
    with pytest.raises(InputError, match="bounds"):
        sp.Linf(0.1, lattice=256).bound(torch.zeros(1, 2), None)
    with pytest.raises(InputError, match="list"):
        sp.Linf(0.1).bound(["a text"], None)


@pytest.mark.parametrize(
    "bounds",
    [(1.0, 0.0), (0.0, 0.0), (0.0, math.inf), (math.nan, 1.0), 5, (0.0, "one"), (torch.zeros(2), torch.zeros(2))],
)
def test_impossible_bounds_are_refused(bounds: Any) -> None:
    with pytest.raises(InputError, match="bounds"):
        Bounds.of(bounds)


def test_spaces_say_what_they_are() -> None:
    assert repr(sp.Linf(0.25)) == "Linf(0.25)"
    assert repr(sp.L2()) == "L2()"
    assert repr(sp.Linf(torch.tensor([0.25, 0.25]), lattice=256)) == "Linf(0.25, lattice=256)"
    assert repr(sp.L1(torch.tensor([0.25, 0.5]))) == "L1(<2 radii>)"
