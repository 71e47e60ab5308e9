"""The command line: `sparring COMMAND`, with each family of commands in a file of its own."""

from __future__ import annotations

import importlib
import os

# oneDNN keeps compiled kernels for every shape it has met, and attacks meet every batch size as samples fall: 1,024 shapes, its
# own choice, are a hundred MiB that an audit of thousands of samples ends up with, for nothing.
KERNELS = "256"
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

    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)

    def build() -> object:
        app = start()
        for family in FAMILIES:
            importlib.import_module(family).register(app)
        return app

    return run(build, arguments)
