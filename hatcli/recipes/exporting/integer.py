"""The integer half of hat export, and hat export --verify: ONNX that equals int_infer."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, fx, nn

from hatcli.config import Config
from hatcli.errors import CheckpointError, HatError, ModelFileError
from hatcli.events import Job, Note
from hatcli.export.check import random_images
from hatcli.export.fusion import Fusion, inspect_fusion
from hatcli.export.onnx import Dynamic, second_shape
from hatcli.export.parity import Parity, compare_codes
from hatcli.export.preprocess import prepend
from hatcli.export.quantized import export_quantized
from hatcli.export.session import OnnxModel
from hatcli.quantize.integer_graph import from_data, to_data
from hatcli.quantize.lower import lower
from hatcli.recipes.build import build_batch_transforms, build_dataset, build_loader
from hatcli.recipes.machine import has_vnni, processor

SAMPLES = 8  # images compared by default


@dataclass(frozen=True)
class VerifyResult:
    """What a second look at an exported file found.

    Attributes:
        parity: of this processor with the integer graph.
        fusion: what onnxruntime made of the file here.
        processor: what it runs on.
        vnni: whether that multiplies int8 without saturating sums of two products; None where
            it can't be told.
    """

    file: Path
    parity: Parity
    fusion: Fusion
    processor: str
    vnni: bool | None


@dataclass(frozen=True)
class Images:
    """Which images a file is compared on.

    Attributes:
        shape: of made-up ones, where there are no real ones.
        count: of real ones.
    """

    shape: tuple[int, ...]
    count: int = SAMPLES
    dynamic: Dynamic = "both"
    size_divisor: int = 1


def integer_graph(checkpoint: dict[str, Any], model: nn.Module) -> fx.GraphModule:
    """The integers of a checkpoint of calibration, qat or int_infer.

    Args:
        model: what `model_from_checkpoint` gives.
    """
    assert isinstance(model, fx.GraphModule)
    return model if checkpoint["step"] == "int_infer" else lower(model).graph


def write_integer(
    path: Path,
    graph: fx.GraphModule,
    images: Images,
    config: Config,
    *,
    prepare: nn.Module | None,
    argmax: bool,
    opset: int,
    metadata: dict[str, str],
    name: str,
) -> Job[tuple[onnx.ModelProto, Parity, Fusion]]:
    """Write an integer graph, and compare it with int_infer, code by code.

    Args:
        path: where to; what is compared is this file.
        prepare: the preprocessing that the file is to hold.
        argmax: whether the file gives labels.
        name: what to call the file in messages.

    Raises:
        CheckFailed: a code differs; the caller removes the file.
    """
    document = json.dumps(_without_tensors(to_data(graph)))
    model = export_quantized(
        graph,
        images.shape,
        argmax=argmax,
        dynamic=images.dynamic,
        size_divisor=images.size_divisor,
        opset=opset,
        metadata={**metadata, "hat.integer_graph": document},
    )
    if prepare is not None:
        prepend(
            model, prepare, images.shape, dynamic=images.dynamic, size_divisor=images.size_divisor
        )
    path.write_bytes(model.SerializeToString())
    yield Note(f"comparing its codes with int_infer in onnxruntime {onnxruntime.__version__}")
    batches = yield from _samples(config, images, as_uint8=prepare is not None)
    parity = compare_codes(path, graph, batches, where=name)
    return model, parity, inspect_fusion(path, where=name)


def parity_entry(parity: Parity, fusion: Fusion) -> str:
    """What the file says of its check, as JSON."""
    return json.dumps(
        {
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
            "processor": processor(),
            **asdict(parity),
            "float_layers": [asdict(layer) for layer in fusion.float_layers],
        }
    )


def verify_file(
    file: Path, *, count: int = SAMPLES, overrides: list[str] | None = None
) -> Job[VerifyResult]:
    """Compare an exported integer model with int_infer again, on this machine's processor.

    The integer graph comes out of the file itself: its settings stand in the metadata, its
    weights in the tensors.

    Args:
        count: images to compare.
        overrides: "key=value" changes of the file's own config, e.g. where the data is.

    Raises:
        CheckFailed: a code differs.
        ModelFileError: the file isn't an integer model of this program.
    """
    opened = OnnxModel(file)
    text = opened.metadata.get("hat.integer_graph")
    if text is None or opened.config is None:
        raise ModelFileError(
            f"{file}: not an integer model of hat",
            "a float model was compared with torch when it was exported",
        )
    graph = _graph_of_file(json.loads(text), onnx.load(str(file)), file)
    config = opened.config.with_overrides(overrides or [])
    is_open = [isinstance(size, str) for size in opened.input_shape]
    dynamic: Dynamic = "both" if is_open[2] else "batch" if is_open[0] else "none"
    known = config["deploy"].get("shape") or [1, 3, 224, 224]
    shape = tuple(
        size if isinstance(size, int) else default
        for size, default in zip(opened.input_shape, known, strict=True)
    )
    images = Images(shape, count, dynamic, opened.size_divisor)
    batches = yield from _samples(config, images, as_uint8=opened.preprocess)
    yield Note(f"comparing {file} with int_infer in onnxruntime {onnxruntime.__version__}")
    parity = compare_codes(file, graph, batches, where=str(file))
    fusion = inspect_fusion(file, where=str(file))
    return VerifyResult(file, parity, fusion, processor(), has_vnni())


def _samples(config: Config, images: Images, *, as_uint8: bool) -> Job[list[Tensor]]:
    """Batches as the file takes them: of the validation set, and made up where it can't be read.

    Images of the set are used where the file takes their size.
    """
    prepare = build_batch_transforms(config).eval()
    found: list[Tensor] = []
    try:
        found = list(islice(_real_images(config, images), images.count))
    except HatError as error:
        yield Note(f"the validation set can't be read: {error.message}")
    real = len(found)
    if not found:
        found = [random_images(images.shape, seed=0)]
    if images.dynamic != "none":
        shape = second_shape(images.shape, images.dynamic, images.size_divisor)
        found.append(random_images(shape, seed=1))
    yield Note(f"comparing on {_counted(real, sum(map(len, found)) - real)}")
    if as_uint8:
        return found
    with torch.no_grad():
        return [prepare(batch) for batch in found]


def _counted(real: int, made_up: int) -> str:
    """'8 images of the validation set and 2 made-up ones'."""
    parts = [f"{real} {'image' if real == 1 else 'images'} of the validation set"] if real else []
    if made_up:
        noun = ("one" if made_up == 1 else "ones") if real else "image" + "s" * (made_up > 1)
        parts.append(f"{made_up} made-up {noun}")
    return " and ".join(parts)


def _real_images(config: Config, images: Images) -> Iterator[Tensor]:
    one_by_one = config.with_overrides(["val.num_workers=0", "val.batch_size=1"])
    loader = build_loader(one_by_one, "val", build_dataset(one_by_one, "val"))
    for batch in loader.epoch(0):
        size = tuple(batch[0].shape[2:])
        fits = size == images.shape[2:] if images.dynamic != "both" else True
        divides = all(side % images.size_divisor == 0 for side in size)
        if fits and divides and (images.dynamic != "none" or images.shape[0] == 1):
            yield batch[0].contiguous()


def _without_tensors(document: dict[str, Any]) -> dict[str, Any]:
    nodes = [{**node, "tensors": sorted(node["tensors"])} for node in document["nodes"]]
    return {**document, "nodes": nodes}


def _graph_of_file(document: dict[str, Any], model: onnx.ModelProto, file: Path) -> fx.GraphModule:
    """The integer graph with its weights out of the file; they are named "<layer>.<tensor>"."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    try:
        for node in document["nodes"]:
            node["tensors"] = {
                name: torch.from_numpy(
                    onnx.numpy_helper.to_array(tensors[f"{node['name']}.{name}"]).copy()
                )
                for name in node["tensors"]
            }
        return from_data(document)
    except (KeyError, TypeError, CheckpointError) as error:
        raise ModelFileError(f"{file}: its integer graph is damaged: {error}") from error
