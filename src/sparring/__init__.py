"""sparring: attack, defend and audit machine-learning models.

Example:
    >>> import sparring as sp
    >>> victim = sp.load("digits")
    >>> x, y = sp.data.load_digits("test")
    >>> result = sp.PGD(steps=10)(victim, x[:8], y[:8], sp.Linf(0.2))
    >>> len(result.outcomes)
    8
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparring._version import __version__

if TYPE_CHECKING:  # what editors and type checkers see; at run time every name is fetched when it is first used
    from sparring import attacks as attacks
    from sparring import data as data
    from sparring import victims as victims
    from sparring.attacks import FGSM as FGSM
    from sparring.attacks import PGD as PGD
    from sparring.attacks import DeepFool as DeepFool
    from sparring.core.attack import Attack as Attack
    from sparring.core.balls import L0 as L0
    from sparring.core.balls import L1 as L1
    from sparring.core.balls import L2 as L2
    from sparring.core.balls import Linf as Linf
    from sparring.core.errors import SparringError as SparringError
    from sparring.core.network import Victim as Victim
    from sparring.core.registry import Card as Card
    from sparring.core.result import AttackResult as AttackResult
    from sparring.core.result import Outcome as Outcome
    from sparring.core.threat import Access as Access
    from sparring.core.threat import Knowledge as Knowledge
    from sparring.core.threat import Predicate as Predicate
    from sparring.core.threat import Targeted as Targeted
    from sparring.core.threat import ThreatModel as ThreatModel
    from sparring.core.threat import Untargeted as Untargeted
    from sparring.core.victim import BlackBox as BlackBox
    from sparring.core.victim import Traits as Traits
    from sparring.evaluation import audit as audit
    from sparring.see import attack as attack
    from sparring.see import classify as classify
    from sparring.victims import load as load

# Where each public name lives. Nothing heavy is imported before a name of it is used: `import sparring` takes no torch.
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
    "audit": "sparring.evaluation",
    "classify": "sparring.see",
    "load": "sparring.victims",
}
# Rooms that people reach by attribute: sp.attacks.BIM, sp.data.load_digits.
_ROOMS = ("attacks", "data", "victims")

__all__ = [
    "FGSM",
    "L0",
    "L1",
    "L2",
    "PGD",
    "Access",
    "Attack",
    "AttackResult",
    "BlackBox",
    "Card",
    "DeepFool",
    "Knowledge",
    "Linf",
    "Outcome",
    "Predicate",
    "SparringError",
    "Targeted",
    "ThreatModel",
    "Traits",
    "Untargeted",
    "Victim",
    "__version__",
    "attack",
    "audit",
    "classify",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"sparring.{name}")
    raise AttributeError(f"module 'sparring' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
