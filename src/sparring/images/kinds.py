"""The fifteen common corruptions of Hendrycks and Dietterich, each a function of one picture, its settings and a source.

A picture is float64 (c, h, w) in [0, 1], grey or in colour. Settings are the published ones, of ImageNet-C (sides of
224) or CIFAR-10-C (sides of 32); what is a length in pixels is scaled by `Brush.scale` to sides of another size.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])[:, None, None]
# A person sees frost as white with a little blue in it.
FROST = np.array([0.88, 0.94, 1.0])[:, None, None]


@dataclass(frozen=True)
class Brush:
    """What a corruption needs beside the picture: a source of its own, and pixels per published pixel."""

    random: np.random.Generator
    scale: float


def gaussian_noise(x: Floats, sigma: float, brush: Brush) -> Floats:
    """Normal noise of deviation sigma."""
    return x + sigma * brush.random.standard_normal(x.shape)


def shot_noise(x: Floats, photons: float, brush: Brush) -> Floats:
    """Counts of photons, Poisson, so many at white."""
    return brush.random.poisson(x * photons) / photons


def impulse_noise(x: Floats, share: float, brush: Brush) -> Floats:
    """A share of the elements set to black or white."""
    draw = brush.random.random(x.shape)
    return np.where(draw < share / 2, 0.0, np.where(draw < share, 1.0, x))


def defocus_blur(x: Floats, setting: tuple[float, float], brush: Brush) -> Floats:
    """The mean over a disk of a radius, the disk's edge softened by a deviation."""
    from scipy import ndimage

    radius, soft = setting[0] * brush.scale, setting[1]
    reach = math.ceil(radius) + 2
    ticks = np.arange(-reach, reach + 1)
    disk = (ticks[:, None] ** 2 + ticks**2 <= radius**2).astype(np.float64)
    disk = ndimage.gaussian_filter(disk / disk.sum(), soft, mode="constant")
    return np.stack([ndimage.convolve(c, disk / disk.sum(), mode="mirror") for c in x])


def glass_blur(x: Floats, setting: tuple[float, int, int], brush: Brush) -> Floats:
    """Blur, each pixel's colour from one nearby, and blur again: frosted glass.

    The paper speaks of swaps. The loop that made the benchmark's pictures assigns views of one array, which copies in
    one direction alone, and so does this one; true swaps carry pixels far and are many times as strong.
    """
    sigma, reach, rounds = setting[0] * brush.scale, max(1, round(setting[1] * brush.scale)), setting[2]
    h, w = x.shape[1:]
    order = list(range(h * w))
    for _ in range(rounds):
        rows, columns = range(h - reach, reach, -1), range(w - reach, reach, -1)
        moves = iter(brush.random.integers(-reach, reach, (len(rows) * len(columns), 2)).tolist())
        for row in rows:
            for column in columns:
                down, right = next(moves)
                here, there = row * w + column, (row + down) * w + column + right
                order[here] = order[there]
    moved = _blurred(x, sigma).reshape(len(x), -1)[:, order].reshape(x.shape)
    return _blurred(moved, sigma)


def motion_blur(x: Floats, setting: tuple[float, float], brush: Brush) -> Floats:
    """A trail of a length and a deviation, in a direction up to 45 degrees from the horizontal."""
    return _trail(x, setting[0] * brush.scale, setting[1] * brush.scale, brush.random.uniform(-45, 45))


def zoom_blur(x: Floats, setting: tuple[float, float], brush: Brush) -> Floats:
    """The mean of the picture and its enlargements by factors from 1 up to, not including, `setting[0]`."""
    factors = np.arange(1, setting[0], setting[1])
    total = x.copy()
    for factor in factors:
        total += _zoomed(x, factor)
    return total / (len(factors) + 1)


