"""Adversarial inputs as PNG files, each read back through the ordinary door for files and checked again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sparring.core.balls import Ball
from sparring.core.errors import InputError
from sparring.core.space import Bounds
from sparring.core.victim import BaseVictim
from sparring.evaluation.reading import Audit
from sparring.evaluation.tables import Case

MANIFEST = "pictures.json"


@dataclass(frozen=True)
class SavedPicture:
    """One adversarial input as a file.

    Attributes:
        file: its name in the folder; the original lies beside it under `original`.
        original: the original's file name.
        sample: its position in the data.
        label: the true label.
        attack: what made it.
        distance: how far the file's pixels are from the original input, in the threat's unit.
        legal: whether that is within eps.
        predicted: what the victim says to the file's pixels; None without a victim.
        fools: whether the file is adversarial still: legal, and read as another label (or as the target).
    """

    file: str
    original: str
    sample: int
    label: int
    attack: str
    distance: float
    legal: bool
    predicted: int | None
    fools: bool | None


def save_pictures(
    audit: Audit, folder: str | Path, victim: BaseVictim | None = None, *, most: int | None = None
) -> list[SavedPicture]:
    """Write the failures of an audit as 8-bit PNG files, the smallest changes first, and check every file again.

    A PNG holds whole levels k/255: pixels are rounded, towards the original where the ball's edge asks for it. Files
    are read back as any picture is, measured, and shown to the victim; `pictures.json` says which of them still work.

    Args:
        audit: the audit.
        folder: where the files go; made where it is not there.
        victim: asked again about each file; None leaves that out.
        most: write at most so many.

    Raises:
        InputError: inputs that are no pictures in [0, 1].
    """
    from sparring.images import read_back, write_png

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    for case in audit.failures()[:most]:
        x, x_adv = audit.evidence.pair(case.step, case.sample)
        _check_picture(x)
        stem = f"{case.sample:06d}-{case.label}-as-{case.predicted}"
        names = (f"{stem}.png", f"{stem}-original.png")
        write_png(folder / names[0], _rounded(audit, x, x_adv))
        write_png(folder / names[1], x)
        pixels = read_back(folder / names[0], mode="L" if len(x) == 1 else "RGB")
        saved.append(_judged(audit, case, names, x, pixels, victim))
    told = {"run": str(audit.evidence.folder), "threat": str(audit.plan.threat), "pictures": [asdict(s) for s in saved]}
    (folder / MANIFEST).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return saved


def _judged(
    audit: Audit, case: Case, names: tuple[str, str], x: Tensor, pixels: Tensor, victim: BaseVictim | None
) -> SavedPicture:
    """What the file's pixels are worth."""
    threat = audit.plan.threat.build()
    space = replace(threat.space, lattice=None) if isinstance(threat.space, Ball) else threat.space
    legal = bool(space.bound(x[None], Bounds.of((0.0, 1.0))).contains(x[None], pixels[None]))
    predicted = fools = None
    if victim is not None:
        with victim.at_rest():
            batch, y = victim.admit(pixels[None], torch.tensor([case.label]))
            answer = victim.query(batch)
        predicted = int(answer.labels)
        fools = legal and bool(threat.goal.achieved(answer, y))
    return SavedPicture(
        file=names[0],
        original=names[1],
        sample=case.sample,
        label=case.label,
        attack=case.attack,
        distance=float(threat.space.cost(x[None], pixels[None])),
        legal=legal,
        predicted=predicted,
        fools=fools,
    )


def _rounded(audit: Audit, x: Tensor, x_adv: Tensor) -> Tensor:
    """The nearest 8-bit pixels inside the ball."""
    space = audit.plan.threat.build().space
    if not isinstance(space, Ball):
        return x_adv
    grid = replace(space, lattice=256, bounds=Bounds.of((0.0, 1.0)), eps=torch.tensor([audit.eps]))
    return grid.snap(x[None], x_adv[None])[0]


def _check_picture(x: object) -> None:
    if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[0] not in (1, 3):
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"the inputs have shape {shape}; pictures of 1 or 3 channels, (c, h, w), are needed for PNG files"
        )
