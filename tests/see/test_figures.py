"""The figures: three panels with the victim's answers, an honest amplification factor, and no global state."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sparring as sp
from sparring.core.errors import InputError, PictureError
from sparring.data import sample_picture
from sparring.see.classification import percent, short_name
from sparring.see.figures import amplification


@pytest.fixture(scope="module")
def shown() -> Any:
    return sp.attack(sample_picture(0), "pgd", model="digits", target="8")


def test_three_panels_with_the_answers_in_their_titles(shown: Any) -> None:
    figure = shown.figure()
    before, difference, after = figure.axes
    assert before.get_title() == f"original\n0 ({percent(shown.before.confidence)})"
    assert after.get_title() == f"adversarial\n8 ({percent(shown.after.confidence)})"
    assert difference.get_title().startswith("difference × 1 (grey: no change)\nlinf 0.298")
    assert "pgd towards '8' (linf, 0.3): fooled" in figure.get_suptitle()


def test_the_panels_hold_the_pictures_and_the_amplified_difference() -> None:
    shown = sp.attack(sample_picture(2), "pgd", model="digits", eps=16 / 255)
    before, difference, after = (axes.get_images()[0].get_array() for axes in shown.figure().axes)
    assert np.array_equal(before, shown.original[0])
    assert np.array_equal(after, shown.adversarial[0])
    delta = (shown.adversarial - shown.original)[0].numpy()
    factor = amplification(float(np.abs(delta).max()))
    assert factor == 5
    assert np.allclose(difference, 0.5 + factor * delta, atol=1e-6)
    assert np.allclose(np.asarray(difference)[delta == 0], 0.5)


@pytest.mark.parametrize(
    ("largest", "factor"), [(8 / 255, 15), (1 / 255, 100), (0.5, 1), (1.0, 0.5), (0.0, 1), (0.1, 5), (1e-9, 100)]
)
def test_the_factor_is_round_and_never_clips(largest: float, factor: float) -> None:
    assert amplification(largest) == factor
    assert amplification(largest) * largest <= 0.5 + 1e-5


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_are_written(shown: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"f.{suffix}"
    shown.figure(path)
    assert path.stat().st_size > 1000
    if suffix == "png":
        with Image.open(path) as image:
            assert image.width > 1000


def test_figures_that_cannot_be_written(shown: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Use \.png, \.svg or \.pdf"):
        shown.figure(tmp_path / "f.docx")
    with pytest.raises(PictureError, match="does not exist"):
        shown.figure(tmp_path / "none" / "f.png")


def test_classifications_have_a_figure(tmp_path: Path) -> None:
    seen = sp.classify(sample_picture(3), "digits", top=3)
    picture, bars = seen.figure(tmp_path / "c.png").axes
    assert picture.get_title() == f"digits\n{seen.label} ({percent(seen.confidence)})"
    assert [label.get_text() for label in bars.get_yticklabels()] == list(reversed(seen.labels))
    assert [patch.get_width() for patch in bars.patches] == pytest.approx(list(reversed(seen.confidences)))  # type: ignore[arg-type]


def test_pyplot_stays_out_of_it() -> None:
    import subprocess

    code = (
        "import sys, sparring as sp; from sparring.data import sample_picture; "
        "sp.attack(sample_picture(0), model='digits').figure(); print('matplotlib.pyplot' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_percentages_are_never_rounded_to_certainty() -> None:
    assert [percent(c) for c in (None, 1.0, 0.99951, 0.9994, 0.5, 0.0004, 0.0)] == [
        "",
        ">99.9%",
        ">99.9%",
        "99.9%",
        "50.0%",
        "<0.1%",
        "<0.1%",
    ]


def test_long_names_are_cut() -> None:
    assert short_name("tench, Tinca tinca") == "tench"
    assert short_name("x" * 40, 10) == "x" * 9 + "…"
    assert short_name(", odd") == ", odd"
