"""A model in an ONNX file as a victim, run by onnxruntime: it can be asked for scores or labels and has no gradients."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.door import admit_tensor, as_pair, coerce_scores, finite_scores
from sparring.core.errors import CapabilityError, InputError, LoadError, MissingDependencyError, VictimError
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom
from sparring.core.space import Bounds
from sparring.core.threat import Access
from sparring.core.victim import BaseVictim, Traits
from sparring.victims.onnx_files import read_model
from sparring.victims.spec import InputSpec

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
_WHOLE = {"tensor(int64)", "tensor(int32)"}
_CPU = ("CPUExecutionProvider",)


class ONNXVictim(BaseVictim):
    """A classifier in an ONNX file. It answers scores, or labels where its output is whole numbers.

    Pictures are (n, c, h, w) here; a model that takes (n, h, w, c), with 1 or 3 channels last in its file, gets them
    turned. A model of 8-bit whole numbers gets round(255 (x - lo) / (hi - lo)). Where its file fixes the batch, inputs are
    sent in such batches, the last one filled up with copies.

    Args:
        path: the .onnx file. Weights in other files must lie in its folder.
        bounds: (lo, hi) of the raw input.
        mean, std: per-channel normalisation applied to raw inputs before the model; None for none.
        labels: class names.
        output: the name of the output to read; None takes the only one that can be scores, else labels.
        probabilities: the model ends in a softmax or sigmoid; scores become log-probabilities.
        threads: of one forward.
        providers: where onnxruntime runs, the first that works.
        name: what messages and reports call it; None takes the file's.

    Raises:
        LoadError: no such file, a damaged one, or a model that is no classifier of one tensor.
        UnsafeFileError: it refers to a file outside its folder.
        MissingDependencyError: onnxruntime is missing.
        InputError: an option that cannot be right.

    Attributes:
        input: an `InputSpec` where the file fixes the size of a picture, else None.
    """

    domain = "tensor"

    def __init__(  # noqa: PLR0913 (what a network's victim takes, and where it runs)
        self,
        path: str | Path,
        *,
        bounds: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        labels: Sequence[str] | None = None,
        output: str | None = None,
        probabilities: bool = False,
        threads: int = 1,
        providers: Sequence[str] = _CPU,
        name: str | None = None,
    ) -> None:
        path = Path(path).expanduser()
        super().__init__(labels=labels, name=name or path.stem, traits=Traits(differentiable=False))
        runtime = _runtime()
        self.path, self.probabilities = path, probabilities
        self.bounds: Bounds = Bounds.of(bounds)
        data, beside = read_model(path)
        self.session = _session(runtime, path, threads, providers)
        self._feed, self._type, self._shape = self._only_input()
        self.output, self.access = self._chosen_output(output)
        shape, rank = self._shape[1:], len(self._shape)
        self._channels_last = rank == 4 and shape[2] in (1, 3) and shape[0] not in (1, 3)
        if self._channels_last:
            shape = (shape[2], shape[0], shape[1])
        self.mean, self.std = _normalisation(mean, std)
        if self._type is np.uint8 and self.mean is not None:
            raise InputError(f"{str(path)!r} takes 8-bit whole numbers, which mean and std would spoil; leave them out")
        self._taken = shape
        self.input: Any = None
        if rank == 4 and isinstance(shape[1], int) and isinstance(shape[2], int):
            size = (shape[1], shape[2])
            self.input = InputSpec(size=size, resize=size[0] if size[0] == size[1] else size, mode=self._mode())
        self._digest = _digest(data, beside)

    def query(self, x: Batch, noise: KeyedRandom | None = None) -> Prediction:
        """The model's scores, or its labels where it answers whole numbers.

        Raises:
            VictimError: the model failed, or answered another shape or NaN.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"{self.name!r} takes a float tensor (n, ...); a {type(x).__name__} came")
        n = len(x)
        answer = self._run(self._prepared(x)) if n else np.zeros((0, self.classes or 0), np.float32)
        if self.access is Access.LABELS:
            labels = torch.as_tensor(answer.ravel(), dtype=torch.int64)
            if len(labels) != n or (self.classes is not None and n and int(labels.max()) >= self.classes):
                raise VictimError(f"{self.name!r} answered labels {tuple(answer.shape)} to {n} inputs, or unknown ones")
            return Prediction(labels)
        scores = coerce_scores(torch.as_tensor(answer), n, self.name).float()
        if bool(torch.isnan(scores).any()):
            raise VictimError(f"{self.name!r} answered NaN to some of {n} inputs")
        if self.probabilities:
            scores = torch.cat([1 - scores, scores], 1) if scores.shape[1] == 1 else scores
            return Prediction.of(scores.clamp(min=torch.finfo(scores.dtype).tiny).log())
        return Prediction.of(as_pair(finite_scores(scores)))

    def admit(self, x: Batch, y: Any) -> tuple[Batch, Tensor]:
        """A tensor that is finite, inside the bounds and of the model's shape; labels by number or name.

        Raises:
            InputError: what came, what was needed, and what to do.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"{self.name!r} takes a float tensor (n, ...); a {type(x).__name__} came")
        x = admit_tensor(x, self.bounds, self.name).detach().cpu()
        fits = x.ndim == len(self._taken) + 1 and all(
            not isinstance(want, int) or want == have for want, have in zip(self._taken, x.shape[1:], strict=True)
        )
        if not fits:
            raise InputError(f"inputs have shape {tuple(x.shape)}; {self.name!r} takes {self._shape_text()}")
        return x, self._admit_labels(y, len(x))

    def capability(self, name: str) -> Any:
        """None: an ONNX file is run, not opened.

        Raises:
            CapabilityError: always, with the alternative.
        """
        raise CapabilityError(
            f"{self.name!r} is an ONNX file, which is run and not opened: it has no {name.replace('_', ' ')} to offer. Give "
            "the network that it was exported from, or attack by scores or labels"
        )

    def fingerprint(self) -> str:
        """SHA-256 over the model's files, its normalisation, bounds, output and class names."""
        extra = (self.mean, self.std, repr(self.bounds), self.output, self.probabilities, self.labels)
        return hashlib.sha256(f"ONNXVictim:{self._digest}:{extra!r}".encode()).hexdigest()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _only_input(self) -> tuple[str, Any, tuple[Any, ...]]:
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            named = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise LoadError(
                f"{str(self.path)!r} takes {len(inputs)} inputs ({named}); one is attacked here. Export it with the others "
                "as constants, or wrap a session of your own in sparring.BlackBox"
            )
        (only,) = inputs
        if only.type not in _TYPES:
            raise LoadError(f"{str(self.path)!r} takes {only.type}; float, float16, double or uint8 are needed")
        if len(only.shape) < 2:
            raise LoadError(f"{str(self.path)!r} takes the shape {only.shape}; a batch dimension comes first: (n, ...)")
        return only.name, _TYPES[only.type], tuple(only.shape)

    def _chosen_output(self, wanted: str | None) -> tuple[str, Access]:
        outputs = {o.name: o for o in self.session.get_outputs()}
        listed = ", ".join(f"{o.name} {o.type} {o.shape}" for o in outputs.values())
        scores = [o.name for o in outputs.values() if o.type in _TYPES and len(o.shape) in (0, 1, 2)]
        labels = [o.name for o in outputs.values() if o.type in _WHOLE]
        if wanted is None:
            found = scores or labels
            if len(found) != 1:
                raise LoadError(
                    f"{str(self.path)!r} answers {listed}; {'none' if not found else 'more than one'} of these can be class "
                    "scores (n, k) or labels (n,). Say which with output=; scikit-learn's need the option zipmap=False"
                )
            wanted = found[0]
        elif wanted not in outputs:
            raise InputError(f"output is {wanted!r}; {str(self.path)!r} answers {listed}")
        if wanted not in (*scores, *labels):
            raise InputError(
                f"output is {wanted!r}, a {outputs[wanted].type} of {outputs[wanted].shape}; scores (n, k) are needed"
            )
        if wanted in labels:
            return wanted, Access.LABELS
        told = outputs[wanted].shape
        if len(told) == 2 and isinstance(told[1], int) and told[1] > 0:
            known, self.classes = self.classes, max(2, told[1])
            if known not in (None, self.classes):
                raise InputError(f"{known} labels came for {str(self.path)!r}, which has {self.classes} classes")
        return wanted, Access.SCORES

    def _prepared(self, x: Tensor) -> Any:
        """Raw inputs as the model takes them."""
        x = x.detach().cpu()
        if self.mean is not None and self.std is not None:
            shape = (1, -1, *([1] * (x.ndim - 2)))
            x = (x - torch.tensor(self.mean).to(x).reshape(shape)) / torch.tensor(self.std).to(x).reshape(shape)
        elif self._type is np.uint8:
            box = self.bounds.like(x)
            x = ((x - box.lo) / (box.hi - box.lo) * 255).round().clamp(0, 255)
        if self._channels_last:
            x = x.permute(0, 2, 3, 1)
        return np.ascontiguousarray(x.numpy()).astype(self._type)

    def _run(self, rows: Any) -> Any:
        fixed = self._shape[0] if isinstance(self._shape[0], int) and self._shape[0] > 0 else None
        with self._failures(rows.shape):
            if fixed is None:
                return np.asarray(self.session.run([self.output], {self._feed: rows})[0])
            parts = []
            for start in range(0, len(rows), fixed):
                part = rows[start : start + fixed]
                full = np.concatenate([part, np.repeat(part[-1:], fixed - len(part), axis=0)])
                answer = np.asarray(self.session.run([self.output], {self._feed: full})[0])
                if len(answer) != fixed:
                    raise VictimError(f"it answered {len(answer)} rows to a batch of {fixed}")
                parts.append(answer[: len(part)])
            return np.concatenate(parts)

    @contextmanager
    def _failures(self, shape: tuple[int, ...]) -> Iterator[None]:
        try:
            yield
        except Exception as cause:  # onnxruntime raises a dozen kinds that share no base
            told = " ".join(str(cause).split())[:300]
            raise VictimError(
                f"{self.name!r} raised {type(cause).__name__} on inputs of shape {shape}: {told}"
            ) from cause

    def _mode(self) -> str:
        channels = self._taken[0] if isinstance(self._taken[0], int) else len(self.mean or (0, 0, 0))
        return "L" if channels == 1 else "RGB"

    def _shape_text(self) -> str:
        return "(n, " + ", ".join(str(s) if isinstance(s, int) else "any" for s in self._taken) + ")"


