"""The report as pages for people: what the templates show, and the two ways of making text safe in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sparring.evaluation.curves import Curve
from sparring.evaluation.findings import Finding
from sparring.evaluation.reading import Audit
from sparring.evaluation.tables import AttackRow, ClassRow
from sparring.report import words
from sparring.report.again import again, settings
from sparring.report.charts import Chart, chart, table_points
from sparring.report.gallery import exhibits
from sparring.report.plain import titles

# Classes shown at once; the rest of a longer list is folded away.
MOST_CLASSES = 20
_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$])")
_AXES = {
    "linf": "eps: the largest change anywhere (Linf)",
    "l2": "eps: the length of the change (L2)",
    "l1": "eps: the sum of all changes (L1)",
    "l0": "eps: how many numbers are changed (L0)",
}


@dataclass(frozen=True)
class Graph:
    """A drawn curve and its points as a table: what x is, then x, accuracy and the interval's ends."""

    chart: Chart
    rows: tuple[tuple[str, float, float, float], ...]


@dataclass(frozen=True)
class AttackLine:
    """A row of the table of attacks, with what the attack was told and the radius that it searched."""

    row: AttackRow
    settings: str
    radius: str


@dataclass(frozen=True)
class CheckLine:
    """A finding with the statement that the check tries."""

    finding: Finding
    title: str


def to_html(audit: Audit, pictures: int) -> str:
    """The page: one file that holds everything it shows."""
    failures, close = audit.failures(), audit.close_calls()
    return _environment("html").get_template("report.html").render(
        **_content(audit),
        failures=exhibits(audit, failures[:pictures]),
        close_calls=exhibits(audit, close[:pictures]),
        more_failures=max(0, len(failures) - pictures),
        more_close_calls=max(0, len(close) - pictures),
        pictures=pictures,
    )  # fmt: skip


def to_markdown(audit: Audit) -> str:
    """The same in Markdown, pictures apart."""
    text = _environment("md").get_template("report.md").render(
        **_content(audit), failures=audit.failures()[:10], close_calls=audit.close_calls()[:10]
    )  # fmt: skip
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def to_svg(audit: Audit) -> str:
    """The accuracy-against-eps curve alone, as a picture with its own colours."""
    return _environment("html").get_template("curve.svg").render(graph=eps_graph(audit), audit=audit)


def _content(audit: Audit) -> dict[str, Any]:
    header, norm = audit.evidence.header, audit.plan.threat.norm
    names = titles()
    order = {"fail": 0, "pass": 1, "skipped": 2}
    lines = [CheckLine(f, names.get(f.number, f.name)) for f in audit.findings]
    classes = sorted(audit.per_class, key=lambda row: (row.robust_accuracy, row.label))
    return {
        "audit": audit,
        "header": header,
        "verdict": audit.verdict,
        "headline": words.headline(audit),
        "claim": words.claim(audit),
        "graph": eps_graph(audit),
        "query_graphs": query_graphs(audit),
        "attacks": [_attack_line(audit, row) for row in audit.attacks],
        "checks": sorted(lines, key=lambda line: (order[line.finding.result], line.finding.number)),
        "classes": [_named(row) for row in classes[:MOST_CLASSES]],
        "more_classes": [_named(row) for row in classes[MOST_CLASSES:]],
        "cost": audit.cost,
        "cost_graph": cost_graph(audit),
        "again": again(audit),
        "norm": norm.capitalize() if audit.plan.threat.is_ball else "cost",
        "name_of": lambda label: words.class_name(header, label),
    }


def _attack_line(audit: Audit, row: AttackRow) -> AttackLine:
    step = audit.evidence.steps[row.step]
    radius = "" if step.spec is None else words.radius(row.eps, audit.plan.threat.norm)
    return AttackLine(row, settings(step), radius)


def _named(row: ClassRow) -> tuple[ClassRow, str]:
    from sparring.see.classification import short_name

    return row, words.printable(short_name(row.name, 40))


# -- graphs ------------------------------------------------------------------------------------------------------------


def eps_graph(audit: Audit) -> Graph:
    """Accuracy against eps."""
    curve = audit.curve()
    asked = [step.eps for step in audit.evidence.steps if step.eps is not None and step.eps <= 2 * audit.eps]
    points = audit.curve(eps=table_points(curve, [audit.eps, *asked]))
    label = _AXES.get(audit.plan.threat.norm, "eps: the cost of the change")
    drawn = chart(curve, "eps", "Accuracy against eps", label, mark=(audit.eps, f"eps {words.figure(audit.eps)}"))
    return Graph(drawn, _rows(points))


def query_graphs(audit: Audit) -> list[Graph]:
    """Accuracy against queries, one for each attack that only asks."""
    return [
        _work_graph(curve, f"queries-{i}", f"Accuracy against queries: {label}", "queries per input")
        for i, (label, curve) in enumerate(audit.query_curves().items())
    ]


def cost_graph(audit: Audit) -> Graph:
    """Accuracy against the work spent on a sample."""
    label = "forward and backward passes per input"
    return _work_graph(audit.cost_curve(), "work", "Accuracy against work", label)


def _work_graph(curve: Curve, key: str, title: str, label: str) -> Graph:
    last = float(curve.x[-1]) if len(curve.x) else 0.0
    powers = [m * 10.0**p for p in range(7) for m in (1, 3) if m * 10.0**p < last]
    at = [0.0, *powers, last] if last > 0 else [0.0]
    places = [max(0, int((curve.x <= point).sum()) - 1) for point in at]
    rows = tuple(
        (words.figure(point), float(curve.accuracy[i]), float(curve.lo[i]), float(curve.hi[i]))
        for point, i in zip(at, places, strict=True)
    )
    return Graph(chart(curve, key, title, label, log=True), rows)


def _rows(curve: Curve) -> tuple[tuple[str, float, float, float], ...]:
    columns: Iterable[tuple[float, float, float, float]] = zip(
        curve.x.tolist(), curve.accuracy.tolist(), curve.lo.tolist(), curve.hi.tolist(), strict=True
    )
    return tuple((words.figure(x), y, lo, hi) for x, y, lo, hi in columns)


# -- templates ---------------------------------------------------------------------------------------------------------


@cache
def _environment(form: str) -> Environment:
    """The templates, with every value made safe for its form before it is shown."""
    made = Environment(
        loader=PackageLoader("sparring.report"),
        autoescape=form == "html",
        finalize=_plain_html if form == "html" else _plain_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"rate": words.rate, "figure": words.figure, "duration": words.duration, "fenced": _fenced}
    made.filters |= {"printable": words.printable, "count": lambda value: f"{value:,}"}
    return made


def _plain_html(value: Any) -> Any:
    """Text without control characters; the environment escapes it afterwards."""
    return words.printable(value) if type(value) is str else value


def _plain_markdown(value: Any) -> Any:
    """Text as Markdown that shows exactly this text: no markup, no HTML, one line."""
    if isinstance(value, Markup):
        return value
    text = " ".join(words.printable(str(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def _fenced(text: str, language: str = "") -> Markup:
    """A Markdown code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{words.printable(text).rstrip()}\n{fence}")
