"""The command `sparring train`: a training defence on a model and data, with checkpoints that a killed run goes on from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from sparring.cli.shell import print_json, print_table, say
from sparring.cli.values import parse_number, parse_params
from sparring.core.errors import InputError, UnknownNameError

# Below this PGD accuracy training has failed, whatever its loss says.
LITTLE = 0.1
# Which function builds the networks that a name alone stands for.
BUILDERS = {"digits": "sparring.victims.digits:build"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("train", short_help="Train a model to be robust; `sparring defences --kind training` lists ways.")(
        train
    )


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the weights go: FILE.safetensors.")],
    method: Annotated[str, typer.Option("--with", "-w", help="A training defence.")] = "pgd-training",
    model: Annotated[str, typer.Option("--model", "-m", help="As for `sparring audit`.")] = "digits",
    data: Annotated[str, typer.Option("--data", "-d", help="As for `sparring audit`.")] = "digits-train",
    norm: Annotated[str, typer.Option("--norm", help="linf, l2 or l1.")] = "linf",
    eps: Annotated[str | None, typer.Option("--eps", help="What it shall withstand, in raw units: 8/255, 0.3.")] = None,
    attack: Annotated[str | None, typer.Option("--attack", "-a", help="What crafts, in the method's place.")] = None,
    params: Annotated[list[str] | None, typer.Option("--param", help="Of the method: name=value.")] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 128,
    lr: Annotated[float, typer.Option("--lr", help="The highest learning rate.")] = 5e-3,
    devices: Annotated[
        str,
        typer.Option(
            "--devices", help="Processes, one to a device: 2, cuda, cuda:2. More than 1 need the extra `train`."
        ),
    ] = "1",
    precision: Annotated[str, typer.Option("--precision", help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    folder: Annotated[
        Path | None, typer.Option("--run", help="Checkpoints and curves; a run in it is gone on with.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all randomness.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, errors included.")] = False,
) -> None:
    """Train a copy of a model with a training defence, from the weights that it has."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from sparring.core.balls import NORMS
    from sparring.core.network import Victim
    from sparring.core.registry import build, defence_class
    from sparring.defences.training import Method, Settings, fit
    from sparring.evaluation.sources import load_data, load_victim

    if out.suffix != ".safetensors":
        raise InputError(f"--out is {out.name!r}; weights go into a .safetensors file")
    if norm.lower() not in NORMS:
        raise UnknownNameError.among("norm", norm, NORMS)
    chosen = build(defence_class(method), parse_params(params or []))
    if not isinstance(chosen, Method):
        raise InputError(f"{method} trains nothing: use `sparring defend`, or see `sparring defences --kind training`")
    space = None if eps is None else NORMS[norm.lower()](parse_number(eps, "--eps"))
    victim = load_victim(model)
    if not isinstance(victim, Victim) or not isinstance(victim.net, nn.Module):
        raise InputError(f"{model!r} is a {type(victim).__name__}; a PyTorch network is needed to train")
    samples = load_data(data, victim)
    x, y, _ = samples.take(torch.arange(len(samples)))
    if not isinstance(x, torch.Tensor):
        raise InputError(f"{data!r} holds no tensors; training takes tensors of inputs")
    kind, count = _devices(devices)
    settings = Settings(
        epochs=epochs, batch_size=batch_size, lr=lr, accelerator=kind, devices=count, precision=precision
    )
    with _told(not as_json):
        done = fit(victim, (x, y), chosen, space, attack=attack, settings=settings, folder=folder, seed=seed)
    net = done.victim.net
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: t.contiguous() for k, t in net.state_dict().items()}, out)  # type: ignore[attr-defined]
    rows = [dataclasses.asdict(row) for row in done.history]
    if as_json:
        print_json({"weights": str(out), "method": method, "chosen": done.chosen, "epochs": rows})
        return
    header = ("epoch", "loss", "clean", "FGSM", "PGD-10", "alarm")
    print_table(header, [_row(row) for row in done.history])
    say(f"{out}: the weights of epoch {done.chosen}", "bold")
    kept = next((row for row in done.history if row.epoch == done.chosen), None)
    if kept is not None and kept.pgd is not None and kept.pgd < LITTLE:
        say(
            f"They withstand almost nothing: {kept.pgd:.1%} under PGD-10 at eps {eps}. Train longer (--epochs), at another "
            "--lr, or for a smaller --eps",
            "yellow",
        )
    if builder := BUILDERS.get(model) or (f"{model.split('@', 1)[1]}" if "@" in model else None):
        say(f"To use them: --model {out}@{builder}")


def _devices(text: str) -> tuple[str | None, int]:
    """The kind of device, None for the network's own, and how many: "2", "cuda", "cuda:2"."""
    from sparring.defences.training.settings import ACCELERATORS

    kind, _, count = ("", "", text) if text.isdigit() else text.partition(":")
    if kind not in ("", *ACCELERATORS) or not (count or "1").isdigit():
        raise InputError(f"--devices is {text!r}; a number, a kind of device, or both is needed: 2, cuda, cuda:2")
    return kind or None, int(count or 1)


@contextlib.contextmanager
def _told(wanted: bool) -> Iterator[None]:
    """One line per epoch as it ends."""
    from sparring.core import events
    from sparring.defences.training import EpochFinished

    def tell(event: events.Event) -> None:
        if wanted and isinstance(event, EpochFinished):
            row = event.row
            alarm = "  catastrophic overfitting: FGSM and PGD part, or gradients turn" if row.overfitted else ""
            _, loss, clean, fgsm, pgd, _ = _row(row)
            say(f"[{row.epoch}/{event.epochs}] loss {loss}  clean {clean}  FGSM {fgsm}  PGD-10 {pgd}{alarm}")

    with events.listening(tell):
        yield


def _row(row: object) -> tuple[str, ...]:
    rates = (getattr(row, name) for name in ("clean", "fgsm", "pgd"))
    shown = ["-" if rate is None else f"{rate:.1%}" for rate in rates]
    alarm = "overfitting" if getattr(row, "overfitted", False) else ""
    return (str(getattr(row, "epoch", "")), f"{getattr(row, 'loss', 0.0):.4f}", *shown, alarm)
