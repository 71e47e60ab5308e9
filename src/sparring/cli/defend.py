"""Commands on defences: `sparring defences`, the table of their cards, and `sparring defend`, a model behind some."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from sparring.cli.shell import print_json, print_table, say
from sparring.cli.values import parse_params
from sparring.core.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors included.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("defences", short_help="List the defences, from their cards.")(defences)
    app.command("defend", short_help="Put defences around a model and save what loads back.")(defend)


def defences(
    kind: Annotated[str | None, typer.Option("--kind", help="input, detector or training.")] = None,
    as_json: Json = False,
) -> None:
    """List the defences, from their cards: stages at the input, detectors, and ways to train."""
    from sparring.core.errors import UnknownNameError
    from sparring.core.registry import defence_cards

    kinds = ("detector", "input", "training")
    if kind is not None and kind.lower() not in kinds:
        raise UnknownNameError.among("kind of defence", kind, kinds)
    chosen = [(kind_of(card.name), card) for card in defence_cards()]
    chosen = [(which, card) for which, card in chosen if kind is None or which == kind.lower()]
    if as_json:
        told = [{**dataclasses.asdict(card), "access": str(card.access), "kind": which} for which, card in chosen]
        print_json({"defences": told})
        return
    print_table(("name", "kind", "what it is", "cost"), [(c.name, which, c.title, c.cost) for which, c in chosen])


def kind_of(name: str) -> str:
    """ "input", "detector" or "training"."""
    from sparring.core.registry import defence_class
    from sparring.defences.detectors import Detector
    from sparring.defences.inputs import InputDefence

    cls = defence_class(name)
    return "input" if issubclass(cls, InputDefence) else "detector" if issubclass(cls, Detector) else "training"


def defend(
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write; it ends in .defended.")],
    model: Annotated[str, typer.Option("--model", "-m", help="As for `sparring attack`.")] = "digits",
    chosen: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            "-w",
            help="A stage or a detector, as NAME or NAME:key=value,key=value; may be repeated, in order.",
        ),
    ] = None,
    data: Annotated[
        str, typer.Option("--data", "-d", help="Clean data that detectors and stages learn from.")
    ] = "digits-train",
    fpr: Annotated[float, typer.Option("--fpr", help="The share of clean inputs that a detector may reject.")] = 0.05,
    samples: Annotated[int | None, typer.Option("--samples", "-n", min=10, help="Only the first so many.")] = None,
    as_json: Json = False,
) -> None:
    """Put stages in front of a model and a detector behind them, and save one file that loads back.

    `sparring audit --model FILE` attacks it as its traits ask; in Python, sparring.load(FILE) is the victim.
    """
    from sparring.core.network import Victim
    from sparring.defences import save_defended
    from sparring.defences.detectors import Detector
    from sparring.defences.inputs import InputDefence, Learned
    from sparring.evaluation.sources import load_data
    from sparring.victims import load

    made = [_made(text) for text in chosen or []]
    if not made:
        raise InputError("no defence came; --with NAME adds one, and `sparring defences` lists them")
    stages = [d for d in made if isinstance(d, InputDefence)]
    guards = [d for d in made if isinstance(d, Detector)]
    if len(guards) > 1:
        raise InputError(f"{len(guards)} detectors came; one file holds one (in Python, detectors.Union joins several)")
    if others := [type(d).__name__ for d in made if not isinstance(d, (InputDefence, Detector))]:
        raise InputError(f"{', '.join(others)} trains a model and wraps none: use `sparring train`")
    victim = load(model)
    if not isinstance(victim, Victim):
        raise InputError(f"{model!r} is a {type(victim).__name__}; stages stand in front of PyTorch victims alone")
    learners = [stage for stage in stages if isinstance(stage, Learned)]
    if learners or guards:
        clean = load_data(data, victim, samples=samples)
        x, y, _ = clean.take(_all(len(clean)))
        for stage in learners:
            stage.fit(victim, x, y)  # type: ignore[arg-type]
        for guard in guards:
            guard.fit(victim, x, y, fpr=fpr)  # type: ignore[arg-type]
    saved = save_defended(out, model, stages, guards[0] if guards else None)
    traits = victim.defended(pre=stages, detector=guards[0] if guards else None).traits
    told = {"file": str(saved), "model": model, "with": [repr(d) for d in made], "traits": dataclasses.asdict(traits)}
    if as_json:
        print_json(told)
        return
    say(f"{saved}: {model} behind {', '.join(type(d).__name__ for d in made)}", "bold")
    for advice in _advice(traits):
        say(f"  {advice}")
    say(f"`sparring audit --model {saved}` chooses its attacks by all of that.")


def _all(n: int) -> Any:
    import torch

    return torch.arange(n)


def _made(text: str) -> Any:
    """The defence that NAME or NAME:key=value,... means."""
    from sparring.core.registry import build, defence_class

    name, colon, rest = text.partition(":")
    cls = defence_class(name)
    try:
        return build(cls, parse_params([p for p in rest.split(",") if p] if colon else []))
    except TypeError as cause:
        raise InputError(f"{name} cannot be had by its name alone ({cause}); build it in Python") from cause


def _advice(traits: Any) -> list[str]:
    """What an honest evaluation of these traits takes."""
    told = []
    if not traits.differentiable:
        told.append("It hides gradients: attack through victim.attack_view(bpda=True).")
    if traits.stochastic:
        told.append("It draws at random: attack the expectation, victim.attack_view(eot=30).")
    if traits.rejects:
        told.append("It rejects: attack both at once with sparring.defences.detectors.JointPGD.")
    if traits.optimises:
        told.append("It optimises inside: check that its gradient is the one that you think it is.")
    return told or ["Nothing in it hides a gradient: plain PGD and APGD say what it is worth."]
