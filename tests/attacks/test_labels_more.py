"""SurFree and GeoDA beside the closed forms of flat boundaries, with exact budgets, and on a network."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import sparring as sp
import tiny
from sparring.attacks import Boundary, GeoDA, HopSkipJump, SurFree
from sparring.attacks.labels.frequencies import Frequencies
from sparring.core.errors import InputError, ThreatError


def flat(side: int = 6, seed: int = 0) -> tuple[sp.Victim, Tensor, Tensor, Tensor]:
    """Two classes split by a plane, inputs (6, 1, side, side) that lie where no bound is in the way, and the plane.

    Returns:
        The victim, inputs, labels, and the plane's weights with the inputs' scores as last column: (6, d + 1).
    """
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(side * side, generator=g)
    x = 0.5 + 0.03 * torch.randn(6, 1, side, side, generator=g)
    bias = -0.5 * w.sum()
    victim = tiny.linear(torch.stack([-w, w]), torch.stack([-bias, bias]))
    score = x.flatten(1) @ w + bias
    return victim, x, (score > 0).long(), torch.cat([w.expand(6, -1), score[:, None]], dim=1)


DUAL = {"l2": 2.0, "linf": 1.0, "l1": torch.inf}


class TestFlatBoundaries:
    """On a plane the distance is |w.x + b| over w's dual norm, and the attacks were made for planes."""

    @pytest.mark.parametrize(
        ("attack", "space", "most"),
        [(SurFree(), sp.L2(), 1.15), (GeoDA(), sp.L2(), 1.08), (GeoDA(), sp.Linf(), 1.08), (GeoDA(), sp.L1(), 1.7)],
        ids=["surfree-l2", "geoda-l2", "geoda-linf", "geoda-l1"],
    )
    def test_near_the_closed_form(self, attack: sp.Attack, space: Any, most: float) -> None:
        victim, x, y, plane = flat()
        exact = plane[:, -1].abs() / torch.linalg.vector_norm(plane[:, :-1], ord=DUAL[space.name], dim=1)
        result = attack(victim, x, y, sp.ThreatModel(space, queries=1500))
        assert result.succeeded.all()
        ratio = result.distance / exact
        assert (ratio >= 1 - 1e-4).all()
        assert ratio.median() < most

    def test_a_walk_of_few_queries_has_hopped(self) -> None:
        """A hundred queries hold a way to the boundary, a normal, a hop and the way back; half of them do not."""
        victim, x, y, plane = flat(side=12)
        exact = plane[:, -1].abs() / torch.linalg.vector_norm(plane[:, :-1], dim=1)
        start, hopped = (
            (HopSkipJump()(victim, x, y, sp.ThreatModel(sp.L2(), queries=q)).distance / exact).median()
            for q in (35, 100)
        )
        assert float(hopped) < 0.75 * float(start)

    def test_the_boundary_walk_nears_the_closed_form_with_thousands_of_queries(self) -> None:
        victim, x, y, plane = flat(side=12)
        exact = plane[:, -1].abs() / torch.linalg.vector_norm(plane[:, :-1], dim=1)
        few, many = (Boundary()(victim, x, y, sp.ThreatModel(sp.L2(), queries=q)).distance / exact for q in (300, 1500))
        assert (many >= 1 - 1e-4).all()
        assert float(many.median()) < 1.2 < float(few.median())

    def test_in_l1_elements_are_filled_to_their_bounds_in_the_order_of_the_weights(self) -> None:
        w = torch.tensor([8.0, 4.0, 2.0] + [0.01] * 33)
        x = torch.full((1, 1, 6, 6), 0.5)
        bias = -float(w @ x.flatten()) - 5.0  # 8 * 0.5 fills the first; a quarter of the second does the rest
        victim = tiny.linear(torch.stack([-w, w]), [-bias, bias])
        result = GeoDA()(victim, x, torch.tensor([0]), sp.ThreatModel(sp.L1(), queries=4000))
        assert result.succeeded.all()
        assert 0.75 - 1e-4 <= float(result.distance) < 0.9
        assert isinstance(result.adversarial, Tensor)
        assert float(result.adversarial[0, 0, 0, 0]) == pytest.approx(1.0)

    def test_a_smooth_normal_is_found_in_fewer_queries_in_the_low_frequencies(self) -> None:
        waves = Frequencies.of(torch.zeros(1, 1, 24, 24), 1 / 3)
        w = waves.vectors(torch.randn(waves.size, generator=torch.Generator().manual_seed(1))).flatten()
        x = torch.full((4, 1, 24, 24), 0.5)
        bias = -float(w @ x[0].flatten()) - 2.0
        victim = tiny.linear(torch.stack([-w, w]), [-bias, bias])
        threat = sp.ThreatModel(sp.L2(), queries=400)
        y = torch.zeros(4, dtype=torch.int64)
        ids = torch.arange(4)
        exact = 2.0 / float(w.norm())
        for attack in (SurFree, GeoDA):
            low, full = (
                attack(frequencies=share)(victim, x, y, threat, ids=ids).median_distance / exact
                for share in (1 / 3, 1.0)
            )
            assert 1 - 1e-4 <= low < 0.8 * full


