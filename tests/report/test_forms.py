"""The report for programs and for CI: JSON, JUnit XML, Markdown, SVG, and the plan that does the run again."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.report.conftest import HOSTILE

from sparring.core.result import Outcome
from sparring.evaluation import Audit, Finding, Plan, audit
from sparring.evaluation.comparing import differences
from sparring.evaluation.curves import survival
from sparring.report.again import again
from sparring.report.charts import BOTTOM, HEIGHT, LEFT, TOP, chart, table_points
from sparring.report.junit import to_junit
from sparring.report.pages import to_html, to_markdown, to_svg
from sparring.report.plain import to_json
from sparring.report.words import duration, figure, radius, rate


def with_findings(found: Audit, *findings: Finding, claim: float | None = None) -> Audit:
    """The same evidence under other findings of the checks."""
    return Audit(dataclasses.replace(found.evidence, findings=list(findings)), claim=claim)


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_the_json_holds_the_audits_own_numbers(hostile: Audit) -> None:
    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    told = json.loads(to_json(hostile), parse_constant=refuse)
    assert (told["format"], told["version"]) == ("sparring.report", 1)
    for name in ("clean_accuracy", "robust_accuracy", "attack_success_rate", "complete"):
        assert told[name] == getattr(hostile, name)
    assert told["interval"] == dataclasses.asdict(hostile.interval)
    assert told["verdict"]["result"] == hostile.verdict.result
    assert [row["label"] for row in told["attacks"]] == [row.label for row in hostile.attacks]
    assert [c["name"] for c in told["checks"]] == [f.name for f in hostile.findings]
    assert all(c["title"] != c["name"] for c in told["checks"])
    assert told["curve"] == hostile.curve().table()
    assert list(told["query_curves"]) == ["square"]
    assert len(told["failures"]) == len(hostile.failures())
    assert told["failures"][0] == dataclasses.asdict(hostile.failures()[0])
    assert told["classes"][0]["name"] == HOSTILE[0]
    assert told["header"] == hostile.evidence.header


# -- JUnit -------------------------------------------------------------------------------------------------------------


def suite(found: Audit) -> ElementTree.Element:
    root = ElementTree.fromstring(to_junit(found))
    assert root.tag == "testsuites"
    (only,) = root
    cases = only.findall("testcase")
    assert int(only.attrib["tests"]) == len(cases)
    for kind in ("failures", "skipped"):
        inside = [c for c in cases if c.find(kind.removesuffix("s") if kind == "failures" else kind) is not None]
        assert int(only.attrib[kind]) == len(inside)
    assert all(c.attrib["classname"] and c.attrib["name"] and float(c.attrib["time"]) >= 0 for c in cases)
    assert len({(c.attrib["classname"], c.attrib["name"]) for c in cases}) == len(cases)
    return only


def test_junit_has_a_test_for_the_claim_and_one_per_check(hostile: Audit) -> None:
    found = suite(hostile)
    cases = found.findall("testcase")
    assert len(cases) == 1 + len(hostile.findings)
    assert cases[0].attrib["name"] == "robust accuracy is at least 90%"
    properties = {p.attrib["name"]: p.attrib["value"] for p in found.iter("property")}
    assert properties["plan"] == hostile.evidence.header["plan_digest"]
    assert float(properties["robust_accuracy"]) == pytest.approx(hostile.robust_accuracy, abs=1e-4)


@pytest.mark.parametrize(("claim", "result"), [(0.01, "robust"), (0.99, "broken")])
def test_the_claims_test_fails_unless_the_verdict_is_robust(claim: float, result: str, hostile: Audit) -> None:
    found = with_findings(hostile, claim=claim)
    assert found.verdict.result == result
    failure = suite(found).findall("testcase")[0].find("failure")
    if result == "robust":
        assert failure is None
    else:
        assert failure is not None
        assert failure.attrib["type"] == result
        assert found.verdict.next_step in (failure.text or "")


@pytest.mark.parametrize(
    ("result", "taints", "tag", "verdict"),
    [
        ("pass", "robust", None, "robust"),
        ("skipped", "nothing", "skipped", "robust"),
        ("fail", "nothing", None, "robust"),
        ("fail", "robust", "failure", "inconclusive"),
        ("fail", "any", "failure", "inconclusive"),
    ],
)
def test_a_check_fails_where_it_spoils_a_number(
    result: Any, taints: Any, tag: str | None, verdict: str, hostile: Audit
) -> None:
    finding = Finding(8, "converged", result, 0.25, "> 0.05", "It <climbs> \x00 still.", "More steps.", taints=taints)
    found = with_findings(hostile, finding, claim=0.01)
    claim, check = suite(found).findall("testcase")
    assert (claim.find("failure") is None) == (verdict == "robust")
    for kind in ("failure", "skipped"):
        assert (check.find(kind) is not None) == (kind == tag)
    if tag == "failure":
        text = check.find("failure").text or ""  # type: ignore[union-attr]
        assert "It <climbs> \N{REPLACEMENT CHARACTER} still." in text
        assert "measured 0.25; it fails at > 0.05" in text
        assert "Next: More steps." in text


# -- Markdown ----------------------------------------------------------------------------------------------------------


def test_markdown_tables_are_whole_and_names_are_text(hostile: Audit) -> None:
    text = to_markdown(hostile)
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", text)
    assert "<" not in outside.replace("&lt;", "")
    assert not re.search("[\x00-\x08\x0b-\x1f]", text)
    assert not re.search(r"(?<!\\)[\[\]`]", outside)
    width = None
    for line in outside.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        width = width or cells
        assert cells == width, line
    assert r"{{ 7\*7 }} a\|b\`c\*d\_e \# \[f" in outside
    headings = [line for line in outside.splitlines() if line.startswith("#")]
    assert headings[0].startswith(f"# {hostile.verdict.result.capitalize()}: &lt;b onmouseover")
    assert len([h for h in headings if h.startswith("# ")]) == 1
    assert f"{hostile.robust_accuracy:.1%}" in outside


def test_the_plan_in_markdown_can_be_copied(named: Path) -> None:
    (block,) = re.findall(r"(?ms)^```toml\n(.*?)^```$", to_markdown(Audit.open(named)))
    assert block.rstrip() == again(Audit.open(named)).plan.rstrip()


# -- again -------------------------------------------------------------------------------------------------------------


def test_the_plan_of_the_report_gathers_the_same_evidence_again(named: Path, tmp_path: Path) -> None:
    found = Audit.open(named)
    told = again(found)
    (tmp_path / "plan.toml").write_text(told.plan, encoding="utf-8")
    assert Plan.from_toml(tmp_path / "plan.toml").digest == found.evidence.header["plan_digest"]
    repeated = audit(plan=tmp_path / "plan.toml", run=tmp_path / "again")
    assert differences(found.evidence, repeated.evidence) == []
    commands = dict(told.commands)
    assert "sparring audit plan.toml --run runs/again" in commands.values()
    assert not told.python
    assert f"sparring regress {named}" in commands.values()
    facts = dict(told.facts)
    for kind in ("victim", "data"):
        assert facts[f"{kind}'s fingerprint"] == found.evidence.header[kind]["fingerprint"]
    assert {"torch", "numpy", "python", "seed", "sparring"} <= set(facts)
    assert dict(told.seeds) == {step.label: step.seed for step in found.evidence.steps}


def test_a_run_from_python_says_which_objects_it_needs(hostile: Audit) -> None:
    told = again(hostile)
    assert 'audit(victim=victim, data=data, plan="plan.toml", run="runs/again")' in told.python
    commands = dict(told.commands)
    assert not any(command.startswith("sparring audit") for command in commands.values())
    assert not any("regress" in command for command in commands.values())  # its victim has no name to load it by
    folder = str(hostile.evidence.folder)
    assert f"sparring report '{folder}'" in commands.values()  # spaces and signs are quoted for the shell


# -- curves ------------------------------------------------------------------------------------------------------------


def heights(path: str) -> list[tuple[float, float]]:
    """The corners of a path of M, H and V, in the drawing's units."""
    x = y = 0.0
    found = []
    for kind, numbers in re.findall(r"([MHV])([^MHVLZ]*)", path):
        values = [float(v) for v in numbers.split()]
        if kind == "M":
            x, y = values
        elif kind == "H":
            x = values[0]
        else:
            y = values[0]
        found.append((x, y))
    return found


