"""AdvGAN: a generator that is trained once in grey box and then attacks any picture with one forward of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring.attacks.transfer.networks import Centred, seeded
from sparring.attacks.universal.artifact import Artifact, Record
from sparring.attacks.universal.fitted import Fitted, Lesson
from sparring.core.errors import InputError
from sparring.core.losses import LOSSES
from sparring.core.registry import Card, attack
from sparring.core.space import Bounds
from sparring.core.threat import Access

# From which share of the longest change in the ball, eps * sqrt(d), the hinge loss begins.
HINGE_FROM = 0.5


class Residual(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.body(x)
        return x


class Generator(nn.Module):
    """Pictures (n, c, h, w) to changes within eps: half the size and back, beside a path at full size.

    Args:
        channels: c.
        width: feature maps at full size; twice as many at half the size.
        eps: the largest change of an element.
        bounds: of the pictures.
    """

    def __init__(self, channels: int, width: int, eps: float, bounds: Bounds) -> None:
        super().__init__()
        self.eps = eps
        self.centred = Centred(bounds)
        self.first = nn.Conv2d(channels, width, 3, 1, 1)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.middle = nn.Sequential(Residual(2 * width), Residual(2 * width))
        self.up = nn.Conv2d(2 * width, width, 3, 1, 1)
        self.last = nn.Conv2d(2 * width, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.first(self.centred(x)))
        coarse = self.middle(torch.relu(self.down(fine)))
        back = torch.relu(self.up(F.interpolate(coarse, size=fine.shape[-2:])))
        change: Tensor = self.eps * torch.tanh(self.last(torch.cat([fine, back], dim=1)))
        return change


class Discriminator(nn.Sequential):
    """Pictures (n, c, h, w) to one logit each (n,): is this an unchanged picture?"""

    def __init__(self, channels: int, width: int, bounds: Bounds) -> None:
        super().__init__(
            Centred(bounds),
            nn.Conv2d(channels, width, 3, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(2 * width, 1, 1),
            nn.Flatten(0),
        )


class TrainedGenerator(Artifact):
    """A generator's weights, by the names of `Generator`'s parameters."""

    @cached_property
    def generator(self) -> Generator:
        """The network, in eval mode on the CPU."""
        net = _generator(self.record, self.bounds)
        net.load_state_dict(self.tensors)
        return net.eval()

    def change(self, x: Tensor) -> Tensor:
        """What the generator makes of each picture, (n, c, h, w)."""
        net = self.generator.to(x.device)
        return torch.cat([net(part.float()) for part in x.split(256)]).to(x.dtype) if len(x) else x


@attack(
    Card(
        name="advgan",
        title="AdvGAN: a generator trained once attacks without the victim",
        paper="Xiao et al. 2018, Generating Adversarial Examples with Adversarial Networks, arXiv:1801.02610",
        access=Access.NOTHING,
        spaces=("linf",),
        cost="trained once: 2 x epochs x samples x (forward + backward); one forward of the generator per input after",
        domains=("image",),
        caveats="Trained on data and with gradients of its own (knowledge.data, and knowledge.surrogates or access="
        "'gradients'), or read from a file. One generator for one radius and goal. Robust victims lose far less to it "
        "than to PGD. Measure it on inputs that it was not trained on.",
        floor={"linf": 0.5},
    )
)
@dataclass(frozen=True, kw_only=True)
class AdvGAN(Fitted):
    """AdvGAN: x + G(x) fools the victim, and a discriminator D is to take it for an unchanged picture.

    G = eps * tanh(...) keeps the ball. With the margin m (the best other class above y, or the target above the best
    other), G minimises

        -mean min(m(x + G(x)), confidence) - gan * mean log D(x + G(x)) + hinge * mean max(0, ||G(x)||_2 / (eps sqrt(d)) - 1/2)

    and D the usual cross-entropy between x and x + G(x), a step of Adam each in turn.

    Args:
        epochs: passes over the data.
        batch_size: pictures of a step.
        lr: Adam's learning rate, of both networks; it falls to zero along a cosine.
        width: feature maps of both networks.
        gan: weight of the discriminator's answer.
        hinge: weight of the length of the change.
        confidence: the margin, in the victim's logits, with which a picture is fooled well enough.
        file: a saved artifact to apply; nothing is fitted then.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 2e-3
    width: int = 16
    gan: float = 0.1
    hinge: float = 0.1
    confidence: float = 5.0
    file: str | None = None

    artifact = TrainedGenerator

    def learn(self, lesson: Lesson) -> dict[str, Tensor]:
        """The generator's weights."""
        if lesson.x.ndim != 4:
            raise InputError(f"advgan works on pictures (n, c, h, w); inputs of shape {tuple(lesson.x.shape)} came")
        if min(self.epochs, self.batch_size, self.width) < 1:
            raise InputError(
                f"epochs is {self.epochs}, batch_size {self.batch_size} and width {self.width}; numbers >= 1 are needed"
            )
        channels, bounds, seed = lesson.x.shape[1], lesson.victim.bounds, lesson.rng.seed
        G = seeded(lambda: Generator(channels, self.width, lesson.eps, bounds), seed).to(lesson.x.device)
        D = seeded(lambda: Discriminator(channels, self.width, bounds), seed + 1).to(lesson.x.device)
        optimisers = [torch.optim.Adam(net.parameters(), lr=self.lr, betas=(0.5, 0.999)) for net in (G, D)]
        steps = self.epochs * -(-len(lesson.x) // self.batch_size)
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in optimisers]
        for epoch, rows in self._steps(lesson):
            with torch.enable_grad():
                change = G(lesson.x[rows])
                changed = lesson.point(rows, change)
                self._step(optimisers[1], _cross_entropy(D(lesson.x[rows]), D(changed.detach())))
                self._step(optimisers[0], self._loss(lesson, rows, change, changed, D(changed), epoch))
            for schedule in schedules:
                schedule.step()
        return dict(G.state_dict())

    def _steps(self, lesson: Lesson) -> Iterator[tuple[int, Tensor]]:
        for epoch in range(self.epochs):
            for rows in lesson.batches(epoch, self.batch_size):
                yield epoch, rows

    def _loss(
        self, lesson: Lesson, rows: Tensor, change: Tensor, changed: Tensor, believed: Tensor, epoch: int
    ) -> Tensor:
        """What the generator minimises on one batch."""
        y = lesson.y[rows]
        margins, _ = lesson.victim.objective(
            changed,
            lambda s: LOSSES["margin"](s, y, lesson.goal).clamp(max=self.confidence),
            lesson.noise(rows, ("fit", epoch)),
        )
        lesson.forwards += len(rows)
        lesson.backwards += len(rows)
        length = change.flatten(1).square().mean(1).clamp(min=1e-12).sqrt() / lesson.eps
        wide = (length - HINGE_FROM).clamp(min=0).mean()
        return -margins.mean() + self.gan * F.softplus(-believed).mean() + self.hinge * wide

    @staticmethod
    def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        """One step on the optimiser's own parameters; no others get a gradient."""
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = grad
        optimiser.step()


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, from its logits for unchanged and changed pictures."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _generator(record: Record, bounds: Bounds) -> Generator:
    """The untrained network that a record describes."""
    net = seeded(lambda: Generator(record.shape[0], int(record.params["width"]), record.eps, bounds), record.seed)
    if not isinstance(net, Generator):
        raise InputError("the record describes no generator")
    return net
