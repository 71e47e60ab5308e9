"""Image classifiers of transformers: a tiny one saved to a folder, and what is said when the hub cannot help."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sparring as sp
from sparring.core.errors import LoadError, MissingDependencyError, UnknownNameError, UnsafeFileError
from sparring.see import Viewer

transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra 'hub')")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tiny-resnet"
    names = {0: "cat", 1: "dog", 2: "gnu"}
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label=names,
        label2id={v: k for k, v in names.items()},
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        transformers.ResNetForImageClassification(config).save_pretrained(folder)
    processor = transformers.ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=0.875, image_mean=MEAN, image_std=STD
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "waves.png"
    down, across = np.mgrid[:60, :90] / 5.0
    waves = np.stack([np.sin(down), np.cos(across), np.sin(down + across)], axis=-1)
    Image.fromarray(np.rint(waves * 100 + 128).astype(np.uint8)).save(path)
    return path


def test_a_folder_gives_labels_normalisation_and_pictures(saved: Path) -> None:
    victim: Any = sp.load(f"hf:{saved}")
    assert victim.labels == ("cat", "dog", "gnu")
    assert victim.name == "tiny-resnet"
    assert victim.mean.tolist() == pytest.approx(MEAN, abs=2e-6)
    assert victim.std.tolist() == pytest.approx(STD, abs=2e-6)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = victim.net((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]).logits
    assert torch.allclose(victim.query(x).scores, expected, atol=1e-4)


def test_the_folder_alone_names_the_model(saved: Path) -> None:
    assert sp.load(str(saved)).labels == ("cat", "dog", "gnu")


def test_a_picture_is_seen_as_transformers_sees_it(saved: Path, photo: Path) -> None:
    seen = sp.classify(photo, f"hf:{saved}")
    processor = transformers.AutoImageProcessor.from_pretrained(saved)
    net = transformers.AutoModelForImageClassification.from_pretrained(saved)
    with torch.no_grad():
        theirs = net(**processor(images=Image.open(photo), return_tensors="pt")).logits.softmax(1)[0]
    assert seen.index == int(theirs.argmax())
    assert seen.confidence == pytest.approx(float(theirs.max()), abs=5e-3)


def test_it_is_attacked_and_the_file_still_fools_it(saved: Path, photo: Path, tmp_path: Path) -> None:
    shown = sp.attack(photo, "pgd", model=f"hf:{saved}", eps=64 / 255)
    assert shown.adversarial.shape == (3, 32, 32)
    kept = shown.save(tmp_path / "adv.png")
    assert shown.succeeded
    assert kept.still_fools
    assert sp.classify(tmp_path / "adv.png", f"hf:{saved}").label == shown.after.label != shown.before.label


def test_loading_prints_nothing_and_puts_the_settings_back(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    sp.load(f"hf:{saved}")
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err == ""
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_half_precision_weights_are_run_in_float32(folder: Path) -> None:
    net = transformers.ResNetForImageClassification.from_pretrained(folder).half()
    net.save_pretrained(folder)
    scores = sp.load(f"hf:{folder}").query(torch.rand(1, 3, 32, 32)).scores
    assert scores is not None
    assert scores.dtype == torch.float32


def test_placeholder_labels_are_no_names(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(3)}
    config["label2id"] = {f"LABEL_{i}": i for i in range(3)}
    (folder / "config.json").write_text(json.dumps(config))
    assert sp.load(f"hf:{folder}").labels is None


def test_grey_processors(folder: Path) -> None:
    config = json.loads((folder / "preprocessor_config.json").read_text())
    config |= {"do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    victim: Any = sp.load(f"hf:{folder}")
    assert victim.mean.tolist() == [0.0, 0.0, 0.0]
    assert victim.std.tolist() == [1.0, 1.0, 1.0]


def test_a_head_that_was_never_trained_is_refused(folder: Path) -> None:
    transformers.ResNetForImageClassification.from_pretrained(folder).resnet.save_pretrained(folder)
    with pytest.raises(LoadError, match=r"no weights for classifier.*would answer at random"):
        sp.load(f"hf:{folder}")


def test_pickled_weights_are_refused(folder: Path) -> None:
    net = transformers.ResNetForImageClassification.from_pretrained(folder)
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"safetensors"):
        sp.load(f"hf:{folder}")


def test_code_of_a_repository_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Net"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeFileError, match="comes with code of its own"):
        sp.load(f"hf:{folder}")
    assert not mark.exists()


def test_a_model_that_does_not_classify_pictures(tmp_path: Path) -> None:
    transformers.BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(
        tmp_path
    )
    with pytest.raises(LoadError, match="is no image classifier of transformers"):
        sp.load(f"hf:{tmp_path}")


def test_a_missing_image_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(LoadError, match=r"no image processor that works here.*preprocessor_config.json"):
        sp.load(f"hf:{folder}")


def test_a_processor_whose_geometry_is_not_understood_is_said_when_pictures_come(folder: Path) -> None:
    config = json.loads((folder / "preprocessor_config.json").read_text())
    config["do_resize"] = False
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    victim = sp.load(f"hf:{folder}")  # tensors go in as they are
    with pytest.raises(LoadError, match="neither resizes nor crops"):
        Viewer(victim)


def test_a_damaged_weights_file(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(LoadError, match=r"cannot be loaded.*Check the folder's files"):
        sp.load(f"hf:{folder}")


def test_folders_and_names_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"holds no config.json"):
        sp.load(f"hf:{tmp_path}")
    with pytest.raises(LoadError, match="neither a folder nor an ID"):
        sp.load("hf:./no/such/folder")
    with pytest.raises(UnknownNameError):
        sp.load(str(tmp_path / "none"))


# -- the hub -----------------------------------------------------------------------------------------------------------


def test_offline_a_model_that_is_not_here_is_said_at_once() -> None:
    started = time.perf_counter()
    with pytest.raises(LoadError, match="not on this machine and HF_HUB_OFFLINE is set"):
        sp.load("hf:sparring-tests/no-such-model")
    assert time.perf_counter() - started < 5


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if no one had said HF_HUB_OFFLINE; what the hub answers is up to the test."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return monkeypatch


def answers(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def model_info(self: Any, name: str, timeout: float) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)


def test_without_a_connection(online: pytest.MonkeyPatch) -> None:
    answers(online, ConnectionError("Name or service not known"))
    with pytest.raises(LoadError, match=r"hub cannot be reached \(ConnectionError: Name or service.*give a folder"):
        sp.load("hf:microsoft/resnet-18")


@pytest.mark.parametrize(
    ("code", "told"), [(404, "check the spelling"), (401, "log in"), (403, "access"), (500, "later")]
)
def test_what_the_hub_answers(online: pytest.MonkeyPatch, code: int, told: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.response = SimpleNamespace(status_code=code)  # type: ignore[assignment]
    answers(online, error)
    with pytest.raises(LoadError, match=f"hub answers {code} .*{told}"):
        sp.load("hf:microsoft/resnet-81")


def test_a_cached_model_needs_no_connection(saved: Path, online: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    answers(online, AssertionError("the hub was asked"))
    online.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: str(saved / file))
    asked: list[bool] = []
    real = transformers.AutoModelForImageClassification.from_pretrained

    def from_pretrained(source: str, **keywords: Any) -> Any:
        asked.append(keywords["local_files_only"])
        return real(saved, **keywords)

    real_processor = transformers.AutoImageProcessor.from_pretrained
    online.setattr(transformers.AutoModelForImageClassification, "from_pretrained", from_pretrained)
    online.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda source, **k: real_processor(saved, **k))
    assert sp.load("hf:someone/tiny").labels == ("cat", "dog", "gnu")
    assert asked == [True]


def test_a_missing_and_a_broken_transformers(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sparring\[hub\]'"):
        sp.load(f"hf:{saved}")

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "transformers", Broken())  # type: ignore[arg-type]
    with pytest.raises(MissingDependencyError, match="torchvision built for another torch is the usual cause"):
        sp.load(f"hf:{saved}")
