"""Files of adversarial inputs: written whole, forced to the disk and renamed, so that a name means a finished file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.errors import InputError
from sparring.evaluation.errors import StoreError

PART = ".part"


def write_shard(path: Path, samples: Sequence[int], originals: Batch, adversarials: Batch) -> str:
    """Write one file and return the digest of its content (SHA-256).

    The file holds `sample`, int64 (m,), `original` and `adversarial`, (m, ...). Texts and other plain data stand in
    `original_json` and `adversarial_json`, as the bytes of a JSON list.

    Raises:
        InputError: inputs that are neither tensors nor plain data.
        OSError: the disk refused; nothing is left under the final name.
    """
    tensors = {"sample": torch.tensor(samples, dtype=torch.int64)}
    for name, batch in (("original", originals), ("adversarial", adversarials)):
        if isinstance(batch, Tensor):
            tensors[name] = batch.detach().cpu().contiguous()
        else:
            tensors[f"{name}_json"] = _as_json(batch)
    content = save(tensors)
    write_file(path, content)
    return hashlib.sha256(content).hexdigest()


def read_shard(path: Path, digest: str | None = None) -> dict[str, Any]:
    """`sample`, `original` and `adversarial` of one file; texts come back as lists.

    Raises:
        StoreError: the file is missing, damaged, or not the one whose digest was recorded.
    """
    try:
        content = path.read_bytes()
        if digest is not None and hashlib.sha256(content).hexdigest() != digest:
            raise StoreError(f"{str(path)!r} is not the file that this run wrote: its content has changed")
        tensors = load(content)
    except (OSError, SafetensorError) as cause:
        raise StoreError(f"the adversarial inputs in {str(path)!r} cannot be read: {cause}") from cause
    found: dict[str, Any] = {"sample": tensors["sample"]}
    for name in ("original", "adversarial"):
        packed = tensors.get(f"{name}_json")
        found[name] = tensors[name] if packed is None else json.loads(bytes(packed.tolist()))
    return found


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that its name appears only when its content is safe on the disk."""
    draft = path.with_name(path.name + PART)
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where the system has such a call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_json(batch: Batch) -> Tensor:
    try:
        text = json.dumps(list(batch), ensure_ascii=False)
    except TypeError as cause:
        raise InputError(
            f"inputs of this kind cannot be kept as evidence ({cause}); give tensors, texts or lists"
        ) from cause
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
