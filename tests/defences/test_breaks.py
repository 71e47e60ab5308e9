"""Defences made of more than one part, or of a training, each with what it claims and with what is left of the claim."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring.core.errors import InputError, VanishedGradientWarning
from sparring.core.network import Victim
from sparring.data import load_digits
from sparring.defences.detectors import (
    AnswerDivergence,
    Detector,
    FeatureSqueezing,
    JointPGD,
    Mahalanobis,
    ReconstructionError,
    Union,
)
from sparring.defences.inputs import DefenseGAN, Median, Reformer, search_latent, train_autoencoder
from sparring.defences.training import Distillation, Settings, fit

EPS = 0.2


def held(victim: sp.Victim, x: Tensor, y: Tensor) -> float:
    """The share that is right or rejected."""
    answers = victim.query(x)
    fooled = answers.labels != y
    return float((~(fooled if answers.accepted is None else fooled & answers.accepted)).float().mean())


# -- broken ------------------------------------------------------------------------------------------------------------


def test_distillation_flattens_the_cross_entropy_and_not_the_margin(digits: Victim) -> None:
    settings = Settings(epochs=30, batch_size=64, lr=3e-3)
    distilled = fit(digits, load_digits("train"), Distillation(), settings=settings).victim
    x, y = (t[:100] for t in load_digits("test"))
    assert held(distilled, x, y) > 0.93
    with pytest.warns(VanishedGradientWarning):
        cross_entropy = sp.PGD(steps=40, precision="float32")(distilled, x, y, sp.Linf(EPS)).robust_accuracy
    margin = sp.PGD(steps=40, loss="margin")(distilled, x, y, sp.Linf(EPS)).robust_accuracy
    assert cross_entropy > 0.4
    assert margin < 0.05


def test_magnet_stops_who_does_not_know_of_it_and_not_the_joint_attack(digits: Victim) -> None:
    train, labels = load_digits("train")
    net = train_autoencoder(train, epochs=30)
    kinds: tuple[type[Detector], ...] = (ReconstructionError, AnswerDivergence)
    guards = [kind(autoencoder=net).fit(digits, train, labels, fpr=0.01) for kind in kinds]  # type: ignore[call-arg]
    assert isinstance(digits.net, nn.Module)
    reformed = sp.Victim(nn.Sequential(Reformer(autoencoder=net), digits.net).eval())
    magnet = reformed.defended(detector=Union(*guards))
    x, y = (t[:60] for t in load_digits("test"))
    moved = sp.DeepFool()(digits, x, y, sp.L2()).adversarial
    assert held(magnet, x, y) > 0.85
    assert held(magnet, moved, y) > 0.6
    assert JointPGD(steps=40)(magnet, x, y, sp.Linf(EPS)).robust_accuracy < 0.15


def test_feature_squeezing_stops_pgd_on_mnist_and_not_the_joint_attack(zoo: ModuleType) -> None:
    bare = sp.Victim(zoo.load("mnist_certified_0.1"))
    x, y = zoo.data("mnist", 500)
    guarded = bare.defended(detector=FeatureSqueezing().fit(bare, x[100:], y[100:]))
    x, y, space = x[:40], y[:40], sp.L2(3.0)
    assert sp.PGD(steps=40)(bare, x, y, space).robust_accuracy < 0.1
    assert held(guarded, sp.PGD(steps=40)(guarded, x, y, space).adversarial, y) > 0.7
    assert JointPGD(steps=60)(guarded, x, y, space).robust_accuracy < 0.25


def test_a_median_is_differentiable_and_stops_nobody(digits: Victim) -> None:
    x, y = (t[:100] for t in load_digits("test"))
    assert sp.PGD(steps=40)(digits.defended(pre=[Median(size=2)]), x, y, sp.Linf(EPS)).robust_accuracy < 0.1


# -- what the joint attack climbs --------------------------------------------------------------------------------------


class Sure(nn.Module):
    """Scores (s, -s) with s = 100 (x_0 - 1/2): every answer is sure, and a softmax at temperature 1 is flat."""

    def forward(self, x: Tensor) -> Tensor:
        s = 100 * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([s, -s], 1)


def test_the_softened_distance_slopes_where_the_score_is_flat() -> None:
    victim = sp.Victim(Sure())
    x = torch.full((12, 1, 2, 2), 0.4)
    x[:, 0, 0, 0] = torch.linspace(0.2, 0.45, 12)

    class Half(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 1 - z

    detector = FeatureSqueezing(squeezers=(Half(),)).fit(victim, x, torch.ones(12, dtype=torch.int64))
    leaf = x[:3].clone().requires_grad_(True)
    (flat,) = torch.autograd.grad(detector.score(leaf).sum(), leaf)
    (slope,) = torch.autograd.grad(detector.softened(leaf).sum(), leaf)
    torch.testing.assert_close(detector.score(x[:3]), torch.full((3,), 2.0))
    assert float(flat.abs().max()) < 1e-6
    assert bool((slope[:, 0, 0, 0] < 0).all()), "nearer to a half the answers come nearer"


def test_a_union_lowers_all_that_reject_and_is_at_rest(digits: Victim) -> None:
    x, y = load_digits("test")
    parts = [Mahalanobis().fit(digits, x, y, fpr=0.1), FeatureSqueezing().fit(digits, x, y, fpr=0.1)]
    both = Union(*parts, scales=(2.0, 0.5))
    assert not both.training
    first, second = ((d.score(x) > d.threshold) for d in parts)
    soft = [parts[0].softened(x) / 2.0, parts[1].softened(x) / 0.5]
    found = both.softened(x)
    for rows, wanted in (
        (first & ~second, soft[0]),
        (second & ~first, soft[1]),
        (first == second, soft[0] + soft[1]),
    ):
        assert bool(rows.any())
        torch.testing.assert_close(found[rows], wanted[rows])


# -- a search in the latent space --------------------------------------------------------------------------------------


class Plane(nn.Module):
    """G(z) = 1/2 + A z with orthonormal columns: what Defense-GAN makes of a picture is its projection on a plane."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.register_buffer("a", torch.linalg.qr(torch.randn(16, 3, generator=source)).Q)

    def forward(self, z: Tensor) -> Tensor:
        return 0.5 + (z @ self.get_buffer("a").T).reshape(len(z), 1, 4, 4)


