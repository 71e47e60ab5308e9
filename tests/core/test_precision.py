"""Searching in bfloat16: when it is chosen, and that float32 decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import sparring as sp
import tiny
from sparring.core import precision
from sparring.core.errors import InputError
from sparring.core.precision import Scout, scout, too_fine


def convolutions(width: int = 64) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.1)
    return net.eval().requires_grad_(False)


@pytest.fixture
def fast_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_bfloat16", lambda device: True)


def test_it_is_chosen_for_large_plain_convolutional_networks(fast_hardware: None) -> None:
    x = torch.rand(2, 3, 16, 16)
    victim = sp.Victim(convolutions())
    assert isinstance(scout(victim, x, "auto", 2), Scout)
    assert scout(victim, x, "auto", 1) is None, "the same network on one sample"
    assert scout(victim, x, "float32", 2) is None
    assert scout(sp.Victim(convolutions(4)), x, "auto", 2) is None, "too small to pay"
    assert scout(victim, x[:, :, :8, :8], "auto", 2) is None, "the same network on small pictures"
    assert scout(sp.Victim(convolutions().double()), x.double(), "auto", 2) is None
    assert scout(victim.defended([nn.Identity()]), x, "auto", 2) is None
    assert scout(sp.Victim(convolutions(), traits=sp.Traits(stochastic=True)), x, "auto", 2) is None


def test_it_is_not_chosen_for_depthwise_layers(fast_hardware: None) -> None:
    net = nn.Sequential(convolutions(), nn.Unflatten(1, (-1, 1, 1)), nn.Conv2d(10, 10, 1, groups=10), nn.Flatten())
    assert scout(sp.Victim(net.eval().requires_grad_(False)), torch.rand(2, 3, 16, 16), "auto", 2) is None


@pytest.mark.parametrize(
    ("space", "fine"),
    [
        (sp.Linf(2 / 255), False),
        (sp.Linf(0.5 / 255), True),
        (sp.Linf(torch.tensor([0.1, 0.001])), True),
        (sp.L2(0.5), False),
        (sp.L2(0.05), True),
        (sp.L1(0.5), False),
        (sp.Linf(), False),
    ],
)
def test_balls_finer_than_its_rounding_are_searched_exactly(
    space: sp.Linf, fine: bool, fast_hardware: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(2, 3, 16, 16)
    assert too_fine(space.bound(x, None), x) is fine
    if space.eps is None:
        return
    asked = []
    monkeypatch.setattr("sparring.core.differentiation.scout", lambda view, x, name, n, **_: asked.append(name))
    sp.PGD(steps=1)(sp.Victim(convolutions()), x, None, space)
    assert asked == ["float32" if fine else "auto"]


def test_small_networks_that_go_by_hand_are_not_cast(fast_hardware: None) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 3))
    victim, x = sp.Victim(net), torch.rand(1, 3, 16, 16)
    assert victim.straight() is not None
    assert scout(victim, x, "auto", 10_000, by_hand=True) is None
    assert scout(victim, x, "auto", 10_000) is not None
    assert scout(victim, x, "bfloat16", 10_000, by_hand=True) is not None


def test_what_is_known_of_a_network_outlives_the_attack(fast_hardware: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "WORTH_CASTING", 1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 3)).eval()
    sp.PGD(steps=1)(sp.Victim(net), torch.rand(2, 3, 16, 16), None, sp.Linf(0.1))
    assert net in precision._work


def test_it_is_not_chosen_without_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_bfloat16", lambda device: False)
    assert scout(sp.Victim(convolutions()), torch.rand(1, 3, 16, 16), "auto", 99) is None


def test_scores_come_in_float32_and_agree_to_two_digits(fast_hardware: None) -> None:
    x = torch.rand(3, 3, 16, 16)
    victim = sp.Victim(convolutions())
    view = scout(victim, x, "auto", 2)
    assert view is not None
    found, exact = view.scores(x), victim.scores(x)
    assert found.dtype is torch.float32
    assert not torch.equal(found, exact)
    assert (found - exact).abs().amax() < 0.02 * exact.abs().amax()


def test_another_precision_is_refused() -> None:
    x, y = tiny.correct(1)
    with pytest.raises(InputError, match="float32, bfloat16"):
        sp.PGD(precision="float16")(tiny.trained(), x, y, sp.Linf(0.1))


class Edge(nn.Module):
    """Two scores a thousandth apart, and above 1 three digits are all that bfloat16 has: it sees a tie or the wrong winner."""

    def forward(self, x: Tensor) -> Tensor:
        move = (x.flatten(1).mean(1) - 0.5) * 1e-3
        one = torch.full_like(move, 1.0)
        scores = torch.stack([one * 3.001, one * 3.0 + move], dim=1)
        return (
            scores.to(torch.bfloat16).float() + torch.tensor([0.0, 0.01])
            if torch.is_autocast_enabled("cpu")
            else scores
        )


def test_a_success_that_only_bfloat16_sees_ends_no_search_and_is_not_claimed() -> None:
    x = torch.full((2, 1, 4, 4), 0.5)
    victim = sp.Victim(Edge().eval(), name="edge")
    result = sp.PGD(steps=6, precision="bfloat16", random_start=False)(victim, x, torch.zeros(2).long(), sp.Linf(0.1))
    assert not result.succeeded.any()
    assert (result.backwards == 6).all(), "a false success stopped the search"
    assert (result.forwards == 12).all(), "each step's claim is looked at once more, and that look is counted"


def test_what_is_found_stands_in_float32_and_matches_the_plain_search() -> None:
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    net = convolutions()
    victim = sp.Victim(net)
    plain, fast = (
        cls(steps=20, precision=p)(victim, x, None, sp.Linf(0.05)) for cls in (sp.PGD,) for p in ("float32", "bfloat16")
    )
    assert plain.succeeded.any()
    assert int((plain.succeeded != fast.succeeded).sum()) <= 1
    assert isinstance(fast.adversarial, Tensor)
    assert (net(fast.adversarial).argmax(1) != net(x).argmax(1))[fast.succeeded].all()


def test_crafting_for_training_keeps_to_float32(fast_hardware: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        Scout, "scores", lambda self, x, noise=None: asked.append("scout") or self.exact.scores(x, noise)
    )
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    victim = sp.Victim(convolutions())
    y = torch.as_tensor(victim.query(x).labels)
    sp.PGD(steps=2).craft(victim, x, y, sp.Linf(0.01))
    assert not asked
    monkeypatch.setattr(Scout, "objective", sp.Victim.objective)
    sp.PGD(steps=2)(victim, x, y, sp.Linf(0.01), early_stop=False)
    assert asked == ["scout", "scout"]


class Rows(TorchFunctionMode):
    """Notes how many rows come to linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            self.seen.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def test_last_layers_meet_few_numbers_of_rows_and_nobody_notices() -> None:
    """Every number of rows that oneDNN multiplies in bfloat16 costs memory for good."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(convolutions(8), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).eval().requires_grad_(False)
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    explorer = Scout(sp.Victim(net))

    def gradient(m: int) -> tuple[Tensor, Tensor]:
        leaf = x[:m].clone().requires_grad_(True)
        value, scores = explorer.objective(leaf, lambda s: s.logsumexp(1))
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        return scores.detach(), grad

    with Rows() as rows:
        found = {m: gradient(m) for m in range(1, 65)}
    assert set(rows.seen) == {*range(1, 17), *range(18, 33, 2), *range(36, 65, 4)}
    for scores, grad in found.values():
        m = len(scores)
        assert grad.shape == x[:m].shape
        assert torch.allclose(scores, found[64][0][:m], atol=0.02)
        assert torch.allclose(grad, found[64][1][:m], atol=0.02 * float(grad.abs().max()))


class Viewed(nn.Module):
    """A network that flattens by `view`, as many are written: no `view` of a batch laid out channels-last is flat."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = convolutions(8)[:3], nn.Linear(8 * 12 * 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.last(x.view(x.size(0), -1).view((-1, 8 * 12 * 12)))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("scripted", [False, True])
def test_networks_that_flatten_by_view_are_searched(scripted: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Viewed().eval().requires_grad_(False)
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    exact = net(x)
    explorer = Scout(sp.Victim(torch.jit.script(net) if scripted else net))
    found = explorer.scores(x)
    assert torch.allclose(found, exact, atol=0.02 * float(exact.abs().amax()))
