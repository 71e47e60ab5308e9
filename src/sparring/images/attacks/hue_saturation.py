"""Hue and saturation: random turns of the colour circle, with shifts of saturation that grow from try to try."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access
from sparring.images.attacks.rotation_translation import Posed, ask_all


@attack(
    Card(
        name="hue-saturation",
        title="Semantic adversarial examples: other hues and saturations, the same brightness",
        paper="Hosseini and Poovendran 2018, Semantic Adversarial Examples, arXiv:1804.00499",
        access=Access.LABELS,
        spaces=("hue_saturation",),
        cost="tries queries at most",
        domains=("image",),
        caveats="A person sees a green tomato: the shape is kept, and where colour is the class the label may not be. "
        "The value channel is kept, which is not the brightness that people see.",
        floor={},
    )
)
@dataclass(frozen=True, kw_only=True)
class HueSaturationSearch(Attack):
    """Try i of N turns the hue by any legal amount and shifts the saturation by up to i/N of the legal amount.

    Args:
        tries: random draws for each sample, N.
        at_once: candidates of a sample that are asked in one go; a success among them costs them all.
    """

    tries: int = 1000
    at_once: int = 5

    def search(self, run: Run) -> None:
        """Ask about one handful after the other."""
        if self.tries < 1 or self.at_once < 1:
            raise InputError(f"{self} needs tries and at_once of at least 1")
        theta = run.rng.uniform((self.tries, 2), ("colours", run.restart), -1.0, 1.0).to(run.x) * run.space.reach(run.x)
        theta[:, :, 1] *= torch.arange(1, self.tries + 1, device=theta.device) / self.tries
        s = run.begin(Posed(run.x, theta))
        for t in run.steps(math.ceil(self.tries / self.at_once)):
            ask_all(run, run.space, s.theta[:, t * self.at_once : (t + 1) * self.at_once])
