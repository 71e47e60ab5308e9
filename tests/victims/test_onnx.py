"""ONNX files as victims: the answers of the network they came from, every kind of input, and files that must be refused."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sparring as sp
from sparring.cli import main
from sparring.core.errors import (
    CapabilityError,
    InputError,
    LoadError,
    MissingDependencyError,
    UnsafeFileError,
    VictimError,
)
from sparring.core.registry import make_attack
from sparring.data import load_digits, sample_picture
from sparring.victims import ONNXVictim, digits, onnx_files
from sparring.victims.onnx_files import read_model

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
helper, numpy_helper, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT

X, Y = load_digits("test")
NET: nn.Module = digits.load()
KINDS = {np.float32: FLOAT, np.float16: onnx.TensorProto.FLOAT16}


def digits_file(
    path: Path,
    *,
    batch: int | str = "n",
    kind: Any = np.float32,
    before: str = "",
    after: str = "",
    normalised: bool = True,
) -> Path:
    """The embedded network as an ONNX file.

    Args:
        path: where.
        batch: the first dimension, a name or a number.
        kind: of its input and weights.
        before: "uint8" for whole numbers, "hwc" for channels last.
        after: "Softmax" or "ArgMax" on top.
        normalised: whether the normalisation is inside.
    """
    weights = {name: tensor.detach().numpy().astype(kind) for name, tensor in NET.state_dict().items()}
    weights |= {
        "mean": np.asarray(digits.MEAN, kind),
        "std": np.asarray(digits.STD, kind),
        "top": np.asarray(255, kind),
    }
    shape, nodes, last = [batch, 1, 8, 8], [], "x"

    def add(op: str, *inputs: str, **attributes: Any) -> None:
        nonlocal last
        nodes.append(helper.make_node(op, [last, *inputs], [f"v{len(nodes)}"], **attributes))
        last = f"v{len(nodes) - 1}"

    if before == "uint8":
        add("Cast", to=KINDS[kind])
        add("Div", "top")
    if before == "hwc":
        shape = [batch, 8, 8, 1]
        add("Transpose", perm=[0, 3, 1, 2])
    if normalised:
        add("Sub", "mean")
        add("Div", "std")
    add("Conv", "conv1.weight", "conv1.bias", pads=[1] * 4)
    add("Relu")
    add("Conv", "conv2.weight", "conv2.bias", pads=[1] * 4, strides=[2, 2])
    add("Relu")
    add("Flatten")
    add("Gemm", "linear1.weight", "linear1.bias", transB=1)
    add("Relu")
    add("Gemm", "linear2.weight", "linear2.bias", transB=1)
    answer, width = KINDS[kind], [batch, 10]
    if after == "ArgMax":
        add("ArgMax", axis=1, keepdims=0)
        answer, width = onnx.TensorProto.INT64, [batch]
    elif after:
        add(after, axis=1)
    taken = onnx.TensorProto.UINT8 if before == "uint8" else KINDS[kind]
    used = {name for node in nodes for name in node.input}
    initial = [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used]
    return write(path, nodes, {"x": (taken, shape)}, {last: (answer, width)}, initial)


def write(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, Any]],
    outputs: dict[str, tuple[int, Any]],
    initial: list[Any] | None = None,
) -> Path:
    sides = [[helper.make_tensor_value_info(n, t, s) for n, (t, s) in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *sides, initial or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def linear_file(path: Path, weight: Any, *, outside: str = "") -> Path:
    """x @ W for rows of two; with `outside`, W lies in the file of that name."""
    tensor = numpy_helper.from_array(np.asarray(weight, np.float32), "W")
    if outside:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=outside)
    node = helper.make_node("MatMul", ["x", "W"], ["y"])
    return write(path, [node], {"x": (FLOAT, ["n", 2])}, {"y": (FLOAT, ["n", len(weight[0])])}, [tensor])


def scores_of(victim: ONNXVictim, x: Tensor) -> Tensor:
    admitted, _ = victim.admit(x, torch.zeros(len(x), dtype=torch.int64))
    answer = victim.query(admitted)
    assert answer.scores is not None
    assert torch.equal(answer.labels, answer.scores.argmax(1))
    return answer.scores


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "options", "tolerance"),
    [
        ({}, {}, 1e-5),
        ({"batch": 1}, {}, 1e-5),
        ({"batch": 4}, {}, 1e-5),
        ({"batch": 64}, {}, 1e-5),
        ({"before": "hwc"}, {}, 1e-5),
        ({"kind": np.float16}, {}, 5e-2),
        ({"normalised": False}, {"mean": digits.MEAN, "std": [digits.STD]}, 1e-5),
        ({}, {"threads": 2}, 1e-5),
    ],
)
def test_answers_are_those_of_the_network(
    tmp_path: Path, made: dict[str, Any], options: dict[str, Any], tolerance: float
) -> None:
    victim = ONNXVictim(digits_file(tmp_path / "m.onnx", **made), labels=digits.LABELS, **options)
    with torch.no_grad():
        truth = NET(X[:10])
    torch.testing.assert_close(scores_of(victim, X[:10]), truth, atol=tolerance * 10, rtol=tolerance)
    assert victim.input is not None
    assert (victim.input.size, victim.input.mode) == ((8, 8), "L")
    assert (victim.classes, victim.access, victim.name) == (10, sp.Access.SCORES, "m")
    empty = victim.query(X[:0]).scores
    assert empty is not None
    assert empty.shape == (0, 10)


def test_eight_bit_inputs_meet_the_declared_bounds(tmp_path: Path) -> None:
    path = digits_file(tmp_path / "m.onnx", before="uint8")
    x = (X[:10] * 255).round() / 255
    with torch.no_grad():
        truth = NET(x)
    torch.testing.assert_close(scores_of(ONNXVictim(path), x), truth, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(scores_of(ONNXVictim(path, bounds=(-1, 1)), 2 * x - 1), truth, atol=1e-4, rtol=1e-5)
    with pytest.raises(InputError, match="8-bit whole numbers, which mean and std would spoil"):
        ONNXVictim(path, mean=0.5, std=0.5)


def test_probabilities_and_labels(tmp_path: Path) -> None:
    with torch.no_grad():
        truth = NET(X[:10])
    soft = ONNXVictim(digits_file(tmp_path / "soft.onnx", after="Softmax"), probabilities=True)
    torch.testing.assert_close(scores_of(soft, X[:10]), truth.log_softmax(1), atol=1e-4, rtol=1e-4)
    hard = ONNXVictim(digits_file(tmp_path / "hard.onnx", after="ArgMax", batch=4))
    assert hard.access is sp.Access.LABELS
    answer = hard.query(X[:10])
    assert answer.scores is None
    assert torch.equal(answer.labels, truth.argmax(1))


def test_one_score_is_two_classes(tmp_path: Path) -> None:
    path = linear_file(tmp_path / "m.onnx", [[1.0], [0.5]])
    x = torch.tensor([[0.2, 0.6], [1.0, 0.0]])
    torch.testing.assert_close(scores_of(ONNXVictim(path), x), torch.tensor([[-0.25, 0.25], [-0.5, 0.5]]))
    told = scores_of(ONNXVictim(path, probabilities=True), x[:1])
    torch.testing.assert_close(told, torch.tensor([[0.5, 0.5]]).log())


def test_inputs_in_double_precision(tmp_path: Path) -> None:
    row = (onnx.TensorProto.DOUBLE, ["n", 3])
    victim = ONNXVictim(write(tmp_path / "m.onnx", [helper.make_node("Neg", ["a"], ["y"])], {"a": row}, {"y": row}))
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scores_of(victim, x), -x)
    assert victim.input is None


def test_the_fingerprint_is_that_of_what_decides_an_answer(tmp_path: Path) -> None:
    path = digits_file(tmp_path / "m.onnx")
    first = ONNXVictim(path).fingerprint()
    (tmp_path / "copy.onnx").write_bytes(path.read_bytes())
    assert ONNXVictim(tmp_path / "copy.onnx").fingerprint() == first
    assert ONNXVictim(path, mean=0.1, std=1.0).fingerprint() != first
    assert ONNXVictim(path, bounds=(0, 2)).fingerprint() != first
    digits_file(path, after="Softmax")
    assert ONNXVictim(path).fingerprint() != first


# -- attacks -----------------------------------------------------------------------------------------------------------


def test_attacks_that_ask_fool_it_as_they_fool_the_network(tmp_path: Path) -> None:
    victim = sp.load(digits_file(tmp_path / "m.onnx"))
    threat = sp.ThreatModel(sp.Linf(0.25), queries=60)
    result = make_attack("square")(victim, X[:6], Y[:6], threat, seed=1)
    truth = make_attack("square")(sp.Victim(NET), X[:6], Y[:6], threat, seed=1)
    assert int(result.succeeded.sum()) >= 3
    assert torch.equal(result.succeeded, truth.succeeded)
    assert torch.equal(result.queries, truth.queries)
    with torch.no_grad():
        assert torch.equal(NET(result.adversarial).argmax(1)[result.succeeded], result.final.labels[result.succeeded])


def test_attacks_that_read_it_are_refused_with_the_alternative(tmp_path: Path) -> None:
    victim = sp.load(digits_file(tmp_path / "m.onnx"))
    with pytest.raises(CapabilityError, match=r"offers scores. `sparring attacks --access scores` lists the attacks"):
        sp.PGD()(victim, X[:1], Y[:1], sp.Linf(0.1))
    with pytest.raises(CapabilityError, match=r"run and not opened.*the network that it was exported from, or attack"):
        victim.capability("trees")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digits_file(tmp_path / "model.onnx", normalised=False)
    sample_picture(3).save("photo.png")
    said = ["--model", "model.onnx", "--mean", str(digits.MEAN), "--std", str(digits.STD), "--json"]
    code = main(["attack", "photo.png", "--with", "square", "--eps", "0.3", "--queries", "100", "-o", "x.png", *said])
    told = json.loads(capsys.readouterr().out)
    assert (code, told["succeeded"], told["saved"]["still_fools"]) == (0, True, True)
    assert told["before"]["label"] == sp.classify("photo.png", "digits").label
    assert main(["classify", "x.png", *said]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == told["after"]["label"]


def test_options_of_load(tmp_path: Path) -> None:
    path = digits_file(tmp_path / "m.onnx", after="Softmax")
    (tmp_path / "names.txt").write_text("\n".join(f"digit {i}" for i in range(10)))
    victim = sp.load(path, labels=tmp_path / "names.txt", probabilities=True, name="mine", resize=9)
    assert isinstance(victim, ONNXVictim)
    assert victim.labels is not None
    assert (victim.name, victim.labels[3], victim.input.resize) == ("mine", "digit 3", 9)
    for wrong in ({"builder": digits.load}, {"device": "cuda"}):
        with pytest.raises(InputError, match=r"takes no \w+ here; .*ONNXVictim\(path, ...\)"):
            sp.load(path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="output is a function"):
        sp.load(path, output=lambda out: out)
    with pytest.raises(InputError, match=r"2 labels came for .* which has 10 classes"):
        sp.load(path, labels=["a", "b"])


# -- what must be refused ----------------------------------------------------------------------------------------------


def test_files_that_are_no_model(tmp_path: Path) -> None:
    whole = digits_file(tmp_path / "m.onnx").read_bytes()
    contents = {
        "text": b"hello",
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "zeros": bytes(100),
        "tail": whole + b"\xff" * 9,
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(LoadError, match=r"is no intact ONNX file|cannot be run by onnxruntime") as caught:
            sp.load(path)
        assert name in str(caught.value)
    with pytest.raises(LoadError, match="there is no file"):
        sp.load(tmp_path / "none.onnx")


def test_models_that_are_no_classifier_of_one_tensor(tmp_path: Path) -> None:
    path, row, integers = tmp_path / "m.onnx", (FLOAT, ["n", 3]), (onnx.TensorProto.INT64, ["n", 3])
    write(path, [helper.make_node("Add", ["a", "b"], ["y"])], {"a": row, "b": row}, {"y": row})
    with pytest.raises(LoadError, match=r"takes 2 inputs \(a tensor\(float\) \['n', 3\], b .* sparring.BlackBox"):
        ONNXVictim(path)
    write(path, [helper.make_node("Neg", ["a"], ["y"])], {"a": integers}, {"y": integers})
    with pytest.raises(LoadError, match=r"takes tensor\(int64\); float, float16, double or uint8"):
        ONNXVictim(path)
    flat = (FLOAT, ["n"])
    write(path, [helper.make_node("Neg", ["a"], ["y"])], {"a": flat}, {"y": flat})
    with pytest.raises(LoadError, match="a batch dimension comes first"):
        ONNXVictim(path)
    picture = (FLOAT, ["n", 3, 8, 8])
    write(path, [helper.make_node("Neg", ["a"], ["y"])], {"a": picture}, {"y": picture})
    with pytest.raises(LoadError, match="none of these can be class scores"):
        ONNXVictim(path)
    both = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Abs", ["a"], ["z"])]
    write(path, both, {"a": row}, {"y": row, "z": row})
    with pytest.raises(LoadError, match=r"more than one of these can be class scores.*Say which with output="):
        ONNXVictim(path)
    assert scores_of(ONNXVictim(path, output="y"), torch.tensor([[0.1, 0.2, 0.3]])).argmax() == 0
    with pytest.raises(InputError, match=r"output is 'x'; .* answers y"):
        ONNXVictim(path, output="x")
    later = onnx.load(path)
    later.opset_import[0].version = 999
    path.write_bytes(later.SerializeToString())
    with pytest.raises(LoadError, match=r"cannot be run by onnxruntime \d"):
        ONNXVictim(path, output="y")


def test_inputs_and_options_that_do_not_fit(tmp_path: Path) -> None:
    path = digits_file(tmp_path / "m.onnx")
    victim = ONNXVictim(path)
    with pytest.raises(InputError, match=r"shape \(2, 1, 9, 9\); 'm' takes \(n, 1, 8, 8\)"):
        victim.admit(torch.rand(2, 1, 9, 9), [0, 0])
    with pytest.raises(InputError, match="divide by 255"):
        victim.admit(X[:2] * 255, Y[:2])
    with pytest.raises(InputError, match="a list came"):
        victim.admit(["text"], [0])
    for wrong, told in (
        ({"threads": 0}, "threads is 0"),
        ({"providers": ["NoSuchProvider"]}, "this onnxruntime has .*CPUExecutionProvider"),
        ({"mean": 0.5}, "give both or neither"),
        ({"mean": 0.5, "std": 0.0}, "std above 0"),
        ({"bounds": (1, 0)}, "lo < hi"),
    ):
        with pytest.raises(InputError, match=told):
            ONNXVictim(path, **wrong)  # type: ignore[arg-type]


def test_a_model_that_fails_or_answers_nan(tmp_path: Path) -> None:
    row = (FLOAT, ["n", 3])
    write(tmp_path / "log.onnx", [helper.make_node("Log", ["a"], ["y"])], {"a": row}, {"y": row})
    with pytest.raises(VictimError, match="'log' answered NaN"):
        ONNXVictim(tmp_path / "log.onnx", bounds=(-1, 1)).query(-torch.ones(2, 3))
    shape = numpy_helper.from_array(np.array([2, 3]), "shape")
    node = helper.make_node("Reshape", ["a", "shape"], ["y"])
    write(tmp_path / "two.onnx", [node], {"a": row}, {"y": row}, [shape])
    victim = ONNXVictim(tmp_path / "two.onnx")
    assert len(victim.query(torch.ones(2, 3))) == 2
    with pytest.raises(VictimError, match=r"'two' raised \w+ on inputs of shape \(5, 3\)"):
        victim.query(torch.ones(5, 3))


def test_without_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = digits_file(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sparring\[onnx\]'"):
        sp.load(path)
    sample_picture(0).save(tmp_path / "p.png")
    assert main(["classify", str(tmp_path / "p.png"), "--model", str(path)]) != 0
    assert "pip install 'sparring[onnx]'" in capsys.readouterr().err


# -- weights in other files --------------------------------------------------------------------------------------------

W = [[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]]


def weights_in(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.asarray(W, np.float32).tobytes())


@pytest.mark.parametrize("location", ["m.data", "parts/m.data", "./m.data", "parts/../m.data"])
def test_weights_beside_the_model(tmp_path: Path, location: str) -> None:
    (tmp_path / "parts").mkdir()
    weights_in(tmp_path / location)
    victim = ONNXVictim(linear_file(tmp_path / "m.onnx", W, outside=location))
    x = torch.tensor([[0.25, 1.0]])
    torch.testing.assert_close(scores_of(victim, x), x @ torch.tensor(W))
    before = victim.fingerprint()
    (tmp_path / location).write_bytes(np.zeros(6, np.float32).tobytes())
    assert ONNXVictim(tmp_path / "m.onnx").fingerprint() != before


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/absolute", "link.bin", "a/../../secret.bin", "linked/secret.bin"]
)
def test_weights_outside_the_folder_are_never_read(tmp_path: Path, location: str) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret.bin"
    weights_in(secret)
    (folder / "a").mkdir(parents=True)
    os.symlink(secret, folder / "link.bin")
    os.symlink(tmp_path, folder / "linked")
    location = str(secret) if location == "/absolute" else location
    with pytest.raises(UnsafeFileError, match="outside its own folder, and no other file is read"):
        sp.load(linear_file(folder / "m.onnx", W, outside=location))


def test_the_runtime_refuses_them_as_well(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    weights_in(tmp_path / "secret.bin")
    (tmp_path / "model").mkdir()
    path = linear_file(tmp_path / "model" / "m.onnx", W, outside="../secret.bin")
    if tuple(map(int, runtime.__version__.split(".")[:2])) < (1, 24):
        pytest.skip("older versions read them; the check of ours stands alone there")
    with pytest.raises(Exception, match="escapes"):
        runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_weights_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"keeps weights in 'gone.data', which is not beside it"):
        sp.load(linear_file(tmp_path / "m.onnx", W, outside="gone.data"))
    with pytest.raises(LoadError, match="which is not beside it"):
        sp.load(linear_file(tmp_path / "m.onnx", W, outside="a\0b"))


def test_every_place_in_which_a_tensor_can_hide_is_looked_at(tmp_path: Path) -> None:
    def hidden(name: str) -> Any:
        tensor = onnx.TensorProto(name=name, dims=[1], data_type=FLOAT, data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="offset", value="0")
        tensor.external_data.add(key="location", value=name)
        return tensor

    def graph(name: str, nodes: list[Any]) -> Any:
        return helper.make_graph(nodes, name, [], [], [hidden(f"{name}.initial")])

    inner = graph("inner", [helper.make_node("Constant", [], ["c"], value=hidden("constant"))])
    condition = helper.make_node("If", ["x"], ["y"], then_branch=inner)
    outer = graph("outer", [condition])
    sparse = outer.sparse_initializer.add()
    sparse.values.CopyFrom(hidden("sparse.values"))
    sparse.indices.CopyFrom(hidden("sparse.indices"))
    function = onnx.FunctionProto(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["c"], value=hidden("function")))
    model = helper.make_model(outer, functions=[function])
    model.training_info.add().algorithm.CopyFrom(graph("training", []))
    found = set(onnx_files._locations(memoryview(model.SerializeToString()), "model", 0))
    wanted = {
        "inner.initial",
        "constant",
        "outer.initial",
        "sparse.values",
        "sparse.indices",
        "function",
        "training.initial",
    }
    assert found == wanted


@given(st.binary(max_size=60))
def test_any_bytes_are_a_model_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    with contextlib.suppress(LoadError, UnsafeFileError):
        assert read_model(path)[0] == content


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = digits_file(tmp_path / "m.onnx")
    monkeypatch.setattr(onnx_files, "LARGEST_FILE", 1000)
    with pytest.raises(LoadError, match="an ONNX file holds 1,000 at most"):
        sp.load(path)
    weights_in(tmp_path / "m.data")
    linear_file(path, W, outside="m.data")
    monkeypatch.setattr(onnx_files, "LARGEST_MODEL", path.stat().st_size + 5)
    with pytest.raises(LoadError, match="are read at most"):
        sp.load(path)
