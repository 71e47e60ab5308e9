"""The registry: every attack and defence is a decorated class with a card, and a card is data that tests hold to its
word.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sparring.core.errors import InputError, SparringError, UnknownNameError
from sparring.core.threat import Access

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Card:
    """What a method is, needs and costs.

    Attributes:
        name: what it is called on the command line and in reports, lower case.
        title: the method in a few words.
        paper: authors, year, title, and an identifier (arXiv or DOI) of the source.
        access: the least access it needs.
        needs: capabilities beyond access that the victim must offer by name ("trees", "word_weights"): a white-box
            method with such a need reads the model itself, and no input gradient is asked of the victim.
        spaces: names of the spaces it searches.
        goals: "untargeted", "targeted", or both.
        minimal: whether it seeks the smallest change (it then needs no eps).
        cost: forwards and backwards per sample, in words.
        domains: what kinds of input it takes; "tensor" is anything with a shape.
        caveats: when its answer misleads.
        floor: what it must reach on the contract suite's victim, by space: the least success rate within the suite's
            budget, or for minimal attacks the largest median distance. No card without one passes the suite.
        aliases: other names it is known by.
    """

    name: str
    title: str
    paper: str
    access: Access
    spaces: tuple[str, ...]
    goals: tuple[str, ...] = ("untargeted", "targeted")
    minimal: bool = False
    cost: str = ""
    domains: tuple[str, ...] = ("tensor",)
    caveats: str = ""
    floor: Mapping[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


ATTACKS: dict[str, type] = {}
DEFENCES: dict[str, type] = {}

# Modules that register their methods when they are imported; the registry imports them on the first look-up.
_ATTACK_MODULES = [
    "sparring.attacks",
    "sparring.text",
    "sparring.tabular",
    "sparring.images.attacks",
    "sparring.defences.detectors",
]
_DEFENCE_MODULES = ["sparring.defences"]


def _registrar(table: dict[str, type], card: Card) -> Callable[[C], C]:
    def decorate(cls: C) -> C:
        for name in (card.name, *card.aliases):
            known = table.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise SparringError(f"two methods are called {name!r}: {known.__qualname__} and {cls.__qualname__}")
            table[name] = cls
        cls.card = card  # type: ignore[attr-defined]
        return cls

    return decorate


def attack(card: Card) -> Callable[[C], C]:
    """Register a class as the attack that `card` describes."""
    return _registrar(ATTACKS, card)


def defence(card: Card) -> Callable[[C], C]:
    """Register a class as the defence that `card` describes."""
    return _registrar(DEFENCES, card)


def _fill(modules: list[str]) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)


def attack_cards() -> list[Card]:
    """The cards of all attacks, by name."""
    _fill(_ATTACK_MODULES)
    return sorted({cls.card.name: cls.card for cls in ATTACKS.values()}.values(), key=lambda c: c.name)  # type: ignore[attr-defined]


def defence_cards() -> list[Card]:
    """The cards of all defences, by name."""
    _fill(_DEFENCE_MODULES)
    return sorted({cls.card.name: cls.card for cls in DEFENCES.values()}.values(), key=lambda c: c.name)  # type: ignore[attr-defined]


def attack_class(name: str) -> type:
    """The attack called `name` (or known by it as an alias).

    Raises:
        UnknownNameError: no such attack; the message lists close matches.
    """
    _fill(_ATTACK_MODULES)
    return _look_up(ATTACKS, "attack", name, "`sparring attacks` lists them all.")


def defence_class(name: str) -> type:
    """The defence called `name`.

    Raises:
        UnknownNameError: no such defence; the message lists close matches.
    """
    _fill(_DEFENCE_MODULES)
    return _look_up(DEFENCES, "defence", name, "`sparring defences` lists them all.")


def _look_up(table: dict[str, type], kind: str, name: str, hint: str) -> type:
    key = name.casefold().replace("_", "-")
    if key not in table:
        raise UnknownNameError.among(kind, name, table, hint)
    return table[key]


def build(cls: type, params: Mapping[str, Any]) -> Any:
    """An instance of a registered dataclass from named parameters.

    Raises:
        UnknownNameError: a parameter that it does not have; the message lists those it has.
        InputError: a word or a fraction where the parameter is a number or a whole number.
    """
    known = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    for name, value in params.items():
        if name not in known:
            raise UnknownNameError.among(f"parameter of {cls.__name__}", name, known)
        kinds = {kind.strip() for kind in known[name].split("|")}
        numbers = kinds & {"int", "float"}
        if not numbers or not kinds <= {"int", "float", "None"} or (value is None and "None" in kinds):
            continue  # words, switches and objects are judged by the attack itself
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not real or (numbers == {"int"} and value != int(value)):
            raise InputError(f"{name} is {value!r}; a {'whole number' if numbers == {'int'} else 'number'} is needed")
    return cls(**params)


def make_attack(attack: Any, **params: Any) -> Any:
    """An attack from its name and parameters, or the attack itself when it is one already."""
    return build(attack_class(attack), params) if isinstance(attack, str) else attack
