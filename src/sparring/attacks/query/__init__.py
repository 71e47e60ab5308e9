"""Attacks that ask the victim: for class scores here, for labels alone beside them."""

from sparring.attacks.query.bandits import Bandits
from sparring.attacks.query.evolution import Evolution
from sparring.attacks.query.genattack import GenAttack
from sparring.attacks.query.nes import NES
from sparring.attacks.query.one_pixel import OnePixel
from sparring.attacks.query.simba import SimBA
from sparring.attacks.query.sparse_rs import SparseRS
from sparring.attacks.query.spsa import SPSA
from sparring.attacks.query.square import Square
from sparring.attacks.query.zoo import ZOO

__all__ = [
    "NES",
    "SPSA",
    "ZOO",
    "Bandits",
    "Evolution",
    "GenAttack",
    "OnePixel",
    "SimBA",
    "SparseRS",
    "Square",
]
