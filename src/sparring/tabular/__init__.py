"""Tables and the tree ensembles that read them: trees of any library as victims, and the searches that suit them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparring.tabular.coordinate_search import CoordinateSearch
from sparring.tabular.ensemble import TreeEnsemble
from sparring.tabular.importers import from_sklearn, from_xgboost_json
from sparring.tabular.tree_milp import TreeMILP
from sparring.tabular.victims import TreeVictim

if TYPE_CHECKING:
    from sparring.tabular.kantchelian import Minimal, minimal_change

__all__ = [
    "CoordinateSearch",
    "Minimal",
    "TreeEnsemble",
    "TreeMILP",
    "TreeVictim",
    "from_sklearn",
    "from_xgboost_json",
    "minimal_change",
]


def __getattr__(name: str) -> Any:
    """The solver's names, imported when they are first used: scipy.optimize takes longer than all the rest."""
    if name in ("Minimal", "minimal_change"):
        from sparring.tabular import kantchelian

        return getattr(kantchelian, name)
    raise AttributeError(f"module 'sparring.tabular' has no attribute {name!r}")
