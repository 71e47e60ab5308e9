"""Attacks without access: substitutes trained on labels, and how far what is crafted on one victim carries to others.

The transfer attack itself is any gradient attack of the catalogue under `ThreatModel(..., access="nothing",
knowledge=Knowledge(surrogates=(...)))`; input transforms (`mi-fgsm`, `di-fgsm`, `ti-fgsm`) carry further.
"""

from sparring.attacks.transfer.matrix import TransferMatrix, transfer_matrix
from sparring.attacks.transfer.substitute import Substitute, train_substitute

__all__ = ["Substitute", "TransferMatrix", "train_substitute", "transfer_matrix"]
