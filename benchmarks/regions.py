"""Linear regions on `mnist_adv` at Linf .3: what gradient attacks, FAB and Square leave standing, and what breaks it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import sparring as sp
from benchmarks.harness import table
from benchmarks.zoo import load_zoo
from sparring.attacks import APGD, APGDT, FAB, LinearRegions, Square
from sparring.attacks.regions import linear_regions
from sparring.core.threat import rival_margin

EPS = 0.3
# Survivors are looked for among so many test images, at most so many of them, nearest to the boundary first.
SCREENED, NEAREST = 10_000, 130
WANTED = 20
# One population of few rounds: what survives it costs most of the time, and more of them break few of those.
ATTACK = LinearRegions(restarts=1, rounds=4)


@dataclass(frozen=True)
class Found:
    """What became of one image, checked by a plain forward in float32."""

    index: int
    label: int
    broken: bool
    reads: int
    margin: float
    change: float
    mixed: int
    linear: int
    steps: int
    seconds: float

    @property
    def row(self) -> list[str]:
        """One row of the table."""
        return [
            *(f"{self.index}", f"{self.label}", f"{self.reads}" if self.broken else "-", f"{self.margin:.5f}"),
            *(f"{self.change:.6f}", f"{self.mixed}", f"{self.linear}", f"{self.steps}", f"{self.seconds:.1f}"),
        ]


HEADER = ["test image", "label", "read as", "margin", "largest change", "MILPs", "LPs", "gradients", "seconds"]


def hard(rounds: int) -> str:
    """The images of `mnist_hard.json`: proven vulnerable, and missed by gradient attacks."""
    zoo = load_zoo()
    victim, x, y = _images(zoo)
    found = [_attack(victim, x, y, index) for index in _hard(zoo)]
    return _told("mnist_hard.json", found)


def survivors(rounds: int) -> str:
    """Test images outside that list that APGD, APGD-T, FAB and Square leave standing, nearest first."""
    zoo = load_zoo()
    victim, x, y = _images(zoo)
    order = np.random.RandomState(0).permutation(len(x))[:SCREENED]
    left = torch.tensor([int(i) for i in order if int(i) not in set(_hard(zoo))])
    left = _nearest(victim, x, y, left)
    for attack in (APGD(), APGDT(), FAB(), Square()):
        left = _standing(attack, victim, x, y, left)
    found: list[Found] = []
    for index in left.tolist():
        if sum(f.broken for f in found) == WANTED:
            break
        found.append(_attack(victim, x, y, index))
    title = (
        f"of {SCREENED} test images the {NEAREST} that two climbs of the margin leave nearest to the boundary; "
        f"{len(left)} of them stand after APGD, APGD-T, FAB and Square"
    )
    return _told(title, found)


def _images(zoo: ModuleType) -> tuple[sp.Victim, Tensor, Tensor]:
    stored = np.load(zoo.HERE / "data" / "mnist_test.npz")
    x = torch.from_numpy(stored["x"]).float()[:, None] / 255
    return sp.Victim(zoo.load("mnist_adv"), name="mnist_adv"), x, torch.from_numpy(stored["y"].astype(np.int64))


def _hard(zoo: ModuleType) -> list[int]:
    listed: list[int] = json.loads((zoo.HERE / "data" / "mnist_hard.json").read_text())["mnist_adv"]["test_indices"]
    return listed


def _nearest(victim: sp.Victim, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """Those of the images at `index` that short climbs bring nearest to the boundary and not over it, nearest first."""
    best = torch.full((len(index),), -torch.inf)
    for seed in range(2):
        climbed = APGD(loss="margin", steps=30)(victim, x[index], y[index], sp.Linf(EPS), seed=seed)
        best = torch.maximum(best, rival_margin(victim.query(climbed.adversarial).scores, y[index]))
    best[best > 0] = -torch.inf
    return index[best.argsort(descending=True, stable=True)[:NEAREST]]


def _standing(attack: sp.Attack, victim: sp.Victim, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    survived = [o.name == "SURVIVED" for o in attack(victim, x[index], y[index], sp.Linf(EPS)).outcomes]
    return index[torch.tensor(survived)]


def _attack(victim: sp.Victim, x: Tensor, y: Tensor, index: int) -> Found:
    """The attack on one image, counted, and judged by the network itself."""
    solve, calls = linear_regions.best_shift, {True: 0, False: 0}

    def counted(hood: Any, *rest: Any) -> Any:
        calls[any(len(choice.least) for choice in hood.choices)] += 1
        return solve(hood, *rest)

    began = time.perf_counter()
    with mock.patch.object(linear_regions, "best_shift", counted):
        result = ATTACK(victim, x[index, None], y[index, None], sp.Linf(EPS))
    seconds = time.perf_counter() - began
    point = result.adversarial
    with torch.no_grad():
        scores = victim.net(point)[0]
    change = float((point.double() - x[index].double()).abs().max())
    label, reads = int(y[index]), int(scores.argmax())
    legal = change <= EPS + 1e-6 and float(point.min()) >= 0 and float(point.max()) <= 1
    rival = scores.index_fill(0, y[index], -torch.inf).amax()
    margin = float(rival - scores[label])
    return Found(
        *(index, label, legal and reads != label, reads, margin, change),
        *(calls[True], calls[False], int(result.backwards), seconds),
    )


def _told(title: str, found: list[Found]) -> str:
    broken = [f for f in found if f.broken]
    seconds = sum(f.seconds for f in found)
    return (
        f"Linear regions on mnist_adv, Linf {EPS}: {title}\n\n{len(broken)} of {len(found)} broken in {seconds:.0f} s, "
        f"{sum(f.mixed for f in found)} MILPs and {sum(f.linear for f in found)} LPs\n\n"
    ) + table(HEADER, [f.row for f in found])
