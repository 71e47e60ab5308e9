"""Several detectors as one: an input is accepted where all of them accept it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparring.core.errors import InputError
from sparring.defences.detectors.base import Detector


class Union(nn.Module):
    """Rejects what any of its detectors rejects; its score is the largest excess over their thresholds.

    Args:
        detectors: each fitted already.
        scales: what one unit of each excess is worth; None takes each detector's own threshold, or 1 where that is 0.
    """

    def __init__(self, *detectors: Detector, scales: tuple[float, ...] | None = None) -> None:
        super().__init__()
        if not detectors:
            raise InputError("a union of no detectors; give at least one that is fitted")
        if scales is not None and len(scales) != len(detectors):
            raise InputError(f"{len(scales)} scales came for {len(detectors)} detectors; give one each")
        self.detectors = nn.ModuleList(detectors)
        self._each = detectors
        units = [abs(float(d.threshold)) or 1.0 for d in detectors] if scales is None else list(scales)
        self.register_buffer("scales", torch.tensor(units))
        self.register_buffer("threshold", torch.tensor(0.0))
        self.eval()

    def score(self, x: Tensor) -> Tensor:
        """The largest excess, (n,); positive where one of them rejects."""
        return self._excesses(x).amax(0)

    def softened(self, x: Tensor) -> Tensor:
        """What a joint attack lowers, (n,): the sum over those that reject, or over all where none does.

        Lowering the largest excess alone swings between two detectors that both reject.
        """
        with torch.no_grad():
            rejecting = self._excesses(x) > 0
        mind = rejecting | ~rejecting.any(0)
        parts = [d.softened(x) / s for d, s in zip(self._each, self.get_buffer("scales"), strict=True)]
        return (torch.stack(parts) * mind).sum(0)

    def _excesses(self, x: Tensor) -> Tensor:
        """By how much each score passes its threshold, in units of `scales`, (detectors, n)."""
        scales = self.get_buffer("scales")
        return torch.stack([(d.score(x) - d.threshold) / s for d, s in zip(self._each, scales, strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        """Bool (n,): accepted by all."""
        return torch.stack([d(x) for d in self._each]).all(0)
