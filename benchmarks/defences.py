"""The table of defences: clean, naive, transfer and adaptive accuracy of each. `python -m benchmarks.defences`.

Every row is kept in a JSON file as soon as it is measured, so that a run that stops goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
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
    train_autoencoder,
    train_generator,
    train_hgd,
    train_noise_predictor,
)
from sparring.defences.training import Distillation, Settings, fit

PAGE = Path(__file__).parent.parent / "docs" / "defences.md"
MARKS = ("<!-- table -->", "<!-- end of table -->")


@dataclass(frozen=True)
class Row:
    """One defence on one network.

    Attributes:
        data: "mnist" or "cifar10".
        net: the network's name in the assets, or "trained" where the defence brings its own.
        eps: the Linf radius.
        build: from the bare victim and the name of the data to the defended one.
        eot: draws per gradient of the adaptive attack.
        n: samples.
        paper: the paper's own figure and the published break, beside ours.
    """

    data: str
    net: str
    eps: float
    build: Callable[[sp.Victim, str], sp.Victim]
    eot: int = 1
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
    """MagNet whole: a reformer in front, two detectors behind, one false alarm in a hundred each."""
    x, y = training_set(data, 4000)
    net = train_autoencoder(x, epochs=15)
    guards = [
        d.fit(victim, x, y, fpr=0.01) for d in (ReconstructionError(autoencoder=net), AnswerDivergence(autoencoder=net))
    ]
    return victim.defended(pre=[Reformer(autoencoder=net)], detector=Union(*guards))


def distilled(victim: sp.Victim, data: str) -> sp.Victim:
    """The two-convolution network distilled at temperature 100 on 20,000 pictures."""
    with seeded():
        net = load_zoo().small_cnn(1, 7)
    settings = Settings(epochs=12, lr=3e-3)
    return fit(sp.Victim(net, name="distilled"), training_set(data, 20000), Distillation(), settings=settings).victim


def guided(eps: float, n: int, epochs: int) -> Callable[[sp.Victim, str], sp.Victim]:
    """A guided denoiser that learnt from n training pictures within Linf(eps)."""

    def build(victim: sp.Victim, data: str) -> sp.Victim:
        net = train_hgd(victim, *training_set(data, n), sp.Linf(eps), attack=sp.PGD(steps=5), epochs=epochs)
        return victim.defended(pre=[HGD(net=net)])

    return build


def projected(tangent: bool) -> Callable[[sp.Victim, str], sp.Victim]:
    """Defense-GAN with a generator of 20,000 training pictures; fewer steps and starts than the paper's 200 and 10."""

    def build(victim: sp.Victim, data: str) -> sp.Victim:
        net = train_generator(training_set(data, 20000)[0], steps=600)
        return victim.defended(pre=[DefenseGAN(generator=net, steps=30, starts=2, tangent=tangent)])

    return build


def diffused(t_star: int, n: int, epochs: int) -> Callable[[sp.Victim, str], sp.Victim]:
    """Diffusion purification by a network that learnt from n training pictures, in t_star of 50 steps."""

    def build(victim: sp.Victim, data: str) -> sp.Victim:
        betas = linear_betas(50)
        net = train_noise_predictor(training_set(data, n)[0], betas=betas, most=t_star, width=8, epochs=epochs)
        return victim.defended(pre=[DiffusionPurifier(eps_net=net, betas=betas, t_star=t_star)])

    return build


