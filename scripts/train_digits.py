"""Makes the weights of the embedded digits network: plain training on the CPU, the same every time."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sparring.data.digits import load_digits
from sparring.victims.digits import build

SHIPPED = Path(__file__).resolve().parents[1] / "src/sparring/victims/weights/digits.safetensors"


def train(seed: int, epochs: int, batch: int = 64, rate: float = 2e-3) -> nn.Module:
    """Adam on the cross-entropy with a rate that falls to zero along a cosine; every draw is from `seed`.

    The pixels are rounded to the 8-bit grid, because saved pictures are what the network will meet. No augmentation
    and no adversarial examples: this victim is here to be fooled.
    """
    x, y = load_digits("train", eight_bit=True)
    net = build(seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of `x` that `net` labels as `y`."""
    return float((net(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train, print the accuracies, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()

    torch.set_num_threads(1)  # the order of additions, and with it the last bits, depends on the thread count
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    net = train(options.seed, options.epochs)
    seconds = time.perf_counter() - start
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, options.out)
    print(f"train accuracy  {accuracy(net, *load_digits('train', eight_bit=True)):.4f} (8-bit pixels)")
    print(f"test accuracy   {accuracy(net, *load_digits('test', eight_bit=True)):.4f} (8-bit pixels)")
    print(f"test accuracy   {accuracy(net, *load_digits('test')):.4f} (pixels k/16)")
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, {seconds:.1f} s of training")


if __name__ == "__main__":
    main()
