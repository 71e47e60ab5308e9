"""What can go wrong with a run folder: another writer, another run, damage, a full disk."""

from __future__ import annotations

from sparring.core.errors import SparringError


class StoreError(SparringError, RuntimeError):
    """A run folder that cannot be written or read. Finished units are never lost by it."""


class PlanError(SparringError, ValueError):
    """A plan that cannot be right: an unknown key, a value out of range, or a step that its threat cannot take."""


class RunMismatchError(StoreError):
    """The victim, the data or the plan is not the one that the run folder was begun with."""
