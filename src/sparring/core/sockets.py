"""A socket for `http.client` on which no wait outlasts a clock, however slowly the other end answers."""

from __future__ import annotations

import io
import socket
from typing import Any, Protocol


class Clock(Protocol):
    """What says how much time is left."""

    def left(self) -> float:
        """Seconds left, or TimeoutError."""
        ...


class TimedSocket:
    """What `http.client` needs of a socket, under one clock; the socket itself is closed by whoever opened it."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._sock, self._clock = sock, clock

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        """A reader whose every read may take no longer than what is left."""
        return io.BufferedReader(_Timed(self._sock, self._clock))

    def sendall(self, data: Any) -> None:
        """Send everything within what is left."""
        self._sock.settimeout(self._clock.left())
        self._sock.sendall(data)

    def close(self) -> None:
        """Leave the socket open: `http.client` lets go of it before the body is read."""


class _Timed(io.RawIOBase):
    """A socket's bytes, where each read may take no longer than what the clock has left."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._sock, self._clock = sock, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._clock.left())
        return self._sock.recv_into(buffer)
