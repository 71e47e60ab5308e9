"""The short way back through strided convolutions: equal to autograd's own, and never in anybody's way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import sparring as sp
from sparring.core import convolutions
from sparring.core.convolutions import WayBack, has_strided_convolutions, quick_input_gradients


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WORTH_IT", 0)


def gradients(net: nn.Module, x: Tensor, quick: bool, *, autocast: bool = False) -> tuple[Tensor, list[Tensor]]:
    """The gradients at the input and at the parameters, of a sum that weighs every output differently."""
    leaf = x.detach().requires_grad_(True)
    with quick_input_gradients(quick), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = net(leaf).float()
    value = (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum()
    found = torch.autograd.grad(value, [leaf, *net.parameters()])
    return found[0], list(found[1:])


def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes of the inputs that went the short way back, as they come."""
    seen: list[tuple[int, ...]] = []
    true = WayBack.__call__

    def spy(way: WayBack, g: Tensor, size: torch.Size, *, last: bool) -> Tensor:
        seen.append(tuple(size))
        return true(way, g, size, last=last)

    monkeypatch.setattr(WayBack, "__call__", spy)
    return seen


@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    kernel=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    s=st.integers(2, 4),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(8, 15), st.integers(8, 15)),
    last=st.booleans(),
    g_last=st.booleans(),
)
def test_the_gradient_is_that_of_autograd(
    channels: tuple[int, int],
    kernel: tuple[int, int],
    s: int,
    padding: tuple[int, int],
    size: tuple[int, int],
    last: bool,
    g_last: bool,
) -> None:
    weight, x = torch.randn(*channels[::-1], *kernel), torch.randn(3, channels[0], *size, requires_grad=True)
    out = functional.conv2d(x, weight, stride=s, padding=padding)
    g = torch.randn_like(out).contiguous(memory_format=torch.channels_last if g_last else torch.contiguous_format)
    (true,) = torch.autograd.grad(out, x, g)
    assert torch.allclose(WayBack(weight, s, padding)(g, x.shape, last=last), true, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_network_has_the_same_gradients_at_its_input_and_its_weights(autocast: bool) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 4, 4), nn.Flatten())
    )
    x = torch.rand(5, 3, 32, 32)
    (true, weights), (found, others) = (gradients(net, x, q, autocast=autocast) for q in (False, True))
    close = {"atol": 1e-6} if not autocast else {"atol": 0.02 * float(true.abs().amax())}
    assert torch.allclose(found, true, **close)
    for one, other in zip(weights, others, strict=True):
        assert torch.allclose(one, other, atol=1e-5 if not autocast else 0.02 * float(one.abs().amax()))


def test_an_attack_takes_the_short_way_and_computes_no_weights_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))  # not one of core.straight
    seen = calls(monkeypatch)

    def never(*_: object, **__: object) -> Tensor:
        raise AssertionError("nobody asked for the weights' gradients")

    monkeypatch.setattr(convolutions, "conv2d_weight", never)
    x = torch.rand(4, 1, 8, 8)
    quick = sp.PGD(steps=3)(sp.Victim(net), x, None, sp.Linf(0.1), early_stop=False)
    assert seen == [(4, 1, 8, 8)] * 3
    monkeypatch.setattr(convolutions, "WORTH_IT", 10**9)
    plain = sp.PGD(steps=3)(sp.Victim(net), x, None, sp.Linf(0.1), early_stop=False)
    assert torch.allclose(quick.adversarial, plain.adversarial)
    assert len(seen) == 3
    assert all(p.grad is None for p in net.parameters())


def test_second_derivatives_pass() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 4, 2, 1), nn.Softplus(), nn.Flatten(), nn.Linear(48, 1))
    x, found = torch.rand(2, 2, 8, 8), []
    for quick in (False, True):
        leaf = x.clone().requires_grad_(True)
        with quick_input_gradients(quick):
            value = net(leaf).sum()
        (first,) = torch.autograd.grad(value, leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    assert torch.allclose(*found, atol=1e-6)


def test_a_victim_that_learns_at_inference_still_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Adapting(nn.Module):
        """Takes a gradient step of its convolution on each input that it sees."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 4, 2, 1), nn.Linear(32, 3)
            self.steps: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                loss = self.conv(x).square().mean()
                (step,) = torch.autograd.grad(loss, self.conv.weight, retain_graph=True)
            self.steps.append(float(step.abs().sum()))
            return self.head(functional.conv2d(x, self.conv.weight - 0.1 * step.detach(), None, 2, 1).flatten(1))

    net, x = Adapting().eval(), torch.rand(2, 1, 8, 8)
    seen = calls(monkeypatch)
    victim = sp.Victim(net, traits=sp.Traits(optimises=True))
    sp.PGD(steps=2)(victim, x, None, sp.Linf(0.1), early_stop=False)
    assert seen
    assert min(net.steps) > 0


def test_who_is_served() -> None:
    assert has_strided_convolutions(nn.Conv2d(1, 1, 4, 2))
    assert has_strided_convolutions(nn.Sequential(nn.Conv2d(3, 8, 16, 16)))
    for other in (
        nn.Conv2d(1, 1, 3, 2),
        nn.Conv2d(1, 1, 4, 1),
        nn.Conv2d(2, 2, 4, 2, groups=2),
        nn.Conv2d(1, 1, 4, 2, dilation=2),
        nn.Conv2d(1, 1, 4, 2, padding_mode="reflect"),
        nn.Conv2d(1, 1, 4, (2, 4)),
        nn.Linear(2, 2),
    ):
        assert not has_strided_convolutions(other)
    assert not has_strided_convolutions(lambda x: x)
