"""The readers of MNIST and CIFAR files: sound ones in every layout, and every way in which a file can be bad."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.core.errors import LoadError, UnknownNameError, UnsafeFileError
from sparring.data.idx import load_cifar_npz, load_mnist, read_idx

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 0, 9, 1, 1, 7], dtype=np.uint8)
COLOURED = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """The array in the idx format, written from its published description."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def save_mnist(folder: Path, stem: str, sep: str = "-", zipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in ((f"images{sep}idx3", PICTURES), (f"labels{sep}idx1", LABELS)):
        data = idx_bytes(array)
        path = folder / f"{stem}-{kind}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(data) if zipped else data)


def assert_is_the_set(x: torch.Tensor, y: torch.Tensor) -> None:
    assert x.shape == (6, 1, 28, 28)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x[:, 0], torch.from_numpy(PICTURES).float() / 255)
    assert y.tolist() == LABELS.tolist()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("sep", ["-", "."])
@pytest.mark.parametrize(("split", "stem"), [("train", "train"), ("test", "t10k")])
def test_idx_files_under_each_of_their_names(tmp_path: Path, split: Any, stem: str, sep: str, zipped: bool) -> None:
    save_mnist(tmp_path, stem, sep, zipped)
    assert_is_the_set(*load_mnist(tmp_path, split))


@pytest.mark.parametrize("below", ["data", "raw", "MNIST/raw"])
def test_the_folders_of_other_tools(tmp_path: Path, below: str) -> None:
    save_mnist(tmp_path / below, "t10k")
    assert_is_the_set(*load_mnist(str(tmp_path)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mnist_as_npz(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "mnist_train.npz", x=PICTURES, y=LABELS)
    assert_is_the_set(*load_mnist(tmp_path, "train"))


def test_the_idx_files_go_before_the_npz_and_half_a_pair_does_not_count(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist_test.npz", x=PICTURES[::-1], y=LABELS[::-1])
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(PICTURES))
    assert load_mnist(tmp_path)[1].tolist() == LABELS[::-1].tolist()
    save_mnist(tmp_path, "t10k")
    assert_is_the_set(*load_mnist(tmp_path))


def test_a_gzipped_file_without_the_suffix_is_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(gzip.compress(idx_bytes(LABELS)))
    (tmp_path / "labels.gz").write_bytes(idx_bytes(LABELS))
    assert read_idx(tmp_path / "labels").tolist() == LABELS.tolist()
    assert read_idx(tmp_path / "labels.gz").tolist() == LABELS.tolist()


BAD_IDX = {
    "empty": (b"", "no idx file"),
    "a text file": (b"<html>404</html>", "two zero bytes"),
    "floats": (struct.pack(">HBBI", 0, 0x0D, 1, 1) + b"\0\0\0\0", "type 0x0d"),
    "no dimensions": (struct.pack(">HBB", 0, 8, 0), "0 dimensions"),
    "too many dimensions": (struct.pack(">HBB", 0, 8, 200), "200 dimensions"),
    "header cut": (idx_bytes(PICTURES)[:10], "inside its header"),
    "data cut": (idx_bytes(PICTURES)[:-1], "holds only 4,703"),
    "data too long": (idx_bytes(PICTURES) + b"\0", "goes on"),
    "an enormous claim": (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "at most"),
    "gzip cut": (gzip.compress(idx_bytes(PICTURES))[:-500], "Fetch it again"),
    "gzip with a wrong checksum": (gzip.compress(idx_bytes(PICTURES))[:-8] + b"\0" * 8, "Fetch it again"),
    "gzip header alone": (b"\x1f\x8b", "Fetch it again"),
    "gzip of garbage": (b"\x1f\x8b\x08\0\0\0\0\0\0\0" + b"\xff" * 50, "Fetch it again"),
    "gzip bomb": (gzip.compress(idx_bytes(LABELS) + b"\0" * 10_000_000), "goes on"),
}


@pytest.mark.parametrize("name", BAD_IDX)
def test_bad_idx_files(tmp_path: Path, name: str) -> None:
    content, words = BAD_IDX[name]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=words) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_the_size_limit_is_the_callers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(idx_bytes(PICTURES))
    assert read_idx(path, max_bytes=PICTURES.size).shape == PICTURES.shape
    with pytest.raises(LoadError, match="at most 4,703 are read"):
        read_idx(path, max_bytes=PICTURES.size - 1)


def test_a_missing_file_or_a_folder_is_no_idx_file(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(LoadError, match="cannot be read"):
            read_idx(path)


def test_mnist_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"t10k-images-idx3-ubyte.gz.*mnist_test.npz"):
        load_mnist(tmp_path)
    with pytest.raises(LoadError, match="not a folder"):
        load_mnist(tmp_path / "gone")
    with pytest.raises(UnknownNameError, match="validation"):
        load_mnist(tmp_path, "validation")  # type: ignore[arg-type]
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS))
    with pytest.raises(LoadError, match="without its partner"):
        load_mnist(tmp_path)


BAD_PAIRS = {
    "one label short": (PICTURES, LABELS[:-1], "6 pictures and 5 labels"),
    "swapped": (LABELS, PICTURES, "the pictures in"),
    "other pictures": (PICTURES[:, :27], LABELS, r"\(n, 28, 28\)"),
    "labels in a square": (PICTURES, LABELS.reshape(2, 3), "the labels in"),
    "a label of 10": (PICTURES, np.array([0, 1, 2, 3, 4, 10]), "from 0 to 10"),
    "nothing": (PICTURES[:0], LABELS[:0], "no pictures"),
}


