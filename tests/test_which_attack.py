"""docs/which-attack.md says what the cards say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from sparring.core.registry import attack_class
from sparring.core.threat import Access

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("which_attack", ROOT / "scripts" / "which_attack.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_all_attacks_is_that_of_the_cards(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "run: python scripts/which_attack.py"


def test_every_recipe_works_with_what_it_says_one_has(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    rows = text.split("<!-- recipes -->")[1].split("<!-- end of recipes -->")[0].strip().splitlines()[2:]
    assert len(rows) >= 12
    for row in rows:
        has, norm, *recipes = (cell.strip() for cell in row.strip("|").split("|"))
        access = Access.GRADIENTS if has == "a small ReLU network" else Access.parse(has)
        for name in re.findall(r"`([a-z0-9-]+)`", " ".join(recipes)):
            card = attack_class(name).card
            assert norm in card.spaces, f"{name} does not search {norm}"
            assert card.access <= access or access is Access.NOTHING, f"{name} needs {card.access}"
