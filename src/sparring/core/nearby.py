"""Answers about points that differ from known ones in one window: only what the window reaches is computed anew.

A window of a picture reaches a window of each convolution's output, not much larger. A network of layers one after another
keeps what its convolutions and poolings were given; a question about a changed window repaints the part of it that the change
reaches, and only the layers behind the last of them run as a whole. The answers are those of the whole network up to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparring.core.straight import flattens, weight_for_last

if TYPE_CHECKING:
    from sparring.core.victim import BaseVictim

# Multiplications that a question must save before Python's own time for it is won back.
WORTH_IT = 20_000_000
# The share of all multiplications in convolutions above which a window is no small one.
SMALL = 0.4
# Numbers that may be kept between two questions: a quarter of a gigabyte in float32.
ROOM = 2**26

# Layers that treat every position alike; those of an attack's victim are in eval mode.
POINTWISE = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU),
    nn.CELU,
    *(nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus),
)


class Window(NamedTuple):
    """One window in each of m pictures, in all channels: its first position in a flattened channel, int64 (m,), and its sides."""

    first: Tensor
    sides: tuple[int, int]


@dataclass(frozen=True)
class _Stage:
    """A convolution or a pooling, with the pointwise layers before it; the last stage has none.

    Attributes:
        before: the pointwise layers.
        layer: the convolution or pooling, or None.
        kernel, stride, padding: its geometry, height and width; a kernel's reach where it is dilated.
        channels, sides: of what it is given.
        out: height and width of what it gives.
        work: multiplications for one position of what it gives.
    """

    before: tuple[nn.Module, ...]
    layer: Any
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    channels: int
    sides: tuple[int, int]
    out: tuple[int, int]
    work: int

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of what is kept: what it is given, with its padding around it."""
        return self.sides[0] + 2 * self.padding[0], self.sides[1] + 2 * self.padding[1]

    @property
    def gathers(self) -> bool:
        """Whether it is a product of gathered patches with a matrix: faster than a convolution of many small pictures."""
        return isinstance(self.layer, nn.Conv2d) and self.layer.groups == 1

    @property
    def run(self) -> int:
        """How many positions of a row one output of a gathering convolution reads in one go."""
        c: nn.Conv2d = self.layer
        return c.kernel_size[1] if c.dilation[1] == 1 else 1

    def taps(self) -> Tensor:
        """Where one output of a convolution begins to read in goes of `run`, from the first position, int64 (goes,)."""
        c: nn.Conv2d = self.layer
        down = torch.arange(c.kernel_size[0])[:, None] * (c.dilation[0] * self.padded[1])
        return (down + torch.arange(0, c.kernel_size[1], self.run) * c.dilation[1]).flatten()

    def apply(self, x: Tensor) -> Tensor:
        """The layer on inputs that bring their padding with them."""
        if isinstance(self.layer, nn.Conv2d):
            c = self.layer
            return functional.conv2d(x, c.weight, c.bias, c.stride, 0, c.dilation, c.groups)
        if isinstance(self.layer, nn.MaxPool2d):
            pooled: Tensor = functional.max_pool2d(x, self.layer.kernel_size, self.stride, 0, self.layer.dilation)
            return pooled
        how = {"divisor_override": self.layer.divisor_override}
        mean: Tensor = functional.avg_pool2d(x, self.layer.kernel_size, self.stride, **how)
        return mean


@dataclass(frozen=True)
class _Reach:
    """Where a window lies in what one stage keeps, and what the stage must read there.

    Attributes:
        write, read: by the window's first position in the picture, the first position to write and to read, int64 (h * w,).
        wrote, reads: the positions to write and to read from there, int64 (positions,); to read, patch by patch where the
            stage gathers.
        size: height and width of what is read, or of what comes of it where the stage gathers.
    """

    write: Tensor
    wrote: Tensor
    read: Tensor
    reads: Tensor
    size: tuple[int, int]


@dataclass
class _Painted:
    """What a question painted into one stage's memory: where, int64 (m, positions); over what, and what, (m, positions, c)."""

    rows: Tensor
    old: Tensor
    new: Tensor


