"""One writer per run folder: a lock that the operating system lets go of when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import IO

from sparring.evaluation.errors import StoreError

if os.name == "nt":
    import msvcrt

    def _take(file: IO[str]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]

else:
    import fcntl

    def _take(file: IO[str]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


class WriterLock:
    """The right to write to a folder, held until `release` or the process's end.

    The file stays behind: what it says about a holder counts only while the lock is held, so none is ever stale.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            StoreError: another process holds it; the message names it.
        """
        self._file = path.open("a+", encoding="utf-8")
        try:
            _take(self._file)
        except OSError as cause:
            with contextlib.suppress(OSError):
                self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise StoreError(
                f"{str(path.parent)!r} is being written by {holder}; wait for it to end, or stop it, and resume then"
            ) from cause
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()} on {platform.node()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let go; taking it twice is no fault."""
        self._file.close()
