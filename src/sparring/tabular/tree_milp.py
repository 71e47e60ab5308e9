"""The exact smallest change of a row that fools a tree ensemble, as an attack."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparring.core.attack import Attack
from sparring.core.errors import ThreatError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access, Targeted, Untargeted
from sparring.tabular.ensemble import TreeEnsemble


@dataclass
class Rows:
    """The rows, those already solved replaced by their nearest adversarial ones."""

    x: Tensor


@attack(
    Card(
        name="tree-milp",
        title="The smallest Linf change that fools a tree ensemble, exactly, by mixed-integer programming",
        paper="Kantchelian et al. 2016, Evasion and Hardening of Tree Ensemble Classifiers, arXiv:1509.07892",
        access=Access.GRADIENTS,
        needs=("trees",),
        spaces=("linf",),
        minimal=True,
        cost="no query; some integer programmes per row, fast for tens of trees and slow for hundreds",
        domains=("table",),
        caveats="With time_limit an answer may be an upper bound only, and how good it is depends on the machine.",
        floor={"linf": 0.2},
    )
)
@dataclass(frozen=True, kw_only=True)
class TreeMILP(Attack):
    """Proves, row by row, how small a change flips the ensemble's label (see `sparring.tabular.minimal_change`).

    The victim must offer its trees: a `TreeVictim`. A row that survives cannot be flipped within the bounds (and eps),
    unless time ran out.

    Args:
        time_limit: seconds per row; None takes as long as the proof needs.
        tolerance: a lead smaller than this fraction of the largest step that a leaf makes may be taken for a tie.
    """

    time_limit: float | None = None
    tolerance: float = 1e-6

    def search(self, run: Run) -> None:
        """Solve one row after the other."""
        from sparring.tabular.kantchelian import minimal_change

        trees = _as_seen(run.victim.capability("trees"), run.x)
        if run.space.lattice is not None:
            raise ThreatError(
                f"tree-milp moves real numbers; {run.space!r} has a lattice, on which its minimum is none"
            )
        bounds = None
        if run.space.bounds is not None:
            lo, hi = run.space.bounds.lo, run.space.bounds.hi
            bounds = lo.double().numpy(), hi.double().numpy()
        s = run.begin(Rows(run.x.clone()))
        for _ in run.steps(len(run.rows)):
            found = minimal_change(
                trees,
                s.x[0].double().numpy(),
                int(run.y[0]),
                target=_target(run),
                bounds=bounds,
                time_limit=self.time_limit,
                tolerance=self.tolerance,
            )
            if found.x_adv is not None:
                s.x = torch.cat([torch.as_tensor(found.x_adv).to(s.x)[None], s.x[1:]])
            run.give_up(torch.arange(len(s.x)) == 0)


def _as_seen(trees: TreeEnsemble, x: Tensor) -> TreeEnsemble:
    """The ensemble as rows of x's precision meet it: float32 rows can stand only on float32 numbers.

    Replacing the precision of the inputs leaves every label of such rows as it is and moves the cuts onto such numbers.
    """
    coarser = x.dtype == torch.float32 and trees.inputs == "float64"
    return replace(trees, inputs="float32") if coarser else trees


def _target(run: Run) -> int | None:
    """The first active row's target, or None for any other label."""
    if isinstance(run.goal, Targeted):
        return int(run.goal.of(run.y)[0])
    if isinstance(run.goal, Untargeted):
        return None
    raise ThreatError(
        f"tree-milp leads from label to label; the goal is {run.goal!r}: use Untargeted() or Targeted(label)"
    )
