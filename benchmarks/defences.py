"""The table of defences: clean, naive, transfer and adaptive accuracy of each. `python -m benchmarks.defences`.

Every row is kept in a JSON file as soon as it is measured, so that a run that stops goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

import sparring as sp
from benchmarks.harness import commit, hardware, seeded, table
from benchmarks.zoo import load_zoo
from sparring.attacks import APGD, APGDT
from sparring.core.attack import VOTES, Attack
from sparring.core.network import AttackView
from sparring.core.rng import KeyedRandom, content_ids
from sparring.data import assets_folder
from sparring.defences.detectors import (
    LID,
    AnswerDivergence,
    Detector,
    FeatureSqueezing,
    JointPGD,
    Mahalanobis,
    ReconstructionError,
    Union,
)
from sparring.defences.inputs import (
    HGD,
    JPEG,
    BitDepth,
    DefenseGAN,
    DiffusionPurifier,
    Median,
    NonLocalMeans,
    Reformer,
    ResizePad,
    Threshold,
    TotalVariation,
    linear_betas,
    search_latent,
    train_autoencoder,
    train_generator,
    train_hgd,
    train_noise_predictor,
)
from sparring.defences.training import Distillation, Settings, fit

PAGE = Path(__file__).parent.parent / "docs" / "defences.md"
BATCH = 100
MARKS = ("<!-- table -->", "<!-- end of table -->")


NETS = {"mnist": "mnist_certified_0.1", "cifar10": "cifar10_resnet20"}


@dataclass(frozen=True)
class Row:
    """One defence on one network.

    Attributes:
        data: "mnist" or "cifar10"; `NETS` names the network.
        space: within which it is attacked.
        build: from the bare victim and the name of the data to the defended one.
        eot: draws per gradient of the adaptive attacks.
        steps: of each adaptive climb.
        n: samples.
        paper: the paper's own figure and the published break, beside ours.
    """

    data: str
    space: sp.Linf | sp.L2
    build: Callable[[sp.Victim, str], sp.Victim]
    eot: int = 1
    steps: int = 100
    n: int = 500
    paper: str = ""


def training_set(data: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n training pictures, float in [0, 1], and labels."""
    name = {"mnist": "mnist_train.npz", "cifar10": "cifar10_jpeg_train.npz"}[data]
    folder = assets_folder()
    if folder is None:
        raise SystemExit("set SPARRING_ASSETS to the assets folder")
    stored = np.load(folder / "data" / name)
    x = torch.from_numpy(np.ascontiguousarray(stored["x"][:n])).float() / 255
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    return x, torch.from_numpy(stored["y"][:n].astype(np.int64))


def before(*stages: Any) -> Callable[[sp.Victim, str], sp.Victim]:
    """Stages in front."""
    return lambda victim, data: victim.defended(pre=stages)


def behind(detector: Callable[[], Detector], fpr: float = 0.05) -> Callable[[sp.Victim, str], sp.Victim]:
    """A detector behind, fitted on 2,000 clean training pictures."""
    return lambda victim, data: victim.defended(detector=detector().fit(victim, *training_set(data, 2000), fpr=fpr))


def magnet(victim: sp.Victim, data: str) -> sp.Victim:
    """MagNet whole: two detectors that look at the input as it comes, one false alarm in a hundred each, and a reformer.

    The detectors of a victim stand behind its stages, so that the reformer has to be a layer of the network here.
    """
    x, y = training_set(data, 4000)
    net = train_autoencoder(x, epochs=15)
    guards = [
        d.fit(victim, x, y, fpr=0.01) for d in (ReconstructionError(autoencoder=net), AnswerDivergence(autoencoder=net))
    ]
    reformed = sp.Victim(nn.Sequential(Reformer(autoencoder=net), victim.net).eval(), name=f"Reformer+{victim.name}")
    return reformed.defended(detector=Union(*guards))


def distilled(victim: sp.Victim, data: str) -> sp.Victim:
    """The two-convolution network distilled at temperature 100 on 20,000 pictures."""
    with seeded():
        net = load_zoo().small_cnn(1, 7)
    settings = Settings(epochs=12, lr=3e-3)
    return fit(sp.Victim(net, name="distilled"), training_set(data, 20000), Distillation(), settings=settings).victim


