"""Defences at the input: modules from raw inputs to raw inputs, put in front of a network in any order."""

from sparring.defences.inputs.autoencoder import Autoencoder, Reformer, train_autoencoder
from sparring.defences.inputs.base import InputDefence, Learned
from sparring.defences.inputs.diffusion import DiffusionPurifier, linear_betas, train_noise_predictor
from sparring.defences.inputs.generative import DefenseGAN, search_latent, train_generator
from sparring.defences.inputs.guided import HGD, train_hgd
from sparring.defences.inputs.jpeg import JPEG, differentiable_jpeg
from sparring.defences.inputs.levels import BitDepth, Threshold
from sparring.defences.inputs.networks import Generator, UNet
from sparring.defences.inputs.resizing import ResizePad
from sparring.defences.inputs.smoothing import Median, NonLocalMeans, TotalVariation

__all__ = [
    "HGD",
    "JPEG",
    "Autoencoder",
    "BitDepth",
    "DefenseGAN",
    "DiffusionPurifier",
    "Generator",
    "InputDefence",
    "Learned",
    "Median",
    "NonLocalMeans",
    "Reformer",
    "ResizePad",
    "Threshold",
    "TotalVariation",
    "UNet",
    "differentiable_jpeg",
    "linear_betas",
    "search_latent",
    "train_autoencoder",
    "train_generator",
    "train_hgd",
    "train_noise_predictor",
]
