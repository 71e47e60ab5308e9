"""The mixed-integer programme over a neighbourhood of linear regions, solved by HiGHS."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sparring.attacks.regions.pieces import Forms, Neighbourhood

if (
    TYPE_CHECKING
):  # scipy's solvers take longer to import than all other attacks together: they come with the first programme
    from scipy.sparse import csr_array

# The best gain is at most half as large again as the one taken: a closer proof costs more than the next programme finds.
GAP = 0.5
# Slopes below this are rounding of the forward pass.
NEGLIGIBLE = 1e-7


def best_shift(hood: Neighbourhood, winner: int, losers: Sequence[int], nodes: int) -> Tensor | None:
    r"""The variables of `hood` at which the winner leads by most, or None where no better point was found.

    .. math:: \max_{v, b, m} m \quad\text{s.t.}\quad m \le F_w(v) - F_l(v) - m_0 \;\; \forall l, \qquad
        z \ge a(v),\; z \le a(v) - \underline a (1 - b),\; 0 \le z \le \overline a b

    with m_0 the lead at the point itself, a the input and z the output of each unit that chooses its side b, and every
    other unit on its side (Tjeng et al. 2019). Without such units it is a linear programme.

    Args:
        hood: the regions.
        winner: the class to raise.
        losers: the classes that it must lead.
        nodes: of branch and bound, at most.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    v = len(hood.least)
    chosen = sum(len(choice.least) for choice in hood.choices)
    table = _Table(v + chosen + 1)  # the variables, one binary per choosing unit, and the gain
    for kept in hood.kept:
        table.add(_matrix(kept), -_numbers(kept.constant))
    z, b = v - chosen, v
    for choice in hood.choices:
        least, most, at = _numbers(choice.least), _numbers(choice.most), _numbers(choice.inputs.constant)
        inputs = table.widen(_matrix(choice.inputs))
        outputs, sides = (table.pick(first, len(least)) for first in (z, b))
        table.add(outputs - inputs, at)
        # divided by their bounds: rounding a binary by the solver's tolerance must not break a row by more than that
        down, up = (1.0 / np.maximum(1.0, np.abs(bound)) for bound in (least, most))
        table.add((inputs - outputs + sides * least[:, None]) * down[:, None], (least - at) * down)
        table.add((sides * most[:, None] - outputs) * up[:, None], np.zeros(len(least)))
        z, b = z + len(least), b + len(least)
    lead = Forms(*(part[winner] - part[list(losers)] for part in (hood.scores.constant, hood.scores.slopes)))
    at, now = _numbers(lead.constant), float(hood.here[winner] - hood.here[list(losers)].max())
    table.add(table.widen(_matrix(lead)) - table.pick(np.full(len(at), v + chosen)), now - at)
    cost = np.zeros(v + chosen + 1)
    cost[-1] = -1.0
    least = np.concatenate([_numbers(hood.least), np.zeros(chosen), [-np.inf]])
    most = np.concatenate([_numbers(hood.most), np.ones(chosen), [np.inf]])
    whole = np.zeros(v + chosen + 1)
    whole[v : v + chosen] = 1
    with _solver_to_stderr():
        found = milp(
            cost,
            integrality=whole,
            bounds=Bounds(least, most),
            constraints=LinearConstraint(*table.rows()),
            # presolving takes longer here than what it saves
            options={"node_limit": nodes, "mip_rel_gap": GAP, "presolve": False},
        )
    if found.x is None or found.x[-1] <= 0:
        return None
    return torch.as_tensor(found.x[:v]).to(hood.least)


@contextlib.contextmanager
def _solver_to_stderr() -> Iterator[None]:
    """What HiGHS writes to the process's standard output goes to standard error: one of its lines no option silences."""
    try:
        kept = os.dup(1)
    except OSError:  # a process without a standard output
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        with contextlib.suppress(OSError, TypeError, AttributeError):  # where the C library has no such name
            ctypes.CDLL(None).fflush(None)  # what still lies in its buffer would come out after the switch back
        os.dup2(kept, 1)
        os.close(kept)


class _Table:
    """Rows A v >= r of a programme with `width` columns, gathered block by block."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._blocks: list[csr_array] = []
        self._least: list[np.ndarray] = []

    def widen(self, block: csr_array) -> csr_array:
        """The block with zeros for the columns that it does not have."""
        block.resize((block.shape[0], self.width))
        return block

    def pick(self, first: int | np.ndarray, count: int = 0) -> csr_array:
        """Rows that each pick one column: `count` from `first` on, or the columns `first`."""
        from scipy.sparse import csr_array

        columns = first if isinstance(first, np.ndarray) else np.arange(first, first + count)
        n = len(columns)
        return csr_array((np.ones(n), (np.arange(n), columns)), shape=(n, self.width))

    def add(self, block: csr_array, least: np.ndarray) -> None:
        """Demand block v >= least."""
        self._blocks.append(self.widen(block.copy()))
        self._least.append(least)

    def rows(self) -> tuple[csr_array, np.ndarray]:
        """All rows, and what each must reach."""
        from scipy.sparse import vstack

        return vstack(self._blocks, format="csr"), np.concatenate(self._least)


def _numbers(values: Tensor) -> np.ndarray:
    return np.asarray(values.double().cpu().numpy())


def _matrix(forms: Forms) -> csr_array:
    from scipy.sparse import csr_array

    slopes = forms.slopes
    return csr_array(_numbers(slopes.masked_fill(slopes.abs() < NEGLIGIBLE, 0.0)))
