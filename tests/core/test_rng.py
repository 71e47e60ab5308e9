"""Keyed randomness: equal for every batch and order, independent across seeds, samples, streams; well distributed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import tiny
from sparring.core.rng import KeyedRandom, content_ids, stream_key

N = 4000
MANY = KeyedRandom(0, torch.arange(N))

DRAWS: dict[str, Callable[[KeyedRandom], Tensor]] = {
    "uniform": lambda r: r.uniform((2, 3), "s", -1.0, 2.0),
    "normal": lambda r: r.normal((2, 3), ("s", 4)),
    "signs": lambda r: r.signs((7,), 5),
    "integers": lambda r: r.integers((4,), "s", 10),
    "permutation": lambda r: r.permutation(6, "s"),
    "words": lambda r: r.words(3, ("s", "t", 1)),
    "fork": lambda r: r.fork(("victim", 0, 3)).uniform((2,), "s"),
}
draws = pytest.mark.parametrize("draw", list(DRAWS.values()), ids=list(DRAWS))


@draws
def test_a_row_depends_on_its_sample_alone(draw: Callable[[KeyedRandom], Tensor]) -> None:
    ids = torch.tensor([5, -3, 2**62, 0, 17])
    whole = draw(KeyedRandom(3, ids))
    order = torch.tensor([4, 0, 2])
    assert torch.equal(draw(KeyedRandom(3, ids[order])), whole[order])
    assert torch.equal(draw(KeyedRandom(3, ids).take(order)), whole[order])
    for i in range(5):
        assert torch.equal(draw(KeyedRandom(3, ids[i : i + 1])), whole[i : i + 1])


@draws
def test_the_seed_and_the_sample_matter(draw: Callable[[KeyedRandom], Tensor]) -> None:
    ids = torch.arange(50)
    first = draw(KeyedRandom(0, ids))
    assert not torch.equal(first, draw(KeyedRandom(1, ids)))
    assert not torch.equal(first, draw(KeyedRandom(-1, ids)))
    assert not torch.equal(first, draw(KeyedRandom(0, ids + 50)))
    assert torch.equal(first, draw(KeyedRandom(0, ids)))


@draws
def test_no_samples_give_no_rows(draw: Callable[[KeyedRandom], Tensor]) -> None:
    assert draw(KeyedRandom(0, torch.zeros(0, dtype=torch.int64))).shape[0] == 0


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    before = tiny.random_states()
    first = MANY.normal((3,), "s")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(MANY.normal((3,), "s"), first)
    assert tiny.random_states() == before


def test_uniform_draws_are_uniform_over_samples_and_over_places() -> None:
    u = MANY.uniform((50,), "s").double().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert scipy.stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    for place in (0, 1, 49):  # one place over consecutive ids
        assert scipy.stats.kstest(u[:, place], "uniform").pvalue > 1e-4
    for sample in (0, 1, N - 1):  # one long row
        row = KeyedRandom(0, torch.tensor([sample])).uniform((N,), "s")[0].double().numpy()
        assert scipy.stats.kstest(row, "uniform").pvalue > 1e-4


def test_uniform_draws_keep_to_their_interval() -> None:
    u = MANY.uniform((500,), "s", -0.1, 0.3)
    assert u.min() >= -0.1
    assert u.max() < 0.3
    assert u.dtype == torch.float32


def test_normal_draws_are_normal() -> None:
    z = MANY.normal((25,), "s").double().numpy()
    assert np.isfinite(z).all()
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z[:, 0], z[:, 13])[0, 1]) < 0.06  # the two halves share a transform
    assert abs(np.corrcoef(z[:, 0] ** 2, z[:, 13] ** 2)[0, 1]) < 0.06


def test_signs_whole_numbers_and_orders_are_balanced() -> None:
    signs = MANY.signs((40,), "s")
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean(0).abs().max() < 5 / N**0.5
    counts = torch.bincount(MANY.integers((5,), "s", 7).flatten(), minlength=7)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    orders = MANY.permutation(4, "s")
    assert torch.equal(orders.sort(1).values, torch.arange(4).expand(N, 4))
    code = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    assert scipy.stats.chisquare(np.unique(code.numpy(), return_counts=True)[1]).pvalue > 1e-3
    assert len(code.unique()) == 24


def test_whole_numbers_below_a_bound_of_each_sample() -> None:
    high = torch.arange(1, N + 1)
    drawn = MANY.integers((20,), "s", high)
    assert (drawn >= 0).all()
    assert (drawn < high[:, None]).all()
    assert float((drawn / high[:, None])[100:].mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("a", "b"), [("s", "t"), (("s", 1), ("s", 2)), (("s", 1), (1, "s")), ("s1", ("s", 1)), (("a", "b"), "ab"), (0, "0")]
)
def test_streams_are_independent(a: tuple[str | int, ...] | str, b: tuple[str | int, ...] | str) -> None:
    first, second = MANY.uniform((10,), a), MANY.uniform((10,), b)
    assert (first == second).float().mean() < 1e-3
    assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 0.02


def test_seeds_and_neighbouring_samples_are_independent() -> None:
    u = MANY.uniform((10,), "s")
    other = KeyedRandom(1, torch.arange(N)).uniform((10,), "s")
    assert abs(np.corrcoef(u.flatten(), other.flatten())[0, 1]) < 0.02
    assert abs(np.corrcoef(u[1:].flatten(), u[:-1].flatten())[0, 1]) < 0.02
    assert abs(np.corrcoef(u[:, 1:].flatten(), u[:, :-1].flatten())[0, 1]) < 0.02


def test_every_bit_of_a_key_changes_half_of_a_word() -> None:
    """Avalanche: flipping one bit of the sample's id flips each bit of the draw with chance one half."""
    ids = torch.arange(300) * 7919
    words = KeyedRandom(0, ids).words(4, "s")
    for bit in (0, 1, 20, 31, 32, 45, 62):
        changed = KeyedRandom(0, ids ^ (1 << bit)).words(4, "s") ^ words
        share = torch.stack([(changed >> k) & 1 for k in range(32)]).float().mean((1, 2))
        assert share.sub(0.5).abs().max() < 0.08


