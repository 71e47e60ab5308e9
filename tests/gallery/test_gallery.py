"""The gallery's scripts run as they stand, on real data, and draw what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def play(script: str, assets: Path, *arguments: str) -> str:
    """What a gallery script prints."""
    environment = {**os.environ, "SPARRING_ASSETS": str(assets), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "gallery" / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_digits_that_look_like_a_six_read_as_others(assets: Path, tmp_path: Path) -> None:
    told = play("adversarial_digits.py", assets, "--out", str(tmp_path / "digits.png")).splitlines()
    reached = {line.split(":")[0]: int(line.split(": ")[1].split(" of")[0]) for line in told if "goals reached" in line}
    assert reached["from noise"] >= 8
    assert reached["looks like this"] >= 6
    assert (tmp_path / "digits.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_walk_fools_the_photo_where_it_should(assets: Path, tmp_path: Path) -> None:
    told = play("tutorial.py", assets, "--out", str(tmp_path / "walk.png"))
    lines = {line[:30].strip(): line[30:] for line in told.splitlines()}
    assert lines["uniform noise, eps 2/255"].split()[0] == "holds"
    for fooled in ("negative image", "FGSM, eps 2/255", "DeepFool, L2"):
        assert lines[fooled].split()[0] == "fooled"
    assert "neck brace" in lines["PGD to the target, eps 4/255"]
    assert (tmp_path / "walk.png").stat().st_size > 100_000


def test_a_script_without_data_says_what_it_needs(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "SPARRING_ASSETS"}
    for script in ("adversarial_digits.py", "tutorial.py"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "gallery" / script)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 1
        assert "SPARRING_ASSETS" in done.stderr
        assert "Traceback" not in done.stderr
