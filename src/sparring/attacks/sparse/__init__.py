"""Attacks that change few features: saliency maps, folded Gaussian votes, and a smooth count of the changes."""

from sparring.attacks.sparse.jsma import JSMA
from sparring.attacks.sparse.sigma_zero import SigmaZero
from sparring.attacks.sparse.vfga import VFGA

__all__ = ["JSMA", "VFGA", "SigmaZero"]
