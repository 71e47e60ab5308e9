"""Where the victim's input begins: sizes, crops and filters, against Pillow and transformers' own processors."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sparring.core.errors import InputError, LoadError, PictureError
from sparring.images import (
    IMAGENET,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    from_processor,
    open_picture,
    to_tensor,
    write_png,
)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# the steps


def test_imagenet_is_short_side_256_and_crop_224() -> None:
    for size, scaled, corner in [((640, 480), (341, 256), (58, 16)), ((300, 451), (256, 384), (16, 80))]:
        photo = picture(*size)
        left, top = corner
        expected = photo.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
        assert torch.equal(IMAGENET.apply(photo), to_tensor(expected))
    assert len(IMAGENET_MEAN) == len(IMAGENET_STD) == 3


@pytest.mark.parametrize("name", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
def test_every_filter_is_pillows(name: str) -> None:
    photo = picture(50, 40)
    expected = photo.resize((20, 30), Image.Resampling[name.upper()])
    assert torch.equal(Preprocess((30, 20), (30, 20), name, crop=None).apply(photo), to_tensor(expected))


def test_a_picture_of_the_right_size_is_left_alone(tmp_path: Path) -> None:
    x = torch.rand(3, 224, 224).mul(255).round().div(255)
    path = write_png(tmp_path / "adv.png", x)
    assert torch.equal(IMAGENET.apply(path), x)
    assert torch.equal(IMAGENET.apply(str(path)), x)
    assert torch.equal(IMAGENET.apply(x), x)
    grown = IMAGENET.apply(open_picture(path).resize((225, 224)))
    assert not torch.equal(grown, x)  # one column more, and resizing and cropping do happen


def test_the_victims_pixels_of_a_photo_survive_the_file(tmp_path: Path) -> None:
    pixels = IMAGENET.apply(picture(500, 333))
    assert torch.equal(IMAGENET.apply(write_png(tmp_path / "crop.png", pixels)), pixels)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30), st.integers(1, 30), st.integers(1, 40))
def test_the_output_is_on_the_grid_and_of_the_size(width: int, height: int, h: int, w: int, resize: int) -> None:
    x = Preprocess((h, w), resize).apply(picture(width, height))
    assert x.shape == (3, h, w)
    assert torch.equal(x.mul(255).round().div(255), x)


def test_grey_pictures_give_one_channel() -> None:
    x = Preprocess((8, 8), (8, 8), mode="L", crop=None).apply(picture(20, 20))
    assert x.shape == (1, 8, 8)
    assert torch.equal(x, to_tensor(picture(20, 20).convert("L").resize((8, 8), Image.Resampling.BILINEAR)))


def test_what_a_small_picture_lacks_is_black() -> None:
    x = Preprocess((6, 7)).apply(Image.new("RGB", (3, 4), "white"))
    inside = torch.zeros(6, 7, dtype=torch.bool)
    inside[1:5, 2:5] = True
    assert torch.equal(x, inside.float().expand(3, -1, -1))


def test_without_steps_the_size_must_be_right() -> None:
    exact = Preprocess((4, 5), crop=None)
    assert exact.apply(picture(5, 4)).shape == (3, 4, 5)
    with pytest.raises(InputError, match=r"5 x 4 pixels \(height x width\) and the victim takes 4 x 5"):
        exact.apply(picture(4, 5))


def test_a_thread_of_a_picture_does_not_fill_the_memory() -> None:
    with pytest.raises(InputError, match=r"1 x 60000 pixels would become 256 x 15360000"):
        IMAGENET.apply(np.zeros((1, 60_000, 3), np.uint8))


def test_bad_files_are_refused_here_too(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="there is no file"):
        IMAGENET.apply(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": 224}, "size must be"),
        ({"size": (224, 0)}, "size must be"),
        ({"size": (224.0, 224)}, "size must be"),
        ({"size": (8, 8), "resize": 0}, "resize must be"),
        ({"size": (8, 8), "resize": (8,)}, "resize must be"),
        ({"size": (8, 8), "resize": True}, "resize must be"),
        ({"size": (8, 8), "resample": "cubic"}, "resample must be one of nearest, .*'cubic'"),
        ({"size": (8, 8), "mode": "RGBA"}, "mode is 'RGB' or 'L'"),
        ({"size": (8, 8), "crop": "middle"}, "crop 'center' or None"),
        ({"size": (8, 8), "resize": 8, "crop": None}, r"pass crop='center', or resize=\(8, 8\)"),
        ({"size": (8, 8), "resize": (9, 8), "crop": None}, "does not always give"),
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Preprocess(**wrong)


# the settings of image processors, read without transformers

HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
COLOURS = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}


def test_a_modern_file() -> None:
    config = json.loads(
        """{"do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "ViTImageProcessorFast", "image_std": [0.5, 0.5, 0.5], "resample": 2,
        "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 192}}"""
    )
    preprocess, mean, std = from_processor(config)
    assert preprocess == Preprocess((224, 192), (224, 192), "bilinear", "RGB", None)
    assert mean == pytest.approx((0.5, 0.5, 0.5), rel=1e-12)
    assert std == pytest.approx((0.5, 0.5, 0.5), rel=1e-12)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 224}, Preprocess((224, 224), (224, 224), crop=None)),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224}, Preprocess((224, 224), 256, "bicubic")),
        (
            {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384},
            Preprocess((384, 384), (384, 384), "bicubic", crop=None),
        ),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224},
            Preprocess((224, 224), (256, 256), "bicubic"),
        ),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 224}, Preprocess((224, 224), 224, "bicubic")),
        ({"feature_extractor_type": "LevitFeatureExtractor", "size": 224}, Preprocess((224, 224), 256, "bicubic")),
        (
            {"feature_extractor_type": "PoolFormerFeatureExtractor", "size": 224, "do_resize_and_center_crop": True},
            Preprocess((224, 224), 248, "bicubic"),
        ),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 200},
                "resample": 2,
            },
            Preprocess((224, 200), 256),
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": "bicubic"},
            Preprocess((224, 224), 256, "bicubic"),
        ),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 64}, Preprocess((64, 64))),
        (
            {"size": [32, 40], "resample": 0, "do_convert_rgb": True},
            Preprocess((32, 40), (32, 40), "nearest", crop=None),
        ),
    ],
)
def test_files_old_and_new(config: dict[str, Any], expected: Preprocess) -> None:
    assert from_processor({**HALVES, **config})[0] == expected


