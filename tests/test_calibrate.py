import pytest
import torch
from small_graphs import conv, finished, graph_of, linear, quantizer, residual_net
from torch import nn

from hatcli.errors import CheckpointError, ConfigError, DataError, HatError, UsageError
from hatcli.events import Progress
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.layers import UpsampleBilinear2x
from hatcli.quantize.quantizers import ActivationQuantizer, largest_relu6_scale


def images(number=4, seed=0):
    return torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def modes(graph):
    return {module.mode for module in graph.modules() if hasattr(module, "mode")}


def snr(exact, other):
    return float(10 * torch.log10(exact.square().sum() / (exact - other).square().sum()))


@pytest.mark.parametrize("kind", ["min_max", "moving_average", "percentile", "mse"])
def test_a_calibrated_graph_quantizes_and_stays_near_the_float_one(kind):
    graph = residual_net(observer={"type": kind})
    batches = [images(4, seed) for seed in range(3)]
    with torch.no_grad():
        exact = graph(batches[0])
    findings, _ = finished(calibrate(graph, batches, total=12))
    with torch.no_grad():
        result = graph(batches[0])
    assert findings == []
    assert modes(graph) == {"quantize"}
    assert 25 < snr(exact, result) < 60
    assert all(m.observer is None for m in graph.modules() if isinstance(m, ActivationQuantizer))


def test_progress_counts_images():
    graph = residual_net()
    _, events = finished(calibrate(graph, [images(4), images(0), images(3)], total=7))
    assert [event.done for event in events] == [0, 4, 4, 7]
    assert events[-1] == Progress("calibrating", 7, 7)


def test_ranges_are_those_of_all_batches():
    graph = graph_of([("input_quantizer", quantizer())])
    batches = [torch.full((1, 3, 2, 2), value) for value in (-1.0, 4.1, 0.5)]
    finished(calibrate(graph, batches, total=3))
    grid = graph.input_quantizer.grid
    assert grid.scale == pytest.approx(5.1 / 255)
    assert grid.zero_point == 50


def test_weights_are_float_while_the_observers_look_on():
    coarse = residual_net(weight_bits=2, observer={"type": "min_max"})
    fine = residual_net(weight_bits=8, observer={"type": "min_max"})
    for graph in (coarse, fine, fine):  # a second time from the quantizing state
        finished(calibrate(graph, [images()], total=4))
    grids = [
        [m.grid for m in graph.modules() if isinstance(m, ActivationQuantizer)]
        for graph in (coarse, fine)
    ]
    assert grids[0] == grids[1]


def test_weight_scales_are_those_of_the_observer():
    graph = graph_of([("stem", conv(3, 4)), ("stem.output_quantizer", quantizer())])
    finished(calibrate(graph, [images()], total=4))
    expected = graph.stem.weight.detach().flatten(1).abs().amax(1) / 127
    assert torch.equal(graph.stem.weight_quantizer.scale, expected)


def test_a_relu_starts_at_zero_and_a_relu6_ends_at_6():
    graph = graph_of(
        [
            ("a", nn.Identity()),
            ("a.output_quantizer", quantizer("relu")),
            ("b", nn.Identity(), "a"),
            ("b.output_quantizer", quantizer("relu6", bits=16)),
        ]
    )
    finished(calibrate(graph, [images() * 10 + 1], total=4))
    relu, relu6 = graph.a.output_quantizer, graph.b.output_quantizer
    assert relu.grid.zero_point == relu6.grid.zero_point == 0
    assert float(relu6.scale) == largest_relu6_scale(16)
    assert float(relu6.scale) * 65535 <= 6.0


def test_a_quantizer_that_runs_twice_sees_both_tensors():
    shared = quantizer()
    graph = graph_of(
        [
            ("input_quantizer", shared),
            ("up", UpsampleBilinear2x()),
            ("negated", _Negated()),
        ]
    )
    node = list(graph.graph.nodes)[-2]
    with graph.graph.inserting_after(node):
        second = graph.graph.call_module("input_quantizer", (node,))
    node.replace_all_uses_with(second, delete_user_cb=lambda user: user is not second)
    graph.recompile()
    finished(calibrate(graph, [torch.rand(1, 3, 4, 4) + 1], total=1))
    assert 100 < shared.grid.zero_point < 155


class _Negated(nn.Module):
    def forward(self, x):
        return -x


def test_float_layers_have_no_scales():
    stem = conv(3, 4)
    stem.weight_quantizer = None
    graph = graph_of([("stem", stem), ("stem.output_quantizer", quantizer())])
    findings, _ = finished(calibrate(graph, [images()], total=4))
    assert findings == []


