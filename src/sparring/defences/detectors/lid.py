"""Local intrinsic dimensionality: how fast neighbours become many around an input's features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.core.errors import InputError
from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.defences.detectors.base import Detector
from sparring.defences.detectors.features import PENULTIMATE, distances, features
from sparring.defences.inputs.base import whole


@defence(
    Card(
        name="lid",
        title="Local intrinsic dimensionality of the features",
        paper="Ma et al. 2018, Characterizing Adversarial Subspaces Using Local Intrinsic Dimensionality, "
        "arXiv:1801.02613",
        access=Access.GRADIENTS,
        spaces=("linf", "l2"),
        cost="one forward and the distances to `reference` stored inputs, layer by layer",
        caveats="Adversarial inputs of high confidence pass it unaware (Athalye et al. 2018, arXiv:1802.00420).",
    )
)
@dataclass(kw_only=True, eq=False)
class LID(Detector):
    """score(x) = w . LID(x) + b over layers, LID = -(mean over i <= k of log(r_i / r_k))^-1, r_i the distance to the
    i-th nearest of a stored set of clean features.

    With adversarial inputs at `fit`, w and b are those of a logistic regression; without, the layers' LIDs are added.

    Args:
        layers: whose features are read.
        neighbours: k.
        reference: clean inputs that are stored.
    """

    layers: tuple[str, ...] = (PENULTIMATE,)
    neighbours: int = 20
    reference: int = 500

    def check(self) -> None:
        """At least two neighbours, and more references than neighbours."""
        whole(self.neighbours, "neighbours", 2)
        whole(self.reference, "reference", self.neighbours + 2)

    def learn(self, x: Tensor, y: Tensor, adversarial: Tensor | None) -> None:
        """Store features, and weigh the layers."""
        victim = self._reader()
        if len(x) <= self.neighbours + 1:
            raise InputError(f"{len(x)} clean inputs came; more than neighbours + 1 = {self.neighbours + 1} are needed")
        with torch.no_grad():
            stored = features(victim, x[: self.reference].to(victim.device), self.layers)
        for number, h in enumerate(stored):
            self.register_buffer(f"stored{number}", h.clone())
        count = len(self.layers)
        weight, bias = torch.ones(count), torch.zeros(())
        if adversarial is not None:
            from sklearn.linear_model import LogisticRegression

            with torch.no_grad():
                rows = [torch.cat([self._lids(p.to(victim.device)) for p in z.split(256)]) for z in (x, adversarial)]
            target = torch.cat([torch.zeros(len(x)), torch.ones(len(adversarial))])
            model = LogisticRegression(class_weight="balanced").fit(torch.cat(rows).cpu().numpy(), target.numpy())
            weight, bias = torch.as_tensor(model.coef_[0]).float(), torch.as_tensor(model.intercept_[0]).float()
        self.register_buffer("weight", weight.to(victim.device))
        self.register_buffer("bias", bias.to(victim.device))

    def score(self, x: Tensor) -> Tensor:
        """The weighted dimensionalities, (n,)."""
        return self._lids(x) @ self.get_buffer("weight") + self.get_buffer("bias")

    def _lids(self, x: Tensor) -> Tensor:
        """One dimensionality per layer, (n, layers)."""
        found = []
        for number, h in enumerate(features(self._reader(), x, self.layers)):
            stored = self.get_buffer(f"stored{number}")
            near = distances(h, stored).topk(self.neighbours + 1, dim=1, largest=False).values
            # a stored input meets itself at distance 0: that neighbour is no neighbour
            itself = (near[:, :1] < 1e-6 * (1 + h.detach().norm(dim=1, keepdim=True))).to(near.dtype)
            r = near[:, :-1] * (1 - itself) + near[:, 1:] * itself
            found.append(-1 / (torch.log(r / r[:, -1:] + 1e-12).mean(1) - 1e-12))
        return torch.stack(found, 1)
