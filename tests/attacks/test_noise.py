"""Windows of one table: keyed by the sample, never the same twice, as random as fresh draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparring as sp
from sparring.attacks.query.noise import WINDOWS, Noise
from sparring.core.rng import KeyedRandom
from sparring.core.runner import Run, Terms
from sparring.core.threat import Access

IDS = torch.tensor([5, 9, 2])


def a_run(ids: Tensor = IDS, restart: int = 0, seed: int = 0) -> Run:
    """A run on as many pictures as ids."""
    x = torch.full((len(ids), 2, 3, 3), 0.5)
    victim = sp.Victim(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(18, 3)))
    threat = sp.ThreatModel(sp.Linf(0.1).bound(x, victim.bounds))
    terms = Terms(Access.SCORES, smallest=False, early_stop=True, batch_size=8)
    run = Run(victim, None, x, torch.zeros(len(ids), dtype=torch.int64), threat, KeyedRandom(seed, ids), terms)
    run.restart = restart
    return run


@pytest.mark.parametrize("kind", ["normal", "uniform", "signs"])
def test_a_draw_is_the_sample_s_own_in_every_batch(kind: str) -> None:
    like = torch.zeros(3, 2, 4)
    whole, part = Noise.of(a_run()), Noise.of(a_run(IDS[[2]]))
    for count in (None, 3, 1):
        drawn, alone = getattr(whole, kind)(like, count), getattr(part, kind)(like[:1], count)
        assert drawn.shape == ((3, 2, 4) if count is None else (3, count, 2, 4))
        assert torch.equal(drawn[2:], alone)
        assert not torch.equal(drawn[0], drawn[1])


def test_draws_come_one_after_another_however_they_are_asked_for() -> None:
    like = torch.zeros(3, 7)
    at_once, singly = Noise.of(a_run()), Noise.of(a_run())
    together = at_once.normal(like, 4)
    assert torch.equal(together, torch.stack([singly.normal(like) for _ in range(4)], dim=1))
    assert torch.equal(at_once.normal(like), singly.normal(like))
    skipping, copied = Noise.of(a_run()), Noise.of(a_run()).copy()
    skipping.skip(torch.tensor([0, 1, 3]))
    later = skipping.normal(like)
    assert torch.equal(later, together[torch.arange(3), torch.tensor([0, 1, 3])])
    assert torch.equal(copied.normal(like), together[:, 0])


def test_no_window_comes_twice_before_all_have_come() -> None:
    noise = Noise.of(a_run(IDS[:1]))
    seen = set()
    for _ in range(1000):
        seen.add(int(noise.place))
        noise.skip(1)
    assert len(seen) == 1000
    place = int(noise.place)
    noise.skip(WINDOWS)
    assert int(noise.place) == place


def test_another_seed_restart_or_sample_draws_otherwise() -> None:
    like = torch.zeros(1, 50)
    draws = [Noise.of(a_run(IDS[:1], restart, seed)).normal(like) for restart in (0, 1) for seed in (0, 1)]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 4


def test_windows_are_as_uncorrelated_as_fresh_draws() -> None:
    u = Noise.of(a_run(IDS[:1])).normal(torch.zeros(1, 2000), 300)[0].double()
    gram = u @ u.T / 2000
    off = gram - torch.diag(gram.diagonal())
    assert float(off.abs().max()) < 6 / 2000**0.5  # 45,000 pairs of independent draws reach 4.4 deviations
    assert float(off.square().sum() / (300 * 299)) == pytest.approx(1 / 2000, rel=0.05)
    assert float(u.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(u.std()) == pytest.approx(1.0, abs=0.01)


def test_kinds_have_their_values() -> None:
    like = torch.zeros(3, 500, dtype=torch.float64)
    signs, uniform = Noise.of(a_run()).signs(like, 20), Noise.of(a_run()).uniform(like, 20)
    assert signs.dtype == uniform.dtype == torch.float64
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
