"""What was asked of a service and what it answered: an SQLite file, so that nothing is paid for twice."""

from __future__ import annotations

import json
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.core.errors import BudgetError, LoadError, VictimError
from sparring.victims.http_json import Answer
from sparring.victims.http_mapping import Budget

FORMAT = "sparring answers 1"
_WAIT = 30.0  # seconds for another process that writes
_TABLES = """
create table if not exists about (key text primary key, value text not null) without rowid;
create table if not exists answers (input text primary key, answer text not null, request integer) without rowid;
create table if not exists requests (
    id integer primary key, inputs integer not null, cost real not null, state text not null,
    sent text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
create table if not exists totals (
    one integer primary key check (one = 1), requests integer not null, queries integer not null, cost real not null
);
insert or ignore into totals values (1, 0, 0, 0.0);
"""


@dataclass(frozen=True)
class Spending:
    """What a log has seen, in all the runs that shared it.

    Attributes:
        requests: sent and not refused: answered, or without a word of what became of them.
        queries: the inputs in those.
        cost: their price, in the mapping's currency.
    """

    requests: int
    queries: int
    cost: float


class AnswerLog:
    """Answers by the hash of their input, and every request with its cost.

    A request is written before it is sent and counts until the service refuses it, so that one of which nothing more was
    heard (a crash, a timeout) is taken for paid. An answer is on the disk before anyone sees it. Several processes may
    share a log.

    Args:
        path: the file; None keeps everything in memory.
        fingerprint: of the service; a log of another one is refused.
        about: what the file says about itself, for people.

    Raises:
        LoadError: a file that is damaged, is no log, or belongs to another service or mapping.
    """

    def __init__(self, path: Path | None, fingerprint: str, about: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(
                ":memory:" if path is None else path, timeout=_WAIT, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as cause:
            raise LoadError(f"the answer log {self.shown} cannot be opened: {cause}. Its folder must exist") from cause
        self.close = weakref.finalize(self, self._db.close)
        try:
            self._open(fingerprint, about)
        except sqlite3.DatabaseError as cause:
            self.close()
            raise LoadError(
                f"the answer log {self.shown} cannot be used: {cause}. If it is damaged, what is left of it can be saved "
                "with: sqlite3 LOG .recover | sqlite3 NEW; else name another file in the mapping's log"
            ) from cause
        except LoadError:
            self.close()
            raise

    @property
    def shown(self) -> str:
        """What messages call it."""
        return "in memory" if self.path is None else repr(str(self.path))

    def _open(self, fingerprint: str, about: Mapping[str, Any]) -> None:
        named = {row[0] for row in self._db.execute("select name from sqlite_master where type = 'table'")}
        if named and not {"about", "answers", "requests", "totals"} <= named:
            raise LoadError(f"{self.shown} is a database, but no answer log; name another file in the mapping's log")
        (state,) = self._db.execute("pragma quick_check(1)").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        self._db.execute("pragma journal_mode = wal")  # a torn last write is rolled back by itself
        self._db.execute("pragma synchronous = full")
        with self._writing():
            for statement in _TABLES.split(";\n"):
                self._db.execute(statement)
            for key, value in (("format", FORMAT), ("service", fingerprint), ("mapping", json.dumps(about))):
                self._db.execute("insert or ignore into about values (?, ?)", (key, value))
        told = dict(self._db.execute("select key, value from about"))
        if told["format"] != FORMAT:
            raise LoadError(f"{self.shown} is written as {told['format']!r:.60}; this version reads {FORMAT!r}")
        if told["service"] != fingerprint:
            raise LoadError(
                f"the answer log {self.shown} belongs to another service or mapping ({_changes(told['mapping'], about)}); "
                "its answers may not hold here. Name another file in the mapping's log"
            )

    def known(self, keys: list[str]) -> dict[str, Answer]:
        """The answers that are there, by key."""
        found: dict[str, Answer] = {}
        with self._lock, self._spoken():
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = self._db.execute(f"select input, answer from answers where input in ({marks})", part)
                found.update((key, Answer(*json.loads(told))) for key, told in rows)
        return found

    def open(self, inputs: int, budget: Budget) -> int:
        """Write down a request that is about to be sent, and count it; its number.

        Raises:
            BudgetError: it would go past the cap.
        """
        cost = budget.cost(inputs)
        with self._spoken(), self._writing():
            spent = self.spent
            over = None
            if budget.max_queries is not None and spent.queries + inputs > budget.max_queries:
                over = f"max_queries = {budget.max_queries}"
            elif budget.max_cost is not None and spent.cost + cost > budget.max_cost * (1 + 1e-9):
                over = f"max_cost = {budget.max_cost:g} {budget.currency}"
            if over is None:
                self._db.execute(
                    "update totals set requests = requests + 1, queries = queries + ?, cost = cost + ?", (inputs, cost)
                )
                row = self._db.execute(
                    "insert into requests (inputs, cost, state) values (?, ?, 'sent')", (inputs, cost)
                )
                return int(row.lastrowid or 0)
        kept = (
            "The answers were kept in memory alone; with a log, the next run pays for none of them again"
            if self.path is None
            else f"Every answer is in {self.shown}: raise the cap and run the same again, and it goes on from there, "
            "paying for none of them twice"
        )
        raise BudgetError(
            f"the next request ({inputs} inputs, {cost:g} {budget.currency}) would go past {over}: so far {spent.queries} "
            f"inputs in {spent.requests} requests for {spent.cost:g} {budget.currency}. {kept}",
            spent.queries,
            spent.cost,
        )

    def refused(self, request: int) -> None:
        """The service took no request of that number: it counts no longer."""
        with self._spoken(), self._writing():
            inputs, cost = self._db.execute("select inputs, cost from requests where id = ?", (request,)).fetchone()
            self._db.execute("update requests set state = 'refused' where id = ?", (request,))
            self._db.execute(
                "update totals set requests = requests - 1, queries = queries - ?, cost = cost - ?", (inputs, cost)
            )

    def answered(self, request: int, answers: Mapping[str, Answer]) -> None:
        """Keep the answers of a request, on the disk when this returns."""
        rows = [(key, json.dumps(answer), request) for key, answer in answers.items()]
        with self._spoken(), self._writing():
            self._db.executemany("insert or replace into answers values (?, ?, ?)", rows)
            self._db.execute("update requests set state = 'answered' where id = ?", (request,))

    @property
    def spent(self) -> Spending:
        """What was asked and paid, in all the runs that shared this log."""
        with self._lock, self._spoken():
            requests, queries, cost = self._db.execute("select requests, queries, cost from totals").fetchone()
        return Spending(requests, queries, cost)

    def __len__(self) -> int:
        with self._lock, self._spoken():
            return int(self._db.execute("select count(*) from answers").fetchone()[0])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, alone among threads and processes."""
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")

    @contextmanager
    def _spoken(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, TypeError, json.JSONDecodeError) as cause:
            raise VictimError(
                f"the answer log {self.shown} failed ({cause}), and nothing is asked that cannot be written down. Check "
                "the disk, or name another file in the mapping's log"
            ) from cause


def _changes(stored: str, about: Mapping[str, Any]) -> str:
    """Which parts of a mapping differ from those that a log was begun with."""
    try:
        before = json.loads(stored)
        now = json.loads(json.dumps(about))
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    except (ValueError, AttributeError):
        changed = []
    return f"changed: {', '.join(changed)}" if changed else "a header or the address's query changed"
