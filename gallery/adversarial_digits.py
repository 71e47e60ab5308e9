"""Digits that look like a 6 and read as something else, on the smallest network that reads digits at all.

A 784-[20]-10 sigmoid network is trained on a tenth of MNIST by plain gradient descent on the quadratic cost. Then the
input is optimised instead of the weights: from noise, C = 1/2 |y_goal - f(x)|^2 gives static that reads as any digit;
with + lambda |x - x_look|^2, lambda = .05, it gives pictures that look like a 6 and read as the other nine.

Run: python gallery/adversarial_digits.py [--mnist FOLDER] [--out adversarial_digits.png]
FOLDER holds the four official idx files (gzipped or not); without it, the assets folder named by SPARRING_ASSETS.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import sparring as sp
from sparring.attacks import InputOptimisation
from sparring.data import assets_folder, load_mnist


def train(x: Tensor, y: Tensor, epochs: int = 3, seed: int = 0) -> nn.Module:
    """The network of the experiment, trained by stochastic gradient descent on 1/2 |one_hot(y) - f(x)|^2."""
    source = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.Sigmoid(), nn.Linear(20, 10), nn.Sigmoid())
    for layer in (net[1], net[3]):
        layer.weight.data = torch.randn(layer.weight.shape, generator=source) / layer.in_features**0.5
        layer.bias.data.zero_()
    optimiser = torch.optim.SGD(net.parameters(), lr=3.0)
    goal = nn.functional.one_hot(y, 10).float()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=source).split(10):
            cost = 0.5 * (goal[batch] - net(x[batch])).square().sum(1).mean()
            optimiser.zero_grad()
            cost.backward()
            optimiser.step()
    return net.eval()


def draw(rows: list[tuple[str, sp.AttackResult]], look: Tensor, path: Path) -> None:
    """One row of ten pictures for each experiment, each titled with what the network reads."""
    figure = Figure(figsize=(13, 1.55 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 11, squeeze=False)
    for line, (title, result) in zip(axes, rows, strict=True):
        line[0].imshow(look[0], cmap="gray_r", vmin=0, vmax=1)
        line[0].set_title(title, fontsize=9)
        confidence = result.final.scores
        for goal, axis in enumerate(line[1:]):
            if goal == 6:
                continue
            axis.imshow(result.adversarial[goal, 0], cmap="gray_r", vmin=0, vmax=1)
            read = int(result.final.labels[goal])
            axis.set_title(f"reads {read} ({float(confidence[goal, read]):.2f})", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, attack, tell, draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--mnist", type=Path, default=None, help="a folder with MNIST's idx files")
    options.add_argument("--out", type=Path, default=Path("adversarial_digits.png"))
    given = options.parse_args()
    folder = given.mnist or assets_folder()
    if folder is None:
        raise SystemExit("Say where MNIST is: --mnist FOLDER with the idx files, or SPARRING_ASSETS=FOLDER.")
    x, y = load_mnist(folder, "train")
    x_test, y_test = load_mnist(folder, "test")
    net = train(x[: len(x) // 10], y[: len(x) // 10])
    victim = sp.Victim(net, labels=[str(d) for d in range(10)], name="784-[20]-10")
    right = victim.query(x_test).labels == y_test
    print(f"trained on {len(x) // 10} digits; {float(right.float().mean()):.1%} of {len(x_test)} test digits are right")

    six = x_test[right & (y_test == 6)][0]
    looks = six.expand(10, -1, -1, -1).contiguous()
    goals = torch.arange(10)
    rows = []
    for title, weight, rate in (("from noise", 0.0, 10.0), ("looks like this", 0.05, 3.0)):
        # the sigmoid is flat where a goal is far: many short starts reach more than one long one
        attack = InputOptimisation(steps=300, step_size=rate, weight=weight, restarts=40, outputs="scores")
        ids = torch.arange(10)  # ten goals for one picture: ten samples, each with noise of its own
        result = attack(victim, looks, torch.full((10,), 6), sp.L2(), goal=sp.Targeted(goals), ids=ids)
        rows.append((title, result))
        tried = goals != 6
        hits = int(result.succeeded[tried].sum())
        print(f"{title}: {hits} of 9 goals reached, median distance to the 6: {result.median_distance:.2f}")
    draw(rows, six, given.out)
    print(f"picture: {given.out}")


if __name__ == "__main__":
    main()
