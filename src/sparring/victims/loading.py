"""Victims by name: one call that turns a name, a file, a network or a victim into a victim that knows its pictures."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, cast

from torch import nn

from sparring.core.errors import (
    InputError,
    LoadError,
    MissingDependencyError,
    SparringError,
    UnknownNameError,
)
from sparring.core.victim import BaseVictim
from sparring.victims.files import PICKLES, SUFFIXES, open_file, split_builder
from sparring.victims.huggingface import open_hub
from sparring.victims.labels import read_labels
from sparring.victims.spec import InputSpec, LoadedVictim, LoadOptions, Parts
from sparring.victims.torchvision import open_torchvision

# What people type: the name, torchvision's spelling of it, and the best-known ID on the hub (None where there is none).
BARE_NAMES: dict[str, tuple[str | None, str | None]] = {
    "alexnet": ("alexnet", None),
    "convnext_tiny": ("convnext_tiny", "facebook/convnext-tiny-224"),
    "densenet121": ("densenet121", None),
    "efficientnet_b0": ("efficientnet_b0", "google/efficientnet-b0"),
    "mobilenet_v1": (None, "google/mobilenet_v1_1.0_224"),
    "mobilenet_v2": ("mobilenet_v2", "google/mobilenet_v2_1.0_224"),
    "resnet101": ("resnet101", "microsoft/resnet-101"),
    "resnet152": ("resnet152", "microsoft/resnet-152"),
    "resnet18": ("resnet18", "microsoft/resnet-18"),
    "resnet34": ("resnet34", "microsoft/resnet-34"),
    "resnet50": ("resnet50", "microsoft/resnet-50"),
    "swin_t": ("swin_t", "microsoft/swin-tiny-patch4-window7-224"),
    "vgg16": ("vgg16", None),
    "vit": ("vit_b_16", "google/vit-base-patch16-224"),
}
DEFAULT = "resnet18"

_PICTURES = ("size", "resize", "resample", "mode")
_SCHEME = re.compile(r"([A-Za-z][\w+.-]+):(.*)", re.DOTALL)
_CHOICES = (
    "digits (embedded, 8 x 8 digits only), resnet18 or another of the known names, hf:organisation/name or hf:folder, "
    "torchvision:name, weights.safetensors@package.module:function, model.onnx, what `sparring defend` wrote, "
    "model.defended, or the mapping of a service, service.toml"
)


def load(model: Any, **options: Unpack[LoadOptions]) -> BaseVictim:
    """A victim from a name, a file, a network, or a victim.

    Args:
        model: `"digits"`, the embedded network, offline; `"hf:ID"`, an image classifier of transformers from the hub or
            a folder; `"torchvision:NAME"`; a bare name such as `"resnet18"` or `"alexnet"`, through whichever of the
            two is there; `"weights.safetensors"` or `"weights.pt"` with `builder=`, or
            `"weights.safetensors@package.module:function"`; `"model.onnx"`; `"model.defended"`, which `sparring defend`
            wrote; `"service.toml"`, the mapping of a service that answers over HTTP; a `torch.nn.Module`; or a victim,
            which passes through.
        options: see `LoadOptions`; each goes before what the model brings along.

    Returns:
        A `LoadedVictim`, with the normalisation inside, bounds [0, 1], class names where they are known, and `input`,
        the pictures that it takes; an `ONNXVictim` or an `HTTPVictim`, which can only be asked. A victim that came without
        options comes back as it is.

    Raises:
        UnknownNameError: no such model or option; the message lists close matches.
        LoadError: the model cannot be had or does not fit.
        UnsafeFileError: the file would execute code.
        MissingDependencyError: an optional package is missing or broken; the message has the install command.
        InputError: options that contradict each other or the model.

    Example:
        >>> import sparring as sp
        >>> victim = sp.load("digits")
        >>> victim.labels[:3], victim.input.size
        (('0', '1', '2'), (8, 8))
    """
    for name in options:
        if name not in LoadOptions.__annotations__:
            raise UnknownNameError.among("option of load", name, LoadOptions.__annotations__)
    if isinstance(model, BaseVictim):
        return _dressed(model, options)
    if isinstance(model, (str, Path)):
        if str(model).lower().endswith(".defended"):
            found: BaseVictim = importlib.import_module("sparring.defences").load_defended(model)
            return _dressed(found, options)
        if (asked := _only_asked(str(model), options)) is not None:
            return asked
    builder = options.get("builder")
    if isinstance(model, nn.Module):
        parts = Parts(model, type(model).__name__)
    elif isinstance(model, (str, Path)):
        parts = _find(str(model), builder)
    elif callable(model):
        raise InputError(
            f"model is a {type(model).__name__} that can be called; wrap it in sparring.Victim(function), or in "
            "sparring.BlackBox(function) where it has no gradients"
        )
    else:
        raise InputError(f"model is a {type(model).__name__}; give a name ({_CHOICES}), a torch.nn.Module or a victim")
    if builder is not None and (isinstance(model, nn.Module) or not _is_file(str(model))):
        raise InputError(
            f"builder= goes with a weights file; model is {model if isinstance(model, str) else parts.name!r}"
        )
    return _assemble(parts, options)


def load_default() -> BaseVictim:
    """The model for a photo when none is named: an ImageNet network, from whichever provider is there.

    Raises:
        LoadError: there is none; the message says why, and names the choices. The 8 x 8 digits never step in.
    """
    try:
        return load(DEFAULT)
    except SparringError as cause:
        raise LoadError(
            f"no model was named, and the usual one for photos is not at hand: {cause}. Name a model: {_CHOICES}"
        ) from cause


def model_choices() -> str:
    """What `load` takes as a name, in words."""
    return _CHOICES


def _only_asked(name: str, options: LoadOptions) -> BaseVictim | None:
    """The victim in an .onnx file or behind a service's mapping, which has no network to hand out; None for others."""
    suffix = Path(name).suffix.lower()
    if suffix not in (".onnx", ".toml") or "://" in name or name.lower().startswith(("hf:", "torchvision:")):
        return None
    rest: Mapping[str, Any] = {key: value for key, value in options.items() if key not in _PICTURES}
    for_onnx = {"mean", "std", "labels", "output", "probabilities", "name"} if suffix == ".onnx" else {"name"}
    if refused := sorted(set(rest) - for_onnx):
        where = "sparring.victims.ONNXVictim(path, ...)" if suffix == ".onnx" else "the mapping itself"
        raise InputError(f"{name!r} takes no {', '.join(refused)} here; what else there is to say belongs into {where}")
    victim: BaseVictim
    if suffix == ".toml":
        from sparring.victims.http import HTTPVictim

        victim = HTTPVictim(name, **rest)
    else:
        from sparring.victims.onnx import ONNXVictim

        given = {**rest, "labels": read_labels(rest["labels"])} if "labels" in rest else dict(rest)
        if callable(given.get("output")):
            raise InputError(f"output is a function, and {name!r} is run elsewhere; give the name of an output")
        victim = ONNXVictim(name, **given)
    return _dressed(victim, cast("LoadOptions", {key: value for key, value in options.items() if key in _PICTURES}))


