import gc

import pytest
import torch
from small_graphs import conv, finished, graph_of, linear, quantizer, residual_net
from torch import nn

from hatcli.errors import HatError, UsageError
from hatcli.events import Note, Progress
from hatcli.models import MODELS
from hatcli.quantize.bias_correction import correct_biases
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.layers import Add, weighted_layers
from hatcli.quantize.prepare import prepare
from hatcli.quantize.quantizers import set_mode
from hatcli.quantize.spec import read_spec


def images(number=8, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 3, size, size, generator=generator)


def calibrated(batches, **kinds):
    graph = residual_net(**kinds)
    finished(calibrate(graph, batches, total=1))
    return graph


@torch.no_grad()
def channel_means(graph, mode, batches):
    """Layer -> (O,) mean of what it gives, by running the whole graph with hooks."""
    set_mode(graph, mode)
    sums = {}

    def keep(name):
        def hook(_module, _inputs, result):
            total = result.double().sum([0, *range(2, result.ndim)])
            places = result.numel() // result.shape[1]
            before = sums.get(name, (0, 0))
            sums[name] = (before[0] + total, before[1] + places)

        return hook

    hooks = [
        layer.register_forward_hook(keep(name)) for name, layer in weighted_layers(graph).items()
    ]
    for batch in batches:
        graph(batch)
    for hook in hooks:
        hook.remove()
    set_mode(graph, "quantize")
    return {name: total / places for name, (total, places) in sums.items()}


def mean_errors(graph, exact, batches):
    means = channel_means(graph, "quantize", batches)
    return {name: float((exact[name] - means[name]).abs().max()) for name in means}


@torch.no_grad()
def corrected_slowly(graph, exact, batches):
    """One layer after the other, the whole graph run anew for each."""
    for name, layer in weighted_layers(graph).items():
        layer.bias += (exact[name] - channel_means(graph, "quantize", batches)[name]).float()


def snr(exact, other):
    return float(10 * torch.log10(exact.square().sum() / (exact - other).square().sum()))


def test_no_mean_error_is_left_and_the_result_is_nearer_to_the_float_one():
    batches = [images(8, seed, 16) for seed in range(3)]
    graph = calibrated(batches, weight_bits=3)
    exact = channel_means(graph, "float", batches)
    set_mode(graph, "float")
    with torch.no_grad():
        exact_scores = torch.cat([graph(batch) for batch in batches])
        set_mode(graph, "quantize")
        before = snr(exact_scores, torch.cat([graph(batch) for batch in batches]))
    assert min(mean_errors(graph, exact, batches).values()) > 1e-3
    finished(correct_biases(graph, batches))
    assert max(mean_errors(graph, exact, batches).values()) < 1e-6
    with torch.no_grad():
        after = snr(exact_scores, torch.cat([graph(batch) for batch in batches]))
    assert after > before + 3


def test_it_equals_the_correction_layer_by_layer_with_full_runs():
    batches = [images(5, 1), images(8, 2), images(0), images(1, 3)]
    quick, slow = (calibrated(batches, weight_bits=4) for _ in range(2))
    exact = channel_means(slow, "float", batches[:2] + batches[3:])
    corrected_slowly(slow, exact, batches[:2] + batches[3:])
    _, events = finished(correct_biases(quick, batches))
    original = residual_net(weight_bits=4)
    for name, layer in weighted_layers(quick).items():
        expected = slow.get_submodule(name).bias
        assert torch.allclose(layer.bias, expected, atol=1e-6)
        change = layer.bias - original.get_submodule(name).bias
        assert float(change.detach().abs().max()) > 1e-4
    assert events[-1] == Progress("correcting biases", 4, 4, "layers")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "unet"])
def test_a_real_network_is_corrected_in_all_its_layers(name):
    torch.manual_seed(0)
    model = MODELS.build({"type": name, "num_classes": 7}).train()
    size = 128 if name == "unet" else 64
    batches = [images(4, seed, size) for seed in range(2)]
    with torch.no_grad():
        for batch in batches * 4:
            model(batch)  # for the batch norms
    model = model.keep_head("4") if name == "unet" else model
    graph = prepare(model.eval(), read_spec({"weight_bits": 6}))
    finished(calibrate(graph, batches, total=8))
    # In float32 a last bit decides some codes, and fifty layers make much of it.
    graph, batches = graph.double(), [batch.double() for batch in batches]
    exact = channel_means(graph, "float", batches)
    before = mean_errors(graph, exact, batches)
    findings, events = finished(correct_biases(graph, batches))
    after = mean_errors(graph, exact, batches)
    assert [finding for finding in findings if "shifts a channel" not in finding.text] == []
    assert len(before) == events[-1].total > 20
    assert max(after.values()) < 1e-9 * max(before.values())


def test_one_tensor_may_be_added_to_itself():
    steps = [
        ("input_quantizer", quantizer()),
        ("twice", Add(), "input_quantizer", "input_quantizer"),
        ("twice.output_quantizer", quantizer()),
        ("stem", conv(3, 4, weight_bits=3)),
    ]
    graph = graph_of(steps)
    finished(calibrate(graph, [images()], total=8))
    exact = channel_means(graph, "float", [images()])
    finished(correct_biases(graph, [images()]))
    assert mean_errors(graph, exact, [images()])["stem"] < 1e-6


