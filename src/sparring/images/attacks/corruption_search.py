"""Common corruptions as an adversary: every kind at every severity, the mildest first, until the victim errs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access
from sparring.images.corruptions import SEVERITIES, keyed


@dataclass
class Worn:
    """The picture, (m, c, h, w)."""

    x: Tensor


@attack(
    Card(
        name="corruptions",
        title="The worst of fifteen common corruptions",
        paper="Hendrycks and Dietterich 2019, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, "
        "arXiv:1903.12261",
        access=Access.LABELS,
        spaces=("corruptions",),
        cost="draws x kinds x severities queries at most (75 by default)",
        domains=("image",),
        caveats="The worst corruption of each picture, far below the benchmark's mean; for accuracy by kind and severity see "
        "`sparring.images.corruptions.corruption_table`. Frost is generated, not photographed.",
        floor={},
    )
)
@dataclass(frozen=True, kw_only=True)
class CorruptionSearch(Attack):
    """Corrupt by each kind at severity 1, then at 2 and so on; the first success is the mildest.

    Args:
        draws: noise patterns tried of each kind and severity.
    """

    draws: int = 1

    def search(self, run: Run) -> None:
        """Ask about one corruption after the other."""
        if self.draws < 1:
            raise InputError(f"draws is {self.draws}; at least 1 is needed")
        plan = [
            (severity, kind, draw)
            for severity in SEVERITIES
            for kind in run.space.numbers()
            for draw in range(self.draws)
        ]
        run.begin(Worn(run.x))
        for t in run.steps(len(plan)):
            severity, kind, draw = plan[t]
            run.give_up(run.space.limit < severity)
            rows = (run.space.limit >= severity).nonzero().squeeze(1)
            if not len(rows):
                continue
            theta = keyed(run.rng.fork(("draw", draw)), kind, severity)[rows]
            run.ask(run.space.render(run.x[rows], theta), None if len(rows) == len(run.x) else rows)
