"""The HTML page: it holds what it shows, runs nothing, believes no name, and can be read by everyone."""

from __future__ import annotations

import base64
import io
import itertools
import re
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.report.conftest import EPS, HOSTILE, NAME, Element, read

import sparring as sp
import tiny
from sparring.core import events
from sparring.core.errors import InputError
from sparring.evaluation import AttackSpec, Audit, audit
from sparring.evaluation.progress import UnitFinished, UnitStarted
from sparring.report import FORMS, write_report
from sparring.report.gallery import amplification, as_pixels, exhibits
from sparring.report.pages import to_html
from sparring.report.words import attacker, headline


@pytest.fixture(scope="module")
def text(hostile: Audit) -> str:
    return to_html(hostile, 8)


@pytest.fixture(scope="module")
def page(text: str) -> Element:
    return read(text)


def pixels(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


# -- one file that does nothing ----------------------------------------------------------------------------------------


def test_the_page_needs_no_network_and_runs_no_code(page: Element, text: str) -> None:
    policy = page.one(**{"http-equiv": "Content-Security-Policy"}).attrs["content"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    for element in page.all():
        assert element.tag not in ("script", "link", "iframe", "object", "embed", "form", "base", "use")
        assert not [name for name in element.attrs if name.startswith("on")]
        if element.tag == "a":
            assert element.attrs["href"].startswith("#")
        if "src" in element.attrs:
            assert element.attrs["src"].startswith("data:image/png;base64,")
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?://", re.sub(r'xmlns="[^"]*"', "", text))


def test_names_are_text_and_nothing_else(page: Element, text: str) -> None:
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
    assert page.all("h1")[0].text == NAME.replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    cells = [row.all("th")[0].text for row in _rows(page, "classes-caption")]
    assert HOSTILE[0] in cells
    assert any("onerror=alert(2)" in cell for cell in cells)
    assert any("{{ 7*7 }}" in cell for cell in cells)
    assert any(cell.endswith("</style> </td>") for cell in cells)
    assert "run & <i>" in page.one(**{"aria-labelledby": "again"}).text
    assert not page.all("i", "script")
    assert all(not element.attrs for element in page.all("b"))
    assert len(page.all("style")) == 1


def _rows(page: Element, caption: str) -> list[Element]:
    """The body rows of the table with that caption."""
    table = next(t for t in page.all("table") if t.all("caption")[0].attrs.get("id") == caption)
    return table.all("tbody")[0].all("tr")


# -- everyone can read it ----------------------------------------------------------------------------------------------


def test_the_structure_is_one_that_screen_readers_know(page: Element) -> None:
    assert page.all("html")[0].attrs["lang"] == "en"
    assert page.all("title")[0].text
    levels = [int(e.tag[1]) for e in page.all("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.all(landmark)) == 1
    ids = [e.attrs["id"] for e in page.all() if "id" in e.attrs]
    assert len(set(ids)) == len(ids)
    for element in page.all():
        for target in element.attrs.get("aria-labelledby", "").split():
            assert target in ids
        if element.tag == "a":
            assert element.attrs["href"][1:] in ids
        if element.tag == "svg":
            hidden = element.attrs.get("aria-hidden") == "true"
            assert hidden or (element.attrs["role"] == "img" and _named(element))
        if element.tag == "img":
            assert len(element.attrs["alt"]) > 10
        if element.tag == "section":
            assert "aria-labelledby" in element.attrs
    first = next(e for e in page.all() if e.tag == "a")
    assert first.attrs["class"] == "skip"
    assert page.all("main")[0].attrs["id"] == first.attrs["href"][1:]


def _named(svg: Element) -> bool:
    return bool(svg.attrs.get("aria-label") or (svg.all("title") and svg.all("desc")))


def test_tables_have_captions_and_headed_rows_and_columns(page: Element) -> None:
    tables = page.all("table")
    assert len(tables) >= 6
    for table in tables:
        assert table.all("caption")[0].text
        columns = len(table.all("thead")[0].all("th")) if table.all("thead") else 2
        assert all(th.attrs["scope"] == "col" for head in table.all("thead") for th in head.all("th"))
        rows = table.all("tbody")[0].all("tr")
        assert rows
        for row in rows:
            assert len(row.all("th", "td")) == columns
            assert [th.attrs["scope"] for th in row.all("th")] == ["row"]


def test_what_scrolls_can_be_reached_by_keyboard(page: Element) -> None:
    for element in page.all("div", "pre"):
        if element.attrs.get("class", "").startswith("scroll"):
            assert element.attrs["tabindex"] == "0"
            assert element.attrs["role"] == "region"
            assert element.attrs["aria-labelledby"]


def _colours(style: str, dark: bool) -> dict[str, tuple[float, ...]]:
    light, _, rest = style.partition("@media screen and (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", light))
    if dark:
        found |= dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", rest.partition("* {")[0]))
    return {name: tuple(int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)) for name, value in found.items()}


def _contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The ratio of WCAG 2: relative luminances, each with 0.05 of flare."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out(dark: bool) -> None:
    style = resources.files("sparring.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    colour = _colours(style, dark)
    verdicts = ("robust", "broken", "inconclusive")
    pairs = [(ink, paper) for ink in ("text", "muted", "accent") for paper in ("page", "card")]
    pairs += [(ink, f"{v}-soft") for v in verdicts for ink in (v, "text", "muted")]
    pairs += [(v, "page") for v in verdicts]
    for ink, paper in pairs:
        assert _contrast(colour[ink], colour[paper]) >= 4.5, (ink, paper, dark)
    for mark, ground in (("accent", "band"), ("accent", "page"), ("focus", "page"), ("text", "band")):
        assert _contrast(colour[mark], colour[ground]) >= 3, (mark, ground, dark)


def test_there_is_a_dark_page_and_a_printed_one_and_a_focus(page: Element) -> None:
    style = page.all("style")[0].text
    for rule in ("prefers-color-scheme: dark", "@media print", ":focus-visible", "forced-colors: active"):
        assert rule in style


# -- what it says ------------------------------------------------------------------------------------------------------


def test_the_headline_says_the_number_its_interval_and_the_threat(hostile: Audit, page: Element) -> None:
    said = page.one(**{"class": "headline"}).text
    kept, interval = int(hostile.standing.sum()), hostile.interval
    assert said == (
        "Against an attacker who may change every pixel by at most 0.06 on a scale from 0 to 1, this model stays right "
        f"on {kept / 48:.1%} of inputs: {kept} of the 48 tested, and with 95% confidence between {interval.lo:.1%} and "
        f"{interval.hi:.1%} of all inputs like them."
    )
    verdict = page.one(**{"aria-labelledby": "verdict-title"})
    assert hostile.verdict.result in verdict.attrs["class"]
    assert hostile.verdict.result.capitalize() in verdict.text
    assert "at least 90%" in verdict.text


def test_the_attackers_powers_are_told_in_words(hostile: Audit, columns: Audit) -> None:
    assert attacker(columns) == (
        "may change the input by at most 0.5 in all (Euclidean length, L2; on a scale from -3 to 3)"
    )
    threat = sp.ThreatModel(sp.Linf(8 / 255), sp.Targeted(0), access="scores", queries=5000)
    few = AttackSpec.of({"name": "square", "params": {"queries": 5}})
    found = audit(tiny.trained(), tiny.pictures(8, seed=9), threat, attacks=[few], curve=False, checks=False)
    assert attacker(found) == (
        "may change every pixel by at most 0.03137 (8/255) on a scale from 0 to 1, wants the answer '0', sees nothing "
        "of the model but its scores and may ask it 5,000 times per input"
    )
    assert "resists on" in headline(found)


def test_every_attack_and_check_has_its_row(hostile: Audit, page: Element) -> None:
    rows = _rows(page, "attacks-caption")
    assert len(rows) == len(hostile.attacks)
    for row, told in zip(hostile.attacks, rows, strict=True):
        cells = [cell.text for cell in told.all("th", "td")]
        assert cells[0].startswith("no attack" if row.role == "clean" else row.label)
        assert cells[1:3] == [f"{row.broke:,}", f"{row.met:,}"]
        assert cells[3].startswith(f"{row.robust_accuracy:.1%}")
    checks = _rows(page, "checks-caption")
    assert len(checks) == len(hostile.findings) >= 15
    words = [row.all("td")[0].text.split()[-1] for row in checks]
    assert sorted(words) == sorted(
        {"pass": "passed", "fail": "failed", "skipped": "skipped"}[f.result] for f in hostile.findings
    )
    assert words == sorted(words, key=["failed", "passed", "skipped"].index)
    for finding in hostile.findings:
        assert any(finding.says in row.text for row in checks)


def test_the_table_beside_the_curve_holds_the_headline(hostile: Audit, page: Element) -> None:
    table = next(t for t in page.all("table") if t.all("caption")[0].text.startswith("Accuracy against eps"))
    rows = {tr.all("th")[0].text: [td.text for td in tr.all("td")] for tr in table.all("tbody")[0].all("tr")}
    interval = hostile.interval
    assert rows["0.06"] == [f"{hostile.robust_accuracy:.1%}", f"{interval.lo:.1%}", f"{interval.hi:.1%}"]
    assert rows["0"][0] == f"{hostile.clean_accuracy:.1%}"
    assert list(rows.values())[-1][0] == "0.0%"


def test_the_gallery_shows_the_very_pixels_smallest_changes_first(hostile: Audit, page: Element) -> None:
    for key, cases in (("failures", hostile.failures()), ("close-calls", hostile.close_calls())):
        section = page.one(**{"aria-labelledby": key})
        figures = section.all("figure")
        assert len(figures) == min(8, len(cases)) > 0
        told = [float(re.search(r"Change ([\d.]+)", f.all("figcaption")[0].text)[1]) for f in figures]  # type: ignore[index]
        assert told == sorted(told)
        for case, shown in zip(cases, figures, strict=False):
            original, difference, adversarial = (pixels(e.attrs["src"]) for e in shown.all("img"))
            x, x_adv = hostile.evidence.pair(case.step, case.sample)
            assert np.array_equal(original, (x[0] * 255).round().numpy().astype(np.uint8))
            assert np.abs(adversarial / 255 - x_adv[0].numpy()).max() <= 0.5 / 255 + 1e-6
            factor = float(re.search(r"difference × ([\d.,]+)", shown.text)[1].replace(",", ""))  # type: ignore[index]
            change = (difference / 255 - 0.5) / factor
            assert np.abs(change - (x_adv - x)[0].numpy()).max() <= 0.6 / 255 / factor
            assert f"sample {case.sample}" in shown.text
    assert all(case.radius <= EPS for case in hostile.failures())


def test_without_pictures_no_input_is_in_the_file(hostile: Audit) -> None:
    text = to_html(hostile, 0)
    assert "data:image" not in text
    assert "left out of this file on request" in text


@pytest.mark.parametrize("largest", [1e-6, 0.00008, 1 / 255, 0.03, 0.06, 0.1, 0.3, 0.5])
def test_the_difference_is_as_large_as_it_can_be_shown(largest: float) -> None:
    factor = amplification(largest)
    assert 0.25 < factor * largest <= 0.5 * (1 + 1e-5)
    assert float(f"{factor:.0e}") == pytest.approx(factor)  # a round number


def test_the_difference_of_nothing_and_of_everything() -> None:
    assert amplification(0.0) == 1
    assert amplification(1.0) == 0.5


# -- inputs that are no pictures ---------------------------------------------------------------------------------------


def test_rows_of_numbers_are_told_in_words(columns: Audit) -> None:
    page = read(to_html(columns, 4))
    assert not page.all("img")
    figures = page.all("figure")
    assert figures
    case = columns.failures()[0]
    x, x_adv = columns.evidence.pair(case.step, case.sample)
    changed = int(torch.count_nonzero(x_adv - x))
    assert f"{changed} of 5 numbers changed" in figures[0].text
    most = int((x_adv - x).abs().argmax())
    assert f"number {most}: {float(x[most]):.4g} to {float(x_adv[most]):.4g}" in figures[0].text


def test_texts_are_shown_and_cut(hostile: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ("<script>free</script> money", "fr\x00ee " + "!" * 1000)
    monkeypatch.setattr(type(hostile.evidence), "pair", lambda *_: pair)
    (shown,) = exhibits(hostile, hostile.failures()[:1])
    assert shown.summary[0] == "before: <script>free</script> money"
    assert shown.summary[1].startswith("after: fr\N{REPLACEMENT CHARACTER}ee !!!")
    assert shown.summary[1].endswith("… (1,006 characters)")
    page = read(to_html(hostile, 2))
    assert "<script>free</script> money" in page.all("figure")[0].text
    assert not page.all("script", "img")


@pytest.mark.parametrize(
    ("shape", "bounds", "scale", "shown"),
    [
        ((1, 8, 8), (0.0, 1.0), 1.0, True),
        ((3, 8, 5), None, 1.0, True),
        ((3, 8, 8), (0.0, 255.0), 255.0, True),
        ((3, 8, 8), (-1.0, 1.0), 1.0, True),
        ((3, 8, 8), None, 255.0, False),
        ((4, 8, 8), (0.0, 1.0), 1.0, False),
        ((8, 8), (0.0, 1.0), 1.0, False),
        ((1, 1, 64), (0.0, 1.0), 1.0, False),
    ],
)
def test_what_counts_as_a_picture(
    shape: tuple[int, ...], bounds: tuple[float, float] | None, scale: float, shown: bool
) -> None:
    x = torch.linspace(0, 1, int(np.prod(shape))).reshape(shape) * scale
    found = as_pixels(x, x, bounds)
    assert (found is not None) == shown
    if found is not None:
        lo, hi = bounds or (0.0, 1.0)
        assert torch.allclose(found[0], (x - lo) / (hi - lo), atol=1e-6)


def test_numbers_that_are_none_make_no_picture() -> None:
    x = torch.rand(1, 4, 4)
    assert as_pixels(x, x * float("nan"), (0.0, 1.0)) is None


def test_pictures_stop_where_the_file_would_grow_too_large(hostile: Audit) -> None:
    cases = hostile.failures()[:4]
    whole = exhibits(hostile, cases)
    room = sum(len(picture.uri) for shown in whole[:2] for picture in shown.pictures)
    some = exhibits(hostile, cases, room)
    assert [bool(shown.pictures) for shown in some] == [True, True, False, False]
    assert any("too large" in line for line in some[2].summary)


# -- runs that are not as they should be -------------------------------------------------------------------------------


def interrupted(folder: Path, kind: type[events.Event], after: int) -> Audit:
    """An audit that was stopped by Ctrl-C at the n-th event of a kind."""
    seen = itertools.count(1)

    def stop(event: events.Event) -> None:
        if isinstance(event, kind) and next(seen) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), events.listening(stop):
        audit(tiny.trained(), tiny.pictures(48, seed=9), sp.Linf(EPS), attacks=["pgd"], shard=16, run=folder)
    return Audit.open(folder)


def test_an_unfinished_run_has_a_report_that_says_so(tmp_path: Path) -> None:
    partial = interrupted(tmp_path / "run", UnitFinished, 4)
    assert not partial.complete
    for form, suffix in FORMS.items():
        text = write_report(partial, tmp_path / f"report{suffix}").read_text(encoding="utf-8")
        assert form == "svg" or "unfinished" in text
        if form in ("html", "md", "json"):
            assert "So far: " in text
            assert f"sparring resume {partial.evidence.folder}" in text


def test_a_run_that_has_seen_nothing_yet_has_one_too(tmp_path: Path) -> None:
    nothing = interrupted(tmp_path / "run", UnitStarted, 1)
    assert nothing.n == 0
    for form, suffix in FORMS.items():
        text = write_report(nothing, tmp_path / f"report{suffix}").read_text(encoding="utf-8")
        assert form == "svg" or "Nothing has been measured yet" in text
        if form in ("html", "md"):
            assert not re.search(r"\bnan", text)


def test_lost_files_of_inputs_cost_the_gallery_alone(named: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(named, copy)
    for file in (copy / "adversarial").iterdir():
        file.unlink()
    page = read(to_html(Audit.open(copy), 3))
    assert "cannot be read" in page.all("figure")[0].text
    assert Audit.open(copy).verdict.result in page.one(**{"aria-labelledby": "verdict-title"}).attrs["class"]


def test_the_suffix_chooses_the_form(named: Path, tmp_path: Path) -> None:
    found = Audit.open(named)
    begins = {
        "a.html": "<!doctype html>",
        "a.HTM": "<!doctype html>",
        "a.md": "# ",
        "a.json": "{",
        "a.xml": "<?xml",
        "a.svg": "<svg",
    }
    for name, begin in begins.items():
        assert found.report(tmp_path / name) == tmp_path / name
        assert (tmp_path / name).read_text(encoding="utf-8").lstrip().startswith(begin)


@pytest.mark.parametrize(
    ("path", "how", "says"),
    [
        ("report.pdf", {}, r"\.html"),
        ("nowhere/report.html", {}, "does not exist"),
        (".", {"form": "html"}, "is a folder"),
        ("report.html", {"form": "doc"}, "junit"),
        ("report.html", {"pictures": -1}, ">= 0"),
    ],
)
def test_what_cannot_be_written_is_refused(
    path: str, how: dict[str, object], says: str, named: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        write_report(Audit.open(named), tmp_path / path, **how)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
