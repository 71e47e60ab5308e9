"""What tells one network from another: its structure, its weights, and the operations of a scripted one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def identity(module: nn.Module) -> Iterator[bytes]:
    """All that a fingerprint of a network is made of."""
    yield repr(module).encode()
    for key, tensor in sorted(module.state_dict().items()):
        yield f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode()
        yield _bytes(tensor)
    if isinstance(module, torch.jit.ScriptModule):
        for part in operations(module):
            yield part.encode() if isinstance(part, str) else _bytes(part)


def operations(module: torch.jit.ScriptModule) -> Iterator[str | Tensor]:
    """The operations of a scripted network in their order, and their constants.

    A frozen network (`torch.jit.freeze`, `torch.jit.optimize_for_inference`) has no parameters: its weights are among these.
    """
    return _of(module.inlined_graph)


def _of(graph: Any) -> Iterator[str | Tensor]:
    for node in graph.nodes():
        yield node.kind()
        for name in node.attributeNames():
            kind = node.kindOf(name)
            value = getattr(node, kind)(name)
            if kind == "g":
                yield from _of(value)
            elif kind == "gs":
                for part in value:
                    yield from _of(part)
            elif isinstance(value, Tensor):
                yield value.to_dense() if value.is_mkldnn else value
            else:
                yield f"{name}={value}"
        for block in node.blocks():
            yield from _of(block)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
