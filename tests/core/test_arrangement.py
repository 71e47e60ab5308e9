"""Networks over rearranged layers: the scores and gradients of the network as it is, whatever its author wrote."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import sparring as sp
import tiny
from normed import Body, inputs, lively, net_of, quick_of
from sparring.attacks.labels.hopskipjump import HopSkipJump
from sparring.attacks.query.square import Square
from sparring.core import arrangement
from sparring.core.arrangement import arranged, plan_of
from sparring.core.surrogates import Ensemble


@pytest.fixture(autouse=True)
def _all_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrangement, "WORTH_IT", 0)


class Residual(Body):
    """As most networks are written."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.one(x)))
        return self.end(functional.relu(x + self.other(self.two(x)), inplace=True))


class Before(Body):
    """Batch-norms before their convolutions, as in wide residual networks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.end(self.two(self.other(functional.silu(self.norm(x)))))


class Held(Body):
    """Reads what a convolution gave after the batch-norm has."""

    def forward(self, x: Tensor) -> Tensor:
        raw = self.one(x)
        return self.end(self.norm(raw) + raw)


class ReadFirst(Body):
    """Reads it before."""

    def forward(self, x: Tensor) -> Tensor:
        raw = self.one(x)
        gate = torch.cat([raw, raw.tanh()]).mean()
        return self.end(self.norm(raw) * gate)


class Twice(Body):
    """One convolution under two batch-norms."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x))
        return self.end(self.other(self.two(x)) + self.norm(self.two(x)))


class Shared(Body):
    """One convolution and its one batch-norm, called twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        for _ in range(2):
            x = functional.relu(self.norm(self.two(x)))
        return self.end(x)


class Viewed(Body):
    """Flattens by a view, which the layout with channels last does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4 * 6 * 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.one(x)).view(len(x), -1))


class Strides(Body):
    """Looks at how the numbers lie in memory."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x))
        n, c, h, w = x.shape
        return self.end(torch.as_strided(x, (n, c, h, w - 1), (c * h * w, h * w, w, 1)))


class Named(Body):
    """Calls with names for the arguments."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.one.weight, bias=self.one.bias, padding=1)
        x = functional.batch_norm(x, self.norm.running_mean, self.norm.running_var, eps=0.1)
        return self.end(functional.conv2d(input=x, weight=self.two.weight))


class OwnStatistics(Body):
    """A batch-norm by the batch's own statistics, and one that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.other(self.two(self.norm(self.one(x)))))


class Fresh(Body):
    """Weights made anew in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.one.weight / self.one.weight.flatten(1).norm(dim=1)[:, None, None, None]
        return self.end(self.norm(functional.conv2d(x, weight, padding=1)))


class Recomputed(Body):
    """Keeps little for the way back."""

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(lambda t: functional.relu(self.norm(self.one(t))), x, use_reentrant=False)
        return self.end(self.other(self.two(x)))


class Noisy(Body):
    """Noise in the weights, behind autograd's back, and taken away again."""

    def forward(self, x: Tensor) -> Tensor:
        kept = self.one.weight.data.clone()
        self.one.weight.data += torch.randn(kept.shape, generator=torch.Generator().manual_seed(len(x)))
        x = functional.relu(self.norm(self.one(x)))
        self.one.weight.data.copy_(kept)
        return self.end(self.two(x))


class Sound(nn.Module):
    """One dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 28, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.reshape(len(x), -1)[:, :60].reshape(len(x), 2, 30))


class Volume(nn.Module):
    """Three dimensions, groups, no affine part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv3d(3, 6, 3, groups=3), nn.BatchNorm3d(6, affine=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x[:, :, None].expand(-1, -1, 3, -1, -1))).mean((2, 3, 4)))


def _sequence() -> nn.Module:
    depthwise = (nn.Conv2d(8, 8, (3, 2), 2, groups=8), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8, eps=0.01), nn.ReLU(inplace=True)),
        *depthwise,
        *(nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
    )


