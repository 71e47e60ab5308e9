"""Networks whose code rearranged layers would mislead: each is found out and left as it is, as far as it must be."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from normed import Body, inputs, net_of, quick_of
from sparring.core import arrangement
from sparring.core.arrangement import Plan, plan_of


@pytest.fixture(autouse=True)
def _all_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrangement, "WORTH_IT", 0)


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    swish = torch.jit.script(_swish)  # hidden from what watches Python's calls


class Residual(Body):
    """Adds in place to what the kept tensor was made of."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).tanh()
        z = self.other(self.two(x))
        x += F.relu(z)
        return self.end(torch.cat([x, z]).unflatten(0, (2, -1)).sum(0))


class Scripted(Body):
    """A scripted function reads what an activation has read."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.one(x))
        y = F.relu(z)
        return self.end(y - swish(z))


class ScriptedRaw(Body):
    """Another reads what a convolution gave."""

    def forward(self, x: Tensor) -> Tensor:
        raw = self.one(x)
        return self.end(self.norm(raw) * swish(raw))


class Mapped(Body):
    """The same by a vmap."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.one(x))
        y = F.relu(z)
        return self.end(y + torch.func.vmap(lambda t: t * 2)(z))


class Masked(Body):
    """Writes through a view."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.one(x)) * 1
        z.view(len(z), -1)[:, ::2] = 0
        return self.end(z)


class Seeded(Body):
    """Adds the same noise each time, which lies as the numbers do."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)
            x = self.norm(self.one(x))
            return self.end(x + torch.randn_like(x))


class Conditional(Body):
    """A batch-norm whose weight follows from the input."""

    def forward(self, x: Tensor) -> Tensor:
        weight = x.mean((0, 2, 3)).repeat(2)[:4]
        x = self.one(x)
        n = self.norm
        x = F.batch_norm(x, n.running_mean, n.running_var, weight, n.bias, eps=n.eps)
        return self.end(F.batch_norm(x.tanh(), n.running_mean, n.running_var, weight, n.bias, eps=n.eps))


class Cast(Body):
    """Half precision inside, and what was there is answered as well."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = self.two(F.relu(self.one(x)))
            y = F.relu(z)
        return {"logits": self.end(y.float()), "z": z.float()}


class Inferred(Body):
    """A part in inference mode."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            z = self.norm(self.one(x) * 1)
        return self.end(F.relu(z))


class Whole(Body):
    """Activations of whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.one(x))
        steps = (z * 10).detach().int()
        return self.end(z * F.relu6(steps + steps))


class Forward(Body):
    """Forward differentiation inside."""

    def forward(self, x: Tensor) -> Tensor:
        _, tangent = torch.func.jvp(lambda t: F.silu(self.norm(self.one(t))), (x,), (torch.ones_like(x),))
        return self.end(tangent)


class Lines(nn.Module):
    """One batch-norm over sequences and over vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x).flatten(2)).mean(2)
        return self.last(self.norm(x))


class Unbatched(nn.Module):
    """One picture, whose convolution and batch-norm disagree about what the channels are."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm1d(6), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.last(F.relu(self.norm(self.one(one))).mean((0, 1))) for one in x])


# with what of it is left as it is
MISLED: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "in-place residual": (Residual, "overwrites"),
    "scripted": (Scripted, "overwrites"),
    "scripted, raw": (ScriptedRaw, None),
    "mapped": (Mapped, "overwrites"),
    "masked": (Masked, "last"),
    "seeded": (Seeded, "last"),
    "conditional": (Conditional, None),
    "cast": (Cast, None),
    "inferred": (Inferred, None),
    "whole": (Whole, None),
    "forward": (Forward, None),
    "lines": (Lines, None),
    "unbatched": (Unbatched, None),
}


def _flat(answer: object) -> list[Tensor]:
    return list(answer.values()) if isinstance(answer, dict) else [answer]  # type: ignore[list-item]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # forward differentiation uses it
@pytest.mark.parametrize("kind", MISLED)
@pytest.mark.parametrize("order", ["answers first", "gradients first"])
def test_it_answers_as_it_is(kind: str, order: str) -> None:
    build, left = MISLED[kind]
    net = net_of(build)
    quick = quick_of(net)
    graded = kind not in ("in-place residual", "inferred", "cast")
    for turn in range(4):
        x = inputs(net, 4 + turn)
        if graded and (turn % 2 == 0) == (order == "gradients first"):
            for mine, its in zip(tiny.gradient(quick, x), tiny.gradient(net, x), strict=True):
                torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
        else:
            with torch.no_grad():
                for mine, its in zip(_flat(quick(x)), _flat(net(x)), strict=True):
                    torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
    if left is not None:
        assert not getattr(plan_of(net), left)


def test_single_inputs_are_not_worth_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("looked")

    monkeypatch.setattr(Plan, "learn", never)
    net = net_of(Residual)
    quick = quick_of(net)
    x = inputs(net, 1)
    with torch.no_grad():
        assert torch.equal(quick(x), net(x))


def test_what_is_not_found_out_costs_no_more_looks() -> None:
    class Net(Body):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.end(F.relu(self.norm(self.one(x))))

    net = net_of(Net)
    x = inputs(net)
    quick = quick_of(net)
    with torch.no_grad():
        quick(x)
        assert net.calls == 4  # one learns, two are held against each other, one answers
        quick(x)
    assert net.calls == 5
    quick(x.clone().requires_grad_())
    assert net.calls == 8
    again = quick_of(net)
    again(x.clone().requires_grad_())
    assert net.calls == 9
