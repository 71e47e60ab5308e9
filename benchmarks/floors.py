"""Gradient attacks over their floor: the same passes through the bare network, at the batches that the attack saw."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import sparring as sp
from benchmarks.harness import interleave, spread, table
from benchmarks.zoo import network_and_data
from sparring import attacks

VICTIMS = (("mnist_adv", 100, 0.2), ("cifar10_resnet20", 20, 0.5 / 255))


@dataclass
class Passes:
    """The passes of one run in order: the shape of each forward's input, and how many backwards went through it."""

    seen: list[tuple[torch.Size, list[int]]] = field(default_factory=list)

    @classmethod
    def of(cls, net: nn.Module, run: Any) -> Passes:
        """The passes that `run()` makes through `net`."""
        passes = cls()

        def note(_: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
            count = [0]
            passes.seen.append((inputs[0].shape, count))
            if out.requires_grad:
                out.register_hook(lambda _: count.__setitem__(0, count[0] + 1))

        handle = net.register_forward_hook(note)
        try:
            run()
        finally:
            handle.remove()
        return passes

    def again(self, net: nn.Module, inputs: dict[torch.Size, Tensor]) -> None:
        """The same passes, bare; `inputs` holds one batch per shape."""
        for shape, (backwards,) in self.seen:
            with torch.set_grad_enabled(backwards > 0):
                leaf = inputs[shape].requires_grad_(backwards > 0)
                out = net(leaf)
                for k in range(backwards):
                    one = out[:, k % out.shape[1]].sum()
                    torch.autograd.grad(one, leaf, retain_graph=k + 1 < backwards)


def floors(rounds: int) -> str:
    """Every white-box method over its floor, in float32."""
    rows = []
    for name, n, eps in VICTIMS:
        net, x, y = network_and_data(name, n)
        victim = sp.Victim(net, name=name)
        victim.admit(x, y)  # the look at a new victim's traits belongs to none of the attacks
        for told, attack, space, goal in methods(eps):
            rows.append([name, f"{n}", told, *_measured(net, victim, x, y, attack, space, goal, rounds)])
    return "White-box methods over the same passes through the bare network, float32\n\n" + table(
        ["victim", "n", "attack", "norm", "forwards", "backwards", "time / floor", "beyond it, per forward"], rows
    )


def _measured(
    net: nn.Module, victim: sp.Victim, x: Tensor, y: Tensor, attack: Any, space: Any, goal: Any, rounds: int
) -> list[str]:
    def run() -> Any:
        return attack(victim, x, y, space, goal=goal, batch_size=len(x))

    passes = Passes.of(net, run)
    inputs = {shape: torch.rand(shape) for shape in Counter(shape for shape, _ in passes.seen)}
    timed = interleave({"attack": run, "floor": lambda: passes.again(net, inputs)}, rounds)
    ratio = timed["attack"].ratio(timed["floor"])
    beyond = (timed["attack"].median - timed["floor"].median) / len(passes.seen)
    backwards = sum(count for _, (count,) in passes.seen)
    return [space.name, f"{len(passes.seen)}", f"{backwards}", spread(ratio), f"{1e6 * beyond:.0f} us"]


def methods(eps: float) -> list[tuple[str, Any, Any, Any]]:
    """(name, attack, space, goal): the ball at this Linf radius, and everything that seeks the smallest change."""
    a, linf, l2, l1 = attacks, sp.Linf(eps), sp.L2(20 * eps), sp.L1(100 * eps)
    one = sp.Targeted(3)
    return [
        ("PGD", sp.PGD(steps=20, precision="float32"), linf, None),
        ("PGD", sp.PGD(steps=20, precision="float32"), l2, None),
        ("PGD", sp.PGD(steps=20, precision="float32"), l1, None),
        ("BIM", a.BIM(), linf, None),
        ("FGSM", a.FGSM(), linf, None),
        ("MI-FGSM", a.MIFGSM(), linf, None),
        ("NI-FGSM", a.NIFGSM(), linf, None),
        ("VMI-FGSM", a.VMIFGSM(neighbours=3), linf, None),
        ("DI-FGSM", a.DIFGSM(), linf, None),
        ("TI-FGSM", a.TIFGSM(), linf, None),
        ("SI-FGSM", a.SIFGSM(), linf, None),
        ("APGD", a.APGD(steps=20, precision="float32"), linf, None),
        ("APGD", a.APGD(steps=20, precision="float32"), l2, None),
        ("APGD", a.APGD(steps=20, precision="float32"), l1, None),
        ("APGD-T", a.APGDT(steps=10, classes=3, precision="float32"), linf, None),
        ("input optimisation", a.InputOptimisation(steps=20), sp.L2(), one),
        ("DDN", a.DDN(steps=20), sp.L2(), None),
        *(("FMN", a.FMN(steps=20), space(), None) for space in (sp.Linf, sp.L2, sp.L1, sp.L0)),
        ("C&W", a.CW(steps=20, rounds=1), sp.L2(), None),
        ("C&W", a.CW(steps=20, rounds=1), sp.Linf(), None),
        ("EAD", a.EAD(steps=20, rounds=1), sp.L1(), None),
        ("DeepFool", a.DeepFool(), sp.L2(), None),
        ("DeepFool", a.DeepFool(), sp.Linf(), None),
        ("SuperDeepFool", a.SuperDeepFool(steps=10), sp.L2(), None),
        ("FAB", a.FAB(steps=5), sp.L2(), None),
        ("FAB", a.FAB(steps=5), sp.Linf(), None),
        ("FAB", a.FAB(steps=5), sp.L1(), None),
        ("NewtonFool", a.NewtonFool(steps=20), sp.L2(), None),
        ("L-BFGS", a.LBFGS(steps=20, rounds=1), sp.L2(), None),
        ("Brendel-Bethge", a.BrendelBethge(steps=20), sp.L2(), None),
        ("Brendel-Bethge", a.BrendelBethge(steps=20), sp.Linf(), None),
        ("ALMA", a.ALMA(steps=40), sp.L2(), None),
        ("ALMA", a.ALMA(steps=40), sp.L1(), None),
        *(("PDPGD", a.PDPGD(steps=20), space(), None) for space in (sp.Linf, sp.L2, sp.L1)),
        ("sigma-zero", a.SigmaZero(steps=20), sp.L0(), None),
        ("JSMA", a.JSMA(gamma=0.01), sp.L0(), None),
        ("VFGA", a.VFGA(), sp.L0(6), None),
    ]
