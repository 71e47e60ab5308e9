"""JPEG compression: the true one through Pillow, and a differentiable one in its place for gradients."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.core.errors import InputError
from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.core.victim import Traits
from sparring.defences.inputs.base import InputDefence, pictures, whole

# The example tables of the standard (ITU-T T.81, annex K.1), which every common encoder scales by its quality.
_LUMA = """16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
_CHROMA = """17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99"""
# Rows: luma, blue difference, red difference, of red, green, blue (JFIF).
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@defence(
    Card(
        name="jpeg",
        title="JPEG compression",
        paper="Dziugaite, Ghahramani and Roy 2016, A Study of the Effect of JPG Compression on Adversarial Images, "
        "arXiv:1608.00853; the differentiable rounding of Shin and Song 2017, JPEG-resistant Adversarial Images",
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="one encoding and decoding per sample, on the CPU",
        domains=("image",),
        caveats="Pillow's own coder has no gradient; through the differentiable one, or the identity, the defence falls "
        "to nothing (Athalye et al. 2018, arXiv:1802.00420).",
    )
)
@dataclass(kw_only=True, eq=False)
class JPEG(InputDefence):
    """x -> the decoded JPEG file of x, pictures in [0, 1] with one channel or three.

    Args:
        quality: Pillow's, 1 to 95.
        subsample: halve the resolution of the colour differences (4:2:0, the usual setting).
        identity: take the identity as the surrogate, in place of the differentiable JPEG.
    """

    traits = Traits(differentiable=False)

    quality: int = 75
    subsample: bool = True
    identity: bool = False

    def check(self) -> None:
        """1 to 95."""
        whole(self.quality, "quality", 1, 95)

    def forward(self, x: Tensor) -> Tensor:
        """The decoded files, (n, c, h, w) on the grid k/255; no gradient."""
        from PIL import Image

        _channels(x)
        bytes_ = (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        decoded = []
        for picture in bytes_:
            file = io.BytesIO()
            image = Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture)
            image.save(file, format="JPEG", quality=self.quality, subsampling=2 if self.subsample else 0)
            with Image.open(file) as seen:
                decoded.append(np.asarray(seen).reshape(picture.shape))
        back = torch.from_numpy(np.stack(decoded) if decoded else bytes_.copy())
        return back.to(x.device).permute(0, 3, 1, 2).to(x.dtype) / 255 + 0 * x  # connected, with no gradient of its own

    def surrogate(self, x: Tensor) -> Tensor:
        """The differentiable JPEG, or the identity."""
        return x if self.identity else differentiable_jpeg(x, self.quality, subsample=self.subsample)


def differentiable_jpeg(x: Tensor, quality: int, *, subsample: bool = True) -> Tensor:
    """JPEG without entropy coding, its rounding smoothed to round(v) + (v - round(v))^3.

    Args:
        x: pictures (n, c, h, w) in [0, 1], with one channel or three.
        quality: 1 to 95.
        subsample: average the colour differences over 2 x 2 pixels.

    Returns:
        (n, c, h, w), clamped to [0, 1].
    """
    _channels(x)
    v = 255 * x
    if x.shape[1] == 3:
        to = torch.tensor(_TO_YCC, dtype=x.dtype, device=x.device)
        v = torch.einsum("kc,nchw->nkhw", to, v)
        luma = _code(v[:, :1] - 128, _table(_LUMA, quality, x))
        chroma, table = v[:, 1:], _table(_CHROMA, quality, x)
        if subsample:
            h, w = x.shape[-2:]
            half = F.avg_pool2d(F.pad(chroma, (0, w % 2, 0, h % 2), mode="replicate"), 2)
            size = (2 * half.shape[-2], 2 * half.shape[-1])
            chroma = F.interpolate(_code(half, table), size=size, mode="bilinear", align_corners=False)[..., :h, :w]
        else:
            chroma = _code(chroma, table)
        v = torch.einsum("kc,nchw->nkhw", torch.linalg.inv(to.double()).to(to), torch.cat([luma + 128, chroma], 1))
    else:
        v = _code(v - 128, _table(_LUMA, quality, x)) + 128
    return (v / 255).clamp(0, 1)


def _channels(x: Tensor) -> None:
    pictures(x, "JPEG")
    if x.shape[1] not in (1, 3):
        raise InputError(f"JPEG takes grey or colour pictures, 1 or 3 channels; {x.shape[1]} came")


def _table(numbers: str, quality: int, like: Tensor) -> Tensor:
    """The quantisation table at a quality, (8, 8), by the scaling that libjpeg uses."""
    base = torch.tensor([int(k) for k in numbers.split()], dtype=like.dtype, device=like.device).reshape(8, 8)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((base * scale + 50) / 100).floor().clamp(1, 255)


def _code(v: Tensor, table: Tensor) -> Tensor:
    """Each 8 x 8 block through the cosine transform, quantised softly, and back; borders are repeated."""
    n, c, h, w = v.shape
    v = F.pad(v, (0, -w % 8, 0, -h % 8), mode="replicate")
    tall, wide = v.shape[-2] // 8, v.shape[-1] // 8
    blocks = v.reshape(n, c, tall, 8, wide, 8).permute(0, 1, 2, 4, 3, 5)
    k = torch.arange(8, dtype=v.dtype, device=v.device)
    dct = torch.cos(math.pi * k[:, None] * (2 * k[None, :] + 1) / 16) / 2
    dct = torch.cat([dct[:1] / math.sqrt(2), dct[1:]])
    levels = dct @ blocks @ dct.T / table
    whole_levels = levels.detach().round()
    levels = whole_levels + (levels - whole_levels) ** 3
    blocks = dct.T @ (levels * table) @ dct
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(n, c, 8 * tall, 8 * wide)[..., :h, :w]
