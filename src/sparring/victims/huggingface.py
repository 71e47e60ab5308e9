"""Image classifiers of transformers, from a local folder or the Hugging Face hub: safetensors alone, no remote code."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from sparring.core.errors import LoadError, MissingDependencyError, SparringError, UnsafeFileError
from sparring.victims.spec import Parts

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WAIT = 5.0  # seconds for the hub's first answer; transformers itself would retry for half a minute
_FOLDER = "give a folder that save_pretrained wrote: hf:path/to/folder"


def open_hub(reference: str) -> Parts:
    """An image classifier with the labels of its configuration and the normalisation of its image processor.

    Weights are read from safetensors files alone, and code from a repository is never run.

    Args:
        reference: a folder that `save_pretrained` wrote (model and image processor), or an ID on the hub,
            "microsoft/resnet-18". What was downloaded before is taken from the cache.

    Raises:
        MissingDependencyError: no transformers, or one that cannot be imported.
        LoadError: no such folder or ID, no connection, no safetensors file, another kind of model, a classification
            head that was never trained, or no image processor.
        UnsafeFileError: the model comes with code of its own.
    """
    transformers = _transformers()
    folder = Path(reference).expanduser()
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise LoadError(f"the folder {reference!r} holds no config.json, so it is no model of transformers; {_FOLDER}")
    if not local and (not _ID.fullmatch(reference) or reference.startswith(".")):
        raise LoadError(f"{reference!r} is neither a folder nor an ID on the hub; {_FOLDER}, or hf:organisation/name")
    source = str(folder) if local else reference
    with _quiet(transformers):
        cached_only = local or _cached(transformers, reference)
        if not cached_only:
            _reach(reference)
        with _translated(reference, local):
            net, told = transformers.AutoModelForImageClassification.from_pretrained(
                source,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=cached_only,
                output_loading_info=True,
            )
        if told["missing_keys"]:
            names = sorted(told["missing_keys"])
            raise LoadError(
                f"{reference!r} has no weights for {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}: it is not "
                "trained to classify pictures, and would answer at random. Use a model that is fine-tuned for image "
                "classification"
            )
        with _translated(reference, local, "image processor"):
            processor = transformers.AutoImageProcessor.from_pretrained(
                source, trust_remote_code=False, local_files_only=cached_only
            )
        mean, std = _normalisation(processor, int(getattr(net.config, "num_channels", 3)), reference)
    return Parts(net.float().eval(), folder.name if local else reference, _labels(net.config), mean, std, processor)


def _transformers() -> ModuleType:
    why = "a model of Hugging Face"
    try:
        found = importlib.import_module("transformers")
        # the lazy modules behind these names are what a broken torchvision breaks
        _ = found.AutoModelForImageClassification, found.AutoImageProcessor
    except ModuleNotFoundError as cause:
        if cause.name == "transformers":
            raise MissingDependencyError.extra("transformers", "hub", why, cause) from cause
        raise _broken(why, cause) from cause
    except Exception as cause:  # a broken torchvision surfaces as RuntimeError, AttributeError, ...
        raise _broken(why, cause) from cause
    return found


def _broken(why: str, cause: BaseException) -> MissingDependencyError:
    return MissingDependencyError(
        f"{why} needs transformers, which cannot be imported here ({type(cause).__name__}: {_first_line(cause)}). A "
        "torchvision built for another torch is the usual cause: pip uninstall torchvision, or reinstall both from one "
        "index"
    )


@contextlib.contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """No progress bars and notes from transformers, which print; its settings are put back."""
    logging = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _cached(transformers: ModuleType, reference: str) -> bool:
    """Whether the weights are on this machine, so that no connection is needed (a newer version is not looked for)."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(reference, f) for f in ("config.json", "preprocessor_config.json")]
    weights = [try_to_load_from_cache(reference, f) for f in ("model.safetensors", "model.safetensors.index.json")]
    return all(isinstance(f, str) for f in found) and any(isinstance(f, str) for f in weights)