def _find(name: str, builder: str | Callable[[], nn.Module] | None) -> Parts:
    """The provider that a name means, asked for the model."""
    if not name.strip():
        raise InputError(f"the name of the model is empty; give {_CHOICES}")
    if _is_file(name):
        weights, named = split_builder(name)
        if named is not None and builder is not None:
            raise InputError(f"two builders came: {named!r} in the name, and builder={builder!r}; give one")
        return open_file(weights, named or builder)
    if name == "digits":
        return _digits()
    scheme = _SCHEME.fullmatch(name)
    if scheme:
        return _by_scheme(scheme[1].lower(), scheme[2], name)
    bare = name.casefold().replace("-", "_")
    for spelling in (bare, bare.replace("resnet_", "resnet")):
        if spelling in BARE_NAMES:
            return _bare(spelling)
    path = Path(name).expanduser()
    if path.is_dir():
        return open_hub(name)
    if path.is_file():
        raise LoadError(f"{name!r} is no weights file that is read here; the suffixes are {', '.join(SUFFIXES)}")
    hint = (
        f"Perhaps hf:{name}?" if name.count("/") == 1 and not name.startswith(("/", ".", "~")) else f"Give {_CHOICES}."
    )
    raise UnknownNameError.among("model", name, ["digits", *BARE_NAMES], hint)


def _by_scheme(scheme: str, rest: str, name: str) -> Parts:
    if scheme in ("hf", "torchvision") and not rest.strip():
        raise InputError(
            f"{name!r} names no model after the colon; for example hf:microsoft/resnet-18, torchvision:resnet18"
        )
    if scheme == "hf":
        return open_hub(rest.strip())
    if scheme == "torchvision":
        return open_torchvision(rest.strip())
    if scheme in ("http", "https", "ftp", "file"):
        raise LoadError(
            f"models are not fetched from addresses such as {name.partition('?')[0][:100]!r}; download the file and pass its "
            "path. A service that answers over HTTP is loaded by a file that says how to ask it: "
            "sparring.load('service.toml'), see docs/remote-victims.md"
        )
    raise UnknownNameError.among("kind of model", scheme, ("hf", "torchvision"), f"Give {_CHOICES}.")


