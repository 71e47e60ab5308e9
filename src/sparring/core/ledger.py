"""What a run writes down about its samples, and how an attack's own state shrinks with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparring.core.batch import Batch, own, pick, put, take
from sparring.core.errors import InputError

# A success that costs more than the best one by this share is a spare, and gives way to another when it costs so much more.
APART, STALE = 1e-3, 0.05


@dataclass
class Ledger:
    """What the run knows about all n samples of its batch, decided or not.

    Attributes:
        found: bool (n,).
        best: the best success of each sample, or its original.
        best_cost: (n,), infinite where nothing is found.
        given_up: bool (n,).
        forwards, backwards: int64 (n,).
        spare: an earlier success of each sample; None for a ledger that keeps none.
        spare_cost: (n,), infinite where there is none.
        changed: set by whatever may decide a sample, and cleared by who has looked.
    """

    found: Tensor
    best: Batch
    best_cost: Tensor
    given_up: Tensor
    forwards: Tensor
    backwards: Tensor
    spare: Batch | None
    spare_cost: Tensor
    changed: bool = True

    @classmethod
    def open(cls, x: Batch, device: torch.device, *, spares: bool = False) -> Ledger:
        """A ledger with nothing found yet.

        Args:
            x: the originals.
            device: of what is noted.
            spares: keep a success beside each best one, for searches that cannot tell how sure a success is.
        """
        n = len(x)
        zeros = torch.zeros(n, dtype=torch.int64, device=device)
        no = torch.zeros(n, dtype=torch.bool, device=device)
        cost, spare = torch.full((n,), torch.inf, dtype=torch.float32, device=device), own(x) if spares else None
        return cls(no, own(x), cost, no.clone(), zeros, zeros.clone(), spare, cost.clone())

    def record(self, candidates: Batch, cost: Tensor, owner: Tensor, *, nearest: bool) -> None:
        """Keep the successes among several candidates of any samples.

        Args:
            candidates: successes, one row each.
            cost: what each costs, (m,).
            owner: the sample each belongs to, int64 (m,).
            nearest: of several candidates of one sample the nearest counts, else the first.
        """
        cost = cost.to(self.best_cost.dtype)
        index = (cost < self.best_cost[owner]).nonzero().squeeze(1)
        if len(index) > 1 and bool((owner[index][1:] <= owner[index][:-1]).any()):  # several of one sample
            if nearest:
                index = index[cost[index].argsort(stable=True)]
            index = index[owner[index].argsort(stable=True)]
            first = torch.ones_like(index, dtype=torch.bool)
            first[1:] = owner[index][1:] != owner[index][:-1]
            index = index[first]
            chosen = take(candidates, index)
        else:
            chosen = pick(candidates, index)
        rows = owner[index]
        if self.spare is not None:
            before = self.best_cost[rows]
            stale = self.spare_cost[rows] > (1 + STALE) * before
            old = rows[self.found[rows] & stale & (before > (1 + APART) * cost[index])]
            put(self.spare, old, take(self.best, old))
            self.spare_cost[old] = self.best_cost[old]
        put(self.best, rows, chosen)
        self.best_cost[rows] = cost[index]
        self.found[rows] = True
        self.changed = True

    def overrule(self, rows: Tensor, points: Batch, cost: Tensor) -> None:
        """Put other successes, one for each of these samples, in the place of what stands there, nearer or not."""
        put(self.best, rows, points)
        self.best_cost[rows] = cost
        self.changed = True

    def give_up(self, rows: Tensor) -> None:
        """End these samples, found or not."""
        self.given_up[rows] = True
        self.changed = True

    def begin_again(self) -> None:
        """What was given up is taken up again."""
        self.given_up.zero_()
        self.changed = True


def select_fields(state: Any, index: Tensor, m: int) -> None:
    """Index-select every tensor of a state dataclass in place; nested dataclasses and lists as well."""
    if state is None:
        return
    for f in dataclasses.fields(state):
        value = getattr(state, f.name)
        setattr(state, f.name, _select(value, index, m, f.name))


def _select(value: Any, index: Tensor, m: int, name: str) -> Any:
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] != m:
            raise InputError(
                f"state field {name!r} has shape {tuple(value.shape)}; "
                f"the leading dimension must be the {m} active samples"
            )
        return value[index]
    if isinstance(value, list):  # of per-sample tensors, or one item per sample
        tensors = any(isinstance(v, Tensor) for v in value)
        return [_select(v, index, m, name) for v in value] if tensors or len(value) != m else take(value, index)
    if isinstance(value, tuple):
        return tuple(_select(v, index, m, name) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        select_fields(value, index, m)
    return value
