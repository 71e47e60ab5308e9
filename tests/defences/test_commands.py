"""The commands on defences: the table, a file that loads back to the same victim, and a training with its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sparring as sp
from sparring.cli import main
from sparring.core.errors import InputError, LoadError
from sparring.data import load_digits
from sparring.defences import load_defended, save_defended
from sparring.defences.detectors import FeatureSqueezing, LearnedDetector
from sparring.defences.inputs import JPEG, BitDepth, Reformer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def said(told: tuple[int, str, str]) -> dict[str, Any]:
    assert told[0] == 0, told
    found = json.loads(told[1])
    assert isinstance(found, dict)
    return found


def test_the_table_names_kinds(run: Run) -> None:
    kinds = {card["name"]: card["kind"] for card in said(run("defences", "--json"))["defences"]}
    assert kinds["jpeg"] == "input"
    assert kinds["mahalanobis"] == "detector"
    assert kinds["trades"] == "training"
    code, out, _ = run("defences", "--kind", "training")
    assert code == 0
    assert "pgd-training" in out
    assert "jpeg" not in out
    assert run("defences", "--kind", "trainin")[0] == 2


def test_a_defended_model_loads_back(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "guarded.defended"
    words = ("--with", "bit-depth:bits=3", "-w", "jpeg:quality=60", "-w", "mahalanobis")
    told = said(run("defend", *words, "--out", file, "--json"))
    assert told["traits"]["rejects"]
    assert not told["traits"]["differentiable"]
    victim = load_defended(file)
    x = load_digits("test")[0][:40]
    by_hand = JPEG(quality=60)(BitDepth(bits=3)(x))
    torch.testing.assert_close(victim.query(x).scores, sp.load("digits").query(by_hand).scores)
    accepted = victim.query(load_digits("test")[0]).accepted
    assert 0.8 < float(accepted.float().mean()) < 1
    assert load_defended(file).fingerprint() == victim.fingerprint()
    code, out, _ = run("defend", *words, "--out", file)
    assert code == 0
    assert "attack_view(bpda=True)" in out
    assert "JointPGD" in out


def test_nested_squeezers_are_saved_and_networks_are_refused(tmp_path: Path) -> None:
    victim, (x, y) = sp.load("digits"), load_digits("test")
    detector = FeatureSqueezing(squeezers=(BitDepth(bits=2), BitDepth(bits=3))).fit(victim, x, y)
    path = save_defended(tmp_path / "a.defended", "digits", detector=detector)
    assert torch.equal(load_defended(path).query(x).accepted, detector(x))
    learned = LearnedDetector(epochs=1).fit(victim, x, y, adversarial=1 - x)
    reformer = Reformer(autoencoder=torch.nn.Identity())
    with pytest.raises(InputError, match="in Python"):
        save_defended(tmp_path / "b.defended", "digits", detector=learned)
    with pytest.raises(InputError, match="in Python"):
        save_defended(tmp_path / "b.defended", "digits", [reformer])
    with pytest.raises(InputError, match=r"\.defended"):
        save_defended(tmp_path / "b.txt", "digits")
    (tmp_path / "c.defended").write_bytes(b"nothing")
    for name in ("c.defended", "missing.defended"):
        with pytest.raises(LoadError, match="no defended victim"):
            load_defended(tmp_path / name)


def test_what_defend_refuses(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "x.defended"
    for words, hint in (
        ((), "--with"),
        (("--with", "trades"), "sparring train"),
        (("--with", "reformer"), "Python"),
        (("--with", "jpg"), "jpeg"),
        (("--with", "lid", "--with", "mahalanobis"), "one"),
    ):
        code, _, err = run("defend", *words, "--out", file)
        assert code == 2, err
        assert hint in err
    assert not file.exists()


def test_train_writes_weights_and_goes_on_from_its_folder(run: Run, tmp_path: Path) -> None:
    out, folder = tmp_path / "robust.safetensors", tmp_path / "run"
    words = ("train", "--with", "fast", "--eps", "0.1", "--epochs", 2, "--out", out, "--run", folder)
    told = said(run(*words, "--json"))
    assert [row["epoch"] for row in told["epochs"]] == [1, 2]
    assert (folder / "curves.png").stat().st_size > 1000
    first = load_file(out)
    again = said(run(*words, "--json"))
    assert again["epochs"] == told["epochs"]
    assert all(torch.equal(first[name], t) for name, t in load_file(out).items())
    back = sp.load(f"{out}@sparring.victims.digits:build")
    x, y = load_digits("test")
    assert float((back.query(x).labels == y).float().mean()) > 0.9
    code, shown, _ = run("train", "--with", "standard", "--epochs", 1, "--out", out)
    assert code == 0
    assert "[1/1]" in shown


def test_what_train_refuses(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    for words, hint in (
        (("--with", "jpeg", "--eps", "0.1"), "sparring defend"),
        (("--with", "madry"), "Linf"),
        (("--with", "madry", "--eps", "0.1", "--norm", "l7"), "l2"),
        (("--with", "trades", "--param", "beat=3", "--eps", "0.1"), "beta"),
    ):
        code, _, err = run("train", *words, "--out", out)
        assert code == 2, err
        assert hint in err
    assert run("train", "--out", tmp_path / "w.pt")[0] == 2
    assert not out.exists()
