"""A defended victim as one file: the model's name, its stages and its detector, as data and tensors alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparring.core.errors import InputError, LoadError, UnknownNameError
from sparring.core.network import Victim
from sparring.core.registry import build, defence_class
from sparring.defences.detectors.base import Detector
from sparring.defences.inputs.base import InputDefence
from sparring.victims import load

SUFFIX = ".defended"
_PLAIN = (int, float, str, bool, type(None))


def save_defended(
    path: str | Path, model: str, stages: Sequence[InputDefence] = (), detector: Detector | None = None
) -> Path:
    """Write a defended victim: what `load_defended` needs to build it again, and nothing that executes.

    Args:
        path: ends in .defended.
        model: the undefended model, by a name that `sparring.load` takes; its weights stay where they are.
        stages: what stands in front of it, in order.
        detector: a fitted detector behind them, or None.

    Raises:
        InputError: another suffix, or a defence that holds networks of its own, which are code and no data.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"the file is {path.name!r}; a defended victim's file ends in {SUFFIX}")
    tensors: dict[str, Tensor] = {}
    if detector is not None:
        tensors = {f"detector/{name}": t.detach().cpu().contiguous() for name, t in detector.state_dict().items()}
    told = {
        "model": model,
        "stages": [_described(stage) for stage in stages],
        "detector": None if detector is None else _described(detector),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"defended": json.dumps(told)})
    return path


def load_defended(path: str | Path) -> Victim:
    """The victim that `save_defended` wrote.

    Raises:
        LoadError: a missing or damaged file, a defence that this version does not know, or a model that cannot be had.
    """
    try:
        with safe_open(str(path), framework="pt") as stored:
            told = json.loads((stored.metadata() or {})["defended"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
        model, stages, detector = told["model"], told["stages"], told["detector"]
        pre = [_built(stage) for stage in stages]
        guard = None if detector is None else _built(detector)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, UnknownNameError) as cause:
        raise LoadError(f"{str(path)!r} holds no defended victim that `sparring defend` wrote: {cause}") from cause
    victim = load(model)
    if not isinstance(victim, Victim):
        raise LoadError(f"{model!r} is a {type(victim).__name__}; stages stand in front of PyTorch victims alone")
    if isinstance(guard, Detector):
        guard.victim = victim
        for name, tensor in tensors.items():
            guard.register_buffer(name.removeprefix("detector/"), tensor.to(victim.device))
    return victim.defended(pre=pre, detector=guard)


def _described(defence: nn.Module) -> dict[str, Any]:
    """A defence as data: its registered name and parameters."""
    return {"name": defence.card.name, "params": {f.name: _value(getattr(defence, f.name)) for f in _fields(defence)}}  # type: ignore[union-attr]


def _fields(defence: nn.Module) -> tuple[dataclasses.Field[Any], ...]:
    if not dataclasses.is_dataclass(defence) or not hasattr(defence, "card"):
        raise InputError(
            f"{type(defence).__name__} is no registered defence; `sparring defences` lists those that save"
        )
    return dataclasses.fields(defence)


def _value(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (tuple, list)):
        return [_value(item) for item in value]
    if isinstance(value, InputDefence):
        return {"defence": _described(value)}
    raise InputError(
        f"a {type(value).__name__} is a part of this defence; a file holds data and no networks, so build the victim in "
        "Python with victim.defended(...)"
    )


def _built(told: dict[str, Any]) -> nn.Module:
    params = {name: _back(value) for name, value in told["params"].items()}
    made: nn.Module = build(defence_class(told["name"]), params)
    return made


def _back(value: Any) -> Any:
    if isinstance(value, dict):
        return _built(value["defence"])
    return tuple(_back(item) for item in value) if isinstance(value, list) else value
