"""torchvision's models, with a stand-in for torchvision itself, which need not be installed where the tests run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn

import sparring as sp
from sparring.core.errors import LoadError, MissingDependencyError, UnknownNameError, UnsafeFileError
from sparring.victims import InputSpec


class FakeWeights:
    """What the adapter uses of torchvision's weight enumerations."""

    def __init__(self) -> None:
        self.meta = {"categories": ["tench", "goldfish", "shark"]}
        self.failure: Exception | None = None
        self.asked: list[dict[str, Any]] = []

    def transforms(self) -> Any:
        return SimpleNamespace(
            crop_size=[24],
            resize_size=[32],
            mean=[0.4, 0.5, 0.6],
            std=[0.2, 0.3, 0.4],
            interpolation=SimpleNamespace(value="bicubic"),
        )

    def get_state_dict(self, **keywords: Any) -> dict[str, Any]:
        self.asked.append(keywords)
        if self.failure is not None:
            raise self.failure
        return {}


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> FakeWeights:
    made = FakeWeights()
    models = ModuleType("torchvision.models")
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)).train()
    models.list_models = lambda module: ["alexnet", "resnet18", "resnet34"] if module is models else ["yolo"]  # type: ignore[attr-defined]
    models.get_model_weights = lambda name: SimpleNamespace(DEFAULT=made)  # type: ignore[attr-defined]
    models.get_model = lambda name, weights, progress: net if weights is made and not progress else None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return made


@pytest.mark.parametrize("name", ["torchvision:resnet18", "resnet18", "alexnet"])
def test_a_model_comes_with_labels_normalisation_and_pictures(weights: FakeWeights, name: str) -> None:
    victim: Any = sp.load(name)
    assert victim.labels == ("tench", "goldfish", "shark")
    assert victim.input == InputSpec((24, 24), 32, "bicubic")
    assert victim.name == name.removeprefix("torchvision:")
    assert not victim.net.training
    x = torch.rand(1, 3, 24, 24)
    expected = victim.net(
        (x - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    )
    assert torch.allclose(victim.query(x).scores, expected, atol=1e-6)
    assert all(asked["weights_only"] is True and asked["check_hash"] is True for asked in weights.asked)
    assert weights.asked


def test_unknown_names(weights: FakeWeights) -> None:
    with pytest.raises(UnknownNameError, match="torchvision model is called 'resnet81'; close matches: resnet18"):
        sp.load("torchvision:resnet81")


def test_weights_that_cannot_be_had(weights: FakeWeights) -> None:
    weights.failure = URLError("no route to host")
    with pytest.raises(LoadError, match=r"weights of torchvision:resnet18 are not to be had.*no route to host"):
        sp.load("torchvision:resnet18")


def test_weights_that_hold_code(weights: FakeWeights) -> None:
    import pickle

    weights.failure = pickle.UnpicklingError("Weights only load failed")
    with pytest.raises(UnsafeFileError, match="hold code beside tensors"):
        sp.load("torchvision:resnet18")


def without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_missing_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    without_torchvision(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it were not installed
    with pytest.raises(MissingDependencyError, match=r"pip install 'sparring\[torchvision\]'"):
        sp.load("torchvision:resnet18")


def test_a_torchvision_built_for_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_torchvision(monkeypatch)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(
        MissingDependencyError, match=r"torchvision::nms does not exist.*belongs to the installed torch"
    ):
        sp.load("torchvision:resnet18")
