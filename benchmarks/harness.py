"""Interleaved timing: every contender runs once a round, in turn, so that a slow minute of the machine hits all alike."""

from __future__ import annotations

import contextlib
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch


@dataclass
class Timed:
    """One contender: seconds per round, and what its last round returned."""

    name: str
    seconds: list[float] = field(default_factory=list)
    value: Any = None

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def ratio(self, base: Timed) -> tuple[float, float, float]:
        """(least, median, largest) ratio to `base`, paired round by round."""
        ratios = sorted(a / b for a, b in zip(self.seconds, base.seconds, strict=True))
        return ratios[0], statistics.median(ratios), ratios[-1]


def interleave(contenders: dict[str, Callable[[], Any]], rounds: int = 5, warmup: int = 1) -> dict[str, Timed]:
    """Time all contenders in turn, `rounds` times after `warmup` uncounted ones."""
    timed = {name: Timed(name) for name in contenders}
    for turn in range(warmup + rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            value = run()
            took = time.perf_counter() - start
            if turn >= warmup:
                timed[name].seconds.append(took)
                timed[name].value = value
    return timed


def hardware() -> str:
    """The machine and the versions in one line."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            cpu = next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{cpu}{gpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    )


def commit() -> str:
    """The commit measured, with a mark where the tree had changes beside the tables that the benchmarks write."""

    def git(*asked: str) -> str:
        return subprocess.run(["git", *asked], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/benchmarks.md")
    return (git("describe", "--always") or "unknown") + ("-dirty" if changed else "")


def bare_steps(net: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    """What no gradient attack can avoid: a forward and the gradient to the input alone, `steps` times."""
    for _ in range(steps):
        leaf = x.detach().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(net(leaf), y, reduction="sum")
        torch.autograd.grad(loss, leaf)


def peer(name: str) -> ModuleType | None:
    """A peer's module where it is installed, else None."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def foolbox_model(foolbox: ModuleType, net: torch.nn.Module) -> Any:
    """A network over [0, 1] as foolbox takes it, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """A forked global random state from a seed, for what draws from it."""
    with torch.random.fork_rng():
        torch.random.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        yield


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def spread(ratio: tuple[float, float, float]) -> str:
    """A median with its range."""
    return f"{ratio[1]:.2f} ({ratio[0]:.2f}-{ratio[2]:.2f})"