def test_stream_names_are_numbers_that_differ() -> None:
    assert stream_key(7) == 7
    names = ["start", "direction", "noise", "step", "victim", "clean", "recheck", "", "a", "b"]
    assert len({stream_key(n) for n in names}) == len(names)
    assert all(-(2**63) <= stream_key(n) < 2**63 for n in names)


# -- ids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8])
def test_ids_come_from_the_content_alone(dtype: torch.dtype) -> None:
    x = (torch.rand(6, 1, 3, 4, generator=torch.Generator().manual_seed(0)) * 200).to(dtype)
    ids = content_ids(x)
    assert ids.dtype == torch.int64
    assert len(ids.unique()) == 6
    order = torch.tensor([3, 1, 5])
    assert torch.equal(content_ids(x[order]), ids[order])
    assert torch.equal(content_ids(torch.cat([x, x[:1]])), torch.cat([ids, ids[:1]]))


def test_ids_see_where_a_value_stands_and_how_long_a_row_is() -> None:
    assert len(content_ids(torch.eye(16)).unique()) == 16
    assert content_ids(torch.zeros(1, 4)) != content_ids(torch.zeros(1, 5))
    assert torch.equal(content_ids(torch.tensor([[-0.0]])), content_ids(torch.tensor([[0.0]])))


def test_ids_of_a_large_batch_equal_those_of_its_rows() -> None:
    x = torch.rand(5, 2**21, generator=torch.Generator().manual_seed(0))  # several pieces of the sum
    assert torch.equal(content_ids(x), torch.cat([content_ids(x[i : i + 1]) for i in range(5)]))


def test_ids_of_texts_bytes_arrays_and_other_things() -> None:
    items = ["a text", "another", b"bytes", np.arange(3), np.arange(4), {"row": 1}, ("row", 1)]
    ids = content_ids(items)
    assert len(ids.unique()) == len(items)
    assert torch.equal(content_ids(items[:2]), ids[:2])
    assert content_ids([]).shape == (0,)
