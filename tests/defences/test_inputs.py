"""Stages in front of a network: what each computes, that any order composes, and each broken one with its break."""

from __future__ import annotations

import io
import itertools
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sparring as sp
from sparring.core.errors import InputError, VanishedGradientWarning
from sparring.core.registry import build, defence_cards, defence_class
from sparring.core.rng import KeyedRandom, content_ids
from sparring.data import load_digits
from sparring.defences.inputs import (
    JPEG,
    BitDepth,
    InputDefence,
    Median,
    NonLocalMeans,
    Reformer,
    ResizePad,
    Threshold,
    TotalVariation,
    differentiable_jpeg,
    train_autoencoder,
)

EPS = 0.2  # at which the digits network keeps under one in a hundred
N = 120
STAGES = [
    Threshold(),
    BitDepth(bits=3),
    Median(size=2),
    Median(size=3),
    NonLocalMeans(search=5),
    TotalVariation(),
    TotalVariation(unroll=False),
    JPEG(quality=50),
    ResizePad(smallest=0.8),
]


def colour(n: int = 3, side: int = 20) -> Tensor:
    """Smooth colour pictures with noise, (n, 3, side, side), on the 8-bit grid."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 4, 4, generator=g)
    x = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") + 0.05 * torch.randn(
        n, 3, side, side, generator=g
    )
    return (x.clamp(0, 1) * 255).round() / 255


def keyed(x: Tensor, seed: int = 0) -> KeyedRandom:
    return KeyedRandom(seed, content_ids(x))


def run(stage: InputDefence, x: Tensor) -> Tensor:
    return stage(x, noise=keyed(x)) if stage.keyed else stage(x)


@pytest.mark.parametrize("stage", STAGES, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_stage_keeps_shape_and_range_and_treats_samples_alone(stage: InputDefence, channels: int) -> None:
    x = colour()[:, :channels]
    before = x.clone()
    out = run(stage, x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert float(out.min()) >= -1e-5
    assert float(out.max()) <= 1 + 1e-5
    assert torch.equal(x, before)
    alone = torch.cat([run(stage, x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, out, atol=1e-6, rtol=1e-6)
    assert run(stage, x[:0]).shape == x[:0].shape
    if stage.surrogate is not None:
        leaf = x.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(stage.surrogate(leaf).square().sum(), leaf)
        assert float(grad.abs().sum()) > 0


@pytest.mark.parametrize("pair", [*itertools.permutations((STAGES[0], STAGES[4], STAGES[7], STAGES[8]), 2)], ids=repr)
def test_stages_compose_in_any_order(pair: tuple[InputDefence, InputDefence]) -> None:
    x, y = load_digits("test")
    x, y = x[:4], y[:4]
    victim = sp.load("digits").defended(pre=pair)
    rng = keyed(x)
    by_hand = x
    for depth, stage in enumerate(pair):
        by_hand = stage(by_hand, noise=rng, stream=depth) if stage.keyed else stage(by_hand)
    torch.testing.assert_close(victim.query(x, rng).scores, sp.load("digits").query(by_hand).scores)
    result = sp.PGD(steps=2)(victim.attack_view(eot=2), x, y, sp.Linf(0.1))
    assert bool(((result.adversarial - x).abs() <= 0.1 + 1e-6).all())
    assert victim.traits.stochastic == any(s.traits.stochastic for s in pair)
    assert victim.traits.differentiable == all(s.traits.differentiable for s in pair)


def test_levels_by_hand() -> None:
    x = torch.tensor([[0.0, 0.2, 0.5, 0.51, 1.0]])
    assert Threshold()(x).tolist() == [[0, 0, 0, 1, 1]]
    torch.testing.assert_close(BitDepth(bits=2)(x), torch.tensor([[0.0, 1 / 3, 2 / 3, 2 / 3, 1.0]]))
    torch.testing.assert_close(BitDepth(bits=1, lo=-1.0)(torch.tensor([[-0.2, 0.2]])), torch.tensor([[-1.0, 1.0]]))


def test_median_by_hand() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1
    assert float(Median(size=3)(x).sum()) == 0
    stripe = torch.zeros(1, 1, 5, 6)
    stripe[..., 3:] = 1
    assert torch.equal(Median(size=3)(stripe), stripe)


def test_non_local_means_keeps_flat_regions_and_edges_and_takes_noise_away() -> None:
    clean = torch.zeros(1, 1, 16, 16)
    clean[..., 8:] = 1
    assert torch.allclose(NonLocalMeans()(clean), clean, atol=1e-6)
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    mended = NonLocalMeans(strength=0.2)(noisy)
    assert float((mended - clean).square().mean()) < 0.4 * float((noisy - clean).square().mean())


def test_total_variation_minimises_its_own_energy() -> None:
    x = colour(1)

    def energy(z: Tensor) -> float:
        down, right = z[..., 1:, :] - z[..., :-1, :], z[..., 1:] - z[..., :-1]
        length = (nn.functional.pad(down, (0, 0, 0, 1)).square() + nn.functional.pad(right, (0, 1)).square()).sqrt()
        return float((z - x).square().sum() / 2 + 0.1 * length.sum())

    few, many = (energy(TotalVariation(weight=0.1, steps=steps)(x)) for steps in (5, 200))
    best = TotalVariation(weight=0.1, steps=1000)(x)
    assert energy(x) > few > many
    assert many < energy(best) * 1.01
    g = torch.Generator().manual_seed(0)
    for _ in range(20):  # convex: no neighbour is better by more than what is left to converge
        assert energy(best + 0.01 * torch.randn(x.shape, generator=g)) > energy(best)


def test_jpeg_is_pillows_own_and_the_differentiable_one_follows_it() -> None:
    x = colour()
    for quality in (30, 75):
        file = io.BytesIO()
        pixels = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
        decoded = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255
        assert torch.equal(JPEG(quality=quality)(x[:1])[0], decoded)
        far = (differentiable_jpeg(x, quality) - JPEG(quality=quality)(x)).abs().mean()
        assert float(far) < 3 / 255
        assert float(far) < 0.25 * float((x - JPEG(quality=quality)(x)).abs().mean())
    grey = x[:, :1]
    assert float((differentiable_jpeg(grey, 75) - JPEG()(grey)).abs().mean()) < 1.5 / 255


def test_resize_pad_places_the_whole_picture_and_nothing_else() -> None:
    x = torch.ones(200, 1, 12, 12)
    x += torch.arange(200)[:, None, None, None] * 1e-6  # ids differ
    out = ResizePad(smallest=0.5)(x, noise=keyed(x))
    covered = (out > 0.5).flatten(1).sum(1).double().sqrt()
    assert bool((covered == covered.round()).all()), "each covers a square of whole pixels"
    assert set(covered.int().tolist()) == set(range(6, 13))
    assert float(covered.mean()) == pytest.approx(9, abs=0.6)
    same = ResizePad(smallest=1.0)(colour(), noise=keyed(colour()))
    torch.testing.assert_close(same, colour(), atol=1e-6, rtol=1e-5)
    larger = ResizePad(smallest=0.9, canvas=24)(colour(), noise=keyed(colour()))
    assert larger.shape[-2:] == (24, 24)


def test_resize_pad_is_keyed_and_draws_anew_for_each_stream() -> None:
    x, stage = colour(), ResizePad(smallest=0.5)
    first = stage(x, noise=keyed(x))
    assert torch.equal(first, stage(x, noise=keyed(x)))
    assert torch.equal(first[1:2], stage(x[1:2], noise=keyed(x[1:2])))
    assert not torch.equal(first, stage(x, noise=keyed(x), stream=1))
    assert not torch.equal(first, stage(x, noise=keyed(x, seed=1)))
    assert stage(x).shape == x.shape  # as a plain module


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (Threshold, {"level": 1.5}),
        (BitDepth, {"bits": 0}),
        (Median, {"size": 1}),
        (NonLocalMeans, {"search": 4}),
        (TotalVariation, {"weight": 0.0}),
        (JPEG, {"quality": 96}),
        (ResizePad, {"smallest": 1.2}),
    ],
)
def test_settings_that_cannot_be_right_are_refused(cls: type, params: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"needed|must|whole|between"):
        cls(**params)


def test_pictures_are_asked_for_where_they_are_needed() -> None:
    with pytest.raises(InputError, match="pictures"):
        Median()(torch.zeros(2, 5))
    with pytest.raises(InputError, match="channels"):
        JPEG()(torch.zeros(2, 2, 8, 8))


def test_every_defence_is_registered_by_name_with_a_full_card() -> None:
    cards = defence_cards()
    assert {"threshold", "bit-depth", "median", "non-local-means", "jpeg", "total-variation", "resize-pad"} <= {
        card.name for card in cards
    }
    for card in cards:
        assert card.title, card.name
        assert card.paper, card.name
        assert card.cost, card.name
        assert card.caveats, card.name
    assert build(defence_class("JPEG"), {"quality": 40}).quality == 40
    assert repr(defence_class("bits")(bits=2)) == "BitDepth(bits=2, lo=0.0, hi=1.0)"


def test_the_fingerprint_minds_a_stages_settings() -> None:
    victim = sp.load("digits")
    prints = {victim.defended(pre=[BitDepth(bits=b)]).fingerprint() for b in (2, 3)}
    assert len(prints) == 2


# -- each with its break -----------------------------------------------------------------------------------------------


def robust(victim: sp.Victim, x: Tensor, y: Tensor, eps: float, *, adaptive: bool, eot: int = 1) -> float:
    """Naive: PGD-40 through the pipeline as it is. Adaptive: the margin loss through surrogates and expectations."""
    if not adaptive:
        return sp.PGD(steps=40)(victim, x, y, sp.Linf(eps)).robust_accuracy
    return sp.PGD(steps=40, loss="margin")(victim.attack_view(eot=eot), x, y, sp.Linf(eps)).robust_accuracy


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        (BitDepth(bits=2), 0.05),
        (BitDepth(bits=3), 0.2),
        (JPEG(quality=50), 0.15),
        (JPEG(quality=50, identity=True), 0.25),
        (TotalVariation(weight=0.05, unroll=False), 0.15),
    ],
    ids=repr,
)
def test_shattered_gradients_look_robust_and_bpda_breaks_them(stage: InputDefence, left: float) -> None:
    x, y = (t[:N] for t in load_digits("test"))
    victim = sp.load("digits").defended(pre=[stage])
    with pytest.warns(VanishedGradientWarning):
        assert robust(victim, x, y, EPS, adaptive=False) > 0.9
    assert robust(victim, x, y, EPS, adaptive=True) < left


@pytest.mark.parametrize("stage", [NonLocalMeans(search=5), TotalVariation(weight=0.1)], ids=repr)
def test_differentiable_smoothing_stops_nobody(stage: InputDefence) -> None:
    x, y = (t[:N] for t in load_digits("test"))
    assert robust(sp.load("digits").defended(pre=[stage]), x, y, EPS, adaptive=False) < 0.1


def test_a_reformer_mends_what_was_made_for_the_bare_network_and_nothing_made_for_itself() -> None:
    x, y = (t[:N] for t in load_digits("test"))
    bare = sp.load("digits")
    victim = bare.defended(pre=[Reformer(autoencoder=train_autoencoder(load_digits("train")[0], epochs=30))])
    assert float((victim.query(x).labels == y).float().mean()) > 0.93
    small = sp.DeepFool()(bare, x, y, sp.L2())
    unaware = float((victim.query(small.adversarial).labels == y).float().mean())
    aware = sp.DeepFool()(victim, x, y, sp.L2())
    assert unaware > 0.7
    assert aware.attack_success_rate > 0.98
    assert float(aware.distance[aware.succeeded].median()) < 1.5 * float(small.distance[small.succeeded].median())


def test_thresholding_holds_on_mnist_and_not_on_colour(zoo: ModuleType) -> None:
    net = sp.Victim(zoo.load("mnist_certified_0.1"))
    x, y = zoo.data("mnist", 60)
    bare = robust(net, x, y, 0.3, adaptive=True)
    binary = robust(net.defended(pre=[Threshold()]), x, y, 0.3, adaptive=True)
    assert binary > bare + 0.4
    x, y = zoo.data("cifar10", 60)
    colour_victim = sp.Victim(zoo.load("cifar10_resnet20")).defended(pre=[Threshold()])
    assert float((colour_victim.query(x).labels == y).float().mean()) < 0.5


def test_the_expectation_takes_random_resizing_to_the_bare_network(zoo: ModuleType) -> None:
    net = sp.Victim(zoo.load("cifar10_resnet20"))
    x, y = zoo.data("cifar10", 24)
    victim = net.defended(pre=[ResizePad(smallest=0.85)])
    eps = 8 / 255
    moved = sp.PGD(steps=20)(net, x, y, sp.Linf(eps))
    answers = victim.query(moved.adversarial, keyed(x))
    assert float((answers.labels == y).float().mean()) > moved.robust_accuracy + 0.15, "transfer looks weak"
    eot = sp.PGD(steps=10, loss="margin")(victim.attack_view(eot=10), x, y, sp.Linf(eps))
    assert eot.robust_accuracy < 0.05
