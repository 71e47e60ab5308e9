"""What an audit tells while it runs, as events on `sparring.core.events`; the command line and the loggers listen."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.core.events import Event
from sparring.evaluation.findings import Finding
from sparring.evaluation.intervals import Interval


@dataclass(frozen=True)
class AuditStarted(Event):
    """Work on a run begins.

    Attributes:
        folder: the run folder.
        samples: how many samples the data have.
        units: how many units the plan makes.
        done: how many of them were finished by earlier sessions.
        labels: the steps' labels, in order; the first is the clean pass.
        confidence: of the intervals that follow.
    """

    folder: str
    samples: int
    units: int
    done: int
    labels: tuple[str, ...]
    confidence: float


@dataclass(frozen=True)
class UnitStarted(Event):
    """A unit is handed to a worker.

    Attributes:
        step, shard: its address.
        label: the step's label.
        met: how many samples it meets.
    """

    step: int
    shard: int
    label: str
    met: int


@dataclass(frozen=True)
class UnitFinished(Event):
    """A unit is in the store.

    Attributes:
        step, shard: its address.
        label, role: the step's.
        met, broke: samples that it met, and broke within the step's own radius; on the curve that may be larger than the
            audit's, or without end.
        seconds: wall time of the unit.
        forwards, backwards, queries: what it spent.
        done, units: units finished so far, of how many.
        seen: samples that the clean pass has seen so far.
        standing: of those, the ones right at first and not broken so far.
        interval: of the robust accuracy so far, standing / seen.
    """

    step: int
    shard: int
    label: str
    role: str
    met: int
    broke: int
    seconds: float
    forwards: int
    backwards: int
    queries: int
    done: int
    units: int
    seen: int
    standing: int
    interval: Interval


@dataclass(frozen=True)
class CheckFinished(Event):
    """A soundness check has run.

    Attributes:
        finding: what it found.
    """

    finding: Finding


@dataclass(frozen=True)
class AuditEnded(Event):
    """Work on a run ends.

    Attributes:
        folder: the run folder.
        how: "finished", "interrupted", or "failed: ..." with the reason.
    """

    folder: str
    how: str
