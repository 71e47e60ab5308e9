"""Training defences: crafting without side effects, each loss by hand, runs that resume to the same weights, and what
they buy.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparring as sp
import tiny
from sparring.core import events
from sparring.core.errors import InputError, ThreatError, UnknownNameError, VanishedGradientWarning, VictimError
from sparring.core.threat import ThreatModel, Untargeted
from sparring.data import load_digits
from sparring.defences.training import (
    AWP,
    MART,
    TRADES,
    Crafter,
    Distillation,
    EntropyRegularised,
    EpochFinished,
    Fast,
    Free,
    Method,
    Mix,
    Mixture,
    Negatives,
    Network,
    PGDTraining,
    Probe,
    Settings,
    StandardTraining,
    Training,
    TrainingProgress,
    fit,
    probe,
)
from sparring.victims import digits as digits_net

QUICK = Settings(epochs=2, batch_size=64, lr=3e-3, held_out=80)
EPS = 0.1
METHODS: list[Method] = [
    StandardTraining(),
    Mix(),
    PGDTraining(),
    Fast(),
    Free(),
    TRADES(),
    MART(),
    AWP(),
    AWP(gamma=0.005, base=TRADES()),
    EntropyRegularised(),
    Negatives(count=50),
    Distillation(temperature=20.0),
]


def blobs(n: int = 400) -> tuple[Tensor, Tensor]:
    return tiny.pictures(n, seed=1)


def weights(victim: sp.Victim) -> dict[str, Tensor]:
    assert isinstance(victim.net, nn.Module)
    return {name: t.clone() for name, t in victim.net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# -- crafting ----------------------------------------------------------------------------------------------------------


class WithNorm(nn.Module):
    """Batch normalisation and dropout, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.out = nn.BatchNorm2d(1), nn.Dropout(0.3), nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.norm(x)).flatten(1))


def test_crafting_leaves_modes_statistics_gradients_and_the_global_state() -> None:
    x, y = blobs(16)
    net = WithNorm().train()
    victim = sp.Victim(net)
    before, states = weights(victim), tiny.random_states()
    crafted = sp.PGD(steps=3).craft(victim, x, y, sp.Linf(EPS))
    assert same(before, weights(victim))
    assert all(m.training for m in net.modules())
    assert all(p.grad is None for p in net.parameters())
    assert tiny.random_states() == states
    assert not crafted.requires_grad
    assert float((crafted - x).abs().max()) <= EPS + 1e-6
    assert float(crafted.min()) >= 0
    assert float(crafted.max()) <= 1


def test_crafting_is_the_attack_to_its_end_for_every_sample() -> None:
    victim, (x, y) = tiny.trained(), tiny.correct(8)
    wrong = (y + 1) % tiny.CLASSES  # the call would skip what is misread already
    labels = torch.cat([y[:4], wrong[4:]])
    attack = sp.PGD(steps=4)
    crafted = attack.craft(victim, x, labels, sp.Linf(EPS), seed=3)
    called = attack(victim, x, labels, sp.Linf(EPS), seed=3, early_stop=False).adversarial
    assert torch.equal(crafted, called)
    assert torch.equal(crafted[5:6], attack.craft(victim, x[5:6], labels[5:6], sp.Linf(EPS), seed=3))
    assert not torch.equal(crafted, attack.craft(victim, x, labels, sp.Linf(EPS), seed=4))


def test_crafting_costs_the_steps_and_nothing_else() -> None:
    watched, spy = tiny.spied(tiny.trained())
    x, y = tiny.correct(8)
    sp.PGD(steps=5).craft(watched, x, y, sp.Linf(EPS))
    assert spy.batches == [8] * 5


def test_crafting_towards_a_target_leaves_those_that_are_there() -> None:
    victim, (x, y) = tiny.trained(), tiny.correct(8)
    crafted = sp.PGD(steps=3).craft(victim, x, y, sp.Linf(EPS), goal=int(y[0]))
    assert torch.equal(crafted[y == y[0]], x[y == y[0]])
    assert not torch.equal(crafted[y != y[0]], x[y != y[0]])
    assert sp.PGD(steps=3).craft(victim, x[:0], y[:0], sp.Linf(EPS)).shape == x[:0].shape


@pytest.mark.parametrize("name", ["apgd", "mi-fgsm", "deepfool", "gaussian-noise"])
def test_any_attack_crafts(name: str) -> None:
    from sparring.core.registry import make_attack

    victim, (x, y) = tiny.trained(), tiny.correct(6)
    attack = make_attack(name)
    space = sp.L2(1.0) if name in ("deepfool", "gaussian-noise") else sp.Linf(EPS)
    crafted = attack.craft(victim, x, y, space)
    assert crafted.shape == x.shape
    assert not torch.equal(crafted, x)


