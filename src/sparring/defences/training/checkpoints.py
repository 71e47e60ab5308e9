"""Checkpoints of a training: one safetensors file, replaced whole, with what a resumed run needs and nothing that
executes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparring.core.errors import InputError, LoadError

NAME = "checkpoint.safetensors"


@dataclass
class Checkpoint:
    """Where a training stands.

    Attributes:
        step: optimiser steps done.
        plan: what the training is, as text; another plan must not continue it.
        told: plain data: the epochs so far, the running loss, the best score.
        net, best: weights and buffers now, and those of the best epoch (empty where there is none).
        optimiser: the optimiser's tensors, named "parameter number.name".
        carried: the perturbation that a method carries between batches, by the rank of the process that does.
    """

    step: int
    plan: str
    told: dict[str, Any]
    net: dict[str, Tensor]
    best: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    carried: dict[str, Tensor] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the file beside the old one, to the disk, and put it in its place: a kill leaves one of the two."""
        folder.mkdir(parents=True, exist_ok=True)
        groups = {"net": self.net, "best": self.best, "optimiser": self.optimiser, "carried": self.carried}
        tensors = {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        target, fresh = folder / NAME, folder / f"{NAME}.new"
        meta = {"step": str(self.step), "plan": self.plan, "told": json.dumps(self.told)}
        save_file(tensors, fresh, metadata=meta)
        with fresh.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(fresh, target)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @classmethod
    def load(cls, folder: Path, plan: str) -> Checkpoint | None:
        """The checkpoint in a folder, or None where there is none.

        Raises:
            LoadError: a damaged file.
            InputError: the checkpoint belongs to another training.
        """
        path = folder / NAME
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as stored:
                meta = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
            found = cls(int(meta["step"]), meta["plan"], json.loads(meta["told"]), {})
        except (OSError, SafetensorError, KeyError, ValueError) as cause:
            raise LoadError(
                f"{str(path)!r} is no intact checkpoint of a training: {cause}. Remove it to begin again"
            ) from cause
        if found.plan != plan:
            raise InputError(
                f"the checkpoint in {str(folder)!r} belongs to another training ({_difference(found.plan, plan)}); "
                "give another folder, or the same settings"
            )
        for name, tensor in tensors.items():
            group, _, key = name.partition("/")
            getattr(found, group)[key] = tensor
        return found


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors; its numbers become tensors of one element."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` took."""
    whole = optimiser.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**whole, "state": state})


def _difference(old: str, new: str) -> str:
    """The first lines in which two plans differ."""
    pairs = [(a, b) for a, b in zip(old.splitlines(), new.splitlines(), strict=False) if a != b]
    return f"{pairs[0][0]} there, {pairs[0][1]} here" if pairs else "its plan is longer or shorter"
