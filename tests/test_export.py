import copy
import functools
import json
import logging
from pathlib import Path

import onnx
import pytest
import torch
from tiny_nets import DIVISOR, Halve, batches_for, randomize_norms, tiny_net, write_onnx
from torch import nn

from hatcli.data.transforms import BATCH_TRANSFORMS
from hatcli.errors import CheckFailed, ConfigError, HatError, UsageError
from hatcli.export.check import check_onnx, program_values, random_images
from hatcli.export.metadata import append_metadata, is_sealed, read_metadata, seal
from hatcli.export.onnx import Deployed, OnnxExport, export_onnx, second_shape, weights_sha256
from hatcli.export.session import OnnxModel
from hatcli.models import MODELS

SHAPE = (1, 3, 16, 24)


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@functools.cache
def exported_once(argmax: bool = False) -> tuple[Deployed, OnnxExport]:
    deployed = Deployed(tiny_net(), argmax=argmax)
    return deployed, export_onnx(deployed, SHAPE)


def with_weight(model: onnx.ModelProto, name: str, change) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    return changed


def rounding(net: nn.Module, images: torch.Tensor) -> float:
    """How far float32 is from float64 in torch itself, as a share of the largest score."""
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(images.double())
        return float((net(images) - exact).abs().max() / exact.abs().max())


LARGER = ("resnet50", "tiny_vargnetv2", *(f"efficientnet_lite{number}" for number in range(1, 5)))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGER else ())  # one a family is not
        for name in MODELS.names()
    ],
)
def test_every_shipped_model_computes_the_same_in_onnxruntime(name, tmp_path):
    torch.manual_seed(0)
    net = MODELS.build({"type": name})
    randomize_norms(net)
    net = net.keep_head(net.strides[0]) if hasattr(net, "keep_head") else net
    deployed = Deployed(net.eval())
    divisor = getattr(net, "size_divisor", 32)
    shape = (1, 3, 2 * divisor, 3 * divisor) if divisor > 32 else (1, 3, 64, 64)
    exported = export_onnx(deployed, shape, dynamic="batch", size_divisor=divisor)
    path = write(tmp_path / "model.onnx", exported.model)
    batches = batches_for(deployed, [shape, (2, *shape[1:])])
    results = check_onnx(path, deployed.scores, batches)
    assert [result.shape[0] for result in results] == [1, 2]
    allowed = max(2e-5, 3 * rounding(net, batches[1]))
    assert max(result.relative for result in results) < allowed
    assert "BatchNormalization" not in {node.op_type for node in exported.model.graph.node}


def test_weights_keep_their_names_and_nodes_have_those_of_their_modules():
    graph = exported_once()[1].model.graph
    parameters = {
        f"{layer}.{kind}" for layer in ("stem.0", "down", "head") for kind in ("weight", "bias")
    }
    names = {tensor.name for tensor in graph.initializer}
    assert parameters <= names
    assert len(names - parameters) == 1  # the factors of the upsampling
    assert [node.name for node in graph.node] == [
        "stem.0/Conv",
        "stem.2/Relu",
        "down/Conv",
        "up/Resize",
        "Add",
        "head/Conv",
    ]


def test_nothing_of_this_machine_is_in_a_file():
    data = exported_once()[1].model.SerializeToString()
    assert str(Path(__file__).parent).encode() not in data
    assert str(Path(torch.__file__).parent).encode() not in data
    assert b".py" not in data


def test_an_export_prints_nothing_and_is_the_same_every_time(capfd):
    again = export_onnx(Deployed(tiny_net()), SHAPE)
    assert again.model.SerializeToString() == exported_once()[1].model.SerializeToString()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("dynamic", "given", "taken"),
    [
        ("none", [1, 3, 16, 24], [(5, 3, 16, 24)]),
        ("batch", ["batch", 3, 16, 24], [(1, 3, 16, 24), (5, 3, 16, 24)]),
        ("size", [1, 3, "4*h", "4*w"], [(1, 3, 4, 4), (3, 3, 40, 12)]),
        ("both", ["batch", 3, "4*h", "4*w"], [(1, 3, 4, 20), (3, 3, 40, 12)]),
    ],
)
def test_open_sizes_take_every_legal_shape(dynamic, given, taken, tmp_path):
    net = tiny_net()
    exported = write_onnx(tmp_path / "net.onnx", Deployed(net), SHAPE, dynamic=dynamic)
    onnx_model = OnnxModel(tmp_path / "net.onnx")
    assert list(onnx_model.input_shape) == given
    sizes = [
        size.dim_param or size.dim_value
        for size in exported.model.graph.output[0].type.tensor_type.shape.dim
    ]
    assert sizes[0] == given[0]
    assert sizes[2:] == ([8, 12] if dynamic in ("none", "batch") else ["2*h", "2*w"])
    for shape in taken:
        images = torch.rand(shape)
        torch.testing.assert_close(onnx_model(images), net(images), rtol=0, atol=1e-5)


