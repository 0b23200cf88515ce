"""The checks of hat doctor that may crash: imports and self-tests, in a process of their own.

It is started as a module with the checks as arguments, "import:torch" or the name of a self-test,
and answers each with a line of JSON on stdout.
"""

import importlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hatcli.errors import CheckFailed, DataError, PackError

IMPORT = "import:"
CUDA = "cuda"


def main(checks: list[str]) -> None:
    """Answer each check in turn."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a package prints while it is imported is no answer
    for check in checks:
        started = time.perf_counter()
        try:
            if check.startswith(IMPORT):
                importlib.import_module(check.removeprefix(IMPORT))
                ok, text = True, ""
            else:
                ok, text = True, CHECKS[check]()
        except Exception as error:  # noqa: BLE001 - what goes wrong is what is asked for
            ok, text = False, one_line(error)
        seconds = time.perf_counter() - started
        answers.write(json.dumps({"ok": ok, "text": text, "seconds": seconds}) + "\n")
        answers.flush()


def one_line(error: BaseException) -> str:
    """An error in a line: its kind, unless it is ours, and the first line of what it says."""
    message = str(error).strip().partition("\n")[0]
    if isinstance(error, CheckFailed | DataError):
        return message
    return f"{type(error).__name__}: {message}"


def _cuda() -> str:
    """The CUDA devices, as JSON."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        devices = []
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            about = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            devices.append(
                {
                    "name": about.name,
                    "capability": f"{about.major}.{about.minor}",
                    "memory_bytes": total,
                    "free_bytes": free,
                    "bf16": torch.cuda.is_bf16_supported(),
                }
            )
    problems = [str(one.message).strip().partition("\n")[0] for one in caught]
    document = {"built_for": torch.version.cuda, "devices": devices, "problems": problems}
    return json.dumps(document)


def _fake_quantization() -> str:
    """Values and gradient against those that the definition gives by hand."""
    import torch

    from hatcli.quantize.fake_quantize import FakeQuantize

    given = torch.tensor([-9.0, -0.26, -0.25, 0.0, 0.24, 0.75, 63.5, 99.0], requires_grad=True)
    found = FakeQuantize.apply(given, 0.5, -2, 127)
    found.sum().backward()
    expected = [-1.0, -0.5, 0.0, 0.0, 0.0, 1.0, 63.5, 63.5]  # halves go to the even neighbour
    gradient = [] if given.grad is None else given.grad.tolist()
    # At the upper bound itself either answer is right.
    if found.tolist() != expected or gradient[:6] + gradient[7:] != [0, 1, 1, 1, 1, 1, 0]:
        raise CheckFailed(f"gives {found.tolist()} with gradient {gradient}")
    return f"{len(expected)} values as by hand"


def _float_export() -> str:
    """A small network in onnxruntime and in torch."""
    import torch

    from hatcli.export.onnx import Deployed, export_onnx
    from hatcli.export.runtime import open_session, run_session

    network, images = _network(), _images()
    model = export_onnx(Deployed(network), tuple(images.shape), dynamic="none").model
    session = open_session(model.SerializeToString(), where="the exported network")
    found = torch.from_numpy(run_session(session, images.numpy(), where="the network")[0])
    with torch.no_grad():
        expected = network(images)
    largest = float((found - expected).abs().max() / expected.abs().max())
    if not largest < 1e-4:
        raise CheckFailed(f"differs from torch by {largest:.1e} of the largest score")
    return f"differs from torch by {largest:.0e} of the largest score"


def _integers() -> str:
    """A small network as integers, here and in onnxruntime, code by code."""
    from hatcli.export.parity import compare_codes
    from hatcli.export.quantized import export_quantized
    from hatcli.quantize.calibrate import calibrate
    from hatcli.quantize.lower import lower
    from hatcli.quantize.prepare import prepare
    from hatcli.quantize.spec import read_spec

    images = _images()
    graph = prepare(_network(), read_spec({"observer": {"type": "min_max"}}))
    _run(calibrate(graph, [images], total=len(images)))
    integers = lower(graph).graph
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        model = export_quantized(integers, tuple(images.shape))
        path.write_bytes(model.SerializeToString())
        parity = compare_codes(path, integers, [images], where="the network")
    if parity.differing:
        raise CheckFailed(f"{parity.differing} of {parity.values} codes differ")
    return f"0 of {parity.values} codes differ, and none in {parity.layers} tensors inside"


def _pack() -> str:
    """Drawn scenes through a pack and back, and a damaged byte that must be found."""
    import numpy as np

    from hatcli.data.datasets.cityscapes import Cityscapes, CityscapesRaw
    from hatcli.data.scenes.draw import write_scenes
    from hatcli.recipes.packing.pack import pack

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        _run(write_scenes(folder, train=2, val=1, size=(64, 32)))
        _run(pack("cityscapes", folder, None, "train", num_workers=1))
        raw, packed = CityscapesRaw("train", root=folder), Cityscapes("train_lmdb", root=folder)
        for index in range(len(raw)):
            for key in ("image", "label"):
                if not np.array_equal(packed[index][key], raw[index][key]):
                    raise CheckFailed(f"{key} {index} isn't what was packed")
        packed.close()
        data = folder / "train_lmdb" / "data.mdb"
        _flip_a_byte(data, behind=b"IDAT")
        damaged = Cityscapes("train_lmdb", root=folder)
        try:
            for index in range(len(raw)):
                damaged[index]
        except PackError:
            return f"{len(raw)} samples equal, a damaged byte found"
        finally:
            damaged.close()
    raise CheckFailed("a damaged byte wasn't found")


def _flip_a_byte(path: Path, *, behind: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(behind) + len(behind) + 8] ^= 1
    path.write_bytes(data)


def _run(job: Iterable[object]) -> None:
    for _ in job:
        pass


def _network() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU6(),
        nn.Conv2d(16, 5, 1),
    ).eval()


def _images() -> Any:
    import torch

    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


SELF_TESTS: dict[str, Callable[[], str]] = {
    "fake quantization": _fake_quantization,
    "float export": _float_export,
    "integers in onnxruntime": _integers,
    "pack and back": _pack,
}
CHECKS = {CUDA: _cuda, **SELF_TESTS}

if __name__ == "__main__":
    main(sys.argv[1:])
