"""Commands on one picture: `sparring classify` and `sparring attack`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparring.cli.progress import progress
from sparring.cli.shell import DONE, HELD, print_json, say
from sparring.cli.values import parse_number, parse_numbers, parse_params, parse_size
from sparring.core.errors import InputError

if TYPE_CHECKING:
    from sparring.see import Shown

_MODEL_HELP = (
    "digits, resnet18 and its like, hf:ID or hf:FOLDER, torchvision:NAME, or "
    "WEIGHTS.safetensors@package.module:function. Without it: an ImageNet model, where one is at hand."
)

Image = Annotated[str, typer.Argument(metavar="IMAGE", help="A picture: a file or an http(s) URL.", show_default=False)]
Model = Annotated[str | None, typer.Option("--model", "-m", help=_MODEL_HELP)]
Mean = Annotated[
    str | None, typer.Option("--mean", help="The model's normalisation: one mean per channel, 0.5,0.5,0.5.")
]
Std = Annotated[str | None, typer.Option("--std", help="And the standard deviations.")]
Size = Annotated[
    str | None, typer.Option("--size", help="Pixels of the model's input: 224, or height x width, 224x320.")
]
Resize = Annotated[
    str | None, typer.Option("--resize", help="Scale the short side to this before the centre of --size is cut out.")
]
Grey = Annotated[bool, typer.Option("--grey", help="The model takes one grey channel.")]
Labels = Annotated[str | None, typer.Option("--labels", help="A file of class names, one per line, or JSON.")]
Device = Annotated[str | None, typer.Option("--device", help="Where the model runs: cpu, cuda, mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors included.")]

_FLAGS = {"mode": "--grey"}


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("classify")(classify)
    app.command("attack")(attack)


def classify(
    image: Image,
    model: Model = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many labels.")] = 5,
    figure: Annotated[
        str | None, typer.Option("--figure", help="Write the picture and its labels there (.png, .svg).")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    resize: Resize = None,
    grey: Grey = False,
    labels: Labels = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say what a model sees in a picture."""
    options = model_options(model, mean, std, size, resize, grey, labels, device)
    from sparring.see import Viewer

    seen = Viewer.of(model, **options).read(image, top)
    if figure is not None:
        seen.figure(figure)
    if as_json:
        print_json({"image": image, **seen.as_dict(), "figure": figure})
    else:
        say(repr(seen))


def attack(
    image: Image,
    method: Annotated[str, typer.Option("--with", "-w", help="The attack; `sparring attacks` lists them.")] = "pgd",
    model: Model = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="The label to reach, by name or number.")] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", help="The true label, by name or number; without it the model's own answer."),
    ] = None,
    eps: Annotated[
        str | None, typer.Option("--eps", help="The largest change: 8/255, 0.03. Without it the norm's usual one.")
    ] = None,
    norm: Annotated[str | None, typer.Option("--norm", help="linf, l2, l1 or l0.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="The attack's parameter steps.")] = None,
    queries: Annotated[int | None, typer.Option("--queries", help="The most queries of a black-box attack.")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="Another parameter, name=value; `sparring show pgd` lists them."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of all randomness.")] = 0,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Write the adversarial picture there (.png).")] = None,
    figure: Annotated[
        str | None, typer.Option("--figure", help="Write before, difference and after there (.png, .svg).")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    resize: Resize = None,
    grey: Grey = False,
    labels: Labels = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Change a picture so that a model misreads it.

    The change is made where the model's input begins: after resize and crop. --out has that size, and is read back as
    any other file to see whether it still fools the model.
    """
    options = model_options(model, mean, std, size, resize, grey, labels, device)
    params = parse_params(param or [])
    if steps is not None:
        if "steps" in params:
            raise InputError("steps came twice, as --steps and as --param; give it once")
        params["steps"] = steps
    radius = None if eps is None else parse_number(eps, "--eps")
    _check_folders(out, figure)
    import sparring

    victim = None if model is None else sparring.load(model, **options)
    with progress(not as_json):
        shown = sparring.attack(
            image,
            method,
            target=target,
            label=label,
            model=victim,
            eps=radius,
            norm=norm,
            queries=queries,
            seed=seed,
            **params,
        )
    if out is not None:
        shown.save(out)
    if figure is not None:
        shown.figure(figure)
    if as_json:
        print_json({"image": image, **shown.as_dict(), "figure": figure})
    else:
        _tell(shown, figure)
    held = not shown.succeeded or (shown.saved is not None and not shown.saved.still_fools)
    raise typer.Exit(HELD if held else DONE)


def _tell(shown: Shown, figure: str | None) -> None:
    from sparring.see.classification import percent

    headline, *rest = repr(shown).splitlines()
    say(headline, "bold red" if shown.succeeded else "bold green")
    for line in rest:
        say(line)
    if shown.saved is not None:
        fools = "still fools the model" if shown.saved.still_fools else "does not fool the model"
        read = f"{shown.saved.label} {percent(shown.saved.confidence)}".rstrip()
        say(f"file:   {shown.saved.path} read back: {read}, {fools}")
    if figure is not None:
        say(f"figure: {figure}")


def model_options(
    model: str | None,
    mean: str | None,
    std: str | None,
    size: str | None,
    resize: str | None,
    grey: bool,
    labels: str | None,
    device: str | None,
) -> Any:
    """The options of `sparring.load` that were given; typed there."""
    options: dict[str, Any] = {}
    for name, text, parse in (
        ("mean", mean, parse_numbers),
        ("std", std, parse_numbers),
        ("size", size, parse_size),
        ("resize", resize, parse_size),
        ("labels", labels, None),
        ("device", device, None),
    ):
        if text is not None:
            options[name] = text if parse is None else parse(text, f"--{name}")
    if grey:
        options["mode"] = "L"
    if model is None and options:
        raise InputError(
            f"{', '.join(_FLAGS.get(name, f'--{name}') for name in options)} came without --model; name the model they "
            "belong to"
        )
    return options


def _check_folders(*paths: str | None) -> None:
    """Refuse, before the work, to write where no folder is."""
    for path in paths:
        if path is not None and not Path(os.path.expanduser(path)).parent.is_dir():
            raise InputError(f"cannot write {path!r}: its folder does not exist; create it first")
