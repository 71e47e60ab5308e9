"""PGD in a region: nothing changes outside one rectangle per sample, in attacks and in training."""

from __future__ import annotations

import pytest
import torch

import sparring as sp
import tiny
from sparring.core.errors import InputError
from sparring.defences.training import Mixture, Settings, fit
from sparring.images.warps import Rotations


@pytest.mark.parametrize("space", [sp.Linf(0.3), sp.L2(1.0), sp.L1(3.0)])
def test_only_one_rectangle_changes(space: sp.Linf) -> None:
    victim, (x, y) = tiny.trained(), tiny.correct(16)
    found = sp.PGD(steps=10, region=0.25)(victim, x, y, space, early_stop=False)
    changed = (found.adversarial != x).any(1)
    places = set()
    for one in changed:
        rows, columns = one.any(1).nonzero().squeeze(1), one.any(0).nonzero().squeeze(1)
        assert len(rows)
        assert int(rows[-1] - rows[0]) < 3, "half of six rows"
        assert int(columns[-1] - columns[0]) < 3
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 1
    whole = sp.PGD(steps=10)(victim, x, y, space)
    assert whole.robust_accuracy <= found.robust_accuracy


def test_the_place_is_the_samples_own_whatever_its_batch() -> None:
    victim, (x, y) = tiny.trained(), tiny.correct(8)
    attack = sp.PGD(steps=4, region=0.3)
    together = attack(victim, x, y, sp.Linf(0.2), early_stop=False)
    alone = attack(victim, x[5:6], y[5:6], sp.Linf(0.2), early_stop=False)
    assert torch.equal(alone.adversarial[0] != x[5], together.adversarial[5] != x[5])


def test_what_is_no_share_is_refused() -> None:
    victim, (x, y) = tiny.trained(), tiny.correct(2)
    with pytest.raises(InputError, match="share"):
        sp.PGD(region=1.5)(victim, x, y, sp.Linf(0.1))
    flat = sp.Victim(torch.nn.Linear(4, 3).eval())
    with pytest.raises(InputError, match="pictures"):
        sp.PGD(region=0.5)(flat, torch.rand(2, 4), None, sp.Linf(0.1))


def test_training_against_a_region_and_a_turn() -> None:
    data = tiny.pictures(64, seed=3)
    mixture = Mixture([(sp.PGD(steps=2, region=0.25), sp.Linf(0.1)), ("rotation-translation", Rotations())])
    done = fit(tiny.trained(), data, "pgd-training", sp.Linf(0.1), attack=mixture, settings=Settings(epochs=1))
    assert torch.isfinite(torch.tensor(done.history[-1].loss))
