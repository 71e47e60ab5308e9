"""Commands on the evidence of finished audits: `sparring compare`, `export` and `regress`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from sparring.cli.shell import print_json, print_table, say

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, as `sparring audit` makes one.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors included.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("compare", short_help="Compare two audits sample by sample.")(compare)
    app.command("export", short_help="Write an audit's evidence as a table or as pictures.")(export)
    app.command("regress", short_help="Write an audit's failures as a pytest file with its data.")(regress)


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Compare two audits on the samples they share: who fell, who rose, and McNemar's exact test."""
    from sparring.evaluation.comparing import compare_runs
    from sparring.evaluation.reading import Audit

    found = compare_runs(Audit.open(run_a), Audit.open(run_b))
    if as_json:
        print_json({**dataclasses.asdict(found), "sentence": found.sentence})
        return
    say(found.sentence, "bold")
    rows = [
        ("stand in both", found.both),
        ("in A alone", found.only_a),
        ("in B alone", found.only_b),
        ("in neither", found.neither),
    ]
    print_table(("samples", "count"), [(name, f"{count:,}") for name, count in rows])
    for note in found.notes:
        say(f"note: {note}")


def export(
    run: Run,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="FILE.csv, .jsonl or .parquet; or a folder, for PNG files.", show_default=False
        ),
    ],
    table: Annotated[
        str, typer.Option("--table", help="samples, or attempts: one row per sample and attack.")
    ] = "samples",
    most: Annotated[int | None, typer.Option("--most", min=1, help="At most so many pictures.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Asked again about each picture; without it the run's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an audit's evidence: a table, or its adversarial pictures as PNG files that are read back and checked."""
    from sparring.evaluation.exporting import SUFFIXES, export_table
    from sparring.evaluation.reading import Audit

    audit = Audit.open(run)
    if path.suffix.lower() in SUFFIXES:
        written = export_table(audit, path, table)  # type: ignore[arg-type]
        print_json({"file": str(written)}) if as_json else say(f"{written}")
        return
    from sparring.evaluation.pictures import save_pictures
    from sparring.evaluation.sources import load_victim

    source = audit.plan.victim
    victim = load_victim(model) if model else load_victim(source.name, **source.keywords()) if source.name else None
    saved = save_pictures(audit, path, victim, most=most)
    works = sum(bool(picture.fools) for picture in saved)
    if as_json:
        print_json({"folder": str(path), "pictures": len(saved), "still_adversarial": works if victim else None})
    elif victim is None:
        say(f"{len(saved)} pictures in {path}; none was shown to the model again: name it with --model")
    else:
        say(f"{len(saved)} pictures in {path}; read back from the files, {works} of them still fool {victim.name!r}")


def regress(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for both files.")] = Path("tests/robustness"),
    victim: Annotated[
        str | None, typer.Option("--victim", help="How the test loads the model; without it as the run did.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--most", min=1, help="Keep at most so many, the smallest changes.")
    ] = None,
) -> None:
    """Write an audit's failures as a pytest file with its data, for your own project to keep."""
    from sparring.evaluation.reading import Audit
    from sparring.evaluation.regression import write_regression

    test, data = write_regression(Audit.open(run), out, victim=victim, most=most)
    say(f"{test}\n{data}")
