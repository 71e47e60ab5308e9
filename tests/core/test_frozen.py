"""Frozen TorchScript networks: no modes, no parameters, weights among the constants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring.attacks.query.square import Square
from sparring.core.errors import SparringError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")

Made = Callable[[nn.Module], torch.jit.ScriptModule]


def network(seed: int = 0, top: float = 6.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Hardtanh(0.0, top), nn.Flatten(), nn.Linear(4 * 36, 3))
        return nn.Sequential(*layers).eval()


def frozen(net: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.freeze(torch.jit.script(net))


def optimized(net: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.optimize_for_inference(torch.jit.trace(net, batch()[:2]))


def batch() -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("made", [frozen, optimized])
def test_a_frozen_network_is_attacked_like_the_one_it_was(made: Made) -> None:
    net, x = network(), batch()
    threat = sp.ThreatModel(sp.Linf(0.2), access="scores", queries=60)
    ours, plain = (Square()(sp.Victim(asked), x, None, threat) for asked in (made(net), net))
    assert torch.equal(ours.succeeded, plain.succeeded)
    assert torch.equal(ours.queries, plain.queries)


def test_a_frozen_network_has_gradients() -> None:
    net, x = network(), batch()
    ours, plain = (sp.PGD(steps=5)(sp.Victim(asked), x, None, sp.Linf(0.1)) for asked in (frozen(net), net))
    assert torch.equal(ours.succeeded, plain.succeeded)
    torch.testing.assert_close(ours.adversarial, plain.adversarial)


def test_one_without_gradients_says_so() -> None:
    with pytest.raises(SparringError, match="gradient"):
        sp.PGD(steps=5)(sp.Victim(optimized(network())), batch(), None, sp.Linf(0.1))


@pytest.mark.parametrize("made", [frozen, optimized])
def test_the_fingerprint_sees_frozen_weights_and_settings(made: Made) -> None:
    def told(net: nn.Module) -> str:
        return sp.Victim(made(net), name="v").fingerprint()

    assert told(network()) == told(network())
    assert len({told(network()), told(network(seed=1)), told(network(top=5.0))}) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_frozen_network_stays_where_its_weights_are() -> None:
    net = network().cuda()
    victim = sp.Victim(frozen(net))
    assert victim.device.type == "cuda"
    assert victim.query(batch()).scores is not None
