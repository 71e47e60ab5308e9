"""The victim: what networks may answer, which inputs and traits are refused, and that nothing is left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparring as sp
import tiny
from sparring.core.door import finite_scores
from sparring.core.errors import (
    InputError,
    SparringError,
    UnknownNameError,
    VictimError,
    VictimWarning,
)
from sparring.core.network import Victim

X = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1])
W = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
BIAS = -0.5 * W.sum(1)  # every class has its part of the unit cube


def logits(x: Tensor) -> Tensor:
    return x.flatten(1) @ W.T + BIAS


def plain(**how: Any) -> Victim:
    return tiny.linear(W, BIAS, **how)


@dataclass
class ModelOutput:
    logits: Tensor
    hidden_states: Any = None


def fixed(answer: Callable[[Tensor], Any], **how: Any) -> Victim:
    return Victim(tiny.Fixed(answer).eval(), name="odd", **how)


# -- what a network may answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "how"),
    [
        (logits, {}),
        (lambda x: ModelOutput(logits(x)), {}),
        (lambda x: {"logits": logits(x), "loss": torch.zeros(())}, {}),
        (lambda x: {"scores": logits(x), "embedding": torch.zeros(len(x), 7)}, {}),
        (lambda x: {"mine": logits(x), "loss": torch.zeros(())}, {}),  # the only tensor of its shape
        (lambda x: {"a": logits(x), "b": torch.zeros(len(x), 7)}, {"output": "a"}),
        (lambda x: ModelOutput(None, hidden_states=logits(x)), {"output": "hidden_states"}),
        (lambda x: (logits(x), torch.zeros(3)), {}),
        (lambda x: [logits(x)], {}),
        (lambda x: (1, logits(x)), {"output": lambda out: out[1]}),
        (lambda x: logits(x).softmax(1), {"probabilities": True}),
        (lambda x: {"logits": logits(x).softmax(1)}, {"probabilities": True}),
    ],
    ids=[
        "tensor",
        "output",
        "dict",
        "scores",
        "only",
        "key",
        "attribute",
        "tuple",
        "list",
        "function",
        "probs",
        "probs dict",
    ],
)
def test_class_scores_are_found(answer: Callable[[Tensor], Any], how: dict[str, Any]) -> None:
    victim = fixed(answer, **how)
    victim.admit(X, Y)
    assert victim.classes == 3
    scores = victim.query(X).scores
    torch.testing.assert_close(scores.log_softmax(1), logits(X).log_softmax(1), atol=1e-5, rtol=1e-5)
    assert torch.equal(victim.query(X).labels, logits(X).argmax(1))


@pytest.mark.parametrize("classes", [2, 3])
def test_two_and_three_classes_are_attacked(classes: int) -> None:
    victim = tiny.linear(W[:classes], BIAS[:classes])
    y = victim.query(X).labels
    for loss in ("ce", "margin", "dlr", "probability_margin"):
        result = sp.PGD(steps=10, loss=loss)(victim, X, y, sp.Linf(1.0))
        assert result.attack_success_rate > 0.5
        result = sp.PGD(steps=10, loss=loss)(victim, X, y, sp.Linf(1.0), goal=(y + 1) % classes)
        assert result.attack_success_rate > 0


@pytest.mark.parametrize("flat", [True, False], ids=["(n,)", "(n, 1)"])
def test_a_single_logit_is_two_classes(flat: bool) -> None:
    victim = fixed(lambda x: logits(x)[:, 0] if flat else logits(x)[:, :1])
    victim.admit(X, torch.zeros(5, dtype=torch.int64))
    answer = victim.query(X)
    assert victim.classes == 2
    assert torch.equal(answer.labels, (logits(X)[:, 0] > 0).long())
    torch.testing.assert_close(answer.scores.softmax(1)[:, 1], logits(X)[:, 0].sigmoid())
    result = sp.PGD(steps=10)(victim, X, answer.labels, sp.Linf(1.0))
    assert result.succeeded.any()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda p: p,
        lambda p: p[:, None],
        lambda p: {"logits": p[:, None]},
    ],
    ids=["(n,)", "(n, 1)", "dict"],
)
def test_a_single_probability_is_two_classes(wrap: Callable[[Tensor], Any]) -> None:
    victim = fixed(lambda x: wrap(logits(x)[:, 0].sigmoid()), probabilities=True)
    answer = victim.query(X)
    torch.testing.assert_close(answer.scores.exp()[:, 1], logits(X)[:, 0].sigmoid())
    assert torch.equal(answer.labels, (logits(X)[:, 0] > 0).long())


def test_probabilities_of_zero_are_no_infinities() -> None:
    victim = fixed(lambda x: torch.eye(3)[Y], probabilities=True)
    assert torch.isfinite(victim.query(X).scores).all()


def test_infinite_scores_are_numbers_far_from_the_others() -> None:
    table = torch.tensor([[1.0, -torch.inf, 3.0], [torch.inf, 0.0, 2.0], [-torch.inf] * 3, [0.5, 0.25, 0.0]])
    leaf = table.clone().requires_grad_(True)
    scores = finite_scores(leaf)
    want = torch.tensor([[1.0, -99.0, 3.0], [102.0, 0.0, 2.0], [-100.0] * 3, [0.5, 0.25, 0.0]])
    torch.testing.assert_close(scores, want)
    torch.testing.assert_close(scores[:2].softmax(1), table[:2].nan_to_num(posinf=1e9).softmax(1))
    (slope,) = torch.autograd.grad(scores.sum(), leaf)
    assert torch.equal(slope, table.isfinite().float())
    assert torch.equal(finite_scores(table[3:]), table[3:])
    for victim in (sp.Victim(lambda x: table[: len(x)]), sp.BlackBox(lambda x: table[: len(x)], scores=True)):
        answer = victim.query(X[:4])
        assert answer.labels.tolist() == [2, 0, 0, 0]
        assert answer.scores is not None
        assert answer.scores.isfinite().all()


class SameMemory(nn.Module):
    """Noisy scores, written into the same memory each time, as a network that was compiled for speed may do."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.generator = torch.Generator().manual_seed(0)
        self.out = torch.zeros(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = logits(x) + self.noise * torch.rand(len(x), 3, generator=self.generator)
        if scores.requires_grad:
            return scores
        self.out[: len(x)] = scores
        return self.out[: len(x)]


def test_answers_in_the_same_memory_are_kept_apart() -> None:
    victim = sp.Victim(SameMemory(0.0).eval())
    before = victim.query(X[:2])
    kept = before.scores.clone()  # type: ignore[union-attr]
    victim.query(X[3:])
    assert torch.equal(before.scores, kept)  # type: ignore[arg-type]
    result = sp.attacks.BIM()(victim, X, Y, sp.Linf(0.3))
    torch.testing.assert_close(result.clean.scores, logits(X))
    out = np.zeros((64, 3), np.float32)
    labels = np.zeros(64, np.int64)

    def scored(x: Tensor) -> Any:
        out[: len(x)] = logits(x).numpy()
        return out[: len(x)]

    def labelled(x: Tensor) -> Any:
        labels[: len(x)] = logits(x).argmax(1).numpy()
        return labels[: len(x)]

    for black in (sp.BlackBox(scored, scores=True), sp.BlackBox(labelled)):
        first = black.query(X[:2])
        then = first.labels.clone(), None if first.scores is None else first.scores.clone()
        black.query(1 - X)
        assert torch.equal(first.labels, then[0])
        assert first.scores is None or torch.equal(first.scores, then[1])  # type: ignore[arg-type]


def test_a_random_victim_that_answers_in_the_same_memory_is_noticed() -> None:
    with pytest.warns(VictimWarning, match="differ"):
        sp.attacks.BIM()(sp.Victim(SameMemory(1.0).eval()), X, Y, sp.Linf(0.1))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: logits(x)[:3], r"\(3, 3\) for 5 inputs"),
        (lambda x: logits(x).sum(), r"\(\) for 5 inputs"),
        (lambda x: logits(x)[:, :, None], r"\(5, 3, 1\)"),
        (lambda x: torch.zeros(7), r"\(7,\) for 5"),
        (lambda x: "cat", "str"),
        (lambda x: None, "NoneType"),
        (lambda x: {"a": logits(x), "b": logits(x)}, "output='key'"),
        (lambda x: {}, "keys"),
        (lambda x: logits(x) / 0 * 0, "NaN for 5 of 5"),
        (lambda x: logits(x).double().log(), "NaN"),
    ],
)
def test_what_is_no_class_score_is_refused(answer: Callable[[Tensor], Any], says: str) -> None:
    with pytest.raises(VictimError, match=says):
        fixed(answer).query(X)


