"""Twenty photos, a network that resizes and crops: attack, PNG, classify the file; the same wrong label each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sparring.cli import main

_BUILDER = """
import importlib.util
spec = importlib.util.spec_from_file_location("zoo_for_photos", {zoo!r})
zoo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zoo)

def net():
    return zoo.MobileNetV1(0.25)
"""


@pytest.fixture(scope="module")
def photos(assets: Path) -> list[Path]:
    folder = assets / "data" / "imagenet_samples"
    found = sorted(folder.glob("*.jpg"))[::3][:20]
    if len(found) < 20:
        pytest.skip(f"the assets folder has {len(found)} photos of the 20 that are needed")
    return found


@pytest.fixture
def model(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flags of the MobileNet, whose builder stands in a module of the user's own."""
    name = f"my_nets_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(_BUILDER.format(zoo=str(assets / "zoo.py")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    half = "0.5,0.5,0.5"
    return [
        "--model", f"{assets / 'models' / 'imagenet_mobilenet_v1_025.safetensors'}@{name}:net",
        "--mean", half, "--std", half, "--size", "224", "--resize", "256",
        "--labels", str(assets / "data" / "imagenet_classes.txt"),
    ]  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_saved_files_are_misread_alike(
    photos: list[Path], model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = 0
    for photo in photos:
        out = tmp_path / f"{photo.stem}.png"
        code, shown = call(capsys, "attack", str(photo), *model, "--out", str(out))
        assert code == 0, shown
        assert shown["saved"]["still_fools"]
        assert shown["distances"]["linf"] <= 8 / 255 + 1e-6
        with Image.open(out) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (224, 224))
        code, seen = call(capsys, "classify", str(out), *model)
        assert code == 0
        assert seen["label"] == shown["after"]["label"] != shown["before"]["label"]
        assert seen["confidence"] == pytest.approx(shown["after"]["confidence"], abs=1e-4)
        right += int(photo.name[:3]) == shown["before"]["index"]
    assert right >= 8  # the small MobileNet knows half of ImageNet: the photos came in the right way up and in order


def test_a_target_by_name_and_by_any_of_its_synonyms(
    assets: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(assets / "data" / "imagenet_samples" / "340_zebra.jpg")
    if not Path(photo).is_file():
        pytest.skip("the assets folder has no zebra")
    for target in ("neck brace", "Tinca tinca"):
        code, shown = call(capsys, "attack", photo, *model, "--target", target, "--out", str(tmp_path / "z.png"))
        assert code == 0
        assert shown["before"]["label"] == "zebra"
        assert target in shown["after"]["label"]
        assert shown["saved"]["still_fools"]
    code, told = call(capsys, "attack", photo, *model, "--target", "neck brase")
    assert code == 2
    assert "close matches: neck brace" in told["error"]
