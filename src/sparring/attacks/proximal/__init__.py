"""Minimum-norm attacks that treat the goal as a constraint: proximal operators and augmented Lagrangians."""

from sparring.attacks.proximal.alma import ALMA
from sparring.attacks.proximal.pdpgd import PDPGD

__all__ = ["ALMA", "PDPGD"]
