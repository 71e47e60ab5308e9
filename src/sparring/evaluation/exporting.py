"""A run's evidence as tables for other tools: CSV, JSON lines, Parquet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sparring.core.errors import InputError, MissingDependencyError, UnknownNameError
from sparring.core.result import Outcome
from sparring.evaluation.reading import Audit

Table = Literal["samples", "attempts"]
SUFFIXES = (".csv", ".jsonl", ".parquet")


def export_table(audit: Audit, path: str | Path, table: Table = "samples") -> Path:
    """Write one table; the suffix chooses the form.

    Args:
        audit: the audit.
        path: ends in .csv, .jsonl or .parquet.
        table: "samples", one row per sample with what became of it; or "attempts", one row per sample and attack.

    Raises:
        InputError: another suffix, or a folder that does not exist.
        UnknownNameError: another table.
        MissingDependencyError: Parquet without pyarrow.
    """
    path = Path(path)
    if table not in ("samples", "attempts"):
        raise UnknownNameError.among("table", table, ("samples", "attempts"))
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot export to {path.name!r}: the suffix must be one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise InputError(f"cannot export to {str(path)!r}: the folder {str(path.parent)!r} does not exist")
    rows = sample_rows(audit) if table == "samples" else attempt_rows(audit)
    draft = path.with_name(path.name + ".part")
    _WRITERS[path.suffix.lower()](list(rows), draft)
    draft.replace(path)
    return path


def sample_rows(audit: Audit) -> Iterator[dict[str, Any]]:
    """One row per sample: its label, the clean answer, whether it stands, what broke it, the smallest known change."""
    evidence = audit.evidence
    samples, breaker, radius = evidence.samples, evidence.breaker(audit.eps), evidence.radius()
    labels = {step.index: step.label for step in evidence.steps}
    for i in range(audit.n):
        yield {
            "sample": int(samples["sample"][i]),
            "id": int(samples["id"][i]),
            "label": int(samples["label"][i]),
            "predicted": int(samples["predicted"][i]),
            "confidence": _number(samples["confidence"][i]),
            "correct": bool(samples["correct"][i]),
            "standing": bool(breaker[i] == -1),
            "broken_by": None if breaker[i] == -1 else labels[int(breaker[i])],
            "smallest_change": _number(radius[i]),
        }


def attempt_rows(audit: Audit) -> Iterator[dict[str, Any]]:
    """One row per sample and attack that met it."""
    attempts = audit.evidence.attempts
    steps = {step.index: step for step in audit.evidence.steps}
    for i in range(len(attempts["step"])):
        step = steps[int(attempts["step"][i])]
        yield {
            "sample": int(attempts["sample"][i]),
            "step": step.index,
            "attack": step.label,
            "role": step.role,
            "eps": step.eps,
            "outcome": Outcome(int(attempts["outcome"][i])).name.lower(),
            "distance": _number(attempts["distance"][i]),
            "radius": _number(attempts["radius"][i]),
            "queries": int(attempts["queries"][i]),
            "forwards": int(attempts["forwards"][i]),
            "backwards": int(attempts["backwards"][i]),
            "predicted": int(attempts["predicted"][i]),
            "confidence": _number(attempts["confidence"][i]),
        }


def _number(value: float) -> float | None:
    """None for what is not known: JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def _csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _parquet(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as cause:
        raise MissingDependencyError.extra("pyarrow", "export", "export to Parquet", cause) from cause
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


_WRITERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