def test_preprocessing_inside_gives_what_preprocessing_outside_gives(tmp_path):
    net, images = tiny_net(), random_images((2, 3, 16, 24), seed=3)
    write_onnx(tmp_path / "in.onnx", Deployed(net, Halve()), SHAPE)
    write_onnx(tmp_path / "out.onnx", Deployed(net), SHAPE)
    inside, outside = OnnxModel(tmp_path / "in.onnx"), OnnxModel(tmp_path / "out.onnx")
    assert (inside.preprocess, outside.preprocess) == (True, False)
    torch.testing.assert_close(inside(images), outside(Halve()(images)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "transform",
    [
        {"type": "RgbToYuv444"},
        {"type": "Normalize", "mean": [124.0, 116.0, 104.0], "std": [58.0, 57.0, 57.5]},
    ],
    ids=lambda node: node["type"],
)
def test_a_shipped_batch_transform_can_be_inside_and_its_differences_are_traced(
    transform, tmp_path
):
    deployed = Deployed(tiny_net(), nn.Sequential(BATCH_TRANSFORMS.build(transform)))
    exported = export_onnx(deployed, SHAPE)
    batches, values = [random_images(SHAPE, seed=4)], program_values(exported.program)
    path = write(tmp_path / "net.onnx", exported.model)
    assert check_onnx(path, deployed.scores, batches, values=values)
    write(path, with_weight(exported.model, "down.bias", lambda array: array.fill(1.0)))
    with pytest.raises(CheckFailed, match=r"first at node down/Conv$"):
        check_onnx(path, deployed.scores, batches, values=values)


def test_labels_are_the_argmax_of_the_scores(tmp_path):
    net, images = tiny_net(), Halve()(random_images(SHAPE, seed=3))
    write_onnx(tmp_path / "labels.onnx", Deployed(net, argmax=True), SHAPE)
    onnx_model = OnnxModel(tmp_path / "labels.onnx")
    labels = onnx_model(images)
    assert onnx_model.argmax
    assert (labels.shape, labels.dtype) == ((1, 1, 8, 12), torch.int64)
    assert torch.equal(labels, net(images).argmax(1, keepdim=True))
    assert len(labels.unique()) > 1


def test_metadata_survives_and_the_seal_covers_it(tmp_path):
    path = tmp_path / "net.onnx"
    exported = write_onnx(path, Deployed(tiny_net()), metadata={"hat.step": "float"})
    metadata = read_metadata(onnx.load(path))
    assert metadata["hat.step"] == "float"
    assert metadata["hat.weights_sha256"] == weights_sha256(exported.model)
    assert is_sealed(path.read_bytes())
    append_metadata(path, {"hat.more": json.dumps([1])})
    assert read_metadata(onnx.load(path))["hat.more"] == "[1]"
    assert not is_sealed(path.read_bytes())
    seal(path)
    assert is_sealed(path.read_bytes())


def test_the_checksum_of_weights_tells_weights_apart():
    model = exported_once()[1].model
    other = with_weight(model, "head.bias", lambda bias: bias.__iadd__(1))
    assert weights_sha256(model) == weights_sha256(exported_once(argmax=True)[1].model)
    assert weights_sha256(model) != weights_sha256(other)


@pytest.mark.parametrize("argmax", [False, True])
@pytest.mark.parametrize(
    ("weight", "node"),
    [("stem.0.weight", "stem.0/Conv"), ("down.bias", "down/Conv"), ("head.bias", "head/Conv")],
)
def test_a_planted_difference_is_found_and_named(weight, node, argmax, tmp_path):
    deployed, exported = exported_once(argmax)
    changed = with_weight(exported.model, weight, lambda array: array.flat.__setitem__(0, 1.0))
    path = write(tmp_path / "net.onnx", changed)
    values = program_values(exported.program)
    with pytest.raises(CheckFailed, match=f"differs from torch by .* first at node {node}$"):
        check_onnx(path, deployed.scores, batches_for(deployed, [SHAPE]), values=values)


def test_a_difference_at_another_size_is_traced_too(tmp_path):
    deployed = Deployed(tiny_net(), Halve())
    exported = export_onnx(deployed, SHAPE, dynamic="both", size_divisor=DIVISOR)
    changed = with_weight(exported.model, "down.bias", lambda array: array.fill(1.0))
    path, values = write(tmp_path / "net.onnx", changed), program_values(exported.program)
    with pytest.raises(CheckFailed, match=r"images of 3x3x8x40, first at node down/Conv$"):
        check_onnx(path, deployed.scores, batches_for(deployed, [(3, 3, 8, 40)]), values=values)


class OddNames(nn.Module):
    """Parameters named as torch names the values of a graph."""

    def __init__(self):
        super().__init__()
        self.images, self.mul = (nn.Parameter(torch.full((3, 1, 1), n)) for n in (2.0, 3.0))

    def forward(self, x):
        return (x * self.images) * self.mul


def test_a_parameter_may_have_any_name(tmp_path):
    deployed = Deployed(OddNames())
    path = write(tmp_path / "odd.onnx", export_onnx(deployed, (1, 3, 4, 4)).model)
    assert check_onnx(path, deployed.scores, [torch.rand(1, 3, 4, 4)])


def test_an_unchanged_file_passes_and_the_figures_are_those_of_the_arrays(tmp_path):
    deployed, exported = exported_once()
    path, images = write(tmp_path / "net.onnx", exported.model), batches_for(deployed, [SHAPE])[0]
    result = check_onnx(path, lambda images: deployed(images) + 1, [images], tolerance=2.0)[0]
    expected = deployed(images).detach() + 1
    assert result.shape == SHAPE
    assert result.largest == pytest.approx(1, abs=1e-5)
    assert result.relative == pytest.approx(1 / expected.abs().max().item(), rel=1e-4)
    assert result.same_class == 1


def test_no_tolerance_is_too_small_to_be_explained(tmp_path):
    deployed, exported = exported_once()
    path = write(tmp_path / "net.onnx", exported.model)
    values, batches = program_values(exported.program), batches_for(deployed, [SHAPE])
    with pytest.raises(CheckFailed, match=r"1e-12 is allowed\) on images of 1x3x16x24"):
        check_onnx(path, deployed.scores, batches, tolerance=1e-12, values=values)


def labels_of_images(path: Path) -> Path:
    """A file that gives the argmax of its own input."""
    return write(path, export_onnx(Deployed(nn.Identity(), argmax=True), (1, 3, 1, 2)).model)


@pytest.mark.parametrize(("lead", "passes"), [(1e-4, True), (1e-2, False)])
def test_a_label_may_differ_where_torch_itself_hardly_decides(lead, passes, tmp_path):
    path = labels_of_images(tmp_path / "labels.onnx")
    images = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5, 0.5]).view(1, 3, 1, 2)
    images[0, 2, 0, 0] = 1 - lead / 2
    ours = images.clone()
    ours[0, 2, 0, 0] = 1 + lead / 2  # torch prefers class 2 by half the lead, the file class 0

    def check():
        return check_onnx(path, lambda _: ours, [images], tolerance=1e-3)

    if passes:
        assert check()[0].same_class == 0.5
    else:
        with pytest.raises(CheckFailed, match="at output 'labels'"):
            check()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (lambda images: images * float("nan"), "torch's own scores .* are not finite"),
        (lambda images: images[..., :1], "differs from torch by inf"),
        (lambda images: images.view(7, 7), "torch itself fails on images of 1x3x4x4"),
    ],
)
def test_scores_that_cannot_be_compared_fail_the_check(reference, message, tmp_path):
    exported = export_onnx(Deployed(nn.ReLU()), (1, 3, 4, 4))
    path = write(tmp_path / "relu.onnx", exported.model)
    with pytest.raises(CheckFailed, match=message):
        check_onnx(path, reference, [torch.rand(1, 3, 4, 4)])