def drawn_at(corners: list[tuple[float, float]], x: float) -> float:
    """The share that the drawing shows at x: the last corner that is not right of it."""
    y = [corner[1] for corner in corners if corner[0] <= x + 1e-6][-1]
    return 1 - (y - TOP) / (HEIGHT - TOP - BOTTOM)


@given(
    st.lists(st.one_of(st.floats(1e-4, 8.0), st.just(0.0), st.just(float("inf"))), min_size=1, max_size=40),
    st.floats(1e-3, 4.0),
)
def test_the_drawing_shows_the_curve(fell: list[float], eps: float) -> None:
    curve = survival("eps", np.array(fell), 0.95)
    told = chart(curve, "eps", "Accuracy", "eps", mark=(eps, "eps"))
    corners = heights(told.line)
    assert corners[0][0] == LEFT
    assert told.marker is not None
    assert told.dot is not None
    assert told.dot[0] == told.marker.at
    share = float(np.mean(np.array(fell) > eps * (1 + 1e-6)))
    near = np.abs(np.array(fell) - eps) < eps * 1e-3
    if not near.any():
        assert drawn_at(corners, told.dot[0]) == pytest.approx(share, abs=1e-3)
        assert drawn_at([told.dot], told.dot[0]) == pytest.approx(share, abs=1e-3)
    ticks = [tick.at for tick in told.x_ticks]
    assert ticks == sorted(ticks)
    assert 3 <= len(ticks) <= 12
    assert [tick.text for tick in told.y_ticks] == ["0%", "25%", "50%", "75%", "100%"]


