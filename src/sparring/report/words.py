"""Numbers and threat models in words that need no glossary."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from sparring.evaluation.reading import Audit
from sparring.evaluation.threats import ThreatSpec

NONE = "–"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def rate(value: float | None) -> str:
    """A share as a percentage; what is neither none nor all is never rounded to 0% or 100%."""
    if value is None or math.isnan(value):
        return NONE
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value:.1%}"


def figure(value: float | None) -> str:
    """A number in four significant digits."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "infinite"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units."""
    if seconds is None or math.isnan(seconds):
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def radius(value: float | None, norm: str) -> str:
    """A radius: four digits, and as k/255 where it is a whole number of 8-bit steps."""
    if value is None:
        return "smallest change"
    steps = round(value * 255)
    if norm == "linf" and 0 < steps < 64 and abs(value * 255 - steps) < 1e-4:
        return f"{value:.4g} ({steps}/255)"
    return figure(value)


def printable(text: str) -> str:
    """Text without the characters that neither HTML nor XML may hold."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def class_name(header: Mapping[str, Any], label: int) -> str:
    """The name of a class, cut where it is long; its number where the victim has no names."""
    from sparring.see.classification import short_name

    names = header["victim"].get("labels") or []
    return printable(short_name(str(names[label]))) if 0 <= label < len(names) else str(label)


def attacker(audit: Audit) -> str:
    """What the attacker may do, as the middle of a sentence: "may change every pixel by at most 0.1"."""
    threat = audit.plan.threat
    words = [_change(threat, audit.evidence.header)]
    if threat.target is not None:
        words.append(f"wants the answer {class_name(audit.evidence.header, threat.target)!r}")
    if threat.access is not None:
        words.append(f"sees nothing of the model but its {threat.access}" if threat.access != "gradients" else "")
    if threat.queries is not None:
        words.append(f"may ask it {threat.queries:,} times per input")
    words = [word for word in words if word]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _change(threat: ThreatSpec, header: Mapping[str, Any]) -> str:
    picture = len(header["data"].get("shape") or ()) == 3
    one, many = ("pixel", "pixels") if picture else ("number of the input", "numbers of the input")
    size, scale = radius(threat.eps, threat.norm), _scale(header)
    if threat.norm == "linf":
        return f"may change every {one} by at most {size}{scale}"
    if threat.norm == "l2":
        return f"may change the input by at most {size} in all (Euclidean length, L2{scale and ';' + scale})"
    if threat.norm == "l1":
        return f"may change the {many} by at most {size} together (L1{scale and ';' + scale})"
    if threat.norm == "l0":
        return f"may change at most {size} {many} at will"
    return f"may make any change that {printable(str(threat.shown))} allows"


def _scale(header: Mapping[str, Any]) -> str:
    bounds = interval_of(header)
    return "" if bounds is None else f" on a scale from {bounds[0]:g} to {bounds[1]:g}"


def interval_of(header: Mapping[str, Any]) -> tuple[float, float] | None:
    """The victim's bounds where they are two numbers; None where they differ from feature to feature or are absent."""
    found = re.fullmatch(r"\[(\S+), (\S+)\]", header["victim"].get("bounds") or "")
    if found is None:
        return None
    try:
        return float(found[1]), float(found[2])
    except ValueError:
        return None


def headline(audit: Audit) -> str:
    """The robust accuracy with its interval, for readers who know neither word."""
    if not audit.n:
        return "Nothing has been measured yet: the audit has not seen a single input."
    interval, kept = audit.interval, int(audit.standing.sum())
    begin = "" if audit.complete else "So far: "
    resists = "resists on" if audit.plan.threat.target is not None else "stays right on"
    return (
        f"{begin}Against an attacker who {attacker(audit)}, this model {resists} {rate(audit.robust_accuracy)} of "
        f"inputs: {kept:,} of the {audit.n:,} tested, and with {interval.confidence:.0%} confidence between "
        f"{rate(interval.lo)} and {rate(interval.hi)} of all inputs like them."
    )


def claim(audit: Audit) -> str:
    """What became of the claim, in one sentence."""
    verdict = audit.verdict
    told = {
        "robust": "It holds, and the checks found no fault in the evaluation.",
        "broken": "It does not hold.",
        "inconclusive": "This audit can neither confirm nor refute it.",
    }
    return f"The claim: at least {verdict.claim:.0%} stay right under attack. {told[verdict.result]}"
