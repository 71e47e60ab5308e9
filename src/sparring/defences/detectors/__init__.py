"""Detectors: they accept or reject an input, and are attacked together with the network that they guard."""

from sparring.defences.detectors.base import ROC, Detector
from sparring.defences.detectors.features import features
from sparring.defences.detectors.joint import JointPGD, has_slope
from sparring.defences.detectors.learned import LearnedDetector
from sparring.defences.detectors.lid import LID
from sparring.defences.detectors.magnet import AnswerDivergence, ReconstructionError
from sparring.defences.detectors.mahalanobis import Mahalanobis
from sparring.defences.detectors.squeezing import FeatureSqueezing
from sparring.defences.detectors.union import Union

__all__ = [
    "LID",
    "ROC",
    "AnswerDivergence",
    "Detector",
    "FeatureSqueezing",
    "JointPGD",
    "LearnedDetector",
    "Mahalanobis",
    "ReconstructionError",
    "Union",
    "features",
    "has_slope",
]