def test_a_mixture_takes_turns_or_the_worst() -> None:
    victim, (x, y) = tiny.trained(), tiny.correct(8)
    duels = [(sp.PGD(steps=3), sp.Linf(0.02)), ("pgd", sp.Linf(0.2))]
    turns = Crafter(victim, Mixture(duels), seed=0)
    reach = []
    for turns.step in (0, 1, 2):
        reach.append(float((turns(x, y) - x).abs().max()))
    assert reach[0] <= 0.021
    assert reach[1] > 0.1
    assert reach[2] <= 0.021
    worst = Crafter(victim, Mixture(duels, pick="worst"), seed=0)
    assert bool(((worst(x, y) - x).flatten(1).abs().amax(1) > 0.021).all()), "the wider ball holds the worse inputs"
    with pytest.raises(UnknownNameError, match="turns"):
        Mixture(duels, pick="best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no attacks"):
        Mixture([])


# -- losses by hand ----------------------------------------------------------------------------------------------------


class Shift(Crafter):
    """Crafts by adding a constant, so that losses can be worked out by hand."""

    def __init__(self, victim: sp.Victim) -> None:
        super().__init__(victim, Mixture([("pgd", sp.Linf(EPS))]), 0)

    def __call__(self, x: Tensor, y: Tensor, loss: Any = None) -> Tensor:
        return (x + 0.05).clamp(0, 1)


def by_hand(method: Method) -> tuple[float, sp.Victim, Tensor, Tensor, Tensor, Tensor]:
    victim = sp.Victim(tiny.network())
    x, y = blobs(12)
    value = float(method(Network(victim), x, y, Shift(victim)).detach())
    with torch.no_grad():
        p, q = (victim.scores(z).log_softmax(1) for z in (x, (x + 0.05).clamp(0, 1)))
    return value, victim, p, q, x, y


def test_the_losses_are_the_papers() -> None:
    value, _, p, q, _, y = by_hand(Mix(clean=0.3))
    assert value == pytest.approx(float(0.3 * F.nll_loss(p, y) + 0.7 * F.nll_loss(q, y)), rel=1e-5)
    value, _, p, q, _, y = by_hand(PGDTraining())
    assert value == pytest.approx(float(F.nll_loss(q, y)), rel=1e-5)
    value, _, p, q, _, y = by_hand(TRADES(beta=2.0))
    kl = (p.exp() * (p - q)).sum(1)
    assert value == pytest.approx(float(F.nll_loss(p, y) + 2 * kl.mean()), rel=1e-4)
    value, _, p, q, _, y = by_hand(MART(beta=3.0))
    rows = torch.arange(len(y))
    rival = q.exp().index_put((rows, y), torch.tensor(0.0)).amax(1)
    boosted = F.nll_loss(q, y) - (1 - rival).log().mean()
    weighted = (kl * (1 - p.exp()[rows, y])).mean()
    assert value == pytest.approx(float(boosted + 3 * weighted), rel=1e-4)
    value, _, p, q, _, y = by_hand(EntropyRegularised(weight=0.5))
    assert value == pytest.approx(float(F.nll_loss(p, y) - 0.5 * (p.exp() * p).sum(1).mean()), rel=1e-5)


def test_distillation_is_the_softened_cross_entropy_times_t() -> None:
    teacher = sp.Victim(tiny.network(seed=5))
    value, victim, *_, x, _y = by_hand(Distillation(temperature=7.0, teacher=teacher))
    with torch.no_grad():
        told = (teacher.scores(x) / 7).softmax(1)
        said = (victim.scores(x) / 7).log_softmax(1)
    assert value == pytest.approx(float(-7 * (told * said).sum(1).mean()), rel=1e-5)


def test_weight_perturbation_raises_the_loss_and_its_gradient_is_there() -> None:
    victim = sp.Victim(tiny.network())
    x, y = blobs(32)
    model, attack = Network(victim), Shift(victim)
    before = weights(victim)
    plain = PGDTraining()(model, x, y, attack)
    raised = AWP(gamma=0.05)(model, x, y, attack)
    assert float(raised.detach()) > float(plain.detach()) + 1e-3
    assert same(before, weights(victim))
    raised.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    closer = AWP(gamma=1e-6)(model, x, y, attack)
    assert float(closer.detach()) == pytest.approx(float(plain.detach()), abs=1e-4)


