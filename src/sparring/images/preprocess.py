"""Where the victim's input begins: from any picture to the pixels of fixed size that a network is given.

Resizing and cropping come before the victim: an attack changes the resized, cropped pixels, not the photo. A picture
that already has the victim's size is taken as it is, which is how a saved adversarial picture is read back bit for bit.
Normalisation comes after: it is the victim's own, so `from_processor` returns mean and std beside the preprocessing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from sparring.core.errors import InputError, LoadError
from sparring.images.files import MAX_PIXELS, Mode, Source, open_picture, to_tensor

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray
    from torch import Tensor

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers


@dataclass(frozen=True)
class Preprocess:
    """Resize a picture, cut out its centre, and give its pixels on the grid k/255.

    Pillow resizes the 8-bit picture, with the filter widened when it shrinks (antialiasing). A picture that has exactly
    `size` is neither resized nor cropped.

    Args:
        size: (height, width) in pixels of what the victim takes.
        resize: an int scales the short side to it and keeps the aspect ratio (the long side is rounded down); a pair is
            (height, width); None leaves the scale alone.
        resample: 'nearest', 'lanczos', 'bilinear', 'bicubic', 'box' or 'hamming'.
        mode: 'RGB' for 3 channels, 'L' for 1.
        crop: 'center' cuts `size` out of the middle, and fills with black what a smaller picture lacks; None does not.

    Raises:
        InputError: sizes that are not positive, an unknown filter, mode or crop, or, without a crop, a `resize` other
            than `size`.
    """

    size: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    resample: str = "bilinear"
    mode: Mode = "RGB"
    crop: Literal["center"] | None = "center"

    def __post_init__(self) -> None:
        if not _is_size(self.size):
            raise InputError(f"size must be (height, width) in whole pixels, got {self.size!r}")
        if self.resize is not None and not _is_size(self.resize) and not _is_size((self.resize, self.resize)):
            raise InputError(
                f"resize must be whole pixels, (height, width) in whole pixels or None, got {self.resize!r}"
            )
        if self.resample not in _FILTERS:
            raise InputError(f"resample must be one of {', '.join(_FILTERS)}; got {self.resample!r}")
        if self.mode not in ("RGB", "L") or self.crop not in ("center", None):
            raise InputError(f"mode is 'RGB' or 'L' and crop 'center' or None; got {self.mode!r} and {self.crop!r}")
        if self.crop is None and self.resize not in (None, self.size):
            raise InputError(
                f"resize={self.resize!r} without a crop does not always give size={self.size}: "
                f"pass crop='center', or resize={self.size}"
            )

    def apply(self, source: Source) -> Float[Tensor, "c h w"]:
        """Return the victim's pixels in [0, 1] for a picture, or for anything that `open_picture` takes.

        Raises:
            InputError: a picture of another size where neither resize nor crop is set, or one so elongated that its
                resized form would pass 100 million pixels.
            PictureError: as for `open_picture`.
            FetchError: as for `open_picture`.
        """
        picture = open_picture(source, mode=self.mode)
        height, width = self.size
        if (picture.height, picture.width) == (height, width):
            return to_tensor(picture)
        if self.resize is None and self.crop is None:
            raise InputError(
                f"the picture has {picture.height} x {picture.width} pixels (height x width) and the victim takes "
                f"{height} x {width}: set resize or crop, or resize it first"
            )
        picture = self._resized(picture)
        if self.crop == "center":
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        return to_tensor(picture)

    def _resized(self, picture: Image.Image) -> Image.Image:
        if self.resize is None:
            return picture
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:
            short = min(picture.height, picture.width)
            height, width = (self.resize * side // short for side in (picture.height, picture.width))
        if height * width > MAX_PIXELS:
            raise InputError(
                f"a picture of {picture.height} x {picture.width} pixels would become {height} x {width}: crop it first"
            )
        return picture.resize((width, height), Image.Resampling(_FILTERS.index(self.resample)))


def _is_size(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(type(side) is int and side > 0 for side in pair)


IMAGENET = Preprocess(size=(224, 224), resize=256)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# what transformers' image processors do where their file is silent: by family, in the keys of preprocessor_config.json
_STRETCH = {"default_to_square": True, "do_center_crop": False, "resample": 3}
_CENTRE = {"default_to_square": False, "do_center_crop": True, "crop_size": 224, "resample": 3}
_FAMILIES: dict[str, dict[str, Any]] = {
    "Beit": _STRETCH,
    "Bit": _CENTRE,
    "Blip": _STRETCH,
    "CLIP": _CENTRE,
    "ChineseCLIP": _CENTRE,
    "ConvNext": {**_CENTRE, "do_center_crop": False, "crop_pct": 224 / 256},
    "DeiT": {**_STRETCH, "do_center_crop": True, "crop_size": 224},
    "EfficientNet": {**_STRETCH, "include_top": True},
    "Levit": _CENTRE,
    "MobileNetV1": {**_CENTRE, "resample": 2},
    "MobileNetV2": {**_CENTRE, "resample": 2},
    "MobileViT": {**_CENTRE, "crop_size": 256, "do_flip_channel_order": True},
    "PoolFormer": {**_CENTRE, "crop_pct": 0.9},
    "Pvt": _STRETCH,
    "Segformer": {**_STRETCH, "resample": 2},
    "Siglip": _STRETCH,
    "ViT": {**_STRETCH, "resample": 2},
}
_HANDLED = {"do_resize", "do_center_crop", "do_rescale", "do_normalize"}
# the first is what every picture gets here, the second changes no pixels, the third is PoolFormer's former name
_HARMLESS = {"do_convert_rgb", "do_reduce_labels", "do_resize_and_center_crop"}
_AGREEMENT = 3.0  # levels of 255: other back ends round otherwise; a shift of one pixel is about 20


def from_processor(config: Mapping[str, Any] | object) -> tuple[Preprocess, tuple[float, ...], tuple[float, ...]]:
    """Return the preprocessing, mean and std that a transformers image processor stands for.

    The processor feeds its network ((r k - o) - m) / s for 8-bit levels k, with its own scale r and offset o. On pixels
    x = k/255 that is (x - mean) / std with mean = (m + o) / (255 r) and std = s / (255 r), and these are returned.

    Args:
        config: the content of a `preprocessor_config.json`, of a known family or explicit in all that matters; or a
            processor, which is then run once on a test picture to confirm that it was understood.

    Returns:
        The preprocessing, and mean and std per channel in units of pixels in [0, 1].

    Raises:
        LoadError: a step that is not handled here (a `do_...` that is true), a missing or contradictory entry, an input
            without a fixed size, or a processor whose own output differs.
    """
    if isinstance(config, Mapping):
        raw, kind = dict(config), str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    else:
        raw = dict(config.to_dict() if hasattr(config, "to_dict") else vars(config))
        kind = type(config).__name__
    family = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    running = config if callable(config) and not isinstance(config, Mapping) else None
    if running is None and family and family not in _FAMILIES:
        raise LoadError(
            f"image processors of type {kind!r} are not known here; pass the processor itself, not its settings"
        )
    # a running processor has its defaults filled in: what it does not say, it does not do
    given = {key: value for key, value in raw.items() if value is not None}
    defaults = {"do_resize": True, "do_rescale": True, "do_normalize": True, **_FAMILIES.get(family, {})}
    settings = given if running else {**defaults, **given}
    for key, value in settings.items():
        if key.startswith("do_") and value and key not in _HANDLED | _HARMLESS:
            raise LoadError(
                f"the image processor sets {key}={value!r}, which is not handled here: "
                "do that step inside the network, and write a Preprocess for the others"
            )
    size, resize, crop = _geometry(settings, family)
    mean, std = _normalisation(settings, family)
    mode: Mode = "L" if len(mean) == 1 else "RGB"
    preprocess = Preprocess(size, resize, _filter(settings) if resize else "bilinear", mode, crop)
    if running:
        _confirm(running, preprocess, np.array(mean), np.array(std))
    return preprocess, mean, std


_Geometry = tuple[tuple[int, int], "int | tuple[int, int] | None", Literal["center"] | None]


def _geometry(settings: Mapping[str, Any], family: str) -> _Geometry:
    if not family and "crop_size" in settings and "do_center_crop" not in settings:
        raise LoadError("the settings have a crop_size but neither do_center_crop nor a type; add 'do_center_crop'")
    cut = _pair(settings.get("crop_size"), "crop_size") if settings.get("do_center_crop") else None
    if not settings.get("do_resize"):
        if cut is None:
            raise LoadError(
                "the image processor neither resizes nor crops, so its size is not fixed: write a Preprocess"
            )
        return cut, None, "center"
    size = settings.get("size")
    if isinstance(size, int):
        if "default_to_square" not in settings:
            raise LoadError(
                f"size={size} may mean the short side or both: write {{'shortest_edge': {size}}} or "
                f"{{'height': {size}, 'width': {size}}}, or name the 'image_processor_type'"
            )
        size = (size, size) if settings["default_to_square"] else {"shortest_edge": size}
    short = _short_side(size)
    if settings.get("crop_pct") and family in ("ConvNext", "PoolFormer", ""):
        side = short if short is not None else _pair(size, "size")[0]
        if (
            cut is None and side >= 384
        ):  # ConvNeXt's rule: large inputs are stretched, smaller ones cut out of a larger picture
            return (side, side), (side, side), None
        return cut or (side, side), int(side / settings["crop_pct"]), "center"
    if short is not None:
        if cut is None:
            raise LoadError(
                "the image processor keeps the aspect ratio and does not crop, so the input has no fixed size"
            )
        return cut, int(256 / 224 * short) if family == "Levit" else short, "center"
    pair = _pair(size, "size")
    return (cut, pair, "center") if cut else (pair, pair, None)


def _short_side(size: object) -> int | None:
    if not isinstance(size, Mapping) or set(_said(size)) != {"shortest_edge"}:
        return None
    return int(size["shortest_edge"])


def _pair(size: object, name: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, (tuple, list)) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, Mapping) and set(_said(size)) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    raise LoadError(f"{name}={size!r} gives no fixed height and width; needed is {{'height': h, 'width': w}}")


def _said(size: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in size.items() if value is not None}


def _filter(settings: Mapping[str, Any]) -> str:
    resample = settings.get("resample", settings.get("interpolation"))
    if isinstance(resample, str) and resample.lower() in _FILTERS:
        return resample.lower()
    if not isinstance(resample, int) or not 0 <= resample < len(_FILTERS):
        raise LoadError(f"resample={resample!r} is no filter of Pillow's: use 0 to 5, or one of {', '.join(_FILTERS)}")
    return _FILTERS[resample]


def _normalisation(settings: Mapping[str, Any], family: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if settings.get("do_normalize"):
        mean, std = _per_channel(settings, "image_mean"), _per_channel(settings, "image_std")
    scale = 255 * float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale") else 255.0
    offset = 0.0
    if family in ("EfficientNet", ""):
        if settings.get("do_rescale") and settings.get("rescale_offset"):
            offset = 1.0
        if settings.get("include_top"):  # EfficientNet divides by the standard deviation a second time
            std = tuple(s * t for s, t in zip(std, _per_channel(settings, "image_std"), strict=True))
    if len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(*std, scale) <= 0:
        raise LoadError(f"mean {mean}, std {std} and scale {scale:g} of the image processor do not go together")
    return tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std)


def _per_channel(settings: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = settings.get(key)
    if isinstance(value, (int, float)):
        return (float(value),) * 3
    if not isinstance(value, (list, tuple)) or len(value) not in (1, 3):
        raise LoadError(f"the image processor needs {key} as a number, or as 1 or 3 of them; got {value!r}")
    return tuple(map(float, value))


def _confirm(
    processor: Callable[..., Any], preprocess: Preprocess, mean: NDArray[np.float64], std: NDArray[np.float64]
) -> None:
    """Run the processor on a picture of smooth waves, on which a shift of one pixel shows, and compare."""
    height, width = preprocess.size[0] + 53, preprocess.size[1] * 3 // 2 + 2
    down, across = np.mgrid[:height, :width] / 6.0
    waves = np.stack([np.sin(down), np.sin(across), np.sin(down + across)][: len(mean)], axis=-1)
    picture = open_picture(np.rint(waves * 127 + 128).astype(np.uint8), mode=preprocess.mode)
    try:
        theirs = np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0], dtype=np.float64)
    except Exception as error:  # foreign code: whatever it raises, it could not be confirmed
        raise LoadError(f"the image processor failed on a test picture ({type(error).__name__}: {error})") from error
    ours = preprocess.apply(picture).numpy()
    if theirs.shape != ours.shape:
        raise LoadError(f"the image processor gives shape {theirs.shape} and {preprocess} gives {ours.shape}")
    off = float(np.abs(theirs * std[:, None, None] + mean[:, None, None] - ours).max()) * 255
    if not off <= _AGREEMENT:
        raise LoadError(
            f"the image processor's own output differs by up to {off:.1f} levels of 255 from {preprocess}, "
            f"mean {mean} and std {std}: it does something that its settings do not say; write a Preprocess for it"
        )
