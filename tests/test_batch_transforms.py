import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from hatcli.data.transforms import BATCH_TRANSFORMS
from hatcli.data.transforms.batch import Normalize, RgbToYuv444
from hatcli.errors import ConfigError

ARGUMENTS = {"Normalize": {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}}
MATRIX = torch.tensor([[77, 150, 29], [-43, -84, 127], [127, -106, -21]])


def build(name: str) -> nn.Module:
    return BATCH_TRANSFORMS.build({"type": name, **ARGUMENTS.get(name, {})}).eval()


def make_batch(batch: int = 2, height: int = 8, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)


def of_color(*rgb: int) -> torch.Tensor:
    return torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)


@pytest.mark.parametrize("name", BATCH_TRANSFORMS.names())
def test_bytes_and_floats_give_the_same_float32_of_the_same_shape(name):
    images = make_batch()
    result = build(name)(images)
    assert (result.dtype, result.shape) == (torch.float32, images.shape)
    assert torch.equal(result, build(name)(images.float()))
    assert torch.equal(result, build(name)(images.double()))


@pytest.mark.parametrize("name", BATCH_TRANSFORMS.names())
def test_channels_last_is_kept(name):
    images = make_batch().contiguous(memory_format=torch.channels_last)
    result = build(name)(images)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(result, build(name)(images.contiguous()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BATCH_TRANSFORMS.names())
def test_nothing_is_learned_or_stored(name):
    module = build(name)
    assert not list(module.parameters())
    assert not module.state_dict()
    assert torch.equal(copy.deepcopy(module)(make_batch()), module(make_batch()))


@pytest.mark.parametrize("name", BATCH_TRANSFORMS.names())
def test_fx_traces_it(name):
    module = build(name)
    assert torch.equal(torch.fx.symbolic_trace(module)(make_batch()), module(make_batch()))


@pytest.mark.parametrize("name", BATCH_TRANSFORMS.names())
def test_the_exported_graph_takes_bytes_and_gives_the_same(name):
    module, images = build(name), make_batch()
    program = torch.onnx.export(module, (images,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    node = session.get_inputs()[0]
    assert node.type == "tensor(uint8)"
    (result,) = session.run(None, {node.name: images.numpy()})
    np.testing.assert_allclose(result, module(images).numpy(), rtol=0, atol=1e-6)
    if name == "RgbToYuv444":
        assert np.array_equal(result, module(images).numpy())


@pytest.mark.parametrize(
    ("rgb", "yuv"),
    [
        ((0, 0, 0), (-1, 0, 0)),
        ((255, 255, 255), (127 / 128, 0, 0)),
        ((128, 128, 128), (0, 0, 0)),
        ((255, 0, 0), (77 * 255 / 32768 - 1, -43 * 255 / 32768, 127 * 255 / 32768)),
        ((0, 255, 0), (150 * 255 / 32768 - 1, -84 * 255 / 32768, -106 * 255 / 32768)),
        ((0, 0, 255), (29 * 255 / 32768 - 1, 127 * 255 / 32768, -21 * 255 / 32768)),
    ],
)
def test_yuv_of_known_colors(rgb, yuv):
    assert RgbToYuv444()(of_color(*rgb)).flatten().tolist() == list(yuv)


def test_yuv_is_exact():
    images = make_batch(4, 64, 64)
    exact = torch.einsum("ij,njhw->nihw", MATRIX, images.long())
    exact[:, 0] -= 128 * 256
    assert torch.equal((RgbToYuv444()(images).double() * 32768).long(), exact)


def test_yuv_rounded_is_the_integer_conversion():
    images = make_batch(4, 64, 64).long()
    integer = (torch.einsum("ij,njhw->nihw", MATRIX, images) + 128) >> 8
    integer += torch.tensor([-128, 0, 0]).view(1, 3, 1, 1)
    ours = torch.floor(RgbToYuv444()(images) * 128 + 0.5).long()
    assert torch.equal(ours, integer)


def test_yuv_lies_from_minus_one_to_below_one():
    corners = torch.cartesian_prod(*[torch.tensor([0, 255], dtype=torch.uint8)] * 3)
    result = RgbToYuv444()(corners.view(8, 3, 1, 1))
    assert result.min() >= -1
    assert result.max() < 1


def test_normalize_takes_the_mean_off_and_divides():
    module = Normalize(mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 5.0])
    assert module(of_color(12, 20, 0)).flatten().tolist() == pytest.approx([1, 0, -6], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [0, 0], "std": [1, 1, 1]}, "Normalize: mean must be 3 numbers"),
        ({"mean": [0, 0, 0], "std": [1, 1, float("nan")]}, "Normalize: std must be 3 numbers"),
        ({"mean": [0, 0, 0], "std": [1, 1, 0]}, "Normalize: std must be above 0"),
        ({"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}, "Normalize: std is in levels"),
    ],
)
def test_wrong_numbers_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Normalize(**arguments)
