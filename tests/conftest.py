"""What every test shares: no network, one thread for each worker, repeatable examples, and the assets folder."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

# Read when the libraries are imported, so set before: a hub call without a network hangs for up to a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import HealthCheck, settings

# No deadline and no "too slow": the first example pays for torch's start, and a shared machine is no fault of the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_sessionstart() -> None:
    """Give each worker one thread: workers that each take every core slow one another down several times."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the assets folder, so that `-m 'not assets'` leaves it out."""
    for item in items:
        if "assets" in getattr(item, "fixturenames", ()):
            item.add_marker("assets")


@pytest.fixture(scope="session")
def assets() -> Path:
    """The assets folder: public networks and data that are no part of the project."""
    named = os.environ.get("SPARRING_ASSETS")
    if not named:
        pytest.skip("SPARRING_ASSETS is not set: it names the assets folder")
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        pytest.skip(f"SPARRING_ASSETS names no folder: {named}")
    return folder


@pytest.fixture(scope="session")
def zoo(assets: Path) -> ModuleType:
    """The assets' networks and data: `zoo.load("mnist_adv")`, `zoo.data("mnist", 200)`."""
    path = assets / "zoo.py"
    if not path.is_file():
        pytest.skip(f"the assets folder has no zoo.py: {assets}")
    spec = importlib.util.spec_from_file_location("zoo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # the folder is not ours to write to
        spec.loader.exec_module(module)
    return module