def test_scores_that_are_zero_throughout_agree_only_with_zero(tmp_path):
    path = write(tmp_path / "relu.onnx", export_onnx(Deployed(nn.ReLU()), (1, 3, 4, 4)).model)
    zeros = torch.zeros(1, 3, 4, 4)
    assert check_onnx(path, lambda images: images, [zeros])[0].relative == 0
    with pytest.raises(CheckFailed, match="differs"):
        check_onnx(path, lambda images: images * 0, [zeros + 0.1])


def test_an_illegal_graph_fails_the_check(tmp_path):
    model = export_onnx(Deployed(nn.ReLU()), (1, 3, 4, 4)).model
    model.graph.node[0].op_type = "Rely"
    path = write(tmp_path / "net.onnx", model)
    with pytest.raises(CheckFailed, match=r"net.onnx: not a legal ONNX model: No Op registered"):
        check_onnx(path, lambda images: images, [torch.rand(1, 3, 4, 4)])


def test_a_model_that_fixes_its_size_cannot_leave_it_open(tmp_path):
    deployed = Deployed(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    exported = export_onnx(deployed, (1, 3, 16, 16), dynamic="size", size_divisor=4)
    path = write(tmp_path / "net.onnx", exported.model)
    shapes = [(1, 3, 16, 16), second_shape((1, 3, 16, 16), "size", 4)]
    with pytest.raises(CheckFailed, match="torch itself fails") as caught:
        check_onnx(path, deployed.scores, batches_for(deployed, shapes))
    assert "--dynamic none" in caught.value.hint


@pytest.mark.parametrize(
    ("dynamic", "second"),
    [
        ("none", (2, 3, 64, 64)),
        ("batch", (3, 3, 64, 64)),
        ("size", (2, 3, 128, 128)),
        ("both", (3, 3, 128, 128)),
    ],
)
def test_the_second_shape_differs_where_the_file_is_open(dynamic, second):
    assert second_shape((2, 3, 64, 64), dynamic, 64) == second


class TwoHeads(nn.Module):
    def forward(self, x):
        return x, x


class LooksAtValues(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("net", "arguments", "kind", "message"),
    [
        (tiny_net(), {"shape": (1, 3, 18, 24)}, UsageError, "18x24: .* multiples of 4"),
        (tiny_net(), {"shape": (3, 18, 24)}, UsageError, "give N,C,H,W"),
        (tiny_net(), {"shape": (1, 3, "16", 24)}, UsageError, "give N,C,H,W"),
        (tiny_net(), {"opset": 17}, UsageError, "opset 17: choose 18 to 25"),
        (tiny_net(), {"dynamic": "all"}, UsageError, "dynamic 'all': choose none, batch"),
        (TwoHeads(), {}, ConfigError, "the model has several outputs"),
        (LooksAtValues(), {}, HatError, "cannot be exported: GuardOnDataDependentSymNode: Could"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(net, arguments, kind, message):
    with pytest.raises(kind, match=message) as caught:
        export_onnx(Deployed(net), **{"shape": SHAPE, "size_divisor": DIVISOR, **arguments})
    assert "\n" not in caught.value.message


def test_an_image_too_small_is_told_by_the_error_alone():
    logged = []

    class Listener(logging.Handler):
        def emit(self, record):
            logged.append(record.getMessage())

    logger, listener = logging.getLogger("torch.export._trace"), Listener()
    logger.addHandler(listener)
    try:
        with pytest.raises(HatError, match="Kernel size can't be greater"):
            export_onnx(Deployed(nn.Conv2d(3, 3, 40)), (1, 3, 16, 16))
        assert logged == []  # torch itself logs "always_classified is unsupported" twice
        logger.error("something else")
        assert logged == ["something else"]
        assert logger.filters == []
    finally:
        logger.removeHandler(listener)


@pytest.mark.parametrize("opset", [18, 21, 25])
def test_every_opset_offered_runs(opset, tmp_path):
    deployed = Deployed(tiny_net())
    model = export_onnx(deployed, SHAPE, opset=opset).model
    assert [entry.version for entry in model.opset_import] == [opset]
    assert check_onnx(
        write(tmp_path / "n.onnx", model), deployed.scores, batches_for(deployed, [SHAPE])
    )