def test_one_mean_for_one_channel() -> None:
    config = {"size": {"height": 8, "width": 8}, "resample": 2, "image_mean": [0.1307], "image_std": [0.3081]}
    preprocess, mean, std = from_processor(config)
    assert preprocess.mode == "L"
    assert (*mean, *std) == pytest.approx((0.1307, 0.3081), rel=1e-12)
    _, mean, _ = from_processor({**config, "image_mean": 0.5, "image_std": 0.5})
    assert mean == pytest.approx((0.5,) * 3)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False, "image_mean": [123.0, 117.0, 104.0], "image_std": [1.0, 2.0, 3.0]},
        {"include_top": True},
        {"include_top": True, "do_normalize": False},
    ],
)
def test_scale_and_offset_are_folded_into_mean_and_std(extra: dict[str, Any]) -> None:
    config = {"size": {"height": 4, "width": 4}, "resample": 2, **COLOURS, **extra}
    _, mean, std = from_processor(config)
    levels = np.arange(256.0)
    value = levels * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else levels
    value = value - 1 if config.get("rescale_offset") else value
    for c in range(3):
        theirs = value
        if config.get("do_normalize", True):
            theirs = (theirs - config["image_mean"][c]) / config["image_std"][c]
        if config.get("include_top"):
            theirs = theirs / config["image_std"][c]
        np.testing.assert_allclose((levels / 255 - mean[c]) / std[c], theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"do_pad": True}, "do_pad=True, which is not handled"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order=True"),
        ({"do_something_new": True}, "do_something_new=True"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "do_flip_channel_order=True"),
        (
            {"image_processor_type": "NovelImageProcessor"},
            "'NovelImageProcessor' are not known here; pass the processor",
        ),
        ({"size": 224}, "may mean the short side or both"),
        ({"size": {"shortest_edge": 224}}, "keeps the aspect ratio and does not crop"),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, "gives no fixed height and width"),
        ({"size": None}, "size=None gives no fixed"),
        ({"size": {"height": 224}}, "gives no fixed"),
        ({"do_resize": False}, "size is not fixed"),
        ({"crop_size": 224}, "neither do_center_crop nor a type"),
        ({"do_center_crop": True}, "crop_size=None gives no fixed"),
        ({"resample": 17}, "resample=17 is no filter"),
        ({"resample": None}, "resample=None is no filter"),
        ({"image_mean": None}, "needs image_mean"),
        ({"image_std": [0.5, 0.5]}, "needs image_std"),
        ({"image_std": [0.5, 0.5, 0.0]}, "do not go together"),
        ({"image_std": [0.5]}, "do not go together"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "do not go together"),
        ({"rescale_factor": 0}, "do not go together"),
    ],
)
def test_settings_that_are_not_understood(config: dict[str, Any], words: str) -> None:
    with pytest.raises(LoadError, match=words):
        from_processor({"size": {"height": 8, "width": 8}, "resample": 2, **HALVES, **config})


