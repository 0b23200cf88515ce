import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_nets import write_onnx
from torch import nn

from hatcli.errors import HatError, ModelFileError, UsageError
from hatcli.export import probe, session
from hatcli.export.onnx import Deployed
from hatcli.export.session import OnnxModel


def model_of(
    nodes=None, *, weights=(), opset=18, domains=(), functions=(), dtype=TensorProto.FLOAT
):
    """A model of someone else: images (1, 3, 8, 8) to scores of the same shape."""
    graph = helper.make_graph(
        nodes or [helper.make_node("Relu", ["images"], ["scores"])],
        "graph",
        [helper.make_tensor_value_info("images", dtype, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", dtype, [1, 3, 8, 8])],
        list(weights),
    )
    opsets = [helper.make_opsetid("", opset), *[helper.make_opsetid(name, 1) for name in domains]]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def add_weight(weight: TensorProto) -> onnx.ModelProto:
    return model_of([helper.make_node("Add", ["images", "w"], ["scores"])], weights=[weight])


def external(location: str, **entries) -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=1, dims=[3, 1, 1], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=str(value))
    return add_weight(weight)


def short_weight() -> onnx.ModelProto:
    return add_weight(TensorProto(name="w", data_type=1, dims=[3, 1, 1], raw_data=b"12345"))


def function(name: str, calls: str | None) -> onnx.FunctionProto:
    node = helper.make_node(calls or "Relu", ["x"], ["y"], domain="f" if calls else "")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["x"], ["y"], [node], opsets)


def function_chain(length: int) -> onnx.ModelProto:
    names = [f"f{number}" for number in range(length)]
    functions = [function(*pair) for pair in zip(names, [*names[1:], None], strict=True)]
    node = helper.make_node("f0", ["images"], ["scores"], domain="f")
    return model_of([node], domains=["f"], functions=functions)


def custom(operator: str, domain: str) -> onnx.ModelProto:
    node = helper.make_node(operator, ["images"], ["scores"], domain=domain)
    return model_of([node], domains=[domain] if domain else [])


def custom_inside_a_branch() -> onnx.ModelProto:
    def branch(operator: str, domain: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3, 8, 8])
        return helper.make_graph(
            [helper.make_node(operator, ["images"], ["out"], domain=domain)], "b", [], [out]
        )

    yes = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node(
        "If",
        ["yes"],
        ["scores"],
        then_branch=branch("MyOp", "evil.co"),
        else_branch=branch("Relu", ""),
    )
    return model_of([node], weights=[yes], domains=["evil.co"])


def cyclic() -> onnx.ModelProto:
    edges = [(["images", "b"], "a", "Add"), (["a"], "b", "Relu"), (["b"], "scores", "Relu")]
    return model_of([helper.make_node(kind, given, [out]) for given, out, kind in edges])


def bomb() -> onnx.ModelProto:
    sizes = numpy_helper.from_array(np.array([10**6, 10**6]), "sizes")
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["m"], keepdims=0),
        helper.make_node("Expand", ["m", "sizes"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["images", "sum"], ["scores"]),
    ]
    return model_of(nodes, weights=[sizes])


