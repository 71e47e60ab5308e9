"""The command line from end to end, in process: what it prints, its exit codes, and its JSON."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sparring
from sparring.cli import main
from sparring.core.registry import attack_cards
from sparring.data import sample_picture
from sparring.victims import loading


@pytest.fixture
def digit(tmp_path: Path) -> str:
    path = tmp_path / "digit.png"
    sample_picture(0).save(path)
    return str(path)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def said(told: tuple[int, str, str]) -> dict[str, Any]:
    """The one JSON object on stdout."""
    found = json.loads(told[1])
    assert isinstance(found, dict)
    return found


def test_help_and_version(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for command in ("classify", "attack", "attacks", "show", "demo"):
        assert f"\n  {command} " in out
    assert "Exit codes: 0 done; 1 the attack did not succeed; 2 bad usage" in out
    assert run("--version") == (0, f"sparring {sparring.__version__}\n", "")
    for command in ("classify", "attack", "attacks", "show", "demo"):
        code, out, err = run(command, "-h")
        assert (code, err) == (0, "")
        assert "--json" in out


def test_classify(run: Run, digit: str, tmp_path: Path) -> None:
    code, out, err = run("classify", digit, "--model", "digits", "--top", 3, "--figure", tmp_path / "f.png")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["0", ">99.9%"]
    assert len(out.splitlines()) == 3
    assert (tmp_path / "f.png").stat().st_size > 1000
    told = said(run("classify", digit, "-m", "digits", "--json"))
    assert told["label"] == "0"
    assert told["model"] == "digits"
    assert len(told["top"]) == 5


def test_attack_writes_a_file_that_the_next_command_misreads(run: Run, digit: str, tmp_path: Path) -> None:
    out_path, figure = tmp_path / "adv.png", tmp_path / "fig.svg"
    code, out, err = run(
        "attack", digit, "--with", "pgd", "--model", "digits", "--target", "8", "--eps", "76/255", "--norm", "linf",
        "--steps", "30", "--param", "restarts=2", "--seed", "3", "--out", out_path, "--figure", figure,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "digits took '0' for '8'" in out
    assert "after pgd (linf, 0.298)" in out
    assert f"{out_path} read back: 8" in out
    assert "still fools the model" in out
    assert figure.stat().st_size > 1000
    assert said(run("classify", out_path, "-m", "digits", "--json"))["label"] == "8"


def test_attack_as_json(run: Run, digit: str, tmp_path: Path) -> None:
    code, out, err = run("attack", digit, "-m", "digits", "-p", "steps=25", "-o", tmp_path / "a.png", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert told["succeeded"] is True
    assert told["saved"]["still_fools"] is True
    assert told["params"]["steps"] == 25
    assert told["before"]["label"] == "0" != told["after"]["label"]
    assert told["distances"]["linf"] <= 0.3


def test_an_attack_that_does_not_succeed_is_exit_code_1(run: Run, digit: str, tmp_path: Path) -> None:
    code, out, err = run("attack", digit, "-m", "digits", "--eps", "1/255", "--out", tmp_path / "a.png")
    assert (code, err) == (1, "")
    assert "withstood pgd" in out
    assert "does not fool the model" in out
    code, out, _ = run("attack", digit, "-m", "digits", "--eps", "1/255", "--json")
    assert code == 1
    assert json.loads(out)["outcome"] == "survived"


@pytest.mark.parametrize(
    ("words", "code", "kind", "told"),
    [
        (["classify", "none.png", "-m", "digits"], 4, "PictureError", "no file 'none.png'"),
        (["classify", "ftp://x/y.png", "-m", "digits"], 4, "FetchError", "only http"),
        (["classify", "{digit}", "-m", "digit"], 2, "UnknownNameError", "close matches: digits"),
        (["classify", "{digit}", "-m", "w.safetensors"], 4, "LoadError", "there is no file"),
        (["classify", "{digit}", "-m", "x.pkl"], 4, "UnsafeFileError", "is a pickle"),
        (["classify", "{digit}", "--mean", "0.5"], 2, "InputError", "--mean came without --model"),
        (["classify", "{digit}", "--grey"], 2, "InputError", "--grey came without --model"),
        (["classify", "{digit}", "-m", "digits", "--size", "big"], 2, "InputError", "--size is 'big'"),
        (["attack", "{digit}", "-m", "digits", "--target", "eight"], 2, "UnknownNameError", "label is called 'eight'"),
        (["attack", "{digit}", "-m", "digits", "--with", "pdg"], 2, "UnknownNameError", "close matches: pdpgd, pgd"),
        (["attack", "{digit}", "-m", "digits", "--eps", "tiny"], 2, "InputError", "--eps is 'tiny'"),
        (["attack", "{digit}", "-m", "digits", "-p", "x"], 2, "InputError", "not of the form name=value"),
        (["attack", "{digit}", "-m", "digits", "-p", "stepz=3"], 2, "UnknownNameError", "close matches: step"),
        (["attack", "{digit}", "-m", "digits", "--steps", "3", "-p", "steps=3"], 2, "InputError", "steps came twice"),
        (["attack", "{digit}", "-m", "digits", "--norm", "l0"], 2, "ThreatError", "searches linf"),
        (["attack", "{digit}", "-m", "digits", "--out", "none/x.png"], 2, "InputError", "its folder does not exist"),
        (["attack", "{digit}", "-m", "digits", "--out", "x.jpg"], 2, "InputError", "use .png"),
        (["show", "pdg"], 2, "UnknownNameError", "close matches: pdpgd, pgd"),
        (["attacks", "--access", "all"], 2, "ThreatError", "must be one of"),
        (["attacks", "--norm", "l7"], 2, "UnknownNameError", "space is called 'l7'"),
        (["demo", "--digit", "900"], 2, None, "--digit"),
        (["clasify"], 2, None, "classify"),
        (["attack"], 2, None, "IMAGE"),
        (["attack", "{digit}", "--epz", "3"], 2, None, "--epz"),
    ],
)
def test_errors_are_one_line_or_one_object(
    run: Run, digit: str, words: list[str], code: int, kind: str | None, told: str
) -> None:
    words = [word.format(digit=digit) for word in words]
    found, out, err = run(*words)
    assert found == code
    assert out == ""
    assert err.startswith("sparring: ")
    assert err.count("\n") == 1
    assert told in err
    found, out, err = run(*words, "--json")
    assert (found, err) == (code, "")
    reported = json.loads(out)
    assert told in reported["error"]
    assert kind is None or reported["kind"] == kind


def test_a_missing_package_is_exit_code_3(run: Run, digit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    code, _, err = run("classify", digit, "-m", "torchvision:resnet18")
    assert code == 3
    assert "pip install" in err


def test_without_a_model_there_is_no_guess(run: Run, digit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise sparring.SparringError("not here")

    monkeypatch.setattr(loading, "open_torchvision", missing)
    monkeypatch.setattr(loading, "open_hub", missing)
    for command in ("classify", "attack"):
        code, _, err = run(command, digit)
        assert code == 4
        assert "Name a model: digits" in err


def test_a_bug_is_one_line_and_debug_shows_where(run: Run, digit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr("sparring.see.viewer.load", broken)
    code, out, err = run("classify", digit, "-m", "digits")
    assert (code, out) == (70, "")
    assert err == "sparring: this is a bug in sparring: ZeroDivisionError: by accident. Report what --debug shows\n"
    for words in (("--debug", "classify", digit, "-m", "digits"), ("classify", digit, "-m", "digits", "--debug")):
        code, _, err = run(*words)
        assert code == 70
        assert "Traceback" in err
        assert "in broken" in err


def test_an_interrupt_is_exit_code_130(run: Run, digit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparring.see.viewer.load", interrupted)
    assert run("classify", digit, "-m", "digits") == (130, "", "sparring: interrupted\n")


def test_warnings_are_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*_: Any, **__: Any) -> Any:
        import warnings

        warnings.warn("look out", UserWarning, stacklevel=1)
        raise sparring.SparringError("stop")

    monkeypatch.setattr("sparring.see.viewer.load", odd)
    monkeypatch.setattr("warnings.filters", [])
    _, _, err = run("classify", tmp_path / "x.png", "-m", "digits")
    assert err == "sparring: warning: look out\nsparring: stop\n"


def test_the_table_of_attacks_is_the_cards(run: Run) -> None:
    code, out, err = run("attacks")
    cards = attack_cards()
    assert (code, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.split() == ["name", "needs", "change", "spaces", "goals", "what", "it", "is"]
    assert [row.split()[0] for row in rows] == [card.name for card in cards]
    told = said(run("attacks", "--json"))["attacks"]
    assert [card["name"] for card in told] == [card.name for card in cards]
    assert all(card["paper"] for card in told)


def test_the_table_leaves_out_what_does_not_fit(run: Run) -> None:
    def names(*words: str) -> list[str]:
        return [card["name"] for card in said(run("attacks", *words, "--json"))["attacks"]]

    assert "pgd" in names("--norm", "linf")
    assert "deepfool" not in names("--goal", "targeted")
    assert "deepfool" in names("--minimal")
    assert "pgd" not in names("--minimal")
    labels = names("--access", "labels")
    assert "uniform-noise" in labels
    assert "pgd" not in labels
    assert names("--access", "nothing", "--minimal", "--norm", "l0") == []
    code, out, _ = run("attacks", "--access", "nothing", "--minimal", "--norm", "l0")
    assert code == 0
    assert "fits all of these options" in out


def test_one_card(run: Run) -> None:
    code, out, err = run("show", "PGD")
    assert (code, err) == (0, "")
    assert out.startswith("pgd: Projected gradient descent\n")
    for part in (
        "Madry et al. 2018",
        "arXiv:1706.06083",
        "Cross-entropy saturates",
        "steps = 40: gradient steps per restart",
    ):
        assert part in out
    told = said(run("show", "i-fgsm", "--json"))
    assert told["name"] == "pgd"
    steps = next(p for p in told["parameters"] if p["name"] == "steps")
    assert steps == {"name": "steps", "type": "int", "default": 40, "about": "gradient steps per restart."}


def test_every_card_can_be_shown_with_its_parameters_explained(run: Run) -> None:
    for card in attack_cards():
        assert run("show", card.name)[0] == 0
        told = said(run("show", card.name, "--json"))
        assert told["summary"]
        unexplained = [p["name"] for p in told["parameters"] if not p["about"]]
        assert unexplained == [], f"{card.name} does not explain {unexplained}"


def test_the_demo_does_the_main_job(run: Run, tmp_path: Path) -> None:
    code, out, err = run("demo", "--out", tmp_path / "demo")
    assert (code, err) == (0, "")
    for name in ("original.png", "untargeted.png", "adversarial.png", "figure.png"):
        with Image.open(tmp_path / "demo" / name) as image:
            assert image.size[0] >= 8
    assert "took '9' for '5'" in out
    assert "adversarial.png is 5" in out
    assert run(*out.splitlines()[-1].split()[1:])[0] == 0  # the line to try by hand
    told = said(run("demo", "--out", tmp_path / "demo", "--json"))
    assert told["targeted"]["saved"]["still_fools"] is True
    assert told["read_again"]["label"] == "5"
    assert told["digits"] == 100
    robust = list(told["robust_accuracy"].values())
    assert 1 >= told["clean_accuracy"] > 0.9 > robust[1] > robust[2]
    assert sorted(robust, reverse=True) == robust


def test_a_demo_that_cannot_write(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("demo", "--out", tmp_path / "file")
    assert code == 4
    assert "cannot be written" in err


def test_a_builder_beside_the_weights_is_found(
    run: Run, digit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    name = f"beside_{tmp_path.name}".replace("-", "_")
    Path(f"{name}.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n"
    )
    save_file({"1.weight": torch.eye(2, 64), "1.bias": torch.tensor([5.0, 0.0])}, "w.safetensors")
    Path("names.txt").write_text("left\nright\n")
    words = ["-m", f"w.safetensors@{name}:net", "--mean", "0.5", "--std", "1/2", "--size", "8", "--grey"]
    code, out, err = run("classify", digit, *words, "--labels", "names.txt", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["label"] == "left"


def test_a_closed_pipe_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def closed(*_: Any, **__: Any) -> None:
        raise BrokenPipeError

    stream = (tmp_path / "out").open("w")
    monkeypatch.setattr("sparring.cli.catalogue.print_table", closed)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["attacks"]) == 0
    stream.close()


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError

    encoding = "utf-8"


def test_colours_and_progress_on_a_terminal_alone(digit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["attack", digit, "-m", "digits"]) == 0
    assert "\x1b[" in out.text
    assert "digits took '0'" in out.text
    assert "\x1b[" in err.text
    assert main(["attacks", "--norm", "l0"]) == 0
    assert "─" in out.text


def test_progress_is_the_runs_events(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparring.cli.progress import progress
    from sparring.core import events

    with progress():
        assert not events.heard()  # nobody looks at a captured stderr
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(False):
        assert not events.heard()
    with progress():
        assert events.heard()
        events.emit(events.AttackProgress("attack", "pgd", 0, 1, 4, 40, 1))
    assert isinstance(sys.modules["sparring.cli.progress"], types.ModuleType)
