"""Start-up: the help is there at once, because torch is imported by the commands that need it alone."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

_HEAVY = ("torch", "numpy", "matplotlib", "transformers", "PIL", "scipy", "sklearn", "rich.console")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["attack", "--help"], ["attack"]])
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    code = (
        "import json, sys; from sparring.cli import main; main(sys.argv[1:]); "
        f"print(json.dumps([m for m in {_HEAVY!r} if m in sys.modules]), file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert json.loads(told.stderr.splitlines()[-1]) == []


def test_the_help_takes_under_four_tenths_of_a_second() -> None:
    """Processor time, the best of three: a busy machine stretches the clock."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "sparring", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.4


def test_the_package_and_its_command_line_run_as_modules() -> None:
    for module in ("sparring", "sparring.cli"):
        told = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
        assert told.stdout.startswith("sparring ")
    told = subprocess.run([sys.executable, "-m", "sparring", "show", "nobody"], capture_output=True, text=True)
    assert told.returncode == 2
    assert "no attack is called 'nobody'" in told.stderr
