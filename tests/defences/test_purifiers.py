"""Stages with networks of their own: a guided denoiser, Defense-GAN and a diffusion, each naive, broken and saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring.core.errors import InputError, LoadError, VanishedGradientWarning, VictimError
from sparring.core.network import Victim
from sparring.core.registry import defence_class
from sparring.core.rng import KeyedRandom, content_ids
from sparring.data import load_digits
from sparring.defences import load_defended, save_defended
from sparring.defences.detectors import ReconstructionError
from sparring.defences.inputs import (
    HGD,
    Autoencoder,
    BitDepth,
    DefenseGAN,
    DiffusionPurifier,
    Generator,
    InputDefence,
    Reformer,
    UNet,
    linear_betas,
    train_generator,
    train_hgd,
    train_noise_predictor,
)

N = 30
LATENT = 24


@pytest.fixture(scope="module")
def denoiser(digits: Victim) -> UNet:
    return train_hgd(digits, *load_digits("train"), sp.Linf(0.2), epochs=14)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return train_generator(load_digits("train")[0], latent=LATENT, steps=350)


@pytest.fixture(scope="module")
def predictor() -> UNet:
    return train_noise_predictor(load_digits("train")[0], width=8, epochs=20, most=5)


def few(n: int = N) -> tuple[Tensor, Tensor]:
    x, y = load_digits("test")
    return x[:n], y[:n]


def keyed(x: Tensor, seed: int = 0) -> KeyedRandom:
    return KeyedRandom(seed, content_ids(x))


def accuracy(victim: sp.Victim, x: Tensor, y: Tensor) -> float:
    return float((victim.query(x, keyed(x)).labels == y).float().mean())


def gan(generator: nn.Module | None, *, tangent: bool = False) -> DefenseGAN:
    return DefenseGAN(generator=generator, latent=LATENT, steps=30, starts=2, tangent=tangent)


def untrained() -> list[InputDefence]:
    """Every stage around a network with weights that are drawn and not trained, so that each does something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        told = [UNet(1, 4), Generator(1, 8, 8, 4, 4), UNet(1, 4, timed=True)]
        for net in (told[0], told[2]):
            nn.init.normal_(net.out.weight, std=0.3)
    for net in told:
        net.eval().requires_grad_(False)
    return [
        HGD(net=told[0]),
        DefenseGAN(generator=told[1], latent=4, steps=5, starts=3),
        DefenseGAN(generator=told[1], latent=4, steps=5, starts=3, tangent=True),
        DiffusionPurifier(eps_net=told[2], t_star=3),
        DiffusionPurifier(eps_net=told[2], t_star=3, exact=False),
    ]


def run(stage: InputDefence, x: Tensor, stream: int = 0, seed: int = 0) -> Tensor:
    out: Tensor = stage(x, noise=keyed(x, seed), stream=stream) if stage.keyed else stage(x)
    return out


@pytest.mark.parametrize("stage", untrained(), ids=repr)
def test_a_stage_keeps_shape_and_range_treats_samples_alone_and_repeats_itself(stage: InputDefence) -> None:
    x, state = few(6)[0], torch.random.get_rng_state()
    before, out = x.clone(), run(stage, x)
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state), "keyed noise takes nothing from the global source"
    assert out.shape == x.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert float((out - x).abs().mean()) > 0.01, "it does something"
    assert torch.equal(out, run(stage, x))
    torch.testing.assert_close(run(stage, x.flip(0)).flip(0), out, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat([run(stage, x[i : i + 1]) for i in range(6)]), out, atol=1e-4, rtol=1e-4)
    assert run(stage, x[:0]).shape == x[:0].shape
    if stage.keyed:
        assert not torch.equal(out, run(stage, x, stream=1))
        assert not torch.equal(out, run(stage, x, seed=1))
        assert stage(x).shape == x.shape  # as a plain module
    assert stage.traits.stochastic == stage.keyed
    assert (stage.surrogate is None) == stage.traits.differentiable


