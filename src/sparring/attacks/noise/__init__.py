"""Attacks that do not look where they go: random noise, the baseline that every other attack must beat."""

from sparring.attacks.noise.additive import GaussianNoise, UniformNoise

__all__ = ["GaussianNoise", "UniformNoise"]
