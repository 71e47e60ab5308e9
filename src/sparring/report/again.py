"""How to do a run again: commands, the plan as a file, versions, seeds and fingerprints."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from sparring.evaluation.plan import Step
from sparring.evaluation.reading import Audit
from sparring.report.words import printable


@dataclass(frozen=True)
class Again:
    """What it takes.

    Attributes:
        plan: the plan as TOML, to be saved as plan.toml.
        commands: pairs of a purpose and a command.
        python: the call for a run whose victim, data or threat model were given in Python; empty where names do.
        facts: pairs of a name and a value: what must be the same, and what may differ.
        seeds: pairs of a step's label and its seed.
    """

    plan: str
    commands: tuple[tuple[str, str], ...]
    python: str
    facts: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[str, int], ...]


def again(audit: Audit) -> Again:
    """What it takes to do an audit again."""
    evidence, plan = audit.evidence, audit.plan
    header, run = evidence.header, shlex.quote(str(evidence.folder))
    python = _python(audit)
    commands = [] if audit.complete else [("Finish this run", f"sparring resume {run}")]
    if not python:
        commands.append(("Gather the same evidence again", "sparring audit plan.toml --run runs/again"))
    commands.append(("Compare both, sample by sample", f"sparring compare {run} runs/again"))
    commands.append(("Write this report again", f"sparring report {run}"))
    if plan.victim.name is not None and audit.failures():
        commands.append(("Keep the failures as tests of your own", f"sparring regress {run}"))
    commands.append(("Have every sample as a table", f"sparring export {run} samples.csv"))
    facts = [
        ("run", str(evidence.folder)),
        ("begun", header["created"]),
        ("victim", header["victim"]["name"]),
        ("victim's fingerprint", header["victim"]["fingerprint"]),
        ("data", str(header["data"]["name"])),
        ("data's fingerprint", header["data"]["fingerprint"]),
        ("plan's fingerprint", header["plan_digest"]),
        ("seed", str(header["seed"])),
        ("sparring", header["sparring"]),
        *((name, str(value)) for name, value in header["versions"].items()),
    ]
    return Again(
        plan=printable(plan.to_toml()),
        commands=tuple(commands),
        python=python,
        facts=tuple((name, printable(value)) for name, value in facts),
        seeds=tuple((step.label, step.seed) for step in evidence.steps),
    )


def _python(audit: Audit) -> str:
    plan = audit.plan
    if not plan.threat.is_ball:
        return (
            "from sparring.evaluation import audit\n\n"
            f"# the threat model was given in Python: {' '.join(printable(str(plan.threat.shown)).split())}\n"
            'audit(victim, data, threat, attacks=[...], run="runs/again")  # the attacks are those of the plan'
        )
    given = [what for what in ("victim", "data") if getattr(plan, what).name is None]
    if not given:
        return ""
    arguments = "".join(f"{what}={what}, " for what in given)
    return (
        "from sparring.evaluation import audit\n\n"
        f"# {' and '.join(given)}: the very {'object' if len(given) == 1 else 'objects'} that the fingerprints name\n"
        f'audit({arguments}plan="plan.toml", run="runs/again")'
    )


def settings(step: Step) -> str:
    """What a step's attack was told beside its defaults: "steps 20, loss dlr"."""
    spec = step.spec
    if spec is None:
        return ""
    told = [f"{name} {' '.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in spec.params]
    told += [f"{spec.queries:,} queries"] if spec.queries is not None else []
    told += [f"{spec.access} only"] if spec.access is not None else []
    told += [f"{spec.eot} draws per gradient"] if spec.eot > 1 else []
    told += [] if spec.bpda else ["no surrogate gradients"]
    told += [f"on {', '.join(spec.surrogates)}"] if spec.surrogates else []
    return printable(", ".join(told))
