"""Random directions at the price of a copy: windows of one table of random numbers, at places of each sample's own.

A query attack draws one direction for every query or two, and on a small network a draw costs more than the query. So a
run's draws are windows of one table (Salimans et al. 2017, arXiv:1703.03864, share one between machines). White noise
is uncorrelated with itself at any shift, so that windows serve as fresh draws do, overlapping ones as well.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.core.rng import KeyedRandom
from sparring.core.runner import Run

# Windows of a table, a power of two; and the step from one draw's window to the next, an odd number near its golden
# section: a sample meets every window before it meets one again, and neighbours in time are far apart.
WINDOWS = 2**18
STRIDE = 162_013


@dataclass
class Noise:
    """A source of draws, each of them new, that belongs in an attack's state: it shrinks with the samples.

    Attributes:
        place: where the next window of each sample begins, int64 (m,).
        seed: which table.
    """

    place: Tensor
    seed: int

    @classmethod
    def of(cls, run: Run) -> Noise:
        """The places of the samples in play, keyed by seed, sample and restart."""
        return cls(run.rng.integers((1,), ("noise", run.restart), WINDOWS).squeeze(1), run.rng.seed)

    def normal(self, like: Tensor, count: int | None = None) -> Tensor:
        """Standard normal draws in the shape of one of `like`, (m, ...).

        Args:
            like: what gives the shape, the type and the device of a draw.
            count: how many for each sample; None for one without that dimension.

        Returns:
            (m, ...), or (m, count, ...).
        """
        return self._windows("normal", like, count)

    def uniform(self, like: Tensor, count: int | None = None) -> Tensor:
        """Draws on [0, 1), as `normal` gives them."""
        return self._windows("uniform", like, count)

    def signs(self, like: Tensor, count: int | None = None) -> Tensor:
        """Draws from -1 and 1, as `normal` gives them."""
        return self._windows("signs", like, count)

    def skip(self, count: Tensor | int) -> None:
        """Leave out so many draws, of every sample or of each its own number, int64 (m,)."""
        self.place = (self.place + count * STRIDE) % WINDOWS

    def copy(self) -> Noise:
        """A source of the same draws, for samples that take different numbers of them and `skip` those afterwards."""
        return Noise(self.place, self.seed)

    def _windows(self, kind: str, like: Tensor, count: int | None) -> Tensor:
        shape, many = tuple(like.shape[1:]), 1 if count is None else count
        place = (self.place[:, None] + torch.arange(many, device=self.place.device) * STRIDE) % WINDOWS
        size = math.prod(shape)
        windows = _table(kind, self.seed, size, self.place.device).unfold(0, size, 1)
        drawn = windows.index_select(0, place.flatten()).to(like.dtype)
        self.skip(many)
        return drawn.reshape(len(place), *(() if count is None else (count,)), *shape)


@functools.lru_cache(maxsize=8)
def _table(kind: str, seed: int, size: int, device: torch.device) -> Tensor:
    """Random numbers in which windows of `size` have WINDOWS places."""
    source = KeyedRandom(seed, torch.zeros(1, dtype=torch.int64, device=device))
    draw = {"normal": source.normal, "uniform": source.uniform, "signs": source.signs}[kind]
    return draw((WINDOWS + size,), ("noise", kind)).squeeze(0)
