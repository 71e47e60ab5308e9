"""A service that answers over HTTP as a victim: JSON in and out, every answer kept, nothing paid for twice."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.door import admit_tensor, finite_scores
from sparring.core.errors import BudgetError, InputError, VictimError
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom
from sparring.core.space import Bounds
from sparring.core.threat import Access
from sparring.core.victim import BaseVictim, Traits
from sparring.victims.answer_log import AnswerLog, Spending
from sparring.victims.http_json import ALL, ONE, Answer, fill, read_answer
from sparring.victims.http_mapping import HTTPMapping, read_mapping
from sparring.victims.http_wire import Wire
from sparring.victims.spec import InputSpec

# What stands for log(0) where a service answers that a class is impossible.
_LEAST_LOG = -100.0


class HTTPVictim(BaseVictim):
    """A classifier behind an address, which answers JSON and may cost money.

    Every answer is on the disk, in the log, before an attack sees it, under a hash of the input as the service saw it.
    What is in the log is not asked again: not by a run that goes on where another stopped, not by the final re-check. A
    service that answers the same input differently each time is so asked once for each input.

    Probabilities become scores by their logarithm, with log(0) as -100; a service that gives labels alone is attacked
    by labels. Encodings with `levels` (PNG has 256) round an input to the nearest level before it is sent: attack on the
    same grid, `sparring.Linf(eps, lattice=256)`, so that what was found is what was sent.

    Args:
        mapping: the path of a TOML file, its content as a dict, or an `HTTPMapping` (docs/remote-victims.md).
        log: the file of answers; None takes the mapping's, and without one they are kept in memory alone.
        name: what messages and reports call it; None takes the mapping's.

    Raises:
        LoadError: a mapping or log that cannot be read, or a log of another service.
        InputError, UnknownNameError: a mapping that cannot be right.

    Attributes:
        input: an `InputSpec` where the mapping gives the shape of a picture, else None.
    """

    def __init__(
        self,
        mapping: HTTPMapping | Mapping[str, Any] | str | Path,
        *,
        log: str | Path | None = None,
        name: str | None = None,
    ) -> None:
        self.mapping = told = read_mapping(mapping)
        super().__init__(
            labels=told.response.classes,
            name=name or told.name or "service",
            traits=Traits(differentiable=False, costly=True),
        )
        self.classes = told.response.count
        self.access = Access.LABELS if told.response.scores is None else Access.SCORES
        self.domain = "text" if told.inputs.encoding == "text" else "tensor"
        self.bounds = None if told.inputs.bounds is None else Bounds.of(told.inputs.bounds)
        shape = told.inputs.shape or ()
        self.input: Any = None
        if len(shape) == 3 and shape[0] in (1, 3):
            size = (shape[1], shape[2])
            resize = size[0] if size[0] == size[1] else size
            self.input = InputSpec(size=size, resize=resize, mode="L" if shape[0] == 1 else "RGB")
        self._wire = Wire(told.service, self.name)
        self._service = told.fingerprint(self._wire.address)
        path = told.log if log is None else Path(log).expanduser()
        self.log = AnswerLog(path, self._service, told.described(self._wire.address))

    @property
    def spent(self) -> Spending:
        """Requests, inputs and cost in all the runs that shared the log; requests whose fate is unknown count."""
        return self.log.spent

    def query(self, x: Batch, noise: KeyedRandom | None = None) -> Prediction:
        """The service's answers, from the log where it has them.

        Raises:
            BudgetError: the next request would go past `max_queries` or `max_cost`. What was answered is in the log.
            VictimError: no answer after every retry, or one that does not say what the mapping promises.
        """
        numbers = self._numbers(x)
        keys = [_key(one) for one in numbers]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        answers = self.log.known(list(first))
        fresh = sorted((i for key, i in first.items() if key not in answers))
        if fresh:
            size = self.mapping.request.batch
            groups = [fresh[start : start + size] for start in range(0, len(fresh), size)]
            answers |= self._ask(groups, keys, numbers)
        return self._prediction([answers[key] for key in keys])

    def admit(self, x: Batch, y: Any) -> tuple[Batch, Tensor]:
        """Texts as a list of str, or a tensor of the mapping's shape inside its bounds; labels by number or name.

        Raises:
            InputError: another kind of input or shape, NaN, or values outside the bounds.
        """
        if self.domain == "text":
            if isinstance(x, (str, Tensor)) or not all(isinstance(text, str) for text in x):
                hint = ". For one text: [text]" if isinstance(x, str) else ""
                raise InputError(
                    f"{self.name!r} reads texts: a list of str is needed, and a {type(x).__name__} came{hint}"
                )
            return list(x), self._admit_labels(y, len(x))
        if not isinstance(x, Tensor):
            raise InputError(f"{self.name!r} takes a float tensor (n, ...); a {type(x).__name__} came")
        x = admit_tensor(x, self.bounds, self.name).detach().cpu()
        shape = self.mapping.inputs.shape
        if shape is not None and x.shape[1:] != shape:
            raise InputError(
                f"inputs have shape {tuple(x.shape)}; {self.name!r} takes (n, {', '.join(map(str, shape))})"
            )
        if self.mapping.inputs.encoding == "png" and (x.ndim != 4 or x.shape[1] not in (1, 3)):
            raise InputError(f"inputs have shape {tuple(x.shape)}; a PNG needs (n, 1, h, w) or (n, 3, h, w)")
        return x, self._admit_labels(y, len(x))

    def fingerprint(self) -> str:
        """SHA-256 over the mapping, as far as it decides an answer. Whether the service changed, nobody can tell."""
        return hashlib.sha256(f"HTTPVictim:{self._service}".encode()).hexdigest()

    def close(self) -> None:
        """Close the connections and the log, which is otherwise done when the victim is no longer used."""
        self._wire.close()
        self.log.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _numbers(self, x: Batch) -> list[Any]:
        """Each input as the service will see it: a text, or an array in the order in which it is sent."""
        if not isinstance(x, Tensor):
            return list(x)
        spec = self.mapping.inputs
        values = x.detach().cpu().double()
        if spec.levels is not None and self.bounds is not None:
            lo, hi = float(self.bounds.lo), float(self.bounds.hi)
            values = ((values - lo) / (hi - lo) * (spec.levels - 1)).round().clamp(0, spec.levels - 1)
        if spec.layout == "hwc":
            values = values.permute(0, 2, 3, 1)
        array = values.numpy() + 0.0  # -0.0 and 0.0 are one input
        return list(array if spec.levels is None else array.astype(np.int64))

    def _ask(self, groups: list[list[int]], keys: list[str], numbers: list[Any]) -> dict[str, Answer]:
        """The answers to new inputs, a request for each group; what was answered is kept, whatever becomes of the rest."""

        def one(group: list[int]) -> dict[str, Answer]:
            return self._ask_group([keys[i] for i in group], [numbers[i] for i in group])

        found: dict[str, Answer] = {}
        workers = min(self.mapping.service.concurrency, len(groups))
        if workers == 1:
            for group in groups:
                found |= one(group)
            return found
        with ThreadPoolExecutor(workers, thread_name_prefix="sparring-http") as pool:
            asked = [pool.submit(one, group) for group in groups]
            try:
                for answer in asked:
                    found |= answer.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return found

    def _ask_group(self, keys: list[str], inputs: list[Any]) -> dict[str, Answer]:
        request, n = self.mapping.request, len(inputs)
        coded = [_coded(one, self.mapping.inputs.encoding) for one in inputs]
        if request.single:
            body = fill(request.body, ONE, coded[0])
        else:
            body = fill(request.body, ALL, [fill(request.item, ONE, one) for one in coded])
        sent = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        ticket, data = self._wire.exchange(
            sent,
            hashlib.sha256("".join(keys).encode()).hexdigest(),
            lambda: self.log.open(n, self.mapping.budget),
            self.log.refused,
        )
        with self._lies(data, n):
            read = read_answer(data, n, self.mapping.response, single=request.single, classes=self.classes)
            widths = {len(answer.scores) for answer in read if answer.scores is not None}
            if len(widths) > 1:
                raise VictimError(f"rows hold {' and '.join(map(str, sorted(widths)))} scores; one per class is needed")
        answers = dict(zip(keys, read, strict=True))
        self.log.answered(ticket, answers)
        return answers

    @contextmanager
    def _lies(self, data: bytes, n: int) -> Iterator[None]:
        """What is wrong with an answer, with its beginning and without what is secret."""
        try:
            yield
        except VictimError as wrong:
            if isinstance(wrong, BudgetError):
                raise
            start = " ".join(self._wire.hidden(data[:2000].decode("utf-8", "replace")).split())[:120]
            raise VictimError(
                f"{self.name!r} answered {n} inputs with something that the mapping's [response] does not describe: "
                f"{self._wire.hidden(str(wrong))}. The answer begins {start!r}"
            ) from None

    def _prediction(self, answers: list[Answer]) -> Prediction:
        told = self.mapping.response
        labels = [answer.label for answer in answers]
        if self.access is Access.LABELS:
            return Prediction(torch.tensor(labels, dtype=torch.int64))
        width = len(answers[0].scores or ()) if answers else self.classes or 0
        if answers and self.classes is None:
            self.classes = width
        if any(len(answer.scores or ()) != width for answer in answers) or (answers and width != self.classes):
            raise VictimError(f"{self.name!r} answered with different numbers of scores; give [response] classes")
        scores = torch.tensor([answer.scores for answer in answers], dtype=torch.float64).reshape(len(answers), width)
        if told.probabilities:
            scores = scores.clamp(min=0).log().clamp(min=_LEAST_LOG)
        by_score = Prediction.of(finite_scores(scores.float()))
        given = torch.tensor([-1 if label is None else label for label in labels], dtype=torch.int64)
        return Prediction(torch.where(given < 0, by_score.labels, given), by_score.scores)


def _key(one: Any) -> str:
    """A hash of an input as the service sees it: not of the PNG, which a new version of its library may write anew."""
    if isinstance(one, str):
        return hashlib.sha256(b"text:" + one.encode("utf-8", "surrogatepass")).hexdigest()
    head = f"{one.dtype.str} {one.shape}:".encode()
    return hashlib.sha256(head + np.ascontiguousarray(one).tobytes()).hexdigest()


def _coded(one: Any, encoding: str) -> Any:
    """An input as JSON."""
    if encoding == "text":
        return one
    if encoding == "png":
        pixels = one.astype(np.uint8)
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return base64.b64encode(stream.getvalue()).decode()
    return one.ravel().tolist() if encoding == "row" else one.tolist()
