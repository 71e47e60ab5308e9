"""The room to see with: classify or attack one picture in one call, look at the answer, and at what lies behind it."""

from __future__ import annotations

from sparring.see.classification import Classification
from sparring.see.curves import curve_figure
from sparring.see.decision_map import DecisionMap, decision_map
from sparring.see.facade import attack, classify
from sparring.see.radii import default_eps
from sparring.see.saliency import Saliency, saliency
from sparring.see.shown import Saved, Shown
from sparring.see.viewer import Viewer

__all__ = [
    "Classification",
    "DecisionMap",
    "Saliency",
    "Saved",
    "Shown",
    "Viewer",
    "attack",
    "classify",
    "curve_figure",
    "decision_map",
    "default_eps",
    "saliency",
]
