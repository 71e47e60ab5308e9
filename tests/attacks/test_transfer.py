"""Attacks without access: ensembles of surrogates, substitutes trained on labels, and the transfer matrix."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
import tiny
from sparring.attacks.transfer import Substitute, TransferMatrix, train_substitute, transfer_matrix
from sparring.core.errors import CapabilityError, InputError, LoadError, ThreatError, UnknownNameError, VictimError
from sparring.core.registry import make_attack
from sparring.core.surrogates import ENSEMBLES, Ensemble
from sparring.core.threat import Knowledge
from sparring.victims.sklearn import SklearnVictim


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test pictures and labels, (n, 1, 8, 8)."""
    return (*sp.data.load_digits("train"), *sp.data.load_digits("test"))


@functools.cache
def logistic() -> SklearnVictim:
    """Logistic regression on the digits' 64 pixels."""
    from sklearn.linear_model import LogisticRegression

    x, y, _, _ = digits()
    model = LogisticRegression(C=0.1, max_iter=500).fit(x.flatten(1).double().numpy(), y.numpy())
    return SklearnVictim(model, bounds=(0.0, 1.0), name="logistic")


@functools.cache
def forest() -> SklearnVictim:
    """Thirty trees on the digits' 64 pixels."""
    from sklearn.ensemble import RandomForestClassifier

    x, y, _, _ = digits()
    model = RandomForestClassifier(30, random_state=0).fit(x.flatten(1).double().numpy(), y.numpy())
    return SklearnVictim(model, bounds=(0.0, 1.0), name="forest")


@functools.cache
def imitated() -> Substitute:
    """A substitute of the logistic victim, from a hundred seeds."""
    return train_substitute(logistic(), digits()[0][:100].flatten(1))


