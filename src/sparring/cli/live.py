"""An audit's progress: a live table on a terminal, one line per unit elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparring.cli.shell import say
from sparring.core import events

if TYPE_CHECKING:
    from sparring.evaluation.progress import UnitFinished


@contextlib.contextmanager
def showing(wanted: bool = True) -> Iterator[None]:
    """Show an audit's progress inside the block."""
    if not wanted:
        yield
        return
    if not sys.stdout.isatty():
        with events.listening(tell_line):
            yield
        return
    from rich.console import Console
    from rich.live import Live

    board = Board()
    with Live(get_renderable=board.draw, console=Console(), refresh_per_second=8, transient=True) as live:
        board.refresh = live.refresh
        with events.listening(board.take):
            yield


def tell_line(event: events.Event) -> None:
    """Print one line for an event that matters to a log."""
    from sparring.evaluation.progress import AuditStarted, CheckFinished, UnitFinished

    if isinstance(event, AuditStarted):
        done = f", {event.done} of them finished already" if event.done else ""
        say(f"{event.folder}: {event.samples:,} samples, {event.units} units{done}")
    elif isinstance(event, UnitFinished):
        head = f"[{event.done}/{event.units}] {event.label} shard {event.shard}: "
        if not event.met:
            say(f"{head}none left")
            return
        say(
            f"{head}met {event.met}, {'found' if event.role == 'curve' else 'broke'} {event.broke}, "
            f"robust {event.standing / max(1, event.seen):.1%} {event.interval} of {event.seen:,}, "
            f"{event.seconds:.1f} s, {pace(event.forwards + event.backwards, event.seconds)}"
        )
    elif isinstance(event, CheckFinished):
        say(f"check {event.finding.number} {event.finding.name}: {event.finding.result}")


def pace(passes: int, seconds: float) -> str:
    """Forward plus backward passes per second, in words."""
    return f"{passes / seconds:,.0f} passes/s" if passes and seconds > 0 else "no passes"


@dataclass
class Row:
    """One attack's line in the table."""

    units: int = 0
    met: int = 0
    broke: int = 0
    found: int = 0
    passes: int = 0
    seconds: float = 0.0
    standing: str = ""
    accuracy: str = ""
    state: str = "waiting"


@dataclass
class Board:
    """The live table: what each attack has done, and how long what is left may take."""

    rows: dict[str, Row] = field(default_factory=dict)
    shards: int = 0
    done: int = 0
    units: int = 0
    checks: list[str] = field(default_factory=list)
    current: str = ""
    began: float = field(default_factory=time.perf_counter)
    fresh: int = 0
    refresh: Any = None

    def take(self, event: events.Event) -> None:
        """Note an event."""
        from sparring.evaluation.progress import AuditStarted, CheckFinished, UnitFinished, UnitStarted

        if isinstance(event, AuditStarted):
            self.rows = {label: Row() for label in event.labels}
            self.done, self.units = event.done, event.units
            self.shards = event.units // max(1, len(event.labels))
        elif isinstance(event, UnitStarted):
            self.rows[event.label].state = "at work"
            self.current = f"{event.label}, shard {event.shard + 1} of {self.shards}"
        elif isinstance(event, UnitFinished):
            self._finish(event)
        elif isinstance(event, CheckFinished) and event.finding.result == "fail":
            self.checks.append(f"check {event.finding.number} ({event.finding.name}) failed: {event.finding.says}")
        elif isinstance(event, events.AttackProgress):
            where, _, _ = self.current.partition(": ")
            self.current = f"{where}: step {event.step + 1} of {event.steps}, {event.standing} standing in this batch"

    def _finish(self, event: UnitFinished) -> None:
        row = self.rows[event.label]
        row.units, row.met = row.units + 1, row.met + event.met
        if event.role == "curve":
            row.found += event.broke
        else:
            row.broke += event.broke
        row.passes, row.seconds = row.passes + event.forwards + event.backwards, row.seconds + event.seconds
        row.standing = f"{event.standing:,}"
        row.accuracy = f"{event.standing / max(1, event.seen):.1%} {event.interval}"
        self.done, self.fresh = event.done, self.fresh + 1
        if event.shard == self.shards - 1 or row.units == self.shards:
            row.state = "done"

    def left(self) -> str:
        """The time that is left, from the pace of this session's units; rough, since attacks differ."""
        if not self.fresh or self.done >= self.units:
            return ""
        seconds = (time.perf_counter() - self.began) / self.fresh * (self.units - self.done)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def draw(self) -> Any:
        """The table as it stands."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(
            *("attack", "done", "met", "broke", "standing", "robust accuracy so far", "passes/s"),
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for label, row in self.rows.items():
            rate = f"{row.passes / row.seconds:,.0f}" if row.passes and row.seconds else ""
            style = {"waiting": "dim", "at work": "bold"}.get(row.state, "")
            cells = (
                label,
                f"{row.units}/{self.shards}",
                f"{row.met:,}",
                f"{row.broke:,}" if not row.found else f"({row.found:,} found)",
                row.standing,
                row.accuracy,
                rate,
            )
            table.add_row(*map(Text, cells), style=style)
        lines = [Text(line, style="yellow") for line in self.checks]
        foot = ", ".join(part for part in (f"{self.done} of {self.units} units", self.current, self.left()) if part)
        return Group(table, *lines, Text(foot, style="dim"))
