"""The parts of a plan as plain data: where a victim or data come from, and one attack with its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.core.attack import Attack
from sparring.core.errors import UnknownNameError
from sparring.core.registry import attack_class, make_attack
from sparring.evaluation import toml
from sparring.evaluation.errors import PlanError
from sparring.evaluation.starts import check_start

Scalar = str | int | float | bool
Value = Scalar | tuple[Scalar, ...]
Options = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Source:
    """Where a victim or a data set comes from: a name and options, or an object that was given in Python.

    Attributes:
        name: for `sparring.load` or `sparring.evaluation.sources.load_data`; None for an object given in Python.
        options: keyword options of that loader, sorted by name.
    """

    name: str | None = None
    options: Options = ()

    @classmethod
    def of(cls, given: str | Mapping[str, Any] | None) -> Source:
        """From a name, or from a table with a key `name` and options beside it."""
        if given is None or isinstance(given, str):
            return cls(given)
        table = dict(given)
        name = table.pop("name", None)
        if not isinstance(name, str):
            raise PlanError(f'the table {dict(given)!r} has no name; for example name = "digits"')
        return cls(name, options_of(table))

    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.options}

    def table(self) -> str | dict[str, Any] | None:
        """What `of` reads: a name alone where there are no options."""
        return {"name": self.name, **self.keywords()} if self.options else self.name


@dataclass(frozen=True)
class AttackSpec:
    """One attack of a plan.

    Attributes:
        attack: its name in the registry.
        params: its hyper-parameters, sorted by name; what is not named keeps the attack's own default.
        access: what the attack sees, less than the threat model grants; None leaves it to the card.
        queries: its own budget per sample; None takes the threat model's.
        eot: gradients averaged over so many draws of a random victim (expectation over transformation).
        bpda: gradients through the surrogates of a victim's defence stages where they have them.
        surrogates: names of victims that are attacked in the victim's place (transfer).
        start: where it starts, in place of its own choice (see `starts.STARTS`).
        eps: for steps of the curve: the radius of this step; None seeks the smallest change.
    """

    attack: str
    params: Options = ()
    access: str | None = None
    queries: int | None = None
    eot: int = 1
    bpda: bool = True
    surrogates: tuple[str, ...] = ()
    start: str | None = None
    eps: float | None = None

    @classmethod
    def of(cls, given: AttackSpec | Attack | str | Mapping[str, Any]) -> AttackSpec:
        """From a spec, a registered attack's instance, a name, or a table as in TOML.

        Raises:
            PlanError: an unknown key or a value that a plan cannot hold.
            UnknownNameError: no such attack or hyper-parameter.
        """
        if isinstance(given, AttackSpec):
            return given
        if isinstance(given, str):
            return cls(attack_class(given).card.name)  # type: ignore[attr-defined]
        if isinstance(given, Attack):
            params = {}
            for f in dataclasses.fields(given):  # type: ignore[arg-type]
                value = getattr(given, f.name)
                if value != f.default:
                    params[f.name] = value
            return cls(given.card.name, options_of(params))
        table = dict(given)
        known = {"name", *(f.name for f in dataclasses.fields(cls) if f.name != "attack")}
        for key in table:
            if key not in known:
                raise UnknownNameError.among("key of an attack", key, known, "Hyper-parameters go into params = {...}.")
        if "name" not in table:
            raise PlanError(f"an attack has no name: {dict(given)!r}")
        table["params"] = options_of(table.get("params", {}))
        table["surrogates"] = tuple(table.get("surrogates", ()))
        if table.get("eps") is not None:
            table["eps"] = toml.number(table["eps"], "eps of an attack")
        if table.get("start") is not None:
            check_start(table["start"])
        name = attack_class(table.pop("name")).card.name  # type: ignore[attr-defined]
        spec = cls(name, **table)
        spec.build()
        return spec

    def build(self) -> Attack:
        """The attack itself.

        Raises:
            UnknownNameError: no such attack or hyper-parameter; the message lists close matches.
        """
        return make_attack(self.attack, **{k: list(v) if isinstance(v, tuple) else v for k, v in self.params})  # type: ignore[no-any-return]

    @property
    def card(self) -> Any:
        """The attack's card."""
        return attack_class(self.attack).card  # type: ignore[attr-defined]

    def table(self) -> dict[str, Any]:
        """What `of` reads; defaults are left out."""
        table: dict[str, Any] = {"name": self.attack}
        if self.params:
            table["params"] = {k: list(v) if isinstance(v, tuple) else v for k, v in self.params}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name not in ("attack", "params") and value != f.default:
                table[f.name] = list(value) if isinstance(value, tuple) else value
        return table


def options_of(given: Mapping[str, Any]) -> Options:
    """Keyword options as hashable plain data, sorted by name.

    Raises:
        PlanError: a value that is neither text, number, boolean nor a list of those.
    """
    found: list[tuple[str, Value]] = []
    for name, value in sorted(given.items()):
        if value is None:
            continue
        many = isinstance(value, Sequence) and not isinstance(value, str)
        items = tuple(value) if many else (value,)
        if not all(isinstance(item, (str, int, float, bool)) for item in items):
            raise PlanError(
                f"{name} is a {type(value).__name__}; a plan holds text, numbers, booleans and lists of them. "
                "Objects go into audit(...) in Python"
            )
        found.append((name, items if many else value))
    return tuple(found)