def guided(space: sp.Linf | sp.L2, n: int, epochs: int) -> Callable[[sp.Victim, str], sp.Victim]:
    """A guided denoiser that learnt from PGD on n training pictures."""

    def build(victim: sp.Victim, data: str) -> sp.Victim:
        net = train_hgd(victim, *training_set(data, n), space, attack=sp.PGD(steps=5), epochs=epochs)
        return victim.defended(pre=[HGD(net=net)])

    return build


def projected(victim: sp.Victim, data: str) -> sp.Victim:
    """Defense-GAN with a generator of 20,000 training pictures; fewer steps and starts than the paper's 200 and 10."""
    net = train_generator(training_set(data, 20000)[0], steps=600)
    return victim.defended(pre=[DefenseGAN(generator=net, steps=30, starts=2)])


def diffused(t_star: int, n: int, epochs: int) -> Callable[[sp.Victim, str], sp.Victim]:
    """Diffusion purification by a network that learnt from n training pictures, in t_star of 50 steps."""

    def build(victim: sp.Victim, data: str) -> sp.Victim:
        betas = linear_betas(50)
        net = train_noise_predictor(training_set(data, n)[0], betas=betas, most=t_star, width=8, epochs=epochs)
        return victim.defended(pre=[DiffusionPurifier(eps_net=net, betas=betas, t_star=t_star)])

    return build


MNIST, SMALL, CIFAR = sp.Linf(0.3), sp.Linf(0.2), sp.Linf(8 / 255)
# The paper's squeezers for photos: five bits, a 2 x 2 median, and non-local means 13-3-2 (the last in grey levels).
PHOTO_SQUEEZERS = (BitDepth(bits=5), Median(size=2), NonLocalMeans(search=13, patch=3, strength=2 / 255))

ROWS: dict[str, Row] = {
    "none (MNIST)": Row("mnist", MNIST, before()),
    "threshold (MNIST)": Row("mnist", MNIST, before(Threshold()), paper="~98.5 clean kept; holds at .3"),
    "bit depth 2": Row("mnist", MNIST, before(BitDepth(bits=2)), paper="BPDA: 0"),
    "distillation": Row("mnist", SMALL, distilled, paper="attacks < .5%; C&W ~100%"),
    "feature squeezing": Row("mnist", SMALL, behind(FeatureSqueezing), n=200, paper="detects 98"),
    "feature squeezing (L2)": Row("mnist", sp.L2(3.0), behind(FeatureSqueezing), paper="detects 98; joint loss"),
    "MagNet": Row("mnist", SMALL, magnet, n=200, paper="99.1; grey-box C&W ~99% success"),
    "Mahalanobis": Row("mnist", SMALL, behind(Mahalanobis), paper="claims given attacks alone"),
    "LID": Row("mnist", SMALL, behind(LID), paper="confident points: 5 left"),
    "HGD": Row("mnist", SMALL, guided(SMALL, 3000, 4), n=200, paper="1st at NIPS 2017"),
    "HGD (L2)": Row("mnist", sp.L2(3.0), guided(sp.L2(3.0), 3000, 4), paper="end-to-end PGD: 0 on photos"),
    "Defense-GAN": Row("mnist", MNIST, projected, eot=2, steps=25, n=100, paper="~98 (FGSM); BPDA: 55"),
    "diffusion": Row("mnist", SMALL, diffused(8, 6000, 8), eot=5, steps=25, n=100, paper="exact gradient, EOT"),
    "none (CIFAR-10)": Row("cifar10", CIFAR, before()),
    "threshold (CIFAR-10)": Row("cifar10", CIFAR, before(Threshold()), paper="fails on photos"),
    "bit depth 3": Row("cifar10", CIFAR, before(BitDepth(bits=3)), paper="BPDA: 0"),
    "median 2 x 2": Row("cifar10", CIFAR, before(Median(size=2))),
    "non-local means": Row("cifar10", CIFAR, before(NonLocalMeans(strength=0.05))),
    "JPEG 75": Row("cifar10", CIFAR, before(JPEG()), paper="BPDA: 0"),
    "total variation": Row("cifar10", CIFAR, before(TotalVariation(weight=0.03, unroll=False)), paper="BPDA: 0"),
    "resize + pad": Row("cifar10", CIFAR, before(ResizePad(smallest=0.9)), eot=30, steps=40, n=100, paper="EOT-30: 0"),
    "resize + pad (2/255)": Row(
        "cifar10", sp.Linf(2 / 255), before(ResizePad(smallest=0.9)), eot=30, steps=40, n=100, paper="2nd at NIPS 2017"
    ),
    "feature squeezing (CIFAR-10)": Row(
        "cifar10",
        sp.Linf(1 / 255),
        behind(lambda: FeatureSqueezing(squeezers=PHOTO_SQUEEZERS)),
        steps=40,
        n=100,
        paper="detects 85; joint loss",
    ),
}


