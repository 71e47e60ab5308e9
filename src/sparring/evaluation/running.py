"""The two calls that gather evidence: `audit` begins a run, or continues the one in its folder; `resume` continues."""

from __future__ import annotations

import platform
import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch

from sparring._version import __version__
from sparring.core.errors import InputError, UnknownNameError
from sparring.core.space import Space
from sparring.core.threat import ThreatModel
from sparring.core.victim import BaseVictim
from sparring.evaluation import presets
from sparring.evaluation.data import Data, Part, as_data
from sparring.evaluation.engine import Engine, Setting
from sparring.evaluation.errors import PlanError, RunMismatchError
from sparring.evaluation.executors import Executor, make_executor
from sparring.evaluation.header import read_header
from sparring.evaluation.plan import Plan
from sparring.evaluation.reading import Audit
from sparring.evaluation.sources import load_data, load_victim
from sparring.evaluation.specs import AttackSpec, Source, options_of
from sparring.evaluation.store import Store
from sparring.evaluation.threats import ThreatSpec


class AuditOptions(TypedDict, total=False):
    """What `audit` takes beside the main things.

    Attributes:
        attacks: attacks of one's own in the preset's place: names, `AttackSpec`s, or attacks such as `PGD(steps=100)`.
        samples: audit only the first so many samples.
        seed: of all randomness.
        shard: samples per unit of work; what is finished is kept unit by unit.
        load: options of `sparring.load`, where the victim is a name: mean, std, size, labels, ...
        curve: whether accuracy is measured against other eps as well (default True).
        surrogates: names of victims that the attacker owns, for `thorough`'s transfer attack.
        checks: whether the soundness checks run (default True).
        claim: robust means: robust accuracy of at least this (default 0.5).
        confidence: of every interval and of the verdict (default 0.95).
    """

    attacks: list[AttackSpec | Any]
    samples: int
    seed: int
    shard: int
    load: dict[str, Any]
    curve: bool
    surrogates: list[str]
    checks: bool
    claim: float
    confidence: float


def audit(
    victim: BaseVictim | Any = None,
    data: Data | Any = None,
    threat: ThreatModel | Space | None = None,
    *,
    preset: str = "standard",
    plan: Plan | str | Path | None = None,
    run: str | Path | None = None,
    executor: Executor | str | None = None,
    batch_size: int | None = None,
    **options: Unpack[AuditOptions],
) -> Audit:
    """Attack a victim with a whole plan, worst case per sample, and say with evidence how robust it is.

    Args:
        victim: a victim, a network, or a name for `sparring.load`; None audits the embedded digits.
        data: a pair (x, y), a map-style dataset, or a name such as "digits" (see `sources.load_data`).
        threat: a `ThreatModel` or a bare space such as `sparring.Linf(8 / 255)`.
        preset: "fast", "standard" (AutoAttack's four and a little more) or "thorough".
        plan: a `Plan`, or the path of a TOML file, in the place of everything above.
        run: the run folder, made where it is not there. One that holds the same plan, victim and data is continued.
            None keeps the evidence in a temporary folder for the life of the result.
        executor: "local", "ray", "ray:8" or an `Executor`; None takes the plan's.
        batch_size: samples attacked at once; outcomes do not depend on it.
        options: see `AuditOptions`.

    Returns:
        An `Audit`: verdict, robust accuracy with its interval, curves, tables, the report.

    Raises:
        SparringError: what came, what was needed, what to do. What was finished stays in the run folder.

    Example:
        >>> import sparring as sp
        >>> from sparring.evaluation import audit
        >>> found = audit("digits", "digits", sp.Linf(0.05), attacks=["fgsm"], samples=20, curve=False, checks=False)
        >>> 0 <= found.interval.lo <= found.robust_accuracy <= found.interval.hi <= 1
        True
    """
    for name in options:
        if name not in AuditOptions.__annotations__:
            raise UnknownNameError.among("option of audit", name, AuditOptions.__annotations__)
    if plan is not None:
        if threat is not None or options.keys() - {"claim", "confidence"}:
            raise InputError("a plan came together with a threat or options; they belong inside the plan")
        whole = plan if isinstance(plan, Plan) else Plan.from_toml(plan)
        resolved = None
    else:
        resolved = ThreatModel.resolve(presets.DEFAULT_THREAT if victim is None and threat is None else threat, None)  # type: ignore[arg-type]
        whole = _plan(resolved, preset, options)
    claim, confidence = options.get("claim", whole.claim), options.get("confidence", whole.confidence)
    whole = replace(whole, claim=claim, confidence=confidence)
    setting = _setting(whole, victim, data, resolved, batch_size)
    if run is None:
        folder = Path(tempfile.mkdtemp(prefix="sparring-"))
        try:
            found = _gather(folder / "run", setting, executor)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(found.evidence, shutil.rmtree, folder, ignore_errors=True)
        return found
    return _gather(Path(run), setting, executor)


