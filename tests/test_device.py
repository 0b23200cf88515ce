import pytest
import torch

from hatcli.engine.device import pick_device, pick_dtype
from hatcli.errors import UsageError


def test_auto_takes_what_is_there():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "device 'gpu' unknown"),
        ("mps", "device 'mps' is not supported"),
        ("cuda", "no CUDA device found here"),
        ("7", "no CUDA device found here"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(text, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError) as caught:
        pick_device(text)
    assert message in caught.value.message


def test_an_index_above_the_last_device_says_how_many_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="there are 2 CUDA devices, 0 to 1"):
        pick_device("cuda:2")
    assert pick_device("1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_a_precision_that_is_asked_for_is_taken(precision, dtype):
    assert pick_dtype(precision, torch.device("cpu")) == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_precision_on_a_gpu():
    assert pick_dtype("auto", torch.device("cuda")) in (torch.bfloat16, torch.float32)
