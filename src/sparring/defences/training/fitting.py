"""The one loop of all training defences: batches, steps, learning rates, probes, checkpoints; keyed by the step."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparring.core import events
from sparring.core.attack import Attack
from sparring.core.errors import InputError, ThreatError, VictimError
from sparring.core.network import Victim
from sparring.core.registry import build, defence_class
from sparring.core.rng import content_ids
from sparring.core.space import Space
from sparring.core.threat import ThreatModel
from sparring.defences.training.checkpoints import Checkpoint, optimiser_tensors, restore_optimiser
from sparring.defences.training.crafting import Crafter, Mixture
from sparring.defences.training.machines import Batch, Machine, machine
from sparring.defences.training.method import Method
from sparring.defences.training.overfitting import Probe, probe
from sparring.defences.training.schedules import rate
from sparring.defences.training.settings import Settings
from sparring.defences.training.telling import Epoch, EpochFinished, Training, TrainingProgress

# Between checkpoints inside an epoch, in seconds; the end of an epoch always writes one.
SAVE_EVERY = 60.0


class Network(nn.Module):
    """A victim's network as one module from raw inputs to class scores: stages and normalisation included."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        if not isinstance(victim.net, nn.Module):
            raise VictimError(f"{victim.name!r} is a {type(victim.net).__name__} and no module; nothing can be trained")
        self.net = victim.net
        self.stages = nn.ModuleList(victim.stages)
        self._victim = victim

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, k) of raw inputs (n, ...)."""
        return self._victim.scores(x)


class Loss(nn.Module):
    """A method's loss of one batch as one module, whose parameters are those of the network in training."""

    def __init__(self, method: Method, model: Network, crafter: Crafter) -> None:
        super().__init__()
        self.model = model
        self._method, self._crafter = method, crafter

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar."""
        return self._method(self.model, batch.x, batch.y, self._crafter)


def fit(
    victim: Victim,
    data: tuple[Tensor, Tensor],
    method: Method | str,
    threat: ThreatModel | Space | None = None,
    *,
    attack: Attack | str | Mixture | None = None,
    settings: Settings | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
) -> Training:
    """Train a copy of a victim's network with a training defence.

    Every random choice is keyed by (seed, step), so that a run that was killed and goes on from its checkpoint ends with
    the same weights as one that was not (on the CPU, at one number of threads). The probe after each epoch measures PGD
    accuracy on held-out samples; methods that craft keep its best epoch, the others the last.

    Another device, mixed precision or several processes, as the settings may ask, run on Lightning Fabric (the extra
    `train`). Several processes share each batch, and the result is that of one process up to rounding, batch normalisation
    and dropout apart.

    Args:
        victim: the network to begin with, and its input domain; it stays as it is.
        data: inputs in raw units (n, ...) and labels (n,); 8-bit pictures may stay uint8 and become k/255.
        method: a training defence or its name, such as "pgd-training".
        threat: what it shall withstand, for methods that craft; also what the probe measures.
        attack: what crafts, in place of the method's own; or a `Mixture`.
        settings: how to train.
        validation: held-out inputs and labels for the probe; None keeps `settings.held_out` samples back.
        folder: where checkpoints go and, at the end, the curves as `curves.png`; a checkpoint in it is gone on with.
        seed: of all randomness.

    Raises:
        InputError, ThreatError: data or a threat that do not fit the method; devices that are not there.
        MissingDependencyError: settings that need Lightning Fabric, without it.
        VictimError: a network that cannot be trained.
    """
    settings = settings or Settings()
    chosen = build(defence_class(method), {}) if isinstance(method, str) else method
    if not isinstance(chosen, Method):
        raise InputError(
            f"{method!r} is a {type(chosen).__name__} and trains nothing; `sparring defences` lists methods"
        )
    data, held = _split(data, validation, settings)
    threat = None if threat is None else ThreatModel.resolve(threat, None)
    mixture = _mixture(chosen, threat, attack)
    folder = None if folder is None else Path(folder)

    def train(what: Method, where: Path | None) -> Training:
        job = _Job(victim, data, held, what, threat, mixture, settings, where, seed)
        with machine(settings, victim.device, partial(_train, job)) as here:
            return _train(job, here)

    return train(chosen.prepared(lambda first: train(first, folder and folder / "first").victim), folder)


@dataclass(frozen=True)
class _Job:
    """A training as each of its processes gets it."""

    victim: Victim
    data: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    method: Method
    threat: ThreatModel | None
    mixture: Mixture | None
    settings: Settings
    folder: Path | None
    seed: int


def _train(job: _Job, machine: Machine) -> Training:
    return _Loop(job, machine).run()


class _Loop:
    """One training in progress, as one of its processes sees it."""

    def __init__(self, job: _Job, machine: Machine) -> None:
        victim, settings, method = job.victim, job.settings, job.method
        self.victim = copy.copy(victim)
        self.victim.net = copy.deepcopy(victim.net)
        self.model = Network(self.victim)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        self.x, self.y = method.data(*job.data, victim.bounds)
        self.held, self.method, self.threat = job.held, method, job.threat
        self.settings, self.seed, self.folder = settings, job.seed, job.folder
        self.crafter = Crafter(self.victim, job.mixture, job.seed)
        self.optimiser = _optimiser(self.model, settings)
        self.home, self.machine = victim.device, machine
        self.crafter.pooled = machine.mean
        machine.take(Loss(method, self.model, self.crafter), self.optimiser)
        batches = math.ceil(len(self.x) / settings.batch_size)
        self.per_epoch = batches * method.replays
        self.total = self.per_epoch * settings.epochs
        self.step, self.loss_sum, self.seconds, self.saved = 0, 0.0, 0.0, 0.0
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_score = 0, -1.0
        self.order: tuple[int, Tensor] | None = None
        self.plan = "" if job.folder is None else self._plan(victim)

    def run(self) -> Training:
        """Every step that is left."""
        self._resume()
        self.model.train()
        devices = [self.victim.device] if self.victim.device.type == "cuda" else []
        self.saved = self._since = time.perf_counter()
        with torch.random.fork_rng(devices=devices):
            while self.step < self.total and not self._stale():
                late = self._one_step()
                if self.step % self.per_epoch == 0:
                    self._close_epoch()
                elif not late:
                    continue
                self.saved = time.perf_counter()
                self._save()
        if self.best:
            self.model.load_state_dict(self.best)
        self.model.to(self.home)
        net = self.victim.net
        if isinstance(net, nn.Module):
            net.zero_grad(set_to_none=True)
            net.eval()
        chosen = self.best_epoch if self.best else len(self.history)
        done = Training(self.victim, tuple(self.history), chosen, self.method.card.name)
        if self.folder is not None and not self.machine.rank:
            done.save_curves(self.folder / "curves.png")
        return done

    def _batch(self) -> tuple[Tensor, Tensor]:
        """The inputs and labels of the current step, on the device, in raw units."""
        epoch, within = divmod(self.step, self.per_epoch)
        if self.order is None or self.order[0] != epoch:
            source = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self.order = (epoch, torch.randperm(len(self.x), generator=source))
        first = within // self.method.replays * self.settings.batch_size
        rows = self.machine.part(self.order[1][first : first + self.settings.batch_size])
        return _units(self.x[rows]).to(self.victim.device), self.y[rows].to(self.victim.device)

    def _one_step(self) -> bool:
        """One step of the optimiser; whether a checkpoint is due after it."""
        x, y = self._batch()
        lr = rate(self.settings.schedule, self.settings.lr, self.step, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        _reseed(self.victim.device, self.seed * 1_000_003 + self.step + (self.machine.rank << 40))
        self.crafter.step = self.step
        loss = self.machine.loss(x, y)
        due = time.perf_counter() - self.saved >= SAVE_EVERY
        value, due = self.machine.agree(float(loss.detach()), due)
        if not math.isfinite(value):
            raise VictimError(
                f"the training loss became {value} at step {self.step + 1}; a lower lr than {self.settings.lr:g} is "
                "needed, or inputs without NaN"
            )
        self.machine.descend(loss)
        self.step += 1
        self.loss_sum += value
        if events.heard():
            name = self.method.card.name
            events.emit(TrainingProgress("training", name, self.step, self.total, value, lr))
        return due

    def _close_epoch(self) -> None:
        now = time.perf_counter()
        row = Epoch(len(self.history) + 1, self.loss_sum / self.per_epoch, self.seconds + now - self._since)
        self.seconds, self.loss_sum = 0.0, 0.0
        if len(self.held[0]):
            row = self._probed(row)
        self.history.append(row)
        if events.heard():
            events.emit(EpochFinished("epoch", self.method.card.name, row, self.settings.epochs))
        self._since = time.perf_counter()

    def _probed(self, row: Epoch) -> Epoch:
        """The row with the probe's numbers; the weights of the best PGD accuracy are kept."""
        if self.threat is None:
            row = dataclasses.replace(row, clean=self._over_held(self._clean)[0])
            score = row.clean or 0.0
        else:
            threat = self.threat
            told = self._over_held(lambda x, y: dataclasses.astuple(probe(self.victim, x, y, threat, seed=self.seed)))
            seen = Probe(*told)
            alarm = seen.overfitted and self.method.adversarial
            row = dataclasses.replace(row, **dataclasses.asdict(seen), overfitted=alarm)
            score = seen.pgd if self.method.adversarial else seen.clean
        if self.best_epoch == 0 or score > self.best_score:
            self.best_score, self.best_epoch = score, row.epoch
            if not self.method.adversarial:
                return row
            self.best = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        return row

    def _clean(self, x: Tensor, y: Tensor) -> tuple[float, ...]:
        with self.victim.at_rest():
            return (float((self.victim.query(x).labels == y.to(self.victim.device)).float().mean()),)

    def _over_held(self, look: Callable[[Tensor, Tensor], tuple[float, ...]]) -> tuple[float, ...]:
        """Means over the held-out samples, which the processes share."""
        rows = self.machine.part(torch.arange(len(self.held[0])))
        told = torch.tensor(look(self.held[0][rows], self.held[1][rows]), dtype=torch.float64)
        (mean,) = self.machine.mean([told.to(self.victim.device)])
        return tuple(mean.tolist())

    def _stale(self) -> bool:
        patience = self.settings.patience
        fresh = self.step % self.per_epoch or not self.best_epoch
        return patience is not None and not fresh and len(self.history) - self.best_epoch >= patience

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _plan(self, start: Victim) -> str:
        """What this training is, one fact per line; whatever changes the final weights is in it."""
        ids = torch.cat([content_ids(_units(part)) for part in self.x.split(4096)])
        facts = {
            "method": self.method.facts(),
            "attacks": [(repr(attack), repr(threat.space), threat.goal.name) for attack, threat in self.crafter.duels],
            "settings": repr(self.settings),
            "seed": self.seed,
            "data": f"{len(ids)} samples, {int(ids.sum())}, {int((ids * (self.y + 1)).sum())}",
            "network": start.fingerprint(),
        }
        return "\n".join(f"{name}: {value}" for name, value in facts.items())

    def _resume(self) -> None:
        found = None if self.folder is None else Checkpoint.load(self.folder, self.plan)
        if found is None:
            return
        self.step, self.best, told = found.step, found.best, found.told
        self.model.load_state_dict(found.net)
        restore_optimiser(self.optimiser, found.optimiser)
        if (carried := found.carried.get(str(self.machine.rank))) is not None:
            self.crafter.carried = carried.to(self.victim.device)
        self.machine.restore(told["machine"])
        self.history = [Epoch(**row) for row in told["history"]]
        self.loss_sum, self.seconds = told["loss_sum"], told["seconds"]
        self.best_score, self.best_epoch = told["score"], told["best_epoch"]

    def _save(self) -> None:
        if self.folder is None:
            return
        carried = self.machine.gather(self.crafter.carried)
        if self.machine.rank:
            return
        told: dict[str, Any] = {
            "history": [dataclasses.asdict(row) for row in self.history],
            "loss_sum": self.loss_sum,
            "seconds": self.seconds + time.perf_counter() - self._since,
            "score": self.best_score,
            "best_epoch": self.best_epoch,
            "machine": self.machine.state(),
        }
        net, state = dict(self.model.state_dict()), optimiser_tensors(self.optimiser)
        Checkpoint(self.step, self.plan, told, net, self.best, state, carried).save(self.folder)


