"""The picture room: from a path, a URL, an array or a PIL image to the victim's pixels, and back to a lossless file; and
what a legal change of a picture is beyond the norms: geometry, colour, common corruptions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparring.images.files import from_tensor, open_picture, read_back, to_tensor, write_png
from sparring.images.preprocess import IMAGENET, IMAGENET_MEAN, IMAGENET_STD, Preprocess, from_processor

if TYPE_CHECKING:
    from sparring.images.colours import ColourMap, HueSaturation
    from sparring.images.corruptions import Corruptions, corrupt, corruption_table
    from sparring.images.warps import Flow, Rotations

# Imported when they are first used: most who open a picture change none.
_CHANGES = {
    "ColourMap": "colours",
    "Corruptions": "corruptions",
    "Flow": "warps",
    "HueSaturation": "colours",
    "Rotations": "warps",
    "corrupt": "corruptions",
    "corruption_table": "corruptions",
}

__all__ = [
    "IMAGENET",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ColourMap",
    "Corruptions",
    "Flow",
    "HueSaturation",
    "Preprocess",
    "Rotations",
    "corrupt",
    "corruption_table",
    "from_processor",
    "from_tensor",
    "open_picture",
    "read_back",
    "to_tensor",
    "write_png",
]


def __getattr__(name: str) -> Any:
    """The spaces of changes, from their modules."""
    if name in _CHANGES:
        return getattr(importlib.import_module(f"sparring.images.{_CHANGES[name]}"), name)
    raise AttributeError(f"module 'sparring.images' has no attribute {name!r}")
