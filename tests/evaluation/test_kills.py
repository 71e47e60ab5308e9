"""A run killed with SIGKILL at random moments inside its units, and resumed, ends with the evidence of one never
killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.data import load_digits
from sparring.evaluation.comparing import differences
from sparring.evaluation.evidence import Evidence

KILLS = 20

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")


def plan(data: str) -> dict[str, Any]:
    """Eight units on the embedded network, most of them of a third of a second or more."""
    return {
        "audit": {"victim": "digits", "data": data, "shard": 100, "checks": False},
        "threat": {"norm": "linf", "eps": 0.1},
        "attack": [
            {"name": "pgd", "params": {"steps": 30}},
            {"name": "pgd", "params": {"steps": 40, "loss": "margin", "restarts": 2}},
        ],
        "curve": [{"name": "deepfool", "params": {"steps": 30}}],
    }


def work(folder: str, data: str, told: Connection) -> None:
    """The child: one session of the run, every unit's begin and end told as it happens."""
    import torch

    from sparring.core import events
    from sparring.evaluation import Plan, audit
    from sparring.evaluation.progress import UnitFinished, UnitStarted

    torch.set_num_threads(1)

    def tell(event: events.Event) -> None:
        if isinstance(event, (UnitStarted, UnitFinished)):
            told.send((type(event).__name__, event.step, event.shard))

    with events.listening(tell):
        audit(plan=Plan.from_table(plan(data)), run=folder)
    told.send(("End", -1, -1))


class Session:
    """A child at work on a run folder, and what it has told so far."""

    def __init__(self, context: Any, folder: Path) -> None:
        self.told, theirs = context.Pipe(duplex=False)
        data = str(folder.parent / "digits.npz")
        self.process = context.Process(target=work, args=(str(folder), data, theirs))
        self.process.start()
        theirs.close()

    def next(self, timeout: float = 60.0) -> tuple[str, int, int] | None:
        try:
            return self.told.recv() if self.told.poll(timeout) else None
        except EOFError:
            return None

    def kill(self) -> list[tuple[str, int, int]]:
        """SIGKILL, and what the child had told before it died."""
        with contextlib.suppress(ProcessLookupError):  # it ended by itself a moment ago
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        left = []
        while (message := self.next(0)) is not None:
            left.append(message)
        return left


@pytest.fixture(scope="module")
def context() -> Any:
    made = multiprocessing.get_context("forkserver")
    rooms = [f"sparring.{room}" for room in ("evaluation", "attacks", "tabular", "text", "victims.digits")]
    made.set_forkserver_preload([*rooms, "scipy.special", "torch._refs", __name__])
    return made


def committed(folder: Path) -> set[tuple[int, int]]:
    return {(unit["step"], unit["shard"]) for unit in Evidence.open(folder).units}


@pytest.mark.slow
def test_twenty_kills_inside_units_leave_the_same_evidence(context: Any, tmp_path: Path) -> None:
    x, y = load_digits()
    np.savez(tmp_path / "digits.npz", x=x[:200].numpy(), y=y[:200].numpy())
    chance = random.Random(5)
    undisturbed = Session(context, tmp_path / "whole")
    lasted: dict[tuple[int, int], float] = {}
    since = time.perf_counter()
    while (message := undisturbed.next()) is not None and message[0] != "End":
        if message[0] == "UnitStarted":
            since = time.perf_counter()
        else:
            lasted[message[1:]] = time.perf_counter() - since
    undisturbed.process.join()
    assert undisturbed.process.exitcode == 0
    assert len(lasted) == 8

    folder, kills, run = tmp_path / "killed", 0, 0
    while kills < KILLS:
        session = Session(context, folder)
        skip = chance.randrange(2)  # let some units pass, so that kills fall everywhere
        inside = None
        while (message := session.next()) is not None:
            if message[0] == "End":
                break
            if message[0] == "UnitStarted" and skip == 0:
                inside = message[1:]
                time.sleep(chance.uniform(0.0, 1.0) * lasted[inside])
                told = session.kill()
                break
            skip -= message[0] == "UnitStarted"
        if inside is None:  # this run is finished: it must be whole, and another one begins
            session.process.join()
            assert session.process.exitcode == 0
            assert differences(Evidence.open(tmp_path / "whole"), Evidence.open(folder)) == []
            run += 1
            folder = tmp_path / f"killed-{run}"
            continue
        session.process.join()
        if inside in committed(folder):
            continue  # the signal came after the unit's commit: this kill does not count
        assert ("UnitFinished", *inside) not in told
        assert session.process.exitcode == -signal.SIGKILL
        kills += 1
    last = Session(context, folder)
    while (message := last.next()) is not None and message[0] != "End":
        pass
    last.process.join()
    assert last.process.exitcode == 0
    whole, resumed = Evidence.open(tmp_path / "whole"), Evidence.open(folder)
    assert differences(whole, resumed) == []
    assert len(resumed.sessions) > 1
    known = {unit["file"] for unit in resumed.units if unit["file"]}
    assert {path.name for path in (folder / "adversarial").iterdir()} == known
