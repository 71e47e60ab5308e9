"""What adversarial training costs over the passes that it cannot do without, and what a second process is worth."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparring as sp
from benchmarks.defences import training_set
from benchmarks.harness import bare_steps, interleave, seeded, spread, table
from benchmarks.zoo import load_zoo
from sparring.core.attack import Attack
from sparring.defences.training import Settings, fit

IMAGES, STEPS, EPS = 3_000, 7, 0.3
SETTINGS = Settings(epochs=1, batch_size=128, lr=1e-3, held_out=0)
# method: what crafts, input gradients, further forwards without a gradient, forwards of the loss
METHODS: dict[str, tuple[Attack | None, int, int, int]] = {
    "pgd-training": (sp.PGD(steps=STEPS), STEPS, 0, 1),
    "fast": (None, 1, 0, 1),
    "trades": (sp.PGD(steps=STEPS), STEPS, 1, 2),
}


def cost(rounds: int) -> str:
    """One epoch of `fit`, set-up included, over the same forwards and backwards and the optimiser's steps by hand."""
    data, rows = training_set("mnist", IMAGES), []
    with seeded():
        net = load_zoo().small_cnn(1, 7)
    for name, (attack, gradients, forwards, losses) in METHODS.items():
        timed = interleave(
            {
                "bare": bare(net, data, gradients, forwards, losses),
                "fit": lambda name=name, attack=attack: fit(
                    sp.Victim(net), data, name, sp.Linf(EPS), attack=attack, settings=SETTINGS
                ),
            },
            rounds,
        )
        passes = f"{gradients} + {forwards} + {losses}"
        medians = (f"{timed[who].median:.2f} s" for who in ("fit", "bare"))
        rows.append([name, f"{IMAGES:,}", passes, *medians, spread(timed["fit"].ratio(timed["bare"]))])
    return (
        "One epoch on MNIST, the two-convolution network, batches of 128, Linf .3: `fit` with its set-up over a loop by hand "
        "of the passes alone, which neither moves an input nor projects it\n\n"
        + table(
            ["method", "n", "input gradients + forwards + loss forwards, per step", "fit", "bare", "fit / bare"], rows
        )
    )


def bare(net: nn.Module, data: tuple[Tensor, Tensor], gradients: int, forwards: int, losses: int) -> Callable[[], None]:
    """The passes and the optimiser's steps of one epoch."""

    def run() -> None:
        trained = copy.deepcopy(net)
        optimiser = torch.optim.Adam(trained.parameters(), lr=SETTINGS.lr)
        for x, y in zip(*(part.split(SETTINGS.batch_size) for part in data), strict=True):
            with torch.no_grad():
                for _ in range(forwards):
                    trained(x)
            bare_steps(trained, x, y, gradients)
            optimiser.zero_grad(set_to_none=True)
            torch.stack([F.cross_entropy(trained(x), y) for _ in range(losses)]).sum().backward()
            optimiser.step()

    return run


_MEASURED = """
import sys, time
import sparring as sp
from benchmarks.defences import training_set
from benchmarks.harness import seeded
from benchmarks.training_cost import EPS, STEPS
from benchmarks.zoo import load_zoo
from sparring.defences.training import Settings, fit

if __name__ == "__main__":
    images, epochs, devices = (int(word) for word in sys.argv[1:])
    with seeded():
        net = load_zoo().small_cnn(1, 7)
    data, began = training_set("mnist", images), time.perf_counter()
    settings = Settings(epochs=epochs, batch_size=256, lr=1e-3, held_out=0, devices=devices)
    done = fit(sp.Victim(net), data, "pgd-training", sp.Linf(EPS), attack=sp.PGD(steps=STEPS), settings=settings)
    each = sorted(row.seconds for row in done.history)
    print(each[len(each) // 2], time.perf_counter() - began)
"""


def processes(rounds: int) -> str:
    """PGD training in two processes and in one, each with one thread."""
    images, epochs = 12_000, 3
    told: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(rounds):
        for devices in told:
            told[devices].append(_epoch(images, epochs, devices))
    ratios = sorted(two[0] / one[0] for one, two in zip(told[1], told[2], strict=True))
    rows = []
    for devices, seconds in told.items():
        epoch, whole = (sorted(s[place] for s in seconds)[len(seconds) // 2] for place in (0, 1))
        ratio = "" if devices == 1 else spread((ratios[0], ratios[len(ratios) // 2], ratios[-1]))
        rows.append([f"{devices}", f"{images:,}", f"{epoch:.2f} s", f"{whole - epochs * epoch:.1f} s", ratio])
    return (
        f"PGD training (7 steps, batches of 256, {epochs} epochs) in one process and in two of one thread each, which share "
        "each batch, on the two-convolution network; beside: Fabric's import and the start of the second process\n\n"
        + table(["processes", "n", "epoch", "beside", "epoch / one process"], rows)
    )


def _epoch(images: int, epochs: int, devices: int) -> tuple[float, float]:
    """Median seconds of an epoch, and of the whole call, in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "2" if devices == 2 else "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", _MEASURED, str(images), str(epochs), str(devices)]
    ran = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    epoch, whole = (float(word) for word in ran.stdout.split()[-2:])
    return epoch, whole
