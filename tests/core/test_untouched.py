"""Networks that write into their input, and networks and inputs of other types than float32."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import sparring as sp
import tiny
from sparring.core.untouched import untouched


class Subtracts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.5)


class ThroughNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        array = x.numpy()
        array += 1.0  # autograd does not see it
        return torch.from_numpy(array.copy())


@pytest.mark.parametrize("part", [Subtracts(), ThroughNumpy(), lambda x: x.mul_(2), nn.ReLU(inplace=True)])
def test_inputs_stay_as_they_were(part: nn.Module) -> None:
    for _ in range(3):
        x = torch.rand(2, 3) - 0.5
        before = x.clone()
        want = part(x.clone())
        assert torch.equal(untouched(part, x), want)
        assert torch.equal(x, before)


def test_gradients_reach_the_input_through_what_is_done_in_place() -> None:
    for part in (Subtracts(), nn.ReLU(inplace=True)):  # a ReLU changes nothing in [0, 1], and is in place all the same
        for _ in range(2):
            leaf = torch.rand(2, 3, requires_grad=True)
            (grad,) = torch.autograd.grad(untouched(part, leaf).sum(), leaf)
            assert torch.equal(grad, torch.ones(2, 3))


def test_whoever_only_reads_gets_no_copies() -> None:
    part, seen = nn.Identity(), []
    part.register_forward_pre_hook(lambda _, given: seen.append(given[0].data_ptr()))
    x = torch.rand(2, 3)
    for _ in range(3):
        untouched(part, x)
    assert seen[0] != x.data_ptr()  # the first look is at a copy
    assert seen[1:] == [x.data_ptr()] * 2


def test_inference_mode_is_no_obstacle() -> None:
    with torch.inference_mode():
        x = torch.rand(2, 3)
        before = x.clone()
        untouched(Subtracts(), x)
        assert torch.equal(x, before)


def test_stages_and_detectors_that_write_are_held_to_it() -> None:
    x, y = tiny.correct(4)
    before = x.clone()

    def suspicious(z: Tensor) -> Tensor:
        return z.sub_(1.0).flatten(1).amax(1) < 10

    class Back(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.mul_(2.0).div_(2.0)

    victim = tiny.trained().defended(pre=[Back()], detector=suspicious)
    for _ in range(2):
        answer = victim.query(x)
        assert torch.equal(answer.labels, y)
        assert answer.accepted is not None
        assert answer.accepted.all()
        assert torch.equal(x, before)


@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
@pytest.mark.parametrize("inputs", [torch.float16, torch.float64, torch.float32])
def test_inputs_come_in_any_floating_type(weights: torch.dtype, inputs: torch.dtype) -> None:
    """A network that refuses them takes them in the type of its weights; half precision is attacked in float32."""
    x, y = tiny.correct(4)
    net = copy.deepcopy(tiny.trained().net).to(weights)  # type: ignore[union-attr]
    result = sp.PGD(steps=10)(sp.Victim(net), x.to(inputs), y, sp.Linf(0.3))
    assert result.succeeded.all()
    assert isinstance(result.adversarial, Tensor)
    assert result.adversarial.dtype == (torch.float64 if inputs == torch.float64 else torch.float32)
    assert result.final.scores is not None
    assert result.final.scores.dtype in (torch.float32, torch.float64)


def test_a_network_that_takes_float32_into_half_precision_itself_is_left_to_it() -> None:
    seen = []

    class Prepared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(36, 3).to(torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.dtype)
            return self.net((x.flatten(1) - 0.5).to(torch.bfloat16))

    sp.PGD(steps=2)(sp.Victim(Prepared().eval()), tiny.correct(2)[0], None, sp.Linf(0.1))
    assert set(seen) == {torch.float32}


def test_scikit_learn_works_in_place_on_rows_of_its_own() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((60, 4))
    model = make_pipeline(StandardScaler(copy=False), LogisticRegression()).fit(
        rows.copy(), (rows[:, 0] > 0.5).astype(int)
    )
    x = torch.from_numpy(rows[:5].copy())
    before = x.clone()
    sp.victims.SklearnVictim(model).query(x)
    assert torch.equal(x, before)
