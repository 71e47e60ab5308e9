"""`run.json`: what a run folder was begun with, and whether it may be continued with what is here now."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparring.evaluation.errors import RunMismatchError, StoreError

RUN_FILE = "run.json"
FORMAT, VERSION = "sparring.run", 1


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_header(folder: str | Path) -> dict[str, Any]:
    """What `run.json` holds.

    Raises:
        StoreError: no run folder, a damaged one, or one of another version.
    """
    path = Path(folder) / RUN_FILE
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise StoreError(
            f"{str(folder)!r} is no run folder: it has no {RUN_FILE}. `sparring audit --run FOLDER` makes one"
        ) from cause
    except (OSError, ValueError) as cause:
        raise StoreError(f"{str(path)!r} cannot be read: {cause}") from cause
    if not isinstance(told, dict) or told.get("format") != FORMAT or told.get("version") != VERSION:
        raise StoreError(
            f"{str(path)!r} is no {FORMAT} of version {VERSION}; another release of sparring may have made it"
        )
    return told


def same_run(stored: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Refuse to continue a run with another plan, victim or data.

    Raises:
        RunMismatchError: what differs, and what to do.
    """
    for what, old, new in (
        ("plan", stored["plan_digest"], wanted["plan_digest"]),
        ("victim", stored["victim"]["fingerprint"], wanted["victim"]["fingerprint"]),
        ("data", stored["data"]["fingerprint"], wanted["data"]["fingerprint"]),
    ):
        if old != new:
            shown = "" if what == "plan" else f" ({stored[what]['name']!r} then, {wanted[what]['name']!r} now)"
            raise RunMismatchError(
                f"{str(folder)!r} was begun with another {what}{shown}: its fingerprint was {old[:12]} and is "
                f"{new[:12]} now. Nothing was changed. Bring back the {what} it was begun with, or name another folder"
            )
