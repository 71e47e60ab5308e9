"""The real networks and data that the benchmarks run on: the assets folder's, through SPARRING_ASSETS."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import torch
from torch import Tensor, nn

from sparring.data import assets_folder


def load_zoo() -> ModuleType:
    """The module `zoo.py` of the assets folder.

    Raises:
        SystemExit: no assets folder.
    """
    folder = assets_folder()
    if folder is None or not (folder / "zoo.py").is_file():
        raise SystemExit("The benchmarks run on public networks: set SPARRING_ASSETS to the assets folder.")
    spec = importlib.util.spec_from_file_location("zoo", folder / "zoo.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder / 'zoo.py'} cannot be read.")
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)
    return module


def network_and_data(name: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of the zoo and the first n samples of the data it was trained for."""
    zoo = load_zoo()
    return (zoo.load(name), *zoo.data(name.split("_")[0], n))


def read_right(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The samples that a network reads right."""
    with torch.no_grad():
        right = net(x).argmax(1) == y
    return x[right], y[right]
