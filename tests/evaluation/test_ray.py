"""Units on a Ray cluster: the same evidence as in process, also where a worker is killed in the middle of a unit."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.conftest import EPS

import sparring as sp
import tiny
from sparring.core.errors import MissingDependencyError, VictimError
from sparring.evaluation import Audit, Evidence, audit, resume
from sparring.evaluation.comparing import differences
from sparring.evaluation.executors import make_executor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]


class Watched(torch.nn.Module):
    """The tiny network; its first forward where a file stands removes the file and does what the file says."""

    def __init__(self, trap: Path) -> None:
        super().__init__()
        net = tiny.network()
        net.load_state_dict(tiny.trained().net.state_dict())  # type: ignore[union-attr]
        self.net, self.trap = net.eval(), str(trap)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4 and os.path.exists(self.trap):
            with open(self.trap) as file:
                order = file.read()
            os.unlink(self.trap)
            if order == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(order)
        out: torch.Tensor = self.net(x)
        return out


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    module = pytest.importorskip("ray")
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests"), str(root / "src")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
        )
    yield module
    module.shutdown()


HOW: dict[str, Any] = {"attacks": ["fgsm", sp.PGD(steps=10)], "shard": 20, "checks": False, "curve": False}


def run(victim: sp.Victim, folder: Path, executor: str) -> Audit:
    return audit(victim, tiny.pictures(60, seed=9), sp.Linf(EPS), run=folder, executor=executor, **HOW)


def test_a_cluster_finds_what_one_process_finds_and_a_killed_worker_loses_nothing(ray: Any, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    victim = sp.Victim(Watched(trap).eval(), name="watched")
    here = run(victim, tmp_path / "here", "local")
    trap.write_text("die")
    there = run(victim, tmp_path / "there", "ray:2")
    assert not trap.exists()
    assert differences(here.evidence, there.evidence) == []
    workers = {unit["worker"] for unit in there.evidence.units if unit["met"]}
    assert "local" not in workers
    assert len(workers) >= 2
    assert there.evidence.sessions[0]["workers"] == 2


def test_what_a_unit_raises_comes_back_and_the_run_goes_on(ray: Any, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    victim = sp.Victim(Watched(trap).eval(), name="watched")
    whole = run(victim, tmp_path / "whole", "local")
    trap.write_text("the model broke down")
    with pytest.raises(VictimError, match="the model broke down"):
        run(victim, tmp_path / "run", "ray")
    assert not Audit(Evidence.open(tmp_path / "run")).complete
    found = resume(tmp_path / "run", victim, tiny.pictures(60, seed=9), executor="ray:2")
    assert differences(whole.evidence, found.evidence) == []


def test_without_ray_the_error_has_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sparring\[ray\]'"):
        make_executor("ray:2")
