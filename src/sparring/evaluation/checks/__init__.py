"""The soundness checks: whether an audit's number can be believed, each a figure, a line and a next step.

After Carlini et al. 2019 (arXiv:1902.06705), Athalye et al. 2018 (arXiv:1802.00420), Tramer et al. 2020
(arXiv:2002.08347), Pintor et al. 2022 (arXiv:2106.09947), Zimmermann et al. 2022 (arXiv:2206.13991) and Croce and Hein
2020 (arXiv:2003.01690). Importing this room registers them (see `sparring.evaluation.findings`).
"""

from sparring.evaluation.checks import (
    answers,
    defended,
    entry,
    legality,
    outsiders,
    planted,
    radii,
    search,
    slopes,
    training,
)

__all__ = [
    "answers",
    "defended",
    "entry",
    "legality",
    "outsiders",
    "planted",
    "radii",
    "search",
    "slopes",
    "training",
]
