"""How a service is spoken to, read from TOML: where it is, what a request looks like, where in its answer the scores are."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparring.core.errors import InputError, LoadError, UnknownNameError
from sparring.core.space import Bounds
from sparring.victims.http_json import ALL, ONE, Step, parse_path, uses
from sparring.victims.labels import read_labels

ENCODINGS = ("png", "list", "row", "text")
_LARGEST_FILE = 1_000_000


@dataclass(frozen=True)
class Service:
    """Where the service is, and how patiently it is asked.

    Attributes:
        url: http or https. `${NAME}` stands for an environment variable, here and in the headers.
        method: "POST" or "PUT".
        headers: sent with every request.
        timeout: seconds for one whole request, from the connection to the last byte of the answer.
        retries: how often a request is sent again after 429, 5xx, a broken connection or a timeout.
        backoff: seconds before the first retry; each later one waits twice as long, with jitter.
        longest_wait: seconds; the most that one retry waits, whatever `Retry-After` asks for.
        rate: requests a second at most; None for no limit.
        concurrency: requests in flight at once.
        largest_answer: bytes.
    """

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 30.0
    retries: int = 4
    backoff: float = 0.5
    longest_wait: float = 60.0
    rate: float | None = None
    concurrency: int = 1
    largest_answer: int = 4_000_000


@dataclass(frozen=True)
class Inputs:
    """What an input is, and how it becomes JSON.

    Attributes:
        encoding: "png", base64 of an 8-bit PNG; "list", nested lists; "row", one flat list; or "text".
        shape: of one input, channels first, (c, h, w) or (d,); None takes any.
        bounds: (lo, hi) of the raw numbers; None for texts and for rows without limits.
        layout: "chw" or "hwc", the order in which "list" and "row" are sent.
        levels: whole numbers 0..levels-1 are sent for [lo, hi]; None sends the raw numbers.
    """

    encoding: str
    shape: tuple[int, ...] | None = None
    bounds: tuple[float, float] | None = None
    layout: str = "chw"
    levels: int | None = None


@dataclass(frozen=True)
class Request:
    """The JSON of a request: `$input` in `body` stands for one input, `$inputs` for a list of up to `batch` of them.

    `item` says what one element of that list is, again with `$input`.
    """

    body: Any
    item: Any = ONE
    batch: int = 1

    @property
    def single(self) -> bool:
        """Whether each request carries one input, outside any list."""
        return not uses(self.body, ALL)


@dataclass(frozen=True)
class Response:
    """Where in an answer the scores or labels are.

    Attributes:
        scores: the path of the scores; alone, one per class in the order of `classes` (or one number for two classes).
        labels: the path of the labels. With `scores`, as lists, it names the class of each score: a top-k.
        probabilities: the scores are probabilities; False: logits.
        classes: class names in order; where only their number is known, `count` has it.
        count: the number of classes, or None until the first answer.
    """

    scores: str | None = None
    labels: str | None = None
    probabilities: bool = True
    classes: tuple[str, ...] | None = None
    count: int | None = None

    def steps(self, which: str) -> tuple[Step, ...] | None:
        """The path `which`, "scores" or "labels", taken apart."""
        path = getattr(self, which)
        return None if path is None else parse_path(path, f"[response] {which}")


@dataclass(frozen=True)
class Budget:
    """What may be asked and spent, in all the runs that share a log.

    Attributes:
        max_queries: inputs; None for no limit.
        price: of one input.
        price_per_request: of one request, however many inputs it carries.
        max_cost: in `currency`; None for no limit.
        currency: for messages.
    """

    max_queries: int | None = None
    price: float = 0.0
    price_per_request: float = 0.0
    max_cost: float | None = None
    currency: str = "USD"

    def cost(self, inputs: int) -> float:
        """What one request with so many inputs costs."""
        return self.price * inputs + self.price_per_request


@dataclass(frozen=True)
class HTTPMapping:
    """Everything that is known about a service; `read_mapping` makes one from TOML."""

    service: Service
    inputs: Inputs
    request: Request
    response: Response
    budget: Budget = field(default_factory=Budget)
    name: str | None = None
    log: Path | None = None

    def described(self, address: str) -> dict[str, Any]:
        """What decides an answer, as plain data: the mapping without budget, patience and the values of headers.

        Args:
            address: what may be shown of it.
        """
        return {
            "address": address,
            "query": self.service.url.partition("?")[2] and "hidden",
            "method": self.service.method,
            "headers": sorted(self.service.headers),
            "input": asdict(self.inputs),
            "body": self.request.body,
            "item": self.request.item,
            "response": asdict(self.response),
        }

    def fingerprint(self, address: str) -> str:
        """A hash of what decides an answer; variables count by name, so a new key of the same account changes nothing."""
        told = {
            **self.described(address),
            "query": self.service.url.partition("?")[2],
            "headers": sorted(self.service.headers.items()),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def read_mapping(mapping: HTTPMapping | Mapping[str, Any] | str | Path) -> HTTPMapping:
    """A mapping from a TOML file, from the same as a dict, or one that is ready.

    Args:
        mapping: in a file, paths are relative to its folder, and without `log` the answers are kept beside it, in
            NAME.answers.sqlite; `log = false` keeps them in memory alone, as a dict without `log` does.

    Raises:
        LoadError: the file is missing, too large or no TOML.
        UnknownNameError: a key that does not exist; the message lists close matches.
        InputError: a value that cannot be right, or two that contradict each other.
    """
    if isinstance(mapping, HTTPMapping):
        return mapping
    if isinstance(mapping, Mapping):
        return _mapping(mapping, None)
    path = Path(mapping).expanduser()
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise LoadError(f"the mapping {str(path)!r} is larger than {_LARGEST_FILE:,} bytes")
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise LoadError(f"the mapping {str(path)!r} cannot be read: {cause.strerror or cause}") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as cause:
        raise LoadError(f"the mapping {str(path)!r} is no TOML: {cause}") from cause
    if not {"service", "request", "response"} <= set(found):
        raise LoadError(
            f"{str(path)!r} has the tables {', '.join(sorted(found)) or 'none'}; a victim over HTTP needs [service], "
            "[input], [request] and [response] (docs/remote-victims.md has an example)"
        )
    return _mapping(found, path)


class _Table:
    """One table of the file: each look takes a key out, and `end` refuses what nobody looked for."""

    def __init__(self, found: Any, name: str) -> None:
        if not isinstance(found, Mapping):
            raise InputError(f"{name} is a {type(found).__name__}; a table is needed")
        self.left, self.name, self.known = dict(found), name, list[str]()

    def take(self, key: str, default: Any = None) -> Any:
        self.known.append(key)
        return self.left.pop(key, default)

    def text(self, key: str, default: str | None = None, among: Sequence[str] = ()) -> str | None:
        value = self.take(key, default)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, value, "a text is needed")
        if among and value not in among:
            raise self.wrong(key, value, f"one of {', '.join(among)} is needed")
        return value

    def number(self, key: str, default: float | None, *, above: float | None = None) -> float | None:
        """A finite number >= 0, or above `above`."""
        value = self.take(key, default)
        if value is None:
            return None
        least = 0.0 if above is None else above
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or value < least or (above is not None and value == above):
            raise self.wrong(key, value, f"a number {'>=' if above is None else '>'} {least:g} is needed")
        return float(value)

    def whole(self, key: str, default: int | None, least: int) -> int | None:
        value = self.take(key, default)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, value, f"a whole number >= {least} is needed")
        return value

    def wrong(self, key: str, value: Any, needed: str) -> InputError:
        return InputError(f"{self.name} {key} is {value!r:.80}; {needed}")

    def end(self) -> None:
        for key in self.left:
            raise UnknownNameError.among(f"key of {self.name}", key, self.known)


def _mapping(found: Mapping[str, Any], file: Path | None) -> HTTPMapping:
    table = _Table(found, "the mapping")
    folder = Path() if file is None else file.parent
    name = table.text("name", None if file is None else file.stem)
    log = table.take("log", None if file is None else f"{file.stem}.answers.sqlite")
    if log is not False and log is not None and (not isinstance(log, str) or not log.strip()):
        raise table.wrong("log", log, "the path of a file is needed, or false for none")
    parts = {
        key: _Table(table.take(key, {}), f"[{key}]") for key in ("service", "input", "request", "response", "budget")
    }
    table.end()
    made = HTTPMapping(
        service=_service(parts["service"]),
        inputs=_inputs(parts["input"]),
        request=_request(parts["request"]),
        response=_response(parts["response"], folder),
        budget=_budget(parts["budget"]),
        name=name,
        log=folder / Path(log).expanduser() if log else None,
    )
    for part in parts.values():
        part.end()
    return made


def _service(table: _Table) -> Service:
    url = table.text("url")
    if url is None:
        raise InputError('[service] has no url; for example url = "https://example.org/v1/predict"')
    headers = table.take("headers", {})
    if not isinstance(headers, Mapping) or not all(isinstance(v, str) for v in headers.values()):
        raise InputError("[service.headers] must map names to texts; a secret is written ${NAME}")
    return Service(
        url=url,
        method=table.text("method", "POST", ("POST", "PUT")) or "POST",
        headers=dict(headers),
        timeout=table.number("timeout", 30.0, above=0.0) or 30.0,
        retries=table.whole("retries", 4, 0) or 0,
        backoff=table.number("backoff", 0.5) or 0.0,
        longest_wait=table.number("longest_wait", 60.0) or 0.0,
        rate=table.number("rate", None, above=0.0),
        concurrency=table.whole("concurrency", 1, 1) or 1,
        largest_answer=table.whole("largest_answer", 4_000_000, 1) or 1,
    )


def _inputs(table: _Table) -> Inputs:
    encoding = table.text("encoding", None, ENCODINGS)
    if encoding is None:
        raise InputError(f"[input] has no encoding; one of {', '.join(ENCODINGS)} is needed")
    shape, bounds = table.take("shape"), table.take("bounds")
    layout = table.text("layout", "chw", ("chw", "hwc")) or "chw"
    levels = table.whole("levels", 256 if encoding == "png" else None, 2)
    if shape is not None and not (
        isinstance(shape, list)
        and shape
        and all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in shape)
    ):
        raise table.wrong("shape", shape, "the shape of one input is needed, channels first: [3, 224, 224]")
    if bounds is not None:
        if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
            raise table.wrong("bounds", bounds, "a pair is needed: [0, 1]")
        box = Bounds.of((bounds[0], bounds[1]))
        bounds = (float(box.lo), float(box.hi))
    if encoding == "text" and (shape or bounds or levels):
        raise InputError("[input] encoding is 'text', which has neither shape nor bounds nor levels")
    if encoding == "png":
        bounds = bounds or (0.0, 1.0)
        if levels != 256:
            raise table.wrong("levels", levels, "a PNG has 256")
        if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
            raise table.wrong("shape", shape, "a PNG needs (1, h, w) or (3, h, w)")
    if levels is not None and bounds is None:
        raise InputError(
            "[input] levels needs bounds, the raw numbers that 0 and levels - 1 stand for: bounds = [0, 1]"
        )
    if layout == "hwc" and (shape is None or len(shape) != 3 or encoding not in ("list", "row")):
        raise InputError("[input] layout 'hwc' goes with encoding 'list' or 'row' and a shape of three: [3, 224, 224]")
    return Inputs(encoding, None if shape is None else tuple(shape), bounds, layout, levels)


def _request(table: _Table) -> Request:
    body, item = table.take("body"), table.take("item", ONE)
    request = Request(body, item, table.whole("batch", 1, 1) or 1)
    try:
        json.dumps([body, item], allow_nan=False)
    except (TypeError, ValueError) as cause:  # TOML knows dates, and numbers that are none
        raise table.wrong("body", body, f"what JSON can hold is needed ({cause})") from cause
    many, one = uses(body, ALL), uses(body, ONE)
    if many == one:
        raise InputError(
            f"[request] body holds {'both' if many else 'neither'} {ONE!r} and {ALL!r}; exactly one is needed: "
            f'body = {{ image = "{ONE}" }}, or body = {{ instances = "{ALL}" }}'
        )
    if many and not uses(item, ONE):
        raise InputError(f'[request] item holds no {ONE!r}; for example item = {{ b64 = "{ONE}" }}')
    if one and (request.batch != 1 or item != ONE):
        raise InputError(f"[request] item and batch go with {ALL!r} in the body, and it holds {ONE!r}")
    return request


def _response(table: _Table, folder: Path) -> Response:
    scores, labels = table.text("scores"), table.text("labels")
    kind = table.text("kind", "probabilities", ("probabilities", "logits"))
    classes, names = table.take("classes"), None
    if isinstance(classes, str):
        names = read_labels(folder / Path(classes).expanduser())
    elif isinstance(classes, (list, tuple)):
        names = read_labels(classes)
    elif classes is not None and (not isinstance(classes, int) or isinstance(classes, bool)):
        raise table.wrong("classes", classes, "names, a file of names, or their number are needed")
    count = classes if names is None else len(names)
    if count is not None and count < 2:
        raise table.wrong("classes", classes, "two at least are needed")
    if names is not None and len(set(names)) != len(names):
        raise table.wrong("classes", classes, "names that differ are needed")
    if scores is None and labels is None:
        raise InputError('[response] says neither scores nor labels; for example scores = "predictions[*].scores"')
    if labels is not None and count is None:
        raise InputError("[response] labels needs classes: their names in order, or their number")
    response = Response(scores, labels, kind == "probabilities", names, count)
    for which in ("scores", "labels"):
        response.steps(which)
    return response


def _budget(table: _Table) -> Budget:
    budget = Budget(
        max_queries=table.whole("max_queries", None, 0),
        price=table.number("price", 0.0) or 0.0,
        price_per_request=table.number("price_per_request", 0.0) or 0.0,
        max_cost=table.number("max_cost", None),
        currency=table.text("currency", "USD") or "USD",
    )
    if budget.max_cost is not None and not budget.cost(1):
        raise InputError("[budget] max_cost needs a price: price = 0.001 for one input, or price_per_request")
    return budget