@pytest.mark.parametrize("stage", untrained(), ids=repr)
def test_a_stage_composes_in_both_orders(stage: InputDefence, digits: Victim) -> None:
    x, y = few(4)
    for pre in ([stage, BitDepth(bits=3)], [BitDepth(bits=3), stage]):
        victim = digits.defended(pre=pre)
        by_hand = x
        for depth, part in enumerate(pre):
            by_hand = run(part, by_hand) if part is not stage else _with(stage, by_hand, keyed(x), depth)
        torch.testing.assert_close(victim.query(x, keyed(x)).scores, digits.query(by_hand).scores)
        result = sp.PGD(steps=2)(victim.attack_view(eot=2), x, y, sp.Linf(0.1))
        assert float((result.adversarial - x).abs().max()) <= 0.1 + 1e-6


def _with(stage: InputDefence, x: Tensor, noise: KeyedRandom, depth: int) -> Tensor:
    out: Tensor = stage(x, noise=noise, stream=depth) if stage.keyed else stage(x)
    return out


# -- what each computes ------------------------------------------------------------------------------------------------


def test_the_guided_denoiser_takes_away_what_its_network_says() -> None:
    class Tenth(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x, 0.1)

    x = torch.tensor([0.0, 0.3, 1.0]).reshape(1, 1, 1, 3)
    torch.testing.assert_close(HGD(net=Tenth())(x).flatten(), torch.tensor([0.0, 0.2, 0.9]))


