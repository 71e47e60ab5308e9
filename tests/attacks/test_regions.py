"""Linear regions: the forms against the network, the programmes against brute force, the attack against gradients."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparring as sp
import tiny
from sparring.attacks import APGD, LinearRegions
from sparring.attacks.regions.pieces import Chain
from sparring.attacks.regions.programme import GAP, best_shift
from sparring.core.errors import CapabilityError, ThreatError, VanishedGradientWarning
from sparring.core.registry import attack_class
from sparring.core.result import Outcome

QUICK = LinearRegions(restarts=1, rounds=2, climbs=8, steps=15, programmes=2, units=8, nodes=5)


def planar(seed: int, hidden: int = 8, classes: int = 3) -> nn.Sequential:
    """Two ReLU layers on two numbers, random: dozens of linear regions in the unit square."""
    net = nn.Sequential(
        nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=g))
            layer.bias.copy_(0.5 * torch.randn(layer.bias.shape, generator=g))
        net[0].bias.sub_(0.5 * net[0].weight.sum(1))  # kinks that cross the square
    return net.eval()


def square(side: int = 301) -> Tensor:
    """A grid over the unit square."""
    ticks = torch.linspace(0, 1, side)
    return torch.cartesian_prod(ticks, ticks)


@functools.cache
def pictured() -> sp.Victim:
    """A small trained network of every kind of layer that is read, normalisation included."""
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(36, 12),
        nn.ReLU(),
        nn.Linear(12, tiny.CLASSES),
    )
    g = torch.Generator().manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, generator=g)
            nn.init.zeros_(layer.bias)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(0.1 * torch.randn(4, generator=g))
            layer.running_var.copy_(1 + 0.5 * torch.rand(4, generator=g))
    net.eval()
    victim = sp.Victim(net, mean=[0.4], std=[0.25], name="pictured")
    x, y = tiny.pictures(400, seed=1)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(victim.scores(x), y).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return victim


def right(n: int) -> tuple[Tensor, Tensor]:
    """Held-out pictures that `pictured()` reads rightly."""
    x, y = tiny.pictures(2 * n, seed=2)
    ok = pictured().query(x).labels == y
    return x[ok][:n], y[ok][:n]


class TestForms:
    def test_they_are_the_network_inside_the_region_and_beyond_it_where_units_are_free(self) -> None:
        chain = Chain.of(pictured().capability("layers"))
        x = right(1)[0][0]
        everything = torch.arange(36)
        reach = torch.full((36,), 0.3)
        there = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        here, beyond = chain.units(torch.stack([x, there]))
        changed = (here > 0) ^ (beyond > 0)
        assert 5 < int(changed.sum()) < len(changed)
        hood = chain.around(x, -reach, reach, everything, changed)
        outputs = beyond[changed & _undecided(chain, x, reach, changed)].clamp(min=0)
        v = torch.cat([(there - x).flatten(), outputs])
        told = hood.scores.constant + hood.scores.slopes @ v
        torch.testing.assert_close(told, pictured().scores(there[None])[0], atol=1e-4, rtol=1e-4)
        for kept in hood.kept:
            assert (kept.constant + kept.slopes @ v[: kept.slopes.shape[1]] > -1e-4).all()

    def test_the_chain_scores_as_the_victim_does(self) -> None:
        x = right(5)[0]
        chain = Chain.of(pictured().capability("layers"))
        torch.testing.assert_close(chain.scores(x), pictured().scores(x))
        single = sp.Victim(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval())
        z = torch.rand(4, 2)
        torch.testing.assert_close(Chain.of(single.capability("layers")).scores(z), single.scores(z))


def _undecided(chain: Chain, x: Tensor, reach: Tensor, free: Tensor) -> Tensor:
    """Which free units got a variable: those whose forms reach both signs, layer by layer."""
    hood = chain.around(x, -reach, reach, torch.arange(x.numel()), free)
    taken = sum(len(choice.least) for choice in hood.choices)
    assert taken == int(free.sum()), "a unit that changes side was thought unable to"
    return free


class TestProgrammes:
    @pytest.mark.parametrize("seed", range(6))
    def test_with_all_units_free_the_optimum_is_that_of_the_whole_square(self, seed: int) -> None:
        net, chain = planar(seed), Chain.of(planar(seed))
        x = torch.tensor([0.5, 0.5])
        with torch.no_grad():
            y = int(net(x).argmax())
            rival = (y + 1) % 3
            scores = net(square())
        best = float((scores[:, rival] - scores[:, y]).max())
        hood = chain.around(x, -x, 1 - x, torch.arange(2), torch.ones(16, dtype=torch.bool))
        assert sum(len(choice.least) for choice in hood.choices) > 8
        shift = best_shift(hood, rival, [y], nodes=1000)
        assert shift is not None
        with torch.no_grad():
            start, reached = (s[rival] - s[y] for s in net(torch.stack([x, x + shift[:2]])))
        told = hood.scores.constant + hood.scores.slopes @ shift
        assert float(told[rival] - told[y]) == pytest.approx(float(reached), abs=1e-3)
        assert float(reached - start) * (1 + GAP) >= best - float(start) - 1e-4

    @pytest.mark.parametrize("seed", range(6))
    def test_with_none_free_it_is_that_of_the_region_alone(self, seed: int) -> None:
        net, chain = planar(seed), Chain.of(planar(seed))
        x = torch.tensor([0.45, 0.6])
        with torch.no_grad():
            scores, mine = net(square()), chain.units(x[None]) > 0
            y = int(net(x).argmax())
            inside = ((chain.units(square()) > 0) == mine).all(1)
            start = net(x)
        target = (y + 2) % 3
        others = [k for k in range(3) if k != target]
        best = float((scores[inside, target] - scores[inside][:, others].amax(1)).max())
        hood = chain.around(x, -x, 1 - x, torch.arange(2), torch.zeros(16, dtype=torch.bool))
        shift = best_shift(hood, target, others, nodes=1)
        assert shift is not None
        assert len(shift) == 2
        with torch.no_grad():
            reached = net(x + shift)
        lead = float(reached[target] - reached[others].max())
        assert lead >= best - 1e-4
        assert lead >= float(start[target] - start[others].max())
        inward = x + 0.999 * shift  # a vertex of the region: just inside it no unit has changed side
        assert ((chain.units(inward[None]) > 0) == mine).all()

    def test_where_nothing_can_rise_there_is_none(self) -> None:
        net = nn.Sequential(nn.Linear(2, 2))
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
            net[0].bias.zero_()
        corner = torch.tensor([0.0, 0.3])
        hood = Chain.of(net).around(corner, -corner, 1 - corner, torch.arange(2), torch.zeros(0, dtype=torch.bool))
        assert best_shift(hood, 1, [0], nodes=1) is None


class TestAttack:
    def test_it_crosses_flat_land_on_which_gradients_vanish(self) -> None:
        """Class 1 wins only near the corner (.8, .8, .8) of the box: nowhere else does anything change."""
        net = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
        with torch.no_grad():
            net[0].weight.fill_(1.0)
            net[0].bias.fill_(-2.35)
            net[2].weight.copy_(torch.tensor([[0.0], [40.0]]))
            net[2].bias.copy_(torch.tensor([1.0, -0.1]))
        victim, x, y = sp.Victim(net), torch.full((1, 3), 0.5), torch.tensor([0])
        with pytest.warns(VanishedGradientWarning):
            assert APGD(loss="margin", restarts=5)(victim, x, y, sp.Linf(0.3)).outcomes == [Outcome.SURVIVED]
        found = QUICK(victim, x, y, sp.Linf(0.3))
        assert found.outcomes == [Outcome.SUCCEEDED]
        assert float(found.adversarial.sum()) > 2.377
        assert QUICK(victim, x, y, sp.Linf(0.29)).outcomes == [Outcome.SURVIVED]  # the sum reaches 2.37

    @pytest.mark.parametrize("goal", [None, 1])
    def test_small_networks_are_broken_where_brute_force_says_so(self, goal: int | None) -> None:
        checked = 0
        for seed in range(8):
            net = planar(seed)
            x = torch.tensor([[0.5, 0.5]])
            with torch.no_grad():
                scores = net(square()[((square() - 0.5).abs() <= 0.25).all(1)])
                y = net(x).argmax(1)
            if goal == int(y):
                continue
            wrong = scores.argmax(1) != y if goal is None else scores.argmax(1) == goal
            result = QUICK(sp.Victim(net), x, y, sp.Linf(0.25), goal=goal)
            if bool(wrong.any()):
                assert result.outcomes == [Outcome.SUCCEEDED]
                checked += 1
        assert checked >= 2

    def test_it_reaches_the_floor_on_its_card_legally(self) -> None:
        x, y = right(12)
        target = (y + 1) % tiny.CLASSES
        for eps, goal in ((0.15, None), (0.3, target)):
            result = QUICK(pictured(), x, y, sp.Linf(eps), goal=goal)
            assert result.attack_success_rate >= LinearRegions.card.floor["linf"]
            assert sp.Linf(eps).bound(x, pictured().bounds).contains(x, result.adversarial).all()
            labels = pictured().query(result.adversarial).labels
            assert torch.equal(result.succeeded, labels != y if goal is None else labels == target)

    def test_batches_order_and_early_stop_do_not_change_outcomes_and_seeds_repeat(self) -> None:
        x, y = right(6)
        eps = torch.tensor([0.0, 0.02, 0.04, 0.06, 0.08, 0.1])

        def run(order: Tensor, size: int | None, **how: bool) -> sp.AttackResult:
            return QUICK(pictured(), x[order], y[order], sp.Linf(eps[order]), batch_size=size, seed=3, **how)

        straight = torch.arange(6)
        whole = run(straight, None)
        assert whole.outcomes[0] is Outcome.SURVIVED
        assert 0 < int(whole.succeeded.sum()) < 6
        assert torch.equal(run(straight, None).adversarial, whole.adversarial)
        shuffled = torch.tensor([4, 1, 5, 0, 3, 2])
        for order, size in ((straight, 1), (shuffled, 4)):
            other = run(order, size)
            assert torch.equal(other.outcome, whole.outcome[order])
            torch.testing.assert_close(other.adversarial, whole.adversarial[order], atol=1e-4, rtol=1e-4)
        assert torch.equal(run(straight, None, early_stop=False).succeeded, whole.succeeded)
        assert int(whole.backwards[0]) == QUICK.rounds * QUICK.climbs * QUICK.steps

    def test_on_a_lattice_it_stays_on_the_lattice(self) -> None:
        x, y = right(3)
        result = QUICK(pictured(), x, y, sp.Linf(0.15, lattice=256))
        assert isinstance(result.adversarial, Tensor)
        assert ((result.adversarial * 255 - (result.adversarial * 255).round()).abs() < 1e-3).all()
        assert result.succeeded.any()


class TestRefusals:
    def test_a_layer_that_is_not_read_is_named(self) -> None:
        x, y = tiny.correct(1)
        with pytest.raises(CapabilityError, match=r"layer 1 is a Tanh.*reads ReLU and"):
            QUICK(tiny.trained(), x, y, sp.Linf(0.1))
        with pytest.raises(CapabilityError, match="no running statistics"):
            Chain.of([nn.BatchNorm1d(3, track_running_stats=False)])

    @pytest.mark.parametrize(
        ("victim", "why"),
        [
            (sp.Victim(tiny.Spy(nn.Linear(36, 4))), "is a Spy; only those of a torch.nn.Sequential"),
            (sp.Victim(nn.Sequential(nn.Flatten(), nn.Softmax(1)), probabilities=True), "probabilities=True"),
            (sp.Victim(nn.Sequential(nn.Flatten())).defended([nn.Identity()]), "defence stages"),
            (sp.Victim(nn.Sequential(nn.Flatten()), traits=sp.Traits(stochastic=True)), "randomness"),
            (sp.BlackBox(lambda x: torch.zeros(len(x), dtype=torch.int64)), "has no layers to offer"),
        ],
    )
    def test_what_is_no_chain_of_layers(self, victim: sp.BaseVictim, why: str) -> None:
        with pytest.raises(CapabilityError, match=r"linear-regions needs the layers of the victim.*" + why):
            QUICK(victim, torch.rand(1, 1, 6, 6), torch.zeros(1, dtype=torch.int64), sp.Linf(0.1))

    def test_a_network_too_large_for_forms(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sparring.attacks.regions.pieces.MOST_ENTRIES", 37 * 144 - 1)
        x, free = right(1)[0][0], torch.zeros(48, dtype=torch.bool)
        reach = torch.full((36,), 0.1)
        with pytest.raises(CapabilityError, match=r"Conv2d.*144 outputs of 36 variables.*small networks"):
            Chain.of(pictured().capability("layers")).around(x, -reach, reach, torch.arange(36), free)

    def test_budgets_and_goals_that_it_cannot_keep(self) -> None:
        x, y = right(1)
        with pytest.raises(ThreatError, match="steps=None"):
            QUICK(pictured(), x, y, sp.ThreatModel(sp.Linf(0.1), steps=10))
        with pytest.raises(ThreatError, match="searches linf"):
            QUICK(pictured(), x, y, sp.L2(0.1))
        blind = sp.ThreatModel(sp.Linf(0.1), access="nothing", knowledge=sp.Knowledge(surrogates=(pictured(),)))
        with pytest.raises(CapabilityError, match="reads the victim's weights"):
            QUICK(pictured(), x, y, blind)

    def test_it_is_registered(self) -> None:
        assert attack_class("linear-regions") is LinearRegions


def test_images_that_gradient_attacks_miss(assets: Path, zoo: ModuleType) -> None:
    """Two images proven vulnerable by integer programming, which AutoAttack does not break."""
    listed = json.loads((assets / "data" / "mnist_hard.json").read_text())["mnist_adv"]["test_indices"]
    index = [4311, 8374]
    assert set(index) <= set(listed)
    stored = np.load(assets / "data" / "mnist_test.npz")
    x = torch.from_numpy(stored["x"][index]).float()[:, None] / 255
    y = torch.from_numpy(stored["y"][index].astype(np.int64))
    net = zoo.load("mnist_adv")
    found = LinearRegions(restarts=1)(sp.Victim(net), x, y, sp.Linf(0.3))
    with torch.no_grad():
        labels = net(found.adversarial).argmax(1)
    assert (labels != y).all()
    assert float((found.adversarial - x).abs().max()) <= 0.3 + 1e-6
    assert float(found.adversarial.min()) >= 0
    assert float(found.adversarial.max()) <= 1
