"""MNIST in its standard idx files, MNIST or CIFAR in an npz: read, checked, as tensors in [0, 1]."""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from sparring.core.errors import LoadError, UnknownNameError, UnsafeFileError

LARGEST = 256 * 2**20
_UBYTE = 0x08
_STEMS = {"train": "train", "test": "t10k"}
_FOLDERS = (".", "data", "raw", "MNIST/raw")
_CLASSES = 10


def read_idx(path: str | Path, *, max_bytes: int = LARGEST) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One idx file of bytes, gzipped or not: two zero bytes, the type 8, the number of dimensions, the sizes, the data.

    The header is read first and the data only if it stays below `max_bytes`, so a damaged or hostile header cannot
    fill the memory. Whether the file is gzipped is seen from its content and not from its name.

    Args:
        path: the file.
        max_bytes: the most data that is read, after decompression.

    Returns:
        A uint8 array with the header's shape: (n,) for labels, (n, height, width) for pictures.

    Raises:
        LoadError: the file is missing, no idx file of bytes, truncated, longer than its header says, or too large.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not zipped:
                return _idx_array(file, path, max_bytes)
            with gzip.GzipFile(fileobj=file) as unzipped:
                return _idx_array(unzipped, path, max_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise LoadError(f"{str(path)!r} cannot be read as an idx file: {error}. Fetch it again.") from error


def load_mnist(folder: str | Path, split: Literal["test", "train"] = "test") -> tuple[Tensor, Tensor]:
    """MNIST, or a set in its format such as Fashion-MNIST, from a folder.

    Looked for in the folder itself, then in its data/, raw/ and MNIST/raw/: first the official idx files
    (train-images-idx3-ubyte and train-labels-idx1-ubyte; t10k-... for the test set; with a dot in place of the second
    hyphen; gzipped or not), then mnist_train.npz or mnist_test.npz with uint8 arrays x (n, 28, 28) and y (n,).

    Args:
        folder: where the files are.
        split: "test" or "train".

    Returns:
        The pictures, float32 of shape (n, 1, 28, 28) with values k/255, and the labels, int64 of shape (n,), in file
        order.

    Raises:
        UnknownNameError: `split` is neither "test" nor "train".
        LoadError: the files are missing, damaged, or do not belong together.

    Paper:
        LeCun, Bottou, Bengio & Haffner 1998, "Gradient-Based Learning Applied to Document Recognition".
    """
    if split not in _STEMS:
        raise UnknownNameError.among("split of MNIST", split, _STEMS)
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise LoadError(f"{str(root)!r} is not a folder; name the folder that holds the MNIST files.")
    stem = _STEMS[split]
    images = _first(root, [f"{stem}-images{sep}idx3-ubyte{end}" for sep in "-." for end in ("", ".gz")])
    labels = _first(root, [f"{stem}-labels{sep}idx1-ubyte{end}" for sep in "-." for end in ("", ".gz")])
    stored = _first(root, [f"mnist_{split}.npz"])
    if images and labels:
        x, y, source = read_idx(images), read_idx(labels), f"{str(images)!r} and {str(labels)!r}"
    elif stored:
        x, y = _npz_arrays(stored)
        source = repr(str(stored))
    else:
        half = f" ({str(images or labels)!r} is there without its partner)" if images or labels else ""
        raise LoadError(
            f"no MNIST {split} set in {str(root)!r}{half}. Put {stem}-images-idx3-ubyte.gz and "
            f"{stem}-labels-idx1-ubyte.gz there, or mnist_{split}.npz with uint8 arrays x (n, 28, 28) and y (n,)."
        )
    _check(x, y, (28, 28), source)
    return torch.from_numpy(x).unsqueeze(1).float() / 255, torch.from_numpy(y.astype(np.int64))


def load_cifar_npz(path: str | Path) -> tuple[Tensor, Tensor]:
    """CIFAR-10-like pictures from an npz with uint8 arrays x (n, 32, 32, 3) and y (n,).

    Args:
        path: the npz file.

    Returns:
        The pictures, float32 of shape (n, 3, 32, 32) with values k/255, and the labels, int64 of shape (n,), in file
        order.

    Raises:
        UnsafeFileError: an array in the file holds pickled objects.
        LoadError: the file is missing, damaged, too large, or holds other arrays.

    Paper:
        Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """
    path = Path(path).expanduser()
    x, y = _npz_arrays(path)
    _check(x, y, (32, 32, 3), repr(str(path)))
    pictures = torch.from_numpy(x).permute(0, 3, 1, 2).float().contiguous() / 255
    return pictures, torch.from_numpy(y.astype(np.int64))


def _idx_array(file: IO[bytes] | gzip.GzipFile, path: Path, max_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of an opened idx file, whose position is at its start."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise LoadError(f"{str(path)!r} is no idx file: it begins with {magic!r}, not with two zero bytes.")
    kind, dimensions = magic[2], magic[3]
    if kind != _UBYTE or not 1 <= dimensions <= 4:
        raise LoadError(
            f"{str(path)!r} is an idx file of type 0x{kind:02x} with {dimensions} dimensions; "
            "only bytes (0x08) with 1 to 4 dimensions are read here, as in MNIST."
        )
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise LoadError(f"{str(path)!r} is truncated: it ends inside its header. Fetch it again.")
    shape = struct.unpack(f">{dimensions}I", header)
    size = math.prod(shape)
    if size > max_bytes:
        raise LoadError(f"{str(path)!r} claims the shape {shape}, {size:,} bytes; at most {max_bytes:,} are read.")
    data = file.read(size + 1)
    if len(data) != size:
        fault = f"holds only {len(data):,}" if len(data) < size else "goes on after them"
        raise LoadError(f"{str(path)!r} needs {size:,} bytes for its shape {shape} and {fault}. Fetch it again.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape).copy()  # a copy: tensors want writable memory


def _first(root: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` that exists in one of the folders where MNIST is kept."""
    candidates = (root / folder / name for folder in _FOLDERS for name in names)
    return next((path for path in candidates if path.is_file()), None)


def _npz_arrays(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The arrays x and y of an npz file; each header is judged before its data is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            missing = {"x.npy", "y.npy"} - set(archive.namelist())
            if missing:
                found = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist())) or "nothing"
                raise LoadError(f"{str(path)!r} holds {found}; it needs the arrays x (pictures) and y (labels).")
            return _npy(archive, "x.npy", path), _npy(archive, "y.npy", path)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise LoadError(f"{str(path)!r} cannot be read as an npz file: {error}. Fetch it again.") from error


def _npy(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray[Any, Any]:
    """One array of an opened npz file."""
    try:
        with archive.open(name) as file:
            version = npy.read_magic(file)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise UnsafeFileError(
                f"{name} in {str(path)!r} holds pickled objects, which could run code; it is not read."
            )
        size = math.prod(shape) * dtype.itemsize
        if size > LARGEST:
            raise LoadError(f"{name} in {str(path)!r} claims {size:,} bytes; at most {LARGEST:,} are read.")
        with archive.open(name) as file:
            return npy.read_array(file, allow_pickle=False)
    except LoadError:
        raise
    except (ValueError, SyntaxError, TokenError) as error:  # the last two: numpy parses an odd header as Python text
        raise LoadError(f"{name} in {str(path)!r} is no intact array: {error}. Fetch it again.") from error


def _check(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], picture: tuple[int, ...], source: str) -> None:
    """Refuse arrays that are not pictures of one shape with a label each."""
    wanted = "(n, " + ", ".join(map(str, picture)) + ")"
    if x.dtype != np.uint8 or x.shape[1:] != picture or x.ndim != len(picture) + 1:
        raise LoadError(f"the pictures in {source} are {x.dtype} of shape {x.shape}; uint8 of {wanted} is needed.")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise LoadError(f"the labels in {source} are {y.dtype} of shape {y.shape}; whole numbers of (n,) are needed.")
    if len(x) != len(y):
        raise LoadError(f"{source}: {len(x):,} pictures and {len(y):,} labels do not belong together.")
    if not len(x):
        raise LoadError(f"{source}: no pictures at all.")
    if y.min() < 0 or y.max() >= _CLASSES:
        raise LoadError(f"the labels in {source} run from {y.min()} to {y.max()}; the classes are 0 to {_CLASSES - 1}.")
