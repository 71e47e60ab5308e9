"""The embedded victim: a small convolutional network for 8 x 8 digits, with its weights in the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from torch import Tensor, nn

from sparring.core.errors import LoadError

WEIGHTS = "weights/digits.safetensors"
LABELS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
MEAN, STD = 0.305, 0.376  # grey of the 1,797 pictures, in [0, 1]
_LARGEST_FILE = 500_000


class DigitsNet(nn.Module):
    """Two convolutions and two linear layers; pixels in [0, 1] of shape (n, 1, 8, 8) to ten logits (n, 10).

    The normalisation (x - .305) / .376 is the first step of the forward pass, so eps is in pixels for every caller.
    """

    def __init__(self) -> None:
        super().__init__()
        # A fresh nn.Conv2d draws from the global generator; building a network must leave that generator alone.
        self.conv1 = nn.utils.skip_init(nn.Conv2d, 1, 16, kernel_size=3, padding=1)
        self.conv2 = nn.utils.skip_init(nn.Conv2d, 16, 32, kernel_size=3, stride=2, padding=1)
        self.linear1 = nn.utils.skip_init(nn.Linear, 32 * 4 * 4, 64)
        self.linear2 = nn.utils.skip_init(nn.Linear, 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - MEAN) / STD
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        x = torch.relu(self.linear1(x.flatten(1)))
        logits: Tensor = self.linear2(x)
        return logits


def build(seed: int = 0) -> nn.Module:
    """The untrained network, its weights drawn from a generator of its own.

    Weights are uniform in +-sqrt(6 / fan_in), biases zero (He et al. 2015, "Delving Deep into Rectifiers").

    Args:
        seed: of that generator; the global random state is neither read nor changed.

    Returns:
        A `DigitsNet` in train mode: pixels in [0, 1] of shape (n, 1, 8, 8) to logits (n, 10).
    """
    generator = torch.Generator().manual_seed(seed)
    net = DigitsNet()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                bound = (6 / parameter[0].numel()) ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.zero_()
    return net


def load(path: str | Path | None = None) -> nn.Module:
    """The trained network in eval mode.

    Args:
        path: a safetensors file written by `scripts/train_digits.py`; the weights in the package when left out.

    Returns:
        A `DigitsNet` in eval mode: pixels in [0, 1] of shape (n, 1, 8, 8) to logits (n, 10).

    Raises:
        LoadError: the file is missing, too large, damaged, or holds other tensors than this network has.
    """
    name = "the digits weights in the package" if path is None else f"the weights {str(path)!r}"
    remedy = (
        "Reinstall sparring." if path is None else "Make a new file with: python scripts/train_digits.py --out FILE"
    )
    try:
        data = (
            files("sparring.victims").joinpath(WEIGHTS).read_bytes() if path is None else _read(Path(path).expanduser())
        )
        tensors = read_safetensors(data)
    except OSError as error:
        raise LoadError(f"{name} cannot be read: {error}. {remedy}") from error
    except SafetensorError as error:
        raise LoadError(f"{name} are no intact safetensors file: {error}. {remedy}") from error
    net = DigitsNet()
    differences = _differences(tensors, net.state_dict())
    if differences:
        raise LoadError(f"{name} do not fit the digits network: {'; '.join(differences)}. {remedy}")
    net.load_state_dict(tensors)
    return net.eval()


def _read(path: Path) -> bytes:
    """The file's bytes, refused before reading when it is far larger than this network can be."""
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise LoadError(f"the weights {str(path)!r} take {size:,} bytes; the digits network needs fewer than 500,000.")
    return path.read_bytes()


def _differences(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """What keeps `found` from being the weights of this network, in words; empty when it fits."""
    words = [f"{name} is missing" for name in wanted if name not in found]
    words += [f"{name} is not one of its tensors" for name in found if name not in wanted]
    for name, tensor in found.items():
        if name not in wanted:
            continue
        if tensor.shape != wanted[name].shape:
            words.append(f"{name} has shape {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}")
        elif tensor.dtype != wanted[name].dtype:
            words.append(f"{name} is {tensor.dtype}, not {wanted[name].dtype}")
        elif not bool(torch.isfinite(tensor).all()):
            words.append(f"{name} holds NaN or infinity")
    return words
