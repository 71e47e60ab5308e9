"""The audit's presets beside AutoAttack and beside each other, its memory, and two workers against one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparring as sp
from benchmarks.defences import training_set
from benchmarks.harness import interleave, peer, seeded, spread, table
from benchmarks.zoo import load_zoo, network_and_data
from sparring.defences.training import Settings, fit


def standard(rounds: int) -> str:
    """`standard` beside pyautoattack's AutoAttack: the same four attacks and budgets, another seed each round."""
    rows = []
    autoattack = peer("pyautoattack")
    for name, n, eps, told in (("mnist_adv", 200, 0.3, ".3"), ("cifar10_adv_2px", 200, 2 / 255, "2/255")):
        net, x, y = network_and_data(name, n)
        left: dict[str, list[float]] = {"sparring": [], "pyautoattack": []}
        contenders: dict[str, Callable[[], Any]] = {"sparring": _seeded(net, x, y, eps, left["sparring"])}
        if autoattack is not None:
            contenders["pyautoattack"] = _autoattack(autoattack, net, x, y, eps, left["pyautoattack"])
        timed = interleave(contenders, min(rounds, 3), warmup=0)
        for who, t in timed.items():
            ratio = spread(timed["sparring"].ratio(t)) if who != "sparring" else ""
            each = ", ".join(f"{share:.1%}" for share in left[who])
            rows.append([name, f"{n}", told, who, each, f"{t.median:.0f} s", ratio])
    return "`standard` (no checks, no curve) beside AutoAttack's standard, Linf, seeds 0, 1, ...\n\n" + table(
        ["victim", "n", "eps", "library", "robust, by seed", "median", "sparring / this"], rows
    )


def _seeded(net: nn.Module, x: Tensor, y: Tensor, eps: float, left: list[float]) -> Callable[[], None]:
    """`standard` with a new seed at each call; what it leaves goes into `left`."""

    def run() -> None:
        options: dict[str, Any] = {"checks": False, "curve": False, "seed": len(left)}
        left.append(sp.audit(sp.Victim(net), (x, y), sp.Linf(eps), preset="standard", **options).robust_accuracy)

    return run


def _autoattack(
    package: Any, net: nn.Module, x: Tensor, y: Tensor, eps: float, left: list[float]
) -> Callable[[], None]:
    """AutoAttack likewise."""

    def run() -> None:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            attack = package.AutoAttack(net, norm="Linf", eps=eps, version="standard", seed=len(left))
            adversarial, *_ = attack.run_standard_evaluation(x, y, batch_size=len(x))
        with torch.no_grad():
            left.append(float((net(adversarial).argmax(1) == y).float().mean()))

    return run


def _audit(net: Any, x: Tensor, y: Tensor, eps: float, preset: str) -> Callable[[], tuple[float, float, float]]:
    """Robust accuracy, and forwards and backwards for each sample left standing."""
    victim = net if isinstance(net, sp.Victim) else sp.Victim(net)

    def run() -> tuple[float, float, float]:
        found = sp.audit(victim, (x, y), sp.Linf(eps), preset=preset, checks=False, curve=False)
        left = max(1, int(found.standing.sum()))
        return found.robust_accuracy, found.cost.forwards / left, found.cost.backwards / left

    return run


@dataclass(frozen=True)
class Subject:
    """A victim at a radius at which `standard` leaves between 20% and 80%."""

    name: str
    eps: float
    n: int
    build: Callable[[], tuple[Any, Tensor, Tensor]]


def _trained(method: str, eps: float, epochs: int, n: int) -> Callable[[], tuple[Any, Tensor, Tensor]]:
    """The two-convolution network, trained here on 6,000 digits of MNIST."""

    def build() -> tuple[Any, Tensor, Tensor]:
        zoo = load_zoo()
        with seeded():
            net = zoo.small_cnn(1, 7)
        settings = Settings(epochs=epochs, lr=2e-3)
        trained = fit(sp.Victim(net), training_set("mnist", 6000), method, sp.Linf(eps), settings=settings)
        return (trained.victim, *zoo.data("mnist", n))

    return build


SUBJECTS = (
    Subject("mnist_adv", 0.3, 200, partial(network_and_data, "mnist_adv", 200)),
    Subject("mnist_certified_0.1", 0.15, 200, partial(network_and_data, "mnist_certified_0.1", 200)),
    Subject("cifar10_adv_2px", 2 / 255, 200, partial(network_and_data, "cifar10_adv_2px", 200)),
    Subject("trained here, fast AT at .15", 0.15, 200, _trained("fast", 0.15, 8, 200)),
    Subject("trained here, TRADES at .15", 0.15, 200, _trained("trades", 0.15, 4, 200)),
)
LARGE = (
    Subject("cifar10_resnet20", 0.4 / 255, 200, partial(network_and_data, "cifar10_resnet20", 200)),
    Subject("imagenet_mobilenet_v1_025", 0.1 / 255, 100, partial(network_and_data, "imagenet_mobilenet_v1_025", 100)),
)