def test_a_wrong_key_a_failing_network_and_a_foreign_net_are_refused() -> None:
    with pytest.raises(VictimError, match="without 'b'"):
        fixed(lambda x: {"a": logits(x)}, output="b").query(X)
    with pytest.raises(VictimError, match="without 'b'"):
        fixed(lambda x: ModelOutput(logits(x)), output="b").query(X)
    with pytest.raises(VictimError, match=r"RuntimeError on inputs of shape \(5, 1, 2, 3\)") as caught:
        fixed(logits).query(torch.rand(5, 1, 2, 3))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(InputError, match="Module"):
        Victim("resnet18")


def test_a_victim_without_a_gradient_is_refused_with_the_remedy() -> None:
    with pytest.raises(SparringError, match="gradient"):
        sp.PGD(steps=2)(fixed(lambda x: logits(x.detach())), X, None, sp.Linf(0.1))


def test_a_plain_function_is_a_victim() -> None:
    victim = Victim(logits, name="function")
    assert victim.device == torch.device("cpu")
    assert sp.PGD(steps=10)(victim, X, None, sp.Linf(1.0)).succeeded.any()


# -- inputs and labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "says"),
    [
        ((X - 0.5) / 0.2, r"normalised.*mean="),
        (X * 255, r"divide by 255"),
        ((X * 255).to(torch.uint8), r"float\(\) / 255"),
        (X.long(), "dtype"),
        (X + 0.5, "declare the true domain"),
        (X[0, 0, 0], r"x\[None\]"),
        (X.numpy(), "as_tensor"),
        (X.tolist(), "as_tensor"),
        (torch.where(X > 0.5, torch.nan, X), "NaN or infinity"),
        (torch.where(X > 0.5, torch.inf, X), "NaN or infinity"),
    ],
    ids=["normalised", "0..255", "uint8", "integers", "outside", "one sample", "array", "lists", "NaN", "infinite"],
)
def test_impossible_inputs_are_refused_with_the_likely_cause(x: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sp.PGD()(plain(), x, Y, sp.Linf(0.1))


def test_inputs_in_0_to_255_fit_a_victim_that_says_so() -> None:
    victim = tiny.linear(W / 255, BIAS, bounds=(0, 255))
    result = sp.PGD(steps=10)(victim, X * 255, None, sp.Linf(255.0))
    assert result.attack_success_rate == 1.0
    assert result.adversarial.max() > 1


def test_peer_bug_10_a_range_check_that_fails_at_minus_3e_8() -> None:
    x = X.clone()
    x[0, 0, 0, 0], x[1, 0, 0, 0] = -3e-8, 1 + 1e-7
    admitted, _ = plain().admit(x, Y)
    assert admitted.min() >= 0
    assert admitted.max() <= 1
    result = sp.PGD(steps=2)(plain(), x, None, sp.Linf(0.1))
    assert (result.adversarial >= 0).all()


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (torch.tensor([0, 1, 2, 3, 0]), r"0\.\.3.*0\.\.2.*y - 1"),
        (torch.tensor([0, -1, 2, 0, 0]), r"-1\.\.2"),
        (torch.tensor([0, 1]), r"\(2,\) for 5 inputs"),
        (torch.eye(5)[:, :3], r"one-hot.*argmax"),
        (torch.tensor([0.0, 1, 2, 0, 1]), r"y\.long\(\)"),
        (torch.tensor([True, False, True, True, False]), "bool"),
        (1, r"\(\) for 5 inputs"),
    ],
)
def test_impossible_labels_are_refused(y: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sp.PGD()(plain(), X, y, sp.Linf(0.1))


def test_targets_out_of_range_are_refused() -> None:
    for target in (3, -1, torch.tensor([0, 1, 2, 3, 0])):
        with pytest.raises(InputError, match=r"0\.\.2"):
            sp.PGD()(plain(), X, Y, sp.Linf(0.1), goal=target)


@pytest.mark.parametrize(
    "y", [[0, 1, 2, 0, 1], np.array([0, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 0, 1], dtype=torch.int32)]
)
def test_labels_come_in_any_integer_form(y: Any) -> None:
    admitted = plain().admit(X, y)[1]
    assert torch.equal(admitted, Y)
    assert admitted.dtype == torch.int64


def test_labels_by_name_or_number() -> None:
    victim = plain(labels=["tabby cat, tabby", "dog", "Gnu, wildebeest"])
    assert torch.equal(victim.admit(X, ["tabby", "DOG", "gnu", 0, "1"])[1], torch.tensor([0, 1, 2, 0, 1]))
    assert victim.label_index(" Wildebeest ") == 2
    assert victim.label_index("2") == victim.label_index(2) == 2
    assert victim.label_name(1) == "dog"
    assert victim.label_name(7) == "7"


def test_wrong_names_get_close_matches() -> None:
    victim = plain(labels=["neck brace", "dog", "crane"])
    with pytest.raises(UnknownNameError, match=r"'nek brase'.*neck brace"):
        victim.label_index("nek brase")
    with pytest.raises(UnknownNameError, match=r"known: crane, dog, neck brace"):
        victim.label_index("zzz")
    with pytest.raises(InputError, match=r"0\.\.2"):
        victim.label_index(3)
    with pytest.raises(InputError, match="no label names"):
        plain().label_index("dog")
    with pytest.raises(UnknownNameError, match="2 classes: 0, 2"):  # as ImageNet's two cranes
        plain(labels=["crane", "dog", "crane"]).label_index("crane")


def test_numbers_of_any_kind_are_class_numbers() -> None:
    victim = plain(labels=["a", "b", "c"])
    assert victim.label_index(np.int64(2)) == 2


def test_the_wrong_number_of_label_names_is_refused() -> None:
    with pytest.raises(VictimError, match=r"2 label names but answers 3 scores"):
        plain(labels=["cat", "dog"]).admit(X, torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        ((0.5,), None, "both"),
        (None, (0.5,), "both"),
        ((0.5,), (0.0,), "std > 0"),
        ((0.5, 0.5), (0.1,), "equal numbers"),
    ],
)
def test_impossible_normalisations_are_refused(mean: Any, std: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        plain(mean=mean, std=std)


def test_normalisation_belongs_to_the_victim() -> None:
    x = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    victim = tiny.linear(weight, mean=mean, std=std)
    by_hand = (x - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    torch.testing.assert_close(victim.query(x).scores, by_hand.flatten(1) @ weight.T)


# -- traits are checked, not believed ----------------------------------------------------------------------------------


def test_train_mode_is_warned_about_and_put_back_for_every_submodule() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    net.train()
    net[1].eval()  # a frozen batch norm inside a network in train mode
    modes = [m.training for m in net.modules()]
    seen: list[bool] = []
    net[2].register_forward_hook(lambda m, a, out: seen.append(m.training))
    statistics = net[1].running_mean.clone()
    victim = Victim(net)
    with pytest.warns(VictimWarning, match="train mode"):
        sp.PGD(steps=2)(victim, X, None, sp.Linf(0.1))
    assert [m.training for m in net.modules()] == modes
    assert seen
    assert not any(seen)
    assert torch.equal(net[1].running_mean, statistics)


def test_the_mode_is_put_back_when_the_network_fails() -> None:
    net = tiny.Fixed(lambda x: 1 / 0).train()
    with pytest.warns(VictimWarning, match="train mode"), pytest.raises(VictimError, match="ZeroDivisionError"):
        sp.PGD(steps=2)(Victim(net), X, Y, sp.Linf(0.1))
    assert net.training


def test_probabilities_for_logits_are_warned_about() -> None:
    with pytest.warns(VictimWarning, match=r"probabilities=True"):
        fixed(lambda x: logits(x).softmax(1)).admit(X, Y)
    fixed(lambda x: logits(x).softmax(1), probabilities=True).admit(X, Y)
    fixed(lambda x: logits(x).log_softmax(1)).admit(X, Y)


def test_a_random_victim_is_warned_about_unless_it_says_so() -> None:
    def random(x: Tensor) -> Tensor:
        return logits(x) + torch.rand(len(x), 3)

    with pytest.warns(VictimWarning, match=r"stochastic=True"):
        fixed(random).admit(X, Y)
    fixed(random, traits=sp.Traits(stochastic=True)).admit(X, Y)


def test_warnings_come_once() -> None:
    victim = fixed(lambda x: logits(x).softmax(1))
    with pytest.warns(VictimWarning):
        victim.admit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        victim.admit(X, Y)


# -- nothing is left behind --------------------------------------------------------------------------------------------


def test_peer_bug_8_gradients_left_in_parameters_and_global_seeds_reset() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 3)).eval()
    net[1].weight.requires_grad_(False)
    net[2].weight.grad = torch.full((3, 3), 7.0)
    values = [p.clone() for p in net.parameters()]
    states = tiny.random_states()
    x = X.clone().requires_grad_(True)
    result = sp.PGD(steps=3, restarts=2)(Victim(net), x, None, sp.L2(0.1))
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert torch.equal(net[2].weight.grad, torch.full((3, 3), 7.0))
    assert all(p.grad is None for p in (net[1].weight, net[1].bias, net[2].bias))
    assert all(torch.equal(p, v) for p, v in zip(net.parameters(), values, strict=True))
    assert tiny.random_states() == states
    assert x.grad is None
    assert torch.equal(x, X)
    assert not result.adversarial.requires_grad
    assert not result.final.scores.requires_grad


