import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from hatcli.engine.checkpoint import load_checkpoint, load_weights, save_checkpoint
from hatcli.errors import CheckpointError, HatError, UsageError


def content(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(64, 32, generator=generator)
    return {"hat_version": "0", "state_dict": {"weight": weight}, "metrics": {"mIoU": 1.5}}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "float-checkpoint-best.pth.tar"
    save_checkpoint(path, content())
    return path


def test_what_is_saved_comes_back(saved):
    loaded = load_checkpoint(saved)
    assert torch.equal(loaded["state_dict"]["weight"], content()["state_dict"]["weight"])
    assert loaded["metrics"] == {"mIoU": 1.5}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_what_could_not_be_loaded_again_is_refused_at_once(tmp_path):
    with pytest.raises(TypeError, match=r"metrics\.mIoU: a float64"):
        save_checkpoint(tmp_path / "a.pth.tar", {"metrics": {"mIoU": np.float64(1)}})
    assert list(tmp_path.iterdir()) == []


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def pickled_code(path):
    torch.save({"format": "hat-checkpoint", "evil": Evil(path.parent / "ran")}, path)


def legacy_tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__)


def deflated(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 1_000_000)


def with_nan(path):
    weights = {"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")])}
    save_checkpoint(path, {"hat_version": "0", "state_dict": weights})


def script(path):
    torch.save(nn.Linear(2, 2), path)


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "web page": (lambda path: path.write_text("<html></html>"), "a web page"),
    "text": (lambda path: path.write_text("hello"), "not a checkpoint (starts with 'hello')"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), "starts with the bytes 00 00 00"),
    "tar": (legacy_tar, "not a checkpoint"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not a checkpoint"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "cut or damaged"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "cut or damaged"),
    "code": (pickled_code, "refused: holds objects other than tensors"),
    "module": (script, "refused: holds objects other than tensors"),
    "bomb": (deflated, "refused: compressed members"),
    "nan": (with_nan, "holds non-finite values in 1 tensors, first: b"),
    "foreign": (lambda path: torch.save({"a": torch.ones(1)}, path), "not a checkpoint of hat"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_explained_and_runs_nothing(saved, case):
    make, message = BAD[case]
    make(saved)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)
    assert message in caught.value.message
    assert str(saved) in caught.value.message
    assert "\n" not in caught.value.message
    assert not (saved.parent / "ran").exists()


def test_a_missing_file_lists_its_neighbours(saved):
    with pytest.raises(UsageError, match="not found") as caught:
        load_checkpoint(saved.with_name("float-checkpoint-last.pth.tar"))
    assert "float-checkpoint-best.pth.tar" in caught.value.hint


def flipped_is_caught(saved, count: int) -> None:
    good = saved.read_bytes()
    expected = content()["state_dict"]["weight"]
    generator = random.Random(0)
    for _ in range(count):
        damaged = bytearray(good)
        position = generator.randrange(len(good))
        damaged[position] ^= 1 << generator.randrange(8)
        saved.write_bytes(damaged)
        try:
            loaded = load_checkpoint(saved)
        except HatError:
            continue
        assert torch.equal(loaded["state_dict"]["weight"], expected), position


def test_a_flipped_bit_never_becomes_another_weight(saved):
    flipped_is_caught(saved, 40)


@pytest.mark.slow
def test_a_flipped_bit_never_becomes_another_weight_in_full(saved):
    flipped_is_caught(saved, 1000)


SAVE_FOR_EVER = """
import sys, torch
from pathlib import Path
from hatcli.engine.checkpoint import save_checkpoint
number = 0
while True:
    number += 1
    weight = torch.full((500, 500), float(number))
    save_checkpoint(Path(sys.argv[1]), {"hat_version": "0", "state_dict": {"w": weight}})
    print(number, flush=True)
"""


def kill_while_saving(path, kills: int) -> None:
    for kill in range(kills):
        command = [sys.executable, "-c", SAVE_FOR_EVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(3 + kill):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        weight = load_checkpoint(path)["state_dict"]["w"]
        assert (weight == weight[0, 0]).all()


def test_a_kill_while_saving_leaves_the_last_one_whole(tmp_path):
    kill_while_saving(tmp_path / "last.pth.tar", 1)


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_last_one_whole_in_full(tmp_path):
    kill_while_saving(tmp_path / "last.pth.tar", 20)


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_else(saved, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="cannot save: No space left on device"):
        save_checkpoint(saved, content(1))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_weights_of_another_model_are_refused_with_names_and_shapes():
    model = nn.Linear(4, 19)
    weights = nn.Linear(4, 20).state_dict()
    with pytest.raises(CheckpointError, match=r"weight is \(20, 4\), the model needs \(19, 4\)"):
        load_weights(model, weights, "x.pth")
    with pytest.raises(CheckpointError, match=r"missing bias; unexpected gain"):
        load_weights(model, {"weight": model.weight, "gain": model.bias}, "x.pth")
