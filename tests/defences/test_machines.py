"""Training through Lightning Fabric: two processes end where one does, a killed pair goes on, mixed precision crafts exactly,
and what is missing is told in time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import replicas
import sparring as sp
import tiny
from sparring.cli import main
from sparring.core import events
from sparring.core.errors import InputError, MissingDependencyError, UnknownNameError, VictimError
from sparring.data import load_digits
from sparring.defences.training import (
    AWP,
    Fast,
    Free,
    Method,
    Settings,
    StandardTraining,
    Training,
    TrainingProgress,
    fit,
)
from sparring.defences.training.crafting import exactly


def still() -> nn.Module:
    """The tiny network without dropout, whose masks differ between one process and two."""
    net = tiny.network()
    net[3] = nn.Identity()  # type: ignore[index]
    return net


def train(
    method: Method, n: int = 360, net: nn.Module | None = None, folder: Path | None = None, **how: Any
) -> Training:
    settings = Settings(**{"epochs": 2, "batch_size": 40, "lr": 3e-3, **how})
    held = tiny.pictures(41, seed=2)  # an odd number: the processes probe 21 and 20
    x, y = tiny.pictures(n, seed=1)
    return fit(
        sp.Victim(net or still()), (x, y), method, sp.Linf(0.1), settings=settings, validation=held, folder=folder
    )


def weights(done: Training) -> Tensor:
    assert isinstance(done.victim.net, nn.Module)
    return torch.cat([t.flatten() for t in done.victim.net.state_dict().values()])


def rows(done: Training) -> list[list[float | None]]:
    return [[row.loss, row.clean, row.fgsm, row.pgd, row.cosine] for row in done.history]


# -- several processes -------------------------------------------------------------------------------------------------


def test_two_processes_share_each_batch_and_end_where_one_does(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    how: dict[str, Any] = {"n": 361, "optimiser": "sgd", "lr": 0.1}  # the second process has none of the last batch
    method = AWP(gamma=0.05)  # it perturbs the weights by their slopes, which must be those of the whole batch
    heard: list[events.Event] = []
    with events.listening(heard.append):
        two = train(replicas.Noted(base=method, folder=str(tmp_path)), **how, devices=2)
    one = train(method, **how)
    torch.testing.assert_close(weights(two), weights(one), atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(rows(two), rows(one), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert float((weights(one) - weights(train(method, **how, epochs=1))).abs().max()) > 1e-3
    assert [e.step for e in heard if isinstance(e, TrainingProgress)] == list(range(1, 21)), "told once, by the first"
    first, second = ([line.split() for line in path.read_text().splitlines()] for path in sorted(tmp_path.iterdir()))
    assert [note[:2] for note in first] == [note[:2] for note in second], "the replicas hold the same weights"
    assert len({note[1] for note in first}) == 20
    assert [(a[2], b[2]) for a, b in zip(first, second, strict=True)][8:10] == [("20", "20"), ("1", "1")]
    assert not torch.distributed.is_initialized()


KILLED = """
import sys
from pathlib import Path
import tiny, sparring as sp
from sparring.defences.training import Free, Settings, fit, fitting
fitting.SAVE_EVERY = 0.0
settings = Settings(epochs=6, batch_size=40, lr=3e-3, devices=2)
if __name__ == "__main__":
    fit(sp.Victim(tiny.network()), tiny.pictures(360, seed=1), Free(), sp.Linf(0.1), settings=settings,
        validation=tiny.pictures(41, seed=2), folder=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_killed_processes_go_on_to_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    script, folder = tmp_path / "train.py", tmp_path / "run"
    script.write_text(KILLED)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([sys.executable, str(script), str(folder)], env=env)
    checkpoint, limit = folder / "checkpoint.safetensors", time.monotonic() + 100
    while not checkpoint.exists() and running.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.1)
    others = [int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]
    running.send_signal(signal.SIGKILL)
    assert running.wait(60) == -signal.SIGKILL, "it was too fast to be killed"
    with safe_open(str(checkpoint), framework="pt") as stored:
        assert {"carried/0", "carried/1"} <= set(stored.keys()), "each process carries its own perturbation"
        assert 0 < int(stored.metadata()["step"]) < 216
    assert others
    while any(_runs(pid) for pid in others) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in others), "the second process ends with the first"
    resumed = train(Free(), net=tiny.network(), folder=folder, devices=2, epochs=6)
    whole = train(Free(), net=tiny.network(), devices=2, epochs=6)
    assert torch.equal(weights(resumed), weights(whole))
    assert rows(resumed) == rows(whole)


