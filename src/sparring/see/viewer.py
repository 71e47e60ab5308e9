"""The viewer: how a victim sees a picture, from any source to its raw input and back to pixels."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Unpack, cast

import torch
from PIL import Image
from torch import Tensor, nn

from sparring.core.errors import CapabilityError, InputError, VictimError
from sparring.core.outputs import Prediction
from sparring.core.victim import BaseVictim
from sparring.images import Preprocess, from_processor, open_picture, to_tensor
from sparring.images.files import Mode, Source
from sparring.see.classification import Classification
from sparring.victims import InputSpec, LoadOptions, load, load_default, picture_mode


class Viewer:
    """A victim with its way of looking at pictures.

    The victim's input begins after resize and crop: what an attack changes, and what eps measures, are the pixels that
    `pixels` returns. A picture that has the victim's size already is neither resized nor cropped, so a saved
    adversarial picture is seen bit for bit as it was made.

    Args:
        victim: any victim of pictures. One that does not say what it takes sees every picture at its own size.
    """

    def __init__(self, victim: BaseVictim) -> None:
        if victim.domain not in ("tensor", "image", "any"):
            raise CapabilityError(
                f"{victim.name!r} takes {victim.domain} and no pictures; attack it with sparring.attacks"
            )
        self.victim = victim
        known = getattr(victim, "input", None)
        self.preprocess: Preprocess | None
        if known is None:
            self.preprocess = None
        elif isinstance(known, InputSpec):
            self.preprocess = Preprocess(**asdict(known))
        else:
            self.preprocess = from_processor(known)[0]

    @classmethod
    def of(cls, model: Any, **options: Unpack[LoadOptions]) -> Viewer:
        """The viewer for whatever `sparring.load` takes; for None, the usual ImageNet model, where one is at hand."""
        if model is not None:
            return cls(load(model, **options))
        if options:
            raise InputError(f"{', '.join(sorted(options))} came without a model; name the model they belong to")
        return cls(load_default())

    def pixels(self, source: Source) -> Tensor:
        """What the victim sees of a picture, float32 (c, h, w) on the grid k/255.

        Raises:
            PictureError, FetchError, InputError: as `sparring.images.open_picture` has them.
        """
        if self.preprocess is not None:
            return self.preprocess.apply(source)
        net, mean = getattr(self.victim, "net", None), getattr(self.victim, "mean", None)
        mode = picture_mode(net if isinstance(net, nn.Module) else None, None if mean is None else len(mean))
        if mode is None:
            mode = "L" if _is_grey(source) else "RGB"
        return to_tensor(open_picture(source, mode=cast("Mode", mode)))

    def raw(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], (c, h, w), as a batch of one in the victim's bounds."""
        x = pixels[None]
        if self.victim.bounds is None:
            return x
        box = self.victim.bounds.like(x)
        return x if _is_unit(box.lo, box.hi) else box.clamp(box.lo + x * (box.hi - box.lo))

    def from_raw(self, x: Tensor) -> Tensor:
        """A batch of one in the victim's bounds as pixels in [0, 1], (c, h, w)."""
        if self.victim.bounds is not None:
            box = self.victim.bounds.like(x)
            if not _is_unit(box.lo, box.hi):
                x = ((x - box.lo) / (box.hi - box.lo)).clamp(0, 1)
        return x[0].detach().cpu()

    @property
    def span(self) -> float:
        """hi - lo of the victim's bounds (the largest, where features differ); 1 where it declares none."""
        box = self.victim.bounds
        return 1.0 if box is None else float((box.hi - box.lo).max())

    def ask(self, x: Tensor) -> Prediction:
        """The victim's answer to raw inputs, (n, c, h, w), checked at its door, in eval mode.

        Raises:
            VictimError: the model failed; where it does not say what size it takes, that is named as the likely cause.
        """
        victim = self.victim
        try:
            admitted, _ = victim.admit(x, torch.zeros(len(x), dtype=torch.int64))
            with victim.at_rest():
                return victim.query(admitted)
        except VictimError as cause:
            if self.preprocess is not None:
                raise
            height, width = x.shape[-2:]
            raise VictimError(
                f"{cause}. {victim.name!r} does not say which pictures it takes, so this one came at its own size, "
                f"{height} x {width}: say size=, for example sparring.load(net, size=224), or --size 224"
            ) from cause

    def read(self, source: Source, top: int = 5) -> Classification:
        """The victim's answer to one picture."""
        pixels = self.pixels(source)
        return Classification.of(self.ask(self.raw(pixels)), self.victim, pixels, top)


def _is_grey(source: Source) -> bool:
    """Whether a picture in memory has one channel; a file's colours are no statement about the victim."""
    if isinstance(source, Image.Image):
        return source.mode in ("1", "L")
    shape = tuple(getattr(source, "shape", ()))
    return len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[2]))


def _is_unit(lo: Tensor, hi: Tensor) -> bool:
    return bool((lo == 0).all()) and bool((hi == 1).all())
