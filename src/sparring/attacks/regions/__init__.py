"""Attacks that search the linear regions of a ReLU network by mathematical programming."""

from sparring.attacks.regions.linear_regions import LinearRegions

__all__ = ["LinearRegions"]