def _runtime() -> ModuleType:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as cause:
        raise MissingDependencyError.extra("onnxruntime", "onnx", "an ONNX model", cause) from cause


def _session(runtime: ModuleType, path: Path, threads: int, providers: Sequence[str]) -> Any:
    """A session on the CPU or elsewhere, which keeps its notes to itself."""
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InputError(f"threads is {threads!r}; a whole number >= 1 is needed")
    there = runtime.get_available_providers()
    if isinstance(providers, str) or not providers or not set(providers) & set(there):
        raise InputError(f"providers are {providers!r}; this onnxruntime has {', '.join(there)}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what matters raises
    usable = [provider for provider in providers if provider in there]
    try:
        return runtime.InferenceSession(str(path), options, providers=usable)
    except Exception as cause:  # onnxruntime raises a dozen kinds that share no base
        told = re.sub(r"\[ONNXRuntimeError\] : \d+ : ", "", " ".join(str(cause).split()))[:300]
        raise LoadError(f"{str(path)!r} cannot be run by onnxruntime {runtime.__version__}: {told}") from cause


def _normalisation(mean: Any, std: Any) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise InputError("mean and std come together; give both or neither")
    try:
        found = [tuple(float(v) for v in ([one] if isinstance(one, (int, float)) else one)) for one in (mean, std)]
    except (TypeError, ValueError) as cause:
        raise InputError(f"mean and std are one number per channel; got {mean!r} and {std!r}") from cause
    if not all(found) or min(found[1]) <= 0:
        raise InputError(f"mean and std are one number per channel, std above 0; got {mean!r} and {std!r}")
    return found[0], found[1]


def _digest(data: bytes, beside: list[Path]) -> str:
    """A hash of a model's file and of the files that hold its weights."""
    sha = hashlib.sha256(data)
    for file in beside:
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()
