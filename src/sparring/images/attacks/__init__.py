"""Attacks on pictures that no norm bounds: geometry, colour, common corruptions. Importing this room registers them."""

from sparring.images.attacks.corruption_search import CorruptionSearch
from sparring.images.attacks.hue_saturation import HueSaturationSearch
from sparring.images.attacks.recolor import ReColorAdv
from sparring.images.attacks.rotation_translation import RotationTranslation, RotationTranslationFO
from sparring.images.attacks.stadv import StAdv

__all__ = [
    "CorruptionSearch",
    "HueSaturationSearch",
    "ReColorAdv",
    "RotationTranslation",
    "RotationTranslationFO",
    "StAdv",
]
