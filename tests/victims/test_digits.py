"""The embedded network: what is shipped, what it gets right, that it can be fooled, and files that do not fit it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparring.core.errors import LoadError
from sparring.data.digits import load_digits
from sparring.victims import digits
from sparring.victims.digits import LABELS, build, load

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_digits.py"


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


@pytest.fixture(scope="module")
def shipped() -> Path:
    return Path(str(files("sparring.victims").joinpath(digits.WEIGHTS)))


def test_the_shipped_file_is_small(shipped: Path) -> None:
    assert shipped.stat().st_size < 500_000


@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_shipped_network_reads_held_out_digits(eight_bit: bool) -> None:
    x, y = load_digits("test", eight_bit=eight_bit)
    net = load()
    assert not net.training
    assert net(x).shape == (500, len(LABELS))
    assert accuracy(net, x, y) >= 0.975


def test_it_gives_logits_and_not_probabilities() -> None:
    logits = load()(load_digits()[0][:50])
    assert logits.min() < 0
    assert not torch.allclose(logits.sum(1), torch.ones(50))


def test_small_steps_along_the_gradient_fool_it_and_noise_of_the_same_size_does_not() -> None:
    net = load()
    x, y = load_digits("test", eight_bit=True)
    eps = 0.2
    adversarial = x.clone()
    for _ in range(20):
        adversarial.requires_grad_(True)
        (gradient,) = torch.autograd.grad(
            nn.functional.cross_entropy(net(adversarial), y, reduction="sum"), adversarial
        )
        stepped = adversarial.detach() + eps / 8 * gradient.sign()
        adversarial = (x + (stepped - x).clamp(-eps, eps)).clamp(0, 1)
    signs = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).sub(0.5).sign()
    assert accuracy(net, adversarial, y) < 0.05
    assert accuracy(net, (x + eps * signs).clamp(0, 1), y) > 0.9


def test_building_and_loading_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    build()
    load()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_built_network_is_untrained_repeatable_and_of_sane_scale() -> None:
    x, y = load_digits()
    net, again, other = build(3), build(3), build(4)
    assert net.training
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))
    assert not torch.equal(net(x), other(x))
    assert accuracy(net, x, y) < 0.4
    assert 0.05 < float(net(x).detach().std()) < 20


def test_loads_are_independent() -> None:
    first, second = load(), load()
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).abs().sum() > 0


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    net = build(5)
    save_file(net.state_dict(), tmp_path / "own.safetensors")
    x, _ = load_digits()
    assert torch.equal(load(tmp_path / "own.safetensors")(x), net(x))


def _without_one(tensors: dict[str, Tensor]) -> None:
    del tensors["linear2.bias"]


def _with_another(tensors: dict[str, Tensor]) -> None:
    tensors["linear3.bias"] = torch.zeros(3)


def _reshaped(tensors: dict[str, Tensor]) -> None:
    tensors["conv1.weight"] = torch.zeros(16, 3, 3, 3)


def _halved(tensors: dict[str, Tensor]) -> None:
    tensors["conv2.bias"] = tensors["conv2.bias"].half()


def _poisoned(tensors: dict[str, Tensor]) -> None:
    tensors["linear1.bias"][0] = float("nan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_one, r"linear2\.bias is missing"),
        (_with_another, r"linear3\.bias is not one of"),
        (_reshaped, r"conv1\.weight has shape \(16, 3, 3, 3\), not \(16, 1, 3, 3\)"),
        (_halved, r"conv2\.bias is torch\.float16, not torch\.float32"),
        (_poisoned, r"linear1\.bias holds NaN"),
    ],
)
def test_weights_of_another_network(
    shipped: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    tensors = load_file(shipped)
    change(tensors)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(LoadError, match=words) as caught:
        load(tmp_path / "other.safetensors")
    assert "train_digits.py" in str(caught.value)


def test_damaged_missing_and_enormous_files(shipped: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    with pytest.raises(LoadError, match="cannot be read"):
        load(path)
    for content in (b"", b"not safetensors", shipped.read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(LoadError, match="no intact safetensors"):
            load(path)
    path.write_bytes(b"\0" * 600_000)
    with pytest.raises(LoadError, match="600,000 bytes"):
        load(path)


def test_damaged_weights_in_the_package_say_reinstall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "WEIGHTS", "weights/gone.safetensors")
    with pytest.raises(LoadError, match="Reinstall"):
        load()


@pytest.mark.slow
def test_the_script_makes_the_shipped_network_again(shipped: Path, tmp_path: Path) -> None:
    """Bits may differ on another machine; what the network gets right may not."""
    out = tmp_path / "deep" / "digits.safetensors"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out)], capture_output=True, text=True, timeout=120, check=True
    )
    assert "test accuracy" in done.stdout
    x, y = load_digits("test", eight_bit=True)
    assert accuracy(load(out), x, y) >= 0.975
    ours, theirs = load_file(shipped), load_file(out)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert (load(out)(x).argmax(1) == load()(x).argmax(1)).float().mean() > 0.97