class Relaxed(nn.Module):
    """A stage's surrogate in its place, forward and backward."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        """The surrogate's output, or the stage's own where it has none."""
        surrogate = getattr(self.stage, "surrogate", None)
        out: Tensor = self.stage(x) if surrogate is None else surrogate(x)
        return out


def knowing(row: Row, bare: sp.Victim, victim: sp.Victim) -> Iterator[tuple[Attack, sp.Victim]]:
    """The attacks that know the defence, and the pipeline that each one is run on; what stands meets the next."""
    view, steps = victim.attack_view(eot=row.eot), row.steps
    if victim.detector is not None:
        yield JointPGD(steps=steps), view
    if victim.stages and row.eot == 1:
        relaxed = bare.defended(pre=[Relaxed(stage) for stage in victim.stages])
        yield sp.PGD(steps=steps), relaxed
        yield APGD(steps=steps, loss="margin"), relaxed
    for other in (*true_gradients(bare, victim, row.eot), view):
        yield APGD(steps=steps), other
        yield APGDT(steps=steps, loss="margin", classes=9 if row.eot == 1 else 3), other
    yield sp.PGD(steps=steps, loss="margin"), view


def true_gradients(bare: sp.Victim, victim: sp.Victim, eot: int) -> list[sp.Victim]:
    """The victim again with the stages' own gradients, where a stage can give them at more cost than a surrogate."""
    dearer = {DefenseGAN: {"tangent": True}, TotalVariation: {"unroll": True}}
    stages = [dataclasses.replace(stage, **dearer.get(type(stage), {})) for stage in victim.stages]  # type: ignore[type-var]
    same = all(type(stage) not in dearer for stage in stages)
    return [] if same else [bare.defended(pre=stages, detector=victim.detector).attack_view(eot=eot)]


def held(victim: sp.Victim, x: Tensor, y: Tensor) -> Tensor:
    """Bool (n,): what no attacker has gained: right or, where there is a detector, rejected.

    A random victim is asked ten times, and is fooled where most of its answers are wrong and accepted.
    """
    kept = []
    for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        rng = KeyedRandom(7, content_ids(part)) if victim.traits.stochastic else None
        fooled = torch.zeros_like(labels)
        draws = 1 if rng is None else VOTES
        for draw in range(draws):
            answers = victim.query(part, None if rng is None else rng.fork(("vote", draw)))
            wrong = answers.labels != labels
            fooled += wrong if answers.accepted is None else wrong & answers.accepted
        kept.append(fooled * 2 <= draws if draws > 1 else fooled == 0)
    return torch.cat(kept)


def attacked(
    attack: Attack, pipeline: sp.Victim, victim: sp.Victim, x: Tensor, y: Tensor, space: Any, left: Tensor
) -> Tensor:
    """Bool (n,): which of the samples `left` the victim still holds after an attack on `pipeline`."""
    rows = left.nonzero().squeeze(1)
    standing = torch.zeros_like(left)
    if not len(rows):
        return standing
    own = pipeline is victim or isinstance(pipeline, AttackView)
    found = attack(pipeline, x[rows], y[rows], space, early_stop=own)
    moved = found.adversarial
    idle = (found.outcome == sp.Outcome.CLEAN_ERROR).nonzero().squeeze(1)
    if own and len(idle):  # what a detector turns away unchanged is left alone by attacks, unless they go to the end
        again = rows[idle]
        moved[idle] = attack(pipeline, x[again], y[again], space, early_stop=False).adversarial
    standing[rows] = held(victim, moved, y[rows])
    return standing


