"""Floor 1: one method per file; importing this room registers them all."""

from sparring.attacks.gradient.input_optimisation import InputOptimisation
from sparring.attacks.gradient.pgd import BIM, FGSM, PGD
from sparring.attacks.minimum_norm.deepfool import DeepFool
from sparring.attacks.noise import GaussianNoise, UniformNoise
from sparring.attacks.semantic import Negative

__all__ = [
    "BIM",
    "FGSM",
    "PGD",
    "DeepFool",
    "GaussianNoise",
    "InputOptimisation",
    "Negative",
    "UniformNoise",
]
