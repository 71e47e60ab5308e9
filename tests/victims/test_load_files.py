"""Weights from files: safetensors and tensor-only .pt files with a builder; nothing in a file is executed."""

from __future__ import annotations

import importlib
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sparring as sp
from sparring.core.errors import InputError, LoadError, UnsafeFileError
from sparring.victims.files import split_builder

BUILDER = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4))

def needs(depth):
    return small()

def number():
    return 3

class Holder:
    make = staticmethod(small)

NOTHING = 5
"""


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4))


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an importable module of builders."""
    name = f"builders_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(BUILDER)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return name


@pytest.fixture
def trained(tmp_path: Path) -> nn.Module:
    net = small()
    with torch.no_grad():
        net[1].running_mean.fill_(0.3)  # type: ignore[union-attr,operator]
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    torch.save(net.state_dict(), tmp_path / "w.pt")
    return net.eval()


X = torch.linspace(0, 1, 3 * 64).reshape(1, 3, 8, 8)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_with_a_builder_by_place_by_string_and_by_function(
    tmp_path: Path, nets: str, trained: nn.Module, suffix: str
) -> None:
    path = tmp_path / f"w.{suffix}"
    ways: list[Any] = [
        sp.load(f"{path}@{nets}:small"),
        sp.load(path, builder=f"{nets}:Holder.make"),
        sp.load(str(path), builder=small),
    ]
    for victim in ways:
        assert torch.equal(victim.query(X).scores, trained(X))
        assert not victim.net.training
        assert victim.name == "w"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"_orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    ],
)
def test_checkpoints_as_training_scripts_write_them(tmp_path: Path, trained: nn.Module, wrap: Any) -> None:
    torch.save(wrap(trained.state_dict()), tmp_path / "checkpoint.pth")
    victim = sp.load(tmp_path / "checkpoint.pth", builder=small)
    scores = victim.query(X).scores
    assert scores is not None
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, trained(X), atol=2e-3)


def test_building_leaves_the_global_random_state(tmp_path: Path, trained: nn.Module) -> None:
    before = torch.random.get_rng_state()
    sp.load(tmp_path / "w.safetensors", builder=small)
    assert torch.equal(before, torch.random.get_rng_state())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)

    def __init__(self, path: str) -> None:
        self.path = path


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name, write in (
        ("bomb.pt", lambda p: torch.save({"w": torch.zeros(2), "b": Bomb(str(mark))}, p)),
        ("bomb.pth", lambda p: p.write_bytes(pickle.dumps(Bomb(str(mark))))),
    ):
        write(tmp_path / name)
        with pytest.raises(UnsafeFileError, match=r"code in a file is never run.*save_file"):
            sp.load(tmp_path / name, builder=small)
    assert not mark.exists()


def test_a_whole_pickled_network_is_refused_and_named(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "net.pt")
    with pytest.raises(UnsafeFileError, match=r"holds code \(torch\.nn\.modules"):
        sp.load(tmp_path / "net.pt", builder=small)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and people still have such files
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    with pytest.raises(UnsafeFileError, match="holds a TorchScript program"):
        sp.load(tmp_path / "script.pt", builder=small)


@pytest.mark.parametrize("suffix", ["pkl", "joblib"])
def test_pickles_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"net.{suffix}").write_bytes(pickle.dumps(3))
    with pytest.raises(UnsafeFileError, match="is a pickle, which executes code"):
        sp.load(tmp_path / f"net.{suffix}", builder=small)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"no such thing", b"\x00" * 64])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadError, match="is no intact"):
        sp.load(tmp_path / name, builder=small)


def test_a_truncated_file(tmp_path: Path, trained: nn.Module) -> None:
    for name in ("w.safetensors", "w.pt"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(LoadError, match="is no intact"):
            sp.load(tmp_path / name, builder=small)


def test_weights_that_do_not_fit_are_listed_briefly(tmp_path: Path) -> None:
    state = small().state_dict()
    wrong = {k: v for k, v in state.items() if not k.startswith("1.")} | {
        f"extra.{i}": torch.zeros(1) for i in range(6)
    }
    save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(LoadError) as caught:
        sp.load(tmp_path / "w.safetensors", builder=small)
    told = str(caught.value)
    assert "missing: 1.weight, 1.bias" in told
    assert "unexpected: extra.0, extra.1, extra.2, extra.3 and 2 more" in told
    save_file({**state, "4.bias": torch.zeros(9)}, tmp_path / "w.safetensors")
    with pytest.raises(LoadError, match=r"another shape: 4.bias is \(9,\) and not \(4,\)"):
        sp.load(tmp_path / "w.safetensors", builder=small)


def test_files_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(LoadError, match="no named tensors, but the keys epoch"):
        sp.load(tmp_path / "w.pt", builder=small)
    torch.save(torch.zeros(3), tmp_path / "w.pt")
    with pytest.raises(LoadError, match="holds a Tensor; named tensors"):
        sp.load(tmp_path / "w.pt", builder=small)


def test_a_missing_file_and_a_missing_builder(tmp_path: Path, trained: nn.Module) -> None:
    with pytest.raises(LoadError, match="there is no file"):
        sp.load(tmp_path / "none.safetensors", builder=small)
    with pytest.raises(
        InputError, match=r"say which function builds the network: w.safetensors@package.module:function"
    ):
        sp.load(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="two builders came"):
        sp.load(f"{tmp_path / 'w.safetensors'}@a.b:c", builder=small)


@pytest.mark.parametrize(
    ("place", "error", "told"),
    [
        ("{}:needs", LoadError, "raised TypeError.*called without arguments"),
        ("{}:number", InputError, "returned a int"),
        ("{}:NOTHING", InputError, "is a int; a function that returns a network"),
        ("{}:smal", LoadError, "has no 'smal'"),
        ("no_such_module:small", LoadError, "cannot be imported.*PYTHONPATH"),
        ("small", InputError, "written 'package.module:function'"),
    ],
)
def test_builders_that_fail(
    tmp_path: Path, nets: str, trained: nn.Module, place: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        sp.load(tmp_path / "w.safetensors", builder=place.format(nets))


def test_an_at_sign_in_a_path_is_no_builder() -> None:
    assert split_builder("me@home/w.safetensors") == ("me@home/w.safetensors", None)
    assert split_builder("me@home/w.safetensors@a.b:c.d") == ("me@home/w.safetensors", "a.b:c.d")
