"""Defences at the input: modules from raw inputs to raw inputs, put in front of a network in any order."""

from sparring.defences.inputs.autoencoder import Autoencoder, Reformer, train_autoencoder
from sparring.defences.inputs.base import InputDefence
from sparring.defences.inputs.jpeg import JPEG, differentiable_jpeg
from sparring.defences.inputs.levels import BitDepth, Threshold
from sparring.defences.inputs.resizing import ResizePad
from sparring.defences.inputs.smoothing import Median, NonLocalMeans, TotalVariation

__all__ = [
    "JPEG",
    "Autoencoder",
    "BitDepth",
    "InputDefence",
    "Median",
    "NonLocalMeans",
    "Reformer",
    "ResizePad",
    "Threshold",
    "TotalVariation",
    "differentiable_jpeg",
    "train_autoencoder",
]
