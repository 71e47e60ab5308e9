"""Attacks that seek the smallest change that works."""

from sparring.attacks.minimum_norm.brendel_bethge import BrendelBethge
from sparring.attacks.minimum_norm.cw import CW
from sparring.attacks.minimum_norm.ddn import DDN
from sparring.attacks.minimum_norm.deepfool import DeepFool
from sparring.attacks.minimum_norm.ead import EAD
from sparring.attacks.minimum_norm.fab import FAB
from sparring.attacks.minimum_norm.fmn import FMN
from sparring.attacks.minimum_norm.lbfgs import LBFGS
from sparring.attacks.minimum_norm.newtonfool import NewtonFool
from sparring.attacks.minimum_norm.superdeepfool import SuperDeepFool

__all__ = [
    "CW",
    "DDN",
    "EAD",
    "FAB",
    "FMN",
    "LBFGS",
    "BrendelBethge",
    "DeepFool",
    "NewtonFool",
    "SuperDeepFool",
]
