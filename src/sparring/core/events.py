"""Progress as events: the library emits, the command line and the web page draw; nothing here prints."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Something that happened in a run; `kind` names it."""

    kind: str


@dataclass(frozen=True)
class AttackProgress(Event):
    """Where an attack is.

    Attributes:
        attack: the attack's name.
        done: samples decided so far, over all batches.
        total: samples in the call.
        step: the current step in the current batch and restart.
        steps: how many steps that takes at most.
        standing: samples of the current batch still unbroken.
    """

    attack: str
    done: int
    total: int
    step: int
    steps: int
    standing: int


Listener = Callable[[Event], None]
_listeners: contextvars.ContextVar[tuple[Listener, ...]] = contextvars.ContextVar("sparring_listeners", default=())


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send every event inside the block to `listener` (listeners nest; each sees every event)."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def heard() -> bool:
    """Whether anyone listens: building an event costs nothing where nobody does."""
    return bool(_listeners.get())


def emit(event: Event) -> None:
    """Hand `event` to all listeners, in the order they came."""
    for listener in _listeners.get():
        listener(event)
