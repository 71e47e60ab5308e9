"""Attacks inside a ball: momentum and input transforms as parts, Auto-PGD's decisions, and known numbers on real networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparring as sp
import tiny
from sparring.attacks.gradient import (
    ACG,
    APGD,
    APGDT,
    BIM,
    DIFGSM,
    MIFGSM,
    NIFGSM,
    SIFGSM,
    VMIFGSM,
)
from sparring.attacks.gradient.auto_steps import ConjugateSteps, HalvingSteps, Peak, SparseSteps
from sparring.attacks.gradient.momentum import momentum
from sparring.attacks.gradient.parts import Climber
from sparring.attacks.gradient.transforms import (
    DiverseInputs,
    ScaleInvariance,
    TranslationInvariance,
    parse,
    resize_and_pad,
    seen_through,
)
from sparring.core.errors import InputError, UnknownNameError
from sparring.core.losses import get_loss
from sparring.core.registry import Card
from sparring.core.result import Outcome
from sparring.core.rng import KeyedRandom, content_ids
from sparring.core.runner import Gradient, Run

BALLS = {"linf": sp.Linf(0.1), "l2": sp.L2(0.5), "l1": sp.L1(2.0)}
every_ball = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)


@dataclass(frozen=True, kw_only=True)
class Probe(sp.Attack):
    """Takes one gradient through input transforms and hands it out, with what the run had counted."""

    transform: str = ""
    card = Card(name="probe", title="", paper="", access=sp.Access.GRADIENTS, spaces=("linf",))

    def search(self, run: Run) -> None:
        run.begin(Climber(run.x))
        seen.append(seen_through(self.transform)(run, run.x, get_loss("margin"), 0))


seen: list[Gradient] = []


def probe(victim: sp.Victim, x: Tensor, y: Tensor, transform: str) -> tuple[Gradient, sp.AttackResult]:
    seen.clear()
    result = Probe(transform=transform)(victim, x, y, sp.Linf(0.01))
    return seen[0], result


# -- input transforms --------------------------------------------------------------------------------------------------


def test_each_picture_is_resized_and_padded_as_by_interpolation() -> None:
    x = torch.rand(5, 3, 11, 17, generator=torch.Generator().manual_seed(0))
    size = torch.tensor([[11.0, 17.0], [10.0, 15.0], [7.0, 17.0], [11.0, 9.0], [1.0, 1.0]])
    corner = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 0.0], [0.0, 8.0], [10.0, 16.0]])
    got = resize_and_pad(x, size, corner)
    for i in range(5):
        (h, w), (top, left) = size[i].int().tolist(), corner[i].int().tolist()
        small = F.interpolate(x[i : i + 1], size=(h, w), mode="bilinear", align_corners=False)
        wanted = F.pad(small, (left, 17 - w - left, top, 11 - h - top))
        torch.testing.assert_close(got[i : i + 1], wanted, atol=1e-5, rtol=0)


def test_diverse_inputs_transform_about_their_share_and_leave_the_rest_alone() -> None:
    x = torch.rand(400, 1, 10, 8, generator=torch.Generator().manual_seed(0))
    run: Any = SimpleNamespace(rng=KeyedRandom(0, content_ids(x)))  # all that a view asks of a run
    view, untouched = DiverseInputs(0.3, 0.5).view(x, 0, run, ("s",))
    assert torch.equal(view[untouched], x[untouched])
    assert 0.6 < untouched.double().mean() < 0.8
    black = (view[~untouched] == 0).flatten(1).sum(1)
    assert black.unique().numel() > 5, "the sizes do not differ between samples"
    again, _ = DiverseInputs(0.3, 0.5).view(x, 0, run, ("t",))
    assert not torch.equal(view, again), "two steps draw the same"


def test_a_sample_is_transformed_alike_alone_and_in_company() -> None:
    x, y = tiny.correct(9)
    ball, attack = sp.L2(0.1), MIFGSM(transform="di+ti=3+si=2", steps=4)  # nothing breaks: all views are drawn
    whole = attack(tiny.trained(), x, y, ball, batch_size=9)
    single = attack(tiny.trained(), x, y, ball, batch_size=1)
    assert torch.equal(whole.outcome, single.outcome)
    torch.testing.assert_close(whole.adversarial, single.adversarial, atol=1e-4, rtol=0)
    assert not torch.equal(whole.adversarial, attack(tiny.trained(), x, y, ball, seed=1).adversarial)


def test_smoothing_is_the_convolution_with_a_two_dimensional_gaussian() -> None:
    grad = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    place = torch.linspace(-3, 3, 5)
    kernel = torch.exp(-(place[:, None].square() + place.square()) / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 5, 5)
    wanted = F.conv2d(grad, kernel, padding=2, groups=3)
    torch.testing.assert_close(TranslationInvariance(5).smooth(grad), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(TranslationInvariance(1).smooth(grad), grad)
    flat = torch.ones(1, 1, 20, 20)
    torch.testing.assert_close(TranslationInvariance(7).smooth(flat)[..., 6:-6, 6:-6], flat[..., 6:-6, 6:-6])


def test_scale_invariance_averages_the_gradients_of_the_scaled_inputs() -> None:
    # the margin of a linear victim has the gradient w, and that of x / 2^i has w / 2^i
    victim = tiny.linear([[3.0, -1.0], [0.0, 0.0]])
    x, y = torch.tensor([[0.9, 0.1], [0.8, 0.3]]), torch.tensor([0, 0])
    got, result = probe(victim, x, y, "si=3")
    torch.testing.assert_close(got.grad, torch.tensor([[-3.0, 1.0]] * 2) * (1 + 0.5 + 0.25) / 3)
    assert result.backwards.tolist() == [3, 3]
    assert probe(victim, x, y, "")[1].backwards.tolist() == [1, 1]


def test_scales_and_sizes_combine_into_every_pair() -> None:
    got, result = probe(tiny.trained(), *tiny.correct(3), "si=2+di=1+ti=3")
    assert result.backwards.tolist() == [2, 2, 2]
    assert got.grad.shape == (3, 1, tiny.SIDE, tiny.SIDE)


def test_an_answer_to_a_transformed_input_is_no_success() -> None:
    # class 1 wherever the sum is below 1: x / 2 is adversarial, x and all its neighbours within .01 are not
    victim = tiny.linear([[1.0, 1.0], [0.0, 0.0]], [0.0, 1.0])
    x, y = torch.tensor([[0.9, 0.9]]), torch.tensor([0])
    for attack in (SIFGSM(steps=3), VMIFGSM(steps=3, radius=300.0), MIFGSM(steps=3, transform="si=4")):
        result = attack(victim, x, y, sp.Linf(0.01))
        assert result.outcomes == [Outcome.SURVIVED], attack
        assert result.backwards.item() > 3, "the search must not have ended early"


def test_a_step_that_leaves_a_sample_as_it_is_counts_as_an_answer() -> None:
    # with probability 0 nothing is transformed: the climb ends at its first success, long before its steps are over
    x, y = tiny.correct(6)
    plain, diverse = (MIFGSM(transform=t, steps=40)(tiny.trained(), x, y, sp.Linf(0.3)) for t in ("", "di=0"))
    assert plain.succeeded.all()
    assert torch.equal(plain.adversarial, diverse.adversarial)
    assert (diverse.backwards < 40).all()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ()),
        ("di", (DiverseInputs(),)),
        ("ti=7 + si=3", (TranslationInvariance(7), ScaleInvariance(3))),
        ("di=0.7", (DiverseInputs(0.7),)),
    ],
)
def test_transforms_are_read_from_text(text: str, wanted: tuple[object, ...]) -> None:
    assert parse(text) == wanted


def test_texts_that_name_no_transform_say_which_there_are() -> None:
    with pytest.raises(UnknownNameError, match="di"):
        parse("dl")
    with pytest.raises(InputError, match="ti=7"):
        parse("ti=wide")
    with pytest.raises(InputError, match="odd"):
        parse("ti=4")
    with pytest.raises(InputError, match="at least one"):
        parse("si=0")
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        parse("di=2")
    with pytest.raises(InputError, match=r"\(n, c, h, w\)"):
        DIFGSM()(tiny.threshold(), torch.tensor([[0.6]]), torch.tensor([1]), sp.Linf(0.05))


# -- momentum ----------------------------------------------------------------------------------------------------------


def test_momentum_adds_gradients_of_unit_size() -> None:
    first, second = torch.tensor([[3.0, -1.0]]), torch.tensor([[0.0, 8.0]])
    turn = momentum(0.5, 2.0)
    d, memory = turn(first, None)
    torch.testing.assert_close(d, first / 10**0.5)
    d, _ = turn(second, memory)
    torch.testing.assert_close(d, 0.5 * first / 10**0.5 + torch.tensor([[0.0, 1.0]]))
    d, _ = momentum(1.0, float("inf"))(first, None)
    torch.testing.assert_close(d, first / 2)
    assert torch.isfinite(momentum(1.0, 2.0)(torch.zeros(1, 2), None)[0]).all()


@every_ball
def test_without_its_own_idea_each_method_is_the_one_before(ball: sp.Linf | sp.L2 | sp.L1) -> None:
    x, y = tiny.correct(8)
    ball = replace(ball, eps=ball.eps / 4)  # small enough that all run to the end
    size = ball.eps / 6

    def end(attack: sp.Attack) -> Tensor:
        adversarial = attack(tiny.trained(), x, y, ball, early_stop=False).adversarial
        assert isinstance(adversarial, Tensor)
        return adversarial

    bim, mi = end(BIM(steps=6, step_size=size)), end(MIFGSM(steps=6, step_size=size))
    torch.testing.assert_close(end(MIFGSM(steps=6, step_size=size, decay=0.0)), bim, atol=1e-5, rtol=0)
    torch.testing.assert_close(end(NIFGSM(steps=6, step_size=size, decay=0.0)), bim, atol=1e-5, rtol=0)
    torch.testing.assert_close(end(VMIFGSM(steps=6, step_size=size, radius=0.0)), mi, atol=1e-5, rtol=0)
    assert not torch.allclose(mi, bim, atol=1e-4), "momentum changes nothing"
    assert not torch.allclose(end(NIFGSM(steps=6, step_size=size)), mi, atol=1e-5), "looking ahead changes nothing"
    assert not torch.allclose(end(VMIFGSM(steps=6, step_size=size)), mi, atol=1e-5), "the neighbours change nothing"


def test_every_gradient_is_counted_and_a_budget_is_exact() -> None:
    x, y = tiny.correct(3)
    small = sp.Linf(0.001)
    result = VMIFGSM(steps=4, neighbours=3)(tiny.trained(), x, y, small)
    assert result.backwards.tolist() == [4 + 3 * 3] * 3
    capped = VMIFGSM(steps=4, neighbours=3)(tiny.trained(), x, y, sp.ThreatModel(small, steps=7))
    assert capped.backwards.tolist() == [7] * 3
    assert MIFGSM(steps=4, transform="si=5")(tiny.trained(), x, y, small).backwards.tolist() == [20] * 3


# -- Auto-PGD ----------------------------------------------------------------------------------------------------------


def test_the_checkpoints_are_the_papers() -> None:
    assert list(HalvingSteps.checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(HalvingSteps.checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(HalvingSteps.checkpoints(1)) == []
    assert list(SparseSteps.checkpoints(100)) == list(range(4, 100, 4))


def test_each_sample_halves_its_own_step() -> None:
    x = torch.zeros(4, 2)
    ball = sp.Linf(torch.tensor([0.1, 0.1, 0.1, 0.4])).bound(x, None)
    rule = HalvingSteps.begin(ball, x, x)
    torch.testing.assert_close(rule.step, torch.tensor([0.2, 0.2, 0.2, 0.8]))
    peak = Peak(x, torch.tensor([1.0, 2.0, 3.0, 4.0]), x)
    rule.watch(torch.tensor([True, True, False, True]))
    rule.watch(torch.tensor([True, True, False, True]))
    assert rule.judge(ball, x, peak, 2, 0.75).tolist() == [False, False, True, False]
    torch.testing.assert_close(rule.step, torch.tensor([0.2, 0.2, 0.1, 0.8]))
    # all rose again; the first and the third found no new peak, but the third was halved at the last checkpoint
    for _ in range(2):
        rule.watch(torch.ones(4, dtype=torch.bool))
    peak = Peak(x, torch.tensor([1.0, 2.5, 3.0, 5.0]), x)
    assert rule.judge(ball, x, peak, 2, 0.75).tolist() == [True, False, False, False]


def test_in_l1_a_sparser_peak_restores_the_step() -> None:
    x = torch.zeros(2, 10)
    ball = sp.L1(1.0).bound(x, None)
    rule = SparseSteps.begin(ball, x, x, fresh=True)
    here = torch.zeros(2, 10)
    here[0, :4], here[1] = 0.1, 0.05
    assert rule.judge(ball, x, Peak(here, torch.zeros(2), here), 4, 0.75).tolist() == [True, False]
    torch.testing.assert_close(rule.step, torch.tensor([1.0, 1 / 1.5]))
    torch.testing.assert_close(rule.share, torch.tensor([0.4, 1.0]) / 1.5)
    for _ in range(9):
        rule.judge(ball, x, Peak(here, torch.zeros(2), here), 4, 0.75)
    torch.testing.assert_close(rule.step, torch.tensor([0.1, 0.1]), msg="the least step is a tenth of eps")
    move = rule.move(ball, x, x, torch.arange(10.0).expand(2, 10) + 1, first=True)
    assert (move != 0).sum(1).tolist() == [2, 6]  # the largest 4 / 1.5 and 10 / 1.5 elements, rounded down


def test_conjugate_directions_reach_the_top_of_a_quadratic_in_as_many_steps_as_it_has_dimensions() -> None:
    # with exact line searches; L(z) = -z'Az/2 + b'z has its top at A^-1 b
    A = torch.diag(torch.tensor([1.0, 5.0, 20.0]))
    b, x = torch.tensor([1.0, 1.0, 1.0]), torch.zeros(1, 3)
    ball = sp.L2(1e9).bound(x, None)
    rule, z = ConjugateSteps.begin(ball, x, x), x
    for _ in range(3):
        grad = b - z @ A
        rule.move(ball, x, z, grad, first=False)
        s = rule.along
        z = z + (grad * s).sum() / ((s @ A) * s).sum() * s
    torch.testing.assert_close(z @ A, b[None], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "attack", [APGD(loss="margin"), APGD(), APGDT(), ACG()], ids=lambda a: f"{a.card.name}-{a.loss}"
)
@pytest.mark.parametrize("ball", [sp.Linf, sp.L2, sp.L1])
def test_on_linear_victims_it_succeeds_just_above_the_closed_form_and_nowhere_below(
    attack: sp.Attack, ball: type[sp.Linf] | type[sp.L2] | type[sp.L1]
) -> None:
    if ball.name not in attack.card.spaces:
        pytest.skip(f"{attack.card.name} has no {ball.name}")
    g = torch.Generator().manual_seed(3)
    # untargeted climbs can end at the farther of two rivals: two classes for them, three for the climbs by class
    classes = 3 if isinstance(attack, APGDT) else 2
    w, x = torch.randn(classes, 12, generator=g), 0.5 + 0.05 * torch.randn(10, 12, generator=g)
    victim = tiny.linear(w)
    scores = x @ w.T
    y = scores.argmax(1)
    dual = {"linf": 1, "l2": 2, "l1": float("inf")}[ball.name]
    gap = scores.gather(1, y[:, None]) - scores
    slope = (w[y][:, None] - w[None]).norm(p=dual, dim=2)
    least = torch.where(gap > 0, gap / slope, torch.inf).amin(1)  # the bounds are far away
    assert attack(victim, x, y, ball(least * 1.02)).succeeded.all()
    assert not attack(victim, x, y, ball(least * 0.98)).succeeded.any()


def test_two_classes_are_enough() -> None:
    x, y = torch.tensor([[0.55], [0.45], [0.9]]), torch.tensor([1, 0, 1])
    for attack in (APGD(steps=10), APGD(steps=10, loss="dlr"), APGDT(steps=10), ACG(steps=10)):
        result = attack(tiny.threshold(0.5), x, y, sp.Linf(0.1))
        assert result.succeeded.tolist() == [True, True, False], attack


def test_the_classes_are_taken_in_the_order_of_the_clean_scores() -> None:
    # class 1 scores second, but only class 2 can be reached: its score rises with the input
    victim = tiny.linear([[0.0], [0.0], [10.0], [0.0]], [5.0, 4.0, 0.0, 3.0])
    x, y = torch.tensor([[0.3], [0.3]]), torch.tensor([0, 0])
    ball = sp.Linf(torch.tensor([0.25, 0.15]))
    assert not APGDT(steps=5, classes=1)(victim, x, y, ball).succeeded.any()
    result = APGDT(steps=5, classes=2)(victim, x, y, ball)
    assert result.succeeded.tolist() == [True, False]
    # clean scores are 5, 4, 3, 3: class 2 comes second, after 5 steps and a last look at class 1
    assert result.backwards.tolist()[1] == 10
    assert APGDT(steps=5)(victim, x, y, ball).backwards.tolist()[1] == 15, "three other classes, no more"


@every_ball
def test_what_comes_back_is_the_best_point_seen(ball: sp.Linf | sp.L2 | sp.L1) -> None:
    points: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            points.append(x.detach().clone())
            bend = (x.flatten(1) * 40).sin().sum(1)  # many tops: a fixed step jumps over them
            return torch.stack([torch.zeros_like(bend), bend - 100], 1)

    x = torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    victim = sp.Victim(Recorder().eval())
    result = APGD(steps=30, loss="margin")(victim, x, torch.tensor([0]), ball)
    legal = [p for p in points if ball.bound(x, victim.bounds).contains(x, p).all()]
    best = max(float(victim.query(p).scores[0, 1]) for p in legal)
    end = float(victim.query(result.adversarial).scores[0, 1])
    assert end == pytest.approx(best, abs=1e-4)
    assert end > float(victim.query(x).scores[0, 1]) + 1


def test_in_l1_the_wider_balls_claim_nothing() -> None:
    # within 3 eps everything breaks, within eps nothing does
    w = torch.tensor([[1.0] * 6, [-1.0] * 6])
    x = torch.full((4, 6), 0.6)
    victim, y = (
        tiny.linear(w, [0.0, 6.0]),
        torch.zeros(4, dtype=torch.int64),
    )  # margin 2 * 3.6 - 6 = 1.2: least L1 is 0.6
    for attack in (APGD(steps=20), APGDT(steps=20)):
        short = attack(victim, x, y, sp.L1(0.4))
        assert short.outcomes == [Outcome.SURVIVED] * 4
        assert (short.distance <= 0.4 + 1e-5).all()
        assert attack(victim, x, y, sp.L1(0.62)).succeeded.all()


def test_in_l1_an_easy_sample_ends_before_the_climb_reaches_the_true_ball() -> None:
    x, y = tiny.correct(6)
    result = APGD()(tiny.trained(), x, y, sp.L1(8.0))
    assert result.succeeded.all()
    assert (result.backwards <= 30).all(), "the first, widest ball alone takes 30 steps"


def test_restarts_meet_only_what_still_stands_and_never_lose_a_success() -> None:
    x, y = tiny.correct(12)
    ball = sp.Linf(0.06)
    one = APGD(steps=5)(tiny.trained(), x, y, ball)
    three = APGD(steps=5, restarts=3)(tiny.trained(), x, y, ball)
    assert (three.succeeded | ~one.succeeded).all()
    assert 0 < int(one.succeeded.sum()) < 12, "the eps no longer separates the samples"
    assert torch.equal(three.backwards[one.succeeded], one.backwards[one.succeeded])
    assert (three.backwards[~three.succeeded] == 15).all()


# -- random victims ----------------------------------------------------------------------------------------------------


class Flicker(nn.Module):
    """Multiplies each picture by its own random factor, 0 or 2: right on average, blind half of the time."""

    traits = sp.Traits(stochastic=True)
    keyed = True

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[Tensor] = []

    def forward(self, x: Tensor, noise: object = None, stream: int = 0) -> Tensor:
        factor = torch.ones(len(x)) if noise is None else noise.signs((1,), ("flicker", stream)).squeeze(1) + 1  # type: ignore[attr-defined]
        self.factors.append(factor)
        return x * factor.reshape(-1, *[1] * (x.ndim - 1))


def test_the_gradient_of_a_random_victim_is_the_mean_over_its_draws() -> None:
    stage = Flicker()
    victim = tiny.linear([[3.0, -1.0], [0.0, 0.0]], [0.5, 0.0], bounds=(-1.0, 1.0)).defended(pre=[stage])
    x, y = torch.tensor([[0.5, 0.1], [0.4, 0.2], [0.7, 0.3]]), torch.zeros(3, dtype=torch.int64)
    view = victim.attack_view(eot=6)
    view._inspected = True
    stage.factors.clear()
    seen.clear()
    result = Probe()(view, x, y, sp.Linf(0.01))
    draws = torch.stack(stage.factors[1:7])  # the first forward is the clean pass
    assert draws.unique().numel() == 2
    torch.testing.assert_close(seen[0].grad, draws.mean(0)[:, None] * torch.tensor([-3.0, 1.0]))
    torch.testing.assert_close(seen[0].scores[:, 0], 0.5 + draws.mean(0) * (x @ torch.tensor([3.0, -1.0])))
    assert result.backwards.tolist() == [6, 6, 6]


# -- known numbers on real networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "data", "ball", "alone", "with_targets"),
    [
        # how many of the first 50 AutoAttack's own APGD-CE leaves, and its APGD-T after it: 100 steps, 9 classes, seed 0
        ("mnist_adv", "mnist", sp.Linf(0.3), 38, 37),
        ("mnist_adv", "mnist", sp.L2(1.5), 31, 29),
        ("mnist_adv", "mnist", sp.L1(10.0), 15, 11),
        ("cifar10_adv_2px", "cifar10", sp.Linf(2 / 255), 22, 21),
        ("cifar10_adv_2px", "cifar10", sp.L2(0.5), 13, 13),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_it_leaves_no_more_than_autoattacks_does(
    zoo: ModuleType, network: str, data: str, ball: sp.Linf | sp.L2 | sp.L1, alone: int, with_targets: int
) -> None:
    victim, (x, y) = sp.Victim(zoo.load(network)), zoo.data(data, 50)
    first = APGD()(victim, x, y, ball)
    left = first.clean_correct & ~first.succeeded
    assert int(left.sum()) <= alone + 2, "one climb from one random start: two samples are its spread over seeds"
    rows = left.nonzero().squeeze(1)
    second = APGDT()(victim, x[rows], y[rows], ball)
    assert int((~second.succeeded).sum()) <= with_targets + 1
