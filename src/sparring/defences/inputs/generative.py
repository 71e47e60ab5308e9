"""Defense-GAN: inputs are replaced by the nearest picture that a generator of clean data can make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from sparring.core.balls import Ball
from sparring.core.errors import InputError
from sparring.core.network import Victim
from sparring.core.registry import Card, defence
from sparring.core.rng import KeyedRandom, content_ids
from sparring.core.threat import Access, rival_margin
from sparring.core.victim import Traits
from sparring.defences.inputs.base import Learned, above, nothing, pictures, seeded, whole
from sparring.defences.inputs.networks import Critic, Generator

# The weight of the gradient penalty, and the critic's steps for each of the generator's.
_PENALTY, _CRITIC_STEPS = 10.0, 3


def train_generator(
    x: Tensor, *, latent: int = 32, breadth: int = 16, steps: int = 2000, lr: float = 2e-3, seed: int = 0
) -> Generator:
    """A Wasserstein GAN with gradient penalty: min_G max_D E D(x) - E D(G(z)) - 10 E (|grad D(x~)|_2 - 1)^2.

    The points x~ lie between true and made pictures; the critic makes three steps for each of the generator's.

    Args:
        x: clean pictures in [0, 1], (n, c, h, w).
        latent: dimension of z.
        breadth: channels of both networks at half resolution.
        steps: of the generator, in batches of 64.
        lr: of Adam (beta 0.5, 0.9), for both; it falls to nothing along a line.
        seed: of weights, order and noise; the global random state stays as it is.

    Raises:
        InputError: no pictures, or settings that cannot be right.

    Paper:
        Gulrajani et al. 2017, Improved Training of Wasserstein GANs, arXiv:1704.00028.
    """
    pictures(x, "a generator")
    whole(steps, "steps", 1)
    above(lr, "lr", 0.0)
    if not len(x):
        raise InputError("no picture came; a generator learns from clean ones")
    source = torch.Generator().manual_seed(seed)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    generator = seeded(lambda: Generator(*shape, latent, breadth), source).to(x.device)
    critic = seeded(lambda: Critic(*shape, breadth), source).to(x.device)
    movers = [torch.optim.Adam(net.parameters(), lr=lr, betas=(0.5, 0.9)) for net in (generator, critic)]
    slower = [torch.optim.lr_scheduler.LinearLR(mover, 1.0, 0.0, total_iters=steps) for mover in movers]

    def made() -> Tensor:
        fake: Tensor = generator(torch.randn(64, latent, generator=source).to(x.device))
        return fake

    for _ in range(steps):
        for _ in range(_CRITIC_STEPS):
            true = x[torch.randint(len(x), (64,), generator=source).to(x.device)]
            with torch.no_grad():
                fake = made()
            share = torch.rand(64, 1, 1, 1, generator=source).to(x)
            between = (share * true + (1 - share) * fake).requires_grad_(True)
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            movers[1].zero_grad()
            (critic(fake).mean() - critic(true).mean() + _PENALTY * penalty).backward()
            movers[1].step()
        movers[0].zero_grad()
        (-critic(made()).mean()).backward()
        movers[0].step()
        for schedule in slower:
            schedule.step()
    movers[0].zero_grad(set_to_none=True)
    return generator.eval().requires_grad_(False)


@defence(
    Card(
        name="defense-gan",
        title="Defense-GAN: projection on the range of a generator",
        paper="Samangouei, Kabkab and Chellappa 2018, Defense-GAN: Protecting Classifiers Against Adversarial Attacks "
        "Using Generative Models, arXiv:1805.06605",
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="starts x steps forwards and backwards of the generator per sample; its training takes minutes",
        domains=("image",),
        caveats="The projection hides the gradient. BPDA with the identity left 55% on MNIST, and points that the projection "
        "keeps are adversarial as well (Athalye et al. 2018, arXiv:1802.00420): take the better of identity and tangent. Clean "
        "accuracy is bounded by what the generator can make, which on photos is little.",
        aliases=("defence-gan",),
    )
)
@dataclass(kw_only=True, eq=False)
class DefenseGAN(Learned):
    """x -> G(z*), z* = argmin_z |G(z) - x|^2 by gradient descent with momentum from keyed normal starts.

    Gradients, for the attacker: the stage's own is zero and its surrogate the identity (BPDA); with `tangent=True` there
    is no surrogate, and the stage's own gradient runs through the latent. With J = dG/dz at z*, the implicit function
    theorem without the curvature of G gives dG(z*)/dx = J (J'J + lambda I)^-1 J', the projection on what the generator can
    do to its picture, for a forward and two backwards of G per latent dimension.

    Args:
        generator: G, a module from (n, latent) to pictures, as `train_generator` makes; None until `fit` has trained one.
        steps: L of the paper.
        starts: R of the paper; the nearest result stands.
        lr: step size on the mean squared error over the pixels.
        momentum: of the descent.
        tangent: differentiate through the latent instead of around the stage.
        latent: dimension of z.
        epochs: passes over the data of the generator's training by `fit`.
    """

    traits = Traits(stochastic=True, differentiable=False, optimises=True)
    keyed = True

    generator: nn.Module | None = field(default_factory=nothing, repr=False)
    steps: int = 200
    starts: int = 10
    lr: float = 20.0
    momentum: float = 0.7
    tangent: bool = False
    latent: int = 32
    epochs: int = 100

    def check(self) -> None:
        """Positive numbers, a momentum below 1."""
        for name in ("steps", "starts", "latent", "epochs"):
            whole(getattr(self, name), name, 1)
        above(self.lr, "lr", 0.0)
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is {self.momentum!r}; a number >= 0 and below 1 is needed")
        if self.tangent:
            self.traits = Traits(stochastic=True, optimises=True)
        else:
            self.surrogate = _identity

    def fit(self, victim: Victim, x: Tensor, y: Tensor) -> Self:
        """Train a generator on x, unless there is one already; the victim and the labels are not used."""
        if self.generator is None:
            steps = self.epochs * max(1, len(x) // 64)
            self.generator = train_generator(x.to(victim.device), latent=self.latent, steps=steps)
        return self

    def forward(self, x: Tensor, noise: KeyedRandom | None = None, stream: int = 0) -> Tensor:
        """The nearest pictures that were found, (n, c, h, w).

        Args:
            x: pictures (n, c, h, w).
            noise: keyed noise of these samples, for the starts; None draws from torch's global generator.
            stream: the place of this stage among several.
        """
        pictures(x, "DefenseGAN")
        generator = self.ready(self.generator)
        dimension = getattr(generator, "latent", self.latent)
        if dimension != self.latent:
            raise InputError(f"latent is {self.latent}; the generator takes {dimension} values")
        if not len(x):
            return x
        shape = (self.starts, self.latent)
        drawn = torch.randn(len(x), *shape) if noise is None else noise.normal(shape, ("defense-gan", stream))
        with torch.no_grad():
            sample = generator(drawn[:1, 0].to(x))
        if sample.shape[1:] != x.shape[1:]:
            raise InputError(f"the generator makes {tuple(sample.shape[1:])}; inputs of {tuple(x.shape[1:])} came")
        z = self._nearest(generator, x.detach(), drawn.to(x))
        with torch.no_grad():
            found: Tensor = generator(z)
        if not self.tangent:
            return found + 0 * x  # connected, with no gradient of its own
        return found + _tangent(generator, z, x) if x.requires_grad and torch.is_grad_enabled() else found

    def _nearest(self, generator: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        """The best latent vectors, (n, latent), from starts (n, r, latent); every sample descends for itself."""
        rows = torch.arange(len(x), device=x.device).repeat_interleave(z.shape[1])
        aim, z = x[rows], z.flatten(0, 1)
        speed = torch.zeros_like(z)
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = z.detach().requires_grad_(True)
                error = (generator(leaf) - aim).square().flatten(1).mean(1).sum()
                (slope,) = torch.autograd.grad(error, leaf)
            speed = self.momentum * speed - self.lr * slope
            z = z + speed
        with torch.no_grad():
            left = (generator(z) - aim).square().flatten(1).mean(1)
        best = left.reshape(len(x), -1).argmin(1)
        return z.reshape(len(x), -1, z.shape[1])[torch.arange(len(x), device=x.device), best]


def search_latent(
    victim: Victim,
    x: Tensor,
    y: Tensor,
    space: Ball,
    *,
    steps: int = 200,
    starts: int = 4,
    confidence: float = 10.0,
    lr: float = 0.05,
    seed: int = 0,
) -> Tensor:
    """The points of the ball that lie nearest to pictures of another class that the generator can make.

        min_z |G(z) - P(G(z))|^2 + 10 max(0, k - m(G(z))),  x' = P(G(z)),

    with P the projection on the ball and m the margin of the best wrong class.

    Nothing is differentiated but the generator and the network behind: where x' is as near to G(z) as to anything that the
    generator makes, Defense-GAN takes x' for it. Adam moves z; of all z with a margin of k the one with the
    least distance stands, and x itself where there is none.

    Args:
        victim: a network behind one `DefenseGAN` and no other stage.
        x: clean pictures in raw units, (n, c, h, w).
        y: their labels, int64 (n,).
        space: within which x' lies.
        steps: of Adam.
        starts: normal draws per sample, of which the nearest result stands.
        confidence: k, in the unit of the scores: more withstands a descent that ends a little elsewhere.
        lr: of Adam.
        seed: of the starts, keyed by each sample's content.

    Returns:
        x', (n, c, h, w).

    Raises:
        InputError: another victim, or settings that cannot be right.

    Paper:
        Jalal, Ilyas, Daskalakis and Dimakis 2017, The Robust Manifold Defense, arXiv:1712.09196 (the overpowered attack)
        and Athalye et al. 2018, arXiv:1802.00420.
    """
    pictures(x, "a latent search")
    whole(steps, "steps", 1)
    whole(starts, "starts", 1)
    above(lr, "lr", 0.0)
    if len(victim.stages) != 1 or not isinstance(stage := victim.stages[0], DefenseGAN):
        raise InputError(f"{victim.name!r} is no network behind one DefenseGAN; there is no latent space to search")
    generator, latent = stage.ready(stage.generator), stage.latent
    if not len(x):
        return x
    rows = torch.arange(len(x), device=x.device).repeat_interleave(starts)
    ball, aim, labels = space.bound(x, victim.bounds).take(rows), x[rows], y[rows]
    noise = KeyedRandom(seed, content_ids(x))
    z = noise.normal((starts, latent), "latent-search").to(x).flatten(0, 1).requires_grad_(True)
    least, found = torch.full_like(aim.flatten(1)[:, 0], torch.inf), aim.clone()
    mover = torch.optim.Adam([z], lr=lr)
    with victim.at_rest():
        for _ in range(steps):
            with torch.enable_grad():
                made = generator(z)
                near = ball.project(aim, made.detach())
                far = (made - near).square().flatten(1).sum(1)
                margin = rival_margin(victim.head(made), labels)
                (z.grad,) = torch.autograd.grad((far + 10 * (confidence - margin).clamp(min=0)).sum(), z)
            better = (margin >= confidence) & (far < least)
            least = torch.where(better, far, least).detach()
            found[better] = near[better]
            mover.step()
    best = least.reshape(len(x), starts).argmin(1)
    return found.reshape(len(x), starts, *x.shape[1:])[torch.arange(len(x), device=x.device), best]


def _identity(x: Tensor) -> Tensor:
    return x


def _tangent(generator: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    """Zero, (n, ...), with the derivative J (J'J + lambda I)^-1 J' in x."""
    n, latent = z.shape
    units = torch.eye(latent, dtype=z.dtype, device=z.device).repeat(n, 1)
    with torch.enable_grad():  # J'u is linear in u, and its own gradient along a unit vector is a column of J
        leaf = z.repeat_interleave(latent, 0).requires_grad_(True)
        made = generator(leaf)
        u = torch.zeros_like(made, requires_grad=True)
        (pulled,) = torch.autograd.grad(made, leaf, u, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, u, units)
    with torch.no_grad():
        columns = pushed.reshape(n, latent, -1)
        gram = columns @ columns.mT
        # a thousandth of the mean eigenvalue: directions that the generator hardly answers to are left alone
        damping = 1e-3 * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
        gram = gram + damping[:, None, None] * torch.eye(latent, dtype=z.dtype, device=z.device)
    moved = (x - x.detach()).flatten(1)
    coordinates = torch.linalg.solve(gram, torch.einsum("nkd,nd->nk", columns, moved))
    return torch.einsum("nkd,nk->nd", columns, coordinates).reshape(x.shape)
