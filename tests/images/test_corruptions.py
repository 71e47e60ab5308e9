"""The fifteen common corruptions: known answers, grades, keys, and a table on a real network."""

from __future__ import annotations

import io
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sparring as sp
import tiny
from sparring.core.errors import InputError, UnknownNameError
from sparring.core.rng import KeyedRandom
from sparring.core.space import Bounds
from sparring.images.corruptions import NAMES, Corruptions, corrupt, corruption_table

# Published settings whose severities are not ordered by how far they carry the pixels: elastic goes from few long waves to
# many short ones, glass blur and frost trade one setting against another, fog's fractal turns from smooth to rough.
UNEVEN = {"elastic", "glass_blur", "frost", "fog", "snow"}
RANDOM = {
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic",
}  # fmt: skip


def ramp(side: int = 32, channels: int = 3) -> Tensor:
    """A picture with smooth shades and an edge, in [0.1, 0.9]."""
    ticks = torch.linspace(0, 1, side)
    shade = 0.1 + 0.4 * ticks[:, None] + 0.4 * (ticks[None, :] > 0.5)
    return torch.stack([shade, shade.T, 1 - shade])[None, :channels].contiguous()


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_keeps_shape_bounds_and_keys(name: str) -> None:
    for x in (ramp(32), ramp(33, 1), torch.zeros(1, 3, 20, 28), torch.ones(1, 1, 16, 16), ramp(70)):
        for severity in (1, 5):
            made = corrupt(x, name, severity, 4)
            assert made.shape == x.shape
            assert made.dtype == x.dtype
            assert ((made >= 0) & (made <= 1)).all()
            assert torch.equal(made, corrupt(x, name, severity, 4))
    x = ramp()
    pair = torch.cat([x, x.flip(2)])
    rng = KeyedRandom(1, torch.tensor([5, 6]))
    both = corrupt(pair, name, 3, rng)
    assert torch.equal(both[1:], corrupt(pair[1:], name, 3, rng.take(torch.tensor([1])))), "alone or in a batch"
    assert not torch.equal(both[:1], x)
    again = corrupt(pair, name, 3, KeyedRandom(2, torch.tensor([5, 6])))
    assert torch.equal(again, both) == (name not in RANDOM)


def test_noise_has_the_published_strength() -> None:
    x = torch.full((1, 3, 64, 64), 0.5)
    assert float((corrupt(x, "gaussian_noise", 3) - x).std()) == pytest.approx(0.08, rel=0.03)
    assert float((corrupt(x, "shot_noise", 3) - x).std()) == pytest.approx((0.5 / 100) ** 0.5, rel=0.03)
    struck = corrupt(x, "impulse_noise", 5) != x
    assert float(struck.double().mean()) == pytest.approx(0.07, abs=0.01)
    large = torch.full((1, 3, 80, 80), 0.5)  # a side past 64 takes ImageNet-C's settings
    assert float((corrupt(large, "gaussian_noise", 1) - large).std()) == pytest.approx(0.08, rel=0.03)


def test_what_blurs_keeps_the_mean_and_leaves_flat_pictures_alone() -> None:
    flat = torch.full((1, 3, 32, 32), 0.4)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic", "pixelate", "contrast"):
        torch.testing.assert_close(corrupt(flat, name, 5), flat, atol=1e-6, rtol=0)
    x = ramp().roll(8, 3)  # zooming keeps an edge in the very middle
    for name in ("defocus_blur", "motion_blur", "zoom_blur"):  # glass makes edges ragged
        edge = float(corrupt(x, name, 5).diff(dim=3).abs().max())
        assert edge < 0.8 * 0.4, name
    assert float(corrupt(x, "glass_blur", 3).mean()) == pytest.approx(float(x.mean()), abs=0.01)