class TestQueries:
    @pytest.mark.parametrize("attack", [SurFree(), GeoDA()])
    @pytest.mark.parametrize("queries", [1, 17, 150])
    def test_the_victim_is_asked_exactly_as_often_as_is_counted(self, attack: sp.Attack, queries: int) -> None:
        x, y = tiny.correct(5)
        victim, spy = tiny.spied(tiny.trained())
        result = attack(victim, x, y, sp.ThreatModel(sp.L2(), queries=queries))
        assert (result.queries <= queries).all()
        assert sum(spy.batches) == int(result.queries.sum()) + 2 * len(x)  # the clean pass and the re-check
        if queries == 150:
            assert (result.queries >= 140).all(), "a budget is there to be used"

    def test_more_queries_never_lead_surfree_farther_away(self) -> None:
        x, y = tiny.correct(6)
        runs = [SurFree()(tiny.trained(), x, y, sp.ThreatModel(sp.L2(), queries=q)) for q in (60, 120, 240)]
        distances = torch.stack([torch.where(r.succeeded, r.distance, torch.inf) for r in runs])
        assert (distances.diff(dim=0) <= 1e-6).all()
        assert (distances[2] < distances[0]).all()

    def test_geoda_has_a_number_of_its_own_where_the_threat_names_none(self) -> None:
        x, y = tiny.correct(2)
        result = GeoDA(queries=90)(tiny.trained(), x, y, sp.L2())
        assert result.succeeded.all()
        assert (result.queries <= 90).all()


def test_surfree_reaches_a_target_from_an_input_of_that_class() -> None:
    x, y = tiny.correct(4)
    target = (y + 2) % tiny.CLASSES
    pool, labels = tiny.pictures(40, seed=9)
    threat = sp.ThreatModel(sp.L2(), goal=sp.Targeted(target), queries=600, knowledge=sp.Knowledge(data=(pool, labels)))
    result = SurFree()(tiny.trained(), x, y, threat)
    assert result.succeeded.all()
    assert torch.equal(tiny.trained().query(result.adversarial).labels, target)
    start = torch.stack(
        [(pool[labels == t] - one).flatten(1).norm(dim=1).min() for t, one in zip(target, x, strict=True)]
    )
    assert (result.distance < start).all(), "nearer than any picture of that class"
    with pytest.raises(ThreatError):
        GeoDA()(tiny.trained(), x, y, threat)


@pytest.mark.parametrize("shape", [(3, 2, 12, 10), (3, 5), (3, 2, 20)])
def test_the_low_frequencies_are_an_orthonormal_basis_of_a_subspace(shape: tuple[int, ...]) -> None:
    waves = Frequencies.of(torch.zeros(shape), 0.75)
    c = torch.randn(4, 3, waves.size, generator=torch.Generator().manual_seed(0))
    v = waves.vectors(c)
    assert v.shape == (4, *shape)
    torch.testing.assert_close(waves.coordinates(v), c, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(v.flatten(2).norm(dim=2), c.norm(dim=2))
    if len(shape) == 4:
        assert waves.size == 2 * 9 * 8
        flipped = v.clone()
        flipped[..., ::2] *= -1  # the fastest wave across
        assert waves.coordinates(flipped).norm() < 0.9 * c.norm()


def test_photographs_keep_as_many_waves_as_pay() -> None:
    assert Frequencies.of(torch.zeros(1, 3, 224, 224), None).size == 3 * 64 * 64
    assert Frequencies.of(torch.zeros(1, 3, 224, 100), None).size == 3 * 64 * 50
    assert Frequencies.of(torch.zeros(1, 1, 28, 28), None).size == Frequencies.of(torch.zeros(1, 1, 28, 28), 0.5).size
    assert Frequencies.of(torch.zeros(1, 3, 224, 224), 1.0).size == 3 * 224 * 224  # who asks for all gets all


@pytest.mark.parametrize(
    "attack",
    [
        Boundary(smooth=1.5),
        Boundary(frequencies=0.0),
        SurFree(frequencies=0.0),
        SurFree(angle=120.0),
        SurFree(adaptation=1.0),
        GeoDA(frequencies=1.5),
        GeoDA(decay=1.0),
        GeoDA(first=0),
        GeoDA(probe=0.0),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(attack: sp.Attack) -> None:
    x, y = tiny.correct(1)
    with pytest.raises(InputError):
        attack(tiny.trained(), x, y, sp.ThreatModel(sp.L2(), queries=50))


def test_smooth_directions_bring_the_walk_nearer_on_a_robust_network(zoo: ModuleType) -> None:
    victim = sp.Victim(zoo.load("mnist_adv"))
    x, y = zoo.data("mnist", 20)
    threat = sp.ThreatModel(sp.L2(), queries=400)
    smooth, white = (Boundary(smooth=share)(victim, x, y, threat).median_distance for share in (0.7, 0.0))
    assert smooth < 0.9 * white


def test_on_a_robust_network_both_are_nearer_than_hopskipjump_at_500_queries(zoo: ModuleType) -> None:
    net = zoo.load("mnist_adv")
    victim = net if isinstance(net, sp.Victim) else sp.Victim(net)
    x, y = zoo.data("mnist", 12)
    threat = sp.ThreatModel(sp.L2(), queries=500)
    hop = sp.attacks.HopSkipJump()(victim, x, y, threat).median_distance
    for attack in (SurFree(), GeoDA()):
        assert attack(victim, x, y, threat).median_distance < min(hop, 3.0)
