"""Attacks that seek the smallest change that works."""

from sparring.attacks.minimum_norm.cw import CW
from sparring.attacks.minimum_norm.ddn import DDN
from sparring.attacks.minimum_norm.deepfool import DeepFool
from sparring.attacks.minimum_norm.fab import FAB
from sparring.attacks.minimum_norm.fmn import FMN

__all__ = ["CW", "DDN", "FAB", "FMN", "DeepFool"]