# processors that run


class Processor:
    """A processor with its own will: it does what its settings say, or nearly."""

    def __init__(self, twist: str = "") -> None:
        self.twist = twist

    def to_dict(self) -> dict[str, Any]:
        said = {"do_resize": True, "size": {"height": 40, "width": 40}, "resample": 2, "do_rescale": True}
        return {**said, "do_normalize": True, **COLOURS}

    def __call__(self, images: Image.Image, return_tensors: str) -> dict[str, Any]:
        assert return_tensors == "np"
        if self.twist == "raises":
            raise RuntimeError("no tokenizer")
        corner = 2.0 if self.twist == "shifted" else 0.0
        size = (41, 40) if self.twist == "wider" else (40, 40)
        resized = images.resize(size, Image.Resampling.BILINEAR, box=(corner, 0, images.width, images.height))
        values = np.asarray(resized)[..., :: -1 if self.twist == "bgr" else 1] / 255
        return {"pixel_values": [((values - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)]}


def test_a_processor_is_run_to_confirm_its_settings() -> None:
    assert from_processor(Processor())[0] == Preprocess((40, 40), (40, 40), crop=None)
    for twist in ("shifted", "bgr"):
        with pytest.raises(LoadError, match="own output differs by up to"):
            from_processor(Processor(twist))
    with pytest.raises(LoadError, match=r"gives shape \(3, 40, 41\)"):
        from_processor(Processor("wider"))
    with pytest.raises(LoadError, match=r"failed on a test picture \(RuntimeError: no tokenizer\)"):
        from_processor(Processor("raises"))


def test_an_object_that_only_holds_settings() -> None:
    held = SimpleNamespace(size={"height": 8, "width": 9}, resample=3, **HALVES)
    with pytest.raises(LoadError, match="'SimpleNamespace' are not known"):
        from_processor(held)
    ConvNextImageProcessor = type("ConvNextImageProcessor", (SimpleNamespace,), {})
    assert from_processor(ConvNextImageProcessor(size=224, **HALVES))[0] == Preprocess((224, 224), 256, "bicubic")


def build(folder: str, name: str, **settings: Any) -> Any:
    """A processor of transformers with the Pillow back end, from nothing but settings."""
    pytest.importorskip("transformers")
    for module, suffix in ((f"image_processing_pil_{folder}", "Pil"), (f"image_processing_{folder}", "")):
        try:  # transformers 5 has a class for each back end, 4 has the Pillow one under the plain name
            found = importlib.import_module(f"transformers.models.{folder}.{module}")
        except ModuleNotFoundError:
            continue
        return getattr(found, name + suffix)(**settings)
    pytest.skip(f"this transformers has no {name} with the Pillow back end")


def assert_same(processor: Any, preprocess: Preprocess, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    for photo in (picture(431, 611), picture(613, 455, seed=1), picture(100, 130, seed=2)):
        theirs = np.asarray(processor(images=photo, return_tensors="np")["pixel_values"][0], dtype=np.float64)
        pixels = theirs * np.array(std)[:, None, None] + np.array(mean)[:, None, None]
        ours = preprocess.apply(photo).double().numpy()
        assert ours.shape == theirs.shape
        # 1/255 is promised; with the same Pillow underneath only float32's rounding is left
        assert np.abs(pixels - ours).max() <= 1e-5


PROCESSORS = [
    ("vit", "ViTImageProcessor", {}),
    ("vit", "ViTImageProcessor", {"size": {"height": 96, "width": 128}, "resample": 3}),
    ("vit", "ViTImageProcessor", {"do_normalize": False}),
    ("vit", "ViTImageProcessor", {"do_rescale": False, "image_mean": [127.0] * 3, "image_std": [128.0] * 3}),
    ("convnext", "ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    ("convnext", "ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.95, "resample": 2}),
    ("convnext", "ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("deit", "DeiTImageProcessor", {}),
    ("clip", "CLIPImageProcessor", {}),
    ("clip", "CLIPImageProcessor", {"do_resize": False}),
    ("bit", "BitImageProcessor", {"size": {"shortest_edge": 256}}),
    ("beit", "BeitImageProcessor", {"size": {"height": 256, "width": 256}, "do_center_crop": True}),
    ("levit", "LevitImageProcessor", {}),
    ("poolformer", "PoolFormerImageProcessor", {}),
    ("mobilenet_v1", "MobileNetV1ImageProcessor", {}),
    ("mobilenet_v2", "MobileNetV2ImageProcessor", {}),
    ("mobilevit", "MobileViTImageProcessor", {"do_flip_channel_order": False, "image_mean": 0.0, "image_std": 1.0}),
    ("pvt", "PvtImageProcessor", {}),
    ("segformer", "SegformerImageProcessor", {"size": {"height": 128, "width": 128}}),
    ("siglip", "SiglipImageProcessor", {}),
    ("blip", "BlipImageProcessor", {}),
    ("chinese_clip", "ChineseCLIPImageProcessor", {}),
    ("efficientnet", "EfficientNetImageProcessor", {}),
    ("efficientnet", "EfficientNetImageProcessor", {"rescale_factor": 1 / 127.5, "rescale_offset": True}),
]


@pytest.mark.parametrize(("folder", "name", "settings"), PROCESSORS)
def test_transformers_processors_agree(folder: str, name: str, settings: dict[str, Any]) -> None:
    processor = build(folder, name, **settings)
    found = from_processor(processor)
    assert_same(processor, *found)
    assert from_processor(processor.to_dict()) == found  # what preprocessor_config.json would hold


@pytest.mark.parametrize(
    ("folder", "name", "short"),
    [
        ("vit", "ViTImageProcessor", {"size": 224}),
        ("convnext", "ConvNextImageProcessor", {"size": 224}),
        ("deit", "DeiTImageProcessor", {"size": 256, "crop_size": 224}),
        ("clip", "CLIPImageProcessor", {"size": 224, "crop_size": 224}),
        ("levit", "LevitImageProcessor", {"size": 224}),
        ("poolformer", "PoolFormerImageProcessor", {"size": 224}),
        ("mobilenet_v2", "MobileNetV2ImageProcessor", {"size": 256}),
        ("beit", "BeitImageProcessor", {"size": 192}),
        ("segformer", "SegformerImageProcessor", {"size": 192}),
        ("efficientnet", "EfficientNetImageProcessor", {"size": 346}),
    ],
)
def test_what_a_short_file_leaves_out_is_filled_in_as_transformers_does(
    folder: str, name: str, short: dict[str, Any]
) -> None:
    processor = build(folder, name, **short, **COLOURS)
    assert_same(processor, *from_processor({**short, **COLOURS, "image_processor_type": name}))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("perceiver", "PerceiverImageProcessor"),  # crops before it resizes
        ("mobilevit", "MobileViTImageProcessor"),  # blue, green, red
        ("imagegpt", "ImageGPTImageProcessor"),  # colour clusters
        ("detr", "DetrImageProcessor"),  # any size
        ("videomae", "VideoMAEImageProcessor"),  # frames
        ("vilt", "ViltImageProcessor"),  # pads
    ],
)
def test_transformers_processors_that_do_something_else_are_refused(folder: str, name: str) -> None:
    with pytest.raises(LoadError):
        from_processor(build(folder, name))