@example([8.0, 7.999999999999999], [1.0])
@given(st.lists(st.floats(1e-4, 8.0), min_size=1, max_size=40), st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=4))
def test_the_table_beside_a_curve_goes_to_its_end(fell: list[float], asked: list[float]) -> None:
    curve = survival("eps", np.array(fell), 0.95)
    points = table_points(curve, asked)
    assert points == sorted(points)
    assert points[0] == 0
    assert min(asked) in points
    assert curve.x[-1] in points
    assert len(points) <= 20


def test_the_curve_alone_is_a_picture_with_its_own_colours(hostile: Audit) -> None:
    root = ElementTree.fromstring(to_svg(hostile))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"width", "height", "viewBox", "role"} <= set(root.attrib)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title") is not None
    assert "--accent: #0b57d0" in (root.find(f"{space}style").text or "")  # type: ignore[union-attr]


def test_work_is_drawn_in_decades(hostile: Audit) -> None:
    told = chart(hostile.cost_curve(), "work", "Work", "passes", log=True)
    assert [tick.text for tick in told.x_ticks][:2] == ["1", "10"]
    gaps = np.diff([tick.at for tick in told.x_ticks])
    assert np.allclose(gaps, gaps[0])
    assert drawn_at(heights(told.line), 1e9) == pytest.approx(hostile.cost_curve().accuracy[-1], abs=1e-3)


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"),
    [(0.5, "50.0%"), (0.0, "0.0%"), (1.0, "100.0%"), (0.0001, "<0.1%"), (0.9999, ">99.9%"), (float("nan"), "–")],
)
def test_rates_are_never_rounded_to_nothing_or_all(value: float, says: str) -> None:
    assert rate(value) == says


def test_other_numbers() -> None:
    assert [figure(v) for v in (0.031372, 12345, float("inf"), None, 2.98e-8)] == [
        "0.03137",
        "12,345",
        "infinite",
        "–",
        "2.98e-08",
    ]
    assert [duration(v) for v in (0.0421, 3.26, 200, 7500, None)] == ["42 ms", "3.3 s", "3 min 20 s", "2 h 5 min", "–"]
    assert [radius(v, "linf") for v in (8 / 255, 0.3, None)] == ["0.03137 (8/255)", "0.3", "smallest change"]
    assert radius(8 / 255, "l2") == "0.03137"


def test_pages_need_no_victim(hostile: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is read from the folder alone: nothing is loaded, and nothing is asked."""
    import sparring.evaluation.sources as sources
    from sparring.core.victim import BaseVictim

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a report asked for the model or the data")

    for name in ("load_victim", "load_data"):
        monkeypatch.setattr(sources, name, refuse)
    monkeypatch.setattr(BaseVictim, "query", refuse)
    found = Audit.open(hostile.evidence.folder)
    assert to_html(found, 8)
    assert to_json(found)
    assert Outcome.SUCCEEDED in found.evidence.attempts["outcome"]
