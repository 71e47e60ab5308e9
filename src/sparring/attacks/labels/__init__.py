"""Attacks that see labels alone; they reach the victim through the oracle, and every query is counted."""

from sparring.attacks.labels.boundary import Boundary
from sparring.attacks.labels.evadehc import EvadeHC
from sparring.attacks.labels.geoda import GeoDA
from sparring.attacks.labels.hopskipjump import HopSkipJump
from sparring.attacks.labels.lines import Blur, Contrast, SaltAndPepper
from sparring.attacks.labels.morphs import Morphs
from sparring.attacks.labels.pointwise import Pointwise
from sparring.attacks.labels.rays import RayS
from sparring.attacks.labels.sign_opt import SignOPT
from sparring.attacks.labels.surfree import SurFree

__all__ = [
    "Blur",
    "Boundary",
    "Contrast",
    "EvadeHC",
    "GeoDA",
    "HopSkipJump",
    "Morphs",
    "Pointwise",
    "RayS",
    "SaltAndPepper",
    "SignOPT",
    "SurFree",
]
