"""The victims' room: models by name, file or object, with their normalisation, labels and the pictures they take."""

from __future__ import annotations

from sparring.victims.loading import BARE_NAMES, load, load_default, model_choices, picture_mode
from sparring.victims.spec import InputSpec, LoadedVictim, LoadOptions

__all__ = [
    "BARE_NAMES",
    "InputSpec",
    "LoadOptions",
    "LoadedVictim",
    "load",
    "load_default",
    "model_choices",
    "picture_mode",
]
