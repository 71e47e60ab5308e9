"""Pictures in and out: whatever a user has, as 8-bit PIL pictures, as exact k/255 tensors, and as lossless files.

A picture has three forms here: a PIL image of 8 bits per channel (what files hold and what resizing works on), a
float32 tensor on the grid {0, 1/255, ..., 1} (what a victim takes), and a lossless file. Going round all three changes
nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from sparring.core.errors import FetchError, InputError, PictureError, SparringError
from sparring.images.fetch import LIMIT, TIMEOUT, fetch

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray
    from torch import Tensor

Mode: TypeAlias = Literal["RGB", "L"]
Source: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | Image.Image | NDArray[Any] | Tensor"

MAX_PIXELS = 100_000_000
TOLERANCE = 1e-4  # how far outside [0, 1] a float may be: rounding noise of a resize or a sum, never a wrong scale
LOSSLESS = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
_LOSSY = {".jpg": "JPEG", ".jpeg": "JPEG", ".avif": "AVIF", ".heic": "HEIC", ".gif": "GIF (256 colours)"}
_SCHEME = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9+.-]+)://|(?P<data>data):", re.ASCII)
_CHANNELS = (1, 3, 4)


def open_picture(
    source: Source,
    *,
    mode: Mode = "RGB",
    limit: int = LIMIT,
    timeout: float = TIMEOUT,
    allow_private: bool = True,
) -> Image.Image:
    """Return the picture that `source` stands for: 8 bits per channel, upright, opaque, loaded.

    The EXIF orientation is applied, transparency is laid on white, palettes, 16 bits and CMYK are converted (without
    colour management), and of an animation the first frame is taken. Only PNG, JPEG, WebP, BMP, GIF, TIFF, PPM and AVIF
    are decoded, so no file can start another program.

    Args:
        source: a path; an `http(s)://` URL; the bytes of a file; a PIL image; or one picture as an array or tensor:
            uint8, or float in [0, 1] (rounded to the nearest k/255), of shape [h w], [h w c] or [c h w] with 1, 3 or 4
            channels. Where both readings fit, a tensor is [c h w] and an array is [h w c].
        mode: 'RGB', or 'L' for one grey channel.
        limit: the most bytes to download.
        timeout: seconds for the whole download.
        allow_private: False refuses URLs that lead to addresses that are not public; see `fetch`.

    Raises:
        PictureError: a missing, empty, damaged or too large file, no file at all, or a format that is not read here.
            The limit is 100 million pixels, or Pillow's `Image.MAX_IMAGE_PIXELS` where that is lower (89 million unless
            changed).
        FetchError: a URL of another scheme, or one that cannot be fetched.
        InputError: an array of another shape, type or range, or an object that is no picture.
    """
    if mode not in ("RGB", "L"):
        raise InputError(f"mode must be 'RGB' or 'L', got {mode!r}")
    if isinstance(source, Image.Image):
        return _flat(_loaded(source), mode)
    if isinstance(source, torch.Tensor):
        return _flat(_from_array(_as_array(source), "tensor"), mode)
    if isinstance(source, np.ndarray):
        return _flat(_from_array(source, "array"), mode)
    if isinstance(source, (bytes, bytearray)):
        return _flat(_decode(io.BytesIO(source), f"these {len(source):,} bytes"), mode)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"a picture is a path, a URL, bytes, a PIL image, an array or a tensor; got {type(source).__name__}"
            + (": pass one picture at a time" if isinstance(source, (list, tuple)) else "")
        )
    text = os.fsdecode(source)
    if scheme := _SCHEME.match(text):
        name = (scheme["name"] or scheme["data"]).lower()
        if name not in ("http", "https"):
            hint = "pass the plain path" if name == "file" else "download the file and pass its path"
            raise FetchError(f"cannot open {text[:100]!r}: only http:// and https:// are fetched, not {name!r}; {hint}")
        data = fetch(text, limit=limit, timeout=timeout, allow_private=allow_private)
        return _flat(_decode(io.BytesIO(data), repr(text[:160])), mode)
    return _flat(_from_path(text), mode)


def to_tensor(image: Image.Image) -> Float[Tensor, "c h w"]:
    """Return an 8-bit picture as float32 pixels, each exactly the float32 nearest to k/255.

    Args:
        image: of mode 'RGB' (3 channels) or 'L' (1 channel); `open_picture` gives these.

    Raises:
        InputError: an image of another mode.
    """
    if image.mode not in ("RGB", "L"):
        raise InputError(
            f"to_tensor takes an image of mode 'RGB' or 'L', got {image.mode!r}: pass it to open_picture first"
        )
    levels = np.array(image, dtype=np.uint8).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(levels).astype(np.float32) / np.float32(255))


def from_tensor(x: Float[Tensor, "c h w"]) -> Image.Image:
    """Return pixels in [0, 1] as an 8-bit picture, each rounded to the nearest k/255.

    Args:
        x: float pixels of one picture with 1 channel (gives mode 'L') or 3 (gives 'RGB'), on any device.

    Raises:
        InputError: another shape or type, NaN, or values outside [0, 1] by more than 1e-4.
    """
    if not isinstance(x, torch.Tensor):
        raise InputError(f"pixels must be a tensor of shape [c h w], got {type(x).__name__}")
    if x.ndim != 3 or x.shape[0] not in (1, 3) or 0 in x.shape:
        hint = ": pass one picture of the batch, x[0]" if x.ndim == 4 else ""
        raise InputError(f"pixels must have shape [c h w] with 1 or 3 channels, got {tuple(x.shape)}{hint}")
    if not x.is_floating_point():
        raise InputError(f"pixels must be floats in [0, 1], got {x.dtype}: divide 8-bit levels by 255")
    levels = _levels(x.detach().cpu().double().numpy())
    return Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))


def write_png(path: str | os.PathLike[str], x: Float[Tensor, "c h w"]) -> Path:
    """Write pixels in [0, 1] as an 8-bit lossless picture, and return its path.

    The file appears whole or not at all: it is written under another name in the same folder and then renamed.

    Args:
        path: ends in .png, or in another lossless suffix: .bmp, .tif, .tiff, .webp.
        x: as for `from_tensor`.

    Raises:
        InputError: a suffix that is not lossless, or pixels that `from_tensor` refuses.
        PictureError: the folder is missing or the file cannot be written.
    """
    path = Path(os.path.expanduser(path))
    suffix = path.suffix.lower()
    if suffix in _LOSSY:
        raise InputError(f"cannot write {path.name!r}: {_LOSSY[suffix]} would change the pixels: use .png")
    if suffix not in LOSSLESS:
        raise InputError(f"cannot write {path.name!r}: the suffix must be one of {', '.join(LOSSLESS)}: use .png")
    image = from_tensor(x)
    if not path.parent.is_dir():
        raise PictureError(
            f"cannot write {str(path)!r}: the folder {str(path.parent)!r} does not exist; create it first"
        )
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        # not by tempfile, whose files nobody but the owner can read
        with part.open("xb") as out:
            image.save(out, format=LOSSLESS[suffix], **options)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)
    except (OSError, ValueError) as error:  # ValueError: more pixels than the format can hold
        raise PictureError(f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return path


def read_back(path: str | os.PathLike[str], *, mode: Mode = "RGB") -> Float[Tensor, "c h w"]:
    """Return the pixels of a saved picture, read through the same door as any other file.

    Args:
        path: of the file; `write_png` wrote it, or anything else did.
        mode: 'RGB' for 3 channels, 'L' for 1.

    Raises:
        PictureError: as for `open_picture`.
    """
    return to_tensor(open_picture(path, mode=mode))


@functools.cache
def _formats() -> list[str]:
    """Return the formats that are decoded: none that runs an interpreter (EPS starts Ghostscript) or is exotic."""
    optional = [name for name in ("WEBP", "AVIF") if name.lower() in features.modules and features.check(name.lower())]
    return ["PNG", "JPEG", "BMP", "GIF", "TIFF", "PPM", *optional]


def _from_path(text: str) -> Image.Image:
    path = Path(os.path.expanduser(text))
    shown = repr(str(path))
    try:
        if not text.strip():
            raise PictureError("the path of the picture is empty; give a file, an http(s) URL, an image or an array")
        if path.is_dir():
            raise PictureError(f"{shown} is a folder; pass one picture in it")
        if not path.exists():
            raise _missing(path)
        if not path.is_file():  # a pipe or a device could feed us for ever
            raise PictureError(f"{shown} is no regular file (a pipe or a device); pass a picture file")
        if path.stat().st_size == 0:
            raise PictureError(f"{shown} is empty (0 bytes); save or download it again")
        with path.open("rb") as stream:
            return _decode(stream, shown)
    except SparringError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise PictureError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from error


def _missing(path: Path) -> PictureError:
    if re.match(r"https?:/[^/]", path.as_posix()):
        return PictureError(
            f"{str(path)!r} looks like a URL that passed through a path, which ate a '/'; pass it as a string"
        )
    if not path.parent.is_dir():
        return PictureError(f"there is no file {str(path)!r}: the folder {str(path.parent)!r} does not exist")
    try:
        names = {entry.name.casefold(): entry.name for entry in path.parent.iterdir()}
    except OSError:
        names = {}
    close = [names[n] for n in difflib.get_close_matches(path.name.casefold(), names, n=4, cutoff=0.6)]
    found = "close matches there: " + ", ".join(close) if close else "no name in that folder is close to it"
    return PictureError(f"there is no file {str(path)!r}; {found}")


def _decode(stream: BinaryIO, name: str) -> Image.Image:
    try:
        with Image.open(stream, formats=_formats()) as image:
            _check_pixels(image, name)
            image.load()
            return _upright(image)
    except SparringError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is no picture in a format that is read here ({', '.join(_formats())})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{name} is too large: {error}") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes: struct.error, zlib.error, IndexError
        raise PictureError(f"{name} is damaged or cut short ({type(error).__name__}: {error}); get it again") from error


def _check_pixels(image: Image.Image, name: str) -> None:
    allowed = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    if image.width * image.height > allowed:
        size = f"{image.width} x {image.height} pixels"
        raise PictureError(f"{name} is too large: {size}, and the limit is {allowed:,} pixels; make it smaller first")
    if not image.width or not image.height:
        raise PictureError(f"{name} has no pixels: it is {image.width} x {image.height}")


def _upright(image: Image.Image) -> Image.Image:
    # damaged EXIF data does not spoil the pixels: like a browser, show the picture as it is stored
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image.copy()


def _loaded(image: Image.Image) -> Image.Image:
    name = f"this {image.format or ''} image".replace("  ", " ")
    _check_pixels(image, name)
    # an image that was opened but not loaded would be decoded by us, whatever its format can do
    if isinstance(image, ImageFile.ImageFile) and image.format not in (*_formats(), "MPO"):
        raise PictureError(f"{name} is of a format that is not read here; convert it yourself: image.convert('RGB')")
    try:
        image.load()
    except Exception as error:  # the same decoders as above
        raise PictureError(f"{name} is damaged or cut short ({type(error).__name__}: {error}); get it again") from error
    return _upright(image)


def _as_array(x: Tensor) -> NDArray[Any]:
    x = x.detach().cpu()
    array: NDArray[Any] = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    if array.ndim == 3 and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)
    return array


def _from_array(array: NDArray[Any], kind: str) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS) or 0 in shape:
        batch = ": pass one picture of the batch, x[0]" if array.ndim == 4 else ""
        raise InputError(
            f"a picture {kind} has shape [h w], [h w c] or [c h w] with 1, 3 or 4 channels, got {shape}{batch}"
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise InputError(
            f"the {kind} is too large: {array.shape[1]} x {array.shape[0]} pixels; the limit is {MAX_PIXELS:,}"
        )
    if np.issubdtype(array.dtype, np.floating):
        array = _levels(array.astype(np.float64))
    elif array.dtype != np.uint8:
        fix = "divide by 65535" if array.dtype == np.uint16 else "cast levels 0..255 to uint8"
        raise InputError(f"a picture {kind} is uint8, or float in [0, 1]; got {array.dtype}: {fix}")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def _levels(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return pixels in [0, 1] as the nearest 8-bit levels; refuse what cannot be pixels, and say what it looks like."""
    if not np.isfinite(pixels).all():
        bad = int((~np.isfinite(pixels)).sum())
        raise InputError(f"pixels must be finite, and {bad:,} of {pixels.size:,} are NaN or infinite")
    low, high = float(pixels.min()), float(pixels.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        if low < -TOLERANCE and high - low < 20:
            guess = "looks normalised: undo it (x * std + mean), the victim normalises by itself"
        elif low >= -TOLERANCE and 8 < high <= 255 + TOLERANCE:
            guess = "looks like 0..255: divide by 255 or pass uint8"
        else:
            guess = "scale it to [0, 1]"
        raise InputError(f"pixels must be in [0, 1], got min {low:.6g} and max {high:.6g}: {guess}")
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _flat(image: Image.Image, mode: Mode) -> Image.Image:
    """Return `image` in 8 bits, opaque, in `mode`, without the metadata that would act a second time."""
    if image.mode == "F":
        image = Image.fromarray(_levels(np.asarray(image, dtype=np.float64)))
    elif image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bits(image)
    try:
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            top = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", top.size, "white"), top)
        flat = (image if image.mode in ("L", "1") else image.convert("RGB")).convert(mode)
    except (
        ValueError,
        ImportError,
    ) as error:  # LAB where Pillow has no colour management, and modes yet to be invented
        raise PictureError(f"a picture of mode {image.mode!r} cannot be converted to {mode!r} ({error})") from error
    return Image.frombytes(mode, flat.size, flat.tobytes())


def _from_16_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise PictureError(
            f"the picture holds integers from {low} to {high}, wider than 16 bits: scale it to 8 or 16 bits"
        )
    if image.mode == "I" and 0 < high <= 255:
        raise PictureError(
            f"the picture holds 32-bit integers up to {high}, black if read as 16 bits: convert it to uint8 first"
        )
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