def fast(rounds: int) -> str:
    """`fast` beside `standard`: the same answer, at what share of the time and of the passes."""
    return _fast(SUBJECTS)


def fast_large(rounds: int) -> str:
    """The same on networks of ordinary size: half an hour."""
    return _fast(LARGE)


def _fast(subjects: tuple[Subject, ...]) -> str:
    rows = []
    for subject in subjects:
        net, x, y = subject.build()
        both: dict[str, Callable[[], Any]] = {p: _audit(net, x, y, subject.eps, p) for p in ("fast", "standard")}
        timed = interleave(both, 1, warmup=0)
        (quick, f, b), (slow, *_) = timed["fast"].value, timed["standard"].value
        # one run of a second or two says little: two more, behind the long one
        short = [*timed["fast"].seconds, *interleave({"fast": both["fast"]}, 2, warmup=0)["fast"].seconds]
        ratios = sorted(seconds / timed["standard"].median for seconds in short)
        rows.append(
            [
                *(subject.name, f"{len(x)}", f"{subject.eps:.4g}", f"{quick:.1%}", f"{slow:.1%}"),
                *(f"{(quick - slow) * len(x):+.0f}", f"{f:.0f} + {b:.0f}"),
                f"{statistics.median(short):.1f} s / {timed['standard'].median:.0f} s",
                f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})",
            ]
        )
        print(rows[-1], flush=True)
    return (
        "`fast` beside `standard` (no checks, no curves), Linf, three runs of `fast` and one of `standard`\n\n"
        + table(
            [
                "victim",
                "n",
                "eps",
                "fast",
                "standard",
                "samples apart",
                "passes per survivor",
                "time",
                "fast / standard",
            ],
            rows,
        )
    )


def mnist_adv() -> sp.Victim:
    """For `--model python:benchmarks.audits:mnist_adv`."""
    return sp.Victim(load_zoo().load("mnist_adv").eval(), name="mnist_adv")


def memory(rounds: int) -> str:
    """Peak memory of the command with checks on 1,000 and on 10,000 images; both processes hold all 10,000 in memory."""
    rows, peaks = [], []
    x, y = load_zoo().data("mnist", 10_000)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/mnist.npz", x=x.numpy(), y=y.numpy())
        for n in (1_000, 10_000):
            words = (
                f"audit --model python:benchmarks.audits:mnist_adv --data {folder}/mnist.npz --eps 0.3 --preset fast"
            )
            command = [
                sys.executable,
                "-m",
                "sparring",
                *words.split(),
                "-n",
                f"{n}",
                "--run",
                f"{folder}/{n}",
                "--json",
            ]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                told = json.loads(process.stdout.read() if process.stdout is not None else "")
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = status
            peaks.append(used.ru_maxrss / 1024)
            seconds = told["cost"]["seconds"] + told["cost"]["checks_seconds"]
            rows.append([f"{n:,}", f"{peaks[-1]:.0f} MiB", f"{told['robust_accuracy']:.1%}", f"{seconds:.0f} s"])
    return (
        "`sparring audit --preset fast` end to end on `mnist_adv`, eps .3, one process for each\n\n"
        + table(["images", "peak memory", "robust", "time"], rows)
        + f"\n\nThe larger over the smaller: {peaks[1] / peaks[0]:.2f}."
    )


def workers(rounds: int) -> str:
    """Two Ray workers against one and against no Ray at all, one thread each: 800 images, `fast`, shards of 50."""
    if peer("ray") is None:
        return "ray is not installed"
    x, y = load_zoo().data("mnist", 800)
    victim, beyond = mnist_adv(), {}

    def run(executor: str) -> Callable[[], Any]:
        def go() -> Any:
            with tempfile.TemporaryDirectory() as folder:
                options: dict[str, Any] = {"checks": False, "curve": False, "shard": 50}
                began = time.perf_counter()
                found = sp.audit(
                    victim, (x, y), sp.Linf(0.3), preset="fast", run=f"{folder}/run", executor=executor, **options
                )
                each, workers = [u["seconds"] for u in found.evidence.units], 2 if executor == "ray:2" else 1
                beyond.setdefault(executor, []).append(
                    (workers * (time.perf_counter() - began) - sum(each)) / len(each) * 1e3
                )
                return found.robust_accuracy

        return go

    timed = interleave({e: run(e) for e in ("local", "ray:1", "ray:2")}, rounds)
    rows = [
        [
            *(e, f"{t.value:.1%}", f"{t.median:.1f} s", f"{statistics.median(beyond[e]):.0f} ms"),
            *(spread(t.ratio(timed["local"])), spread(t.ratio(timed["ray:1"]))),
        ]
        for e, t in timed.items()
    ]
    return (
        "`fast` on `mnist_adv`, 800 images in shards of 50 (96 units), the cluster begun and ended in each run; beyond each unit "
        "is a worker's time outside the attacks, start and end of the run included, over the number of units\n\n"
        + table(["executor", "robust", "median", "beyond each unit", "over local", "over one worker"], rows)
    )
