"""Pictures in and out: every kind of source, every kind of damage, and the way round that changes nothing."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from sparring.core.errors import FetchError, InputError, LoadError, PictureError
from sparring.images import from_tensor, open_picture, read_back, to_tensor, write_png
from sparring.images.files import LOSSLESS

needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and file modes of POSIX")


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of the given size that has a header and no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "gorilla.png"
    Image.fromarray(noise(7, 5, 3)).save(path)
    return path


# what may come in


def test_a_path_in_every_spelling(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo.parent)
    monkeypatch.setenv("HOME", str(photo.parent))
    monkeypatch.setenv("USERPROFILE", str(photo.parent))
    for source in (
        photo,
        str(photo),
        "gorilla.png",
        "~/gorilla.png",
        photo.read_bytes(),
        bytearray(photo.read_bytes()),
    ):
        picture = open_picture(source)
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), noise(7, 5, 3))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_level(kind: str) -> None:
    levels = noise(9, 4, 3)
    np.testing.assert_array_equal(np.asarray(open_picture(encoded(Image.fromarray(levels), kind))), levels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "AVIF"])
def test_lossy_formats_open_too(kind: str) -> None:
    if kind in ("WEBP", "AVIF") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow was built without {kind}")
    colour = Image.new("RGB", (32, 24), (200, 100, 50))
    picture = open_picture(encoded(colour, kind))
    assert picture.size == (32, 24)
    assert np.abs(np.asarray(picture).astype(int) - (200, 100, 50)).max() <= 4


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_picture(data).getpixel((0, 0)) == (255, 0, 0)


def test_a_pil_image_is_neither_changed_nor_shared() -> None:
    image = Image.fromarray(noise(4, 4, 3))
    picture = open_picture(image)
    picture.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), noise(4, 4, 3))
    lazy = Image.open(io.BytesIO(encoded(image, "PNG")))
    np.testing.assert_array_equal(np.asarray(open_picture(lazy)), noise(4, 4, 3))


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5, 1), (6, 5), (3, 6, 5), (1, 6, 5)])
@pytest.mark.parametrize("kind", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_arrays_and_tensors(shape: tuple[int, ...], kind: str, library: str) -> None:
    levels = noise(*shape)
    array = levels if kind == "uint8" else (levels / 255).astype(kind)
    source = array if library == "numpy" else torch.from_numpy(array)
    expected = levels if levels.ndim == 2 else levels.transpose(1, 2, 0) if shape[0] in (1, 3) else levels
    expected = np.broadcast_to(expected.reshape(6, 5, -1), (6, 5, 3))
    np.testing.assert_array_equal(np.asarray(open_picture(source)), expected)


def test_tensors_as_they_lie_in_a_training_loop() -> None:
    x = torch.rand(3, 4, 5)
    expected = np.asarray(open_picture(x))
    np.testing.assert_array_equal(np.asarray(open_picture(x.clone().requires_grad_())), expected)
    np.testing.assert_array_equal(np.asarray(open_picture(x.permute(1, 2, 0).contiguous().permute(2, 0, 1))), expected)
    rounded = open_picture((x * 255).round().div(255).bfloat16().float().bfloat16())
    assert np.abs(np.asarray(rounded).astype(int) - expected).max() <= 1


def test_where_both_layouts_fit_each_library_has_its_own() -> None:
    levels = noise(3, 4, 3)
    np.testing.assert_array_equal(np.asarray(open_picture(levels)), levels)
    np.testing.assert_array_equal(np.asarray(open_picture(torch.from_numpy(levels))), levels.transpose(1, 2, 0))


def test_floats_are_rounded_not_truncated() -> None:
    x = np.array([[0.0, 0.5 / 255 - 1e-6, 0.5 / 255 + 1e-6, 0.9999, 1.0]])
    assert list(open_picture(x, mode="L").tobytes()) == [0, 0, 1, 255, 255]


def test_grey_stays_grey_on_request() -> None:
    levels = noise(5, 4)
    np.testing.assert_array_equal(np.asarray(open_picture(levels, mode="L")), levels)
    assert open_picture(noise(5, 4, 3), mode="L").mode == "L"
    with pytest.raises(InputError, match="'RGB' or 'L', got 'RGBA'"):
        open_picture(levels, mode="RGBA")  # type: ignore[arg-type]


# what becomes of them


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    levels = noise(4, 6, 3)
    turned = {
        1: levels,
        2: levels[:, ::-1],
        3: levels[::-1, ::-1],
        4: levels[::-1],
        5: levels.transpose(1, 0, 2),
        6: np.rot90(levels, -1),
        7: np.rot90(levels, 2).transpose(1, 0, 2),
        8: np.rot90(levels, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = open_picture(encoded(Image.fromarray(levels), kind, exif=exif))
    np.testing.assert_array_equal(np.asarray(picture), turned[orientation])
    assert not picture.getexif()
    np.testing.assert_array_equal(np.asarray(open_picture(picture)), turned[orientation])


def test_damaged_exif_data_does_not_spoil_the_picture() -> None:
    data = encoded(Image.fromarray(noise(4, 4, 3)), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(np.asarray(open_picture(data)), noise(4, 4, 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    levels = noise(6, 6, 4)
    levels[0, :, 3], levels[1, :, 3] = 0, 255
    rgba = Image.fromarray(levels)
    image = rgba.convert(mode) if mode != "P" else rgba.quantize(64)
    if mode == "P":
        image.info["transparency"] = bytes(range(0, 256, 4))
    seen = np.asarray(image.convert("RGBA")).astype(float)
    expected = seen[..., 3:] / 255 * seen[..., :3] + (1 - seen[..., 3:] / 255) * 255
    got = np.asarray(open_picture(image)).astype(float)
    assert np.abs(got - expected).max() <= 1
    full, empty = seen[..., 3] == 255, seen[..., 3] == 0
    np.testing.assert_array_equal(got[full], seen[full][:, :3])
    assert (got[empty] == 255).all()


def test_four_channel_arrays_are_composited() -> None:
    levels = noise(5, 5, 4)
    levels[..., 3] = 0
    for source in (levels, levels / 255, torch.from_numpy(levels).permute(2, 0, 1)):
        assert (np.asarray(open_picture(source)) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_become_the_nearest_eight(kind: str) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    wide[0, :4] = 0, 65535, 128 * 257, 128 * 257 + 129
    picture = open_picture(encoded(Image.fromarray(wide), kind), mode="L")
    np.testing.assert_array_equal(np.asarray(picture), np.rint(wide / 257).astype(np.uint8))
    assert list(picture.tobytes()[:4]) == [0, 255, 128, 129]


def test_palettes_and_bilevel() -> None:
    palette = Image.fromarray(noise(6, 6, 3)).quantize(32)
    np.testing.assert_array_equal(np.asarray(open_picture(encoded(palette, "PNG"))), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(noise(6, 6) > 128)
    assert bits.mode == "1"
    np.testing.assert_array_equal(np.asarray(open_picture(encoded(bits, "PNG"), mode="L")), (noise(6, 6) > 128) * 255)


def test_cmyk_and_ycbcr() -> None:
    for mode in ("CMYK", "YCbCr"):
        picture = open_picture(encoded(Image.new("RGB", (16, 16), (220, 40, 90)).convert(mode), "JPEG", quality=100))
        assert picture.mode == "RGB"
        assert np.abs(np.asarray(picture).astype(int) - (220, 40, 90)).max() <= 4


def test_float_pictures_follow_the_rule_for_arrays() -> None:
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    data = encoded(Image.fromarray(ramp), "TIFF")
    np.testing.assert_array_equal(np.asarray(open_picture(data, mode="L")), np.rint(ramp * 255))
    with pytest.raises(InputError, match=r"looks like 0\.\.255"):
        open_picture(Image.fromarray(ramp * 255))


def test_integers_without_a_scale_are_refused() -> None:
    with pytest.raises(PictureError, match="wider than 16 bits"):
        open_picture(Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)))
    with pytest.raises(PictureError, match="uint8 first"):
        open_picture(Image.fromarray(np.full((2, 2), 200, dtype=np.int32)))


def test_a_mode_that_pillow_cannot_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(PictureError, match=r"mode 'HSV' cannot be converted to 'L' \(conversion not supported\)"):
        open_picture(Image.new("HSV", (2, 2)), mode="L")


# what is refused


def test_a_missing_file_names_its_neighbours(photo: Path) -> None:
    with pytest.raises(PictureError, match=r"there is no file .*gorila\.PNG'; close matches there: gorilla\.png"):
        open_picture(photo.parent / "gorila.PNG")
    with pytest.raises(PictureError, match="no name in that folder is close"):
        open_picture(photo.parent / "xyz.jpeg")
    with pytest.raises(PictureError, match=r"the folder .*nowhere' does not exist"):
        open_picture(photo.parent / "nowhere" / "gorilla.png")


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(PictureError, match="is a folder"):
        open_picture(tmp_path)
    with pytest.raises(PictureError, match=r"empty\.png' is empty \(0 bytes\)"):
        open_picture(tmp_path / "empty.png")
    with pytest.raises(PictureError, match="path of the picture is empty"):
        open_picture("")
    with pytest.raises(PictureError, match=r"cannot read|no file"):
        open_picture("a\0b.png")
    with pytest.raises(PictureError, match=r"cannot read|no file"):
        open_picture("x" * 5000)
    with pytest.raises(PictureError, match="0 bytes"):
        open_picture(b"")


@needs_posix
def test_a_pipe_or_a_device_would_feed_us_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(PictureError, match="no regular file"):
            open_picture(path)


@needs_posix
def test_a_file_that_may_not_be_read(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the superuser may read everything, so the file mode would prove nothing
    with pytest.raises(PictureError, match=r"cannot read .*gorilla\.png': Permission denied"):
        open_picture(photo)


@pytest.mark.parametrize(
    "data", [b"hello world", b"<html></html>", b"\x00" * 100, b"\x89PNG", b"PK\x03\x04" + bytes(50)]
)
def test_what_is_no_picture(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.png").write_bytes(data)
    for source in (data, tmp_path / "x.png"):
        with pytest.raises(PictureError, match=r"no picture in a format that is read here \(PNG, JPEG"):
            open_picture(source)


def test_nothing_is_executed_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def run(*_: object, **__: object) -> None:
        pytest.fail("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(evil) run\n%%EOF\n"
    with pytest.raises(PictureError, match="no picture in a format that is read here"):
        open_picture(script)
    opened = Image.open(io.BytesIO(script))
    assert isinstance(opened, EpsImagePlugin.EpsImageFile)
    with pytest.raises(PictureError, match=r"EPS image is of a format that is not read here; .*convert\('RGB'\)"):
        open_picture(opened)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file(tmp_path: Path, kind: str, share: float) -> None:
    data = encoded(Image.fromarray(noise(40, 40, 3)), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(PictureError, match=r"cut\.img' is (damaged or cut short|no picture)"):
        open_picture(path)
    with pytest.raises(PictureError):
        open_picture(path.read_bytes())


def test_a_truncated_image_that_the_user_opened() -> None:
    data = encoded(Image.fromarray(noise(40, 40, 3)), "JPEG")
    with pytest.raises(PictureError, match="JPEG image is damaged or cut short"):
        open_picture(Image.open(io.BytesIO(data[: len(data) // 2])))


@given(st.data())
def test_damage_never_escapes_as_another_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"]))
    good = bytearray(encoded(Image.fromarray(noise(12, 12, 3)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PictureError):
        assert open_picture(bytes(good)).mode == "RGB"


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(PictureError, match=r"too large: .*900000000 pixels"):  # Pillow's error
        open_picture(png_header(30_000, 30_000))
    with pytest.raises(PictureError, match="too large"):  # Pillow's warning, which the tests turn into an error
        open_picture(png_header(10_001, 10_000))


def test_the_pixel_limits_hold_whatever_pillow_and_the_warning_filters_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(PictureError, match=r"10001 x 10000 pixels, and the limit is 100,000,000"):
        open_picture(png_header(10_001, 10_000))
    with pytest.raises(PictureError, match="damaged or cut short"):  # below the limit, so it is decoded and found empty
        open_picture(png_header(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(PictureError, match="too large"):
        open_picture(encoded(Image.fromarray(noise(6, 6, 3)), "PNG"))
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(PictureError, match="the limit is 30 pixels"):
        open_picture(encoded(Image.fromarray(noise(6, 6, 3)), "PNG"))


def test_pictures_without_pixels() -> None:
    with pytest.raises(PictureError, match="has no pixels: it is 0 x 3"):
        open_picture(Image.new("RGB", (0, 3)))
    for empty in (np.zeros((0, 4, 3), np.uint8), torch.zeros(3, 0, 4)):
        with pytest.raises(InputError, match="got"):
            open_picture(empty)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ftp://example.org/x.png", "not 'ftp'"),
        ("s3://bucket/x.png", "not 's3'; download the file"),
        ("FILE:///etc/passwd", "not 'file'; pass the plain path"),
        ("data:image/png;base64,AAAA", "not 'data'"),
    ],
)
def test_unknown_schemes(source: str, words: str) -> None:
    with pytest.raises(FetchError, match=words):
        open_picture(source)


def test_a_url_that_went_through_a_path() -> None:
    with pytest.raises(PictureError, match="pass it as a string"):
        open_picture(Path("https://example.org/x.png"))


@pytest.mark.parametrize("source", [None, 3, ["a.png", "b.png"], object()])
def test_what_is_no_source_at_all(source: Any) -> None:
    with pytest.raises(InputError, match="a picture is a path, a URL"):
        open_picture(source)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4,), (7, 7, 2), (2, 7, 7), (7, 3, 7), ()])
def test_shapes_that_are_no_picture(shape: tuple[int, ...]) -> None:
    for source in (np.zeros(shape), torch.zeros(shape)):
        with pytest.raises(InputError, match="has shape") as caught:
            open_picture(source)
        assert ("one picture of the batch" in str(caught.value)) == (len(shape) == 4)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (noise(4, 4, 3).astype(np.float32), r"got min .* and max .*: looks like 0\.\.255: divide by 255 or pass uint8"),
        ((noise(4, 4, 3) / 255 - 0.45) / 0.22, r"got min -1\.97\d+ and max 2\.37\d+: looks normalised"),
        (np.full((4, 4), 1.001), r"got min 1\.001 and max 1\.001: scale it to \[0, 1\]"),
        (np.array([[0.5, np.nan], [np.inf, 0.5]]), "2 of 4 are NaN or infinite"),
        (noise(4, 4).astype(np.int64), "got int64: cast levels 0..255 to uint8"),
        (noise(4, 4).astype(np.uint16), "got uint16: divide by 65535"),
        (noise(4, 4) > 3, "got bool"),
    ],
)
def test_values_that_are_no_pixels(array: np.ndarray[Any, Any], words: str) -> None:
    for source in (array, torch.from_numpy(array)):
        with pytest.raises(InputError, match=words):
            open_picture(source)


def test_a_little_rounding_noise_is_forgiven() -> None:
    x = np.array([[-5e-5, 1 + 5e-5]])
    assert list(open_picture(x, mode="L").tobytes()) == [0, 255]


# URLs


@pytest.fixture
def site() -> Iterator[tuple[str, dict[str, tuple[str, bytes]]]]:
    pages: dict[str, tuple[str, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = pages[self.path]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", pages
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_picture_from_a_url(site: tuple[str, dict[str, tuple[str, bytes]]]) -> None:
    url, pages = site
    pages["/good.png"] = ("image/png", encoded(Image.fromarray(noise(5, 5, 3)), "PNG"))
    pages["/liar.png"] = ("image/png", b"<html>not a picture</html>")
    np.testing.assert_array_equal(np.asarray(open_picture(f"{url}/good.png")), noise(5, 5, 3))
    with pytest.raises(PictureError, match=r"liar\.png' is no picture"):
        open_picture(f"{url}/liar.png")
    with pytest.raises(FetchError, match="too large"):
        open_picture(f"{url}/good.png", limit=10)
    with pytest.raises(FetchError, match="not public"):
        open_picture(f"{url}/good.png", allow_private=False)


# the way round


def test_to_tensor_is_the_float32_nearest_to_each_level() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = to_tensor(Image.fromarray(levels))
    assert x.shape == (1, 16, 16)
    assert x.dtype == torch.float32
    exact = torch.arange(256, dtype=torch.float64).div(255).float()  # 53 bits: the second rounding changes nothing
    assert torch.equal(x.flatten(), exact)
    assert torch.equal(x.mul(255).round().div(255), x)


def test_to_tensor_wants_what_open_picture_gives() -> None:
    assert to_tensor(Image.fromarray(noise(4, 6, 3))).shape == (3, 4, 6)
    with pytest.raises(InputError, match="got 'RGBA': pass it to open_picture first"):
        to_tensor(Image.fromarray(noise(4, 6, 4)))


@given(
    st.sampled_from([1, 3]).flatmap(
        lambda c: st.tuples(st.just(c), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
    )
)
def test_from_tensor_undoes_to_tensor(drawn: tuple[int, int, int, int]) -> None:
    c, h, w, seed = drawn
    levels = noise(c, h, w, seed=seed)
    image = Image.fromarray(levels[0] if c == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
    x = to_tensor(image)
    assert from_tensor(x).tobytes() == image.tobytes()
    assert torch.equal(to_tensor(from_tensor(x)), x)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_from_tensor_goes_to_the_nearest_level(values: list[float]) -> None:
    x = torch.tensor(values).reshape(1, 1, -1)
    back = to_tensor(from_tensor(x))
    assert (back.double() - x.double()).abs().max() <= 0.5 / 255 + 1e-7


def test_from_tensor_rounds_in_any_float_type() -> None:
    values = torch.tensor([0.0, 0.1, 0.4999, 0.5, 0.999, 1.0]).reshape(1, 1, 6)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        expected = (values.to(dtype).double() * 255).round().byte().flatten().tolist()
        assert list(from_tensor(values.to(dtype)).tobytes()) == expected


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.full((3, 2, 2), 1.01), r"got min 1\.01 and max 1\.01"),
        (torch.full((3, 2, 2), -0.001), r"min -0\.001 .*looks normalised"),
        (torch.full((3, 2, 2), 200.0), r"looks like 0\.\.255"),
        (torch.full((3, 2, 2), float("nan")), "12 of 12 are NaN"),
        (torch.zeros(2, 3, 2, 2), r"got \(2, 3, 2, 2\): pass one picture of the batch"),
        (torch.zeros(2, 2), r"got \(2, 2\)"),
        (torch.zeros(4, 2, 2), r"got \(4, 2, 2\)"),
        (torch.zeros(3, 0, 2), r"got \(3, 0, 2\)"),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), "divide 8-bit levels by 255"),
        (np.zeros((3, 2, 2)), "got ndarray"),
    ],
)
def test_from_tensor_refuses(x: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_tensor(x)


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, suffix: str, mode: Any) -> None:
    x = torch.from_numpy(noise(3 if mode == "RGB" else 1, 20, 30)).float() / 255
    path = write_png(str(tmp_path / f"adv{suffix}"), x)
    assert path == tmp_path / f"adv{suffix}"
    assert torch.equal(read_back(path, mode=mode), x)
    if mode == "L":
        assert torch.equal(read_back(path), x.expand(3, -1, -1))
    assert os.listdir(tmp_path) == [path.name]


def test_off_the_grid_is_rounded_when_written(tmp_path: Path) -> None:
    x = torch.rand(3, 9, 9)
    assert torch.equal(read_back(write_png(tmp_path / "a.png", x)), x.mul(255).round().div(255))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adv.jpg", r"JPEG would change the pixels: use \.png"),
        ("adv.JPEG", "JPEG would change the pixels"),
        ("adv.gif", "256 colours"),
        ("adv", "must be one of .png"),
        ("adv.eps", "must be one of .png"),
    ],
)
def test_only_lossless_files_are_written(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        write_png(tmp_path / name, torch.zeros(3, 2, 2))
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_png(tmp_path / "a.png", torch.zeros(3, 4, 4))

    def full(self: Image.Image, out: Any, **_: object) -> None:
        out.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(PictureError, match=r"cannot write .*a\.png': No space left on device"):
        write_png(path, torch.ones(3, 4, 4))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.png"]
    assert torch.equal(read_back(path), torch.zeros(3, 4, 4))
    write_png(path, torch.ones(3, 4, 4))
    assert torch.equal(read_back(path), torch.ones(3, 4, 4))


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"the folder .*none' does not exist"):
        write_png(tmp_path / "none" / "a.png", torch.zeros(3, 2, 2))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PictureError, match="cannot write"):
        write_png(tmp_path / "folder.png", torch.zeros(3, 2, 2))
    if features.check("webp"):
        with pytest.raises(PictureError, match="cannot write"):
            write_png(tmp_path / "wide.webp", torch.zeros(1, 1, 20_000))  # WebP ends at 16383
    assert os.listdir(tmp_path) == ["folder.png"]


@needs_posix
def test_others_may_read_the_file_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = write_png(tmp_path / "a.png", torch.zeros(3, 2, 2))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_every_error_is_a_load_or_an_input_error() -> None:
    assert issubclass(PictureError, LoadError)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