GOOD = model_of().SerializeToString()
CUT = [GOOD[:10], GOOD[: len(GOOD) // 2], GOOD[:-3]]

BAD_FILES = {
    "empty": (b"", "not an ONNX model: the file is empty"),
    "garbage": (bytes(range(256)) * 3, "not an ONNX model, or cut or damaged"),
    "text": (b"hello world", "not an ONNX model, or cut or damaged"),
    "cut 1": (CUT[0], "not an ONNX model, or cut or damaged"),
    "cut 2": (CUT[1], "not an ONNX model, or cut or damaged"),
    "cut 3": (CUT[2], "not an ONNX model, or cut or damaged"),
    "no graph": (
        onnx.ModelProto(ir_version=10).SerializeToString(),
        "not an ONNX model: it has no graph",
    ),
    "dotdot": (
        external("../secret.bin"),
        "external data of tensor 'w' refused: '../secret.bin' points outside the directory",
    ),
    "absolute": (external("/etc/hostname"), "external data of tensor 'w' refused: it is an abs"),
    "symlink": (external("sym.bin"), "external data of tensor 'w' refused: it is a symbolic link"),
    "hard link": (
        external("hard.bin"),
        "external data of tensor 'w' refused: it has multiple hard",
    ),
    "no data": (external("no.bin"), "external data of tensor 'w' refused: it is not regular file"),
    "no location": (external(""), "external data of tensor 'w' refused: should not be empty"),
    "short data": (external("short.bin"), "not a legal ONNX model: TensorProto (tensor name: w)"),
    "far offset": (
        external("good.bin", offset=4096, length=12),
        "external data refused: External data offset (4096) exceeds file size (12)",
    ),
    "odd entry": (external("good.bin", code="x"), "external data refused: Ignoring unknown"),
    "custom domain": (custom("MyOp", "evil.co"), "needs evil.co::MyOp, which is not a standard"),
    "custom in branch": (custom_inside_a_branch(), "needs evil.co::MyOp, which is not a standard"),
    "terminal code": (custom("MyOp", "\x1b[31m"), "needs ?[31m::MyOp, which is not a standard"),
    "unknown operator": (custom("Nope", ""), "needs Nope, which is not an operator of opset 18"),
    "opset 999": (model_of(opset=999), "opset 999 is newer than"),
    "opset to come": (model_of(opset=27), "onnxruntime refuses it: its opset is newer than 26"),
    "deep functions": (function_chain(3000), "Function call chain depth exceeds limit (100)"),
    "cyclic": (cyclic(), "not a legal ONNX model: Nodes in a graph must be topologically sorted"),
    "short weight": (short_weight(), "raw_data size (5 bytes) is too small"),
}


@pytest.fixture
def folder(tmp_path):
    """With a secret beside it, and links to that."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones(3, np.float32).tobytes())
    place = tmp_path / "models"
    place.mkdir()
    (place / "sym.bin").symlink_to(secret)
    os.link(secret, place / "hard.bin")
    (place / "short.bin").write_bytes(b"1234")
    (place / "good.bin").write_bytes(secret.read_bytes())
    return place


def saved(path: Path, content: bytes | onnx.ModelProto) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_in_one_line(content, message, folder):
    path = saved(folder / "bad.onnx", content)
    with pytest.raises(ModelFileError) as caught:
        OnnxModel(path)
    text = caught.value.message
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text
    assert len(text) < len(str(path)) + 250


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"no.onnx: not an ONNX model: there is no such file"):
        OnnxModel(tmp_path / "no.onnx")
    with pytest.raises(ModelFileError, match="not an ONNX model but a folder"):
        OnnxModel(tmp_path)


def test_a_file_of_others_runs_and_has_no_config(folder):
    onnx_model = OnnxModel(saved(folder / "relu.onnx", GOOD))
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(onnx_model(images), images.relu())
    assert onnx_model.config is None
    assert not onnx_model.argmax
    assert not onnx_model.preprocess


@pytest.mark.parametrize(
    "model", [external("good.bin"), function_chain(3)], ids=["data", "functions"]
)
def test_legal_external_data_and_functions_are_taken(model, folder):
    onnx_model = OnnxModel(saved(folder / "good.onnx", model))
    (folder / "good.bin").unlink()  # it isn't read again
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(onnx_model(images), images + (1 if model.graph.initializer else 0))


def test_a_memory_bomb_goes_off_in_another_process(folder):
    onnx_model = OnnxModel(saved(folder / "bomb.onnx", bomb()))
    with pytest.raises(ModelFileError, match="onnxruntime refuses it"):
        onnx_model(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"crashed \(SIGSEGV\) on this model; it may be"),
        ("import time; time.sleep(60)", "hasn't finished in 1 s"),
        ("print('no such thing'); raise SystemExit(1)", "onnxruntime refuses it: no such thing"),
    ],
)
def test_what_happens_to_the_other_process_is_told(script, message, folder, monkeypatch):
    monkeypatch.setattr(probe, "__file__", str(saved(folder / "probe.py", script.encode())))
    with pytest.raises(ModelFileError, match=message):
        OnnxModel(saved(folder / "relu.onnx", GOOD), timeout_s=1.0)


def test_the_other_process_has_no_more_memory_than_the_machine():
    code = (
        f"import sys; sys.path.append({str(Path(probe.__file__).parents[2])!r})\n"
        "from hatcli.export import probe; import resource\n"
        "probe._limit_memory(); print(resource.getrlimit(resource.RLIMIT_AS)[0])"
    )
    done = session.subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < int(done.stdout) <= memory


class Doubled(nn.Module):
    def forward(self, images):
        return images.float() * 2


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A file that this program wrote, with N = 2 and a size of 16x24."""
    path = tmp_path_factory.mktemp("ours") / "ours.onnx"
    write_onnx(path, Deployed(Doubled()), (2, 3, 16, 24), metadata={"hat.size_divisor": "8"})
    return path


def test_a_file_of_ours_needs_no_other_process(ours, monkeypatch):
    monkeypatch.setattr(session.subprocess, "run", lambda *_, **__: pytest.fail("started one"))
    assert OnnxModel(ours)(torch.ones(2, 3, 16, 24)).unique().item() == 2


def test_one_changed_bit_anywhere_is_noticed(ours, tmp_path):
    data = ours.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(ModelFileError) as caught:
            OnnxModel(saved(tmp_path / "flipped.onnx", bytes(flipped)))
        assert "damaged" in caught.value.message or "it has no graph" in caught.value.message


def test_a_cut_file_is_noticed_wherever_it_is_cut(ours, tmp_path):
    data = ours.read_bytes()
    for length in range(1, len(data), 29):
        with pytest.raises(ModelFileError):
            OnnxModel(saved(tmp_path / "cut.onnx", data[:length]))


def test_a_file_of_ours_that_was_read_and_saved_is_still_ours(ours, tmp_path):
    onnx.save(onnx.load(ours), tmp_path / "copy.onnx")
    assert OnnxModel(tmp_path / "copy.onnx").metadata["hat.size_divisor"] == "8"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_fixed_batch_takes_any_number_of_images(count, ours):
    images = torch.rand(count, 3, 16, 24).to(memory_format=torch.channels_last)
    assert torch.equal(OnnxModel(ours)(images), images * 2)


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (torch.ones(2, 3, 16, 32), r"float32 \(2, 3, 16, 32\)"),
        (torch.ones(2, 1, 16, 24), r"float32 \(2, 1, 16, 24\)"),
        (torch.ones(3, 16, 24), r"float32 \(3, 16, 24\)"),
        (torch.ones(2, 3, 16, 24).byte(), r"uint8 \(2, 3, 16, 24\)"),
        (torch.ones(2, 3, 16, 24).double(), r"float64 \(2, 3, 16, 24\)"),
    ],
)
def test_images_that_do_not_fit_are_told_what_is_expected(images, given, ours):
    message = rf"input 'images' expects float32 \(2, 3, 16, 24\), given {given}$"
    with pytest.raises(UsageError, match=message):
        OnnxModel(ours)(images)