def test_free_training_moves_the_perturbation_by_the_same_backward() -> None:
    victim = sp.Victim(tiny.network())
    x, y = blobs(16)
    crafter = Crafter(victim, Mixture([("pgd", sp.Linf(EPS))]), 0)
    loss = Free()(Network(victim), x, y, crafter)
    assert crafter.carried is None
    loss.backward()
    first = crafter.carried
    assert first is not None
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(F.cross_entropy(victim.scores(leaf), y), leaf)
    torch.testing.assert_close(first, (x + EPS * grad.sign()).clamp(0, 1) - x)
    Free()(Network(victim), x, y, crafter).backward()
    assert float((x + crafter.carried).max()) <= 1
    assert float(crafter.carried.abs().max()) <= EPS + 1e-6


def test_negatives_join_the_training_set() -> None:
    x, y = blobs(10)
    both, labels = Negatives(count=4).data(x, y, sp.Victim(tiny.network()).bounds)
    assert len(both) == len(labels) == 14
    torch.testing.assert_close(both[10:], 1 - x[:4])
    only, _ = Negatives(only=True).data((x * 255).byte(), y, sp.Victim(tiny.network()).bounds)
    assert torch.equal(only, 255 - (x * 255).byte())
    with pytest.raises(InputError, match="11"):
        Negatives(count=11).data(x, y, sp.Victim(tiny.network()).bounds)


# -- the loop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda m: repr(m)[:40])
def test_every_method_learns_and_leaves_its_victim_alone(method: Method) -> None:
    victim = sp.Victim(tiny.network())
    before, states = weights(victim), tiny.random_states()
    settings = dataclasses.replace(QUICK, epochs=6, schedule="constant")
    done = fit(victim, blobs(), method, sp.Linf(0.03), attack=None, settings=settings)
    assert same(before, weights(victim))
    assert tiny.random_states() == states
    x, y = tiny.pictures(80, seed=9)
    assert float((done.victim.query(x).labels == y).float().mean()) > 0.8
    assert isinstance(done.victim.net, nn.Module)
    assert not done.victim.net.training
    assert all(p.grad is None for p in done.victim.net.parameters())
    assert done.method == method.card.name
    assert len(done.history) == settings.epochs


def test_pictures_of_bytes_train_like_their_fractions() -> None:
    x, y = blobs(200)
    halves = [fit(sp.Victim(tiny.network()), (z, y), "standard", settings=QUICK) for z in (x, (x * 255).round().byte())]
    torch.testing.assert_close(weights(halves[0].victim), weights(halves[1].victim), atol=1e-5, rtol=1e-4)


def test_a_seed_is_a_run() -> None:
    runs = [fit(sp.Victim(tiny.network()), blobs(200), Fast(), sp.Linf(EPS), settings=QUICK, seed=s) for s in (0, 0, 1)]
    assert same(weights(runs[0].victim), weights(runs[1].victim))
    assert not same(weights(runs[0].victim), weights(runs[2].victim))


def test_events_tell_every_step_and_epoch() -> None:
    heard: list[events.Event] = []
    with events.listening(heard.append):
        fit(sp.Victim(tiny.network()), blobs(200), "standard", settings=QUICK)
    steps = [e for e in heard if isinstance(e, TrainingProgress)]
    rows = [e.row for e in heard if isinstance(e, EpochFinished)]
    assert [e.step for e in steps] == list(range(1, steps[0].steps + 1))
    assert [row.epoch for row in rows] == [1, 2]
    assert max(e.lr for e in steps) <= QUICK.lr
    assert steps[0].lr < steps[2].lr > steps[-1].lr


def test_patience_ends_a_run_and_the_best_epoch_is_kept() -> None:
    settings = Settings(epochs=30, batch_size=64, lr=0.5, schedule="constant", optimiser="sgd", patience=2, held_out=80)
    done = fit(sp.Victim(tiny.network()), blobs(), "pgd-training", sp.Linf(EPS), settings=settings)
    best = max(row.pgd or 0.0 for row in done.history)
    assert done.history[done.chosen - 1].pgd == best
    assert len(done.history) == done.chosen + 2 < 30
    x, y = blobs()
    seen = probe(done.victim, x[-80:], y[-80:], ThreatModel(sp.Linf(EPS)))
    assert seen.pgd == best


