"""The embedded pictures: scikit-learn's 8 x 8 handwritten digits, with one fixed split and no download."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from sparring.core.errors import InputError, LoadError, UnknownNameError

if TYPE_CHECKING:
    from PIL.Image import Image

TEST_PER_CLASS = 50
_COUNT = 1797
_LEVELS = 16
_LARGEST_SCALE = 256


def load_digits(split: Literal["test", "train"] = "test", *, eight_bit: bool = False) -> tuple[Tensor, Tensor]:
    """The 8 x 8 digits of scikit-learn as pixels in [0, 1], in one fixed split.

    The split is stratified and keyed by index: within each class the pictures are ordered by a hash of their index
    in scikit-learn's array, and the first 50 are the test set (500 pictures; 1,297 remain to train on). Each half
    then keeps scikit-learn's order. Nothing is drawn at random.

    The stored grey values are k/16, exact in float32. They do not lie on the grid k/255 of an 8-bit picture, so a
    space with a 256-level lattice refuses them; `eight_bit=True` gives the nearest values of that grid (at most
    1/510 away), which are also what a saved PNG holds.

    Args:
        split: "test" or "train".
        eight_bit: round the pixels to k/255.

    Returns:
        The pictures, float32 of shape (n, 1, 8, 8), and the labels, int64 of shape (n,). Both are fresh tensors.

    Raises:
        UnknownNameError: `split` is neither "test" nor "train".
        LoadError: the installed scikit-learn ships other digits than the ones this split was made for.

    Paper:
        Kaynak 1995, "Methods of Combining Multiple Classifiers and Their Applications to Handwritten Digit
        Recognition" (the UCI collection "Optical Recognition of Handwritten Digits", test part).
    """
    if split not in ("test", "train"):
        raise UnknownNameError.among("split of the digits", split, ("test", "train"))
    grey, labels = _stored()
    held_out = _held_out(labels)
    chosen = np.flatnonzero(held_out if split == "test" else ~held_out)
    if eight_bit:
        pixels = torch.from_numpy(_to_bytes(grey[chosen])).float() / 255
    else:
        pixels = torch.from_numpy(grey[chosen]).float() / _LEVELS
    return pixels.unsqueeze(1), torch.from_numpy(labels[chosen])


def sample_picture(index: int = 0, *, scale: int = 1) -> Image:
    """One test digit as an 8-bit grey picture, ready to be saved as a PNG and attacked.

    Args:
        index: its place in `load_digits("test")`, 0 to 499.
        scale: how many picture pixels one digit pixel takes on each side, 1 to 256. At 1 the picture is the network's
            own 8 x 8 input; a larger one is for human eyes, and averaging its blocks gives back the 8 x 8 exactly.

    Returns:
        A PIL picture of mode "L" and side 8 * scale.

    Raises:
        InputError: `index` or `scale` is outside its range.
    """
    from PIL import Image

    count = 10 * TEST_PER_CLASS
    if not 0 <= index < count:
        raise InputError(f"sample_picture got index {index}; there are {count} test digits: give 0 to {count - 1}.")
    if not 1 <= scale <= _LARGEST_SCALE:
        raise InputError(f"sample_picture got scale {scale}; give a whole number from 1 to {_LARGEST_SCALE}.")
    grey, labels = _stored()
    picture = _to_bytes(grey[np.flatnonzero(_held_out(labels))[index]])
    return Image.fromarray(np.kron(picture, np.ones((scale, scale), dtype=np.uint8)))


@lru_cache(maxsize=1)
def _stored() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """scikit-learn's grey values 0..16, uint8 (1797, 8, 8), and labels, int64 (1797,), checked."""
    from sklearn.datasets import load_digits as from_sklearn  # about a second: only when pictures are asked for

    bunch = from_sklearn()
    images, labels = np.asarray(bunch.images), np.asarray(bunch.target, dtype=np.int64)
    if images.shape != (_COUNT, 8, 8) or labels.shape != (_COUNT,):
        raise LoadError(
            f"scikit-learn's digits have shape {images.shape} and {labels.shape} labels; the fixed split needs "
            f"({_COUNT}, 8, 8) and ({_COUNT},). Install a scikit-learn release that ships the UCI test part."
        )
    grey = images.astype(np.uint8)
    if not np.array_equal(grey, images) or grey.max() > _LEVELS:
        raise LoadError(f"scikit-learn's digits are not whole grey values 0 to {_LEVELS}; reinstall scikit-learn.")
    grey.setflags(write=False)
    labels.setflags(write=False)
    return grey, labels


def _held_out(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which pictures are test pictures, bool (n,): the first of each class in the order of their index's hash."""
    keys = [blake2b(f"digits:{i}".encode(), digest_size=8).digest() for i in range(len(labels))]
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        held_out[sorted(members, key=keys.__getitem__)[:TEST_PER_CLASS]] = True
    return held_out


def _to_bytes(grey: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Grey values 0..16 on the nearest of the 256 levels of a byte."""
    return np.rint(grey.astype(np.float64) * (255 / _LEVELS)).astype(np.uint8)
