"""JSON in and out: templates that become request bodies, and paths that find scores in whatever a service answered."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sparring.core.errors import InputError, VictimError

if TYPE_CHECKING:
    from sparring.victims.http_mapping import Response

ONE, ALL = "$input", "$inputs"
_QUOTED = 40  # characters
Step = str | int | None  # a key, a position, or None for every element
_STEP = re.compile(r'\.?([^.\[\]"*$\s]+)|\[(\d+)\]|(\[\*\])|\["([^"]+)"\]')
_MARK = re.compile(r"\$inputs?\b")


class Answer(NamedTuple):
    """What a service said about one input: a class number, or scores by class as it gave them, or both."""

    label: int | None
    scores: list[float] | None


def parse_path(path: str, what: str) -> tuple[Step, ...]:
    """'predictions[*].scores' as steps: keys by name or ["name"], [3] for a position, [*] for every element.

    Raises:
        InputError: it is written otherwise.
    """
    rest, steps = path.strip().removeprefix("$"), list[Step]()
    while rest:
        found = _STEP.match(rest)
        if not found:
            raise InputError(
                f"{what} is {path!r}, unclear from {rest[:20]!r} on; paths are written predictions[*].scores, [0].label, "
                '["odd.key"]'
            )
        key, position, every, quoted = found.groups()
        steps.append(None if every else int(position) if position else key or quoted)
        rest = rest[found.end() :]
    return tuple(steps)


def uses(template: Any, mark: str) -> bool:
    """Whether a template holds `$input` or `$inputs`."""
    if isinstance(template, str):
        return mark in _MARK.findall(template)
    if isinstance(template, Mapping):
        return any(uses(value, mark) for value in template.values())
    return isinstance(template, list) and any(uses(value, mark) for value in template)


def fill(template: Any, mark: str, value: Any) -> Any:
    """The template with `value` in place of `mark`; inside a longer text, where the value is a text.

    Raises:
        InputError: a list of numbers belongs into the middle of a text.
    """
    if isinstance(template, str):
        if template == mark:
            return value
        if mark not in _MARK.findall(template):
            return template
        if not isinstance(value, str):
            raise InputError(f"[request] has {template!r:.60}, and only texts and PNG can stand inside a text")
        return _MARK.sub(lambda found: value if found[0] == mark else found[0], template)
    if isinstance(template, Mapping):
        return {key: fill(inner, mark, value) for key, inner in template.items()}
    return [fill(inner, mark, value) for inner in template] if isinstance(template, list) else template


def read_answer(data: bytes, n: int, response: Response, *, single: bool, classes: int | None) -> list[Answer]:
    """The answers to n inputs in the bytes of a response.

    Args:
        data: what the service sent.
        n: how many inputs it was asked about.
        response: where the scores and labels are.
        single: the request carried one input outside any list, so that the paths lead to its own answer.
        classes: the number of classes, where it is known.

    Raises:
        VictimError: no JSON, a field that is missing, a wrong number of rows or scores, or something that is no number.
    """
    told = _json(data)
    found: dict[str, list[Any]] = {}
    for which in ("scores", "labels"):
        steps = response.steps(which)
        if steps is None:
            continue
        rows = follow(told, steps)
        if not single and (not isinstance(rows, list) or len(rows) != n):
            raise VictimError(
                f"{getattr(response, which)!r} holds {_kind(rows)} for {n} inputs; one element per input is needed"
            )
        found[which] = [rows] if single else rows
    labels, scores = found.get("labels", [None] * n), found.get("scores", [None] * n)
    return [_row(label, score, response, classes) for label, score in zip(labels, scores, strict=True)]


def follow(found: Any, steps: tuple[Step, ...], at: str = "$") -> Any:
    """What a path leads to; `[*]` gives a list.

    Raises:
        VictimError: something on the way is missing or of another kind.
    """
    for i, step in enumerate(steps):
        if step is None:
            if not isinstance(found, list):
                raise VictimError(f"{at} is {_kind(found)}; a list is needed")
            return [follow(one, steps[i + 1 :], f"{at}[{j}]") for j, one in enumerate(found)]
        if isinstance(step, int):
            if not isinstance(found, list) or step >= len(found):
                raise VictimError(f"{at} is {_kind(found)}; a list with a position {step} is needed")
        elif not isinstance(found, dict) or step not in found:
            raise VictimError(f"{at} is {_kind(found)}; the field {step!r} is needed")
        found, at = found[step], f"{at}[{step}]" if isinstance(step, int) else f"{at}.{step}"
    return found


def _json(data: bytes) -> Any:
    def refuse(word: str) -> Any:
        raise VictimError(f"a score is {word}; finite numbers are needed")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as cause:
        page = data.lstrip()[:15].lower().startswith((b"<!doctype", b"<html"))
        raise VictimError(f"it is {'a web page' if page else 'nothing at all' if not data else 'no JSON'}") from cause


def _row(label: Any, scores: Any, response: Response, classes: int | None) -> Answer:
    if response.scores is None:
        return Answer(_class_number(label, response), None)
    if response.labels is not None and isinstance(label, list):
        return _named(label, scores, response)
    vector = [_number(scores, response)] if not isinstance(scores, list) else [_number(s, response) for s in scores]
    if response.labels is not None and not isinstance(scores, list):
        return _named([label], [scores], response)
    if len(vector) == 1:  # one number for two classes
        one = vector[0]
        vector = [1 - one, one] if response.probabilities else [-one / 2, one / 2]
    if len(vector) != (classes or len(vector)) or not vector:
        raise VictimError(f"a row holds {len(vector)} scores; {classes or 'some'} are needed, one per class")
    return Answer(None if response.labels is None else _class_number(label, response), vector)


def _named(labels: list[Any], scores: Any, response: Response) -> Answer:
    """The best label, and scores by class, from pairs of label and score.

    What is not listed shares the probability that is left, and is never above the least that is listed; a logit that is
    not listed equals the least one.
    """
    if not isinstance(scores, list) or len(scores) != len(labels) or not labels:
        raise VictimError(f"labels are {_kind(labels)} and scores {_kind(scores)}; as many of both are needed")
    classes = response.count or 0
    listed = {_class_number(a, response): _number(b, response) for a, b in zip(labels, scores, strict=True)}
    if len(listed) != len(labels):
        raise VictimError("a class is listed twice; each may have one score")
    rest = min(listed.values())
    if response.probabilities:
        rest = min(rest, max(0.0, 1 - sum(listed.values())) / max(1, classes - len(listed)))
    # said, and not left to the scores: what is not listed may equal the best of a short list
    return Answer(max(listed, key=lambda label: listed[label]), [listed.get(i, rest) for i in range(classes)])


def _class_number(label: Any, response: Response) -> int:
    if isinstance(label, str) and response.classes is not None and label in response.classes:
        return response.classes.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < (response.count or 0):
        return label
    known = f"one of {', '.join(response.classes[:6])}" if response.classes else f"0..{(response.count or 0) - 1}"
    raise VictimError(f"a label is {_kind(label)}; {known} is needed")


def _number(value: Any, response: Response) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise VictimError(f"a score is {_kind(value)}; a number is needed")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise VictimError("a score is too large to be a number; finite ones are needed")
    if response.probabilities and not -1e-6 <= number <= 1 + 1e-6:
        raise VictimError(f'a score is {number:g}, which is no probability; for logits: kind = "logits" in [response]')
    return number


def _kind(value: Any) -> str:
    """What a piece of JSON is, in words; a text whole or not at all, since half a secret would not be recognised as one."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= _QUOTED else f"a text of {len(value)} characters"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        names = [key if len(key) <= _QUOTED else "..." for key in map(str, value)]
        return f"an object with {', '.join(names[:6]) or 'no field'}"
    return f"the number {value!s:.30}"