def _runs(pid: int) -> bool:
    """Whether a process is there and is more than an entry that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_that_fails_is_named() -> None:
    pytest.importorskip("lightning_fabric")
    with pytest.raises(VictimError, match="the second one broke"):
        train(replicas.Failing(), devices=2)
    assert not torch.distributed.is_initialized()


def test_what_cannot_be_sent_is_told_before_a_process_starts() -> None:
    pytest.importorskip("lightning_fabric")
    settings = Settings(devices=2)
    with pytest.raises(InputError, match="a lambda cannot go"):
        fit(sp.Victim(tiny.network(), output=lambda out: out), tiny.pictures(40, 1), "standard", settings=settings)


def test_a_script_without_a_main_guard_is_told(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    script = tmp_path / "train.py"
    script.write_text(KILLED.replace('if __name__ == "__main__":', "if True:"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script), str(tmp_path / "run")]
    told = subprocess.run(words, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert told.returncode == 1
    assert "InputError: a further process could not begin" in told.stderr
    assert "if __name__ == '__main__':" in told.stderr


def test_the_command_trains_with_two_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning_fabric")
    out = tmp_path / "robust.safetensors"
    words = ["train", "--with", "fast", "--eps", "0.1", "--epochs", "1", "--batch-size", "64", "--out", str(out)]
    assert main([*words, "--devices", "2"]) == 0, capsys.readouterr()
    two = sp.load(f"{out}@sparring.victims.digits:build")
    assert main([*words, "--devices", "cpu"]) == 0, "one process on the CPU needs nothing"
    one = sp.load(f"{out}@sparring.victims.digits:build")
    x = load_digits("test")[0][:50]
    torch.testing.assert_close(two.query(x).scores, one.query(x).scores, atol=1e-3, rtol=1e-3)
    capsys.readouterr()
    assert main([*words, "--devices", "two"]) == 2
    assert "cuda" in capsys.readouterr().err
    assert main([*words, "--devices", "cuda:x"]) == 2


# -- mixed precision ---------------------------------------------------------------------------------------------------


class Precise(nn.Module):
    """Notes the precision that its layer works in, in training and at rest."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 4)
        self.seen: set[tuple[bool, torch.dtype, torch.dtype]] = set()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.flatten(1))
        self.seen.add((self.training, x.dtype, out.dtype))
        return out


def test_mixed_precision_learns_in_bfloat16_and_crafts_in_float32() -> None:
    pytest.importorskip("lightning_fabric")
    settings = Settings(epochs=8, batch_size=64, lr=1e-2, held_out=80, precision="bf16-mixed")
    done = fit(sp.Victim(Precise()), tiny.pictures(400, 1), "trades", sp.Linf(0.03), settings=settings)
    net = done.victim.net
    assert isinstance(net, Precise)
    exact, mixed = torch.float32, torch.bfloat16
    assert net.seen == {(True, exact, mixed), (False, exact, exact)}, "and inputs are never rounded"
    assert all(p.dtype == exact for p in net.parameters())
    assert (done.history[-1].clean or 0) > 0.9


def test_a_weight_cast_while_crafting_does_not_cut_the_loss_from_the_weights() -> None:
    layer, x = nn.Linear(4, 2), torch.rand(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with exactly(x.device), torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            layer(x)
        layer(x).float().sum().backward()
    assert layer.weight.grad is not None


def test_fabric_alone_changes_no_weight() -> None:
    pytest.importorskip("lightning_fabric")
    from sparring.defences.training import machines

    plain = train(Fast())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machines, "Machine", lambda: machines.FabricMachine(Settings(), torch.device("cpu")))
        through = train(Fast())
    assert torch.equal(weights(plain), weights(through))


# -- what is not there -------------------------------------------------------------------------------------------------


def test_settings_that_need_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("accelerator", "precision"):
        with pytest.raises(UnknownNameError, match=name):
            Settings(**{name: "cud"})
    with pytest.raises(InputError, match="devices"):
        Settings(devices=0)
    with pytest.raises(InputError, match="needs a GPU"):
        train(StandardTraining(), precision="16-mixed")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="this machine has 0"):
            train(StandardTraining(), accelerator="cuda")
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(MissingDependencyError, match=r"sparring\[train\]"):
        train(StandardTraining(), precision="bf16-mixed")
    assert len(train(StandardTraining(), accelerator="cpu").history) == 2, "one process on the CPU needs no extra"
