"""What comes out of an audit: verdicts, comparisons, tables, pictures, regression tests, assertions, logs."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.conftest import EPS

import sparring as sp
import tiny
from sparring.core import events
from sparring.core.errors import InputError, LoadError, UnknownNameError
from sparring.evaluation import Audit, Evidence, Finding, audit
from sparring.evaluation.comparing import compare_runs
from sparring.evaluation.exporting import export_table
from sparring.evaluation.intervals import clopper_pearson, mcnemar
from sparring.evaluation.pictures import save_pictures
from sparring.evaluation.regression import write_regression
from sparring.evaluation.sources import load_victim
from sparring.evaluation.verdict import Standing, judge
from sparring.testing import assert_robust, known_failures

# -- verdicts ----------------------------------------------------------------------------------------------------------


def standing(k: int, n: int, **how: Any) -> Standing:
    base = Standing(k / n, clopper_pearson(k, n), n, "Linf 0.1", complete=True, preset="standard")
    return replace(base, **how)


def failed(number: int, taints: Any) -> Finding:
    return Finding(number, f"check-{number}", "fail", 0.9, "> 0.5", "It is too much.", f"Try {number}.", taints)


@pytest.mark.parametrize(
    ("k", "findings", "result", "step"),
    [
        (150, [], "robust", "thorough"),
        (20, [], "broken", "regress"),
        (100, [], "inconclusive", "Audit about"),
        (150, [failed(5, "robust")], "inconclusive", "Try 5"),
        (20, [failed(5, "robust")], "broken", "regress"),  # a stronger attack would only break more
        (20, [failed(2, "any")], "inconclusive", "Try 2"),
        (150, [failed(9, "nothing")], "robust", "thorough"),
        (150, [failed(5, "robust"), failed(2, "any")], "inconclusive", "Try 2"),
        (100, [failed(5, "robust")], "inconclusive", "Try 5"),
    ],
)
def test_verdicts(k: int, findings: list[Finding], result: str, step: str) -> None:
    verdict = judge(standing(k, 200), 0.5 if k != 100 else 0.52, findings)
    assert verdict.result == result
    assert step in verdict.next_step
    assert verdict.sentence.startswith(result.capitalize())
    assert "95% interval" in verdict.sentence
    assert bool(verdict.reasons) == (result == "inconclusive")


def test_an_unfinished_audit_is_never_conclusive() -> None:
    verdict = judge(standing(0, 200, complete=False), 0.5, [])
    assert verdict.result == "inconclusive"
    assert "resume" in verdict.next_step


# -- checks inside an audit --------------------------------------------------------------------------------------------


def test_checks_run_once_are_kept_and_spoil_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparring.evaluation import findings

    calls: list[tuple[int, int]] = []

    def weak(context: findings.Context) -> Finding:
        calls.append((1, len(context.evidence.units)))
        assert len(context.data.take(torch.tensor([0, 3]))[0]) == 2
        return Finding(
            901, "weak", "fail", 1.0, "> 0", "The attack is weak.", "Try harder.", forwards=7, details={"a": 1}
        )

    def silent(context: findings.Context) -> None:
        calls.append((2, len(context.evidence.units)))

    def bug(context: findings.Context) -> Finding:
        raise ZeroDivisionError("oh")

    table = {
        901: findings.Check(901, "weak", "", "before", weak),
        902: findings.Check(902, "silent", "", "after", silent),
        903: findings.Check(903, "bug", "", "after", bug),
    }
    monkeypatch.setattr(findings, "CHECKS", table)
    monkeypatch.setattr(findings, "_CHECK_MODULES", [])

    def run() -> Audit:
        data, how = tiny.pictures(32, seed=9), {"attacks": ["fgsm"], "shard": 16, "curve": False, "claim": 0.1}
        return audit(tiny.trained(), data, sp.Linf(EPS), run=tmp_path / "run", **how)  # type: ignore[arg-type]

    found = run()
    assert calls == [(1, 2), (2, 4)]
    assert [(f.number, f.result) for f in found.findings] == [(901, "fail"), (902, "skipped"), (903, "fail")]
    assert found.findings[0].details == {"a": 1}
    assert "ZeroDivisionError: oh" in found.findings[2].says
    assert found.verdict.result == "inconclusive"
    assert found.verdict.next_step == "Try harder."
    assert found.cost.checks_forwards == 7
    assert found.cost.checks_share == pytest.approx(7 / (7 + found.cost.forwards + found.cost.backwards))
    assert run().findings == found.findings
    assert len(calls) == 2  # a resumed run repeats none


# -- comparing ---------------------------------------------------------------------------------------------------------


def test_two_audits_are_paired_by_content(finished: Audit, tmp_path: Path) -> None:
    x, y = tiny.pictures(60, seed=9)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))[:50]
    weaker = audit(
        tiny.trained(), (x[order], y[order]), sp.Linf(EPS / 2), attacks=["fgsm"], checks=False, curve=False, shard=13
    )
    found = compare_runs(finished, weaker)
    stands_b = set(order[torch.from_numpy(weaker.standing)].tolist())
    stands_a = {i for i in order.tolist() if finished.standing[i]}
    assert found.shared == 50
    assert (found.only_a, found.only_b) == (len(stands_a - stands_b), len(stands_b - stands_a))
    assert (found.both, found.neither) == (len(stands_a & stands_b), 50 - len(stands_a | stands_b))
    assert {i for i, _ in found.rose} == stands_b - stands_a
    assert all(torch.equal(x[i], x[order[j]]) for i, j in found.rose)
    assert found.p_value == mcnemar(found.only_a, found.only_b) < 0.05
    assert any("threats differ: Linf 0.06 and Linf 0.03" in note for note in found.notes)
    assert any("10 samples of the first" in note for note in found.notes)
    same = compare_runs(finished, finished)
    assert (same.p_value, same.only_a, same.notes) == (1.0, 0, ())
    other = audit(tiny.trained(), tiny.pictures(20, seed=77), sp.Linf(EPS), attacks=["fgsm"], checks=False, curve=False)
    with pytest.raises(InputError, match="share no sample"):
        compare_runs(finished, other)


def test_equal_inputs_are_paired_one_by_one() -> None:
    x, y = tiny.pictures(8, seed=9)
    twice = (torch.cat([x, x]), torch.cat([y, y]))
    found = audit(tiny.trained(), twice, sp.Linf(EPS), attacks=["fgsm"], checks=False, curve=False)
    assert compare_runs(found, found).shared == 16


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_tables_say_what_the_audit_says(suffix: str, finished: Audit, tmp_path: Path) -> None:
    if suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")

    def read(path: Path) -> list[dict[str, Any]]:
        if suffix == ".parquet":
            return parquet.read_table(path).to_pylist()  # type: ignore[no-any-return]
        if suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    rows = read(export_table(finished, tmp_path / f"a{suffix}"))
    assert len(rows) == 60
    assert sum(str(row["standing"]) == "True" for row in rows) == finished.standing.sum()
    fallen = [row["broken_by"] for row in rows if row["broken_by"]]
    for attack in finished.attacks:
        assert fallen.count(attack.label) == attack.broke
    tries = read(export_table(finished, tmp_path / f"b{suffix}", "attempts"))
    assert sum(int(row["forwards"]) for row in tries) == finished.cost.forwards
    assert {row["outcome"] for row in tries} <= {"succeeded", "survived"}


def test_what_cannot_be_exported_is_refused(finished: Audit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.csv"):
        export_table(finished, tmp_path / "a.xls")
    with pytest.raises(InputError, match="does not exist"):
        export_table(finished, tmp_path / "none" / "a.csv")
    with pytest.raises(UnknownNameError, match="attempts"):
        export_table(finished, tmp_path / "a.csv", "units")  # type: ignore[arg-type]


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_are_read_back_and_judged_again(finished: Audit, tmp_path: Path) -> None:
    from sparring.images import read_back

    victim = tiny.trained()
    saved = save_pictures(finished, tmp_path, victim, most=12)
    assert len(saved) == 12
    x, _ = tiny.pictures(60, seed=9)
    for picture in saved:
        pixels = read_back(tmp_path / picture.file, mode="L")
        assert picture.predicted == int(victim.query(pixels[None]).labels)
        assert picture.distance == pytest.approx(float((pixels - x[picture.sample]).abs().max()))
        assert picture.legal
        assert picture.distance <= EPS + 1e-6
        assert picture.fools == (picture.predicted != picture.label)
        assert torch.equal(
            read_back(tmp_path / picture.original, mode="L"), x[picture.sample]
        )  # the originals are 8-bit
    told = json.loads((tmp_path / "pictures.json").read_text())
    assert [p["fools"] for p in told["pictures"]] == [p.fools for p in saved]
    assert all(p.fools is None for p in save_pictures(finished, tmp_path, most=2))


def test_an_audit_on_the_lattice_loses_no_picture(tmp_path: Path) -> None:
    victim, data = tiny.trained(), tiny.pictures(40, seed=9)
    found = audit(victim, data, sp.Linf(16 / 255, lattice=256), attacks=[sp.PGD(steps=20)], checks=False, curve=False)
    saved = save_pictures(found, tmp_path, victim)
    assert len(saved) == len(found.failures()) > 5
    assert all(picture.fools for picture in saved)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    x = torch.tensor([[0.45], [0.55]])
    found = audit(
        tiny.threshold(), (x, torch.tensor([0, 1])), sp.Linf(0.1), attacks=["fgsm"], checks=False, curve=False
    )
    with pytest.raises(InputError, match="pictures of 1 or 3 channels"):
        save_pictures(found, tmp_path)


# -- regression tests and assertions -----------------------------------------------------------------------------------


def test_failures_become_tests_that_fail_until_the_model_is_mended(digits_run: Path, tmp_path: Path) -> None:
    found = Audit.open(digits_run)
    test, data = write_regression(found, tmp_path / "kept", most=5)
    failures = known_failures(data)
    assert [f.radius for f in failures] == [case.radius for case in found.failures()[:5]]
    victim = load_victim("digits")
    assert all(failure.read_by(victim) != failure.label for failure in failures)

    def pytest_says(**more: str) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
        root = Path(__file__).parents[2]
        paths = [str(root / "src"), str(tmp_path)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False).stdout

    assert "5 failed" in pytest_says()
    (tmp_path / "mended.py").write_text(
        "import torch, sparring as sp\n"
        "from sparring.testing import known_failures\n"
        f"kept = known_failures({str(data)!r})\n"
        "def answer(x):\n"
        "    return torch.tensor([next(f.label for f in kept if torch.equal(f.adversarial, row)) for row in x])\n"
        "def victim():\n"
        "    return sp.BlackBox(answer, bounds=(0, 1), classes=10)\n"
    )
    write_regression(found, tmp_path / "kept", victim="python:mended:victim", most=5)
    assert "5 passed" in pytest_says()


def test_a_regression_test_needs_failures_and_a_name(finished: Audit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="python:package"):
        write_regression(finished, tmp_path)
    clean = audit("digits", "digits", sp.Linf(0.0), attacks=["fgsm"], samples=10, checks=False, curve=False)
    with pytest.raises(InputError, match="nothing failed"):
        write_regression(clean, tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(LoadError, match="no failures"):
        known_failures(tmp_path / "x.safetensors")


def test_assert_robust_gates_by_the_lower_end() -> None:
    data, how = tiny.pictures(60, seed=9), {"attacks": ["fgsm"], "checks": False, "curve": False}
    found = assert_robust(tiny.trained(), data, sp.Linf(0.01), at_least=0.8, **how)  # type: ignore[arg-type]
    assert found.interval.lo >= 0.8
    edge = (found.interval.lo + found.robust_accuracy) / 2  # below the estimate, above what 60 samples can promise
    with pytest.raises(AssertionError, match="samples cannot tell"):
        assert_robust(tiny.trained(), data, sp.Linf(0.01), at_least=edge, **how)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=r"(?s)^Broken: .*fgsm +met.*The smallest change"):
        assert_robust(tiny.trained(), data, sp.Linf(0.3), at_least=0.9, **how)  # type: ignore[arg-type]


# -- logs --------------------------------------------------------------------------------------------------------------


def test_tensorboard_gets_a_point_per_unit(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from sparring.evaluation.loggers import TensorBoardLogger

    with events.listening(TensorBoardLogger(tmp_path)):
        found = audit(
            tiny.trained(),
            tiny.pictures(32, seed=9),
            sp.Linf(EPS),
            attacks=["fgsm"],
            shard=16,
            checks=False,
            curve=False,
        )
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    points = log.Scalars("audit/robust_accuracy")
    assert [p.step for p in points] == [1, 2, 3, 4]
    assert points[-1].value == pytest.approx(found.robust_accuracy)


def test_mlflow_gets_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    from sparring.evaluation.loggers import MLflowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    with events.listening(MLflowLogger("robustness")):
        found = audit(
            tiny.trained(),
            tiny.pictures(32, seed=9),
            sp.Linf(EPS),
            attacks=["fgsm"],
            shard=16,
            checks=False,
            curve=False,
        )
    (run,) = mlflow.search_runs(experiment_names=["robustness"], output_format="list")
    assert run.data.metrics["robust_accuracy"] == pytest.approx(found.robust_accuracy)
    assert run.info.status == "FINISHED"


def test_evidence_opens_without_the_victim(finished: Audit) -> None:
    again = Evidence.open(finished.evidence.folder)
    assert Audit(again).robust_accuracy == finished.robust_accuracy
    assert again.header["victim"]["name"] == "tiny"
    assert again.header["data"]["shape"] == [1, 6, 6]
