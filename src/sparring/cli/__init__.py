"""The command line: `sparring COMMAND`, with each family of commands in a file of its own."""

from __future__ import annotations

import importlib

# Each has a function `register(app)`. They import torch inside their commands only: `--help` must not wait for it.
FAMILIES = (
    "sparring.cli.seeing",
    "sparring.cli.catalogue",
    "sparring.cli.demo",
    "sparring.cli.audit",
    "sparring.cli.evidence",
    "sparring.cli.report",
    "sparring.cli.train",
    "sparring.cli.defend",
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code (see `sparring.cli.shell`); never a traceback unless `--debug` asks."""
    from sparring.cli.shell import run, start

    def build() -> object:
        app = start()
        for family in FAMILIES:
            importlib.import_module(family).register(app)
        return app

    return run(build, arguments)
