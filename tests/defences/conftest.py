"""The embedded network, which the defences are put around."""

from __future__ import annotations

import pytest

import sparring as sp


@pytest.fixture(scope="module")
def digits() -> sp.Victim:
    victim = sp.load("digits")
    assert isinstance(victim, sp.Victim)
    return victim
