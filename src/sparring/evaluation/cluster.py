"""The Ray executor: units are shipped to the workers of a cluster, existing or local; this process writes the store."""

from __future__ import annotations

import os
import platform
from typing import Any

from sparring.core.errors import InputError, MissingDependencyError, SparringError
from sparring.core.victim import BaseVictim
from sparring.evaluation.errors import StoreError
from sparring.evaluation.units import Job, UnitResult, run_unit

# A unit whose worker died is tried so often elsewhere before the run gives up (and can be resumed).
RETRIES = 4


class RayExecutor:
    """Units as Ray tasks. A worker that is killed in the middle of a unit loses nothing: the unit runs again elsewhere.

    Args:
        workers: units at once; None takes one per `cpus` of the cluster's processors (or per `gpus` of its GPUs).
        cpus: processors, and so threads, for each unit.
        gpus: share of a GPU for each unit; the victim's device must then exist on every worker.
        address: the cluster's address; None joins the one that this process is in or that RAY_ADDRESS names, or
            starts a local one.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    name = "ray"

    def __init__(
        self, workers: int | None = None, cpus: int = 1, gpus: float = 0.0, address: str | None = None
    ) -> None:
        try:
            import ray
        except ImportError as cause:
            raise MissingDependencyError.extra("ray", "ray", "the executor 'ray'", cause) from cause
        if workers is not None and workers < 1:
            raise InputError(f"workers is {workers}; a whole number >= 1 is needed, or None")
        self._ray: Any = ray
        self._started = not self._ray.is_initialized()
        if self._started:
            local = address is None and "RAY_ADDRESS" not in os.environ
            self._ray.init(
                address=address,
                num_cpus=max(workers * cpus, 1) if local and workers is not None else None,
                include_dashboard=False if local else None,
                log_to_driver=False,
                configure_logging=False,
            )
        have = self._ray.cluster_resources()
        room = int(have.get("GPU", 0) / gpus) if gpus else int(have.get("CPU", 1) // cpus)
        self.workers = workers or max(1, room)
        self._remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_work)
        self._victim: Any = None
        self._flying: list[Any] = []

    def open(self, victim: BaseVictim) -> None:
        """Ship the victim to the cluster once."""
        try:
            self._victim = self._ray.put(victim)
        except TypeError as cause:
            raise InputError(
                f"the victim {victim.name!r} cannot be sent to other processes ({cause}); name it in the plan, or use "
                "the local executor"
            ) from cause

    def submit(self, job: Job) -> None:
        """Hand a unit to the cluster."""
        self._flying.append(self._remote.remote(self._victim, job))

    def next(self) -> tuple[UnitResult, str]:
        """The next unit that ends, in any order.

        Raises:
            SparringError: what the unit raised.
            StoreError: the cluster lost the unit for good; the run can be resumed.
        """
        done, self._flying = self._ray.wait(self._flying, num_returns=1)
        try:
            result, worker = self._ray.get(done[0])
        except self._ray.exceptions.RayTaskError as cause:
            if isinstance(cause.cause, SparringError):
                raise cause.cause from cause
            raise
        except self._ray.exceptions.RayError as cause:
            raise StoreError(
                f"the cluster lost a unit {RETRIES + 1} times ({type(cause).__name__}); what is finished is safe: mend "
                "the cluster and resume the run"
            ) from cause
        return result, worker

    def close(self) -> None:
        """Cancel what is still flying, and end a cluster that this executor began."""
        for reference in self._flying:
            self._ray.cancel(reference, force=True)
        self._flying, self._victim = [], None
        if self._started:
            self._ray.shutdown()


def _work(victim: BaseVictim, job: Job) -> tuple[UnitResult, str]:
    """A task: one unit, and who ran it."""
    return run_unit(victim, job), f"{platform.node()}:{os.getpid()}"
