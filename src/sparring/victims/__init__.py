"""The victims' room: models by name, file or object, with their normalisation, labels and the pictures they take."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparring.victims.loading import BARE_NAMES, load, load_default, model_choices, picture_mode
from sparring.victims.spec import InputSpec, LoadedVictim, LoadOptions

if TYPE_CHECKING:
    from sparring.victims.http import HTTPVictim as HTTPVictim
    from sparring.victims.onnx import ONNXVictim as ONNXVictim
    from sparring.victims.sklearn import SklearnVictim as SklearnVictim

__all__ = [
    "BARE_NAMES",
    "HTTPVictim",
    "InputSpec",
    "LoadOptions",
    "LoadedVictim",
    "ONNXVictim",
    "SklearnVictim",
    "load",
    "load_default",
    "model_choices",
    "picture_mode",
]


# Imported when first used: each brings along what most victims do not need.
_LATER = {
    "HTTPVictim": "sparring.victims.http",
    "ONNXVictim": "sparring.victims.onnx",
    "SklearnVictim": "sparring.victims.sklearn",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'sparring.victims' has no attribute {name!r}")