# with the number of batch-norms that are folded
KINDS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "residual": (Residual, 2),
    "before": (Before, 0),
    "held": (Held, 0),
    "read first": (ReadFirst, 0),
    "twice": (Twice, 1),
    "shared": (Shared, 1),
    "viewed": (Viewed, 1),
    "strides": (Strides, 1),
    "named": (Named, 1),
    "own statistics": (OwnStatistics, 1),
    "fresh": (Fresh, 0),
    "recomputed": (Recomputed, 2),
    "sound": (Sound, 1),
    "volume": (Volume, 1),
    "sequence": (_sequence, 2),
    "double": (lambda: Residual().double(), 2),
    "without norms": (
        lambda: nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(5)], nn.Flatten(), nn.Linear(90, 3)),
        0,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_gradients_are_those_of_the_network_as_it_is(kind: str) -> None:
    build, folds = KINDS[kind]
    net = net_of(build)
    x = inputs(net)
    quick = quick_of(net)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    for _ in range(2):  # the first pass learns nothing that the second forgets
        for mine, its in zip(tiny.gradient(quick, x), tiny.gradient(net, x), strict=True):
            assert mine.dtype == its.dtype
            assert mine.shape == its.shape
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-6)
    assert len(plan_of(net).norms) == folds
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_noise_in_the_weights_is_not_folded_away() -> None:
    net = net_of(Noisy)
    quick = quick_of(net)
    for n in (5, 7):
        for mine, its in zip(tiny.gradient(quick, inputs(net, n)), tiny.gradient(net, inputs(net, n)), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
    assert not plan_of(net).folds


@pytest.mark.parametrize("kind", ["residual", "before", "sequence"])
def test_bfloat16_is_near(kind: str) -> None:
    net = net_of(KINDS[kind][0])
    quick, x = arranged(net), inputs(net)
    assert quick is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = quick(x)
    assert len(plan_of(net).norms) == KINDS[kind][1]  # it learns in the network's own precision
    torch.testing.assert_close(scores.float(), net(x), rtol=0.1, atol=0.1)


def test_a_way_that_only_some_passes_take_meets_plain_layers() -> None:
    class Moody(Body):
        mood = "calm"

        def forward(self, x: Tensor) -> Tensor:
            raw = self.one(x)
            if self.mood == "listening":
                x = self.norm(raw) if float(raw.detach().mean()) > 1e6 else self.norm(raw) + 1
            elif self.mood == "another":
                x = self.other(raw)
            elif self.mood == "without":
                x = raw * 2
            elif self.mood == "strides":
                raw = self.norm(raw)
                return self.end(raw.as_strided(raw.shape, (120, 30, 5, 1)))
            else:
                del x
                x = raw = self.norm(raw)
            return self.end(x)

    for mood in ("listening", "another", "without", "strides"):
        net = net_of(Moody)
        x = inputs(net)
        quick = quick_of(net)
        quick(x)
        assert len(plan_of(net).norms) == 1, mood
        net.mood = mood
        for _ in range(2):
            for mine, its in zip(tiny.gradient(quick, x), tiny.gradient(net, x), strict=True):
                torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
        net.mood = "calm"
        torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-6)


def test_new_weights_are_folded_anew() -> None:
    net = net_of(Residual)
    x = inputs(net)
    quick = quick_of(net)
    quick(x)
    with torch.no_grad():
        net.one.weight.mul_(2)
        net.other.running_mean.add_(1)
    torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-6)
    net.norm = lively(nn.BatchNorm2d(4, eps=0.5))  # another layer
    net.double()
    again = quick_of(net)
    torch.testing.assert_close(again(x.double()), net(x.double()))
    assert len(plan_of(net).norms) == 2


