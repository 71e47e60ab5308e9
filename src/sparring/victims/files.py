"""Networks from weight files: .safetensors, or .pt read as tensors alone, with a function that builds the network."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sparring.core.errors import InputError, LoadError, UnsafeFileError
from sparring.victims.spec import Parts

SUFFIXES = (".safetensors", ".pt", ".pth")
PICKLES = (".pkl", ".pickle", ".joblib", ".dill")

_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_NESTS = ("state_dict", "model_state_dict", "model", "net", "weights")  # where training scripts put the weights
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile put these before every name
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_PROTOCOLS = tuple(bytes([0x80, version]) for version in range(2, 6))  # how a pickle begins
_RESAVE = (
    "Where you trust the file, read it once with its own code and save the tensors: "
    "safetensors.torch.save_file(net.state_dict(), 'weights.safetensors')"
)


def split_builder(text: str) -> tuple[str, str | None]:
    """'weights.safetensors@package.module:function' in its two parts; (text, None) where no builder is named."""
    file, at, builder = text.rpartition("@")
    return (file, builder) if at and _PLACE.fullmatch(builder) else (text, None)


def open_file(path: str | Path, builder: str | Callable[[], nn.Module] | None) -> Parts:
    """The network that `builder` builds, with the weights of a file. Nothing in the file is executed.

    Args:
        path: a .safetensors file; or a .pt or .pth file that holds tensors and plain containers alone.
        builder: a function without required arguments, or its place as "package.module:function". It is the caller's
            own code and runs.

    Raises:
        LoadError: a missing or damaged file, a builder that cannot be imported or fails, or weights that do not fit.
        UnsafeFileError: a file that would execute code when it is read.
        InputError: no builder, or something that is none.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() in PICKLES:
        raise UnsafeFileError(
            f"{str(path)!r} is a pickle, which executes code when it is read, so it is not. {_RESAVE}"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise LoadError(f"{str(path)!r} is no weights file that is read here; the suffixes are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise LoadError(f"there is no file {str(path)!r}; give the path of a weights file")
    if builder is None:
        raise InputError(
            f"{str(path)!r} holds weights alone; say which function builds the network: "
            f"{path.name}@package.module:function, or load({path.name!r}, builder=function)"
        )
    state = read_state(path)
    net = build(builder)
    _fill(net, state, path)
    return Parts(net.eval(), path.stem)


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a weights file, on the CPU.

    Raises:
        LoadError: the file is damaged, or holds no named tensors.
        UnsafeFileError: the file would execute code when it is read.
    """
    shown = repr(str(path))
    if path.suffix.lower() == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as cause:
            raise LoadError(f"{shown} is no intact safetensors file: {cause}. Save or download it again") from cause
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's notes on old formats; what matters raises
            found = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 (tensors alone)
    except Exception as cause:  # torch raises a dozen kinds here, and wraps most of them
        if what := _code_in(path, cause):
            raise UnsafeFileError(
                f"{shown} holds {what} beside tensors, and code in a file is never run. {_RESAVE}"
            ) from cause
        refused = type(cause).__name__ == "UnpicklingError"
        why = "neither an archive nor a pickle of tensors" if refused else str(cause).strip().partition("\n")[0][:160]
        raise LoadError(
            f"{shown} is no intact PyTorch file ({why or 'it ends too early'}). Save or download it again"
        ) from cause
    return _named_tensors(found, shown)


def _code_in(path: Path, cause: Exception) -> str:
    """What torch refused because it would execute code, in words; empty where the file is merely damaged."""
    told = str(cause)
    if named := _GLOBAL.search(told):
        return f"code ({named[1]})"
    if "TorchScript" in told:
        return "a TorchScript program"
    with path.open("rb") as stream:
        start = stream.read(2)
    # both kinds of file that torch.save writes hold a pickle; its reader met what no tensor needs
    return "pickled objects" if type(cause).__name__ == "UnpicklingError" and start in (b"PK", *_PROTOCOLS) else ""


def build(builder: str | Callable[[], nn.Module]) -> nn.Module:
    """The network that a builder returns; the global random state stays as it was.

    Raises:
        LoadError: the builder cannot be imported, or fails.
        InputError: it is no builder, or does not return a network.
    """
    place, function = (
        (builder, _import(builder)) if isinstance(builder, str) else (getattr(builder, "__name__", "builder"), builder)
    )
    if isinstance(function, nn.Module):
        return function
    if not callable(function):
        raise InputError(
            f"the builder {place!r} is a {type(function).__name__}; a function that returns a network is needed"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            net = function()
    except Exception as cause:  # the caller's own code
        raise LoadError(
            f"the builder {place!r} raised {type(cause).__name__}: {cause}. It is called without arguments; wrap it in "
            "a function that gives them"
        ) from cause
    if not isinstance(net, nn.Module):
        raise InputError(f"the builder {place!r} returned a {type(net).__name__}; a torch.nn.Module is needed")
    return net


def _import(place: str) -> Any:
    if not _PLACE.fullmatch(place):
        raise InputError(f"the builder is {place!r}; its place is written 'package.module:function'")
    module, _, name = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as cause:  # the caller's own code runs on import
        raise LoadError(
            f"the builder's module {module!r} cannot be imported ({type(cause).__name__}: {cause}). Run this where "
            f"'import {module}' works, for example with its folder in PYTHONPATH"
        ) from cause
    for part in name.split("."):
        if not hasattr(found, part):
            raise LoadError(f"the module {module!r} has no {name!r}; give the function that builds the network")
        found = getattr(found, part)
    return found


def _named_tensors(found: Any, shown: str) -> dict[str, Tensor]:
    for key in _NESTS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping):
        raise LoadError(f"{shown} holds a {type(found).__name__}; named tensors (a state_dict) are needed")
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    if not tensors:
        raise LoadError(
            f"{shown} holds no named tensors, but the keys {_brief(list(map(str, found)))}; a state_dict is needed"
        )
    return tensors


def _fill(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    wanted = net.state_dict()
    for prefix in _WRAPPERS:
        if all(k.startswith(prefix) for k in state) and not any(k.startswith(prefix) for k in wanted):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    shapes = [
        f"{k} is {tuple(v.shape)} and not {tuple(wanted[k].shape)}"
        for k, v in state.items()
        if k in wanted and v.shape != wanted[k].shape
    ]
    problems = [f"of another shape: {_brief(shapes)}"] if shapes else []
    if not shapes:
        try:
            missing, unexpected = net.load_state_dict(state, strict=False)
        except RuntimeError as cause:
            raise LoadError(
                f"the weights {str(path)!r} do not fit the network {type(net).__name__}: {cause}"
            ) from cause
        problems += [f"missing: {_brief(missing)}"] if missing else []
        problems += [f"unexpected: {_brief(unexpected)}"] if unexpected else []
    if problems:
        raise LoadError(
            f"the weights {str(path)!r} do not fit the network {type(net).__name__}: {'; '.join(problems)}. "
            "The builder must build the network that was saved"
        )


def _brief(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
