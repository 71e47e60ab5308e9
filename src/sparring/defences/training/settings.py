"""How a network is trained: epochs, batches, optimiser, learning rate, patience; and on what."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.core.errors import UnknownNameError
from sparring.defences.inputs.base import above, whole
from sparring.defences.training.schedules import SCHEDULES

OPTIMISERS = ("adam", "sgd")
ACCELERATORS = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is trained.

    Args:
        epochs: passes over the training set.
        batch_size: samples per step.
        lr: the highest learning rate.
        schedule: "cyclic", "cosine", "steps" or "constant".
        optimiser: "adam", or "sgd" with momentum .9.
        weight_decay: of the optimiser.
        patience: epochs without a better PGD accuracy (clean accuracy where the method crafts nothing) after which
            training stops; None never stops.
        held_out: samples at the end of the training set that are kept back for probes where no validation set comes.
        accelerator: "cpu", "cuda", "mps", or "auto" for the best there is; None stays where the network is.
        devices: processes, one to a device, or sharing the cores of the CPU; each takes its part of every batch. Batch
            normalisation sees the parts.
        precision: "32-true" for the network's own, "bf16-mixed" or, on GPUs, "16-mixed". Crafting and probes keep the
            network's own (an attack with `precision="bfloat16"` does not).
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 5e-3
    schedule: str = "cyclic"
    optimiser: str = "adam"
    weight_decay: float = 0.0
    patience: int | None = None
    held_out: int = 500
    accelerator: str | None = None
    devices: int = 1
    precision: str = "32-true"

    def __post_init__(self) -> None:
        whole(self.epochs, "epochs", 1)
        whole(self.batch_size, "batch_size", 1)
        whole(self.held_out, "held_out", 0)
        above(self.lr, "lr", 0.0)
        if self.optimiser not in OPTIMISERS:
            raise UnknownNameError.among("optimiser", self.optimiser, OPTIMISERS)
        if self.schedule not in SCHEDULES:
            raise UnknownNameError.among("schedule", self.schedule, SCHEDULES)
        if self.patience is not None:
            whole(self.patience, "patience", 1)
        if self.accelerator is not None and self.accelerator not in ACCELERATORS:
            raise UnknownNameError.among("accelerator", self.accelerator, ACCELERATORS)
        whole(self.devices, "devices", 1)
        if self.precision not in PRECISIONS:
            raise UnknownNameError.among("precision", self.precision, PRECISIONS)
