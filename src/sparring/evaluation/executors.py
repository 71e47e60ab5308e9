"""Executors run units of work: in this process here, on a Ray cluster in `cluster`. Only the caller writes the
store.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from sparring.core.errors import InputError, UnknownNameError
from sparring.core.victim import BaseVictim
from sparring.evaluation.units import Job, UnitResult, run_unit


class Executor(Protocol):
    """Runs jobs, in any order and on any worker; a job's result does not depend on either.

    Attributes:
        name: what the store notes.
        workers: how many jobs run at once.
    """

    name: str
    workers: int

    def open(self, victim: BaseVictim) -> None:
        """Make ready to run jobs on this victim."""
        ...

    def submit(self, job: Job) -> None:
        """Take a job; it need not have begun when this returns."""
        ...

    def next(self) -> tuple[UnitResult, str]:
        """Wait for any submitted job: its result, and which worker ran it. Raises what the job raised."""
        ...

    def close(self) -> None:
        """Drop what is still submitted and let the workers go."""
        ...


class LocalExecutor:
    """One job after another, in this process."""

    name = "local"
    workers = 1

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._victim: BaseVictim | None = None

    def open(self, victim: BaseVictim) -> None:
        """Keep the victim."""
        self._victim = victim

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._jobs.append(job)

    def next(self) -> tuple[UnitResult, str]:
        """Run the oldest job."""
        if self._victim is None:
            raise InputError("this executor has no victim yet; call open(victim) first")
        return run_unit(self._victim, self._jobs.popleft()), "local"

    def close(self) -> None:
        """Forget the queue."""
        self._jobs.clear()
        self._victim = None


def make_executor(executor: Executor | str) -> Executor:
    """An executor from its name, "local", "ray" or "ray:8" (eight workers), or the executor itself.

    Raises:
        UnknownNameError: no such name.
        InputError: a number of workers that is none.
    """
    if not isinstance(executor, str):
        return executor
    name, _, count = executor.partition(":")
    if name == "local" and not count:
        return LocalExecutor()
    if name == "ray":
        from sparring.evaluation.cluster import RayExecutor

        if count and not (count.isdigit() and int(count)):
            raise InputError(
                f"executor is {executor!r}; after the colon stands the number of workers, for example ray:8"
            )
        return RayExecutor(workers=int(count) if count else None)
    raise UnknownNameError.among("executor", executor, ("local", "ray"))
