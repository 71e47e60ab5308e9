"""Diffusion purification: noise that drowns a perturbation is added, and a network of noise predictions takes it away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparring.core.errors import InputError
from sparring.core.network import Victim
from sparring.core.registry import Card, defence
from sparring.core.rng import KeyedRandom
from sparring.core.threat import Access
from sparring.core.victim import Traits
from sparring.defences.inputs.base import Learned, above, nothing, pictures, seeded, whole
from sparring.defences.inputs.networks import UNet


def linear_betas(steps: int = 50) -> tuple[float, ...]:
    """The variances of a diffusion's steps, rising along a line: those of Ho et al. (1e-4 to 0.02) times 1000 / steps.

    Raises:
        InputError: fewer than 21 steps, whose last variance would reach 1.
    """
    whole(steps, "steps", 21)
    return tuple((0.1 + 19.9 * k / (steps - 1)) / steps for k in range(steps))


def train_noise_predictor(
    x: Tensor,
    *,
    betas: Sequence[float] | None = None,
    most: int | None = None,
    width: int = 16,
    epochs: int = 20,
    lr: float = 2e-3,
    seed: int = 0,
) -> UNet:
    """A network e that predicts a diffusion's noise: min E |e(x_t, t) - n|^2, x_t = sqrt(a_t) x + sqrt(1 - a_t) n.

    Here a_t = prod_{s <= t} (1 - beta_s), and x is scaled to [-1, 1].

    Args:
        x: clean pictures in [0, 1], (n, c, h, w).
        betas: variances of the steps, in (0, 1); None takes `linear_betas()`.
        most: the last step to learn, for a purifier that goes no further; None learns all.
        width: channels of the U-Net at full resolution.
        epochs: passes over x, in batches of 64.
        lr: highest learning rate of Adam; it falls to nothing along a cosine.
        seed: of weights, order and noise; the global random state stays as it is.

    Raises:
        InputError: no pictures, or settings that cannot be right.

    Paper:
        Ho, Jain and Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
    """
    pictures(x, "a noise predictor")
    kept = _kept(linear_betas() if betas is None else betas).to(x)
    most = len(kept) if most is None else most
    whole(most, "most", 1, len(kept))
    whole(epochs, "epochs", 1)
    above(lr, "lr", 0.0)
    if not len(x):
        raise InputError("no picture came; a noise predictor learns from clean ones")
    source = torch.Generator().manual_seed(seed)
    net = seeded(lambda: UNet(x.shape[1], width, timed=True), source).to(x.device)
    optimiser = torch.optim.Adam(net.parameters(), lr=lr)
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(x), generator=source).split(64)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches))
    for rows in batches:
        clean = 2 * x[rows.to(x.device)] - 1
        t = torch.randint(1, most + 1, (len(rows),), generator=source).to(x.device)
        noise = torch.randn(clean.shape, generator=source).to(clean)
        a = kept[t - 1][:, None, None, None]
        optimiser.zero_grad()
        F.mse_loss(net(a.sqrt() * clean + (1 - a).sqrt() * noise, t), noise).backward()
        optimiser.step()
        schedule.step()
    optimiser.zero_grad(set_to_none=True)
    return net.eval().requires_grad_(False)


def _kept(betas: Sequence[float]) -> Tensor:
    """a_t, the share of the picture's variance that is left after step t, (T,).

    Raises:
        InputError: a variance outside (0, 1), or none.
    """
    if not len(betas) or not all(0 < beta < 1 for beta in betas):
        raise InputError(f"betas are {betas!r}; variances above 0 and below 1 are needed, one for each step")
    return (1 - torch.tensor(list(betas), dtype=torch.float64)).cumprod(0)


@defence(
    Card(
        name="diffusion",
        title="Diffusion purification",
        paper="Nie et al. 2022, Diffusion Models for Adversarial Purification, arXiv:2205.07460",
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="t_star passes of the noise predictor per sample; its training takes minutes",
        domains=("image",),
        caveats="Random and deep: an attacker who does not know of it, the identity as its gradient and a single draw all "
        "make it look robust. The exact gradient, averaged over draws (EOT), takes away most of that (Lee and Kim 2023, "
        "arXiv:2303.09051). More noise costs clean accuracy.",
        aliases=("diffpure",),
    )
)
@dataclass(kw_only=True, eq=False)
class DiffusionPurifier(Learned):
    """x -> t_star steps of a diffusion at once, and as many steps of denoising back, each with keyed noise.

    With x scaled to [-1, 1], x_t = sqrt(a_t) x + sqrt(1 - a_t) n for t = t_star, and from there

        x_{t-1} = (x_t - beta_t / sqrt(1 - a_t) e(x_t, t)) / sqrt(1 - beta_t) + s_t n_t

    with s_t^2 = beta_t (1 - a_{t-1}) / (1 - a_t).

    Args:
        eps_net: e, a module from pictures (n, c, h, w) in [-1, 1] and steps t, int64 (n,) from 1, to the noise in them;
            None until `fit` has trained one.
        betas: the variances that it was trained with.
        t_star: how far to go; more drowns larger perturbations, and more of the picture.
        exact: differentiate through every step, each computed again in the backward pass (gradient checkpoints), so that
            memory does not grow with the network's depth; False gives the gradient of the identity under BPDA.
        lo, hi: the ends of the input's range.
        width, epochs: of the network that `fit` trains.
    """

    traits = Traits(stochastic=True)
    keyed = True

    eps_net: nn.Module | None = field(default_factory=nothing, repr=False)
    betas: Sequence[float] = field(default_factory=linear_betas, repr=False)
    t_star: int = 10
    exact: bool = True
    lo: float = 0.0
    hi: float = 1.0
    width: int = 16
    epochs: int = 20

    def check(self) -> None:
        """Variances in (0, 1), no more steps than there are, lo < hi."""
        self.betas = tuple(float(beta) for beta in self.betas)
        self.register_buffer("kept", _kept(self.betas))
        whole(self.t_star, "t_star", 1, len(self.betas))
        above(self.hi - self.lo, "hi - lo", 0.0)
        whole(self.width, "width", 1)
        whole(self.epochs, "epochs", 1)
        if not self.exact:
            self.traits = Traits(stochastic=True, differentiable=False)
            self.surrogate = _identity

    def fit(self, victim: Victim, x: Tensor, y: Tensor) -> Self:
        """Train a noise predictor on x, unless there is one already; the victim and the labels are not used."""
        if self.eps_net is None:
            scaled = (x.to(victim.device) - self.lo) / (self.hi - self.lo)
            self.eps_net = train_noise_predictor(
                scaled, betas=self.betas, most=self.t_star, width=self.width, epochs=self.epochs
            )
        return self

    def forward(self, x: Tensor, noise: KeyedRandom | None = None, stream: int = 0) -> Tensor:
        """The purified pictures, (n, c, h, w).

        Args:
            x: pictures (n, c, h, w).
            noise: keyed noise of these samples; None draws from torch's global generator, as dropout does.
            stream: the place of this stage among several.
        """
        pictures(x, "DiffusionPurifier")
        eps_net = self.ready(self.eps_net)
        if self.exact:
            return self._purified(eps_net, x, noise, stream)
        with torch.no_grad():
            purified = self._purified(eps_net, x, noise, stream)
        return purified + 0 * x  # connected, with no gradient of its own

    def _purified(self, eps_net: nn.Module, x: Tensor, noise: KeyedRandom | None, stream: int) -> Tensor:
        def draw(t: int) -> Tensor:
            shape = tuple(x.shape[1:])
            drawn = torch.randn(x.shape) if noise is None else noise.normal(shape, ("diffusion", stream, t))
            return drawn.to(x)

        def back(now: Tensor, t: int, fresh: Tensor | None) -> Tensor:
            told = eps_net(now, torch.full((len(now),), t, dtype=torch.int64, device=now.device))
            beta, a = betas[t - 1], kept[t - 1]
            mean: Tensor = (now - beta / (1 - a).sqrt() * told) / (1 - beta).sqrt()
            return mean if fresh is None else mean + (beta * (1 - kept[t - 2]) / (1 - a)).sqrt() * fresh

        kept = self.get_buffer("kept").to(x)
        betas = torch.tensor(self.betas, dtype=x.dtype, device=x.device)
        a = kept[self.t_star - 1]
        now = a.sqrt() * (2 * (x - self.lo) / (self.hi - self.lo) - 1) + (1 - a).sqrt() * draw(0)
        wanted = torch.is_grad_enabled() and now.requires_grad
        for t in range(self.t_star, 0, -1):
            fresh = draw(t) if t > 1 else None
            if wanted:  # the noise is handed over, so that the second computation needs no random state
                now = checkpoint(back, now, t, fresh, use_reentrant=False, preserve_rng_state=False)
            else:
                now = back(now, t, fresh)
        return self.lo + (now.clamp(-1, 1) + 1) / 2 * (self.hi - self.lo)


def _identity(x: Tensor) -> Tensor:
    return x
