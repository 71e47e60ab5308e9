"""The Mahalanobis detector: how far an input's features lie from every class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.defences.detectors.base import Detector
from sparring.defences.detectors.features import PENULTIMATE, distances, features
from sparring.defences.inputs.base import above


@defence(
    Card(
        name="mahalanobis",
        title="Mahalanobis distance of the features to the nearest class",
        paper="Lee, Lee, Lee and Shin 2018, A Simple Unified Framework for Detecting Out-of-Distribution Samples and "
        "Adversarial Attacks, arXiv:1807.03888",
        access=Access.GRADIENTS,
        spaces=("linf", "l2"),
        cost="one forward and k d^2 operations",
        caveats="Differentiable throughout: the joint attack brings the features near another class's mean. The paper's "
        "input preprocessing and its regression over layers are left out.",
    )
)
@dataclass(kw_only=True, eq=False)
class Mahalanobis(Detector):
    """score(x) = min_c (h(x) - m_c)^T S^-1 (h(x) - m_c), with one covariance S for all classes.

    Args:
        layer: whose features h are read; "penultimate" is the input of the last linear layer.
        ridge: added to the diagonal of S, over its mean.
    """

    layer: str = PENULTIMATE
    ridge: float = 1e-3

    def check(self) -> None:
        """A positive ridge."""
        above(self.ridge, "ridge", 0.0)

    def learn(self, x: Tensor, y: Tensor, adversarial: Tensor | None) -> None:
        """Class means and the shared covariance."""
        victim = self._reader()
        with torch.no_grad():
            parts = [features(victim, part.to(victim.device), (self.layer,))[0] for part in x.split(256)]
        h, labels = torch.cat(parts).double(), y.to(parts[0].device)
        classes = labels.unique()
        means = torch.stack([h[labels == c].mean(0) for c in classes])
        rest = h - means[torch.searchsorted(classes, labels)]
        covariance = rest.T @ rest / len(h)
        ridge = self.ridge * covariance.diagonal().mean() * torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
        factor = torch.linalg.inv(torch.linalg.cholesky(covariance + ridge))
        self.register_buffer("means", means.float())
        self.register_buffer("whitening", factor.float())

    def score(self, x: Tensor) -> Tensor:
        """The squared distance to the nearest class, (n,)."""
        h = features(self._reader(), x, (self.layer,))[0]
        means, factor = self.get_buffer("means"), self.get_buffer("whitening")
        return distances(h @ factor.T, means @ factor.T).square().amin(1)