def _split(
    data: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor] | None, settings: Settings
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The samples to train on and those held out for the probe."""
    x, y = data
    pairs = [(x, y)] if validation is None else [(x, y), validation]
    for inputs, labels in pairs:
        if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor) or labels.shape != inputs.shape[:1]:
            raise InputError("training takes pairs of tensors: inputs (n, ...) and one label each, (n,)")
    if validation is None:
        keep = min(settings.held_out, len(x) // 5)
        (x, y), validation = (x[: len(x) - keep], y[: len(y) - keep]), (x[len(x) - keep :], y[len(y) - keep :])
    if not len(x):
        raise InputError("the training set is empty; training needs samples")
    return (x, y.long()), (_units(validation[0]), validation[1].long())


def _mixture(method: Method, threat: ThreatModel | None, attack: Attack | str | Mixture | None) -> Mixture | None:
    """What crafts for the method, or None where nothing does."""
    if isinstance(attack, Mixture):
        return attack
    if threat is None:
        if method.adversarial:
            raise ThreatError(
                f"{method.card.name} trains against a threat; give the space, for example sparring.Linf(8 / 255)"
            )
        return None
    return Mixture([(method.default_attack(threat) if attack is None else attack, threat)])


def _optimiser(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    if not parameters:
        raise VictimError("the network has no parameters; nothing can be trained")
    if settings.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay)


def _units(x: Tensor) -> Tensor:
    """Raw units: 8-bit pictures become k/255."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def _reseed(device: torch.device, key: int) -> None:
    """Set the (forked) global generators for one step, for dropout and for stages that draw for themselves."""
    torch.random.set_rng_state(torch.Generator().manual_seed(key).get_state())
    if device.type == "cuda":
        torch.cuda.set_rng_state(torch.Generator(device=device).manual_seed(key).get_state(), device)
