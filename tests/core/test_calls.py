"""Activations that write over what they read: whoever reads it all the same is given what it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normed import Body, inputs, net_of, quick_of
from sparring.core import arrangement
from sparring.core.arrangement import plan_of


@pytest.fixture(autouse=True)
def _all_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrangement, "WORTH_IT", 0)


def agrees(net: nn.Module, x: Tensor, passes: int = 2) -> bool:
    """Whether a network over rearranged layers answers as it is, pass after pass; and whether activations write still."""
    quick = quick_of(net)
    for _ in range(passes):
        with torch.no_grad():
            torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-6)
    assert not quick._calls._gone
    return plan_of(net).overwrites


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": lambda x: x.relu(),
    "relu6": functional.relu6,
    "ReLU6": nn.ReLU6(),
    "hardtanh": functional.hardtanh,
    "narrow hardtanh": nn.Hardtanh(-0.1, 0.2),
    "narrow hardtanh, named": lambda x: functional.hardtanh(x, min_val=-0.1, max_val=0.2),
    "leaky": nn.LeakyReLU(0.3),
    "leaky by default": functional.leaky_relu,
    "leaky, named": lambda x: functional.leaky_relu(x, negative_slope=0.3),
    "silu": functional.silu,
    "hardswish": nn.Hardswish(),
    "in place": lambda x: functional.relu(x, inplace=True),
    "in place, by position": lambda x: functional.hardtanh(x, -0.1, 0.2, True),
    "gelu": functional.gelu,
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("before", ["norm", "convolution", "sum", "norm alone"])
def test_activations_give_what_they_are(kind: str, before: str) -> None:
    activation = ACTIVATIONS[kind]

    class Net(Body):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.one(x))
            if before == "convolution":
                x = self.two(x)
            elif before == "sum":
                x = x + self.other(self.two(x))
            elif before == "norm alone":
                x = self.other(x * 2)
            return self.end(activation(x))

    net = net_of(Net)
    x = inputs(net)
    kept = x.clone()
    assert agrees(net, x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("kind", [kind for kind in ACTIVATIONS if kind != "gelu" and not kind.startswith("in place")])
def test_they_write_over_what_is_dropped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    activation = ACTIVATIONS[kind]

    class Net(Body):
        def forward(self, x: Tensor) -> Tensor:
            x = activation(self.norm(self.one(x)))
            return self.end(activation(x + self.other(self.two(x))))

    written = []
    real = torch.Tensor.detach

    def noted(t: Tensor) -> Tensor:
        written.append(t.data_ptr())
        return real(t)

    net = net_of(Net)
    x = inputs(net)
    quick = quick_of(net)
    with torch.no_grad():
        quick(x)
        monkeypatch.setattr(torch.Tensor, "detach", noted)
        quick(x)
    assert len(written) == 4  # what two folded convolutions gave, and what two activations wrote over
    quick(x.clone().requires_grad_())  # the first with gradients is held against the network's own
    written.clear()
    quick(x.clone().requires_grad_())
    assert not written  # the way back needs what was there


class Later(Body):
    """Reads what an activation has read."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x))
        return self.end(functional.relu(x) - x)


class LaterSum(Body):
    """The same of a sum, and as one of a list."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x))
        total = x + self.other(self.two(x))
        return self.end(torch.cat([functional.relu(total), total]).unflatten(0, (2, -1)).amax(0))


class ViewFirst(Body):
    """Holds a view of it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x))
        view = x.flatten(2)
        return self.end(functional.relu(x) - view.view_as(x))


class DataFirst(Body):
    """Holds its data."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x))
        data = x.data
        return self.end(functional.relu(x) - data)


class Twofold(Body):
    """Two activations of one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x))
        return self.end(functional.relu(x) + functional.hardtanh(x, -0.5, 0.0))


class Keeps(Body):
    """Keeps it for a later layer, and does not read it."""

    def forward(self, x: Tensor) -> Tensor:
        before = self.norm(self.one(x))
        after = functional.relu(before)
        x = functional.relu(self.two(after))
        return self.end(x + before.shape[1])


READERS: dict[str, tuple[type[Body], bool]] = {
    "later": (Later, False),
    "later sum": (LaterSum, False),
    "view first": (ViewFirst, True),
    "data first": (DataFirst, True),
    "twofold": (Twofold, False),
    "keeps": (Keeps, True),
}


@pytest.mark.parametrize("kind", READERS)
def test_who_reads_it_again_reads_what_it_was(kind: str) -> None:
    build, writes = READERS[kind]
    net = net_of(build)
    assert agrees(net, inputs(net)) is writes


def test_what_is_kept_beyond_the_pass_is_what_it_was() -> None:
    class Net(Body):
        features: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.features = self.norm(self.one(x))
            return self.end(functional.relu(self.features))

    net = net_of(Net)
    x = inputs(net)
    quick = quick_of(net)
    for _ in range(2):
        with torch.no_grad():
            quick(x)
            seen = net.features
            net(x)
        torch.testing.assert_close(seen, net.features, rtol=1e-4, atol=1e-6)
    assert not plan_of(net).overwrites


def test_a_pass_that_reads_it_only_now() -> None:
    class Net(Body):
        again = False

        def forward(self, x: Tensor) -> Tensor:
            before = self.norm(self.one(x))
            x = functional.relu(before)
            return self.end(x - before if self.again else x)

    net = net_of(Net)
    x = inputs(net)
    assert agrees(net, x)
    net.again = True
    assert not agrees(net, x)


def test_gradients_inside_the_network_are_let_alone() -> None:
    class Net(Body):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (grad,) = torch.autograd.grad(functional.silu(self.norm(self.one(leaf))).square().sum(), leaf)
            return self.end(functional.relu(self.norm(self.one(x + grad))))

    net = net_of(Net)
    assert agrees(net, inputs(net))


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    class Net(Body):
        broken = False

        def forward(self, x: Tensor) -> Tensor:
            before = self.norm(self.one(x))
            x = functional.relu(before)
            if self.broken:
                raise ValueError("broken")
            return self.end(x)

    net = net_of(Net)
    x = inputs(net)
    quick = quick_of(net)
    with torch.no_grad():
        quick(x)
        net.broken = True
        with pytest.raises(ValueError, match="broken"):
            quick(x)
        net.broken = False
        assert not quick._calls._gone
        torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-6)
