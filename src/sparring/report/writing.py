"""The one call that writes a report: the suffix of the file chooses the form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparring.core.errors import InputError
from sparring.evaluation.reading import Audit
from sparring.evaluation.shards import write_file

# The name of each form, and the suffix of its file.
FORMS = {"html": ".html", "md": ".md", "json": ".json", "junit": ".xml", "svg": ".svg"}
_OTHERS = {".htm": "html", ".markdown": "md"}
PICTURES = 8


def write_report(audit: Audit, path: str | Path, *, form: str | None = None, pictures: int = PICTURES) -> Path:
    """Write the report of an audit, finished or not, as one file.

    Args:
        audit: the audit.
        path: the file; .html for the page, .md for Markdown, .json for programs, .xml for JUnit, .svg for the curve
            alone.
        form: "html", "md", "json", "junit" or "svg", whatever the suffix; None goes by the suffix.
        pictures: how many failures and how many closest calls the page shows; 0 leaves every input out of the file.

    Returns:
        The path.

    Raises:
        InputError: another suffix or form, a folder that does not exist, a file that cannot be written.
        ThreatError: the audit's threat model has no radius, so there is no robust accuracy to report.
    """
    path = Path(path).expanduser()
    form = form or form_of(path)
    if form not in FORMS:
        raise InputError(f"form is {form!r}; one of {', '.join(FORMS)} is needed")
    if isinstance(pictures, bool) or not isinstance(pictures, int) or pictures < 0:
        raise InputError(f"pictures is {pictures!r}; a whole number >= 0 is needed")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {str(path)!r}: the folder {str(path.parent)!r} does not exist; create it first")
    if path.is_dir():
        raise InputError(f"cannot write {str(path)!r}: it is a folder; name a file in it, such as report.html")
    content = _MAKERS[form](audit, pictures)
    try:
        write_file(path, content.encode("utf-8"))
    except OSError as cause:
        raise InputError(f"cannot write {str(path)!r}: {cause.strerror or cause}") from cause
    return path


def form_of(path: Path) -> str:
    """The form that a file's suffix stands for.

    Raises:
        InputError: none.
    """
    suffix = path.suffix.lower()
    known = {**{suffix: form for form, suffix in FORMS.items()}, **_OTHERS}
    if suffix not in known:
        raise InputError(
            f"cannot write a report to {path.name!r}: the suffix must be one of {', '.join(FORMS.values())} "
            "(.xml is JUnit, .svg the curve alone)"
        )
    return known[suffix]


def _html(audit: Audit, pictures: int) -> str:
    from sparring.report.pages import to_html

    return to_html(audit, pictures)


def _md(audit: Audit, pictures: int) -> str:
    from sparring.report.pages import to_markdown

    return to_markdown(audit)


def _svg(audit: Audit, pictures: int) -> str:
    from sparring.report.pages import to_svg

    return to_svg(audit)


def _json(audit: Audit, pictures: int) -> str:
    from sparring.report.plain import to_json

    return to_json(audit)


def _junit(audit: Audit, pictures: int) -> str:
    from sparring.report.junit import to_junit

    return to_junit(audit)


_MAKERS: dict[str, Callable[[Audit, int], str]] = {
    "html": _html,
    "md": _md,
    "json": _json,
    "junit": _junit,
    "svg": _svg,
}
