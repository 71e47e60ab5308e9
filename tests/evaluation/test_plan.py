"""Plans: equal plans hash equally, survive TOML, and refuse what cannot be right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparring as sp
from sparring.core.errors import LoadError, ThreatError, UnknownNameError
from sparring.evaluation import AttackSpec, Plan, PlanError, Source, ThreatSpec, toml

PLAN = Plan(
    threat=ThreatSpec("linf", 8 / 255, lattice=256),
    attacks=(AttackSpec.of(sp.PGD(steps=7)), AttackSpec("pgd", (("loss", "margin"),), queries=3, eot=2)),
    curve=(AttackSpec("deepfool"), AttackSpec("pgd", eps=0.5)),
    victim=Source("net.safetensors@pkg:build", (("mean", (0.5, 0.25)), ("size", 32))),
    data=Source("digits", (("samples", 20),)),
    shard=64,
    seed=3,
    checks=False,
    preset="own",
    batch_size=32,
    claim=0.4,
)


def test_a_plan_survives_toml(tmp_path: Path) -> None:
    PLAN.to_toml(tmp_path / "plan.toml")
    read = Plan.from_toml(tmp_path / "plan.toml")
    assert read == PLAN
    assert read.digest == PLAN.digest
    assert (read.batch_size, read.claim, read.preset) == (32, 0.4, "own")
    assert hash(read) == hash(PLAN)


def test_how_it_runs_and_how_it_is_read_are_no_part_of_the_hash() -> None:
    other = replace(PLAN, batch_size=1, executor="ray", claim=0.9, confidence=0.5, preset="fast")
    assert other == PLAN
    assert other.digest == PLAN.digest


@pytest.mark.parametrize(
    "change",
    [
        {"shard": 65},
        {"seed": 4},
        {"checks": True},
        {"attacks": PLAN.attacks[:1]},
        {"attacks": PLAN.attacks[::-1]},
        {"curve": ()},
        {"threat": ThreatSpec("linf", 8 / 255)},
        {"data": Source("digits", (("samples", 21),))},
        {"victim": Source("digits")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_the_evidence_is_part_of_the_hash(change: dict[str, object]) -> None:
    other = replace(PLAN, **change)  # type: ignore[arg-type]
    assert other != PLAN
    assert other.digest != PLAN.digest


def test_steps_have_unique_labels_seeds_and_radii() -> None:
    steps = PLAN.steps
    assert [s.label for s in steps] == ["clean", "pgd", "pgd-2", "deepfool", "pgd-3"]
    assert [s.role for s in steps] == ["clean", "main", "main", "curve", "curve"]
    assert [s.seed for s in steps] == [3, 4, 5, 6, 7]
    assert [s.eps for s in steps] == [None, 8 / 255, 8 / 255, None, 0.5]


def test_an_attack_in_python_becomes_its_name_and_what_differs_from_the_defaults() -> None:
    spec = AttackSpec.of(sp.PGD(steps=7, restarts=1))
    assert spec == AttackSpec("pgd", (("steps", 7),))
    assert spec.build() == sp.PGD(steps=7)
    assert AttackSpec.of("i-fgsm").attack == "pgd"


def test_fractions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('[threat]\nnorm = "l2"\neps = "1/4"\n')
    assert Plan.from_toml(path).threat == ThreatSpec("l2", 0.25)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("[audit]\nvictm = 'digits'\n", UnknownNameError, "victim"),
        ("[tread]\n", UnknownNameError, "threat"),
        ("[threat]\nepsilon = 1\n", UnknownNameError, "eps"),
        ("[threat]\neps = 'much'\n", PlanError, "fraction"),
        ("[threat]\neps = -1\n", PlanError, ">= 0"),
        ("[threat]\nnorm = 'l3'\n", UnknownNameError, "l2"),
        ("[audit]\nshard = 0\n", PlanError, "shard"),
        ("[audit]\nclaim = 45\n", PlanError, "0.45"),
        ("[attack]\nname = 'pgd'\n", PlanError, r"\[\[attack\]\]"),
        ("[[attack]]\nname = 'pgdd'\n", UnknownNameError, "pgd"),
        ("[[attack]]\nname = 'pgd'\nsteps = 3\n", UnknownNameError, "params"),
        ("[[attack]]\nname = 'pgd'\nparams = {stepps = 3}\n", UnknownNameError, "steps"),
        ("[threat]\nnorm = 'linf'\n[[attack]]\nname = 'pgd'\n", PlanError, "no eps"),
        ("nonsense", LoadError, "plan.toml"),
    ],
)
def test_a_plan_that_cannot_be_right_is_refused(tmp_path: Path, text: str, error: type, says: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(error, match=says):
        Plan.from_toml(tmp_path / "plan.toml")


def test_threats_are_words_where_words_say_it_all() -> None:
    plain = sp.ThreatModel(sp.L2(0.5, lattice=256), sp.Targeted(3), access="scores", queries=100)
    spec = ThreatSpec.of(plain)
    assert spec == ThreatSpec("l2", 0.5, 256, 3, "scores", 100)
    again = spec.build()
    assert ThreatSpec.of(again) == spec
    odd = ThreatSpec.of(sp.ThreatModel(sp.Linf(0.1), sp.Predicate(lambda out, y: out.labels != y)))
    assert odd.norm == "object"
    with pytest.raises(ThreatError, match="pass it again"):
        odd.build()


text = st.text(alphabet=st.characters(blacklist_categories=("Cs",)), max_size=12)
scalar = text | st.integers(-(2**40), 2**40) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
table = st.dictionaries(
    text, scalar | st.lists(scalar, max_size=3) | st.dictionaries(text, scalar, max_size=2), max_size=4
)


@given(st.dictionaries(text, scalar | st.lists(table, min_size=1, max_size=2) | table, max_size=5))
def test_whatever_is_written_is_read_back(document: dict[str, object]) -> None:
    import tomllib

    assert tomllib.loads(toml.dump(document)) == document


@pytest.mark.parametrize("value", [float("nan"), object(), [object()]])
def test_what_toml_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(PlanError, match="cannot hold"):
        toml.dump({"a": value})
