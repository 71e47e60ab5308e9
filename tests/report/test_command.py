"""`sparring report` from the shell: which files it writes, what it prints, and its exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sparring.cli import main
from sparring.evaluation import Audit


@pytest.fixture
def run(named: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, for commands that write into its folder."""
    return Path(shutil.copytree(named, tmp_path / "run"))


def test_without_options_the_files_appear_in_the_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in run.iterdir()}
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == Audit.open(run).verdict.sentence
    assert out[1:] == [str(run / f"report{suffix}") for suffix in (".html", ".md", ".json")]
    assert {path.name for path in run.iterdir()} - before == {"report.html", "report.md", "report.json"}


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["--out", "page.html"], ["page.html"]),
        (["--out", "results", "--format", "junit"], ["results"]),
        (["--out", "all.html", "-f", "html", "-f", "junit", "-f", "svg"], ["all.html", "all.svg", "all.xml"]),
    ],
)
def test_out_and_format_choose_the_files(
    words: list[str], files: list[str], named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(named), *words]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_json_is_the_report_and_says_where_the_files_are(
    named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(named), "--out", str(page), "--pictures", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == {"html": str(page)}
    assert told["robust_accuracy"] == Audit.open(named).robust_accuracy
    assert "data:image" not in page.read_text(encoding="utf-8")


def test_fail_under_goes_by_the_intervals_lower_end(named: Path, tmp_path: Path) -> None:
    lo = Audit.open(named).interval.lo
    out = tmp_path / "gate.xml"
    for line, code in ((lo - 0.01, 0), (lo + 0.01, 1)):
        assert main(["report", str(named), "--out", str(out), "--fail-under", f"{line:.4f}"]) == code
        failures = ElementTree.parse(out).getroot()[0].attrib["failures"]
        assert failures == str(code)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--format", "pdf"], "no form of a report is called 'pdf'"),
        (["--out", "report.docx"], "the suffix must be one of .html"),
        (["--fail-under", "45"], "between 0 and 1"),
        (["--fail-under", "high"], "--fail-under is 'high'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(named), *words]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("sparring: ")
    assert says in told.err
    assert told.err.count("\n") == 1


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