class _Live(nn.Module):
    """Notes how many elements of maps are alive at each call."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def forward(self, x):
        shape = x.shape[1:]
        alive = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape[1:] == shape]
        self.most = max(self.most, sum(len(t) for t in alive))
        return x


def test_tensors_are_freed_after_their_last_use():
    live = _Live()
    steps = [("input_quantizer", quantizer())]
    for index in range(6):
        steps += [
            (f"layer{index}", conv(3 if index == 0 else 7, 7)),
            (f"layer{index}.output_quantizer", quantizer("relu")),
        ]
    steps += [("live", live), ("last", conv(7, 7))]
    graph = graph_of(steps)
    batches = [images(4, seed) for seed in range(5)]
    finished(calibrate(graph, batches, total=20))
    live.most = 0
    finished(correct_biases(graph, batches))
    # 20 float and 20 quantized, and what one batch has inside of a stretch
    assert 40 <= live.most <= 40 + 3 * 4


def test_memory_bounds_the_images():
    batches = [images(4, seed) for seed in range(3)]
    graph = calibrated(batches, weight_bits=3)
    _, events = finished(correct_biases(graph, batches))
    assert not any(isinstance(event, Note) for event in events)
    # two tensors of 16 maps of 8 x 8 are kept, float and quantized: 16 KiB an image
    graph = calibrated(batches, weight_bits=3)
    _, events = finished(correct_biases(graph, batches, memory_limit=160 * 1024))
    notes = [str(event) for event in events if isinstance(event, Note)]
    assert len(notes) == 1
    used = int(notes[0].split("looks at ")[1].split()[0])
    assert 4 <= used < 12
    uncorrected = calibrated(batches, weight_bits=3)
    exact = channel_means(uncorrected, "float", [torch.cat(batches)[:used]])
    assert max(mean_errors(graph, exact, [torch.cat(batches)[:used]]).values()) < 1e-6


def test_one_image_is_used_whatever_the_limit():
    graph = calibrated([images(2)])
    _, events = finished(correct_biases(graph, [images(2)], memory_limit=1))
    assert "looks at 1 of 2 images" in str(next(e for e in events if isinstance(e, Note)))


def test_layers_that_cannot_be_corrected_are_named():
    kept, plain = conv(3, 4), conv(4, 4)
    kept.bn = nn.BatchNorm2d(4)
    graph = graph_of([("kept", kept), ("plain", plain), ("head", conv(4, 4))])
    plain.weight_quantizer = None
    finished(calibrate(graph, [images()], total=8))
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    findings, _ = finished(correct_biases(graph, [images()]))
    text = "kept: isn't corrected: its batch norm isn't folded (the same for 1 layers)"
    assert [str(finding) for finding in findings] == [text]
    changed = [k for k, value in graph.state_dict().items() if not torch.equal(value, before[k])]
    assert changed == ["head.bias"]


def test_a_layer_that_runs_twice_stays_as_it_is():
    shared = conv(3, 3)
    graph = graph_of([("shared", shared), ("between", nn.Identity())])
    node = list(graph.graph.nodes)[-2]
    with graph.graph.inserting_after(node):
        second = graph.graph.call_module("shared", (node,))
    node.replace_all_uses_with(second, delete_user_cb=lambda user: user is not second)
    graph.recompile()
    finished(calibrate(graph, [images()], total=8))
    bias = shared.bias.detach().clone()
    findings, _ = finished(correct_biases(graph, [images()]))
    text = "shared: runs 2 times with one bias, which isn't corrected"
    assert [str(finding) for finding in findings] == [text]
    assert torch.equal(shared.bias, bias)


def test_a_large_error_is_found():
    graph = graph_of(
        [("head", linear(6, 2, weight_bits=2)), ("head.output_quantizer", quantizer())]
    )
    with torch.no_grad():
        graph.head.weight.fill_(0.4)
        graph.head.weight[:, 0] = 1.0
    batch = torch.rand(4, 6)
    finished(calibrate(graph, [batch], total=4))
    findings, _ = finished(correct_biases(graph, [batch]))
    assert len(findings) == 1
    assert str(findings[0]).startswith("head: quantization shifts a channel by ")


def test_no_images_is_an_error():
    with pytest.raises(UsageError, match=r"^bias correction: there are no images$"):
        finished(correct_biases(calibrated([images()]), [images(0)]))


def test_a_failure_or_a_stop_leaves_the_biases_as_they_were():
    graph = calibrated([images()], weight_bits=3)
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    job = correct_biases(graph, [images()])
    for _ in range(3):
        next(job)
    assert not torch.equal(graph.stem.bias, before["stem.bias"])
    assert torch.is_grad_enabled()
    job.close()
    bad = images()
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(HatError, match=r"^stem: NaN or inf in its result during bias correction$"):
        finished(correct_biases(graph, [bad]))
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())
    assert {m.mode for m in graph.modules() if hasattr(m, "mode")} == {"quantize"}
