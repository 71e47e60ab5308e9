"""Networks gone through by hand: the scores and gradients of autograd, for every network that is served and no other."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
import tiny
from sparring.core import straight
from sparring.core.straight import straightened


class Shift(nn.Module):
    """A normalisation of somebody's own."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.4) / 0.3


def net_of(build: Callable[[], nn.Sequential]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return build().eval()


SERVED: dict[str, tuple[tuple[int, int, int], Callable[[], nn.Sequential]]] = {
    "one channel": (
        (1, 12, 12),
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 4, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(54, 9), nn.ReLU(inplace=True), nn.Linear(9, 4)),
        ),
    ),
    "colours, nested, normalised, dropped out": (
        (3, 16, 20),
        lambda: nn.Sequential(
            *(Shift(), nn.BatchNorm2d(3), nn.Sequential(nn.Conv2d(3, 5, (4, 6), 2, (1, 3), bias=False), nn.ReLU())),
            *(nn.Dropout2d(0.5), nn.Flatten(), nn.ReLU(), nn.ReLU(), nn.Dropout(0.5), nn.Linear(440, 4, bias=False)),
        ),
    ),
    "rows that no window reaches": (
        (2, 11, 15),
        lambda: nn.Sequential(nn.Conv2d(2, 3, 4, 4), nn.Flatten(), nn.ReLU(), nn.Linear(18, 3), nn.ReLU()),
    ),
    "one channel on, one position": (
        (1, 8, 8),
        lambda: nn.Sequential(
            nn.Conv2d(1, 1, 4, 4), nn.ReLU(), nn.Conv2d(1, 2, 2, 2), nn.Identity(), nn.Flatten(), nn.Linear(2, 2)
        ),
    ),
    "double": (
        (3, 8, 8),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double(),
    ),
}


@pytest.mark.parametrize("name", SERVED)
def test_scores_and_gradients_are_those_of_autograd(name: str) -> None:
    shape, build = SERVED[name]
    net = net_of(build)
    made = straightened(net)
    assert made is not None
    x = torch.rand(5, *shape, dtype=next(net.parameters()).dtype)
    before = x.clone()
    for layout in (torch.contiguous_format, torch.channels_last):
        (true, slope), (found, other) = (tiny.gradient(n, x.contiguous(memory_format=layout)) for n in (net, made))
        assert torch.allclose(found, true, atol=1e-5)
        assert torch.allclose(other, slope, atol=1e-5)
        with torch.no_grad():
            assert torch.equal(made(x), found)  # nothing is kept then, and the sums are the same
    assert torch.equal(x, before)  # nothing was done in place to what is not the network's own


def test_each_of_several_ways_back_finds_the_same() -> None:
    net = net_of(SERVED["one channel"][1])
    made = straightened(net)
    assert made is not None
    leaf = torch.rand(2, 1, 12, 12, requires_grad=True)
    scores, true = made(leaf), net(leaf)
    for j in (0, 3, 0):
        (found,) = torch.autograd.grad(scores[:, j].sum(), leaf, retain_graph=True)
        (slope,) = torch.autograd.grad(true[:, j].sum(), leaf, retain_graph=True)
        assert torch.allclose(found, slope, atol=1e-6)


def test_nothing_of_a_forward_outlives_it() -> None:
    made = straightened(net_of(SERVED["rows that no window reaches"][1]))  # it ends in a ReLU, which keeps its output
    assert made is not None
    gc.collect()
    gc.disable()
    try:
        scores = made(torch.rand(2, 2, 11, 15, requires_grad=True))
        kept = weakref.ref(scores.grad_fn)
        del scores
        assert kept() is None
    finally:
        gc.enable()


def listened_to() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Flatten(), nn.Linear(8, 2))
    net[0].register_forward_hook(lambda *_: None)
    return net


def replaced() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Flatten(), nn.Linear(8, 2))
    net[2].forward = lambda x: x.sin()  # type: ignore[method-assign]
    return net


class Doubled(nn.Linear):
    """A layer that is no linear one."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def weighed(kind: type[nn.Module]) -> nn.Sequential:
    """A network of which one layer computes its weights."""
    net = nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Flatten(), nn.Linear(8, 2))
    nn.utils.parametrizations.weight_norm(next(m for m in net if type(m) is kind))
    return net


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 2)),
        nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)),
        nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Flatten(), nn.Linear(8, 4), nn.Unflatten(1, (1, 2, 2))),
        nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Flatten()),
        nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Flatten(2), nn.Linear(4, 2), nn.Flatten()),
        nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Flatten(), nn.Dropout(), nn.Linear(8, 2)).train(),
        nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Flatten(), Doubled(8, 2)),
        nn.Sequential(nn.Conv2d(1, 2, 4, 4).double(), nn.Flatten(), nn.Linear(8, 2)),
        weighed(nn.Linear),
        weighed(nn.Conv2d),
        listened_to(),
        replaced(),
        nn.Sequential(),
        nn.Conv2d(1, 2, 4, 4),
        lambda x: x,
    ],
)
def test_other_networks_are_not_served(net: object) -> None:
    assert straightened(net) is None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that go by hand, as they come."""
    seen: list[int] = []
    true = straight._Through.apply
    monkeypatch.setattr(straight._Through, "apply", lambda x, layers: (seen.append(len(x)), true(x, layers))[1])
    return seen


@pytest.mark.parametrize(
    ("attack", "space"),
    [
        (sp.PGD(steps=4), sp.Linf(0.05)),
        (sp.attacks.APGD(steps=5), sp.L2(0.5)),
        (sp.attacks.FAB(steps=4), sp.Linf(0.05)),
        (sp.attacks.DDN(steps=4), sp.L2(1.0)),
    ],
)
def test_an_attack_goes_by_hand_and_ends_as_it_did(
    attack: sp.Attack, space: sp.Linf, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = net_of(SERVED["colours, nested, normalised, dropped out"][1]), torch.rand(6, 3, 16, 20)
    victim = sp.Victim(net, mean=[0.4] * 3, std=[0.2] * 3)
    quick = attack(victim, x, None, space, seed=1)
    assert calls
    calls.clear()
    monkeypatch.setattr(sp.Victim, "straight", lambda self: None)
    plain = attack(victim, x, None, space, seed=1)
    assert not calls
    assert torch.equal(quick.outcome, plain.outcome)
    assert torch.allclose(quick.adversarial, plain.adversarial, atol=1e-4)
    assert victim.net is net


def test_leaking_relus_are_left_to_autograd(calls: list[int]) -> None:
    victim = sp.Victim(net_of(SERVED["one channel"][1]))
    sp.attacks.APGD(steps=3, relu_slope=0.1)(victim, torch.rand(2, 1, 12, 12), None, sp.Linf(0.01))
    assert not calls


def test_a_victim_with_a_head_of_its_own_is_asked_itself() -> None:
    class Headed(sp.Victim):
        def head(self, x: Tensor) -> Tensor:
            return super().head(x).flip(1)

    assert Headed(net_of(SERVED["one channel"][1])).straight() is None


def test_low_precision_around_an_attack_is_the_callers_affair() -> None:
    net = net_of(SERVED["one channel"][1])
    made = straightened(net)
    assert made is not None
    x = torch.rand(2, 1, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        (true, slope), (found, other) = tiny.gradient(net, x), tiny.gradient(made, x)
    assert found.dtype == true.dtype
    assert torch.equal(other, slope)
