"""Elastic-net attack: shrinkage-thresholding on the margin with an L1 and a squared L2 penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, Rounds, clamp, norm, reached, starts
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access
WARM=1
MOM=1
REL=0
DBL=1.
L2W=1.
@dataclass
class Descent:
    x: Tensor
    last: Tensor
    rounds: Rounds
    pace: Tensor


@attack(Card(name="ead",title="EAD",paper="Chen",access=Access.GRADIENTS,spaces=("l1",),minimal=True,floor={"l1": 100.0}))
@dataclass(frozen=True, kw_only=True)
class EAD(Attack):
    steps: int = 1000
    rounds: int = 9
    step_size: float = 0.01
    const: float = 1e-3
    beta: float = 0.01
    confidence: float = 0.0
    abort_early: bool = True

    def search(self, run: Run) -> None:
        loss=get_loss("margin")
        x=starts(run); z=x.new_zeros(len(x))
        s=run.begin(Descent(x,x.clone(),Rounds.start(x,self.const),z+self.step_size))
        for t in run.steps(self.steps*self.rounds):
            g=run.gradient(s.x,loss)
            d=s.x-run.x
            gap=(self.confidence-g.loss).clamp(min=0)
            obj=d.flatten(1).square().sum(1)+self.beta*d.flatten(1).abs().sum(1)+s.rounds.c*gap
            slope=L2W*2*d-g.grad*per_sample(s.rounds.c*(gap>0),d)
            if REL and t==0:
                s.pace=REL*(g.loss.abs()/norm(g.grad,math.inf).clamp(min=TINY))   # step on f alone that reaches plane
            lr=s.pace*(1-s.rounds.age/self.steps).sqrt()
            q=d-per_sample(lr,d)*slope
            bt=per_sample(s.pace,d) if REL else self.beta
            q=q.sign()*(q.abs()-bt).clamp(min=0)
            new=clamp(run,run.x+q)
            k=((s.rounds.age+1)/(s.rounds.age+4)) if MOM else 0*s.rounds.age
            s.x=clamp(run,new+per_sample(k,new)*(new-s.last)); s.last=new
            over=s.rounds.advance(obj,reached(run,g.scores)&(gap==0),self.steps,not self.abort_early)
            if bool(over.any()):
                i=over.nonzero().squeeze(1)
                b,dist=run.best(); known=torch.isfinite(dist)
                src=b if WARM else run.x
                s.x[i]=src[i]; s.last[i]=src[i]
                run.give_up(s.rounds.done>=self.rounds)
