"""The embedded digits: the split, the grids and the sample picture."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image

from sparring.core.errors import InputError, LoadError, UnknownNameError
from sparring.data import digits
from sparring.data.digits import load_digits, sample_picture


@pytest.fixture
def forget_the_cache() -> Iterator[None]:
    digits._stored.cache_clear()
    yield
    digits._stored.cache_clear()


def test_the_halves_are_disjoint_complete_and_stratified() -> None:
    x_test, y_test = load_digits("test")
    x_train, y_train = load_digits("train")
    assert x_test.shape == (500, 1, 8, 8)
    assert x_train.shape == (1297, 1, 8, 8)
    assert torch.bincount(y_test).tolist() == [50] * 10
    stored = sklearn.datasets.load_digits()
    assert torch.bincount(torch.cat([y_test, y_train])).tolist() == np.bincount(stored.target).tolist()
    # The 1,797 pictures are all different, so sets of pictures tell which is where.
    rows = {row.tobytes() for row in (stored.images / 16).astype(np.float32)}
    test_rows, train_rows = ({row.numpy().tobytes() for row in x[:, 0]} for x in (x_test, x_train))
    assert not test_rows & train_rows
    assert test_rows | train_rows == rows


def test_the_split_is_the_documented_one_forever() -> None:
    """The first of each class in the order of the hashes; these places in scikit-learn's array must never change."""
    stored = sklearn.datasets.load_digits()
    place = {row.tobytes(): i for i, row in enumerate((stored.images / 16).astype(np.float32))}
    places = [place[row.numpy().tobytes()] for row in load_digits("test")[0][:, 0]]
    assert places == sorted(places)
    assert places[:12] == [0, 5, 10, 15, 16, 22, 27, 28, 34, 35, 36, 38]
    assert sum(places) == 444006


def test_values_are_sixteenths_exactly() -> None:
    x, y = load_digits("train")
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x * 16, (x * 16).round())
    assert x.min() == 0
    assert x.max() == 1


def test_eight_bit_values_are_the_nearest_on_the_grid() -> None:
    exact, y = load_digits("test")
    rounded, y_rounded = load_digits("test", eight_bit=True)
    assert torch.equal(rounded, (rounded * 255).round() / 255)
    assert not torch.equal(exact, (exact * 255).round() / 255)
    assert (rounded - exact).abs().max() <= 1 / 510 + 1e-7
    assert torch.equal(y, y_rounded)


def test_callers_get_tensors_of_their_own() -> None:
    x, y = load_digits()
    x.zero_()
    y.zero_()
    again, labels = load_digits()
    assert again.sum() > 0
    assert labels.sum() > 0


def test_the_global_random_states_stay_as_they_were() -> None:
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    load_digits("train")
    sample_picture(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="test"):
        load_digits("tets")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1, 5])
def test_the_sample_picture_survives_a_png_and_is_the_test_digit(scale: int) -> None:
    buffer = io.BytesIO()
    sample_picture(17, scale=scale).save(buffer, "PNG")
    picture = Image.open(buffer)
    assert picture.mode == "L"
    assert picture.size == (8 * scale, 8 * scale)
    small = np.asarray(picture.resize((8, 8), Image.Resampling.BOX))
    x, _ = load_digits("test", eight_bit=True)
    assert torch.equal(torch.from_numpy(small.copy()).float() / 255, x[17, 0])


@pytest.mark.parametrize(
    ("index", "scale", "word"), [(500, 1, "index"), (-1, 1, "index"), (0, 0, "scale"), (0, 257, "scale")]
)
def test_a_sample_picture_that_does_not_exist(index: int, scale: int, word: str) -> None:
    with pytest.raises(InputError, match=word):
        sample_picture(index, scale=scale)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((1796, 8, 8)), np.zeros(1796)),
        (np.full((1797, 8, 8), 17.0), np.zeros(1797)),
        (np.full((1797, 8, 8), 0.5), np.zeros(1797)),
    ],
)
@pytest.mark.usefixtures("forget_the_cache")
def test_other_digits_than_the_known_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray, labels: np.ndarray
) -> None:
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: SimpleNamespace(images=images, target=labels))
    with pytest.raises(LoadError, match="scikit-learn"):
        load_digits()
