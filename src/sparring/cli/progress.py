"""The progress bar: attack events drawn with rich on a terminal's stderr, nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from sparring.core import events


@contextlib.contextmanager
def progress(wanted: bool = True) -> Iterator[None]:
    """Draw the attacks' progress inside the block, where a person can see it."""
    if not wanted or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[standing]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("looking", total=None, standing="")

        def draw(event: events.Event) -> None:
            if isinstance(event, events.AttackProgress):
                standing = (
                    f"{event.standing} standing" if event.total > 1 else f"step {event.step + 1} of {event.steps}"
                )
                bars.update(
                    task, description=event.attack, total=event.steps, completed=event.step + 1, standing=standing
                )

        with events.listening(draw):
            yield
