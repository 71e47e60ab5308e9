"""Spatially transformed examples: a flow of the pixels, smooth and small, found by its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import Adam, cosine, reached
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access
from sparring.images.warps import roughness

# The first radius where the space has none, in pixels: far more than an undefended victim needs.
WIDE = 4.0
# The size of pictures for which tau is stated.
TAU_PIXELS = 32 * 32


@dataclass
class Flowing:
    """The picture, its flow, (m, 2, h, w), the flow's moments, and the radius it is held to, (m,)."""

    x: Tensor
    flow: Tensor
    adam: Adam
    radius: Tensor


@attack(
    Card(
        name="stadv",
        title="Spatially transformed adversarial examples",
        paper="Xiao, Zhu, Li, He, Liu and Song 2018, Spatially Transformed Adversarial Examples, arXiv:1801.02612",
        access=Access.GRADIENTS,
        spaces=("flow",),
        minimal=True,
        cost="steps x (forward + backward)",
        domains=("image",),
        caveats="The paper descends by L-BFGS on the two losses and bounds nothing; here Adam descends inside a radius, the "
        "longest displacement, which shrinks after each success. Smoothness is in the loss alone: no limit enforces it.",
        floor={},
        aliases=("spatial-transform",),
    )
)
@dataclass(frozen=True, kw_only=True)
class StAdv(Attack):
    """Minimise max(confidence - margin, 0) + tau L_flow(f) over flows f of bounded length.

    L_flow is the total variation of the flow over neighbouring pixels (`sparring.images.warps.roughness`). Where the
    smallest change is sought, the radius shrinks below each success and grows again after failures.

    Args:
        steps: gradient steps.
        step_size: Adam's rate in pixels; it anneals to a tenth.
        tau: the weight of the flow's roughness, summed over pictures of 32 x 32 as in the paper; over larger ones the sum
            is scaled to as many pixels, for the margin does not grow with them.
        confidence: the margin wanted, in units of the scores.
        gamma: how much the radius moves at a step, a share that anneals to a hundredth.
    """

    steps: int = 100
    step_size: float = 0.05
    tau: float = 0.05
    confidence: float = 0.0
    gamma: float = 0.1

    def search(self, run: Run) -> None:
        """Descend."""
        if self.tau < 0:
            raise InputError(f"{self} needs steps >= 1, step_size > 0 and tau >= 0")
        loss, space = get_loss("margin"), run.space
        flow = space.blank(run.x)
        most = torch.full_like(flow[:, 0, 0, 0], WIDE) if space.limit is None else space.limit.clone()
        s = run.begin(Flowing(run.x.clone(), flow, Adam.start(flow), most))
        for t in run.steps(self.steps):
            g = run.gradient(s.x, loss)
            self._resize(run, s, reached(run, g.scores), cosine(self.gamma, self.gamma / 100, t, self.steps))
            slope = -run.space.pull(run.x, s.flow, g.grad * per_sample(g.loss <= self.confidence, g.grad))
            slope = slope + self.tau * TAU_PIXELS / s.flow[0, 0].numel() * _rough_slope(s.flow)
            rate = cosine(self.step_size, self.step_size / 10, t, self.steps)
            s.flow = _shortened(s.flow + s.adam.step(slope, rate), s.radius)
            s.x = run.space.render(run.x, s.flow)

    @staticmethod
    def _resize(run: Run, s: Flowing, success: Tensor, gamma: float) -> None:
        """Just below the flow that succeeded, a little wider after a failure."""
        length = run.space.size(s.flow)
        limit = WIDE if run.space.limit is None else run.space.limit
        wider = torch.clamp(s.radius * (1 + gamma), max=limit)
        s.radius = torch.where(success, torch.minimum(s.radius, length) * (1 - gamma), wider)


def _rough_slope(flow: Tensor) -> Tensor:
    leaf = flow.detach().requires_grad_(True)
    with torch.enable_grad():
        total = roughness(leaf).sum()
    (slope,) = torch.autograd.grad(total, leaf)
    return slope


def _shortened(flow: Tensor, radius: Tensor) -> Tensor:
    """Every displacement at most the sample's radius long."""
    length: Tensor = torch.linalg.vector_norm(flow, dim=1, keepdim=True)
    return flow * (per_sample(radius, flow) / length.clamp(min=1e-12)).clamp(max=1.0)
