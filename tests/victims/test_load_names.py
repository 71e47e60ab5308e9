"""Victims by name, by object, with options; and what is said about names that are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparring as sp
from sparring.core.errors import InputError, LoadError, MissingDependencyError, UnknownNameError, VictimError
from sparring.victims import BARE_NAMES, InputSpec, LoadedVictim, load_default, loading, picture_mode
from sparring.victims.labels import read_labels
from sparring.victims.spec import Parts


def net(channels: int = 3, classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, classes)).eval()


def test_digits_are_embedded_and_know_their_pictures() -> None:
    victim = sp.load("digits")
    assert isinstance(victim, LoadedVictim)
    assert victim.labels == tuple("0123456789")
    assert victim.input == InputSpec(size=(8, 8), resize=8, resample="box", mode="L")
    from sparring.data import load_digits

    x, y = load_digits("test")
    assert float((victim.query(x).labels == y).float().mean()) > 0.95


def test_a_victim_passes_through_and_a_network_becomes_one() -> None:
    victim = sp.Victim(net())
    assert sp.load(victim) is victim
    module = net()
    wrapped = sp.load(module, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1], labels=["a", "b", "c", "d"], name="mine")
    assert wrapped.name == "mine"
    assert wrapped.labels == ("a", "b", "c", "d")
    assert wrapped.input is None  # type: ignore[attr-defined]
    x = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.1])
    expected = module((x - mean[:, None, None]) / std[:, None, None])
    assert torch.allclose(wrapped.query(x).scores, expected, atol=1e-6)  # type: ignore[arg-type]


def test_size_without_resize_scales_to_the_size() -> None:
    assert sp.load(net(), size=32).input == InputSpec((32, 32), 32)  # type: ignore[attr-defined]
    assert sp.load(net(), size=(32, 48)).input == InputSpec((32, 48), (32, 48))  # type: ignore[attr-defined]
    given = sp.load(net(1), size=32, resize=40, resample="bicubic").input  # type: ignore[attr-defined]
    assert given == InputSpec((32, 32), 40, "bicubic", "L")


def test_options_change_what_the_provider_says_and_leave_the_rest() -> None:
    victim = sp.load("digits", size=16, name="big digits")
    assert victim.input == InputSpec((16, 16), 16, "box", "L")  # type: ignore[attr-defined]
    assert victim.labels == tuple("0123456789")
    assert victim.name == "big digits"


def test_a_victim_takes_other_pictures_but_no_other_normalisation() -> None:
    victim = sp.Victim(net(), mean=[0.5] * 3, std=[0.5] * 3)
    dressed = sp.load(victim, size=32)
    assert dressed is not victim
    assert not hasattr(victim, "input")
    assert dressed.input == InputSpec((32, 32), 32)  # type: ignore[attr-defined]
    assert dressed.net is victim.net  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="is a victim already, so mean must be said where it is made"):
        sp.load(victim, mean=[0.1] * 3)


def test_defended_victims_keep_their_pictures() -> None:
    victim = sp.load("digits")
    assert isinstance(victim, LoadedVictim)
    assert victim.defended([nn.Identity()]).input == victim.input  # type: ignore[attr-defined]


def test_the_kind_of_picture_is_read_off_the_network() -> None:
    assert picture_mode(net(1)) == "L"
    assert picture_mode(net(3), 1) == "RGB"  # one number may stand for all channels
    assert picture_mode(nn.Linear(3, 2), 1) == "L"
    assert picture_mode(nn.Linear(3, 2), 3) == "RGB"
    assert picture_mode(nn.Linear(3, 2)) is None


def test_one_number_normalises_every_channel() -> None:
    module = net()
    x = torch.rand(2, 3, 8, 8)
    scores = sp.load(module, mean=0.5, std=0.25).query(x).scores
    assert torch.allclose(scores, module((x - 0.5) / 0.25), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digit", "close matches: digits"),
        ("resnet19", "resnet18"),
        ("microsoft/resnet-18", "Perhaps hf:microsoft/resnet-18"),
        ("onnx:model", "kind of model.*'onnx'"),
        ("hff:x/y", "close matches: hf"),
    ],
)
def test_unknown_names_meet_close_ones(name: str, told: str) -> None:
    with pytest.raises(UnknownNameError, match=told):
        sp.load(name)


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("", InputError, "name of the model is empty"),
        ("hf:", InputError, "names no model after the colon"),
        ("torchvision: ", InputError, "names no model after the colon"),
        ("https://example.org/net.onnx", LoadError, "not fetched from addresses"),
        ("file:///etc/passwd", LoadError, "not fetched from addresses"),
    ],
)
def test_names_that_cannot_be(name: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        sp.load(name)


@pytest.mark.parametrize("thing", [3, None, [1, 2], lambda x: x])
def test_things_that_are_no_model(thing: Any) -> None:
    with pytest.raises(InputError, match="model is a"):
        sp.load(thing)


def test_a_file_that_is_no_weights_file(tmp_path: Path) -> None:
    path = tmp_path / "net.h5"
    path.write_bytes(b"x")
    with pytest.raises(LoadError, match=r"no weights file that is read here; the suffixes are \.safetensors"):
        sp.load(path)


def test_unknown_options_meet_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="option of load is called 'means'; close matches: mean"):
        sp.load("digits", means=[0.5])  # type: ignore[call-arg]


def test_options_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="builder= goes with a weights file"):
        sp.load("digits", builder=net)
    with pytest.raises(InputError, match="builder= goes with a weights file"):
        sp.load(net(), builder=net)
    with pytest.raises(InputError, match="give both or neither"):
        sp.load(net(), mean=[0.5] * 3)
    with pytest.raises(InputError, match="came without size"):
        sp.load(net(), resize=256)
    with pytest.raises(InputError, match="one number per channel"):
        sp.load(net(), mean="half", std="half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="device 'nonsense' is not to be had"):
        sp.load(net(), device="nonsense")


def test_labels_that_are_too_few_are_said_at_the_first_question() -> None:
    victim = sp.load(net(), labels=["a", "b"])
    with pytest.raises(VictimError, match="has 2 label names but answers 4 scores"):
        victim.admit(torch.rand(1, 3, 8, 8), [0])


# -- bare names and the default ----------------------------------------------------------------------------------------


def parts(name: str) -> Parts:
    return Parts(net(), name)


def test_a_bare_name_goes_through_the_first_provider_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def vision(name: str) -> Parts:
        asked.append(f"torchvision:{name}")
        raise MissingDependencyError("no torchvision")

    def hub(name: str) -> Parts:
        asked.append(f"hf:{name}")
        return parts(name)

    monkeypatch.setattr(loading, "open_torchvision", vision)
    monkeypatch.setattr(loading, "open_hub", hub)
    victim = sp.load("ResNet-18")
    assert asked == ["torchvision:resnet18", "hf:microsoft/resnet-18"]
    assert victim.name == "resnet18"
    asked.clear()
    monkeypatch.setattr(loading, "open_torchvision", parts)
    sp.load("resnet50")
    assert asked == []


def test_a_bare_name_that_nobody_can_deliver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Parts:
        raise MissingDependencyError(f"install the provider of {name}")

    def unreachable(name: str) -> Parts:
        raise LoadError(f"{name} cannot be reached")

    monkeypatch.setattr(loading, "open_torchvision", missing)
    monkeypatch.setattr(loading, "open_hub", missing)
    with pytest.raises(
        MissingDependencyError, match=r"provider of resnet18; install the provider of microsoft/resnet-18"
    ):
        sp.load("resnet18")
    with pytest.raises(MissingDependencyError, match="provider of alexnet"):
        sp.load("alexnet")
    monkeypatch.setattr(loading, "open_hub", unreachable)
    with pytest.raises(LoadError, match=r"'resnet18' cannot be had: .*microsoft/resnet-18 cannot be reached"):
        sp.load("resnet18")


def test_the_default_is_an_imagenet_model_or_an_error_and_never_the_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Parts:
        raise MissingDependencyError("not installed")

    monkeypatch.setattr(loading, "open_torchvision", missing)
    monkeypatch.setattr(loading, "open_hub", missing)
    with pytest.raises(LoadError, match=r"no model was named.*not installed.*Name a model: digits"):
        load_default()
    monkeypatch.setattr(loading, "open_hub", parts)
    assert load_default().name == "resnet18"


def test_the_table_of_bare_names_is_spelled_as_it_is_looked_up() -> None:
    for name, providers in BARE_NAMES.items():
        assert name == name.casefold().replace("-", "_")
        assert any(providers)


# -- labels ------------------------------------------------------------------------------------------------------------


def test_labels_from_files(tmp_path: Path) -> None:
    lines = tmp_path / "names.txt"
    lines.write_text("tench, Tinca tinca\n goldfish \n", encoding="utf-8")
    assert read_labels(lines) == ("tench, Tinca tinca", "goldfish")
    listed = tmp_path / "names.json"
    listed.write_text(json.dumps(["a", "b"]))
    assert read_labels(str(listed)) == ("a", "b")
    listed.write_text(json.dumps({"1": "b", "0": "a"}))
    assert read_labels(listed) == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "error", "told"),
    [
        ("x.json", b"{", LoadError, "is no JSON"),
        ("x.json", b'{"1": "a"}', InputError, r"not as 0\.\.0"),
        ("x.json", b'{"one": "a"}', InputError, "must map class numbers to names"),
        ("x.json", b"3", InputError, "one name per class"),
        ("x.txt", b"", InputError, "one name per class"),
        ("x.txt", b"\xff\xfe\xff", LoadError, "no UTF-8 text"),
    ],
)
def test_label_files_that_are_none(
    tmp_path: Path, name: str, content: bytes, error: type[Exception], told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=told):
        read_labels(tmp_path / name)


def test_a_label_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        read_labels(tmp_path / "none.txt")


def test_importing_the_package_imports_no_provider() -> None:
    import subprocess

    heavy = ("transformers", "torchvision", "matplotlib")
    code = f"import sys, sparring.see; print([m for m in {heavy} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
