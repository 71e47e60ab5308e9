"""One picture through one model: every source, every kind of victim, and the table that comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sparring as sp
from sparring.core.errors import CapabilityError, InputError, LoadError, PictureError, VictimError, VictimWarning
from sparring.data import load_digits, sample_picture
from sparring.see import Viewer
from sparring.victims import loading


class Mean(nn.Module):
    """Scores that are the mean of each channel: what it sees can be read off its answer."""

    def forward(self, x: Tensor) -> Tensor:
        return 20 * x.mean((2, 3))


@pytest.fixture
def reddish(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (60, 40), (200, 30, 60)).save(path)
    return path


def test_every_source_of_a_picture_gives_the_same_answer(tmp_path: Path) -> None:
    picture = sample_picture(7)
    path = tmp_path / "digit.png"
    picture.save(path)
    x, y = load_digits("test", eight_bit=True)
    sources: list[Any] = [path, str(path), picture, np.asarray(picture), x[7], path.read_bytes()]
    answers = [sp.classify(source, "digits") for source in sources]
    assert {seen.label for seen in answers} == {str(int(y[7]))}
    assert len({seen.confidence for seen in answers}) == 1


def test_an_enlarged_digit_is_averaged_back_to_its_own_pixels() -> None:
    small, large = (sp.classify(sample_picture(3, scale=scale), "digits") for scale in (1, 12))
    assert torch.equal(small.pixels, large.pixels)


def test_the_table_is_ranked_and_sums_to_at_most_one(reddish: Path) -> None:
    seen = sp.classify(reddish, Mean().eval(), labels=["red", "green", "blue"], top=2)
    assert seen.labels == ("red", "blue")
    expected = (20 * torch.tensor([200, 30, 60]) / 255).softmax(0)
    assert seen.confidences == pytest.approx([float(expected[0]), float(expected[2])], rel=1e-4)
    assert seen.indices == (0, 2)
    lines = repr(seen).splitlines()
    assert [line.split() for line in lines] == [["red", ">99.9%"], ["blue", "<0.1%"]]
    assert seen.as_dict()["top"][1] == {"label": "blue", "index": 2, "confidence": seen.confidences[1]}


def test_equal_scores_name_the_label_that_the_victim_answers() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 5)

    seen = sp.classify(torch.zeros(3, 4, 4), Flat().eval())
    assert seen.index == int(sp.Victim(Flat().eval()).query(torch.zeros(1, 3, 4, 4)).labels[0])
    assert sorted(seen.indices) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("top", [0, -1, True, "3"])
def test_top_must_be_a_count(reddish: Path, top: Any) -> None:
    with pytest.raises(InputError, match="top is"):
        sp.classify(reddish, Mean().eval(), top=top)


def test_without_a_model_the_digits_never_step_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise LoadError("not here")

    monkeypatch.setattr(loading, "open_torchvision", missing)
    monkeypatch.setattr(loading, "open_hub", missing)
    for picture in (Image.new("RGB", (300, 200)), sample_picture(0)):
        with pytest.raises(LoadError, match=r"no model was named.*Name a model: digits"):
            sp.classify(picture)
    with pytest.raises(InputError, match="mean, std came without a model"):
        sp.classify(sample_picture(0), mean=[0.5], std=[0.5])


def test_a_victim_without_a_size_sees_the_picture_at_its_own(reddish: Path) -> None:
    assert sp.classify(reddish, Mean().eval()).pixels.shape == (3, 40, 60)
    assert sp.classify(reddish, Mean().eval(), size=16, resize=20).pixels.shape == (3, 16, 16)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 2)).eval()
    with pytest.raises(VictimError, match=r"came at its own size, 40 x 60: say size="):
        sp.classify(reddish, flat)


def test_grey_networks_get_grey_pictures(reddish: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert sp.classify(reddish, net).pixels.shape == (1, 40, 60)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    assert sp.classify(torch.zeros(1, 4, 4), flat).pixels.shape == (1, 4, 4)
    assert sp.classify(Image.new("L", (4, 4)), flat).pixels.shape == (1, 4, 4)
    assert sp.classify(np.zeros((4, 4), np.uint8), flat).pixels.shape == (1, 4, 4)


def test_bounds_other_than_the_unit_interval() -> None:
    class Levels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.amax((1, 2, 3)), x.amin((1, 2, 3))], 1)

    victim = sp.Victim(Levels(), bounds=(-1.0, 3.0))
    viewer = Viewer(victim)
    raw = viewer.raw(viewer.pixels(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)))
    assert victim.query(raw).scores.tolist() == [[3.0, -1.0]]  # type: ignore[union-attr]
    assert torch.allclose(viewer.from_raw(raw), torch.tensor([[[0.0, 1.0]]]).expand(3, 1, 2))
    assert viewer.span == 4.0


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: {"logits": x.mean((2, 3))},
        lambda x: (x.mean((2, 3)), None),
        lambda x: x.mean((2, 3))[:, :1],
        lambda x: x.mean((1, 2, 3)),
    ],
)
def test_outputs_of_every_shape(reddish: Path, answer: Any) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return answer(x)

    seen = sp.classify(reddish, Net().eval())
    assert len(seen.labels) == (
        3 if len(answer(torch.zeros(1, 3, 2, 2))) > 1 or isinstance(answer(torch.zeros(1, 3, 2, 2)), dict) else 2
    )


def test_a_victim_that_answers_labels_alone(reddish: Path) -> None:
    victim = sp.BlackBox(lambda x: torch.ones(len(x), dtype=torch.int64), labels=["no", "yes"])
    seen = sp.classify(reddish, victim)
    assert (seen.label, seen.confidence) == ("yes", None)
    assert repr(seen) == "yes         "[: len(repr(seen))]
    assert seen.figure() is not None


def test_a_detector_that_refuses(reddish: Path) -> None:
    victim = sp.Victim(Mean().eval()).defended(detector=lambda x: torch.zeros(len(x), dtype=torch.bool))
    seen = sp.classify(reddish, victim)
    assert seen.accepted is False
    assert "refused by the victim's detector" in repr(seen)


def test_victims_of_other_things_are_refused() -> None:
    victim = sp.BlackBox(lambda x: torch.zeros(len(x), dtype=torch.int64), domain="text")
    with pytest.raises(CapabilityError, match="takes text and no pictures"):
        sp.classify(torch.zeros(3, 4, 4), victim)


def test_a_network_in_train_mode_is_asked_in_eval_mode_and_told(reddish: Path) -> None:
    net = nn.Sequential(nn.Dropout(0.9), Mean()).train()
    with pytest.warns(VictimWarning, match="train mode"):
        seen = sp.classify(reddish, net)
    assert net.training
    assert seen.confidence == pytest.approx(float((20 * torch.tensor([200, 30, 60]) / 255).softmax(0)[0]), rel=1e-4)


def test_pictures_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(PictureError):
        sp.classify(tmp_path / "x.png", "digits")
    with pytest.raises(InputError, match="NaN"):
        sp.classify(torch.full((1, 8, 8), torch.nan), "digits")
    with pytest.raises(InputError, match="looks normalised"):
        sp.classify(torch.full((1, 8, 8), -1.5), "digits")
