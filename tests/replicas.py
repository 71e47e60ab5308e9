"""Training defences that other processes can import, for tests of training in several of them."""

from __future__ import annotations

import hashlib
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from sparring.defences.training import Crafter, Method, PGDTraining


def here() -> str:
    """A name of this process."""
    return multiprocessing.current_process().name


@dataclass(frozen=True, kw_only=True)
class Noted(PGDTraining):
    """Another method that notes in a folder, by process, a hash of the weights and the size of each step's part."""

    base: Method
    folder: str

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()
        with (Path(self.folder) / here()).open("a") as notes:
            notes.write(f"{attack.step} {digest} {len(x)}\n")
        return self.base(model, x, y, attack)


@dataclass(frozen=True, kw_only=True)
class Failing(PGDTraining):
    """Fails in every process but the first."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        if here() != "MainProcess":
            raise ValueError("the second one broke")
        return super().__call__(model, x, y, attack)
