"""`sparring demo`: the main job from end to end, offline, on the embedded digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparring.cli.progress import progress
from sparring.cli.shell import DONE, HELD, print_json, say
from sparring.cli.values import parse_number

_RADII = (0.05, 0.1, 0.2)
_COUNT = 100


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("demo", short_help="Fool the embedded digit network, offline.")(demo)


def demo(
    out: Annotated[str, typer.Option("--out", help="The folder for the pictures; made where it is missing.")] = "demo",
    digit: Annotated[int, typer.Option("--digit", min=0, max=499, help="Which test digit to attack.")] = 110,
    target: Annotated[str, typer.Option("--target", help="The digit that it is to be taken for.")] = "5",
    eps: Annotated[str, typer.Option("--eps", help="The largest change of a pixel: 0.1, 25/255.")] = "0.1",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, errors included.")] = False,
) -> None:
    """Fool the embedded digit network, offline: classify, attack, save, read the file back, and measure 100 digits.

    Writes original.png, untargeted.png, adversarial.png (targeted) and figure.png.
    """
    radius = parse_number(eps, "--eps")
    import sparring
    from sparring.core.errors import LoadError
    from sparring.data import load_digits, sample_picture
    from sparring.see import Viewer

    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        original = folder / "original.png"
        sample_picture(digit).save(original)
    except OSError as cause:
        raise LoadError(
            f"the folder {out!r} cannot be written: {cause.strerror or cause}. Choose another with --out"
        ) from cause
    victim = sparring.load("digits")
    viewer = Viewer(victim)
    seen = viewer.read(original, 1)
    with progress(not as_json):
        untargeted = sparring.attack(original, "pgd", model=victim, eps=radius)
        targeted = sparring.attack(original, "pgd", model=victim, target=target, eps=radius)
        untargeted.save(folder / "untargeted.png")
        targeted.save(folder / "adversarial.png")
        targeted.figure(folder / "figure.png")
        again = viewer.read(folder / "adversarial.png", 1)
        x, y = load_digits("test", eight_bit=True)
        x, y = x[:_COUNT], y[:_COUNT]
        results = [sparring.PGD()(victim, x, y, sparring.Linf(r, lattice=256)) for r in _RADII]
    clean = results[0].clean_accuracy
    robust = {f"{r:g}": result.robust_accuracy for r, result in zip(_RADII, results, strict=True)}
    fooled = bool(untargeted.saved and untargeted.saved.still_fools and targeted.saved and targeted.saved.still_fools)
    if as_json:
        print_json(
            {
                "original": {"path": str(original), **seen.as_dict()},
                "untargeted": untargeted.as_dict(),
                "targeted": targeted.as_dict(),
                "read_again": again.as_dict(),
                "figure": str(folder / "figure.png"),
                "digits": len(y),
                "clean_accuracy": clean,
                "robust_accuracy": robust,
            }
        )
    else:
        _tell(folder, seen, untargeted, targeted, again)
        say(
            f"accuracy on {len(y)} test digits: {clean:.0%} clean; under pgd within linf "
            + ", ".join(f"{r}: {accuracy:.0%}" for r, accuracy in robust.items())
        )
        say(f"Look at {folder / 'figure.png'}. The same by hand:")
        say(
            f"  sparring attack {original} --with pgd --model digits --target {target} --eps {eps} "
            f"--out {folder / 'adversarial.png'}"
        )
    raise typer.Exit(DONE if fooled else HELD)


def _tell(folder: Path, seen: Any, untargeted: Any, targeted: Any, again: Any) -> None:
    from sparring.see.classification import percent

    say(f"The embedded network reads {folder / 'original.png'} as {seen.label} ({percent(seen.confidence)}).")
    for shown, name in ((untargeted, "untargeted.png"), (targeted, "adversarial.png")):
        say(f"{shown.told()}. Saved as {folder / name}.", "bold red" if shown.succeeded else "bold green")
    say(f"Read again from its file, {folder / 'adversarial.png'} is {again.label} ({percent(again.confidence)}).")
