"""Batches of tensors: whole samples."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.core.batch import choose


@given(mask=st.lists(st.booleans(), min_size=1, max_size=6))
def test_whole_samples_are_chosen(mask: list[bool]) -> None:
    some = torch.tensor(mask)
    a, b = torch.arange(3.0 * len(mask)).reshape(-1, 3), -torch.ones(len(mask), 3)
    before = b.clone()
    assert torch.equal(choose(some, a, b), torch.where(some[:, None], a, b))
    assert torch.equal(b, before)