class Nearby:
    """The layers of a network, and what m points of pictures leave between them.

    Args:
        layers: the modules from raw inputs to scores, one after another.
        pointwise: further kinds of layers that treat every position alike.
        shape: channels, height and width of an input.
    """

    def __init__(self, layers: Sequence[nn.Module], pointwise: tuple[type, ...], shape: tuple[int, int, int]) -> None:
        self.stages, self.tail = _read(layers, (*POINTWISE, *pointwise), shape)
        self._reach: dict[tuple[int, int], list[_Reach]] = {}
        self._memory: list[Tensor] = []
        self._matrices: list[Tensor | None] = []
        self._first: tuple[Tensor, Tensor | None] | None = None
        self._painted: list[_Painted] = []
        self._m = 0

    def worth(self, sides: tuple[int, int], m: int) -> bool:
        """Whether questions about such windows of m pictures are answered faster so."""
        convolutions = self.stages[:-1]
        if not convolutions or m * sum(s.channels * s.padded[0] * s.padded[1] for s in self.stages) > ROOM:
            return False
        whole = sum(s.work * s.out[0] * s.out[1] for s in convolutions)
        part, size = 0, sides
        for s in convolutions:
            size = (_reached(size[0], s, 0), _reached(size[1], s, 1))
            part += s.work * size[0] * size[1]
        return part <= SMALL * whole and m * (whole - part) >= WORTH_IT

    def stand(self, x: Tensor) -> None:
        """Keep what the points x, (m, c, h, w), leave between the layers: windows are painted into these."""
        self._memory, self._painted, self._m = [], [], len(x)
        self._matrices = [
            s.layer.weight.detach().permute(2, 3, 1, 0).flatten(0, 2) if s.gathers else None for s in self.stages
        ]
        self._first = self._first_linear()
        x = x.clone()  # the first layer may work in place
        for s in self.stages:
            for layer in s.before:
                x = layer(x)
            fill = -torch.inf if isinstance(s.layer, nn.MaxPool2d) else 0.0
            x = functional.pad(x, (s.padding[1], s.padding[1], s.padding[0], s.padding[0]), value=fill)
            kept = x.permute(0, 2, 3, 1).reshape(-1, s.channels)  # of one picture a view, with that picture's strides
            self._memory.append(kept.clone(memory_format=torch.contiguous_format))
            if s.layer is not None:
                x = s.apply(x)

    def take(self, index: Tensor) -> None:
        """Go on with the points at `index`, int64."""
        self._memory = [kept.view(self._m, -1, kept.shape[1])[index].flatten(0, 1) for kept in self._memory]
        self._painted, self._m = [], len(index)

    def scores(self, x: Tensor, window: Window) -> Tensor:
        """The network's scores at x, (m, c, h, w), which differ from the points kept in the window alone."""
        self._painted = []
        m, c, sides = self._m, x.shape[1], window.sides
        if sides not in self._reach:
            self._reach[sides] = self._reaches(sides, x.device)
        inside = offsets(sides, x.shape[3], x.device)
        value = (
            x.flatten(2).gather(2, (window.first[:, None] + inside)[:, None].expand(-1, c, -1)).reshape(m, c, *sides)
        )
        each = torch.arange(m, device=x.device)
        for s, kept, reach, matrix in zip(self.stages, self._memory, self._reach[sides], self._matrices, strict=True):
            for layer in s.before:
                value = layer(value)
            base = each * (s.padded[0] * s.padded[1])
            rows = (base + reach.write[window.first])[:, None] + reach.wrote
            new = value.permute(0, 2, 3, 1).reshape(-1, s.channels)
            flat = rows.flatten()
            self._painted.append(
                _Painted(rows, kept.index_select(0, flat).view(*rows.shape, -1), new.view(*rows.shape, -1))
            )
            kept.index_copy_(0, flat, new)
            if s.layer is None:
                break
            if matrix is not None:  # a line of a patch lies in one piece
                kept = kept.as_strided((len(kept) - s.run + 1, s.run * s.channels), (s.channels, 1))
            found = kept.index_select(0, ((base + reach.read[window.first])[:, None] + reach.reads).flatten())
            if matrix is None:
                value = s.apply(found.view(m, *reach.size, s.channels).permute(0, 3, 1, 2))
            else:
                patches = found.view(-1, len(matrix))
                value = patches @ matrix if s.layer.bias is None else torch.addmm(s.layer.bias, patches, matrix)
                value = value.view(m, *reach.size, -1).permute(0, 3, 1, 2)
        return self._rest()

    def _first_linear(self) -> tuple[Tensor, Tensor | None] | None:
        """Weights and bias of a linear layer right behind a flattening, for inputs whose channels come last; else None."""
        if len(self.tail) < 2 or not flattens(self.tail[0]) or type(self.tail[1]) is not nn.Linear:
            return None
        return weight_for_last(self.tail[1], self.stages[-1].channels), self.tail[1].bias

    def _rest(self) -> Tensor:
        """The scores from what the last stage keeps: all that lies behind it is computed as a whole."""
        last, kept, behind = self.stages[-1], self._memory[-1], self.tail
        if self._first is not None:
            out, behind = functional.linear(kept.view(self._m, -1), *self._first), behind[2:]
        else:
            out = kept.view(self._m, *last.sides, last.channels).permute(0, 3, 1, 2)
            out = out.clone(memory_format=torch.contiguous_format)  # a layer behind may work in place
        for layer in behind:
            out = layer(out)
        return out

    def settle(self, better: Tensor) -> None:
        """Keep the points of the last question where `better`, bool (m,), and the former ones elsewhere."""
        rows = better.nonzero().squeeze(1)
        for kept, p in zip(self._memory, self._painted, strict=False):  # nothing is painted where nothing was asked so
            if len(rows):
                p.old.index_copy_(0, rows, p.new.index_select(0, rows))
            kept.index_copy_(0, p.rows.flatten(), p.old.flatten(0, 1))
        self._painted = []

    def _reaches(self, sides: tuple[int, int], device: torch.device) -> list[_Reach]:
        """Where a window of these sides goes, stage by stage."""
        height, width = self.stages[0].sides
        at = [torch.arange(n - side + 1, device=device) for n, side in zip((height, width), sides, strict=True)]
        size, found = sides, []
        for s in self.stages:
            line = s.padded[1]
            begin = [first + p for first, p in zip(at, s.padding, strict=True)]
            write, wrote = _flat(begin, line, (height, width)), offsets(size, line, device)
            if s.layer is None:
                found.append(_Reach(write, wrote, write, wrote, size))
                break
            out = (_reached(size[0], s, 0), _reached(size[1], s, 1))
            first = [
                (torch.div(b - k, step, rounding_mode="floor") + 1).clamp(min=0, max=whole - part)
                for b, k, step, whole, part in zip(begin, s.kernel, s.stride, s.out, out, strict=True)
            ]
            read = [o * step for o, step in zip(first, s.stride, strict=True)]
            begin_read = _flat(read, line, (height, width))
            if s.gathers:
                outputs = offsets((out[0], out[1]), line * s.stride[0], device, s.stride[1])
                reads = (outputs[:, None] + s.taps().to(device)).flatten()
                found.append(_Reach(write, wrote, begin_read, reads, out))
            else:
                need = ((out[0] - 1) * s.stride[0] + s.kernel[0], (out[1] - 1) * s.stride[1] + s.kernel[1])
                found.append(_Reach(write, wrote, begin_read, offsets(need, line, device), need))
            at, size = first, out
        return found


