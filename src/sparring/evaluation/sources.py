"""Victims and data by name, as plans and the command line give them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparring.core.errors import InputError, LoadError, SparringError, UnknownNameError
from sparring.core.victim import BaseVictim
from sparring.evaluation.data import Data, Part, as_data

PYTHON = "python:"
DATA_CHOICES = (
    "digits, digits-train, FILE.npz or FILE.safetensors with arrays x and y, mnist:FOLDER, a folder of pictures with "
    "one subfolder per class, or python:package.module:function"
)


def load_victim(name: str, **options: Any) -> BaseVictim:
    """A victim by name: everything that `sparring.load` takes, and "python:package.module:name".

    Args:
        name: see above; the named Python object is a victim, or a function that returns one.
        options: of `sparring.load`, or of that function.

    Raises:
        LoadError: what the name means cannot be had.
    """
    if name.startswith(PYTHON):
        found = _python_object(name, options)
        if not isinstance(found, BaseVictim):
            raise LoadError(
                f"{name!r} gave a {type(found).__name__}; a sparring victim is needed: sparring.Victim(net, ...)"
            )
        return found
    from sparring.victims import load

    return load(name, **options)


def load_data(name: str, victim: BaseVictim | None = None, *, samples: int | None = None, **options: Any) -> Data:
    """Labelled samples by name.

    Args:
        name: "digits" or "digits-train", the embedded pictures; an .npz or .safetensors file with inputs x and labels y
            (uint8 pictures, also with channels last, become k/255 with channels first); "mnist:FOLDER"; a folder of
            pictures with one subfolder per class; "python:package.module:name", a pair (x, y), a dataset, or a function
            that returns one.
        victim: for folders of pictures: whose preprocessing and label names hold.
        samples: take only the first so many.
        options: of the loader that the name means.

    Raises:
        LoadError, UnknownNameError: what the name means cannot be had.
        InputError: options or a number of samples that make no sense.
    """
    data = _find(name, victim, options)
    data.name = name
    if samples is None or samples >= len(data):
        return data
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError(f"samples is {samples!r}; a whole number >= 1 is needed")
    return Part(data, torch.arange(samples))


def _find(name: str, victim: BaseVictim | None, options: dict[str, Any]) -> Data:
    if name.startswith(PYTHON):
        return as_data(_python_object(name, options))
    try:
        if name in ("digits", "digits-train"):
            from sparring.data import load_digits

            return Data(*load_digits("train" if name == "digits-train" else "test", **options))
        if name.startswith("mnist:"):
            from sparring.data import load_mnist

            return Data(*load_mnist(name.removeprefix("mnist:"), **options))
        if options:
            raise InputError(f"the data {name!r} take no options; {', '.join(sorted(options))} came")
    except TypeError as cause:
        raise InputError(f"the data {name!r} do not take these options: {cause}") from cause
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return _arrays(path, _read_npz(path))
    if path.suffix == ".safetensors":
        return _arrays(path, _read_safetensors(path))
    if path.is_dir():
        from sparring.evaluation.folders import PictureFolder

        return PictureFolder(path, victim)
    raise UnknownNameError.among("data", name, ("digits", "digits-train"), f"Give {DATA_CHOICES}.")


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {
                key: torch.from_numpy(np.ascontiguousarray(stored[key])) for key in stored.files if key in ("x", "y")
            }
    except (OSError, ValueError, EOFError) as cause:
        raise LoadError(f"{str(path)!r} cannot be read as an npz file of plain arrays: {cause}") from cause


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as cause:
        raise LoadError(f"{str(path)!r} cannot be read as a safetensors file: {cause}") from cause


def _arrays(path: Path, found: dict[str, Any]) -> Data:
    """Inputs and labels of a file; 8-bit pictures with channels last, or without a channel, get channels first."""
    if not {"x", "y"} <= set(found):
        raise LoadError(
            f"{str(path)!r} holds {', '.join(sorted(found)) or 'nothing'}; it needs x (inputs) and y (labels)"
        )
    x = found["x"]
    if x.dtype == torch.uint8 and x.ndim == 3:
        x = x[:, None]
    elif x.dtype == torch.uint8 and x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2)
    return Data(x, found["y"])


def _python_object(name: str, options: dict[str, Any]) -> Any:
    """What "python:package.module:name" names, called with the options where it is a function.

    Raises:
        LoadError: no such module or name, or the function failed.
    """
    module, _, attribute = name.removeprefix(PYTHON).partition(":")
    if not module or not attribute:
        raise LoadError(f"{name!r} is not of the form python:package.module:name")
    try:
        found = getattr(importlib.import_module(module), attribute)
        return found(**options) if callable(found) and not isinstance(found, (BaseVictim, Data)) else found
    except SparringError:
        raise
    except Exception as cause:
        raise LoadError(f"{name!r} cannot be had: {type(cause).__name__}: {cause}") from cause
