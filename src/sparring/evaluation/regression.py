"""Failures as tests that a project keeps: the inputs in one safetensors file, and a pytest file that reads them."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sparring.core.errors import InputError
from sparring.evaluation.reading import Audit
from sparring.evaluation.shards import write_file


def write_regression(
    audit: Audit, folder: str | Path, *, victim: str | None = None, most: int | None = None
) -> tuple[Path, Path]:
    """Write `test_known_failures.py` and `known_failures.safetensors` from the failures of an audit.

    The test asks the victim about every input that once fooled it, and passes where it reads them rightly.

    Args:
        audit: the audit; its smallest changes come first.
        folder: where both files go; made where it is not there.
        victim: the name by which the test loads the victim, such as "python:package.module:function"; None takes the
            run's own.
        most: keep at most so many failures.

    Returns:
        The pytest file and the data file.

    Raises:
        InputError: nothing failed, inputs that are no tensors, or a victim that has no name.
    """
    folder = Path(folder)
    options: dict[str, Any] = {} if victim is not None else audit.plan.victim.keywords()
    name = victim or audit.plan.victim.name
    if name is None:
        raise InputError(
            "this run's victim was given in Python and has no name that a test could load; give one: "
            'victim="python:package.module:function" (--victim on the command line)'
        )
    cases = audit.failures()[:most]
    if not cases:
        raise InputError(f"nothing failed in {str(audit.evidence.folder)!r}, so there is nothing to keep")
    pairs = [audit.evidence.pair(case.step, case.sample) for case in cases]
    if not all(isinstance(adversarial, Tensor) for _, adversarial in pairs):
        raise InputError("these inputs are no tensors; `sparring export` writes them for tests of your own")
    folder.mkdir(parents=True, exist_ok=True)
    data, test = folder / "known_failures.safetensors", folder / "test_known_failures.py"
    tensors = {
        "original": torch.stack([x for x, _ in pairs]),
        "adversarial": torch.stack([x for _, x in pairs]),
        "label": torch.tensor([case.label for case in cases]),
        "sample": torch.tensor([case.sample for case in cases]),
        "radius": torch.tensor([case.radius for case in cases], dtype=torch.float64),
    }
    write_file(data, save(tensors, metadata={"attacks": ",".join(case.attack for case in cases)}))
    write_file(test, _TEST.format(threat=_plain(str(audit.plan.threat)), name=name, options=options).encode())
    return test, data


def _plain(text: str) -> str:
    return re.sub(r'["\\\n]', " ", text)


_TEST = dedent('''\
    """Inputs that once fooled the model, within {threat}: it must read each of them rightly.

    Written by `sparring regress`; the file and its data are yours to keep and to edit.
    """

    from pathlib import Path

    import pytest

    from sparring.testing import Failure, known_failures, load_victim

    FAILURES = known_failures(Path(__file__).with_name("known_failures.safetensors"))


    @pytest.fixture(scope="module")
    def victim():
        return load_victim({name!r}, **{options!r})


    @pytest.mark.parametrize("failure", FAILURES, ids=str)
    def test_reads_what_once_fooled_it(victim, failure: Failure) -> None:
        assert failure.read_by(victim) == failure.label
    ''')