class Standing:
    """Where the samples of a search stand, for questions about windows of their points: a memory, and whose it is."""

    def __init__(self) -> None:
        self._memory: Nearby | None = None
        self._rows = torch.zeros(0, dtype=torch.int64)

    def stand(self, victim: BaseVictim, x: Tensor, rows: Tensor, sides: tuple[int, int]) -> None:
        """Remember what the victim's layers make of x, the points of the samples `rows`, where windows of these sides pay.

        Where `settle` has kept a memory at those points, it goes on.
        """
        known = self.at(rows)
        memory = victim.nearby(x) if known is None else known
        self._memory = memory if memory is not None and memory.worth(sides, len(rows)) else None
        if self._memory is not None and known is None:
            with torch.no_grad():
                self._memory.stand(x)
            self._rows = rows

    def at(self, rows: Tensor) -> Nearby | None:
        """The memory, where there is one, of the samples `rows`: samples only ever leave, and their order stays."""
        if self._memory is not None and len(rows) != len(self._rows):
            self._memory.take(torch.searchsorted(self._rows, rows))
            self._rows = rows
        return self._memory

    def settle(self, better: Tensor) -> None:
        """Say which points of the last question, bool (m,), the samples now stand at; the others stay where they stood."""
        if self._memory is not None:
            self._memory.settle(better)

    def forget(self) -> None:
        """Nobody stands anywhere."""
        self._memory = None