class Asked(sp.BlackBox):
    """Two classes on one number; keeps every input that it is asked about."""

    def __init__(self, **how: Any) -> None:
        super().__init__(self.answer, bounds=(0.0, 1.0), **({"classes": 2} | how))
        self.seen: list[Tensor] = []

    def answer(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return (x.flatten(1)[:, 0] > 0.5).long()


# -- transfer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mi-fgsm", "di-fgsm", "ti-fgsm", "pgd"])
@pytest.mark.parametrize("over", ENSEMBLES)
def test_a_gradient_attack_without_access_asks_the_surrogates_alone(name: str, over: str) -> None:
    victim, spy = tiny.spied(tiny.trained())
    others = [tiny.spied(tiny.trained(seed)) for seed in (1, 2)]
    x, y = tiny.correct(12)
    knowledge = Knowledge(surrogates=tuple(v for v, _ in others), ensemble=over)
    result = make_attack(name)(victim, x, y, sp.ThreatModel(sp.Linf(0.15), access="nothing", knowledge=knowledge))
    assert spy.batches == [12, 12]  # the clean pass and the re-check
    assert all(len(other.batches) >= 10 for _, other in others)
    assert result.queries.tolist() == [0] * 12
    assert result.backwards.min() >= 10
    assert result.attack_success_rate >= 0.7
    direct = make_attack(name)(victim, x, y, sp.Linf(0.15))
    assert direct.attack_success_rate >= result.attack_success_rate


def test_what_an_ensemble_averages() -> None:
    """Two linear members: each way of averaging against its formula, in values and in gradients."""
    members = [tiny.linear([[3.0, -1.0], [0.0, 2.0]]), tiny.linear([[-1.0, 0.5], [4.0, 1.0]])]
    x, y = torch.tensor([[0.2, 0.7], [0.9, 0.1]]), torch.tensor([0, 1])

    def ce(s: Tensor) -> Tensor:
        return nn.functional.cross_entropy(s, y, reduction="none")

    logits = [m.scores(x).detach() for m in members]
    wanted = {
        "logits": ce((logits[0] + logits[1]) / 2),
        "probabilities": -((logits[0].softmax(1) + logits[1].softmax(1)) / 2).gather(1, y[:, None]).log().squeeze(1),
        "losses": (ce(logits[0]) + ce(logits[1])) / 2,
    }
    for over, value in wanted.items():
        told, _ = Ensemble(members, over).objective(x, ce)
        torch.testing.assert_close(told, value)
    torch.testing.assert_close(Ensemble(members).query(x).scores, (logits[0] + logits[1]) / 2)
    leaf = x.clone().requires_grad_(True)
    (mean,) = torch.autograd.grad(Ensemble(members, "losses").objective(leaf, ce)[0].sum(), leaf)
    each = [torch.autograd.grad(ce(m.scores(leaf)).sum(), leaf)[0] for m in members]
    torch.testing.assert_close(mean, (each[0] + each[1]) / 2)
    assert len({round(v[0].item(), 4) for v in wanted.values()}) == 3


def test_an_unknown_ensemble_and_a_surrogate_without_gradients_are_refused() -> None:
    x, y = tiny.correct(2)
    pair = (tiny.trained(1), tiny.trained(2))
    with pytest.raises(UnknownNameError, match="losses"):
        sp.PGD()(
            tiny.trained(),
            x,
            y,
            sp.ThreatModel(sp.Linf(0.1), access="nothing", knowledge=Knowledge(pair, ensemble="x")),
        )
    with pytest.raises(ThreatError, match="train_substitute"):
        Ensemble.of([sp.BlackBox(lambda x: x, classes=2)])


# -- substitutes -------------------------------------------------------------------------------------------------------


def test_a_substitute_of_a_linear_victim_agrees_with_it() -> None:
    """Papernot's augmentation, from a hundred unlabelled pictures: more than nine in ten held-out labels."""
    made = imitated()
    held_out = digits()[2].flatten(1)
    assert made.agreement(logistic(), held_out) > 0.9
    alone = train_substitute(logistic(), digits()[0][:100].flatten(1), rounds=0)
    assert alone.queries == 100
    assert alone.agreement(logistic(), held_out) < made.agreement(logistic(), held_out)


def test_a_substitute_attacks_what_offers_no_gradient() -> None:
    x, y = digits()[2][:100].flatten(1), digits()[3][:100]
    threat = sp.ThreatModel(sp.Linf(0.2), access="nothing", knowledge=Knowledge(surrogates=(imitated(),)))
    result = make_attack("mi-fgsm")(logistic(), x, y, threat)
    noise = make_attack("uniform-noise")(logistic(), x, y, sp.Linf(0.2))
    assert result.attack_success_rate > 0.4 > noise.attack_success_rate + 0.2
    assert result.queries.sum() == 0


def test_every_query_is_counted_and_none_is_asked_past_the_budget() -> None:
    seeds = torch.rand(30, 3, generator=torch.Generator().manual_seed(0))
    for budget, wanted in ((None, (30, 30, 60, 100, 100)), (200, (30, 30, 60, 80)), (30, (30, 0))):
        victim = Asked()
        made = train_substitute(victim, seeds, rounds=4, queries=budget, epochs=1, reservoir=100)
        assert made.rounds == wanted
        assert made.queries == sum(wanted) == sum(len(x) for x in victim.seen)
    asked = torch.cat(victim.seen)
    torch.testing.assert_close(asked, seeds)


def test_new_inputs_lie_one_step_along_the_jacobians_signs_inside_the_bounds() -> None:
    """On a fixed linear substitute the way from every input is known: the sign of its label's weights."""
    victim, net = Asked(), nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-50.0, 40.0, 30.0], [50.0, -40.0, -30.0]]))
        net.bias.zero_()
    seeds = torch.tensor([[0.2, 0.5, 0.98], [0.95, 0.5, 0.5]])
    train_substitute(victim, seeds, rounds=1, epochs=1, step=0.1, network=net)
    torch.testing.assert_close(victim.seen[1], torch.tensor([[0.1, 0.6, 1.0], [1.0, 0.4, 0.4]]))
    assert net.weight[0, 0] == -50.0  # the network that was given is not the one that was trained


