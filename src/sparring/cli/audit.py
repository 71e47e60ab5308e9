"""Commands that gather evidence: `sparring audit` and `sparring resume`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparring.cli.live import showing
from sparring.cli.seeing import Device, Grey, Labels, Mean, Resize, Size, Std, model_options
from sparring.cli.shell import DONE, HELD, INTERRUPTED, print_json, print_table, say
from sparring.cli.values import parse_number
from sparring.core.errors import InputError

if TYPE_CHECKING:
    from sparring.evaluation.reading import Audit

# Exit code of --fail-under where the number is high enough but a soundness check spoils it.
INCONCLUSIVE = 5

_CODES = (
    "Exit codes: 0 done; with --fail-under, 1 where the lower end of the robust accuracy's interval is below it, and 5 "
    "where it is not but a soundness check spoils the number; 130 interrupted, and `sparring resume RUN` goes on."
)

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, as `sparring audit` makes one.", show_default=False)
]
FailUnder = Annotated[
    str | None,
    typer.Option("--fail-under", help="Exit with 1 where the interval's lower end is below this, such as 0.45."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors included, and no progress.")]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Samples at once; no outcome depends on it.")]
Where = Annotated[str | None, typer.Option("--executor", help="local, ray, or ray:8 for eight workers.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("audit", short_help="Measure robustness: attacks, worst case per sample, checks.", epilog=_CODES)(audit)
    app.command("resume", short_help="Continue an audit that was interrupted.", epilog=_CODES)(resume)


def audit(
    plan: Annotated[
        Path | None,
        typer.Argument(metavar="PLAN", help="A plan in TOML; flags say the common case.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="As for `sparring attack`, or python:package.module:name.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", help="digits, FILE.npz, FILE.safetensors, mnist:FOLDER, a folder of class folders."
        ),
    ] = None,
    norm: Annotated[str, typer.Option("--norm", help="linf, l2 or l1.")] = "linf",
    eps: Annotated[str | None, typer.Option("--eps", help="The largest change in raw units: 8/255, 0.3.")] = None,
    target: Annotated[
        int | None, typer.Option("--target", help="The label to reach; without it any wrong one.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            help="fast, standard (as usual for a model that is named) or thorough.",
            show_default=False,
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option("--attack", "-a", help="Attacks in the preset's place, by name; may be repeated."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", "-n", min=1, help="Only the first so many samples.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="The run folder; without it a new one in runs/.")] = None,
    batch_size: Batch = None,
    executor: Where = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all randomness.")] = 0,
    checks: Annotated[bool, typer.Option("--checks/--no-checks", help="The soundness checks.")] = True,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    resize: Resize = None,
    grey: Grey = False,
    labels: Labels = None,
    device: Device = None,
    fail_under: FailUnder = None,
    as_json: Json = False,
) -> int:
    """Attack a model with a whole plan, worst case per sample, and say with evidence how robust it is.

    Without a model it audits the embedded digits, by the fast preset where none is named.
    """
    from sparring.core.balls import NORMS
    from sparring.core.errors import UnknownNameError
    from sparring.core.threat import Targeted, ThreatModel, Untargeted
    from sparring.evaluation import running

    claim = _claim(fail_under)
    load = model_options(model, mean, std, size, resize, grey, labels, device)
    if norm.lower() not in NORMS:
        raise UnknownNameError.among("norm", norm, NORMS)
    options: dict[str, Any] = {"seed": seed, "checks": checks} if plan is None else {}
    if plan is None:
        if eps is None and (model or data):
            raise InputError("--eps is needed, in the model's raw units, for example --eps 8/255")
        options |= {"attacks": attack} if attack else {}
        options |= {"samples": samples} if samples else {}
        options |= {"load": load} if load else {}
    elif given := [
        n for n, v in (("--eps", eps), ("--attack", attack), ("--samples", samples), ("--target", target)) if v
    ] + [f"--{n}" for n in load]:
        raise InputError(f"{', '.join(given)} came with a plan; write them into the plan")
    threat = None
    if eps is not None:
        goal = Untargeted() if target is None else Targeted(target)
        threat = ThreatModel(NORMS[norm.lower()](parse_number(eps, "--eps")), goal)
    if claim is not None:
        options["claim"] = claim
    folder = run or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{_stem(plan, model)}"

    def work() -> Audit:
        return running.audit(
            model,
            data,
            threat,
            preset=preset or ("standard" if model or data else "fast"),
            plan=plan,
            run=folder,
            executor=executor,
            batch_size=batch_size,
            **options,
        )

    return _gathered(work, folder, claim, as_json)


def resume(
    run: Run,
    batch_size: Batch = None,
    executor: Where = None,
    fail_under: FailUnder = None,
    as_json: Json = False,
) -> int:
    """Continue an audit until it is finished; its evidence is then that of one that was never interrupted."""
    from sparring.evaluation import running

    def work() -> Audit:
        return running.resume(run, executor=executor, batch_size=batch_size)

    return _gathered(work, run, _claim(fail_under), as_json)


def _gathered(work: Callable[[], Audit], folder: Path, claim: float | None, as_json: bool) -> int:
    """Gather evidence with the progress shown, tell what came out, and choose the exit code."""
    try:
        with showing(not as_json):
            found = work()
    except KeyboardInterrupt:
        if as_json:
            print_json({"error": "interrupted", "kind": "KeyboardInterrupt", "resume": f"sparring resume {folder}"})
        else:
            say(f"\nInterrupted. What is finished is safe; go on with:\n  sparring resume {folder}")
        return INTERRUPTED
    if claim is not None:
        found.claim = claim
    print_json(summary(found)) if as_json else _tell(found)
    if claim is None:
        return DONE
    if found.interval.lo < claim:
        return HELD
    return DONE if found.verdict.result == "robust" else INCONCLUSIVE


def summary(found: Audit) -> dict[str, Any]:
    """The audit as one plain object."""
    return {
        "run": str(found.evidence.folder),
        "verdict": dataclasses.asdict(found.verdict),
        "samples": found.n,
        "clean_accuracy": found.clean_accuracy,
        "robust_accuracy": found.robust_accuracy,
        "interval": dataclasses.asdict(found.interval),
        "attacks": [dataclasses.asdict(row) for row in found.attacks],
        "classes": [dataclasses.asdict(row) for row in found.per_class],
        "curve": found.curve().table(),
        "checks": [dataclasses.asdict(finding) for finding in found.findings],
        "cost": dataclasses.asdict(found.cost),
    }


def _tell(found: Audit) -> None:
    verdict = found.verdict
    rows = [
        (
            row.label,
            f"{row.met:,}",
            f"{row.broke:,}",
            f"{row.robust_accuracy:.1%}",
            str(row.interval),
            f"{row.seconds:.1f} s",
        )
        for row in found.attacks
        if row.met
    ]
    say()
    print_table(("attack", "met", "broke", "still right", f"{found.confidence:.0%} interval", "time"), rows)
    say()
    say(verdict.sentence, {"robust": "bold green", "broken": "bold red"}.get(verdict.result, "bold yellow"))
    for reason in verdict.reasons:
        say(f"  {reason}")
    say(f"Next: {verdict.next_step.replace('RUN', str(found.evidence.folder))}")
    say(f"Evidence: {found.evidence.folder}")


def _claim(fail_under: str | None) -> float | None:
    if fail_under is None:
        return None
    claim = parse_number(fail_under, "--fail-under")
    if not 0 <= claim <= 1:
        raise InputError(f"--fail-under is {fail_under}; a robust accuracy between 0 and 1 is needed, such as 0.45")
    return claim


def _stem(plan: Path | None, model: str | None) -> str:
    """A short name for a run folder."""
    text = plan.stem if plan is not None else model or "digits"
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)[-40:].strip("-.") or "run"
