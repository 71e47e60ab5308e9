"""Pictures in a folder with one subfolder per class, read one by one through the ordinary door for files."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.errors import LoadError
from sparring.core.victim import BaseVictim
from sparring.evaluation.data import Data

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


class PictureFolder(Data):
    """`folder/<class>/<picture>`, in the order of their names.

    A class is a number or one of the victim's label names. Pictures take the victim's own preprocessing; where it
    declares none they keep their size, which must then be one.

    Args:
        folder: the folder.
        victim: whose labels and preprocessing hold.

    Raises:
        LoadError: no subfolders, or none with pictures.
        UnknownNameError: a subfolder that names no class of the victim.
    """

    def __init__(self, folder: Path, victim: BaseVictim | None) -> None:
        from sparring.images import IMAGENET, Preprocess

        self._files: list[Path] = []
        labels: list[int] = []
        for sub in sorted(p for p in folder.iterdir() if p.is_dir()):
            label = int(sub.name) if victim is None and sub.name.isdigit() else _label(sub.name, victim)
            pictures = sorted(p for p in sub.iterdir() if p.suffix.lower() in _SUFFIXES)
            self._files += pictures
            labels += [label] * len(pictures)
        if not self._files:
            raise LoadError(f"{str(folder)!r} has no pictures in subfolders; one subfolder per class is needed")
        known: Any = getattr(victim, "input", None)
        if known is None:
            self._preprocess = None
        elif is_dataclass(known) and not isinstance(known, type):
            self._preprocess = Preprocess(**asdict(known))
        else:
            from sparring.images import from_processor

            self._preprocess = from_processor(known)[0]
        self._mode = "L" if victim is not None and getattr(known, "mode", IMAGENET.mode) == "L" else "RGB"
        super().__init__(range(len(labels)), labels, str(folder))

    def inputs(self, index: Tensor) -> Batch:
        """The pictures at `index`, float32 (m, c, h, w) in [0, 1]."""
        from sparring.images import open_picture, to_tensor

        found = []
        for i in index.tolist():
            path = self._files[i]
            if self._preprocess is not None:
                found.append(self._preprocess.apply(path))
            else:
                found.append(to_tensor(open_picture(path, mode=self._mode)))  # type: ignore[arg-type]
        sizes = {tuple(x.shape) for x in found}
        if len(sizes) > 1:
            raise LoadError(
                f"the pictures have {len(sizes)} sizes; give the victim its input size: sparring.load(..., size=224)"
            )
        return torch.stack(found)


def _label(name: str, victim: BaseVictim | None) -> int:
    if victim is None:
        raise LoadError(f"the subfolder {name!r} is no class number, and no victim is there to know its name")
    return victim.label_index(name)
