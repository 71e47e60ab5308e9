"""The cases that a reader looks at: original, difference and adversarial input as pictures, or told where they are none."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparring.evaluation.errors import StoreError
from sparring.evaluation.reading import Audit
from sparring.evaluation.tables import Case
from sparring.report.words import class_name, figure, interval_of, printable

# All pictures of one report together: what a mail server or an issue tracker still takes.
MOST_BYTES = 16_000_000
_MOST_TEXT, _MOST_FEATURES = 600, 6
_SMALL = 64  # pixels: below this every pixel is drawn as a square


@dataclass(frozen=True)
class Picture:
    """A lossless PNG as a data URI, and what it shows, for those who do not see it."""

    uri: str
    alt: str


@dataclass(frozen=True)
class Exhibit:
    """One case to look at.

    Attributes:
        case: the sample and its smallest known change.
        label, predicted: names of the true class and of the victim's answer to the changed input.
        distances: linf, l2 and l0 of the change, empty for texts.
        pictures: original, difference and adversarial input; empty for inputs that are no pictures.
        factor: what the difference was multiplied by.
        coarse: whether the pictures' pixels are drawn as squares.
        summary: the change in words, where there are no pictures.
    """

    case: Case
    label: str
    predicted: str
    distances: dict[str, float]
    pictures: tuple[Picture, ...] = ()
    factor: float = 1.0
    coarse: bool = False
    summary: tuple[str, ...] = ()


def exhibits(audit: Audit, cases: Iterable[Case], room: int = MOST_BYTES) -> list[Exhibit]:
    """What the reader is shown of some cases.

    Args:
        audit: the audit.
        cases: of that audit, in the order in which they are shown.
        room: bytes for all pictures together; the cases after that are told in words.
    """
    found = []
    for case in cases:
        exhibit = _exhibit(audit, case)
        size = sum(len(picture.uri) for picture in exhibit.pictures)
        if size > room:
            exhibit = _exhibit(audit, case, drawn=False)
        else:
            room -= size
        found.append(exhibit)
    return found


def _exhibit(audit: Audit, case: Case, drawn: bool = True) -> Exhibit:
    header = audit.evidence.header
    names = class_name(header, case.label), class_name(header, case.predicted)
    try:
        x, x_adv = audit.evidence.pair(case.step, case.sample)
    except StoreError as cause:  # a report without this case is better than none
        return Exhibit(case, *names, {}, summary=(printable(str(cause)),))
    if not isinstance(x, Tensor) or not isinstance(x_adv, Tensor):
        return Exhibit(case, *names, {}, summary=_texts(x, x_adv))
    from sparring.see.shown import distances_of

    distances = distances_of(x_adv - x) if x.shape == x_adv.shape else {}
    pixels = as_pixels(x, x_adv, interval_of(header)) if drawn else None
    if pixels is None:
        return Exhibit(case, *names, distances, summary=_numbers(x, x_adv, drawn))
    before, after = pixels
    factor = amplification(float((after - before).abs().max()))
    pictures = (
        Picture(data_uri(before), f"Sample {case.sample} as it is, class {names[0]}"),
        Picture(data_uri(0.5 + factor * (after - before)), f"Its change, multiplied by {factor:g}"),
        Picture(data_uri(after), f"Sample {case.sample} after the attack, read as {names[1]}"),
    )
    return Exhibit(case, *names, distances, pictures, factor, coarse=max(before.shape[1:]) <= _SMALL)


def as_pixels(x: Tensor, x_adv: Tensor, bounds: tuple[float, float] | None) -> tuple[Tensor, Tensor] | None:
    """Both inputs as pictures (c, h, w) in [0, 1], or None where they are none.

    A picture has 1 or 3 channels of at least 2 x 2 pixels, and values inside bounds that are two numbers; where the
    victim has no bounds, inside [0, 1].
    """
    if x.ndim != 3 or x.shape[0] not in (1, 3) or min(x.shape[1:]) < 2 or x.shape != x_adv.shape:
        return None
    lo, hi = bounds or (0.0, 1.0)
    both = ((torch.stack([x, x_adv]).double() - lo) / (hi - lo)).float()
    if not bool(torch.isfinite(both).all()) or float(both.min()) < -1e-4 or float(both.max()) > 1 + 1e-4:
        return None
    return both[0].clamp(0, 1), both[1].clamp(0, 1)


def amplification(largest: float) -> float:
    """The largest round factor that keeps a change inside mid-grey plus or minus one half; changes may be far below
    what an eye or a screen can tell apart.
    """
    if largest <= 0:
        return 1.0
    room = 0.5 / largest + 1e-6
    if room < 1:
        return 0.5
    power = 10.0 ** math.floor(math.log10(room))
    return max(m for m in (1, 2, 3, 4, 5, 8) if m * power <= room) * power


def data_uri(pixels: Tensor) -> str:
    """Pixels in [0, 1], clipped and rounded to 8 bits, as a PNG inside a URI."""
    from sparring.images import from_tensor

    file = io.BytesIO()
    from_tensor(pixels.clamp(0, 1)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _texts(x: Any, x_adv: Any) -> tuple[str, ...]:
    return f"before: {_cut(x)}", f"after: {_cut(x_adv)}"


def _cut(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}… ({len(text):,} characters)"


def _numbers(x: Tensor, x_adv: Tensor, drawn: bool) -> tuple[str, ...]:
    """What changed in an input that is no picture, or in one for which there was no room."""
    lines = [f"an input of shape {' × '.join(map(str, x.shape)) or '1'}"]
    if not drawn:
        lines.append("its pictures are left out: this file would grow too large")
    if x.shape != x_adv.shape:
        return (*lines, f"after the attack of shape {' × '.join(map(str, x_adv.shape))}")
    delta = (x_adv - x).double().flatten()
    changed = int(torch.count_nonzero(delta))
    lines.append(f"{changed:,} of {delta.numel():,} numbers changed")
    if drawn and changed:
        most = delta.abs().topk(min(_MOST_FEATURES, changed)).indices.tolist()
        places = [(i, float(x.flatten()[i]), float(x_adv.flatten()[i])) for i in most]
        told = "; ".join(f"number {i}: {figure(a)} to {figure(b)}" for i, a, b in places)
        lines.append(f"the largest changes: {told}")
    return tuple(lines)
