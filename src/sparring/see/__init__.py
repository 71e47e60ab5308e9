"""The room to see with: classify or attack one picture in one call, and look at the answer."""

from __future__ import annotations

from sparring.see.classification import Classification
from sparring.see.facade import attack, classify
from sparring.see.radii import default_eps
from sparring.see.shown import Saved, Shown
from sparring.see.viewer import Viewer

__all__ = ["Classification", "Saved", "Shown", "Viewer", "attack", "classify", "default_eps"]