ROWS: dict[str, Row] = {
    "none (MNIST)": Row("mnist", "mnist_certified_0.1", 0.3, before()),
    "threshold (MNIST)": Row(
        "mnist", "mnist_certified_0.1", 0.3, before(Threshold()), paper="~98.5 clean kept; holds at .3"
    ),
    "bit depth 2": Row("mnist", "mnist_certified_0.1", 0.3, before(BitDepth(bits=2)), paper="BPDA"),
    "distillation": Row("mnist", "mnist_certified_0.1", 0.2, distilled, paper="attacks < .5%; C&W ~100%"),
    "feature squeezing": Row(
        "mnist", "mnist_certified_0.1", 0.2, behind(FeatureSqueezing), paper="detects 98; joint loss (He 2017)"
    ),
    "MagNet": Row("mnist", "mnist_certified_0.1", 0.2, magnet, paper="99.1; grey-box C&W ~99% success"),
    "Mahalanobis": Row("mnist", "mnist_certified_0.1", 0.2, behind(Mahalanobis)),
    "LID": Row("mnist", "mnist_certified_0.1", 0.2, behind(LID)),
    "HGD (MNIST)": Row(
        "mnist", "mnist_certified_0.1", 0.2, guided(0.2, 3000, 4), paper="1st at NIPS 2017; end-to-end PGD: 0"
    ),
    "Defense-GAN": Row(
        "mnist", "mnist_certified_0.1", 0.2, projected(tangent=False), n=50, paper="~98 (FGSM); BPDA: 55"
    ),
    "Defense-GAN, tangent": Row("mnist", "mnist_certified_0.1", 0.2, projected(tangent=True), n=50),
    "diffusion": Row("mnist", "mnist_certified_0.1", 0.2, diffused(8, 6000, 8), eot=5, n=50),
    "none (CIFAR-10)": Row("cifar10", "cifar10_resnet20", 8 / 255, before(), n=200),
    "threshold (CIFAR-10)": Row(
        "cifar10", "cifar10_resnet20", 8 / 255, before(Threshold()), n=200, paper="fails on photos"
    ),
    "bit depth 3": Row("cifar10", "cifar10_resnet20", 8 / 255, before(BitDepth(bits=3)), n=200, paper="BPDA: 0"),
    "median 2 x 2": Row("cifar10", "cifar10_resnet20", 8 / 255, before(Median(size=2)), n=200),
    "non-local means": Row("cifar10", "cifar10_resnet20", 8 / 255, before(NonLocalMeans()), n=100),
    "JPEG 75": Row("cifar10", "cifar10_resnet20", 8 / 255, before(JPEG()), n=200, paper="BPDA: 0"),
    "total variation": Row(
        "cifar10", "cifar10_resnet20", 8 / 255, before(TotalVariation(weight=0.03, unroll=False)), n=200
    ),
    "resize + pad": Row(
        "cifar10",
        "cifar10_resnet20",
        8 / 255,
        before(ResizePad(smallest=0.9)),
        eot=30,
        n=100,
        paper="EOT-30: 0 at .031",
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


def right(victim: sp.Victim, x: Tensor, y: Tensor) -> Tensor:
    """Bool (n,): right or, where there is a detector, rejected: what an attacker has not broken."""
    noise = KeyedRandom(7, content_ids(x)) if victim.traits.stochastic else None
    answers = victim.query(x, noise)
    held = answers.labels == y
    return held if answers.accepted is None else held | ~answers.accepted


def measure(row: Row) -> dict[str, Any]:
    """The four accuracies of one row, counted over n samples; clean means right and accepted."""
    zoo, started = load_zoo(), time.process_time()
    bare = sp.Victim(zoo.load(row.net), name=row.net)
    x, y = zoo.data(row.data, row.n)
    victim, space = row.build(bare, row.data), sp.Linf(row.eps)
    view = victim.attack_view(eot=row.eot)
    first = sp.PGD(steps=40)
    naive = first(victim, x, y, space)
    moved = first(bare, x, y, space, early_stop=False).adversarial
    transfer = right(victim, moved, y) & (naive.clean.labels == y)
    if victim.detector is None:
        attack: Any = sp.PGD(steps=40, loss="margin", restarts=1 if row.eot > 1 else 2)
    else:
        attack = JointPGD(steps=60)
    adaptive = attack(view, x, y, space)
    relaxed = bare.defended(pre=[Relaxed(stage) for stage in victim.stages])
    soft = first(relaxed, x, y, space, early_stop=False).adversarial if victim.stages and row.eot == 1 else x
    # one attack that knows the defence is one chance of a poor climb: the worst of three stands, sample by sample
    worst = right(victim, adaptive.adversarial, y) & right(victim, soft, y) & transfer & ~adaptive.succeeded
    counts = {
        "clean": round(naive.clean_accuracy * row.n),
        "naive": round(naive.robust_accuracy * row.n),
        "transfer": int(transfer.sum()),
        "adaptive": int(worst.sum()),
    }
    return {
        "n": row.n,
        **counts,
        "seconds": round(time.process_time() - started, 1),
        "paper": row.paper,
        "eps": row.eps,
    }


def told(found: dict[str, dict[str, Any]]) -> str:
    """The rows measured so far as a Markdown table; percentages with 95% Clopper-Pearson intervals."""
    rows = []
    for name in ROWS:
        if name in found:
            row = found[name]
            cells = [_percent(row[key], row["n"]) for key in ("clean", "naive", "transfer", "adaptive")]
            rows.append([name, f"{row['eps']:.3g}", str(row["n"]), *cells, row["paper"]])
    return table(["defence", "eps", "n", "clean", "naive", "transfer", "adaptive", "paper, and its break"], rows)


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
    options.add_argument("--write", action="store_true", help="put the table into docs/defences.md")
    given = options.parse_args()
    if unknown := [name for name in given.rows if name not in ROWS]:
        raise SystemExit(f"no row is called {', '.join(unknown)}; known: {', '.join(ROWS)}")
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
