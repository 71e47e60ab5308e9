"""Attacks that see labels alone; they reach the victim through the oracle, and every query is counted."""

from sparring.attacks.labels.boundary import Boundary
from sparring.attacks.labels.hopskipjump import HopSkipJump
from sparring.attacks.labels.lines import Blur, Contrast, SaltAndPepper
from sparring.attacks.labels.pointwise import Pointwise
from sparring.attacks.labels.rays import RayS
from sparring.attacks.labels.sign_opt import SignOPT

__all__ = ["Blur", "Boundary", "Contrast", "HopSkipJump", "Pointwise", "RayS", "SaltAndPepper", "SignOPT"]
