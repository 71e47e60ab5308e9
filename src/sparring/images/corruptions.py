"""Common corruptions at graded severity: one call, the space that an attack searches, and a table of accuracies."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.errors import InputError, UnknownNameError
from sparring.core.rng import KeyedRandom, content_ids
from sparring.core.space import Bounds
from sparring.core.victim import BaseVictim, query_in_batches
from sparring.images.kinds import KINDS, Brush
from sparring.images.rendering import Drawn, shown

NAMES = tuple(KINDS)
SEVERITIES = (1, 2, 3, 4, 5)
# Sides up to this take the settings published for sides of 32, larger ones those for 224.
SMALL = 64


def corrupt(x: Tensor, name: str, severity: int, rng: KeyedRandom | int = 0) -> Tensor:
    """Corrupt pictures as ImageNet-C and CIFAR-10-C do.

    Sides up to 64 take the settings of CIFAR-10-C, larger ones those of ImageNet-C; lengths in pixels are scaled by the
    shorter side over 32 or 224. `frost` generates its ice, for the photographs of the original are not shipped; motion,
    zoom and fog are written anew from their descriptions. Results are not rounded to 8 bits; ImageNet-C's own pictures were
    also saved as JPEG files of quality 85.

    Args:
        x: pictures in [0, 1], (n, c, h, w), grey or in colour.
        name: one of `sparring.images.corruptions.NAMES`.
        severity: 1 (mild) to 5.
        rng: randomness of each picture, or a seed, which is keyed by the pictures' content.

    Returns:
        (n, c, h, w) in [0, 1].

    Raises:
        InputError: no pictures, other channels, a severity out of range.
        UnknownNameError: no such corruption.

    Example:
        >>> corrupt(torch.rand(2, 3, 32, 32), "fog", 3).shape
        torch.Size([2, 3, 32, 32])

    Hendrycks and Dietterich 2019, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
    arXiv:1903.12261.
    """
    if name not in KINDS:
        raise UnknownNameError.among("corruption", name, KINDS)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise InputError(f"severity is {severity!r}; a whole number from 1 to 5 is needed")
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
        raise InputError(
            f"corruptions take float pictures (n, c, h, w), grey or in colour; {x.dtype} of shape {tuple(x.shape)} came"
        )
    if x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise InputError(f"pixels span [{float(x.min()):.4g}, {float(x.max()):.4g}]; they must lie in [0, 1]")
    source = KeyedRandom(rng, content_ids(x)) if isinstance(rng, int) else rng
    return _corrupted(x, keyed(source, NAMES.index(name), severity))


def _corrupted(x: Tensor, theta: Tensor) -> Tensor:
    """Each picture by its own (kind, severity, key)."""
    drawn = x.clone()
    side = min(x.shape[2:])
    for row, (kind, severity, key) in enumerate(theta.tolist()):
        if severity:
            brush = Brush(
                np.random.Generator(np.random.Philox(key & 0xFFFFFFFFFFFFFFFF)), side / (32 if side <= SMALL else 224)
            )
            how = KINDS[NAMES[kind]]
            picture = x[row].detach().cpu().numpy().astype(np.float64)
            made = how.draw(picture, (how.small if side <= SMALL else how.large)[severity - 1], brush)
            drawn[row] = torch.from_numpy(np.clip(made, 0, 1)).to(x)
    return drawn


@dataclass(frozen=True, eq=False)
class Corruptions(Drawn):
    """Pictures under one common corruption each: theta = (kind, severity, key), int64 (n, 3).

    The cost is the severity; 0 is no change. The key is the seed of the corruption's noise, so `contains` draws the very
    picture again from the parameters that the space remembers (see `Drawn`).

    Args:
        severity: the largest legal severity, a whole number from 0 to 5 or one per picture, (n,).
        kinds: the corruptions that are allowed; None allows all fifteen.

    Raises:
        InputError, UnknownNameError: a severity out of range, no kinds or unknown ones; with `bound`, pictures neither
            grey nor in colour.
    """

    severity: float | Tensor | None = 5
    kinds: Collection[str] | None = None

    name: ClassVar[str] = "corruptions"
    channels: ClassVar[tuple[int, ...] | None] = (1, 3)
    radius: ClassVar[str | None] = "severity"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.kinds, str):
            raise InputError(f"kinds is the string {self.kinds!r}; a collection is needed: kinds=[{self.kinds!r}]")
        kinds = NAMES if self.kinds is None else tuple(self.kinds)
        for kind in kinds:
            if kind not in KINDS:
                raise UnknownNameError.among("corruption", kind, KINDS)
        if not kinds:
            raise InputError("kinds is empty; name at least one corruption, or give None for all")
        object.__setattr__(self, "kinds", kinds)
        most = torch.as_tensor(0 if self.severity is None else self.severity, dtype=torch.float64)
        if not bool(((most >= 0) & (most <= 5) & (most == most.floor())).all()):
            raise InputError(f"severity is {self.severity!r}; whole numbers from 0 to 5 are needed")

    def numbers(self) -> list[int]:
        """The allowed kinds as positions in `NAMES`."""
        return [NAMES.index(kind) for kind in self.kinds or ()]

    def blank(self, x: Tensor) -> Tensor:
        """Severity 0, (n, 3)."""
        return torch.zeros(len(x), 3, dtype=torch.int64, device=x.device)

    def size(self, theta: Tensor) -> Tensor:
        """The severity, (n,); infinite for kinds that are not allowed."""
        kind, severity = theta[:, 0], theta[:, 1]
        allowed = (
            torch.isin(kind, torch.tensor(self.numbers(), device=theta.device)) & (severity >= 1) & (severity <= 5)
        )
        return torch.where(allowed | (severity == 0), severity.float(), torch.inf)

    def draw(self, x: Tensor, theta: Tensor) -> Tensor:
        """Each picture by its own kind, severity and key."""
        if self.bounds is None:
            return _corrupted(x, theta)
        lo, span = self.bounds.lo, self.bounds.hi - self.bounds.lo
        drawn = lo + span * _corrupted(((x - lo) / span).clamp(0, 1), theta)
        return torch.where((theta[:, 1] > 0)[:, None, None, None], drawn, x)

    def without_limit(self) -> Corruptions:
        """All severities."""
        return replace(self, severity=5)

    def bound(self, x: Batch, bounds: Bounds | None) -> Corruptions:
        """The space with one severity per picture; None is 5."""
        space = self if self.severity is not None else replace(self, severity=5)
        return super(Corruptions, space).bound(x, bounds)

    def __repr__(self) -> str:
        kinds = "" if self.kinds == NAMES else f", kinds={list(self.kinds or ())}"
        grid = "" if self.lattice is None else f", lattice={self.lattice}"
        return f"Corruptions(severity={shown(self.severity)}{kinds}{grid})"


@dataclass(frozen=True, eq=False)
class CorruptionTable:
    """Accuracy by corruption and severity.

    Attributes:
        kinds: the rows.
        severities: the columns.
        accuracy: float (kinds, severities).
        clean: accuracy without corruption.
    """

    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    accuracy: Tensor
    clean: float

    @property
    def mean_corruption_error(self) -> float:
        """The mean error over kinds and severities.

        Not the paper's mCE, which divides each kind's error by AlexNet's before taking the mean.
        """
        return 1.0 - float(self.accuracy.double().mean())

    def __str__(self) -> str:
        width = max(len(kind) for kind in (*self.kinds, "corruption"))
        lines = [f"{'corruption':{width}}" + "".join(f"{s:>7d}" for s in self.severities) + "   mean"]
        for kind, row in zip(self.kinds, self.accuracy, strict=True):
            lines.append(f"{kind:{width}}" + "".join(f"{100 * float(v):7.1f}" for v in (*row, row.mean())))
        return "\n".join(
            [*lines, f"clean accuracy {100 * self.clean:.1f}%, mean corruption error {self.mean_corruption_error:.1%}"]
        )


def corruption_table(
    victim: BaseVictim,
    x: Tensor,
    y: Tensor,
    *,
    kinds: Sequence[str] = NAMES,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    batch_size: int = 128,
) -> CorruptionTable:
    """A victim's accuracy under each corruption at each severity, one draw for each picture.

    Args:
        victim: any victim for pictures with bounds.
        x: pictures in its raw units, (n, c, h, w).
        y: true labels, (n,).
        kinds: the rows wanted.
        severities: the columns wanted.
        seed: of the corruptions' noise, keyed by the pictures' content.
        batch_size: pictures asked about at once.

    Raises:
        InputError: no pictures, no labels for them, or a victim without bounds.
    """
    space = Corruptions(5, kinds)
    x, y = victim.admit(x, y)  # type: ignore[assignment]
    if not isinstance(x, Tensor) or not len(x):
        raise InputError("a table of corruptions needs at least one picture, (n, c, h, w)")
    space = space.bound(x, victim.bounds)
    source = KeyedRandom(seed, content_ids(x)).fork("corruptions")
    with victim.at_rest():
        clean = float((query_in_batches(victim, x, batch_size).labels == y).double().mean())
        accuracy = torch.zeros(len(kinds), len(severities))
        for i, kind in enumerate(kinds):
            for j, severity in enumerate(severities):
                if severity not in SEVERITIES:
                    raise InputError(f"severity is {severity!r}; a whole number from 1 to 5 is needed")
                made = space.draw(x, keyed(source, NAMES.index(kind), severity))
                accuracy[i, j] = (query_in_batches(victim, made, batch_size).labels == y).double().mean()
    return CorruptionTable(tuple(kinds), tuple(severities), accuracy, clean)


def keyed(source: KeyedRandom, kind: int, severity: int) -> Tensor:
    """The parameters (kind, severity, key) of one corruption of every sample, int64 (n, 3).

    All severities share the key of their kind: one pattern of noise, graded.
    """
    keys = source.fork(("corruption", NAMES[kind])).ids
    return torch.stack([torch.full_like(keys, kind), torch.full_like(keys, severity), keys], 1)
