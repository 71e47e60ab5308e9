"""The run folder: `run.json`, `evidence.sqlite` and `adversarial/*.safetensors`, safe against a crash at any moment.

A unit's adversarial inputs are written, forced to the disk and renamed before its rows are committed, all of them in
one transaction. What a crash leaves behind is a file without a row, which the next writer removes.

run.json
    format, version, created, sparring, plan (nested, as in TOML), plan_digest, victim {name, fingerprint, classes,
    labels, traits, bounds}, data {name, count, fingerprint, shape}, seed, versions {python, torch, numpy, platform}

evidence.sqlite
    samples   sample (position in the data, key), id, shard, label, predicted, confidence, correct, accepted
              one row per sample, written by the clean pass (step 0)
    units     (step, shard) key, label, role, eps, met, broke, forwards, backwards, queries, file, digest, seconds,
              finished, worker; a row means that the unit is finished
    evidence  (sample, step) key, outcome (core.result.Outcome), distance, radius, queries, forwards, backwards,
              predicted, confidence, row; one row per sample that the step met. `radius` is the smallest radius at
              which this row proves the sample broken, NULL where it proves nothing; `row` is the place of its
              adversarial input in the unit's file, NULL where there is none
    checks    number key, name, result, measured, threshold, says, next_step, taints, forwards, backwards, seconds,
              details (JSON)
    sessions  session key, started, ended, how ("finished", "interrupted", "failed: ..."), executor, workers,
              batch_size, seconds: one row per process that worked on the run
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparring.core.errors import SparringError
from sparring.evaluation.errors import StoreError
from sparring.evaluation.findings import Finding
from sparring.evaluation.header import FORMAT, RUN_FILE, VERSION, now, read_header, same_run
from sparring.evaluation.intervals import widened
from sparring.evaluation.lock import WriterLock
from sparring.evaluation.plan import Step
from sparring.evaluation.shards import PART, write_file, write_shard
from sparring.evaluation.units import Unit, UnitResult

EVIDENCE_FILE, INPUTS_FOLDER, LOCK_FILE = "evidence.sqlite", "adversarial", "writer.lock"

SCHEMA = """
CREATE TABLE IF NOT EXISTS samples(
    sample INTEGER PRIMARY KEY, id INTEGER NOT NULL, shard INTEGER NOT NULL, label INTEGER NOT NULL,
    predicted INTEGER NOT NULL, confidence REAL, correct INTEGER NOT NULL, accepted INTEGER);
