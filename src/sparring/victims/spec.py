"""What a model found by name brings along: its network, normalisation and labels, and the pictures it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from sparring.core.network import Victim


@dataclass(frozen=True)
class InputSpec:
    """The pictures that a victim takes, as plain data; the picture rooms turn it into their own preprocessing.

    Attributes:
        size: (height, width) in pixels of the victim's input, where eps is measured.
        resize: an int scales the short side to it, a pair is (height, width), None leaves the scale alone.
        resample: the filter of the resize, as Pillow calls it.
        mode: "RGB" for 3 channels, "L" for 1.
        crop: "center", or None for no crop.
    """

    size: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    resample: str = "bilinear"
    mode: str = "RGB"
    crop: str | None = "center"


@dataclass(frozen=True)
class Parts:
    """What a provider of models hands to `load`.

    Attributes:
        net: the network, from normalised inputs to class scores.
        name: what messages and reports call it.
        labels: class names, where the provider knows them.
        mean, std: per-channel normalisation of pixels in [0, 1]; None where the network does it itself.
        input: an `InputSpec`, an image processor of transformers, or None where nothing is known.
    """

    net: nn.Module
    name: str
    labels: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input: Any = None


class LoadOptions(TypedDict, total=False):
    """What `load` takes beside the model; each option goes before what the provider says.

    Attributes:
        builder: builds the network of a weights file: a function, or its place as "package.module:function".
        mean, std: per-channel normalisation of pixels in [0, 1].
        size: height and width of the victim's input in pixels; one number for a square.
        resize: the short side, or (height, width), that a picture is scaled to before the centre is cut out; without
            it, a picture is scaled to `size`.
        resample: the filter of that resize: "bilinear" (the default), "bicubic", "nearest", "lanczos", "box",
            "hamming".
        mode: "RGB" or "L" (grey).
        labels: class names in order; or a file with one name per line, or a JSON list or object of them.
        output: which part of the network's answer holds the scores (see `sparring.Victim`).
        probabilities: the network ends in a softmax or sigmoid.
        device: where the network runs, for example "cuda"; its own place where not given.
        name: what messages and reports call it.
    """

    builder: str | Callable[[], nn.Module]
    mean: Sequence[float] | float
    std: Sequence[float] | float
    size: int | tuple[int, int]
    resize: int | tuple[int, int]
    resample: str
    mode: str
    labels: Sequence[str] | Mapping[int | str, str] | str | Path
    output: str | Callable[[Any], Any]
    probabilities: bool
    device: str | torch.device
    name: str


class LoadedVictim(Victim):
    """A PyTorch victim that knows which pictures it takes.

    Attributes:
        input: an `InputSpec`, an image processor of transformers, or None where nothing is known: pictures then enter
            at their own size.
    """

    input: Any = None
