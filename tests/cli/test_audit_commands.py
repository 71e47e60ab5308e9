"""`sparring audit` and its kin from the shell: what they print, where it goes, and the exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparring.cli import shell
from sparring.evaluation import Audit, Evidence

# A shell that starts its tests in the background hands down an ignored Ctrl-C.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from tests.cli.test_audit_commands import main; sys.exit(main(sys.argv[1:]))"
)
ROOT = Path(__file__).parents[2]
ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), str(ROOT / "tests")]),
    "COLUMNS": "120",
}


def main(words: list[str]) -> int:
    """The command line with these commands alone."""
    from sparring.cli import audit, evidence

    def build() -> Any:
        app = shell.start()
        audit.register(app)
        evidence.register(app)
        return app

    return shell.run(build, words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli") / "run"


FAST = ["--model", "digits", "--data", "digits", "--eps", "1/10", "--attack", "fgsm", "--samples", "40", "--no-checks"]


@pytest.fixture(scope="module")
def done(folder: Path) -> Path:
    assert main(["audit", *FAST, "--run", str(folder), "--json"]) == 0
    return folder


def test_piped_it_prints_one_line_per_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *FAST, "--run", str(tmp_path / "r")]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = Audit.open(tmp_path / "r")
    units = [line for line in lines if re.match(r"\[\d+/\d+\] ", line)]
    assert len(units) == len(found.evidence.units)
    pattern = r"\[2/\d+\] fgsm shard 0: met \d+, broke \d+, robust [\d.]+% \[[\d.]+%, [\d.]+%\] of 40, .* passes/s"
    assert re.fullmatch(pattern, units[1])
    assert found.verdict.sentence in lines
    assert f"Evidence: {tmp_path / 'r'}" in lines


def test_json_is_one_object(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *FAST, "--run", str(done), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = Audit.open(done)
    assert told["robust_accuracy"] == found.robust_accuracy
    assert told["interval"]["lo"] == found.interval.lo
    assert [row["label"] for row in told["attacks"]][:2] == ["clean", "fgsm"]
    assert told["verdict"]["sentence"] == found.verdict.sentence


@pytest.mark.parametrize(("shift", "code"), [(-0.01, 0), (0.01, 1)])
def test_fail_under_goes_by_the_lower_end(shift: float, code: int, done: Path) -> None:
    lo = Audit.open(done).interval.lo
    assert main(["resume", str(done), "--fail-under", f"{lo + shift:.6f}", "--json"]) == code


def test_a_check_that_spoils_the_number_has_a_code_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparring.evaluation import findings

    def weak(context: findings.Context) -> findings.Finding:
        return findings.Finding(901, "weak", "fail", 1.0, "> 0", "The attack is weak.", "Try harder.")

    monkeypatch.setattr(findings, "CHECKS", {901: findings.Check(901, "weak", "", "after", weak)})
    monkeypatch.setattr(findings, "_CHECK_MODULES", [])
    words = ["audit", *FAST[:-1], "--run", str(tmp_path / "r"), "--json"]
    assert main(words) == 0
    assert main([*words, "--fail-under", "0.1"]) == 5
    assert main([*words, "--fail-under", "0.99"]) == 1


def test_a_plan_file_says_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[audit]\nvictim = "digits"\ndata = {name = "digits", samples = 20}\nchecks = false\nshard = 10\nclaim = 0.1\n'
        '[threat]\nnorm = "l2"\neps = "1/2"\n[[attack]]\nname = "pgd"\nparams = {steps = 3}\n'
    )
    assert main(["audit", str(plan), "--run", str(tmp_path / "r"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"]["claim"] == 0.1
    assert [row["label"] for row in told["attacks"]] == ["clean", "pgd"]
    assert main(["audit", str(plan), "--eps", "0.1"]) == 2
    assert "write them into the plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["audit", "--model", "digits", "--data", "digits"], 2, "--eps is needed"),
        (["audit", "--norm", "l7"], 2, "l2"),
        (["audit", "--fail-under", "45"], 2, "between 0 and 1"),
        (["audit", "--model", "nosuch", "--data", "digits", "--eps", "1"], 2, "nosuch"),
        (["audit", "none.toml"], 4, "none.toml"),
        (["resume", "nowhere"], 2, "no run folder"),
        (["compare", "nowhere", "here"], 2, "no run folder"),
        (["export", "nowhere", "a.csv"], 2, "no run folder"),
    ],
)
def test_errors_are_one_line(
    words: list[str],
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()


def test_compare_export_and_regress(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *FAST[:5], "1/20", *FAST[6:], "--run", str(tmp_path / "b"), "--json"]) == 0
    capsys.readouterr()
    assert main(["compare", str(done), str(tmp_path / "b"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["shared"] == 40
    assert told["only_b"] > 0 == told["only_a"]
    assert main(["compare", str(done), str(tmp_path / "b")]) == 0
    assert told["sentence"] in capsys.readouterr().out
    assert main(["export", str(done), str(tmp_path / "t.csv")]) == 0
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 41
    capsys.readouterr()
    assert main(["export", str(done), str(tmp_path / "pngs"), "--most", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pictures"] == 3
    assert 0 <= told["still_adversarial"] <= 3
    assert len(list((tmp_path / "pngs").glob("*.png"))) == 6
    assert main(["regress", str(done), "--out", str(tmp_path / "kept")]) == 0
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
        "known_failures.safetensors",
        "test_known_failures.py",
    ]


LONG = [
    *("audit", "--model", "digits", "--data", "digits", "--eps", "1/10", "--no-checks", "--batch-size", "8"),
    *("--attack", "fgsm", "--attack", "pgd", "--samples", "120"),
]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "r"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", COMMAND, *LONG, "--run", str(run)], env=ENV, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "fgsm shard 0" in line:
                child.send_signal(signal.SIGINT)
                break
        rest = child.stdout.read()
    assert child.returncode == 130
    assert f"sparring resume {run}" in rest
    assert "Traceback" not in rest
    left = Evidence.open(run)
    assert left.sessions[-1]["how"] == "interrupted"
    assert not left.complete
    assert main(["resume", str(run), "--json"]) == 0
    assert Evidence.open(run).complete


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal")
def test_on_a_terminal_a_live_table_is_drawn(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *LONG, "--run", str(tmp_path / "r")],
        env={**ENV, "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        close_fds=True,
    )
    os.close(theirs)
    drawn, until = b"", time.monotonic() + 120
    while time.monotonic() < until:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:
                break
            if not part:
                break
            drawn += part
        elif child.poll() is not None:
            break
    os.close(ours)
    assert child.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode(errors="replace"))
    assert "robust accuracy so far" in text
    assert re.search(r"pgd, shard 1 of 1", text)
    assert re.search(r"\d of \d units", text)
    assert "shard 0: met" not in text  # the lines are for pipes
    assert "stay right under the attacks" in text


# -- a model that needs more than a name -------------------------------------------------------------------------------


def _weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network in a file and its builder in a module, and class names beside them."""
    import torch
    from safetensors.torch import save_file

    (tmp_path / "mynet.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    net = {"1.weight": torch.randn(10, 64, generator=generator), "1.bias": torch.zeros(10)}
    save_file(net, tmp_path / "mynet.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(f"digit {i}" for i in range(10)))
    return f"{tmp_path / 'mynet.safetensors'}@mynet:build"


def test_the_models_flags_are_kept_for_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _weights(tmp_path, monkeypatch)
    words = [
        "audit",
        "--model",
        model,
        "--data",
        "digits",
        "--eps",
        "0.1",
        "--attack",
        "fgsm",
        "-n",
        "8",
        "--no-checks",
    ]
    flags = ["--grey", "--size", "8", "--mean", "0.5", "--std", "0.25", "--labels", str(tmp_path / "names.txt")]
    assert main([*words, *flags, "--run", str(tmp_path / "run"), "--json"]) == 0
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    assert header["victim"]["labels"][3] == "digit 3"
    assert header["plan"]["audit"]["victim"]["mean"] == [0.5]
    first = json.loads(capsys.readouterr().out)
    assert main(["resume", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["robust_accuracy"] == first["robust_accuracy"]
    assert (
        main([*words, "--run", str(tmp_path / "run"), "--json"]) != 0
    )  # without its normalisation it is another model
    assert "begun with another plan" in capsys.readouterr().out


def test_the_models_flags_want_a_model_and_no_plan(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "--size", "8", "--json"]) != 0
    assert "--model" in json.loads(capsys.readouterr().out)["error"]
    plan = tmp_path / "plan.toml"
    plan.write_text('victim = "digits"\ndata = "digits"\n[threat]\nnorm = "linf"\neps = 0.1\n')
    assert main(["audit", str(plan), "--model", "digits", "--size", "8", "--json"]) != 0
    assert "--size came with a plan" in json.loads(capsys.readouterr().out)["error"]
