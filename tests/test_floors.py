"""The floors: a room imports from floors below alone, found by reading every import, inside functions as well."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sparring"
FLOORS = [
    {"core"},
    {"attacks"},
    {"images", "text", "tabular", "graphs", "audio", "policies", "poisoning", "victims", "data"},
    {"see", "defences"},
    {"evaluation"},
    {"report", "testing"},
    {"cli", "web"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Importable by everyone, and the doors, which open every room.
GROUND = {"_version"}
DOORS = {"__init__", "__main__"}
FILES = sorted(SOURCE.rglob("*.py"))
# What the ground floor may stand on, beside the standard library.
CORE_STANDS_ON = {"torch", "numpy", "safetensors"}
# Look-ups upwards by name, which the design asks for; an import statement upwards is never one.
LOOKED_UP = {
    ("evaluation", "import_module('sparring.report')"),  # audit.report(path)
    ("victims", "import_module('sparring.defences')"),  # load("model.defended")
}


def room_of(path: Path) -> str:
    """The room that a file belongs to: its folder below the package, or its own name."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module or name that a file imports, by statement or by `import_module("...")`."""
    package = ["sparring", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and isinstance(node.args[0], ast.Constant)  # a name in a variable cannot be read
        ):
            yield node.lineno, f"import_module({node.args[0].value!r})"


def breaches(path: Path) -> list[str]:
    """What a file imports against the floors, one line each."""
    room = room_of(path)
    if room in DOORS:
        return []
    found = []
    for line, name in imports(path):
        parts = name.removeprefix("import_module('").removesuffix("')").split(".")
        if parts[0] != "sparring" or (room, name) in LOOKED_UP:
            continue
        other = parts[1] if len(parts) > 1 else "__init__"
        where = f"{path.relative_to(SOURCE.parent)}:{line}"
        if other in GROUND or other == room:
            continue
        if other not in FLOOR:  # the package's own face, which opens rooms of several floors: for the top floor alone
            if FLOOR[room] < len(FLOORS) - 1:
                found.append(f"{where}: {room} imports {name} from the package itself; import it from its room")
        elif FLOOR[other] >= FLOOR[room]:
            found.append(f"{where}: {room} (floor {FLOOR[room]}) imports {name} (floor {FLOOR[other]})")
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in FILES} - DOORS - GROUND
    assert "core" in rooms
    assert not rooms - set(FLOOR), "a new room: say its floor here and in the design"


@pytest.mark.parametrize("room", sorted({room_of(path) for path in FILES} & set(FLOOR)))
def test_rooms_import_from_floors_below(room: str) -> None:
    found = [breach for path in FILES if room_of(path) == room for breach in breaches(path)]
    assert not found, "\n" + "\n".join(found)


def test_the_core_stands_on_torch_and_numpy() -> None:
    found = []
    for path in FILES:
        if room_of(path) != "core":
            continue
        for line, name in imports(path):
            top = name.split(".")[0]
            if top not in CORE_STANDS_ON | set(sys.stdlib_module_names) | {"sparring"}:
                found.append(f"{path.name}:{line}: {name}")
    assert not found


def test_peer_bug_10_an_assert_on_a_users_input() -> None:
    found = []
    for path in FILES:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found += [f"{path.relative_to(SOURCE)}:{node.lineno}" for node in nodes if isinstance(node, ast.Assert)]
    assert not found, "a user's mistake is an error from sparring.core.errors, which python -O keeps"


def test_the_reader_sees_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader itself: statements, relative forms, imports inside functions, behind TYPE_CHECKING, and by name."""
    core = tmp_path / "core" / "inner"
    core.mkdir(parents=True)
    file = core / "mine.py"
    file.write_text(
        "import sparring.attacks\n"
        "from ..runner import Run\n"
        "from ...text import words\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from sparring.images import files\n"
        "def lazy():\n    from sparring import tabular\n    importlib.import_module('sparring.see')\n"
        "from sparring import PGD\n"
    )
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    assert [(line, name) for line, name in imports(file) if "sparring" in name] == [
        (1, "sparring.attacks"),
        (2, "sparring.core.runner.Run"),
        (3, "sparring.text.words"),
        (10, "sparring.PGD"),
        (6, "sparring.images.files"),
        (8, "sparring.tabular"),
        (9, "import_module('sparring.see')"),
    ]
    assert len(breaches(file)) == 6


def test_every_module_of_the_core_can_be_imported_first() -> None:
    """A cycle that only one order of imports survives would show here."""
    modules = [f"sparring.core.{path.stem}" for path in (SOURCE / "core").glob("[!_]*.py")]
    code = (
        "import importlib, sys, torch\n"
        f"for module in {[*modules, 'sparring.attacks']}:\n"
        "    for name in [m for m in sys.modules if m.split('.')[0] == 'sparring']: del sys.modules[name]\n"
        "    importlib.import_module(module)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
