"""Lines to a corruption: the least salt-and-pepper noise, blur or loss of contrast that changes the label."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.attacks.labels.parts import crosses
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Line:
    """The mildest adversarial point of each sample so far, and the grades around it: (m, ...), (m,), (m,)."""

    x: Tensor
    mild: Tensor
    strong: Tensor


def _along(run: Run, corrupt: Callable[[Tensor], Tensor], grades: int, halvings: int) -> None:
    """Ask at growing grades 1/grades, 2/grades, ..., then halve between the last that holds and the first that breaks.

    `corrupt` maps one grade per active sample, (m,) in [0, 1], to the corrupted inputs (m, ...).
    """
    m = len(run.x)
    s = run.begin(Line(run.x.clone(), run.x.new_zeros(m), run.x.new_full((m,), math.inf)))
    for step in range(1, grades + 1):
        rows = torch.isinf(s.strong).nonzero().squeeze(1)
        if not len(rows):
            break
        grade = run.x.new_full((m,), step / grades)
        point = corrupt(grade)[rows]
        hit, granted = crosses(run, point, rows)
        s.x[rows[hit]], s.strong[rows[hit]] = point[hit], step / grades
        s.mild[rows[~hit & granted]] = step / grades
    run.give_up(torch.isinf(s.strong))
    for _ in run.steps(halvings):
        middle = (s.mild + s.strong) / 2
        point = corrupt(middle)
        hit, granted = crosses(run, point)
        s.x = torch.where(per_sample(hit, point), point, s.x)
        s.strong = torch.where(hit, middle, s.strong)
        s.mild = torch.where(~hit & granted, middle, s.mild)


_COST = "grades + halvings queries at most"
_SPACES = ("l2", "linf", "l1", "l0")


@attack(
    Card(
        name="salt-and-pepper",
        title="The least salt-and-pepper noise that changes the label",
        paper="Rauber, Brendel and Bethge 2017, Foolbox, arXiv:1707.04131",
        access=Access.LABELS,
        spaces=_SPACES,
        goals=("untargeted",),
        minimal=True,
        cost=_COST + " per try",
        caveats="A corruption, not an adversary: it says how the victim bears noise.",
        floor={"l2": 2.9, "linf": 1.0, "l1": 11.0, "l0": 24.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class SaltAndPepper(Attack):
    """A share of the elements set to the lowest or highest value; the share is made as small as it goes.

    Args:
        grades: shares tried from the mildest on.
        halvings: binary-search steps after the first success.
        restarts: independent noise patterns; the nearest success counts.
    """

    grades: int = 20
    halvings: int = 10
    restarts: int = 1

    def search(self, run: Run) -> None:
        """Walk along one noise pattern."""
        lo, hi = _bounds(run)

        def corrupt(grade: Tensor) -> Tensor:
            shape = tuple(run.x.shape[1:])
            where = run.rng.uniform(shape, ("where", run.restart)) < per_sample(grade, run.x)
            salt = run.rng.uniform(shape, ("salt", run.restart)) < 0.5
            return torch.where(where, torch.where(salt, lo, hi), run.x)

        _along(run, corrupt, self.grades, self.halvings)


@attack(
    Card(
        name="contrast",
        title="The least loss of contrast that changes the label",
        paper="Rauber, Brendel and Bethge 2017, Foolbox, arXiv:1707.04131",
        access=Access.LABELS,
        spaces=("l2", "linf", "l1"),
        goals=("untargeted",),
        minimal=True,
        cost=_COST,
        caveats="A corruption, not an adversary. Many victims read a picture down to the last trace of contrast.",
        floor={"l2": 1.4, "linf": 0.45, "l1": 8.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class Contrast(Attack):
    """x moves towards one grey level, ``x + g (level - x)``, as little as changes the label.

    Args:
        level: where contrast ends, as a share of the bounds.
        grades: grades tried from the mildest on.
        halvings: binary-search steps after the first success.
    """

    level: float = 0.5
    grades: int = 50
    halvings: int = 12

    def search(self, run: Run) -> None:
        """Walk towards grey."""
        lo, hi = _bounds(run)
        grey = lo + self.level * (hi - lo)
        _along(run, lambda grade: run.x + per_sample(grade, run.x) * (grey - run.x), self.grades, self.halvings)


@attack(
    Card(
        name="blur",
        title="The least Gaussian blur that changes the label",
        paper="Rauber, Brendel and Bethge 2017, Foolbox, arXiv:1707.04131",
        access=Access.LABELS,
        spaces=("l2", "linf", "l1"),
        goals=("untargeted",),
        minimal=True,
        cost=_COST,
        domains=("image",),
        caveats="A corruption, not an adversary: it says how the victim bears a lens out of focus.",
        floor={},
    )
)
@dataclass(frozen=True, kw_only=True)
class Blur(Attack):
    """A Gaussian blur of growing width, for pictures (n, c, h, w).

    Args:
        width: the widest blur's deviation, as a share of the longer side.
        grades: grades tried from the mildest on.
        halvings: binary-search steps after the first success.
    """

    width: float = 0.25
    grades: int = 20
    halvings: int = 10

    def search(self, run: Run) -> None:
        """Walk towards the widest blur."""
        if run.x.ndim != 4:
            raise InputError(f"blur takes pictures (n, c, h, w); inputs of shape {tuple(run.x.shape)} came")
        widest = self.width * max(run.x.shape[2:])
        _along(run, lambda grade: run.space.bounds.clamp(_blur(run.x, grade * widest)), self.grades, self.halvings)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Each picture of (m, c, h, w) blurred with its own deviation, (m,) in pixels, edges repeated."""
    m, c, h, w = x.shape
    out = x
    for axis, size in ((2, h), (3, w)):
        reach = size - 1
        offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]).square())
        kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
        shape = (m * c, 1, -1, 1) if axis == 2 else (m * c, 1, 1, -1)
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        padded = F.pad(out.reshape(1, m * c, h, w), pad, mode="replicate")
        out = F.conv2d(padded, kernel.reshape(shape), groups=m * c).reshape(m, c, h, w)
    return out


def _bounds(run: Run) -> tuple[Tensor, Tensor]:
    if run.space.bounds is None:
        raise InputError(f"this corruption goes to the victim's bounds; {run.victim.name!r} declares none")
    return run.space.bounds.lo, run.space.bounds.hi
