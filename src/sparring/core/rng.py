"""Keyed randomness: a draw depends on (seed, sample id, stream) and on nothing else.

Global and per-call generators give a sample different noise when the batch is split, shuffled or resumed. Here each
row of a draw comes from its own key, by a counter-based integer hash, so that outcomes are equal for every batch
size, order and device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparring.core.batch import Batch

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed word: the increment of splitmix64
_M1, _M2 = -4658895280553007687, -7723592293110705685  # the two multipliers of splitmix64's finaliser


def _mix64(z: Tensor) -> Tensor:
    """Splitmix64's finaliser on int64 words (Steele, Lea and Flood 2014)."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _M1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _M2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def _mix32_(z: Tensor) -> Tensor:
    """A 32-bit finaliser in place on int32 words: two xor-shift-multiply rounds with full avalanche."""
    z ^= (z >> 16) & 0xFFFF
    z *= 0x21F0AAAD
    z ^= (z >> 15) & 0x1FFFF
    z *= 0x735A2D97
    z ^= (z >> 15) & 0x1FFFF
    return z


def stream_key(stream: str | int) -> int:
    """A stream's number: FNV-1a of its name, so that streams can be named in words."""
    if isinstance(stream, int):
        return stream
    value = 0xCBF29CE484222325
    for byte in stream.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def content_ids(x: Batch) -> Tensor:
    """One id per sample from its content alone: int64 (n,), the same in every batch and on every device.

    Tensors hash the bits of their elements with position-dependent odd weights (integer sums, so exact in any order);
    other batches hash the bytes of each item.
    """
    if not isinstance(x, Tensor):
        import hashlib

        digests = [hashlib.blake2b(_item_bytes(item), digest_size=8).digest() for item in x]
        return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)
    if x.shape[0] == 0:
        return torch.zeros(0, dtype=torch.int64, device=x.device)
    flat = x.detach().flatten(1)
    if flat.dtype == torch.float32:
        bits = (flat + 0.0).contiguous().view(torch.int32)  # + 0.0 makes -0.0 and 0.0 one content
    elif flat.is_floating_point():
        bits = (flat.double() + 0.0).contiguous().view(torch.int64)
    else:
        bits = flat.long()
    weights = _mix64(torch.arange(1, bits.shape[1] + 1, device=x.device) * _GOLDEN) | 1
    chunk = max(
        1, 2**22 // max(1, bits.shape[1])
    )  # the 64-bit products of a large batch of photos would not fit beside it
    sums = [(part.long() * weights).sum(1) for part in bits.split(chunk)]
    return _mix64(torch.cat(sums) + bits.shape[1])


def _item_bytes(item: object) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes):
        return item
    if hasattr(item, "tobytes"):
        return bytes(item.tobytes())
    return repr(item).encode()