def test_train_mode_is_left_alone() -> None:
    net, x = net_of(Residual), inputs(net_of(Residual))
    quick = quick_of(net)
    quick(x)
    net.train()
    seen = quick(x)
    torch.testing.assert_close(seen, net(x))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_who_is_not_rearranged() -> None:
    plain = [
        nn.Sequential(nn.Flatten(), nn.Linear(90, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(90, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(36, 3)),
        torch.jit.trace(net_of(Residual), torch.rand(2, 3, 6, 5)),
    ]
    heard = net_of(Residual)
    heard.one.register_forward_hook(lambda *_: None)
    for net in (*plain, heard, lambda x: x.flatten(1)):
        assert arranged(net) is None


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_parts_that_do_not_call_torch_from_python_are_left_alone() -> None:
    net = net_of(lambda: nn.Sequential(Residual(), torch.jit.script(nn.Sequential(nn.Linear(3, 3)))))
    assert arranged(net) is None


def test_a_network_that_fails_on_two_inputs_is_called_as_it_is() -> None:
    class Picky(Residual):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) < 3:
                raise RuntimeError("three at least")
            return super().forward(x)

    net = net_of(Picky)
    quick, x = arranged(net), inputs(net)
    assert quick is not None
    torch.testing.assert_close(quick(x), net(x), rtol=0, atol=0)
    assert arranged(net) is None


def test_an_empty_batch_teaches_nothing() -> None:
    net = net_of(Residual)
    quick, x = arranged(net), inputs(net)
    assert quick is not None
    assert quick(x[:0]).shape == (0, 3)
    assert plan_of(net).pays is None
    quick(x)
    assert len(plan_of(net).norms) == 2


def test_small_passes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of(Residual)
    quick, x = arranged(net), inputs(net)
    assert quick is not None
    monkeypatch.setattr(arrangement, "WORTH_IT", plan_of(net).work + 10**9)
    assert torch.equal(quick(x), net(x))


def test_nothing_is_kept_of_a_network_or_of_a_pass() -> None:
    net = net_of(Residual)
    quick, x = arranged(net), inputs(net)
    assert quick is not None
    scores = quick(x.requires_grad_())
    gone = [weakref.ref(t) for t in (net, scores)]
    assert not quick._calls._pending
    del net, quick, scores
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


class Counting(Residual):
    """Counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


ATTACKS = [sp.PGD(steps=5), sp.DeepFool(), sp.FGSM(), Square(), HopSkipJump()]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_attacks_find_the_same_with_and_without(attack: sp.Attack) -> None:
    asks = isinstance(attack, (Square, HopSkipJump))
    access = {Square: sp.Access.SCORES, HopSkipJump: sp.Access.LABELS}.get(type(attack), sp.Access.GRADIENTS)
    found = []
    for quick in (True, False):
        net = net_of(Counting)
        x = inputs(net, 6)
        victim = sp.Victim(net, quick=quick)
        with torch.no_grad():
            y = net(x).argmax(1)
        threat = sp.ThreatModel(sp.Linf(0.3), access=access, queries=200 if asks else None)
        result = attack(victim, x, y, threat, seed=1)
        assert asks or net.calls >= int(result.forwards.max())  # its own code ran each time
        found.append(result)
    mine, plain = found
    assert torch.equal(mine.outcome, plain.outcome)
    assert plain.attack_success_rate > 0
    torch.testing.assert_close(mine.adversarial, plain.adversarial, rtol=0, atol=1e-3)


def test_quick_false_calls_the_network_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("rearranged")

    for name in ("arranged", "straightened"):
        monkeypatch.setattr(f"sparring.core.network.{name}", never)
    net = tiny.network()
    x, _ = tiny.pictures(3, seed=1)
    victim = sp.Victim(net, quick=False)
    assert victim.nearby(x) is None
    sp.PGD(steps=2)(victim, x, victim.query(x).labels, sp.Linf(0.1))


def test_members_of_an_ensemble_are_rearranged() -> None:
    nets = [net_of(Residual), net_of(Before)]
    ensemble = Ensemble([sp.Victim(net) for net in nets])
    x = inputs(nets[0])
    quick = ensemble.arranged()
    torch.testing.assert_close(quick.scores(x), ensemble.scores(x), rtol=1e-4, atol=1e-6)
    assert all(isinstance(m.net, arrangement.Arranged) for m in quick.members)
