"""The registry: names and aliases find their class, wrong names get close matches, and two methods never share one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

import sparring as sp
from sparring.core import registry
from sparring.core.errors import InputError, SparringError, UnknownNameError
from sparring.core.registry import Card, attack, attack_cards, attack_class, make_attack


@pytest.fixture(autouse=True)
def _table_as_before() -> Iterator[None]:
    attack_cards()
    before = dict(registry.ATTACKS)
    yield
    registry.ATTACKS.clear()
    registry.ATTACKS.update(before)


def card(name: str, **how: object) -> Card:
    return dataclasses.replace(
        Card(name=name, title="t", paper="p", access=sp.Access.LABELS, spaces=("linf",)),
        **how,
    )


def test_names_aliases_and_their_spellings() -> None:
    assert attack_class("pgd") is sp.PGD
    assert attack_class("PGD") is sp.PGD
    assert attack_class("i-fgsm") is attack_class("I_FGSM") is sp.PGD


def test_a_wrong_name_gets_close_matches() -> None:
    with pytest.raises(UnknownNameError, match="pgd") as caught:
        attack_class("pdg")
    assert "sparring attacks" in str(caught.value)
    assert isinstance(caught.value, KeyError)


def test_an_attack_from_a_name_and_parameters() -> None:
    assert make_attack("pgd", steps=3) == sp.PGD(steps=3)
    ready = sp.PGD(steps=7)
    assert make_attack(ready) is ready
    with pytest.raises(UnknownNameError, match="steps"):
        make_attack("pgd", step=3)


def test_cards_are_listed_once_each_by_name() -> None:
    names = [c.name for c in attack_cards()]
    assert names == sorted(set(names))
    assert {"pgd", "bim", "fgsm"} <= set(names)


def test_two_methods_with_one_name_are_refused() -> None:
    with pytest.raises(SparringError, match="'pgd'"):

        @attack(card("pgd"))
        class Mine:
            pass

    with pytest.raises(SparringError, match="'fgsm'"):

        @attack(card("mine", aliases=("fgsm",)))
        class Other:
            pass


def test_registering_the_same_class_again_is_no_clash() -> None:
    attack(sp.PGD.card)(sp.PGD)
    assert attack_class("pgd") is sp.PGD


def test_a_new_attack_is_found_by_its_name() -> None:
    @attack(card("mine", aliases=("my-own",)))
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(sp.Attack):
        strength: int = 1

    assert attack_class("my_own") is Mine
    assert make_attack("mine", strength=4).strength == 4
    assert Mine.card in attack_cards()


@pytest.mark.parametrize("name", [c.name for c in attack_cards()])
def test_every_attack_is_a_frozen_dataclass_of_eight_keywords_at_most_with_a_full_card(name: str) -> None:
    cls = attack_class(name)
    assert issubclass(cls, sp.Attack)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    fields = dataclasses.fields(cls)
    assert len(fields) <= 8
    assert all(f.kw_only for f in fields)
    cls()  # every parameter has a default
    told = cls.card
    assert name == name.lower()
    assert told.title
    assert told.paper
    assert told.cost
    assert told.caveats
    assert told.spaces
    assert set(told.goals) <= {"untargeted", "targeted"}
    assert told.goals
    assert set(told.floor) <= set(told.spaces)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"steps": "many"}, "'many'; a whole number is needed"),
        ({"steps": 0.5}, "a whole number is needed"),
        ({"step_size": "abc"}, "a number is needed"),
        ({"steps": None}, "a whole number is needed"),
        ({"steps": True}, "a whole number is needed"),
    ],
)
def test_parameters_of_the_wrong_kind_are_refused(params: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make_attack("pgd", **params)


def test_parameters_that_fit_are_taken() -> None:
    assert make_attack("pgd", steps=3, step_size=None).step_size is None
    assert make_attack("pgd", step_size=1).step_size == 1
    assert make_attack("pgd", loss="dlr", random_start=False).loss == "dlr"
