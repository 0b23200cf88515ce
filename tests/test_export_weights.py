import pytest
import safetensors.torch
import torch
from test_cli_export import checkpoint

from hatcli.cli import run
from hatcli.engine.checkpoint import load_checkpoint, save_checkpoint
from hatcli.engine.weights import load_state_dict_file


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_weights_come_back_and_other_programs_read_them(folder, capsys):
    file = checkpoint(folder)
    assert run(["export", "--ckpt", str(file), "--format", "safetensors"]) == 0
    assert "tiny.safetensors" in capsys.readouterr().out
    expected = load_checkpoint(file)["state_dict"]
    for weights in (
        load_state_dict_file(folder / "tiny.safetensors"),
        safetensors.torch.load_file("tiny.safetensors"),
    ):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_average_is_taken_where_there_is_one(folder):
    file = checkpoint(folder)
    content = load_checkpoint(file)
    content["ema_state_dict"] = {n: torch.zeros_like(t) for n, t in content["state_dict"].items()}
    save_checkpoint(file, content)
    assert run(["export", str(file), "--format", "safetensors", "-o", "a.safetensors"]) == 0
    weights = load_state_dict_file(folder / "a.safetensors")
    assert not any(tensor.any() for tensor in weights.values())


def test_a_flipped_bit_in_the_weights_is_found(folder, capsys):
    assert run(["export", str(checkpoint(folder)), "--format", "safetensors"]) == 0
    path = folder / "tiny.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(Exception, match="the weights are damaged"):
        load_state_dict_file(path)


def test_integers_are_no_weights_and_a_file_is_not_overwritten(folder, capsys):
    integers = checkpoint(folder, step="int_infer", name="int.pth.tar")
    assert run(["export", str(integers), "--format", "safetensors"]) == 2
    assert "holds integers, not weights" in capsys.readouterr().err
    file = checkpoint(folder)
    (folder / "tiny.safetensors").write_bytes(b"mine")
    assert run(["export", str(file), "--format", "safetensors"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (folder / "tiny.safetensors").read_bytes() == b"mine"
