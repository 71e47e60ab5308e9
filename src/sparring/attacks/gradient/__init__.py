"""Attacks that climb the victim's input gradient inside a ball."""

from sparring.attacks.gradient.apgd import ACG, APGD, APGDT
from sparring.attacks.gradient.input_optimisation import InputOptimisation
from sparring.attacks.gradient.momentum import DIFGSM, MIFGSM, NIFGSM, SIFGSM, SINIFGSM, TIFGSM
from sparring.attacks.gradient.pgd import BIM, FGSM, PGD
from sparring.attacks.gradient.variance import VMIFGSM, VNIFGSM

__all__ = [
    "ACG",
    "APGD",
    "APGDT",
    "BIM",
    "DIFGSM",
    "FGSM",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "SIFGSM",
    "SINIFGSM",
    "TIFGSM",
    "VMIFGSM",
    "VNIFGSM",
    "InputOptimisation",
]
