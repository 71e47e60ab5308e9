"""What the tests of audits share: a small sound setting, and finished runs that many tests only read."""

from __future__ import annotations

from pathlib import Path

import pytest

import sparring as sp
import sparring.attacks.minimum_norm.fab
import tiny
from sparring.evaluation import Audit, audit

# Three attacks of different strength and a search for the smallest change, quick on the tiny network.
ATTACKS = [sp.FGSM(), sp.PGD(steps=5), sp.PGD(steps=20, loss="margin", restarts=2)]
EPS = 0.06


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """A finished audit of the tiny network on 60 pictures in shards of 16."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    data = tiny.pictures(60, seed=9)
    return audit(tiny.trained(), data, sp.Linf(EPS), attacks=ATTACKS, shard=16, checks=False, run=folder)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished audit of the embedded digits, everything in it known by name."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    audit(
        "digits", "digits", sp.Linf(0.1), attacks=["fgsm"], samples=40, shard=20, checks=False, curve=False, run=folder
    )
    return folder
