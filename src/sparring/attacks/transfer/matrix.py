"""The transfer matrix: inputs crafted on each victim, tried on every other, as numbers and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparring.attacks.gradient import MIFGSM
from sparring.attacks.transfer.substitute import seen_by
from sparring.core.attack import Attack
from sparring.core.errors import CapabilityError, InputError, LoadError, ThreatError
from sparring.core.space import Space
from sparring.core.threat import Access, Goal, Targeted, ThreatModel
from sparring.core.victim import BaseVictim, query_in_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "sparring.TransferMatrix"
_SIZE = 512


@dataclass(frozen=True)
class TransferMatrix:
    """How often inputs crafted on a source (row) succeed on a victim (column).

    The rate in a cell is `successes / tried`, where `tried` counts the inputs that the source and the victim both read
    rightly (and whose target is not their label): of these, the inputs with which the victim reaches the goal. Whether
    the source itself was fooled does not matter.

    Attributes:
        sources: names of the rows.
        victims: names of the columns.
        successes: counts, one list per row.
        tried: the denominators, alike.
        attack: what crafted, and its parameters as text.
        threat: the space and the goal, as text.
        samples: how many inputs there were.
        clean_accuracy: of each column, over all inputs.
        seed: of the attack.
    """

    sources: tuple[str, ...]
    victims: tuple[str, ...]
    successes: tuple[tuple[int, ...], ...]
    tried: tuple[tuple[int, ...], ...]
    attack: str
    threat: str
    samples: int
    clean_accuracy: tuple[float, ...]
    seed: int

    @property
    def rates(self) -> Tensor:
        """Success rates, float64 (rows, columns); NaN where nothing was tried."""
        return torch.tensor(self.successes, dtype=torch.float64) / torch.tensor(self.tried, dtype=torch.float64)

    def rate(self, source: str, victim: str) -> float:
        """The cell of two names.

        Raises:
            InputError: a name that is no row or no column.
        """
        if source not in self.sources or victim not in self.victims:
            raise InputError(
                f"there is no cell ({source!r}, {victim!r}); rows are {', '.join(self.sources)}, "
                f"columns {', '.join(self.victims)}"
            )
        return float(self.rates[self.sources.index(source), self.victims.index(victim)])

    def figure(self) -> Figure:
        """A heat map: each cell shows its rate, and the counts below it. Save it with `figure.savefig(path)`."""
        from matplotlib.figure import Figure

        rates = self.rates.numpy()
        rows, columns = rates.shape
        figure = Figure(figsize=(3.6 + 1.15 * columns, 2.4 + 0.75 * rows), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(rates, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for i in range(rows):
            for j in range(columns):
                tried = self.tried[i][j]
                colour = "white" if tried and rates[i, j] > 0.55 else "black"
                axes.text(
                    j,
                    i - 0.1,
                    f"{rates[i, j]:.0%}" if tried else "-",
                    ha="center",
                    va="center",
                    color=colour,
                    fontsize=11,
                )
                axes.text(
                    j, i + 0.27, f"{self.successes[i][j]}/{tried}", ha="center", va="center", color=colour, fontsize=7
                )
        named = [f"{name}\nclean {clean:.0%}" for name, clean in zip(self.victims, self.clean_accuracy, strict=True)]
        axes.set_xticks(range(columns), named, rotation=30, ha="right", rotation_mode="anchor", fontsize=9)
        axes.set_yticks(range(rows), list(self.sources), fontsize=9)
        axes.set_xlabel("tried on")
        axes.set_ylabel("crafted on")
        axes.set_title(f"{self.attack.split('(')[0]} in {self.threat}: success where both were right", fontsize=10)
        figure.colorbar(image, ax=axes, label="success rate", ticks=[0, 0.25, 0.5, 0.75, 1], format="{x:.0%}")
        return figure

    def save(self, path: str | Path) -> Path:
        """Write everything to one JSON file."""
        path = Path(path)
        draft = path.with_name(path.name + ".part")
        draft.write_text(json.dumps({"format": FORMAT, "version": 1, **asdict(self)}, indent=1), encoding="utf-8")
        draft.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> TransferMatrix:
        """Read what `save` wrote.

        Raises:
            LoadError: no such file, damaged, or another kind of file.
        """
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
            if (told.pop("format"), told.pop("version")) != (FORMAT, 1):
                raise ValueError("another format or version")
            for name in ("successes", "tried"):
                told[name] = tuple(tuple(row) for row in told[name])
            for name in ("sources", "victims", "clean_accuracy"):
                told[name] = tuple(told[name])
            return cls(**told)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
            raise LoadError(f"{path} holds no transfer matrix that sparring saved: {cause}") from cause


def transfer_matrix(
    victims: Mapping[str, BaseVictim],
    x: Tensor,
    y: Tensor,
    threat: ThreatModel | Space,
    attack: Attack | None = None,
    *,
    sources: Mapping[str, BaseVictim] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> TransferMatrix:
    """Craft inputs on every source and try each of them on every victim.

    Every input is attacked to the end of the search (`early_stop=False`), whether the source reads it rightly or not.
    Victims of tables see pictures flattened, so networks and scikit-learn models can stand in one matrix.

    Args:
        victims: the columns, by name; labels are all that is asked of them.
        x: inputs, (n, ...), as the networks take them.
        y: true labels, int64 (n,).
        threat: what may change, and the goal; a bare space is untargeted.
        attack: what crafts; None takes `MIFGSM()`.
        sources: the rows, by name; None crafts on the victims themselves. A victim without gradients needs a
            `train_substitute` here, or an attack by scores or labels.
        seed: of the attack.
        batch_size: samples attacked at once.

    Raises:
        InputError: no victims, or inputs that do not fit them.
        ThreatError: a goal without labels to compare, which a matrix cannot count.
        CapabilityError: a source that does not offer what the attack needs.
    """
    attack = MIFGSM() if attack is None else attack
    threat = ThreatModel.resolve(threat, None)
    sources = victims if sources is None else sources
    if not victims or not sources:
        raise InputError(f"{len(victims)} victims and {len(sources)} sources came; one of each is needed")
    if threat.access is Access.NOTHING:
        raise ThreatError("a matrix crafts on each source with the attack's own access; leave the threat's access out")
    clean = {name: _labels(victim, x) for name, victim in victims.items()}
    counts: list[list[tuple[int, int]]] = []
    for name, source in sources.items():
        try:
            crafted = attack(
                source, seen_by(source, x), y, threat, seed=seed, batch_size=batch_size, early_stop=False
            ).adversarial
        except CapabilityError as cause:
            raise CapabilityError(
                f"nothing can be crafted on {name!r}: {cause}. Give sources={{{name!r}: "
                "sparring.attacks.train_substitute(victim, seeds), ...}, or an attack by scores or labels"
            ) from cause
        if not isinstance(crafted, Tensor):
            raise InputError(f"{name!r} does not take tensors; a transfer matrix compares victims of tensors")
        fit = (_labels(source, x) == y.cpu()) & threat.goal.applicable(y).cpu()
        tries = {
            other: _successes(victim, crafted.reshape(x.shape), y, threat.goal) for other, victim in victims.items()
        }
        both = {other: fit & (clean[other] == y.cpu()) for other in victims}
        counts.append([(int((tries[other] & both[other]).sum()), int(both[other].sum())) for other in victims])
    goal = (
        f" towards {threat.goal.target}"
        if isinstance(threat.goal, Targeted) and isinstance(threat.goal.target, int)
        else ""
    )
    return TransferMatrix(
        sources=tuple(sources),
        victims=tuple(victims),
        successes=tuple(tuple(s for s, _ in row) for row in counts),
        tried=tuple(tuple(t for _, t in row) for row in counts),
        attack=repr(attack),
        threat=f"{threat.space!r}{goal or (' ' + threat.goal.name)}",
        samples=len(x),
        clean_accuracy=tuple(float((clean[name] == y.cpu()).double().mean()) for name in victims),
        seed=seed,
    )


def _labels(victim: BaseVictim, x: Tensor) -> Tensor:
    with victim.at_rest():
        return query_in_batches(victim, seen_by(victim, x), _SIZE).labels.cpu()


def _successes(victim: BaseVictim, x: Tensor, y: Tensor, goal: Goal) -> Tensor:
    with victim.at_rest():
        answers = query_in_batches(victim, seen_by(victim, x), _SIZE)
    return goal.achieved(answers, y.to(answers.labels.device)).cpu()
