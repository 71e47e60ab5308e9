"""Commands on the registry: `sparring attacks`, the table of the cards, and `sparring show`, one card."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparring.cli.shell import print_json, print_table, say

if TYPE_CHECKING:
    from sparring.core.registry import Card

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors included.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("attacks", short_help="List the attacks, from their cards.")(attacks)
    app.command("show", short_help="Show one attack: its paper, needs, cost and parameters.")(show)


def attacks(
    access: Annotated[
        str | None,
        typer.Option("--access", help="What can be seen of the victim: nothing, labels, scores or gradients."),
    ] = None,
    norm: Annotated[
        str | None, typer.Option("--norm", help="A space that the attack searches: linf, l2, l1, l0, ...")
    ] = None,
    goal: Annotated[str | None, typer.Option("--goal", help="untargeted or targeted.")] = None,
    minimal: Annotated[bool, typer.Option("--minimal", help="Only those that seek the smallest change.")] = False,
    as_json: Json = False,
) -> None:
    """List the attacks, from their cards; the options leave out what does not fit."""
    from sparring.core.errors import UnknownNameError
    from sparring.core.registry import attack_cards
    from sparring.core.threat import Access

    cards = attack_cards()
    for kind, value, known in (
        ("space", norm, {space for card in cards for space in card.spaces}),
        ("goal", goal, {"untargeted", "targeted"}),
    ):
        if value is not None and value.lower() not in known:
            raise UnknownNameError.among(kind, value, known)
    most = None if access is None else Access.parse(access)
    chosen = [
        card
        for card in cards
        if (most is None or card.access <= most)
        and (norm is None or norm.lower() in card.spaces)
        and (goal is None or goal.lower() in card.goals)
        and (not minimal or card.minimal)
    ]
    if as_json:
        print_json({"attacks": [_card_dict(card) for card in chosen]})
        return
    if not chosen:
        say(f"none of the {len(cards)} attacks fits all of these options")
        return
    rows = [
        (
            card.name,
            str(card.access),
            "smallest" if card.minimal else "eps",
            " ".join(card.spaces),
            " ".join(card.goals),
            card.title,
        )
        for card in chosen
    ]
    print_table(("name", "needs", "change", "spaces", "goals", "what it is"), rows)


def show(
    name: Annotated[
        str, typer.Argument(metavar="ATTACK", help="Its name; `sparring attacks` lists them.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Show one attack: what it does, its paper, what it needs and costs, its parameters, when it misleads."""
    from sparring.core.registry import attack_class

    cls = attack_class(name)
    card: Card = cls.card  # type: ignore[attr-defined]
    parameters = _parameters(cls)
    doc = inspect.cleandoc(cls.__doc__ or "")
    if as_json:
        summary = " ".join(doc.split("\n\n")[0].split())
        print_json({**_card_dict(card), "class": cls.__name__, "summary": summary, "parameters": parameters})
        return
    say(f"{card.name}: {card.title}", "bold")
    say()
    say(doc.split("\n\nExample:")[0].split("\n\nArgs:")[0])
    say()
    rows = [
        ("paper", card.paper),
        ("needs", f"{card.access} of the victim"),
        ("spaces", ", ".join(card.spaces)),
        ("goals", ", ".join(card.goals)),
        ("seeks", "the smallest change that works; eps is optional" if card.minimal else "a change within eps"),
        ("cost", card.cost),
        ("inputs", ", ".join(card.domains)),
        ("also", ", ".join(card.aliases)),
        ("caveats", card.caveats),
    ]
    for key, value in rows:
        if value:
            say(textwrap.fill(value, 100, initial_indent=f"{key:<9}", subsequent_indent=" " * 9))
    say()
    say("parameters (--param name=value, or in Python " + cls.__name__ + "(name=value)):")
    for parameter in parameters:
        head = f"  {parameter['name']} = {parameter['default']}"
        say(
            textwrap.fill(
                f"{head}: {parameter['about']}" if parameter["about"] else head, 100, subsequent_indent="      "
            )
        )
    if not parameters:
        say("  none")


def _card_dict(card: Card) -> dict[str, Any]:
    told = dataclasses.asdict(card)
    told["access"] = str(card.access)
    return told


def _parameters(cls: type) -> list[dict[str, Any]]:
    """Name, type, default and explanation of each hyper-parameter."""
    about: dict[str, str] = {}
    for ancestor in reversed(cls.__mro__):  # a recipe explains what it adds, its base the rest
        about |= _arguments(inspect.cleandoc(ancestor.__doc__ or ""))
    found = []
    for f in dataclasses.fields(cls):
        if f.default is not dataclasses.MISSING:
            default = f.default
        else:
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else "required"
        plain = default if isinstance(default, (int, float, str, bool, type(None))) else repr(default)
        found.append({"name": f.name, "type": str(f.type), "default": plain, "about": about.get(f.name, "")})
    return found


def _arguments(doc: str) -> dict[str, str]:
    """The explanations under "Args:" in a docstring, by name; "a, b: text" explains both."""
    _, _, block = doc.partition("\nArgs:\n")
    explained: dict[str, str] = {}
    names: list[str] = []
    for line in block.splitlines():
        if not line.strip() or not line.startswith("    "):
            break
        if not line.startswith("        ") and ":" in line:
            head, _, text = line.strip().partition(":")
            names = [name.strip() for name in head.split(",")]
            explained |= {name: text.strip() for name in names}
        else:
            explained |= {name: f"{explained[name]} {line.strip()}" for name in names}
    return explained
