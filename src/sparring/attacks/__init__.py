"""Floor 1: one method per file; importing this room registers them all."""

from sparring.attacks.gradient.pgd import BIM, FGSM, PGD

__all__ = ["BIM", "FGSM", "PGD"]