def test_mistakes_are_told_in_time() -> None:
    victim, data = sp.Victim(tiny.network()), blobs(50)
    with pytest.raises(ThreatError, match="Linf"):
        fit(victim, data, "trades")
    with pytest.raises(InputError, match="trains nothing"):
        fit(victim, data, "jpeg")
    with pytest.raises(UnknownNameError, match="pgd-training"):
        fit(victim, data, "pgd-trainin")
    with pytest.raises(InputError, match="climbs"):
        fit(victim, data, TRADES(), sp.Linf(EPS), attack="gaussian-noise", settings=QUICK)
    with pytest.raises(InputError, match="empty"):
        fit(victim, (data[0][:0], data[1][:0]), "standard")
    with pytest.raises(InputError, match="pairs"):
        fit(victim, (data[0], data[1][:3]), "standard")
    with pytest.raises(VictimError, match="lower lr"):
        fit(victim, data, "standard", settings=Settings(epochs=9, lr=1e38, optimiser="sgd", schedule="constant"))
    with pytest.raises(UnknownNameError, match="cosine"):
        Settings(schedule="cosin")


# -- interruptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Fast(), Free(), Distillation(temperature=5.0)], ids=lambda m: m.card.name)
def test_a_run_stopped_between_epochs_goes_on_to_the_same_weights(method: Method, tmp_path: Path) -> None:
    def train(folder: Path | None) -> Training:
        return fit(sp.Victim(tiny.network()), blobs(200), method, sp.Linf(EPS), settings=QUICK, folder=folder)

    whole = train(None)

    class StoppedError(Exception):
        pass

    def stop(event: events.Event) -> None:
        if isinstance(event, TrainingProgress) and event.step == event.steps // 2 + 1:
            raise StoppedError

    for _ in range(2 if method.card.name == "distillation" else 1):  # its teacher is stopped as well
        with pytest.raises(StoppedError), events.listening(stop):
            train(tmp_path)
    resumed = train(tmp_path)
    assert same(weights(whole.victim), weights(resumed.victim))
    drop = {"seconds": 0.0}
    assert [dataclasses.replace(r, **drop) for r in whole.history] == [
        dataclasses.replace(r, **drop) for r in resumed.history
    ]
    assert resumed.chosen == whole.chosen


