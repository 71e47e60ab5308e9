"""The victims' room: models by name, file or object, with their normalisation, labels and the pictures they take."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparring.victims.loading import BARE_NAMES, load, load_default, model_choices, picture_mode
from sparring.victims.spec import InputSpec, LoadedVictim, LoadOptions

if TYPE_CHECKING:
    from sparring.victims.sklearn import SklearnVictim as SklearnVictim

__all__ = [
    "BARE_NAMES",
    "InputSpec",
    "LoadOptions",
    "LoadedVictim",
    "SklearnVictim",
    "load",
    "load_default",
    "model_choices",
    "picture_mode",
]


def __getattr__(name: str) -> Any:
    if name == "SklearnVictim":  # imports scikit-learn, which most victims do not need
        return importlib.import_module("sparring.victims.sklearn").SklearnVictim
    raise AttributeError(f"module 'sparring.victims' has no attribute {name!r}")
