"""The pages on audits and CI: their project is run as it stands there, and their commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sparring.evaluation import Audit, Plan
from sparring.evaluation.findings import checks

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = DOCS.parent / "src"


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)


def command(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one line of the pages as CI would."""
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(SOURCE),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(["bash", "-euc", line], cwd=folder, env=env, capture_output=True, text=True)


def write_project(folder: Path) -> None:
    """Every block that begins with a comment that names a file becomes that file."""
    for text in [*blocks("ci.md", "python"), *blocks("ci.md", "yaml")]:
        name, _, rest = text.partition("\n")
        assert name.startswith("# ")
        path = folder / name.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rest, encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return folder


@pytest.fixture(scope="module")
def steps(project: Path) -> list[str]:
    """What the workflow runs, the installation apart."""
    yaml = pytest.importorskip("yaml", reason="the workflow is read with PyYAML")
    text = (project / ".github/workflows/robustness.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    found = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert "pip install" in found[0]
    always = [step.get("if") for job in workflow["jobs"].values() for step in job["steps"]]
    assert always.count("always()") == 2
    return found[1:]


@pytest.mark.slow
def test_the_projects_gate_opens_and_its_workflow_reports(project: Path, steps: list[str]) -> None:
    for step in steps:
        done = command(step, project)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "summary.md").read_text(encoding="utf-8").startswith("# Robust: digits-mlp")
    assert (project / "robustness.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    suite = ElementTree.parse(project / "robustness.xml").getroot()[0]
    assert suite.attrib["failures"] == "0"
    assert Audit.open(project / "runs/ci").complete


@pytest.mark.slow
def test_the_gate_closes_on_a_model_that_is_not_as_good_as_asked(project: Path, steps: list[str]) -> None:
    test = project / "test_robustness.py"
    whole = test.read_text(encoding="utf-8")
    test.write_text(whole.replace("at_least=0.6", "at_least=0.97"), encoding="utf-8")
    try:
        gate, report = (command(step, project) for step in steps)
    finally:
        test.write_text(whole, encoding="utf-8")
    assert gate.returncode == 1
    assert "against a claim of at least 97%" in gate.stdout
    assert "The smallest change that broke one is" in gate.stdout
    assert report.returncode == 0, report.stderr
    suite = ElementTree.parse(project / "robustness.xml").getroot()[0]
    assert suite.findall("testcase")[0].find("failure") is not None


@pytest.mark.slow
def test_a_plan_from_the_page_can_be_audited(tmp_path: Path) -> None:
    (text,) = blocks("audit.md", "toml")
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    plan = Plan.from_toml(tmp_path / "plan.toml")
    assert [spec.attack for spec in plan.attacks] == ["apgd", "square"]
    assert plan.threat.eps == pytest.approx(8 / 255)


@pytest.mark.parametrize("page", ["audit.md", "ci.md"])
def test_every_option_of_the_pages_exists(page: str) -> None:
    from typer.main import get_command

    from sparring.cli import audit, defend, evidence, report
    from sparring.cli.shell import start

    app = start()
    for family in (audit, defend, evidence, report):
        family.register(app)
    known = {
        name: {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, found in get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    lines = [line for text in [*blocks(page, "console"), *blocks(page, "yaml")] for line in text.splitlines()]
    said = [re.search(r"\bsparring (\w+)(.*?)(#|$)", line) for line in lines]
    calls = [(match[1], match[2]) for match in said if match]
    assert len(calls) >= 3
    for name, rest in calls:
        assert name in known
        for option in re.findall(r"(?<!\S)--[\w-]+", rest):
            assert option in known[name], f"{name} {option}"
    everything = {option for options in known.values() for option in options}
    text = (DOCS / page).read_text(encoding="utf-8")
    for option in re.findall(r"`(--[\w-]+)", text):
        assert option in everything, option


def test_the_page_on_audits_lists_the_checks() -> None:
    page = (DOCS / "audit.md").read_text(encoding="utf-8")
    told = re.findall(r"(?m)^\| (\d+) \| (.+) \|$", page)
    known = sorted([*checks("before"), *checks("after")], key=lambda check: check.number)
    assert told == [(str(check.number), check.title) for check in known]