def test_another_training_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    fit(sp.Victim(tiny.network()), blobs(100), "standard", settings=QUICK, folder=tmp_path)
    with pytest.raises(InputError, match="another training"):
        fit(sp.Victim(tiny.network()), blobs(100), "standard", settings=QUICK, folder=tmp_path, seed=1)
    with pytest.raises(InputError, match="another training"):
        fit(sp.Victim(tiny.network(seed=1)), blobs(100), "standard", settings=QUICK, folder=tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(sp.SparringError, match="intact"):
        fit(sp.Victim(tiny.network()), blobs(100), "standard", settings=QUICK, folder=tmp_path)


SCRIPT = """
import sys, torch, tiny, sparring as sp
from sparring.defences.training import fitting, Fast, Settings, fit
torch.set_num_threads(1)
fitting.SAVE_EVERY = 0.0
settings = Settings(epochs=12, batch_size=8, lr=3e-3, held_out=80)
done = fit(sp.Victim(tiny.network()), tiny.pictures(400, seed=1), Fast(), sp.Linf(0.1), settings=settings,
           folder=sys.argv[1])
from safetensors.torch import save_file
save_file(done.victim.net.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path]), "OMP_NUM_THREADS": "1"}

    def start(folder: str, out: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / folder), str(tmp_path / out)], env=env)

    whole, running = start("whole", "whole.safetensors"), start("killed", "killed.safetensors")
    checkpoint, limit = tmp_path / "killed" / "checkpoint.safetensors", time.monotonic() + 100
    while not checkpoint.exists() and running.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.1)
    running.send_signal(signal.SIGKILL)
    assert running.wait(60) == -signal.SIGKILL, "it was too fast to be killed"
    assert not (tmp_path / "killed.safetensors").exists()
    assert start("killed", "killed.safetensors").wait(120) == 0
    assert whole.wait(120) == 0
    from safetensors.torch import load_file

    assert same(load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "killed.safetensors"))


# -- what they buy, and where they break -------------------------------------------------------------------------------


def fresh_digits() -> sp.Victim:
    return sp.Victim(digits_net.build(seed=1).eval(), name="digits")


def robust(victim: sp.Victim, eps: float, n: int = 200, **how: Any) -> float:
    x, y = load_digits("test")
    return sp.PGD(steps=20, **how)(victim, x[:n], y[:n], sp.Linf(eps)).robust_accuracy


def clean(victim: sp.Victim, negative: bool = False) -> float:
    x, y = load_digits("test")
    return float((victim.query(1 - x if negative else x).labels == y).float().mean())


@pytest.fixture(scope="module")
def ordinary() -> sp.Victim:
    return fit(fresh_digits(), load_digits("train"), "standard", settings=Settings(epochs=15, lr=5e-3)).victim


@pytest.mark.parametrize("method", [PGDTraining(), Fast(), TRADES(beta=3.0)], ids=lambda m: m.card.name)
def test_adversarial_training_buys_robustness(method: Method, ordinary: sp.Victim) -> None:
    settings = Settings(epochs=8, lr=5e-3, held_out=100)
    attack = None if isinstance(method, Fast) else sp.PGD(steps=4)
    done = fit(fresh_digits(), load_digits("train"), method, sp.Linf(0.15), attack=attack, settings=settings)
    assert clean(done.victim) > 0.93
    assert robust(done.victim, 0.15, loss="margin") > robust(ordinary, 0.15, loss="margin") + 0.25


def test_distillation_hides_from_cross_entropy_and_not_from_the_margin() -> None:
    settings = Settings(epochs=25, lr=1e-2)
    done = fit(fresh_digits(), load_digits("train"), Distillation(temperature=100.0), settings=settings)
    assert clean(done.victim) > 0.93
    with pytest.warns(VanishedGradientWarning):
        assert robust(done.victim, 0.3, loss="ce", random_start=False) > 0.7
    assert robust(done.victim, 0.3, loss="margin", random_start=False) < 0.02


def test_the_entropy_penalty_makes_answers_confident_and_a_margin_loss_does_not_mind(ordinary: sp.Victim) -> None:
    settings = Settings(epochs=15, lr=5e-3)
    done = fit(fresh_digits(), load_digits("train"), EntropyRegularised(weight=2.0), settings=settings)
    assert clean(done.victim) > 0.93
    x, _ = load_digits("test")
    entropies = []
    for victim in (done.victim, ordinary):
        log_p = victim.query(x).scores.log_softmax(1)  # type: ignore[union-attr]
        entropies.append(float(-(log_p.exp() * log_p).sum(1).mean()))
    assert entropies[0] < 0.7 * entropies[1]
    assert robust(done.victim, 0.2, loss="margin") < robust(ordinary, 0.2, loss="margin") + 0.1


def test_negatives_are_learnt_by_fine_tuning_and_by_nothing_else(ordinary: sp.Victim) -> None:
    assert clean(ordinary, negative=True) < 0.5
    settings = Settings(epochs=12, lr=3e-3)
    tuned = fit(ordinary, load_digits("train"), Negatives(), settings=settings).victim
    assert clean(tuned) > clean(ordinary) - 0.02
    assert clean(tuned, negative=True) > 0.93
    alone = fit(fresh_digits(), load_digits("train"), Negatives(only=True), settings=settings).victim
    assert clean(alone, negative=True) > 0.8
    assert clean(alone) < 0.5


def test_the_alarm_knows_a_network_that_only_fgsm_respects() -> None:
    assert Probe(clean=0.98, fgsm=0.9, pgd=0.1, cosine=0.9).overfitted
    assert Probe(clean=0.98, fgsm=0.5, pgd=0.45, cosine=0.1).overfitted
    assert not Probe(clean=0.98, fgsm=0.5, pgd=0.45, cosine=0.9).overfitted
    x, y = load_digits("test")
    x, y = x[:100], y[:100]
    threat = ThreatModel(sp.Linf(0.3), goal=Untargeted())
    settings = Settings(epochs=25, lr=1e-2, held_out=200)
    done = fit(fresh_digits(), load_digits("train"), Fast(step=2.0), sp.Linf(0.3), attack="fgsm", settings=settings)
    worst = max(done.history, key=lambda row: (row.fgsm or 0) - (row.pgd or 0))
    assert worst.overfitted, "training on the corners of a wide ball is the textbook case"
    assert worst.epoch in done.overfitted
    sound = probe(sp.load("digits"), x, y, dataclasses.replace(threat, space=sp.Linf(0.05)))
    assert not sound.overfitted


def test_curves_become_a_picture(tmp_path: Path) -> None:
    done = fit(sp.Victim(tiny.network()), blobs(100), "fast", sp.Linf(EPS), settings=QUICK, folder=tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 5000, "beside the checkpoint"
    with pytest.raises(InputError, match="no epoch"):
        dataclasses.replace(done, history=()).save_curves(tmp_path / "none.png")