def snow(x: Floats, setting: tuple[float, ...], brush: Brush) -> Floats:
    """Flakes from thresholded noise, enlarged and blurred as they fall, over a picture that whitens.

    Settings: the noise's mean and deviation, the enlargement, the threshold, the trail's length and deviation, and the
    share of the picture that is left.
    """
    mean, deviation, zoom, least, length, soft, kept = setting
    flakes = _zoomed(mean + deviation * brush.random.standard_normal((1, *x.shape[1:])), zoom * max(1.0, brush.scale))
    flakes = np.where(flakes < least, 0.0, flakes).clip(0, 1)
    flakes = _trail(flakes, length * brush.scale, soft * brush.scale, brush.random.uniform(-135, -45))
    white = np.maximum(x, 1.5 * _grey(x) + 0.5)
    return kept * x + (1 - kept) * white + flakes + flakes[:, ::-1, ::-1]


def frost(x: Floats, setting: tuple[float, float], brush: Brush) -> Floats:
    """The picture dimmed under ice crystals.

    The published one lays crops of six photographs of frost over the picture; they are not shipped, so the ice here is
    generated: ridges of two fractals, which branch as crystals do, on a bright fractal ground. Its brightness resembles
    the photographs', its shapes are other ones.
    """
    side = x.shape[1:]
    needles = [1 - np.abs(2 * _fractal(side, decay, brush) - 1) for decay in (1.5, 1.25)]
    ice = 0.3 * _fractal(side, 1.6, brush) + 0.45 * needles[0] ** 3 + 0.45 * needles[1] ** 3
    return setting[0] * x + setting[1] * ice * (FROST if len(x) == 3 else 1.0)


def fog(x: Floats, setting: tuple[float, float], brush: Brush) -> Floats:
    """A plasma fractal of a thickness laid over the picture, which loses contrast to it."""
    top = float(x.max())
    thick: Floats = x + setting[0] * _fractal(x.shape[1:], setting[1], brush)
    return thick * top / (top + setting[0])


def brightness(x: Floats, rise: float, brush: Brush) -> Floats:
    """The value of hue, saturation and value rises; hue and saturation stay."""
    value: Floats = x.max(0, keepdims=True)
    risen: Floats = (value + rise).clip(0, 1)
    return np.where(value > 0, x * (risen / np.where(value > 0, value, 1.0)), risen)


def contrast(x: Floats, kept: float, brush: Brush) -> Floats:
    """Each channel moves towards its mean."""
    mean: Floats = x.mean((1, 2), keepdims=True)
    return mean + kept * (x - mean)


def elastic(x: Floats, setting: tuple[float, float, float], brush: Brush) -> Floats:
    """A random affine map, then a smooth random flow; settings are shares of the side.

    Settings: the flow's strength, the deviation that smooths it, and how far the affine map's three points may go.
    """
    from scipy import ndimage

    side = min(x.shape[1:])
    strength, smooth, affine = (share * side for share in setting)
    middle, arm = np.array(x.shape[1:]) // 2, side // 3
    points = middle + arm * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = points + brush.random.uniform(-affine, affine, points.shape)
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points)  # rows: moved (row, column, 1) to where it came from
    rows, columns = np.indices(x.shape[1:]).astype(np.float64)
    flow = [
        strength * ndimage.gaussian_filter(noise, smooth, mode="reflect", truncate=3)
        for noise in brush.random.uniform(-1, 1, (2, *x.shape[1:]))
    ]
    rows, columns = rows + flow[0], columns + flow[1]
    at = np.tensordot(back.T, np.stack([rows, columns, np.ones_like(rows)]), 1)
    return np.stack([ndimage.map_coordinates(c, at, order=1, mode="mirror") for c in x])


def pixelate(x: Floats, share: float, brush: Brush) -> Floats:
    """Shrunk to a share of the sides, and enlarged again without smoothing."""
    from PIL import Image

    h, w = x.shape[1:]
    small = (max(1, int(w * share)), max(1, int(h * share)))
    channels = [Image.fromarray(c.astype(np.float32)) for c in x]
    blocks = [c.resize(small, Image.Resampling.BOX).resize((w, h), Image.Resampling.BOX) for c in channels]
    return np.stack([np.asarray(c, dtype=np.float64) for c in blocks])


