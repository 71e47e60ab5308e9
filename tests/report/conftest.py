"""What the tests of reports share: a finished audit whose every name is hostile, and a reader of pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import sparring as sp
import tiny
from sparring.evaluation import AttackSpec, Audit, audit

EPS = 0.06
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7*7 }} a|b`c*d_e\n# [f](javascript:alert(3)) & '",
    "nul\x00 bell\x07 \ud800 ]]> </style> </td>",
)
NAME = "<b onmouseover='alert(4)'>&amp;\x1b[31m"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """A finished audit of the tiny network on 48 pictures, with an attack that only asks and with the checks."""
    victim = sp.Victim(tiny.trained().net, labels=[name.replace("\ud800", "") for name in HOSTILE], name=NAME)
    attacks = [sp.FGSM(), sp.PGD(steps=12), AttackSpec.of({"name": "square", "params": {"queries": 30}})]
    folder = tmp_path_factory.mktemp("hostile") / "run & <i>"
    return audit(victim, tiny.pictures(48, seed=9), sp.Linf(EPS), attacks=attacks, shard=16, claim=0.9, run=folder)


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished audit in which everything is known by name."""
    folder = tmp_path_factory.mktemp("named") / "run"
    audit("digits", "digits", sp.Linf(0.1), attacks=["fgsm"], samples=40, shard=20, checks=False, run=folder)
    return folder


@pytest.fixture(scope="session")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """A finished audit of inputs that are no pictures: rows of five numbers between -3 and 3."""
    weights = torch.tensor([[1.0, -2.0, 0.5, 0.0, 3.0], [-1.0, 2.0, -0.5, 0.0, -3.0]])
    victim = tiny.linear(weights, bounds=(-3.0, 3.0), name="rows")
    x = torch.rand(40, 5, generator=torch.Generator().manual_seed(3)) * 4 - 2
    y = victim.query(x).labels
    folder = tmp_path_factory.mktemp("columns") / "run"
    return audit(victim, (x, y), sp.L2(0.5), attacks=["pgd"], checks=False, run=folder)


@dataclass
class Element:
    """A tag with its attributes, the text inside it, and the tags inside it."""

    tag: str
    attrs: dict[str, str]
    children: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def all(self, *tags: str) -> list[Element]:
        """Every tag below with one of these names, in the order of the page; without names every tag."""
        found = []
        for child in self.children:
            found += [child] if not tags or child.tag in tags else []
            found += child.all(*tags)
        return found

    def one(self, **attrs: str) -> Element:
        found = [e for e in self.all() if all(e.attrs.get(k) == v for k, v in attrs.items())]
        assert len(found) == 1, (attrs, len(found))
        return found[0]


_VOID = {"meta", "link", "img", "br", "hr", "input", "rect", "path", "circle"}


class Page(HTMLParser):
    """A strict reader: every tag that opens must close in its place."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert len(self._open) == 1, f"left open: {[e.tag for e in self._open[1:]]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.pieces.append(data)


def read(text: Any) -> Element:
    """The page as a tree."""
    return Page(str(text)).root
