"""sparring: attack, defend and audit machine-learning models.

>>> import sparring as sp
>>> victim = sp.load("digits")
"""

from __future__ import annotations

import importlib
from typing import Any

from sparring._version import __version__

# Every public name and the module it comes from. Nothing heavy is imported until a name is used.
_PUBLIC = {
    "Access": "sparring.core.threat",
    "Attack": "sparring.core.attack",
    "AttackResult": "sparring.core.result",
    "BlackBox": "sparring.core.victim",
    "Card": "sparring.core.registry",
    "DeepFool": "sparring.attacks",
    "FGSM": "sparring.attacks",
    "Knowledge": "sparring.core.threat",
    "L0": "sparring.core.balls",
    "L1": "sparring.core.balls",
    "L2": "sparring.core.balls",
    "Linf": "sparring.core.balls",
    "Outcome": "sparring.core.result",
    "PGD": "sparring.attacks",
    "Predicate": "sparring.core.threat",
    "SparringError": "sparring.core.errors",
    "Targeted": "sparring.core.threat",
    "ThreatModel": "sparring.core.threat",
    "Traits": "sparring.core.victim",
    "Untargeted": "sparring.core.threat",
    "Victim": "sparring.core.network",
    "attack": "sparring.see",
    "classify": "sparring.see",
    "load": "sparring.victims",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name == "attacks":
        return importlib.import_module("sparring.attacks")
    raise AttributeError(f"module 'sparring' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "attacks"})