def test_brightness_contrast_pixelate_and_jpeg_by_hand() -> None:
    x = ramp() * 0.6
    bright = corrupt(x, "brightness", 3)
    torch.testing.assert_close(bright.amax(1), (x.amax(1) + 0.15).clamp(max=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(bright / bright.amax(1, keepdim=True), x / x.amax(1, keepdim=True), atol=1e-5, rtol=0)
    mean = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(corrupt(x, "contrast", 2), mean + 0.5 * (x - mean), atol=1e-6, rtol=0)
    assert corrupt(ramp(40), "pixelate", 5).diff(dim=2).abs().lt(1e-7).float().mean() > 0.3, "rows repeat"
    x = (x * 255).round() / 255
    file = io.BytesIO()
    Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=40)
    expected = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(corrupt(x, "jpeg", 5)[0], expected, atol=1e-6, rtol=0)


def test_severity_grows_the_distance_on_a_photo(zoo: ModuleType) -> None:
    for data, n in (("cifar10", 4), ("imagenet", 1)):
        x, _ = zoo.data(data, n)
        for name in NAMES:
            far = [float((corrupt(x, name, s) - x).norm()) for s in (1, 2, 3, 4, 5)]
            assert min(far) > 0.1, (data, name)
            if name not in UNEVEN:
                assert far == sorted(far), (data, name, far)
            elif name != "elastic":
                assert far[4] > far[0], (data, name, far)


@pytest.mark.parametrize(
    ("x", "severity"),
    [(ramp(), 0), (ramp(), 6), (ramp(), 2.5), (ramp() * 255, 1), (ramp()[0], 1), (torch.rand(1, 4, 8, 8), 1)],
)
def test_pictures_and_severities_that_cannot_be_right_are_refused(x: Tensor, severity: int) -> None:
    with pytest.raises(InputError, match=r"needed|must lie in|take float pictures"):
        corrupt(x, "fog", severity)


def test_an_unknown_kind_names_the_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="gaussian_noise"):
        corrupt(ramp(), "gausian_noise", 1)
    with pytest.raises(UnknownNameError, match="jpeg"):
        Corruptions(3, ["jpg"])


def test_other_bounds_are_scaled_to_and_back() -> None:
    x = ramp()
    theta = torch.tensor([[NAMES.index("fog"), 3, 9]])
    unit = Corruptions(5).bound(x, Bounds.of((0.0, 1.0))).draw(x, theta)
    wide = Corruptions(5).bound(x * 255, Bounds.of((0.0, 255.0))).draw(x * 255, theta)
    torch.testing.assert_close(wide, unit * 255, atol=1e-2, rtol=0)


def test_the_table_counts_what_it_says(zoo: ModuleType) -> None:
    x, y = zoo.data("cifar10", 24)
    victim = sp.Victim(zoo.load("cifar10_resnet20"))
    table = corruption_table(victim, x, y, kinds=("gaussian_noise", "jpeg", "contrast"), severities=(1, 5))
    assert table.accuracy.shape == (3, 2)
    expected = (victim.query(corrupt(x, "jpeg", 5)).labels == y).float().mean()  # no noise, so no key
    assert float(table.accuracy[1, 1]) == pytest.approx(float(expected))
    assert table.clean == pytest.approx(float((victim.query(x).labels == y).float().mean()))
    assert float(table.accuracy[0, 1]) < table.clean
    assert table.mean_corruption_error == pytest.approx(1 - float(table.accuracy.mean()))
    lines = str(table).splitlines()
    assert len(lines) == 5
    assert "mean corruption error" in lines[-1]
    again = corruption_table(victim, x.flip(0), y.flip(0), kinds=("gaussian_noise",), severities=(5,))
    assert float(again.accuracy) == pytest.approx(float(table.accuracy[0, 1])), "order does not matter"


def test_a_table_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least one picture"):
        corruption_table(tiny.trained(), torch.zeros(0, 1, 6, 6), torch.zeros(0, dtype=torch.int64))
    x, y = tiny.correct(2)
    with pytest.raises(InputError, match="from 1 to 5"):
        corruption_table(tiny.trained(), x, y, kinds=("fog",), severities=(7,))