CREATE TABLE IF NOT EXISTS units(
    step INTEGER NOT NULL, shard INTEGER NOT NULL, label TEXT NOT NULL, role TEXT NOT NULL, eps REAL,
    met INTEGER NOT NULL, broke INTEGER NOT NULL, forwards INTEGER NOT NULL, backwards INTEGER NOT NULL,
    queries INTEGER NOT NULL, file TEXT, digest TEXT, seconds REAL NOT NULL, finished TEXT NOT NULL, worker TEXT NOT
    NULL, PRIMARY KEY(step, shard)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evidence(
    step INTEGER NOT NULL, sample INTEGER NOT NULL, outcome INTEGER NOT NULL, distance REAL NOT NULL, radius REAL,
    queries INTEGER NOT NULL, forwards INTEGER NOT NULL, backwards INTEGER NOT NULL, predicted INTEGER NOT NULL,
    confidence REAL, row INTEGER, PRIMARY KEY(sample, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checks(
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, result TEXT NOT NULL, measured REAL, threshold TEXT NOT NULL,
    says TEXT NOT NULL, next_step TEXT NOT NULL, taints TEXT NOT NULL, forwards INTEGER NOT NULL,
    backwards INTEGER NOT NULL, seconds REAL NOT NULL, details TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions(
    session INTEGER PRIMARY KEY, started TEXT NOT NULL, ended TEXT, how TEXT, executor TEXT NOT NULL,
    workers INTEGER NOT NULL, batch_size INTEGER, seconds REAL);
"""
_SAMPLE_COLUMNS = ("sample", "id", "shard", "label", "predicted", "confidence", "correct", "accepted")
_EVIDENCE_COLUMNS = (
    "sample", "outcome", "distance", "radius", "queries", "forwards", "backwards", "predicted", "confidence", "row",
)  # fmt: skip


class Store:
    """The one writer of a run folder. Readers use `sparring.evaluation.evidence.Evidence`.

    Args:
        folder: where the run lives; made where it is not there.
        header: what `run.json` is to hold (see the top of this file). A folder that holds a run already must have been
            begun with the same plan, victim and data.

    Raises:
        RunMismatchError: the folder holds another run.
        StoreError: another writer, a damaged folder, a full disk.
    """

    def __init__(self, folder: str | Path, header: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        with _disk(self.folder):
            (self.folder / INPUTS_FOLDER).mkdir(parents=True, exist_ok=True)
            self._lock = WriterLock(self.folder / LOCK_FILE)
        try:
            self._begin(header)
            with _disk(self.folder):
                self._db = sqlite3.connect(self.folder / EVIDENCE_FILE, isolation_level=None, check_same_thread=False)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(f"BEGIN;{SCHEMA}COMMIT;")
            self._sweep()
        except BaseException:
            self._lock.release()
            raise
        self._session: int | None = None
        self._since = time.perf_counter()

    def _begin(self, header: Mapping[str, Any]) -> None:
        path = self.folder / RUN_FILE
        if path.exists():
            same_run(read_header(self.folder), header, self.folder)
            return
        strangers = [p.name for p in self.folder.iterdir() if p.name not in (INPUTS_FOLDER, LOCK_FILE, RUN_FILE + PART)]
        if strangers:
            raise StoreError(
                f"{str(self.folder)!r} is no run folder and holds {', '.join(sorted(strangers)[:4])}; name a new folder"
            )
        told = {"format": FORMAT, "version": VERSION, "created": now(), **header}
        with _disk(self.folder):
            write_file(path, (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())

    def _sweep(self) -> None:
        """Remove the files of units that were never committed."""
        known = {name for (name,) in self._db.execute("SELECT file FROM units WHERE file IS NOT NULL")}
        present = {p.name for p in (self.folder / INPUTS_FOLDER).iterdir()}
        missing = sorted(known - present)
        if missing:
            raise StoreError(
                f"{str(self.folder)!r} lacks {len(missing)} of its {len(known)} files of adversarial inputs, the first "
                f"being {INPUTS_FOLDER}/{missing[0]}; put them back, or begin a new run"
            )
        with _disk(self.folder):
            for name in present - known:
                (self.folder / INPUTS_FOLDER / name).unlink()
            (self.folder / (RUN_FILE + PART)).unlink(missing_ok=True)

    # -- writing -------------------------------------------------------------------------------------------------------

    def open_session(self, executor: str, workers: int, batch_size: int | None) -> None:
        """Note that this process begins to work on the run."""
        with _disk(self.folder):
            row = self._db.execute(
                "INSERT INTO sessions(started, executor, workers, batch_size) VALUES(?, ?, ?, ?)",
                (now(), executor, workers, batch_size),
            )
        self._session = row.lastrowid
        self._since = time.perf_counter()

    def finished(self) -> set[Unit]:
        """The units that need not be run again."""
        return {Unit(step, shard) for step, shard in self._db.execute("SELECT step, shard FROM units")}

    def standing(self, shard: int, step: Step, eps: float | None) -> list[int]:
        """The samples of a shard that a step meets, in data order.

        A step at the audit's eps meets what was right at first and is not broken within eps; a step of the curve at
        another radius, what is not broken within that; a search for the smallest change, everything right at first.
        """
        reach = step.eps if step.role == "curve" else eps
        query = "SELECT sample FROM samples WHERE shard = ? AND correct = 1"
        values: list[Any] = [shard]
        if step.role == "main" or reach is not None:
            within = "e.radius IS NOT NULL" if reach is None else "e.radius <= ?"
            query += (
                f" AND NOT EXISTS(SELECT 1 FROM evidence e WHERE e.sample = samples.sample AND e.step < ? AND {within})"
            )
            values += [step.index] if reach is None else [step.index, widened(reach)]
        return [sample for (sample,) in self._db.execute(query + " ORDER BY sample", values)]

    def commit(self, step: Step, result: UnitResult, worker: str = "") -> None:
        """Write a finished unit: its adversarial inputs first, then all its rows in one transaction.

        Raises:
            StoreError: the disk refused; the unit counts as never run, and nothing else is touched.
        """
        unit, columns = result.unit, result.columns
        table, names = ("samples", _SAMPLE_COLUMNS) if step.role == "clean" else ("evidence", _EVIDENCE_COLUMNS)
        with _disk(self.folder):
            file, digest = self._write_inputs(step, result)
            rows = list(zip(*(columns[name] for name in names), strict=True)) if columns else []
            places = ", ".join("?" * len(names))
            with self._transaction():
                if step.role == "clean":
                    self._db.executemany(f"INSERT INTO samples({', '.join(names)}) VALUES({places})", rows)
                else:
                    self._db.executemany(
                        f"INSERT INTO {table}(step, {', '.join(names)}) VALUES(?, {places})",
                        [(unit.step, *row) for row in rows],
                    )
                self._db.execute(
                    "INSERT INTO units VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (unit.step, unit.shard, step.label, step.role, step.eps, len(rows), result.broken,
                     result.total("forwards"), result.total("backwards"), result.total("queries"), file, digest,
                     result.seconds, now(), worker),
                )  # fmt: skip

    def write_finding(self, finding: Finding) -> None:
        """Write what a check found."""
        values = dataclasses.asdict(finding)
        values["details"] = json.dumps(values["details"])
        with _disk(self.folder), self._transaction():
            names, places = ", ".join(values), ", ".join("?" * len(values))
            self._db.execute(f"INSERT OR REPLACE INTO checks({names}) VALUES({places})", list(values.values()))

    def tally(self, eps: float | None) -> tuple[int, set[int]]:
        """How many samples the clean pass has seen, and which are wrong from the start or broken within eps."""
        ((seen,),) = self._db.execute("SELECT COUNT(*) FROM samples")
        fallen = {sample for (sample,) in self._db.execute("SELECT sample FROM samples WHERE correct = 0")}
        if eps is not None:
            query = "SELECT DISTINCT sample FROM evidence WHERE radius <= ?"
            fallen |= {sample for (sample,) in self._db.execute(query, (widened(eps),))}
        return seen, fallen

    def found(self) -> set[int]:
        """The numbers of the checks that have run."""
        return {number for (number,) in self._db.execute("SELECT number FROM checks")}

    def close(self, how: str) -> None:
        """End the session and give the folder back; a finished run's evidence becomes one plain file.

        Args:
            how: "finished", "interrupted", or "failed: ..." with the reason.
        """
        with contextlib.suppress(sqlite3.Error):  # what is committed is safe; these are notes
            if self._session is not None:
                self._db.execute(
                    "UPDATE sessions SET ended = ?, how = ?, seconds = ? WHERE session = ?",
                    (now(), how, time.perf_counter() - self._since, self._session),
                )
            if how == "finished":
                self._db.execute("PRAGMA journal_mode=DELETE")
        self._db.close()
        self._lock.release()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _write_inputs(self, step: Step, result: UnitResult) -> tuple[str | None, str | None]:
        if result.originals is None or result.adversarials is None:
            return None, None
        kept = [s for s, row in zip(result.columns["sample"], result.columns["row"], strict=True) if row is not None]
        name = f"{step.index:02d}-{step.label}-{result.unit.shard:05d}.safetensors"
        return name, write_shard(self.folder / INPUTS_FOLDER / name, kept, result.originals, result.adversarials)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn what the disk says into an error that tells what is safe and what to do."""
    try:
        yield
    except SparringError:
        raise
    except (OSError, sqlite3.Error) as cause:
        raise StoreError(
            f"the run folder {str(folder)!r} cannot be written: {cause}. Every finished unit is safe in it; make room "
            f"or mend the disk, then: sparring resume {folder}"
        ) from cause
