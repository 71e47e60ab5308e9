"""Saliency, decision maps and curves: known answers on linear victims, and what is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sparring as sp
import tiny
from sparring.attacks import FMN, HopSkipJump
from sparring.core.errors import CapabilityError, InputError, UnknownNameError
from sparring.see import curve_figure, decision_map, saliency
from sparring.see.saliency import METHODS

WEIGHT = torch.tensor([[1.0, -2.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]])


@pytest.fixture
def linear() -> sp.Victim:
    return tiny.linear(WEIGHT, [0.0, 1.0])


X = torch.tensor([[[[0.5, 0.25], [0.75, 0.5]]]])


# -- saliency ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_attributions_of_a_linear_score_are_its_terms(linear: sp.Victim, method: str) -> None:
    if method == "integrated-gradients":
        pytest.importorskip("captum", reason="captum is not installed")
    seen = saliency(linear, X, torch.tensor([0]), method=method)
    expected = WEIGHT[0].reshape(1, 1, 2, 2) * (1.0 if method == "gradient" else X)
    torch.testing.assert_close(seen.values, expected)


def test_integrated_gradients_add_up_to_the_rise_of_the_score() -> None:
    pytest.importorskip("captum", reason="captum is not installed")
    victim, (x, y) = tiny.trained(), tiny.correct(4)
    seen = saliency(victim, x, y, baseline=0.3, steps=100)
    own = victim.scores(torch.cat([x, torch.full_like(x, 0.3)])).gather(1, torch.cat([y, y])[:, None])[:, 0].detach()
    torch.testing.assert_close(seen.values.flatten(1).sum(1), own[:4] - own[4:], atol=0.02, rtol=0.01)


def test_the_victims_own_answers_are_explained_where_no_class_is_named(linear: sp.Victim) -> None:
    assert saliency(linear, X, method="gradient").labels.tolist() == linear.query(X).labels.tolist()


def test_starts_go_against_the_attributions_to_the_edge_of_the_ball(linear: sp.Victim) -> None:
    seen = saliency(linear, X, torch.tensor([0]), method="gradient")
    start = seen.starts(sp.Linf(0.1), linear)
    torch.testing.assert_close(start - X, -0.1 * WEIGHT[0].sign().reshape(1, 1, 2, 2))
    one = seen.starts(sp.Linf(0.1), linear, share=0.25)
    assert (one != X).sum() == 1
    assert one[0, 0, 1, 1] == pytest.approx(0.4), "the largest attribution"
    found = sp.PGD(steps=1)(
        linear, X, torch.tensor([0]), sp.ThreatModel(sp.Linf(0.1), knowledge=sp.Knowledge(starts=start))
    )
    assert len(found) == 1


def test_saliency_refuses_what_it_cannot_explain(linear: sp.Victim) -> None:
    with pytest.raises(UnknownNameError, match="gradient"):
        saliency(linear, X, method="gradients")
    with pytest.raises(CapabilityError, match="gradients"):
        saliency(sp.BlackBox(lambda x: torch.zeros(len(x), 2)), X)  # type: ignore[arg-type]
    seen = saliency(linear, X, method="gradient")
    with pytest.raises(InputError, match="eps"):
        seen.starts(sp.L2(), linear)
    with pytest.raises(InputError, match="share"):
        seen.starts(sp.L2(1.0), linear, share=0.0)


# -- the plane around an input -----------------------------------------------------------------------------------------


def test_the_boundary_of_a_linear_victim_is_a_line_of_the_map() -> None:
    """Along the gradient's direction the margin falls by |w| per unit; along a direction across it, not at all."""
    weight = torch.zeros(2, 16)
    weight[0, 0], weight[0, 1] = 3.0, 4.0
    victim = tiny.linear(weight, [0.0, 2.0])
    x = torch.full((1, 4, 4), 0.5)
    adversarial, across = x.clone(), x.clone()
    adversarial[0, 0, 0] -= 0.3
    adversarial[0, 0, 1] -= 0.4
    across[0, 3, 3] += 0.2
    seen = decision_map(victim, x, adversarial, across, side=21, radius=0.5)
    assert seen.label == 0
    assert seen.margins is not None
    expected = (1.5 - 5.0 * seen.reach).float().expand(21, 21)
    inside = seen.reach.abs() <= 0.5
    torch.testing.assert_close(seen.margins[:, inside], expected[:, inside], atol=1e-5, rtol=0)
    assert torch.equal(seen.labels, (seen.reach > 0.3).long().expand(21, 21))
    assert [value for mark in seen.marks for value in mark] == pytest.approx([0.5, 0.0, 0.0, 0.2], abs=1e-6)