# --- odd layers


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (torch.zeros(1, 3, 4, 4), "input: is 0 everywhere in the images: its grid has steps of 1"),
        (
            torch.full((1, 3, 4, 4), -0.5),
            "input: is -0.5 everywhere in the images: other values will be cut to 0 or to it",
        ),
        (
            torch.rand(1, 3, 4, 4) * 1e-8,
            "the layers before it may be dead",
        ),
    ],
)
def test_a_tensor_that_hardly_varies_is_found(image, text):
    graph = graph_of([("input_quantizer", quantizer())])
    findings, _ = finished(calibrate(graph, [image], total=1))
    assert len(findings) == 1
    assert text in str(findings[0])
    with torch.no_grad():
        assert torch.allclose(graph(image), image, atol=1e-10)


def test_a_range_that_would_be_cut_to_nothing_is_kept_whole():
    image = torch.zeros(1, 3, 400, 400)
    image[0, 0, 0, 0] = 8.0
    graph = graph_of([("input_quantizer", quantizer(observer={"type": "percentile"}))])
    findings, _ = finished(calibrate(graph, [image], total=1))
    assert graph.input_quantizer.grid.scale == pytest.approx(8 / 255)
    text = "input: is 0 nearly everywhere: its grid spans the whole range, 0 to 8"
    assert [str(finding) for finding in findings] == [text]


def test_dead_channels_are_found_and_get_a_scale_like_the_others():
    graph = graph_of([("stem", conv(3, 4)), ("stem.output_quantizer", quantizer())])
    with torch.no_grad():
        graph.stem.weight[1:3] = 0.0
    findings, _ = finished(calibrate(graph, [images()], total=4))
    text = "2 of 4 output channels have weights of 0 alone: they give their bias"
    assert [(finding.layer, finding.text) for finding in findings] == [("stem", text)]
    scale = graph.stem.weight_quantizer.scale
    assert float(scale.min()) > 1e-4
    assert float(scale[1]) == float(scale[2]) == float(scale.max())


def test_a_dead_layer_is_found():
    graph = graph_of([("stem", conv(3, 4)), ("stem.output_quantizer", quantizer())])
    nn.init.zeros_(graph.stem.weight)
    findings, _ = finished(calibrate(graph, [images()], total=4))
    assert str(findings[0]) == "stem: all its weights are 0: its result is its bias alone"
    assert bool((graph.stem.weight_quantizer.scale > 0).all())


# --- failures


def fails(graph, batches, error, message):
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    with pytest.raises(error, match=message):
        finished(calibrate(graph, batches, total=4))
    assert modes(graph) == {"float"}
    assert all(m.observer is None for m in graph.modules() if isinstance(m, ActivationQuantizer))
    for key, value in graph.state_dict().items():
        assert torch.equal(value, before[key]) or bool(value.isnan().any())


@pytest.mark.parametrize("batches", [[], [images(0)]])
def test_no_images_is_an_error(batches):
    fails(residual_net(), batches, UsageError, "^calibration: there are no images$")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_image_that_is_not_finite_is_named(value):
    bad = images(3)
    bad[1, 0, 0, 0] = value
    message = "^calibration: NaN or inf in the input, among images 5 to 7$"
    fails(residual_net(), [images(4), bad], DataError, message)


def test_the_first_layer_that_overflows_is_named_though_a_relu6_hides_it():
    graph = residual_net()
    with torch.no_grad():
        graph.depthwise.bias[0] = 3e38
        graph.depthwise.weight[0] = 3e38
    message = "^depthwise: NaN or inf in its result, among images 1 to 4$"
    fails(graph, [images(4)], HatError, message)
    graph = graph_of([("stem", conv(3, 4)), ("stem.output_quantizer", quantizer("relu6"))])
    with torch.no_grad():
        graph.stem.weight.fill_(3e38)
    fails(graph, [images(4).abs() + 1], HatError, "^stem: NaN or inf in its result")


def test_a_damaged_weight_is_named():
    graph = residual_net()
    with torch.no_grad():
        graph.classifier.bias[2] = torch.nan
    fails(graph, [images(4)], CheckpointError, "^classifier: NaN or inf in its bias$")


def test_an_observer_that_cannot_choose_ranges_of_weights_is_refused():
    graph = graph_of([("head", linear(4, 2, observer={"type": "percentile"}))])
    message = "^quantize.weight_observer of head: 'percentile' can't choose the ranges of weights$"
    fails(graph, [images(4)], ConfigError, message)


def test_a_wrong_argument_of_an_observer_names_the_layer():
    graph = graph_of([("input_quantizer", quantizer(observer={"type": "mse", "bins": 1}))])
    fails(graph, [images(4)], ConfigError, "^quantize.observer of input: bins: must be a multiple")


def test_a_job_that_is_given_up_leaves_the_graph_in_float():
    graph = residual_net()
    job = calibrate(graph, [images(4)] * 2, total=8)
    next(job)
    next(job)
    assert modes(graph) == {"observe"}
    assert torch.is_grad_enabled()
    job.close()
    assert modes(graph) == {"float"}
    assert float(graph.input_quantizer.scale) == 1.0