class KeyedRandom:
    """Draws with one row per sample; row i depends on (seed, ids[i], stream) alone.

    Args:
        seed: the run's seed.
        ids: int64 (n,), one id per sample (see `content_ids`).

    Every method takes the shape of one row and a stream (a name, a number, or a tuple of them). Equal arguments give
    equal
    draws: advance by naming another stream, for example ``("start", restart)`` or ``("direction", step)``.
    """

    def __init__(self, seed: int, ids: Tensor) -> None:
        self.seed = seed
        self.ids = ids

    def take(self, index: Tensor) -> KeyedRandom:
        """The same source for the samples at `index`."""
        return KeyedRandom(self.seed, self.ids[index])

    def number(self, stream: tuple[str | int, ...] | str | int) -> int:
        """One number for all the samples together, for sources that take a single seed; it changes with the batch."""
        return int(self._keys(stream).sum()) & 0x7FFFFFFFFFFFFFFF

    def fork(self, stream: tuple[str | int, ...] | str | int) -> KeyedRandom:
        """An independent source per stream, for code that names streams of its own."""
        return KeyedRandom(self.seed, self._keys(stream))

    def _keys(self, stream: tuple[str | int, ...] | str | int) -> Tensor:
        parts = stream if isinstance(stream, tuple) else (stream,)
        key = torch.full_like(self.ids, (self.seed * 2 + 1) & 0x7FFFFFFFFFFFFFFF)
        key = _mix64(_mix64(key) ^ self.ids)
        for part in parts:
            key = _mix64(key + _GOLDEN + stream_key(part))
        return key

    def words(self, count: int, stream: tuple[str | int, ...] | str | int) -> Tensor:
        """Random 32-bit words: int32 (n, count), every value equally likely."""
        keys = self._keys(stream)
        first = (keys & 0x7FFFFFFF).to(torch.int32)[:, None]
        second = ((keys >> 31) & 0x7FFFFFFF).to(torch.int32)[:, None]
        counter = torch.arange(count, dtype=torch.int32, device=self.ids.device) * -1640531535
        z = counter ^ first
        z ^= (z >> 15) & 0x1FFFF
        z *= 0x2C1B3C6D
        z += second
        return _mix32_(z)

    def uniform(
        self, shape: tuple[int, ...], stream: tuple[str | int, ...] | str | int, lo: float = 0.0, hi: float = 1.0
    ) -> Tensor:
        """Uniform on [lo, hi): float32 (n, ...)."""
        words = self.words(math.prod(shape), stream)
        out = words.to(torch.float32)  # on [-2^31, 2^31]; rounding can reach the upper end, hence the clamp below it
        scale = (hi - lo) * 2.0**-32
        out = out.mul_(scale).add_((hi + lo) / 2).clamp_(lo, _below(hi))
        return out.reshape(len(self.ids), *shape)

    def normal(self, shape: tuple[int, ...], stream: tuple[str | int, ...] | str | int) -> Tensor:
        """Standard normal by Box and Muller's transform: float32 (n, ...)."""
        count = math.prod(shape)
        half = (count + 1) // 2
        words = self.words(2 * half, stream)
        radius = words[:, :half].to(torch.float32).mul_(2.0**-32).add_(0.5).clamp_(2.0**-33, 1.0)
        radius = radius.log_().mul_(-2.0).sqrt_()
        angle = words[:, half:].to(torch.float32).mul_(math.pi * 2.0**-31)
        out = torch.cat([radius * angle.cos(), angle.sin_().mul_(radius)], dim=1)
        return out[:, :count].reshape(len(self.ids), *shape)

    def signs(self, shape: tuple[int, ...], stream: tuple[str | int, ...] | str | int) -> Tensor:
        """Rademacher draws, -1 or 1 with equal chances: float32 (n, ...). Thirty-two come from each word."""
        count = math.prod(shape)
        words = self.words((count + 31) // 32, stream)
        shifts = torch.arange(32, dtype=torch.int32, device=words.device)
        bits = (words[:, :, None] >> shifts) & 1
        return bits.flatten(1)[:, :count].to(torch.float32).mul_(2).sub_(1).reshape(len(self.ids), *shape)

    def integers(self, shape: tuple[int, ...], stream: tuple[str | int, ...] | str | int, high: int | Tensor) -> Tensor:
        """Whole numbers on [0, high): int64 (n, ...); `high` is a number or one per sample (n,), below 2^31."""
        words = self.words(math.prod(shape), stream).long() & 0xFFFFFFFF
        bound = high[:, None] if isinstance(high, Tensor) else high
        return ((words * bound) >> 32).reshape(len(self.ids), *shape)

    def permutation(self, count: int, stream: tuple[str | int, ...] | str | int) -> Tensor:
        """A random order of 0..count-1 for each sample: int64 (n, count)."""
        return self.words(count, stream).argsort(dim=1, stable=True)


def _below(value: float) -> float:
    """The largest float32 below `value`."""
    return float(torch.nextafter(torch.tensor(value, dtype=torch.float32), torch.tensor(-math.inf)))