def _reach(reference: str) -> None:
    """Ask the hub once whether the model is there, so that a missing network or a misspelling is said at once."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    if HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise LoadError(
            f"hf:{reference} is not on this machine and HF_HUB_OFFLINE is set. Unset it to download the model, or "
            f"{_FOLDER}"
        )
    try:
        HfApi().model_info(reference, timeout=_WAIT)
    except HfHubHTTPError as cause:
        code = int(getattr(cause.response, "status_code", 0))
        missing = {
            401: "no such public model; check the spelling, or log in",
            403: "access must be granted on its page first",
        }
        hint = missing.get(code, "no such model; check the spelling" if code == 404 else "try again later")
        raise LoadError(f"the hub answers {code or 'with an error'} for {reference!r}: {hint}") from cause
    except Exception as cause:  # whatever the HTTP client of this version raises without a connection
        raise LoadError(
            f"hf:{reference} is not on this machine and the Hugging Face hub cannot be reached "
            f"({type(cause).__name__}: {_first_line(cause)}). Connect and try again, or {_FOLDER}"
        ) from cause


@contextlib.contextmanager
def _translated(reference: str, local: bool, part: str = "model") -> Iterator[None]:
    """transformers' many errors as one LoadError that says what to do."""
    try:
        yield
    except SparringError:
        raise
    except Exception as cause:  # OSError, ValueError, ImportError, KeyError and what safetensors raises
        told = " ".join(str(cause).split())
        low = told.lower()
        if "trust_remote_code" in low:
            raise UnsafeFileError(
                f"the {part} {reference!r} comes with code of its own, and code from a repository is never run. Build "
                "the network yourself and pass the object, or its weights with a builder"
            ) from cause
        if "unrecognized configuration class" in low or "unrecognized model" in low:
            raise LoadError(f"{reference!r} is no image classifier of transformers: {told[:200]}") from cause
        if part == "image processor":
            raise LoadError(
                f"{reference!r} has no image processor that works here ({told[:200]}), so its resize, crop and "
                "normalisation are not known. Add its preprocessor_config.json, or pass the network itself: "
                "load(net, mean=..., std=..., size=...)"
            ) from cause
        if "safetensors" in low and isinstance(cause, OSError) and "does not appear to have" in low:
            raise LoadError(
                f"{reference!r} has no .safetensors weights, and pickled ones are not read because they execute code. "
                "Where you trust them, convert once: "
                "AutoModelForImageClassification.from_pretrained(...).save_pretrained(folder)"
            ) from cause
        remedy = "Check the folder's files" if local else f"Check the connection, or {_FOLDER}"
        raise LoadError(
            f"the {part} hf:{reference} cannot be loaded ({type(cause).__name__}: {told[:300]}). {remedy}"
        ) from cause


def _labels(config: Any) -> tuple[str, ...] | None:
    """The class names of a configuration; None where it holds only the placeholders LABEL_0, LABEL_1, ..."""
    named = {int(number): str(name) for number, name in (getattr(config, "id2label", None) or {}).items()}
    names = tuple(named[number] for number in sorted(named))
    if len(names) < 2 or all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        return None
    return names


def _normalisation(processor: Any, channels: int, reference: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that the processor applies to pixels in [0, 1], measured on a black and a white picture.

    Rescaling, offsets and normalisation are one affine map per channel, whatever the settings call them: black goes to
    -mean/std and white to (1 - mean)/std.
    """
    mode, shades = ("L", (0, 255)) if channels == 1 else ("RGB", ((0, 0, 0), (255, 255, 255)))
    ends = []
    for shade in shades:
        picture = Image.new(mode, (640, 640), shade)
        try:
            pixels = processor(images=picture, return_tensors="np")["pixel_values"][0]
        except Exception as cause:  # foreign code
            raise LoadError(
                f"the image processor of {reference!r} failed on a plain picture ({_first_line(cause)})"
            ) from cause
        flat = np.asarray(pixels, dtype=np.float64).reshape(len(pixels), -1)
        ends.append((flat.min(1), flat.max(1)))
    (black, black_top), (white, white_top) = ends
    plain = np.allclose(black, black_top, atol=1e-4) and np.allclose(white, white_top, atol=1e-4)
    if not plain or len(black) not in (1, 3) or not (white > black).all():
        raise LoadError(
            f"the image processor of {reference!r} does not treat each pixel alike (a plain picture gave {black} to "
            f"{white_top}); pass the network itself: load(net, mean=..., std=..., size=...)"
        )
    std = 1 / (white - black)
    return tuple(np.round(-black * std, 6).tolist()), tuple(np.round(std, 6).tolist())


def _first_line(cause: BaseException) -> str:
    return (str(cause).strip().splitlines() or ["no reason given"])[0][:200]
