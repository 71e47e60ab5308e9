"""Reading a run folder: its tables as columns, its adversarial inputs by sample. Needs no victim and no data."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparring.evaluation.errors import StoreError
from sparring.evaluation.findings import Finding
from sparring.evaluation.header import read_header
from sparring.evaluation.intervals import widened
from sparring.evaluation.plan import Plan, Step
from sparring.evaluation.shards import read_shard
from sparring.evaluation.store import EVIDENCE_FILE, INPUTS_FOLDER, SCHEMA

Columns = dict[str, NDArray[Any]]
# Rows of a table read at once: as Python's own numbers they take ten times the memory of their columns.
ROWS = 4096


@dataclass(frozen=True, eq=False)
class Evidence:
    """A snapshot of what a run folder holds.

    Attributes:
        folder: the run folder.
        header: what `run.json` holds (see `sparring.evaluation.store`).
        samples: the table `samples` as columns of equal length, by position: sample, id, shard, label, predicted
            (int64), confidence (float, NaN for none), correct (bool), accepted (bool, True where there is no detector).
        attempts: the table `evidence` as columns, by step and sample: step, sample, outcome, queries, forwards,
            backwards, predicted (int64), distance (float), radius (float, inf where nothing is proved), confidence
            (float), row (int64, -1 for none).
        units: the table `units`, one dict per finished unit, by step and shard.
        findings: what the checks found, by number.
        sessions: the table `sessions`, one dict per process.
    """

    folder: Path
    header: dict[str, Any]
    samples: Columns
    attempts: Columns
    units: list[dict[str, Any]]
    findings: list[Finding]
    sessions: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: str | Path) -> Evidence:
        """Read a run folder, finished or not; a writer may be at work in it.

        Raises:
            StoreError: no run folder, or a damaged one.
        """
        folder = Path(folder)
        header = read_header(folder)
        with _reading(folder / EVIDENCE_FILE) as db:
            samples = _columns(db, f"SELECT {', '.join(_SAMPLES)} FROM samples ORDER BY sample", _SAMPLES)
            attempts = _columns(db, f"SELECT {', '.join(_ATTEMPTS)} FROM evidence ORDER BY step, sample", _ATTEMPTS)
            units = _dicts(db, "SELECT * FROM units ORDER BY step, shard")
            checks = _dicts(db, "SELECT * FROM checks ORDER BY number")
            sessions = _dicts(db, "SELECT * FROM sessions ORDER BY session")
        findings = [Finding(**{**row, "details": json.loads(row["details"])}) for row in checks]
        return cls(folder, header, samples, attempts, units, findings, sessions)

    @cached_property
    def plan(self) -> Plan:
        """The plan of this run."""
        return Plan.from_table(self.header["plan"])

    @property
    def count(self) -> int:
        """How many samples the data have, whether the clean pass has met them or not."""
        return int(self.header["data"]["count"])

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the plan."""
        return self.plan.steps

    @property
    def shards(self) -> int:
        """How many shards the samples make."""
        return -(-self.count // self.plan.shard)

    @property
    def complete(self) -> bool:
        """Whether every unit of the plan is finished."""
        return len(self.units) == self.shards * len(self.steps)

    def radius(self, roles: tuple[str, ...] = ("main", "curve")) -> NDArray[np.float64]:
        """The smallest radius at which each sample is proved broken, (m,): 0 for clean errors, inf for none found.

        Args:
            roles: the steps whose evidence counts.
        """
        found = np.where(self.samples["correct"], np.inf, 0.0)
        steps = [s.index for s in self.steps if s.role in roles]
        chosen = np.isin(self.attempts["step"], steps)
        np.minimum.at(found, self._place(self.attempts["sample"][chosen]), self.attempts["radius"][chosen])
        return found

    def breaker(self, eps: float) -> NDArray[np.int64]:
        """The first step that broke each sample within eps, (m,): 0 for clean errors, -1 for samples still standing."""
        within = self.attempts["radius"] <= widened(eps)
        first = np.full(len(self.samples["sample"]), np.iinfo(np.int64).max)
        np.minimum.at(first, self._place(self.attempts["sample"][within]), self.attempts["step"][within])
        first[first == np.iinfo(np.int64).max] = -1
        return np.where(self.samples["correct"], first, 0)

    def attempt(self, step: int) -> Columns:
        """The rows of one step."""
        chosen = self.attempts["step"] == step
        return {name: column[chosen] for name, column in self.attempts.items()}

    def pair(self, step: int, sample: int) -> tuple[Any, Any]:
        """(original, adversarial) of a sample at a step that found one: tensors without a batch dimension, or texts.

        Raises:
            StoreError: that step found none for this sample, or the file is missing or damaged.
        """
        rows = (self.attempts["step"] == step) & (self.attempts["sample"] == sample)
        place = int(self.attempts["row"][rows][0]) if rows.any() else -1
        if place < 0:
            raise StoreError(f"step {step} of {str(self.folder)!r} holds no adversarial input for sample {sample}")
        shard = sample // self.plan.shard
        unit = next(u for u in self.units if u["step"] == step and u["shard"] == shard)
        stored = _cached_shard(self.folder / INPUTS_FOLDER / unit["file"], unit["digest"])
        # copies: a row of a tensor would keep all the file's inputs in memory
        original, adversarial = (
            one.clone() if isinstance(one, Tensor) else one
            for one in (stored["original"][place], stored["adversarial"][place])
        )
        return original, adversarial

    def closest(self, sample: int) -> int:
        """The step that holds a sample's smallest adversarial change; -1 where none does."""
        rows = (self.attempts["sample"] == sample) & (self.attempts["row"] >= 0)
        if not rows.any():
            return -1
        best = np.argmin(np.where(rows, self.attempts["radius"], np.inf))
        return int(self.attempts["step"][best])

    def _place(self, sample: NDArray[np.int64]) -> NDArray[np.intp]:
        return np.searchsorted(self.samples["sample"], sample)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, read only; an empty one where the writer was stopped before it had made its tables."""
    with contextlib.ExitStack() as open_ones:
        try:
            db = None
            if path.exists():
                db = open_ones.enter_context(
                    contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True))
                )
                db.execute("BEGIN")  # one snapshot for all tables, while a writer may be at work
            if db is None or not db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                db = open_ones.enter_context(contextlib.closing(sqlite3.connect(":memory:")))
                db.executescript(SCHEMA)
            yield db
        except sqlite3.Error as cause:
            raise StoreError(f"{str(path)!r} cannot be read: {cause}") from cause


_SAMPLES: dict[str, tuple[type, Any]] = {
    "sample": (np.int64, 0), "id": (np.int64, 0), "shard": (np.int64, 0), "label": (np.int64, 0),
    "predicted": (np.int64, 0), "confidence": (np.float64, np.nan), "correct": (np.bool_, False),
    "accepted": (np.bool_, True),
}  # fmt: skip
_ATTEMPTS: dict[str, tuple[type, Any]] = {
    "step": (np.int64, 0), "sample": (np.int64, 0), "outcome": (np.int64, 0), "distance": (np.float64, np.nan),
    "radius": (np.float64, np.inf), "queries": (np.int64, 0), "forwards": (np.int64, 0), "backwards": (np.int64, 0),
    "predicted": (np.int64, 0), "confidence": (np.float64, np.nan), "row": (np.int64, -1),
}  # fmt: skip


def _columns(db: sqlite3.Connection, query: str, kinds: dict[str, tuple[type, Any]]) -> Columns:
    parts: dict[str, list[NDArray[Any]]] = {name: [np.zeros(0, kind)] for name, (kind, _) in kinds.items()}
    cursor = db.execute(query)
    while rows := cursor.fetchmany(ROWS):
        for values, (name, (kind, default)) in zip(zip(*rows, strict=True), kinds.items(), strict=True):
            parts[name].append(np.array([default if v is None else v for v in values], dtype=kind))
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def _dicts(db: sqlite3.Connection, query: str) -> list[dict[str, Any]]:
    rows = db.execute(query)
    names = [column[0] for column in rows.description]
    return [dict(zip(names, row, strict=True)) for row in rows]


@lru_cache(maxsize=4)
def _cached_shard(path: Path, digest: str) -> dict[str, Any]:
    return read_shard(path, digest)