def test_open_sizes_are_held_to_their_multiples(tmp_path):
    path = tmp_path / "open.onnx"
    write_onnx(path, Deployed(Doubled()), dynamic="both", metadata={"hat.size_divisor": "4"})
    with pytest.raises(UsageError, match="multiples of 4, given 10x24"):
        OnnxModel(path)(torch.ones(1, 3, 10, 24))


def two_inputs() -> onnx.ModelProto:
    model = model_of([helper.make_node("Add", ["images", "mask"], ["scores"])])
    model.graph.input.append(helper.make_tensor_value_info("mask", 1, [1]))
    return model


def two_outputs() -> onnx.ModelProto:
    model = model_of()
    model.graph.output.append(helper.make_tensor_value_info("images", 1, [1, 3, 8, 8]))
    return model


def vector_input() -> onnx.ModelProto:
    model = model_of()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.CopyFrom(helper.make_tensor_value_info(value.name, 1, [10]))
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (two_inputs(), r"expected one input, it has 2 \(images, mask\)"),
        (two_outputs(), r"expected one output, it has 2 \(scores, images\)"),
        (vector_input(), r"input 'images' is float \(10\); expected images, float32 or uint8"),
        (model_of(dtype=TensorProto.DOUBLE), r"input 'images' is double \(1, 3, 8, 8\); expected"),
    ],
)
def test_another_interface_is_a_wrong_argument(model, message, folder):
    with pytest.raises(UsageError, match=message) as caught:
        OnnxModel(saved(folder / "other.onnx", model))
    assert isinstance(caught.value, HatError)
    assert caught.value.exit_code == 2
