"""The tutorial's walk on one photo: noise at growing eps, the negative image, FGSM, targeted PGD, DeepFool.

Each attack prints what the victim reads and how far the picture moved; the last picture shows them side by side.

Run: python gallery/tutorial.py PHOTO [--model NAME ...] [--target LABEL] [--out tutorial.png]
Any model that `sparring.load` knows will do. With the assets folder (SPARRING_ASSETS) and no arguments, the photo is one
of its ImageNet samples and the victim is its MobileNet, imagenet_mobilenet_v1_025.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

import sparring as sp
from sparring.attacks import DeepFool, GaussianNoise, Negative, UniformNoise
from sparring.core.attack import Attack
from sparring.data import assets_folder
from sparring.see import Viewer


def from_assets(folder: Path) -> tuple[Path, sp.Victim]:
    """The assets' photo and MobileNet."""
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    import zoo

    names = (folder / "data" / "imagenet_classes.txt").read_text().splitlines()
    net = zoo.load("imagenet_mobilenet_v1_025")
    victim = sp.load(net, labels=names, name="imagenet_mobilenet_v1_025", size=224, resize=256)
    photos = sorted((folder / "data" / "imagenet_samples").glob("*.jpg"))
    return next(p for p in photos if p.name.startswith("030")), victim


def walk(target: int | str, victim: sp.Victim) -> list[tuple[str, Attack, object, object]]:
    """What to try, in order: a title, the attack, the space, the goal."""
    goal = sp.Targeted(victim.label_index(target))
    steps: list[tuple[str, Attack, object, object]] = [
        (f"uniform noise, eps {k}/255", UniformNoise(), sp.Linf(k / 255), None) for k in (2, 8, 32, 96)
    ]
    steps += [
        ("Gaussian noise, eps 32/255", GaussianNoise(), sp.Linf(32 / 255), None),
        ("negative image", Negative(), sp.Linf(), None),
        ("FGSM, eps 2/255", sp.FGSM(), sp.Linf(2 / 255, lattice=256), None),
        ("PGD to the target, eps 4/255", sp.PGD(steps=40), sp.Linf(4 / 255, lattice=256), goal),
        ("DeepFool, L2", DeepFool(), sp.L2(), None),
    ]
    return steps


def main() -> None:
    """Load, walk, tell, draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("photo", nargs="?", help="a path or a URL")
    options.add_argument("--model", default=None, help="a name that sparring.load knows")
    options.add_argument("--target", default="neck brace")
    options.add_argument("--out", type=Path, default=Path("tutorial.png"))
    given = options.parse_args()
    folder = assets_folder()
    if given.photo is None and folder is None:
        raise SystemExit("Name a photo and a --model, or set SPARRING_ASSETS to the assets folder.")
    if given.model is None and folder is not None:
        photo, victim = from_assets(folder)
    else:
        photo, victim = given.photo, sp.load(given.model or "resnet18")
    photo = given.photo or photo
    viewer = Viewer.of(victim)
    x = viewer.raw(viewer.pixels(photo))
    clean = victim.query(x)
    y = clean.labels
    print(f"{Path(photo).name}: {victim.label_name(int(y))} ({float(clean.confidence):.1%})")

    shown: list[tuple[str, Tensor]] = [(f"original\n{victim.label_name(int(y))} ({float(clean.confidence):.0%})", x[0])]
    for title, attack, space, goal in walk(given.target, victim):
        result = attack(victim, x, y, space, goal=goal)
        label = victim.label_name(int(result.final.labels))
        change = (result.adversarial - x).abs().amax()
        mark = "fooled" if bool(result.succeeded) else "holds"
        confidence = float(result.final.confidence)
        print(f"{title:30s} {mark:7s} {label} ({confidence:.1%}), largest change {float(change) * 255:.1f}/255")
        shown.append((f"{title}\n{label.split(',')[0]} ({confidence:.0%})", result.adversarial[0]))
    figure = Figure(figsize=(15, 7), layout="constrained")
    for axis, (title, picture) in zip(figure.subplots(2, 5).flat, shown, strict=True):
        axis.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy())
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.savefig(given.out, dpi=90)
    print(f"picture: {given.out}")


if __name__ == "__main__":
    main()
