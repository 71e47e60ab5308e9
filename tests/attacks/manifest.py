"""What the project set out to have: attack, norms and goals, written down by hand and not read from the cards.

Narrowing a card fails a test, and so does an attack that lands without leaving `PENDING`.
"""

from __future__ import annotations

BOTH = ("untargeted", "targeted")
FREE = ("untargeted",)
AIMED = ("targeted",)
BALLS = ("linf", "l2", "l1")
NORMS = ("l0", "l1", "l2", "linf")
ANY = ()  # no norm was named: the card's spaces are its own choice

PROMISED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # the first attacks: noise, semantic, the gradient sign family, DeepFool, input optimisation
    "uniform-noise": (("linf", "l2"), FREE),
    "gaussian-noise": (("linf", "l2"), FREE),
    "negative": (ANY, FREE),
    "fgsm": (BALLS, BOTH),
    "bim": (BALLS, BOTH),
    "pgd": (BALLS, BOTH),
    "deepfool": (("l2", "linf"), FREE),
    "input-optimisation": (ANY, AIMED),
    # gradients in a ball
    "mi-fgsm": (BALLS, BOTH),
    "ni-fgsm": (BALLS, BOTH),
    "vmi-fgsm": (BALLS, BOTH),
    "di-fgsm": (BALLS, BOTH),
    "ti-fgsm": (BALLS, BOTH),
    "si-fgsm": (BALLS, BOTH),
    "apgd": (BALLS, BOTH),
    "apgd-t": (BALLS, FREE),
    # gradients to the smallest change
    "ddn": (("l2",), BOTH),
    "fmn": (NORMS, BOTH),
    "cw": (("l2", "linf"), BOTH),
    "ead": (("l1",), BOTH),
    "superdeepfool": (("l2",), FREE),
    "fab": (BALLS, BOTH),
    "pdpgd": (BALLS, BOTH),
    "alma": (("l2", "l1"), BOTH),
    "sigma-zero": (("l0",), BOTH),
    "vfga": (("l0",), BOTH),
    "brendel-bethge": (NORMS, BOTH),
    "jsma": (("l0",), BOTH),
    "lbfgs": (("l2",), BOTH),
    "newtonfool": (("l2",), FREE),
    # scores
    "square": (BALLS, BOTH),
    "nes": (("linf", "l2"), BOTH),
    "spsa": (("linf", "l2"), BOTH),
    "zoo": (("l2",), BOTH),
    "simba": (("l2",), BOTH),
    "bandits": (("linf", "l2"), BOTH),
    "one-pixel": (("l0",), BOTH),
    "genattack": (("linf",), BOTH),
    "sparse-rs": (("l0",), BOTH),
    "evolution": (ANY, BOTH),
    # labels
    "boundary": (("l2",), BOTH),
    "hopskipjump": (("l2", "linf"), BOTH),
    "surfree": (("l2",), BOTH),
    "geoda": (("l2", "linf"), FREE),
    "rays": (("linf",), FREE),
    "sign-opt": (("l2",), BOTH),
    "pointwise": (("l0",), BOTH),
    "evadehc": (ANY, FREE),
    "salt-and-pepper": (ANY, FREE),
    "blur": (ANY, FREE),
    "contrast": (ANY, FREE),
    # no access, and one for all
    "universal": (("linf", "l2"), FREE),
    "advgan": (("linf",), FREE),
    # geometry and colour
    "rotation-translation": (ANY, FREE),
    "stadv": (ANY, BOTH),
    "recolor": (ANY, BOTH),
    "hue-saturation": (ANY, FREE),
    "corruptions": (ANY, FREE),
}

MANIFEST: list[tuple[str, str | None, str]] = [
    (name, norm, goal) for name, (norms, goals) in PROMISED.items() for norm in norms or (None,) for goal in goals
]

# Promised and not yet registered: exactly what is missing, so that it only shrinks.
PENDING: set[str] = set()
