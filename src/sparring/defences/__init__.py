"""Floor 3: one defence per file; importing this room registers them all."""

from sparring.defences import detectors, inputs, training

__all__ = ["detectors", "inputs", "training"]
