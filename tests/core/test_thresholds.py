"""The threshold that shrinks to a sum, and the smallest of the largest, by their definitions."""

from __future__ import annotations

import pytest
import torch

from sparring.core import thresholds
from sparring.core.thresholds import least_of_largest, soft_threshold


@pytest.mark.parametrize("capped", [False, True])
def test_shrunk_magnitudes_have_the_sum(capped: bool) -> None:
    g = torch.Generator().manual_seed(0)
    size = torch.rand(40, 100, generator=g)
    cap = torch.rand(40, 100, generator=g) * 0.2 if capped else None
    eps = torch.linspace(0.01, 6, 40)
    t = soft_threshold(size, cap, eps)
    kept = (size.double() - t.double()[:, None]).clamp(min=0)
    kept = kept if cap is None else kept.minimum(cap.double())
    torch.testing.assert_close(kept.sum(1), eps.double(), rtol=1e-4, atol=0)


def test_a_sum_that_floats_hardly_tell_from_none_takes_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 0.1 + 1e-6 * torch.rand(50, 784, generator=torch.Generator().manual_seed(1))
    eps = torch.logspace(-4, -2, 50)
    t = soft_threshold(size, None, eps)
    monkeypatch.setattr(thresholds, "ROUNDS", 10)
    assert torch.equal(soft_threshold(size, None, eps), t)
    # a float's width of each of the elements that are kept
    kept = (size - t[:, None]).clamp(min=0)
    assert bool(((kept.sum(1) - eps).abs() <= 1e-8 * (kept > 0).sum(1).clamp(min=1)).all())


@pytest.mark.parametrize("most", [1, 3, 64, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_least_of_the_largest(most: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(2)
    values = torch.randn(30, 200, generator=g).to(dtype)
    count = torch.randint(1, most + 1, (30,), generator=g)
    least = least_of_largest(values, count)
    assert least.dtype == dtype
    assert torch.equal((values >= least).sum(1), count)
    assert least_of_largest(values[:0], count[:0]).shape == (0, 1)
