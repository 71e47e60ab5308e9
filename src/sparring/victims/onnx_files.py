"""What an ONNX file refers to: the weights that lie in other files, found without running or trusting the model.

An ONNX file is a protobuf message. Only the fields on the way to `TensorProto.external_data` are walked; everything else
is stepped over by its length, so that no tensor is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sparring.core.errors import LoadError, UnsafeFileError

LARGEST_FILE = 2**31  # what protobuf itself can hold
LARGEST_MODEL = 2**33

# message -> {field number: the message in it}, from onnx.proto
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_DEEPEST = 100  # protobuf's own limit


def read_model(path: Path) -> tuple[bytes, list[Path]]:
    """The bytes of an ONNX file, and the files beside it that hold its weights.

    Raises:
        LoadError: a file that is missing, too large or no ONNX.
        UnsafeFileError: it refers to a file outside its own folder.
    """
    shown = repr(str(path))
    if not path.is_file():
        raise LoadError(f"there is no file {shown}; give the path of an .onnx file")
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise LoadError(f"{shown} takes {size:,} bytes, and an ONNX file holds {LARGEST_FILE:,} at most")
    data = path.read_bytes()
    try:
        named = sorted(set(_locations(memoryview(data), "model", 0)))
    except (ValueError, IndexError) as cause:
        raise LoadError(f"{shown} is no intact ONNX file ({cause}). Export or download it again") from cause
    folder = path.parent.resolve()
    files = []
    for location in named:
        file = folder / location.replace("\0", "?")
        if Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
            raise UnsafeFileError(
                f"{shown} wants its weights from {location!r:.120}, outside its own folder, and no other file is read for a "
                "model. Where you trust it, export it again with its weights beside it"
            )
        if not file.is_file():
            raise LoadError(
                f"{shown} keeps weights in {location!r:.120}, which is not beside it; put both in one folder"
            )
        size += file.stat().st_size
        files.append(file.resolve())
    if size > LARGEST_MODEL:
        raise LoadError(f"{shown} and its weights take {size:,} bytes, and {LARGEST_MODEL:,} are read at most")
    return data, files


def _locations(data: memoryview, kind: str, depth: int) -> Iterator[str]:
    """The `location` of every external tensor below a message."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    for number, inner in _fields(data):
        below = _INSIDE[kind].get(number)
        if below == "entry":
            entry = {n: bytes(value).decode("utf-8") for n, value in _fields(inner)}
            if entry.get(1) == "location":
                yield entry.get(2, "")
        elif below is not None:
            yield from _locations(inner, below, depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Field number and content of the length-delimited fields of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at > len(data):
            raise ValueError("it ends too early")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"a number too long at byte {at}")
