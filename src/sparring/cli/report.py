"""The command on a run's report: `sparring report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from sparring.cli.audit import INCONCLUSIVE, FailUnder, Run
from sparring.cli.shell import DONE, HELD, print_json, say
from sparring.cli.values import parse_number

_CODES = (
    "Exit codes: 0 done; with --fail-under, 1 where the lower end of the robust accuracy's interval is below it, and 5 "
    "where it is not but a soundness check spoils the number."
)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("report", short_help="Write an audit's report: a page, Markdown, JSON, JUnit XML.", epilog=_CODES)(
        report
    )


def report(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file; its suffix chooses the form. Without it report.* in RUN."),
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="html, md, json, junit or svg (the curve); may be repeated."),
    ] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, help="Failures and closest calls on the page; 0 keeps every input out.")
    ] = 8,
    fail_under: FailUnder = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, the report itself, errors included.")
    ] = False,
) -> int:
    """Write the report of an audit, finished or not. Needs neither the model nor the data.

    The page is one file that opens from disk, without a network. Without options, report.html, report.md and
    report.json appear in the run folder.
    """
    from sparring.core.errors import UnknownNameError
    from sparring.evaluation.reading import Audit
    from sparring.report import FORMS, write_report

    for name in form or ():
        if name not in FORMS:
            raise UnknownNameError.among("form of a report", name, FORMS)
    found = Audit.open(run)
    if fail_under is not None:
        # the plan knows what a claim may be
        found.claim = dataclasses.replace(found.plan, claim=parse_number(fail_under, "--fail-under")).claim
    files = {}
    for name, path in _files(run, out, form or []).items():
        files[name] = str(write_report(found, path, form=name, pictures=pictures))
    verdict = found.verdict
    if as_json:
        from sparring.report.plain import plain

        told: dict[str, Any] = {"files": files, **plain(found)}
        print_json(told)
    else:
        say(verdict.sentence, {"robust": "bold green", "broken": "bold red"}.get(verdict.result, "bold yellow"))
        for file in files.values():
            say(file)
    if fail_under is None:
        return DONE
    if found.interval.lo < found.claim:
        return HELD
    return DONE if verdict.result == "robust" else INCONCLUSIVE


def _files(run: Path, out: Path | None, forms: list[str]) -> dict[str, Path]:
    """The file of each form: `out` itself where there is one form, its name with other suffixes where there are more."""
    from sparring.report import FORMS
    from sparring.report.writing import form_of

    if out is None:
        return {name: run / f"report{FORMS[name]}" for name in forms or ("html", "md", "json")}
    if not forms:
        return {form_of(out): out}
    if len(forms) == 1:
        return {forms[0]: out}
    return {name: out.with_suffix(FORMS[name]) for name in forms}
