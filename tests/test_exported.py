"""What an exported file tells of itself and its check."""

import json

import onnx
import pytest
from made_run import CHECK, exported_file

from hatcli.errors import ModelFileError
from hatcli.recipes.reporting.exported import read_exported

PARITY = {"promised": True, "images": 10, "layers": 76, "values": 104448, "differing": 0,
          "largest": 0.0, "same_class": 1.0, "onnxruntime": "1.31.1"}  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "verdict", "is_fine"),
    [
        ({"hat.parity": PARITY}, "gives the same codes as int_infer", True),
        ({"hat.parity": {**PARITY, "differing": 7}}, "in 7 of 104,448 values", False),
        ({"hat.parity": {**PARITY, "differing": 7, "promised": False}}, "in 7 of 104,448", True),
        ({"hat.check": CHECK}, "gives the same scores as torch", True),
        ({}, "not checked", False),
    ],
)
def test_an_exported_file_tells_of_its_check(tmp_path, entries, verdict, is_fine):
    texts = {key: json.dumps(value) for key, value in entries.items()}
    found = read_exported(exported_file(tmp_path / "m.onnx", **texts))
    assert (found.step, found.metrics, found.is_fine) == ("qat", {"mIoU": 61.5}, is_fine)
    assert verdict in found.verdict


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    path = exported_file(tmp_path / "m.onnx")
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match=r"m\.onnx"):
        read_exported(path)
    path.write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match=r"not an ONNX model"):
        read_exported(path)
    with pytest.raises(ModelFileError, match=r"cannot read it"):
        read_exported(tmp_path / "none.onnx")
    model = onnx.load(exported_file(tmp_path / "n.onnx"))
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=r"wasn't exported by hat"):
        read_exported(path)
