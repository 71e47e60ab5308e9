"""Where a training runs: in this process as it is, or through Lightning Fabric on another device, in another precision,
in several processes that share each batch.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import pickle  # noqa: TID251 (between processes of one run, by a pipe; nothing is read from a file)
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from sparring.core.errors import InputError, MissingDependencyError, SparringError, VictimError
from sparring.defences.training.settings import Settings

# How long a broken connection may wait for the process at its other end to say why, in seconds.
PATIENCE = 5.0


class Batch:
    """Inputs (n, ...) and labels (n,) that reach a wrapped loss as they are: Fabric rounds bare tensors to the precision."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


class Machine:
    """This process alone, on the network's own device and in its own precision: it needs no more than torch.

    Attributes:
        rank: the number of this process; 0 tells and writes.
        world: how many processes share each batch.
    """

    rank, world = 0, 1

    def take(self, loss: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Make ready to minimise: `loss(Batch(x, y))` is a scalar, and its parameters are the optimiser's."""
        self._loss, self._optimiser = loss, optimiser

    def part(self, rows: Tensor) -> Tensor:
        """The rows of a batch that this process takes."""
        return rows

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of this process's part of the batch."""
        return self._loss(Batch(x, y))  # type: ignore[no-any-return]

    def descend(self, loss: Tensor) -> None:
        """One step of the optimiser."""
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()

    def mean(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Means over the whole batch, from the means over each process's part."""
        return parts

    def agree(self, value: float, late: bool) -> tuple[float, bool]:
        """The mean loss of the whole batch, and whether the first process wants a checkpoint."""
        return value, late

    def gather(self, mine: Tensor | None) -> dict[str, Tensor]:
        """What each process carries, by its rank."""
        return {} if mine is None else {"0": mine}

    def state(self) -> dict[str, Any]:
        """What a run that goes on needs beside weights and optimiser: plain numbers."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""


class FabricMachine(Machine):
    """Lightning Fabric's device, precision and, where there are several processes, DistributedDataParallel.

    DistributedDataParallel does not know `torch.autograd.grad`, which crafting uses. So it wraps the loss as a whole: inside,
    a method sees the bare network, crafts on it and calls it as often as it likes; outside there is one backward.
    """

    def __init__(self, settings: Settings, home: torch.device, rank: int = 0) -> None:
        self.rank, self.world = rank, settings.devices
        self._share = 1.0
        kind = accelerator(settings, home)
        stays = self.world == 1 and kind == home.type and home.index is not None
        self._fabric = _fabric().Fabric(
            accelerator=kind,
            devices=[home.index] if stays else self.world,
            precision=settings.precision,
            strategy="auto" if self.world == 1 else _strategy(rank),
        )
        self._fabric.launch()

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._fabric.device  # type: ignore[no-any-return]

    def take(self, loss: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self._loss, self._optimiser = self._fabric.setup(loss, optimiser)
        self._buffers = [b for b in loss.buffers() if b.is_floating_point()]

    def part(self, rows: Tensor) -> Tensor:
        mine = rows[self.rank :: self.world]
        # the mean over processes of share * (mean over the part) is the mean over the batch; a part may be empty
        self._share = len(mine) * self.world / len(rows)
        return mine if len(mine) else rows[:1]

    def descend(self, loss: Tensor) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        self._fabric.backward(loss * self._share)
        self._optimiser.step()
        if self.world > 1:  # statistics of batch normalisation: each process saw its part alone
            for buffer, mean in zip(self._buffers, self.mean(self._buffers), strict=True):
                buffer.copy_(mean)

    def mean(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.world == 1 or not parts:
            return parts
        whole = torch.cat([(part.detach().to(self.device) * self._share).flatten() for part in parts])
        whole = self._fabric.all_reduce(whole, reduce_op="sum") / self.world
        sizes = [part.numel() for part in parts]
        return [flat.view_as(part) for flat, part in zip(whole.split(sizes), parts, strict=True)]

    def agree(self, value: float, late: bool) -> tuple[float, bool]:
        if self.world == 1:
            return value, late
        told = torch.tensor([value * self._share, float(late and self.rank == 0)], device=self.device)
        total, wanted = self._fabric.all_reduce(told, reduce_op="sum").tolist()
        return total / self.world, wanted > 0

    def gather(self, mine: Tensor | None) -> dict[str, Tensor]:
        if self.world == 1:
            return super().gather(mine)
        found: list[Tensor | None] = [None] * self.world
        torch.distributed.all_gather_object(found, None if mine is None else mine.cpu())
        return {str(rank): tensor for rank, tensor in enumerate(found) if tensor is not None}

    def state(self) -> dict[str, Any]:
        return self._fabric.strategy.precision.state_dict()  # type: ignore[no-any-return]

    def restore(self, state: dict[str, Any]) -> None:
        self._fabric.strategy.precision.load_state_dict(state)


@contextlib.contextmanager
def machine(settings: Settings, home: torch.device, work: Callable[[Machine], object]) -> Iterator[Machine]:
    """The machine that the settings ask for, as this process sees it.

    This process is the first of `settings.devices`; the others are started here, run `work` with their own machine, and end
    with the block.

    Args:
        settings: their accelerator, devices and precision.
        home: where the network is.
        work: what the other processes run; it is sent to them, so it must be picklable.

    Raises:
        InputError: what cannot be sent; a device that is not there; a script without a main guard.
        MissingDependencyError: no Lightning Fabric.
        VictimError: another process failed.
    """
    if settings.accelerator in (None, home.type) and settings.devices == 1 and settings.precision == "32-true":
        yield Machine()
        return
    accelerator(settings, home)
    with _quiet(), contextlib.ExitStack() as rest:
        if settings.devices > 1:
            rest.enter_context(_joined(settings, home, work))
        yield FabricMachine(settings, home)


def accelerator(settings: Settings, home: torch.device) -> str:
    """The kind of device that the settings mean for a network at `home`: "cpu", "cuda" or "mps".

    Raises:
        InputError: this machine has no such device, or not so many, or the precision is not for it.
    """
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": settings.devices}
    kind = settings.accelerator or home.type
    if kind == "auto":
        kind = next(name for name, count in there.items() if count)
    if there.get(kind, 0) < settings.devices:
        raise InputError(f"training asks for {settings.devices} of {kind!r}; this machine has {there.get(kind, 0)}")
    if kind == "cpu" and settings.precision == "16-mixed":
        raise InputError("precision is '16-mixed', which needs a GPU; on the CPU there is 'bf16-mixed'")
    return kind


@contextlib.contextmanager
def _joined(settings: Settings, home: torch.device, work: Callable[[Machine], object]) -> Iterator[None]:
    """The other processes, and this one in a group with them."""
    if torch.distributed.is_initialized():
        raise InputError(
            "this process is in a torch.distributed group already; train there with devices=1, or outside it"
        )
    try:
        job = pickle.dumps((settings, torch.device(home.type), work))
    except (pickle.PicklingError, AttributeError, TypeError) as cause:
        raise InputError(
            f"devices={settings.devices} sends the victim, the method and the attack to other processes, and one of them "
            f"cannot be pickled: {cause}. Define its classes and functions in a module; a lambda cannot go"
        ) from cause
    own = torch.get_num_threads()
    threads = max(1, own // settings.devices)
    store = TCPStore("127.0.0.1", 0, settings.devices, is_master=True, wait_for_workers=False)
    context = get_context("spawn")
    helpers = []
    try:
        for rank in range(1, settings.devices):
            ours, theirs = context.Pipe()
            helper = context.Process(target=_help, args=(theirs, rank, store.port, threads), daemon=True)
            helper.start()
            theirs.close()
            helpers.append((helper, ours))
        _fabric()  # seconds, in which the others import it too
        for helper, ours in helpers:
            _first_word(helper, ours, job)
        torch.set_num_threads(threads)
        _join(settings, home, store, 0)
        try:
            yield
        except RuntimeError as cause:
            if isinstance(cause, SparringError) or not (why := _complaint(helpers)):
                raise
            raise VictimError(f"another process of this training failed: {why}") from cause
        for helper, _ in helpers:
            helper.join(PATIENCE)
    finally:
        torch.set_num_threads(own)
        for helper, ours in helpers:
            helper.kill()
            helper.join()
            ours.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _help(tell: Any, rank: int, port: int, threads: int) -> None:
    """A further process: its part of every batch, from the first to the last."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    torch.set_num_threads(threads)
    try:
        _fabric()
        settings, home, work = pickle.loads(tell.recv())  # noqa: S301 (from the process that started this one)
        store = TCPStore("127.0.0.1", port, settings.devices, is_master=False)
        tell.send(None)
        with _quiet():
            _join(settings, home, store, rank)
            work(FabricMachine(settings, home, rank))
        torch.distributed.destroy_process_group()
    except Exception as cause:
        with contextlib.suppress(OSError):
            tell.send(f"{type(cause).__name__}: {cause}")


def _first_word(helper: Any, ours: Any, job: bytes) -> None:
    """Hand a helper its job and wait until it has unpacked it."""
    why: str | None = "it ended at once"
    with contextlib.suppress(OSError, EOFError):
        ours.send(job)
        connection.wait([ours, helper.sentinel])
        why = ours.recv() if ours.poll() else why
    if why is not None:
        raise InputError(
            f"a further process could not begin: {why}. A script that trains with devices > 1 guards its calls by "
            "`if __name__ == '__main__':`, and takes the classes of its network from a module"
        )


def _complaint(helpers: list[tuple[Any, Any]]) -> str | None:
    """What a helper says that failed, or how it ended; None where all are well."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        for helper, ours in helpers:
            with contextlib.suppress(OSError, EOFError):
                if ours.poll():
                    return str(ours.recv())
            if helper.exitcode:
                return f"it ended with exit code {helper.exitcode}"
        time.sleep(0.05)
    return None


def _join(settings: Settings, home: torch.device, store: Any, rank: int) -> None:
    """Enter the group of processes."""
    backend = "nccl" if accelerator(settings, home) == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=settings.devices)


def _strategy(rank: int) -> Any:
    """Fabric's strategy for processes that run already: nothing is launched again."""
    environment: Any = _fabric(".plugins.environments").LightningEnvironment
    strategy: Any = _fabric(".strategies").DDPStrategy

    class Started(environment):  # type: ignore[misc]
        creates_processes_externally = True

        def local_rank(self) -> int:
            return rank

        def teardown(self) -> None:
            """The environment's variables are not ours."""

    class Joined(strategy):  # type: ignore[misc]
        def _configure_launcher(self) -> None:
            """No launcher: Fabric's own refuses to be in a notebook."""

    return Joined(cluster_environment=Started())


def _fabric(module: str = "") -> Any:
    """Lightning Fabric, or a module in it."""
    try:
        return importlib.import_module(f"lightning_fabric{module}")
    except (ImportError, RuntimeError) as cause:  # a torchvision of another torch build raises RuntimeError
        raise MissingDependencyError.extra(
            "lightning-fabric",
            "train",
            "training on another device, in another precision or in several processes",
            cause,
        ) from cause


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Fabric announces what it does; here events do."""
    log = logging.getLogger("lightning_fabric")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