def test_starts_are_the_nearest_points_of_another_class_and_serve_an_attack_by_labels() -> None:
    victim, (x, y) = tiny.trained(), tiny.correct(1)
    found = FMN(steps=30)(victim, x, y, sp.L2())
    assert isinstance(found.adversarial, torch.Tensor)
    seen = decision_map(victim, x[0], found.adversarial[0], side=41)
    starts = seen.starts(3)
    assert (victim.query(starts).labels != y).all()
    reach = (starts - x).flatten(1).norm(dim=1)
    assert (reach.diff() >= -1e-6).all()
    threat = sp.ThreatModel(sp.L2(), access="labels", queries=200, knowledge=sp.Knowledge(starts=starts[:1]))
    assert HopSkipJump()(victim, x, y, threat).succeeded.all()


def test_a_map_needs_a_plane_inside_which_something_happens(linear: sp.Victim) -> None:
    with pytest.raises(InputError, match="two directions"):
        decision_map(linear, X[0], X[0])
    with pytest.raises(InputError, match="two directions"):
        decision_map(linear, X[0], X[0] + 0.1, X[0] + 0.2)
    with pytest.raises(InputError, match="odd"):
        decision_map(linear, X[0], X[0] + 0.1, side=20)
    with pytest.raises(InputError, match="shape"):
        decision_map(linear, X[0], X[0, 0])
    with pytest.raises(InputError, match="widen"):
        decision_map(linear, X[0], X[0] + 0.1, radius=1e-4).starts(1)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_figures_are_written_and_say_what_they_show(tmp_path: Path, linear: sp.Victim) -> None:
    victim, (x, y) = tiny.trained(), tiny.correct(3)
    found = FMN(steps=10)(victim, x, y, sp.L2())
    assert isinstance(found.adversarial, torch.Tensor)
    axes = curve_figure({"fmn": found, "again": found}, tmp_path / "curve.png").axes[0]
    assert "l2" in axes.get_xlabel()
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["fmn", "again"]
    eps, accuracy = found.curve()
    line = axes.get_lines()[0].get_xydata()
    assert line[: len(eps), 0].tolist() == pytest.approx(eps.tolist())  # type: ignore[index]
    assert line[: len(eps), 1].tolist() == pytest.approx(accuracy.tolist())  # type: ignore[index]
    saliency(victim, x, y, method="gradient").figure(tmp_path / "saliency.png", most=2)
    decision_map(victim, x[0], found.adversarial[0], side=11).figure(tmp_path / "map.png")
    for name in ("curve", "saliency", "map"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_curves_of_different_norms_or_of_a_fixed_eps_share_no_axis() -> None:
    victim, (x, y) = tiny.trained(), tiny.correct(2)
    l2, linf = (FMN(steps=5)(victim, x, y, space) for space in (sp.L2(), sp.Linf()))
    with pytest.raises(InputError, match="one norm"):
        curve_figure({"a": l2, "b": linf})
    with pytest.raises(InputError, match="beyond its eps"):
        curve_figure(sp.PGD(steps=2)(victim, x, y, sp.L2(0.1)))
    with pytest.raises(InputError, match="no result"):
        curve_figure({})