class Line(nn.Module):
    """G(z) = A z: the projection has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.register_buffer("a", torch.linalg.qr(torch.randn(9, 3, generator=source)).Q * 2)

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.get_buffer("a").T).reshape(len(z), 1, 3, 3)


def test_defense_gan_projects_on_the_range_and_its_tangent_is_the_projections_derivative() -> None:
    line = Line()
    stage = DefenseGAN(generator=line, latent=3, steps=60, starts=2, lr=1.0, momentum=0.5, tangent=True)
    x = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    a = line.get_buffer("a")
    onto = a @ torch.linalg.inv(a.T @ a) @ a.T
    out = run(stage, x)
    torch.testing.assert_close(out.flatten(1), x.detach().flatten(1) @ onto, atol=1e-4, rtol=1e-4)
    weights = torch.rand(out.shape, generator=torch.Generator().manual_seed(2))
    (grad,) = torch.autograd.grad((out * weights).sum(), x)
    # the damping takes a thousandth
    torch.testing.assert_close(grad.flatten(1), weights.flatten(1) @ onto, atol=5e-3, rtol=5e-3)
    blind = DefenseGAN(generator=line, latent=3, steps=60, starts=2, lr=1.0, momentum=0.5)
    same = run(blind, x)
    torch.testing.assert_close(same, out)
    assert float(torch.autograd.grad(same.sum(), x)[0].abs().max()) == 0, "naive gradients are none"


def test_more_starts_and_steps_come_nearer(generator: Generator) -> None:
    x = few()[0]
    far = [
        float((run(DefenseGAN(generator=generator, latent=LATENT, steps=steps, starts=starts), x) - x).square().mean())
        for steps, starts in ((5, 1), (30, 1), (30, 4))
    ]
    assert far[0] > far[1] > far[2]


def test_a_diffusion_of_a_known_gaussian_brings_its_moments_back() -> None:
    """Data 2x - 1 ~ N(0, s^2) per pixel: the best noise prediction is linear, and purified data keep their variance."""
    s, betas = 0.3, linear_betas(600)
    kept = (1 - torch.tensor(betas)).cumprod(0)

    class Best(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            a = kept[t - 1][:, None, None, None]
            return (1 - a).sqrt() * x / (a * s**2 + 1 - a)

    x = 0.5 + 0.5 * s * torch.randn(50, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    out = run(DiffusionPurifier(eps_net=Best(), betas=betas, t_star=180), x)
    assert float((2 * out - 1).std()) == pytest.approx(s, rel=0.05)
    assert float(out.mean()) == pytest.approx(0.5, abs=0.01)
    alike = float(torch.corrcoef(torch.stack([x.flatten(), out.flatten()]))[0, 1])
    a = float(kept[179])
    assert alike == pytest.approx(a * s**2 / (a * s**2 + 1 - a), abs=0.08), "what a posterior draw keeps of x"


def test_the_checkpointed_gradient_is_exact() -> None:
    stage = untrained()[3]
    x = few(3)[0].double()
    stage.double()
    leaf = x.clone().requires_grad_(True)
    weights = torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad((_with(stage, leaf, keyed(x), 0) * weights).sum(), leaf)
    way = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    ahead, behind = (_with(stage, x + sign * 1e-6 * way, keyed(x), 0) for sign in (1, -1))
    slope = float(((ahead - behind) * weights).sum()) / 2e-6
    assert float((grad * way).sum()) == pytest.approx(slope, rel=1e-4)


def test_training_repeats_itself_and_leaves_the_victim_and_the_random_state(digits: Victim) -> None:
    x, y = load_digits("train")
    x, y = x[:64], y[:64]
    state, before = torch.random.get_rng_state(), digits.fingerprint()
    for train in (
        lambda: train_hgd(digits, x, y, sp.Linf(0.1), epochs=1, width=4),
        lambda: train_generator(x, latent=4, breadth=4, steps=2),
        lambda: train_noise_predictor(x, epochs=1, width=4),
    ):
        first, again = (train().state_dict() for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert digits.fingerprint() == before
    assert isinstance(digits.net, nn.Module)
    assert all(parameter.grad is None for parameter in digits.net.parameters())


# -- each with its break -----------------------------------------------------------------------------------------------


def test_a_guided_denoiser_mends_what_was_made_for_the_bare_network_and_nothing_made_for_itself(
    digits: Victim, denoiser: UNet
) -> None:
    x, y = few(100)
    victim = digits.defended(pre=[HGD(net=denoiser)])
    assert accuracy(victim, x, y) > 0.93
    moved = sp.PGD(steps=40)(digits, x, y, sp.Linf(0.2))
    assert moved.robust_accuracy < 0.05
    assert accuracy(victim, moved.adversarial, y) > 0.65, "naive"
    assert sp.PGD(steps=40)(victim, x, y, sp.Linf(0.2)).robust_accuracy < 0.35, "end to end"


@pytest.mark.parametrize("tangent", [False, True])
def test_defense_gan_hides_its_gradient_and_falls_to_the_identity_or_to_the_tangent(
    digits: Victim, generator: Generator, tangent: bool
) -> None:
    x, y = few()
    space = sp.Linf(0.3)
    assert accuracy(digits.defended(pre=[gan(generator)]), x, y) > 0.85
    with pytest.warns(VanishedGradientWarning):
        naive = sp.PGD(steps=8)(digits.defended(pre=[gan(generator)]), x, y, space)
    assert naive.robust_accuracy > 0.85
    view = digits.defended(pre=[gan(generator, tangent=tangent)]).attack_view(eot=2)
    assert sp.PGD(steps=16)(view, x, y, space).robust_accuracy < 0.4


@pytest.mark.parametrize("exact", [False, True])
def test_a_diffusion_hides_its_gradient_and_falls_to_the_expectation(
    digits: Victim, predictor: UNet, exact: bool
) -> None:
    x, y = few()
    space = sp.Linf(0.3)
    victim = digits.defended(pre=[DiffusionPurifier(eps_net=predictor, t_star=5, exact=exact)])
    blind = digits.defended(pre=[DiffusionPurifier(eps_net=predictor, t_star=5, exact=False)])
    assert accuracy(victim, x, y) > 0.88
    with pytest.warns(VanishedGradientWarning):
        assert sp.PGD(steps=15)(blind, x, y, space).robust_accuracy > 0.85
    assert sp.PGD(steps=15)(victim.attack_view(eot=6), x, y, space).robust_accuracy < 0.35


# -- files and commands ------------------------------------------------------------------------------------------------


def test_saved_and_loaded_back_they_answer_the_same(tmp_path: Path, digits: Victim) -> None:
    x = few()[0]
    for number, stages in enumerate([stage] for stage in untrained()):
        path = save_defended(tmp_path / f"{number}.defended", "digits", stages)
        back = load_defended(path)
        victim = digits.defended(pre=stages)
        assert torch.equal(back.query(x, keyed(x)).scores, victim.query(x, keyed(x)).scores)
        assert back.traits == victim.traits
        assert back.fingerprint() == load_defended(path).fingerprint()
    path = save_defended(tmp_path / "all.defended", "digits", untrained())
    victim = digits.defended(pre=untrained())
    assert torch.equal(load_defended(path).query(x, keyed(x)).scores, victim.query(x, keyed(x)).scores)


def test_one_network_in_a_stage_and_in_a_detector_is_saved_for_both(tmp_path: Path, digits: Victim) -> None:
    x, y = few(200)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shared = Autoencoder(1, 4).eval()
    guard = ReconstructionError(autoencoder=shared).fit(digits, x, y)
    victim = digits.defended(pre=[Reformer(autoencoder=shared)], detector=guard)
    back = load_defended(save_defended(tmp_path / "a.defended", "digits", [Reformer(autoencoder=shared)], guard))
    ours, theirs = victim.query(x), back.query(x)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.accepted, theirs.accepted)


def test_a_file_without_the_networks_tensors_is_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = save_defended(tmp_path / "a.defended", "digits", untrained()[:1])
    with safe_open(str(path), framework="pt") as stored:
        told = stored.metadata()
    save_file({}, path, metadata=told)
    with pytest.raises(LoadError, match="no defended victim"):
        load_defended(path)


def test_defend_trains_them_from_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparring.cli import main

    file = tmp_path / "purified.defended"
    words = ["defend", "--samples", "128", "--out", str(file)]
    for stage in ("hgd:eps=0.2,width=4,epochs=1", "defense-gan:latent=4,epochs=1,steps=5,starts=1"):
        words += ["--with", stage]
    assert main([*words, "--with", "diffusion:t_star=2,width=4,epochs=1"]) == 0, capsys.readouterr().err
    assert "attack_view(eot=30)" in capsys.readouterr().out
    x = few()[0]
    victim = load_defended(file)
    assert [type(stage) for stage in victim.stages] == [HGD, DefenseGAN, DiffusionPurifier]
    assert torch.equal(victim.query(x, keyed(x)).scores, load_defended(file).query(x, keyed(x)).scores)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("hgd", {"eps": 0.0}),
        ("hgd", {"lo": 1.0}),
        ("hgd", {"width": 0}),
        ("defense-gan", {"starts": 0}),
        ("defense-gan", {"momentum": 1.0}),
        ("defense-gan", {"lr": -1.0}),
        ("diffpure", {"t_star": 51}),
        ("diffpure", {"betas": (0.1, 1.0), "t_star": 1}),
        ("diffpure", {"betas": (), "t_star": 1}),
    ],
)
def test_settings_that_cannot_be_right_are_refused(name: str, params: dict[str, float]) -> None:
    with pytest.raises(InputError, match="needed"):
        defence_class(name)(**params)


def test_inputs_that_cannot_be_right_are_refused(digits: Victim) -> None:
    x, y = few(2)
    for stage in untrained():
        with pytest.raises(InputError, match="pictures"):
            stage(torch.zeros(2, 64))
    for stage in (HGD(), DefenseGAN(), DiffusionPurifier()):
        with pytest.raises(VictimError, match="fit"):
            stage(x)
    with pytest.raises(InputError, match="the generator makes"):
        untrained()[1](torch.zeros(1, 1, 12, 12))
    with pytest.raises(InputError, match="latent"):
        DefenseGAN(generator=Generator(1, 8, 8, 4), latent=5)(x)
    for wrong in (lambda: train_generator(x[:0]), lambda: train_noise_predictor(x[:0])):
        with pytest.raises(InputError, match="no picture"):
            wrong()
    with pytest.raises(InputError, match="no picture"):
        train_hgd(digits, x[:0], y[:0], sp.Linf(0.1))
    with pytest.raises(InputError, match="epochs"):
        train_noise_predictor(x, epochs=0)