@pytest.mark.parametrize("layout", ["idx", "npz"])
@pytest.mark.parametrize("name", BAD_PAIRS)
def test_pictures_and_labels_that_do_not_fit(tmp_path: Path, name: str, layout: str) -> None:
    x, y, words = BAD_PAIRS[name]
    if layout == "npz":
        np.savez(tmp_path / "mnist_test.npz", x=x, y=y)
    else:
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(x))
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(y))
    with pytest.raises(LoadError, match=words):
        load_mnist(tmp_path)


def test_cifar_comes_channels_first_and_contiguous(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "cifar.npz", x=COLOURED, y=LABELS)
    x, y = load_cifar_npz(tmp_path / "cifar.npz")
    assert x.shape == (6, 3, 32, 32)
    assert x.is_contiguous()
    assert torch.equal(x, torch.from_numpy(COLOURED).permute(0, 3, 1, 2).float() / 255)
    assert y.dtype == torch.int64
    assert y.tolist() == LABELS.tolist()


def npz_bytes(save: Any = np.savez, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def npz_with_header(header: bytes) -> bytes:
    """An npz whose x.npy is `header` and nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", header)
        archive.writestr("y.npy", b"")
    return buffer.getvalue()


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


BAD_NPZ = {
    "no zip": (b"PK nothing", "cannot be read as an npz"),
    "cut": (npz_bytes(x=COLOURED, y=LABELS)[:-300], "cannot be read as an npz"),
    "damaged inside": (npz_bytes(x=COLOURED, y=LABELS).replace(COLOURED.tobytes()[:64], b"\0" * 64), "CRC"),
    "other names": (npz_bytes(images=COLOURED, labels=LABELS), "holds images, labels"),
    "floats": (npz_bytes(x=COLOURED / 255, y=LABELS), "uint8 of"),
    "channels first": (npz_bytes(x=COLOURED.transpose(0, 3, 1, 2), y=LABELS), r"\(n, 32, 32, 3\)"),
    "labels as floats": (npz_bytes(x=COLOURED, y=LABELS / 2), "whole numbers"),
    "no array": (npz_with_header(b"hello, this is text"), "no intact array"),
    "a header cut": (npz_with_header(npy_header("{'descr': '|u1', 'fortran_order'")), "no intact array"),
    "an array cut": (
        npz_with_header(npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (9, 32, 32, 3), }\n")),
        "no intact array",
    ),
    "an enormous claim": (
        npz_with_header(npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }\n")),
        "at most",
    ),
    "a negative size": (
        npz_with_header(npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 32, 32, 3), }\n")),
        "no intact array",
    ),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_bad_npz_files(tmp_path: Path, name: str) -> None:
    content, words = BAD_NPZ[name]
    path = tmp_path / "cifar.npz"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=words) as caught:
        load_cifar_npz(path)
    assert str(path) in str(caught.value)


SOUND = [
    idx_bytes(PICTURES[:1]),
    gzip.compress(idx_bytes(LABELS)),
    npz_bytes(x=COLOURED[:1], y=LABELS[:1]),
    npz_bytes(np.savez_compressed, x=COLOURED[:1] // 100, y=LABELS[:1]),
]


@given(data=st.data())
def test_damage_anywhere_is_a_load_error_or_harmless(data: st.DataObject) -> None:
    """Bytes overwritten or cut off: the reader answers or refuses, and raises nothing else."""
    content = bytearray(data.draw(st.sampled_from(SOUND)))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    for _ in range(data.draw(st.integers(0, 4))):  # the headers are where it matters
        content[data.draw(st.integers(0, min(150, len(content) - 1)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(content)) | st.just(len(content)))
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy remarks on a header that an old Python could have written
        path = Path(folder) / "file"
        path.write_bytes(content[:cut])
        for read in (read_idx, load_cifar_npz):
            with suppress(LoadError):
                read(path)


class Trap:
    """Unpickling one of these would leave a trace."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Trap, "sprung", True))


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "cifar.npz"
    path.write_bytes(npz_bytes(x=np.array([Trap()], dtype=object), y=LABELS))
    with pytest.raises(UnsafeFileError, match=r"x\.npy"):
        load_cifar_npz(path)
    assert not Trap.sprung


def test_a_missing_npz(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        load_cifar_npz(tmp_path / "gone.npz")


def test_the_real_sets(assets: Path) -> None:
    x, y = load_mnist(assets, "test")
    assert x.shape == (10_000, 1, 28, 28)
    assert y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # the official order
    assert torch.equal(x, (x * 255).round() / 255)
    x, y = load_cifar_npz(assets / "data" / "cifar10_jpeg_test.npz")
    assert x.shape == (2000, 3, 32, 32)
    assert set(y.tolist()) == set(range(10))


def test_the_real_mnist_is_what_a_network_for_it_expects(assets: Path, zoo: Any) -> None:
    """The orientation and the scale, judged by someone else's network."""
    x, y = load_mnist(assets, "test")
    with torch.no_grad():
        accuracy = (zoo.load("mnist_adv")(x[:500]).argmax(1) == y[:500]).float().mean()
    assert accuracy > 0.94
