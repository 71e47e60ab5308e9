"""The one-line attack: what it changes, what it says, and the file that still fools the victim."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sparring as sp
from sparring.core.errors import InputError, PictureError, ThreatError, UnknownNameError
from sparring.data import load_digits, sample_picture
from sparring.see import default_eps
from sparring.see.radii import ball_text


@pytest.fixture(scope="module")
def victim() -> Any:
    return sp.load("digits")


def levels(x: Tensor) -> Tensor:
    return x.double() * 255


def test_an_attack_is_told_from_before_to_after(victim: Any) -> None:
    shown = sp.attack(sample_picture(0), "pgd", model=victim)
    assert shown.succeeded
    assert shown.outcome is sp.Outcome.SUCCEEDED
    assert shown.before.label == shown.label == "0"
    assert shown.after.label != "0"
    assert shown.attack == "pgd"
    assert shown.victim == "digits"
    assert shown.target is None
    assert (shown.norm, shown.eps) == ("linf", 0.3)
    assert shown.seconds > 0
    told = repr(shown)
    assert f"digits took '0' for '{shown.after.label}'" in told
    assert "after pgd (linf, 0.3)" in told
    assert "forwards" in told


def test_the_pictures_are_the_victims_input_on_the_8_bit_grid(victim: Any) -> None:
    shown = sp.attack(sample_picture(0, scale=10), "pgd", model=victim)
    assert shown.original.shape == shown.adversarial.shape == (1, 8, 8)
    for picture in (shown.original, shown.adversarial):
        k = levels(picture)
        assert torch.equal((k.round() / 255).float(), picture)
    assert float((shown.adversarial - shown.original).abs().max()) <= 76 / 255 + 1e-6  # .3 is 76.5 levels


def test_the_distances_are_those_of_the_pictures(victim: Any) -> None:
    shown = sp.attack(sample_picture(5), "pgd", model=victim, norm="l2", eps=0.8)
    delta = (shown.adversarial - shown.original).double().flatten()
    assert shown.distances["linf"] == pytest.approx(float(delta.abs().max()), abs=1e-6)
    assert shown.distances["l2"] == pytest.approx(float(delta.norm()), abs=1e-5)
    assert shown.distances["l1"] == pytest.approx(float(delta.abs().sum()), abs=1e-5)
    assert shown.distances["l0"] == float((delta.abs() > 1e-4).sum())
    assert shown.distances["l2"] <= 0.8 + 1e-5
    assert float(shown.result.distance[0]) == pytest.approx(shown.distances["l2"], abs=1e-5)


@pytest.mark.parametrize("target", [8, "8"])
def test_a_target_by_number_or_name(victim: Any, target: Any) -> None:
    shown = sp.attack(sample_picture(0), "pgd", model=victim, target=target)
    assert shown.succeeded
    assert shown.after.label == shown.target == "8"


def test_a_saved_picture_is_read_back_and_still_fools(victim: Any, tmp_path: Path) -> None:
    shown = sp.attack(sample_picture(0), "pgd", model=victim)
    assert shown.saved is None
    kept = shown.save(tmp_path / "adv.png")
    assert shown.saved is kept
    assert kept.still_fools
    assert kept.label == shown.after.label
    with Image.open(kept.path) as image:
        assert (image.mode, image.size) == ("L", (8, 8))
    assert torch.equal(sp.classify(kept.path, victim).pixels, shown.adversarial)
    assert sp.classify(kept.path, victim).confidence == pytest.approx(shown.after.confidence, abs=1e-5)


def test_every_search_space_and_kind_of_attack_survives_its_file(victim: Any, tmp_path: Path) -> None:
    for attack, norm in (("pgd", "l2"), ("apgd", "l1"), ("fgsm", "linf"), ("deepfool", "l2"), ("deepfool", "linf")):
        fooled = 0
        for index in range(4):
            shown = sp.attack(sample_picture(index), attack, model=victim, norm=norm)
            if shown.succeeded:
                fooled += 1
                assert shown.save(tmp_path / "x.png").still_fools, (attack, norm, index)
        assert fooled, (attack, norm)


def test_a_picture_off_the_grid_may_lose_its_effect_and_that_is_said(victim: Any, tmp_path: Path) -> None:
    """Without the lattice a smallest change ends right behind the boundary: rounding may bring it back."""
    verdicts = []
    for index in range(12):
        shown = sp.attack(sample_picture(index), "deepfool", model=victim, norm="l2", lattice=None)
        kept = shown.save(tmp_path / "x.png")
        assert kept.still_fools == (shown.succeeded and sp.classify(kept.path, victim).label != shown.before.label)
        verdicts.append(kept.still_fools)
    assert not all(verdicts)


def test_a_failed_attack_is_data_and_its_file_fools_nobody(victim: Any, tmp_path: Path) -> None:
    shown = sp.attack(sample_picture(0), "pgd", model=victim, eps=1 / 255)
    assert not shown.succeeded
    assert shown.outcome is sp.Outcome.SURVIVED
    assert "withstood pgd (linf, 1/255): it still answers '0'" in shown.told()
    assert not shown.save(tmp_path / "x.png").still_fools
    targeted = sp.attack(sample_picture(0), "pgd", model=victim, eps=1 / 255, target=8)
    assert ", not '8'" in targeted.told()


@pytest.mark.parametrize(
    ("options", "outcome", "told"),
    [
        ({"label": 3}, "CLEAN_ERROR", "unchanged, digits takes it for '0', which is wrong"),
        ({"target": 0}, "NOT_APPLICABLE", "the target '0' is the label"),
        ({"label": 3, "target": "0"}, "ALREADY_TARGET", "takes it for '0', the target"),
    ],
)
def test_nothing_to_attack(victim: Any, options: dict[str, Any], outcome: str, told: str, tmp_path: Path) -> None:
    shown = sp.attack(sample_picture(0), "pgd", model=victim, **options)
    assert shown.outcome.name == outcome
    assert told in shown.told()
    assert not shown.succeeded
    assert torch.equal(shown.adversarial, shown.original)
    assert not shown.save(tmp_path / "x.png").still_fools


def test_parameters_and_ready_attacks(victim: Any) -> None:
    by_name = sp.attack(sample_picture(0), "pgd", model=victim, steps=7, restarts=2)
    assert by_name.result.params["steps"] == 7
    ready = sp.attack(sample_picture(0), sp.PGD(steps=7, restarts=2), model=victim)
    assert torch.equal(by_name.adversarial, ready.adversarial)
    with pytest.raises(InputError, match="steps came beside a ready PGD"):
        sp.attack(sample_picture(0), sp.PGD(), model=victim, steps=3)


def test_the_seed_decides(victim: Any) -> None:
    first, same, other = (sp.attack(sample_picture(0), model=victim, seed=seed).adversarial for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_names_that_do_not_exist(victim: Any) -> None:
    picture = sample_picture(0)
    with pytest.raises(UnknownNameError, match="attack is called 'pdg'; close matches: pdpgd, pgd"):
        sp.attack(picture, "pdg", model=victim)
    with pytest.raises(UnknownNameError, match="parameter of PGD is called 'step'; close matches: steps"):
        sp.attack(picture, "pgd", model=victim, step=3)
    with pytest.raises(UnknownNameError, match="label is called 'eight'"):
        sp.attack(picture, "pgd", model=victim, target="eight")
    with pytest.raises(InputError, match=r"label 10 is out of range; classes are 0\.\.9"):
        sp.attack(picture, "pgd", model=victim, label=10)
    with pytest.raises(UnknownNameError, match="norm is called 'max'"):
        sp.attack(picture, "pgd", model=victim, norm="max")
    with pytest.raises(InputError, match="eps is '8/255'; a number is needed"):
        sp.attack(picture, "pgd", model=victim, eps="8/255")  # type: ignore[arg-type]
    with pytest.raises(ThreatError, match="searches linf, l2, l1"):
        sp.attack(picture, "pgd", model=victim, norm="l0")


def test_attacks_on_other_things_are_refused(victim: Any) -> None:
    from sparring.core.registry import attack_cards

    for card in attack_cards():
        if not set(card.domains) & {"tensor", "image"}:
            with pytest.raises(ThreatError, match="does not attack pictures"):
                sp.attack(sample_picture(0), card.name, model=victim)


def test_the_smallest_change_needs_no_eps(victim: Any) -> None:
    shown = sp.attack(sample_picture(0), "deepfool", model=victim, norm="l2")
    assert shown.succeeded
    assert shown.eps is None
    assert "deepfool (l2, smallest change)" in shown.told()
    assert shown.result.limit is None
    assert 0 < shown.distances["l2"] < 1


def test_a_black_box_with_a_budget(victim: Any) -> None:
    asked = 0

    def remote(x: Tensor) -> Tensor:
        nonlocal asked
        asked += len(x)
        return victim.query(x).labels

    box = sp.load(sp.BlackBox(remote, bounds=(0, 1), labels=list(victim.labels)), size=8, resize=8, mode="L")
    shown = sp.attack(sample_picture(0), "uniform-noise", model=box, eps=1.0, queries=1)
    assert int(shown.result.queries[0]) == 1
    assert shown.before.label == "0"
    assert shown.before.confidence is None
    assert asked < 8


def test_bounds_of_255_levels() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = sp.load("digits").net  # type: ignore[attr-defined]

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x / 255)  # type: ignore[no-any-return]

    victim = sp.load(sp.Victim(Scaled().eval(), bounds=(0, 255)), size=8, resize=8, mode="L")
    shown = sp.attack(sample_picture(0), "pgd", model=victim)
    unit = sp.attack(sample_picture(0), "pgd", model="digits")
    assert shown.succeeded
    assert shown.eps == pytest.approx(0.3 * 255)
    assert 1 < shown.distances["linf"] <= 76
    assert torch.equal(shown.original, unit.original)
    k = levels(shown.adversarial)
    assert torch.equal((k.round() / 255).float(), shown.adversarial)


def test_files_that_would_lose_the_change(victim: Any, tmp_path: Path) -> None:
    shown = sp.attack(sample_picture(0), model=victim)
    with pytest.raises(InputError, match=r"use \.png"):
        shown.save(tmp_path / "x.jpg")
    with pytest.raises(PictureError, match="does not exist"):
        shown.save(tmp_path / "none" / "x.png")


def test_plain_data_for_json(victim: Any, tmp_path: Path) -> None:
    import json

    shown = sp.attack(sample_picture(0), "pgd", model=victim, target="8")
    shown.save(tmp_path / "x.png")
    told = json.loads(json.dumps(shown.as_dict()))
    assert told["succeeded"] is True
    assert told["target"] == told["after"]["label"] == "8"
    assert told["saved"] == {
        "path": str(tmp_path / "x.png"),
        "still_fools": True,
        "label": "8",
        "confidence": pytest.approx(shown.after.confidence, abs=1e-5),
    }


def test_the_evidence_is_kept_with_its_tensors(victim: Any, tmp_path: Path) -> None:
    shown = sp.attack(sample_picture(0), model=victim)
    loaded = sp.AttackResult.load(shown.result.save(tmp_path / "r.safetensors"))
    assert torch.equal(loaded.adversarial, shown.result.adversarial)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("norm", "shape", "eps"),
    [
        ("linf", (3, 224, 224), 8 / 255),
        ("linf", (1, 28, 28), 0.3),
        ("linf", (1, 512, 512), 8 / 255),
        ("l2", (3, 224, 224), 3.04),
        ("l2", (3, 32, 32), 0.435),
        ("l2", (1, 28, 28), 2.1),
        ("l1", (3, 32, 32), 12.05),
        ("l0", (3, 32, 32), 30),
        ("l0", (1, 8, 8), 1),
    ],
)
def test_the_usual_eps(norm: str, shape: tuple[int, ...], eps: float) -> None:
    assert default_eps(norm, shape) == pytest.approx(eps, rel=2e-3)
    if norm != "l0":
        assert default_eps(norm, shape, 255.0) == pytest.approx(255 * eps, rel=2e-3)


def test_the_usual_eps_of_no_norm() -> None:
    with pytest.raises(InputError, match="no usual eps for 'words'"):
        default_eps("words", (3, 2, 2))


def test_balls_in_words() -> None:
    assert ball_text("linf", 8 / 255) == "linf, 8/255"
    assert ball_text("linf", 0.3) == "linf, 0.3"
    assert ball_text("l2", math.pi) == "l2, 3.142"
    assert ball_text("l2", None) == "l2, smallest change"


def test_the_digits_of_the_test_set_break_at_the_usual_eps(victim: Any) -> None:
    x, y = load_digits("test", eight_bit=True)
    fooled = [sp.attack(x[i], "pgd", model=victim, label=int(y[i])).succeeded for i in range(20)]
    assert sum(fooled) >= 18


@pytest.mark.parametrize(
    ("attack", "norm", "eps"),
    [("rotation-translation", "rotations", 30.0), ("stadv", "flow", None), ("corruptions", "corruptions", 5.0)],
)
def test_attacks_that_move_pixels_take_their_usual_change(
    attack: str, norm: str, eps: float | None, tmp_path: Path
) -> None:
    shown = sp.attack(sample_picture(0), attack, model="digits")
    assert (shown.norm, shown.eps) == (norm, eps)
    assert norm in shown.told()
    assert ((shown.adversarial * 255) - (shown.adversarial * 255).round()).abs().max() < 1e-3
    assert shown.save(tmp_path / "x.png").still_fools == shown.succeeded


def test_eps_is_the_size_of_a_change_in_its_own_unit() -> None:
    shown = sp.attack(sample_picture(0), "rotation-translation", model="digits", eps=0.0)
    assert shown.eps == 0.0
    assert shown.distances["linf"] > 0 or not shown.succeeded, "shifts are left, turns are not"
    with pytest.raises(sp.SparringError, match="channel"):
        sp.attack(sample_picture(0), "recolor", model="digits")


def test_an_eps_beyond_the_whole_range_is_taken_for_a_mistake_of_units(victim: Any) -> None:
    with pytest.raises(InputError, match="8/255"):
        sp.attack(sample_picture(0), "pgd", model=victim, eps=8)
    assert sp.attack(sample_picture(0), "pgd", model=victim, eps=1.0, steps=1).eps == 1.0