def test_a_substitute_repeats_by_seed_and_leaves_the_random_state_alone() -> None:
    seeds = digits()[0][:40]
    states = tiny.random_states()
    nets = [train_substitute(forest(), seeds, rounds=1, epochs=2, seed=seed).fingerprint() for seed in (3, 3, 4)]
    assert tiny.random_states() == states
    assert nets[0] == nets[1] != nets[2]


def test_pictures_imitate_a_victim_of_tables_and_own_networks_are_trained() -> None:
    made = train_substitute(forest(), digits()[0][:100], rounds=2, epochs=6)
    assert any(isinstance(m, nn.Conv2d) for m in made.modules[0].modules())
    assert made.agreement(forest(), digits()[2]) > 0.6
    mine = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))
    first, second = (train_substitute(forest(), digits()[0][:50], rounds=1, network=mine) for _ in range(2))
    assert first.fingerprint() == second.fingerprint()  # dropout is seeded as well
    assert isinstance(first.net, nn.Sequential)
    assert isinstance(first.net[1], nn.Dropout)


def test_a_table_without_bounds_takes_the_range_of_its_seeds() -> None:
    rows = torch.tensor([[0.0, 100.0, 5.0], [2.0, 300.0, 5.0]])
    victim = sp.BlackBox(lambda x: (x[:, 1] > 200).long(), classes=2)
    made = train_substitute(victim, rows, rounds=1, epochs=1)
    assert made.bounds.lo.tolist() == [0.0, 100.0, 5.0]
    assert made.bounds.hi.tolist() == [2.0, 300.0, 6.0]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"seeds": [[0.1]]}, InputError, "float tensor"),
        ({"seeds": torch.zeros(0, 3)}, InputError, "float tensor"),
        ({"seeds": torch.zeros(4, 3, dtype=torch.int64)}, InputError, "int64"),
        ({"seeds": torch.full((4, 3), 2.0)}, InputError, "bounds"),
        ({"queries": 3}, InputError, "3 queries"),
        ({"rounds": -1}, InputError, "rounds is -1"),
        ({"network": nn.Linear(3, 5)}, VictimError, r"\(4, 2\)"),
        ({"victim": Asked(classes=None)}, InputError, "classes"),
    ],
)
def test_a_substitute_refuses_what_cannot_be_right(change: dict[str, Any], error: type[Exception], says: str) -> None:
    given: dict[str, Any] = {"victim": Asked(), "seeds": torch.rand(4, 3), "epochs": 1, "rounds": 1} | change
    with pytest.raises(error, match=says):
        train_substitute(given.pop("victim"), given.pop("seeds"), **given)


# -- the matrix --------------------------------------------------------------------------------------------------------


@functools.cache
def matrix() -> TransferMatrix:
    """A network and two scikit-learn victims; rows are the network and a substitute of the logistic victim."""
    victims = {"net": sp.load("digits"), "logistic": logistic(), "forest": forest()}
    x, y = digits()[2][:60], digits()[3][:60]
    return transfer_matrix(victims, x, y, sp.Linf(0.2), sources={"net": victims["net"], "imitated": imitated()})


def test_the_cells_are_what_crafting_and_trying_by_hand_give() -> None:
    made, net = matrix(), sp.load("digits")
    x, y = digits()[2][:60], digits()[3][:60]
    crafted = make_attack("mi-fgsm")(net, x, y, sp.Linf(0.2), early_stop=False).adversarial
    assert isinstance(crafted, Tensor)
    right = net.query(x).labels == y
    for j, victim in enumerate((net, logistic(), forest())):
        flat = victim.domain == "table"
        before, after = (victim.query(z.flatten(1) if flat else z).labels for z in (x, crafted))
        both = right & (before == y)
        assert made.tried[0][j] == int(both.sum())
        assert made.successes[0][j] == int((both & (after != y)).sum())
        assert made.clean_accuracy[j] == pytest.approx(float((before == y).double().mean()))
        assert float(made.rates[0, j]) == pytest.approx(made.successes[0][j] / made.tried[0][j])
    assert made.rate("net", "net") == max(made.rates[0].tolist())
    assert made.rate("imitated", "logistic") > 0.3