def jpeg(x: Floats, quality: int, brush: Brush) -> Floats:
    """Through a JPEG file of a quality, in 8 bits."""
    from PIL import Image

    pixels = (x * 255).round().astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if len(x) == 1 else pixels).save(file, format="JPEG", quality=quality)
    with Image.open(file) as seen:
        return np.asarray(seen, dtype=np.float64).reshape(pixels.shape).transpose(2, 0, 1) / 255


@dataclass(frozen=True)
class Kind:
    """A corruption and its published settings for severities 1 to 5: ImageNet-C's and CIFAR-10-C's."""

    draw: Callable[[Floats, Any, Brush], Floats]
    large: tuple[Any, ...]
    small: tuple[Any, ...]


KINDS: dict[str, Kind] = {
    "gaussian_noise": Kind(gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Kind(shot_noise, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),
    "impulse_noise": Kind(impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Kind(
        defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": Kind(
        glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": Kind(
        motion_blur,
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": Kind(
        zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": Kind(
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Kind(
        frost,
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": Kind(
        fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": Kind(brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Kind(contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic": Kind(
        elastic,
        # the published lengths for sides of 224 are multiples of 244: a slip that the benchmark keeps
        tuple(
            (244 / 224 * a, 244 / 224 * s, 244 / 224 * p)
            for a, s, p in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Kind(pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": Kind(jpeg, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
}


def _grey(x: Floats) -> Floats:
    return (LUMA * x).sum(0, keepdims=True) if len(x) == 3 else x


def _blurred(x: Floats, sigma: float) -> Floats:
    from scipy import ndimage

    return np.stack([ndimage.gaussian_filter(c, sigma, mode="nearest") for c in x])


def _zoomed(x: Floats, factor: float) -> Floats:
    """The middle of the picture, enlarged to fill it."""
    from scipy import ndimage

    middle = (np.array(x.shape[1:]) - 1) / 2
    offset = middle * (1 - 1 / factor)
    return np.stack([ndimage.affine_transform(c, [1 / factor] * 2, offset, order=1, mode="nearest") for c in x])


def _trail(x: Floats, length: float, sigma: float, degrees: float) -> Floats:
    """The mean of copies shifted along a direction, as many as 2 length + 1, with the weights of half a normal curve."""
    weights = np.exp(-0.5 * (np.arange(2 * math.ceil(length) + 1) / max(sigma, 1e-6)) ** 2)
    down, right = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    reach = len(weights)
    wide = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    h, w = x.shape[1:]
    out = np.zeros_like(x)
    for step, weight in enumerate(weights / weights.sum()):
        row, column = reach + round(step * down), reach + round(step * right)
        out += weight * wide[:, row : row + h, column : column + w]
    return out


def _fractal(shape: tuple[int, ...], decay: float, brush: Brush) -> Floats:
    """A plasma fractal in [0, 1], (h, w): the square of a power of two by diamond and square steps, cut to shape.

    Each level adds noise of 1 / decay^2 of the last one's size.
    """
    size = 1 << max(1, (max(shape) - 1).bit_length())
    m, step, rough = np.zeros((size, size)), size, 1.0
    while step >= 2:
        half = step // 2
        corner = m[::step, ::step]

        def noise(like: Floats, rough: float = rough) -> Floats:
            return rough * brush.random.uniform(-1, 1, like.shape)

        pairs = corner + np.roll(corner, -1, 0)
        centre = (pairs + np.roll(pairs, -1, 1)) / 4 + noise(corner)
        m[half::step, half::step] = centre
        m[::step, half::step] = (centre + np.roll(centre, 1, 0) + corner + np.roll(corner, -1, 1)) / 4 + noise(corner)
        m[half::step, ::step] = (centre + np.roll(centre, 1, 1) + corner + np.roll(corner, -1, 0)) / 4 + noise(corner)
        step, rough = half, rough / decay**2
    m -= m.min()
    whole: Floats = m / m.max()
    return whole[: shape[0], : shape[1]]