def test_a_network_with_statistics_of_the_batch_is_noticed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)).eval()
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(5, dtype=torch.int64)
    with pytest.warns(VictimWarning, match="beside other inputs"):
        sp.Victim(net).admit(x, y)
    sp.Victim(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()).admit(x, y)


def test_a_random_network_does_not_move_the_global_random_state() -> None:
    victim = fixed(lambda x: logits(x) + torch.rand(len(x), 3), traits=sp.Traits(stochastic=True))
    state = torch.random.get_rng_state()
    sp.PGD(steps=3)(victim, X, Y, sp.Linf(0.1))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_an_attack_works_where_gradients_are_switched_off(off: Any) -> None:
    victim = plain()
    with off():
        assert sp.PGD(steps=10)(victim, X, None, sp.Linf(1.0)).succeeded.any()
        assert sp.PGD(steps=10)(victim, X.clone(), None, sp.Linf(1.0)).succeeded.any()


# -- who it is ---------------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_the_victim() -> None:
    def prints(**how: Any) -> str:
        return plain(name="v", **how).fingerprint()

    assert prints() == prints()
    others = [
        tiny.linear(W + 1e-6, name="v").fingerprint(),
        prints(bounds=(0, 2)),
        prints(mean=(0.5,), std=(0.5,)),
        prints(mean=(0.4,), std=(0.5,)),
        prints(probabilities=True),
        plain(name="w").fingerprint(),
        plain(name="v").defended(pre=[nn.Dropout(0.5).eval()]).fingerprint(),
    ]
    assert len({prints(), *others}) == 8


def test_a_victim_says_what_it_is() -> None:
    victim = sp.Victim(nn.Linear(4, 3), labels=["a", "b", "c"], name="tiny", traits=sp.Traits(stochastic=True))
    assert repr(victim) == "<Victim 'tiny': 3 classes, attackers see gradients, stochastic>"
    assert repr(sp.Victim(lambda x: x, name="plain")) == "<Victim 'plain': attackers see gradients>"


def test_logits_do_not_pass_for_probabilities() -> None:
    x, y = tiny.pictures(3, seed=2)
    with pytest.raises(VictimError, match="leave out probabilities=True"):
        sp.PGD(steps=2)(sp.Victim(lambda z: 5 * tiny.network().eval()(z), probabilities=True), x, y, sp.Linf(0.1))