def resume(
    run: str | Path,
    victim: BaseVictim | Any = None,
    data: Data | Any = None,
    threat: ThreatModel | Space | None = None,
    *,
    executor: Executor | str | None = None,
    batch_size: int | None = None,
) -> Audit:
    """Continue the run in a folder until it is finished; its evidence is then that of a run never interrupted.

    Args:
        run: the run folder.
        victim, data, threat: only where they were given as Python objects; names are found in the folder.
        executor: None takes the run's own.
        batch_size: None takes the run's own.

    Raises:
        StoreError: no run folder, or a damaged one, or another process is writing it.
        RunMismatchError: the victim or the data are not those that the run was begun with.
        InputError: the run was begun with Python objects that are not given.
    """
    plan = Plan.from_table(read_header(run)["plan"])
    for what, source, given in (("victim", plan.victim, victim), ("data", plan.data, data)):
        if source.name is None and given is None:
            raise InputError(
                f"{str(run)!r} was begun with a {what} given in Python; pass the same {what} again: "
                f"sparring.evaluation.resume(run, {what}=...)"
            )
        if source.name is not None and given is not None:
            raise InputError(f"{str(run)!r} knows its {what} by the name {source.name!r}; leave {what} out")
    resolved = None if threat is None else ThreatModel.resolve(threat, None)
    if resolved is not None and ThreatSpec.of(resolved) != plan.threat:
        raise RunMismatchError(f"{str(run)!r} was begun with the threat {plan.threat}; {ThreatSpec.of(resolved)} came")
    setting = _setting(plan, victim, data, resolved, batch_size)
    return _gather(Path(run), setting, executor)


def _plan(threat: ThreatModel, preset: str, options: AuditOptions) -> Plan:
    """A plan from the arguments of `audit`; its attacks are filled in once the victim is known."""
    presets.check_name(preset)
    attacks = tuple(AttackSpec.of(a) for a in options.get("attacks", ()))
    plan = Plan(
        threat=ThreatSpec.of(threat),
        attacks=attacks,
        victim=Source(None, options_of(options.get("load", {}))),
        data=Source(None, (("samples", options["samples"]),)) if "samples" in options else Source(),
        shard=options.get("shard", 256),
        seed=options.get("seed", 0),
        checks=options.get("checks", True),
        surrogates=tuple(options.get("surrogates", ())),
        with_curve=options.get("curve", True),
        preset=preset if not attacks else "own",
    )
    if plan.threat.eps is None and plan.threat.is_ball:
        raise PlanError(
            f"the threat {plan.threat} has no eps, so there is no ball to be robust in; give one: Linf(8 / 255)"
        )
    return replace(plan, curve=presets.curve(plan.threat)) if plan.with_curve and attacks else plan


def _setting(plan: Plan, victim: Any, data: Any, threat: ThreatModel | None, batch_size: int | None) -> Setting:
    """The objects that a plan names, and the plan with their names and its attacks filled in."""
    default = victim is None and plan.victim.name is None and data is None and plan.data.name is None
    victim_from = replace(plan.victim, name=victim) if isinstance(victim, str) else plan.victim
    if default:
        victim_from = Source("digits")
    if victim is None or isinstance(victim, str):
        if victim_from.name is None:
            raise InputError('data came without a victim; give a victim, a network or a name such as "digits"')
        model = load_victim(victim_from.name, **victim_from.keywords())
    else:
        if plan.victim.options:
            raise InputError(
                f"load={plan.victim.keywords()} came with a victim that is loaded already; give its name, or sparring.load(...)"
            )
        from sparring.victims import load

        model, victim_from = load(victim), Source()
    samples = dict(plan.data.options).get("samples")
    if default or isinstance(data, str):
        plan = replace(plan, data=Source("digits" if default else data, plan.data.options))
    if data is None or isinstance(data, str):
        if plan.data.name is None:
            raise InputError('a victim came without data; give a pair (x, y), a dataset, or a name such as "digits"')
        found = load_data(plan.data.name, model, **plan.data.keywords())
    else:
        found = as_data(data)
        if isinstance(samples, int) and samples < len(found):
            found = Part(found, torch.arange(samples))
        plan = replace(plan, data=Source(None, plan.data.options))
    plan = replace(plan, victim=victim_from, batch_size=batch_size or plan.batch_size)
    known = presets.facts(model, found, plan.threat)
    plan = plan if plan.attacks else presets.fill(plan, known)
    threat = plan.threat.build() if threat is None else threat
    return Setting(plan, model, found, threat, known, plan.batch_size)


def _gather(folder: Path, setting: Setting, executor: Executor | str | None) -> Audit:
    runner = make_executor(executor or setting.plan.executor)
    store = Store(folder, header_of(setting))
    Engine(store, setting, runner).run()
    return Audit.open(folder, claim=setting.plan.claim, confidence=setting.plan.confidence)


def header_of(setting: Setting) -> dict[str, Any]:
    """What `run.json` holds of a setting."""
    plan, victim, data = setting.plan, setting.victim, setting.data
    x = data.inputs(torch.zeros(1, dtype=torch.int64))
    traits = {name: bool(value) for name, value in vars(victim.traits).items()}
    return {
        "sparring": __version__,
        "plan": plan.table(),
        "plan_digest": plan.digest,
        "victim": {
            "name": victim.name,
            "fingerprint": victim.fingerprint(),
            "classes": setting.facts.classes,
            "labels": None if victim.labels is None else list(victim.labels),
            "traits": traits,
            "bounds": None if victim.bounds is None else repr(victim.bounds),
        },
        "data": {
            "name": data.name,
            "count": len(data),
            "fingerprint": data.fingerprint,
            "shape": list(x.shape[1:]) if isinstance(x, torch.Tensor) else None,
        },
        "seed": plan.seed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
        },
    }
