"""The low-frequency subspace of pictures, in which label attacks draw their directions: orthonormal cosines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.query.parts import as_pictures
from sparring.attacks.query.simba import cosines
from sparring.core.errors import InputError

# Sides shorter than this keep every frequency: a few waves alone would leave too little room to move in.
LEAST = 8
# Half of a side's frequencies, where nothing is asked for, are no more than so many: on photographs more of them cost as much
# as the victim's forward, and lead no nearer.
MOST = 64


@dataclass(frozen=True)
class Frequencies:
    """The lowest cosines down and across each channel, (a, h) and (b, w): rows of orthonormal bases (DCT-II).

    Rows (n, d) have no neighbouring elements, and keep their own elements as coordinates.
    """

    down: Tensor | None
    across: Tensor | None
    shape: tuple[int, ...]
    channels: int

    @classmethod
    def of(cls, x: Tensor, share: float | None) -> Frequencies:
        """The subspace for inputs shaped like x, (n, ...), with `share` of each side's frequencies; None takes half, or `MOST`.

        Raises:
            InputError: a share outside (0, 1].
        """
        if share is not None and not 0 < share <= 1:
            raise InputError(f"frequencies is {share}, the share of each side's that is used; it must be in (0, 1]")
        if x.ndim == 2:
            return cls(None, None, tuple(x.shape[1:]), x.shape[1])
        _, c, h, w = as_pictures(x).shape
        count = {side: min(MOST, round(side / 2)) if share is None else round(share * side) for side in (h, w)}
        down, across = (cosines(side).to(x)[: max(count[side], min(side, LEAST))] for side in (h, w))
        return cls(down, across, tuple(x.shape[1:]), c)

    @property
    def size(self) -> int:
        """The number of coordinates of the subspace."""
        return self.channels * (1 if self.down is None or self.across is None else len(self.down) * len(self.across))

    def coordinates(self, v: Tensor) -> Tensor:
        """The coordinates of v, (..., shape), in the subspace: (..., size)."""
        lead = v.shape[: v.ndim - len(self.shape)]
        if self.down is None or self.across is None:
            return v
        picture = v.reshape(*lead, self.channels, self.down.shape[1], self.across.shape[1])
        return (self.down @ picture @ self.across.T).reshape(*lead, self.size)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """What has these coordinates, (..., size): of the inputs' shape, (..., shape), and of the same length."""
        lead = coordinates.shape[:-1]
        if self.down is None or self.across is None:
            return coordinates
        waves = coordinates.reshape(*lead, self.channels, len(self.down), len(self.across))
        return (self.down.T @ waves @ self.across).reshape(*lead, *self.shape)


def unit(v: Tensor) -> Tensor:
    """v over its Euclidean length along the last dimension; zero stays zero."""
    length: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return v / length.clamp(min=1e-12)
