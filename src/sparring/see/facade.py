"""The two calls that people type first: what does a model see in this picture, and can it be fooled."""

from __future__ import annotations

import time
from typing import Any, Unpack

import torch
from torch import Tensor

from sparring.core.attack import Attack
from sparring.core.balls import NORMS, Ball
from sparring.core.errors import InputError, ThreatError, UnknownNameError
from sparring.core.registry import make_attack
from sparring.core.threat import Targeted, ThreatModel, Untargeted
from sparring.images.files import Source
from sparring.images.rendering import Drawn
from sparring.see.classification import Classification
from sparring.see.radii import default_eps, usual_change
from sparring.see.shown import Shown, distances_of
from sparring.see.viewer import Viewer
from sparring.victims import LoadOptions


def classify(image: Source, model: Any = None, *, top: int = 5, **options: Unpack[LoadOptions]) -> Classification:
    """What a model sees in a picture.

    Args:
        image: a path, an http(s) URL, a PIL image, an array, a tensor, or the bytes of a file.
        model: whatever `sparring.load` takes: a name, a file, a network, a victim. None takes an ImageNet model, where
            one is at hand.
        top: how many labels to give.
        options: for `sparring.load`.

    Returns:
        A `Classification`: labels and confidences, a table when printed, `figure()`.

    Raises:
        PictureError, FetchError: the picture cannot be had or is none.
        LoadError, UnknownNameError, MissingDependencyError: the model cannot be had.
        InputError: what came, what was needed, and what to do.

    Example:
        >>> import sparring as sp
        >>> from sparring.data import sample_picture
        >>> sp.classify(sample_picture(0), "digits").label
        '0'
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise InputError(f"top is {top!r}; a whole number >= 1 is needed")
    return Viewer.of(model, **options).read(image, top)


def attack(  # noqa: PLR0913 (one call that says a whole threat model)
    image: Source,
    attack: str | Attack = "pgd",
    *,
    target: int | str | None = None,
    label: int | str | None = None,
    model: Any = None,
    eps: float | None = None,
    norm: str | None = None,
    queries: int | None = None,
    seed: int = 0,
    lattice: int | None = 256,
    **params: Any,
) -> Shown:
    """Try to fool a model on a picture.

    What is attacked is the victim's input, which begins after resize and crop; the answer's pictures have that size.
    The search is on the 8-bit grid unless `lattice=None`, so that the saved file is what was found.

    Args:
        image: a path, an http(s) URL, a PIL image, an array, a tensor, or the bytes of a file.
        attack: a name (`sparring attacks` lists them), or an attack such as `sparring.PGD(steps=100)`.
        target: the label to reach, by number or name; None is content with any wrong one.
        label: the picture's true label, by number or name; None takes the model's own answer.
        model: whatever `sparring.load` takes; None takes an ImageNet model, where one is at hand.
        eps: the largest change, in the victim's raw units (pixels in [0, 1]). None takes `sparring.see.default_eps`:
            8/255 in linf for photos; attacks that seek the smallest change need none. Attacks that move, turn or recolour
            pixels read it as their own largest change: degrees, pixels of flow, severity.
        norm: "linf", "l2", "l1" or "l0"; None takes linf, or what the attack searches first.
        queries: the most queries of a black-box attack.
        seed: of all randomness.
        lattice: levels of a pixel; 256 for 8-bit files, None for real numbers.
        params: the attack's own parameters (`sparring show pgd` lists them).

    Returns:
        A `Shown`: before, after, distances, `figure()` and `save("x.png")`. A failure is data: see `succeeded`.

    Raises:
        PictureError, FetchError: the picture cannot be had or is none.
        LoadError, UnknownNameError, MissingDependencyError: the model cannot be had; no such label, attack or
            parameter.
        InputError, ThreatError, CapabilityError: what came, what was needed, and what to do.

    Example:
        >>> import sparring as sp
        >>> from sparring.data import sample_picture
        >>> shown = sp.attack(sample_picture(0), "pgd", model="digits")
        >>> shown.before.label, shown.succeeded
        ('0', True)
    """
    started = time.perf_counter()
    method = _method(attack, params)
    viewer = Viewer.of(model)
    pixels = viewer.pixels(image)
    x = viewer.raw(pixels)
    clean = viewer.ask(x)
    victim = viewer.victim
    y = clean.labels.cpu() if label is None else torch.tensor([victim.label_index(label)])
    goal = None if target is None else Targeted(victim.label_index(target))
    space, size = _space(method, norm, eps, lattice, x, viewer)
    threat = ThreatModel(space, goal=goal or Untargeted(), queries=queries)
    result = method(victim, x, y, threat, seed=seed)
    changed = result.adversarial
    if not isinstance(changed, Tensor):
        raise ThreatError(f"{method.card.name} does not change pictures")
    adversarial = viewer.from_raw(changed)
    if space.lattice is not None:  # the grid's own arithmetic may be off in the last bit; a file holds k/255 itself
        top = space.lattice - 1
        adversarial = (adversarial.double() * top).round().div(top).float()
    return Shown(
        original=pixels,
        adversarial=adversarial,
        before=Classification.of(clean, victim, pixels),
        after=Classification.of(result.final, victim, adversarial),
        label=victim.label_name(int(y[0])),
        target=None if goal is None else victim.label_name(int(goal.of(y)[0])),
        distances=distances_of(changed - x.to(changed.device)),
        norm=space.name,
        eps=size,
        seconds=time.perf_counter() - started,
        result=result,
        viewer=viewer,
    )


def _method(attack: str | Attack, params: dict[str, Any]) -> Attack:
    if not isinstance(attack, str) and params:
        raise InputError(
            f"{', '.join(params)} came beside a ready {type(attack).__name__}; put the parameters inside it"
        )
    method = make_attack(attack, **params)
    if not isinstance(method, Attack) or not set(method.card.domains) & {"tensor", "image"}:
        kind = (
            f"works on {', '.join(method.card.domains)}" if hasattr(method, "card") else f"is a {type(method).__name__}"
        )
        raise ThreatError(f"{attack!r} {kind} and does not attack pictures; `sparring attacks` lists those that do")
    return method


def _space(
    method: Attack, norm: str | None, eps: float | None, lattice: int | None, x: Tensor, viewer: Viewer
) -> tuple[Ball | Drawn, float | None]:
    """The space of the search and its size, the usual one where none is given and the attack needs one."""
    searched = [name for name in method.card.spaces if name in NORMS]
    if isinstance(eps, (str, bool)):
        raise InputError(f"eps is {eps!r}; a number is needed, for example 8 / 255")
    lattice = None if viewer.victim.bounds is None else lattice
    if norm is None and not searched:
        return usual_change(
            method.card.spaces[0], eps, lattice, (x.shape[-2], x.shape[-1]), smallest=method.card.minimal
        )
    norm = norm or ("linf" if "linf" in searched else searched[0])
    if norm.lower() not in NORMS:
        raise UnknownNameError.among("norm", norm, NORMS)
    norm = norm.lower()
    if eps is None and not method.card.minimal:
        eps = default_eps(norm, tuple(x.shape[1:]), viewer.span if norm != "l0" else 1.0)
    if norm == "linf" and eps is not None and eps > viewer.span * (1 + 1e-6):
        raise InputError(
            f"eps is {eps:g}, more than the whole range of a pixel, {viewer.span:g}: any picture would be a legal change. In raw "
            f"units it may be meant as {eps:g}/255"
        )
    return NORMS[norm](eps, lattice=lattice), eps
