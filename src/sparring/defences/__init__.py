"""Floor 3: one defence per file; importing this room registers them all."""

from sparring.defences import detectors, inputs, training
from sparring.defences.saved import load_defended, save_defended

__all__ = ["detectors", "inputs", "load_defended", "save_defended", "training"]