def _read(
    layers: Sequence[nn.Module], pointwise: tuple[type, ...], shape: tuple[int, int, int]
) -> tuple[list[_Stage], list[nn.Module]]:
    """The stages, as far as they go, and the layers behind them."""
    channels, *rest = shape
    sides, before, stages = (rest[0], rest[1]), [], []
    left = list(layers)
    while left:
        layer = left[0]
        if type(layer) in pointwise and not (type(layer) is nn.BatchNorm2d and layer.running_mean is None):
            before.append(left.pop(0))
        elif (geometry := _geometry(layer)) is not None:
            kernel, stride, padding, work = geometry
            out = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(sides, padding, kernel, stride, strict=True))
            if min(out) < 1:
                break
            stages.append(
                _Stage(tuple(before), layer, kernel, stride, padding, channels, sides, (out[0], out[1]), work)
            )
            channels = layer.out_channels if isinstance(layer, nn.Conv2d) else channels
            sides, before = (out[0], out[1]), []
            left.pop(0)
        else:
            break
    stages.append(_Stage(tuple(before), None, (1, 1), (1, 1), (0, 0), channels, sides, sides, 0))
    return stages, left


def _geometry(layer: nn.Module) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int] | None:
    """Kernel, stride and padding of a convolution or pooling, and the work of one position; None for what is not served."""
    if type(layer) is nn.Conv2d:
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return None
        reach = tuple(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return (reach[0], reach[1]), _pair(layer.stride), _pair(layer.padding), layer.weight.numel()
    if type(layer) is nn.MaxPool2d and not layer.ceil_mode and not layer.return_indices:
        k, d = _pair(layer.kernel_size), _pair(layer.dilation)
        return (d[0] * (k[0] - 1) + 1, d[1] * (k[1] - 1) + 1), _pair(layer.stride), _pair(layer.padding), 0
    if type(layer) is nn.AvgPool2d and not layer.ceil_mode:
        padding = _pair(layer.padding)
        if layer.count_include_pad or padding == (0, 0):
            return _pair(layer.kernel_size), _pair(layer.stride), padding, 0
    return None


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _reached(size: int, s: _Stage, axis: int) -> int:
    """How many outputs of a stage a run of `size` inputs reaches at most along an axis."""
    return min(s.out[axis], (size + s.kernel[axis] - 2) // s.stride[axis] + 1)


@functools.lru_cache(maxsize=128)
def offsets(sides: tuple[int, int], line: int, device: torch.device, step: int = 1) -> Tensor:
    """Positions of a window's elements from its first one, `line` from row to row and `step` along it, int64 (h * w,)."""
    down = torch.arange(sides[0], device=device)[:, None] * line
    return (down + torch.arange(sides[1], device=device) * step).flatten()


def _flat(at: Sequence[Tensor], line: int, picture: tuple[int, int]) -> Tensor:
    """The position at (rows[top], columns[left]) for every (top, left) of the picture; 0 where no window begins."""
    table = torch.zeros(picture, dtype=torch.int64, device=at[0].device)
    table[: len(at[0]), : len(at[1])] = at[0][:, None] * line + at[1]
    return table.flatten()
