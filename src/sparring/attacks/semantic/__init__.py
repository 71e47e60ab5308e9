"""Attacks that change what a picture looks like and not what it shows."""

from sparring.attacks.semantic.negative import Negative

__all__ = ["Negative"]
