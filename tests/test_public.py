"""The public face: a sorted list of names, each there and explained, and nothing heavy until one is used."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import types

import pytest

import sparring as sp

HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "sklearn",
    "PIL",
    "matplotlib",
    "safetensors",
    "transformers",
    "rich",
    "typer",
    "jinja2",
)


def in_a_fresh_interpreter(code: str) -> object:
    """What `code` prints as JSON, in an interpreter that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_the_names_are_sorted_and_few() -> None:
    rank = {name: 0 if name.isupper() else 1 if name[0].isupper() else 2 for name in sp.__all__}
    assert list(sp.__all__) == sorted(sp.__all__, key=lambda name: (rank[name], name))  # as the linter sorts them
    assert len(set(sp.__all__)) == len(sp.__all__)
    assert len(sp.__all__) <= 30
    assert set(sp.__all__) <= set(dir(sp))


@pytest.mark.parametrize("name", sp.__all__)
def test_every_name_is_there_and_explained(name: str) -> None:
    value = getattr(sp, name)
    if name == "__version__":
        assert value.count(".") == 2
        return
    assert value.__module__.startswith("sparring.")
    assert inspect.getdoc(value)
    if not inspect.isclass(value):
        return
    for member, what in inspect.getmembers(value):
        if member.startswith("_") or not (inspect.isroutine(what) or isinstance(what, property)):
            continue
        home = next((c for c in value.__mro__ if member in vars(c)), value)
        if home.__module__.startswith("sparring."):
            assert inspect.getdoc(what), f"{name}.{member} has no docstring"


def test_no_subpackage_shares_the_name_of_a_public_function() -> None:
    for name in sp.__all__:
        if not isinstance(getattr(sp, name), type) and name != "__version__":
            assert importlib.util.find_spec(f"sparring.{name}") is None


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'sparring' has no attribute 'PDG'"):
        _ = sp.PDG


def test_the_rooms_say_what_they_export() -> None:
    assert isinstance(sp.attacks, types.ModuleType)
    for name in sp.attacks.__all__:
        assert inspect.getdoc(getattr(sp.attacks, name))
    for name in set(sp.__all__) & set(sp.attacks.__all__):
        assert getattr(sp, name) is getattr(sp.attacks, name)


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = in_a_fresh_interpreter(
        "import json, sys, sparring; dir(sparring); sparring.__version__;"
        f"print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    )
    assert loaded == []


def test_importing_an_attack_imports_no_plots_no_trees_and_no_shell() -> None:
    loaded = in_a_fresh_interpreter(
        "import json, sys, sparring; sparring.PGD, sparring.Victim, sparring.Linf;"
        f"print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    )
    assert set(loaded) <= {"torch", "numpy"}


def test_importing_the_package_leaves_the_random_state_and_the_threads_alone() -> None:
    same = in_a_fresh_interpreter(
        "import json, torch; state, threads = torch.random.get_rng_state(), torch.get_num_threads();"
        "import sparring; sparring.PGD; sparring.attacks;"
        "print(json.dumps([bool((torch.random.get_rng_state() == state).all()), torch.get_num_threads() == threads]))"
    )
    assert same == [True, True]
