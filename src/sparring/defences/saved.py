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
from sparring.defences.inputs import Autoencoder, Generator, InputDefence, UNet
from sparring.victims import load

SUFFIX = ".defended"
_PLAIN = (int, float, str, bool, type(None))
# Networks that a file can hold: their `settings` build them again, and their tensors fill them.
_NETWORKS: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (Autoencoder, Generator, UNet)}


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
        InputError: another suffix, or a defence that holds a network of another make than this package's, which is code
            and no data.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"the file is {path.name!r}; a defended victim's file ends in {SUFFIX}")
    tensors: dict[str, Tensor] = {}
    if detector is not None:
        tensors = {f"detector/{name}": t for name, t in detector.state_dict().items() if "." not in name}
    told = {
        "model": model,
        "stages": [_described(stage, tensors) for stage in stages],
        "detector": None if detector is None else _described(detector, tensors),
    }
    # copies: two defences may share a network, and a file holds no shared memory
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
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
        pre = [_built(stage, tensors) for stage in stages]
        guard = None if detector is None else _built(detector, tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, UnknownNameError) as cause:
        raise LoadError(f"{str(path)!r} holds no defended victim that `sparring defend` wrote: {cause}") from cause
    victim = load(model)
    if not isinstance(victim, Victim):
        raise LoadError(f"{model!r} is a {type(victim).__name__}; stages stand in front of PyTorch victims alone")
    if isinstance(guard, Detector):
        guard.victim = victim
        for name, tensor in tensors.items():
            if name.startswith("detector/"):
                guard.register_buffer(name.removeprefix("detector/"), tensor)
        guard.to(victim.device)
    return victim.defended(pre=[stage.to(victim.device) for stage in pre], detector=guard)


def _described(defence: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A defence as data: its registered name and parameters; the weights of its networks are put among `tensors`."""
    params = {f.name: _value(getattr(defence, f.name), tensors) for f in _fields(defence)}
    return {"name": defence.card.name, "params": params}  # type: ignore[union-attr]


def _fields(defence: nn.Module) -> tuple[dataclasses.Field[Any], ...]:
    if not dataclasses.is_dataclass(defence) or not hasattr(defence, "card"):
        raise InputError(
            f"{type(defence).__name__} is no registered defence; `sparring defences` lists those that save"
        )
    return dataclasses.fields(defence)


def _value(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (tuple, list)):
        return [_value(item, tensors) for item in value]
    if isinstance(value, InputDefence):
        return {"defence": _described(value, tensors)}
    name = type(value).__name__
    if _NETWORKS.get(name) is type(value):
        place = f"network/{len(tensors)}"
        tensors.update({f"{place}/{key}": tensor for key, tensor in value.state_dict().items()})
        return {"network": name, "settings": value.settings, "place": place}
    raise InputError(
        f"a {name} is a part of this defence; a file holds data and the networks {', '.join(_NETWORKS)}, so build the "
        "victim in Python with victim.defended(...)"
    )


def _built(told: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    params = {name: _back(value, tensors) for name, value in told["params"].items()}
    made: nn.Module = build(defence_class(told["name"]), params)
    return made


def _back(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_back(item, tensors) for item in value)
    if not isinstance(value, dict):
        return value
    if "defence" in value:
        return _built(value["defence"], tensors)
    network = _NETWORKS[value["network"]](**value["settings"])
    place = f"{value['place']}/"
    network.load_state_dict({key.removeprefix(place): t for key, t in tensors.items() if key.startswith(place)})
    return network.eval().requires_grad_(False)