def measure(row: Row, n: int | None = None, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """How many samples each attacker has not gained, the adaptive one's the worst of all that were tried, how many PGD
    leaves of the bare network, and how many clean ones the detector rejects.
    """
    zoo, started = load_zoo(), time.process_time()
    bare = sp.Victim(zoo.load(NETS[row.data]), name=NETS[row.data])
    x, y = zoo.data(row.data, row.n if n is None else n)
    victim, first = row.build(bare, row.data), sp.PGD(steps=40)
    clean = held(victim, x, y)
    accepted = victim.accepts(x)
    say(f"clean {int(clean.sum())}")
    naive = attacked(first, victim, victim, x, y, row.space, clean)
    moved = first(bare, x, y, row.space, early_stop=False).adversarial
    undefended, transfer = held(bare, moved, y), clean & held(victim, moved, y)
    left = naive & transfer
    say(f"naive {int(naive.sum())}, transfer {int(transfer.sum())}, left {int(left.sum())}")
    if any(isinstance(stage, DefenseGAN) for stage in victim.stages):
        left = left & held(victim, search_latent(victim, x, y, row.space), y)
        say(f"{int(left.sum())} left after a search in the latent space")
    for attack, pipeline in knowing(row, bare, victim):
        left = attacked(attack, pipeline, victim, x, y, row.space, left)
        say(f"{left.sum()} left after {attack} ({time.process_time() - started:.0f} s)")
    return {
        "n": len(x),
        "bare": int(undefended.sum()),
        "alarms": None if accepted is None else int((~accepted).sum()),
        "clean": int(clean.sum()),
        "naive": int(naive.sum()),
        "transfer": int(transfer.sum()),
        "adaptive": int(left.sum()),
        "seconds": round(time.process_time() - started, 1),
    }


def told(found: dict[str, dict[str, Any]]) -> str:
    """The rows measured so far as a Markdown table; percentages with 95% Clopper-Pearson intervals."""
    rows = []
    for name in ROWS:
        if name in found:
            row, of = found[name], ROWS[name]
            ball = f"{of.space.name.capitalize()} {of.space.limit:.2g}"
            cells = [_percent(row[key], row["n"]) for key in ("clean", "naive", "transfer", "adaptive")]
            bare, alarms = (None if row[key] is None else 100 * row[key] / row["n"] for key in ("bare", "alarms"))
            ends = ["" if value is None else f"{value:.1f}" for value in (bare, alarms)]
            rows.append([name, ball, str(row["n"]), ends[0], *cells, ends[1], of.paper])
    header = ["defence", "ball", "n", "bare", "clean", "naive", "transfer", "adaptive", "alarms"]
    return table([*header, "paper, and its break"], rows)


def _percent(k: int, n: int) -> str:
    interval = binomtest(k, n).proportion_ci(method="exact")
    return f"{100 * k / n:.1f} ({100 * interval.low:.0f}-{100 * interval.high:.0f})"


def main() -> None:
    """Measure the rows that are not kept yet; with --write, put the table into the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("rows", nargs="*", help=", ".join(ROWS))
    options.add_argument("--keep", type=Path, default=Path("build/defences.json"), help="where the rows are kept")
    options.add_argument(
        "--again", action="store_true", help="measure the rows named, or all, even where they are kept"
    )
    options.add_argument(
        "--try", type=int, dest="tried", metavar="N", help="measure on N samples, attack by attack, and keep nothing"
    )
    options.add_argument("--write", action="store_true", help="put the table into docs/defences.md")
    given = options.parse_args()
    if unknown := [name for name in given.rows if name not in ROWS]:
        raise SystemExit(f"no row is called {', '.join(unknown)}; known: {', '.join(ROWS)}")
    if given.tried is not None:
        for name in given.rows or ROWS:
            print(name, measure(ROWS[name], given.tried, lambda line: print("  ", line, flush=True)), flush=True)
        return
    found: dict[str, dict[str, Any]] = json.loads(given.keep.read_text()) if given.keep.exists() else {}
    for name in given.rows or ROWS:
        if name in found and not given.again:
            continue
        found[name] = measure(ROWS[name])
        given.keep.parent.mkdir(parents=True, exist_ok=True)
        given.keep.write_text(json.dumps(found, indent=1))
        print(name, found[name], flush=True)
    print(told(found))
    if given.write:
        text = PAGE.read_text()
        head, rest = text.split(MARKS[0])
        _, tail = rest.split(MARKS[1])
        stamp = f"*commit {commit()}, {datetime.date.today()}, {hardware()}*"
        PAGE.write_text(f"{head}{MARKS[0]}\n\n{told(found)}\n\n{stamp}\n\n{MARKS[1]}{tail}")


if __name__ == "__main__":
    main()
