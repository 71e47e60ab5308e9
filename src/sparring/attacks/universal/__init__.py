"""One for all: artifacts that are fitted once and then change any input without asking the victim."""

from sparring.attacks.universal.advgan import AdvGAN
from sparring.attacks.universal.artifact import Artifact
from sparring.attacks.universal.perturbation import Universal

__all__ = ["AdvGAN", "Artifact", "Universal"]
