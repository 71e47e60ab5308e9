"""Training defences: losses of one batch, and the loop that minimises them."""

from sparring.defences.training.adversarial import Fast, Free, Mix, PGDTraining, StandardTraining
from sparring.defences.training.consistency import MART, TRADES
from sparring.defences.training.crafting import Crafter, Mixture
from sparring.defences.training.distillation import Distillation
from sparring.defences.training.fitting import Network, fit
from sparring.defences.training.method import Method
from sparring.defences.training.overfitting import Probe, probe
from sparring.defences.training.regularised import EntropyRegularised, Negatives
from sparring.defences.training.settings import Settings
from sparring.defences.training.telling import Epoch, EpochFinished, Training, TrainingProgress
from sparring.defences.training.weights import AWP

__all__ = [
    "AWP",
    "MART",
    "TRADES",
    "Crafter",
    "Distillation",
    "EntropyRegularised",
    "Epoch",
    "EpochFinished",
    "Fast",
    "Free",
    "Method",
    "Mix",
    "Mixture",
    "Negatives",
    "Network",
    "PGDTraining",
    "Probe",
    "Settings",
    "StandardTraining",
    "Training",
    "TrainingProgress",
    "fit",
    "probe",
]
