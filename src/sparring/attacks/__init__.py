"""Floor 1: one method per file; importing this room registers them all."""

from sparring.attacks.gradient import (
    APGD,
    APGDT,
    BIM,
    DIFGSM,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SIFGSM,
    SINIFGSM,
    TIFGSM,
    VMIFGSM,
    VNIFGSM,
    InputOptimisation,
)
from sparring.attacks.labels import Blur, Boundary, Contrast, HopSkipJump, Pointwise, RayS, SaltAndPepper, SignOPT
from sparring.attacks.minimum_norm import CW, DDN, FMN, DeepFool
from sparring.attacks.noise import GaussianNoise, UniformNoise
from sparring.attacks.query import Square
from sparring.attacks.semantic import Negative

__all__ = [
    "APGD",
    "APGDT",
    "BIM",
    "CW",
    "DDN",
    "DIFGSM",
    "FGSM",
    "FMN",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "SIFGSM",
    "SINIFGSM",
    "TIFGSM",
    "VMIFGSM",
    "VNIFGSM",
    "Blur",
    "Boundary",
    "Contrast",
    "DeepFool",
    "GaussianNoise",
    "HopSkipJump",
    "InputOptimisation",
    "Negative",
    "Pointwise",
    "RayS",
    "SaltAndPepper",
    "SignOPT",
    "Square",
    "UniformNoise",
]
