"""The picture room: from a path, a URL, an array or a PIL image to the victim's pixels, and back to a lossless file."""

from __future__ import annotations

from sparring.images.files import from_tensor, open_picture, read_back, to_tensor, write_png
from sparring.images.preprocess import IMAGENET, IMAGENET_MEAN, IMAGENET_STD, Preprocess, from_processor

__all__ = [
    "IMAGENET",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Preprocess",
    "from_processor",
    "from_tensor",
    "open_picture",
    "read_back",
    "to_tensor",
    "write_png",
]
