"""Networks of torchvision with their best weights, where a torchvision that works is installed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from sparring.core.errors import LoadError, MissingDependencyError, UnknownNameError, UnsafeFileError
from sparring.victims.spec import InputSpec, Parts


def open_torchvision(name: str) -> Parts:
    """An image classifier of torchvision with its DEFAULT weights, which it downloads once and keeps.

    The weights' own description gives the class names and the resize, crop and normalisation.

    Args:
        name: as `torchvision.models.list_models()` spells it: "resnet18", "alexnet", "vit_b_16".

    Raises:
        MissingDependencyError: no torchvision, or one that does not belong to the installed torch.
        UnknownNameError: no such classifier; the message lists close matches.
        LoadError: the weights are neither on this machine nor to be had.
        UnsafeFileError: the weights file holds more than tensors.
    """
    models = _models()
    known = models.list_models(module=models)
    if name not in known:
        raise UnknownNameError.among("torchvision model", name, known)
    weights = models.get_model_weights(name).DEFAULT
    try:
        # torchvision reads its files as pickles: this reads the same file as tensors alone first, and refuses code
        weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        net = models.get_model(name, weights=weights, progress=False)
    except Exception as cause:  # URLError, a wrong hash, no space left, an unreadable cache
        if type(cause).__name__ == "UnpicklingError":
            raise UnsafeFileError(
                f"the weights of torchvision:{name} hold code beside tensors: {_first_line(cause)}"
            ) from cause
        raise LoadError(
            f"the weights of torchvision:{name} are not to be had ({type(cause).__name__}: {_first_line(cause)}). With "
            "a network connection they are downloaded once; without one, put the file into torch's folder "
            "(torch.hub.get_dir() + '/checkpoints'), or use another model, such as digits"
        ) from cause
    spec, mean, std = _input(weights.transforms())
    labels = weights.meta.get("categories")
    return Parts(net.eval(), name, tuple(labels) if labels else None, mean, std, spec)


def _models() -> ModuleType:
    why = "a model of torchvision"
    try:
        importlib.import_module("torchvision")
        return importlib.import_module("torchvision.models")
    except Exception as cause:  # beside another torch its import raises RuntimeError, not ImportError
        if isinstance(cause, ModuleNotFoundError) and cause.name == "torchvision":
            raise MissingDependencyError.extra("torchvision", "torchvision", why, cause) from cause
        raise MissingDependencyError(
            f"{why} needs torchvision, and the one installed does not work here ({type(cause).__name__}: "
            f"{_first_line(cause)}). It must be the build that belongs to the installed torch: pip install "
            "--force-reinstall torch torchvision, both from the same index"
        ) from cause


def _input(transforms: Any) -> tuple[InputSpec, tuple[float, ...], tuple[float, ...]]:
    try:
        crop, resize = _numbers(transforms.crop_size), _numbers(transforms.resize_size)
        mean, std = tuple(map(float, transforms.mean)), tuple(map(float, transforms.std))
        resample = str(getattr(transforms.interpolation, "value", transforms.interpolation))
    except (AttributeError, TypeError, ValueError) as cause:
        raise LoadError(f"this torchvision describes its inputs in a way that is not known here: {cause}") from cause
    size = (crop[0], crop[0]) if len(crop) == 1 else (crop[0], crop[1])
    return InputSpec(size, resize[0] if len(resize) == 1 else (resize[0], resize[1]), resample), mean, std


def _numbers(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]


def _first_line(cause: BaseException) -> str:
    return (str(cause).strip().splitlines() or ["no reason given"])[0][:200]
