"""The report as JUnit XML, which every CI system shows: one test for the claim, and one for each soundness check."""

from __future__ import annotations

from xml.etree import ElementTree

from sparring.evaluation.findings import Finding
from sparring.evaluation.reading import Audit
from sparring.report.plain import titles
from sparring.report.words import figure, headline, printable


def to_junit(audit: Audit) -> str:
    """One suite: the claim fails unless the verdict is "robust"; a check fails where it spoils a number.

    A failed check that spoils nothing passes here and says so in its output. Only attributes that pytest's own files
    have are used, so that readers agree about them.
    """
    victim, verdict = printable(audit.evidence.header["victim"]["name"]), audit.verdict
    suite = ElementTree.Element("testsuite", name=f"sparring audit of {victim}", errors="0")
    _properties(suite, audit)
    name = f"robust accuracy is at least {verdict.claim:.0%}"
    case = ElementTree.SubElement(
        suite, "testcase", classname=f"sparring.{victim}", name=name, time=_time(audit.cost.seconds)
    )
    if verdict.result != "robust":
        lines = [headline(audit), *verdict.reasons, f"Next: {verdict.next_step}"]
        _failure(case, verdict.result, verdict.sentence, lines)
    else:
        _output(case, f"{headline(audit)}\nNext: {verdict.next_step}")
    names = titles()
    for finding in audit.findings:
        _check(suite, finding, names.get(finding.number, finding.name), victim)
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    suite.set("time", _time(audit.cost.seconds + audit.cost.checks_seconds))
    suite.set("timestamp", audit.evidence.header["created"])
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _properties(suite: ElementTree.Element, audit: Audit) -> None:
    header, interval = audit.evidence.header, audit.interval
    told = {
        "verdict": audit.verdict.result,
        "samples": audit.n,
        "clean_accuracy": figure(audit.clean_accuracy),
        "robust_accuracy": figure(audit.robust_accuracy),
        "interval": f"{interval.lo:.4f} {interval.hi:.4f}",
        "confidence": audit.confidence,
        "threat": audit.plan.threat,
        "preset": audit.plan.preset,
        "seed": header["seed"],
        "plan": header["plan_digest"],
        "victim": header["victim"]["fingerprint"],
        "data": header["data"]["fingerprint"],
        "sparring": header["sparring"],
    }
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in told.items():
        ElementTree.SubElement(properties, "property", name=name, value=printable(str(value)))


def _check(suite: ElementTree.Element, finding: Finding, title: str, victim: str) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=f"sparring.{victim}.checks",
        name=f"{finding.number} {finding.name}: {title}",
        time=_time(finding.seconds),
    )
    says = printable(finding.says)
    if finding.result == "skipped":
        ElementTree.SubElement(case, "skipped", message=says)
    elif finding.result == "fail" and finding.taints != "nothing":
        measured = f"measured {figure(finding.measured)}; it fails at {finding.threshold}"
        _failure(case, finding.name, finding.says, [finding.says, measured, f"Next: {finding.next_step}"])
    else:
        note = "" if finding.result == "pass" else "This check failed and spoils no number.\n"
        _output(case, note + says)


def _failure(case: ElementTree.Element, kind: str, message: str, lines: list[str]) -> None:
    ElementTree.SubElement(case, "failure", type=kind, message=printable(message)).text = printable("\n".join(lines))


def _output(case: ElementTree.Element, text: str) -> None:
    ElementTree.SubElement(case, "system-out").text = printable(text)


def _time(seconds: float) -> str:
    return f"{seconds:.3f}"
