"""Answers from memory: those of the whole network, whatever its layers, its windows and who has left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparring as sp
from sparring.core import nearby
from sparring.core.errors import VictimError
from sparring.core.nearby import Nearby, Window
from sparring.core.oracle import Oracle


def seeded(build: Any) -> nn.Sequential:
    """A network with the same weights each time, in eval mode, its batch-norm statistics not those of a fresh one."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net: nn.Sequential = build().eval()
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None and m.running_var is not None:
                m.running_mean.uniform_(-1, 1)
                m.running_var.uniform_(0.5, 2)
    return net


NETS = {
    "strided": lambda: nn.Sequential(
        *(nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(54, 9), nn.ReLU(), nn.Linear(9, 4)),
    ),
    "pooled": lambda: nn.Sequential(
        *(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.MaxPool2d(3, 2, 1), nn.Dropout(), nn.Conv2d(4, 6, 3, bias=False), nn.AvgPool2d(2, 1, 1)),
        *(nn.Flatten(), nn.Linear(180, 4)),
    ),
    "dilated": lambda: nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3), nn.GELU(), nn.Conv2d(6, 5, (3, 5), (2, 1), (0, 2))),
        *(nn.Conv2d(5, 5, 3, dilation=(1, 2)), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU(inplace=True)),
        nn.Linear(5, 4),
    ),
    "reflected": lambda: nn.Sequential(
        *(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.LazyLinear(4)),
    ),
}


def painted(x: Tensor, sides: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Window]:
    """The points with a new window each, and where."""
    m, c, h, w = x.shape
    top, left = (torch.randint(0, n - s + 1, (m,), generator=generator) for n, s in zip((h, w), sides, strict=True))
    z = x.clone()
    for i in range(m):
        fresh = torch.rand(c, *sides, generator=generator)
        z[i, :, int(top[i]) : int(top[i]) + sides[0], int(left[i]) : int(left[i]) + sides[1]] = fresh
    return z, Window(top * w + left, sides)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=15)
@given(sides=st.tuples(st.integers(1, 12), st.integers(1, 13)), many=st.sampled_from([1, 5]), seed=st.integers(0, 5))
def test_the_answers_are_those_of_the_whole_network(name: str, sides: tuple[int, int], many: int, seed: int) -> None:
    net, draw = seeded(NETS[name]), torch.Generator().manual_seed(seed)
    x = torch.rand(many, 3, 12, 13, generator=draw)
    given_x = x.clone()
    with torch.no_grad():
        net(x.clone())  # lazy layers take their shape
        memory = Nearby(tuple(net), (), (3, 12, 13))
        memory.stand(x)
        assert torch.equal(x, given_x)
        for turn in range(6):
            if turn == 3:
                stay = torch.tensor([0, 2, 3][: len(x)])
                x = x[stay]
                memory.take(stay)
            z, window = painted(x, sides, draw)
            torch.testing.assert_close(memory.scores(z, window), net(z.clone()), atol=1e-5, rtol=1e-5)
            better = torch.rand(len(x), generator=draw) < (0.0, 0.5, 1.0)[turn % 3]
            memory.settle(better)
            x = torch.where(better[:, None, None, None], z, x)


def test_only_small_windows_of_enough_pictures_are_worth_it() -> None:
    memory = Nearby(tuple(seeded(NETS["strided"])), (), (3, 28, 28))
    assert not memory.worth((1, 1), 10)
    assert memory.worth((1, 1), 5_000)
    assert not memory.worth((28, 28), 5_000)
    assert not memory.worth((1, 1), 10**9)  # no room
    assert not Nearby((nn.Flatten(), nn.Linear(468, 4)), (), (3, 12, 13)).worth((1, 1), 5_000)


def test_only_plain_networks_remember() -> None:
    x, net = torch.rand(2, 3, 12, 13), seeded(NETS["strided"])
    scaled = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    assert sp.Victim(net, **scaled).nearby(x) is not None  # type: ignore[arg-type]
    for other in (
        sp.Victim(lambda z: net(z)),
        sp.Victim(net, probabilities=True),
        sp.Victim(net, traits=sp.Traits(stochastic=True)),
        sp.Victim(net).defended(pre=[nn.Identity()]),
    ):
        assert other.nearby(x) is None

    class Own(sp.Victim):
        def head(self, z: Tensor) -> Tensor:
            return super().head(z).flip(1)

    assert Own(net).nearby(x) is None
    heard = net[0].register_forward_hook(lambda *_: None)
    assert sp.Victim(net).nearby(x) is None  # somebody counts on whole pictures
    heard.remove()
    assert sp.Victim(net).nearby(x) is not None
    net.forward = lambda z: z.flatten(1)  # type: ignore[method-assign]
    assert sp.Victim(net).nearby(x) is None