def test_a_latent_search_finds_points_that_the_projection_keeps() -> None:
    plane = Plane()
    w = plane.get_buffer("a")[:, 0]

    class Side(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s = 10 * ((x - 0.5).flatten(1) @ w)
            return torch.stack([s, -s], 1)

    bare = sp.Victim(Side())
    victim = bare.defended(pre=[DefenseGAN(generator=plane, latent=3, steps=60, starts=1, lr=2.0, momentum=0.5)])
    z = torch.tensor([[0.2, 0.1, -0.1], [0.3, -0.2, 0.2], [-0.25, 0.0, 0.3]])
    x, y = plane(z), torch.tensor([0, 0, 1])
    wide = search_latent(victim, x, y, sp.L2(0.5))
    assert bool(((wide - x).flatten(1).norm(dim=1) <= 0.5 + 1e-5).all())
    assert held(victim, x, y) == 1
    assert held(victim, wide, y) == 0, "the stage takes them for pictures of another class"
    torch.testing.assert_close(DefenseGAN(generator=plane, latent=3, steps=60, lr=2.0)(wide), wide, atol=0.02, rtol=0)
    narrow = search_latent(victim, x, y, sp.L2(0.1))
    far = (narrow - x).flatten(1)
    torch.testing.assert_close(far.norm(dim=1), torch.full((3,), 0.1), atol=1e-4, rtol=0)
    across = torch.tensor([-1.0, -1.0, 1.0]) * (far @ w) / 0.1
    assert bool((across > 0.9).all()), "straight to the other side"
    assert held(victim, narrow, y) == 1
    alone = torch.cat([search_latent(victim, x[i : i + 1], y[i : i + 1], sp.L2(0.1)) for i in range(3)])
    torch.testing.assert_close(alone, narrow, atol=1e-4, rtol=0)


def test_a_latent_search_leaves_what_no_picture_of_the_generator_can_fool() -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x.flatten(1)[:, :2]

    plane = Plane()
    x, y, bare = plane(torch.zeros(2, 3)), torch.zeros(2, dtype=torch.int64), sp.Victim(One())
    victim = bare.defended(pre=[DefenseGAN(generator=plane, latent=3)])
    assert torch.equal(search_latent(victim, x, y, sp.L2(1.0)), x)
    with pytest.raises(InputError, match="starts"):
        search_latent(victim, x, y, sp.L2(1.0), starts=0)
    with pytest.raises(InputError, match="DefenseGAN"):
        search_latent(bare, x, y, sp.L2(1.0))
