"""What makes a training faster leaves its numbers as they are."""

import copy
from collections.abc import Iterator

import pytest
import torch
from small_training import Blobs, flat, new_training, run, small_model
from torch import Tensor, nn
from torch.amp import GradScaler

from hatcli.engine import OPTIMIZERS
from hatcli.engine.prefetch import prefetched
from hatcli.engine.step import Stepper
from hatcli.engine.training import FitSettings, Training
from hatcli.models.blocks import DropPath


def test_on_a_cpu_batches_come_as_they_are():
    batches = Blobs().epoch(0)
    assert prefetched(batches, torch.device("cpu")) is batches


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_same_batches_come_on_the_device():
    def pinned() -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        for images, targets, names in Blobs(7).epoch(0):
            yield images.pin_memory(), targets.pin_memory(), names

    got = [
        (images.sum().item(), targets.tolist(), names, images.device.type)
        for images, targets, names in prefetched(pinned(), torch.device("cuda"))
    ]
    expected = [(i.sum().item(), t.tolist(), n, "cuda") for i, t, n in Blobs(7).epoch(0)]
    assert [row[1:] for row in got] == [row[1:] for row in expected]
    assert [row[0] for row in got] == pytest.approx([row[0] for row in expected], abs=1e-3)


@pytest.mark.parametrize(
    "node",
    [
        {"type": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True},
        {"type": "adamw", "lr": 0.01, "weight_decay": 0.1},
    ],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_fused_optimiser_makes_the_same_steps(node, layout):
    def weights(*, fused: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=layout)
        optimizer = OPTIMIZERS.build({**node, "fused": fused}, model=model)
        images = torch.randn(4, 3, 9, 9).contiguous(memory_format=layout)
        for _ in range(5):
            (model(images) - 1).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return list(model.parameters())

    for one, other in zip(weights(fused=True), weights(fused=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_float16_scales_its_loss_and_resumes_bit_for_bit():
    def fresh() -> Training:
        training = new_training()
        training.scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        return training

    whole = fresh()
    run(whole, 3, dtype=torch.float16)
    assert whole.history[-1]["top1"] > 80
    assert whole.scaler.get_scale() > 2.0**10
    first, second = fresh(), fresh()
    run(first, 1, dtype=torch.float16)
    second.restore(copy.deepcopy(first.state()))
    run(second, 3, dtype=torch.float16)
    expected, got = flat(whole), flat(second)
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    assert second.scaler.state_dict() == whole.scaler.state_dict()
    assert all(weight.dtype == torch.float32 for weight in whole.model.parameters())


def test_float16_leaves_out_a_step_that_overflows_and_lowers_the_scale():
    training = new_training()
    training.scaler = GradScaler("cpu", init_scale=2.0**100)
    before = [weight.clone() for weight in training.model.parameters()]
    run(training, 1, Blobs(1), dtype=torch.float16)
    assert all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))
    assert training.scaler.get_scale() == 2.0**99


def test_a_compiled_training_ends_as_any_other(monkeypatch):
    compiled = []
    real = torch.compile

    def quickly(call):
        compiled.append(call)
        return real(call, backend="eager")

    monkeypatch.setattr(torch, "compile", quickly)
    plain, fast = new_training(), new_training()
    run(plain, 2)
    run(fast, 2, compile=True)
    assert compiled == [fast.model]
    assert fast.state()["state_dict"].keys() == plain.state()["state_dict"].keys()
    expected, got = flat(plain), flat(fast)
    assert [n for n in expected if not torch.allclose(expected[n], got[n], atol=1e-6)] == []
    assert type(fast.deployed) is nn.Sequential  # what is scored and saved isn't compiled


@pytest.mark.slow
def test_a_training_that_is_really_compiled_ends_nearly_as_any_other():
    plain, fast = new_training(), new_training()
    for training in (plain, fast):
        training.model[3].p = 0.0  # what is compiled draws other dropouts
    run(plain, 2)
    run(fast, 2, compile=True)
    expected, got = flat(plain), flat(fast)
    assert [n for n in expected if not torch.allclose(expected[n], got[n], atol=1e-3)] == []


def test_drop_path_leaves_out_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    module, x = DropPath(0.25), torch.ones(4000, 2, 1, 3)
    y = module.train()(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(y, y[:, :1, :, :1].expand_as(y))
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert module.eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_a_step_takes_batches_that_are_on_the_device_already():
    training = new_training()
    step = Stepper(training, FitSettings(1), loss=nn.CrossEntropyLoss(), prepare=nn.Identity())
    batch = next(Blobs().epoch(0))
    assert step([batch], 1.0).isfinite()
    assert small_model()(batch[0]).shape == (8, 2)
