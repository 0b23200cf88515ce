import contextlib
import pickle
import random
from typing import ClassVar

import pytest
import safetensors.torch
import torch
from torch import nn

from hatcli.engine.checkpoint import save_checkpoint
from hatcli.engine.weights import fingerprint, load_foreign_weights, load_state_dict_file
from hatcli.errors import CheckpointError, HatError, UsageError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


class Renamed(nn.Module):
    """A model that knows the names "fc.*" of others."""

    calls: ClassVar[list[str]] = []

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)

    @staticmethod
    def weight_names(weights):
        return {name.replace("fc.", "last."): tensor for name, tensor in weights.items()}


def same(weights, module):
    state = module.state_dict()
    return list(weights) == list(state) and all(torch.equal(weights[n], state[n]) for n in state)


WRITERS = {
    "plain.pth": torch.save,
    "old.pth": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "a.safetensors": safetensors.torch.save_file,
    "wrapped.pt": lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
    "reference.pth": lambda state, path: torch.save({"model": state, "args": "x"}, path),
    "parallel.pth": lambda state, path: torch.save(
        {f"module.{name}": tensor for name, tensor in state.items()}, path
    ),
    "float-checkpoint-best.pth.tar": lambda state, path: save_checkpoint(
        path, {"hat_version": "0", "state_dict": state, "ema_state_dict": None}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_weights_of_every_kind_of_file_are_read_to_the_bit(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](net().state_dict(), path)
    weights = load_state_dict_file(path)
    if name.endswith(".safetensors"):  # which sorts them
        weights = {key: weights[key] for key in net().state_dict()}
    assert same(weights, net())


def test_the_averaged_weights_of_a_checkpoint_come_first(tmp_path):
    path = tmp_path / "last.pth.tar"
    averaged = {"weight": torch.full((2,), 7.0)}
    content = {"state_dict": {"weight": torch.zeros(2)}, "ema_state_dict": averaged}
    save_checkpoint(path, {"hat_version": "0", **content})
    assert load_state_dict_file(path)["weight"].tolist() == [7, 7]


def test_a_model_translates_the_names_of_others(tmp_path):
    path = tmp_path / "theirs.pth"
    theirs = nn.ModuleDict({"fc": nn.Linear(3, 2)})
    torch.save(theirs.state_dict(), path)
    model = Renamed()
    load_foreign_weights(model, path)
    assert torch.equal(model.last.weight, theirs["fc"].weight)
    assert torch.equal(model.last.bias, theirs["fc"].bias)


def test_the_fingerprint_is_the_start_of_the_files_sha256(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"abc")
    assert fingerprint(tmp_path / "net.pth") == "ba7816bf"  # of "abc", as FIPS 180 prints it


def test_counters_of_batches_may_be_missing_and_are_left_as_they_were(tmp_path):
    state = net().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "net.pth")
    model = net()
    model[1].num_batches_tracked += 5
    nn.init.zeros_(model[0].weight)
    load_foreign_weights(model, tmp_path / "net.pth")
    assert model[1].num_batches_tracked == 5
    assert torch.equal(model[0].weight, net()[0].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": torch.zeros(1)}, "unexpected extra"),
        ({"0.weight": None}, "missing 0.weight"),
        ({"0.bias": torch.zeros(5)}, r"0.bias is \(5,\), the model needs \(2,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(change, message, tmp_path):
    state = {**net().state_dict(), **change}
    torch.save({n: t for n, t in state.items() if t is not None}, tmp_path / "net.pth")
    model = net()
    nn.init.ones_(model[0].bias)
    with pytest.raises(CheckpointError, match=message):
        load_foreign_weights(model, tmp_path / "net.pth")
    assert model[0].bias.tolist() == [1, 1]


class RunsCode:
    def __reduce__(self):
        return eval, ("open('ran', 'w')",)


BAD = {
    "empty.pth": (lambda path: path.write_bytes(b""), "the file is empty"),
    "page.pth": (lambda path: path.write_text("<html>"), "a web page"),
    "text.pth": (lambda path: path.write_text("hello"), "not a checkpoint"),
    "code.pth": (lambda path: torch.save({"a": RunsCode()}, path), "refused: holds objects"),
    "pickle.pth": (lambda path: path.write_bytes(pickle.dumps(RunsCode(), 2)), "refused"),
    "list.pth": (lambda path: torch.save([torch.ones(1)], path), "no state_dict, but a list"),
    "nothing.pth": (lambda path: torch.save({}, path), "holds no tensors"),
    "number.pth": (lambda path: torch.save({"epoch": 3}, path), "'epoch' is a int, not a tensor"),
    "index.pth": (lambda path: torch.save({0: torch.ones(1)}, path), "0 is a Tensor"),
    "nan.pth": (lambda p: torch.save({"a": torch.full((1,), torch.nan)}, p), "non-finite .* a$"),
    "empty.safetensors": (lambda path: path.write_bytes(b""), "not a safetensors file"),
    "zip.safetensors": (lambda path: torch.save({}, path), "not a safetensors file"),
    "long.safetensors": (lambda p: p.write_bytes(b"\xff" * 64), "not a safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_holds_no_weights_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    write, message = BAD[name]
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_state_dict_file(path)
    assert caught.value.message.startswith(str(path))
    assert "\n" not in caught.value.message
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"weights not found: .*no\.pth"):
        load_state_dict_file(tmp_path / "no.pth")


@pytest.mark.parametrize("name", ["plain.pth", "old.pth", "a.safetensors"])
def test_a_damaged_file_is_explained(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](net().state_dict(), path)
    good, draw = path.read_bytes(), random.Random(1)
    for _ in range(60):
        damaged = bytearray(good)
        if draw.random() < 0.3:
            del damaged[draw.randrange(len(good)) :]
        else:
            damaged[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(HatError):  # anything else would be a traceback
            weights = load_state_dict_file(path)
            assert same(weights, net()) or name != "plain.pth"  # only its zip holds checksums