def _bare(name: str) -> Parts:
    """A well-known name through torchvision or, where that is missing or cannot deliver, through transformers."""
    vision, hub = BARE_NAMES[name]
    failures: list[SparringError] = []
    for reference, opener in ((vision, open_torchvision), (hub, open_hub)):
        if reference is None:
            continue
        try:
            return replace(opener(reference), name=name)
        except SparringError as cause:
            failures.append(cause)
    told = "; ".join(str(failure).rstrip(".") for failure in failures)
    if all(isinstance(failure, MissingDependencyError) for failure in failures):
        raise MissingDependencyError(f"{name!r} needs one of its providers: {told}") from failures[-1]
    raise LoadError(f"{name!r} cannot be had: {told}") from failures[-1]


def _digits() -> Parts:
    from sparring.victims import digits

    spec = InputSpec(size=(8, 8), resize=8, resample="box", mode="L")
    return Parts(digits.load(), "digits", digits.LABELS, input=spec)


def _is_file(name: str) -> bool:
    return split_builder(name)[0].lower().endswith((*SUFFIXES, *PICKLES))


def _assemble(parts: Parts, options: LoadOptions) -> LoadedVictim:
    mean, std = _channels(options.get("mean"), parts.mean), _channels(options.get("std"), parts.std)
    labels = read_labels(options["labels"]) if "labels" in options else parts.labels
    victim = LoadedVictim(
        parts.net,
        mean=mean,
        std=std,
        labels=labels,
        output=options.get("output"),
        probabilities=options.get("probabilities", False),
        name=options.get("name", parts.name),
    )
    channels = None if mean is None else len(mean)
    victim.input = _input_spec(parts.input, options, parts.net, channels)
    if "device" in options:
        try:
            parts.net.to(options["device"])
        except (RuntimeError, AssertionError) as cause:  # torch asserts that it was built with CUDA
            raise InputError(f"device {str(options['device'])!r} is not to be had here: {cause}") from cause
    return victim


def _dressed(victim: BaseVictim, options: LoadOptions) -> BaseVictim:
    """A victim with other pictures; what else a victim is was said when it was made."""
    if not options:
        return victim
    if refused := sorted(set(options) - set(_PICTURES)):
        raise InputError(
            f"{victim.name!r} is a victim already, so {', '.join(refused)} must be said where it is made: "
            "sparring.Victim(net, ...)"
        )
    dressed = object.__new__(type(victim))
    dressed.__dict__.update(victim.__dict__)
    net = getattr(victim, "net", None)
    mean = getattr(victim, "mean", None)
    channels = None if mean is None else len(mean)
    spec = _input_spec(getattr(victim, "input", None), options, net if isinstance(net, nn.Module) else None, channels)
    dressed.input = spec  # type: ignore[attr-defined]
    return dressed


def _input_spec(known: Any, options: LoadOptions, net: nn.Module | None, channels: int | None) -> Any:
    """The pictures a victim takes: the provider's word, with what the options say instead."""
    given: Mapping[str, Any] = options
    said = {key: given[key] for key in _PICTURES if key in given}
    if not said:
        return known
    if "size" in said:
        size = said["size"]
        said["size"] = (size, size) if isinstance(size, int) else tuple(size)
        if "resize" not in said:
            height, width = said["size"]
            said["resize"] = height if height == width else (height, width)
    if isinstance(known, InputSpec):
        return replace(known, **said)
    if "size" not in said:
        raise InputError(f"{', '.join(sorted(said))} came without size; give size= as well, in pixels")
    return InputSpec(**{"mode": picture_mode(net, channels) or "RGB", **said})


def picture_mode(net: nn.Module | None, channels: int | None = None) -> str | None:
    """'L' where a network takes one channel, 'RGB' where it takes more, None where nothing tells.

    Its first convolution tells, and so does the number of channels of its normalisation.
    """
    first = None if net is None else next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None:  # one number of normalisation may stand for all channels
        channels = first.in_channels
    if channels is None:
        return None
    return "L" if channels == 1 else "RGB"


def _channels(given: Any, known: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if given is None:
        return known
    values = given if isinstance(given, (list, tuple)) else [given] if isinstance(given, (int, float)) else list(given)
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError) as cause:
        raise InputError(f"mean and std are one number per channel; got {given!r}") from cause