def test_a_matrix_is_saved_read_back_and_drawn(tmp_path: Path) -> None:
    made = matrix()
    path = made.save(tmp_path / "matrix.json")
    assert TransferMatrix.load(path) == made
    figure = made.figure()
    axes = figure.axes[0]
    shown = [text.get_text() for text in axes.texts]
    assert f"{made.successes[1][2]}/{made.tried[1][2]}" in shown
    assert f"{made.rates[0, 0]:.0%}" in shown
    assert [label.get_text() for label in axes.get_yticklabels()] == ["net", "imitated"]
    figure.savefig(tmp_path / "matrix.png", dpi=40)
    assert (tmp_path / "matrix.png").stat().st_size > 1000
    foreign = tmp_path / "foreign.json"
    for text in ("{}", "[]", "no json", json.dumps({"format": "sparring.TransferMatrix", "version": 2})):
        foreign.write_text(text)
        with pytest.raises(LoadError, match="no transfer matrix"):
            TransferMatrix.load(foreign)
    with pytest.raises(LoadError):
        TransferMatrix.load(tmp_path / "absent.json")


def test_a_row_without_gradients_is_refused_or_attacked_by_its_labels() -> None:
    x, y = digits()[2][:10], digits()[3][:10]
    with pytest.raises(CapabilityError, match=r"'forest'.*train_substitute"):
        transfer_matrix({"forest": forest()}, x, y, sp.Linf(0.2))
    threat = sp.ThreatModel(sp.Linf(0.3), queries=100)
    made = transfer_matrix({"forest": forest(), "net": sp.load("digits")}, x, y, threat, sp.attacks.RayS())
    assert made.rate("forest", "forest") > made.rate("forest", "net")


def test_where_nothing_was_tried_there_is_no_rate() -> None:
    x, y = tiny.correct(4)
    victims = {"tiny": tiny.trained()}
    wrong = transfer_matrix(victims, x, (y + 1) % tiny.CLASSES, sp.Linf(0.1))
    assert wrong.tried == ((0,),)
    assert math.isnan(wrong.rate("tiny", "tiny"))
    assert "-" in [text.get_text() for text in wrong.figure().axes[0].texts]
    aimed = transfer_matrix(victims, x, y, sp.ThreatModel(sp.Linf(0.3), goal=sp.Targeted(int(y[0]))))
    assert aimed.tried == ((3,),)  # the target is no target for the sample that has it as its label


def test_a_matrix_refuses_what_makes_none() -> None:
    x, y = tiny.correct(2)
    victims = {"tiny": tiny.trained()}
    with pytest.raises(InputError, match="0 victims"):
        transfer_matrix({}, x, y, sp.Linf(0.1))
    with pytest.raises(ThreatError, match="access"):
        transfer_matrix(victims, x, y, sp.ThreatModel(sp.Linf(0.1), access="nothing"))
    with pytest.raises(InputError, match=r"rows are tiny"):
        transfer_matrix(victims, x, y, sp.Linf(0.1)).rate("tiny", "other")


def test_robust_networks_give_and_take_little(zoo: ModuleType) -> None:
    """Real networks at Linf .1: what breaks the weakly robust one leaves the adversarially trained one standing."""
    victims = {name: sp.Victim(zoo.load(name), name=name) for name in ("mnist_adv", "mnist_certified_0.1")}
    x, y = zoo.data("mnist", 60)
    made = transfer_matrix(victims, x, y, sp.Linf(0.2))
    assert made.rate("mnist_certified_0.1", "mnist_certified_0.1") > 0.25
    assert made.rate("mnist_certified_0.1", "mnist_adv") < 0.06
