"""Elastic-net attack: shrinkage-thresholding on the margin with an L1 and a squared L2 penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, Tradeoff, clamp, norm, reached, starts
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
    c: Tradeoff
    age: Tensor
    round: Tensor
    hit: Tensor
    mark: Tensor
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
        s=run.begin(Descent(x,x.clone(),Tradeoff.start(x,self.const),z.clone(),z.clone(),z>0,z+torch.inf,z+self.step_size))
        for t in run.steps(self.steps*self.rounds):
            g=run.gradient(s.x,loss)
            d=s.x-run.x
            gap=(self.confidence-g.loss).clamp(min=0)
            s.hit=s.hit|(reached(run,g.scores)&(gap==0))
            obj=d.flatten(1).square().sum(1)+self.beta*d.flatten(1).abs().sum(1)+s.c.value*gap
            slope=L2W*2*d-g.grad*per_sample(s.c.value*(gap>0),d)
            if REL and t==0:
                s.pace=REL*(g.loss.abs()/norm(g.grad,2).square().clamp(min=TINY))   # step on f alone that reaches plane
            lr=s.pace*(1-s.age/self.steps).sqrt()
            q=d-per_sample(lr,d)*slope
            q=q.sign()*(q.abs()-self.beta*(1 if not REL else 1)).clamp(min=0)
            new=clamp(run,run.x+q)
            s.age=s.age+1
            k=(s.age/(s.age+3)) if MOM else 0*s.age
            s.x=clamp(run,new+per_sample(k,new)*(new-s.last)); s.last=new
            chk=(s.age%max(1,self.steps//10)==0)
            over=s.age>=self.steps
            if self.abort_early: over=over|(chk&(obj>.9999*s.mark))
            s.mark=torch.where(chk,obj,s.mark)
            if bool(over.any()):
                s.c.settle(over,s.hit)
                i=over.nonzero().squeeze(1)
                b,dist=run.best(); known=torch.isfinite(dist)
                src=b if WARM else run.x
                s.x[i]=src[i]; s.last[i]=src[i]
                s.age=torch.where(over,0.,s.age); s.round=s.round+over; s.mark=torch.where(over,torch.inf,s.mark)
                s.pace=torch.where(over&~known,s.pace*DBL,s.pace)
                run.give_up(s.round>=self.rounds)
            s.hit=s.hit&~(chk|over) if WARM else s.hit&~over