def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points each question from memory was about, as they come; every window is worth it."""
    monkeypatch.setattr(nearby, "WORTH_IT", 0)
    monkeypatch.setattr(nearby, "SMALL", 1.0)
    seen: list[int] = []
    true = Nearby.scores

    def spy(self: Nearby, x: Tensor, window: Window) -> Tensor:
        seen.append(len(x))
        return true(self, x, window)

    monkeypatch.setattr(Nearby, "scores", spy)
    return seen


@pytest.mark.parametrize("lattice", [None, 256])
def test_square_finds_the_same_from_memory(monkeypatch: pytest.MonkeyPatch, lattice: int | None) -> None:
    victim = sp.Victim(seeded(NETS["strided"]), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    x = torch.rand(24, 3, 12, 13, generator=torch.Generator().manual_seed(3))
    x = x if lattice is None else (x * 255).round() / 255
    eps = torch.linspace(0.002, 0.05, 24)
    attack, space = sp.attacks.Square(queries=150), sp.Linf(eps, lattice=lattice)
    plain = attack(victim, x, None, space)
    seen = looked(monkeypatch)
    remembered = attack(victim, x, None, space)
    assert len(seen) > 50
    assert seen[0] > seen[-1] > 0  # some left, some stayed
    assert torch.equal(plain.outcome, remembered.outcome)
    assert torch.equal(plain.queries, remembered.queries)
    # where a change is worth no more than rounding, the two may part
    assert float(((plain.adversarial - remembered.adversarial).abs() > 1e-6).float().mean()) < 1e-3


@pytest.mark.parametrize("space", [sp.L0(6), sp.L0(4, pixels=True), sp.L0(lattice=256)], ids=repr)
def test_free_forwards_find_the_same_from_memory(monkeypatch: pytest.MonkeyPatch, space: sp.L0) -> None:
    victim = sp.Victim(seeded(NETS["strided"]), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    x = (torch.rand(24, 3, 12, 13, generator=torch.Generator().manual_seed(3)) * 255).round() / 255
    attack = sp.attacks.VFGA(draws=3, features=12)
    plain = attack(victim, x, None, space)
    seen = looked(monkeypatch)
    remembered = attack(victim, x, None, space)
    assert len(seen) >= 12
    assert seen[0] > seen[-1] > 0
    assert torch.equal(plain.outcome, remembered.outcome)
    assert torch.equal(plain.forwards, remembered.forwards)
    torch.testing.assert_close(plain.adversarial, remembered.adversarial)


def test_a_question_from_memory_is_charged_and_hides_what_the_access_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, net = looked(monkeypatch), seeded(NETS["strided"])
    draw, rows = torch.Generator().manual_seed(0), torch.arange(4)
    x = torch.rand(4, 3, 12, 13, generator=draw)
    oracle = Oracle(sp.Victim(net), sp.Access.LABELS, 4, budget=2)
    oracle.stand(x, rows, (2, 2))
    assert oracle.spent.tolist() == [0] * 4
    for turn in range(3):
        z, window = painted(x, (2, 2), draw)
        answer, granted = oracle(z, rows, apart=True, window=window)
        oracle.settle(torch.zeros(4, dtype=torch.bool))
        assert answer.scores is None
        assert granted.all() == (turn < 2)
        if turn < 2:
            assert torch.equal(answer.labels, net(z).argmax(1))
    assert oracle.spent.tolist() == [2] * 4
    assert seen == [4, 4]


def test_the_memory_follows_who_leaves_and_ends_with_its_search(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, net = looked(monkeypatch), seeded(NETS["strided"])
    draw, stay = torch.Generator().manual_seed(0), torch.tensor([1, 3])
    x = torch.rand(4, 3, 12, 13, generator=draw)
    oracle = Oracle(sp.Victim(net), sp.Access.SCORES, 4)
    oracle.stand(x, torch.arange(4), (2, 2))
    z, window = painted(x[stay], (2, 2), draw)
    answer, _ = oracle(z, stay, apart=True, window=window)
    torch.testing.assert_close(answer.scores, net(z).detach(), atol=1e-5, rtol=1e-5)
    oracle.settle(torch.ones(2, dtype=torch.bool))
    several, window = painted(z, (2, 2), draw)
    oracle(several, stay, window=window)  # by a caller who does not say that no sample asks twice
    oracle.forget()
    oracle(several, stay, apart=True, window=window)
    assert seen == [2]


def test_nan_from_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    looked(monkeypatch)
    net, x = seeded(NETS["strided"]), torch.rand(2, 3, 12, 13)
    oracle = Oracle(sp.Victim(net), sp.Access.SCORES, 2)
    oracle.stand(x, torch.arange(2), (2, 2))
    z, window = painted(x, (2, 2), torch.Generator().manual_seed(0))
    z[:, :, :, :] = torch.where(z == x, z, torch.nan)
    with pytest.raises(VictimError, match="NaN"):
        oracle(z, torch.arange(2), apart=True, window=window)
