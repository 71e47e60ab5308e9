"""Tensors and plain data in one safetensors file, written whole or not at all; nothing in such a file is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sparring.core.errors import LoadError


def write_stored(path: str | Path, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> Path:
    """Write tensors as they are and `told` as JSON in the header; a file of that name stays whole until the new one is.

    Raises:
        TypeError: `told` holds what JSON cannot write.
    """
    from safetensors.torch import save_file

    header = {"sparring": json.dumps(told)}
    path = Path(path)
    draft = path.with_name(path.name + ".part")
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    save_file(copies, str(draft), metadata=header)
    draft.replace(path)
    return path


def read_stored(path: str | Path, refusal: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_stored` wrote: the plain data and the tensors.

    Raises:
        LoadError: no such file, damaged, or not written so: "{path} {refusal} that sparring saved".
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as stored:
            told = json.loads((stored.metadata() or {})["sparring"])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as cause:
        raise LoadError(f"{path} {refusal} that sparring saved: {cause}") from cause
    return told, tensors
